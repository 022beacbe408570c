//! The handshake: what each side of a new connection may send before the other one knows it, in which order, how much,
//! within which time, and how anything else is refused.
//!
//! ```text
//! who dials                       who accepts
//! PREFACE, HELLO ───────────────▶
//!                ◀─────────────── Challenge ┐
//! Proof          ───────────────▶           │ where a secret is to be proved
//!                ◀─────────────── Proved    ┘
//!                ◀─────────────── Welcome, or Reject with a reason
//! ```
//!
//! Owns the rules of both sides, one machine for each: [`Accepting`] and [`Dialing`]. They see bytes and the time; the owner
//! of the socket reads, writes and closes. Neither judges a HELLO: the master does, and answers it. A text client (Redis)
//! sends no HELLO. Its first whole request makes it known.
//!
//! | state of the accepting side | what the other side may send | by when |
//! |---|---|---|
//! | nothing received | anything; the first byte tells frames from text | a time limit from the beginning |
//! | the preface, HELLO | preface and one HELLO, of at most [`frame::HANDSHAKE_BODY_MAX`] bytes | the limit again, from the first byte |
//! | a challenge is sent | one Proof, of at most as many bytes | the same |
//! | text | a request; once more than [`TEXT_BYTES_MAX`] of it have arrived, the client counts as known | the same |
//! | a stranger | frames as short as a HELLO, each only after the master has handled the previous one | none |
//! | known | whatever its protocol allows | none |
//!
//! TLS is under all of this: these are the bytes inside it. What is known of the other side by TLS is told with
//! [`AcceptEvent::Found`], before the first byte. Whoever sends plain bytes to a port of TLS, or TLS to a plain one (its first
//! byte is [`TLS_FIRST_BYTE`]), is told so in one line, as far as its protocol lets one; and slaves and masters must have shown
//! a node's certificate where there is TLS.
//!
//! **Secrets.** Where masters and slaves, or native clients, must prove one (`secret.rs` says how), nothing of a HELLO is acted on
//! before that, and the owner does not see it. Whoever dials proves first: a stranger gets nothing by which a weak secret could
//! be guessed at leisure. What is proved holds over this connection alone: its owner tells what it is known by with
//! [`AcceptEvent::Through`] and [`DialEvent::Through`], and without that nothing is proved. A side that has a secret takes nothing from one that does not prove it: no Welcome, and no Reject as the
//! word of a master. So nobody can have a secret left out by pretending that he knows of none.
//!
//! A user of the text protocol stays unknown until its AUTH.
//!
//! Source: `docs/FORMATS.md`, "The wire".

use crate::frame::{self, FrameError, HANDSHAKE_BODY_MAX, PREFACE};
use crate::ids::{ClusterId, Millis};
use crate::message::{Control, Hello, HelloRole, Message, Welcome};
use crate::secret::{Channel, Exchanged, Nonce, Prover, Secret, Secrets};
use bytes::{Buf as _, BytesMut};
use thiserror::Error;

/// How many bytes of a text client's first request must arrive within the time limit. After that it may take its time.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// So many letters are told of what somebody says who has not proved the secret.
const SAID_CHARS_MAX: usize = 200;

/// The first byte of whoever begins with TLS: a record of its handshake.
pub const TLS_FIRST_BYTE: u8 = 0x16;

/// What is known of the other side of an accepted connection by what carries its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// Nothing: its bytes are plain, as they are to be at this port.
    #[default]
    Plain,
    /// Its bytes are plain at a port of TLS.
    Missing,
    /// TLS.
    Tls {
        /// Whether it has shown, as a node, a certificate of the CA.
        is_node: bool,
    },
}

/// The states of the accepting side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptStage {
    /// Nothing has come.
    Nothing { until: Millis },
    /// The first byte is the preface's.
    Preface { until: Millis },
    /// The preface is right.
    Hello { until: Millis },
    /// A secret is to be proved.
    Proof { until: Millis },
    /// The first bytes are those of a text protocol.
    Text { until: Millis },
    /// A slave or another master that this master has not admitted yet.
    Stranger,
    /// The other side is known.
    Known,
    /// The handshake has failed.
    Over,
}

