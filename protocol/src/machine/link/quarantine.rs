//! Whether a slave that was late may come back, and when.
//!
//! Owns the table of the slaves that have failed, and how long each must wait. See `docs/ARCHITECTURE.md`, *Slaves*.

use super::{Life, Link, Standing};
use crate::ids::{Incarnation, Millis, SlaveId};
use std::collections::BTreeMap;
use std::fmt;

/// The smallest trial that a slave must pass before it counts again, in bytes.
pub const TRIAL_BYTES_MIN: u64 = 64 * 1024;

/// The largest trial, in bytes, even if more was under way when the slave failed.
pub const TRIAL_BYTES_MAX: u64 = 1 << 20;

/// The first quarantine, in milliseconds. Each further one is twice as long.
pub const QUARANTINE_MS_MIN: u64 = 1000;

/// The longest quarantine, in milliseconds.
pub const QUARANTINE_MS_MAX: u64 = 30_000;

/// After this time as an active slave earlier failures are forgotten, in milliseconds.
pub const STABLE_MS: u64 = 60_000;

/// A link that breaks within this time counts as a flap, in milliseconds.
const FLAP_MS: u64 = 10_000;

/// How many flaps are tolerated.
const FLAPS_FORGIVEN: u32 = 2;

/// The most slaves whose failures are remembered.
const RECORDS_MAX: usize = 64;

/// How a link ended, as far as its slave is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEnding {
    /// An acknowledgement or an answer was late.
    Late,
    /// The connection broke, or the slave made a new one.
    Broken,
    /// We ended it, for reasons of our own.
    Ours,
}

/// Why a slave is in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuarantineCause {
    /// An acknowledgement was late.
    AckTimeout,
    /// It did not pass a trial.
    TrialFailed,
    /// Its links break soon after they are established, again and again.
    Flapping,
}

impl fmt::Display for QuarantineCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QuarantineCause::AckTimeout => "ack-timeout",
            QuarantineCause::TrialFailed => "trial-failed",
            QuarantineCause::Flapping => "flapping",
        })
    }
}

/// Whether a slave that is connected may be told of the reign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may be active at once.
    Free,
    /// It may after a trial of this many bytes.
    Trial {
        /// The bytes that it must acknowledge in time.
        bytes: u64,
    },
    /// It must wait.
    Wait {
        /// Milliseconds that are left.
        ms: u64,
        /// What it failed by.
        cause: QuarantineCause,
    },
}

/// The failures of a slave in this life of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissRecord {
    incarnation: Incarnation,
    /// How often it failed, without a stable time in between.
    pub failures: u32,
    /// What was wrong last.
    pub cause: QuarantineCause,
    flaps: u32,
    /// When it failed last.
    at: Millis,
    /// When its quarantine is over.
    until: Millis,
    /// The size of the trial after that, in bytes.
    trial_bytes: u64,
}

/// The slaves that have failed, and how long each must wait.
///
/// A slave that restarts has a new incarnation and starts without failures. Only slaves that were active are listed,
/// and at most 64 of them, so strangers cannot make the list grow.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    records: BTreeMap<SlaveId, MissRecord>,
}

impl Quarantine {
    /// Notes that a link has ended. Returns the record of its slave if the slave has failed.
    pub fn ended(&mut self, now: Millis, link: &Link, ending: LinkEnding) -> Option<MissRecord> {
        self.judge(now, link.life(), link.standing(), ending, link.bytes_ahead())
    }

