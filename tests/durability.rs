//! What the log preserves: after kills of everything, faster than any timeout; with a torn end, a flipped byte, or
//! lines of the original program.

mod common;

use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::load::Load;
use common::resp::Answer;
use common::{millis, seconds};
use dsm_protocol::ids::{ClusterId, Epoch, Seq};
use dsm_protocol::record::{encode, encode_write, Operation};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::io::Write as _;
use std::time::Instant;

fn seeded() -> StdRng {
    let seed: u64 = rand::random();
    println!("faults: seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn set(cluster: &TestCluster, key: &str, value: &str) {
    assert_eq!(cluster.ask(&[b"SET", key.as_bytes(), value.as_bytes()]), Answer::ok());
}

fn get(cluster: &TestCluster, key: &str) -> Answer {
    cluster.ask(&[b"GET", key.as_bytes()])
}

#[test]
fn both_masters_killed_at_once_lose_nothing() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    for order in [MASTERS, [Node::Backup, Node::Master], MASTERS] {
        cluster.kill_at_once(&MASTERS);
        order.into_iter().for_each(|master| cluster.start(master));
        load.wait_for_writes(200, seconds(10));
    }
    load.prove(&mut cluster);
}

#[test]
fn everything_killed_at_once_again_and_again_loses_nothing() {
    let mut random = seeded();
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    for _ in 0..5 {
        cluster.kill_all();
        cluster.start_all();
        // In the middle of locks, replays, takeovers and first writes.
        std::thread::sleep(millis(random.random_range(0..600)));
    }
    load.wait_for_writes(200, seconds(15));
    load.prove(&mut cluster);
}

#[test]
fn a_storm_of_restarts_of_both_masters_loses_nothing() {
    let mut random = seeded();
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    let begun = Instant::now();
    while begun.elapsed() < seconds(5) {
        cluster.restart(MASTERS[random.random_range(0..2)]);
        std::thread::sleep(millis(random.random_range(0..250)));
    }
    load.wait_for_writes(200, seconds(15));
    load.prove(&mut cluster);
}

#[test]
fn a_storm_of_restarts_of_all_slaves_loses_nothing() {
    let mut random = seeded();
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    let begun = Instant::now();
    while begun.elapsed() < seconds(4) {
        cluster.restart(Node::Slave(random.random_range(0..3)));
        std::thread::sleep(millis(random.random_range(0..120)));
    }
    load.wait_for_writes(200, seconds(15));
    load.prove(&mut cluster);
}

#[test]
fn kills_lose_nothing_without_fsync_either() {
    for policy in ["everysec", "never"] {
        let mut cluster = Setup::slaves(2).masters_with(&["--fsync", policy]).start();
        let load = Load::start(&cluster, 8, 10);
        cluster.kill_all();
        cluster.start_all();
        load.wait_for_writes(200, seconds(10));
        cluster.restart(Node::Master);
        load.wait_for_writes(200, seconds(10));
        load.prove(&mut cluster);
    }
}

#[test]
fn random_placement_keeps_the_promises_too() {
    let mut cluster = Setup::slaves(4).masters_with(&["--placement", "random"]).start();
    let load = Load::start(&cluster, 12, 20);
    cluster.kill(Node::Slave(0));
    load.wait_for_writes(200, seconds(5));
    cluster.restart(Node::Master);
    load.wait_for_writes(200, seconds(10));
    cluster.start(Node::Slave(0));
    load.prove(&mut cluster);
}

#[test]
fn a_torn_end_is_cut_with_a_warning() {
    let mut cluster = Setup::slaves(2).beside_others().start();
    for number in 0..20 {
        set(&cluster, &format!("key-{number}"), &format!("value {number}"));
    }
    cluster.kill_all();
    let before = std::fs::read(cluster.log()).expect("the log");
    assert!(before.ends_with(b"\n"));
    let torn = b"WRITE key-3 half-a-li";
    std::fs::OpenOptions::new()
        .append(true)
        .open(cluster.log())
        .and_then(|mut log| log.write_all(torn))
        .expect("appending to the log");

    cluster.start_all();
    cluster.settle();
    let told = cluster.stderr(Node::Master).to_lowercase() + &cluster.stderr(Node::Backup).to_lowercase();
    let warning =
        told.lines().find(|line| line.contains("torn")).unwrap_or_else(|| panic!("no warning:\n{told}"));
    assert!(warning.contains(&torn.len().to_string()), "it says how many bytes: {warning}");
    for number in 0..20 {
        assert_eq!(get(&cluster, &format!("key-{number}")), Answer::bulk(format!("value {number}")));
    }
    set(&cluster, "key-3", "after");
    let after = std::fs::read(cluster.log()).expect("the log");
    assert!(after.starts_with(&before), "nothing but the torn end was cut");
    assert!(!after.windows(torn.len()).any(|w| w == torn), "the torn end is gone");
    cluster.cold_restart();
    assert_eq!(get(&cluster, "key-3"), Answer::bulk("after"));
}

