//! The load itself: threads, connections, the loop of each connection, and the verdict on every answer.
//!
//! One thread serves many connections with one single-threaded runtime. A connection is one task that lives as long as
//! the load and reconnects by itself; a request costs no task, no timer and no allocation. What is counted goes once
//! a batch into [`Windows`], in the second in which the request ended.
//!
//! A request belongs to the measurement if it was begun (in the open loop: was to be begun) within it. Those that are
//! answered after its end count in its last second: leaving them out would leave out the slowest.

use super::check::{Deed, Entry, Recorder, Seen};
use super::clock::ns;
use super::driver::{Action, Answer, Connection, Dialer, Fate, Request, Sink};
use super::keys::Chooser;
use super::ledger::{Ledger, Misread};
use super::pacer::Pacer;
use super::value::{Unfit, Version};
use super::window::{count_errors, Errors, Windows};
use anyhow::Context as _;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::future::{poll_fn, Future};
use std::io;
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep_until, Sleep};

/// How long a connection waits after all targets refused it, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// How far back in a batch a write of the same key is looked for.
const LOOK_BACK_MAX: usize = 64;

/// A gap between acknowledged writes that is worth a look, in nanoseconds.
const GAP_NS_MIN: u64 = 1_000_000;

/// What the connections do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How many there are.
    pub connections: usize,
    /// How many threads serve them.
    pub threads: usize,
    /// The share of writes, 0 to 1.
    pub write_share: f64,
    /// The keys.
    pub chooser: Chooser,
    /// Pause between an answer and the next request, or batch of them; closed loop only.
    pub think: Duration,
    /// Requests per second of all connections: open loop.
    pub rate: Option<f64>,
    /// Requests in flight on a connection.
    pub pipeline: usize,
    /// How long an answer, and a connect, may take.
    pub timeout: Duration,
    /// Of the random choices.
    pub seed: u64,
}

/// What all connections of a load share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What to do.
    pub plan: Plan,
    /// How to connect.
    pub dialer: Dialer,
    /// What is known of the keys.
    pub ledger: Ledger,
    /// With `--check`: where operations are noted.
    pub recorder: Option<Recorder>,
    /// What happens from one fault to the next.
    pub phases: Phases,
    /// When the measurement begins, on the dialer's clock.
    pub from_ns: u64,
    /// Open loop: when the first request is due, whenever the threads have started.
    start_ns: u64,
    end_ns: AtomicU64,
    interrupted: AtomicBool,
    windows: Vec<Mutex<Windows>>,
}

impl Shared {
    /// A load that is measured from `from_ns` to `end_ns`.
    pub(crate) fn new(
        plan: Plan,
        dialer: Dialer,
        ledger: Ledger,
        recorder: Option<Recorder>,
        (from_ns, end_ns): (u64, u64),
    ) -> Shared {
        let windows = (0..plan.threads).map(|_| Mutex::default()).collect();
        Shared {
            start_ns: dialer.clock.now_ns(),
            plan,
            dialer,
            ledger,
            recorder,
            phases: Phases::default(),
            from_ns,
            end_ns: AtomicU64::new(end_ns),
            interrupted: AtomicBool::new(false),
            windows,
        }
    }

    /// When the measurement ends.
    pub(crate) fn end_ns(&self) -> u64 {
        self.end_ns.load(Ordering::Acquire)
    }

    /// Ends the measurement now.
    pub(crate) fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Release);
        self.end_ns.fetch_min(self.dialer.clock.now_ns(), Ordering::AcqRel);
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    /// Takes what ended before second `number`, of all threads.
    pub(crate) fn take_before(&self, number: u64) -> Vec<(u64, super::window::Window)> {
        let lock = |windows| -> MutexGuard<'_, Windows> { lock(windows) };
        self.windows.iter().flat_map(|windows| lock(windows).take_before(number)).collect()
    }
}

/// What the load saw from each fault to the next.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    begun: AtomicBool,
    last_write_ns: AtomicU64,
    phases: Mutex<Vec<Phase>>,
}

