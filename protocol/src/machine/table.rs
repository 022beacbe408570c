//! A map from keys with bounded work per call: no call touches more than a few hundred entries, at any size.
//!
//! Owns growth, removal and the freeing of memory in small steps. Knows nothing of the values. An ordinary hash table
//! doubles in one call, which at some millions of keys takes seconds; this one splits one short chain of entries with each
//! new one (*linear hashing*, Litwin 1980). Forgotten entries are freed a few with each call, and by [`Table::tidy`].
//!
//! A chain is linked through the entries themselves. So an entry costs 4 to 8 bytes beside its key and value, nothing is
//! allocated for a single one, and nothing that is freed leaves gaps.

use crate::stored_key::StoredKey;
use foldhash::fast::FixedState;
use std::hash::BuildHasher as _;

/// Elements in one page of [`Paged`].
const PAGE_ELEMENTS: usize = 4096;

/// Chains in one page of [`Heads`]. Where far more keys are expected than come, each may cost a page.
const PAGE_CHAINS: usize = 256;

/// How many forgotten entries are freed with each new one: all are freed before as many new ones are there.
const FREED_WITH_INSERT: usize = 2;

/// For so many keys [`Table::warm`] fetches at once what is looked at first.
const WARMED_KEYS: usize = 32;

/// How many chains for each key there may be when many keys more are expected. Each takes 4 bytes.
const CHAINS_AHEAD: usize = 4;

/// How many chains at most an empty table is given: one call makes the list of their pages.
const CHAINS_EXPECTED_MAX: usize = 1 << 26;

/// How many chains at most are made in one call because more keys are expected.
const SPLITS_AHEAD: usize = 4096;

/// So many bits of a key's hash, the lowest first, make its position in a scan. There are never so many chains.
pub(crate) const POSITION_BITS: u32 = 40;

/// Below this are all positions.
const POSITIONS: u64 = 1 << POSITION_BITS;

/// A number of so many bits tells the order of one seed from that of another.
pub(crate) const ORDER_BITS: u32 = 13;

/// The number of no node: the end of a chain.
const NONE: u32 = u32::MAX;

/// The position of a hash: its lowest bits in reverse, so that a chain's keys are neighbours however many chains there are.
fn position(hash: u64) -> u64 {
    hash.reverse_bits() >> (u64::BITS - POSITION_BITS)
}

/// A list whose elements never move, in pages. So growth copies nothing and needs no extra memory.
#[derive(Clone, Debug)]
struct Paged<T> {
    pages: Vec<Vec<T>>,
}

impl<T> Paged<T> {
    const EMPTY: Self = Paged { pages: Vec::new() };

    fn len(&self) -> usize {
        self.pages.len().saturating_sub(1) * PAGE_ELEMENTS + self.pages.last().map_or(0, Vec::len)
    }

    fn get(&self, index: usize) -> Option<&T> {
        self.pages.get(index / PAGE_ELEMENTS)?.get(index % PAGE_ELEMENTS)
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.pages.get_mut(index / PAGE_ELEMENTS)?.get_mut(index % PAGE_ELEMENTS)
    }

    fn push(&mut self, element: T) {
        if self.pages.last().is_none_or(|page| page.len() == PAGE_ELEMENTS) {
            // The first page grows with its content, because most tables in tests are tiny.
            let room = if self.pages.is_empty() { 0 } else { PAGE_ELEMENTS };
            self.pages.push(Vec::with_capacity(room));
        }
        self.pages.last_mut().expect("a page was just made sure of").push(element);
    }
}

/// A key and its value, or the room for them.
#[derive(Clone, Debug)]
enum Node<V> {
    Kept {
        key: StoredKey,
        value: V,
        /// The next one of the chain.
        next: u32,
    },
    /// Free, as is the next one.
    Vacant { next: u32 },
}

/// Nodes by number. A walk by number neither misses nor repeats a node.
#[derive(Clone, Debug)]
struct Nodes<V> {
    all: Paged<Node<V>>,
    vacant: u32,
}

impl<V> Nodes<V> {
    const EMPTY: Self = Nodes { all: Paged::EMPTY, vacant: NONE };

    fn at(&self, number: usize) -> Option<(&[u8], &V)> {
        match self.all.get(number)? {
            Node::Kept { key, value, .. } => Some((key, value)),
            Node::Vacant { .. } => None,
        }
    }

    fn at_mut(&mut self, number: usize) -> Option<(&[u8], &mut V)> {
        match self.all.get_mut(number)? {
            Node::Kept { key, value, .. } => Some((key, value)),
            Node::Vacant { .. } => None,
        }
    }

