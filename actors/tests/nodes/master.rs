//! `MasterActor` against slaves, clients and disks that the test plays.

use crate::peer::{text, Link, LIMIT};
use bytes::{Bytes, BytesMut};
use dsm::config::{MasterConfig, MasterKind};
use dsm::env::sim::{DiskFault, Machine, Process, World};
use dsm::env::{Env, Stream};
use dsm::node::{run_node, NodeConfig};
use dsm::supervision::NodeError;
use dsm_protocol::ids::{Epoch, Incarnation, SlaveId, Version};
use dsm_protocol::message::{Control, Hello, HelloRole, Message};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

const ADDRESS: &str = "master:12345";

const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// A master in a world with nobody else.
struct Alone {
    world: World,
    env: Env,
    machine: Machine,
    process: Process,
    end: oneshot::Receiver<Result<(), NodeError>>,
}

impl Alone {
    fn start(world: &World) -> Alone {
        let config = MasterConfig {
            listen: Some(ADDRESS.to_owned()),
            peer: Some("nobody:12346".to_owned()),
            log: "/data/kv_store.log".into(),
            ack_timeout: ACK_TIMEOUT,
            ..MasterConfig::default()
        };
        let machine = world.machine("machine");
        let never = std::future::pending();
        let node = NodeConfig::Master(MasterKind::Primary, config);
        let (process, end) = world.start(&machine, "master", |env| run_node(node, env, never));
        let env = world.env(&world.machine("other"), "other");
        Alone { world: world.clone(), env, machine, process, end }
    }

