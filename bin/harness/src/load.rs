//! The load itself: threads, connections, the loop of each connection. `judge` judges the answers.
//!
//! One thread serves many connections with one single-threaded runtime. A connection is one task that lives as long as
//! the load and reconnects by itself; a request costs no task, no timer and no allocation. What is counted goes once
//! a batch into [`Windows`], in the second in which the request ended.
//!
//! A request belongs to the measurement if it was begun (in the open loop: was due) within it. Requests that are
//! answered after its end are late. They count in the totals, because without them the slowest would be missing, but in
//! no second and no throughput. The open loop's backlog of the warm-up is dropped when the measurement begins.

use super::check::{HistoryEntry, Recorder};
use super::clock::ns;
use super::driver::{Access, Dialer, LoadRequest, StoreConnection};
use super::failures::{RequestFailure, Wrong};
use super::judge::{entry, AnswerJudge, Ended, Flight};
use super::keys::Chooser;
use super::ledger::Ledger;
use super::pacer::Pacer;
use super::schedule::Schedule;
use super::window::{count_errors, Errors, TimeWindow, Windows};
use anyhow::Context as _;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::future::{poll_fn, Future};
use std::io;
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep_until, Sleep};

/// The first and the longest pause of a connection after a round of targets that did not serve it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// How long after an interruption requests that were due before may still be sent.
const GRACE_MAX: Duration = Duration::from_secs(2);

/// When a process is found to have ended, failures of the last moments are attributed to it: this many moments of this
/// length.
const MOMENT_NS: u64 = 10_000_000;
const MOMENTS_MAX: usize = 20;

/// A second of the measurement.
const SECOND_NS: u64 = 1_000_000_000;

/// The shortest rest at the end that counts as a second of its own: a shorter one would give a rate from very few
/// requests.
const LAST_SECOND_NS_MIN: u64 = 500_000_000;

/// How far back in a batch a write of the same key is looked for.
const LOOK_BACK_MAX: usize = 64;