/// From one fault to the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    /// The longest time without an acknowledged write.
    pub longest_gap_ns: u64,
    /// What failed.
    pub errors: Errors,
}

impl Phases {
    /// A fault strikes.
    pub(crate) fn begin(&self, now_ns: u64) {
        let mut phases = lock(&self.phases);
        let gap_ns = now_ns.saturating_sub(self.last_write_ns.load(Ordering::Relaxed));
        if let Some(phase) = phases.last_mut() {
            phase.longest_gap_ns = phase.longest_gap_ns.max(gap_ns);
        }
        phases.push(Phase::default());
        self.begun.store(true, Ordering::Release);
    }

    /// The phases, the last one ended at `now_ns`.
    pub(crate) fn finish(&self, now_ns: u64) -> Vec<Phase> {
        let mut phases = lock(&self.phases);
        let gap_ns = now_ns.saturating_sub(self.last_write_ns.load(Ordering::Relaxed));
        if let Some(phase) = phases.last_mut() {
            phase.longest_gap_ns = phase.longest_gap_ns.max(gap_ns);
        }
        phases.clone()
    }

    fn write_acknowledged(&self, at_ns: u64) {
        let before_ns = self.last_write_ns.fetch_max(at_ns, Ordering::Relaxed);
        let gap_ns = at_ns.saturating_sub(before_ns);
        if gap_ns < GAP_NS_MIN || !self.begun.load(Ordering::Acquire) {
            return;
        }
        if let Some(phase) = lock(&self.phases).last_mut() {
            phase.longest_gap_ns = phase.longest_gap_ns.max(gap_ns);
        }
    }

