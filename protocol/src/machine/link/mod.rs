//! One slave's link, as its master sees it: what is on its way, when it is late, and whether a slave that was late may
//! come back.
//!
//! Owns the count of the messages on a link, the deadlines of their acknowledgements, and the quarantine of slaves that
//! have missed some. Never looks at a clock or a socket: it is told the time and how far the bytes have come. The bytes
//! themselves, and what a missed deadline means for writes, are somebody else's.

mod quarantine;
pub mod reads;

pub use quarantine::{
    Admission, Cause, Ending, Quarantine, Record, QUARANTINE_MS_MAX, QUARANTINE_MS_MIN, STABLE_MS,
    TRIAL_BYTES_MAX, TRIAL_BYTES_MIN,
};

use super::doubt::SelfDoubt;
use crate::ids::Millis;
use std::collections::VecDeque;

/// A link that moves fewer bytes than this in a second is too slow: what is on its way may take
/// `--ack-timeout` and a second for each so many bytes.
pub const LINK_BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// What the systems at both ends may hold of the bytes that we send while nobody sees them move.
const UNSEEN_BYTES_MAX: u64 = 4 << 20;

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
}
