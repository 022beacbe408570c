//! Starts, signals and reaps the processes of a local cluster: for `dsm-cluster`, the harness and the tests.
//!
//! It owns the child processes, their ports, their output files and the questions "is it up, does it serve". It
//! restarts nothing by itself and never touches the log. Blocking, without a runtime. By hand, over `std::process`:
//! supervisors of others restart what ends, and here it is the test that does.
//!
//! **Call it from the main thread**, or from a thread that outlives the cluster: every child is started with
//! `--die-with-parent PID`, by which it asks the kernel to kill it when its parent dies, and the kernel takes the
//! *thread* that spawned it for the parent.

// Real processes live in real time; there is no virtual clock to ask.
#![allow(clippy::disallowed_methods)]

use bytes::BytesMut;
use dsm_protocol::command::{Command as StoreCommand, Reply};
use dsm_protocol::frame;
use dsm_protocol::handshake::{DialEffect, DialEvent, Dialing};
use dsm_protocol::ids::{Millis, RequestId};
use dsm_protocol::info::{MasterInfo, MasterRole};
use dsm_protocol::message::{Hello, HelloRole, Message, Request};
use rustix::process::{kill_process, Pid, Signal};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Between two looks at something that cannot wake us: another process's progress.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long one STATUS may take before it is asked again.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// The longest text of a STATUS, in bytes.
const STATUS_BYTES_MAX: usize = 1024 * 1024;

/// The end of a child's output that is looked at for the reason of its death, in bytes.
const OUTPUT_TAIL_BYTES: u64 = 4096;

/// A process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `dsm-master`.
    Primary,
    /// `dsm-backup-master`.
    Backup,
    /// `dsm-slave`, counted from 1.
    Slave(usize),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Primary => f.pad("primary"),
            Role::Backup => f.pad("backup"),
            Role::Slave(number) => f.pad(&format!("slave {number}")),
        }
    }
}

impl FromStr for Role {
    type Err = String;

    /// Reads `primary`, `backup` or `slave 2`, in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<String> = text.split_whitespace().map(str::to_ascii_lowercase).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["primary" | "master"] => Ok(Role::Primary),
            ["backup"] => Ok(Role::Backup),
            ["slave", number] => match number.parse() {
                Ok(number) if number > 0 => Ok(Role::Slave(number)),
                Ok(_) | Err(_) => Err(format!("{number:?} is not the number of a slave")),
            },
            _ => Err("name one of: primary, backup, slave N".to_owned()),
        }
    }
}

impl Role {
    /// The name in file names and as a slave's id: `primary`, `backup`, `slave-2`.
    pub fn file_name(self) -> String {
        match self {
            Role::Primary => "primary".to_owned(),
            Role::Backup => "backup".to_owned(),
            Role::Slave(number) => format!("slave-{number}"),
        }
    }
}

/// How a role is started: `program prefix… FLAGS… extra…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleCommand {
    /// The executable.
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

/// What a [`Launcher`] starts.
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
    /// How many slaves [`Launcher::start_all`] starts.
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

