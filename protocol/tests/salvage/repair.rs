//! Repairs of one log of a world, each with the slaves that happen to be there, until one comes to its end; and what must be true
//! then.

use crate::world::{key, Deed, Entry, Id, World};
use bytes::Bytes;
use dsm_protocol::ids::{ClusterId, Incarnation, LinkId, Millis, Reign, ReignId, Seq, SlaveId, Stamp};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::master::{ReignRecord, Reigns, Testimony};
use dsm_protocol::machine::reign::may_begin::{
    judge, Accepted, Circumstances, Claim, Log, MayBegin, Source, HEAR_MS,
};
use dsm_protocol::machine::salvage::{
    show_stamp, Effect, Event, Findings, Known, Salvage, SalvageOutcome, Undecided, Wishes, BEGUN_AT,
    ENDED_AT, RECOVERED, UNDECIDED,
};
use dsm_protocol::machine::slave;
use dsm_protocol::message::Seen;
use dsm_protocol::record::{
    encode_with, parse_line, Body, Operation, Position, Record, ReignMark, Rewriter, Scanner, Step, SyncMode,
    Trailer, LOST,
};
use dsm_protocol::witness_file::WitnessText;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const CLUSTER: ClusterId = ClusterId(7);
const WAIT_MS: u64 = 1000;

/// The most runs until one must come to its end: in the last ones nothing happens to it.
const RUNS_MAX: usize = 6;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) recovered_keys: u64,
    pub(crate) undecided_keys: u64,
    pub(crate) crashes: u64,
    /// How often the log was served after a repair, and how often it was cut then or between two runs.
    pub(crate) served: u64,
    pub(crate) cut: u64,
    /// How often a run was refused because of what one before it had chosen.
    pub(crate) refused: u64,
}

/// A log as text, and what was put back into it.
struct Text {
    bytes: Vec<u8>,
    seq: u64,
    reign: Reign,
    /// Where it was when nothing was put back yet.
    tip: Id,
    /// Its last record.
    last: Id,
    /// What was put back since: the key, the record that it was, and the one that it is now.
    put_back: Vec<(u64, Id, Id)>,
    /// Records that were damaged and taken out.
    lost: BTreeSet<Id>,
    /// So many bytes were written at once by compaction or a repair: no crash cuts them.
    solid: usize,
    is_begun: bool,
    is_ended: bool,
    /// Whether lines were damaged and taken out, or the log was cut after a repair.
    is_damaged: bool,
    /// Whether versions were put back that are not known to be the newest.
    has_undecided: bool,
    /// Whether that was since somebody has served the log.
    has_taken_undecided: bool,
}

/// How it was before a run.
struct Before {
    bytes: usize,
    noted: WitnessText,
    put_back: usize,
}

pub(crate) struct Repairs {
    world: World,
    /// Where the log is from.
    log: usize,
    /// Records from this one on are of the repairs since it was served.
    new: Id,
    text: Text,
    noted: WitnessText,
    told: Told,
    /// Keys of which it was not known what is newest.
    undecided: BTreeSet<Bytes>,
}

/// One run.
struct Run<'a> {
    world: &'a mut World,
    text: &'a mut Text,
    noted: &'a mut WitnessText,
    machine: Salvage,
    now: Millis,
    /// The links of the slaves that are there.
    links: BTreeMap<usize, LinkId>,
    last_link: u64,
    events: VecDeque<Event>,
    outcome: Option<SalvageOutcome>,
    /// In how many of a thousand effects it is killed before one.
    kills: u64,
    flaps: u64,
    is_killed: bool,
}

fn name(node: usize) -> SlaveId {
    SlaveId::new(format!("slave-{node}")).unwrap()
}

fn number_of(key: &[u8]) -> u64 {
    std::str::from_utf8(key).unwrap().trim_start_matches("key").parse().unwrap()
}

