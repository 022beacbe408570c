//! Each limit on real masters: it takes effect, INFO shows it, the peer that exceeded it gets the reason or is cut, and
//! others are unaffected.

mod common;

use bytes::Bytes;
use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::native::{self, Native};
use common::resp::{encoded, Answer, Connection, Info};
use common::{millis, no_short_request_notices, nobody_notices, seconds, wait_for};
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::frame::{self, PREFACE};
use dsm_protocol::ids::RequestId;
use dsm_protocol::info::SECTIONS;
use dsm_protocol::message::{Control, HelloRole, Message, Request, StreamUser};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

const MIB: u64 = 1 << 20;

fn open(cluster: &TestCluster, master: Node) -> Connection {
    Connection::open(cluster.address(master), seconds(5)).expect("the master accepts connections")
}

fn info(cluster: &TestCluster, master: Node) -> Info {
    cluster.info(master).expect("INFO is always answered")
}

/// Waits until a limit has taken effect this many times more than in `before`.
fn wait_for_count(cluster: &TestCluster, master: Node, counter: &str, count: u64) {
    wait_for(&format!("INFO shows {counter} at {count}"), seconds(5), || {
        (info(cluster, master).number(counter) >= count).then_some(())
    });
}

/// Fills a master with connections until one is refused; gives those that were accepted.
fn fill(cluster: &TestCluster, master: Node, at_most: usize) -> Vec<Connection> {
    let mut taken = Vec::new();
    loop {
        let mut connection = open(cluster, master);
        // Sent before the answer is known: a refusal may come although this was not read.
        let _ = connection.send(&encoded(&[b"PING"]));
        match connection.answer() {
            Ok(Answer::Simple(pong)) if pong == "PONG" => taken.push(connection),
            Ok(Answer::Error(text)) => {
                assert_eq!(text, "ERR max number of clients reached");
                connection.wait_for_close().expect("a refused connection is closed");
                return taken;
            }
            // A reset may overtake the error text.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return taken,
            other => panic!("{other:?}"),
        }
        assert!(taken.len() <= at_most, "more than {at_most} connections");
    }
}

#[test]
fn connections_over_the_limit_are_refused_in_redis_words() {
    nobody_notices(&["--max-connections", "40"], |cluster, load| {
        for master in MASTERS {
            let mut taken = fill(cluster, master, 40);
            load.wait_for_writes(100, seconds(5));
            let mut first = taken.swap_remove(0);
            let Answer::Bulk(text) = first.call(&[b"INFO"]).expect("an answer") else { panic!("no INFO") };
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(text.contains("connections:40\r\n"), "{text}");
            let refused = text.lines().find_map(|line| line.strip_prefix("connections_refused:"));
            assert!(refused.expect("the counter").parse::<u64>().expect("a number") >= 1, "{text}");
            drop(taken);
            wait_for("a place is given back", seconds(2), || cluster.info(master));
        }
    });
}

#[test]
fn open_files_that_are_too_few_lower_the_limit_and_hurt_nobody() {
    let mut cluster = Setup::slaves(2).masters_with_open_files(64).start();
    let load = common::load::Load::start(&cluster, 4, 10);
    for master in MASTERS {
        assert!(cluster.stderr(master).contains("lowering --max-connections"), "{}", cluster.stderr(master));
        // Twice: refused and closed connections must leave nothing behind.
        for _ in 0..2 {
            let taken = fill(&cluster, master, 64);
            assert!(!taken.is_empty());
            load.wait_for_writes(100, seconds(5));
            drop(taken);
            wait_for("connections are accepted again", seconds(2), || cluster.info(master));
        }
        assert!(info(&cluster, master).number("connections_refused") >= 2);
        assert_eq!(info(&cluster, master).number("accept_errors"), 0, "no file was lacking");
    }
    // A takeover needs file descriptors, too.
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, seconds(5));
    load.prove(&mut cluster);
}

#[test]
fn a_pipeline_over_the_limit_waits_and_is_answered_whole() {
    nobody_notices(&["--max-pipeline", "4"], |cluster, _| {
        let before = info(cluster, Node::Master).number("reads_paused");
        let mut connection = open(cluster, Node::Master);
        let mut sender = connection.sender().expect("a second handle");
        let writer = std::thread::spawn(move || {
            for number in 0..1000 {
                let request = encoded(&[b"SET", b"piped", number.to_string().as_bytes()]);
                sender.write_all(&request).expect("sent");
            }
        });
        for _ in 0..1000 {
            assert_eq!(connection.answer().expect("an answer"), Answer::ok());
        }
        writer.join().expect("it sends all");
        assert_eq!(cluster.ask(&[b"GET", b"piped"]), Answer::bulk("999"));
        assert!(info(cluster, Node::Master).number("reads_paused") > before);
    });
}

