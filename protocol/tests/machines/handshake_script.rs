//! Transcripts of both sides of the handshake. Time does not pass unless a line says `at=MS`.

use crate::scripts::{run_all, Res};
use bytes::BytesMut;
use dsm_protocol::frame::{self, PREFACE};
use dsm_protocol::handshake::{
    greet, AcceptEffect, AcceptEvent, Accepting, DialEffect, DialEvent, Dialing, Security, TEXT_BYTES_MAX,
    TLS_FIRST_BYTE,
};
use dsm_protocol::ids::{ClusterId, Epoch, Incarnation, Millis, Seq, SlaveId};
use dsm_protocol::message::{Control, Hello, HelloRole, MasterState, Message, Welcome};
use dsm_protocol::secret::{Channel, Exchanged, Mac, Nonce, Prover, Secret, Secrets};
use std::fmt::Write as _;

#[test]
fn handshake() {
    run_all("handshake", Runner::default);
}

#[derive(Default)]
enum Side {
    #[default]
    Nobody,
    Accepting(Accepting),
    Dialing(Dialing),
}

#[derive(Default)]
struct Runner {
    side: Side,
    now: u64,
    unread: BytesMut,
    /// The cluster of a slave that dials.
    ours: Option<ClusterId>,
}

/// A secret of a script, by its letter; two letters are two secrets.
fn secret(letters: &str) -> Res<Secret> {
    let lines: Vec<String> = letters.chars().map(|letter| letter.to_string().repeat(20)).collect();
    Ok(Secret::parse(lines.join("\n").as_bytes())?)
}

/// The number that a side draws.
fn nonce(prover: Prover) -> Nonce {
    Nonce::draw(|| match prover {
        Prover::Accepting => 1,
        Prover::Dialing => 2,
    })
}

/// What the connection of a script is known by.
fn channel() -> Channel {
    Channel::named("this connection")
}

/// `SECRET.ROLE`: the proofs of that side over the HELLO of that role.
fn proofs(words: &str, prover: Prover, cluster: Option<ClusterId>) -> Res<Vec<Mac>> {
    proofs_through(channel(), words, prover, cluster)
}

/// The same over a connection that is known by that.
fn proofs_through(
    channel: Channel,
    words: &str,
    prover: Prover,
    cluster: Option<ClusterId>,
) -> Res<Vec<Mac>> {
    let (letters, role) = words.split_once('.').ok_or("SECRET.ROLE")?;
    let mut greeting = Vec::new();
    greet(hello(role, cluster)?, &mut greeting);
    let (accepting, dialing) = (nonce(Prover::Accepting), nonce(Prover::Dialing));
    Ok(secret(letters)?.prove(prover, Exchanged { channel, accepting, dialing, greeting: &greeting }))
}

fn hello(role: &str, cluster: Option<ClusterId>) -> Res<Hello> {
    let role = match role {
        "client" => HelloRole::Client,
        "slave" => HelloRole::Slave {
            id: SlaveId::new("s1")?,
            incarnation: Incarnation(1),
            seen: None,
            room_bytes: u64::MAX,
        },
        "member" => HelloRole::Member { address: "a:1".to_owned() },
        "master" => HelloRole::Master { address: "a:1".to_owned(), log_identity: "boot:1:2".to_owned() },
        other => return Err(format!("no such role {other}").into()),
    };
    Ok(Hello { cluster, role })
}

fn role(hello: &Hello) -> &'static str {
    match hello.role {
        HelloRole::Client => "client",
        HelloRole::Slave { .. } => "slave",
        HelloRole::Master { .. } => "master",
        HelloRole::Member { .. } => "member",
    }
}

