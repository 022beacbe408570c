//! Which slaves are active, in which slot, and which writes are on their way to each.
//!
//! A slot is a small number for one life of one slave's link, so that a set of holders is one word. It is used only in
//! the machine: events and effects name a slave by its link. `machine/link/` has the numbers of messages, and decides
//! when one is late.

use super::answer_time::AnswerTime;
use super::hash::hash_bytes;
use super::WriteId;
use crate::ids::{LinkId, Millis, SlaveId, Version};
use bytes::Bytes;
use std::collections::VecDeque;

/// The most slaves that can be active at once.
pub const SLAVES_MAX: usize = 64;

/// With fewer clean slots than this a sweep begins: it takes a while, and slaves that join meanwhile need slots.
const CLEAN_MIN: usize = 16;

/// The place of an active slave in sets of holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u8);

/// A set of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet(u64);

impl SlotSet {
    /// The set without a slot.
    pub const EMPTY: SlotSet = SlotSet(0);

    /// Whether `slot` is in the set.
    pub fn contains(self, slot: Slot) -> bool {
        self.0 & (1 << slot.0) != 0
    }

    /// Puts `slot` in; returns whether it was absent.
    pub fn insert(&mut self, slot: Slot) -> bool {
        let absent = !self.contains(slot);
        self.0 |= 1 << slot.0;
        absent
    }

    /// Takes `slot` out; returns whether it was present.
    pub fn remove(&mut self, slot: Slot) -> bool {
        let present = self.contains(slot);
        self.0 &= !(1 << slot.0);
        present
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 & other.0)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn without(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 & !other.0)
    }

    /// What is in either set.
    #[must_use]
    pub fn union(self, other: SlotSet) -> SlotSet {
        SlotSet(self.0 | other.0)
    }

    /// How many slots are in the set.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether no slot is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The slots, lowest first.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let lowest = rest.trailing_zeros() as u8;
                rest &= rest - 1;
                Slot(lowest)
            })
        })
    }

    /// The `index`th slot of the set, lowest first.
    pub fn nth(self, index: usize) -> Option<Slot> {
        self.iter().nth(index)
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = SlotSet::EMPTY;
        for slot in slots {
            set.insert(slot);
        }
        set
    }
}

/// Why a slave gets a copy for which no client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyCause {
    /// A read took the value from the log.
    PutBack,
    /// Repair.
    Repair {
        /// Whether it is the first copy that repair sends of this key now.
        is_first: bool,
    },
    /// Rebalancing: another slave may drop its copy once this one is acknowledged.
    Move {
        /// Whether it is the first copy that rebalancing sends of this key now.
        is_first: bool,
    },
}

/// What a write that was sent to a slave was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// An item of a client's write.
    Item { write: WriteId, item: u32, bytes: u64 },
    /// A copy for which no client waits.
    Copy { key: Bytes, version: Version, bytes: u64, cause: CopyCause },
    /// A write that the slave has refused. It is still acknowledged.
    Refused,
}

impl Sent {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Sent::Item { bytes, .. } | Sent::Copy { bytes, .. } => *bytes,
            Sent::Refused => 0,
        }
    }

    fn is_repair(&self) -> bool {
        matches!(self, Sent::Copy { cause: CopyCause::Repair { .. } | CopyCause::Move { .. }, .. })
    }
}

/// How many writes a slave had been sent at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentMark {
    slot: Slot,
    link: LinkId,
    writes: u64,
}

/// An active slave.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: SlaveId,
    pub(super) id_hash: u64,
    /// Whether it has reported all it holds.
    pub(super) reported: bool,
    /// How many keys it is known to hold.
    pub(super) copies: u64,
    /// How many items of clients' writes it acknowledged over this link.
    pub(super) writes_acked: u64,
    /// A read from it timed out: until this point others are asked first.
    pub(super) slow_until: Millis,
    /// How long it usually takes to answer a read.
    pub(super) answer_time: AnswerTime,
    room_bytes: u64,
    /// Room for writes that are accepted and not in the log yet, in bytes.
    reserved_bytes: u64,
    /// The smallest value for which it recently had no room, in bytes as room is counted.
    lacking_bytes: Option<u64>,
    unacked_bytes: u64,
    /// How many writes it was sent.
    sent_writes: u64,
    /// The copies of repair and rebalancing among those unacknowledged, and their bytes.
    repairing: (usize, u64),
    /// The most room that it has had, in bytes.
    room_most: u64,
    /// How many writes at the front of `unacked` are acknowledged and not taken yet.
    acked: usize,
    unacked: VecDeque<Sent>,
}