    /// The same for a slave with this standing and this many bytes on their way to it.
    fn judge(
        &mut self,
        now: Millis,
        life: &Life,
        standing: Standing,
        ending: LinkEnding,
        bytes_ahead: u64,
    ) -> Option<MissRecord> {
        let active_ms = match standing {
            Standing::Active { since } => Some(now.since(since)),
            Standing::Connected
            | Standing::Quarantined
            | Standing::OnTrial
            | Standing::Proven
            | Standing::Enlisted { .. } => None,
        };
        if active_ms.is_some_and(|ms| ms >= STABLE_MS) {
            self.records.remove(&life.id);
        }
        let mut record = self.of(life).copied().unwrap_or(MissRecord {
            incarnation: life.incarnation,
            failures: 0,
            cause: QuarantineCause::Flapping,
            flaps: 0,
            at: now,
            until: now,
            trial_bytes: TRIAL_BYTES_MIN,
        });
        let cause = match (ending, active_ms) {
            (LinkEnding::Late | LinkEnding::Broken, None) if standing == Standing::OnTrial => {
                QuarantineCause::TrialFailed
            }
            (LinkEnding::Late, Some(_)) => QuarantineCause::AckTimeout,
            (LinkEnding::Broken, Some(ms)) if ms < FLAP_MS => {
                record.flaps += 1;
                QuarantineCause::Flapping
            }
            (LinkEnding::Late | LinkEnding::Broken | LinkEnding::Ours, _) => return None,
        };
        let failed =
            cause != QuarantineCause::Flapping || record.flaps > FLAPS_FORGIVEN || record.failures > 0;
        if failed {
            let doubled = QUARANTINE_MS_MIN << record.failures.min(16);
            record.until = now.plus(doubled.min(QUARANTINE_MS_MAX));
            record.failures += 1;
            record.cause = cause;
        }
        record.at = now;
        if ending == LinkEnding::Late {
            record.trial_bytes = record.trial_bytes.max(bytes_ahead).min(TRIAL_BYTES_MAX);
        }
        if !self.records.contains_key(&life.id) && self.records.len() >= RECORDS_MAX {
            let oldest = self.records.iter().min_by_key(|(_, record)| record.at).map(|(id, _)| id.clone());
            oldest.and_then(|id| self.records.remove(&id));
        }
        self.records.insert(life.id.clone(), record);
        failed.then_some(record)
    }

    /// Whether a slave may be told of the reign. A slave without which there are too few never waits longer than the
    /// first quarantine.
    pub fn admission(&self, now: Millis, life: &Life, is_needed: bool) -> Admission {
        let Some(record) = self.of(life).filter(|record| record.failures > 0) else {
            return Admission::Free;
        };
        let until =
            if is_needed { record.until.min(record.at.plus(QUARANTINE_MS_MIN)) } else { record.until };
        match until.since(now) {
            0 => Admission::Trial { bytes: record.trial_bytes },
            ms => Admission::Wait { ms, cause: record.cause },
        }
    }

    /// The record of a slave.
    pub fn of(&self, life: &Life) -> Option<&MissRecord> {
        self.records.get(&life.id).filter(|record| record.incarnation == life.incarnation)
    }
}

impl MissRecord {
    /// How long the quarantine still lasts, in milliseconds.
    pub fn ms_left(&self, now: Millis) -> u64 {
        self.until.since(now)
    }

