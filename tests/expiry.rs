//! Keys that expire in a real cluster, while its masters are killed.

mod common;

use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::resp::{Answer, Connection};
use common::{seconds, wait_for};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Asks a master that serves, again and again.
fn insist(cluster: &TestCluster, request: &[&[u8]]) -> Answer {
    wait_for("an answer", seconds(20), || {
        let (primary, _) = cluster.primary()?;
        let mut connection = Connection::open(cluster.address(primary), seconds(5)).ok()?;
        connection.call(request).ok().filter(|answer| answer.error_word().is_none())
    })
}

#[test]
fn keys_live_as_long_as_they_were_told_through_kills_and_never_come_back() {
    const KEYS: usize = 50;
    const LIFETIME: Duration = Duration::from_secs(15);
    let mut cluster = Setup::slaves(3).start();
    let name = |key: usize| format!("key-{key}");
    // Of each: before when it may not be gone.
    let mut ends = Vec::new();
    for key in 0..KEYS {
        let asked = Instant::now();
        let lifetime = LIFETIME.as_millis().to_string();
        let name = name(key);
        let request: [&[u8]; 5] = [b"SET", name.as_bytes(), b"v", b"PX", lifetime.as_bytes()];
        assert_eq!(cluster.ask(&request), Answer::ok());
        ends.push(asked + LIFETIME);
    }
    assert_eq!(cluster.ask(&[b"SET", b"stays", b"v"]), Answer::ok());
    let (primary, _) = cluster.wait_for_primary(seconds(10));
    cluster.kill(primary);
    cluster.start(primary);
    let mut alive = 0;
    for (key, end) in ends.iter().enumerate() {
        let answer = insist(&cluster, &[b"PTTL", name(key).as_bytes()]);
        let heard = Instant::now();
        let Answer::Integer(left) = answer else { panic!("{answer:?}") };
        if heard < *end {
            alive += 1;
            // It was told between when it was asked and when it was heard.
            assert!(left >= 0, "{} is gone {:?} before its time", name(key), *end - heard);
            assert!(left <= LIFETIME.as_millis() as i64, "{left} ms are left");
        }
    }
    assert!(alive > 0, "the takeover took longer than the keys live");
    // All masters at once: what goes on is in the log.
    cluster.kill_at_once(&MASTERS);
    MASTERS.into_iter().for_each(|master| cluster.start(master));
    wait_for("an end of all keys", LIFETIME + seconds(20), || {
        (insist(&cluster, &[b"DBSIZE"]) == Answer::Integer(1)).then_some(())
    });
    assert!(Instant::now() >= ends[0], "they were gone before their time");
    for round in 0..2 {
        for key in 0..KEYS {
            assert_eq!(insist(&cluster, &[b"GET", name(key).as_bytes()]), Answer::Null, "round {round}");
        }
        cluster.kill_all();
        cluster.start_all();
    }
    assert_eq!(insist(&cluster, &[b"GET", b"stays"]), Answer::bulk("v"));
    let log = fs::read_to_string(cluster.log()).expect("it is text");
    for key in (0..KEYS).map(name) {
        let is_of_key = |line: &&str| line.split(' ').any(|word| word == key);
        let last = log.lines().rfind(is_of_key).expect("it was written");
        assert!(last.starts_with("DELETE "), "{last}");
        assert!(log
            .lines()
            .any(|line| line.starts_with(&format!("WRITE {key} v ;")) && line.contains(" Expire=")));
    }
}

struct EndsAtDrop<'a>(&'a AtomicBool);

impl Drop for EndsAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_lock_that_expires_is_never_held_by_two_while_masters_are_killed() {
    const LIFETIME: Duration = Duration::from_millis(150);
    let mut cluster = Setup::slaves(2).start();
    let addresses = cluster.addresses();
    // When each holder was sure to hold it: from the answer until so long after the request.
    let held: Mutex<Vec<(Instant, Instant)>> = Mutex::default();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whatever fails: the clients come to an end.
        let end = EndsAtDrop(&is_over);
        for client in 0..4_usize {
            let (held, is_over) = (&held, &is_over);
            scope.spawn(move || {
                let mut at = client;
                while !is_over.load(Ordering::Relaxed) {
                    at += 1;
                    let Ok(mut connection) = Connection::open(addresses[at % 2], seconds(3)) else {
                        std::thread::yield_now();
                        continue;
                    };
                    while !is_over.load(Ordering::Relaxed) {
                        let asked = Instant::now();
                        let lifetime = LIFETIME.as_millis().to_string();
                        let token = format!("{client}-{at}");
                        let request: [&[u8]; 6] =
                            [b"SET", b"lock", token.as_bytes(), b"NX", b"PX", lifetime.as_bytes()];
                        match connection.call(&request) {
                            Ok(answer) if answer == Answer::ok() => {
                                let heard = Instant::now();
                                // Who hears too late never held it.
                                if heard < asked + LIFETIME {
                                    held.lock().expect("no panic").push((heard, asked + LIFETIME));
                                }
                            }
                            Ok(Answer::Null) => {}
                            Ok(answer) if answer.error_word().is_some() => {}
                            Ok(other) => panic!("{other:?}"),
                            Err(_) => break,
                        }
                    }
                }
            });
        }
        for _ in 0..4 {
            let before = held.lock().expect("no panic").len();
            wait_for("three holders more", seconds(30), || {
                (held.lock().expect("no panic").len() >= before + 3).then_some(())
            });
            let (primary, _) = cluster.wait_for_primary(seconds(20));
            cluster.kill(primary);
            cluster.start(primary);
        }
        drop(end);
    });
    let mut held = held.into_inner().expect("no panic");
    held.sort_unstable();
    assert!(held.len() >= 12, "{} holders", held.len());
    for (before, after) in held.iter().zip(&held[1..]) {
        // The clock of a long reign gains a millisecond at a time.
        let slack = Duration::from_millis(1);
        assert!(before.1 <= after.0 + slack, "two hold the lock for {:?}", before.1 - after.0);
    }
}

#[test]
fn keys_that_nobody_asks_for_are_deleted_and_counted() {
    const KEYS: u64 = 3000;
    let cluster = Setup::slaves(2).start();
    let mut connection = cluster.connect(Node::Master);
    for key in 0..KEYS {
        let request: [&[u8]; 4] = [b"PSETEX", &key.to_be_bytes(), b"1", b"v"];
        assert_eq!(connection.call(&request).expect("an answer"), Answer::ok());
    }
    assert_eq!(connection.call(&[b"SET", b"k", b"v", b"EX", b"1000"]).expect("an answer"), Answer::ok());
    let info = wait_for("an end of the keys", seconds(20), || {
        cluster.info(Node::Master).filter(|info| info.number("expired_keys") == KEYS)
    });
    assert!(info.get("db0").is_some_and(|db| db.starts_with("keys=1,expires=1,avg_ttl=9")), "{info:?}");
    // The standby follows the log: its directory says the same.
    wait_for("the standby", seconds(10), || {
        let info = cluster.info(Node::Backup)?;
        info.get("db0").filter(|db| db.starts_with("keys=1,expires=1,")).map(|_| ())
    });
}
