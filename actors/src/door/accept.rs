//! The listening socket and the tasks of its connections: slaves, clients and the other master share one port.
//!
//! Owns the sockets and their handshakes; the first bytes tell who is there. A connection's task ends with its
//! connection, and a panic in it ends that connection only: its place in the master's tables is given back by a
//! guard's drop.

use crate::batch::{Inbox, Outbox, Turns};
use crate::config::MasterConfig;
use crate::door::session::{AnswerPool, Coding, Session};
use crate::env::{Env, Listener, Stream};
use crate::slave_proxy::EndReason;
use crate::supervision::{Fate, TaskGuard};
use crate::turns::TurnLengths;
use actix::prelude::Recipient;
use bytes::BytesMut;
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::frame::{self, About, FrameError, Incoming, Unframer};
use dsm_protocol::ids::{LinkId, Millis, SessionId};
use dsm_protocol::machine::master::{Asker, ReadId};
use dsm_protocol::message::{Control, Hello, HelloRole, Message};
use dsm_protocol::resp::{Action, Conversation, Limits, Parsed, Parser, ServerFacts};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// So many messages of one link may wait for the master; then the link is not read any further.
const UNHEARD_MAX: usize = 4096;

/// The same in bytes of their bodies, or one message.
const UNHEARD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a link has said and the master has not heard yet. Its socket's task waits here, so that whoever says more than the
/// master can hear waits in his own socket.
#[derive(Debug, Default)]
pub(crate) struct Unheard {
    messages: Cell<usize>,
    bytes: Cell<usize>,
    is_waited_for: Cell<bool>,
    heard: Notify,
}

impl Unheard {
    /// Counts a message of so many bytes until the master has heard it.
    pub(crate) fn say(self: &Rc<Self>, bytes: usize) -> Said {
        self.messages.set(self.messages.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        Said { unheard: Rc::clone(self), bytes }
    }

    /// Whether more may be said.
    fn has_room(&self) -> bool {
        self.messages.get() < UNHEARD_MAX && (self.bytes.get() < UNHEARD_BYTES_MAX || self.is_empty())
    }

    /// Whether the master has heard all of it.
    fn is_empty(&self) -> bool {
        self.messages.get() == 0
    }

    /// Waits until more may be said.
    pub(crate) async fn room(&self) {
        self.wait_until(Self::has_room).await;
    }

    /// Waits until the master has heard all of it.
    async fn heard_out(&self) {
        self.wait_until(Self::is_empty).await;
    }

    async fn wait_until(&self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            self.is_waited_for.set(true);
            self.heard.notified().await;
        }
        self.is_waited_for.set(false);
    }
}

/// One message that the master is to hear. With its drop it is heard.
#[derive(Debug)]
pub(crate) struct Said {
    unheard: Rc<Unheard>,
    bytes: usize,
}

impl Drop for Said {
    fn drop(&mut self) {
        let Unheard { messages, bytes, is_waited_for, heard } = &*self.unheard;
        messages.set(messages.get() - 1);
        bytes.set(bytes.get() - self.bytes);
        if is_waited_for.get() {
            heard.notify_one();
        }
    }
}

/// Tells the master that its inbox is no longer empty.
#[derive(actix::Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct Drain;