    /// The key of a node in a chain, and the number of the one after it.
    fn link(&self, number: u32) -> Option<(&[u8], u32)> {
        match self.all.get(number as usize)? {
            Node::Kept { key, next, .. } => {
                touched();
                Some((key, *next))
            }
            Node::Vacant { .. } => None,
        }
    }

    /// Lets another node follow this one.
    fn set_next(&mut self, number: u32, follower: u32) {
        if let Some(Node::Kept { next, .. } | Node::Vacant { next }) = self.all.get_mut(number as usize) {
            *next = follower;
        }
    }

    fn insert(&mut self, key: &[u8], value: V, next: u32) -> u32 {
        let node = Node::Kept { key: key.into(), value, next };
        if let Some(place) = self.all.get_mut(self.vacant as usize) {
            let number = self.vacant;
            if let Node::Vacant { next } = std::mem::replace(place, node) {
                self.vacant = next;
            }
            return number;
        }
        let number = u32::try_from(self.all.len()).ok().filter(|number| *number != NONE);
        self.all.push(node);
        number.expect("there are fewer than 4 billion keys")
    }

    fn remove(&mut self, number: u32) -> Option<V> {
        let place = self.all.get_mut(number as usize)?;
        match std::mem::replace(place, Node::Vacant { next: self.vacant }) {
            Node::Kept { value, .. } => {
                self.vacant = number;
                Some(value)
            }
            Node::Vacant { .. } => None,
        }
    }
}

/// Entries that were forgotten all at once and are still to be freed.
#[derive(Clone, Debug)]
struct Forgotten<V> {
    nodes: Vec<Vec<Node<V>>>,
    heads: Vec<Vec<u32>>,
}

impl<V> Forgotten<V> {
    /// Frees up to `entries` entries.
    fn free(&mut self, entries: usize) {
        // A page of heads is freed as quickly as an entry.
        if self.heads.pop().is_some() {
            touched();
        }
        let mut left = entries;
        while left > 0 {
            let Some(page) = self.nodes.last_mut() else { break };
            let freed = left.min(page.len());
            page.truncate(page.len() - freed);
            left -= freed;
            touched_times(freed);
            if page.is_empty() {
                self.nodes.pop();
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.heads.is_empty()
    }
}

/// The first node of each chain, in pages, of which one takes no memory until one of its chains has a node.
#[derive(Clone, Debug)]
struct Heads {
    pages: Vec<Vec<u32>>,
    len: usize,
}

impl Heads {
    /// So many empty chains.
    fn new(len: usize) -> Self {
        Heads { pages: vec![Vec::new(); len.div_ceil(PAGE_CHAINS)], len }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, chain: usize) -> u32 {
        self.pages
            .get(chain / PAGE_CHAINS)
            .and_then(|page| page.get(chain % PAGE_CHAINS))
            .copied()
            .unwrap_or(NONE)
    }

    fn set(&mut self, chain: usize, number: u32) {
        let (page, at) = (&mut self.pages[chain / PAGE_CHAINS], chain % PAGE_CHAINS);
        if at >= page.len() {
            if number == NONE {
                return;
            }
            // The first page grows with its content, because most tables in tests are tiny.
            let whole = if self.len <= PAGE_CHAINS { at + 1 } else { PAGE_CHAINS };
            page.resize(whole, NONE);
        }
        page[at] = number;
    }

    /// Adds an empty chain.
    fn push(&mut self) {
        if self.len.is_multiple_of(PAGE_CHAINS) {
            self.pages.push(Vec::new());
        }
        self.len += 1;
    }
}

/// Keys to values. Iteration order is the same for the same sequence of calls.
#[derive(Clone, Debug)]
pub(crate) struct Table<V> {
    hasher: FixedState,
    /// The first node of each chain. There are between `2^level` and twice as many chains; the first ones are split already.
    heads: Heads,
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
            heads: Heads::new(1),
            level: 0,
            len: 0,
            nodes: Nodes::EMPTY,
            forgotten: Forgotten { nodes: Vec::new(), heads: Vec::new() },
        }
    }

    /// Orders its keys by another seed. Only for an empty table.
    pub(crate) fn reseed(&mut self, seed: u64) {
        assert_eq!(self.len, 0, "the keys of a table keep their chains");
        self.hasher = FixedState::with_seed(seed);
    }

    /// A number of [`ORDER_BITS`] bits that is the same for the same order of keys, and most likely another one for another.
    pub(crate) fn order(&self) -> u64 {
        self.hasher.hash_one(&b"the order of a scan"[..]) >> (u64::BITS - ORDER_BITS)
    }

