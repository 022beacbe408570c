//! The order of one session: its requests take effect in the order in which it sends them.
//!
//! Three rules ensure this. A read waits for the unwritten writes of its own session to the same keys, and is bound at
//! their place in the log (`docs/ARCHITECTURE.md`, *How a write and a read go*). And requests of a session after one that
//! is done in slices queue after it (`slices.rs`), and so do those after one that is not decided (`updates.rs`). No request waits
//! for another session's but an update for the write on which it depends.
//!
//! The session's own task owns the order in which answers are sent.

use super::hash::hash_bytes;
use super::reads::Destination;
use super::work::{ExistCount, HeldRead, KeyScan, Work};
use super::{Asker, Change, Effect, Master, WriteId};
use crate::command::{Command, Reply};
use crate::ids::{Millis, SessionId};
use crate::planted;
use bytes::Bytes;
use std::sync::Arc;

/// A write of more keys than this is not searched for a key: reads that waited for it are done like all others.
const PAIRS_SEARCHED_MAX: usize = 16;

impl Master {
    /// Begins a request, unless it is to be done in slices or follows such a request of its session.
    pub(super) fn ask_in_order(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        let has_line = self.lines.has_of(asker.session) && !planted!(UpdateOvertaken);
        if self.slices.has_of(asker.session) || (self.is_wide(&command) && !has_line) {
            self.slices.push_back(Work::Request { asker, deadline, command });
            self.work_on(now, effects);
        } else if has_line {
            self.queue_up(now, asker, deadline, command, effects);
        } else {
            self.begin(now, asker, deadline, command, effects);
        }
    }

    /// The last write of the same session that may change any of `keys`; for many keys, the session's last write.
    pub(super) fn last_unwritten_of_any(&self, asker: Asker, keys: &[Bytes]) -> Option<WriteId> {
        let unwritten = &self.writes.unwritten;
        if keys.len() > self.config.slice_keys {
            return unwritten.last_of_session(asker.session);
        }
        unwritten.last_of_keys(asker.session, keys.iter().map(|key| hash_bytes(key)))
    }

    pub(super) fn wait(&mut self, write: WriteId, waiting: HeldRead) {
        self.reads.waiting += 1;
        self.writes.wait(write, waiting);
    }

    /// Resumes the reads that have waited for a write, before any other work.
    pub(super) fn resume_all(
        &mut self,
        session: SessionId,
        waiting: Vec<HeldRead>,
        written: Option<Arc<Change>>,
        refusal: Option<Reply>,
    ) {
        if waiting.is_empty() {
            return;
        }
        let is_own = waiting.iter().all(|held| held.session().is_none_or(|of| of == session));
        let (session, waiting) = (is_own.then_some(session), waiting.into_iter());
        self.slices.push_front(Work::Resumed { session, waiting, written, refusal });
    }

    /// The write that held this back is resolved. The read is done at this place of the log, after that write and
    /// before all later requests of the session, so that a pipelining client sees its operations in order. A read of
    /// several keys is given back, to be done in slices at this place.
    pub(super) fn resume(
        &mut self,
        now: Millis,
        waiting: HeldRead,
        written: Option<&Change>,
        effects: &mut Vec<Effect>,
    ) -> Option<Work> {
        if let HeldRead::Line { update } = waiting {
            self.line_resumed(update, written.is_some(), effects);
            return None;
        }
        if let HeldRead::Walk { walk } = waiting {
            self.lines.walks.resumed(walk);
            return None;
        }
        self.reads.waiting -= 1;
        match waiting {
            HeldRead::Line { .. } | HeldRead::Walk { .. } => {}
            HeldRead::Scan(scan) => self.scan_on(scan, effects),
            HeldRead::Get { asker, deadline, key } => {
                let to = Destination::Asker(asker);
                self.resume_read(now, (to, true), deadline, key, written, effects);
            }
            HeldRead::GetMany { asker, deadline, keys } => {
                return Some(self.gather(asker, deadline, keys));
            }
            HeldRead::Exists { asker, deadline, keys } => {
                return Some(Work::Count(ExistCount::of(asker, deadline, keys)));
            }
            HeldRead::Count(count) => return Some(Work::Count(count)),
            HeldRead::Expired { to, deadline, key } => match written {
                // So it was when that was written.
                Some(change) if change.deleted().contains(&key) => {
                    self.answer(to, Reply::NotFound, effects);
                }
                written => self.resume_read(now, (to, false), deadline, key, written, effects),
            },
            HeldRead::TimeToLive { asker, deadline, key, form } => {
                self.tell_time(asker, deadline, (key, form), effects);
            }
            HeldRead::KeyCount { asker } => self.count_keys(asker, effects),
            HeldRead::Watch { asker, keys } => self.tell_versions(asker, &keys, effects),
            HeldRead::ValueLength { asker, deadline, key } => self.measure(asker, deadline, key, effects),
        }
        None
    }

