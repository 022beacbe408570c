//! The simulated network: listeners, connections, delays, cuts.
//!
//! A connection is two pipes. Bytes stay in a pipe until their delivery time. While the way is cut they are held, and
//! resume after the heal as retransmissions do. A connect into a cut hangs. A closed end is reported after its bytes
//! (FIN), or before them if it left something unread (RST); a machine without power reports nothing.

use super::{sleep, Moment, Process, World};
use bytes::{Bytes, BytesMut};
use dsm_protocol::secret::Channel;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How much a pipe holds before its writer has to wait, in bytes.
const PIPE_BYTES_MAX: usize = 256 * 1024;

/// How long retransmission may take to notice that a way is free again.
const RETRANSMIT_MS: RangeInclusive<u64> = 0..=200;

/// The pauses between the attempts of a connect without an answer, the last one repeated.
const CONNECT_RETRIES_MS: [u64; 3] = [1000, 2000, 4000];

/// Bytes that are sent or received at one end of a connection. For the scenario's tap.
#[derive(Clone, Copy)]
pub struct Passing<'a> {
    /// The number of the connection; each new one has a higher one.
    pub connection: u64,
    /// Whether this is the end that dialed.
    pub is_dialer: bool,
    /// Whether the bytes are sent here; else they are received.
    pub is_sent: bool,
    /// The process at this end.
    pub process: &'a Process,
    /// The bytes that pass at once.
    pub bytes: &'a [u8],
}

/// How the network behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSettings {
    /// How long bytes take, in milliseconds.
    pub delay_ms: RangeInclusive<u64>,
    /// How long they take when they are late.
    pub late_ms: RangeInclusive<u64>,
    /// How often they are late, in thousandths.
    pub late_per_mille: u64,
    /// How often the bytes of one write arrive in two parts, in thousandths.
    pub split_per_mille: u64,
}

impl Default for NetSettings {
    fn default() -> Self {
        NetSettings { delay_ms: 0..=1, late_ms: 5..=50, late_per_mille: 2, split_per_mille: 20 }
    }
}

#[derive(Default)]
pub(super) struct Network {
    settings: RefCell<NetSettings>,
    cuts: RefCell<BTreeMap<(String, String), Cut>>,
    listeners: RefCell<BTreeMap<String, Weak<Listening>>>,
    connections: RefCell<Vec<Weak<Connection>>>,
    next: Cell<u64>,
}

/// A way that is cut.
#[derive(Default)]
struct Cut {
    /// The number of cuts: the way is free when all of them are healed.
    times: u32,
    /// Whether anything wanted to pass.
    has_held: bool,
}

impl Network {
    pub(super) fn set(&self, settings: NetSettings) {
        *self.settings.borrow_mut() = settings;
    }

    pub(super) fn cut(&self, from: &str, to: &str) {
        self.cuts.borrow_mut().entry((from.to_owned(), to.to_owned())).or_default().times += 1;
    }

    /// Whether the way is cut; `wants` tells that something is to pass now.
    fn is_cut(&self, from: &str, to: &str, wants: bool) -> bool {
        let mut cuts = self.cuts.borrow_mut();
        if cuts.is_empty() {
            return false;
        }
        let Some(cut) = cuts.get_mut(&(from.to_owned(), to.to_owned())) else { return false };
        cut.has_held |= wants;
        true
    }

    fn live(&self) -> Vec<Rc<Connection>> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| connection.strong_count() > 0);
        connections.iter().filter_map(Weak::upgrade).collect()
    }

    /// Closes everything that a dead process had open.
    pub(super) fn close_all(&self, world: &World, process: &Process, tell: bool) {
        self.listeners.borrow_mut().retain(|_, listening| {
            listening.upgrade().is_some_and(|listening| !listening.process.is(process))
        });
        for connection in self.live() {
            for side in Side::BOTH {
                if connection.end(side).process.is(process) {
                    connection.close(world, side, tell);
                }
            }
        }
    }
}

/// Lets everything pass again; held bytes arrive after a while.
pub(super) fn heal(world: &World) {
    let cuts = std::mem::take(&mut *world.0.network.cuts.borrow_mut());
    if !cuts.is_empty() {
        resume(world);
    }
}

/// Takes back one cut of a way, and returns whether it has held anything up.
pub(super) fn heal_way(world: &World, from: &str, to: &str) -> bool {
    let network = &world.0.network;
    let way = (from.to_owned(), to.to_owned());
    let mut cuts = network.cuts.borrow_mut();
    let Some(cut) = cuts.get_mut(&way) else { return false };
    let has_held = cut.has_held;
    cut.times -= 1;
    if cut.times == 0 {
        cuts.remove(&way);
        drop(cuts);
        resume(world);
    }
    has_held
}