/// Writes to slaves that do not answer stay in flight: one more than the limit is BUSY at once, and INFO is answered.
fn busy_beyond(flags: &[&str], fitting: usize, value_bytes: usize) {
    let mut cluster = Setup::slaves(2).masters_with(flags).start();
    cluster.pause(Node::Slave(0));
    cluster.pause(Node::Slave(1));
    let mut link = Native::client(cluster.address(Node::Master), seconds(5));
    for number in 0..fitting + 3 {
        let key = Bytes::from(format!("k{number}"));
        link.ask(Command::Put { key, value: vec![b'v'; value_bytes].into() }).expect("sent");
    }
    let mut busy = Vec::new();
    for _ in 0..3 {
        let (id, reply) = link.answer();
        assert!(matches!(&reply, Reply::Error(error) if error.word.as_str() == "BUSY"), "{reply:?}");
        busy.push(id.0);
    }
    let first = fitting as u64 + 1;
    assert_eq!(busy, [first, first + 1, first + 2], "those that fit are not refused");
    let during = info(&cluster, Node::Master);
    assert_eq!(during.number("requests_busy"), 3);
    assert_eq!(during.number("errors_busy"), 3);
    assert!(during.number("requests_in_flight") >= fitting as u64);
    cluster.resume(Node::Slave(0));
    cluster.resume(Node::Slave(1));
    for _ in 0..fitting {
        let (_, reply) = link.answer();
        assert_ne!(reply, Reply::NotFound);
        assert!(!matches!(&reply, Reply::Error(error) if error.word.as_str() == "BUSY"), "{reply:?}");
    }
    wait_for("nothing is in flight any more", seconds(5), || {
        let now = info(&cluster, Node::Master);
        // The INFO request itself counts.
        (now.number("requests_in_flight") <= 1 && now.number("request_bytes_in_flight") == 0).then_some(())
    });
    cluster.settle();
    for number in 0..fitting + 3 {
        let answer = cluster.ask(&[b"GET", format!("k{number}").as_bytes()]);
        let expected = number < fitting;
        assert_eq!(answer != Answer::Null, expected, "k{number}: what was BUSY was not executed");
    }
}

#[test]
fn a_log_that_may_not_grow_refuses_writes_until_it_may_and_ends_no_master() {
    let mut cluster = Setup::slaves(2).start();
    assert_eq!(cluster.ask(&[b"SET", b"before", b"v"]), Answer::ok());
    let mut client = cluster.connect(Node::Master);
    let length = std::fs::metadata(cluster.log()).expect("the log").len();
    cluster.limit_file_length(Node::Master, Some(length + 200_000));
    let value = vec![b'v'; 10_000];
    let mut written = Vec::new();
    let refused = loop {
        let key = format!("k{}", written.len());
        match client.call(&[b"SET", key.as_bytes(), &value]).expect("an answer") {
            Answer::Simple(ok) if ok == "OK" => written.push(key),
            other => break other,
        }
        assert!(written.len() < 30, "the limit bites");
    };
    assert_eq!(refused.error_word(), Some("READONLY"), "{refused:?}");
    assert!(!written.is_empty(), "what fits is written");
    assert_eq!(client.call(&[b"GET", b"before"]).expect("an answer"), Answer::bulk("v"));
    assert!(cluster.exited(Node::Master).is_none(), "{}", cluster.stderr(Node::Master));
    cluster.limit_file_length(Node::Master, None);
    assert_eq!(client.call(&[b"SET", b"after", b"v"]).expect("an answer"), Answer::ok());
    for key in &written {
        assert_eq!(client.call(&[b"GET", key.as_bytes()]).expect("an answer"), Answer::bulk(&value));
    }
    assert_eq!(client.call(&[b"GET", b"k30"]).expect("an answer"), Answer::Null);
}