/// What a side says, by its name.
fn said(control: &Control) -> String {
    match control {
        Control::Challenge { .. } => "a challenge".to_owned(),
        Control::Proof { proofs, .. } => format!("a proof of {} secrets", proofs.len()),
        Control::Proved { .. } => "the proof in return".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The bytes that a word of a script stands for.
fn bytes(word: &str, cluster: Option<ClusterId>) -> Res<Vec<u8>> {
    let mut out = Vec::new();
    let mut say = |message| frame::encode(&message, &mut out);
    match word.split_once('.').unwrap_or((word, "")) {
        ("preface", "") => out.extend_from_slice(&PREFACE),
        ("rest_of_preface", from) => out.extend_from_slice(&PREFACE[from.parse()?..]),
        ("preface", bytes) => out.extend_from_slice(&PREFACE[..bytes.parse()?]),
        ("version", version) => {
            out.extend_from_slice(&PREFACE[..4]);
            out.extend_from_slice(&version.parse::<u16>()?.to_le_bytes());
        }
        ("hello", role) => say(Message::Control(Control::Hello(hello(role, cluster)?))),
        ("half_hello", role) => {
            say(Message::Control(Control::Hello(hello(role, cluster)?)));
            out.truncate(out.len() / 2);
        }
        ("garbled_hello", role) => {
            say(Message::Control(Control::Hello(hello(role, cluster)?)));
            if let Some(last) = out.last_mut() {
                *last ^= 0x55;
            }
        }
        ("ping", "") => say(Message::Ping),
        ("long_frame", length) => {
            out.extend_from_slice(&length.parse::<u32>()?.to_le_bytes());
            out.extend_from_slice(&[0, 0, 0, 0, 1]);
        }
        ("tls", "") => out.push(TLS_FIRST_BYTE),
        ("text", length) => out.extend(std::iter::repeat_n(b'x', length.parse()?)),
        ("welcome", "") => {
            let state = MasterState { active: true, epoch: Epoch(1), seq: Seq(2), active_address: None };
            say(Message::Control(Control::Welcome(Welcome { cluster, value_max: 16 << 20, state })));
        }
        ("challenge", "") => {
            say(Message::Control(Control::Challenge { nonce: nonce(Prover::Accepting) }));
        }
        ("proof", words) => {
            let proofs = proofs(words, Prover::Dialing, cluster)?;
            say(Message::Control(Control::Proof { nonce: nonce(Prover::Dialing), proofs }));
        }
        // Proofs of the other side, sent back.
        ("reflected", words) => {
            let proofs = proofs(words, Prover::Accepting, cluster)?;
            say(Message::Control(Control::Proof { nonce: nonce(Prover::Dialing), proofs }));
        }
        // Proofs that were right over another connection.
        ("replayed", words) => {
            let proofs = proofs(words, Prover::Dialing, cluster)?;
            say(Message::Control(Control::Proof { nonce: Nonce::draw(|| 3), proofs }));
        }
        // Proofs to somebody else, who passes them on.
        ("passed_on", words) => {
            let proofs = proofs_through(Channel::named("another one"), words, Prover::Dialing, cluster)?;
            say(Message::Control(Control::Proof { nonce: nonce(Prover::Dialing), proofs }));
        }
        ("proved_elsewhere", words) => {
            let proofs = proofs_through(Channel::named("another one"), words, Prover::Accepting, cluster)?;
            say(Message::Control(Control::Proved { proof: proofs[0] }));
        }
        ("proved", words) => {
            let proof = proofs(words, Prover::Accepting, cluster)?[0];
            say(Message::Control(Control::Proved { proof }));
        }
        ("reject", reason) => {
            say(Message::Control(Control::Reject { reason: reason.replace('_', " ") }));
        }
        _ => return Err(format!("no such bytes {word}").into()),
    }
    Ok(out)
}

impl Runner {
    fn accept(&mut self, event: &str, out: &mut String) -> Res<()> {
        let Side::Accepting(machine) = &mut self.side else { return Err("nobody accepts".into()) };
        let mut effects = Vec::new();
        let event = match event {
            "hears" => AcceptEvent::Bytes(&mut self.unread),
            "request" => AcceptEvent::Request,
            "taken_in" => AcceptEvent::TakenIn,
            "tick" => AcceptEvent::Tick,
            "finds_plain" => AcceptEvent::Found(Security::Missing),
            "finds_client" => AcceptEvent::Found(Security::Tls { is_node: false }),
            "finds_node" => AcceptEvent::Found(Security::Tls { is_node: true }),
            other => return Err(format!("no such event {other}").into()),
        };
        machine.step(Millis(self.now), event, &mut effects);
        for effect in effects {
            match effect {
                AcceptEffect::Say(control) => writeln!(out, "say {}", said(&control))?,
                AcceptEffect::Text => writeln!(out, "serve text")?,
                AcceptEffect::Native(hello) => writeln!(out, "serve a {}", role(&hello))?,
                AcceptEffect::Reject(why) => writeln!(out, "reject: {why}")?,
                AcceptEffect::RejectText(why) => writeln!(out, "reject in text: {why}")?,
                AcceptEffect::TimedOut => writeln!(out, "close: timed out")?,
            }
        }
        let until = machine.deadline().map_or("-".to_owned(), |until| until.to_string());
        writeln!(out, "known={} until={until} unread={}", machine.is_known(), self.unread.len())?;
        Ok(())
    }

    fn dial(&mut self, event: &str, out: &mut String) -> Res<()> {
        let Side::Dialing(machine) = &mut self.side else { return Err("nobody dials".into()) };
        let mut effects = Vec::new();
        let event = match event {
            "hears" => DialEvent::Bytes { unread: &mut self.unread, cluster: self.ours },
            "ended" => DialEvent::Ended,
            "tick" => DialEvent::Tick,
            other => return Err(format!("no such event {other}").into()),
        };
        machine.step(Millis(self.now), event, &mut effects);
        for effect in effects {
            match effect {
                DialEffect::Say(control) => writeln!(out, "say {}", said(&control))?,
                DialEffect::Welcomed(welcome) => {
                    let cluster = welcome.cluster.map_or("-".to_owned(), |cluster| cluster.to_string());
                    writeln!(out, "welcomed cluster={cluster}")?;
                }
                DialEffect::GiveUp(why) => writeln!(out, "give up: {why}")?,
            }
        }
        writeln!(out, "unread={}", self.unread.len())?;
        Ok(())
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Res<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        let cluster = match args.take_key("cluster") {
            Some(number) => Some(ClusterId(number.parse()?)),
            None => None,
        };
        if let Some(at) = args.take_key("at") {
            self.now = at.parse()?;
        }
        match command.name.as_str() {
            // accept [limit=MS] [nodes=SECRET] [clients=SECRET]: a connection has come.
            "accept" => {
                let limit_ms = args.take_key("limit").map_or(Ok(100), str::parse)?;
                let secrets = Secrets {
                    nodes: args.take_key("nodes").map(secret).transpose()?,
                    clients: args.take_key("clients").map(secret).transpose()?,
                };
                let mut machine = Accepting::new(Millis(self.now), limit_ms);
                if secrets.is_any() {
                    machine = machine.demanding(secrets, nonce(Prover::Accepting));
                    machine.step(Millis(self.now), AcceptEvent::Through(channel()), &mut Vec::new());
                }
                writeln!(out, "until={}", machine.deadline().ok_or("it has a deadline")?)?;
                self.side = Side::Accepting(machine);
                self.unread.clear();
            }
            // dial ROLE [cluster=N] [limit=MS] [secret=SECRET]: a connection stands.
            "dial" => {
                let limit_ms = args.take_key("limit").map_or(Ok(100), str::parse)?;
                let hello = hello(args.next_pos().ok_or("which role")?, cluster)?;
                // A master judges a slave's cluster itself, and a client belongs to none.
                self.ours = cluster.filter(|_| role(&hello) == "slave");
                let mut greeting = Vec::new();
                let mut machine = Dialing::begin(Millis(self.now), limit_ms, hello.clone(), &mut greeting);
                if let Some(letters) = args.take_key("secret") {
                    machine = machine.with_secret(secret(letters)?, nonce(Prover::Dialing));
                    machine.step(Millis(self.now), DialEvent::Through(channel()), &mut Vec::new());
                }
                let said = greeting.strip_prefix(&PREFACE).ok_or("no preface")?;
                let mut said = BytesMut::from(said);
                let Ok(Some(Message::Control(Control::Hello(said)))) = frame::decode(&mut said, 4096) else {
                    return Err("no HELLO".into());
                };
                assert_eq!(said, hello);
                writeln!(out, "send the preface and HELLO of a {}", role(&said))?;
                writeln!(out, "until={}", machine.deadline())?;
                self.side = Side::Dialing(machine);
                self.unread.clear();
            }
            // hears WORD...: these bytes arrive at once.
            "hears" => {
                while let Some(word) = args.next_pos() {
                    self.unread.extend_from_slice(&bytes(word, cluster)?);
                }
                match self.side {
                    Side::Nobody => return Err("nobody is there".into()),
                    Side::Accepting(_) => self.accept("hears", &mut out)?,
                    Side::Dialing(_) => self.dial("hears", &mut out)?,
                }
            }
            // joins cluster=N: the slave that dials has learnt from another master of which cluster it is.
            "joins" => self.ours = cluster,
            // text_max: how much of a first request may come slowly.
            "text_max" => writeln!(out, "{TEXT_BYTES_MAX}")?,
            event => match self.side {
                Side::Dialing(_) => self.dial(event, &mut out)?,
                Side::Nobody | Side::Accepting(_) => self.accept(event, &mut out)?,
            },
        }
        args.reject_next()?;
        Ok(out)
    }
}