/// What happens to the side that accepts.
#[derive(Debug)]
pub enum AcceptEvent<'a> {
    /// What carries the bytes has told this, before the first of them. Without it they are plain.
    Found(Security),
    /// What this connection is known by at both its ends. Needed before a proof.
    Through(Channel),
    /// Bytes have arrived: all unread bytes. What the machine understands, it takes off the front.
    Bytes(&'a mut BytesMut),
    /// The first request of a text client is whole.
    Request,
    /// The master has admitted the slave or master that connected.
    TakenIn,
    /// Time has passed. Due at the deadline at the latest.
    Tick,
}

/// What the side that accepts is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptEffect {
    /// Serve a text client. All its bytes are still unread.
    Text,
    /// Send this, and go on.
    Say(Control),
    /// Serve the sender of this HELLO.
    Native(Hello),
    /// Send the reason in a Reject, and close.
    Reject(Rejection),
    /// Send the reason as an error of the text protocol, and close.
    RejectText(Rejection),
    /// Close without an answer: the time limit has passed.
    TimedOut,
}

/// Why the other side is refused before it is known.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Rejection {
    /// Its bytes are no frames of this wire.
    #[error(transparent)]
    Frame(FrameError),
    /// Its first frame is not a HELLO.
    #[error("the first frame is no HELLO")]
    NoHello,
    /// Its bytes are plain at a port of TLS.
    #[error("this port speaks TLS alone")]
    PlainAtTls,
    /// It begins with TLS at a plain port.
    #[error("this port does not speak TLS")]
    TlsAtPlain,
    /// A slave or a master over TLS that has not shown itself as a node.
    #[error(
        "a slave or master must show a node's certificate here: give it --tls-cert, --tls-key and --tls-ca"
    )]
    NoNode,
    /// It has answered the challenge with something else.
    #[error("a secret must be proved here: give {flag}")]
    NoProof {
        /// The flag that names it.
        flag: &'static str,
    },
    /// It has another secret, or has not dialed this side: somebody passes on what it says.
    #[error(
        "the secret that was proved is another one, or to another address: {flag} is to name the same secret here and \
         there, and nothing may pass this connection on"
    )]
    WrongProof {
        /// The flag that names it.
        flag: &'static str,
    },
}

/// The flag by which whoever says this is given the secret that it must prove.
pub fn secret_flag(role: &HelloRole) -> &'static str {
    match role {
        HelloRole::Client => "--client-secret-file",
        HelloRole::Slave { .. } | HelloRole::Master { .. } | HelloRole::Member { .. } => "--secret-file",
    }
}

/// The secret that whoever says this must prove, if there is one.
fn demanded<'a>(secrets: &'a Secrets, role: &HelloRole) -> Option<&'a Secret> {
    match role {
        HelloRole::Client => secrets.clients.as_ref(),
        HelloRole::Slave { .. } | HelloRole::Master { .. } | HelloRole::Member { .. } => {
            secrets.nodes.as_ref()
        }
    }
}

/// A challenge that is not answered yet.
#[derive(Clone, Debug)]
struct Challenged {
    hello: Hello,
    secret: Secret,
}

/// The handshake of a connection, seen from the side that accepts it.
#[derive(Clone, Debug)]
pub struct Accepting {
    stage: AcceptStage,
    security: Security,
    channel: Option<Channel>,
    limit_ms: u64,
    /// What must be proved, and the number for the challenge.
    demands: Option<(Secrets, Nonce)>,
    challenged: Option<Challenged>,
    has_proved: bool,
}

impl Accepting {
    /// A connection that was just accepted. The other side has `limit_ms` for its first byte, and as long again for the
    /// rest.
    pub fn new(now: Millis, limit_ms: u64) -> Self {
        let stage = AcceptStage::Nothing { until: now.plus(limit_ms) };
        Accepting {
            stage,
            security: Security::default(),
            channel: None,
            limit_ms,
            demands: None,
            challenged: None,
            has_proved: false,
        }
    }

