//! A simulated world in virtual time (feature `sim`): machines with disks, processes, and the network between them.
//!
//! The real actors run in it unchanged. One thread, one paused tokio clock, a `LocalSet` per process. [`World::run`]
//! runs a scenario from a seed; the same seed gives the same run, which [`World::digest`] shows. The world is as harsh
//! as a real one: streams stall and resume, connects hang, disks tear and reorder what was not synced, processes stop
//! for seconds or end between two lines of code. It gives no guarantee that a kernel does not give.
//!
//! It owns what survives a process: files, locks and the bytes under way. It knows nothing of the store's promises; the
//! scenario checks those.
//!
//! A process that was killed never acts again: its locks are released and its sockets closed first, and then whatever
//! its destructors do is ignored.

mod disk;
mod locks;
mod net;

pub use disk::{DiskFailures, DiskFault, DiskSettings, Loss};
pub use net::{NetSettings, Passing, SimListener, SimStream};

use super::{Disk, Env, Environment, Listener, Locks, Stream};
use dsm_protocol::ids::{Millis, UnixMillis};
use futures_util::future::LocalBoxFuture;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, Notify};
use tokio::task::LocalSet;
use tokio::time::Instant;

/// How long SIGKILL may take to release what a process holds.
const KILL_MS: RangeInclusive<u64> = 0..=2;

/// Something that happens in the world. The scenario's hook is called while it happens, in the middle of the turn of
/// the process that does it. What the hook does to that process takes effect at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// A file was opened.
    Opened,
    /// Bytes are about to be written to a file.
    WriteBegan,
    /// Bytes were written to a file, if only in the cache.
    Written,
    /// A sync of a file has begun.
    SyncBegan,
    /// A sync of a file has succeeded.
    Synced,
    /// A file was cut.
    Truncated,
    /// The entries of a directory were synced.
    DirectorySynced,
    /// A lock on a path was taken.
    LockWon,
    /// A lock on a path was released.
    LockReleased,
    /// This process has killed the holder of a lock.
    Fenced,
    /// A connection was accepted by this process.
    Accepted,
    /// Bytes were handed to a connection.
    Sent,
    /// Bytes were taken from a connection.
    Received,
    /// A file was created for another's place, exchanged or removed.
    NamesChanged,
}

impl Moment {
    /// Every moment, in the order of the declaration.
    pub const ALL: [Moment; 14] = [
        Moment::Opened,
        Moment::WriteBegan,
        Moment::Written,
        Moment::SyncBegan,
        Moment::Synced,
        Moment::Truncated,
        Moment::DirectorySynced,
        Moment::LockWon,
        Moment::LockReleased,
        Moment::Fenced,
        Moment::Accepted,
        Moment::Sent,
        Moment::Received,
        Moment::NamesChanged,
    ];
}

thread_local! {
    /// The process whose turn it is, and the time.
    static TURN: RefCell<Option<(String, Duration)>> = const { RefCell::new(None) };
}

/// The host of the process whose turn it is, and the time since the world began. For log lines.
pub fn turn() -> Option<(String, Duration)> {
    TURN.with_borrow(Clone::clone)
}

type Hook = Box<dyn FnMut(&World, &Process, Moment)>;

