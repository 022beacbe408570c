//! Puts records that only slaves have back into the log: `dsm-log repair --from-slaves`.
//!
//! Owns which slaves are waited for, what they are asked, and which copies are taken (`lineage.rs`, `copies.rs`). It begins a
//! reign in which nobody is served and nothing is dropped, so that slaves report what they hold; appends the newest of what
//! the log lacks; and ends the dispute with a last EPOCH record. Until that is on disk the note of witnesses keeps masters
//! from serving. Never opens a socket or a file. See `docs/ARCHITECTURE.md`, *Records that only slaves have*.

mod copies;
mod findings;
mod lineage;

pub use findings::{Findings, SlaveFound, NAMED_MAX};
pub use lineage::BRANCHES_MAX;

use super::master::ReignRecord;
use super::welcome::{judge_slave, SlaveReception, Unwelcome, Welcomed};
use crate::ids::{ClusterId, Epoch, Incarnation, LinkId, Millis, Reign, Seq, SlaveId, Stamp, Version};
use crate::lock_file::LockText;
use crate::message::{ReignStart, Seen};
pub use crate::record::RECOVERED;
pub use crate::record::REPAIR_BEGUN as BEGUN_AT;
pub use crate::record::UNDECIDED;
use crate::record::{Body, Position, Record, SyncMode, LOST};
use crate::witness_file::WitnessText;
use bytes::Bytes;
use copies::{Copies, CopyVerdict, Holder};
use lineage::{CopyOrigin, Lineage};
use std::collections::{BTreeMap, VecDeque};

/// The same of the record that ends it.
pub const ENDED_AT: &str = "repaired";

/// Who is noted as a witness for what only the lock file knows.
pub const LOCK_FILE: &str = "the-lock-file";

/// How many values are asked of one slave at once.
const READS_MAX: usize = 128;

/// How many links of one slave are kept beside the one that is used.
const SPARE_MAX: usize = 4;

/// A slave that was asked and says nothing for so long is cut off, in milliseconds.
const SILENT_MS: u64 = 60_000;

/// If nothing new has come for so long after the time for slaves is over, the repair ends, whatever slaves come and go, in
/// milliseconds.
const STALLED_MS: u64 = SILENT_MS;

/// What becomes of keys of which it is not known what is newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Undecided {
    /// Nothing is put back at all.
    #[default]
    Stop,
    /// They keep what the log has.
    Log,
    /// They get the highest version of the slaves.
    Slaves,
}

/// What an operator wants.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// How many slaves must come; `None`: those that come in time.
    pub slaves: Option<usize>,
    /// How long slaves are waited for, in milliseconds.
    pub wait_ms: u64,
    /// Whether to go on without slaves that did not come.
    pub accept_missing: bool,
    /// What becomes of what cannot be decided.
    pub undecided: Undecided,
    /// Whether only to tell who is there and what they have seen.
    pub dry_run: bool,
}