/// What connections bring to the master.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// A session begins.
    Opened(Rc<Session>),
    /// A session asks; the answer goes to its slot.
    Request { asker: Asker, command: Command },
    /// A session is over.
    Closed(SessionId),
    /// A slave wants to register over a new link.
    SlaveHello { link: LinkId, hello: Hello, outbox: Outbox, said: Said },
    /// A slave said something.
    Slave { link: LinkId, message: Message, said: Said },
    /// A slave's link is closed.
    SlaveGone { link: LinkId, reason: EndReason },
    /// The other master has connected. `lock` is the lock file as we see it.
    PeerHello { link: LinkId, hello: Hello, outbox: Outbox, lock: io::Result<String>, said: Said },
    /// The other master said something over the link that it opened.
    Peer { link: LinkId, message: Message, said: Said },
    /// That link is closed.
    PeerGone { link: LinkId },
    /// Our own link to the other master stands.
    DialedUp { generation: LinkId, welcome: dsm_protocol::message::Welcome, outbox: Outbox },
    /// The other master said something over our own link.
    Dialed { generation: LinkId, message: Message, said: Said },
    /// The other master refuses us.
    DialRefused { reason: String },
    /// Our own link is closed.
    DialedDown { generation: LinkId },
    /// The log was read for a read.
    LogRead { read: ReadId, result: Result<bytes::Bytes, String> },
}

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
    fn note_encoded(&self, answer: &[u8]) {
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

/// What all connection tasks of one master share.
pub(crate) struct Switchboard {
    inbox: Inbox<Arrived>,
    drain: Recipient<Drain>,
    next: Cell<u64>,
    /// How long the turns of the node are.
    pub(crate) turns: Rc<TurnLengths>,
    /// Bytes and requests in flight in all, kept by the tasks and the master together.
    pub(crate) requests: Cell<usize>,
    pub(crate) bytes: Cell<usize>,
    /// Bytes of clients' long requests that have not arrived whole yet.
    pub(crate) unfinished_requests: Pool,
    /// Bytes of handshakes, and of long frames of slaves and masters, that have not arrived whole yet.
    pub(crate) unfinished_frames: Pool,
    /// The links whose frames may be longer than a handshake's, and how long a value was asked for over each.
    trusted: RefCell<BTreeMap<LinkId, usize>>,
    /// Bytes of the answers of all connections.
    pub(crate) answers: Rc<AnswerPool>,
    pub(crate) limits: LimitCounters,
    pub(crate) errors: ErrorCounters,
    /// Set when the node stops: no connection is accepted or read any more.
    pub(crate) stopping: Cell<bool>,
    pub(crate) stop: Notify,
    /// Told when the other master has connected.
    pub(crate) peer_came: Notify,
    /// Connections that have ended on our side and are read off, of clients that have just asked something.
    read_off: Cell<usize>,
    /// When it was last told that somebody speaks another version.
    version_told: Cell<Option<Millis>>,
}

impl Switchboard {
    /// A switchboard whose master drains `inbox`.
    pub(crate) fn new(
        inbox: Inbox<Arrived>,
        drain: Recipient<Drain>,
        answers: AnswerPool,
        turns: Rc<TurnLengths>,
    ) -> Self {
        Switchboard {
            answers: Rc::new(answers),
            turns,
            inbox,
            drain,
            next: Cell::new(1),
            requests: Cell::new(0),
            bytes: Cell::new(0),
            unfinished_requests: Pool::default(),
            unfinished_frames: Pool::default(),
            trusted: RefCell::default(),
            limits: LimitCounters::default(),
            errors: ErrorCounters::default(),
            stopping: Cell::new(false),
            stop: Notify::new(),
            peer_came: Notify::new(),
            read_off: Cell::new(0),
            version_told: Cell::new(None),
        }
    }

    /// Says in the log that somebody speaks another version of the wire: seldom, for it tries again and again.
    fn tell_of_version(&self, now: Millis, address: &str, error: &FrameError) {
        if self.version_told.get().is_none_or(|told| now.since(told) >= VERSION_TOLD_EVERY_MS) {
            self.version_told.set(Some(now));
            log::warn!("connection refused address={address} cause=\"{error}\"");
        }
    }

    /// Whether no answer waits for a socket any more, nor for what may have crossed the end of its connection.
    pub(crate) fn has_said_all(&self) -> bool {
        self.answers.len() == 0 && self.read_off.get() == 0
    }

    /// Brings something to the master; one message wakes it for everything that arrives in the meantime.
    pub(crate) fn push(&self, arrived: Arrived) {
        if self.inbox.push(arrived) {
            self.drain.do_send(Drain);
        }
    }

    /// Counts a request of `bytes` bytes as in flight, unless a limit on all of them is reached.
    pub(crate) fn admit(&self, config: &MasterConfig, bytes: usize) -> bool {
        let over = self.requests.get() >= config.max_requests
            || self.bytes.get() + bytes > config.max_request_bytes.as_u64() as usize;
        if over {
            count(&self.limits.busy);
            return false;
        }
        self.permit(bytes);
        true
    }

    /// Takes the permits of a request whatever the limits say; its answer gives them back.
    pub(crate) fn permit(&self, bytes: usize) {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// Lets a link send long frames from now on: the master knows who it is and asks for them.
    pub(crate) fn trust(&self, link: LinkId) {
        self.trusted.borrow_mut().entry(link).or_default();
    }

    /// Notes that an answer of so many bytes was asked for over a trusted link.
    pub(crate) fn expect(&self, link: LinkId, bytes: usize) {
        if let Some(longest) = self.trusted.borrow_mut().get_mut(&link) {
            *longest = bytes.max(*longest);
        }
    }

    /// The longest answer that was asked for over a link.
    pub(crate) fn asked(&self, link: LinkId) -> usize {
        self.trusted.borrow().get(&link).copied().unwrap_or_default()
    }

    /// Forgets a link that is gone.
    pub(crate) fn forget(&self, link: LinkId) {
        self.trusted.borrow_mut().remove(&link);
    }

    /// A number that no session and no link of this process has had.
    pub(crate) fn next_id(&self) -> u64 {
        let next = self.next.get();
        self.next.set(next + 1);
        next
    }
}

/// What a connection's task needs.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) env: Env,
    pub(crate) config: Rc<MasterConfig>,
    pub(crate) facts: ServerFacts,
    pub(crate) switchboard: Rc<Switchboard>,
}

/// How often it is told that somebody speaks another version of the wire, in milliseconds.
const VERSION_TOLD_EVERY_MS: u64 = 10_000;

/// How long the acceptor rests when the system has no file descriptor left.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// How long nobody may have connected before the port of a node that stops goes.
const ACCEPT_LAST: Duration = Duration::from_millis(2);

/// How long a client that was let go may take to close its side.
const PARTING_MAX: Duration = Duration::from_secs(1);

/// The facts that Redis clients may ask for.
pub(crate) fn server_facts(config: &MasterConfig) -> ServerFacts {
    ServerFacts {
        limits: Limits::for_values(config.value_max()),
        clients_max: config.max_connections,
        idle_timeout: config.idle_timeout,
        fsync: match config.fsync {
            crate::config::Fsync::Always => "always",
            crate::config::Fsync::Everysec => "everysec",
            crate::config::Fsync::Never => "no",
        },
    }
}

/// Accepts connections until the node ends, and then waits for those that are open. With this future's drop all of
/// them are cut off.
pub(crate) async fn accept(listener: Listener, context: Context, fate: Fate) {
    let _guard = TaskGuard::new("the acceptor", fate.clone());
    let mut connections = JoinSet::new();
    accept_into(&mut connections, &listener, &context, &fate).await;
    // The port is free before the last answers have left.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept_into(connections: &mut JoinSet<()>, listener: &Listener, context: &Context, fate: &Fate) {
    let limits = &context.switchboard.limits;
    // One line for a time without descriptors; INFO counts.
    let mut told = false;
    while !fate.is_decided() && !context.switchboard.stopping.get() {
        let accepted = tokio::select! {
            biased;
            () = context.switchboard.stop.notified() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a connection that was gone before it was accepted: both pass.
                count(&limits.accept_errors);
                if !std::mem::replace(&mut told, true) {
                    log::warn!("connections are not accepted for now, trying on error={error}");
                }
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        told = false;
        take_in(connections, stream, address, context);
    }
    // Who has connected is heard before the port goes: the kernel would reset it.
    while let Ok(Ok((stream, address))) = tokio::time::timeout(ACCEPT_LAST, listener.accept()).await {
        take_in(connections, stream, address, context);
    }
}

/// Serves a connection, or says that it is one too many.
fn take_in(connections: &mut JoinSet<()>, stream: Stream, address: String, context: &Context) {
    let limits = &context.switchboard.limits;
    stream.keep_alive(context.config.tcp_keepalive);
    stream.show_progress();
    count(&limits.connections_total);
    if limits.connections.get() >= context.config.max_connections {
        count(&limits.connections_refused);
        connections.spawn_local(refuse(stream));
        return;
    }
    limits.connections.set(limits.connections.get() + 1);
    let context = context.clone();
    connections.spawn_local(async move {
        let _counted = Counted(Rc::clone(&context.switchboard));
        let kind = Cell::new("connection");
        let turns = Rc::clone(&context.switchboard.turns);
        turns.watch(&kind, connection(stream, address, context, &kind)).await;
    });
}

/// Gives a connection's place back, also when its task panics.
struct Counted(Rc<Switchboard>);

impl Drop for Counted {
    fn drop(&mut self) {
        let connections = &self.0.limits.connections;
        connections.set(connections.get() - 1);
    }
}

/// Says why, in Redis' words, and closes.
async fn refuse(stream: Stream) {
    let said = stream.write_all(b"-ERR max number of clients reached\r\n");
    let _ = tokio::time::timeout(Duration::from_millis(100), said).await;
    stream.shut_down_write();
}

async fn connection(stream: Stream, address: String, context: Context, kind: &Cell<&'static str>) {
    let limits = &context.switchboard.limits;
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let handshake = tokio::time::timeout(context.config.handshake_timeout, stream.read(&mut buffer)).await;
    match handshake {
        Ok(Ok(0) | Err(_)) => return,
        Ok(Ok(_)) => {}
        Err(_) => {
            count(&limits.handshakes_timed_out);
            return;
        }
    }
    log::debug!("connection opened address={address}");
    let outbox = Outbox::metered(context.switchboard.answers.meter());
    let serving = async {
        if buffer[0] == frame::PREFACE[0] {
            native(&stream, buffer, &outbox, &context, &address, kind).await
        } else {
            kind.set("session");
            redis(&stream, buffer, &outbox, &context, &address).await
        }
    };
    let pumping = outbox.pump(&stream, context.config.write_timeout);
    tokio::pin!(pumping);
    let (pumped, served) = tokio::select! {
        biased;
        pumped = &mut pumping => (pumped, Ok(())),
        served = serving => {
            outbox.finish();
            // What is answered is still sent, but to nobody who does not take it.
            (pumping.await, served)
        }
    };
    let is_slow = pumped.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
    let why = is_slow.then_some("it takes no answers (--write-timeout)").or(outbox.why_cut());
    if let Some(why) = why {
        count(&limits.slow_readers_cut);
        log::warn!("connection cut address={address} cause={why:?}");
    }
    if pumped.is_ok() && why.is_none() && context.switchboard.stopping.get() {
        // What crosses our end is not executed; were it left unread, the kernel would reset the connection, and
        // answers that the client has not read yet would be lost.
        let reading = read_off(&stream, &outbox, &context.switchboard);
        let _ = tokio::time::timeout(PARTING_MAX, reading).await;
    }
    let cause = pumped.and(served).err().map(|error| error.to_string());
    log::debug!("connection closed address={address} cause={cause:?}");
}

/// Reads and throws away what comes until the other side ends.
async fn read_off(stream: &Stream, outbox: &Outbox, switchboard: &Switchboard) {
    // Nothing crosses from who has asked nothing for long, and connections that nobody looks at may stay open for ever.
    let _counted = outbox.has_asked_within(PARTING_MAX).then(|| ReadOff::begin(&switchboard.read_off));
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
        buffer.clear();
    }
}

/// Counts a connection as long as it is read off.
struct ReadOff<'a>(&'a Cell<usize>);

