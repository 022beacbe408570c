//! Requests that look at all keys: SCAN, KEYS, RANDOMKEY, FLUSHALL. The directory has them; no slave is asked.
//!
//! A SCAN is answered in one step, with as many keys as that allows. Its order is that of the keys' hashes, whose seed is in the
//! log: so a cursor says what is done whatever becomes of the directory, here or at another master. KEYS and RANDOMKEY are *walks*
//! by the numbers of the entries, which is much quicker, and are done in slices; the later requests of their sessions wait in their
//! lines meanwhile (`updates.rs`).
//!
//! FLUSHALL is a walk, too, that deletes what it meets, by a few records in each step, each of them a DELETE like any other: the log
//! needs no other one, and no standby, slave or compaction another rule. It waits for them before it goes on.
//!
//! None of them shows a key whose time has come. That it is gone is told only once its deletion is written, as by any read: they
//! wait for it, and look at the same keys again.

use super::placement::Random;
use super::reads::overtaken;
use super::room::RoomReserved;
use super::work::{HeldRead, KeyScan, WalkKey, PART};
use super::writes::Terms;
use super::{Asker, Change, Directory, Effect, Entry, Master, WriteId};
use crate::command::{pattern_fits, ErrorWord, Reply, KEYS_MAX};
use crate::glob;
use crate::ids::{Millis, UnixMillis};
use bytes::Bytes;
use slotmap::SlotMap;
use smallvec::SmallVec;
use std::collections::{HashSet, VecDeque};

/// One SCAN looks at most at so many keys and places of keys, and shows at most so many keys with so many bytes.
const SCAN_LOOKS: usize = 16 * 1024;
const SCAN_KEYS_MAX: u32 = 1024;
const SCAN_BYTES_MAX: usize = 1 << 20;

/// One step of a walk looks at so many entries.
const WALK_LOOKS: usize = 8 * 1024;

/// To show a key takes as long as to look at so many.
const SHOWN_LOOKS: usize = 4;

/// A look takes as long as so many steps of matching.
const STEPS_FOR_LOOK: usize = 16;

/// So many walks at most have found keys that are not sent.
const WALKS_BEGUN_MAX: usize = 4;

/// A walk may take a second longer for each so many entries.
const ENTRIES_A_SECOND: usize = 1 << 20;

/// One record deletes at most so many keys, with about so many bytes; and one step writes so many records, the first one alone: if the
/// log refuses that, nothing is done.
const KEYS_DELETED: usize = 256;
const BYTES_DELETED: usize = 64 << 10;
const RECORDS_AT_ONCE: usize = 8;

/// A walk that deletes may take a second longer for each so many entries.
const DELETED_A_SECOND: usize = 1 << 15;

/// What a walk is for.
#[derive(Clone, Debug)]
pub(super) enum Sought {
    /// All keys that match.
    Matching { pattern: Bytes, found: HashSet<Bytes, foldhash::fast::FixedState>, bytes: usize },
    /// Any key, the first from number `begin` on, or else the first of all.
    Any { begin: usize, has_wrapped: bool },
    /// All keys, to be deleted.
    Everything,
}

impl Sought {
    pub(super) fn matching(pattern: Bytes) -> Self {
        Sought::Matching { pattern, found: HashSet::default(), bytes: 0 }
    }

    pub(super) fn any() -> Self {
        Sought::Any { begin: 0, has_wrapped: false }
    }
}

/// A request that looks at all entries.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    asker: Asker,
    deadline: Millis,
    sought: Sought,
    /// Entries with lower numbers are done.
    next: usize,
    has_begun: bool,
    /// Whether it goes on only once a write is resolved.
    is_held: bool,
    /// How many records of it are in the log.
    written: usize,
    /// How many it waits for.
    unwritten: usize,
}

/// The walks that are not done, the first ones of their sessions in the order in which they go on.
#[derive(Clone, Debug, Default)]
pub(super) struct Walks {
    all: SlotMap<WalkKey, Walk>,
    turns: VecDeque<WalkKey>,
}