    /// The same where the secrets of `secrets` must be proved. `nonce` is for this connection alone.
    #[must_use]
    pub fn demanding(mut self, secrets: Secrets, nonce: Nonce) -> Self {
        self.demands = Some((secrets, nonce));
        self
    }

    /// Whether the other side has proved a secret.
    pub fn has_proved(&self) -> bool {
        self.has_proved
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, now: Millis, event: AcceptEvent<'_>, effects: &mut Vec<AcceptEffect>) {
        match event {
            AcceptEvent::Found(security) => self.security = security,
            AcceptEvent::Through(channel) => self.channel = Some(channel),
            AcceptEvent::Bytes(unread) => self.heard(now, unread, effects),
            AcceptEvent::Request => match self.stage {
                AcceptStage::Text { .. } => self.stage = AcceptStage::Known,
                AcceptStage::Nothing { .. }
                | AcceptStage::Preface { .. }
                | AcceptStage::Hello { .. }
                | AcceptStage::Proof { .. }
                | AcceptStage::Stranger
                | AcceptStage::Known
                | AcceptStage::Over => {}
            },
            AcceptEvent::TakenIn => match self.stage {
                AcceptStage::Stranger => self.stage = AcceptStage::Known,
                AcceptStage::Nothing { .. }
                | AcceptStage::Preface { .. }
                | AcceptStage::Hello { .. }
                | AcceptStage::Proof { .. }
                | AcceptStage::Text { .. }
                | AcceptStage::Known
                | AcceptStage::Over => {}
            },
            AcceptEvent::Tick => {
                if self.deadline().is_some_and(|until| until <= now) {
                    self.end(AcceptEffect::TimedOut, effects);
                }
            }
        }
    }

    /// When a [`AcceptEvent::Tick`] is due, if nothing else happens.
    pub fn deadline(&self) -> Option<Millis> {
        match self.stage {
            AcceptStage::Nothing { until }
            | AcceptStage::Preface { until }
            | AcceptStage::Hello { until }
            | AcceptStage::Proof { until }
            | AcceptStage::Text { until } => Some(until),
            AcceptStage::Stranger | AcceptStage::Known | AcceptStage::Over => None,
        }
    }

    /// Whether the other side is known: it may then send long frames, and several before the first is handled.
    pub fn is_known(&self) -> bool {
        self.stage == AcceptStage::Known
    }

    fn heard(&mut self, now: Millis, unread: &mut BytesMut, effects: &mut Vec<AcceptEffect>) {
        self.greeted(now, unread, effects);
        match self.stage {
            AcceptStage::Hello { until } => match frame::decode(unread, HANDSHAKE_BODY_MAX) {
                Ok(None) => {}
                Ok(Some(Message::Control(Control::Hello(hello)))) => self.introduced(until, hello, effects),
                Ok(Some(_)) => self.end(AcceptEffect::Reject(Rejection::NoHello), effects),
                Err(error) => self.end(AcceptEffect::Reject(Rejection::Frame(error)), effects),
            },
            AcceptStage::Text { .. } if unread.len() > TEXT_BYTES_MAX => self.stage = AcceptStage::Known,
            AcceptStage::Text { .. }
            | AcceptStage::Nothing { .. }
            | AcceptStage::Preface { .. }
            | AcceptStage::Proof { .. }
            | AcceptStage::Stranger
            | AcceptStage::Known
            | AcceptStage::Over => {}
        }
        if let AcceptStage::Proof { .. } = self.stage {
            self.proving(unread, effects);
        }
    }

