//! Users and passwords with real processes: who may do what on both masters, the files that say so, and what is refused.

mod common;

use common::cluster::{binary, command, fails, free_ports, Node, Process, Setup, TestCluster, MASTERS};
use common::resp::{Answer, Connection};
use common::skip::{need_program, skip, Lack};
use common::{seconds, wait_for};
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Anybody may look, as the tests' own probes do.
const LOOKS: &str = "user default on nopass -@all +info +ping\n";

/// A program that is killed if it lasts longer than a minute.
fn program(name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60", name]);
    command
}

fn ask(connection: &mut Connection, words: &str) -> Answer {
    let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    connection.call(&words).expect("an answer")
}

fn error(text: &str) -> Answer {
    Answer::Error(text.to_owned())
}

/// A file that only its owner may read.
fn private(dir: &Path, name: &str, text: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    path
}

/// A cluster whose masters have users.
fn with_users(dir: &TempDir, users: &str) -> (TestCluster, PathBuf) {
    let path = private(dir.path(), "users.acl", format!("{LOOKS}{users}").as_bytes());
    let setup = Setup::slaves(2).masters_with(&["--users-file", path.to_str().expect("text")]);
    (setup.start(), path)
}

fn denied(command: &str) -> Answer {
    error(&format!("NOPERM this user has no permissions to run the '{command}' command"))
}

#[test]
fn each_user_may_do_his_part_on_either_master_and_after_a_failover() {
    let dir = TempDir::new().expect("a directory");
    let users = "user app on >app-pw ~app:* +@read +@write\nuser ops on >ops-pw ~* +@all\n";
    let (mut cluster, _) = with_users(&dir, users);
    let no_key = error("NOPERM this user has no permissions to access one of the keys used as arguments");
    let mut standing = Vec::new();
    for master in MASTERS {
        let mut app = cluster.connect(master);
        assert_eq!(ask(&mut app, "SET app:1 v"), denied("set"), "{master:?}");
        let wrong = error("WRONGPASS invalid username-password pair or user is disabled.");
        assert_eq!(ask(&mut app, "AUTH app ops-pw"), wrong);
        assert_eq!(ask(&mut app, "AUTH app app-pw"), Answer::ok());
        assert_eq!(ask(&mut app, "SET app:1 v"), Answer::ok());
        assert_eq!(ask(&mut app, "GET other"), no_key);
        assert_eq!(ask(&mut app, "FAILOVER"), denied("failover"));
        assert_eq!(ask(&mut app, "REMOVE-SLAVE slave-1"), denied("remove-slave"));
        let info = cluster.info(master).expect("it answers");
        let counts = ["logins_failed", "commands_denied", "keys_denied"].map(|name| info.number(name));
        assert_eq!(counts, [1, 3, 1], "{master:?}");
        standing.push(app);
    }
    cluster.kill(Node::Master);
    let backup = &mut standing[1];
    wait_for("the backup serves", seconds(20), || (ask(backup, "SET app:2 w") == Answer::ok()).then_some(()));
    assert_eq!(ask(backup, "GET app:1"), Answer::bulk("v"));
    assert_eq!(ask(backup, "GET other"), no_key);
    let mut ops = cluster.connect(Node::Backup);
    assert_eq!(ask(&mut ops, "AUTH ops ops-pw"), Answer::ok());
    assert_eq!(ask(&mut ops, "GET app:2"), Answer::bulk("w"));
    assert_eq!(ask(&mut ops, "ACL WHOAMI"), Answer::bulk("ops"));
    for node in cluster.nodes() {
        let told = cluster.stderr(node);
        assert!(!told.contains("app-pw") && !told.contains("ops-pw"), "{told}");
    }
}

