//! One slave's link, as its master sees it.
//!
//! Owns how far a connected slave has come, the count of the messages on its link and the deadlines of their
//! acknowledgements, the values that it is asked for, and the quarantine of slaves that were late. Never looks at a clock
//! or a socket: the time and the byte counts are arguments. The master machine (`machine/master/membership.rs`) knows
//! which keys a slave holds, what a write was for and what the loss of a slave means. It names a slave by its link, and
//! is told how many of its writes an acknowledgement covers. See `docs/ARCHITECTURE.md`, *Slaves*.

mod count;
mod deadlines;
mod quarantine;
mod reads;

pub use count::Count;
pub use deadlines::{LinkVerdict, Traffic, LINK_BYTES_PER_SECOND_MIN};
pub use quarantine::{
    Admission, LinkEnding, MissRecord, Quarantine, QuarantineCause, QUARANTINE_MS_MAX, QUARANTINE_MS_MIN,
    STABLE_MS, TRIAL_BYTES_MAX, TRIAL_BYTES_MIN,
};
pub use reads::{ReadWindow, WaitingRead};

use super::doubt::SelfDoubt;
use crate::ids::{Incarnation, Millis, SlaveId};
use crate::message::{Control, Message};
use crate::planted;
use deadlines::Deadlines;

/// The life of a slave's process, which its links belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The name of the slave.
    pub id: SlaveId,
    /// Which process of that name.
    pub incarnation: Incarnation,
}

/// The settings of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
    /// `--ack-timeout`, in milliseconds.
    pub ack_timeout_ms: u64,
    /// The most bytes of values that are asked for at once, unless it is one value alone: `--slave-window`.
    pub read_bytes_max: usize,
    /// The most bytes of a trial: not more than the longest value that the slave must take anyway.
    pub trial_bytes_max: u64,
}

/// How far a connected slave has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its HELLO is answered by a Welcome.
    Connected,
    /// It waits for the end of its quarantine, and has been told.
    Quarantined,
    /// It was sent a trial, and has not yet answered.
    OnTrial,
    /// It needs no trial, and was told of the reign that is announced, if any.
    Proven,
    /// It has accepted the reign, and gets its place when the reign begins to serve.
    Enlisted {
        /// Bytes it can take; `u64::MAX` for no limit.
        room_bytes: u64,
    },
    /// It has a place in the reign: its messages are counted.
    Active {
        /// When it became active.
        since: Millis,
    },
}

/// What a slave is to be told when there is a reign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// There is nothing to tell.
    Nothing,
    /// Announce the reign to it.
    Reign,
    /// A trial of so many bytes.
    Trial {
        /// The bytes that it must acknowledge in time.
        bytes: u64,
    },
    /// Tell it that it must wait.
    Quarantined {
        /// Milliseconds that are left.
        ms: u64,
        /// What it failed by.
        cause: QuarantineCause,
    },
}

/// What happens to a link when another one sends a HELLO in the same slave's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// It ends. The same process has opened a new connection, so the old one is dead even if we do not see it.
    Replaced,
    /// Its slave is asked for a sign of life. Another process claims its name, and waits for the result.
    Probed,
}

/// One life of one link to one slave.
#[derive(Debug)]
pub struct Link {
    life: Life,
    limits: LinkLimits,
    standing: Standing,
    count: Count,
    deadlines: Deadlines,
    reads: ReadWindow,
    /// Where our last sign of life ends in the bytes given to the link.
    alive_end: u64,
    /// Where the question for the next part of its report ends in these bytes; `None` when none is asked for.
    report_end: Option<u64>,
}

impl Link {
    /// A link whose HELLO was answered by a Welcome.
    pub fn new(life: Life, limits: LinkLimits, now: Millis) -> Self {
        Link {
            life,
            limits,
            standing: Standing::Connected,
            count: Count::default(),
            deadlines: Deadlines::new(limits.ack_timeout_ms, now),
            reads: ReadWindow::new(limits.read_bytes_max),
            alive_end: 0,
            report_end: None,
        }
    }

    /// Whose link it is.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Another link has sent a HELLO in the slave's name, from the process `incarnation`.
    pub fn challenged(&self, incarnation: Incarnation) -> Challenge {
        if self.life.incarnation == incarnation {
            Challenge::Replaced
        } else {
            Challenge::Probed
        }
    }

