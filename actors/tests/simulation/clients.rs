//! Clients of a simulated cluster, whose history is recorded.
//!
//! They speak the Redis protocol or the native one over simulated streams, as any client library would: one connection,
//! the masters in turn, a time limit, and an honest account of what an answer or its absence means.

use crate::cluster::Cluster;
use crate::seed::Check;
use crate::witness::Witness;
use bytes::{Bytes, BytesMut};
use dsm::env::{Env, Stream};
use dsm_history::{check_counter, Action, Begun, ClientOperation, History, Increment, OperationOutcome};
use dsm_protocol::command::{Command, Condition, Lifetime, Replies, Reply, Transaction, Update};
use dsm_protocol::frame;
use dsm_protocol::handshake::greet;
use dsm_protocol::ids::{RequestId, Version};
use dsm_protocol::message::{Control, Hello, HelloRole, Message, Request};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// A key that is only incremented.
pub(crate) const COUNTER: &str = "counter";

/// The longest lifetime of a key that expires, in milliseconds.
pub(crate) const LIFETIME_MAX_MS: u64 = 500;

/// Whether all values of this key expire.
pub(crate) fn is_expiring(key: &[u8]) -> bool {
    key.starts_with(b"expiring")
}

/// How long the second key of a pair lives, in milliseconds: longer than any simulated world.
const PAIR_LIFETIME_MS: u64 = 86_400_000;

/// How many pairs there are.
pub(crate) const PAIRS: u64 = 2;

/// Two keys that are written together alone, always the same value.
pub(crate) fn pair_keys(number: u64) -> [Bytes; 2] {
    ["left", "right"].map(|side| Bytes::from(format!("pair-{side}{number}")))
}

/// Swaps the values of a pair in one transaction: it answers what both of them held. With `may` false it watches what is never
/// there.
fn swap_pair([left, right]: [Bytes; 2], value: Bytes, may: bool) -> Command {
    let get = |key: &Bytes| Command::Get { key: key.clone() };
    let (when, life) = (Condition::Always, Lifetime::For(PAIR_LIFETIME_MS));
    let update = Update::Set { value: value.clone(), when, life };
    let commands = vec![
        get(&left),
        get(&right),
        Command::Put { key: left, value },
        Command::Update { key: right, update },
    ];
    let nobodys = (Bytes::from_static(b"nobody writes this"), Some(Version::new(1, 1)));
    let watched = if may { Vec::new() } else { vec![nobodys] };
    Command::Transact { transaction: Box::new(Transaction { watched, commands }) }
}

/// A key all values of which expire.
pub(crate) fn expiring_key(number: u64) -> Bytes {
    Bytes::from(format!("expiring{number}"))
}

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest frame that a client takes, in bytes.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// How long a client that is at leisure looks whether its master has hung up: longer than that takes to reach it.
const LOOK: Duration = Duration::from_millis(70);

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Records what all clients do, in the order in which it happens.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Rc<Recording>);

/// What a read after a write of its own pipeline was answered, when that is not what was written.
struct Overtaken {
    client: u64,
    key: Bytes,
    /// When the last write of the pipeline in front of the read was invoked.
    written: u64,
    /// The same of those in front of it: it has superseded them.
    superseded: Vec<u64>,
    read: Option<Bytes>,
}

#[derive(Default)]
struct Recording {
    history: RefCell<History>,
    overtaken: RefCell<Vec<Overtaken>>,
    /// The first read that was answered with what its own pipeline writes after it.
    early: RefCell<Option<String>>,
    /// What was asked of [`COUNTER`].
    increments: RefCell<Vec<Increment>>,
    witness: Witness,
    /// Nothing happens at the same time in a simulated world: the order is a count.
    count: Cell<u64>,
    /// Answers by their first word.
    answers: RefCell<BTreeMap<String, u64>>,
    /// Acknowledged writes, by client.
    acknowledged: RefCell<BTreeMap<u64, u64>>,
}

impl Recorder {
    fn now(&self) -> u64 {
        self.0.count.set(self.0.count.get() + 1);
        self.0.count.get()
    }

    fn begin(&self, client: u64, key: &Bytes, action: Action) -> (Begun, u64) {
        let now = self.now();
        (self.0.history.borrow_mut().begin(client, key.clone(), action, now), now)
    }

    fn note(&self, answer: &str) {
        *self.0.answers.borrow_mut().entry(answer.to_owned()).or_default() += 1;
    }

    pub(crate) fn answers(&self) -> BTreeMap<String, u64> {
        self.0.answers.borrow().clone()
    }

