//! A master that does nothing by itself, for the tests of the door.

use super::admission::Gate;
use super::connection::connection;
use super::heard::Said;
use super::session::AnswerPool;
use super::switchboard::{Arrived, Drain, Switchboard};
use super::{server_facts, Context};
use crate::batch::{Inbox, Outbox};
use crate::config::MasterConfig;
use crate::env::Stream;
use crate::journal::JournalKind;
use crate::turns::TurnLengths;
use actix::prelude::{Actor, Context as ActorContext, Handler};
use dsm_protocol::handshake::greet;
use dsm_protocol::ids::LinkId;
use dsm_protocol::message::{Hello, HelloRole};
use std::cell::Cell;
use std::rc::Rc;
use tokio::task::JoinHandle;

struct Drains;

impl Actor for Drains {
    type Context = ActorContext<Self>;
}

impl Handler<Drain> for Drains {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
}

/// A master that does nothing until the test takes what is in its inbox.
pub(super) fn deaf_master(config: MasterConfig) -> (Context, Inbox<Arrived>) {
    let inbox = Inbox::default();
    let env = crate::env::real::RealEnv::new();
    let turns = TurnLengths::new(Rc::clone(&env));
    let (answers, drain) = (AnswerPool::new(usize::MAX), Drains.start().recipient());
    let board = Switchboard::new(
        inbox.clone(),
        drain,
        Gate::new(&config, turns.timings()),
        answers,
        turns,
        Rc::default(),
    );
    let facts = server_facts(&config);
    let secrets = Rc::new(config.open_secrets().unwrap());
    let (config, switchboard) = (Rc::new(config), Rc::new(board));
    (
        Context { env, facts, config, journal: JournalKind::default(), secrets, switchboard, sentinel: None },
        inbox,
    )
}

/// What a slave says of itself.
pub(super) fn hello_of_slave() -> HelloRole {
    HelloRole::Slave {
        id: dsm_protocol::ids::SlaveId::new("one").unwrap(),
        incarnation: dsm_protocol::ids::Incarnation(1),
        seen: None,
        room_bytes: u64::MAX,
    }
}

/// A connection to that master: the test's end of it, and the task that serves it.
pub(super) async fn connected(context: &Context) -> (Stream, JoinHandle<()>) {
    connected_from(context, None).await
}

/// The same, which seems to come from this address.
pub(super) async fn connected_from(context: &Context, from: Option<&str>) -> (Stream, JoinHandle<()>) {
    let listener = context.env.listen("127.0.0.1:0").await.unwrap();
    let far = context.env.connect(&listener.local_address().unwrap()).await.unwrap();
    let (near, address) = listener.accept().await.unwrap();
    let address = from.map_or(address, str::to_owned);
    let theirs = context.clone();
    let served = actix::spawn(async move {
        let kind = Cell::new("link");
        let turns = Rc::clone(&theirs.switchboard.turns);
        let permit = theirs.switchboard.gate.connect(false).expect("there is room");
        turns.watch(&kind, connection(near, address, theirs.clone(), &kind, &permit)).await;
    });
    (far, served)
}

/// A connection of a slave to that master: the test's end of it, its link, the master's outbox for it, and the mark that its
/// HELLO is not handled yet.
pub(super) async fn slave_of(context: &Context, inbox: &Inbox<Arrived>) -> (Stream, LinkId, Outbox, Said) {
    let (far, _served) = connected(context).await;
    let role = hello_of_slave();
    let mut out = Vec::new();
    greet(Hello { cluster: None, role }, &mut out);
    far.write_all(&out).await.unwrap();
    let mut arrived = Vec::new();
    while arrived.is_empty() {
        tokio::task::yield_now().await;
        inbox.take(&mut arrived);
    }
    match arrived.pop() {
        Some(Arrived::SlaveHello { link, outbox, said, .. }) => (far, link, outbox, said),
        other => panic!("{other:?}"),
    }
}
