//! Clients that load a cluster while a test breaks it, and the check at the end that every answer was true.
//!
//! Each client does what a real one would: it stays with a master until that one fails it, then tries the other. It
//! sends single requests and pipelines, of one key and of several, with values of a few bytes and of hundreds of KiB.
//! It never repeats a request: each operation is sent once, and recorded with its outcome. The requests are made in
//! [`super::requests`].

use super::cluster::{Node, TestCluster, MASTERS};
use super::requests::{name_of, order_of, Request, Requests, Together};
use super::resp::{encoded, Answer, Connection};
use super::{seconds, wait_for};
use bytes::Bytes;
use dsm_history::{check, readable_after, Action, History, OperationOutcome};
use rand::rngs::StdRng;
use rand::SeedableRng as _;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a client waits for an answer: the clients' `--request-timeout`.
const REQUEST_TIMEOUT: Duration = seconds(2);

/// How long a client rests between two operations.
const THINK: Duration = Duration::from_millis(2);

/// How many failures are remembered one by one.
const FAILURES_MAX: usize = 100_000;

/// How many reads of the final reading are in flight at once.
const READ_BACK_BATCH: usize = 256;

/// The client number of the final readings in a history.
pub(crate) const READER: u64 = 1000;

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledged {
    /// When it was sent, at the earliest.
    pub(crate) invoked: Instant,
    /// When the answer came, at the latest.
    pub(crate) returned: Instant,
    /// The master that answered.
    pub(crate) by: Node,
}

/// A request without a result.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// When the client noticed.
    pub(crate) at: Instant,
    /// The master that it had asked.
    pub(crate) asked: Node,
    /// The error.
    pub(crate) text: String,
}

struct Shared {
    addresses: [SocketAddr; 2],
    origin: Instant,
    keys: u64,
    /// No value is filled up to more than this.
    value_bytes_max: usize,
    stop: AtomicBool,
    writes: AtomicU64,
    reads: AtomicU64,
    failed: AtomicU64,
    longest_us: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    /// Answers that the contract does not allow.
    broken_words: Mutex<Vec<String>>,
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// Keys that one request wrote together, and that no other request writes.
    together: Mutex<Vec<Together>>,
}

/// Clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<History>>,
}

impl Load {
    /// Starts `clients` clients on `keys` shared keys, and waits until the cluster serves them.
    pub(crate) fn start(cluster: &TestCluster, clients: u64, keys: u64) -> Load {
        Load::begin(cluster, clients, keys, usize::MAX)
    }

    /// The same with requests of no more than 16 KiB.
    pub(crate) fn start_short(cluster: &TestCluster, clients: u64, keys: u64) -> Load {
        Load::begin(cluster, clients, keys, 1000)
    }

    fn begin(cluster: &TestCluster, clients: u64, keys: u64, value_bytes_max: usize) -> Load {
        let seed: u64 = rand::random();
        println!("load: {clients} clients, {keys} keys, seed {seed}");
        let shared = Arc::new(Shared {
            addresses: cluster.addresses(),
            origin: Instant::now(),
            keys,
            value_bytes_max,
            stop: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            failures: Mutex::new(Vec::new()),
            broken_words: Mutex::new(Vec::new()),
            acknowledged: Mutex::new(Vec::new()),
            together: Mutex::new(Vec::new()),
        });
        let clients = (0..clients)
            .map(|id| {
                let shared = Arc::clone(&shared);
                let random = StdRng::seed_from_u64(seed.wrapping_add(id));
                std::thread::spawn(move || Client::new(shared, id, random).run())
            })
            .collect();
        let load = Load { shared, clients };
        load.wait_for_writes(100, seconds(10));
        load
    }

    /// Writes that were acknowledged so far.
    pub(crate) fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// Requests without a result so far.
    pub(crate) fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// The errors that the clients got.
    pub(crate) fn failures(&self) -> Vec<String> {
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().map(|failure| failure.text.clone()).collect()
    }

    /// The failures of a span of time.
    pub(crate) fn failures_between(&self, from: Instant, to: Instant) -> Vec<Failure> {
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().filter(|f| (from..to).contains(&f.at)).cloned().collect()
    }

    /// The requests that were sent and had no result; a refused connection does not count.
    pub(crate) fn failed_requests(&self) -> Vec<String> {
        self.failures().into_iter().filter(|text| !text.starts_with("connect: ")).collect()
    }

