//! Reads in flight: one holder after another, then the log (`log_reads.rs`).
//!
//! A read is *bound* when it is accepted, or when the write of its own session that it waits for is resolved: to the
//! version that is the latest then, and to that version's place in the log. It is answered with that version, whatever is
//! written while it waits: a session's later write is never seen by its earlier read.

use super::hash::hash_bytes;
use super::log_reads::{LogReads, EXPIRED_AT_ONCE};
use super::membership::{Member, SlotSet};
use super::placement::{acks_needed, choose};
use super::work::{GatherKey, HeldRead, Work};
use super::{payload, Asker, Change, Effect, Entry, Master, ReadId, ReadKey, Slot, WriteId};
use crate::command::{ErrorWord, Reply};
use crate::ids::{Millis, Stamp, Version};
use crate::planted;
use crate::record::Place;
use bytes::Bytes;
use slotmap::SlotMap;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// How long others are preferred to a slave that let a read time out, in milliseconds.
const SLOW_MS: u64 = 1000;

/// In a write of more keys than this none is searched for: who waited for it reads like anybody else.
const PAIRS_SEARCHED_MAX: usize = 16;

/// So many bytes more of a value, or in front of it on the same link, give a read a millisecond more: that is 8 MiB in a
/// second, less than a network of 100 Mbit/s moves.
const BYTES_PER_MS: u64 = 8 * 1024;

/// A value among many that is not longer is copied, or it would keep the buffer it was read into until all are there.
const COPIED_BYTES_MAX: usize = 4 * 1024;

/// The reads in flight.
#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    all: SlotMap<ReadKey, Read>,
    gathers: SlotMap<GatherKey, Gather>,
    /// Questions in the order in which they time out if nothing is long; answered ones stay until their time has come.
    timeouts: VecDeque<(Millis, ReadId, u32)>,
    /// Those that were given more time when theirs had come.
    extended: BinaryHeap<Reverse<(Millis, ReadId, u32)>>,
    /// Those of them that are to be answered from the log.
    pub(super) log: LogReads,
    /// Reads that wait for a write of their own session.
    waiting: usize,
    turn: usize,
    /// Whether the time of more reads has come than were moved on.
    pub(super) is_overdue: bool,
    /// When this process noticed last that it had been paused: what was asked before is late when it would be if it had
    /// been asked then.
    restarted: Option<Millis>,
}

/// The read of one key.
#[derive(Clone, Debug)]
pub(super) struct Read {
    to: Destination,
    pub(super) key: Bytes,
    pub(super) deadline: Millis,
    /// The version that it is bound to.
    pub(super) wanted: Version,
    /// Where that stands in the log.
    pub(super) place: Place,
    asked: SlotSet,
    tried: SlotSet,
    /// When the question times out.
    due: Millis,
    /// Counts the questions, so that an old timeout does not end a new one.
    attempt: u32,
}

#[derive(Clone, Copy, Debug)]
enum Destination {
    Asker(Asker),
    Part(GatherKey, usize),
}

/// A read of several keys that is answered as one.
#[derive(Clone, Debug)]
pub(super) struct Gather {
    asker: Asker,
    values: Vec<Option<Bytes>>,
    /// How long the values are in all.
    bytes: usize,
    open: usize,
    failed: Option<Reply>,
}

impl Reads {
    pub(super) fn len(&self) -> usize {
        self.all.len() + self.waiting
    }

    pub(super) fn get(&self, id: ReadId) -> Option<&Read> {
        self.all.get(id.0)
    }

    pub(super) fn contains(&self, id: ReadId) -> bool {
        self.all.contains_key(id.0)
    }

