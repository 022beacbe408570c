//! A cluster of the real binaries: both masters and some slaves on free loopback ports, with a log in a directory of
//! its own. Processes are killed, paused and restarted by their ids. None outlives its [`TestCluster`] or the test's
//! process. Their standard error is printed when the test fails.
//!
//! A test that kills must not hide a death of another cause. So every dead process must have died by SIGKILL, ours or a
//! fence's, unless the test itself waits for its end ([`TestCluster::wait_for_exit`]), and none may have panicked.

use super::resp::{Answer, Connection, Info};
use super::{seconds, wait_for};
use rustix::fs::FlockOperation;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{bind, socket_with, AddressFamily, SocketFlags, SocketType};
use rustix::process::{kill_process, Pid, Signal};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a cluster may take to settle after the last fault.
pub(crate) const SETTLE: Duration = seconds(25);

/// How long one question to a node may take.
pub(crate) const ASK: Duration = seconds(2);

/// The log's name in its directory.
pub(crate) const LOG_NAME: &str = "kv_store.log";

/// The lines of standard error that are printed of each process of a failed test.
const PRINTED_LINES_MAX: usize = 60;

/// One member of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    /// `dsm-master`
    Master,
    /// `dsm-backup-master`
    Backup,
    /// `dsm-slave`, numbered from 0.
    Slave(usize),
}

/// Both masters.
pub(crate) const MASTERS: [Node; 2] = [Node::Master, Node::Backup];

impl Node {
    /// The other master.
    ///
    /// # Panics
    /// For a slave.
    pub(crate) fn other(self) -> Node {
        match self {
            Node::Master => Node::Backup,
            Node::Backup => Node::Master,
            Node::Slave(_) => panic!("a slave has no other"),
        }
    }

    /// Its name: a slave's `--id`.
    pub(crate) fn name(self) -> String {
        match self {
            Node::Master => "master".to_string(),
            Node::Backup => "backup".to_string(),
            Node::Slave(number) => format!("slave-{number}"),
        }
    }
}

/// What kind of cluster a test wants.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    slaves: usize,
    master_arguments: Vec<String>,
    slave_arguments: Vec<String>,
    log: Option<Vec<u8>>,
    open_files: Option<u32>,
    environment: BTreeMap<Node, Vec<(String, OsString)>>,
    log_directory: Option<PathBuf>,
    addresses: Option<[SocketAddr; 2]>,
    networks: BTreeMap<Node, String>,
    beside_others: bool,
    unix_sockets: bool,
}

impl Setup {
    /// Both masters and this many slaves, with default flags and the machine to itself.
    pub(crate) fn slaves(slaves: usize) -> Setup {
        // With a new log the masters wait for the first slave, if there is one.
        let master_arguments = if slaves == 0 { vec!["--new".to_string()] } else { Vec::new() };
        Setup {
            slaves,
            master_arguments,
            slave_arguments: Vec::new(),
            log: None,
            open_files: None,
            environment: BTreeMap::new(),
            log_directory: None,
            addresses: None,
            networks: BTreeMap::new(),
            beside_others: false,
            unix_sockets: false,
        }
    }

    /// The masters listen at Unix sockets too, and the slaves know no other addresses.
    pub(crate) fn by_unix_sockets(mut self) -> Setup {
        self.unix_sockets = true;
        self
    }

    /// More flags for both masters.
    pub(crate) fn masters_with(mut self, arguments: &[&str]) -> Setup {
        self.master_arguments.extend(arguments.iter().map(|a| a.to_string()));
        self
    }

    /// More flags for all slaves.
    pub(crate) fn slaves_with(mut self, arguments: &[&str]) -> Setup {
        self.slave_arguments.extend(arguments.iter().map(|a| a.to_string()));
        self
    }

    /// A log that is there before the first start.
    pub(crate) fn log(mut self, content: impl Into<Vec<u8>>) -> Setup {
        self.log = Some(content.into());
        self
    }

    /// How many files each master may have open, hard and soft.
    pub(crate) fn masters_with_open_files(mut self, max: u32) -> Setup {
        self.open_files = Some(max);
        self
    }

