//! Reads from the log: a few at a time, and none for reads that have ended.
//!
//! Owns which reads wait for the log, which are under way there, and how many bytes those may bring into memory. A read
//! whose deadline has passed is answered BUSY whether it waits or is under way. A read under way keeps its part of the
//! window until the log has answered, because its bytes are in memory until then.

use super::{Effect, Master, ReadId};
use crate::command::{ErrorWord, Reply};
use crate::ids::Millis;
use crate::record::Place;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How many reads past their deadline are answered at once. The rest is done as chores.
pub(super) const EXPIRED_AT_ONCE: usize = 1024;

/// What a read costs in addition to its value, in bytes, so that many small reads count, too.
const READ_BYTES: u64 = 512;

/// The reads from the log.
#[derive(Clone, Debug, Default)]
pub(super) struct LogReads {
    /// Those that wait, in the order in which they came. Some may be answered by now. Bounded by the limit on reads in
    /// flight.
    waiting: VecDeque<(ReadId, Place)>,
    /// Those that the log was asked for, with the bytes that each may bring into memory.
    under_way: BTreeMap<ReadId, u64>,
    under_way_bytes: u64,
    /// The deadlines of those that wait or are under way.
    deadlines: BTreeSet<(Millis, ReadId)>,
}

impl LogReads {
    fn has_room(&self, bytes: u64, window_bytes: u64) -> bool {
        // A single value always fits.
        self.under_way.is_empty() || self.under_way_bytes + bytes <= window_bytes
    }

    fn begin(&mut self, id: ReadId, bytes: u64) {
        self.under_way.insert(id, bytes);
        self.under_way_bytes += bytes;
    }

    /// The log has answered.
    fn end(&mut self, id: ReadId) {
        if let Some(bytes) = self.under_way.remove(&id) {
            self.under_way_bytes -= bytes;
        }
    }

    /// A read has ended, or goes on at a slave.
    pub(super) fn forget(&mut self, id: ReadId, deadline: Millis) {
        self.deadlines.remove(&(deadline, id));
    }

    /// Whether reads wait for room.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The bytes that reads under way may bring into memory.
    pub(super) fn under_way_bytes(&self) -> u64 {
        self.under_way_bytes
    }

    /// The reign is over: later answers of the log are ignored.
    pub(super) fn clear(&mut self) {
        *self = LogReads::default();
    }
}

/// The memory of a value's text and of the value itself while it is read.
fn cost(place: Place) -> u64 {
    u64::from(place.text_bytes) + READ_BYTES
}

impl Master {
    /// Reads a value from the log as soon as the window has room for it.
    pub(super) fn read_from_log(&mut self, now: Millis, id: ReadId, place: Place, effects: &mut Vec<Effect>) {
        let Some(read) = self.reads.get(id) else { return };
        let (deadline, is_repair) = (read.deadline, read.is_repair());
        self.reads.log.deadlines.insert((deadline, id));
        if !self.reads.log.has_room(cost(place), self.config.log_window_bytes) {
            self.counters.log_reads_waited += u64::from(!is_repair);
        }
        self.reads.log.waiting.push_back((id, place));
        self.start_log_reads(now, effects);
    }

    /// The log has answered a read: its bytes no longer count in the window, and further reads may begin.
    pub(super) fn log_answered(&mut self, now: Millis, id: ReadId, effects: &mut Vec<Effect>) {
        self.reads.log.end(id);
        if let Some(deadline) = self.reads.get(id).map(|read| read.deadline) {
            self.reads.log.forget(id, deadline);
        }
        self.start_log_reads(now, effects);
    }

    pub(super) fn start_log_reads(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let mut left = EXPIRED_AT_ONCE;
        while let Some(&(id, place)) = self.reads.log.waiting.front() {
            if left == 0 {
                // Many have ended: the rest is checked together with the overdue ones.
                self.reads.is_overdue = true;
                return;
            }
            left -= 1;
            match self.reads.get(id).map(|read| read.deadline) {
                // A slave has answered it after all, or it was given up.
                None => {}
                Some(deadline) if deadline <= now => self.give_up_log_read(id, effects),
                Some(_) => {
                    if !self.reads.log.has_room(cost(place), self.config.log_window_bytes) {
                        return;
                    }
                    self.reads.log.begin(id, cost(place));
                    let Some(read) = self.reads.get(id) else { return };
                    self.counters.log_reads += u64::from(!read.is_repair());
                    let (version, key) = (read.wanted, read.key.clone());
                    effects.push(Effect::ReadLog { read: id, place, version, key });
                }
            }
            self.reads.log.waiting.pop_front();
        }
    }

    /// Answers the reads that the log has not answered in time.
    pub(super) fn expire_log_reads(&mut self, now: Millis, left: &mut usize, effects: &mut Vec<Effect>) {
        while let Some(&(deadline, id)) = self.reads.log.deadlines.first() {
            if deadline > now || *left == 0 {
                return;
            }
            *left -= 1;
            self.reads.log.deadlines.pop_first();
            self.give_up_log_read(id, effects);
        }
    }

    fn give_up_log_read(&mut self, id: ReadId, effects: &mut Vec<Effect>) {
        let reply = Reply::error(ErrorWord::Busy, "the value was not read from the log in time");
        self.end_read(id, reply, effects);
    }
}
