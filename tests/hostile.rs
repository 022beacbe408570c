//! Peers that speak nonsense, stop in the middle, want too much or never listen: they are cut off or told so, and
//! everybody else goes on as if they were not there.

mod common;

use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::load::Load;
use common::resp::{encoded, Answer, Connection};
use common::{millis, seconds};
use rand::RngExt as _;
use std::time::Instant;

/// The first bytes of a native link: `docs/FORMATS.md`.
const PREFACE: [u8; 6] = [0xd5, b'D', b'S', b'M', 1, 0];

fn open(cluster: &TestCluster, master: Node) -> Connection {
    Connection::open(cluster.address(master), seconds(5)).expect("the master accepts connections")
}

/// Every attack is made while clients work, who must not notice.
fn nobody_notices(attack: impl FnOnce(&TestCluster, &Load)) {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 8, 20);
    let epoch = |cluster: &TestCluster| MASTERS.map(|m| cluster.info(m).map(|info| info.number("epoch")));
    let before = epoch(&cluster);
    let begun = Instant::now();
    attack(&cluster, &load);
    load.wait_for_writes(200, seconds(5));
    assert_eq!(load.failed(), 0, "a client noticed: {:?}", load.failures_between(begun, Instant::now()));
    assert_eq!(epoch(&cluster), before, "no master was replaced");
    cluster.wait_for_active_slaves(3, millis(500));
    load.prove(&mut cluster);
}

#[test]
fn garbage_hurts_nobody() {
    nobody_notices(|cluster, _| {
        let mut random = rand::rng();
        for round in 0..150 {
            let mut garbage: Vec<u8> = (0..random.random_range(1..2000)).map(|_| random.random()).collect();
            match round % 4 {
                0 => garbage.splice(0..0, PREFACE).for_each(drop),
                1 => garbage.splice(0..0, *b"*3\r\n$3\r\nSET\r\n").for_each(drop),
                _ => {}
            }
            for master in MASTERS {
                // It may close before it has heard all.
                let _ = open(cluster, master).send(&garbage);
            }
        }
    });
}

#[test]
fn a_protocol_error_is_told_and_ends_the_connection() {
    let cluster = Setup::slaves(2).beside_others().start();
    for bad in [
        "*1\r\n!4\r\nPING\r\n",
        "*-5\r\n$1\r\nx\r\n*x\r\n",
        "*99999999999\r\n",
        "*1\r\n$99999999999\r\n",
        "*1\r\n$-7\r\n",
    ] {
        let mut connection = open(&cluster, Node::Master);
        connection.send(bad.as_bytes()).expect("sent");
        // A told error is allowed to come first; what counts is that it ends.
        connection.wait_for_close().unwrap_or_else(|error| panic!("still open after {bad:?}: {error}"));
    }
    assert_eq!(cluster.ask(&[b"PING"]), Answer::Simple("PONG".to_string()));
}

#[test]
fn a_request_of_a_browser_closes_the_connection() {
    let cluster = Setup::slaves(2).beside_others().start();
    let smuggled = "SET smuggled 1\r\n*3\r\n$3\r\nSET\r\n$8\r\nsmuggled\r\n$1\r\n1\r\n";
    for first in ["POST / HTTP/1.1\r\n", "Host: localhost\r\n", "post / HTTP/1.1\r\n"] {
        for master in MASTERS {
            let mut connection = open(&cluster, master);
            let _ = connection.send(format!("{first}Host: localhost\r\n\r\n{smuggled}").as_bytes());
            connection.wait_for_close().unwrap_or_else(|error| panic!("still open after {first:?}: {error}"));
        }
    }
    assert_eq!(cluster.ask(&[b"GET", b"smuggled"]), Answer::Null);
}

#[test]
fn half_requests_are_never_executed_and_hold_nothing_up() {
    nobody_notices(|cluster, load| {
        let whole = encoded(&[b"SET", b"half", b"0123456789"]);
        let mut held = Vec::new();
        for length in 1..whole.len() {
            for master in MASTERS {
                let mut connection = open(cluster, master);
                connection.send(&whole[..length]).expect("sent");
                // Half of them hang up, half of them stay.
                if length % 2 == 0 {
                    held.push(connection);
                }
            }
        }
        let native = [&PREFACE[..], &[0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 1]].concat();
        for length in 1..=native.len() {
            for master in MASTERS {
                let mut connection = open(cluster, master);
                connection.send(&native[..length]).expect("sent");
                held.push(connection);
            }
        }
        load.wait_for_writes(300, seconds(5));
        assert_eq!(cluster.ask(&[b"GET", b"half"]), Answer::Null);
    });
}

