//! Work that is too long for one step, in slices: records of many keys, and requests of many keys.
//!
//! Owns their order, which is that of their arrival: a read of many keys comes after the records that were written before it
//! and before those that were written since, even if it takes many steps. So it never sees a later write of its own session,
//! whose record is written even later. Everything in here waits only for its turn. `session_order.rs` decides which requests
//! are put here.

use super::work::{DistinctPairs, ExistCount, HeldRead, LogOutcome, Work};
use super::writes::Terms;
use super::{Asker, Change, Effect, Master, WriteId};
use crate::command::{Command, Operands};
use crate::ids::{Millis, SessionId};
use crate::planted;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many keys are processed in one step, by default: [`super::Config::slice_keys`].
pub const SLICE_KEYS: usize = 256;

/// How many pairs can be freed in the time in which one is processed.
const FREED_FOR_ONE: usize = 8;

/// The queued work of a session.
#[derive(Clone, Copy, Debug, Default)]
struct OfSession {
    count: usize,
    /// The longest value to be written among the work that was queued together, in bytes.
    longest: usize,
}

/// The queue of work that is done in slices.
#[derive(Clone, Debug, Default)]
pub(super) struct Slices {
    queue: VecDeque<Work>,
    /// The amount of work by session. Never iterated.
    sessions: HashMap<SessionId, OfSession, foldhash::fast::FixedState>,
    /// How much of it is requests.
    requests: usize,
    /// How much of it is reads of several sessions: what any session asks next comes behind them.
    mixed: usize,
}

/// Whether it is reads of several sessions.
fn is_mixed(work: &Work) -> bool {
    matches!(work, Work::Resumed { session: None, .. })
}

impl Slices {
    /// Unanswered requests of which no write or read is in flight yet.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// Frees the memory of a finished write, if nothing else holds it.
    pub(super) fn forget(&mut self, change: Arc<Change>, keys_at_once: usize) {
        match Arc::into_inner(change) {
            Some(Change::Put(pairs)) if pairs.len() > keys_at_once => {
                self.queue.push_back(Work::Forget { pairs: pairs.into_iter() });
            }
            Some(Change::Apply(mixed)) if mixed.pairs.len() > keys_at_once => {
                self.queue.push_back(Work::Forget { pairs: mixed.pairs.into_iter() });
            }
            Some(Change::Put(_) | Change::Delete(_) | Change::Apply(_)) | None => {}
        }
    }

