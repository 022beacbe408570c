//! A connection that has a session: its place at the master, and how long its client may be silent.

use super::counters::count;
use super::origin::Origin;
use super::session::{Coding, Session};
use super::switchboard::{Arrived, Switchboard};
use super::Context;
use crate::batch::Outbox;
use crate::env::Stream;
use crate::reading::read_more;
use bytes::BytesMut;
use dsm_protocol::command::{Changes, Command, ErrorWord, Reply};
use dsm_protocol::ids::SessionId;
use dsm_protocol::machine::master::Asker;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// What a client hears whose unfinished request is one too many.
pub(super) const UPLOADS_CUT: &str = "too many bytes of unfinished requests";

/// Gives up a session's place at the master, also when its task panics.
pub(super) struct SessionGuard {
    pub(super) switchboard: Rc<Switchboard>,
    pub(super) session: Rc<Session>,
}

impl SessionGuard {
    pub(super) fn open(context: &Context, id: SessionId, origin: Origin, outbox: &Outbox) -> Self {
        let session = Rc::new(Session::new(id, origin, outbox.clone(), &context.switchboard.answers));
        context.switchboard.push(Arrived::Opened(Rc::clone(&session)));
        SessionGuard { switchboard: Rc::clone(&context.switchboard), session }
    }

    /// Asks the master, unless a limit on all requests in flight is reached.
    pub(super) fn ask(&self, context: &Context, coding: Coding, command: Command) {
        #[cfg(feature = "testing")]
        crate::test_hooks::pass(|place| *place == crate::test_hooks::PanicPlace::Session);
        let bytes = command.payload_bytes();
        let gate = &context.switchboard.gate;
        // Whoever looks for the reason of BUSY must not be answered BUSY.
        let permit =
            if command == Command::Status { Some(gate.request_always(bytes)) } else { gate.request(bytes) };
        let Some(permit) = permit else {
            self.refuse(coding, &Reply::error(ErrorWord::Busy, "too many requests in flight"));
            return;
        };
        let is_quick = command.facts().changes == Changes::Nothing;
        let asker =
            Asker { session: self.session.id(), tag: self.session.ask_for(coding, Some(permit), is_quick) };
        context.switchboard.push(Arrived::Request { asker, command });
    }

    /// Refuses a request, which the master is not asked and which takes no permit.
    pub(super) fn refuse(&self, coding: Coding, refusal: &Reply) {
        self.switchboard.errors.note(refusal);
        let tag = self.session.ask(coding, None);
        self.session.answer(tag, refusal);
    }

    /// Sends what the connection says by itself, after what was asked before.
    pub(super) fn say(&self, answer: &[u8]) {
        self.switchboard.errors.note_encoded(answer);
        self.session.say(answer);
    }

    pub(super) async fn room(&self, context: &Context) {
        let config = &context.config;
        let bytes_max = config.max_pipeline_bytes.as_u64() as usize;
        if !self.session.has_room(config.max_pipeline, bytes_max) {
            count(&context.switchboard.gate.counters.reads_paused);
            self.session.room(config.max_pipeline, bytes_max).await;
        }
    }

    /// The client has said all that it wants to say, and still hears the answers. Those that wait for earlier ones to
    /// leave have as long as these take: a client that takes none is cut by the writer.
    pub(super) async fn hear_out(&self, context: &Context) {
        let patience = 2 * context.config.request_timeout;
        loop {
            let before = self.session.in_flight().0;
            if tokio::time::timeout(patience, self.session.all_answered()).await.is_ok() {
                return;
            }
            if self.session.in_flight().0 == before && !self.session.has_unsent() {
                return;
            }
        }
    }

    /// How long the client may be silent.
    pub(super) fn patience(&self, context: &Context) -> Option<Duration> {
        let idle = context.config.idle_timeout;
        (!idle.is_zero()).then_some(idle)
    }

    /// Whether the client waits for an answer.
    pub(super) fn is_waited_for(&self) -> bool {
        self.session.in_flight().0 > 0
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.switchboard.push(Arrived::Closed(self.session.id()));
    }
}

/// Waits until a connection may be closed although its client has not closed it: this master lets its clients go,
/// nothing of this one is unanswered, and no part of a request has arrived.
pub(super) async fn parted(stream: &Stream, session: &Session, is_between_requests: bool) {
    session.let_go_of().await;
    if !is_between_requests {
        std::future::pending::<()>().await;
    }
    stream.hold_back();
    session.may_part().await;
}

/// What a client's read may end in.
pub(super) enum Heard {
    More,
    End,
    /// Nothing came for the idle timeout.
    Nothing,
}

/// Reads more of a client's bytes, for `patience` at most, of which none of the time counts in which it waits for an
/// answer: the request takes as long as it takes, and then the client has all of it again.
pub(super) async fn hear(
    stream: &Stream,
    buffer: &mut BytesMut,
    need: usize,
    patience: Option<Duration>,
    guard: &SessionGuard,
) -> io::Result<Heard> {
    loop {
        let was_waited_for = guard.is_waited_for();
        let reading = read_more(stream, buffer, need);
        let more = match patience {
            None => reading.await?,
            Some(patience) => match tokio::time::timeout(patience, reading).await {
                Ok(more) => more?,
                Err(_) if was_waited_for || guard.is_waited_for() => continue,
                Err(_) => return Ok(Heard::Nothing),
            },
        };
        return Ok(if more { Heard::More } else { Heard::End });
    }
}
