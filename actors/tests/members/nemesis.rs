//! What goes wrong.

use crate::cluster::{host, Cluster, MASTERS};
use dsm::env::sim::{DiskFault, Loss};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// Breaks things, and mends them.
#[derive(Clone, Default)]
pub(crate) struct Nemesis {
    struck: Rc<Cell<u64>>,
}

impl Nemesis {
    /// How many faults there were.
    pub(crate) fn struck(&self) -> u64 {
        self.struck.get()
    }

    /// Lets one fault after the other happen for so long. They may overlap.
    pub(crate) async fn strike(&self, cluster: &Cluster, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            let pause = cluster.world().random_within(50..=1500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.one(cluster);
        }
    }

    /// Mends everything.
    pub(crate) async fn relent(&self, cluster: &Cluster) {
        cluster.world().heal();
        for node in 0..cluster.nodes() {
            cluster.world().power_on(cluster.machine(node));
            cluster.machine(node).mend();
            if let Some(process) = cluster.process(node) {
                process.resume();
            }
        }
        cluster.launch_all();
        // A process that was killed a moment ago is gone before its successor starts.
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.launch_all();
    }

    fn one(&self, cluster: &Cluster) {
        let world = cluster.world();
        self.struck.set(self.struck.get() + 1);
        let master = world.random_within(0..=MASTERS as u64 - 1) as usize;
        let any = world.random_within(0..=cluster.nodes() as u64 - 1) as usize;
        match world.random_within(0..=99) {
            0..=19 => kill(cluster, any),
            20..=44 => pause(cluster, master),
            45..=59 => power_cut(cluster, any),
            60..=74 => isolate(cluster, master),
            75..=86 => cut(cluster, master, any),
            87..=93 => stall(cluster, master),
            _ => jump(cluster, any),
        }
    }
}

fn after(cluster: &Cluster, ms: u64, action: impl FnOnce(&Cluster) + 'static) {
    let then = cluster.clone();
    cluster.world().later(Duration::from_millis(ms), move |_| action(&then));
}

fn kill(cluster: &Cluster, node: usize) {
    if let Some(process) = cluster.process(node) {
        cluster.world().kill(&process);
    }
    after(cluster, cluster.world().random_within(50..=2000), Cluster::launch_all);
}

fn pause(cluster: &Cluster, node: usize) {
    let Some(process) = cluster.process(node) else { return };
    process.pause();
    let ms = cluster.world().random_within(20..=3000);
    after(cluster, ms, move |_| process.resume());
}

fn power_cut(cluster: &Cluster, node: usize) {
    let world = cluster.world();
    let losses = [Loss::All, Loss::Nothing, Loss::Torn, Loss::Garbled];
    let loss = losses[world.random_within(0..=3) as usize];
    world.power_off(cluster.machine(node), loss);
    after(cluster, world.random_within(0..=1500), move |cluster| {
        cluster.world().power_on(cluster.machine(node));
        cluster.launch_all();
    });
}

/// Cuts ways for a while.
fn cut_ways(cluster: &Cluster, ways: Vec<(String, String)>) {
    let world = cluster.world();
    ways.iter().for_each(|(from, to)| world.cut(from, to));
    after(cluster, world.random_within(20..=3000), move |cluster| {
        for (from, to) in &ways {
            cluster.world().heal_way(from, to);
        }
    });
}

/// A master hears nobody, and nobody hears it; its clients still do, perhaps.
fn isolate(cluster: &Cluster, master: usize) {
    let is_total = cluster.world().chance(500);
    let mut others: Vec<String> = (0..cluster.nodes())
        .filter(|other| *other != master && (is_total || *other < MASTERS))
        .map(host)
        .collect();
    if is_total && cluster.world().chance(500) {
        others.push("clients".to_owned());
    }
    let both = |other: String| [(host(master), other.clone()), (other, host(master))];
    cut_ways(cluster, others.into_iter().flat_map(both).collect());
}

/// Two nodes do not hear each other, or one does not hear the other.
fn cut(cluster: &Cluster, one: usize, other: usize) {
    if one == other {
        return;
    }
    let mut ways = vec![(host(one), host(other)), (host(other), host(one))];
    if cluster.world().chance(500) {
        ways.swap_remove(cluster.world().random_within(0..=1) as usize);
    }
    cut_ways(cluster, ways);
}

/// A sync takes long.
fn stall(cluster: &Cluster, master: usize) {
    let ms = cluster.world().random_within(50..=2500);
    cluster.machine(master).fail(1, DiskFault::SyncStalls(ms));
}

/// A clock jumps, or a wall clock is set.
fn jump(cluster: &Cluster, node: usize) {
    let ms = cluster.world().random_within(10..=5000);
    match cluster.process(node).filter(|_| cluster.world().chance(500)) {
        Some(process) => process.jump(Duration::from_millis(ms)),
        None => cluster.machine(node).set_wall_clock(ms as i64 - 2500),
    }
}
