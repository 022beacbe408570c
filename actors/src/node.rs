//! Starts the actors of one role and waits for the node's end: the only file that knows the whole tree.
//!
//! One node lives on the current `LocalSet` (an actix System has one), and so do all its actors. Two nodes may share
//! a process, and then must not fence each other: give masters `fence: Fence::None`. A node that has ended has given
//! everything back: its port, its locks, its tasks and its actors.

use crate::address::{self, Transport};
use crate::certificates;
use crate::config::{
    ClientAuth, ConfigError, ListenAddresses, MasterConfig, MasterKind, ProtectedMode, SlaveConfig, UnixMode,
};
use crate::door::dialed::{self, Introduction};
use crate::door::switchboard::Switchboard;
use crate::door::{self, Context};
use crate::env::{Env, Listener};
use crate::http::{self, Guard, HttpHost};
use crate::journal::{JournalKind, Seat};
use crate::master::{self, MasterActor};
use crate::node_error::NodeError;
use crate::reload;
use crate::secrets;
use crate::service;
use crate::slave::{BegunSlave, SlaveActor};
use crate::supervision::{Dismiss, Fate, Stop};
use crate::turns::TurnLengths;
use actix::prelude::*;
use dsm_protocol::handshake::Security;
use dsm_protocol::ids::SlaveId;
use dsm_protocol::machine::protected::{self, Comer, Shown};
use dsm_protocol::machine::welcome::is_outvoted;
use dsm_protocol::record::line_bytes_max;
use dsm_protocol::secret::{Secret, Secrets};
use futures_util::future::join_all;
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long tasks may take to end after a clean end.
const LINGER: Duration = Duration::from_millis(50);

/// How long a node waits for answers to leave, and for those who have just asked to notice its end.
#[derive(Clone, Copy)]
pub(crate) struct Linger {
    /// While no socket takes a byte.
    stalled: Duration,
    /// In all.
    longest: Duration,
}

impl Linger {
    /// After a clean end. A system whose peer read nothing for a while tries again only after as long a while: a client that
    /// read nothing for a second gets the rest within two.
    pub(crate) const CLEAN: Linger =
        Linger { stalled: Duration::from_secs(2), longest: Duration::from_secs(5) };

    /// After the loss of the log, of which people are to hear soon.
    const DISPLACED: Linger = Linger { stalled: Duration::from_secs(1), longest: Duration::from_secs(1) };
}

/// How long a start may look for the meaning of the other master's name.
const SELF_TIMEOUT: Duration = Duration::from_millis(500);

/// What a node does until it ends.
// There is one of it in a process: its size is of no account.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum NodeConfig {
    /// A master, with its flags.
    Master(MasterKind, MasterConfig),
    /// A slave, with its flags.
    Slave(SlaveConfig),
}

/// Runs a node until `stop` resolves, and then stops it cleanly. Must be called on a `LocalSet`.
///
/// # Errors
/// A [`NodeError`] when the node cannot start, or ends without having been asked to.
pub async fn run_node(config: NodeConfig, env: Env, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    match config {
        NodeConfig::Master(kind, config) => {
            let journal = JournalKind::of(&config);
            run_master(kind, config, journal, env, stop).await
        }
        NodeConfig::Slave(config) => open_slave(config, &env)?.run(stop).await,
    }
}

/// Runs a master whose log is of this kind, as [`run_node`] does.
///
/// # Errors
/// As [`run_node`].
pub async fn run_master(
    kind: MasterKind,
    config: MasterConfig,
    journal: JournalKind,
    env: Env,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let mut stop = pin!(stop);
    // A start may wait for names, files and the other master, and a stop must not wait for that.
    let opened = tokio::select! {
        biased;
        opened = open_master(kind, config, journal, env, None) => opened?,
        () = &mut stop => return Ok(()),
    };
    opened.run(stop).await
}

