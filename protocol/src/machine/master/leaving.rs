//! Slaves that are to leave: each is drained first, then let go.
//!
//! Owns who is to leave, and when nothing is needed from it any more. A slave that is drained gets nothing new, its copies do not
//! count, and `repair.rs` makes them elsewhere; it is still read from. See `docs/ARCHITECTURE.md`, *Removing a slave*.

use super::membership::SentMark;
use super::repair::RepairCause;
use super::{Asker, Effect, Entry, Master, SlotSet};
use crate::command::{ErrorWord, Reply};
use crate::ids::{Millis, SlaveId};
use crate::planted;
use std::collections::BTreeMap;

/// The most slaves that are removed in one reign: their names are kept.
const LEAVING_MAX: usize = 256;

/// So often it is looked whether a slave that leaves has reported everything, in milliseconds.
const REPORT_LOOK_MS: u64 = 1000;

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
    /// Those whose copies are all made. What they were sent must still be acknowledged, and what the others were sent until then,
    /// too: copies on their way count.
    drained: SlotSet,
    marks: Vec<SentMark>,
    /// When a run of repair is to look at their keys again. Rebalancing does not wait for that: it may make room.
    again: Option<Millis>,
}

impl LeavingSlaves {
    /// The reign is over: the next one knows of nobody that is to leave.
    pub(super) fn clear(&mut self) {
        *self = LeavingSlaves::default();
    }

    /// Copies may be missing again: what was seen of them so far does not count. A run of repair is planned.
    fn doubt(&mut self) {
        (self.covered, self.drained) = (SlotSet::EMPTY, SlotSet::EMPTY);
        self.marks.clear();
    }