    /// Records for a cluster that `witness` listens to.
    pub(crate) fn new(witness: &Witness) -> Self {
        Recorder(Rc::new(Recording { witness: witness.clone(), ..Recording::default() }))
    }

    /// Holds the order of each connection against the history: who pipelines reads its own earlier writes, or later ones
    /// of others, and none of its own later ones.
    pub(crate) fn check_order(&self) -> Result<(), String> {
        if let Some(early) = &*self.0.early.borrow() {
            return Err(early.clone());
        }
        let history = self.0.history.borrow();
        for overtaken in self.0.overtaken.borrow().iter() {
            let is_older = |operation: &ClientOperation| {
                let is_over =
                    operation.outcome == OperationOutcome::Done && operation.returned_ns < overtaken.written;
                is_over || overtaken.superseded.contains(&operation.invoked_ns)
            };
            let explains = history.operations().iter().any(|operation| {
                let gives = match (&operation.action, &overtaken.read) {
                    (Action::Write(value), Some(read)) => value == read,
                    (Action::WriteIf { value, done, .. }, Some(read)) => {
                        value == read && (*done || operation.outcome == OperationOutcome::Unknown)
                    }
                    (Action::Swap { value, .. }, read) => value == read,
                    (Action::Delete { .. }, None) => true,
                    (
                        Action::Write(_) | Action::WriteIf { .. } | Action::Delete { .. } | Action::Read(_),
                        _,
                    ) => false,
                };
                gives
                    && operation.key == overtaken.key
                    && operation.outcome != OperationOutcome::NotExecuted
                    && !is_older(operation)
            });
            if !explains {
                let Overtaken { client, key, written, read, .. } = overtaken;
                return Err(format!(
                    "client {client} reads {read:?} from {key:?} after its own write of {written}, which is later"
                ));
            }
        }
        Ok(())
    }

    /// Holds the increments against what the counter holds at the end.
    pub(crate) fn check_counter(&self, last: u64) -> Result<(), String> {
        check_counter(&self.0.increments.borrow(), last).map(drop).map_err(|violation| violation.to_string())
    }

    /// Notes that an increment is about to be asked, whose outcome is unknown until it is answered.
    fn begin_increment(&self, client: u64) -> usize {
        let (invoked_ns, outcome) = (self.now(), OperationOutcome::Unknown);
        let mut increments = self.0.increments.borrow_mut();
        increments.push(Increment { client, outcome, answered: 0, invoked_ns, returned_ns: u64::MAX });
        increments.len() - 1
    }

    fn finish_increment(&self, number: usize, outcome: OperationOutcome, answered: u64, now: u64) {
        let increment = &mut self.0.increments.borrow_mut()[number];
        (increment.outcome, increment.answered, increment.returned_ns) = (outcome, answered, now);
    }

    pub(crate) fn history(&self) -> History {
        self.0.history.borrow().clone()
    }

    /// How many writes were acknowledged so far, by client.
    pub(crate) fn acknowledged(&self) -> BTreeMap<u64, u64> {
        self.0.acknowledged.borrow().clone()
    }

    fn note_acknowledged(&self, client: u64, writes: u64) {
        *self.0.acknowledged.borrow_mut().entry(client).or_default() += writes;
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    Integer(i64),
    Value(Option<Bytes>),
    Values(Vec<Option<Bytes>>),
    Error(String),
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoAnswer;

/// A connection.
pub(crate) struct Connection {
    stream: Stream,
    input: BytesMut,
    /// Of a native connection.
    native: Option<Native>,
}

/// What a native connection keeps: its answers come in any order.
#[derive(Default)]
struct Native {
    asked: Cell<u64>,
    answered: u64,
    early: BTreeMap<u64, Answer>,
}

impl Connection {
    pub(crate) async fn open(env: &Env, address: &str) -> Option<Connection> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, env.connect(address)).await.ok()?.ok()?;
        Some(Connection { stream, input: BytesMut::new(), native: None })
    }

    /// Opens a native one, which ends with the handshake.
    pub(crate) async fn open_native(env: &Env, address: &str) -> Option<Connection> {
        let mut connection = Self::open(env, address).await?;
        let mut greeting = Vec::new();
        greet(Hello { cluster: None, role: HelloRole::Client }, &mut greeting);
        connection.write(&greeting).await.ok()?;
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        while !matches!(connection.frame(deadline).await.ok()?, Message::Control(Control::Welcome(_))) {}
        connection.native = Some(Native::default());
        Some(connection)
    }

