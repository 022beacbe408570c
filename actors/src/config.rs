//! The settings of the roles: one struct each, which is at once what an embedder fills in and what the command line
//! is parsed into. The doc comments are the help texts.

use crate::address::{self, AddressError, Transport};
pub use crate::env::{ClientAuth, TlsError, TlsFiles};
use crate::secrets;
pub use crate::secrets::{Secret, SecretFileError, SecretSource};
pub use bytesize::ByteSize;
use clap::builder::{PathBufValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use dsm_protocol::command::VALUE_MAX_DEFAULT;
pub use dsm_protocol::ids::{SlaveId, SlaveIdError};
use dsm_protocol::machine::master::Placement;
pub use dsm_protocol::machine::master::{CopyCount, CopyCountError};
use dsm_protocol::record::SyncMode;
use dsm_protocol::resp::sentinel::{is_master_name, SENTINEL_NAME_DEFAULT};
use dsm_protocol::secret::Secrets;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;

/// Settings that contradict each other or are out of bounds.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A wildcard address is listened at, so others cannot be told where to connect.
    #[error(
        "--listen {listen} is a wildcard: say with --advertise ADDR at which address this node is reached"
    )]
    AdvertiseMissing {
        /// The wildcard address that is listened at.
        listen: String,
    },
    /// Only Unix sockets are listened at, of which nobody is told.
    #[error("--listen names Unix sockets alone: name HOST:PORT too, by which the other master and clients know this one")]
    ListenUntold,
    /// An address is none.
    #[error("{flag} {address:?}: {why}")]
    Address {
        /// The flag that names it: `--listen`.
        flag: &'static str,
        /// The address as it was typed.
        address: String,
        /// What is wrong with it.
        why: AddressError,
    },
    /// The two masters would have one address.
    #[error("{own} and --peer are both {address}: give the other master's address with --peer")]
    PeerIsSelf {
        /// The flag with this master's own address.
        own: &'static str,
        /// The address that is the master's own.
        address: String,
    },
    /// More other masters are named than the log has a place for.
    #[error(
        "--peer names {named} other masters, and a log that is one file takes {max}: whoever waits longest for its lock \
         gets it, so a reign cannot be handed to the one that asks"
    )]
    TooManyPeers {
        /// How many other masters are named.
        named: usize,
        /// So many may be.
        max: usize,
    },
    /// What is said of the masters that keep one log on several machines is not possible.
    #[error("--members {why}")]
    Members {
        /// Why not.
        why: String,
    },
    /// A cluster of fewer than two masters.
    #[error("a cluster has two masters at least, and {named} are named")]
    TooFewMasters {
        /// How many are named.
        named: usize,
    },
    /// A duration or number is out of bounds.
    #[error("{flag} must be {bound}")]
    OutOfBounds {
        /// The flag as it is typed: `--ack-timeout`.
        flag: &'static str,
        /// What it must be.
        bound: &'static str,
    },
    /// The address of the other master leads back to this one.
    #[error(
        "--peer {peer} leads to this master itself, which listens at {bound}: give the other master's address with --peer"
    )]
    PeerLeadsHere {
        /// The address as it was typed.
        peer: String,
        /// Where this master listens.
        bound: String,
    },
    /// TLS is asked for and cannot be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A secret's file is missing or of no use.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// A secret would be proved where somebody may stand on the way.
    #[error(
        "{flag} {address} is not on loopback and without TLS, so whoever is on the way could take over connections in which \
         the secret of {secret} was proved: have it over TLS (--tls-cert, --tls-key, --tls-ca)"
    )]
    OpenWay {
        /// The flag that names the address.
        flag: &'static str,
        /// The address.
        address: String,
        /// The flag that names the secret.
        secret: &'static str,
    },
    /// The node runs in a world without TLS: within one process, or in a simulation.
    #[error("there is no TLS without ports: leave the certificates out")]
    NoTlsHere,
    /// A slave's name is none.
    #[error(transparent)]
    SlaveId(SlaveIdError),
    /// No master is named.
    #[error("--masters names no master: give HOST:PORT,HOST:PORT")]
    NoMasters,
}

/// When a write counts as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Fsync {
    /// Once it is on disk: an acknowledged write survives a power cut.
    #[default]
    Always,
    /// Once the kernel has it; on disk within a second.
    Everysec,
    /// Once the kernel has it; on disk whenever the kernel writes it.
    Never,
}

impl From<Fsync> for SyncMode {
    fn from(fsync: Fsync) -> Self {
        match fsync {
            Fsync::Always => SyncMode::Always,
            Fsync::Everysec => SyncMode::Everysec,
            Fsync::Never => SyncMode::Never,
        }
    }
}

/// How the slaves of a write are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PlacementFlag {
    /// Rendezvous hashing of the key over the slaves' names: a key keeps its slaves.
    #[default]
    Hash,
    /// A new random choice for each write, every slave equally likely.
    Random,
}

impl From<PlacementFlag> for Placement {
    fn from(flag: PlacementFlag) -> Self {
        match flag {
            PlacementFlag::Hash => Placement::Hash,
            PlacementFlag::Random => Placement::Random,
        }
    }
}

/// What a standby does about an active master that hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Fence {
    /// End it with SIGKILL, once it is certain which process holds the lock of the log.
    #[default]
    Kill,
    /// Only log it and wait: for a master that shares its process with other code.
    None,
}

