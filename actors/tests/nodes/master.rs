//! `MasterActor` against slaves, clients and disks that the test plays.

use crate::peer::{text, Link, CLUSTER, LIMIT};
use bytes::{Bytes, BytesMut};
use dsm::config::{MasterConfig, MasterKind, SlaveConfig};
use dsm::env::sim::{DiskFault, Machine, Process, World};
use dsm::env::{Env, Stands, Stream};
use dsm::node::{run_node, NodeConfig};
use dsm::node_error::NodeError;
use dsm::testing::{panic_at, PanicPlace};
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::ids::{ClusterId, Epoch, Incarnation, Reign, RequestId, Seq, SlaveId, Stamp, Version};
use dsm_protocol::message::{Control, Hello, HelloRole, MasterState, Message, Request, Seen, Welcome};
use dsm_protocol::record::{self, Operation};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub(crate) const ADDRESS: &str = "master:12345";

const BACKUP_ADDRESS: &str = "backup:12346";

const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// A master in a world with nobody else.
pub(crate) struct Alone {
    world: World,
    pub(crate) env: Env,
    machine: Machine,
    process: Process,
    end: oneshot::Receiver<Result<(), NodeError>>,
}

impl Alone {
    pub(crate) fn start(world: &World) -> Alone {
        Alone::start_on(world, world.machine("machine"))
    }

    fn start_on(world: &World, machine: Machine) -> Alone {
        let config = MasterConfig {
            new: true,
            listen: vec![ADDRESS.to_owned()],
            peers: vec!["nobody:12346".to_owned()],
            log: "/data/kv_store.log".into(),
            ack_timeout: ACK_TIMEOUT,
            ..MasterConfig::default()
        };
        let never = std::future::pending();
        let node = NodeConfig::Master(MasterKind::Primary, config);
        let (process, end) = world.start(&machine, "master", |env| run_node(node, env, never));
        let env = world.env(&world.machine("other"), "other");
        Alone { world: world.clone(), env, machine, process, end }
    }

