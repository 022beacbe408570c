//! Slaves that misbehave, and clusters with too few of them: real processes, with a wire between them that the test
//! controls.

mod common;

use common::cluster::{command, Node, Setup, TestCluster};
use common::resp::{encoded, Answer, Connection, Info};
use common::{millis, seconds, wait_for};
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

const MIB: u64 = 1 << 20;

fn slave(id: &str, masters: &[SocketAddr]) -> Command {
    let mut command = command(Node::Slave(0));
    let masters: Vec<String> = masters.iter().map(SocketAddr::to_string).collect();
    command.args(["--id", id, "--masters", &masters.join(",")]);
    command
}

fn info(cluster: &TestCluster) -> Info {
    cluster.info(Node::Master).expect("INFO is always answered")
}

/// A wire to a master that passes the master's frames only up to a length, and at a limited rate. At a longer frame the
/// stream stalls, as with a router that drops full packets.
struct Wire {
    address: SocketAddr,
    /// Bytes of the longest frame that passes.
    frame_max: Arc<AtomicUsize>,
    _accepting: JoinHandle<()>,
}

impl Wire {
    fn to(master: SocketAddr, frame_max: usize, bytes_per_second: Option<u64>) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let frame_max = Arc::new(AtomicUsize::new(frame_max));
        let limit = Arc::clone(&frame_max);
        let accepting = std::thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { return };
                let Ok(far) = TcpStream::connect(master) else { continue };
                let limit = Arc::clone(&limit);
                let (from, to) = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
                std::thread::spawn(move || copy(from, to));
                std::thread::spawn(move || copy_frames(far, near, &limit, bytes_per_second));
            }
        });
        Wire { address, frame_max, _accepting: accepting }
    }

    fn lets_everything_pass(&self) {
        self.frame_max.store(usize::MAX, Ordering::Relaxed);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // Fails only for what is closed already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn copy_frames(
    mut from: TcpStream,
    mut to: TcpStream,
    frame_max: &AtomicUsize,
    bytes_per_second: Option<u64>,
) {
    let mut pass = || -> io::Result<()> {
        loop {
            let mut frame = vec![0; 9];
            from.read_exact(&mut frame)?;
            let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
            if frame.len() + length > frame_max.load(Ordering::Relaxed) {
                // Later bytes are not read until the connection ends, as with a full buffer.
                while from.peek(&mut [0])? > 0 && from.take_error()?.is_none() {
                    std::thread::sleep(common::millis(20));
                    if is_closed(&to) {
                        return Ok(());
                    }
                }
                return Ok(());
            }
            frame.resize(9 + length, 0);
            // Bytes that have arrived are passed on: a wire does not wait for whole frames.
            to.write_all(&frame[..9])?;
            for piece in frame[9..].chunks_mut(64 * 1024) {
                from.read_exact(piece)?;
                to.write_all(piece)?;
                if let Some(rate) = bytes_per_second {
                    std::thread::sleep(common::millis(piece.len() as u64 * 1000 / rate));
                }
            }
        }
    };
    let _ = pass();
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Whether the other direction has shut this socket down.
fn is_closed(socket: &TcpStream) -> bool {
    socket.peer_addr().is_err()
}

/// Writes many keys, one after the other, each with a value of `bytes` bytes.
fn write(connection: &mut Connection, prefix: &str, count: usize, bytes: usize) {
    for number in 0..count {
        let (key, value) = (format!("{prefix}-{number}"), vec![b'v'; bytes]);
        let answer = connection.call(&[b"SET", key.as_bytes(), &value]).expect("an answer");
        assert_eq!(answer, Answer::ok(), "{key}");
    }
}

/// Clients that constantly ask for more than can be done, in pipelines, and read their answers.
struct Flood {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Flood {
    fn of(cluster: &TestCluster, clients: usize, request: &[&[u8]]) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let packet = encoded(request).repeat(1000);
        let address = cluster.address(Node::Master);
        let clients = (0..clients).map(|_| {
            let mut sender = TcpStream::connect(address).expect("the master accepts connections");
            sender.set_write_timeout(Some(millis(100))).expect("a timeout");
            let mut taker = sender.try_clone().expect("a handle");
            let (stop, packet) = (Arc::clone(&stop), packet.clone());
            std::thread::spawn(move || {
                let taking = std::thread::spawn(move || io::copy(&mut taker, &mut io::sink()));
                let mut left: &[u8] = &[];
                while !stop.load(Ordering::Relaxed) {
                    if left.is_empty() {
                        left = &packet;
                    }
                    left = &left[sender.write(left).unwrap_or(0)..];
                }
                let _ = sender.shutdown(Shutdown::Both);
                let _ = taking.join();
            })
        });
        let clients = clients.collect();
        Flood { stop, clients }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("it does not panic"));
    }
}