/// What is known of the log before slaves come.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its end.
    pub end: Position,
    /// What is noted beside it.
    pub noted: WitnessText,
    /// What the lock file says.
    pub lock: LockText,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A slave says HELLO.
    Came {
        /// Its link.
        link: LinkId,
        /// Its name.
        id: SlaveId,
        /// This life of it.
        incarnation: Incarnation,
        /// The cluster that it belongs to.
        cluster: Option<ClusterId>,
        /// The last reign that it was part of.
        seen: Option<Seen>,
    },
    /// The slave says which reigns the log has had in which it had its last place.
    Lineage {
        /// Its link.
        link: LinkId,
        /// The last of them, in the order of that log.
        reigns: Vec<ReignStart>,
    },
    /// A link is closed.
    Gone {
        /// That link.
        link: LinkId,
    },
    /// The slave accepts the reign.
    Enlisted {
        /// Its link.
        link: LinkId,
        /// The reign that was announced.
        reign: Reign,
        /// The last one before.
        seen: Option<Seen>,
    },
    /// The slave knows of a later reign.
    Outdated {
        /// Its link.
        link: LinkId,
    },
    /// A part of what the slave holds.
    Holdings {
        /// Its link.
        link: LinkId,
        /// Keys and versions.
        entries: Vec<(Bytes, Stamp)>,
        /// Whether it is the last part.
        last: bool,
    },
    /// A value that was asked for.
    Value {
        /// Its link.
        link: LinkId,
        /// The number of the read.
        tag: u64,
        /// The version that it has.
        stamp: Stamp,
        /// The value.
        value: Bytes,
    },
    /// The slave does not have it, or it is too long.
    Missing {
        /// Its link.
        link: LinkId,
        /// The number of the read.
        tag: u64,
    },
    /// The reign that was asked for is on disk.
    Begun {
        /// The reign.
        reign: Reign,
        /// The seq of its EPOCH record.
        seq: Seq,
    },
    /// The log was read again: [`Salvage::touch`] has heard of all of it.
    Surveyed,
    /// What was appended is on disk, and so is the record that ends the dispute.
    Finished,
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer the HELLO.
    Welcome {
        /// The link.
        link: LinkId,
    },
    /// Ask which reigns the log has had in which the slave had its last place.
    AskLineage {
        /// The link.
        link: LinkId,
    },
    /// Refuse a slave, or end its link.
    Refuse {
        /// The link.
        link: LinkId,
        /// Why.
        why: SalvageRefusal,
    },
    /// Write this beside the log and sync it, before anything else.
    Note(WitnessText),
    /// Append and sync an EPOCH record of that epoch, which serves at [`BEGUN_AT`].
    Begin {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Announce the reign.
    Announce {
        /// The link.
        link: LinkId,
        /// The reign.
        reign: Reign,
        /// The seq of its EPOCH record.
        seq: Seq,
    },
    /// Give the slave a place: it reports from now on.
    Admit {
        /// The link.
        link: LinkId,
        /// The reign.
        reign: Reign,
    },
    /// Ask for the next part of its report.
    AskReport {
        /// The link.
        link: LinkId,
    },
    /// Read the log again, and give each record to [`Salvage::touch`].
    Survey,
    /// Ask for a value.
    Read {
        /// The link.
        link: LinkId,
        /// The number of the read.
        tag: u64,
        /// The version that is wanted.
        stamp: Stamp,
        /// The key.
        key: Bytes,
    },
    /// Append a record that writes the key, and says which version that was and whether it is not known to be the newest.
    Append {
        /// The key.
        key: Bytes,
        /// The version and reign that it had.
        stamp: Stamp,
        /// The value.
        value: Bytes,
        /// Whether it is taken only because of [`Undecided::Slaves`].
        is_undecided: bool,
    },
    /// Sync what was appended; then append and sync an EPOCH record of that epoch, which serves at [`ENDED_AT`], and a mark;
    /// then empty the note.
    Finish {
        /// Its epoch.
        epoch: Epoch,
        /// The reigns that it gives up: what is needed of them is in the log.
        given_up: Vec<Reign>,
    },
    /// It is over.
    End(SalvageOutcome),
}

/// Why a slave is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SalvageRefusal {
    /// As by a master.
    Unwelcome(Unwelcome),
    /// The repair has begun without it.
    Late,
    /// It has begun with the same slave, which has been restarted since.
    Restarted,
    /// Another link of it is there now.
    Replaced,
    /// It has seen something else than it had said.
    OtherWitness,
    /// It was asked, and says nothing.
    Silent,
}

impl std::fmt::Display for SalvageRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SalvageRefusal::Unwelcome(why) => why.fmt(f),
            SalvageRefusal::Late => {
                f.write_str("the log is being repaired, and this slave came too late for it")
            }
            SalvageRefusal::Restarted => {
                f.write_str("the log is being repaired, and this slave was restarted meanwhile")
            }
            SalvageRefusal::Replaced => f.write_str("another link of this slave has come"),
            SalvageRefusal::OtherWitness => f.write_str("the slave has another reign now than at its hello"),
            SalvageRefusal::Silent => f.write_str("the slave was asked and said nothing for a minute"),
        }
    }
}

/// How a repair ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SalvageOutcome {
    /// Nobody knows of anything that the log lacks.
    NothingLacks,
    /// Nothing was to be done but to tell.
    Told,
    /// Slaves did not come: nothing was done.
    Missing {
        /// Those that are known to be missing.
        named: Vec<SlaveId>,
        /// How many came.
        there: usize,
    },
    /// It is not known of all keys what is newest: nothing was put back.
    Undecided,
    /// An earlier run, which came to nothing, was to take the slaves' versions of such keys and has put some into the log; this
    /// one is to do otherwise. Nothing was done.
    DecidedBefore,
    /// A slave was lost, or does not have what it has reported: not all was put back.
    Lost {
        /// That slave.
        id: SlaveId,
    },
    /// Slaves come and go, and nothing new has come from these for too long: not all was put back.
    Stalled {
        /// Those that are waited for.
        named: Vec<SlaveId>,
    },
    /// Slaves know of more than [`BRANCHES_MAX`] reigns that the log lacks.
    TooManyReigns,
    /// There are more witnesses than can be noted beside the log: nothing was done.
    TooManyWitnesses,
    /// All that was found is in the log.
    Recovered,
}

/// A slave that takes part.
#[derive(Clone, Debug, Default)]
struct Helper {
    incarnation: Incarnation,
    seen: Option<Seen>,
    /// Whether it has said of which log its copies are.
    has_told: bool,
    /// The last reign of that log.
    last: Option<Reign>,
    /// The link over which it is asked.
    link: Option<LinkId>,
    /// Links to other addresses of ours, for when that one ends.
    spare: Vec<LinkId>,
    /// Its bit in the sets of holders.
    place: u32,
    is_admitted: bool,
    has_reported: bool,
    /// Parts of its report that have come since it was given its place, and the most that had come before.
    parts: u64,
    parts_max: u64,
    /// Values that it was asked for.
    asked: usize,
    heard_at: Millis,
}

