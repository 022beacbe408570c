//! The basic RESP commands on a healthy cluster, and how the roles start and stop.

mod common;

use common::cluster::{command, free_ports, Node, Setup, MASTERS};
use common::flags::Refuses::{AnythingButYesAndNo, Nothing, These};
use common::flags::{
    bad_flags_are_named, fails, masters_flags_are_looked_at_first, one_line, Flags, NO_BYTES, NO_DURATION,
    NO_LEVEL, NO_NUMBER, NO_VALUE_MAX, TOO_SHORT,
};
use common::resp::{encoded, Answer, Connection};
use common::{seconds, wait_for};
use std::net::TcpListener;
use std::process::{ExitStatus, Stdio};

/// Runs a role that is expected to end by itself; gives its status and its standard error.
fn fails_with(node: Node, arguments: &[&str]) -> (ExitStatus, String) {
    let mut role = command(node);
    role.args(arguments);
    fails(role)
}

#[test]
fn the_five_commands_answer_as_redis_does() {
    let cluster = Setup::slaves(2).beside_others().start();
    let mut connection = cluster.connect_to_primary();
    let mut ask = |request: &[&[u8]]| connection.call(request).expect("an answer");
    assert_eq!(ask(&[b"PING"]), Answer::Simple("PONG".to_string()));
    assert_eq!(ask(&[b"PING", b"hello"]), Answer::bulk("hello"));
    assert_eq!(ask(&[b"GET", b"k"]), Answer::Null);
    assert_eq!(ask(&[b"SET", b"k", b"v"]), Answer::ok());
    assert_eq!(ask(&[b"GET", b"k"]), Answer::bulk("v"));
    assert_eq!(ask(&[b"set", b"k", b"w"]), Answer::ok());
    assert_eq!(ask(&[b"gEt", b"k"]), Answer::bulk("w"));
    assert_eq!(ask(&[b"DEL", b"k"]), Answer::Integer(1));
    assert_eq!(ask(&[b"DEL", b"k"]), Answer::Integer(0));
    assert_eq!(ask(&[b"GET", b"k"]), Answer::Null);
    assert_eq!(ask(&[b"SET", b"a", b"1"]), Answer::ok());
    assert_eq!(ask(&[b"SET", b"b", b"2"]), Answer::ok());
    assert_eq!(ask(&[b"DEL", b"a", b"b", b"a", b"c"]), Answer::Integer(2));
    assert_eq!(ask(&[b"GET", b"a"]), Answer::Null);
}

#[test]
fn a_value_is_changed_or_deleted_only_if_it_is_what_it_is_compared_with() {
    let cluster = Setup::slaves(2).beside_others().start();
    let ok = Answer::ok;
    for master in MASTERS {
        let mut connection = cluster.connect(master);
        let mut ask = |request: &str| {
            let words: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
            connection.call(&words).expect("an answer")
        };
        for (request, answer) in [
            ("DEL k", Answer::Integer(0)),
            ("SET k a IFEQ b", Answer::Null),
            ("EXISTS k", Answer::Integer(0)),
            ("SET k a IFEQ b GET", Answer::Null),
            ("SET k a IFNE b GET", Answer::Null),
            ("GET k", Answer::bulk("a")),
            ("SET k b IFNE a", Answer::Null),
            ("SET k b IFEQ a EX 100", ok()),
            ("SET k c ifeq b keepttl", ok()),
            ("EXPIRE k 100 NX", Answer::Integer(0)),
            ("SET k d GET IFEQ x", Answer::bulk("c")),
            ("SET k d GET IFEQ c", Answer::bulk("c")),
            ("TTL k", Answer::Integer(-1)),
            ("DELEX k IFEQ x", Answer::Integer(0)),
            ("DELEX k IFNE d", Answer::Integer(0)),
            ("DELIFEQ k x", Answer::Integer(0)),
            ("DELIFEQ k d", Answer::Integer(1)),
            ("DELIFEQ k d", Answer::Integer(0)),
            ("DELEX k IFNE d", Answer::Integer(0)),
            ("SET k e", ok()),
            ("DELEX k IFNE d", Answer::Integer(1)),
            ("SET k f", ok()),
            ("DELEX k IFEQ f", Answer::Integer(1)),
            ("SET k g", ok()),
            ("DELEX k", Answer::Integer(1)),
            ("DELEX k", Answer::Integer(0)),
        ] {
            assert_eq!(ask(request), answer, "{request} at {master:?}");
        }
    }
}