    /// The same, and no run of repair is planned.
    fn doubt_and_look(&mut self) {
        self.doubt();
        self.again = Some(Millis(0));
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

    /// A slave was lost. Others that are drained may need copies of it.
    pub(super) fn drain_after_loss(&mut self, is_let_go: bool) {
        if planted!(DrainForgetsLoss) {
            return;
        }
        if is_let_go {
            self.leaving.doubt_and_look();
        } else {
            self.leaving.doubt();
        }
    }

    /// A slave lacks a copy that it was thought to have: if one that leaves has another, that is needed for longer.
    pub(super) fn drain_after_lack(&mut self, entry: &Entry) {
        let leaving = entry.holders.intersection(self.members.leaving());
        let staying = entry.holders.intersection(self.members.staying());
        if !leaving.is_empty() && staying.len() < self.copies_wanted() {
            self.leaving.doubt_and_look();
        }
    }

    /// A removed slave was started anew: it is one like all others.
    pub(super) fn slave_started_anew(&mut self, id: &SlaveId) {
        if !planted!(RemovalOutlivesProcess) {
            self.leaving.all.remove(id);
        }
    }

    fn drain(&mut self, now: Millis) {
        self.leaving.doubt();
        self.plan_repair(now, RepairCause::SlaveLeaves);
    }

    /// A run of repair begins a first round.
    pub(super) fn cover_leaving(&mut self) {
        self.leaving.doubt();
        // Of one that has not reported everything it is not known what nobody else has.
        let reported = self.members.leaving().without(self.members.unreported());
        (self.leaving.covered, self.leaving.again) = (reported, None);
    }

    /// Looks at the clock: a drain that is in doubt, or found no room, is gone on with.
    pub(super) fn tick_drain(&mut self, now: Millis) {
        if self.leaving.again.is_some_and(|at| at <= now) && !self.is_repairing() {
            self.leaving.again = None;
            if !self.members.leaving().is_empty() {
                self.plan_repair(now, RepairCause::SlaveLeaves);
            }
        }
    }

    /// Whether a run of repair is to look at keys of slaves that leave, later.
    pub(super) fn drains_later(&self) -> bool {
        self.leaving.again.is_some() && !self.members.leaving().is_empty()
    }

    /// The slaves whose copies the present run of repair makes elsewhere.
    pub(super) fn covered(&self) -> SlotSet {
        self.leaving.covered
    }

    /// A run of repair has ended; whether every key that those who leave hold has its copies elsewhere. Else it is tried again.
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
            // Those that came into doubt during the last walk are not covered any more.
            self.leaving.drained = self.leaving.covered;
            self.leaving.marks = self.members.sent_marks();
        }
        let is_unreported = !leaving.intersection(self.members.unreported()).is_empty();
        if !is_complete || !leaving.without(self.leaving.drained).is_empty() {
            // A report that stands still is not walked for again and again.
            let again_ms = if is_unreported { again_ms.max(REPORT_LOOK_MS) } else { again_ms };
            self.leaving.again.get_or_insert(now.plus(again_ms));
        }
    }

    /// Lets those go from which nothing is needed.
    pub(super) fn let_go(&mut self, effects: &mut Vec<Effect>) {
        let has_acked = self.members.have_acked(&self.leaving.marks) || planted!(DrainUnacked);
        if self.leaving.drained.is_empty() || !has_acked {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::super::bench::{id, RepairBench};
    use super::*;
    use crate::command::Command;
    use crate::ids::{LinkId, Version};
    use crate::info::RepairState;
    use crate::machine::master::{Census, CopyCount, Event, Lacking};
    use crate::record::Place;
    use bytes::Bytes;

    #[test]
    fn a_copy_on_its_way_to_a_slave_that_hangs_is_waited_for() {
        let mut bench = RepairBench::new(CopyCount::Fixed(2), 2);
        bench.work(1000);
        bench.hangs = Some(LinkId(1));
        bench.put("k");
        bench.ask(Command::RemoveSlave { id: id(0) });
        (0..20).for_each(|_| bench.work(25));
        assert!(!bench.has_let_go(0), "the other one has acknowledged nothing");
        bench.hangs = None;
        bench.step(Event::Acked { link: LinkId(1), writes: 1, room_bytes: 1 << 40 });
        (0..20).for_each(|_| bench.work(25));
        assert!(bench.has_let_go(0));
    }

    #[test]
    fn a_slave_that_has_not_reported_everything_is_not_let_go() {
        let mut bench = RepairBench::new(CopyCount::Fixed(1), 2);
        bench.master.replay_put(b"old", Version::new(1, 1), Place::default(), None);
        bench.begin_to_report(2, 1 << 40, &[]);
        bench.ask(Command::RemoveSlave { id: id(2) });
        // Repair does not wait for such a report for ever.
        (0..1000).for_each(|_| bench.work(25));
        assert!(!bench.has_let_go(2), "it may have the only copy of a key");
        let stamp = crate::ids::Stamp { version: Version::new(1, 1), reign: crate::ids::ReignId(0) };
        let entries = vec![(Bytes::from("old"), stamp)];
        bench.step(Event::Holdings { link: LinkId(2), entries, last: true });
        (0..1000).for_each(|_| bench.work(25));
        assert!(bench.has_let_go(2));
        bench.step(Event::SlaveLost { link: LinkId(2) });
        assert_eq!(bench.copies("old"), 1, "one that is left has it");
    }

    #[test]
    fn a_report_that_ends_during_the_last_walk_is_looked_at_by_another_one() {
        const KEYS: u64 = 20_000;
        let mut bench = RepairBench::new(CopyCount::Fixed(1), 2);
        bench.master.replay_put(b"old", Version::new(1, 1), Place::default(), None);
        (0..KEYS).for_each(|n| bench.put(format!("k{n}")));
        bench.begin_to_report(2, 1 << 40, &[]);
        // Nobody else has room.
        for link in [0, 1].map(LinkId) {
            bench.step(Event::Acked { link, writes: 0, room_bytes: 0 });
        }
        bench.ask(Command::RemoveSlave { id: id(2) });
        for _ in 0..100_000 {
            bench.now = bench.now.plus(1);
            bench.step(Event::Tick);
            if bench.master.is_repairing() {
                break;
            }
        }
        (0..2).for_each(|_| bench.step(Event::Chore));
        let stamp = crate::ids::Stamp { version: Version::new(1, 1), reign: crate::ids::ReignId(0) };
        let entries = vec![(Bytes::from("old"), stamp)];
        bench.step(Event::Holdings { link: LinkId(2), entries, last: true });
        (0..100).for_each(|_| bench.work(25));
        assert!(!bench.has_let_go(2), "it has the only copy");
    }

    #[test]
    fn a_key_that_others_lack_and_nobody_can_take_keeps_no_slave() {
        let mut bench = RepairBench::new(CopyCount::Half, 3);
        let too_long = Place { bytes: 2000, ..Place::default() };
        bench.master.replay_put(b"old", Version::new(1, 1), too_long, None);
        bench.put("k");
        bench.ask(Command::RemoveSlave { id: id(0) });
        (0..1000).for_each(|_| bench.work(25));
        assert!(bench.has_let_go(0), "{} keys to drain", bench.master.keys_to_drain());
    }

    #[test]
    fn writes_that_lack_copies_while_slaves_are_missing_keep_no_slave() {
        const KEYS: u64 = 20_000;
        let mut bench = RepairBench::new(CopyCount::Half, 6);
        (0..KEYS).for_each(|n| bench.put(format!("k{n}")));
        for link in [5, 4].map(LinkId) {
            bench.step(Event::SlaveLost { link });
        }
        (0..50).for_each(|_| bench.work(25));
        bench.ask(Command::RemoveSlave { id: id(0) });
        for n in 0..10_000u64 {
            if bench.has_let_go(0) {
                break;
            }
            // A walk never ends without new writes of keys that it has passed.
            for write in 0..5 {
                bench.put(format!("k{}", (n * 5 + write) * 7919 % KEYS));
                bench.step(Event::Chore);
            }
            bench.now = bench.now.plus(1);
            bench.step(Event::Tick);
        }
        assert!(bench.has_let_go(0), "after 10 s of 5,000 writes a second");
    }

    #[test]
    fn a_slave_that_refuses_a_copy_after_the_last_walk_makes_a_drain_go_on() {
        let mut bench = RepairBench::new(CopyCount::Fixed(2), 2);
        bench.hangs = Some(LinkId(1));
        bench.put("k");
        bench.join(2, 1 << 40, &[]);
        bench.work(1000);
        bench.ask(Command::RemoveSlave { id: id(0) });
        bench.work_until_repair_rests();
        assert_eq!((bench.copies("k"), bench.has_let_go(0)), (2, false), "one of them is on its way");
        bench.hangs = None;
        bench.step(Event::Full { link: LinkId(1), before: Some(0) });
        bench.step(Event::Acked { link: LinkId(1), writes: 1, room_bytes: 0 });
        (0..10).for_each(|_| bench.work(25));
        assert_eq!((bench.copies("k"), bench.has_let_go(0)), (1, false));
        // It has room again.
        bench.step(Event::Acked { link: LinkId(1), writes: 0, room_bytes: 1 << 40 });
        (0..500).for_each(|_| bench.work(25));
        assert_eq!((bench.copies("k"), bench.has_let_go(0)), (2, true));
    }

    #[test]
    fn a_slave_that_lacks_a_copy_after_the_last_walk_makes_a_drain_go_on() {
        let mut bench = RepairBench::new(CopyCount::Fixed(1), 2);
        (0..20).for_each(|n| bench.put(format!("k{n}")));
        let leaving = bench.slot(0);
        let is_there = |(key, entry): (&[u8], Entry)| entry.holders.contains(leaving).then(|| key.to_vec());
        let key = bench.master.directory().iter().find_map(is_there).unwrap();
        let key = String::from_utf8(key).unwrap();
        bench.work(1000);
        bench.ask(Command::RemoveSlave { id: id(0) });
        bench.work_until_repair_rests();
        assert_eq!((bench.copies(&key), bench.has_let_go(0)), (1, false));
        bench.hangs = Some(LinkId(1));
        while bench.unanswered.is_empty() {
            bench.ask(Command::Get { key: Bytes::from(key.clone()) });
        }
        bench.step(Event::Missing { link: LinkId(1), read: bench.unanswered[0] });
        bench.hangs = None;
        assert_eq!(bench.copies(&key), 0);
        bench.step(Event::Tick);
        assert!(!bench.has_let_go(0), "it has the only copy");
        (0..10).for_each(|_| bench.work(25));
        assert_eq!((bench.copies(&key), bench.has_let_go(0)), (1, true));
    }

    #[test]
    fn the_end_of_a_slave_that_was_let_go_does_not_end_the_drain_of_another_one() {
        let mut bench = RepairBench::new(CopyCount::Fixed(2), 3);
        (0..100).for_each(|n| bench.put(format!("k{n}")));
        bench.work(1000);
        bench.ask(Command::RemoveSlave { id: id(0) });
        (0..10).for_each(|_| bench.work(25));
        assert!(bench.has_let_go(0));
        bench.hangs = Some(LinkId(2));
        bench.put("k");
        bench.ask(Command::RemoveSlave { id: id(1) });
        bench.work_until_repair_rests();
        bench.step(Event::SlaveLost { link: LinkId(0) });
        bench.hangs = None;
        bench.step(Event::Acked { link: LinkId(2), writes: 1, room_bytes: 1 << 40 });
        (0..10).for_each(|_| bench.work(25));
        assert!(bench.has_let_go(1), "{:?}", bench.master.repair_state());
    }

    #[test]
    fn a_drain_that_finds_no_room_lets_rebalancing_make_some() {
        let mut bench = RepairBench::new(CopyCount::Fixed(1), 1);
        let everywhere = ["k0", "k1", "k2", "k3"];
        everywhere.iter().for_each(|key| bench.put(*key));
        bench.put("k");
        // They have no room before they have dropped copies that are too many.
        bench.join(1, 0, &everywhere);
        bench.join(2, 0, &everywhere);
        bench.ask(Command::RemoveSlave { id: id(0) });
        bench.work_until_repair_rests();
        assert_eq!(bench.master.keys_to_drain(), 1);
        for _ in 0..1000 {
            bench.work(25);
        }
        assert_eq!(bench.master.moved().surplus, 4);
        assert!(bench.has_let_go(0), "{} keys to drain", bench.master.keys_to_drain());
    }

    #[test]
    fn what_a_slave_holds_that_leaves_is_a_copy_and_does_not_count_as_one_of_those_wanted() {
        let mut bench = RepairBench::new(CopyCount::Fixed(2), 2);
        (0..10).for_each(|n| bench.put(format!("k{n}")));
        // The one that stays has no room for anything else.
        bench.join(2, 0, &[]);
        bench.ask(Command::RemoveSlave { id: id(0) });
        (0..20).for_each(|_| bench.work(25));
        let mut census = Census::default();
        while census.last().is_none() {
            bench.now = bench.now.plus(25);
            census.look(bench.now, &bench.master);
        }
        let lacking = census.last().map(|(_, lacking)| lacking);
        assert_eq!(lacking, Some(Lacking { without_copy: 0, under_replicated: 10 }));
        assert_eq!(
            (bench.master.keys_to_drain(), bench.master.keys_under_replicated(census.last())),
            (10, 10)
        );
        assert!(!bench.has_let_go(0));
    }

    #[test]
    fn a_loss_before_the_last_step_of_the_last_walk_is_repaired_first() {
        let mut bench = RepairBench::new(CopyCount::Fixed(1), 3);
        // One more than a step looks at. The last one is to be on a slave that stays.
        (0..4097).for_each(|n| bench.put(format!("k{n}")));
        (0..50).for_each(|_| bench.work(25));
        for n in 0.. {
            let last =
                bench.master.directory().iter().last().map(|(key, entry)| (key.to_vec(), entry.holders));
            let (key, holders) = last.unwrap();
            if holders.contains(bench.slot(2)) {
                break;
            }
            bench.ask(Command::Delete { keys: vec![Bytes::from(key)] });
            bench.put(format!("last{n}"));
        }
        bench.ask(Command::RemoveSlave { id: id(0) });
        bench.now = bench.now.plus(25);
        bench.step(Event::Tick);
        for _ in 0..100_000 {
            let mut next = bench.master.clone();
            next.step(bench.now, Event::Chore, &mut Vec::new());
            if next.repair_state() != RepairState::Copying {
                break;
            }
            bench.step(Event::Chore);
            if !bench.master.may_repair() {
                bench.now = bench.now.plus(25);
                bench.step(Event::Tick);
            }
        }
        assert_eq!(bench.master.repair_state(), RepairState::Copying, "a step before the end");
        bench.step(Event::SlaveLost { link: LinkId(1) });
        bench.work(0);
        while !bench.has_let_go(0) {
            bench.work(25);
        }
        let live = bench.master.members.live().without([bench.slot(0)].into_iter().collect());
        let lost =
            bench.master.directory().iter().filter(|(_, entry)| entry.holders.intersection(live).is_empty());
        assert_eq!(lost.count(), 0, "keys without a copy");
    }
}