    /// A variable of the environment of one node; see [`TestCluster::forget_environment`].
    pub(crate) fn node_with_variable(mut self, node: Node, name: &str, value: impl Into<OsString>) -> Setup {
        self.environment.entry(node).or_default().push((name.to_string(), value.into()));
        self
    }

    /// The log is in this directory, which may be on another file system.
    pub(crate) fn log_in(mut self, directory: &Path) -> Setup {
        self.log_directory = Some(directory.to_owned());
        self
    }

    /// Both masters listen at these addresses instead of free loopback ports, and serve whoever can connect.
    pub(crate) fn masters_at(mut self, addresses: [SocketAddr; 2]) -> Setup {
        self.addresses = Some(addresses);
        self.masters_with(&["--protected-mode", "no"])
    }

    /// A node runs in this network of `ip netns`.
    pub(crate) fn node_in_network(mut self, node: Node, name: &str) -> Setup {
        self.networks.insert(node, name.to_string());
        self
    }

    /// Allows other tests to run at the same time: for tests in which no timeout matters.
    pub(crate) fn beside_others(mut self) -> Setup {
        self.beside_others = true;
        self
    }

    /// Starts everything and waits until the primary serves and all is at rest.
    pub(crate) fn start(self) -> TestCluster {
        let mut cluster = self.prepare();
        cluster.start_all();
        assert_eq!(cluster.settle(), Node::Master, "the backup gives the primary a second to come up");
        cluster
    }

    /// Takes ports and a directory, and starts nothing.
    pub(crate) fn prepare(self) -> TestCluster {
        let turn = Turn::take(self.beside_others);
        let dir = TempDir::with_prefix("dsm-test-").expect("a directory for temporary files");
        let (addresses, ports) = match self.addresses {
            Some(addresses) => (addresses, None),
            None => {
                let ports = [ReservedPort::take(), ReservedPort::take()];
                ([ports[0].address, ports[1].address], Some(ports))
            }
        };
        let cluster = TestCluster {
            setup: self,
            processes: BTreeMap::new(),
            paused: BTreeSet::new(),
            addresses,
            dir,
            _ports: ports,
            _turn: turn,
        };
        if let Some(log) = &cluster.setup.log {
            std::fs::write(cluster.log(), log).expect("writing the log");
        }
        cluster
    }
}

/// The right to use the machine, alone or together with others, across test binaries too.
struct Turn(#[allow(dead_code, reason = "the lock goes with the file")] File);

impl Turn {
    fn take(beside_others: bool) -> Turn {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("turn");
        let mut options = OpenOptions::new();
        let file =
            options.create(true).truncate(false).write(true).open(&path).expect("a file for taking turns");
        let operation =
            if beside_others { FlockOperation::LockShared } else { FlockOperation::LockExclusive };
        rustix::fs::flock(&file, operation).expect("taking turns");
        Turn(file)
    }
}

/// A port that no other process gets while this lives, even if nothing listens at it, as at a dead master's.
///
/// The kernel reserves it, for all processes and whatever happens to this one. A socket is bound to the port without
/// SO_REUSEADDR, which fails if any other socket is bound there. Only then it sets SO_REUSEADDR: a server that sets it
/// too, as every server does, may then bind and listen.
struct ReservedPort {
    address: SocketAddr,
    _socket: OwnedFd,
}

impl ReservedPort {
    /// A port below the range from which the kernel takes ports for outgoing connections. Otherwise a connection to a
    /// dead master could connect to itself, or occupy its port at the restart.
    fn take() -> ReservedPort {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let end = range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32768_u16);
        let end = end.max(10_100);
        let free = (0..10_000).find_map(|_| ReservedPort::of(rand::random_range(10_000..end)));
        free.unwrap_or_else(|| panic!("no free port between 10000 and {end}"))
    }

    fn of(port: u16) -> Option<ReservedPort> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let socket = socket.expect("a socket");
        bind(&socket, &address).ok()?;
        set_socket_reuseaddr(&socket, true).expect("a socket option");
        Some(ReservedPort { address, _socket: socket })
    }
}