/// What has come of a slice.
enum Slice {
    /// There is more to do.
    More,
    /// That is the answer.
    Done(Reply),
    /// It is to be done again once these keys, whose time has come, are deleted.
    Due(Vec<Bytes>),
    /// These keys are to be deleted, and then there is more to do.
    Delete(Vec<Bytes>),
}

impl Walks {
    /// Takes in a walk.
    pub(super) fn insert(&mut self, asker: Asker, deadline: Millis, sought: Sought) -> WalkKey {
        let (has_begun, is_held) = (false, false);
        self.all.insert(Walk {
            asker,
            deadline,
            sought,
            next: 0,
            has_begun,
            is_held,
            written: 0,
            unwritten: 0,
        })
    }

    pub(super) fn asker(&self, walk: WalkKey) -> Option<Asker> {
        self.all.get(walk).map(|walk| walk.asker)
    }

    pub(super) fn remove(&mut self, walk: WalkKey) {
        self.all.remove(walk);
        self.turns.retain(|turn| *turn != walk);
    }

    /// The one that goes on next.
    fn turn(&self) -> Option<WalkKey> {
        let walks = || self.turns.iter().filter_map(|key| Some((*key, self.all.get(*key)?)));
        let begun = walks().filter(|(_, walk)| walk.has_begun).count();
        let mut may_go_on =
            walks().filter(|(_, walk)| !walk.is_held && (walk.has_begun || begun < WALKS_BEGUN_MAX));
        may_go_on.next().map(|(key, _)| key)
    }

    /// Whether none can go on by itself.
    pub(super) fn is_quiet(&self) -> bool {
        self.turns.is_empty() || self.turn().is_none()
    }

    /// Others go on before it does again.
    fn pass_on(&mut self, walk: WalkKey) {
        self.turns.retain(|turn| *turn != walk);
        self.turns.push_back(walk);
    }

    /// The write is resolved for which a walk has waited.
    pub(super) fn resumed(&mut self, walk: WalkKey) {
        if let Some(walk) = self.all.get_mut(walk) {
            walk.is_held = false;
            walk.written += std::mem::take(&mut walk.unwritten);
        }
    }

    /// What a client is told when the write is refused for which its walk has waited; and whether it is left open what has been done.
    pub(super) fn refused(&self, walk: WalkKey, reply: Reply) -> (Reply, bool) {
        let Some(walk) = self.all.get(walk) else { return (reply, false) };
        let is_unknown = matches!(&reply, Reply::Error(error) if error.word == ErrorWord::Unknown);
        let is_partly_done = walk.written > 0 || (is_unknown && walk.unwritten > 0);
        if is_partly_done {
            (partly_deleted(), true)
        } else {
            (reply, false)
        }
    }
}

impl Master {
    /// Begins a SCAN, behind what its session has written.
    pub(super) fn scan(&mut self, scan: KeyScan, effects: &mut Vec<Effect>) {
        if scan.pattern.as_ref().is_some_and(|pattern| !pattern_fits(pattern)) {
            let (to, reply) = (scan.asker, too_long());
            effects.push(Effect::Reply { to, reply });
            return;
        }
        match self.writes.unwritten.last_of_session(scan.asker.session) {
            Some(write) => self.wait(write, HeldRead::Scan(scan)),
            None => self.scan_on(scan, effects),
        }
    }