#[test]
fn a_version_is_compared_only_grows_and_is_a_fencing_token() {
    let cluster = Setup::slaves(2).beside_others().start();
    let version_of = |connection: &mut Connection, key: &str, value: Option<&str>| {
        let answer = connection.call(&[b"DSM.GETV", key.as_bytes()]).expect("an answer");
        let Answer::Array(told) = answer else { panic!("{answer:?}") };
        let [held, Answer::Bulk(version)] = &told[..] else { panic!("{told:?}") };
        assert_eq!(*held, value.map_or(Answer::Null, Answer::bulk));
        String::from_utf8(version.to_vec()).expect("digits and a point")
    };
    let mut last: Option<dsm_protocol::ids::Version> = None;
    for master in MASTERS {
        let mut connection = cluster.connect(master);
        let ask = |connection: &mut Connection, request: &str| {
            let words: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
            connection.call(&words).expect("an answer")
        };
        assert_eq!(version_of(&mut connection, "k", None), "0.0");
        assert_eq!(ask(&mut connection, "DSM.SETV k a 1.1"), Answer::Null);
        assert_eq!(ask(&mut connection, "DSM.SETV k a 0.0 EX 100"), Answer::ok());
        assert_eq!(ask(&mut connection, "DSM.SETV k b 0.0 GET"), Answer::bulk("a"));
        let first = version_of(&mut connection, "k", Some("a"));
        assert_eq!(ask(&mut connection, &format!("DSM.SETV k b {first} KEEPTTL")), Answer::ok());
        assert_eq!(ask(&mut connection, "EXPIRE k 100 NX"), Answer::Integer(0));
        assert_eq!(ask(&mut connection, &format!("DSM.SETV k c {first}")), Answer::Null);
        assert_eq!(ask(&mut connection, &format!("DSM.DELV k {first}")), Answer::Integer(0));
        let second = version_of(&mut connection, "k", Some("b"));
        assert_eq!(ask(&mut connection, &format!("DSM.DELV k {second}")), Answer::Integer(1));
        assert_eq!(ask(&mut connection, "SET k b"), Answer::ok());
        let third = version_of(&mut connection, "k", Some("b"));
        for version in [first, second, third] {
            let version = Some(version.parse().expect("a version"));
            assert!(version > last, "{version:?} after {last:?}: it grows after a deletion, too");
            last = version;
        }
        // A key has no version before its write is in the log, and so none inside a transaction.
        assert_eq!(ask(&mut connection, "MULTI"), Answer::ok());
        let refused = ask(&mut connection, "DSM.GETV k");
        assert_eq!(refused.error_word(), Some("ERR"), "{refused:?}");
        assert_eq!(ask(&mut connection, "DISCARD"), Answer::ok());
        assert_eq!(ask(&mut connection, "DEL k"), Answer::Integer(1));
    }
}

#[test]
fn a_bad_request_is_an_error_that_changes_nothing_and_ends_nothing() {
    let cluster = Setup::slaves(2).beside_others().start();
    let mut connection = cluster.connect_to_primary();
    let mut ask = |request: &[&[u8]]| connection.call(request).expect("an answer");
    assert_eq!(ask(&[b"SET", b"k", b"v"]), Answer::ok());
    let bad: &[&[&[u8]]] = &[
        &[b"NOSUCHCOMMAND", b"k"],
        &[b"GET"],
        &[b"GET", b"k", b"l"],
        &[b"SET", b"k"],
        &[b"SET", b"k", b"x", b"NOSUCHOPTION"],
        &[b"DEL"],
    ];
    for request in bad {
        let answer = ask(request);
        assert_eq!(answer.error_word(), Some("ERR"), "{answer:?} to {request:?}");
    }
    let long = vec![b'k'; 64 * 1024 + 1];
    assert_eq!(ask(&[b"SET", &long, b"x"]).error_word(), Some("ERR"), "a key over 64 KiB");
    let longest = vec![b'k'; 64 * 1024];
    assert_eq!(ask(&[b"SET", &longest, b"x"]), Answer::ok());
    assert_eq!(ask(&[b"GET", &longest]), Answer::bulk("x"));
    assert_eq!(ask(&[b"GET", b"k"]), Answer::bulk("v"));
}

#[test]
fn a_stored_not_found_is_a_value() {
    let cluster = Setup::slaves(2).beside_others().start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"NOT_FOUND"]), Answer::ok());
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("NOT_FOUND"));
    assert_eq!(cluster.ask(&[b"GET", b"l"]), Answer::Null);
}

