//! One run from beginning to end: first values, warm-up, measurement with its faults, the last reading, the verdicts.
//!
//! Runs on the main thread, because only that may start processes (see `dsm::launcher`). Never loads the store itself.

use super::access::StoreAccess;
use super::check::{self, Deed, HistoryEntry, Recorder, ValueRead};
use super::clock::{ns, Clock};
use super::driver::resp::Script;
use super::driver::{
    Access, Answer, Dialer, Execution, LoadRequest, ResponseSink, StoreConnection, StoreProtocol,
};
use super::failures::{HistoryVerdict, Wrong};
use super::fault::{FaultAction, Strike};
use super::judge::judge_value;
use super::keys::{Chooser, Distribution};
use super::ledger::Ledger;
use super::load::{FaultPhase, Load, LoadPlan, Shared};
use super::monitor::{self, Monitor};
use super::options::Options;
use super::progress::Progress;
use super::record::{
    CheckRecord, CpuRecord, FaultRecord, LoadSettings, ReadBack, RunRecord, Second, Totals, FORMAT,
};
use super::stop::StopSignal;
use super::system::{self, CpuTime};
use super::value::{Texts, WriteNumber};
use super::window::{count_errors, TimeWindow};
use anyhow::Context as _;
use dsm::launcher::{Launcher, Role};
use dsm_server::why_not_launched::sentence;
use rand::RngExt as _;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests of the first writing and the last reading that are in flight at once, and their bytes.
const BATCH_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long the store may take to accept a batch of the first values, or to answer one of the last reading.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long it may take to accept the very first ones, so that a target that does not answer is reported soon.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);

/// How long the last reading may take for a batch after a signal: the user waits for the end.
const STOPPED_PATIENCE: Duration = Duration::from_secs(2);

/// How long a failed batch of those rests before it is tried again.
const REST: Duration = Duration::from_millis(20);

/// How long after its end a second is still open for requests that ended in it and were not counted at once.
const SECOND_OPEN_NS: u64 = 500_000_000;

/// From this share of the throughput that the pauses alone would allow, a run counts as limited by them.
const BOUND_SHARE: f64 = 0.8;

/// How many milliseconds WAIT gives the replicas.
const WAIT_MS: u64 = 1000;

/// The number under which the first writing stands in values and histories.
const FIRST_WRITER: u32 = 0;

/// What a run is made with.
pub(crate) struct Setting<'a> {
    pub options: &'a Options,
    /// This point of the grid.
    pub settings: LoadSettings,
    /// `host:port`.
    pub targets: Vec<String>,
    /// How they are reached.
    pub access: StoreAccess,
    /// The cluster, if it is the harness' own.
    pub launcher: Option<&'a mut Launcher>,
    /// Ends the run early.
    pub stop: &'a StopSignal,
    /// Shows how it goes.
    pub progress: &'a mut Progress,
    /// Takes the record as it is when the measurement is over, before the last reading and the check.
    pub keep: &'a mut dyn FnMut(&RunRecord) -> anyhow::Result<()>,
}

