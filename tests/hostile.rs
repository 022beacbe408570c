//! Peers that send garbage, stop in the middle, ask for too much or never read: they are cut off or refused, and all
//! others are unaffected.

mod common;

use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::native::{self, Native};
use common::resp::{encoded, Answer, Connection, Info};
use common::{millis, nobody_notices, seconds};
use dsm_protocol::command::{Command, Reply, KEY_MAX};
use dsm_protocol::frame::{self, PREFACE};
use dsm_protocol::ids::{ClusterId, ReignId, Stamp, Version};
use dsm_protocol::message::{Control, Message};
use rand::RngExt as _;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};

fn open(cluster: &TestCluster, master: Node) -> Connection {
    Connection::open(cluster.address(master), seconds(5)).expect("the master accepts connections")
}

fn info(cluster: &TestCluster, master: Node) -> Info {
    cluster.info(master).expect("INFO is always answered")
}

#[test]
fn garbage_hurts_nobody() {
    nobody_notices(&[], |cluster, _| {
        for _ in 0..150 {
            MASTERS.into_iter().for_each(|master| throw_garbage(cluster, master));
        }
    });
}

#[test]
fn a_protocol_error_is_worded_as_in_redis_and_ends_the_connection() {
    nobody_notices(&[], |cluster, _| {
        let array = "Protocol error: invalid multibulk length";
        let bulk = "Protocol error: invalid bulk length";
        let long_line = "x".repeat(70_000);
        let table = [
            ("*1\r\n!4\r\nPING\r\n".to_string(), "Protocol error: expected '$', got '!'"),
            ("*2\r\n$3\r\nGET\r\n:1\r\n".to_string(), "Protocol error: expected '$', got ':'"),
            ("*x\r\n".to_string(), array),
            ("*\r\n".to_string(), array),
            ("*+1\r\n".to_string(), array),
            ("*99999999999\r\n".to_string(), array),
            ("*99999999999999999999999\r\n".to_string(), array),
            ("*1\r\n$99999999999\r\n".to_string(), bulk),
            ("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16777217\r\n".to_string(), bulk),
            ("*1\r\n$-7\r\n".to_string(), bulk),
            ("*1\r\n$\r\n".to_string(), bulk),
            ("*1\r\n$4x\r\n".to_string(), bulk),
            (format!("*{long_line}"), "Protocol error: too big mbulk count string"),
            (format!("*1\r\n${long_line}"), "Protocol error: too big bulk count string"),
            (long_line, "Protocol error: too big inline request"),
            ("SET k \"v\r\n".to_string(), "Protocol error: unbalanced quotes in request"),
        ];
        for master in MASTERS {
            let before = info(cluster, master).number("protocol_errors");
            for (bad, text) in &table {
                let mut connection = open(cluster, master);
                connection.send(bad.as_bytes()).expect("sent");
                let told = connection.answer().expect("an error before the end");
                assert_eq!(told, Answer::Error(format!("ERR {text}")), "{:.40}", bad);
                connection.wait_for_close().unwrap_or_else(|error| panic!("open after {bad:.40}: {error}"));
            }
            let after = info(cluster, master).number("protocol_errors");
            assert_eq!(after - before, table.len() as u64, "INFO counts each");
        }
    });
}

/// Sends a frame that ends the link, after the handshake; gives the reason that the master sends.
fn ends_link(cluster: &TestCluster, master: Node, bytes: &[u8]) -> String {
    let mut link = Native::client(cluster.address(master), seconds(5));
    link.send(bytes).expect("sent");
    link.end().unwrap_or_else(|| panic!("no reason is told for {bytes:.40x?}"))
}

