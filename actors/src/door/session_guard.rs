//! A connection's hold on its session, and how long its client may be silent.

use super::counters::count;
use super::origin::Origin;
use super::session::{Coding, Session};
use super::switchboard::{Arrived, Switchboard};
use super::Context;
use crate::batch::Outbox;
use crate::env::Stream;
use crate::reading::read_more;
use bytes::BytesMut;
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::ids::SessionId;
use dsm_protocol::machine::master::Asker;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The error for a client whose unfinished request exceeds the limit.
pub(super) const UPLOADS_CUT: &str = "too many bytes of unfinished requests";

/// Ends a session at the master when it is dropped, also when its task panics.
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
        self.ask_with(context, coding, command, |_| {});
    }

    /// The same, and gives the reply to this connection, too.
    pub(super) fn ask_and_hear(
        &self,
        context: &Context,
        coding: Coding,
        command: Command,
    ) -> Option<oneshot::Receiver<Reply>> {
        let mut reply = None;
        self.ask_with(context, coding, command, |tag| reply = Some(self.session.hear(tag)));
        reply
    }

    fn ask_with(&self, context: &Context, coding: Coding, command: Command, asked: impl FnOnce(u64)) {
        #[cfg(feature = "testing")]
        crate::test_hooks::pass(|place| *place == crate::test_hooks::PanicPlace::Session);
        let bytes = command.payload_bytes();
        let gate = &context.switchboard.gate;
        // STATUS must not be answered BUSY: it shows the reason for BUSY.
        let permit =
            if command == Command::Status { Some(gate.request_always(bytes)) } else { gate.request(bytes) };
        let Some(permit) = permit else {
            self.refuse(coding, &Reply::error(ErrorWord::Busy, "too many requests in flight"));
            return;
        };
        let permit = permit.measuring(&command);
        let tag = self.session.ask_for(coding, Some(permit), !command.is_write());
        asked(tag);
        let asker = Asker { session: self.session.id(), tag };
        context.switchboard.push(Arrived::Request { asker, command });
    }

    /// Refuses a request without asking the master; it takes no permit.
    pub(super) fn refuse(&self, coding: Coding, refusal: &Reply) {
        self.switchboard.errors.note(refusal);
        let tag = self.session.ask(coding, None);
        self.session.answer(tag, refusal);
    }

    /// Sends an answer that the connection gives by itself, after the answers to earlier requests.
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

    /// Waits for the answers of a client that has closed its sending side. Requests that wait for earlier answers to
    /// leave have as long as those take: the writer cuts a client that takes none.
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

/// Waits until a connection may be closed although its client has not closed it: this master dismisses its clients,
/// everything of this one is answered, and no part of a request has arrived.
pub(super) async fn parted(stream: &Stream, session: &Session, is_between_requests: bool) {
    session.let_go_of().await;
    if !is_between_requests {
        std::future::pending::<()>().await;
    }
    stream.hold_back();
    session.may_part().await;
}

/// How the read of a client may end.
pub(super) enum Heard {
    More,
    End,
    /// Nothing arrived within the idle timeout.
    Nothing,
}

/// Reads more of a client's bytes, for `patience` at most. The time in which the client waits for an answer does not
/// count: once it is answered, it has all of `patience` again.
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
