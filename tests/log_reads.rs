//! Reads of values that only the log has, at default limits: each costs only its own value, and all together use no
//! more memory than the window.

mod common;

use common::cluster::{Node, Setup, TestCluster};
use common::resp::{encoded, Answer, Connection};
use common::seconds;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A cluster whose values are no longer on any slave.
fn without_slaves(masters_with: &[&str], requests: &[Vec<u8>]) -> TestCluster {
    let mut cluster = Setup::slaves(1).masters_with(masters_with).start();
    let mut writer = cluster.connect(Node::Master);
    for request in requests {
        writer.send(request).expect("sent");
        assert_eq!(writer.answer().expect("an answer"), Answer::ok());
    }
    cluster.kill(Node::Slave(0));
    cluster.wait_for_active_slaves(0, seconds(5));
    cluster
}

/// The cost of answers.
struct Cost {
    took: Duration,
    /// The peak growth of the master's memory, in bytes.
    grew: u64,
    /// How many bytes the master read meanwhile from files and sockets, whether from disk or from memory.
    read: u64,
}

/// Lets each connection send all of its keys at once; gives the answers and their cost.
fn read_all(cluster: &TestCluster, keys: &[Vec<String>]) -> (Vec<Vec<Answer>>, Cost) {
    let mut connections: Vec<Connection> = keys.iter().map(|_| cluster.connect(Node::Master)).collect();
    let before = cluster.resident_bytes(Node::Master);
    cluster.forget_peak(Node::Master);
    let read_before = cluster.bytes_read(Node::Master);
    let began = Instant::now();
    let answers = std::thread::scope(|scope| {
        let readers: Vec<_> = connections
            .iter_mut()
            .zip(keys)
            .map(|(connection, keys)| {
                scope.spawn(move || {
                    let pipeline: Vec<u8> =
                        keys.iter().flat_map(|key| encoded(&[b"GET", key.as_bytes()])).collect();
                    connection.send(&pipeline).expect("sent");
                    keys.iter().map(|_| connection.answer().expect("an answer")).collect::<Vec<_>>()
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader")).collect()
    });
    let took = began.elapsed();
    let grew = cluster.peak_bytes(Node::Master).saturating_sub(before);
    (answers, Cost { took, grew, read: cluster.bytes_read(Node::Master) - read_before })
}

#[test]
fn small_values_of_a_large_record_cost_what_they_answer() {
    const KEYS: usize = 58_000;
    let value = |key: usize| format!("{key:01000}").into_bytes();
    let words: Vec<Vec<u8>> = std::iter::once(b"MSET".to_vec())
        .chain((0..KEYS).flat_map(|key| [format!("k{key}").into_bytes(), value(key)]))
        .collect();
    let words: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
    let cluster = without_slaves(&["--ack-timeout", "30s"], &[encoded(&words)]);
    let number = |connection: usize, read: usize| (connection * 2_503 + read * 101) % KEYS;
    let keys: Vec<Vec<String>> =
        (0..20).map(|c| (0..25).map(|read| format!("k{}", number(c, read))).collect()).collect();
    let (answers, Cost { took, grew, read }) = read_all(&cluster, &keys);
    for (connection, answers) in answers.iter().enumerate() {
        for (read, answer) in answers.iter().enumerate() {
            assert_eq!(*answer, Answer::bulk(value(number(connection, read))));
        }
    }
    let info = cluster.info(Node::Master).expect("INFO");
    assert_eq!(info.number("reads_from_log"), 500);
    assert_eq!(info.number("log_read_bytes"), 0);
    // The record has 58 MB. If it were read whole for each value, that would be 5.5 GB and take 40 s.
    assert!(grew < 16 * MIB, "{grew} bytes more for 500 kB of answers");
    assert!(took < seconds(2), "{took:?}");
    // A page of the log for each value, the requests, and the messages of masters and slaves meanwhile.
    assert!(read < 4 * MIB, "{read} bytes read for 500 kB of answers");
}

#[test]
fn large_values_come_from_the_log_a_few_at_a_time() {
    const VALUE_BYTES: usize = 4 << 20;
    let value = |key: usize| vec![b'a' + key as u8; VALUE_BYTES];
    let requests: Vec<Vec<u8>> =
        (0..24).map(|key| encoded(&[b"SET", format!("k{key}").as_bytes(), &value(key)])).collect();
    let cluster = without_slaves(&["--log-read-window", "8MiB", "--ack-timeout", "30s"], &requests);
    let keys: Vec<Vec<String>> = (0..24).map(|key| vec![format!("k{key}")]).collect();
    let (answers, Cost { read, .. }) = read_all(&cluster, &keys);
    for (key, answers) in answers.iter().enumerate() {
        assert!(answers[0] == Answer::bulk(value(key)), "k{key}");
    }
    let info = cluster.info(Node::Master).expect("INFO");
    assert_eq!(info.number("reads_from_log"), 24);
    assert!(info.number("reads_waited_for_log_window") >= 8, "most do not fit");
    assert_eq!(info.number("log_read_bytes"), 0);
    assert!(read < 24 * VALUE_BYTES as u64 + 4 * MIB, "{read} bytes read: each value is read once");
}