/// Makes one run.
///
/// # Errors
/// When the store could not be measured at all. What went wrong during the measurement is in the record.
#[expect(clippy::too_many_lines, reason = "the order of a run, which is what it is about")]
pub(crate) fn run(setting: Setting<'_>) -> anyhow::Result<RunRecord> {
    let Setting { options, settings, targets, access, mut launcher, stop, progress, keep } = setting;
    let clock = Clock::start();
    let value_bytes = settings.value_bytes as usize;
    let texts = Texts::new(&options.key_prefix, settings.keys, value_bytes, run_tag(&settings));
    let texts = Arc::new(texts);
    let protocol = options.protocol;
    let dialer = |wait| {
        let script = Arc::new(Script::new(Arc::clone(&texts), wait));
        let (targets, access) = (targets.clone(), access.clone());
        Dialer { targets, access, texts: Arc::clone(&texts), script, clock, protocol }
    };
    let ledger = Ledger::new(settings.keys).ordered(protocol.keeps_order());
    let mut first = write_first(&dialer(None), &ledger, options.timeout, stop)?;
    let dialer = dialer(options.wait.map(|replicas| (u64::from(replicas), WAIT_MS)));
    if !options.check {
        first = Vec::new();
    }
    // What does not speak Redis' protocol cannot be asked for INFO.
    let asked = if protocol == StoreProtocol::Resp { targets } else { Vec::new() };
    let monitor = Monitor::start(asked, dialer.access.clone(), settings.target.is_none())?;

    let from_ns = clock.now_ns() + ns(options.warmup);
    let end_ns = from_ns + ns(options.duration);
    let max = usize::try_from(options.check_max).unwrap_or(usize::MAX);
    let recorder = options.check.then(|| Recorder::new(max));
    let shared = Shared::new(plan(options, &settings)?, dialer, ledger, recorder, (from_ns, end_ns));
    let shared = Arc::new(shared);
    let load = Load::start(Arc::clone(&shared))?;
    let mut control = Control {
        shared: &shared,
        clock,
        stop,
        progress,
        seconds: Seconds::default(),
        strikes: options.fault.strikes().into(),
        faults: Vec::new(),
        cpu: None,
        cpu_total: None,
        connect_error_told: false,
    };
    control.watch(&load, launcher.as_deref_mut());
    let (Control { mut seconds, faults, cpu_total, .. }, interrupted) = (control, stop.is_set());
    let entries = load.join()?;
    seconds.take(&shared, u64::MAX);
    let (late, wrong_outside) = shared.take_rest();
    let end_ns = shared.end_ns();
    let duration_s = end_ns.saturating_sub(from_ns) as f64 / 1e9;
    seconds.close_all(&shared);
    let (longest_gap_ns, phases) = shared.phases.finish(end_ns);

    if let Some(launcher) = launcher.as_deref_mut() {
        undo_pauses(launcher);
    }
    let monitored = monitor.finish();
    let mut totals = seconds.total.totals(duration_s, &late);
    totals.bound_by_think = bound_by_think(&settings, &totals);
    totals.longest_write_gap_ms = gap_ms(&settings, longest_gap_ns);
    let cpu = cpu_total.unwrap_or_default();
    let requests = totals.total_requests.max(1) as f64;
    let mut record = RunRecord {
        format: FORMAT,
        started_at: clock.date(from_ns),
        command_line: std::env::args().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store: monitored.store,
        system: system::describe(),
        settings: LoadSettings {
            slaves: if settings.target.is_some() { monitored.slaves } else { settings.slaves },
            ..settings.clone()
        },
        duration_s,
        interrupted,
        run_tag: texts.run_tag().to_owned(),
        seconds: seconds.closed,
        totals,
        wrong_outside,
        faults: fault_records(&settings, &faults, &phases, from_ns),
        slave_loads: monitored.loads,
        check: None,
        read_back: None,
        read_back_error: "not yet".to_owned(),
        harness_cpu: CpuRecord {
            user_s: cpu.user_s,
            system_s: cpu.system_s,
            us_per_request: cpu.total_s() * 1e6 / requests,
        },
    };
    // The measurement is saved before anything else can fail.
    if let Err(error) = keep(&record) {
        progress.warn(&format!("{error:#}"));
    }

    progress.say("reading every key back");
    let mut last_entries = Vec::new();
    match read_back(&shared, options.timeout, stop) {
        Ok(last) => {
            blame(&mut record.faults, &faults, &last.lost_ns);
            (record.read_back, record.read_back_error) = (Some(last.record), String::new());
            last_entries = last.entries;
        }
        Err(error) => {
            record.read_back_error = format!("{error:#}");
            progress.warn(&format!("not read back: {error:#}"));
        }
    }
    if let Some(recorder) = &shared.recorder {
        progress.say("checking the history");
        first.extend(entries);
        first.append(&mut last_entries);
        if recorder.cut_ns().is_some() {
            progress.warn(&format!(
                "the history was recorded up to --check-max {} operations; what came later is not judged",
                recorder.max()
            ));
        }
        let mut check = judged(first, recorder.cut_ns(), &texts, stop)?;
        check.cut_at_s = recorder.cut_ns().map(|cut_ns| (cut_ns as f64 - from_ns as f64) / 1e9);
        record.check = Some(check);
    }
    if shared.ledger.overflowed() {
        progress.warn("too many writes had unknown outcomes: stale values were no longer told apart");
    }
    for (role, status) in launcher.map(Launcher::take_ended).unwrap_or_default() {
        progress.warn(&format!("{} after the measurement", ended(role, status)));
    }
    Ok(record)
}

