//! Three masters, each on a machine of its own, and the slaves.

use bytes::BytesMut;
use bytesize::ByteSize;
use dsm::config::{MasterConfig, MasterKind, SlaveConfig, SlaveId};
use dsm::env::sim::{Machine, Process, World};
use dsm::env::Env;
use dsm::node::{run_node, NodeConfig};
use dsm::node_error::NodeError;
use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

pub(crate) const MASTERS: usize = 3;

const SLAVES: usize = 3;

/// How long a cluster that nothing is wrong with may take to serve.
const LIMIT: Duration = Duration::from_secs(60);

/// How long an answer to INFO may take.
const INFO_TIMEOUT: Duration = Duration::from_secs(2);

/// One node: its machine, and its process while it runs.
struct Node {
    host: String,
    machine: Machine,
    process: RefCell<Option<Process>>,
}

struct State {
    /// What nodes have ended with, which none of the faults that are made here is a reason for.
    ended: RefCell<Vec<String>>,
    world: World,
    env: Env,
    nodes: Vec<Node>,
    /// When masters compact their logs.
    compact_min: ByteSize,
}

/// The cluster. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Cluster(Rc<State>);

/// The address of a master.
pub(crate) fn address(master: usize) -> String {
    format!("{}:12345", host(master))
}

/// The host of a node: masters come first.
pub(crate) fn host(node: usize) -> String {
    if node < MASTERS {
        format!("master{}", node + 1)
    } else {
        format!("slave{}", node + 1 - MASTERS)
    }
}

impl Cluster {
    pub(crate) fn start(world: &World, compact_min: ByteSize) -> Self {
        let env = world.env(&world.machine("clients"), "clients");
        let node = |number| {
            let host = host(number);
            Node { machine: world.machine(&host), host, process: RefCell::default() }
        };
        let nodes = (0..MASTERS + SLAVES).map(node).collect();
        let (ended, world) = (RefCell::default(), world.clone());
        let cluster = Cluster(Rc::new(State { ended, world, env, nodes, compact_min }));
        cluster.launch_all();
        cluster
    }

    pub(crate) fn world(&self) -> &World {
        &self.0.world
    }

    pub(crate) fn env(&self) -> &Env {
        &self.0.env
    }

    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        self.0.nodes.len()
    }

    pub(crate) fn machine(&self, node: usize) -> &Machine {
        &self.0.nodes[node].machine
    }

    /// The process of a node, while it lives.
    pub(crate) fn process(&self, node: usize) -> Option<Process> {
        self.0.nodes[node].process.borrow().clone().filter(Process::is_alive)
    }

    /// Starts whatever does not run and could.
    pub(crate) fn launch_all(&self) {
        for number in 0..self.nodes() {
            self.launch(number);
        }
    }

    fn launch(&self, number: usize) {
        let node = &self.0.nodes[number];
        if self.process(number).is_some() || !node.machine.is_on() {
            return;
        }
        let masters: Vec<String> = (0..MASTERS).map(address).collect();
        let config = if number < MASTERS {
            let config = MasterConfig {
                listen: vec![address(number)],
                members: masters,
                compact_min: self.0.compact_min,
                ..MasterConfig::default()
            };
            NodeConfig::Master(MasterKind::Primary, config)
        } else {
            let id = Some(SlaveId::new(node.host.clone()).unwrap());
            NodeConfig::Slave(SlaveConfig { masters, id, ..SlaveConfig::default() })
        };
        let (cluster, host) = (self.clone(), node.host.clone());
        let (process, _) = self.0.world.start(&node.machine, &node.host, |env| async move {
            let ended = run_node(config, env, pending()).await;
            // A newcomer that is taken back may have taken its number meanwhile.
            if matches!(&ended, Err(NodeError::NoMember { reason, .. }) if reason.contains("was removed")) {
                return;
            }
            cluster.0.ended.borrow_mut().push(format!("{host} has ended: {ended:?}"));
        });
        *node.process.borrow_mut() = Some(process);
    }

    /// What a master says of itself; nothing when it does not answer.
    pub(crate) async fn info(&self, master: usize) -> Option<String> {
        let asking = async {
            let stream = self.0.env.connect(&address(master)).await.ok()?;
            stream.write_all(b"INFO\r\n").await.ok()?;
            let mut said = BytesMut::new();
            loop {
                let text = String::from_utf8_lossy(&said);
                if let Some((head, body)) = text.split_once("\r\n") {
                    let length: usize = head.strip_prefix('$')?.parse().ok()?;
                    if body.len() >= length {
                        return Some(body.to_owned());
                    }
                }
                if stream.read(&mut said).await.ok()? == 0 {
                    return None;
                }
            }
        };
        tokio::time::timeout(INFO_TIMEOUT, asking).await.ok().flatten()
    }

    /// Waits until a master serves with all slaves, and the others follow it.
    pub(crate) async fn serves(&self) {
        let begun = Instant::now();
        loop {
            let mut infos = Vec::new();
            for master in 0..MASTERS {
                infos.extend(self.info(master).await);
            }
            let count = |fact: &str| {
                infos.iter().filter(|info| info.lines().any(|line| line.trim_end() == fact)).count()
            };
            let has_slaves = count(&format!("active_slaves:{SLAVES}")) > 0;
            if count("dsm_role:primary") == 1 && count("dsm_role:standby") == MASTERS - 1 && has_slaves {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "nobody serves: {infos:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What nodes have ended with by themselves.
    pub(crate) fn ended(&self) -> Vec<String> {
        self.0.ended.borrow().clone()
    }

    /// How often a master began to serve, as far as those that run remember.
    pub(crate) async fn takeovers(&self) -> u64 {
        let sum = self.sum("takeovers:").await;
        // Each reign has an epoch of its own.
        let info = self.info(0).await.unwrap_or_default();
        let epoch = info.lines().find_map(|line| line.strip_prefix("epoch:"));
        epoch.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0).max(sum)
    }

    /// How many logs were compacted, as far as the masters that run have done it.
    pub(crate) async fn compactions(&self) -> u64 {
        self.sum("compactions:").await
    }

    /// The sum of a number in what masters say of themselves.
    async fn sum(&self, field: &str) -> u64 {
        let mut sum = 0;
        for master in 0..MASTERS {
            let info = self.info(master).await.unwrap_or_default();
            let number = info.lines().find_map(|line| line.strip_prefix(field));
            sum += number.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        sum
    }
}