/// After how many seconds the system probes the peer of each connection with an end at `masters` (`None`: never). Both
/// ends are listed separately, except the dialing ends of this test.
fn probed_in(masters: [std::net::SocketAddr; 2], own: &[u16]) -> Vec<Option<u64>> {
    let connections = std::fs::read_to_string("/proc/net/tcp").expect("the kernel lists them");
    let ends = connections.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = |word: &str| u16::from_str_radix(word.split_once(':')?.1, 16).ok();
        let (local, remote) = (port(words[1])?, port(words[2])?);
        let is_ours = masters.iter().any(|master| [local, remote].contains(&master.port()));
        // 01: established.
        if !is_ours || words[3] != "01" || own.contains(&local) {
            return None;
        }
        let (timer, ticks) = words[5].split_once(':')?;
        let seconds = u64::from_str_radix(ticks, 16).ok()? / 100;
        // 02: nothing is unacknowledged, and the keepalive timer runs.
        Some((timer == "02").then_some(seconds))
    });
    ends.collect()
}

#[test]
fn each_end_of_a_connection_probes_whether_the_other_one_is_there() {
    for (flags, expected) in [
        (&[][..], Some(270..=300)),
        (&["--tcp-keepalive", "100s"], Some(70..=100)),
        (&["--tcp-keepalive", "0s"], None),
    ] {
        let cluster = Setup::slaves(1).masters_with(flags).slaves_with(flags).start();
        let masters = MASTERS.map(|master| cluster.address(master));
        let mut client = cluster.connect(Node::Master);
        assert_eq!(client.call(&[b"SET", b"k", b"v"]).expect("an answer"), Answer::ok());
        let own = [client.sender().and_then(|sender| sender.local_addr()).expect("a socket").port()];
        // The client's end at the master, both ends of the slave's two links, and those of a link between the masters.
        wait_for("each is as it should be", seconds(5), || {
            let found = probed_in(masters, &own);
            let is_right = |seconds: &Option<u64>| match (&expected, seconds) {
                (Some(range), Some(seconds)) => range.contains(seconds),
                (None, seconds) => seconds.is_none(),
                (Some(_), None) => false,
            };
            (found.len() >= 7 && found.iter().all(is_right)).then_some(())
        });
    }
}

#[test]
fn requests_over_the_limit_in_all_are_busy_and_not_executed() {
    busy_beyond(&["--max-requests", "8"], 8, 10);
}

#[test]
fn request_bytes_over_the_limit_in_all_are_busy_and_not_executed() {
    busy_beyond(&["--max-request-bytes", "100kB"], 9, 11_000);
}

#[test]
fn a_handshake_that_takes_too_long_is_cut_however_busy_it_looks() {
    nobody_notices(&["--handshake-timeout", "300ms"], |cluster, _| {
        for master in MASTERS {
            let before = info(cluster, master).number("handshakes_timed_out");
            let mut hello = Vec::new();
            let client = dsm_protocol::message::Hello { cluster: None, role: HelloRole::Client };
            dsm_protocol::handshake::greet(client, &mut hello);
            let slow: [&[u8]; 4] =
                [&hello, &encoded(&[b"SET", b"slow", b"loris"]), b"PING and more of it\r\n", b""];
            std::thread::scope(|scope| {
                for bytes in slow {
                    scope.spawn(move || is_cut_before_the_end(cluster, master, bytes));
                }
            });
            wait_for_count(cluster, master, "handshakes_timed_out", before + 4);
        }
        assert_eq!(cluster.ask(&[b"GET", b"slow"]), Answer::Null);
    });
}

/// Sends a byte every 50 ms until it is cut.
fn is_cut_before_the_end(cluster: &TestCluster, master: Node, bytes: &[u8]) {
    let mut connection = open(cluster, master);
    let begun = Instant::now();
    for byte in bytes {
        // The slow pace is the attack.
        std::thread::sleep(millis(50));
        if begun.elapsed() > millis(1200) || connection.send(&[*byte]).is_err() {
            break;
        }
    }
    connection.wait_for_close().unwrap_or_else(|error| panic!("{bytes:.30?} is not cut: {error}"));
    let lasted = begun.elapsed();
    assert!((millis(280)..seconds(2)).contains(&lasted), "{bytes:.30?} was cut after {lasted:?}");
}

