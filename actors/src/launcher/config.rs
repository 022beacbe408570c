//! What is started, and how: programs, ports, patience.

use crate::env::TlsFiles;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How a role is started: `program prefix… FLAGS… extra…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleCommand {
    /// The executable of the program.
    pub program: PathBuf,
    /// Words before the role's own flags.
    pub prefix: Vec<OsString>,
    /// Further flags, after the ones that the launcher gives.
    pub extra: Vec<OsString>,
}

impl RoleCommand {
    /// A program of its own for the role.
    pub fn new(program: impl Into<PathBuf>) -> RoleCommand {
        RoleCommand { program: program.into(), prefix: Vec::new(), extra: Vec::new() }
    }

    /// Puts `words` before the role's flags.
    #[must_use]
    pub fn with_prefix<W: Into<OsString>>(mut self, words: impl IntoIterator<Item = W>) -> RoleCommand {
        self.prefix.extend(words.into_iter().map(Into::into));
        self
    }

    /// Puts `words` after the role's flags.
    #[must_use]
    pub fn with_extra<W: Into<OsString>>(mut self, words: impl IntoIterator<Item = W>) -> RoleCommand {
        self.extra.extend(words.into_iter().map(Into::into));
        self
    }
}

/// How one of the masters is started, and where it listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MasterCommand {
    /// `dsm-master` for the first one, `dsm-backup-master` for all others.
    pub command: RoleCommand,
    /// Its port; `None`: a free one.
    pub port: Option<u16>,
}

impl From<RoleCommand> for MasterCommand {
    /// With a free port.
    fn from(command: RoleCommand) -> MasterCommand {
        MasterCommand { command, port: None }
    }
}

/// What a [`Launcher`](super::Launcher) starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LauncherConfig {
    /// The masters, the primary first: two at least.
    pub masters: Vec<MasterCommand>,
    /// How `dsm-slave` is started.
    pub slave: RoleCommand,
    /// The directory of the log and of the children's output; created if it is missing.
    pub data: PathBuf,
    /// How many slaves [`Launcher::start_all`](super::Launcher::start_all) starts.
    pub slaves: usize,
    /// Whether the slaves reach the masters by Unix sockets in `data`, which costs less than TCP. Where there cannot be any (the
    /// path is too long, or the file system has none), they use TCP all the same. Default: no.
    pub unix_sockets: bool,
    /// Certificates, by which all processes speak TLS over TCP, and this one asks the masters. Default: none.
    pub tls: TlsFiles,
    /// The file of the secret of masters and slaves. Default: none.
    pub secret_file: Option<PathBuf>,
    /// The file of the secret of native clients, by which this process asks the masters, too. Default: none.
    pub client_secret_file: Option<PathBuf>,
    /// The first of the ports of 127.0.0.1 at which the processes are asked over HTTP, one after the other: that of the first
    /// master; the other masters have the next ones, and then the slaves. Default: none.
    pub http_port: Option<u16>,
    /// How long a process may take until it is ready. Default 30 s: a long log takes time to replay.
    pub ready_timeout: Duration,
    /// How long a process may take to stop when asked to, before it is killed. Default 5 s.
    pub stop_timeout: Duration,
}

impl LauncherConfig {
    /// A cluster of these masters with 3 slaves.
    pub fn new(
        masters: impl IntoIterator<Item = MasterCommand>,
        slave: RoleCommand,
        data: impl Into<PathBuf>,
    ) -> LauncherConfig {
        LauncherConfig {
            masters: masters.into_iter().collect(),
            slave,
            data: data.into(),
            slaves: 3,
            unix_sockets: false,
            tls: TlsFiles::default(),
            secret_file: None,
            client_secret_file: None,
            http_port: None,
            ready_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(5),
        }
    }
}
