//! `dsm-test-harness cold-start`: how long a master needs until it serves a log of many keys, and how much memory, beside
//! redis-server with the same keys in its append-only file.
//!
//! Writes the files itself, the log with the store's own encoder, so that ten million keys need no ten million requests.
//! Owns the processes and the directory, and ends and removes both.

use super::access::StoreAccess;
use super::instance::{find, free_ports, ChildProcess, ASK_LIMIT};
use super::stop::StopSignal;
use anyhow::{ensure, Context as _};
use clap::Parser;
use dsm_protocol::ids::{ClusterId, Epoch, ReignId, Seq};
use dsm_protocol::record::{self, Operation, ReignMark, SyncMode};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a start may take.
const START_LIMIT: Duration = Duration::from_secs(600);

/// The interval at which a store is asked whether it serves.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

const EXAMPLES: &str = "Examples:
  dsm-test-harness cold-start --build target/release
      starts the programs in target/release with a log of ten million keys
  dsm-test-harness cold-start --keys 1000000 --rounds 3 --redis

Exit codes: 0 measured; 1 something failed; 2 wrong usage.";

/// Measures from the start of the processes until a read and a write are answered, and the master's memory.
///
/// In each round all processes are started anew, with a log that was last written by nobody who still lives. Then the master is
/// killed and started again, while the slaves stay.
#[derive(Clone, Debug, Parser)]
#[command(name = "dsm-test-harness cold-start", bin_name = "dsm-test-harness cold-start", version, after_help = EXAMPLES)]
struct StartOptions {
    /// Directory of the programs to measure [default: that of this program]
    #[arg(long, value_name = "DIR")]
    build: Option<PathBuf>,

    /// Number of keys, each of 16 bytes with a value of 16 bytes
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    keys: u64,

    /// Number of rounds
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Number of slaves
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    slaves: u32,

    /// Measure also redis-server, with the same keys in its append-only file
    #[arg(long)]
    redis: bool,

    /// Directory in which the files are created, about 60 bytes a key [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    #[command(flatten)]
    log: dsm_server::cli::LogArgs,
}

impl dsm_server::cli::Flags for StartOptions {
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Runs it with the words of the command line, the first of which is the program.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    dsm_server::cli::outlive_file_limit();
    let options: StartOptions = match dsm_server::cli::parse(words) {
        Ok(options) => options,
        Err(code) => return code,
    };
    options.log.start("warn");
    dsm_server::cli::finish(measure(&options), 1)
}

fn measure(options: &StartOptions) -> anyhow::Result<ExitCode> {
    let bench = StartBench::new(options)?;
    let mut out = io::stdout().lock();
    writeln!(out, "| round | what starts | read after | write after | MB at most | MB per million keys |")?;
    writeln!(out, "|--:|---|--:|--:|--:|--:|")?;
    for round in 1..=options.rounds {
        for (what, started) in bench.round()? {
            let Started { read_s, write_s, peak_mb } = started;
            let each = peak_mb * 1e6 / options.keys as f64;
            writeln!(
                out,
                "| {round} | {what} | {read_s:.2} s | {write_s:.2} s | {peak_mb:.0} | {each:.1} |"
            )?;
        }
    }
    bench.directory.close().context("cannot remove the directory")?;
    Ok(ExitCode::SUCCESS)
}

/// What was measured of one start.
#[derive(Clone, Copy, Debug)]
struct Started {
    read_s: f64,
    write_s: f64,
    peak_mb: f64,
}

struct StartBench<'a> {
    options: &'a StartOptions,
    programs: PathBuf,
    directory: TempDir,
    stop: StopSignal,
}

