//! Why the launcher could not do it.

use super::role::Role;
use std::io;
use std::path::PathBuf;
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
    /// The role's process is there already.
    #[error("{0} is running already")]
    Running(Role),
    /// There is no such process now.
    #[error("{0} is not running")]
    NotRunning(Role),
    /// A signal could not be sent.
    #[error("cannot signal {role}")]
    Signal {
        /// The process that gets no signal.
        role: Role,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The process ended before it was ready.
    #[error("{role} ended before it was ready ({ended}): {output}")]
    Ended {
        /// The process that ended.
        role: Role,
        /// How, as [`describe_exit`](super::describe_exit) puts it.
        ended: String,
        /// The last line it printed.
        output: String,
    },
    /// The process is there, but not what was waited for.
    #[error("{what} not ready after {}, see {output}", humantime::format_duration(*.waited))]
    NotReady {
        /// What was waited for.
        what: String,
        /// How long was waited for it.
        waited: Duration,
        /// The output of the process in question.
        output: PathBuf,
    },
    /// The wait was interrupted through [`Launcher::interruption`](super::Launcher::interruption).
    #[error("interrupted")]
    Interrupted,
}
