//! Work that is left for later steps, as data: [`Work`], and the state that its steps pass on.
//!
//! Reads and writes create it, `slices.rs` continues it. Nothing here uses the machine.

use super::room::{payload, RoomSought};
use super::{Asker, Change, WriteId};
use crate::command::{Command, ErrorWord, Reply, TimeForm};
use crate::ids::{Millis, SessionId, UnixMillis};
use crate::record::Place;
use bytes::Bytes;
use hashbrown::hash_table::HashTable;
use slotmap::new_key_type;
use smallvec::SmallVec;
use std::hash::BuildHasher as _;
use std::sync::Arc;

new_key_type! {
    pub(super) struct GatherKey;
    /// Names an update that is not decided.
    pub(super) struct UpdateKey;
    /// Names a walk over all entries.
    pub(super) struct WalkKey;
}

/// Who asks for a record that is a part of a request: who waits for it tells the client. Sessions count from 0.
pub(super) const PART: Asker = Asker { session: SessionId(u64::MAX - 1), tag: 0 };

impl Asker {
    /// Whether no client is answered for this record alone.
    pub(super) fn is_of_part(self) -> bool {
        self == PART
    }
}

/// Work that is done in slices.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// What the log has answered.
    Outcome(LogOutcome),
    /// Reads that have waited for a write, which is now resolved.
    Resumed {
        /// Whose they are; `None` when they are of several sessions.
        session: Option<SessionId>,
        waiting: std::vec::IntoIter<HeldRead>,
        /// The write, if it was written.
        written: Option<Arc<Change>>,
        /// The answer to all of them, if they do not go on.
        refusal: Option<Reply>,
    },
    /// A request that has not begun.
    Request { asker: Asker, deadline: Millis, command: Command },
    /// The same, before what waits in its session's line.
    FromLine { asker: Asker, deadline: Millis, command: Command },
    /// A read of several keys, some of which are not asked for yet.
    Gather { asker: Asker, deadline: Millis, gather: GatherKey, next: usize, keys: std::vec::IntoIter<Bytes> },
    /// A count of those that exist.
    Count(ExistCount),
    /// A write whose keys are being deduplicated.
    Distinguish {
        asker: Asker,
        longest: usize,
        pairs: std::vec::IntoIter<(Bytes, Bytes)>,
        distinct: DistinctPairs,
    },
    /// The memory of a finished write of many keys, to be freed.
    Forget { pairs: smallvec::IntoIter<[(Bytes, Bytes); 1]> },
    /// A write for which room is being set aside.
    Admit { asker: Asker, longest: usize, change: Change, admission: RoomSought },
}

impl Work {
    /// The session of the request; `None` for an answer of the log and for memory to be freed.
    pub(super) fn session(&self) -> Option<SessionId> {
        match self {
            Work::Outcome(_) | Work::Forget { .. } => None,
            Work::Resumed { session, .. } => *session,
            Work::Request { asker, .. }
            | Work::FromLine { asker, .. }
            | Work::Gather { asker, .. }
            | Work::Count(ExistCount { asker, .. })
            | Work::Distinguish { asker, .. }
            | Work::Admit { asker, .. } => Some(asker.session),
        }
    }

    /// The longest value that it writes, in bytes.
    pub(super) fn longest(&self) -> usize {
        match self {
            Work::Distinguish { longest, .. } | Work::Admit { longest, .. } => *longest,
            Work::Request { command, .. } | Work::FromLine { command, .. } => {
                command.operands().longest_value()
            }
            Work::Outcome(_)
            | Work::Forget { .. }
            | Work::Resumed { .. }
            | Work::Gather { .. }
            | Work::Count(_) => 0,
        }
    }
}

/// The log's answer to a write.
#[derive(Clone, Debug)]
pub(super) enum LogOutcome {
    Written {
        write: WriteId,
        /// One for each pair of a `Put`.
        places: SmallVec<[Place; 1]>,
        /// How many keys are processed.
        done: usize,
        /// How many of them existed: the answer of a deletion.
        existed: u64,
    },
    NotWritten {
        write: WriteId,
        word: ErrorWord,
        detail: String,
    },
}

/// Where the value of a read goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Destination {
    Asker(Asker),
    Part(GatherKey, usize),
    /// An update that depends on the value.
    Update(UpdateKey),
    /// A transaction that depends on it, and its place among those that it depends on.
    Wanted(UpdateKey, u32),
    /// Repair or rebalancing, with so many bytes of their window.
    Repair {
        bytes: u64,
        purpose: CopyPurpose,
    },
}

