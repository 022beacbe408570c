//! Two masters and a slave, as they are, over disks that stall while the reign changes hands or the node ends.

use crate::master::Client;
use crate::peer::LIMIT;
use bytes::BytesMut;
use dsm::config::{Fsync, MasterConfig, MasterKind, SlaveConfig};
use dsm::env::sim::{DiskFault, Machine, Process, World};
use dsm::env::Env;
use dsm::node::{run_node, NodeConfig};
use dsm::node_error::NodeError;
use std::cell::Cell;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

const ADDRESSES: [&str; 2] = ["primary:12345", "backup:12346"];

const LOG: &str = "/data/kv_store.log";

/// A primary, a backup on the same machine, and a slave on another.
struct Cluster {
    env: Env,
    machine: Machine,
    backup: Process,
    /// Asks the primary to stop.
    stop: oneshot::Sender<()>,
    end: oneshot::Receiver<Result<(), NodeError>>,
}

impl Cluster {
    /// Starts a cluster, and waits until the standby could take over.
    async fn start(world: &World, fsync: Fsync) -> Cluster {
        let machine = world.machine("masters");
        machine.change_disk(|disk| (disk.sync_ms, disk.slow_per_mille) = (0..=0, 0));
        let (stop, stopped) = oneshot::channel();
        let node = |kind, ours: usize| {
            let config = MasterConfig {
                new: true,
                listen: vec![ADDRESSES[ours].to_owned()],
                peers: vec![ADDRESSES[1 - ours].to_owned()],
                log: LOG.into(),
                fsync,
                ..MasterConfig::default()
            };
            NodeConfig::Master(kind, config)
        };
        let (primary, backup) = (node(MasterKind::Primary, 0), node(MasterKind::Backup, 1));
        let (_, end) = world.start(&machine, "primary", |env| {
            run_node(primary, env, async {
                // Kept without a word: the test does not want it to stop.
                if stopped.await.is_err() {
                    std::future::pending().await
                }
            })
        });
        let (backup, _) =
            world.start(&machine, "backup", |env| run_node(backup, env, std::future::pending()));
        let masters = ADDRESSES.map(str::to_owned).to_vec();
        let slave = NodeConfig::Slave(SlaveConfig { masters, ..SlaveConfig::default() });
        let slaves = world.machine("slaves");
        world.start(&slaves, "slave", |env| run_node(slave, env, std::future::pending()));
        let cluster =
            Cluster { env: world.env(&world.machine("clients"), "client"), machine, backup, stop, end };
        cluster.wait_for(0, "active_slaves:1").await;
        // The slave's link to the standby and the masters' to each other are not shown there.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(cluster.info(1).await.contains("dsm_role:standby"));
        cluster
    }

    async fn client(&self, master: usize) -> Client {
        let stream = self.env.connect(ADDRESSES[master]).await.unwrap();
        Client { stream, input: BytesMut::new() }
    }

    async fn info(&self, master: usize) -> String {
        let mut client = self.client(master).await;
        client.send(&["INFO"]).await;
        client.bulk().await
    }

