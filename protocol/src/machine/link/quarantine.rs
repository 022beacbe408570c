//! Whether a slave that was late may come back, and when.
//!
//! Owns the table of the slaves that have failed, and how long each must wait. See `docs/ARCHITECTURE.md`, *Slaves*.

use crate::ids::{Incarnation, Millis, SlaveId};
use std::collections::BTreeMap;
use std::fmt;

/// The least that a slave must take before it counts again, in bytes.
pub const TRIAL_BYTES_MIN: u64 = 64 * 1024;

/// The most that it must take, in bytes: what was lost may have been longer.
pub const TRIAL_BYTES_MAX: u64 = 1 << 20;

/// The first quarantine, in milliseconds. Each further one is twice as long.
pub const QUARANTINE_MS_MIN: u64 = 1000;

/// The longest quarantine, in milliseconds.
pub const QUARANTINE_MS_MAX: u64 = 30_000;

/// A slave that has been active for so long has no past, in milliseconds.
pub const STABLE_MS: u64 = 60_000;

/// A link that breaks earlier has flapped, in milliseconds.
const FLAP_MS: u64 = 10_000;

/// So many flaps are forgiven.
const FLAPS_FORGIVEN: u32 = 2;

/// The most slaves that are remembered for what they missed.
const RECORDS_MAX: usize = 64;

/// How a link ended, as far as its slave is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An acknowledgement or an answer was late, with so many bytes on their way.
    Late {
        /// The bytes.
        bytes: u64,
    },
    /// The connection broke, or the slave made a new one.
    Broken,
    /// We ended it, for reasons of our own.
    Ours,
}

/// Why a slave is in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An acknowledgement was late.
    AckTimeout,
    /// It did not take a trial.
    TrialFailed,
    /// Its links break soon after they stand, again and again.
    Flapping,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::AckTimeout => "ack-timeout",
            Cause::TrialFailed => "trial-failed",
            Cause::Flapping => "flapping",
        })
    }
}

/// Whether a slave that is connected may be told of the reign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// At once.
    Free,
    /// Once it has taken so many bytes.
    Trial {
        /// The bytes.
        bytes: u64,
    },
    /// Not for so long.
    Wait {
        /// Milliseconds that are left.
        ms: u64,
    },
}

/// What a slave has missed in this life of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    incarnation: Incarnation,
    /// How often it failed, without a stable time in between.
    pub failures: u32,
    /// What was wrong last.
    pub cause: Cause,
    flaps: u32,
    /// When it failed last.
    at: Millis,
    /// When its quarantine is over.
    until: Millis,
    /// What it is to take then.
    trial_bytes: u64,
}

/// The slaves that have failed, and how long each must wait.
///
/// A slave that restarts has no past: its incarnation is another one. Only slaves that were active get in, and at most
/// 64 of them: strangers cannot make it grow.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    records: BTreeMap<SlaveId, Record>,
}

