//! Three whole masters, with slaves and clients: each of them has two others. They share one log in memory, or keep one of their own
//! each on machines of their own.

use crate::master::Client;
use crate::peer::LIMIT;
use bytes::BytesMut;
use dsm::config::{MasterConfig, MasterKind, SlaveConfig};
use dsm::env::sim::{Machine, Process, World};
use dsm::env::Env;
use dsm::journal::memory::MemoryLog;
use dsm::journal::JournalKind;
use dsm::node::{run_master, run_node, NodeConfig};
use dsm::node_error::NodeError;
use futures_util::future::join_all;
use std::cell::Cell;
use std::future::{pending, Future};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

const HOSTS: [&str; 3] = ["first", "second", "third"];

const SLAVES: usize = 2;

const SEEDS: u64 = 10;

/// How many clients write at the standbys while a master stops.
const CLIENTS: usize = 8;

/// How long a cluster is left alone where nothing is to happen any more.
const QUIET: Duration = Duration::from_secs(5);

/// Runs a scenario in worlds whose networks are slow in different places, with both kinds of logs.
fn in_some_worlds<F: Future<Output = ()>>(scenario: impl Fn(World, Logs) -> F) {
    for seed in 0..SEEDS {
        World::run(seed, |world| scenario(world, Logs::Shared(MemoryLog::default())));
        World::run(seed, |world| scenario(world, Logs::OfTheirOwn));
    }
}

/// The address of a master.
fn address(master: usize) -> String {
    format!("{}:12345", HOSTS[master])
}

/// One of the masters while it runs.
struct Running {
    process: Process,
    /// Asks it to stop.
    stop: oneshot::Sender<()>,
    end: oneshot::Receiver<Result<(), NodeError>>,
}

/// What the masters' logs are.
#[derive(Clone)]
enum Logs {
    /// One that they share.
    Shared(MemoryLog),
    /// One file each, which Raft keeps equal.
    OfTheirOwn,
}

/// Three masters, of which the first is preferred, and two slaves.
struct Trio {
    world: World,
    env: Env,
    logs: Logs,
    machines: Vec<Machine>,
    masters: Vec<Running>,
}

impl Trio {
    /// Starts a cluster, and waits until the first master serves and the others could take over.
    async fn start(world: &World, logs: Logs) -> Trio {
        let env = world.env(&world.machine("clients"), "client");
        let machines = HOSTS.iter().map(|host| world.machine(host)).collect();
        let mut trio = Trio { world: world.clone(), env, logs, machines, masters: Vec::new() };
        for master in 0..HOSTS.len() {
            let running = trio.run(master);
            trio.masters.push(running);
        }
        let machine = world.machine("slaves");
        for number in 1..=SLAVES {
            let masters = (0..HOSTS.len()).map(address).collect();
            let slave = NodeConfig::Slave(SlaveConfig { masters, ..SlaveConfig::default() });
            world.start(&machine, &format!("slave{number}"), |env| run_node(slave, env, pending()));
        }
        trio.leads(0, &[1, 2]).await;
        trio
    }

    fn run(&self, master: usize) -> Running {
        let mut config = MasterConfig { new: true, listen: vec![address(master)], ..MasterConfig::default() };
        match self.logs {
            Logs::Shared(_) => {
                config.peers = (0..HOSTS.len()).filter(|other| *other != master).map(address).collect();
            }
            Logs::OfTheirOwn => config.members = (0..HOSTS.len()).map(address).collect(),
        }
        let kind = if master == 0 { MasterKind::Primary } else { MasterKind::Backup };
        let (stop, stopped) = oneshot::channel();
        let journal = match &self.logs {
            Logs::Shared(log) => JournalKind::Memory(log.clone()),
            Logs::OfTheirOwn => JournalKind::of(&config),
        };
        let (process, end) = self.world.start(&self.machines[master], HOSTS[master], |env| {
            run_master(kind, config, journal, env, async {
                // Kept without a word: the test does not want it to stop.
                if stopped.await.is_err() {
                    pending().await
                }
            })
        });
        Running { process, stop, end }
    }

    fn kill(&self, master: usize) {
        self.world.kill(&self.masters[master].process);
    }

    fn restart(&mut self, master: usize) {
        self.masters[master] = self.run(master);
    }

    async fn client(&self, master: usize) -> Client {
        let stream = self.env.connect(&address(master)).await.expect("the master listens");
        Client { stream, input: BytesMut::new() }
    }

    /// What a master says of itself; nothing when it is not there.
    async fn info(&self, master: usize) -> Option<String> {
        let stream = self.env.connect(&address(master)).await.ok()?;
        let mut client = Client { stream, input: BytesMut::new() };
        client.send(&["INFO"]).await;
        Some(client.bulk().await)
    }

    async fn says(&self, master: usize, fact: &str) -> bool {
        self.info(master).await.is_some_and(|info| info.lines().any(|line| line == fact))
    }

    async fn number(&self, master: usize, name: &str) -> u64 {
        let info = self.info(master).await.expect("the master is there");
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {name} in {info}")).parse().expect("a number")
    }

