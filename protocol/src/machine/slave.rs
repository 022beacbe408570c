//! The slave machine: keys, versions, values, and which master to obey.
//!
//! Owns the values. Applies a write only over a lower version, and refuses the requests of a reign that is over. Knows
//! nothing of placement: every value that arrives is held until it is dropped or overwritten.

use super::table::Table;
pub use crate::command::ENTRY_OVERHEAD_BYTES;
use crate::ids::{Epoch, LinkId, Reign, ReignId, Seq, Stamp, Version};
use crate::message::{ReignStart, Seen, LINEAGE_MAX};
use crate::pieces::SHARED_BYTES_MIN;
use crate::planted;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The most entries in one part of a report.
const HOLDINGS_ENTRIES_MAX: usize = 1024;

/// The most places of the table that are looked at for one part of a report: many may be empty.
const HOLDINGS_PLACES_MAX: usize = 16 * 1024;

/// The most bytes of keys in one part of a report.
const HOLDINGS_BYTES_MAX: usize = 256 * 1024;

/// The checksum of a value of so many bytes is kept from its first answer on. To go through a shorter one costs less than to
/// look for it; a longer one goes out in steps, and so does the work on its checksum.
const SUMMED_BYTES: RangeInclusive<usize> = SHARED_BYTES_MIN..=2 << 20;

/// A value of at least this many bytes is kept without a copy, because copying takes long. The reader of the socket gives
/// it a buffer of its own.
pub const KEPT_BYTES_MIN: usize = 4 << 20;

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// A link to a master is established.
    LinkUp {
        /// The new link.
        link: LinkId,
    },
    /// A link is gone.
    LinkDown {
        /// The link that is gone.
        link: LinkId,
    },
    /// A master says that it reigns.
    Announced {
        /// The link of the master that announces.
        link: LinkId,
        /// The reign that is announced.
        reign: Reign,
        /// Its EPOCH record's seq.
        seq: Seq,
        /// Whether its records are on disk before a slave gets them.
        durable: bool,
    },
    /// A master has given the slave its place in its reign.
    Admitted {
        /// The link of the master that admits.
        link: LinkId,
        /// The reign in which it has a place.
        reign: Reign,
    },
    /// A master has said which reigns its log has had.
    Lineage {
        /// The link that it came over.
        link: LinkId,
        /// The last of them, in the order of the log.
        reigns: Vec<ReignStart>,
    },
    /// Counted: hold a value.
    Write {
        /// The link that it came over.
        link: LinkId,
        /// The version that the value has.
        version: Version,
        /// Which reign of its epoch wrote it.
        reign: ReignId,
        /// The key to be written.
        key: Bytes,
        /// The value to be held.
        value: Bytes,
    },
    /// Counted: a sign of life is asked for.
    Ping {
        /// The link that it came over.
        link: LinkId,
    },
    /// A value is asked for.
    Read {
        /// The link that it came over.
        link: LinkId,
        /// Comes back with the answer.
        tag: u64,
        /// The version wanted, or a higher one.
        version: Version,
        /// Which reign of its epoch wrote it.
        reign: ReignId,
        /// The key to be read.
        key: Bytes,
    },
    /// Forget a version and what is older.
    Drop {
        /// The link that it came over.
        link: LinkId,
        /// The newest version to be forgotten.
        version: Version,
        /// The reign of that version.
        reign: ReignId,
        /// The key to be forgotten.
        key: Bytes,
    },
    /// The next part of the report is asked for.
    HoldingsNext {
        /// The link that it came over.
        link: LinkId,
    },
    /// All messages that arrived together on a link were given: acknowledge them.
    BatchEnded {
        /// The link that the batch came over.
        link: LinkId,
    },
}

