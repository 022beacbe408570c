//! The listening socket: slaves, clients and the other master share one port. A panic in a connection's task ends that
//! connection only.

use super::connection::connection;
use super::counters::count;
use super::kept_out::is_stranger;
use super::Context;
use crate::env::{Listener, Stream};
use crate::supervision::{Fate, TaskGuard};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long the acceptor rests when the system has no file descriptor left.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A node that stops closes its port once no connection has come for this long.
const ACCEPT_LAST: Duration = Duration::from_millis(2);

/// Accepts connections until the node ends, and then waits until the open ones have ended. Dropping this future cuts
/// all of them off.
pub(crate) async fn accept(listener: Listener, context: Context, fate: Fate) {
    let _guard = TaskGuard::new("the acceptor", fate.clone());
    let mut connections = JoinSet::new();
    accept_into(&mut connections, &listener, &context, &fate).await;
    // The port is freed before the last answers have left.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept_into(connections: &mut JoinSet<()>, listener: &Listener, context: &Context, fate: &Fate) {
    let counters = &context.switchboard.gate.counters;
    // One line each time the descriptors run out; INFO counts the failed accepts.
    let mut told = false;
    while !fate.is_decided() && !context.switchboard.stopping.get() {
        let accepted = tokio::select! {
            biased;
            () = context.switchboard.stop.notified() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a connection that was gone before it was accepted: both are temporary.
                count(&counters.accept_errors);
                if !std::mem::replace(&mut told, true) {
                    log::warn!("connections are not accepted for now, retrying error={error}");
                }
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        told = false;
        take_in(connections, stream, address, context);
    }
    // Connections that the kernel has queued are accepted before the port is closed: else the kernel would reset them.
    while let Ok(Ok((stream, address))) = tokio::time::timeout(ACCEPT_LAST, listener.accept()).await {
        take_in(connections, stream, address, context);
    }
}

/// Serves a connection, or refuses it when the limit is reached.
fn take_in(connections: &mut JoinSet<()>, stream: Stream, address: String, context: &Context) {
    stream.keep_alive(context.config.tcp_keepalive);
    stream.show_progress();
    let is_stranger = is_stranger(&stream, &address, context);
    let Some(permit) = context.switchboard.gate.connect(is_stranger) else {
        connections.spawn_local(refuse(stream));
        return;
    };
    let context = context.clone();
    connections.spawn_local(async move {
        let kind = Cell::new("connection");
        let turns = Rc::clone(&context.switchboard.turns);
        let serving = turns.watch(&kind, connection(stream, address, context, &kind, &permit));
        tokio::select! {
            biased;
            () = permit.taken_back() => {}
            () = serving => {}
        }
    });
}

/// Says why, in Redis' words, and closes.
async fn refuse(stream: Stream) {
    let said = stream.write_all(b"-ERR max number of clients reached\r\n");
    let _ = tokio::time::timeout(Duration::from_millis(100), said).await;
    stream.shut_down_write();
}
