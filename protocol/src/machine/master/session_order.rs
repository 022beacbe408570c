//! The order of one session: what it asks for takes effect in the order in which it asks.
//!
//! Two rules make it so. A read waits for the writes of its own session to the same keys that are not written yet, and is
//! bound at their place in the log (`docs/ARCHITECTURE.md`, *How a write and a read go*). And whatever a session asks for
//! after a request that is done in slices waits in line with it (`slices.rs`). A session never waits for another one.
//!
//! In which order the answers are sent is the business of the session's own task.

use super::hash::hash_bytes;
use super::reads::Destination;
use super::work::{HeldRead, Work};
use super::{Asker, Change, Effect, Master, WriteId};
use crate::command::{Command, ErrorWord, Reply};
use crate::ids::{Millis, SessionId};
use bytes::Bytes;
use std::sync::Arc;

/// In a write of more keys than this none is searched for: who waited for it reads like anybody else.
const PAIRS_SEARCHED_MAX: usize = 16;

impl Master {
    /// Begins a request, unless it is one for slices or after such a one of its session.
    pub(super) fn ask_in_order(
        &mut self,
        now: Millis,
        asker: Asker,
        deadline: Millis,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        if self.slices.has_of(asker.session) || self.is_wide(&command) {
            self.slices.push_back(Work::Request { asker, deadline, command });
            self.work_on(now, effects);
        } else {
            self.begin(now, asker, deadline, command, effects);
        }
    }

    /// The last write of the same session that may change any of `keys`: of many keys, its last one of all.
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

    /// Lets the reads go on that have waited for a write, in front of whatever is to be done next.
    pub(super) fn resume_all(
        &mut self,
        session: SessionId,
        waiting: Vec<HeldRead>,
        written: Option<Arc<Change>>,
        may_read: bool,
    ) {
        if !waiting.is_empty() {
            let waiting = waiting.into_iter();
            self.slices.push_front(Work::Resumed { session, waiting, written, may_read });
        }
    }

    /// The write that held this back is resolved. What is read now is read at this place of the log, after that
    /// write and in front of all that the session asked for later: whoever pipelines sees its operations in order. What
    /// concerns several keys is given back, to be done in slices at this very place.
    pub(super) fn resume(
        &mut self,
        now: Millis,
        waiting: HeldRead,
        written: Option<&Change>,
        effects: &mut Vec<Effect>,
    ) -> Option<Work> {
        self.reads.waiting -= 1;
        match waiting {
            HeldRead::Get { asker, deadline, key } => {
                let to = Destination::Asker(asker);
                match written.and_then(|change| value_in(change, &key)) {
                    Some(value) => self.answer(to, Reply::Value(value), effects),
                    None => self.start_read(now, to, deadline, key, effects),
                }
            }
            HeldRead::GetMany { asker, deadline, keys } => return Some(self.gather(asker, deadline, keys)),
            HeldRead::Exists { asker, keys } => {
                return Some(Work::Count { asker, keys: keys.into_iter(), existing: 0 });
            }
            HeldRead::KeyCount { asker } => self.count_keys(asker, effects),
        }
        None
    }

    /// What became of the write that held this back nobody knows.
    pub(super) fn give_up(&mut self, waiting: &HeldRead, effects: &mut Vec<Effect>) {
        self.reads.waiting -= 1;
        let (HeldRead::Get { asker: to, .. }
        | HeldRead::GetMany { asker: to, .. }
        | HeldRead::Exists { asker: to, .. }
        | HeldRead::KeyCount { asker: to }) = *waiting;
        let reply = Reply::error(ErrorWord::Busy, "what became of the write in front of this is unknown");
        effects.push(Effect::Reply { to, reply });
    }
}

/// The value that `change` gives to `key`, if that is found at once: many reads may wait for one write of many keys.
fn value_in(change: &Change, key: &Bytes) -> Option<Bytes> {
    match change {
        Change::Put(pairs) if pairs.len() > PAIRS_SEARCHED_MAX => None,
        Change::Put(pairs) => pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone()),
        Change::Delete(_) => None,
    }
}
