//! One seed: a cluster, its clients, its faults, and the verdict on what came of it.

use crate::callers;
use crate::clients::{
    expiring_key, insist, insist_at, is_expiring, pair_keys, Answer, Client, Habits, Recorder, Trouble,
    COUNTER, LIFETIME_MAX_MS, PAIRS,
};
use crate::cluster::{Cluster, Node, Shape};
use crate::damage;
use crate::lost;
use crate::moved;
use crate::nemesis::{Nemesis, Tally};
use crate::operator::Operator;
use crate::repaired;
use crate::short;
use crate::witness::Witness;
use bytes::Bytes;
use dsm::config::{CopyCount, Fsync};
use dsm::env::sim::{NetSettings, World};
use dsm::node_error::NodeError;
use dsm_history::Violation;
use dsm_protocol::record::{Body, Scanner, Step};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a cluster may take to serve again when everything is mended.
const CONVERGE_LIMIT: Duration = Duration::from_secs(60);

/// The longest line of a log here.
pub(crate) const LINE_BYTES_MAX: usize = 1 << 20;

/// In one seed of so many, half of the clients speak the native protocol.
const NATIVE_EVERY: u64 = 5;

/// One seed in so many gets its log damaged at the end.
const DAMAGED_EVERY: u64 = 4;

/// In one seed of so many, the log is lost at the end, and found again.
const LOST_EVERY: u64 = 4;

/// In one seed of so many, the log is moved away at the end, and back.
const MOVED_EVERY: u64 = 4;

/// In every so many seeds keys have a fixed number of copies, one or two.
const FIXED_COPIES_EVERY: u64 = 4;

/// In one seed of so many, slaves lose all that they hold at the end.
const EMPTIED_EVERY: u64 = 2;

/// In one seed of so many, an operator removes slaves, and others have little room.
const REMOVED_EVERY: u64 = 5;

/// In one seed of so many, the primary hangs at the end.
const HUNG_EVERY: u64 = 4;

/// In one seed of so many the log is synced once a second only. What was acknowledged survives all but a power cut.
const EVERYSEC_EVERY: u64 = 6;

/// In one seed of so many, one value at a time is on its way from a slave, and clients pipeline: reads wait while what
/// was asked after them is done.
const NARROW_EVERY: u64 = 3;

/// In one seed of so many, the masters are asked to stop at the end.
const STOPPED_EVERY: u64 = 3;

/// In one seed of so many with more than one slave, the cluster becomes short of room and of a standby at the end.
const SHORT_EVERY: u64 = 3;

/// How many clients are there when they stop.
const VISITORS: u64 = 12;

/// How long a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(7);

/// In one seed of so many, a master does one key of a request of several at a time: what is done in slices of hundreds of
/// keys elsewhere is in slices here.
const SLICED_EVERY: u64 = 2;

/// In every so many of them the log is compacted again and again.
const COMPACTED_EVERY: u64 = 3;

/// In one seed of so many, slaves and masters prove a secret.
const SECRET_EVERY: u64 = 16;

/// How long a primary that hangs may stay without a successor, beyond the failover timeout.
const REPLACE_LIMIT: Duration = Duration::from_secs(5);

/// How long a reign that was moved stays before the primary may ask for it back.
const STAYS: Duration = Duration::from_millis(900);