    pub(crate) async fn send(&self, requests: &[Vec<Bytes>]) -> Result<(), NoAnswer> {
        let mut out = Vec::new();
        if let Some(native) = &self.native {
            for words in requests {
                let id = RequestId(native.asked.replace(native.asked.get() + 1));
                let request = Request { id, stream: 0, generation: 0, command: command(words) };
                frame::encode_request(&request, &mut out);
            }
            return self.write(&out).await;
        }
        for request in requests {
            out.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
            for word in request {
                out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                out.extend_from_slice(word);
                out.extend_from_slice(b"\r\n");
            }
        }
        self.write(&out).await
    }

    async fn write(&self, bytes: &[u8]) -> Result<(), NoAnswer> {
        let writing = tokio::time::timeout(ANSWER_TIMEOUT, self.stream.write_all(bytes));
        writing.await.map_err(|_| NoAnswer)?.map_err(|_| NoAnswer)
    }

    async fn read(&mut self, deadline: tokio::time::Instant) -> Result<(), NoAnswer> {
        self.input.reserve(4096);
        match tokio::time::timeout_at(deadline, self.stream.read(&mut self.input)).await {
            Ok(Ok(1..)) => Ok(()),
            Ok(Ok(0) | Err(_)) | Err(_) => Err(NoAnswer),
        }
    }

    async fn frame(&mut self, deadline: tokio::time::Instant) -> Result<Message, NoAnswer> {
        loop {
            match frame::decode(&mut self.input, FRAME_BYTES_MAX).map_err(|_| NoAnswer)? {
                Some(message) => return Ok(message),
                None => self.read(deadline).await?,
            }
        }
    }

    /// The answer to the oldest request that has none.
    async fn native_answer(&mut self, deadline: tokio::time::Instant) -> Result<Answer, NoAnswer> {
        loop {
            let native = self.native.as_mut().expect("a native connection");
            if let Some(answer) = native.early.remove(&native.answered) {
                native.answered += 1;
                return Ok(answer);
            }
            if let Message::Response { id, reply } = self.frame(deadline).await? {
                let native = self.native.as_mut().expect("a native connection");
                native.early.insert(id.0, answer_of(reply));
            }
        }
    }

    /// Whether the master has hung up, as far as one hears that within [`LOOK`].
    async fn has_ended(&mut self) -> bool {
        let deadline = tokio::time::Instant::now() + LOOK;
        self.read(deadline).await.is_err() && tokio::time::Instant::now() < deadline
    }

    pub(crate) async fn answer(&mut self) -> Result<Answer, NoAnswer> {
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        if self.native.is_some() {
            return self.native_answer(deadline).await;
        }
        loop {
            if let Some((answer, length)) = parse(&self.input) {
                drop(self.input.split_to(length));
                return Ok(answer);
            }
            self.read(deadline).await?;
        }
    }
}

/// What the words of a request are natively.
fn command(words: &[Bytes]) -> Command {
    let (name, rest) = words.split_first().expect("a request has a name");
    match (&name[..], rest) {
        (b"GET", [key]) => Command::Get { key: key.clone() },
        (b"MGET", keys) => Command::GetMany { keys: keys.to_vec() },
        (b"SET", [key, value]) => Command::Put { key: key.clone(), value: value.clone() },
        (b"MSET", pairs) => {
            let pairs = pairs.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
            Command::PutMany { pairs }
        }
        (b"DEL", keys) => Command::Delete { keys: keys.to_vec() },
        (b"INCR", [key]) => Command::Update { key: key.clone(), update: Update::Add { number: 1 } },
        (b"GETDEL", [key]) => Command::Take { key: key.clone() },
        (b"SET", [key, value, option]) => {
            let (key, value) = (key.clone(), value.clone());
            let when = match &option[..] {
                b"NX" => Condition::IfAbsent,
                b"XX" => Condition::IfPresent,
                _ => {
                    let (when, life) = (Condition::Always, Lifetime::Endless);
                    return Command::Swap { key, value, when, life };
                }
            };
            Command::Update { key, update: Update::Set { value, when, life: Lifetime::Endless } }
        }
        (b"PSETEX", [key, ms, value]) => {
            let ms = std::str::from_utf8(ms).ok().and_then(|text| text.parse().ok()).expect("milliseconds");
            let (value, when, life) = (value.clone(), Condition::Always, Lifetime::For(ms));
            Command::Update { key: key.clone(), update: Update::Set { value, when, life } }
        }
        (b"PAIR", [left, right, value, may]) => {
            swap_pair([left.clone(), right.clone()], value.clone(), &may[..] == b"yes")
        }
        (other, _) => panic!("no client here asks {other:?}"),
    }
}

