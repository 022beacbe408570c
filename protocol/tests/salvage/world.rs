//! Logs, their masters and slaves, until one log is to be repaired.
//!
//! Owns the tree of all records. A master here does what a real one does to slaves: it gives places by what slaves have seen, tells
//! of its log, sends writes to some, drops what is superseded, and may end before any of that is done.

use bytes::Bytes;
use dsm_protocol::ids::{LinkId, Reign, ReignId, Seq, Stamp, Version};
use dsm_protocol::machine::master::{ReignRecord, Reigns, Testimony};
use dsm_protocol::machine::slave::{Effect, Event, Slave};
use std::collections::BTreeMap;

/// The number of a record in the tree.
pub(crate) type Id = usize;

pub(crate) const KEYS: u64 = 5;

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Cluster,
    Epoch { durable: bool },
    Write(u64),
    Delete(u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) before: Option<Id>,
    pub(crate) seq: Seq,
    pub(crate) reign: Reign,
    pub(crate) deed: Deed,
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct LogFile {
    pub(crate) tip: Id,
    /// Whether a master serves it.
    serves: bool,
    durable: bool,
}

pub(crate) struct Node {
    pub(crate) machine: Slave,
    /// The log in which it has its place, and the link to that master.
    place: Option<(usize, LinkId)>,
    /// The end of the log in which it had its last place, as it was then.
    pub(crate) last_tip: Option<Id>,
}

pub(crate) struct World {
    pub(crate) entries: Vec<Entry>,
    pub(crate) logs: Vec<LogFile>,
    pub(crate) nodes: Vec<Node>,
    links: u64,
    random: u64,
}

pub(crate) fn key(number: u64) -> Bytes {
    Bytes::from(format!("key{number}"))
}