/// Resumes what is held on ways that are free now.
fn resume(world: &World) {
    let network = &world.0.network;
    let now = Instant::now();
    for connection in network.live() {
        for side in Side::BOTH {
            if connection.is_cut_from(side, false) {
                continue;
            }
            let pipe = connection.pipe_from(side);
            let mut state = pipe.state.borrow_mut();
            if !std::mem::take(&mut state.is_held) {
                continue;
            }
            let again = now + Duration::from_millis(world.random_within(RETRANSMIT_MS));
            for chunk in &mut state.chunks {
                chunk.at = chunk.at.max(again);
            }
            state.last = state.last.max(Some(again));
            drop(state);
            pipe.readable.notify_one();
        }
    }
}

/// A machine is back: connections to its former processes are reset.
pub(super) fn reset_orphans(world: &World) {
    for connection in world.0.network.live() {
        for side in Side::BOTH {
            if connection.end(side).is_closed.get() {
                connection.pipe_from(side).writable.notify_one();
            }
        }
    }
}

fn delay(world: &World) -> Duration {
    let settings = world.0.network.settings.borrow().clone();
    let range = if world.chance(settings.late_per_mille) { settings.late_ms } else { settings.delay_ms };
    Duration::from_millis(world.random_within(range))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Near,
    Far,
}

impl Side {
    const BOTH: [Side; 2] = [Side::Near, Side::Far];

    fn other(self) -> Side {
        match self {
            Side::Near => Side::Far,
            Side::Far => Side::Near,
        }
    }
}

struct End {
    process: Process,
    is_closed: Cell<bool>,
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    state: RefCell<PipeState>,
    readable: Notify,
    writable: Notify,
}

#[derive(Default)]
struct PipeState {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    last: Option<Instant>,
    /// Something could not be delivered because of a cut.
    is_held: bool,
    /// When the reader is told that the connection is broken.
    broken: Option<Instant>,
    finished: bool,
}

struct Chunk {
    at: Instant,
    /// Empty: nothing follows.
    bytes: Bytes,
}

struct Connection {
    id: u64,
    world: World,
    near: End,
    far: End,
    /// The address that was dialed.
    dialed: String,
    /// From near to far.
    there: Pipe,
    back: Pipe,
}

impl Connection {
    fn end(&self, side: Side) -> &End {
        match side {
            Side::Near => &self.near,
            Side::Far => &self.far,
        }
    }

    fn pipe_from(&self, side: Side) -> &Pipe {
        match side {
            Side::Near => &self.there,
            Side::Far => &self.back,
        }
    }

    fn is_cut_from(&self, side: Side, wants: bool) -> bool {
        let (from, to) = (&self.end(side).process.0, &self.end(side.other()).process.0);
        self.world.0.network.is_cut(&from.host, &to.host, wants)
    }

    /// Puts a chunk on its way.
    fn push(&self, from: Side, bytes: Bytes) {
        let pipe = self.pipe_from(from);
        let due = Instant::now() + delay(&self.world);
        let mut state = pipe.state.borrow_mut();
        let at = state.last.map_or(due, |last| last.max(due));
        state.last = Some(at);
        state.bytes += bytes.len();
        state.chunks.push_back(Chunk { at, bytes });
        drop(state);
        pipe.readable.notify_one();
    }

    /// Breaks the pipe from `from`: its reader gets an error after a while, whatever is in the pipe.
    fn break_from(&self, from: Side) {
        let at = Instant::now() + delay(&self.world);
        let pipe = self.pipe_from(from);
        let mut state = pipe.state.borrow_mut();
        state.broken.get_or_insert(at);
        drop(state);
        pipe.readable.notify_one();
    }

    fn close(&self, world: &World, side: Side, tell: bool) {
        if self.end(side).is_closed.replace(true) {
            return;
        }
        world.fold(self.id << 4 | 1);
        let other = side.other();
        let unread = self.pipe_from(other).state.borrow().bytes > 0;
        if tell && !self.end(other).is_closed.get() {
            if unread {
                self.break_from(side);
            } else if !self.pipe_from(side).state.borrow().finished {
                self.finish(side);
            }
        }
        // A writer that waits for room notices that the reader is gone.
        self.pipe_from(other).writable.notify_one();
    }

    fn finish(&self, side: Side) {
        self.pipe_from(side).state.borrow_mut().finished = true;
        self.push(side, Bytes::new());
    }