/// Asks a node to read its files again. Clones ask the same one.
#[derive(Clone, Default)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Asks for it. Certificates are those of connections from now on, and users those of all. A file of no use changes
    /// nothing, and is told in the log.
    pub fn ask(&self) {
        self.0.notify_one();
    }

    /// Waits until it is asked for.
    pub(crate) async fn asked(&self) {
        self.0.notified().await;
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// Whether this machine alone is served while strangers could not be told from friends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProtectedMode {
    /// It alone.
    #[default]
    Yes,
    /// Whoever can connect.
    No,
}

/// The access rights of a Unix socket. Whoever may write to it may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixMode(u32);

impl UnixMode {
    /// The bits, as in `0o660`.
    pub fn bits(self) -> u32 {
        self.0
    }
}

/// For this master's user alone.
impl Default for UnixMode {
    fn default() -> Self {
        UnixMode(0o600)
    }
}

impl fmt::Display for UnixMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03o}", self.0)
    }
}

/// A text that gives no access rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("give three octal digits, as 660")]
pub struct UnixModeError;

impl FromStr for UnixMode {
    type Err = UnixModeError;

    /// Reads `660` or `0660`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix('0').filter(|digits| digits.len() == 3).unwrap_or(text);
        let is_octal = digits.len() == 3 && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(digits, 8).ok().filter(|_| is_octal);
        mode.map(UnixMode).ok_or(UnixModeError)
    }
}

/// Settings of a master, primary or backup.
#[derive(Clone, Debug, Args)]
pub struct MasterConfig {
    /// Addresses to listen on for slaves and clients, HOST:PORT or unix:/PATH; others know this master by the first
    /// HOST:PORT [default: 127.0.0.1:12345, backup 127.0.0.1:12346]
    #[arg(long, env = "DSM_LISTEN", value_name = "ADDR,ADDR", value_delimiter = ',', value_parser = address::to_listen)]
    pub listen: Vec<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub tls: TlsFiles,

    /// Whether clients must show a certificate of the CA where there is TLS; slaves and masters always must
    #[arg(long, env = "DSM_TLS_CLIENT_AUTH", value_name = "WHETHER", value_enum, default_value = "yes")]
    pub tls_client_auth: ClientAuth,

    /// Addresses to listen on without TLS, beside those of --listen with it, HOST:PORT
    #[arg(long, env = "DSM_PLAIN_LISTEN", value_name = "ADDR,ADDR", value_delimiter = ',', value_parser = to_listen_by_tcp)]
    pub plain_listen: Vec<String>,

    /// By which an embedding program asks for the files to be read again: certificates, and those of users.
    #[arg(skip)]
    pub reload: Reload,

