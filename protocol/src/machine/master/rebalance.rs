//! Rebalancing: keys move to the slaves that placement names, and copies that are too many are dropped.
//!
//! Owns when that begins and ends, how far it has come, and which copy is given up for a new one. A *run* is three walks over
//! the directory, a slice at a time: one counts what is misplaced, one moves copies, one drops those that are too many. No list
//! of keys is kept. It uses the window and the rate of repair (`repair.rs`), which comes first. See `docs/ARCHITECTURE.md`,
//! *Rebalancing*.

use super::hash::hash_bytes;
use super::membership::{CopyCause, SentMark};
use super::placement::{choose, ranked, worst};
use super::reads::{CopyPurpose, Destination};
use super::repair::{RepairNews, READ_MS};
use super::room::payload;
use super::{CopyCount, Effect, Entry, Master, Placement, Slot, SlotSet};
use crate::ids::{Millis, Version};
use crate::info::RebalanceState;
use crate::planted;
use bytes::Bytes;

/// No slave may have come or gone for so long, in milliseconds, before keys move.
const CALM_MS: u64 = 3000;

/// With each loss of a slave after a calm time the next one must be twice as long, up to this, in milliseconds: a slave that
/// comes and goes must not have its keys moved each time.
const CALM_MAX_MS: u64 = 300_000;

/// A loss so long after the last one is the first one again, in milliseconds.
const LOSS_FORGOTTEN_MS: u64 = 1_800_000;

/// With `--copies half` a copy is dropped as one too many only after so long a calm time, in milliseconds: a new reign does not
/// know of slaves that have not come back yet, and a copy too many costs nothing but memory.
const SURPLUS_MS: u64 = 60_000;

/// What could not be moved is tried again after this time, in milliseconds.
const AGAIN_MS: u64 = 60_000;

/// So much is looked at in one step: entries, times the work of ranking the slaves for each.
const LOOKS_AT_ONCE: usize = 4096;

/// So much ranking is as much work as the rest of the look at an entry.
const RANKS_FOR_ONE: usize = 8;

/// So many steps are made between two ticks: the walks may take as long as they like.
const STEPS_PER_TICK: usize = 4;

/// What a run of rebalancing does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RebalanceWalk {
    /// It counts the misplaced keys.
    Count,
    /// It copies keys to where they belong.
    Move,
    /// It drops copies that are too many.
    Drop,
}

/// From the first look until all walks are done.
#[derive(Clone, Debug)]
struct RebalanceRun {
    began: Millis,
    walk: RebalanceWalk,
    /// The number of the next entry; `None` at the end, where what is under way is waited for.
    next: Option<usize>,
    /// Whether copies that are too many are dropped, too.
    drops_surplus: bool,
    is_told: bool,
    /// Keys that were begun, and those for which no slave has room.
    begun: u64,
    stuck: u64,
    /// What was done before this run.
    before: Moved,
    /// What was sent before the walk that drops began: it waits until all of this is acknowledged. It looks at no later version.
    marks: Vec<SentMark>,
    newest: Version,
}

/// What rebalancing has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Keys of which a copy was moved.
    pub keys: u64,
    /// Bytes of these copies, with their keys.
    pub bytes: u64,
    /// Copies that were too many, and are dropped.
    pub surplus: u64,
}

/// The state of rebalancing.
#[derive(Clone, Debug, Default)]
pub(super) struct Rebalance {
    /// When the next run begins.
    due: Option<Millis>,
    /// From when on copies that are too many may be dropped.
    surplus_from: Millis,
    /// How long no slave may have come or gone, and when one was lost last.
    calm_ms: u64,
    calm_from: Millis,
    lost: Option<Millis>,
    run: Option<RebalanceRun>,
    /// Steps that may be made before the next tick.
    steps: usize,
    /// Misplaced keys, at the last count and less those moved since.
    left: u64,
    done: Moved,
    /// The latest version that was placed.
    placed: Version,
}

