//! The writes whose records are not written yet: their order, and the last one of each session and of each key.
//!
//! Owns what a read must know to wait for the writes of its own session. Lookups and changes take a constant number of
//! steps, so that a flood of writes to one key cannot make a turn long. Holds nothing of a write that is written or
//! refused, and never looks into one.

use super::WriteId;
use crate::ids::SessionId;
use std::collections::hash_map::{Entry, HashMap};
use std::collections::VecDeque;
use std::hash::Hash;

/// Never iterated: order cannot reach an effect.
type Index<K> = HashMap<K, Last, foldhash::fast::FixedState>;

#[derive(Clone, Debug, Default)]
pub(super) struct Unwritten {
    /// In the order of the log.
    order: VecDeque<WriteId>,
    /// How many were ever added.
    added: u64,
    /// The last one by its session and the hash of a key that it changes. Two keys with the same hash share an entry,
    /// so a read may wait for a later write of its session than necessary, which does no harm.
    of_key: Index<(SessionId, u64)>,
    of_session: Index<SessionId>,
    /// The last one of those that change many keys.
    of_many: Index<SessionId>,
    /// The longest value of all of these together, in bytes.
    longest_of_many: HashMap<SessionId, usize, foldhash::fast::FixedState>,
}

/// The last of several writes.
#[derive(Clone, Copy, Debug)]
struct Last {
    number: Number,
    write: WriteId,
}

/// Counts the writes in the order of the log.
#[derive(Clone, Copy, Debug)]
struct Number(u64);

impl Number {
    fn is(self, other: Number) -> bool {
        #[cfg(test)]
        tests::STEPS.with(|steps| steps.set(steps.get() + 1));
        self.0 == other.0
    }

    fn is_behind(self, other: Number) -> bool {
        #[cfg(test)]
        tests::STEPS.with(|steps| steps.set(steps.get() + 1));
        self.0 > other.0
    }
}

impl Unwritten {
    /// Adds a write of `session` that changes the keys with these hashes, after all others in the log. Without hashes
    /// it is a write of many keys: it may change any key, to a value of at most `longest` bytes.
    pub(super) fn push(
        &mut self,
        write: WriteId,
        session: SessionId,
        hashes: Option<&[u64]>,
        longest: usize,
    ) {
        self.order.push_back(write);
        let last = Last { number: Number(self.added), write };
        self.added += 1;
        match hashes {
            Some(hashes) => self.of_key.extend(hashes.iter().map(|hash| ((session, *hash), last))),
            None => {
                self.of_many.insert(session, last);
                let of_all = self.longest_of_many.entry(session).or_default();
                *of_all = longest.max(*of_all);
            }
        }
        self.of_session.insert(session, last);
    }

    /// Removes the first write, which must be `write`, with the same hashes as when it was added.
    pub(super) fn resolve(&mut self, write: WriteId, session: SessionId, hashes: Option<&[u64]>) {
        let number = Number(self.added - self.order.len() as u64);
        let first = self.order.pop_front();
        assert_eq!(first, Some(write), "the log answers in the order of its appends");
        match hashes {
            Some(hashes) => {
                hashes.iter().for_each(|hash| forget(&mut self.of_key, (session, *hash), number));
            }
            None => {
                forget(&mut self.of_many, session, number);
                if !self.of_many.contains_key(&session) {
                    self.longest_of_many.remove(&session);
                }
            }
        }
        forget(&mut self.of_session, session, number);
    }

    /// The last write of `session` to any of the keys with these hashes.
    pub(super) fn last_of_keys(
        &self,
        session: SessionId,
        hashes: impl Iterator<Item = u64>,
    ) -> Option<WriteId> {
        if self.order.is_empty() {
            return None;
        }
        let lasts = hashes.filter_map(|hash| self.of_key.get(&(session, hash)));
        let lasts = lasts.chain(self.of_many.get(&session));
        let last = lasts.reduce(|a, b| if b.number.is_behind(a.number) { b } else { a });
        last.map(|last| last.write)
    }

    /// The last write of all.
    pub(super) fn last(&self) -> Option<WriteId> {
        self.order.back().copied()
    }

    /// Whether `session` has none.
    pub(super) fn is_none_of(&self, session: SessionId) -> bool {
        !self.of_session.contains_key(&session)
    }

    /// The last write of `session` to a key with this hash, except writes of many keys.
    pub(super) fn last_of_key(&self, session: SessionId, hash: u64) -> Option<WriteId> {
        self.of_key.get(&(session, hash)).map(|last| last.write)
    }

    /// The longest value among the writes of many keys of `session`, in bytes; 0 without any.
    pub(super) fn longest_of_many(&self, session: SessionId) -> usize {
        self.longest_of_many.get(&session).copied().unwrap_or_default()
    }