#[test]
fn users_are_read_anew_for_connections_that_stand_and_a_wrong_file_changes_nothing() {
    let dir = TempDir::new().expect("a directory");
    let (cluster, path) = with_users(&dir, "user app on >a ~* +@all\n");
    let mut app = cluster.connect(Node::Master);
    assert_eq!(ask(&mut app, "AUTH app a"), Answer::ok());
    assert_eq!(ask(&mut app, "SET k v"), Answer::ok());
    private(
        dir.path(),
        "users.acl",
        b"user default on nopass +info\nuser app on >a ~* +@read +nosuch +acl\n",
    );
    let refused = ask(&mut app, "ACL LOAD");
    let Answer::Error(text) = &refused else { panic!("{refused:?}") };
    let names = [path.to_str().expect("text"), "line 2", "+nosuch", "no change"];
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
    assert_eq!(ask(&mut app, "SET k w"), Answer::ok(), "nothing has changed");
    private(dir.path(), "users.acl", b"user default on nopass +info\nuser app on >b ~* +@read +acl\n");
    assert_eq!(ask(&mut app, "ACL LOAD"), Answer::ok());
    assert_eq!(ask(&mut app, "SET k x"), denied("set"));
    assert_eq!(ask(&mut app, "GET k"), Answer::bulk("w"));
    // Pipelined behind it, a request is judged by the new rules.
    private(dir.path(), "users.acl", b"user default on nopass +info\nuser app off\n");
    app.send(b"ACL LOAD\r\nGET k\r\n").expect("sent");
    assert_eq!(app.answer().expect("an answer"), Answer::ok());
    assert_eq!(app.answer().expect("an answer"), error("NOAUTH Authentication required."));
}

#[test]
fn what_a_standby_forwards_is_judged_once_more_by_the_users_of_the_active_master() {
    let dir = TempDir::new().expect("a directory");
    let active = "user app on >pw ~app:* +@read +set\nuser ops on >pw ~* +@all\n";
    let standby = "user app on >pw ~* +@all\nuser ops on >pw ~* +@all\nuser gone on >pw ~* +@all\n";
    let file = |name: &str, users: &str| private(dir.path(), name, format!("{LOOKS}{users}").as_bytes());
    let (active, standby) = (file("active.acl", active), file("standby.acl", standby));
    let cluster = Setup::slaves(2)
        .node_with_variable(Node::Master, "DSM_USERS_FILE", &active)
        .node_with_variable(Node::Backup, "DSM_USERS_FILE", &standby)
        .start();
    let mut client = cluster.connect(Node::Backup);
    assert_eq!(ask(&mut client, "AUTH app pw"), Answer::ok());
    assert_eq!(ask(&mut client, "SET app:1 v"), Answer::ok());
    assert_eq!(ask(&mut client, "GET app:1"), Answer::bulk("v"));
    let no_key = error("NOPERM this user has no permissions to access one of the keys used as arguments");
    assert_eq!(ask(&mut client, "SET other v"), no_key);
    assert_eq!(ask(&mut client, "MGET app:1 other"), no_key);
    assert_eq!(ask(&mut client, "UNLINK app:1"), denied("del"), "the active one knows it as a DEL");
    assert_eq!(ask(&mut client, "MSET app:1 v"), denied("mset"));
    // Each request is its user's, also if they come at once.
    client
        .send(b"SET other a\r\nAUTH ops pw\r\nSET other b\r\nAUTH app pw\r\nSET other c\r\nGET app:1\r\n")
        .expect("sent");
    let answers = [(); 6].map(|()| client.answer().expect("an answer"));
    let wanted =
        [no_key.clone(), Answer::ok(), Answer::ok(), Answer::ok(), no_key.clone(), Answer::bulk("v")];
    assert_eq!(answers, wanted);
    // A user that the active master does not know, and one who does not say who he is.
    assert_eq!(ask(&mut client, "AUTH gone pw"), Answer::ok());
    assert_eq!(ask(&mut client, "GET app:1"), error("NOAUTH Authentication required."));
    let info = cluster.info(Node::Master).expect("it answers");
    assert_eq!(["commands_denied", "keys_denied"].map(|name| info.number(name)), [2, 4]);
    let mut ops = cluster.connect(Node::Master);
    assert_eq!(ask(&mut ops, "AUTH ops pw"), Answer::ok());
    assert_eq!(ask(&mut ops, "GET other"), Answer::bulk("b"));
    // The active master takes a right away, and it is gone for who is connected to the standby.
    assert_eq!(ask(&mut client, "AUTH app pw"), Answer::ok());
    file("active.acl", "user app on >pw ~app:* +get\nuser ops on >pw ~* +@all\n");
    assert_eq!(ask(&mut ops, "ACL LOAD"), Answer::ok());
    assert_eq!(ask(&mut client, "SET app:1 w"), denied("set"));
    assert_eq!(ask(&mut client, "GET app:1"), Answer::bulk("v"));
}

