//! The work of a turn: what has come and is to be done, its order, and how much of it a turn may do.
//!
//! Owns the inbox that connections fill, and all that waits for its turn. Never does any of it: `turn.rs` does.

use crate::batch::Inbox;
use crate::door::switchboard::Arrived;
use crate::journal::WrittenRecord;
use crate::turns::Turn;
use dsm_protocol::command::{Command, ErrorWord};
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::master::{Asker, WriteId};
use std::cell::Cell;
use std::collections::VecDeque;

/// A turn ends after so many steps, of which each takes some microseconds.
const TURN_STEPS_MAX: usize = 1024;

/// Or after so many microseconds. One step may take as long again.
const TURN_US_MAX: u64 = 3_000;

/// So many bytes that are copied or checksummed count as a step.
pub(super) const STEP_BYTES: usize = 32 * 1024;

/// After so many steps it is looked how long the turn has taken: that costs as much as a short step does.
pub(super) const STEPS_A_LOOK: usize = 16;

/// So much of a turn is left. It is counted in steps, so that a simulated world without time within a turn sees the same
/// bounds, and in time.
pub(super) struct Allowance<'a> {
    turn: &'a Turn,
    steps: usize,
    /// The clock is looked at when no more steps than this are left.
    look_at: Cell<usize>,
    is_late: Cell<bool>,
}

impl<'a> Allowance<'a> {
    pub(super) fn new(turn: &'a Turn) -> Self {
        Allowance {
            turn,
            steps: TURN_STEPS_MAX,
            look_at: Cell::new(TURN_STEPS_MAX),
            is_late: Cell::new(false),
        }
    }

    /// Notes that so many steps were made.
    pub(super) fn spend(&mut self, steps: usize) {
        self.steps = self.steps.saturating_sub(steps);
    }

    /// Whether the turn is to end.
    pub(super) fn is_spent(&self) -> bool {
        if self.steps <= self.look_at.get() {
            self.look_at.set(self.steps.saturating_sub(STEPS_A_LOOK));
            self.is_late.set(self.turn.took_us() >= TURN_US_MAX);
        }
        self.steps == 0 || self.is_late.get()
    }
}

/// What has come and is to be done, in its order.
pub(super) enum Todo {
    /// What a connection has brought.
    Arrived(Arrived),
    /// A record is written.
    Written(WrittenRecord),
    /// A record is not, and why.
    Refused(WriteId, ErrorWord, String),
    /// A request that the front has held back.
    Serve { asker: Asker, deadline: Millis, command: Command },
    /// This master leads no more: end, now that everything in front of this is answered.
    Depart,
}

/// All that waits for its turn.
pub(super) struct Agenda {
    inbox: Inbox<Arrived>,
    /// Empty between turns; its room is used again.
    arrived: Vec<Arrived>,
    /// What has come and is not done.
    todo: VecDeque<Todo>,
    /// The same of slaves and of reads of the log: it ends requests, and may not wait behind all those that are to begin.
    answers: VecDeque<Arrived>,
    /// Whose turn it is.
    answers_next: bool,
    /// What the front has held back and is to be done first.
    released: VecDeque<Todo>,
    /// Whether the next turn is called for already.
    resuming: bool,
}

impl Agenda {
    /// Nothing to do yet; connections fill `inbox`.
    pub(super) fn new(inbox: Inbox<Arrived>) -> Self {
        Agenda {
            inbox,
            arrived: Vec::new(),
            todo: VecDeque::new(),
            answers: VecDeque::new(),
            answers_next: true,
            released: VecDeque::new(),
            resuming: false,
        }
    }

    /// Takes in what connections have brought. `look` sees each before it gets its turn.
    pub(super) fn take_in(&mut self, mut look: impl FnMut(&Arrived)) {
        self.inbox.take(&mut self.arrived);
        for arrived in self.arrived.drain(..) {
            look(&arrived);
            match arrived {
                Arrived::SlaveHello { .. }
                | Arrived::Slave { .. }
                | Arrived::SlaveGone { .. }
                | Arrived::LogRead { .. } => self.answers.push_back(arrived),
                Arrived::Opened(_)
                | Arrived::Request { .. }
                | Arrived::Closed(_)
                | Arrived::PeerHello { .. }
                | Arrived::Peer { .. }
                | Arrived::PeerGone { .. }
                | Arrived::DialedUp { .. }
                | Arrived::Dialed { .. }
                | Arrived::DialRefused { .. }
                | Arrived::DialedDown { .. } => self.todo.push_back(Todo::Arrived(arrived)),
            }
        }
    }

    /// Puts things at the end of what is to be done.
    pub(super) fn extend(&mut self, todo: impl Iterator<Item = Todo>) {
        self.todo.extend(todo);
    }

    /// Has a request that the front has held back done before whatever has come since.
    pub(super) fn release(&mut self, asker: Asker, deadline: Millis, command: Command) {
        self.released.push_back(Todo::Serve { asker, deadline, command });
    }

    /// What is to be done next. What the front held comes first; then in turn something that ends a request and something
    /// that may begin one, so that neither waits for all of the other.
    pub(super) fn next(&mut self) -> Option<Todo> {
        if let Some(released) = self.released.pop_front() {
            return Some(released);
        }
        self.answers_next = !self.answers_next;
        let answer = |answers: &mut VecDeque<Arrived>| answers.pop_front().map(Todo::Arrived);
        if self.answers_next {
            answer(&mut self.answers).or_else(|| self.todo.pop_front())
        } else {
            self.todo.pop_front().or_else(|| answer(&mut self.answers))
        }
    }

    /// Whether something that has come is not done yet.
    pub(super) fn is_behind(&self) -> bool {
        !self.todo.is_empty() || !self.answers.is_empty() || !self.released.is_empty()
    }

    /// Calls for the next turn; whether nobody had.
    #[must_use]
    pub(super) fn call_for_turn(&mut self) -> bool {
        !std::mem::replace(&mut self.resuming, true)
    }

    /// The turn that was called for has come.
    pub(super) fn turn_came(&mut self) {
        self.resuming = false;
    }
}