fn answer_of(reply: Reply) -> Answer {
    match reply {
        Reply::Done => Answer::Ok,
        Reply::Value(value) => Answer::Value(Some(value)),
        Reply::NotFound => Answer::Value(None),
        Reply::Values(values) => Answer::Values(values),
        Reply::Count(count) => Answer::Integer(count as i64),
        Reply::Integer(number) => Answer::Integer(number),
        // Nobody asks for it here.
        Reply::Page { keys, .. } => Answer::Values(keys.into_iter().map(Some).collect()),
        Reply::Text(text) => Answer::Value(Some(Bytes::from(text))),
        // Of a pair: what both of its keys held.
        Reply::Many(Replies(replies)) => {
            let values = replies.into_iter().filter_map(|reply| match answer_of(reply) {
                Answer::Value(value) => Some(value),
                Answer::Ok | Answer::Integer(_) | Answer::Values(_) | Answer::Error(_) => None,
            });
            Answer::Values(values.collect())
        }
        Reply::Versions(versions) => Answer::Integer(versions.len() as i64),
        Reply::Encoded(answer) => Answer::Value(Some(answer)),
        Reply::Error(error) => Answer::Error(format!("{} {}", error.word.as_str(), error.detail)),
    }
}

fn line(input: &[u8]) -> Option<(&[u8], usize)> {
    let end = input.windows(2).position(|window| window == b"\r\n")?;
    Some((&input[..end], end + 2))
}

fn number(text: &[u8]) -> i64 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("a number in an answer")
}

/// One answer and its length, if it is whole.
fn parse(input: &[u8]) -> Option<(Answer, usize)> {
    let (&kind, rest) = input.split_first()?;
    let (head, used) = line(rest)?;
    let used = used + 1;
    Some(match kind {
        b'+' => (Answer::Ok, used),
        b'-' => (Answer::Error(String::from_utf8_lossy(head).into_owned()), used),
        b':' => (Answer::Integer(number(head)), used),
        b'$' => {
            let length = number(head);
            if length < 0 {
                return Some((Answer::Value(None), used));
            }
            let length = length as usize;
            let value = input.get(used..used + length)?;
            input.get(used + length..used + length + 2)?;
            (Answer::Value(Some(Bytes::copy_from_slice(value))), used + length + 2)
        }
        b'*' => {
            let mut values = Vec::new();
            let mut at = used;
            for _ in 0..number(head) {
                let (value, length) = parse(&input[at..])?;
                let Answer::Value(value) = value else { panic!("a list of something else than values") };
                values.push(value);
                at += length;
            }
            (Answer::Values(values), at)
        }
        other => panic!("an answer begins with {:?}", other as char),
    })
}

/// What an error means; `None` when nothing that was asked here can lead to it.
fn outcome_of(error: &str) -> Option<OperationOutcome> {
    match error.split(' ').next().unwrap_or_default() {
        "UNKNOWN" => Some(OperationOutcome::Unknown),
        "STANDBY" | "NOQUORUM" | "LOADING" | "READONLY" | "BUSY" | "OOM" => {
            Some(OperationOutcome::NotExecuted)
        }
        _ => None,
    }
}

/// Who deletes what expires, in the history.
const NOBODY: u64 = u64::MAX;

/// What a client does.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    pub(crate) keys: u64,
    /// In thousandths.
    pub(crate) writes: u64,
    pub(crate) deletes: u64,
    pub(crate) many: u64,
    /// Of the writes and deletes: those that are decided by what is there.
    pub(crate) updates: u64,
    /// The most requests under way on its connection.
    pub(crate) pipeline: u64,
    /// The longest pause between requests, in milliseconds.
    pub(crate) think_ms: u64,
    /// Extra bytes of a value.
    pub(crate) value_bytes: u64,
}

impl Habits {
    /// Of one who is only told what to read.
    pub(crate) fn reader(keys: u64) -> Self {
        Habits { keys, writes: 0, deletes: 0, many: 0, updates: 0, pipeline: 1, think_ms: 0, value_bytes: 0 }
    }
}

/// A request for one key.
struct Part {
    begun: Begun,
    key: Bytes,
    invoked: u64,
}

