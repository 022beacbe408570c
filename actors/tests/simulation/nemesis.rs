//! What goes wrong in a simulated cluster: faults by class, by chance or aimed at a moment, drawn anew for each seed.
//!
//! Owns the faults and their count. Everything it breaks it mends, at the latest in [`Nemesis::rest`].

use crate::clients::Answer;
use crate::cluster::{Cluster, Node};
use crate::operator::Operator;
use crate::windows::{Window, Windows};
use crate::witness::Witness;
use bytesize::ByteSize;
use dsm::config::Fsync;
use dsm::env::sim::{DiskFault, DiskSettings, Loss, Moment, NetSettings, Process, World};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Kill,
    KillAll,
    Pause,
    PowerCut,
    Cut,
    CutOneWay,
    SlowNetwork,
    SlowDisk,
    SyncFails,
    WriteFails,
    WriteShort,
    NameFails,
    DiskFull,
    ClockJump,
    Drift,
    Handover,
    Stop,
    Remove,
    LittleRoom,
}

impl Class {
    pub(crate) const ALL: [Class; 19] = [
        Class::Kill,
        Class::KillAll,
        Class::Pause,
        Class::PowerCut,
        Class::Cut,
        Class::CutOneWay,
        Class::SlowNetwork,
        Class::SlowDisk,
        Class::SyncFails,
        Class::WriteFails,
        Class::WriteShort,
        Class::NameFails,
        Class::DiskFull,
        Class::ClockJump,
        Class::Drift,
        Class::Handover,
        Class::Stop,
        Class::Remove,
        Class::LittleRoom,
    ];

    /// Whether it is drawn for a seed. Else it is for seeds of an operator who removes slaves.
    fn is_drawn(self) -> bool {
        !matches!(self, Class::Remove | Class::LittleRoom)
    }
}

/// What is done at an aimed moment, to the process that is in the middle of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    Kill,
    PowerCut(Loss),
    Pause(u64),
    Isolate(u64),
}

/// A fault that waits for its moment.
#[derive(Clone, Copy, Debug)]
struct Aim {
    window: Window,
    is_master: bool,
    moment: Moment,
    /// How many such moments pass by first.
    skip: u64,
    /// How long after the moment, in milliseconds; right within it when 0.
    delay_ms: u64,
    blow: Blow,
    /// Whether it is for the recovery from another fault.
    is_second: bool,
}

/// Of the faults of a seed with an operator who removes slaves, so many are removals, beside those that are drawn.
const REMOVALS_PER_MILLE: u64 = 400;

/// So many removals are followed by a fault before they can be over.
const REMOVALS_STRUCK_PER_MILLE: u64 = 700;

/// How many aims wait at a time: the oldest makes room, for its moment may never come.
const AIMS_MAX: usize = 4;

/// What the faults of a seed came to. Each is counted where it takes effect: what hits a process that is down, a cut
/// that nothing wanted to pass, a disk fault that no operation met are not there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) faults: BTreeMap<Class, u64>,
    /// Kills, power cuts, pauses and cuts that struck within a window.
    pub(crate) windows: BTreeMap<Window, u64>,
    /// Those of them that struck in the recovery from another fault.
    pub(crate) second_blows: u64,
}

/// The faults of one seed.
#[derive(Clone)]
pub(crate) struct Nemesis(Rc<State>);

struct State {
    cluster: Cluster,
    witness: Witness,
    operator: Option<Operator>,
    /// Slaves that have little room.
    cramped: RefCell<BTreeSet<Node>>,
    classes: BTreeSet<Class>,
    pause_ms: (u64, u64),
    aimed_per_mille: u64,
    /// Whether a fault is often followed by another one in the recovery from it.
    double_per_mille: u64,
    aims: RefCell<VecDeque<Aim>>,
    windows: RefCell<Windows>,
    tally: RefCell<Tally>,
    is_over: Cell<bool>,
}

