//! Slaves that are to leave: each is drained first, then let go.
//!
//! Owns who is to leave, and when nothing is needed from it any more. A slave that is drained gets nothing new, its copies do not
//! count, and `repair.rs` makes them elsewhere; it is still read from. See `docs/ARCHITECTURE.md`, *Removing a slave*.

use super::membership::SentMark;
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
    /// Those whose copies are all made. What they were sent must still be acknowledged, and what the others were sent until then,
    /// too: copies on their way count.
    drained: SlotSet,
    marks: Vec<SentMark>,
}

impl LeavingSlaves {
    /// The reign is over: the next one knows of nobody that is to leave.
    pub(super) fn clear(&mut self) {
        *self = LeavingSlaves::default();
    }

    /// A slave was lost: copies may be missing again.
    pub(super) fn doubt(&mut self) {
        (self.covered, self.drained) = (SlotSet::EMPTY, SlotSet::EMPTY);
        self.marks.clear();
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
        self.leaving.doubt();
        self.leaving.covered = self.members.leaving();
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
            self.leaving.drained = self.leaving.covered.intersection(leaving);
            self.leaving.marks = self.members.sent_marks();
        } else {
            self.plan_repair(now.plus(again_ms), RepairCause::SlaveLeaves);
        }
    }

    /// Lets those go from which nothing is needed.
    pub(super) fn let_go(&mut self, effects: &mut Vec<Effect>) {
        if self.leaving.drained.is_empty() || !self.members.have_acked(&self.leaving.marks) {
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
    use super::*;
    use crate::command::Command;
    use crate::ids::{LinkId, ReignId, SessionId, Version};
    use crate::info::RepairState;
    use crate::machine::master::{Change, Config, CopyCount, Event, Slot};
    use crate::record::Place;
    use bytes::Bytes;
    use smallvec::SmallVec;

    /// A master with slaves that answer at once, but for one that may hang.
    struct Bench {
        master: Master,
        now: Millis,
        seq: u64,
        hangs: Option<LinkId>,
        let_go: Vec<LinkId>,
    }

    impl Bench {
        fn new(copies: CopyCount, slaves: u64) -> Bench {
            let config =
                Config { copies, repair_bytes_per_second: 1 << 40, value_max: 1000, ..Config::default() };
            let master = Master::new(config);
            let mut bench = Bench { master, now: Millis(0), seq: 1, hangs: None, let_go: Vec::new() };
            bench.step(Event::ReignBegan { version: Version::new(1, 1), id: ReignId(1) });
            for link in (0..slaves).map(LinkId) {
                bench.step(Event::SlaveJoined { id: id(link.0), link, room_bytes: 1 << 40 });
                bench.step(Event::Holdings { link, entries: Vec::new(), last: true });
            }
            bench
        }

        fn step(&mut self, event: Event) {
            let mut effects = Vec::new();
            self.master.step(self.now, event, &mut effects);
            for effect in effects {
                if let Effect::Append { write, change } = effect {
                    self.seq += 1;
                    let items = match &*change {
                        Change::Put(pairs) => pairs.len(),
                        Change::Delete(_) => 0,
                    };
                    let places = SmallVec::from_elem(Place { bytes: 1, ..Place::default() }, items);
                    self.step(Event::Written { write, version: Version::new(1, self.seq), places });
                } else if let Effect::SendWrite { link, .. } = effect {
                    if self.hangs != Some(link) {
                        self.step(Event::Acked { link, writes: 1, room_bytes: 1 << 40 });
                    }
                } else if let Effect::SendRead { link, read, version, reign, .. } = effect {
                    if self.hangs != Some(link) {
                        let value = Bytes::from_static(b"v");
                        self.step(Event::Value { link, read, version, reign, value });
                    }
                } else if let Effect::ReadLog { read, .. } = effect {
                    self.step(Event::LogRead { read, result: Ok(Bytes::from_static(b"v")) });
                } else if let Effect::Leaving { link, state: Leaving::LetGo } = effect {
                    self.let_go.push(link);
                }
            }
        }

        fn ask(&mut self, command: Command) {
            let asker = Asker { session: SessionId(1), tag: self.seq };
            self.step(Event::Request { asker, deadline: Millis(1 << 40), command });
        }

        fn put(&mut self, key: impl Into<String>) {
            self.ask(Command::Put { key: Bytes::from(key.into()), value: Bytes::from_static(b"v") });
        }

        fn work(&mut self, ms: u64) {
            self.now = self.now.plus(ms);
            self.step(Event::Tick);
            for _ in 0..1000 {
                if self.master.has_chores() {
                    self.step(Event::Chore);
                }
            }
        }

        fn slot(&self, link: u64) -> Slot {
            self.master.members.slot_of(LinkId(link)).unwrap()
        }

        fn has_let_go(&self, link: u64) -> bool {
            self.let_go.contains(&LinkId(link))
        }
    }

    fn id(link: u64) -> SlaveId {
        SlaveId::new(format!("slave-{link}")).unwrap()
    }

    #[test]
    fn a_copy_on_its_way_to_a_slave_that_hangs_is_waited_for() {
        let mut bench = Bench::new(CopyCount::Fixed(2), 2);
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
    fn a_key_that_others_lack_and_nobody_can_take_keeps_no_slave() {
        let mut bench = Bench::new(CopyCount::Half, 3);
        let too_long = Place { bytes: 2000, ..Place::default() };
        bench.master.replay_put(b"old", Version::new(1, 1), too_long);
        bench.put("k");
        bench.ask(Command::RemoveSlave { id: id(0) });
        (0..1000).for_each(|_| bench.work(25));
        assert!(bench.has_let_go(0), "{} keys to drain", bench.master.keys_to_drain());
    }

    #[test]
    fn writes_that_lack_copies_while_slaves_are_missing_keep_no_slave() {
        const KEYS: u64 = 20_000;
        let mut bench = Bench::new(CopyCount::Half, 6);
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
    fn a_loss_before_the_last_step_of_the_last_walk_is_repaired_first() {
        let mut bench = Bench::new(CopyCount::Fixed(1), 3);
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
