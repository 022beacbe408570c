//! The client library in a plain tokio program, without any actor: concurrent writes and reads over one link, and the
//! three kinds of results.
//!
//! Run with `cargo run --example tokio_client` (it starts a cluster for itself, on a thread of its own) or with the
//! addresses of running masters: `cargo run --example tokio_client -- 127.0.0.1:12345 127.0.0.1:12346`. Ends by itself.

use anyhow::Context as _;
use dsm::client::{Client, ClientConfig, ClientError};
use dsm::embed::{self, Doors, LocalCluster, LocalConfig};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let masters: Vec<String> = std::env::args().skip(1).collect();
    if !masters.is_empty() {
        return talk(masters).await;
    }
    let directory = tempfile::tempdir().context("no place for the log")?;
    let log = directory.path().join("kv_store.log");
    // Its ports are open to every user of this machine; without a word of it there are none.
    let config = LocalConfig { doors: Doors::Loopback, ..LocalConfig::new(log, 2) };
    let start = move || embed::start_local(config);
    let (masters, cluster) = embed::on_own_thread(start, LocalCluster::addresses).await?;
    println!("a cluster runs at {}", masters.join(" and "));
    talk(masters).await?;
    cluster.stop().await?;
    Ok(())
}

async fn talk(masters: Vec<String>) -> anyhow::Result<()> {
    let client = Client::connect(ClientConfig { masters, ..ClientConfig::default() })?;

    // A client is a cheap handle: clones share its link, and what they ask at once travels together.
    let writes: Vec<_> = (0..100)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.put(format!("user{number}"), format!("name{number}")).await })
        })
        .collect();
    let (mut done, mut not_executed, mut unknown) = (0, 0, 0);
    for write in writes {
        match write.await? {
            Ok(()) => done += 1,
            Err(ClientError::NotExecuted { .. }) => not_executed += 1,
            Err(ClientError::Indeterminate { .. }) => unknown += 1,
            Err(other) => return Err(other.into()),
        }
    }
    println!("writes: {done} done, {not_executed} not executed, {unknown} unknown");

    let value = client.get("user42").await?;
    println!("user42 is {:?}", value.as_deref().map(String::from_utf8_lossy));
    let existed = client.delete("user42").await?;
    println!("user42 deleted (it existed: {existed}), now {:?}", client.get("user42").await?);
    println!("{} keys are stored", client.key_count().await?);
    println!("done");
    Ok(())
}