#[test]
fn pipelined_answers_come_in_order_and_see_their_own_writes() {
    let cluster = Setup::slaves(3).beside_others().start();
    let mut connection = cluster.connect_to_primary();
    let mut requests = Vec::new();
    let mut expected = Vec::new();
    for round in 0..500 {
        let key = format!("key-{}", round % 7);
        let value = format!("value-{round}");
        requests.extend(encoded(&[b"SET", key.as_bytes(), value.as_bytes()]));
        expected.push(Answer::ok());
        requests.extend(encoded(&[b"GET", key.as_bytes()]));
        expected.push(Answer::bulk(&value));
        match round % 5 {
            0 => {
                requests.extend(encoded(&[b"PING", value.as_bytes()]));
                expected.push(Answer::bulk(&value));
            }
            1 => {
                requests.extend(encoded(&[b"DEL", key.as_bytes()]));
                expected.push(Answer::Integer(1));
                requests.extend(encoded(&[b"GET", key.as_bytes()]));
                expected.push(Answer::Null);
            }
            2 => {
                requests.extend(encoded(&[b"GET", b"never written"]));
                expected.push(Answer::Null);
            }
            _ => {}
        }
    }
    connection.send(&requests).expect("sent");
    for (place, expected) in expected.into_iter().enumerate() {
        assert_eq!(connection.answer().expect("an answer"), expected, "answer {place}");
    }
}

#[test]
fn a_request_in_single_bytes_is_a_request() {
    let cluster = Setup::slaves(2).beside_others().start();
    let mut connection = cluster.connect_to_primary();
    let mut requests = encoded(&[b"SET", b"k", b"slow\r\nvalue"]);
    requests.extend(encoded(&[b"GET", b"k"]));
    for byte in requests {
        connection.send(&[byte]).expect("sent");
    }
    assert_eq!(connection.answer().expect("an answer"), Answer::ok());
    assert_eq!(connection.answer().expect("an answer"), Answer::bulk("slow\r\nvalue"));
}

#[test]
fn the_standby_forwards_or_names_the_active_master() {
    let cluster = Setup::slaves(2).beside_others().start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    let answer = cluster.connect(Node::Backup).call(&[b"GET", b"k"]).expect("an answer");
    match answer.error_word() {
        None => assert_eq!(answer, Answer::bulk("v")),
        Some(_) => assert_eq!(answer, Answer::Error(format!("STANDBY {}", cluster.address(Node::Master)))),
    }
}

#[test]
fn info_tells_the_state_of_both_masters() {
    let cluster = Setup::slaves(3).beside_others().start();
    let mut connection = cluster.connect_to_primary();
    for number in 0..10 {
        let key = format!("key-{number}");
        assert_eq!(connection.call(&[b"SET", key.as_bytes(), b"v"]).expect("an answer"), Answer::ok());
    }
    assert_eq!(connection.call(&[b"DEL", b"key-0"]).expect("an answer"), Answer::Integer(1));
    let info = cluster.info(Node::Master).expect("INFO");
    assert_eq!(info.role(), "primary");
    assert!(info.number("epoch") >= 1);
    assert_eq!(info.number("active_slaves"), 3);
    assert_eq!(info.slave_ids(), ["slave-0", "slave-1", "slave-2"]);
    assert_eq!(info.number("keys"), 9);
    assert_eq!(info.number("copies"), 18, "ceil(3/2) of each");
    let acked: Vec<u64> =
        info.of_slaves("writes_acked").iter().map(|n| n.parse().expect("a number")).collect();
    assert_eq!(
        (acked.len(), acked.iter().sum::<u64>()),
        (3, 20),
        "ten writes, two slaves each, and no DELETE"
    );
    assert!(info.number("log_seq") >= 11);
    let size = std::fs::metadata(cluster.log()).expect("the log").len();
    assert!((1..=size).contains(&info.number("log_bytes")), "{info:?} of {size}");
    assert_eq!(info.number("replay_lag_seq"), 0);
    let standby = wait_for("the standby has replayed all", seconds(5), || {
        cluster.info(Node::Backup).filter(|standby| standby.number("log_seq") >= info.number("log_seq"))
    });
    assert_eq!(standby.role(), "standby");
    assert_eq!(standby.number("epoch"), info.number("epoch"));
    assert_eq!(standby.number("keys"), 9);
}