/// Distinguishes the values of this run from those of any other, including other points of its grid.
fn run_tag(settings: &LoadSettings) -> u32 {
    let folded = (settings.seed ^ (settings.seed >> 32)) as u32;
    folded ^ rand::rng().random::<u32>()
}

/// Judges the history on a separate thread, so that a second signal need not wait for it.
fn judged(
    entries: Vec<HistoryEntry>,
    cut_ns: Option<u64>,
    texts: &Arc<Texts>,
    stop: &StopSignal,
) -> anyhow::Result<CheckRecord> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let texts = Arc::clone(texts);
    let work = move || {
        // After a second signal its result is no longer awaited.
        let _ = sender.send(check::judge(entries, cut_ns, &texts));
    };
    std::thread::Builder::new().name("check".to_owned()).spawn(work).context("cannot start a thread")?;
    block_on(async {
        tokio::select! {
            biased;
            check = receiver => check.context("the check of the history failed"),
            () = stop.reached(2) => {
                Ok(CheckRecord { verdict: HistoryVerdict::Interrupted, ..CheckRecord::default() })
            }
        }
    })
}

fn plan(options: &Options, settings: &LoadSettings) -> anyhow::Result<LoadPlan> {
    let distribution = options.distribution;
    debug_assert_eq!(distribution == Distribution::Zipf, settings.distribution == "zipf");
    Ok(LoadPlan {
        connections: settings.clients as usize * settings.pool as usize,
        threads: (options.threads as usize).min(settings.clients as usize * settings.pool as usize),
        write_share: settings.write_pct / 100.0,
        chooser: Chooser::new(distribution, settings.keys, options.zipf_exponent)?,
        think: options.think,
        rate: settings.rate,
        pipeline: settings.pipeline as usize,
        timeout: options.timeout,
        seed: settings.seed,
    })
}

/// Whether connections spent most of their time in their pauses: then the pauses were measured. A store that is full
/// is slower than that, and one that fails gets less.
fn bound_by_think(settings: &LoadSettings, totals: &Totals) -> bool {
    let connections = f64::from(settings.clients) * f64::from(settings.pool);
    let most_rps = connections * f64::from(settings.pipeline) / (settings.think_ms / 1000.0);
    settings.rate.is_none() && settings.think_ms > 0.0 && totals.throughput_rps >= BOUND_SHARE * most_rps
}

/// What the main thread does while the load runs: seconds, faults, the end.
struct Control<'a> {
    shared: &'a Arc<Shared>,
    clock: Clock,
    stop: &'a StopSignal,
    progress: &'a mut Progress,
    seconds: Seconds,
    strikes: std::collections::VecDeque<Strike>,
    /// Of each fault that struck: which, when, and when it was undone.
    faults: Vec<Struck>,
    /// At the last full second, and the time that second ended.
    cpu: Option<(CpuTime, u64)>,
    cpu_total: Option<CpuTime>,
    connect_error_told: bool,
}

/// A fault that struck, or a process that ended by itself.
struct Struck {
    /// Which one of the plan.
    fault: Option<usize>,
    name: String,
    at_ns: u64,
    until_ns: Option<u64>,
}

