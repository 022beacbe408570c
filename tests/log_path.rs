//! The log's file is moved, deleted, cut or replaced under a running master: by logrotate, an editor, a restored backup,
//! or a volume that is unmounted. No write is acknowledged that goes to a file which no restart would find.

mod common;

use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::load::Load;
use common::resp::Answer;
use common::{millis, seconds, stays, wait_for};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

/// How long a master may take to notice and to end.
const ENDS_WITHIN: Duration = millis(2000);

/// The primary alone, so that no standby takes over.
fn alone() -> TestCluster {
    let mut cluster = Setup::slaves(2).start();
    cluster.kill(Node::Backup);
    cluster
}

/// Waits for the primary's end: it must be a failure, with a line that says what is at the path.
fn ends(cluster: &mut TestCluster, begun: Instant, found: &str) -> String {
    node_ends(cluster, Node::Master, begun, found)
}

fn node_ends(cluster: &mut TestCluster, node: Node, begun: Instant, found: &str) -> String {
    let status = cluster.wait_for_exit(node, seconds(10));
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(1), "it ends with {status}");
    assert!(took < ENDS_WITHIN, "it took {took:?}");
    let said = cluster.stderr(node);
    let last = said.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default().to_owned();
    assert!(last.contains("is no longer the file at ") && last.contains(found), "{last}\n{said}");
    assert!(last.contains("then start the master again"), "{last}");
    last
}

/// Starts it again, and waits until the load is served.
fn goes_on(cluster: &mut TestCluster, load: &Load) {
    cluster.start(Node::Master);
    cluster.wait_until_serves(Node::Master, seconds(10));
    load.wait_for_writes(50, seconds(10));
}

#[test]
fn a_log_that_is_moved_or_deleted_ends_the_primary_and_is_found_again_when_it_is_put_back() {
    let mut cluster = alone();
    let (log, moved) = (cluster.log(), cluster.dir().join("kv_store.log.1"));
    let load = Load::start(&cluster, 6, 20);

    let begun = Instant::now();
    fs::rename(&log, &moved).expect("moved");
    let last = ends(&mut cluster, begun, "nothing is there, it was moved away");
    assert!(last.contains(&format!("`mv` it back to {}", log.display())), "{last}");
    assert!(!log.exists(), "no new log is begun");
    fs::rename(&moved, &log).expect("moved back");
    goes_on(&mut cluster, &load);

    let begun = Instant::now();
    // Done in one step, so that the master sees only the final state; the same below.
    let new = cluster.dir().join("new");
    File::create(&new).expect("touched");
    fs::hard_link(&log, &moved).expect("moved");
    fs::rename(&new, &log).expect("replaced");
    ends(&mut cluster, begun, "another file is there, it was moved away");
    assert_eq!(fs::metadata(&log).expect("it was touched").len(), 0, "it is left alone");
    fs::rename(&moved, &log).expect("moved back");
    goes_on(&mut cluster, &load);

    let begun = Instant::now();
    symlink("elsewhere", &new).expect("linked");
    fs::hard_link(&log, &moved).expect("moved");
    fs::rename(&new, &log).expect("replaced");
    ends(&mut cluster, begun, "a symbolic link to elsewhere is there, which leads nowhere");
    fs::rename(&moved, &log).expect("moved back");
    goes_on(&mut cluster, &load);

    // A deleted file is gone once no process has it open.
    let mut held = File::open(&log).expect("the log");
    let begun = Instant::now();
    fs::remove_file(&log).expect("deleted");
    ends(&mut cluster, begun, "nothing is there, it was deleted");
    let mut content = Vec::new();
    held.read_to_end(&mut content).expect("it is still there");
    fs::write(&log, content).expect("put back");
    goes_on(&mut cluster, &load);
    assert!(load.has_failed_with("READONLY") || load.has_failed_with("STANDBY"), "{:?}", load.failures());
    load.prove(&mut cluster);
}