    /// The first record that is written and not taken in yet.
    pub(super) fn first_written(&self) -> Option<WriteId> {
        self.queue.iter().find_map(|work| {
            let Work::Outcome(LogOutcome::Written { write, .. }) = work else { return None };
            Some(*write)
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// An upper bound of the longest value that a session writes with its queued work, in bytes.
    pub(super) fn longest_of(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |of_session| of_session.longest)
    }

    pub(super) fn has_of(&self, session: SessionId) -> bool {
        self.mixed > 0 || (!self.sessions.is_empty() && self.sessions.contains_key(&session))
    }

    fn note(&mut self, work: &Work) {
        self.mixed += usize::from(is_mixed(work));
        if let Some(session) = work.session() {
            let of_session = self.sessions.entry(session).or_default();
            of_session.count += 1;
            of_session.longest = work.longest().max(of_session.longest);
            self.requests += 1;
        }
    }

    pub(super) fn push_back(&mut self, work: Work) {
        self.note(&work);
        self.queue.push_back(work);
    }

    pub(super) fn push_front(&mut self, work: Work) {
        self.note(&work);
        self.queue.push_front(work);
    }

    fn pop_front(&mut self) -> Option<Work> {
        let work = self.queue.pop_front()?;
        self.mixed -= usize::from(is_mixed(&work));
        if let Some(session) = work.session() {
            self.requests -= 1;
            if let Some(of_session) = self.sessions.get_mut(&session) {
                of_session.count -= 1;
                if of_session.count == 0 {
                    self.sessions.remove(&session);
                }
            }
        }
        Some(work)
    }
}

impl Master {
    /// Whether a request is done in slices.
    pub(super) fn is_wide(&self, command: &Command) -> bool {
        // A deletion is processed like a write, in slices.
        let is_done_in_slices =
            matches!(command, Command::GetMany { .. } | Command::PutMany { .. } | Command::Exists { .. });
        is_done_in_slices && command.keys() > self.config.slice_keys
    }

    /// Works on the queue, in its order, for a bounded number of keys.
    pub(super) fn work_on(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let mut left = self.config.slice_keys.max(1);
        while left > 0 {
            let Some(work) = self.slices.pop_front() else { return };
            if let Some(rest) = self.slice(now, work, &mut left, effects) {
                planted!(SliceSeesLaterWrite => {
                    if matches!(rest, Work::Gather { .. }) {
                        self.slices.push_back(rest);
                        return;
                    }
                });
                self.slices.push_front(rest);
            }
        }
    }

    /// Processes up to `left` keys of `work`, and gives the rest. Work without keys counts as one.
    #[expect(clippy::too_many_lines, reason = "one arm for each kind of work, each short")]
    fn slice(
        &mut self,
        now: Millis,
        work: Work,
        left: &mut usize,
        effects: &mut Vec<Effect>,
    ) -> Option<Work> {
        match work {
            Work::Outcome(outcome) => self.take_in(now, outcome, left, effects).map(Work::Outcome),
            Work::Resumed { session, mut waiting, written, refusal } => {
                while *left > 0 {
                    let Some(next) = waiting.next() else { break };
                    *left -= 1;
                    if let Some(refusal) = &refusal {
                        self.give_up(next, refusal.clone(), effects);
                        continue;
                    }
                    if let Some(own) = self.resume(now, next, written.as_deref(), effects) {
                        // It has slices of its own, before the requests that have waited for it.
                        if waiting.len() > 0 {
                            self.slices.push_front(Work::Resumed { session, waiting, written, refusal });
                        }
                        return Some(own);
                    }
                }
                (waiting.len() > 0).then_some(Work::Resumed { session, waiting, written, refusal })
            }
            Work::Request { asker, deadline, command } if self.lines.has_of(asker.session) => {
                *left -= 1;
                self.queue_up(now, asker, deadline, command, effects);
                None
            }
            Work::Request { asker, deadline, command } | Work::FromLine { asker, deadline, command } => {
                let keys = if self.is_wide(&command) { 1 } else { command.keys().max(1) };
                *left = left.saturating_sub(keys);
                self.begin_slices(now, asker, deadline, command, effects)
            }
            Work::Gather { asker, deadline, gather, mut next, mut keys } => {
                while *left > 0 {
                    let Some(key) = keys.next() else { break };
                    *left -= 1;
                    self.read_part(now, (gather, next), deadline, key, effects);
                    next += 1;
                }
                (keys.len() > 0).then_some(Work::Gather { asker, deadline, gather, next, keys })
            }
            Work::Count(count) => self.count_on(count, left, effects).map(Work::Count),
            Work::Distinguish { asker, longest, mut pairs, mut distinct } => {
                let slice = pairs.len().min(*left);
                *left -= slice;
                pairs.by_ref().take(slice).for_each(|(key, value)| distinct.insert(key, value));
                if pairs.len() > 0 {
                    return Some(Work::Distinguish { asker, longest, pairs, distinct });
                }
                let (pairs, payload_bytes) = distinct.into_pairs();
                let change = Change::Put(pairs);
                match self.begin_admission(&change, payload_bytes) {
                    Ok(admission) => Some(Work::Admit { asker, longest, change, admission }),
                    Err(refusal) => {
                        effects.push(Effect::Reply { to: asker, reply: refusal });
                        None
                    }
                }
            }
            Work::Forget { mut pairs } => {
                let slice = left.saturating_mul(FREED_FOR_ONE);
                pairs.by_ref().take(slice).for_each(drop);
                *left = 0;
                (pairs.len() > 0).then_some(Work::Forget { pairs })
            }
            Work::Admit { asker, longest, change, mut admission } => {
                match self.admit_on(&change, &mut admission, left) {
                    Ok(true) => {
                        self.accept(asker, change, admission.into_reserved(), Terms::default(), effects);
                    }
                    Ok(false) => return Some(Work::Admit { asker, longest, change, admission }),
                    Err(refusal) => effects.push(Effect::Reply { to: asker, reply: refusal }),
                }
                None
            }
        }
    }

    fn begin_slices(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        command: Command,
        effects: &mut Vec<Effect>,
    ) -> Option<Work> {
        if !self.is_wide(&command) {
            self.begin(now, asker, deadline, command, effects);
        } else if let Command::GetMany { keys } = command {
            match self.last_unwritten_of_any(asker, &keys) {
                Some(write) => self.wait(write, HeldRead::GetMany { asker, deadline, keys }),
                None => return Some(self.gather(asker, deadline, keys)),
            }
        } else if let Command::Exists { keys } = command {
            match self.last_unwritten_of_any(asker, &keys) {
                Some(write) => self.wait(write, HeldRead::Exists { asker, deadline, keys }),
                None => return Some(Work::Count(ExistCount::of(asker, deadline, keys))),
            }
        } else if let Command::PutMany { pairs } = command {
            let (distinct, longest) =
                (DistinctPairs::of(pairs.len()), Operands::Pairs(&pairs).longest_value());
            return Some(Work::Distinguish { asker, longest, pairs: pairs.into_iter(), distinct });
        } else {
            self.begin(now, asker, deadline, command, effects);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::writes::tests::{key, put_many, World};
    use super::super::Event;
    use super::*;
    use crate::command::Reply;
    use bytes::Bytes;

    const KEYS: usize = 5000;

    fn all_keys() -> Vec<Bytes> {
        (0..KEYS).map(key).collect()
    }

    /// A world with two slaves in which one record has written all keys.
    fn written() -> World {
        let mut world = World::new(2);
        world.ask(1, put_many(KEYS));
        world.written();
        world.chores();
        world.ack_all(0);
        world.ack_all(1);
        world.chores();
        world
    }

    /// Does the rest step by step; gives the versions of all values that are asked for, and the number of steps that
    /// asked.
    fn read_in_steps(world: &mut World) -> (Vec<u64>, usize) {
        let (mut read, mut steps) = (world.read.clone(), usize::from(!world.read.is_empty()));
        while world.master.has_chores() {
            world.step(Event::Chore);
            assert!(world.read.len() <= SLICE_KEYS, "{} keys in one step", world.read.len());
            steps += usize::from(!world.read.is_empty());
            read.append(&mut world.read);
        }
        (read, steps)
    }

    #[test]
    fn a_read_of_many_keys_is_begun_in_slices() {
        let mut world = written();
        let asked = world.ask(2, Command::GetMany { keys: all_keys() });
        assert_eq!(world.read.len(), SLICE_KEYS - 1, "what one step asks for");
        assert_eq!(world.master.in_flight() > 0, world.answer(asked).is_none());
        let (read, steps) = read_in_steps(&mut world);
        assert_eq!(read.len(), KEYS);
        assert!(steps >= KEYS / SLICE_KEYS, "{steps} steps");
    }

    /// The session has written one key, reads it among many, and writes them all again: the last record is written while
    /// the read is in slices.
    #[test]
    fn a_read_in_slices_sees_no_later_write_of_its_session() {
        let mut world = written();
        world.ask(1, Command::Put { key: key(0), value: Bytes::from_static(b"own") });
        world.ask(1, Command::GetMany { keys: all_keys() });
        let later = world.ask(1, put_many(KEYS));
        world.chores();
        world.written();
        assert!(!world.read.is_empty() && world.read.len() < KEYS, "{} were read at once", world.read.len());
        let begun = world.read.clone();
        world.written();
        let (mut read, _) = read_in_steps(&mut world);
        read.extend(begun);
        assert_eq!(read.len(), KEYS);
        // The first record was 2, its own write 3, and the last one 4.
        assert!(read.iter().all(|version| *version < 4), "a later write was read");
        assert_eq!(read.iter().filter(|version| **version == 3).count(), 1);
        assert_eq!(world.answer(later), None);
    }

    #[test]
    fn later_requests_of_a_session_wait_for_its_read_in_slices() {
        let mut world = written();
        let count = world.ask(2, Command::Exists { keys: all_keys() });
        let behind = world.ask(2, Command::KeyCount);
        let other = world.ask(3, Command::KeyCount);
        assert_eq!((world.answer(count), world.answer(behind)), (None, None));
        assert_eq!(world.answer(other), Some(&Reply::Count(KEYS as u64)), "others do not wait");
        let pieces = world.chores();
        assert!(pieces >= KEYS / SLICE_KEYS - 1, "{pieces} pieces");
        assert_eq!(world.answer(count), Some(&Reply::Count(KEYS as u64)));
        assert_eq!(world.answer(behind), Some(&Reply::Count(KEYS as u64)));
    }

    /// There is room for each half of the keys at one of the slaves, not for all of them at both.
    #[test]
    fn room_for_a_write_of_many_keys_is_set_aside_in_slices() {
        let command = put_many(KEYS);
        let bytes =
            command.payload_bytes() as u64 + KEYS as u64 * crate::machine::slave::ENTRY_OVERHEAD_BYTES;
        let mut world = World::with_room(2, bytes * 3 / 4);
        let asked = world.ask(1, command.clone());
        let pieces = world.chores();
        assert!(pieces >= 2 * (KEYS / SLICE_KEYS) - 2, "{pieces} pieces");
        assert_eq!((world.appended.len(), world.answer(asked)), (1, None));
        // Another write finds no room and is refused, which does not affect the first one.
        let refused = world.ask(1, command);
        world.chores();
        assert!(matches!(world.answer(refused), Some(Reply::Error(_))), "{:?}", world.answer(refused));
        assert_eq!(world.appended.len(), 1);
        world.written();
        world.chores();
        world.ack_all(0);
        world.ack_all(1);
        world.chores();
        assert_eq!(world.answer(asked), Some(&Reply::Done));
        assert_eq!(world.master.in_flight(), 0);
    }

    #[test]
    fn a_key_that_stands_twice_in_a_write_in_slices_takes_its_last_value() {
        let mut world = World::new(1);
        let pairs = (0..KEYS).map(|number| (key(number % 7), Bytes::from(number.to_string()))).collect();
        world.ask(1, Command::PutMany { pairs });
        world.chores();
        let last =
            |number: usize| (number..KEYS).step_by(7).next_back().expect("there are more keys than that");
        let expected = (0..7).map(|number| (key(number), Bytes::from(last(number).to_string())));
        assert_eq!(world.last_appended, expected.collect::<Vec<_>>());
    }

    /// A compaction counts on it: what is not taken in is not in the directory.
    #[test]
    fn a_record_of_many_keys_is_taken_in_once_all_of_them_are_and_later_ones_do_not_matter() {
        let mut world = written();
        world.ask(2, put_many(KEYS));
        while world.master.has_chores() {
            world.step(Event::Chore);
        }
        let through = world.last_seq();
        assert!(world.master.has_taken_in(through), "the first record");
        world.written();
        let seq = world.last_seq();
        assert!(!world.master.has_taken_in(seq), "a slice of it is");
        assert!(world.master.has_taken_in(through), "the one before still is");
        world.chores();
        assert!(world.master.has_taken_in(seq));
    }

    /// A slave is silent: all reads are late at one moment.
    #[test]
    fn reads_that_are_late_at_once_are_moved_on_in_slices() {
        let mut world = written();
        world.ask(2, Command::GetMany { keys: all_keys() });
        read_in_steps(&mut world);
        world.now = Millis(300);
        world.step(Event::Tick);
        assert!(world.master.has_chores(), "all at once");
        let mut moved = 0;
        while world.master.has_chores() {
            world.step(Event::Chore);
            moved += 1;
        }
        assert!(moved >= KEYS / 1024 - 1, "{moved} steps");
    }
}
