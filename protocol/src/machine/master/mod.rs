//! The master machine: the directory, the active slaves, the writes and reads in flight.
//!
//! Owns the rules of replication of the *serving* primary and the directory that a standby keeps by replay. Knows nothing
//! of sockets or of the log's file. It does not decide whether this master reigns: the machine of the reign does
//! (`machine/reign/`). Requests come only through the front, which is told the master's stance, and slaves join only an
//! announced reign.
//!
//! A write is **accepted** (admitted, not yet in the log), **written** (in the log, durable under `--fsync always`;
//! this is the commit point: from here reads may see it), **replicated** (sent to its slaves), and **done** (enough
//! slaves acknowledged). See `docs/ARCHITECTURE.md`, *How a write and a read go*.

mod acks;
mod answer_time;
#[cfg(test)]
mod bench;
mod census;
mod copies;
mod directory;
mod expiries;
mod expiry;
mod hash;
mod hedges;
mod keyspace;
mod latest;
mod leaving;
mod log_reads;
mod membership;
mod outlook;
mod placement;
mod read_deadlines;
mod reads;
mod rebalance;
mod reigns;
mod repair;
mod room;
mod scripts;
mod session_order;
mod slices;
mod slots;
mod substitutes;
mod transactions;
mod unwritten;
mod updates;
mod work;
mod writes;

pub use acks::{CopyCount, CopyCountError};
pub use census::{Census, Lacking};
pub use directory::{Directory, Entry};
pub use leaving::Leaving;
pub use membership::{Slot, SlotSet, SLAVES_MAX};
pub use placement::Placement;
pub use reads::READS_IN_A_ROW;
pub use rebalance::Moved;
pub use reigns::{ReignRecord, Reigns, Testimony};
pub use repair::{RepairCause, RepairNews};
pub use slices::SLICE_KEYS;

use super::cluster_clock::ClusterClock;
use crate::command::{Command, ErrorWord, Reply};
use crate::ids::{LinkId, Millis, Reign, ReignId, Seq, SessionId, SlaveId, Stamp, UnixMillis, Version};
use crate::planted;
use crate::record::{FileNumber, Place};
use bytes::Bytes;
use expiry::Expiring;
use keyspace::Sought;
use leaving::LeavingSlaves;
use membership::Membership;
use placement::Random;
use reads::Reads;
use rebalance::Rebalance;
use repair::Repair;
use room::payload;
use scripts::Scripts;
use slices::Slices;
use slotmap::{new_key_type, Key as _, KeyData};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;
use updates::Lines;
use work::{DistinctPairs, KeyScan};
use writes::Writes;

new_key_type! {
    struct WriteKey;
    struct ReadKey;
}

/// How many entries one chore checks or frees.
const CHORE_ENTRIES: usize = 4096;

/// Names a write from its acceptance until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(WriteKey);

/// Names a read while it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(ReadKey);

impl ReadId {
    /// The number under which the read travels.
    pub fn tag(self) -> u64 {
        self.0.data().as_ffi()
    }

    /// The read that travels under `tag`. A number that was never given out names no read.
    pub fn from_tag(tag: u64) -> Self {
        ReadId(KeyData::from_ffi(tag).into())
    }
}

/// Who is to get an answer: a session, and the place of the request in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The session that the request came over.
    pub session: SessionId,
    /// The session's own number for the request.
    pub tag: u64,
}

/// What a write changes: one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These keys get these values.
    Put(SmallVec<[(Bytes, Bytes); 1]>),
    /// These keys are removed.
    Delete(SmallVec<[Bytes; 1]>),
    /// Both, or values that expire at different times.
    Apply(Box<MixedChange>),
}

/// What a transaction changes. No key stands twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MixedChange {
    /// These keys get these values.
    pub pairs: SmallVec<[(Bytes, Bytes); 1]>,
    /// When each of them expires, if it does, in the order of the pairs.
    pub expires: Vec<Option<UnixMillis>>,
    /// These keys are removed.
    pub deleted: Vec<Bytes>,
}

impl Change {
    /// The keys that get values, and the values.
    pub fn pairs(&self) -> &[(Bytes, Bytes)] {
        match self {
            Change::Put(pairs) => pairs,
            Change::Delete(_) => &[],
            Change::Apply(mixed) => &mixed.pairs,
        }
    }