impl Member {
    /// Room that will be left when everything under way and accepted has arrived, in bytes.
    pub(super) fn room_bytes(&self) -> u64 {
        if self.is_unlimited() {
            u64::MAX
        } else {
            self.room_bytes.saturating_sub(self.unacked_bytes + self.reserved_bytes)
        }
    }

    /// Whether its memory has no limit.
    pub(super) fn is_unlimited(&self) -> bool {
        self.room_bytes == u64::MAX
    }

    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved_bytes += bytes;
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved_bytes -= bytes;
    }

    /// Notes that it had no room for so many bytes.
    pub(super) fn lacks(&mut self, bytes: u64) {
        self.lacking_bytes = Some(self.lacking_bytes.map_or(bytes, |lacking| lacking.min(bytes)));
    }

    /// The smallest value for which it had no room, until it has room for one and a half times as much.
    pub(super) fn lacking_bytes(&self) -> Option<u64> {
        self.lacking_bytes
    }

    /// Notes a write that is sent now.
    pub(super) fn sent(&mut self, sent: Sent) {
        self.unacked_bytes += sent.bytes();
        self.sent_writes += 1;
        if sent.is_repair() {
            self.repairing = (self.repairing.0 + 1, self.repairing.1 + sent.bytes());
        }
        self.unacked.push_back(sent);
    }

    /// A write is no longer under way to it.
    fn settled(&mut self, sent: &Sent) {
        self.unacked_bytes -= sent.bytes();
        if sent.is_repair() {
            self.repairing = (self.repairing.0 - 1, self.repairing.1 - sent.bytes());
        }
    }

    /// Copies of repair that are under way to it, and their bytes.
    pub(super) fn repairing(&self) -> (usize, u64) {
        self.repairing
    }

    /// The most room that it has had, in bytes; 0 when its memory has no limit.
    pub(super) fn room_most(&self) -> u64 {
        if self.is_unlimited() {
            0
        } else {
            self.room_most
        }
    }

    /// Notes that this many more writes are acknowledged; [`Member::take_acked`] takes them.
    pub(super) fn note_acked(&mut self, writes: u64) {
        let writes = usize::try_from(writes).unwrap_or(usize::MAX);
        self.acked = self.acked.saturating_add(writes).min(self.unacked.len());
    }

    /// Whether something is acknowledged and not yet taken.
    fn has_acked(&self) -> bool {
        self.acked > 0
    }

    /// Takes the next write that is acknowledged.
    pub(super) fn take_acked(&mut self) -> Option<Sent> {
        self.acked = self.acked.checked_sub(1)?;
        let sent = self.unacked.pop_front()?;
        self.settled(&sent);
        Some(sent)
    }

    /// Takes a write that the slave has refused: the one with `before` unacknowledged writes before it. Its place
    /// stays, because it will be acknowledged.
    pub(super) fn take_refused(&mut self, before: u64) -> Option<Sent> {
        let index = usize::try_from(before).ok()?.checked_add(self.acked)?;
        let refused = std::mem::replace(self.unacked.get_mut(index)?, Sent::Refused);
        self.settled(&refused);
        Some(refused)
    }

    /// The bytes under way to it.
    pub(super) fn unacked_bytes(&self) -> u64 {
        self.unacked_bytes
    }

    pub(super) fn set_room(&mut self, room_bytes: u64) {
        self.room_bytes = room_bytes;
        self.room_most = self.room_most.max(room_bytes);
        let has_room = |lacking: &u64| room_bytes.saturating_sub(self.unacked_bytes) >= lacking + lacking / 2;
        if self.lacking_bytes.as_ref().is_some_and(has_room) {
            self.lacking_bytes = None;
        }
    }

    /// The writes that are sent and neither acknowledged nor refused, in order.
    pub(super) fn unacked(&self) -> impl Iterator<Item = &Sent> {
        self.unacked.iter()
    }

    /// Whether every write is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.unacked.is_empty()
    }
}