/// Whether a test would be given this port.
pub(crate) fn is_free(port: u16) -> bool {
    ReservedPort::of(port).is_some()
}

/// Two ports at which nothing listens, and which no other process gets while this one lives.
pub(crate) fn free_ports() -> [SocketAddr; 2] {
    static RESERVED: Mutex<Vec<ReservedPort>> = Mutex::new(Vec::new());
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    [(); 2].map(|()| {
        let port = ReservedPort::take();
        let address = port.address;
        reserved.push(port);
        address
    })
}

/// The binary of a role.
pub(crate) fn binary(node: Node) -> &'static str {
    match node {
        Node::Master => env!("CARGO_BIN_EXE_dsm-master"),
        Node::Backup => env!("CARGO_BIN_EXE_dsm-backup-master"),
        Node::Slave(_) => env!("CARGO_BIN_EXE_dsm-slave"),
    }
}

/// A command for a role, without this process's `DSM_` variables. It ends with the thread that starts it.
pub(crate) fn command(node: Node) -> Command {
    for_tests(Command::new(binary(node)))
}

/// The same in a shell that allows no more than this many open files.
fn limited_command(node: Node, open_files_max: u32) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -n {open_files_max}; exec \"$0\" \"$@\"")).arg(binary(node));
    for_tests(shell)
}

/// The same in a network of `ip netns`. The process execs the binary, so they have the same id.
pub(crate) fn command_in_network(node: Node, network: &str) -> Command {
    let mut ip = Command::new("ip");
    ip.args(["netns", "exec", network]).arg(binary(node));
    for_tests(ip)
}

fn for_tests(mut command: Command) -> Command {
    command.arg("--die-with-parent").arg(std::process::id().to_string());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DSM_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "1").stdin(Stdio::null());
    command
}

/// Runs a process that is expected to end by itself with an error; gives its exit code and its standard error.
///
/// # Panics
/// When it does not end within 10 s, ends well, or ends by a signal or a panic.
pub(crate) fn fails(mut command: Command) -> (i32, String) {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary is built");
    let mut process = Process(child);
    let status = super::wait_for("the process ends", seconds(10), || {
        process.0.try_wait().expect("a child can be asked")
    });
    let mut told = String::new();
    let mut errors = process.0.stderr.take().expect("piped");
    std::io::Read::read_to_string(&mut errors, &mut told).expect("text");
    assert!(!status.success(), "it ends with {status}: {told}");
    assert!(!told.contains("panicked"), "{told}");
    (status.code().expect("it ends in order"), told)
}

/// A process beside the cluster; killed when it is dropped.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it is dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running cluster.
pub(crate) struct TestCluster {
    setup: Setup,
    processes: BTreeMap<Node, Child>,
    paused: BTreeSet<Node>,
    addresses: [SocketAddr; 2],
    dir: TempDir,
    _ports: Option<[ReservedPort; 2]>,
    _turn: Turn,
}

