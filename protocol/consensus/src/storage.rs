//! What the engine may ask of the log, answered from what the machine knows of it.
//!
//! Owns the view of this member's own log: where it begins and ends, the terms of its entries, and its last entries themselves. It
//! covers what was handed to the disk, in order, whether it is synced by now or not: the engine keeps account of that. Older entries
//! are wished for and come later. Never holds back an entry that is not handed out as committed yet: the engine asks for those
//! without waiting.

use crate::members::Members;
use bytes::Bytes;
use dsm_protocol::ids::{Seq, Version};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

/// How many wishes for older entries may be open: each follower that is far behind has one.
const WISHES_MAX: usize = 16;

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its term and place.
    pub version: Version,
    /// The words of the record; empty for the first entry of a leader, whose words follow from its version.
    pub data: Bytes,
}

impl LogEntry {
    /// The entry as the engine has it.
    pub(crate) fn of(entry: &Entry) -> Self {
        LogEntry { version: Version::new(entry.term, entry.index), data: words(entry).clone() }
    }

    pub(crate) fn to_engine(&self) -> Entry {
        Entry {
            entry_type: entry_type(&self.data),
            term: self.version.epoch.0,
            index: self.version.seq.0,
            data: self.data.clone(),
            ..Entry::default()
        }
    }
}

/// The words of an entry. While a change of the members is proposed, the engine has it in its own form as the data.
pub(crate) fn words(entry: &Entry) -> &Bytes {
    if entry.context.is_empty() {
        &entry.data
    } else {
        &entry.context
    }
}

/// What an entry with these words is to the engine.
pub(crate) fn entry_type(words: &[u8]) -> EntryType {
    if Members::is_record(words) {
        EntryType::EntryConfChangeV2
    } else {
        EntryType::EntryNormal
    }
}

/// A wish for entries that are on disk only.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) from: u64,
    pub(crate) through: u64,
    pub(crate) bytes_max: u64,
    pub(crate) context: GetEntriesContext,
}

/// The wishes for older entries.
#[derive(Debug, Default)]
struct Wishes {
    /// Those that nobody was told of yet.
    new: Vec<Wish>,
    /// Where the open ones begin, told or not.
    open: Vec<u64>,
}

/// The view of the log.
#[derive(Debug)]
pub(crate) struct LogView {
    hard_state: HardState,
    /// The members at what was known to be committed at the start.
    at_start: ConfState,
    /// The last entry that is not in the log any more; (0, 0) when all are.
    base: Version,
    /// The terms of the entries after the base, by the first index of each.
    terms: BTreeMap<u64, u64>,
    /// The members at the base, and where their record is.
    base_members: Members,
    base_members_since: u64,
    /// Each record of the members after the base, by its index.
    records: BTreeMap<u64, Members>,
    last: u64,
    /// The last entries, without a gap through the last one.
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    tail_bytes_max: usize,
    /// Entries that were read from the disk for a follower.
    fetched: Vec<Entry>,
    wishes: RefCell<Wishes>,
}

impl LogView {
    /// The view of a log that has `terms` (the first version of each) after `base`, ends with `tail`.
    pub(crate) fn new(
        hard_state: HardState,
        base: Version,
        records: &[(Seq, Members)],
        terms: &[Version],
        tail: &[LogEntry],
        tail_bytes_max: usize,
    ) -> Self {
        let mut view = LogView {
            hard_state,
            at_start: ConfState::default(),
            base_members: Members::default(),
            base_members_since: 0,
            records: records.iter().map(|(seq, members)| (seq.0, members.clone())).collect(),
            base,
            terms: terms.iter().map(|first| (first.seq.0, first.epoch.0)).collect(),
            last: tail.last().map_or(base.seq.0, |entry| entry.version.seq.0),
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_bytes_max,
            fetched: Vec::new(),
            wishes: RefCell::default(),
        };
        for entry in tail {
            view.note_members(entry.version.seq.0, &entry.data);
            view.push(entry.to_engine());
        }
        view.forget_records();
        view.at_start = view.members_at(view.hard_state.commit).conf_state();
        view
    }

