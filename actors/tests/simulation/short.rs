//! The cluster becomes short of something: of room at a slave, and of a standby.
//!
//! A slave without room counts as absent, so that it is sent nothing that does not fit, and whoever asks is told what the
//! cluster is short of, until it is over. Leaves the cluster as it was; nobody else may write meanwhile.

use crate::clients::{insist, Answer};
use crate::cluster::{Cluster, Node};
use crate::seed::{converged, info, reigning, Check, Failure};
use crate::witness::Witness;
use bytes::Bytes;
use bytesize::ByteSize;
use dsm::config::CopyCount;
use dsm::env::Env;
use std::time::Duration;
use tokio::time::Instant;

/// The slave that is short of room.
const SMALL: Node = Node::Slave(1);

/// What it may hold.
const ROOM: ByteSize = ByteSize::kib(16);

/// So many values are written for each that the slave is to get, about: more than it has room for.
const VALUES: usize = 24;

/// So long each.
const VALUE_BYTES: usize = 1000;

/// How long a write may take, with a slave or a master that has just been started.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// How long it may take until it is told: a standby may be away for two seconds before anybody needs to know.
const TOLD_WITHIN: Duration = Duration::from_secs(4);

/// The same of the end: a slave that has room now and then is full for ten seconds.
const OVER_WITHIN: Duration = Duration::from_secs(20);

/// Fills a slave, and lets the standby be gone for a while.
pub(crate) async fn strike(cluster: &Cluster, env: &Env, witness: &Witness) -> Result<(), Failure> {
    let world = cluster.world();
    world.say(|| format!("{} has room for {ROOM}", SMALL.host()));
    restart_with(cluster, env, Some(ROOM)).await?;
    let full = format!("no room at {}", SMALL.host());
    for is_last in [false, true] {
        let reign = reign_id(env).await;
        fill(cluster, env, witness).await?;
        let is_told = told(env, &full, true, TOLD_WITHIN).await;
        // A master knows of a full slave what it has itself seen of it. One that came meanwhile, as a primary does that takes its
        // reign back, has seen nothing yet.
        if is_told.is_ok() || is_last || reign_id(env).await == reign {
            is_told?;
            break;
        }
    }

    let reigns = reigning(env, Check::Told).await?;
    let standby = [Node::Backup, Node::Primary][reigns];
    world.say(|| format!("{} is killed and stays away", standby.host()));
    cluster.hold_masters(true);
    if let Some(process) = cluster.process(standby) {
        world.kill(&process);
    }
    let alone = "no standby is connected";
    told(env, alone, true, TOLD_WITHIN).await?;
    cluster.hold_masters(false);
    cluster.launch_masters();
    told(env, alone, false, OVER_WITHIN).await?;
    restart_with(cluster, env, None).await?;
    told(env, &full, false, OVER_WITHIN).await
}

/// The reign that is served.
async fn reign_id(env: &Env) -> Option<String> {
    for master in Cluster::masters() {
        let info = info(env, &master).await.filter(|info| info.contains("dsm_role:primary"));
        if let Some(info) = info {
            return info.lines().find(|line| line.starts_with("reign_id:")).map(str::to_owned);
        }
    }
    None
}

/// Writes more than the slave that is short of room can take.
async fn fill(cluster: &Cluster, env: &Env, witness: &Witness) -> Result<(), Failure> {
    let refused = witness.refused();
    let slaves = cluster.shape().slaves;
    let values = match cluster.shape().copies {
        CopyCount::Half => VALUES * 2,
        // Of few keys one slave may get fewer than its part.
        CopyCount::Fixed(copies) => VALUES * 3 / 2 * slaves / usize::from(copies),
    };
    for number in 0..values {
        let words = ["SET".to_owned(), format!("short{number}"), "v".repeat(VALUE_BYTES)];
        let request = words.map(Bytes::from);
        if insist(env, &request, WRITE_LIMIT).await != Some(Answer::Ok) {
            return Check::Room
                .failed(format!("{:?} cannot be written, though slaves have room", request[1]));
        }
    }
    if witness.refused() != refused {
        return Check::Room.failed(format!("{} was sent more than it has room for", SMALL.host()));
    }
    Ok(())
}

/// Restarts the slave; gives back once the others know what it has room for.
async fn restart_with(cluster: &Cluster, env: &Env, room: Option<ByteSize>) -> Result<(), Failure> {
    cluster.set_memory(SMALL, room);
    if let Some(process) = cluster.process(SMALL) {
        cluster.world().kill(&process);
    }
    let id = format!("id={},", SMALL.host());
    let is_known = |info: &str| {
        let slave = info.lines().find(|line| line.contains(&id));
        slave.is_some_and(|slave| slave.contains("room_bytes=unlimited") != room.is_some())
    };
    if let Err(seen) = primary_says(env, is_known, WRITE_LIMIT).await {
        let what = format!("{} is not back with room for {room:?}: {seen:?}", SMALL.host());
        return Check::Converges.failed(what);
    }
    converged(cluster, env).await
}

/// Waits until whoever serves says so, or no longer does.
async fn told(env: &Env, what: &str, is_told: bool, limit: Duration) -> Result<(), Failure> {
    let degraded = |info: &str| {
        let line = info.lines().find(|line| line.starts_with("degraded:"));
        line.is_some_and(|line| line.contains(what))
    };
    if let Err(seen) = primary_says(env, |info| degraded(info) == is_told, limit).await {
        let word = if is_told { "is not told" } else { "is told though it is over" };
        return Check::Told.failed(format!("{what:?} {word} for {limit:?}: {seen:?}"));
    }
    Ok(())
}

/// Waits until the INFO of whoever serves is so; else gives the last one.
async fn primary_says(
    env: &Env,
    is_so: impl Fn(&str) -> bool,
    limit: Duration,
) -> Result<(), Option<String>> {
    let began = Instant::now();
    let mut seen = None;
    while began.elapsed() < limit {
        for master in Cluster::masters() {
            let info = info(env, &master).await.filter(|info| info.contains("dsm_role:primary"));
            if info.as_deref().is_some_and(&is_so) {
                return Ok(());
            }
            seen = info.or(seen);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(seen)
}
