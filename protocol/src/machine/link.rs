//! One slave's link, as its master sees it: what is on its way, when it is late, and whether a slave that was late may
//! come back.
//!
//! Owns the count of the messages on a link, the deadlines of their acknowledgements, and the quarantine of slaves that
//! have missed some. Never looks at a clock or a socket: it is told the time and how far the bytes have come. The bytes
//! themselves, and what a missed deadline means for writes, are somebody else's.

use super::doubt::SelfDoubt;
use crate::ids::{Incarnation, Millis, SlaveId};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// A link that moves fewer bytes than this in a second is too slow: what is on its way may take
/// `--ack-timeout` and a second for each so many bytes.
pub const LINK_BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// What the systems at both ends may hold of the bytes that we send while nobody sees them move.
const UNSEEN_BYTES_MAX: u64 = 4 << 20;

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

/// How long so many bytes may take, in milliseconds.
fn allowance_ms(bytes: u64) -> u64 {
    bytes.saturating_mul(1000) / LINK_BYTES_PER_SECOND_MIN
}

/// How far a link's bytes have come, counted from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes given to the link.
    pub queued: u64,
    /// Bytes of these that its socket has taken.
    pub taken: u64,
    /// Bytes that the other side has said.
    pub heard: u64,
    /// Bytes of values that were asked for and are not here yet: an acknowledgement may stand after them.
    pub owed: u64,
}

/// What is to be done about a link now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An acknowledgement or an answer is late: the link is to end.
    Late,
    /// Nothing has been asked for a while: a ping is to be sent. Look again in so many milliseconds.
    Ping(u64),
    /// Look again in so many milliseconds.
    Wait(u64),
}

/// Something that the other side is to acknowledge.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    /// The number of its last message.
    through: u64,
    at: Millis,
    /// Where it ends in the bytes given to the link.
    end: u64,
    /// Bytes from what the other side certainly has to that end.
    ahead: u64,
}

/// What is sent on one link and not yet acknowledged.
#[derive(Clone, Debug)]
pub struct Link {
    ack_timeout_ms: u64,
    sent: u64,
    acked: u64,
    /// The counted messages that are not acknowledged; those of one moment are one batch.
    batches: VecDeque<Awaited>,
    /// An announcement, a probe or a trial that is not answered.
    question: Option<Awaited>,
    counting: bool,
    idle_since: Millis,
    /// The other side has everything in front of this place in the bytes given to the link.
    confirmed: u64,
    taken: u64,
    heard: u64,
    /// When bytes that somebody waits for were last seen to move.
    moved: Millis,
    /// How long acknowledgements take, in eighths of a millisecond, as a moving average.
    ack_eighths: u64,
}

impl Link {
    /// A link on which nothing is counted yet.
    pub fn new(ack_timeout_ms: u64, now: Millis) -> Self {
        Link {
            ack_timeout_ms,
            sent: 0,
            acked: 0,
            batches: VecDeque::new(),
            question: None,
            counting: false,
            idle_since: now,
            confirmed: 0,
            taken: 0,
            heard: 0,
            moved: Millis(0),
            ack_eighths: 0,
        }
    }

    /// Begins to count from 1: the slave has joined.
    pub fn begin(&mut self) {
        (self.sent, self.acked, self.question, self.counting) = (0, 0, None, true);
        self.batches.clear();
    }

    /// Stops counting: the reign is over. What was asked outside the count is owed all the same: a slave on trial would
    /// else be on trial for ever.
    pub fn end(&mut self) {
        (self.sent, self.acked, self.counting) = (0, 0, false);
        self.batches.clear();
    }

    /// Notes a counted message that ends at `queued` in the bytes given to the link.
    pub fn note_sent(&mut self, now: Millis, queued: u64) {
        self.sent += 1;
        let awaited = self.awaited(now, queued);
        match self.batches.back_mut() {
            Some(last) if last.at == now => *last = awaited,
            Some(_) | None => self.batches.push_back(awaited),
        }
    }

