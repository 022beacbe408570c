//! A client's session: the slots in which its answers wait for their turn, shared by the connection's task, which reads
//! and parses (`accept.rs`), and the master, which answers.
//!
//! Owns the order of answers, and what is in flight and put aside. Never reads a socket, never executes anything.

use crate::batch::{Meter, Outbox};
use bytes::Bytes;
use dsm_protocol::command::{Command, Reply};
use dsm_protocol::frame;
use dsm_protocol::ids::{Millis, RequestId, SessionId};
use dsm_protocol::machine::front::Kind;
use dsm_protocol::message::Message;
use dsm_protocol::pieces::Pieces;
use dsm_protocol::planted;
use dsm_protocol::resp::{self, Protocol, Shape};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{oneshot, Notify};

/// So many bytes of answers each connection may have on their way and waiting, whatever all others have: who asks for
/// short things does not suffer from those who ask for long ones and do not listen.
pub(crate) const ANSWER_BYTES_FREE: usize = 16 * 1024;

/// What a request or an answer takes in memory beside its own bytes while it waits for an earlier one.
const SLOT_BYTES: usize = 128;

/// How soon a connection that waits because the answers of all are too many looks whether they still are.
const FULL_LOOK: Duration = Duration::from_millis(100);

/// What the answers of all connections take in memory: `--max-answer-bytes`.
#[derive(Debug)]
pub(crate) struct AnswerPool {
    bytes_max: usize,
    /// Bytes of values that are on their way from slaves, and of answers that wait for an earlier one or for a socket.
    bytes: Meter,
    /// Bytes of what connections say by themselves and must hold back, for an earlier request is not answered.
    said: Cell<usize>,
    /// Sessions with a request that waits for room in here.
    waiting: Cell<usize>,
}

impl AnswerPool {
    pub(crate) fn new(bytes_max: usize) -> Self {
        AnswerPool { bytes_max, bytes: Meter::default(), said: Cell::new(0), waiting: Cell::new(0) }
    }

    /// Counts the bytes of outboxes.
    pub(crate) fn meter(&self) -> Meter {
        Rc::clone(&self.bytes)
    }

    /// Bytes that are taken.
    pub(crate) fn len(&self) -> usize {
        self.bytes.get() + self.said.get()
    }

    /// Whether an answer of `bytes` may be under way as well. One alone always may.
    fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes.get() == 0 || self.bytes.get() + bytes <= self.bytes_max
    }

    fn is_full(&self) -> bool {
        self.len() >= self.bytes_max
    }

    /// Sessions with a request that waits for room in here.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.get()
    }
}

/// Whether a request may be executed whose answer is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// Earlier answers of the connection must leave first.
    NotHere,
    /// Answers of others must leave first.
    NotInAll,
}

/// How the answer to a request is coded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Coding {
    /// For a Redis client.
    Resp(Protocol, Shape),
    /// For a native client or a forwarding master.
    Native(RequestId),
    /// For a caller in this process, who waits for the answer itself.
    Embedded,
}

/// The place of a request in its session.
#[derive(Debug)]
struct Slot {
    coding: Coding,
    /// Who waits for the answer, if that is somebody in this process.
    caller: Option<oneshot::Sender<Reply>>,
    bytes: usize,
    /// Bytes that the answer is expected to have.
    expected_bytes: usize,
    state: SlotState,
}

#[derive(Debug)]
enum SlotState {
    Asked,
    /// Answered, but an earlier one is not.
    Ready(Pieces),
    /// The same of what the connection says by itself.
    Said(Vec<u8>),
    /// Answered and sent.
    Done,
}

#[derive(Debug, Default)]
struct Slots {
    /// The tag of the next request.
    next: u64,
    /// Of a Redis client, whose answers leave in the order of its requests; the last has the tag in front of `next`.
    queue: VecDeque<Slot>,
    /// Of everybody else: an answer leaves when it is there, and nothing of its request stays behind.
    unordered: HashMap<u64, Slot, foldhash::fast::FixedState>,
    open: usize,
    bytes: usize,
    expected_bytes: usize,
    /// Bytes of the answers that wait for an earlier one.
    ready_bytes: usize,
    /// The same of what the connection says by itself. It may wait for a request that is put aside: it cannot be a
    /// reason for that to wait.
    said_bytes: usize,
    /// Requests that are not executed before earlier answers have left.
    parked: VecDeque<(u64, Command)>,
    /// Since when the first of them waits for answers of others, if it does.
    waits_in_all: Option<Millis>,
}

