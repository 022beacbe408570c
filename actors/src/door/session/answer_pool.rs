//! What the answers of all connections take in memory, and who waits for room there.

use crate::batch::Meter;
use std::cell::Cell;
use std::rc::Rc;

/// So many bytes of answers each connection may have on their way and waiting, whatever all others have: who asks for
/// short things does not suffer from those who ask for long ones and do not listen.
pub(crate) const ANSWER_BYTES_FREE: usize = 16 * 1024;

/// What the answers of all connections take in memory: `--max-answer-bytes`.
#[derive(Debug)]
pub(crate) struct AnswerPool {
    pub(super) bytes_max: usize,
    /// Bytes of values that are on their way from slaves, and of answers that wait for an earlier one or for a socket.
    pub(super) bytes: Meter,
    /// Bytes of what connections say by themselves and must hold back, for an earlier request is not answered.
    pub(super) said: Cell<usize>,
    /// Sessions with a request that waits for room in here.
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

    /// Bytes that are taken.
    pub(crate) fn len(&self) -> usize {
        self.bytes.get() + self.said.get()
    }

    /// Whether an answer of `bytes` may be under way as well. One alone always may.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes.get() == 0 || self.bytes.get() + bytes <= self.bytes_max
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.bytes_max
    }

    /// Sessions with a request that waits for room in here.
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
