//! The client library: typed calls over one multiplexed link, which finds the active master by itself.
//!
//! [`Client`] is a cheap handle; one background task owns the socket, the frames and the clock, and does what
//! the machine in `dsm_protocol::machine::client` decides. It keeps no value and never retries a write that may
//! have been executed. Plain tokio, no actor. Source: `docs/ARCHITECTURE.md`, "The client".

use crate::address;
pub use crate::client_error::{ClientError, Failure, MasterFailure, Unreached};
use crate::config::VALUE_BYTES_MAX;
use crate::dial::{self, DialError, Greeted};
use crate::env::{OsStream, Tls, TlsFiles};
use crate::secrets::{self, Secret, SecretSource};
use crate::shown::shown_error;
use bytes::{Bytes, BytesMut};
pub use dsm_protocol::command::{
    Command, ErrorWord, MasterName, MembersOrder, Reply, ReplyError, KEY_MAX, VALUE_MAX_DEFAULT,
};
use dsm_protocol::command::{ComparedChange, Comparison, Consequence, Lifetime};
use dsm_protocol::frame::{self, About, Incoming, Unframer};
pub use dsm_protocol::ids::Version;
use dsm_protocol::ids::{LinkId, Millis, RequestId, SlaveId};
use dsm_protocol::machine::client::{self as machine, Effect, Event, FailureCause, Outcome, RequestKind};
use dsm_protocol::message::{Control, Hello, HelloRole, Message, Request};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The longest answer that is accepted, in bytes: the limit of the wire's general messages.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Room for one read from the socket, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// A buffer with less room than this gets new room before the next read, in bytes.
const READ_ROOM_MIN: usize = 4 * 1024;

/// Reads from the socket before other work gets its turn.
const READS_MAX: usize = 16;

/// Calls taken from the queue before other work gets its turn.
const CALLS_MAX: usize = 1024;

/// Values up to this size are copied out of the read buffer, so that keeping one does not keep the buffer.
const COPY_BYTES_MAX: usize = 8 * 1024;

/// An output buffer that grew beyond this is given back once it is empty, in bytes.
const KEPT_OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// How a [`Client`] behaves. `ClientConfig::default()` suits a cluster on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The masters' addresses as `host:port`, the primary's first. Write them as the masters advertise them: a
    /// standby's redirect names that address. `unix:/path` reaches a master on this machine; a redirect never names one, so
    /// the next address is tried instead.
    pub masters: Vec<String>,
    /// Certificates: if they name a file, every connection over TCP is with TLS, unless an address begins with `plain:`. A master
    /// may want that a client has its own. Default: none.
    pub tls: TlsFiles,
    /// The secret of native clients, which both sides prove: a master without it is not talked to. Default: none.
    pub secret: Option<SecretSource>,
    /// From a call to its end, whatever happens in between. Default 2 s.
    pub request_timeout: Duration,
    /// From the first packet to the master's Welcome. It is less while a call waits and another master can be tried.
    /// Default 2 s.
    pub connect_timeout: Duration,
    /// The first pause when no master answers; it doubles. Default 10 ms.
    pub backoff_min: Duration,
    /// The longest pause when no master answers. Default 2 s.
    pub backoff_max: Duration,
    /// Requests in flight; further calls wait, up to `request_timeout`. Default 10,000.
    pub requests_max: usize,
    /// Bytes of keys and values of the requests in flight; further calls wait. Default 64 MiB.
    pub request_bytes_max: usize,
    /// The longest value the masters take, in bytes, up to 1 GiB. Default 16 MiB.
    pub value_max: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            masters: vec!["127.0.0.1:12345".to_owned(), "127.0.0.1:12346".to_owned()],
            tls: TlsFiles::default(),
            secret: None,
            request_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_secs(2),
            requests_max: 10_000,
            request_bytes_max: 64 * 1024 * 1024,
            value_max: VALUE_MAX_DEFAULT,
        }
    }
}

/// The master that serves a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Serving {
    /// Its place in [`ClientConfig::masters`], from 0: the first one is the primary.
    pub place: usize,
}

impl Serving {
    /// Whether this is the first one of [`ClientConfig::masters`].
    pub fn is_primary(self) -> bool {
        self.place == 0
    }
}

/// A connection to the store. Clones share one link; the link is closed when the last of them is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    calls: mpsc::UnboundedSender<Call>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    serving: watch::Receiver<Option<usize>>,
    config: ClientConfig,
}

