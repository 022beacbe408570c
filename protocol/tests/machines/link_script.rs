//! Transcripts of the links to slaves, and of the quarantine that they share.
//!
//! Slaves are named; a name means the slave's last link. `at MS` lets time pass: each link is judged when its last
//! verdict asked for it, and its socket takes as many bytes per millisecond as `takes` set (all, at first).

use crate::scripts::{run_all, Res};
use bytes::Bytes;
use dsm_protocol::ids::{Epoch, Incarnation, Millis, Reign, ReignId, SlaveId, Stamp, Version};
use dsm_protocol::machine::doubt::SelfDoubt;
use dsm_protocol::machine::link::{
    Announcement, Challenge, Life, Link, LinkEnding, LinkLimits, LinkVerdict, Quarantine, Traffic,
    WaitingRead,
};
use dsm_protocol::machine::master::ReadId;
use dsm_protocol::message::{Control, Message};
use std::collections::BTreeMap;
use std::fmt::Write as _;

#[test]
fn link() {
    run_all("link", Runner::new);
}

/// Bytes of a message without a value.
const FRAME_BYTES: u64 = 100;

struct Held {
    link: Link,
    at: Traffic,
    /// Bytes that its socket takes in a millisecond.
    rate: u64,
    next_look: Millis,
}

struct Runner {
    now: Millis,
    doubt: SelfDoubt,
    quarantine: Quarantine,
    links: BTreeMap<String, Held>,
    read_bytes_max: usize,
    next_read: u64,
}

impl Runner {
    fn new() -> Runner {
        Runner {
            now: Millis(0),
            doubt: SelfDoubt::new(Millis(0), 250),
            quarantine: Quarantine::default(),
            links: BTreeMap::new(),
            read_bytes_max: 8 << 20,
            next_read: 1,
        }
    }

    fn held(&mut self, name: &str) -> Res<&mut Held> {
        Ok(self.links.get_mut(name).ok_or("no such slave")?)
    }

    fn connect(&mut self, name: &str, incarnation: u64) -> Res<()> {
        let life = Life { id: SlaveId::new(name)?, incarnation: Incarnation(incarnation) };
        let limits = LinkLimits {
            ack_timeout_ms: 1000,
            read_bytes_max: self.read_bytes_max,
            trial_bytes_max: (1 << 20) + 1024,
        };
        let link = Link::new(life, limits, self.now);
        let held = Held { link, at: Traffic::default(), rate: u64::MAX, next_look: self.now };
        self.links.insert(name.to_owned(), held);
        Ok(())
    }

    fn announce(&mut self, name: &str, is_needed: bool, out: &mut String) -> Res<()> {
        let now = self.now;
        let held = self.links.get_mut(name).ok_or("no such slave")?;
        match held.link.announce(now, &self.quarantine, is_needed) {
            Announcement::Nothing => writeln!(out, "{name} is told nothing")?,
            Announcement::Reign => {
                writeln!(out, "{name} is told of the reign")?;
                held.append(FRAME_BYTES);
                held.link.note_question(now, held.at.queued);
            }
            Announcement::Trial { bytes } => {
                writeln!(out, "{name} is tried with {bytes} bytes")?;
                held.append(bytes);
                held.link.note_question(now, held.at.queued);
            }
            Announcement::Quarantined { ms, cause } => {
                writeln!(out, "{name} is told to wait for {ms} ms: {cause}")?;
            }
        }
        Ok(())
    }

    fn end(&mut self, name: &str, ending: LinkEnding, out: &mut String) -> Res<()> {
        let held = self.links.remove(name).ok_or("no such slave")?;
        match self.quarantine.ended(self.now, &held.link, ending) {
            None => writeln!(out, "nothing is held against {name}")?,
            Some(record) => {
                let (ms, failures) = (record.quarantine_ms(), record.failures);
                writeln!(out, "{name} must wait for {ms} ms: failure {failures}, {}", record.cause)?;
            }
        }
        Ok(())
    }