#[test]
fn an_idle_client_is_closed_at_either_door_and_a_busy_one_is_not() {
    nobody_notices(&["--idle-timeout", "300ms"], |cluster, _| {
        for master in MASTERS {
            let before = info(cluster, master).number("idle_closed");
            let begun = Instant::now();
            let mut resp = open(cluster, master);
            assert_eq!(resp.call(&[b"PING"]).expect("an answer"), Answer::Simple("PONG".to_string()));
            let mut halfway = open(cluster, master);
            halfway.call(&[b"PING"]).expect("an answer");
            halfway.send(b"*2\r\n$3\r\nGET\r\n").expect("sent");
            // Its answer comes while the master already waits for more.
            let mut asked = open(cluster, master);
            asked.call(&[b"GET", b"nothing"]).expect("an answer");
            let mut asked_link = Native::client(cluster.address(master), seconds(3));
            asked_link.ask(Command::Exists { keys: vec![Bytes::from("nothing")] }).expect("sent");
            let mut link = Native::client(cluster.address(master), seconds(3));
            let mut silent = Native::client(cluster.address(master), seconds(3));
            silent.send(&[100, 0, 0, 0, 0, 0, 0, 0, 17]).expect("sent");
            resp.wait_for_close().expect("closed");
            asked.wait_for_close().expect("closed after its answer");
            asked_link.end();
            halfway.wait_for_close().expect("closed in the middle of a request");
            link.end();
            silent.end();
            assert!(begun.elapsed() >= millis(300), "too early: {:?}", begun.elapsed());
            assert!(info(cluster, master).number("idle_closed") >= before + 6);
        }
    });
}

/// The established IPv4 connections between ports of this machine, by local and remote port: whether the system will
/// probe the other side, and after how long at the latest.
fn probed_after(local: &[u16], remote: &[u16]) -> Vec<Option<std::time::Duration>> {
    const ESTABLISHED: &str = "01";
    const KEEPALIVE: &str = "02";
    let text = std::fs::read_to_string("/proc/net/tcp").expect("the kernel tells");
    let port = |address: &str| {
        let (_, port) = address.split_once(':').expect("an address");
        u16::from_str_radix(port, 16).expect("a port")
    };
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, ours, theirs, state, _, timer, ..] = fields[..] else { panic!("{line:?}") };
        let wanted = local.contains(&port(ours)) || remote.contains(&port(theirs));
        if state != ESTABLISHED || !wanted {
            continue;
        }
        let (kind, when) = timer.split_once(':').expect("a timer");
        let hundredths = u64::from_str_radix(when, 16).expect("a time");
        found.push((kind == KEEPALIVE).then(|| millis(hundredths * 10)));
    }
    found
}

#[test]
fn every_socket_is_probed_as_redis_probes_its_clients() {
    let cluster = Setup::slaves(2).start();
    let ports = MASTERS.map(|master| cluster.address(master).port());
    let clients: Vec<Connection> = MASTERS.into_iter().map(|master| open(&cluster, master)).collect();
    // Accepted by the masters: two slaves, the other master and a client each.
    let by_default = wait_for("every accepted connection is probed", seconds(10), || {
        let probed = probed_after(&ports, &[]);
        (probed.len() >= 8 && probed.iter().all(Option::is_some)).then_some(probed)
    });
    for after in by_default.into_iter().flatten() {
        assert!((seconds(200)..=seconds(300)).contains(&after), "{after:?}");
    }
    // Dialed by slaves and masters. The test's own clients set no keepalive.
    wait_for("every dialed connection but the test's own is probed", seconds(10), || {
        let probed = probed_after(&[], &ports);
        (probed.iter().flatten().count() >= 6).then_some(())
    });
    drop(clients);
}

/// Asks for far more than it reads; gives how much it could send.
fn be_deaf(cluster: &TestCluster, requests: usize) -> Connection {
    let connection = open(cluster, Node::Master);
    let mut sender = connection.sender().expect("a second handle");
    sender.set_write_timeout(Some(millis(200))).expect("a timeout");
    // It is cut, or blocked, in the middle.
    let _ = sender.write_all(&encoded(&[b"GET", b"large"]).repeat(requests));
    connection
}

#[test]
fn a_client_that_takes_no_answers_is_cut() {
    nobody_notices(&["--write-timeout", "300ms"], |cluster, load| {
        assert_eq!(cluster.ask(&[b"SET", b"large", &vec![b'x'; MIB as usize]]), Answer::ok());
        let mut deaf: Vec<Connection> = (0..4).map(|_| be_deaf(cluster, 100)).collect();
        wait_for_count(cluster, Node::Master, "slow_readers_cut", 4);
        load.wait_for_writes(100, seconds(5));
        for connection in &mut deaf {
            connection.wait_for_close().expect("what was sent, then the end");
        }
    });
}