    /// The longest time of a request with a result.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.load(Ordering::Relaxed))
    }

    /// Whether any request was answered with this word.
    pub(crate) fn has_failed_with(&self, word: &str) -> bool {
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().any(|f| f.text.split(' ').next() == Some(word))
    }

    /// Waits until this many more writes are acknowledged.
    pub(crate) fn wait_for_writes(&self, more: u64, within: Duration) {
        let enough = self.writes() + more;
        wait_for(&format!("{more} more writes are acknowledged"), within, || {
            (self.writes() >= enough).then_some(())
        });
    }

    /// Waits for the first acknowledgement by `by` of a write that was sent after `after`; gives the time from `after`
    /// to it.
    pub(crate) fn wait_for_write_by(&self, by: Node, after: Instant, within: Duration) -> Duration {
        let returned = wait_for(&format!("{by:?} acknowledges a write"), within, || {
            let acknowledged = self.shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
            let latest = acknowledged.iter().rev().take(4096);
            latest.filter(|a| a.by == by && a.invoked >= after).map(|a| a.returned).min()
        });
        returned.duration_since(after)
    }

    /// Stops the clients, undoes all faults, and proves the promises: every history linearizable, every
    /// acknowledged write readable; then again after a cold restart of everything.
    pub(crate) fn prove(mut self, cluster: &mut TestCluster) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut history = History::new();
        for client in std::mem::take(&mut self.clients) {
            history.merge(client.join().expect("a client of the load does not panic"));
        }
        let broken = self.shared.broken_words.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(broken.is_empty(), "answers outside the contract: {broken:?}");
        let mut keys = BTreeSet::new();
        keys.extend(history.operations().iter().map(|o| o.key.clone()));

        cluster.heal();
        read_back(cluster, &keys, self.shared.origin, READER, &mut history);
        keep(&history, cluster);
        judge(&history, "after the faults");
        let unknown = self.judge_together(&history, READER, "after the faults");
        cluster.cold_restart();
        read_back(cluster, &keys, self.shared.origin, READER + 1, &mut history);
        keep(&history, cluster);
        let verdict = judge(&history, "after a cold restart");
        self.judge_together(&history, READER + 1, "after a cold restart");
        println!(
            "{unknown} writes of several keys with an unknown outcome: each has all of its keys or none"
        );
        println!("{verdict}; {} requests failed", self.shared.failed.load(Ordering::Relaxed));
    }
}

