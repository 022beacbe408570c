//! A log that is compacted by real masters, under load and kills.

mod common;

use common::cluster::{Node, Setup, MASTERS};
use common::load::Load;
use common::resp::{encoded, Answer};
use common::{seconds, wait_for};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often a master has said that its log was compacted.
fn compactions(cluster: &common::cluster::TestCluster) -> usize {
    MASTERS.iter().map(|master| cluster.stderr(*master).matches("log was compacted path=").count()).sum()
}

#[test]
fn a_log_that_is_compacted_under_load_while_masters_are_killed_loses_nothing() {
    let mut cluster = Setup::slaves(3).masters_with(&["--compact-min", "50KB"]).start();
    let load = Load::start(&cluster, 12, 20);
    for round in 0..3 {
        let before = compactions(&cluster);
        wait_for("another compaction", seconds(60), || (compactions(&cluster) > before).then_some(()));
        let (primary, info) = cluster.wait_for_primary(seconds(10));
        let (log, live) = (info.number("log_bytes"), info.number("log_live_bytes"));
        assert!(log < 5 * live / 2 + 128_000_000, "{log} bytes, and {live} are live");
        // Right behind one, while the places of values are changed.
        if round == 1 {
            cluster.kill_at_once(&MASTERS);
            MASTERS.into_iter().for_each(|master| cluster.start(master));
        } else {
            cluster.kill(primary);
            cluster.start(primary);
        }
        load.wait_for_writes(100, seconds(10));
    }
    load.prove(&mut cluster);
    // The masters that came last may still be compacting; what a killed one left is gone for good.
    let draft = cluster.dir().join("kv_store.log.compact");
    wait_for("no draft of a log", seconds(20), || (!draft.exists()).then_some(()));
}

#[test]
fn a_log_that_is_overwritten_faster_than_it_is_copied_keeps_its_bound() {
    const VALUE_BYTES: usize = 64 << 10;
    let cluster = Setup::slaves(3).masters_with(&["--compact-min", "8MiB"]).start();
    let path = cluster.dir().join("kv_store.log");
    let writers = AtomicUsize::new(8);
    let longest = std::thread::scope(|scope| {
        for writer in 0..8 {
            let (cluster, writers) = (&cluster, &writers);
            scope.spawn(move || {
                let mut connection = cluster.connect(Node::Master);
                for round in 0..180_u8 {
                    let keys = [0, 1, 2, 3].map(|key| format!("{writer}-{key}"));
                    let value = vec![b'a' + round % 20; VALUE_BYTES];
                    let batch = keys.map(|key| encoded(&[b"SET", key.as_bytes(), &value])).concat();
                    connection.send(&batch).expect("it is connected");
                    for _ in 0..4 {
                        assert_eq!(connection.answer().expect("an answer"), Answer::ok());
                    }
                }
                writers.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let mut longest = 0;
        while writers.load(Ordering::Relaxed) > 0 {
            longest = fs::metadata(&path).map_or(longest, |log| longest.max(log.len()));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        longest
    });
    let info = cluster.info(Node::Master).expect("it serves");
    let live = info.number("log_live_bytes");
    assert!(longest <= live * 5 / 2 + (128 << 20), "{longest} bytes, and {live} are live: {info:?}");
    assert!(info.number("compactions") > 3 && info.number("compactions_failed") == 0, "{info:?}");
}

#[test]
fn a_compaction_that_cannot_begin_is_put_off_and_nothing_else_happens() {
    let mut cluster = Setup::slaves(2).masters_with(&["--compact-min", "50KB"]).start();
    let draft = cluster.dir().join("kv_store.log.compact");
    fs::create_dir(&draft).expect("in the way of the copy");
    let load = Load::start(&cluster, 6, 20);
    let info = wait_for("a failure", seconds(20), || {
        cluster.info(Node::Master).filter(|info| info.number("compactions_failed") == 1)
    });
    assert!(!info.get("compaction_hindrance").unwrap_or_default().is_empty(), "{info:?}");
    assert_eq!(info.number("compactions"), 0);
    load.wait_for_writes(500, seconds(10));
    load.prove(&mut cluster);
    assert!(draft.is_dir(), "what stood in the way is left alone");
}

#[test]
fn values_of_a_compacted_log_are_read_from_it_when_no_slave_has_them() {
    let mut cluster = Setup::slaves(1).masters_with(&["--compact-min", "50KB"]).start();
    for round in 0..200 {
        for key in ["a", "b", "c d"] {
            let value = format!("{key} {round} {}", "x".repeat(200));
            assert_eq!(cluster.ask(&[b"SET", key.as_bytes(), value.as_bytes()]), Answer::ok());
        }
    }
    assert_eq!(cluster.ask(&[b"DEL", b"c d"]), Answer::Integer(1));
    wait_for("a compaction", seconds(20), || (compactions(&cluster) > 0).then_some(()));
    cluster.kill(Node::Slave(0));
    cluster.kill_at_once(&MASTERS);
    cluster.start_all();
    cluster.wait_for_primary(seconds(10));
    cluster.wait_for_active_slaves(1, seconds(10));
    for key in ["a", "b"] {
        let value = format!("{key} 199 {}", "x".repeat(200));
        assert_eq!(cluster.ask(&[b"GET", key.as_bytes()]), Answer::bulk(value.as_bytes()));
    }
    assert_eq!(cluster.ask(&[b"GET", b"c d"]), Answer::Null);
}