    /// File of the secret that slaves and masters prove to each other; all of a cluster have the same
    #[arg(long = "secret-file", env = "DSM_SECRET_FILE", value_name = "FILE",
          value_parser = PathBufValueParser::new().map(SecretSource::File))]
    pub secret: Option<SecretSource>,

    /// File of the secret that native clients, as dsm-client, must prove; whoever does may do everything
    #[arg(long = "client-secret-file", env = "DSM_CLIENT_SECRET_FILE", value_name = "FILE",
          value_parser = PathBufValueParser::new().map(SecretSource::File))]
    pub client_secret: Option<SecretSource>,

    /// Access rights of the Unix sockets of --listen, as in chmod
    #[arg(long, env = "DSM_UNIX_MODE", value_name = "MODE", default_value_t = UnixMode::default())]
    pub unix_mode: UnixMode,

    /// Address at which slaves, clients and the other master reach this one, HOST:PORT; required when --listen is a
    /// wildcard [default: that of --listen]
    #[arg(long, env = "DSM_ADVERTISE", value_name = "ADDR", value_parser = address::to_connect_by_tcp)]
    pub advertise: Option<String>,

    /// Address of the other master, HOST:PORT; there can be only one [default: 127.0.0.1:12346, backup 127.0.0.1:12345]
    #[arg(long = "peer", env = "DSM_PEER", value_name = "ADDR", value_delimiter = ',', value_parser = address::to_dial_by_tcp)]
    pub peers: Vec<String>,

    /// Addresses of all masters that keep one log on machines of their own, this one among them, HOST:PORT; the same at all of
    /// them, and the first one is preferred. Each has a --log of its own
    #[arg(long, env = "DSM_MEMBERS", value_name = "ADDR,ADDR,ADDR", value_delimiter = ',', value_parser = address::to_dial_by_tcp)]
    pub members: Vec<String>,

    /// Address of this master's Sentinel, PORT (of 127.0.0.1), HOST:PORT or unix:/PATH: it tells Redis clients which master serves
    #[arg(long, env = "DSM_SENTINEL", value_name = "ADDR", value_parser = to_listen_or_port)]
    pub sentinel: Option<String>,

    /// What the Sentinels call the master; the same at both masters
    #[arg(long, env = "DSM_SENTINEL_NAME", value_name = "NAME", default_value = SENTINEL_NAME_DEFAULT)]
    pub sentinel_name: String,

    /// Addresses of the other masters' Sentinels, HOST:PORT: `SENTINEL SENTINELS` tells them to clients that look for more of them
    #[arg(long = "sentinel-peer", env = "DSM_SENTINEL_PEER", value_name = "ADDR,ADDR", value_delimiter = ',',
          value_parser = address::to_connect_by_tcp)]
    pub sentinel_peers: Vec<String>,

    /// Address at which health, status and metrics are told over HTTP, PORT (of 127.0.0.1), HOST:PORT, plain:HOST:PORT (without TLS) or unix:/PATH
    #[arg(long, env = "DSM_HTTP", value_name = "ADDR", value_parser = to_listen_for_http)]
    pub http: Option<String>,

    /// Write-ahead log; both masters must name the same file
    #[arg(long, env = "DSM_LOG", value_name = "FILE", default_value = "kv_store.log")]
    pub log: PathBuf,

    /// Begin a new, empty log without waiting for the first slave.
    ///
    /// A log is begun only where there is none, and while neither the lock file, the other master nor a slave belongs to a
    /// cluster. The flag may stay set: it never changes an existing log.
    #[arg(long, env = "DSM_NEW")]
    pub new: bool,

    /// File of the users and what each may do, in the form of Redis' ACL files; `ACL LOAD` reads it anew
    #[arg(long, env = "DSM_USERS_FILE", value_name = "FILE")]
    pub users_file: Option<PathBuf>,

    /// File of the password that a client must give which names no user, as Redis' requirepass
    #[arg(long, env = "DSM_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// Whether this machine alone is served as long as those of others need not show who they are: clients by a password or a
    /// certificate, slaves and masters by a certificate
    #[arg(long, env = "DSM_PROTECTED_MODE", value_name = "WHETHER", value_enum, default_value = "yes")]
    pub protected_mode: ProtectedMode,

    /// When a write counts as written to the log
    #[arg(long, env = "DSM_FSYNC", value_name = "POLICY", value_enum, default_value = "always")]
    pub fsync: Fsync,

    /// The log is written anew without what was overwritten and deleted once that makes up so much, and half of the log;
    /// 0: never. With --members at least so much of it is kept as it was, for masters that were away
    #[arg(long, env = "DSM_COMPACT_MIN", value_name = "BYTES", default_value = "64MiB")]
    pub compact_min: ByteSize,

    /// How many slaves must acknowledge a write, and hold a key: `half` of the active ones, rounded up, or a number; while
    /// fewer are active, all of them
    #[arg(long, env = "DSM_COPIES", value_name = "COPIES", default_value_t = CopyCount::default())]
    pub copies: CopyCount,

    /// How the slaves of a write are chosen
    #[arg(long, env = "DSM_PLACEMENT", value_name = "POLICY", value_enum, default_value = "hash")]
    pub placement: PlacementFlag,

    /// Fewest active slaves with which writes are accepted; with fewer, the answer is NOQUORUM
    #[arg(long, env = "DSM_MIN_SLAVES", value_name = "N", default_value_t = 1)]
    pub min_slaves: usize,

    /// How long a slave may take to acknowledge a write before it is removed; long values get more time
    #[arg(long, env = "DSM_ACK_TIMEOUT", value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    pub ack_timeout: Duration,

    /// How long a slave may take to answer a read before another slave or the log is asked
    #[arg(long, env = "DSM_READ_TIMEOUT", value_name = "DURATION", default_value = "200ms", value_parser = humantime::parse_duration)]
    pub read_timeout: Duration,

    /// How long a request may wait for an active master, or for the value that it reads
    #[arg(long, env = "DSM_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    pub request_timeout: Duration,

    /// How long the active master may make no progress before the standby acts as --fence says; at least 300ms
    #[arg(long, env = "DSM_FAILOVER_TIMEOUT", value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    pub failover_timeout: Duration,

    /// What a standby does about an active master that hangs
    #[arg(long, env = "DSM_FENCE", value_name = "ACTION", value_enum, default_value = "kill")]
    pub fence: Fence,

    /// Stay standby after a restart or a handover, until `dsm-client FAILOVER`
    #[arg(long, env = "DSM_NO_FAILBACK")]
    pub no_failback: bool,

    /// Longest value; should be the same for both masters, all slaves and all clients
    #[arg(long, env = "DSM_MAX_VALUE", value_name = "BYTES", default_value = "16MiB")]
    pub max_value: ByteSize,

    /// Most connections at once, those of slaves included; further ones are refused
    #[arg(long, env = "DSM_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000)]
    pub max_connections: usize,

    /// Most requests in flight on one connection; beyond it the connection is not read until answers have left
    #[arg(long, env = "DSM_MAX_PIPELINE", value_name = "N", default_value_t = 10_000)]
    pub max_pipeline: usize,

    /// Most bytes of requests, and of answers, in flight on one connection; beyond it its further requests wait
    #[arg(long, env = "DSM_MAX_PIPELINE_BYTES", value_name = "BYTES", default_value = "32MiB")]
    pub max_pipeline_bytes: ByteSize,

    /// Most bytes of answers of all connections that come from slaves or wait for clients to read them.
    ///
    /// Beyond it answers longer than 16 KiB wait, and a client that reads nothing for a second is disconnected.
    #[arg(long, env = "DSM_MAX_ANSWER_BYTES", value_name = "BYTES", default_value = "512MiB")]
    pub max_answer_bytes: ByteSize,

    /// Most bytes of values on their way from one slave; beyond it reads wait, so that its acknowledgements are not late
    #[arg(long, env = "DSM_SLAVE_WINDOW", value_name = "BYTES", default_value = "8MiB")]
    pub slave_window: ByteSize,

    /// Most bytes of values on their way from the log, or one longer value; beyond it reads wait, until their timeout
    #[arg(long, env = "DSM_LOG_READ_WINDOW", value_name = "BYTES", default_value = "64MiB")]
    pub log_read_window: ByteSize,

    /// Most bytes a second that are copied so that keys have all their copies again when slaves leave or join; 0 for none.
    ///
    /// Each key counts with 104 bytes for its entry. Clients come first, whatever this says.
    #[arg(long, env = "DSM_REPAIR_RATE", value_name = "BYTES", default_value = "64MiB")]
    pub repair_rate: ByteSize,

    /// Most bytes that a second slave is asked for when the first one takes unusually long, in percent of all that is read; 0
    /// for none
    #[arg(long, env = "DSM_HEDGE_READS", value_name = "PERCENT", default_value_t = 10,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub hedge_reads: u8,

    /// Most requests in flight of all connections; beyond it the answer is BUSY
    #[arg(long, env = "DSM_MAX_REQUESTS", value_name = "N", default_value_t = 200_000)]
    pub max_requests: usize,

    /// Most bytes of keys and values in flight of all connections; beyond it the answer is BUSY.
    ///
    /// The same limit applies to requests that have arrived only in part; beyond it such connections are closed.
    #[arg(long, env = "DSM_MAX_REQUEST_BYTES", value_name = "BYTES", default_value = "512MiB")]
    pub max_request_bytes: ByteSize,

    /// Most bytes of handshakes, and of frames from slaves and the other master, that have arrived only in part; beyond it
    /// such connections are closed
    #[arg(long, env = "DSM_MAX_LINK_BYTES", value_name = "BYTES", default_value = "512MiB")]
    pub max_link_bytes: ByteSize,

    /// How long a peer may read no answers and send nothing before its connection is closed
    #[arg(long, env = "DSM_WRITE_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub write_timeout: Duration,

    /// How long a new connection may take to send its first bytes, and then to finish the handshake (for a Redis client:
    /// its first request)
    #[arg(long, env = "DSM_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub handshake_timeout: Duration,

    /// How long a client may send no request before its connection is closed; 0s: for ever
    #[arg(long, env = "DSM_IDLE_TIMEOUT", value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,

    /// How long a peer may send nothing before the system probes it (TCP keepalive), three times; 0s: no probes
    #[arg(long, env = "DSM_TCP_KEEPALIVE", value_name = "DURATION", default_value = "300s", value_parser = humantime::parse_duration)]
    pub tcp_keepalive: Duration,
}

