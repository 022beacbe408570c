//! What is put off to later steps, as data: [`Work`], and what its steps carry from one to the next.
//!
//! Reads and writes put it there, `slices.rs` takes it up again. Nothing here looks at the machine.

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
}

/// What is done in slices.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// What the log has answered.
    Outcome(LogOutcome),
    /// Reads that have waited for a write of their own session, which is resolved.
    Resumed {
        session: SessionId,
        waiting: std::vec::IntoIter<HeldRead>,
        /// What was written, if it was.
        written: Option<Arc<Change>>,
        /// Whether they go on: not when nobody knows what became of the write.
        may_read: bool,
    },
    /// A request that is not begun.
    Request { asker: Asker, deadline: Millis, command: Command },
    /// A read of several keys of which some are not asked for yet.
    Gather { asker: Asker, deadline: Millis, gather: GatherKey, next: usize, keys: std::vec::IntoIter<Bytes> },
    /// A count of those that exist.
    Count { asker: Asker, keys: std::vec::IntoIter<Bytes>, existing: u64 },
    /// A write whose keys are told apart.
    Distinguish {
        asker: Asker,
        longest: usize,
        pairs: std::vec::IntoIter<(Bytes, Bytes)>,
        distinct: DistinctPairs,
    },
    /// What a write of many keys leaves behind, which is to be freed.
    Forget { pairs: smallvec::IntoIter<[(Bytes, Bytes); 1]> },
    /// A write for which room is being set aside.
    Admit { asker: Asker, longest: usize, change: Change, admission: RoomSought },
}

impl Work {
    /// The session whose request this is; it has nothing to do with the log's answer.
    pub(super) fn session(&self) -> Option<SessionId> {
        match self {
            Work::Outcome(_) | Work::Forget { .. } => None,
            Work::Resumed { session, .. } => Some(*session),
            Work::Request { asker, .. }
            | Work::Gather { asker, .. }
            | Work::Count { asker, .. }
            | Work::Distinguish { asker, .. }
            | Work::Admit { asker, .. } => Some(asker.session),
        }
    }

    /// How long the longest value is that it writes, in bytes.
    pub(super) fn longest(&self) -> usize {
        match self {
            Work::Distinguish { longest, .. } | Work::Admit { longest, .. } => *longest,
            Work::Request { command, .. } => command.operands().longest_value(),
            Work::Outcome(_)
            | Work::Forget { .. }
            | Work::Resumed { .. }
            | Work::Gather { .. }
            | Work::Count { .. } => 0,
        }
    }
}

/// What became of a write in the log.
#[derive(Clone, Debug)]
pub(super) enum LogOutcome {
    Written {
        write: WriteId,
        /// One for each pair of a `Put`.
        places: SmallVec<[Place; 1]>,
        /// So many keys are taken in.
        done: usize,
        /// So many of them were there: what a deletion answers.
        existed: u64,
    },
    NotWritten {
        write: WriteId,
        word: ErrorWord,
        detail: String,
    },
}

/// What a write of the same session holds back.
#[derive(Clone, Debug)]
pub(super) enum HeldRead {
    Get { asker: Asker, deadline: Millis, key: Bytes },
    GetMany { asker: Asker, deadline: Millis, keys: Vec<Bytes> },
    Exists { asker: Asker, keys: Vec<Bytes> },
    KeyCount { asker: Asker },
}

/// The pairs of a write by their keys. A key that stands twice takes its last value.
#[derive(Clone, Debug)]
pub(super) struct DistinctPairs {
    hasher: foldhash::fast::FixedState,
    /// Where in `pairs` a key stands.
    seen: HashTable<u32>,
    pairs: Vec<(Bytes, Bytes)>,
    payload_bytes: u64,
}

impl DistinctPairs {
    /// Room for so many pairs, so that none of them takes long.
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
        // There is room for all of them, so that no hash is asked for again.
        seen.insert_unique(hash, pairs.len() as u32, |place| hasher.hash_one(&pairs[*place as usize].0));
        pairs.push((key, value));
    }

    /// The pairs, in the order of their keys' first places, and the bytes that they take.
    pub(super) fn into_pairs(self) -> (SmallVec<[(Bytes, Bytes); 1]>, u64) {
        (SmallVec::from_vec(self.pairs), self.payload_bytes)
    }
}