type Tap = Box<dyn FnMut(&World, &Passing<'_>)>;

/// The world. Clones are the same world.
#[derive(Clone)]
pub struct World(Rc<Inner>);

struct Inner {
    start: Instant,
    random: RefCell<StdRng>,
    jobs: mpsc::UnboundedSender<LocalBoxFuture<'static, ()>>,
    machines: RefCell<Vec<Machine>>,
    processes: RefCell<Vec<Process>>,
    network: net::Network,
    digest: Cell<u64>,
    steps: Cell<u64>,
    next_pid: Cell<u32>,
    wrong_kill: RefCell<Option<String>>,
    /// Where each host lives.
    hosts: RefCell<BTreeMap<String, Machine>>,
    hook: RefCell<Option<Hook>>,
    tap: RefCell<Option<Tap>>,
    narrate: Cell<bool>,
}

impl World {
    /// Runs a scenario in a new world. Its clock stands still while any task can run.
    ///
    /// # Panics
    /// When the scenario does.
    pub fn run<T, F: Future<Output = T>>(seed: u64, scenario: impl FnOnce(World) -> F) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime can be built");
        let kernel = LocalSet::new();
        kernel.block_on(&runtime, async {
            let (jobs, mut queue) = mpsc::unbounded_channel::<LocalBoxFuture<'static, ()>>();
            let world = World(Rc::new(Inner {
                start: Instant::now(),
                random: RefCell::new(StdRng::seed_from_u64(seed)),
                jobs,
                machines: RefCell::default(),
                processes: RefCell::default(),
                network: net::Network::default(),
                digest: Cell::new(0xcbf2_9ce4_8422_2325),
                steps: Cell::new(0),
                next_pid: Cell::new(100),
                wrong_kill: RefCell::default(),
                hosts: RefCell::default(),
                hook: RefCell::default(),
                tap: RefCell::default(),
                narrate: Cell::new(false),
            }));
            // The kernel's work for processes goes on after they have ended, so it runs outside them.
            let working = tokio::task::spawn_local(async move {
                while let Some(job) = queue.recv().await {
                    tokio::task::spawn_local(job);
                }
            });
            let result = scenario(world.clone()).await;
            world.end();
            working.abort();
            result
        })
    }

    /// Ends every process, so that nothing keeps the world alive.
    fn end(&self) {
        *self.0.hook.borrow_mut() = None;
        *self.0.tap.borrow_mut() = None;
        let processes = std::mem::take(&mut *self.0.processes.borrow_mut());
        for process in processes {
            process.die();
            // A lock refers to its holder, and the holder to its machine with the file: this cycle would never be
            // freed.
            process.0.machine.0.files.release(&process);
        }
    }

    /// Adds a machine, which is on.
    pub fn machine(&self, name: &str) -> Machine {
        let machine = Machine(Rc::new(MachineState {
            name: name.to_owned(),
            on: Cell::new(true),
            boot: Cell::new(1),
            made: Instant::now(),
            wall_ahead_ms: Cell::new(0),
            files: disk::FileSystem::default(),
        }));
        self.0.machines.borrow_mut().push(machine.clone());
        machine
    }

    /// Starts a process on `machine`, whose network address is `host`; gives it and what it will end with, which is an
    /// error when it is killed.
    pub fn start<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        machine: &Machine,
        host: &str,
        main: impl FnOnce(Env) -> F,
    ) -> (Process, oneshot::Receiver<T>) {
        let pid = self.0.next_pid.get();
        self.0.next_pid.set(pid + 1);
        self.0.hosts.borrow_mut().insert(host.to_owned(), machine.clone());
        let process = self.process(machine, host, pid);
        // A process that is dead but not gone still has work at the disk, which a power cut ends too.
        self.0.processes.borrow_mut().retain(|process| !process.is_gone());
        self.0.processes.borrow_mut().push(process.clone());
        self.say(|| format!("{host} starts pid={pid}"));
        let env: Env = Rc::new(SimEnv { world: self.clone(), process: process.clone() });
        let (ended, end) = oneshot::channel();
        let local = LocalSet::new();
        let main = main(env);
        local.spawn_local(async move { drop(ended.send(main.await)) });
        let running = Running { world: self.clone(), process: process.clone(), local: Some(local) };
        tokio::task::spawn_local(running);
        (process, end)
    }

    /// An environment for code of the scenario itself, such as a client, that no fault hits as a process.
    pub fn env(&self, machine: &Machine, host: &str) -> Env {
        let process = self.process(machine, host, 1);
        Rc::new(SimEnv { world: self.clone(), process })
    }

    fn process(&self, machine: &Machine, host: &str, pid: u32) -> Process {
        Process(Rc::new(ProcessState {
            host: host.to_owned(),
            machine: machine.clone(),
            pid,
            state: Cell::new(State::Running),
            waker: RefCell::default(),
            random: RefCell::new(StdRng::seed_from_u64(self.random())),
            clock: Cell::new(Clock::new()),
            gone: Cell::new(false),
            leaving: Notify::new(),
            at_disk: Cell::new(0),
            left_disk: Notify::new(),
        }))
    }

    /// A random number of the world's own.
    pub fn random(&self) -> u64 {
        self.0.random.borrow_mut().random()
    }

    /// A random number within `range`.
    pub fn random_within(&self, range: RangeInclusive<u64>) -> u64 {
        self.0.random.borrow_mut().random_range(range)
    }

    /// True with this probability, in thousandths.
    pub fn chance(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.random_within(0..=999) < per_mille
    }

    /// The time since the world began.
    pub fn elapsed(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// Takes other settings of the network from now on.
    pub fn set_net(&self, settings: NetSettings) {
        self.0.network.set(settings);
    }

    /// Lets nothing pass from `from` to `to`, one way. What is under way arrives after [`heal`](Self::heal).
    pub fn cut(&self, from: &str, to: &str) {
        self.say(|| format!("cut {from} -> {to}"));
        self.0.network.cut(from, to);
    }

    /// Takes back one cut of the way from `from` to `to`. Returns whether it was still there and has held anything up.
    pub fn heal_way(&self, from: &str, to: &str) -> bool {
        self.say(|| format!("healed {from} -> {to}"));
        net::heal_way(self, from, to)
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.say(|| "network healed".to_owned());
        net::heal(self);
    }

    /// Sets the hook that is called at every [`Moment`]; `None` for no hook.
    pub fn set_hook(&self, hook: Option<Hook>) {
        *self.0.hook.borrow_mut() = hook;
    }

    /// Sets the tap that sees everything that passes through a connection, at both ends; `None` for no tap. It must
    /// change nothing.
    pub fn set_tap(&self, tap: Option<Tap>) {
        *self.0.tap.borrow_mut() = tap;
    }

    /// Prints what happens, with the time.
    pub fn set_narrate(&self, narrate: bool) {
        self.0.narrate.set(narrate);
    }

    /// Prints a line if narration is on, and adds it to the digest.
    pub fn say(&self, line: impl FnOnce() -> String) {
        let line = line();
        self.fold(line.bytes().fold(17, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))));
        if self.0.narrate.get() {
            println!("{:>10.3} s  {line}", self.elapsed().as_secs_f64());
        }
    }

    /// A number that stands for everything that happened so far: equal for two runs of one seed.
    pub fn digest(&self) -> u64 {
        self.0.digest.get()
    }

    /// How many things were counted for the digest.
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }

    fn fold(&self, fact: u64) {
        let time = self.elapsed().as_nanos() as u64;
        let mixed = (self.0.digest.get() ^ fact ^ time.rotate_left(32)).wrapping_mul(0x0000_0100_0000_01b3);
        self.0.digest.set(mixed ^ (mixed >> 29));
        self.0.steps.set(self.0.steps.get() + 1);
    }

    fn moment(&self, process: &Process, moment: Moment) {
        self.fold(u64::from(process.0.pid) << 8 | moment as u64);
        // A hook that causes further moments must not be called within itself.
        let hook = self.0.hook.borrow_mut().take();
        if let Some(mut hook) = hook {
            hook(self, process, moment);
            self.0.hook.borrow_mut().get_or_insert(hook);
        }
    }

    /// Runs `job` as a part of the kernel, independently of the process that caused it.
    fn spawn(&self, job: impl Future<Output = ()> + 'static) {
        // The kernel ends with the scenario, and then nothing more is needed of it.
        let _ = self.0.jobs.send(Box::pin(job));
    }

    /// Runs `action` after `delay`, as a part of the kernel.
    pub fn later(&self, delay: Duration, action: impl FnOnce(&World) + 'static) {
        let world = self.clone();
        self.spawn(async move {
            sleep(delay).await;
            action(&world);
        });
    }

    /// The process on `machine` with this number, if it has not ended.
    fn alive(&self, machine: &Machine, pid: u32) -> Option<Process> {
        let processes = self.0.processes.borrow();
        let mut named =
            processes.iter().filter(|process| process.pid() == pid && process.0.machine.is(machine));
        named.find(|process| process.is_alive()).cloned()
    }

    /// Remembers the first time that a process is killed as the holder of a lock that it does not hold.
    fn note_wrong_kill(&self, what: String) {
        self.0.wrong_kill.borrow_mut().get_or_insert(what);
    }

    /// The process that was killed as the holder of a lock that it did not hold; `None` if there was none.
    pub fn wrong_kill(&self) -> Option<String> {
        self.0.wrong_kill.borrow().clone()
    }

    /// Kills a process: its sockets are closed and its locks given back, and no hook of it runs.
    pub fn kill(&self, process: &Process) {
        if process.0.state.get() == State::Dead {
            return;
        }
        self.say(|| format!("{} killed pid={}", process.0.host, process.0.pid));
        process.die();
        let delay = Duration::from_millis(self.random_within(KILL_MS));
        let (world, dead) = (self.clone(), process.clone());
        self.spawn(async move {
            sleep(delay).await;
            // A thread at the disk first finishes its work; until then the process keeps what it holds.
            while dead.0.at_disk.get() > 0 {
                dead.0.left_disk.notified().await;
            }
            world.release(&dead, true);
        });
    }

    /// Cuts the power of a machine: its processes end without notice to others, and what was not synced may be lost.
    pub fn power_off(&self, machine: &Machine, loss: Loss) {
        if !machine.0.on.replace(false) {
            return;
        }
        self.say(|| format!("{} loses power", machine.0.name));
        machine.0.boot.set(machine.0.boot.get() + 1);
        let processes = self.0.processes.borrow().clone();
        for process in processes.iter().filter(|process| process.0.machine.is(machine)) {
            process.die();
            self.release(process, false);
        }
        machine.0.files.lose_power(self, loss);
    }

    /// Starts a machine again, without its processes.
    pub fn power_on(&self, machine: &Machine) {
        if !machine.0.on.replace(true) {
            self.say(|| format!("{} has power again", machine.0.name));
            net::reset_orphans(self);
        }
    }

    /// Releases what a dead process held.
    fn release(&self, process: &Process, tell: bool) {
        process.0.machine.0.files.release(process);
        self.0.network.close_all(self, process, tell);
        process.0.gone.set(true);
        process.0.leaving.notify_waiters();
    }
}