    /// Judges the links that are due.
    fn look(&mut self, out: &mut String) -> Res<()> {
        let now = self.now;
        let mut late = Vec::new();
        for (name, held) in &mut self.links {
            if held.next_look > now {
                continue;
            }
            // Each actor notes that the process runs before it judges.
            self.doubt.observe(now);
            let wait_ms = match held.link.look(now, held.at, &self.doubt) {
                LinkVerdict::Late => {
                    writeln!(out, "{now}: {name} is late, {} bytes on their way", held.link.bytes_ahead())?;
                    late.push(name.clone());
                    continue;
                }
                LinkVerdict::Ping(wait_ms) => {
                    writeln!(out, "{now}: {name} is pinged")?;
                    held.append(FRAME_BYTES);
                    held.link.note_ping(now, held.at.queued);
                    wait_ms
                }
                LinkVerdict::Wait(wait_ms) => wait_ms,
            };
            held.next_look = now.plus(wait_ms);
        }
        late.iter().try_for_each(|name| self.end(name, LinkEnding::Late, out))
    }

    fn go_on(&mut self, until: Millis, out: &mut String) -> Res<()> {
        while self.now < until {
            self.now = self.now.plus(1);
            self.links.values_mut().for_each(Held::take);
            if self.now.0.is_multiple_of(25) {
                self.doubt.observe(self.now);
            }
            self.look(out)?;
        }
        Ok(())
    }

    fn ask(&mut self, name: &str, bytes: u32, out: &mut String) -> Res<()> {
        let read = ReadId::from_tag(self.next_read);
        self.next_read += 1;
        let held = self.held(name)?;
        let stamp = Stamp { version: Version::new(1, 1), reign: ReignId(1) };
        let read = WaitingRead { read, stamp, key: Bytes::new(), bytes };
        if held.link.reads_mut().send_now(&read, |_| true) {
            held.append(FRAME_BYTES);
            writeln!(out, "{name} is asked")?;
        } else {
            let ahead = held.link.reads_mut().wait(read);
            writeln!(out, "it waits for room, {ahead} bytes with it")?;
        }
        Ok(())
    }
}

impl Held {
    fn append(&mut self, bytes: u64) {
        self.at.queued += bytes;
        if self.rate == u64::MAX {
            self.take();
        }
    }

