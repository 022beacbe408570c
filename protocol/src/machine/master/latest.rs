//! The last accepted write of each key, for as long as it is in flight: what the key is to hold is in memory then.
//!
//! Lookups and changes take a constant number of steps. Never looks into a write.

use super::WriteId;
use std::collections::hash_map::{Entry, HashMap};

/// Never iterated: order cannot reach an effect.
type Index = HashMap<u64, Last, foldhash::fast::FixedState>;

/// One of several writes, with its place in their order.
#[derive(Clone, Copy, Debug)]
struct Last {
    number: u64,
    write: WriteId,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Latest {
    /// How many were ever added.
    added: u64,
    /// By the hash of a key. Two keys with the same hash share an entry, that of the later write.
    of_key: Index,
    /// The last write of many keys, until all of them are taken in.
    of_many: Option<Last>,
}

/// Where the last accepted write of a key is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This write changes the key, or another one with the same hash.
    Here(WriteId),
    /// This write of many keys may change it, and is not taken in.
    Perhaps(WriteId),
}

impl Latest {
    /// Adds a write of the keys with these hashes; without hashes it is one of many keys.
    pub(super) fn note(&mut self, write: WriteId, hashes: Option<&[u64]>) {
        let last = Last { number: self.added, write };
        self.added += 1;
        match hashes {
            Some(hashes) => self.of_key.extend(hashes.iter().map(|hash| (*hash, last))),
            None => self.of_many = Some(last),
        }
    }

    /// A write is taken in or refused: one of many keys is in the directory then.
    pub(super) fn resolved(&mut self, write: WriteId) {
        if self.of_many.is_some_and(|last| last.write == write) {
            self.of_many = None;
        }
    }

    /// A write is in flight no more.
    pub(super) fn forget(&mut self, write: WriteId, hashes: Option<&[u64]>) {
        for hash in hashes.unwrap_or_default() {
            if let Entry::Occupied(entry) = self.of_key.entry(*hash) {
                if entry.get().write == write {
                    entry.remove();
                }
            }
        }
    }

    /// The last write of many keys, if it is not taken in.
    pub(super) fn of_any(&self) -> Option<Found> {
        self.of_many.map(|many| Found::Perhaps(many.write))
    }

    /// The last write of the key with this hash.
    pub(super) fn of(&self, hash: u64) -> Option<Found> {
        let own = self.of_key.get(&hash);
        match (own, self.of_many) {
            (Some(own), Some(many)) if own.number < many.number => Some(Found::Perhaps(many.write)),
            (None, Some(many)) => Some(Found::Perhaps(many.write)),
            (Some(own), _) => Some(Found::Here(own.write)),
            (None, None) => None,
        }
    }
}
