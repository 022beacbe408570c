//! Requests of a session that wait because there is no room for their answers: on the connection, or in the pool of all
//! connections.

use super::answer_pool::{Room, ANSWER_BYTES_FREE};
use super::pending::PendingAnswers;
use super::Session;
use dsm_protocol::command::Command;
use dsm_protocol::ids::Millis;
use std::time::Duration;

/// How often a connection that waits for room in the pool of all connections checks for it.
const FULL_LOOK: Duration = Duration::from_millis(100);

impl Session {
    /// Whether a request may be executed whose answer will have `answer_bytes`. Together with the answers that have not
    /// left and those under way it must have room, on this connection and in the pool of all. A single answer may
    /// always be under way.
    pub(super) fn room_for(&self, pending: &PendingAnswers, answer_bytes: usize, bytes_max: usize) -> Room {
        let load = self.outbox.load();
        // Sessions that the other master forwards share one link: there, only what is under way belongs to one session.
        let own = if self.origin.shares_its_link() { pending.expected_bytes } else { load };
        if own + answer_bytes <= ANSWER_BYTES_FREE.min(bytes_max) && load <= bytes_max {
            Room::Yes
        } else if load > 0 && load + answer_bytes > bytes_max {
            Room::NotHere
        } else if !self.pool.has_room_for(answer_bytes) {
            Room::NotInAll
        } else {
            Room::Yes
        }
    }

    /// Reserves room for the answer to `tag`, of `answer_bytes`, if there is room on this connection and in the pool of
    /// all, and no other session has waited longer for the latter.
    pub(crate) fn expect(&self, tag: u64, answer_bytes: usize, bytes_max: usize) -> Room {
        let pending = &mut *self.pending.borrow_mut();
        let room = match self.room_for(pending, answer_bytes, bytes_max) {
            Room::Yes if self.pool.waiting() > 0 && answer_bytes > ANSWER_BYTES_FREE => Room::NotInAll,
            room => room,
        };
        if room == Room::Yes {
            self.take_room(pending, tag, answer_bytes);
        }
        room
    }

    pub(super) fn take_room(&self, pending: &mut PendingAnswers, tag: u64, answer_bytes: usize) {
        let entry = match pending.index(tag) {
            Some(index) => pending.queue.get_mut(index),
            None => pending.unordered.get_mut(&tag),
        };
        if let Some(entry) = entry {
            entry.expected_bytes = answer_bytes;
            pending.expected_bytes += answer_bytes;
            self.outbox.reserve(answer_bytes);
        }
    }

    /// Whether there is room for an answer of `answer_bytes` to `tag`, which may be longer than was expected.
    pub(crate) fn fits(&self, tag: u64, answer_bytes: usize, bytes_max: usize) -> bool {
        let pending = self.pending.borrow();
        let entry = match pending.index(tag) {
            Some(index) => pending.queue.get(index),
            None => pending.unordered.get(&tag),
        };
        let expected_bytes = entry.map_or(0, |entry| entry.expected_bytes);
        let others = self.outbox.load() - expected_bytes;
        answer_bytes <= expected_bytes.max(ANSWER_BYTES_FREE)
            || others == 0
            || others + answer_bytes <= bytes_max
    }

    /// Whether the request may have changed something: then its answer, and no other, is true.
    pub(crate) fn may_have_changed(&self, tag: u64) -> bool {
        let pending = self.pending.borrow();
        let entry = match pending.index(tag) {
            Some(index) => pending.queue.get(index),
            None => pending.unordered.get(&tag),
        };
        entry.is_some_and(|entry| !entry.is_quick)
    }

    /// Puts a request aside, after those that are put aside already.
    pub(crate) fn park(&self, now: Millis, tag: u64, command: Command, room: Room) {
        let pending = &mut *self.pending.borrow_mut();
        if pending.parked.is_empty() {
            self.wait_in_all(pending, now, room == Room::NotInAll);
        }
        pending.parked.push_back((tag, command));
    }

