//! Substitution: another slave takes the part of one that left, or had no room, in the writes and reads in flight.
//!
//! Owns the part of that work that is not done yet: until a write is checked, it cannot end.

use super::room::payload;
use super::{Effect, Master, ReadId, Slot, WriteId};
use crate::ids::Millis;
use crate::planted;

/// How many steps are made at once for a slave that has left. The rest is done in pieces, as chores.
pub(super) const STEPS_AT_ONCE: usize = 256;

/// The substitution that is still to be done after a slave has left. Until a write is checked, it cannot end: an
/// acknowledgement of a slave that is gone does not count.
#[derive(Clone, Debug)]
pub(super) struct SlaveLoss {
    pub(super) slot: Slot,
    /// The writes that were in flight then, ascending.
    pub(super) writes: Vec<WriteId>,
    /// How many of them are checked.
    pub(super) writes_done: usize,
    /// How many items of the next one are checked.
    pub(super) items_done: usize,
    /// The reads that were in flight then and are not checked yet.
    pub(super) reads: Vec<ReadId>,
}

impl Master {
    /// `slot` will not acknowledge this item: another active slave takes its place, if one is left.
    pub(super) fn substitute(&mut self, id: WriteId, index: u32, slot: Slot, effects: &mut Vec<Effect>) {
        let index = index as usize;
        let Some(write) = self.writes.all.get_mut(id.0) else { return };
        let Some(item) = write.items.get_mut(index) else { return };
        item.pending.remove(slot);
        item.acked.remove(slot);
        item.failed.insert(slot);
        if item.closed {
            return;
        }
        let taken = item.pending.union(item.acked).union(item.failed);
        // A slave that failed this write once and has come back since is chosen only when no other is left.
        let returned = self.members.once_in(item.failed);
        let pairs = write.change.pairs();
        let (key, value) = pairs[index].clone();
        let version = write.version;
        let bytes = payload(&key, &value);
        let roomy = self.with_room_for(&key, bytes).without(taken);
        let others = roomy.without(returned);
        let roomy = if others.is_empty() { roomy } else { others };
        let next = self.choose(roomy, 1, &key);
        let superseded = self.directory.get(&key).is_none_or(|entry| entry.version != version);
        for substitute in next.iter() {
            self.counters.substitutions += 1;
            self.held(substitute, &key, version);
            self.send_item(id, index, substitute, (version, bytes), &key, &value, effects);
            if superseded {
                // The slave's acknowledgement is no longer needed, but a copy that the directory does not name would
                // remain there.
                self.send_drop(substitute, version, key.clone(), effects);
            }
            self.writes.all[id.0].items[index].pending.insert(substitute);
        }
        self.settle_item(id, index);
        self.finish_if_closed(id, effects);
    }

    /// A slave has left: its acknowledgements no longer count for writes that are not done, others replace it in these
    /// writes, and its reads are sent to others.
    pub(super) fn lose(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        let writes = self.writes.all.keys().map(WriteId).collect();
        let reads = self.reads_in_flight();
        self.writes.losses.push_back(SlaveLoss { slot, writes, writes_done: 0, items_done: 0, reads });
        self.make_good(now, effects);
    }

    /// Does substitution work for slaves that have left, for a bounded number of steps.
    pub(super) fn make_good(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let mut left = STEPS_AT_ONCE;
        while let Some(loss) = self.writes.losses.front_mut() {
            if left == 0 {
                return;
            }
            let slot = loss.slot;
            // First the writes: none may be done by the acknowledgement of a slave that is gone.
            if let Some(write) = loss.writes.get(loss.writes_done).copied() {
                self.make_good_write(write, slot, &mut left, effects);
            } else if let Some(read) = loss.reads.pop() {
                self.missing(now, slot, read, effects);
                left -= 1;
            } else {
                self.writes.losses.pop_front();
            }
        }
    }

    /// Checks the next items of a write in which the slave of the first loss took part.
    fn make_good_write(&mut self, id: WriteId, slot: Slot, left: &mut usize, effects: &mut Vec<Effect>) {
        let Some(loss) = self.writes.losses.front_mut() else { return };
        let from = loss.items_done;
        let items = self.writes.all.get(id.0).map_or(0, |write| write.items.len());
        let until = items.min(from + STEPS_AT_ONCE);
        loss.items_done = until;
        *left -= 1;
        for index in from..until {
            let Some(write) = self.writes.all.get_mut(id.0) else { break };
            let item = &mut write.items[index];
            if !item.acked.union(item.pending).contains(slot) {
                continue;
            }
            // One of several items may be complete while another is not: the answer is for all.
            if item.acked.contains(slot) && std::mem::replace(&mut item.closed, false) {
                write.items_open += 1;
            }
            *left = left.saturating_sub(1);
            if !planted!(NoSubstitute) {
                self.substitute(id, index as u32, slot, effects);
            }
        }
        if until < items {
            return;
        }
        // It is checked: acknowledgements that arrived meanwhile count from here on.
        if let Some(loss) = self.writes.losses.front_mut() {
            loss.items_done = 0;
            loss.writes_done += 1;
        }
        // A write that is not in the log yet has no items, and cannot end.
        for index in 0..items {
            self.settle_item(id, index);
        }
        if items > 0 {
            self.finish_if_closed(id, effects);
        }
    }
}
