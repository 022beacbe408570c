//! The limits at the door. Whatever is admitted holds a permit, and dropping the permit frees its place. So the place is
//! freed in every case: by an answer, a refusal, the end of a connection, a panic of its task, a stop of the master.
//!
//! Owns the counts and bytes of what is admitted. Never waits: what exceeds a limit is refused at once.

use super::counters::{count, LimitCounters};
use crate::config::MasterConfig;
use crate::reading::READ_BYTES;
use crate::timings::{Began, Timings};
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::resp::Limits;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::sync::Notify;

/// Admits connections and requests up to the limits of the configuration.
#[derive(Debug)]
pub(crate) struct Gate {
    connections_max: usize,
    requests_max: usize,
    request_bytes_max: usize,
    connections: Cell<usize>,
    requests: Cell<usize>,
    request_bytes: Cell<usize>,
    /// Bytes of clients' long requests that have not arrived whole yet: `--max-request-bytes`.
    pub(crate) unfinished_requests: Pool,
    /// The same of those who have not said yet who they are: no more than a part of that, and beside it.
    pub(crate) unfinished_of_strangers: Pool,
    /// Bytes of long frames of slaves and masters that have not arrived whole yet: `--max-link-bytes`.
    pub(crate) unfinished_frames: Pool,
    /// The same of handshakes: no more than a part of that, and beside it.
    pub(crate) unfinished_handshakes: Pool,
    /// Connections that have not said yet who they are, the oldest first: those that are to say something, and those that
    /// have said a password and wait for the answer.
    strangers: RefCell<[BTreeMap<u64, Rc<ConnectionPlace>>; 2]>,
    last_stranger: Cell<u64>,
    /// Connections whose places are taken back and who have not left yet.
    leaving: Cell<usize>,
    pub(crate) counters: LimitCounters,
    /// Where it is counted how long requests take.
    timings: Rc<Timings>,
}

/// All who have not said who they are have at most this part of what there is: one in so many.
const STRANGERS_PART: usize = 4;

impl Gate {
    pub(crate) fn new(config: &MasterConfig, timings: &Rc<Timings>) -> Rc<Self> {
        let request_bytes_max = config.max_request_bytes.as_u64() as usize;
        let link_bytes_max = config.max_link_bytes.as_u64() as usize;
        Rc::new(Gate {
            connections_max: config.max_connections,
            requests_max: config.max_requests,
            request_bytes_max,
            connections: Cell::new(0),
            requests: Cell::new(0),
            request_bytes: Cell::new(0),
            unfinished_requests: Pool::new(request_bytes_max),
            unfinished_of_strangers: Pool::new(request_bytes_max / STRANGERS_PART),
            unfinished_frames: Pool::new(link_bytes_max),
            unfinished_handshakes: Pool::new(link_bytes_max / STRANGERS_PART),
            strangers: RefCell::default(),
            last_stranger: Cell::new(0),
            leaving: Cell::new(0),
            counters: LimitCounters::default(),
            timings: Rc::clone(timings),
        })
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> usize {
        self.connections.get()
    }

    /// Requests in flight, of all connections.
    pub(crate) fn requests(&self) -> usize {
        self.requests.get()
    }

    /// Bytes of keys and values of the requests in flight.
    pub(crate) fn request_bytes(&self) -> usize {
        self.request_bytes.get()
    }

    /// Connections that have not said yet who they are.
    pub(crate) fn strangers(&self) -> usize {
        self.strangers.borrow().iter().map(BTreeMap::len).sum()
    }

    /// Those of them who wait for the answer to a password.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.strangers.borrow()[Stranger::Waiting as usize].len()
    }