impl Text {
    /// The log that ends with that record, as a compacted one if `left_out`: what is superseded before that record is left out.
    fn of(world: &World, tip: Id, left_out: Option<Id>) -> Text {
        let mut text = Text {
            bytes: Vec::new(),
            seq: 0,
            reign: Reign::default(),
            tip,
            last: tip,
            put_back: Vec::new(),
            lost: BTreeSet::new(),
            solid: 0,
            is_begun: false,
            is_ended: false,
            is_damaged: false,
            has_undecided: false,
            has_taken_undecided: false,
        };
        let path = world.path(tip);
        let end = left_out.and_then(|last| path.iter().position(|id| *id == last));
        let live: BTreeSet<Id> = left_out
            .map(|last| world.live(last, &BTreeSet::new()).into_values().collect())
            .unwrap_or_default();
        for (index, id) in path.into_iter().enumerate() {
            let Entry { seq, deed, .. } = world.entries[id];
            if let Deed::Write(_) | Deed::Delete(_) = deed {
                if end.is_some_and(|end| index <= end) && !live.contains(&id) {
                    if end == Some(index) {
                        // The mark at the end of the copy.
                        let after = (text.seq < seq.0).then_some(Seq(text.seq));
                        text.seq = seq.0;
                        let trailer = Trailer { after, ..Trailer::new(seq, text.reign.epoch, Seq(0)) };
                        encode_with(&Operation::Synced, trailer, &mut text.bytes);
                    }
                    continue;
                }
            }
            text.take(world, id);
            if end == Some(index) {
                text.solid = text.bytes.len();
            }
        }
        text
    }

    /// A master appends that record.
    fn take(&mut self, world: &World, id: Id) {
        let Entry { seq, reign, deed, .. } = world.entries[id];
        self.reign = reign;
        let operation = match deed {
            Deed::Cluster => Operation::Cluster(CLUSTER),
            Deed::Epoch { durable } => {
                let fsync = if durable { SyncMode::Always } else { SyncMode::Everysec };
                let mark = ReignMark { id: reign.id, fsync, given_up: Vec::new() };
                Operation::Epoch { address: "host:1".to_owned(), mark: Some(mark) }
            }
            Deed::Write(number) => Operation::Write(vec![(key(number), world.value(id))]),
            Deed::Delete(number) => Operation::Delete(vec![key(number)]),
        };
        let after = (self.seq + 1 != seq.0).then_some(Seq(self.seq));
        self.seq = seq.0;
        let trailer = Trailer { after, ..Trailer::new(seq, reign.epoch, Seq(0)) };
        encode_with(&operation, trailer, &mut self.bytes);
    }

    /// Cuts some lines off, or an older copy is put back.
    fn cut(&mut self, world: &mut World) {
        let ends = self.bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let ends: Vec<usize> = ends.filter(|end| *end >= self.solid).collect();
        let lines = 1 + world.below(20) as usize;
        let Some(end) = ends.len().checked_sub(1 + lines).map(|index| ends[index]) else { return };
        self.bytes.truncate(end);
        let Position { seq, reign, .. } = self.walk(|_| {});
        let path = world.path(self.last);
        let last = path.iter().rfind(|id| world.entries[**id].seq == seq && !self.lost.contains(*id));
        (self.last, self.seq, self.reign) = (*last.unwrap(), seq.0, reign);
        // What repairs have put back that did not come to their end was served to nobody.
        let served = path.iter().position(|id| *id == self.last).unwrap();
        let served = path[..=served].iter().rfind(|id| !world.is_of_repair(**id));
        (self.tip, self.is_begun) = (*served.unwrap(), *served.unwrap() != self.last);
        self.put_back = world.put_back_after(self.tip, self.last);
        let (mut has_undecided, tip) = (false, world.entries[self.tip].seq);
        self.walk(|record| has_undecided |= record.seq > tip && record.fields.get(UNDECIDED).is_some());
        self.has_undecided = has_undecided;
        self.has_taken_undecided &= has_undecided;
    }

