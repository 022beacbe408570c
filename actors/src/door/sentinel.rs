//! A connection to the Sentinel of a master. What it answers is `dsm_protocol::resp::sentinel`'s; here are the socket and the
//! bounds.
//!
//! It takes part in the limits of all connections (`--max-connections`, logins, protected mode, `--idle-timeout` unless it has
//! subscribed). No request of it reaches the master.

use super::client_standing::ClientStanding;
use super::counters::count;
use super::kept_out::is_denied;
use super::session_guard::UPLOADS_CUT;
use super::Visitor;
use crate::batch::{Outbox, Turns};
use crate::env::Stream;
use crate::reading::read_more;
use bytes::BytesMut;
use dsm_protocol::handshake::{AcceptEvent, Accepting};
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::protected::{Comer, DENIED_TEXT};
use dsm_protocol::resp::sentinel::{sentinel_limits, SentinelFacts, SentinelTalk};
use dsm_protocol::resp::{Args, Conversation, Handling, Parsed, Parser};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::futures::Notified;

/// A connection that has not taken so many bytes of answers is not heard until it has. `--write-timeout` ends one that takes none.
const UNREAD_BYTES_MAX: usize = 64 * 1024;

/// How a wait for a connection may end.
enum Next {
    /// There may be a request, or something to be told.
    Look,
    /// The other side has ended.
    End,
    /// Nothing came in time.
    Silence,
}

/// Serves a client that asks who serves, until it leaves.
pub(super) async fn sentinel(
    visitor: Visitor<'_>,
    buffer: BytesMut,
    handshake: Accepting,
    facts: &Rc<SentinelFacts>,
) -> io::Result<()> {
    let Visitor { stream, context, address, permit, .. } = visitor;
    let board = &context.switchboard;
    let conversation = Conversation::new(board.next_id(), context.facts, Rc::clone(&board.accounts))
        .with_addresses(address, stream.local_address())
        .with_descriptor(stream.descriptor());
    let mut asking = Asking {
        visitor,
        talk: SentinelTalk::new(Rc::clone(facts), conversation, board.view.clone()),
        parser: Parser::new(sentinel_limits()),
        standing: ClientStanding::new(context, permit, handshake.deadline()),
        began: context.env.now(),
        buffer,
        handshake,
    };
    let mut turns = Turns::default();
    loop {
        turns.count().await;
        visitor.outbox.drained_to(UNREAD_BYTES_MAX).await;
        if visitor.outbox.is_ended() || !asking.turn().await? {
            return Ok(());
        }
    }
}

/// A connection to a Sentinel.
struct Asking<'a> {
    visitor: Visitor<'a>,
    talk: SentinelTalk,
    parser: Parser,
    standing: ClientStanding<'a>,
    began: Millis,
    buffer: BytesMut,
    handshake: Accepting,
}

