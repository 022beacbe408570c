//! SCAN, KEYS and RANDOMKEY in a real cluster, while its masters are killed.

mod common;

use common::cluster::{Setup, TestCluster, MASTERS};
use common::resp::{Answer, Connection};
use common::{seconds, wait_for};
use std::collections::BTreeMap;

/// Asks the master in this place, until it has an answer.
fn insist(cluster: &TestCluster, turn: usize, request: &[&[u8]]) -> Answer {
    wait_for("an answer", seconds(20), || {
        let mut connection = Connection::open(cluster.address(MASTERS[turn % 2]), seconds(5)).ok()?;
        connection.call(request).ok().filter(|answer| answer.error_word().is_none())
    })
}

/// The cursor and the keys of a page.
fn page(answer: Answer) -> (String, Vec<String>) {
    let text = |answer: &Answer| match answer {
        Answer::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("{other:?}"),
    };
    let Answer::Array(parts) = answer else { panic!("{answer:?}") };
    let [cursor, Answer::Array(keys)] = &parts[..] else { panic!("{parts:?}") };
    (text(cursor), keys.iter().map(text).collect())
}

/// A cluster that holds so many keys.
fn filled(keys: usize) -> TestCluster {
    let cluster = Setup::slaves(2).start();
    for group in 0..10 {
        let mut request: Vec<Vec<u8>> = vec![b"MSET".to_vec()];
        for key in 0..keys / 10 {
            request.push(format!("key-{group}-{key}").into_bytes());
            request.push(b"v".to_vec());
        }
        let words: Vec<&[u8]> = request.iter().map(|word| &word[..]).collect();
        assert_eq!(cluster.ask(&words), Answer::ok());
    }
    cluster
}

#[test]
fn a_scan_goes_on_at_either_master_and_after_kills_and_shows_each_key_once() {
    const KEYS: usize = 1000;
    let mut cluster = filled(KEYS);
    let (mut cursor, mut shown, mut pages) = ("0".to_owned(), BTreeMap::new(), 0);
    loop {
        let request: [&[u8]; 6] = [b"SCAN", cursor.as_bytes(), b"COUNT", b"40", b"MATCH", b"key-*"];
        let (next, keys) = page(insist(&cluster, pages, &request));
        keys.into_iter().for_each(|key| *shown.entry(key).or_insert(0) += 1);
        pages += 1;
        cursor = next;
        if cursor == "0" {
            break;
        }
        // Keys come and go meanwhile.
        for number in 0..20 {
            let key = format!("other-{pages}-{number}");
            insist(&cluster, pages, &[b"SET", key.as_bytes(), b"v"]);
        }
        if pages == 5 {
            let (primary, _) = cluster.wait_for_primary(seconds(10));
            cluster.kill(primary);
            cluster.start(primary);
        } else if pages == 10 {
            cluster.kill_all();
            cluster.start_all();
        }
    }
    assert!(pages > 10, "{pages} pages");
    assert_eq!(shown.len(), KEYS);
    assert!(shown.values().all(|times| *times == 1), "a key is shown twice");
    let Answer::Array(keys) = insist(&cluster, 0, &[b"KEYS", b"key-3-*"]) else { panic!("no keys") };
    assert_eq!(keys.len(), KEYS / 10);
    for turn in 0..2 {
        assert!(matches!(insist(&cluster, turn, &[b"RANDOMKEY"]), Answer::Bulk(_)));
    }
}

#[test]
fn all_keys_are_deleted_for_good_whichever_master_is_asked() {
    for (turn, master) in MASTERS.into_iter().enumerate() {
        let mut cluster = filled(3000);
        let mut connection = Connection::open(cluster.address(master), seconds(5)).expect("it listens");
        let requests: [&[&[u8]]; 4] = [&[b"FLUSHALL"], &[b"DBSIZE"], &[b"SET", b"k", b"v"], &[b"KEYS", b"*"]];
        let answers: Vec<Answer> =
            requests.iter().map(|request| connection.call(request).expect("it answers")).collect();
        let keys = Answer::Array(vec![Answer::bulk("k")]);
        assert_eq!(answers, [Answer::ok(), Answer::Integer(0), Answer::ok(), keys]);
        cluster.kill_all();
        cluster.start_all();
        assert_eq!(insist(&cluster, turn, &[b"DBSIZE"]), Answer::Integer(1));
        assert_eq!(insist(&cluster, turn, &[b"GET", b"key-3-3"]), Answer::Null);
    }
}
