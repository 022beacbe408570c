//! Starts, signals and reaps the processes of a local cluster: for `dsm-cluster`, the harness and the tests.
//!
//! [`Launcher`] owns the child processes, their ports and their output files. It restarts nothing by itself and never
//! touches the log. Blocking, without a runtime. Written by hand over `std::process`: the available supervisors restart
//! what ends, which here the test must decide.
//!
//! | file | owns |
//! |---|---|
//! | `role.rs` | the processes and their names |
//! | `config.rs` | what is started, and how |
//! | `process.rs`, `signals.rs` | one process; the signals to a running one |
//! | `output.rs` | the files that take their output |
//! | `wait.rs`, `status.rs` | waiting until a process is up or serves; the STATUS of a master |
//! | `error.rs` | the errors |
//!
//! **Call it from the main thread**, or from a thread that outlives the cluster: every child is started with
//! `--die-with-parent PID`, by which it asks the kernel to kill it when its parent dies, and the kernel takes the
//! *thread* that spawned it for the parent.

// Real processes run in real time, so there is no virtual clock.
#![allow(clippy::disallowed_methods)]

mod config;
mod error;
mod output;
mod process;
mod role;
mod signals;
mod status;
mod wait;

pub use config::{LauncherConfig, MasterCommand, RoleCommand};
pub use error::{Awaited, LaunchError};
pub use process::{describe_exit, ProcessState};
pub use role::{Role, RoleError};

use crate::{address, env};
use dsm_protocol::info::{MasterInfo, MasterRole};
use output::{last_line, new_output};
use process::RoleProcess;
use status::AskedBy;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Duration;

/// The interval at which another process's progress is polled.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The processes of a local cluster. All of them are killed and reaped when it is dropped.
#[derive(Debug)]
pub struct Launcher {
    config: LauncherConfig,
    /// Where the masters listen, in the order of the configuration.
    masters: Vec<SocketAddr>,
    /// The addresses of their Unix sockets, in the same order; none if they have none.
    sockets: Vec<String>,
    way: AskedBy,
    processes: BTreeMap<Role, RoleProcess>,
    interrupted: Arc<AtomicBool>,
}