    /// Shows the entries from this position on, in the order of positions, which depends on nothing but the keys and the seed.
    /// Takes one from `looks` for each chain, and `show` what it wants; stops after the chain with which they are used up. Where to
    /// go on; `None` at the end.
    pub(crate) fn scan(
        &self,
        from: u64,
        looks: &mut usize,
        mut show: impl FnMut(&[u8], usize, &V, &mut usize),
    ) -> Option<u64> {
        let mut at = from;
        while at < POSITIONS {
            if *looks == 0 {
                return Some(at);
            }
            let (chain, bits) = self.chain_at(at);
            *looks -= 1;
            let mut number = self.heads.get(chain);
            while let Some((key, next)) = self.nodes.link(number) {
                if position(self.hasher.hash_one(key)) >= at {
                    if let Some((key, value)) = self.nodes.at(number as usize) {
                        show(key, number as usize, value, looks);
                    }
                }
                number = next;
            }
            let begin = position(chain as u64);
            at = begin + (POSITIONS >> bits);
        }
        None
    }

    /// The chain with the keys of this position, and how many bits of the hash its keys have in common.
    fn chain_at(&self, at: u64) -> (usize, u32) {
        let hash = at.reverse_bits() >> (u64::BITS - POSITION_BITS);
        let chain = hash as usize & ((1 << self.level) - 1);
        let is_split = chain < self.heads.len() - (1 << self.level);
        if is_split {
            (hash as usize & ((2 << self.level) - 1), self.level + 1)
        } else {
            (chain, self.level)
        }
    }

    /// The chain of this key.
    fn chain(&self, key: &[u8]) -> usize {
        let hash = self.hasher.hash_one(key) as usize;
        let whole = hash & ((2 << self.level) - 1);
        // That chain is not made yet: its keys are still in the one that will be split.
        if whole < self.heads.len() {
            whole
        } else {
            hash & ((1 << self.level) - 1)
        }
    }

    /// The node of `key` in its chain, and the one before it there.
    fn find(&self, chain: usize, key: &[u8]) -> Option<(Option<u32>, u32)> {
        let (mut before, mut number) = (None, self.heads.get(chain));
        loop {
            let (held, next) = self.nodes.link(number)?;
            if held == key {
                return Some((before, number));
            }
            (before, number) = (Some(number), next);
        }
    }

    /// The number of the entry of `key`, which it keeps as long as its key is there.
    pub(crate) fn number(&self, key: &[u8]) -> Option<u32> {
        self.find(self.chain(key), key).map(|(_, number)| number)
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&V> {
        self.nodes.at(self.number(key)? as usize).map(|(_, value)| value)
    }

    /// The value of `key`, to change it.
    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let number = self.number(key)?;
        self.nodes.at_mut(number as usize).map(|(_, value)| value)
    }

