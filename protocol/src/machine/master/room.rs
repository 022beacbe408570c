//! Room: what a write needs at the slaves before it is accepted, and what is reserved for it until it is placed.
//!
//! Guarantees that a logged write finds its reserved room (`docs/ARCHITECTURE.md`, *Room*). The room that a slave
//! reports is kept in `membership.rs`.

use super::membership::Member;
use super::{Change, Entry, Master, Slot, SlotSet, WriteId};
use crate::command::{ErrorWord, Reply};
use crate::ids::{LinkId, SlaveId};
use crate::planted;
use smallvec::SmallVec;

/// A write of more keys than this first reserves room for all of them at every slave, if there is enough: to choose slaves
/// for each key takes long, and is useful only when room is scarce.
const PAIRS_PLACED_MAX: usize = 64;

/// Room that is set aside for a write between its acceptance and its place in the log. Empty when no slave has a limit.
#[derive(Clone, Debug, Default)]
pub(super) struct RoomReserved {
    /// The slaves of each pair.
    pub(super) slots: SmallVec<[SlotSet; 1]>,
    /// Slaves with room for all pairs.
    pub(super) everywhere: SlotSet,
    /// Bytes in all at each of them.
    pub(super) bytes: SmallVec<[(Slot, LinkId, u64); 2]>,
}

impl RoomReserved {
    fn add(&mut self, slot: Slot, link: LinkId, bytes: u64) {
        match self.bytes.iter_mut().find(|(at, ..)| *at == slot) {
            Some((.., sum)) => *sum += bytes,
            None => self.bytes.push((slot, link, bytes)),
        }
    }
}

/// The room of a write while it is being set aside.
#[derive(Clone, Debug, Default)]
pub(super) struct RoomSought {
    pub(super) reserved: RoomReserved,
    /// How many pairs are to be placed one by one; 0 when there is room for all of them everywhere.
    pub(super) pairs: usize,
    /// How many of them are placed.
    pub(super) done: usize,
}

impl RoomSought {
    pub(super) fn into_reserved(self) -> RoomReserved {
        self.reserved
    }
}

impl Master {
    /// Begins to set room aside for a write that takes `bytes` in all.
    ///
    /// # Errors
    /// Why it cannot be taken now.
    pub(super) fn begin_admission(&mut self, change: &Change, bytes: u64) -> Result<RoomSought, Reply> {
        let active = self.members.staying().len();
        let needed = self.config.slaves_min.max(1);
        if active < needed {
            let detail = format!("{active} of at least {needed} slaves are active");
            return Err(Reply::error(ErrorWord::NoQuorum, detail));
        }
        let mut admission = RoomSought::default();
        let pairs = change.pairs();
        if self.members.iter().all(|(_, member)| member.is_unlimited()) {
            return Ok(admission);
        }
        if pairs.len() > PAIRS_PLACED_MAX && self.with_room(bytes) == self.members.staying() {
            for slot in self.members.staying().iter() {
                let Some(link) = self.members.link_of(slot) else { continue };
                if let Some(member) = self.members.get_mut(slot) {
                    member.reserve(bytes);
                    admission.reserved.add(slot, link, bytes);
                }
            }
            admission.reserved.everywhere = self.members.staying();
            return Ok(admission);
        }
        admission.pairs = pairs.len();
        Ok(admission)
    }

    /// Sets room aside for up to `left` more pairs, one by one; returns whether that is all.
    ///
    /// # Errors
    /// Why the write cannot be taken now. Nothing is set aside for it then.
    pub(super) fn admit_on(
        &mut self,
        change: &Change,
        admission: &mut RoomSought,
        left: &mut usize,
    ) -> Result<bool, Reply> {
        let pairs = change.pairs();
        let needed = self.config.slaves_min.max(1);
        let RoomSought { reserved, done, pairs: placed } = admission;
        while *done < *placed {
            if *left == 0 {
                return Ok(false);
            }
            *left -= 1;
            let (key, value) = &pairs[*done];
            *done += 1;
            let bytes = payload(key, value);
            let roomy = self.with_room_for(key, bytes);
            if roomy.len() < needed {
                self.release(reserved);
                let (roomy, active) = (roomy.len(), self.members.staying().len());
                let detail = format!("{roomy} of {active} slaves have room for {bytes} more bytes");
                return Err(Reply::error(ErrorWord::OutOfMemory, detail));
            }
            let chosen = self.choose(roomy, self.config.copies.of(roomy.len()), key);
            let old = self.directory.get(key);
            for slot in chosen.iter() {
                let charge = charge(old.as_ref(), slot, key, bytes);
                let Some(link) = self.members.link_of(slot) else { continue };
                if let Some(member) = self.members.get_mut(slot) {
                    member.reserve(charge);
                    reserved.add(slot, link, charge);
                }
            }
            reserved.slots.push(chosen);
        }
        Ok(true)
    }