enum Asked {
    Read(Part),
    ReadMany(Vec<Part>),
    Write(Vec<(Part, Bytes)>),
    Delete(Part),
    WriteIf(Part, Bytes),
    Swap(Part, Option<Bytes>),
    /// Its number among the increments.
    Increment(usize),
    /// Both keys of a pair, and whether it may be executed.
    Pair([Part; 2], Bytes, bool),
}

impl Asked {
    fn begun(&self) -> Vec<Begun> {
        match self {
            Asked::Read(part) | Asked::Delete(part) => vec![part.begun],
            Asked::WriteIf(part, _) | Asked::Swap(part, _) => vec![part.begun],
            Asked::Increment(_) => Vec::new(),
            Asked::Pair(parts, ..) => parts.iter().map(|part| part.begun).collect(),
            Asked::ReadMany(parts) => parts.iter().map(|part| part.begun).collect(),
            Asked::Write(parts) => parts.iter().map(|(part, _)| part.begun).collect(),
        }
    }
}

/// The writes of one pipeline that were acknowledged so far, by key.
#[derive(Default)]
struct Own(BTreeMap<Bytes, Vec<(u64, Option<Bytes>)>>);

impl Own {
    fn wrote(&mut self, part: &Part, value: Option<&Bytes>) {
        self.0.entry(part.key.clone()).or_default().push((part.invoked, value.cloned()));
    }
}

/// A client that works until `stop` is set, with its own random numbers.
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) env: Env,
    pub(crate) recorder: Recorder,
    pub(crate) habits: Habits,
    pub(crate) stop: Rc<Cell<bool>>,
    /// Whether it speaks the native protocol.
    pub(crate) is_native: bool,
    written: u64,
}

impl Client {
    pub(crate) fn new(
        cluster: &Cluster,
        id: u64,
        recorder: &Recorder,
        habits: Habits,
        stop: &Rc<Cell<bool>>,
    ) -> Self {
        let world = cluster.world();
        // A machine of its own, which nothing happens to but in the network.
        let machine = world.machine(&format!("client-machine{id}"));
        let env = world.env(&machine, &format!("client{id}"));
        let (recorder, stop) = (recorder.clone(), Rc::clone(stop));
        Client { id, env, recorder, habits, stop, is_native: false, written: 0 }
    }

    pub(crate) async fn run(mut self) {
        self.recorder.note_acknowledged(self.id, 0);
        let masters = Cluster::masters();
        let mut next = self.env.random() as usize;
        while !self.stop.get() {
            next += 1;
            let address = &masters[next % masters.len()];
            let opened = if self.is_native {
                Connection::open_native(&self.env, address).await
            } else {
                Connection::open(&self.env, address).await
            };
            match opened {
                Some(connection) => self.work(connection).await,
                None => tokio::time::sleep(Duration::from_millis(self.within(1, 100))).await,
            }
        }
    }

    fn within(&self, low: u64, high: u64) -> u64 {
        low + self.env.random() % (high - low + 1)
    }

    /// Uses a connection until it fails.
    async fn work(&mut self, mut connection: Connection) {
        while !self.stop.get() {
            let mut asked = Vec::new();
            let mut requests = Vec::new();
            for _ in 0..self.within(1, self.habits.pipeline) {
                let (request, ask) = self.ask();
                requests.push(request);
                asked.push(ask);
            }
            if connection.send(&requests).await.is_err() {
                self.give_up(asked);
                return;
            }
            let mut is_at_standby = false;
            let mut own = Own::default();
            let mut rest = asked.into_iter();
            while let Some(ask) = rest.next() {
                match connection.answer().await {
                    Ok(answer) => {
                        is_at_standby |=
                            matches!(&answer, Answer::Error(error) if error.starts_with("STANDBY"));
                        self.finish(ask, answer, &mut own, rest.as_slice());
                    }
                    Err(NoAnswer) => {
                        // Unknown, all of them.
                        self.give_up(std::iter::once(ask).chain(rest).collect());
                        return;
                    }
                }
            }
            if is_at_standby && self.is_native {
                // Nobody forwards for a native client: it asks the other master.
                return;
            }
            let think = self.within(0, self.habits.think_ms);
            if think > 0 {
                tokio::time::sleep(Duration::from_millis(think)).await;
            }
        }
    }

    fn key(&self) -> Bytes {
        Bytes::from(format!("key{}", self.within(0, self.habits.keys - 1)))
    }

    fn value(&mut self) -> Bytes {
        self.written += 1;
        let padding = "x".repeat(self.within(0, self.habits.value_bytes) as usize);
        Bytes::from(format!("c{}-{}{padding}", self.id, self.written))
    }