impl Helper {
    /// Whether it is there with all that must be known of it. One that has seen nothing holds nothing.
    fn is_there(&self) -> bool {
        self.link.is_some() && self.seen.is_some() && self.has_told
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Slaves come.
    Gathering,
    /// The EPOCH record is being written.
    Beginning,
    /// Slaves report.
    Reporting,
    /// The log is read again.
    Surveying,
    /// Values are fetched.
    Fetching,
    /// The dispute is being ended.
    Finishing,
    Over,
}

/// The machine. See the module.
#[derive(Clone, Debug)]
pub struct Salvage {
    wishes: Wishes,
    known: Known,
    lineage: Lineage,
    copies: Copies,
    helpers: BTreeMap<SlaveId, Helper>,
    phase: Phase,
    /// Whether somebody knows of something that the log lacks.
    lacks: bool,
    /// The last record of a repair that was not known to be the newest of its key; 0 for none.
    undecided_at: Seq,
    reign: Option<(Reign, Seq)>,
    /// Since when slaves are waited for.
    since: Millis,
    /// When something new has come from a slave.
    progress_at: Millis,
    /// The next key to be looked at.
    next: usize,
    /// Keys whose holder was lost while they were asked for.
    again: VecDeque<usize>,
    /// Reads on their way, by number: the key and who is asked.
    reads: BTreeMap<u64, (usize, SlaveId)>,
    tags: u64,
    findings: Findings,
    too_many: bool,
}

impl Salvage {
    /// A machine that knows nothing yet. The seed is for the hash of its table.
    pub fn new(wishes: Wishes, seed: u64) -> Self {
        Salvage {
            wishes,
            known: Known::default(),
            lineage: Lineage::default(),
            copies: Copies::new(seed),
            helpers: BTreeMap::new(),
            phase: Phase::Gathering,
            lacks: false,
            undecided_at: Seq(0),
            reign: None,
            since: Millis(0),
            progress_at: Millis(0),
            next: 0,
            again: VecDeque::new(),
            reads: BTreeMap::new(),
            tags: 0,
            findings: Findings::default(),
            too_many: false,
        }
    }

    /// Takes in a record of the log, before [`Salvage::open`].
    pub fn read(&mut self, record: &Record<'_>) {
        self.read_loss(record);
        if record.fields.get(UNDECIDED).is_some() {
            self.undecided_at = record.seq;
        }
        if let Body::Epoch { address, mark } = record.body {
            let reign = Reign { epoch: record.epoch, id: mark.id };
            let durable = mark.fsync == Some(SyncMode::Always);
            let epoch = ReignRecord { reign, first: record.seq, durable };
            self.lineage.begin(epoch, address.is(BEGUN_AT.as_bytes()), mark.given_up);
        }
    }

    /// With the records before this one, EPOCH records may be lost, and with each of them the name of a reign. The reign that the
    /// log knows before them is proven only up to the gap.
    fn read_loss(&mut self, record: &Record<'_>) {
        let is_lost = record.fields.get(LOST).is_some();
        let epoch = match record.body {
            Body::Write(_) | Body::Delete(_) | Body::Apply(_) => record.epoch,
            Body::Synced if is_lost => record.epoch,
            Body::Epoch { .. } if is_lost => Epoch(record.epoch.0.saturating_sub(1)),
            Body::Cluster(_) | Body::Epoch { .. } | Body::Members(_) | Body::Synced => return,
        };
        if epoch <= self.lineage.last_epoch() {
            return;
        }
        let first = record.after.map_or(record.seq, Seq::next);
        let unnamed = ReignRecord { reign: Reign { epoch, ..Reign::default() }, first, durable: false };
        let is_write = matches!(record.body, Body::Write(_) | Body::Delete(_) | Body::Apply(_));
        let is_repairs =
            record.fields.get(RECOVERED).is_some() || (!is_write && self.lineage.is_unfinished());
        self.lineage.begin(unnamed, is_repairs, std::iter::empty());
    }

    /// The log is read, and slaves may come.
    pub fn open(&mut self, now: Millis, known: Known) {
        let mut known = known;
        if known.noted.cluster != Some(known.cluster) {
            known.noted = WitnessText::default();
        }
        self.lineage.close(known.end.seq);
        self.lacks = self.lineage.is_unfinished();
        for (_, seen) in &known.noted.seen {
            self.lacks |= self.lineage.note_seen(seen.reign, seen.seq);
        }
        self.lacks |= !known.noted.accepted.is_empty() || known.noted.accepted_epoch.is_some();
        self.since = now;
        self.known = known;
        // A reign that the lock file names was on disk, whoever saw it.
        if let Some((_, seen)) = self.lock_file_has_seen() {
            self.lineage.note_seen(seen.reign, seen.seq);
        }
        self.lacks |= self.declared_epoch() > self.known.end.epoch;
    }

