//! Which stores are measured under which loads, and in which order.
//!
//! It owns names and numbers of the matrix and starts nothing.

use super::super::driver::StoreProtocol;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Different keys.
pub(crate) const KEYS: u32 = 1000;

/// Length of every value: a value must name its key and its writer, so that each answer can be verified.
pub(crate) const VALUE_BYTES: u32 = 64;

/// A way to run and ask a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// This store: a primary, a backup, 3 slaves
    Dsm,
    /// redis-server alone, which keeps nothing on disk
    Redis,
    /// valkey-server alone, which keeps nothing on disk
    Valkey,
    /// redis-server alone, with `appendfsync always`
    RedisAlways,
    /// redis-server with `appendfsync always`, 2 replicas in memory, and `WAIT 1` after each SET
    RedisWait,
    /// etcd with 3 nodes and linearizable reads
    Etcd,
    /// ZooKeeper with 3 nodes and a sync before each read
    Zookeeper,
    /// The same ZooKeeper without a sync before reads
    ZookeeperLocal,
}

impl Peer {
    /// All, in the order of the tables.
    pub(crate) const ALL: [Peer; 8] = [
        Peer::Dsm,
        Peer::Redis,
        Peer::Valkey,
        Peer::RedisAlways,
        Peer::RedisWait,
        Peer::Etcd,
        Peer::Zookeeper,
        Peer::ZookeeperLocal,
    ];

    /// As the head of a column.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Peer::Dsm => "dsm",
            Peer::Redis => "redis",
            Peer::Valkey => "valkey",
            Peer::RedisAlways => "redis always",
            Peer::RedisWait => "redis always + WAIT 1",
            Peer::Etcd => "etcd",
            Peer::Zookeeper => "ZooKeeper sync",
            Peer::ZookeeperLocal => "ZooKeeper local",
        }
    }

    /// How it is talked to.
    pub(crate) fn protocol(self) -> StoreProtocol {
        match self {
            Peer::Dsm | Peer::Redis | Peer::Valkey | Peer::RedisAlways | Peer::RedisWait => {
                StoreProtocol::Resp
            }
            Peer::Etcd => StoreProtocol::Etcd,
            Peer::Zookeeper => StoreProtocol::Zookeeper,
            Peer::ZookeeperLocal => StoreProtocol::ZookeeperLocal,
        }
    }

    /// Replicas that each write waits for by a command of its own.
    pub(crate) fn wait(self) -> Option<u32> {
        (self == Peer::RedisWait).then_some(1)
    }

    /// Whether the processes of the previous peer in [`Peer::ALL`] serve it, too.
    pub(crate) fn shares_processes(self) -> bool {
        self == Peer::ZookeeperLocal
    }

    /// Whether it is asked at a follower first, and not at the leader: the leader of ZooKeeper 3.8.0 now and then leaves
    /// a read after a sync of the same session unanswered for ever.
    pub(crate) fn avoids_leader(self) -> bool {
        self == Peer::Zookeeper
    }

    /// Whether `cell` is useful for it: two ways to read do not differ where nothing is read.
    pub(crate) fn takes(self, cell: Cell) -> bool {
        self != Peer::ZookeeperLocal || cell.write_pct < 100
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// Writes in percent of all operations.
    pub write_pct: u32,
    pub connections: u32,
    /// Requests in flight on each.
    pub pipeline: u32,
}

impl Cell {
    pub(crate) fn title(self) -> String {
        let mix = match self.write_pct {
            0 => "reads only".to_owned(),
            100 => "writes only".to_owned(),
            percent => format!("{percent} % writes"),
        };
        let plural = if self.connections == 1 { "" } else { "s" };
        format!("{mix}, {} connection{plural}, pipeline {}", self.connections, self.pipeline)
    }
}

/// What one run of the benchmark does.
#[derive(Clone, Debug)]
pub(crate) struct BenchmarkPlan {
    /// In each round, each group is measured peer by peer; a peer is started afresh for it.
    pub groups: Vec<Vec<Cell>>,
    /// How often all of it is done.
    pub rounds: u32,
    /// Load on a fresh peer, in no figure.
    pub first: Duration,
    /// Load before each cell, in no figure.
    pub warmup: Duration,
    /// Measurement of each cell.
    pub duration: Duration,
    /// After this time nothing new is begun.
    pub limit: Duration,
}

impl BenchmarkPlan {
    /// Everything: about 50 minutes.
    pub(crate) fn full() -> BenchmarkPlan {
        let cells = |write_pct| {
            let of =
                move |connections| [1, 16].map(move |pipeline| Cell { write_pct, connections, pipeline });
            [1, 50, 200].into_iter().flat_map(of).collect()
        };
        BenchmarkPlan {
            groups: [0, 30, 100].into_iter().map(cells).collect(),
            rounds: 3,
            first: Duration::from_secs(3),
            warmup: Duration::from_secs(1),
            duration: Duration::from_secs(5),
            limit: Duration::from_secs(60 * 60),
        }
    }

    /// The cells that tell most: about 6 minutes.
    pub(crate) fn quick() -> BenchmarkPlan {
        let cell = |(write_pct, connections, pipeline)| Cell { write_pct, connections, pipeline };
        BenchmarkPlan {
            groups: vec![[(0, 50, 1), (30, 1, 1), (30, 50, 1), (30, 50, 16), (100, 50, 1)]
                .map(cell)
                .to_vec()],
            first: Duration::from_secs(1),
            warmup: Duration::from_millis(500),
            duration: Duration::from_millis(1500),
            limit: Duration::from_secs(10 * 60),
            ..BenchmarkPlan::full()
        }
    }

    /// All cells in the order of the tables.
    pub(crate) fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = self.groups.concat();
        cells.sort_unstable();
        cells
    }

    /// The peers in the order of round `round`: another one begins each time.
    pub(crate) fn order(round: u32, peers: &[Peer]) -> Vec<Peer> {
        let mut families: Vec<Vec<Peer>> = Vec::new();
        for peer in peers {
            match families.last_mut() {
                Some(family) if peer.shares_processes() && family.contains(&Peer::Zookeeper) => {
                    family.push(*peer);
                }
                _ => families.push(vec![*peer]),
            }
        }
        let by = round as usize % families.len().max(1);
        families.rotate_left(by);
        families.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_matrix_has_every_load_once() {
        let cells = BenchmarkPlan::full().cells();
        assert_eq!(cells.len(), 18);
        assert!(cells.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(BenchmarkPlan::quick().cells().iter().all(|cell| cells.contains(cell)));
    }

    #[test]
    fn each_round_begins_with_another_peer_and_has_all_of_them() {
        for round in 0..6 {
            let order = BenchmarkPlan::order(round, &Peer::ALL);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, Peer::ALL);
            assert_eq!(order[0], Peer::ALL[round as usize]);
            let at = |peer| order.iter().position(|found| *found == peer).unwrap();
            assert_eq!(at(Peer::ZookeeperLocal), at(Peer::Zookeeper) + 1);
        }
    }
}