    /// Takes in the first byte, and the preface.
    fn greeted(&mut self, now: Millis, unread: &mut BytesMut, effects: &mut Vec<AcceptEffect>) {
        if let (AcceptStage::Nothing { .. }, Some(first)) = (self.stage, unread.first()) {
            let until = now.plus(self.limit_ms);
            let is_native = *first == PREFACE[0];
            let refused = match self.security {
                Security::Missing => Some(Rejection::PlainAtTls),
                Security::Plain if *first == TLS_FIRST_BYTE => Some(Rejection::TlsAtPlain),
                Security::Plain | Security::Tls { .. } => None,
            };
            if let Some(why) = refused {
                let last = if is_native { AcceptEffect::Reject } else { AcceptEffect::RejectText };
                return self.end(last(why), effects);
            }
            if is_native {
                self.stage = AcceptStage::Preface { until };
            } else {
                self.stage = AcceptStage::Text { until };
                effects.push(AcceptEffect::Text);
            }
        }
        if let AcceptStage::Preface { until } = self.stage {
            match frame::check_preface(unread) {
                Ok(false) => {}
                Ok(true) => {
                    unread.advance(PREFACE.len());
                    self.stage = AcceptStage::Hello { until };
                }
                Err(error) => self.end(AcceptEffect::Reject(Rejection::Frame(error)), effects),
            }
        }
    }

    /// Its HELLO is there: challenges it, or takes it for what it says.
    fn introduced(&mut self, until: Millis, hello: Hello, effects: &mut Vec<AcceptEffect>) {
        if self.security == (Security::Tls { is_node: false }) && hello.role != HelloRole::Client {
            return self.end(AcceptEffect::Reject(Rejection::NoNode), effects);
        }
        let demands = self.demands.as_ref();
        match demands.and_then(|(secrets, nonce)| Some((demanded(secrets, &hello.role)?.clone(), *nonce))) {
            None => self.met(hello, effects),
            Some((secret, nonce)) => {
                self.stage = AcceptStage::Proof { until };
                self.challenged = Some(Challenged { hello, secret });
                effects.push(AcceptEffect::Say(Control::Challenge { nonce }));
            }
        }
    }

    /// Takes in the answer to the challenge.
    fn proving(&mut self, unread: &mut BytesMut, effects: &mut Vec<AcceptEffect>) {
        let (nonce, proofs) = match frame::decode(unread, HANDSHAKE_BODY_MAX) {
            Ok(None) => return,
            Ok(Some(Message::Control(Control::Proof { nonce, proofs }))) => (Some(nonce), proofs),
            Ok(Some(_)) => (None, Vec::new()),
            Err(error) => return self.end(AcceptEffect::Reject(Rejection::Frame(error)), effects),
        };
        let drawn = self.demands.as_ref().map(|(_, nonce)| *nonce);
        let (Some(Challenged { hello, secret }), Some(accepting)) = (self.challenged.take(), drawn) else {
            return;
        };
        let flag = secret_flag(&hello.role);
        let Some(dialing) = nonce else {
            return self.end(AcceptEffect::Reject(Rejection::NoProof { flag }), effects);
        };
        let mut greeting = Vec::new();
        greet(hello.clone(), &mut greeting);
        let said = self.channel.map(|channel| Exchanged { channel, accepting, dialing, greeting: &greeting });
        match said.and_then(|said| secret.check(Prover::Dialing, said, &proofs)) {
            None => self.end(AcceptEffect::Reject(Rejection::WrongProof { flag }), effects),
            Some(proof) => {
                self.has_proved = true;
                effects.push(AcceptEffect::Say(Control::Proved { proof }));
                self.met(hello, effects);
            }
        }
    }

    /// Nothing more is asked of it.
    fn met(&mut self, hello: Hello, effects: &mut Vec<AcceptEffect>) {
        self.stage = match hello.role {
            // What a client sends concerns only that client.
            HelloRole::Client => AcceptStage::Known,
            // Nothing is left for the master to judge: what it says names its log.
            HelloRole::Member { .. } => AcceptStage::Known,
            HelloRole::Slave { .. } | HelloRole::Master { .. } => AcceptStage::Stranger,
        };
        effects.push(AcceptEffect::Native(hello));
    }

    fn end(&mut self, last: AcceptEffect, effects: &mut Vec<AcceptEffect>) {
        self.stage = AcceptStage::Over;
        effects.push(last);
    }
}

