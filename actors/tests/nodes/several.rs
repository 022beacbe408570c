//! A standby with links to two other masters, which the test plays, over a log in memory: one that is a file takes one. `trio.rs`
//! has three whole masters.

use crate::master::Client;
use crate::peer::{Link, CLUSTER, LIMIT};
use bytes::{Bytes, BytesMut};
use dsm::config::{MasterConfig, MasterKind};
use dsm::env::sim::{Process, World};
use dsm::env::{Env, Listener};
use dsm::journal::memory::MemoryLog;
use dsm::journal::JournalKind;
use dsm::node::run_master;
use dsm_protocol::command::{Command, Reply};
use dsm_protocol::ids::{Epoch, Seq};
use dsm_protocol::message::{Control, MasterState, Message, Request, Welcome};
use std::future::pending;
use std::time::Duration;
use tokio::time::Instant;

const STANDBY: &str = "standby:12346";
const ONE: &str = "one:1";
const TWO: &str = "two:2";

/// The standby, and the other ends of its links.
struct Trio {
    env: Env,
    _standby: Process,
    one: Link,
    two: Link,
}

fn state(active: bool, epoch: u64) -> MasterState {
    MasterState { active, epoch: Epoch(epoch), seq: Seq(epoch), active_address: None }
}

/// Takes a link of the standby's that stays: the first one is its question before it begins.
async fn welcomed(listener: &Listener, state: MasterState) -> Link {
    let mut last = None;
    for _ in 0..2 {
        let (stream, _) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        let mut link = Link::accepted(stream).await;
        assert!(matches!(link.message().await, Some(Message::Control(Control::Hello(_)))));
        let welcome = Welcome { cluster: Some(CLUSTER), value_max: 1 << 20, state: state.clone() };
        link.send(&Message::Control(Control::Welcome(welcome))).await;
        last = Some(link);
    }
    last.expect("there were two")
}

impl Trio {
    /// The first of the others serves.
    async fn start(world: &World) -> Trio {
        let env = world.env(&world.machine("others"), "others");
        let (one, two) = (env.listen(ONE).await.unwrap(), env.listen(TWO).await.unwrap());
        let config = MasterConfig {
            listen: vec![STANDBY.to_owned()],
            peers: vec![ONE.to_owned(), TWO.to_owned()],
            ..MasterConfig::default()
        };
        let journal = JournalKind::Memory(MemoryLog::default());
        let machine = world.machine("standby");
        let (standby, _) = world.start(&machine, "standby", |env| {
            run_master(MasterKind::Backup, config, journal, env, pending())
        });
        let (one, two) = tokio::join!(welcomed(&one, state(true, 1)), welcomed(&two, state(false, 1)));
        let trio = Trio { env, _standby: standby, one, two };
        trio.leads(ONE).await;
        trio
    }

    async fn client(&self) -> Client {
        Client { stream: self.env.connect(STANDBY).await.unwrap(), input: BytesMut::new() }
    }

    /// Waits until the standby takes this one for the master that serves.
    async fn leads(&self, address: &str) {
        let begun = Instant::now();
        loop {
            let mut client = self.client().await;
            client.send(&["INFO"]).await;
            if client.bulk().await.contains(&format!("active_master:{address}")) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{address} does not lead");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The second one serves from now on.
    async fn reign_moves(&self) {
        self.two.send(&Message::Control(Control::MasterState(state(true, 2)))).await;
        self.leads(TWO).await;
    }
}

/// The next request that is forwarded over a link.
async fn request(link: &mut Link) -> Request {
    loop {
        match link.message().await.expect("the link stands") {
            Message::Request(request) => return request,
            Message::Control(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn answer(link: &Link, request: &Request, reply: Reply) {
    link.send(&Message::Response { id: request.id, reply }).await;
}

#[test]
fn the_end_of_a_link_makes_only_what_was_sent_over_it_unknown() {
    World::run(1, |world| async move {
        let mut trio = Trio::start(&world).await;
        let (mut first, mut second) = (trio.client().await, trio.client().await);
        first.send(&["SET", "a", "1"]).await;
        request(&mut trio.one).await;
        trio.reign_moves().await;
        second.send(&["SET", "b", "2"]).await;
        let held = request(&mut trio.two).await;
        drop(trio.one);
        let lost = first.line().await.expect("an answer");
        assert!(lost.starts_with("-UNKNOWN"), "{lost}");
        assert_eq!(first.line().await, None, "a request after an unknown write would be executed");
        answer(&trio.two, &held, Reply::Done).await;
        assert_eq!(second.line().await.as_deref(), Some("+OK"));
    });
}

#[test]
fn a_late_answer_of_the_master_that_served_before_reaches_its_client_and_lets_the_next_request_go() {
    World::run(1, |world| async move {
        let mut trio = Trio::start(&world).await;
        let (mut first, second) = (trio.client().await, trio.client().await);
        first.send(&["SET", "a", "1"]).await;
        let write = request(&mut trio.one).await;
        trio.reign_moves().await;
        first.send(&["GET", "a"]).await;
        second.send(&["GET", "b"]).await;
        // The read of the first client may not overtake its write; the second client has nothing to do with that.
        let other = request(&mut trio.two).await;
        assert_eq!(other.command, Command::Get { key: Bytes::from_static(b"b") });
        answer(&trio.one, &write, Reply::Done).await;
        assert_eq!(first.line().await.as_deref(), Some("+OK"));
        let read = request(&mut trio.two).await;
        assert_eq!(read.command, Command::Get { key: Bytes::from_static(b"a") });
        answer(&trio.two, &read, Reply::Value(Bytes::from_static(b"1"))).await;
        assert_eq!(first.bulk().await, "1");
    });
}
