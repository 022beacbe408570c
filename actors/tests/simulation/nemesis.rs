//! What goes wrong in a simulated cluster: faults by class, by chance or aimed at a moment, drawn anew for each seed.
//!
//! Owns the faults and their count. Everything it breaks it mends, at the latest in [`Nemesis::rest`].

use crate::cluster::{Cluster, Node};
use dsm::env::sim::{DiskFault, DiskSettings, Loss, Moment, NetSettings, Process, World};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
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
    DiskFull,
    ClockJump,
    Drift,
    Handover,
}

impl Class {
    const ALL: [Class; 15] = [
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
        Class::DiskFull,
        Class::ClockJump,
        Class::Drift,
        Class::Handover,
    ];
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
    moment: Moment,
    is_master: bool,
    /// How many such moments pass by first.
    skip: u64,
    /// How long after the moment, in milliseconds; right within it when 0.
    delay_ms: u64,
    blow: Blow,
}

/// The moments that are worth aiming at, those of recovery and of the log first.
const AIMED: [Moment; 12] = [
    Moment::WriteBegan,
    Moment::Written,
    Moment::SyncBegan,
    Moment::Synced,
    Moment::Truncated,
    Moment::DirectorySynced,
    Moment::LockWon,
    Moment::LockReleased,
    Moment::Fenced,
    Moment::Opened,
    Moment::Sent,
    Moment::Received,
];

/// The faults of one seed.
#[derive(Clone)]
pub(crate) struct Nemesis(Rc<State>);

struct State {
    cluster: Cluster,
    classes: BTreeSet<Class>,
    pause_ms: (u64, u64),
    aimed_per_mille: u64,
    /// Whether a fault is often followed by another one in the recovery from it.
    double_per_mille: u64,
    aims: RefCell<Vec<Aim>>,
    tally: RefCell<BTreeMap<String, u64>>,
    is_over: Cell<bool>,
}

impl Nemesis {
    /// Draws the faults of a seed.
    pub(crate) fn draw(cluster: &Cluster) -> Self {
        let world = cluster.world();
        let mut classes: BTreeSet<Class> = Class::ALL.into_iter().filter(|_| world.chance(350)).collect();
        if classes.is_empty() {
            classes.insert(Class::Kill);
        }
        let low = world.random_within(20..=500);
        Nemesis(Rc::new(State {
            cluster: cluster.clone(),
            classes,
            pause_ms: (low, low * world.random_within(2..=8)),
            aimed_per_mille: [0, 300, 700][world.random_within(0..=2) as usize],
            double_per_mille: [0, 300, 800][world.random_within(0..=2) as usize],
            aims: RefCell::default(),
            tally: RefCell::default(),
            is_over: Cell::new(false),
        }))
    }

    /// How often each fault struck.
    pub(crate) fn tally(&self) -> BTreeMap<String, u64> {
        self.0.tally.borrow().clone()
    }

    /// The classes that were drawn.
    pub(crate) fn classes(&self) -> &BTreeSet<Class> {
        &self.0.classes
    }

    fn world(&self) -> &World {
        self.0.cluster.world()
    }

    fn count(&self, what: impl Into<String>) {
        *self.0.tally.borrow_mut().entry(what.into()).or_default() += 1;
    }

    fn within(&self, low: u64, high: u64) -> u64 {
        self.world().random_within(low..=high)
    }