    /// Registers a slave, and waits until the master counts on it.
    async fn slave(&self, name: &str, incarnation: u64) -> Slave {
        while !self.is_serving().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let link = Link::dial(&self.env, ADDRESS).await;
        let role = HelloRole::Slave {
            id: SlaveId::new(name).unwrap(),
            incarnation: Incarnation(incarnation),
            epoch: Epoch(0),
            highest: Version::default(),
            room_bytes: u64::MAX,
        };
        link.send(&Message::Control(Control::Hello(Hello { cluster: None, role }))).await;
        let mut slave = Slave { link, counted: 0 };
        loop {
            match slave.link.message().await.expect("the slave is registered") {
                Message::Control(Control::Announce { epoch, .. }) => {
                    let highest = Version::default();
                    let enlisted = Control::Enlisted { epoch, highest, room_bytes: u64::MAX };
                    slave.link.send(&Message::Control(enlisted)).await;
                    let holdings = Control::Holdings { entries: Vec::new(), last: true };
                    slave.link.send(&Message::Control(holdings)).await;
                    break;
                }
                Message::Control(Control::Welcome(_) | Control::MasterState(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        while !self.info().await.contains(&format!("id={name},slot=")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        slave
    }

    async fn is_serving(&self) -> bool {
        let Ok(stream) = self.env.connect(ADDRESS).await else { return false };
        let mut client = Client { stream, input: BytesMut::new() };
        client.send(&["INFO"]).await;
        client.bulk().await.contains("role:primary")
    }

    async fn client(&self) -> Client {
        Client { stream: self.env.connect(ADDRESS).await.unwrap(), input: BytesMut::new() }
    }

    async fn info(&self) -> String {
        let mut client = self.client().await;
        client.send(&["INFO"]).await;
        client.bulk().await
    }

    /// A number from INFO.
    async fn fact(&self, name: &str) -> u64 {
        let info = self.info().await;
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {info}")).parse().unwrap()
    }
}

/// A slave that does what the test says.
struct Slave {
    link: Link,
    /// Counted messages so far.
    counted: u64,
}

impl Slave {
    /// The next write, with its version; `None` when the link is closed. Pings are answered on the way.
    async fn write(&mut self) -> Option<(Version, Bytes, Bytes)> {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < LIMIT, "no write in time");
            match self.link.message().await? {
                Message::Write { version, key, value } => {
                    self.counted += 1;
                    return Some((version, key, value));
                }
                Message::Ping => {
                    self.counted += 1;
                    self.ack().await;
                }
                Message::Control(_) | Message::Drop { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The tag of the next read, and the version that it wants. Pings are answered on the way.
    async fn read(&mut self) -> (u64, Version) {
        loop {
            match self.link.message().await.expect("the link stands") {
                Message::Read { tag, version, .. } => return (tag, version),
                Message::Ping => {
                    self.counted += 1;
                    self.ack().await;
                }
                Message::Control(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn value(&self, tag: u64, version: Version, value: &str) {
        self.link.send(&Message::Value { tag, version, value: text(value) }).await;
    }

    /// Reads on, saying nothing, until the master closes the link.
    async fn closed(&mut self) -> Option<(Version, Bytes, Bytes)> {
        while self.link.message().await.is_some() {}
        None
    }

    async fn ack(&self) {
        self.link.send(&Message::Ack { through: self.counted, room_bytes: u64::MAX }).await;
    }
}

/// A Redis client.
struct Client {
    stream: Stream,
    input: BytesMut,
}

impl Client {
    async fn send(&self, words: &[&str]) {
        let mut out = format!("*{}\r\n", words.len());
        for word in words {
            out += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream.write_all(out.as_bytes()).await.unwrap();
    }

    /// The first line of the next answer; `None` when the connection is closed.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.input.windows(2).position(|window| window == b"\r\n") {
                let line = self.input.split_to(end + 2);
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let reading = tokio::time::timeout(LIMIT, self.stream.read(&mut self.input));
            if reading.await.expect("an answer in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn bulk(&mut self) -> String {
        let head = self.line().await.expect("an answer");
        let length: usize = head.strip_prefix('$').expect("a bulk string").parse().unwrap();
        while self.input.len() < length + 2 {
            assert!(self.stream.read(&mut self.input).await.unwrap() > 0, "closed in the middle");
        }
        String::from_utf8_lossy(&self.input.split_to(length + 2)[..length]).into_owned()
    }
}

#[test]
fn a_write_is_logged_before_a_slave_hears_of_it_and_answered_after_its_acknowledgement() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let mut client = alone.client().await;
        client.send(&["SET", "k", "v"]).await;
        let (_, key, value) = slave.write().await.expect("the write");
        assert_eq!((&key[..], &value[..]), (&b"k"[..], &b"v"[..]));
        let log = alone.machine.content("/data/kv_store.log".as_ref()).unwrap();
        assert!(String::from_utf8_lossy(&log).contains("WRITE k v ;"), "a slave heard of what is not logged");
        let early = tokio::time::timeout(ACK_TIMEOUT / 2, client.line()).await;
        assert!(early.is_err(), "answered before the slave has it: {early:?}");
        slave.ack().await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
    });
}

#[test]
fn a_read_is_answered_while_another_clients_write_waits_for_its_sync() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let (mut writer, mut reader) = (alone.client().await, alone.client().await);
        writer.send(&["SET", "k", "old"]).await;
        let (old, ..) = slave.write().await.expect("the write");
        slave.ack().await;
        assert_eq!(writer.line().await.as_deref(), Some("+OK"));

        let stall = Duration::from_secs(5);
        alone.machine.fail(1, DiskFault::SyncStalls(5000));
        let begun = Instant::now();
        writer.send(&["SET", "k", "new"]).await;
        let is_in_file = || {
            let log = alone.machine.content("/data/kv_store.log".as_ref()).unwrap();
            String::from_utf8_lossy(&log).contains("WRITE k new ;")
        };
        while !is_in_file() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        reader.send(&["GET", "k"]).await;
        let (tag, wanted) = slave.read().await;
        assert_eq!(wanted, old, "what is not synced is nobody's to read");
        slave.value(tag, old, "old").await;
        assert_eq!(reader.bulk().await, "old");
        assert!(begun.elapsed() < stall / 10, "the read took {:?}", begun.elapsed());

        slave.write().await.expect("the write");
        assert!(begun.elapsed() >= stall, "the sync did not hang");
        slave.ack().await;
        assert_eq!(writer.line().await.as_deref(), Some("+OK"));
    });
}

#[test]
fn a_read_is_answered_while_another_clients_write_waits_for_its_acknowledgement() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let (mut writer, mut reader) = (alone.client().await, alone.client().await);
        writer.send(&["SET", "k", "v"]).await;
        let (version, ..) = slave.write().await.expect("the write");
        reader.send(&["GET", "k"]).await;
        let (tag, wanted) = slave.read().await;
        assert_eq!(wanted, version, "it is written, and counts");
        slave.value(tag, version, "v").await;
        assert_eq!(reader.bulk().await, "v");
        let early = tokio::time::timeout(ACK_TIMEOUT / 4, writer.line()).await;
        assert!(early.is_err(), "nobody has acknowledged it: {early:?}");
        slave.ack().await;
        assert_eq!(writer.line().await.as_deref(), Some("+OK"));
    });
}

#[test]
fn a_write_is_done_while_a_read_in_front_of_it_waits_for_its_slave() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let (mut client, mut other) = (alone.client().await, alone.client().await);
        client.send(&["SET", "k", "old"]).await;
        let (old, ..) = slave.write().await.expect("the write");
        slave.ack().await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));

        client.send(&["GET", "k"]).await;
        let (tag, wanted) = slave.read().await;
        assert_eq!(wanted, old);
        // The slave keeps the value to itself, and takes what the same connection sends behind the question.
        client.send(&["SET", "k", "new"]).await;
        let (new, ..) = slave.write().await.expect("the write");
        slave.ack().await;
        other.send(&["GET", "k"]).await;
        let (others, wanted) = slave.read().await;
        assert_eq!(wanted, new);
        slave.value(others, new, "new").await;
        assert_eq!(other.bulk().await, "new");
        assert_eq!(alone.fact("read_retries").await, 0, "the read in front still waits for its slave");