impl TestCluster {
    /// The addresses of master and backup.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        self.addresses
    }

    /// The address of a master.
    pub(crate) fn address(&self, master: Node) -> SocketAddr {
        match master {
            Node::Master => self.addresses[0],
            Node::Backup => self.addresses[1],
            Node::Slave(_) => panic!("a slave has no address"),
        }
    }

    /// The path of the log.
    pub(crate) fn log(&self) -> PathBuf {
        self.setup.log_directory.as_deref().unwrap_or(self.dir.path()).join(LOG_NAME)
    }

    /// The path of the lock file.
    pub(crate) fn lock(&self) -> PathBuf {
        self.log().with_extension("log.lock")
    }

    /// From their next starts on, all nodes have the default environment.
    pub(crate) fn forget_environment(&mut self) {
        self.setup.environment.clear();
    }

    /// A directory that is removed with the cluster.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All members.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        MASTERS.into_iter().chain(self.slaves()).collect()
    }

    /// All slaves.
    pub(crate) fn slaves(&self) -> Vec<Node> {
        (0..self.setup.slaves).map(Node::Slave).collect()
    }

    /// What a node has written to standard error in all its lives.
    pub(crate) fn stderr(&self, node: Node) -> String {
        std::fs::read(self.stderr_path(node))
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// The path of a master's Unix socket.
    pub(crate) fn socket(&self, master: Node) -> PathBuf {
        self.dir.path().join(format!("{}.sock", master.name()))
    }

    fn stderr_path(&self, node: Node) -> PathBuf {
        self.dir.path().join(format!("{}.stderr", node.name()))
    }

    /// Starts a node that is not running.
    pub(crate) fn start(&mut self, node: Node) {
        assert!(!self.processes.contains_key(&node), "{node:?} runs already");
        let mut output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.stderr_path(node))
            .expect("a file for standard error");
        writeln!(output, "---- {} starts", node.name()).expect("writing a headline");
        let mut command = match self.setup.open_files.filter(|_| MASTERS.contains(&node)) {
            Some(max) => limited_command(node, max),
            None => match self.setup.networks.get(&node) {
                Some(network) => command_in_network(node, network),
                None => command(node),
            },
        };
        let [master, backup] = self.addresses.map(|address| address.to_string());
        match node {
            Node::Master => {
                command.args(["--listen", &master, "--peer", &backup, "--log"]).arg(self.log());
                command.args(&self.setup.master_arguments);
            }
            Node::Backup => {
                command.args(["--listen", &backup, "--peer", &master, "--log"]).arg(self.log());
                command.args(&self.setup.master_arguments);
            }
            Node::Slave(_) => {
                let masters = match self.setup.unix_sockets {
                    false => [master, backup],
                    true => MASTERS.map(|master| unix_address(&self.socket(master))),
                };
                command.args(["--masters", &masters.join(","), "--id", &node.name()]);
                command.args(&self.setup.slave_arguments);
            }
        }
        if self.setup.unix_sockets && MASTERS.contains(&node) {
            command.args(["--listen", &unix_address(&self.socket(node))]);
        }
        command.env("RUST_LOG", "info").current_dir(self.dir.path());
        command
            .envs(self.setup.environment.get(&node).into_iter().flatten().map(|(name, value)| (name, value)));
        let errors = output.try_clone().expect("a second handle of a file");
        let child = command.stdout(output).stderr(errors).spawn().expect("the binary is built");
        self.processes.insert(node, child);
    }

    /// Starts all nodes that are not running.
    pub(crate) fn start_all(&mut self) {
        for node in self.nodes() {
            if !self.processes.contains_key(&node) {
                self.start(node);
            }
        }
    }

    /// `kill -9`, and waits until the process is gone. Gives when the signal was sent.
    pub(crate) fn kill(&mut self, node: Node) -> Instant {
        self.kill_at_once(&[node])
    }

    /// `kill -9` of several, all before any is waited for.
    ///
    /// # Panics
    /// When one had ended by itself before.
    pub(crate) fn kill_at_once(&mut self, nodes: &[Node]) -> Instant {
        let at = Instant::now();
        for &node in nodes {
            self.signal(node, Signal::KILL);
        }
        for &node in nodes {
            let mut child = self.processes.remove(&node).expect("signalled just now");
            assert_killed(node, child.wait().expect("a child can be waited for"));
            self.paused.remove(&node);
        }
        at
    }

    /// `kill -9` of all that run.
    pub(crate) fn kill_all(&mut self) {
        let running: Vec<Node> = self.processes.keys().copied().collect();
        self.kill_at_once(&running);
    }

    /// `kill -9`, then a new start at once.
    pub(crate) fn restart(&mut self, node: Node) {
        self.kill(node);
        self.start(node);
    }

    /// Starts the masters that were fenced; they do not come back by themselves.
    ///
    /// # Panics
    /// When a process has ended by itself.
    pub(crate) fn revive(&mut self) {
        for node in self.nodes() {
            if self.exited(node).is_some() {
                self.restart(node);
            }
        }
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self, node: Node) -> Instant {
        self.signal(node, Signal::STOP);
        self.paused.insert(node);
        Instant::now()
    }

    /// SIGSTOP to several, and waits until none of their threads runs any more; a thread that waits in the kernel (for a
    /// disk) stops before it returns. Their state is then what a loss of power would leave.
    pub(crate) fn freeze(&mut self, nodes: &[Node]) {
        for &node in nodes {
            self.pause(node);
        }
        for node in nodes {
            let tasks = format!("/proc/{}/task", self.processes[node].id());
            wait_for(&format!("{node:?} is frozen"), seconds(10), || {
                let mut tasks = std::fs::read_dir(&tasks).ok()?;
                tasks.all(|task| !task.is_ok_and(|task| runs(&task.path()))).then_some(())
            });
        }
    }

    /// SIGCONT. Does nothing to a process that was killed meanwhile.
    pub(crate) fn resume(&mut self, node: Node) {
        self.signal(node, Signal::CONT);
        self.paused.remove(&node);
    }

    /// SIGTERM, and the exit status.
    pub(crate) fn terminate(&mut self, node: Node) -> ExitStatus {
        self.signal(node, Signal::TERM);
        self.wait_for_exit(node, seconds(5))
    }

    /// Waits until a process ends by itself.
    pub(crate) fn wait_for_exit(&mut self, node: Node, within: Duration) -> ExitStatus {
        let status = wait_for(&format!("{node:?} ends"), within, || self.exited(node));
        self.processes.remove(&node);
        self.paused.remove(&node);
        status
    }

    /// The exit status of a process that has ended.
    pub(crate) fn exited(&mut self, node: Node) -> Option<ExitStatus> {
        let child = self.processes.get_mut(&node).unwrap_or_else(|| panic!("{node:?} was not started"));
        child.try_wait().expect("a child can be asked")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, node: Node, signal: Signal) {
        let child = self.processes.get(&node).unwrap_or_else(|| panic!("{node:?} is not running"));
        // Until it is reaped, even a dead child's id is not reused. A child that was reaped, because it was found dead,
        // needs no signal.
        match kill_process(Pid::from_child(child), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => panic!("a child can be signalled: {error}"),
        }
    }

    /// The ids of all processes.
    pub(crate) fn process_ids(&self) -> Vec<u32> {
        self.processes.values().map(Child::id).collect()
    }

    /// The resident memory of a node, in bytes.
    pub(crate) fn resident_bytes(&self, node: Node) -> u64 {
        self.status_bytes(node, "VmRSS:")
    }

    /// The peak of the resident memory since the node's start, or since [`forget_peak`](Self::forget_peak), in bytes.
    pub(crate) fn peak_bytes(&self, node: Node) -> u64 {
        self.status_bytes(node, "VmHWM:")
    }

    /// Resets the peak of a node's memory.
    pub(crate) fn forget_peak(&self, node: Node) {
        let id = self.processes[&node].id();
        std::fs::write(format!("/proc/{id}/clear_refs"), "5")
            .expect("the kernel takes it of our own processes");
    }

    /// How many bytes a node has read so far from files and sockets, whether from disk or from memory.
    pub(crate) fn bytes_read(&self, node: Node) -> u64 {
        let id = self.processes[&node].id();
        let text = std::fs::read_to_string(format!("/proc/{id}/io")).expect("our own process");
        let found = text.lines().find_map(|line| line.strip_prefix("rchar: "));
        found.and_then(|bytes| bytes.parse().ok()).expect("the kernel counts what is read")
    }

    /// Sets or removes a limit on the length of the files that a node writes: `ulimit -f`.
    pub(crate) fn limit_file_length(&self, node: Node, bytes: Option<u64>) {
        let id = rustix::process::Pid::from_child(&self.processes[&node]);
        let limit = rustix::process::Rlimit { current: bytes, maximum: None };
        rustix::process::prlimit(Some(id), rustix::process::Resource::Fsize, limit).expect("our own process");
    }

    fn status_bytes(&self, node: Node, field: &str) -> u64 {
        let id = self.processes[&node].id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel tells");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// Starts a process that is not a member; its standard error goes to a file of the cluster's directory.
    pub(crate) fn start_stranger(&self, mut command: Command, name: &str) -> (Process, PathBuf) {
        let path = self.dir.path().join(format!("{name}.stderr"));
        let errors = File::create(&path).expect("a file for standard error");
        command.env("RUST_LOG", "info").current_dir(self.dir.path()).stdout(Stdio::null()).stderr(errors);
        (Process(command.spawn().expect("the binary is built")), path)
    }

    /// INFO of a master, if it answers.
    pub(crate) fn info(&self, master: Node) -> Option<Info> {
        Info::of(self.address(master), ASK).ok()
    }

    /// The master that serves, with its INFO.
    ///
    /// # Panics
    /// When both say that they serve in the same reign.
    pub(crate) fn primary(&self) -> Option<(Node, Info)> {
        let asked: Vec<(Node, Info)> = MASTERS
            .into_iter()
            .filter(|master| self.processes.contains_key(master) && !self.paused.contains(master))
            .filter_map(|master| Some((master, self.info(master)?)))
            .filter(|(_, info)| info.role() == "primary")
            .collect();
        if let [(_, first), (_, second)] = &asked[..] {
            let same = first.number("epoch") == second.number("epoch");
            assert!(!same, "two primaries of one epoch: {first:?} and {second:?}");
            return None;
        }
        asked.into_iter().next()
    }

    /// Waits for a master that serves.
    pub(crate) fn wait_for_primary(&self, within: Duration) -> (Node, Info) {
        wait_for("one master serves", within, || self.primary())
    }

    /// Waits until this master serves.
    pub(crate) fn wait_until_serves(&self, master: Node, within: Duration) -> Info {
        wait_for(&format!("{master:?} serves"), within, || {
            self.primary().filter(|(node, _)| *node == master).map(|(_, info)| info)
        })
    }

    /// Waits until the serving master counts exactly this many active slaves.
    pub(crate) fn wait_for_active_slaves(&self, count: u64, within: Duration) {
        wait_for(&format!("{count} slaves are active"), within, || {
            self.primary().filter(|(_, info)| info.number("active_slaves") == count)
        });
    }

    /// Waits until one master serves with all slaves active, and the other one is connected to all slaves and has
    /// replayed the whole log; gives the one that serves. Fails at once when a process has ended by itself.
    pub(crate) fn settle(&mut self) -> Node {
        self.settle_within_lag(0)
    }

    /// [`settle`](Self::settle) while clients write: then the standby never quite reaches the end of the log.
    pub(crate) fn settle_under_load(&mut self) -> Node {
        self.settle_within_lag(1000)
    }

    fn settle_within_lag(&mut self, lag_max: u64) -> Node {
        let running = self.processes.len();
        assert_eq!(running, self.nodes().len(), "only a whole cluster comes to rest");
        let slaves = self.setup.slaves as u64;
        let begun = Instant::now();
        loop {
            for node in self.nodes() {
                if let Some(status) = self.exited(node) {
                    panic!("{node:?} ended by itself: {status}");
                }
            }
            let primary = self.primary().filter(|(_, info)| info.number("active_slaves") == slaves);
            let settled = primary.filter(|(node, _)| {
                self.info(node.other()).is_some_and(|standby| {
                    standby.role() == "standby"
                        // A standby that has just started knows neither how much it lags behind nor whom it follows.
                        && standby.get("standby_log") == Some("follows")
                        && standby.number("peer_connected") == 1
                        && standby.number("replay_lag_seq") <= lag_max
                        && standby.number("active_slaves") == slaves
                })
            });
            if let Some((node, _)) = settled {
                return node;
            }
            if begun.elapsed() > SETTLE {
                let infos = MASTERS.map(|master| self.info(master));
                panic!("not at rest after {SETTLE:?} with {slaves} slaves: {infos:#?}");
            }
            std::thread::sleep(super::wait::POLL);
        }
    }

    /// Undoes all faults: resumes paused processes, starts dead ones, and waits until the cluster has settled.
    ///
    /// # Panics
    /// When a process has ended by itself.
    pub(crate) fn heal(&mut self) -> Node {
        for node in self.nodes() {
            if self.paused.contains(&node) {
                self.resume(node);
            }
            let status = if self.processes.contains_key(&node) { self.exited(node) } else { None };
            if let Some(status) = status {
                assert_killed(node, status);
                self.processes.remove(&node);
            }
        }
        self.start_all();
        self.settle()
    }

    /// Kills everything and starts it again.
    pub(crate) fn cold_restart(&mut self) -> Node {
        self.kill_all();
        self.start_all();
        self.settle()
    }

    /// A connection to a master.
    pub(crate) fn connect(&self, master: Node) -> Connection {
        Connection::open(self.address(master), seconds(10)).expect("the master accepts connections")
    }

    /// A connection to the master that serves.
    pub(crate) fn connect_to_primary(&self) -> Connection {
        let (master, _) = self.wait_for_primary(SETTLE);
        self.connect(master)
    }

    /// One request to the master that serves.
    pub(crate) fn ask(&self, request: &[&[u8]]) -> Answer {
        self.connect_to_primary().call(request).expect("the master answers")
    }
}