    /// Counts a value among those that are read together. How long they are is known for certain only here, where they
    /// are bound: writes of any length may have been in front of them.
    fn add_to_gather(&mut self, to: Destination, place: Place, bytes_max: usize) -> Result<(), Reply> {
        let Destination::Part(gather, _) = to else { return Ok(()) };
        let Some(gather) = self.gathers.get_mut(gather) else { return Ok(()) };
        gather.bytes += place.bytes as usize;
        if gather.bytes <= bytes_max || gather.values.len() == 1 {
            return Ok(());
        }
        let why = format!("the values have more than {bytes_max} bytes in all (--max-pipeline-bytes)");
        Err(Reply::error(ErrorWord::Bad, why))
    }
}

impl Master {
    pub(super) fn get(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        key: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        planted!(ReadOfUnwritten => {
            if let Some(value) = self.writes.unwritten_value(&key) {
                self.answer(Destination::Asker(asker), Reply::Value(value), effects);
                return;
            }
        });
        match self.last_unwritten_of_any(asker, std::slice::from_ref(&key)) {
            Some(write) if !planted!(ReadOvertakesOwnWrite) => {
                self.wait(write, HeldRead::Get { asker, deadline, key })
            }
            Some(_) | None => self.start_read(now, Destination::Asker(asker), deadline, key, effects),
        }
    }

    pub(super) fn get_many(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        keys: Vec<Bytes>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(write) = self.last_unwritten_of_any(asker, &keys) {
            self.wait(write, HeldRead::GetMany { asker, deadline, keys });
            return;
        }
        self.start_gather(now, asker, deadline, keys, effects);
    }

    fn start_gather(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        keys: Vec<Bytes>,
        effects: &mut Vec<Effect>,
    ) {
        let gather = self.begin_gather(asker, keys.len());
        for (index, key) in keys.into_iter().enumerate() {
            self.read_part(now, (gather, index), deadline, key, effects);
        }
    }

    fn begin_gather(&mut self, asker: Asker, keys: usize) -> GatherKey {
        self.reads.gathers.insert(Gather {
            asker,
            values: vec![None; keys],
            bytes: 0,
            open: keys,
            failed: None,
        })
    }

    /// A read of several keys, to be done in slices.
    pub(super) fn gather(&mut self, asker: Asker, deadline: Millis, keys: Vec<Bytes>) -> Work {
        let gather = self.begin_gather(asker, keys.len());
        Work::Gather { asker, deadline, gather, next: 0, keys: keys.into_iter() }
    }

    /// Begins the read of one of several keys.
    pub(super) fn read_part(
        &mut self,
        now: Millis,
        (gather, index): (GatherKey, usize),
        deadline: Millis,
        key: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        self.start_read(now, Destination::Part(gather, index), deadline, key, effects);
    }

    pub(super) fn exists(&mut self, asker: Asker, keys: Vec<Bytes>, effects: &mut Vec<Effect>) {
        if let Some(write) = self.last_unwritten_of_any(asker, &keys) {
            self.wait(write, HeldRead::Exists { asker, keys });
            return;
        }
        self.count_existing(asker, keys, effects);
    }

    fn count_existing(&mut self, asker: Asker, keys: Vec<Bytes>, effects: &mut Vec<Effect>) {
        let count = self.count_in_directory(keys.into_iter());
        self.counters.reads += 1;
        effects.push(Effect::Reply { to: asker, reply: Reply::Count(count) });
    }

    pub(super) fn count_in_directory(&self, keys: impl Iterator<Item = Bytes>) -> u64 {
        keys.filter(|key| self.directory.get(key).is_some()).count() as u64
    }

    pub(super) fn key_count(&mut self, asker: Asker, effects: &mut Vec<Effect>) {
        if let Some(write) = self.writes.unwritten.last_of_session(asker.session) {
            self.wait(write, HeldRead::KeyCount { asker });
            return;
        }
        self.count_keys(asker, effects);
    }

    fn count_keys(&mut self, asker: Asker, effects: &mut Vec<Effect>) {
        self.counters.reads += 1;
        effects.push(Effect::Reply { to: asker, reply: Reply::Count(self.directory.len() as u64) });
    }

