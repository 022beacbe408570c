//! The directory: which version of each key is the latest written one, where its value stands in the log, who holds it.
//!
//! Owns nothing of a value. With a log, a key that is not here was never written, or was deleted.

use super::membership::SlotSet;
use crate::ids::Version;
use crate::record::Place;
use foldhash::fast::FixedState;
use hashbrown::hash_table::HashTable;
use std::hash::BuildHasher as _;

/// What the directory knows of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The latest written version.
    pub version: Version,
    /// Where the value stands in the log.
    pub place: Place,
    /// The slots of the slaves that hold that version. Slots that are no longer live count as absent.
    pub holders: SlotSet,
}

/// There is one for every key.
const _: () = assert!(size_of::<Entry>() <= 48);

#[derive(Clone, Debug)]
struct Node {
    // A boxed slice: a key in flight pins the buffer it was read into, a key at rest must not.
    key: Box<[u8]>,
    entry: Entry,
}

/// Nodes in one piece of [`Nodes`].
const PIECE_NODES: usize = 4096;

/// Nodes by number, in pieces that never move: a table of a million keys grows without being copied, so that its peak
/// is its size.
#[derive(Clone, Debug, Default)]
struct Nodes {
    pieces: Vec<Vec<Option<Node>>>,
    vacant: Vec<u32>,
}

impl Nodes {
    fn get(&self, number: u32) -> &Node {
        let number = number as usize;
        self.pieces[number / PIECE_NODES][number % PIECE_NODES]
            .as_ref()
            .expect("the table names nodes that exist")
    }

    fn get_mut(&mut self, number: u32) -> &mut Node {
        let number = number as usize;
        self.pieces[number / PIECE_NODES][number % PIECE_NODES]
            .as_mut()
            .expect("the table names nodes that exist")
    }

    fn insert(&mut self, node: Node) -> u32 {
        if let Some(number) = self.vacant.pop() {
            self.pieces[number as usize / PIECE_NODES][number as usize % PIECE_NODES] = Some(node);
            return number;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE_NODES) {
            self.pieces.push(Vec::with_capacity(PIECE_NODES));
        }
        let before = (self.pieces.len() - 1) * PIECE_NODES;
        let piece = self.pieces.last_mut().expect("a piece was just made sure of");
        piece.push(Some(node));
        u32::try_from(before + piece.len() - 1).expect("there are fewer than 4 billion keys")
    }

    fn remove(&mut self, number: u32) -> Node {
        self.vacant.push(number);
        self.pieces[number as usize / PIECE_NODES][number as usize % PIECE_NODES]
            .take()
            .expect("the table names nodes that exist")
    }
}

/// Key to [`Entry`]. Iteration order is the same for the same sequence of calls.
#[derive(Clone, Debug)]
pub struct Directory {
    hasher: FixedState,
    table: HashTable<u32>,
    nodes: Nodes,
}

impl Directory {
    /// An empty directory. Keys come from clients, so their hash is seeded.
    pub fn new(seed: u64) -> Self {
        Directory { hasher: FixedState::with_seed(seed), table: HashTable::new(), nodes: Nodes::default() }
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.table.find(hash, |number| *self.nodes.get(*number).key == *key).copied()
    }

    /// The entry of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.find(key).map(|number| &self.nodes.get(number).entry)
    }

    /// The entry of `key`, to change its holders.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut Entry> {
        self.find(key).map(|number| &mut self.nodes.get_mut(number).entry)
    }

    /// Replaces the entry of `key` and returns the one it supersedes.
    pub fn insert(&mut self, key: &[u8], entry: Entry) -> Option<Entry> {
        let hash = self.hasher.hash_one(key);
        if let Some(number) = self.table.find(hash, |number| *self.nodes.get(*number).key == *key) {
            return Some(std::mem::replace(&mut self.nodes.get_mut(*number).entry, entry));
        }
        let number = self.nodes.insert(Node { key: key.into(), entry });
        let Directory { hasher, table, nodes } = self;
        table.insert_unique(hash, number, |number| hasher.hash_one(&*nodes.get(*number).key));
        None
    }

    /// Removes `key` and returns its last entry.
    pub fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let hash = self.hasher.hash_one(key);
        let found = self.table.find_entry(hash, |number| *self.nodes.get(*number).key == *key).ok()?;
        let (number, _) = found.remove();
        Some(self.nodes.remove(number).entry)
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Forgets everything, as when the log is a new file.
    pub fn clear(&mut self) {
        self.table = HashTable::new();
        self.nodes = Nodes::default();
    }

    /// Clears the bits of all slots but `live` everywhere, so that the others can be given away again.
    pub fn sweep(&mut self, live: SlotSet) {
        for node in self.nodes.pieces.iter_mut().flatten().flatten() {
            node.entry.holders = node.entry.holders.intersection(live);
        }
    }

    /// All keys with their entries.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.nodes.pieces.iter().flatten().flatten().map(|node| (&*node.key, &node.entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::master::Slot;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(seq: u64) -> Entry {
        let place = Place { offset: seq * 100, bytes: 50, ..Place::default() };
        Entry {
            version: Version::new(1, seq),
            place,
            holders: [Slot((seq % 64) as u8)].into_iter().collect(),
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u16),
        Remove(u16),
        Sweep(u8),
        Clear,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            20 => (0..600u16).prop_map(Op::Insert),
            15 => (0..600u16).prop_map(Op::Remove),
            1 => (0..64u8).prop_map(Op::Sweep),
            1 => Just(Op::Clear),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_behaves_like_a_map(ops in prop::collection::vec(op(), 0..2000)) {
            let mut directory = Directory::new(7);
            let mut model: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
            for (seq, op) in ops.into_iter().enumerate() {
                let seq = seq as u64;
                match op {
                    Op::Insert(key) => {
                        let key = key.to_string().into_bytes();
                        prop_assert_eq!(directory.insert(&key, entry(seq)), model.insert(key, entry(seq)));
                    }
                    Op::Remove(key) => {
                        let key = key.to_string().into_bytes();
                        prop_assert_eq!(directory.remove(&key), model.remove(&key));
                    }
                    Op::Sweep(live) => {
                        let live = [Slot(live)].into_iter().collect();
                        directory.sweep(live);
                        for entry in model.values_mut() {
                            entry.holders = entry.holders.intersection(live);
                        }
                    }
                    Op::Clear => {
                        directory.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(directory.len(), model.len());
            }
            let mut all: Vec<(Vec<u8>, Entry)> = directory.iter().map(|(k, e)| (k.to_vec(), *e)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
