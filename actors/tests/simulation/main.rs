//! Whole clusters in a simulated world: the real actors in virtual time, under every fault that the world knows, with
//! clients whose histories are checked. `make sim` runs more of it; see `docs/ARCHITECTURE.md`, *Simulation*.
//!
//! | variable | means |
//! |---|---|
//! | `SEEDS` | how many seeds [`swarm`] runs (300) |
//! | `FIRST` | the first of them (0) |
//! | `SECONDS` | for how long each is broken, in virtual seconds (30) |
//! | `SIM_KEEP_LOG` | where to leave the log of that seed |
//! | `SEED` | run this seed alone, and say what happens, at the level of `RUST_LOG` |
//! | `TWICE` | how many seeds [`the_same_seed_gives_the_same_run`] runs twice (20) |

mod callers;
mod clients;
mod cluster;
mod damage;
mod disk_errors;
mod lost;
mod moved;
#[cfg(feature = "mutants")]
mod mutants;
mod nemesis;
mod operator;
mod repaired;
mod seed;
mod short;
mod windows;
mod witness;
mod world;

use nemesis::Class;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use windows::Window;

/// Seeds that have failed once: each found a bug of the store, or of the world, that is mended.
///
/// Each new draw of the world makes another run of a seed, so that none of these shows any more what it once did. What
/// keeps the two bugs found are the mutants `SlaveTrustsSilence` and `MarkNotWrittenAgain`, which bring them back.
///
/// - 3: a slave waited for ever for a master whose machine had lost power and had not closed the connection.
/// - 12, 61, 66: a SYNCED mark that a failed sync had left out of the disk was not written again by the next reign, so
///   that a later power cut left a hole which looked like damage.
/// - 168: a page that a failed sync had not brought to the disk was thrown away. The hole began 14 bytes in front of a
///   sector's end, too short to be taken for one, and a master of the same boot took it for damage.
const ONCE_FAILED: [u64; 5] = [3, 12, 61, 66, 168];

/// So many seeds show every kind of fault in every window.
const MANY: u64 = 100;

/// How many threads share the seeds.
const THREADS: usize = 2;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn duration() -> Duration {
    Duration::from_secs(number("SECONDS", 30))
}

/// What many seeds came to.
#[derive(Default)]
struct Summary {
    seeds: u64,
    virtual_time: Duration,
    operations: usize,
    faults: BTreeMap<Class, u64>,
    windows: BTreeMap<Window, u64>,
    second_blows: u64,
    damages: u64,
    let_go: u64,
    answers: BTreeMap<String, u64>,
    failures: Vec<(u64, seed::Failure)>,
}

impl Summary {
    fn add(&mut self, seed: u64, report: seed::Report) {
        self.seeds += 1;
        self.virtual_time += report.virtual_time;
        self.operations += report.operations;
        for (fault, count) in report.tally.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        for (window, count) in report.tally.windows {
            *self.windows.entry(window).or_default() += count;
        }
        self.second_blows += report.tally.second_blows;
        self.damages += report.damages;
        self.let_go += report.let_go;
        for (answer, count) in report.answers {
            *self.answers.entry(answer).or_default() += count;
        }
        if let Some(failure) = report.failure {
            println!("seed {seed} failed: {failure}");
            self.failures.push((seed, failure));
        }
    }

    fn print(&self, took: Duration) {
        let speed = self.virtual_time.as_secs_f64() / took.as_secs_f64();
        println!(
            "{} seeds, {:.1} virtual hours in {:.0} s ({speed:.0} times real time on {THREADS} threads), {} operations \
             checked, {} seeds failed",
            self.seeds,
            self.virtual_time.as_secs_f64() / 3600.0,
            took.as_secs_f64(),
            self.operations,
            self.failures.len(),
        );
        let answers = self.answers.iter().map(|(answer, count)| format!("{answer} {count}"));
        println!("answers: {}", answers.collect::<Vec<_>>().join(", "));
        println!("faults: {}", line(&Class::ALL, &self.faults));
        println!("struck in windows: {}", line(&Window::ALL, &self.windows));
        println!(
            "struck in the recovery from another: {}; damaged logs: {}; slaves let go: {}",
            self.second_blows, self.damages, self.let_go
        );
    }

    /// Every kind of fault must have struck, and every window been hit.
    fn check(&self) {
        assert!(self.failures.is_empty(), "run one of these seeds alone with SEED=n: {:?}", self.failures);
        assert!(self.operations > 0, "something was checked");
        if self.seeds >= 10 {
            assert!(self.answers.contains_key("done natively"), "no native client got anything done");
        }
        if self.seeds >= MANY {
            for class in Class::ALL {
                assert!(self.faults.get(&class) > Some(&0), "{class:?} has never struck");
            }
            for window in Window::ALL {
                assert!(self.windows.get(&window) > Some(&0), "nothing has struck in {window:?}");
            }
            assert!(self.second_blows > 0, "nothing has struck in the recovery from something else");
            assert!(self.damages > 0, "no log was damaged");
            assert!(self.let_go > 0, "no slave was let go");
            assert!(self.answers.contains_key("READONLY"), "no write was refused by a full disk");
        }
    }
}

/// All of a kind with their counts, those that are missing too.
fn line<T: Copy + Ord + Debug>(all: &[T], counts: &BTreeMap<T, u64>) -> String {
    let count = |what: &T| format!("{what:?} {}", counts.get(what).copied().unwrap_or_default());
    all.iter().map(count).collect::<Vec<_>>().join(", ")
}

/// Runs seeds on all cores.
fn run_all(seeds: std::ops::Range<u64>) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let (sender, reports) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (next, sender, end) = (&next, sender.clone(), seeds.end);
            scope.spawn(move || loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return;
                }
                let report = seed::run(seed, duration(), false);
                sender.send((seed, report)).expect("the summary outlives the threads");
            });
        }
        drop(sender);
        let mut summary = Summary::default();
        for (seed, report) in reports {
            summary.add(seed, report);
        }
        summary
    })
}

#[test]
fn swarm() {
    if std::env::var("SEED").is_ok() {
        seed::narrate();
        let report = seed::run(number("SEED", 0), duration(), true);
        println!("{report:#?}");
        assert_eq!(report.failure, None);
        return;
    }
    let first = number("FIRST", 0);
    // The world's time stands still for this: how long the machine needs is asked of its own clock.
    #[allow(clippy::disallowed_methods)]
    let begun = Instant::now();
    let summary = run_all(first..first + number("SEEDS", 300));
    summary.print(begun.elapsed());
    summary.check();
}

#[test]
fn what_failed_once_does_not_fail_again() {
    for seed in ONCE_FAILED {
        let report = seed::run(seed, duration(), false);
        assert_eq!(report.failure, None, "seed {seed}");
    }
}

#[test]
fn a_damaged_log_is_named_and_left_alone() {
    let mut damages = 0;
    for seed in 0..5 {
        let report = seed::run_damaged(seed, 10);
        assert_eq!(report.failure, None, "seed {seed}");
        damages += report.damages;
    }
    assert!(damages >= 25, "only {damages} of 50 times there was a bit to damage");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut digests = std::collections::BTreeSet::new();
    let seeds = number("TWICE", 20);
    for seed in 1000..1000 + seeds {
        let [one, other] = [0, 1].map(|_| seed::run(seed, Duration::from_secs(10), false));
        assert_eq!(one.digest, other.digest, "seed {seed}");
        assert_eq!((one.operations, one.virtual_time), (other.operations, other.virtual_time), "seed {seed}");
        digests.insert(one.digest);
    }
    assert_eq!(digests.len() as u64, seeds, "different seeds give different runs");
}
