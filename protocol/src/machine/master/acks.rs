//! Acknowledgements: what a slave's ACK covers, how many a write needs, and when the write is done or unknown.

use super::membership::{CopyCause, Sent, SLAVES_MAX};
use super::writes::Write;
use super::{Effect, Master, Slot, WriteId};
use crate::command::{ErrorWord, Reply};
use crate::ids::LinkId;
use crate::machine::slave::ENTRY_OVERHEAD_BYTES;
use crate::planted;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// How many slaves must acknowledge a write, and hold a key. See `docs/SEMANTICS.md`, *How many copies*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyCount {
    /// Half of those that are active, rounded up.
    #[default]
    Half,
    /// So many, or all that are active if these are fewer. 1 to [`SLAVES_MAX`].
    Fixed(u8),
}

impl CopyCount {
    /// How many of `active` slaves.
    pub fn of(self, active: usize) -> usize {
        match self {
            CopyCount::Half => active.div_ceil(2),
            CopyCount::Fixed(copies) => active.min(copies.into()),
        }
    }
}

/// A text that is no number of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("give `half`, or a number from 1 to {SLAVES_MAX}")]
pub struct CopyCountError;

impl FromStr for CopyCount {
    type Err = CopyCountError;

    /// Reads `half` or `2`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "half" {
            return Ok(CopyCount::Half);
        }
        let copies = text.parse().ok().filter(|copies| (1..=SLAVES_MAX).contains(&usize::from(*copies)));
        copies.map(CopyCount::Fixed).ok_or(CopyCountError)
    }
}

impl fmt::Display for CopyCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyCount::Half => f.write_str("half"),
            CopyCount::Fixed(copies) => copies.fmt(f),
        }
    }
}

/// How many messages that an ACK covers are handled at once. The rest is done as chores.
const ACKS_AT_ONCE: usize = 1024;

impl Master {
    pub(super) fn acked(&mut self, link: LinkId, writes: u64, room_bytes: u64, effects: &mut Vec<Effect>) {
        let Some(slot) = self.members.slot_of(link) else { return };
        let Some(member) = self.members.get_mut(slot) else { return };
        member.set_room(room_bytes);
        member.note_acked(writes);
        self.take_acks(slot, effects);
    }

    /// Handles what a slave has acknowledged, up to a bounded number of messages: one ACK covers everything that the
    /// slave read at once.
    pub(super) fn take_acks(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        for _ in 0..ACKS_AT_ONCE {
            let Some(member) = self.members.get_mut(slot) else { return };
            match member.take_acked() {
                Some(Sent::Item { write, item, .. }) => {
                    member.writes_acked += 1;
                    self.item_acked(write, item, slot, effects);
                }
                Some(Sent::Copy { cause: CopyCause::Repair { is_first }, bytes, .. }) => {
                    self.repair.acked(bytes - ENTRY_OVERHEAD_BYTES, is_first);
                }
                Some(Sent::Copy { cause: CopyCause::Move { is_first }, key, version, bytes }) => {
                    let bytes = bytes - ENTRY_OVERHEAD_BYTES;
                    self.moved_to(slot, (&key, version), (bytes, is_first), effects);
                }
                Some(Sent::Copy { cause: CopyCause::PutBack, .. } | Sent::Refused) => {}
                None => return,
            }
        }
    }

    pub(super) fn full(&mut self, link: LinkId, before: Option<u64>, effects: &mut Vec<Effect>) {
        let Some(slot) = self.members.slot_of(link) else { return };
        let Some(member) = self.members.get_mut(slot) else { return };
        member.set_room(0);
        let refused = before.and_then(|before| member.take_refused(before));
        member.lacks(refused.as_ref().map_or(1, Sent::bytes).max(1));
        match refused {
            Some(Sent::Item { write, item, .. }) => {
                if let Some((key, version)) = self.item_key(write, item) {
                    self.refused(slot, key, version, effects);
                }
                self.substitute(write, item, slot, effects);
            }
            Some(Sent::Copy { key, version, .. }) => self.refused(slot, key, version, effects),
            Some(Sent::Refused) | None => {}
        }
    }

    fn item_acked(&mut self, id: WriteId, index: u32, slot: Slot, effects: &mut Vec<Effect>) {
        let index = index as usize;
        let Some(item) = self.writes.all.get_mut(id.0).and_then(|write| write.items.get_mut(index)) else {
            return;
        };
        if item.pending.remove(slot) {
            item.acked.insert(slot);
        }
        self.settle_item(id, index);
        self.finish_if_closed(id, effects);
    }

    /// Decides whether an item has what it needs.
    pub(super) fn settle_item(&mut self, id: WriteId, index: usize) {
        if self.writes.is_bereft(id) {
            return;
        }
        let Some(write) = self.writes.all.get_mut(id.0) else { return };
        let item = &mut write.items[index];
        // An item that is not placed yet needs no acknowledgement so far.
        if item.closed || item.needed == 0 {
            return;
        }
        let reachable = item.acked.len() + item.pending.len();
        item.needed = item.needed.min(reachable.max(1));
        let enough = item.acked.len() >= item.needed || planted!(DoneWithoutAck);
        if enough || reachable == 0 {
            item.closed = true;
            write.items_open -= 1;
            if !enough && self.members.live().is_empty() {
                write.stranded = true;
            } else if !enough {
                // The slaves with room have left, and the others have none. The value is in the log, and is read from
                // there.
                self.counters.without_copy += 1;
            }
        }
    }

    pub(super) fn finish_if_closed(&mut self, id: WriteId, effects: &mut Vec<Effect>) {
        // One that also deletes may have all its acknowledgements before all its deletions are taken in.
        let is_open = |write: &Write| write.items_open > 0 || !write.is_resolved;
        if self.writes.all.get(id.0).is_none_or(is_open) || self.writes.is_bereft(id) {
            return;
        }
        let Some(write) = self.end_write(id) else { return };
        let reply = if write.stranded {
            self.counters.unknown += 1;
            Reply::error(ErrorWord::Unknown, "the write is logged, but no slave was left to acknowledge it")
        } else {
            self.counters.writes += 1;
            write.reply.unwrap_or(Reply::Done)
        };
        effects.push(Effect::Reply { to: write.asker, reply });
        self.slices.forget(write.change, self.config.slice_keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceil_half_must_acknowledge() {
        assert_eq!([1, 2, 3, 4, 5].map(|active| CopyCount::Half.of(active)), [1, 1, 2, 2, 3]);
    }

    #[test]
    fn a_fixed_number_must_acknowledge_or_all_of_fewer_slaves() {
        assert_eq!([1, 2, 3, 4, 5].map(|active| CopyCount::Fixed(2).of(active)), [1, 2, 2, 2, 2]);
    }

    #[test]
    fn a_number_of_copies_is_half_or_one_to_64() {
        for (text, copies) in
            [("half", CopyCount::Half), ("1", CopyCount::Fixed(1)), ("64", CopyCount::Fixed(64))]
        {
            assert_eq!((text.parse(), copies.to_string()), (Ok(copies), text.to_owned()));
        }
        for text in ["", "0", "65", "257", "-1", "Half", "2.0", "all"] {
            assert_eq!(text.parse::<CopyCount>(), Err(CopyCountError), "{text:?}");
        }
    }
}
