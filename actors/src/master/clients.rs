//! Those who ask: the sessions of clients, of other masters' clients, and of the program around this master.
//!
//! Owns which sessions are open, and the answers of many values that are being encoded for them. Never decides the order in
//! which a session's answers leave: the session does.

use super::agenda::Allowance;
use super::long_answers::LongAnswers;
use crate::door::origin::Origin;
use crate::door::session::Session;
use crate::door::Sessions;
use bytes::Bytes;
use dsm_protocol::command::Reply;
use dsm_protocol::ids::{Millis, SessionId};
use dsm_protocol::machine::master::Asker;
use dsm_protocol::message::Message;
use std::rc::Rc;
use std::time::Duration;

/// A client that takes nothing for so long gives its room to others that wait as long.
pub(super) const DEAF: Duration = Duration::from_secs(1);

/// The same for one that was seen to take some after a while without: over a poor line the next part may take its time.
const DEAF_AND_SLOW: Duration = Duration::from_secs(5);

/// All who ask.
#[derive(Default)]
pub(super) struct Clients {
    sessions: Sessions,
    long_answers: LongAnswers,
}

impl Clients {
    /// A session begins.
    pub(super) fn open(&mut self, session: Rc<Session>) {
        self.sessions.insert(session.id(), session);
    }

    /// A session is over: gives up what it has asked. Whether it was open.
    pub(super) fn close(&mut self, session: SessionId) -> bool {
        let closed = self.sessions.remove(&session);
        closed.inspect(|session| session.abandon()).is_some()
    }

    /// An open session.
    pub(super) fn get(&self, session: SessionId) -> Option<&Rc<Session>> {
        self.sessions.get(&session)
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Sends an answer to its slot, with which the request's permit is given back; whether it was not answered before.
    pub(super) fn answer(&self, to: Asker, reply: &Reply) -> bool {
        self.get(to.session).is_some_and(|session| session.answer(to.tag, reply))
    }

    /// Begins an answer of many values. Who asks in this process gets them as they are: then they are given back.
    #[must_use]
    pub(super) fn begin_long_answer(
        &mut self,
        to: Asker,
        values: Vec<Option<Bytes>>,
    ) -> Option<Vec<Option<Bytes>>> {
        self.long_answers.begin(to, values, self.sessions.get(&to.session).map(Rc::as_ref))
    }

    /// Encodes a part of the first long answer, whose turn comes again after the others.
    pub(super) fn encode_part(&mut self, left: &mut Allowance<'_>) {
        let Some((to, coded)) = self.long_answers.encode_part(left) else { return };
        if let Some(session) = self.get(to.session) {
            session.answer_coded(to.tag, coded);
        }
    }

    /// Whether an answer is to be encoded.
    pub(super) fn is_behind(&self) -> bool {
        !self.long_answers.is_empty()
    }

    /// Cuts the client that has taken nothing for longest, if that is too long while others wait for the room that its
    /// answers take.
    pub(super) fn cut_deafest(&self) {
        let deaf = self.sessions.values().map(|session| (session.is_deaf_for(), session));
        let is_over = |(time, session): &(Duration, &Rc<Session>)| {
            *time >= if session.reads_slowly() { DEAF_AND_SLOW } else { DEAF }
        };
        let deafest = deaf.filter(is_over).max_by_key(|(time, session)| (*time, session.id()));
        if let Some((_, session)) = deafest {
            session.cut("it takes no answers, and others wait for the room (--max-answer-bytes)");
        }
    }

    /// Whether a session has waited for so long until answers of others leave.
    pub(super) fn has_waited_for_others(&self, session: SessionId, now: Millis, limit_ms: u64) -> bool {
        self.get(session).is_some_and(|session| session.has_waited_for_others(now, limit_ms))
    }

    /// Tells the native clients something.
    pub(super) fn tell_native(&self, message: &Message) {
        let native =
            self.sessions.values().filter(|session| matches!(session.origin(), Origin::Native { .. }));
        native.for_each(|session| session.send(message));
    }

    /// Lets all go, each between its requests.
    pub(super) fn let_go(&self, silent_too: bool) {
        self.sessions.values().for_each(|session| session.let_go(silent_too));
    }

    /// How many a stop has still to let go: neither the program around this master nor other masters' sessions.
    pub(super) fn leaving(&self) -> usize {
        self.sessions.values().filter(|session| session.origin().leaves_at_a_stop()).count()
    }

    /// Closes all once what is answered is sent.
    pub(super) fn finish(&self) {
        self.sessions.values().for_each(|session| session.close());
    }

    /// Ends all at once: what is answered and not sent is lost.
    pub(super) fn abort(&self) {
        self.sessions.values().for_each(|session| session.abort());
    }
}
