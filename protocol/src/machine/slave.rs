//! The slave machine: keys, versions, values, and whom to obey.
//!
//! Owns the values. Applies a write only over a lower version, refuses what a reign that is over asks for, and
//! knows nothing of placement: whatever arrives is held until it is dropped or overwritten.

use super::table::Table;
use crate::ids::{Epoch, LinkId, Version};
use crate::planted;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What an entry costs beside its key and value, in bytes: table slots, two allocations, the version.
pub const ENTRY_OVERHEAD_BYTES: u64 = 96;

/// The most entries in one part of a report.
const HOLDINGS_ENTRIES_MAX: usize = 1024;

/// The most places of the table that are looked at for one part of a report: many may be empty.
const HOLDINGS_PLACES_MAX: usize = 16 * 1024;

/// The most bytes of keys in one part of a report.
const HOLDINGS_BYTES_MAX: usize = 256 * 1024;

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// A link to a master stands.
    LinkUp {
        /// The link.
        link: LinkId,
    },
    /// A link is gone.
    LinkDown {
        /// The link.
        link: LinkId,
    },
    /// A master says that it reigns.
    Announced {
        /// Its link.
        link: LinkId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Counted: hold a value.
    Write {
        /// The link.
        link: LinkId,
        /// The version.
        version: Version,
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Counted: a sign of life is asked for.
    Ping {
        /// The link.
        link: LinkId,
    },
    /// A value is asked for.
    Read {
        /// The link.
        link: LinkId,
        /// Comes back with the answer.
        tag: u64,
        /// The version wanted, or a higher one.
        version: Version,
        /// The key.
        key: Bytes,
    },
    /// Forget a version and what is older.
    Drop {
        /// The link.
        link: LinkId,
        /// The version.
        version: Version,
        /// The key.
        key: Bytes,
    },
    /// The next part of the report is asked for.
    HoldingsNext {
        /// The link.
        link: LinkId,
    },
    /// Everything that arrived together on a link is handed in: acknowledge it.
    BatchEnded {
        /// The link.
        link: LinkId,
    },
}

/// What the machine wants sent, in this order, over the link that each names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The reign is accepted.
    Enlisted {
        /// The link.
        link: LinkId,
        /// The epoch.
        epoch: Epoch,
        /// The highest version held.
        highest: Version,
        /// Bytes of room; `u64::MAX` for no limit.
        room_bytes: u64,
    },
    /// What came was of a reign that is over.
    Outdated {
        /// The link.
        link: LinkId,
        /// The highest epoch seen.
        epoch: Epoch,
    },
    /// A counted write did not fit. Always before the ACK that covers it.
    Full {
        /// The link.
        link: LinkId,
        /// The write's number.
        number: u64,
    },
    /// All counted messages up to `through` are applied.
    Ack {
        /// The link.
        link: LinkId,
        /// The number of the last one.
        through: u64,
        /// Bytes of room; `u64::MAX` for no limit.
        room_bytes: u64,
    },
    /// The value that was asked for.
    Value {
        /// The link.
        link: LinkId,
        /// The read.
        tag: u64,
        /// The version held.
        version: Version,
        /// The value.
        value: Bytes,
    },
    /// Only an older version is held, or none.
    Missing {
        /// The link.
        link: LinkId,
        /// The read.
        tag: u64,
        /// The older version.
        held: Option<Version>,
    },
    /// A part of the report.
    Holdings {
        /// The link.
        link: LinkId,
        /// Keys and versions.
        entries: Vec<(Bytes, Version)>,
        /// Whether nothing follows.
        last: bool,
    },
}

/// What a master's link has said so far.
#[derive(Clone, Debug, Default)]
struct Master {
    epoch: Option<Epoch>,
    counted: u64,
    acked: u64,
    told_outdated: bool,
    /// Entries at places below this are still to be reported, from the highest down.
    to_report: usize,
}

#[derive(Clone, Debug)]
struct Held {
    version: Version,
    // Shared with answers under way, so that a read copies nothing here. Never a slice of a socket's buffer.
    value: Bytes,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Slave {
    memory_max: Option<u64>,
    memory_bytes: u64,
    epoch: Epoch,
    highest: Version,
    held: Table<Held>,
    masters: BTreeMap<LinkId, Master>,
}

impl Slave {
    /// An empty slave that takes up to `memory_max` bytes (`None`: no limit). The seed is for the table's hash.
    pub fn new(memory_max: Option<u64>, seed: u64) -> Self {
        Slave {
            memory_max,
            memory_bytes: 0,
            epoch: Epoch::default(),
            highest: Version::default(),
            held: Table::new(seed),
            masters: BTreeMap::new(),
        }
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The highest version ever held.
    pub fn highest(&self) -> Version {
        self.highest
    }

    /// The number of keys held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.len() == 0
    }