    /// Admits a connection, which is a stranger's or not; `None` when the limit is reached. Those who have not said who they are
    /// make room: for one of theirs when they have their part, and for anybody when all places are taken. The oldest of them
    /// goes, who has had the most time.
    pub(super) fn connect(self: &Rc<Self>, is_stranger: bool) -> Option<ConnectionPermit> {
        count(&self.counters.connections_total);
        let strangers_max = (self.connections_max / STRANGERS_PART).max(1);
        if self.is_full() || (is_stranger && self.strangers() >= strangers_max) {
            self.cut_oldest_stranger();
        }
        if self.is_full() {
            count(&self.counters.connections_refused);
            return None;
        }
        self.connections.set(self.connections.get() + 1);
        let permit = ConnectionPermit { gate: Rc::clone(self), place: Rc::default() };
        permit.set_known(!is_stranger);
        Some(permit)
    }

    fn is_full(&self) -> bool {
        self.connections.get() - self.leaving.get() >= self.connections_max
    }

    /// Notes that whoever has this place has said who he is, or what he must still do for that.
    pub(super) fn note_stranger(&self, place: &Rc<ConnectionPlace>, stranger: Option<Stranger>) {
        if place.is_taken_back.get() || stranger == place.stranger.get().map(|(stranger, _)| stranger) {
            return;
        }
        let mut strangers = self.strangers.borrow_mut();
        if let Some((was, number)) = place.stranger.take() {
            strangers[was as usize].remove(&number);
        }
        if let Some(stranger) = stranger {
            let number = self.last_stranger.get() + 1;
            self.last_stranger.set(number);
            place.stranger.set(Some((stranger, number)));
            strangers[stranger as usize].insert(number, Rc::clone(place));
        }
    }

    /// It is one of the more numerous kind: neither silence nor guesses drive out who does the other.
    fn cut_oldest_stranger(&self) {
        let oldest = {
            let [silent, waiting] = &mut *self.strangers.borrow_mut();
            if waiting.len() > silent.len() { waiting } else { silent }.pop_first()
        };
        if let Some((_, place)) = oldest {
            count(&self.counters.strangers_cut);
            self.leaving.set(self.leaving.get() + 1);
            place.is_taken_back.set(true);
            place.taken_back.notify_one();
        }
    }

    /// Admits a request of `bytes` bytes; `None` when a limit on the requests in flight is reached.
    pub(crate) fn request(self: &Rc<Self>, bytes: usize) -> Option<RequestPermit> {
        let over = self.requests.get() >= self.requests_max
            || self.request_bytes.get() + bytes > self.request_bytes_max;
        if over {
            count(&self.counters.busy);
            return None;
        }
        Some(self.request_always(bytes))
    }

    /// The most sessions that other masters may forward for, in all: with our own clients', as many as two masters have.
    pub(crate) fn forwarded_sessions_max(&self) -> usize {
        self.connections_max.saturating_mul(2)
    }

    /// The same for a request that the other master forwards. That master has counted it against the same limits, so
    /// that together with our own clients' requests twice the limit may be in flight.
    pub(crate) fn forwarded_request(self: &Rc<Self>, bytes: usize) -> Option<RequestPermit> {
        let over = self.requests.get() >= self.requests_max.saturating_mul(2)
            || self.request_bytes.get() / 2 >= self.request_bytes_max;
        (!over).then(|| self.request_always(bytes))
    }

    /// Admits a request whatever the limits say.
    pub(super) fn request_always(self: &Rc<Self>, bytes: usize) -> RequestPermit {
        self.requests.set(self.requests.get() + 1);
        self.request_bytes.set(self.request_bytes.get() + bytes);
        RequestPermit { gate: Rc::clone(self), bytes, began: None }
    }
}

/// What somebody must still do who has not said who he is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// Go on with his handshake, or log in.
    Silent,
    /// Wait for the answer to a password, be it right or wrong.
    Waiting,
}

/// A connection's place, as its connection and the gate know it.
#[derive(Debug, Default)]
pub(super) struct ConnectionPlace {
    /// Its number among those who have not said who they are, if it has not.
    stranger: Cell<Option<(Stranger, u64)>>,
    is_taken_back: Cell<bool>,
    taken_back: Notify,
}

/// A connection's place among `--max-connections`.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    gate: Rc<Gate>,
    place: Rc<ConnectionPlace>,
}