/// The default of `--tcp-keepalive`, which is Redis'.
pub(crate) const TCP_KEEPALIVE_DEFAULT: Duration = Duration::from_secs(300);

/// The address at which a `dsm-master` listens by default.
pub const PRIMARY_ADDRESS: &str = "127.0.0.1:12345";

/// The address at which a `dsm-backup-master` listens by default.
pub const BACKUP_ADDRESS: &str = "127.0.0.1:12346";

/// Which of the two masters this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MasterKind {
    /// Serves when both can.
    Primary,
    /// Serves while the primary cannot.
    Backup,
}

/// Values, the same as those of the command line's flags. Nothing is read: not the environment of the program around.
impl Default for MasterConfig {
    fn default() -> Self {
        MasterConfig {
            listen: Vec::new(),
            tls: TlsFiles::default(),
            tls_client_auth: ClientAuth::default(),
            plain_listen: Vec::new(),
            reload: Reload::default(),
            secret: None,
            client_secret: None,
            unix_mode: UnixMode::default(),
            advertise: None,
            peers: Vec::new(),
            members: Vec::new(),
            sentinel: None,
            sentinel_name: SENTINEL_NAME_DEFAULT.to_owned(),
            sentinel_peers: Vec::new(),
            http: None,
            log: PathBuf::from("kv_store.log"),
            new: false,
            users_file: None,
            password_file: None,
            protected_mode: ProtectedMode::default(),
            fsync: Fsync::default(),
            compact_min: ByteSize::mib(64),
            copies: CopyCount::default(),
            placement: PlacementFlag::default(),
            min_slaves: 1,
            ack_timeout: Duration::from_secs(1),
            read_timeout: Duration::from_millis(200),
            request_timeout: Duration::from_secs(2),
            failover_timeout: Duration::from_secs(1),
            fence: Fence::default(),
            no_failback: false,
            max_value: ByteSize(VALUE_MAX_DEFAULT as u64),
            max_connections: 10_000,
            max_pipeline: 10_000,
            max_pipeline_bytes: ByteSize::mib(32),
            max_answer_bytes: ByteSize::mib(512),
            slave_window: ByteSize::mib(8),
            log_read_window: ByteSize::mib(64),
            repair_rate: ByteSize::mib(64),
            hedge_reads: 10,
            max_requests: 200_000,
            max_request_bytes: ByteSize::mib(512),
            max_link_bytes: ByteSize::mib(512),
            write_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::ZERO,
            tcp_keepalive: TCP_KEEPALIVE_DEFAULT,
        }
    }
}

