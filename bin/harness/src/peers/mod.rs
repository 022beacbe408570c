//! `dsm-test-harness peers`: this store beside Redis, Valkey, etcd and ZooKeeper, the same load on each, in one run.
//!
//! | module | owns |
//! |---|---|
//! | [`plan`] | which stores under which loads |
//! | [`server`] | how each is started |
//! | [`cpu`] | what they cost |
//! | [`record`] | `peers.json` |
//! | [`plot`] | its pictures, in `img/` beside it |
//! | [`table`] | the tables of docs/BENCHMARKS.md |
//!
//! Only one store runs at a time. It never judges the figures.

mod cpu;
mod plan;
mod plot;
mod record;
mod server;
mod table;

use super::instance::Instance;
use super::options::Options;
use super::progress::Progress;
use super::record::RunRecord;
use super::run::{self, Setting};
use super::stop::StopSignal;
use anyhow::{ensure, Context as _};
use clap::{Parser, ValueEnum as _};
use cpu::Sampler;
use plan::{BenchmarkPlan, Cell, Peer, KEYS, VALUE_BYTES};
use record::{PeerRecord, PeerRun, PeersRecord, FORMAT};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

/// Compares dsm with redis-server, valkey-server, etcd and ZooKeeper, as installed from Debian's packages.
///
/// In each round each store, one at a time, is started on free ports with its own directory, loaded, stopped and removed. A
/// store that is not installed is left out, with a warning.
#[derive(Clone, Debug, Parser)]
#[command(name = "dsm-test-harness peers", bin_name = "dsm-test-harness peers", version)]
struct PeersOptions {
    /// Measure only a few loads: about 6 minutes instead of 50
    #[arg(long)]
    quick: bool,

    /// Number of rounds [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,

    /// How long to measure each load on each store in each round [default: 5s, with --quick 1500ms]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// Stores to measure [default: all]
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    only: Vec<Peer>,

    /// Directory in which the stores' directories are created, on the disk to be measured [default: the system's temporary
    /// directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// File to which all figures are written; with --tables-only, from which they are read
    #[arg(long, value_name = "FILE", default_value = "results/peers.json")]
    json: PathBuf,

    /// Document in which the tables between two marks are replaced [default: print them]
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,

    /// Measure nothing; only write the tables again
    #[arg(long)]
    tables_only: bool,

    #[command(flatten)]
    log: dsm_server::cli::LogArgs,
}

impl dsm_server::cli::Flags for PeersOptions {
    fn validate(&self) -> Result<(), String> {
        if self.duration.is_some_and(|duration| duration.is_zero()) {
            return Err("--duration must be above 0".to_owned());
        }
        Ok(())
    }
}

/// Runs it with the words of the command line, the first of which is the program.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    dsm_server::cli::outlive_file_limit();
    let options: PeersOptions = match dsm_server::cli::parse(words) {
        Ok(options) => options,
        Err(code) => return code,
    };
    options.log.start("warn");
    dsm_server::cli::finish(measure(&options), 1)
}

fn measure(options: &PeersOptions) -> anyhow::Result<ExitCode> {
    let record = if options.tables_only {
        let text = fs::read_to_string(&options.json);
        let text = text.with_context(|| format!("cannot read {}", options.json.display()))?;
        let record: PeersRecord = serde_json::from_str(&text).context("not a record of peers")?;
        ensure!(record.format == FORMAT, "a record of another version: {}", record.format);
        record
    } else {
        if let Some(document) = &options.document {
            // Now, and not after an hour.
            table::replace(&read(document)?, "").with_context(|| document.display().to_string())?;
        }
        Bench::new(options)?.run()?
    };
    let text = table::render(&record);
    match &options.document {
        Some(document) => {
            let whole = table::replace(&read(document)?, &text)?;
            fs::write(document, whole).with_context(|| format!("cannot write {}", document.display()))?;
            plot::draw(&record, &document.with_file_name("img"))?;
        }
        None => writeln!(io::stdout(), "{text}").context("cannot write to standard output")?,
    }
    let complete = record.ended_early.is_none();
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// One run of the benchmark.
struct Bench<'a> {
    options: &'a PeersOptions,
    plan: BenchmarkPlan,
    peers: Vec<Peer>,
    record: PeersRecord,
    stop: StopSignal,
    progress: Progress,
    begun: Instant,
}