pub(crate) fn value(id: Id) -> Bytes {
    Bytes::from(format!("value {id}"))
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let cluster = Entry { before: None, seq: Seq(1), reign: Reign::default(), deed: Deed::Cluster };
        let mut world = World {
            entries: vec![cluster],
            logs: vec![LogFile { tip: 0, serves: false, durable: true }],
            nodes: Vec::new(),
            links: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
        };
        let durable = world.chance(80);
        world.logs[0].durable = durable;
        for number in 0..2 + world.below(3) {
            world.nodes.push(Node { machine: Slave::new(None, number), place: None, last_tip: None });
        }
        world
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.random() >> 11) % bound
    }

    /// True in so many of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn one_of(&mut self, count: usize) -> usize {
        self.below(count as u64) as usize
    }

    /// The records of a log through `tip`, from the first one.
    pub(crate) fn path(&self, tip: Id) -> Vec<Id> {
        let mut path: Vec<Id> = std::iter::successors(Some(tip), |id| self.entries[*id].before).collect();
        path.reverse();
        path
    }

    /// Whether `one` is `other` or a record before it in the same log.
    pub(crate) fn is_in(&self, one: Id, other: Id) -> bool {
        let mut line = std::iter::successors(Some(other), |id| self.entries[*id].before);
        line.any(|id| id == one)
    }

    /// The first record of a log after which another one went on with something else; 0 for none.
    pub(crate) fn first_fork(&self, tip: Id) -> Seq {
        let follow = |id: &Id| self.entries.iter().filter(|entry| entry.before == Some(*id)).count();
        let fork = self.path(tip).into_iter().find(|id| follow(id) > 1 && *id != tip);
        fork.map_or(Seq(0), |id| self.entries[id].seq)
    }

    pub(crate) fn reigns(&self, tip: Id) -> Reigns {
        let mut reigns = Reigns::default();
        for id in self.path(tip) {
            let Entry { seq: first, reign, deed, .. } = self.entries[id];
            if let Deed::Epoch { durable } = deed {
                reigns.begin(ReignRecord { reign, first, durable });
            }
        }
        reigns
    }

    /// The record of each key that a log has written last and not deleted since.
    pub(crate) fn live(&self, tip: Id) -> BTreeMap<u64, Id> {
        let mut live = BTreeMap::new();
        for id in self.path(tip) {
            match self.entries[id].deed {
                Deed::Write(key) => drop(live.insert(key, id)),
                Deed::Delete(key) => drop(live.remove(&key)),
                Deed::Cluster | Deed::Epoch { .. } => {}
            }
        }
        live
    }

    /// Which record a copy is.
    pub(crate) fn record_of(&self, stamp: Stamp) -> Id {
        let is = |entry: &Entry| {
            entry.seq == stamp.version.seq
                && entry.reign == Reign { epoch: stamp.version.epoch, id: stamp.reign }
        };
        self.entries.iter().position(is).expect("somebody has written it")
    }

    fn stamp(&self, id: Id) -> Stamp {
        let Entry { seq, reign, .. } = self.entries[id];
        Stamp { version: Version { epoch: reign.epoch, seq }, reign: reign.id }
    }

    /// What a slave holds.
    pub(crate) fn held(&self, node: usize) -> Vec<(Bytes, Stamp)> {
        let mut machine = self.nodes[node].machine.clone();
        let Some(seen) = machine.seen() else { return Vec::new() };
        let (link, reign, mut effects) = (LinkId(u64::MAX), seen.reign, Vec::new());
        machine.step(Event::LinkUp { link }, &mut effects);
        machine.step(Event::Announced { link, reign, seq: seen.seq, durable: true }, &mut effects);
        machine.step(Event::Admitted { link, reign }, &mut effects);
        match effects.pop() {
            Some(Effect::Holdings { entries, last: true, .. }) => entries,
            other => panic!("{other:?}"),
        }
    }

    fn append(&mut self, log: usize, deed: Deed) -> Id {
        let tip = self.logs[log].tip;
        let Entry { seq, mut reign, .. } = self.entries[tip];
        if let Deed::Epoch { .. } = deed {
            // Logs that went apart give the same epochs to different reigns.
            reign = Reign { epoch: reign.epoch.next(), id: ReignId(self.random()) };
        }
        self.entries.push(Entry { before: Some(tip), seq: seq.next(), reign, deed });
        self.logs[log].tip = self.entries.len() - 1;
        self.logs[log].tip
    }

    /// Some masters and slaves come and go.
    pub(crate) fn happen(&mut self) {
        self.begin(0);
        for node in 0..self.nodes.len() {
            self.join(node, 0);
        }
        for _ in 0..10 + self.below(50) {
            let (log, node) = (self.one_of(self.logs.len()), self.one_of(self.nodes.len()));
            match self.below(100) {
                0..=54 => self.write(log),
                55..=69 => self.delete(log),
                70..=76 => self.begin(log),
                77..=81 if self.logs.len() < 4 => self.copy(log),
                82..=96 => self.join(node, log),
                97 => self.restart(node),
                _ => {}
            }
        }
        for node in 0..self.nodes.len() {
            self.leave(node);
        }
    }

    /// A master begins a reign. If the log is not synced, the end of the last reign may be lost.
    fn begin(&mut self, log: usize) {
        let there =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].place.is_some_and(|at| at.0 == log));
        let there: Vec<usize> = there.collect();
        there.iter().for_each(|node| self.leave(*node));
        let durable = self.logs[log].durable;
        while !durable && self.chance(40) {
            let Entry { before, deed, .. } = self.entries[self.logs[log].tip];
            // An EPOCH record was on disk before anybody knew of it.
            let (Some(before), Deed::Write(_) | Deed::Delete(_)) = (before, deed) else { break };
            self.logs[log].tip = before;
        }
        self.append(log, Deed::Epoch { durable });
        self.logs[log].serves = true;
        there.iter().for_each(|node| self.join(*node, log));
    }

    /// A copy of the log, or of its beginning.
    fn copy(&mut self, log: usize) {
        let mut copy = LogFile { serves: false, ..self.logs[log].clone() };
        for _ in 0..self.below(8) {
            copy.tip = self.entries[copy.tip].before.filter(|before| *before != 0).unwrap_or(copy.tip);
        }
        self.logs.push(copy);
    }

    fn restart(&mut self, node: usize) {
        let seed = self.random();
        self.nodes[node] = Node { machine: Slave::new(None, seed), place: None, last_tip: None };
    }

    fn leave(&mut self, node: usize) {
        if let Some((log, link)) = self.nodes[node].place.take() {
            self.nodes[node].last_tip = Some(self.logs[log].tip);
            self.nodes[node].machine.step(Event::LinkDown { link }, &mut Vec::new());
        }
    }

    /// A slave comes to the master of that log, which gives it a place unless it has seen what the log lacks.
    fn join(&mut self, node: usize, log: usize) {
        if !self.logs[log].serves {
            return;
        }
        let tip = self.logs[log].tip;
        let (reigns, seen) = (self.reigns(tip), self.nodes[node].machine.seen());
        if seen.is_some_and(|seen| reigns.testimony(&seen) != Testimony::Agrees) {
            return;
        }
        self.leave(node);
        self.links += 1;
        let (link, own) = (LinkId(self.links), reigns.last().unwrap());
        let ReignRecord { reign, first: seq, durable } = own;
        let mut effects = Vec::new();
        let machine = &mut self.nodes[node].machine;
        machine.step(Event::LinkUp { link }, &mut effects);
        machine.step(Event::Announced { link, reign, seq, durable }, &mut effects);
        if !matches!(effects[..], [Effect::Enlisted { .. }]) {
            machine.step(Event::LinkDown { link }, &mut effects);
            return;
        }
        machine.step(Event::Lineage { link, reigns: reigns.lineage() }, &mut effects);
        machine.step(Event::Admitted { link, reign }, &mut effects);
        self.nodes[node].place = Some((log, link));
        let Some(Effect::Holdings { entries, last: true, .. }) = effects.pop() else { panic!("no report") };
        self.tidy(node, log, &entries);
    }

    /// The master drops what it need not keep, and sends some of what is missing.
    fn tidy(&mut self, node: usize, log: usize, entries: &[(Bytes, Stamp)]) {
        let Some((_, link)) = self.nodes[node].place else { return };
        let live = self.live(self.logs[log].tip);
        for (text, stamp) in entries {
            if live.values().all(|id| self.stamp(*id) != *stamp) && self.chance(70) {
                let Stamp { version, reign } = *stamp;
                let event = Event::Drop { link, version, reign, key: text.clone() };
                self.nodes[node].machine.step(event, &mut Vec::new());
            }
        }
        for (number, id) in live {
            if self.chance(30) {
                self.send(node, number, id);
            }
        }
    }

    fn send(&mut self, node: usize, number: u64, id: Id) {
        let Some((_, link)) = self.nodes[node].place else { return };
        let Stamp { version, reign } = self.stamp(id);
        let event = Event::Write { link, version, reign, key: key(number), value: value(id) };
        self.nodes[node].machine.step(event, &mut Vec::new());
    }

    fn slaves_of(&self, log: usize) -> Vec<usize> {
        let is_there = |node: &usize| self.nodes[*node].place.is_some_and(|at| at.0 == log);
        (0..self.nodes.len()).filter(is_there).collect()
    }

    fn write(&mut self, log: usize) {
        let there = self.slaves_of(log);
        if there.is_empty() {
            return;
        }
        let number = self.below(KEYS);
        let id = self.append(log, Deed::Write(number));
        let certain = self.one_of(there.len());
        for (index, node) in there.into_iter().enumerate() {
            if index == certain || self.chance(40) {
                self.send(node, number, id);
            } else if self.chance(60) {
                self.forget(node, number, id);
            }
        }
    }

    /// An older copy of a key is dropped.
    fn forget(&mut self, node: usize, number: u64, id: Id) {
        let Some((_, link)) = self.nodes[node].place else { return };
        let Stamp { version, reign } = self.stamp(id);
        let event = Event::Drop { link, version, reign, key: key(number) };
        self.nodes[node].machine.step(event, &mut Vec::new());
    }

    fn delete(&mut self, log: usize) {
        let there = self.slaves_of(log);
        if there.is_empty() {
            return;
        }
        let number = self.below(KEYS);
        let id = self.append(log, Deed::Delete(number));
        for node in there {
            if self.chance(80) {
                self.forget(node, number, id);
            }
        }
    }
}