    /// The keys that are removed.
    pub fn deleted(&self) -> &[Bytes] {
        match self {
            Change::Put(_) => &[],
            Change::Delete(keys) => keys,
            Change::Apply(mixed) => &mixed.deleted,
        }
    }

    /// How many keys there are. One that a deletion names twice counts twice.
    pub fn key_count(&self) -> usize {
        self.pairs().len() + self.deleted().len()
    }

    /// Each of its keys, those with values first.
    fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.pairs().iter().map(|(key, _)| key).chain(self.deleted())
    }

    /// When the value at `index` expires, if it does; `common` is the time of those that have none of their own.
    pub fn expires(&self, index: usize, common: Option<UnixMillis>) -> Option<UnixMillis> {
        match self {
            Change::Put(_) | Change::Delete(_) => common,
            Change::Apply(mixed) => mixed.expires.get(index).copied().flatten(),
        }
    }
}

/// The settings of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How slaves are chosen.
    pub placement: Placement,
    /// How many slaves must acknowledge a write, and hold a key.
    pub copies: CopyCount,
    /// Fewer active slaves than this refuse writes. At least 1.
    pub slaves_min: usize,
    /// How long one holder may take to answer a read, in milliseconds.
    pub read_timeout_ms: u64,
    /// Seeds random placement and the directory's hash.
    pub seed: u64,
    /// Whether the log is synced before a write counts as written. If so, a slave that has seen a version of this reign
    /// proves that the log once held it.
    pub durable: bool,
    /// The longest value that slaves take, in bytes. The log may hold longer ones, if this was once higher.
    pub value_max: usize,
    /// How many bytes of values may be on their way from the log at once, unless it is one value alone.
    pub log_window_bytes: u64,
    /// How many keys of requests and records are processed in one step.
    pub slice_keys: usize,
    /// The longest total of values that one request reads, in bytes.
    pub gather_bytes_max: usize,
    /// So many reads of short values in a row prefer the same slaves. At least 1.
    pub reads_in_a_row: usize,
    /// How many bytes repair copies in a second, as room is counted. 0 for no repair.
    pub repair_bytes_per_second: u64,
    /// So many percent of the bytes that are read may be asked of a second holder, too, when the first one takes longer
    /// than is usual. 0 for none.
    pub hedge_percent: u64,
    /// How long this thread has computed: a script that takes far longer than its steps should is cut off by it. `None` where
    /// time does not pass within a step.
    pub cpu_time: Option<fn() -> Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            placement: Placement::Hash,
            copies: CopyCount::Half,
            slaves_min: 1,
            read_timeout_ms: 200,
            seed: 0,
            durable: true,
            value_max: usize::MAX,
            log_window_bytes: 64 << 20,
            slice_keys: SLICE_KEYS,
            gather_bytes_max: usize::MAX,
            reads_in_a_row: 1,
            repair_bytes_per_second: 0,
            hedge_percent: 0,
            cpu_time: None,
        }
    }
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// This master is the primary from now on: `version` is that of the reign's EPOCH record.
    ReignBegan {
        /// Epoch and place of the EPOCH record.
        version: Version,
        /// The identity of the reign, as its EPOCH record has it.
        id: ReignId,
    },
    /// This master is a standby from now on. Only when [`Master::in_flight`] is 0.
    ReignEnded,
    /// A client asks for something, and the front lets it through: this master serves.
    Request {
        /// Who is to get the answer.
        asker: Asker,
        /// When a read gives up.
        deadline: Millis,
        /// What the request is.
        command: Command,
    },
    /// A slave accepted the reign.
    SlaveJoined {
        /// The name of the slave.
        id: SlaveId,
        /// The link that it came over.
        link: LinkId,
        /// Bytes it can take; `u64::MAX` for no limit.
        room_bytes: u64,
    },
    /// A slave's link is gone, or the slave was removed.
    SlaveLost {
        /// The link that is gone.
        link: LinkId,
    },
    /// A slave that was removed comes from another process than then: it is wanted again.
    SlaveStartedAnew {
        /// The name of the slave.
        id: SlaveId,
    },
    /// A slave acknowledged writes.
    Acked {
        /// Over which link it said so.
        link: LinkId,
        /// How many further writes it has acknowledged.
        writes: u64,
        /// Bytes it can take.
        room_bytes: u64,
    },
    /// A slave had no room for a write.
    Full {
        /// Over which link it said so.
        link: LinkId,
        /// Which write: how many unacknowledged ones were sent before it. `None` when it names none of them.
        before: Option<u64>,
    },
    /// A slave sent a value.
    Value {
        /// Over which link it said so.
        link: LinkId,
        /// The read that asked for it.
        read: ReadId,
        /// The version it holds.
        version: Version,
        /// Which reign of its epoch wrote it.
        reign: ReignId,
        /// The value as the slave holds it.
        value: Bytes,
    },
    /// A slave does not hold the version that was asked for.
    Missing {
        /// Over which link it said so.
        link: LinkId,
        /// The read that asked for it.
        read: ReadId,
    },
    /// A slave reported a part of what it holds.
    Holdings {
        /// Over which link it said so.
        link: LinkId,
        /// Keys, versions and whose those are.
        entries: Vec<(Bytes, Stamp)>,
        /// Whether the report ends with this part.
        last: bool,
    },
    /// A write's record is written.
    Written {
        /// The write. Writes are written in the order in which they were appended.
        write: WriteId,
        /// The version its keys get.
        version: Version,
        /// Where its values stand, in the order of its pairs. None for a deletion.
        places: SmallVec<[Place; 1]>,
    },
    /// A write's record is not in the log and never will be. Or, with UNKNOWN, it is not known whether the next reign will
    /// find it there: this one is at its end.
    NotWritten {
        /// The write that the log refused.
        write: WriteId,
        /// The error word to answer with.
        word: ErrorWord,
        /// The rest of the answer.
        detail: String,
    },
    /// The log was read for a read.
    LogRead {
        /// The read that it was read for.
        read: ReadId,
        /// The value, or why there is none.
        result: Result<Bytes, String>,
    },
    /// Time passed. At least every 50 ms while reads are in flight.
    Tick,
    /// What the wall clock of this machine says. At least once before a reign begins, and about as often as `Tick` in it.
    Clock {
        /// The time that it shows.
        wall: UnixMillis,
        /// How long the machine has been running.
        uptime: Millis,
    },
    /// Delete some of the keys whose time has come. About as often as `Tick` while requests are let through, and at no other
    /// time.
    Expire,
    /// The time that [`Master::hedge_at`] gave has come.
    Hedge,
    /// Do one piece of background work. Sent while [`Master::has_chores`] holds.
    Chore,
}

