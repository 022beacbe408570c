//! The log is lost while no master runs: taken away, or an older copy of it put in its place.
//!
//! Somebody is left who knows better, a slave or the lock file, and nobody may be served before the log is back. Puts it
//! back afterwards, and the cluster goes on by itself.

use crate::clients::{insist, Answer};
use crate::cluster::{Cluster, Node, LOG};
use crate::seed::{Check, Failure};
use bytes::Bytes;
use dsm::config::Fsync;
use dsm::env::Env;
use std::path::Path;
use std::time::Duration;

/// How long the masters are watched: longer than a cold start takes.
const WATCHED: Duration = Duration::from_secs(4);

/// How long the write may take that the copy lacks.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// Takes the log away or puts an older copy there, sees that no master serves, and puts it back.
pub(crate) async fn strike(cluster: &Cluster, env: &Env) -> Result<(), Failure> {
    let world = cluster.world();
    let path = Path::new(LOG);
    let copy = cluster.log();
    // What is acknowledged now, a slave has seen.
    let write = ["SET", "judge", "lost"].map(|word| Bytes::from_static(word.as_bytes()));
    if insist(env, &write, WRITE_LIMIT).await != Some(Answer::Ok) {
        return failed("nothing can be written".to_owned());
    }
    cluster.hold_masters(true);
    for node in [Node::Primary, Node::Backup] {
        if let Some(process) = cluster.process(node) {
            world.kill(&process);
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let log = cluster.log();
    // Where answers do not wait for the disk, no slave proves what was on it.
    let is_copy = cluster.shape().fsync == Fsync::Always && world.chance(500);
    world.say(|| {
        format!("the log of {} bytes is lost, {} come back", log.len(), if is_copy { copy.len() } else { 0 })
    });
    if is_copy {
        cluster.log_machine().edit(path, |log| log.clone_from(&copy));
    } else {
        cluster.log_machine().remove(path);
    }
    cluster.forget_ends();
    cluster.launch_masters();
    let deadline = tokio::time::Instant::now() + WATCHED;
    while tokio::time::Instant::now() < deadline {
        for master in Cluster::masters() {
            let status = crate::seed::status(env, &master).await;
            if status.is_some_and(|status| status.contains("dsm_role:primary")) {
                return failed(format!("{master} serves without the log (a copy is there: {is_copy})"));
            }
        }
        if !is_copy && cluster.log_machine().content(path).is_some() {
            return failed("a new log is begun".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if let Some((node, end)) = cluster.ends().first() {
        return failed(format!("{} ended with {end:?}", node.host()));
    }
    world.say(|| "the log is back".to_owned());
    cluster.log_machine().edit(path, |there| *there = log);
    cluster.hold_masters(false);
    cluster.launch_all();
    Ok(())
}

fn failed(what: String) -> Result<(), Failure> {
    Err(Failure { check: Check::Lost, what })
}
