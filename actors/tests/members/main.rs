//! Whole clusters whose masters keep one log on machines of their own, in virtual time, broken by chance: every history of their
//! clients is linearizable, and what was acknowledged is there at the end.
//!
//! `SEEDS=1000 FIRST=0` runs more worlds than `cargo test` does, `SEED=7` one, and says what happens.

#![allow(clippy::unwrap_used)]

mod client;
mod cluster;
mod nemesis;
mod operator;

use bytesize::ByteSize;
use client::{Clients, Counts};
use cluster::{Cluster, MASTERS};
use dsm::env::sim::World;
use nemesis::Nemesis;
use operator::Operator;
use std::time::Duration;

/// So many worlds are run by `cargo test`.
const SEEDS: u64 = 40;

/// How long each of them is broken.
const BROKEN: Duration = Duration::from_secs(12);

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    counts: Counts,
    faults: u64,
    takeovers: u64,
    compactions: u64,
    /// How many disks were lost, and their machines replaced.
    replaced: u64,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs one world, and panics when what its clients saw is impossible.
fn run(seed: u64, narrate: bool) -> Told {
    World::run(seed, |world| async move {
        world.set_narrate(narrate);
        // In every second world logs are so short that who was away lacks what was compacted.
        let compact_min = if seed.is_multiple_of(2) { ByteSize::kib(2) } else { ByteSize::mib(64) };
        let cluster = Cluster::start(&world, compact_min);
        cluster.serves().await;
        let clients = Clients::start(&cluster);
        let nemesis = Nemesis::default();
        // In every third world machines lose their disks, too.
        let operator = seed.is_multiple_of(3).then(|| Operator::start(&cluster));
        nemesis.strike(&cluster, BROKEN).await;
        nemesis.relent(&cluster).await;
        let mut replaced = 0;
        if let Some(operator) = operator {
            replaced = operator.finish().await;
        }
        cluster.serves().await;
        clients.stop().await;
        for master in 0..MASTERS {
            clients.read_all(master).await;
        }
        let history = clients.history();
        assert_eq!(cluster.ended(), [""; 0], "seed {seed}");
        if let Err(violation) = history.check() {
            panic!("seed {seed}: {violation}");
        }
        Told {
            counts: clients.counts(),
            faults: nemesis.struck(),
            takeovers: cluster.takeovers().await,
            compactions: cluster.compactions().await,
            replaced,
        }
    })
}

#[test]
fn what_clients_see_is_linearizable_whatever_happens_to_the_machines() {
    if let Some(seed) = number("SEED") {
        println!("{:?}", run(seed, true));
        return;
    }
    let (first, seeds) = (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let mut all = Told::default();
    for seed in first..first + seeds {
        let told = run(seed, false);
        all.counts.acknowledged += told.counts.acknowledged;
        all.counts.read += told.counts.read;
        all.counts.unknown += told.counts.unknown;
        all.faults += told.faults;
        all.takeovers += told.takeovers;
        all.compactions += told.compactions;
        all.replaced += told.replaced;
    }
    println!("{all:?}");
    // That something was done, and something was broken.
    assert!(all.counts.acknowledged > 200 * seeds && all.counts.read > 200 * seeds, "{all:?}");
    assert!(all.faults > 3 * seeds && all.takeovers > 2 * seeds && all.counts.unknown > 0, "{all:?}");
    assert!(all.replaced > seeds / 4 && all.compactions > seeds, "{all:?}");
}
