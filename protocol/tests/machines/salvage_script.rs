//! Transcripts of the machine of `dsm-log repair --from-slaves`. Links are numbers; what is sent follows the number of its link.

use crate::scripts::{run_all, text, version, Res};
use dsm_protocol::ids::{ClusterId, Epoch, Incarnation, LinkId, Millis, Reign, ReignId, Seq, SlaveId, Stamp};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::salvage::{
    show_stamp, Effect, Event, Known, Salvage, Undecided, Wishes, BEGUN_AT, RECOVERED,
};
use dsm_protocol::message::{ReignStart, Seen};
use dsm_protocol::record::{
    encode_with, Operation, Position, Record, ReignMark, Scanner, Step, SyncMode, Trailer,
};
use dsm_protocol::witness_file::WitnessText;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const CLUSTER: ClusterId = ClusterId(7);

#[test]
fn salvage() {
    run_all("salvage", Runner::new);
}

struct Runner {
    machine: Option<Salvage>,
    now: Millis,
    log: Vec<u8>,
    seq: u64,
    epoch: u64,
    noted: WitnessText,
    /// What is asked, by its number.
    asked: BTreeMap<u64, Stamp>,
}

impl Runner {
    fn new() -> Self {
        let noted = WitnessText { cluster: Some(CLUSTER), ..WitnessText::default() };
        let mut runner = Runner {
            machine: None,
            now: Millis(0),
            log: Vec::new(),
            seq: 0,
            epoch: 1,
            noted,
            asked: BTreeMap::new(),
        };
        runner.add(&Operation::Cluster(CLUSTER), &[]);
        runner
    }

    fn add(&mut self, operation: &Operation, fields: &[(&str, &[u8])]) {
        self.seq += 1;
        let trailer = Trailer { fields, ..Trailer::new(Seq(self.seq), Epoch(self.epoch), Seq(0)) };
        encode_with(operation, trailer, &mut self.log);
    }