impl ConnectionPermit {
    /// What it is a permit for.
    pub(super) fn place(&self) -> &Rc<ConnectionPlace> {
        &self.place
    }

    /// Notes whether the other side has said who it is, where it must.
    pub(super) fn set_known(&self, is_known: bool) {
        self.gate.note_stranger(&self.place, (!is_known).then_some(Stranger::Silent));
    }

    /// Notes that the other side waits for the answer to a password, which tells neither it nor others whether that is right.
    pub(super) fn wait_for_answer(&self) {
        if self.place.stranger.get().is_some() {
            self.gate.note_stranger(&self.place, Some(Stranger::Waiting));
        }
    }

    /// Waits until the place is needed for somebody else.
    pub(super) async fn taken_back(&self) {
        self.place.taken_back.notified().await;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.set_known(true);
        let Gate { connections, leaving, .. } = &*self.gate;
        connections.set(connections.get() - 1);
        if self.place.is_taken_back.get() {
            leaving.set(leaving.get() - 1);
        }
    }
}

/// A request's place among `--max-requests` and `--max-request-bytes`.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    gate: Rc<Gate>,
    bytes: usize,
    /// If it is measured: what it is and when it came.
    began: Option<Began>,
}

impl RequestPermit {
    /// The same, and measures how long it takes until the permit is returned.
    pub(super) fn measuring(mut self, command: &Command) -> Self {
        self.began = Some(self.gate.timings.begin(command));
        self
    }

    /// Bytes of the request's keys and values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let Gate { requests, request_bytes, timings, .. } = &*self.gate;
        if let Some(began) = self.began {
            timings.end(began);
        }
        requests.set(requests.get() - 1);
        request_bytes.set(request_bytes.get() - self.bytes);
    }
}

/// Bytes of unfinished requests or frames in the buffers of all connections.
#[derive(Debug)]
pub(crate) struct Pool {
    bytes_max: usize,
    bytes: Cell<usize>,
    cut: Cell<u64>,
}

impl Pool {
    fn new(bytes_max: usize) -> Self {
        Pool { bytes_max, bytes: Cell::new(0), cut: Cell::new(0) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Connections that were cut because the pool was full.
    pub(crate) fn cut(&self) -> u64 {
        self.cut.get()
    }

    /// The share of one connection, empty at first.
    pub(crate) fn part(&self) -> Unfinished<'_> {
        Unfinished { pool: self, held: Cell::new(0) }
    }
}

/// One connection's share of a [`Pool`]; its drop gives it back.
pub(crate) struct Unfinished<'a> {
    pool: &'a Pool,
    held: Cell<usize>,
}

impl Unfinished<'_> {
    /// Notes how many bytes the connection's buffer holds, and tells whether it may go on. A short request always may,
    /// so that clients with ordinary requests do not suffer from others with endless ones. A connection that is the
    /// only one in the pool always may, too.
    pub(crate) fn hold(&self, bytes: usize) -> bool {
        self.hold_all(if bytes > READ_BYTES { bytes } else { 0 })
    }

    /// The same before the handshake is done: then every byte counts.
    pub(crate) fn hold_all(&self, bytes: usize) -> bool {
        let others = self.pool.bytes.get() - self.held.replace(bytes);
        self.pool.bytes.set(others + bytes);
        let may = bytes == 0 || others == 0 || others + bytes <= self.pool.bytes_max;
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

/// Why a request exceeds a limit on sizes; `None` when it does not.
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
    let excess = match command {
        Command::Transact { transaction } => transaction.excess(value_max),
        command => command.script_excess(),
    };
    if let Some(excess) = excess {
        return Some(Reply::error(ErrorWord::Bad, excess));
    }
    let why = match (key, value, empty) {
        (true, _, _) => format!("a key is longer than {key_max} bytes"),
        (_, true, _) => format!("a value is longer than {value_max} bytes"),
        (_, _, true) => "the request names no key".to_owned(),
        (false, false, false) if too_long => format!("the request is longer than {request_max} bytes"),
        (false, false, false) => return None,
    };
    Some(Reply::error(ErrorWord::Bad, why))
}