impl Quarantine {
    /// Notes that a link has ended: whether it was active, and since when, or on trial. Returns what is held against the
    /// slave if it has failed.
    pub fn ended(
        &mut self,
        now: Millis,
        id: &SlaveId,
        incarnation: Incarnation,
        active_since: Option<Millis>,
        is_on_trial: bool,
        ending: Ending,
    ) -> Option<Record> {
        let active_ms = active_since.map(|since| now.since(since));
        if active_ms.is_some_and(|ms| ms >= STABLE_MS) {
            self.records.remove(id);
        }
        let mut record = self.of(id, incarnation).copied().unwrap_or(Record {
            incarnation,
            failures: 0,
            cause: Cause::Flapping,
            flaps: 0,
            at: now,
            until: now,
            trial_bytes: TRIAL_BYTES_MIN,
        });
        let cause = match (ending, active_ms) {
            (Ending::Late { .. } | Ending::Broken, None) if is_on_trial => Cause::TrialFailed,
            (Ending::Late { .. }, Some(_)) => Cause::AckTimeout,
            (Ending::Broken, Some(ms)) if ms < FLAP_MS => {
                record.flaps += 1;
                Cause::Flapping
            }
            (Ending::Late { .. } | Ending::Broken | Ending::Ours, _) => return None,
        };
        let failed = cause != Cause::Flapping || record.flaps > FLAPS_FORGIVEN || record.failures > 0;
        if failed {
            let doubled = QUARANTINE_MS_MIN << record.failures.min(16);
            record.until = now.plus(doubled.min(QUARANTINE_MS_MAX));
            record.failures += 1;
            record.cause = cause;
        }
        record.at = now;
        if let Ending::Late { bytes } = ending {
            record.trial_bytes = record.trial_bytes.max(bytes).min(TRIAL_BYTES_MAX);
        }
        if !self.records.contains_key(id) && self.records.len() >= RECORDS_MAX {
            let oldest = self.records.iter().min_by_key(|(_, record)| record.at).map(|(id, _)| id.clone());
            oldest.and_then(|id| self.records.remove(&id));
        }
        self.records.insert(id.clone(), record);
        failed.then_some(record)
    }

    /// Whether a slave may be told of the reign. One without which there are too few waits no longer than for the first
    /// time: a slave that is all there is.
    pub fn admission(
        &self,
        now: Millis,
        id: &SlaveId,
        incarnation: Incarnation,
        is_needed: bool,
    ) -> Admission {
        let Some(record) = self.of(id, incarnation).filter(|record| record.failures > 0) else {
            return Admission::Free;
        };
        let until =
            if is_needed { record.until.min(record.at.plus(QUARANTINE_MS_MIN)) } else { record.until };
        match until.since(now) {
            0 => Admission::Trial { bytes: record.trial_bytes },
            ms => Admission::Wait { ms },
        }
    }

    /// What is held against a slave.
    pub fn of(&self, id: &SlaveId, incarnation: Incarnation) -> Option<&Record> {
        self.records.get(id).filter(|record| record.incarnation == incarnation)
    }
}

impl Record {
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

    fn id(name: &str) -> SlaveId {
        SlaveId::new(name).expect("letters and digits")
    }

    const LIFE: Incarnation = Incarnation(7);

    const LATE: Ending = Ending::Late { bytes: 3000 };

    #[test]
    fn each_quarantine_is_twice_as_long_and_a_stable_minute_or_a_restart_ends_them() {
        let mut quarantine = Quarantine::default();
        let (one, mut now) = (id("one"), Millis(0));
        assert_eq!(quarantine.admission(now, &one, LIFE, false), Admission::Free);
        for (failures, ms) in
            [(1, 1000), (2, 2000), (3, 4000), (4, 8000), (5, 16_000), (6, 30_000), (7, 30_000)]
        {
            let failed = quarantine.ended(now, &one, LIFE, Some(now), false, LATE).expect("it failed");
            assert_eq!((failed.failures, failed.quarantine_ms()), (failures, ms));
            let early = now.plus(ms - 1);
            assert_eq!(quarantine.admission(early, &one, LIFE, false), Admission::Wait { ms: 1 });
            now = now.plus(ms);
            let trial = Admission::Trial { bytes: TRIAL_BYTES_MIN };
            assert_eq!(quarantine.admission(now, &one, LIFE, false), trial);
        }
        assert_eq!(quarantine.admission(now, &one, Incarnation(8), false), Admission::Free, "restarted");
        // A minute without a fault.
        let failed = quarantine.ended(now.plus(STABLE_MS), &one, LIFE, Some(now), false, LATE);
        assert_eq!(failed.map(|record| record.failures), Some(1));
    }

