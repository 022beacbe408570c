//! Repair: keys that lost copies get them again, without a write.
//!
//! Owns when repair begins and ends, how far it has come, and how much of it may be under way. A *run* walks over the
//! directory a slice at a time, in *rounds*: the first one repairs keys without a copy, the next ones those with the fewest
//! copies that a round has seen, and the last one finds nothing to do. So no list of keys is kept, whatever is lacking. Values
//! are read like those for clients (`reads.rs`, `log_reads.rs`), and sent like copies that reads of the log put back
//! (`copies.rs`). See `docs/ARCHITECTURE.md`, *Repair*.

use super::census::{Lacking, ReportWait};
use super::hash::hash_bytes;
use super::membership::{CopyCause, Member, SLAVES_MAX};
use super::placement::choose;
use super::reads::{CopyPurpose, Destination};
use super::room::payload;
use super::{Effect, Entry, Master, SlotSet};
use crate::command::Reply;
use crate::ids::{Millis, Version};
use crate::info::RepairState;
use crate::planted;
use bytes::Bytes;

/// A slave that is back this long after its link broke was missed by nobody, in milliseconds.
const LOST_GRACE_MS: u64 = 50;

/// After a slave has come, others that are missing get so much time to come too, in milliseconds: a slave dials at least every
/// 500 ms. Else the first one that comes would get the copies of all.
const JOINED_GRACE_MS: u64 = 600;

/// The most keys that are under way: they are read, or their copies are not acknowledged. So many handled in a row are what a
/// client's request may have to wait for.
const KEYS_MAX: usize = 256;

/// The most bytes of their values, or one value.
const BYTES_MAX: u64 = 4 << 20;

/// The same while clients wait for what repair uses, too.
const KEYS_MAX_YIELDING: usize = 16;

/// How long it yields after a client's read has waited, in milliseconds.
const YIELD_MS: u64 = 100;

/// So many entries are looked at in one step.
const ENTRIES_AT_ONCE: usize = 4096;

/// How long the value of one key may take, from all its holders and the log, in milliseconds.
pub(super) const READ_MS: u64 = 10_000;

/// Bytes that may be used at once after a pause: those of so many milliseconds.
const BURST_MS: u64 = 100;

/// While slaves are missing, each write gives repair something to do. So many walks over all keys that find something are
/// enough; then it rests until the next count of copies.
const CYCLES_MAX: usize = 3;

/// Keys that could not be repaired are tried again after this time, in milliseconds, if no slave comes or goes before.
const RETRY_MS: u64 = 10_000;

/// A slave gets copies as long as this part of the room is left that it had at its best: clients' writes come first.
const ROOM_LEFT_PART: u64 = 4;

/// A key that lacks copies has fewer than this.
const LEVELS: usize = SLAVES_MAX;

/// Why repair has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairCause {
    /// A slave was lost.
    SlaveLost,
    /// A slave has joined.
    SlaveJoined,
    /// A slave is to leave: its copies are made elsewhere.
    SlaveLeaves,
    /// The count of copies has found keys that lack some.
    Counted,
}

/// What is to be logged of repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairNews {
    /// The first key that lacks copies is found.
    Began {
        /// What began it.
        cause: RepairCause,
    },
    /// Nothing more can be done.
    Ended {
        /// What had begun it.
        cause: RepairCause,
        /// Keys that got copies.
        keys: u64,
        /// Bytes of these copies, with their keys.
        bytes: u64,
        /// How long it took, in milliseconds.
        ms: u64,
        /// Keys that still lack copies: no slave has room for them, or their values cannot be read.
        left: u64,
    },
    /// The first key of a rebalancing is moved.
    RebalanceBegan {
        /// Misplaced keys.
        keys: u64,
    },
    /// Nothing more can be moved, or slaves have come or gone.
    RebalanceEnded {
        /// Keys of which a copy was moved.
        keys: u64,
        /// Bytes of these copies, with their keys.
        bytes: u64,
        /// Copies that were too many, and are dropped.
        surplus: u64,
        /// How long it took, in milliseconds.
        ms: u64,
        /// Keys that are still misplaced.
        left: u64,
    },
}

/// What got copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Repaired {
    keys: u64,
    bytes: u64,
}