#[test]
fn a_slave_joins_and_one_that_hangs_is_noticed_while_clients_ask_more_than_can_be_done() {
    let mut cluster = Setup::slaves(2).start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    let flood = Flood::of(&cluster, 40, &[b"EXISTS", b"k"]);
    wait_for("there is always more to be done", seconds(10), || {
        (info(&cluster).number("requests_in_flight") > 100_000).then_some(())
    });
    let one = Node::Slave(0);
    cluster.kill(one);
    wait_for("it is gone", seconds(5), || (info(&cluster).number("active_slaves") == 1).then_some(()));
    cluster.start(one);
    cluster.wait_for_active_slaves(2, seconds(5));
    // Without writes, so that only an answer to a ping is owed.
    cluster.pause(one);
    wait_for("it is missed", seconds(5), || (info(&cluster).number("active_slaves") == 1).then_some(()));
    cluster.resume(one);
    cluster.wait_for_active_slaves(2, seconds(10));
    assert!(info(&cluster).number("requests_in_flight") > 100_000, "they still ask");
    flood.end();
}

#[test]
fn a_slave_that_takes_no_long_frames_costs_one_write_a_wait_and_is_used_again_when_it_does() {
    let cluster = Setup::slaves(2).start();
    let wires = cluster.addresses().map(|master| Wire::to(master, 1024, None));
    let masters = [wires[0].address, wires[1].address];
    let (_slave, said) = cluster.start_stranger(slave("narrow", &masters), "narrow");
    cluster.wait_for_active_slaves(3, seconds(5));
    let mut connection = cluster.connect_to_primary();
    write(&mut connection, "first", 300, 2048);
    // This goes on until the slave has failed twice more, in trials.
    let mut rounds = 0;
    wait_for("the slave fails its trials", seconds(12), || {
        rounds += 1;
        write(&mut connection, &format!("round-{rounds}"), 20, 2048);
        let failures = info(&cluster).of_slaves("failures");
        failures
            .iter()
            .any(|failures| failures.parse().is_ok_and(|failures: u64| failures >= 3))
            .then_some(())
    });
    let now = info(&cluster);
    assert_eq!(now.of_slaves("state"), ["active", "active", "quarantined"]);
    let waited = (now.number("slaves_removed"), now.number("substitutions"), now.number("unknown_total"));
    assert_eq!(waited, (1, 1, 0), "removed once, and one write waited for it: {now:?}");
    let told = cluster.stderr(Node::Master);
    let warned = told.lines().filter(|line| line.contains("WARN") && line.contains("slave quarantined"));
    assert_eq!(warned.count(), 1, "{told}");
    let told = std::fs::read_to_string(&said).expect("text");
    assert!(told.contains("in quarantine, not used for a while"), "{told}");

    wires.iter().for_each(Wire::lets_everything_pass);
    cluster.wait_for_active_slaves(3, seconds(20));
    write(&mut connection, "last", 100, 2048);
    let now = info(&cluster);
    assert_eq!(now.number("slaves_removed"), 1);
    let acked: Vec<u64> = now.of_slaves("writes_acked").iter().map(|acked| acked.parse().unwrap()).collect();
    assert!(acked.len() == 3 && acked.iter().all(|acked| *acked > 0), "all take writes again: {acked:?}");
}

