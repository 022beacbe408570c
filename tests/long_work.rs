//! Work is not taken for a hang: with values and requests as long as the limits allow, from several clients at once, no
//! master is fenced, no client gets an error, and no pause is reported.

mod common;

use bytes::Bytes;
use common::cluster::{Node, Setup, TestCluster};
use common::resp::{Answer, Connection, Info};
use common::seconds;
use std::io::Write as _;

const MIB: usize = 1 << 20;

/// At default time-outs a master reports a stall if it computed this long without a tick.
const OWN_STALL_MS: u64 = 250;

/// A value that is percent-encoded in parts, as values that are not text are.
fn value(bytes: usize) -> Bytes {
    (0..bytes).map(|at| (at.wrapping_mul(31) % 251) as u8).collect()
}

/// A few keys, so that slaves need not hold all values at once.
fn key(number: usize) -> String {
    format!("long{}", number % 4)
}

fn info(cluster: &TestCluster) -> Info {
    cluster.info(Node::Master).expect("INFO is always answered")
}

/// The answers to several clients that each send one request in parts, all at once; `None` for a client that was cut.
fn ask_at_once(
    cluster: &TestCluster,
    clients: usize,
    request: impl Fn(usize) -> Vec<Bytes>,
) -> Vec<Option<Answer>> {
    let asking: Vec<_> = (0..clients)
        .map(|number| {
            let mut connection =
                Connection::open(cluster.address(Node::Master), seconds(30)).expect("a connection");
            let mut sender = connection.sender().expect("a second handle");
            let request = request(number);
            std::thread::spawn(move || {
                let sent = request.iter().try_for_each(|part| sender.write_all(part));
                sent.and_then(|()| connection.answer()).ok()
            })
        })
        .collect();
    asking.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}

/// Checks that the work was not taken for a hang: the first reign goes on, and no pause is reported.
fn prove_one_reign(cluster: &TestCluster, before: &Info) {
    let after = info(cluster);
    assert_eq!(after.number("epoch"), before.number("epoch"), "another reign has begun");
    assert_eq!((after.role(), after.number("takeovers")), ("primary", 1));
    assert_eq!(after.number("slaves_removed"), before.number("slaves_removed"), "a slave was removed");
    let computed_ms = after.number("computed_between_ticks_most_ms");
    eprintln!("between two ticks it computed for {computed_ms} ms at most");
    assert!(computed_ms < OWN_STALL_MS, "the master delayed itself: it computed for {computed_ms} ms");
    // How long it all took, by the clock, depends on what else runs on the machine.
    eprintln!("own_stalls: {}", after.number("own_stalls"));
    for class in ["turns_below_1ms", "turns_1ms_to_10ms", "turns_10ms_to_100ms", "turns_100ms_to_1s"] {
        eprintln!("{class}: {}", after.number(class));
    }
    let longest = after.get("turn_longest_in").unwrap_or_default();
    eprintln!("the longest one took {} us in {longest}", after.number("turn_longest_us"));
    let computing = after.get("turn_longest_computing_by_kind").unwrap_or_default();
    eprintln!("they computed for {computing} us at most");
}

#[test]
fn twenty_clients_with_a_value_of_16_mib_each_get_nobody_fenced() {
    let cluster = Setup::slaves(2).start();
    let before = info(&cluster);
    let value = value(16 * MIB);
    let request = |number: usize| {
        let key = key(number);
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
        vec![Bytes::from(head), value.clone(), Bytes::from_static(b"\r\n")]
    };
    // Together they have more bytes than may be in flight: some are refused or cut, and ask again.
    let mut asked: Vec<usize> = (0..20).collect();
    let mut rounds = 0;
    while !asked.is_empty() {
        let answers = ask_at_once(&cluster, asked.len(), |index| request(asked[index]));
        let is_refused = |answer: &Option<Answer>| {
            answer.as_ref().is_none_or(|answer| answer.error_word() == Some("BUSY"))
        };
        let (refused, done): (Vec<_>, Vec<_>) =
            asked.into_iter().zip(answers).partition(|(_, answer)| is_refused(answer));
        assert!(done.iter().all(|(_, answer)| *answer == Some(Answer::ok())), "{done:?}");
        asked = refused.into_iter().map(|(number, _)| number).collect();
        rounds += 1;
        assert!(rounds <= 20, "refused again and again: {asked:?}");
    }
    prove_one_reign(&cluster, &before);
    let read = cluster.ask(&[b"GET", key(7).as_bytes()]);
    assert!(read == Answer::bulk(&value), "another value was read");
}

#[test]
fn requests_of_as_many_keys_as_the_limit_allows_get_nobody_fenced() {
    const KEYS: usize = 65_000;
    let cluster = Setup::slaves(2).start();
    let before = info(&cluster);
    let answers = ask_at_once(&cluster, 8, |number| {
        let mut request = format!("*{}\r\n$4\r\nMSET\r\n", 1 + 2 * KEYS).into_bytes();
        for key in 0..KEYS {
            let word = format!("k{number}:{key:06}");
            for _ in 0..2 {
                request.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
            }
        }
        vec![Bytes::from(request)]
    });
    assert!(answers.iter().all(|answer| *answer == Some(Answer::ok())), "{answers:?}");
    prove_one_reign(&cluster, &before);
    assert_eq!(info(&cluster).number("keys"), 8 * KEYS as u64);
    let (first, last) = (b"k3:000000", format!("k3:{:06}", KEYS - 1));
    assert_eq!(cluster.ask(&[b"GET", first]), Answer::bulk(first));
    assert_eq!(cluster.ask(&[b"GET", last.as_bytes()]), Answer::bulk(&last));
}

/// A request of a command word and these keys.
fn of_keys(word: &str, keys: &[String]) -> Vec<Bytes> {
    let mut request = format!("*{}\r\n${}\r\n{word}\r\n", 1 + keys.len(), word.len()).into_bytes();
    for key in keys {
        request.extend_from_slice(format!("${}\r\n{key}\r\n", key.len()).as_bytes());
    }
    vec![Bytes::from(request)]
}

#[test]
fn reads_counts_and_deletions_of_as_many_keys_as_the_limit_allows_get_nobody_fenced() {
    const KEYS: usize = 65_000;
    let cluster = Setup::slaves(2).start();
    let before = info(&cluster);
    let keys = |number: usize| (0..KEYS).map(|key| format!("m{number}:{key:06}")).collect::<Vec<_>>();
    let written = ask_at_once(&cluster, 4, |number| {
        let words: Vec<String> = keys(number).into_iter().flat_map(|key| [key.clone(), key]).collect();
        of_keys("MSET", &words)
    });
    assert!(written.iter().all(|answer| *answer == Some(Answer::ok())), "{written:?}");
    let read = ask_at_once(&cluster, 4, |number| of_keys("MGET", &keys(number)));
    for (number, answer) in read.into_iter().enumerate() {
        let expected = Answer::Array(keys(number).iter().map(Answer::bulk).collect());
        assert!(answer == Some(expected), "client {number} read something else");
    }
    for word in ["EXISTS", "DEL"] {
        let counted = ask_at_once(&cluster, 4, |number| of_keys(word, &keys(number)));
        assert!(
            counted.iter().all(|answer| *answer == Some(Answer::Integer(KEYS as i64))),
            "{word}: {counted:?}"
        );
    }
    prove_one_reign(&cluster, &before);
    assert_eq!(info(&cluster).number("keys"), 0);
}