    /// Breaks things until `duration` is over.
    pub(crate) async fn rage(&self, duration: Duration) {
        let end = tokio::time::Instant::now() + duration;
        let nemesis = self.clone();
        self.world().set_hook(Some(Box::new(move |_, process, moment| nemesis.at(process, moment))));
        let strikes = [Class::Kill, Class::Pause, Class::PowerCut, Class::Cut];
        let can_aim = strikes.iter().any(|class| self.0.classes.contains(class));
        loop {
            let pause = self.within(self.0.pause_ms.0, self.0.pause_ms.1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if tokio::time::Instant::now() >= end {
                return;
            }
            if can_aim && self.world().chance(self.0.aimed_per_mille) {
                self.aim();
            } else {
                let index = self.within(0, self.0.classes.len() as u64 - 1) as usize;
                let class = *self.0.classes.iter().nth(index).expect("an index within the set");
                self.strike(class);
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
            machine.set_disk(DiskSettings::default());
            machine.mend();
            world.power_on(machine);
        }
        for node in self.0.cluster.nodes() {
            if let Some(process) = self.0.cluster.process(node) {
                process.resume();
            }
        }
        self.0.cluster.launch_all();
    }

    fn any_node(&self) -> Node {
        let nodes = self.0.cluster.nodes();
        // The masters are where it hurts.
        let index =
            if self.world().chance(500) { self.within(0, 1) } else { self.within(0, nodes.len() as u64 - 1) };
        nodes[index as usize]
    }

    fn any_loss(&self) -> Loss {
        [Loss::All, Loss::Nothing, Loss::Torn, Loss::Torn, Loss::Garbled][self.within(0, 4) as usize]
    }

    fn strike(&self, class: Class) {
        let world = self.world();
        let cluster = &self.0.cluster;
        self.count(format!("{class:?}"));
        match class {
            Class::Kill => {
                if let Some(process) = cluster.process(self.any_node()) {
                    world.kill(&process);
                    self.second_blow();
                }
            }
            Class::KillAll => {
                for node in cluster.nodes() {
                    if let Some(process) = cluster.process(node).filter(|_| world.chance(900)) {
                        world.kill(&process);
                    }
                }
                self.second_blow();
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
                let one = self.any_host();
                let other = self.any_host();
                if one != other {
                    world.cut(&one, &other);
                    if class == Class::Cut {
                        world.cut(&other, &one);
                    }
                    let ms = self.within(10, 4000);
                    world.later(Duration::from_millis(ms), World::heal);
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
                let ms = self.within(100, 4000);
                world.later(Duration::from_millis(ms), |world| world.set_net(NetSettings::default()));
            }
            Class::SlowDisk => {
                let machine = cluster.log_machine().clone();
                machine.set_disk(DiskSettings {
                    write_ms: 0..=self.within(0, 3),
                    sync_ms: 0..=self.within(1, 20),
                    slow_ms: 20..=self.within(50, 1500),
                    slow_per_mille: self.within(0, 200),
                    capacity: None,
                });
                let ms = self.within(100, 4000);
                world.later(Duration::from_millis(ms), move |_| machine.set_disk(DiskSettings::default()));
            }
            Class::SyncFails => cluster.log_machine().fail(self.within(1, 20), DiskFault::SyncFails),
            Class::WriteFails => cluster.log_machine().fail(self.within(1, 20), DiskFault::WriteFails),
            Class::WriteShort => cluster.log_machine().fail(self.within(1, 20), DiskFault::WriteShort),
            Class::DiskFull => {
                let machine = cluster.log_machine().clone();
                let capacity = machine.allocated() + self.within(0, 4000);
                machine.set_disk(DiskSettings { capacity: Some(capacity), ..DiskSettings::default() });
                let ms = self.within(100, 3000);
                world.later(Duration::from_millis(ms), move |_| machine.set_disk(DiskSettings::default()));
            }
            Class::ClockJump => {
                if let Some(process) = cluster.process(self.any_node()) {
                    process.jump(Duration::from_millis(self.within(1, 5000)));
                }
            }
            Class::Drift => {
                if let Some(process) = cluster.process(self.any_node()) {
                    process.set_drift_ppm(self.within(0, 100_000) as i64 - 50_000);
                }
            }
            Class::Handover => self.ask_handover(),
        }
    }

    fn any_host(&self) -> String {
        let nodes = self.0.cluster.nodes();
        let index = self.within(0, nodes.len() as u64 + 2) as usize;
        match nodes.get(index) {
            Some(node) => node.host(),
            None => format!("client{}", self.within(1, 8)),
        }
    }

    fn pause(&self, node: Node, ms: u64) {
        let Some(process) = self.0.cluster.process(node) else { return };
        self.world().say(|| format!("{} stopped for {ms} ms", node.host()));
        process.pause();
        self.world().later(Duration::from_millis(ms), move |_| process.resume());
    }

    fn power_cut(&self, node: Node, loss: Loss) {
        let machine = self.0.cluster.machine_of(node).clone();
        self.world().power_off(&machine, loss);
        let (cluster, nemesis) = (self.0.cluster.clone(), self.clone());
        let ms = self.within(0, 1500);
        self.world().later(Duration::from_millis(ms), move |world| {
            world.power_on(&machine);
            cluster.launch_all();
            nemesis.second_blow();
        });
    }

    /// An operator asks for the reign to change.
    fn ask_handover(&self) {
        let cluster = self.0.cluster.clone();
        let machine = self.world().machine("operator-machine");
        let env = self.world().env(&machine, "operator");
        let master = Cluster::masters()[self.within(0, 1) as usize].clone();
        tokio::task::spawn_local(async move {
            if let Some(mut connection) = crate::clients::Connection::open(&env, &master).await {
                let word = bytes::Bytes::from_static(b"FAILOVER");
                if connection.send(&[vec![word]]).await.is_ok() {
                    let answer = connection.answer().await;
                    cluster.world().say(|| format!("failover asked at {master}: {answer:?}"));
                }
            }
        });
    }

    /// Another fault, in the recovery from the one before.
    fn second_blow(&self) {
        if !self.0.is_over.get() && self.world().chance(self.0.double_per_mille) {
            self.count("second blow armed");
            let recovery = [
                Moment::Opened,
                Moment::LockWon,
                Moment::WriteBegan,
                Moment::Written,
                Moment::SyncBegan,
                Moment::Synced,
                Moment::Truncated,
                Moment::DirectorySynced,
            ];
            let moment = recovery[self.within(0, recovery.len() as u64 - 1) as usize];
            self.arm(moment, true, self.within(0, 4));
        }
    }

    fn aim(&self) {
        let moment = AIMED[self.within(0, AIMED.len() as u64 - 1) as usize];
        let is_master = self.world().chance(800);
        self.arm(moment, is_master, self.within(0, 30));
    }

    fn arm(&self, moment: Moment, is_master: bool, skip: u64) {
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
        let blow = blows[self.within(0, blows.len() as u64 - 1) as usize];
        let delay_ms = if self.world().chance(500) { 0 } else { self.within(0, 60) };
        let mut aims = self.0.aims.borrow_mut();
        if aims.len() < 4 {
            aims.push(Aim { moment, is_master, skip, delay_ms, blow });
        }
    }

    /// A moment has come.
    fn at(&self, process: &Process, moment: Moment) {
        let Some(node) = self.0.cluster.node_of(process) else { return };
        let mut due = None;
        {
            let mut aims = self.0.aims.borrow_mut();
            for (index, aim) in aims.iter_mut().enumerate() {
                if aim.moment == moment && aim.is_master == node.is_master() {
                    if aim.skip == 0 {
                        due = Some(index);
                        break;
                    }
                    aim.skip -= 1;
                }
            }
            due = due.filter(|_| !self.0.is_over.get());
            if due.is_none() {
                return;
            }
        }
        let Some(aim) = due.map(|index| self.0.aims.borrow_mut().remove(index)) else { return };
        self.count(format!("aimed {:?}", aim.moment));
        if aim.delay_ms == 0 {
            self.blow(node, aim.blow);
        } else {
            let nemesis = self.clone();
            self.world().later(Duration::from_millis(aim.delay_ms), move |_| {
                if !nemesis.0.is_over.get() {
                    nemesis.blow(node, aim.blow);
                }
            });
        }
    }

    fn blow(&self, node: Node, blow: Blow) {
        let world = self.world();
        match blow {
            Blow::Kill => {
                if let Some(process) = self.0.cluster.process(node) {
                    world.kill(&process);
                    self.second_blow();
                }
            }
            Blow::PowerCut(loss) => self.power_cut(node, loss),
            Blow::Pause(ms) => self.pause(node, ms),
            Blow::Isolate(ms) => {
                for other in self.0.cluster.nodes() {
                    world.cut(&node.host(), &other.host());
                    world.cut(&other.host(), &node.host());
                }
                world.later(Duration::from_millis(ms), World::heal);
            }
        }
    }
}
