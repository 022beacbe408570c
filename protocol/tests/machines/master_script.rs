//! Transcripts of the master machine.
//!
//! Slaves are named; `a` means the slave's last link, `a/1` its first. Appends are `w1`, `w2`, ... and reads `r1`,
//! `r2`, ... in the order in which the machine named them. The log gives `written` records the next places.

use crate::scripts::{client_command, run_all, show_reply, text, version, Res};
use bytes::Bytes;
use dsm_protocol::command::{Command as ClientCommand, ErrorWord};
use dsm_protocol::ids::{
    LinkId, Millis, Reign, ReignId, Seq, SessionId, SlaveId, Stamp, UnixMillis, Version,
};
use dsm_protocol::machine::link::Count;
use dsm_protocol::machine::master::{
    Asker, Change, Config, CopyCount, Effect, Event, Master, Placement, ReadId, ReignRecord, RepairNews,
    Slot, WriteId,
};
use dsm_protocol::record::Place;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

#[test]
fn master() {
    run_all("master", Runner::new);
}

struct Runner {
    master: Master,
    now: Millis,
    last: Version,
    /// Per slave its links so far, and the counts of those on which it joined.
    links: BTreeMap<String, Vec<(LinkId, Option<Count>)>>,
    next_link: u64,
    next_tag: u64,
    /// Writes, and how many values each has.
    appends: VecDeque<(WriteId, Vec<usize>)>,
    writes: Vec<WriteId>,
    reads: Vec<ReadId>,
}

impl Runner {
    fn new() -> Runner {
        Runner {
            master: Master::new(Config::default()),
            now: Millis(0),
            last: Version::default(),
            links: BTreeMap::new(),
            next_link: 1,
            next_tag: 1,
            appends: VecDeque::new(),
            writes: Vec::new(),
            reads: Vec::new(),
        }
    }

    fn link(&mut self, name: &str) -> Res<(LinkId, &mut Count)> {
        let (name, which) = name.split_once('/').unwrap_or((name, ""));
        let links = self.links.get_mut(name).ok_or("no such slave")?;
        let index = if which.is_empty() { links.len() } else { which.parse()? };
        let (link, count) = links.get_mut(index - 1).ok_or("no such link")?;
        Ok((*link, count.as_mut().ok_or("not joined")?))
    }

    fn count(&mut self, link: LinkId) -> &mut Option<Count> {
        let all = self.links.values_mut().flatten();
        all.filter(|(id, _)| *id == link).map(|(_, count)| count).next().expect("a link that has a name")
    }

    fn read(&self, name: &str) -> Res<ReadId> {
        let number: usize = name.trim_start_matches('r').parse()?;
        Ok(*self.reads.get(number - 1).ok_or("no such read")?)
    }

    fn name(&self, link: LinkId) -> String {
        let is_its = |(_, links): &(&String, &Vec<(LinkId, _)>)| links.iter().any(|(id, _)| *id == link);
        self.links.iter().find(is_its).map_or_else(|| format!("{link:?}"), |(name, _)| name.clone())
    }

    fn read_name(&mut self, read: ReadId) -> String {
        let index = self.reads.iter().position(|id| *id == read).unwrap_or_else(|| {
            self.reads.push(read);
            self.reads.len() - 1
        });
        format!("r{}", index + 1)
    }