impl Control<'_> {
    fn watch(&mut self, load: &Load, mut launcher: Option<&mut Launcher>) {
        let from_ns = self.shared.from_ns;
        let mut tick_ns = self.clock.now_ns();
        let mut cpu_at_start = None;
        loop {
            if let Some(launcher) = launcher.as_deref_mut() {
                self.notice_ends(launcher);
            }
            let now_ns = self.clock.now_ns();
            let end_ns = self.shared.end_ns();
            if now_ns >= from_ns && cpu_at_start.is_none() {
                let cpu = CpuTime::now();
                cpu_at_start = Some(cpu);
                self.cpu = Some((cpu, now_ns));
                tick_ns = from_ns + 1_000_000_000;
            }
            while self
                .strikes
                .front()
                .is_some_and(|strike| from_ns + ns(strike.at) <= now_ns && now_ns < end_ns)
            {
                if let Some(strike) = self.strikes.pop_front() {
                    self.strike(strike, launcher.as_deref_mut());
                }
            }
            if now_ns >= tick_ns {
                self.tick(now_ns, from_ns);
                tick_ns += 1_000_000_000;
            }
            if now_ns >= end_ns {
                break;
            }
            let mut next_ns = tick_ns.min(end_ns);
            if cpu_at_start.is_none() {
                next_ns = next_ns.min(from_ns);
            }
            if let Some(strike) = self.strikes.front() {
                next_ns = next_ns.min(from_ns + ns(strike.at));
            }
            if self.stop.wait_until(self.clock.instant(next_ns)) {
                load.interrupt();
                break;
            }
        }
        self.cpu_total = cpu_at_start.map(|cpu| CpuTime::now().since(cpu));
        self.progress.end();
    }

    /// Notices the processes that ended without a request of the harness.
    fn notice_ends(&mut self, launcher: &mut Launcher) {
        for (role, status) in launcher.take_ended() {
            let at_ns = self.clock.now_ns();
            let name = ended(role, status);
            let output = launcher.last_output(role);
            let said = if output.is_empty() { String::new() } else { format!("; it said last: {output}") };
            self.progress.warn(&format!("{name}{said}"));
            self.shared.phases.begin_late(at_ns);
            self.faults.push(Struck { fault: None, name, at_ns, until_ns: None });
        }
    }

    /// A second is over.
    fn tick(&mut self, now_ns: u64, from_ns: u64) {
        // While a fault lasts, refused connections are expected.
        if let (Some(error), false, []) =
            (self.shared.connect_error.get(), self.connect_error_told, &self.faults[..])
        {
            self.progress.warn(&format!("a connection could not be opened: {error}"));
            self.connect_error_told = true;
        }
        if now_ns < from_ns {
            self.progress.warm_up((from_ns - now_ns) as f64 / 1e9);
            return;
        }
        let over = (now_ns - from_ns) / 1_000_000_000;
        let cpu = CpuTime::now();
        if let Some((before, at_ns)) = self.cpu.replace((cpu, now_ns)) {
            let wall_s = (now_ns - at_ns) as f64 / 1e9;
            if wall_s > 0.0 {
                let percent = 100.0 * cpu.since(before).total_s() / wall_s;
                self.seconds.cpu_pct.insert(over.saturating_sub(1), percent);
            }
        }
        self.seconds.take(self.shared, over);
        let closed = now_ns.saturating_sub(from_ns + SECOND_OPEN_NS) / 1_000_000_000;
        self.seconds.close(self.shared, closed.min(self.shared.last_second()));
        let total_s = (self.shared.end_ns() - from_ns) as f64 / 1e9;
        let window = self.seconds.open.get(&over.saturating_sub(1));
        // When nothing ended, that is what there is to see.
        let second = window.map_or_else(|| TimeWindow::default().second(1.0), |window| window.second(1.0));
        self.progress.second(over as f64, total_s, &second, self.seconds.failures);
    }

    fn strike(&mut self, strike: Strike, launcher: Option<&mut Launcher>) {
        let at_ns = self.clock.now_ns();
        if strike.undoes {
            if let Some(struck) = self.faults.iter_mut().find(|struck| struck.fault == Some(strike.fault)) {
                struck.until_ns = Some(at_ns);
            }
        } else {
            self.shared.phases.begin(at_ns);
            let name = strike.deed.to_string();
            self.faults.push(Struck { fault: Some(strike.fault), name, at_ns, until_ns: None });
        }
        self.progress.say(&format!("{} at {:.1} s", strike.deed, (at_ns - self.shared.from_ns) as f64 / 1e9));
        let done = match (strike.deed, launcher) {
            (FaultAction::Kill(role), Some(launcher)) => launcher.kill(role).map(|_| ()),
            (FaultAction::Restart(role), Some(launcher)) => launcher.restart(role),
            (FaultAction::Pause(role), Some(launcher)) => launcher.pause(role),
            (FaultAction::Resume(role), Some(launcher)) => launcher.resume(role),
            (FaultAction::RequestFailover, _) => {
                let Dialer { targets, access, .. } = &self.shared.dialer;
                monitor::request_failover(targets.clone(), access.clone());
                Ok(())
            }
            (_, None) => Ok(()),
        };
        if let Err(error) = done {
            self.progress.warn(&format!("{}: {}", strike.deed, sentence(&error)));
        }
    }
}

