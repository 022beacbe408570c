//! Bugs on purpose: each planted bug must be found by the checks, or they prove nothing. `make mutants` runs them all
//! and prints the table of `docs/ARCHITECTURE.md`, *Planted bugs*; `make mutants-quick` those that are found at once.
//!
//! | variable | means |
//! |---|---|
//! | `MUTANT` | this one alone |
//! | `SEEDS` | how many seeds each gets (500) |
//! | `FIRST` | the first of them (0) |
//! | `SEED` | run `MUTANT` in this seed alone, and say what happens, at the level of `RUST_LOG` |

use crate::seed::{self, Check, Failure};
use crate::{duration, number, THREADS};
use dsm_protocol::mutant::{plant, Mutant};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What became of one of them.
struct Trial {
    mutant: Mutant,
    /// The seed that found it, and how.
    found: Option<(u64, Failure)>,
    seeds: u64,
    /// How often the code came to where the bug is.
    reached: u64,
    /// Of the processor.
    took: Duration,
}

/// The checks that may find a mutant. Another one would be luck: what it looks at has nothing to do with the bug.
fn finders(mutant: Mutant) -> &'static [Check] {
    match mutant {
        Mutant::GroupNotSynced | Mutant::DirectoryNotSynced => &[Check::LogFirst],
        Mutant::CompactedNotSynced | Mutant::ExchangeNotSynced => &[Check::LogFirst],
        // A record is missing that the next one counts, or that was answered.
        Mutant::CompactionSkipsRest => &[Check::Ends, Check::Log, Check::LogFirst],
        // The value that the directory names is not in the log, or not at its place.
        Mutant::CompactedUnsettled | Mutant::RelocatedUnchecked => &[Check::Answers, Check::Linearizable],
        // Slaves have seen the reign: nobody serves a log that lacks it.
        Mutant::EpochNotSynced => &[Check::OneReign, Check::Ends, Check::Serves],
        // The log's own rule, or the announcement: whichever is looked at first.
        Mutant::EpochNotRaised => &[Check::OneReign, Check::Ends],
        Mutant::FailedSyncNotExecuted => &[Check::Ends, Check::Linearizable],
        // Every record is on the disk, in its place; only whoever opens the log takes it for damaged.
        Mutant::HalfLineStays | Mutant::MarkNotWrittenAgain => &[Check::Ends],
        // What it claims is not written again: a hole there is damage, and no standby takes over from such a log.
        Mutant::SyncedTooHigh => &[Check::Ends, Check::Serves],
        Mutant::ShortWriteWhole
        | Mutant::RecoveryWritesNothingAgain
        | Mutant::RecoveryBelievesMemory
        | Mutant::FailedSyncRetried
        | Mutant::RecoveryNotSynced
        // A read that comes to a hole of the log is told so.
        | Mutant::EveryCrashSameBoot => &[Check::Ends, Check::LogFirst, Check::Answers],
        // What it does not read it does not find damaged either, nor does it find that it is there again.
        Mutant::RecoveryStopsEarly => {
            &[Check::Linearizable, Check::Ends, Check::Damage, Check::Serves]
        }
        Mutant::EvidenceIgnored | Mutant::EveryCrashPowerCut => &[Check::Damage],
        Mutant::BadChecksumAccepted => &[Check::Damage, Check::Ends],
        Mutant::ReplayForgetsDelete
        | Mutant::ReadOfUnwritten
        | Mutant::ForwardedWriteRepeated
        | Mutant::StandbyAnswersReads => &[Check::Linearizable],
        // An update is told so, too: that is no answer to it, or one to a write that was never made.
        Mutant::MissingMeansNotFound => {
            &[Check::Linearizable, Check::Answers, Check::DoneIsAcknowledged]
        }
        Mutant::ReadOvertakesOwnWrite => &[Check::Order],
        Mutant::ReadSeesLaterWrite | Mutant::SliceSeesLaterWrite => &[Check::Order],
        Mutant::DoneWithoutAck => &[Check::DoneIsAcknowledged],
        Mutant::RoomIgnored => &[Check::Room],
        Mutant::LostCopiesStayLost | Mutant::MisplacedCopiesStay => &[Check::Repairs],
        Mutant::LeavingCopiesCount
        | Mutant::DrainSkipsLastWalk
        | Mutant::DrainUnacked
        | Mutant::DrainForgetsLoss
        | Mutant::RemovalOutlivesProcess => &[Check::LetGo],
        // A version has two values, which a read shows, too.
        Mutant::RepairCopiesOlder => &[Check::OneValue, Check::Linearizable],
        Mutant::LackNotTold => &[Check::Told],
        Mutant::HangTakesAllTime => &[Check::Reaches],
        Mutant::NoSubstitute => &[Check::Handover, Check::ServesClients],
        Mutant::LateSlaveUntried => &[Check::Tried],
        Mutant::SlaveReadsOlder => &[Check::SlaveAnswers],
        Mutant::SlaveAppliesLower | Mutant::SlaveDropsAnyVersion => &[Check::SlaveKeeps],
        Mutant::SlaveObeysLowerEpoch => &[Check::SlaveObeys],
        Mutant::SlaveTrustsSilence => &[Check::Serves, Check::Converges],
        // Or one of the two finds that its file is longer than what it has written.
        Mutant::TakeoverWithoutLock => &[Check::Answers, Check::LogFirst, Check::OneReign, Check::Ends],
        Mutant::NeverFences => &[Check::Replaces],
        Mutant::KillsUnproven => &[Check::Kills],
        Mutant::HandoverDoesNotWait => &[Check::Answers, Check::NoPanic],
        Mutant::HandoverHoldsNothing => &[Check::Answers, Check::NoPanic],
        Mutant::AnswersOutOfOrder => &[Check::Answers],
        Mutant::StopDoesNotWait | Mutant::StopHandsOverNothing => &[Check::Stops],
        Mutant::LogPathNotWatched => &[Check::Moved],
        // It no longer knows through where a takeover may have cut: what was cut it misses for ever.
        Mutant::StandbyBelievesAnyFile => &[Check::Moved, Check::Serves],
        Mutant::BeginsNewLogOverCluster | Mutant::WitnessIgnored => &[Check::Lost],
        // A lost update shows in a history of registers as well as in the number of increments.
        Mutant::UpdateIgnoresUnwritten | Mutant::UpdateOfOldValue => &[Check::Counter, Check::Linearizable],
        Mutant::RefusalOfUnwritten => &[Check::Linearizable],
        Mutant::ExpiredUnwritten => &[Check::Linearizable],
        Mutant::ReplayForgetsExpiry => &[Check::Expires],
        Mutant::ReplayHalvesApply => &[Check::Pairs, Check::Linearizable, Check::Readable],
        Mutant::WatchIgnored => &[Check::Answers],
        Mutant::UpdateOvertaken => &[Check::Order, Check::Linearizable],
    }
}