    /// How far the slave has come.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Since when the slave has its place in the reign, if it has one.
    pub fn active_since(&self) -> Option<Millis> {
        match self.standing {
            Standing::Active { since } => Some(since),
            Standing::Connected
            | Standing::Quarantined
            | Standing::OnTrial
            | Standing::Proven
            | Standing::Enlisted { .. } => None,
        }
    }

    /// Whether the slave has a place in the reign.
    pub fn is_active(&self) -> bool {
        self.active_since().is_some()
    }

    /// Whether the slave has accepted the reign: it has a place in it, or waits for one.
    pub fn has_accepted(&self) -> bool {
        matches!(self.standing, Standing::Enlisted { .. } | Standing::Active { .. })
    }

    /// Whether the slave has failed and does not count yet.
    pub fn is_in_quarantine(&self) -> bool {
        matches!(self.standing, Standing::Quarantined | Standing::OnTrial)
    }

    /// There is a reign: gives what the slave is to be told now. A slave that has failed is told to wait, and then must
    /// pass a trial first. `is_needed`: without this slave there are too few.
    pub fn announce(&mut self, now: Millis, quarantine: &Quarantine, is_needed: bool) -> Announcement {
        let is_proven = match self.standing {
            Standing::OnTrial => return Announcement::Nothing,
            Standing::Proven | Standing::Enlisted { .. } | Standing::Active { .. } => true,
            Standing::Quarantined => planted!(LateSlaveUntried),
            Standing::Connected => false,
        };
        let admission =
            if is_proven { Admission::Free } else { quarantine.admission(now, &self.life, is_needed) };
        match admission {
            Admission::Free => {
                if self.is_in_quarantine() || self.standing == Standing::Connected {
                    self.standing = Standing::Proven;
                }
                Announcement::Reign
            }
            Admission::Trial { bytes } => {
                self.standing = Standing::OnTrial;
                Announcement::Trial { bytes: bytes.min(self.limits.trial_bytes_max) }
            }
            Admission::Wait { .. } if self.standing == Standing::Quarantined => Announcement::Nothing,
            Admission::Wait { ms, cause } => {
                self.standing = Standing::Quarantined;
                Announcement::Quarantined { ms, cause }
            }
        }
    }

    /// Notes that the slave has passed its trial; false when it was not sent one.
    pub fn took(&mut self) -> bool {
        let was_tried = self.standing == Standing::OnTrial;
        if was_tried {
            self.standing = Standing::Proven;
        }
        was_tried
    }

    /// Whether the slave may get a place in the reign: it was told of it, and has none.
    pub fn may_enlist(&self) -> bool {
        matches!(self.standing, Standing::Proven | Standing::Enlisted { .. })
    }

    /// Notes that a slave that may get a place has accepted the reign. It waits until the reign serves.
    pub fn enlist(&mut self, room_bytes: u64) {
        if self.may_enlist() {
            self.standing = Standing::Enlisted { room_bytes };
        }
    }

    /// The room of a slave that waits since [`Link::enlist`] and is to get its place now.
    pub fn take_enlisted(&mut self) -> Option<u64> {
        match self.standing {
            Standing::Enlisted { room_bytes } => {
                self.standing = Standing::Proven;
                Some(room_bytes)
            }
            Standing::Connected
            | Standing::Quarantined
            | Standing::OnTrial
            | Standing::Proven
            | Standing::Active { .. } => None,
        }
    }

    /// The slave has got its place: its messages are counted from 1, and it reports what it holds. Gives the read window
    /// of earlier reigns.
    pub fn begin(&mut self, now: Millis, queued: u64) -> ReadWindow {
        self.standing = Standing::Active { since: now };
        self.count = Count::default();
        self.deadlines.forget_counted();
        self.deadlines.forget_question();
        self.report_end = Some(queued);
        self.take_reads()
    }

    /// The reign is over, and with it the count. Questions outside the count are still owed an answer: else a slave
    /// could stay on trial for ever.
    pub fn end_reign(&mut self) {
        match self.standing {
            Standing::Enlisted { .. } | Standing::Active { .. } => self.standing = Standing::Proven,
            Standing::Connected | Standing::Quarantined | Standing::OnTrial | Standing::Proven => {}
        }
        self.count = Count::default();
        self.deadlines.forget_counted();
    }