/// Where a master listens.
pub(crate) struct ListenAddresses {
    /// `HOST:PORT`: the one by which others know it.
    pub(crate) main: String,
    /// All others, Unix sockets or not.
    pub(crate) further: Vec<String>,
}

impl ListenAddresses {
    fn all(self) -> impl Iterator<Item = String> {
        std::iter::once(self.main).chain(self.further)
    }
}

impl MasterConfig {
    /// The addresses to listen at, each once: first the one by which others know this master, if `--advertise` names no
    /// other. `None` if there are only Unix sockets.
    pub(crate) fn listen_addresses(&self, kind: MasterKind) -> Option<ListenAddresses> {
        let default = match kind {
            MasterKind::Primary => PRIMARY_ADDRESS,
            MasterKind::Backup => BACKUP_ADDRESS,
        };
        let default = self.listen.is_empty().then(|| default.to_owned());
        let mut further: Vec<String> = Vec::new();
        for address in default.iter().chain(&self.listen) {
            if !further.contains(address) {
                further.push(address.clone());
            }
        }
        let main = further.iter().position(|address| address::unix_path(address).is_none())?;
        let main = further.remove(main);
        further.extend(self.plain_listen.iter().map(|address| address::plain(address)));
        Some(ListenAddresses { main, further })
    }