/// What the connections do.
#[derive(Clone, Debug)]
pub(crate) struct LoadPlan {
    /// How many there are.
    pub connections: usize,
    /// How many threads serve them.
    pub threads: usize,
    /// The share of writes, 0 to 1.
    pub write_share: f64,
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
    pub plan: LoadPlan,
    pub dialer: Dialer,
    /// What is known of the keys.
    pub ledger: Ledger,
    /// With `--check`: where operations are noted.
    pub recorder: Option<Recorder>,
    /// What happens from one fault to the next.
    pub phases: Phases,
    /// Why a connection could not be opened, the first time.
    pub connect_error: OnceLock<String>,
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
        plan: LoadPlan,
        dialer: Dialer,
        ledger: Ledger,
        recorder: Option<Recorder>,
        (from_ns, end_ns): (u64, u64),
    ) -> Shared {
        let windows = (0..plan.threads).map(|_| Mutex::default()).collect();
        let start_ns = dialer.clock.now_ns();
        Shared {
            start_ns,
            plan,
            dialer,
            ledger,
            recorder,
            phases: Phases::new(start_ns, from_ns),
            connect_error: OnceLock::new(),
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

    /// Open loop: until when what was due within the measurement may be sent.
    fn grace_until_ns(&self) -> u64 {
        let timeout = self.plan.timeout;
        let grace = if self.interrupted.load(Ordering::Acquire) { timeout.min(GRACE_MAX) } else { timeout };
        self.end_ns().saturating_add(ns(grace))
    }

    /// The number of the second in which `at_ns` lies; the last one, if it lies after.
    fn second_of(&self, at_ns: u64) -> u64 {
        (at_ns.saturating_sub(self.from_ns) / SECOND_NS).min(self.last_second())
    }

    /// The number of the last second, from 0.
    pub(crate) fn last_second(&self) -> u64 {
        let length_ns = self.end_ns().saturating_sub(self.from_ns);
        let full = length_ns / SECOND_NS;
        // A rest that is too short belongs to the previous second.
        full - u64::from(full > 0 && length_ns % SECOND_NS < LAST_SECOND_NS_MIN)
    }

    /// When the second with this number ends.
    pub(crate) fn second_end_ns(&self, number: u64) -> u64 {
        if number >= self.last_second() {
            self.end_ns()
        } else {
            self.from_ns + (number + 1) * SECOND_NS
        }
    }

    /// Takes what ended before second `number`, of all threads.
    pub(crate) fn take_before(&self, number: u64) -> Vec<(u64, TimeWindow)> {
        let lock = |windows| -> MutexGuard<'_, Windows> { lock(windows) };
        self.windows.iter().flat_map(|windows| lock(windows).take_before(number)).collect()
    }

    /// Takes from all threads what is in no second: requests that ended after the end, and wrong answers outside the
    /// measurement.
    pub(crate) fn take_rest(&self) -> (TimeWindow, Errors) {
        let (mut late, mut outside) = (TimeWindow::default(), Errors::new());
        for windows in &self.windows {
            let (window, errors) = lock(windows).take_rest();
            late.add(&window);
            for (class, count) in errors {
                count_errors(&mut outside, &class, count);
            }
        }
        (late, outside)
    }
}

/// What the load saw as a whole, and from each fault to the next.
#[derive(Debug)]
pub(crate) struct Phases {
    from_ns: u64,
    last_write_ns: AtomicU64,
    /// The longest time without an acknowledged write since `from_ns`.
    longest_gap_ns: AtomicU64,
    begun: AtomicBool,
    state: Mutex<PhasesState>,
}

#[derive(Debug, Default)]
struct PhasesState {
    phases: Vec<FaultPhase>,
    /// What failed a moment ago, by number of [`MOMENT_NS`]; [`MOMENTS_MAX`] of them.
    recent: BTreeMap<u64, Errors>,
}

/// From one fault to the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultPhase {
    /// When the fault struck.
    pub from_ns: u64,
    /// The longest time without an acknowledged write.
    pub longest_gap_ns: u64,
    /// Failures of this phase, by class.
    pub errors: Errors,
}