impl Nemesis {
    /// Draws the faults of a seed. With an operator who removes slaves, that is the most frequent one.
    pub(crate) fn draw(cluster: &Cluster, witness: &Witness, operator: Option<Operator>) -> Self {
        let world = cluster.world();
        let is_drawn = |class: &Class| class.is_drawn() && world.chance(350);
        let mut classes: BTreeSet<Class> = Class::ALL.into_iter().filter(is_drawn).collect();
        if operator.is_some() {
            classes.extend([Class::Kill, Class::Pause, Class::Remove, Class::LittleRoom]);
        }
        if cluster.shape().fsync != Fsync::Always {
            // What was acknowledged may be gone then: nothing is promised.
            classes.remove(&Class::PowerCut);
        }
        if !cluster.shape().compacts() {
            // No name of a file is changed.
            classes.remove(&Class::NameFails);
        }
        if classes.is_empty() {
            classes.insert(Class::Kill);
        }
        // Where space is set aside, a disk that fills up is seldom noticed within a seed.
        let can_reserve = world.chance(500);
        let evicts = cluster.shape().fsync == Fsync::Always;
        cluster.log_machine().change_disk(|disk| (disk.can_reserve, disk.evicts) = (can_reserve, evicts));
        let low = world.random_within(20..=500);
        Nemesis(Rc::new(State {
            cluster: cluster.clone(),
            witness: witness.clone(),
            operator,
            cramped: RefCell::default(),
            classes,
            pause_ms: (low, low * world.random_within(2..=8)),
            aimed_per_mille: [0, 300, 700][world.random_within(0..=2) as usize],
            double_per_mille: [0, 300, 800][world.random_within(0..=2) as usize],
            aims: RefCell::default(),
            windows: RefCell::default(),
            tally: RefCell::default(),
            is_over: Cell::new(false),
        }))
    }

