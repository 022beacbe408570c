//! A map from keys with bounded work per call: no call touches more than a few hundred entries, at any size.
//!
//! Owns growth, removal and the freeing of memory in small steps. Knows nothing of the values. An ordinary hash table
//! doubles in one call, which at some millions of keys takes seconds; this one is many small tables, of which one is
//! split when there are too many keys for all (*linear hashing*, Litwin 1980). Forgotten entries are freed a few with
//! each call, and by [`Table::tidy`].

use foldhash::fast::FixedState;
use hashbrown::hash_table::HashTable;
use std::hash::BuildHasher as _;

/// Nodes in one piece of [`Nodes`].
const PIECE_NODES: usize = 4096;

/// Average number of keys in a small table above which one more is made.
const SMALL_KEYS: usize = 128;

/// How many forgotten entries are freed with each new one: all are freed before as many new ones are there.
const FREED_WITH_INSERT: usize = 2;

/// Where a small table is chosen by the hash. `hashbrown` looks at the lowest bits, and at the seven highest.
const SMALL_SHIFT: u32 = 24;

/// Keys of at most this many bytes are stored in the node itself: in 24 bytes, where a boxed slice takes 16 and an
/// allocation of its own.
const INLINE_BYTES_MAX: usize = 22;

/// A key at rest. It keeps no buffer alive into which it was read, as a key in flight does.
#[derive(Clone, Debug)]
enum StoredKey {
    Short { length: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Long(Box<[u8]>),
}

const _: () = assert!(size_of::<StoredKey>() == 24);

impl StoredKey {
    fn bytes(&self) -> &[u8] {
        match self {
            StoredKey::Short { length, bytes } => &bytes[..usize::from(*length)],
            StoredKey::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for StoredKey {
    fn from(key: &[u8]) -> Self {
        if key.len() > INLINE_BYTES_MAX {
            return StoredKey::Long(key.into());
        }
        let mut bytes = [0; INLINE_BYTES_MAX];
        bytes[..key.len()].copy_from_slice(key);
        StoredKey::Short { length: key.len() as u8, bytes }
    }
}

#[derive(Clone, Debug)]
enum Node<V> {
    Kept {
        key: StoredKey,
        value: V,
    },
    /// Free, as is the next one.
    Vacant {
        next: Option<u32>,
    },
}

/// Nodes by number, in pieces that never move. So growth copies nothing and needs no extra memory, and a walk by number
/// neither misses nor repeats a node.
#[derive(Clone, Debug)]
struct Nodes<V> {
    pieces: Vec<Vec<Node<V>>>,
    vacant: Option<u32>,
}

impl<V> Nodes<V> {
    const EMPTY: Self = Nodes { pieces: Vec::new(), vacant: None };

    fn at(&self, number: usize) -> Option<(&[u8], &V)> {
        match self.pieces.get(number / PIECE_NODES)?.get(number % PIECE_NODES)? {
            Node::Kept { key, value } => Some((key.bytes(), value)),
            Node::Vacant { .. } => None,
        }
    }

    fn at_mut(&mut self, number: usize) -> Option<(&[u8], &mut V)> {
        match self.pieces.get_mut(number / PIECE_NODES)?.get_mut(number % PIECE_NODES)? {
            Node::Kept { key, value } => Some((key.bytes(), value)),
            Node::Vacant { .. } => None,
        }
    }

    fn key(&self, number: u32) -> &[u8] {
        touched();
        self.at(number as usize).expect("the tables name nodes that are kept").0
    }

    fn insert(&mut self, key: &[u8], value: V) -> u32 {
        let node = Node::Kept { key: key.into(), value };
        if let Some(number) = self.vacant {
            let place = &mut self.pieces[number as usize / PIECE_NODES][number as usize % PIECE_NODES];
            if let Node::Vacant { next } = std::mem::replace(place, node) {
                self.vacant = next;
            }
            return number;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE_NODES) {
            // The first piece grows with its content, because most tables in tests are tiny.
            let room = if self.pieces.is_empty() { 0 } else { PIECE_NODES };
            self.pieces.push(Vec::with_capacity(room));
        }
        let before = (self.pieces.len() - 1) * PIECE_NODES;
        let piece = self.pieces.last_mut().expect("a piece was just made sure of");
        piece.push(node);
        u32::try_from(before + piece.len() - 1).expect("there are fewer than 4 billion keys")
    }

    fn remove(&mut self, number: u32) -> Option<V> {
        let place = &mut self.pieces[number as usize / PIECE_NODES][number as usize % PIECE_NODES];
        match std::mem::replace(place, Node::Vacant { next: self.vacant }) {
            Node::Kept { value, .. } => {
                self.vacant = Some(number);
                Some(value)
            }
            Node::Vacant { .. } => None,
        }
    }
}

/// Entries that were forgotten all at once and are still to be freed.
#[derive(Clone, Debug)]
struct Forgotten<V> {
    pieces: Vec<Vec<Node<V>>>,
    small: Vec<HashTable<u32>>,
}

impl<V> Forgotten<V> {
    /// Frees up to `entries` entries; gives how many of these it did not need because no more were left.
    fn free(&mut self, entries: usize) -> usize {
        let mut left = entries;
        while left > 0 {
            if let Some(piece) = self.pieces.last_mut() {
                let freed = left.min(piece.len());
                piece.truncate(piece.len() - freed);
                left -= freed;
                touched_times(freed);
                if piece.is_empty() {
                    self.pieces.pop();
                }
            } else if self.small.pop().is_some() {
                left -= 1;
                touched();
            } else {
                break;
            }
        }
        left
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.small.is_empty()
    }
}

/// Keys to values. Iteration order is the same for the same sequence of calls.
#[derive(Clone, Debug)]
pub(crate) struct Table<V> {
    hasher: FixedState,
    /// The numbers of the nodes. There are between `2^level` and twice as many; the first ones are split already.
    small: Vec<HashTable<u32>>,
    level: u32,
    len: usize,
    nodes: Nodes<V>,
    forgotten: Forgotten<V>,
}

impl<V> Table<V> {
    /// An empty table. Keys come from clients, so their hash is seeded.
    pub(crate) fn new(seed: u64) -> Self {
        Table {
            hasher: FixedState::with_seed(seed),
            small: vec![HashTable::new()],
            level: 0,
            len: 0,
            nodes: Nodes::EMPTY,
            forgotten: Forgotten { pieces: Vec::new(), small: Vec::new() },
        }
    }

    /// The small table of a key with this hash.
    fn which(&self, hash: u64) -> usize {
        let bits = (hash >> SMALL_SHIFT) as usize;
        let whole = bits & ((2 << self.level) - 1);
        // That small table is not made yet: its keys are still in the one that will be split.
        if whole < self.small.len() {
            whole
        } else {
            bits & ((1 << self.level) - 1)
        }
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.small[self.which(hash)].find(hash, |number| self.nodes.key(*number) == key).copied()
    }

    /// The number of the entry of `key`, which it keeps as long as its key is there.
    pub(crate) fn number(&self, key: &[u8]) -> Option<u32> {
        self.find(key)
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&V> {
        self.nodes.at(self.find(key)? as usize).map(|(_, value)| value)
    }

    /// The value of `key`, to change it.
    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let number = self.find(key)?;
        self.nodes.at_mut(number as usize).map(|(_, value)| value)
    }

    /// Replaces the value of `key` and returns the one it supersedes.
    pub(crate) fn insert(&mut self, key: &[u8], value: V) -> Option<V> {
        if let Some(held) = self.get_mut(key) {
            return Some(std::mem::replace(held, value));
        }
        self.forgotten.free(FREED_WITH_INSERT);
        if self.len >= self.small.len() * SMALL_KEYS {
            self.split();
        }
        let hash = self.hasher.hash_one(key);
        let which = self.which(hash);
        let number = self.nodes.insert(key, value);
        let Table { hasher, small, nodes, .. } = self;
        small[which].insert_unique(hash, number, |number| hasher.hash_one(nodes.key(*number)));
        self.len += 1;
        None
    }

    /// Makes one more small table, for half of the keys of the one whose turn it is.
    fn split(&mut self) {
        let from = self.small.len() - (1 << self.level);
        let old = std::mem::take(&mut self.small[from]);
        let added = self.small.len();
        self.small.push(HashTable::new());
        if added + 1 == 2 << self.level {
            self.level += 1;
        }
        let hashes: Vec<(u64, u32)> =
            old.iter().map(|number| (self.hasher.hash_one(self.nodes.key(*number)), *number)).collect();
        let moved = hashes.iter().filter(|(hash, _)| self.which(*hash) == added).count();
        for (which, keys) in [(from, hashes.len() - moved), (added, moved)] {
            self.small[which] = HashTable::with_capacity(keys);
        }
        for (hash, number) in hashes {
            let which = self.which(hash);
            // There is room for it, so no hash is needed.
            let Table { hasher, small, nodes, .. } = self;
            small[which].insert_unique(hash, number, |number| hasher.hash_one(nodes.key(*number)));
        }
    }

    /// Removes `key` and returns its last value.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let which = self.which(hash);
        let Table { small, nodes, .. } = self;
        let found = small[which].find_entry(hash, |number| nodes.key(*number) == key).ok()?;
        let (number, _) = found.remove();
        self.len -= 1;
        self.nodes.remove(number)
    }

    /// The number of keys.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets everything. The memory is freed little by little.
    pub(crate) fn clear(&mut self) {
        self.forgotten.pieces.append(&mut std::mem::replace(&mut self.nodes, Nodes::EMPTY).pieces);
        self.forgotten.small.append(&mut self.small);
        self.small = vec![HashTable::new()];
        (self.level, self.len) = (0, 0);
    }

    /// Frees up to `entries` entries of what was forgotten.
    pub(crate) fn tidy(&mut self, entries: usize) {
        self.forgotten.free(entries);
    }

    /// Whether no forgotten entry is left to be freed.
    pub(crate) fn is_tidy(&self) -> bool {
        self.forgotten.is_empty()
    }

    /// All entries have numbers below this. An entry keeps its number as long as its key is there.
    pub(crate) fn numbers(&self) -> usize {
        self.nodes.pieces.len().saturating_sub(1) * PIECE_NODES + self.nodes.pieces.last().map_or(0, Vec::len)
    }

    /// The entry with this number, if there is one.
    pub(crate) fn at(&self, number: usize) -> Option<(&[u8], &V)> {
        self.nodes.at(number)
    }

    /// The entry with this number, to change its value.
    pub(crate) fn at_mut(&mut self, number: usize) -> Option<&mut V> {
        self.nodes.at_mut(number).map(|(_, value)| value)
    }

    /// All entries, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        (0..self.numbers()).filter_map(|number| self.at(number))
    }
}

#[cfg(test)]
thread_local! {
    /// How many entries were looked at, moved or freed.
    static TOUCHED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn touched() {
    touched_times(1);
}

fn touched_times(times: usize) {
    #[cfg(test)]
    TOUCHED.with(|touched| touched.set(touched.get() + times));
    #[cfg(not(test))]
    let _ = times;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The most entries that one call may touch. At 100 ns for each, a tenth of a millisecond.
    const TOUCHED_MAX: usize = 1000;

    /// Runs `call` and gives how many entries it touched.
    fn touches<T>(call: impl FnOnce() -> T) -> usize {
        let before = TOUCHED.with(std::cell::Cell::get);
        call();
        TOUCHED.with(std::cell::Cell::get) - before
    }

    #[test]
    fn no_call_touches_many_entries_however_many_keys_there_are() {
        let mut table = Table::new(7);
        let mut most = 0;
        let mut sum = 0;
        for key in 0..300_000u64 {
            let touched = touches(|| table.insert(&key.to_le_bytes(), key));
            (most, sum) = (most.max(touched), sum + touched);
        }
        assert!(most <= TOUCHED_MAX, "an insert touched {most}");
        assert!(sum <= 300_000 * 12, "{sum} touched in all: growth costs more than it should");
        for key in 0..150_000u64 {
            most = most.max(touches(|| table.remove(&(key * 2).to_le_bytes())));
        }
        for key in 300_000..400_000u64 {
            most = most.max(touches(|| table.insert(&key.to_le_bytes(), key)));
        }
        assert_eq!(table.len(), 250_000);
        most = most.max(touches(|| table.clear()));
        assert_eq!((table.len(), table.is_tidy()), (0, false));
        for key in 0..400_000u64 {
            most = most.max(touches(|| table.insert(&key.to_le_bytes(), key)));
        }
        assert!(most <= TOUCHED_MAX, "a call touched {most}");
        assert!(table.is_tidy(), "what was forgotten stays as long as new keys come");
        table.clear();
        assert!(touches(|| table.tidy(500)) <= 500);
        while !table.is_tidy() {
            table.tidy(10_000);
        }
    }

    #[test]
    fn a_walk_by_number_meets_each_remaining_key_once() {
        let mut table = Table::new(1);
        for key in 0..10_000u64 {
            table.insert(&key.to_le_bytes(), key);
        }
        let mut met = vec![0; 20_000];
        for number in 0..table.numbers() {
            if let Some((_, value)) = table.at(number) {
                met[*value as usize] += 1;
            }
            // Meanwhile others come and go.
            let number = number as u64;
            table.remove(&(number / 2 * 2).to_le_bytes());
            table.insert(&(10_000 + number).to_le_bytes(), 10_000 + number);
        }
        assert!((1..10_000).step_by(2).all(|key| met[key] == 1));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u16),
        Remove(u16),
        Clear,
        Tidy(usize),
    }

    /// Its name, short or long.
    fn name(key: u16) -> Vec<u8> {
        format!("{key:0>width$}", width = usize::from(key % 40)).into_bytes()
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            2000 => (0..3000u16).prop_map(Op::Insert),
            1000 => (0..3000u16).prop_map(Op::Remove),
            1 => Just(Op::Clear),
            5 => (0..1000usize).prop_map(Op::Tidy),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn it_behaves_like_a_map(ops in prop::collection::vec(op(), 0..6000)) {
            let mut table = Table::new(7);
            let mut model: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
            for (value, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert(key) => {
                        let key = name(key);
                        prop_assert_eq!(table.insert(&key, value), model.insert(key, value));
                    }
                    Op::Remove(key) => {
                        let key = name(key);
                        prop_assert_eq!(table.get(&key), model.get(&key));
                        prop_assert_eq!(table.remove(&key), model.remove(&key));
                    }
                    Op::Clear => {
                        table.clear();
                        model.clear();
                    }
                    Op::Tidy(entries) => table.tidy(entries),
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for (key, value) in &model {
                prop_assert_eq!(table.get(key), Some(value));
            }
            let all: BTreeMap<Vec<u8>, usize> = table.iter().map(|(key, value)| (key.to_vec(), *value)).collect();
            prop_assert_eq!(all, model);
        }
    }
}