    /// Takes out some of its lines, as `dsm-log repair` does with damaged ones; not the first and the last one.
    fn damage(&mut self, world: &mut World, fork: Seq) {
        let lines: Vec<Vec<u8>> =
            self.bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let (mut bytes, mut seq) = (Vec::new(), Seq(0));
        // Single lines, or what a bad place of the disk has held of the records after the fork.
        let is_place = world.chance(50);
        let mut is_lost = false;
        for (index, line) in lines.iter().enumerate() {
            let record = parse_line(&line[..line.len() - 1]).unwrap();
            let percent = match (is_place, is_lost) {
                (false, _) => 12,
                (true, true) => 75,
                (true, false) => 35 * u64::from(record.seq > fork),
            };
            is_lost = world.chance(percent);
            let is_mark = matches!(record.body, Body::Synced);
            if is_lost && index > 0 && index + 1 < lines.len() {
                self.is_damaged = true;
                let path = world.path(self.last);
                let id = path.into_iter().find(|id| world.entries[*id].seq == record.seq && !is_mark);
                self.lost.extend(id);
                continue;
            }
            let before = record.after.unwrap_or(if is_mark { record.seq } else { Seq(record.seq.0 - 1) });
            if before == seq {
                bytes.extend_from_slice(line);
            } else {
                let lost = (record.seq.0 - u64::from(!is_mark) - seq.0).to_string();
                let fields: &[(&str, &[u8])] = &[(LOST, lost.as_bytes())];
                let after = Some(seq);
                let trailer = Trailer { after, fields, ..Trailer::new(record.seq, record.epoch, Seq(0)) };
                encode_with(&record.to_operation(), trailer, &mut bytes);
            }
            seq = record.seq;
        }
        (self.solid, self.bytes) = (bytes.len(), bytes);
    }

    /// Compacts all of it.
    fn compact(&mut self) {
        let mut latest = BTreeMap::new();
        self.walk(|record| match record.body {
            Body::Write(pairs) => latest.extend(pairs.map(|(key, _)| (key.to_bytes(), record.seq))),
            Body::Delete(keys) => keys.for_each(|key| {
                latest.remove(&key.to_bytes());
            }),
            Body::Apply(_) => panic!("no transaction is written here"),
            Body::Cluster(_) | Body::Epoch { .. } | Body::Members(_) | Body::Synced => {}
        });
        let mut live = Vec::new();
        self.walk(|record| {
            if let Body::Write(pairs) = record.body {
                live.extend(pairs.map(|(key, _)| latest.get(&key.to_bytes()) == Some(&record.seq)));
            }
        });
        let (mut rewriter, mut out) = (Rewriter::new(1 << 20), Vec::new());
        rewriter.rewrite(&self.bytes, &[], live.into_iter(), &mut out).unwrap();
        rewriter.join(&mut out);
        (self.solid, self.bytes) = (out.len(), out);
    }

    fn add(&mut self, operation: &Operation, fields: &[(&str, &[u8])]) {
        self.seq += 1;
        let trailer = Trailer { fields, ..Trailer::new(Seq(self.seq), self.reign.epoch, Seq(0)) };
        encode_with(operation, trailer, &mut self.bytes);
    }

    fn begin(&mut self, reign: Reign, address: &str, given_up: Vec<Reign>) {
        self.reign = reign;
        let mark = ReignMark { id: reign.id, fsync: SyncMode::Always, given_up };
        self.add(&Operation::Epoch { address: address.to_owned(), mark: Some(mark) }, &[]);
    }

    /// Gives each record to `take`; gives the end.
    fn walk(&self, mut take: impl FnMut(&Record<'_>)) -> Position {
        let (mut scanner, mut rest) = (Scanner::new(1 << 20), &self.bytes[..]);
        while !rest.is_empty() {
            let before = scanner.position().offset;
            let step = scanner.next(rest);
            let Step::Record { record, .. } = step else { panic!("{step:?}") };
            take(&record);
            rest = &rest[(scanner.position().offset - before) as usize..];
        }
        scanner.position()
    }
}

impl Run<'_> {
    fn next_link(&mut self) -> LinkId {
        self.last_link += 1;
        LinkId(self.last_link)
    }