/// What the machine wants sent, in this order, over the link that each names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The reign is accepted.
    Enlisted {
        /// The link to answer over.
        link: LinkId,
        /// The reign that is accepted.
        reign: Reign,
        /// The last one that the slave was part of.
        seen: Option<Seen>,
        /// Bytes of room; `u64::MAX` for no limit.
        room_bytes: u64,
    },
    /// A message came from a reign that is over.
    Outdated {
        /// The link to answer over.
        link: LinkId,
        /// The highest reign known.
        seen: Seen,
    },
    /// A counted write did not fit. Always before the ACK that covers it.
    Full {
        /// The link to answer over.
        link: LinkId,
        /// The number of the write, among those that came over this link.
        number: u64,
    },
    /// All counted messages up to `through` are applied.
    Ack {
        /// The link to answer over.
        link: LinkId,
        /// The number of the last one.
        through: u64,
        /// Bytes of room; `u64::MAX` for no limit.
        room_bytes: u64,
    },
    /// The value that was asked for.
    Value {
        /// The link to answer over.
        link: LinkId,
        /// The read, as the master numbers it.
        tag: u64,
        /// The version that is held.
        version: Version,
        /// Which reign of its epoch wrote it.
        reign: ReignId,
        /// The value that is held.
        value: Bytes,
        /// Its CRC-32C, if that is known.
        checksum: Option<u32>,
    },
    /// Only an older version is held, or none.
    Missing {
        /// The link to answer over.
        link: LinkId,
        /// The read, as the master numbers it.
        tag: u64,
        /// The version that is held instead, if any is.
        held: Option<Version>,
    },
    /// A part of the report.
    Holdings {
        /// The link to answer over.
        link: LinkId,
        /// Keys, versions and whose those are.
        entries: Vec<(Bytes, Stamp)>,
        /// Whether the report ends with this part.
        last: bool,
    },
}

/// What a master has said over its link.
#[derive(Clone, Debug, Default)]
struct Master {
    /// The reign that it has announced but not given a place in yet.
    announced: Option<Seen>,
    /// The reigns of its log, which count with the place in that reign.
    lineage: Option<Vec<ReignStart>>,
    /// The reign in which it has given this slave a place.
    reign: Option<Reign>,
    counted: u64,
    acked: u64,
    told_outdated: bool,
    /// Entries at places below this are still to be reported, from the highest down.
    to_report: usize,
}

#[derive(Clone, Debug)]
struct Held {
    version: Version,
    /// Which reign of the version's epoch wrote it.
    reign: ReignId,
    // Shared with answers under way, so that a read copies nothing. Never a slice of a socket's buffer that holds
    // anything else.
    value: Bytes,
}

/// The values of a slave, and the reign that it obeys.
#[derive(Clone, Debug)]
pub struct Slave {
    memory_max: Option<u64>,
    memory_bytes: u64,
    /// The reign that this slave has a place in, or had last. It is the one that is obeyed.
    seen: Option<Seen>,
    /// The last reigns of the log in which this slave had its last place: where what is held is from.
    lineage: Vec<ReignStart>,
    held: Table<Held>,
    /// Of long values that were asked for, by the number of the entry: whose it is, and its CRC-32C.
    checksums: BTreeMap<u32, (Stamp, u32)>,
    masters: BTreeMap<LinkId, Master>,
}

impl Slave {
    /// An empty slave that takes up to `memory_max` bytes (`None`: no limit). The seed is for the table's hash.
    pub fn new(memory_max: Option<u64>, seed: u64) -> Self {
        Slave {
            memory_max,
            memory_bytes: 0,
            seen: None,
            lineage: Vec::new(),
            held: Table::new(seed),
            checksums: BTreeMap::new(),
            masters: BTreeMap::new(),
        }
    }

    /// The epoch that is obeyed.
    pub fn epoch(&self) -> Epoch {
        self.seen.map_or(Epoch::default(), |seen| seen.reign.epoch)
    }

    /// The reign that this slave has a place in, or had last.
    pub fn seen(&self) -> Option<Seen> {
        self.seen
    }

    /// The link to the master that is obeyed, if that one has given this slave a place and is connected.
    pub fn obeyed(&self) -> Option<LinkId> {
        let reign = self.seen?.reign;
        self.masters.iter().find(|(_, master)| master.reign == Some(reign)).map(|(link, _)| *link)
    }