    /// Registers a slave, and waits until the master counts on it.
    pub(crate) async fn slave(&self, name: &str, incarnation: u64) -> Slave {
        while !self.is_serving().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let link = self.hello(name, incarnation).await;
        let mut slave = Slave { link, counted: 0, reign: Reign::default() };
        let reign = slave.announced().await;
        slave.enlist(reign).await;
        let holdings = Control::Holdings { entries: Vec::new(), last: true };
        slave.link.send(&Message::Control(holdings)).await;
        while !self.info().await.contains(&format!("id={name},slot=")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        slave
    }

    /// A link whose other end has heard the hello of a slave.
    async fn hello(&self, name: &str, incarnation: u64) -> Link {
        self.hello_of(None, name, incarnation).await
    }

    async fn hello_of(&self, cluster: Option<ClusterId>, name: &str, incarnation: u64) -> Link {
        let link = Link::dial(&self.env, ADDRESS).await;
        let role = HelloRole::Slave {
            id: SlaveId::new(name).unwrap(),
            incarnation: Incarnation(incarnation),
            seen: None,
            room_bytes: u64::MAX,
        };
        link.send(&Message::Control(Control::Hello(Hello { cluster, role }))).await;
        link
    }

    /// Starts a real slave in a process of its own.
    fn real_slave(&self, name: &str) -> Process {
        let config = SlaveConfig {
            masters: vec![ADDRESS.to_owned()],
            id: Some(SlaveId::new(name).unwrap()),
            ..SlaveConfig::default()
        };
        let never = std::future::pending();
        let run = |env| run_node(NodeConfig::Slave(config), env, never);
        self.world.start(&self.machine, name, run).0
    }

    /// Waits until INFO shows a number.
    pub(crate) async fn wait_for(&self, name: &str, number: u64) {
        let begun = Instant::now();
        // At the start nobody listens yet.
        while fact_of(&self.env, ADDRESS, name).await != Some(number) {
            assert!(begun.elapsed() < LIMIT, "{name} is not {number}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a field of INFO holds a word.
    async fn wait_for_text(&self, name: &str, word: &str) {
        let begun = Instant::now();
        loop {
            let info = self.info().await;
            let line = info.lines().find(|line| line.starts_with(name)).expect("the field is there");
            if line.contains(word) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "not {word}: {line}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn cluster(&self) -> ClusterId {
        let info = self.info().await;
        let id = info.lines().find_map(|line| line.strip_prefix("cluster_id:"));
        id.expect("it serves").parse().unwrap()
    }

    async fn is_serving(&self) -> bool {
        let Ok(stream) = self.env.connect(ADDRESS).await else { return false };
        let mut client = Client { stream, input: BytesMut::new() };
        client.send(&["INFO"]).await;
        client.bulk().await.contains("dsm_role:primary")
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
        fact_of(&self.env, ADDRESS, name).await.expect("the master listens")
    }
}

/// A number from a master's INFO; `None` when nobody listens there.
async fn fact_of(env: &Env, address: &str, name: &str) -> Option<u64> {
    let mut client = Client { stream: env.connect(address).await.ok()?, input: BytesMut::new() };
    client.send(&["INFO"]).await;
    let info = client.bulk().await;
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Some(line.unwrap_or_else(|| panic!("no {name} in {info}")).parse().unwrap())
}

/// A slave that does what the test says.
pub(crate) struct Slave {
    link: Link,
    /// Counted messages so far.
    counted: u64,
    /// The reign that was announced.
    reign: Reign,
}

impl Slave {
    /// Waits for the announcement of the reign.
    async fn announced(&mut self) -> Reign {
        loop {
            match self.link.message().await.expect("the slave is registered") {
                Message::Control(Control::Announce { reign, .. }) => {
                    self.reign = reign;
                    return reign;
                }
                Message::Control(Control::Welcome(_) | Control::MasterState(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn enlist(&self, reign: Reign) {
        let enlisted = Control::Enlisted { reign, seen: None, room_bytes: u64::MAX };
        self.link.send(&Message::Control(enlisted)).await;
    }

    /// The next write, with its version; `None` when the link is closed. Pings are answered on the way.
    async fn write(&mut self) -> Option<(Version, Bytes, Bytes)> {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < LIMIT, "no write in time");
            match self.link.message().await? {
                Message::Write { version, key, value, .. } => {
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
        let reign = self.reign.id;
        self.link.send(&Message::Value { tag, version, reign, value: text(value) }).await;
    }

    /// Reads on, saying nothing, until the master closes the link.
    async fn closed(&mut self) -> Option<(Version, Bytes, Bytes)> {
        while self.link.message().await.is_some() {}
        None
    }

    async fn ack(&self) {
        self.ack_with_room(u64::MAX).await;
    }

    async fn ack_with_room(&self, room_bytes: u64) {
        self.link.send(&Message::Ack { through: self.counted, room_bytes }).await;
    }
}

/// A Redis client.
pub(crate) struct Client {
    pub(crate) stream: Stream,
    pub(crate) input: BytesMut,
}

impl Client {
    pub(crate) async fn send(&self, words: &[&str]) {
        let mut out = format!("*{}\r\n", words.len());
        for word in words {
            out += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream.write_all(out.as_bytes()).await.unwrap();
    }

    /// The first line of the next answer; `None` when the connection is closed.
    pub(crate) async fn line(&mut self) -> Option<String> {
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

    pub(crate) async fn bulk(&mut self) -> String {
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
        assert_eq!(wanted, old, "what is not synced cannot be read");
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
fn a_write_is_done_while_a_read_before_it_waits_for_its_slave() {
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
        // The slave keeps the value to itself, and takes what the same connection sends after the question.
        client.send(&["SET", "k", "new"]).await;
        let (new, ..) = slave.write().await.expect("the write");
        slave.ack().await;
        other.send(&["GET", "k"]).await;
        let (others, wanted) = slave.read().await;
        assert_eq!(wanted, new);
        slave.value(others, new, "new").await;
        assert_eq!(other.bulk().await, "new");
        assert_eq!(alone.fact("read_retries").await, 0, "the earlier read still waits for its slave");

        slave.value(tag, old, "old").await;
        assert_eq!(client.bulk().await, "old", "it was asked before the write");
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
    });
}

/// The next read that one of these slaves is asked, and when. Writes and pings are acknowledged on the way.
async fn next_read(slaves: &mut [Slave; 3]) -> Instant {
    loop {
        let [one, two, three] = slaves;
        let (slave, message) = tokio::select! {
            biased;
            message = one.link.message() => (one, message),
            message = two.link.message() => (two, message),
            message = three.link.message() => (three, message),
        };
        match message.expect("the link stands") {
            Message::Read { .. } => return Instant::now(),
            Message::Write { .. } | Message::Ping => {
                slave.counted += 1;
                slave.ack().await;
            }
            Message::Control(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A long value has a tenth of a second and more until the second one of its two holders is asked.
#[test]
fn a_short_value_does_not_wait_until_a_long_one_is_asked_of_a_second_slave() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let slaves =
            [alone.slave("one", 1).await, alone.slave("two", 2).await, alone.slave("three", 3).await];
        let mut slaves = slaves;
        let (mut client, mut other) = (alone.client().await, alone.client().await);
        let (long, short) = ("v".repeat(1 << 20), "v");
        client.send(&["SET", "long", &long]).await;
        other.send(&["SET", "short", short]).await;
        let written = async { (client.line().await, other.line().await) };
        tokio::select! {
            biased;
            _ = next_read(&mut slaves) => panic!("nothing is asked"),
            (one, another) = written => assert_eq!((one.as_deref(), another.as_deref()), (Some("+OK"), Some("+OK"))),
        }
        client.send(&["GET", "long"]).await;
        next_read(&mut slaves).await;
        // By then the look at the long one is set for later.
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.send(&["GET", "short"]).await;
        let asked = next_read(&mut slaves).await;
        let again = next_read(&mut slaves).await;
        let took = again - asked;
        assert!(took < Duration::from_millis(30), "the second one is asked after {took:?}");
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

/// A slave that comes back after a missed acknowledgement: what it is told first, and when.
struct Returned {
    link: Link,
    told: Message,
    after: Duration,
}

impl Returned {
    /// The same process as `incarnation` says hello again; what comes after the welcome, without the states of masters.
    async fn hello(alone: &Alone, name: &str, incarnation: u64) -> Returned {
        let begun = Instant::now();
        let mut link = alone.hello(name, incarnation).await;
        loop {
            match link.message().await.expect("the link stands") {
                Message::Control(Control::Welcome(_) | Control::MasterState(_)) => {}
                told => return Returned { link, told, after: begun.elapsed() },
            }
        }
    }

    /// Waits for the trial, takes it, and waits for the announcement: the trial's bytes, and how long it took to come.
    async fn pass(mut self) -> (Slave, usize, Duration) {
        let begun = Instant::now();
        let bytes = loop {
            match self.link.message().await.expect("the link stands") {
                Message::Trial { bytes } => break bytes.len(),
                Message::Control(Control::MasterState(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        let took = begun.elapsed();
        self.link.send(&Message::Control(Control::Took { bytes: bytes as u64 })).await;
        let mut slave = Slave { link: self.link, counted: 0, reign: Reign::default() };
        let epoch = slave.announced().await;
        slave.enlist(epoch).await;
        (slave, bytes, took)
    }
}

#[test]
fn a_slave_is_given_one_sign_of_life_however_often_it_asks_before_it_reads() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let probe = Message::Control(Control::Probe);
        for _ in 0..2 {
            slave.link.send_all(&vec![probe.clone(); 500]).await;
            let mut alive = 0;
            loop {
                match slave.link.message().await.expect("the link stands") {
                    Message::Control(Control::Alive) => alive += 1,
                    Message::Ping => break,
                    Message::Control(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            slave.counted += 1;
            slave.ack().await;
            // What comes at once is not heard in one turn.
            assert!((1..=4).contains(&alive), "{alive} signs of life");
        }
    });
}

#[test]
fn a_slave_that_reports_unasked_is_removed() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let begun = Instant::now();
        // Each of these keys is answered with a drop, which a slave that never reads would pile up.
        let stamp = Stamp { version: Version::new(1, 2), reign: slave.reign.id };
        let entries = (0..1000).map(|key| (text(&format!("k{key}")), stamp)).collect();
        slave.link.send(&Message::Control(Control::Holdings { entries, last: false })).await;
        slave.closed().await;
        assert!(begun.elapsed() < ACK_TIMEOUT, "it is removed for another reason");
        alone.wait_for("slaves_removed", 1).await;
    });
}

#[test]
fn a_slave_that_missed_an_acknowledgement_counts_again_after_a_while_and_a_trial() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let (mut one, mut two) = (alone.slave("one", 1).await, alone.slave("two", 2).await);
        let mut client = alone.client().await;
        for failures in 1..=3 {
            // Long enough that the trial is as long as what was lost.
            client.send(&["SET", &format!("k{failures}"), &"v".repeat(100_000)]).await;
            // Either gets it. The one is deaf; if it is spared, a ping finds it.
            let answered = async {
                assert_eq!(client.line().await.as_deref(), Some("+OK"));
                one.closed().await;
            };
            keep_alive(&mut two, answered).await;
            let returned = keep_alive(&mut two, Returned::hello(&alone, "one", 1)).await;
            let waits_ms = 1000 << (failures - 1);
            let Message::Control(Control::Quarantined { ms, reason }) = &returned.told else {
                panic!("{:?}", returned.told)
            };
            assert!(*ms <= waits_ms && *ms + 200 >= waits_ms, "{ms} of {waits_ms}");
            assert_eq!(reason, "ack-timeout");
            assert!(returned.after < Duration::from_millis(100), "told at once");
            assert!(alone.info().await.contains("id=one,state=quarantined,failures="));
            assert_eq!(alone.fact("slaves_quarantined").await, 1);
            let (slave, bytes, took) = keep_alive(&mut two, returned.pass()).await;
            assert!(bytes >= 64 * 1024, "{bytes}");
            assert!(took.as_millis() as u64 + 300 >= waits_ms, "{took:?} of {waits_ms}");
            one = slave;
            keep_alive(&mut two, alone.wait_for("active_slaves", 2)).await;
            assert_eq!(alone.fact("slaves_quarantined").await, 0);
        }
        // A new life has no past.
        let returned = keep_alive(&mut two, Returned::hello(&alone, "one", 9)).await;
        assert!(matches!(returned.told, Message::Control(Control::Announce { .. })), "{:?}", returned.told);
    });
}

/// Lets a slave answer its pings and writes while something else is waited for.
async fn keep_alive<T>(slave: &mut Slave, waited_for: impl std::future::Future<Output = T>) -> T {
    let mut waited_for = std::pin::pin!(waited_for);
    loop {
        tokio::select! {
            biased;
            result = &mut waited_for => return result,
            message = slave.link.message() => match message.expect("the link stands") {
                Message::Ping | Message::Write { .. } => {
                    slave.counted += 1;
                    slave.ack().await;
                }
                _ => {}
            },
        }
    }
}

#[test]
fn an_unanswered_trial_is_a_failure_and_no_write_waits_for_it() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let (mut one, mut two) = (alone.slave("one", 1).await, alone.slave("two", 2).await);
        keep_alive(&mut two, one.closed()).await;
        for failures in 2..=4 {
            let mut returned = keep_alive(&mut two, Returned::hello(&alone, "one", 1)).await;
            // It hears of the trial and does not answer.
            keep_alive(&mut two, async { while returned.link.message().await.is_some() {} }).await;
            let told = keep_alive(&mut two, Returned::hello(&alone, "one", 1)).await.told;
            let Message::Control(Control::Quarantined { ms, reason }) = &told else { panic!("{told:?}") };
            assert_eq!(reason, "trial-failed");
            assert!(*ms + 200 >= 1000 << (failures - 1), "{ms}");
        }
        assert_eq!(alone.fact("slaves_removed").await, 1, "it was active once");
    });
}

#[test]
fn the_only_slave_waits_for_a_second_at_most() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut one = alone.slave("one", 1).await;
        for failures in 1..=4 {
            one.closed().await;
            alone.wait_for("active_slaves", 0).await;
            let returned = Returned::hello(&alone, "one", 1).await;
            let (slave, _, took) = returned.pass().await;
            assert!(took <= Duration::from_millis(1100), "failure {failures}: {took:?}");
            one = slave;
            alone.wait_for("active_slaves", 1).await;
        }
    });
}

#[test]
fn a_panic_in_a_session_ends_that_connection_and_gives_its_permits_back() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let mut other = alone.client().await;
        other.send(&["PING"]).await;
        assert_eq!(other.line().await.as_deref(), Some("+PONG"));
        let epoch = alone.fact("epoch").await;
        // The slave, the other client, and the one that asks.
        let connections = 3;
        alone.wait_for("connections", connections).await;

        let mut client = alone.client().await;
        client.send(&["SET", "k", "v"]).await;
        slave.write().await.expect("the write");
        // The question itself is one of those in flight.
        assert_eq!(alone.fact("requests_in_flight").await, 2);
        assert_eq!(alone.fact("request_bytes_in_flight").await, 2);
        assert_eq!(alone.fact("connections").await, connections + 1);
        panic_at(PanicPlace::Session);
        client.send(&["GET", "k"]).await;
        assert_eq!(client.line().await, None, "the connection is closed");
        assert_eq!(alone.fact("requests_in_flight").await, 1);
        assert_eq!(alone.fact("request_bytes_in_flight").await, 0);
        assert_eq!(alone.fact("connections").await, connections);
        assert_eq!(alone.fact("connected_clients").await, 2, "the other client, and the one that asks");

        // What it had asked for is in the log; the others go on.
        slave.ack().await;
        other.send(&["SET", "k", "w"]).await;
        slave.write().await.expect("the write");
        slave.ack().await;
        assert_eq!(other.line().await.as_deref(), Some("+OK"));
        assert_eq!(alone.fact("keys").await, 1);
        assert_eq!(alone.fact("epoch").await, epoch);
    });
}

#[test]
fn a_panic_in_a_read_of_the_log_is_an_error_of_that_read() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let mut client = alone.client().await;
        client.send(&["SET", "k", "v"]).await;
        slave.write().await.expect("the write");
        slave.ack().await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        drop(slave);
        alone.wait_for("active_slaves", 0).await;
        panic_at(PanicPlace::LogRead);
        client.send(&["GET", "k"]).await;
        let told = client.line().await.expect("an answer");
        assert!(told.starts_with("-ERR") && told.contains("panicked"), "{told}");
        assert_eq!(alone.fact("requests_in_flight").await, 1, "the question itself");
        assert_eq!(alone.fact("log_read_bytes").await, 0);
        client.send(&["GET", "k"]).await;
        assert_eq!(client.bulk().await, "v");
    });
}

#[test]
fn a_panic_in_a_proxy_ends_its_link_and_another_slave_takes_its_writes() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let (mut one, mut two) = (alone.slave("one", 1).await, alone.slave("two", 2).await);
        let epoch = alone.fact("epoch").await;
        let mut client = alone.client().await;
        client.send(&["SET", "k", "v"]).await;
        let asked = Instant::now();
        let (name, mut cut, mut other) = tokio::select! {
            biased;
            first = one.write() => { assert!(first.is_some()); ("one", one, two) }
            second = two.write() => { assert!(second.is_some()); ("two", two, one) }
        };
        panic_at(PanicPlace::SlaveProxy(SlaveId::new(name).unwrap()));
        let (substituted, closed) = tokio::join!(other.write(), cut.closed());
        let (_, key, _) = substituted.expect("the other slave gets the write");
        assert_eq!((key, closed), (text("k"), None));
        assert!(asked.elapsed() < ACK_TIMEOUT, "only the deadline ended it, after {:?}", asked.elapsed());
        other.ack().await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        assert_eq!(alone.fact("active_slaves").await, 1);
        assert_eq!(alone.fact("slaves_removed").await, 1);
        assert_eq!(alone.fact("substitutions").await, 1);
        assert_eq!(alone.fact("epoch").await, epoch, "the node lives");
        // The slave may come back.
        let _back = alone.slave(name, 3).await;
        assert_eq!(alone.fact("active_slaves").await, 2);
    });
}

