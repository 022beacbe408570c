//! Masters and slaves that die, hang and come back under load. Every test ends in the proof that all histories are
//! linearizable and every acknowledged write is readable, before and after a cold restart.

mod common;

use common::cluster::{Node, Setup, TestCluster};
use common::load::Load;
use common::resp::Answer;
use common::skip::{need_program, skip, Lack};
use common::{millis, seconds, stays, wait_for};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// The reign as INFO shows it: its epoch and how many slaves are active.
fn reign(cluster: &TestCluster) -> Option<(Node, u64, u64)> {
    let (node, info) = cluster.primary()?;
    Some((node, info.number("epoch"), info.number("active_slaves")))
}

#[test]
fn a_killed_primary_is_replaced_and_takes_its_place_again_without_an_error() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    let killed = cluster.kill(Node::Master);
    load.wait_for_write_by(Node::Backup, killed, seconds(3));
    load.wait_for_writes(300, seconds(5));
    let info = cluster.wait_until_serves(Node::Backup, seconds(1));
    assert_eq!(info.number("active_slaves"), 3, "all slaves serve the new primary");

    // From here on nothing may fail: all clients talk to the backup, and a handover fails no request.
    let restarted = Instant::now();
    cluster.start(Node::Master);
    let back = cluster.wait_until_serves(Node::Master, seconds(20));
    println!("the primary serves again {:?} after its start", restarted.elapsed());
    load.wait_for_writes(500, seconds(5));
    let failures = load.failures_between(restarted, Instant::now());
    assert!(failures.is_empty(), "a handover fails requests: {failures:?}");
    assert!(back.number("epoch") > info.number("epoch"), "a handover begins a new reign");
    load.prove(&mut cluster);
}

/// From now on each access of a process to a path takes this many seconds, until the returned value is dropped.
fn slow_path(
    pid: u32,
    path: &std::path::Path,
    seconds_each: u32,
    said: &std::path::Path,
) -> Result<Child, Lack> {
    need_program("strace", &["-V"], "strace")?;
    let mut command = Command::new("strace");
    command.args(["-f", "-q", "-p", &pid.to_string(), "-P"]).arg(path).arg("-o").arg(said);
    command.args(["-e", "trace=openat", "-e", &format!("inject=openat:delay_enter={seconds_each}000000")]);
    let mut tracer = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("strace is there");
    let traced = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
        let is_traced = |task: std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("status"))
                .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
        };
        tasks.into_iter().all(is_traced)
    };
    let begun = Instant::now();
    while !traced() {
        if tracer.try_wait().expect("our child").is_some() || begun.elapsed() > seconds(10) {
            let _ = tracer.kill();
            return Err(Lack::Refused("strace may not attach to a process here".to_owned()));
        }
        std::thread::sleep(millis(10));
    }
    Ok(tracer)
}

#[test]
fn a_hanging_look_at_the_lock_delays_neither_master() {
    let mut cluster = Setup::slaves(1).prepare();
    cluster.start(Node::Master);
    cluster.start(Node::Slave(0));
    cluster.wait_until_serves(Node::Master, seconds(10));
    let [pid, _] = cluster.process_ids()[..] else { panic!("a primary and a slave") };
    let said = cluster.dir().join("strace");
    let tracer = match slow_path(pid, &cluster.lock(), 4, &said) {
        Ok(tracer) => tracer,
        Err(why) => return skip(a_hanging_look_at_the_lock_delays_neither_master, "", &why),
    };
    // The backup comes and is asked whether it sees the same lock file, which takes four times as long as a primary may
    // hang.
    cluster.start(Node::Backup);
    stays("the primary serves", seconds(6), || {
        let asked = Instant::now();
        match cluster.ask(&[b"SET", b"k", b"v"]) {
            answer if answer == Answer::ok() && asked.elapsed() < seconds(1) => Ok(()),
            answer => Err((answer, asked.elapsed())),
        }
    });
    let told = cluster.stderr(Node::Backup);
    assert!(!told.contains("fenced"), "{told}");
    // The trace is written when the call has ended.
    let hung = std::fs::read_to_string(&said).unwrap_or_default();
    assert!(hung.contains("DELAYED"), "no look hung: {hung}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&tracer), rustix::process::Signal::TERM)
        .expect("it runs");
    let mut tracer = tracer;
    tracer.wait().expect("our child");
    assert_eq!(cluster.settle(), Node::Master);
}

#[test]
fn after_a_kill_the_other_master_acknowledges_writes_at_once() {
    let mut cluster = Setup::slaves(3).masters_with(&["--no-failback"]).start();
    let load = Load::start(&cluster, 8, 20);
    let mut times = Vec::new();
    for _ in 0..7 {
        let primary = cluster.settle_under_load();
        load.wait_for_writes(100, seconds(5));
        let killed = cluster.kill(primary);
        times.push(load.wait_for_write_by(primary.other(), killed, seconds(10)));
        cluster.start(primary);
    }
    times.sort();
    let median = times[times.len() / 2];
    println!("kill -9 of the primary to the next acknowledged write: median {median:?} of {times:?}");
    assert!(median < seconds(2), "the median of {times:?}");
    load.prove(&mut cluster);
}

#[test]
fn without_failback_a_returning_primary_stays_standby() {
    let mut cluster = Setup::slaves(2).masters_with(&["--no-failback"]).start();
    let load = Load::start(&cluster, 6, 10);
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, seconds(5));
    cluster.start(Node::Master);
    assert_eq!(cluster.settle_under_load(), Node::Backup);
    let before = reign(&cluster);
    // Longer than the second after which it would ask for its place.
    stays("the backup serves", millis(2500), || match reign(&cluster) {
        now if now == before => Ok(()),
        now => Err(now),
    });
    load.prove(&mut cluster);
}

