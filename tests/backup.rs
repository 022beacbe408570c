//! `dsm-log backup` and `restore` with real processes: a backup of a log that masters write, compact and die over holds what was
//! acknowledged before it began, and nothing that was never written; and a cluster that is restored from it serves exactly that.

mod common;

use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::resp::{encoded, Answer, Connection};
use common::{seconds, wait_for};
use dsm_protocol::ids::Seq;
use dsm_protocol::record::{line_bytes_max, Body, EncodedEffect, Scanner, Step};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What is readable.
type Values = BTreeMap<Vec<u8>, Vec<u8>>;

/// How many clients write, each a key of its own.
const WRITERS: usize = 8;

/// Runs the tool; gives its exit code, and its output.
fn dsm_log(arguments: &[&str], paths: [(&str, &Path); 2]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-log"));
    command.args(arguments).stdin(Stdio::null());
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    let output = command.output().expect("the binary is built");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn backs_up(log: &Path, to: &Path, more: &[&str]) -> String {
    let (code, said) = dsm_log(&[&["backup"], more].concat(), [("--log", log), ("--to", to)]);
    assert_eq!(code, Some(0), "{said}");
    said
}

fn restores(from: &Path, to: &Path, more: &[&str]) -> String {
    let (code, said) = dsm_log(&[&["restore"], more].concat(), [("--from", from), ("--to", to)]);
    assert_eq!(code, Some(0), "{said}");
    said
}

/// The value after a name in the output of the tool.
fn shown<'a>(said: &'a str, name: &str) -> &'a str {
    let line = said.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {said}")).trim()
}

/// What a log says through a record; all of it must be good.
fn values_in(log: &Path, until: Seq) -> Values {
    let bytes = fs::read(log).expect("a log");
    let (mut values, mut rest) = (Values::new(), &bytes[..]);
    let mut scanner = Scanner::new(line_bytes_max(64 << 20));
    while let Step::Record { record, span } = scanner.next(rest) {
        rest = &rest[span.bytes as usize..];
        if record.seq > until {
            continue;
        }
        match record.body {
            Body::Write(pairs) => {
                values.extend(pairs.map(|(key, value)| (key.decode().into(), value.decode().into())));
            }
            Body::Delete(keys) => keys.for_each(|key| {
                values.remove(&*key.decode());
            }),
            Body::Apply(effects) => effects.for_each(|effect| match effect {
                EncodedEffect::Set { key, value, .. } => {
                    values.insert(key.decode().into(), value.decode().into());
                }
                EncodedEffect::Del { key } => {
                    values.remove(&*key.decode());
                }
            }),
            Body::Cluster(_) | Body::Epoch { .. } | Body::Members(_) | Body::Synced => {}
        }
    }
    assert!(rest.is_empty(), "{} is good through byte {}", log.display(), scanner.position().offset);
    values
}

/// The cluster serves these keys with these values, and no others.
fn serves_exactly(cluster: &TestCluster, values: &Values) {
    let mut connection = cluster.connect_to_primary();
    for (key, value) in values {
        let answer = connection.call(&[b"GET", key]).expect("an answer");
        assert!(
            answer == Answer::bulk(value),
            "{}: {:.200}",
            String::from_utf8_lossy(key),
            format!("{answer:?}")
        );
    }
    assert_eq!(connection.call(&[b"DBSIZE"]).expect("an answer"), Answer::Integer(values.len() as i64));
}

/// Clients of which each writes 1, 2, 3, … to its key until it is told to stop, at whichever master takes it.
struct Writers {
    stop: Arc<AtomicBool>,
    /// For each: the last number that was sent, and the last that was acknowledged.
    numbers: Arc<[[AtomicU64; 2]; WRITERS]>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(addresses: [SocketAddr; 2]) -> Writers {
        let (stop, numbers) = (Arc::new(AtomicBool::new(false)), Arc::new(Default::default()));
        let threads = (0..WRITERS)
            .map(|writer| {
                let (stop, numbers) = (Arc::clone(&stop), Arc::clone(&numbers));
                std::thread::spawn(move || write_on(writer, addresses, &stop, &numbers))
            })
            .collect();
        Writers { stop, numbers, threads }
    }

    fn sent(&self) -> Vec<u64> {
        self.numbers.iter().map(|[sent, _]| sent.load(Ordering::SeqCst)).collect()
    }

    fn acknowledged(&self) -> Vec<u64> {
        self.numbers.iter().map(|[_, acknowledged]| acknowledged.load(Ordering::SeqCst)).collect()
    }