    fn failed(&self, class: &str) {
        if !self.begun.load(Ordering::Acquire) {
            return;
        }
        if let Some(phase) = lock(&self.phases).last_mut() {
            count_errors(&mut phase.errors, class, 1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A load under way.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<anyhow::Result<Vec<Entry>>>>,
}

impl Load {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(shared: Arc<Shared>) -> anyhow::Result<Load> {
        let (stop, stopped) = watch::channel(false);
        let mut threads = Vec::new();
        for thread in 0..shared.plan.threads {
            let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
            let builder = std::thread::Builder::new().name(format!("load-{thread}"));
            let started = builder.spawn(move || serve(&shared, thread, stopped));
            threads.push(started.context("cannot start a thread")?);
        }
        Ok(Load { shared, stop, threads })
    }

    /// Ends the measurement now, if it has not ended.
    pub(crate) fn interrupt(&self) {
        self.shared.interrupt();
        // Without receivers there is nobody left to stop.
        let _ = self.stop.send(true);
    }

    /// Waits for the requests in flight and gives what was recorded for the check.
    ///
    /// # Errors
    /// When a thread failed.
    pub(crate) fn join(self) -> anyhow::Result<Vec<Entry>> {
        let mut recorded = Vec::new();
        for thread in self.threads {
            match thread.join() {
                Ok(entries) => recorded.extend(entries?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(recorded)
    }
}

fn serve(
    shared: &Arc<Shared>,
    thread: usize,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<Vec<Entry>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(async {
        let own: Vec<usize> = (thread..shared.plan.connections).step_by(shared.plan.threads).collect();
        let pacer = Arc::new(Pacer::new(shared.dialer.clock, own.len()).context("cannot make a timer")?);
        let mut clients = tokio::task::JoinSet::new();
        for (waiter, connection) in own.into_iter().enumerate() {
            let client = Client::new(Arc::clone(shared), Arc::clone(&pacer), thread, waiter, connection);
            clients.spawn(client.run());
        }
        let mut timer = pin!(pacer.drive());
        let mut recorded = Vec::new();
        loop {
            tokio::select! {
                biased;
                ended = clients.join_next() => match ended {
                    None => return Ok(recorded),
                    Some(Ok(mut entries)) => recorded.append(&mut entries),
                    Some(Err(error)) => return Err(error).context("a connection's task failed"),
                },
                result = &mut timer => result.context("the timer failed")?,
                Ok(()) = stopped.changed() => pacer.close(),
            }
        }
    })
}

/// One connection, over all its reconnects.
struct Client {
    shared: Arc<Shared>,
    pacer: Arc<Pacer>,
    thread: usize,
    waiter: usize,
    /// Its number in values and histories; from 1.
    writer: u32,
    random: SmallRng,
    /// The target it is connected to, or tries next.
    target: usize,
    /// Open loop: when the next request is due, and the time between two.
    due_ns: f64,
    interval_ns: f64,
    batch: Vec<Request>,
    flights: Vec<Flight>,
    /// What failed in this batch, and how.
    failures: Vec<(usize, String)>,
    entries: Vec<Entry>,
}

/// What is known of a request in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    /// From when its latency counts.
    begun_ns: u64,
    /// Reads: what is stale, as of before it was sent.
    floor: u64,
    /// Reads: the write of the same key that is in front of it in the batch.
    behind: Option<u32>,
    ended: Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Open,
    /// `seen`: by a read.
    Right {
        at_ns: u64,
        seen: Option<Seen>,
    },
    /// Why is in [`Client::failures`].
    Wrong {
        at_ns: u64,
        fate: Fate,
        seen: Option<Seen>,
    },
}

impl Client {
    fn new(
        shared: Arc<Shared>,
        pacer: Arc<Pacer>,
        thread: usize,
        waiter: usize,
        connection: usize,
    ) -> Client {
        let plan = &shared.plan;
        let interval_ns = plan.rate.map_or(0.0, |rate| 1e9 * plan.connections as f64 / rate);
        // Spread over the first interval.
        let offset_ns = interval_ns * connection as f64 / plan.connections as f64;
        let random = SmallRng::seed_from_u64(plan.seed.wrapping_add(connection as u64));
        let (batch, flights) = (Vec::with_capacity(plan.pipeline), Vec::with_capacity(plan.pipeline));
        Client {
            pacer,
            thread,
            waiter,
            writer: u32::try_from(connection + 1).unwrap_or(u32::MAX),
            random,
            target: 0,
            due_ns: shared.start_ns as f64 + offset_ns,
            interval_ns,
            batch,
            flights,
            failures: Vec::new(),
            entries: Vec::new(),
            shared,
        }
    }

    fn now_ns(&self) -> u64 {
        self.shared.dialer.clock.now_ns()
    }

    fn is_open_loop(&self) -> bool {
        self.shared.plan.rate.is_some()
    }

    /// Whether no further request is to be sent.
    fn is_over(&self) -> bool {
        let (now_ns, end_ns) = (self.now_ns(), self.shared.end_ns());
        if self.is_open_loop() && !self.shared.interrupted() {
            // What was due within the measurement is still sent, or the requests that waited longest were left out.
            self.due_ns >= end_ns as f64 || now_ns >= end_ns + ns(self.shared.plan.timeout)
        } else {
            now_ns >= end_ns
        }
    }

    async fn run(mut self) -> Vec<Entry> {
        let think = self.shared.plan.think;
        if !think.is_zero() && !self.is_open_loop() {
            // Or all would ask at once, again and again.
            let first = self.random.random_range(Duration::ZERO..think);
            let at_ns = self.now_ns() + ns(first);
            self.pause(at_ns).await;
        }
        let mut backoff = BACKOFF.0;
        while !self.is_over() {
            match self.connect().await {
                Some(connection) => {
                    if self.use_up(connection).await {
                        backoff = BACKOFF.0;
                    }
                    self.target += 1;
                }
                None => {
                    let rest = backoff.mul_f64(self.random.random_range(0.5..1.0));
                    backoff = (backoff * 2).min(BACKOFF.1);
                    self.pause(self.now_ns() + ns(rest)).await;
                }
            }
        }
        self.count_unsent();
        self.entries
    }

    /// Waits, but not beyond the end.
    async fn pause(&self, until_ns: u64) {
        self.pacer.until(self.waiter, until_ns.min(self.shared.end_ns())).await;
    }

    /// Tries each target once. That none took the connection is one failed request.
    async fn connect(&mut self) -> Option<Connection> {
        let begun_ns = self.now_ns();
        let timeout = self.shared.plan.timeout;
        for _ in 0..self.shared.dialer.targets.len() {
            if let Ok(Ok(connection)) =
                tokio::time::timeout(timeout, self.shared.dialer.dial(self.target)).await
            {
                return Some(connection);
            }
            self.target += 1;
            if self.is_over() {
                return None;
            }
        }
        self.count(begun_ns, self.now_ns(), Err("connection"));
        None
    }

    /// Sends batches until the connection breaks, is to be left, or the load is over. Whether it was of any use.
    async fn use_up(&mut self, mut connection: Connection) -> bool {
        let timeout = self.shared.plan.timeout;
        let mut useful = false;
        let mut timer = pin!(sleep_until(tokio::time::Instant::now() + timeout));
        loop {
            if self.is_open_loop() {
                self.pacer.until(self.waiter, (self.due_ns as u64).min(self.shared.end_ns())).await;
            }
            if self.is_over() {
                return useful;
            }
            let sent_ns = self.build();
            let deadline = self.shared.dialer.clock.instant(sent_ns) + timeout;
            let mut judge = Judge {
                shared: &self.shared,
                batch: &self.batch,
                flights: &mut self.flights,
                failures: &mut self.failures,
                leave: false,
            };
            let exchange = connection.exchange(&self.batch, &mut judge);
            let result = within(timer.as_mut(), deadline.into(), exchange).await;
            let leave = judge.leave;
            let broken = match result {
                Some(Ok(())) => None,
                Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Some("mangled"),
                Some(Err(_)) => Some("connection"),
                None => Some("timeout"),
            };
            useful |= self.settle(sent_ns, broken);
            if broken.is_some() || leave {
                return useful;
            }
            let think = self.shared.plan.think;
            if !think.is_zero() && !self.is_open_loop() {
                self.pause(self.now_ns() + ns(think)).await;
            }
        }
    }

    /// Fills the batch with the next requests. When they are sent: now.
    fn build(&mut self) -> u64 {
        self.batch.clear();
        self.flights.clear();
        self.failures.clear();
        let now_ns = self.now_ns();
        let plan = &self.shared.plan;
        let ledger = &self.shared.ledger;
        while self.batch.len() < plan.pipeline {
            let begun_ns = if plan.rate.is_some() {
                if self.due_ns > now_ns as f64 && !self.batch.is_empty() {
                    break;
                }
                let due_ns = self.due_ns;
                self.due_ns += self.interval_ns;
                // A wait may end a little early.
                (due_ns as u64).min(now_ns)
            } else {
                now_ns
            };
            let key = plan.chooser.choose(&mut self.random);
            let writes = self.random.random::<f64>() < plan.write_share;
            let mut flight = Flight { begun_ns, floor: 0, behind: None, ended: Ended::Open };
            let action = if writes {
                Action::Write(ledger.begin(key, self.writer))
            } else {
                flight.floor = ledger.floor(key);
                let same = |request: &Request| request.key == key && request.action != Action::Read;
                let start = self.batch.len().saturating_sub(LOOK_BACK_MAX);
                let found = self.batch[start..].iter().rposition(same).map(|at| (start + at) as u32);
                // Where there is no order, the read may overtake that write.
                flight.behind = found.filter(|_| self.shared.dialer.protocol.keeps_order());
                Action::Read
            };
            self.batch.push(Request { key, action });
            self.flights.push(flight);
        }
        now_ns
    }

    /// Counts the batch. `broken`: why the rest of it has no answers. Whether anything succeeded.
    fn settle(&mut self, sent_ns: u64, broken: Option<&str>) -> bool {
        let shared = Arc::clone(&self.shared);
        let now_ns = self.now_ns();
        let mut last_write_ns = 0;
        let mut successes = 0;
        let end_ns = shared.end_ns();
        let measured = |begun_ns: u64| begun_ns >= shared.from_ns && begun_ns < end_ns;
        {
            let mut windows = lock(&shared.windows[self.thread]);
            for (request, flight) in self.batch.iter().zip(&self.flights) {
                let Ended::Right { at_ns, .. } = flight.ended else { continue };
                successes += 1;
                let latency_ns = at_ns.saturating_sub(flight.begun_ns);
                let measured = measured(flight.begun_ns);
                let writes = request.action != Action::Read;
                if writes {
                    last_write_ns = at_ns;
                }
                if measured {
                    let window = windows.second(second_of(&shared, at_ns));
                    if writes {
                        window.write(latency_ns);
                    } else {
                        window.read(latency_ns);
                    }
                }
            }
        }
        if last_write_ns > 0 {
            shared.phases.write_acknowledged(last_write_ns);
        }
        if successes < self.batch.len() {
            for (index, class) in std::mem::take(&mut self.failures) {
                self.count(self.flights[index].begun_ns, now_ns, Err(&class));
            }
            let class = broken.unwrap_or("mangled");
            for index in 0..self.batch.len() {
                if self.flights[index].ended != Ended::Open {
                    continue;
                }
                if let Action::Write(version) = self.batch[index].action {
                    shared.ledger.unknown(self.batch[index].key, version);
                }
                self.count(self.flights[index].begun_ns, now_ns, Err(class));
            }
        }
        if let Some(recorder) = &shared.recorder {
            let operations = self.batch.iter().zip(&self.flights);
            let writer = self.writer;
            let operations =
                operations.filter_map(|(request, flight)| entry(writer, sent_ns, *request, *flight));
            recorder.note(sent_ns, self.batch.len(), &mut self.entries, operations);
        }
        successes > 0
    }

    /// Counts a request that failed, if it is measured.
    fn count(&self, begun_ns: u64, ended_ns: u64, result: Result<(), &str>) {
        let shared = &self.shared;
        let Err(class) = result else { return };
        if begun_ns >= shared.from_ns && begun_ns < shared.end_ns() {
            lock(&shared.windows[self.thread]).second(second_of(shared, ended_ns)).error(class);
            shared.phases.failed(class);
        }
    }

    /// Open loop: what was due within the measurement and could not even be sent failed.
    fn count_unsent(&mut self) {
        if !self.is_open_loop() || self.shared.interrupted() {
            return;
        }
        let now_ns = self.now_ns();
        while (self.due_ns as u64) < self.shared.end_ns() {
            self.count(self.due_ns as u64, now_ns, Err("unsent"));
            self.due_ns += self.interval_ns;
        }
    }
}

/// What the check must know of an operation; nothing of a read that brought nothing.
fn entry(writer: u32, sent_ns: u64, request: Request, flight: Flight) -> Option<Entry> {
    let (deed, returned_ns) = match (request.action, flight.ended) {
        (Action::Write(version), Ended::Open) => (Deed::Wrote(version.seq, Some(Fate::Unknown)), u64::MAX),
        (Action::Write(version), Ended::Right { at_ns, .. }) => (Deed::Wrote(version.seq, None), at_ns),
        (Action::Write(version), Ended::Wrong { at_ns, fate, .. }) => {
            (Deed::Wrote(version.seq, Some(fate)), at_ns)
        }
        (Action::Read, Ended::Right { at_ns, seen } | Ended::Wrong { at_ns, seen, .. }) => {
            (Deed::Saw(seen?), at_ns)
        }
        (Action::Read, Ended::Open) => return None,
    };
    Some(Entry { client: writer, key: request.key, deed, invoked_ns: sent_ns, returned_ns })
}

/// The number of the second of the measurement in which `at_ns` lies; the last one, if it lies behind.
fn second_of(shared: &Shared, at_ns: u64) -> u64 {
    let last_ns = shared.end_ns().saturating_sub(1).min(at_ns);
    last_ns.saturating_sub(shared.from_ns) / 1_000_000_000
}

/// Looks at each answer as it arrives.
struct Judge<'a> {
    shared: &'a Shared,
    batch: &'a [Request],
    flights: &'a mut [Flight],
    failures: &'a mut Vec<(usize, String)>,
    leave: bool,
}

impl Sink for Judge<'_> {
    fn answer(&mut self, index: usize, answer: Answer<'_>, at_ns: u64) {
        let request = self.batch[index];
        let ledger = &self.shared.ledger;
        let ended = match (request.action, answer) {
            (Action::Write(version), Answer::Done) => {
                ledger.acknowledged(request.key, version, at_ns);
                Ended::Right { at_ns, seen: None }
            }
            (Action::Read, Answer::Value(value)) => {
                let flight = self.flights[index];
                let mut floor = flight.floor;
                if let Some(write) = flight.behind.map(|at| at as usize) {
                    if let (Ended::Right { .. }, Action::Write(version)) =
                        (self.flights[write].ended, self.batch[write].action)
                    {
                        floor = floor.max(version.floor);
                    }
                }
                match judge_value(self.shared, request.key, value, floor, at_ns) {
                    (seen, None) => Ended::Right { at_ns, seen: Some(seen) },
                    (seen, Some(class)) => self.wrong(index, class, Fate::NotExecuted, at_ns, Some(seen)),
                }
            }
            (Action::Read, Answer::Missing) if ledger.is_written(request.key) => {
                self.wrong(index, "stale_value", Fate::NotExecuted, at_ns, Some(Seen::Missing))
            }
            (Action::Read, Answer::Missing) => Ended::Right { at_ns, seen: Some(Seen::Missing) },
            (action, Answer::Error { class, fate, leave }) => {
                self.leave |= leave;
                if let Action::Write(version) = action {
                    match fate {
                        Fate::NotExecuted => ledger.not_executed(request.key, version),
                        Fate::Unknown => ledger.unknown(request.key, version),
                    }
                }
                self.wrong(index, class, fate, at_ns, None)
            }
            (Action::Write(version), Answer::Value(_) | Answer::Missing) => {
                ledger.unknown(request.key, version);
                self.wrong(index, "mangled", Fate::Unknown, at_ns, None)
            }
            (Action::Read, Answer::Done) => self.wrong(index, "mangled", Fate::NotExecuted, at_ns, None),
        };
        self.flights[index].ended = ended;
    }
}

impl Judge<'_> {
    fn wrong(&mut self, index: usize, class: &str, fate: Fate, at_ns: u64, seen: Option<Seen>) -> Ended {
        self.failures.push((index, class.to_owned()));
        Ended::Wrong { at_ns, fate, seen }
    }
}

/// What a value that was read says, and the class of error if it must not have been read.
pub(crate) fn judge_value(
    shared: &Shared,
    key: u32,
    value: &[u8],
    floor: u64,
    at_ns: u64,
) -> (Seen, Option<&'static str>) {
    match shared.dialer.texts.read_value(key, value) {
        Ok(version) => {
            let Version { seq, .. } = version;
            match shared.ledger.judge(key, version, floor, at_ns) {
                Ok(()) => (Seen::Write(seq), None),
                Err(Misread::Stale) => (Seen::Write(seq), Some("stale_value")),
                Err(Misread::NeverWritten) => (Seen::Odd, Some("wrong_value")),
            }
        }
        Err(Unfit::OtherKey) => (Seen::Odd, Some("wrong_value")),
        Err(Unfit::OtherRun) => (Seen::Odd, Some("stale_value")),
        Err(Unfit::Mangled) => (Seen::Odd, Some("mangled")),
    }
}

/// What `future` gives, or nothing after `deadline`. The timer is moved only when it goes off too early, so that a
/// request costs none; its last deadline must not lie behind this one.
async fn within<F: Future>(
    mut timer: Pin<&mut Sleep>,
    deadline: tokio::time::Instant,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        while timer.as_mut().poll(context).is_ready() {
            if timer.deadline() >= deadline {
                return Poll::Ready(None);
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    })
    .await
}