    fn comes(&mut self, node: usize) {
        let link = self.next_link();
        self.links.insert(node, link);
        let machine = &mut self.world.nodes[node].machine;
        machine.step(slave::Event::LinkUp { link }, &mut Vec::new());
        let (id, incarnation, seen) = (name(node), Incarnation(1), machine.seen());
        self.events.push_back(Event::Came { link, id, incarnation, cluster: Some(CLUSTER), seen });
    }

    fn goes(&mut self, node: usize) {
        let Some(link) = self.links.remove(&node) else { return };
        self.world.nodes[node].machine.step(slave::Event::LinkDown { link }, &mut Vec::new());
        self.events.push_back(Event::Gone { link });
    }

    /// Hands something to the slave with that link.
    fn tell(&mut self, link: LinkId, event: slave::Event) {
        let Some((node, _)) = self.links.iter().find(|(_, at)| **at == link) else { return };
        let mut effects = Vec::new();
        self.world.nodes[*node].machine.step(event, &mut effects);
        for effect in effects {
            self.events.push_back(match effect {
                slave::Effect::Enlisted { link, reign, seen, .. } => Event::Enlisted { link, reign, seen },
                slave::Effect::Outdated { link, .. } => Event::Outdated { link },
                slave::Effect::Holdings { link, entries, last } => Event::Holdings { link, entries, last },
                slave::Effect::Value { link, tag, version, reign, value, .. } => {
                    Event::Value { link, tag, stamp: Stamp { version, reign }, value }
                }
                slave::Effect::Missing { link, tag, .. } => Event::Missing { link, tag },
                slave::Effect::Full { .. } | slave::Effect::Ack { .. } => panic!("nothing is written"),
            });
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Welcome { .. } => {}
            Effect::AskLineage { link } => {
                let Some((node, _)) = self.links.iter().find(|(_, at)| **at == link) else { return };
                let reigns = self.world.nodes[*node].machine.lineage().to_vec();
                self.events.push_back(Event::Lineage { link, reigns });
            }
            Effect::Refuse { link, .. } => {
                let node = self.links.iter().find(|(_, at)| **at == link).map(|(node, _)| *node);
                node.into_iter().for_each(|node| self.goes(node));
            }
            Effect::Note(text) => *self.noted = WitnessText::parse(&text.to_string()),
            Effect::Begin { epoch } => {
                let reign = Reign { epoch, id: ReignId(self.world.random()) };
                self.text.begin(reign, BEGUN_AT, Vec::new());
                self.text.last = self.world.repair_reign(self.text.last, reign, None);
                self.text.is_begun = true;
                self.events.push_back(Event::Begun { reign, seq: Seq(self.text.seq) });
            }
            Effect::Announce { link, reign, seq } => {
                self.tell(link, slave::Event::Announced { link, reign, seq, durable: true });
            }
            Effect::Admit { link, reign } => self.tell(link, slave::Event::Admitted { link, reign }),
            Effect::AskReport { link } => self.tell(link, slave::Event::HoldingsNext { link }),
            Effect::Survey => {
                let Run { text, machine, .. } = self;
                text.walk(|record| machine.touch(record));
                self.events.push_back(Event::Surveyed);
            }
            Effect::Read { link, tag, stamp: Stamp { version, reign }, key } => {
                self.tell(link, slave::Event::Read { link, tag, version, reign, key });
            }
            Effect::Append { key, stamp, value: text, is_undecided } => {
                let id = self.world.record_of(stamp);
                assert_eq!(text, self.world.value(id), "the value of another record");
                let number = number_of(&key);
                self.text.last = self.world.put_back(self.text.last, self.text.reign, number, id);
                self.text.put_back.push((number, id, self.text.last));
                self.text.has_undecided |= is_undecided;
                self.text.has_taken_undecided |= is_undecided;
                let was = show_stamp(stamp);
                let fields = [(RECOVERED, was.as_bytes()), (UNDECIDED, b"slaves".as_slice())];
                let fields = &fields[..1 + usize::from(is_undecided)];
                self.text.add(&Operation::Write(vec![(key, text)]), fields);
            }
            Effect::Finish { epoch, given_up } => {
                let reign = Reign { epoch, id: ReignId(self.world.random()) };
                self.text.begin(reign, ENDED_AT, given_up.clone());
                self.text.last = self.world.repair_reign(self.text.last, reign, Some(given_up));
                self.text.is_ended = true;
                *self.noted = WitnessText::default();
                self.events.push_back(Event::Finished);
            }
            Effect::End(outcome) => self.outcome = Some(outcome),
        }
    }