    fn take(&mut self) {
        self.at.taken = self.at.taken.saturating_add(self.rate).min(self.at.queued);
        self.at.reached = self.at.taken;
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    #[expect(clippy::too_many_lines, reason = "one arm for each word of the scripts, each short")]
    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        let incarnation = args.take_key("incarnation").map_or(Ok(1), str::parse)?;
        let first = args.next_pos().unwrap_or_default().to_owned();
        let (name, now) = (first.as_str(), self.now);
        let mut number = || -> Res<u64> { Ok(args.next_pos().ok_or("how much")?.parse()?) };
        match command.name.as_str() {
            // window BYTES: how many bytes of values links that come are asked for at once.
            "window" => self.read_bytes_max = name.parse()?,
            // connect NAME [incarnation=N]: the slave's next link.
            "connect" => self.connect(name, incarnation)?,
            // hello NAME [incarnation=N]: another link comes in its name.
            "hello" => {
                let held = self.held(name)?;
                match held.link.challenged(Incarnation(incarnation)) {
                    Challenge::Replaced => {
                        writeln!(out, "it replaces the old one")?;
                        self.end(name, LinkEnding::Broken, &mut out)?;
                        self.connect(name, incarnation)?;
                    }
                    Challenge::Probed => {
                        writeln!(out, "the old one is asked for a sign of life")?;
                        held.append(FRAME_BYTES);
                        held.link.note_question(now, held.at.queued);
                    }
                }
            }
            // alive NAME: it gives that.
            "alive" => {
                let held = self.held(name)?;
                held.link.note_arrived(now, &Message::Control(Control::Alive), held.at.reached);
            }
            // announce NAME [needed]: there is a reign.
            "announce" => {
                let is_needed = args.next_pos().is_some();
                self.announce(name, is_needed, &mut out)?;
            }
            "took" => {
                let held = self.held(name)?;
                held.link.note_arrived(now, &Message::Control(Control::Took { bytes: 0 }), held.at.reached);
                let was_tried = held.link.took();
                writeln!(out, "{}", if was_tried { "it has taken its trial" } else { "it was not tried" })?;
            }
            // enlist NAME ROOM: it accepts the reign.
            "enlist" => {
                let (held, room_bytes) = (self.held(name)?, number()?);
                let reign = Reign { epoch: Epoch(1), id: ReignId(1) };
                let enlisted = Control::Enlisted { reign, seen: None, room_bytes };
                held.link.note_arrived(now, &Message::Control(enlisted), held.at.reached);
                held.link.enlist(room_bytes);
            }
            // place NAME: the reign serves. Who has enlisted gets its place.
            "place" => {
                let held = self.held(name)?;
                match held.link.take_enlisted() {
                    None => writeln!(out, "{name} has not accepted the reign")?,
                    Some(_) => {
                        held.append(FRAME_BYTES);
                        held.link.begin(now, held.at.queued);
                        writeln!(out, "{name} is active")?;
                    }
                }
            }
            // over: the reign is.
            "over" => self.links.values_mut().for_each(|held| held.link.end_reign()),
            // write NAME BYTES
            "write" => {
                let (held, bytes) = (self.held(name)?, number()?);
                held.append(bytes);
                held.link.note_write(now, held.at.queued);
            }
            // ack NAME THROUGH
            "ack" => {
                let (held, through) = (self.held(name)?, number()?);
                match held.link.note_acked(now, through, held.at.reached) {
                    Some(writes) => writeln!(out, "it covers {writes} more writes")?,
                    None => writeln!(out, "it cannot have received that")?,
                }
            }
            // arrived NAME THROUGH: the acknowledgement has come, and its turn has not.
            "arrived" => {
                let (held, through) = (self.held(name)?, number()?);
                let ack = Message::Ack { through, room_bytes: u64::MAX };
                held.link.note_arrived(now, &ack, held.at.reached);
            }
            // full NAME NUMBER: it had no room.
            "full" => match self.held(name)?.link.refused(number()?) {
                Some(before) => writeln!(out, "the write after {before} others")?,
                None => writeln!(out, "no such write is on its way")?,
            },
            "ask" => {
                let bytes = u32::try_from(number()?)?;
                self.ask(name, bytes, &mut out)?;
            }
            // says NAME BYTES: so much of a value has come.
            "says" => {
                let (held, bytes) = (self.held(name)?, number()?);
                held.at.heard += bytes;
            }
            // answered NAME: the oldest value is here.
            "answered" => {
                let held = self.held(name)?;
                let (at, mut asked) = (&mut held.at, 0);
                if held.link.reads_mut().answered() {
                    held.link.reads_mut().go_on(|_| true, |_| asked += 1);
                }
                at.queued += asked * FRAME_BYTES;
                writeln!(out, "{asked} that waited are asked for")?;
            }
            // takes NAME BYTES: in each millisecond from now on.
            "takes" => {
                let (held, rate) = (self.held(name)?, number()?);
                held.rate = rate;
            }
            "at" => self.go_on(Millis(name.parse()?), &mut out)?,
            // paused_until MS: this process did not run.
            "paused_until" => {
                self.now = Millis(name.parse()?);
                self.look(&mut out)?;
            }
            // probe NAME: it asks for a sign of life.
            "probe" => {
                let held = self.held(name)?;
                let says = held.link.is_to_say_alive(held.at.taken);
                if says {
                    held.append(FRAME_BYTES);
                    held.link.note_alive(held.at.queued);
                }
                writeln!(out, "{}", if says { "it is given one" } else { "one waits for it" })?;
            }
            // report NAME [more]: a part of its report has come.
            "report" => {
                let is_more = args.next_pos().is_some();
                let held = self.held(name)?;
                let was_asked = held.link.note_reported(held.at.reached);
                writeln!(out, "{}", if was_asked { "it was asked for" } else { "nobody asked for it" })?;
                if was_asked && is_more {
                    held.append(FRAME_BYTES);
                    held.link.note_report_asked(held.at.queued);
                }
            }
            "lost" => self.end(name, LinkEnding::Broken, &mut out)?,
            "dismissed" => self.end(name, LinkEnding::Ours, &mut out)?,
            "standing" => {
                let held = self.held(name)?;
                writeln!(out, "{:?}, acknowledges in {} ms", held.link.standing(), held.link.ack_ms(now))?;
            }
            other => return Err(format!("no such command {other}").into()),
        }
        args.reject_next()?;
        Ok(out)
    }
}