    /// Reads a key behind a write, which is of the same session or not.
    fn resume_read(
        &mut self,
        now: Millis,
        (to, is_own): (Destination, bool),
        deadline: Millis,
        key: Bytes,
        written: Option<&Change>,
        effects: &mut Vec<Effect>,
    ) {
        let value = written.and_then(|change| value_in(change, &key));
        // Its time may have come meanwhile.
        let is_expired = self.directory.get(&key).is_some_and(|entry| self.is_expired(&entry));
        // What a session has written it may read, if later writes of its own keep it from waiting for more.
        let may_read = || {
            let asker = self.asker_of(to).filter(|_| is_own);
            asker.is_some_and(|asker| self.last_unwritten_of_any(asker, std::slice::from_ref(&key)).is_some())
        };
        // The parts of a read of many keys are counted where it begins.
        let is_single = matches!(to, Destination::Asker(_));
        match value.filter(|_| is_single && (!is_expired || may_read())) {
            Some(value) => self.answer(to, Reply::Value(value), effects),
            None => self.start_read(now, to, deadline, key, effects),
        }
    }

    /// The write that held this back has not done what it waits for.
    pub(super) fn give_up(&mut self, waiting: HeldRead, reply: Reply, effects: &mut Vec<Effect>) {
        if let HeldRead::Line { update } = waiting {
            self.line_given_up(update, reply, effects);
            return;
        }
        if let HeldRead::Walk { walk } = waiting {
            self.walk_given_up(walk, reply, effects);
            return;
        }
        self.reads.waiting -= 1;
        match waiting {
            HeldRead::Line { .. } | HeldRead::Walk { .. } => {}
            HeldRead::Expired { to, .. } => self.answer(to, reply, effects),
            HeldRead::Get { asker: to, .. }
            | HeldRead::GetMany { asker: to, .. }
            | HeldRead::Exists { asker: to, .. }
            | HeldRead::Count(ExistCount { asker: to, .. })
            | HeldRead::Scan(KeyScan { asker: to, .. })
            | HeldRead::KeyCount { asker: to }
            | HeldRead::Watch { asker: to, .. }
            | HeldRead::TimeToLive { asker: to, .. }
            | HeldRead::ValueLength { asker: to, .. } => effects.push(Effect::Reply { to, reply }),
        }
    }
}

impl HeldRead {
    /// The session that has asked, if its later requests may not be answered before.
    fn session(&self) -> Option<SessionId> {
        match self {
            // A line has its own order, and the parts of a read of many keys are answered together.
            HeldRead::Line { .. }
            | HeldRead::Walk { .. }
            | HeldRead::Expired {
                to:
                    Destination::Part(..)
                    | Destination::Update(_)
                    | Destination::Wanted(..)
                    | Destination::Repair { .. },
                ..
            } => None,
            HeldRead::Expired { to: Destination::Asker(asker), .. }
            | HeldRead::Get { asker, .. }
            | HeldRead::GetMany { asker, .. }
            | HeldRead::Exists { asker, .. }
            | HeldRead::Count(ExistCount { asker, .. })
            | HeldRead::Scan(KeyScan { asker, .. })
            | HeldRead::KeyCount { asker }
            | HeldRead::Watch { asker, .. }
            | HeldRead::TimeToLive { asker, .. }
            | HeldRead::ValueLength { asker, .. } => Some(asker.session),
        }
    }
}

/// The value that `change` gives to `key`, if that is found at once: many reads may wait for one write of many keys.
fn value_in(change: &Change, key: &Bytes) -> Option<Bytes> {
    let pairs = Some(change.pairs()).filter(|pairs| pairs.len() <= PAIRS_SEARCHED_MAX)?;
    pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone())
}