    /// Releases all of a write's room.
    pub(super) fn release(&mut self, reserved: &mut RoomReserved) {
        for (slot, link, bytes) in reserved.bytes.drain(..) {
            if let Some(member) = self.members.on_link(slot, link) {
                member.release(bytes);
            }
        }
    }

    pub(super) fn release_rest(&mut self, id: WriteId) {
        let write = self.writes.all.get_mut(id.0);
        let mut rest = write.map(|write| std::mem::take(&mut write.reserved)).unwrap_or_default();
        self.release(&mut rest);
    }

    /// Releases the room at `slot` for a part of a write that is sent now.
    pub(super) fn use_reserved(&mut self, id: WriteId, slot: Slot, charge: u64) {
        let Some(write) = self.writes.all.get_mut(id.0) else { return };
        let Some((_, link, left)) = write.reserved.bytes.iter_mut().find(|(at, ..)| *at == slot) else {
            return;
        };
        let used = charge.min(*left);
        *left -= used;
        if let Some(member) = self.members.on_link(slot, *link) {
            member.release(used);
        }
    }

    /// The live slaves with room for a value of `key` that takes `bytes` in all; a slave that holds an older value needs
    /// room only for the difference. Notes those without room.
    pub(super) fn with_room_for(&mut self, key: &[u8], bytes: u64) -> SlotSet {
        if self.members.iter().all(|(_, member)| member.is_unlimited()) || planted!(RoomIgnored) {
            return self.members.staying();
        }
        let old = self.directory.get(key);
        let mut roomy = SlotSet::EMPTY;
        for slot in self.members.staying().iter() {
            let charge = charge(old.as_ref(), slot, key, bytes);
            let Some(member) = self.members.get_mut(slot) else { continue };
            if member.room_bytes() >= charge {
                roomy.insert(slot);
            } else {
                member.lacks(bytes);
            }
        }
        roomy
    }

    /// The live slaves that have room for `bytes` more.
    pub(super) fn with_room(&self, bytes: u64) -> SlotSet {
        let has_room = |(_, member): &(Slot, &Member)| member.room_bytes() >= bytes;
        let roomy: SlotSet = self.members.iter().filter(has_room).map(|(slot, _)| slot).collect();
        roomy.intersection(self.members.staying())
    }

    /// The active slaves that recently had no room for a value: name, bytes of room, bytes of the smallest such value.
    pub fn full_slaves(&self) -> impl Iterator<Item = (&SlaveId, u64, u64)> {
        self.members
            .iter()
            .filter_map(|(_, member)| Some((&member.id, member.room_bytes(), member.lacking_bytes()?)))
    }
}

/// Bytes of a key and its value, as room is counted.
pub(super) fn payload(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + crate::machine::slave::ENTRY_OVERHEAD_BYTES
}

/// By how many bytes a value of `key` that takes `bytes` in all grows the content of `slot`; `old` is the key's present
/// entry.
pub(super) fn charge(old: Option<&Entry>, slot: Slot, key: &[u8], bytes: u64) -> u64 {
    let held = old.filter(|entry| entry.holders.contains(slot));
    let held = held.map_or(0, |entry| {
        key.len() as u64 + u64::from(entry.place.bytes) + crate::machine::slave::ENTRY_OVERHEAD_BYTES
    });
    bytes.saturating_sub(held)
}
