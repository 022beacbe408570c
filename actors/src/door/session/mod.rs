//! A client's session: the slots in which its answers wait for their turn, shared by the connection's task, which reads
//! and parses (`resp.rs`, `native.rs`), and the master, which answers.
//!
//! Owns the order of answers, and what is in flight and put aside. Never reads a socket, never executes anything.

mod answer_pool;
mod parking;
mod slots;
#[cfg(test)]
mod tests;

pub(crate) use answer_pool::{AnswerPool, Room, ANSWER_BYTES_FREE};
pub(crate) use slots::Coding;

use crate::batch::Outbox;
use dsm_protocol::command::Reply;
use dsm_protocol::frame;
use dsm_protocol::ids::{Millis, SessionId};
use dsm_protocol::machine::front::Kind;
use dsm_protocol::message::Message;
use dsm_protocol::pieces::Pieces;
use dsm_protocol::planted;
use dsm_protocol::resp::{self, Protocol, Shape};
use slots::{Slot, SlotState, Slots};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{oneshot, Notify};

/// What a request or an answer takes in memory beside its own bytes while it waits for an earlier one.
const SLOT_BYTES: usize = 128;

/// Whether a session is to end although its client has not ended it: this master stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    No,
    /// As soon as something more was asked and is answered.
    WithAnAnswer,
    /// As soon as nothing is unanswered.
    Now,
}

/// A session, shared by the task that reads and the master that answers.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    is_forwarded: bool,
    is_native: bool,
    /// Of the program around this master: no connection.
    is_embedded: bool,
    parting: Cell<Parting>,
    generation: Cell<u32>,
    outbox: Outbox,
    pool: Rc<AnswerPool>,
    slots: RefCell<Slots>,
    answered: Notify,
}

impl Session {
    /// A Redis client's session.
    pub(crate) fn resp(id: SessionId, outbox: Outbox, pool: &Rc<AnswerPool>) -> Self {
        Self::new(id, outbox, pool, false, false)
    }

    /// A native client's session.
    pub(crate) fn native(id: SessionId, outbox: Outbox, pool: &Rc<AnswerPool>) -> Self {
        Self::new(id, outbox, pool, true, false)
    }

    /// A session of the other master, forwarded over its link.
    pub(crate) fn forwarded(id: SessionId, outbox: Outbox, pool: &Rc<AnswerPool>) -> Self {
        Self::new(id, outbox, pool, true, true)
    }

    /// The session of a program that runs this master in its own process: nothing of it goes over a socket, and a
    /// standby forwards for it.
    pub(crate) fn embedded(id: SessionId, pool: &Rc<AnswerPool>) -> Self {
        let mut session = Self::new(id, Outbox::metered(pool.meter()), pool, false, false);
        session.is_embedded = true;
        session
    }

    fn new(
        id: SessionId,
        outbox: Outbox,
        pool: &Rc<AnswerPool>,
        is_native: bool,
        is_forwarded: bool,
    ) -> Self {
        Session {
            id,
            is_forwarded,
            is_native,
            is_embedded: false,
            parting: Cell::new(Parting::No),
            generation: Cell::new(0),
            outbox,
            pool: Rc::clone(pool),
            slots: RefCell::default(),
            answered: Notify::new(),
        }
    }

    /// Its number.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Whether it is the program's around this master.
    pub(crate) fn is_embedded(&self) -> bool {
        self.is_embedded
    }

    /// Lets the session end between two requests: with the next answer, or at once when it `may_be_silent` and asks
    /// nothing.
    pub(crate) fn let_go(&self, may_be_silent: bool) {
        let is_native = self.is_native;
        let parting = match self.parting.get() {
            _ if may_be_silent => Parting::Now,
            // A native client is told, and goes by itself.
            Parting::No if self.in_flight().0 > 0 && !is_native => Parting::Now,
            Parting::No => Parting::WithAnAnswer,
            told @ (Parting::WithAnAnswer | Parting::Now) => told,
        };
        self.parting.set(parting);
        self.answered.notify_one();
    }

    /// Notes that something is asked: the session may end with the answer.
    fn note_asked(&self) {
        if self.parting.get() == Parting::WithAnAnswer && !self.is_native {
            self.parting.set(Parting::Now);
        }
    }