    /// The epoch that the last master has declared.
    fn declared_epoch(&self) -> Epoch {
        let lock = &self.known.lock;
        lock.epoch.filter(|_| lock.cluster == Some(self.known.cluster)).unwrap_or_default()
    }

    /// What the lock file knows and the log lacks, as a witness would say it.
    fn lock_file_has_seen(&self) -> Option<(SlaveId, Seen)> {
        let epoch = Some(self.declared_epoch()).filter(|epoch| *epoch > self.known.end.epoch)?;
        let reign = Reign { epoch, id: self.known.lock.reign? };
        // Its record has some place after the end of the log, or after a fork.
        Some((SlaveId::new(LOCK_FILE).ok()?, Seen { reign, seq: self.known.end.seq.next(), durable: false }))
    }

    /// What was found and done so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// The longest pause after which [`Event::Tick`] is due, in milliseconds.
    pub fn tick_ms(&self) -> u64 {
        (self.wishes.wait_ms / 4).clamp(10, 250)
    }

    /// Whether it waits for slaves that may still come.
    pub fn is_gathering(&self) -> bool {
        self.phase == Phase::Gathering
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, now: Millis, event: Event, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Over {
            return;
        }
        match event {
            Event::Came { link, id, incarnation, cluster, seen } => {
                self.came(now, link, (id, incarnation), cluster, seen, effects);
            }
            Event::Lineage { link, reigns } => self.told(now, link, &reigns),
            Event::Gone { link } => self.gone(now, link, effects),
            Event::Enlisted { link, reign, seen } => self.enlisted(now, link, reign, seen, effects),
            Event::Outdated { link } => self.refuse(now, link, SalvageRefusal::OtherWitness, effects),
            Event::Holdings { link, entries, last } => self.reported(now, link, &entries, last, effects),
            Event::Value { link, tag, stamp, value } => self.value(now, link, tag, (stamp, value), effects),
            Event::Missing { link, tag } => self.missing(now, link, tag, effects),
            Event::Begun { reign, seq } => self.begun(now, reign, seq, effects),
            Event::Surveyed => self.surveyed(now, effects),
            Event::Finished => self.end(SalvageOutcome::Recovered, effects),
            Event::Tick => {}
        }
        self.look(now, effects);
    }

    fn end(&mut self, outcome: SalvageOutcome, effects: &mut Vec<Effect>) {
        self.phase = Phase::Over;
        self.findings.reigns = self.lineage.lacking().collect();
        effects.push(Effect::End(outcome));
    }

    fn came(
        &mut self,
        now: Millis,
        link: LinkId,
        (id, incarnation): (SlaveId, Incarnation),
        cluster: Option<ClusterId>,
        seen: Option<Seen>,
        effects: &mut Vec<Effect>,
    ) {
        let here = SlaveReception {
            cluster: Some(self.known.cluster),
            slaves: self.helpers.len(),
            ..SlaveReception::default()
        };
        let is_known = self.helpers.contains_key(&id);
        let verdict = judge_slave(
            &id,
            cluster,
            SlaveReception { slaves: if is_known { 0 } else { here.slaves }, ..here },
        );
        if let Welcomed::No(why) = verdict {
            effects.push(Effect::Refuse { link, why: SalvageRefusal::Unwelcome(why) });
            return;
        }
        let is_gathering = self.phase == Phase::Gathering;
        let why = match self.helpers.get_mut(&id) {
            None if !is_gathering => Some(SalvageRefusal::Late),
            Some(helper) if helper.incarnation == incarnation && helper.link.is_some() => {
                // A slave comes to each address at which a master may be.
                helper.spare.push(link);
                effects.push(Effect::Welcome { link });
                if helper.spare.len() > SPARE_MAX {
                    effects
                        .push(Effect::Refuse { link: helper.spare.remove(0), why: SalvageRefusal::Replaced });
                }
                return;
            }
            Some(helper) if helper.incarnation != incarnation && !is_gathering => {
                Some(SalvageRefusal::Restarted)
            }
            Some(helper) if helper.link.is_some() => {
                Some(SalvageRefusal::Unwelcome(Unwelcome::NameInUse { id: id.clone() }))
            }
            Some(_) | None => None,
        };
        if let Some(why) = why {
            effects.push(Effect::Refuse { link, why });
            return;
        }
        if is_gathering {
            self.lacks |= seen.is_some_and(|seen| self.lineage.note_seen(seen.reign, seen.seq));
            let helper = Helper { incarnation, seen, link: Some(link), heard_at: now, ..Helper::default() };
            self.helpers.insert(id, helper);
        } else if let Some(helper) = self.helpers.get_mut(&id) {
            (helper.link, helper.heard_at) = (Some(link), now);
        }
        effects.push(Effect::Welcome { link });
        self.greet(link, effects);
    }

