//! Reigns are distinguished: values of a log that was given up, values of another copy of the log, and strangers that
//! claim to know reigns that never existed.

mod common;

use common::cluster::{command, Node, Setup, TestCluster};
use common::native::{self, Native};
use common::resp::{Answer, Connection};
use common::{nobody_notices, seconds, wait_for};
use dsm_protocol::ids::{ClusterId, Reign, Seq};
use dsm_protocol::message::{Control, Message, Seen};
use std::time::Instant;

fn cluster_id(cluster: &TestCluster) -> ClusterId {
    let info = cluster.info(Node::Master).expect("INFO");
    info.get("cluster_id").expect("a cluster id").parse().expect("hexadecimal")
}

/// Reads `key` so often that each slave that may hold it was asked.
fn always_reads(connection: &mut Connection, key: &str, value: &str) {
    for round in 0..20 {
        let answer = connection.call(&[b"GET", key.as_bytes()]).expect("an answer");
        assert_eq!(answer, Answer::bulk(value), "read {round}");
    }
}

fn disputing(cluster: &TestCluster, master: Node) -> u64 {
    cluster.info(master).map_or(0, |info| info.number("slaves_disputing"))
}

#[test]
fn a_stranger_that_claims_to_know_of_higher_reigns_disturbs_nobody() {
    nobody_notices(&[], |cluster, load| {
        let ours = cluster_id(cluster);
        let begun = Instant::now();
        let mut claims = 0_u64;
        while begun.elapsed() < seconds(2) {
            let mut link = Native::open(cluster.address(Node::Master), seconds(5));
            let name = format!("stranger-{claims}");
            link.say_hello(Some(ours), native::slave(&name)).expect("sent");
            link.welcome().expect("it looks like a slave");
            for _ in 0..334 {
                claims += 1;
                let seen = Seen { reign: Reign::new(1 << 40 | claims, claims), seq: Seq(9), durable: true };
                let claim = Message::Control(Control::Outdated { seen });
                link.send(&native::encoded(&claim)).expect("sent");
            }
        }
        assert!(claims > 334, "{claims} claims");
        load.wait_for_writes(200, seconds(5));
        assert_eq!(cluster.info(Node::Master).expect("INFO").number("slaves_removed"), 0);
        let said = cluster.stderr(Node::Master);
        assert_eq!(said.matches("slave set aside").count(), 1, "logged seldom:\n{said}");
    });
}

#[test]
fn a_slave_that_holds_what_was_given_up_with_the_log_serves_none_of_it() {
    let mut cluster = Setup::slaves(1).start();
    let log = cluster.log();
    let copy = std::fs::read(&log).expect("the log is there");
    assert_eq!(cluster.ask(&[b"SET", b"k", b"given-up"]), Answer::ok());
    // The slave is disconnected while the log is restored from the copy, on a machine without the old lock file.
    cluster.pause(Node::Slave(0));
    cluster.kill_at_once(&[Node::Master, Node::Backup]);
    std::fs::remove_file(&log).expect("removed");
    std::fs::remove_file(cluster.lock()).expect("removed");
    std::fs::write(&log, copy).expect("restored");
    let (_fresh, _) = {
        let masters = cluster.addresses().map(|address| address.to_string()).join(",");
        let mut fresh = command(Node::Slave(0));
        fresh.args(["--id", "fresh", "--masters", &masters]);
        cluster.start_stranger(fresh, "fresh")
    };
    cluster.start(Node::Master);
    cluster.wait_until_serves(Node::Master, seconds(10));
    wait_for("the new slave is active", seconds(5), || {
        cluster.info(Node::Master).filter(|info| info.slave_ids() == ["fresh"])
    });
    // At the same place in the log, by a reign with the same number.
    let mut connection = cluster.connect(Node::Master);
    assert_eq!(connection.call(&[b"SET", b"k", b"restored"]).expect("an answer"), Answer::ok());
    cluster.resume(Node::Slave(0));
    wait_for("the slave that was away is set aside", seconds(10), || {
        (disputing(&cluster, Node::Master) == 1).then_some(())
    });
    always_reads(&mut connection, "k", "restored");
    wait_for("that is told", seconds(10), || {
        cluster.stderr(Node::Master).contains("slave set aside slave=slave-0").then_some(())
    });
    // Restarted, it is empty, and has a place again.
    cluster.restart(Node::Slave(0));
    cluster.wait_for_active_slaves(2, seconds(5));
    always_reads(&mut connection, "k", "restored");
}

#[test]
fn a_slave_of_a_copy_of_the_cluster_serves_the_copy_alone() {
    let mut production = Setup::slaves(1).beside_others().start();
    let copy = std::fs::read(production.log()).expect("the log is there");
    // Both have had reigns with the same epochs since they were copied.
    let mut staging = Setup::slaves(0).beside_others().log(copy).prepare();
    staging.start_all();
    staging.wait_until_serves(Node::Master, seconds(10));
    production.restart(Node::Master);
    production.settle();
    // The slave connects to staging first.
    let masters = [Node::Master, Node::Backup];
    production.freeze(&masters);
    let names = [staging.address(Node::Master), production.address(Node::Master)];
    let all = [names[0], names[1], production.address(Node::Backup)].map(|address| address.to_string());
    let mut both = command(Node::Slave(0));
    both.args(["--id", "both", "--masters", &all.join(",")]);
    let (_both, _) = staging.start_stranger(both, "both");
    staging.wait_for_active_slaves(1, seconds(10));
    masters.into_iter().for_each(|master| production.resume(master));
    let mut at_staging = staging.connect(Node::Master);
    let mut at_production = production.connect_to_primary();
    for number in 0..20 {
        let key = format!("key-{number}");
        let write = |connection: &mut Connection, value: &str| {
            wait_for("the write is done", seconds(10), || {
                let answer = connection.call(&[b"SET", key.as_bytes(), value.as_bytes()]).ok()?;
                (answer == Answer::ok()).then_some(())
            });
        };
        write(&mut at_production, "production");
        write(&mut at_staging, "staging");
        always_reads(&mut at_staging, &key, "staging");
        always_reads(&mut at_production, &key, "production");
    }
    // It has stayed there, and production recognises it.
    wait_for("production has set it aside", seconds(10), || {
        (serving_disputes(&production) == 1).then_some(())
    });
    staging.wait_for_active_slaves(1, seconds(1));
}

/// How many slaves the serving master counts as disputing.
fn serving_disputes(cluster: &TestCluster) -> u64 {
    cluster.primary().map_or(0, |(_, info)| info.number("slaves_disputing"))
}
