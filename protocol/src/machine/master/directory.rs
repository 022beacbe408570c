//! The directory: which version of each key is the latest written one, where its value stands in the log, who holds it.
//!
//! Owns nothing of a value. With a log, a key that is not here was never written, or was deleted.

use super::expiries::Expiries;
use super::membership::SlotSet;
use crate::ids::{Epoch, Seq, UnixMillis, Version};
use crate::machine::table::{Table, ORDER_BITS, POSITION_BITS};
use crate::planted;
use crate::record::{FileNumber, Place};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What the directory knows of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The latest written version.
    pub version: Version,
    /// Where the value stands in the log.
    pub place: Place,
    /// The slots of the slaves that hold that version. Slots that are no longer live count as absent.
    pub holders: SlotSet,
    /// When it expires, if it does.
    pub expires: Option<UnixMillis>,
}

/// An [`Entry`] as it is stored, once for every key. With a key, and its number in a chain, it fills a line of a processor's
/// cache.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
struct StoredEntry {
    /// The place's offset, and its file's number in the upper 16 bits.
    offset: u64,
    holders: SlotSet,
    /// The lower half of the seq.
    seq: u32,
    /// The place of the rest of the version in [`Eras`].
    era: u32,
    text_bytes: u32,
    text_crc: u32,
    bytes: u32,
}

const _: () = assert!(size_of::<StoredEntry>() == 36);

/// So many bits an offset has beside its file's number: no log is longer than 256 TiB.
const OFFSET_BITS: u32 = 48;
const OFFSET_MAX: u64 = (1 << OFFSET_BITS) - 1;

fn located(file: FileNumber, offset: u64) -> u64 {
    assert!(offset <= OFFSET_MAX, "a log is shorter than 256 TiB");
    u64::from(file.0) << OFFSET_BITS | offset
}

/// Bytes of a line beside its key and its value, about.
const LINE_BYTES: u64 = 48;

/// To look at so many bytes of a key takes as long as to look at an entry.
const KEY_BYTES_LOOKED_AT: usize = 256;

/// Bytes of the field that says when a key expires.
const EXPIRE_BYTES: u64 = 21;

/// How long the line of this key and value would be in a log of nothing else, about, in bytes.
fn line_bytes(key: &[u8], stored: &StoredEntry, expires: Option<UnixMillis>) -> u64 {
    let expiry = if expires.is_some() { EXPIRE_BYTES } else { 0 };
    key.len() as u64 + u64::from(stored.text_bytes) + LINE_BYTES + expiry
}

/// What many versions have in common: the epoch, and the upper half of the seq.
type Era = (Epoch, u32);

/// The eras of all entries, each once. There are as many as reigns have written to the log, and one more for every 4 billion
/// records.
#[derive(Clone, Debug, Default)]
struct Eras {
    all: Vec<Era>,
    /// Their places in `all`.
    places: BTreeMap<Era, u32>,
}

impl Eras {
    fn place(&mut self, era: Era) -> u32 {
        // Nearly all that is put in is of the latest one.
        if self.all.last() == Some(&era) {
            return (self.all.len() - 1) as u32;
        }
        *self.places.entry(era).or_insert_with(|| {
            self.all.push(era);
            u32::try_from(self.all.len() - 1).expect("there are fewer than 4 billion reigns")
        })
    }

    fn whole(&self, stored: &StoredEntry, expires: Option<UnixMillis>) -> Entry {
        let StoredEntry { seq, offset, holders, era, text_bytes, text_crc, bytes } = *stored;
        let (epoch, upper) = self.all[era as usize];
        let version = Version { epoch, seq: Seq(u64::from(upper) << 32 | u64::from(seq)) };
        let file = FileNumber((offset >> OFFSET_BITS) as u16);
        let offset = offset & OFFSET_MAX;
        Entry { version, place: Place { file, offset, text_bytes, text_crc, bytes }, holders, expires }
    }

    fn stored(&mut self, entry: Entry) -> StoredEntry {
        let Entry { version: Version { epoch, seq }, place, holders, .. } = entry;
        let Place { file, offset, text_bytes, text_crc, bytes } = place;
        let offset = located(file, offset);
        let era = self.place((epoch, (seq.0 >> 32) as u32));
        StoredEntry { offset, holders, seq: seq.0 as u32, era, text_bytes, text_crc, bytes }
    }
}