    #[test]
    fn a_slave_that_is_all_there_is_waits_for_a_second_at_most_and_is_tried_all_the_same() {
        let mut quarantine = Quarantine::default();
        let one = id("one");
        for _ in 0..5 {
            quarantine.ended(Millis(0), &one, LIFE, Some(Millis(0)), false, LATE);
        }
        assert_eq!(quarantine.admission(Millis(500), &one, LIFE, true), Admission::Wait { ms: 500 });
        assert_eq!(quarantine.admission(Millis(500), &one, LIFE, false), Admission::Wait { ms: 15_500 });
        let trial = Admission::Trial { bytes: TRIAL_BYTES_MIN };
        assert_eq!(quarantine.admission(Millis(1000), &one, LIFE, true), trial);
    }

    #[test]
    fn what_was_lost_is_what_is_tried_within_bounds() {
        for (bytes, tried) in [(10, TRIAL_BYTES_MIN), (300_000, 300_000), (16 << 20, TRIAL_BYTES_MAX)] {
            let mut quarantine = Quarantine::default();
            let late = Ending::Late { bytes };
            quarantine.ended(Millis(0), &id("one"), LIFE, Some(Millis(0)), false, late);
            let admission = quarantine.admission(Millis(1000), &id("one"), LIFE, false);
            assert_eq!(admission, Admission::Trial { bytes: tried });
        }
    }

    #[test]
    fn links_that_break_again_and_again_are_a_failure_and_one_now_and_then_is_none() {
        let mut quarantine = Quarantine::default();
        let (one, broken) = (id("one"), Ending::Broken);
        for time in 0..FLAPS_FORGIVEN {
            let now = Millis(u64::from(time) * 100);
            assert_eq!(quarantine.ended(now, &one, LIFE, Some(now), false, broken), None);
            assert_eq!(quarantine.admission(now, &one, LIFE, false), Admission::Free);
        }
        let failed = quarantine.ended(Millis(300), &one, LIFE, Some(Millis(250)), false, broken);
        assert_eq!(failed.map(|record| record.cause), Some(Cause::Flapping));
        // After that each one counts.
        let failed = quarantine.ended(Millis(9000), &one, LIFE, Some(Millis(3000)), false, broken);
        assert_eq!(failed.map(|record| record.failures), Some(2));
        // Links that stood for a while, that we ended, or that were never active hold nothing against anybody.
        for time in 0..10 {
            let since = Millis(10_000 * time);
            let now = since.plus(FLAP_MS);
            assert_eq!(quarantine.ended(now, &id("two"), LIFE, Some(since), false, broken), None);
            assert_eq!(quarantine.ended(since, &id("two"), LIFE, Some(since), false, Ending::Ours), None);
            assert_eq!(quarantine.ended(now, &id("two"), LIFE, None, false, broken), None);
            assert_eq!(quarantine.ended(now, &id("two"), LIFE, None, false, LATE), None);
        }
    }

    #[test]
    fn a_trial_that_fails_is_a_failure_however_the_link_ends() {
        for ending in [LATE, Ending::Broken] {
            let mut quarantine = Quarantine::default();
            quarantine.ended(Millis(0), &id("one"), LIFE, Some(Millis(0)), false, LATE);
            let failed = quarantine.ended(Millis(2000), &id("one"), LIFE, None, true, ending);
            let failed = failed.expect("it failed");
            assert_eq!((failed.cause, failed.failures), (Cause::TrialFailed, 2));
        }
    }

    #[test]
    fn however_many_slaves_fail_only_so_many_are_remembered() {
        let mut quarantine = Quarantine::default();
        for number in 0..1000 {
            let now = Millis(number);
            quarantine.ended(now, &id(&format!("slave-{number}")), LIFE, Some(now), false, LATE);
            assert!(quarantine.records.len() <= RECORDS_MAX);
        }
        assert!(quarantine.of(&id("slave-999"), LIFE).is_some(), "the latest ones are");
        assert!(quarantine.of(&id("slave-900"), LIFE).is_none());
    }
}