    fn awaited(&self, at: Millis, end: u64) -> Awaited {
        Awaited { through: self.sent, at, end, ahead: end.saturating_sub(self.confirmed) }
    }

    /// Notes an acknowledgement; false when it covers what was never sent, or cannot have arrived: of the bytes given to the
    /// link no more than `reached` have left it.
    pub fn note_acked(&mut self, now: Millis, through: u64, reached: u64) -> bool {
        if through > self.sent || through < self.acked || !self.can_have(through, reached) {
            return false;
        }
        self.acked = through;
        self.confirm(now, through);
        true
    }

    /// Notes that an acknowledgement has come, which [`Link::note_acked`] is told of when its turn comes: what is done at
    /// our end may take a while, and the slave is not to blame for that.
    pub fn note_arrived(&mut self, now: Millis, through: u64, reached: u64) {
        if through <= self.sent && self.can_have(through, reached) {
            self.confirm(now, through);
        }
    }

    /// Whether the other side can have what it acknowledges. One that acknowledges what it never reads would be sent, and
    /// kept, ever more.
    fn can_have(&self, through: u64, reached: u64) -> bool {
        let covered = self.batches.partition_point(|batch| batch.through <= through);
        covered
            .checked_sub(1)
            .and_then(|last| self.batches.get(last))
            .is_none_or(|batch| batch.end <= reached)
    }

    fn confirm(&mut self, now: Millis, through: u64) {
        while let Some(batch) = self.batches.front().filter(|batch| batch.through <= through).copied() {
            self.batches.pop_front();
            self.confirmed = self.confirmed.max(batch.end);
            // What stood after it has had to wait for it.
            self.moved = now;
            let ack_ms = now.since(batch.at);
            self.ack_eighths = self.ack_eighths - self.ack_eighths / 8 + ack_ms;
        }
    }

    /// Notes that an answer is owed outside the count. The question ends at `queued` in the bytes given to the link.
    pub fn note_question(&mut self, now: Millis, queued: u64) {
        let asked = self.awaited(now, queued);
        self.question.get_or_insert(asked);
    }

    /// Notes that it has come.
    pub fn note_answer(&mut self) {
        if let Some(question) = self.question.take() {
            self.confirmed = self.confirmed.max(question.end);
        }
    }

    /// What is owed for longest.
    fn oldest(&self) -> Option<Awaited> {
        match (self.batches.front(), self.question.as_ref()) {
            (Some(batch), Some(question)) if question.at < batch.at => Some(*question),
            (Some(batch), _) => Some(*batch),
            (None, question) => question.copied(),
        }
    }

    /// Judges the link. To be called when a `Verdict` says so.
    ///
    /// It is late when the bytes that somebody waits for have not moved for `--ack-timeout`, or when they take so long
    /// in all that the link moves fewer than [`LINK_BYTES_PER_SECOND_MIN`].
    pub fn look(&mut self, now: Millis, traffic: Traffic, doubt: &SelfDoubt) -> Verdict {
        let oldest = self.oldest();
        let leaves = oldest.is_some_and(|oldest| self.taken < oldest.end && traffic.taken > self.taken);
        let comes = traffic.owed > 0 && traffic.heard > self.heard;
        if leaves || comes {
            self.moved = now;
        }
        (self.taken, self.heard) = (traffic.taken, traffic.heard);
        let soon = (self.ack_timeout_ms / 8).max(1);
        let Some(oldest) = oldest else {
            if self.counting && now.since(self.idle_since) >= self.ack_timeout_ms {
                // A slave that hangs while nobody writes is found before somebody does.
                self.idle_since = now;
                return Verdict::Ping(soon);
            }
            return Verdict::Wait(soon);
        };
        self.idle_since = now;
        // What comes to us is seen to move: it excuses no silence.
        let unseen_ms = allowance_ms(oldest.ahead.min(UNSEEN_BYTES_MAX));
        let still = (oldest.at.max(self.moved), self.ack_timeout_ms + unseen_ms);
        let slow = (oldest.at, self.ack_timeout_ms + allowance_ms(oldest.ahead + traffic.owed));
        let mut next = soon;
        for (since, limit_ms) in [still, slow] {
            if doubt.expired(now, since, limit_ms) {
                return Verdict::Late;
            }
            next = next.min(limit_ms.saturating_sub(now.since(doubt.counted_from(since))));
        }
        Verdict::Wait(next.max(1))
    }

