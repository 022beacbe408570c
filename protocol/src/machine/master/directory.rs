//! The directory: which version of each key is the latest written one, where it stands in the log, who holds it.
//!
//! Owns nothing of a value. With a log, a key that is not here was never written, deleted, or has expired.

use super::membership::SlotSet;
use crate::ids::Version;
use crate::record::Place;
use indexmap::IndexMap;

/// What the directory knows of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The latest written version.
    pub version: Version,
    /// Where the record stands.
    pub place: Place,
    /// The slots of the slaves that hold that version. Slots that are no longer live count as absent.
    pub holders: SlotSet,
}

/// Key to [`Entry`]. Iteration order is the order of insertion, disturbed by removals, but the same for the same
/// sequence of calls.
#[derive(Debug)]
pub struct Directory {
    // Boxed slices: a key in flight pins the buffer it was read into, a key at rest must not.
    entries: IndexMap<Box<[u8]>, Entry, foldhash::fast::FixedState>,
}

impl Directory {
    /// An empty directory. Keys come from clients, so their hash is seeded.
    pub fn new(seed: u64) -> Self {
        Directory { entries: IndexMap::with_hasher(foldhash::fast::FixedState::with_seed(seed)) }
    }

    /// The entry of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The entry of `key`, to change its holders.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// Replaces the entry of `key` and returns the one it supersedes.
    pub fn insert(&mut self, key: &[u8], entry: Entry) -> Option<Entry> {
        if let Some(present) = self.entries.get_mut(key) {
            return Some(std::mem::replace(present, entry));
        }
        self.entries.insert(key.into(), entry);
        None
    }

    /// Removes `key` and returns its last entry.
    pub fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        self.entries.swap_remove(key)
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets everything, as when the log is a new file.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Clears the bits of all slots but `live` everywhere, so that the others can be given away again.
    pub fn sweep(&mut self, live: SlotSet) {
        for entry in self.entries.values_mut() {
            entry.holders = entry.holders.intersection(live);
        }
    }

    /// All keys with their entries.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(key, entry)| (&**key, entry))
    }
}