#[test]
fn the_65th_slave_is_told_that_it_is_one_too_many() {
    const WHY: &str = "64 slaves are active, which is the most: stop one first";
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut real: Vec<Process> =
            (1..=63).map(|number| alone.real_slave(&format!("real-{number}"))).collect();
        alone.wait_for("takeovers", 1).await;
        alone.wait_for("active_slaves", 63).await;
        // It was welcome, but is not the first to enlist.
        let link = alone.hello("late", 1).await;
        let mut late = Slave { link, counted: 0, reign: Reign::default() };
        let reign = late.announced().await;
        real.push(alone.real_slave("real-64"));
        alone.wait_for("active_slaves", 64).await;
        late.enlist(reign).await;
        assert_eq!(late.link.refusal().await, WHY);
        assert_eq!(alone.fact("slaves_refused").await, 1);
        // From now on nobody is welcome,
        let mut newcomer = alone.hello("newcomer", 1).await;
        assert_eq!(newcomer.refusal().await, WHY);
        assert_eq!(alone.fact("slaves_refused").await, 2);
        assert_eq!(alone.fact("active_slaves").await, 64);
        // except who returns over a new connection, and when one has left.
        alone.world.kill(&real.pop().unwrap());
        alone.wait_for("active_slaves", 63).await;
        let _newcomer = alone.slave("newcomer", 1).await;
        assert_eq!(alone.fact("active_slaves").await, 64);
        assert_eq!(alone.fact("slaves_refused").await, 2);
    });
}

