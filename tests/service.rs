//! What the manager of services, systemd, is told of real processes: ready only once they do their part, and alive as
//! long as they run. The manager is a socket of the test.

mod common;

use common::cluster::{Node, Setup, TestCluster};
use common::{seconds, wait_for};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything may take that comes by itself.
const LIMIT: Duration = seconds(30);

/// The manager, as its processes see it.
struct Manager(UnixDatagram);

impl Manager {
    fn new(socket: &Path) -> Manager {
        let socket = UnixDatagram::bind(socket).expect("a socket");
        socket.set_read_timeout(Some(LIMIT)).expect("a time limit");
        Manager(socket)
    }

    /// The lines of what it is told next.
    fn hear(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let read = self.0.recv(&mut bytes).expect("something is told");
        String::from_utf8_lossy(&bytes[..read]).lines().map(str::to_owned).collect()
    }

    /// Hears until this is told.
    fn hear_of(&self, line: &str) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let told = self.hear();
            if told.iter().any(|told| told.starts_with(line)) {
                return told;
            }
            assert!(begun.elapsed() < LIMIT, "{line} is not told, but {told:?}");
        }
    }

    /// Forgets what was told so far.
    fn forget(&self) {
        self.0.set_nonblocking(true).expect("a mode");
        while self.0.recv(&mut [0; 4096]).is_ok() {}
        self.0.set_nonblocking(false).expect("a mode");
    }
}

/// A cluster of which nothing runs, with a manager for each of these.
fn managed<const N: usize>(dir: &Path, slaves: usize, nodes: [Node; N]) -> (TestCluster, [Manager; N]) {
    let path = |node: Node| dir.join(node.name());
    let managers = nodes.map(|node| Manager::new(&path(node)));
    let setup = nodes.into_iter().fold(Setup::slaves(slaves), |setup, node| {
        // It wants to hear of them every 300 ms at least.
        setup.node_with_variable(node, "NOTIFY_SOCKET", path(node)).node_with_variable(
            node,
            "WATCHDOG_USEC",
            "300000",
        )
    });
    (setup.prepare(), managers)
}

#[test]
fn a_node_is_ready_once_it_does_its_part_and_says_that_it_lives() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let nodes = [Node::Master, Node::Backup, Node::Slave(0)];
    let (mut cluster, [master, backup, slave]) = managed(dir.path(), 1, nodes);
    // With a new log a master waits for the first slave.
    cluster.start(Node::Master);
    for _ in 0..3 {
        let told = master.hear();
        assert!(told.contains(&"WATCHDOG=1".to_owned()) && !told.contains(&"READY=1".to_owned()), "{told:?}");
        assert!(told.iter().any(|line| line.starts_with("STATUS=down: ")), "{told:?}");
    }
    cluster.start(Node::Slave(0));
    cluster.start(Node::Backup);
    for manager in [&master, &backup, &slave] {
        manager.hear_of("READY=1");
    }
    master.hear_of("STATUS=healthy");

    // A process that does not run says nothing: the watchdog would end it.
    cluster.pause(Node::Backup);
    backup.forget();
    master.hear_of("STATUS=degraded: the standby is ");
    cluster.resume(Node::Backup);
    backup.hear_of("WATCHDOG=1");
    master.hear_of("STATUS=healthy");
}

#[test]
fn each_unit_names_a_program_and_variables_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let units = root.join("packaging/systemd");
    let mut seen = 0;
    for unit in fs::read_dir(units).expect("a directory") {
        let path = unit.expect("a file").path();
        let text = fs::read_to_string(&path).expect("text");
        let value = |key: &str| text.lines().filter_map(|line| line.strip_prefix(key)).collect::<Vec<_>>();
        assert_eq!(value("Type="), ["notify"], "{path:?}");
        let [program] = value("ExecStart=")[..] else { panic!("{path:?}") };
        let binary = match program {
            "/usr/bin/dsm-master" => env!("CARGO_BIN_EXE_dsm-master"),
            "/usr/bin/dsm-backup-master" => env!("CARGO_BIN_EXE_dsm-backup-master"),
            "/usr/bin/dsm-slave" => env!("CARGO_BIN_EXE_dsm-slave"),
            other => panic!("{other}"),
        };
        let help = std::process::Command::new(binary).arg("--help").output().expect("it is built");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for variable in value("Environment=").into_iter().flat_map(|line| line.split(' ')) {
            let (name, _) = variable.split_once('=').expect("a value");
            assert!(help.contains(&format!("[env: {name}=")), "{path:?}: {name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn without_a_manager_nothing_changes() {
    let mut cluster = Setup::slaves(1).beside_others().start();
    wait_for("it serves", LIMIT, || cluster.primary());
    cluster.settle();
}