/// The active slaves by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Membership {
    members: Vec<Option<Member>>,
    live: SlotSet,
    /// Slots whose bits may still stand in the directory.
    stale: SlotSet,
    unreported: SlotSet,
    /// Live ones that are to leave.
    leaving: SlotSet,
    /// The hash of the name of the present or last slave in each slot.
    names: Vec<u64>,
    /// Its link, likewise.
    links: Vec<LinkId>,
}

impl Membership {
    pub(super) fn live(&self) -> SlotSet {
        self.live
    }

    /// The live slaves that are to hold keys: all but those that are to leave, unless nobody else is there.
    pub(super) fn staying(&self) -> SlotSet {
        let staying = self.live.without(self.leaving);
        if staying.is_empty() {
            self.live
        } else {
            staying
        }
    }

    /// Those that are to leave.
    pub(super) fn leaving(&self) -> SlotSet {
        self.leaving
    }

    pub(super) fn set_leaving(&mut self, slot: Slot) {
        self.leaving.insert(slot);
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// The live slaves that have not yet reported all they hold.
    pub(super) fn unreported(&self) -> SlotSet {
        self.unreported
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Member> {
        self.members.get(usize::from(slot.0))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Member> {
        self.members.get_mut(usize::from(slot.0))?.as_mut()
    }

    /// The member in `slot` if its link is still `link`: what an older link says is ignored.
    pub(super) fn on_link(&mut self, slot: Slot, link: LinkId) -> Option<&mut Member> {
        let is_same = self.links.get(usize::from(slot.0)) == Some(&link);
        self.get_mut(slot).filter(|_| is_same)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Member)> {
        self.live.iter().filter_map(|slot| self.get(slot).map(|member| (slot, member)))
    }

    /// How far each slave was sent writes.
    pub(super) fn sent_marks(&self) -> Vec<SentMark> {
        let mark = |(slot, member): (Slot, &Member)| {
            Some(SentMark { slot, link: self.link_of(slot)?, writes: member.sent_writes })
        };
        self.iter().filter_map(mark).collect()
    }

    /// Whether the slaves have acknowledged everything up to these marks, or are gone.
    pub(super) fn have_acked(&self, marks: &[SentMark]) -> bool {
        marks.iter().all(|mark| {
            let member = self.get(mark.slot).filter(|_| self.link_of(mark.slot) == Some(mark.link));
            member.is_none_or(|member| member.sent_writes - member.unacked.len() as u64 >= mark.writes)
        })
    }

    /// How many copies those in `slots` are known to hold in all.
    pub(super) fn copies_of(&self, slots: SlotSet) -> u64 {
        slots.iter().filter_map(|slot| self.get(slot)).map(|member| member.copies).sum()
    }

    /// The first slave with acknowledged writes that are not taken yet.
    pub(super) fn acknowledging(&self) -> Option<Slot> {
        self.iter().find(|(_, member)| member.has_acked()).map(|(slot, _)| slot)
    }

    /// The slots that no bit in the directory names.
    fn clean(&self) -> SlotSet {
        SlotSet(!0).without(self.live).without(self.stale)
    }

    /// A slot that no bit in the directory names; `None` when a sweep is needed first (or all are live).
    pub(super) fn clean_slot(&self) -> Option<Slot> {
        self.clean().nth(0)
    }

    /// The slots that a sweep is to clear, once few are clean.
    pub(super) fn to_sweep(&self) -> Option<SlotSet> {
        (!self.stale.is_empty() && self.clean().len() < CLEAN_MIN).then_some(self.stale)
    }

    /// Notes that the directory does not name `slots`.
    pub(super) fn swept(&mut self, slots: SlotSet) {
        self.stale = self.stale.without(slots);
    }

    pub(super) fn join(&mut self, slot: Slot, id: SlaveId, link: LinkId, room_bytes: u64) {
        let index = usize::from(slot.0);
        if self.members.len() <= index {
            self.members.resize_with(index + 1, || None);
            self.names.resize(index + 1, 0);
            self.links.resize(index + 1, link);
        }
        let id_hash = hash_bytes(id.as_str().as_bytes());
        self.names[index] = id_hash;
        self.links[index] = link;
        self.members[index] = Some(Member {
            id,
            id_hash,
            reported: false,
            copies: 0,
            writes_acked: 0,
            slow_until: Millis(0),
            answer_time: AnswerTime::default(),
            room_bytes,
            reserved_bytes: 0,
            lacking_bytes: None,
            unacked_bytes: 0,
            sent_writes: 0,
            repairing: (0, 0),
            room_most: room_bytes,
            acked: 0,
            unacked: VecDeque::new(),
        });
        self.live.insert(slot);
        self.unreported.insert(slot);
    }

    pub(super) fn set_reported(&mut self, slot: Slot) {
        self.unreported.remove(slot);
        if let Some(member) = self.get_mut(slot) {
            member.reported = true;
        }
    }

    pub(super) fn leave(&mut self, slot: Slot) -> Option<Member> {
        let member = self.members.get_mut(usize::from(slot.0))?.take()?;
        self.live.remove(slot);
        self.unreported.remove(slot);
        self.leaving.remove(slot);
        self.stale.insert(slot);
        Some(member)
    }

    /// The slots in which slaves are now that were once in one of `slots`.
    pub(super) fn once_in(&self, slots: SlotSet) -> SlotSet {
        let name = |slot: Slot| self.names.get(usize::from(slot.0)).copied();
        let was_there = |now: &Slot| slots.iter().any(|then| name(then) == name(*now));
        self.live.iter().filter(was_there).collect()
    }

    /// The slot of the live slave on `link`: what an older link says is ignored.
    pub(super) fn slot_of(&self, link: LinkId) -> Option<Slot> {
        let is_on_link = |slot: &Slot| self.links.get(usize::from(slot.0)) == Some(&link);
        self.live.iter().find(is_on_link)
    }

    /// The link of the live slave in `slot`.
    pub(super) fn link_of(&self, slot: Slot) -> Option<LinkId> {
        self.links.get(usize::from(slot.0)).copied().filter(|_| self.live.contains(slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::ids::{ReignId, SessionId};
    use crate::machine::master::{Asker, Config, Effect, Event, Master};

    /// Keys of one request: more than one slice has.
    const KEYS: usize = 5000;

    fn step(master: &mut Master, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        master.step(Millis(0), event, &mut effects);
        effects
    }

    fn join(master: &mut Master, number: u64) -> Vec<Effect> {
        let id = SlaveId::new(format!("s{number}")).unwrap();
        step(master, Event::SlaveJoined { id, link: LinkId(number), room_bytes: u64::MAX })
    }

    /// Asks for something that takes many slices.
    fn ask_much(master: &mut Master, tag: u64) {
        let keys = (0..KEYS).map(|key| Bytes::from(format!("k{key}"))).collect();
        let (asker, deadline) = (Asker { session: SessionId(1), tag }, Millis(1000));
        step(master, Event::Request { asker, deadline, command: Command::Exists { keys } });
    }

    #[test]
    fn a_slave_gets_its_slot_even_if_there_is_always_other_work() {
        let mut master = Master::new(Config::default());
        step(&mut master, Event::ReignBegan { version: Version::new(1, 1), id: ReignId(1) });
        join(&mut master, 0);
        ask_much(&mut master, 0);
        // A slave comes and goes until every slot was used once.
        let waits = (1..200).find(|number| {
            let has_slot = join(&mut master, *number).iter().any(|e| matches!(e, Effect::Joined { .. }));
            if has_slot {
                step(&mut master, Event::SlaveLost { link: LinkId(*number) });
            }
            !has_slot
        });
        assert_eq!(waits, Some(64));
        for tag in 1..100 {
            ask_much(&mut master, tag);
            assert!(master.has_chores());
            let effects = step(&mut master, Event::Chore);
            if effects.contains(&Effect::SlotFree { link: LinkId(64) }) {
                return;
            }
        }
        panic!("it waits for ever");
    }
}