#[test]
fn a_slave_that_is_refused_is_counted() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        alone.real_slave("one");
        alone.wait_for("takeovers", 1).await;
        alone.wait_for("active_slaves", 1).await;
        let mut same_name = alone.hello("one", 7).await;
        assert!(same_name.refusal().await.contains("registered and answers"));
        assert_eq!(alone.fact("slaves_refused").await, 1);
        let mut foreign = alone.hello_of(Some(CLUSTER), "two", 1).await;
        assert!(foreign.refusal().await.contains("belongs to cluster"));
        assert_eq!(alone.fact("slaves_refused").await, 2);
        assert_eq!(alone.fact("active_slaves").await, 1);
    });
}

#[test]
fn a_reign_that_a_slave_disputes_before_it_serves_is_put_aside_and_begins_again_on_the_right_log() {
    World::run(1, |world| async move {
        let path = std::path::Path::new("/data/kv_store.log");
        let alone = Alone::start(&world);
        let slave = alone.slave("one", 1).await;
        let (reign, cluster) = (slave.reign, alone.cluster().await);
        let whole = alone.machine.content(path).unwrap();
        world.kill(&alone.process);
        alone.process.gone().await;
        // Its end is cut: the slave has seen a record more, and says so only when it is told of the next reign.
        let mut more = whole.clone();
        let seen = Seen { reign, seq: Seq(3), durable: true };
        let write = Operation::Write(vec![(text("k"), text("v"))]);
        record::encode(&write, Seq(3), reign.epoch, Seq(2), &mut more);
        let alone = Alone::start_on(&world, alone.machine.clone());
        // It listens, and waits for what others may say.
        alone.wait_for("takeovers", 0).await;
        let mut link = alone.hello_of(Some(cluster), "one", 1).await;
        let next = loop {
            match link.message().await.expect("the slave is registered") {
                Message::Control(Control::Announce { reign, .. }) => break reign,
                Message::Control(_) => {}
                other => panic!("{other:?}"),
            }
        };
        let enlisted = Control::Enlisted { reign: next, seen: Some(seen), room_bytes: u64::MAX };
        link.send(&Message::Control(enlisted)).await;
        alone.wait_for_text("waiting_for", "slave one, by what is noted beside the log, has seen").await;
        assert_eq!(alone.fact("takeovers").await, 0, "nobody was served");
        // The log that has the record takes the place of the other one, which has the record of a reign that never was.
        alone.machine.remove(path);
        alone.machine.edit(path, |log| *log = more.clone());
        alone.wait_for("takeovers", 1).await;
        let after = loop {
            match link.message().await.expect("the slave is registered") {
                Message::Control(Control::Announce { reign, .. }) => break reign,
                Message::Control(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(after.epoch > next.epoch, "{after} after {next}");
        assert_eq!(alone.fact("keys").await, 1);
    });
}

#[test]
fn what_is_noted_of_one_slave_survives_a_full_disk_when_another_one_has_seen_more() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let slave = alone.slave("one", 1).await;
        let (reign, cluster) = (slave.reign, alone.cluster().await);
        world.kill(&alone.process);
        alone.process.gone().await;
        let alone = Alone::start_on(&world, alone.machine.clone());
        alone.wait_for("takeovers", 0).await;
        let hello = async |name: &str, seq| {
            let link = Link::dial(&alone.env, ADDRESS).await;
            let seen = Some(Seen { reign, seq: Seq(seq), durable: true });
            let id = SlaveId::new(name).unwrap();
            let role = HelloRole::Slave { id, incarnation: Incarnation(seq), seen, room_bytes: u64::MAX };
            link.send(&Message::Control(Control::Hello(Hello { cluster: Some(cluster), role }))).await;
            link
        };
        let noted = || {
            let path = std::path::Path::new("/data/kv_store.log.witness");
            String::from_utf8(alone.machine.content(path).unwrap_or_default()).unwrap()
        };
        let one = hello("one", 5).await;
        alone.wait_for_text("waiting_for", "slave one has seen").await;
        let wait_until_noted = async |line: &str| {
            let begun = Instant::now();
            while !noted().contains(line) {
                assert!(begun.elapsed() < LIMIT, "no {line:?} in {:?}", noted());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        wait_until_noted(" 5 durable one\n").await;
        drop(one);
        // The disk is full for whatever is written next.
        alone.machine.fail(1, DiskFault::WriteFull);
        let two = hello("two", 9).await;
        for _ in 0..200 {
            assert!(noted().contains(" 5 durable one\n"), "{:?}", noted());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // And for the next one there is room.
        drop(two);
        let _three = hello("three", 12).await;
        wait_until_noted(" 12 durable three\n").await;
        assert_eq!(alone.fact("takeovers").await, 0);
    });
}

#[test]
fn acknowledgements_that_arrive_in_a_pause_of_this_process_are_not_late() {
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
        assert!(matches!(end, Err(NodeError::LogFailed { .. })), "{end:?}");
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
        assert_eq!(alone.fact("errors_readonly").await, 1);
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
fn each_error_is_counted_by_its_word() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let mut client = alone.client().await;
        for (words, begins) in [
            (&["FROB"][..], "-ERR unknown command"),
            (&["SET", "k"], "-ERR wrong number"),
            (&["GET", &"k".repeat((64 << 10) + 1)], "-ERR key is too long"),
        ] {
            client.send(words).await;
            let told = client.line().await.expect("an answer");
            assert!(told.starts_with(begins), "{told}");
        }
        assert_eq!(alone.fact("errors_err").await, 3);
        // The slave is full, and has room again.
        client.send(&["SET", "k", "v"]).await;
        slave.write().await.expect("the write");
        slave.ack_with_room(0).await;
        assert_eq!(client.line().await.as_deref(), Some("+OK"));
        client.send(&["SET", "k", "a longer one"]).await;
        let full = client.line().await.expect("an answer");
        assert!(full.starts_with("-OOM"), "{full}");
        assert_eq!(alone.fact("errors_oom").await, 1);
        slave.ack().await;
        while !alone.info().await.contains("room_bytes=unlimited") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The only slave leaves in the middle of a write, and then there is none.
        client.send(&["SET", "k", "x"]).await;
        slave.write().await.expect("the write");
        drop(slave);
        let told = client.line().await.expect("an answer");
        assert!(told.starts_with("-UNKNOWN"), "{told}");
        assert_eq!(alone.fact("errors_unknown").await, 1);
        client.send(&["SET", "k", "y"]).await;
        let told = client.line().await.expect("an answer");
        assert!(told.starts_with("-NOQUORUM"), "{told}");
        assert_eq!(alone.fact("errors_noquorum").await, 1);
        let nothing = ["errors_standby", "errors_loading", "errors_readonly", "errors_busy"];
        for field in nothing {
            assert_eq!(alone.fact(field).await, 0, "{field}");
        }
    });
}

#[test]
fn reads_that_waited_for_a_slave_stay_counted_when_it_is_gone() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let mut slave = alone.slave("one", 1).await;
        let mut client = alone.client().await;
        // Two of them fit into --slave-window.
        let long = "v".repeat(3 << 20);
        for key in ["a", "b", "c"] {
            client.send(&["SET", key, &long]).await;
            slave.write().await.expect("the write");
            slave.ack().await;
            assert_eq!(client.line().await.as_deref(), Some("+OK"));
        }
        for key in ["a", "b", "c"] {
            client.send(&["GET", key]).await;
        }
        alone.wait_for("reads_waited_for_slave_window", 1).await;
        drop(slave);
        alone.wait_for("active_slaves", 0).await;
        assert_eq!(alone.fact("reads_waited_for_slave_window").await, 1);
        for _ in 0..3 {
            assert!(client.bulk().await == long, "from the log");
        }
    });
}

