//! Why a node ends other than by being asked to.
//!
//! Owns the reasons and their causes, for programs to tell apart. What a person is to do about one is said by the programs in
//! `bin/`: an embedding program has other flags and other tools.

use crate::config::ConfigError;
use crate::env::Displaced;
use dsm_protocol::record::{Evidence, RecordError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Why a node ended other than by being asked to. The cause, where there is one, is its
/// [`source`](std::error::Error::source) and not repeated in its text.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A setting is wrong.
    #[error("the settings are wrong")]
    Config(#[from] ConfigError),
    /// The address cannot be listened at.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address that cannot be listened at.
        address: String,
        /// What the system says.
        #[source]
        cause: Arc<io::Error>,
    },
    /// A file cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: Arc<io::Error>,
    },
    /// A file of users or of a password is wrong.
    #[error("{} cannot be used: {what}", path.display())]
    Users {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with it, and in which line. Never a password.
        what: String,
    },
    /// The log is not one that a reign may go on from.
    #[error("the log {} is damaged", path.display())]
    Corrupt {
        /// The path of the log.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        damage: LogDamage,
    },
    /// This machine cannot take part in keeping the log.
    #[error("this machine cannot take part in keeping the log {}: {reason}", path.display())]
    NoMember {
        /// The path of its log.
        path: PathBuf,
        /// Why not, in words.
        reason: String,
    },
    /// The log failed while it was written: what was in flight is unknown.
    #[error("the log cannot be {step}")]
    LogFailed {
        /// At which step it failed.
        step: LogStep,
        /// What the system says.
        #[source]
        cause: Arc<io::Error>,
    },
    /// The log does not stand at its path any more. What was not executed was answered so.
    #[error("the log is no longer the file at {}: {found}", path.display())]
    LogDisplaced {
        /// Where it is to stand.
        path: PathBuf,
        /// What is at the log's path now.
        found: Displaced,
    },
    /// Another master leads. What was not executed was answered so.
    #[error("another master leads")]
    Deposed,
    /// An actor that the node cannot do without has panicked.
    #[error("{actor} has panicked")]
    Panicked {
        /// The actor or task that panicked.
        actor: &'static str,
    },
    /// A master that was waited for does not serve, or not with all its slaves.
    #[error("the master {address} did not begin to serve with all its slaves in time: does another process use its log?")]
    NotServing {
        /// The address of the master that does not serve.
        address: String,
    },
    /// The other master refuses this one for good.
    #[error("the other master refuses this one: {reason}")]
    Refused {
        /// The other side's reason, in words.
        reason: String,
    },
}

impl NodeError {
    pub(crate) fn file(path: impl AsRef<Path>, cause: io::Error) -> Self {
        NodeError::File { path: path.as_ref().to_owned(), cause: Arc::new(cause) }
    }

    pub(crate) fn listen(address: impl Into<String>, cause: io::Error) -> Self {
        NodeError::Listen { address: address.into(), cause: Arc::new(cause) }
    }
}

/// What a node does to its log when it fails for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStep {
    /// It was appended to.
    Write,
    /// To bring it to the disk.
    Sync,
    /// To cut what a short write left.
    Cut,
    /// To let another process have it.
    Unlock,
    /// To put a compacted file in its place.
    Exchange,
}

impl std::fmt::Display for LogStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LogStep::Write => "written",
            LogStep::Sync => "synced",
            LogStep::Cut => "cut after a short write",
            LogStep::Unlock => "unlocked",
            LogStep::Exchange => "exchanged for its compacted copy",
        })
    }
}

/// What is wrong with a log, and where. Offsets count bytes from its start; the first line has number 1.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LogDamage {
    /// More of it is torn than is cut without being asked to, where not every write was synced.
    #[error("the last {bytes} bytes ({lines} lines) from byte {offset} on are torn")]
    TornTooFar {
        /// Where the torn part begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
        /// Lines in it, an unfinished one included.
        lines: u64,
        /// How many bytes are cut without being asked to.
        bytes_max: u64,
    },
    /// It is no log.
    #[error("byte {offset}, line {line} is neither a record nor a line of the original program")]
    Foreign {
        /// Where that line begins.
        offset: u64,
        /// The number of the first line that is none of a log; the first line has 1.
        line: u64,
    },
    /// Records that had been acknowledged are damaged.
    #[error("corrupt at byte {offset}, line {line}")]
    Record {
        /// Where the first of them begins.
        offset: u64,
        /// The number of the bad line; the first line has 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        cause: RecordError,
        /// The line which proves that it had been on disk; `None` where the rule for the crash decides.
        evidence: Option<Evidence>,
    },
}