    async fn wait_for(&self, master: usize, fact: &str) {
        let begun = Instant::now();
        while self.env.connect(ADDRESSES[master]).await.is_err() || !self.info(master).await.contains(fact) {
            assert!(begun.elapsed() < LIMIT, "no {fact} in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has the primary hand over; gives the answer, and the longest that a request of another client took meanwhile.
    async fn failover_under_load(&self, words: &[&[&str]]) -> (String, Duration) {
        let (mut operator, mut client) = (self.client(0).await, self.client(0).await);
        operator.send(&["FAILOVER"]).await;
        let is_over = Cell::new(false);
        let load = async {
            let mut longest = Duration::ZERO;
            while !is_over.get() {
                for words in words {
                    let asked = Instant::now();
                    client.send(words).await;
                    let answer = client.line().await.expect("an answer");
                    if answer.starts_with('$') {
                        client.line().await.expect("the value");
                    }
                    assert!(!answer.starts_with('-'), "{words:?}: {answer}");
                    longest = longest.max(asked.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            longest
        };
        let answer = async {
            let answer = operator.line().await.expect("an answer");
            is_over.set(true);
            answer
        };
        tokio::join!(answer, load)
    }
}

#[test]
fn a_handover_syncs_the_log_before_it_holds_anything_back() {
    World::run(1, |world| async move {
        let cluster = Cluster::start(&world, Fsync::Never).await;
        // Gigabytes that were never synced, say.
        cluster.machine.fail(1, DiskFault::SyncStalls(1500));
        let load: &[&[&str]] = &[&["SET", "k", "v"], &["GET", "k"]];
        let (answer, longest) = cluster.failover_under_load(load).await;
        assert_eq!(answer, "+OK");
        assert!(longest < Duration::from_millis(300), "a request was held for {longest:?}");
        assert!(cluster.info(0).await.contains("dsm_role:standby"));
        cluster.wait_for(1, "dsm_role:primary").await;
    });
}

#[test]
fn a_handover_whose_log_cannot_be_closed_in_time_is_given_up_and_fails_no_request() {
    World::run(1, |world| async move {
        let cluster = Cluster::start(&world, Fsync::Never).await;
        let mut client = cluster.client(0).await;
        client.send(&["SET", "k", "v"]).await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        // The first sync is in time; the disk stalls just after it.
        cluster.machine.fail(2, DiskFault::SyncStalls(20_000));
        let (answer, longest) = cluster.failover_under_load(&[&["GET", "k"]]).await;
        assert!(answer.starts_with("-BUSY the handover was aborted"), "{answer}");
        assert!(longest < Duration::from_secs(1), "a read was held for {longest:?}");
        assert!(cluster.info(0).await.contains("dsm_role:primary"));
        assert!(cluster.info(1).await.contains("dsm_role:standby"));
        // Reads are served on; a write waits for the disk, as it does at any other time.
        let mut writer = cluster.client(0).await;
        writer.send(&["SET", "k", "w"]).await;
        let asked = Instant::now();
        client.send(&["GET", "k"]).await;
        assert_eq!(client.bulk().await, "v");
        assert!(asked.elapsed() < Duration::from_secs(1));
        assert_eq!(writer.line().await.as_deref(), Some("+OK"));
        // The same log goes on, and the next handover finds a disk that is well.
        let (answer, _) = cluster.failover_under_load(&[&["GET", "k"]]).await;
        assert_eq!(answer, "+OK");
        cluster.wait_for(1, "dsm_role:primary").await;
        let mut client = cluster.client(1).await;
        client.send(&["GET", "k"]).await;
        assert_eq!(client.bulk().await, "w");
    });
}

#[test]
fn a_stop_hands_over_forwards_what_is_still_asked_and_ends_connections_with_an_answer() {
    World::run(1, |world| async move {
        let cluster = Cluster::start(&world, Fsync::Always).await;
        let (mut busy, mut silent) = (cluster.client(0).await, cluster.client(0).await);
        for client in [&mut busy, &mut silent] {
            client.send(&["SET", "k", "before"]).await;
            assert_eq!(client.line().await.as_deref(), Some("+OK"));
        }
        let Cluster { stop, end, env, .. } = cluster;
        let asked = Instant::now();
        stop.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The reign has gone by now; who asks here is forwarded, and let go.
        busy.send(&["SET", "k", "after"]).await;
        assert_eq!(busy.line().await.as_deref(), Some("+OK"));
        assert_eq!(busy.line().await, None);
        assert!(asked.elapsed() < Duration::from_millis(400), "{:?}", asked.elapsed());
        // Who says nothing may say it for a while.
        assert_eq!(silent.line().await, None);
        let waited = asked.elapsed();
        assert!((Duration::from_millis(400)..Duration::from_secs(1)).contains(&waited), "{waited:?}");
        end.await.unwrap().unwrap();
        let stream = env.connect(ADDRESSES[1]).await.unwrap();
        let mut client = Client { stream, input: BytesMut::new() };
        client.send(&["GET", "k"]).await;
        assert_eq!(client.bulk().await, "after");
    });
}

#[test]
fn a_stop_does_not_wait_for_a_standby_that_does_not_take_the_reign() {
    World::run(1, |world| async move {
        let cluster = Cluster::start(&world, Fsync::Always).await;
        let mut client = cluster.client(0).await;
        client.send(&["SET", "k", "v"]).await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        cluster.backup.pause();
        let asked = Instant::now();
        cluster.stop.send(()).unwrap();
        // It is served while the standby is waited for.
        client.send(&["SET", "k", "w"]).await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        assert_eq!(client.line().await, None);
        cluster.end.await.unwrap().unwrap();
        let waited = asked.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
    });
}

#[test]
fn a_stop_that_the_standby_cannot_take_over_leaves_nothing_unknown_that_it_has_forwarded() {
    for seed in 1..=5 {
        World::run(seed, |world| async move {
            let cluster = Cluster::start(&world, Fsync::Always).await;
            // The standby does not know this slave, and is refused the reign for that.
            let of_one = SlaveConfig { masters: vec![ADDRESSES[0].to_owned()], ..SlaveConfig::default() };
            let node = NodeConfig::Slave(of_one);
            let never = std::future::pending();
            world.start(&world.machine("far"), "far", |env| run_node(node, env, never));
            cluster.wait_for(0, "active_slaves:2").await;
            let Cluster { env, stop, end, .. } = cluster;
            let is_over = Cell::new(false);
            let clients = (0..16).map(|number| {
                let (env, is_over) = (&env, &is_over);
                async move {
                    let stream = env.connect(ADDRESSES[1]).await.unwrap();
                    let mut client = Client { stream, input: BytesMut::new() };
                    let key = format!("k{number}");
                    while !is_over.get() {
                        client.send(&["SET", &key, "v"]).await;
                        assert_eq!(client.line().await.as_deref(), Some("+OK"), "seed {seed}");
                    }
                }
            });
            let stopping = async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let asked = Instant::now();
                stop.send(()).unwrap();
                end.await.unwrap().unwrap();
                let waited = asked.elapsed();
                assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
                // The other one serves them by now, or holds what they ask.
                tokio::time::sleep(Duration::from_secs(1)).await;
                is_over.set(true);
            };
            tokio::join!(futures_util::future::join_all(clients), stopping);
        });
    }
}

#[test]
fn a_master_whose_disk_stalls_stops_in_bounded_time_and_answers_nothing_that_it_does_not_know() {
    World::run(1, |world| async move {
        let cluster = Cluster::start(&world, Fsync::Always).await;
        cluster.machine.fail(1, DiskFault::SyncStalls(3_600_000));
        let mut client = cluster.client(0).await;
        client.send(&["SET", "k", "v"]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = Instant::now();
        cluster.stop.send(()).unwrap();
        cluster.end.await.unwrap().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
        assert_eq!(client.line().await, None, "nobody knows whether the write is on the disk");
    });
}

#[test]
fn a_master_that_ends_because_of_its_disk_does_not_wait_for_slow_readers() {
    World::run(1, |world| async move {
        let cluster = Cluster::start(&world, Fsync::Always).await;
        let (mut slow, writer) = (cluster.client(0).await, cluster.client(0).await);
        let long = "x".repeat(8 << 20);
        slow.send(&["SET", "long", &long]).await;
        assert_eq!(slow.line().await.as_deref(), Some("+OK"));
        cluster.machine.fail(1, DiskFault::SyncStalls(3_600_000));
        writer.send(&["SET", "k", "v"]).await;
        slow.send(&["GET", "long"]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = Instant::now();
        cluster.stop.send(()).unwrap();
        let takes = async {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                // Until that ends there is always a little more.
                if slow.stream.read(&mut slow.input).await.unwrap_or(0) == 0 {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            end = cluster.end => end.unwrap().unwrap(),
            () = takes => {}
        }
        // The other master waits for the lock all the while.
        assert!(asked.elapsed() < Duration::from_millis(6500), "it took {:?}", asked.elapsed());
    });
}

#[test]
fn a_master_whose_disk_stalls_before_it_serves_stops_in_bounded_time() {
    // Whichever sync it is of those on the way to a reign.
    for nth in 1..=5 {
        World::run(1, |world| async move {
            let machine = world.machine("masters");
            let config = MasterConfig {
                new: true,
                listen: vec![ADDRESSES[0].to_owned()],
                peers: vec![ADDRESSES[1].to_owned()],
                log: LOG.into(),
                ..MasterConfig::default()
            };
            machine.fail(nth, DiskFault::SyncStalls(3_600_000));
            let (stop, stopped) = oneshot::channel::<()>();
            let node = NodeConfig::Master(MasterKind::Primary, config);
            let (_, end) = world.start(&machine, "primary", |env| {
                run_node(node, env, async {
                    stopped.await.unwrap();
                })
            });
            tokio::time::sleep(Duration::from_secs(5)).await;
            let asked = Instant::now();
            stop.send(()).unwrap();
            end.await.unwrap().unwrap();
            assert!(asked.elapsed() < Duration::from_secs(10), "sync {nth}: it took {:?}", asked.elapsed());
        });
    }
}

#[test]
fn a_reign_is_not_handed_over_to_a_standby_of_another_file_nor_given_up_over_one() {
    let (log, moved) = (std::path::Path::new(LOG), std::path::Path::new("/data/kv_store.log.1"));
    for standby_sees_it in [true, false] {
        World::run(1, |world| async move {
            let cluster = Cluster::start(&world, Fsync::Always).await;
            let mut client = cluster.client(0).await;
            client.send(&["SET", "k", "v"]).await;
            assert_eq!(client.line().await.as_deref(), Some("+OK"));
            // The mark after it is written too: the next look is half a second away.
            tokio::time::sleep(Duration::from_millis(30)).await;
            assert!(cluster.machine.rename(log, moved));
            cluster.machine.edit(log, |_| {});
            let mut operator = cluster.client(0).await;
            if standby_sees_it {
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert!(cluster.info(1).await.contains("standby_log:short"), "it has nothing in it");
                operator.send(&["FAILOVER"]).await;
                let answer = operator.line().await.expect("an answer");
                assert!(
                    answer.starts_with("-BUSY the handover was refused: the standby follows another log"),
                    "{answer}"
                );
                assert!(cluster.info(0).await.contains("dsm_role:primary"));
            } else {
                // It is granted, and the look right before the log is closed finds out.
                operator.send(&["FAILOVER"]).await;
                let answer = operator.line().await;
                assert!(answer.as_deref().is_none_or(|answer| answer.starts_with('-')), "{answer:?}");
            }
            let Cluster { end, env, machine, .. } = cluster;
            let end = tokio::time::timeout(Duration::from_secs(1), end).await.expect("it ends").unwrap();
            assert!(matches!(end, Err(NodeError::LogDisplaced { .. })), "{end:?}");
            // The standby has the lock now, and serves nobody.
            let ask = async |words: &'static [&'static str]| {
                let stream = env.connect(ADDRESSES[1]).await.unwrap();
                let mut client = Client { stream, input: BytesMut::new() };
                client.send(words).await;
                client.bulk().await
            };
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(10) {
                let info = ask(&["INFO"]).await;
                assert!(!info.contains("dsm_role:primary"), "{info}");
                assert!(info.contains("keys:1"), "it keeps what it has: {info}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let info = ask(&["INFO"]).await;
            assert!(info.contains("dsm_role:recovering") && info.contains("standby_log:short"), "{info}");
            assert_eq!(machine.content(log).as_deref(), Some(&b""[..]), "nobody begins a log");
            assert!(machine.rename(moved, log));
            assert_eq!(ask(&["GET", "k"]).await, "v");
            assert!(ask(&["INFO"]).await.contains("dsm_role:primary"));
        });
    }
}