impl Slots {
    fn open(&mut self, slot: Slot) -> u64 {
        let tag = self.next;
        self.next += 1;
        match slot.coding {
            Coding::Resp(..) => self.queue.push_back(slot),
            Coding::Native(_) | Coding::Embedded => {
                self.unordered.insert(tag, slot);
            }
        }
        tag
    }

    /// Where in the queue the request `tag` stands, if it does.
    fn index(&self, tag: u64) -> Option<usize> {
        let first = self.next - self.queue.len() as u64;
        usize::try_from(tag.checked_sub(first)?).ok().filter(|index| *index < self.queue.len())
    }

    fn settle(&mut self, bytes: usize, expected_bytes: usize, outbox: &Outbox) {
        self.open -= 1;
        self.bytes -= bytes;
        self.expected_bytes -= expected_bytes;
        outbox.release(expected_bytes);
    }

    /// Requests that take memory, be it for an answer that waits for an earlier one.
    fn len(&self) -> usize {
        self.queue.len() + self.unordered.len()
    }
}

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

    /// Whether a request may be executed whose answer will have `answer_bytes`: earlier answers that have not left, and
    /// those that are on their way, must leave room for it, on this connection and in all. One answer alone may always
    /// be under way.
    fn room_for(&self, slots: &Slots, answer_bytes: usize, bytes_max: usize) -> Room {
        let load = self.outbox.load();
        // What comes from the other master shares one link: there, only what is on its way is one session's own.
        let own = if self.is_forwarded { slots.expected_bytes } else { load };
        if own + answer_bytes <= ANSWER_BYTES_FREE.min(bytes_max) {
            Room::Yes
        } else if load > 0 && load + answer_bytes > bytes_max {
            Room::NotHere
        } else if !self.pool.has_room_for(answer_bytes) {
            Room::NotInAll
        } else {
            Room::Yes
        }
    }

    /// Takes room for the answer to `tag`, which will have `answer_bytes`, if there is room on this connection and, if
    /// nobody has waited for it longer, in all.
    pub(crate) fn expect(&self, tag: u64, answer_bytes: usize, bytes_max: usize) -> Room {
        let slots = &mut *self.slots.borrow_mut();
        let room = match self.room_for(slots, answer_bytes, bytes_max) {
            Room::Yes if self.pool.waiting() > 0 && answer_bytes > ANSWER_BYTES_FREE => Room::NotInAll,
            room => room,
        };
        if room == Room::Yes {
            self.take_room(slots, tag, answer_bytes);
        }
        room
    }

    fn take_room(&self, slots: &mut Slots, tag: u64, answer_bytes: usize) {
        let slot = match slots.index(tag) {
            Some(index) => slots.queue.get_mut(index),
            None => slots.unordered.get_mut(&tag),
        };
        if let Some(slot) = slot {
            slot.expected_bytes = answer_bytes;
            slots.expected_bytes += answer_bytes;
            self.outbox.reserve(answer_bytes);
        }
    }

    /// Whether there is room for an answer of `answer_bytes` to `tag`, which may be longer than was expected.
    pub(crate) fn fits(&self, tag: u64, answer_bytes: usize, bytes_max: usize) -> bool {
        let slots = self.slots.borrow();
        let slot = match slots.index(tag) {
            Some(index) => slots.queue.get(index),
            None => slots.unordered.get(&tag),
        };
        let expected_bytes = slot.map_or(0, |slot| slot.expected_bytes);
        let others = self.outbox.load() - expected_bytes;
        answer_bytes <= expected_bytes.max(ANSWER_BYTES_FREE)
            || others == 0
            || others + answer_bytes <= bytes_max
    }

    /// Puts a request aside, behind those that are put aside already.
    pub(crate) fn park(&self, now: Millis, tag: u64, command: Command, room: Room) {
        let slots = &mut *self.slots.borrow_mut();
        if slots.parked.is_empty() {
            self.wait_in_all(slots, now, room == Room::NotInAll);
        }
        slots.parked.push_back((tag, command));
    }

    /// Whether requests are put aside: whatever comes later must queue behind them.
    pub(crate) fn has_parked(&self) -> bool {
        !self.slots.borrow().parked.is_empty()
    }

    /// Takes the first request that was put aside, if there is room now for its answer, whose length `answer_bytes`
    /// tells. `Err` says where there is none.
    pub(crate) fn unpark(
        &self,
        now: Millis,
        bytes_max: usize,
        answer_bytes: impl FnOnce(&Command) -> usize,
    ) -> Result<Option<(u64, Command)>, Room> {
        let slots = &mut *self.slots.borrow_mut();
        let Some((tag, command)) = slots.parked.front() else {
            self.wait_in_all(slots, now, false);
            return Ok(None);
        };
        let (tag, answer_bytes) = (*tag, answer_bytes(command));
        let room = self.room_for(slots, answer_bytes, bytes_max);
        self.wait_in_all(slots, now, room == Room::NotInAll);
        if room != Room::Yes {
            return Err(room);
        }
        self.take_room(slots, tag, answer_bytes);
        Ok(slots.parked.pop_front())
    }

    /// Notes whether the session waits for answers of others to leave.
    fn wait_in_all(&self, slots: &mut Slots, now: Millis, waits: bool) {
        if slots.waits_in_all.is_some() != waits {
            slots.waits_in_all = waits.then_some(now);
            let waiting = self.pool.waiting.get();
            self.pool.waiting.set(if waits { waiting + 1 } else { waiting - 1 });
        }
    }

    /// Whether the first request that was put aside has waited for answers of others for so long.
    pub(crate) fn has_waited_for_others(&self, now: Millis, limit_ms: u64) -> bool {
        self.slots.borrow().waits_in_all.is_some_and(|since| now.since(since) >= limit_ms)
    }

    /// Takes it, in that case, to be refused.
    pub(crate) fn give_up(&self, now: Millis, limit_ms: u64) -> Option<u64> {
        if !self.has_waited_for_others(now, limit_ms) {
            return None;
        }
        let slots = &mut *self.slots.borrow_mut();
        self.wait_in_all(slots, now, false);
        slots.parked.pop_front().map(|(tag, _)| tag)
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

    /// Whether there is room for a further request.
    pub(crate) fn has_room(&self, requests_max: usize, bytes_max: usize) -> bool {
        let slots = self.slots.borrow();
        let answers = self.outbox.len() + slots.ready_bytes + slots.said_bytes;
        slots.len() < requests_max
            && slots.bytes < bytes_max
            && slots.parked.is_empty()
            && answers <= self.answers_max(bytes_max)
    }

    /// Up to how many bytes of answers may wait here for more to be asked.
    fn answers_max(&self, bytes_max: usize) -> usize {
        if self.pool.is_full() {
            ANSWER_BYTES_FREE.min(bytes_max)
        } else {
            bytes_max
        }
    }

    /// Waits until there is room for a further request, or nothing more can be answered.
    pub(crate) async fn room(&self, requests_max: usize, bytes_max: usize) {
        while !self.has_room(requests_max, bytes_max) && !self.outbox.is_ended() {
            let held_bytes = {
                let slots = self.slots.borrow();
                let is_full =
                    slots.len() >= requests_max || slots.bytes >= bytes_max || !slots.parked.is_empty();
                (!is_full).then_some(slots.ready_bytes + slots.said_bytes)
            };
            match held_bytes.and_then(|held_bytes| self.answers_max(bytes_max).checked_sub(held_bytes)) {
                // Answers that the peer does not take are the other half of the bound.
                Some(left) if !self.pool.is_full() => self.outbox.drained_to(left).await,
                // Its client may be one that asks for all before it takes any: then it is others who make room.
                Some(left) => drop(tokio::time::timeout(FULL_LOOK, self.outbox.drained_to(left)).await),
                None => self.answered.notified().await,
            }
        }
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

/// The payload of a stored value that an error mentions is never shown: keys and values are the users'.
pub(crate) fn shown_key(key: &Bytes) -> String {
    let short = &key[..key.len().min(40)];
    let mut shown = short.escape_ascii().to_string();
    if short.len() < key.len() {
        shown.push_str("...");
    }
    shown
}

/// The longest description of a message that its sender should not have sent, in bytes.
const SHOWN_BYTES_MAX: usize = 80;

/// The beginning of a message for a log line: a peer decides how long the whole would be.
pub(crate) fn shown_message(message: &Message) -> String {
    struct Short(String);
    impl std::fmt::Write for Short {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let room = SHOWN_BYTES_MAX - self.0.len();
            let mut end = room.min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            self.0.push_str(&text[..end]);
            // An error ends the formatting: the rest is never produced.
            if end < text.len() {
                Err(std::fmt::Error)
            } else {
                Ok(())
            }
        }
    }
    let mut short = Short(String::new());
    if std::fmt::Write::write_fmt(&mut short, format_args!("{message:?}")).is_err() {
        short.0.push_str("...");
    }
    short.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn pool(bytes_max: usize) -> Rc<AnswerPool> {
        Rc::new(AnswerPool::new(bytes_max))
    }

    /// A session whose outbox nobody pumps.
    fn session_in(pool: &Rc<AnswerPool>) -> Session {
        Session::resp(SessionId(1), Outbox::metered(pool.meter()), pool)
    }

    fn resp_session(bytes_max: usize) -> Session {
        session_in(&pool(bytes_max))
    }

    const RESP: Coding = Coding::Resp(Protocol::Resp2, Shape::Plain);

    fn sent(session: &Session) -> String {
        let mut sent = Vec::new();
        session.outbox.append_pieces(|out| {
            while let Some(piece) = out.pop() {
                sent.extend_from_slice(piece.bytes());
            }
        });
        session.outbox.note_taken(sent.len());
        String::from_utf8(sent).unwrap()
    }

    #[test]
    fn answers_leave_in_the_order_of_the_questions() {
        let session = resp_session(usize::MAX);
        let first = session.ask(RESP, 10);
        let second = session.ask(RESP, 20);
        session.say(b"+PONG\r\n");
        assert_eq!(session.answer(second, &Reply::NotFound), Some(20));
        assert_eq!(sent(&session), "");
        assert_eq!(session.answer(first, &Reply::Done), Some(10));
        assert_eq!(sent(&session), "+OK\r\n$-1\r\n+PONG\r\n");
        assert_eq!(session.answer(second, &Reply::Done), None, "answered twice");
        assert_eq!(session.in_flight(), (0, 0));
    }

    fn value(bytes: usize) -> Reply {
        Reply::Value(Bytes::from(vec![b'y'; bytes]))
    }

    /// An answer of so many bytes is bound to be.
    const LONG: usize = 3 * ANSWER_BYTES_FREE;

    #[tokio::test]
    async fn answers_that_wait_for_an_earlier_one_are_bounded() {
        let session = resp_session(usize::MAX);
        let slow = session.ask(RESP, 1);
        session.say(&vec![b'x'; LONG]);
        assert!(session.has_room(100, 2 * LONG));
        let late = session.ask(RESP, 1);
        assert_eq!(session.expect(late, LONG, 2 * LONG), Room::Yes, "what is said waits for nobody");
        session.answer(late, &value(LONG));
        assert!(!session.has_room(100, 2 * LONG), "both wait");
        let room = session.room(100, 2 * LONG);
        tokio::pin!(room);
        assert_eq!(room.as_mut().now_or_never(), None);
        session.answer(slow, &Reply::Done);
        assert_eq!(room.as_mut().now_or_never(), None, "now they wait for the peer");
        assert!(sent(&session).starts_with("+OK\r\nxxx"));
        assert!(session.has_room(100, 2 * LONG));
        let slots = session.slots.borrow();
        assert_eq!((slots.ready_bytes, slots.said_bytes, slots.expected_bytes, slots.len()), (0, 0, 0, 0));
    }

    #[test]
    fn the_first_long_answer_counts_like_the_thirty_third() {
        let (session, bytes_max) = (resp_session(usize::MAX), 2 * LONG);
        let ask = || session.expect(session.ask(RESP, 1), LONG, bytes_max);
        assert_eq!([ask(), ask(), ask()], [Room::Yes, Room::Yes, Room::NotHere]);
        let short = session.ask(RESP, 1);
        assert_eq!(session.expect(short, 1, bytes_max), Room::NotHere);
    }

    #[test]
    fn one_answer_longer_than_the_bound_is_under_way_alone() {
        let session = resp_session(LONG);
        let (first, second) = (session.ask(RESP, 1), session.ask(RESP, 1));
        assert_eq!(session.expect(first, 9 * LONG, LONG), Room::Yes);
        assert_eq!(session.expect(second, 9 * LONG, LONG), Room::NotHere);
        session.park(Millis(0), second, Command::KeyCount, Room::NotHere);
        assert!(!session.has_room(100, LONG), "nobody is heard whose requests wait");
        assert_eq!(session.unpark(Millis(0), LONG, |_| 9 * LONG), Err(Room::NotHere));
        session.answer(first, &value(9 * LONG));
        assert_eq!(session.unpark(Millis(0), LONG, |_| 9 * LONG), Err(Room::NotHere), "it has not left");
        sent(&session);
        assert_eq!(session.unpark(Millis(0), LONG, |_| 9 * LONG), Ok(Some((second, Command::KeyCount))));
    }

    #[test]
    fn an_answer_that_is_longer_than_was_foreseen_needs_room() {
        let session = resp_session(usize::MAX);
        let (first, second) = (session.ask(RESP, 1), session.ask(RESP, 1));
        assert_eq!(session.expect(first, LONG, 2 * LONG), Room::Yes);
        assert!(session.fits(first, LONG, 2 * LONG), "as long as it was to be");
        assert!(session.fits(second, ANSWER_BYTES_FREE, 0), "short");
        assert!(session.fits(second, LONG, 2 * LONG));
        assert!(!session.fits(second, LONG + 1, 2 * LONG));
        session.answer(first, &Reply::NotFound);
        sent(&session);
        assert!(session.fits(second, 9 * LONG, LONG), "one alone always may");
    }

    #[test]
    fn what_all_sessions_may_have_under_way_is_bounded_but_for_short_things() {
        let pool = pool(2 * LONG);
        let (first, second) = (session_in(&pool), session_in(&pool));
        let ask = |session: &Session, bytes| {
            let tag = session.ask(RESP, 1);
            (tag, session.expect(tag, bytes, 100 * LONG))
        };
        let (held, _) = ask(&first, 2 * LONG);
        let (waits, room) = ask(&second, LONG);
        assert_eq!(room, Room::NotInAll);
        assert_eq!(ask(&second, ANSWER_BYTES_FREE).1, Room::Yes, "short answers are for everybody");
        second.park(Millis(0), waits, Command::KeyCount, room);
        assert_eq!((pool.waiting(), pool.len()), (1, 2 * LONG + ANSWER_BYTES_FREE));
        assert_eq!(second.unpark(Millis(0), 100 * LONG, |_| LONG), Err(Room::NotInAll));
        // An answer that turns out to be short.
        first.answer(held, &Reply::NotFound);
        assert_eq!(ask(&first, LONG).1, Room::NotInAll, "who has waited longer comes first");
        assert_eq!(second.unpark(Millis(0), 100 * LONG, |_| LONG), Ok(Some((waits, Command::KeyCount))));
        assert_eq!(second.unpark(Millis(0), 100 * LONG, |_| 0), Ok(None));
        assert_eq!(pool.waiting(), 0);
        drop((first, second));
        assert_eq!((pool.len(), pool.waiting()), (0, 0), "nothing is left of sessions that are gone");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_because_the_answers_of_all_are_too_many_goes_on_when_others_have_taken_theirs() {
        let pool = pool(2 * LONG);
        let (patient, other) = (session_in(&pool), session_in(&pool));
        // As a client does that sends all that it asks before it takes any answer.
        patient.say(&vec![b'x'; LONG]);
        other.say(&vec![b'x'; LONG]);
        let room = patient.room(100, 2 * LONG);
        tokio::pin!(room);
        assert_eq!(room.as_mut().now_or_never(), None, "the pool is full");
        sent(&other);
        tokio::time::timeout(Duration::from_secs(1), room).await.expect("there is room again");
    }

    #[test]
    fn who_waits_too_long_for_the_answers_of_others_is_refused_request_by_request() {
        let pool = pool(LONG);
        let (holds, waits) = (session_in(&pool), session_in(&pool));
        assert_eq!(holds.expect(holds.ask(RESP, 1), LONG, 100 * LONG), Room::Yes);
        let [first, second, third] = [(); 3].map(|()| waits.ask(RESP, 1));
        let room = waits.expect(first, LONG, 100 * LONG);
        assert_eq!(room, Room::NotInAll);
        for tag in [first, second, third] {
            waits.park(Millis(10), tag, Command::KeyCount, room);
        }
        assert_eq!(waits.unpark(Millis(109), 100 * LONG, |_| LONG), Err(Room::NotInAll));
        assert_eq!((waits.give_up(Millis(109), 100), pool.waiting()), (None, 1));
        assert_eq!((waits.give_up(Millis(110), 100), pool.waiting()), (Some(first), 0));
        // What stands behind it and needs no room has waited for it alone.
        assert_eq!(waits.give_up(Millis(110), 100), None);
        assert_eq!(waits.unpark(Millis(110), 100 * LONG, |_| 0), Ok(Some((second, Command::KeyCount))));
        // And the next one that does has all of its time.
        assert_eq!(waits.unpark(Millis(110), 100 * LONG, |_| LONG), Err(Room::NotInAll));
        assert_eq!(waits.give_up(Millis(209), 100), None);
        assert_eq!(waits.give_up(Millis(210), 100), Some(third));
        assert_eq!(pool.waiting(), 0);
    }

    #[test]
    fn an_answered_request_takes_no_place_where_no_order_is_held() {
        let session = Session::native(SessionId(1), Outbox::default(), &pool(usize::MAX));
        let slow = session.ask(Coding::Native(RequestId(0)), 1);
        for id in 1..1000 {
            let tag = session.ask(Coding::Native(RequestId(id)), 1);
            assert_eq!(session.answer(tag, &Reply::Done), Some(1));
            assert_eq!(session.answer(tag, &Reply::Done), None, "answered twice");
            assert_eq!(session.in_flight(), (1, 1));
        }
        assert_eq!(session.answer(slow, &Reply::Done), Some(1));
        assert_eq!(session.in_flight(), (0, 0));
    }

    #[tokio::test]
    async fn an_embedded_caller_hears_its_answer_at_once_and_an_end_when_the_session_is_given_up() {
        let session = Session::embedded(SessionId(1), &pool(usize::MAX));
        let (first, given_up) = oneshot::channel();
        let (second, answered) = oneshot::channel();
        session.ask_embedded(first, 1);
        let tag = session.ask_embedded(second, 2);
        assert_eq!(session.answer(tag, &Reply::Done), Some(2));
        assert_eq!(answered.await, Ok(Reply::Done), "it does not wait for the answer in front of it");
        session.close();
        session.closed().await;
        assert_eq!(session.abandon(), (1, 1));
        assert!(given_up.await.is_err());
    }

    #[test]
    fn a_message_is_shown_by_its_beginning_only() {
        let value = Bytes::from(vec![0_u8; 1 << 20]);
        let version = dsm_protocol::ids::Version::new(1, 2);
        let message = Message::Value { tag: 7, version, reign: dsm_protocol::ids::ReignId(3), value };
        let shown = shown_message(&message);
        assert!(shown.starts_with("Value { tag: 7, "), "{shown}");
        assert!(shown.ends_with("..."), "{shown}");
        assert_eq!(shown.len(), SHOWN_BYTES_MAX + 3);
        assert_eq!(shown_message(&Message::Ping), "Ping");
    }

    #[test]
    fn native_answers_leave_as_they_come() {
        let session = Session::native(SessionId(1), Outbox::default(), &pool(usize::MAX));
        let first = session.ask(Coding::Native(RequestId(7)), 1);
        let second = session.ask(Coding::Native(RequestId(8)), 1);
        session.answer(second, &Reply::Done);
        assert!(session.outbox.len() > 0);
        session.answer(first, &Reply::Done);
        assert_eq!(session.in_flight(), (0, 0));
    }
}