/// The seconds so far.
#[derive(Default)]
struct Seconds {
    /// Those that may still get something.
    open: BTreeMap<u64, TimeWindow>,
    closed: Vec<Second>,
    total: TimeWindow,
    failures: u64,
    cpu_pct: BTreeMap<u64, f64>,
}

impl Seconds {
    /// Takes what the load counted in the seconds before `number`.
    fn take(&mut self, shared: &Shared, number: u64) {
        for (second, mut window) in shared.take_before(number) {
            self.total.add(&window);
            self.failures += window.failures();
            let place = usize::try_from(second).unwrap_or(usize::MAX);
            if let Some(closed) = self.closed.get_mut(place) {
                // What could not be sent is known at the end only, and belongs where it was due.
                for (class, count) in window.take_errors() {
                    closed.error_count += count;
                    closed.total_requests += count;
                    count_errors(&mut closed.errors, &class, count);
                }
            }
            let second = second.max(self.closed.len() as u64);
            self.open.entry(second).or_default().add(&window);
        }
    }

    /// Closes the seconds before `number`.
    fn close(&mut self, shared: &Shared, number: u64) {
        let (clock, from_ns) = (&shared.dialer.clock, shared.from_ns);
        for second in self.closed.len() as u64..number {
            let start_ns = from_ns + second * 1_000_000_000;
            let until_ns = shared.second_end_ns(second);
            let window = self.open.remove(&second).unwrap_or_default();
            let figures = window.second(until_ns.saturating_sub(start_ns) as f64 / 1e9);
            self.closed.push(Second {
                at_s: until_ns.saturating_sub(from_ns) as f64 / 1e9,
                timestamp: clock.date(until_ns),
                harness_cpu_pct: self.cpu_pct.remove(&second).unwrap_or_default(),
                ..figures
            });
        }
    }

    /// Closes all of them.
    fn close_all(&mut self, shared: &Shared) {
        if shared.end_ns() <= shared.from_ns {
            return;
        }
        let last = shared.last_second();
        // An early end made it longer than it was to be.
        for (_, window) in self.open.split_off(&(last + 1)) {
            self.open.entry(last).or_default().add(&window);
        }
        self.close(shared, last + 1);
    }
}

fn undo_pauses(launcher: &mut Launcher) {
    for role in launcher.roles() {
        if launcher.state(role) == dsm::launcher::ProcessState::Paused {
            if let Err(error) = launcher.resume(role) {
                log::warn!("not resumed role={role} cause={error}");
            }
        }
    }
}

/// What is told of a process that ended by itself: `primary ended (signal 9)`.
fn ended(role: Role, status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("{role} ended (exit code {code})"),
        (None, Some(signal)) => format!("{role} ended (signal {signal})"),
        (None, None) => format!("{role} ended ({status})"),
    }
}

/// The longest time without an acknowledged write; where none was to be written, there is no such time.
fn gap_ms(settings: &LoadSettings, gap_ns: u64) -> Option<f64> {
    (settings.write_pct > 0.0).then_some(gap_ns as f64 / 1e6)
}