/// What is looked at, in each seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// Nothing panics.
    NoPanic,
    /// No node ends for a reason that the faults do not give.
    Ends,
    /// What a slave is told is on the log's disk.
    LogFirst,
    /// An epoch is announced by one process only.
    OneReign,
    /// A version of a key has one value.
    OneValue,
    /// An answer is of the kind that was asked for; an error, one that a client must expect.
    Answers,
    /// The two keys of a pair, which are written together alone, hold the same.
    Pairs,
    /// A write that is done was acknowledged by a slave.
    DoneIsAcknowledged,
    /// A slave that was told of its quarantine hears of a reign only after it has taken a trial.
    Tried,
    /// A slave obeys only the latest reign that it has enlisted with.
    SlaveObeys,
    /// A slave answers no older version than it was asked for.
    SlaveAnswers,
    /// A slave has what it has acknowledged, unless it was told to drop it.
    SlaveKeeps,
    /// A damaged log is named and left alone.
    Damage,
    /// Without its log, or with an older copy of it, nobody is served.
    Lost,
    /// When the log is moved away nobody is served, and what was replayed is kept.
    Moved,
    /// The cluster serves when everything is mended.
    Serves,
    /// So it does for each client that was there all the time.
    ServesClients,
    /// There is one primary, one standby, and all slaves are active, and known to both.
    Converges,
    /// A primary that hangs is fenced and replaced in time.
    Replaces,
    /// Nobody is killed but the holder of the lock.
    Kills,
    /// The reign moves when an operator asks for it.
    Handover,
    /// A master that is asked to stop hands over, or answers what it has in hand: nothing becomes unknown.
    Stops,
    /// A slave is sent nothing that it has no room for, while others have.
    Room,
    /// Lost copies are made again.
    Repairs,
    /// A slave that was removed is let go, and only when the others have all copies of its keys.
    LetGo,
    /// What the cluster is short of is told, until it is over.
    Told,
    /// A client reaches the master that serves within a request's time, though others hang.
    Reaches,
    /// Every key can be read.
    Readable,
    /// The history of each key is linearizable.
    Linearizable,
    /// No increment is lost, and none counts twice.
    Counter,
    /// Keys expire.
    Expires,
    /// A read after a write of its own pipeline sees that write, or a later one; one in front of a write does not see it.
    Order,
    /// What is read at the end is what may stand there.
    LastWrite,
    /// The log replays to the same.
    Log,
}

/// Why a seed failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) check: Check,
    pub(crate) what: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.check, self.what)
    }
}

impl Check {
    pub(crate) fn failed<T>(self, what: impl Into<String>) -> Result<T, Failure> {
        Err(Failure { check: self, what: what.into() })
    }
}

/// What came of a seed.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Equal for two runs of one seed.
    pub(crate) digest: u64,
    pub(crate) virtual_time: Duration,
    pub(crate) operations: usize,
    pub(crate) tally: Tally,
    /// How often the log was damaged at the end.
    pub(crate) damages: u64,
    /// How many slaves were drained.
    pub(crate) let_go: u64,
    pub(crate) answers: BTreeMap<String, u64>,
    /// Why the seed failed.
    pub(crate) failure: Option<Failure>,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// A panic in a task is silent in tokio: it is kept, and fails the seed.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if WATCHED.get() {
                PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            } else {
                before(panic);
            }
        }));
    });
}

/// Runs a seed.
pub(crate) fn run(seed: u64, duration: Duration, narrate: bool) -> Report {
    guarded(seed, |world| async move {
        world.set_narrate(narrate);
        scenario(world, seed, duration).await
    })
}

/// Runs a scenario. A panic anywhere in it is a failure like any other.
pub(crate) fn guarded<F: Future<Output = Report>>(seed: u64, scenario: impl FnOnce(World) -> F) -> Report {
    watch_panics();
    PANICS.take();
    WATCHED.set(true);
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| World::run(seed, scenario)));
    WATCHED.set(false);
    dsm::testing::look_at_masters(None);
    let panics = PANICS.take();
    let mut report = ran.unwrap_or_default();
    if !panics.is_empty() {
        report.failure = Some(Failure { check: Check::NoPanic, what: panics.join("; ") });
    }
    report
}

/// Damages the log of a quiet cluster again and again.
pub(crate) fn run_damaged(seed: u64, times: usize) -> Report {
    guarded(seed, |world| async move {
        let mut report = Report::default();
        report.failure = damaged(world, times, &mut report).await.err();
        report
    })
}

async fn damaged(world: World, times: usize, report: &mut Report) -> Result<(), Failure> {
    let cluster = Cluster::start(&world, Shape::default());
    let witness = Witness::listen(&world, &cluster);
    let recorder = Recorder::new(&witness);
    let stop = Rc::new(Cell::new(false));
    let habits = habits(&world);
    let mut clients = JoinSet::new();
    for id in 1..=4 {
        clients.spawn_local(Client::new(&cluster, id, &recorder, habits.clone(), &stop).run());
    }
    let env = world.env(&world.machine("judge-machine"), "judge");
    for _ in 0..times {
        tokio::time::sleep(Duration::from_secs(2)).await;
        report.damages += u64::from(damage::strike(&cluster).await?);
        serves(&env).await?;
    }
    witness.verdict()?;
    match recorder.history().check() {
        Ok(_) => Ok(()),
        Err(violation) => Check::Linearizable.failed(violation.to_string()),
    }
}

/// Prints what the actors log, with the node and the virtual time.
struct Narrator;