#[test]
fn a_standby_counts_its_errors_too() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let _slave = alone.slave("one", 1).await;
        let config = MasterConfig {
            new: true,
            listen: vec![BACKUP_ADDRESS.to_owned()],
            peers: vec![ADDRESS.to_owned()],
            log: "/data/kv_store.log".into(),
            failover_timeout: LIMIT,
            ..MasterConfig::default()
        };
        let node = NodeConfig::Master(MasterKind::Backup, config);
        let never = std::future::pending();
        let (_, _end) = alone.world.start(&alone.machine, "backup", |env| run_node(node, env, never));
        let begun = Instant::now();
        while fact_of(&alone.env, BACKUP_ADDRESS, "peer_connected").await != Some(1) {
            assert!(begun.elapsed() < LIMIT, "it does not find the other master");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A native client is sent on; a Redis client's requests are forwarded, to one that does not answer.
        let mut native = Link::dial(&alone.env, BACKUP_ADDRESS).await;
        let hello = Hello { cluster: None, role: HelloRole::Client };
        native.send(&Message::Control(Control::Hello(hello))).await;
        let command = Command::Get { key: text("k") };
        native.send(&Message::Request(Request { id: RequestId(1), stream: 0, generation: 0, command })).await;
        loop {
            match native.message().await.expect("an answer") {
                Message::Response { reply: Reply::Error(error), .. } => {
                    assert_eq!((error.word, &error.detail[..]), (ErrorWord::Standby, ADDRESS));
                    break;
                }
                Message::Control(_) => {}
                other => panic!("{other:?}"),
            }
        }
        alone.process.pause();
        for (words, begins) in [(&["GET", "k"][..], "-LOADING"), (&["SET", "k", "v"], "-UNKNOWN")] {
            let stream = alone.env.connect(BACKUP_ADDRESS).await.unwrap();
            let mut client = Client { stream, input: BytesMut::new() };
            client.send(words).await;
            let told = client.line().await.expect("an answer");
            assert!(told.starts_with(begins), "{told}");
        }
        for field in ["errors_standby", "errors_loading", "errors_unknown"] {
            assert_eq!(fact_of(&alone.env, BACKUP_ADDRESS, field).await, Some(1), "{field}");
        }
    });
}