    /// How much was on its way to what is owed for longest, in bytes.
    pub fn bytes_ahead(&self) -> u64 {
        self.oldest().map_or(0, |oldest| oldest.ahead)
    }

    /// How long the slave takes to acknowledge, in milliseconds: what it took lately, or what it is taking now if that is
    /// longer.
    pub fn ack_ms(&self, now: Millis) -> u64 {
        let now_ms = self.oldest().map_or(0, |oldest| now.since(oldest.at));
        (self.ack_eighths / 8).max(now_ms)
    }
}

/// How far a connected slave has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Its hello is welcomed.
    #[default]
    Connected,
    /// It waits for the end of its quarantine, and has been told.
    Quarantined,
    /// It was sent a trial, and has not yet answered.
    OnTrial,
    /// It may be told of the reign.
    Proven,
}

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

    const ACK_TIMEOUT_MS: u64 = 1000;

    /// A link, its clock, and how far its bytes have come.
    struct Bench {
        link: Link,
        doubt: SelfDoubt,
        now: Millis,
        traffic: Traffic,
    }

    impl Bench {
        fn new() -> Self {
            let mut link = Link::new(ACK_TIMEOUT_MS, Millis(0));
            link.begin();
            Bench { link, doubt: SelfDoubt::new(Millis(0), 250), now: Millis(0), traffic: Traffic::default() }
        }

        fn send(&mut self, bytes: u64) {
            self.traffic.queued += bytes;
            self.link.note_sent(self.now, self.traffic.queued);
        }

        /// Time goes on to `until`; the socket takes `rate` bytes in each millisecond. When the link was late, if it was.
        fn run(&mut self, until: u64, rate: u64) -> Option<u64> {
            while self.now.0 < until {
                self.now = self.now.plus(5);
                self.traffic.taken = (self.traffic.taken + 5 * rate).min(self.traffic.queued);
                self.doubt.observe(self.now);
                if self.link.look(self.now, self.traffic, &self.doubt) == Verdict::Late {
                    return Some(self.now.0);
                }
            }
            None
        }
    }

    #[test]
    fn a_small_write_is_late_after_the_timeout_whatever_the_socket_takes() {
        for rate in [0, 1, 1 << 20] {
            let mut bench = Bench::new();
            bench.send(200);
            assert_eq!(bench.run(5000, rate), Some(ACK_TIMEOUT_MS), "{rate} bytes each millisecond");
        }
    }

    #[test]
    fn a_long_value_may_take_as_long_as_a_slow_link_needs_for_it() {
        // 16 MiB over 100 Mbit/s: 1.3 s, and a while until the slave has looked at it.
        let mut bench = Bench::new();
        bench.send(16 << 20);
        assert_eq!(bench.run(2200, 12_500), None);
        assert!(bench.link.note_acked(bench.now, 1, u64::MAX));
        // Eight of them behind each other, at hardly more than the least rate: over two minutes.
        for _ in 0..8 {
            bench.send(16 << 20);
        }
        for number in 2..=9 {
            assert_eq!(bench.run(2200 + 15_900 * (number - 1), 1055), None, "{number}");
            assert!(bench.link.note_acked(bench.now, number, u64::MAX));
        }
    }

    #[test]
    fn a_long_value_that_does_not_move_or_only_trickles_is_late() {
        let mut stuck = Bench::new();
        stuck.send(16 << 20);
        assert_eq!(stuck.run(60_000, 0), Some(ACK_TIMEOUT_MS + 4000), "a timeout and what nobody sees move");
        let mut trickle = Bench::new();
        trickle.send(16 << 20);
        assert_eq!(trickle.run(60_000, 1), Some(ACK_TIMEOUT_MS + 16_000), "a second for each MiB");
    }

    #[test]
    fn a_trial_outlives_the_reign_and_so_does_its_deadline() {
        let mut bench = Bench::new();
        bench.send(200);
        bench.traffic.queued += 1 << 20;
        bench.link.note_question(bench.now, bench.traffic.queued);
        bench.link.end();
        assert_eq!(bench.run(60_000, 0), Some(ACK_TIMEOUT_MS + 1000));
    }

    #[test]
    fn an_acknowledgement_after_values_that_were_asked_for_may_take_as_long_as_they_do() {
        let mut bench = Bench::new();
        bench.send(200);
        bench.traffic.owed = 8 << 20;
        for _ in 0..60 {
            bench.traffic.heard += 100 << 10;
            assert_eq!(bench.run(bench.now.0 + 100, 1 << 20), None, "values come");
        }
        // The write is small, and nothing comes since 5900.
        assert_eq!(bench.run(60_000, 1 << 20), Some(5905 + ACK_TIMEOUT_MS), "and may not stand still");
        let mut trickle = Bench::new();
        trickle.send(200);
        trickle.traffic.owed = 8 << 20;
        let late = (0..).find_map(|_| {
            trickle.traffic.heard += 1;
            trickle.run(trickle.now.0 + 100, 1 << 20)
        });
        assert_eq!(late, Some(9000), "nor take for ever");
    }

    #[test]
    fn acknowledgements_that_come_one_by_one_excuse_none_that_does_not() {
        let mut bench = Bench::new();
        for at in 0..10 {
            bench.run(at * 50, 1000);
            bench.send(100);
        }
        // One each 300 ms: the fourth, sent at 150, is owed for a second at 1150.
        for number in 1..=3 {
            assert_eq!(bench.run(450 + 200 * number, 1000), None);
            assert!(bench.link.note_acked(bench.now, number, u64::MAX));
        }
        assert_eq!(bench.run(5000, 1000), Some(1150));
        assert!(!bench.link.note_acked(bench.now, 11, u64::MAX), "never sent");
        assert!(!bench.link.note_acked(bench.now, 2, u64::MAX), "said before");
    }

    #[test]
    fn what_has_not_left_cannot_be_acknowledged() {
        let mut bench = Bench::new();
        for number in 1..=4 {
            bench.send(1000);
            bench.run(10 * number, 0);
        }
        assert!(bench.link.note_acked(bench.now, 2, 2000));
        // Before its turn it is not believed either.
        bench.link.note_arrived(bench.now, 4, 3999);
        assert_eq!(bench.link.bytes_ahead(), 3000, "the third is owed still");
        assert!(!bench.link.note_acked(bench.now, 4, 3999), "a byte of the last one has not left");
        bench.link.note_arrived(bench.now, 4, 4000);
        assert_eq!(bench.link.bytes_ahead(), 0);
        assert!(bench.link.note_acked(bench.now, 4, 4000));
    }

    #[test]
    fn who_takes_longest_is_seen_by_what_is_owed_and_by_what_was() {
        let mut bench = Bench::new();
        assert_eq!(bench.link.ack_ms(bench.now), 0);
        for number in 1..=100 {
            bench.send(100);
            bench.run(bench.now.0 + 40, 1000);
            assert!(bench.link.note_acked(bench.now, number, u64::MAX));
        }
        assert!((38..=40).contains(&bench.link.ack_ms(bench.now)), "{}", bench.link.ack_ms(bench.now));
        bench.send(100);
        bench.run(bench.now.0 + 500, 1000);
        assert_eq!(bench.link.ack_ms(bench.now), 500);
    }

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
