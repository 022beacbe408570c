//! Clients that write and read a few keys at any of the masters, and record what they were told.

use crate::cluster::{address, Cluster, MASTERS};
use bytes::{Bytes, BytesMut};
use dsm::env::Stream;
use dsm_history::{Action, History, OperationOutcome};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

const CLIENTS: u64 = 8;

const KEYS: u64 = 3;

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// What clients were told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) acknowledged: u64,
    pub(crate) read: u64,
    pub(crate) unknown: u64,
}

#[derive(Default)]
struct Recording {
    history: RefCell<History>,
    counts: Cell<Counts>,
    now: Cell<u64>,
    is_over: Cell<bool>,
    values: Cell<u64>,
}

impl Recording {
    /// Nothing happens at the same time here: the order is a count.
    fn now(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}

/// All clients.
pub(crate) struct Clients {
    cluster: Cluster,
    recording: Rc<Recording>,
    running: RefCell<Vec<JoinHandle<()>>>,
}

/// An answer.
#[derive(Debug)]
pub(crate) enum Answer {
    Line(String),
    Value(Option<Bytes>),
}

/// A connection to one of the masters.
pub(crate) struct Connection {
    stream: Stream,
    input: BytesMut,
}

impl Connection {
    pub(crate) async fn open(cluster: &Cluster, master: usize) -> Option<Self> {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, cluster.env().connect(&address(master))).await;
        let stream = connecting.ok()?.ok()?;
        Some(Connection { stream, input: BytesMut::new() })
    }

    async fn read_to(&mut self, length: usize) -> Option<()> {
        while self.input.len() < length {
            if self.stream.read(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
        Some(())
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.input.windows(2).position(|window| window == b"\r\n") {
                let line = self.input.split_to(end + 2);
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.read_to(self.input.len() + 1).await?;
        }
    }

    pub(crate) async fn ask(&mut self, words: &[&[u8]]) -> Option<Answer> {
        let mut out = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&out).await.ok()?;
        let line = self.line().await?;
        let Some(length) = line.strip_prefix('$') else { return Some(Answer::Line(line)) };
        let Ok(length) = length.parse::<usize>() else { return Some(Answer::Value(None)) };
        self.read_to(length + 2).await?;
        Some(Answer::Value(Some(self.input.split_to(length + 2).freeze().slice(..length))))
    }
}

impl Clients {
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let recording = Rc::<Recording>::default();
        let running = (0..CLIENTS)
            .map(|client| tokio::task::spawn_local(run(client, cluster.clone(), Rc::clone(&recording))))
            .collect();
        Clients { cluster: cluster.clone(), recording, running: RefCell::new(running) }
    }

    /// Lets them come to their end.
    pub(crate) async fn stop(&self) {
        self.recording.is_over.set(true);
        for running in self.running.take() {
            running.await.unwrap();
        }
    }

    /// Reads all keys at a master.
    pub(crate) async fn read_all(&self, master: usize) {
        let mut connection = Connection::open(&self.cluster, master).await.expect("it listens");
        for key in 0..KEYS {
            let done = step(&mut connection, CLIENTS, &self.recording, &key_of(key), Wish::Read).await;
            assert!(done.is_some(), "key {key} is not read at {}", address(master));
        }
    }

    pub(crate) fn history(&self) -> History {
        self.recording.history.borrow().clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.recording.counts.get()
    }
}

fn key_of(number: u64) -> Bytes {
    Bytes::from(format!("key{number}"))
}

/// What a client does next.
#[derive(Clone, Copy)]
enum Wish {
    Read,
    Write,
    Swap,
    Delete,
}

async fn run(client: u64, cluster: Cluster, recording: Rc<Recording>) {
    let world = cluster.world().clone();
    let mut connection = None;
    while !recording.is_over.get() {
        if connection.is_none() {
            let master = world.random_within(0..=MASTERS as u64 - 1) as usize;
            connection = Connection::open(&cluster, master).await;
        }
        tokio::time::sleep(Duration::from_millis(world.random_within(1..=12))).await;
        let Some(open) = &mut connection else { continue };
        let key = key_of(world.random_within(0..=KEYS - 1));
        let wish = match world.random_within(0..=9) {
            0..=4 => Wish::Read,
            5 | 6 => Wish::Write,
            7 => Wish::Swap,
            // A key that is not there is answered at once, by what the master knows alone.
            _ => Wish::Delete,
        };
        if step(open, client, &recording, &key, wish).await.is_none() || world.chance(20) {
            connection = None;
        }
    }
}

/// Asks one thing; `None` when the connection is of no use any more.
async fn step(
    connection: &mut Connection,
    client: u64,
    recording: &Recording,
    key: &Bytes,
    wish: Wish,
) -> Option<()> {
    recording.values.set(recording.values.get() + 1);
    let value = Bytes::from(format!("v{}", recording.values.get()));
    let (words, action): (Vec<&[u8]>, Action) = match wish {
        Wish::Read => (vec![b"GET", key], Action::Read(None)),
        Wish::Write => (vec![b"SET", key, &value], Action::Write(value.clone())),
        Wish::Swap => {
            (vec![b"SET", key, &value, b"GET"], Action::Swap { value: Some(value.clone()), seen: None })
        }
        Wish::Delete => (vec![b"DEL", key], Action::Delete { existed: None }),
    };
    let begun = recording.history.borrow_mut().begin(client, key.clone(), action, recording.now());
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, connection.ask(&words)).await.ok().flatten();
    let now = recording.now();
    let mut history = recording.history.borrow_mut();
    match (wish, answer) {
        (Wish::Read, Some(Answer::Value(value))) => {
            history.finish_read(begun, value, now);
            recording.count(|counts| counts.read += 1);
        }
        (Wish::Swap, Some(Answer::Value(seen))) => {
            history.finish_swap(begun, seen, now);
            recording.count(|counts| counts.acknowledged += 1);
        }
        (Wish::Write, Some(Answer::Line(line))) if line == "+OK" => {
            history.finish(begun, OperationOutcome::Done, now);
            recording.count(|counts| counts.acknowledged += 1);
        }
        (Wish::Delete, Some(Answer::Line(line))) if line.starts_with(':') => {
            history.finish_delete(begun, line == ":1", now);
            recording.count(|counts| counts.acknowledged += 1);
        }
        (_, Some(Answer::Line(line))) if line.starts_with("-UNKNOWN") => {
            recording.count(|counts| counts.unknown += 1);
        }
        (_, Some(Answer::Line(line))) if line.starts_with('-') => {
            history.finish(begun, OperationOutcome::NotExecuted, now);
        }
        (_, Some(answer)) => panic!("{answer:?}"),
        (Wish::Read, None) => {
            history.finish(begun, OperationOutcome::NotExecuted, now);
            return None;
        }
        (_, None) => {
            recording.count(|counts| counts.unknown += 1);
            return None;
        }
    }
    Some(())
}