impl Launcher {
    /// Creates the data directory and picks the ports. Starts nothing.
    ///
    /// # Errors
    /// [`LaunchError::TooFewMasters`], [`LaunchError::Data`], [`LaunchError::Tls`], [`LaunchError::Secret`] and [`LaunchError::Port`].
    pub fn new(config: LauncherConfig) -> Result<Launcher, LaunchError> {
        let named = config.masters.len();
        if named < 2 {
            return Err(LaunchError::TooFewMasters { named });
        }
        fs::create_dir_all(&config.data)
            .map_err(|source| LaunchError::Data { path: config.data.clone(), source })?;
        let wanted: Vec<Option<u16>> = config.masters.iter().map(|master| master.port).collect();
        let ports = choose_ports(&wanted, free_port).map_err(LaunchError::Port)?;
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Launcher {
            masters: ports.into_iter().map(local).collect(),
            sockets: if config.unix_sockets { sockets(&config.data, named) } else { Vec::new() },
            way: AskedBy::of(&config)?,
            config,
            processes: BTreeMap::new(),
            interrupted: Arc::default(),
        })
    }

    /// Set it, from any thread, and the waits of this launcher end with [`LaunchError::Interrupted`].
    pub fn interruption(&self) -> Arc<AtomicBool> {
        self.interrupted.clone()
    }

    /// Where `role` listens; `None` for slaves, and for a master that is not configured.
    pub fn address(&self, role: Role) -> Option<SocketAddr> {
        match role {
            Role::Master(place) => self.masters.get(place).copied(),
            Role::Slave(_) => None,
        }
    }

    /// Where `role` is asked over HTTP; `None` if it is not.
    pub fn http_address(&self, role: Role) -> Option<SocketAddr> {
        let place = match role {
            Role::Master(place) => place,
            Role::Slave(number) => self.masters.len() + number - 1,
        };
        let port = self.config.http_port?.checked_add(u16::try_from(place).ok()?)?;
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The masters' addresses, the primary's first: what clients are configured with.
    pub fn masters(&self) -> Vec<String> {
        self.masters.iter().map(SocketAddr::to_string).collect()
    }

    /// The masters, the primary first.
    fn master_roles(&self) -> impl DoubleEndedIterator<Item = Role> {
        (0..self.masters.len()).map(Role::Master)
    }

    /// The directory of the log and the outputs.
    pub fn data(&self) -> &Path {
        &self.config.data
    }

    /// The path of the cluster's log.
    pub fn log_path(&self) -> PathBuf {
        self.config.data.join("kv_store.log")
    }

    /// The file of the standard output and error of `role`. The output of its previous life is in `….out.1`.
    pub fn output_path(&self, role: Role) -> PathBuf {
        self.config.data.join(format!("{}.out", role.file_name()))
    }

    /// The roles of a whole cluster: all masters and the configured number of slaves.
    pub fn roles(&self) -> Vec<Role> {
        let slaves = (1..=self.config.slaves).map(Role::Slave);
        self.master_roles().chain(slaves).collect()
    }

    /// Starts the primary, waits until it has the lock, starts the others and waits until it serves with all slaves.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn start_all(&mut self) -> Result<(), LaunchError> {
        self.start(Role::PRIMARY)?;
        // With a new log the primary does not serve before the first slave has come.
        let has_log = |info: &MasterInfo| info.replication.dsm_role != MasterRole::Standby;
        self.wait_status(Role::PRIMARY, Awaited::HasLog(Role::PRIMARY), has_log)?;
        let backups: Vec<Role> = self.master_roles().skip(1).collect();
        for role in &backups {
            self.start(*role)?;
        }
        for number in 1..=self.config.slaves {
            self.start(Role::Slave(number))?;
        }
        self.wait_serving(Role::PRIMARY)?;
        for role in backups {
            self.wait_answering(role)?;
        }
        self.wait_active_slaves(self.config.slaves)
    }

    /// Starts a process and does not wait. See the note on threads at the top of this file.
    ///
    /// # Errors
    /// `Running`, `NotRunning` for a master that is not configured, `Data` when its output file cannot be made, and `Spawn`.
    pub fn start(&mut self, role: Role) -> Result<(), LaunchError> {
        if self.is_running(role) {
            return Err(LaunchError::Running(role));
        }
        let how = match role {
            Role::Master(place) => self.config.masters.get(place).map(|master| &master.command),
            Role::Slave(_) => Some(&self.config.slave),
        };
        let how = how.ok_or(LaunchError::NotRunning(role))?;
        let path = self.output_path(role);
        let output = new_output(&path).map_err(|source| LaunchError::Data { path: path.clone(), source })?;
        let errors = output.try_clone().map_err(|source| LaunchError::Data { path, source })?;
        let mut command = Command::new(&how.program);
        command.args(&how.prefix);
        match role {
            Role::Master(place) => self.master_flags(&mut command, place),
            Role::Slave(_) => {
                let known = if self.sockets.is_empty() { self.masters() } else { self.sockets.clone() };
                command.arg("--masters").arg(known.join(","));
                command.arg("--id").arg(role.file_name());
            }
        }
        let tls = &self.config.tls;
        for (flag, file) in [("--tls-cert", &tls.cert), ("--tls-key", &tls.key), ("--tls-ca", &tls.ca)] {
            if let Some(file) = file {
                command.arg(flag).arg(file);
            }
        }
        if let Some(file) = &self.config.secret_file {
            command.arg("--secret-file").arg(file);
        }
        // One port for all of them would be that of the first alone.
        command.env_remove("DSM_HTTP");
        // Whoever has started this process is told of it, not of the others.
        command.env_remove("NOTIFY_SOCKET");
        if let Some(address) = self.http_address(role) {
            command.arg("--http").arg(address.to_string());
        }
        command.arg("--die-with-parent").arg(std::process::id().to_string());
        command.args(&how.extra);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // A Ctrl+C at the terminal goes only to the parent, which then stops the children in order.
        command.process_group(0);
        let spawned = command.spawn();
        let child =
            spawned.map_err(|source| LaunchError::Spawn { role, program: how.program.clone(), source })?;
        log::debug!("process started role={role} pid={}", child.id());
        self.processes.insert(role, RoleProcess { child, paused: false, ended: None, known: false });
        Ok(())
    }

    fn master_flags(&self, command: &mut Command, place: usize) {
        let mut others = self.masters();
        let own = [others.remove(place)].into_iter().chain(self.sockets.get(place).cloned());
        command.arg("--listen").arg(own.collect::<Vec<_>>().join(","));
        command.arg("--peer").arg(others.join(","));
        command.arg("--log").arg(self.log_path());
        if let Some(file) = &self.config.client_secret_file {
            command.arg("--client-secret-file").arg(file);
        }
    }

    /// Stops the process if it runs (SIGTERM), starts it, and does not wait.
    ///
    /// # Errors
    /// See [`Launcher::start`].
    pub fn restart(&mut self, role: Role) -> Result<(), LaunchError> {
        if self.is_running(role) {
            self.terminate(role)?;
        }
        self.start(role)
    }
    /// The process id, while the process exists.
    pub fn pid(&mut self, role: Role) -> Option<u32> {
        self.running(role).ok().map(|process| process.child.id())
    }

    /// Whether the process exists, paused or not.
    pub fn is_running(&mut self, role: Role) -> bool {
        self.running(role).is_ok()
    }

    /// What the process is doing.
    pub fn state(&mut self, role: Role) -> ProcessState {
        match self.processes.get_mut(&role) {
            None => ProcessState::NotStarted,
            Some(process) => match process.poll() {
                Some(status) => ProcessState::Ended(status),
                None if process.paused => ProcessState::Paused,
                None => ProcessState::Running,
            },
        }
    }

    /// The processes that have ended by themselves since the last call.
    pub fn take_ended(&mut self) -> Vec<(Role, ExitStatus)> {
        let mut ended = Vec::new();
        for (role, process) in &mut self.processes {
            if let Some(status) = process.poll() {
                if !std::mem::replace(&mut process.known, true) {
                    ended.push((*role, status));
                }
            }
        }
        ended
    }

    /// The last line that the process printed; empty when there is none.
    pub fn last_output(&self, role: Role) -> String {
        last_line(&self.output_path(role)).unwrap_or_default()
    }

    fn running(&mut self, role: Role) -> Result<&mut RoleProcess, LaunchError> {
        let process = self.processes.get_mut(&role).ok_or(LaunchError::NotRunning(role))?;
        match process.poll() {
            None => Ok(process),
            Some(_) => Err(LaunchError::NotRunning(role)),
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        for process in self.processes.values_mut().filter(|process| process.ended.is_none()) {
            // It may have ended by itself; `wait` below tells in any case.
            let _ = process.child.kill();
        }
        for process in self.processes.values_mut().filter(|process| process.ended.is_none()) {
            let _ = process.child.wait();
        }
    }
}