/// A machine: a disk, a boot, and power.
#[derive(Clone)]
pub struct Machine(Rc<MachineState>);

struct MachineState {
    name: String,
    on: Cell<bool>,
    boot: Cell<u64>,
    made: Instant,
    /// By how much its wall clock is ahead of the time of the world.
    wall_ahead_ms: Cell<i64>,
    files: disk::FileSystem,
}

impl Machine {
    fn is(&self, other: &Machine) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// The name that the simulation gave it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.0.on.get()
    }

    /// Sets its wall clock to so much ahead of the time of the world, or behind it.
    pub fn set_wall_clock(&self, ahead_ms: i64) {
        self.0.wall_ahead_ms.set(ahead_ms);
    }

    /// Changes how fast its disk is, or how large.
    pub fn change_disk(&self, change: impl FnOnce(&mut DiskSettings)) {
        self.0.files.change(change);
    }

    /// How often its disk has failed so far.
    pub fn disk_failures(&self) -> DiskFailures {
        self.0.files.failures()
    }

    /// Makes the `nth` operation of its kind fail, counted from now (1 is the next one).
    pub fn fail(&self, nth: u64, fault: DiskFault) {
        self.0.files.fail(nth, fault);
    }

    /// Forgets the faults that have not happened yet.
    pub fn mend(&self) {
        self.0.files.mend();
    }

    /// How many bytes all files have, including space that is set aside.
    pub fn allocated(&self) -> u64 {
        self.0.files.allocated()
    }

    /// How many writes and how many syncs were done.
    pub fn disk_operations(&self) -> (u64, u64) {
        self.0.files.operations()
    }

    /// How often a file was created for another's place, exchanged or removed, or would have been.
    pub fn name_operations(&self) -> u64 {
        self.0.files.name_operations()
    }

    /// What is certain to be at a path after a power cut; `None` when not even the file is certain.
    pub fn read_durable<T>(&self, path: &std::path::Path, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.files.read_durable(path, read)
    }

    /// The content of a file, as a process would read it.
    pub fn content(&self, path: &std::path::Path) -> Option<Vec<u8>> {
        self.0.files.content(path)
    }

    /// Changes the content of a file, on the disk too: damage, or an edit by a person.
    pub fn edit(&self, path: &std::path::Path, edit: impl FnOnce(&mut Vec<u8>)) {
        self.0.files.edit(path, edit);
    }

    /// Renames a file, over any file with that name, and returns whether there was one. Watchers are not notified.
    pub fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> bool {
        self.0.files.rename(from, to)
    }

    /// Removes a file.
    pub fn remove(&self, path: &std::path::Path) {
        self.0.files.remove(path);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Dead,
}