impl<'a> Bench<'a> {
    fn new(options: &'a PeersOptions) -> anyhow::Result<Bench<'a>> {
        let mut plan = if options.quick { BenchmarkPlan::quick() } else { BenchmarkPlan::full() };
        plan.rounds = options.rounds.unwrap_or(plan.rounds);
        plan.duration = options.duration.unwrap_or(plan.duration);
        let wanted = |peer: &Peer| options.only.is_empty() || options.only.contains(peer);
        let peers: Vec<Peer> = Peer::ALL.into_iter().filter(wanted).collect();
        if let Some(parent) = options.json.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let record = PeersRecord {
            format: FORMAT,
            started_at: now(),
            command_line: std::env::args().skip(1).collect(),
            system: super::system::describe(),
            rounds: plan.rounds,
            warmup_s: plan.warmup.as_secs_f64(),
            duration_s: plan.duration.as_secs_f64(),
            keys: KEYS,
            value_bytes: VALUE_BYTES,
            cells: plan.cells(),
            peers: peers
                .iter()
                .map(|peer| PeerRecord { peer: *peer, version: String::new(), commands: Vec::new() })
                .collect(),
            ..PeersRecord::default()
        };
        let (stop, progress) = (StopSignal::on_signals()?, Progress::new(false));
        Ok(Bench { options, plan, peers, record, stop, progress, begun: Instant::now() })
    }

    fn run(mut self) -> anyhow::Result<PeersRecord> {
        for round in 1..=self.plan.rounds {
            for group in self.plan.groups.clone() {
                let order = BenchmarkPlan::order(round - 1, &self.peers);
                let mut instance = None;
                for peer in order {
                    self.peer(peer, round, &group, &mut instance)?;
                }
                if let Some((_, instance)) = instance.take() {
                    Instance::stop(instance)?;
                }
            }
        }
        self.record.ended_at = now();
        self.save()?;
        Ok(self.record)
    }

    /// Measures the cells of a group on one store. `running`: what the store before it left running.
    fn peer(
        &mut self,
        peer: Peer,
        round: u32,
        group: &[Cell],
        running: &mut Option<(Peer, Instance)>,
    ) -> anyhow::Result<()> {
        let cells: Vec<Cell> = group.iter().copied().filter(|cell| peer.takes(*cell)).collect();
        let shared =
            peer.shares_processes() && running.as_ref().is_some_and(|(of, _)| *of == Peer::Zookeeper);
        if !shared {
            if let Some((_, instance)) = running.take() {
                instance.stop()?;
            }
        }
        if cells.is_empty() || self.is_over() {
            return Ok(());
        }
        if !shared {
            self.progress.say(&format!("round {round}: {}", peer.title()));
            let started = match server::missing(peer) {
                Some(missing) => Err(anyhow::anyhow!(missing)),
                None => server::start(peer, self.options.data.as_deref(), &self.stop),
            };
            match started {
                Ok(instance) => *running = Some((peer, instance)),
                Err(_) if self.stop.is_set() => return Ok(()),
                Err(error) => {
                    let why = format!("{error:#}");
                    self.progress.warn(&format!("{}: {why}", peer.title()));
                    let failed = |cell: Cell| PeerRun::failed(peer, cell, round, why.clone());
                    self.record.runs.extend(cells.into_iter().map(failed));
                    return self.save();
                }
            }
        }
        let Some((_, instance)) = running else { return Ok(()) };
        if let Some(told) = self.record.peers.iter_mut().find(|told| told.peer == peer) {
            told.version.clone_from(&instance.version);
            told.commands.clone_from(&instance.commands);
        }
        if !shared {
            // Warms the caches, heaps and just-in-time compilers of a store that was just started.
            let warm = Cell { write_pct: 30, connections: 50, pipeline: 16 };
            let first = (self.plan.first, Duration::from_millis(100));
            // If it fails, the measurements will fail too, and report it.
            let _ = one(peer, warm, instance, first, &self.stop, &mut self.progress);
        }
        for cell in cells {
            if self.is_over() {
                return Ok(());
            }
            self.progress.label(format!("round {round}, {}, {}: ", peer.title(), cell.title()));
            let times = (self.plan.warmup, self.plan.duration);
            let run = match one(peer, cell, instance, times, &self.stop, &mut self.progress) {
                Ok(run) => PeerRun { round, ..run },
                Err(_) if self.stop.is_set() => return Ok(()),
                Err(error) => PeerRun::failed(peer, cell, round, format!("{error:#}")),
            };
            self.progress.label(String::new());
            self.progress.say(&match &run.failed {
                Some(why) => format!("{}, {}: {why}", peer.title(), cell.title()),
                None => format!("{}, {}: {:.0} op/s", peer.title(), cell.title(), run.throughput_rps),
            });
            self.record.runs.push(run);
            // After each run, so that long work is not lost.
            self.save()?;
        }
        Ok(())
    }

    /// Whether nothing new is to be begun; why, is in the record.
    fn is_over(&mut self) -> bool {
        let why = if self.stop.is_set() {
            "interrupted by a signal".to_owned()
        } else if self.begun.elapsed() > self.plan.limit {
            format!("stopped after its limit of {} minutes", self.plan.limit.as_secs() / 60)
        } else {
            return false;
        };
        self.record.ended_early = Some(why);
        true
    }

    fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.record).context("cannot put the record into JSON")?;
        let path = &self.options.json;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// One load on a store that runs. `times`: of the warm-up and of the measurement.
fn one(
    peer: Peer,
    cell: Cell,
    instance: &mut Instance,
    times: (Duration, Duration),
    stop: &StopSignal,
    progress: &mut Progress,
) -> anyhow::Result<PeerRun> {
    let mut targets = instance.targets.clone();
    if peer.avoids_leader() {
        targets.rotate_left(1);
    }
    let options = load(peer, cell, &targets, times)?;
    let sampler = Sampler::start(instance.pids())?;
    // Values of one run are told from those of another by this.
    let settings = options.settings(rand::random());
    // The record of all peers is written after each run.
    let keep = &mut |_: &RunRecord| -> anyhow::Result<()> { Ok(()) };
    let (options, launcher, access) = (&options, None, instance.access.clone());
    let result = run::run(Setting { options, settings, targets, access, launcher, stop, progress, keep });
    let (from, until) = match &result {
        Ok(run) => window(run)?,
        Err(_) => (SystemTime::now(), SystemTime::now()),
    };
    let used = sampler.finish(from, until);
    let RunRecord { totals, wrong_outside, duration_s, harness_cpu, read_back, interrupted, .. } = result?;
    ensure!(!interrupted, "interrupted");
    ensure!(totals.success_count > 0, "no request succeeded: {:?}", totals.errors);
    let mut errors = totals.errors;
    for (class, count) in wrong_outside {
        *errors.entry(class).or_default() += count;
    }
    if let Some(lost) = read_back.map(|back| back.lost + back.mangled).filter(|lost| *lost > 0) {
        errors.insert("lost".to_owned(), lost);
    }
    let harness_s = harness_cpu.user_s + harness_cpu.system_s;
    let percent = |seconds: f64| 100.0 * seconds / duration_s;
    Ok(PeerRun {
        peer,
        cell,
        round: 0,
        failed: None,
        throughput_rps: totals.throughput_rps,
        success_count: totals.success_count,
        error_count: totals.error_count,
        errors,
        read_count: totals.read_count,
        write_count: totals.write_count,
        read: totals.read,
        write: totals.write,
        server_cpu_us: used.servers_s * 1e6 / totals.success_count as f64,
        server_cpu_pct: percent(used.servers_s),
        harness_cpu_pct: percent(harness_s),
        other_cpu_pct: percent((used.machine_s - used.servers_s - harness_s).max(0.0)),
    })
}

/// When the measurement of a run began and ended.
fn window(run: &RunRecord) -> anyhow::Result<(SystemTime, SystemTime)> {
    let from = humantime::parse_rfc3339(&run.started_at).context("a run without a beginning")?;
    Ok((from, from + Duration::from_secs_f64(run.duration_s)))
}

/// The harness' options for a load, as they can be given on its command line.
fn load(
    peer: Peer,
    cell: Cell,
    targets: &[String],
    (warmup, duration): (Duration, Duration),
) -> anyhow::Result<Options> {
    let protocol = peer.protocol().to_possible_value().context("a protocol without a name")?;
    let mut words = vec![
        "dsm-test-harness".to_owned(),
        format!("--target={}", targets.join(",")),
        format!("--protocol={}", protocol.get_name()),
        format!("--clients={}", cell.connections),
        "--pool=1".to_owned(),
        format!("--pipeline={}", cell.pipeline),
        format!("--write-pct={}", cell.write_pct),
        "--think=0".to_owned(),
        format!("--keys={KEYS}"),
        format!("--value-bytes={VALUE_BYTES}"),
        format!("--warmup={}ms", warmup.as_millis()),
        format!("--duration={}ms", duration.as_millis()),
        "--timeout=10s".to_owned(),
    ];
    words.extend(peer.wait().map(|replicas| format!("--wait={replicas}")));
    Options::try_parse_from(words).context("the load has wrong options")
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_is_one_that_the_harness_takes() {
        let times = (Duration::from_millis(500), Duration::from_secs(1));
        for peer in Peer::ALL {
            for cell in BenchmarkPlan::full().cells() {
                let options = load(peer, cell, &["127.0.0.1:1".to_owned()], times).unwrap();
                assert_eq!((options.protocol, options.pipeline), (peer.protocol(), cell.pipeline));
                assert_eq!(
                    (options.clients, options.write_pct),
                    (cell.connections, f64::from(cell.write_pct))
                );
            }
        }
    }

    #[test]
    fn the_command_is_well_formed() {
        use clap::CommandFactory as _;
        PeersOptions::command().debug_assert();
    }
}
