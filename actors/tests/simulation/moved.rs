//! The log is moved away under a reign, as by logrotate, with nothing or an empty file left in its place.
//!
//! The primary must cease within a moment, nobody may serve or begin a log meanwhile, and the standby must keep what it has
//! replayed. Puts the log back afterwards, and the cluster goes on by itself, with all that was acknowledged.

use crate::clients::{insist, Answer};
use crate::cluster::{Cluster, LOG};
use crate::seed::{info, Check, Failure};
use bytes::Bytes;
use dsm::env::Env;
use dsm::node_error::NodeError;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Where the log is while it is away.
pub(crate) const MOVED: &str = "/data/kv_store.log.1";

/// How long the masters may take to be a primary and a standby that follows.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// How long the primary may take to cease.
const CEASES_WITHIN: Duration = Duration::from_millis(1500);

/// How long the masters are watched then.
const WATCHED: Duration = Duration::from_secs(3);

/// How long it may take from the log's return to the next write.
const SERVES_WITHIN: Duration = Duration::from_secs(10);

/// Moves the log away and back.
pub(crate) async fn strike(cluster: &Cluster, env: &Env) -> Result<(), Failure> {
    let (world, machine) = (cluster.world(), cluster.log_machine());
    let (path, moved) = (Path::new(LOG), Path::new(MOVED));
    let has_keys = settled(env).await?;
    cluster.hold_masters(true);
    cluster.forget_ends();
    let is_replaced = world.chance(500);
    world.say(|| format!("the log is moved away, an empty file in its place: {is_replaced}"));
    if !machine.rename(path, moved) {
        return failed("there is no log".to_owned());
    }
    if is_replaced {
        machine.edit(path, |_| {});
    }
    let began = Instant::now();
    while began.elapsed() < CEASES_WITHIN + WATCHED {
        for master in Cluster::masters() {
            let Some(info) = info(env, &master).await else { continue };
            if began.elapsed() > CEASES_WITHIN && info.contains("dsm_role:primary") {
                return failed(format!("{master} serves {:?} after the log was moved", began.elapsed()));
            }
            if has_keys && info.lines().any(|line| line.trim_end() == "keys:0") {
                return failed(format!("{master} has forgotten what it had replayed: {info}"));
            }
        }
        if !machine.content(path).unwrap_or_default().is_empty() {
            return failed("a new log is begun".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (node, end) in cluster.ends() {
        if !matches!(end, Err(NodeError::LogDisplaced { .. })) {
            return failed(format!("{} ended with {end:?}", node.host()));
        }
    }
    world.say(|| "the log is back".to_owned());
    machine.rename(moved, path);
    let write = ["SET", "judge", "moved"].map(|word| Bytes::from_static(word.as_bytes()));
    if insist(env, &write, SERVES_WITHIN).await != Some(Answer::Ok) {
        return failed("nobody serves though the log is back".to_owned());
    }
    cluster.forget_ends();
    cluster.hold_masters(false);
    cluster.launch_all();
    Ok(())
}

/// Waits for a primary, and a standby that follows the log; whether there are keys.
async fn settled(env: &Env) -> Result<bool, Failure> {
    let began = Instant::now();
    while began.elapsed() < SETTLE_LIMIT {
        let mut seen = Vec::new();
        for master in Cluster::masters() {
            seen.extend(info(env, &master).await);
        }
        let has = |fact: &str| seen.iter().any(|info| info.contains(fact));
        if has("dsm_role:primary") && has("dsm_role:standby") && has("standby_log:follows") {
            return Ok(!seen.iter().any(|info| info.lines().any(|line| line.trim_end() == "keys:0")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    failed(format!("no primary and standby within {SETTLE_LIMIT:?}")).map(|()| false)
}

fn failed(what: String) -> Result<(), Failure> {
    Err(Failure { check: Check::Moved, what })
}
