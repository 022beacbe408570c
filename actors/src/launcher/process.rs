//! One child process: whether it runs and how it ended.

use rustix::process::{kill_process, Pid, Signal};
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// It was never started.
    NotStarted,
    /// It runs and is not paused.
    Running,
    /// It was stopped with [`Launcher::pause`](super::Launcher::pause).
    Paused,
    /// It has ended, with this status.
    Ended(ExitStatus),
}

impl fmt::Display for ProcessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessState::NotStarted => f.pad("not started"),
            ProcessState::Running => f.pad("alive"),
            ProcessState::Paused => f.pad("paused"),
            ProcessState::Ended(status) => f.pad(&describe_exit(*status)),
        }
    }
}

/// `killed by signal 9`, or `exit code 1`.
pub fn describe_exit(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// A child, until it is reaped.
#[derive(Debug)]
pub(super) struct RoleProcess {
    pub(super) child: Child,
    pub(super) paused: bool,
    pub(super) ended: Option<ExitStatus>,
    /// Whether the caller knows that it ended: it has asked for the end, or was told of it.
    pub(super) known: bool,
}

impl RoleProcess {
    pub(super) fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error here means that our child was reaped elsewhere; it is gone in any case.
            self.ended = self.child.try_wait().unwrap_or(Some(ExitStatus::from_raw(0)));
        }
        self.ended
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        // Not reaped yet, so the pid is still this process's.
        kill_process(Pid::from_child(&self.child), signal).map_err(io::Error::from)
    }
}
