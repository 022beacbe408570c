//! Reads in flight: one holder after another, then the log (`log_reads.rs`).
//!
//! A read is *bound* when it is accepted, or when the write of its own session that it waits for is resolved: to the
//! version that is the latest then, and to that version's place in the log. It is answered with that version, whatever is
//! written while it waits: a session's later write is never seen by its earlier read.

use super::expiry::ExpiryLook;
use super::hedges::Hedges;
use super::log_reads::LogReads;
use super::membership::SlotSet;
use super::read_deadlines::more_time_ms;
pub(super) use super::work::{CopyPurpose, Destination};
use super::work::{ExistCount, GatherKey, HeldRead, Work};
use super::{Asker, Effect, Entry, Master, ReadId, ReadKey, Slot};
use crate::command::{ErrorWord, Reply, TimeForm};
use crate::ids::{Millis, Stamp, UnixMillis, Version};
use crate::planted;
use crate::record;
use bytes::Bytes;
use slotmap::SlotMap;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// How many reads of short values in a row prefer the same slaves in a running master: a message to one more slave costs
/// more than a read in it, and a slave wakes up for each batch of reads that it has a part in.
pub const READS_IN_A_ROW: usize = 256;

/// Longer values are asked for in turn, so that several slaves send them at once, in bytes.
const SHORT_BYTES_MAX: u32 = 4 * 1024;

/// A value among many that is not longer is copied, or it would keep the buffer it was read into until all are there.
const COPIED_BYTES_MAX: usize = 4 * 1024;

/// What is told of a key that is not there when it is asked for when it expires.
const NO_KEY: i64 = -2;

/// What is told of one that does not expire.
const NO_EXPIRY: i64 = -1;

/// Why a read is refused that has waited for a write, and must not see a later one.
pub(super) fn overtaken() -> Reply {
    Reply::error(ErrorWord::Busy, "the key has expired meanwhile")
}

/// The reads in flight.
#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    pub(super) all: SlotMap<ReadKey, Read>,
    gathers: SlotMap<GatherKey, Gather>,
    /// Questions in the order in which they time out if nothing is long; answered ones stay until their time has come.
    pub(super) timeouts: VecDeque<(Millis, ReadId, u32)>,
    /// Those that were given more time when theirs had come.
    pub(super) extended: BinaryHeap<Reverse<(Millis, ReadId, u32)>>,
    /// Those that may be asked of a second holder.
    pub(super) hedges: Hedges,
    /// Those of them that are to be answered from the log.
    pub(super) log: LogReads,
    /// Reads that wait for a write of their own session.
    pub(super) waiting: usize,
    /// Counts the questions, which says whose turn it is.
    turn: usize,
    /// Whether the time of more reads has come than were moved on.
    pub(super) is_overdue: bool,
    /// When this process noticed last that it had been paused: what was asked before is late when it would be if it had
    /// been asked then.
    pub(super) restarted: Option<Millis>,
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
    pub(super) place: record::Place,
    pub(super) asked: SlotSet,
    /// Whether the directory named those who were asked.
    pub(super) is_asked_by_name: bool,
    /// Who of them was asked because the first one took long.
    pub(super) hedge: Option<Slot>,
    pub(super) tried: SlotSet,
    /// When the question times out.
    pub(super) due: Millis,
    /// Counts the questions, so that an old timeout does not end a new one.
    pub(super) attempt: u32,
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

impl Read {
    /// Whether no client waits for it.
    pub(super) fn is_repair(&self) -> bool {
        matches!(self.to, Destination::Repair { .. })
    }

