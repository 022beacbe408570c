//! The placement experiment: how both placements spread 10,000 writes over 9 slaves, counted by the slaves'
//! acknowledgements. Each placement gets a cluster of its own and the same keys in the same order.

use super::access::StoreAccess;
use super::clock::Clock;
use super::driver::resp::Script;
use super::driver::{Dialer, StoreProtocol};
use super::keys::Chooser;
use super::ledger::Ledger;
use super::monitor::Monitor;
use super::options::Options;
use super::progress::Progress;
use super::record::{LoadSettings, PlacementRecord};
use super::stop::StopSignal;
use super::value::Texts;
use super::{run, start};
use rand::rngs::SmallRng;
use rand::SeedableRng as _;
use std::fmt::Write as _;
use std::sync::Arc;

/// Writes, and slaves, of the experiment.
const WRITES: usize = 10_000;
const SLAVES: u32 = 9;

/// Length of each value, unless it must be longer to name its key.
const VALUE_BYTES: u32 = 64;

/// Runs it for both placements. Interrupted, it gives those that are complete.
///
/// # Errors
/// When a cluster does not start, or does not take the writes.
pub(crate) fn experiment(
    options: &Options,
    seed: u64,
    stop: &StopSignal,
    progress: &mut Progress,
) -> anyhow::Result<Vec<PlacementRecord>> {
    let mut records = Vec::new();
    for placement in ["hash", "random"] {
        progress.say(&format!("placement {placement}: {WRITES} writes over {SLAVES} slaves"));
        let settings = settings(options, seed, placement);
        let Some(mut cluster) = start(options, &settings, stop)? else { break };
        let reached = (cluster.launcher().masters(), cluster.access().clone());
        let result = write(options, &settings, reached, stop);
        cluster.stop()?;
        match result {
            Ok(record) => records.push(record),
            Err(_) if stop.is_set() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

fn settings(options: &Options, seed: u64, placement: &str) -> LoadSettings {
    // The number of writes matters, not the length of the runs' values.
    let shortest = Texts::value_bytes_min(&options.key_prefix, options.keys);
    let value_bytes = VALUE_BYTES.max(u32::try_from(shortest).unwrap_or(u32::MAX));
    LoadSettings { slaves: SLAVES, placement: placement.to_owned(), value_bytes, ..options.settings(seed) }
}

fn write(
    options: &Options,
    settings: &LoadSettings,
    (targets, access): (Vec<String>, StoreAccess),
    stop: &StopSignal,
) -> anyhow::Result<PlacementRecord> {
    let value_bytes = settings.value_bytes as usize;
    let texts = Arc::new(Texts::new(&options.key_prefix, settings.keys, value_bytes, settings.seed as u32));
    let script = Arc::new(Script::new(Arc::clone(&texts), None));
    let dialer = Dialer {
        targets: targets.clone(),
        access: access.clone(),
        texts,
        script,
        clock: Clock::start(),
        protocol: StoreProtocol::Resp,
    };
    let ledger = Ledger::new(settings.keys);
    let chooser = Chooser::new(options.distribution, settings.keys, options.zipf_exponent)?;
    let mut random = SmallRng::seed_from_u64(settings.seed);
    let keys: Vec<u32> = (0..WRITES).map(|_| chooser.choose(&mut random)).collect();
    let mut writes = vec![0u64; settings.keys as usize];
    for key in &keys {
        writes[*key as usize] += 1;
    }
    let monitor = Monitor::start(targets, access, true)?;
    let batches = keys.chunks(run::batch_size(value_bytes)).map(<[u32]>::to_vec);
    run::write_all(&dialer, &ledger, batches, options.timeout, stop)?;
    Ok(PlacementRecord {
        placement: settings.placement.clone(),
        writes: WRITES as u64,
        copies: u64::from(settings.slaves.div_ceil(2)),
        squares: writes.iter().map(|count| count * count).sum(),
        loads: monitor.finish().loads,
    })
}

/// The table of the experiment.
pub(crate) fn table(records: &[PlacementRecord]) -> String {
    let mut text = String::new();
    for record in records {
        let counts = record.loads.iter().map(|load| load.writes);
        let total: u64 = counts.clone().sum();
        let mean = total as f64 / record.loads.len().max(1) as f64;
        let off = |count: Option<u64>| 100.0 * (count.unwrap_or_default() as f64 / mean.max(1.0) - 1.0);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "placement {}: {} writes, {} copies of each; {mean:.0} a slave on average, {:+.1} % to {:+.1} %",
            record.placement,
            record.writes,
            record.copies,
            off(counts.clone().min()),
            off(counts.clone().max())
        );
        for load in &record.loads {
            let _ = writeln!(text, "  {:<12}{:>8}", load.slave, load.writes);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn its_values_are_short_however_long_those_of_the_runs_are() {
        let bytes = |line: &str| {
            let words = ["dsm-test-harness"].into_iter().chain(line.split(' '));
            settings(&Options::parse_from(words), 1, "hash").value_bytes
        };
        assert_eq!(bytes("--value-bytes 1048576"), 64);
        assert!(bytes(&format!("--key-prefix {}", "k".repeat(100))) > 100);
    }
}