impl Rebalance {
    /// The reign begins with this version, or a write of it is placed: that of an earlier one is never placed after it.
    pub(super) fn note_placed(&mut self, version: Version) {
        self.placed = version;
    }

    /// The reign is over.
    pub(super) fn clear(&mut self) {
        *self = Rebalance { done: self.done, ..Rebalance::default() };
    }

    /// A slave has come or was lost.
    fn disturb(&mut self, now: Millis, is_loss: bool, copies: CopyCount) {
        if is_loss {
            let is_again = self.lost.is_some_and(|lost| now.since(lost) < LOSS_FORGOTTEN_MS);
            let was_calm = self.calm_from <= now;
            if !is_again {
                self.calm_ms = CALM_MS;
            } else if was_calm {
                self.calm_ms = (self.calm_ms * 2).min(CALM_MAX_MS);
            }
            self.lost = Some(now);
        }
        self.calm_ms = self.calm_ms.max(CALM_MS);
        self.calm_from = now.plus(self.calm_ms);
        self.due = Some(self.calm_from);
        let surplus_ms = if copies == CopyCount::Half { SURPLUS_MS } else { 0 };
        self.surplus_from = now.plus(self.calm_ms.max(surplus_ms));
    }
}

/// What is wrong with the copies of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misplaced {
    /// Some of its slaves lack it, and others have it.
    Elsewhere,
    /// Nothing but that there are too many.
    TooMany,
}

impl Master {
    /// A slave has its place, or was lost. What was begun is done anew when it is calm again.
    pub(super) fn rebalance_after_change(&mut self, now: Millis, is_loss: bool, effects: &mut Vec<Effect>) {
        if self.repairs() {
            self.rebalance.disturb(now, is_loss, self.config.copies);
            self.end_rebalance(now, effects);
        }
    }

    /// What rebalancing is doing.
    pub fn rebalance_state(&self) -> RebalanceState {
        if !self.repairs() {
            RebalanceState::Off
        } else if self.rebalance.run.as_ref().is_some_and(|run| run.is_told) {
            RebalanceState::Moving
        } else if self.rebalance.run.is_some() || self.rebalance.due.is_some() {
            RebalanceState::Waiting
        } else {
            RebalanceState::Resting
        }
    }

    /// How many keys are misplaced, as far as counted.
    pub fn keys_misplaced(&self) -> u64 {
        self.rebalance.left
    }

    /// What rebalancing has done since this master started.
    pub fn moved(&self) -> Moved {
        self.rebalance.done
    }

    /// Whether a step of rebalancing would do something. Repair comes first.
    pub(super) fn may_rebalance(&self) -> bool {
        let Some(run) = self.rebalance.run.as_ref().filter(|_| self.is_repaired()) else { return false };
        match (run.walk, run.next) {
            (RebalanceWalk::Count, _) => self.rebalance.steps > 0,
            // What a slave reports late of a key may be one copy too many beside one that is not acknowledged.
            (RebalanceWalk::Drop, _) if !self.members.unreported().is_empty() => false,
            (RebalanceWalk::Drop, _) if !self.members.have_acked(&run.marks) => false,
            (RebalanceWalk::Move | RebalanceWalk::Drop, Some(_)) => {
                self.rebalance.steps > 0 && self.has_repair_room()
            }
            (RebalanceWalk::Move | RebalanceWalk::Drop, None) => self.repairing().0 == 0,
        }
    }

    /// Looks at the clock: what is due begins.
    pub(super) fn tick_rebalance(&mut self, now: Millis) {
        let is_due = self.rebalance.due.is_some_and(|due| due <= now) && !planted!(MisplacedCopiesStay);
        self.rebalance.steps = STEPS_PER_TICK;
        if !is_due || self.rebalance.run.is_some() || !self.is_repaired() || self.members.live().is_empty() {
            return;
        }
        let rebalance = &mut self.rebalance;
        let drops_surplus = rebalance.surplus_from <= now;
        rebalance.due = (!drops_surplus).then_some(rebalance.surplus_from);
        rebalance.run = Some(RebalanceRun {
            began: now,
            walk: RebalanceWalk::Count,
            next: Some(0),
            drops_surplus,
            is_told: false,
            begun: 0,
            stuck: 0,
            before: rebalance.done,
            marks: Vec::new(),
            newest: Version::default(),
        });
        rebalance.left = 0;
    }