/// Key to [`Entry`]. Iteration order is the same for the same sequence of calls.
#[derive(Clone, Debug)]
pub struct Directory {
    table: Table<StoredEntry>,
    eras: Eras,
    expiries: Expiries,
    sweep: Option<Sweep>,
    /// The sum of [`line_bytes`].
    live_bytes: u64,
}

/// A walk over all entries that takes slots out of them.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    slots: SlotSet,
    /// Entries with lower numbers are done.
    next: usize,
}

/// What was found among the entries that were looked at.
#[derive(Debug)]
pub(super) struct FoundEntry {
    /// The first one that was sought.
    pub(super) entry: Option<(Bytes, Entry)>,
    /// Where to go on; `None` at the end.
    pub(super) next: Option<usize>,
}

/// The cursor of a scan is of another order of keys: the scan is to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CursorError;

const _: () =
    assert!(ORDER_BITS + POSITION_BITS <= 53, "some clients keep a cursor in a floating-point number");

impl Directory {
    /// An empty directory. Keys come from clients, so their hash is seeded.
    pub fn new(seed: u64) -> Self {
        let (eras, expiries) = (Eras::default(), Expiries::default());
        Directory { table: Table::new(seed), eras, expiries, sweep: None, live_bytes: 0 }
    }

    /// Orders the keys of scans by this seed, if there is no key yet.
    pub(super) fn reseed(&mut self, seed: u64) {
        if self.is_empty() {
            self.table.reseed(seed);
        }
    }

    /// Shows the entries from a cursor on, in an order that only the keys and the seed decide: 0 is the beginning. Takes one from
    /// `looks` for each of the few keys that share a place, and one or more for each key, and `show` what it wants. The next cursor,
    /// which is 0 at the end, and never has more than 53 bits.
    ///
    /// # Errors
    /// When the cursor is not of this order.
    pub(super) fn scan(
        &self,
        cursor: u64,
        looks: &mut usize,
        mut show: impl FnMut(&[u8], &Entry, &mut usize),
    ) -> Result<u64, CursorError> {
        let order = self.table.order() << POSITION_BITS;
        let from = if cursor == 0 { 0 } else { cursor ^ order };
        if from >> POSITION_BITS != 0 {
            return Err(CursorError);
        }
        let next = self.table.scan(from, looks, |key, number, stored, looks| {
            *looks = looks.saturating_sub(1 + key.len() / KEY_BYTES_LOOKED_AT);
            let expires = if self.expiries.len() > 0 { self.expiries.get(number as u32) } else { None };
            show(key, &self.eras.whole(stored, expires), looks);
        });
        Ok(next.map_or(0, |next| order | next))
    }