#[test]
fn a_hung_primary_is_fenced_and_the_backup_serves() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    let (_, before) = cluster.wait_for_primary(seconds(1));
    let paused = cluster.pause(Node::Master);
    let took = load.wait_for_write_by(Node::Backup, paused, seconds(3));
    println!("SIGSTOP of the primary to the next acknowledged write: {took:?}");
    let (_, after) = cluster.wait_for_primary(seconds(1));
    assert!(after.number("epoch") > before.number("epoch"), "a takeover begins a new reign");

    cluster.resume(Node::Master);
    wait_for("the old primary is dead or standby", seconds(5), || {
        let dead = cluster.exited(Node::Master).is_some();
        (dead || cluster.info(Node::Master).is_some_and(|info| info.role() == "standby")).then_some(())
    });
    load.wait_for_writes(200, seconds(5));
    load.prove(&mut cluster);
}

#[test]
fn a_hung_backup_changes_nothing() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 8, 20);
    let before = reign(&cluster);
    cluster.pause(Node::Backup);
    let unchanged = |cluster: &TestCluster| match reign(cluster) {
        now if now == before => Ok(()),
        now => Err(now),
    };
    stays("the primary serves as before", millis(2500), || unchanged(&cluster));
    load.wait_for_writes(200, seconds(5));
    cluster.resume(Node::Backup);
    // When it runs again, it must not take its own pause for one of the primary.
    stays("the primary serves as before", millis(2000), || unchanged(&cluster));
    load.wait_for_writes(200, seconds(5));
    assert_eq!(load.failed(), 0, "nobody noticed");
    load.prove(&mut cluster);
}

#[test]
fn a_pause_of_the_primary_below_the_timeout_changes_nothing() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 8, 20);
    let before = reign(&cluster);
    for _ in 0..3 {
        cluster.pause(Node::Master);
        std::thread::sleep(millis(500));
        cluster.resume(Node::Master);
        load.wait_for_writes(100, seconds(5));
    }
    assert_eq!(reign(&cluster), before, "the same reign with the same slaves");
    assert_eq!(load.failed(), 0, "no request lasted longer than its deadline");
    load.prove(&mut cluster);
}

#[test]
fn a_primary_that_slept_does_not_remove_its_slaves() {
    // Longer than the ACK timeout of a second, shorter than the patience of the backup.
    let mut cluster = Setup::slaves(3).masters_with(&["--failover-timeout", "30s"]).start();
    let load = Load::start(&cluster, 8, 20);
    let before = reign(&cluster);
    cluster.pause(Node::Master);
    std::thread::sleep(millis(3000));
    cluster.resume(Node::Master);
    stays("all slaves are active", millis(1500), || match reign(&cluster) {
        now if now == before => Ok(()),
        now => Err(now),
    });
    load.wait_for_writes(200, seconds(5));
    let told = cluster.info(Node::Master).expect("INFO is always answered");
    assert_eq!(
        (told.number("own_pauses") > 0, told.number("own_stalls")),
        (true, 0),
        "a pause is called one"
    );
    load.prove(&mut cluster);
}

#[test]
fn slaves_killed_one_after_another_fail_no_request() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    for slave in cluster.slaves() {
        cluster.kill(slave);
        cluster.wait_for_active_slaves(2, seconds(5));
        load.wait_for_writes(150, seconds(5));
        cluster.start(slave);
        cluster.wait_for_active_slaves(3, seconds(5));
        load.wait_for_writes(150, seconds(5));
    }
    let failures = load.failures_between(Instant::now() - seconds(60), Instant::now());
    assert!(failures.is_empty(), "two slaves were always there: {failures:?}");
    load.prove(&mut cluster);
}