    /// Bytes that the entries take.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Bytes that can still be taken; `u64::MAX` for no limit.
    pub fn room_bytes(&self) -> u64 {
        self.memory_max.map_or(u64::MAX, |max| max.saturating_sub(self.memory_bytes))
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::LinkUp { link } => {
                self.masters.insert(link, Master::default());
            }
            Event::LinkDown { link } => {
                self.masters.remove(&link);
            }
            Event::Announced { link, epoch } => self.announced(link, epoch, effects),
            Event::Write { link, version, key, value } => {
                let Some(number) = self.count(link, effects) else { return };
                if !self.write(version, &key, &value) {
                    effects.push(Effect::Full { link, number });
                }
            }
            Event::Ping { link } => {
                self.count(link, effects);
            }
            Event::Read { link, tag, version, key } => {
                if self.obeys(link, effects) {
                    effects.push(self.read(link, tag, version, &key));
                }
            }
            Event::Drop { link, version, key } => {
                if self.obeys(link, effects) {
                    self.drop_copy(version, &key);
                }
            }
            Event::HoldingsNext { link } => {
                if self.obeys(link, effects) {
                    self.report(link, effects);
                }
            }
            Event::BatchEnded { link } => {
                let room_bytes = self.room_bytes();
                if let Some(master) = self.masters.get_mut(&link) {
                    if master.counted > master.acked {
                        master.acked = master.counted;
                        effects.push(Effect::Ack { link, through: master.counted, room_bytes });
                    }
                }
            }
        }
    }

    fn announced(&mut self, link: LinkId, epoch: Epoch, effects: &mut Vec<Effect>) {
        if epoch < self.epoch {
            effects.push(Effect::Outdated { link, epoch: self.epoch });
            return;
        }
        self.epoch = epoch;
        let (highest, room_bytes, to_report) = (self.highest, self.room_bytes(), self.held.numbers());
        let Some(master) = self.masters.get_mut(&link) else { return };
        *master = Master { epoch: Some(epoch), to_report, ..Master::default() };
        effects.push(Effect::Enlisted { link, epoch, highest, room_bytes });
        self.report(link, effects);
    }

    /// Whether the master of `link` reigns; if not, says so once.
    fn obeys(&mut self, link: LinkId, effects: &mut Vec<Effect>) -> bool {
        let highest = self.epoch;
        let Some(master) = self.masters.get_mut(&link) else { return false };
        if master.epoch == Some(highest) || (master.epoch.is_some() && planted!(SlaveObeysLowerEpoch)) {
            return true;
        }
        if !std::mem::replace(&mut master.told_outdated, true) {
            effects.push(Effect::Outdated { link, epoch: highest });
        }
        false
    }

    /// Numbers a counted message of a master that reigns.
    fn count(&mut self, link: LinkId, effects: &mut Vec<Effect>) -> Option<u64> {
        if !self.obeys(link, effects) {
            return None;
        }
        let master = self.masters.get_mut(&link)?;
        master.counted += 1;
        Some(master.counted)
    }

    /// Applies a write; false when it does not fit.
    fn write(&mut self, version: Version, key: &[u8], value: &[u8]) -> bool {
        let bytes = |value: &[u8]| (key.len() + value.len()) as u64 + ENTRY_OVERHEAD_BYTES;
        let held = self.held.get_mut(key);
        if held.as_ref().is_some_and(|held| held.version >= version) && !planted!(SlaveAppliesLower) {
            return true;
        }
        let old_bytes = held.as_ref().map_or(0, |held| bytes(&held.value));
        let memory_bytes = self.memory_bytes - old_bytes + bytes(value);
        if self.memory_max.is_some_and(|max| memory_bytes > max) {
            return false;
        }
        self.memory_bytes = memory_bytes;
        self.highest = self.highest.max(version);
        let value = Bytes::copy_from_slice(value);
        match held {
            Some(held) => *held = Held { version, value },
            None => {
                self.held.insert(key, Held { version, value });
            }
        }
        true
    }

    fn read(&self, link: LinkId, tag: u64, wanted: Version, key: &[u8]) -> Effect {
        match self.held.get(key) {
            Some(held) if held.version >= wanted || planted!(SlaveReadsOlder) => {
                Effect::Value { link, tag, version: held.version, value: held.value.clone() }
            }
            Some(held) => Effect::Missing { link, tag, held: Some(held.version) },
            None => Effect::Missing { link, tag, held: None },
        }
    }

    fn drop_copy(&mut self, version: Version, key: &[u8]) {
        let is_told = |held: &Held| held.version <= version || planted!(SlaveDropsAnyVersion);
        if self.held.get(key).is_some_and(is_told) {
            if let Some((key, held)) = self.held.remove(key) {
                self.memory_bytes -= (key.len() + held.value.len()) as u64 + ENTRY_OVERHEAD_BYTES;
            }
        }
    }

    /// Sends the next part of the report, from the end of the table down. An entry stays at its place, so that none is
    /// missed; what comes meanwhile is known to the master, which has sent it.
    fn report(&mut self, link: LinkId, effects: &mut Vec<Effect>) {
        let Some(master) = self.masters.get_mut(&link) else { return };
        let mut index = master.to_report.min(self.held.numbers());
        let floor = index.saturating_sub(HOLDINGS_PLACES_MAX);
        let mut entries = Vec::new();
        let mut bytes = 0;
        while index > floor && entries.len() < HOLDINGS_ENTRIES_MAX && bytes < HOLDINGS_BYTES_MAX {
            index -= 1;
            let Some((key, held)) = self.held.at(index) else { continue };
            bytes += key.len();
            entries.push((Bytes::copy_from_slice(key), held.version));
        }
        master.to_report = index;
        effects.push(Effect::Holdings { link, entries, last: index == 0 });
    }
}