    /// Runs it until it has an outcome or is killed.
    fn run(&mut self) {
        for _ in 0..1000 {
            while let Some(event) = self.events.pop_front() {
                let mut effects = Vec::new();
                self.machine.step(self.now, event, &mut effects);
                for effect in effects {
                    if self.world.below(1000) < self.kills {
                        self.is_killed = true;
                        return;
                    }
                    self.perform(effect);
                }
                if self.outcome.is_some() {
                    return;
                }
                if self.world.below(1000) < self.flaps {
                    let node = self.world.below(self.world.nodes.len() as u64) as usize;
                    if self.links.contains_key(&node) {
                        self.goes(node);
                        if self.world.chance(80) {
                            self.comes(node);
                        }
                    }
                }
            }
            self.now = self.now.plus(WAIT_MS);
            self.events.push_back(Event::Tick);
        }
        panic!("it has no end");
    }
}

impl Repairs {
    /// A log of the world is left: one as it is, an older copy, a compacted one, or one of which damaged lines were taken out.
    pub(crate) fn begin(mut world: World) -> Repairs {
        let log = world.below(world.logs.len() as u64) as usize;
        let mut tip = world.logs[log].tip;
        if world.chance(60) {
            for _ in 0..world.below(25) {
                tip = world.entries[tip].before.filter(|before| *before > 1).unwrap_or(tip);
            }
        }
        let path = world.path(tip);
        let left_out = world.chance(35).then(|| path[world.below(path.len() as u64) as usize]);
        let text = Text::of(&world, tip, left_out);
        let noted = WitnessText { cluster: Some(CLUSTER), ..WitnessText::default() };
        let (told, undecided) = (Told::default(), BTreeSet::new());
        let new = world.entries.len();
        let mut repairs = Repairs { world, log, new, text, noted, told, undecided };
        repairs.is_damaged();
        repairs.master_looks();
        repairs
    }

    /// Lines of the log are damaged and taken out, and it is compacted.
    fn is_damaged(&mut self) {
        if self.world.chance(40) {
            let fork = self.world.first_fork(self.text.last);
            self.text.damage(&mut self.world, fork);
            for _ in 0..self.world.below(3) {
                self.text.compact();
            }
        }
    }

    /// The log that was repaired is served, and then it is to be repaired again: as it is, cut, or damaged. Gives whether it was
    /// served.
    fn is_served_on(&mut self) -> bool {
        let is_unnamed = |id: &Id| matches!(self.world.entries[*id].deed, Deed::Epoch { .. });
        if self.text.lost.iter().any(is_unnamed) {
            // Copies of a reign without a name are not told apart here.
            return false;
        }
        self.log = self.world.serve(self.log, self.text.last, self.text.lost.clone());
        let path = self.world.path(self.world.logs[self.log].tip);
        let new = path.into_iter().skip_while(|id| *id != self.text.last).skip(1);
        for id in new.collect::<Vec<_>>() {
            self.text.take(&self.world, id);
            self.text.last = id;
        }
        self.text.is_ended = false;
        self.text.is_begun = false;
        self.text.has_undecided = false;
        self.text.has_taken_undecided = false;
        self.text.tip = self.text.last;
        self.text.put_back.clear();
        self.undecided.clear();
        self.new = self.world.entries.len();
        self.told.served += 1;
        if self.world.chance(60) {
            self.cut();
        }
        self.is_damaged();
        self.noted = WitnessText { cluster: Some(CLUSTER), ..WitnessText::default() };
        self.master_looks();
        true
    }

