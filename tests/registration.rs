//! Who may join a cluster, and who is refused: slaves with a taken name, slaves of other clusters, clients that pretend
//! to be slaves or masters, a third master, masters with another log, unusable logs.

mod common;

use common::cluster::{command, fails, free_ports, Node, Process, Setup, TestCluster, MASTERS};
use common::native::{self, Native};
use common::resp::{Answer, Connection};
use common::skip::{need_program, skip, Lack};
use common::{millis, nobody_notices, seconds, wait_for};
use dsm_protocol::command::Command as StoreCommand;
use dsm_protocol::ids::{ClusterId, Reign, ReignId, RequestId, Version};
use dsm_protocol::message::{Control, Message, Request};
use nix::sched::{unshare, CloneFlags};
use rustix::process::{Pid, Signal};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn slave(id: &str, masters: &[SocketAddr]) -> Command {
    let mut command = command(Node::Slave(0));
    let masters: Vec<String> = masters.iter().map(SocketAddr::to_string).collect();
    command.args(["--id", id, "--masters", &masters.join(",")]);
    command
}

fn master(node: Node, [listen, peer]: [SocketAddr; 2], log: &Path) -> Command {
    let mut command = command(node);
    command.args(["--new", "--listen", &listen.to_string(), "--peer", &peer.to_string(), "--log"]).arg(log);
    command
}

fn wait_until_said(file: &Path, word: &str) {
    wait_until_said_within(file, word, seconds(5));
}

fn wait_until_said_within(file: &Path, word: &str, limit: std::time::Duration) {
    wait_for(&format!("{word:?} is in {}", file.display()), limit, || {
        std::fs::read_to_string(file).ok().filter(|text| text.contains(word))
    });
}

/// A master of another pair never serves, and the reign of the cluster goes on.
fn never_serves(cluster: &TestCluster, address: SocketAddr) {
    let epoch = cluster.info(Node::Master).expect("INFO").number("epoch");
    wait_for("it listens", seconds(5), || Connection::open(address, seconds(1)).ok());
    common::stays("it does not serve", millis(1500), || {
        let role = common::resp::Info::of(address, seconds(1)).map(|info| info.role().to_string());
        if role.as_deref().is_ok_and(|role| role == "primary") {
            return Err(role);
        }
        Ok(())
    });
    assert_eq!(cluster.info(Node::Master).expect("INFO").number("epoch"), epoch);
}

#[test]
fn a_slave_with_a_used_name_is_refused_as_long_as_the_first_lives() {
    let mut cluster = Setup::slaves(3).start();
    let load = common::load::Load::start(&cluster, 8, 20);
    let (_process, said) = cluster.start_stranger(slave("slave-1", &cluster.addresses()), "stranger");
    wait_until_said(&said, "slave named slave-1 is registered and answers");
    let text = std::fs::read_to_string(&said).expect("text");
    assert!(text.lines().count() < 20, "it does not repeat itself:\n{text}");
    load.wait_for_writes(200, seconds(5));
    assert_eq!(load.failures(), Vec::<String>::new());
    assert_eq!(cluster.info(Node::Master).expect("INFO").slave_ids(), ["slave-0", "slave-1", "slave-2"]);
    assert_eq!(cluster.info(Node::Master).expect("INFO").number("slaves_removed"), 0);
    // Once the first slave is gone, the second one gets the name.
    cluster.kill(Node::Slave(1));
    cluster.wait_for_active_slaves(3, seconds(5));
    load.wait_for_writes(200, seconds(5));
    drop(_process);
    cluster.start(Node::Slave(1));
    cluster.settle_under_load();
    load.prove(&mut cluster);
}

#[test]
fn a_slave_with_the_name_of_one_that_hangs_takes_its_place() {
    let mut cluster = Setup::slaves(2).start();
    cluster.pause(Node::Slave(1));
    let (_process, said) = cluster.start_stranger(slave("slave-1", &cluster.addresses()), "stranger");
    // It is active and answers reads and writes: two copies of a key need it.
    wait_until_said(&said, "slave");
    wait_for("the stranger is active", seconds(5), || {
        let info = cluster.info(Node::Master)?;
        (info.number("slaves_removed") >= 1 && info.number("active_slaves") == 2).then_some(())
    });
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    assert_eq!(cluster.info(Node::Master).expect("INFO").slave_ids(), ["slave-0", "slave-1"]);
    // The one that wakes up now is the second.
    cluster.resume(Node::Slave(1));
    wait_until_said(&cluster.dir().join("slave-1.stderr"), "registered and answers");
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("v"));
}