    /// Answers a SCAN, or waits for the deletion of keys whose time has come. After that it sees the same: what has come since is
    /// for a later one.
    pub(super) fn scan_on(&mut self, mut scan: KeyScan, effects: &mut Vec<Effect>) {
        let time = *scan.time.get_or_insert(self.time);
        let count = scan.count.min(SCAN_KEYS_MAX);
        let (mut looked_at, mut bytes, mut keys, mut due) = (0, 0, Vec::new(), Vec::new());
        let next = self.directory.scan(scan.cursor, &mut { SCAN_LOOKS }, |key, entry, looks| {
            looked_at += 1;
            if entry.expires.is_some_and(|expires| expires < time) {
                due.push(Bytes::copy_from_slice(key));
            } else if scan.shows && matches(scan.pattern.as_ref(), key, looks) {
                bytes += key.len();
                keys.push(Bytes::copy_from_slice(key));
            }
            if looked_at >= count || bytes >= SCAN_BYTES_MAX {
                *looks = 0;
            }
        });
        let to = scan.asker;
        let Ok(next) = next else {
            let why = "invalid cursor: it is of another order of the keys, begin again with 0";
            effects.push(Effect::Reply { to, reply: Reply::error(ErrorWord::Bad, why) });
            return;
        };
        if let Some(write) = (!due.is_empty()).then(|| self.delete_all_expired(&due, effects)).flatten() {
            // Only who has waited for another write comes here with one of its own.
            let has_own = self.writes.unwritten.last_of_session(to.session).is_some();
            if self.now >= scan.deadline || has_own {
                effects.push(Effect::Reply { to, reply: overtaken() });
            } else {
                self.wait(write, HeldRead::Scan(scan));
            }
            return;
        }
        self.counters.reads += 1;
        effects.push(Effect::Reply { to, reply: Reply::Page { next, keys } });
    }

    /// It is the turn of a walk in its session's line: it begins, behind what the session has written.
    pub(super) fn begin_walk(&mut self, key: WalkKey, effects: &mut Vec<Effect>) {
        let Some(asker) = self.lines.walks.asker(key) else { return };
        if self.lines.walks.turns.contains(&key) {
            return;
        }
        self.lines.walks.turns.push_back(key);
        if let Some(write) = self.writes.unwritten.last_of_session(asker.session) {
            self.hold_walk(key, write);
        } else if self.lines.walks.turn() == Some(key) {
            // A short one is answered at once.
            self.walk_on(effects);
        }
    }

    fn hold_walk(&mut self, key: WalkKey, write: WriteId) {
        if let Some(walk) = self.lines.walks.all.get_mut(key) {
            walk.is_held = true;
            self.writes.wait(write, HeldRead::Walk { walk: key });
        }
    }

    /// Goes on with the walk whose turn it is.
    pub(super) fn walk_on(&mut self, effects: &mut Vec<Effect>) {
        let Some(key) = self.lines.walks.turn() else { return };
        let Master { lines, directory, random, .. } = self;
        let Some(walk) = lines.walks.all.get_mut(key) else { return };
        if !walk.has_begun {
            walk.begin(directory.numbers(), random);
        }
        let to = walk.asker;
        let entries_a_second = match walk.sought {
            Sought::Matching { .. } | Sought::Any { .. } => ENTRIES_A_SECOND,
            Sought::Everything => DELETED_A_SECOND,
        };
        let more_ms = (directory.numbers() / entries_a_second * 1000) as u64;
        let slice = if self.now >= walk.deadline.plus(more_ms) {
            let late = Reply::error(ErrorWord::Busy, "it takes too long to look at all keys: use SCAN");
            Slice::Done(if walk.written > 0 { partly_deleted() } else { late })
        } else {
            walk.slice(directory, self.time, self.config.gather_bytes_max)
        };
        match slice {
            Slice::More => self.lines.walks.pass_on(key),
            Slice::Done(reply) => {
                self.counters.reads += 1;
                effects.push(Effect::Reply { to, reply });
                self.lines.walk_ended(to.session);
            }
            Slice::Due(keys) => {
                if let Some(write) = self.delete_all_expired(&keys, effects) {
                    self.hold_walk(key, write);
                }
            }
            Slice::Delete(keys) => self.delete_part(key, keys, effects),
        }
    }
}

