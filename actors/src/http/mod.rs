//! The HTTP port of a node, `--http`: whether it lives and is ready, what it sees of itself, its numbers for Prometheus, and a page
//! for people.
//!
//! Owns the connections to that port, and their bounds. Everything is read only, nothing here changes the node. What is told is
//! asked of the node's actor by one message ([`AskNode`]), so that an answer also shows that the actor runs.
//!
//! hyper parses and encodes, over a stream of [`crate::env`]: so TLS, its certificates and who may come from where are the same as
//! at the other ports, and the port lives on the node's one thread. actix-web would open a thread for each worker and wants the
//! sockets for itself.
//!
//! | file | is |
//! |---|---|
//! | `carrier` | the bytes between a stream and hyper, and how long a connection may last |
//! | `guard` | who may see what |
//! | `routes` | the paths, and the answers |
//! | `status`, `metrics` | the answers in JSON, and in the form of Prometheus |
//! | `page.html`, `events`, `history` | the page, what it is told each second, and of the last ten minutes |

mod carrier;
mod events;
mod guard;
mod history;
mod metrics;
mod routes;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use guard::Guard;

use crate::env::{Env, Listener, Stream};
use crate::supervision::{Fate, TaskGuard};
use crate::told::{AskNode, NodeTold};
use crate::turns::TurnLengths;
use actix::Recipient;
use carrier::ConnectionLife;
use history::NodeHistory;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;

/// The most connections at once; further ones are closed.
pub(crate) const CONNECTIONS_MAX: usize = 64;

/// How long the acceptor rests when the system has no file descriptor left.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// How long the node's actor may take to answer: one that takes longer counts as hung.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// What the port needs of its node.
pub(crate) struct HttpHost {
    env: Env,
    /// The node's actor.
    look: Recipient<AskNode>,
    guard: Guard,
    turns: Rc<TurnLengths>,
    history: NodeHistory,
    /// Streams of events that are open.
    streams: Cell<usize>,
}

impl HttpHost {
    pub(crate) fn new(env: &Env, look: Recipient<AskNode>, guard: Guard, turns: &Rc<TurnLengths>) -> Self {
        HttpHost {
            env: Rc::clone(env),
            look,
            guard,
            turns: Rc::clone(turns),
            history: NodeHistory::default(),
            streams: Cell::new(0),
        }
    }

    /// What the node sees of itself; `None` if its actor does not answer in time.
    async fn look(&self) -> Option<NodeTold> {
        let asked = self.look.send(AskNode);
        tokio::time::timeout(LOOK_TIMEOUT, asked).await.ok()?.ok()
    }
}

/// Serves the HTTP port for as long as what this gives lives. Its end delays no end of the node.
pub(crate) fn keep(listener: Option<Listener>, host: impl FnOnce() -> HttpHost, fate: &Fate) -> JoinSet<()> {
    let mut keeping = JoinSet::new();
    if let Some(listener) = listener {
        let address = listener.local_address().unwrap_or_default();
        log::info!("listening for HTTP address={address}");
        let host = Rc::new(host());
        keeping.spawn_local(history::sample(Rc::clone(&host)));
        keeping.spawn_local(history::watch(Rc::clone(&host)));
        keeping.spawn_local(accept(listener, host, fate.clone()));
    }
    keeping
}

async fn accept(listener: Listener, host: Rc<HttpHost>, fate: Fate) {
    let _guard = TaskGuard::new("the HTTP port", fate);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) if connections.len() < CONNECTIONS_MAX => {
                connections.spawn_local(serve(stream, peer, Rc::clone(&host)));
            }
            // One that asks again finds a place: none is held for long.
            Ok((stream, _)) => drop(stream),
            // Out of descriptors, or a connection that was gone before it was accepted: both are temporary.
            Err(_) => tokio::time::sleep(ACCEPT_REST).await,
        }
    }
}

async fn serve(stream: Stream, peer: String, host: Rc<HttpHost>) {
    let kind = Cell::new("http");
    let life = ConnectionLife::new();
    let answered = |request| routes::answer(request, (&stream, &peer), &host, &life);
    let carried = carrier::carry(&stream, &life, answered);
    Rc::clone(&host.turns).watch(&kind, carried).await;
}
