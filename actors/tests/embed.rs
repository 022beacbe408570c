//! Nodes inside a program: typed messages, a cluster in one process, and what is left of it after its end.

use actix::prelude::*;
use dsm::client::{Client, ClientConfig, ClientError, ErrorWord, Failure};
use dsm::client_actor::ClientActor;
use dsm::config::{ByteSize, ConfigError, Fence, Fsync, MasterConfig, MasterKind, SlaveConfig};
use dsm::embed::{self, Delete, Doors, Get, LocalCluster, LocalConfig, MasterNode, Put, SlaveNode, Status};
use dsm::env::real::RealEnv;
use dsm::node_error::NodeError;
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use tokio::task::LocalSet;

const LIMIT: Duration = Duration::from_secs(20);

fn put(key: &'static str, value: &'static str) -> Put {
    Put { key: key.into(), value: value.into() }
}

fn get(key: &'static str) -> Get {
    Get { key: key.into() }
}

/// Whether nobody holds the lock on the file at `path`.
fn is_unlocked(path: &Path) -> bool {
    use rustix::fs::{flock, FlockOperation};
    flock(File::open(path).expect("it exists"), FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// The two masters and the slaves, to be stopped one by one.
fn parts(cluster: LocalCluster) -> (MasterNode, MasterNode, Vec<SlaveNode>) {
    let LocalCluster { masters, slaves } = cluster;
    let [primary, backup] = <[MasterNode; 2]>::try_from(masters).expect("it has two masters");
    (primary, backup, slaves)
}

#[actix::test]
async fn a_master_takes_typed_messages() {
    let directory = tempfile::tempdir().unwrap();
    let cluster =
        embed::start_local(LocalConfig::new(directory.path().join("kv_store.log"), 2)).await.unwrap();
    let master = cluster.primary().master().clone();
    assert_eq!(master.send(get("a")).await.unwrap(), Ok(None));
    assert_eq!(master.send(put("a", "1")).await.unwrap(), Ok(()));
    assert_eq!(master.send(get("a")).await.unwrap(), Ok(Some("1".into())));
    assert_eq!(master.send(Delete { key: "a".into() }).await.unwrap(), Ok(true));
    assert_eq!(master.send(Delete { key: "a".into() }).await.unwrap(), Ok(false));
    let status = master.send(Status).await.unwrap().unwrap();
    assert!(status.contains("dsm_role:primary") && status.contains("active_slaves:2"), "{status}");

    let too_long = Put { key: vec![0; 64 * 1024 + 1].into(), value: "v".into() };
    let error = master.send(too_long).await.unwrap().unwrap_err();
    let ClientError::NotExecuted { cause: Failure::Refused(refusal) } = error else { panic!("{error:?}") };
    assert_eq!(refusal.word, ErrorWord::Bad);
    cluster.stop().await.unwrap();
}

#[actix::test]
async fn messages_are_executed_in_the_order_in_which_they_were_sent() {
    let directory = tempfile::tempdir().unwrap();
    let cluster =
        embed::start_local(LocalConfig::new(directory.path().join("kv_store.log"), 1)).await.unwrap();
    let master = cluster.primary().master();
    let mut answers = Vec::new();
    for number in 0..200 {
        answers.push(master.send(Put { key: "a".into(), value: number.to_string().into() }));
    }
    let read = master.send(get("a"));
    assert_eq!(read.await.unwrap(), Ok(Some("199".into())));
    for answer in answers {
        assert_eq!(answer.await.unwrap(), Ok(()));
    }
    cluster.stop().await.unwrap();
}

#[actix::test]
async fn a_standby_forwards_what_it_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let cluster =
        embed::start_local(LocalConfig::new(directory.path().join("kv_store.log"), 2)).await.unwrap();
    let backup = cluster.masters[1].master();
    assert_eq!(backup.send(put("a", "1")).await.unwrap(), Ok(()));
    assert_eq!(cluster.primary().master().send(get("a")).await.unwrap(), Ok(Some("1".into())));
    assert_eq!(backup.send(get("a")).await.unwrap(), Ok(Some("1".into())));
    let status = backup.send(Status).await.unwrap().unwrap();
    assert!(status.contains("dsm_role:standby"), "it speaks for itself: {status}");
    cluster.stop().await.unwrap();
}

#[actix::test]
async fn too_much_at_once_is_busy_and_the_rest_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("kv_store.log");
    let masters = MasterConfig {
        listen: vec!["127.0.0.1:0".into()],
        peers: vec!["127.0.0.1:1".into()],
        log,
        fence: Fence::None,
        max_pipeline: 10,
        ..MasterConfig::default()
    };
    let env = RealEnv::new();
    let master = embed::start_master(MasterKind::Primary, masters, env.clone()).await.unwrap();
    let config = SlaveConfig { masters: vec![master.address().to_owned()], ..SlaveConfig::default() };
    let slave = embed::start_slave(config, &env).unwrap();
    embed::wait_serving(&master, 1, LIMIT).await.unwrap();

    let answers: Vec<_> = (0..50).map(|_| master.master().send(put("a", "1"))).collect();
    let (mut done, mut busy) = (0, 0);
    for answer in answers {
        match answer.await.unwrap() {
            Ok(()) => done += 1,
            Err(ClientError::NotExecuted { cause: Failure::Refused(refusal) }) => {
                assert_eq!(refusal.word, ErrorWord::Busy);
                busy += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((done, busy), (10, 40));
    assert_eq!(master.master().send(put("a", "2")).await.unwrap(), Ok(()), "room again");
    let status = master.master().send(Status).await.unwrap().unwrap();
    assert!(status.contains("requests_busy:40") && status.contains("requests_in_flight:1\n"), "{status}");
    slave.stop().await.unwrap();
    master.stop().await.unwrap();
}

#[actix::test]
async fn a_client_actor_takes_the_same_messages_and_survives_a_failover() {
    let directory = tempfile::tempdir().unwrap();
    let config = LocalConfig::new(directory.path().join("kv_store.log"), 2);
    let cluster = embed::start_local(LocalConfig { doors: Doors::Loopback, ..config }).await.unwrap();
    let config = ClientConfig { masters: cluster.addresses(), ..ClientConfig::default() };
    let client = ClientActor::connect(config).unwrap().start();
    assert_eq!(client.send(put("a", "1")).await.unwrap(), Ok(()));
    assert_eq!(client.send(get("a")).await.unwrap(), Ok(Some("1".into())));
    assert_eq!(client.send(Delete { key: "b".into() }).await.unwrap(), Ok(false));
    let status = client.send(Status).await.unwrap().unwrap();
    assert!(status.contains("started_as:primary"), "{status}");
    let (primary, backup, slaves) = parts(cluster);
    primary.stop().await.unwrap();
    assert_eq!(client.send(get("a")).await.unwrap(), Ok(Some("1".into())));
    backup.stop().await.unwrap();
    for slave in slaves {
        slave.stop().await.unwrap();
    }
}

#[actix::test]
async fn a_client_actor_beyond_its_bound_is_busy() {
    let config = ClientConfig {
        masters: vec!["127.0.0.1:1".into()],
        request_timeout: Duration::from_millis(100),
        requests_max: 2,
        ..ClientConfig::default()
    };
    let client = ClientActor::connect(config).unwrap().start();
    let answers: Vec<_> = (0..3).map(|_| client.send(put("a", "1"))).collect();
    let mut causes = Vec::new();
    for answer in answers {
        match answer.await.unwrap() {
            Err(ClientError::NotExecuted { cause }) => causes.push(cause),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(causes[..2], [Failure::Unreachable(_), Failure::Unreachable(_)]), "{causes:?}");
    assert!(matches!(&causes[2], Failure::Refused(error) if error.word == ErrorWord::Busy), "{causes:?}");
}

#[test]
fn the_backup_takes_over_in_one_process_and_nothing_is_left_of_the_nodes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("kv_store.log");
    let addresses = local.block_on(&runtime, async {
        let config = LocalConfig { doors: Doors::Loopback, ..LocalConfig::new(&log, 2) };
        let cluster = embed::start_local(config).await.unwrap();
        let addresses = cluster.addresses();
        for number in 0..20 {
            let key = format!("key{number}").into();
            let put = Put { key, value: number.to_string().into() };
            assert_eq!(cluster.primary().master().send(put).await.unwrap(), Ok(()));
        }
        let (primary, backup, slaves) = parts(cluster);
        drop(primary);
        embed::wait_serving(&backup, 2, LIMIT).await.unwrap();
        for number in 0..20 {
            let read = backup.master().send(Get { key: format!("key{number}").into() }).await.unwrap();
            assert_eq!(read, Ok(Some(number.to_string().into())));
        }
        assert_eq!(backup.master().send(put("after", "2")).await.unwrap(), Ok(()));
        let master = backup.master().clone();
        backup.stop().await.unwrap();
        assert!(!master.connected(), "the actor is gone");
        for slave in slaves {
            slave.stop().await.unwrap();
        }
        addresses
    });
    for address in addresses {
        std::net::TcpListener::bind(&address).expect("the port is free");
    }
    assert!(is_unlocked(&log), "the log");
    assert!(is_unlocked(&directory.path().join("kv_store.log.lock")), "the lock file");
    let all_ended = async { tokio::time::timeout(Duration::from_secs(5), local).await };
    runtime.block_on(all_ended).expect("no task is left");
}

#[actix::test]
async fn a_request_to_a_master_that_stops_is_never_left_open() {
    let directory = tempfile::tempdir().unwrap();
    let cluster =
        embed::start_local(LocalConfig::new(directory.path().join("kv_store.log"), 1)).await.unwrap();
    let (primary, backup, slaves) = parts(cluster);
    backup.stop().await.unwrap();
    for slave in slaves {
        slave.stop().await.unwrap();
    }
    let master = primary.master().clone();
    let answers: Vec<_> = (0..5).map(|_| master.send(put("a", "1"))).collect();
    drop(primary);
    for answer in answers {
        // Without a slave nothing is written; whether the master says so or is gone before it could.
        let answer = tokio::time::timeout(LIMIT, answer).await.expect("an answer");
        assert!(!matches!(answer, Ok(Ok(()))), "{answer:?}");
    }
}

#[actix::test]
async fn a_node_serves_at_each_of_its_addresses_and_takes_its_socket_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let (path, log) = (directory.path().join("a.sock"), directory.path().join("kv_store.log"));
    let socket = format!("unix:{}", path.display());
    let config = MasterConfig {
        listen: vec![socket.clone(), "127.0.0.1:0".into(), "127.0.0.1:0".into()],
        peers: vec!["127.0.0.1:1".into()],
        log,
        fence: Fence::None,
        ..MasterConfig::default()
    };
    let env = RealEnv::new();
    let master = embed::start_master(MasterKind::Primary, config.clone(), env.clone()).await.unwrap();
    assert!(master.address().starts_with("127.0.0.1:"), "others know it by {}", master.address());
    let masters = SlaveConfig { masters: vec![socket.clone()], ..SlaveConfig::default() };
    let slave = embed::start_slave(masters, &env).unwrap();
    embed::wait_serving(&master, 1, LIMIT).await.unwrap();
    for address in [socket.clone(), master.address().to_owned()] {
        let client =
            Client::connect(ClientConfig { masters: vec![address], ..ClientConfig::default() }).unwrap();
        client.put("a", "1").await.unwrap();
        assert_eq!(client.get("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    }
    // Another one at the same path is refused, and the first one keeps it.
    let second = embed::start_master(MasterKind::Backup, config, RealEnv::new()).await.unwrap_err();
    assert!(matches!(&second, NodeError::Listen { address, .. } if *address == socket), "{second:?}");
    assert!(path.exists());
    slave.stop().await.unwrap();
    master.stop().await.unwrap();
    assert!(!path.exists());
}

#[actix::test]
async fn a_node_that_cannot_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = MasterConfig {
        listen: vec![taken.local_addr().unwrap().to_string()],
        log: directory.path().join("kv_store.log"),
        ..MasterConfig::default()
    };
    let error = embed::start_master(MasterKind::Primary, config, RealEnv::new()).await.unwrap_err();
    assert!(matches!(error, NodeError::Listen { .. }), "{error:?}");
    let config = SlaveConfig { masters: Vec::new(), ..SlaveConfig::default() };
    assert!(matches!(embed::start_slave(config, &RealEnv::new()), Err(NodeError::Config(_))));
}

#[actix::test]
async fn a_cluster_has_as_many_masters_as_addresses_and_a_log_that_is_one_file_takes_two() {
    let directory = tempfile::tempdir().unwrap();
    let config = LocalConfig::new(directory.path().join("kv_store.log"), 1);
    let start = |masters: usize| {
        let doors = Doors::At(vec!["127.0.0.1:0".to_owned(); masters]);
        embed::start_local(LocalConfig { doors, ..config.clone() })
    };
    let alone = start(1).await.unwrap_err();
    assert!(matches!(alone, NodeError::Config(ConfigError::TooFewMasters { named: 1 })), "{alone:?}");
    let three = start(3).await.unwrap_err();
    assert!(matches!(three, NodeError::Config(ConfigError::TooManyPeers { named: 2, max: 1 })), "{three:?}");
    let cluster = start(2).await.unwrap();
    assert_eq!((cluster.masters.len(), cluster.addresses().len()), (2, 2));
    assert_eq!(cluster.masters[1].master().send(put("a", "1")).await.unwrap(), Ok(()));
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_program_without_a_system_runs_nodes_on_a_thread_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("kv_store.log");
    let path = log.clone();
    let (master, thread) = embed::on_own_thread(
        move || embed::start_local(LocalConfig::new(path, 1)),
        |cluster| cluster.primary().master().clone(),
    )
    .await
    .unwrap();
    assert_eq!(master.send(put("a", "1")).await.unwrap(), Ok(()));
    thread.stop().await.unwrap();
    assert_eq!(master.send(get("a")).await, Err(MailboxError::Closed));
    assert!(is_unlocked(&log));

    let nowhere = directory.path().join("missing").join("kv_store.log");
    let failed = embed::on_own_thread(move || embed::start_local(LocalConfig::new(nowhere, 1)), |_| ()).await;
    assert!(matches!(failed, Err(NodeError::File { .. })), "{failed:?}");
}

/// The TCP ports that this process listens at.
fn ports() -> Vec<String> {
    let inodes: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .expect("/proc is there")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .map(|path| std::fs::read_to_string(path).expect("/proc is there"));
    let listening = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_ours = words.len() > 9 && words[3] == "0A" && inodes.iter().any(|inode| inode == words[9]);
        is_ours.then(|| words[1].to_owned())
    };
    table.iter().flat_map(|table| table.lines()).filter_map(listening).collect()
}

/// Is run by the test below, in a process of its own: other tests of this one open ports.
#[actix::test]
#[ignore = "is run by a_cluster_within_a_program_opens_no_port_and_reads_no_environment"]
async fn a_local_cluster_by_its_settings() {
    let directory = tempfile::tempdir().unwrap();
    let defaults = MasterConfig::default();
    assert_eq!((defaults.fsync, defaults.min_slaves, defaults.listen), (Fsync::Always, 1, Vec::new()));
    let mut config = LocalConfig::new(directory.path().join("kv_store.log"), 2);
    config.masters.min_slaves = 2;
    config.masters.max_value = ByteSize(100);
    config.slave.max_memory = Some(ByteSize::mib(1));
    let cluster = embed::start_local(config.clone()).await.unwrap();
    assert_eq!(ports(), Vec::<String>::new());
    assert_eq!(cluster.addresses(), Vec::<String>::new(), "there is no address that a client could have");
    let master = cluster.primary().master();
    assert_eq!(master.send(put("a", "1")).await.unwrap(), Ok(()));
    assert_eq!(cluster.masters[1].master().send(get("a")).await.unwrap(), Ok(Some("1".into())));
    let too_long = Put { key: "a".into(), value: vec![0; 101].into() };
    let error = master.send(too_long).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("longer than 100 bytes"), "{error}");
    let status = master.send(Status).await.unwrap().unwrap();
    assert!(!status.contains("room_bytes=unlimited"), "{status}");
    // The backup takes over without a port, too.
    let (primary, backup, mut slaves) = parts(cluster);
    primary.stop().await.unwrap();
    embed::wait_serving(&backup, 2, LIMIT).await.unwrap();
    assert_eq!(backup.master().send(get("a")).await.unwrap(), Ok(Some("1".into())));
    slaves.pop().unwrap().stop().await.unwrap();
    let refused = loop {
        match backup.master().send(put("a", "2")).await.unwrap() {
            Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(refused) => break refused,
        }
    };
    let ClientError::NotExecuted { cause: Failure::Refused(error) } = refused else { panic!("{refused:?}") };
    assert_eq!(error.word, ErrorWord::NoQuorum, "two slaves are the least");
    backup.stop().await.unwrap();
    for slave in slaves {
        slave.stop().await.unwrap();
    }
    // With doors, there are two.
    let config = LocalConfig { doors: Doors::Loopback, ..config };
    let cluster = embed::start_local(config).await.unwrap();
    assert_eq!((ports().len(), cluster.addresses().len()), (2, 2));
    cluster.stop().await.unwrap();
    assert_eq!(ports(), Vec::<String>::new());
}

#[test]
fn a_cluster_within_a_program_opens_no_port_and_reads_no_environment() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "a_local_cluster_by_its_settings"]);
    // The program's own, which happen to have these names.
    let foreign = [
        ("DSM_FSYNC", "sometimes"),
        ("DSM_MIN_SLAVES", "7"),
        ("DSM_LISTEN", "nowhere"),
        ("DSM_PEER", "tcp://10.0.0.1"),
        ("DSM_MAX_VALUE", "1"),
        ("DSM_MAX_MEMORY", "1"),
        ("DSM_MASTERS", "x"),
    ];
    let output = command.envs(foreign).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
fn a_client_without_a_master_or_a_runtime_is_an_error() {
    let nobody = ClientConfig { masters: Vec::new(), ..ClientConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(async { Client::connect(nobody).map(drop) });
    let why = Failure::Invalid("the client is told of no master");
    assert_eq!(refused, Err(ClientError::NotExecuted { cause: why }));
    let why = Failure::Invalid("a client needs a tokio runtime around it");
    let refused = Client::connect(ClientConfig::default()).map(drop);
    assert_eq!(refused, Err(ClientError::NotExecuted { cause: why }));
}