/// What the machine wants done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer a request: its only answer.
    Reply {
        /// Who is to get it.
        to: Asker,
        /// The answer itself.
        reply: Reply,
    },
    /// Append a record. Answered by `Written` or `NotWritten`, in the order of the appends.
    Append {
        /// The write under which the log answers.
        write: WriteId,
        /// The keys and values of the record.
        change: Arc<Change>,
        /// When all of the values of a `Put` expire, if they do.
        expires: Option<UnixMillis>,
        /// The log refuses it, too, if it has refused more than so many appends of this reign: it rests on one that was not
        /// written when it was decided.
        after: Option<u64>,
    },
    /// A slave has its slot; count its messages from 1.
    Joined {
        /// The link of the slave.
        link: LinkId,
    },
    /// Refuse a slave: no slot is free.
    NoSlot {
        /// The link of the slave.
        link: LinkId,
    },
    /// Announce the reign to this slave again: it had enlisted while no slot was free, and now one is.
    SlotFree {
        /// The link of the slave.
        link: LinkId,
    },
    /// Send a counted write to a slave.
    SendWrite {
        /// The link of the slave.
        link: LinkId,
        /// The version that it is written with.
        version: Version,
        /// Which reign of its epoch is meant.
        reign: ReignId,
        /// The key to be written.
        key: Bytes,
        /// The value to be held.
        value: Bytes,
    },
    /// Ask a slave for a value.
    SendRead {
        /// The link of the slave.
        link: LinkId,
        /// The read under which it answers.
        read: ReadId,
        /// The version that is wanted.
        version: Version,
        /// Which reign of its epoch wrote it.
        reign: ReignId,
        /// The key to be read.
        key: Bytes,
        /// How long the value is, in bytes.
        bytes: u32,
    },
    /// Tell a slave to forget a version and what is older.
    SendDrop {
        /// The link of the slave.
        link: LinkId,
        /// The newest version that it is to forget.
        version: Version,
        /// Which reign of its epoch is meant.
        reign: ReignId,
        /// The key to be forgotten.
        key: Bytes,
    },
    /// Tell a slave to go on with its report.
    SendHoldingsNext {
        /// The link of the slave.
        link: LinkId,
    },
    /// Read a value from the log. Answered by `LogRead`.
    ReadLog {
        /// The read under which the log answers.
        read: ReadId,
        /// Where the value stands in the log.
        place: Place,
        /// The version that it has there.
        version: Version,
        /// The key that it belongs to.
        key: Bytes,
    },
    /// A slave holds a copy that the log does not account for: records were lost. It is not told to drop it.
    Witnessed {
        /// The link of the slave.
        link: LinkId,
        /// Version and reign of the copy.
        stamp: Stamp,
    },
    /// A slave is drained from now on, or is let go: then its link is to be closed.
    Leaving {
        /// The link of the slave.
        link: LinkId,
        /// How far it is.
        state: Leaving,
    },
    /// Repair or rebalancing has begun or ended.
    Repair(RepairNews),
}

