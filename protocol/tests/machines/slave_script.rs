//! Transcripts of the slave machine. Links are numbers; what is sent stands behind the number of its link.

use crate::scripts::{run_all, text, version, Res};
use dsm_protocol::ids::{Epoch, LinkId};
use dsm_protocol::machine::slave::{Effect, Event, Slave};
use std::fmt::Write as _;

#[test]
fn slave() {
    run_all("slave", || Runner(Slave::new(None, 0)));
}

struct Runner(Slave);

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        match command.name.as_str() {
            // memory BYTES: a new slave with so much room.
            "memory" => {
                self.0 = Slave::new(Some(args.next_pos().ok_or("how much")?.parse()?), 0);
                return Ok(out);
            }
            "state" => {
                let slave = &self.0;
                let (epoch, highest, bytes) = (slave.epoch(), slave.highest(), slave.memory_bytes());
                return Ok(format!("keys {} bytes {bytes} epoch {epoch} highest {highest}", slave.len()));
            }
            _ => {}
        }
        let link = LinkId(args.next_pos().ok_or("which link")?.parse()?);
        let mut pos = || args.next_pos().ok_or("an argument is missing");
        let event = match command.name.as_str() {
            "up" => Event::LinkUp { link },
            "down" => Event::LinkDown { link },
            "announce" => Event::Announced { link, epoch: Epoch(pos()?.parse()?) },
            "write" => {
                let (version, key, value) = (version(pos()?)?, pos()?.to_owned(), pos()?.to_owned());
                Event::Write { link, version, key: key.into(), value: value.into() }
            }
            "ping" => Event::Ping { link },
            "read" => Event::Read { link, tag: 7, version: version(pos()?)?, key: pos()?.to_owned().into() },
            "drop" => Event::Drop { link, version: version(pos()?)?, key: pos()?.to_owned().into() },
            "next" => Event::HoldingsNext { link },
            "batch_ends" => Event::BatchEnded { link },
            other => return Err(format!("no such command {other}").into()),
        };
        args.reject_next()?;
        let mut effects = Vec::new();
        self.0.step(event, &mut effects);
        let room = |bytes: u64| if bytes == u64::MAX { "any".to_owned() } else { bytes.to_string() };
        for effect in effects {
            match effect {
                Effect::Enlisted { link, epoch, highest, room_bytes } => {
                    writeln!(
                        out,
                        "{link}: enlisted epoch {epoch} highest {highest} room {}",
                        room(room_bytes)
                    )?;
                }
                Effect::Outdated { link, epoch } => writeln!(out, "{link}: outdated, epoch is {epoch}")?,
                Effect::Full { link, number } => writeln!(out, "{link}: full {number}")?,
                Effect::Ack { link, through, room_bytes } => {
                    writeln!(out, "{link}: ack {through} room {}", room(room_bytes))?;
                }
                Effect::Value { link, tag, version, value } => {
                    writeln!(out, "{link}: value {tag} {version} {}", text(&value))?;
                }
                Effect::Missing { link, tag, held } => {
                    let held = held.map_or("nothing".to_owned(), |version| version.to_string());
                    writeln!(out, "{link}: missing {tag}, held is {held}")?;
                }
                Effect::Holdings { link, entries, last } => {
                    let mut entries: Vec<String> =
                        entries.iter().map(|(key, version)| format!("{}@{version}", text(key))).collect();
                    entries.sort();
                    writeln!(
                        out,
                        "{link}: holds [{}]{}",
                        entries.join(" "),
                        if last { " last" } else { "" }
                    )?;
                }
            }
        }
        Ok(out)
    }
}