    /// The last reigns of the log in which this slave had its last place, a repair aside.
    pub fn lineage(&self) -> &[ReignStart] {
        &self.lineage
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
            Event::Announced { link, reign, seq, durable } => {
                self.announced(link, Seen { reign, seq, durable }, effects);
            }
            Event::Admitted { link, reign } => self.admitted(link, reign, effects),
            Event::Lineage { link, reigns } => {
                if let Some(master) = self.masters.get_mut(&link).filter(|master| master.announced.is_some())
                {
                    master.lineage = Some(reigns);
                }
            }
            Event::Write { link, version, reign, key, value } => {
                let Some(number) = self.count(link, effects) else { return };
                if !self.write(Stamp { version, reign }, &key, value) {
                    effects.push(Effect::Full { link, number });
                }
            }
            Event::Ping { link } => {
                self.count(link, effects);
            }
            Event::Read { link, tag, version, reign, key } => {
                if self.obeys(link, effects) {
                    effects.push(self.read(link, tag, Stamp { version, reign }, &key));
                }
            }
            Event::Drop { link, version, reign, key } => {
                if self.obeys(link, effects) {
                    self.drop_copy(Stamp { version, reign }, &key);
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

    /// Answers with the last reign of which this slave was part. Nothing else changes yet: the master may find that its
    /// log lacks that reign.
    fn announced(&mut self, link: LinkId, announced: Seen, effects: &mut Vec<Effect>) {
        let reign = announced.reign;
        if let Some(seen) = self.seen.filter(|seen| !is_later(reign, seen.reign)) {
            effects.push(Effect::Outdated { link, seen });
            return;
        }
        let (seen, room_bytes) = (self.seen, self.room_bytes());
        let Some(master) = self.masters.get_mut(&link) else { return };
        *master = Master { announced: Some(announced), ..Master::default() };
        effects.push(Effect::Enlisted { link, reign, seen, room_bytes });
    }

    /// From here on that reign is obeyed, and gets the report of what is held.
    fn admitted(&mut self, link: LinkId, reign: Reign, effects: &mut Vec<Effect>) {
        let to_report = self.held.numbers();
        let Some(master) = self.masters.get_mut(&link) else { return };
        let Some(announced) = master.announced.take().filter(|announced| announced.reign == reign) else {
            return;
        };
        if let Some(seen) = self.seen.filter(|seen| !is_later(reign, seen.reign)) {
            effects.push(Effect::Outdated { link, seen });
            return;
        }
        // A repair names no reigns: it appends to the log of another day, and what is held stays what it was.
        if let Some(mut lineage) = master.lineage.take() {
            lineage.drain(..lineage.len().saturating_sub(LINEAGE_MAX));
            self.lineage = lineage;
        }
        *master = Master { reign: Some(reign), to_report, ..Master::default() };
        if self.seen.is_none_or(|seen| seen.reign != reign) {
            self.seen = Some(announced);
        }
        self.report(link, effects);
    }

    /// Whether the master of `link` is the one obeyed; if not, tells it so once.
    fn obeys(&mut self, link: LinkId, effects: &mut Vec<Effect>) -> bool {
        let obeyed = self.seen;
        let Some(master) = self.masters.get_mut(&link) else { return false };
        let reigns = master.reign.is_some() && master.reign == obeyed.map(|seen| seen.reign);
        if reigns || (master.reign.is_some() && planted!(SlaveObeysLowerEpoch)) {
            return true;
        }
        if let Some(seen) = obeyed.filter(|_| !std::mem::replace(&mut master.told_outdated, true)) {
            effects.push(Effect::Outdated { link, seen });
        }
        false
    }

    /// Numbers a counted message of the master that is obeyed.
    fn count(&mut self, link: LinkId, effects: &mut Vec<Effect>) -> Option<u64> {
        if !self.obeys(link, effects) {
            return None;
        }
        let master = self.masters.get_mut(&link)?;
        master.counted += 1;
        Some(master.counted)
    }

    /// Applies a write; false when it does not fit.
    fn write(&mut self, stamp: Stamp, key: &[u8], value: Bytes) -> bool {
        let Stamp { version, reign } = stamp;
        let bytes = |value: &Bytes| (key.len() + value.len()) as u64 + ENTRY_OVERHEAD_BYTES;
        let held = self.held.get_mut(key);
        // A value of another reign of that epoch belongs to another history of the log; the master that is obeyed
        // decides.
        let is_lower = |held: &Held| held.version >= version && !is_of_other_reign(held, stamp);
        if held.as_ref().is_some_and(|held| is_lower(held)) && !planted!(SlaveAppliesLower) {
            return true;
        }
        let old_bytes = held.as_ref().map_or(0, |held| bytes(&held.value));
        let memory_bytes = self.memory_bytes - old_bytes + bytes(&value);
        if self.memory_max.is_some_and(|max| memory_bytes > max) {
            return false;
        }
        self.memory_bytes = memory_bytes;
        let own = Reign { epoch: version.epoch, id: reign };
        if let Some(seen) = self.seen.as_mut().filter(|seen| seen.reign == own) {
            seen.seq = seen.seq.max(version.seq);
        }
        let value = if value.len() >= KEPT_BYTES_MIN { value } else { Bytes::copy_from_slice(&value) };
        match held {
            Some(held) => *held = Held { version, reign, value },
            None => {
                self.held.insert(key, Held { version, reign, value });
            }
        }
        true
    }

    fn read(&mut self, link: LinkId, tag: u64, wanted: Stamp, key: &[u8]) -> Effect {
        let is_wanted = |held: &Held| held.version >= wanted.version && !is_of_other_reign(held, wanted);
        match self.held.get(key) {
            Some(held) if is_wanted(held) || planted!(SlaveReadsOlder) => {
                let (version, reign, value) = (held.version, held.reign, held.value.clone());
                let checksum =
                    SUMMED_BYTES.contains(&value.len()).then(|| self.checksum(key, &value)).flatten();
                Effect::Value { link, tag, version, reign, value, checksum }
            }
            Some(held) => Effect::Missing { link, tag, held: Some(held.version) },
            None => Effect::Missing { link, tag, held: None },
        }
    }

    /// The checksum of the value of a key: it is computed once for each value.
    fn checksum(&mut self, key: &[u8], value: &[u8]) -> Option<u32> {
        let number = self.held.number(key)?;
        let (_, held) = self.held.at(number as usize)?;
        let stamp = Stamp { version: held.version, reign: held.reign };
        let (of, checksum) = self.checksums.entry(number).or_insert_with(|| (stamp, crc32c::crc32c(value)));
        if *of != stamp {
            (*of, *checksum) = (stamp, crc32c::crc32c(value));
        }
        Some(*checksum)
    }

    fn drop_copy(&mut self, told: Stamp, key: &[u8]) {
        let is_told = |held: &Held| {
            (held.version <= told.version && !is_of_other_reign(held, told)) || planted!(SlaveDropsAnyVersion)
        };
        if self.held.get(key).is_some_and(is_told) {
            if let Some(number) = self.held.number(key).filter(|_| !self.checksums.is_empty()) {
                self.checksums.remove(&number);
            }
            if let Some(held) = self.held.remove(key) {
                self.memory_bytes -= (key.len() + held.value.len()) as u64 + ENTRY_OVERHEAD_BYTES;
            }
        }
    }

    /// Sends the next part of the report, from the end of the table down. Entries keep their places, so none is missed.
    /// The master knows what arrives meanwhile, because it sends it.
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
            let stamp = Stamp { version: held.version, reign: held.reign };
            entries.push((Bytes::copy_from_slice(key), stamp));
        }
        master.to_report = index;
        effects.push(Effect::Holdings { link, entries, last: index == 0 });
    }
}

/// Whether a copy is of the stamp's epoch but of another reign, and so of another history of the log.
fn is_of_other_reign(held: &Held, stamp: Stamp) -> bool {
    held.version.epoch == stamp.version.epoch && held.reign != stamp.reign
}

/// Whether a slave that is bound to a reign follows an announced one. A reign with the same epoch and another id belongs
/// to another history: the log was copied, and both copies were continued.
fn is_later(announced: Reign, bound: Reign) -> bool {
    announced.epoch > bound.epoch || announced == bound
}
