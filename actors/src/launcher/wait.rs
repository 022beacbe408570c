//! Waits until a process or the cluster has reached a state.

use super::error::{Awaited, LaunchError};
use super::process::ProcessState;
use super::role::Role;
use super::status::ask_info;
use super::{Launcher, LOOK_INTERVAL};
use dsm_protocol::info::MasterInfo;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long one STATUS may take before it is asked again.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

impl Launcher {
    /// Waits until the master answers at its port, active or not.
    ///
    /// # Errors
    /// `Ended`, `NotReady` and `Interrupted`.
    pub fn wait_answering(&mut self, role: Role) -> Result<(), LaunchError> {
        self.wait_status(role, Awaited::Answers(role), |_| true)
    }

    /// Waits until the master is the one that serves.
    ///
    /// # Errors
    /// `Ended`, `NotReady` and `Interrupted`.
    pub fn wait_serving(&mut self, role: Role) -> Result<(), LaunchError> {
        self.wait_status(role, Awaited::Serves(role), MasterInfo::is_primary)
    }

    /// Waits until the master that serves, whichever it is, has `count` active slaves.
    ///
    /// # Errors
    /// `NotReady` and `Interrupted`.
    pub fn wait_active_slaves(&mut self, count: usize) -> Result<(), LaunchError> {
        let begun = Instant::now();
        let mut active = 0;
        while begun.elapsed() < self.config.ready_timeout {
            self.check_interruption()?;
            if let Some((_, info)) = self.serving() {
                active = usize::try_from(info.slaves.active_slaves).unwrap_or(usize::MAX);
                if active >= count {
                    return Ok(());
                }
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        let awaited = Awaited::Slaves { count, active };
        let output = self.output_path(Role::Slave(count));
        Err(LaunchError::NotReady { awaited, waited: begun.elapsed(), output })
    }

    /// The master that serves, with its state; `None` while none does.
    pub fn serving(&mut self) -> Option<(Role, MasterInfo)> {
        self.master_roles()
            .filter(|role| self.state(*role) == ProcessState::Running)
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|role| Some((role, ask_info(self.address(role)?, &self.way, STATUS_TIMEOUT).ok()?)))
            .find(|(_, info)| info.is_primary())
    }

    pub(super) fn wait_status(
        &mut self,
        role: Role,
        awaited: Awaited,
        met: impl Fn(&MasterInfo) -> bool,
    ) -> Result<(), LaunchError> {
        let Some(address) = self.address(role) else { return Err(LaunchError::NotRunning(role)) };
        let way = self.way.clone();
        self.wait_until(role, awaited, self.config.ready_timeout, || {
            ask_info(address, &way, STATUS_TIMEOUT).is_ok_and(|info| met(&info))
        })
    }

    pub(super) fn wait_until(
        &mut self,
        role: Role,
        awaited: Awaited,
        limit: Duration,
        mut met: impl FnMut() -> bool,
    ) -> Result<(), LaunchError> {
        let begun = Instant::now();
        loop {
            // In this order: if our process is gone, another one answers at the port.
            match self.state(role) {
                ProcessState::Ended(status) => {
                    let output = self.last_output(role);
                    if let Some(process) = self.processes.get_mut(&role) {
                        process.known = true;
                    }
                    return Err(LaunchError::Ended { role, status, output });
                }
                ProcessState::NotStarted => return Err(LaunchError::NotRunning(role)),
                ProcessState::Running | ProcessState::Paused => {}
            }
            if met() {
                return Ok(());
            }
            self.check_interruption()?;
            if begun.elapsed() >= limit {
                let output = self.output_path(role);
                return Err(LaunchError::NotReady { awaited, waited: limit, output });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    pub(super) fn check_interruption(&self) -> Result<(), LaunchError> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(LaunchError::Interrupted)
        } else {
            Ok(())
        }
    }
}