/// A process of the simulated world.
#[derive(Clone)]
pub struct Process(Rc<ProcessState>);

struct ProcessState {
    host: String,
    machine: Machine,
    pid: u32,
    state: Cell<State>,
    /// Wakes the task that polls the process.
    waker: RefCell<Option<Waker>>,
    random: RefCell<StdRng>,
    clock: Cell<Clock>,
    /// Whether what it held is released.
    gone: Cell<bool>,
    leaving: Notify,
    /// The number of its operations under way at the disk.
    at_disk: Cell<u64>,
    left_disk: Notify,
}

/// A monotonic clock: its value when it was last set, and its speed since. It never goes back.
#[derive(Clone, Copy, Debug)]
struct Clock {
    set: Instant,
    shown: Duration,
    drift_ppm: i64,
}

impl Clock {
    /// A clock that begins at zero.
    fn new() -> Self {
        Clock { set: Instant::now(), shown: Duration::ZERO, drift_ppm: 0 }
    }

    fn now(&self) -> Duration {
        let passed = self.set.elapsed().as_nanos() as i128;
        let shown = passed * i128::from(1_000_000 + self.drift_ppm.max(-999_999)) / 1_000_000;
        self.shown + Duration::from_nanos(shown as u64)
    }

    /// The same clock from now on, with another drift, moved ahead by a jump.
    fn set(&self, drift_ppm: i64, jump: Duration) -> Self {
        Clock { set: Instant::now(), shown: self.now() + jump, drift_ppm }
    }
}

