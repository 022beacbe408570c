//! Slaves are lost for good, with all that they held: every key gets its copies again, though nobody writes.
//!
//! With a fixed number of copies, the slaves that come back empty get their share again, and no key keeps a copy too many. What
//! masters say of their copies is not believed: the witness has heard which slaves acknowledged what.

use crate::cluster::{Cluster, Node};
use crate::seed::{info, Check, Failure};
use crate::witness::Witness;
use bytes::Bytes;
use dsm::config::CopyCount;
use dsm::env::Env;
use std::time::Duration;
use tokio::time::Instant;

/// How long that may take: what failed is tried again after ten seconds.
const REPAIR_LIMIT: Duration = Duration::from_secs(40);

/// What a master says when nothing is left to be done.
const RESTS: [&str; 2] = ["keys_under_replicated:0\r", "repair_state:resting\r"];

/// And when all keys are where they belong.
const BALANCED: [&str; 2] = ["keys_misplaced:0\r", "rebalance_state:resting\r"];

/// Kills one slave, or all of them at once, and waits until `keys` have their copies again.
pub(crate) async fn strike(
    cluster: &Cluster,
    env: &Env,
    witness: &Witness,
    keys: &[Bytes],
) -> Result<(), Failure> {
    let world = cluster.world();
    let slaves = cluster.shape().slaves;
    let is_all = world.random_within(0..=1) == 1;
    world.say(|| format!("{} slaves lose all that they hold", if is_all { slaves } else { 1 }));
    for number in 1..=if is_all { slaves } else { 1 } {
        if let Some(process) = cluster.process(Node::Slave(number)) {
            world.kill(&process);
        }
    }
    let copies = cluster.shape().copies;
    let wanted = copies.of(slaves);
    // With half of the slaves what is too many stays for a minute.
    let is_balanced = copies != CopyCount::Half;
    let says: Vec<&str> = if is_balanced { [RESTS, BALANCED].concat() } else { RESTS.to_vec() };
    let deadline = Instant::now() + REPAIR_LIMIT;
    loop {
        let processes = (1..=slaves).filter_map(|number| cluster.process(Node::Slave(number)));
        let pids: Vec<u32> = processes.map(|process| process.pid()).collect();
        let is_wrong = |copies: usize| copies < wanted || (is_balanced && copies > wanted);
        let wrong = keys.iter().find(|key| is_wrong(witness.copies(key, &pids)));
        let said = primary(env).await;
        let is_said = said.as_ref().is_some_and(|said| says.iter().all(|line| said.contains(line)));
        if pids.len() == slaves && wrong.is_none() && is_said {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let copies = wrong.map(|key| witness.copies(key, &pids));
            let what =
                format!("{wrong:?} has {copies:?} copies of {wanted} after {REPAIR_LIMIT:?}: {said:?}");
            return Check::Repairs.failed(what);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the master that serves says of the keys.
async fn primary(env: &Env) -> Option<String> {
    for master in Cluster::masters() {
        if let Some(info) = info(env, &master).await.filter(|info| info.contains("dsm_role:primary")) {
            let keys = info.split_once("# Keyspace").map_or("", |(_, keys)| keys);
            return Some(keys.split_once("# Log").map_or(keys, |(keys, _)| keys).to_owned());
        }
    }
    None
}