    /// Waits until one of these masters serves with all slaves; gives it.
    async fn serving(&self, masters: &[usize]) -> usize {
        let begun = Instant::now();
        loop {
            for master in masters {
                let serves = self.says(*master, "dsm_role:primary").await;
                if serves && self.says(*master, &format!("active_slaves:{SLAVES}")).await {
                    return *master;
                }
            }
            assert!(begun.elapsed() < LIMIT, "none of {masters:?} serves");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a master serves with all slaves, and the others follow it.
    async fn leads(&self, master: usize, others: &[usize]) {
        assert_eq!(self.serving(&[master]).await, master);
        let begun = Instant::now();
        let fact = format!("active_master:{}", address(master));
        for other in others {
            while !(self.says(*other, "dsm_role:standby").await && self.says(*other, &fact).await) {
                assert!(begun.elapsed() < LIMIT, "{} does not follow", HOSTS[*other]);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // The slaves' links to a standby, and the masters' to each other, are not shown there.
        tokio::time::sleep(QUIET).await;
    }

    async fn set(&self, master: usize, key: &str, value: &str) {
        let mut client = self.client(master).await;
        client.send(&["SET", key, value]).await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"), "SET {key} at {}", HOSTS[master]);
    }

    async fn get(&self, master: usize, key: &str) -> String {
        let mut client = self.client(master).await;
        client.send(&["GET", key]).await;
        client.bulk().await
    }
}

#[test]
fn one_of_two_standbys_takes_over_from_a_master_that_dies_and_the_other_follows_it() {
    in_some_worlds(|world, logs| async move {
        let mut trio = Trio::start(&world, logs).await;
        trio.set(0, "a", "1").await;
        trio.set(2, "b", "2").await;
        trio.kill(0);
        let next = trio.serving(&[1, 2]).await;
        let third = 3 - next;
        trio.leads(next, &[third]).await;
        assert_eq!(trio.number(next, "takeovers").await, 1);
        assert_eq!(trio.number(third, "takeovers").await, 0, "two have taken over");
        trio.set(third, "c", "3").await;
        for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
            assert_eq!((trio.get(next, key).await, trio.get(third, key).await), (value.into(), value.into()));
        }
        // The preferred master comes back, and asks the one that serves for the reign: that goes to it, not to the third one,
        // which has waited for longer.
        trio.restart(0);
        trio.leads(0, &[1, 2]).await;
        assert_eq!(trio.number(next, "handovers").await, 1);
        assert_eq!(trio.number(third, "takeovers").await, 0);
        trio.set(third, "d", "4").await;
        for (key, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")] {
            assert_eq!(trio.get(0, key).await, value);
        }
    });
}

#[test]
fn a_failover_by_an_operator_moves_the_reign_to_one_of_two_standbys() {
    in_some_worlds(|world, logs| async move {
        let trio = Trio::start(&world, logs).await;
        trio.set(0, "a", "1").await;
        let mut operator = trio.client(0).await;
        operator.send(&["FAILOVER"]).await;
        assert_eq!(operator.line().await.as_deref(), Some("+OK"));
        let next = trio.serving(&[1, 2]).await;
        assert_eq!(trio.get(0, "a").await, "1");
        assert_eq!(trio.number(3 - next, "takeovers").await, 0);
        // The preferred master asks for it back.
        trio.leads(0, &[1, 2]).await;
        assert_eq!(trio.number(3 - next, "takeovers").await, 0);
        assert_eq!(trio.get(3 - next, "a").await, "1");
    });
}

#[test]
fn a_master_that_stops_hands_over_to_one_of_two_standbys_and_no_request_fails() {
    in_some_worlds(|world, logs| async move {
        let mut trio = Trio::start(&world, logs).await;
        let Running { stop, end, .. } = trio.masters.remove(0);
        let is_over = Cell::new(false);
        let writes = |client: usize| {
            let (trio, is_over) = (&trio, &is_over);
            async move {
                let mut connection = trio.client(1 + client % 2).await;
                let key = format!("k{client}");
                let mut round = 0;
                while !is_over.get() {
                    round += 1;
                    connection.send(&["SET", &key, &round.to_string()]).await;
                    assert_eq!(connection.line().await.as_deref(), Some("+OK"), "{key} round {round}");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                (key, round)
            }
        };
        let stopping = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stop.send(()).expect("it runs");
            let ended = end.await.expect("it was not killed");
            tokio::time::sleep(Duration::from_millis(200)).await;
            is_over.set(true);
            ended
        };
        let (written, ended) = tokio::join!(join_all((0..CLIENTS).map(writes)), stopping);
        ended.expect("a clean end");
        let next = trio.serving(&[1, 2]).await;
        trio.leads(next, &[3 - next]).await;
        assert_eq!(trio.number(3 - next, "takeovers").await, 0);
        for (key, round) in written {
            assert_eq!(trio.get(3 - next, &key).await, round.to_string());
        }
    });
}