impl<'a> ReadOff<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        ReadOff(count)
    }
}

impl Drop for ReadOff<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Waits until a connection may be closed although its client has not closed it: this master lets its clients go,
/// nothing of this one is unanswered, and no part of a request has arrived.
async fn parted(stream: &Stream, session: &Session, is_between_requests: bool) {
    session.let_go_of().await;
    if !is_between_requests {
        std::future::pending::<()>().await;
    }
    stream.hold_back();
    session.may_part().await;
}

/// How much is read at once, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// Gives up a session's place at the master, also when its task panics.
struct SessionGuard {
    switchboard: Rc<Switchboard>,
    session: Rc<Session>,
}

impl SessionGuard {
    fn open(context: &Context, session: Session) -> Self {
        let session = Rc::new(session);
        context.switchboard.push(Arrived::Opened(Rc::clone(&session)));
        SessionGuard { switchboard: Rc::clone(&context.switchboard), session }
    }

    /// Asks the master, unless a limit on all requests in flight is reached.
    fn ask(&self, context: &Context, coding: Coding, command: Command) {
        #[cfg(feature = "testing")]
        crate::testing::pass(|place| *place == crate::testing::Place::Session);
        let bytes = command.payload_bytes();
        let tag = self.session.ask(coding, bytes);
        let switchboard = &context.switchboard;
        // Whoever looks for the reason of BUSY must not be answered BUSY.
        if command == Command::Status {
            switchboard.permit(bytes);
        } else if !switchboard.admit(&context.config, bytes) {
            self.answer(tag, &Reply::error(ErrorWord::Busy, "too many requests in flight"));
            return;
        }
        let asker = Asker { session: self.session.id(), tag };
        switchboard.push(Arrived::Request { asker, command });
    }