/// A master that is started: its actors and the tasks around them. What is left of it ends with the drop.
pub(crate) struct OpenMaster {
    /// The address at which others reach it.
    pub(crate) address: String,
    pub(crate) master: Addr<MasterActor>,
    fate: Fate,
    switchboard: Rc<Switchboard>,
    /// The acceptors with all connections, and the link to the other master.
    accepting: JoinSet<()>,
    /// Ends with the node, and delays no end.
    _reloading: JoinSet<()>,
    /// The same.
    _telling: JoinSet<()>,
    linking: JoinSet<()>,
}

/// Starts a master. If there is a `listener`, it is the one by which others know it.
pub(crate) async fn open_master(
    kind: MasterKind,
    config: MasterConfig,
    journal: JournalKind,
    env: Env,
    listener: Option<Listener>,
) -> Result<OpenMaster, NodeError> {
    config.validate(kind)?;
    journal.check_peers(config.peer_addresses(kind).len())?;
    let listen = config.listen_addresses(kind).ok_or(ConfigError::ListenUntold)?;
    let (env, tls) = certificates::secure(env, &config.tls, config.tls_client_auth)?;
    let secrets = Rc::new(config.open_secrets()?);
    check_ways_of_master(&env, &secrets, &listen, config.peer_dials(kind))?;
    let listeners = open_doors(listener, &listen, &env, &config).await?;
    journal.check(&env, &config).await?;
    let accounts = door::accounts::open(&env, &config).await?;
    let (config, asks) = (Rc::new(config.clone()), config.reload);
    let bound = listeners[0].local_address().unwrap_or(listen.main);
    let address = config.advertise.clone().unwrap_or_else(|| bound.clone());
    log::info!("started as={kind:?} address={address} log={} pid={}", config.log.display(), env.pid());
    for further in listeners.iter().skip(1).flat_map(Listener::local_address) {
        log::info!("listening too address={further}");
    }
    tell_of_strangers(&listeners, &config, accounts.must_log_in(), true);
    let sentinel = open_sentinel(&env, &config, accounts.must_log_in()).await?;
    let http = open_http(&env, &config, accounts.must_log_in()).await?;
    let cluster = Rc::new(Cell::new(None));
    let mut introductions = Vec::new();
    for dial in config.peer_dials(kind) {
        let peer = address::name(&dial).to_owned();
        check_leads_elsewhere(&peer, &listeners, &bound).await?;
        let (address, journal, secret) = (address.clone(), journal.clone(), secrets.nodes.clone());
        let (config, cluster) = (Rc::clone(&config), Rc::clone(&cluster));
        introductions.push(Introduction { peer, dial, address, config, journal, cluster, secret });
    }
    let asked =
        join_all(introductions.iter().map(|introduction| dialed::preflight(introduction, &env))).await;
    let refusals: Vec<String> = asked.into_iter().flatten().collect();
    if is_outvoted(refusals.len(), introductions.len()) {
        return Err(NodeError::Refused { reason: refusals.join("; ") });
    }
    let fate = Fate::default();
    // One record may hold several of the longest values.
    let line_bytes_max = line_bytes_max(door::server_facts(&config).limits.request_bytes_max);
    let (master, switchboard) = MasterActor::begin(master::Parts {
        env: Rc::clone(&env),
        config: Rc::clone(&config),
        kind,
        address: address.clone(),
        fate: fate.clone(),
        cluster,
        journal: journal.of_master(&Seat {
            env: &env,
            config: &config,
            address: &address,
            line_bytes_max,
            secret: secrets.nodes.clone(),
            fate: &fate,
        }),
        accounts,
    });
    let (facts, has_users) = (door::server_facts(&config), config.has_users());
    let board = Rc::clone(&switchboard);
    let context = Context { env, config, facts, journal, secrets, switchboard: board, sentinel: None };
    let mut linking = JoinSet::new();
    for introduction in introductions {
        linking.spawn_local(dialed::keep(introduction, context.clone(), fate.clone()));
    }
    let accepting = accept(listeners, sentinel, &context, &fate);
    let mut _telling = http::keep(http, || host_of_master(&master, &context), &fate);
    service::keep(&mut _telling, &context.env, master.clone().recipient());
    let _reloading = reload::keep(tls, has_users.then_some(context), asks, &fate);
    Ok(OpenMaster { address, master, fate, switchboard, accepting, _reloading, _telling, linking })
}