    /// What is wrong with the copies of a key, if something is. Keys that lack copies are repair's.
    fn misplaced(&self, key: &[u8], entry: &Entry, drops_surplus: bool) -> Option<Misplaced> {
        let (staying, wanted) = (self.members.staying(), self.copies_wanted());
        let holders = entry.holders.intersection(staying);
        if holders.len() < wanted {
            return None;
        }
        let is_elsewhere = self.config.placement == Placement::Hash && {
            let right = ranked(&self.members, staying, wanted, hash_bytes(key));
            !right.without(holders).is_empty()
        };
        if is_elsewhere {
            Some(Misplaced::Elsewhere)
        } else {
            (drops_surplus && holders.len() > wanted).then_some(Misplaced::TooMany)
        }
    }

    /// Does a part of the present walk.
    pub(super) fn rebalance_on(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.may_rebalance() {
            return;
        }
        self.rebalance.steps = self.rebalance.steps.saturating_sub(1);
        let ranks = self.members.len();
        let mut entries = (LOOKS_AT_ONCE / (ranks / RANKS_FOR_ONE).max(1)).max(1);
        let mut keys_left = self.repair_keys_max().saturating_sub(self.repairing().0);
        while let Some(run) = &self.rebalance.run {
            let Some(from) = run.next.filter(|_| keys_left > 0) else { break };
            let (walk, drops_surplus, newest) = (run.walk, run.drops_surplus, run.newest);
            let mut counted = 0;
            let found = self.directory.find(from, &mut entries, |key, entry| {
                let misplaced = self.misplaced(key, entry, drops_surplus);
                match walk {
                    RebalanceWalk::Count => {
                        counted += u64::from(misplaced.is_some());
                        false
                    }
                    RebalanceWalk::Move => misplaced == Some(Misplaced::Elsewhere),
                    RebalanceWalk::Drop => {
                        let holders = entry.holders.intersection(self.members.staying());
                        misplaced.is_some() && holders.len() > self.copies_wanted() && entry.version <= newest
                    }
                }
            });
            self.rebalance.left += counted;
            if let Some(run) = &mut self.rebalance.run {
                run.next = found.next;
            }
            if let Some((key, entry)) = found.entry {
                keys_left -= 1;
                match walk {
                    RebalanceWalk::Drop => self.drop_surplus(key, entry, effects),
                    RebalanceWalk::Count | RebalanceWalk::Move => self.begin_move(now, key, entry, effects),
                }
            }
            if entries == 0 || !self.has_repair_room() {
                return;
            }
        }
        let is_over = self.rebalance.run.as_ref().is_some_and(|run| run.next.is_none());
        if is_over && self.repairing().0 == 0 {
            self.end_walk(now, effects);
        }
    }

    /// The slaves to which a key is to be copied: those that placement names, lack it and have room.
    fn movers(&self, key: &[u8], entry: &Entry, charge: u64) -> SlotSet {
        let right = ranked(&self.members, self.members.staying(), self.copies_wanted(), hash_bytes(key));
        right.intersection(self.takers(entry, charge))
    }

    /// Reads the value of a misplaced key, if one of its slaves can take it.
    fn begin_move(&mut self, now: Millis, key: Bytes, entry: Entry, effects: &mut Vec<Effect>) {
        let bytes = key.len() as u64 + u64::from(entry.place.bytes);
        let charge = payload(&key, &[]) + u64::from(entry.place.bytes);
        let movers = self.movers(&key, &entry, charge);
        let Some(run) = self.rebalance.run.as_mut() else { return };
        if movers.is_empty() {
            run.stuck += 1;
            return;
        }
        run.begun += 1;
        self.tell_rebalance(effects);
        self.repair.charge(charge * movers.len() as u64);
        self.repair.begin_read(bytes);
        let to = Destination::Repair { bytes, purpose: CopyPurpose::Moves };
        self.read_entry(now, to, now.plus(READ_MS), key, entry, effects);
    }

