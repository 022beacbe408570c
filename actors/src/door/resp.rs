//! A Redis client's connection.

use super::accounts::load;
use super::admission::check_sizes;
use super::counters::count;
use super::origin::Origin;
use super::session::Coding;
use super::session_guard::{hear, parted, Heard, SessionGuard, UPLOADS_CUT};
use super::Context;
use crate::batch::{Outbox, Turns};
use crate::env::Stream;
use bytes::BytesMut;
use dsm_protocol::handshake::{AcceptEvent, Accepting};
use dsm_protocol::ids::SessionId;
use dsm_protocol::resp::{Conversation, Handling, Parsed, Parser};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// A request of more words than this is checked and handed over in turns of its own, so many words at a time.
const WIDE_ARGS: usize = 4 * 1024;

/// How many steps of a turn judge whether a request is allowed, some nanoseconds each.
const JUDGED_STEPS: usize = 100_000;

/// Serves a Redis client until it leaves.
#[expect(clippy::too_many_lines, reason = "the life of a connection in its order")]
pub(super) async fn redis(
    stream: &Stream,
    mut buffer: BytesMut,
    mut handshake: Accepting,
    outbox: &Outbox,
    context: &Context,
    address: &str,
) -> io::Result<()> {
    let counters = &context.switchboard.gate.counters;
    let id = SessionId(context.switchboard.next_id());
    let guard = SessionGuard::open(context, id, Origin::Resp, outbox);
    let mut parser = Parser::new(context.facts.limits);
    let mut conversation = Conversation::new(id.0, context.facts, Rc::clone(&context.switchboard.accounts))
        .with_addresses(address, "");
    let mut own = Vec::new();
    let unfinished = context.switchboard.gate.unfinished_requests.part();
    let (env, mut effects) = (&context.env, Vec::new());
    let mut turns = Turns::default();
    loop {
        turns.count().await;
        guard.room(context).await;
        if outbox.is_ended() {
            return Ok(());
        }
        parser.set_of_stranger(!conversation.is_known());
        let args = match parser.next_within(&mut buffer, WIDE_ARGS) {
            Ok(Parsed::Request(args)) => {
                // Who must say who he is has the time of the handshake for that.
                if !handshake.is_known() && conversation.is_known() {
                    handshake.step(env.now(), AcceptEvent::Request, &mut effects);
                }
                unfinished.hold(buffer.len());
                args
            }
            Ok(Parsed::Unfinished) => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Parsed::NotWhole) => {
                if !unfinished.hold(buffer.len()) {
                    log::warn!("connection cut address={address} cause={UPLOADS_CUT:?}");
                    own.clear();
                    own.extend_from_slice(format!("-BUSY {UPLOADS_CUT}\r\n").as_bytes());
                    guard.say(&own);
                    break;
                }
                let need = parser.missing(buffer.len());
                if !handshake.is_known() && conversation.is_known() {
                    handshake.step(env.now(), AcceptEvent::Bytes(&mut buffer), &mut effects);
                }
                let in_handshake = handshake.deadline();
                let patience = match in_handshake {
                    Some(until) => Some(Duration::from_millis(until.since(env.now()))),
                    None => guard.patience(context),
                };
                let parted = parted(stream, &guard.session, buffer.is_empty());
                let heard = tokio::select! {
                    biased;
                    heard = hear(stream, &mut buffer, need, patience, &guard) => heard?,
                    () = parted => break,
                };
                match heard {
                    Heard::More => outbox.note_sends(),
                    Heard::End => break,
                    Heard::Nothing => {
                        count(match in_handshake {
                            Some(_) => &counters.handshakes_timed_out,
                            None => &counters.idle_closed,
                        });
                        return Ok(());
                    }
                }
                continue;
            }
            Err(error) => {
                count(&counters.protocol_errors);
                own.clear();
                error.encode(&mut own);
                guard.say(&own);
                break;
            }
        };
        let is_wide = args.len() > WIDE_ARGS;
        if is_wide {
            tokio::task::yield_now().await;
        }
        // Where nobody is refused anything, that is one step.
        while !conversation.judge(&args, JUDGED_STEPS) {
            tokio::task::yield_now().await;
        }
        own.clear();
        let action = conversation.handle(args, &mut own);
        if is_wide {
            tokio::task::yield_now().await;
        }
        match action {
            Handling::Answered => guard.say(&own),
            Handling::Ask { command, shape } => {
                let coding = Coding::Resp(conversation.protocol(), shape);
                guard.session.set_user(conversation.identity());
                match check_sizes(&command, context.config.value_max()) {
                    None => guard.ask(context, coding, command),
                    Some(refusal) => guard.refuse(coding, &refusal),
                }
            }
            Handling::AnsweredLate(pause) => {
                tokio::select! {
                    () = env.pause(pause) => guard.say(&own),
                    () = parted(stream, &guard.session, true) => break,
                }
            }
            Handling::LoadUsers => guard.say(&load(context).await),
            Handling::AnsweredAndClose => {
                guard.say(&own);
                break;
            }
            Handling::Close => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    guard.hear_out(context).await;
    Ok(())
}
