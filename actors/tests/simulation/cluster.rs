//! A cluster in a simulated world: two masters on one machine, slaves, and what restarts them when they end.
//!
//! Owns the processes. Never breaks one by itself; that is the nemesis' part.

use bytesize::ByteSize;
use dsm::config::{
    CopyCount, Fsync, MasterConfig, MasterKind, PlacementFlag, Secret, SecretSource, SlaveConfig,
};
use dsm::env::sim::{Machine, Process, World};
use dsm::node::{run_node, NodeConfig};
use dsm::node_error::NodeError;
use dsm_protocol::ids::SlaveId;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Where the masters keep the log.
pub(crate) const LOG: &str = "/data/kv_store.log";

/// Which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Primary,
    Backup,
    Slave(usize),
}

impl Node {
    pub(crate) fn host(self) -> String {
        match self {
            Node::Primary => "primary".to_owned(),
            Node::Backup => "backup".to_owned(),
            Node::Slave(number) => format!("slave{number}"),
        }
    }

    pub(crate) fn is_master(self) -> bool {
        !matches!(self, Node::Slave(_))
    }
}

/// What differs between clusters.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) slaves: usize,
    /// Whether the slaves stand on the machine of the masters.
    pub(crate) is_one_machine: bool,
    pub(crate) placement: PlacementFlag,
    pub(crate) copies: CopyCount,
    pub(crate) fsync: Fsync,
    pub(crate) ack_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) failover_timeout: Duration,
    /// Bytes of values that may be on their way from one slave.
    pub(crate) slave_window: ByteSize,
    /// Keys of a request that are done in one turn.
    pub(crate) slice_keys: Option<usize>,
    /// So much of the log must be superseded before it is compacted.
    pub(crate) compact_min: ByteSize,
    /// Whether slaves and masters prove a secret.
    pub(crate) has_secret: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            slaves: 3,
            is_one_machine: false,
            placement: PlacementFlag::Hash,
            copies: CopyCount::Half,
            fsync: Fsync::Always,
            ack_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_millis(200),
            failover_timeout: Duration::from_secs(1),
            slave_window: MasterConfig::default().slave_window,
            slice_keys: None,
            compact_min: MasterConfig::default().compact_min,
            has_secret: false,
        }
    }
}

impl Shape {
    /// Whether logs of a few kilobytes are compacted.
    pub(crate) fn compacts(&self) -> bool {
        self.compact_min < MasterConfig::default().compact_min
    }

    /// A shape that the world draws.
    pub(crate) fn draw(world: &World) -> Self {
        let ms = |low, high| Duration::from_millis(world.random_within(low..=high));
        Shape {
            slaves: world.random_within(1..=5) as usize,
            is_one_machine: world.chance(250),
            placement: if world.chance(300) { PlacementFlag::Random } else { PlacementFlag::Hash },
            copies: CopyCount::Half,
            fsync: Fsync::Always,
            ack_timeout: ms(100, 1000),
            read_timeout: ms(50, 200),
            failover_timeout: ms(300, 1000),
            slave_window: MasterConfig::default().slave_window,
            slice_keys: None,
            compact_min: MasterConfig::default().compact_min,
            has_secret: false,
        }
    }

    /// The secret of slaves and masters.
    fn secret(&self) -> Option<SecretSource> {
        let secret = Secret::parse(b"the secret of a simulated cluster").expect("it is long enough");
        self.has_secret.then_some(SecretSource::Given(secret))
    }
}

struct Place {
    node: Node,
    machine: Machine,
    process: RefCell<Option<Process>>,
    /// Asks the process to stop, as SIGTERM does; `None` once it is asked.
    stop: RefCell<Option<oneshot::Sender<()>>>,
    /// What it may hold from its next start on, if it is a slave.
    memory: Cell<Option<ByteSize>>,
}

struct State {
    world: World,
    shape: Shape,
    places: Vec<Place>,
    machines: Vec<Machine>,
    /// How nodes ended that nobody killed.
    ends: RefCell<Vec<(Node, Result<(), NodeError>)>>,
    restart_ms: Cell<(u64, u64)>,
    /// Whether masters that end are left alone.
    masters_are_held: Cell<bool>,
}

/// The cluster. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Cluster(Rc<State>);

impl Cluster {
    /// Builds and starts a cluster.
    pub(crate) fn start(world: &World, shape: Shape) -> Self {
        let masters = world.machine("machine0");
        let mut machines = vec![masters.clone()];
        let mut places = Vec::new();
        let place = |node, machine: &Machine| Place {
            node,
            machine: machine.clone(),
            process: RefCell::default(),
            stop: RefCell::default(),
            memory: Cell::default(),
        };
        places.push(place(Node::Primary, &masters));
        places.push(place(Node::Backup, &masters));
        for number in 1..=shape.slaves {
            if shape.is_one_machine {
                places.push(place(Node::Slave(number), &masters));
            } else {
                let machine = world.machine(&format!("machine{number}"));
                places.push(place(Node::Slave(number), &machine));
                machines.push(machine);
            }
        }
        let cluster = Cluster(Rc::new(State {
            world: world.clone(),
            shape,
            places,
            machines,
            ends: RefCell::default(),
            restart_ms: Cell::new((0, 500)),
            masters_are_held: Cell::new(false),
        }));
        for place in &cluster.0.places {
            cluster.launch(place);
        }
        cluster
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.0.shape
    }

    pub(crate) fn world(&self) -> &World {
        &self.0.world
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.0.places.iter().map(|place| place.node).collect()
    }

    pub(crate) fn machines(&self) -> &[Machine] {
        &self.0.machines
    }

    /// The machine with the log.
    pub(crate) fn log_machine(&self) -> &Machine {
        &self.0.machines[0]
    }