    pub(super) fn has_short_value(&self) -> bool {
        self.place.bytes <= SHORT_BYTES_MAX
    }
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
    fn add_to_gather(
        &mut self,
        to: Destination,
        place: record::Place,
        bytes_max: usize,
    ) -> Result<(), Reply> {
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
            Some(_) | None => {
                self.start_read(now, Destination::Asker(asker), deadline, key, effects);
            }
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

    pub(super) fn exists(
        &mut self,
        asker: Asker,
        deadline: Millis,
        keys: Vec<Bytes>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(write) = self.last_unwritten_of_any(asker, &keys) {
            self.wait(write, HeldRead::Exists { asker, deadline, keys });
            return;
        }
        let mut left = usize::MAX;
        self.count_on(ExistCount::of(asker, deadline, keys), &mut left, effects);
    }

    /// Looks at up to `left` keys of a count, and gives the rest. Without a rest it is answered, or waits.
    pub(super) fn count_on(
        &mut self,
        mut count: ExistCount,
        left: &mut usize,
        effects: &mut Vec<Effect>,
    ) -> Option<ExistCount> {
        while let Some(key) = count.keys.as_slice().first() {
            if *left == 0 {
                return Some(count);
            }
            *left -= 1;
            let entry = self.directory.get(key);
            match self.look_at(entry.as_ref(), count.keys.as_slice(), (count.asker, count.deadline), effects)
            {
                ExpiryLook::Alive => {}
                ExpiryLook::Waits(write) => {
                    self.wait(write, HeldRead::Count(count));
                    return None;
                }
                ExpiryLook::Lost => {
                    effects.push(Effect::Reply { to: count.asker, reply: overtaken() });
                    return None;
                }
            }
            count.existing += u64::from(entry.is_some());
            count.keys.next();
        }
        self.counters.reads += 1;
        effects.push(Effect::Reply { to: count.asker, reply: Reply::Count(count.existing) });
        None
    }

    pub(super) fn key_count(&mut self, asker: Asker, effects: &mut Vec<Effect>) {
        if let Some(write) = self.writes.unwritten.last_of_session(asker.session) {
            self.wait(write, HeldRead::KeyCount { asker });
            return;
        }
        self.count_keys(asker, effects);
    }

    pub(super) fn count_keys(&mut self, asker: Asker, effects: &mut Vec<Effect>) {
        self.counters.reads += 1;
        effects.push(Effect::Reply { to: asker, reply: Reply::Count(self.directory.len() as u64) });
    }

    pub(super) fn value_length(
        &mut self,
        asker: Asker,
        deadline: Millis,
        key: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        match self.last_unwritten_of_any(asker, std::slice::from_ref(&key)) {
            Some(write) => self.wait(write, HeldRead::ValueLength { asker, deadline, key }),
            None => self.measure(asker, deadline, key, effects),
        }
    }

    /// Answers how long the value of `key` is: the directory knows.
    pub(super) fn measure(&mut self, asker: Asker, deadline: Millis, key: Bytes, effects: &mut Vec<Effect>) {
        let entry = self.directory.get(&key);
        match self.look_at(entry.as_ref(), std::slice::from_ref(&key), (asker, deadline), effects) {
            ExpiryLook::Alive => {}
            ExpiryLook::Waits(write) => {
                self.wait(write, HeldRead::ValueLength { asker, deadline, key });
                return;
            }
            ExpiryLook::Lost => {
                effects.push(Effect::Reply { to: asker, reply: overtaken() });
                return;
            }
        }
        let bytes = entry.map_or(0, |entry| entry.place.bytes);
        self.counters.reads += 1;
        effects.push(Effect::Reply { to: asker, reply: Reply::Count(u64::from(bytes)) });
    }

    pub(super) fn time_to_live(
        &mut self,
        asker: Asker,
        deadline: Millis,
        (key, form): (Bytes, TimeForm),
        effects: &mut Vec<Effect>,
    ) {
        match self.last_unwritten_of_any(asker, std::slice::from_ref(&key)) {
            Some(write) => self.wait(write, HeldRead::TimeToLive { asker, deadline, key, form }),
            None => self.tell_time(asker, deadline, (key, form), effects),
        }
    }

    /// Answers when a key expires: the directory knows.
    pub(super) fn tell_time(
        &mut self,
        asker: Asker,
        deadline: Millis,
        (key, form): (Bytes, TimeForm),
        effects: &mut Vec<Effect>,
    ) {
        let entry = self.directory.get(&key);
        match self.look_at(entry.as_ref(), std::slice::from_ref(&key), (asker, deadline), effects) {
            ExpiryLook::Alive => {}
            ExpiryLook::Waits(write) => {
                self.wait(write, HeldRead::TimeToLive { asker, deadline, key, form });
                return;
            }
            ExpiryLook::Lost => {
                effects.push(Effect::Reply { to: asker, reply: overtaken() });
                return;
            }
        }
        self.counters.reads += 1;
        let reply = self.told_time(entry.map(|entry| entry.expires), form);
        effects.push(Effect::Reply { to: asker, reply });
    }

    /// What is told of a key that expires then, if it does; `None` for one that is not there.
    pub(super) fn told_time(&self, expires: Option<Option<UnixMillis>>, form: TimeForm) -> Reply {
        Reply::Integer(match expires {
            None => NO_KEY,
            Some(None) => NO_EXPIRY,
            Some(Some(expires)) => form.tell(self.time, expires),
        })
    }

    /// Who waits for a read; `None` when no client does.
    pub(super) fn asker_of(&self, to: Destination) -> Option<Asker> {
        match to {
            Destination::Asker(asker) => Some(asker),
            Destination::Part(gather, _) => self.reads.gathers.get(gather).map(|gather| gather.asker),
            Destination::Update(_) | Destination::Wanted(..) | Destination::Repair { .. } => None,
        }
    }

    pub(super) fn start_read(
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
        planted!(ExpiredUnwritten => {
            if self.is_expired(&entry) {
                self.answer(to, Reply::NotFound, effects);
                return;
            }
        });
        let Some(asker) = self.asker_of(to) else { return };
        match self.look_at(Some(&entry), std::slice::from_ref(&key), (asker, deadline), effects) {
            ExpiryLook::Alive => {}
            ExpiryLook::Waits(write) => {
                self.wait(write, HeldRead::Expired { to, deadline, key });
                return;
            }
            ExpiryLook::Lost => {
                self.answer(to, overtaken(), effects);
                return;
            }
        }
        if let Err(refusal) = self.reads.add_to_gather(to, entry.place, self.config.gather_bytes_max) {
            self.answer(to, refusal, effects);
            return;
        }
        self.read_entry(now, to, deadline, key, entry, effects);
    }

    /// Begins the read of a key, bound to what its entry is now.
    pub(super) fn read_entry(
        &mut self,
        now: Millis,
        to: Destination,
        deadline: Millis,
        key: Bytes,
        entry: Entry,
        effects: &mut Vec<Effect>,
    ) {
        let (wanted, place) = (entry.version, entry.place);
        let deadline = deadline.plus(more_time_ms(u64::from(place.bytes)));
        let (asked, tried, due) = (SlotSet::EMPTY, SlotSet::EMPTY, now);
        let (is_asked_by_name, hedge) = (false, None);
        let read =
            Read { to, key, deadline, wanted, place, asked, is_asked_by_name, hedge, tried, due, attempt: 0 };
        self.reads.hedges.earn(place.bytes, self.config.hedge_percent);
        let id = ReadId(self.reads.all.insert(read));
        self.ask_about(now, id, Some(entry), effects);
    }

    /// Asks the next holder, or all slaves that may hold the key unbeknown to us, or the log.
    pub(super) fn ask(&mut self, now: Millis, id: ReadId, effects: &mut Vec<Effect>) {
        let Some(read) = self.reads.all.get(id.0) else { return };
        let entry = self.directory.get(&read.key);
        self.ask_about(now, id, entry, effects);
    }

    /// The same with the entry of the key.
    fn ask_about(&mut self, now: Millis, id: ReadId, entry: Option<Entry>, effects: &mut Vec<Effect>) {
        let Some(read) = self.reads.all.get_mut(id.0) else { return };
        if read.attempt > 0 {
            self.counters.read_retries += u64::from(!read.is_repair());
            if now >= read.deadline {
                let reply = Reply::error(ErrorWord::Busy, "no holder of the key answered in time");
                self.end_read(id, reply, effects);
                return;
            }
        }
        read.attempt += 1;
        let live = self.members.live();
        let is_bound_to = |entry: &Entry| entry.version == read.wanted || planted!(ReadSeesLaterWrite);
        let entry = entry.filter(is_bound_to);
        let known = entry.map_or(SlotSet::EMPTY, |entry| entry.holders.intersection(live));
        let holders = known.without(read.tried);
        let asked = if holders.is_empty() {
            let unreported = self.members.unreported().without(read.tried);
            // A known holder that failed us does not make the others likelier: only with none known ask all. A version
            // that is superseded has no holder for certain: the log has it.
            if entry.is_some() && known.is_empty() && !unreported.is_empty() {
                self.counters.asked_all += u64::from(!read.is_repair());
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
            let turn = if read.has_short_value() {
                self.reads.turn / self.config.reads_in_a_row
            } else {
                self.reads.turn
            };
            among.nth(turn % among.len()).into_iter().collect()
        };
        read.asked = asked;
        read.is_asked_by_name = !holders.is_empty();
        read.hedge = None;
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
        for slot in asked.iter() {
            self.send_read(id, slot, effects);
        }
    }

    /// Asks a slave for the value of a read.
    pub(super) fn send_read(&self, id: ReadId, slot: Slot, effects: &mut Vec<Effect>) {
        let Some(read) = self.reads.all.get(id.0) else { return };
        let Some(link) = self.members.link_of(slot) else { return };
        let (version, key, bytes) = (read.wanted, read.key.clone(), read.place.bytes);
        let reign = self.reigns.id_of(version.epoch);
        effects.push(Effect::SendRead { link, read: id, version, reign, key, bytes });
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
        // That one who was known to hold it does so is no news.
        if !read.is_asked_by_name {
            let key = read.key.clone();
            self.held(slot, &key, version);
        }
        self.note_answer_time(now, slot, id);
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
                if !read.is_repair() {
                    let (key, version) = (read.key.clone(), read.wanted);
                    self.put_back(&key, version, &value, effects);
                }
                self.end_read(id, Reply::Value(value), effects);
            }
            Err(detail) => self.end_read(id, Reply::error(ErrorWord::Bad, detail), effects),
        }
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
            match read.to {
                Destination::Repair { bytes, purpose } => {
                    self.repair_read((read.key, read.wanted), (bytes, purpose), reply, effects);
                }
                Destination::Update(update) => self.fetched(update, read.wanted, reply, effects),
                Destination::Wanted(update, place) => self.wanted_came(update, place, reply, effects),
                to @ (Destination::Asker(_) | Destination::Part(..)) => self.answer(to, reply, effects),
            }
        }
    }

    pub(super) fn answer(&mut self, to: Destination, reply: Reply, effects: &mut Vec<Effect>) {
        match to {
            // What they read comes to `end_read`.
            Destination::Repair { .. } | Destination::Update(_) | Destination::Wanted(..) => {}
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
                    | Reply::Integer(_)
                    | Reply::Page { .. }
                    | Reply::Many(_)
                    | Reply::Versions(_)
                    | Reply::Encoded(_)
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