#[test]
fn a_slave_of_another_cluster_is_refused_by_name() {
    nobody_notices(&[], |cluster, _| {
        let ours = ClusterId(
            u64::from_str_radix(
                cluster.info(Node::Master).expect("INFO").get("cluster_id").expect("an id"),
                16,
            )
            .expect("hexadecimal"),
        );
        let other = ClusterId(ours.0 ^ 1);
        for master in MASTERS {
            let mut link = Native::open(cluster.address(master), seconds(5));
            link.say_hello(Some(other), native::slave("foreign")).expect("sent");
            let told = link.welcome().expect_err("it is refused");
            assert!(told.contains(&other.to_string()) && told.contains(&ours.to_string()), "{told}");
            link.end();
        }
    });
}

#[test]
fn a_slave_that_is_told_of_two_clusters_belongs_to_one() {
    let first = Setup::slaves(1).beside_others().start();
    let second = Setup::slaves(1).beside_others().start();
    let both = [first.address(Node::Master), second.address(Node::Master)];
    let (_process, said) = first.start_stranger(slave("torn", &both), "torn");
    wait_until_said(&said, "refused by the master");
    let text = std::fs::read_to_string(&said).expect("text");
    assert!(text.contains("belongs to cluster"), "{text}");
    let counts = [&first, &second].map(|cluster| {
        wait_for("it settles", seconds(5), || cluster.info(Node::Master)).number("active_slaves")
    });
    assert_eq!(counts.iter().sum::<u64>(), 3, "active in one of them: {counts:?}");
}

#[test]
fn a_client_that_registers_as_a_slave_and_is_none_is_removed() {
    nobody_notices(&[], |cluster, load| {
        let address = cluster.address(Node::Master);
        let enlist = |name: &str| {
            let mut link = Native::open(address, seconds(5));
            link.say_hello(None, native::slave(name)).expect("sent");
            link.welcome().expect("it looks like a slave");
            let reign = loop {
                if let Message::Control(Control::Announce { reign, .. }) =
                    link.message().expect("an announcement")
                {
                    break reign;
                }
            };
            let enlisted = Control::Enlisted { reign, seen: None, room_bytes: u64::MAX };
            link.send(&native::encoded(&Message::Control(enlisted))).expect("sent");
            link
        };
        // One that sends requests of clients, one that acknowledges what it was never sent, one that sends a flood.
        let request = Request { id: RequestId(1), stream: 0, generation: 0, command: StoreCommand::KeyCount };
        let nonsense = [
            Message::Request(request),
            Message::Ack { through: u64::MAX, room_bytes: 0 },
            Message::Write {
                version: Version::new(9, 9),
                reign: ReignId(9),
                key: "k".into(),
                value: vec![0; 8 << 20].into(),
            },
        ];
        for (number, message) in nonsense.iter().enumerate() {
            let mut link = enlist(&format!("pretender-{number}"));
            link.send(&native::encoded(message)).expect("sent");
            link.end();
        }
        // One that never enlists, one that enlists in a reign that never existed: they do not count.
        let mut idle = Native::open(address, seconds(5));
        idle.say_hello(None, native::slave("idle")).expect("sent");
        let mut future = Native::open(address, seconds(5));
        future.say_hello(None, native::slave("future")).expect("sent");
        let enlisted = Control::Enlisted { reign: Reign::new(u64::MAX, 1), seen: None, room_bytes: u64::MAX };
        future.send(&native::encoded(&Message::Control(enlisted))).expect("sent");
        // A silent one gets writes, and is removed when it does not acknowledge them.
        let mut silent = enlist("silent");
        silent.end();
        load.wait_for_writes(100, seconds(5));
        cluster.wait_for_active_slaves(3, seconds(3));
        for line in cluster.stderr(Node::Master).lines() {
            assert!(line.len() < 1000, "a line of {} bytes: {line:.200}", line.len());
        }
    });
}

#[test]
fn a_second_master_on_a_port_in_use_is_one_clear_line() {
    nobody_notices(&[], |cluster, _| {
        let [primary, backup] = cluster.addresses();
        for (node, addresses) in [(Node::Master, [primary, backup]), (Node::Backup, [backup, primary])] {
            let mut again = master(node, addresses, &cluster.log());
            again.env("RUST_LOG", "error");
            let (_, told) = fails(again);
            assert_eq!(told.lines().count(), 1, "{told}");
            assert!(told.contains(&addresses[0].to_string()), "it names the address: {told}");
        }
    });
}

