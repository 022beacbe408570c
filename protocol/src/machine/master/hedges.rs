//! Hedged reads: a holder that takes longer than holders usually do gets company. The next one is asked, too, and the
//! first answer counts.
//!
//! Owns which reads are to be looked at, and how many bytes may still be asked for twice. A read is bound to a version, so it
//! does not matter who answers. Never ends a read: `reads.rs` and `read_deadlines.rs` do.

use super::log_reads::EXPIRED_AT_ONCE;
use super::membership::SlotSet;
use super::read_deadlines::SLOW_MS;
use super::{Effect, Master, ReadId, Slot};
use crate::ids::Millis;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What a slave takes beyond its usual time before it counts as slow, in milliseconds: two readings of a clock that counts
/// milliseconds, and what a scheduler may take.
const MARGIN_MS: u64 = 4;

/// What a read counts for beyond the bytes of its value.
const READ_COST_BYTES: u64 = 256;

/// The most that may be asked for twice at once after a time in which nothing was, in bytes; or one longer value.
const BURST_BYTES: u64 = 1 << 20;

/// Which reads are to be looked at, and what may be asked for twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Hedges {
    /// So many questions at the front of [`Reads::timeouts`](super::reads::Reads) were looked at.
    looked_at: usize,
    /// Those that were given more time.
    later: BinaryHeap<Reverse<(Millis, ReadId, u32)>>,
    /// Bytes that were asked for twice and not yet made up for by others that were asked for once, in hundredths.
    debt: u64,
}

impl Hedges {
    /// Notes that the oldest question is no longer among those that may time out.
    pub(super) fn forget_oldest(&mut self) {
        self.looked_at = self.looked_at.saturating_sub(1);
    }

    /// Notes a question for so many bytes: `percent` of them may be asked for twice.
    pub(super) fn earn(&mut self, bytes: u32, percent: u64) {
        self.debt = self.debt.saturating_sub(cost(bytes) * percent);
    }

    fn spend(&mut self, bytes: u32) {
        self.debt += cost(bytes) * 100;
    }

    /// Whether more may be asked for twice.
    fn has_credit(&self) -> bool {
        self.debt < BURST_BYTES * 100
    }

    pub(super) fn clear(&mut self) {
        (self.looked_at, self.later) = (0, BinaryHeap::new());
    }
}

fn cost(bytes: u32) -> u64 {
    u64::from(bytes) + READ_COST_BYTES
}

/// What is to be done about a read that waits for one holder.
enum Verdict {
    /// It is answered, or cannot be asked of another one.
    Leave,
    /// It is to be looked at again then.
    Later(Millis),
    /// This one is asked, too.
    Ask(Slot),
}

impl Master {
    /// When [`Event::Hedge`](super::Event::Hedge) is to happen next; `None` if no read waits for a holder.
    pub fn hedge_at(&self) -> Option<Millis> {
        if self.config.hedge_percent == 0 {
            return None;
        }
        let unseen = self.reads.timeouts.get(self.reads.hedges.looked_at);
        let soonest = unseen.map(|(at, ..)| self.hedge_after(*at, self.quickest_ms()));
        let later = self.reads.hedges.later.peek().map(|Reverse((at, ..))| *at);
        soonest.into_iter().chain(later).min()
    }

    /// Asks a second holder about reads that wait for longer than is usual.
    pub(super) fn hedge_reads(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.config.hedge_percent == 0 {
            return;
        }
        let quickest_ms = self.quickest_ms();
        for _ in 0..EXPIRED_AT_ONCE {
            let Some(&(at, id, attempt)) = self.reads.timeouts.get(self.reads.hedges.looked_at) else {
                break;
            };
            let is_current = self.reads.get(id).is_some_and(|read| read.attempt == attempt);
            if is_current && self.hedge_after(at, quickest_ms) > now {
                break;
            }
            self.reads.hedges.looked_at += 1;
            self.hedge(now, id, attempt, effects);
        }
        for _ in 0..EXPIRED_AT_ONCE {
            let Some(&Reverse((at, id, attempt))) = self.reads.hedges.later.peek() else { break };
            if at > now {
                break;
            }
            self.reads.hedges.later.pop();
            self.hedge(now, id, attempt, effects);
        }
    }

    fn hedge(&mut self, now: Millis, id: ReadId, attempt: u32, effects: &mut Vec<Effect>) {
        match self.judge_wait(now, id, attempt) {
            Verdict::Leave => {}
            Verdict::Later(at) => self.reads.hedges.later.push(Reverse((at, id, attempt))),
            Verdict::Ask(second) => {
                let Some(read) = self.reads.all.get_mut(id.0) else { return };
                read.hedge = Some(second);
                read.asked.insert(second);
                // The second one has the time that the first one had.
                read.due = read.due.max(now.plus(self.config.read_timeout_ms));
                self.reads.hedges.spend(read.place.bytes);
                self.counters.hedges += 1;
                self.send_read(id, second, effects);
            }
        }
    }