    /// The addresses of the other masters, each once, without what they say of how they are reached.
    pub fn peer_addresses(&self, kind: MasterKind) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for peer in self.peer_dials(kind) {
            let name = address::name(&peer);
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// The same as they are dialed.
    pub(crate) fn peer_dials(&self, kind: MasterKind) -> Vec<String> {
        let default = match kind {
            MasterKind::Primary => BACKUP_ADDRESS,
            MasterKind::Backup => PRIMARY_ADDRESS,
        };
        let mut addresses: Vec<String> = Vec::new();
        if !self.members.is_empty() {
            let own = self.own_address(kind);
            let others = self.members.iter().filter(|member| Some(address::name(member)) != own.as_deref());
            return others.cloned().collect();
        }
        for peer in &self.peers {
            if !addresses.contains(peer) {
                addresses.push(peer.clone());
            }
        }
        if addresses.is_empty() {
            addresses.push(default.to_owned());
        }
        addresses
    }

    /// The address by which others know this master, as far as the settings tell it.
    fn own_address(&self, kind: MasterKind) -> Option<String> {
        let listened = || self.listen_addresses(kind).map(|listen| address::name(&listen.main).to_owned());
        self.advertise.clone().or_else(listened)
    }

    /// The addresses of all masters that keep one log on machines of their own, this one among them, without what they say of how
    /// they are reached.
    pub fn member_addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| address::name(member).to_owned()).collect()
    }

    /// Whether this is the master that should serve when several can.
    pub(crate) fn is_preferred(&self, kind: MasterKind) -> bool {
        match self.members.first() {
            Some(first) => self.own_address(kind).as_deref() == Some(address::name(first)),
            None => kind == MasterKind::Primary,
        }
    }

    /// Checks what is said of members.
    fn check_members(&self, kind: MasterKind) -> Result<(), ConfigError> {
        for member in &self.members {
            let wrong = |why| ConfigError::Address { flag: "--members", address: member.clone(), why };
            address::to_dial_by_tcp(member).map_err(wrong)?;
        }
        let names = self.member_addresses();
        if names.is_empty() {
            return Ok(());
        }
        let wrong = |why: &str| Err(ConfigError::Members { why: why.to_owned() });
        if self.fsync != Fsync::Always {
            return wrong("needs --fsync always: a member must not forget what it has told others");
        }
        if !self.peers.is_empty() {
            return wrong("names the other masters already: leave --peer out");
        }
        if names.iter().enumerate().any(|(place, name)| names[..place].contains(name)) {
            return wrong("names a master twice");
        }
        let own = self.own_address(kind).unwrap_or_default();
        if !names.contains(&own) {
            return wrong(&format!(
                "does not name this master, whose address is {own}: name it, or give --listen or --advertise as it is named"
            ));
        }
        Ok(())
    }

    /// Whether users or a password are set.
    pub fn has_users(&self) -> bool {
        self.users_file.is_some() || self.password_file.is_some()
    }

    /// Whether there are files that are read again when a program asks for it.
    pub fn has_files_to_reload(&self) -> bool {
        self.tls.is_on() || self.has_users()
    }

    /// The file beside the log that says what slaves have seen of it, while the log lacks that.
    pub fn witness_path(&self) -> PathBuf {
        let mut path = self.log.clone().into_os_string();
        path.push(".witness");
        path.into()
    }

    /// The secrets that must be proved to this master. Waits for disks.
    ///
    /// # Errors
    /// That a file is missing or has none.
    pub(crate) fn open_secrets(&self) -> Result<Secrets, ConfigError> {
        Ok(secrets::of_master(self.secret.as_ref(), self.client_secret.as_ref())?)
    }

    /// The lock file beside the log.
    pub fn lock_path(&self) -> PathBuf {
        let mut path = self.log.clone().into_os_string();
        path.push(".lock");
        path.into()
    }

    /// Checks what clap cannot.
    ///
    /// # Errors
    /// The first setting that is out of bounds or contradicts another.
    pub fn validate(&self, kind: MasterKind) -> Result<(), ConfigError> {
        let given = |flag, address: &str, read: Reader| {
            read(address).map_err(|why| ConfigError::Address { flag, address: address.to_owned(), why })
        };
        for address in &self.listen {
            given("--listen", address, address::to_listen)?;
        }
        for address in &self.plain_listen {
            given("--plain-listen", address, to_listen_by_tcp)?;
        }
        let listen = self.listen_addresses(kind).ok_or(ConfigError::ListenUntold)?;
        for peer in self.peer_dials(kind) {
            given("--peer", &peer, address::to_dial_by_tcp)?;
        }
        if let Some(address) = &self.sentinel {
            given("--sentinel", address, to_listen_or_port)?;
        }
        for address in &self.sentinel_peers {
            given("--sentinel-peer", address, address::to_connect_by_tcp)?;
        }
        if let Some(address) = &self.http {
            given("--http", address, to_listen_for_http)?;
        }
        if !is_master_name(&self.sentinel_name) {
            return Err(ConfigError::OutOfBounds {
                flag: "--sentinel-name",
                bound: "1 to 256 visible ASCII letters",
            });
        }
        self.check_members(kind)?;
        let peers = self.peer_addresses(kind);
        let advertise = match &self.advertise {
            Some(address) => Some(given("--advertise", address, address::to_connect_by_tcp)?),
            None if address::is_wildcard(&listen.main) => {
                return Err(ConfigError::AdvertiseMissing { listen: listen.main });
            }
            None => None,
        };
        if let Some(address) = advertise.filter(|advertise| peers.contains(advertise)) {
            return Err(ConfigError::PeerIsSelf { own: "--advertise", address });
        }
        let own =
            listen.all().map(|listen| address::name(&listen).to_owned()).find(|own| peers.contains(own));
        if let Some(address) = own {
            return Err(ConfigError::PeerIsSelf { own: "--listen", address });
        }
        check_timeout("--ack-timeout", self.ack_timeout)?;
        check_timeout("--read-timeout", self.read_timeout)?;
        check_timeout("--request-timeout", self.request_timeout)?;
        check_timeout("--handshake-timeout", self.handshake_timeout)?;
        check_timeout("--write-timeout", self.write_timeout)?;
        // The holder publishes its progress every 25 ms and advances it every 100 ms when idle.
        if self.failover_timeout < Duration::from_millis(300) {
            return Err(ConfigError::OutOfBounds { flag: "--failover-timeout", bound: "at least 300ms" });
        }
        if self.min_slaves == 0 {
            return Err(ConfigError::OutOfBounds { flag: "--min-slaves", bound: "at least 1" });
        }
        check_max_value("--max-value", self.max_value)?;
        self.validate_limits()
    }

    /// Checks that every limit leaves room for something.
    ///
    /// # Errors
    /// The first that is 0.
    fn validate_limits(&self) -> Result<(), ConfigError> {
        let positive = |flag, number: u64| {
            if number == 0 {
                Err(ConfigError::OutOfBounds { flag, bound: "at least 1" })
            } else {
                Ok(())
            }
        };
        positive("--max-connections", self.max_connections as u64)?;
        positive("--max-pipeline", self.max_pipeline as u64)?;
        positive("--max-pipeline-bytes", self.max_pipeline_bytes.as_u64())?;
        positive("--max-answer-bytes", self.max_answer_bytes.as_u64())?;
        positive("--slave-window", self.slave_window.as_u64())?;
        positive("--log-read-window", self.log_read_window.as_u64())?;
        positive("--max-requests", self.max_requests as u64)?;
        positive("--max-request-bytes", self.max_request_bytes.as_u64())?;
        positive("--max-link-bytes", self.max_link_bytes.as_u64())
    }

    /// The longest value, in bytes.
    pub fn value_max(&self) -> usize {
        self.max_value.as_u64() as usize
    }

    /// How long the values of one MGET may be in all, in bytes: they must fit into one frame, too.
    pub(crate) fn gather_bytes_max(&self) -> usize {
        self.max_pipeline_bytes.as_u64().min(GATHER_BYTES_MAX) as usize
    }
}

/// Reads an address to listen at over TCP.
fn to_listen_by_tcp(text: &str) -> Result<String, AddressError> {
    match address::unix_path(text.trim()) {
        Some(_) => Err(AddressError::UnixUntold),
        None => address::to_listen(text),
    }
}

/// Reads an address to listen at, which may be the port of 127.0.0.1 alone.
fn to_listen_or_port(text: &str) -> Result<String, AddressError> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return address::to_listen(&format!("127.0.0.1:{text}"));
    }
    address::to_listen(text)
}

/// The same, which may say that it is without TLS. A Unix socket always is.
fn to_listen_for_http(text: &str) -> Result<String, AddressError> {
    let text = text.trim();
    match address::split_transport(text) {
        (Some(Transport::Plain), without) => {
            let address = to_listen_or_port(without)?;
            let is_unix = address::unix_path(&address).is_some();
            Ok(if is_unix { address } else { address::plain(&address) })
        }
        (Some(Transport::Tls) | None, _) => to_listen_or_port(text),
    }
}

/// A frame has fewer than 4 GiB.
const GATHER_BYTES_MAX: u64 = 2 << 30;