impl Asking<'_> {
    /// Tells what there is to be told, and answers a request or waits for one; whether the connection goes on.
    async fn turn(&mut self) -> io::Result<bool> {
        let Visitor { outbox, context, .. } = self.visitor;
        let counters = &context.switchboard.gate.counters;
        // Before the look: what changes after that wakes it.
        let changed = context.switchboard.view_changed.notified();
        let is_known = self.standing.look(self.talk.conversation().is_known(), context);
        if !self.is_let_in() {
            return Ok(false);
        }
        if is_known {
            say(outbox, |out| self.talk.look(out));
        }
        self.parser.set_of_stranger(!is_known);
        match self.parser.next_within(&mut self.buffer, usize::MAX) {
            Ok(Parsed::Request(args)) => {
                if !self.handshake.is_known() && is_known {
                    self.handshake.step(context.env.now(), AcceptEvent::Request, &mut Vec::new());
                }
                self.standing.hold(self.buffer.len());
                Ok(self.answer(args).await)
            }
            Ok(Parsed::Unfinished) => Ok(true),
            Ok(Parsed::NotWhole) if !self.standing.hold(self.buffer.len()) => {
                say(outbox, |out| out.extend_from_slice(format!("-BUSY {UPLOADS_CUT}\r\n").as_bytes()));
                Ok(false)
            }
            Ok(Parsed::NotWhole) => {
                if !self.handshake.is_known() && is_known {
                    let event = AcceptEvent::Bytes(&mut self.buffer);
                    self.handshake.step(context.env.now(), event, &mut Vec::new());
                }
                self.wait(changed).await
            }
            Err(error) => {
                count(&counters.protocol_errors);
                say(outbox, |out| error.encode(out));
                Ok(false)
            }
        }
    }

    /// Whether it may stay: there may be other users than when it came, and its time for a login may be over.
    fn is_let_in(&mut self) -> bool {
        let Visitor { stream, outbox, context, address, .. } = self.visitor;
        let is_asked_again = self.standing.has_other_users(context);
        if is_asked_again && is_denied(Comer::Text, &self.handshake, stream, address, context) {
            say(outbox, |out| out.extend_from_slice(DENIED_TEXT.as_bytes()));
            return false;
        }
        let is_overdue = self.standing.is_overdue(context);
        if is_overdue {
            count(&context.switchboard.gate.counters.handshakes_timed_out);
        }
        !is_overdue
    }

    /// Waits for bytes, or for another view; whether the connection goes on.
    async fn wait(&mut self, changed: Notified<'_>) -> io::Result<bool> {
        let Visitor { stream, outbox, context, .. } = self.visitor;
        let counters = &context.switchboard.gate.counters;
        let need = self.parser.missing(self.buffer.len());
        let in_handshake = self.standing.until().or(self.handshake.deadline());
        let idle = context.config.idle_timeout;
        let patience = match in_handshake {
            Some(until) => Some(Duration::from_millis(until.since(context.env.now()))),
            None => Some(idle).filter(|idle| !idle.is_zero() && !self.talk.is_subscribed()),
        };
        let next = tokio::select! {
            biased;
            next = hear(stream, &mut self.buffer, need, patience) => next?,
            () = changed => Next::Look,
        };
        match next {
            Next::Look => outbox.note_sends(),
            Next::End => return Ok(false),
            Next::Silence => {
                let closed = if in_handshake.is_some() {
                    &counters.handshakes_timed_out
                } else {
                    &counters.idle_closed
                };
                count(closed);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Answers one request; whether the connection goes on.
    async fn answer(&mut self, args: Args) -> bool {
        let Visitor { outbox, context, permit, .. } = self.visitor;
        count(&context.switchboard.gate.counters.commands);
        self.talk.conversation().set_age(context.env.now().since(self.began) / 1000);
        let mut out = Vec::new();
        let goes_on = match self.talk.handle(args, &mut out) {
            Handling::Answered => true,
            Handling::AnsweredLate(pause) => {
                permit.wait_for_answer();
                context.env.pause(pause).await;
                true
            }
            Handling::AnsweredAndClose => false,
            Handling::Close => return false,
            // Those commands are not of this port.
            Handling::Ask { .. }
            | Handling::Watch { .. }
            | Handling::ListUsers(_)
            | Handling::DrawPassword(_)
            | Handling::LoadUsers => {
                out.extend_from_slice(b"-ERR a Sentinel does not know this command\r\n");
                true
            }
        };
        say(outbox, |told| told.extend_from_slice(&out));
        goes_on
    }
}

/// Sends what `write` appends, if it is anything.
fn say(outbox: &Outbox, write: impl FnOnce(&mut Vec<u8>)) {
    let mut out = Vec::new();
    write(&mut out);
    if !out.is_empty() {
        outbox.append(|told| told.extend_from_slice(&out));
    }
}

async fn hear(
    stream: &Stream,
    buffer: &mut BytesMut,
    need: usize,
    patience: Option<Duration>,
) -> io::Result<Next> {
    let reading = read_more(stream, buffer, need);
    let more = match patience {
        None => reading.await?,
        Some(patience) => match tokio::time::timeout(patience, reading).await {
            Ok(more) => more?,
            Err(_) => return Ok(Next::Silence),
        },
    };
    Ok(if more { Next::Look } else { Next::End })
}

#[cfg(test)]
mod tests {
    use super::super::test_kit::{connected, deaf_master};
    use super::*;
    use crate::config::MasterConfig;
    use crate::door::Context;
    use dsm_protocol::handshake::greet;
    use dsm_protocol::message::{Hello, HelloRole};
    use dsm_protocol::serving_view::ServingView;

    /// What serves the Sentinel's port of a master that does nothing.
    fn context(config: MasterConfig) -> Context {
        deaf_master(config).0.at_sentinel()
    }

    fn serves(context: &Context, master: &str) {
        let view = ServingView { master: Some(master.to_owned()), is_served: true, ..ServingView::default() };
        context.switchboard.view.set(view);
        context.switchboard.view_changed.notify_waiters();
    }

    /// Reads until the text ends so.
    async fn hears(stream: &Stream, end: &str) -> String {
        let mut heard = BytesMut::new();
        while !heard.ends_with(end.as_bytes()) {
            assert!(stream.read(&mut heard).await.unwrap() > 0, "it ends with {heard:?}");
        }
        String::from_utf8_lossy(&heard).into_owned()
    }

    #[actix::test]
    async fn a_subscriber_is_told_of_a_takeover_without_asking() {
        let context = context(MasterConfig::default());
        serves(&context, "10.0.0.1:1");
        let (far, _served) = connected(&context).await;
        far.write_all(b"SUBSCRIBE +switch-master\r\n").await.unwrap();
        hears(&far, ":1\r\n").await;
        serves(&context, "10.0.0.2:2");
        let told = hears(&far, "dsm 10.0.0.1 1 10.0.0.2 2\r\n").await;
        assert!(told.starts_with("*3\r\n$7\r\nmessage\r\n"), "{told}");
    }

    #[actix::test]
    async fn who_reads_nothing_is_not_heard_until_he_does() {
        let context = context(MasterConfig::default());
        let (far, _served) = connected(&context).await;
        let far = Rc::new(far);
        // Much more than the sockets hold.
        const PINGS: usize = 64 * 1024;
        let asking = Rc::clone(&far);
        let request = format!("PING {}\r\n", "x".repeat(1000));
        let asked = actix::spawn(async move {
            for _ in 0..PINGS {
                asking.write_all(request.as_bytes()).await.unwrap();
            }
        });
        let answers = &context.switchboard.answers;
        while answers.len() < UNREAD_BYTES_MAX {
            tokio::task::yield_now().await;
        }
        let most = 2 * UNREAD_BYTES_MAX;
        for _ in 0..10_000 {
            assert!(answers.len() < most, "{} bytes of answers wait", answers.len());
            tokio::task::yield_now().await;
        }
        // Then all of them are answered.
        let (mut heard, mut buffer) = (0, BytesMut::new());
        while heard < PINGS * (7 + 1000 + 2) {
            heard += far.read(&mut buffer).await.unwrap();
            buffer.clear();
        }
        asked.await.unwrap();
    }

    #[actix::test]
    async fn a_slave_a_master_or_a_native_client_is_sent_away() {
        let context = context(MasterConfig::default());
        let (far, _served) = connected(&context).await;
        let mut hello = Vec::new();
        greet(Hello { cluster: None, role: HelloRole::Client }, &mut hello);
        far.write_all(&hello).await.unwrap();
        let mut heard = BytesMut::new();
        while far.read(&mut heard).await.unwrap() > 0 {}
        let text = String::from_utf8_lossy(&heard);
        assert!(text.contains("this is the port of a Sentinel"), "{text}");
    }
}