    /// Takes the window of reads, which are given up.
    pub fn take_reads(&mut self) -> ReadWindow {
        std::mem::replace(&mut self.reads, ReadWindow::new(self.limits.read_bytes_max))
    }

    /// The reads under way, and those that wait for room.
    pub fn reads(&self) -> &ReadWindow {
        &self.reads
    }

    /// The same, mutable.
    pub fn reads_mut(&mut self) -> &mut ReadWindow {
        &mut self.reads
    }

    /// Notes a counted write that ends at `queued` in the bytes given to the link; gives its number.
    pub fn note_write(&mut self, now: Millis, queued: u64) -> u64 {
        self.count.write();
        self.deadlines.note_sent(now, self.count.sent(), queued);
        self.count.sent()
    }

    /// Notes a ping that was sent because of [`LinkVerdict::Ping`], and ends at `queued` in these bytes.
    pub fn note_ping(&mut self, now: Millis, queued: u64) {
        if self.count.ping() {
            self.deadlines.note_sent(now, self.count.sent(), queued);
        }
    }

    /// Notes an acknowledgement, and gives how many writes it newly covers. `None` when it covers messages that were never
    /// sent, or that cannot have arrived: of the bytes given to the link, no more than `reached` have left.
    pub fn note_acked(&mut self, now: Millis, through: u64, reached: u64) -> Option<u64> {
        if !self.deadlines.can_have(through, reached) {
            return None;
        }
        let writes = self.count.ack(through)?;
        self.deadlines.confirm(now, through);
        Some(writes)
    }

    /// Notes that a message has arrived, before it is handled: what it acknowledges or answers is no longer owed. Handling
    /// it may take a while, and that is not the slave's fault.
    pub fn note_arrived(&mut self, now: Millis, message: &Message, reached: u64) {
        let is_answer = matches!(
            message,
            Message::Control(
                Control::Enlisted { .. } | Control::Outdated { .. } | Control::Alive | Control::Took { .. }
            )
        );
        if let Message::Ack { through, .. } = *message {
            if through <= self.count.sent() && self.deadlines.can_have(through, reached) {
                self.deadlines.confirm(now, through);
            }
        } else if is_answer {
            self.deadlines.note_answer();
        }
    }

    /// The slave has refused the counted message `number`: how many unacknowledged writes were sent before it. `None`
    /// when it is not an unacknowledged write.
    pub fn refused(&self, number: u64) -> Option<u64> {
        self.count.writes_before(number)
    }

    /// Notes a question outside the count (an announcement, a probe or a trial), which ends at `queued` in the bytes
    /// given to the link. An answer is owed.
    pub fn note_question(&mut self, now: Millis, queued: u64) {
        self.deadlines.note_question(now, self.count.sent(), queued);
    }

    /// Whether the slave's probe is to be answered. One sign of life that waits for the socket is enough, however often
    /// the slave asks. The socket has taken `taken` of the bytes given to the link.
    pub fn is_to_say_alive(&self, taken: u64) -> bool {
        self.alive_end <= taken
    }

    /// Notes that the sign of life was appended, up to `queued`.
    pub fn note_alive(&mut self, queued: u64) {
        self.alive_end = queued;
    }

    /// Notes that the next part of the report was asked for, up to `queued`.
    pub fn note_report_asked(&mut self, queued: u64) {
        self.report_end = Some(queued);
    }

    /// Notes a part of the slave's report; false when it was not asked for. A slave that reports unasked and reads
    /// nothing would make this side send, and buffer, drops without end.
    pub fn note_reported(&mut self, reached: u64) -> bool {
        self.report_end.take().is_some_and(|end| end <= reached)
    }