/// A request on its way to the background task. Their number is bounded by the permits they hold.
struct Call {
    command: Command,
    answer: oneshot::Sender<Result<Reply, ClientError>>,
    permits: Permits,
    /// When it was asked for.
    begun: Instant,
    /// The link over which it was sent last, and the place of its end in that link's bytes.
    given: Option<(LinkId, u64)>,
}

/// Permits for one request in flight, and for its bytes.
type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("masters", &self.shared.config.masters).finish_non_exhaustive()
    }
}

impl Client {
    /// Starts a client and returns at once; the first call waits for the connection.
    ///
    /// ```
    /// use dsm::client::{Client, ClientConfig};
    /// use dsm::embed::{self, Doors, LocalConfig};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let log = directory.path().join("kv_store.log");
    /// // A cluster to talk to: on a thread of its own, for this program runs no actors.
    /// let config = LocalConfig { doors: Doors::Loopback, ..LocalConfig::new(log, 1) };
    /// let start = move || embed::start_local(config);
    /// let (masters, cluster) = embed::on_own_thread(start, embed::LocalCluster::addresses).await?;
    ///
    /// let client = Client::connect(ClientConfig { masters, ..ClientConfig::default() })?;
    /// client.put("user1", "Alice").await?;
    /// assert_eq!(client.get("user1").await?, Some("Alice".into()));
    /// assert_eq!(client.get("nobody").await?, None);
    /// let too_long = client.put("user1", vec![0; 17 << 20]).await.unwrap_err();
    /// assert!(!too_long.is_indeterminate(), "it was certainly not executed");
    /// # cluster.stop().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError::NotExecuted`] with [`Failure::Invalid`]: `config.masters` is empty, `config.value_max` is above 1 GiB,
    /// or there is no tokio runtime here; with [`Failure::Tls`] or [`Failure::Secret`]: a file of `config.tls` or
    /// `config.secret` is of no use.
    pub fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let invalid = |why| Err(ClientError::not_executed(Failure::Invalid(why)));
        if config.masters.is_empty() {
            return invalid("the client is told of no master");
        }
        if config.value_max as u64 > VALUE_BYTES_MAX {
            return invalid("no master takes values of more than 1 GiB");
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return invalid("a client needs a tokio runtime around it");
        };
        let tls = config.tls.is_on().then(|| Tls::for_client(&config.tls)).transpose();
        let tls = tls.map_err(|why| ClientError::not_executed(Failure::Tls(why)))?;
        let secret = secrets::of_client(config.secret.as_ref());
        let secret = secret.map_err(|why| ClientError::not_executed(Failure::Secret(why)))?;
        let is_private = |master: &String| address::is_private_way(master, tls.is_some());
        if secret.is_some() && !config.masters.iter().all(is_private) {
            return invalid(
                "a secret is proved to masters on other machines only over TLS (--tls-ca): whoever is on the way could \
                 take over the connection",
            );
        }
        let (calls, queue) = mpsc::unbounded_channel();
        let (serving_sender, serving) = watch::channel(None);
        let driver = Driver::new(&config, (tls, secret), serving_sender);
        runtime.spawn(driver.run(queue));
        Ok(Client {
            shared: Arc::new(Shared {
                calls,
                requests: Arc::new(Semaphore::new(config.requests_max.clamp(1, Semaphore::MAX_PERMITS))),
                bytes: Arc::new(Semaphore::new(byte_permits_max(&config))),
                serving,
                config,
            }),
        })
    }

    /// The value of `key`; `None` when there is none.
    ///
    /// # Errors
    /// Only [`ClientError::NotExecuted`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        match self.execute(Command::Get { key: key.into() }).await? {
            Reply::Value(value) => Ok(Some(unpinned(value))),
            Reply::NotFound => Ok(None),
            _ => Err(ClientError::not_executed(Failure::Protocol)),
        }
    }

    /// The value of `key` and the version of the write that left it, for [`compare_and_set`](Client::compare_and_set); `None` when
    /// there is none.
    ///
    /// # Errors
    /// Only [`ClientError::NotExecuted`].
    pub async fn get_versioned(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<Option<(Bytes, Version)>, ClientError> {
        let wrong = || ClientError::not_executed(Failure::Protocol);
        let Reply::Values(told) = self.execute(Command::GetVersioned { key: key.into() }).await? else {
            return Err(wrong());
        };
        match <[Option<Bytes>; 2]>::try_from(told) {
            Ok([None, _]) => Ok(None),
            Ok([Some(value), Some(version)]) => {
                let version = std::str::from_utf8(&version).ok().and_then(|version| version.parse().ok());
                Ok(Some((unpinned(value), version.ok_or_else(wrong)?)))
            }
            Ok([Some(_), None]) | Err(_) => Err(wrong()),
        }
    }

    /// Writes one key if it has that version, or is not there if that is `None`; whether it was written.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        version: Option<Version>,
    ) -> Result<bool, ClientError> {
        let makes = Consequence::Set { value: value.into(), life: Lifetime::Endless, answers_old: false };
        let change = Box::new(ComparedChange { when: Comparison::Version(version), makes });
        match self.execute(Command::Compare { key: key.into(), change }).await? {
            Reply::Done => Ok(true),
            Reply::NotFound => Ok(false),
            _ => Err(ClientError::Indeterminate { cause: Failure::Protocol }),
        }
    }

    /// The values of `keys`, in their order, each read by itself.
    ///
    /// # Errors
    /// Only [`ClientError::NotExecuted`].
    pub async fn get_many(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, ClientError> {
        let asked = keys.len();
        match self.execute(Command::GetMany { keys }).await? {
            Reply::Values(values) if values.len() == asked => Ok(values),
            _ => Err(ClientError::not_executed(Failure::Protocol)),
        }
    }

    /// Writes one key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), ClientError> {
        self.change(Command::Put { key: key.into(), value: value.into() }).await
    }

    /// Writes several keys, all or none of them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put_many(&self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), ClientError> {
        self.change(Command::PutMany { pairs }).await
    }

    /// Deletes one key; whether it existed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, ClientError> {
        Ok(self.delete_many(vec![key.into()]).await? > 0)
    }

    /// Deletes several keys, all or none of them; the number of those that existed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_many(&self, keys: Vec<Bytes>) -> Result<u64, ClientError> {
        match self.execute(Command::Delete { keys }).await? {
            Reply::Count(count) => Ok(count),
            _ => Err(ClientError::Indeterminate { cause: Failure::Protocol }),
        }
    }

    /// Whether `key` exists.
    ///
    /// # Errors
    /// Only [`ClientError::NotExecuted`].
    pub async fn exists(&self, key: impl Into<Bytes>) -> Result<bool, ClientError> {
        Ok(self.count(Command::Exists { keys: vec![key.into()] }).await? > 0)
    }

    /// The number of keys.
    ///
    /// # Errors
    /// Only [`ClientError::NotExecuted`].
    pub async fn key_count(&self) -> Result<u64, ClientError> {
        self.count(Command::KeyCount).await
    }

    /// All keys that match the glob `pattern`, in any order.
    ///
    /// # Errors
    /// Only [`ClientError::NotExecuted`]: among others if there are more than 65,536 of them.
    pub async fn keys(&self, pattern: impl Into<Bytes>) -> Result<Vec<Bytes>, ClientError> {
        match self.execute(Command::Keys { pattern: pattern.into() }).await? {
            Reply::Values(keys) => Ok(keys.into_iter().flatten().collect()),
            _ => Err(ClientError::not_executed(Failure::Protocol)),
        }
    }

    /// The next part of all keys, or of those that match `pattern`, and the cursor with which to go on: 0 begins, and at the end there
    /// is none. About `count` keys are looked at. A key that is there from the beginning to the end is shown, whatever happens
    /// meanwhile to the masters.
    ///
    /// # Errors
    /// Only [`ClientError::NotExecuted`].
    pub async fn scan(
        &self,
        cursor: u64,
        pattern: Option<Bytes>,
        count: u32,
    ) -> Result<(Option<u64>, Vec<Bytes>), ClientError> {
        match self.execute(Command::Scan { cursor, pattern, count, strings: true }).await? {
            Reply::Page { next, keys } => Ok(((next != 0).then_some(next), keys)),
            _ => Err(ClientError::not_executed(Failure::Protocol)),
        }
    }

    /// The state of the master at the other end, in the text form of Redis' INFO: the active one if it can be
    /// found, else any that answers.
    ///
    /// # Errors
    /// Only [`ClientError::NotExecuted`].
    pub async fn status(&self) -> Result<String, ClientError> {
        match self.execute(Command::Status).await? {
            Reply::Text(text) => Ok(text),
            _ => Err(ClientError::not_executed(Failure::Protocol)),
        }
    }

    /// Asks the active master to hand over to its standby.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn failover(&self) -> Result<(), ClientError> {
        self.change(Command::Failover).await
    }

    /// Asks the active master to move the copies of a slave to others and to let it go. Done when that has begun; INFO says how
    /// far it is.
    ///
    /// # Errors
    /// See [`ClientError`]. Refused for a name that no active slave has, and for a slave that cannot be spared.
    pub async fn remove_slave(&self, slave: SlaveId) -> Result<(), ClientError> {
        self.change(Command::RemoveSlave { id: slave }).await
    }

    /// Asks the active master to change which masters keep the log. Done when that has begun for good: whoever leads goes on with it,
    /// and INFO says how far it is (`members_change`).
    ///
    /// # Errors
    /// See [`ClientError`]. Refused where the log is one file, for masters that are not known, and where no majority would be alive.
    pub async fn change_members(&self, order: MembersOrder) -> Result<(), ClientError> {
        self.change(Command::ChangeMembers { order }).await
    }

    /// Sends any command and returns its result, which is never [`Reply::Error`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn execute(&self, command: Command) -> Result<Reply, ClientError> {
        self.check(&command).map_err(|why| ClientError::not_executed(Failure::Invalid(why)))?;
        let (answer, result) = oneshot::channel();
        let begun = Instant::now();
        let permits = self.permits(&command).await?;
        let stopped = || ClientError::not_executed(Failure::Stopped);
        let is_write = command.is_write();
        let call = Call { command, answer, permits, begun, given: None };
        self.shared.calls.send(call).map_err(|_| stopped())?;
        match result.await {
            Ok(result) => result,
            Err(_) if is_write => Err(ClientError::Indeterminate { cause: Failure::Stopped }),
            Err(_) => Err(stopped()),
        }
    }

    /// The master that serves now, as far as is known; `None` while the client looks for one.
    pub fn serving(&self) -> Option<Serving> {
        self.shared.serving.borrow().map(|place| Serving { place })
    }

    /// Waits until a master serves, at most for `limit`.
    pub async fn wait_serving(&self, limit: Duration) -> Option<Serving> {
        self.wait_until(limit, |serving| serving.is_some()).await
    }

    /// Waits until a master other than `left` serves, at most for `limit`; gives the one that serves then.
    pub async fn wait_serving_other(&self, left: Option<Serving>, limit: Duration) -> Option<Serving> {
        self.wait_until(limit, |serving| serving.is_some() && *serving != left).await
    }

    async fn wait_until(&self, limit: Duration, met: impl Fn(&Option<Serving>) -> bool) -> Option<Serving> {
        let mut serving = self.shared.serving.clone();
        let met = |place: &Option<usize>| met(&place.map(|place| Serving { place }));
        // A timeout or a stopped task ends the wait; then the last known state is returned.
        let _ = tokio::time::timeout(limit, serving.wait_for(met)).await;
        self.serving()
    }

    async fn change(&self, command: Command) -> Result<(), ClientError> {
        match self.execute(command).await? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Indeterminate { cause: Failure::Protocol }),
        }
    }

    async fn count(&self, command: Command) -> Result<u64, ClientError> {
        match self.execute(command).await? {
            Reply::Count(count) => Ok(count),
            _ => Err(ClientError::not_executed(Failure::Protocol)),
        }
    }

    /// Refuses requests for which a master would cut the link: a cut link would make other writes unknown.
    fn check(&self, command: &Command) -> Result<(), &'static str> {
        let value_max = self.shared.config.value_max;
        let operands = command.operands();
        // Each key and each value has its length before it, of 5 bytes at most.
        let encoded = operands.payload_bytes() + 10 * operands.keys() + 64;
        if operands.lacks_keys() {
            Err("no key given")
        } else if operands.longest_key() > KEY_MAX {
            Err("the key is longer than 64 KiB")
        } else if operands.longest_value() > value_max {
            Err("the value is longer than value_max (--max-value)")
        } else if encoded > frame::body_max(value_max) {
            Err("the request is too long")
        } else {
            Ok(())
        }
    }

    async fn permits(&self, command: &Command) -> Result<Permits, ClientError> {
        let bytes = command.payload_bytes().min(byte_permits_max(&self.shared.config)) as u32;
        let one = || self.shared.requests.clone();
        let many = || self.shared.bytes.clone();
        if let Ok(request) = one().try_acquire_owned() {
            if let Ok(bytes) = many().try_acquire_many_owned(bytes) {
                return Ok((request, bytes));
            }
        }
        let wait =
            async { Some((one().acquire_owned().await.ok()?, many().acquire_many_owned(bytes).await.ok()?)) };
        match tokio::time::timeout(self.shared.config.request_timeout, wait).await {
            Ok(Some(permits)) => Ok(permits),
            Ok(None) => Err(ClientError::not_executed(Failure::Stopped)),
            Err(_) => Err(ClientError::not_executed(Failure::Overloaded)),
        }
    }
}