    /// Asks a slave what must be known of it, or tells it of the reign if there is one.
    fn greet(&self, link: LinkId, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Gathering {
            effects.push(Effect::AskLineage { link });
        }
        self.announce(link, effects);
    }

    /// A slave has said of which log its copies are. Once slaves report, all that is to be known of their logs is known.
    fn told(&mut self, now: Millis, link: LinkId, reigns: &[ReignStart]) {
        if self.phase != Phase::Gathering {
            return;
        }
        let Some(helper) = self.helper(now, link) else { return };
        (helper.has_told, helper.last) = (true, reigns.last().map(|last| last.reign));
        self.lineage.tell(reigns);
    }

    /// Tells a slave of the reign, if there is one.
    fn announce(&self, link: LinkId, effects: &mut Vec<Effect>) {
        if let Some((reign, seq)) = self.reign {
            effects.push(Effect::Announce { link, reign, seq });
        }
    }

    fn named(&self, link: LinkId) -> Option<SlaveId> {
        self.helpers.iter().find(|(_, helper)| helper.link == Some(link)).map(|(id, _)| id.clone())
    }

    fn helper(&mut self, now: Millis, link: LinkId) -> Option<&mut Helper> {
        let helper = self.helpers.values_mut().find(|helper| helper.link == Some(link))?;
        helper.heard_at = now;
        Some(helper)
    }

    fn gone(&mut self, now: Millis, link: LinkId, effects: &mut Vec<Effect>) {
        self.helpers.values_mut().for_each(|helper| helper.spare.retain(|spare| *spare != link));
        let Some(id) = self.named(link) else { return };
        let mut next = None;
        if let Some(helper) = self.helpers.get_mut(&id) {
            // A report that has not come to its end begins anew.
            if let Some(found) = self.findings.slave(&id).filter(|_| !helper.has_reported) {
                found.keys = 0;
            }
            next = helper.spare.pop();
            (helper.link, helper.is_admitted, helper.asked, helper.heard_at) = (next, false, 0, now);
            (helper.parts, helper.parts_max) = (0, helper.parts_max.max(helper.parts));
        }
        let again = &mut self.again;
        self.reads.retain(|_, (number, asked)| {
            let is_lost = *asked == id;
            if is_lost {
                again.push_back(*number);
            }
            !is_lost
        });
        if let Some(link) = next {
            self.greet(link, effects);
        }
    }

    fn refuse(&mut self, now: Millis, link: LinkId, why: SalvageRefusal, effects: &mut Vec<Effect>) {
        self.gone(now, link, effects);
        effects.push(Effect::Refuse { link, why });
    }

    fn enlisted(
        &mut self,
        now: Millis,
        link: LinkId,
        reign: Reign,
        seen: Option<Seen>,
        effects: &mut Vec<Effect>,
    ) {
        let Some((own, _)) = self.reign.filter(|(own, _)| *own == reign) else { return };
        let Some(helper) = self.helper(now, link) else { return };
        // What it has seen is noted, or it has its place already.
        if seen == helper.seen || seen.is_some_and(|seen| seen.reign == own) {
            helper.is_admitted = true;
            effects.push(Effect::Admit { link, reign });
        } else {
            self.refuse(now, link, SalvageRefusal::OtherWitness, effects);
        }
    }

    fn begun(&mut self, now: Millis, reign: Reign, seq: Seq, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Beginning {
            return;
        }
        self.phase = Phase::Reporting;
        self.reign = Some((reign, seq));
        self.progress_at = now;
        self.lineage.ignore(reign);
        for helper in self.helpers.values_mut() {
            helper.heard_at = now;
            if let Some(link) = helper.link {
                effects.push(Effect::Announce { link, reign, seq });
            }
        }
    }

    fn reported(
        &mut self,
        now: Millis,
        link: LinkId,
        entries: &[(Bytes, Stamp)],
        last: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(id) = self.named(link) else { return };
        let Some(helper) = self.helper(now, link).filter(|helper| helper.is_admitted && !helper.has_reported)
        else {
            return;
        };
        helper.has_reported = last;
        helper.parts += 1;
        let (place, of_log) = (helper.place, helper.last);
        if helper.parts > helper.parts_max {
            self.progress_at = now;
        }
        for (key, stamp) in entries {
            let (reign, seq) = (Reign { epoch: stamp.version.epoch, id: stamp.reign }, stamp.version.seq);
            match self.lineage.origin(reign, seq) {
                CopyOrigin::Beyond(branch) => {
                    let is_astray = of_log.is_some_and(|last| self.lineage.is_astray(last, reign, seq));
                    let holder = if is_astray { Holder::Astray(place) } else { Holder::Slave(place) };
                    self.copies.add(key, stamp.version, branch, holder);
                }
                CopyOrigin::Disputed(branch) => {
                    self.copies.add(key, stamp.version, branch, Holder::Astray(place));
                }
                CopyOrigin::TooMany => self.too_many = true,
                CopyOrigin::Log | CopyOrigin::Repair | CopyOrigin::GivenUp => {}
            }
        }
        if let Some(slave) = self.findings.slave(&id) {
            slave.keys += entries.len() as u64;
        }
        if !last {
            effects.push(Effect::AskReport { link });
        }
    }