    /// Judges the link. Call it when the previous [`LinkVerdict`] says so. Send a ping that it asks for at once, with
    /// [`Link::note_ping`].
    ///
    /// An answer is late when the awaited bytes have not moved for `--ack-timeout`, or when they take so long in all
    /// that the link moves fewer than [`LINK_BYTES_PER_SECOND_MIN`].
    pub fn look(&mut self, now: Millis, at: Traffic, doubt: &SelfDoubt) -> LinkVerdict {
        let owed = self.reads.asked_bytes() as u64;
        // One ping at a time is enough, even if its acknowledgement has arrived and is not handled yet.
        let may_ping = self.is_active() && !self.count.is_pinged();
        self.deadlines.look(now, at, owed, may_ping, doubt)
    }

    /// How much was on its way to what is owed for longest, in bytes.
    pub fn bytes_ahead(&self) -> u64 {
        self.deadlines.bytes_ahead()
    }

    /// How long the slave takes to acknowledge, in milliseconds: what it took lately, or what it is taking now if that is
    /// longer.
    pub fn ack_ms(&self, now: Millis) -> u64 {
        self.deadlines.ack_ms(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ReignId, Stamp, Version};
    use crate::machine::master::ReadId;
    use bytes::Bytes;

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
            let life = Life { id: SlaveId::new("one").unwrap(), incarnation: Incarnation(7) };
            let limits = LinkLimits {
                ack_timeout_ms: ACK_TIMEOUT_MS,
                read_bytes_max: 8 << 20,
                trial_bytes_max: 1 << 20,
            };
            let mut link = Link::new(life, limits, Millis(0));
            link.begin(Millis(0), 0);
            Bench { link, doubt: SelfDoubt::new(Millis(0), 250), now: Millis(0), traffic: Traffic::default() }
        }

        fn send(&mut self, bytes: u64) {
            self.traffic.queued += bytes;
            self.link.note_write(self.now, self.traffic.queued);
        }

        /// Asks for a value of so many bytes.
        fn ask(&mut self, bytes: u32) {
            let stamp = Stamp { version: Version::new(1, 1), reign: ReignId(1) };
            let read = WaitingRead { read: ReadId::from_tag(1), stamp, key: Bytes::new(), bytes };
            assert!(self.link.reads_mut().send_now(&read, |_| true));
        }

