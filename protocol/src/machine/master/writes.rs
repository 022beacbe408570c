//! Writes in flight: acceptance, the log, replication, acknowledgements, substitution.

use super::membership::Sent;
use super::placement::{acks_needed, choose, hash_bytes};
use super::reads::Waiting;
use super::unwritten::Unwritten;
use super::{charge, payload, Asker, Change, Effect, Entry, Master, Slot, SlotSet, WriteId, WriteKey};
use crate::command::{ErrorWord, Reply};
use crate::ids::{LinkId, Millis, Version};
use crate::planted;
use crate::record::Place;
use bytes::Bytes;
use slotmap::SlotMap;
use smallvec::SmallVec;

/// The writes in flight.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    all: SlotMap<WriteKey, Write>,
    /// Those whose records are not written yet.
    pub(super) unwritten: Unwritten,
}

#[derive(Clone, Debug)]
struct Write {
    asker: Asker,
    change: Change,
    version: Version,
    /// One for each pair of a `Put`, once it is written.
    items: SmallVec<[Item; 1]>,
    /// Items that still lack acknowledgements.
    items_open: usize,
    /// Whether no slave was left for one of the items.
    stranded: bool,
    /// The room that is set aside until the record is written.
    reserved: Reserved,
    /// Reads of the same session that must see this write.
    waiting: Vec<Waiting>,
}

/// Room that is set aside for a write between its acceptance and its place in the log. Empty when no slave has a limit.
#[derive(Clone, Debug, Default)]
struct Reserved {
    /// The slaves of each pair.
    slots: SmallVec<[SlotSet; 1]>,
    /// Bytes in all at each of them.
    bytes: SmallVec<[(Slot, LinkId, u64); 2]>,
}

impl Reserved {
    fn add(&mut self, slot: Slot, link: LinkId, bytes: u64) {
        match self.bytes.iter_mut().find(|(at, ..)| *at == slot) {
            Some((.., sum)) => *sum += bytes,
            None => self.bytes.push((slot, link, bytes)),
        }
    }
}

/// The replication of one key of a write.
#[derive(Clone, Copy, Debug, Default)]
struct Item {
    pending: SlotSet,
    acked: SlotSet,
    /// Slaves that refused or left: not asked again for this item.
    failed: SlotSet,
    /// Fixed when the write is placed; may only fall, never below 1.
    needed: usize,
    closed: bool,
}

impl Writes {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// What a write that is not in the log yet gives `key`: what a planted bug answers.
    #[cfg(feature = "mutants")]
    pub(super) fn unwritten_value(&self, key: &[u8]) -> Option<Bytes> {
        let changes = self.unwritten.newest_first().filter_map(|id| Some(&self.all.get(id.0)?.change));
        let mut puts = changes.filter_map(|change| match change {
            Change::Put(pairs) => Some(pairs),
            Change::Delete(_) => None,
        });
        puts.find_map(|pairs| pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone()))
    }

    /// Lets `waiting` go on when `write` is written or refused.
    pub(super) fn wait(&mut self, write: WriteId, waiting: Waiting) {
        self.all.get_mut(write.0).expect("an unwritten write is in flight").waiting.push(waiting);
    }

    fn insert(&mut self, write: Write) -> WriteId {
        let (session, hashes) = (write.asker.session, key_hashes(&write.change));
        let id = WriteId(self.all.insert(write));
        self.unwritten.push(id, session, &hashes);
        id
    }

    /// Takes `id` off the unwritten ones.
    fn resolved(&mut self, id: WriteId) {
        let write = self.all.get(id.0).expect("an unwritten write is in flight");
        self.unwritten.resolve(id, write.asker.session, &key_hashes(&write.change));
    }
}

fn key_hashes(change: &Change) -> SmallVec<[u64; 4]> {
    match change {
        Change::Put(pairs) => pairs.iter().map(|(key, _)| hash_bytes(key)).collect(),
        Change::Delete(keys) => keys.iter().map(|key| hash_bytes(key)).collect(),
    }
}

impl Master {
    /// Admits a write and hands it to the log, or refuses it: not executed.
    pub(super) fn accept(&mut self, asker: Asker, change: Change, effects: &mut Vec<Effect>) {
        let reserved = match self.admit(&change) {
            Ok(reserved) => reserved,
            Err(refusal) => {
                effects.push(Effect::Reply { to: asker, reply: refusal });
                return;
            }
        };
        let write = self.writes.insert(Write {
            asker,
            change: change.clone(),
            version: Version::default(),
            items: SmallVec::new(),
            items_open: 0,
            stranded: false,
            reserved,
            waiting: Vec::new(),
        });
        effects.push(Effect::Append { write, change });
    }