    /// Takes in a record of the log, between [`Effect::Survey`] and [`Event::Surveyed`].
    pub fn touch(&mut self, record: &Record<'_>) {
        if let Some(after) = record.after {
            // A mark repeats the seq of the record before it, which is left out as well then.
            let is_mark = matches!(record.body, Body::Synced);
            let last = if is_mark { record.seq } else { Seq(record.seq.0.saturating_sub(1)) };
            if last > after {
                self.copies.left_out(last, record.fields.get(LOST).is_some());
            }
        }
        let is_repairs = record.seq > self.lineage.end();
        match record.body {
            Body::Write(pairs) if is_repairs => {
                let Some(stamp) = record.fields.get(RECOVERED).and_then(|text| parse_stamp(&text.decode()))
                else {
                    return;
                };
                let reign = Reign { epoch: stamp.version.epoch, id: stamp.reign };
                let origin = self.lineage.origin(reign, stamp.version.seq);
                if let CopyOrigin::Beyond(branch) | CopyOrigin::Disputed(branch) = origin {
                    pairs.for_each(|(key, _)| {
                        self.copies.add(&key.decode(), stamp.version, branch, Holder::Log);
                    });
                }
            }
            Body::Write(pairs) => {
                pairs.for_each(|(key, _)| self.copies.touch(&key.decode(), record.seq, true));
            }
            Body::Delete(keys) => keys.for_each(|key| self.copies.touch(&key.decode(), record.seq, false)),
            Body::Apply(effects) => effects.for_each(|effect| {
                self.copies.touch(&effect.key().decode(), record.seq, effect.value().is_some());
            }),
            Body::Cluster(_) | Body::Epoch { .. } | Body::Members(_) | Body::Synced => {}
        }
    }

    fn surveyed(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Surveying {
            return;
        }
        self.progress_at = now;
        self.findings.lacking_keys = self.copies.len() as u64;
        for number in 0..self.copies.numbers() {
            match self.copies.judge(number, &self.lineage) {
                Some(CopyVerdict::Undecided) => {
                    self.findings.undecided_keys += 1;
                    if self.findings.undecided.len() < NAMED_MAX {
                        let named = self.copies.at(number, &self.lineage).map(|(key, ..)| key.to_vec());
                        self.findings.undecided.extend(named);
                    }
                }
                Some(CopyVerdict::Done) => self.findings.done_before += 1,
                Some(CopyVerdict::Newer) | None => {}
            }
        }
        if self.findings.undecided_keys > 0 && self.wishes.undecided == Undecided::Stop {
            self.end(SalvageOutcome::Undecided, effects);
        } else {
            self.phase = Phase::Fetching;
        }
    }

    /// Does what is due, and what can go on.
    fn look(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        self.cut_silent(now, effects);
        match self.phase {
            Phase::Gathering => self.gather(now, effects),
            Phase::Reporting => self.wait_for_reports(now, effects),
            Phase::Fetching => self.fetch(now, effects),
            Phase::Beginning | Phase::Surveying | Phase::Finishing | Phase::Over => {}
        }
        if matches!(self.phase, Phase::Reporting | Phase::Fetching) {
            self.end_stalled(now, effects);
        }
    }

    /// Ends a repair to which slaves come and go without anything new.
    fn end_stalled(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if now.since(self.progress_at) < self.wishes.wait_ms.saturating_add(STALLED_MS) {
            return;
        }
        let waits = |helper: &Helper| !helper.has_reported || helper.asked > 0 || !helper.is_admitted;
        let named = self.helpers.iter().filter(|(_, helper)| waits(helper)).map(|(id, _)| id.clone());
        let named = named.collect();
        self.end(SalvageOutcome::Stalled { named }, effects);
    }

    fn cut_silent(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let is_begun = self.reign.is_some();
        let owes =
            |helper: &&Helper| helper.asked > 0 || (is_begun && !(helper.is_admitted && helper.has_reported));
        let silent =
            self.helpers.values().filter(owes).filter(|helper| now.since(helper.heard_at) >= SILENT_MS);
        for link in silent.filter_map(|helper| helper.link).collect::<Vec<_>>() {
            self.refuse(now, link, SalvageRefusal::Silent, effects);
        }
    }