    /// Reads what has arrived, or gives the time until which nothing will arrive.
    fn try_read(&self, side: Side, buffer: &mut BytesMut) -> Result<io::Result<usize>, Option<Instant>> {
        let from = side.other();
        let pipe = self.pipe_from(from);
        let now = Instant::now();
        let mut state = pipe.state.borrow_mut();
        let is_cut = self.is_cut_from(from, !state.chunks.is_empty());
        if is_cut {
            state.is_held = true;
            return Err(None);
        }
        if let Some(at) = state.broken {
            return if at <= now { Ok(Err(io::ErrorKind::ConnectionReset.into())) } else { Err(Some(at)) };
        }
        let mut read = 0;
        while let Some(chunk) = state.chunks.front_mut() {
            if chunk.at > now {
                return if read > 0 { Ok(Ok(read)) } else { Err(Some(chunk.at)) };
            }
            if chunk.bytes.is_empty() {
                // The end stays in the pipe: every further read finds it.
                return Ok(Ok(read));
            }
            let room = buffer.capacity() - buffer.len();
            let take = chunk.bytes.len().min(room);
            if take == 0 {
                break;
            }
            buffer.extend_from_slice(&chunk.bytes.split_to(take));
            let is_empty = chunk.bytes.is_empty();
            read += take;
            state.bytes -= take;
            if is_empty {
                state.chunks.pop_front();
            }
        }
        if read > 0 {
            pipe.writable.notify_one();
            Ok(Ok(read))
        } else {
            Err(None)
        }
    }
}

/// An end of a connection.
pub struct SimStream {
    connection: Rc<Connection>,
    side: Side,
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStream({}, {:?})", self.connection.id, self.side)
    }
}

impl SimStream {
    fn process(&self) -> &Process {
        &self.connection.end(self.side).process
    }

    fn tap(&self, is_sent: bool, bytes: &[u8]) {
        let world = &self.connection.world;
        if let Some(tap) = &mut *world.0.tap.borrow_mut() {
            let is_dialer = self.side == Side::Near;
            let connection = self.connection.id;
            tap(world, &Passing { connection, is_dialer, is_sent, process: self.process(), bytes });
        }
    }