        /// Lets time pass until `until`, while the socket takes `rate` bytes each millisecond. Gives when the link was
        /// late, if it was.
        fn run(&mut self, until: u64, rate: u64) -> Option<u64> {
            while self.now.0 < until {
                self.now = self.now.plus(5);
                self.traffic.taken = (self.traffic.taken + 5 * rate).min(self.traffic.queued);
                self.doubt.observe(self.now);
                if self.link.look(self.now, self.traffic, &self.doubt) == LinkVerdict::Late {
                    return Some(self.now.0);
                }
            }
            None
        }
    }

    fn ack(through: u64) -> Message {
        Message::Ack { through, room_bytes: u64::MAX }
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
    fn a_long_value_gets_the_time_that_a_slow_link_needs() {
        // 16 MiB over 100 Mbit/s: 1.3 s, and some time until the slave has handled it.
        let mut bench = Bench::new();
        bench.send(16 << 20);
        assert_eq!(bench.run(2200, 12_500), None);
        assert!(bench.link.note_acked(bench.now, 1, u64::MAX).is_some());
        // Eight of them one after the other, just above the minimum rate: over two minutes.
        for _ in 0..8 {
            bench.send(16 << 20);
        }
        for number in 2..=9 {
            assert_eq!(bench.run(2200 + 15_900 * (number - 1), 1055), None, "{number}");
            assert!(bench.link.note_acked(bench.now, number, u64::MAX).is_some());
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
        bench.link.end_reign();
        assert_eq!(bench.run(60_000, 0), Some(ACK_TIMEOUT_MS + 1000));
    }

    #[test]
    fn an_acknowledgement_after_values_that_were_asked_for_may_take_as_long_as_they_do() {
        let mut bench = Bench::new();
        bench.send(200);
        bench.ask(8 << 20);
        for _ in 0..60 {
            bench.traffic.heard += 100 << 10;
            assert_eq!(bench.run(bench.now.0 + 100, 1 << 20), None, "values come");
        }
        // The write is small, and nothing comes since 5900.
        assert_eq!(bench.run(60_000, 1 << 20), Some(5905 + ACK_TIMEOUT_MS), "and may not stand still");
        let mut trickle = Bench::new();
        trickle.send(200);
        trickle.ask(8 << 20);
        let late = (0..).find_map(|_| {
            trickle.traffic.heard += 1;
            trickle.run(trickle.now.0 + 100, 1 << 20)
        });
        assert_eq!(late, Some(9000), "nor take for ever");
    }

    #[test]
    fn acknowledgements_that_come_one_by_one_do_not_excuse_a_missing_one() {
        let mut bench = Bench::new();
        for at in 0..10 {
            bench.run(at * 50, 1000);
            bench.send(100);
        }
        // One acknowledgement each 300 ms: the fourth message, sent at 150, has been owed for a second at 1150.
        for number in 1..=3 {
            assert_eq!(bench.run(450 + 200 * number, 1000), None);
            assert!(bench.link.note_acked(bench.now, number, u64::MAX).is_some());
        }
        assert_eq!(bench.run(5000, 1000), Some(1150));
        assert_eq!(bench.link.note_acked(bench.now, 11, u64::MAX), None, "never sent");
        assert_eq!(bench.link.note_acked(bench.now, 2, u64::MAX), None, "said before");
    }

    #[test]
    fn what_has_not_left_cannot_be_acknowledged() {
        let mut bench = Bench::new();
        for number in 1..=4 {
            bench.send(1000);
            bench.run(10 * number, 0);
        }
        assert!(bench.link.note_acked(bench.now, 2, 2000).is_some());
        // It is not believed before it is handled, either.
        bench.link.note_arrived(bench.now, &ack(4), 3999);
        assert_eq!(bench.link.bytes_ahead(), 3000, "the third is owed still");
        assert_eq!(bench.link.note_acked(bench.now, 4, 3999), None, "a byte of the last one has not left");
        bench.link.note_arrived(bench.now, &ack(4), 4000);
        assert_eq!(bench.link.bytes_ahead(), 0);
        assert!(bench.link.note_acked(bench.now, 4, 4000).is_some());
    }

    #[test]
    fn a_slow_slave_is_seen_by_what_it_owes_and_by_earlier_acknowledgements() {
        let mut bench = Bench::new();
        assert_eq!(bench.link.ack_ms(bench.now), 0);
        for number in 1..=100 {
            bench.send(100);
            bench.run(bench.now.0 + 40, 1000);
            assert!(bench.link.note_acked(bench.now, number, u64::MAX).is_some());
        }
        assert!((38..=40).contains(&bench.link.ack_ms(bench.now)), "{}", bench.link.ack_ms(bench.now));
        bench.send(100);
        bench.run(bench.now.0 + 500, 1000);
        assert_eq!(bench.link.ack_ms(bench.now), 500);
    }

    #[test]
    fn no_ping_follows_one_whose_acknowledgement_is_not_handled_yet() {
        let mut bench = Bench::new();
        let look = |bench: &mut Bench, at| {
            bench.doubt.observe(Millis(at));
            bench.link.look(Millis(at), bench.traffic, &bench.doubt)
        };
        assert_eq!(look(&mut bench, ACK_TIMEOUT_MS), LinkVerdict::Ping(125));
        bench.link.note_ping(Millis(ACK_TIMEOUT_MS), 8);
        bench.link.note_arrived(Millis(1100), &ack(1), 8);
        for at in [2100, 3100, 4100] {
            assert_eq!(look(&mut bench, at), LinkVerdict::Wait(125), "the count of both ends is the same");
        }
        assert_eq!(bench.link.note_acked(Millis(4200), 1, 8), Some(0));
        assert_eq!(look(&mut bench, 5200), LinkVerdict::Ping(125));
    }

    #[test]
    fn only_a_slave_that_was_told_of_the_reign_may_have_a_place_in_it() {
        let mut bench = Bench::new();
        assert!(!bench.link.may_enlist(), "it has one");
        bench.link.end_reign();
        assert!(bench.link.may_enlist(), "it is told of the next one");
        let life = bench.link.life().clone();
        for standing in [Standing::Connected, Standing::Quarantined, Standing::OnTrial] {
            let mut link = Link::new(life.clone(), bench.link.limits, Millis(0));
            link.standing = standing;
            link.enlist(1000);
            assert_eq!((link.may_enlist(), link.take_enlisted()), (false, None), "{standing:?}");
        }
    }
}