    fn gather(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let there = self.helpers.values().filter(|helper| helper.is_there()).count();
        let is_there = |id: &SlaveId| self.helpers.get(id).is_some_and(Helper::is_there);
        let noted = self.known.noted.seen.iter().map(|(id, _)| id).filter(|id| id.as_str() != LOCK_FILE);
        let come = self.helpers.iter().filter(|(_, helper)| helper.seen.is_some()).map(|(id, _)| id);
        let mut named: Vec<SlaveId> = noted.chain(come).filter(|id| !is_there(id)).cloned().collect();
        named.sort();
        named.dedup();
        let are_enough = self.wishes.slaves.is_some_and(|wanted| there >= wanted);
        let is_over = now.since(self.since) >= self.wishes.wait_ms;
        if !(is_over || (are_enough && named.is_empty())) {
            return;
        }
        let are_missing = !named.is_empty() || self.wishes.slaves.is_some_and(|wanted| there < wanted);
        self.tell_of_slaves();
        if there == 0 || (are_missing && !self.wishes.accept_missing && !self.wishes.dry_run) {
            self.end(SalvageOutcome::Missing { named, there }, effects);
        } else if !self.lacks {
            self.end(SalvageOutcome::NothingLacks, effects);
        } else if self.wishes.dry_run {
            self.end(SalvageOutcome::Told, effects);
        } else if self.wishes.undecided != Undecided::Slaves && self.undecided_at > self.lineage.end() {
            // What the log had of those keys would have to be written again.
            self.end(SalvageOutcome::DecidedBefore, effects);
        } else {
            self.begin(effects);
        }
    }

    /// Notes for people who is there and what they have seen.
    fn tell_of_slaves(&mut self) {
        let answers = |helper: &Helper| helper.is_there() || (helper.link.is_some() && helper.seen.is_none());
        let slaves = self.helpers.iter().filter(|(_, helper)| answers(helper));
        let found = slaves.map(|(id, helper)| {
            let is_witness = helper.seen.is_some_and(|seen| self.lineage.lacks(seen.reign, seen.seq));
            let (id, seen) = (id.clone(), helper.seen);
            SlaveFound { id, seen, is_witness, keys: 0, recovered_keys: 0, recovered_bytes: 0 }
        });
        self.findings.slaves = found.collect();
    }

    /// Notes all witnesses and begins a reign above all that anybody has seen. Its slaves forget the one that they had a place
    /// in, so the note comes first.
    fn begin(&mut self, effects: &mut Vec<Effect>) {
        // A slave that has seen nothing holds nothing.
        self.helpers.retain(|_, helper| helper.is_there());
        let noted = &self.known.noted;
        let mut text = WitnessText {
            cluster: Some(self.known.cluster),
            seen: Vec::new(),
            accepted: noted.accepted.clone(),
            accepted_epoch: noted.accepted_epoch,
        };
        let lock = self.lock_file_has_seen();
        let told = self.helpers.iter().filter_map(|(id, helper)| Some((id.clone(), helper.seen?)));
        let noted = noted.seen.iter().cloned();
        let mut highest = self.known.end.epoch.max(self.declared_epoch());
        let mut is_noted = true;
        for (id, seen) in noted.chain(told).chain(lock).collect::<Vec<_>>() {
            highest = highest.max(seen.reign.epoch);
            if self.lineage.lacks(seen.reign, seen.seq) {
                // Whether a sync was owed for it or not: the repair has begun, and until it has ended no master is to serve.
                is_noted &=
                    text.note(id.clone(), Seen { durable: true, ..seen }) || text.has(&id, seen.reign);
            }
        }
        if !is_noted {
            // A witness that is not noted would not keep masters from serving.
            self.end(SalvageOutcome::TooManyWitnesses, effects);
            return;
        }
        let accepted = self.known.noted.accepted.iter().map(|reign| reign.epoch);
        let highest = accepted.chain(self.known.noted.accepted_epoch).fold(highest, Epoch::max);
        for (place, helper) in self.helpers.values_mut().enumerate() {
            helper.place = place as u32;
        }
        self.phase = Phase::Beginning;
        effects.push(Effect::Note(text));
        effects.push(Effect::Begin { epoch: highest.next() });
    }

    fn wait_for_reports(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.too_many {
            self.end(SalvageOutcome::TooManyReigns, effects);
            return;
        }
        let is_lost = |(_, helper): &(&SlaveId, &Helper)| {
            helper.link.is_none() && !helper.has_reported && now.since(helper.heard_at) >= self.wishes.wait_ms
        };
        if let Some((id, _)) = self.helpers.iter().find(is_lost) {
            let id = id.clone();
            self.end(SalvageOutcome::Lost { id }, effects);
        } else if self.helpers.values().all(|helper| helper.has_reported) {
            self.phase = Phase::Surveying;
            effects.push(Effect::Survey);
        }
    }