fn fault_records(
    settings: &LoadSettings,
    struck: &[Struck],
    phases: &[FaultPhase],
    from_ns: u64,
) -> Vec<FaultRecord> {
    let seconds = |at_ns: u64| at_ns.saturating_sub(from_ns) as f64 / 1e9;
    let records = struck.iter().zip(phases).map(|(struck, phase)| FaultRecord {
        // No fault strikes in the warm-up, but a process may die.
        name: format!("{}{}", struck.name, if struck.at_ns < from_ns { " in the warm-up" } else { "" }),
        at_s: seconds(struck.at_ns),
        until_s: struck.until_ns.map(seconds),
        longest_gap_ms: gap_ms(settings, phase.longest_gap_ns),
        errors: phase.errors.clone(),
        lost: 0,
    });
    records.collect()
}

/// Counts each key whose latest acknowledged write is gone to the first fault after the acknowledgement.
fn blame(records: &mut [FaultRecord], struck: &[Struck], lost_ns: &[u64]) {
    let last = struck.len().saturating_sub(1);
    for lost_ns in lost_ns {
        let blamed = struck.iter().position(|struck| struck.at_ns >= *lost_ns).unwrap_or(last);
        if let Some(record) = records.get_mut(blamed) {
            record.lost += 1;
        }
    }
}

/// Gives each answer of a batch of the first writing or the last reading to a closure.
struct Each<F>(F);

impl<F: FnMut(usize, Answer<'_>, u64)> ResponseSink for Each<F> {
    fn answer(&mut self, index: usize, answer: Answer<'_>, at_ns: u64) {
        (self.0)(index, answer, at_ns);
    }
}

/// How many values of this length are sent at once.
pub(crate) fn batch_size(value_bytes: usize) -> usize {
    (BATCH_BYTES_MAX / value_bytes.max(1)).clamp(1, BATCH_MAX)
}

fn batches(keys: u32, value_bytes: usize) -> impl Iterator<Item = std::ops::Range<u32>> {
    let size = batch_size(value_bytes);
    (0..keys).step_by(size).map(move |start| start..start.saturating_add(size as u32).min(keys))
}

/// A connection outside the load, which tries again until its patience ends.
struct Errand<'a> {
    dialer: &'a Dialer,
    timeout: Duration,
    /// What a batch may take, and since when it takes.
    patience: Duration,
    begun: Instant,
    stop: &'a StopSignal,
    /// How many signals end it.
    signals: u32,
    target: usize,
    connection: Option<StoreConnection>,
    last_error: String,
}

impl<'a> Errand<'a> {
    fn new(dialer: &'a Dialer, timeout: Duration, stop: &'a StopSignal, signals: u32) -> Errand<'a> {
        Errand {
            dialer,
            timeout,
            patience: PATIENCE,
            begun: Instant::now(),
            stop,
            signals,
            target: 0,
            connection: None,
            last_error: String::new(),
        }
    }

    fn begin(&mut self) {
        self.begun = Instant::now();
    }

    /// Waits until it is to be given up for the signals that came.
    async fn stopped(&self) {
        let soon = async {
            self.stop.reached(1).await;
            tokio::time::sleep_until((self.begun + STOPPED_PATIENCE).into()).await;
        };
        tokio::select! {
            () = self.stop.reached(self.signals) => {}
            () = soon => {}
        }
    }

    /// One try at a batch. What went wrong with the connection is in `last_error`.
    ///
    /// # Errors
    /// When it is to be given up.
    async fn exchange(&mut self, batch: &[LoadRequest], sink: &mut impl ResponseSink) -> anyhow::Result<()> {
        let connection = self.connection.take();
        let (dialer, target) = (self.dialer, self.target);
        let exchange = tokio::time::timeout(self.timeout, async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => dialer.dial(target).await?,
            };
            connection.exchange(batch, sink).await?;
            Ok::<_, std::io::Error>(connection)
        });
        let result = tokio::select! {
            biased;
            () = self.stopped() => anyhow::bail!("interrupted"),
            result = exchange => result,
        };
        let error = match result {
            Ok(Ok(connection)) => {
                self.connection = Some(connection);
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.timeout),
        };
        let asked = &dialer.targets[target % dialer.targets.len()];
        self.last_error = format!("{asked}: {error}");
        self.target += 1;
        Ok(())
    }

    /// Goes on to the next target: this one answers, but not with what was asked for.
    fn leave(&mut self, why: String) {
        self.last_error = why;
        self.connection = None;
        self.target += 1;
    }

    /// Rests before the next try.
    ///
    /// # Errors
    /// When the patience is at its end.
    async fn again(&self, what: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.begun.elapsed() < self.patience, "{what}: {}", self.last_error);
        tokio::time::sleep(REST).await;
        Ok(())
    }
}

