//! Logs that are lost: moved away, on a volume that is not mounted, of another cluster, or an older copy. No master
//! serves an incomplete log; each says what is missing and how to go on, and goes on by itself when the log is back.

mod common;

use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::resp::Answer;
use common::{seconds, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SOON: Duration = seconds(10);

/// Runs `dsm-log`; gives its exit code and its output.
fn dsm_log(arguments: &[&str], log: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dsm-log")).args(arguments).arg(log).output();
    let output = output.expect("the binary is built");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Waits until a master says that it does not serve, and why.
fn waits(cluster: &TestCluster, master: Node, why: &[&str]) {
    let info = wait_for(&format!("{master:?} waits: {why:?}"), SOON, || {
        let info = cluster.info(master)?;
        let waiting_for = info.get("waiting_for")?.to_owned();
        why.iter().all(|word| waiting_for.contains(word)).then_some(info)
    });
    assert_eq!(info.role(), "recovering");
    assert_eq!(info.get("degraded"), info.get("waiting_for"), "STATUS ends with 1 for it");
}

/// The answer to a client that asks for a key.
fn asked(cluster: &TestCluster, master: Node, key: &str) -> Answer {
    cluster.connect(master).call(&[b"GET", key.as_bytes()]).expect("an answer")
}

fn write(cluster: &TestCluster, key: &str, value: &str) {
    assert_eq!(cluster.ask(&[b"SET", key.as_bytes(), value.as_bytes()]), Answer::ok());
}

fn is_loading(answer: &Answer) -> bool {
    matches!(answer, Answer::Error(text) if text.starts_with("LOADING"))
}

/// Waits until the lock file names a reign: its text is written in the background.
fn is_named(cluster: &TestCluster, epoch: u64) {
    wait_for(&format!("the lock file names epoch {epoch}"), SOON, || {
        let text = std::fs::read_to_string(cluster.lock()).ok()?;
        text.lines().any(|line| line == format!("epoch={epoch}")).then_some(())
    });
}

/// Where a file is put aside.
fn aside(cluster: &TestCluster) -> PathBuf {
    cluster.dir().join("elsewhere.log")
}

#[test]
fn no_empty_cluster_is_served_in_the_place_of_a_log_that_was_moved_away() {
    let mut cluster = Setup::slaves(2).masters_with(&["--new"]).start();
    write(&cluster, "k", "v");
    is_named(&cluster, 1);
    // First with the slaves alive, then with only the lock file left as a witness.
    for slaves_too in [false, true] {
        if slaves_too {
            cluster.kill_all();
        } else {
            cluster.kill_at_once(&MASTERS);
        }
        std::fs::rename(cluster.log(), aside(&cluster)).expect("moved");
        cluster.start_all();
        waits(&cluster, Node::Master, &["there is no log at", "the lock file names cluster"]);
        assert!(is_loading(&asked(&cluster, Node::Master, "k")), "not NOT_FOUND");
        assert!(is_loading(&asked(&cluster, Node::Backup, "k")), "not NOT_FOUND");
        assert!(!cluster.log().exists(), "no log is begun");
        let said = wait_for("it says what to do", seconds(10), || {
            Some(cluster.stderr(Node::Master)).filter(|said| said.contains("put the file back at"))
        });
        assert_eq!(
            said.matches("not serving: there is no log").count(),
            1 + usize::from(slaves_too),
            "{said}"
        );
        std::fs::rename(aside(&cluster), cluster.log()).expect("moved");
        assert_eq!(cluster.settle(), Node::Master);
        assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("v"));
    }
    // A stop while it waits is a clean one.
    cluster.kill_at_once(&MASTERS);
    std::fs::rename(cluster.log(), aside(&cluster)).expect("moved");
    // A symbolic link to nothing is not followed.
    std::os::unix::fs::symlink(cluster.dir().join("target.log"), cluster.log()).expect("a link");
    cluster.start(Node::Master);
    waits(&cluster, Node::Master, &["there is no log at"]);
    assert!(cluster.terminate(Node::Master).success());
    assert!(!cluster.dir().join("target.log").exists(), "it made the target");
    // The log is lost for good: once an operator says so, with masters and slaves stopped, a new one begins.
    std::fs::remove_file(cluster.log()).expect("removed");
    cluster.kill_all();
    let (code, said) = dsm_log(&["forget"], &cluster.log());
    assert_eq!((code, said.contains("is forgotten")), (Some(0), true), "{said}");
    cluster.start_all();
    cluster.settle();
    assert_eq!(asked(&cluster, Node::Master, "k"), Answer::Null);
}

#[test]
fn no_empty_cluster_begins_on_an_unmounted_volume_while_a_slave_knows_the_old_one() {
    let mut cluster = Setup::slaves(2).masters_with(&["--new"]).start();
    write(&cluster, "k", "v");
    cluster.kill_at_once(&MASTERS);
    // Neither the log nor the lock file is there.
    let lock_aside = cluster.dir().join("elsewhere.lock");
    std::fs::rename(cluster.log(), aside(&cluster)).expect("moved");
    std::fs::rename(cluster.lock(), &lock_aside).expect("moved");
    cluster.start(Node::Master);
    waits(&cluster, Node::Master, &["there is no log at", "slave slave-", "names cluster"]);
    assert!(is_loading(&asked(&cluster, Node::Master, "k")), "not NOT_FOUND");
    assert!(!cluster.log().exists(), "no log is begun");
    // Mounted again, over the empty directory.
    std::fs::rename(aside(&cluster), cluster.log()).expect("moved");
    cluster.wait_until_serves(Node::Master, SOON);
    cluster.wait_for_active_slaves(2, SOON);
    assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("v"));
    cluster.start(Node::Backup);
    cluster.settle();
}

