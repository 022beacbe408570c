//! The holders of copies: what slaves report, what they are sent and what they are told to forget.
//!
//! Owns the holders in the directory and each slave's count of copies, which change together. `writes.rs` and `room.rs`
//! choose the slaves of a write.

use super::hash::hash_bytes;
use super::membership::{CopyCause, Member, Sent, SlotSet};
use super::placement::choose;
use super::room::payload;
use super::{Effect, Entry, Master, Slot};
use crate::ids::{LinkId, Stamp, Version};
use bytes::Bytes;

impl Master {
    pub(super) fn holdings(
        &mut self,
        link: LinkId,
        entries: Vec<(Bytes, Stamp)>,
        last: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(slot) = self.members.slot_of(link) else { return };
        for (key, stamp) in entries {
            let Stamp { version, reign } = stamp;
            let is_ours = self.reigns.is_ours(stamp);
            match self.directory.change_holders(&key, version, |holders| is_ours && holders.insert(slot)) {
                Some(is_new) if is_ours => self.count_copies(slot, i64::from(is_new)),
                _ if !self.reigns.may_drop(stamp) => effects.push(Effect::Witnessed { link, stamp }),
                // This includes versions of this reign: the slave may have missed an overwrite while its link was down.
                // A report that is older than messages in flight on the same link does no harm, because a drop spares
                // higher versions.
                _ => effects.push(Effect::SendDrop { link, version, reign, key }),
            }
        }
        if last {
            self.members.set_reported(slot);
        } else {
            effects.push(Effect::SendHoldingsNext { link });
        }
    }

    /// Notes that `slot` holds `key` at `version`, if that is still the latest.
    pub(super) fn held(&mut self, slot: Slot, key: &[u8], version: Version) {
        if self.directory.change_holders(key, version, |holders| holders.insert(slot)) == Some(true) {
            self.count_copies(slot, 1);
        }
    }

    /// Notes that `slot` does not hold `key` at `version`.
    pub(super) fn not_held(&mut self, slot: Slot, key: &[u8], version: Version) {
        if self.directory.change_holders(key, version, |holders| holders.remove(slot)) == Some(true) {
            self.count_copies(slot, -1);
            if let Some(entry) = self.directory.get(key).filter(|_| !self.members.leaving().is_empty()) {
                self.drain_after_lack(&entry);
            }
        }
    }

    pub(super) fn count_copies(&mut self, slot: Slot, change: i64) {
        if let Some(member) = self.members.get_mut(slot) {
            member.copies = member.copies.saturating_add_signed(change);
        }
    }

    /// Whether a write of `key` at `version` is on its way to `slot`: neither acknowledged nor refused.
    pub(super) fn is_under_way(&self, slot: Slot, key: &[u8], version: Version) -> bool {
        let Some(member) = self.members.get(slot) else { return false };
        member.unacked().any(|sent| match sent {
            Sent::Item { write, item, .. } => {
                self.item_key(*write, *item).is_some_and(|(k, v)| k == key && v == version)
            }
            Sent::Copy { key: k, version: v, .. } => k == key && *v == version,
            Sent::Refused => false,
        })
    }

    /// Marks `slot` as a holder of `key` and sends it the value as a copy for which no client waits. What it is sent later, as
    /// the drop of a version that is superseded meanwhile, arrives after it.
    pub(super) fn copy_to(
        &mut self,
        slot: Slot,
        key: &Bytes,
        version: Version,
        value: &Bytes,
        cause: CopyCause,
        effects: &mut Vec<Effect>,
    ) {
        self.held(slot, key, version);
        let sent = Sent::Copy { key: key.clone(), version, bytes: payload(key, value), cause };
        self.send_write(slot, sent, version, key, value, effects);
    }

    /// Sends a value to `slot`, which must have a slave.
    pub(super) fn send_write(
        &mut self,
        slot: Slot,
        sent: Sent,
        version: Version,
        key: &Bytes,
        value: &Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let Some(link) = self.members.link_of(slot) else { return };
        if let Some(member) = self.members.get_mut(slot) {
            member.sent(sent);
        }
        let reign = self.reigns.id_of(version.epoch);
        effects.push(Effect::SendWrite { link, version, reign, key: key.clone(), value: value.clone() });
    }

    /// Tells `slot`, which must have a slave, to forget `version` of `key` and older ones.
    pub(super) fn send_drop(&self, slot: Slot, version: Version, key: Bytes, effects: &mut Vec<Effect>) {
        if let Some(link) = self.members.link_of(slot) {
            let reign = self.reigns.id_of(version.epoch);
            effects.push(Effect::SendDrop { link, version, reign, key });
        }
    }

    /// `slot` had no room for a value. It may still hold the older value, which was not dropped when the slave was
    /// chosen.
    pub(super) fn refused(&mut self, slot: Slot, key: Bytes, version: Version, effects: &mut Vec<Effect>) {
        self.not_held(slot, &key, version);
        self.send_drop(slot, version, key, effects);
    }

    /// Sends a value from the log to as many slaves as copies are missing, if it is still the latest.
    pub(super) fn put_back(
        &mut self,
        key: &Bytes,
        version: Version,
        value: &Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let staying = self.members.staying();
        let Some(entry) = self.directory.get(key).filter(|entry| entry.version == version) else { return };
        let lacking = self.copies_wanted().saturating_sub(entry.holders.intersection(staying).len());
        let among = if value.len() <= self.config.value_max {
            self.with_room(payload(key, value)).without(entry.holders).without(self.behind_on_copies())
        } else {
            SlotSet::EMPTY
        };
        let hash = hash_bytes(key);
        let chosen = choose(self.config.placement, &self.members, among, lacking, hash, &mut self.random);
        for slot in chosen.iter() {
            self.copy_to(slot, key, version, value, CopyCause::PutBack, effects);
        }
    }

    /// The slaves that already owe acknowledgements for as many bytes as may be read from the log at a time. No client
    /// waits for a copy, so nothing else would bound what reads put into their links.
    fn behind_on_copies(&self) -> SlotSet {
        let window_bytes = self.config.log_window_bytes;
        let is_behind = |member: &Member| member.unacked_bytes() >= window_bytes;
        self.members.iter().filter(|(_, member)| is_behind(member)).map(|(slot, _)| slot).collect()
    }

    /// Tells the holders of a superseded version that do not get the new one to forget it.
    pub(super) fn drop_copies(&mut self, key: &Bytes, old: Entry, kept: SlotSet, effects: &mut Vec<Effect>) {
        for slot in old.holders.intersection(self.members.live()).iter() {
            self.count_copies(slot, -1);
            if !kept.contains(slot) {
                self.send_drop(slot, old.version, key.clone(), effects);
            }
        }
    }
}