/// Why the launcher could not do it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The data directory or a file in it cannot be used.
    #[error("cannot use {path}")]
    Data {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No port is free.
    #[error("cannot find a free port")]
    Port(#[source] io::Error),
    /// The program cannot be started.
    #[error("cannot start {program} as {role}")]
    Spawn {
        /// Which process.
        role: Role,
        /// The executable.
        program: PathBuf,
        /// Why.
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
        /// Which process.
        role: Role,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process ended before it was ready.
    #[error("{role} ended before it was ready ({ended}): {output}")]
    Ended {
        /// Which process.
        role: Role,
        /// How, as [`describe_exit`] puts it.
        ended: String,
        /// The last line it printed.
        output: String,
    },
    /// The process is there, but not what was waited for.
    #[error("{what} not ready after {}, see {output}", humantime::format_duration(*.waited))]
    NotReady {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The output of the process in question.
        output: PathBuf,
    },
    /// The wait was interrupted through [`Launcher::interruption`].
    #[error("interrupted")]
    Interrupted,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// It was never started.
    NotStarted,
    /// It runs.
    Running,
    /// It was stopped with [`Launcher::pause`].
    Paused,
    /// It is gone.
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

/// The processes of a local cluster. All of them are killed and reaped when it is dropped.
#[derive(Debug)]
pub struct Launcher {
    config: LauncherConfig,
    primary: SocketAddr,
    backup: SocketAddr,
    processes: BTreeMap<Role, Process>,
    interrupted: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    paused: bool,
    ended: Option<ExitStatus>,
    /// Whether the caller knows that it ended: it asked for it, or was told.
    known: bool,
}

impl Process {
    fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error here means that somebody else reaped our child; it is gone in any case.
            self.ended = self.child.try_wait().unwrap_or(Some(ExitStatus::from_raw(0)));
        }
        self.ended
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        // Not reaped yet, so the pid is still this process's.
        kill_process(Pid::from_child(&self.child), signal).map_err(io::Error::from)
    }
}

impl Launcher {
    /// Creates the data directory and picks the ports. Starts nothing.
    ///
    /// # Errors
    /// [`LaunchError::Data`] and [`LaunchError::Port`].
    pub fn new(config: LauncherConfig) -> Result<Launcher, LaunchError> {
        fs::create_dir_all(&config.data)
            .map_err(|source| LaunchError::Data { path: config.data.clone(), source })?;
        // Both are held until both are chosen, or they could be the same.
        let (first, second) = (free_port(config.port)?, free_port(config.backup_port)?);
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Launcher {
            primary: local(first.0),
            backup: local(second.0),
            config,
            processes: BTreeMap::new(),
            interrupted: Arc::default(),
        })
    }

    /// Set it, from any thread, and the waits of this launcher end with [`LaunchError::Interrupted`].
    pub fn interruption(&self) -> Arc<AtomicBool> {
        self.interrupted.clone()
    }

    /// Where the primary listens.
    pub fn primary_address(&self) -> SocketAddr {
        self.primary
    }

    /// Where the backup listens.
    pub fn backup_address(&self) -> SocketAddr {
        self.backup
    }

    /// Where `role` listens; slaves do not.
    pub fn address(&self, role: Role) -> Option<SocketAddr> {
        match role {
            Role::Primary => Some(self.primary),
            Role::Backup => Some(self.backup),
            Role::Slave(_) => None,
        }
    }

    /// Both masters' addresses, the primary's first: what clients are configured with.
    pub fn masters(&self) -> Vec<String> {
        vec![self.primary.to_string(), self.backup.to_string()]
    }

    /// The directory of the log and the outputs.
    pub fn data(&self) -> &Path {
        &self.config.data
    }

    /// The log.
    pub fn log_path(&self) -> PathBuf {
        self.config.data.join("kv_store.log")
    }

    /// Where the standard output and error of `role` go. The output of the life before stands in `….out.1`.
    pub fn output_path(&self, role: Role) -> PathBuf {
        self.config.data.join(format!("{}.out", role.file_name()))
    }

    /// The roles of a whole cluster: both masters and the configured number of slaves.
    pub fn roles(&self) -> Vec<Role> {
        let slaves = (1..=self.config.slaves).map(Role::Slave);
        [Role::Primary, Role::Backup].into_iter().chain(slaves).collect()
    }

    /// Starts the primary, waits until it has the lock, starts the others and waits until it serves with all slaves.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn start_all(&mut self) -> Result<(), LaunchError> {
        self.start_primary()?;
        // A new log begins with the first slave: it does not serve before that.
        let has_lock = |info: &MasterInfo| info.replication.role != MasterRole::Standby;
        self.wait_status(Role::Primary, "primary at the log", has_lock)?;
        self.start_backup()?;
        for number in 1..=self.config.slaves {
            self.start_slave(number)?;
        }
        self.wait_serving(Role::Primary)?;
        self.wait_answering(Role::Backup)?;
        self.wait_active_slaves(self.config.slaves)
    }

    /// Starts `dsm-master` and does not wait.
    ///
    /// # Errors
    /// See [`Launcher::start`].
    pub fn start_primary(&mut self) -> Result<(), LaunchError> {
        self.start(Role::Primary)
    }

    /// Starts `dsm-backup-master` and does not wait.
    ///
    /// # Errors
    /// See [`Launcher::start`].
    pub fn start_backup(&mut self) -> Result<(), LaunchError> {
        self.start(Role::Backup)
    }

    /// Starts a slave, counted from 1, and does not wait.
    ///
    /// # Errors
    /// See [`Launcher::start`].
    pub fn start_slave(&mut self, number: usize) -> Result<(), LaunchError> {
        self.start(Role::Slave(number))
    }

    /// Starts a process and does not wait. See the note on threads at the top of this file.
    ///
    /// # Errors
    /// `Running`, `Data` when its output file cannot be made, and `Spawn`.
    pub fn start(&mut self, role: Role) -> Result<(), LaunchError> {
        if self.is_running(role) {
            return Err(LaunchError::Running(role));
        }
        let path = self.output_path(role);
        let output = new_output(&path).map_err(|source| LaunchError::Data { path: path.clone(), source })?;
        let errors = output.try_clone().map_err(|source| LaunchError::Data { path, source })?;
        let how = match role {
            Role::Primary => &self.config.primary,
            Role::Backup => &self.config.backup,
            Role::Slave(_) => &self.config.slave,
        };
        let mut command = Command::new(&how.program);
        command.args(&how.prefix);
        match role {
            Role::Primary => self.master_flags(&mut command, self.primary, self.backup),
            Role::Backup => self.master_flags(&mut command, self.backup, self.primary),
            Role::Slave(_) => {
                command.arg("--masters").arg(self.masters().join(","));
                command.arg("--id").arg(role.file_name());
            }
        }
        command.arg("--die-with-parent").arg(std::process::id().to_string());
        command.args(&how.extra);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // A Ctrl+C at the terminal is for the parent, which then stops them in order.
        command.process_group(0);
        let spawned = command.spawn();
        let child =
            spawned.map_err(|source| LaunchError::Spawn { role, program: how.program.clone(), source })?;
        log::debug!("process started role={role} pid={}", child.id());
        self.processes.insert(role, Process { child, paused: false, ended: None, known: false });
        Ok(())
    }

    fn master_flags(&self, command: &mut Command, listen: SocketAddr, peer: SocketAddr) {
        command.arg("--listen").arg(listen.to_string());
        command.arg("--peer").arg(peer.to_string());
        command.arg("--log").arg(self.log_path());
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

    /// Stops the process in its tracks (SIGSTOP) and waits until it stands still.
    ///
    /// # Errors
    /// `NotRunning`, `Signal` and `NotReady`.
    pub fn pause(&mut self, role: Role) -> Result<(), LaunchError> {
        let process = self.running(role)?;
        process.signal(Signal::STOP).map_err(|source| LaunchError::Signal { role, source })?;
        process.paused = true;
        let stat = PathBuf::from(format!("/proc/{}/stat", process.child.id()));
        self.wait_until(role, &format!("pause of {role}"), self.config.stop_timeout, || {
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

    /// Stops all processes: the backup first, so that it does not take over, then the primary, then the slaves.
    pub fn stop_all(&mut self) {
        let slaves = self.processes.keys().copied().filter(|role| matches!(role, Role::Slave(_)));
        let order: Vec<Role> = [Role::Backup, Role::Primary].into_iter().chain(slaves).collect();
        for role in order {
            // One that is gone already is stopped as well; one that cannot be signalled is killed on drop.
            let _ = self.terminate(role);
        }
    }

    /// The process id, while the process is there.
    pub fn pid(&mut self, role: Role) -> Option<u32> {
        self.running(role).ok().map(|process| process.child.id())
    }

    /// Whether the process is there, paused or not.
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

    /// The processes that ended by themselves and were not returned here before.
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

    /// Waits until the master answers at its port, active or not.
    ///
    /// # Errors
    /// `Ended`, `NotReady` and `Interrupted`.
    pub fn wait_answering(&mut self, role: Role) -> Result<(), LaunchError> {
        self.wait_status(role, &role.to_string(), |_| true)
    }

    /// Waits until the master is the one that serves.
    ///
    /// # Errors
    /// `Ended`, `NotReady` and `Interrupted`.
    pub fn wait_serving(&mut self, role: Role) -> Result<(), LaunchError> {
        self.wait_status(role, &format!("{role} serving"), MasterInfo::is_primary)
    }

    /// Waits until the master that serves, whichever it is, has `count` active slaves.
    ///
    /// # Errors
    /// `NotReady` and `Interrupted`.
    pub fn wait_active_slaves(&mut self, count: usize) -> Result<(), LaunchError> {
        let begun = Instant::now();
        let mut seen = 0;
        while begun.elapsed() < self.config.ready_timeout {
            self.check_interruption()?;
            if let Some((_, info)) = self.serving() {
                seen = usize::try_from(info.slaves.active_slaves).unwrap_or(usize::MAX);
                if seen >= count {
                    return Ok(());
                }
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        let what = format!("only {seen} of {count} slaves active: the cluster");
        let output = self.output_path(Role::Slave(count));
        Err(LaunchError::NotReady { what, waited: begun.elapsed(), output })
    }

    /// The master that serves, with its state; `None` while none does.
    pub fn serving(&mut self) -> Option<(Role, MasterInfo)> {
        [Role::Primary, Role::Backup]
            .into_iter()
            .filter(|role| self.state(*role) == ProcessState::Running)
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|role| Some((role, ask_info(self.address(role)?, STATUS_TIMEOUT).ok()?)))
            .find(|(_, info)| info.is_primary())
    }

    fn wait_status(
        &mut self,
        role: Role,
        what: &str,
        met: impl Fn(&MasterInfo) -> bool,
    ) -> Result<(), LaunchError> {
        let Some(address) = self.address(role) else { return Err(LaunchError::NotRunning(role)) };
        self.wait_until(role, what, self.config.ready_timeout, || {
            ask_info(address, STATUS_TIMEOUT).is_ok_and(|info| met(&info))
        })
    }

    fn wait_until(
        &mut self,
        role: Role,
        what: &str,
        limit: Duration,
        mut met: impl FnMut() -> bool,
    ) -> Result<(), LaunchError> {
        let begun = Instant::now();
        loop {
            // In this order: what answers at the port while our process is gone is not ours.
            match self.state(role) {
                ProcessState::Ended(status) => {
                    let (ended, output) = (describe_exit(status), self.last_output(role));
                    if let Some(process) = self.processes.get_mut(&role) {
                        process.known = true;
                    }
                    return Err(LaunchError::Ended { role, ended, output });
                }
                ProcessState::NotStarted => return Err(LaunchError::NotRunning(role)),
                ProcessState::Running | ProcessState::Paused => {}
            }
            if met() {
                return Ok(());
            }
            self.check_interruption()?;
            if begun.elapsed() >= limit {
                let (what, output) = (what.to_owned(), self.output_path(role));
                return Err(LaunchError::NotReady { what, waited: limit, output });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn check_interruption(&self) -> Result<(), LaunchError> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(LaunchError::Interrupted)
        } else {
            Ok(())
        }
    }

    fn running(&mut self, role: Role) -> Result<&mut Process, LaunchError> {
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
            // It may be gone by itself; `wait` below says so in any case.
            let _ = process.child.kill();
        }
        for process in self.processes.values_mut().filter(|process| process.ended.is_none()) {
            let _ = process.child.wait();
        }
    }
}

/// Asks a master for its STATUS, over a connection of its own.
///
/// # Errors
/// What the connection or the handshake ended with, `TimedOut`, and that the answer is none of a master of this version.
pub fn ask_info(address: SocketAddr, limit: Duration) -> io::Result<MasterInfo> {
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_nodelay(true)?;
    let begun = Instant::now();
    let now = || Millis(begun.elapsed().as_millis() as u64);
    let hello = Hello { cluster: None, role: HelloRole::Client };
    let (mut out, mut input, mut effects) = (Vec::new(), BytesMut::new(), Vec::new());
    let mut dialing = Dialing::begin(now(), limit.as_millis() as u64, hello, &mut out);
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(&out)?;
    loop {
        let event = match read_more(&mut stream, &mut input, deadline)? {
            0 => DialEvent::Ended,
            _ => DialEvent::Bytes { unread: &mut input, cluster: None },
        };
        dialing.step(now(), event, &mut effects);
        match effects.pop() {
            Some(DialEffect::Welcomed(_)) => break,
            Some(DialEffect::GiveUp(why)) => return Err(io::Error::other(why)),
            None => {}
        }
    }
    out.clear();
    let request = Request { id: RequestId(1), stream: 0, generation: 0, command: StoreCommand::Status };
    frame::encode_request(&request, &mut out);
    stream.write_all(&out)?;
    match receive(&mut stream, &mut input, deadline)? {
        Message::Response { reply: Reply::Text(text), .. } => {
            MasterInfo::parse(&text).map_err(io::Error::other)
        }
        Message::Response { reply: Reply::Error(error), .. } => Err(io::Error::other(error)),
        _ => Err(io::Error::other("did not answer the question")),
    }
}

fn receive(stream: &mut TcpStream, input: &mut BytesMut, deadline: Instant) -> io::Result<Message> {
    loop {
        if let Some(message) = frame::decode(input, STATUS_BYTES_MAX).map_err(io::Error::other)? {
            return Ok(message);
        }
        if read_more(stream, input, deadline)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Reads what is there by `deadline`; 0 at the end of the stream.
fn read_more(stream: &mut TcpStream, input: &mut BytesMut, deadline: Instant) -> io::Result<usize> {
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(read) => {
                input.extend_from_slice(&chunk[..read]);
                return Ok(read);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The wanted port, or a free one together with the socket that keeps it free until it is dropped.
fn free_port(wanted: Option<u16>) -> Result<(u16, Option<TcpListener>), LaunchError> {
    if let Some(port) = wanted {
        return Ok((port, None));
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(LaunchError::Port)?;
    let port = listener.local_addr().map_err(LaunchError::Port)?.port();
    Ok((port, Some(listener)))
}

/// Makes an empty output file; the one before is kept under the name with `.1`.
fn new_output(path: &Path) -> io::Result<File> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    match fs::rename(path, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // It may name keys.
    File::options().create(true).append(true).mode(0o600).open(path)
}

fn last_line(path: &Path) -> io::Result<String> {
    use std::io::Seek as _;
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(OUTPUT_TAIL_BYTES);
    file.seek(io::SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(OUTPUT_TAIL_BYTES).read_to_end(&mut tail)?;
    let text = String::from_utf8_lossy(&tail);
    Ok(text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster whose every role is the shell script `script`; `$1` and on are the role's flags.
    fn scripted(script: &str) -> (tempfile::TempDir, Launcher) {
        let data = tempfile::tempdir().unwrap();
        let role = RoleCommand::new("/bin/sh").with_prefix(["-c", script, "role"]);
        let mut config = LauncherConfig::new(role.clone(), role.clone(), role, data.path());
        config.ready_timeout = Duration::from_secs(10);
        let launcher = Launcher::new(config).unwrap();
        (data, launcher)
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
    fn each_role_gets_its_flags() {
        let (_data, mut launcher) = scripted("echo \"$@\"");
        let (primary, backup) = (launcher.primary_address(), launcher.backup_address());
        assert_ne!(primary, backup);
        let log = launcher.log_path().display().to_string();
        let parent = format!("--die-with-parent {}", std::process::id());
        launcher.start_primary().unwrap();
        launcher.start_backup().unwrap();
        launcher.start_slave(2).unwrap();
        assert_eq!(
            wait_for_output(&launcher, Role::Primary),
            format!("--listen {primary} --peer {backup} --log {log} {parent}")
        );
        assert_eq!(
            wait_for_output(&launcher, Role::Backup),
            format!("--listen {backup} --peer {primary} --log {log} {parent}")
        );
        assert_eq!(
            wait_for_output(&launcher, Role::Slave(2)),
            format!("--masters {primary},{backup} --id slave-2 {parent}")
        );
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
        launcher.start_primary().unwrap();
        wait_for_output(&launcher, Role::Primary);
        launcher.pause(Role::Primary).unwrap();
        assert_eq!(launcher.terminate(Role::Primary).unwrap().code(), Some(7));
    }

    #[test]
    fn a_process_that_ends_while_it_is_waited_for_is_told_with_its_last_words() {
        let (_data, mut launcher) = scripted("echo 'ERROR the log is corrupt' >&2; exit 3");
        launcher.start_primary().unwrap();
        let error = launcher.wait_serving(Role::Primary).unwrap_err();
        assert_eq!(
            error.to_string(),
            "primary ended before it was ready (exit code 3): ERROR the log is corrupt"
        );
    }

    #[test]
    fn a_death_nobody_asked_for_is_reported_once() {
        let (_data, mut launcher) = scripted("exit 4");
        launcher.start_slave(1).unwrap();
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
        launcher.start_primary().unwrap();
        launcher.start_slave(1).unwrap();
        launcher.pause(Role::Slave(1)).unwrap();
        let pids = [launcher.pid(Role::Primary).unwrap(), launcher.pid(Role::Slave(1)).unwrap()];
        drop(launcher);
        assert!(!pids.into_iter().any(exists));
    }

    #[test]
    fn an_interruption_ends_a_wait() {
        let (_data, mut launcher) = scripted("exec sleep 1000");
        launcher.start_primary().unwrap();
        launcher.interruption().store(true, Ordering::Relaxed);
        assert!(matches!(launcher.wait_answering(Role::Primary), Err(LaunchError::Interrupted)));
    }

    #[test]
    fn roles_are_read_and_written() {
        for (text, role) in
            [("primary", Role::Primary), ("Backup", Role::Backup), ("slave  2", Role::Slave(2))]
        {
            assert_eq!(text.parse(), Ok(role));
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        for text in ["", "slave", "slave 0", "slave x", "primary 1"] {
            assert!(text.parse::<Role>().is_err(), "{text}");
        }
    }
}