    /// The place of the last entry.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// How many bytes of entries are in memory.
    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// The log ends at `index` from now on.
    pub(crate) fn cut_after(&mut self, index: u64) {
        while self.tail.back().is_some_and(|entry| entry.index > index) {
            self.tail_bytes -= self.tail.pop_back().map_or(0, |entry| entry.data.len());
        }
        self.terms.retain(|first, _| *first <= index);
        self.records.retain(|at, _| *at <= index);
        self.last = index;
    }

    /// Takes entries that follow the last one.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        for entry in entries {
            assert_eq!(entry.index, self.last + 1, "the log has a gap");
            self.last = entry.index;
            let newest = self.terms.last_key_value().map_or(self.base.epoch.0, |(_, term)| *term);
            assert!(entry.term >= newest, "terms fall at {}", entry.index);
            if entry.term > newest {
                self.terms.insert(entry.index, entry.term);
            }
            let entry = LogEntry::of(entry);
            self.note_members(entry.version.seq.0, &entry.data);
            self.push(entry.to_engine());
        }
    }

    fn note_members(&mut self, index: u64, words: &[u8]) {
        if Members::is_record(words) {
            let members = Members::parse(words).expect("no other words were let in");
            self.records.insert(index, members);
        }
    }

    /// Records before the base matter only by the members there.
    fn forget_records(&mut self) {
        let at_base = self.base.seq.0;
        (self.base_members_since, self.base_members) =
            (self.members_since(at_base), self.members_at(at_base).clone());
        self.records.retain(|at, _| *at > self.base.seq.0);
    }

    /// The members as the log has them at `index`, which is not before the base.
    pub(crate) fn members_at(&self, index: u64) -> &Members {
        self.records.range(..=index).next_back().map_or(&self.base_members, |(_, members)| members)
    }

    /// Where the record of the members is that is in force at `index`, which is not before the base; 0 if there is none.
    pub(crate) fn members_since(&self, index: u64) -> u64 {
        self.records.range(..=index).next_back().map_or(self.base_members_since, |(at, _)| *at)
    }

    /// The members at the base.
    pub(crate) fn base_members(&self) -> &Members {
        &self.base_members
    }

    /// Whether the log changes the members after `after`, through `through`.
    pub(crate) fn changes_members(&self, after: u64, through: u64) -> bool {
        after < through && self.records.range(after + 1..=through).next().is_some()
    }

    /// The last version that is in no entry of the log.
    pub(crate) fn base(&self) -> Version {
        self.base
    }

    /// The log begins after `base` from now on: what is before it was compacted.
    pub(crate) fn compacted(&mut self, base: Version) {
        let Version { epoch, seq } = base;
        assert!(seq >= self.base.seq && self.term_at(seq.0) == Some(epoch.0), "{base} is not in the log");
        while self.tail.front().is_some_and(|entry| entry.index <= seq.0) {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |entry| entry.data.len());
        }
        let after = self.term_at(seq.0 + 1);
        self.terms.retain(|first, _| *first > seq.0);
        if let Some(term) = after.filter(|term| *term != epoch.0) {
            self.terms.insert(seq.0 + 1, term);
        }
        self.base = base;
        self.forget_records();
    }

    /// Another file takes the place of the log: it has everything through `base`, and nothing after it.
    pub(crate) fn restore(&mut self, base: Version, members: Members, since: u64) {
        self.base = base;
        (self.base_members, self.base_members_since) = (members, since);
        self.records.clear();
        self.last = base.seq.0;
        self.terms.clear();
        self.tail.clear();
        self.tail_bytes = 0;
        self.fetched.clear();
        self.forget_wishes();
    }

    fn push(&mut self, entry: Entry) {
        self.tail_bytes += entry.data.len();
        self.tail.push_back(entry);
    }

    /// Drops the oldest entries from memory, while there are too many: only such that are committed and handed out.
    pub(crate) fn evict_through(&mut self, handed_out: u64) {
        while self.tail_bytes > self.tail_bytes_max
            && self.tail.front().is_some_and(|entry| entry.index <= handed_out)
        {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |entry| entry.data.len());
        }
    }

    /// The wishes that nobody was told of yet.
    pub(crate) fn take_wishes(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.wishes.get_mut().new)
    }

    /// What was wished for from there on is here, or nothing comes of it.
    pub(crate) fn fetched(&mut self, from: u64, entries: &[LogEntry]) {
        self.wishes.get_mut().open.retain(|open| *open != from);
        if from <= self.base.seq.0 {
            // It was compacted meanwhile.
            return;
        }
        self.fetched = entries.iter().map(LogEntry::to_engine).collect();
        let is_own = |entry: &Entry| self.term_at(entry.index) == Some(entry.term);
        let follows = self.fetched.iter().zip(from..).all(|(entry, index)| entry.index == index);
        assert!(follows && self.fetched.iter().all(is_own), "the entries from {from} are others");
    }

    /// Fetched entries are used once.
    pub(crate) fn forget_fetched(&mut self) {
        self.fetched = Vec::new();
    }

    /// Nobody waits for older entries any more.
    pub(crate) fn forget_wishes(&mut self) {
        self.wishes = RefCell::default();
    }

    /// The term of the entry at `index`; `None` where the log has none, or none any more.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.seq.0 {
            return Some(self.base.epoch.0);
        }
        if index < self.base.seq.0 || index > self.last {
            return None;
        }
        Some(self.terms.range(..=index).next_back().map_or(self.base.epoch.0, |(_, term)| *term))
    }

    /// Entries of `held`, which has no gap, from `low` up to `high`; `None` when `low` is not in it.
    fn part<'a>(
        held: impl ExactSizeIterator<Item = &'a Entry>,
        low: u64,
        high: u64,
        max: Option<u64>,
    ) -> Option<Vec<Entry>> {
        let mut held = held.peekable();
        let first = held.peek()?.index;
        let skip = low.checked_sub(first)?;
        let mut found: Vec<Entry> =
            held.skip(usize::try_from(skip).ok()?).take_while(|entry| entry.index < high).cloned().collect();
        raft::util::limit_size(&mut found, max);
        (!found.is_empty()).then_some(found)
    }
}