impl<'a> StartBench<'a> {
    fn new(options: &'a StartOptions) -> anyhow::Result<StartBench<'a>> {
        let programs = match &options.build {
            Some(directory) => directory.clone(),
            None => {
                let own = std::env::current_exe().context("cannot find this program's own file")?;
                own.parent().context("this program is in no directory")?.to_owned()
            }
        };
        ensure!(!options.redis || find("redis-server").is_some(), "redis-server is not installed");
        let mut builder = tempfile::Builder::new();
        builder.prefix("dsm-start.");
        let directory = match &options.data {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let directory = directory.context("cannot make a directory")?;
        Ok(StartBench { options, programs, directory, stop: StopSignal::on_signals()? })
    }

    fn round(&self) -> anyhow::Result<Vec<(&'static str, Started)>> {
        let mut found = Vec::new();
        let log = self.directory.path().join("kv_store.log");
        write_log(&log, self.options.keys)?;
        let address = format!("127.0.0.1:{}", free_ports(1)?[0]);
        let mut slaves = Vec::new();
        let master = |slaves: &mut Vec<ChildProcess>| -> anyhow::Result<Started> {
            let mut words = vec![self.program("dsm-master")?];
            words.extend(["--listen", &address, "--log"].map(str::to_owned));
            words.push(log.to_string_lossy().into_owned());
            let begun = Instant::now();
            let mut process = self.spawn("master", &words)?;
            for number in slaves.len()..self.options.slaves as usize {
                let name = format!("slave-{}", number + 1);
                let program = self.program("dsm-slave")?;
                let words = [program.as_str(), "--masters", &address, "--id", &name].map(str::to_owned);
                slaves.push(self.spawn(&name, &words)?);
            }
            // It is killed when it is dropped.
            self.await_served(&address, &mut process, begun)
        };
        found.push(("dsm, slaves that are empty", master(&mut slaves)?));
        found.push(("dsm, slaves that stayed", master(&mut slaves)?));
        drop(slaves);
        // The lock file's text would say that this log was served a moment ago.
        for name in fs::read_dir(self.directory.path()).context("cannot list the directory")? {
            let path = name.context("cannot list the directory")?.path();
            if path.is_file() {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        if self.options.redis {
            found.push(("redis-server, append-only file", self.redis()?));
        }
        Ok(found)
    }

    fn redis(&self) -> anyhow::Result<Started> {
        let files = self.directory.path().join("appendonlydir");
        fs::create_dir_all(&files).context("cannot make Redis' directory")?;
        write_append_only(&files, self.options.keys)?;
        let port = free_ports(1)?[0].to_string();
        let own = self.directory.path().to_string_lossy().into_owned();
        let words = ["redis-server", "--port", &port, "--bind", "127.0.0.1", "--dir", &own, "--save", ""];
        let more = ["--appendonly", "yes", "--appendfsync", "always"];
        let words: Vec<String> = words.into_iter().chain(more).map(str::to_owned).collect();
        let begun = Instant::now();
        let mut process = self.spawn("redis", &words)?;
        let started = self.await_served(&format!("127.0.0.1:{port}"), &mut process, begun)?;
        drop(process);
        fs::remove_dir_all(&files).context("cannot remove Redis' files")?;
        Ok(started)
    }

    fn program(&self, name: &str) -> anyhow::Result<String> {
        let path = self.programs.join(name);
        ensure!(path.is_file(), "there is no {}", path.display());
        Ok(path.to_string_lossy().into_owned())
    }

    fn spawn(&self, name: &str, words: &[String]) -> anyhow::Result<ChildProcess> {
        ChildProcess::spawn(name, words, &self.directory.path().join(format!("{name}.out")))
    }

    /// Asks until a key of the middle is read as it was written, and a write is answered.
    fn await_served(
        &self,
        address: &str,
        process: &mut ChildProcess,
        begun: Instant,
    ) -> anyhow::Result<Started> {
        let number = self.options.keys / 2;
        let (key, value) = (key(number), value(number));
        let served = |words: &[&str], expected: &str, process: &mut ChildProcess| -> anyhow::Result<f64> {
            loop {
                match StoreAccess::default().ask(address, words, ASK_LIMIT) {
                    Ok(answer) => {
                        ensure!(answer == expected, "{words:?} is answered by {answer:?}, not {expected:?}");
                        return Ok(begun.elapsed().as_secs_f64());
                    }
                    Err(_) => process.check()?,
                }
                ensure!(!self.stop.is_set(), "interrupted");
                ensure!(begun.elapsed() < START_LIMIT, "nothing is served after {START_LIMIT:?}");
                self.stop.wait_until(Instant::now() + LOOK_INTERVAL);
            }
        };
        let read_s = served(&["GET", &key], &value, process)?;
        let write_s = served(&["SET", &key, &value], "OK", process)?;
        Ok(Started { read_s, write_s, peak_mb: peak_mb(process.id())? })
    }
}

/// The most memory that a process has had, in MB.
fn peak_mb(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("VmHWM is not told")?;
    Ok(kib.parse::<f64>().context("VmHWM is no number")? * 1024.0 / 1e6)
}

fn key(number: u64) -> String {
    format!("key{number:013}")
}

fn value(number: u64) -> String {
    format!("value{number:011}")
}

/// Writes the log of a cluster whose one reign wrote each key once.
fn write_log(path: &Path, keys: u64) -> anyhow::Result<()> {
    let file = File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let (mut line, epoch) = (Vec::new(), Epoch(1));
    record::encode(&Operation::Cluster(ClusterId(1)), Seq(1), epoch, Seq(0), &mut line);
    let mark = Some(ReignMark { id: ReignId(1), fsync: SyncMode::Always, given_up: Vec::new() });
    let begun = Operation::Epoch { address: "127.0.0.1:1".to_owned(), mark };
    record::encode(&begun, Seq(2), epoch, Seq(1), &mut line);
    let mut seq = Seq(2);
    for number in 0..keys {
        // As of a group of 64 writes, which was written when the one before was on disk.
        let synced = Seq((seq.0 & !63).max(1));
        seq = seq.next();
        record::encode_write(&[(key(number), value(number))], seq, epoch, synced, &mut line);
        file.write_all(&line)?;
        line.clear();
    }
    record::encode(&Operation::Synced, seq, epoch, seq, &mut line);
    file.write_all(&line)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all().context("cannot sync the log")
}

/// Writes the same keys as Redis would have appended them.
fn write_append_only(directory: &Path, keys: u64) -> anyhow::Result<()> {
    let name = "appendonly.aof.1.incr.aof";
    fs::write(directory.join("appendonly.aof.manifest"), format!("file {name} seq 1 type i\n"))?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create_new(directory.join(name))?);
    for number in 0..keys {
        write!(file, "*3\r\n$3\r\nSET\r\n$16\r\n{}\r\n$16\r\n{}\r\n", key(number), value(number))?;
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all().context("cannot sync Redis' file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_protocol::record::{Body, Scanner, Step};

    #[test]
    fn the_log_has_each_key_once_and_breaks_no_rule() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        write_log(&path, 1000).unwrap();
        let log = fs::read(&path).unwrap();
        let mut scanner = Scanner::new(1 << 20);
        let mut keys = Vec::new();
        loop {
            let offset = scanner.position().offset as usize;
            match scanner.next(&log[offset..]) {
                Step::Record { record, .. } => {
                    let Body::Write(pairs) = record.body else { continue };
                    keys.extend(pairs.map(|(key, _)| String::from_utf8(key.to_bytes().to_vec()).unwrap()));
                }
                Step::Partial => break,
                step @ (Step::Ignored | Step::Bad(_)) => panic!("{step:?}"),
            }
        }
        assert_eq!(keys, (0..1000).map(key).collect::<Vec<_>>());
        assert_eq!(
            (scanner.position().offset as usize, scanner.position().ends_with_mark),
            (log.len(), true)
        );
    }
}