impl Process {
    fn is(&self, other: &Process) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Its name in the network.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// Its process id in the simulated world.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// When it was started, in the unit of a lock file. No two processes have the same start.
    fn start(&self) -> u64 {
        u64::from(self.0.pid)
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        self.0.state.get() != State::Dead
    }

    /// Whether it is stopped.
    pub fn is_paused(&self) -> bool {
        self.0.state.get() == State::Paused
    }

    /// Stops it, as SIGSTOP does: its sockets stay open, its locks held.
    pub fn pause(&self) {
        if self.is_alive() {
            self.0.state.set(State::Paused);
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        if self.is_paused() {
            self.0.state.set(State::Running);
            self.wake();
        }
    }

    /// Makes its monotonic clock run faster or slower from now on, in millionths. Timers do not drift.
    pub fn set_drift_ppm(&self, ppm: i64) {
        let clock = self.0.clock.get();
        self.0.clock.set(clock.set(ppm, Duration::ZERO));
    }

    /// Makes its monotonic clock jump ahead. Timers do not jump.
    pub fn jump(&self, by: Duration) {
        let clock = self.0.clock.get();
        self.0.clock.set(clock.set(clock.drift_ppm, by));
    }

    /// What its monotonic clock shows, from its start on.
    pub fn clock(&self) -> Duration {
        self.0.clock.get().now()
    }

    /// Whether what it held is released. A supervisor does not start a successor before that.
    pub fn is_gone(&self) -> bool {
        self.0.gone.get()
    }

    /// Waits until it is gone.
    pub async fn gone(&self) {
        while !self.is_gone() {
            self.0.leaving.notified().await;
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn die(&self) {
        self.0.state.set(State::Dead);
        self.wake();
    }
}

/// Polls the tasks of a process while it runs, and drops them when it has ended.
struct Running {
    world: World,
    process: Process,
    local: Option<LocalSet>,
}

impl Future for Running {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        *self.process.0.waker.borrow_mut() = Some(context.waker().clone());
        let this = &mut *self;
        let state = this.process.0.state.get();
        let Some(local) = &mut this.local else { return Poll::Ready(()) };
        match state {
            State::Paused => return Poll::Pending,
            State::Dead => {}
            State::Running => {
                TURN.set(Some((this.process.0.host.clone(), this.world.elapsed())));
                let polled = Pin::new(local).poll(context);
                TURN.set(None);
                if polled.is_pending() && this.process.is_alive() {
                    return Poll::Pending;
                }
            }
        }
        if this.process.is_alive() {
            // It has ended by itself.
            this.process.0.state.set(State::Dead);
            this.world.release(&this.process, true);
        }
        this.local = None;
        Poll::Ready(())
    }
}

/// What the wall clocks show when a world begins.
const WORLD_BEGAN_MS: u64 = 1_700_000_000_000;

/// The world as one process sees it.
struct SimEnv {
    world: World,
    process: Process,
}

impl Environment for SimEnv {
    fn now(&self) -> Millis {
        Millis(self.process.clock().as_millis() as u64)
    }

    fn clock_us(&self) -> u64 {
        self.process.clock().as_micros() as u64
    }

    fn random(&self) -> u64 {
        self.process.0.random.borrow_mut().random()
    }

    fn listen<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move { net::listen(&self.world, &self.process, address).map(Listener::Sim) })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { net::connect(&self.world, &self.process, address).await.map(Stream::Sim) })
    }

    fn disk(&self) -> Rc<dyn Disk> {
        Rc::new(disk::SimDisk::new(&self.world, &self.process))
    }

    fn locks(&self) -> Rc<dyn Locks> {
        Rc::new(locks::SimLocks::new(&self.world, &self.process))
    }

    fn wall_clock(&self) -> UnixMillis {
        let machine = &self.process.0.machine.0;
        let time = WORLD_BEGAN_MS.saturating_add(machine.made.elapsed().as_millis() as u64);
        UnixMillis(time.saturating_add_signed(machine.wall_ahead_ms.get()))
    }

    fn uptime(&self) -> Millis {
        Millis(self.process.0.machine.0.made.elapsed().as_millis() as u64)
    }

    fn boot_id(&self) -> String {
        boot_id(&self.process.0.machine)
    }

    fn pid(&self) -> u32 {
        self.process.0.pid
    }

    fn resident_bytes(&self) -> u64 {
        0
    }
}

fn boot_id(machine: &Machine) -> String {
    format!("{}-boot-{}", machine.0.name, machine.0.boot.get())
}

/// Waits; does not use the clock when the delay is zero.
async fn sleep(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