/// The state of repair.
#[derive(Clone, Debug, Default)]
pub(super) struct Repair {
    /// The most slaves that were active at once in this reign; 0 without repair.
    slaves_most: usize,
    /// When the next run begins, or this one's first round again; and why.
    due: Option<(Millis, RepairCause)>,
    /// Since when it waits for reports of slaves.
    reports: Option<ReportWait>,
    /// Whether all that slaves hold is known, as far as that is waited for.
    is_informed: bool,
    run: Option<RepairRun>,
    /// Keys whose values are being read, and the bytes of these.
    reading: usize,
    reading_bytes: u64,
    /// Bytes that may be used. Below zero after a long value.
    tokens: i64,
    /// When they were last counted.
    filled: Millis,
    /// Until when it yields to clients, and whether it does.
    yields_until: Millis,
    is_yielding: bool,
    /// Keys that lacked copies when they were last looked at, without those repaired since; and since when that is true.
    left: u64,
    /// How many are expected to lack copies, after the loss of a slave and before a round has counted them.
    expected: u64,
    rests_since: Millis,
    /// Until when a count of copies begins nothing.
    not_before: Millis,
    done: Repaired,
}

/// From the loss of a slave until nothing more can be done.
#[derive(Clone, Debug)]
struct RepairRun {
    cause: RepairCause,
    began: Millis,
    is_told: bool,
    done: Repaired,
    /// Keys that were begun since the last first round.
    begun: u64,
    /// Keys of slaves that leave, of those that were begun since, or for which no slave is left.
    to_drain: u64,
    /// `done.keys` at that round.
    done_before: u64,
    /// How many first rounds there were since slaves came or went.
    cycles: usize,
    /// Whether the last walk has found that no key of slaves that leave lacks copies elsewhere. Others may: writes go on.
    is_drained: bool,
    round: RepairRound,
}

/// One walk over the directory.
#[derive(Clone, Debug)]
struct RepairRound {
    /// Keys with more copies have their turn later.
    copies_max: usize,
    /// Whether it is the first one since slaves came or went: `left` is not known before its end.
    is_first: bool,
    /// The number of the next entry; `None` at the end, where what is under way is waited for.
    next: Option<usize>,
    /// Keys with so many copies that are left for later rounds.
    later: [u64; LEVELS],
    /// Keys for which no slave is left.
    stuck: u64,
}

impl RepairRound {
    fn first() -> Self {
        RepairRound { is_first: true, ..RepairRound::of(0) }
    }

    fn of(copies_max: usize) -> Self {
        RepairRound { copies_max, is_first: false, next: Some(0), later: [0; LEVELS], stuck: 0 }
    }
}

impl Repair {
    /// Has a run begin at `at`, or earlier if that is planned already.
    fn plan(&mut self, at: Millis, cause: RepairCause) {
        if self.due.is_none_or(|(due, _)| at < due) {
            self.due = Some((at, cause));
        }
    }

    fn fill(&mut self, now: Millis, bytes_per_second: u64) {
        let burst = (bytes_per_second.saturating_mul(BURST_MS) / 1000).max(1);
        let more = bytes_per_second.saturating_mul(now.since(self.filled)) / 1000;
        if more > 0 {
            self.filled = now;
            let burst = i64::try_from(burst).unwrap_or(i64::MAX);
            self.tokens = self.tokens.saturating_add_unsigned(more).min(burst);
        }
    }

    /// A copy is acknowledged.
    pub(super) fn acked(&mut self, bytes: u64, is_first: bool) {
        let key = Repaired { keys: u64::from(is_first), bytes };
        for done in [Some(&mut self.done), self.run.as_mut().map(|run| &mut run.done)].into_iter().flatten() {
            done.keys += key.keys;
            done.bytes += key.bytes;
        }
        self.left = self.left.saturating_sub(key.keys);
    }

    /// Uses bytes of the rate.
    pub(super) fn charge(&mut self, bytes: u64) {
        self.tokens -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    /// A value of a key, so many bytes together, is being read.
    pub(super) fn begin_read(&mut self, bytes: u64) {
        self.reading += 1;
        self.reading_bytes += bytes;
    }

    /// Keys whose values are being read.
    pub(super) fn reading(&self) -> usize {
        self.reading
    }

    /// The reign is over.
    pub(super) fn clear(&mut self) {
        *self = Repair { done: self.done, ..Repair::default() };
    }
}

impl Master {
    /// How many copies a key is to have: as many as a write would if all slaves of this reign were active, the missing ones
    /// included, but not more than are active. Without repair, those that a write must have.
    pub fn copies_wanted(&self) -> usize {
        let staying = self.members.staying().len();
        self.config.copies.of(self.repair.slaves_most.max(staying)).min(staying)
    }