    /// Asks for as many values as may be on their way.
    fn fetch(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        loop {
            let (number, is_again) = match self.again.front() {
                Some(number) => (*number, true),
                None if self.next < self.copies.numbers() => (self.next, false),
                None => break,
            };
            if self.is_wanted(number) && !self.ask(now, number, effects) {
                return;
            }
            if is_again {
                self.again.pop_front();
            } else {
                self.next += 1;
            }
        }
        if self.reads.is_empty() {
            self.phase = Phase::Finishing;
            let (reign, _) = self.reign.unwrap_or_default();
            let mut given_up: Vec<Reign> = self.lineage.lacking().collect();
            given_up.extend(self.known.noted.accepted.iter().copied());
            given_up.sort();
            given_up.dedup();
            effects.push(Effect::Finish { epoch: reign.epoch.next(), given_up });
        }
    }

    fn is_wanted(&self, number: usize) -> bool {
        match self.copies.judge(number, &self.lineage) {
            Some(CopyVerdict::Newer) => true,
            Some(CopyVerdict::Undecided) => {
                self.wishes.undecided == Undecided::Slaves && !self.copies.is_in_log(number)
            }
            Some(CopyVerdict::Done) | None => false,
        }
    }

    /// Asks the holder that is asked least; false when that must wait.
    fn ask(&mut self, now: Millis, number: usize, effects: &mut Vec<Effect>) -> bool {
        let Some((key, stamp, holders)) = self.copies.at(number, &self.lineage) else { return true };
        let linked =
            |(_, helper): &(&SlaveId, &mut Helper)| holders & 1 << helper.place != 0 && helper.is_admitted;
        let best = self.helpers.iter_mut().filter(linked).min_by_key(|(_, helper)| helper.asked);
        let Some((id, helper)) = best else {
            let holder = self.helpers.iter().find(|(_, helper)| holders & 1 << helper.place != 0);
            let since = holder.map_or(Millis(0), |(_, helper)| helper.heard_at);
            let id = holder.map(|(id, _)| id.clone());
            if let Some(id) = id.filter(|_| now.since(since) >= self.wishes.wait_ms) {
                self.end(SalvageOutcome::Lost { id }, effects);
            }
            return false;
        };
        let Some(link) = helper.link.filter(|_| helper.asked < READS_MAX) else { return false };
        if helper.asked == 0 {
            helper.heard_at = now;
        }
        helper.asked += 1;
        let tag = self.tags;
        self.tags += 1;
        self.reads.insert(tag, (number, id.clone()));
        effects.push(Effect::Read { link, tag, stamp, key: Bytes::copy_from_slice(key) });
        true
    }

    /// The read with that number, if it was asked over that link.
    fn answered(&mut self, now: Millis, link: LinkId, tag: u64) -> Option<(usize, SlaveId)> {
        let id = self.named(link)?;
        self.reads.get(&tag).filter(|(_, asked)| *asked == id)?;
        let helper = self.helper(now, link)?;
        helper.asked = helper.asked.saturating_sub(1);
        self.reads.remove(&tag)
    }

    fn value(
        &mut self,
        now: Millis,
        link: LinkId,
        tag: u64,
        (stamp, value): (Stamp, Bytes),
        effects: &mut Vec<Effect>,
    ) {
        let Some((number, id)) = self.answered(now, link, tag) else { return };
        let Some((key, wanted, _)) = self.copies.at(number, &self.lineage) else { return };
        if stamp != wanted {
            self.lacks_it(now, &id, number, effects);
            return;
        }
        let key = Bytes::copy_from_slice(key);
        self.progress_at = now;
        if let Some(slave) = self.findings.slave(&id) {
            slave.recovered_keys += 1;
            slave.recovered_bytes += (key.len() + value.len()) as u64;
        }
        let is_undecided = self.copies.judge(number, &self.lineage) == Some(CopyVerdict::Undecided);
        effects.push(Effect::Append { key, stamp, value, is_undecided });
    }

    fn missing(&mut self, now: Millis, link: LinkId, tag: u64, effects: &mut Vec<Effect>) {
        if let Some((number, id)) = self.answered(now, link, tag) {
            self.lacks_it(now, &id, number, effects);
        }
    }

    /// A slave does not have what it has reported: another one may.
    fn lacks_it(&mut self, now: Millis, id: &SlaveId, number: usize, effects: &mut Vec<Effect>) {
        let Some(place) = self.helpers.get(id).map(|helper| helper.place) else { return };
        // So many copies there are, and no more.
        self.progress_at = now;
        if self.copies.forget_holder(number, place) {
            self.again.push_back(number);
        } else {
            self.end(SalvageOutcome::Lost { id: id.clone() }, effects);
        }
    }
}

/// The version that a recovered record had, as its field says it.
pub fn show_stamp(stamp: Stamp) -> String {
    format!("{}-{}.{}", stamp.version.epoch, stamp.reign, stamp.version.seq)
}

fn parse_stamp(text: &[u8]) -> Option<Stamp> {
    let (reign, seq) = std::str::from_utf8(text).ok()?.split_once('.')?;
    let Reign { epoch, id } = Reign::from_text(reign)?;
    Some(Stamp { version: Version { epoch, seq: Seq(seq.parse().ok()?) }, reign: id })
}

#[cfg(test)]
mod tests;
