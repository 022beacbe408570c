//! Slots: which slave gets one, and when the slot of a slave that has left can be used again.
//!
//! After its slave is gone, a slot is still in the directory's sets of holders. It is reused only after a sweep over the
//! directory has removed it from them, and not while it takes part in a write.

use super::membership::SLAVES_MAX;
use super::{Effect, Master, Slot};
use crate::ids::{LinkId, Millis, SlaveId};

impl Master {
    pub(super) fn slave_joined(
        &mut self,
        now: Millis,
        id: SlaveId,
        link: LinkId,
        room_bytes: u64,
        effects: &mut Vec<Effect>,
    ) {
        assert!(self.members.iter().all(|(_, member)| member.id != id), "slave {id} is active already");
        match self.members.clean_slot() {
            Some(slot) => {
                self.members.join(slot, id.clone(), link, room_bytes);
                self.drain_after_join(now, &id);
                self.repair_after_join(now);
                self.rebalance_after_change(now, false, effects);
                effects.push(Effect::Joined { link });
            }
            None if self.members.len() == SLAVES_MAX => effects.push(Effect::NoSlot { link }),
            None if self.waiting_for_slot.contains(&link) => {}
            None => self.waiting_for_slot.push(link),
        }
        self.sweep_if_needed();
    }

    pub(super) fn slave_lost(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        if let Some(member) = self.members.leave(slot) {
            let is_let_go = self.leaving.is_let_go(&member.id);
            self.drain_after_loss(is_let_go);
            if !is_let_go {
                self.repair_after_loss(now, member.copies);
                self.rebalance_after_change(now, true, effects);
            }
            self.lose(now, slot, effects);
            self.sweep_if_needed();
        }
    }

    /// Begins a sweep when few usable slots are left.
    pub(super) fn sweep_if_needed(&mut self) {
        // A slot that still takes part in a write cannot be reused.
        if self.directory.sweeping().is_none() && !self.writes.has_losses() {
            if let Some(slots) = self.members.to_sweep() {
                self.directory.begin_sweep(slots);
            }
        }
    }
}
