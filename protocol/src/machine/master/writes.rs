//! Writes in flight, from acceptance through the log to their slaves.
//!
//! `room.rs` decides what is admitted, `acks.rs` when a write is done, `substitutes.rs` which slave replaces one that
//! left.

use super::hash::hash_bytes;
use super::latest::Latest;
use super::membership::Sent;
use super::placement::choose;
use super::room::{charge, payload, RoomReserved};
use super::substitutes::SlaveLoss;
use super::unwritten::Unwritten;
use super::work::{HeldRead, LogOutcome, Work, UNKNOWN_BEFORE};
use super::{Asker, Change, Effect, Entry, Master, Slot, SlotSet, WriteId, WriteKey};
use crate::command::{ErrorWord, Reply};
use crate::ids::{Millis, SessionId, UnixMillis, Version};
use crate::record::Place;
use bytes::Bytes;
use slotmap::SlotMap;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// A write of more keys than this is not indexed by its keys: every read of its session waits for it.
const KEYS_REMEMBERED_MAX: usize = 64;

/// A write of more keys than this is waited for by updates, whatever their keys are.
const KEYS_SOUGHT_MAX: usize = 1024;

/// The writes in flight.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    pub(super) all: SlotMap<WriteKey, Write>,
    /// The slaves that have left and for which the substitution is not finished.
    pub(super) losses: VecDeque<SlaveLoss>,
    /// Those whose records are not written yet.
    pub(super) unwritten: Unwritten,
    /// The last one of each key.
    pub(super) latest: Latest,
    /// How many the log has refused in this reign.
    pub(super) refusals: u64,
}

/// What else is to be known of a write that is accepted. Nothing for one that depends on no other.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    /// The answer, once it is safe, if that is not the usual one.
    pub(super) reply: Option<Reply>,
    /// How many refusals its decision takes into account, if it rests on a write that is not written.
    pub(super) after: Option<u64>,
    /// By how many bytes its value is longer than its request.
    pub(super) made_bytes: u64,
    /// When its values expire.
    pub(super) expires: Option<UnixMillis>,
}

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) asker: Asker,
    pub(super) change: Arc<Change>,
    pub(super) version: Version,
    /// One for each pair of a `Put`, once it is written.
    pub(super) items: SmallVec<[Item; 1]>,
    /// Items that still lack acknowledgements.
    pub(super) items_open: usize,
    /// Whether no slave was left for one of the items.
    pub(super) stranded: bool,
    /// The room that is set aside until the record is written.
    pub(super) reserved: RoomReserved,
    /// Whether it is taken in: its keys are in the directory.
    pub(super) is_resolved: bool,
    /// The answer, if that is not the usual one.
    pub(super) reply: Option<Reply>,
    made_bytes: u64,
    /// When its values expire.
    pub(super) expires: Option<UnixMillis>,
    /// Reads of the same session that must see this write, and all that depends on it.
    waiting: Vec<HeldRead>,
}

/// The replication of one key of a write.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Item {
    pub(super) pending: SlotSet,
    pub(super) acked: SlotSet,
    /// Slaves that refused or left: not asked again for this item.
    pub(super) failed: SlotSet,
    /// Fixed when the write is placed; may only fall, never below 1.
    pub(super) needed: usize,
    pub(super) closed: bool,
}

