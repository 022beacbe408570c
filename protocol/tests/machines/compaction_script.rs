//! Transcripts of when a log is compacted and how fast. Sizes are in MiB, and the least that must be superseded is 64 MiB.

use crate::scripts::{run_all, Res};
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::compaction::{after_round, Advice, Compaction, Leg, LogSizes, NextStep, Race};

const MIB: u64 = 1 << 20;

#[test]
fn compaction() {
    run_all("compaction", || Runner {
        machine: Compaction::new(64 * MIB),
        now: 0,
        sizes: LogSizes::default(),
        race: Race::new(Leg::Copying, 0, 0),
        round: 0,
    });
}

struct Runner {
    machine: Compaction,
    now: u64,
    sizes: LogSizes,
    race: Race,
    round: usize,
}

fn show_advice(advice: Advice) -> String {
    match advice {
        Advice::Wait => "wait".to_owned(),
        Advice::LookForRoom => "look for room".to_owned(),
        Advice::Begin => "begin".to_owned(),
        Advice::NoRoom { needed_bytes, free_bytes } => {
            format!("no room: it takes {} MiB of {}", needed_bytes / MIB, free_bytes / MIB)
        }
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut pos = || args.next_pos().ok_or("an argument is missing");
        let mut mib = || Ok::<u64, Box<dyn std::error::Error>>(pos()?.parse::<u64>()? * MIB);
        let out = match command.name.as_str() {
            // at MS: time goes on to there.
            "at" => {
                self.now = mib()? / MIB;
                String::new()
            }
            // log LENGTH LIVE
            "log" => {
                self.sizes = LogSizes { log_bytes: mib()?, live_bytes: mib()? };
                show_advice(self.machine.weigh(Millis(self.now), self.sizes))
            }
            // free ROOM
            "free" => {
                let advice = self.machine.decide(self.sizes, mib()?);
                if advice == Advice::Begin {
                    let log_bytes = self.sizes.log_bytes;
                    (self.race, self.round) = (Race::new(Leg::Copying, log_bytes, log_bytes), 0);
                }
                show_advice(advice)
            }
            // copied BYTES of a log that has become LENGTH: a part took a millisecond.
            "copied" => {
                let (done, log_bytes) = (mib()?, mib()?);
                let sizes = LogSizes { log_bytes, ..self.sizes };
                let ceiling = self.race.ceiling(&self.machine, done, self.round, sizes);
                let rest_us = self.race.rest_us(&self.machine, 1000, done, sizes);
                match ceiling {
                    None => format!("rest {rest_us} us"),
                    Some(bytes) => format!("rest {rest_us} us, writes to {} KiB", bytes >> 10),
                }
            }
            // round LEFT: what was there is copied, and so much was written meanwhile.
            "round" => {
                let step = after_round(self.round, mib()?);
                self.round += 1;
                match step {
                    NextStep::CopyOn => "copy on".to_owned(),
                    NextStep::Hold => "hold the writer".to_owned(),
                    NextStep::Fail => "give up".to_owned(),
                }
            }
            // done LIVE COPIED
            "done" => {
                let (live, copied) = (mib()?, mib()?);
                self.machine.done(live, copied);
                (self.race, self.round) = (Race::new(Leg::Relocating, copied, copied), 0);
                String::new()
            }
            "failed" => {
                self.machine.failed(Millis(self.now));
                String::new()
            }
            "given_up" => {
                self.machine.given_up();
                String::new()
            }
            other => return Err(format!("no such command {other}").into()),
        };
        args.reject_next()?;
        Ok(if out.is_empty() { out } else { format!("{out}\n") })
    }
}