#[test]
fn a_malformed_frame_of_every_kind_is_reported_and_ends_the_link() {
    nobody_notices(&[], |cluster, _| {
        for master in MASTERS {
            let before = info(cluster, master).number("protocol_errors");
            let mut sent = 0;
            for kind in 0..=255 {
                // Nothing, too little, and bytes that mean nothing.
                for body in [&[][..], &[1], &[0xff; 40]] {
                    if is_request(kind, body) {
                        continue;
                    }
                    let told = ends_link(cluster, master, &native::framed(kind, body));
                    assert!(told.contains("frame"), "kind {kind}, {body:?}: {told}");
                    sent += 1;
                }
            }
            let mut wrong = native::framed(16, &[0; 30]);
            wrong[20] ^= 1;
            assert!(ends_link(cluster, master, &wrong).contains("checksum"));
            let after = info(cluster, master).number("protocol_errors");
            assert_eq!(after - before, sent + 1, "INFO counts each");
        }
    });
}

/// Whether this happens to be a whole request of kind 16 (GET), whose key may be any bytes.
fn is_request(kind: u8, body: &[u8]) -> bool {
    kind == 16 && body.len() >= 20
}

#[test]
fn a_message_that_a_client_may_not_send_ends_its_link() {
    nobody_notices(&[], |cluster, _| {
        let (key, value) = (bytes::Bytes::from("k"), bytes::Bytes::from("v"));
        let (version, reign) = (Version::new(u64::MAX, u64::MAX), ReignId(u64::MAX));
        let messages = [
            Message::Ping,
            Message::Trial { bytes: value.clone() },
            Message::Member { cluster: ClusterId(1), member: 1, body: value.clone() },
            Message::Write { version, reign, key: key.clone(), value: value.clone() },
            Message::Drop { version, reign, key: key.clone() },
            Message::Ack { through: u64::MAX, room_bytes: 0 },
            Message::Value { tag: 0, version, reign, value: value.clone() },
            Message::Missing { tag: 0, held: Some(version) },
            Message::Response { id: dsm_protocol::ids::RequestId(1), reply: Reply::Value(value) },
            Message::Control(Control::Probe),
            Message::Control(Control::HandoverOffer),
            Message::Control(Control::Took { bytes: 1 << 20 }),
            Message::Control(Control::StreamClosed { stream: 1 }),
            Message::Control(Control::Holdings {
                entries: vec![(key, Stamp { version, reign })],
                last: true,
            }),
        ];
        for master in MASTERS {
            for message in &messages {
                let told = ends_link(cluster, master, &native::encoded(message));
                assert!(told.contains("malformed"), "{message:?}: {told}");
                // Nor before the handshake.
                let mut link = Native::open(cluster.address(master), seconds(5));
                link.send(&[&PREFACE[..], &native::encoded(message)].concat()).expect("sent");
                assert!(link.end().is_some(), "{message:?} in place of a hello");
            }
        }
    });
}