impl Writes {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// What a write that is not in the log yet gives `key`: what a planted bug answers.
    #[cfg(feature = "mutants")]
    pub(super) fn unwritten_value(&self, key: &[u8]) -> Option<Bytes> {
        let changes = self.unwritten.newest_first().filter_map(|id| Some(&*self.all.get(id.0)?.change));
        let mut puts = changes.map(Change::pairs);
        puts.find_map(|pairs| pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone()))
    }

    /// Lets `waiting` go on when `write` is written or refused.
    pub(super) fn wait(&mut self, write: WriteId, waiting: HeldRead) {
        self.all.get_mut(write.0).expect("an unwritten write is in flight").waiting.push(waiting);
    }

    fn insert(&mut self, write: Write) -> WriteId {
        let (session, sought) = (write.asker.session, sought_hashes(&write.change));
        let hashes = sought.as_deref().filter(|hashes| hashes.len() <= KEYS_REMEMBERED_MAX);
        let longest = if hashes.is_none() { longest_value(&write.change) } else { 0 };
        let id = WriteId(self.all.insert(write));
        self.unwritten.push(id, session, hashes, longest);
        self.latest.note(id, sought.as_deref());
        id
    }

    pub(super) fn asker(&self, id: WriteId) -> Option<Asker> {
        self.all.get(id.0).map(|write| write.asker)
    }

    /// The length of the value of `key` in an unwritten write of `session` (`None` without one), and the longest value
    /// in its unwritten writes of many keys, in bytes.
    pub(super) fn unwritten_bytes(&self, session: SessionId, key: &Bytes) -> (Option<usize>, usize) {
        if self.unwritten.is_none_of(session) {
            return (None, 0);
        }
        let write = self.unwritten.last_of_key(session, hash_bytes(key)).and_then(|id| self.all.get(id.0));
        let bytes = write.map(|write| {
            write.change.pairs().iter().find(|(k, _)| k == key).map_or(0, |(_, value)| value.len())
        });
        (bytes, self.unwritten.longest_of_many(session))
    }

    fn keys_of(&self, id: WriteId) -> usize {
        self.all.get(id.0).map_or(0, |write| write.change.key_count())
    }

    /// Whether something waits for [`Master::make_good`].
    pub(super) fn has_losses(&self) -> bool {
        !self.losses.is_empty()
    }

    /// Whether a slave has left for which this write is not checked yet.
    pub(super) fn is_bereft(&self, id: WriteId) -> bool {
        self.losses.iter().any(|loss| loss.writes[loss.writes_done..].binary_search(&id).is_ok())
    }

    /// Forgets all substitution work: nothing is in flight.
    pub(super) fn forget_losses(&mut self) {
        self.losses.clear();
    }

    /// Removes `id` from the unwritten ones.
    fn resolved(&mut self, id: WriteId) {
        let write = self.all.get_mut(id.0).expect("an unwritten write is in flight");
        write.is_resolved = true;
        self.unwritten.resolve(id, write.asker.session, key_hashes(&write.change).as_deref());
        self.latest.resolved(id);
    }

    /// Removes a write that is in flight no more.
    fn remove(&mut self, id: WriteId) -> Option<Write> {
        let write = self.all.remove(id.0)?;
        self.latest.forget(id, sought_hashes(&write.change).as_deref());
        Some(write)
    }
}

fn longest_value(change: &Change) -> usize {
    change.pairs().iter().map(|(_, value)| value.len()).max().unwrap_or_default()
}

/// The hashes of a write's keys by which it is found as the last one of each; `None` for a write of too many.
fn sought_hashes(change: &Change) -> Option<SmallVec<[u64; 4]>> {
    (change.key_count() <= KEYS_SOUGHT_MAX).then(|| change.keys().map(|key| hash_bytes(key)).collect())
}

/// The hashes of a write's keys; `None` for a write of many keys.
fn key_hashes(change: &Change) -> Option<SmallVec<[u64; 4]>> {
    (change.key_count() <= KEYS_REMEMBERED_MAX).then(|| change.keys().map(|key| hash_bytes(key)).collect())
}

impl Master {
    /// Admits a write of few keys and passes it to the log, or refuses it: not executed. `bytes` is its total size.
    pub(super) fn write(&mut self, asker: Asker, change: Change, bytes: u64, effects: &mut Vec<Effect>) {
        self.write_on(asker, change, bytes, Terms::default(), effects);
    }

    /// The same on these terms; whether it was admitted.
    pub(super) fn write_on(
        &mut self,
        asker: Asker,
        change: Change,
        bytes: u64,
        terms: Terms,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let mut left = usize::MAX;
        let admitted = self.begin_admission(&change, bytes).and_then(|mut admission| {
            self.admit_on(&change, &mut admission, &mut left).map(|_| admission.into_reserved())
        });
        match admitted {
            Ok(reserved) => {
                self.accept(asker, change, reserved, terms, effects);
                true
            }
            Err(refusal) => {
                effects.push(Effect::Reply { to: asker, reply: refusal });
                false
            }
        }
    }