impl Load {
    /// Checks that what one request wrote together is there as a whole or not at all, even if its outcome is unknown;
    /// gives how many were unknown.
    fn judge_together(&self, history: &History, reader: u64, when: &str) -> usize {
        let read =
            history.operations().iter().filter(|o| o.client == reader && o.outcome == OperationOutcome::Done);
        let values: BTreeMap<&Bytes, Option<&Bytes>> = read
            .filter_map(|o| match &o.action {
                Action::Read(value) => Some((&o.key, value.as_ref())),
                Action::Write(_) | Action::Delete { .. } | Action::Swap { .. } | Action::WriteIf { .. } => {
                    None
                }
            })
            .collect();
        let together = self.shared.together.lock().unwrap_or_else(PoisonError::into_inner);
        for written in together.iter() {
            let there = written.keys.iter().filter(|key| values[key] == Some(&written.value)).count();
            let all = written.keys.len();
            let is_right = match written.outcome {
                OperationOutcome::Done => there == all,
                OperationOutcome::NotExecuted => there == 0,
                OperationOutcome::Unknown => there == 0 || there == all,
            };
            assert!(
                is_right,
                "{when}: {there} of {all} keys that were written together are there: {written:?}"
            );
        }
        together.iter().filter(|written| written.outcome == OperationOutcome::Unknown).count()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // The test has failed: the clients end by themselves.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// Reads every key, and repeats until the read succeeds.
pub(crate) fn read_back(
    cluster: &TestCluster,
    keys: &BTreeSet<Bytes>,
    origin: Instant,
    reader: u64,
    history: &mut History,
) {
    let mut open: Vec<Bytes> = keys.iter().cloned().collect();
    let mut problem = String::new();
    let begun = Instant::now();
    while !open.is_empty() {
        assert!(begun.elapsed() < seconds(20), "{} keys cannot be read: {problem}", open.len());
        let batch = open.split_off(open.len().saturating_sub(READ_BACK_BATCH));
        let mut connection = cluster.connect_to_primary();
        let mut requests = Vec::new();
        let mut begun = Vec::new();
        for key in &batch {
            begun.push(history.begin(reader, key.clone(), Action::Read(None), now_ns(origin)));
            requests.extend(encoded(&[b"GET", key]));
        }
        let mut broken = connection.send(&requests).is_err();
        for (key, begun) in batch.into_iter().zip(begun) {
            let answer = if broken { Err(io::ErrorKind::BrokenPipe.into()) } else { connection.answer() };
            broken |= answer.is_err();
            match answer {
                Ok(Answer::Bulk(value)) => history.finish_read(begun, Some(name_of(value)), now_ns(origin)),
                Ok(Answer::Null) => history.finish_read(begun, None, now_ns(origin)),
                other => {
                    problem = format!("{other:?}");
                    open.push(key);
                }
            }
        }
    }
}

/// Puts the history beside the log, which is kept if a nightly run fails.
fn keep(history: &History, cluster: &TestCluster) {
    if super::is_nightly() {
        let lines: Vec<String> = history.operations().iter().map(|o| format!("{o:?}\n")).collect();
        std::fs::write(cluster.dir().join("history.txt"), lines.concat()).expect("writing the history");
    }
}

/// Checks a history that ends with a reading of all keys.
pub(crate) fn judge(history: &History, when: &str) -> String {
    let stats = match check(history.operations()) {
        Ok(stats) => stats,
        Err(violation) => panic!("{when}: {violation}"),
    };
    let readable = readable_after(history.operations());
    for last in
        history.operations().iter().filter(|o| o.client >= READER && o.outcome == OperationOutcome::Done)
    {
        let Action::Read(value) = &last.action else { continue };
        let readable = &readable[&last.key];
        assert!(
            readable.allows(value.as_ref()),
            "{when}: {:?} reads {value:?}, but must be one of {readable:?}",
            last.key
        );
    }
    stats.to_string()
}

/// The time on a history's clock.
pub(crate) fn now_ns(origin: Instant) -> u64 {
    u64::try_from(origin.elapsed().as_nanos()).expect("a test lasts less than 584 years")
}

struct Client {
    shared: Arc<Shared>,
    id: u64,
    requests: Requests,
    history: History,
    connection: Option<Connection>,
    /// The master that it uses.
    master: usize,
}

impl Client {
    fn new(shared: Arc<Shared>, id: u64, random: StdRng) -> Client {
        let requests = Requests::new(id, shared.keys, shared.value_bytes_max, random);
        Client { shared, id, requests, history: History::new(), connection: None, master: 0 }
    }

    fn run(mut self) -> History {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.operate();
            std::thread::sleep(THINK);
        }
        self.history
    }

    /// Sends one pipeline, often of one request, and reads its answers.
    fn operate(&mut self) {
        let Some(mut connection) = self.connected() else { return };
        let mut pipeline = self.requests.pipeline();
        let mut bytes = Vec::new();
        let invoked = Instant::now();
        let now = now_ns(self.shared.origin);
        for request in &mut pipeline {
            request.begin(self.id, now, &mut self.history);
            request.encode(&mut bytes);
        }
        let mut lost = connection.send(&bytes).err();
        let mut elsewhere = false;
        for request in &mut pipeline {
            if lost.is_none() {
                match connection.answer() {
                    Ok(answer) => elsewhere |= self.answered(request, answer, invoked),
                    Err(error) => lost = Some(error),
                }
            }
            self.note_together(request);
        }
        if let Some(overtaken) = pipeline.iter().enumerate().find_map(|(at, _)| order_of(&pipeline, at)) {
            self.broken(overtaken);
        }
        match lost {
            // No answer, or half of one: the outcome of the rest is unknown. A failed read proves nothing.
            Some(error) => {
                self.failed(format!("connection: {error}"));
                self.master ^= 1;
            }
            None if elsewhere => self.master ^= 1,
            None => self.connection = Some(connection),
        }
    }

    /// Records an answer; tells whether it says that another master serves.
    fn answered(&mut self, request: &mut Request, answer: Answer, invoked: Instant) -> bool {
        let now = now_ns(self.shared.origin);
        if let Answer::Error(text) = answer {
            let outcome = match text.split(' ').next().unwrap_or_default() {
                "STANDBY" | "NOQUORUM" | "LOADING" | "READONLY" | "BUSY" | "OOM" => {
                    OperationOutcome::NotExecuted
                }
                "UNKNOWN" if request.is_write() => OperationOutcome::Unknown,
                _ => {
                    self.broken(format!("{text:?} to {request:?}"));
                    return false;
                }
            };
            request.finish(outcome, now, &mut self.history);
            let elsewhere = text.starts_with("STANDBY");
            self.failed(text);
            return elsewhere;
        }
        if let Err(other) = request.finish_with(answer, now, &mut self.history) {
            self.broken(format!("{other:?} to {request:?}"));
            return false;
        }
        let took_us = u64::try_from(invoked.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.shared.longest_us.fetch_max(took_us, Ordering::Relaxed);
        if request.is_write() {
            let by = MASTERS[self.master];
            let acknowledged = Acknowledged { invoked, returned: Instant::now(), by };
            self.shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(acknowledged);
            self.shared.writes.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.reads.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    fn note_together(&self, request: &Request) {
        if let Some(together) = request.together() {
            self.shared.together.lock().unwrap_or_else(PoisonError::into_inner).push(together);
        }
    }

    fn connected(&mut self) -> Option<Connection> {
        // As in connection pools, a connection that the server has closed between two requests is replaced; that is not
        // a failure.
        if self.connection.as_ref().is_some_and(Connection::is_ended) {
            self.connection = None;
            self.master ^= 1;
        }
        if self.connection.is_none() {
            match Connection::open(self.shared.addresses[self.master], REQUEST_TIMEOUT) {
                Ok(connection) => self.connection = Some(connection),
                // Nothing was sent: nothing to record in the history.
                Err(error) => {
                    self.failed(format!("connect: {error}"));
                    self.master ^= 1;
                }
            }
        }
        self.connection.take()
    }

    fn failed(&self, text: String) {
        self.shared.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_MAX {
            failures.push(Failure { at: Instant::now(), asked: MASTERS[self.master], text });
        }
    }

    fn broken(&self, text: String) {
        self.shared.broken_words.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
}