    /// A master has found what slaves have seen, and does not serve; then some slaves are lost.
    fn master_looks(&mut self) {
        let reigns = self.world.reigns(self.text.tip);
        let end = self.world.entries[self.text.tip].seq;
        for node in 0..self.world.nodes.len() {
            let Some(seen) = self.world.nodes[node].machine.seen() else { continue };
            if self.world.chance(60) && reigns.testimony_at(end, &seen) == Testimony::LogIsShort {
                self.noted.note(name(node), seen);
            }
        }
        for node in 0..self.world.nodes.len() {
            if self.world.chance(7) {
                self.world.nodes[node].machine = slave::Slave::new(None, 1);
            }
        }
    }

    pub(crate) fn run(mut self) -> Told {
        for _ in 0..=self.world.below(3) {
            self.repair();
            if !self.is_served_on() {
                break;
            }
        }
        self.told
    }

    fn cut(&mut self) {
        let before = self.text.bytes.len();
        self.text.cut(&mut self.world);
        self.told.cut += u64::from(self.text.bytes.len() < before);
    }

    /// Runs until one has come to its end.
    fn repair(&mut self) {
        let choices = [Undecided::Stop, Undecided::Log, Undecided::Slaves];
        let mut undecided = choices[self.world.below(3) as usize];
        for attempt in 0..=RUNS_MAX {
            let is_last = attempt == RUNS_MAX;
            if self.world.chance(20) {
                undecided = choices[self.world.below(3) as usize];
            }
            if is_last {
                undecided = if self.text.has_undecided { Undecided::Slaves } else { Undecided::Log };
            }
            let accept_missing = is_last || self.world.chance(30);
            let wishes = Wishes { slaves: None, wait_ms: WAIT_MS, accept_missing, undecided, dry_run: false };
            if self.attempt(wishes, is_last) {
                break;
            }
            assert!(!is_last, "the last run did not come to its end");
            if self.world.chance(10) {
                self.cut();
                self.text.is_damaged = true;
            }
        }
    }

    /// One run. Whether nothing is left to be done.
    fn attempt(&mut self, wishes: Wishes, is_last: bool) -> bool {
        let mut there = Vec::new();
        for node in 0..self.world.nodes.len() {
            if is_last || self.world.chance(85) {
                there.push(node);
            }
        }
        let held: Vec<Vec<(Bytes, Stamp)>> = there.iter().map(|node| self.world.held(*node)).collect();
        let (kills, flaps) = if is_last { (0, 0) } else { (self.world.below(40), self.world.below(100)) };
        let before = Before {
            bytes: self.text.bytes.len(),
            noted: self.noted.clone(),
            put_back: self.text.put_back.len(),
        };
        let mut machine = Salvage::new(wishes, 1);
        let end = self.text.walk(|record| machine.read(record));
        let known = Known { cluster: CLUSTER, end, noted: self.noted.clone(), lock: LockText::default() };
        machine.open(Millis(0), known);
        let Repairs { world, text, noted, .. } = self;
        let (links, events) = (BTreeMap::new(), VecDeque::new());
        let (now, last_link) = (Millis(0), 1_000_000);
        let mut run = Run {
            world,
            text,
            noted,
            machine,
            now,
            links,
            last_link,
            events,
            outcome: None,
            kills,
            flaps,
            is_killed: false,
        };
        there.iter().for_each(|node| run.comes(*node));
        run.run();
        (0..run.world.nodes.len()).for_each(|node| run.goes(node));
        let (outcome, findings) = (run.outcome, run.machine.findings().clone());
        self.told.crashes += u64::from(run.is_killed && self.text.bytes.len() > before.bytes);
        self.undecided.extend(findings.undecided.iter().map(|key| Bytes::copy_from_slice(key)));
        // It may have been killed right after that.
        if self.text.is_ended {
            let had_part = |node: usize| {
                findings.slaves.iter().any(|slave| slave.id == name(node) && slave.seen.is_some())
            };
            let held: Vec<_> = there.into_iter().zip(held).filter(|(node, _)| had_part(*node)).collect();
            self.is_repaired(&held, &findings, wishes, &before.noted);
            return true;
        }
        self.is_as_it_was(outcome.as_ref(), wishes, &before)
            || (is_last && self.text.bytes.len() == before.bytes)
    }

