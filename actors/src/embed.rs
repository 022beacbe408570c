//! Nodes inside another program: typed messages, and handles of masters and slaves that run as actors beside it.
//!
//! [`start_master`] and [`start_slave`] start a node on the current `LocalSet` (every actix arbiter has one) and give a
//! handle; [`start_local`] starts a whole cluster. An `Addr<MasterActor>` then takes [`Put`], [`Get`], [`Delete`] and
//! [`Status`], as a `ClientActor` does. Their results are of three kinds: done (`Ok`), not executed
//! ([`ClientError::NotExecuted`]), unknown ([`ClientError::Indeterminate`]). When actix itself says that the actor is
//! gone (`MailboxError`), a write is unknown too. Nothing here waits inside a handler, and nothing is retried.
//!
//! A request to a master goes the way of every client's: through a session with its own slots, bounded by
//! `--max-pipeline` and the limits on all requests, executed in the order of arrival, forwarded by a standby.
//!
//! ```
//! use dsm::embed::{self, Get, LocalConfig, Put};
//!
//! #[actix::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let directory = tempfile::tempdir()?;
//!     let config = LocalConfig::new(directory.path().join("kv_store.log"), 2);
//!     let cluster = embed::start_local(config).await?;
//!     let master = cluster.primary().master();
//!     master.send(Put { key: "user1".into(), value: "Alice".into() }).await??;
//!     assert_eq!(master.send(Get { key: "user1".into() }).await??, Some("Alice".into()));
//!     cluster.stop().await?;
//!     Ok(())
//! }
//! ```
//!
//! [`ClientError::NotExecuted`]: crate::client::ClientError::NotExecuted
//! [`ClientError::Indeterminate`]: crate::client::ClientError::Indeterminate

use crate::config::ConfigError;
use crate::config::{Fence, MasterConfig, MasterKind, SlaveConfig};
pub use crate::door::embedded::{Delete, Get, Put, Status};
use crate::env::local::LocalNet;
use crate::env::real::RealEnv;
use crate::env::{Env, Listener};
use crate::journal::JournalKind;
use crate::master::MasterActor;
use crate::node::{open_master, open_slave};
use crate::node_error::NodeError;
use actix::prelude::*;
pub use bytes::Bytes;
use dsm_protocol::ids::SlaveId;
use dsm_protocol::info::MasterInfo;
use futures_util::future::LocalBoxFuture;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A node's task, and the wish that keeps it running.
#[derive(Debug)]
struct Running {
    /// Its drop asks the node to stop.
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), NodeError>>,
    outcome: Option<Result<(), NodeError>>,
}

impl Running {
    fn start<F>(run: impl FnOnce(oneshot::Receiver<()>) -> F) -> Self
    where
        F: Future<Output = Result<(), NodeError>> + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        Running { stop: Some(stop), task: actix::spawn(run(stopped)), outcome: None }
    }

    async fn ended(&mut self) -> Result<(), NodeError> {
        if self.outcome.is_none() {
            // The task itself only waits; that it is gone without a word means that its System was.
            let gone = |_| Err(NodeError::Panicked { actor: "the node" });
            self.outcome = Some((&mut self.task).await.unwrap_or_else(gone));
        }
        self.outcome.clone().unwrap_or(Ok(()))
    }

    async fn stop(&mut self) -> Result<(), NodeError> {
        self.stop = None;
        self.ended().await
    }
}

/// A master that runs beside the program. With its drop the node is asked to stop, as by [`MasterNode::stop`], and does
/// so in the background as long as its System lives.
#[derive(Debug)]
pub struct MasterNode {
    address: String,
    master: Addr<MasterActor>,
    running: Running,
}

impl MasterNode {
    /// The address (`host:port`) at which slaves, clients and the other master reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The actor, which takes [`Put`], [`Get`], [`Delete`] and [`Status`], from other threads too.
    pub fn master(&self) -> &Addr<MasterActor> {
        &self.master
    }

    /// Waits until the node has ended: by a failure, unless the program stops it.
    ///
    /// # Errors
    /// Why it ended without having been asked to.
    pub async fn ended(&mut self) -> Result<(), NodeError> {
        self.running.ended().await
    }