/// A free port, and the socket that keeps it from being given again until it is dropped.
fn free_port() -> io::Result<(u16, TcpListener)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    Ok((listener.local_addr()?.port(), listener))
}

/// The ports that are wanted, with one from `free` in place of each that is left open. No two are the same, unless they are
/// wanted so.
fn choose_ports<L>(
    wanted: &[Option<u16>],
    mut free: impl FnMut() -> io::Result<(u16, L)>,
) -> io::Result<Vec<u16>> {
    // Held until all are chosen: each port is given once, so this takes no more than all of them.
    let mut held = Vec::new();
    let mut choose = |port: &Option<u16>| match port {
        Some(port) => Ok(*port),
        None => loop {
            let (port, holder) = free()?;
            held.push(holder);
            // A process that is not started yet does not hold the port that it is to have.
            if !wanted.contains(&Some(port)) {
                return Ok(port);
            }
        },
    };
    wanted.iter().map(&mut choose).collect()
}

/// The addresses of Unix sockets in `data` for so many masters; none if there cannot be any.
fn sockets(data: &Path, masters: usize) -> Vec<String> {
    let addresses = || -> Result<Vec<String>, Box<dyn std::error::Error>> {
        let data = std::path::absolute(data)?;
        env::try_sockets_in(&data)?;
        let of =
            |place| address::of_unix_path(&data.join(format!("{}.sock", Role::Master(place).file_name())));
        Ok((0..masters).map(of).collect::<Result<_, _>>()?)
    };
    addresses().unwrap_or_else(|error| {
        log::info!("the slaves use TCP, for want of Unix sockets in={} cause={error}", data.display());
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    /// A cluster of two masters whose every role is the shell script `script`; `$1` and on are the role's flags.
    fn scripted(script: &str) -> (tempfile::TempDir, Launcher) {
        scripted_with(2, script)
    }

    /// The same with this many masters.
    fn scripted_with(masters: usize, script: &str) -> (tempfile::TempDir, Launcher) {
        let data = tempfile::tempdir().unwrap();
        let role = RoleCommand::new("/bin/sh").with_prefix(["-c", script, "role"]);
        let masters = std::iter::repeat_n(MasterCommand::from(role.clone()), masters);
        let launcher = Launcher::new(quick(LauncherConfig::new(masters, role, data.path()))).unwrap();
        (data, launcher)
    }

    fn quick(config: LauncherConfig) -> LauncherConfig {
        LauncherConfig { ready_timeout: Duration::from_secs(10), ..config }
    }

    fn exists(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    fn wait_for_output(launcher: &Launcher, role: Role) -> String {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let output = launcher.last_output(role);
            if !output.is_empty() {
                return output;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        panic!("{role} printed nothing");
    }

    #[test]
    fn a_free_port_is_none_that_another_master_is_to_have() {
        let mut free = [7003, 7001, 7002, 7004].into_iter();
        let chosen = choose_ports(&[None, Some(7001), None, Some(7003)], || {
            Ok((free.next().expect("no more are asked for"), ()))
        });
        // The first one given is the one that the fourth master is to have.
        assert_eq!(chosen.unwrap(), [7002, 7001, 7004, 7003]);
    }

    #[test]
    fn each_role_gets_its_flags() {
        let (_data, mut launcher) = scripted("echo \"$@\"");
        let [primary, backup] = [Role::PRIMARY, Role::BACKUP].map(|role| launcher.address(role).unwrap());
        assert_ne!(primary, backup);
        let log = launcher.log_path().display().to_string();
        let parent = format!("--die-with-parent {}", std::process::id());
        launcher.start(Role::PRIMARY).unwrap();
        launcher.start(Role::BACKUP).unwrap();
        launcher.start(Role::Slave(2)).unwrap();
        assert_eq!(
            wait_for_output(&launcher, Role::PRIMARY),
            format!("--listen {primary} --peer {backup} --log {log} {parent}")
        );
        assert_eq!(
            wait_for_output(&launcher, Role::BACKUP),
            format!("--listen {backup} --peer {primary} --log {log} {parent}")
        );
        assert_eq!(
            wait_for_output(&launcher, Role::Slave(2)),
            format!("--masters {primary},{backup} --id slave-2 {parent}")
        );
    }

    #[test]
    fn each_role_has_an_http_port_of_its_own_if_one_is_given() {
        let data = tempfile::tempdir().unwrap();
        let role = RoleCommand::new("/bin/sh").with_prefix(["-c", "echo \"$@\"", "role"]);
        let masters = std::iter::repeat_n(MasterCommand::from(role.clone()), 2);
        let config = quick(LauncherConfig::new(masters, role, data.path()));
        let mut launcher = Launcher::new(LauncherConfig { http_port: Some(9345), ..config }).unwrap();
        for (role, port) in
            [(Role::PRIMARY, 9345), (Role::BACKUP, 9346), (Role::Slave(1), 9347), (Role::Slave(3), 9349)]
        {
            assert_eq!(launcher.http_address(role).unwrap().port(), port);
            launcher.start(role).unwrap();
            let told = wait_for_output(&launcher, role);
            assert!(told.contains(&format!(" --http 127.0.0.1:{port} --die-with-parent ")), "{told}");
        }
    }

    #[test]
    fn slaves_use_unix_sockets_where_there_can_be_some_and_else_tcp() {
        let data = tempfile::tempdir().unwrap();
        let longest =
            address::UNIX_PATH_BYTES_MAX - data.path().as_os_str().len() - "/".len() - "/primary.sock".len();
        for (directory, has_sockets) in
            [("x".repeat(longest), true), ("x".repeat(longest + 1), false), ("a b".to_owned(), false)]
        {
            let directory = data.path().join(directory);
            let role = RoleCommand::new("/bin/sh").with_prefix(["-c", "echo \"$@\"", "role"]);
            let masters = std::iter::repeat_n(MasterCommand::from(role.clone()), 2);
            let mut config = quick(LauncherConfig::new(masters, role, &directory));
            config.unix_sockets = true;
            let mut launcher = Launcher::new(config).unwrap();
            let masters = launcher.masters();
            let socket = |name: &str| format!("unix:{}", directory.join(name).display());
            let sockets = [socket("primary.sock"), socket("backup.sock")];
            launcher.start(Role::PRIMARY).unwrap();
            launcher.start(Role::Slave(1)).unwrap();
            let (listen, known) = match has_sockets {
                true => (format!("{},{}", masters[0], sockets[0]), sockets.join(",")),
                false => (masters[0].clone(), masters.join(",")),
            };
            let told = wait_for_output(&launcher, Role::PRIMARY);
            assert!(told.starts_with(&format!("--listen {listen} --peer {} --log ", masters[1])), "{told}");
            let told = wait_for_output(&launcher, Role::Slave(1));
            assert!(told.starts_with(&format!("--masters {known} --id slave-1 ")), "{told}");
            assert_eq!(launcher.masters(), masters, "clients use TCP");
            let left: Vec<_> = fs::read_dir(&directory).unwrap().flatten().map(|file| file.path()).collect();
            assert!(!left.iter().any(|path| path.extension().is_some_and(|end| end == "sock")), "{left:?}");
        }
    }

    #[test]
    fn a_third_master_is_another_entry() {
        let (_data, mut launcher) = scripted_with(3, "echo \"$@\"; exec sleep 1000");
        let masters = launcher.masters();
        let log = launcher.log_path().display().to_string();
        let parent = format!("--die-with-parent {}", std::process::id());
        let third = Role::Master(2);
        assert_eq!(launcher.roles()[..3], [Role::PRIMARY, Role::BACKUP, third]);
        launcher.start(third).unwrap();
        let [first, second, own] = &masters[..] else { panic!("{masters:?}") };
        assert_eq!(
            wait_for_output(&launcher, third),
            format!("--listen {own} --peer {first},{second} --log {log} {parent}")
        );
        launcher.start(Role::Slave(1)).unwrap();
        assert_eq!(
            wait_for_output(&launcher, Role::Slave(1)),
            format!("--masters {first},{second},{own} --id slave-1 {parent}")
        );
        launcher.stop_all();
        assert!(matches!(launcher.state(third), ProcessState::Ended(_)), "it is stopped with the others");
        assert!(matches!(launcher.start(Role::Master(3)), Err(LaunchError::NotRunning(_))), "there is none");
    }

    #[test]
    fn a_master_without_another_one_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let role = RoleCommand::new("/bin/sh");
        for named in 0..2 {
            let masters = std::iter::repeat_n(MasterCommand::from(role.clone()), named);
            let refused = Launcher::new(LauncherConfig::new(masters, role.clone(), data.path()));
            assert!(matches!(refused, Err(LaunchError::TooFewMasters { named: told }) if told == named));
        }
    }

    #[test]
    fn processes_are_paused_resumed_killed_and_started_again() {
        let (_data, mut launcher) = scripted("echo up; exec sleep 1000");
        let role = Role::Slave(1);
        assert_eq!(launcher.state(role), ProcessState::NotStarted);
        launcher.start(role).unwrap();
        let pid = launcher.pid(role).unwrap();
        assert!(matches!(launcher.start(role), Err(LaunchError::Running(_))));
        launcher.pause(role).unwrap();
        assert_eq!(launcher.state(role), ProcessState::Paused);
        launcher.resume(role).unwrap();
        assert_eq!(launcher.state(role), ProcessState::Running);
        assert_eq!(launcher.kill(role).unwrap().signal(), Some(9));
        assert!(!exists(pid), "reaped");
        assert!(launcher.take_ended().is_empty(), "what was asked for is no news");
        assert!(matches!(launcher.kill(role), Err(LaunchError::NotRunning(_))));
        launcher.restart(role).unwrap();
        assert_ne!(launcher.pid(role), Some(pid));
        assert!(launcher.data().join("slave-1.out.1").exists());
    }

    #[test]
    fn a_paused_process_stops_when_asked_to() {
        let (_data, mut launcher) = scripted("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done");
        launcher.start(Role::PRIMARY).unwrap();
        wait_for_output(&launcher, Role::PRIMARY);
        launcher.pause(Role::PRIMARY).unwrap();
        assert_eq!(launcher.terminate(Role::PRIMARY).unwrap().code(), Some(7));
    }

    #[test]
    fn a_process_that_ends_while_it_is_waited_for_is_reported_with_its_last_line() {
        let (_data, mut launcher) = scripted("echo 'ERROR the log is corrupt' >&2; exit 3");
        launcher.start(Role::PRIMARY).unwrap();
        let error = launcher.wait_serving(Role::PRIMARY).unwrap_err();
        let LaunchError::Ended { role, status, output } = error else { panic!("{error:?}") };
        assert_eq!((role, status.code()), (Role::PRIMARY, Some(3)));
        assert_eq!(output, "ERROR the log is corrupt");
    }

    #[test]
    fn an_unexpected_death_is_reported_once() {
        let (_data, mut launcher) = scripted("exit 4");
        launcher.start(Role::Slave(1)).unwrap();
        let begun = Instant::now();
        let ended = loop {
            let ended = launcher.take_ended();
            if !ended.is_empty() || begun.elapsed() > Duration::from_secs(10) {
                break ended;
            }
            std::thread::sleep(LOOK_INTERVAL);
        };
        assert_eq!(ended.len(), 1);
        assert_eq!((ended[0].0, ended[0].1.code()), (Role::Slave(1), Some(4)));
        assert!(launcher.take_ended().is_empty());
    }

    #[test]
    fn nothing_survives_the_launcher() {
        let (_data, mut launcher) = scripted("trap '' TERM; exec sleep 1000");
        launcher.start(Role::PRIMARY).unwrap();
        launcher.start(Role::Slave(1)).unwrap();
        launcher.pause(Role::Slave(1)).unwrap();
        let pids = [launcher.pid(Role::PRIMARY).unwrap(), launcher.pid(Role::Slave(1)).unwrap()];
        drop(launcher);
        assert!(!pids.into_iter().any(exists));
    }

    #[test]
    fn an_interruption_ends_a_wait() {
        let (_data, mut launcher) = scripted("exec sleep 1000");
        launcher.start(Role::PRIMARY).unwrap();
        launcher.interruption().store(true, Ordering::Relaxed);
        assert!(matches!(launcher.wait_answering(Role::PRIMARY), Err(LaunchError::Interrupted)));
    }
}