#[test]
fn the_standby_serves_nobody_while_the_lock_is_held() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let _slave = alone.slave("one", 1).await;
        let config = MasterConfig {
            new: true,
            listen: vec![BACKUP_ADDRESS.to_owned()],
            peers: vec![ADDRESS.to_owned()],
            log: "/data/kv_store.log".into(),
            ..MasterConfig::default()
        };
        let node = NodeConfig::Master(MasterKind::Backup, config);
        let never = std::future::pending();
        let (_, end) = alone.world.start(&alone.machine, "backup", |env| run_node(node, env, never));
        // Its own word for itself, over many times every timeout of the cluster.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let stream = alone.env.connect(BACKUP_ADDRESS).await.unwrap();
            let mut client = Client { stream, input: BytesMut::new() };
            client.send(&["INFO"]).await;
            assert!(client.bulk().await.contains("dsm_role:standby"));
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

#[test]
fn a_master_that_is_refused_after_its_welcome_stays_a_standby() {
    World::run(1, |world| async move {
        let alone = Alone::start(&world);
        let _slave = alone.slave("one", 1).await;
        let listener = alone.env.listen("other:12346").await.unwrap();
        let config = MasterConfig {
            new: true,
            listen: vec!["backup:12346".to_owned()],
            peers: vec!["other:12346".to_owned()],
            log: "/data/kv_store.log".into(),
            ..MasterConfig::default()
        };
        let node = NodeConfig::Master(MasterKind::Backup, config);
        let never = std::future::pending();
        let (_, mut end) = alone.world.start(&alone.machine, "backup", |env| run_node(node, env, never));
        // The first link is its question before it begins; each later one is cut off in its turn.
        for _ in 0..4 {
            let (stream, _) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
            let mut link = Link::accepted(stream).await;
            assert!(matches!(link.message().await, Some(Message::Control(Control::Hello(_)))));
            let state = MasterState { active: false, epoch: Epoch(1), seq: Seq(1), active_address: None };
            let welcome = Welcome { cluster: None, value_max: 1 << 20, state };
            link.send(&Message::Control(Control::Welcome(welcome))).await;
            let reason = "a frame of 4 GiB is too long".to_owned();
            link.send(&Message::Control(Control::Reject { reason })).await;
            while link.message().await.is_some() {}
        }
        assert!(end.try_recv().is_err(), "it has ended");
        let stream = alone.env.connect("backup:12346").await.unwrap();
        let mut client = Client { stream, input: BytesMut::new() };
        client.send(&["INFO"]).await;
        assert!(client.bulk().await.contains("dsm_role:standby"));
    });
}