/// The address of a Unix socket.
pub(crate) fn unix_address(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// Asserts that a dead process died by SIGKILL: the test's, or as a fenced master.
fn assert_killed(node: Node, status: ExitStatus) {
    assert_eq!(status.signal(), Some(9), "{node:?} ended by itself: {status}");
}

/// Whether a thread runs or may run at any moment; false if it is gone.
fn runs(task: &Path) -> bool {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
    // The name in parentheses may hold anything. The state follows it: T is stopped, D waits in the kernel.
    let state = stat.rsplit_once(") ").map_or("", |(_, behind)| behind).chars().next();
    state.is_some_and(|state| !"TtDZX".contains(state))
}

impl TestCluster {
    /// The standard errors, those of non-members included, that report a panic. Else a panic that ends only a
    /// connection or a link would go unnoticed.
    fn panics(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.dir.path()).expect("the cluster's directory");
        let paths = files.map(|file| file.expect("the cluster's directory").path());
        let told = |path: PathBuf| {
            let text = String::from_utf8_lossy(&std::fs::read(&path).ok()?).into_owned();
            let from = text.lines().position(|line| line.contains("panicked at"))?;
            let lines: Vec<&str> = text.lines().skip(from).take(PRINTED_LINES_MAX).collect();
            Some(format!("{}:\n{}\n", path.display(), lines.join("\n")))
        };
        paths.filter(|path| path.extension().is_some_and(|end| end == "stderr")).filter_map(told).collect()
    }

    /// The findings of a nightly run must be kept.
    fn keep_evidence(&mut self) {
        if self.setup.log_directory.is_some() {
            for file in [self.log(), self.lock()] {
                let name = file.file_name().expect("a file has a name");
                // It may not exist yet, or its disk may be gone.
                let _ = std::fs::copy(&file, self.dir.path().join(name));
            }
        }
        self.dir.disable_cleanup(true);
        eprintln!("==== kept: {}", self.dir.path().display());
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            // Fails only if it is dead already.
            let _ = child.kill();
        }
        let mut wrong = Vec::new();
        for (node, child) in &mut self.processes {
            match child.wait() {
                Ok(status) if status.signal() == Some(9) => {}
                ended => wrong.push(format!("{node:?} ended by itself: {ended:?}\n")),
            }
        }
        wrong.extend(self.panics());
        if std::thread::panicking() || !wrong.is_empty() {
            for node in self.nodes() {
                let text = self.stderr(node);
                let lines: Vec<&str> = text.lines().collect();
                let from = lines.len().saturating_sub(PRINTED_LINES_MAX);
                eprintln!("==== {} ({} lines, the last of them):", node.name(), lines.len());
                lines[from..].iter().for_each(|line| eprintln!("{line}"));
            }
            if super::is_nightly() {
                self.keep_evidence();
            }
        }
        assert!(std::thread::panicking() || wrong.is_empty(), "{}", wrong.concat());
    }
}