#[test]
fn a_flipped_byte_in_the_synced_log_stops_both_masters_with_its_place() {
    let mut cluster = Setup::slaves(2).beside_others().start();
    for number in 0..40 {
        set(&cluster, &format!("key-{number}"), &format!("value-{number}"));
    }
    cluster.kill_all();
    let mut log = std::fs::read(cluster.log()).expect("the log");
    let record = b"WRITE key-20 value-20 ";
    let offset = log.windows(record.len()).position(|w| w == record).expect("the record, as text");
    let line = log[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1;
    log[offset + record.len() - 3] ^= 0x01;
    std::fs::write(cluster.log(), &log).expect("writing the log");

    for master in MASTERS {
        cluster.start(master);
        let status = cluster.wait_for_exit(master, seconds(10));
        assert!(!status.success(), "{master:?}: {status}");
        assert!(status.code().is_some(), "{master:?} ends in order, not by a signal: {status}");
        let told = cluster.stderr(master);
        let last = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let numbers: Vec<&str> = last.split(|c: char| !c.is_ascii_digit()).collect();
        assert!(numbers.contains(&offset.to_string().as_str()), "byte offset {offset} in: {last}");
        assert!(numbers.contains(&line.to_string().as_str()), "line {line} in: {last}");
        assert!(!told.contains("panicked"), "{told}");
    }
    assert_eq!(std::fs::read(cluster.log()).expect("the log"), log, "nothing was cut or repaired");
}

#[test]
fn a_log_that_was_repaired_around_a_flipped_bit_is_served_but_for_the_lost_line() {
    const KEYS: u64 = 2_500;
    let value = |key: u64| format!("{key:010000}");
    let mut log = Vec::new();
    encode(&Operation::Cluster(ClusterId(7)), Seq(1), Epoch(1), Seq(0), &mut log);
    encode(&Operation::Epoch { address: "x".into(), mark: None }, Seq(2), Epoch(1), Seq(1), &mut log);
    for key in 0..KEYS {
        let pairs = [(format!("key-{key}"), value(key))];
        encode_write(&pairs, Seq(key + 3), Epoch(1), Seq(key + 2), &mut log);
    }
    assert!(log.len() > 25_000_000);
    let middle = log.len() / 2;
    log[middle] ^= 0x10;
    let lost = log[..middle].iter().filter(|byte| **byte == b'\n').count() as u64 - 2;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kv_store.log");
    std::fs::write(&path, log).expect("writing the log");
    let repair = std::process::Command::new(env!("CARGO_BIN_EXE_dsm-log")).arg("repair").arg(&path).output();
    let repair = repair.expect("the tool runs");
    let told = String::from_utf8_lossy(&repair.stdout).into_owned();
    assert!(repair.status.success(), "{}", String::from_utf8_lossy(&repair.stderr));
    assert!(told.contains(&format!("key-{lost}")) && told.contains("1 records lost"), "{told}");
    let repaired = std::fs::read(&path).expect("the repaired log");
    let mut cluster = Setup::slaves(1).beside_others().log(repaired).start();
    let serves = |cluster: &TestCluster| {
        let mut connection = cluster.connect_to_primary();
        for key in (0..KEYS).step_by(50).chain([lost - 1, lost + 1, KEYS - 1]).filter(|key| *key != lost) {
            let answer = connection.call(&[b"GET", format!("key-{key}").as_bytes()]).expect("an answer");
            assert!(answer == Answer::bulk(value(key)), "key-{key}");
        }
        assert_eq!(get(cluster, &format!("key-{lost}")), Answer::Null);
    };
    serves(&cluster);
    set(&cluster, "more", "v");
    cluster.cold_restart();
    serves(&cluster);
    assert_eq!(get(&cluster, "more"), Answer::bulk("v"));
}

#[test]
fn a_log_of_the_original_program_is_served_and_continued() {
    let log = "WRITE user1 Alice\nWRITE user2 Bob\nREAD user1\nWRITE user1 Carol\n";
    let mut cluster = Setup::slaves(2).beside_others().log(log).start();
    assert_eq!(get(&cluster, "user1"), Answer::bulk("Carol"));
    assert_eq!(get(&cluster, "user2"), Answer::bulk("Bob"));
    set(&cluster, "user2", "Dora");
    set(&cluster, "user3", "Emil");
    for _ in 0..2 {
        assert_eq!(get(&cluster, "user1"), Answer::bulk("Carol"));
        assert_eq!(get(&cluster, "user2"), Answer::bulk("Dora"));
        assert_eq!(get(&cluster, "user3"), Answer::bulk("Emil"));
        cluster.cold_restart();
    }
    let now = std::fs::read_to_string(cluster.log()).expect("the log is text");
    assert!(now.starts_with(log), "the old lines stay as they are:\n{now}");
}

#[test]
fn strange_keys_and_values_survive_failover_and_cold_restart() {
    let mut cluster = Setup::slaves(2).start();
    let all_bytes: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..1024 * 1024_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let pairs: Vec<(&[u8], &[u8])> = vec![
        (b"with space", b"one two  three "),
        (b"line\nend", b"first\r\nsecond\n"),
        (b"zero\0byte", b"\0\0"),
        (b"%41", b"100%"),
        (b"%", b"%"),
        (b";1 2 3", b";lead"),
        (b"empty", b""),
        (&all_bytes, &all_bytes),
        ("grüße".as_bytes(), "日本語".as_bytes()),
        (b"large", &large),
    ];
    let mut connection = cluster.connect_to_primary();
    for (key, value) in &pairs {
        assert_eq!(connection.call(&[b"SET", key, value]).expect("an answer"), Answer::ok());
    }
    let read_all = |cluster: &TestCluster| {
        let mut connection = cluster.connect_to_primary();
        for (key, value) in &pairs {
            let answer = connection.call(&[b"GET", key]).expect("an answer");
            assert!(answer == Answer::bulk(value), "{:?}", String::from_utf8_lossy(key));
        }
    };
    read_all(&cluster);
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, seconds(5));
    read_all(&cluster);
    cluster.heal();
    cluster.cold_restart();
    read_all(&cluster);
}
