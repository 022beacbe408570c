//! A master and its slaves, as they are, whose longest value is shorter than what the log holds.

use crate::master::Client;
use crate::peer::LIMIT;
use bytes::BytesMut;
use bytesize::ByteSize;
use dsm::config::{MasterConfig, MasterKind, SlaveConfig};
use dsm::env::sim::{Machine, Process, World};
use dsm::env::Env;
use dsm::node::{run_node, NodeConfig};
use std::future::pending;
use std::time::Duration;
use tokio::time::Instant;

const ADDRESS: &str = "master:12345";
const STANDBY: &str = "standby:12346";

fn start_master(world: &World, machine: &Machine, max_value: ByteSize) -> Process {
    let config = MasterConfig {
        new: true,
        listen: vec![ADDRESS.to_owned()],
        peers: vec!["nobody:12346".to_owned()],
        log: "/data/kv_store.log".into(),
        max_value,
        ..MasterConfig::default()
    };
    let node = NodeConfig::Master(MasterKind::Primary, config);
    world.start(machine, "master", |env| run_node(node, env, pending())).0
}

/// A pair of masters; the second one stands by.
fn start_pair(world: &World, machine: &Machine, max_value: ByteSize) -> [Process; 2] {
    let config = |listen: &str, peer: &str| MasterConfig {
        new: true,
        listen: vec![listen.to_owned()],
        peers: vec![peer.to_owned()],
        log: "/data/kv_store.log".into(),
        max_value,
        ..MasterConfig::default()
    };
    let primary = NodeConfig::Master(MasterKind::Primary, config(ADDRESS, STANDBY));
    let backup = NodeConfig::Master(MasterKind::Backup, config(STANDBY, ADDRESS));
    [("master", primary), ("standby", backup)]
        .map(|(host, node)| world.start(machine, host, |env| run_node(node, env, pending())).0)
}

fn start_slave(world: &World, machine: &Machine, max_value: ByteSize) -> Process {
    let config = SlaveConfig { masters: vec![ADDRESS.to_owned()], max_value, ..SlaveConfig::default() };
    let node = NodeConfig::Slave(config);
    world.start(machine, "slave", |env| run_node(node, env, pending())).0
}

async fn info(env: &Env) -> Option<String> {
    let mut client = Client { stream: env.connect(ADDRESS).await.ok()?, input: BytesMut::new() };
    client.send(&["INFO"]).await;
    Some(client.bulk().await)
}

async fn wait_for(env: &Env, facts: &[&str]) {
    let begun = Instant::now();
    while !info(env).await.is_some_and(|info| facts.iter().all(|fact| info.contains(fact))) {
        assert!(begun.elapsed() < LIMIT, "no {facts:?} in time: {:?}", info(env).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_value_from_before_the_limit_was_lowered_is_read_and_costs_no_slave() {
    World::run(1, |world| async move {
        let env = world.env(&world.machine("client"), "client");
        let (masters, slaves) = (world.machine("masters"), world.machine("slaves"));
        let value = "v".repeat(3 << 20);
        let (before, after) = (ByteSize::mib(16), ByteSize::kib(1));
        let master = start_master(&world, &masters, before);
        let slave = start_slave(&world, &slaves, before);
        wait_for(&env, &["active_slaves:1"]).await;
        let mut client = Client { stream: env.connect(ADDRESS).await.unwrap(), input: BytesMut::new() };
        client.send(&["SET", "k", &value]).await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        world.kill(&master);
        start_master(&world, &masters, after);
        // From a slave that holds it.
        wait_for(&env, &["active_slaves:1", "copies=1"]).await;
        let mut client = Client { stream: env.connect(ADDRESS).await.unwrap(), input: BytesMut::new() };
        client.send(&["GET", "k"]).await;
        assert_eq!(client.bulk().await, value);
        let facts = info(&env).await.unwrap();
        assert!(facts.contains("slaves_removed:0") && facts.contains("reads_from_log:0"), "{facts}");
        // From the log; the new slave could not take it.
        world.kill(&slave);
        wait_for(&env, &["active_slaves:0"]).await;
        start_slave(&world, &slaves, after);
        wait_for(&env, &["active_slaves:1"]).await;
        for _ in 0..2 {
            client.send(&["GET", "k"]).await;
            assert_eq!(client.bulk().await, value);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        wait_for(&env, &["active_slaves:1", "slaves_removed:1"]).await;
    });
}

#[test]
fn such_a_value_is_read_through_the_standby_and_cuts_no_link() {
    World::run(1, |world| async move {
        let env = world.env(&world.machine("client"), "client");
        let (masters, slaves) = (world.machine("masters"), world.machine("slaves"));
        // Longer than any request may be afterwards.
        let value = "v".repeat(66 << 20);
        let (before, after) = (ByteSize::mib(128), ByteSize::kib(1));
        let pair = start_pair(&world, &masters, before);
        start_slave(&world, &slaves, before);
        wait_for(&env, &["active_slaves:1", "peer_connected:1"]).await;
        let mut client = Client { stream: env.connect(ADDRESS).await.unwrap(), input: BytesMut::new() };
        client.send(&["SET", "k", &value]).await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        for master in &pair {
            world.kill(master);
        }
        start_pair(&world, &masters, after);
        wait_for(&env, &["active_slaves:1", "copies=1", "peer_connected:1"]).await;
        let open =
            || async { Client { stream: env.connect(STANDBY).await.unwrap(), input: BytesMut::new() } };
        let (mut reader, mut writer) = (open().await, open().await);
        writer.send(&["SET", "other", "0"]).await;
        assert_eq!(writer.line().await.as_deref(), Some("+OK"), "the standby forwards");
        reader.send(&["GET", "k"]).await;
        for _ in 0..50 {
            writer.send(&["SET", "other", "1"]).await;
            assert_eq!(
                writer.line().await.as_deref(),
                Some("+OK"),
                "others' writes go on over the same link"
            );
        }
        assert!(reader.bulk().await == value, "the standby knows how long the answer will be");
        let facts = info(&env).await.unwrap();
        assert!(facts.contains("errors_unknown:0") && facts.contains("protocol_errors:0"), "{facts}");
    });
}