/// What the machine counts, for INFO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads that were answered.
    pub reads: u64,
    /// Writes that were done.
    pub writes: u64,
    /// Reads for which the log was read.
    pub log_reads: u64,
    /// Reads from the log that had to wait for room in the window.
    pub log_reads_waited: u64,
    /// Reads of keys without a known holder that were asked of all slaves that had not yet reported.
    pub asked_all: u64,
    /// Reads that went on to a further holder.
    pub read_retries: u64,
    /// Reads that a second holder was asked about, because the first one took long.
    pub hedges: u64,
    /// Those that the second one answered first.
    pub hedges_won: u64,
    /// Items of writes that were sent to a substitute.
    pub substitutions: u64,
    /// Writes that ended *unknown*.
    pub unknown: u64,
    /// Items of writes that no slave had room for: they are only in the log.
    pub without_copy: u64,
    /// Keys that were deleted because their time had come.
    pub expired: u64,
}

/// The rules and tables of one master.
#[derive(Clone, Debug)]
pub struct Master {
    config: Config,
    reigns: Reigns,
    directory: Directory,
    members: Membership,
    writes: Writes,
    reads: Reads,
    slices: Slices,
    lines: Lines,
    repair: Repair,
    rebalance: Rebalance,
    leaving: LeavingSlaves,
    random: Random,
    counters: Counters,
    clock: ClusterClock,
    /// When this step is made.
    now: Millis,
    /// What time it is then.
    time: UnixMillis,
    expiring: Expiring,
    scripts: Scripts,
    /// Links of slaves that enlisted while no slot was usable.
    waiting_for_slot: Vec<LinkId>,
}

impl Master {
    /// A standby with an empty directory.
    pub fn new(config: Config) -> Self {
        Master {
            config,
            reigns: Reigns::default(),
            directory: Directory::new(config.seed),
            members: Membership::default(),
            writes: Writes::default(),
            reads: Reads::default(),
            slices: Slices::default(),
            lines: Lines::default(),
            repair: Repair::default(),
            rebalance: Rebalance::default(),
            leaving: LeavingSlaves::default(),
            random: Random::new(config.seed),
            counters: Counters::default(),
            clock: ClusterClock::default(),
            now: Millis::default(),
            time: UnixMillis::default(),
            expiring: Expiring::default(),
            scripts: Scripts::default(),
            waiting_for_slot: Vec::new(),
        }
    }

    /// Prepares to take in about so many keys, which the log still has.
    pub fn expect_keys(&mut self, more: usize) {
        self.directory.expect(more);
    }

