//! Counts of what a load makes a store do: system calls, by `strace`, and instructions, by `perf`.
//!
//! Both slow the store down (strace very much), and so count in passes of their own, never while anything is timed. Under
//! strace, batches are of another size than without: its counts are for comparing builds.

use super::super::instance::{find, ChildProcess};
use super::super::stop::StopSignal;
use super::usage::ServerPart;
use anyhow::{ensure, Context as _};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long strace may take to attach to all threads.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks at whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What perf counts.
const EVENTS: [&str; 2] = ["instructions:u", "instructions:k"];

/// Counts of system calls by name.
pub(crate) type CallCounts = BTreeMap<String, u64>;

/// Counters that run: one process for each part of the store.
#[derive(Debug)]
pub(crate) struct CallCounter {
    tracers: Vec<(ServerPart, ChildProcess, PathBuf)>,
}

/// Why system calls cannot be counted here; nothing, if they can.
pub(crate) fn no_calls() -> Option<String> {
    find("strace").is_none().then(|| "System calls are not counted: strace is not installed".to_owned())
}

/// Why instructions cannot be counted here; nothing, if they can.
pub(crate) fn no_instructions() -> Option<String> {
    let without = |why: &str| Some(format!("Instructions are not counted: {why}"));
    if find("perf").is_none() {
        return without("perf is not installed");
    }
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ",", "-e", EVENTS[0], "true"]).stdin(Stdio::null());
    match command.output() {
        Ok(output) => match instructions(&String::from_utf8_lossy(&output.stderr)) {
            found if !found.is_empty() => None,
            _ => without("perf has no counters of them on this machine"),
        },
        Err(error) => without(&format!("perf does not start: {error}")),
    }
}

impl CallCounter {
    /// Attaches to these processes and their threads; files are made in `directory`.
    ///
    /// # Errors
    /// When strace does not start, or may not attach.
    pub(crate) fn start(
        processes: &[(ServerPart, u32)],
        directory: &Path,
        stop: &StopSignal,
    ) -> anyhow::Result<CallCounter> {
        let mut parts: BTreeMap<ServerPart, Vec<u32>> = BTreeMap::new();
        for (part, pid) in processes {
            parts.entry(*part).or_default().push(*pid);
        }
        let mut tracers = Vec::new();
        for (number, (part, pids)) in parts.into_iter().enumerate() {
            let table = directory.join(format!("calls-{number}"));
            let mut words = ["strace", "-f", "-c", "-o"].map(str::to_owned).to_vec();
            words.push(table.display().to_string());
            words.extend(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
            let said = directory.join(format!("strace-{number}"));
            tracers.push((part, ChildProcess::spawn("strace", &words, &said)?, table));
        }
        let mut counter = CallCounter { tracers };
        let limit = Instant::now() + ATTACH_LIMIT;
        while !processes.iter().all(|(_, pid)| is_traced(*pid)) {
            for (_, tracer, _) in &mut counter.tracers {
                tracer.check()?;
            }
            ensure!(!stop.is_set(), "interrupted");
            ensure!(Instant::now() < limit, "strace does not attach within {ATTACH_LIMIT:?}");
            stop.wait_until(Instant::now() + LOOK_INTERVAL);
        }
        Ok(counter)
    }

    /// Detaches; how often each part made each system call.
    ///
    /// # Errors
    /// When strace left no table.
    pub(crate) fn finish(mut self) -> anyhow::Result<BTreeMap<ServerPart, CallCounts>> {
        for (_, tracer, _) in &self.tracers {
            tracer.interrupt();
        }
        let mut parts = BTreeMap::new();
        for (part, tracer, table) in &mut self.tracers {
            tracer.end();
            let text = fs::read_to_string(&*table).context("strace left no table")?;
            parts.insert(*part, calls(&text));
        }
        Ok(parts)
    }
}

/// Whether strace has attached to all threads of a process.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        !status.lines().any(|line| line == "TracerPid:\t0")
    })
}

/// The table of `strace -c`: `% time, seconds, usecs/call, calls, errors, syscall`, where `errors` may be empty.
fn calls(table: &str) -> CallCounts {
    let mut calls = CallCounts::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ([_, _, _, count, name] | [_, _, _, count, _, name]) = fields[..] else { continue };
        if let (Ok(count), false) = (count.parse::<u64>(), name == "total") {
            *calls.entry(name.to_owned()).or_default() += count;
        }
    }
    calls
}

/// Counts the instructions of these processes while `load` runs, which gives the operations; for one operation, by event.
///
/// # Errors
/// When perf does not start, or the load fails.
pub(crate) fn count_instructions(
    processes: &[(ServerPart, u32)],
    directory: &Path,
    load: impl FnOnce() -> anyhow::Result<u64>,
) -> anyhow::Result<BTreeMap<String, f64>> {
    let pids: Vec<String> = processes.iter().map(|(_, pid)| pid.to_string()).collect();
    let table = directory.join("instructions");
    let mut words = ["perf", "stat", "-x", ",", "-o"].map(str::to_owned).to_vec();
    words.extend([table.display().to_string(), "-e".to_owned(), EVENTS.join(",")]);
    words.extend(["-p".to_owned(), pids.join(",")]);
    let mut perf = ChildProcess::spawn("perf", &words, &directory.join("perf"))?;
    let operations = load();
    perf.interrupt();
    perf.end();
    let operations = operations?;
    let text = fs::read_to_string(&table).context("perf left no table")?;
    let counts = instructions(&text).into_iter();
    Ok(counts.map(|(event, count)| (event, count as f64 / operations.max(1) as f64)).collect())
}

/// The table of `perf stat -x ,`: `count,unit,event,...`; `<not supported>` and `<not counted>` are no counts.
fn instructions(table: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let mut fields = line.split(',');
        let count = fields.next()?.parse().ok()?;
        Some((fields.nth(1)?.to_owned(), count))
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_with_and_without_errors() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ------------------\n \
                     60.01    0.012000          12      1000        10 recvfrom\n \
                     39.99    0.008000           8       900           sendto\n\
                     ------ ----------- ----------- --------- --------- ------------------\n\
                     100.00    0.020000          10      1900        10 total\n";
        let expected = [("recvfrom".to_owned(), 1000), ("sendto".to_owned(), 900)];
        assert_eq!(calls(table), CallCounts::from(expected));
        assert_eq!(calls(""), CallCounts::new());
    }

    #[test]
    fn instructions_are_read_where_there_are_counters() {
        let table = "# started on Sun\n\n123456,,instructions:u,100,100.00,,\n<not supported>,,instructions:k,0,100.00,,\n";
        assert_eq!(instructions(table), BTreeMap::from([("instructions:u".to_owned(), 123_456)]));
        assert!(instructions("<not supported>,,instructions:u,0,100.00,,\n").is_empty());
    }
}
