//! When an acknowledgement or an answer is late.
//!
//! Owns which answers the other side of a link owes, where each question ends in the link's bytes, and when awaited
//! bytes were last seen to move. See `docs/ARCHITECTURE.md`, *Slaves*.

use crate::ids::Millis;
use crate::machine::doubt::SelfDoubt;
use std::collections::VecDeque;

/// A link that moves fewer bytes per second than this is too slow: what is on its way may take `--ack-timeout`, plus
/// one second for each this many bytes.
pub const LINK_BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// How many sent bytes the systems at both ends may buffer, so that we cannot see them move.
const UNSEEN_BYTES_MAX: u64 = 4 << 20;

/// How long so many bytes may take, in milliseconds.
fn allowance_ms(bytes: u64) -> u64 {
    bytes.saturating_mul(1000) / LINK_BYTES_PER_SECOND_MIN
}

/// The byte counts of a link, from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes given to the link.
    pub queued: u64,
    /// Of these, the bytes that the socket has certainly taken.
    pub taken: u64,
    /// Of these, the bytes that the other side may have: the socket may have taken a part of the write under way.
    pub reached: u64,
    /// Bytes that the other side has sent.
    pub heard: u64,
}

/// What is to be done about a link now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkVerdict {
    /// An acknowledgement or an answer is late: end the link.
    Late,
    /// Nothing was asked for a while: send a ping. Look again in this many milliseconds.
    Ping(u64),
    /// Look again in this many milliseconds.
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

/// What the other side of a link owes, and since when.
#[derive(Clone, Debug)]
pub(super) struct Deadlines {
    ack_timeout_ms: u64,
    /// The counted messages that are not acknowledged, one batch for all that were sent in the same millisecond.
    batches: VecDeque<Awaited>,
    /// An announcement, a probe or a trial that is not answered.
    question: Option<Awaited>,
    idle_since: Millis,
    /// The other side has everything before this place in the bytes given to the link.
    confirmed: u64,
    taken: u64,
    heard: u64,
    /// When awaited bytes were last seen to move.
    moved: Millis,
    /// How long acknowledgements take, in eighths of a millisecond, as a moving average.
    ack_eighths: u64,
}

impl Deadlines {
    pub(super) fn new(ack_timeout_ms: u64, now: Millis) -> Self {
        Deadlines {
            ack_timeout_ms,
            batches: VecDeque::new(),
            question: None,
            idle_since: now,
            confirmed: 0,
            taken: 0,
            heard: 0,
            moved: Millis(0),
            ack_eighths: 0,
        }
    }

    /// Forgets the counted messages: the count begins anew, or is over.
    pub(super) fn forget_counted(&mut self) {
        self.batches.clear();
    }

    /// Notes the counted message `number`, which ends at `queued` in the bytes given to the link.
    pub(super) fn note_sent(&mut self, now: Millis, number: u64, queued: u64) {
        let awaited = self.awaited(now, number, queued);
        match self.batches.back_mut() {
            Some(last) if last.at == now => *last = awaited,
            Some(_) | None => self.batches.push_back(awaited),
        }
    }

    fn awaited(&self, at: Millis, through: u64, end: u64) -> Awaited {
        Awaited { through, at, end, ahead: end.saturating_sub(self.confirmed) }
    }

    /// Whether the other side can have what it acknowledges, as no more than `reached` bytes have left. A peer that
    /// acknowledges without reading would make this side send, and buffer, without end.
    pub(super) fn can_have(&self, through: u64, reached: u64) -> bool {
        let covered = self.batches.partition_point(|batch| batch.through <= through);
        covered
            .checked_sub(1)
            .and_then(|last| self.batches.get(last))
            .is_none_or(|batch| batch.end <= reached)
    }

    /// Notes that everything through message `through` is acknowledged.
    pub(super) fn confirm(&mut self, now: Millis, through: u64) {
        while let Some(batch) = self.batches.front().filter(|batch| batch.through <= through).copied() {
            self.batches.pop_front();
            self.confirmed = self.confirmed.max(batch.end);
            // Later messages had to wait for it.
            self.moved = now;
            let ack_ms = now.since(batch.at);
            self.ack_eighths = self.ack_eighths - self.ack_eighths / 8 + ack_ms;
        }
    }

    /// Notes that an answer is owed outside the count. The question ends at `queued` in the bytes given to the link.
    pub(super) fn note_question(&mut self, now: Millis, sent: u64, queued: u64) {
        let asked = self.awaited(now, sent, queued);
        self.question.get_or_insert(asked);
    }

    /// Notes that the answer has come.
    pub(super) fn note_answer(&mut self) {
        if let Some(question) = self.question.take() {
            self.confirmed = self.confirmed.max(question.end);
        }
    }

    /// Stops waiting for the answer.
    pub(super) fn forget_question(&mut self) {
        self.question = None;
    }

    /// The oldest answer that is owed.
    fn oldest(&self) -> Option<Awaited> {
        match (self.batches.front(), self.question.as_ref()) {
            (Some(batch), Some(question)) if question.at < batch.at => Some(*question),
            (Some(batch), _) => Some(*batch),
            (None, question) => question.copied(),
        }
    }

    /// Judges the link. `owed` bytes of values were asked for and have not arrived: an acknowledgement may come after
    /// them. With `may_ping`, a ping is sent while nothing is owed.
    pub(super) fn look(
        &mut self,
        now: Millis,
        traffic: Traffic,
        owed: u64,
        may_ping: bool,
        doubt: &SelfDoubt,
    ) -> LinkVerdict {
        let oldest = self.oldest();
        let leaves = oldest.is_some_and(|oldest| self.taken < oldest.end && traffic.taken > self.taken);
        let comes = owed > 0 && traffic.heard > self.heard;
        if leaves || comes {
            self.moved = now;
        }
        (self.taken, self.heard) = (traffic.taken, traffic.heard);
        let soon = (self.ack_timeout_ms / 8).max(1);
        let Some(oldest) = oldest else {
            if may_ping && now.since(self.idle_since) >= self.ack_timeout_ms {
                // So a slave that hangs while nothing is written is found before the next write.
                self.idle_since = now;
                return LinkVerdict::Ping(soon);
            }
            return LinkVerdict::Wait(soon);
        };
        self.idle_since = now;
        // Incoming bytes can be seen to move, so they excuse no silence.
        let unseen_ms = allowance_ms(oldest.ahead.min(UNSEEN_BYTES_MAX));
        let still = (oldest.at.max(self.moved), self.ack_timeout_ms + unseen_ms);
        let slow = (oldest.at, self.ack_timeout_ms + allowance_ms(oldest.ahead + owed));
        let mut next = soon;
        for (since, limit_ms) in [still, slow] {
            if doubt.expired(now, since, limit_ms) {
                return LinkVerdict::Late;
            }
            next = next.min(limit_ms.saturating_sub(now.since(doubt.counted_from(since))));
        }
        LinkVerdict::Wait(next.max(1))
    }

    /// How many bytes were on their way, up to the end of the oldest question that is not answered.
    pub(super) fn bytes_ahead(&self) -> u64 {
        self.oldest().map_or(0, |oldest| oldest.ahead)
    }

    /// How long the slave takes to acknowledge, in milliseconds: what it took lately, or what it is taking now if that is
    /// longer.
    pub(super) fn ack_ms(&self, now: Millis) -> u64 {
        let now_ms = self.oldest().map_or(0, |oldest| now.since(oldest.at));
        (self.ack_eighths / 8).max(now_ms)
    }
}