    /// The last write of the same session that may change any of `keys`: of many keys, its last one of all.
    pub(super) fn last_unwritten_of_any(&self, asker: Asker, keys: &[Bytes]) -> Option<WriteId> {
        let unwritten = &self.writes.unwritten;
        if keys.len() > self.config.slice_keys {
            return unwritten.last_of_session(asker.session);
        }
        unwritten.last_of_keys(asker.session, keys.iter().map(|key| hash_bytes(key)))
    }

    pub(super) fn wait(&mut self, write: WriteId, waiting: HeldRead) {
        self.reads.waiting += 1;
        self.writes.wait(write, waiting);
    }

    /// The write that held this back is resolved. What is read now is read at this place of the log, after that
    /// write and in front of all that the session asked for later: whoever pipelines sees its operations in order. What
    /// concerns several keys is given back, to be done in slices at this very place.
    pub(super) fn resume(
        &mut self,
        now: Millis,
        waiting: HeldRead,
        written: Option<&Change>,
        effects: &mut Vec<Effect>,
    ) -> Option<Work> {
        self.reads.waiting -= 1;
        match waiting {
            HeldRead::Get { asker, deadline, key } => {
                let to = Destination::Asker(asker);
                match written.and_then(|change| value_in(change, &key)) {
                    Some(value) => self.answer(to, Reply::Value(value), effects),
                    None => self.start_read(now, to, deadline, key, effects),
                }
            }
            HeldRead::GetMany { asker, deadline, keys } => return Some(self.gather(asker, deadline, keys)),
            HeldRead::Exists { asker, keys } => {
                return Some(Work::Count { asker, keys: keys.into_iter(), existing: 0 });
            }
            HeldRead::KeyCount { asker } => self.count_keys(asker, effects),
        }
        None
    }

    /// What became of the write that held this back nobody knows.
    pub(super) fn give_up(&mut self, waiting: &HeldRead, effects: &mut Vec<Effect>) {
        self.reads.waiting -= 1;
        let (HeldRead::Get { asker: to, .. }
        | HeldRead::GetMany { asker: to, .. }
        | HeldRead::Exists { asker: to, .. }
        | HeldRead::KeyCount { asker: to }) = *waiting;
        let reply = Reply::error(ErrorWord::Busy, "what became of the write in front of this is unknown");
        effects.push(Effect::Reply { to, reply });
    }

    fn start_read(
        &mut self,
        now: Millis,
        to: Destination,
        deadline: Millis,
        key: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.directory.get(&key) else {
            self.answer(to, Reply::NotFound, effects);
            return;
        };
        let (wanted, place) = (entry.version, entry.place);
        if let Err(refusal) = self.reads.add_to_gather(to, place, self.config.gather_bytes_max) {
            self.answer(to, refusal, effects);
            return;
        }
        let deadline = deadline.plus(more_time_ms(u64::from(place.bytes)));
        let (asked, tried, due) = (SlotSet::EMPTY, SlotSet::EMPTY, now);
        let read = Read { to, key, deadline, wanted, place, asked, tried, due, attempt: 0 };
        let id = ReadId(self.reads.all.insert(read));
        self.ask(now, id, effects);
    }