#[test]
fn a_log_that_is_cut_or_overwritten_ends_the_primary_and_nothing_is_acknowledged_into_it() {
    let mut cluster = alone();
    let log = cluster.log();
    let load = Load::start(&cluster, 6, 20);
    let older = fs::read(&log).expect("the log");
    load.wait_for_writes(100, seconds(5));
    // In the same file each time, as `truncate`, `cp` and `>>` do.
    let open = |log| File::options().write(true).open(log).expect("the log");
    type Do<'a> = &'a dyn Fn(&mut File);
    let faults: [(Do<'_>, &str); 3] = [
        (&|file| file.set_len(0).expect("cut"), "bytes shorter than what was written"),
        (
            &|file| {
                file.set_len(0).expect("cut");
                file.write_all(&older).expect("overwritten");
            },
            "bytes shorter than what was written",
        ),
        (
            &|file| {
                file.seek(std::io::SeekFrom::End(0)).expect("its end");
                file.write_all(b"WRITE stranger value\n").expect("appended");
            },
            "21 bytes longer than what was written, somebody else writes to it",
        ),
    ];
    for (fault, found) in faults {
        // Writes that are acknowledged by now are lost with it, unless there is a copy; no further ones may be.
        cluster.freeze(&[Node::Master]);
        let newest = fs::read(&log).expect("the log");
        let begun = Instant::now();
        fault(&mut open(&log));
        let left = fs::read(&log).expect("the log");
        cluster.resume(Node::Master);
        ends(&mut cluster, begun, found);
        let now = fs::read(&log).expect("the log");
        assert!(now.starts_with(&left) || left.starts_with(&now), "it is left alone");
        fs::write(&log, newest).expect("put back");
        goes_on(&mut cluster, &load);
    }
    load.prove(&mut cluster);
}

/// Checks that for a while no master serves, and none creates a log.
fn nobody_serves(cluster: &TestCluster, standby: Node, word: &str) {
    wait_for("the standby sees it", seconds(3), || {
        cluster.info(standby).filter(|info| info.get("standby_log") == Some(word))
    });
    stays("nobody serves", millis(700), || match cluster.primary() {
        None => Ok(()),
        Some((node, info)) => Err(format!("{node:?}: {info:?}")),
    });
}

#[test]
fn a_standby_takes_over_from_no_other_file_and_goes_on_by_itself_when_the_log_is_back() {
    let mut cluster = Setup::slaves(2).masters_with(&["--no-failback"]).start();
    let (log, moved) = (cluster.log(), cluster.dir().join("kv_store.log.1"));
    let load = Load::start(&cluster, 6, 20);
    // The masters take turns as the primary.
    let takes_over = |cluster: &mut TestCluster, standby: Node| {
        cluster.wait_until_serves(standby, seconds(5));
        load.wait_for_writes(50, seconds(10));
        cluster.start(standby.other());
        assert_eq!(cluster.settle_under_load(), standby);
    };

    let begun = Instant::now();
    fs::rename(&log, &moved).expect("moved");
    node_ends(&mut cluster, Node::Master, begun, "nothing is there, it was moved away");
    nobody_serves(&cluster, Node::Backup, "gone");
    assert!(!log.exists(), "no new log is begun");
    fs::rename(&moved, &log).expect("moved back");
    takes_over(&mut cluster, Node::Backup);

    // The standby has it open, and says how to copy it from there.
    let begun = Instant::now();
    fs::remove_file(&log).expect("deleted");
    node_ends(&mut cluster, Node::Backup, begun, "nothing is there, it was deleted");
    nobody_serves(&cluster, Node::Master, "gone");
    let said = wait_for("it says how", seconds(10), || {
        Some(cluster.stderr(Node::Master)).filter(|said| said.contains("`cp "))
    });
    let words = said.rsplit_once("`cp ").expect("it says how").1;
    let held = words.split(' ').next().expect("a path");
    assert!(held.starts_with("/proc/"), "{held}");
    fs::copy(held, &log).expect("what it has open can be read");
    takes_over(&mut cluster, Node::Master);

    cluster.freeze(&MASTERS);
    let newest = fs::read(&log).expect("the log");
    let begun = Instant::now();
    File::options().write(true).open(&log).expect("the log").set_len(0).expect("cut");
    MASTERS.into_iter().for_each(|master| cluster.resume(master));
    node_ends(&mut cluster, Node::Master, begun, "bytes shorter than what was written");
    nobody_serves(&cluster, Node::Backup, "short");
    fs::write(&log, newest).expect("put back");
    takes_over(&mut cluster, Node::Backup);
    load.prove(&mut cluster);
}

#[test]
fn a_failover_to_a_standby_that_sees_another_file_is_refused_and_the_reign_is_not_given_up() {
    let mut cluster = Setup::slaves(1).start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    cluster.settle();
    let (log, moved, new) = (cluster.log(), cluster.dir().join("moved"), cluster.dir().join("new"));
    let mut operator = cluster.connect(Node::Master);
    File::create(&new).expect("touched");
    fs::hard_link(&log, &moved).expect("moved");
    let begun = Instant::now();
    fs::rename(&new, &log).expect("replaced");
    wait_for("the standby sees it", seconds(3), || {
        cluster.info(Node::Backup).filter(|info| info.get("standby_log") == Some("short"))
    });
    // Or the primary has noticed it by itself.
    if let Ok(answer) = operator.call(&[b"FAILOVER"]) {
        let Answer::Error(text) = answer else { panic!("{answer:?}") };
        let is_refused = text.contains("the standby follows another log");
        assert!(is_refused || text.starts_with("STANDBY"), "{text}");
    }
    ends(&mut cluster, begun, "another file is there, it was moved away");
    let said = cluster.stderr(Node::Master);
    assert!(!said.contains("handing over"), "the reign was nearly given up: {said}");
    nobody_serves(&cluster, Node::Backup, "short");
    fs::rename(&moved, &log).expect("moved back");
    cluster.wait_until_serves(Node::Backup, seconds(5));
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("v"));
}

#[test]
fn a_log_behind_a_symbolic_link_is_served_and_watched_where_it_leads() {
    let mut cluster = Setup::slaves(1).prepare();
    let (log, volume) = (cluster.log(), cluster.dir().join("volume"));
    fs::create_dir(&volume).expect("a directory");
    // No master creates a log at the target of a symbolic link.
    fs::write(volume.join("real.log"), "").expect("an empty log");
    symlink(volume.join("real.log"), &log).expect("linked");
    cluster.start_all();
    cluster.settle();
    cluster.kill(Node::Backup);
    let load = Load::start(&cluster, 2, 5);
    load.wait_for_writes(100, seconds(5));
    let begun = Instant::now();
    fs::rename(&volume, cluster.dir().join("unmounted")).expect("moved");
    ends(&mut cluster, begun, "a symbolic link to");
    fs::rename(cluster.dir().join("unmounted"), &volume).expect("moved back");
    goes_on(&mut cluster, &load);
    load.prove(&mut cluster);
}