    /// The last write of `session`.
    pub(super) fn last_of_session(&self, session: SessionId) -> Option<WriteId> {
        self.of_session.get(&session).map(|last| last.write)
    }

    /// All of them, the last one first.
    #[cfg(feature = "mutants")]
    pub(super) fn newest_first(&self) -> impl Iterator<Item = WriteId> + '_ {
        self.order.iter().rev().copied()
    }
}

/// Removes the write with `number` from `index`, unless a later one has replaced it.
fn forget<K: Eq + Hash>(index: &mut Index<K>, key: K, number: Number) {
    if let Entry::Occupied(entry) = index.entry(key) {
        if entry.get().number.is(number) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Reply};
    use crate::ids::{LinkId, Millis, ReignId, SlaveId, Version};
    use crate::machine::master::{Asker, Config, Effect, Event, Master};
    use crate::record::Place;
    use bytes::Bytes;
    use smallvec::smallvec;
    use std::cell::Cell;

    thread_local! {
        /// How many comparisons of writes were made. A search among many makes one for each.
        pub(super) static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    /// A reigning master with one slave.
    struct Flooded {
        master: Master,
        /// The writes for the log, in order, with the lengths of their values.
        appended: Vec<(WriteId, Vec<u32>)>,
        replies: Vec<(Asker, Reply)>,
        tags: u64,
        seq: u64,
    }

    impl Flooded {
        fn new() -> Self {
            let mut flooded = Flooded {
                master: Master::new(Config::default()),
                appended: Vec::new(),
                replies: Vec::new(),
                tags: 0,
                seq: 2,
            };
            flooded.step(Event::ReignBegan { version: Version::new(1, 1), id: ReignId(1) });
            let id = SlaveId::new("one").unwrap();
            flooded.step(Event::SlaveJoined { id, link: LinkId(1), room_bytes: u64::MAX });
            flooded
        }

        fn step(&mut self, event: Event) {
            let mut effects = Vec::new();
            self.master.step(Millis(0), event, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Append { write, change, .. } => {
                        let lengths = change.pairs().iter().map(|(_, value)| value.len() as u32).collect();
                        self.appended.push((write, lengths));
                    }
                    Effect::Reply { to, reply } => self.replies.push((to, reply)),
                    Effect::Joined { .. }
                    | Effect::NoSlot { .. }
                    | Effect::SlotFree { .. }
                    | Effect::SendWrite { .. }
                    | Effect::SendRead { .. }
                    | Effect::SendDrop { .. }
                    | Effect::SendHoldingsNext { .. }
                    | Effect::ReadLog { .. }
                    | Effect::Witnessed { .. }
                    | Effect::Leaving { .. }
                    | Effect::Repair(_) => {}
                }
            }
        }

        fn ask(&mut self, session: u64, command: Command) {
            self.tags += 1;
            let asker = Asker { session: SessionId(session), tag: self.tags };
            self.step(Event::Request { asker, deadline: Millis(1000), command });
        }

        fn write_all(&mut self) {
            for (write, lengths) in std::mem::take(&mut self.appended) {
                self.seq += 1;
                let place = |bytes| Place { bytes, ..Place::default() };
                let (version, places) = (Version::new(1, self.seq), lengths.into_iter().map(place).collect());
                self.step(Event::Written { write, version, places });
            }
        }

        fn is_empty(&self) -> bool {
            let unwritten = &self.master.writes.unwritten;
            let is_of_none = unwritten.of_many.is_empty() && unwritten.longest_of_many.is_empty();
            unwritten.order.is_empty()
                && unwritten.of_key.is_empty()
                && unwritten.of_session.is_empty()
                && is_of_none
        }
    }

    fn put(key: &'static str, value: u64) -> Command {
        Command::Put { key: Bytes::from_static(key.as_bytes()), value: Bytes::from(value.to_string()) }
    }

    fn keys(keys: &[&'static str]) -> Vec<Bytes> {
        keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect()
    }

    /// Steps for each request of a flood of `rounds` times eight sessions that write and read the same few keys.
    fn steps_of_a_flood(rounds: u64) -> f64 {
        let mut flooded = Flooded::new();
        STEPS.with(|steps| steps.set(0));
        for round in 0..rounds {
            for session in 1..=8 {
                flooded.ask(session, put("hot", round));
                flooded.ask(session, put("warm", round));
                // Also a session that only reads, which waits for no write.
                for reader in [session, 100] {
                    flooded.ask(reader, Command::Get { key: Bytes::from_static(b"hot") });
                    flooded.ask(reader, Command::GetMany { keys: keys(&["warm", "cold", "hot"]) });
                    flooded.ask(reader, Command::Exists { keys: keys(&["hot", "warm"]) });
                    flooded.ask(reader, Command::KeyCount);
                }
            }
        }
        flooded.write_all();
        let steps = STEPS.with(Cell::get);
        assert!(flooded.is_empty(), "writes that are written are remembered");
        steps as f64 / flooded.tags as f64
    }

    #[test]
    fn a_flood_of_one_key_takes_the_same_steps_for_each_request_however_long_it_is() {
        let (short, long) = (steps_of_a_flood(10), steps_of_a_flood(1000));
        assert!(short >= 0.2, "nothing is counted: {short}");
        assert!(
            long <= short * 1.01,
            "{short} steps for each request of a short flood, {long} of a long one"
        );
    }

    #[test]
    fn a_read_of_many_keys_waits_for_the_last_own_write_to_any_of_them() {
        for read in [["a", "b"], ["b", "a"]] {
            let mut flooded = Flooded::new();
            for (session, key) in [(1, "a"), (1, "b"), (2, "a"), (1, "a"), (2, "b"), (1, "c")] {
                flooded.ask(session, put(key, 0));
            }
            flooded.ask(1, Command::Exists { keys: keys(&read) });
            let asked = flooded.tags;
            let answered = |flooded: &Flooded| flooded.replies.iter().any(|(asker, _)| asker.tag == asked);
            let appended = std::mem::take(&mut flooded.appended);
            for (index, (write, _)) in appended.into_iter().enumerate() {
                assert_eq!(answered(&flooded), index > 3, "with {index} writes written");
                let version = Version::new(1, 2 + index as u64);
                flooded.step(Event::Written { write, version, places: smallvec![Place::default()] });
            }
            assert!(flooded.is_empty());
        }
    }

    #[test]
    fn a_write_that_is_written_is_forgotten_and_the_later_one_to_its_key_is_not() {
        let mut flooded = Flooded::new();
        flooded.ask(1, Command::Delete { keys: keys(&["a", "a"]) });
        flooded.ask(1, put("a", 1));
        let ((write, _), version) = (flooded.appended.remove(0), Version::new(1, 2));
        flooded.step(Event::Written { write, version, places: smallvec![Place::default()] });
        let answered = flooded.replies.len();
        flooded.ask(1, Command::Exists { keys: keys(&["a"]) });
        flooded.ask(1, Command::KeyCount);
        assert_eq!(flooded.replies.len(), answered, "answered before the write");
        flooded.write_all();
        let counts: Vec<_> = flooded.replies[answered..].iter().map(|(_, reply)| reply.clone()).collect();
        assert_eq!(counts, [Reply::Count(1), Reply::Count(1)]);
        assert!(flooded.is_empty());
    }

    fn put_many(lengths: impl Iterator<Item = (String, usize)>) -> Command {
        let pair = |(key, bytes): (String, usize)| (Bytes::from(key), Bytes::from(vec![b'v'; bytes]));
        Command::PutMany { pairs: lengths.map(pair).collect() }
    }

    #[test]
    fn the_length_of_a_value_is_estimated_from_the_sessions_own_unwritten_writes() {
        let mut flooded = Flooded::new();
        let foreseen = |flooded: &Flooded, session, key: &str| {
            flooded.master.foreseen_bytes(SessionId(session), &Bytes::copy_from_slice(key.as_bytes()))
        };
        flooded.ask(1, put_many([("a".to_owned(), 1)].into_iter()));
        flooded.write_all();
        flooded.ask(1, put_many([("a".to_owned(), 700), ("b".to_owned(), 70)].into_iter()));
        assert_eq!((foreseen(&flooded, 1, "a"), foreseen(&flooded, 1, "b")), (700, 70));
        assert_eq!((foreseen(&flooded, 1, "c"), foreseen(&flooded, 2, "a")), (0, 1), "of no other session");
        flooded.ask(1, Command::Delete { keys: keys(&["a"]) });
        assert_eq!(foreseen(&flooded, 1, "a"), 0);
        // For writes of many keys: the longest value of all of them, until the last one is written.
        let many = |longest: usize| (0..100).map(move |n| (format!("k{n}"), longest / (n + 1)));
        flooded.ask(1, put_many(many(5000)));
        flooded.ask(1, put_many(many(900)));
        assert_eq!((foreseen(&flooded, 1, "k0"), foreseen(&flooded, 1, "a")), (5000, 5000));
        flooded.write_all();
        assert!(flooded.is_empty());
        assert_eq!(
            [("b", 70), ("k0", 900), ("a", 0)].map(|(key, _)| foreseen(&flooded, 1, key)),
            [70, 900, 0]
        );
    }
}