    /// Asks the next holder, or all slaves that may hold the key unbeknown to us, or the log.
    fn ask(&mut self, now: Millis, id: ReadId, effects: &mut Vec<Effect>) {
        let Some(read) = self.reads.all.get_mut(id.0) else { return };
        if read.attempt > 0 {
            self.counters.read_retries += 1;
            if now >= read.deadline {
                let reply = Reply::error(ErrorWord::Busy, "no holder of the key answered in time");
                self.end_read(id, reply, effects);
                return;
            }
        }
        read.attempt += 1;
        let live = self.members.live();
        let is_bound_to = |entry: &&Entry| entry.version == read.wanted || planted!(ReadSeesLaterWrite);
        let entry = self.directory.get(&read.key).filter(is_bound_to);
        let known = entry.map_or(SlotSet::EMPTY, |entry| entry.holders.intersection(live));
        let holders = known.without(read.tried);
        let asked = if holders.is_empty() {
            let unreported = self.members.unreported().without(read.tried);
            // A known holder that failed us does not make the others likelier: only with none known ask all. A version
            // that is superseded has no holder for certain: the log has it.
            if entry.is_some() && known.is_empty() && !unreported.is_empty() {
                self.counters.asked_all += 1;
                unreported
            } else {
                SlotSet::EMPTY
            }
        } else {
            self.reads.turn = self.reads.turn.wrapping_add(1);
            let quick: SlotSet = holders
                .iter()
                .filter(|slot| self.members.get(*slot).is_some_and(|member| member.slow_until <= now))
                .collect();
            let among = if quick.is_empty() { holders } else { quick };
            among.nth(self.reads.turn % among.len()).into_iter().collect()
        };
        read.asked = asked;
        if asked.is_empty() {
            planted!(MissingMeansNotFound => {
                self.end_read(id, Reply::NotFound, effects);
                return;
            });
            let place = read.place;
            self.read_from_log(now, id, place, effects);
            return;
        }
        let bytes = read.place.bytes;
        let soonest = now.plus(self.config.read_timeout_ms);
        read.due = soonest.plus(more_time_ms(u64::from(bytes)));
        self.reads.timeouts.push_back((soonest, id, read.attempt));
        let reign = self.reigns.id_of(read.wanted.epoch);
        for slot in asked.iter() {
            let Some(link) = self.members.link_of(slot) else { continue };
            let (version, key) = (read.wanted, read.key.clone());
            effects.push(Effect::SendRead { link, read: id, version, reign, key, bytes });
        }
    }

    pub(super) fn value(
        &mut self,
        now: Millis,
        slot: Slot,
        id: ReadId,
        stamp: Stamp,
        value: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let version = stamp.version;
        let Some(read) = self.reads.all.get(id.0) else { return };
        // A version of another reign of that epoch is of another time line.
        if !self.reigns.is_ours(stamp) || (version != read.wanted && !planted!(ReadSeesLaterWrite)) {
            self.missing(now, slot, id, effects);
            return;
        }
        let key = read.key.clone();
        self.held(slot, &key, version);
        self.end_read(id, Reply::Value(value), effects);
    }

    pub(super) fn missing(&mut self, now: Millis, slot: Slot, id: ReadId, effects: &mut Vec<Effect>) {
        let Some(read) = self.reads.all.get_mut(id.0) else { return };
        if !read.asked.remove(slot) {
            return;
        }
        read.tried.insert(slot);
        let (wanted, key, done) = (read.wanted, read.key.clone(), read.asked.is_empty());
        // What is missing may be on its way after the question: put back for another read. A write in front of it
        // would have been refused by now, before the answer. Looked for only where it matters: much may be under way.
        let entry = self.directory.get(&key);
        let is_holder = entry.is_some_and(|entry| entry.version == wanted && entry.holders.contains(slot));
        if is_holder && !self.is_under_way(slot, &key, wanted) {
            self.not_held(slot, &key, wanted);
        }
        if done {
            self.ask(now, id, effects);
        }
    }

    pub(super) fn log_read(
        &mut self,
        now: Millis,
        id: ReadId,
        result: Result<Bytes, String>,
        effects: &mut Vec<Effect>,
    ) {
        self.log_answered(now, id, effects);
        let Some(read) = self.reads.all.get(id.0) else { return };
        match result {
            Ok(value) => {
                let (key, version) = (read.key.clone(), read.wanted);
                self.put_back(&key, version, &value, effects);
                self.end_read(id, Reply::Value(value), effects);
            }
            Err(detail) => self.end_read(id, Reply::error(ErrorWord::Bad, detail), effects),
        }
    }

