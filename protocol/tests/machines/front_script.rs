//! Transcripts of the front. `s1: get k` is a request of session 1 that a RESP client sent; `native=true` makes it a
//! native client's, `generation=N` one that another master forwarded. Links to other masters are numbered; a line that names
//! none is about the first.

use crate::scripts::{client_command, run_all, show_reply, text, Res};
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::ids::{LinkId, Millis, RequestId, SessionId};
use dsm_protocol::machine::front::{Config, Effect, Event, Front, Kind};
use dsm_protocol::machine::master::Asker;
use dsm_protocol::machine::reign::Stance;
use std::fmt::Write as _;

#[test]
fn front() {
    run_all("front", || Runner {
        front: new(Config::default()),
        stance: Stance::Standby,
        now: 0,
        next_tag: 1,
    });
}

fn new(config: Config) -> Front {
    let mut front = Front::new(config);
    front.set_active_address(Some("other:2".to_owned()));
    front
}

struct Runner {
    front: Front,
    stance: Stance,
    now: u64,
    next_tag: u64,
}

impl Runner {
    fn takes(&mut self, stance: Stance) -> Event {
        self.stance = stance;
        Event::StanceChanged
    }
}

/// Most scripts have only the first link, which is not named.
fn show_link(link: LinkId) -> String {
    if link == LinkId(1) {
        String::new()
    } else {
        format!(" over {link}")
    }
}

fn show_command(command: &Command) -> String {
    match command {
        Command::Get { key } => format!("get {}", text(key)),
        Command::Put { key, value } => format!("set {} {}", text(key), text(value)),
        other => format!("{other:?}"),
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    #[expect(clippy::too_many_lines, reason = "one arm for each word of the scripts, each short")]
    fn run(&mut self, command: &goldenscript::Command, context: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        let session = |text: &str| text.trim_start_matches('s').parse().map(SessionId);
        let event = if let Some(from) = &context.prefix {
            let native = args.take_key("native").map_or(Ok(false), str::parse)?;
            let kind = match (args.take_key("generation"), native) {
                (Some(generation), _) => Kind::Forwarded { generation: generation.parse()? },
                (None, true) => Kind::Native,
                (None, false) => Kind::Forwardable,
            };
            let deadline = args.take_key("deadline").map_or(Ok(2000), str::parse)?;
            let asker = Asker { session: session(from)?, tag: self.next_tag };
            self.next_tag += 1;
            let command = client_command(&command.name, &mut args)?.ok_or("no such request")?;
            Event::Request { asker, kind, deadline: Millis(deadline), command }
        } else {
            let link = LinkId(args.take_key("over").map_or(Ok(1), str::parse)?);
            match command.name.as_str() {
                "config" => {
                    let mut config = Config::default();
                    config.requests_max =
                        args.take_key("requests").map_or(Ok(config.requests_max), str::parse)?;
                    config.bytes_max = args.take_key("bytes").map_or(Ok(config.bytes_max), str::parse)?;
                    self.front = new(config);
                    self.stance = Stance::Standby;
                    return Ok(out);
                }
                "waiting" => return Ok(format!("waiting {}", self.front.waiting())),
                "serve" => self.takes(Stance::Serving),
                "hold" => self.takes(Stance::Holding),
                "standby" => self.takes(Stance::Standby),
                "stop" => self.takes(Stance::Stopping),
                "peer_active" => Event::PeerLeads { link: Some(link) },
                "peer_stands_by" => Event::PeerLeads { link: None },
                "peer_down" => Event::PeerDown { link },
                "closed" => Event::SessionClosed { session: session(args.next_pos().ok_or("which")?)? },
                "at" => {
                    self.now = args.next_pos().ok_or("when")?.parse()?;
                    Event::Tick
                }
                // answered ID ok|standby|unknown|VALUE [over=LINK]
                "answered" => {
                    let id = RequestId(args.next_pos().ok_or("which")?.parse()?);
                    let reply = match args.next_pos().ok_or("what")? {
                        "ok" => Reply::Done,
                        "standby" => Reply::error(ErrorWord::Standby, ""),
                        "unknown" => Reply::error(ErrorWord::Unknown, "lost"),
                        value => Reply::Value(value.to_owned().into()),
                    };
                    Event::Response { link, id, reply }
                }
                other => return Err(format!("no such command {other}").into()),
            }
        };
        args.reject_next()?;
        let mut effects = Vec::new();
        self.front.step(Millis(self.now), self.stance, event, &mut effects);
        for effect in effects {
            let line = match effect {
                Effect::Serve { asker, command, .. } => {
                    format!("serve s{}#{}: {}", asker.session, asker.tag, show_command(&command))
                }
                Effect::Forward { link, id, stream, generation, command } => {
                    let (over, command) = (show_link(link), show_command(&command));
                    format!("forward {id} of s{stream} generation {generation}{over}: {command}")
                }
                Effect::StreamClosed { link, stream } => {
                    format!("forward end of s{stream}{}", show_link(link))
                }
                Effect::Reply { to, reply } => {
                    format!("answer s{}#{}: {}", to.session, to.tag, show_reply(&reply))
                }
                Effect::CloseSession { session } => format!("close s{session}"),
            };
            writeln!(out, "{line}")?;
        }
        Ok(out)
    }
}
