//! What a connection has queued since `MULTI`, and what it watches.
//!
//! Owns the queue and its limits. The store is asked for all of it at once, with `EXEC`; until then it knows of nothing.

use super::encode::{error, error_parts, status, AnswerPart, Shape};
use super::{Args, Limits};
use crate::command::{
    transaction_bytes_max, Command, Own, Reply, Transaction, CHECKED_KEYS_MAX, QUEUED_BYTES,
    TRANSACTION_COMMANDS_MAX, TRANSACTION_KEYS_MAX,
};
use crate::ids::Version;
use bytes::Bytes;

pub(super) const NOT_ALLOWED: &str = "ERR Command not allowed inside a transaction";
const DISCARDED: &str = "EXECABORT Transaction discarded because of previous errors.";
const OTHER_USERS: &str = "EXECABORT Transaction discarded because the users have changed.";

/// A transaction that is being queued, and the keys that are watched.
#[derive(Clone, Debug, Default)]
pub(super) struct CommandQueue {
    open: Option<OpenQueue>,
    /// With the versions that they had.
    watched: Vec<(Bytes, Option<Version>)>,
    watched_bytes: usize,
    /// Of which keys the versions are asked.
    asked: Vec<Bytes>,
    /// Whether keys are to be watched whose versions could not be had.
    is_blind: bool,
}

/// What is queued.
#[derive(Clone, Debug, Default)]
struct OpenQueue {
    parts: Vec<QueuedPart>,
    commands: Vec<Command>,
    keys: usize,
    bytes: usize,
    /// Whether something was refused, so that nothing will be executed.
    is_refused: bool,
    /// The users by which its commands were judged.
    generation: u64,
}

/// How one command is answered.
#[derive(Clone, Debug)]
pub(super) enum QueuedPart {
    /// By the store.
    Asked(Shape),
    /// By the connection, when it is executed.
    Own(Own, &'static str, Args),
    /// With this: it is malformed.
    Said(Vec<u8>),
}

/// A transaction as it is executed.
pub(super) struct Executed {
    pub(super) parts: Vec<QueuedPart>,
    pub(super) transaction: Transaction,
}

impl CommandQueue {
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// How many commands are queued; `None` if there is no transaction.
    pub(super) fn len(&self) -> Option<usize> {
        self.open.as_ref().map(|open| open.parts.len())
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.watched_bytes + self.open.as_ref().map_or(0, |open| open.bytes)
    }

    /// `MULTI`, with users of that generation.
    pub(super) fn begin(&mut self, generation: u64, out: &mut Vec<u8>) {
        if self.is_open() {
            error(out, "ERR MULTI calls can not be nested");
        } else {
            self.open = Some(OpenQueue { generation, ..OpenQueue::default() });
            status(out, "OK");
        }
    }

    /// Something was refused: if a transaction is open, it will not be executed.
    pub(super) fn refuse(&mut self) {
        if let Some(open) = &mut self.open {
            open.is_refused = true;
            // None of it will be needed.
            (open.parts, open.commands, open.bytes) = (Vec::new(), Vec::new(), 0);
        }
    }

    /// Queues a part of so many bytes, with what is asked of the store for it.
    pub(super) fn push(
        &mut self,
        part: QueuedPart,
        (command, bytes): (Option<Command>, usize),
        limits: &Limits,
        out: &mut Vec<u8>,
    ) {
        let Some(open) = &mut self.open else { return };
        if open.is_refused {
            status(out, "QUEUED");
            return;
        }
        open.keys += command.as_ref().map_or(0, Command::keys);
        open.bytes += bytes + QUEUED_BYTES;
        let max = limits.request_bytes_max.min(transaction_bytes_max(limits.value_max));
        let excess = if open.parts.len() == TRANSACTION_COMMANDS_MAX {
            Some(format!("ERR too many commands in a transaction: the limit is {TRANSACTION_COMMANDS_MAX}"))
        } else if open.keys + self.watched.len() > TRANSACTION_KEYS_MAX {
            Some(format!("ERR too many keys in a transaction: the limit is {TRANSACTION_KEYS_MAX}"))
        } else if open.bytes > max {
            Some(format!("ERR the transaction is too long: the limit is {max} bytes"))
        } else {
            None
        };
        if let Some(excess) = excess {
            self.refuse();
            error(out, &excess);
            return;
        }
        open.parts.push(part);
        open.commands.extend(command);
        status(out, "QUEUED");
    }

