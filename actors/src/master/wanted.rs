//! What the machines want done and is not done yet.
//!
//! Owns the order of it: what the master machine wants is kept for the end of the turn, what the machine of the reign wants
//! until somebody carries it out, and what the front wants is done at once.

use dsm_protocol::ids::Millis;
use dsm_protocol::machine::front;
use dsm_protocol::machine::master::{self, Master};
use dsm_protocol::machine::reign::{self, Leadership};
use std::collections::VecDeque;

/// What is wanted, in its order.
#[derive(Default)]
pub(super) struct Wanted {
    of_master: VecDeque<master::Effect>,
    /// Empty between steps; its room is used again. The same goes for `of_front`.
    made: Vec<master::Effect>,
    of_front: Vec<front::Effect>,
    of_reign: Vec<reign::Effect>,
}

impl Wanted {
    /// Advances the master machine and keeps what it wants done.
    pub(super) fn step_master(&mut self, machine: &mut Master, now: Millis, event: master::Event) {
        if !matches!(event, master::Event::Tick | master::Event::Chore) {
            log::trace!("master event={event:?}");
        }
        machine.step(now, event, &mut self.made);
        self.of_master.extend(self.made.drain(..));
    }

    /// What the master machine wants done next.
    pub(super) fn next_of_master(&mut self) -> Option<master::Effect> {
        self.of_master.pop_front()
    }

    /// Whether the master machine wants something done.
    pub(super) fn is_behind(&self) -> bool {
        !self.of_master.is_empty()
    }

    /// Room for what the front wants; [`give_back`](Self::give_back) it when that is done.
    pub(super) fn take_front(&mut self) -> Vec<front::Effect> {
        std::mem::take(&mut self.of_front)
    }

    /// Keeps the room for the next time.
    pub(super) fn give_back(&mut self, empty: Vec<front::Effect>) {
        debug_assert!(empty.is_empty(), "what the front wants is done at once");
        self.of_front = empty;
    }

    /// Advances the machine of the reign and keeps what it wants done.
    pub(super) fn step_reign(&mut self, machine: &mut Leadership, now: Millis, event: reign::Event<'_>) {
        machine.step(now, event, &mut self.of_reign);
    }

    /// Takes what the machine of the reign wants done.
    pub(super) fn take_reign(&mut self) -> Vec<reign::Effect> {
        std::mem::take(&mut self.of_reign)
    }

    /// Nothing more is done for the reign: the node has failed.
    pub(super) fn drop_reign(&mut self) {
        self.of_reign.clear();
    }
}