    pub(super) fn repairs(&self) -> bool {
        self.config.repair_bytes_per_second > 0
    }

    /// Whether repair has nothing to do, and knows what slaves hold.
    pub(super) fn is_repaired(&self) -> bool {
        self.repair.is_informed && self.repair.run.is_none() && self.repair.due.is_none()
    }

    /// Whether a run goes on.
    pub(super) fn is_repairing(&self) -> bool {
        self.repair.run.is_some()
    }

    /// Whether a further key may be under way. Not one by one: a slave wakes up for each batch that it has a part in.
    pub(super) fn has_repair_room(&self) -> bool {
        let (keys, bytes) = self.repairing();
        self.repair.tokens > 0 && keys <= self.repair_keys_max() / 2 && bytes < BYTES_MAX
    }

    /// A slave leaves for good: it will not be missing.
    pub(super) fn miss_no_longer(&mut self) {
        let staying = self.members.staying().len();
        self.repair.slaves_most = self.repair.slaves_most.saturating_sub(1).max(staying);
    }

    pub(super) fn plan_repair(&mut self, at: Millis, cause: RepairCause) {
        self.repair.plan(at, cause);
    }

    /// A slave has left that held `copies`.
    pub(super) fn repair_after_loss(&mut self, now: Millis, copies: u64) {
        if self.repairs() {
            self.repair.expected = self.repair.expected.max(self.repair.left) + copies;
            self.repair.plan(now.plus(LOST_GRACE_MS), RepairCause::SlaveLost);
        }
    }

    /// A slave has its place.
    pub(super) fn repair_after_join(&mut self, now: Millis) {
        if !self.repairs() {
            return;
        }
        let staying = self.members.staying().len();
        let is_whole = staying >= self.repair.slaves_most;
        self.repair.slaves_most = self.repair.slaves_most.max(staying);
        let grace_ms = if is_whole { LOST_GRACE_MS } else { JOINED_GRACE_MS };
        self.repair.plan(now.plus(grace_ms), RepairCause::SlaveJoined);
    }

    /// The count of copies that began at `began` has ended.
    pub fn note_count(&mut self, now: Millis, began: Millis, lacking: Lacking) {
        let repair = &mut self.repair;
        let is_news = repair.run.is_none() && repair.due.is_none() && began > repair.rests_since;
        if is_news && self.config.repair_bytes_per_second > 0 && now >= repair.not_before {
            repair.left = lacking.under_replicated;
            if lacking.under_replicated > 0 {
                repair.plan(now, RepairCause::Counted);
            }
        }
    }

    /// A client's read waits for a slave that repair reads from, too.
    pub(super) fn yield_to_clients(&mut self, now: Millis) {
        self.repair.yields_until = now.plus(YIELD_MS);
        self.repair.is_yielding = true;
    }

    /// How many keys lack copies, by the last `count` of them or by what repair has seen since.
    pub fn keys_under_replicated(&self, count: Option<(Millis, Lacking)>) -> u64 {
        let is_resting = self.repair.run.is_none() && self.repair.due.is_none();
        match count {
            Some((began, lacking)) if is_resting && began > self.repair.rests_since => {
                lacking.under_replicated
            }
            Some((_, lacking)) if !self.repairs() => lacking.under_replicated,
            Some(_) | None => self.repair.left.max(self.repair.expected),
        }
    }

    /// What repair is doing.
    pub fn repair_state(&self) -> RepairState {
        if !self.repairs() {
            RepairState::Off
        } else if self.repair.run.is_some() {
            RepairState::Copying
        } else if self.repair.due.is_some() || self.drains_later() {
            RepairState::Waiting
        } else {
            RepairState::Resting
        }
    }

    /// Keys that were given copies, and the bytes of these.
    pub fn repaired(&self) -> (u64, u64) {
        (self.repair.done.keys, self.repair.done.bytes)
    }

    /// Keys under way, and the bytes of their values.
    pub(super) fn repairing(&self) -> (usize, u64) {
        let members = self.members.iter().map(|(_, member)| member.repairing());
        members.fold((self.repair.reading, self.repair.reading_bytes), |(keys, bytes), (more, of)| {
            (keys + more, bytes + of)
        })
    }