#[test]
fn further_masters_on_other_ports_never_serve() {
    nobody_notices(&[], |cluster, load| {
        let [first, second] = free_ports();
        let [primary, backup] = cluster.addresses();
        // Masters of another pair, and one that claims to be the other master of this pair.
        let a =
            cluster.start_stranger(master(Node::Master, [first, backup], &cluster.log()), "further-primary");
        let b =
            cluster.start_stranger(master(Node::Backup, [second, primary], &cluster.log()), "further-backup");
        never_serves(cluster, first);
        never_serves(cluster, second);
        load.wait_for_writes(200, seconds(5));
        drop((a, b));
    });
}

#[test]
fn of_two_of_a_kind_started_at_once_one_serves() {
    for node in MASTERS {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("kv_store.log");
        let addresses = free_ports();
        let turned = [addresses[1], addresses[0]];
        let mut two: Vec<Process> = [addresses, turned]
            .map(|addresses| {
                let mut command = master(node, addresses, &log);
                command.env("RUST_LOG", "error").current_dir(dir.path());
                Process(command.spawn().expect("the binary is built"))
            })
            .into();
        let roles = || {
            addresses.map(|address| {
                common::resp::Info::of(address, seconds(1))
                    .map(|info| info.role().to_string())
                    .unwrap_or_default()
            })
        };
        wait_for("one serves, the other stands by", seconds(5), || {
            let mut roles = roles();
            roles.sort();
            (roles == ["primary", "standby"]).then_some(())
        });
        common::stays("only one serves", millis(500), || {
            let roles = roles();
            if roles.iter().filter(|role| *role == "primary").count() > 1 {
                Err(roles)
            } else {
                Ok(())
            }
        });
        for process in &mut two {
            assert!(process.0.try_wait().expect("a child can be asked").is_none(), "both live");
        }
    }
}

#[test]
fn masters_with_different_logs_say_so_and_the_cluster_goes_on() {
    nobody_notices(&[], |cluster, load| {
        let [listen, _] = free_ports();
        let other = cluster.dir().join("other.log");
        let stranger = master(Node::Backup, [listen, cluster.address(Node::Master)], &other);
        let (_process, said) = cluster.start_stranger(stranger, "stranger");
        wait_until_said(&said, "both must name the same file with --log");
        load.wait_for_writes(200, seconds(5));
        assert!(cluster.stderr(Node::Master).contains("uses another log"));
    });
}

#[test]
fn a_deleted_lock_file_makes_no_second_primary() {
    let mut cluster = Setup::slaves(2).start();
    let load = common::load::Load::start(&cluster, 8, 20);
    let epoch = cluster.info(Node::Master).expect("INFO").number("epoch");
    let mut lock = cluster.log().into_os_string();
    lock.push(".lock");
    std::fs::remove_file(&lock).expect("the lock file is there");
    // A new standby sees another lock file, which is free; the log itself is still locked.
    cluster.restart(Node::Backup);
    wait_until_said(&cluster.dir().join("backup.stderr"), "was the lock file deleted?");
    common::stays("the backup does not serve", seconds(1), || match cluster.info(Node::Backup) {
        Some(info) if info.role() == "primary" => Err(info),
        _ => Ok(()),
    });
    load.wait_for_writes(200, seconds(5));
    assert_eq!(load.failures(), Vec::<String>::new());
    assert_eq!(cluster.info(Node::Master).expect("INFO").number("epoch"), epoch);
    // The log is free as soon as the primary is gone.
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, seconds(5));
    load.prove(&mut cluster);
}

#[test]
fn a_slave_that_is_refused_again_and_again_is_logged_once() {
    let cluster = Setup::slaves(2).beside_others().start();
    let mut stranger = slave("slave-0", &cluster.addresses());
    stranger.args(["--connect-timeout", "1s"]);
    let (_process, said) = cluster.start_stranger(stranger, "stranger");
    for master in MASTERS {
        wait_for("it has asked four times", seconds(20), || {
            (cluster.info(master)?.number("slaves_refused") >= 4).then_some(())
        });
        let told = cluster.stderr(master);
        assert_eq!(told.matches("slave refused slave=slave-0").count(), 1, "{told}");
    }
    let told = std::fs::read_to_string(said).expect("its standard error");
    assert_eq!(told.matches("refused by the master").count(), 2, "once for each master: {told}");
}