#[test]
fn a_fresh_cluster_begins_with_its_first_slave_or_when_it_is_told_to() {
    let mut cluster = Setup::slaves(1).prepare();
    cluster.start(Node::Master);
    waits(&cluster, Node::Master, &["there is no log at", "no slave has come"]);
    assert!(!cluster.log().exists(), "no log is begun");
    cluster.start(Node::Slave(0));
    let info = cluster.wait_until_serves(Node::Master, SOON);
    assert_eq!(info.get("waiting_for"), Some(""));
    write(&cluster, "k", "v");
    let alone = Setup::slaves(0).beside_others();
    drop(cluster);
    let mut cluster = alone.prepare();
    cluster.start(Node::Master);
    cluster.wait_until_serves(Node::Master, SOON);
    // The flag is still set, but an existing log is not touched.
    let log = std::fs::read(cluster.log()).expect("the log is there");
    cluster.restart(Node::Master);
    cluster.wait_until_serves(Node::Master, SOON);
    assert!(std::fs::read(cluster.log()).expect("the log is there").starts_with(&log));
}

#[test]
fn a_log_of_another_cluster_is_not_served() {
    let mut other = Setup::slaves(1).beside_others().start();
    write(&other, "k", "theirs");
    let mut cluster = Setup::slaves(1).beside_others().start();
    write(&cluster, "k", "ours");
    is_named(&cluster, 1);
    cluster.kill_at_once(&MASTERS);
    std::fs::rename(cluster.log(), aside(&cluster)).expect("moved");
    std::fs::copy(other.log(), cluster.log()).expect("copied");
    cluster.start_all();
    waits(&cluster, Node::Master, &["is of cluster", "the lock file names cluster"]);
    assert!(is_loading(&asked(&cluster, Node::Master, "k")), "not theirs");
    std::fs::rename(aside(&cluster), cluster.log()).expect("moved");
    cluster.settle();
    assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("ours"));
    other.settle();
}

#[test]
fn a_copy_from_before_the_last_reign_is_not_served() {
    let mut cluster = Setup::slaves(1).start();
    write(&cluster, "k", "old");
    cluster.kill_all();
    let old = std::fs::read(cluster.log()).expect("the log is there");
    cluster.start_all();
    cluster.settle();
    write(&cluster, "k", "new");
    // Only the lock file is left as a witness.
    is_named(&cluster, 2);
    cluster.kill_all();
    std::fs::rename(cluster.log(), aside(&cluster)).expect("moved");
    std::fs::write(cluster.log(), &old).expect("restored");
    cluster.start_all();
    waits(&cluster, Node::Master, &["ends in epoch 1 at seq", "the lock file knows of its epoch 2"]);
    assert!(is_loading(&asked(&cluster, Node::Master, "k")), "not the old value");
    std::fs::rename(aside(&cluster), cluster.log()).expect("moved");
    cluster.settle();
    assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("new"));
    // Without the newer one, it is served once its loss is accepted.
    is_named(&cluster, 3);
    cluster.kill_all();
    std::fs::write(cluster.log(), &old).expect("restored");
    let (code, said) = dsm_log(&["accept-loss"], &cluster.log());
    assert_eq!((code, said.contains("the lock file knows of epoch 3")), (Some(0), true), "{said}");
    cluster.start_all();
    cluster.settle();
    assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("old"));
    assert_eq!(cluster.info(Node::Master).expect("INFO").number("epoch"), 4, "above all that was");
}

