//! Counters of events at the door, for INFO.

use dsm_protocol::command::{ErrorWord, Reply};
use std::cell::Cell;

/// How often each limit took effect, for INFO.
#[derive(Debug, Default)]
pub(crate) struct LimitCounters {
    pub(crate) connections_total: Cell<u64>,
    pub(crate) connections_refused: Cell<u64>,
    /// Requests of clients over connections.
    pub(crate) commands: Cell<u64>,
    /// Requests that were refused because too much was in flight; all BUSY answers are among the [`ErrorCounters`].
    pub(crate) busy: Cell<u64>,
    /// How often reading from a connection paused because it had too much in flight.
    pub(crate) reads_paused: Cell<u64>,
    /// Requests that had to wait for earlier answers of their connection to leave.
    pub(crate) parked: Cell<u64>,
    pub(crate) slow_readers_cut: Cell<u64>,
    pub(crate) handshakes_timed_out: Cell<u64>,
    pub(crate) protocol_errors: Cell<u64>,
    pub(crate) proofs_refused: Cell<u64>,
    pub(crate) idle_closed: Cell<u64>,
    pub(crate) accept_errors: Cell<u64>,
    /// Connections from elsewhere that protected mode has refused.
    pub(crate) denied: Cell<u64>,
    /// Connections that had not said who they are when others needed their places.
    pub(crate) strangers_cut: Cell<u64>,
}

pub(crate) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// How often each word of an error was answered, for INFO.
#[derive(Debug, Default)]
pub(crate) struct ErrorCounters([Cell<u64>; ErrorWord::ALL.len()]);

impl ErrorCounters {
    /// Counts the answer under its word, if it is an error.
    pub(crate) fn note(&self, reply: &Reply) {
        if let Reply::Error(error) = reply {
            count(&self.0[error.word as usize]);
        }
    }

    /// Notes an answer in RESP.
    pub(super) fn note_encoded(&self, answer: &[u8]) {
        let Some(error) = answer.strip_prefix(b"-") else { return };
        let word = error.split(|byte| *byte == b' ').next().unwrap_or(error);
        if let Some(word) = ErrorWord::ALL.into_iter().find(|known| known.as_str().as_bytes() == word) {
            count(&self.0[word as usize]);
        }
    }

    /// How often `word` was answered.
    pub(crate) fn of(&self, word: ErrorWord) -> u64 {
        self.0[word as usize].get()
    }
}