/// Accepts connections at all addresses of a master, that of its Sentinel included.
fn accept(
    listeners: Vec<Listener>,
    sentinel: Option<Listener>,
    context: &Context,
    fate: &Fate,
) -> JoinSet<()> {
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn_local(door::accept::accept(listener, context.clone(), fate.clone()));
    }
    if let Some(listener) = sentinel {
        accepting.spawn_local(door::accept::accept(listener, context.at_sentinel(), fate.clone()));
    }
    accepting
}

/// What the HTTP port of a master needs of it.
fn host_of_master(master: &Addr<MasterActor>, context: &Context) -> HttpHost {
    let (look, guard) = (master.clone().recipient(), Guard::Master(Box::new(context.clone())));
    HttpHost::new(&context.env, look, guard, &context.switchboard.turns)
}

/// Checks that another master's address does not lead back to this one, which listens there.
///
/// # Errors
/// [`ConfigError::PeerLeadsHere`].
async fn check_leads_elsewhere(peer: &str, listeners: &[Listener], bound: &str) -> Result<(), ConfigError> {
    for listener in listeners {
        let is_itself = listener.is_reached_at(peer);
        // What takes longer shows when the link is dialed.
        if tokio::time::timeout(SELF_TIMEOUT, is_itself).await.unwrap_or(false) {
            let bound = listener.local_address().unwrap_or_else(|_| bound.to_owned());
            return Err(ConfigError::PeerLeadsHere { peer: peer.to_owned(), bound });
        }
    }
    Ok(())
}

/// Listens at all addresses of a master; the first is the one that others know.
async fn open_doors(
    first: Option<Listener>,
    listen: &ListenAddresses,
    env: &Env,
    config: &MasterConfig,
) -> Result<Vec<Listener>, NodeError> {
    let mut listeners = match first {
        Some(listener) => vec![listener],
        None => vec![open_door(env, &listen.main, config).await?],
    };
    for address in &listen.further {
        listeners.push(open_door(env, address, config).await?);
    }
    Ok(listeners)
}

/// Listens where the master's Sentinel is asked, if there is one.
async fn open_sentinel(
    env: &Env,
    config: &MasterConfig,
    must_log_in: bool,
) -> Result<Option<Listener>, NodeError> {
    let Some(address) = &config.sentinel else { return Ok(None) };
    let listener = open_door(env, address, config).await?;
    let bound = listener.local_address().unwrap_or_default();
    log::info!("listening as a Sentinel address={bound} master={}", config.sentinel_name);
    tell_of_strangers(std::slice::from_ref(&listener), config, must_log_in, false);
    Ok(Some(listener))
}

/// Listens where a master is asked over HTTP, if it is.
async fn open_http(
    env: &Env,
    config: &MasterConfig,
    must_log_in: bool,
) -> Result<Option<Listener>, NodeError> {
    let Some(address) = &config.http else { return Ok(None) };
    let listener = open_door(env, address, config).await?;
    tell_of_strangers(std::slice::from_ref(&listener), config, must_log_in, false);
    Ok(Some(listener))
}

/// Warns of each address at which other machines find this master while it could not tell their clients, or their nodes, from
/// strangers: in protected mode they are refused, and else whoever comes is served.
/// `nodes_come`: whether nodes have anything to look for there.
fn tell_of_strangers(listeners: &[Listener], config: &MasterConfig, must_log_in: bool, nodes_come: bool) {
    for listener in listeners {
        let Some(security) = listener.open_to_others() else { continue };
        let is_tls = security != Security::Plain;
        let certificate =
            |comer| is_tls && (comer == Comer::Node || config.tls_client_auth == ClientAuth::Yes);
        let is_unknown = |comer| {
            let shown = Shown { certificate: certificate(comer), must_log_in, ..Shown::default() };
            protected::is_denied(comer, shown)
        };
        let who = match (is_unknown(Comer::Text), nodes_come && is_unknown(Comer::Node)) {
            (false, false) => continue,
            (true, true) => "clients, slaves and masters",
            (true, false) => "clients",
            (false, true) => "slaves and masters",
        };
        let address = listener.local_address().unwrap_or_default();
        let remedy = "give certificates (--tls-cert, --tls-key, --tls-ca) and a password (--password-file, --users-file)";
        match config.protected_mode {
            ProtectedMode::Yes => log::warn!(
                "protected mode: {who} of other machines are refused address={address}: {remedy}, or --protected-mode no"
            ),
            ProtectedMode::No => log::warn!(
                "{who} of other machines are served whoever they are address={address}: {remedy}"
            ),
        }
    }
}

