//! What the processes of a store have used, read from `/proc` before and after a load: processor time in user mode and in
//! the kernel, and context switches, of each part of the store.
//!
//! Processor time is counted by the scheduler in nanoseconds (`schedstat`), how much of it was the kernel's in ticks of 10 ms
//! (`stat`), which say something about a second or more. Where there is no `schedstat`, ticks must do for both.

use super::super::system::{process_ticks, TICK_S};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A part of a store whose figures stand apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ServerPart {
    /// The first thread of the process that clients talk to.
    Master,
    /// Its other threads: those of the disk, above all.
    DiskThreads,
    /// The master that waits.
    Standby,
    /// The slaves, or replicas, together.
    Slaves,
}

impl ServerPart {
    /// All, in the order of the tables.
    pub(crate) const ALL: [ServerPart; 4] =
        [ServerPart::Master, ServerPart::DiskThreads, ServerPart::Standby, ServerPart::Slaves];

    /// As the tables have it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            ServerPart::Master => "master",
            ServerPart::DiskThreads => "its other threads",
            ServerPart::Standby => "standby",
            ServerPart::Slaves => "slaves",
        }
    }
}

/// What was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ThreadUsage {
    /// Processor time in seconds.
    pub cpu_s: f64,
    /// Ticks in user mode.
    pub user_ticks: u64,
    /// Ticks in the kernel.
    pub kernel_ticks: u64,
    /// How often a thread went to sleep, and so had to be woken: `voluntary_ctxt_switches`.
    pub waits: u64,
    /// How often a thread was made to let another one run: `nonvoluntary_ctxt_switches`.
    pub preempted: u64,
}

impl ThreadUsage {
    /// Adds another thread's, or another round's.
    pub(crate) fn add(&mut self, other: ThreadUsage) {
        self.cpu_s += other.cpu_s;
        self.user_ticks += other.user_ticks;
        self.kernel_ticks += other.kernel_ticks;
        self.waits += other.waits;
        self.preempted += other.preempted;
    }

    fn since(self, before: ThreadUsage) -> ThreadUsage {
        ThreadUsage {
            cpu_s: (self.cpu_s - before.cpu_s).max(0.0),
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            kernel_ticks: self.kernel_ticks.saturating_sub(before.kernel_ticks),
            waits: self.waits.saturating_sub(before.waits),
            preempted: self.preempted.saturating_sub(before.preempted),
        }
    }

    /// Seconds in user mode and in the kernel: the processor time, divided as the ticks are.
    pub(crate) fn split_s(self) -> (f64, f64) {
        let ticks = (self.user_ticks + self.kernel_ticks).max(1) as f64;
        let kernel = self.cpu_s * self.kernel_ticks as f64 / ticks;
        ((self.cpu_s - kernel).max(0.0), kernel)
    }
}

/// The counters of all threads of a store at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsageSnapshot {
    threads: BTreeMap<(ServerPart, u32), ThreadUsage>,
}

impl UsageSnapshot {
    /// Of the threads of these processes, as they are now. A process that is gone brings nothing.
    pub(crate) fn take(processes: &[(ServerPart, u32)]) -> UsageSnapshot {
        let mut threads = BTreeMap::new();
        for (part, pid) in processes {
            let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for entry in entries.flatten() {
                let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                    continue;
                };
                let first = id == *pid || *part != ServerPart::Master;
                let part = if first { *part } else { ServerPart::DiskThreads };
                threads.insert((part, id), of_thread(&entry.path()));
            }
        }
        UsageSnapshot { threads }
    }

    /// What each part has used since `before`. A thread that has ended takes along what it used since then.
    pub(crate) fn since(&self, before: &UsageSnapshot) -> BTreeMap<ServerPart, ThreadUsage> {
        let mut parts: BTreeMap<ServerPart, ThreadUsage> = BTreeMap::new();
        for (thread, usage) in &self.threads {
            let earlier = before.threads.get(thread).copied().unwrap_or_default();
            parts.entry(thread.0).or_default().add(usage.since(earlier));
        }
        parts
    }
}

/// The counters of the thread that `directory` in `/proc` describes; nothing, when it is gone.
fn of_thread(directory: &Path) -> ThreadUsage {
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let (user_ticks, kernel_ticks) = process_ticks(&read("stat")).unwrap_or_default();
    let ran_ns = read("schedstat").split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
    let cpu_s = match ran_ns {
        Some(ran_ns) => ran_ns as f64 / 1e9,
        None => (user_ticks + kernel_ticks) as f64 * TICK_S,
    };
    let status = read("status");
    let counter = |name: &str| counter(&status, name);
    ThreadUsage {
        cpu_s,
        user_ticks,
        kernel_ticks,
        waits: counter("voluntary_ctxt_switches"),
        preempted: counter("nonvoluntary_ctxt_switches"),
    }
}

/// The number in the line `name:` of a `status`; 0 when there is none.
fn counter(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::super::system::CpuTime;
    use super::*;

    #[test]
    fn counters_are_those_of_the_whole_name() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(counter(status, "voluntary_ctxt_switches"), 12);
        assert_eq!(counter(status, "nonvoluntary_ctxt_switches"), 3);
        assert_eq!(counter("", "voluntary_ctxt_switches"), 0);
    }

    #[test]
    fn processor_time_is_divided_as_the_ticks_are() {
        let usage = ThreadUsage { cpu_s: 2.0, user_ticks: 30, kernel_ticks: 90, ..ThreadUsage::default() };
        assert_eq!(usage.split_s(), (0.5, 1.5));
        let short = ThreadUsage { cpu_s: 0.001, ..ThreadUsage::default() };
        assert_eq!(short.split_s(), (0.001, 0.0));
    }

    #[test]
    fn what_a_thread_used_is_counted_for_its_part_and_from_its_start() {
        let of = |cpu_s, waits| ThreadUsage { cpu_s, waits, ..ThreadUsage::default() };
        let threads = |list: &[((ServerPart, u32), ThreadUsage)]| UsageSnapshot {
            threads: list.iter().copied().collect(),
        };
        let before =
            threads(&[((ServerPart::Slaves, 1), of(1.0, 10)), ((ServerPart::Slaves, 9), of(5.0, 5))]);
        let after = threads(&[
            ((ServerPart::Slaves, 1), of(1.5, 12)),
            ((ServerPart::Slaves, 2), of(0.25, 3)),
            ((ServerPart::Master, 3), of(0.5, 1)),
        ]);
        let found = after.since(&before);
        assert_eq!(found[&ServerPart::Slaves], of(0.75, 5));
        assert_eq!(found[&ServerPart::Master], of(0.5, 1));
    }

    #[test]
    fn this_process_is_read() {
        let processes = [(ServerPart::Master, std::process::id())];
        let before = UsageSnapshot::take(&processes);
        let cpu = CpuTime::now();
        let mut number = 1_u64;
        while CpuTime::now().since(cpu).total_s() < 0.05 {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        let used = UsageSnapshot::take(&processes).since(&before);
        // A test runs in a thread that is not the first.
        let used = used[&ServerPart::DiskThreads];
        assert!(used.cpu_s > 0.02 && used.user_ticks + used.kernel_ticks > 0, "{used:?}");
    }
}