/// For what a value is read for which no client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyPurpose {
    /// The key lacks copies.
    Repairs,
    /// A copy is to move.
    Moves,
}

/// Why a request is refused that stands behind a write whose outcome is unknown.
pub(super) const UNKNOWN_BEFORE: &str = "the outcome of the write before this one is unknown";

/// A count of keys that exist.
#[derive(Clone, Debug)]
pub(super) struct ExistCount {
    pub(super) asker: Asker,
    pub(super) deadline: Millis,
    /// Those that are not looked at yet.
    pub(super) keys: std::vec::IntoIter<Bytes>,
    pub(super) existing: u64,
}

impl ExistCount {
    pub(super) fn of(asker: Asker, deadline: Millis, keys: Vec<Bytes>) -> Self {
        ExistCount { asker, deadline, keys: keys.into_iter(), existing: 0 }
    }
}

/// A SCAN.
#[derive(Clone, Debug)]
pub(super) struct KeyScan {
    pub(super) asker: Asker,
    pub(super) deadline: Millis,
    pub(super) cursor: u64,
    /// What its keys match, if that is not everything.
    pub(super) pattern: Option<Bytes>,
    pub(super) count: u32,
    /// Whether it shows keys at all.
    pub(super) shows: bool,
    /// What time it was when it first looked.
    pub(super) time: Option<UnixMillis>,
}

/// A read that waits for a write of the same session, or of any that decides whether a key has expired; or an update that depends
/// on a write of any.
#[derive(Clone, Debug)]
pub(super) enum HeldRead {
    /// Of a key whose time has come.
    Expired {
        to: Destination,
        deadline: Millis,
        key: Bytes,
    },
    /// It goes on with a key whose time has come.
    Count(ExistCount),
    TimeToLive {
        asker: Asker,
        deadline: Millis,
        key: Bytes,
        form: TimeForm,
    },
    Get {
        asker: Asker,
        deadline: Millis,
        key: Bytes,
    },
    GetMany {
        asker: Asker,
        deadline: Millis,
        keys: Vec<Bytes>,
    },
    Exists {
        asker: Asker,
        deadline: Millis,
        keys: Vec<Bytes>,
    },
    KeyCount {
        asker: Asker,
    },
    /// Which versions keys have.
    Watch {
        asker: Asker,
        keys: Vec<Bytes>,
    },
    ValueLength {
        asker: Asker,
        deadline: Millis,
        key: Bytes,
    },
    Line {
        update: UpdateKey,
    },
    Scan(KeyScan),
    Walk {
        walk: WalkKey,
    },
}

/// The pairs of a write by their keys. A key that stands twice takes its last value.
#[derive(Clone, Debug)]
pub(super) struct DistinctPairs {
    hasher: foldhash::fast::FixedState,
    /// The place of each key in `pairs`.
    seen: HashTable<u32>,
    pairs: Vec<(Bytes, Bytes)>,
    payload_bytes: u64,
}

impl DistinctPairs {
    /// Room for this many pairs, so that no insertion takes long.
    pub(super) fn of(pairs: usize) -> Self {
        DistinctPairs {
            hasher: foldhash::fast::FixedState::default(),
            seen: HashTable::with_capacity(pairs),
            pairs: Vec::with_capacity(pairs),
            payload_bytes: 0,
        }
    }

    pub(super) fn from_iter(pairs: Vec<(Bytes, Bytes)>) -> Self {
        let mut distinct = DistinctPairs::of(pairs.len());
        pairs.into_iter().for_each(|(key, value)| distinct.insert(key, value));
        distinct
    }

    pub(super) fn insert(&mut self, key: Bytes, value: Bytes) {
        let DistinctPairs { hasher, seen, pairs, payload_bytes } = self;
        let hash = hasher.hash_one(&key);
        *payload_bytes += payload(&key, &value);
        if let Some(place) = seen.find(hash, |place| pairs[*place as usize].0 == key) {
            let (key, earlier) = &mut pairs[*place as usize];
            *payload_bytes -= payload(key, earlier);
            *earlier = value;
            return;
        }
        // There is room for all of them, so no hash is computed again.
        seen.insert_unique(hash, pairs.len() as u32, |place| hasher.hash_one(&pairs[*place as usize].0));
        pairs.push((key, value));
    }

    /// The pairs, in the order of their keys' first places, and the bytes that they take.
    pub(super) fn into_pairs(self) -> (SmallVec<[(Bytes, Bytes); 1]>, u64) {
        (SmallVec::from_vec(self.pairs), self.payload_bytes)
    }
}
