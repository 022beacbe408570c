//! The limits at the door, and what is counted of them.

use super::switchboard::Switchboard;
use super::Context;
use crate::reading::READ_BYTES;
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::resp::Limits;
use std::cell::Cell;
use std::rc::Rc;

/// Counters of what the limits did, for INFO.
#[derive(Debug, Default)]
pub(crate) struct LimitCounters {
    pub(crate) connections: Cell<usize>,
    pub(crate) connections_total: Cell<u64>,
    pub(crate) connections_refused: Cell<u64>,
    /// Requests that were refused because too much was in flight; all BUSY answers are among the [`ErrorCounters`].
    pub(crate) busy: Cell<u64>,
    /// How often a connection was not read any further because of what it had in flight.
    pub(crate) reads_paused: Cell<u64>,
    /// Requests that had to wait for earlier answers of their connection to leave.
    pub(crate) parked: Cell<u64>,
    pub(crate) slow_readers_cut: Cell<u64>,
    pub(crate) handshakes_timed_out: Cell<u64>,
    pub(crate) protocol_errors: Cell<u64>,
    pub(crate) idle_closed: Cell<u64>,
    pub(crate) accept_errors: Cell<u64>,
}

pub(crate) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// How often each word of an error was answered, for INFO.
#[derive(Debug, Default)]
pub(crate) struct ErrorCounters([Cell<u64>; ErrorWord::ALL.len()]);

impl ErrorCounters {
    /// Notes an answer.
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

/// Bytes that wait in the buffers of many connections for the rest of what they belong to.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) bytes: Cell<usize>,
    /// Connections that were cut because their bytes were too many.
    pub(crate) cut: Cell<u64>,
}

/// Gives a connection's place back, also when its task panics.
pub(crate) struct Counted(pub(super) Rc<Switchboard>);

impl Drop for Counted {
    fn drop(&mut self) {
        let connections = &self.0.limits.connections;
        connections.set(connections.get() - 1);
    }
}

/// One connection's part of a [`Pool`], given back when it ends.
pub(crate) struct Unfinished<'a> {
    pool: &'a Pool,
    bytes_max: usize,
    held: Cell<usize>,
}

impl<'a> Unfinished<'a> {
    /// A client's part: `--max-request-bytes`.
    pub(super) fn request(context: &'a Context) -> Self {
        let bytes_max = context.config.max_request_bytes.as_u64() as usize;
        Unfinished { pool: &context.switchboard.unfinished_requests, bytes_max, held: Cell::new(0) }
    }

    /// The part of a handshake, or of a slave's or a master's link: `--max-link-bytes`.
    pub(crate) fn frame(context: &'a Context) -> Self {
        let bytes_max = context.config.max_link_bytes.as_u64() as usize;
        Unfinished { pool: &context.switchboard.unfinished_frames, bytes_max, held: Cell::new(0) }
    }

    /// Notes how many bytes wait in the connection's buffer; whether they may. Short ones always may: who sends
    /// ordinary requests does not suffer from others' endless ones. So may those of one connection alone.
    pub(crate) fn hold(&self, bytes: usize) -> bool {
        self.hold_all(if bytes > READ_BYTES { bytes } else { 0 })
    }

    /// The same for somebody whom nobody knows yet: each of its bytes counts.
    pub(crate) fn hold_all(&self, bytes: usize) -> bool {
        let others = self.pool.bytes.get() - self.held.replace(bytes);
        self.pool.bytes.set(others + bytes);
        let may = bytes == 0 || others == 0 || others + bytes <= self.bytes_max;
        if !may {
            count(&self.pool.cut);
        }
        may
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.pool.bytes.set(self.pool.bytes.get() - self.held.get());
    }
}

/// Why a request is out of bounds, if it is.
pub(crate) fn check_sizes(command: &Command, value_max: usize) -> Option<Reply> {
    let key_max = dsm_protocol::command::KEY_MAX;
    if command.keys() > dsm_protocol::command::KEYS_MAX {
        let why = format!("the request names more than {} keys", dsm_protocol::command::KEYS_MAX);
        return Some(Reply::error(ErrorWord::Bad, why));
    }
    let operands = command.operands();
    let (key, value) = (operands.longest_key() > key_max, operands.longest_value() > value_max);
    let empty = operands.lacks_keys();
    let request_max = Limits::for_values(value_max).request_bytes_max;
    let too_long = command.payload_bytes() > request_max.max(value_max + key_max);
    let why = match (key, value, empty) {
        (true, _, _) => format!("a key is longer than {key_max} bytes"),
        (_, true, _) => format!("a value is longer than {value_max} bytes"),
        (_, _, true) => "the request names no key".to_owned(),
        (false, false, false) if too_long => format!("the request is longer than {request_max} bytes"),
        (false, false, false) => return None,
    };
    Some(Reply::error(ErrorWord::Bad, why))
}
