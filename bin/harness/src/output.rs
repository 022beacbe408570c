//! The files of a run: `results.csv`, `run.json` or `sweep.json`. docs/HARNESS.md explains them.

use super::record::{LoadSettings, RunRecord, Second, SingleRecord, SweepRecord};
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A column of `results.csv`: its name, and what stands in it for one second of a run.
type Column = (&'static str, fn(&LoadSettings, &Second) -> String);

/// The columns of `results.csv` before those of the errors, one for each class that occurred.
const COLUMNS: [Column; 27] = [
    ("timestamp", |_, s| s.timestamp.clone()),
    ("client_count", |settings, _| settings.clients.to_string()),
    ("slave_count", |settings, _| settings.slaves.to_string()),
    ("total_requests", |_, s| s.total_requests.to_string()),
    ("success_count", |_, s| s.success_count.to_string()),
    ("error_count", |_, s| s.error_count.to_string()),
    ("read_latency_us", |_, s| format!("{:.1}", s.read_latency_us)),
    ("write_latency_us", |_, s| format!("{:.1}", s.write_latency_us)),
    ("throughput_rps", |_, s| format!("{:.1}", s.throughput_rps)),
    ("read_count", |_, s| s.read_count.to_string()),
    ("write_count", |_, s| s.write_count.to_string()),
    ("read_p50_us", |_, s| s.read.p50.to_string()),
    ("read_p90_us", |_, s| s.read.p90.to_string()),
    ("read_p99_us", |_, s| s.read.p99.to_string()),
    ("read_p999_us", |_, s| s.read.p999.to_string()),
    ("read_max_us", |_, s| s.read.max.to_string()),
    ("write_p50_us", |_, s| s.write.p50.to_string()),
    ("write_p90_us", |_, s| s.write.p90.to_string()),
    ("write_p99_us", |_, s| s.write.p99.to_string()),
    ("write_p999_us", |_, s| s.write.p999.to_string()),
    ("write_max_us", |_, s| s.write.max.to_string()),
    ("at_s", |_, s| format!("{:.3}", s.at_s)),
    ("pool", |settings, _| settings.pool.to_string()),
    ("pipeline", |settings, _| settings.pipeline.to_string()),
    ("write_pct", |settings, _| settings.write_pct.to_string()),
    ("value_bytes", |settings, _| settings.value_bytes.to_string()),
    ("harness_cpu_pct", |_, s| format!("{:.1}", s.harness_cpu_pct)),
];

/// The seconds of all runs, one a line.
fn csv(runs: &[RunRecord]) -> anyhow::Result<Vec<u8>> {
    let seconds = runs.iter().flat_map(|run| &run.seconds);
    let classes: BTreeSet<&str> =
        seconds.flat_map(|second| second.errors.keys().map(String::as_str)).collect();
    let mut table = csv::Writer::from_writer(Vec::new());
    let of_class = |class: &&str| {
        let word = class.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
        format!("error_{}", word.collect::<String>())
    };
    let names = COLUMNS.iter().map(|(name, _)| (*name).to_owned());
    table.write_record(names.chain(classes.iter().map(of_class)))?;
    for run in runs {
        for second in &run.seconds {
            let cells = COLUMNS.iter().map(|(_, cell)| cell(&run.settings, second));
            let errors = classes.iter().map(|class| second.errors.get(*class).copied().unwrap_or_default());
            table.write_record(cells.chain(errors.map(|count| count.to_string())))?;
        }
    }
    table.into_inner().map_err(|error| error.into_error()).context("cannot put the seconds into CSV")
}

/// Writes `results.csv` and `run.json` (of a single run) or `sweep.json`; what another kind of run left is removed.
///
/// # Errors
/// When the directory cannot be made or a file cannot be written.
pub(crate) fn write(sweep: &SweepRecord, single: bool, directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    put(&directory.join("results.csv"), &csv(&sweep.runs)?)?;
    let (run_path, sweep_path) = (directory.join("run.json"), directory.join("sweep.json"));
    match (single, &sweep.runs[..]) {
        (true, [run]) => {
            let single = SingleRecord { run: run.clone(), placement: sweep.placement.clone() };
            put(&run_path, &json(&single)?)?;
            remove(&sweep_path)
        }
        _ => {
            put(&sweep_path, &json(sweep)?)?;
            remove(&run_path)
        }
    }
}

fn json(record: &impl serde::Serialize) -> anyhow::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(record).context("cannot put the record into JSON")?;
    text.push(b'\n');
    Ok(text)
}

/// Replaces a file as a whole: a reader never finds half of it.
fn put(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let written = fs::write(&new, content).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // Removes a partial file.
        let _ = fs::remove_file(&new);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::PlacementRecord;
    use super::*;

    fn run(clients: u32, errors: &[(&str, u64)]) -> RunRecord {
        let errors = errors.iter().map(|(class, count)| ((*class).to_owned(), *count)).collect();
        let mut run = RunRecord::default();
        run.settings.clients = clients;
        run.seconds =
            vec![Second { timestamp: "2026-01-01T00:00:01.000Z".to_owned(), errors, ..Second::default() }];
        run
    }

    #[test]
    fn the_columns_of_the_original_come_first_and_every_line_has_all() {
        let text = csv(&[run(1, &[("standby", 2)]), run(5, &[("wrong_value", 1)])]).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert!(text.starts_with(
            "timestamp,client_count,slave_count,total_requests,success_count,error_count,read_latency_us,\
             write_latency_us,throughput_rps,read_count,write_count,read_p50_us,"
        ));
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        assert_eq!(lines[0][lines[0].len() - 2..], ["error_standby", "error_wrong_value"]);
        assert_eq!(lines[1][lines[1].len() - 2..], ["2", "0"]);
        assert_eq!((lines[1][1], lines[2][1]), ("1", "5"));
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_half_done() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.csv");
        // A rename onto a directory fails.
        fs::create_dir(&path).unwrap();
        assert!(put(&path, b"text").is_err());
        let left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [path]);
    }

    #[test]
    fn a_single_run_and_a_sweep_do_not_stand_side_by_side() {
        let directory = tempfile::tempdir().unwrap();
        let placement = vec![PlacementRecord { writes: 7, ..PlacementRecord::default() }];
        let sweep = SweepRecord { format: 1, runs: vec![run(1, &[])], placement };
        write(&sweep, false, directory.path()).unwrap();
        assert!(directory.path().join("sweep.json").exists());
        write(&sweep, true, directory.path()).unwrap();
        assert!(!directory.path().join("sweep.json").exists());
        let text = fs::read_to_string(directory.path().join("run.json")).unwrap();
        let read: SingleRecord = serde_json::from_str(&text).unwrap();
        assert_eq!((read.run.settings.clients, read.placement[0].writes), (1, 7));
    }
}