    /// The addresses of the masters, the primary's first.
    pub(crate) fn masters() -> Vec<String> {
        vec!["primary:12345".to_owned(), "backup:12346".to_owned()]
    }

    /// How long nodes stay down before they are started again, in milliseconds.
    pub(crate) fn set_restart_ms(&self, low: u64, high: u64) {
        self.0.restart_ms.set((low, high));
    }

    fn place(&self, node: Node) -> &Place {
        self.0.places.iter().find(|place| place.node == node).expect("the node is part of the cluster")
    }

    /// The running process of a node.
    pub(crate) fn process(&self, node: Node) -> Option<Process> {
        self.place(node).process.borrow().clone().filter(Process::is_alive)
    }

    /// The node that a process is or was.
    pub(crate) fn node_of(&self, process: &Process) -> Option<Node> {
        self.0.places.iter().map(|place| place.node).find(|node| node.host() == process.host())
    }

    pub(crate) fn machine_of(&self, node: Node) -> &Machine {
        &self.place(node).machine
    }

    /// Asks a node to stop, as SIGTERM does. Whether it runs and had not been asked.
    pub(crate) fn stop(&self, node: Node) -> bool {
        let stop = self.process(node).and_then(|_| self.place(node).stop.borrow_mut().take());
        stop.is_some_and(|stop| stop.send(()).is_ok())
    }

    /// What a slave may hold from its next start on.
    pub(crate) fn set_memory(&self, node: Node, memory: Option<ByteSize>) {
        self.place(node).memory.set(memory);
    }

    /// How nodes ended that were neither killed nor asked to.
    pub(crate) fn ends(&self) -> Vec<(Node, Result<(), NodeError>)> {
        self.0.ends.borrow().clone()
    }

    /// Leaves masters that have ended alone, or not any more.
    pub(crate) fn hold_masters(&self, are_held: bool) {
        self.0.masters_are_held.set(are_held);
    }

    /// Starts both masters once, held or not.
    pub(crate) fn launch_masters(&self) {
        for place in self.0.places.iter().filter(|place| place.node.is_master()) {
            self.start_node(place);
        }
    }

    /// Forgets how nodes ended: it is known why.
    pub(crate) fn forget_ends(&self) {
        self.0.ends.borrow_mut().clear();
    }

    fn launch(&self, place: &Place) {
        if !(place.node.is_master() && self.0.masters_are_held.get()) {
            self.start_node(place);
        }
    }

    fn start_node(&self, place: &Place) {
        // What holds its sockets still is not started twice: who waits for its end starts the next.
        let is_there = place.process.borrow().as_ref().is_some_and(|process| !process.is_gone());
        if !place.machine.is_on() || is_there {
            return;
        }
        let config = self.config(place.node);
        let world = &self.0.world;
        let (stop, asked) = oneshot::channel();
        let (process, end) = world.start(&place.machine, &place.node.host(), |env| async move {
            // Nobody drops the other end before this one has ended.
            run_node(config, env, async { drop(asked.await) }).await
        });
        *place.process.borrow_mut() = Some(process.clone());
        *place.stop.borrow_mut() = Some(stop);
        let (cluster, node) = (self.clone(), place.node);
        tokio::task::spawn_local(async move {
            // An error: it was killed.
            if let Ok(outcome) = end.await {
                let was_asked = cluster.place(node).stop.borrow().is_none();
                cluster.0.world.say(|| format!("{} ended, asked to {was_asked}: {outcome:?}", node.host()));
                if !(was_asked && outcome.is_ok()) {
                    cluster.0.ends.borrow_mut().push((node, outcome));
                }
            }
            process.gone().await;
            let (low, high) = cluster.0.restart_ms.get();
            let delay = cluster.0.world.random_within(low..=high);
            tokio::time::sleep(Duration::from_millis(delay)).await;
            cluster.launch(cluster.place(node));
        });
    }

    /// Starts whatever is down and may run. To be called when a machine has power again.
    pub(crate) fn launch_all(&self) {
        for place in &self.0.places {
            self.launch(place);
        }
    }

    fn config(&self, node: Node) -> NodeConfig {
        let shape = &self.0.shape;
        dsm::testing::set_slice_keys(shape.slice_keys);
        let [primary, backup] = [&Self::masters()[0], &Self::masters()[1]].map(String::clone);
        let master = |listen: &str, peer: &str| MasterConfig {
            listen: vec![listen.to_owned()],
            peers: vec![peer.to_owned()],
            log: PathBuf::from(LOG),
            // It may stand in a unit file for ever: what names a cluster counts first.
            new: true,
            fsync: shape.fsync,
            placement: shape.placement,
            copies: shape.copies,
            ack_timeout: shape.ack_timeout,
            read_timeout: shape.read_timeout,
            failover_timeout: shape.failover_timeout,
            slave_window: shape.slave_window,
            compact_min: shape.compact_min,
            secret: shape.secret(),
            ..MasterConfig::default()
        };
        match node {
            Node::Primary => NodeConfig::Master(MasterKind::Primary, master(&primary, &backup)),
            Node::Backup => NodeConfig::Master(MasterKind::Backup, master(&backup, &primary)),
            Node::Slave(_) => NodeConfig::Slave(SlaveConfig {
                masters: Self::masters(),
                max_memory: self.place(node).memory.get(),
                secret: shape.secret(),
                id: Some(SlaveId::new(node.host()).expect("letters and a digit make a valid slave id")),
                ..SlaveConfig::default()
            }),
        }
    }

    /// What stands in the log.
    pub(crate) fn log(&self) -> Vec<u8> {
        self.log_machine().content(Path::new(LOG)).unwrap_or_default()
    }
}