    /// Waits until the session is let go.
    pub(crate) async fn let_go_of(&self) {
        while self.parting.get() == Parting::No {
            self.answered.notified().await;
        }
    }

    /// Waits until the session may end: it is let go and nothing of it is unanswered.
    pub(crate) async fn may_part(&self) {
        while self.parting.get() != Parting::Now || self.in_flight().0 > 0 {
            self.answered.notified().await;
        }
    }

    /// How it reached this master.
    pub(crate) fn kind(&self) -> Kind {
        match (self.is_forwarded, self.is_native) {
            (true, _) => Kind::Forwarded { generation: self.generation.get() },
            (false, true) => Kind::Native,
            (false, false) => Kind::Forwardable,
        }
    }

    /// Notes the generation with which the next requests came.
    pub(crate) fn set_generation(&self, generation: u32) {
        self.generation.set(generation);
    }

    /// Opens the slot of a request of `bytes` bytes; gives the tag under which it is asked.
    pub(crate) fn ask(&self, coding: Coding, bytes: usize) -> u64 {
        self.open_slot(coding, None, bytes)
    }

    /// Opens the slot of a request whose answer goes to `caller`; gives the tag under which it is asked. A caller
    /// whose request is given up hears that its sender is dropped.
    pub(crate) fn ask_embedded(&self, caller: oneshot::Sender<Reply>, bytes: usize) -> u64 {
        self.open_slot(Coding::Embedded, Some(caller), bytes)
    }

    fn open_slot(&self, coding: Coding, caller: Option<oneshot::Sender<Reply>>, bytes: usize) -> u64 {
        self.note_asked();
        let mut slots = self.slots.borrow_mut();
        slots.open += 1;
        slots.bytes += bytes;
        slots.open(Slot { coding, caller, bytes, expected_bytes: 0, state: SlotState::Asked })
    }

    /// Answers the request that was asked under `tag`; gives its bytes. `None` when it was answered before.
    pub(crate) fn answer(&self, tag: u64, reply: &Reply) -> Option<usize> {
        let slots = &mut *self.slots.borrow_mut();
        let bytes = match slots.index(tag) {
            Some(index) => self.answer_in_order(slots, index, |protocol, shape, out| {
                resp::encode_reply(protocol, shape, reply, out);
            })?,
            None => {
                let slot = slots.unordered.remove(&tag)?;
                match (slot.coding, slot.caller) {
                    (Coding::Native(id), _) => {
                        self.outbox.append_pieces(|out| frame::encode_response(id, reply, out));
                    }
                    (_, Some(caller)) => {
                        // A caller who does not wait any more wants no answer.
                        let _ = caller.send(reply.clone());
                    }
                    (_, None) => {}
                }
                slots.settle(slot.bytes, slot.expected_bytes, &self.outbox);
                slot.bytes
            }
        };
        self.answered.notify_one();
        Some(bytes)
    }

    /// How the answer to the request `tag` is coded, if it is not answered.
    pub(crate) fn coding(&self, tag: u64) -> Option<Coding> {
        let slots = self.slots.borrow();
        match slots.index(tag) {
            Some(index) => slots.queue.get(index),
            None => slots.unordered.get(&tag),
        }
        .filter(|slot| matches!(slot.state, SlotState::Asked))
        .map(|slot| slot.coding)
    }

    /// The same as [`Session::answer`] with an answer that is coded already.
    pub(crate) fn answer_coded(&self, tag: u64, mut coded: Pieces) -> Option<usize> {
        let slots = &mut *self.slots.borrow_mut();
        let bytes = match slots.index(tag) {
            Some(index) => self.answer_in_order(slots, index, |_, _, out| out.append(&mut coded))?,
            None => {
                let slot = slots.unordered.remove(&tag)?;
                self.outbox.append_pieces(|out| out.append(&mut coded));
                slots.settle(slot.bytes, slot.expected_bytes, &self.outbox);
                slot.bytes
            }
        };
        self.answered.notify_one();
        Some(bytes)
    }