/// What happens to the side that dials.
#[derive(Debug)]
pub enum DialEvent<'a> {
    /// What this connection is known by at both its ends. Needed before a challenge.
    Through(Channel),
    /// Bytes have arrived, or more of them can be parsed.
    Bytes {
        /// All unread bytes. What the machine understands, it takes off the front.
        unread: &'a mut BytesMut,
        /// The cluster to which the other side must belong, if it belongs to any; `None` if any will do. A slave may
        /// have learnt its cluster from another master since it sent its HELLO.
        cluster: Option<ClusterId>,
    },
    /// The other side has ended.
    Ended,
    /// Time has passed. Due at the deadline at the latest.
    Tick,
}

/// What the side that dials is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialEffect {
    /// Send this, and go on.
    Say(Control),
    /// The link is established. The unread bytes belong to it.
    Welcomed(Welcome),
    /// Close, and report the failure.
    GiveUp(HandshakeFailure),
}

/// Why a connection did not become a link.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The master refuses this side, for a reason in its own words.
    #[error("{reason}")]
    Rejected {
        /// One line of the sender's choice; at most [`frame::HANDSHAKE_BODY_MAX`] bytes.
        reason: String,
    },
    /// This side refuses the master: a slave's values belong to one cluster for good.
    #[error("this slave belongs to cluster {ours}, not to {theirs}")]
    OtherCluster {
        /// The cluster that the slave belongs to.
        ours: ClusterId,
        /// The cluster that the master serves.
        theirs: ClusterId,
    },
    /// Its bytes are no frames of this wire.
    #[error("does not speak the store's protocol")]
    Frame(#[source] FrameError),
    /// It has answered with neither Welcome nor Reject.
    #[error("did not answer the handshake")]
    NoWelcome,
    /// It asks for the proof of a secret, and this side has none.
    #[error("it asks for a secret: give {flag}")]
    SecretDemanded {
        /// The flag that names it.
        flag: &'static str,
    },
    /// It has not proved the secret of this side, whatever it says: it may be anybody.
    #[error("it has not proved the secret of {flag}: {said}")]
    NotProved {
        /// The flag that names it.
        flag: &'static str,
        /// What it has said instead, or its beginning: never a line of a log.
        said: String,
    },
    /// It has closed the connection.
    #[error("closed by the master")]
    Ended,
    /// It has not answered in time.
    #[error("did not answer the handshake in time")]
    TimedOut,
}

/// How far a side that dials has come with its secret.
#[derive(Clone, Debug)]
enum Proving {
    /// It has none to prove, or that is done.
    Nothing,
    /// It waits for the challenge.
    Unasked { secret: Secret, nonce: Nonce },
    /// It has proved its own, and waits for the other side's.
    Asked { secret: Secret, nonce: Nonce, accepting: Nonce, channel: Channel },
}

/// The handshake of a connection, seen from the side that dials. It ends with its last effect.
#[derive(Clone, Debug)]
pub struct Dialing {
    until: Millis,
    flag: &'static str,
    /// Preface and HELLO, while they are needed for a proof.
    greeting: Vec<u8>,
    channel: Option<Channel>,
    proving: Proving,
}

impl Dialing {
    /// A new connection, over which `hello` is sent; its bytes are appended to `greeting`. The other side has `limit_ms`
    /// to answer.
    pub fn begin(now: Millis, limit_ms: u64, hello: Hello, greeting: &mut Vec<u8>) -> Self {
        let flag = secret_flag(&hello.role);
        let mut said = Vec::new();
        greet(hello, &mut said);
        greeting.extend_from_slice(&said);
        let until = now.plus(limit_ms);
        Dialing { until, flag, greeting: said, channel: None, proving: Proving::Nothing }
    }