    /// Removes a write that is in flight no more, and gives it.
    pub(super) fn end_write(&mut self, id: WriteId) -> Option<Write> {
        let write = self.writes.remove(id)?;
        self.lines.unmake(write.made_bytes);
        Some(write)
    }

    /// Passes a write to the log, after room was reserved for it.
    pub(super) fn accept(
        &mut self,
        asker: Asker,
        change: Change,
        reserved: RoomReserved,
        terms: Terms,
        effects: &mut Vec<Effect>,
    ) -> WriteId {
        let Terms { reply, after, made_bytes, expires } = terms;
        let change = Arc::new(change);
        let write = self.writes.insert(Write {
            asker,
            change: Arc::clone(&change),
            version: Version::default(),
            items: SmallVec::new(),
            items_open: 0,
            stranded: false,
            reserved,
            is_resolved: false,
            reply,
            made_bytes,
            expires,
            waiting: Vec::new(),
        });
        effects.push(Effect::Append { write, change, expires, after });
        write
    }

    pub(super) fn choose(&mut self, among: SlotSet, count: usize, key: &[u8]) -> SlotSet {
        choose(self.config.placement, &self.members, among, count, hash_bytes(key), &mut self.random)
    }

    /// The record is in the log: the write is committed. Once the earlier records are processed, the directory and the
    /// slaves get it, key by key. A record of many keys takes several turns: meanwhile some of its keys have their new
    /// value and others not yet, and its own session's reads wait.
    pub(super) fn written(
        &mut self,
        now: Millis,
        id: WriteId,
        version: Version,
        places: SmallVec<[Place; 1]>,
        effects: &mut Vec<Effect>,
    ) {
        let write = self.writes.all.get_mut(id.0).expect("an unwritten write is in flight");
        write.version = version;
        if let pairs @ [_, ..] = write.change.pairs() {
            assert_eq!(places.len(), pairs.len(), "each value of a written record has its place");
            write.items_open = pairs.len();
            write.items = SmallVec::from_elem(Item::default(), pairs.len());
        }
        self.slices.push_back(Work::Outcome(LogOutcome::Written { write: id, places, done: 0, existed: 0 }));
        self.work_on(now, effects);
    }

    /// The record is not in the log: nothing happened. Or, with UNKNOWN, the outcome is unknown.
    pub(super) fn not_written(
        &mut self,
        now: Millis,
        id: WriteId,
        word: ErrorWord,
        detail: String,
        effects: &mut Vec<Effect>,
    ) {
        self.slices.push_back(Work::Outcome(LogOutcome::NotWritten { write: id, word, detail }));
        self.work_on(now, effects);
    }

    /// Processes the log's answer, up to `left` keys, and gives the rest.
    pub(super) fn take_in(
        &mut self,
        now: Millis,
        outcome: LogOutcome,
        left: &mut usize,
        effects: &mut Vec<Effect>,
    ) -> Option<LogOutcome> {
        match outcome {
            LogOutcome::Written { write, places, done, existed } => {
                let keys = self.writes.keys_of(write);
                // Nobody sees a part of a record that fits into one step.
                let slice = self.config.slice_keys;
                if done == 0 && keys > *left && keys <= slice && *left < slice {
                    *left = 0;
                    return Some(LogOutcome::Written { write, places, done, existed });
                }
                let (done, existed) = self.take_in_keys(write, &places, done, existed, left, effects);
                if done < keys {
                    return Some(LogOutcome::Written { write, places, done, existed });
                }
                self.end_written(now, write, existed, effects);
            }
            LogOutcome::NotWritten { write, word, detail } => {
                self.writes.resolved(write);
                self.release_rest(write);
                self.writes.refusals += 1;
                let Write { asker, waiting, .. } =
                    self.end_write(write).expect("an unwritten write is in flight");
                // They could read a value that is older than the unknown write before them.
                let mut refusal =
                    (word == ErrorWord::Unknown).then(|| Reply::error(ErrorWord::Busy, UNKNOWN_BEFORE));
                if asker.is_nobody() {
                    self.expiry_ended(now, None);
                    // They would only ask for the same deletion again.
                    refusal = refusal.or_else(|| Some(Reply::error(word, detail)));
                } else if asker.is_of_part() {
                    refusal = Some(Reply::error(word, detail));
                } else {
                    effects.push(Effect::Reply { to: asker, reply: Reply::error(word, detail) });
                    if refusal.is_some() {
                        self.give_up_line(asker.session, effects);
                    }
                }
                self.resume_all(asker.session, waiting, None, refusal);
                *left = left.saturating_sub(1);
            }
        }
        None
    }

