//! Transcripts of takeover, failback and patience, told by the machine of the reign. Time is given by each line, and goes on
//! from line to line. What is said of the log is left out: `reign_script.rs` has it.

use crate::reign_script::{begin_reign, take_over, Log};
use crate::scripts::{run_all, Res};
use dsm_protocol::ids::{Epoch, LinkId, Millis};
use dsm_protocol::machine::reign::{
    Config, Effect, Event, HandoverFailure, LeaderSeen, Leadership, ReignRole, Surroundings,
};
use std::fmt::Write as _;

/// Over which link another master asks, unless a line names another.
const STANDBY: LinkId = LinkId(1);

/// Our link to the other master, unless a line names another.
const PEER: LinkId = LinkId(2);

#[test]
fn takeover() {
    run_all("takeover", || Runner::new(Config::default()));
}

/// `link=N`: our link to a master that is meant.
fn link(args: &mut goldenscript::ArgumentConsumer<'_>) -> Res<LinkId> {
    Ok(args.take_key("link").map_or(Ok(PEER), |link| link.parse().map(LinkId))?)
}

/// `from=N`: the link of the standby that is meant.
fn standby(args: &mut goldenscript::ArgumentConsumer<'_>) -> Res<LinkId> {
    Ok(args.take_key("from").map_or(Ok(STANDBY), |link| link.parse().map(LinkId))?)
}

struct Runner {
    machine: Leadership,
    log: Log,
    now: u64,
}

impl Runner {
    fn new(config: Config) -> Self {
        Runner { machine: Leadership::new(config, Millis(0)), log: Log::default(), now: 0 }
    }

    fn step(&mut self, event: Event<'_>, out: &mut String) {
        let mut effects = Vec::new();
        self.machine.step(Millis(self.now), event, &mut effects);
        for effect in effects {
            let said = match effect {
                Effect::QueueToLead => "queue to lead".to_owned(),
                Effect::Fence { .. } => "fence".to_owned(),
                Effect::AskForReign { to, forced } if to == PEER => {
                    format!("ask for the reign forced={forced}")
                }
                Effect::AskForReign { to, forced } => {
                    format!("ask for the reign over link {to} forced={forced}")
                }
                Effect::SyncLog => "grant".to_owned(),
                Effect::RefuseHandover { why: HandoverFailure::Refused(refusal), .. } => {
                    format!("refuse: {refusal}")
                }
                _ => continue,
            };
            writeln!(out, "{}: {said}", self.now).unwrap();
        }
        // These lines are about when a reign is granted: one that was is given up again.
        if let ReignRole::Preparing { .. } = self.machine.role() {
            self.machine.step(Millis(self.now), Event::Reopened, &mut Vec::new());
        }
    }

    /// A handover, from the sync of the log to its end.
    fn end_reign(&mut self) {
        let now = Millis(self.now);
        let asked = Event::HandoverRequested { from: STANDBY, follows: true, ready: true, forced: true };
        let quiet = Surroundings::default();
        for event in [asked, Event::Synced, Event::TurnEnded(quiet)] {
            self.machine.step(now, event, &mut Vec::new());
        }
        let closed = Event::Closed { end: self.log.end(), log: None, reigns: &self.log.reigns };
        self.machine.step(now, closed, &mut Vec::new());
        assert!(self.machine.is_standby(), "{:?}", self.machine.role());
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        let seen = |word: Option<&str>| match word {
            Some("free") => Ok(LeaderSeen::Nobody),
            Some("nothing") => Ok(LeaderSeen::Leads { beat: None }),
            Some(beat) => {
                beat.parse().map(|beat| LeaderSeen::Leads { beat: Some(beat) }).map_err(|e| e.to_string())
            }
            None => Err("free, a number, or nothing".to_owned()),
        };
        match command.name.as_str() {
            // primary, backup [failback=false]: a new machine.
            "primary" | "backup" => {
                let failback = args.take_key("failback").map_or(Ok(true), str::parse)?;
                let preferred = command.name == "primary";
                *self = Runner::new(Config { preferred, failback, ..Config::default() });
            }
            // looks until=MS free|BEAT|nothing [running=true]: looks every 50 ms; a running holder's counter moves.
            "looks" => {
                let until: u64 = args.take_key("until").ok_or("until when")?.parse()?;
                let running: bool = args.take_key("running").map_or(Ok(false), str::parse)?;
                let mut seen = seen(args.next_pos())?;
                while self.now < until {
                    self.now = (self.now + 50).min(until);
                    if let (true, LeaderSeen::Leads { beat: Some(beat) }) = (running, &mut seen) {
                        *beat += 1;
                    }
                    self.step(Event::Looked(seen), &mut out);
                }
            }
            // asleep until=MS: this process does not run.
            "asleep" => self.now = args.take_key("until").ok_or("until when")?.parse()?,
            "won" => {
                let won = Event::Won { cluster: None, epoch: None };
                self.machine.step(Millis(self.now), won, &mut Vec::new());
            }
            // What stands between the lock and the first request is all in order.
            "reign_began" => {
                take_over(&mut self.machine, Millis(self.now), &mut self.log);
                begin_reign(&mut self.machine, Millis(self.now), &mut self.log);
            }
            "reign_ended" => self.end_reign(),
            name => {
                let epoch = Epoch(1);
                let event = match name {
                    "look" => Event::Looked(seen(args.next_pos())?),
                    "caught_up" => Event::CaughtUp,
                    "peer_active" => Event::PeerSaid { link: link(&mut args)?, active: true, epoch },
                    "peer_stands_by" => Event::PeerSaid { link: link(&mut args)?, active: false, epoch },
                    "standby_came" => Event::StandbyCame { link: standby(&mut args)? },
                    "standby_gone" => Event::StandbyGone { link: standby(&mut args)? },
                    "peer_gone" => Event::PeerLost { link: link(&mut args)? },
                    "requested" => Event::HandoverRequested {
                        from: standby(&mut args)?,
                        follows: args.take_key("follows").map_or(Ok(true), str::parse)?,
                        ready: args.take_key("ready").map_or(Ok(true), str::parse)?,
                        forced: args.take_key("forced").map_or(Ok(false), str::parse)?,
                    },
                    "refused" => Event::HandoverRefused { link: link(&mut args)? },
                    "offered" => Event::HandoverOffered { link: link(&mut args)? },
                    other => return Err(format!("no such command {other}").into()),
                };
                self.step(event, &mut out);
            }
        }
        args.reject_next()?;
        Ok(out)
    }
}