impl Master {
    /// Deletes some keys for a FLUSHALL.
    fn delete_part(&mut self, key: WalkKey, keys: Vec<Bytes>, effects: &mut Vec<Effect>) {
        let Some(walk) = self.lines.walks.all.get_mut(key) else { return };
        let (asker, is_first) = (walk.asker, walk.written == 0);
        let change = Change::Delete(SmallVec::new());
        if let (true, Err(reply)) = (is_first, self.begin_admission(&change, 0).map(|_| ())) {
            effects.push(Effect::Reply { to: asker, reply });
            self.lines.walk_ended(asker.session);
            return;
        }
        // If the log refuses one of them it refuses those after it, too: so the last one says what has become of all.
        let (refusals, mut last, mut records) = (self.writes.refusals, None, 0);
        let mut keys = keys.into_iter().peekable();
        while keys.peek().is_some() {
            let (mut record, mut bytes) = (SmallVec::new(), 0);
            while record.len() < KEYS_DELETED && bytes < BYTES_DELETED {
                let Some(key) = keys.next() else { break };
                bytes += key.len();
                record.push(key);
            }
            let terms = Terms { after: Some(refusals), ..Terms::default() };
            last = Some(self.accept(PART, Change::Delete(record), RoomReserved::default(), terms, effects));
            records += 1;
        }
        if let Some(walk) = self.lines.walks.all.get_mut(key) {
            walk.unwritten = records;
        }
        if let Some(write) = last {
            self.hold_walk(key, write);
        }
    }
}

impl Walk {
    fn begin(&mut self, numbers: usize, random: &mut Random) {
        self.has_begun = true;
        match &mut self.sought {
            Sought::Matching { .. } | Sought::Everything => {}
            Sought::Any { begin, has_wrapped } => {
                *begin = random.below(numbers);
                (self.next, *has_wrapped) = (*begin, *begin == 0);
            }
        }
    }

    /// Looks at some entries.
    fn slice(&mut self, directory: &Directory, time: UnixMillis, bytes_max: usize) -> Slice {
        let (mut looks, mut due, from) = (WALK_LOOKS, Vec::new(), self.next);
        let is_due = |entry: &Entry| entry.expires.is_some_and(|expires| expires < time);
        match &mut self.sought {
            Sought::Everything => return self.deletions(directory),
            Sought::Matching { pattern, .. } if !pattern_fits(pattern) => return Slice::Done(too_long()),
            Sought::Matching { pattern, found, bytes } => {
                let mut shown = Vec::new();
                let next = directory.look_through(from, usize::MAX, &mut looks, |key, entry, looks| {
                    if matches(Some(pattern), key, looks) {
                        let keys = if is_due(entry) { &mut due } else { &mut shown };
                        keys.push(Bytes::copy_from_slice(key));
                    }
                });
                if due.is_empty() {
                    // One may have been deleted and written again since it was found.
                    for key in shown {
                        let length = key.len();
                        *bytes += if found.insert(key) { length } else { 0 };
                    }
                }
                if found.len() > KEYS_MAX || *bytes > bytes_max {
                    let why = format!(
                        "too many keys match: at most {KEYS_MAX} are shown, of {bytes_max} bytes in all; use SCAN"
                    );
                    return Slice::Done(Reply::error(ErrorWord::Bad, why));
                }
                match next {
                    Some(next) => self.next = next,
                    None if !due.is_empty() => {}
                    None => return Slice::Done(Reply::Values(found.drain().map(Some).collect())),
                }
            }
            Sought::Any { begin, has_wrapped } => {
                let had_wrapped = *has_wrapped;
                loop {
                    let end = if *has_wrapped && *begin > 0 { *begin } else { usize::MAX };
                    let mut found = None;
                    let next = directory.look_through(self.next, end, &mut looks, |key, entry, looks| {
                        let key = Bytes::copy_from_slice(key);
                        if is_due(entry) {
                            due.push(key);
                        } else {
                            found = Some(key);
                            *looks = 0;
                        }
                    });
                    match (found, next) {
                        (Some(key), _) => return Slice::Done(Reply::Value(key)),
                        (None, None) if !*has_wrapped => (self.next, *has_wrapped) = (0, true),
                        (None, None) if due.is_empty() => return Slice::Done(Reply::NotFound),
                        (None, next) => {
                            self.next = next.unwrap_or(from);
                            break;
                        }
                    }
                }
                *has_wrapped = if due.is_empty() { *has_wrapped } else { had_wrapped };
            }
        }
        if due.is_empty() {
            return Slice::More;
        }
        self.next = from;
        Slice::Due(due)
    }