fn block_on<T>(future: impl std::future::Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(future)
}

/// Writes every key once, so that whatever is read later was written by this run.
fn write_first(
    dialer: &Dialer,
    ledger: &Ledger,
    timeout: Duration,
    stop: &StopSignal,
) -> anyhow::Result<Vec<HistoryEntry>> {
    let batches = batches(dialer.texts.keys().len(), dialer.texts.value_bytes()).map(Iterator::collect);
    write_all(dialer, ledger, batches, timeout, stop)
}

/// Writes the keys of each batch, again and again until they are acknowledged. What was done, for the check.
///
/// # Errors
/// When the store did not take them in time, or it is to be stopped.
pub(crate) fn write_all(
    dialer: &Dialer,
    ledger: &Ledger,
    batches: impl Iterator<Item = Vec<u32>>,
    timeout: Duration,
    stop: &StopSignal,
) -> anyhow::Result<Vec<HistoryEntry>> {
    block_on(async {
        let mut entries = Vec::new();
        let mut errand = Errand::new(dialer, timeout, stop, 1);
        errand.patience = FIRST_PATIENCE;
        for mut left in batches {
            errand.begin();
            while !left.is_empty() {
                let fates = write_once(&mut errand, ledger, &left, &mut entries).await?;
                let mut fates = fates.into_iter();
                left.retain(|_| fates.next().is_some_and(|fate| fate.is_some()));
                if !left.is_empty() {
                    errand.again("cannot write the first values").await?;
                }
            }
            errand.patience = PATIENCE;
        }
        Ok(entries)
    })
}

/// One try; what became of each key's write, `None`: acknowledged.
async fn write_once(
    errand: &mut Errand<'_>,
    ledger: &Ledger,
    keys: &[u32],
    entries: &mut Vec<HistoryEntry>,
) -> anyhow::Result<Vec<Option<Execution>>> {
    let versions: Vec<WriteNumber> = keys.iter().map(|key| ledger.begin(*key, FIRST_WRITER)).collect();
    let requests = keys.iter().zip(&versions);
    let batch: Vec<LoadRequest> =
        requests.map(|(key, version)| LoadRequest { key: *key, action: Access::Write(*version) }).collect();
    let invoked_ns = errand.dialer.clock.now_ns();
    let mut fates = vec![(Some(Execution::Unknown), u64::MAX); batch.len()];
    let mut refused = None;
    let mut sink = Each(|index: usize, answer: Answer<'_>, at_ns| match answer {
        Answer::Done => fates[index] = (None, at_ns),
        Answer::Error { fate, class, .. } => {
            fates[index] = (Some(fate), at_ns);
            refused = Some(format!("the store refuses writes: {class}"));
        }
        Answer::Odd => {
            fates[index] = (Some(Execution::Unknown), at_ns);
            refused = Some(format!("the store refuses writes: {}", Wrong::Mangled.class()));
        }
        Answer::Value(_) | Answer::Missing => {}
    });
    errand.exchange(&batch, &mut sink).await?;
    if let Some(refused) = refused {
        errand.leave(refused);
    }
    for ((key, version), (fate, returned_ns)) in keys.iter().zip(&versions).zip(&fates) {
        match fate {
            None => ledger.acknowledged(*key, *version, *returned_ns),
            Some(Execution::NotExecuted) => ledger.not_executed(*key, *version),
            Some(Execution::Unknown) => ledger.unknown(*key, *version),
        }
        entries.push(HistoryEntry {
            client: FIRST_WRITER,
            key: *key,
            deed: Deed::Wrote(version.seq, *fate),
            invoked_ns,
            returned_ns: *returned_ns,
        });
    }
    Ok(fates.into_iter().map(|(fate, _)| fate).collect())
}

