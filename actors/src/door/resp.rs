//! A Redis client's connection.

use super::accounts::load;
use super::admission::check_sizes;
use super::client_standing::ClientStanding;
use super::counters::count;
use super::kept_out::is_denied;
use super::origin::Origin;
use super::session::Coding;
use super::session_guard::{hear, parted, Heard, SessionGuard, UPLOADS_CUT};
use super::Visitor;
use crate::batch::Turns;
use bytes::BytesMut;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::handshake::{AcceptEvent, Accepting};
use dsm_protocol::ids::SessionId;
use dsm_protocol::machine::protected::{Comer, DENIED_TEXT};
use dsm_protocol::resp::{Conversation, Handling, Parsed, Parser, Shape};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// A request of more words than this is checked and handed over in turns of its own, so many words at a time.
const WIDE_ARGS: usize = 4 * 1024;

/// How much of a list of users is written in one turn, in bytes.
const LISTED_BYTES: usize = 64 * 1024;

/// How many steps of a turn judge whether a request is allowed, some nanoseconds each.
const JUDGED_STEPS: usize = 100_000;

/// Serves a Redis client until it leaves.
#[expect(clippy::too_many_lines, reason = "the life of a connection in its order")]
pub(super) async fn redis(
    Visitor { stream, outbox, context, address, permit }: Visitor<'_>,
    mut buffer: BytesMut,
    mut handshake: Accepting,
) -> io::Result<()> {
    let counters = &context.switchboard.gate.counters;
    let id = SessionId(context.switchboard.next_id());
    let guard = SessionGuard::open(context, id, Origin::Resp, outbox);
    let mut parser = Parser::new(context.facts.limits);
    let mut conversation = Conversation::new(id.0, context.facts, Rc::clone(&context.switchboard.accounts))
        .with_addresses(address, stream.local_address())
        .with_descriptor(stream.descriptor())
        .with_view(context.switchboard.view.clone());
    let began = context.env.now();
    let mut own = Vec::new();
    let (env, mut effects) = (&context.env, Vec::new());
    let mut standing = ClientStanding::new(context, permit, handshake.deadline());
    let mut turns = Turns::default();
    loop {
        turns.count().await;
        guard.room(context).await;
        if outbox.is_ended() {
            return Ok(());
        }
        let was_known = standing.is_known;
        let is_known = standing.look(conversation.is_known(), context);
        if is_known && !was_known {
            // Its login was its first request: it has all the time from now on.
            handshake.step(env.now(), AcceptEvent::Request, &mut effects);
        }
        // Those who had to say who they are may be gone, and with them what let it in.
        if standing.has_other_users(context) && is_denied(Comer::Text, &handshake, stream, address, context) {
            guard.say(DENIED_TEXT.as_bytes());
            break;
        }
        if standing.is_overdue(context) {
            count(&counters.handshakes_timed_out);
            return Ok(());
        }
        parser.set_of_stranger(!is_known);
        let args = match parser.next_within(&mut buffer, WIDE_ARGS) {
            Ok(Parsed::Request(args)) => {
                // Who must say who he is has the time of the handshake for that.
                if !handshake.is_known() && is_known {
                    handshake.step(env.now(), AcceptEvent::Request, &mut effects);
                }
                standing.hold(buffer.len() + conversation.queued_bytes());
                args
            }
            Ok(Parsed::Unfinished) => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Parsed::NotWhole) => {
                if !standing.hold(buffer.len() + conversation.queued_bytes()) {
                    log::warn!("connection cut address={address} cause={UPLOADS_CUT:?}");
                    own.clear();
                    own.extend_from_slice(format!("-BUSY {UPLOADS_CUT}\r\n").as_bytes());
                    guard.say(&own);
                    break;
                }
                let need = parser.missing(buffer.len());
                if !handshake.is_known() && is_known {
                    handshake.step(env.now(), AcceptEvent::Bytes(&mut buffer), &mut effects);
                }
                let in_handshake = standing.until().or(handshake.deadline());
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
        count(&counters.commands);
        conversation.set_age(env.now().since(began) / 1000);
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
            Handling::Watch { command } => {
                let coding = Coding::Resp(conversation.protocol(), Shape::Plain);
                guard.session.set_user(conversation.identity());
                if let Some(refusal) = check_sizes(&command, context.config.value_max()) {
                    conversation.watched(&refusal);
                    guard.refuse(coding, &refusal);
                    continue;
                }
                match guard.ask_and_hear(context, coding, command) {
                    // What follows may depend on it.
                    Some(reply) => match reply.await {
                        Ok(reply) => conversation.watched(&reply),
                        Err(_) => break,
                    },
                    None => conversation.watched(&Reply::error(ErrorWord::Busy, "")),
                }
            }
            Handling::AnsweredLate(pause) => {
                permit.wait_for_answer();
                tokio::select! {
                    () = env.pause(pause) => guard.say(&own),
                    () = parted(stream, &guard.session, true) => break,
                }
            }
            Handling::ListUsers(mut listing) => {
                while !listing.write_on(LISTED_BYTES, &mut own) {
                    tokio::task::yield_now().await;
                }
                guard.say(&own);
            }
            Handling::DrawPassword(password) => {
                password.write(|| env.random(), &mut own);
                guard.say(&own);
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