#[test]
fn a_client_that_has_nothing_more_to_say_may_take_its_answers_slowly() {
    nobody_notices(&["--write-timeout", "500ms"], |cluster, _| {
        let value = vec![b'x'; 16 * MIB as usize];
        assert_eq!(cluster.ask(&[b"SET", b"large", &value]), Answer::ok());
        let mut slow = open(cluster, Node::Master);
        slow.send(&encoded(&[b"GET", b"large"])).expect("sent");
        let mut stream = slow.sender().expect("a second handle");
        stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
        let (begun, mut taken, mut part) = (Instant::now(), 0, vec![0; 1 << 20]);
        loop {
            // 10 MiB a second: 256 KiB take far less than the timeout.
            let read = stream.read(&mut part).expect("nothing is cut");
            if read == 0 {
                break;
            }
            taken += read;
            std::thread::sleep(millis(100) * read as u32 / (1 << 20));
        }
        assert_eq!(taken, value.len() + "$16777216\r\n\r\n".len());
        assert!(begun.elapsed() > millis(1000), "a second and more than the timeout: {:?}", begun.elapsed());
    });
}

#[test]
fn memory_stays_flat_while_deaf_and_greedy_clients_flood() {
    let flags = ["--max-pipeline-bytes", "4MiB", "--max-request-bytes", "32MiB", "--write-timeout", "60s"];
    no_short_request_notices(&flags, |cluster, load| {
        assert_eq!(cluster.ask(&[b"SET", b"large", &vec![b'x'; MIB as usize]]), Answer::ok());
        let before = cluster.resident_bytes(Node::Master);
        // For 20 clients that read nothing the master may hold 4 MiB of answers each, twice while they are handed over.
        let deaf: Vec<Connection> = (0..20).map(|_| be_deaf(cluster, 2000)).collect();
        // 40 clients send all but the end of a value of 15 MiB: 600 MiB.
        let (mut greedy, mut told) = (Vec::new(), 0);
        for _ in 0..40 {
            let mut connection = open(cluster, Node::Master);
            let mut part = b"*3\r\n$3\r\nSET\r\n$6\r\ngreedy\r\n$15728640\r\n".to_vec();
            part.resize(15 << 20, b'x');
            if connection.send(&part).is_err() {
                told += 1;
            }
            greedy.push(connection);
        }
        assert!(told > 0, "600 MiB of unfinished requests fit into 32 MiB");
        let most = (20 * 2 * 4 + 2 * 32 + 64) * MIB;
        common::stays("the master's memory is bounded", seconds(1), || {
            let grown = cluster.resident_bytes(Node::Master).saturating_sub(before);
            if grown < most {
                Ok(())
            } else {
                Err(format!("{} MiB more", grown / MIB))
            }
        });
        let during = info(cluster, Node::Master);
        assert!(during.number("unfinished_request_bytes") <= 32 * MIB, "{during:?}");
        assert!(during.number("uploads_cut") > 0, "{during:?}");
        assert!(during.number("requests_parked") > 0, "{during:?}");
        // Clients with short requests are unaffected; longer ones find no room meanwhile, and are told so.
        load.wait_for_writes(100, seconds(5));
        drop(greedy);
        drop(deaf);
        wait_for("everything is given back", seconds(3), || {
            let now = info(cluster, Node::Master);
            (now.number("unfinished_request_bytes") == 0 && now.number("connections") < 50).then_some(())
        });
        assert_eq!(cluster.ask(&[b"GET", b"greedy"]), Answer::Null);
    });
}

/// The HELLO of this cluster's other master.
fn other_master(cluster: &TestCluster) -> HelloRole {
    let mut lock = cluster.log().into_os_string();
    lock.push(".lock");
    let lock = std::fs::metadata(lock).expect("the lock file");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the kernel tells");
    let log_identity = format!("{}:{}:{}", boot.trim(), lock.dev(), lock.ino());
    HelloRole::Master { address: "127.0.0.1:1".to_string(), log_identity }
}

/// The beginning of a frame with a body of `length` bytes: the header and `sent` bytes more.
fn unfinished(length: usize, sent: usize) -> Vec<u8> {
    let mut bytes = u32::try_from(length).expect("short").to_le_bytes().to_vec();
    bytes.resize(9 + sent, 17);
    bytes
}