    fn answer_in_order(
        &self,
        slots: &mut Slots,
        index: usize,
        encode: impl FnOnce(Protocol, Shape, &mut Pieces),
    ) -> Option<usize> {
        let slot = &mut slots.queue[index];
        let Coding::Resp(protocol, shape) = slot.coding else { return None };
        if !matches!(slot.state, SlotState::Asked) {
            return None;
        }
        let mut ready_bytes = 0;
        if index == 0 || planted!(AnswersOutOfOrder) {
            self.outbox.append_pieces(|out| encode(protocol, shape, out));
            slot.state = SlotState::Done;
        } else {
            let mut ready = Pieces::default();
            encode(protocol, shape, &mut ready);
            ready_bytes = ready.len();
            slot.state = SlotState::Ready(ready);
        }
        let (bytes, expected_bytes) = (slot.bytes, slot.expected_bytes);
        slots.settle(bytes, expected_bytes, &self.outbox);
        slots.ready_bytes += ready_bytes;
        self.outbox.reserve(ready_bytes);
        if index == 0 {
            self.release(slots);
        }
        Some(bytes)
    }

    /// Sends what the connection answers by itself, behind what was asked before.
    pub(crate) fn say(&self, answer: &[u8]) {
        self.note_asked();
        let mut slots = self.slots.borrow_mut();
        if slots.queue.is_empty() {
            self.outbox.append(|out| out.extend_from_slice(answer));
            return;
        }
        slots.said_bytes += answer.len() + SLOT_BYTES;
        self.pool.said.set(self.pool.said.get() + answer.len() + SLOT_BYTES);
        slots.open(Slot {
            coding: Coding::Resp(Protocol::Resp2, Shape::Plain),
            caller: None,
            bytes: 0,
            expected_bytes: 0,
            state: SlotState::Said(answer.to_vec()),
        });
    }

    /// Sends a frame that answers no request.
    pub(crate) fn send(&self, message: &Message) {
        self.outbox.append(|out| frame::encode(message, out));
    }

    /// Lets go of all slots at the front that need nothing more.
    fn release(&self, slots: &mut Slots) {
        while let Some(slot) = slots.queue.front_mut() {
            match &mut slot.state {
                SlotState::Asked => return,
                SlotState::Done => {}
                SlotState::Ready(ready) => {
                    slots.ready_bytes -= ready.len();
                    self.outbox.release(ready.len());
                    self.outbox.append_pieces(|out| out.append(ready));
                }
                SlotState::Said(said) => {
                    slots.said_bytes -= said.len() + SLOT_BYTES;
                    self.pool.said.set(self.pool.said.get() - said.len() - SLOT_BYTES);
                    self.outbox.append(|out| out.append(said));
                }
            }
            slots.queue.pop_front();
        }
    }

    /// Requests that are not answered yet, or whose answers wait for earlier ones; and the bytes of the former.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        let slots = self.slots.borrow();
        (slots.len(), slots.bytes)
    }

    /// Notes that its client has sent something.
    pub(crate) fn note_sends(&self) {
        self.outbox.note_sends();
    }

    /// For how long its client has taken none of its answers, if that is a client's own connection.
    pub(crate) fn is_deaf_for(&self) -> Duration {
        if self.is_forwarded || self.outbox.len() <= ANSWER_BYTES_FREE {
            Duration::ZERO
        } else {
            self.outbox.stuck_for()
        }
    }

    /// Whether its client was seen to take some after a while without: it reads slowly, and yet reads.
    pub(crate) fn reads_slowly(&self) -> bool {
        self.outbox.has_resumed()
    }

    /// Ends the session at once, for a reason that its connection tells.
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

    /// Gives up what is not answered: how many requests, and their bytes.
    pub(crate) fn abandon(&self) -> (usize, usize) {
        let slots = &mut *self.slots.borrow_mut();
        let abandoned = (slots.open, slots.bytes);
        self.outbox.release(slots.expected_bytes + slots.ready_bytes);
        self.pool.said.set(self.pool.said.get() - slots.said_bytes);
        self.wait_in_all(slots, Millis(0), false);
        *slots = Slots { next: slots.next, ..Slots::default() };
        abandoned
    }

    /// Ends the session at once; what is answered and not sent is lost, which tells its client the truth: unknown.
    pub(crate) fn abort(&self) {
        self.outbox.abort();
        self.answered.notify_one();
    }

    /// Whether the session takes no further request.
    pub(crate) fn is_closed(&self) -> bool {
        self.outbox.is_ended()
    }

    /// Waits until the session is closed. For a session without a socket, whose outbox nobody pumps.
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
    // What it had taken of what is shared.
    fn drop(&mut self) {
        self.abandon();
    }
}