    /// Sets room aside for a write.
    ///
    /// # Errors
    /// Why it cannot be taken now.
    fn admit(&mut self, change: &Change) -> Result<Reserved, Reply> {
        let active = self.members.len();
        let needed = self.config.slaves_min.max(1);
        if active < needed {
            let detail = format!("{active} of at least {needed} slaves are active");
            return Err(Reply::error(ErrorWord::NoQuorum, detail));
        }
        let mut reserved = Reserved::default();
        let Change::Put(pairs) = change else { return Ok(reserved) };
        if self.members.iter().all(|(_, member)| member.is_unlimited()) {
            return Ok(reserved);
        }
        for (key, value) in pairs {
            let bytes = payload(key, value);
            let roomy = self.with_room_for(key, bytes);
            if roomy.len() < needed {
                self.release(&mut reserved);
                let roomy = roomy.len();
                let detail = format!("{roomy} of {active} slaves have room for {bytes} more bytes");
                return Err(Reply::error(ErrorWord::OutOfMemory, detail));
            }
            let chosen = self.choose(roomy, acks_needed(roomy.len()), key);
            let old = self.directory.get(key).copied();
            for slot in chosen.iter() {
                let charge = charge(old.as_ref(), slot, key, bytes);
                if let Some(member) = self.members.get_mut(slot) {
                    member.reserve(charge);
                    reserved.add(slot, member.link, charge);
                }
            }
            reserved.slots.push(chosen);
        }
        Ok(reserved)
    }

    /// Gives all of a write's room back.
    fn release(&mut self, reserved: &mut Reserved) {
        for (slot, link, bytes) in reserved.bytes.drain(..) {
            if let Some(member) = self.members.on_link(slot, link) {
                member.release(bytes);
            }
        }
    }

    /// Gives back what was set aside at `slot` for a part of a write that is sent now.
    fn use_reserved(&mut self, id: WriteId, slot: Slot, charge: u64) {
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

    fn choose(&mut self, among: SlotSet, count: usize, key: &[u8]) -> SlotSet {
        choose(self.config.placement, &self.members, among, count, hash_bytes(key), &mut self.random)
    }

    /// The record stands in the log: the write is committed, the directory names it, its slaves get it.
    pub(super) fn written(
        &mut self,
        now: Millis,
        id: WriteId,
        version: Version,
        places: &[Place],
        effects: &mut Vec<Effect>,
    ) {
        self.writes.resolved(id);
        let write = self.writes.all.get_mut(id.0).expect("an unwritten write is in flight");
        write.version = version;
        let waiting = std::mem::take(&mut write.waiting);
        let asker = write.asker;
        let change = write.change.clone();
        match change.clone() {
            Change::Put(pairs) => {
                write.items_open = pairs.len();
                write.items = SmallVec::from_elem(Item::default(), pairs.len());
                assert_eq!(places.len(), pairs.len(), "each value of a written record has its place");
                for (index, ((key, value), place)) in pairs.into_iter().zip(places).enumerate() {
                    self.place_item(id, index, version, *place, &key, &value, effects);
                }
                self.release_rest(id);
                self.finish_if_closed(id, effects);
            }
            // The directory alone decides what exists: a deletion needs no slave's word.
            Change::Delete(keys) => {
                let mut existed = 0;
                for key in keys {
                    if let Some(old) = self.directory.remove(&key) {
                        existed += 1;
                        self.drop_copies(&key, old, SlotSet::EMPTY, effects);
                    }
                }
                self.writes.all.remove(id.0);
                self.counters.writes += 1;
                effects.push(Effect::Reply { to: asker, reply: Reply::Count(existed) });
            }
        }
        for waiting in waiting {
            self.resume(now, waiting, Some(&change), effects);
        }
    }

    fn release_rest(&mut self, id: WriteId) {
        let write = self.writes.all.get_mut(id.0);
        let mut rest = write.map(|write| std::mem::take(&mut write.reserved)).unwrap_or_default();
        self.release(&mut rest);
    }

    /// The record is not in the log: nothing happened.
    pub(super) fn not_written(
        &mut self,
        now: Millis,
        id: WriteId,
        word: ErrorWord,
        detail: &str,
        effects: &mut Vec<Effect>,
    ) {
        self.writes.resolved(id);
        self.release_rest(id);
        let write = self.writes.all.remove(id.0).expect("an unwritten write is in flight");
        effects.push(Effect::Reply { to: write.asker, reply: Reply::error(word, detail) });
        for waiting in write.waiting {
            self.resume(now, waiting, None, effects);
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one item of a write, borrowed in parts: its write is in the table"
    )]
    fn place_item(
        &mut self,
        id: WriteId,
        index: usize,
        version: Version,
        place: Place,
        key: &Bytes,
        value: &Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let bytes = payload(key, value);
        let live = self.members.live();
        let reserved = self.writes.all[id.0].reserved.slots.get(index).copied().unwrap_or_default();
        let reserved = reserved.intersection(live);
        // Those that have no room count as absent. Slaves where room was set aside have it. When all of these have left
        // since, nobody gets it: what room the others have was promised to other writes.
        let among = self.with_room_for(key, bytes).union(reserved);
        let count = acks_needed(among.len());
        let chosen = if reserved.len() >= count {
            self.choose(reserved, count, key)
        } else {
            self.choose(among.without(reserved), count - reserved.len(), key).union(reserved)
        };
        let old = self.directory.insert(key, Entry { version, place, holders: chosen });
        if let Some(old) = old {
            self.drop_copies(key, old, chosen, effects);
        }
        for slot in chosen.iter() {
            let charge = charge(old.as_ref(), slot, key, bytes);
            self.use_reserved(id, slot, charge);
            self.count_copies(slot, 1);
            self.send_item(id, index, slot, (version, charge), key, value, effects);
        }
        let item = &mut self.writes.all[id.0].items[index];
        item.pending = chosen;
        item.needed = count.max(1);
        self.settle_item(id, index);
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one item of a write, borrowed in parts: its write is in the table"
    )]
    fn send_item(
        &mut self,
        write: WriteId,
        index: usize,
        slot: Slot,
        (version, charge): (Version, u64),
        key: &Bytes,
        value: &Bytes,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(member) = self.members.get_mut(slot) {
            member.sent(Sent::Item { write, item: index as u32, bytes: charge });
        }
        effects.push(Effect::SendWrite { slot, version, key: key.clone(), value: value.clone() });
    }