#[test]
fn a_log_that_cannot_be_is_one_clear_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let directory = dir.path().join("directory.log");
    std::fs::create_dir(&directory).expect("a directory");
    // In a directory where not even root may create a file.
    let read_only = Path::new("/proc/self");
    let logs = [
        dir.path().join("missing/kv_store.log"),
        file.join("kv_store.log"),
        directory,
        read_only.join("kv_store.log"),
    ];
    for log in logs {
        for node in MASTERS {
            let mut command = master(node, free_ports(), &log);
            command.env("RUST_LOG", "error").current_dir(dir.path());
            let (_, told) = fails(command);
            assert_eq!(told.lines().count(), 1, "{told}");
            assert!(told.contains(&log.display().to_string()), "it names the file: {told}");
        }
    }
}

#[test]
fn a_read_only_log_directory_is_one_clear_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).expect("a directory");
    let mut permissions = std::fs::metadata(&locked).expect("it is there").permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&locked, permissions).expect("its owner may");
    let log = locked.join("kv_store.log");
    let mut command = master(Node::Master, free_ports(), &log);
    command.env("RUST_LOG", "error").current_dir(dir.path());
    if rustix::process::geteuid().is_root() {
        // Root may write everywhere.
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), everybody).expect("its owner may");
        // The folder of the binaries may be out of anybody else's reach.
        let copy = dir.path().join("dsm-master");
        std::fs::copy(env!("CARGO_BIN_EXE_dsm-master"), &copy).expect("a binary can be copied");
        let mut as_nobody = std::process::Command::new(copy);
        as_nobody.args(command.get_args()).env("RUST_LOG", "error").current_dir(dir.path());
        as_nobody.uid(65534).gid(65534);
        command = as_nobody;
    }
    let (_, told) = fails(command);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains(&log.display().to_string()), "it names the file: {told}");
}

#[test]
fn a_new_log_is_accessible_only_to_its_owner_and_an_old_one_that_others_may_read_is_reported() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("kv_store.log");
    let said = directory.path().join("said");
    let start = || {
        let mut command = master(Node::Master, free_ports(), &log);
        let process =
            Process(command.stderr(std::fs::File::create(&said).expect("a file")).spawn().expect("built"));
        wait_until_said(&said, "serving epoch=");
        drop(process);
        std::fs::read_to_string(&said).expect("text")
    };
    assert!(!start().contains("may read the log"));
    for file in [log.clone(), directory.path().join("kv_store.log.lock")] {
        let mode = std::fs::metadata(&file).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o640)).expect("ours");
    let told = start();
    assert_eq!(told.matches("others than its owner may read the log").count(), 1, "{told}");
    assert!(told.contains("mode=640"), "{told}");
}

#[test]
fn a_dead_holders_lock_on_the_log_is_logged_only_if_it_lasts() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("kv_store.log");
    let said = directory.path().join("said");
    for (held, is_strange) in [(millis(250), false), (millis(1500), true)] {
        // The kernel releases the locks of a dead process one after another.
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a file");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).expect("ours");
        let mut command = master(Node::Master, free_ports(), &log);
        let process =
            Process(command.stderr(std::fs::File::create(&said).expect("a file")).spawn().expect("built"));
        wait_until_said(&said, "lock won");
        std::thread::sleep(held);
        drop(file);
        wait_until_said(&said, "serving epoch=");
        drop(process);
        let told = std::fs::read_to_string(&said).expect("text");
        assert_eq!(told.contains("was the lock file deleted"), is_strange, "{held:?}: {told}");
    }
}

#[test]
fn a_hanging_holder_in_another_pid_namespace_is_named_as_such() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("kv_store.log");
    let ports = free_ports();
    // Each is process 1 of its own name space.
    let start = |node: Node, ports: [SocketAddr; 2], said: &Path| {
        let errors = std::fs::File::create(said).expect("a file");
        let mut command = Command::new(common::cluster::binary(node));
        command
            .args(["--new", "--listen", &ports[0].to_string(), "--peer", &ports[1].to_string(), "--log"])
            .arg(&log);
        command.stdin(Stdio::null()).stderr(errors);
        std::thread::scope(|scope| {
            let spawn = || match unshare(CloneFlags::CLONE_NEWPID) {
                Ok(()) => Ok(Process(command.spawn().expect("the binary is built"))),
                Err(error) => Err(Lack::Refused(format!("unshare of pids: {error}"))),
            };
            scope.spawn(spawn).join().expect("no panic")
        })
    };
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let primary = match start(Node::Master, ports, &first) {
        Ok(primary) => primary,
        Err(why) => return skip(a_hanging_holder_in_another_pid_namespace_is_named_as_such, "", &why),
    };
    wait_until_said(&first, "serving epoch=1");
    let [listen, peer] = ports;
    let _backup = start(Node::Backup, [peer, listen], &second).expect("as before");
    wait_until_said(&second, "standby has replayed the log");
    rustix::process::kill_process(Pid::from_child(&primary.0), Signal::STOP).expect("it runs");
    wait_until_said(&second, "is not fenced: the holder is in another pid namespace: kill it by hand");
    drop(primary);
    wait_until_said(&second, "serving epoch=2");
}