/// Replaces the log by an older copy while no master runs, and starts everything again.
fn restore(cluster: &mut TestCluster, copy: &[u8]) {
    cluster.kill_at_once(&MASTERS);
    std::fs::rename(cluster.log(), aside(cluster)).expect("moved");
    std::fs::write(cluster.log(), copy).expect("restored");
    cluster.start_all();
}

#[test]
fn a_copy_that_lacks_what_a_slave_has_seen_is_not_served_until_it_is_replaced_or_accepted() {
    let mut cluster = Setup::slaves(2).start();
    let witness = cluster.log().with_extension("log.witness");
    write(&cluster, "k", "old");
    let copy = std::fs::read(cluster.log()).expect("the log is there");
    write(&cluster, "k", "new");
    // The copy is of the same reign, so only slaves know of the loss.
    restore(&mut cluster, &copy);
    let lacks = [
        "ends in epoch 1 at seq 3",
        "slave slave-",
        "has seen reign 1-",
        "through seq 4",
        "1 records or more",
    ];
    waits(&cluster, Node::Master, &lacks);
    assert!(is_loading(&asked(&cluster, Node::Master, "k")), "not the old value");
    assert!(is_loading(&asked(&cluster, Node::Backup, "k")), "not the old value");
    // It need not be said again.
    wait_for("it is noted", SOON, || {
        std::fs::read_to_string(&witness).ok().filter(|text| text.contains("seen=1-"))
    });
    cluster.kill_all();
    cluster.start(Node::Master);
    waits(&cluster, Node::Master, &["by what is noted beside the log"]);
    let (code, said) = dsm_log(&["accept-loss"], &cluster.log());
    assert_eq!((code, said.contains("is in use by a master")), (Some(2), true), "{said}");
    std::fs::rename(aside(&cluster), cluster.log()).expect("moved");
    cluster.start_all();
    cluster.settle();
    assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("new"));
    wait_for("what was noted is settled", SOON, || (std::fs::read(&witness).ok()?.is_empty()).then_some(()));

    // This time the log is lost for good.
    let copy = std::fs::read(cluster.log()).expect("the log is there");
    write(&cluster, "k", "given-up");
    restore(&mut cluster, &copy);
    waits(&cluster, Node::Master, &["1 records or more are missing"]);
    wait_for("it is noted", SOON, || {
        std::fs::read_to_string(&witness).ok().filter(|text| text.contains("seen=2-"))
    });
    cluster.kill_at_once(&MASTERS);
    let (code, said) = dsm_log(&["accept-loss"], &cluster.log());
    assert_eq!((code, said.contains("given up")), (Some(0), true), "{said}");
    cluster.start_all();
    cluster.settle();
    for _ in 0..20 {
        assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("new"), "never what was given up");
    }
    let log = String::from_utf8(std::fs::read(cluster.log()).expect("the log is there")).expect("text");
    assert!(log.lines().any(|line| line.starts_with("EPOCH 3 ") && line.contains(" GivenUp=2-")), "{log}");
    write(&cluster, "k", "newest");
    assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("newest"));
    wait_for("what was noted is settled", SOON, || (std::fs::read(&witness).ok()?.is_empty()).then_some(()));
    let (code, said) = {
        cluster.kill_all();
        dsm_log(&["accept-loss"], &cluster.log())
    };
    assert_eq!((code, said.contains("nothing to give up")), (Some(0), true), "{said}");
    cluster.start_all();
    cluster.settle();
    assert_eq!(asked(&cluster, Node::Master, "k"), Answer::bulk("newest"));
}