    fn step(&mut self, event: Event, output: &mut String) {
        let mut effects = Vec::new();
        self.master.step(self.now, event, &mut effects);
        for effect in effects {
            let line = self.show(effect);
            writeln!(output, "{line}").unwrap();
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each effect, each short")]
    fn show(&mut self, effect: Effect) -> String {
        match effect {
            Effect::Reply { to, reply } => {
                format!("answer s{}#{}: {}", to.session, to.tag, show_reply(&reply))
            }
            Effect::Append { write, change, expires, after } => {
                let values = change.pairs().iter().map(|(_, value)| value.len()).collect();
                self.appends.push_back((write, values));
                self.writes.push(write);
                let change = match &*change {
                    Change::Put(pairs) => {
                        let pairs: Vec<String> =
                            pairs.iter().map(|(k, v)| format!("{}={}", text(k), text(v))).collect();
                        format!("put {}", pairs.join(" "))
                    }
                    Change::Delete(keys) => {
                        let keys: Vec<String> = keys.iter().map(|k| text(k)).collect();
                        format!("delete {}", keys.join(" "))
                    }
                    Change::Apply(mixed) => {
                        let until = |expires: &Option<UnixMillis>| {
                            expires.map_or_else(String::new, |expires| format!(" until {expires}"))
                        };
                        let pairs =
                            mixed.pairs.iter().zip(&mixed.expires).map(|((k, v), expires)| {
                                format!("{}={}{}", text(k), text(v), until(expires))
                            });
                        let pairs: Vec<String> = pairs.collect();
                        let keys: Vec<String> = mixed.deleted.iter().map(|k| text(k)).collect();
                        format!("put {} delete {}", pairs.join(" "), keys.join(" "))
                    }
                };
                let rests = after.map(|after| format!(", not after more than {after} refusals"));
                let until = expires.map_or_else(String::new, |expires| format!(", until {expires}"));
                format!("append w{}: {change}{until}{}", self.writes.len(), rests.unwrap_or_default())
            }
            Effect::Joined { link } => {
                *self.count(link) = Some(Count::default());
                let slot = self.master.slot_of(link).expect("it has joined");
                format!("{} joined at slot {}", self.name(link), slot.0)
            }
            Effect::NoSlot { .. } => "no slot".to_owned(),
            Effect::SlotFree { link } => format!("announce again to {link}"),
            Effect::SendWrite { link, version, key, value, .. } => {
                if let Some(count) = self.count(link) {
                    count.write();
                }
                format!("to {}: write {}@{version} = {}", self.name(link), text(&key), text(&value))
            }
            Effect::SendRead { link, read, version, key, .. } => {
                let read = self.read_name(read);
                format!("to {}: read {read} {}@{version}", self.name(link), text(&key))
            }
            Effect::SendDrop { link, version, reign, key } => {
                format!("to {}: drop {}@{version}{}", self.name(link), text(&key), show_id(reign))
            }
            Effect::SendHoldingsNext { link } => format!("to {}: next part of the report", self.name(link)),
            Effect::ReadLog { read, place, version, key } => {
                let read = self.read_name(read);
                format!("read log {read} {}@{version} at {}", text(&key), place.offset)
            }
            Effect::Repair(RepairNews::Began { cause }) => format!("repair began: {cause:?}"),
            Effect::Repair(RepairNews::Ended { keys, bytes, ms, left, .. }) => {
                format!("repair ended: {keys} keys, {bytes} bytes, {ms} ms, {left} left")
            }
            Effect::Leaving { link, state } => format!("{}: {state:?}", self.name(link)),
            Effect::Repair(RepairNews::RebalanceBegan { keys }) => format!("rebalancing began: {keys} keys"),
            Effect::Repair(RepairNews::RebalanceEnded { keys, bytes, surplus, ms, left }) => format!(
                "rebalancing ended: {keys} keys, {bytes} bytes, {surplus} too many, {ms} ms, {left} left"
            ),
            Effect::Witnessed { link, stamp } => {
                let (version, id) = (stamp.version, show_id(stamp.reign));
                format!("{} is a witness of {version}{id}", self.name(link))
            }
        }
    }

    fn next_version(&mut self) -> (Version, Place) {
        self.last.seq = Seq(self.last.seq.0 + 1);
        (self.last, Place { offset: self.last.seq.0 * 100, text_bytes: 100, bytes: 100, ..Place::default() })
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    #[expect(clippy::too_many_lines, reason = "one arm for each word of the scripts, each short")]
    fn run(&mut self, command: &goldenscript::Command, context: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        // `s1: get k` is a request of session 1.
        if let Some(session) = &context.prefix {
            let session = SessionId(session.trim_start_matches('s').parse()?);
            let deadline = args.take_key("deadline").map_or(Ok(u64::MAX), str::parse)?;
            let asked = client_command(&command.name, &mut args)?.ok_or("no such request")?;
            args.reject_next()?;
            let asker = Asker { session, tag: self.next_tag };
            self.next_tag += 1;
            self.step(Event::Request { asker, deadline: Millis(deadline), command: asked }, &mut out);
            return Ok(out);
        }
        let args_are_empty = command.args.is_empty();
        let mut pos = || args.next_pos().ok_or("an argument is missing");
        match command.name.as_str() {
            // config [random=SEED] [copies=half|N] [min=SLAVES] [durable=false] [log_window=BYTES] [reads_in_a_row=N] [repair=BYTES]
            // [hedge=PERCENT]:
            // a new machine.
            "config" => {
                let mut config = Config::default();
                if let Some(seed) = args.take_key("random") {
                    (config.placement, config.seed) = (Placement::Random, seed.parse()?);
                }
                config.copies = args.take_key("copies").map_or(Ok(CopyCount::Half), str::parse)?;
                config.slaves_min = args.take_key("min").map_or(Ok(1), str::parse)?;
                config.durable = args.take_key("durable").map_or(Ok(true), str::parse)?;
                if let Some(bytes) = args.take_key("log_window") {
                    config.log_window_bytes = bytes.parse()?;
                }
                config.repair_bytes_per_second = args.take_key("repair").map_or(Ok(0), str::parse)?;
                config.hedge_percent = args.take_key("hedge").map_or(Ok(0), str::parse)?;
                config.reads_in_a_row = args.take_key("reads_in_a_row").map_or(Ok(1), str::parse)?;
                self.master = Master::new(config);
            }
            // clock TIME: what the wall clock shows.
            "clock" => {
                let wall = UnixMillis(pos()?.parse()?);
                let uptime = self.now;
                self.step(Event::Clock { wall, uptime }, &mut out);
            }
            // replay_time TIME [continued=TIME]: what time it was, and is by now.
            "replay_time" => {
                let time = UnixMillis(pos()?.parse()?);
                let continued = args.take_key("continued").map(str::parse).transpose()?.map(UnixMillis);
                self.master.replay_time(self.now, self.now, time, continued);
            }
            // expire_some: keys that nobody asks for.
            "expire_some" => self.step(Event::Expire, &mut out),
            // replay KEY=VERSION ... [bytes=LENGTH] [expires=TIME]: records of the log.
            "replay" => {
                let bytes = args.take_key("bytes").map_or(Ok(100), str::parse)?;
                let expires = args.take_key("expires").map(str::parse).transpose()?.map(UnixMillis);
                while let Some((key, at)) = args.next_key() {
                    let at = version(at)?;
                    self.last = self.last.max(at);
                    let place = Place { offset: at.seq.0 * 100, text_bytes: 100, bytes, ..Place::default() };
                    self.master.replay_put(key.as_bytes(), at, place, expires);
                }
            }
            "replay_delete" => self.master.replay_delete(pos()?.as_bytes()),
            // reign EPOCH[/ID]: the next record of the log begins it.
            "reign" => {
                let (epoch, id) = epoch_and_id(pos()?)?;
                self.last = Version::new(epoch, self.last.seq.0 + 1);
                self.step(Event::ReignBegan { version: self.last, id }, &mut out);
            }
            // replay_reign EPOCH[/ID] FIRST [durable=false]: an EPOCH record of the log.
            "replay_reign" => {
                let (epoch, id) = epoch_and_id(pos()?)?;
                self.last = self.last.max(Version::new(epoch, pos()?.parse()?));
                let (reign, first) = (Reign { epoch: self.last.epoch, id }, self.last.seq);
                let durable = args.take_key("durable").map_or(Ok(true), str::parse)?;
                self.master.replay_reign(ReignRecord { reign, first, durable });
            }
            "end" => self.step(Event::ReignEnded, &mut out),
            // join NAME [room=BYTES] [times=N]: the slave's next link. Several times: it comes and goes.
            "join" => {
                let name = pos()?.to_owned();
                let room_bytes = args.take_key("room").map_or(Ok(u64::MAX), str::parse)?;
                let times: usize = args.take_key("times").map_or(Ok(1), str::parse)?;
                for time in 1..=times {
                    let link = LinkId(self.next_link);
                    self.next_link += 1;
                    self.links.entry(name.clone()).or_default().push((link, None));
                    let id = SlaveId::new(name.clone())?;
                    out.clear();
                    self.step(Event::SlaveJoined { id, link, room_bytes }, &mut out);
                    if time < times {
                        self.step(Event::SlaveLost { link }, &mut out);
                    }
                }
            }
            "lose" => {
                let (link, _) = self.link(pos()?)?;
                self.step(Event::SlaveLost { link }, &mut out);
            }
            // written [N]: the log has taken in the next N appends.
            "written" => {
                let count: usize = args.next_pos().map_or(Ok(1), str::parse)?;
                for _ in 0..count {
                    let (write, values) = self.appends.pop_front().ok_or("nothing is appended")?;
                    let (version, place) = self.next_version();
                    let places = values.into_iter().map(|bytes| Place { bytes: bytes as u32, ..place });
                    let places = places.collect();
                    self.step(Event::Written { write, version, places }, &mut out);
                }
            }
            // full: who lately had no room.
            "full" if args_are_empty => {
                for (id, room, lacking) in self.master.full_slaves() {
                    writeln!(out, "{id} has room for {room} and lacked {lacking}")?;
                }
            }
            "not_written" => {
                let (write, _) = self.appends.pop_front().ok_or("nothing is appended")?;
                let (word, detail) = (ErrorWord::ReadOnly, "the disk is full".to_owned());
                self.step(Event::NotWritten { write, word, detail }, &mut out);
            }
            // ack NAME THROUGH [room=BYTES]: through that message, or all that it was sent.
            "ack" => {
                let ((link, count), through) = (self.link(pos()?)?, pos()?.parse()?);
                let writes = count.ack(count.sent().min(through)).ok_or("it has acknowledged more")?;
                let room_bytes = args.take_key("room").map_or(Ok(u64::MAX), str::parse)?;
                self.step(Event::Acked { link, writes, room_bytes }, &mut out);
            }
            "full" => {
                let ((link, count), number) = (self.link(pos()?)?, pos()?.parse()?);
                let before = count.writes_before(number);
                self.step(Event::Full { link, before }, &mut out);
            }
            // value NAME READ VERSION[/ID] VALUE
            "value" => {
                let (link, read) = (self.link(pos()?)?.0, self.read(pos()?)?);
                let (Stamp { version, reign }, value) = (stamp(pos()?)?, Bytes::from(pos()?.to_owned()));
                self.step(Event::Value { link, read, version, reign, value }, &mut out);
            }
            "missing" => {
                let (link, read) = (self.link(pos()?)?.0, self.read(pos()?)?);
                self.step(Event::Missing { link, read }, &mut out);
            }
            // holdings NAME [more] KEY=VERSION[/ID] ...
            "holdings" => {
                let (link, _) = self.link(pos()?)?;
                let last = args.next_pos().is_none();
                let mut entries = Vec::new();
                while let Some((key, at)) = args.next_key() {
                    entries.push((Bytes::from(key.to_owned()), stamp(at)?));
                }
                self.step(Event::Holdings { link, entries, last }, &mut out);
            }
            "log_read" => {
                let (read, value) = (self.read(pos()?)?, Bytes::from(pos()?.to_owned()));
                self.step(Event::LogRead { read, result: Ok(value) }, &mut out);
            }
            "log_read_fails" => {
                let read = self.read(pos()?)?;
                self.step(
                    Event::LogRead { read, result: Err("the line is another one".to_owned()) },
                    &mut out,
                );
            }
            // at MS: time goes on to there, and a tick says so.
            "at" => {
                self.now = Millis(pos()?.parse()?);
                self.step(Event::Tick, &mut out);
            }
            // hedge: the time comes at which a second holder may be asked.
            "hedge" => match self.master.hedge_at() {
                Some(at) => {
                    self.now = self.now.max(at);
                    out += &format!("at {}\n", self.now.0);
                    self.step(Event::Hedge, &mut out);
                }
                None => out += "never\n",
            },
            // chores: what is done beside requests, to its end.
            "chores" => {
                while self.master.has_chores() {
                    self.step(Event::Chore, &mut out);
                }
            }
            // repair: what it is doing.
            "repair" => {
                let (state, left) = (self.master.repair_state(), self.master.keys_under_replicated(None));
                let (keys, bytes) = self.master.repaired();
                writeln!(out, "{state:?}, {left} left, {keys} keys repaired, {bytes} bytes")?;
            }
            // remove NAME: an operator has it drained. anew NAME: it was started anew since.
            "remove" => {
                let id = SlaveId::new(pos()?)?;
                let asker = Asker { session: SessionId(9), tag: self.next_tag };
                self.next_tag += 1;
                let (deadline, command) = (Millis(u64::MAX), ClientCommand::RemoveSlave { id });
                self.step(Event::Request { asker, deadline, command }, &mut out);
            }
            "anew" => {
                let id = SlaveId::new(pos()?)?;
                self.step(Event::SlaveStartedAnew { id }, &mut out);
            }
            // rebalance: what it is doing.
            "rebalance" => {
                let (state, left, moved) =
                    (self.master.rebalance_state(), self.master.keys_misplaced(), self.master.moved());
                writeln!(out, "{state:?}, {left} left, {moved:?}")?;
            }
            // paused_until MS: this process did not run.
            "paused_until" => {
                self.now = Millis(pos()?.parse()?);
                self.master.restart_read_timeouts(self.now);
                self.step(Event::Tick, &mut out);
            }
            // state: who holds what, and how much is in flight.
            "state" => {
                let live: Vec<(String, Slot)> =
                    self.master.slaves().map(|(id, slot, ..)| (id.to_string(), slot)).collect();
                let mut entries: Vec<_> = self.master.directory().iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                for (key, entry) in entries {
                    let holders: Vec<&str> = live
                        .iter()
                        .filter(|(_, slot)| entry.holders.contains(*slot))
                        .map(|(name, _)| name.as_str())
                        .collect();
                    writeln!(out, "{}@{}: {}", text(key), entry.version, holders.join(" "))?;
                }
                writeln!(out, "slaves {} in flight {}", live.len(), self.master.in_flight())?;
            }
            other => return Err(format!("no such command {other}").into()),
        }
        args.reject_next()?;
        Ok(out)
    }
}

/// `EPOCH[/ID]`.
fn epoch_and_id(text: &str) -> Res<(u64, ReignId)> {
    let (epoch, id) = text.split_once('/').unwrap_or((text, "0"));
    Ok((epoch.parse()?, ReignId(id.parse()?)))
}

/// `EPOCH.SEQ[/ID]`.
fn stamp(text: &str) -> Res<Stamp> {
    let (at, id) = text.split_once('/').unwrap_or((text, "0"));
    Ok(Stamp { version: version(at)?, reign: ReignId(id.parse()?) })
}

fn show_id(id: ReignId) -> String {
    if id == ReignId(0) {
        String::new()
    } else {
        format!("/{}", id.0)
    }
}
