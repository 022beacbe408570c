//! Signals to a running process: kill, pause, resume, stop.

use super::error::{Awaited, LaunchError};
use super::role::Role;
use super::{Launcher, LOOK_INTERVAL};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Instant;

impl Launcher {
    /// Kills the process (SIGKILL) and reaps it.
    ///
    /// # Errors
    /// `NotRunning` and `Signal`.
    pub fn kill(&mut self, role: Role) -> Result<ExitStatus, LaunchError> {
        let process = self.running(role)?;
        process.known = true;
        let ended = process.child.kill().and_then(|()| process.child.wait());
        process.ended = ended.as_ref().ok().copied();
        ended.map_err(|source| LaunchError::Signal { role, source })
    }

    /// Stops the process (SIGSTOP) and waits until it is stopped.
    ///
    /// # Errors
    /// `NotRunning`, `Signal` and `NotReady`.
    pub fn pause(&mut self, role: Role) -> Result<(), LaunchError> {
        let process = self.running(role)?;
        process.signal(Signal::STOP).map_err(|source| LaunchError::Signal { role, source })?;
        process.paused = true;
        let stat = PathBuf::from(format!("/proc/{}/stat", process.child.id()));
        self.wait_until(role, Awaited::Pause(role), self.config.stop_timeout, || {
            // `pid (name) state …`; the name may hold anything, so the last parenthesis counts.
            let text = fs::read_to_string(&stat).unwrap_or_default();
            text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// Lets a paused process go on (SIGCONT).
    ///
    /// # Errors
    /// `NotRunning` and `Signal`.
    pub fn resume(&mut self, role: Role) -> Result<(), LaunchError> {
        let process = self.running(role)?;
        process.signal(Signal::CONT).map_err(|source| LaunchError::Signal { role, source })?;
        process.paused = false;
        Ok(())
    }

    /// Asks the process to stop (SIGTERM), waits, and kills it when `stop_timeout` is over.
    ///
    /// # Errors
    /// `NotRunning` and `Signal`.
    pub fn terminate(&mut self, role: Role) -> Result<ExitStatus, LaunchError> {
        let stop_timeout = self.config.stop_timeout;
        let process = self.running(role)?;
        process.known = true;
        let asked = process.signal(Signal::TERM).and_then(|()| process.signal(Signal::CONT));
        asked.map_err(|source| LaunchError::Signal { role, source })?;
        process.paused = false;
        let begun = Instant::now();
        while begun.elapsed() < stop_timeout {
            if let Some(status) = process.poll() {
                return Ok(status);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        log::warn!("process killed role={role} cause=stop-timeout");
        self.kill(role)
    }

    /// Stops all processes: the backups first, so that none takes over, then the primary, then the slaves.
    pub fn stop_all(&mut self) {
        let slaves = self.processes.keys().copied().filter(|role| matches!(role, Role::Slave(_)));
        let order: Vec<Role> = self.master_roles().rev().chain(slaves).collect();
        for role in order {
            // A process that is gone counts as stopped; one that cannot be signalled is killed on drop.
            let _ = self.terminate(role);
        }
    }
}