/// Settings of a slave.
#[derive(Clone, Debug, Args)]
pub struct SlaveConfig {
    /// Addresses of the masters, HOST:PORT or unix:/PATH
    #[arg(long, env = "DSM_MASTERS", value_name = "ADDR,ADDR", value_delimiter = ',', value_parser = address::to_connect, default_values_t = [PRIMARY_ADDRESS.to_owned(), BACKUP_ADDRESS.to_owned()])]
    pub masters: Vec<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub tls: TlsFiles,

    /// By which an embedding program asks for the certificates to be read again.
    #[arg(skip)]
    pub reload: Reload,

    /// File of the secret that slaves and masters prove to each other; all of a cluster have the same
    #[arg(long = "secret-file", env = "DSM_SECRET_FILE", value_name = "FILE",
          value_parser = PathBufValueParser::new().map(SecretSource::File))]
    pub secret: Option<SecretSource>,

    /// Name of this slave, which decides its keys; keep it over restarts [default: random]
    #[arg(long, env = "DSM_ID", value_name = "NAME")]
    pub id: Option<SlaveId>,

    /// Most memory for keys and values, as in 1GiB; a full slave gets no further writes [default: no limit]
    #[arg(long, env = "DSM_MAX_MEMORY", value_name = "BYTES")]
    pub max_memory: Option<ByteSize>,

    /// Longest value; should be the same as the masters'
    #[arg(long, env = "DSM_MAX_VALUE", value_name = "BYTES", default_value = "16MiB")]
    pub max_value: ByteSize,

    /// Address at which health, status and metrics are told over HTTP, PORT (of 127.0.0.1), HOST:PORT, plain:HOST:PORT (without TLS) or unix:/PATH
    #[arg(long, env = "DSM_HTTP", value_name = "ADDR", value_parser = to_listen_for_http)]
    pub http: Option<String>,

    /// How long a connection to a master may take to open
    #[arg(long, env = "DSM_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    pub connect_timeout: Duration,

    /// How long a peer may send nothing before the system probes it (TCP keepalive), three times; 0s: no probes
    #[arg(long, env = "DSM_TCP_KEEPALIVE", value_name = "DURATION", default_value = "300s", value_parser = humantime::parse_duration)]
    pub tcp_keepalive: Duration,
}

impl Default for SlaveConfig {
    fn default() -> Self {
        SlaveConfig {
            masters: vec![PRIMARY_ADDRESS.to_owned(), BACKUP_ADDRESS.to_owned()],
            tls: TlsFiles::default(),
            reload: Reload::default(),
            secret: None,
            id: None,
            max_memory: None,
            max_value: ByteSize(VALUE_MAX_DEFAULT as u64),
            http: None,
            connect_timeout: Duration::from_secs(2),
            tcp_keepalive: TCP_KEEPALIVE_DEFAULT,
        }
    }
}

impl SlaveConfig {
    /// Checks what clap cannot.
    ///
    /// # Errors
    /// The first setting that is out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.masters.iter().all(|master| master.trim().is_empty()) {
            return Err(ConfigError::NoMasters);
        }
        for address in &self.masters {
            if let Err(why) = address::to_connect(address) {
                return Err(ConfigError::Address { flag: "--masters", address: address.clone(), why });
            }
        }
        if let Some(address) = &self.http {
            if let Err(why) = to_listen_for_http(address) {
                return Err(ConfigError::Address { flag: "--http", address: address.clone(), why });
            }
        }
        if self.max_memory.is_some_and(|max| max.as_u64() == 0) {
            return Err(ConfigError::OutOfBounds { flag: "--max-memory", bound: "more than 0" });
        }
        check_max_value("--max-value", self.max_value)?;
        check_timeout("--connect-timeout", self.connect_timeout)
    }
}

/// Checks how long something may take: what is shorter than a turn of a busy machine would never succeed.
///
/// # Errors
/// When `duration` is below 10 ms; `flag` is named.
pub fn check_timeout(flag: &'static str, duration: Duration) -> Result<(), ConfigError> {
    if duration < Duration::from_millis(10) {
        return Err(ConfigError::OutOfBounds { flag, bound: "at least 10ms" });
    }
    Ok(())
}

/// The longest value that any setting allows, in bytes: what a frame and a line of the log can be made to hold.
pub const VALUE_BYTES_MAX: u64 = 1 << 30;

/// Checks the length of the longest value.
///
/// # Errors
/// When it is 0 or above [`VALUE_BYTES_MAX`]; `flag` is named.
pub fn check_max_value(flag: &'static str, max_value: ByteSize) -> Result<(), ConfigError> {
    if !(1..=VALUE_BYTES_MAX).contains(&max_value.as_u64()) {
        return Err(ConfigError::OutOfBounds { flag, bound: "from 1 B to 1 GiB" });
    }
    Ok(())
}