/// A master for which `strace` makes system calls fail, with its standard error.
fn refused(injections: &[&str], directory: &Path) -> Result<(Process, [SocketAddr; 2], PathBuf), Lack> {
    need_program("strace", &["-V"], "strace")?;
    let (ports, said) = (free_ports(), directory.join("said"));
    let mut command = Command::new("strace");
    // The tracer is a grandchild, so the process that is started here becomes the master.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null"]);
    for injection in injections {
        command.args(["-e", &format!("inject={injection}")]);
    }
    command.arg(common::cluster::binary(Node::Master));
    command.args(["--new", "--listen", &ports[0].to_string(), "--peer", &ports[1].to_string(), "--log"]);
    command.arg(directory.join("kv_store.log")).stdin(Stdio::null());
    let process =
        command.stderr(std::fs::File::create(&said).expect("a file")).spawn().expect("strace is there");
    let process = Process(process);
    // Where tracing is forbidden, strace says so and ends.
    let begun = wait_for("it says something", seconds(20), || {
        std::fs::read_to_string(&said).ok().filter(|text| text.contains('\n'))
    });
    match begun.contains("ptrace") {
        true => Err(Lack::Refused(begun)),
        false => Ok((process, ports, said)),
    }
}

#[test]
fn a_temporary_refusal_by_the_system_ends_no_process_and_is_logged_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let injections = [
        // The first threads; each thread's first locks; and two calls that are optional.
        "clone,clone3:error=EAGAIN:when=1..6",
        "flock:error=ENOLCK:when=1..2",
        "fallocate:error=EOPNOTSUPP",
        "inotify_init1:error=EMFILE",
    ];
    let (process, [address, peer], said) = match refused(&injections, directory.path()) {
        Ok(started) => started,
        Err(why) => {
            return skip(a_temporary_refusal_by_the_system_ends_no_process_and_is_logged_once, "", &why)
        }
    };
    wait_until_said_within(&said, "serving epoch=1", seconds(20));
    let (_slave, told) = {
        let told = directory.path().join("slave");
        let errors = std::fs::File::create(&told).expect("a file");
        let mut command = slave("slave-0", &[address, peer]);
        (Process(command.stderr(errors).spawn().expect("the binary is built")), told)
    };
    wait_until_said(&told, "enlisted");
    let mut client = Connection::open(address, seconds(5)).expect("it serves");
    assert_eq!(client.call(&[b"SET", b"k", b"v"]).expect("an answer"), Answer::ok());
    drop(process);
    let said = std::fs::read_to_string(&said).expect("text");
    for told in [
        "what=\"a file and its thread\" error=Resource temporarily unavailable",
        "what=\"the log's lock\" error=No locks available",
        "what=\"the lock\" error=No locks available",
        "no file notice",
    ] {
        assert_eq!(said.matches(told).count(), 1, "{told}: {said}");
    }
}

#[test]
fn a_file_system_without_locks_is_reported_at_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    match refused(&["flock:error=EOPNOTSUPP"], directory.path()) {
        Ok((mut process, _, said)) => {
            assert_eq!(process.0.wait().expect("our child").code(), Some(1));
            let told = std::fs::read_to_string(&said).expect("text");
            assert!(told.contains("takes no locks") && told.contains("put the log on a local one"), "{told}");
            let left: Vec<_> = std::fs::read_dir(directory.path()).expect("ours").flatten().collect();
            assert!(
                !left.iter().any(|file| file.file_name().to_string_lossy().contains(".try-")),
                "{left:?}"
            );
        }
        Err(why) => skip(a_file_system_without_locks_is_reported_at_the_start, "", &why),
    }
}