#[test]
fn a_false_length_is_refused_at_once_or_waits_alone() {
    nobody_notices(&[], |cluster, load| {
        let lying = |length: u32| [&length.to_le_bytes()[..], &[0, 0, 0, 0, 17]].concat();
        let (mut silent, mut half) = (Vec::new(), Vec::new());
        for master in MASTERS {
            for length in [u32::MAX, 1 << 31, (65 << 20) + 2048] {
                let told = ends_link(cluster, master, &lying(length));
                assert!(told.contains("over the limit"), "{told}");
            }
            // Before the handshake 4 KiB are the limit.
            let mut link = Native::open(cluster.address(master), seconds(5));
            link.send(&[&PREFACE[..], &lying(4097)].concat()).expect("sent");
            assert!(link.end().expect("a reason").contains("over the limit of 4096"));
            for length in [1, 100, 1 << 20, 16 << 20] {
                let mut link = Native::client(cluster.address(master), seconds(5));
                link.send(&lying(length)).expect("sent");
                silent.push(link);
            }
            let mut connection = open(cluster, master);
            connection.send(b"*3\r\n$3\r\nSET\r\n$5\r\nlying\r\n$16777216\r\nshort").expect("sent");
            half.push(connection);
        }
        load.wait_for_writes(300, seconds(5));
        assert_eq!(cluster.ask(&[b"GET", b"lying"]), Answer::Null);
    });
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
    nobody_notices(&[], |cluster, load| {
        let whole = encoded(&[b"SET", b"half", b"0123456789"]);
        let mut held = Vec::new();
        for length in 1..whole.len() {
            for master in MASTERS {
                let mut connection = open(cluster, master);
                connection.send(&whole[..length]).expect("sent");
                // Half of them hang up, the others stay.
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
    // With the default of 32 MiB, four of them make the master copy 128 MiB at once. On a busy machine that takes longer
    // than the two seconds for which the load's clients wait.
    nobody_notices(&["--max-pipeline-bytes", "4MiB"], |cluster, load| {
        let large = vec![b'x'; 1024 * 1024];
        assert_eq!(cluster.ask(&[b"SET", b"large", &large]), Answer::ok());
        let before = cluster.resident_bytes(Node::Master);
        let mut deaf = Vec::new();
        for _ in 0..4 {
            let connection = open(cluster, Node::Master);
            let mut sender = connection.sender().expect("a second handle");
            sender.set_write_timeout(Some(millis(500))).expect("a timeout");
            // 2 GB of answers: the server must stop reading, or close, long before that.
            let requests = encoded(&[b"GET", b"large"]).repeat(500);
            let _ = std::io::Write::write_all(&mut sender, &requests);
            deaf.push(connection);
        }
        load.wait_for_writes(500, seconds(20));
        let grown = cluster.resident_bytes(Node::Master).saturating_sub(before) >> 20;
        // Twice 4 MiB each while they are handed over, and the memory of an honest load.
        assert!(grown < 4 * 2 * 4 + 64, "the master grew by {grown} MiB");
    });
}

/// The most that a master may grow while it is attacked from all sides below: 2 × 2 MiB for each of 4 deaf clients,
/// some 32 KiB for each connection, and the memory that an honest load takes.
const ATTACKED_GROWTH_MAX: u64 = (4 * 2 * 2 + 2 * 600 / 32 + 128) << 20;

#[test]
fn thousands_of_hostile_connections_at_once_hurt_nobody_and_memory_stays_flat() {
    let flags = ["--max-pipeline-bytes", "2MiB", "--max-request-bytes", "64MiB", "--max-link-bytes", "64MiB"];
    nobody_notices(&flags, |cluster, load| {
        assert_eq!(cluster.ask(&[b"SET", b"large", &vec![b'x'; 1 << 20]]), Answer::ok());
        let before = MASTERS.map(|master| cluster.resident_bytes(master));
        let stop = AtomicBool::new(false);
        let grown_max = std::thread::scope(|scope| {
            for master in MASTERS {
                let stop = &stop;
                // The attackers' pace, because they share the processors with the servers.
                scope.spawn(move || {
                    while_not(stop, || {
                        throw_garbage(cluster, master);
                        std::thread::sleep(millis(3));
                    });
                });
                scope.spawn(move || {
                    let mut half_open: Vec<_> = (0..300).map(|_| open(cluster, master)).collect();
                    let mut oldest = 0;
                    while_not(stop, || {
                        // Some leave without notice, others come.
                        half_open[oldest] = open(cluster, master);
                        oldest = (oldest + 1) % 300;
                        std::thread::sleep(millis(5));
                    });
                });
                scope.spawn(move || {
                    let mut slow: Vec<_> = (0..200).map(|_| open(cluster, master)).collect();
                    let request = encoded(&[b"SET", b"slow", b"loris"]);
                    let native = [&PREFACE[..], &[0xff, 0x0f, 0, 0, 0, 0, 0, 0, 1]].concat();
                    let mut at = 0;
                    while_not(stop, || {
                        for (number, connection) in slow.iter_mut().enumerate() {
                            let whole = if number % 2 == 0 { &request } else { &native };
                            // All but the last byte, which never comes.
                            if let Some(byte) = whole[..whole.len() - 1].get(at) {
                                let _ = connection.send(&[*byte]);
                            }
                        }
                        at += 1;
                        std::thread::sleep(millis(100));
                    });
                });
                scope.spawn(move || {
                    let requests = encoded(&[b"GET", b"large"]).repeat(200);
                    let mut deaf: Vec<_> = (0..2).map(|_| open(cluster, master)).collect();
                    for connection in &mut deaf {
                        connection.send(&requests).expect("8 KB are taken");
                    }
                    while_not(stop, || std::thread::sleep(millis(10)));
                });
            }
            let (enough, begun) = (load.writes() + 1000, std::time::Instant::now());
            let mut grown_max = 0;
            let attacked = || MASTERS.iter().all(|&m| info(cluster, m).number("connections_total") >= 1000);
            while load.writes() < enough || !attacked() {
                // A panic here would leave the attackers running.
                if begun.elapsed() > seconds(30) {
                    break;
                }
                for (master, before) in MASTERS.into_iter().zip(before) {
                    grown_max = grown_max.max(cluster.resident_bytes(master).saturating_sub(before));
                }
                std::thread::sleep(millis(10));
            }
            stop.store(true, Ordering::Relaxed);
            assert!(load.writes() >= enough, "the honest clients got on");
            assert!(attacked(), "there were thousands");
            grown_max
        });
        assert!(grown_max < ATTACKED_GROWTH_MAX, "a master grew by {} MiB", grown_max >> 20);
        assert_eq!(cluster.ask(&[b"GET", b"slow"]), Answer::Null);
    });
}

fn while_not(stop: &AtomicBool, mut work: impl FnMut()) {
    while !stop.load(Ordering::Relaxed) {
        work();
    }
}

/// A connection that sends random bytes, sometimes after the beginning of a request or of a link, and leaves.
fn throw_garbage(cluster: &TestCluster, master: Node) {
    let mut random = rand::rng();
    let mut garbage: Vec<u8> = (0..random.random_range(1..2000)).map(|_| random.random()).collect();
    match random.random_range(0..4) {
        0 => garbage.splice(0..0, PREFACE).for_each(drop),
        1 => garbage.splice(0..0, *b"*3\r\n$3\r\nSET\r\n").for_each(drop),
        _ => {}
    }
    // The master may close before it has read everything.
    let _ = open(cluster, master).send(&garbage);
}

#[test]
fn a_value_over_the_limit_is_refused_and_changes_nothing() {
    nobody_notices(&[], |cluster, _| {
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

fn put(key: &[u8], value: &[u8]) -> Command {
    Command::Put { key: key.to_vec().into(), value: value.to_vec().into() }
}

fn get(key: &[u8]) -> Command {
    Command::Get { key: key.to_vec().into() }
}

/// Sets and gets by RESP, and expects the same values for what was written natively.
fn both_doors_store(resp: &mut Connection, native: &mut Native, key: &[u8], value: &[u8]) {
    assert_eq!(resp.call(&[b"SET", key, value]).expect("an answer"), Answer::ok());
    assert!(native.call(get(key)) == Reply::Value(value.to_vec().into()), "written by RESP, read natively");
    assert_eq!(resp.call(&[b"DEL", key]).expect("an answer"), Answer::Integer(1));
    assert_eq!(native.call(put(key, value)), Reply::Done);
    assert!(resp.call(&[b"GET", key]).expect("an answer") == Answer::bulk(value), "written natively");
}

#[test]
fn keys_and_values_at_the_limit_are_taken_and_over_it_refused() {
    // The load that runs at the same time writes values of up to 300,000 bytes.
    const VALUE_MAX: usize = 400_000;
    nobody_notices(&["--max-value", "400000B"], |cluster, _| {
        let is_refused = |reply: &Reply| matches!(reply, Reply::Error(e) if e.word.as_str() == "ERR");
        for master in MASTERS {
            let mut resp = open(cluster, master);
            let mut link = Native::client(cluster.address(Node::Master), seconds(5));
            let (longest, too_long) = (vec![b'k'; KEY_MAX], vec![b'k'; KEY_MAX + 1]);
            let (largest, too_large) = (vec![b'v'; VALUE_MAX], vec![b'v'; VALUE_MAX + 1]);
            both_doors_store(&mut resp, &mut link, &longest, &largest);
            both_doors_store(&mut resp, &mut link, b"empty", b"");

            // The native protocol refuses it, in whatever command, and the link goes on.
            let pairs = |value: &[u8]| vec![(b"p".to_vec().into(), value.to_vec().into())];
            for command in [
                put(&too_long, b"v"),
                put(b"k", &too_large),
                get(&too_long),
                Command::Delete { keys: vec![too_long.clone().into()] },
                Command::GetMany { keys: vec![too_long.clone().into()] },
                Command::PutMany { pairs: pairs(&too_large) },
                Command::GetMany { keys: Vec::new() },
            ] {
                let reply = link.call(command);
                assert!(is_refused(&reply), "{reply:.200?}");
            }
            for request in [
                &[&b"SET"[..], &too_long, b"v"][..],
                &[b"GET", &too_long],
                &[b"DEL", &too_long],
                &[b"MSET", &too_long, b"v"],
            ] {
                let answer = resp.call(request).expect("an answer");
                assert_eq!(answer.error_word(), Some("ERR"), "{answer:?}");
            }
            assert_eq!(resp.call(&[b"GET", b"k"]).expect("an answer"), Answer::Null, "nothing was stored");
            assert_eq!(resp.call(&[b"GET", b"p"]).expect("an answer"), Answer::Null, "nothing was stored");
            // A bulk string over the limit ends a RESP connection, as in Redis.
            let _ = resp.send(&encoded(&[b"SET", b"k", &too_large]));
            let told = resp.answer().expect("an error before the end");
            assert_eq!(told, Answer::Error("ERR Protocol error: invalid bulk length".to_string()));
        }
    });
}

#[test]
fn a_frame_at_the_limit_is_taken_and_one_byte_more_ends_the_link() {
    let cluster = Setup::slaves(2).beside_others().start();
    // A single request of 64 MiB is not allowed; the answer shows that its frame was read to the end.
    let body_max = frame::body_max(64 << 20);
    let mut link = Native::client(cluster.address(Node::Master), seconds(10));
    let mut bytes = native::framed(16, &vec![b'k'; body_max]);
    link.send(&bytes).expect("a frame at the limit is read");
    assert!(matches!(link.answer().1, Reply::Error(error) if error.detail.contains("key is longer")));
    bytes[..4].copy_from_slice(&(body_max as u32 + 1).to_le_bytes());
    link.send(&bytes[..9]).expect("sent");
    assert!(link.end().expect("a reason").contains(&format!("over the limit of {body_max}")));
}

#[test]
fn a_value_of_16_mib_is_kept_on_both_doors_and_by_a_failover() {
    let mut cluster = Setup::slaves(3).start();
    let value: Vec<u8> = (0_u32..16 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut resp = open(&cluster, Node::Master);
    let mut link = Native::client(cluster.address(Node::Master), seconds(5));
    both_doors_store(&mut resp, &mut link, b"huge", &value);
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, seconds(5));
    let answer = open(&cluster, Node::Backup).call(&[b"GET", b"huge"]).expect("an answer");
    assert!(answer == Answer::bulk(&value), "after the failover, by RESP");
    let mut link = Native::client(cluster.address(Node::Backup), seconds(5));
    assert!(link.call(get(b"huge")) == Reply::Value(value.clone().into()), "after the failover, natively");
    cluster.start(Node::Master);
    cluster.settle();
    let answer = cluster.ask(&[b"GET", b"huge"]);
    assert!(answer == Answer::bulk(&value), "after the failback");
}

#[test]
fn a_thousand_idle_connections_hold_nobody_up() {
    nobody_notices(&[], |cluster, load| {
        let mut idle: Vec<Connection> = Vec::new();
        for _ in 0..500 {
            idle.extend(MASTERS.map(|master| open(cluster, master)));
        }
        load.wait_for_writes(300, seconds(10));
        for master in MASTERS {
            assert!(info(cluster, master).number("connections") >= 500);
        }
        for connection in idle.iter_mut().step_by(99) {
            assert_eq!(connection.call(&[b"PING"]).expect("an answer"), Answer::Simple("PONG".to_string()));
        }
    });
}

#[test]
fn ten_thousand_short_connections_hold_nobody_up() {
    nobody_notices(&[], |cluster, load| {
        std::thread::scope(|scope| {
            for thread in 0..10 {
                scope
                    .spawn(move || (0..1000).for_each(|round| be_brief(cluster, MASTERS[thread % 2], round)));
            }
        });
        load.wait_for_writes(300, seconds(5));
        for master in MASTERS {
            let total = info(cluster, master).number("connections_total");
            assert!(total >= 5000, "{total} connections reached {master:?}");
            // Sessions that one master forwards count at the other one, too.
            common::wait_for(&format!("{master:?} gives their places back"), seconds(5), || {
                let now = info(cluster, master);
                (now.number("connections") < 50 && now.number("connected_clients") < 50).then_some(())
            });
        }
    });
}

/// A connection that ends after nothing, after half a request, after an answer, or without waiting for it.
fn be_brief(cluster: &TestCluster, master: Node, round: u32) {
    let mut connection = open(cluster, master);
    match round % 5 {
        0 => {}
        1 => connection.send(b"*3\r\n$3\r\nSET\r\n$4\r\nbri").expect("sent"),
        2 => {
            assert_eq!(connection.call(&[b"PING"]).expect("an answer"), Answer::Simple("PONG".to_string()));
        }
        3 => connection.send(&encoded(&[b"GET", b"key-1"])).expect("sent"),
        _ => {
            // The other half stays open, because the answer is still wanted.
            connection.send(&encoded(&[b"GET", b"nobody wrote this"])).expect("sent");
            connection.sender().expect("a handle").shutdown(Shutdown::Write).expect("half closed");
            assert_eq!(connection.answer().expect("an answer"), Answer::Null);
        }
    }
}

#[test]
fn an_invalid_slave_name_is_refused_at_the_wire() {
    nobody_notices(&[], |cluster, _| {
        for name in ["a\nslave9:id=forged", "", "with space", &"x".repeat(65)] {
            for master in MASTERS {
                let valid = "v".repeat(name.len().clamp(1, 64));
                let hello = dsm_protocol::message::Hello { cluster: None, role: native::slave(&valid) };
                let frame = native::encoded(&Message::Control(Control::Hello(hello)));
                let body = &frame[frame::HEADER_BYTES..];
                let at = body.windows(valid.len()).position(|w| w == valid.as_bytes()).expect("the name");
                let mut forged = body[..at - 1].to_vec();
                forged.push(u8::try_from(name.len()).expect("a short name"));
                forged.extend(name.as_bytes());
                forged.extend(&body[at + valid.len()..]);
                let mut link = Native::open(cluster.address(master), seconds(5));
                link.send(&[&PREFACE[..], &native::framed(frame[8], &forged)].concat()).expect("sent");
                let told = link.end().expect("a reason");
                assert!(told.contains("malformed"), "{name:?}: {told}");
            }
        }
    });
}

#[test]
fn a_write_without_a_value_is_an_invalid_operation() {
    nobody_notices(&[], |cluster, _| {
        let masters = cluster.addresses().map(|address| address.to_string()).join(",");
        let client = |words: &[&str]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dsm-client"));
            command.args(["--masters", &masters]).args(words).stdin(std::process::Stdio::null());
            command
        };
        for words in [&["WRITE", "onlykey"][..], &["WRITE"], &["READ"], &["FROB", "onlykey"]] {
            let (_, told) = common::cluster::fails(client(words));
            assert_eq!(told.lines().count(), 1, "{words:?}: {told}");
        }
        let mut prompt = client(&[]);
        let script = cluster.dir().join("script");
        std::fs::write(&script, "WRITE onlykey\nREAD onlykey\nEXIT\n").expect("a file");
        prompt.stdin(std::fs::File::open(&script).expect("a file"));
        let output = prompt.output().expect("the binary is built");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            lines.starts_with(&["Invalid Operation! Please Try Again.", "Key onlykey not found"]),
            "{said}"
        );
        assert_eq!(cluster.ask(&[b"GET", b"onlykey"]), Answer::Null);
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
    // Deleted values make room.
    for number in 0..stored / 2 {
        connection.call(&[b"DEL", format!("key-{number}").as_bytes()]).expect("an answer");
    }
    common::wait_for("there is room again", seconds(5), || {
        (cluster.ask(&[b"SET", b"again", &value]) == Answer::ok()).then_some(())
    });
}