    /// `EXEC`, with users of that generation; `None` if nothing is executed, and why is in `out`.
    pub(super) fn execute(&mut self, generation: u64, out: &mut Vec<u8>) -> Option<Executed> {
        let Some(open) = self.open.take() else {
            error(out, "ERR EXEC without MULTI");
            return None;
        };
        let is_refused = open.is_refused || self.is_blind;
        let watched = std::mem::take(&mut self.watched);
        self.forget();
        if is_refused {
            error(out, DISCARDED);
            None
        } else if open.generation != generation {
            error(out, OTHER_USERS);
            None
        } else {
            let transaction = Transaction { watched, commands: open.commands };
            Some(Executed { parts: open.parts, transaction })
        }
    }

    /// `DISCARD`.
    pub(super) fn discard(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            self.forget();
            status(out, "OK");
        } else {
            error(out, "ERR DISCARD without MULTI");
        }
    }

    /// Forgets all keys that are watched.
    pub(super) fn forget(&mut self) {
        (self.watched, self.watched_bytes, self.is_blind) = (Vec::new(), 0, false);
    }

    /// A `WATCH` was refused: its client may not notice, and go on.
    pub(super) fn blind(&mut self) {
        self.is_blind = true;
    }

    /// Nothing of the transaction is executed, because `EXEC` itself was refused with that error.
    pub(super) fn abort(&mut self, refusal: &[u8], out: &mut Vec<u8>) {
        self.open = None;
        self.forget();
        error_parts(out, &[b"EXECABORT Transaction discarded because of: ", refusal]);
    }

    /// `WATCH`: what is asked of the store; `None` if it is refused.
    pub(super) fn watch(&mut self, keys: Vec<Bytes>, out: &mut Vec<u8>) -> Option<Command> {
        if self.is_open() {
            error(out, "ERR WATCH inside MULTI is not allowed");
            None
        } else if self.watched.len() + keys.len() > CHECKED_KEYS_MAX {
            self.blind();
            error(out, &format!("ERR too many watched keys: the limit is {CHECKED_KEYS_MAX}"));
            None
        } else {
            self.asked.clone_from(&keys);
            Some(Command::Watch { keys })
        }
    }

    /// What the store has answered to that.
    pub(super) fn watched(&mut self, reply: &Reply) {
        let asked = std::mem::take(&mut self.asked);
        match reply {
            Reply::Versions(versions) if versions.len() == asked.len() => {
                self.watched_bytes += asked.iter().map(|key| key.len() + QUEUED_BYTES).sum::<usize>();
                // So that a short key does not keep a long request in memory.
                let asked = asked.iter().map(|key| Bytes::copy_from_slice(key));
                self.watched.extend(asked.zip(versions.iter().copied()));
            }
            Reply::Versions(_)
            | Reply::Done
            | Reply::Value(_)
            | Reply::NotFound
            | Reply::Values(_)
            | Reply::Count(_)
            | Reply::Text(_)
            | Reply::Error(_)
            | Reply::Integer(_)
            | Reply::Page { .. }
            | Reply::Encoded(_)
            | Reply::Many(_) => self.is_blind = true,
        }
    }
}

/// Whether the connection may answer this within a transaction: shortly, and without becoming another one.
pub(super) fn is_queueable(own: Own) -> bool {
    matches!(
        own,
        Own::Ping
            | Own::Echo
            | Own::Unwatch
            | Own::OfCluster
            | Own::ClientGetName
            | Own::ClientId
            | Own::ClientNoEvict
            | Own::ClientNoTouch
            | Own::AclWhoAmI
    )
}

impl Executed {
    /// Answers what the connection answers, by `answer`.
    pub(super) fn parts(
        parts: Vec<QueuedPart>,
        mut answer: impl FnMut(Own, &'static str, &[Bytes], &mut Vec<u8>),
    ) -> Vec<AnswerPart> {
        let answered = parts.into_iter().map(|part| match part {
            QueuedPart::Asked(shape) => AnswerPart::Asked(shape),
            QueuedPart::Said(said) => AnswerPart::Said(said),
            QueuedPart::Own(own, name, args) => {
                let mut said = Vec::new();
                answer(own, name, &args[1..], &mut said);
                AnswerPart::Said(said)
            }
        });
        answered.collect()
    }
}