#[test]
fn a_long_value_on_a_slow_link_costs_no_slave() {
    let cluster = Setup::slaves(0).start();
    let wires = cluster.addresses().map(|master| Wire::to(master, usize::MAX, Some(6 * MIB)));
    let (_slave, _) = cluster.start_stranger(slave("slow", &[wires[0].address, wires[1].address]), "slow");
    cluster.wait_for_active_slaves(1, seconds(5));
    let mut connection = cluster.connect_to_primary();
    // Each takes over two seconds on the way, with an ACK timeout of one; and then two at the same time.
    let value = vec![b'v'; 16 * MIB as usize];
    let mut other = cluster.connect_to_primary();
    let sent = std::thread::spawn(move || other.call(&[b"SET", b"other", &[b'w'; 1000]]));
    assert_eq!(connection.call(&[b"SET", b"long", &value]).expect("an answer"), Answer::ok());
    assert_eq!(sent.join().expect("no panic").expect("an answer"), Answer::ok());
    let now = info(&cluster);
    assert_eq!((now.number("slaves_removed"), now.number("unknown_total")), (0, 0), "{now:?}");
    assert!(now.number("slowest_slave_ack_ms") > 0, "{now:?}");
}

/// Sets keys one after the other until one is refused; gives how many were accepted. No outcome may be unknown.
fn fill(address: SocketAddr, prefix: &str, value: &[u8]) -> usize {
    let mut connection = Connection::open(address, seconds(10)).expect("the master accepts connections");
    for number in 0..100_000 {
        let key = format!("{prefix}-{number}");
        match connection.call(&[b"SET", key.as_bytes(), value]).expect("an answer") {
            answer if answer == Answer::ok() => {}
            refused => {
                assert_eq!(refused.error_word(), Some("OOM"), "{refused:?}");
                return number;
            }
        }
    }
    panic!("more than the slaves can hold was taken");
}

#[test]
fn slaves_that_are_added_to_a_full_store_take_what_the_full_ones_cannot() {
    const MEMORY: [&str; 2] = ["--max-memory", "8MiB"];
    // Repair would give the new slaves second copies, too.
    let cluster = Setup::slaves(3).slaves_with(&MEMORY).masters_with(&["--repair-rate", "0"]).start();
    let address = cluster.address(Node::Master);
    let value = [b'v'; 64 * 1024];
    let keys: Vec<String> = (0..100).map(|number| format!("many-{number}")).collect();
    let many = |value: &[u8]| {
        let pairs = keys.iter().flat_map(|key| [key.as_bytes(), value]);
        let request: Vec<&[u8]> = [&b"MSET"[..]].into_iter().chain(pairs).collect();
        cluster.connect_to_primary().call(&request).expect("an answer")
    };
    assert_eq!(many(&[b'v'; 1000]), Answer::ok());
    // Eight clients reach the limit at once: each write is done, or refused before it reaches the log.
    let filling: Vec<JoinHandle<usize>> = (0..8)
        .map(|client| {
            std::thread::spawn(move || fill(address, &format!("full-{client}"), &[b'v'; 64 * 1024]))
        })
        .collect();
    let taken: Vec<usize> = filling.into_iter().map(|thread| thread.join().expect("no doubt")).collect();
    let in_all: usize = taken.iter().sum();
    // Each key has two copies at first, and one when only one slave has room.
    assert!((180..=384).contains(&in_all), "{taken:?}");
    let now = info(&cluster);
    assert_eq!((now.number("errors_unknown"), now.number("unknown_total")), (0, 0), "{now:?}");
    assert_eq!(now.number("writes_without_copy"), 0, "{now:?}");
    assert_eq!(now.number("slaves_full"), 3, "{now:?}");
    let told = || cluster.stderr(Node::Master).matches("degraded: no room at").count();
    let lines =
        wait_for("it is told that there is no room", seconds(5), || Some(told()).filter(|&lines| lines > 0));
    assert_eq!(lines, 1, "{}", cluster.stderr(Node::Master));
    assert_eq!(many(&value).error_word(), Some("OOM"), "all of them or none");
    assert_eq!(many(&[b'w'; 1000]), Answer::ok(), "the new values take the old ones' room");
    let mut connection = cluster.connect_to_primary();
    for number in 0..taken[0] {
        let (key, value) = (format!("full-0-{number}"), [b'w'; 64 * 1024]);
        let answer = connection.call(&[b"SET", key.as_bytes(), &value]).expect("an answer");
        assert_eq!(answer, Answer::ok(), "the new value takes the old one's room: {key}");
    }

    let added: Vec<_> = ["added-1", "added-2"]
        .map(|id| {
            let mut command = slave(id, &cluster.addresses());
            command.args(MEMORY);
            cluster.start_stranger(command, id)
        })
        .into();
    cluster.wait_for_active_slaves(5, seconds(5));
    let mut connection = cluster.connect_to_primary();
    for number in 0..100 {
        let key = format!("new-{number}");
        let answer = connection.call(&[b"SET", key.as_bytes(), &value]).expect("an answer");
        assert_eq!(answer, Answer::ok(), "{key}");
    }
    let now = info(&cluster);
    assert_eq!((now.number("errors_unknown"), now.number("writes_without_copy")), (0, 0), "{now:?}");
    let many_99 = connection.call(&[b"GET", b"many-99"]).expect("an answer");
    assert_eq!(many_99, Answer::bulk([b'w'; 1000]));
    for key in ["full-0-0", "full-7-0", "new-0", "new-99"] {
        let letter = if key == "full-0-0" { b'w' } else { b'v' };
        let answer = connection.call(&[b"GET", key.as_bytes()]).expect("an answer");
        assert_eq!(answer, Answer::bulk([letter; 64 * 1024]), "{key}");
    }
    drop(added);
}