    /// The next keys to be deleted.
    fn deletions(&mut self, directory: &Directory) -> Slice {
        let records = if self.written == 0 { 1 } else { RECORDS_AT_ONCE };
        let (mut looks, mut keys, mut bytes) = (WALK_LOOKS, Vec::new(), 0);
        let next = directory.look_through(self.next, usize::MAX, &mut looks, |key, _, looks| {
            bytes += key.len();
            keys.push(Bytes::copy_from_slice(key));
            if keys.len() >= records * KEYS_DELETED || bytes >= records * BYTES_DELETED {
                *looks = 0;
            }
        });
        match next {
            _ if !keys.is_empty() => {
                // What comes to a number that is done is for a later one.
                self.next = next.unwrap_or(directory.numbers());
                Slice::Delete(keys)
            }
            Some(next) => {
                self.next = next;
                Slice::More
            }
            None => Slice::Done(Reply::Done),
        }
    }
}

/// Why a FLUSHALL ends before all keys are deleted.
fn partly_deleted() -> Reply {
    Reply::error(ErrorWord::Unknown, "a part of the keys is deleted, not all of them")
}

/// Why a pattern is refused that a native client has sent: those of others are not taken.
fn too_long() -> Reply {
    Reply::error(ErrorWord::Bad, "the pattern is too long")
}

/// Whether `key` matches; takes the looks that it takes to find out and to show it.
fn matches(pattern: Option<&Bytes>, key: &[u8], looks: &mut usize) -> bool {
    let mut steps = 0;
    let is_shown = pattern.is_none_or(|pattern| glob::matches_exactly(pattern, key, &mut steps));
    *looks = looks.saturating_sub(steps / STEPS_FOR_LOOK + if is_shown { SHOWN_LOOKS } else { 0 });
    is_shown
}

#[cfg(test)]
mod tests {
    use super::super::writes::tests::{key, World};
    use super::super::Event;
    use super::*;
    use crate::command::Command;
    use std::collections::BTreeSet;

    fn scan(cursor: u64, count: u32) -> Command {
        Command::Scan { cursor, pattern: None, count, strings: true }
    }

    fn keys(pattern: &'static str) -> Command {
        Command::Keys { pattern: Bytes::from_static(pattern.as_bytes()) }
    }

    /// A world without slaves in which these keys are there.
    fn with_keys(count: usize) -> World {
        let mut world = World::new(1);
        for number in 0..count {
            world.replay(&key(number));
        }
        world
    }