    /// Processes up to `left` keys of a record, of which `done` are processed; gives the new number, and how many keys
    /// existed.
    fn take_in_keys(
        &mut self,
        id: WriteId,
        places: &[Place],
        mut done: usize,
        mut existed: u64,
        left: &mut usize,
        effects: &mut Vec<Effect>,
    ) -> (usize, u64) {
        let write = self.writes.all.get(id.0).expect("an unwritten write is in flight");
        let (change, version, expires) = (Arc::clone(&write.change), write.version, write.expires);
        let is_expiry = write.asker.is_nobody();
        let (pairs, deleted) = (change.pairs(), change.deleted());
        while let Some((key, value)) = pairs.get(done).filter(|_| *left > 0) {
            let expires = change.expires(done, expires);
            self.place_item(id, done, (version, places[done], expires), key, value, effects);
            done += 1;
            *left -= 1;
        }
        while let Some(key) =
            done.checked_sub(pairs.len()).and_then(|at| deleted.get(at)).filter(|_| *left > 0)
        {
            if let Some(old) = self.directory.remove(key) {
                // One whose time had come is deleted with this record, but not by who has asked for it.
                existed += u64::from(!self.is_expired(&old) || is_expiry);
                self.drop_copies(key, old, SlotSet::EMPTY, effects);
            }
            done += 1;
            *left -= 1;
        }
        (done, existed)
    }