type Reader = fn(&str) -> Result<String, AddressError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_for_both_masters_and_for_slaves() {
        let config = MasterConfig::default();
        assert_eq!(config.validate(MasterKind::Primary), Ok(()));
        assert_eq!(config.validate(MasterKind::Backup), Ok(()));
        assert_eq!(config.lock_path(), PathBuf::from("kv_store.log.lock"));
        assert_eq!(SlaveConfig::default().validate(), Ok(()));
    }

    /// The settings that a command line without flags, in an empty environment, gives.
    #[derive(clap::Parser)]
    struct Flags<T: Args> {
        #[command(flatten)]
        config: T,
    }

    #[test]
    fn the_defaults_are_those_of_the_flags() {
        use clap::Parser as _;
        let set: Vec<_> =
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("DSM_")).collect();
        let is_setting = |name: &str| {
            let flag = name.trim_start_matches("DSM_").to_lowercase().replace('_', "-");
            MasterConfig::augment_args(clap::Command::new("dsm"))
                .get_arguments()
                .any(|arg| arg.get_long() == Some(&flag))
        };
        assert!(
            set.iter().all(|(name, _)| !is_setting(&name.to_string_lossy())),
            "unset these first: {set:?}"
        );
        let flags = Flags::<MasterConfig>::parse_from(["dsm"]).config;
        assert_eq!(format!("{flags:?}"), format!("{:?}", MasterConfig::default()));
        let flags = Flags::<SlaveConfig>::parse_from(["dsm"]).config;
        assert_eq!(format!("{flags:?}"), format!("{:?}", SlaveConfig::default()));
    }

    #[test]
    fn a_wildcard_without_an_advertised_address_is_refused() {
        let mut config = MasterConfig { listen: vec!["0.0.0.0:1".into()], ..MasterConfig::default() };
        let missing = ConfigError::AdvertiseMissing { listen: "0.0.0.0:1".into() };
        assert_eq!(config.validate(MasterKind::Primary), Err(missing));
        config.advertise = Some("127.0.0.1:1".into());
        assert_eq!(config.validate(MasterKind::Primary), Ok(()));
    }

    #[test]
    fn others_know_a_master_by_the_first_of_its_tcp_addresses() {
        use clap::Parser as _;
        let read = |words: &[&str]| Flags::<MasterConfig>::parse_from([&["dsm"], words].concat()).config;
        let listens = |config: &MasterConfig| {
            let ListenAddresses { main, further } = config.listen_addresses(MasterKind::Backup).unwrap();
            (main, further)
        };
        let both = read(&["--listen", "unix:/run/a,a:1", "--listen", "b:2", "--listen", "unix:/run//a"]);
        assert_eq!(both.validate(MasterKind::Primary), Ok(()));
        assert_eq!(listens(&both), ("a:1".to_owned(), vec!["unix:/run/a".to_owned(), "b:2".to_owned()]));
        assert_eq!(listens(&read(&[])), (BACKUP_ADDRESS.to_owned(), Vec::new()));
        let alone = read(&["--listen", "unix:/run/a"]);
        assert_eq!(alone.validate(MasterKind::Primary), Err(ConfigError::ListenUntold));
        let own = read(&["--listen", "a:1,b:2", "--peer", "b:2"]);
        let refused = ConfigError::PeerIsSelf { own: "--listen", address: "b:2".to_owned() };
        assert_eq!(own.validate(MasterKind::Primary), Err(refused));
        for flag in ["--peer", "--advertise"] {
            let words = ["dsm", flag, "unix:/run/a"];
            assert!(Flags::<MasterConfig>::try_parse_from(words).is_err(), "{flag}");
        }
    }

    #[test]
    fn the_access_rights_of_a_unix_socket_are_read_as_chmod_reads_them() {
        for (typed, bits) in [("600", 0o600), ("0660", 0o660), ("777", 0o777), ("000", 0)] {
            assert_eq!(typed.parse(), Ok(UnixMode(bits)), "{typed}");
        }
        assert_eq!(UnixMode(0o60).to_string().parse(), Ok(UnixMode(0o60)));
        for typed in ["", "60", "1777", "6660", "0o660", "680", "+60", "rw-"] {
            assert_eq!(typed.parse::<UnixMode>(), Err(UnixModeError), "{typed}");
        }
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        let config = MasterConfig { peers: vec!["localhost".into()], ..MasterConfig::default() };
        let refused =
            ConfigError::Address { flag: "--peer", address: "localhost".into(), why: AddressError::NoPort };
        assert_eq!(config.validate(MasterKind::Primary), Err(refused));
    }

    #[test]
    fn other_masters_are_named_one_by_one_or_with_commas() {
        use clap::Parser as _;
        let read = |words: &[&str]| Flags::<MasterConfig>::parse_from([&["dsm"], words].concat()).config;
        let one = read(&["--peer", "a:1"]);
        assert_eq!(one.peer_addresses(MasterKind::Primary), ["a:1"]);
        assert_eq!(one.validate(MasterKind::Primary), Ok(()));
        let twice = read(&["--peer", "a:1", "--peer", "a:1"]);
        assert_eq!(twice.validate(MasterKind::Primary), Ok(()), "one, named twice");
        for words in [&["--peer", "a:1", "--peer", "b:1"][..], &["--peer", "a:1,b:1"]] {
            let two = read(words);
            assert_eq!(two.peer_addresses(MasterKind::Backup), ["a:1", "b:1"]);
            assert_eq!(two.validate(MasterKind::Backup), Ok(()), "how many there may be is the log's to say");
        }
        let none = read(&[]);
        assert_eq!(none.peer_addresses(MasterKind::Primary), [BACKUP_ADDRESS]);
        assert_eq!(none.peer_addresses(MasterKind::Backup), [PRIMARY_ADDRESS]);
    }
}