    fn tell_rebalance(&mut self, effects: &mut Vec<Effect>) {
        let left = self.rebalance.left;
        if let Some(run) = self.rebalance.run.as_mut() {
            if !std::mem::replace(&mut run.is_told, true) {
                effects.push(Effect::Repair(RepairNews::RebalanceBegan { keys: left }));
            }
        }
    }

    /// The value of a misplaced key has been read. Slaves may have come and gone, or been filled, since.
    pub(super) fn move_read(&mut self, key: &Bytes, entry: &Entry, value: &Bytes, effects: &mut Vec<Effect>) {
        let mut is_first = true;
        for slot in self.movers(key, entry, payload(key, value)).iter() {
            let cause = CopyCause::Move { is_first: std::mem::replace(&mut is_first, false) };
            self.copy_to(slot, key, entry.version, value, cause, effects);
        }
    }

    /// A slave has acknowledged a copy that was moved to it: now another one may go. So a key never has fewer acknowledged
    /// copies than before.
    pub(super) fn moved_to(
        &mut self,
        slot: Slot,
        (key, version): (&Bytes, Version),
        (bytes, is_first): (u64, bool),
        effects: &mut Vec<Effect>,
    ) {
        self.rebalance.done.keys += u64::from(is_first);
        self.rebalance.done.bytes += bytes;
        self.rebalance.left = self.rebalance.left.saturating_sub(u64::from(is_first));
        let is_current = |entry: &Entry| entry.version == version && entry.holders.contains(slot);
        let Some(entry) = self.directory.get(key).filter(is_current) else { return };
        let holders = entry.holders.intersection(self.members.staying());
        if holders.len() > self.copies_wanted() {
            // Of one that still reports, an older report may come after the drop, and would make it a holder again. The walk that
            // drops what is too many comes later.
            let old = worst(&self.members, holders, hash_bytes(key));
            if let Some(old) = old.filter(|old| !self.members.unreported().contains(*old)) {
                self.drop_at(old, key, version, effects);
            }
        }
    }

    /// Drops the copies of a key that are too many. Those that stay are acknowledged: that was waited for.
    fn drop_surplus(&mut self, key: Bytes, entry: Entry, effects: &mut Vec<Effect>) {
        let holders = entry.holders.intersection(self.members.staying());
        let (hash, wanted) = (hash_bytes(&key), self.copies_wanted());
        let kept = choose(self.config.placement, &self.members, holders, wanted, hash, &mut self.random);
        self.tell_rebalance(effects);
        for slot in holders.without(kept).iter() {
            self.repair.charge(payload(&key, &[]));
            self.drop_at(slot, &key, entry.version, effects);
            self.rebalance.done.surplus += 1;
        }
        self.rebalance.left = self.rebalance.left.saturating_sub(1);
    }

    fn drop_at(&mut self, slot: Slot, key: &Bytes, version: Version, effects: &mut Vec<Effect>) {
        self.not_held(slot, key, version);
        self.send_drop(slot, version, key.clone(), effects);
    }

    /// Begins the next walk, or ends the run.
    fn end_walk(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let (left, placed) = (self.rebalance.left, self.rebalance.placed);
        let marks = self.members.sent_marks();
        let Some(run) = self.rebalance.run.as_mut() else { return };
        match run.walk {
            RebalanceWalk::Count if left > 0 => (run.walk, run.next) = (RebalanceWalk::Move, Some(0)),
            RebalanceWalk::Move if run.drops_surplus => {
                (run.walk, run.next) = (RebalanceWalk::Drop, Some(0));
                (run.marks, run.newest) = (marks, placed);
            }
            RebalanceWalk::Count | RebalanceWalk::Move | RebalanceWalk::Drop => {
                let moved = self.rebalance.done.keys - run.before.keys;
                let left = (run.stuck + run.begun).saturating_sub(moved);
                self.rebalance.left = left;
                if left > 0 && self.rebalance.due.is_none() {
                    self.rebalance.due = Some(now.plus(AGAIN_MS));
                }
                self.end_rebalance(now, effects);
            }
        }
    }