    /// Stops the node: requests in flight are finished, the log is closed and marked as whole, the locks are released.
    /// When this returns, the node has left no task, no port and no lock behind.
    ///
    /// # Errors
    /// Why it had ended by itself before.
    pub async fn stop(mut self) -> Result<(), NodeError> {
        self.running.stop().await
    }
}

/// A slave that runs beside the program. With its drop the node is asked to stop.
#[derive(Debug)]
pub struct SlaveNode {
    id: SlaveId,
    running: Running,
}

impl SlaveNode {
    /// Its name at the masters.
    pub fn id(&self) -> &SlaveId {
        &self.id
    }

    /// Waits until the node has ended: by a failure, unless the program stops it.
    ///
    /// # Errors
    /// Why it ended without having been asked to.
    pub async fn ended(&mut self) -> Result<(), NodeError> {
        self.running.ended().await
    }

    /// Stops the node. When this returns, it has left no task and no connection behind.
    ///
    /// # Errors
    /// Why it had ended by itself before.
    pub async fn stop(mut self) -> Result<(), NodeError> {
        self.running.stop().await
    }
}

/// Starts a master on the current `LocalSet`. It is a standby at first and serves when it has won the log's lock.
///
/// A master that shares its process with other things should have `fence: Fence::None`; and the other master too,
/// unless it may kill this process when this master hangs.
///
/// # Errors
/// When a setting is wrong, the address is in use, or log or lock file cannot be used.
pub async fn start_master(kind: MasterKind, config: MasterConfig, env: Env) -> Result<MasterNode, NodeError> {
    start_master_at(kind, config, env, None).await
}

async fn start_master_at(
    kind: MasterKind,
    config: MasterConfig,
    env: Env,
    listener: Option<Listener>,
) -> Result<MasterNode, NodeError> {
    let journal = JournalKind::of(&config);
    let open = open_master(kind, config, journal, env, listener).await?;
    let (address, master) = (open.address.clone(), open.master.clone());
    let running = Running::start(|stopped| open.run(until(stopped)));
    Ok(MasterNode { address, master, running })
}

/// Starts a slave on the current `LocalSet`. It registers at its masters by itself, whenever they come.
///
/// # Errors
/// When a setting is wrong.
pub fn start_slave(config: SlaveConfig, env: &Env) -> Result<SlaveNode, NodeError> {
    let open = open_slave(config, env)?;
    let id = open.id.clone();
    let running = Running::start(|stopped| open.run(until(stopped)));
    Ok(SlaveNode { id, running })
}

async fn until(stopped: oneshot::Receiver<()>) {
    // A dropped sender is how a stop is asked for.
    let _ = stopped.await;
}

/// A cluster within one process: masters and slaves.
#[derive(Debug)]
pub struct LocalCluster {
    /// Its masters. The first one serves when all can; the others follow the log, and one of them takes over when the one that
    /// serves is stopped or dropped.
    pub masters: Vec<MasterNode>,
    /// Its slaves, by number.
    pub slaves: Vec<SlaveNode>,
}

/// So many masters a cluster has: a log that is one file takes no more.
const MASTERS: usize = 2;

/// How often [`wait_serving`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long [`start_local`] waits by default until the primary serves.
const START_LIMIT: Duration = Duration::from_secs(10);

/// At which addresses the masters of a [`LocalCluster`] can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Doors {
    /// At none: the nodes talk within the process, no port is opened, and only the program around them can ask.
    #[default]
    Closed,
    /// At free ports of the loopback, open to every user and program of this machine.
    Loopback,
    /// At these addresses, HOST:PORT, one for each master, the primary's first. No wildcard may be among them. A log that is one
    /// file takes two masters.
    At(Vec<String>),
}

/// The settings of a [`LocalCluster`].
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// How many slaves it has; at least 1.
    pub slaves: usize,
    /// At which addresses the masters listen.
    pub doors: Doors,
    /// The settings of each master. Its addresses (`listen`, `advertise`, `peer`) are set by [`start_local`], and
    /// `fence` is [`Fence::None`] unless it is set otherwise after [`LocalConfig::new`].
    pub masters: MasterConfig,
    /// The settings of each slave. Its `masters` and `id` (`slave1`, `slave2`, ...) are set by [`start_local`].
    pub slave: SlaveConfig,
    /// How long to wait until the primary serves with all slaves. Default 10 s.
    pub start_limit: Duration,
}