#[test]
fn sigterm_stops_every_role_with_exit_code_0() {
    let mut cluster = Setup::slaves(2).beside_others().start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    for node in [Node::Slave(0), Node::Backup, Node::Master, Node::Slave(1)] {
        let status = cluster.terminate(node);
        assert_eq!(status.code(), Some(0), "{node:?}: {status}\n{}", cluster.stderr(node));
    }
    cluster.start_all();
    cluster.settle();
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("v"));
}

#[test]
fn sigterm_of_the_primary_lets_the_backup_serve_at_once() {
    let mut cluster = Setup::slaves(2).start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    assert_eq!(cluster.terminate(Node::Master).code(), Some(0));
    cluster.wait_until_serves(Node::Backup, seconds(2));
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("v"));
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let [listen, peer] = free_ports();
    let _taken = TcpListener::bind(listen).expect("the port is free");
    for master in MASTERS {
        let arguments = ["--listen", &listen.to_string(), "--peer", &peer.to_string()];
        let (_, told) = fails_with(master, &arguments);
        assert!(one_line(&told).contains(&listen.to_string()), "it names the address: {told}");
    }
}

#[test]
fn an_unusable_log_is_one_clear_line() {
    let [listen, peer] = free_ports().map(|address| address.to_string());
    for path in ["/no/such/directory/kv_store.log", "/"] {
        let (_, told) = fails_with(Node::Master, &["--listen", &listen, "--peer", &peer, "--log", path]);
        assert!(one_line(&told).contains(path), "it names the file: {told}");
    }
}

const MASTER: Flags = &[
    ("--listen", These(&["nowhere", "0.0.0.0:1", "unix:a.sock", "unix:/run/a.sock"])),
    ("--tls-cert", Nothing),
    ("--tls-key", Nothing),
    ("--tls-ca", Nothing),
    ("--tls-client-auth", These(&["perhaps"])),
    ("--plain-listen", These(&["nowhere", "unix:/run/a.sock"])),
    ("--secret-file", Nothing),
    ("--client-secret-file", Nothing),
    ("--unix-mode", These(&["rw", "1777"])),
    ("--advertise", These(&["nowhere", "0.0.0.0:1", "unix:/run/a.sock"])),
    ("--peer", These(&["nowhere", "0.0.0.0:1", "unix:/run/a.sock"])),
    ("--members", These(&["nowhere", "0.0.0.0:1", "unix:/run/a.sock", "192.0.2.1:1"])),
    ("--sentinel", These(&["nowhere", "65536", "unix:a.sock"])),
    ("--sentinel-name", These(&["two words"])),
    ("--sentinel-peer", These(&["nowhere", "0.0.0.0:1", "unix:/run/a.sock"])),
    ("--http", These(&["nowhere", "65536", "unix:a.sock"])),
    ("--log", Nothing),
    ("--new", AnythingButYesAndNo),
    ("--users-file", Nothing),
    ("--password-file", Nothing),
    ("--protected-mode", These(&["perhaps"])),
    ("--fsync", These(&["sometimes"])),
    ("--compact-min", These(&["much", "-1"])),
    ("--copies", These(&["0", "65", "some", "-1"])),
    ("--placement", These(&["left"])),
    ("--min-slaves", NO_NUMBER),
    ("--ack-timeout", TOO_SHORT),
    ("--read-timeout", TOO_SHORT),
    ("--request-timeout", TOO_SHORT),
    ("--failover-timeout", These(&["banana", "0s", "299ms"])),
    ("--fence", These(&["gently"])),
    ("--no-failback", AnythingButYesAndNo),
    ("--max-value", NO_VALUE_MAX),
    ("--max-connections", NO_NUMBER),
    ("--max-pipeline", NO_NUMBER),
    ("--max-pipeline-bytes", NO_BYTES),
    ("--max-answer-bytes", NO_BYTES),
    ("--slave-window", NO_BYTES),
    ("--log-read-window", NO_BYTES),
    ("--repair-rate", These(&["fast", "-1"])),
    ("--hedge-reads", These(&["many", "-1", "101"])),
    ("--max-requests", NO_NUMBER),
    ("--max-request-bytes", NO_BYTES),
    ("--max-link-bytes", NO_BYTES),
    ("--write-timeout", TOO_SHORT),
    ("--handshake-timeout", TOO_SHORT),
    ("--idle-timeout", NO_DURATION),
    ("--tcp-keepalive", NO_DURATION),
    ("--log-level", NO_LEVEL),
];