/// How long this thread has worked so far: what else the machine has to do does not count.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a thread has not worked for a negative time")
}

/// Looks for `mutant` in one seed after the other, in this thread.
fn hunt(mutant: Mutant, seeds: std::ops::Range<u64>) -> Trial {
    let begun = busy();
    let first = seeds.start;
    let mut trial = Trial { mutant, found: None, seeds: 0, reached: 0, took: Duration::ZERO };
    for seed in seeds {
        let planted = plant(mutant);
        let report = seed::run(seed, duration(), false);
        trial.reached += planted.reached();
        trial.seeds = seed - first + 1;
        if let Some(failure) = report.failure {
            trial.found = Some((seed, failure));
            break;
        }
    }
    trial.took = busy() - begun;
    trial
}

fn hunt_all(mutants: &[Mutant], seeds: std::ops::Range<u64>) -> Vec<Trial> {
    let next = AtomicUsize::new(0);
    let (sender, trials) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (next, sender, seeds) = (&next, sender.clone(), seeds.clone());
            scope.spawn(move || {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let trial = hunt(*mutant, seeds.clone());
                    sender.send(trial).expect("the table outlives the threads");
                }
            });
        }
        drop(sender);
        let mut all: Vec<Trial> = trials.iter().inspect(tell).collect();
        all.sort_by_key(|trial| trial.mutant);
        all
    })
}