impl Phases {
    /// Of a load that starts at `start_ns` and is measured from `from_ns` on.
    fn new(start_ns: u64, from_ns: u64) -> Phases {
        Phases {
            from_ns,
            last_write_ns: AtomicU64::new(start_ns),
            longest_gap_ns: AtomicU64::new(0),
            begun: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(crate) fn begin(&self, now_ns: u64) {
        let mut state = lock(&self.state);
        let gap_ns = now_ns.saturating_sub(self.last_write_ns.load(Ordering::Relaxed));
        if let Some(phase) = state.phases.last_mut() {
            phase.longest_gap_ns = phase.longest_gap_ns.max(gap_ns);
        }
        state.phases.push(FaultPhase { from_ns: now_ns, ..FaultPhase::default() });
        self.begun.store(true, Ordering::Release);
    }

    /// A process is found to have ended a moment ago. Its connections noticed earlier, so the failures of that moment
    /// are attributed to it.
    pub(crate) fn begin_late(&self, now_ns: u64) {
        self.begin(now_ns);
        let mut state = lock(&self.state);
        let PhasesState { phases, recent } = &mut *state;
        let first = (now_ns / MOMENT_NS).saturating_sub(MOMENTS_MAX as u64);
        let Some((last, earlier)) = phases.split_last_mut() else { return };
        let mut earlier = earlier.last_mut();
        for (class, count) in recent.range(first..).flat_map(|(_, errors)| errors) {
            count_errors(&mut last.errors, class, *count);
            if let Some(counted) = earlier.as_mut().and_then(|phase| phase.errors.get_mut(class)) {
                *counted = counted.saturating_sub(*count);
            }
        }
        if let Some(phase) = earlier {
            phase.errors.retain(|_, count| *count > 0);
        }
        recent.clear();
    }

    /// The longest time without an acknowledged write in the measurement, which ended at `end_ns`, and the phases.
    pub(crate) fn finish(&self, end_ns: u64) -> (u64, Vec<FaultPhase>) {
        self.gap(self.last_write_ns.load(Ordering::Relaxed), end_ns);
        (self.longest_gap_ns.load(Ordering::Relaxed), lock(&self.state).phases.clone())
    }

    fn write_acknowledged(&self, at_ns: u64) {
        let before_ns = self.last_write_ns.fetch_max(at_ns, Ordering::Relaxed);
        self.gap(before_ns, at_ns);
    }

    /// No write was acknowledged between these two.
    fn gap(&self, before_ns: u64, at_ns: u64) {
        let gap_ns = at_ns.saturating_sub(before_ns.max(self.from_ns));
        if gap_ns > self.longest_gap_ns.load(Ordering::Relaxed) {
            self.longest_gap_ns.fetch_max(gap_ns, Ordering::Relaxed);
        }
        if gap_ns == 0 || !self.begun.load(Ordering::Acquire) {
            return;
        }
        if let Some(phase) = lock(&self.state).phases.last_mut() {
            phase.longest_gap_ns = phase.longest_gap_ns.max(at_ns.saturating_sub(before_ns));
        }
    }

    /// Requests failed, or were due and could not be sent, at `at_ns`.
    fn failed(&self, failure: &RequestFailure, at_ns: u64, count: u64) {
        let class = failure.class();
        let mut state = lock(&self.state);
        if let Some(phase) = state.phases.iter_mut().rfind(|phase| phase.from_ns <= at_ns) {
            count_errors(&mut phase.errors, class, count);
        }
        count_errors(state.recent.entry(at_ns / MOMENT_NS).or_default(), class, count);
        if state.recent.len() > MOMENTS_MAX {
            state.recent.pop_first();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No panic can leave a change unfinished.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A load under way.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<anyhow::Result<Vec<HistoryEntry>>>>,
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
        // Without receivers there is nothing left to stop.
        let _ = self.stop.send(true);
    }

    /// Waits for the requests in flight and gives what was recorded for the check.
    ///
    /// # Errors
    /// When a thread failed.
    pub(crate) fn join(self) -> anyhow::Result<Vec<HistoryEntry>> {
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
) -> anyhow::Result<Vec<HistoryEntry>> {
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
    /// How many targets in a row did not serve.
    refused: usize,
    /// Open loop: when requests are due.
    schedule: Option<Schedule>,
    batch: Vec<LoadRequest>,
    flights: Vec<Flight>,
    /// What failed in this batch, and how.
    failures: Vec<(usize, RequestFailure)>,
    entries: Vec<HistoryEntry>,
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
        let schedule =
            plan.rate.map(|rate| Schedule::new(shared.start_ns, rate, plan.connections, connection));
        let random = SmallRng::seed_from_u64(plan.seed.wrapping_add(connection as u64));
        let (batch, flights) = (Vec::with_capacity(plan.pipeline), Vec::with_capacity(plan.pipeline));
        Client {
            pacer,
            thread,
            waiter,
            writer: u32::try_from(connection + 1).unwrap_or(u32::MAX),
            random,
            target: 0,
            refused: 0,
            schedule,
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

    /// Whether no further request is to be sent.
    fn is_over(&self) -> bool {
        let (now_ns, end_ns) = (self.now_ns(), self.shared.end_ns());
        match &self.schedule {
            // Requests that were due within the measurement are still sent: else those that waited longest would be
            // left out.
            Some(schedule) => {
                let never_measured = end_ns <= self.shared.from_ns && now_ns >= end_ns;
                schedule.due_ns() >= end_ns || never_measured || now_ns >= self.shared.grace_until_ns()
            }
            None => now_ns >= end_ns,
        }
    }

    /// Open loop: when the next request is due. From the start of the measurement on, none of the warm-up is.
    fn due_ns(&mut self) -> Option<u64> {
        let now_ns = self.now_ns();
        let schedule = self.schedule.as_mut()?;
        if now_ns >= self.shared.from_ns {
            schedule.skip_before(self.shared.from_ns);
        }
        Some(schedule.due_ns())
    }

    async fn run(mut self) -> Vec<HistoryEntry> {
        let think = self.shared.plan.think;
        if !think.is_zero() && self.schedule.is_none() {
            // Otherwise all would connect at the same moments.
            let first = self.random.random_range(Duration::ZERO..think);
            let at_ns = self.now_ns() + ns(first);
            self.pause(at_ns).await;
        }
        let mut backoff = BACKOFF.0;
        while !self.is_over() {
            if let Some(connection) = self.connect().await {
                if self.use_up(connection).await {
                    backoff = BACKOFF.0;
                    self.refused = 0;
                } else {
                    self.refused += 1;
                }
                self.target += 1;
            }
            if self.refused >= self.shared.dialer.targets.len() {
                // Whether they refuse or close the connection, or do not serve: an immediate retry would give the same
                // result.
                self.refused = 0;
                let rest = backoff.mul_f64(self.random.random_range(0.5..1.0));
                backoff = (backoff * 2).min(BACKOFF.1);
                self.rest(rest).await;
            }
        }
        self.count_unsent();
        self.entries
    }

    /// Waits, but not beyond the end.
    async fn pause(&self, until_ns: u64) {
        self.pacer.until(self.waiter, until_ns.min(self.shared.end_ns())).await;
    }

    /// Waits, beyond the end only while there is something to send.
    async fn rest(&self, rest: Duration) {
        let until_ns = self.now_ns() + ns(rest);
        self.pause(until_ns).await;
        if !self.is_over() {
            tokio::time::sleep(self.shared.dialer.clock.until(until_ns)).await;
        }
    }

    /// Tries each target once. That none took the connection is one failed request.
    async fn connect(&mut self) -> Option<StoreConnection> {
        let begun_ns = self.now_ns();
        let timeout = self.shared.plan.timeout;
        for _ in 0..self.shared.dialer.targets.len() {
            let error = match tokio::time::timeout(timeout, self.shared.dialer.dial(self.target)).await {
                Ok(Ok(connection)) => return Some(connection),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no connection within {timeout:?}"),
            };
            let targets = &self.shared.dialer.targets;
            self.shared
                .connect_error
                .get_or_init(|| format!("{}: {error}", targets[self.target % targets.len()]));
            self.target += 1;
            self.refused += 1;
            if self.is_over() {
                return None;
            }
        }
        self.count_error(begun_ns, self.now_ns(), &RequestFailure::Connection);
        None
    }

    /// Sends batches until the connection breaks, is to be left, or the load is over. Returns whether any request
    /// succeeded.
    async fn use_up(&mut self, mut connection: StoreConnection) -> bool {
        let timeout = self.shared.plan.timeout;
        let mut useful = false;
        let mut timer = pin!(sleep_until(tokio::time::Instant::now() + timeout));
        loop {
            if let Some(due_ns) = self.due_ns() {
                self.pause(due_ns).await;
            }
            if self.is_over() {
                return useful;
            }
            let sent_ns = self.build();
            let deadline = self.shared.dialer.clock.instant(sent_ns) + timeout;
            let mut judge = AnswerJudge {
                ledger: &self.shared.ledger,
                texts: &self.shared.dialer.texts,
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
                Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    Some(RequestFailure::Wrong(Wrong::Mangled))
                }
                Some(Err(_)) => Some(RequestFailure::Connection),
                None => Some(RequestFailure::Timeout),
            };
            let is_broken = broken.is_some();
            useful |= self.settle(sent_ns, broken);
            if is_broken || leave {
                return useful;
            }
            let think = self.shared.plan.think;
            if !think.is_zero() && self.schedule.is_none() {
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
            let due_ns = match &mut self.schedule {
                Some(schedule) => {
                    let due_ns = schedule.due_ns();
                    if due_ns > now_ns && !self.batch.is_empty() {
                        break;
                    }
                    schedule.advance();
                    due_ns
                }
                None => now_ns,
            };
            // A wait may end a little early.
            let begun_ns = due_ns.min(now_ns);
            let key = plan.chooser.choose(&mut self.random);
            let writes = self.random.random::<f64>() < plan.write_share;
            let mut flight = Flight { due_ns, begun_ns, floor: 0, behind: None, ended: Ended::Open };
            let action = if writes {
                Access::Write(ledger.begin(key, self.writer))
            } else {
                flight.floor = ledger.floor(key);
                let same = |request: &LoadRequest| request.key == key && request.action != Access::Read;
                let start = self.batch.len().saturating_sub(LOOK_BACK_MAX);
                let found = self.batch[start..].iter().rposition(same).map(|at| (start + at) as u32);
                // Where there is no order, the read may overtake that write.
                flight.behind = found.filter(|_| self.shared.dialer.protocol.keeps_order());
                Access::Read
            };
            self.batch.push(LoadRequest { key, action });
            self.flights.push(flight);
        }
        now_ns
    }

    /// Counts the batch. `broken`: why the rest of it has no answers. Whether anything succeeded.
    fn settle(&mut self, sent_ns: u64, broken: Option<RequestFailure>) -> bool {
        let shared = Arc::clone(&self.shared);
        let now_ns = self.now_ns();
        let mut last_write_ns = 0;
        let mut successes = 0;
        let end_ns = shared.end_ns();
        {
            let mut windows = lock(&shared.windows[self.thread]);
            for (request, flight) in self.batch.iter().zip(&self.flights) {
                let Ended::Right { at_ns, .. } = flight.ended else { continue };
                successes += 1;
                let latency_ns = at_ns.saturating_sub(flight.begun_ns);
                let writes = request.action != Access::Read;
                // Answers that came together have one time.
                if writes && at_ns != last_write_ns {
                    last_write_ns = at_ns;
                    shared.phases.write_acknowledged(at_ns.min(end_ns));
                }
                if flight.due_ns < shared.from_ns || flight.due_ns >= end_ns {
                    continue;
                }
                let window =
                    if at_ns < end_ns { windows.second(shared.second_of(at_ns)) } else { windows.late() };
                if writes {
                    window.write(latency_ns);
                } else {
                    window.read(latency_ns);
                }
            }
        }
        if successes < self.batch.len() {
            for (index, failure) in std::mem::take(&mut self.failures) {
                self.count_error(self.flights[index].due_ns, now_ns, &failure);
            }
            let failure = broken.unwrap_or(RequestFailure::Wrong(Wrong::Mangled));
            for index in 0..self.batch.len() {
                if self.flights[index].ended != Ended::Open {
                    continue;
                }
                if let Access::Write(version) = self.batch[index].action {
                    shared.ledger.unknown(self.batch[index].key, version);
                }
                self.count_error(self.flights[index].due_ns, now_ns, &failure);
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

    /// Counts a request that failed.
    fn count_error(&self, due_ns: u64, ended_ns: u64, failure: &RequestFailure) {
        let shared = &self.shared;
        let end_ns = shared.end_ns();
        let mut windows = lock(&shared.windows[self.thread]);
        if due_ns < shared.from_ns || due_ns >= end_ns {
            windows.outside(failure);
            return;
        }
        let window =
            if ended_ns < end_ns { windows.second(shared.second_of(ended_ns)) } else { windows.late() };
        window.errors(failure, 1);
        shared.phases.failed(failure, ended_ns, 1);
    }

    /// Open loop: requests that were due within the measurement and could not be sent count as failed when they were
    /// due.
    fn count_unsent(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(schedule) = &mut self.schedule else { return };
        schedule.skip_before(shared.from_ns);
        let mut windows = lock(&shared.windows[self.thread]);
        loop {
            let due_ns = schedule.due_ns();
            if due_ns >= shared.end_ns() {
                return;
            }
            let second = shared.second_of(due_ns);
            let count = schedule.take_before(shared.second_end_ns(second));
            windows.second(second).errors(&RequestFailure::Unsent, count);
            shared.phases.failed(&RequestFailure::Unsent, due_ns, count);
        }
    }
}

/// The result of `future`, or `None` after `deadline`. The timer is moved only when it fires too early, so that a
/// request costs no timer call. Deadlines must not decrease.
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn refused(word: &str) -> RequestFailure {
        RequestFailure::Refused(word.to_owned())
    }

    #[test]
    fn the_longest_gap_counts_from_the_start_to_the_end_and_not_the_warm_up() {
        let phases = Phases::new(0, 1000 * MS);
        for at_ms in [100, 900, 1300, 1350] {
            phases.write_acknowledged(at_ms * MS);
        }
        assert_eq!(phases.finish(1600 * MS).0, 300 * MS, "from the start to the first write");
        assert_eq!(phases.finish(1700 * MS).0, 350 * MS, "from the last write to the end");
        assert_eq!(Phases::new(0, 1000 * MS).finish(3000 * MS).0, 2000 * MS);
    }

    #[test]
    fn each_fault_has_the_gap_and_the_errors_after_it() {
        let phases = Phases::new(0, 0);
        phases.write_acknowledged(90 * MS);
        phases.failed(&refused("early"), 95 * MS, 1);
        phases.begin(100 * MS);
        phases.failed(&RequestFailure::Connection, 110 * MS, 2);
        phases.write_acknowledged(150 * MS);
        phases.begin(200 * MS);
        // What was due between the two faults and is counted later belongs there.
        phases.failed(&RequestFailure::Unsent, 190 * MS, 5);
        phases.failed(&RequestFailure::Unsent, 200 * MS, 7);
        let (longest_ns, found) = phases.finish(230 * MS);
        assert_eq!(longest_ns, 90 * MS);
        let told: Vec<_> = found.iter().map(|phase| (phase.longest_gap_ns / MS, &phase.errors)).collect();
        let first = Errors::from([("connection".to_owned(), 2), ("unsent".to_owned(), 5)]);
        let second = Errors::from([("unsent".to_owned(), 7)]);
        assert_eq!(told, [(60, &first), (80, &second)]);
    }

    #[test]
    fn errors_just_before_a_process_was_found_dead_are_attributed_to_its_death() {
        let phases = Phases::new(0, 0);
        phases.begin(0);
        phases.failed(&refused("busy"), 100 * MS, 1);
        phases.failed(&RequestFailure::Connection, 100 * MS, 3);
        phases.failed(&RequestFailure::Connection, 995 * MS, 2);
        phases.begin_late(1000 * MS);
        phases.failed(&RequestFailure::Connection, 1005 * MS, 4);
        let found: Vec<_> = phases.finish(2000 * MS).1.into_iter().map(|phase| phase.errors).collect();
        let before = Errors::from([("busy".to_owned(), 1), ("connection".to_owned(), 3)]);
        assert_eq!(found, [before, Errors::from([("connection".to_owned(), 6)])]);
    }

    #[test]
    fn the_failures_that_are_kept_for_that_are_few() {
        let phases = Phases::new(0, 0);
        for at_ms in 0..10_000 {
            phases.failed(&refused("busy"), at_ms * MS, 1);
        }
        assert_eq!(lock(&phases.state).recent.len(), MOMENTS_MAX);
        phases.begin_late(10_000 * MS);
        let errors = &phases.finish(10_000 * MS).1[0].errors;
        assert_eq!(errors, &Errors::from([("busy".to_owned(), 200)]));
    }
}
