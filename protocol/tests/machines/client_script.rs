//! Transcripts of the client's machine. The masters are `p:1` and `b:2`. Each line is a batch of its own, followed by a
//! tick, as with the real caller.

use crate::scripts::{run_all, show_reply, Res};
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::ids::{LinkId, Millis, RequestId};
use dsm_protocol::machine::client::{
    ClientMachine, Effect, Event, FailureCause, Outcome, RequestKind, Settings,
};
use std::fmt::Write as _;

#[test]
fn client() {
    run_all("client", || {
        let settings = Settings {
            masters: vec!["p:1".to_owned(), "b:2".to_owned()],
            request_timeout_ms: 2000,
            connect_timeout_ms: 2000,
            backoff_min_ms: 10,
            backoff_max_ms: 2000,
            seed: 7,
        };
        Runner { client: ClientMachine::new(Millis(0), settings), now: 0 }
    });
}

struct Runner {
    client: ClientMachine,
    now: u64,
}

fn show_cause(cause: &FailureCause) -> String {
    match cause {
        FailureCause::Refused(error) => format!("refused with {error}"),
        FailureCause::Unreachable => "no master was reached".to_owned(),
        FailureCause::LinkLost => "the link was lost".to_owned(),
        FailureCause::TimedOut => "timed out".to_owned(),
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut pos = || args.next_pos().ok_or("an argument is missing");
        let event = match command.name.as_str() {
            // at MS: time goes on to there.
            "at" => {
                self.now = pos()?.parse()?;
                None
            }
            // read REQUEST [WAITED_MS], write REQUEST [WAITED_MS]
            name @ ("read" | "write") => {
                let request = RequestId(pos()?.parse()?);
                let kind = if name == "read" { RequestKind::Read } else { RequestKind::Write };
                let waited_ms = args.next_pos().map_or(Ok(0), str::parse)?;
                Some(Event::Submitted { request, kind, waited_ms })
            }
            // opened LINK active, opened LINK standby [ADDRESS]
            "opened" => {
                let (link, active) = (LinkId(pos()?.parse()?), pos()? == "active");
                let active_address = args.next_pos().map(str::to_owned);
                Some(Event::Opened { link, active, active_address })
            }
            // stood_by LINK [ADDRESS]
            "stood_by" => {
                let link = LinkId(pos()?.parse()?);
                Some(Event::StoodBy { link, active_address: args.next_pos().map(str::to_owned) })
            }
            // closed LINK [UNSENT ...]
            "closed" => {
                let link = LinkId(pos()?.parse()?);
                let mut unsent = Vec::new();
                while let Some(request) = args.next_pos() {
                    unsent.push(RequestId(request.parse()?));
                }
                Some(Event::Closed { link, unsent })
            }
            // heard LINK: a part of something.
            "heard" => Some(Event::Heard { link: LinkId(pos()?.parse()?) }),
            // answered LINK REQUEST ok|busy|loading|unknown|standby [ADDRESS]
            "answered" => {
                let (link, request) = (LinkId(pos()?.parse()?), RequestId(pos()?.parse()?));
                let reply = match pos()? {
                    "ok" => Reply::Done,
                    "busy" => Reply::error(ErrorWord::Busy, ""),
                    "loading" => Reply::error(ErrorWord::Loading, ""),
                    "unknown" => Reply::error(ErrorWord::Unknown, ""),
                    "standby" => Reply::error(ErrorWord::Standby, args.next_pos().unwrap_or("")),
                    other => return Err(format!("no such answer {other}").into()),
                };
                Some(Event::Answered { link, request, reply })
            }
            other => return Err(format!("no such command {other}").into()),
        };
        args.reject_next()?;
        let mut effects = Vec::new();
        for event in event.into_iter().chain([Event::Tick]) {
            self.client.step(Millis(self.now), event, &mut effects);
        }
        let mut out = String::new();
        for effect in effects {
            let line = match effect {
                Effect::Connect { link, master } => format!("connect {link} to {}", ["p:1", "b:2"][master]),
                Effect::Close { link } => format!("close {link}"),
                Effect::Send { link, request } => format!("send {request} on {link}"),
                Effect::Finish { request, outcome } => match outcome {
                    Outcome::Result(reply) => format!("{request} is done: {}", show_reply(&reply)),
                    Outcome::NotExecuted(cause) => {
                        format!("{request} is not executed: {}", show_cause(&cause))
                    }
                    Outcome::Unknown(cause) => format!("{request} is unknown: {}", show_cause(&cause)),
                },
            };
            writeln!(out, "{line}")?;
        }
        Ok(out)
    }
}
