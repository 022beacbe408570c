//! A client's session: the answers that are owed, in their order. It is shared by the connection's task, which reads and
//! parses (`resp.rs`, `native.rs`), and the master, which answers.
//!
//! Owns the order of answers, and the requests in flight and put aside. Never reads a socket, never executes anything.

mod answer_pool;
mod parking;
mod pending;
#[cfg(test)]
mod tests;

pub(crate) use answer_pool::{AnswerPool, Room, ANSWER_BYTES_FREE};
pub(crate) use pending::Coding;

use super::admission::RequestPermit;
use super::origin::Origin;
use crate::batch::Outbox;
use dsm_protocol::command::Reply;
use dsm_protocol::frame;
use dsm_protocol::ids::{Millis, SessionId};
use dsm_protocol::message::{Message, StreamUser};
use dsm_protocol::pieces::Pieces;
use dsm_protocol::planted;
use dsm_protocol::resp::{self, Protocol, Shape};
use pending::{AnswerState, PendingAnswer, PendingAnswers};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{oneshot, Notify};

/// The memory of a request or an answer in addition to its own bytes, while it waits for an earlier one.
const ENTRY_BYTES: usize = 128;

/// Whether a session is to end although its client has not ended it: this master stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    No,
    /// After the next answer to a new request.
    WithAnAnswer,
    /// As soon as everything is answered.
    Now,
}

/// A session, shared by the task that reads and the master that answers.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    origin: Origin,
    parting: Cell<Parting>,
    outbox: Outbox,
    pool: Rc<AnswerPool>,
    pending: RefCell<PendingAnswers>,
    /// The user that it has proved to be, where there are users.
    user: RefCell<Option<Rc<str>>>,
    answered: Notify,
}

impl Session {
    /// A session that has asked nothing yet, whose answers go to `outbox`.
    pub(crate) fn new(id: SessionId, origin: Origin, outbox: Outbox, pool: &Rc<AnswerPool>) -> Self {
        Session {
            id,
            origin,
            parting: Cell::new(Parting::No),
            outbox,
            pool: Rc::clone(pool),
            pending: RefCell::default(),
            user: RefCell::default(),
            answered: Notify::new(),
        }
    }