    /// How often each fault struck, and where.
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = self.0.tally.borrow().clone();
        let failures = self.0.cluster.log_machine().disk_failures();
        for (class, count) in [
            (Class::SyncFails, failures.failed_syncs),
            (Class::WriteFails, failures.failed_writes),
            (Class::WriteShort, failures.short_writes),
            (Class::NameFails, failures.failed_names),
            (Class::DiskFull, failures.full_writes),
        ] {
            tally.faults.insert(class, count);
        }
        tally
    }

    /// The classes that were drawn.
    pub(crate) fn classes(&self) -> &BTreeSet<Class> {
        &self.0.classes
    }

    fn world(&self) -> &World {
        self.0.cluster.world()
    }

    fn count(&self, class: Class) {
        *self.0.tally.borrow_mut().faults.entry(class).or_default() += 1;
    }

    fn within(&self, low: u64, high: u64) -> u64 {
        self.world().random_within(low..=high)
    }

    fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.within(0, choices.len() as u64 - 1) as usize]
    }

    /// Breaks things until `duration` is over.
    pub(crate) async fn rage(&self, duration: Duration) {
        let end = tokio::time::Instant::now() + duration;
        let nemesis = self.clone();
        self.world().set_hook(Some(Box::new(move |_, process, moment| nemesis.at(process, moment))));
        let strikes = [Class::Kill, Class::Pause, Class::PowerCut, Class::Cut];
        let can_aim = strikes.iter().any(|class| self.0.classes.contains(class));
        let classes: Vec<Class> = self.0.classes.iter().copied().collect();
        loop {
            let pause = self.within(self.0.pause_ms.0, self.0.pause_ms.1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if tokio::time::Instant::now() >= end {
                return;
            }
            if can_aim && self.world().chance(self.0.aimed_per_mille) {
                let is_there =
                    |window: &Window| *window != Window::Exchange || self.0.cluster.shape().compacts();
                let windows: Vec<Window> = Window::ALL.into_iter().filter(is_there).collect();
                let window = self.one_of(&windows);
                self.arm(window, false);
            } else if self.0.operator.is_some() && self.world().chance(REMOVALS_PER_MILLE) {
                self.strike(Class::Remove);
            } else {
                self.strike(self.one_of(&classes));
            }
        }
    }

    /// Mends everything and breaks nothing more.
    pub(crate) fn rest(&self) {
        self.0.is_over.set(true);
        let world = self.world();
        world.set_hook(None);
        world.heal();
        world.set_net(NetSettings::default());
        for machine in self.0.cluster.machines() {
            machine.change_disk(|disk| {
                let DiskSettings { can_reserve, evicts, .. } = *disk;
                *disk = DiskSettings { can_reserve, evicts, ..DiskSettings::default() };
            });
            machine.mend();
            world.power_on(machine);
        }
        for node in self.0.cluster.nodes() {
            if let Some(process) = self.0.cluster.process(node) {
                process.resume();
            }
        }
        self.0.cluster.launch_all();
        for node in self.0.cramped.take() {
            self.change_room(node, None);
        }
    }

    fn any_node(&self) -> Node {
        let nodes = self.0.cluster.nodes();
        // The masters are where it hurts.
        let index =
            if self.world().chance(500) { self.within(0, 1) } else { self.within(0, nodes.len() as u64 - 1) };
        nodes[index as usize]
    }

    fn any_loss(&self) -> Loss {
        self.one_of(&[Loss::All, Loss::Nothing, Loss::Torn, Loss::Torn, Loss::Garbled])
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each kind of fault, each short")]
    fn strike(&self, class: Class) {
        let world = self.world();
        let cluster = &self.0.cluster;
        match class {
            Class::Kill => self.kill(self.any_node()),
            Class::KillAll => {
                let mut has_killed = false;
                for node in cluster.nodes() {
                    if let Some(process) = cluster.process(node).filter(|_| world.chance(900)) {
                        world.kill(&process);
                        has_killed = true;
                    }
                }
                if has_killed {
                    self.count(class);
                    self.second_blow();
                }
            }
            Class::Pause => {
                let ms = self.within(10, 3000);
                self.pause(self.any_node(), ms);
            }
            Class::PowerCut => {
                let loss = self.any_loss();
                self.power_cut(self.any_node(), loss);
            }
            Class::Cut | Class::CutOneWay => {
                // All that talk talk to a master.
                let (one, other) = (self.any_master().host(), self.any_host());
                let (from, to) = if world.chance(500) { (one, other) } else { (other, one) };
                if from != to {
                    let mut ways = vec![(from.clone(), to.clone())];
                    if class == Class::Cut {
                        ways.push((to, from));
                    }
                    self.cut(class, ways, self.within(10, 4000));
                }
            }
            Class::SlowNetwork => {
                let low = self.within(0, 5);
                world.set_net(NetSettings {
                    delay_ms: low..=low + self.within(0, 20),
                    late_ms: 10..=self.within(20, 400),
                    late_per_mille: self.within(0, 100),
                    split_per_mille: self.within(0, 500),
                });
                // There is always something on its way.
                self.count(class);
                let ms = self.within(100, 4000);
                world.later(Duration::from_millis(ms), |world| world.set_net(NetSettings::default()));
            }
            Class::SlowDisk => self.slow_disk(),
            // These are counted by the disk when an operation meets them.
            Class::SyncFails => cluster.log_machine().fail(self.within(1, 20), DiskFault::SyncFails),
            Class::WriteFails => cluster.log_machine().fail(self.within(1, 20), DiskFault::WriteFails),
            Class::WriteShort => cluster.log_machine().fail(self.within(1, 20), DiskFault::WriteShort),
            Class::NameFails => cluster.log_machine().fail(self.within(1, 4), DiskFault::NameFails),
            Class::DiskFull => {
                let machine = cluster.log_machine().clone();
                let capacity = machine.allocated() + self.within(0, 4000);
                machine.change_disk(|disk| disk.capacity = Some(capacity));
                let ms = self.within(100, 3000);
                world.later(Duration::from_millis(ms), move |_| {
                    machine.change_disk(|disk| disk.capacity = None);
                });
            }
            Class::ClockJump => {
                if let Some(process) = cluster.process(self.any_node()) {
                    self.count(class);
                    process.jump(Duration::from_millis(self.within(1, 5000)));
                }
            }
            Class::Drift => {
                if let Some(process) = cluster.process(self.any_node()) {
                    self.count(class);
                    process.set_drift_ppm(self.within(0, 100_000) as i64 - 50_000);
                }
            }
            Class::Handover => self.ask_handover(),
            Class::Remove => self.remove(),
            Class::LittleRoom => {
                let node = self.any_slave();
                if self.change_room(node, Some(ByteSize::b(self.within(500, 20_000)))) {
                    self.count(class);
                }
                self.0.witness.room_is_scarce();
                self.0.cramped.borrow_mut().insert(node);
                let nemesis = self.clone();
                let ms = self.within(500, 6000);
                world.later(Duration::from_millis(ms), move |_| {
                    if nemesis.0.cramped.borrow_mut().remove(&node) {
                        nemesis.change_room(node, None);
                    }
                });
            }
            Class::Stop => {
                if cluster.stop(self.any_node()) {
                    self.count(class);
                }
            }
        }
    }

    fn any_slave(&self) -> Node {
        Node::Slave(self.within(1, self.0.cluster.shape().slaves as u64) as usize)
    }

    /// Starts a slave anew with so much room. Whether it runs.
    fn change_room(&self, node: Node, room: Option<ByteSize>) -> bool {
        self.0.cluster.set_memory(node, room);
        let process = self.0.cluster.process(node);
        process.inspect(|process| self.world().kill(process)).is_some()
    }

    /// An operator has a slave drained; then something else happens, to any node.
    fn remove(&self) {
        let Some(operator) = self.0.operator.clone() else { return };
        let nemesis = self.clone();
        let env = self.world().env(&self.world().machine("operator-machine"), "operator");
        let (node, master) = (self.any_slave(), Cluster::masters()[self.within(0, 1) as usize].clone());
        tokio::task::spawn_local(async move {
            if operator.remove(&env, node, &master).await {
                nemesis.count(Class::Remove);
                if !nemesis.0.is_over.get() && nemesis.world().chance(REMOVALS_STRUCK_PER_MILLE) {
                    let (after, ms) = (nemesis.within(0, 80), nemesis.within(10, 3000));
                    let (victim, is_pause) = (nemesis.any_of(node), nemesis.world().chance(500));
                    nemesis.world().clone().later(Duration::from_millis(after), move |_| {
                        match (nemesis.0.is_over.get(), is_pause) {
                            (true, _) => {}
                            (false, true) => nemesis.pause(victim, ms),
                            (false, false) => nemesis.kill(victim),
                        }
                    });
                }
            }
        });
    }

    /// A node that has to do with the removal of a slave: often another slave, at times itself, or a master.
    fn any_of(&self, removed: Node) -> Node {
        match self.within(0, 9) {
            0 => self.any_master(),
            1 => removed,
            _ => self.any_slave(),
        }
    }

    fn any_master(&self) -> Node {
        self.one_of(&[Node::Primary, Node::Backup])
    }

    fn any_host(&self) -> String {
        let nodes = self.0.cluster.nodes();
        let index = self.within(0, nodes.len() as u64 + 2) as usize;
        match nodes.get(index) {
            Some(node) => node.host(),
            None => format!("client{}", self.within(1, 8)),
        }
    }

    fn kill(&self, node: Node) {
        if let Some(process) = self.0.cluster.process(node) {
            self.count(Class::Kill);
            self.world().kill(&process);
            self.second_blow();
        }
    }

    fn pause(&self, node: Node, ms: u64) {
        let Some(process) = self.0.cluster.process(node) else { return };
        self.world().say(|| format!("{} stopped for {ms} ms", node.host()));
        self.count(Class::Pause);
        process.pause();
        self.world().later(Duration::from_millis(ms), move |_| process.resume());
    }

    fn power_cut(&self, node: Node, loss: Loss) {
        let machine = self.0.cluster.machine_of(node).clone();
        if machine.is_on() {
            self.count(Class::PowerCut);
        }
        self.world().power_off(&machine, loss);
        let (cluster, nemesis) = (self.0.cluster.clone(), self.clone());
        let ms = self.within(0, 1500);
        self.world().later(Duration::from_millis(ms), move |world| {
            world.power_on(&machine);
            cluster.launch_all();
            nemesis.second_blow();
        });
    }

    /// Cuts ways, and takes it back after a while.
    fn cut(&self, class: Class, ways: Vec<(String, String)>, ms: u64) {
        for (from, to) in &ways {
            self.world().cut(from, to);
        }
        let nemesis = self.clone();
        self.world().later(Duration::from_millis(ms), move |world| {
            let mut has_held = false;
            for (from, to) in &ways {
                has_held |= world.heal_way(from, to);
            }
            if has_held {
                nemesis.count(class);
            }
        });
    }

    fn slow_disk(&self) {
        let machine = self.0.cluster.log_machine().clone();
        let (sync_ms, slow_ms) = (self.within(1, 20), self.within(50, 1500));
        let (write_ms, slow_per_mille) = (self.within(0, 3), self.within(0, 200));
        machine.change_disk(|disk| {
            disk.write_ms = 0..=write_ms;
            disk.sync_ms = 0..=sync_ms;
            disk.slow_ms = 20..=slow_ms;
            disk.slow_per_mille = slow_per_mille;
        });
        let (_, syncs_before) = machine.disk_operations();
        let nemesis = self.clone();
        let ms = self.within(100, 4000);
        self.world().later(Duration::from_millis(ms), move |_| {
            machine.change_disk(|disk| {
                let DiskSettings { write_ms, sync_ms, slow_ms, slow_per_mille, .. } = DiskSettings::default();
                *disk = DiskSettings { write_ms, sync_ms, slow_ms, slow_per_mille, ..disk.clone() };
            });
            let (_, syncs) = machine.disk_operations();
            if syncs > syncs_before {
                nemesis.count(Class::SlowDisk);
            }
        });
    }

    /// An operator asks for the reign to change.
    fn ask_handover(&self) {
        let nemesis = self.clone();
        let machine = self.world().machine("operator-machine");
        let env = self.world().env(&machine, "operator");
        let master = Cluster::masters()[self.within(0, 1) as usize].clone();
        tokio::task::spawn_local(async move {
            if let Some(mut connection) = crate::clients::Connection::open(&env, &master).await {
                let word = bytes::Bytes::from_static(b"FAILOVER");
                if connection.send(&[vec![word]]).await.is_ok() {
                    let answer = connection.answer().await;
                    nemesis.world().say(|| format!("failover asked at {master}: {answer:?}"));
                    if answer == Ok(Answer::Ok) {
                        nemesis.count(Class::Handover);
                    }
                }
            }
        });
    }

    /// Another fault, in the recovery from the one before.
    fn second_blow(&self) {
        if !self.0.is_over.get() && self.world().chance(self.0.double_per_mille) {
            let window = self.one_of(&[Window::Recovery, Window::Takeover]);
            self.arm(window, true);
        }
    }

    /// Lets a fault wait for a moment of `window`.
    fn arm(&self, window: Window, is_second: bool) {
        let classes = &self.0.classes;
        let mut blows = Vec::new();
        if classes.contains(&Class::Kill) {
            blows.push(Blow::Kill);
        }
        if classes.contains(&Class::PowerCut) {
            blows.push(Blow::PowerCut(self.any_loss()));
        }
        if classes.contains(&Class::Pause) {
            blows.push(Blow::Pause(self.within(10, 3000)));
        }
        if classes.contains(&Class::Cut) {
            blows.push(Blow::Isolate(self.within(10, 3000)));
        }
        if blows.is_empty() {
            return;
        }
        let is_master = window.moments(false).is_empty() || self.world().chance(500);
        let skip_max = match (is_second, window.is_rare()) {
            // The next one is the recovery that is meant.
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 30,
        };
        let aim = Aim {
            window,
            is_master,
            moment: self.one_of(window.moments(is_master)),
            skip: self.within(0, skip_max),
            delay_ms: if self.world().chance(500) { 0 } else { self.within(0, 60) },
            blow: self.one_of(&blows),
            is_second,
        };
        let mut aims = self.0.aims.borrow_mut();
        if aims.len() == AIMS_MAX {
            aims.pop_front();
        }
        aims.push_back(aim);
    }

    /// A moment has come.
    fn at(&self, process: &Process, moment: Moment) {
        let Some(node) = self.0.cluster.node_of(process) else { return };
        // What the kernel goes on with for a process that has ended is not its work any more.
        if !process.is_alive() {
            return;
        }
        let window = {
            let mut windows = self.0.windows.borrow_mut();
            if let Some(handover) = self.0.witness.take_handover() {
                windows.heard(handover);
            }
            windows.at(process.pid(), node.is_master(), moment, self.0.witness.talk())
        };
        let Some(window) = window.filter(|_| !self.0.is_over.get()) else { return };
        let Some(aim) = self.due(window, node.is_master(), moment) else { return };
        if aim.delay_ms == 0 {
            self.blow(node, aim, Some(window));
        } else {
            let (nemesis, process) = (self.clone(), process.clone());
            self.world().later(Duration::from_millis(aim.delay_ms), move |_| {
                if !nemesis.0.is_over.get() && process.is_alive() {
                    let window = nemesis.0.windows.borrow().of(process.pid());
                    nemesis.blow(node, aim, window);
                }
            });
        }
    }

    /// The aim whose moment this is, if there is one.
    fn due(&self, window: Window, is_master: bool, moment: Moment) -> Option<Aim> {
        let mut aims = self.0.aims.borrow_mut();
        let mut due = None;
        for (index, aim) in aims.iter_mut().enumerate() {
            if (aim.window, aim.is_master, aim.moment) == (window, is_master, moment) {
                if aim.skip == 0 {
                    due = Some(index);
                    break;
                }
                aim.skip -= 1;
            }
        }
        aims.remove(due?)
    }

    fn blow(&self, node: Node, aim: Aim, window: Option<Window>) {
        {
            let mut tally = self.0.tally.borrow_mut();
            tally.second_blows += u64::from(aim.is_second);
            if let Some(window) = window {
                *tally.windows.entry(window).or_default() += 1;
            }
        }
        match aim.blow {
            Blow::Kill => self.kill(node),
            Blow::PowerCut(loss) => self.power_cut(node, loss),
            Blow::Pause(ms) => self.pause(node, ms),
            Blow::Isolate(ms) => {
                let others = self.0.cluster.nodes().into_iter().filter(|other| *other != node);
                let ways =
                    others.flat_map(|other| [(node.host(), other.host()), (other.host(), node.host())]);
                self.cut(Class::Cut, ways.collect(), ms);
            }
        }
    }
}