    /// Waits until each has got further.
    fn wait_for_more(&self) {
        let before = self.acknowledged();
        wait_for("every client writes", seconds(20), || {
            self.acknowledged().iter().zip(&before).all(|(now, before)| now > before).then_some(())
        });
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().expect("a client does not panic");
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn key_of(writer: usize) -> Vec<u8> {
    format!("writer {writer}").into_bytes()
}

fn value_of(number: u64) -> Vec<u8> {
    format!("{number} {}", "x".repeat(300)).into_bytes()
}

fn write_on(
    writer: usize,
    addresses: [SocketAddr; 2],
    stop: &AtomicBool,
    numbers: &[[AtomicU64; 2]; WRITERS],
) {
    let [sent, acknowledged] = &numbers[writer];
    let (mut connection, mut master) = (None, 0);
    while !stop.load(Ordering::SeqCst) {
        if connection.is_none() {
            master ^= 1;
            connection = Connection::open(addresses[master], seconds(3)).ok();
        }
        let Some(open) = &mut connection else { continue };
        let number = sent.load(Ordering::SeqCst) + 1;
        sent.store(number, Ordering::SeqCst);
        match open.call(&[b"SET", &key_of(writer), &value_of(number)]) {
            Ok(answer) if answer == Answer::ok() => acknowledged.store(number, Ordering::SeqCst),
            // It may have been written or not.
            Ok(_) | Err(_) => connection = None,
        }
    }
}

/// In a backup each client's key has a value that was sent, and none that is older than what was acknowledged.
fn holds_at_least(values: &Values, acknowledged: &[u64], sent: &[u64]) {
    for writer in 0..WRITERS {
        let value = values.get(&key_of(writer)).map(|value| String::from_utf8_lossy(value).into_owned());
        let number: u64 = value.as_ref().map_or(0, |value| {
            value.split(' ').next().and_then(|number| number.parse().ok()).expect("a value of a client")
        });
        let is_right = (acknowledged[writer]..=sent[writer]).contains(&number);
        assert!(is_right, "{writer}: {number} is not in {}..={}", acknowledged[writer], sent[writer]);
        assert!(value.is_none_or(|value| value.as_bytes() == value_of(number)), "{writer}: the whole value");
    }
}

fn compactions(cluster: &TestCluster) -> usize {
    MASTERS.iter().map(|master| cluster.stderr(*master).matches("log was compacted path=").count()).sum()
}

#[test]
fn backups_under_load_compactions_and_kills_hold_what_was_acknowledged_and_a_new_cluster_serves_it() {
    const BACKUPS: usize = 14;
    let kept = tempfile::tempdir().expect("a directory");
    let mut cluster = Setup::slaves(3).masters_with(&["--compact-min", "50KB"]).start();
    let writers = Writers::start(cluster.addresses());
    let to = |number: usize| kept.path().join(format!("{number}.log"));
    let mut last = Values::new();
    let mut old_cluster = String::new();
    for number in 0..BACKUPS {
        writers.wait_for_more();
        let (acknowledged, log) = (writers.acknowledged(), cluster.log());
        let (to, before) = (to(number), compactions(&cluster));
        let said = std::thread::scope(|scope| {
            let backup = scope.spawn(|| backs_up(&log, &to, &["--count-keys"]));
            if number % 4 == 3 {
                let (primary, _) = cluster.wait_for_primary(seconds(10));
                cluster.kill(primary);
                cluster.start(primary);
            }
            backup.join().expect("a backup")
        });
        let sent = writers.sent();
        last = values_in(&to, Seq(u64::MAX));
        holds_at_least(&last, &acknowledged, &sent);
        assert_eq!(shown(&said, "keys"), last.len().to_string());
        let [bytes, seq] = ["bytes", "last seq"].map(|name| shown(&said, name).to_owned());
        let check =
            Command::new(env!("CARGO_BIN_EXE_dsm-log")).arg("check").arg(&to).output().expect("it is built");
        let check = String::from_utf8_lossy(&check.stdout).into_owned();
        assert_eq!(shown(&check, "state"), "clean");
        assert_eq!(shown(&check, "good bytes"), bytes);
        assert_eq!(shown(&check, "last seq"), format!("{seq} (synced through {seq})"));
        old_cluster = shown(&said, "cluster").to_owned();
        if number == BACKUPS / 2 {
            // The next ones are of a file that was put in the place of this one.
            wait_for("another compaction", seconds(60), || (compactions(&cluster) > before).then_some(()));
        }
    }
    assert!(compactions(&cluster) > 0);
    writers.end();
    cluster.heal();
    drop(cluster);

    let mut restored = Setup::slaves(2).prepare();
    let said = restores(&to(BACKUPS - 1), &restored.log(), &[]);
    restored.start_all();
    restored.settle();
    serves_exactly(&restored, &last);
    let (_, info) = restored.wait_for_primary(seconds(10));
    let new_cluster = shown(&said, "cluster").to_owned();
    assert_eq!(new_cluster, format!("{} (before: {old_cluster})", info.get("cluster_id").expect("its id")));
    // It goes on as any other, also from the log alone.
    assert_eq!(restored.ask(&[b"SET", b"writer 0", b"new"]), Answer::ok());
    last.insert(key_of(0), b"new".to_vec());
    restored.cold_restart();
    serves_exactly(&restored, &last);
}

/// Writes of one, several and no keys, one after the other.
fn history(cluster: &TestCluster) {
    let mut connection = cluster.connect_to_primary();
    for round in 0..40 {
        let value = format!("value {round}");
        let key = format!("key {}", round % 7);
        let request: Vec<&[u8]> = match round % 5 {
            0 => vec![b"MSET", key.as_bytes(), value.as_bytes(), b"common", value.as_bytes()],
            1 => vec![b"DEL", key.as_bytes(), b"common"],
            _ => vec![b"SET", key.as_bytes(), value.as_bytes()],
        };
        connection.call(&request).expect("an answer");
    }
    let transaction: [&[&[u8]]; 4] =
        [&[b"MULTI"], &[b"SET", b"common", b"both"], &[b"DEL", b"key 0"], &[b"EXEC"]];
    connection.send(&transaction.map(encoded).concat()).expect("it is connected");
    for _ in transaction {
        connection.answer().expect("an answer");
    }
}

#[test]
fn a_cluster_goes_back_to_a_record_and_slaves_of_the_old_one_are_refused_until_they_are_restarted() {
    let kept = tempfile::tempdir().expect("a directory");
    let mut cluster = Setup::slaves(2).masters_with(&["--compact-min", "0B"]).start();
    history(&cluster);
    let backup = kept.path().join("backup.log");
    let said = backs_up(&cluster.log(), &backup, &[]);
    let end: u64 = shown(&said, "last seq").parse().expect("a number");
    assert!(end > 40, "{said}");
    // Of a log that was never compacted, at any record.
    for seq in (2..=end).step_by(7).chain([end]) {
        let to = kept.path().join(format!("until-{seq}.log"));
        backs_up(&cluster.log(), &to, &["--until", &seq.to_string()]);
        assert_eq!(values_in(&to, Seq(u64::MAX)), values_in(&backup, Seq(seq)), "seq {seq}");
    }
    // A mistake, and back to before it.
    assert_eq!(cluster.ask(&[b"FLUSHALL"]), Answer::ok());
    let until = end - 5;
    let then = values_in(&backup, Seq(until));
    assert!(!then.is_empty());
    let (code, said) = dsm_log(&["restore"], [("--from", &backup), ("--to", &cluster.log())]);
    assert!(code == Some(2) && said.contains("is in use by a master"), "{said}");
    cluster.kill_at_once(&MASTERS);
    let (code, said) = dsm_log(&["restore"], [("--from", &backup), ("--to", &cluster.log())]);
    assert!(code == Some(2) && said.contains("it is not overwritten"), "{said}");
    fs::rename(cluster.log(), kept.path().join("before.log")).expect("it is moved away");
    restores(&backup, &cluster.log(), &["--until", &until.to_string()]);
    MASTERS.into_iter().for_each(|master| cluster.start(master));
    cluster.wait_for_primary(seconds(20));
    // The slaves hold what came later, and are kept away.
    serves_exactly(&cluster, &then);
    for slave in cluster.slaves() {
        wait_for("the slave is refused", seconds(20), || {
            cluster.stderr(slave).contains("refused by the master").then_some(())
        });
    }
    assert_eq!(cluster.info(Node::Master).expect("it answers").number("active_slaves"), 0);
    for slave in cluster.slaves() {
        cluster.restart(slave);
    }
    cluster.settle();
    serves_exactly(&cluster, &then);
    assert_eq!(cluster.ask(&[b"SET", b"common", b"after"]), Answer::ok());
    assert_eq!(cluster.ask(&[b"GET", b"common"]), Answer::bulk("after"));
}

#[test]
fn what_a_backup_lacks_comes_from_slaves_that_still_run_where_the_cluster_is_kept() {
    let kept = tempfile::tempdir().expect("a directory");
    let mut cluster = Setup::slaves(2).start();
    history(&cluster);
    let backup = kept.path().join("backup.log");
    backs_up(&cluster.log(), &backup, &[]);
    assert_eq!(cluster.ask(&[b"SET", b"later", b"not in the backup"]), Answer::ok());
    let mut values = values_in(&backup, Seq(u64::MAX));
    values.insert(b"later".to_vec(), b"not in the backup".to_vec());
    cluster.kill_at_once(&MASTERS);
    fs::remove_file(cluster.log()).expect("the log is lost");
    let said = restores(&backup, &cluster.log(), &["--keep-cluster"]);
    assert!(!said.contains("before:"), "{said}");
    let listen = MASTERS.map(|master| cluster.address(master).to_string()).join(",");
    let mut repair = Command::new(env!("CARGO_BIN_EXE_dsm-log"));
    repair.args(["repair", "--from-slaves", "--slaves", "2", "--listen", &listen]).arg(cluster.log());
    let repaired = repair.stdin(Stdio::null()).output().expect("the binary is built");
    assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stdout));
    MASTERS.into_iter().for_each(|master| cluster.start(master));
    cluster.settle();
    serves_exactly(&cluster, &values);
}