/// The number of byte permits: at least one, at most what a single acquisition can take.
fn byte_permits_max(config: &ClientConfig) -> usize {
    config.request_bytes_max.clamp(1, (u32::MAX as usize).min(Semaphore::MAX_PERMITS))
}

fn unpinned(value: Bytes) -> Bytes {
    if value.len() <= COPY_BYTES_MAX {
        Bytes::copy_from_slice(&value)
    } else {
        value
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<(OsStream, Greeted), DialError>> + Send>>;

/// The background task: sockets, frames and time for the machine.
struct Driver {
    machine: machine::ClientMachine,
    answer_bytes_max: usize,
    masters: Vec<String>,
    tls: Option<Tls>,
    secret: Option<Secret>,
    request_timeout: Duration,
    connect_timeout: Duration,
    origin: Instant,
    serving: watch::Sender<Option<usize>>,
    last_request: u64,
    calls: foldhash::HashMap<RequestId, Call>,
    connecting: Option<(LinkId, usize, Connecting)>,
    socket: Option<Socket>,
    /// The last failure at each master, for error messages.
    failures: Vec<MasterFailure>,
    effects: machine::Effects,
}

struct Socket {
    link: LinkId,
    master: usize,
    stream: OsStream,
    input: BytesMut,
    unframer: Unframer,
    output: Vec<u8>,
    /// How many bytes of `output` the kernel has taken.
    written: usize,
    /// Bytes that the kernel has taken in this link's life.
    written_total: u64,
    /// Bytes encoded in this link's life.
    encoded_total: u64,
    /// Requests that the kernel has not taken whole yet, with the place of their end.
    unsent: VecDeque<(u64, RequestId)>,
    /// The permits of those whose deadline has passed, by the same place.
    abandoned: BTreeMap<u64, Permits>,
}

enum Wake {
    Calls(usize),
    Traffic(io::Result<Option<usize>>),
    Connected(Result<(OsStream, Greeted), DialError>),
    Timer,
}

impl Driver {
    fn new(
        config: &ClientConfig,
        (tls, secret): (Option<Tls>, Option<Secret>),
        serving: watch::Sender<Option<usize>>,
    ) -> Driver {
        // A program that uses the library has no `Env`; the seed decides only the jitter.
        #[allow(clippy::disallowed_methods)]
        let settings = machine::Settings {
            // Masters are told apart by what they call themselves.
            masters: config.masters.iter().map(|master| address::name(master).to_owned()).collect(),
            request_timeout_ms: to_millis(config.request_timeout),
            connect_timeout_ms: to_millis(config.connect_timeout),
            backoff_min_ms: to_millis(config.backoff_min).max(1),
            backoff_max_ms: to_millis(config.backoff_max).max(1),
            seed: rand::random(),
        };
        Driver {
            machine: machine::ClientMachine::new(Millis(0), settings),
            answer_bytes_max: ANSWER_BYTES_MAX.max(frame::body_max(config.value_max)),
            masters: config.masters.clone(),
            tls,
            secret,
            request_timeout: config.request_timeout,
            connect_timeout: config.connect_timeout,
            origin: Instant::now(),
            serving,
            last_request: 0,
            calls: foldhash::HashMap::default(),
            connecting: None,
            socket: None,
            failures: vec![MasterFailure::NotTried; config.masters.len()],
            effects: Vec::new(),
        }
    }

    /// Runs until the last [`Client`] is dropped.
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Call>) {
        let mut batch = Vec::new();
        let timer = tokio::time::sleep_until(self.origin);
        tokio::pin!(timer);
        let mut armed = None;
        self.settle();
        loop {
            let wakeup = self.machine.wakeup();
            // Deadlines mostly move back: a timer that fires early costs less than one that is always re-armed.
            if let Some(due) = wakeup.filter(|due| armed.is_none_or(|armed| *due < armed)) {
                timer.as_mut().reset(self.origin + Duration::from_millis(due.0));
                armed = Some(due);
            }
            let wake = {
                let Driver { socket, connecting, .. } = &mut self;
                tokio::select! {
                    biased;
                    traffic = traffic(socket), if socket.is_some() => Wake::Traffic(traffic),
                    connected = connected(connecting), if connecting.is_some() => Wake::Connected(connected),
                    calls = queue.recv_many(&mut batch, CALLS_MAX) => Wake::Calls(calls),
                    () = &mut timer, if armed.is_some() => Wake::Timer,
                }
            };
            match wake {
                Wake::Calls(0) => return,
                Wake::Calls(_) => {}
                Wake::Traffic(Ok(Some(read))) => self.take_in(read),
                Wake::Traffic(Ok(None)) => {}
                Wake::Traffic(Err(error)) => self.link_ended(MasterFailure::system(error)),
                Wake::Connected(result) => self.connected(result),
                Wake::Timer => {
                    armed = None;
                    // What has arrived is read before deadlines are judged, because this process itself may have been
                    // paused.
                    self.drain();
                }
            }
            while batch.len() < CALLS_MAX {
                match queue.try_recv() {
                    Ok(call) => batch.push(call),
                    Err(_) => break,
                }
            }
            for call in batch.drain(..) {
                self.submit(call);
            }
            self.settle();
            self.flush();
            self.publish();
            // A busy socket must not starve the other tasks of this thread.
            tokio::task::consume_budget().await;
        }
    }

    fn now(&self) -> Millis {
        Millis(to_millis(self.origin.elapsed()))
    }

    fn step(&mut self, event: Event) {
        log::trace!("client event={event:?}");
        let now = self.now();
        let first = self.effects.len();
        self.machine.step(now, event, &mut self.effects);
        log::trace!("client effects={:?}", &self.effects[first..]);
    }

    fn submit(&mut self, call: Call) {
        let waited = call.begun.elapsed();
        if waited >= self.request_timeout {
            // Nothing was tried yet, and there is no time left to.
            let _ = call.answer.send(Err(ClientError::not_executed(Failure::Overloaded)));
            return;
        }
        self.last_request += 1;
        let request = RequestId(self.last_request);
        let kind = RequestKind::of(&call.command);
        self.calls.insert(request, call);
        self.step(Event::Submitted { request, kind, waited_ms: to_millis(waited) });
    }

    /// Ends a batch of events and performs its effects.
    fn settle(&mut self) {
        loop {
            self.step(Event::Tick);
            if self.effects.is_empty() {
                return;
            }
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                self.perform(effect);
            }
            if self.effects.is_empty() {
                // Keep the buffer.
                self.effects = effects;
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Connect { link, master } => {
                log::debug!("connecting master={} link={link}", self.masters[master]);
                if let MasterFailure::NotTried = self.failures[master] {
                    self.failures[master] = MasterFailure::NoAnswerYet;
                }
                let opening = open(
                    self.masters[master].clone(),
                    (self.tls.clone(), self.secret.clone()),
                    self.connect_timeout,
                );
                self.connecting = Some((link, master, Box::pin(opening)));
            }
            Effect::Close { link } => {
                let mut unsent = Vec::new();
                match (self.socket.take(), self.connecting.take()) {
                    (Some(socket), _) => {
                        unsent = socket.unsent.iter().map(|(_, request)| *request).collect();
                        self.failures[socket.master] = MasterFailure::Left;
                    }
                    (None, Some((_, master, _))) => self.failures[master] = MasterFailure::NotConnected,
                    (None, None) => {}
                }
                self.step(Event::Closed { link, unsent });
            }
            Effect::Send { link, request } => {
                let socket = self.socket.as_mut().filter(|socket| socket.link == link);
                let (Some(socket), Some(call)) = (socket, self.calls.get_mut(&request)) else {
                    unreachable!("the machine sends what has no outcome yet over a link that is open");
                };
                call.given = Some((link, socket.push(request, call.command.clone())));
            }
            Effect::Finish { request, outcome } => {
                let call = self.calls.remove(&request).expect("the machine finishes a request once");
                let result = match outcome {
                    Outcome::Result(reply) => Ok(reply),
                    Outcome::NotExecuted(cause) => {
                        Err(ClientError::NotExecuted { cause: self.failure(cause) })
                    }
                    Outcome::Unknown(cause) => Err(ClientError::Indeterminate { cause: self.failure(cause) }),
                };
                match (&mut self.socket, call.given) {
                    // Its bytes are still in the buffer, although no caller waits for it any more.
                    (Some(socket), Some((link, end)))
                        if socket.link == link && end > socket.written_total =>
                    {
                        socket.abandoned.insert(end, call.permits);
                    }
                    (Some(_) | None, _) => drop(call.permits),
                }
                // The caller may no longer wait.
                let _ = call.answer.send(result);
            }
        }
    }

    fn failure(&self, cause: FailureCause) -> Failure {
        match cause {
            FailureCause::Refused(error) => Failure::Refused(error),
            FailureCause::LinkLost => Failure::LinkLost,
            FailureCause::TimedOut => Failure::TimedOut(self.request_timeout),
            FailureCause::Unreachable => {
                let each = self.masters.iter().cloned().zip(self.failures.iter().cloned());
                Failure::Unreachable(Unreached::new(each.collect()))
            }
        }
    }

    fn connected(&mut self, result: Result<(OsStream, Greeted), DialError>) {
        let Some((link, master, _)) = self.connecting.take() else { return };
        match result {
            Ok((stream, Greeted { welcome, unread: input })) => {
                log::debug!("connected master={} link={link} {:?}", self.masters[master], welcome.state);
                self.failures[master] = MasterFailure::NotAnswered;
                self.socket = Some(Socket::new(link, master, stream, input));
                let state = welcome.state;
                let active_address = state.active_address;
                self.step(Event::Opened { link, active: state.active, active_address });
            }
            Err(failure) => {
                let failure = MasterFailure::from(failure);
                log::debug!(
                    "connecting failed master={} cause=\"{}\"",
                    self.masters[master],
                    shown_error(&failure)
                );
                self.failures[master] = failure;
                self.step(Event::Closed { link, unsent: Vec::new() });
            }
        }
    }

    fn link_ended(&mut self, why: MasterFailure) {
        if let Some(socket) = self.socket.take() {
            log::debug!("link ended master={} cause=\"{}\"", self.masters[socket.master], shown_error(&why));
            self.failures[socket.master] = why;
            let unsent = socket.unsent.iter().map(|(_, request)| *request).collect();
            self.step(Event::Closed { link: socket.link, unsent });
        }
    }

    /// Reads what the kernel has, up to a bound.
    fn drain(&mut self) {
        for _ in 0..READS_MAX {
            let Some(socket) = &mut self.socket else { return };
            socket.make_room();
            match socket.stream.try_read(&mut socket.input, usize::MAX) {
                Ok(read) => self.take_in(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.link_ended(MasterFailure::system(error)),
            }
        }
    }

    /// Handles `read` new bytes of input; 0 means that the master has closed the link.
    fn take_in(&mut self, read: usize) {
        let decoded = if read == 0 { Err(MasterFailure::Closed) } else { self.decode() };
        if let Err(why) = decoded {
            return self.link_ended(why);
        }
        // The beginning of an answer, perhaps of a long one.
        if let Some(link) =
            self.socket.as_ref().filter(|socket| !socket.input.is_empty()).map(|socket| socket.link)
        {
            self.step(Event::Heard { link });
        }
    }

    fn decode(&mut self) -> Result<(), MasterFailure> {
        let answer_max = self.answer_bytes_max;
        while let Some(socket) = &mut self.socket {
            let incoming =
                socket.unframer.next(&mut socket.input, answer_max).map_err(MasterFailure::Frame)?;
            let link = socket.link;
            match incoming {
                None => return Ok(()),
                Some(Incoming::Message(Message::Response { id, reply })) => {
                    self.step(Event::Answered { link, request: id, reply });
                }
                // Only that request fails.
                Some(Incoming::TooLong { about: About::Response(id), length }) => {
                    let why =
                        format!("the answer has {length} bytes, more than this client takes (value_max)");
                    // An answer to a write tells what it has changed.
                    let is_write = self.machine.is_write(id);
                    let word = if is_write { ErrorWord::Unknown } else { ErrorWord::Bad };
                    let reply = Reply::error(word, why);
                    self.step(Event::Answered { link, request: id, reply });
                }
                Some(Incoming::Message(Message::Control(Control::Reject { reason }))) => {
                    return Err(MasterFailure::rejected(&reason));
                }
                Some(Incoming::Message(Message::Control(Control::MasterState(state)))) if !state.active => {
                    self.step(Event::StoodBy { link, active_address: state.active_address });
                }
                Some(Incoming::Message(Message::Control(Control::MasterState(_)))) => {}
                Some(Incoming::Message(_) | Incoming::TooLong { .. }) => {
                    return Err(MasterFailure::NotForClients);
                }
            }
        }
        Ok(())
    }

    /// Writes as many encoded bytes as the kernel takes.
    fn flush(&mut self) {
        if let Some(socket) = &mut self.socket {
            if let Err(error) = socket.flush() {
                self.link_ended(MasterFailure::system(error));
                self.settle();
            }
        }
    }

    fn publish(&self) {
        let serving = self.machine.serving();
        self.serving.send_if_modified(|known| {
            let changed = *known != serving;
            if changed {
                log::info!("served by master={:?}", serving.map(|place| &self.masters[place]));
            }
            *known = serving;
            changed
        });
    }
}

impl Socket {
    fn new(link: LinkId, master: usize, stream: OsStream, input: BytesMut) -> Socket {
        Socket {
            link,
            master,
            stream,
            input,
            unframer: Unframer::default(),
            output: Vec::new(),
            written: 0,
            written_total: 0,
            encoded_total: 0,
            unsent: VecDeque::new(),
            abandoned: BTreeMap::new(),
        }
    }

    fn make_room(&mut self) {
        if self.input.capacity() - self.input.len() < READ_ROOM_MIN {
            self.input.reserve(READ_BYTES);
        }
    }

    /// Encodes a request; gives the place of its end.
    fn push(&mut self, id: RequestId, command: Command) -> u64 {
        let before = self.output.len();
        frame::encode_request(&Request { id, stream: 0, generation: 0, command }, &mut self.output);
        self.encoded_total += (self.output.len() - before) as u64;
        self.unsent.push_back((self.encoded_total, id));
        self.encoded_total
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            match self.stream.try_write(&self.output[self.written..]) {
                Ok(Some(written)) => {
                    self.written += written;
                    self.written_total += written as u64;
                }
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        while self.unsent.front().is_some_and(|(end, _)| *end <= self.written_total) {
            self.unsent.pop_front();
        }
        while self.abandoned.first_key_value().is_some_and(|(end, _)| *end <= self.written_total) {
            self.abandoned.pop_first();
        }
        if self.written == self.output.len() {
            self.written = 0;
            self.output.clear();
            if self.output.capacity() > KEPT_OUTPUT_BYTES_MAX {
                self.output = Vec::new();
            }
        }
        Ok(())
    }
}

/// Waits for bytes from the master, or for room to write. `Some` is the result of the read.
async fn traffic(socket: &mut Option<Socket>) -> io::Result<Option<usize>> {
    let Some(socket) = socket else { return std::future::pending().await };
    let pending = socket.written < socket.output.len();
    socket.make_room();
    let Socket { stream, input, .. } = socket;
    tokio::select! {
        biased;
        read = stream.read_at_most(input, usize::MAX) => read.map(Some),
        room = stream.writable(), if pending => room.map(|()| None),
    }
}

async fn connected(
    connecting: &mut Option<(LinkId, usize, Connecting)>,
) -> Result<(OsStream, Greeted), DialError> {
    match connecting {
        Some((_, _, opening)) => opening.await,
        None => std::future::pending().await,
    }
}

/// Connects and shakes hands.
async fn open(
    address: String,
    (tls, secret): (Option<Tls>, Option<Secret>),
    limit: Duration,
) -> Result<(OsStream, Greeted), DialError> {
    let mut stream = OsStream::connect(&address, tls.as_ref()).await?;
    stream.keep_alive(crate::config::TCP_KEEPALIVE_DEFAULT);
    let hello = Hello { cluster: None, role: HelloRole::Client };
    let credential = secret.map(secrets::fresh_credential);
    let greeted = dial::greet(&mut stream, (hello, credential), limit, || None).await?;
    Ok((stream, greeted))
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