    /// The next cursor and the keys of a page.
    fn page(world: &mut World, command: Command) -> (u64, Vec<Bytes>) {
        let asked = world.ask(1, command);
        match world.answer(asked) {
            Some(Reply::Page { next, keys }) => (*next, keys.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn values(reply: Option<&Reply>) -> BTreeSet<Bytes> {
        let Some(Reply::Values(values)) = reply else { panic!("{reply:?}") };
        let keys: BTreeSet<Bytes> = values.iter().flatten().cloned().collect();
        assert_eq!(keys.len(), values.len(), "a key is shown twice");
        keys
    }

    #[test]
    fn pages_of_a_scan_are_of_the_length_that_is_asked_for_and_bounded() {
        let mut world = with_keys(50_000);
        for (count, longest) in [(1, 10), (100, 110), (u32::MAX, SCAN_KEYS_MAX as usize + 10)] {
            let (mut cursor, mut shown, mut pages) = (0, BTreeSet::new(), 0);
            loop {
                let (next, keys) = page(&mut world, scan(cursor, count));
                assert!((1..=longest).contains(&keys.len()) || next == 0, "{} keys in a page", keys.len());
                assert!(next < 1 << 53, "{next} is no number in JavaScript");
                pages += 1;
                let before = shown.len() + keys.len();
                shown.extend(keys);
                assert_eq!(shown.len(), before, "a key is shown twice");
                cursor = next;
                if next == 0 || pages == 100 {
                    break;
                }
            }
            assert!(cursor != 0 || shown.len() == 50_000, "{} of all keys in {pages} pages", shown.len());
            assert_eq!(cursor == 0, count > 1000, "{pages} pages of {count}");
        }
    }

    /// Long keys and patterns that match slowly make pages short, and an empty table of many chains makes them empty.
    #[test]
    fn a_page_takes_a_bounded_time_whatever_it_looks_at() {
        let mut world = World::new(1);
        for number in 0..100 {
            let mut long = vec![b'a'; 60_000];
            long.extend(number.to_string().into_bytes());
            world.replay(&long);
        }
        let (next, keys) = page(&mut world, scan(0, 1000));
        assert!(next > 0 && (10..40).contains(&keys.len()), "{} keys", keys.len());
        let pattern = Some(Bytes::from(format!("*{}b", "a".repeat(60))));
        let command = Command::Scan { cursor: 0, pattern, count: 1000, strings: true };
        let (next, keys) = page(&mut world, command);
        assert!(next > 0 && keys.is_empty(), "{} keys", keys.len());
        let mut world = World::new(1);
        world.master.expect_keys(1 << 20);
        world.replay(b"one");
        let (mut cursor, mut pages, mut shown) = (0, 0, 0);
        while pages == 0 || cursor != 0 {
            let (next, keys) = page(&mut world, scan(cursor, 10));
            (cursor, pages, shown) = (next, pages + 1, shown + keys.len());
        }
        let expected = (1 << 20) / SCAN_LOOKS;
        assert!((expected..=expected + 1).contains(&pages) && shown == 1, "{shown} keys in {pages} pages");
    }

    #[test]
    fn a_cursor_counts_at_another_master_of_the_same_log_and_at_no_other() {
        let (mut one, mut other) = (with_keys(1000), World::new(1));
        // The other one has read a compacted log.
        other.master.expect_keys(5000);
        (0..1000).rev().for_each(|number| other.replay(&key(number)));
        let (cursor, first) = page(&mut one, scan(0, 300));
        let mut shown: BTreeSet<Bytes> = first.into_iter().collect();
        let (mut cursor, mut is_one) = (cursor, false);
        while cursor != 0 {
            let world = if is_one { &mut one } else { &mut other };
            let (next, keys) = page(world, scan(cursor, 50));
            shown.extend(keys);
            (cursor, is_one) = (next, !is_one);
        }
        assert_eq!(shown.len(), 1000);
        for cursor in [1, 17, u64::MAX, 1 << 52] {
            let asked = one.ask(1, scan(cursor, 10));
            let refused =
                matches!(one.answer(asked), Some(Reply::Error(error)) if error.word == ErrorWord::Bad);
            assert!(refused, "{cursor}: {:?}", one.answer(asked));
        }
    }

    #[test]
    fn keys_are_looked_at_in_slices_and_the_sessions_next_requests_wait() {
        let mut world = with_keys(50_000);
        let asked = world.ask(1, keys("key1234*"));
        let later = world.ask(1, Command::Put { key: key(12_345_678), value: Bytes::new() });
        let other = world.ask(2, Command::KeyCount);
        assert!(world.appended.is_empty(), "a later write of the session is appended");
        assert_eq!((world.answer(asked), world.answer(other)), (None, Some(&Reply::Count(50_000))));
        // Another one is served in turn.
        let random = world.ask(3, Command::RandomKey);
        let pieces = world.chores();
        assert!(pieces >= 50_000 / WALK_LOOKS, "{pieces} pieces");
        let shown: BTreeSet<Bytes> = std::iter::once(1234).chain(12_340..12_350).map(key).collect();
        assert_eq!(values(world.answer(asked)), shown);
        assert!(matches!(world.answer(random), Some(Reply::Value(_))));
        assert_eq!(world.appended.len(), 1);
        assert_eq!(world.answer(later), None);
        world.written();
        world.ack_all(0);
        world.chores();
        assert_eq!((world.answer(later), world.master.in_flight()), (Some(&Reply::Done), 0));
    }

    #[test]
    fn keys_and_random_keys_wait_for_what_their_session_has_written() {
        let mut world = World::new(1);
        for (session, command) in [(1, keys("*")), (2, Command::RandomKey), (3, scan(0, 10))] {
            world.ask(session, Command::Put { key: key(0), value: Bytes::new() });
            let asked = world.ask(session, command.clone());
            world.chores();
            assert_eq!(world.answer(asked), None, "{command:?}");
            world.written();
            world.chores();
            assert!(world.answer(asked).is_some(), "{command:?}");
            world.ack_all(0);
            // Who has written nothing does not wait for others.
            world.ask(session, Command::Delete { keys: vec![key(0)] });
            let asked = world.ask(9, command.clone());
            assert!(matches!(
                world.answer(asked),
                Some(Reply::Value(_) | Reply::Values(_) | Reply::Page { .. })
            ));
            world.written();
            let asked = world.ask(session, command);
            let shown = world.answer(asked).cloned();
            let none = [Reply::NotFound, Reply::Values(vec![]), Reply::Page { next: 0, keys: vec![] }];
            assert!(none.contains(&shown.clone().expect("it is answered")), "{shown:?}");
        }
        assert_eq!(world.master.in_flight(), 0);
    }

    #[test]
    fn more_keys_than_fit_an_answer_are_an_error_that_names_the_limit() {
        let mut world = with_keys(KEYS_MAX + 1);
        let asked = world.ask(1, keys("*"));
        world.chores();
        let Some(Reply::Error(error)) = world.answer(asked) else { panic!("{:?}", world.answer(asked)) };
        assert!(error.detail.contains("65536") && error.detail.contains("SCAN"), "{error}");
        let asked = world.ask(1, keys("key[1-9]*"));
        world.chores();
        assert_eq!(values(world.answer(asked)).len(), KEYS_MAX);
    }

    #[test]
    fn a_walk_that_is_late_is_refused_and_the_line_goes_on() {
        let mut world = with_keys(50_000);
        let (late, next) = (world.ask(1, keys("none")), world.ask(1, Command::KeyCount));
        world.now = Millis(1000);
        world.chores();
        assert!(matches!(world.answer(late), Some(Reply::Error(error)) if error.word == ErrorWord::Busy));
        assert_eq!(world.answer(next), Some(&Reply::Count(50_000)));
    }

    /// Few begin at once, because what they have found is in memory.
    #[test]
    fn any_number_of_walks_of_many_sessions_ends() {
        let mut world = with_keys(20_000);
        let asked: Vec<u64> = (1..=20).map(|session| world.ask(session, keys("key1*"))).collect();
        while world.master.has_chores() {
            let begun = world.master.lines.walks.all.values().filter(|walk| walk.has_begun).count();
            assert!(begun <= WALKS_BEGUN_MAX, "{begun} have begun");
            world.step(Event::Chore);
        }
        assert!(asked.iter().all(|asked| values(world.answer(*asked)).len() == 11_111));
    }

    #[test]
    fn each_key_is_drawn_now_and_then() {
        let mut world = with_keys(10);
        let mut drawn = BTreeSet::new();
        for _ in 0..200 {
            let asked = world.ask(1, Command::RandomKey);
            let Some(Reply::Value(key)) = world.answer(asked).cloned() else { panic!("no key") };
            drawn.insert(key);
        }
        assert_eq!(drawn.len(), 10);
    }

    /// Answers the records of a FLUSHALL; gives how many there were after each step.
    fn delete_all(world: &mut World, mut between: impl FnMut(&mut World)) -> Vec<usize> {
        let mut records = vec![world.appended.len()];
        loop {
            while !world.appended.is_empty() {
                world.written();
            }
            between(world);
            world.chores();
            if world.appended.is_empty() {
                return records;
            }
            records.push(world.appended.len());
        }
    }

    #[test]
    fn all_keys_are_deleted_by_a_few_records_at_a_time() {
        let mut world = with_keys(5000);
        let (asked, later) = (world.ask(1, Command::DeleteAll), world.ask(1, Command::KeyCount));
        assert_eq!((world.answer(asked), world.answer(later)), (None, None));
        let records = delete_all(&mut world, |_| {});
        assert_eq!(records, [1, RECORDS_AT_ONCE, RECORDS_AT_ONCE, 3]);
        assert_eq!((world.answer(asked), world.answer(later)), (Some(&Reply::Done), Some(&Reply::Count(0))));
        assert_eq!(world.master.in_flight(), 0);
        let asked = world.ask(1, Command::DeleteAll);
        assert_eq!((world.answer(asked), world.appended.len()), (Some(&Reply::Done), 0), "there is no key");
    }

    /// It ends, however quickly others write.
    #[test]
    fn what_others_write_meanwhile_may_stay() {
        let mut world = with_keys(5000);
        let asked = world.ask(1, Command::DeleteAll);
        let mut number = 10_000;
        delete_all(&mut world, |world| {
            for _ in 0..500 {
                world.replay(&key(number));
                number += 1;
            }
        });
        assert_eq!(world.answer(asked), Some(&Reply::Done));
        for number in 0..5000 {
            assert_eq!(world.master.directory().get(&key(number)), None, "key {number}");
        }
    }

    #[test]
    fn a_deletion_of_all_keys_that_is_refused_says_whether_a_part_is_done() {
        let refused = |world: &mut World| {
            let (write, _) = world.appended.pop_front().expect("something is appended");
            let (word, detail) = (ErrorWord::ReadOnly, "full".to_owned());
            world.step(Event::NotWritten { write, word, detail });
            world.chores();
        };
        let word = |world: &World, tag: u64| match world.answer(tag) {
            Some(Reply::Error(error)) => error.word,
            other => panic!("{other:?}"),
        };
        let mut world = with_keys(5000);
        let (asked, later) = (world.ask(1, Command::DeleteAll), world.ask(1, Command::KeyCount));
        refused(&mut world);
        assert_eq!(
            (word(&world, asked), world.answer(later)),
            (ErrorWord::ReadOnly, Some(&Reply::Count(5000)))
        );
        let (asked, later) = (world.ask(1, Command::DeleteAll), world.ask(1, Command::KeyCount));
        world.written();
        world.chores();
        assert_eq!(world.appended.len(), RECORDS_AT_ONCE);
        world.written();
        (1..RECORDS_AT_ONCE).for_each(|_| refused(&mut world));
        assert_eq!((word(&world, asked), word(&world, later)), (ErrorWord::Unknown, ErrorWord::Busy));
        assert_eq!(world.master.directory().len(), 5000 - 2 * KEYS_DELETED);
        assert_eq!(world.master.in_flight(), 0);
        let mut world = World::new(0);
        world.replay(b"k");
        let asked = world.ask(1, Command::DeleteAll);
        assert_eq!(word(&world, asked), ErrorWord::NoQuorum);
    }

    /// The time of each slice at ten million keys: run with `--ignored --nocapture`.
    #[test]
    #[ignore = "takes a gigabyte"]
    fn no_slice_of_ten_million_keys_takes_long() {
        let mut world = with_keys(10_000_000);
        let mut longest = std::collections::BTreeMap::new();
        let mut timed = |what: &'static str, world: &mut World, call: &mut dyn FnMut(&mut World)| {
            let begun = crate::machine::master::keyspace::tests::now();
            call(world);
            let took = begun.elapsed();
            let entry = longest.entry(what).or_insert((took, took, 0));
            *entry = (entry.0.max(took), entry.1 + took, entry.2 + 1);
        };
        let mut cursor = 0;
        loop {
            timed("scan 10", &mut world, &mut |world| cursor = page(world, scan(cursor, 10)).0);
            timed("scan 1000000", &mut world, &mut |world| cursor = page(world, scan(cursor, 1_000_000)).0);
            if cursor == 0 {
                break;
            }
        }
        timed("keys begins", &mut world, &mut |world| {
            world.ask(1, keys("*123456*"));
        });
        while world.master.has_chores() {
            timed("keys goes on", &mut world, &mut |world| world.step(Event::Chore));
        }
        for (what, (longest, sum, count)) in longest {
            println!("{what}: {count} steps, the longest {longest:?}, {sum:?} in all");
        }
    }

    #[expect(clippy::disallowed_methods, reason = "only what is measured depends on it")]
    fn now() -> std::time::Instant {
        std::time::Instant::now()
    }
}