    /// Looks at what is looked at when these keys are put in: their chains, and those that are split then. The calls for one
    /// key after the other would each wait for memory several times, and these wait together.
    pub(crate) fn warm<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        let mut keys = keys;
        let mut split = self.heads.len() - (1 << self.level);
        let splits = self.len + WARMED_KEYS > self.heads.len();
        loop {
            let mut numbers = [NONE; 2 * WARMED_KEYS];
            let (own, splitting) = numbers.split_at_mut(WARMED_KEYS);
            let mut count = 0;
            for ((own, splitting), key) in own.iter_mut().zip(splitting).zip(&mut keys) {
                *own = self.heads.get(self.chain(key));
                if splits {
                    *splitting = self.heads.get(split + count);
                }
                count += 1;
            }
            for _ in 0..2 {
                for number in &mut numbers {
                    *number = match self.nodes.all.get(*number as usize) {
                        Some(Node::Kept { next, .. } | Node::Vacant { next }) => *next,
                        None => NONE,
                    };
                }
            }
            std::hint::black_box(numbers);
            split += count;
            if count < WARMED_KEYS {
                return;
            }
        }
    }

    /// Makes chains for so many keys more: in an empty table all, which takes no memory yet; later a few in each call. To split a
    /// chain with each new key would be to wait for its keys. Keys that do not come after all cost little, as then only some chains
    /// for each key that is there are made.
    pub(crate) fn expect(&mut self, more: usize) {
        if self.len == 0 && more > self.heads.len() {
            let chains = more.min(CHAINS_EXPECTED_MAX);
            self.level = chains.ilog2();
            let before = std::mem::replace(&mut self.heads, Heads::new(chains));
            self.forgotten.heads.extend(before.pages);
        }
        let wanted = self.len.saturating_add(more).min(self.len.saturating_mul(CHAINS_AHEAD));
        let missing = wanted.saturating_sub(self.heads.len());
        (0..missing.min(SPLITS_AHEAD)).for_each(|_| self.split());
    }

    /// Replaces the value of `key` and returns the one it supersedes.
    pub(crate) fn insert(&mut self, key: &[u8], value: V) -> Option<V> {
        let chain = self.chain(key);
        if let Some((_, number)) = self.find(chain, key) {
            let (_, held) = self.nodes.at_mut(number as usize)?;
            return Some(std::mem::replace(held, value));
        }
        self.forgotten.free(FREED_WITH_INSERT);
        let number = self.nodes.insert(key, value, self.heads.get(chain));
        self.heads.set(chain, number);
        self.len += 1;
        if self.len > self.heads.len() {
            self.split();
        }
        None
    }

    /// Makes one more chain, of half of the keys of the one whose turn it is.
    fn split(&mut self) {
        let added = self.heads.len();
        let from = added - (1 << self.level);
        let mut number = self.heads.get(from);
        self.heads.set(from, NONE);
        self.heads.push();
        while let Some((key, next)) = self.nodes.link(number) {
            let chain = self.chain(key);
            self.nodes.set_next(number, self.heads.get(chain));
            self.heads.set(chain, number);
            number = next;
        }
        if self.heads.len() == 2 << self.level {
            self.level += 1;
        }
    }

    /// Removes `key` and returns its last value.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<V> {
        let chain = self.chain(key);
        let (before, number) = self.find(chain, key)?;
        let (_, next) = self.nodes.link(number)?;
        match before {
            Some(before) => self.nodes.set_next(before, next),
            None => self.heads.set(chain, next),
        }
        self.len -= 1;
        self.nodes.remove(number)
    }

    /// The number of keys.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets everything. The memory is freed little by little.
    pub(crate) fn clear(&mut self) {
        let nodes = std::mem::replace(&mut self.nodes, Nodes::EMPTY);
        let heads = std::mem::replace(&mut self.heads, Heads::new(1));
        self.forgotten.nodes.extend(nodes.all.pages);
        self.forgotten.heads.extend(heads.pages);
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
        self.nodes.all.len()
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
    #[cfg(test)]
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

    /// The most entries that one call may touch. At 200 ns for each, a hundredth of a millisecond.
    const TOUCHED_MAX: usize = 50;

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
        assert!(sum <= 300_000 * 3, "{sum} touched in all: growth costs more than it should");
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
        assert!(touches(|| table.tidy(500)) <= 501);
        while !table.is_tidy() {
            table.tidy(10_000);
        }
    }

    #[test]
    fn keys_that_are_expected_split_no_chain_when_they_come() {
        let insert_all = |expects: bool| {
            let mut table = Table::new(7);
            let (mut inserts, mut most) = (0, 0);
            for key in 0..100_000u64 {
                // Not at the beginning: that is another test.
                if expects && key % 1000 == 1 {
                    most = most.max(touches(|| table.expect(100_000 - key as usize)));
                }
                inserts += touches(|| table.insert(&key.to_le_bytes(), key));
            }
            assert_eq!(table.heads.len(), 100_000);
            assert!(most <= SPLITS_AHEAD, "a call touched {most}");
            inserts
        };
        let (with, without) = (insert_all(true), insert_all(false));
        assert!(with * 3 < without, "{with} touched instead of {without}");
        let mut table = Table::new(7);
        table.insert(b"one", 1);
        table.expect(1_000_000);
        assert_eq!(table.heads.len(), CHAINS_AHEAD, "there may be no more keys");
    }

    #[test]
    fn an_empty_table_is_given_all_chains_at_once_which_take_no_memory_yet() {
        let memory = |table: &Table<u64>| table.heads.pages.iter().map(Vec::capacity).sum::<usize>();
        for expected in [0, 1, 2, 3, 4095, 4096, 4097, 100_000] {
            let mut table = Table::new(7);
            assert_eq!(touches(|| table.expect(expected)), 0);
            assert_eq!((table.heads.len(), memory(&table)), (expected.max(1), 0));
            let inserts: usize =
                (0..expected as u64).map(|key| touches(|| table.insert(&key.to_le_bytes(), key))).sum();
            assert!(inserts < expected + 10, "{inserts} touched by {expected} inserts: no chain is split");
            assert!((0..expected as u64).all(|key| table.get(&key.to_le_bytes()) == Some(&key)));
            // It grows on from there, and is emptied, as any other.
            for key in expected as u64..2 * expected as u64 + 10 {
                table.insert(&key.to_le_bytes(), key);
            }
            assert_eq!(table.heads.len(), table.len());
            assert!((0..table.len() as u64).all(|key| table.remove(&key.to_le_bytes()) == Some(key)));
            assert_eq!(table.len(), 0);
        }
        let mut table = Table::<u64>::new(7);
        table.expect(usize::MAX);
        assert_eq!(table.heads.len(), CHAINS_EXPECTED_MAX);
        table.insert(b"one", 1);
        assert_eq!(memory(&table), PAGE_CHAINS, "there may be no more keys");
    }

    #[test]
    fn an_entry_of_the_directory_fills_one_line_of_a_cache() {
        assert_eq!(size_of::<Node<[u32; 9]>>(), 64);
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

    /// All keys that a scan shows in calls of so many looks, with `between` after each.
    fn scanned(
        table: &mut Table<u64>,
        looks: usize,
        mut between: impl FnMut(&mut Table<u64>, u64) -> u64,
    ) -> Vec<u64> {
        let (mut shown, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let mut left = looks;
            let show = |_: &[u8], _, value: &u64, left: &mut usize| {
                *left = left.saturating_sub(1);
                shown.push(*value);
            };
            next = table.scan(from, &mut left, show).map(|next| between(table, next));
        }
        shown
    }

    #[test]
    fn a_scan_shows_each_key_once_at_any_size() {
        for keys in [0u64, 1, 2, 3, 5, 255, 256, 257, 1000, 3000] {
            let mut table = Table::new(7);
            for key in 0..keys {
                table.insert(&key.to_le_bytes(), key);
            }
            for looks in [1, 7, 100_000] {
                let mut shown = scanned(&mut table, looks, |_, next| next);
                shown.sort_unstable();
                assert!(shown.iter().copied().eq(0..keys), "{keys} keys in steps of {looks}");
            }
        }
    }

    /// Chains are split meanwhile, or the scan goes on in another table, as after a failover, with many chains or few.
    #[test]
    fn a_scan_misses_and_repeats_no_key_that_stays_while_the_table_grows_or_is_another_one() {
        let filled = |expected: usize, keys: u64| {
            let mut table = Table::new(7);
            table.expect(expected);
            for key in 0..keys {
                table.insert(&key.to_le_bytes(), key);
            }
            table
        };
        let mut table = filled(0, 300);
        let (mut others, mut calls) = (300u64, 0);
        let shown = scanned(&mut table, 3, |table, next| {
            calls += 1;
            if calls % 10 == 0 {
                *table = filled([0, 5000, 77][calls / 10 % 3], 300);
            }
            for other in others..others + 20 {
                table.insert(&other.to_le_bytes(), other);
            }
            others += 20;
            next
        });
        let mut stayed: Vec<u64> = shown.into_iter().filter(|key| *key < 300).collect();
        stayed.sort_unstable();
        assert!(stayed.iter().copied().eq(0..300), "{stayed:?}");
    }

    #[test]
    fn a_scan_from_the_position_of_a_key_begins_with_it() {
        let mut table = Table::new(7);
        (0..1000u64).for_each(|key| assert_eq!(table.insert(&key.to_le_bytes(), key), None));
        for key in 0..1000u64 {
            let at = position(table.hasher.hash_one(&key.to_le_bytes()[..]));
            let mut shown = Vec::new();
            table.scan(at, &mut 1, |_, _, value, _| shown.push(*value));
            assert!(shown.contains(&key), "{key}");
        }
    }

    #[test]
    fn the_order_of_a_scan_has_a_number_of_its_seed() {
        assert_eq!(Table::<u64>::new(7).order(), Table::<u64>::new(7).order());
        assert_ne!(Table::<u64>::new(7).order(), Table::<u64>::new(8).order());
        assert!(Table::<u64>::new(7).order() < 1 << ORDER_BITS);
        let mut table = Table::<u64>::new(7);
        table.expect(100);
        table.reseed(8);
        assert_eq!(table.order(), Table::<u64>::new(8).order());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u16),
        Remove(u16),
        Clear,
        Expect(usize),
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
            1 => (0..10_000usize).prop_map(Op::Expect),
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
                        let (key, others) = (name(key), [name(key / 2), name(key + 1)]);
                        table.warm(others.iter().chain([&key]).map(|key| &key[..]));
                        table.expect(value % 7000);
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
                    Op::Expect(more) => table.expect(more),
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