fn tell(trial: &Trial) {
    let what = trial.found.as_ref().map_or_else(String::new, |(_, failure)| failure.to_string());
    let what: String = what.chars().take(1000).collect();
    println!("{:?} after {} seeds, reached {} times: {what}", trial.mutant, trial.seeds, trial.reached);
}

/// Those that a seed or two show, one of each kind.
const QUICKEST: [Mutant; 10] = [
    Mutant::GroupNotSynced,
    Mutant::DirectoryNotSynced,
    Mutant::RecoveryStopsEarly,
    Mutant::ReplayForgetsDelete,
    Mutant::ReadOfUnwritten,
    Mutant::ReadOvertakesOwnWrite,
    Mutant::MissingMeansNotFound,
    Mutant::DoneWithoutAck,
    Mutant::EpochNotRaised,
    Mutant::AnswersOutOfOrder,
];

/// How many seeds those get.
const QUICK_SEEDS: u64 = 10;

#[test]
fn the_quickest_are_found() {
    for trial in hunt_all(&QUICKEST, 0..QUICK_SEEDS) {
        assert!(trial.found.is_some(), "{:?} is not found in {} seeds", trial.mutant, trial.seeds);
        is_found_by_what_looks_at_it(&trial);
    }
}

fn is_found_by_what_looks_at_it(trial: &Trial) {
    let mutant = trial.mutant;
    assert!(trial.reached > 0, "{mutant:?} is found without being reached");
    if let Some((seed, failure)) = &trial.found {
        let check = failure.check;
        assert!(finders(mutant).contains(&check), "{mutant:?} is found in seed {seed} by {check:?}");
    }
}

#[test]
fn the_documented_table_has_each() {
    let document = include_str!("../../../docs/ARCHITECTURE.md");
    for mutant in Mutant::ALL {
        let row = format!("| `{mutant:?}` | {} | ", mutant.breaks());
        assert!(document.contains(&row), "docs/ARCHITECTURE.md lacks {row}");
    }
}

#[test]
#[ignore = "minutes; `make mutants`"]
fn each_is_found() {
    let mutants: Vec<Mutant> = match std::env::var("MUTANT") {
        Ok(name) => Mutant::ALL.iter().copied().filter(|mutant| format!("{mutant:?}") == name).collect(),
        Err(_) => Mutant::ALL.to_vec(),
    };
    assert!(!mutants.is_empty(), "MUTANT names none of them");
    if let Ok(seed) = std::env::var("SEED") {
        seed::narrate();
        let _planted = plant(mutants[0]);
        let report = seed::run(seed.parse().expect("SEED is a number"), duration(), true);
        println!("{report:#?}");
        return;
    }
    let first = number("FIRST", 0);
    let trials = hunt_all(&mutants, first..first + number("SEEDS", 500));
    println!("| mutant | what is wrong | found by | seeds | seconds |\n|---|---|---|---|---|");
    for trial in &trials {
        let check = trial
            .found
            .as_ref()
            .map_or_else(|| "-".to_owned(), |(_, failure)| format!("{:?}", failure.check));
        let (mutant, breaks) = (trial.mutant, trial.mutant.breaks());
        println!(
            "| `{mutant:?}` | {breaks} | `{check}` | {} | {:.1} |",
            trial.seeds,
            trial.took.as_secs_f64()
        );
    }
    let missed: Vec<Mutant> = trials.iter().filter(|t| t.found.is_none()).map(|t| t.mutant).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
    trials.iter().for_each(is_found_by_what_looks_at_it);
}