struct LastReading {
    record: ReadBack,
    /// When each lost write had been acknowledged.
    lost_ns: Vec<u64>,
    entries: Vec<HistoryEntry>,
}

/// Reads every key: each must hold its latest acknowledged write, or one that may have come later.
fn read_back(shared: &Shared, timeout: Duration, stop: &StopSignal) -> anyhow::Result<LastReading> {
    block_on(async {
        let mut last = LastReading { record: ReadBack::default(), lost_ns: Vec::new(), entries: Vec::new() };
        let mut errand = Errand::new(&shared.dialer, timeout, stop, 2);
        for keys in batches(shared.dialer.texts.keys().len(), shared.dialer.texts.value_bytes()) {
            errand.begin();
            let mut left: Vec<u32> = keys.collect();
            while !left.is_empty() {
                let read = read_once(&mut errand, shared, &left, &mut last).await?;
                let mut read = read.into_iter();
                left.retain(|_| read.next() == Some(false));
                if !left.is_empty() {
                    errand.again("cannot read the keys back").await?;
                }
            }
        }
        Ok(last)
    })
}

/// One try; which keys were read.
async fn read_once(
    errand: &mut Errand<'_>,
    shared: &Shared,
    keys: &[u32],
    last: &mut LastReading,
) -> anyhow::Result<Vec<bool>> {
    let batch: Vec<LoadRequest> =
        keys.iter().map(|key| LoadRequest { key: *key, action: Access::Read }).collect();
    let floors: Vec<u64> = keys.iter().map(|key| shared.ledger.floor(*key)).collect();
    let invoked_ns = shared.dialer.clock.now_ns();
    let mut read = vec![false; batch.len()];
    let mut refused = None;
    let mut sink = Each(|index: usize, answer: Answer<'_>, at_ns| {
        let key = batch[index].key;
        let texts = &shared.dialer.texts;
        let (seen, wrong) = match answer {
            Answer::Value(value) => judge_value(texts, &shared.ledger, key, value, floors[index], at_ns),
            Answer::Missing => (ValueRead::Missing, Some(Wrong::Stale)),
            Answer::Done => (ValueRead::Odd, Some(Wrong::Mangled)),
            Answer::Odd => {
                refused = Some(format!("the store refuses reads: {}", Wrong::Mangled.class()));
                return;
            }
            Answer::Error { class, .. } => {
                refused = Some(format!("the store refuses reads: {class}"));
                return;
            }
        };
        read[index] = true;
        last.record.keys_checked += 1;
        match wrong {
            None => {}
            Some(Wrong::Stale) => {
                last.record.lost += 1;
                last.lost_ns.push(shared.ledger.certain_ns(key));
            }
            Some(Wrong::NeverWritten | Wrong::Mangled) => last.record.mangled += 1,
        }
        let (client, deed) = (FIRST_WRITER, Deed::Saw(seen));
        last.entries.push(HistoryEntry { client, key, deed, invoked_ns, returned_ns: at_ns });
    });
    errand.exchange(&batch, &mut sink).await?;
    if let Some(refused) = refused {
        errand.leave(refused);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_bound_by_think_only_if_it_made_most_of_what_the_pauses_allow() {
        let settings =
            LoadSettings { clients: 5, pool: 2, pipeline: 3, think_ms: 10.0, ..LoadSettings::default() };
        let bound = |settings: &LoadSettings, rps: f64| {
            bound_by_think(settings, &Totals { throughput_rps: rps, ..Totals::default() })
        };
        // 10 connections with 3 requests each make at most 3000 a second with pauses of 10 ms.
        assert!(bound(&settings, 2_500.0));
        assert!(!bound(&settings, 2_300.0), "a store that answers slowly was measured, too");
        assert!(!bound(&LoadSettings { think_ms: 0.0, ..settings.clone() }, 1e9));
        assert!(!bound(&LoadSettings { rate: Some(1.0), ..settings }, 2_900.0));
    }
}
