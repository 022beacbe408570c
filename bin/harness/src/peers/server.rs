//! How each store is started, up to the moment it serves, and what is missing where it cannot be.
//!
//! It owns the configurations, which docs/BENCHMARKS.md shows; [`super::super::instance`] has the processes.

use super::super::cluster::OwnCluster;
use super::super::instance::{find, free_ports, Instance, Starting, ASK_LIMIT};
use super::super::record::LoadSettings;
use super::super::stop::StopSignal;
use super::plan::Peer;
use anyhow::Context as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

/// The longest answer to a question, in bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Nodes of etcd and ZooKeeper.
const NODES: usize = 3;

/// Where Debian puts ZooKeeper's program and its logging configuration.
const ZOOKEEPER_CLASSES: &str = "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar";
const ZOOKEEPER_JAR: &str = "/usr/share/java/zookeeper.jar";

/// What a store's processes need that is not installed; nothing, if it can be started.
pub(crate) fn missing(peer: Peer) -> Option<String> {
    let (program, file, package) = match peer {
        Peer::Dsm => return None,
        Peer::Redis | Peer::RedisAlways | Peer::RedisWait => ("redis-server", None, "redis-server"),
        Peer::Valkey => ("valkey-server", None, "valkey-server"),
        Peer::Etcd => ("etcd", None, "etcd-server"),
        Peer::Zookeeper | Peer::ZookeeperLocal => {
            ("java", Some(ZOOKEEPER_JAR), "zookeeper and default-jre-headless")
        }
    };
    let is_there = find(program).is_some() && file.is_none_or(|file| Path::new(file).exists());
    (!is_there).then(|| format!("not installed: Debian's package {package}"))
}

/// Starts the store and waits until it serves. `parent`: where its directory is made.
///
/// # Errors
/// When it cannot be started, does not serve in time, or `stop` is set.
pub(crate) fn start(peer: Peer, parent: Option<&Path>, stop: &StopSignal) -> anyhow::Result<Instance> {
    match peer {
        Peer::Dsm => {
            let settings = LoadSettings::standard();
            Instance::of_cluster(OwnCluster::prepare(&settings, &[], parent)?, stop)
        }
        Peer::Redis => Instance::start(parent, false, stop, |starting| starting.redis()),
        Peer::Valkey => Instance::start(parent, false, stop, |starting| starting.valkey()),
        Peer::RedisAlways => Instance::start(parent, false, stop, |starting| starting.redis_always(0)),
        Peer::RedisWait => Instance::start(parent, false, stop, |starting| starting.redis_always(2)),
        Peer::Etcd => Instance::start(parent, false, stop, etcd),
        Peer::Zookeeper | Peer::ZookeeperLocal => Instance::start(parent, false, stop, zookeeper),
    }
}

fn etcd(starting: &mut Starting<'_>) -> anyhow::Result<(Vec<String>, String)> {
    let ports = free_ports(2 * NODES)?;
    let (clients, peers) = ports.split_at(NODES);
    let url = |port: &u16| format!("http://127.0.0.1:{port}");
    let members: Vec<String> =
        peers.iter().enumerate().map(|(number, port)| format!("node{number}={}", url(port))).collect();
    for number in 0..NODES {
        let directory = starting.make(&format!("etcd-{number}"))?;
        let (client, peer) = (url(&clients[number]), url(&peers[number]));
        let words = [
            "etcd".to_owned(),
            format!("--name=node{number}"),
            format!("--data-dir={directory}"),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", members.join(",")),
            "--initial-cluster-state=new".to_owned(),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        starting.spawn(&format!("etcd-{number}"), &words)?;
    }
    let nodes: Vec<String> = clients.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    starting.wait("etcd", || {
        let healthy = |node: &String| get(node, "/health").is_some_and(|text| text.contains("\"true\""));
        nodes.iter().all(healthy).then_some(())
    })?;
    let targets = starting.wait("etcd's leader", || {
        let leads = |node: &String| {
            let metrics = get(node, "/metrics")?;
            metrics.lines().find(|line| *line == "etcd_server_is_leader 1").map(|_| ())
        };
        leader_first(&nodes, |node| leads(node).is_some())
    })?;
    let version = get(&targets[0], "/version").unwrap_or_default();
    let version =
        version.split('"').skip_while(|word| *word != "etcdserver").nth(2).unwrap_or("?").to_owned();
    Ok((targets, format!("etcd {version}")))
}

fn zookeeper(starting: &mut Starting<'_>) -> anyhow::Result<(Vec<String>, String)> {
    let ports = free_ports(3 * NODES)?;
    let (clients, rest) = ports.split_at(NODES);
    let (quorum, election) = rest.split_at(NODES);
    let mut members = String::new();
    for number in 0..NODES {
        members.push_str(&format!(
            "server.{}=127.0.0.1:{}:{};127.0.0.1:{}\n",
            number + 1,
            quorum[number],
            election[number],
            clients[number]
        ));
    }
    for number in 0..NODES {
        let directory = starting.make(&format!("zookeeper-{number}"))?;
        let write = |name: &str, text: String| {
            let path = Path::new(&directory).join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("myid", format!("{}\n", number + 1))?;
        write(
            "zoo.cfg",
            format!(
                "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={directory}\nmaxClientCnxns=0\n\
                 admin.enableServer=false\n4lw.commands.whitelist=srvr\n{members}"
            ),
        )?;
        let words = [
            "java".to_owned(),
            "-Xmx1000m".to_owned(),
            format!("-Dzookeeper.log.dir={directory}"),
            "-Dzookeeper.root.logger=WARN,CONSOLE".to_owned(),
            "-cp".to_owned(),
            ZOOKEEPER_CLASSES.to_owned(),
            "org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned(),
            format!("{directory}/zoo.cfg"),
        ];
        starting.spawn(&format!("zookeeper-{number}"), &words)?;
    }
    let nodes: Vec<String> = clients.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let mode = |node: &String| {
        let text = exchange(node, b"srvr")?;
        text.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    };
    let targets = starting.wait("ZooKeeper", || {
        let modes: Option<Vec<String>> = nodes.iter().map(mode).collect();
        modes?;
        leader_first(&nodes, |node| mode(node).as_deref() == Some("leader"))
    })?;
    let text = exchange(&targets[0], b"srvr").unwrap_or_default();
    let version = text.split_once("version: ").and_then(|(_, rest)| rest.split(['-', ',']).next());
    Ok((targets, format!("ZooKeeper {}", version.unwrap_or("?"))))
}

/// The nodes, with the one for which `leads` holds first; `None` if there is none.
fn leader_first(nodes: &[String], leads: impl Fn(&String) -> bool) -> Option<Vec<String>> {
    let leader = nodes.iter().position(leads)?;
    let mut nodes = nodes.to_vec();
    nodes[..=leader].rotate_right(1);
    Some(nodes)
}

/// Sends `request` and reads until the other side closes.
fn exchange(address: &str, request: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, ASK_LIMIT).ok()?;
    stream.set_read_timeout(Some(ASK_LIMIT)).ok()?;
    stream.set_write_timeout(Some(ASK_LIMIT)).ok()?;
    stream.write_all(request).ok()?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn get(address: &str, path: &str) -> Option<String> {
    exchange(address, format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_comes_first_and_the_others_stay_in_order() {
        let nodes = ["a", "b", "c"].map(str::to_owned);
        let first = |leader: &str| leader_first(&nodes, |node| node == leader);
        assert_eq!(first("a").unwrap(), ["a", "b", "c"]);
        assert_eq!(first("c").unwrap(), ["c", "a", "b"]);
        assert_eq!(first("x"), None);
    }
}
