//! Slaves that are to leave: each is drained first, then let go.
//!
//! Owns who is to leave, and when nothing is needed from it any more. A slave that is drained gets nothing new, its copies do not
//! count, and `repair.rs` makes them elsewhere; it is still read from. See `docs/ARCHITECTURE.md`, *Removing a slave*.

use super::repair::RepairCause;
use super::{Asker, Effect, Master, SlotSet};
use crate::command::{ErrorWord, Reply};
use crate::ids::{Millis, SlaveId};
use std::collections::BTreeMap;

/// The most slaves that are removed in one reign: their names are kept.
const LEAVING_MAX: usize = 256;

/// Where a slave stands that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Its copies are made elsewhere.
    Draining,
    /// Nothing is needed from it: its link is to be closed, and it gets no place again unless it is started anew.
    LetGo,
}

/// The slaves that were removed in this reign.
#[derive(Clone, Debug, Default)]
pub(super) struct LeavingSlaves {
    all: BTreeMap<SlaveId, Leaving>,
    /// Those that were leaving when the present run of repair began: it makes their copies.
    covered: SlotSet,
    /// Those whose copies are all made. What they were sent must still be acknowledged.
    drained: SlotSet,
}

impl LeavingSlaves {
    /// The reign is over: the next one knows of nobody that is to leave.
    pub(super) fn clear(&mut self) {
        *self = LeavingSlaves::default();
    }

    /// A slave was lost: copies may be missing again.
    pub(super) fn doubt(&mut self) {
        self.drained = SlotSet::EMPTY;
    }

    pub(super) fn is_let_go(&self, id: &SlaveId) -> bool {
        self.all.get(id) == Some(&Leaving::LetGo)
    }
}

impl Master {
    /// Drains a slave, and lets it go. Once begun that is not undone but by a new start of the slave.
    pub(super) fn remove_slave(&mut self, now: Millis, asker: Asker, id: SlaveId, effects: &mut Vec<Effect>) {
        let reply = match self.begin_to_remove(now, id, effects) {
            Ok(()) => Reply::Done,
            Err(why) => Reply::error(ErrorWord::Bad, why),
        };
        effects.push(Effect::Reply { to: asker, reply });
    }

    fn begin_to_remove(&mut self, now: Millis, id: SlaveId, effects: &mut Vec<Effect>) -> Result<(), String> {
        if self.leaving.all.contains_key(&id) {
            return Ok(());
        }
        let named = self.members.iter().find(|(_, member)| member.id == id).map(|(slot, _)| slot);
        let Some(slot) = named else { return Err(format!("no slave named {id} is active")) };
        let Some(link) = self.members.link_of(slot) else {
            return Err(format!("no slave named {id} is active"));
        };
        let others = self.members.live().without(self.members.leaving()).len().saturating_sub(1);
        if others == 0 {
            return Err(format!("{id} is the last slave: nobody else can take its copies"));
        }
        if others < self.config.slaves_min {
            let min = self.config.slaves_min;
            return Err(format!("{others} slaves would be left, and writes need {min} (--min-slaves)"));
        }
        if !self.repairs() {
            return Err("nothing makes its copies elsewhere (--repair-rate 0)".to_owned());
        }
        if self.leaving.all.len() >= LEAVING_MAX {
            return Err(format!(
                "{LEAVING_MAX} slaves were removed: let the other master serve first (FAILOVER)"
            ));
        }
        self.leaving.all.insert(id, Leaving::Draining);
        self.members.set_leaving(slot);
        self.miss_no_longer();
        self.drain(now);
        self.rebalance_after_change(now, false, effects);
        effects.push(Effect::Leaving { link, state: Leaving::Draining });
        Ok(())
    }

    /// A slave has its place. If it was being drained when its link broke, that goes on.
    pub(super) fn drain_after_join(&mut self, now: Millis, id: &SlaveId) {
        // With more slaves a key may have to have more copies. Repair looks again.
        self.leaving.doubt();
        if let Some(state) = self.leaving.all.get_mut(id) {
            *state = Leaving::Draining;
            let named = self.members.iter().find(|(_, member)| member.id == *id).map(|(slot, _)| slot);
            if let Some(slot) = named {
                self.members.set_leaving(slot);
                self.drain(now);
            }
        }
    }

    /// A removed slave was started anew: it is one like all others.
    pub(super) fn slave_started_anew(&mut self, id: &SlaveId) {
        self.leaving.all.remove(id);
    }

    fn drain(&mut self, now: Millis) {
        self.leaving.doubt();
        self.plan_repair(now, RepairCause::SlaveLeaves);
    }

    /// A run of repair begins its first round.
    pub(super) fn cover_leaving(&mut self) {
        self.leaving.covered = self.members.leaving();
        self.leaving.doubt();
    }

    /// A run of repair has ended; whether every key has the copies that it is to have. Else it is tried again.
    pub(super) fn note_drained(&mut self, now: Millis, is_complete: bool, again_ms: u64) {
        let leaving = self.members.leaving();
        if leaving.is_empty() {
            return;
        }
        // While nobody else is there, they are like all others.
        let others = self.members.live().without(leaving).len();
        if others < self.config.slaves_min.max(1) {
            return;
        }
        if is_complete {
            self.leaving.drained = self.leaving.covered.intersection(leaving);
        } else {
            self.plan_repair(now.plus(again_ms), RepairCause::SlaveLeaves);
        }
    }

    /// Lets those go from which nothing is needed.
    pub(super) fn let_go(&mut self, effects: &mut Vec<Effect>) {
        for slot in self.leaving.drained.iter() {
            let Some(member) = self.members.get(slot).filter(|member| member.is_idle()) else { continue };
            let Some(link) = self.members.link_of(slot) else { continue };
            self.leaving.all.insert(member.id.clone(), Leaving::LetGo);
            self.leaving.drained.remove(slot);
            effects.push(Effect::Leaving { link, state: Leaving::LetGo });
        }
    }

    /// Whether the slave of that name was removed in this reign, and how far that is.
    pub fn removal(&self, id: &SlaveId) -> Option<Leaving> {
        self.leaving.all.get(id).copied()
    }

    /// The names of those that are drained.
    pub fn draining(&self) -> impl Iterator<Item = &SlaveId> {
        let draining = self.leaving.all.iter().filter(|(_, state)| **state == Leaving::Draining);
        draining.map(|(id, _)| id)
    }

    /// How many were let go.
    pub fn slaves_let_go(&self) -> usize {
        self.leaving.all.len() - self.draining().count()
    }

    /// How many of those that were removed are not active: nobody misses them.
    pub fn slaves_not_missed(&self) -> usize {
        let is_active = |id: &SlaveId| self.members.iter().any(|(_, member)| member.id == *id);
        self.leaving.all.keys().filter(|id| !is_active(id)).count()
    }

    /// Keys that have not all their copies elsewhere, while slaves are drained.
    pub fn keys_to_drain(&self) -> u64 {
        if self.members.leaving().is_empty() {
            0
        } else {
            self.keys_under_replicated(None)
        }
    }
}