impl LocalConfig {
    /// A cluster with its log at `log` and so many slaves, everything else by default: no port is opened.
    pub fn new(log: impl Into<PathBuf>, slaves: usize) -> Self {
        LocalConfig {
            slaves,
            doors: Doors::default(),
            masters: MasterConfig { log: log.into(), fence: Fence::None, ..MasterConfig::default() },
            slave: SlaveConfig::default(),
            start_limit: START_LIMIT,
        }
    }
}

/// What stands behind the names of masters that are reached within the process alone.
const IN_PROCESS: &str = ".in-process:1";

/// Where each master of a cluster listens.
fn listen_addresses(doors: &Doors) -> Result<Vec<String>, ConfigError> {
    match doors {
        Doors::Closed => Ok((1..=MASTERS).map(|number| format!("master{number}{IN_PROCESS}")).collect()),
        Doors::Loopback => Ok(vec!["127.0.0.1:0".to_owned(); MASTERS]),
        Doors::At(addresses) if addresses.len() < MASTERS => {
            Err(ConfigError::TooFewMasters { named: addresses.len() })
        }
        Doors::At(addresses) => Ok(addresses.clone()),
    }
}

/// Starts a cluster on the current `LocalSet`, and waits until the primary serves with all slaves. No master kills anybody,
/// unless the settings say so.
///
/// # Errors
/// As [`start_master`] and [`start_slave`]; [`ConfigError::TooFewMasters`]; [`NodeError::NotServing`] when the primary does not
/// serve in time, as when another process has this log.
pub async fn start_local(config: LocalConfig) -> Result<LocalCluster, NodeError> {
    let net = LocalNet::default();
    let is_closed = config.doors == Doors::Closed;
    let env = || if is_closed { net.env(RealEnv::new()) } else { RealEnv::new() };
    // All doors are open before the first master dials.
    let mut doors = Vec::new();
    for listen in listen_addresses(&config.doors)? {
        let env = env();
        let (listener, address) = open_door(&env, &listen).await?;
        doors.push((env, listener, address));
    }
    let addresses: Vec<String> = doors.iter().map(|(.., address)| address.clone()).collect();
    let mut masters = Vec::new();
    for (place, (env, listener, address)) in doors.into_iter().enumerate() {
        let kind = if place == 0 { MasterKind::Primary } else { MasterKind::Backup };
        let settings = MasterConfig {
            peers: addresses.iter().filter(|other| **other != address).cloned().collect(),
            listen: vec![address],
            advertise: None,
            // Where its directory holds nothing, a cluster in this process is a new one.
            new: true,
            ..config.masters.clone()
        };
        masters.push(start_master_at(kind, settings, env, Some(listener)).await?);
    }
    let slaves = (1..=config.slaves)
        .map(|number| {
            let id = SlaveId::new(format!("slave{number}")).map_err(ConfigError::SlaveId)?;
            let masters = addresses.clone();
            start_slave(SlaveConfig { masters, id: Some(id), ..config.slave.clone() }, &env())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let cluster = LocalCluster { masters, slaves };
    wait_serving(cluster.primary(), cluster.slaves.len(), config.start_limit).await?;
    Ok(cluster)
}

async fn open_door(env: &Env, address: &str) -> Result<(Listener, String), NodeError> {
    let error = |error: std::io::Error| NodeError::listen(address, error);
    let listener = env.listen(address).await.map_err(error)?;
    let address = listener.local_address().map_err(error)?;
    Ok((listener, address))
}

/// Waits until `master` serves with at least `slaves` slaves.
///
/// # Errors
/// [`NodeError::NotServing`] after `limit`.
pub async fn wait_serving(master: &MasterNode, slaves: usize, limit: Duration) -> Result<(), NodeError> {
    let serving = async {
        loop {
            if let Ok(Ok(status)) = master.master().send(Status).await {
                let serves =
                    |info: MasterInfo| info.is_primary() && info.slaves.active_slaves >= slaves as u64;
                if MasterInfo::parse(&status).is_ok_and(serves) {
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(limit, serving)
        .await
        .map_err(|_| NodeError::NotServing { address: master.address().to_owned() })
}

/// Nodes that are stopped together.
pub trait Nodes {
    /// Stops them; when it resolves, they have left nothing behind.
    ///
    /// # Errors
    /// Why one of them had ended by itself before.
    fn stop(self) -> LocalBoxFuture<'static, Result<(), NodeError>>;
}

impl Nodes for MasterNode {
    fn stop(self) -> LocalBoxFuture<'static, Result<(), NodeError>> {
        Box::pin(MasterNode::stop(self))
    }
}

impl Nodes for SlaveNode {
    fn stop(self) -> LocalBoxFuture<'static, Result<(), NodeError>> {
        Box::pin(SlaveNode::stop(self))
    }
}

impl Nodes for LocalCluster {
    fn stop(self) -> LocalBoxFuture<'static, Result<(), NodeError>> {
        Box::pin(LocalCluster::stop(self))
    }
}

/// The thread on which [`on_own_thread`] runs nodes. With its drop they are asked to stop.
#[derive(Debug)]
pub struct NodesThread {
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<Result<(), NodeError>>,
}

impl NodesThread {
    /// Stops the nodes and their System.
    ///
    /// # Errors
    /// Why one of them had ended by itself before.
    pub async fn stop(mut self) -> Result<(), NodeError> {
        self.stop = None;
        self.ended.await.unwrap_or(Err(NodeError::Panicked { actor: "the nodes' thread" }))
    }
}

/// Starts nodes in an actix System on a thread of its own, for programs that run no System: `start` starts them there,
/// and what `tell` says of them (addresses, as a rule) is given to the caller. Works from any runtime.
///
/// # Errors
/// Those of `start`; [`NodeError::Panicked`] when there is no thread to be had or `start` panics.
pub async fn on_own_thread<N, T, F>(
    start: impl FnOnce() -> F + Send + 'static,
    tell: impl FnOnce(&N) -> T + Send + 'static,
) -> Result<(T, NodesThread), NodeError>
where
    N: Nodes,
    T: Send + 'static,
    F: Future<Output = Result<N, NodeError>>,
{
    let (started, starting) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let run = move || {
        actix_rt::System::new().block_on(async move {
            let nodes = match start().await {
                Ok(nodes) => nodes,
                Err(error) => return drop(started.send(Err(error))),
            };
            // A caller who is gone has dropped the wish that the nodes run, too.
            let _ = started.send(Ok(tell(&nodes)));
            until(stopped).await;
            let _ = end.send(nodes.stop().await);
        });
    };
    let panicked = || NodeError::Panicked { actor: "the nodes' thread" };
    // The nodes' one thread, of a program that has its own.
    #[allow(clippy::disallowed_methods)]
    std::thread::Builder::new().name("dsm-nodes".to_owned()).spawn(run).map_err(|_| panicked())?;
    let told = starting.await.map_err(|_| panicked())??;
    Ok((told, NodesThread { stop: Some(stop), ended }))
}

impl LocalCluster {
    /// The master that serves when all can: the first one.
    ///
    /// # Panics
    /// When all masters were taken out of the cluster.
    pub fn primary(&self) -> &MasterNode {
        self.masters.first().expect("a cluster is started with masters")
    }

    /// The masters' addresses, for clients; none when the cluster has no doors ([`Doors::Closed`]).
    pub fn addresses(&self) -> Vec<String> {
        let addresses = self.masters.iter().map(MasterNode::address);
        addresses.filter(|address| !address.ends_with(IN_PROCESS)).map(str::to_owned).collect()
    }

    /// Stops all nodes: the masters, the first one after the others, and then the slaves.
    ///
    /// # Errors
    /// Why the first of them had ended by itself before; the others are stopped all the same.
    pub async fn stop(self) -> Result<(), NodeError> {
        let mut outcomes = Vec::new();
        // Standbys first: none of them must take over for a moment.
        for master in self.masters.into_iter().rev() {
            outcomes.push(master.stop().await);
        }
        for slave in self.slaves {
            outcomes.push(slave.stop().await);
        }
        outcomes.into_iter().collect()
    }
}