    /// Whether a word is one about the log, and then does it.
    fn writes(&mut self, name: &str, args: &mut goldenscript::ArgumentConsumer<'_>) -> Res<bool> {
        let mut pos = || args.next_pos().map(ToOwned::to_owned).ok_or("an argument is missing");
        match name {
            // reign EPOCH/ID, repair EPOCH/ID: an EPOCH record.
            "reign" | "repair" => {
                let Reign { epoch, id } = reign(&pos()?)?;
                self.epoch = epoch.0;
                let mark = ReignMark { id, fsync: SyncMode::Always, given_up: Vec::new() };
                let address = if name == "repair" { BEGUN_AT } else { "host:1" }.to_owned();
                self.add(&Operation::Epoch { address, mark: Some(mark) }, &[]);
            }
            "write" => {
                let pairs = vec![(pos()?.into(), "old".into())];
                self.add(&Operation::Write(pairs), &[]);
            }
            "delete" => {
                let keys = vec![pos()?.into()];
                self.add(&Operation::Delete(keys), &[]);
            }
            // recovered KEY EPOCH.SEQ/ID: what an earlier repair has appended.
            "recovered" => {
                let (key, was) = (pos()?, show_stamp(stamp(&pos()?)?));
                let pairs = vec![(key.into(), "back".into())];
                self.add(&Operation::Write(pairs), &[(RECOVERED, was.as_bytes())]);
            }
            // note SLAVE EPOCH.SEQ/ID: it was noted that the slave has seen that.
            "note" => {
                let id = SlaveId::new(pos()?)?;
                self.noted.note(id, seen(&pos()?)?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn walk(log: &[u8], mut take: impl FnMut(&Record<'_>)) -> Position {
        let (mut scanner, mut rest) = (Scanner::new(1 << 20), log);
        while !rest.is_empty() {
            let before = scanner.position().offset;
            if let Step::Record { record, .. } = scanner.next(rest) {
                take(&record);
            }
            let taken = scanner.position().offset - before;
            assert!(taken > 0, "a line that is bad");
            rest = &rest[usize::try_from(taken).unwrap()..];
        }
        scanner.position()
    }

    /// The log is read, and slaves may come: `open [slaves=N] [undecided=log|slaves]`.
    fn open(&mut self, args: &mut goldenscript::ArgumentConsumer<'_>) -> Res<()> {
        let slaves = args.take_key("slaves").map(str::parse).transpose()?;
        let undecided = match args.take_key("undecided") {
            Some("log") => Undecided::Log,
            Some("slaves") => Undecided::Slaves,
            _ => Undecided::Stop,
        };
        let wishes = Wishes { slaves, wait_ms: 1000, accept_missing: false, undecided, dry_run: false };
        let mut machine = Salvage::new(wishes, 0);
        let end = Self::walk(&self.log, |record| machine.read(record));
        let known = Known { cluster: CLUSTER, end, noted: self.noted.clone(), lock: LockText::default() };
        machine.open(self.now, known);
        self.machine = Some(machine);
        Ok(())
    }

    fn event(&mut self, name: &str, args: &mut goldenscript::ArgumentConsumer<'_>) -> Res<Event> {
        let mut pos = || args.next_pos().map(ToOwned::to_owned).ok_or("an argument is missing");
        if name == "survey" {
            let machine = self.machine.as_mut().ok_or("it is not open")?;
            Self::walk(&self.log, |record| machine.touch(record));
            return Ok(Event::Surveyed);
        }
        if name == "tick" {
            self.now = self.now.plus(pos()?.parse()?);
            return Ok(Event::Tick);
        }
        if name == "finished" {
            return Ok(Event::Finished);
        }
        if name == "begun" {
            let reign = reign(&pos()?)?;
            return Ok(Event::Begun { reign, seq: Seq(self.seq + 1) });
        }
        let link = LinkId(pos()?.parse()?);
        Ok(match name {
            // comes LINK NAME [EPOCH.SEQ/ID]
            "comes" => {
                let id = SlaveId::new(pos()?)?;
                let seen = args.next_pos().map(seen).transpose()?;
                Event::Came { link, id, incarnation: Incarnation(1), cluster: Some(CLUSTER), seen }
            }
            // tells LINK [EPOCH/ID@FIRST]...
            "tells" => {
                let mut reigns = Vec::new();
                while let Some(word) = args.next_pos() {
                    let (of, first) = word.split_once('@').ok_or("EPOCH/ID@FIRST")?;
                    reigns.push(ReignStart { reign: reign(of)?, first: Seq(first.parse()?) });
                }
                Event::Lineage { link, reigns }
            }
            "gone" => Event::Gone { link },
            // enlisted LINK EPOCH/ID [EPOCH.SEQ/ID]
            "enlisted" => {
                let reign = reign(&pos()?)?;
                let seen = args.next_pos().map(seen).transpose()?;
                Event::Enlisted { link, reign, seen }
            }
            // holds LINK KEY@EPOCH.SEQ/ID...
            "holds" => {
                let mut entries = Vec::new();
                while let Some(word) = args.next_pos() {
                    let (key, at) = word.split_once('@').ok_or("KEY@VERSION")?;
                    entries.push((key.to_owned().into(), stamp(at)?));
                }
                Event::Holdings { link, entries, last: true }
            }
            // value LINK READ
            "value" => {
                let tag = pos()?.parse()?;
                let stamp = *self.asked.get(&tag).ok_or("it was not asked")?;
                Event::Value { link, tag, stamp, value: "new".into() }
            }
            other => return Err(format!("no such command {other}").into()),
        })
    }

    fn show(&mut self, effect: Effect, out: &mut String) -> Res<()> {
        match effect {
            Effect::Welcome { link } => writeln!(out, "{link}: welcome")?,
            Effect::AskLineage { link } => writeln!(out, "{link}: of which log?")?,
            Effect::Refuse { link, why } => writeln!(out, "{link}: refused, {why}")?,
            Effect::Note(noted) => {
                let seen: Vec<String> = noted
                    .seen
                    .iter()
                    .map(|(id, seen)| format!("{id} {}.{}/{}", seen.reign.epoch, seen.seq, seen.reign.id.0))
                    .collect();
                writeln!(out, "note [{}]", seen.join(", "))?;
            }
            Effect::Begin { epoch } => writeln!(out, "begin epoch {epoch}")?,
            Effect::Announce { link, reign, seq } => {
                writeln!(out, "{link}: announce {} seq {seq}", show(reign))?;
            }
            Effect::Admit { link, reign } => writeln!(out, "{link}: admit {}", show(reign))?,
            Effect::AskReport { link } => writeln!(out, "{link}: next part")?,
            Effect::Survey => writeln!(out, "read the log again")?,
            Effect::Read { link, tag, stamp, key } => {
                self.asked.insert(tag, stamp);
                let (at, id) = (stamp.version, stamp.reign.0);
                writeln!(out, "{link}: read {tag} {} {at}/{id}", text(&key))?;
            }
            Effect::Append { key, stamp, value, is_undecided } => {
                let (at, id) = (stamp.version, stamp.reign.0);
                let undecided = if is_undecided { " undecided" } else { "" };
                writeln!(out, "append {} {} was {at}/{id}{undecided}", text(&key), text(&value))?;
            }
            Effect::Finish { epoch, given_up } => {
                let given_up: Vec<String> = given_up.into_iter().map(show).collect();
                writeln!(out, "end with epoch {epoch}, give up {}", given_up.join(" "))?;
            }
            Effect::End(outcome) => writeln!(out, "over: {outcome:?}")?,
        }
        Ok(())
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let name = command.name.as_str();
        let mut out = String::new();
        if self.writes(name, &mut args)? {
            return Ok(out);
        }
        if name == "open" {
            self.open(&mut args)?;
            args.reject_next()?;
            return Ok(out);
        }
        let event = self.event(name, &mut args)?;
        args.reject_next()?;
        let mut effects = Vec::new();
        let machine = self.machine.as_mut().ok_or("it is not open")?;
        machine.step(self.now, event, &mut effects);
        for effect in effects {
            self.show(effect, &mut out)?;
        }
        if let Some(machine) = self.machine.as_ref().filter(|_| name == "survey") {
            for key in &machine.findings().undecided {
                writeln!(out, "undecided {}", text(key))?;
            }
        }
        Ok(out)
    }
}

/// `EPOCH/ID`.
fn reign(text: &str) -> Res<Reign> {
    let (epoch, id) = text.split_once('/').ok_or("EPOCH/ID")?;
    Ok(Reign::new(epoch.parse()?, id.parse()?))
}

/// `EPOCH.SEQ/ID`.
fn stamp(text: &str) -> Res<Stamp> {
    let (at, id) = text.split_once('/').ok_or("EPOCH.SEQ/ID")?;
    Ok(Stamp { version: version(at)?, reign: ReignId(id.parse()?) })
}

fn seen(text: &str) -> Res<Seen> {
    let Stamp { version, reign } = stamp(text)?;
    Ok(Seen { reign: Reign { epoch: version.epoch, id: reign }, seq: version.seq, durable: true })
}

fn show(reign: Reign) -> String {
    format!("{}/{}", reign.epoch, reign.id.0)
}
