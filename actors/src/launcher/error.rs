//! Errors of the launcher. The sentences for people are made where they are printed.

use super::role::Role;
use crate::env::TlsError;
use crate::secrets::SecretFileError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;
use thiserror::Error;

/// Why the launcher could not do it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The data directory or a file in it cannot be used.
    #[error("cannot use {path}")]
    Data {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A cluster needs two masters at least: each names another one with `--peer`.
    #[error("{named} masters are configured: at least two are needed")]
    TooFewMasters {
        /// How many are configured.
        named: usize,
    },
    /// The certificates are of no use.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file of the secret of native clients is of no use.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// No port is free.
    #[error("cannot find a free port")]
    Port(#[source] io::Error),
    /// The program cannot be started.
    #[error("cannot start {program} as {role}")]
    Spawn {
        /// The process that does not start.
        role: Role,
        /// The executable that was to run.
        program: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The role's process runs already.
    #[error("{0} is running already")]
    Running(Role),
    /// There is no such process now.
    #[error("{0} is not running")]
    NotRunning(Role),
    /// A signal could not be sent.
    #[error("cannot signal {role}")]
    Signal {
        /// The process that was to get the signal.
        role: Role,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The process ended before it was ready.
    #[error("{role} ended before it was ready")]
    Ended {
        /// The process that ended.
        role: Role,
        /// How it ended; [`describe_exit`](super::describe_exit) puts it in words.
        status: ExitStatus,
        /// The last line it printed; empty when there is none.
        output: String,
    },
    /// The process runs, but the awaited condition was not met in time.
    #[error("{awaited} not ready")]
    NotReady {
        /// What was waited for.
        awaited: Awaited,
        /// How long.
        waited: Duration,
        /// The output of the process in question.
        output: PathBuf,
    },
    /// The wait was interrupted through [`Launcher::interruption`](super::Launcher::interruption).
    #[error("interrupted")]
    Interrupted,
}

/// What a launcher waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// That a master answers at its port.
    Answers(Role),
    /// That it has the log.
    HasLog(Role),
    /// That it serves.
    Serves(Role),
    /// That a process is stopped.
    Pause(Role),
    /// That enough slaves are active.
    Slaves {
        /// How many are wanted.
        count: usize,
        /// How many were active at the last look.
        active: usize,
    },
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Awaited::Answers(role) => write!(f, "{role}"),
            Awaited::HasLog(role) => write!(f, "{role} at the log"),
            Awaited::Serves(role) => write!(f, "{role} serving"),
            Awaited::Pause(role) => write!(f, "pause of {role}"),
            Awaited::Slaves { count, active } => {
                write!(f, "only {active} of {count} slaves active: the cluster")
            }
        }
    }
}