    /// Whether requests are put aside: later ones must queue after them.
    pub(crate) fn has_parked(&self) -> bool {
        !self.pending.borrow().parked.is_empty()
    }

    /// Takes the first request that was put aside, if there is room now for its answer; `answer_bytes` gives its
    /// length. `Err` says where room is missing.
    pub(crate) fn unpark(
        &self,
        now: Millis,
        bytes_max: usize,
        answer_bytes: impl FnOnce(&Command) -> usize,
    ) -> Result<Option<(u64, Command)>, Room> {
        let pending = &mut *self.pending.borrow_mut();
        let Some((tag, command)) = pending.parked.front() else {
            self.wait_in_all(pending, now, false);
            return Ok(None);
        };
        let (tag, answer_bytes) = (*tag, answer_bytes(command));
        let room = self.room_for(pending, answer_bytes, bytes_max);
        self.wait_in_all(pending, now, room == Room::NotInAll);
        if room != Room::Yes {
            return Err(room);
        }
        self.take_room(pending, tag, answer_bytes);
        Ok(pending.parked.pop_front())
    }

    /// Notes whether the session waits for answers of others to leave.
    pub(super) fn wait_in_all(&self, pending: &mut PendingAnswers, now: Millis, waits: bool) {
        if pending.waits_in_all.is_some() != waits {
            pending.waits_in_all = waits.then_some(now);
            let waiting = self.pool.waiting.get();
            self.pool.waiting.set(if waits { waiting + 1 } else { waiting - 1 });
        }
    }

    /// Whether the first request that was put aside has waited for the answers of others for this long.
    pub(crate) fn has_waited_for_others(&self, now: Millis, limit_ms: u64) -> bool {
        self.pending.borrow().waits_in_all.is_some_and(|since| now.since(since) >= limit_ms)
    }

    /// Takes that request, if it has waited so long; the caller refuses it.
    pub(crate) fn give_up(&self, now: Millis, limit_ms: u64) -> Option<u64> {
        if !self.has_waited_for_others(now, limit_ms) {
            return None;
        }
        let pending = &mut *self.pending.borrow_mut();
        self.wait_in_all(pending, now, false);
        pending.parked.pop_front().map(|(tag, _)| tag)
    }

    /// Whether there is room for a further request.
    pub(crate) fn has_room(&self, requests_max: usize, bytes_max: usize) -> bool {
        let pending = self.pending.borrow();
        let answers = self.outbox.len() + pending.ready_bytes + pending.said_bytes;
        pending.len() < requests_max
            && pending.bytes < bytes_max
            && pending.parked.is_empty()
            && answers <= self.answers_max(bytes_max)
    }

    /// How many bytes of answers may wait here before no further request is read.
    pub(super) fn answers_max(&self, bytes_max: usize) -> usize {
        if self.pool.is_full() {
            ANSWER_BYTES_FREE.min(bytes_max)
        } else {
            bytes_max
        }
    }

    /// Waits until there is room for a further request, or until the session can answer nothing more.
    pub(crate) async fn room(&self, requests_max: usize, bytes_max: usize) {
        while !self.has_room(requests_max, bytes_max) && !self.outbox.is_ended() {
            let held_bytes = {
                let pending = self.pending.borrow();
                let is_full =
                    pending.len() >= requests_max || pending.bytes >= bytes_max || !pending.parked.is_empty();
                (!is_full).then_some(pending.ready_bytes + pending.said_bytes)
            };
            match held_bytes.and_then(|held_bytes| self.answers_max(bytes_max).checked_sub(held_bytes)) {
                // Answers that the peer does not take count against the bound, too.
                Some(left) if !self.pool.is_full() => self.outbox.drained_to(left).await,
                // The client may send all its requests before it reads any answer; then only other sessions can make
                // room.
                Some(left) => drop(tokio::time::timeout(FULL_LOOK, self.outbox.drained_to(left)).await),
                None => self.answered.notified().await,
            }
        }
    }
}
