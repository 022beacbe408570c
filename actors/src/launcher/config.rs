//! What is started, and how: programs, ports, patience.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How a role is started: `program prefix… FLAGS… extra…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleCommand {
    /// The executable of the program.
    pub program: PathBuf,
    /// What stands before the role's own flags.
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

/// What a [`Launcher`](super::Launcher) starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LauncherConfig {
    /// How `dsm-master` is started.
    pub primary: RoleCommand,
    /// How `dsm-backup-master` is started.
    pub backup: RoleCommand,
    /// How `dsm-slave` is started.
    pub slave: RoleCommand,
    /// The directory of the log and of the children's output; created if it is missing.
    pub data: PathBuf,
    /// The primary's port; `None`: a free one.
    pub port: Option<u16>,
    /// The backup's port; `None`: a free one.
    pub backup_port: Option<u16>,
    /// How many slaves [`Launcher::start_all`](super::Launcher::start_all) starts.
    pub slaves: usize,
    /// How long a process may take until it is ready. Default 30 s: a long log takes time to replay.
    pub ready_timeout: Duration,
    /// How long a process may take to stop when asked to, before it is killed. Default 5 s.
    pub stop_timeout: Duration,
}

impl LauncherConfig {
    /// A cluster of one program per role with 3 slaves on free ports.
    pub fn new(
        primary: RoleCommand,
        backup: RoleCommand,
        slave: RoleCommand,
        data: impl Into<PathBuf>,
    ) -> LauncherConfig {
        LauncherConfig {
            primary,
            backup,
            slave,
            data: data.into(),
            port: None,
            backup_port: None,
            slaves: 3,
            ready_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(5),
        }
    }
}