/// The ways over which a master proves a secret, with the flags that name them.
fn ways(listen: &ListenAddresses, dialed: Vec<String>) -> impl Iterator<Item = (&'static str, String)> + '_ {
    let listened = listen.further.iter().chain([&listen.main]).map(|address| {
        let is_plain = address::split_transport(address).0 == Some(Transport::Plain);
        (if is_plain { "--plain-listen" } else { "--listen" }, address.clone())
    });
    listened.chain(dialed.into_iter().map(|address| ("--peer", address)))
}

/// Checks that nobody stands on the way to addresses over which a secret of nodes is proved: whoever does could go on in a
/// connection after its handshake.
///
/// # Errors
/// [`ConfigError::OpenWay`] with the first address that is reached over a network in plain bytes.
pub(crate) fn check_ways(
    env: &Env,
    secret: Option<&Secret>,
    addresses: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<(), ConfigError> {
    if secret.is_none() {
        return Ok(());
    }
    check_private(env, secrets::NODES, addresses)
}

/// The same for all secrets that a master is given.
fn check_ways_of_master(
    env: &Env,
    secrets: &Secrets,
    listen: &ListenAddresses,
    dialed: Vec<String>,
) -> Result<(), ConfigError> {
    check_ways(env, secrets.nodes.as_ref(), ways(listen, dialed))?;
    if secrets.clients.is_some() {
        check_private(env, secrets::CLIENTS, ways(listen, Vec::new()))?;
    }
    Ok(())
}

/// The same for the secret of that flag.
fn check_private(
    env: &Env,
    secret: &'static str,
    addresses: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<(), ConfigError> {
    match addresses.into_iter().find(|(_, address)| !env.is_private_way(address)) {
        Some((flag, address)) => {
            Err(ConfigError::OpenWay { flag, address: address::name(&address).to_owned(), secret })
        }
        None => Ok(()),
    }
}

/// Listens at one of the addresses of `--listen`.
pub(crate) async fn open_door(
    env: &Env,
    address: &str,
    config: &MasterConfig,
) -> Result<Listener, NodeError> {
    let opened = match address::unix_path(address) {
        Some(path) => env.listen_unix(path, config.unix_mode.bits()).await,
        None => env.listen(address).await,
    };
    opened.map_err(|error| NodeError::listen(address, error))
}

impl OpenMaster {
    /// Waits for the node's end; once `stop` resolves, asks for it.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let outcome = ended(stop, || self.master.do_send(Stop), &self.fate).await;
        self.linking.shutdown().await;
        // Whatever was answered to the end is to arrive.
        let linger = match &outcome {
            Ok(()) => Some(Linger::CLEAN),
            Err(NodeError::LogDisplaced { .. }) => Some(Linger::DISPLACED),
            Err(_) => None,
        };
        let board = &self.switchboard;
        end_tasks(&mut self.accepting, linger, || board.unsaid()).await;
        self.master.do_send(Dismiss);
        gone(&self.master).await;
        outcome
    }
}

impl Drop for OpenMaster {
    fn drop(&mut self) {
        self.master.do_send(Dismiss);
    }
}

/// A slave that is started. What is left of it ends with the drop.
pub(crate) struct OpenSlave {
    pub(crate) id: SlaveId,
    slave: Addr<SlaveActor>,
    fate: Fate,
    /// Ends with the node, and delays no end.
    _reloading: JoinSet<()>,
    links: JoinSet<()>,
    env: Env,
    turns: Rc<TurnLengths>,
    /// Where it is asked over HTTP.
    http: Option<String>,
}

pub(crate) fn open_slave(config: SlaveConfig, env: &Env) -> Result<OpenSlave, NodeError> {
    config.validate()?;
    let (env, tls) = certificates::secure(Rc::clone(env), &config.tls, ClientAuth::Yes)?;
    let secret = secrets::of_slave(config.secret.as_ref()).map_err(ConfigError::from)?;
    let dialed = config.masters.iter().map(|address| ("--masters", address.trim().to_owned()));
    check_ways(&env, secret.as_ref(), dialed)?;
    let fate = Fate::default();
    let (masters, http) = (config.masters.join(","), config.http.clone());
    let reloading = reload::keep(tls, None, config.reload.clone(), &fate);
    let (slave, begun) = SlaveActor::begin(&env, &Rc::new(config), secret.as_ref(), &fate);
    let BegunSlave { id, links, turns } = begun;
    log::info!("started as=Slave slave={id} masters={masters} pid={}", std::process::id());
    Ok(OpenSlave { id, slave, fate, _reloading: reloading, links, env, turns, http })
}

/// Listens where a slave is asked over HTTP. Of its Unix socket it is for the user of the slave alone.
async fn open_slave_http(env: &Env, address: &str) -> Result<Listener, NodeError> {
    let opened = match address::unix_path(address) {
        Some(path) => env.listen_unix(path, UnixMode::default().bits()).await,
        None => env.listen(address).await,
    };
    let listener = opened.map_err(|error| NodeError::listen(address, error))?;
    if listener.open_to_others() == Some(Security::Plain) {
        let address = listener.local_address().unwrap_or_default();
        log::warn!("HTTP is refused to other machines address={address}: give certificates (--tls-cert, --tls-key, --tls-ca)");
    }
    Ok(listener)
}

impl OpenSlave {
    /// Waits for the node's end; once `stop` resolves, asks for it.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let http = match &self.http {
            None => None,
            Some(address) => Some(open_slave_http(&self.env, address).await?),
        };
        let host = || HttpHost::new(&self.env, self.slave.clone().recipient(), Guard::Slave, &self.turns);
        let mut telling = http::keep(http, host, &self.fate);
        service::keep(&mut telling, &self.env, self.slave.clone().recipient());
        let outcome = ended(stop, || self.slave.do_send(Stop), &self.fate).await;
        end_tasks(&mut self.links, outcome.is_ok().then_some(Linger::CLEAN), || 0).await;
        self.slave.do_send(Dismiss);
        gone(&self.slave).await;
        outcome
    }
}

impl Drop for OpenSlave {
    fn drop(&mut self) {
        self.slave.do_send(Dismiss);
    }
}

/// Lets tasks finish what they have to send, while there is something `unsaid` and for as long as `linger` says, then ends
/// those that have not.
pub(crate) async fn end_tasks(tasks: &mut JoinSet<()>, linger: Option<Linger>, unsaid: impl Fn() -> usize) {
    let begun = Instant::now();
    let (mut least, mut stalled_since) = (unsaid(), begun);
    while let Some(linger) = linger.filter(|_| !tasks.is_empty()) {
        let joined = async { while tasks.join_next().await.is_some() {} };
        let is_late = tokio::time::timeout(LINGER, joined).await.is_err();
        let left = unsaid();
        if left < least {
            (least, stalled_since) = (left, Instant::now());
        }
        let is_stuck = stalled_since.elapsed() >= linger.stalled || begun.elapsed() >= linger.longest;
        if is_late && (left == 0 || is_stuck) {
            break;
        }
    }
    tasks.shutdown().await;
}

/// Waits until an actor that was told to stop has gone.
async fn gone<A: Actor<Context = actix::Context<A>>>(actor: &Addr<A>) {
    while actor.connected() {
        tokio::task::yield_now().await;
    }
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
