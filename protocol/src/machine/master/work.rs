//! Work that is left for later steps, as data: [`Work`], and the state that its steps pass on.
//!
//! Reads and writes create it, `slices.rs` continues it. Nothing here uses the machine.

use super::room::{payload, RoomSought};
use super::{Asker, Change, WriteId};
use crate::command::{Command, ErrorWord};
use crate::ids::{Millis, SessionId};
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
}

/// Work that is done in slices.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// What the log has answered.
    Outcome(LogOutcome),
    /// Reads that have waited for a write of their own session, which is now resolved.
    Resumed {
        session: SessionId,
        waiting: std::vec::IntoIter<HeldRead>,
        /// The write, if it was written.
        written: Option<Arc<Change>>,
        /// Whether they go on: not when the outcome of the write is unknown.
        may_read: bool,
    },
    /// A request that has not begun.
    Request { asker: Asker, deadline: Millis, command: Command },
    /// The same, before what waits in its session's line.
    FromLine { asker: Asker, deadline: Millis, command: Command },
    /// A read of several keys, some of which are not asked for yet.
    Gather { asker: Asker, deadline: Millis, gather: GatherKey, next: usize, keys: std::vec::IntoIter<Bytes> },
    /// A count of those that exist.
    Count { asker: Asker, keys: std::vec::IntoIter<Bytes>, existing: u64 },
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
            Work::Resumed { session, .. } => Some(*session),
            Work::Request { asker, .. }
            | Work::FromLine { asker, .. }
            | Work::Gather { asker, .. }
            | Work::Count { asker, .. }
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
            | Work::Count { .. } => 0,
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

/// A read that waits for a write of the same session, or an update that depends on a write of any.
#[derive(Clone, Debug)]
pub(super) enum HeldRead {
    Get { asker: Asker, deadline: Millis, key: Bytes },
    GetMany { asker: Asker, deadline: Millis, keys: Vec<Bytes> },
    Exists { asker: Asker, keys: Vec<Bytes> },
    KeyCount { asker: Asker },
    ValueLength { asker: Asker, key: Bytes },
    Line { update: UpdateKey },
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
