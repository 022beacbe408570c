//! When a holder's answer to a read is late, and the next one is asked.

use super::log_reads::EXPIRED_AT_ONCE;
use super::{Effect, Master, ReadId};
use crate::ids::Millis;
use std::cmp::Reverse;

/// How long others are preferred to a slave that let a read time out, or was slower than the second one that was asked, in
/// milliseconds.
pub(super) const SLOW_MS: u64 = 1000;

/// So many bytes more of a value, or in front of it on the same link, give a read a millisecond more: that is 8 MiB in a
/// second, less than a network of 100 Mbit/s moves.
const BYTES_PER_MS: u64 = 8 * 1024;

impl Master {
    /// The question of a read waits for `bytes_in_front` to come over the same link: it has the time that they need, too.
    pub fn read_waits(&mut self, now: Millis, id: ReadId, bytes_in_front: u64) {
        let Some(read) = self.reads.all.get_mut(id.0).filter(|read| !read.asked.is_empty()) else { return };
        let is_repair = read.is_repair();
        let more_ms = more_time_ms(bytes_in_front + u64::from(read.place.bytes));
        read.due = now.plus(self.config.read_timeout_ms + more_ms).max(read.due);
        read.deadline = read.deadline.max(read.due);
        if !is_repair {
            self.yield_to_clients(now);
        }
    }

    /// Moves reads on that a holder has not answered in time.
    pub(super) fn expire_reads(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let mut left = EXPIRED_AT_ONCE;
        self.reads.is_overdue = true;
        self.expire_holders(now, &mut left, effects);
        self.expire_log_reads(now, &mut left, effects);
        self.reads.is_overdue = left == 0;
    }

    fn expire_holders(&mut self, now: Millis, left: &mut usize, effects: &mut Vec<Effect>) {
        while let Some(&(at, id, attempt)) = self.reads.timeouts.front() {
            let current = self.reads.all.get(id.0).filter(|read| read.attempt == attempt);
            if current.is_some() && at > now {
                break;
            }
            if *left == 0 {
                return;
            }
            *left -= 1;
            let due = current.map(|read| read.due);
            self.reads.timeouts.pop_front();
            self.reads.hedges.forget_oldest();
            self.expire_or_extend(now, id, attempt, due, effects);
        }
        while let Some(&Reverse((at, id, attempt))) = self.reads.extended.peek() {
            if at > now || *left == 0 {
                break;
            }
            *left -= 1;
            let due = self.reads.all.get(id.0).filter(|read| read.attempt == attempt).map(|read| read.due);
            self.reads.extended.pop();
            self.expire_or_extend(now, id, attempt, due, effects);
        }
    }

    /// The time of a question has come, which is answered when it has no `due`.
    fn expire_or_extend(
        &mut self,
        now: Millis,
        id: ReadId,
        attempt: u32,
        due: Option<Millis>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(due) = due else { return };
        let Some(read) = self.reads.all.get(id.0) else { return };
        let bytes = u64::from(read.place.bytes);
        let restarted = self.reads.restarted;
        let soonest = restarted.map(|at| at.plus(self.config.read_timeout_ms + more_time_ms(bytes)));
        let due = soonest.unwrap_or_default().max(due);
        if due > now {
            self.reads.extended.push(Reverse((due, id, attempt)));
            return;
        }
        let Some(read) = self.reads.all.get_mut(id.0) else { return };
        let silent = std::mem::take(&mut read.asked);
        read.tried = read.tried.union(silent);
        for slot in silent.iter() {
            if let Some(member) = self.members.get_mut(slot) {
                member.slow_until = now.plus(SLOW_MS);
            }
        }
        self.ask(now, id, effects);
    }

    /// After a pause of our own the answers may lie unread in our sockets: no holder is late yet.
    pub fn restart_read_timeouts(&mut self, now: Millis) {
        // Not one by one: there may be hundreds of thousands.
        self.reads.restarted = Some(now);
    }
}

/// How much longer `bytes` may take than nothing, in milliseconds.
pub(super) fn more_time_ms(bytes: u64) -> u64 {
    bytes / BYTES_PER_MS
}