#[test]
fn a_slave_that_hangs_holds_no_read_up() {
    // Nobody is removed, and no read goes on to another slave because its time is over.
    let patient = ["--read-timeout", "20s", "--ack-timeout", "20s", "--request-timeout", "40s"];
    let mut cluster = Setup::slaves(3).masters_with(&patient).start();
    let mut connection = cluster.connect_to_primary();
    let keys: Vec<String> = (0..100).map(|number| format!("key-{number}")).collect();
    let ask = |connection: &mut Connection| {
        let begun = Instant::now();
        for key in &keys {
            assert_eq!(
                connection.call(&[b"GET", key.as_bytes()]).expect("an answer"),
                Answer::bulk(key.as_str())
            );
        }
        begun.elapsed()
    };
    for key in &keys {
        assert_eq!(
            connection.call(&[b"SET", key.as_bytes(), key.as_bytes()]).expect("an answer"),
            Answer::ok()
        );
    }
    ask(&mut connection);
    cluster.pause(Node::Slave(1));
    for _ in 0..20 {
        assert!(ask(&mut connection) < seconds(10), "a read waited for the slave that hangs");
    }
    let now = info(&cluster);
    assert_eq!((now.number("read_retries"), now.number("reads_from_log")), (0, 0), "{now:?}");
    let (hedged, won) = (now.number("reads_hedged"), now.number("reads_hedged_won"));
    assert!(won > 0 && won <= hedged && hedged <= 200, "{hedged} of 2,100 asked twice, {won} won");
    cluster.resume(Node::Slave(1));
    ask(&mut connection);
}