    fn ask(&mut self) -> (Vec<Bytes>, Asked) {
        let word = |word: &'static str| Bytes::from_static(word.as_bytes());
        let dice = self.within(0, 999);
        let key = self.key();
        let is_update = dice < self.habits.writes + self.habits.deletes;
        if is_update && self.within(0, 999) < self.habits.updates {
            self.ask_update(key, dice < self.habits.writes)
        } else if dice < self.habits.writes {
            let mut pairs = BTreeMap::from([(key, self.value())]);
            if self.within(0, 999) < self.habits.many {
                for _ in 0..self.within(1, 3) {
                    pairs.insert(self.key(), self.value());
                }
            }
            let parts = pairs
                .iter()
                .map(|(key, value)| (self.begin(key, Action::Write(value.clone())), value.clone()))
                .collect();
            let mut request = vec![if pairs.len() == 1 { word("SET") } else { word("MSET") }];
            request.extend(pairs.into_iter().flat_map(|(key, value)| [key, value]));
            (request, Asked::Write(parts))
        } else if dice < self.habits.writes + self.habits.deletes {
            let part = self.begin(&key, Action::Delete { existed: None });
            (vec![word("DEL"), key], Asked::Delete(part))
        } else if self.within(0, 999) < self.habits.many {
            let keys = [key, self.key()];
            let parts = keys.iter().map(|key| self.begin(key, Action::Read(None))).collect();
            let [first, second] = keys;
            (vec![word("MGET"), first, second], Asked::ReadMany(parts))
        } else {
            let expires = self.habits.updates > 0 && self.within(0, 9) == 0;
            let key = if expires { expiring_key(self.within(0, self.habits.keys - 1)) } else { key };
            let part = self.begin(&key, Action::Read(None));
            (vec![word("GET"), key], Asked::Read(part))
        }
    }

    /// Asks for something that is decided by what is there.
    fn ask_update(&mut self, key: Bytes, writes: bool) -> (Vec<Bytes>, Asked) {
        if !writes {
            let part = self.begin(&key, Action::Swap { value: None, seen: None });
            return (vec!["GETDEL".into(), key], Asked::Swap(part, None));
        }
        let option = match self.within(0, 5) {
            5 if self.is_native => return self.ask_pair(),
            4 | 5 => return self.ask_to_expire(),
            0 => {
                let number = self.recorder.begin_increment(self.id);
                return (vec!["INCR".into(), COUNTER.into()], Asked::Increment(number));
            }
            1 => "NX",
            2 => "XX",
            _ => "GET",
        };
        let value = self.value();
        let request = vec!["SET".into(), key.clone(), value.clone(), option.into()];
        if option == "GET" {
            let part = self.begin(&key, Action::Swap { value: Some(value.clone()), seen: None });
            return (request, Asked::Swap(part, Some(value)));
        }
        let if_present = option == "XX";
        let part = self.begin(&key, Action::WriteIf { value: value.clone(), if_present, done: false });
        (request, Asked::WriteIf(part, value))
    }

    fn ask_pair(&mut self) -> (Vec<Bytes>, Asked) {
        let keys = pair_keys(self.within(0, PAIRS - 1));
        let (value, may) = (self.value(), self.within(0, 5) > 0);
        let swap = || Action::Swap { value: Some(value.clone()), seen: None };
        let parts = [self.begin(&keys[0], swap()), self.begin(&keys[1], swap())];
        let [left, right] = keys;
        let request = vec!["PAIR".into(), left, right, value.clone(), if may { "yes" } else { "no" }.into()];
        (request, Asked::Pair(parts, value, may))
    }

    /// Writes a value that expires. For the history somebody deletes it then, or not, as far as anybody knows.
    fn ask_to_expire(&mut self) -> (Vec<Bytes>, Asked) {
        let key = expiring_key(self.within(0, self.habits.keys - 1));
        let value = self.value();
        let ms = self.within(1, LIFETIME_MAX_MS).to_string();
        let part = self.begin(&key, Action::Write(value.clone()));
        self.recorder.begin(NOBODY, &key, Action::Delete { existed: None });
        (vec!["PSETEX".into(), key, ms.into(), value.clone()], Asked::Write(vec![(part, value)]))
    }

    fn begin(&self, key: &Bytes, action: Action) -> Part {
        let (begun, invoked) = self.recorder.begin(self.id, key, action);
        Part { begun, key: key.clone(), invoked }
    }

