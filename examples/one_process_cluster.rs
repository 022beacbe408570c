//! A whole cluster in one process: two masters and three slaves as actors of one actix System. The primary is stopped
//! in the middle, and the backup has what was written.
//!
//! Run with `cargo run --example one_process_cluster`. Ends by itself.

use anyhow::Context as _;
use dsm::embed::{self, Delete, Get, LocalCluster, LocalConfig, Put, Status};
use std::time::{Duration, Instant};

#[actix::main]
async fn main() -> anyhow::Result<()> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let directory = tempfile::tempdir().context("no place for the log")?;
    let cluster = embed::start_local(LocalConfig::new(directory.path().join("kv_store.log"), 3)).await?;
    println!("a primary and a backup run, and no port is open");

    // The address is cheap to keep and may go to other threads; the result says done, not executed or unknown.
    let primary = cluster.primary().master();
    for number in 0..100 {
        let (key, value) = (format!("key{number}").into(), format!("value{number}").into());
        primary.send(Put { key, value }).await??;
    }
    let existed = primary.send(Delete { key: "key0".into() }).await??;
    println!("100 keys written, key0 deleted (it existed: {existed})");

    let LocalCluster { mut masters, slaves } = cluster;
    let stopping = Instant::now();
    masters.remove(0).stop().await?;
    let backup = masters.remove(0);
    embed::wait_serving(&backup, slaves.len(), Duration::from_secs(10)).await?;
    println!("the primary is stopped, the backup serves after {} ms", stopping.elapsed().as_millis());

    let backup_master = backup.master();
    let deleted = backup_master.send(Get { key: "key0".into() }).await??;
    let kept = backup_master.send(Get { key: "key99".into() }).await??;
    anyhow::ensure!(deleted.is_none() && kept.as_deref() == Some(b"value99"), "{deleted:?} {kept:?}");
    println!("key99 is value99, key0 is gone");
    let status = backup_master.send(Status).await??;
    let keys = status.lines().find(|line| line.starts_with("keys:")).unwrap_or("keys:?");
    println!("the backup says {keys}");

    backup.stop().await?;
    for slave in slaves {
        slave.stop().await?;
    }
    println!("done");
    Ok(())
}