    /// A run has not come to its end; whether nothing was to be done.
    fn is_as_it_was(&mut self, outcome: Option<&SalvageOutcome>, wishes: Wishes, before: &Before) -> bool {
        match outcome {
            Some(SalvageOutcome::NothingLacks) => {
                self.is_served();
                assert_eq!(self.text.bytes.len(), before.bytes);
                true
            }
            Some(SalvageOutcome::Missing { .. }) => {
                assert_eq!((self.text.bytes.len(), &self.noted), (before.bytes, &before.noted));
                false
            }
            Some(
                SalvageOutcome::Recovered
                | SalvageOutcome::Told
                | SalvageOutcome::TooManyReigns
                | SalvageOutcome::TooManyWitnesses,
            ) => panic!("{outcome:?}"),
            Some(SalvageOutcome::DecidedBefore) => {
                self.told.refused += 1;
                assert!(self.text.has_undecided && wishes.undecided != Undecided::Slaves);
                assert_eq!((self.text.bytes.len(), &self.noted), (before.bytes, &before.noted));
                false
            }
            Some(SalvageOutcome::Undecided) => {
                assert_eq!(self.text.put_back.len(), before.put_back, "something was put back");
                self.is_not_served();
                false
            }
            Some(SalvageOutcome::Lost { .. } | SalvageOutcome::Stalled { .. }) | None => {
                self.is_not_served();
                false
            }
        }
    }

    /// A run has come to its end with the slaves that held that.
    fn is_repaired(
        &mut self,
        held: &[(usize, Vec<(Bytes, Stamp)>)],
        findings: &Findings,
        wishes: Wishes,
        noted: &WitnessText,
    ) {
        self.told.recovered_keys += findings.recovered_keys() + findings.done_before;
        self.told.undecided_keys += self.undecided.len() as u64;
        self.is_served();
        self.nothing_is_lost(held);
        self.nothing_comes_undone(held, wishes.undecided);
        self.what_is_certain_is_decided(held, findings);
        self.the_choice_holds(findings, wishes.undecided);
        let are_there = |id: &SlaveId| held.iter().any(|(node, _)| name(*node) == *id);
        let missing = noted.seen.iter().find(|(id, _)| !are_there(id));
        assert!(wishes.accept_missing || missing.is_none(), "done without {missing:?}");
    }

    fn may_be_served(&self) -> bool {
        let mut reigns = Reigns::default();
        let end = self.text.walk(|record| {
            if let Body::Epoch { mark, .. } = record.body {
                let reign = Reign { epoch: record.epoch, id: mark.id };
                reigns.begin(ReignRecord { reign, first: record.seq, durable: true });
                mark.given_up.for_each(|reign| reigns.give_up(reign));
            }
        });
        let claims = |(id, seen): &(SlaveId, Seen)| Claim {
            source: Source::Noted(id.clone()),
            cluster: CLUSTER,
            epoch: None,
            seen: Some(*seen),
        };
        let claims: Vec<Claim> = self.noted.seen.iter().map(claims).collect();
        let now = Circumstances { new: true, heard_ms: HEAR_MS, newcomer_ms: None, is_warm: true };
        let verdict = judge(Some(&Log::from(&end)), &reigns, &claims, &Accepted::default(), now);
        verdict == MayBegin::Yes
    }

    fn is_served(&self) {
        assert!(self.may_be_served(), "no master serves it");
    }

    /// Once a repair has begun, by the log itself or by what is noted beside it.
    fn is_not_served(&self) {
        if self.text.put_back.is_empty() && !self.text.is_begun {
            return;
        }
        assert!(!self.may_be_served(), "a half repaired log is served");
    }