    /// The same for a side that has a secret, which both sides must prove. `nonce` is for this connection alone.
    #[must_use]
    pub fn with_secret(mut self, secret: Secret, nonce: Nonce) -> Self {
        self.proving = Proving::Unasked { secret, nonce };
        self
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, now: Millis, event: DialEvent<'_>, effects: &mut Vec<DialEffect>) {
        let (unread, cluster) = match event {
            DialEvent::Bytes { unread, cluster } => (unread, cluster),
            DialEvent::Through(channel) => {
                self.channel = Some(channel);
                return;
            }
            DialEvent::Ended => return effects.push(DialEffect::GiveUp(HandshakeFailure::Ended)),
            DialEvent::Tick => {
                if self.until <= now {
                    effects.push(DialEffect::GiveUp(HandshakeFailure::TimedOut));
                }
                return;
            }
        };
        loop {
            let heard = match frame::decode(unread, HANDSHAKE_BODY_MAX) {
                Ok(None) => return,
                Ok(Some(message)) => self.heard(message, cluster),
                Err(error) => Err(HandshakeFailure::Frame(error)),
            };
            match heard {
                Ok(None) => {}
                Ok(Some(say @ DialEffect::Say(_))) => effects.push(say),
                Ok(Some(last)) => return effects.push(last),
                Err(why) => return effects.push(DialEffect::GiveUp(why)),
            }
        }
    }

    /// Takes in an answer.
    fn heard(
        &mut self,
        message: Message,
        cluster: Option<ClusterId>,
    ) -> Result<Option<DialEffect>, HandshakeFailure> {
        let flag = self.flag;
        let not_proved = |said: &str| HandshakeFailure::NotProved { flag, said: shown(said) };
        match (std::mem::replace(&mut self.proving, Proving::Nothing), message) {
            (Proving::Nothing, Message::Control(Control::Welcome(welcome))) => {
                match (cluster, welcome.cluster) {
                    (Some(ours), Some(theirs)) if ours != theirs => {
                        Err(HandshakeFailure::OtherCluster { ours, theirs })
                    }
                    (Some(_) | None, Some(_) | None) => Ok(Some(DialEffect::Welcomed(welcome))),
                }
            }
            (Proving::Nothing, Message::Control(Control::Reject { reason })) => {
                Err(HandshakeFailure::Rejected { reason })
            }
            (Proving::Nothing, Message::Control(Control::Challenge { .. })) => {
                Err(HandshakeFailure::SecretDemanded { flag })
            }
            (Proving::Nothing, _) => Err(HandshakeFailure::NoWelcome),
            (
                Proving::Unasked { secret, nonce },
                Message::Control(Control::Challenge { nonce: accepting }),
            ) => {
                let channel = self.channel.ok_or_else(|| not_proved("nobody knows to whom"))?;
                let said = Exchanged { channel, accepting, dialing: nonce, greeting: &self.greeting };
                let proofs = secret.prove(Prover::Dialing, said);
                self.proving = Proving::Asked { secret, nonce, accepting, channel };
                Ok(Some(DialEffect::Say(Control::Proof { nonce, proofs })))
            }
            (
                Proving::Asked { secret, nonce, accepting, channel },
                Message::Control(Control::Proved { proof }),
            ) => {
                let said = Exchanged { channel, accepting, dialing: nonce, greeting: &self.greeting };
                if secret.check(Prover::Accepting, said, &[proof]).is_none() {
                    return Err(not_proved("its secret is another one"));
                }
                self.greeting = Vec::new();
                Ok(None)
            }
            (
                Proving::Unasked { .. } | Proving::Asked { .. },
                Message::Control(Control::Reject { reason }),
            ) => Err(not_proved(&reason)),
            (Proving::Unasked { .. }, _) => Err(not_proved("it asks for none")),
            (Proving::Asked { .. }, _) => Err(not_proved("it sent something else")),
        }
    }

    /// When a [`DialEvent::Tick`] is due, if nothing else happens.
    pub fn deadline(&self) -> Millis {
        self.until
    }
}

/// What is told of the words of somebody who may be anybody: their beginning, and in one line.
fn shown(said: &str) -> String {
    said.chars().take(SAID_CHARS_MAX).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// Appends what the dialing side sends first: the preface and its HELLO.
pub fn greet(hello: Hello, out: &mut Vec<u8>) {
    out.extend_from_slice(&PREFACE);
    frame::encode(&Message::Control(Control::Hello(hello)), out);
}