    /// All keys of a record are processed.
    fn end_written(&mut self, now: Millis, id: WriteId, existed: u64, effects: &mut Vec<Effect>) {
        self.writes.resolved(id);
        let write = self.writes.all.get_mut(id.0).expect("an unwritten write is in flight");
        let waiting = std::mem::take(&mut write.waiting);
        let (change, asker) = (Arc::clone(&write.change), write.asker);
        if !change.pairs().is_empty() {
            self.release_rest(id);
            self.finish_if_closed(id, effects);
        } else {
            // The directory alone decides what exists: a deletion needs no slave's word.
            let reply = self.end_write(id).and_then(|write| write.reply);
            if asker.is_nobody() {
                self.expiry_ended(now, Some(existed));
            } else if !asker.is_of_part() {
                self.counters.writes += 1;
                let reply = reply.unwrap_or(Reply::Count(existed));
                effects.push(Effect::Reply { to: asker, reply });
            }
        }
        self.resume_all(asker.session, waiting, Some(change), None);
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one item of a write, borrowed in parts: its write is in the table"
    )]
    fn place_item(
        &mut self,
        id: WriteId,
        index: usize,
        (version, place, expires): (Version, Place, Option<UnixMillis>),
        key: &Bytes,
        value: &Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let bytes = payload(key, value);
        self.rebalance.note_placed(version);
        let live = self.members.staying();
        let reserved = &self.writes.all[id.0].reserved;
        let reserved = reserved.slots.get(index).copied().unwrap_or(reserved.everywhere).intersection(live);
        // Slaves without room count as absent. Slaves with reserved room have it. If all of these have left since, no
        // slave gets the value: the room of the others was promised to other writes.
        let among = self.with_room_for(key, bytes).union(reserved);
        let count = self.config.copies.of(among.len());
        let chosen = if reserved.len() >= count {
            self.choose(reserved, count, key)
        } else {
            self.choose(among.without(reserved), count - reserved.len(), key).union(reserved)
        };
        let old = self.directory.insert(key, Entry { version, place, holders: chosen, expires });
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
    pub(super) fn send_item(
        &mut self,
        write: WriteId,
        index: usize,
        slot: Slot,
        (version, charge): (Version, u64),
        key: &Bytes,
        value: &Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let sent = Sent::Item { write, item: index as u32, bytes: charge };
        self.send_write(slot, sent, version, key, value, effects);
    }

    pub(super) fn item_key(&self, id: WriteId, index: u32) -> Option<(Bytes, Version)> {
        let write = self.writes.all.get(id.0)?;
        write.change.pairs().get(index as usize).map(|(key, _)| (key.clone(), write.version))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::command::Command;
    use crate::ids::{LinkId, ReignId, Seq, SlaveId};
    use crate::machine::master::substitutes::STEPS_AT_ONCE;
    use crate::machine::master::{Config, Event};

    /// The most effects of one step. A key that is overwritten has a write and a drop for each of three slaves.
    const EFFECTS_MAX: usize = STEPS_AT_ONCE * 6 + 1;

    pub(in super::super) struct World {
        pub(in super::super) master: Master,
        /// The appends, in order.
        pub(in super::super) appended: VecDeque<(WriteId, usize)>,
        /// The keys and values of the last of them.
        pub(in super::super) last_appended: Vec<(Bytes, Bytes)>,
        replies: Vec<(Asker, Reply)>,
        /// How many writes each slave was sent that it has not acknowledged.
        sent: Vec<u64>,
        /// Which values were asked for in the last step, by their versions.
        pub(in super::super) read: Vec<u64>,
        pub(in super::super) now: Millis,
        tags: u64,
        seq: u64,
    }

    impl World {
        /// A reigning master with so many slaves, over the links from 0 on.
        pub(in super::super) fn new(slaves: u64) -> World {
            Self::with_room(slaves, u64::MAX)
        }

        /// The same with slaves that have room for so many bytes each.
        pub(in super::super) fn with_room(slaves: u64, room_bytes: u64) -> World {
            let mut world = World {
                master: Master::new(Config::default()),
                appended: VecDeque::new(),
                last_appended: Vec::new(),
                replies: Vec::new(),
                sent: vec![0; slaves as usize],
                read: Vec::new(),
                now: Millis(0),
                tags: 0,
                seq: 1,
            };
            world.step(Event::ReignBegan { version: Version::new(1, 1), id: ReignId(1) });
            for number in 0..slaves {
                let id = SlaveId::new(format!("s{number}")).unwrap();
                world.step(Event::SlaveJoined { id, link: LinkId(number), room_bytes });
            }
            world
        }

        pub(in super::super) fn step(&mut self, event: Event) {
            let mut effects = Vec::new();
            self.master.step(self.now, event, &mut effects);
            self.read.clear();
            assert!(effects.len() <= EFFECTS_MAX, "{} effects of one step", effects.len());
            for effect in effects {
                match effect {
                    Effect::Append { write, change, .. } => {
                        self.last_appended = change.pairs().to_vec();
                        self.appended.push_back((write, self.last_appended.len()));
                    }
                    Effect::Reply { to, reply } => self.replies.push((to, reply)),
                    Effect::SendWrite { link, .. } => self.sent[link.0 as usize] += 1,
                    Effect::SendRead { version, .. } => self.read.push(version.seq.0),
                    Effect::Joined { .. }
                    | Effect::NoSlot { .. }
                    | Effect::SlotFree { .. }
                    | Effect::SendDrop { .. }
                    | Effect::SendHoldingsNext { .. }
                    | Effect::ReadLog { .. }
                    | Effect::Witnessed { .. }
                    | Effect::Leaving { .. }
                    | Effect::Repair(_) => {}
                }
            }
        }

        /// A key that the log has.
        pub(in super::super) fn replay(&mut self, key: &[u8]) {
            self.seq += 1;
            self.master.replay_put(key, Version::new(1, self.seq), Place::default(), None);
        }

        /// Asks, and gives the request's tag.
        pub(in super::super) fn ask(&mut self, session: u64, command: Command) -> u64 {
            self.tags += 1;
            let asker = Asker { session: SessionId(session), tag: self.tags };
            self.step(Event::Request { asker, deadline: Millis(1000), command });
            self.tags
        }

        pub(in super::super) fn written(&mut self) {
            while self.appended.is_empty() && self.master.has_chores() {
                self.step(Event::Chore);
            }
            let (write, values) = self.appended.pop_front().expect("something is appended");
            self.seq += 1;
            let places = SmallVec::from_elem(Place::default(), values);
            self.step(Event::Written { write, version: Version::new(1, self.seq), places });
        }

        /// The seq of the last record that is written.
        pub(in super::super) fn last_seq(&self) -> Seq {
            Seq(self.seq)
        }

        /// Does all chores, and gives their number.
        pub(in super::super) fn chores(&mut self) -> usize {
            let mut pieces = 0;
            while self.master.has_chores() {
                self.step(Event::Chore);
                pieces += 1;
            }
            pieces
        }

        pub(in super::super) fn ack_all(&mut self, slave: u64) {
            let writes = std::mem::take(&mut self.sent[slave as usize]);
            self.step(Event::Acked { link: LinkId(slave), writes, room_bytes: u64::MAX });
        }

        pub(in super::super) fn answer(&self, tag: u64) -> Option<&Reply> {
            self.replies.iter().find(|(asker, _)| asker.tag == tag).map(|(_, reply)| reply)
        }

        fn version(&self, key: &str) -> Option<u64> {
            self.master.directory().get(key.as_bytes()).map(|entry| entry.version.seq.0)
        }
    }

    pub(in super::super) fn key(number: usize) -> Bytes {
        Bytes::from(format!("key{number}"))
    }

    pub(in super::super) fn put_many(keys: usize) -> Command {
        Command::PutMany { pairs: (0..keys).map(|number| (key(number), Bytes::from_static(b"v"))).collect() }
    }

    const KEYS: usize = 5000;

    #[test]
    fn a_record_of_many_keys_is_handled_in_pieces_and_in_the_order_of_the_log() {
        let mut world = World::new(3);
        let old = world.ask(1, Command::Put { key: key(KEYS - 1), value: Bytes::from_static(b"old") });
        world.written();
        let many = world.ask(1, put_many(KEYS));
        let own = world.ask(1, Command::Exists { keys: vec![key(7)] });
        world.chores();
        // A write of another session, later in the log.
        let later = world.ask(2, Command::Put { key: key(KEYS - 1), value: Bytes::from_static(b"later") });
        let (many_written, later_written) = (3, 4);
        world.written();
        world.written();
        assert_eq!(world.version("key0"), Some(many_written));
        assert_eq!(world.version(&format!("key{}", KEYS - 1)), Some(2), "the last key has its old value yet");
        assert_eq!(world.answer(own), None, "a session's own read waits for all of its write");
        assert!(world.chores() >= KEYS / STEPS_AT_ONCE - 2, "all at once");
        assert_eq!(world.version(&format!("key{}", KEYS - 2)), Some(many_written));
        assert_eq!(world.version(&format!("key{}", KEYS - 1)), Some(later_written));
        assert_eq!(world.answer(own), Some(&Reply::Count(1)));
        assert_eq!(world.answer(many), None, "nobody has acknowledged it");
        for slot in 0..3 {
            world.ack_all(slot);
        }
        world.chores();
        for tag in [old, many, later] {
            assert_eq!(world.answer(tag), Some(&Reply::Done));
        }
        assert_eq!(world.master.in_flight(), 0);
        let deleted = world.ask(3, Command::Delete { keys: (0..KEYS + 9).map(key).collect() });
        world.written();
        assert_eq!(world.answer(deleted), None);
        world.chores();
        assert_eq!(world.answer(deleted), Some(&Reply::Count(KEYS as u64)));
        assert!(world.master.directory().is_empty());
    }

    #[test]
    fn a_length_is_that_of_the_latest_value_and_of_the_sessions_own_write() {
        let mut world = World::new(1);
        let length = |world: &mut World, session| world.ask(session, Command::ValueLength { key: key(0) });
        let put = |world: &mut World, value| world.ask(1, Command::Put { key: key(0), value });
        let written = |world: &mut World, bytes| {
            let (write, _) = world.appended.pop_front().expect("something is appended");
            world.seq += 1;
            let places = SmallVec::from_elem(Place { bytes, ..Place::default() }, 1);
            world.step(Event::Written { write, version: Version::new(1, world.seq), places });
        };
        let none = length(&mut world, 2);
        put(&mut world, Bytes::from_static(b"short"));
        written(&mut world, 5);
        put(&mut world, Bytes::from_static(b"longer one"));
        let (own, others) = (length(&mut world, 1), length(&mut world, 2));
        assert_eq!(world.answer(own), None, "a session sees its own write");
        written(&mut world, 10);
        let answers = [none, others, own].map(|tag| world.answer(tag).cloned());
        assert_eq!(answers, [0, 5, 10].map(|bytes| Some(Reply::Count(bytes))));
        assert_eq!(world.master.counters().reads, 3);
    }

    #[test]
    fn a_record_that_was_refused_after_one_of_many_keys_is_refused_in_its_turn() {
        let mut world = World::new(1);
        let many = world.ask(1, put_many(KEYS));
        let refused = world.ask(1, Command::Put { key: key(0), value: Bytes::new() });
        world.chores();
        world.written();
        let (write, _) = world.appended.pop_front().expect("two were appended");
        let detail = "the disk is full".to_owned();
        world.step(Event::NotWritten { write, word: ErrorWord::ReadOnly, detail });
        assert_eq!(world.answer(refused), None);
        world.chores();
        assert!(matches!(world.answer(refused), Some(Reply::Error(_))));
        world.ack_all(0);
        world.chores();
        assert_eq!(world.answer(many), Some(&Reply::Done));
    }

    #[test]
    fn a_read_after_a_write_of_unknown_outcome_is_not_answered_with_the_earlier_value() {
        let mut world = World::new(1);
        let old = world.ask(1, Command::Put { key: key(0), value: Bytes::from_static(b"old") });
        world.written();
        world.ack_all(0);
        assert_eq!(world.answer(old), Some(&Reply::Done));
        let unknown = world.ask(1, Command::Put { key: key(0), value: Bytes::from_static(b"new") });
        let read = world.ask(1, Command::Get { key: key(0) });
        let (write, _) = world.appended.pop_front().expect("it was appended");
        let detail = "the log was moved".to_owned();
        world.step(Event::NotWritten { write, word: ErrorWord::Unknown, detail });
        let word = |tag| match world.answer(tag) {
            Some(Reply::Error(error)) => Some(error.word),
            _ => None,
        };
        assert_eq!((word(unknown), word(read)), (Some(ErrorWord::Unknown), Some(ErrorWord::Busy)));
        assert_eq!(world.master.in_flight(), 0);
    }

    /// Two of three slaves hold each key; the third one's acknowledgements alone make nothing done.
    #[test]
    fn a_lost_slave_is_substituted_in_pieces_and_its_acknowledgements_do_not_count() {
        let mut world = World::new(3);
        let many = world.ask(1, put_many(KEYS));
        world.written();
        world.chores();
        let tags: Vec<u64> = (0..3 * KEYS)
            .map(|number| {
                let tag = world.ask(2, Command::Put { key: key(number), value: Bytes::from_static(b"w") });
                world.written();
                tag
            })
            .collect();
        // All that slave 0 was sent it has acknowledged, and then it is gone.
        world.ack_all(0);
        world.chores();
        assert!(world.replies.is_empty());
        world.step(Event::SlaveLost { link: LinkId(0) });
        assert!(world.master.has_chores(), "all at once");
        world.step(Event::Chore);
        // Items that it shared with slave 1 are not done by the acknowledgement of slave 1, because slave 2 must have
        // them, too.
        world.ack_all(1);
        assert!(world.chores() >= KEYS / STEPS_AT_ONCE);
        assert!(world.replies.is_empty());
        world.ack_all(2);
        world.chores();
        let by_then = world.replies.len();
        // This leaves what slave 1 got instead of slave 0, after it had acknowledged the rest.
        world.ack_all(1);
        world.chores();
        assert!(0 < by_then && by_then < world.replies.len(), "{by_then}");
        for tag in tags.into_iter().chain([many]) {
            assert_eq!(world.answer(tag), Some(&Reply::Done));
        }
        assert_eq!((world.master.in_flight(), world.master.counters().substitutions > 0), (0, true));
    }
}