    /// Reads what is there; see [`Stream::read`](super::Stream::read).
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        if buffer.capacity() == buffer.len() {
            buffer.reserve(4096);
        }
        let pipe = self.connection.pipe_from(self.side.other());
        loop {
            if !self.process().is_alive() {
                return std::future::pending().await;
            }
            match self.connection.try_read(self.side, buffer) {
                Ok(result) => {
                    let read = *result.as_ref().unwrap_or(&0);
                    self.tap(false, &buffer[buffer.len() - read..]);
                    let read = read as u64;
                    self.connection.world.fold(read << 16 | self.connection.id << 4 | 2);
                    self.connection.world.moment(self.process(), Moment::Received);
                    return result;
                }
                Err(None) => pipe.readable.notified().await,
                Err(Some(until)) => {
                    tokio::select! {
                        biased;
                        () = pipe.readable.notified() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    /// Writes all of `bytes`; see [`Stream::write_all`](super::Stream::write_all).
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let connection = &self.connection;
        let pipe = connection.pipe_from(self.side);
        let mut rest = Bytes::copy_from_slice(bytes);
        if self.process().is_alive() {
            self.tap(true, bytes);
        }
        while !rest.is_empty() {
            if !self.process().is_alive() {
                return std::future::pending().await;
            }
            let far = connection.end(self.side.other());
            let incoming = connection.pipe_from(self.side.other());
            let broken = incoming.state.borrow().broken;
            if broken.is_some_and(|at| at <= Instant::now()) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let room = PIPE_BYTES_MAX.saturating_sub(pipe.state.borrow().bytes);
            if far.is_closed.get() {
                if far.process.0.machine.is_on() {
                    // The other side no longer reads: bytes that are sent are answered by a reset.
                    if !connection.is_cut_from(self.side, true) {
                        connection.break_from(self.side.other());
                    }
                    return Ok(());
                }
                if room == 0 {
                    pipe.writable.notified().await;
                    continue;
                }
            } else if room == 0 {
                pipe.writable.notified().await;
                continue;
            }
            connection.world.moment(self.process(), Moment::Sent);
            if !self.process().is_alive() {
                return std::future::pending().await;
            }
            let mut take = rest.len().min(room);
            let settings = connection.world.0.network.settings.borrow().split_per_mille;
            if take > 1 && connection.world.chance(settings) {
                take = connection.world.random_within(1..=take as u64 - 1) as usize;
            }
            connection.world.fold((take as u64) << 16 | connection.id << 4 | 3);
            connection.push(self.side, rest.split_to(take));
        }
        Ok(())
    }

    /// What both ends know the connection by.
    pub(crate) fn channel(&self) -> Channel {
        Channel::named(&format!("sim:{}", self.connection.dialed))
    }

    /// Says that nothing more will be written.
    pub fn shut_down_write(&self) {
        let finished = self.connection.pipe_from(self.side).state.borrow().finished;
        if self.process().is_alive() && !finished {
            self.connection.finish(self.side);
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if self.process().is_alive() {
            self.connection.close(&self.connection.world, self.side, true);
        }
    }
}

struct Listening {
    address: String,
    process: Process,
    waiting: RefCell<VecDeque<Rc<Connection>>>,
    arrived: Notify,
}

/// A listener in the simulated network.
pub struct SimListener {
    world: World,
    listening: Rc<Listening>,
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimListener({})", self.listening.address)
    }
}

impl SimListener {
    /// Waits for the next connection.
    ///
    /// # Errors
    /// None so far.
    pub async fn accept(&self) -> io::Result<(SimStream, String)> {
        loop {
            if !self.listening.process.is_alive() {
                return std::future::pending().await;
            }
            let next = self.listening.waiting.borrow_mut().pop_front();
            if let Some(connection) = next {
                self.world.moment(&self.listening.process, Moment::Accepted);
                let from = format!("{}:{}", connection.near.process.host(), 40_000 + connection.id % 20_000);
                return Ok((SimStream { connection, side: Side::Far }, from));
            }
            self.listening.arrived.notified().await;
        }
    }

    /// The address that is listened at.
    pub fn local_address(&self) -> String {
        self.listening.address.clone()
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        if self.listening.process.is_alive() {
            self.world.0.network.listeners.borrow_mut().remove(&self.listening.address);
            for connection in self.listening.waiting.borrow_mut().drain(..) {
                connection.close(&self.world, Side::Far, true);
            }
        }
    }
}

pub(super) fn listen(world: &World, process: &Process, address: &str) -> io::Result<SimListener> {
    let network = &world.0.network;
    let mut address = address.to_owned();
    if let Some(host) = address.strip_suffix(":0") {
        network.next.set(network.next.get() + 1);
        address = format!("{host}:{}", 20_000 + network.next.get());
    }
    let mut listeners = network.listeners.borrow_mut();
    if listeners.get(&address).is_some_and(|listening| listening.strong_count() > 0) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let listening = Rc::new(Listening {
        address: address.clone(),
        process: process.clone(),
        waiting: RefCell::default(),
        arrived: Notify::new(),
    });
    listeners.insert(address, Rc::downgrade(&listening));
    Ok(SimListener { world: world.clone(), listening })
}

pub(super) async fn connect(world: &World, process: &Process, address: &str) -> io::Result<SimStream> {
    let network = &world.0.network;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let mut retries = CONNECT_RETRIES_MS.iter().copied();
    let mut pause = CONNECT_RETRIES_MS[CONNECT_RETRIES_MS.len() - 1];
    loop {
        sleep(delay(world)).await;
        if !process.is_alive() {
            return std::future::pending().await;
        }
        let cut = network.is_cut(process.host(), host, true) || network.is_cut(host, process.host(), true);
        let off = world.0.hosts.borrow().get(host).is_some_and(|machine| !machine.is_on());
        if !cut && !off {
            break;
        }
        pause = retries.next().unwrap_or(pause);
        sleep(Duration::from_millis(pause)).await;
    }
    let listening = network.listeners.borrow().get(address).and_then(Weak::upgrade);
    let Some(listening) = listening.filter(|listening| listening.process.is_alive()) else {
        sleep(delay(world)).await;
        return Err(io::ErrorKind::ConnectionRefused.into());
    };
    network.next.set(network.next.get() + 1);
    let id = network.next.get();
    world.fold(id << 4);
    let connection = Rc::new(Connection {
        id,
        world: world.clone(),
        near: End { process: process.clone(), is_closed: Cell::new(false) },
        far: End { process: listening.process.clone(), is_closed: Cell::new(false) },
        dialed: listening.address.clone(),
        there: Pipe::default(),
        back: Pipe::default(),
    });
    network.connections.borrow_mut().push(Rc::downgrade(&connection));
    listening.waiting.borrow_mut().push_back(Rc::clone(&connection));
    listening.arrived.notify_one();
    let stream = SimStream { connection, side: Side::Near };
    sleep(delay(world)).await;
    Ok(stream)
}