    fn end_rebalance(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let Some(run) = self.rebalance.run.take().filter(|run| run.is_told) else { return };
        let Moved { keys, bytes, surplus } = self.rebalance.done;
        effects.push(Effect::Repair(RepairNews::RebalanceEnded {
            keys: keys - run.before.keys,
            bytes: bytes - run.before.bytes,
            surplus: surplus - run.before.surplus,
            ms: now.since(run.began),
            left: self.rebalance.left,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::RepairBench;
    use super::super::placement;
    use super::*;
    use crate::ids::LinkId;
    use crate::machine::master::{Event, SLAVES_MAX};

    /// Works until the next run has ended, or a minute is over.
    fn rebalance(bench: &mut RepairBench) {
        (0..2400).for_each(|_| bench.work(25));
    }

    #[test]
    fn a_slave_that_still_reports_is_told_to_drop_nothing() {
        let mut bench = RepairBench::new(CopyCount::Fixed(2), 2);
        let keys: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
        keys.iter().for_each(|key| bench.put(key.clone()));
        // It is back with all that it had, and its report does not come to its end.
        bench.step(Event::SlaveLost { link: LinkId(0) });
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        bench.begin_to_report(0, 1 << 40, &keys);
        bench.join(2, 1 << 40, &[]);
        rebalance(&mut bench);
        let told = |bench: &RepairBench, link| bench.dropped.iter().filter(|to| **to == LinkId(link)).count();
        assert!(bench.master.moved().keys > 20, "{:?}", bench.master.moved());
        assert_eq!((told(&bench, 0), told(&bench, 1) > 10), (0, true));
        // Else what it reports now would make it a holder of what it has dropped.
        bench.step(Event::Holdings { link: LinkId(0), entries: Vec::new(), last: true });
        rebalance(&mut bench);
        assert!(told(&bench, 0) > 10, "{} of 50", told(&bench, 0));
        assert!(keys.iter().all(|key| bench.copies(key) == 2));
    }

    #[test]
    fn copies_too_many_are_not_dropped_while_a_slave_still_reports() {
        let mut bench = RepairBench::new(CopyCount::Fixed(1), 1);
        bench.put("k");
        bench.join(1, 1 << 40, &["k"]);
        bench.begin_to_report(2, 1 << 40, &[]);
        rebalance(&mut bench);
        assert_eq!((bench.copies("k"), bench.dropped.len()), (2, 0));
        bench.step(Event::Holdings { link: LinkId(2), entries: Vec::new(), last: true });
        rebalance(&mut bench);
        assert_eq!(bench.copies("k"), 1);
    }

    #[test]
    fn with_many_slaves_a_step_looks_at_fewer_keys() {
        let mut bench = RepairBench::new(CopyCount::Fixed(2), SLAVES_MAX as u64);
        (0..20_000).for_each(|n| bench.put(format!("k{n}")));
        let (mut steps, mut most) = (0, 0);
        bench.now = bench.now.plus(CALM_MS);
        while bench.master.rebalance_state() != RebalanceState::Resting {
            bench.now = bench.now.plus(25);
            bench.step(Event::Tick);
            while bench.master.has_chores() {
                let before = placement::weights();
                bench.step(Event::Chore);
                most = most.max(placement::weights() - before);
                steps += 1;
            }
        }
        assert!((1..=LOOKS_AT_ONCE * RANKS_FOR_ONE).contains(&most), "{most} ranks in one of {steps} steps");
    }
}