        slave.value(tag, old, "old").await;
        assert_eq!(client.bulk().await, "old", "it was asked in front of the write");
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
    });
}

#[test]
fn a_slave_that_never_acknowledges_is_removed_at_the_timeout_and_substituted() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let (mut one, mut two) = (alone.slave("one", 1).await, alone.slave("two", 2).await);
        let mut client = alone.client().await;
        client.send(&["SET", "k", "v"]).await;
        let asked = Instant::now();
        // One of the two gets it, and says nothing.
        let (mut silent, mut other) = tokio::select! {
            biased;
            first = one.write() => { assert!(first.is_some()); (one, two) }
            second = two.write() => { assert!(second.is_some()); (two, one) }
        };
        let substituted = other.write();
        let removed = silent.closed();
        let (substituted, removed) = tokio::join!(substituted, removed);
        let (_, key, _) = substituted.expect("the other slave gets the write");
        assert_eq!((key, removed), (text("k"), None));
        let took = asked.elapsed();
        assert!(took >= ACK_TIMEOUT, "removed after {took:?}");
        assert!(took < ACK_TIMEOUT + Duration::from_millis(500), "removed only after {took:?}");
        other.ack().await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        assert_eq!(alone.fact("active_slaves").await, 1);
        assert_eq!(alone.fact("slaves_removed").await, 1);
        assert_eq!(alone.fact("substitutions").await, 1);
    });
}

#[test]
fn acknowledgements_that_wait_behind_a_pause_of_our_own_remove_nobody() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let mut client = alone.client().await;
        client.send(&["SET", "k", "v"]).await;
        slave.write().await.expect("the write");
        alone.process.pause();
        slave.ack().await;
        tokio::time::sleep(ACK_TIMEOUT * 5).await;
        alone.process.resume();
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        assert_eq!(alone.fact("slaves_removed").await, 0);
        assert_eq!(alone.fact("active_slaves").await, 1);
    });
}

#[test]
fn a_write_whose_sync_failed_is_never_answered_and_ends_the_node() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let slave = alone.slave("one", 1).await;
        let mut client = alone.client().await;
        alone.machine.fail(1, DiskFault::SyncFails);
        client.send(&["SET", "k", "v"]).await;
        // Neither done nor refused: the connection is closed, and the outcome is unknown.
        assert_eq!(client.line().await, None);
        let end = tokio::time::timeout(LIMIT, alone.end).await.unwrap().expect("nobody killed it");
        assert!(matches!(end, Err(NodeError::LogFailed(_))), "{end:?}");
        drop(slave);
    });
}

#[test]
fn a_full_disk_refuses_writes_and_serves_reads_and_heals() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let mut client = alone.client().await;
        client.send(&["SET", "k", "v"]).await;
        let (version, ..) = slave.write().await.expect("the write");
        slave.ack().await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        alone.machine.fail(1, DiskFault::WriteFull);
        // The writer tries a smaller reserve before it gives up.
        alone.machine.fail(2, DiskFault::WriteFull);
        client.send(&["SET", "k", "w"]).await;
        let refused = client.line().await.unwrap();
        assert!(refused.starts_with("-READONLY"), "{refused}");
        client.send(&["GET", "k"]).await;
        let (tag, wanted) = slave.read().await;
        assert_eq!(wanted, version);
        slave.value(tag, version, "v").await;
        assert_eq!(client.bulk().await, "v");
        alone.machine.mend();
        client.send(&["SET", "k", "x"]).await;
        slave.write().await.expect("the write");
        slave.ack().await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
    });
}

#[test]
fn the_standby_serves_nobody_while_the_lock_is_held() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let _slave = alone.slave("one", 1).await;
        let config = MasterConfig {
            listen: Some("backup:12346".to_owned()),
            peer: Some(ADDRESS.to_owned()),
            log: "/data/kv_store.log".into(),
            ..MasterConfig::default()
        };
        let node = NodeConfig::Master(MasterKind::Backup, config);
        let never = std::future::pending();
        let (_, end) = alone.world.start(&alone.machine, "backup", |env| run_node(node, env, never));
        // Its own word for itself, over many times every timeout of the cluster.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let stream = alone.env.connect("backup:12346").await.unwrap();
            let mut client = Client { stream, input: BytesMut::new() };
            client.send(&["INFO"]).await;
            assert!(client.bulk().await.contains("role:standby"));
            assert_eq!(alone.fact("epoch").await, 1);
        }
        drop(end);
    });
}

#[test]
fn a_restarted_slave_takes_its_name_over_only_when_the_old_one_gives_no_sign_of_life() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut old = alone.slave("one", 1).await;
        // The second life of the name; the first one is silent.
        let again = alone.slave("one", 2);
        let begun = Instant::now();
        let (_new, gone) = tokio::join!(again, old.closed());
        assert!(gone.is_none() && begun.elapsed() >= ACK_TIMEOUT / 2, "{:?}", begun.elapsed());
        assert_eq!(alone.fact("active_slaves").await, 1);
    });
}
