//! Transcripts of the takeover machine. Time is given by each line, and goes on from line to line.

use crate::scripts::{run_all, Res};
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::reign::takeover::{Config, Effect, Event, Seen, Takeover};
use std::fmt::Write as _;

#[test]
fn takeover() {
    run_all("takeover", || Runner { machine: Takeover::new(Config::default(), Millis(0)), now: 0 });
}

struct Runner {
    machine: Takeover,
    now: u64,
}

impl Runner {
    fn step(&mut self, event: Event, out: &mut String) {
        let mut effects = Vec::new();
        self.machine.step(Millis(self.now), event, &mut effects);
        for effect in effects {
            let said = match effect {
                Effect::WaitForLock => "wait for the lock".to_owned(),
                Effect::Fence => "fence".to_owned(),
                Effect::AskHandover { forced } => format!("ask for the reign forced={forced}"),
                Effect::GrantHandover => "grant".to_owned(),
                Effect::RefuseHandover(refusal) => format!("refuse: {refusal}"),
            };
            writeln!(out, "{}: {said}", self.now).unwrap();
        }
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        let seen = |word: Option<&str>| match word {
            Some("free") => Ok(Seen::Free),
            Some("nothing") => Ok(Seen::Held { beat: None }),
            Some(beat) => beat.parse().map(|beat| Seen::Held { beat: Some(beat) }).map_err(|e| e.to_string()),
            None => Err("free, a number, or nothing".to_owned()),
        };
        match command.name.as_str() {
            // primary, backup [failback=false]: a new machine.
            "primary" | "backup" => {
                let failback = args.take_key("failback").map_or(Ok(true), str::parse)?;
                let config = Config { preferred: command.name == "primary", failback, ..Config::default() };
                self.machine = Takeover::new(config, Millis(0));
                self.now = 0;
            }
            // looks until=MS free|BEAT|nothing [running=true]: looks every 50 ms; a running holder's counter moves.
            "looks" => {
                let until: u64 = args.take_key("until").ok_or("until when")?.parse()?;
                let running: bool = args.take_key("running").map_or(Ok(false), str::parse)?;
                let mut seen = seen(args.next_pos())?;
                while self.now < until {
                    self.now = (self.now + 50).min(until);
                    if let (true, Seen::Held { beat: Some(beat) }) = (running, &mut seen) {
                        *beat += 1;
                    }
                    self.step(Event::Looked(seen), &mut out);
                }
            }
            // asleep until=MS: this process does not run.
            "asleep" => self.now = args.take_key("until").ok_or("until when")?.parse()?,
            name => {
                let event = match name {
                    "look" => Event::Looked(seen(args.next_pos())?),
                    "caught_up" => Event::CaughtUp,
                    "lock_won" => Event::LockWon,
                    "reign_began" => Event::ReignBegan,
                    "reign_ended" => Event::ReignEnded,
                    "peer_active" => Event::Peer { active: Some(true) },
                    "peer_stands_by" => Event::Peer { active: Some(false) },
                    "peer_gone" => Event::Peer { active: None },
                    "requested" => Event::HandoverRequested {
                        follows: args.take_key("follows").map_or(Ok(true), str::parse)?,
                        ready: args.take_key("ready").map_or(Ok(true), str::parse)?,
                        forced: args.take_key("forced").map_or(Ok(false), str::parse)?,
                    },
                    "refused" => Event::HandoverRefused,
                    "offered" => Event::HandoverOffered,
                    other => return Err(format!("no such command {other}").into()),
                };
                self.step(event, &mut out);
            }
        }
        args.reject_next()?;
        Ok(out)
    }
}