    /// Refuses a request that takes no permits.
    fn refuse(&self, coding: Coding, refusal: &Reply) {
        let tag = self.session.ask(coding, 0);
        self.answer(tag, refusal);
    }

    /// Answers what the master is not asked.
    fn answer(&self, tag: u64, reply: &Reply) {
        self.switchboard.errors.note(reply);
        self.session.answer(tag, reply);
    }

    /// Sends what the connection says by itself, behind what was asked before.
    fn say(&self, answer: &[u8]) {
        self.switchboard.errors.note_encoded(answer);
        self.session.say(answer);
    }

    async fn room(&self, context: &Context) {
        let config = &context.config;
        let bytes_max = config.max_pipeline_bytes.as_u64() as usize;
        if !self.session.has_room(config.max_pipeline, bytes_max) {
            count(&context.switchboard.limits.reads_paused);
            self.session.room(config.max_pipeline, bytes_max).await;
        }
    }

    /// The client has said all that it wants to say, and still hears the answers. Those that wait for earlier ones to
    /// leave have as long as these take: a client that takes none is cut by the writer.
    async fn hear_out(&self, context: &Context) {
        let patience = 2 * context.config.request_timeout;
        loop {
            let before = self.session.in_flight().0;
            if tokio::time::timeout(patience, self.session.all_answered()).await.is_ok() {
                return;
            }
            if self.session.in_flight().0 == before && !self.session.has_unsent() {
                return;
            }
        }
    }

    /// How long the client may be silent.
    fn patience(&self, context: &Context) -> Option<Duration> {
        let idle = context.config.idle_timeout;
        (!idle.is_zero()).then_some(idle)
    }

    /// Whether the client waits for an answer.
    fn is_waited_for(&self) -> bool {
        self.session.in_flight().0 > 0
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.switchboard.push(Arrived::Closed(self.session.id()));
    }
}

/// Reads more into `buffer`, of which `need` bytes are known to be missing; `Ok(false)` at the end of the stream.
///
/// The buffer's memory follows what has arrived, not what was announced. While little is in it, it is a new one each
/// time: the rest of a long request that was taken off its front would keep that request's memory. A long one ends where
/// what is missing ends: nothing short that comes after it can keep its memory.
pub(crate) async fn read_more(stream: &Stream, buffer: &mut BytesMut, need: usize) -> io::Result<bool> {
    read_some(stream, buffer, need, READ_BYTES).await.map(|read| read > 0)
}

/// The same for a link over which much that is short may come at once, up to `short_bytes` of it; how many bytes came.
pub(crate) async fn read_some(
    stream: &Stream,
    buffer: &mut BytesMut,
    need: usize,
    short_bytes: usize,
) -> io::Result<usize> {
    let length = buffer.len();
    // Memory that nothing was read into takes none; to copy a long request again and again would take long.
    let room = if length >= WHOLE_BYTES_MIN { need } else { need.min(length) }.max(short_bytes);
    if length <= READ_BYTES {
        let mut small = BytesMut::with_capacity(length + room);
        small.extend_from_slice(buffer);
        *buffer = small;
    } else {
        make_room(buffer, room).await;
    }
    let bytes_max = if need > READ_BYTES { need.min(LONG_READ_BYTES) } else { LONG_READ_BYTES };
    let read = stream.read_at_most(buffer, bytes_max).await?;
    if read >= LONG_READ_BYTES {
        tokio::task::yield_now().await;
    }
    Ok(read)
}

/// Makes room for `room` bytes more. What is there may have to move: as much of it at once as takes no time, with everybody
/// else's turns in between. A future that is dropped meanwhile has changed nothing.
async fn make_room(buffer: &mut BytesMut, room: usize) {
    if buffer.len() <= MOVED_AT_ONCE || buffer.capacity() - buffer.len() >= room {
        buffer.reserve(room);
        return;
    }
    // Twice as much at least, so that each byte is moved once, about.
    let mut larger = BytesMut::with_capacity((buffer.len() + room).max(2 * buffer.len()));
    for part in buffer.chunks(MOVED_AT_ONCE) {
        larger.extend_from_slice(part);
        tokio::task::yield_now().await;
    }
    *buffer = larger;
}

/// So many bytes are moved in one turn.
const MOVED_AT_ONCE: usize = 512 * 1024;

/// No more of a long request is read at once, and after that a connection lets others run, even if more is there: many
/// that bring long values at once would else hold up everybody, timers too.
const LONG_READ_BYTES: usize = 64 * 1024;

/// With so many bytes of a request there, room is made for all of it.
const WHOLE_BYTES_MIN: usize = 1 << 20;

/// What a client's read may end in.
enum Heard {
    More,
    End,
    /// Nothing came for the idle timeout.
    Nothing,
}