    /// Notes that a read is about to be asked.
    pub(crate) fn begin_read(&self, key: &Bytes) -> Begun {
        self.begin(key, Action::Read(None)).begun
    }

    /// Notes what it was answered.
    pub(crate) fn finish_read(&self, begun: Begun, value: Option<Bytes>) {
        let now = self.recorder.now();
        self.recorder.0.history.borrow_mut().finish_read(begun, value, now);
    }

    /// Notes an answer; `later` was asked after it.
    fn finish(&self, asked: Asked, answer: Answer, own: &mut Own, later: &[Asked]) {
        let recording = &self.recorder.0;
        let now = self.recorder.now();
        let mut history = recording.history.borrow_mut();
        if let Answer::Error(error) = &answer {
            self.recorder.note(error.split(' ').next().unwrap_or_default());
            let outcome = outcome_of(error).unwrap_or_else(|| {
                recording.witness.hear(Check::Answers, format!("a client is told {error:?}"));
                OperationOutcome::Unknown
            });
            for begun in asked.begun() {
                history.finish(begun, outcome, now);
            }
            if let Asked::Increment(number) = asked {
                self.recorder.finish_increment(number, outcome, 0, now);
            }
            return;
        }
        self.recorder.note(if self.is_native { "done natively" } else { "done" });
        match (asked, answer) {
            (Asked::Read(part), Answer::Value(value)) => {
                self.note_order(&part, value.as_ref(), own, later);
                history.finish_read(part.begun, value, now);
            }
            (Asked::ReadMany(parts), Answer::Values(values)) => {
                assert_eq!(parts.len(), values.len(), "MGET answers as many as were asked");
                for (part, value) in parts.into_iter().zip(values) {
                    self.note_order(&part, value.as_ref(), own, later);
                    history.finish_read(part.begun, value, now);
                }
            }
            (Asked::Write(parts), Answer::Ok) => {
                self.recorder.note_acknowledged(self.id, 1);
                for (part, value) in parts {
                    recording.witness.done(&part.key, &value);
                    own.wrote(&part, Some(&value));
                    history.finish(part.begun, OperationOutcome::Done, now);
                }
            }
            (Asked::Delete(part), Answer::Integer(count @ 0..=1)) => {
                self.recorder.note_acknowledged(self.id, 1);
                own.wrote(&part, None);
                history.finish_delete(part.begun, count == 1, now);
            }
            (
                asked @ (Asked::WriteIf(..) | Asked::Swap(..) | Asked::Increment(_) | Asked::Pair(..)),
                answer,
            ) => {
                self.finish_update(&mut history, asked, answer, own, later);
            }
            (_, answer) => {
                recording
                    .witness
                    .hear(Check::Answers, format!("a client is told {answer:?}, of another kind"));
            }
        }
    }

    /// The same for what was decided by what was there.
    fn finish_update(
        &self,
        history: &mut History,
        asked: Asked,
        answer: Answer,
        own: &mut Own,
        later: &[Asked],
    ) {
        let witness = &self.recorder.0.witness;
        let now = self.recorder.now();
        match (asked, answer) {
            (Asked::WriteIf(part, value), answer @ (Answer::Ok | Answer::Value(None))) => {
                let done = answer == Answer::Ok;
                if done {
                    self.recorder.note_acknowledged(self.id, 1);
                    witness.done(&part.key, &value);
                    own.wrote(&part, Some(&value));
                }
                history.finish_write_if(part.begun, done, now);
            }
            (Asked::Swap(part, value), Answer::Value(seen)) => {
                self.note_order(&part, seen.as_ref(), own, later);
                // To take what is not there changes nothing.
                if value.is_some() || seen.is_some() {
                    self.recorder.note_acknowledged(self.id, 1);
                    own.wrote(&part, value.as_ref());
                }
                if let Some(value) = &value {
                    witness.done(&part.key, value);
                }
                history.finish_swap(part.begun, seen, now);
            }
            (Asked::Pair(parts, _, false), Answer::Value(None)) => {
                for part in parts {
                    history.finish(part.begun, OperationOutcome::NotExecuted, now);
                }
            }
            (Asked::Pair([left, right], value, true), Answer::Values(seen)) => {
                let [first, second] = &seen[..] else {
                    witness.hear(Check::Answers, format!("a pair is answered by {seen:?}"));
                    return;
                };
                if first != second {
                    let halves = format!("the two keys of a pair hold {first:?} and {second:?}");
                    witness.hear(Check::Pairs, halves);
                }
                self.recorder.note_acknowledged(self.id, 1);
                for (part, seen) in [(left, first), (right, second)] {
                    witness.done(&part.key, &value);
                    history.finish_swap(part.begun, seen.clone(), now);
                }
            }
            (Asked::Increment(number), Answer::Integer(answered)) => {
                let (outcome, answered) = (OperationOutcome::Done, answered as u64);
                self.recorder.finish_increment(number, outcome, answered, now);
            }
            (_, answer) => {
                witness.hear(Check::Answers, format!("a client is told {answer:?}, of another kind"));
            }
        }
    }

