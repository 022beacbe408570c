//! Processor time of a store's processes and of the whole machine, read from `/proc` while a load runs.
//!
//! The kernel counts in ticks of 10 ms: a measurement of a second is right to a percent or two.

use super::super::system::{busy_ticks, process_ticks, TICK_S};
use anyhow::Context as _;
use std::fs;
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// How often it is read. Between two readings the time is taken to have been used evenly.
const INTERVAL: Duration = Duration::from_millis(50);

/// Used so far, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Used {
    /// By the processes that are watched, children and threads that have ended included only once they were reaped.
    pub servers_s: f64,
    /// By everything on the machine, time that the hypervisor took away included.
    pub machine_s: f64,
}

/// Reads until it is finished.
#[derive(Debug)]
pub(crate) struct Sampler {
    finish: Sender<()>,
    thread: JoinHandle<Vec<(SystemTime, Used)>>,
}

impl Sampler {
    /// Starts to watch these processes.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(pids: Vec<u32>) -> anyhow::Result<Sampler> {
        let (finish, finished) = channel();
        let work = move || {
            let mut samples = vec![sample(&pids)];
            while finished.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                samples.push(sample(&pids));
            }
            samples.push(sample(&pids));
            samples
        };
        let thread = std::thread::Builder::new().name("cpu".to_owned()).spawn(work);
        Ok(Sampler { finish, thread: thread.context("cannot start a thread")? })
    }

    /// What was used from `from` to `until`.
    pub(crate) fn finish(self, from: SystemTime, until: SystemTime) -> Used {
        // The thread ends in any case, because the channel is dropped with us.
        let _ = self.finish.send(());
        match self.thread.join() {
            Ok(samples) => {
                let (start, end) = (at(&samples, from), at(&samples, until));
                Used {
                    servers_s: (end.servers_s - start.servers_s).max(0.0),
                    machine_s: (end.machine_s - start.machine_s).max(0.0),
                }
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn sample(pids: &[u32]) -> (SystemTime, Used) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let ticks = pids.iter().filter_map(|pid| process_ticks(&read(&format!("/proc/{pid}/stat"))));
    let servers: u64 = ticks.map(|(user, kernel)| user + kernel).sum();
    let machine = busy_ticks(&read("/proc/stat"), "cpu").unwrap_or_default();
    (SystemTime::now(), Used { servers_s: servers as f64 * TICK_S, machine_s: machine as f64 * TICK_S })
}

/// What had been used by `time`.
fn at(samples: &[(SystemTime, Used)], time: SystemTime) -> Used {
    let behind = samples.partition_point(|(at, _)| *at < time);
    let (Some(before), Some(after)) =
        (behind.checked_sub(1).and_then(|at| samples.get(at)), samples.get(behind))
    else {
        let nearest = if behind == 0 { samples.first() } else { samples.last() };
        return nearest.map(|(_, used)| *used).unwrap_or_default();
    };
    let seconds =
        |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default().as_secs_f64();
    let share = seconds(before.0, time) / seconds(before.0, after.0).max(f64::MIN_POSITIVE);
    let between = |before: f64, after: f64| before + (after - before) * share;
    Used {
        servers_s: between(before.1.servers_s, after.1.servers_s),
        machine_s: between(before.1.machine_s, after.1.machine_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_between_two_readings_was_used_evenly() {
        let time = |s: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(s);
        let used = |s: f64| Used { servers_s: s, machine_s: 2.0 * s };
        let samples = [(time(1.0), used(0.0)), (time(2.0), used(1.0)), (time(4.0), used(2.0))];
        assert_eq!(at(&samples, time(3.0)), used(1.5));
        assert_eq!(at(&samples, time(0.5)), used(0.0));
        assert_eq!(at(&samples, time(9.0)), used(2.0));
        assert_eq!(at(&[], time(1.0)), Used::default());
    }

    #[test]
    fn a_process_that_computes_is_seen() {
        let sampler = Sampler::start(vec![std::process::id()]).unwrap();
        let start = SystemTime::now();
        let before = super::super::super::system::CpuTime::now();
        let mut number = 1_u64;
        while super::super::super::system::CpuTime::now().since(before).total_s() < 0.2 {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        let used = sampler.finish(start, SystemTime::now());
        // Other tests of this process may run meanwhile, and each end is accurate to one tick.
        assert!(used.servers_s > 0.1 && used.machine_s > 0.1, "{used:?}");
    }
}