impl log::Log for Narrator {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        WATCHED.get()
    }

    fn log(&self, record: &log::Record<'_>) {
        if let Some((host, time)) = dsm::env::sim::turn() {
            println!("{:>10.3} s  {host} {}: {}", time.as_secs_f64(), record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Lets the actors' log be printed, at the level that `RUST_LOG` names (`info` when it names none).
pub(crate) fn narrate() {
    let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
    log::set_max_level(level.unwrap_or(log::LevelFilter::Info));
    // It is the only logger of this program.
    let _ = log::set_logger(&Narrator);
}

fn habits(world: &World) -> Habits {
    let draw = |low, high| world.random_within(low..=high);
    Habits {
        keys: draw(2, 20),
        writes: draw(200, 700),
        deletes: draw(0, 100),
        many: draw(0, 200),
        updates: [0, 200, 600][draw(0, 2) as usize],
        pipeline: [1, 1, 4][draw(0, 2) as usize],
        think_ms: draw(20, 200),
        value_bytes: [0, 20, 2000][draw(0, 2) as usize],
    }
}

/// The shape of a seed's cluster.
fn shape(world: &World, seed: u64) -> Shape {
    let mut shape = Shape::draw(world);
    if seed % EVERYSEC_EVERY == 2 {
        shape.fsync = Fsync::Everysec;
    }
    if is_narrow(seed) {
        shape.slave_window = bytesize::ByteSize::b(1);
    }
    if seed % SLICED_EVERY == 1 {
        shape.slice_keys = Some(1);
    }
    if seed % COMPACTED_EVERY == 1 {
        shape.compact_min = bytesize::ByteSize::b(world.random_within(1..=20) * 1000);
    }
    if seed % FIXED_COPIES_EVERY == 1 {
        shape.copies = CopyCount::Fixed(1 + (seed / FIXED_COPIES_EVERY % 2) as u8);
    }
    shape.has_secret = seed % SECRET_EVERY == SECRET_EVERY - 1;
    if removes(seed) {
        shape.slaves = shape.slaves.max(3);
        shape.copies =
            [CopyCount::Half, CopyCount::Fixed(1), CopyCount::Fixed(2)][(seed / REMOVED_EVERY % 3) as usize];
    }
    shape
}

fn is_narrow(seed: u64) -> bool {
    seed % NARROW_EVERY == 1
}

/// Whether an operator removes slaves.
fn removes(seed: u64) -> bool {
    seed % REMOVED_EVERY == 2
}

async fn scenario(world: World, seed: u64, duration: Duration) -> Report {
    if let Err(failure) = callers::check(seed) {
        return Report { failure: Some(failure), ..Report::default() };
    }
    let cluster = Cluster::start(&world, shape(&world, seed));
    cluster.set_restart_ms(0, world.random_within(0..=2000));
    let witness = Witness::listen(&world, &cluster);
    let recorder = Recorder::new(&witness);
    let stop = Rc::new(Cell::new(false));
    let mut habits = habits(&world);
    if is_narrow(seed) {
        habits.pipeline = 8;
    }
    let mut clients = JoinSet::new();
    for id in 1..=8 {
        let mut client = Client::new(&cluster, id, &recorder, habits.clone(), &stop);
        client.is_native = seed % NATIVE_EVERY == NATIVE_EVERY - 1 && id % 2 == 0;
        clients.spawn_local(client.run());
    }
    let operator = removes(seed).then(|| Operator::watch(&cluster, &witness));
    let nemesis = Nemesis::draw(&cluster, &witness, operator.clone());
    world.say(|| format!("shape {:?} habits {habits:?} faults {:?}", cluster.shape(), nemesis.classes()));
    nemesis.rage(duration).await;
    nemesis.rest();
    if let Some(operator) = &operator {
        operator.take_back().await;
    }
    world.say(|| "everything is mended".to_owned());
    let trials = Trials {
        is_damaged: seed % DAMAGED_EVERY == DAMAGED_EVERY - 1,
        is_lost: seed.is_multiple_of(LOST_EVERY),
        is_moved: seed % MOVED_EVERY == 2,
        is_emptied: seed % EMPTIED_EVERY == 1,
        is_hung: seed % HUNG_EVERY == 1,
        is_stopped: seed.is_multiple_of(STOPPED_EVERY),
        is_short: seed % SHORT_EVERY == 2 && cluster.shape().slaves > 1,
        operator: operator.clone(),
    };
    let verdict = match witness.verdict() {
        Ok(()) => verdict(&cluster, &recorder, &witness, &stop, clients, habits.keys, trials).await,
        heard => heard.map(|()| 0),
    };
    // What was wrong on the wire explains what came of it.
    let verdict = kills(&world).and(witness.verdict()).and(verdict);
    let damages = *verdict.as_ref().unwrap_or(&0);
    if let Ok(path) = std::env::var("SIM_KEEP_LOG") {
        std::fs::write(path, cluster.log()).expect("the log can be kept");
    }
    Report {
        digest: world.digest(),
        virtual_time: world.elapsed(),
        operations: recorder.history().operations().len(),
        tally: nemesis.tally(),
        damages,
        let_go: operator.map_or(0, |operator| operator.let_go()),
        answers: recorder.answers(),
        failure: verdict.err(),
    }
}

/// A standby kills a master that hangs, and nobody else.
fn kills(world: &World) -> Result<(), Failure> {
    world.wrong_kill().map_or(Ok(()), |what| Check::Kills.failed(what))
}

/// What a cluster must stand once everything is mended.
#[derive(Clone, Default)]
pub(crate) struct Trials {
    /// Its log is damaged.
    pub(crate) is_damaged: bool,
    /// Its log is lost and found again.
    pub(crate) is_lost: bool,
    /// Its log is moved away and back.
    pub(crate) is_moved: bool,
    /// Slaves lose all that they hold.
    pub(crate) is_emptied: bool,
    /// Its primary hangs.
    pub(crate) is_hung: bool,
    /// Its masters are asked to stop, first the one that serves, and then both.
    pub(crate) is_stopped: bool,
    /// It becomes short of room and of a standby.
    pub(crate) is_short: bool,
    /// He removes a slave.
    pub(crate) operator: Option<Operator>,
}

/// Everything is mended: the cluster must serve again, and everything it said must have been true. How often its log
/// was damaged.
#[expect(clippy::too_many_lines, reason = "the trials of a cluster in their order")]
pub(crate) async fn verdict(
    cluster: &Cluster,
    recorder: &Recorder,
    witness: &Witness,
    stop: &Rc<Cell<bool>>,
    mut clients: JoinSet<()>,
    keys: u64,
    trials: Trials,
) -> Result<u64, Failure> {
    ends(cluster)?;
    let machine = cluster.world().machine("judge-machine");
    let env = cluster.world().env(&machine, "judge");
    let served = serves(&env).await;
    // Why it does not, if a node's end says so.
    ends(cluster)?;
    served?;
    let mut damages = 0;
    if trials.is_damaged {
        damages += u64::from(damage::strike(cluster).await?);
        serves(&env).await?;
    }
    if trials.is_lost {
        lost::strike(cluster, &env).await?;
        serves(&env).await?;
    }
    if trials.is_moved {
        moved::strike(cluster, &env).await?;
        serves(&env).await?;
    }
    // The clients, too, find their way back, each of them.
    let before = recorder.acknowledged();
    let deadline = tokio::time::Instant::now() + CONVERGE_LIMIT;
    loop {
        let mut waiting = recorder.acknowledged();
        waiting.retain(|client, acknowledged| before.get(client) == Some(acknowledged));
        if waiting.is_empty() {
            break;
        }
        if tokio::time::Instant::now() >= deadline {
            let clients: Vec<&u64> = waiting.keys().collect();
            let what = format!("clients {clients:?} get no write acknowledged after everything is mended");
            return Check::ServesClients.failed(what);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.set(true);
    while let Some(ended) = clients.join_next().await {
        if let Err(error) = ended {
            return Check::NoPanic.failed(format!("a client ended: {error}"));
        }
    }
    ends(cluster)?;
    converged(cluster, &env).await?;
    // Of the reign that has seen the faults: a write that waits for ever, as nobody took a lost slave's place, keeps it.
    hands_over(&env).await?;
    converged(cluster, &env).await?;
    if trials.is_emptied {
        let all = replay(&cluster.log())?.into_keys();
        let keys: Vec<Bytes> = all.filter(|key| !is_expiring(key)).collect();
        repaired::strike(cluster, &env, witness, &keys).await?;
        ends(cluster)?;
        converged(cluster, &env).await?;
    }
    if let Some(operator) = &trials.operator {
        operator.strike(&env).await?;
        witness.verdict()?;
        ends(cluster)?;
        converged(cluster, &env).await?;
    }
    if trials.is_hung {
        replaces(cluster, &env).await?;
        ends(cluster)?;
        converged(cluster, &env).await?;
    }
    if trials.is_short {
        short::strike(cluster, &env, witness).await?;
        ends(cluster)?;
        converged(cluster, &env).await?;
    }
    if trials.is_stopped {
        stops(cluster, &env, recorder, keys).await?;
        ends(cluster)?;
        converged(cluster, &env).await?;
    }
    hands_over(&env).await?;
    // Every key is read once more, as a part of the history.
    let reader = Client::new(cluster, 99, recorder, crate::clients::Habits::reader(keys), stop);
    let mut held = BTreeMap::new();
    let registers = (0..keys).map(|key| Bytes::from(format!("key{key}")));
    for key in registers.chain((0..PAIRS).flat_map(pair_keys)) {
        let begun = reader.begin_read(&key);
        match insist(&env, &[Bytes::from_static(b"GET"), key.clone()], CONVERGE_LIMIT).await {
            Some(Answer::Value(value)) => {
                reader.finish_read(begun, value.clone());
                held.insert(key, value);
            }
            other => return Check::Readable.failed(format!("{key:?} cannot be read: {other:?}")),
        }
    }
    let history = recorder.history();
    match history.check() {
        Ok(_) => {}
        Err(Violation::NotLinearizable(example)) => {
            return Check::Linearizable.failed(format!("\n{example}"))
        }
        Err(other) => return Check::Linearizable.failed(format!("no verdict: {other}")),
    }
    if let Err(overtaken) = recorder.check_order() {
        return Check::Order.failed(overtaken);
    }
    let counted = match insist(&env, &words(&["GET", COUNTER]), CONVERGE_LIMIT).await {
        Some(Answer::Value(value)) => {
            value.map_or(Some(0), |value| std::str::from_utf8(&value).ok()?.parse().ok())
        }
        _ => None,
    };
    match counted.map(|last| recorder.check_counter(last)) {
        Some(Ok(())) => {}
        Some(Err(violation)) => return Check::Counter.failed(violation),
        None => return Check::Readable.failed("the counter cannot be read".to_owned()),
    }
    expires(&env, keys).await?;
    for (key, readable) in dsm_history::readable_after(history.operations()) {
        let value = held.get(&key).cloned().flatten();
        if !is_expiring(&key) && !readable.allows(value.as_ref()) {
            let what = format!("{key:?} holds {value:?}, but {readable:?} is what may stand");
            return Check::LastWrite.failed(what);
        }
    }
    let logged = replay(&cluster.log())?;
    for (key, value) in &held {
        if logged.get(key) != value.as_ref() {
            let what = format!("{key:?} reads {value:?}, and the log says {:?}", logged.get(key));
            return Check::Log.failed(what);
        }
    }
    Ok(damages)
}

fn words(words: &[&str]) -> Vec<Bytes> {
    words.iter().map(|word| Bytes::from((*word).to_owned())).collect()
}

/// All that was written to expire goes, at the latest when as much time has passed as the clocks of processes have jumped ahead.
async fn expires(env: &dsm::env::Env, keys: u64) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + Duration::from_millis(LIFETIME_MAX_MS) + CONVERGE_LIMIT;
    for key in (0..keys).map(expiring_key) {
        loop {
            let answer = insist(env, &[Bytes::from_static(b"GET"), key.clone()], CONVERGE_LIMIT).await;
            if answer == Some(Answer::Value(None)) {
                break;
            }
            if tokio::time::Instant::now() >= deadline {
                return Check::Expires.failed(format!("{key:?} is answered with {answer:?}"));
            }
            tokio::time::sleep(Duration::from_millis(LIFETIME_MAX_MS)).await;
        }
    }
    Ok(())
}

async fn serves(env: &dsm::env::Env) -> Result<(), Failure> {
    let served = insist(env, &words(&["SET", "judge", "1"]), CONVERGE_LIMIT).await;
    if served != Some(Answer::Ok) {
        return Check::Serves.failed(format!("not within {CONVERGE_LIMIT:?} after everything is mended"));
    }
    Ok(())
}

/// Which master reigns, if one says so.
async fn active(env: &dsm::env::Env) -> Option<usize> {
    for (index, master) in Cluster::masters().iter().enumerate() {
        if status(env, master).await.is_some_and(|status| status.contains("dsm_role:primary")) {
            return Some(index);
        }
    }
    None
}

/// The primary hangs: the standby must end it and take its place.
async fn replaces(cluster: &Cluster, env: &dsm::env::Env) -> Result<(), Failure> {
    let index = reigning(env, Check::Replaces).await?;
    let Some(hung) = cluster.process([Node::Primary, Node::Backup][index]) else {
        return Check::Replaces.failed("who reigns does not run");
    };
    cluster.world().say(|| format!("{} hangs", hung.host()));
    hung.pause();
    let standby = Cluster::masters().swap_remove(1 - index);
    let limit = cluster.shape().failover_timeout + REPLACE_LIMIT;
    let served = insist_at(env, &[standby], &words(&["SET", "judge", "2"]), limit).await;
    hung.resume();
    match served {
        Some(Answer::Ok) => Ok(()),
        other => Check::Replaces
            .failed(format!("a primary that hangs is not replaced within {limit:?}: {other:?}")),
    }
}

/// Which master reigns, once one says so: while it moves, nobody does for a moment.
pub(crate) async fn reigning(env: &dsm::env::Env, check: Check) -> Result<usize, Failure> {
    let deadline = tokio::time::Instant::now() + CONVERGE_LIMIT;
    loop {
        if let Some(index) = active(env).await {
            return Ok(index);
        }
        if tokio::time::Instant::now() >= deadline {
            return check.failed("nobody reigns");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks a node to stop, and waits for its end.
async fn stopped(cluster: &Cluster, node: Node) -> Result<(), Failure> {
    let Some(process) = cluster.process(node) else {
        return Check::Stops.failed(format!("{} does not run", node.host()));
    };
    cluster.world().say(|| format!("{} is asked to stop", node.host()));
    cluster.stop(node);
    match tokio::time::timeout(STOP_LIMIT, process.gone()).await {
        Ok(()) => Ok(()),
        Err(_) => Check::Stops.failed(format!("{} does not stop within {STOP_LIMIT:?}", node.host())),
    }
}

/// The master that serves is asked to stop under load: no request fails, for the other one serves. Then both are, one
/// after the other: what is answered is done, and what is not answered is not executed.
async fn stops(
    cluster: &Cluster,
    env: &dsm::env::Env,
    recorder: &Recorder,
    keys: u64,
) -> Result<(), Failure> {
    let world = cluster.world();
    // So that something is on its way at every moment.
    world.set_net(NetSettings { delay_ms: 2..=10, late_per_mille: 0, ..NetSettings::default() });
    let mut habits = habits(world);
    (habits.keys, habits.writes, habits.deletes, habits.pipeline) = (keys, 700, 0, 1);
    for others_stop in [false, true] {
        converged(cluster, env).await?;
        let reigns = reigning(env, Check::Stops).await?;
        let [node, other] =
            if reigns == 0 { [Node::Primary, Node::Backup] } else { [Node::Backup, Node::Primary] };
        if others_stop {
            cluster.hold_masters(true);
            stopped(cluster, other).await?;
        }
        let (stop, troubles) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(Vec::new())));
        let mut visitors = JoinSet::new();
        for number in 0..VISITORS {
            let id = 100 + number + VISITORS * u64::from(others_stop);
            let visitor = Client::new(cluster, id, recorder, habits.clone(), &stop);
            visitors.spawn_local(visitor.ask_in_turn(Rc::clone(&troubles)));
        }
        tokio::time::sleep(Duration::from_millis(world.random_within(300..=500))).await;
        stopped(cluster, node).await?;
        if !others_stop {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        stop.set(true);
        while let Some(ended) = visitors.join_next().await {
            if let Err(error) = ended {
                return Check::NoPanic.failed(format!("a client ended: {error}"));
            }
        }
        let log = cluster.log();
        let is_logged = |value: &Bytes| log.windows(value.len()).any(|text| text == &value[..]);
        for Trouble { request, error } in troubles.take() {
            let is_write = [&b"SET"[..], b"MSET"].contains(&&request[0][..]);
            let is_allowed = others_stop
                && match &error {
                    Some(error) => !error.starts_with("UNKNOWN"),
                    None => !(is_write && is_logged(&request[2])),
                };
            if !is_allowed {
                let what = format!("{} is asked to stop, and {request:?} is answered {error:?}", node.host());
                return Check::Stops.failed(what);
            }
        }
    }
    world.set_net(NetSettings::default());
    cluster.hold_masters(false);
    cluster.launch_masters();
    serves(env).await
}

/// An operator asks for the reign to move, and it does.
async fn hands_over(env: &dsm::env::Env) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + CONVERGE_LIMIT;
    let mut moved = None;
    while tokio::time::Instant::now() < deadline {
        let before = active(env).await;
        moved = insist(env, &words(&["FAILOVER"]), CONVERGE_LIMIT).await;
        if moved != Some(Answer::Ok) {
            break;
        }
        // A primary may have asked for it back in between: then it was moved twice, and one more try shows it.
        let stays = tokio::time::Instant::now() + STAYS;
        while before.is_some() && tokio::time::Instant::now() < stays {
            if active(env).await.is_some_and(|after| Some(after) != before) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Check::Handover.failed(format!("the reign does not move, for {CONVERGE_LIMIT:?}: {moved:?}"))
}

/// No node may have ended for a reason that the faults do not give.
fn ends(cluster: &Cluster) -> Result<(), Failure> {
    // A disk that fails ends a master: one for each time that it has failed. A full one ends nobody.
    let failures = cluster.log_machine().disk_failures();
    let mut excuses = failures.failed_writes + failures.failed_syncs;
    for (node, outcome) in cluster.ends() {
        match outcome {
            Err(NodeError::LogFailed { .. } | NodeError::File { .. }) if excuses > 0 => excuses -= 1,
            Ok(()) => return Check::Ends.failed(format!("{} ended as if it had been asked to", node.host())),
            Err(other) => return Check::Ends.failed(format!("{} ended: {other:?}", node.host())),
        }
    }
    Ok(())
}

/// One primary and one standby, each with all slaves.
pub(crate) async fn converged(cluster: &Cluster, env: &dsm::env::Env) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + CONVERGE_LIMIT;
    let slaves = cluster.shape().slaves;
    let mut seen = Vec::new();
    while tokio::time::Instant::now() < deadline {
        seen.clear();
        for master in Cluster::masters() {
            seen.push(status(env, &master).await);
        }
        let role = |role: &str| seen.iter().flatten().filter(|status| status.contains(role)).count();
        let all = format!("active_slaves:{slaves}\r\n");
        if role("dsm_role:primary") == 1 && role("dsm_role:standby") == 1 && role(&all) == 2 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Check::Converges
        .failed(format!("no primary with {slaves} slaves and a standby for {CONVERGE_LIMIT:?}: {seen:?}"))
}

/// The first sections of INFO.
pub(crate) async fn status(env: &dsm::env::Env, master: &str) -> Option<String> {
    let text = info(env, master).await?;
    let end = text.find("slaves_removed").unwrap_or(text.len());
    Some(text[..end].to_owned())
}

/// INFO of a master, if it answers.
pub(crate) async fn info(env: &dsm::env::Env, master: &str) -> Option<String> {
    let mut connection = crate::clients::Connection::open(env, master).await?;
    connection.send(&[vec![Bytes::from_static(b"INFO")]]).await.ok()?;
    match connection.answer().await.ok()? {
        Answer::Value(Some(text)) => Some(String::from_utf8_lossy(&text).into_owned()),
        _ => None,
    }
}

/// What the log says each key holds.
fn replay(log: &[u8]) -> Result<BTreeMap<Bytes, Bytes>, Failure> {
    let mut scanner = Scanner::new(LINE_BYTES_MAX);
    let mut keys = BTreeMap::new();
    loop {
        let rest = &log[scanner.position().offset as usize..];
        match scanner.next_past_marks(rest) {
            Step::Record { record, .. } => match record.body {
                Body::Write(pairs) => {
                    keys.extend(pairs.map(|(key, value)| (key.to_bytes(), value.to_bytes())));
                }
                Body::Delete(deleted) => {
                    for key in deleted {
                        keys.remove(&key.to_bytes());
                    }
                }
                Body::Apply(effects) => effects.for_each(|effect| {
                    match effect.value() {
                        Some(value) => keys.insert(effect.key().to_bytes(), value.to_bytes()),
                        None => keys.remove(&effect.key().to_bytes()),
                    };
                }),
                Body::Cluster(_) | Body::Epoch { .. } | Body::Members(_) | Body::Synced => {}
            },
            Step::Ignored => {}
            Step::Partial => return Ok(keys),
            Step::Bad(bad) => return Check::Log.failed(format!("{bad:?}")),
        }
    }
}