#[test]
fn without_slaves_writes_are_refused_and_one_empty_slave_brings_all_values_back() {
    let mut cluster = Setup::slaves(3).start();
    for number in 0..50 {
        let key = format!("kept-{number}");
        assert_eq!(cluster.ask(&[b"SET", key.as_bytes(), key.as_bytes()]), Answer::ok());
    }
    let load = Load::start(&cluster, 8, 20);
    cluster.kill_at_once(&cluster.slaves());
    cluster.wait_for_active_slaves(0, seconds(5));
    let answer = cluster.ask(&[b"SET", b"refused", b"x"]);
    assert_eq!(answer.error_word(), Some("NOQUORUM"), "{answer:?}");
    let answer = cluster.ask(&[b"GET", b"kept-1"]);
    let truthful = answer == Answer::bulk("kept-1")
        || matches!(answer.error_word(), Some("NOQUORUM" | "LOADING" | "BUSY"));
    assert!(truthful, "the value or an error that says so, not {answer:?}");
    wait_for("the load hears of it", seconds(5), || load.has_failed_with("NOQUORUM").then_some(()));

    cluster.start(Node::Slave(1));
    cluster.wait_for_active_slaves(1, seconds(5));
    let mut connection = cluster.connect_to_primary();
    for number in 0..50 {
        let key = format!("kept-{number}");
        let answer = connection.call(&[b"GET", key.as_bytes()]).expect("an answer");
        assert_eq!(answer, Answer::bulk(&key), "from the log");
    }
    assert_eq!(connection.call(&[b"GET", b"refused"]).expect("an answer"), Answer::Null);
    load.wait_for_writes(200, seconds(5));
    load.prove(&mut cluster);
}

#[test]
fn a_hung_slave_is_removed_and_used_again_when_it_returns() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    let paused = cluster.pause(Node::Slave(1));
    cluster.wait_for_active_slaves(2, seconds(4));
    println!("a hung slave is removed after {:?}", paused.elapsed());
    load.wait_for_writes(300, seconds(5));
    let failures = load.failures_between(paused, Instant::now());
    assert!(failures.is_empty(), "a substitute completes the writes: {failures:?}");

    cluster.resume(Node::Slave(1));
    cluster.wait_for_active_slaves(3, seconds(5));
    load.wait_for_writes(300, seconds(5));
    // It must serve alone.
    cluster.kill_at_once(&[Node::Slave(0), Node::Slave(2)]);
    cluster.wait_for_active_slaves(1, seconds(5));
    load.wait_for_writes(300, seconds(5));
    load.prove(&mut cluster);
}

#[test]
fn slaves_and_primary_killed_together_lose_nothing() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    let killed = cluster.kill_at_once(&[Node::Master, Node::Slave(0), Node::Slave(1)]);
    load.wait_for_write_by(Node::Backup, killed, seconds(5));
    load.wait_for_writes(300, seconds(5));
    // The last slave that still held the earlier writes dies after the takeover.
    cluster.start(Node::Slave(0));
    cluster.wait_for_active_slaves(2, seconds(5));
    cluster.kill(Node::Slave(2));
    load.wait_for_writes(300, seconds(5));
    load.prove(&mut cluster);
}

#[test]
fn a_backup_killed_while_it_serves_gives_way_to_the_primary() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    for _ in 0..2 {
        let (primary, _) = cluster.wait_for_primary(seconds(10));
        let killed = cluster.kill(primary);
        load.wait_for_write_by(primary.other(), killed, seconds(5));
        cluster.start(primary);
        cluster.settle_under_load();
        // Timed for the handover back.
        std::thread::sleep(millis(rand::random_range(800..1400)));
        cluster.restart(primary.other());
        load.wait_for_writes(200, seconds(10));
        cluster.settle_under_load();
    }
    load.prove(&mut cluster);
}

#[test]
fn random_faults_of_all_kinds_break_no_promise() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 12, 20);
    let seed: u64 = rand::random();
    println!("faults: seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let begun = Instant::now();
    while begun.elapsed() < seconds(8) {
        let nodes = cluster.nodes();
        let node = nodes[random.random_range(0..nodes.len())];
        match random.random_range(0..4) {
            0 => {
                cluster.pause(node);
                std::thread::sleep(millis(random.random_range(10..1600)));
                cluster.resume(node);
            }
            1 => {
                let other = nodes[random.random_range(0..nodes.len())];
                let both = if node == other { vec![node] } else { vec![node, other] };
                cluster.kill_at_once(&both);
                std::thread::sleep(millis(random.random_range(0..400)));
                both.into_iter().for_each(|node| cluster.start(node));
            }
            _ => {
                cluster.restart(node);
            }
        }
        cluster.revive();
        std::thread::sleep(millis(random.random_range(0..500)));
    }
    load.prove(&mut cluster);
}