#[test]
fn a_wrong_version_of_the_wire_is_refused() {
    let cluster = Setup::slaves(2).beside_others().start();
    for master in MASTERS {
        let mut connection = open(&cluster, master);
        connection.send(&[0xd5, b'D', b'S', b'M', 0xff, 0xff]).expect("sent");
        connection.wait_for_close().expect("the master closes");
    }
}

#[test]
fn a_client_that_never_reads_is_bounded_and_holds_nobody_up() {
    nobody_notices(|cluster, load| {
        let large = vec![b'x'; 1024 * 1024];
        assert_eq!(cluster.ask(&[b"SET", b"large", &large]), Answer::ok());
        let mut deaf = Vec::new();
        for _ in 0..4 {
            let connection = open(cluster, Node::Master);
            let mut sender = connection.sender().expect("a second handle");
            sender.set_write_timeout(Some(millis(500))).expect("a timeout");
            // 2 GB of answers: the server must stop reading, or close, long before.
            let requests = encoded(&[b"GET", b"large"]).repeat(500);
            let _ = std::io::Write::write_all(&mut sender, &requests);
            deaf.push(connection);
        }
        load.wait_for_writes(500, seconds(10));
    });
}

#[test]
fn a_value_over_the_limit_is_refused_and_changes_nothing() {
    nobody_notices(|cluster, _| {
        assert_eq!(cluster.ask(&[b"SET", b"limit", b"before"]), Answer::ok());
        let too_large = vec![b'x'; 16 * 1024 * 1024 + 1];
        let mut connection = open(cluster, Node::Master);
        // An answer, or the end of the connection.
        let _ = connection.send(&encoded(&[b"SET", b"limit", &too_large]));
        match connection.answer() {
            Ok(answer) => assert_eq!(answer.error_word(), Some("ERR"), "{answer:?}"),
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "neither answered nor closed")
            }
        }
        assert_eq!(cluster.ask(&[b"GET", b"limit"]), Answer::bulk("before"));
    });
}

#[test]
fn many_idle_connections_hold_nobody_up() {
    nobody_notices(|cluster, load| {
        let mut idle: Vec<Connection> = Vec::new();
        for _ in 0..300 {
            idle.extend(MASTERS.map(|master| open(cluster, master)));
        }
        load.wait_for_writes(300, seconds(10));
        let last = idle.last_mut().expect("there are many");
        assert_eq!(last.call(&[b"PING"]).expect("an answer"), Answer::Simple("PONG".to_string()));
    });
}

#[test]
fn a_full_cluster_refuses_writes_and_still_reads() {
    let cluster = Setup::slaves(2).slaves_with(&["--max-memory", "4MiB"]).beside_others().start();
    let value = vec![b'x'; 64 * 1024];
    let mut connection = cluster.connect_to_primary();
    let mut stored = 0;
    let refused = loop {
        let key = format!("key-{stored}");
        match connection.call(&[b"SET", key.as_bytes(), &value]).expect("an answer") {
            answer if answer == Answer::ok() => stored += 1,
            answer => break answer,
        }
        assert!(stored < 1000, "62 MiB fit into two slaves of 4 MiB");
    };
    assert_eq!(refused.error_word(), Some("OOM"), "{refused:?}");
    assert!(stored >= 32, "only {stored} values of 64 KiB fit into two slaves of 4 MiB");
    for number in 0..stored {
        let answer = connection.call(&[b"GET", format!("key-{number}").as_bytes()]).expect("an answer");
        assert!(answer == Answer::bulk(&value), "key-{number}");
    }
    let refused = connection.call(&[b"GET", format!("key-{stored}").as_bytes()]).expect("an answer");
    assert_eq!(refused, Answer::Null, "what was refused is not there");
    // What is deleted makes room.
    for number in 0..stored / 2 {
        connection.call(&[b"DEL", format!("key-{number}").as_bytes()]).expect("an answer");
    }
    common::wait_for("there is room again", seconds(5), || {
        (cluster.ask(&[b"SET", b"again", &value]) == Answer::ok()).then_some(())
    });
}