    /// How long the quarantine lasts from the last failure on, in milliseconds.
    pub fn quarantine_ms(&self) -> u64 {
        self.until.since(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(name: &str) -> Life {
        Life { id: SlaveId::new(name).expect("letters and digits"), incarnation: Incarnation(7) }
    }

    const BYTES: u64 = 3000;

    fn active(since: Millis) -> Standing {
        Standing::Active { since }
    }

    #[test]
    fn each_quarantine_is_twice_as_long_and_a_stable_minute_or_a_restart_ends_them() {
        let mut quarantine = Quarantine::default();
        let (one, mut now) = (life("one"), Millis(0));
        assert_eq!(quarantine.admission(now, &one, false), Admission::Free);
        for (failures, ms) in
            [(1, 1000), (2, 2000), (3, 4000), (4, 8000), (5, 16_000), (6, 30_000), (7, 30_000)]
        {
            let failed =
                quarantine.judge(now, &one, active(now), LinkEnding::Late, BYTES).expect("it failed");
            assert_eq!((failed.failures, failed.quarantine_ms()), (failures, ms));
            let early = now.plus(ms - 1);
            assert_eq!(
                quarantine.admission(early, &one, false),
                Admission::Wait { ms: 1, cause: QuarantineCause::AckTimeout }
            );
            now = now.plus(ms);
            let trial = Admission::Trial { bytes: TRIAL_BYTES_MIN };
            assert_eq!(quarantine.admission(now, &one, false), trial);
        }
        let restarted = Life { incarnation: Incarnation(8), ..one.clone() };
        assert_eq!(quarantine.admission(now, &restarted, false), Admission::Free);
        // A minute without a fault.
        let failed = quarantine.judge(now.plus(STABLE_MS), &one, active(now), LinkEnding::Late, BYTES);
        assert_eq!(failed.map(|record| record.failures), Some(1));
    }

    #[test]
    fn the_only_slave_waits_for_a_second_at_most_but_still_has_a_trial() {
        let mut quarantine = Quarantine::default();
        let one = life("one");
        for _ in 0..5 {
            quarantine.judge(Millis(0), &one, active(Millis(0)), LinkEnding::Late, BYTES);
        }
        assert_eq!(
            quarantine.admission(Millis(500), &one, true),
            Admission::Wait { ms: 500, cause: QuarantineCause::AckTimeout }
        );
        assert_eq!(
            quarantine.admission(Millis(500), &one, false),
            Admission::Wait { ms: 15_500, cause: QuarantineCause::AckTimeout }
        );
        let trial = Admission::Trial { bytes: TRIAL_BYTES_MIN };
        assert_eq!(quarantine.admission(Millis(1000), &one, true), trial);
    }

    #[test]
    fn a_trial_has_as_many_bytes_as_were_lost_within_bounds() {
        for (bytes, tried) in [(10, TRIAL_BYTES_MIN), (300_000, 300_000), (16 << 20, TRIAL_BYTES_MAX)] {
            let mut quarantine = Quarantine::default();
            quarantine.judge(Millis(0), &life("one"), active(Millis(0)), LinkEnding::Late, bytes);
            let admission = quarantine.admission(Millis(1000), &life("one"), false);
            assert_eq!(admission, Admission::Trial { bytes: tried });
        }
    }

    #[test]
    fn links_that_break_again_and_again_are_a_failure_and_one_now_and_then_is_none() {
        let mut quarantine = Quarantine::default();
        let (one, broken) = (life("one"), LinkEnding::Broken);
        for time in 0..FLAPS_FORGIVEN {
            let now = Millis(u64::from(time) * 100);
            assert_eq!(quarantine.judge(now, &one, active(now), broken, BYTES), None);
            assert_eq!(quarantine.admission(now, &one, false), Admission::Free);
        }
        let failed = quarantine.judge(Millis(300), &one, active(Millis(250)), broken, BYTES);
        assert_eq!(failed.map(|record| record.cause), Some(QuarantineCause::Flapping));
        // After that each flap counts.
        let failed = quarantine.judge(Millis(9000), &one, active(Millis(3000)), broken, BYTES);
        assert_eq!(failed.map(|record| record.failures), Some(2));
        // No record is made for links that lasted a while, that we ended, or that were never active.
        for time in 0..10 {
            let since = Millis(10_000 * time);
            let now = since.plus(FLAP_MS);
            assert_eq!(quarantine.judge(now, &life("two"), active(since), broken, BYTES), None);
            assert_eq!(quarantine.judge(since, &life("two"), active(since), LinkEnding::Ours, BYTES), None);
            assert_eq!(quarantine.judge(now, &life("two"), Standing::Proven, broken, BYTES), None);
            assert_eq!(quarantine.judge(now, &life("two"), Standing::Proven, LinkEnding::Late, BYTES), None);
        }
    }

    #[test]
    fn a_trial_that_fails_is_a_failure_however_the_link_ends() {
        for ending in [LinkEnding::Late, LinkEnding::Broken] {
            let mut quarantine = Quarantine::default();
            quarantine.judge(Millis(0), &life("one"), active(Millis(0)), LinkEnding::Late, BYTES);
            let failed = quarantine.judge(Millis(2000), &life("one"), Standing::OnTrial, ending, BYTES);
            let failed = failed.expect("it failed");
            assert_eq!((failed.cause, failed.failures), (QuarantineCause::TrialFailed, 2));
        }
    }

    #[test]
    fn only_a_bounded_number_of_failed_slaves_is_remembered() {
        let mut quarantine = Quarantine::default();
        for number in 0..1000 {
            let now = Millis(number);
            quarantine.judge(now, &life(&format!("slave-{number}")), active(now), LinkEnding::Late, BYTES);
            assert!(quarantine.records.len() <= RECORDS_MAX);
        }
        assert!(quarantine.of(&life("slave-999")).is_some(), "the latest ones are");
        assert!(quarantine.of(&life("slave-900")).is_none());
    }
}