#[test]
fn a_password_alone_keeps_strangers_out() {
    let dir = TempDir::new().expect("a directory");
    let path = private(dir.path(), "password", b"open sesame\n");
    let setup = Setup::slaves(1).masters_with(&["--password-file", path.to_str().expect("text")]);
    let mut cluster = setup.prepare();
    cluster.start_all();
    let mut client = wait_for("the master listens", seconds(20), || {
        Connection::open(cluster.address(Node::Master), seconds(10)).ok()
    });
    assert_eq!(ask(&mut client, "GET k"), error("NOAUTH Authentication required."));
    assert_eq!(client.call(&[b"AUTH", b"open sesame"]).expect("an answer"), Answer::ok());
    wait_for("it serves", seconds(20), || (ask(&mut client, "SET k v") == Answer::ok()).then_some(()));
    let mut stranger = cluster.connect(Node::Master);
    stranger.send(b"*2\r\n$3\r\nGET\r\n$20000\r\n").expect("sent");
    let long = error("ERR Protocol error: unauthenticated bulk length");
    assert_eq!(stranger.answer().expect("an answer"), long);
    stranger.wait_for_close().expect("it is closed");
    // A native client cannot say who it is.
    let mut native = program(env!("CARGO_BIN_EXE_dsm-client"));
    let masters = MASTERS.map(|master| cluster.address(master).to_string()).join(",");
    native.args(["--masters", &masters, "READ", "k"]).stdin(Stdio::null());
    let output = native.output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("AUTH"), "{told}");
    if let Err(lack) = need_program("redis-cli", &["--version"], "redis-tools") {
        return skip(a_password_alone_keeps_strangers_out, "redis-cli", &lack);
    }
    let port = cluster.address(Node::Master).port().to_string();
    let mut cli = program("redis-cli");
    cli.args(["-p", &port, "-3", "--no-auth-warning", "-a", "open sesame", "GET", "k"]).stdin(Stdio::null());
    let said = cli.output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "v\n", "{said:?}");
}

#[test]
fn files_that_cannot_be_used_end_a_master_with_one_line_and_no_password_in_it() {
    let dir = TempDir::new().expect("a directory");
    let [listen, peer] = free_ports().map(|address| address.to_string());
    let long = vec![b'x'; 5000];
    let cases: [(&str, &[u8], &str); 6] = [
        ("--users-file", b"user a on >secret-word +nosuch\nuser b <secret-word\n", "line 1"),
        ("--users-file", b"user a on \xff\n", "UTF-8"),
        ("--password-file", b"", "empty"),
        ("--password-file", b"\n", "empty"),
        ("--password-file", b"secret-word\nsecond\n", "several lines"),
        ("--password-file", &long, "4096 bytes"),
    ];
    for (at, (flag, text, why)) in cases.into_iter().enumerate() {
        let path = private(dir.path(), &format!("file-{at}"), text);
        let mut master = command(Node::Master);
        let log = dir.path().join("kv_store.log");
        master.args(["--listen", &listen, "--peer", &peer, "--log"]).arg(log).arg(flag).arg(&path);
        let (code, told) = fails(master);
        assert_eq!(code, 1, "{told}");
        let line = told.lines().last().unwrap_or_default();
        assert!(line.contains(why) && line.contains(path.to_str().expect("text")), "{told}");
        assert!(!told.contains("secret-word"), "{told}");
    }
    let mut master = command(Node::Master);
    master
        .args(["--listen", &listen, "--peer", &peer, "--users-file", "/no/such/file"])
        .current_dir(dir.path());
    let (_, told) = fails(master);
    assert!(told.contains("/no/such/file"), "{told}");
}

#[test]
fn a_pipe_or_a_directory_for_a_file_ends_a_master_at_once() {
    let dir = TempDir::new().expect("a directory");
    let pipe = dir.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("a pipe");
    let [listen, peer] = free_ports().map(|address| address.to_string());
    for flag in ["--users-file", "--password-file"] {
        for path in [pipe.as_path(), dir.path()] {
            let mut master = command(Node::Master);
            let log = dir.path().join("kv_store.log");
            master.args(["--listen", &listen, "--peer", &peer, "--log"]).arg(log).arg(flag).arg(path);
            let (code, told) = fails(master);
            assert_eq!(code, 1, "{told}");
            let line = told.lines().last().unwrap_or_default();
            assert!(line.contains("it is not a regular file"), "{flag} {path:?}: {told}");
        }
    }
}