    /// Whether a step of repair would do something.
    pub(super) fn may_repair(&self) -> bool {
        let Some(run) = self.repair.run.as_ref().filter(|_| self.repair.is_informed) else { return false };
        match run.round.next {
            Some(_) => self.has_repair_room(),
            None => self.repairing().0 == 0,
        }
    }

    pub(super) fn repair_keys_max(&self) -> usize {
        if self.repair.is_yielding || self.reads.log.has_waiting() {
            KEYS_MAX_YIELDING
        } else {
            KEYS_MAX
        }
    }

    /// Looks at the clock: what is due begins, and bytes may be used again.
    pub(super) fn tick_repair(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.repairs() {
            return;
        }
        let unreported = self.members.unreported();
        let copies = self.members.copies_of(unreported);
        let repair = &mut self.repair;
        repair.is_informed = ReportWait::is_over(&mut repair.reports, now, unreported, copies);
        repair.is_yielding = now < repair.yields_until;
        repair.fill(now, self.config.repair_bytes_per_second);
        let Some((_, cause)) = repair.due.filter(|(due, _)| *due <= now && !planted!(LostCopiesStayLost))
        else {
            return;
        };
        if self.members.live().is_empty() {
            repair.due = None;
            repair.left = self.directory.len() as u64;
            self.end_repair(now, self.repair.left, effects);
            return;
        }
        if !repair.is_informed {
            return;
        }
        repair.due = None;
        self.cover_leaving();
        let repair = &mut self.repair;
        let began = repair.run.take().unwrap_or(RepairRun {
            cause,
            began: now,
            is_told: false,
            done: Repaired::default(),
            begun: 0,
            to_drain: 0,
            done_before: 0,
            cycles: 0,
            is_drained: false,
            round: RepairRound::first(),
        });
        let done_before = began.done.keys;
        repair.run = Some(RepairRun {
            begun: 0,
            to_drain: 0,
            done_before,
            cycles: 0,
            round: RepairRound::first(),
            ..began
        });
        repair.left = 0;
    }

    /// Does a part of the present round.
    pub(super) fn repair_on(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        self.repair.fill(now, self.config.repair_bytes_per_second);
        if !self.may_repair() {
            return;
        }
        let (under_way, _) = self.repairing();
        let keys_max = self.repair_keys_max().saturating_sub(under_way);
        let wanted = self.copies_wanted();
        let counted = if planted!(LeavingCopiesCount) { self.members.live() } else { self.members.staying() };
        let mut entries = ENTRIES_AT_ONCE;
        for _ in 0..keys_max {
            let Some(run) = self.repair.run.as_mut() else { return };
            let RepairRound { copies_max, next, later, is_first, .. } = &mut run.round;
            let Some(from) = *next else { break };
            let left = &mut self.repair.left;
            let found = self.directory.find(from, &mut entries, |_, entry| {
                let copies = entry.holders.intersection(counted).len();
                let lacks = copies < wanted;
                *left += u64::from(lacks && *is_first);
                if lacks && copies > *copies_max {
                    later[copies] += 1;
                }
                lacks && copies <= *copies_max
            });
            *next = found.next;
            if let Some((key, entry)) = found.entry {
                self.begin_key(now, key, entry, effects);
            }
            if entries == 0 || self.repair.tokens <= 0 || self.repairing().1 >= BYTES_MAX {
                return;
            }
        }
        let is_over = self.repair.run.as_ref().is_some_and(|run| run.round.next.is_none());
        if is_over && self.repairing().0 == 0 {
            self.end_round(now, effects);
        }
    }

    /// Reads the value of a key that lacks copies, if a slave can take one.
    fn begin_key(&mut self, now: Millis, key: Bytes, entry: Entry, effects: &mut Vec<Effect>) {
        let bytes = key.len() as u64 + u64::from(entry.place.bytes);
        let charge = payload(&key, &[]) + u64::from(entry.place.bytes);
        let has_taker = !self.takers(&entry, charge).is_empty();
        let is_to_drain = !entry.holders.intersection(self.covered()).is_empty();
        let Some(run) = self.repair.run.as_mut() else { return };
        run.to_drain += u64::from(is_to_drain);
        if !has_taker {
            run.round.stuck += 1;
            return;
        }
        run.begun += 1;
        if !std::mem::replace(&mut run.is_told, true) {
            effects.push(Effect::Repair(RepairNews::Began { cause: run.cause }));
        }
        let copies =
            self.copies_wanted().saturating_sub(entry.holders.intersection(self.members.staying()).len());
        self.repair.charge(charge * copies as u64);
        self.repair.begin_read(bytes);
        let to = Destination::Repair { bytes, purpose: CopyPurpose::Repairs };
        self.read_entry(now, to, now.plus(READ_MS), key, entry, effects);
    }