    /// The record of which a key has the value.
    fn value_of(&self, number: u64) -> Option<Id> {
        self.world.live(self.text.last, &self.text.lost).get(&number).copied()
    }

    /// Each copy that the log lacked is there, or a later one of the same history.
    fn nothing_is_lost(&self, held: &[(usize, Vec<(Bytes, Stamp)>)]) {
        for (node, copies) in held {
            for (key, stamp) in copies {
                let id = self.world.record_of(*stamp);
                let is_given_up = self.world.gives_up(self.text.tip, self.world.entries[id].reign);
                if self.undecided.contains(key) || is_given_up || self.world.is_in(id, self.text.last) {
                    continue;
                }
                let has = self.value_of(number_of(key));
                let is_there = has.is_some_and(|has| self.world.is_included(id, has));
                assert!(is_there, "slave {node} holds record {id} of {key:?}, and the log has {has:?}");
            }
        }
    }

    /// What was put back was certainly after all that the log has done to the key, in the history of all who hold it.
    fn nothing_comes_undone(&self, held: &[(usize, Vec<(Bytes, Stamp)>)], wish: Undecided) {
        let path = self.world.path(self.text.tip);
        for (index, (number, id, now)) in self.text.put_back.iter().enumerate() {
            let is_decided = wish == Undecided::Slaves && self.undecided.contains(&key(*number));
            if is_decided || *now < self.new {
                continue;
            }
            let touches = |at: &Id| match self.world.entries[*at].deed {
                Deed::Write(of) | Deed::Delete(of) => of == *number,
                Deed::Cluster | Deed::Epoch { .. } => false,
            };
            let last = path.iter().rev().copied().find(touches);
            let before =
                self.text.put_back[..index].iter().filter(|(of, ..)| of == number).map(|(_, id, _)| *id);
            for older in last.into_iter().chain(before) {
                assert!(
                    self.world.is_included(older, *id),
                    "key{number}: record {id} over {older}, which is not older"
                );
            }
            for (node, copies) in held {
                let is_it = |(_, stamp): &(Bytes, Stamp)| self.world.record_of(*stamp) == *id;
                let tip = self.world.nodes[*node].last_tip.filter(|_| copies.iter().any(is_it));
                let is_of_log = tip.is_none_or(|tip| self.world.is_in(*id, tip));
                assert!(
                    is_of_log || self.undecided.contains(&key(*number)),
                    "key{number}: record {id} was not in the log of slave {node}"
                );
            }
        }
    }

    /// Of what cannot be decided, the log has what the last run was to take.
    fn the_choice_holds(&self, findings: &Findings, wish: Undecided) {
        if wish != Undecided::Slaves {
            assert!(!self.text.has_taken_undecided, "versions of slaves were taken, and {wish:?} was wished");
            return;
        }
        for key in &findings.undecided {
            let is_put_back = self.text.put_back.iter().any(|(of, ..)| *of == number_of(key));
            assert!(is_put_back, "{key:?} has what the log had");
        }
    }

    /// If the log is only older than what slaves hold, and that is one history, nothing is undecided.
    fn what_is_certain_is_decided(&self, held: &[(usize, Vec<(Bytes, Stamp)>)], findings: &Findings) {
        if self.text.is_damaged {
            return;
        }
        let mut beyond: Vec<Id> = self.text.put_back.iter().map(|(_, id, _)| *id).collect();
        for (node, copies) in held {
            for id in copies.iter().map(|(_, stamp)| self.world.record_of(*stamp)) {
                let is_of_log = self.world.nodes[*node].last_tip.is_some_and(|tip| self.world.is_in(id, tip));
                if !is_of_log {
                    return;
                }
                if !self.world.is_in(id, self.text.tip) {
                    beyond.push(id);
                }
            }
        }
        beyond.sort_unstable_by_key(|id| self.world.entries[*id].seq);
        beyond.insert(0, self.text.tip);
        if beyond.windows(2).all(|two| self.world.is_in(two[0], two[1])) {
            assert_eq!(findings.undecided_keys, 0, "the log is only older: {:?}", findings.undecided);
        }
    }
}