    /// Sends a value that came from the log to as many slaves as lack a copy, if it is still the latest.
    fn put_back(&mut self, key: &Bytes, version: Version, value: &Bytes, effects: &mut Vec<Effect>) {
        let live = self.members.live();
        let Some(entry) = self.directory.get(key).filter(|entry| entry.version == version) else { return };
        let lacking = acks_needed(live.len()).saturating_sub(entry.holders.intersection(live).len());
        let among = if value.len() <= self.config.value_max {
            self.with_room(payload(key, value)).without(entry.holders).without(self.behind_on_copies())
        } else {
            SlotSet::EMPTY
        };
        let hash = hash_bytes(key);
        let chosen = choose(self.config.placement, &self.members, among, lacking, hash, &mut self.random);
        self.copy_to(chosen, key, version, value, effects);
    }

    /// The slaves that already owe acknowledgements for as many bytes as the log may be read at a time. Nobody waits for
    /// a copy, so nothing else would bound what reads put into their links.
    fn behind_on_copies(&self) -> SlotSet {
        let window_bytes = self.config.log_window_bytes;
        let is_behind = |member: &Member| member.unacked_bytes() >= window_bytes;
        self.members.iter().filter(|(_, member)| is_behind(member)).map(|(slot, _)| slot).collect()
    }

    /// The question of a read waits for `bytes_in_front` to come over the same link: it has the time that they need, too.
    pub fn read_waits(&mut self, now: Millis, id: ReadId, bytes_in_front: u64) {
        let Some(read) = self.reads.all.get_mut(id.0).filter(|read| !read.asked.is_empty()) else { return };
        let more_ms = more_time_ms(bytes_in_front + u64::from(read.place.bytes));
        read.due = now.plus(self.config.read_timeout_ms + more_ms).max(read.due);
        read.deadline = read.deadline.max(read.due);
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

    /// The reads in flight, the oldest last.
    pub(super) fn reads_in_flight(&self) -> Vec<ReadId> {
        let mut reads: Vec<ReadId> = self.reads.all.keys().map(ReadId).collect();
        reads.reverse();
        reads
    }

    pub(super) fn end_read(&mut self, id: ReadId, reply: Reply, effects: &mut Vec<Effect>) {
        if let Some(read) = self.reads.all.remove(id.0) {
            self.reads.log.forget(id, read.deadline);
            self.answer(read.to, reply, effects);
        }
    }

    fn answer(&mut self, to: Destination, reply: Reply, effects: &mut Vec<Effect>) {
        match to {
            Destination::Asker(asker) => {
                self.counters.reads += 1;
                effects.push(Effect::Reply { to: asker, reply });
            }
            Destination::Part(gather, index) => {
                let Some(all) = self.reads.gathers.get_mut(gather) else { return };
                match reply {
                    Reply::Value(value) if value.len() <= COPIED_BYTES_MAX => {
                        all.values[index] = Some(Bytes::copy_from_slice(&value));
                    }
                    Reply::Value(value) => all.values[index] = Some(value),
                    Reply::NotFound => {}
                    other @ (Reply::Done
                    | Reply::Values(_)
                    | Reply::Count(_)
                    | Reply::Text(_)
                    | Reply::Error(_)) => all.failed = Some(other),
                }
                all.open -= 1;
                if all.open > 0 {
                    return;
                }
                let Some(all) = self.reads.gathers.remove(gather) else { return };
                self.counters.reads += 1;
                let reply = all.failed.unwrap_or(Reply::Values(all.values));
                effects.push(Effect::Reply { to: all.asker, reply });
            }
        }
    }
}

/// How much longer `bytes` may take than nothing, in milliseconds.
fn more_time_ms(bytes: u64) -> u64 {
    bytes / BYTES_PER_MS
}

/// The value that `change` gives to `key`, if that is found at once: many reads may wait for one write of many keys.
fn value_in(change: &Change, key: &Bytes) -> Option<Bytes> {
    match change {
        Change::Put(pairs) if pairs.len() > PAIRS_SEARCHED_MAX => None,
        Change::Put(pairs) => pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone()),
        Change::Delete(_) => None,
    }
}