    /// Tells the holders of a superseded version that get no new one to forget it.
    fn drop_copies(&mut self, key: &Bytes, old: Entry, kept: SlotSet, effects: &mut Vec<Effect>) {
        for slot in old.holders.intersection(self.members.live()).iter() {
            self.count_copies(slot, -1);
            if !kept.contains(slot) {
                effects.push(Effect::SendDrop { slot, version: old.version, key: key.clone() });
            }
        }
    }

    pub(super) fn item_key(&self, id: WriteId, index: u32) -> Option<(Bytes, Version)> {
        let write = self.writes.all.get(id.0)?;
        match &write.change {
            Change::Put(pairs) => pairs.get(index as usize).map(|(key, _)| (key.clone(), write.version)),
            Change::Delete(_) => None,
        }
    }

    pub(super) fn item_acked(&mut self, id: WriteId, index: u32, slot: Slot, effects: &mut Vec<Effect>) {
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
        // A slave that failed this write once and has come back since is asked only when nobody else is left.
        let returned = self.members.once_in(item.failed);
        let Change::Put(pairs) = &write.change else { return };
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
                // Acknowledged for the sake of this write, but a copy that the directory does not name would stay.
                effects.push(Effect::SendDrop { slot: substitute, version, key: key.clone() });
            }
            self.writes.all[id.0].items[index].pending.insert(substitute);
        }
        self.settle_item(id, index);
        self.finish_if_closed(id, effects);
    }

    /// An acknowledgement of a slave that has left since no longer counts for a write that is not done.
    pub(super) fn drop_acks_of(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        let affected: Vec<(WriteId, u32)> = self
            .writes
            .all
            .iter()
            .flat_map(|(key, write)| {
                let indices: Vec<usize> = write
                    .items
                    .iter()
                    .enumerate()
                    .filter(|(_, i)| i.acked.contains(slot))
                    .map(|(n, _)| n)
                    .collect();
                indices.into_iter().map(move |index| (WriteId(key), index as u32))
            })
            .collect();
        for (id, index) in affected {
            let write = &mut self.writes.all[id.0];
            let item = &mut write.items[index as usize];
            // An item of several may have had enough while another lacks something: the answer is for all.
            if std::mem::replace(&mut item.closed, false) {
                write.items_open += 1;
            }
            self.substitute(id, index, slot, effects);
        }
    }

    /// Decides whether an item has what it needs.
    fn settle_item(&mut self, id: WriteId, index: usize) {
        let write = &mut self.writes.all[id.0];
        let item = &mut write.items[index];
        if item.closed {
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
                // Who has room has left, and the others have none. It stands in the log, and is read from there.
                self.counters.without_copy += 1;
            }
        }
    }

    fn finish_if_closed(&mut self, id: WriteId, effects: &mut Vec<Effect>) {
        if self.writes.all.get(id.0).is_none_or(|write| write.items_open > 0) {
            return;
        }
        let Some(write) = self.writes.all.remove(id.0) else { return };
        let reply = if write.stranded {
            self.counters.unknown += 1;
            Reply::error(ErrorWord::Unknown, "the write is logged, but no slave was left to acknowledge it")
        } else {
            self.counters.writes += 1;
            Reply::Done
        };
        effects.push(Effect::Reply { to: write.asker, reply });
    }
}