/// The long request takes many turns to encode. The short one of the same client is there in the first of them.
#[test]
fn no_request_overtakes_a_forwarded_one_of_many_keys_of_the_same_client() {
    World::run(1, |world| async move {
        const KEYS: usize = 60_000;
        let alone = Alone::start(&world);
        let _slave = alone.slave("one", 1).await;
        let listener = alone.env.listen("other:12346").await.unwrap();
        let config = MasterConfig {
            listen: vec!["backup:12346".to_owned()],
            peers: vec!["other:12346".to_owned()],
            log: "/data/kv_store.log".into(),
            ..MasterConfig::default()
        };
        let node = NodeConfig::Master(MasterKind::Backup, config);
        let never = std::future::pending();
        let _backup = alone.world.start(&alone.machine, "backup", |env| run_node(node, env, never));
        let state = MasterState { active: true, epoch: Epoch(1), seq: Seq(1), active_address: None };
        // The first link is its question before it begins.
        let mut welcomed = Vec::new();
        while welcomed.len() < 2 {
            let (stream, _) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
            let mut link = Link::accepted(stream).await;
            assert!(matches!(link.message().await, Some(Message::Control(Control::Hello(_)))));
            let welcome = Welcome { cluster: None, value_max: 1 << 20, state: state.clone() };
            link.send(&Message::Control(Control::Welcome(welcome))).await;
            welcomed.push(link);
        }
        let mut link = welcomed.pop().expect("there are two");
        let client =
            Client { stream: alone.env.connect("backup:12346").await.unwrap(), input: BytesMut::new() };
        let names: Vec<String> = (0..KEYS).map(|number| format!("key{number}")).collect();
        let words: Vec<&str> = std::iter::once("MGET").chain(names.iter().map(String::as_str)).collect();
        let (many, get) = (client.send(&words), client.send(&["GET", "k"]));
        let sending = async {
            many.await;
            get.await;
        };
        let receiving = async {
            let mut requests = Vec::new();
            while requests.len() < 2 {
                match link.message().await.expect("a request") {
                    Message::Request(request) => requests.push(request.command),
                    other => assert!(matches!(other, Message::Control(_)), "{other:?}"),
                }
            }
            requests
        };
        let ((), requests) = tokio::join!(sending, receiving);
        let keys = names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
        assert!(requests[0] == Command::GetMany { keys }, "another one came first");
        assert_eq!(requests[1], Command::Get { key: Bytes::from_static(b"k") });
    });
}