/// The engine's word for a file that has everything through `base`.
pub(crate) fn snapshot_at(base: Version, members: ConfState) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = base.seq.0;
    metadata.term = base.epoch.0;
    metadata.set_conf_state(members);
    snapshot
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.at_start.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max = max_size.into();
        if low <= self.base.seq.0 {
            return Err(StorageError::Compacted.into());
        }
        if low >= high {
            return Ok(Vec::new());
        }
        let part = LogView::part(self.tail.iter(), low, high, max)
            .or_else(|| LogView::part(self.fetched.iter(), low, high, max));
        if let Some(part) = part {
            return Ok(part);
        }
        if !context.can_async() {
            return Err(StorageError::Unavailable.into());
        }
        let mut wishes = self.wishes.borrow_mut();
        if !wishes.open.contains(&low) && wishes.open.len() < WISHES_MAX {
            wishes.open.push(low);
            let through = self.tail.front().map_or(high, |entry| entry.index.min(high)) - 1;
            let bytes_max = max.unwrap_or(u64::MAX);
            wishes.new.push(Wish { from: low, through, bytes_max, context });
        }
        Err(StorageError::LogTemporarilyUnavailable.into())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(index) {
            Some(term) => Ok(term),
            None if index < self.base.seq.0 => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.seq.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    /// The part of this member's file that was compacted: everything through the base. Its lines travel apart, as a stream.
    fn snapshot(&self, _: u64, _: u64) -> raft::Result<Snapshot> {
        if self.base.seq.0 == 0 {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(snapshot_at(self.base, self.base_members.conf_state()))
    }
}
