//! Transcripts of the slave machine. Links are numbers; each message that is sent follows the number of its link.

use crate::scripts::{run_all, text, version, Res};
use dsm_protocol::ids::{LinkId, Reign, ReignId, Seq, Version};
use dsm_protocol::machine::slave::{Effect, Event, Slave};
use dsm_protocol::message::{ReignStart, Seen};
use std::fmt::Write as _;

#[test]
fn slave() {
    run_all("slave", || Runner(Slave::new(None, 0)));
}

struct Runner(Slave);

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    #[expect(clippy::too_many_lines, reason = "one arm for each word of the scripts, each short")]
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
                let (epoch, bytes) = (slave.epoch(), slave.memory_bytes());
                let seen = show_seen(slave.seen());
                return Ok(format!("keys {} bytes {bytes} epoch {epoch} seen {seen}", slave.len()));
            }
            "log" => {
                let shown: Vec<String> = self.0.lineage().iter().map(show_start).collect();
                return Ok(if shown.is_empty() {
                    "of no log".into()
                } else {
                    format!("of {}", shown.join(" "))
                });
            }
            _ => {}
        }
        let link = LinkId(args.next_pos().ok_or("which link")?.parse()?);
        let mut pos = || args.next_pos().ok_or("an argument is missing");
        let event = match command.name.as_str() {
            "up" => Event::LinkUp { link },
            "down" => Event::LinkDown { link },
            // announce LINK EPOCH[/ID] [SEQ]: its EPOCH record stands at SEQ. `reign` gives the slave a place at once.
            "announce" | "reign" => {
                let reign = reign(pos()?)?;
                let seq = Seq(args.next_pos().map_or(Ok(1), str::parse)?);
                Event::Announced { link, reign, seq, durable: true }
            }
            "admit" => Event::Admitted { link, reign: reign(pos()?)? },
            // lineage LINK EPOCH/ID@FIRST...: the reigns of the master's log.
            "lineage" => {
                let mut reigns = Vec::new();
                while let Some(word) = args.next_pos() {
                    let (of, first) = word.split_once('@').ok_or("EPOCH/ID@FIRST")?;
                    reigns.push(ReignStart { reign: reign(of)?, first: Seq(first.parse()?) });
                }
                Event::Lineage { link, reigns }
            }
            // A version may say whose it is: EPOCH.SEQ[/ID].
            "write" => {
                let ((version, reign), key) = (stamp(pos()?)?, pos()?.to_owned());
                Event::Write { link, version, reign, key: key.into(), value: pos()?.to_owned().into() }
            }
            "ping" => Event::Ping { link },
            "read" => {
                let ((version, reign), key) = (stamp(pos()?)?, pos()?.to_owned());
                Event::Read { link, tag: 7, version, reign, key: key.into() }
            }
            "drop" => {
                let ((version, reign), key) = (stamp(pos()?)?, pos()?.to_owned());
                Event::Drop { link, version, reign, key: key.into() }
            }
            "next" => Event::HoldingsNext { link },
            "batch_ends" => Event::BatchEnded { link },
            other => return Err(format!("no such command {other}").into()),
        };
        args.reject_next()?;
        let mut effects = Vec::new();
        let admitted = match &event {
            Event::Announced { reign, .. } if command.name == "reign" => {
                Some(Event::Admitted { link, reign: *reign })
            }
            _ => None,
        };
        self.0.step(event, &mut effects);
        if let Some(admitted) = admitted {
            self.0.step(admitted, &mut effects);
        }
        let room = |bytes: u64| if bytes == u64::MAX { "any".to_owned() } else { bytes.to_string() };
        for effect in effects {
            match effect {
                Effect::Enlisted { link, reign, seen, room_bytes } => {
                    let (reign, seen, room) = (show_reign(reign), show_seen(seen), room(room_bytes));
                    writeln!(out, "{link}: enlisted epoch {reign} seen {seen} room {room}")?;
                }
                Effect::Outdated { link, seen } => {
                    writeln!(out, "{link}: outdated, epoch is {}", show_reign(seen.reign))?;
                }
                Effect::Full { link, number } => writeln!(out, "{link}: full {number}")?,
                Effect::Ack { link, through, room_bytes } => {
                    writeln!(out, "{link}: ack {through} room {}", room(room_bytes))?;
                }
                Effect::Value { link, tag, version, reign, value, .. } => {
                    writeln!(out, "{link}: value {tag} {version}{} {}", show_id(reign), text(&value))?;
                }
                Effect::Missing { link, tag, held } => {
                    let held = held.map_or("nothing".to_owned(), |version| version.to_string());
                    writeln!(out, "{link}: missing {tag}, held is {held}")?;
                }
                Effect::Holdings { link, entries, last } => {
                    let mut entries: Vec<String> = entries
                        .iter()
                        .map(|(key, at)| format!("{}@{}{}", text(key), at.version, show_id(at.reign)))
                        .collect();
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

fn show_start(start: &ReignStart) -> String {
    format!("{}@{}", show_reign(start.reign), start.first)
}

/// `EPOCH[/ID]`.
fn reign(text: &str) -> Res<Reign> {
    let (epoch, id) = text.split_once('/').unwrap_or((text, "0"));
    Ok(Reign::new(epoch.parse()?, id.parse()?))
}

/// `EPOCH.SEQ[/ID]`.
fn stamp(text: &str) -> Res<(Version, ReignId)> {
    let (at, id) = text.split_once('/').unwrap_or((text, "0"));
    Ok((version(at)?, ReignId(id.parse()?)))
}

fn show_id(id: ReignId) -> String {
    if id == ReignId(0) {
        String::new()
    } else {
        format!("/{}", id.0)
    }
}

fn show_reign(reign: Reign) -> String {
    format!("{}{}", reign.epoch, show_id(reign.id))
}

fn show_seen(seen: Option<Seen>) -> String {
    seen.map_or_else(
        || "none".to_owned(),
        |seen| format!("{}.{}{}", seen.reign.epoch, seen.seq, show_id(seen.reign.id)),
    )
}