#[test]
fn a_log_that_is_moved_away_refuses_what_is_not_in_it_and_ends_the_node() {
    for nothing_is_written in [false, true] {
        World::run(1, |world| async move {
            let alone = Alone::start(&world);
            let mut slave = alone.slave("one", 1).await;
            let mut client = alone.client().await;
            client.send(&["SET", "k", "v"]).await;
            slave.write().await.expect("the write");
            slave.ack().await;
            assert_eq!(client.line().await.as_deref(), Some("+OK"));
            // The first of these is at the disk when it happens: nobody knows of it. The others are not executed.
            let log = std::path::Path::new("/data/kv_store.log");
            let moved = Instant::now();
            if nothing_is_written {
                assert!(alone.machine.rename(log, std::path::Path::new("/data/kv_store.log.1")));
            } else {
                // Not the mark after the last one.
                tokio::time::sleep(Duration::from_millis(50)).await;
                alone.machine.fail(1, DiskFault::WriteStalls(100));
                client.send(&["SET", "k", "at-the-disk"]).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert!(alone.machine.rename(log, std::path::Path::new("/data/kv_store.log.1")));
                client.send(&["GET", "k"]).await;
                client.send(&["SET", "k", "later"]).await;
                // What was before may be older than the first of them.
                for word in ["-UNKNOWN ", "-BUSY ", "-READONLY "] {
                    let answer = client.line().await.expect("an answer before the end");
                    assert!(answer.starts_with(word), "{word}: {answer}");
                }
            }
            assert_eq!(client.line().await, None);
            let end = tokio::time::timeout(LIMIT, alone.end).await.unwrap().expect("nobody killed it");
            let Err(NodeError::LogDisplaced { found, .. }) = end else { panic!("{end:?}") };
            assert_eq!(found.stands, Stands::Nothing);
            assert!(moved.elapsed() < Duration::from_millis(1500), "{:?}", moved.elapsed());
            assert!(alone.machine.content(log).is_none(), "no new log is begun");
            drop(slave);
        });
    }
}