/// `dsm-client STATUS`: its exit code, and its standard error.
fn status(cluster: &TestCluster) -> (i32, String) {
    let masters = cluster.addresses().map(|address| address.to_string()).join(",");
    let mut client = Command::new(env!("CARGO_BIN_EXE_dsm-client"));
    client.env_remove("DSM_MASTERS").args(["--masters", &masters, "STATUS"]);
    let output = client.output().expect("the binary is built");
    assert!(String::from_utf8_lossy(&output.stdout).contains("dsm_role:primary"), "{output:?}");
    (output.status.code().expect("an exit code"), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits until STATUS ends with 1 and says this, or with 0 if it is empty.
fn wait_for_status(cluster: &TestCluster, says: &str) {
    wait_for(&format!("STATUS says {says:?}"), seconds(12), || {
        let (code, told) = status(cluster);
        let fits = match says {
            "" => code == 0 && told.is_empty(),
            says => code == 1 && told.lines().count() == 1 && told.contains(says),
        };
        fits.then_some(())
    });
}

#[test]
fn lost_redundancy_is_logged_when_it_begins_and_when_it_ends() {
    let mut cluster = Setup::slaves(2).masters_with(&["--repair-rate", "0"]).start();
    let mut connection = cluster.connect_to_primary();
    write(&mut connection, "key", 200, 10);
    wait_for_status(&cluster, "");
    let now = info(&cluster);
    assert!(now.number("used_memory_rss") > MIB && now.number("standby_lag_ms") < 3000, "{now:?}");
    assert!(["slave-0", "slave-1"].contains(&now.get("slowest_slave").expect("INFO has it")), "{now:?}");

    cluster.kill(Node::Slave(1));
    wait_for_status(&cluster, "1 of 2 slaves are active");
    // Half of the keys were only on this slave.
    wait_for_status(&cluster, "keys have no copy");
    let lost = info(&cluster).number("keys_without_copy");
    assert!((20..=180).contains(&lost), "{lost}");
    cluster.start(Node::Slave(1));
    for number in 0..200 {
        connection.call(&[b"GET", format!("key-{number}").as_bytes()]).expect("an answer");
    }
    wait_for_status(&cluster, "");

    cluster.pause(Node::Backup);
    wait_for_status(&cluster, "ms behind");
    assert!(info(&cluster).number("standby_lag_ms") >= 5000);
    cluster.resume(Node::Backup);
    wait_for_status(&cluster, "");
    cluster.kill(Node::Backup);
    wait_for_status(&cluster, "no standby is connected");
    assert_eq!(info(&cluster).get("standby_lag_ms"), Some(""));
    cluster.start(Node::Backup);
    wait_for_status(&cluster, "");

    let told = cluster.stderr(Node::Master);
    let warnings: Vec<&str> = told.lines().filter(|line| line.contains("WARN")).collect();
    for (begins, ends) in [
        ("degraded: 1 of 2 slaves are active", "no longer degraded: all slaves are active"),
        ("keys have no copy", "no longer degraded: all keys have a copy"),
        ("degraded: the standby is", "no longer degraded: the standby has caught up"),
        ("degraded: no standby is connected", "no longer degraded: a standby is connected"),
    ] {
        for words in [begins, ends] {
            let times = warnings.iter().filter(|line| line.contains(words)).count();
            assert_eq!(times, 1, "{words}: {told}");
        }
    }
}

#[test]
fn a_second_pair_on_the_same_log_says_whom_it_waits_for() {
    let cluster = Setup::slaves(1).start();
    let [listen, peer] = common::cluster::free_ports();
    let mut second = command(Node::Master);
    second.args(["--listen", &listen.to_string(), "--peer", &peer.to_string(), "--log"]).arg(cluster.log());
    let (_second, said) = cluster.start_stranger(second, "second");
    let holder = info(&cluster).number("process_id");
    let words = format!("another master holds: pid={holder} address={}", cluster.address(Node::Master));
    wait_for("it says so", seconds(8), || {
        let told = std::fs::read_to_string(&said).ok()?;
        told.lines().any(|line| line.contains("WARN") && line.contains(&words)).then_some(())
    });
    let second = Info::of(listen, seconds(2)).expect("INFO");
    // Not with equals signs: see docs/FORMATS.md, INFO.
    let words = words.replace('=', ":");
    assert!(second.get("degraded").is_some_and(|what| what.contains(&words)), "{second:?}");
}

const KEYS: usize = 3000;

fn value_of(number: usize) -> Vec<u8> {
    format!("value-{number}").into_bytes()
}

/// Writes all keys with one request.
fn write_all(connection: &mut Connection) {
    let mut words: Vec<Vec<u8>> = vec![b"MSET".to_vec()];
    for number in 0..KEYS {
        words.extend([format!("key-{number}").into_bytes(), value_of(number)]);
    }
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    assert_eq!(connection.call(&words).expect("an answer"), Answer::ok());
}

/// Reads all keys, and finds each with its value.
fn read_all(connection: &mut Connection) {
    for number in 0..KEYS {
        let key = format!("key-{number}");
        let answer = connection.call(&[b"GET", key.as_bytes()]).expect("an answer");
        assert_eq!(answer, Answer::bulk(value_of(number)), "{key}");
    }
}

/// Waits until repair has nothing more to do; gives INFO of then.
fn wait_for_repair(cluster: &TestCluster, slaves: u64, copies: u64) -> Info {
    wait_for("all copies are there", seconds(20), || {
        let now = info(cluster);
        let rests = now.get("repair_state") == Some("resting") && now.number("keys_under_replicated") == 0;
        (rests && now.number("active_slaves") == slaves && now.number("copies") == copies).then_some(now)
    })
}

#[test]
fn when_a_slave_is_lost_the_others_get_its_copies_without_a_write_and_without_the_log() {
    let mut cluster = Setup::slaves(3).start();
    let mut connection = cluster.connect_to_primary();
    write_all(&mut connection);
    let copies = 2 * KEYS as u64;
    assert_eq!(wait_for_repair(&cluster, 3, copies).number("repaired_keys"), 0);
    cluster.kill(Node::Slave(0));
    let now = wait_for_repair(&cluster, 2, copies);
    let repaired = now.number("repaired_keys");
    assert!(repaired > KEYS as u64 / 3 && now.number("repaired_bytes") > 10 * repaired, "{now:?}");
    // What is left now is enough without the log.
    cluster.kill(Node::Slave(1));
    cluster.wait_for_active_slaves(1, seconds(5));
    read_all(&mut connection);
    assert_eq!(info(&cluster).number("reads_from_log"), 0);
    let ended = format!("repair ended keys={repaired} bytes={} ms=", now.number("repaired_bytes"));
    wait_for("the repair is told", seconds(10), || {
        let told = cluster.stderr(Node::Master);
        (told.contains("repair began cause=\"a slave was lost\"") && told.contains(&ended)).then_some(())
    });
    // A slave that comes back empty gets its share.
    cluster.start(Node::Slave(1));
    let now = wait_for_repair(&cluster, 2, copies);
    assert!(now.number("repaired_keys") >= repaired + KEYS as u64, "{now:?}");
}

#[test]
fn with_a_fixed_number_of_copies_keys_have_that_many_however_many_slaves_there_are() {
    let mut cluster = Setup::slaves(5).masters_with(&["--copies", "2"]).start();
    let mut connection = cluster.connect_to_primary();
    write_all(&mut connection);
    // Half of five would be three.
    let copies = 2 * KEYS as u64;
    let now = wait_for_repair(&cluster, 5, copies);
    assert_eq!((now.get("copies_setting"), now.number("copies_wanted")), (Some("2"), 2));
    cluster.kill(Node::Slave(0));
    wait_for_repair(&cluster, 4, copies);
    for slave in 1..4 {
        cluster.kill(Node::Slave(slave));
    }
    // With one left, writes are acknowledged by that one, and the lack is told.
    wait_for_repair(&cluster, 1, KEYS as u64);
    assert_eq!(connection.call(&[b"SET", b"key-0", &value_of(0)]).expect("an answer"), Answer::ok());
    wait_for("the lack is told", seconds(5), || {
        info(&cluster)
            .get("degraded")
            .is_some_and(|told| told.contains("1 of 5 slaves are active"))
            .then_some(())
    });
    cluster.start(Node::Slave(1));
    wait_for_repair(&cluster, 2, copies);
    read_all(&mut connection);
}

/// Waits until keys have this many copies in all, and are where they belong; gives INFO of then.
fn wait_for_balance(cluster: &TestCluster, master: Node, slaves: u64, copies: u64) -> Info {
    wait_for("the keys are where they belong", seconds(60), || {
        let now = cluster.info(master)?;
        let rests = ["repair_state", "rebalance_state"].iter().all(|state| now.get(state) == Some("resting"));
        let is_placed = now.number("keys_misplaced") == 0 && now.number("keys_under_replicated") == 0;
        let is_there = now.number("active_slaves") == slaves && now.number("copies") == copies;
        (rests && is_placed && is_there && now.get("dsm_role") == Some("primary")).then_some(now)
    })
}

/// How many keys a slave holds, as INFO says.
fn copies_at(info: &Info, slave: &str) -> u64 {
    let lines = (0..8).filter_map(|number| info.get(&format!("slave{number}")));
    let fields = lines.map(|line| line.split(',').collect::<Vec<_>>());
    let mut of_slave = fields.filter(|fields| fields.contains(&format!("id={slave}").as_str()));
    let fields = of_slave.next().unwrap_or_else(|| panic!("{slave} is active: {info:?}"));
    let copies = fields.iter().find_map(|field| field.strip_prefix("copies="));
    copies.and_then(|copies| copies.parse().ok()).expect("an active slave has copies")
}

#[test]
fn a_joining_slave_gets_its_share_and_the_others_give_up_theirs() {
    let mut cluster = Setup::slaves(3).masters_with(&["--copies", "2"]).prepare();
    for node in [Node::Master, Node::Backup, Node::Slave(0), Node::Slave(1)] {
        cluster.start(node);
    }
    cluster.wait_until_serves(Node::Master, seconds(20));
    cluster.wait_for_active_slaves(2, seconds(20));
    let mut connection = cluster.connect_to_primary();
    write_all(&mut connection);
    let copies = 2 * KEYS as u64;
    wait_for_balance(&cluster, Node::Master, 2, copies);
    cluster.start(Node::Slave(2));
    let now = wait_for_balance(&cluster, Node::Master, 3, copies);
    // A third of all copies, which are two of three keys.
    let share = copies / 3;
    for slave in ["slave-0", "slave-1", "slave-2"] {
        let held = copies_at(&now, slave);
        assert!(held.abs_diff(share) < share / 10, "{slave} has {held} keys of {share}");
    }
    assert_eq!(now.number("moved_keys"), copies_at(&now, "slave-2"));
    wait_for("rebalancing is told", seconds(10), || {
        let told = cluster.stderr(Node::Master);
        (told.contains("rebalancing began keys=") && told.contains("rebalancing ended keys=")).then_some(())
    });
    // Any one of them may go, and what it has been given is what counts.
    cluster.kill(Node::Slave(0));
    cluster.wait_for_active_slaves(2, seconds(5));
    read_all(&mut connection);
    assert_eq!(info(&cluster).number("reads_from_log"), 0);
}

/// An error that a master answers.
fn refused(cluster: &TestCluster, words: &[&[u8]]) -> String {
    match cluster.ask(words) {
        Answer::Error(why) => why,
        other => panic!("{words:?} is answered {other:?}"),
    }
}

#[test]
fn a_removed_slave_is_drained_and_let_go_and_comes_back_only_when_it_is_started_anew() {
    let mut cluster = Setup::slaves(3).masters_with(&["--copies", "2"]).start();
    let mut connection = cluster.connect_to_primary();
    write_all(&mut connection);
    let copies = 2 * KEYS as u64;
    wait_for_balance(&cluster, Node::Master, 3, copies);
    let why = refused(&cluster, &[b"REMOVE-SLAVE", b"slave-9"]);
    assert!(why.contains("no slave named slave-9 is active"), "{why}");
    // The standby passes it on to the master that serves.
    let mut standby = cluster.connect(Node::Backup);
    assert_eq!(standby.call(&[b"REMOVE-SLAVE", b"slave-1"]).expect("an answer"), Answer::ok());
    let let_go = |cluster: &TestCluster, master: Node, slaves: u64| {
        wait_for("the slave is let go", seconds(30), || {
            let now = cluster.info(master).filter(|now| now.get("dsm_role") == Some("primary"))?;
            let is_gone = now.number("active_slaves") == slaves && now.number("slaves_let_go") == 3 - slaves;
            (is_gone && now.number("keys_to_drain") == 0).then_some(now)
        })
    };
    let now = let_go(&cluster, Node::Master, 2);
    assert_eq!(
        (now.number("copies"), now.get("slaves_leaving"), now.get("degraded")),
        (copies, Some(""), Some(""))
    );
    assert_eq!(cluster.ask(&[b"REMOVE-SLAVE", b"slave-1"]), Answer::ok());
    wait_for("it is refused", seconds(10), || (info(&cluster).number("slaves_refused") > 0).then_some(()));
    // Nothing was needed from it.
    cluster.kill(Node::Slave(1));
    read_all(&mut connection);
    assert_eq!(info(&cluster).number("reads_from_log"), 0);
    // Another process of that name is wanted.
    cluster.start(Node::Slave(1));
    wait_for_balance(&cluster, Node::Master, 3, copies);
    // After a takeover nobody knows of a removal: it is told again.
    assert_eq!(cluster.ask(&[b"REMOVE-SLAVE", b"slave-2"]), Answer::ok());
    cluster.kill(Node::Master);
    wait_for_balance(&cluster, Node::Backup, 3, copies);
    assert_eq!(cluster.ask(&[b"REMOVE-SLAVE", b"slave-2"]), Answer::ok());
    let_go(&cluster, Node::Backup, 2);
    read_all(&mut cluster.connect(Node::Backup));
    // Another one may go, and the last one not.
    assert_eq!(cluster.ask(&[b"REMOVE-SLAVE", b"slave-0"]), Answer::ok());
    let_go(&cluster, Node::Backup, 1);
    let why = refused(&cluster, &[b"REMOVE-SLAVE", b"slave-1"]);
    assert!(why.contains("slave-1 is the last slave"), "{why}");
    read_all(&mut cluster.connect(Node::Backup));
}

#[test]
fn after_a_takeover_by_a_master_with_another_number_of_copies_keys_get_that_number() {
    let setup = Setup::slaves(3).node_with_variable(Node::Master, "DSM_COPIES", "2");
    let mut cluster = setup.node_with_variable(Node::Backup, "DSM_COPIES", "1").start();
    write_all(&mut cluster.connect_to_primary());
    wait_for_balance(&cluster, Node::Master, 3, 2 * KEYS as u64);
    cluster.kill(Node::Master);
    let now = wait_for_balance(&cluster, Node::Backup, 3, KEYS as u64);
    assert_eq!(now.number("surplus_copies_dropped"), KEYS as u64, "{now:?}");
    read_all(&mut cluster.connect(Node::Backup));
    assert_eq!(cluster.info(Node::Backup).map(|info| info.number("reads_from_log")), Some(0));
    cluster.start(Node::Master);
    cluster.wait_until_serves(Node::Master, seconds(30));
    wait_for_balance(&cluster, Node::Master, 3, 2 * KEYS as u64);
    read_all(&mut cluster.connect_to_primary());
}

#[test]
fn when_all_slaves_are_back_empty_everything_is_readable_at_once_and_the_copies_are_restored() {
    let mut cluster = Setup::slaves(3).start();
    let mut connection = cluster.connect_to_primary();
    write_all(&mut connection);
    let slaves = cluster.slaves();
    cluster.kill_at_once(&slaves);
    cluster.wait_for_active_slaves(0, seconds(5));
    slaves.iter().for_each(|slave| cluster.start(*slave));
    // They may come so close together that nobody sees the first one alone.
    wait_for("a slave is back", seconds(5), || (info(&cluster).number("active_slaves") > 0).then_some(()));
    read_all(&mut connection);
    wait_for_repair(&cluster, 3, 2 * KEYS as u64);
    let before = info(&cluster).number("reads_from_log");
    read_all(&mut connection);
    assert_eq!(info(&cluster).number("reads_from_log"), before);
}