/// Reads more of a client's bytes, for `patience` at most, of which none of the time counts in which it waits for an
/// answer: the request takes as long as it takes, and then the client has all of it again.
async fn hear(
    stream: &Stream,
    buffer: &mut BytesMut,
    need: usize,
    patience: Option<Duration>,
    guard: &SessionGuard,
) -> io::Result<Heard> {
    loop {
        let was_waited_for = guard.is_waited_for();
        let reading = read_more(stream, buffer, need);
        let more = match patience {
            None => reading.await?,
            Some(patience) => match tokio::time::timeout(patience, reading).await {
                Ok(more) => more?,
                Err(_) if was_waited_for || guard.is_waited_for() => continue,
                Err(_) => return Ok(Heard::Nothing),
            },
        };
        return Ok(if more { Heard::More } else { Heard::End });
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
    fn request(context: &'a Context) -> Self {
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

/// A request of more words than this is looked through and handed over in turns of their own, and taken apart so many
/// words at a time.
const WIDE_ARGS: usize = 4 * 1024;

/// What a client hears whose unfinished request is one too many.
const UPLOADS_CUT: &str = "too many bytes of unfinished requests";

/// What anybody else hears.
const LINK_CUT: &str = "too many bytes of unfinished frames";

/// A Redis client.
#[expect(clippy::too_many_lines, reason = "the life of a connection in its order")]
async fn redis(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    address: &str,
) -> io::Result<()> {
    let limits = &context.switchboard.limits;
    let id = SessionId(context.switchboard.next_id());
    let guard = SessionGuard::open(context, Session::resp(id, outbox.clone(), &context.switchboard.answers));
    let mut parser = Parser::new(context.facts.limits);
    let mut conversation = Conversation::new(id.0, context.facts).with_addresses(address, "");
    let mut own = Vec::new();
    let unfinished = Unfinished::request(context);
    // A Redis client's handshake is its first request.
    let begun = tokio::time::Instant::now();
    let mut is_known = false;
    let mut turns = Turns::default();
    loop {
        turns.count().await;
        guard.room(context).await;
        if outbox.is_ended() {
            return Ok(());
        }
        let args = match parser.next_within(&mut buffer, WIDE_ARGS) {
            Ok(Parsed::Request(args)) => {
                is_known = true;
                unfinished.hold(buffer.len());
                args
            }
            Ok(Parsed::Unfinished) => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Parsed::NotWhole) => {
                if !unfinished.hold(buffer.len()) {
                    log::warn!("connection cut address={address} cause={UPLOADS_CUT:?}");
                    own.clear();
                    own.extend_from_slice(format!("-BUSY {UPLOADS_CUT}\r\n").as_bytes());
                    guard.say(&own);
                    break;
                }
                let need = parser.missing(buffer.len());
                // A long first request is a client's, however slow its line is.
                let in_handshake = !is_known && buffer.len() <= READ_BYTES;
                let patience = if in_handshake {
                    Some(context.config.handshake_timeout.saturating_sub(begun.elapsed()))
                } else {
                    guard.patience(context)
                };
                let parted = parted(stream, &guard.session, buffer.is_empty());
                let heard = tokio::select! {
                    biased;
                    heard = hear(stream, &mut buffer, need, patience, &guard) => heard?,
                    () = parted => break,
                };
                match heard {
                    Heard::More => outbox.note_sends(),
                    Heard::End => break,
                    Heard::Nothing => {
                        let counter =
                            if in_handshake { &limits.handshakes_timed_out } else { &limits.idle_closed };
                        count(counter);
                        return Ok(());
                    }
                }
                continue;
            }
            Err(error) => {
                count(&limits.protocol_errors);
                own.clear();
                error.encode(&mut own);
                guard.say(&own);
                break;
            }
        };
        let is_wide = args.len() > WIDE_ARGS;
        if is_wide {
            tokio::task::yield_now().await;
        }
        own.clear();
        let action = conversation.handle(args, &mut own);
        if is_wide {
            tokio::task::yield_now().await;
        }
        match action {
            Action::Answered => guard.say(&own),
            Action::Ask { command, shape } => {
                let coding = Coding::Resp(conversation.protocol(), shape);
                match check_sizes(&command, context.config.value_max()) {
                    None => guard.ask(context, coding, command),
                    Some(refusal) => guard.refuse(coding, &refusal),
                }
            }
            Action::AnsweredAndClose => {
                guard.say(&own);
                break;
            }
            Action::Close => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    guard.hear_out(context).await;
    Ok(())
}

/// Somebody who speaks frames: a client, a slave or the other master.
async fn native(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    address: &str,
    kind: &Cell<&'static str>,
) -> io::Result<()> {
    let limits = &context.switchboard.limits;
    let shaking = hello(stream, &mut buffer, context);
    let hello = match tokio::time::timeout(context.config.handshake_timeout, shaking).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(LinkError::Io(error))) => return Err(error),
        Ok(Err(LinkError::Frame(error))) => {
            count(&limits.protocol_errors);
            if let FrameError::WireVersion { .. } = error {
                context.switchboard.tell_of_version(context.env.now(), address, &error);
            }
            reject(outbox, &error.to_string());
            return Ok(());
        }
        // It passes; a Reject would tell a master or slave that it is not wanted.
        Ok(Err(LinkError::Cut)) => return Ok(()),
        Err(_) => {
            count(&limits.handshakes_timed_out);
            return Ok(());
        }
    };
    let Some(hello) = hello else { return Ok(()) };
    kind.set(match hello.role {
        HelloRole::Client => "session",
        HelloRole::Slave { .. } => "slave link",
        HelloRole::Master { .. } => "master link",
    });
    match hello.role {
        HelloRole::Client => native_client(stream, buffer, outbox, context).await,
        HelloRole::Slave { .. } => slave(stream, buffer, outbox, context, hello).await,
        HelloRole::Master { .. } => peer(stream, buffer, outbox, context, hello).await,
    }
}

/// Why a link is not read any further.
enum LinkError {
    Io(io::Error),
    Frame(FrameError),
    /// Too many bytes wait in all for the rest of their frames.
    Cut,
}

/// Reads preface and HELLO; `None` when the stream ends before.
async fn hello(
    stream: &Stream,
    buffer: &mut BytesMut,
    context: &Context,
) -> Result<Option<Hello>, LinkError> {
    let unfinished = Unfinished::frame(context);
    let mut has_preface = false;
    loop {
        if !has_preface && frame::check_preface(buffer).map_err(LinkError::Frame)? {
            bytes::Buf::advance(buffer, frame::PREFACE.len());
            has_preface = true;
        }
        if has_preface {
            match frame::decode(buffer, frame::HANDSHAKE_BODY_MAX).map_err(LinkError::Frame)? {
                Some(Message::Control(Control::Hello(hello))) => return Ok(Some(hello)),
                Some(_) => return Err(LinkError::Frame(FrameError::NotNative)),
                None => {}
            }
        }
        if !unfinished.hold_all(buffer.len()) {
            return Err(LinkError::Cut);
        }
        if !read_more(stream, buffer, 0).await.map_err(LinkError::Io)? {
            return Ok(None);
        }
    }
}

/// Says why and lets the outbox end.
pub(crate) fn reject(outbox: &Outbox, reason: &str) {
    let message = Message::Control(Control::Reject { reason: reason.to_owned() });
    outbox.append(|out| frame::encode(&message, out));
    outbox.finish();
}

/// The longest body of a frame from a client or a master: a request.
pub(crate) fn request_body_max(context: &Context) -> usize {
    frame::body_max(context.config.value_max().max(context.facts.limits.request_bytes_max))
}

/// A slave's report of what it holds is shorter than this.
const REPORT_BYTES_MAX: usize = 1024 * 1024;

/// The longest body of a frame from a slave: a value, or a part of its report.
fn slave_body_max(context: &Context) -> usize {
    frame::body_max(context.config.value_max().max(REPORT_BYTES_MAX))
}

/// Reads frames and hands each to `take` until the stream or the outbox ends. They are as short as a handshake's until
/// the master trusts the link, and then up to `body_max`; a longer one that concerns one request is skipped, and
/// `refuse` is told. What an unknown link says is heard before it may say more; others may be ahead of the master by a
/// bounded number of messages.
async fn frames(
    stream: &Stream,
    buffer: &mut BytesMut,
    context: &Context,
    (link, outbox, unheard): (LinkId, &Outbox, &Rc<Unheard>),
    body_max: usize,
    arrived: impl Fn(Message, Said) -> Arrived,
    mut refuse: impl FnMut(About, usize),
) -> Result<(), LinkError> {
    let switchboard = &*context.switchboard;
    let trusted = &switchboard.trusted;
    let unfinished = Unfinished::frame(context);
    let mut is_trusted = false;
    let mut turns = Turns::default();
    let mut unframer = Unframer::default();
    loop {
        loop {
            // It is never taken back: what was asked for is still on its way.
            is_trusted = is_trusted || trusted.borrow().contains_key(&link);
            if !is_trusted && buffer.len() >= frame::HEADER_BYTES {
                // A long frame may stand right behind the short one that makes the link known: the master hears that
                // one out first.
                unheard.heard_out().await;
                is_trusted = trusted.borrow().contains_key(&link);
            }
            unheard.room().await;
            let before = buffer.len();
            if !is_trusted {
                match frame::decode(buffer, frame::HANDSHAKE_BODY_MAX).map_err(LinkError::Frame)? {
                    Some(message) => {
                        switchboard.push(arrived(message, unheard.say(before - buffer.len())));
                    }
                    None => break,
                }
                turns.count().await;
                continue;
            }
            // A value from before `--max-value` was lowered is as long as it is, and was asked for.
            let asked = frame::body_max(switchboard.asked(link));
            match unframer.next(buffer, body_max.max(asked)).map_err(LinkError::Frame)? {
                Some(Incoming::Message(message)) => {
                    switchboard.push(arrived(message, unheard.say(before - buffer.len())));
                }
                Some(Incoming::TooLong { about, length }) => refuse(about, length),
                None => break,
            }
            turns.count().await;
        }
        let may = if is_trusted { unfinished.hold(buffer.len()) } else { unfinished.hold_all(buffer.len()) };
        if !may {
            return Err(LinkError::Cut);
        }
        let unread = buffer.len();
        if !read_more(stream, buffer, frame::missing(buffer)).await.map_err(LinkError::Io)? {
            return Ok(());
        }
        outbox.note_heard(buffer.len() - unread);
    }
}

async fn native_client(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
) -> io::Result<()> {
    let id = SessionId(context.switchboard.next_id());
    let guard =
        SessionGuard::open(context, Session::native(id, outbox.clone(), &context.switchboard.answers));
    let mut result = native_requests(stream, &mut buffer, context, &guard).await;
    if let Err(LinkError::Cut) = result {
        guard.session.send(&Message::Control(Control::Reject { reason: format!("BUSY {UPLOADS_CUT}") }));
        result = Ok(());
    }
    match result {
        Ok(()) | Err(LinkError::Cut) => {
            guard.hear_out(context).await;
            Ok(())
        }
        Err(LinkError::Io(error)) => Err(error),
        Err(LinkError::Frame(error)) => {
            count(&context.switchboard.limits.protocol_errors);
            reject(outbox, &error.to_string());
            Ok(())
        }
    }
}

/// Reads a native client's requests until it has no more.
async fn native_requests(
    stream: &Stream,
    buffer: &mut BytesMut,
    context: &Context,
    guard: &SessionGuard,
) -> Result<(), LinkError> {
    let body_max = request_body_max(context);
    let unfinished = Unfinished::request(context);
    let mut turns = Turns::default();
    let mut unframer = Unframer::default();
    loop {
        while let Some(message) = unframer.next_of_one(buffer, body_max).map_err(LinkError::Frame)? {
            turns.count().await;
            unfinished.hold(buffer.len());
            let Message::Request(request) = message else {
                return Err(LinkError::Frame(FrameError::Malformed(0)));
            };
            guard.room(context).await;
            let coding = Coding::Native(request.id);
            match check_sizes(&request.command, context.config.value_max()) {
                None => guard.ask(context, coding, request.command),
                Some(refusal) => guard.refuse(coding, &refusal),
            }
        }
        if !unfinished.hold(buffer.len()) {
            return Err(LinkError::Cut);
        }
        let parted = parted(stream, &guard.session, buffer.is_empty());
        let heard = tokio::select! {
            biased;
            heard = hear(stream, buffer, frame::missing(buffer), guard.patience(context), guard) => heard.map_err(LinkError::Io)?,
            () = parted => return Ok(()),
        };
        match heard {
            Heard::More => guard.session.note_sends(),
            Heard::End => return Ok(()),
            Heard::Nothing => {
                count(&context.switchboard.limits.idle_closed);
                return Ok(());
            }
        }
    }
}

/// Why a request is out of bounds, if it is.
pub(crate) fn check_sizes(command: &Command, value_max: usize) -> Option<Reply> {
    let key_max = dsm_protocol::command::KEY_MAX;
    if command.keys() > dsm_protocol::command::KEYS_MAX {
        let why = format!("the request names more than {} keys", dsm_protocol::command::KEYS_MAX);
        return Some(Reply::error(ErrorWord::Bad, why));
    }
    let long_key = |key: &bytes::Bytes| key.len() > key_max;
    let long_value = |value: &bytes::Bytes| value.len() > value_max;
    let (key, value, empty) = match command {
        Command::Get { key } => (long_key(key), false, false),
        Command::Put { key, value } => (long_key(key), long_value(value), false),
        Command::PutMany { pairs } => (
            pairs.iter().any(|(key, _)| long_key(key)),
            pairs.iter().any(|(_, value)| long_value(value)),
            pairs.is_empty(),
        ),
        Command::GetMany { keys } | Command::Delete { keys } | Command::Exists { keys } => {
            (keys.iter().any(long_key), false, keys.is_empty())
        }
        Command::KeyCount | Command::Status | Command::Failover => (false, false, false),
    };
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

/// Reports the end of a link, also when its task panics.
struct LinkGuard<'a> {
    switchboard: &'a Switchboard,
    gone: Option<Arrived>,
}

impl Drop for LinkGuard<'_> {
    fn drop(&mut self) {
        if let Some(gone) = self.gone.take() {
            self.switchboard.push(gone);
        }
    }
}

async fn slave(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    hello: Hello,
) -> io::Result<()> {
    let switchboard = &*context.switchboard;
    outbox.leave_meter();
    let link = LinkId(switchboard.next_id());
    let reason = EndReason::Closed("the connection's task is gone".to_owned());
    let mut guard = LinkGuard { switchboard, gone: Some(Arrived::SlaveGone { link, reason }) };
    let unheard = Rc::<Unheard>::default();
    let said = unheard.say(0);
    switchboard.push(Arrived::SlaveHello { link, hello, outbox: outbox.clone(), said });
    let arrived = |message, said| Arrived::Slave { link, message, said };
    // Longer than was asked for: not what it should be, so it holds nothing that is wanted.
    let refuse = |about, length| match about {
        About::Value(tag) => {
            log::warn!("value not taken link={link} bytes={length}");
            switchboard.push(arrived(Message::Missing { tag, held: None }, unheard.say(0)));
        }
        // It answers nothing and asks nothing, which it will hear.
        About::Request(id) | About::Response(id) => {
            let reply = Reply::error(ErrorWord::Bad, "a slave does not say this");
            switchboard.push(arrived(Message::Response { id, reply }, unheard.say(0)));
        }
    };
    let of_link = (link, outbox, &unheard);
    let result =
        frames(stream, &mut buffer, context, of_link, slave_body_max(context), arrived, refuse).await;
    let reason = match &result {
        Ok(()) => EndReason::Closed("end of stream".to_owned()),
        Err(LinkError::Io(error)) => EndReason::Closed(error.to_string()),
        Err(LinkError::Frame(error)) => {
            count(&switchboard.limits.protocol_errors);
            reject(outbox, &error.to_string());
            EndReason::Protocol(error.to_string())
        }
        Err(LinkError::Cut) => {
            reject(outbox, LINK_CUT);
            EndReason::Refused(LINK_CUT.to_owned())
        }
    };
    guard.gone = Some(Arrived::SlaveGone { link, reason });
    Ok(())
}

async fn peer(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    hello: Hello,
) -> io::Result<()> {
    let switchboard = &*context.switchboard;
    let link = LinkId(switchboard.next_id());
    let _guard = LinkGuard { switchboard, gone: Some(Arrived::PeerGone { link }) };
    let unheard = Rc::<Unheard>::default();
    let said = unheard.say(0);
    // A disk that hangs here holds up nobody but whoever asks.
    let lock = context.env.locks().identity(&context.config.lock_path()).await;
    switchboard.push(Arrived::PeerHello { link, hello, outbox: outbox.clone(), lock, said });
    let arrived = |message, said| Arrived::Peer { link, message, said };
    // Of a client of the other master, where longer ones are allowed: its error, and nobody else's.
    let refuse = |about, length| match about {
        About::Request(id) => {
            let why =
                format!("the request has {length} bytes, more than the active master takes (--max-value)");
            let reply = Reply::error(ErrorWord::Bad, why);
            switchboard.errors.note(&reply);
            outbox.append_pieces(|out| frame::encode_response(id, &reply, out));
        }
        About::Response(_) | About::Value(_) => {
            count(&switchboard.limits.protocol_errors);
            reject(outbox, "a master does not say this");
        }
    };
    let of_link = (link, outbox, &unheard);
    let result =
        frames(stream, &mut buffer, context, of_link, request_body_max(context), arrived, refuse).await;
    match result {
        Ok(()) | Err(LinkError::Io(_)) => {}
        Err(LinkError::Frame(error)) => {
            count(&switchboard.limits.protocol_errors);
            reject(outbox, &error.to_string());
        }
        Err(LinkError::Cut) => reject(outbox, LINK_CUT),
    }
    Ok(())
}

/// Open sessions by number.
pub(crate) type Sessions = HashMap<SessionId, Rc<Session>, foldhash::fast::FixedState>;

#[cfg(test)]
mod tests {
    use super::*;
    use actix::prelude::{Actor, Context as ActorContext, Handler};

    struct Drains;

    impl Actor for Drains {
        type Context = ActorContext<Self>;
    }

    impl Handler<Drain> for Drains {
        type Result = ();

        fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
    }

    /// A master that hears nothing until the test takes what is in its inbox.
    fn deaf_master() -> (Context, Inbox<Arrived>) {
        let inbox = Inbox::default();
        let env = crate::env::real::RealEnv::new();
        let turns = TurnLengths::new(Rc::clone(&env));
        let (answers, drain) = (AnswerPool::new(usize::MAX), Drains.start().recipient());
        let board = Switchboard::new(inbox.clone(), drain, answers, turns);
        let config = MasterConfig::default();
        let facts = server_facts(&config);
        (Context { env, facts, config: Rc::new(config), switchboard: Rc::new(board) }, inbox)
    }

    /// A connection of a slave to that master, with its end here, its link and that its hello is not heard yet.
    async fn slave_of(context: &Context, inbox: &Inbox<Arrived>) -> (Stream, LinkId, Said) {
        let listener = context.env.listen("127.0.0.1:0").await.unwrap();
        let far = context.env.connect(&listener.local_address().unwrap()).await.unwrap();
        let (near, address) = listener.accept().await.unwrap();
        let theirs = context.clone();
        actix::spawn(async move {
            let kind = Cell::new("link");
            let turns = Rc::clone(&theirs.switchboard.turns);
            turns.watch(&kind, connection(near, address, theirs, &kind)).await;
        });
        let role = HelloRole::Slave {
            id: dsm_protocol::ids::SlaveId::new("one").unwrap(),
            incarnation: dsm_protocol::ids::Incarnation(1),
            seen: None,
            room_bytes: u64::MAX,
        };
        let mut out = frame::PREFACE.to_vec();
        frame::encode(&Message::Control(Control::Hello(Hello { cluster: None, role })), &mut out);
        far.write_all(&out).await.unwrap();
        let mut arrived = Vec::new();
        while arrived.is_empty() {
            tokio::task::yield_now().await;
            inbox.take(&mut arrived);
        }
        match arrived.pop() {
            Some(Arrived::SlaveHello { link, said, .. }) => (far, link, said),
            other => panic!("{other:?}"),
        }
    }

    #[actix::test]
    async fn a_link_says_no_more_than_the_master_can_hear() {
        const FRAMES: usize = 20_000;
        let (context, inbox) = deaf_master();
        let (far, link, said) = slave_of(&context, &inbox).await;
        context.switchboard.trust(link);
        drop(said);
        let mut out = Vec::new();
        for through in 0..FRAMES as u64 {
            frame::encode(&Message::Ack { through, room_bytes: 0 }, &mut out);
        }
        let writing = actix::spawn(async move { far.write_all(&out).await.map(|()| far) });
        let waits = || inbox.len();
        while waits() < UNHEARD_MAX {
            tokio::task::yield_now().await;
        }
        // Whatever else would be read is read within this.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(waits(), UNHEARD_MAX);
        // What is heard makes room for more, and all of it comes.
        let mut heard = 0;
        while heard < FRAMES {
            assert!(waits() <= UNHEARD_MAX);
            let mut arrived = Vec::new();
            inbox.take(&mut arrived);
            heard += arrived.len();
            drop(arrived);
            tokio::task::yield_now().await;
        }
        writing.await.unwrap().unwrap();
    }

    #[actix::test]
    async fn a_link_that_waits_to_be_heard_takes_no_turns() {
        let (context, inbox) = deaf_master();
        let (far, link, said) = slave_of(&context, &inbox).await;
        let mut out = Vec::new();
        frame::encode(&Message::Control(Control::Probe), &mut out);
        far.write_all(&out).await.unwrap();
        let turns = || context.switchboard.turns.classes().map(|(_, turns)| turns).sum::<u64>();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        let before = turns();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(turns(), before, "it asks again and again");
        drop(said);
        let mut arrived = Vec::new();
        while arrived.is_empty() {
            tokio::task::yield_now().await;
            inbox.take(&mut arrived);
        }
        assert!(matches!(&arrived[..], [Arrived::Slave { link: its, .. }] if *its == link), "{arrived:?}");
    }

    #[actix::test]
    async fn a_panic_in_a_session_gives_its_place_back_and_ends_nothing_else() {
        let (context, inbox) = deaf_master();
        let board = Rc::clone(&context.switchboard);
        board.limits.connections.set(1);
        let session = SessionId(board.next_id());
        let panicked = actix::spawn(async move {
            let _counted = Counted(Rc::clone(&context.switchboard));
            let _guard = SessionGuard::open(
                &context,
                Session::resp(session, Outbox::default(), &context.switchboard.answers),
            );
            panic!("on purpose");
        });
        assert!(panicked.await.is_err_and(|error| error.is_panic()));
        assert_eq!(board.limits.connections.get(), 0);
        let mut arrived = Vec::new();
        inbox.take(&mut arrived);
        assert!(
            matches!(&arrived[..], [Arrived::Opened(_), Arrived::Closed(closed)] if *closed == session),
            "{arrived:?}"
        );
    }
}