#[test]
fn an_unknown_peer_may_send_only_short_messages() {
    nobody_notices(&[], |cluster, _| {
        for master in MASTERS {
            let before = cluster.resident_bytes(master);
            let mut held = Vec::new();
            for number in 0..50 {
                // Instead of a HELLO.
                let mut link = Native::open(cluster.address(master), seconds(5));
                link.send(&[&PREFACE[..], &unfinished(4097, 0)].concat()).expect("sent");
                assert!(link.end().expect("a reason").contains("over the limit of 4096"));
                // After the HELLO of a slave that does not enlist: no value was asked of it.
                let mut link = Native::open(cluster.address(master), seconds(5));
                link.say_hello(None, native::slave(&format!("stranger-{number}"))).expect("sent");
                link.welcome().expect("a slave is welcome");
                let mut sent = unfinished(16 << 20, 0);
                // It may be cut in the middle.
                let _ = link.send(&sent);
                sent.resize(1 << 20, 17);
                let _ = link.send(&sent);
                assert!(link.end().is_none_or(|told| told.contains("over the limit of 4096")));
                // Unfinished HELLOs count.
                let mut link = Native::open(cluster.address(master), seconds(5));
                link.send(&[&PREFACE[..], &unfinished(4096, 4000)].concat()).expect("sent");
                held.push(link);
            }
            wait_for("INFO shows what waits", seconds(5), || {
                (info(cluster, master).number("unfinished_link_bytes") >= 200_000).then_some(())
            });
            let grown = cluster.resident_bytes(master).saturating_sub(before);
            assert!(grown < 32 * MIB, "{} MiB more", grown / MIB);
            drop(held);
            wait_for("it is given back", seconds(5), || {
                (info(cluster, master).number("unfinished_link_bytes") == 0).then_some(())
            });
            assert_eq!(info(cluster, master).number("links_cut"), 0);
        }
    });
}

#[test]
fn unfinished_frames_over_the_limit_in_all_are_cut() {
    nobody_notices(&["--max-link-bytes", "2MiB"], |cluster, load| {
        let long = vec![b'l'; 3 << 20];
        assert_eq!(cluster.ask(&[b"SET", b"long", &long]), Answer::ok());
        for master in MASTERS {
            let linked = || {
                let mut link = Native::open(cluster.address(master), seconds(5));
                link.say_hello(None, other_master(cluster)).expect("sent");
                link.welcome().expect("a master of the same log is welcome");
                link
            };
            let (mut first, mut second) = (linked(), linked());
            first.send(&unfinished(16 << 20, 3 << 19)).expect("one alone may send what it likes");
            wait_for_count(cluster, master, "unfinished_link_bytes", 3 << 19);
            // It may be cut in the middle.
            let _ = second.send(&unfinished(16 << 20, 1 << 20));
            assert!(second.end().is_none_or(|told| told.contains("too many bytes of unfinished frames")));
            wait_for_count(cluster, master, "links_cut", 1);
            first.send(&vec![17; 1 << 20]).expect("it may still send what it likes");
            wait_for_count(cluster, master, "unfinished_link_bytes", 5 << 19);
            // The first bytes of a connection have room of their own.
            drop(linked());
            // Clients are unaffected, and so are slaves and masters that send short frames or values that were asked
            // for.
            load.wait_for_writes(100, seconds(5));
            for asked in MASTERS {
                let answer = open(cluster, asked).call(&[b"GET", b"long"]).expect("an answer");
                assert!(answer == Answer::bulk(&long), "asked {asked:?}");
            }
            drop(first);
            wait_for("it is given back", seconds(5), || {
                (info(cluster, master).number("unfinished_link_bytes") == 0).then_some(())
            });
        }
    });
}

/// A link of somebody who says that he is the other master.
fn as_other_master(cluster: &TestCluster) -> Native {
    let mut link = Native::open(cluster.address(Node::Master), seconds(2));
    link.say_hello(None, other_master(cluster)).expect("sent");
    link.welcome().expect("a master of the same log is welcome");
    link
}

/// So many requests for a key, as a master forwards them; `stream` gives the session of each.
fn forwarded(command: &Command, ids: std::ops::Range<u64>, stream: impl Fn(u64) -> u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in ids {
        let request =
            Request { id: RequestId(id), stream: stream(id), generation: 0, command: command.clone() };
        frame::encode_request(&request, &mut bytes);
    }
    bytes
}