    fn note_order(&self, part: &Part, read: Option<&Bytes>, own: &Own, later: &[Asked]) {
        let is_early = later.iter().any(|asked| match asked {
            // No two writes write the same.
            Asked::Write(parts) => {
                parts.iter().any(|(write, value)| write.key == part.key && Some(value) == read)
            }
            Asked::WriteIf(write, value) | Asked::Swap(write, Some(value)) => {
                write.key == part.key && Some(value) == read
            }
            Asked::Read(_)
            | Asked::ReadMany(_)
            | Asked::Delete(_)
            | Asked::Swap(_, None)
            | Asked::Pair(..)
            | Asked::Increment(_) => false,
        });
        if is_early {
            let (client, key) = (self.id, &part.key);
            let early =
                format!("client {client} reads {read:?} from {key:?}, which it writes after the read");
            self.recorder.0.early.borrow_mut().get_or_insert(early);
        }
        let Some((last, earlier)) = own.0.get(&part.key).and_then(|own| own.split_last()) else { return };
        let (written, value) = last;
        if value.as_ref() != read {
            self.recorder.0.overtaken.borrow_mut().push(Overtaken {
                client: self.id,
                key: part.key.clone(),
                written: *written,
                superseded: earlier.iter().map(|(invoked, _)| *invoked).collect(),
                read: read.cloned(),
            });
        }
    }

    fn give_up(&self, asked: Vec<Asked>) {
        for _ in asked {
            self.recorder.note("no answer");
        }
    }
}

/// What a client had to hear that one of a cluster without faults should not.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// The request.
    pub(crate) request: Vec<Bytes>,
    /// The error that it was answered with; `None`: there was no answer.
    pub(crate) error: Option<String>,
}

impl Client {
    /// Asks one thing after the other until `stop` is set, and looks before each whether the master has hung up. What goes
    /// wrong is put into `troubles`.
    pub(crate) async fn ask_in_turn(mut self, troubles: Rc<RefCell<Vec<Trouble>>>) {
        let masters = Cluster::masters();
        let mut next = self.id as usize;
        while !self.stop.get() {
            next += 1;
            let Some(mut connection) = Connection::open(&self.env, &masters[next % masters.len()]).await
            else {
                tokio::time::sleep(Duration::from_millis(self.within(1, 20))).await;
                continue;
            };
            while !self.stop.get() && !connection.has_ended().await {
                let (request, asked) = self.ask();
                let sent = connection.send(std::slice::from_ref(&request)).await;
                let answer = if sent.is_ok() { connection.answer().await } else { Err(NoAnswer) };
                match answer {
                    Ok(answer) => {
                        if let Answer::Error(error) = &answer {
                            troubles.borrow_mut().push(Trouble { request, error: Some(error.clone()) });
                        }
                        self.finish(asked, answer, &mut Own::default(), &[]);
                    }
                    Err(NoAnswer) => {
                        troubles.borrow_mut().push(Trouble { request, error: None });
                        self.give_up(vec![asked]);
                        break;
                    }
                }
            }
        }
    }
}

/// Asks one question of whoever serves, again and again until there is an answer.
pub(crate) async fn insist(env: &Env, request: &[Bytes], limit: Duration) -> Option<Answer> {
    insist_at(env, &Cluster::masters(), request, limit).await
}

/// The same of some masters only.
pub(crate) async fn insist_at(
    env: &Env,
    masters: &[String],
    request: &[Bytes],
    limit: Duration,
) -> Option<Answer> {
    let deadline = tokio::time::Instant::now() + limit;
    for attempt in 0.. {
        if tokio::time::Instant::now() >= deadline {
            break;
        }
        if let Some(mut connection) = Connection::open(env, &masters[attempt % masters.len()]).await {
            if connection.send(&[request.to_vec()]).await.is_ok() {
                match connection.answer().await {
                    Ok(Answer::Error(_)) | Err(NoAnswer) => {}
                    Ok(answer) => return Some(answer),
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}
