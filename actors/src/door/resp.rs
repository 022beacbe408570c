//! A Redis client's connection.

use super::accounts::load;
use super::admission::{check_sizes, ConnectionPermit, Unfinished};
use super::counters::count;
use super::kept_out::is_denied;
use super::origin::Origin;
use super::session::Coding;
use super::session_guard::{hear, parted, Heard, SessionGuard, UPLOADS_CUT};
use super::Context;
use crate::batch::{Outbox, Turns};
use crate::env::Stream;
use bytes::BytesMut;
use dsm_protocol::handshake::{AcceptEvent, Accepting};
use dsm_protocol::ids::{Millis, SessionId};
use dsm_protocol::machine::protected::{Comer, DENIED_TEXT};
use dsm_protocol::resp::{Conversation, Handling, Parsed, Parser};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// A request of more words than this is checked and handed over in turns of its own, so many words at a time.
const WIDE_ARGS: usize = 4 * 1024;

/// How much of a list of users is written in one turn, in bytes.
const LISTED_BYTES: usize = 64 * 1024;

/// How many steps of a turn judge whether a request is allowed, some nanoseconds each.
const JUDGED_STEPS: usize = 100_000;

/// How a client stands that may have to say who it is: by when, and with whom it shares the room for what is not whole.
struct Standing<'a> {
    permit: &'a ConnectionPermit,
    unfinished: [Unfinished<'a>; 2],
    is_known: bool,
    /// By when it must say who it is; `None` for one who has, or need not.
    until: Option<Millis>,
    /// By when the handshake must be over.
    handshake_until: Option<Millis>,
    /// Of the users by which protected mode has let it in.
    generation: u64,
}

impl<'a> Standing<'a> {
    fn new(context: &'a Context, permit: &'a ConnectionPermit, handshake_until: Option<Millis>) -> Self {
        let gate = &context.switchboard.gate;
        let unfinished = [gate.unfinished_requests.part(), gate.unfinished_of_strangers.part()];
        let generation = context.switchboard.accounts.generation();
        Standing { permit, unfinished, is_known: true, until: None, handshake_until, generation }
    }

    /// Whether there are other users than when this was asked last.
    fn has_other_users(&mut self, context: &Context) -> bool {
        let generation = context.switchboard.accounts.generation();
        std::mem::replace(&mut self.generation, generation) != generation
    }

    /// Looks whether the client has said who it is. One that is known no more has the time of a handshake again.
    fn look(&mut self, conversation: &mut Conversation, context: &Context) -> bool {
        let is_known = conversation.is_known();
        self.permit.set_known(is_known);
        if is_known != self.is_known {
            self.is_known = is_known;
            for part in &self.unfinished {
                let _ = part.hold(0);
            }
            let again = context.env.now().plus(context.config.handshake_timeout.as_millis() as u64);
            self.until = (!is_known).then(|| self.handshake_until.take().unwrap_or(again));
        }
        is_known
    }

    fn until(&self) -> Option<Millis> {
        self.until
    }

    fn is_overdue(&self, context: &Context) -> bool {
        self.until.is_some_and(|until| until <= context.env.now())
    }

    /// Notes how much its buffer holds; whether it may go on.
    fn hold(&self, bytes: usize) -> bool {
        let [of_known, of_strangers] = &self.unfinished;
        if self.is_known { of_known } else { of_strangers }.hold(bytes)
    }
}

/// Serves a Redis client until it leaves.
#[expect(clippy::too_many_lines, reason = "the life of a connection in its order")]
pub(super) async fn redis(
    stream: &Stream,
    mut buffer: BytesMut,
    mut handshake: Accepting,
    outbox: &Outbox,
    context: &Context,
    address: &str,
    permit: &ConnectionPermit,
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
    let mut standing = Standing::new(context, permit, handshake.deadline());
    let mut turns = Turns::default();
    loop {
        turns.count().await;
        guard.room(context).await;
        if outbox.is_ended() {
            return Ok(());
        }
        let was_known = standing.is_known;
        let is_known = standing.look(&mut conversation, context);
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
                standing.hold(buffer.len());
                args
            }
            Ok(Parsed::Unfinished) => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Parsed::NotWhole) => {
                if !standing.hold(buffer.len()) {
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