    /// Prepares to take in changes of these keys: what is looked at first is fetched from memory for all of them at once.
    pub fn expect_replay<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        self.directory.warm(keys);
    }

    /// Takes in a write of the log, as a standby or before a reign begins: the key has that version, and its value stands
    /// at `place`; it expires at `expires`, if it does.
    pub fn replay_put(&mut self, key: &[u8], version: Version, place: Place, expires: Option<UnixMillis>) {
        let expires = expires.filter(|_| !planted!(ReplayForgetsExpiry));
        self.directory.insert(key, Entry { version, place, holders: SlotSet::EMPTY, expires });
    }

    /// Takes in what time it was when a record of the log was written, as a standby or before a reign begins. By now, so
    /// long after the machine was started, it is `continued`, if that is known.
    pub fn replay_time(
        &mut self,
        now: Millis,
        uptime: Millis,
        time: UnixMillis,
        continued: Option<UnixMillis>,
    ) {
        self.clock.logged(now, uptime, time, continued);
    }

    /// The time of the cluster.
    pub fn cluster_time(&self, now: Millis) -> UnixMillis {
        self.clock.at(now)
    }

    /// Takes in a deletion of the log, as a standby or before a reign begins.
    pub fn replay_delete(&mut self, key: &[u8]) {
        self.directory.remove(key);
    }

    /// Whether this version of `key` is the latest one that was taken in.
    pub fn is_latest(&self, key: &[u8], version: Version) -> bool {
        self.directory.get(key).is_some_and(|entry| entry.version == version)
    }

    /// The value of this version of `key` stands at `place` by now.
    pub fn relocate(&mut self, key: &[u8], version: Version, place: Place) {
        self.directory.relocate(key, version, place);
    }

    /// Whether a read may still ask for a value in this file of the log.
    pub fn reads_from(&self, file: FileNumber) -> bool {
        self.reads.all.values().any(|read| read.place.file == file)
    }

    /// Whether all records through this seq that were told to be written are taken in: those of many keys take several steps.
    pub fn has_taken_in(&self, through: Seq) -> bool {
        // They are taken in in their order.
        let first = self.slices.first_written();
        let waiting = first.and_then(|write| self.writes.all.get(write.0)).map(|write| write.version.seq);
        waiting.is_none_or(|seq| seq > through)
    }

    /// Takes in an EPOCH record of the log, as a standby or before a reign begins.
    pub fn replay_reign(&mut self, record: ReignRecord) {
        self.begin_reign(record);
    }

    fn begin_reign(&mut self, record: ReignRecord) {
        if self.reigns.is_empty() {
            // All masters find it in the log before its first key. So a cursor of one of them is understood by the others.
            self.directory.reseed(record.reign.id.0);
        }
        self.reigns.begin(record);
    }

    /// Takes in that the loss of a reign was accepted, as a standby or before a reign begins.
    pub fn replay_given_up(&mut self, reign: Reign) {
        self.reigns.give_up(reign);
    }

    /// The reigns of the log.
    pub fn reigns(&self) -> &Reigns {
        &self.reigns
    }

    /// Forgets the directory: the log is another file and will be replayed from its start.
    pub fn replay_from_start(&mut self) {
        self.reigns.clear();
        self.directory.clear();
        self.clock = ClusterClock::default();
    }

    /// Which keys exist, at which version, where and by whom they are held.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Writes and reads that have not been answered yet.
    pub fn in_flight(&self) -> usize {
        let waiting = self.slices.requests() + self.lines.requests();
        self.writes.len() + self.reads.len() + waiting - self.repair.reading()
    }

    /// The active slaves: name, slot, copies it is known to hold, bytes it has room for.
    pub fn slaves(&self) -> impl Iterator<Item = (&SlaveId, Slot, u64, u64)> {
        self.members.iter().map(|(slot, member)| (&member.id, slot, member.copies, member.room_bytes()))
    }

    /// How many items of clients' writes the slave in `slot` has acknowledged since it joined, without copies for which
    /// no client waits.
    pub fn writes_acked(&self, slot: Slot) -> u64 {
        self.members.get(slot).map_or(0, |member| member.writes_acked)
    }

    /// The number of active slaves.
    pub fn slave_count(&self) -> usize {
        self.members.len()
    }

    /// The slot of the active slave on `link`.
    pub fn slot_of(&self, link: LinkId) -> Option<Slot> {
        self.members.slot_of(link)
    }

    /// Whether the slave on `link` owes no acknowledgement.
    pub fn is_idle(&self, link: LinkId) -> bool {
        let member = self.slot_of(link).and_then(|slot| self.members.get(slot));
        member.is_none_or(membership::Member::is_idle)
    }

    /// The asker of a write, until it is answered.
    pub fn asker(&self, write: WriteId) -> Option<Asker> {
        self.writes.asker(write)
    }

    /// How many bytes the reads from the log that are under way may bring into memory.
    pub fn log_read_bytes(&self) -> u64 {
        self.reads.log.under_way_bytes()
    }

    /// The expected length of the value with which a read of `key` by `session` will be answered, in bytes: that of the
    /// latest written value, or of the session's own earlier write. After a write of many keys the value may be shorter.
    pub fn foreseen_bytes(&self, session: SessionId, key: &Bytes) -> usize {
        let written = || self.directory.get(key).map_or(0, |entry| entry.place.bytes as usize);
        let (unwritten, longest_of_many) = self.writes.unwritten_bytes(session, key);
        let waiting = self.slices.longest_of(session).max(self.lines.longest_of(session));
        unwritten.unwrap_or_else(written).max(longest_of_many).max(waiting)
    }

    /// Whether a read still waits for an answer.
    pub fn is_reading(&self, read: ReadId) -> bool {
        self.reads.contains(read)
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, now: Millis, event: Event, effects: &mut Vec<Effect>) {
        (self.now, self.time) = (now, self.clock.at(now));
        match event {
            Event::ReignBegan { version, id } => {
                assert_eq!(self.members.len(), 0, "slaves had places between reigns");
                assert_eq!(self.in_flight(), 0, "requests in flight between reigns");
                let reign = Reign { epoch: version.epoch, id };
                self.rebalance.note_placed(version);
                self.begin_reign(ReignRecord { reign, first: version.seq, durable: self.config.durable });
            }
            Event::ReignEnded => self.end_reign(),
            Event::Request { asker, deadline, command } => {
                self.ask_in_order(now, asker, deadline, command, effects);
            }
            Event::SlaveJoined { id, link, room_bytes } => {
                self.slave_joined(now, id, link, room_bytes, effects);
            }
            Event::SlaveLost { link } => {
                self.waiting_for_slot.retain(|waiting| *waiting != link);
                if let Some(slot) = self.members.slot_of(link) {
                    self.slave_lost(now, slot, effects);
                }
            }
            Event::SlaveStartedAnew { id } => self.slave_started_anew(&id),
            Event::Acked { link, writes, room_bytes } => self.acked(link, writes, room_bytes, effects),
            Event::Full { link, before } => self.full(link, before, effects),
            Event::Value { link, read, version, reign, value } => {
                if let Some(slot) = self.members.slot_of(link) {
                    let stamp = Stamp { version, reign };
                    self.value(now, slot, read, stamp, value, effects);
                }
            }
            Event::Missing { link, read } => {
                if let Some(slot) = self.members.slot_of(link) {
                    self.missing(now, slot, read, effects);
                }
            }
            Event::Holdings { link, entries, last } => self.holdings(link, entries, last, effects),
            Event::Written { write, version, places } => self.written(now, write, version, places, effects),
            Event::NotWritten { write, word, detail } => self.not_written(now, write, word, detail, effects),
            Event::LogRead { read, result } => self.log_read(now, read, result, effects),
            Event::Tick => {
                self.tick_drain(now);
                self.tick_repair(now, effects);
                self.let_go(effects);
                self.tick_rebalance(now);
                self.expire_reads(now, effects);
                self.expire_lines(now, effects);
            }
            Event::Clock { wall, uptime } => self.clock.compare(now, wall, uptime),
            Event::Expire => self.expire_some(now, effects),
            Event::Hedge => self.hedge_reads(now, effects),
            Event::Chore => self.chore(now, effects),
        }
        if !self.lines.is_quiet() {
            self.go_on_with_lines(now, effects);
        }
    }

    /// Begins a request that is not done in slices.
    fn begin(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        match command {
            Command::Get { key } => self.get(now, asker, deadline, key, effects),
            Command::GetMany { keys } => self.get_many(now, asker, deadline, keys, effects),
            Command::Exists { keys } => self.exists(asker, deadline, keys, effects),
            Command::KeyCount => self.key_count(asker, effects),
            Command::ValueLength { key } => self.value_length(asker, deadline, key, effects),
            Command::TimeToLive { key, form } => self.time_to_live(asker, deadline, (key, form), effects),
            Command::Put { key, value } => {
                let bytes = payload(&key, &value);
                self.write(asker, Change::Put(SmallVec::from_iter([(key, value)])), bytes, effects);
            }
            Command::PutMany { pairs } => {
                let (pairs, bytes) = DistinctPairs::from_iter(pairs).into_pairs();
                self.write(asker, Change::Put(pairs), bytes, effects);
            }
            Command::Delete { keys } => {
                self.write(asker, Change::Delete(SmallVec::from_vec(keys)), 0, effects);
            }
            command @ (Command::Update { .. }
            | Command::Swap { .. }
            | Command::Take { .. }
            | Command::Renew { .. }
            | Command::Examine { .. }
            | Command::Compare { .. }
            | Command::GetVersioned { .. }
            | Command::PutManyIfNone { .. }
            | Command::Transact { .. }
            | Command::Evaluate { .. }
            | Command::Transfer { .. }) => self.update(now, asker, deadline, command, effects),
            Command::Watch { keys } => self.watch(asker, keys, effects),
            Command::ScriptCache { request } => {
                let reply = self.answer_of_scripts(&request);
                effects.push(Effect::Reply { to: asker, reply });
            }
            Command::Time => effects.push(Effect::Reply { to: asker, reply: self.what_time() }),
            Command::Scan { cursor, pattern, count, strings: shows } => {
                self.scan(KeyScan { asker, deadline, cursor, pattern, count, shows, time: None }, effects);
            }
            Command::Keys { pattern } => self.walk(asker, deadline, Sought::matching(pattern), effects),
            Command::RandomKey => self.walk(asker, deadline, Sought::any(), effects),
            Command::DeleteAll => self.walk(asker, deadline, Sought::Everything, effects),
            Command::RemoveSlave { id } => self.remove_slave(now, asker, id, effects),
            Command::Status | Command::Failover | Command::ChangeMembers { .. } => {
                let reply = Reply::error(ErrorWord::Bad, "this command is for the node, not for the store");
                effects.push(Effect::Reply { to: asker, reply });
            }
        }
    }

    fn end_reign(&mut self) {
        assert_eq!(self.in_flight(), 0, "a reign ended with requests in flight");
        // Only repair reads now, and nobody waits for it.
        self.reads.all.clear();
        self.reads.log.clear();
        self.reads.hedges.clear();
        self.repair.clear();
        self.rebalance.clear();
        self.leaving.clear();
        self.waiting_for_slot.clear();
        self.writes.forget_losses();
        self.writes.refusals = 0;
        self.expiring.clear();
        self.scripts.forget();
        for slot in self.members.live().iter() {
            self.members.leave(slot);
        }
    }

    /// Whether no work that was begun is left for a later step.
    fn is_settled(&self) -> bool {
        self.slices.is_empty() && !self.writes.has_losses() && !self.reads.is_overdue
    }

    /// Whether there is background work, to be done in pieces, each with an [`Event::Chore`].
    pub fn has_chores(&self) -> bool {
        self.members.acknowledging().is_some()
            || !self.is_settled()
            || !self.lines.is_quiet()
            || !self.lines.walks.is_quiet()
            || !self.directory.is_at_rest()
            || self.may_repair()
            || self.may_rebalance()
    }

    fn chore(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if let Some(slot) = self.members.acknowledging() {
            self.take_acks(slot, effects);
        }
        if !self.is_settled() {
            self.work_on(now, effects);
            self.make_good(now, effects);
            if self.reads.is_overdue {
                self.expire_reads(now, effects);
                self.start_log_reads(now, effects);
            }
            self.sweep_if_needed();
        }
        // However much else there is to do: slaves may wait for a slot.
        if let Some(slots) = self.directory.sweep_on(CHORE_ENTRIES) {
            self.members.swept(slots);
            effects.extend(self.waiting_for_slot.drain(..).map(|link| Effect::SlotFree { link }));
            self.sweep_if_needed();
        }
        self.directory.tidy(CHORE_ENTRIES);
        self.walk_on(effects);
        self.repair_on(now, effects);
        self.rebalance_on(now, effects);
    }
}
