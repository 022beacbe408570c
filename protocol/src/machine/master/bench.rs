//! A master and slaves that answer at once, for tests of what goes on in the background.

use super::leaving::Leaving;
use super::{Asker, Config, CopyCount, Effect, Event, Master, ReadId, Slot};
use crate::command::Command;
use crate::ids::{LinkId, Millis, ReignId, SessionId, SlaveId, Stamp, Version};
use crate::info::RepairState;
use crate::record::Place;
use bytes::Bytes;
use smallvec::SmallVec;

/// A master with slaves that answer at once, but for one that may hang.
pub(super) struct RepairBench {
    pub(super) master: Master,
    pub(super) now: Millis,
    pub(super) seq: u64,
    pub(super) hangs: Option<LinkId>,
    /// What the one that hangs was asked for.
    pub(super) unanswered: Vec<ReadId>,
    pub(super) let_go: Vec<LinkId>,
    /// Who was told to drop something.
    pub(super) dropped: Vec<LinkId>,
}

impl RepairBench {
    pub(super) fn new(copies: CopyCount, slaves: u64) -> RepairBench {
        let config =
            Config { copies, repair_bytes_per_second: 1 << 40, value_max: 1000, ..Config::default() };
        let master = Master::new(config);
        let mut bench = RepairBench {
            master,
            now: Millis(0),
            seq: 1,
            hangs: None,
            unanswered: Vec::new(),
            let_go: Vec::new(),
            dropped: Vec::new(),
        };
        bench.step(Event::ReignBegan { version: Version::new(1, 1), id: ReignId(1) });
        for link in 0..slaves {
            bench.join(link, 1 << 40, &[]);
        }
        bench
    }

    /// A slave that reports copies of these keys, with their latest versions.
    pub(super) fn join(&mut self, link: u64, room_bytes: u64, keys: &[&str]) {
        self.begin_to_report(link, room_bytes, keys);
        self.step(Event::Holdings { link: LinkId(link), entries: Vec::new(), last: true });
    }

    /// One whose report is not at its end with that.
    pub(super) fn begin_to_report(&mut self, link: u64, room_bytes: u64, keys: &[&str]) {
        let stamp = |key: &&str| Stamp {
            version: self.master.directory().get(key.as_bytes()).unwrap().version,
            reign: ReignId(1),
        };
        let entries = keys.iter().map(|key| (Bytes::from((*key).to_owned()), stamp(key))).collect();
        self.step(Event::SlaveJoined { id: id(link), link: LinkId(link), room_bytes });
        self.step(Event::Holdings { link: LinkId(link), entries, last: false });
    }

    pub(super) fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.master.step(self.now, event, &mut effects);
        for effect in effects {
            if let Effect::Append { write, change, .. } = effect {
                self.seq += 1;
                let items = change.pairs().len();
                let places = SmallVec::from_elem(Place { bytes: 1, ..Place::default() }, items);
                self.step(Event::Written { write, version: Version::new(1, self.seq), places });
            } else if let Effect::SendWrite { link, .. } = effect {
                if self.hangs != Some(link) {
                    self.step(Event::Acked { link, writes: 1, room_bytes: 1 << 40 });
                }
            } else if let Effect::SendRead { link, read, version, reign, .. } = effect {
                if self.hangs == Some(link) {
                    self.unanswered.push(read);
                } else {
                    let value = Bytes::from_static(b"v");
                    self.step(Event::Value { link, read, version, reign, value });
                }
            } else if let Effect::SendDrop { link, .. } = effect {
                self.dropped.push(link);
                self.step(Event::Acked { link, writes: 0, room_bytes: 1 << 40 });
            } else if let Effect::ReadLog { read, .. } = effect {
                self.step(Event::LogRead { read, result: Ok(Bytes::from_static(b"v")) });
            } else if let Effect::Leaving { link, state: Leaving::LetGo } = effect {
                self.let_go.push(link);
            }
        }
    }

    pub(super) fn ask(&mut self, command: Command) {
        let asker = Asker { session: SessionId(1), tag: self.seq };
        self.step(Event::Request { asker, deadline: Millis(1 << 40), command });
    }

    pub(super) fn put(&mut self, key: impl Into<String>) {
        self.ask(Command::Put { key: Bytes::from(key.into()), value: Bytes::from_static(b"v") });
    }

    pub(super) fn work(&mut self, ms: u64) {
        self.now = self.now.plus(ms);
        self.step(Event::Tick);
        for _ in 0..1000 {
            if self.master.has_chores() {
                self.step(Event::Chore);
            }
        }
    }

    /// Ticks until repair has nothing to do but to wait.
    pub(super) fn work_until_repair_rests(&mut self) {
        self.work(25);
        while self.master.repair_state() == RepairState::Copying {
            self.work(25);
        }
    }

    /// How many of those that stay hold a key.
    pub(super) fn copies(&self, key: &str) -> usize {
        let holders = self.master.directory().get(key.as_bytes()).unwrap().holders;
        holders.intersection(self.master.members.staying()).len()
    }

    pub(super) fn slot(&self, link: u64) -> Slot {
        self.master.members.slot_of(LinkId(link)).unwrap()
    }

    pub(super) fn has_let_go(&self, link: u64) -> bool {
        self.let_go.contains(&LinkId(link))
    }
}

pub(super) fn id(link: u64) -> SlaveId {
    SlaveId::new(format!("slave-{link}")).unwrap()
}