    /// The session of the embedding program: nothing of it goes over a socket.
    pub(crate) fn embedded(id: SessionId, pool: &Rc<AnswerPool>) -> Self {
        Self::new(id, Origin::Embedded, Outbox::metered(pool.meter()), pool)
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Where its requests come from.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Ends the session between two requests: after the next answer or, if the client `may_be_silent`, at once when
    /// nothing is unanswered.
    pub(crate) fn let_go(&self, may_be_silent: bool) {
        let parting = match self.parting.get() {
            _ if may_be_silent => Parting::Now,
            Parting::No if self.in_flight().0 > 0 && !self.origin.is_told_of_a_stop() => Parting::Now,
            Parting::No => Parting::WithAnAnswer,
            told @ (Parting::WithAnAnswer | Parting::Now) => told,
        };
        self.parting.set(parting);
        self.answered.notify_one();
    }

    /// Notes that something was asked, so that the session may end with its answer.
    fn note_asked(&self) {
        if self.parting.get() == Parting::WithAnAnswer && !self.origin.is_told_of_a_stop() {
            self.parting.set(Parting::Now);
        }
    }

    /// Waits until the session is told to end.
    pub(crate) async fn let_go_of(&self) {
        while self.parting.get() == Parting::No {
            self.answered.notified().await;
        }
    }

    /// Waits until the session was told to end and everything is answered.
    pub(crate) async fn may_part(&self) {
        while self.parting.get() != Parting::Now || self.in_flight().0 > 0 {
            self.answered.notified().await;
        }
    }

    /// Notes the generation with which the next requests of a forwarded session came.
    pub(crate) fn set_generation(&self, of_the_stream: u32) {
        if let Origin::Forwarded { generation } = &self.origin {
            generation.set(of_the_stream);
        }
    }

    /// Notes that a request is owed an answer, and gives the tag under which the master is asked. The permit is returned when
    /// the request is answered or given up.
    pub(crate) fn ask(&self, coding: Coding, permit: Option<RequestPermit>) -> u64 {
        self.ask_for(coding, permit, false)
    }

    /// The same, and says whether the answer waits for no disk.
    pub(crate) fn ask_for(&self, coding: Coding, permit: Option<RequestPermit>, is_quick: bool) -> u64 {
        self.note_asked();
        let mut pending = self.pending.borrow_mut();
        pending.bytes += permit.as_ref().map_or(0, RequestPermit::bytes);
        let user = self.user.borrow().clone();
        let state = AnswerState::Asked;
        pending.open(PendingAnswer { coding, user, heard: None, is_quick, permit, expected_bytes: 0, state })
    }

    /// Tells the reply to the request `tag` to this connection, too.
    pub(crate) fn hear(&self, tag: u64) -> oneshot::Receiver<Reply> {
        let (heard, reply) = oneshot::channel();
        let pending = &mut *self.pending.borrow_mut();
        if let Some(entry) = pending.index(tag).and_then(|index| pending.queue.get_mut(index)) {
            entry.heard = Some(heard);
        }
        reply
    }

    /// Notes for which user it asks from here on.
    pub(crate) fn set_user(&self, name: Option<&str>) {
        let mut user = self.user.borrow_mut();
        if user.as_deref() != name {
            *user = name.map(Rc::from);
        }
    }

    /// For whom the request `tag` asks, which is not answered yet.
    pub(crate) fn asks_for(&self, tag: u64) -> StreamUser {
        // Neither names a user: the program around this master, and a native client, who is served where there are users only
        // after it has proved its secret.
        if let Origin::Embedded | Origin::Native { has_proved: true } = self.origin {
            return StreamUser::Program;
        }
        let pending = self.pending.borrow();
        let entry = match pending.index(tag) {
            Some(index) => pending.queue.get(index),
            None => pending.unordered.get(&tag),
        };
        let user = entry.and_then(|entry| entry.user.as_deref());
        user.map_or(StreamUser::Anonymous, |name| StreamUser::Named(name.to_owned()))
    }

    /// Answers the request that was asked under `tag`; whether it was not answered before.
    pub(crate) fn answer(&self, tag: u64, reply: &Reply) -> bool {
        let pending = &mut *self.pending.borrow_mut();
        let is_first = match pending.index(tag) {
            Some(index) => {
                if let Some(heard) = pending.queue[index].heard.take() {
                    // A connection that has ended needs no answer.
                    drop(heard.send(reply.clone()));
                }
                self.answer_in_order(pending, index, |protocol, shape, out| {
                    resp::encode_reply(protocol, shape, reply, out);
                })
            }
            None => self.answer_at_once(pending, tag, |coding, outbox| match coding {
                Coding::Native(id) => outbox.append_pieces(|out| frame::encode_response(id, reply, out)),
                // A caller that no longer waits needs no answer.
                Coding::Embedded(caller) => drop(caller.send(reply.clone())),
                Coding::Resp(protocol, shape) => {
                    outbox.append_pieces(|out| resp::encode_reply(protocol, &shape, reply, out));
                }
            }),
        };
        if is_first {
            self.answered.notify_one();
        }
        is_first
    }

    /// Begins the answer to the request `tag` in its coding; `None` when the request is answered or given up.
    pub(crate) fn begin_answer<T>(&self, tag: u64, begin: impl FnOnce(&Coding) -> T) -> Option<T> {
        let pending = self.pending.borrow();
        let entry = match pending.index(tag) {
            Some(index) => pending.queue.get(index),
            None => pending.unordered.get(&tag),
        };
        entry.filter(|entry| matches!(entry.state, AnswerState::Asked)).map(|entry| begin(&entry.coding))
    }

    /// The same as [`Session::answer`] with an answer that is coded already.
    pub(crate) fn answer_coded(&self, tag: u64, mut coded: Pieces) -> bool {
        let pending = &mut *self.pending.borrow_mut();
        let is_first = match pending.index(tag) {
            Some(index) => self.answer_in_order(pending, index, |_, _, out| out.append(&mut coded)),
            None => self
                .answer_at_once(pending, tag, |_, outbox| outbox.append_pieces(|out| out.append(&mut coded))),
        };
        if is_first {
            self.answered.notify_one();
        }
        is_first
    }

    /// Answers a request that waits for no earlier one; whether it was not answered before.
    fn answer_at_once(
        &self,
        pending: &mut PendingAnswers,
        tag: u64,
        answer: impl FnOnce(Coding, &Outbox),
    ) -> bool {
        let Some(entry) = pending.unordered.remove(&tag) else { return false };
        answer(entry.coding, &self.outbox);
        pending.settle(entry.permit, entry.expected_bytes, &self.outbox);
        true
    }

    /// Answers a request after those in front of it; whether it was not answered before.
    fn answer_in_order(
        &self,
        pending: &mut PendingAnswers,
        index: usize,
        encode: impl FnOnce(Protocol, &Shape, &mut Pieces),
    ) -> bool {
        let entry = &mut pending.queue[index];
        if !matches!(entry.state, AnswerState::Asked) {
            return false;
        }
        let Coding::Resp(protocol, shape) = &entry.coding else { return false };
        let protocol = *protocol;
        let mut ready_bytes = 0;
        if index == 0 || planted!(AnswersOutOfOrder) {
            self.outbox.append_pieces(|out| encode(protocol, shape, out));
            entry.state = AnswerState::Done;
        } else {
            let mut ready = Pieces::default();
            encode(protocol, shape, &mut ready);
            ready_bytes = ready.len();
            entry.state = AnswerState::Ready(ready);
        }
        let (permit, expected_bytes) = (entry.permit.take(), entry.expected_bytes);
        pending.settle(permit, expected_bytes, &self.outbox);
        pending.ready_bytes += ready_bytes;
        self.outbox.reserve(ready_bytes);
        if index == 0 {
            self.release(pending);
            self.outbox.set_more_near(pending.queue.front().is_some_and(|next| next.is_quick));
        }
        true
    }

    /// Sends an answer that the connection gives by itself, after the answers to earlier requests.
    pub(crate) fn say(&self, answer: &[u8]) {
        self.note_asked();
        let mut pending = self.pending.borrow_mut();
        if pending.queue.is_empty() {
            self.outbox.append(|out| out.extend_from_slice(answer));
            return;
        }
        pending.said_bytes += answer.len() + ENTRY_BYTES;
        self.pool.said.set(self.pool.said.get() + answer.len() + ENTRY_BYTES);
        pending.open(PendingAnswer {
            coding: Coding::Resp(Protocol::Resp2, Shape::Plain),
            user: None,
            heard: None,
            is_quick: true,
            permit: None,
            expected_bytes: 0,
            state: AnswerState::Said(answer.to_vec()),
        });
    }

    /// Sends a frame that answers no request.
    pub(crate) fn send(&self, message: &Message) {
        self.outbox.append(|out| frame::encode(message, out));
    }

    /// Sends the answers at the front of the queue that are ready.
    fn release(&self, pending: &mut PendingAnswers) {
        while let Some(entry) = pending.queue.front_mut() {
            match &mut entry.state {
                AnswerState::Asked => return,
                AnswerState::Done => {}
                AnswerState::Ready(ready) => {
                    pending.ready_bytes -= ready.len();
                    self.outbox.release(ready.len());
                    self.outbox.append_pieces(|out| out.append(ready));
                }
                AnswerState::Said(said) => {
                    pending.said_bytes -= said.len() + ENTRY_BYTES;
                    self.pool.said.set(self.pool.said.get() - said.len() - ENTRY_BYTES);
                    self.outbox.append(|out| out.append(said));
                }
            }
            pending.queue.pop_front();
        }
    }

    /// Requests that are not answered yet, or whose answers wait for earlier ones; and the bytes of the former.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        let pending = self.pending.borrow();
        (pending.len(), pending.bytes)
    }