    fn judge_wait(&self, now: Millis, id: ReadId, attempt: u32) -> Verdict {
        let Some(read) = self.reads.get(id).filter(|read| read.attempt == attempt) else {
            return Verdict::Leave;
        };
        let is_one = read.is_asked_by_name && read.asked.len() == 1 && read.hedge.is_none();
        if !is_one || read.is_repair() || !self.reads.hedges.has_credit() {
            return Verdict::Leave;
        }
        let Some(second) = self.second_holder(now, id) else { return Verdict::Leave };
        // A read has more time for what is in front of it on the link, and for its own length.
        let at = self.hedge_after(read.due, self.usual_ms(second));
        if at > now {
            Verdict::Later(at)
        } else {
            Verdict::Ask(second)
        }
    }

    /// The quickest of the other holders. One that was slow lately is better than none: the first one may hang.
    fn second_holder(&self, now: Millis, id: ReadId) -> Option<Slot> {
        let read = self.reads.get(id)?;
        let entry = self.directory.get(&read.key).filter(|entry| entry.version == read.wanted)?;
        let others = entry.holders.intersection(self.members.live()).without(read.asked).without(read.tried);
        others.iter().min_by_key(|slot| (self.is_slow(now, *slot), self.usual_ms(*slot)))
    }

    /// When a question that times out at `due` is unusually old, if the other holder usually takes `usual_ms`.
    fn hedge_after(&self, due: Millis, usual_ms: u64) -> Millis {
        let timeout_ms = self.config.read_timeout_ms;
        let asked = Millis(due.0.saturating_sub(timeout_ms)).max(self.reads.restarted.unwrap_or_default());
        asked.plus((usual_ms + MARGIN_MS).min(timeout_ms / 2))
    }

    fn is_slow(&self, now: Millis, slot: Slot) -> bool {
        self.members.get(slot).is_none_or(|member| member.slow_until > now)
    }

    fn usual_ms(&self, slot: Slot) -> u64 {
        self.members.get(slot).map_or(u64::MAX, |member| member.answer_time.usual_ms())
    }

    /// What the quickest slave usually takes.
    fn quickest_ms(&self) -> u64 {
        self.members.live().iter().map(|slot| self.usual_ms(slot)).min().unwrap_or(0)
    }

    /// Notes who has answered a read first: how long it took, and who was slower.
    pub(super) fn note_answer_time(&mut self, now: Millis, slot: Slot, id: ReadId) {
        let Some(read) = self.reads.get(id) else { return };
        let asked = Millis(read.due.0.saturating_sub(self.config.read_timeout_ms));
        let (hedge, first, is_short) = (read.hedge, read.asked, read.has_short_value());
        match hedge {
            Some(second) if second == slot => {
                let slower: SlotSet = first.without(SlotSet::from_iter([second]));
                self.counters.hedges_won += u64::from(!slower.is_empty());
                for slot in slower.iter() {
                    if let Some(member) = self.members.get_mut(slot) {
                        member.slow_until = now.plus(SLOW_MS);
                    }
                }
            }
            Some(_) => {}
            None if is_short && read.is_asked_by_name => {
                if let Some(member) = self.members.get_mut(slot) {
                    member.answer_time.note(now.since(asked));
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_bytes_are_asked_for_twice_as_the_share_allows() {
        let mut hedges = Hedges::default();
        let mut ask_twice_where_allowed = |reads: u64| {
            let hedged = (0..reads).filter(|_| {
                hedges.earn(16, 10);
                let may = hedges.has_credit();
                if may {
                    hedges.spend(16);
                }
                may
            });
            hedged.count() as u64
        };
        let at_once = BURST_BYTES / cost(16);
        assert_eq!(
            ask_twice_where_allowed(at_once),
            at_once,
            "after a time in which nothing was asked twice"
        );
        ask_twice_where_allowed(10_000);
        let hedged = ask_twice_where_allowed(100_000);
        assert!((9_999..=10_001).contains(&hedged), "{hedged} of 100,000");
        hedges.spend(16 << 20);
        assert!(!hedges.has_credit(), "one long value, and then a pause");
        for _ in 0..1_000_000 {
            hedges.earn(16, 10);
        }
        assert_eq!(hedges.debt, 0, "what is saved up is bounded");
    }
}