#[test]
fn another_master_that_takes_no_answers_is_not_read_further() {
    const BATCH: u64 = 1000;
    const REQUESTS_MAX: u64 = 60_000;
    nobody_notices(&["--max-pipeline-bytes", "4MiB"], |cluster, load| {
        assert_eq!(cluster.ask(&[b"SET", b"some", &vec![b's'; 10_000]]), Answer::ok());
        let commands = [Command::Get { key: "some".into() }, Command::Exists { keys: vec!["some".into()] }];
        // Each value is a copy of its own in the master; what is counted is short, and more of it is asked.
        for (command, times) in commands.into_iter().zip([1, 40]) {
            let before = cluster.resident_bytes(Node::Master);
            let mut link = as_other_master(cluster);
            let mut sent = 0;
            // Until it is not read any further.
            while sent < times * REQUESTS_MAX
                && link.send(&forwarded(&command, sent..sent + BATCH, |_| 1)).is_ok()
            {
                sent += BATCH;
            }
            // What was read is answered meanwhile, as far as there is room for it.
            load.wait_for_writes(2000, seconds(10));
            let grown = cluster.resident_bytes(Node::Master).saturating_sub(before);
            assert!(grown < 64 * MIB, "{} MiB more after {sent} times {command:?}", grown / MIB);
            // Beyond `--max-pipeline-bytes` goes what was on its way when that was reached.
            let answer_bytes = info(cluster, Node::Master).number("answer_bytes");
            assert!(answer_bytes < 8 * MIB, "{answer_bytes} bytes of answers to {sent} times {command:?}");
            drop(link);
        }
    });
}

#[test]
fn another_master_has_no_more_sessions_than_two_masters_have_connections() {
    const STREAMS: u64 = 5000;
    nobody_notices(&["--max-connections", "100"], |cluster, load| {
        let mut link = as_other_master(cluster);
        let command = Command::Exists { keys: vec!["some".into()] };
        let mut busy = 0;
        for from in (0..STREAMS).step_by(500) {
            link.send(&forwarded(&command, from..from + 500, |id| id)).expect("it is read");
            for _ in 0..500 {
                let reply = loop {
                    // What it says of who serves comes in between.
                    if let Message::Response { reply, .. } = link.message().expect("an answer") {
                        break reply;
                    }
                };
                busy += u64::from(matches!(&reply, Reply::Error(error) if error.word == ErrorWord::Busy));
            }
        }
        let clients = info(cluster, Node::Master).number("connected_clients");
        assert!(clients <= 300, "{clients} sessions");
        assert!((STREAMS - 300..=STREAMS - 100).contains(&busy), "{busy} were BUSY");
        load.wait_for_writes(100, seconds(5));
        drop(link);
        wait_for("the sessions are over", seconds(5), || {
            (info(cluster, Node::Master).number("connected_clients") < 100).then_some(())
        });
    });
}

#[test]
fn where_users_are_set_clients_of_another_master_beyond_the_limit_are_busy_and_never_taken_for_somebody_else()
{
    // Twice the connections.
    const NAMED_MAX: u64 = 200;
    let directory = tempfile::tempdir().expect("a directory");
    let users = directory.path().join("users");
    std::fs::write(&users, "user default on nopass ~* +@all\nuser ops on nopass ~some +@read\n")
        .expect("a file");
    let users = users.to_str().expect("text");
    nobody_notices(&["--max-connections", "100", "--users-file", users], |cluster, load| {
        let mut link = as_other_master(cluster);
        let named = |stream| {
            let user = StreamUser::Named("ops".to_owned());
            let mut bytes = Vec::new();
            frame::encode(&Message::Control(Control::StreamUser { stream, user }), &mut bytes);
            bytes
        };
        let mut asked = |bytes: Vec<u8>, key: &'static str, streams: std::ops::Range<u64>| -> Vec<Reply> {
            let command = Command::Exists { keys: vec![key.into()] };
            let count = streams.end - streams.start;
            link.send(&[bytes, forwarded(&command, streams, |id| id)].concat()).expect("it is read");
            let mut replies = Vec::new();
            while (replies.len() as u64) < count {
                // What it says of who serves comes in between.
                if let Message::Response { reply, .. } = link.message().expect("an answer") {
                    replies.push(reply);
                }
            }
            replies
        };
        let is_refused_as = |replies: &[Reply], expected: ErrorWord| {
            replies.iter().all(|reply| matches!(reply, Reply::Error(error) if error.word == expected))
        };
        // Nobody has a session yet: the users' table alone is full.
        let names = (0..NAMED_MAX + 50).flat_map(named).collect();
        let beyond = asked(names, "some", NAMED_MAX..NAMED_MAX + 50);
        assert!(is_refused_as(&beyond, ErrorWord::Busy), "{beyond:?}");
        let within = asked(Vec::new(), "some", 0..5);
        assert!(within.iter().all(|reply| matches!(reply, Reply::Count(_))), "{within:?}");
        let other = asked(Vec::new(), "other", 0..5);
        assert!(is_refused_as(&other, ErrorWord::NoPermission), "{other:?}");
        // There is room again once so many have left; those who found none count, too.
        let mut said = Vec::new();
        for stream in 0..51 {
            frame::encode(&Message::Control(Control::StreamClosed { stream }), &mut said);
        }
        said.extend(named(NAMED_MAX));
        let room = asked(said, "some", NAMED_MAX..NAMED_MAX + 1);
        assert!(room.iter().all(|reply| matches!(reply, Reply::Count(_))), "{room:?}");
        load.wait_for_writes(100, seconds(5));
    });
}