    /// The slaves that lack a copy and may get one of so many bytes, as room is counted.
    pub(super) fn takers(&self, entry: &Entry, charge: u64) -> SlotSet {
        if entry.place.bytes as usize > self.config.value_max {
            return SlotSet::EMPTY;
        }
        let has_room = |member: &Member| {
            member.room_bytes() >= charge.saturating_add(member.room_most() / ROOM_LEFT_PART)
        };
        let roomy = self.members.iter().filter(|(_, member)| has_room(member)).map(|(slot, _)| slot);
        roomy.collect::<SlotSet>().intersection(self.members.staying()).without(entry.holders)
    }

    /// The value of a key has been read, or could not be. A version that is superseded has nothing to gain: its successor was
    /// sent to slaves of its own.
    pub(super) fn repair_read(
        &mut self,
        (key, wanted): (Bytes, Version),
        (bytes, purpose): (u64, CopyPurpose),
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        self.repair.reading -= 1;
        self.repair.reading_bytes -= bytes;
        let Reply::Value(value) = reply else { return };
        let is_current = |entry: &Entry| entry.version == wanted || planted!(RepairCopiesOlder);
        let Some(entry) = self.directory.get(&key).filter(is_current) else { return };
        if purpose == CopyPurpose::Moves {
            return self.move_read(&key, &entry, &value, effects);
        }
        let staying = self.members.staying();
        let lacking = self.copies_wanted().saturating_sub(entry.holders.intersection(staying).len());
        let among = self.takers(&entry, payload(&key, &value));
        let hash = hash_bytes(&key);
        let chosen = choose(self.config.placement, &self.members, among, lacking, hash, &mut self.random);
        let mut cause = CopyCause::Repair { is_first: true };
        for slot in chosen.iter() {
            self.copy_to(slot, &key, entry.version, &value, cause, effects);
            cause = CopyCause::Repair { is_first: false };
        }
    }

    /// Begins the next round, or ends the run. Nothing is under way.
    fn end_round(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let Some(run) = self.repair.run.as_mut() else { return };
        let RepairRound { later, stuck, .. } = run.round;
        let left = later.iter().sum::<u64>() + stuck;
        planted!(DrainSkipsLastWalk => {
            if !self.members.leaving().is_empty() {
                run.is_drained = true;
                self.end_repair(now, left, effects);
                return;
            }
        });
        self.repair.expected = 0;
        if let Some(copies) = later.iter().position(|keys| *keys > 0) {
            self.repair.left = left;
            let stuck = run.round.stuck;
            run.round = RepairRound { stuck, ..RepairRound::of(copies) };
            return;
        }
        // Slaves may have refused copies, or have left: it is over when a walk over all keys finds nothing that it can do.
        let has_helped = run.done.keys > run.done_before;
        run.cycles += 1;
        if run.begun > 0 && has_helped && run.cycles < CYCLES_MAX {
            (run.begun, run.to_drain, run.done_before) = (0, 0, run.done.keys);
            run.round = RepairRound::first();
            self.repair.left = 0;
            self.cover_leaving();
            return;
        }
        run.is_drained = run.to_drain == 0;
        let left = if has_helped { stuck } else { stuck + run.begun };
        self.end_repair(now, left, effects);
    }

    fn end_repair(&mut self, now: Millis, left: u64, effects: &mut Vec<Effect>) {
        let Some(run) = self.repair.run.take() else { return };
        let again_ms = if left > 0 { RETRY_MS } else { LOST_GRACE_MS };
        self.note_drained(now, run.is_drained, again_ms);
        if run.is_told {
            let RepairRun { cause, done: Repaired { keys, bytes }, began, .. } = run;
            let ms = now.since(began);
            effects.push(Effect::Repair(RepairNews::Ended { cause, keys, bytes, ms, left }));
        }
        (self.repair.left, self.repair.expected, self.repair.rests_since) = (left, 0, now);
        if left > 0 {
            self.repair.not_before = now.plus(RETRY_MS);
        }
    }
}