    /// Notes that its client has sent something.
    pub(crate) fn note_sends(&self) {
        self.outbox.note_sends();
    }

    /// For how long the client has taken none of its answers; 0 if it shares its connection with others.
    pub(crate) fn is_deaf_for(&self) -> Duration {
        if self.origin.shares_its_link() || self.outbox.len() <= ANSWER_BYTES_FREE {
            Duration::ZERO
        } else {
            self.outbox.stuck_for()
        }
    }

    /// Whether the client took some answers after a pause: it reads slowly, but it reads.
    pub(crate) fn reads_slowly(&self) -> bool {
        self.outbox.has_resumed()
    }

    /// Ends the session at once; its connection logs the reason.
    pub(crate) fn cut(&self, why: &'static str) {
        self.outbox.cut(why);
        self.answered.notify_one();
    }

    /// Waits until everything is answered or the outbox has ended.
    pub(crate) async fn all_answered(&self) {
        while self.in_flight().0 > 0 && !self.outbox.is_ended() {
            self.answered.notified().await;
        }
    }

    /// Whether answers wait for the socket.
    pub(crate) fn has_unsent(&self) -> bool {
        self.outbox.len() > 0
    }

    /// Gives up what is not answered, with its permits.
    pub(crate) fn abandon(&self) {
        let pending = &mut *self.pending.borrow_mut();
        self.outbox.release(pending.expected_bytes + pending.ready_bytes);
        self.pool.said.set(self.pool.said.get() - pending.said_bytes);
        self.wait_in_all(pending, Millis(0), false);
        *pending = PendingAnswers { next: pending.next, ..PendingAnswers::default() };
    }

    /// Ends the session at once. Answers that are not sent yet are lost, so the client rightly takes their outcome as
    /// unknown.
    pub(crate) fn abort(&self) {
        self.outbox.abort();
        self.answered.notify_one();
    }

    /// Whether the session takes no further request.
    pub(crate) fn is_closed(&self) -> bool {
        self.outbox.is_ended()
    }

    /// Waits until the session is closed. For a session without a socket, whose outbox no task pumps.
    pub(crate) async fn closed(&self) {
        self.outbox.ended().await;
    }

    /// Closes the session once what is answered is sent.
    pub(crate) fn close(&self) {
        self.outbox.finish();
        self.answered.notify_one();
    }
}

impl Drop for Session {
    // What it held of the shared pool.
    fn drop(&mut self) {
        self.abandon();
    }
}
