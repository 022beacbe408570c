//! Unix sockets with real processes: clients and slaves on the masters' machine that know the masters by paths alone.

mod common;

use common::cluster::{self, unix_address, Node, Setup, TestCluster, MASTERS};
use common::load::Load;
use common::resp::{encoded, Answer};
use common::skip::{need_program, skip, Lack};
use common::{millis, seconds, wait_for};
use dsm::client::{Client, ClientConfig};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const MIB: usize = 1 << 20;

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("the master accepts connections");
    stream.set_read_timeout(Some(seconds(10))).expect("a timeout");
    stream.set_write_timeout(Some(seconds(10))).expect("a timeout");
    stream
}

/// Asks, and reads to the end of the answers.
fn answers(path: &Path, requests: &[&[&[u8]]]) -> String {
    let mut stream = connect(path);
    let requests: Vec<Vec<u8>> = requests.iter().map(|request| encoded(request)).collect();
    stream.write_all(&requests.concat()).expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
    let mut told = String::new();
    stream.read_to_string(&mut told).expect("the answers, and the end");
    told
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// A native client that knows the masters by their sockets.
fn client(cluster: &TestCluster) -> Client {
    let masters = MASTERS.map(|master| unix_address(&cluster.socket(master))).to_vec();
    Client::connect(ClientConfig { masters, ..ClientConfig::default() }).expect("masters and a runtime")
}

/// Standard output of a program that succeeds within a minute.
fn said(words: &[&str]) -> String {
    let mut command = Command::new("timeout");
    let output = command.args(["--signal=KILL", "60"]).args(words).stdin(Stdio::null()).output();
    let output = output.expect("timeout is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn clients_reach_either_master_by_its_socket() {
    let cluster = Setup::slaves(2).by_unix_sockets().beside_others().start();
    for master in MASTERS {
        let path = cluster.socket(master);
        assert_eq!(fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o600);
        let told = answers(&path, &[&[b"SET", b"k", b"v"], &[b"GET", b"k"], &[b"CLIENT", b"INFO"]]);
        let own = format!("addr={}:{} ", unix_address(&path), std::process::id());
        assert!(told.starts_with("+OK\r\n$1\r\nv\r\n") && told.contains(&own), "{told}");
        // The address that others are told is the one over TCP.
        let info = answers(&path, &[&[b"INFO"]]);
        assert!(info.contains(&format!("\r\naddress:{}\r\n", cluster.address(master))), "{info}");
        assert!(!info.contains("unix:"), "{info}");
        // A native client asks the other one next, when this one does not serve.
        let masters = [&path, &cluster.socket(master.other())].map(|path| unix_address(path)).join(",");
        assert_eq!(said(&[env!("CARGO_BIN_EXE_dsm-client"), "--masters", &masters, "READ", "k"]), "v\n");
    }
    for node in cluster.slaves() {
        let registered = format!("registered slave={}", node.name());
        for master in MASTERS {
            let line = format!("{registered} master={}", unix_address(&cluster.socket(master)));
            assert!(cluster.stderr(node).contains(&line), "{}", cluster.stderr(node));
        }
    }
}

#[test]
fn redis_cli_sets_and_gets_over_a_socket() {
    if let Err(lack) = need_program("redis-cli", &["--version"], "redis-tools") {
        return skip(redis_cli_sets_and_gets_over_a_socket, "", &lack);
    }
    let cluster = Setup::slaves(1).by_unix_sockets().beside_others().start();
    for master in MASTERS {
        let path = cluster.socket(master).display().to_string();
        assert_eq!(said(&["redis-cli", "-s", &path, "SET", "k", "a value"]), "OK\n");
        assert_eq!(said(&["redis-cli", "-s", &path, "-3", "GET", "k"]), "a value\n");
    }
}

#[test]
fn redis_py_sets_and_gets_over_a_socket() {
    let probe = Command::new("/usr/bin/python3").args(["-c", "import redis"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        let why = "no python3 has redis-py; Debian has it in python3-redis";
        return skip(redis_py_sets_and_gets_over_a_socket, "", &Lack::Missing(why.into()));
    }
    let cluster = Setup::slaves(1).by_unix_sockets().beside_others().start();
    let script = "import redis, sys\n\
                  r = redis.Redis(unix_socket_path=sys.argv[1])\n\
                  assert r.set('k', 'v')\n\
                  print(r.get('k'), r.client_list()[0]['addr'].startswith('unix:'))\n";
    let path = cluster.socket(Node::Master).display().to_string();
    assert_eq!(said(&["/usr/bin/python3", "-c", script, &path]), "b'v' True\n");
}

#[test]
fn a_socket_goes_with_its_master_and_what_a_killed_one_left_is_replaced() {
    let mut cluster = Setup::slaves(1).by_unix_sockets().masters_with(&["--unix-mode", "660"]).start();
    let path = cluster.socket(Node::Backup);
    cluster.kill(Node::Backup);
    assert!(is_socket(&path), "nobody could remove it");
    cluster.start(Node::Backup);
    cluster.settle();
    assert_eq!(answers(&path, &[&[b"PING"]]), "+PONG\r\n");
    assert_eq!(fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o660);

    // A second master at the same path is refused with one line, and the first one serves on.
    let mut second = cluster::command(Node::Backup);
    second.args(["--listen", "127.0.0.1:0", "--listen", &unix_address(&path), "--log"]);
    second.arg(cluster.dir().join("another.log"));
    let (code, told) = cluster::fails(second);
    assert_eq!(code, 1, "{told}");
    assert!(
        told.contains(&unix_address(&path)) && told.contains("a process listens there already"),
        "{told}"
    );
    assert_eq!(answers(&path, &[&[b"PING"]]), "+PONG\r\n");

    // One that was moved serves on where it is now, and is not removed.
    let moved = cluster.dir().join("moved.sock");
    fs::rename(&path, &moved).expect("the same directory");
    assert_eq!(answers(&moved, &[&[b"PING"]]), "+PONG\r\n");
    assert_eq!(cluster.terminate(Node::Backup).code(), Some(0));
    assert!(is_socket(&moved), "it was moved by somebody who may want it");
    cluster.start(Node::Backup);
    cluster.settle();
    assert_eq!(cluster.terminate(Node::Backup).code(), Some(0));
    assert!(!path.exists(), "removed");
    cluster.start(Node::Backup);
    cluster.settle();
}

#[test]
fn masters_that_die_and_return_keep_slaves_and_clients_that_know_only_their_sockets() {
    let mut cluster = Setup::slaves(3).by_unix_sockets().start();
    let load = Load::start(&cluster, 12, 20);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let native = runtime.block_on(async { client(&cluster) });
    runtime.block_on(native.put("native", "1")).expect("the primary serves");
    let killed = cluster.kill(Node::Master);
    load.wait_for_write_by(Node::Backup, killed, seconds(3));
    let info = cluster.wait_until_serves(Node::Backup, seconds(1));
    assert_eq!(info.number("active_slaves"), 3, "all slaves serve the new primary");
    let read = runtime.block_on(native.get("native")).expect("the backup serves");
    assert_eq!(read.as_deref(), Some(&b"1"[..]));
    load.wait_for_writes(300, seconds(5));

    // From here on nothing may fail: a handover fails no request.
    let restarted = Instant::now();
    cluster.start(Node::Master);
    let back = cluster.wait_until_serves(Node::Master, seconds(20));
    assert!(back.number("epoch") > info.number("epoch"), "a handover begins a new reign");
    runtime.block_on(native.put("native", "2")).expect("the primary serves again");
    load.wait_for_writes(500, seconds(5));
    let failures = load.failures_between(restarted, Instant::now());
    assert!(failures.is_empty(), "a handover fails requests: {failures:?}");
    load.prove(&mut cluster);
}

#[test]
fn a_hung_slave_is_removed_and_used_again_when_it_returns_over_sockets_too() {
    let mut cluster = Setup::slaves(3).by_unix_sockets().start();
    let load = Load::start(&cluster, 12, 20);
    let paused = cluster.pause(Node::Slave(1));
    cluster.wait_for_active_slaves(2, seconds(4));
    println!("a hung slave is removed after {:?}", paused.elapsed());
    load.wait_for_writes(300, seconds(5));
    let failures = load.failures_between(paused, Instant::now());
    assert!(failures.is_empty(), "a substitute completes the writes: {failures:?}");
    cluster.resume(Node::Slave(1));
    cluster.wait_for_active_slaves(3, seconds(5));
    load.wait_for_writes(300, seconds(5));
    // It must serve alone.
    cluster.kill_at_once(&[Node::Slave(0), Node::Slave(2)]);
    cluster.wait_for_active_slaves(1, seconds(5));
    load.wait_for_writes(300, seconds(5));
    load.prove(&mut cluster);
}

#[test]
fn a_client_that_takes_no_answers_from_a_socket_is_cut_and_a_slow_one_is_not() {
    let cluster = Setup::slaves(2).by_unix_sockets().masters_with(&["--write-timeout", "500ms"]).start();
    let path = cluster.socket(Node::Master);
    let value = vec![b'x'; 16 * MIB];
    assert_eq!(cluster.ask(&[b"SET", b"large", &value]), Answer::ok());
    let cut = |count: u64| {
        wait_for(&format!("{count} slow readers are cut"), seconds(5), || {
            let info = cluster.info(Node::Master)?;
            (info.number("slow_readers_cut") == count).then_some(())
        });
    };
    let mut deaf = connect(&path);
    deaf.write_all(&encoded(&[b"GET", b"large"])).expect("sent");
    cut(1);
    drop(deaf);
    let mut slow = connect(&path);
    slow.write_all(&encoded(&[b"GET", b"large"])).expect("sent");
    let (begun, mut taken, mut part) = (Instant::now(), 0, vec![0; MIB]);
    let all = value.len() + "$16777216\r\n\r\n".len();
    while taken < all {
        // 10 MiB a second: what the system holds takes far less than the timeout.
        let read = slow.read(&mut part).expect("nothing is cut");
        assert!(read > 0, "cut after {taken} bytes");
        taken += read;
        std::thread::sleep(millis(100) * read as u32 / MIB as u32);
    }
    assert!(begun.elapsed() > millis(1000), "a second and more than the timeout: {:?}", begun.elapsed());
    cut(1);
}

#[test]
fn clients_that_take_no_answers_from_sockets_use_up_no_open_files() {
    let cluster = Setup::slaves(1).by_unix_sockets().masters_with_open_files(200).start();
    let value = vec![b'x'; MIB];
    assert_eq!(cluster.ask(&[b"SET", b"large", &value]), Answer::ok());
    let asked = encoded(&[b"GET", b"large"]);
    let deaf: Vec<UnixStream> = (0..150)
        .map(|_| {
            let mut stream = connect(&cluster.socket(Node::Master));
            // Those that are too many are told so, and may be gone before they ask.
            let _ = stream.write_all(&asked);
            stream
        })
        .collect();
    // Those that are served get the beginning of a long answer, others a refusal.
    let mut served = 0;
    for mut stream in &deaf {
        let mut begin = [0];
        served += u32::from(stream.read(&mut begin).is_ok() && begin == *b"$");
    }
    drop(deaf);
    let info = wait_for("connections are accepted again", seconds(5), || cluster.info(Node::Master));
    assert!(served >= 50, "{served} were served");
    assert!(info.number("connections_refused") > 0);
    assert_eq!(info.number("accept_errors"), 0, "no file was lacking");
}

#[test]
fn a_master_that_cannot_have_its_socket_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let precious = dir.path().join("precious");
    fs::write(&precious, "precious").expect("a file");
    let refused = |path: &str| {
        let mut master = cluster::command(Node::Master);
        master.args(["--listen", "127.0.0.1:0", "--listen", &format!("unix:{path}"), "--log"]);
        master.arg(dir.path().join("kv_store.log"));
        cluster::fails(master)
    };
    let (code, told) = refused(&precious.display().to_string());
    assert!(code == 1 && told.contains("a file that is no socket is there"), "{code} {told}");
    assert_eq!(fs::read_to_string(&precious).expect("it is still there"), "precious");
    let (code, told) = refused(&dir.path().join("x".repeat(108)).display().to_string());
    assert!(code == 2 && told.contains("--listen") && told.contains("at most 107 bytes"), "{code} {told}");
    let (code, told) = refused(&dir.path().join("none/a.sock").display().to_string());
    assert!(code == 1 && told.contains("No such file or directory"), "{code} {told}");

    // What is opened before the start fails is removed again.
    let path = dir.path().join("a.sock");
    let mut master = cluster::command(Node::Master);
    master.args([
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &unix_address(&path),
        "--log",
        "/no/such/directory/log",
    ]);
    let (code, told) = cluster::fails(master);
    assert_eq!(code, 1, "{told}");
    assert!(!path.exists(), "{told}");
}

/// A slave beside the cluster, which is told one path and one port.
#[test]
fn a_slave_may_know_one_master_by_its_socket_and_one_by_its_port() {
    let mut cluster = Setup::slaves(1).by_unix_sockets().start();
    let masters =
        format!("{},{}", unix_address(&cluster.socket(Node::Master)), cluster.address(Node::Backup));
    let mut slave = cluster::command(Node::Slave(7));
    slave.args(["--masters", &masters, "--id", "both"]);
    let (_slave, _) = cluster.start_stranger(slave, "both");
    let wait_for_two = |cluster: &TestCluster| cluster.wait_for_active_slaves(2, seconds(10));
    wait_for_two(&cluster);
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, seconds(5));
    wait_for_two(&cluster);
    cluster.start(Node::Master);
    cluster.wait_until_serves(Node::Master, seconds(20));
    wait_for_two(&cluster);
}

#[test]
fn the_slaves_of_a_local_cluster_use_sockets_in_its_directory() {
    let data = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("timeout");
    command.args([
        "--signal=KILL",
        "60",
        env!("CARGO_BIN_EXE_dsm-cluster"),
        "--port",
        "0",
        "--backup-port",
        "0",
    ]);
    command
        .arg("--data")
        .arg(data.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut cluster = command.spawn().expect("timeout is installed");
    let typed = "WRITE a 1\nkill primary\nREAD a\nWRITE a 2\nrestart primary\nREAD a\n";
    cluster.stdin.take().expect("piped").write_all(typed.as_bytes()).expect("it reads");
    let output = cluster.wait_with_output().expect("a child can be waited for");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("Value for key a = 1") && told.contains("Value for key a = 2"), "{told}");
    for name in ["primary", "backup"] {
        let socket = data.path().join(format!("{name}.sock"));
        let registered = format!("master={}", unix_address(&socket));
        for number in 1..=3 {
            let path = data.path().join(format!("slave-{number}.out"));
            let said = fs::read_to_string(path).expect("its output");
            assert!(said.contains(&registered), "{said}");
        }
        assert!(!socket.exists(), "it was stopped in order");
    }
}
