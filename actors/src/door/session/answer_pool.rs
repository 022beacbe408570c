//! The memory of the answers of all connections, and how many sessions wait for room in it.

use crate::batch::Meter;
use std::cell::Cell;
use std::rc::Rc;

/// How many bytes of answers each connection may have under way and waiting, whatever the others have. So clients with
/// short answers do not suffer from those that ask for long ones and do not read them.
pub(crate) const ANSWER_BYTES_FREE: usize = 16 * 1024;

/// The memory of the answers of all connections: `--max-answer-bytes`.
#[derive(Debug)]
pub(crate) struct AnswerPool {
    pub(super) bytes_max: usize,
    /// Bytes of values that slaves are sending, and of answers that wait for an earlier answer or for a socket.
    pub(super) bytes: Meter,
    /// Bytes of answers that connections give by themselves and hold back because an earlier request is not answered.
    pub(super) said: Cell<usize>,
    /// Sessions with a request that waits for room in the pool.
    pub(super) waiting: Cell<usize>,
}

impl AnswerPool {
    pub(crate) fn new(bytes_max: usize) -> Self {
        AnswerPool { bytes_max, bytes: Meter::default(), said: Cell::new(0), waiting: Cell::new(0) }
    }

    /// Counts the bytes of outboxes.
    pub(crate) fn meter(&self) -> Meter {
        Rc::clone(&self.bytes)
    }

    /// Bytes in use.
    pub(crate) fn len(&self) -> usize {
        self.bytes.get() + self.said.get()
    }

    /// Whether there is room for an answer of `bytes`. A single answer always has room.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes.get() == 0 || self.bytes.get() + bytes <= self.bytes_max
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.bytes_max
    }

    /// Sessions with a request that waits for room in the pool.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.get()
    }
}

/// Whether a request may be executed whose answer is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// Earlier answers of the connection must leave first.
    NotHere,
    /// Answers of others must leave first.
    NotInAll,
}