#[test]
fn a_long_request_leaves_no_memory_behind() {
    nobody_notices(&[], |cluster, _| {
        let long = vec![b'x'; 8 << 20];
        let mut resp: Vec<Connection> = (0..50).map(|_| open(cluster, Node::Master)).collect();
        let mut native: Vec<Native> =
            (0..50).map(|_| Native::client(cluster.address(Node::Master), seconds(5))).collect();
        let before = cluster.resident_bytes(Node::Master);
        for (resp, native) in resp.iter_mut().zip(&mut native) {
            let answer = resp.call(&[b"NOSUCH", &long]).expect("an answer");
            assert_eq!(answer.error_word(), Some("ERR"));
            // A key is never that long.
            let reply = native.call(Command::Get { key: long.clone().into() });
            assert!(matches!(&reply, Reply::Error(error) if error.word.as_str() == "ERR"), "{reply:.100?}");
        }
        let most = 128 * MIB;
        wait_for("the memory of 800 MiB of requests is given back", seconds(10), || {
            (cluster.resident_bytes(Node::Master).saturating_sub(before) < most).then_some(())
        });
        for (resp, native) in resp.iter_mut().zip(&mut native) {
            assert_eq!(resp.call(&[b"PING"]).expect("an answer"), Answer::Simple("PONG".to_string()));
            assert_eq!(native.call(Command::Get { key: "nothing".into() }), Reply::NotFound);
        }
    });
}

/// The rows of a table, as cells, between a heading of a document and the next heading of the same level.
fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(document);
    let text = std::fs::read_to_string(path).expect("the document");
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("the section");
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()).collect()
}

/// The words of a cell in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_field_of_info_is_explained_and_each_limit_names_its_own() {
    let cluster = Setup::slaves(2).beside_others().start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    // The backup knows both from the log.
    wait_for("both know the cluster and the key", seconds(5), || {
        let knows = |&master: &Node| {
            cluster.info(master).is_some_and(|info| info.get("cluster_id").and(info.get("db0")).is_some())
        };
        MASTERS.iter().all(knows).then_some(())
    });
    let (mut section, mut explained, mut of_slaves) = (String::new(), BTreeSet::new(), BTreeSet::new());
    for row in table("FORMATS.md", "INFO") {
        assert_eq!(row.len(), 4, "{row:?}");
        if !row[0].is_empty() {
            section = row[0].clone();
        }
        // These masters' log is one file.
        if row[2].starts_with("with `--members`:") {
            continue;
        }
        let fields: Vec<_> = quoted(&row[1]).map(|field| (section.clone(), field.to_string())).collect();
        if row[2].starts_with("of a slave:") {
            of_slaves.extend(fields.clone());
        }
        explained.extend(fields);
    }
    for master in MASTERS {
        let Answer::Bulk(text) = open(&cluster, master).call(&[b"INFO"]).expect("an answer") else {
            panic!("no INFO");
        };
        let (mut section, mut shown, mut sections) = (String::new(), BTreeSet::new(), BTreeSet::new());
        for line in String::from_utf8(text).expect("text").lines().filter(|line| !line.is_empty()) {
            match (line.strip_prefix("# "), line.split_once(':')) {
                (Some(heading), _) => {
                    section = heading.to_string();
                    sections.insert(heading.to_lowercase());
                }
                (None, Some((field, _))) => {
                    shown.insert((section.clone(), field.to_string()));
                }
                (None, None) => panic!("{line:?}"),
            }
        }
        if master == Node::Master {
            assert!(shown.is_disjoint(&of_slaves) && !of_slaves.is_empty(), "{shown:?}");
            shown.extend(of_slaves.clone());
        }
        assert_eq!(shown, explained, "what {master:?} shows, and what docs/FORMATS.md explains");
        assert_eq!(sections, SECTIONS.map(str::to_string).into(), "each can be asked for by name");
    }
    let known: BTreeSet<&str> = explained.iter().map(|(_, field)| field.as_str()).collect();
    for row in table("ARCHITECTURE.md", "Limits") {
        assert_eq!(row.len(), 4, "{row:?}");
        for field in quoted(&row[3]) {
            assert!(known.contains(field), "docs/ARCHITECTURE.md, Limits, names {field}: {row:?}");
        }
    }
}