    /// The entry of `key`.
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        let number = self.table.number(key)?;
        self.at(number as usize).map(|(_, entry)| entry)
    }

    /// The entry with this number.
    fn at(&self, number: usize) -> Option<(&[u8], Entry)> {
        let (key, stored) = self.table.at(number)?;
        let expires = if self.expiries.len() > 0 { self.expiries.get(number as u32) } else { None };
        Some((key, self.eras.whole(stored, expires)))
    }

    /// Changes the holders of `key`, if its latest version is this one, and gives what `change` does.
    pub(super) fn change_holders<T>(
        &mut self,
        key: &[u8],
        version: Version,
        change: impl FnOnce(&mut SlotSet) -> T,
    ) -> Option<T> {
        let Directory { table, eras, .. } = self;
        let stored = table.get_mut(key)?;
        let Entry { version: latest, mut holders, .. } = eras.whole(stored, None);
        let changed = (latest == version).then(|| change(&mut holders));
        stored.holders = holders;
        changed
    }

    /// Makes room for so many keys more, a little in each call.
    pub(super) fn expect(&mut self, more: usize) {
        self.table.expect(more);
    }

    /// Fetches from memory what is looked at first when these keys are put in or sought.
    pub(super) fn warm<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        self.table.warm(keys);
    }

    /// Replaces the entry of `key` and returns the one it supersedes.
    pub fn insert(&mut self, key: &[u8], entry: Entry) -> Option<Entry> {
        let stored = self.eras.stored(entry);
        self.live_bytes += line_bytes(key, &stored, entry.expires);
        let old = self.table.insert(key, stored);
        let expired = self.set_expiry(key, entry.expires);
        old.map(|old| self.superseded(key, &old, expired))
    }

    /// Notes when a key that is there expires, and gives what was noted before.
    fn set_expiry(&mut self, key: &[u8], expires: Option<UnixMillis>) -> Option<UnixMillis> {
        if expires.is_none() && self.expiries.len() == 0 {
            return None;
        }
        let number = self.table.number(key)?;
        self.expiries.set(number, expires)
    }

    /// Removes `key` and returns its last entry.
    pub fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let expired = self.set_expiry(key, None);
        self.table.remove(key).map(|old| self.superseded(key, &old, expired))
    }

    fn superseded(&mut self, key: &[u8], stored: &StoredEntry, expires: Option<UnixMillis>) -> Entry {
        self.live_bytes -= line_bytes(key, stored, expires);
        self.eras.whole(stored, expires)
    }

    /// Notes that the value of this version of `key` stands in another place now; nothing if another one is the latest.
    pub(super) fn relocate(&mut self, key: &[u8], version: Version, place: Place) {
        let Directory { table, eras, .. } = self;
        if let Some(stored) = table.get_mut(key) {
            if eras.whole(stored, None).version == version || planted!(RelocatedUnchecked) {
                stored.offset = located(place.file, place.offset);
            }
        }
    }

    /// How long a log of nothing but the latest versions would be, about, in bytes.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything, as when the log is a new file. Its memory is given back by `tidy` and with
    /// what is put in.
    pub fn clear(&mut self) {
        self.table.clear();
        self.expiries.clear();
        self.live_bytes = 0;
        self.eras = Eras::default();
    }

    /// Begins to clear the bits of `slots` everywhere; [`Directory::sweep_on`] does it. Nothing that is put in
    /// meanwhile may name one of them.
    pub(super) fn begin_sweep(&mut self, slots: SlotSet) {
        self.sweep = Some(Sweep { slots, next: 0 });
    }

    /// The slots that are being cleared.
    pub(super) fn sweeping(&self) -> Option<SlotSet> {
        self.sweep.map(|sweep| sweep.slots)
    }

    /// Looks at up to `entries` entries. The slots that no entry names any more, once that is so.
    pub(super) fn sweep_on(&mut self, entries: usize) -> Option<SlotSet> {
        let Sweep { slots, next } = self.sweep?;
        let end = next.saturating_add(entries);
        for number in next..end.min(self.table.numbers()) {
            if let Some(entry) = self.table.at_mut(number) {
                entry.holders = entry.holders.without(slots);
            }
        }
        if end < self.table.numbers() {
            self.sweep = Some(Sweep { slots, next: end });
            return None;
        }
        self.sweep = None;
        Some(slots)
    }

    /// Shows up to `entries` entries from number `from` on. Where to go on; `None` at the end.
    pub(super) fn walk(&self, from: usize, entries: usize, mut show: impl FnMut(&Entry)) -> Option<usize> {
        let end = from.saturating_add(entries).min(self.table.numbers());
        (from..end).filter_map(|number| self.at(number)).for_each(|(_, entry)| show(&entry));
        (end < self.table.numbers()).then_some(end)
    }

    /// Looks from number `from` on, at up to `entries` entries, for one that `is_sought`. Takes those that were looked at from
    /// `entries`; a long key counts as several.
    pub(super) fn find(
        &self,
        from: usize,
        entries: &mut usize,
        mut is_sought: impl FnMut(&[u8], &Entry) -> bool,
    ) -> FoundEntry {
        let mut next = from;
        while next < self.table.numbers() && *entries > 0 {
            let found = self.at(next);
            next += 1;
            let Some((key, entry)) = found else {
                *entries -= 1;
                continue;
            };
            *entries = entries.saturating_sub(1 + key.len() / KEY_BYTES_LOOKED_AT);
            if is_sought(key, &entry) {
                let entry = Some((Bytes::copy_from_slice(key), entry));
                return FoundEntry { entry, next: Some(next) };
            }
        }
        FoundEntry { entry: None, next: (next < self.table.numbers()).then_some(next) }
    }

    /// Gives back the memory of up to `entries` entries that were forgotten.
    pub(super) fn tidy(&mut self, entries: usize) {
        self.table.tidy(entries);
        self.expiries.tidy();
    }

    /// Whether there is nothing to sweep or to give back.
    pub(super) fn is_at_rest(&self) -> bool {
        self.sweep.is_none() && self.table.is_tidy() && self.expiries.is_tidy()
    }

    /// All entries have numbers below this.
    pub(super) fn numbers(&self) -> usize {
        self.table.numbers()
    }

    /// Shows entries from number `from` on and below `end`, until `looks` are used up: one is taken off for each, and more for a long
    /// key; and `show` takes off what it wants. Where to go on; `None` at the end.
    pub(super) fn look_through(
        &self,
        from: usize,
        end: usize,
        looks: &mut usize,
        mut show: impl FnMut(&[u8], &Entry, &mut usize),
    ) -> Option<usize> {
        let (mut next, end) = (from, end.min(self.table.numbers()));
        while next < end {
            if *looks == 0 {
                return Some(next);
            }
            *looks -= 1;
            if let Some((key, entry)) = self.at(next) {
                *looks = looks.saturating_sub(key.len() / KEY_BYTES_LOOKED_AT);
                show(key, &entry, looks);
            }
            next += 1;
        }
        None
    }

    /// All keys with their entries.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Entry)> {
        (0..self.table.numbers()).filter_map(|number| self.at(number))
    }

    /// How many keys expire, and the mean of their times.
    pub fn expiring(&self) -> (usize, Option<UnixMillis>) {
        (self.expiries.len(), self.expiries.mean())
    }

    /// Looks from the key with number `from` on, for keys whose time has come by `time`, and shows
    /// them until `show` says that it wants no more, or `looks` are spent, from which is taken off. Where to go on; `None` at the end.
    pub(super) fn due(
        &mut self,
        time: UnixMillis,
        from: u32,
        looks: &mut usize,
        mut show: impl FnMut(&[u8], &mut usize) -> bool,
    ) -> Option<u32> {
        let Directory { table, expiries, .. } = self;
        expiries.due(time, from, looks, |number, looks| match table.at(number as usize) {
            Some((key, _)) => show(key, looks),
            None => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::master::Slot;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(seq: u64) -> Entry {
        let file = FileNumber((seq % 3) as u16 * 0x7fff);
        let place = Place { file, offset: seq * 100, bytes: 50, text_bytes: 60, text_crc: 70 };
        Entry {
            version: Version::new(1 + seq / 100, seq),
            place,
            holders: [Slot((seq % 64) as u8)].into_iter().collect(),
            expires: seq.is_multiple_of(4).then_some(UnixMillis(seq)),
        }
    }

    #[test]
    fn only_the_latest_version_of_a_key_is_relocated() {
        let mut directory = Directory::new(7);
        directory.insert(b"k", entry(5));
        let moved = Place { file: FileNumber(9), offset: OFFSET_MAX, ..entry(5).place };
        directory.relocate(b"k", entry(4).version, moved);
        directory.relocate(b"other", entry(5).version, moved);
        assert_eq!(directory.get(b"k"), Some(entry(5)));
        directory.relocate(b"k", entry(5).version, moved);
        assert_eq!(directory.get(b"k"), Some(Entry { place: moved, ..entry(5) }));
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
                    Op::Sweep(slot) => {
                        let slots = [Slot(slot)].into_iter().collect();
                        directory.begin_sweep(slots);
                        let mut swept = None;
                        while swept.is_none() {
                            prop_assert_eq!(directory.sweeping(), Some(slots));
                            swept = directory.sweep_on(7);
                        }
                        prop_assert_eq!(swept, Some(slots));
                        for entry in model.values_mut() {
                            entry.holders = entry.holders.without(slots);
                        }
                    }
                    Op::Clear => {
                        directory.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(directory.len(), model.len());
                let expiring: Vec<_> = model.values().filter_map(|entry| entry.expires).collect();
                let texts = model.iter().map(|(key, entry)| key.len() as u64 + u64::from(entry.place.text_bytes) + LINE_BYTES);
                prop_assert_eq!(directory.live_bytes(), texts.sum::<u64>() + expiring.len() as u64 * EXPIRE_BYTES);
                prop_assert_eq!(directory.expiring().0, expiring.len());
            }
            let mut all: Vec<(Vec<u8>, Entry)> = directory.iter().map(|(k, e)| (k.to_vec(), e)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