#[test]
fn a_hangup_reads_the_users_anew_under_nohup_too_and_a_wrong_file_changes_nothing() {
    let dir = TempDir::new().expect("a directory");
    let path = private(dir.path(), "users.acl", b"user app on >a ~* +@all\n");
    let [listen, peer] = free_ports();
    // A shell that ignores it starts what does so, too.
    let mut master = Command::new("sh");
    master.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", binary(Node::Master)]);
    master.env("RUST_LOG", "info").args([
        "--listen",
        &listen.to_string(),
        "--peer",
        &peer.to_string(),
        "--new",
        "--log",
    ]);
    master.arg(dir.path().join("kv_store.log")).arg("--users-file").arg(&path);
    let stderr = dir.path().join("stderr");
    master.stdin(Stdio::null()).stderr(fs::File::create(&stderr).expect("a file"));
    let master = Process(master.spawn().expect("it starts"));
    let mut app = wait_for("it listens", seconds(20), || Connection::open(listen, seconds(10)).ok());
    assert_eq!(ask(&mut app, "AUTH app a"), Answer::ok());
    assert_eq!(ask(&mut app, "ACL USERS"), Answer::Array(vec![Answer::bulk("app"), Answer::bulk("default")]));
    let hang_up = |users: &str, told: &str| {
        private(dir.path(), "users.acl", users.as_bytes());
        let pid = rustix::process::Pid::from_child(&master.0);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it runs");
        wait_for(told, seconds(20), || {
            fs::read_to_string(&stderr).expect("its lines").contains(told).then_some(())
        });
    };
    hang_up("user app on >a ~* +nosuch\n", "users stay as they were");
    assert_eq!(ask(&mut app, "ACL WHOAMI"), Answer::bulk("app"));
    assert_eq!(ask(&mut app, "PING"), Answer::Simple("PONG".to_owned()));
    hang_up("user app on >a ~* +acl\n", "users read anew");
    assert_eq!(ask(&mut app, "ACL WHOAMI"), Answer::bulk("app"));
    assert_eq!(ask(&mut app, "PING"), denied("ping"));
}

/// An address of this machine at which others might find it.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

#[test]
fn in_protected_mode_a_master_serves_its_own_machine_alone() {
    let Some(own) = own_address() else {
        let lack = Lack::Refused("this machine has the loopback alone".to_owned());
        return skip(in_protected_mode_a_master_serves_its_own_machine_alone, "", &lack);
    };
    let dir = TempDir::new().expect("a directory");
    for (mode, is_served) in [("yes", false), ("no", true)] {
        let [listen, peer] = free_ports();
        let anywhere = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), listen.port());
        let mut master = command(Node::Master);
        master.args(["--listen", &anywhere.to_string(), "--advertise", &listen.to_string()]);
        master.args(["--peer", &peer.to_string(), "--protected-mode", mode, "--log"]);
        let stderr = dir.path().join(mode);
        master.arg(dir.path().join("kv_store.log")).env("RUST_LOG", "info");
        master.stderr(fs::File::create(&stderr).expect("a file"));
        let _running = Process(master.spawn().expect("it starts"));
        let mut near = wait_for("it listens", seconds(20), || Connection::open(listen, seconds(10)).ok());
        assert_eq!(ask(&mut near, "PING"), Answer::Simple("PONG".to_owned()));
        let from_elsewhere = SocketAddr::new(own, listen.port());
        let mut far = Connection::open(from_elsewhere, seconds(10)).expect("it listens there, too");
        match ask(&mut far, "PING") {
            Answer::Simple(pong) if is_served => assert_eq!(pong, "PONG"),
            Answer::Error(told) if !is_served => {
                assert!(told.starts_with("DENIED dsm is running in protected mode"), "{told}");
            }
            other => panic!("{mode}: {other:?}"),
        }
        let warning = if is_served { "are served whoever they are" } else { "are refused" };
        let warning = format!("clients, slaves and masters of other machines {warning} address={anywhere}");
        wait_for(&warning, seconds(5), || fs::read_to_string(&stderr).ok()?.contains(&warning).then_some(()));
    }
}

#[test]
fn a_file_that_others_may_read_is_told() {
    let dir = TempDir::new().expect("a directory");
    let path = private(dir.path(), "users.acl", LOOKS.as_bytes());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let setup = Setup::slaves(1).beside_others();
    let cluster = setup.masters_with(&["--users-file", path.to_str().expect("text")]).start();
    wait_for("others may read it", seconds(10), || {
        let told = cluster.stderr(Node::Master);
        (told.contains("WARN") && told.contains("chmod 600") && told.contains("users.acl")).then_some(())
    });
}
