//! Starts the actors of one role and waits for the node's end: the only file that knows the whole tree.
//!
//! One node lives on the current `LocalSet` (an actix System has one), and so do all its actors. Two nodes may share
//! a process, and then must not fence each other: give masters `fence: Fence::None`.

use crate::acceptor::{self, Context};
use crate::config::{MasterConfig, MasterKind, SlaveConfig};
use crate::env::Env;
use crate::master::{self, MasterActor};
use crate::peer_link::{self, Introduction};
use crate::slave::{self, SlaveActor};
use crate::supervision::{Fate, NodeError};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// How long answers may take to leave after a clean end.
const LINGER: Duration = Duration::from_millis(50);

/// What a node does until it ends.
#[derive(Clone, Debug)]
pub enum NodeConfig {
    /// A master.
    Master(MasterKind, MasterConfig),
    /// A slave.
    Slave(SlaveConfig),
}

/// Runs a node until `stop` resolves, and then stops it cleanly. Must be called on a `LocalSet`.
///
/// # Errors
/// A [`NodeError`] when the node cannot start, or ends without having been asked to.
pub async fn run_node(config: NodeConfig, env: Env, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    match config {
        NodeConfig::Master(kind, config) => run_master(kind, config, env, stop).await,
        NodeConfig::Slave(config) => run_slave(config, env, stop).await,
    }
}

async fn run_master(
    kind: MasterKind,
    config: MasterConfig,
    env: Env,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    config.validate(kind).map_err(|error| NodeError::Config(error.to_string()))?;
    let listen = config.listen_address(kind);
    let listener = env
        .listen(&listen)
        .await
        .map_err(|error| NodeError::Listen { address: listen.clone(), error: error.to_string() })?;
    let lock_path = config.lock_path();
    env.locks().identity(&lock_path).map_err(|error| NodeError::File {
        path: lock_path.display().to_string(),
        error: error.to_string(),
    })?;
    check_log(&config, &env).await?;
    let bound = listener.local_address().unwrap_or(listen);
    let address = config.advertise.clone().unwrap_or(bound);
    log::info!("started as={kind:?} address={address} log={} pid={}", config.log.display(), env.pid());
    let cluster = Rc::new(Cell::new(None));
    let introduction = Introduction {
        peer: config.peer_address(kind),
        address: address.clone(),
        lock_path,
        cluster: Rc::clone(&cluster),
    };
    if let Some(reason) = peer_link::preflight(&introduction, &env).await {
        return Err(NodeError::Refused(format!("the other master refuses this one: {reason}")));
    }
    let fate = Fate::default();
    let config = Rc::new(config);
    let (master, switchboard) = MasterActor::begin(master::Parts {
        env: Rc::clone(&env),
        config: Rc::clone(&config),
        kind,
        address,
        fate: fate.clone(),
        cluster,
    });
    let facts = acceptor::server_facts(&config);
    let context = Context { env, config: Rc::clone(&config), facts, switchboard };
    let linking = actix::spawn(peer_link::keep(introduction, context.clone(), fate.clone()));
    let accepting = actix::spawn(acceptor::accept(listener, context, fate.clone()));
    let outcome = ended(stop, || master.do_send(master::Stop), &fate).await;
    accepting.abort();
    linking.abort();
    if outcome.is_ok() {
        tokio::time::sleep(LINGER).await;
    }
    outcome
}

async fn run_slave(config: SlaveConfig, env: Env, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    config.validate().map_err(|error| NodeError::Config(error.to_string()))?;
    let fate = Fate::default();
    let slave = SlaveActor::begin(&env, &Rc::new(config), &fate);
    ended(stop, || slave.do_send(slave::Stop), &fate).await
}

/// Waits for the node's fate; once `stop` resolves, asks for it.
async fn ended(stop: impl Future<Output = ()>, ask: impl FnOnce(), fate: &Fate) -> Result<(), NodeError> {
    tokio::select! {
        biased;
        outcome = fate.decided() => return outcome,
        () = stop => ask(),
    }
    fate.decided().await
}

/// Finds out early whether the log can be used at all, so that a wrong path is one clear line at the start.
async fn check_log(config: &MasterConfig, env: &Env) -> Result<(), NodeError> {
    let opened = env.disk().open(&config.log, crate::env::OpenMode::Write).await;
    let error = match opened {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    Err(NodeError::File { path: config.log.display().to_string(), error: error.to_string() })
}