const SLAVE: Flags = &[
    ("--masters", These(&["nowhere", "127.0.0.1:1,", "unix:a.sock"])),
    ("--tls-cert", Nothing),
    ("--tls-key", Nothing),
    ("--tls-ca", Nothing),
    ("--secret-file", Nothing),
    ("--id", These(&["no spaces allowed"])),
    ("--max-memory", NO_BYTES),
    ("--max-value", NO_VALUE_MAX),
    ("--http", These(&["nowhere", "65536", "unix:a.sock"])),
    ("--connect-timeout", TOO_SHORT),
    ("--tcp-keepalive", NO_DURATION),
    ("--log-level", NO_LEVEL),
];

const CLIENT: Flags = &[
    ("--masters", These(&["nowhere", "127.0.0.1:1,", "unix:a.sock"])),
    ("--tls-cert", Nothing),
    ("--tls-key", Nothing),
    ("--tls-ca", Nothing),
    ("--client-secret-file", Nothing),
    ("--request-timeout", TOO_SHORT),
    ("--connect-timeout", TOO_SHORT),
    ("--max-value", NO_VALUE_MAX),
    ("--prompt", AnythingButYesAndNo),
    ("--log-level", NO_LEVEL),
];

const CLUSTER: Flags = &[
    ("--slaves", These(&["0", "65", "several"])),
    ("--data", Nothing),
    ("--port", These(&["65536", "http", "12346"])),
    ("--backup-port", These(&["65536", "http", "12345"])),
    ("--sentinel-ports", These(&["26379", "26379,x", "0,26380", "26379,26379", "1,2,3"])),
    ("--http-port", These(&["0", "65536", "http", "12346", "65533"])),
    ("--fsync", These(&["sometimes"])),
    ("--tls-cert", Nothing),
    ("--tls-key", Nothing),
    ("--tls-ca", Nothing),
    ("--secret-file", Nothing),
    ("--client-secret-file", Nothing),
    ("--request-timeout", TOO_SHORT),
    ("--start-timeout", TOO_SHORT),
    ("--prompt", AnythingButYesAndNo),
    ("--log-level", NO_LEVEL),
];

const LOG: Flags = &[("--max-value", NO_VALUE_MAX), ("--crash", These(&["loud"]))];

#[test]
fn a_bad_flag_is_named_in_one_line() {
    let programs: [(&str, &[&str], Flags); 6] = [
        (env!("CARGO_BIN_EXE_dsm-master"), &[], MASTER),
        (env!("CARGO_BIN_EXE_dsm-backup-master"), &[], MASTER),
        (env!("CARGO_BIN_EXE_dsm-slave"), &[], SLAVE),
        (env!("CARGO_BIN_EXE_dsm-client"), &["STATUS"], CLIENT),
        (env!("CARGO_BIN_EXE_dsm-cluster"), &[], CLUSTER),
        (env!("CARGO_BIN_EXE_dsm-log"), &["check", "kv_store.log"], LOG),
    ];
    for (program, words, flags) in programs {
        bad_flags_are_named(program, words, flags);
    }
    masters_flags_are_looked_at_first(env!("CARGO_BIN_EXE_dsm-cluster"));
}

#[test]
fn a_second_pair_of_masters_on_the_same_log_never_serves() {
    let cluster = Setup::slaves(1).start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    let [listen, peer] = free_ports();
    let mut stranger = command(Node::Master)
        .args(["--listen", &listen.to_string(), "--peer", &peer.to_string(), "--log"])
        .arg(cluster.log())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary is built");
    let epoch = cluster.info(Node::Master).map(|info| info.number("epoch"));
    common::stays("the stranger does not serve", seconds(2), || {
        let answer = Connection::open(listen, seconds(1)).and_then(|mut c| c.call(&[b"SET", b"k", b"w"]));
        match answer {
            Ok(Answer::Error(_)) | Err(_) => Ok(()),
            // Forwarded to the only primary, which is allowed.
            Ok(_) if cluster.info(Node::Master).map(|info| info.number("epoch")) == epoch => Ok(()),
            Ok(other) => Err(other),
        }
    });
    stranger.kill().expect("a child can be killed");
    stranger.wait().expect("a child can be waited for");
    assert_eq!(cluster.info(Node::Master).map(|info| info.number("epoch")), epoch);
}
