//! `SlaveActor` against scripted masters: real sockets, real frames, no cluster.

#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use dsm::config::SlaveConfig;
use dsm::embed::{start_slave, SlaveNode};
use dsm::env::real::RealEnv;
use dsm_protocol::frame;
use dsm_protocol::ids::{ClusterId, Epoch, Seq, SlaveId, Version};
use dsm_protocol::message::{Control, HelloRole, MasterState, Message, Welcome};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long an answer may take before the test has failed.
const LIMIT: Duration = Duration::from_secs(10);

const CLUSTER: ClusterId = ClusterId(7);

struct FakeMaster {
    listener: TcpListener,
    address: String,
}

impl FakeMaster {
    async fn new() -> FakeMaster {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        FakeMaster { listener, address }
    }

    /// Takes the slave's link and welcomes it to `cluster`.
    async fn accept(&self, cluster: ClusterId) -> Link {
        let (stream, _) = tokio::time::timeout(LIMIT, self.listener.accept()).await.unwrap().unwrap();
        let mut link = Link { stream, input: BytesMut::new() };
        while link.input.len() < frame::PREFACE.len() {
            link.stream.read_buf(&mut link.input).await.unwrap();
        }
        let _ = link.input.split_to(frame::PREFACE.len());
        let Some(Message::Control(Control::Hello(hello))) = link.message().await else { panic!("no HELLO") };
        let HelloRole::Slave { id, .. } = hello.role else { panic!("{hello:?}") };
        assert_eq!(id.as_str(), "one");
        let state = MasterState { active: true, epoch: Epoch(1), seq: Seq(1), active_address: None };
        let welcome = Welcome { cluster: Some(cluster), value_max: 1 << 20, state };
        link.send(&Message::Control(Control::Welcome(welcome))).await;
        link
    }
}

struct Link {
    stream: TcpStream,
    input: BytesMut,
}

impl Link {
    /// The next message; `None` when the slave has closed the link.
    async fn message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = frame::decode(&mut self.input, 1 << 22).unwrap() {
                return Some(message);
            }
            let reading = self.stream.read_buf(&mut self.input);
            if tokio::time::timeout(LIMIT, reading).await.unwrap().unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn send(&mut self, message: &Message) {
        let mut out = Vec::new();
        frame::encode(message, &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    /// Announces a reign and gives what the slave reports to hold.
    async fn announce(&mut self, epoch: u64) -> Vec<(Bytes, Version)> {
        self.send(&Message::Control(Control::Announce { cluster: CLUSTER, epoch: Epoch(epoch) })).await;
        let enlisted = self.message().await.unwrap();
        assert!(
            matches!(&enlisted, Message::Control(Control::Enlisted { epoch: e, .. }) if e.0 == epoch),
            "{enlisted:?}"
        );
        match self.message().await.unwrap() {
            Message::Control(Control::Holdings { entries, last: true }) => entries,
            other => panic!("{other:?}"),
        }
    }

    async fn write(&mut self, version: Version, key: &'static str, value: &'static str) {
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
        self.send(&Message::Write { version, key, value }).await;
    }
}

fn slave(masters: &[&FakeMaster], max_memory: Option<u64>) -> SlaveNode {
    let config = SlaveConfig {
        masters: masters.iter().map(|master| master.address.clone()).collect(),
        id: Some(SlaveId::new("one").unwrap()),
        max_memory: max_memory.map(bytesize::ByteSize),
        ..SlaveConfig::default()
    };
    start_slave(config, &RealEnv::new()).unwrap()
}

#[actix::test]
async fn writes_are_acknowledged_by_their_number_and_read_at_their_version() {
    let master = FakeMaster::new().await;
    let slave = slave(&[&master], None);
    let mut link = master.accept(CLUSTER).await;
    assert_eq!(link.announce(1).await, []);
    link.write(Version::new(1, 5), "k", "new").await;
    link.write(Version::new(1, 4), "k", "old").await;
    link.send(&Message::Ping).await;
    let mut through = 0;
    while through < 3 {
        match link.message().await.unwrap() {
            Message::Ack { through: now, room_bytes } => {
                assert!(now > through && room_bytes == u64::MAX);
                through = now;
            }
            other => panic!("{other:?}"),
        }
    }
    let key = Bytes::from_static(b"k");
    link.send(&Message::Read { tag: 9, version: Version::new(1, 5), key: key.clone() }).await;
    let value = Bytes::from_static(b"new");
    assert_eq!(link.message().await, Some(Message::Value { tag: 9, version: Version::new(1, 5), value }));
    link.send(&Message::Read { tag: 10, version: Version::new(1, 6), key }).await;
    assert_eq!(link.message().await, Some(Message::Missing { tag: 10, held: Some(Version::new(1, 5)) }));
    slave.stop().await.unwrap();
}

#[actix::test]
async fn a_write_that_does_not_fit_is_refused_before_it_is_acknowledged() {
    let master = FakeMaster::new().await;
    let slave = slave(&[&master], Some(120));
    let mut link = master.accept(CLUSTER).await;
    link.announce(1).await;
    link.write(Version::new(1, 2), "k", "0123456789012345678901234567890123456789").await;
    assert_eq!(link.message().await, Some(Message::Control(Control::Full { number: 1 })));
    assert_eq!(link.message().await, Some(Message::Ack { through: 1, room_bytes: 120 }));
    slave.stop().await.unwrap();
}

#[actix::test]
async fn the_master_of_the_latest_reign_is_obeyed_and_the_other_is_told() {
    let (old, new) = (FakeMaster::new().await, FakeMaster::new().await);
    let slave = slave(&[&old, &new], None);
    let mut old_link = old.accept(CLUSTER).await;
    let mut new_link = new.accept(CLUSTER).await;
    old_link.announce(1).await;
    old_link.write(Version::new(1, 2), "k", "v").await;
    assert!(matches!(old_link.message().await, Some(Message::Ack { through: 1, .. })));
    assert_eq!(new_link.announce(2).await, [(Bytes::from_static(b"k"), Version::new(1, 2))]);
    old_link.write(Version::new(1, 3), "k", "late").await;
    assert_eq!(old_link.message().await, Some(Message::Control(Control::Outdated { epoch: Epoch(2) })));
    let key = Bytes::from_static(b"k");
    new_link.send(&Message::Read { tag: 1, version: Version::new(1, 2), key }).await;
    let value = Bytes::from_static(b"v");
    assert_eq!(new_link.message().await, Some(Message::Value { tag: 1, version: Version::new(1, 2), value }));
    slave.stop().await.unwrap();
}

#[actix::test]
async fn a_master_of_another_cluster_is_left() {
    let (first, second) = (FakeMaster::new().await, FakeMaster::new().await);
    let slave = slave(&[&first, &second], None);
    let mut link = first.accept(CLUSTER).await;
    link.announce(1).await;
    let mut stranger = second.accept(ClusterId(8)).await;
    assert_eq!(stranger.message().await, None, "the link to another cluster stands");
    slave.stop().await.unwrap();
}
