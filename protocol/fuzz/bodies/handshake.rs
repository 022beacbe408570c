//! Both sides of the handshake with any bytes, in any pieces: a side that is accepted has sent what it must, neither the
//! time nor the number of bytes exceeds its limit, and the pieces make no difference.

use super::Input;
use bytes::BytesMut;
use dsm_protocol::frame::{self, HANDSHAKE_BODY_MAX, HEADER_BYTES, PREFACE};
use dsm_protocol::handshake::{
    greet, AcceptEffect, AcceptEvent, Accepting, DialEffect, DialEvent, Dialing, Rejection, TEXT_BYTES_MAX,
    TLS_FIRST_BYTE,
};
use dsm_protocol::ids::{ClusterId, Epoch, Incarnation, Millis, Seq, SlaveId};
use dsm_protocol::message::{Control, Hello, HelloRole, MasterState, Message, Welcome};
use dsm_protocol::secret::{Channel, Exchanged, Nonce, Prover, Secret, Secrets};

const LIMIT_MS: u64 = 1000;

/// `MODE CHUNK` and then what the other side says: to one that accepts (even mode), or that dials (odd mode); with 8 in the mode
/// this side has a secret.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (mode, chunk) = (input.u8(), usize::from(input.u8()).max(1));
    let has_secret = mode & 8 != 0;
    let said = input.rest();
    if mode & 1 == 0 {
        let whole = accept(said, said.len().max(1), has_secret);
        assert_eq!(accept(said, chunk, has_secret), whole, "in pieces of {chunk}");
    } else {
        let role = if mode & 2 == 0 { HelloRole::Client } else { slave() };
        let hello = Hello { cluster: (mode & 4 == 0).then_some(ClusterId(7)), role };
        let whole = dial(&hello, said, said.len().max(1), has_secret);
        assert_eq!(dial(&hello, said, chunk, has_secret), whole, "in pieces of {chunk}");
    }
}

/// The numbers that the two sides draw.
fn nonces() -> [Nonce; 2] {
    [Nonce::draw(|| 1), Nonce::draw(|| 2)]
}

/// What the connection is known by.
fn channel() -> Channel {
    Channel::named("this connection")
}

fn secret() -> Secret {
    Secret::parse(b"a secret of the cluster\nand the one before it").expect("it is long enough")
}

/// The result of the accepting side, and the bytes that it left unread.
fn accept(said: &[u8], chunk: usize, has_secret: bool) -> (Option<AcceptEffect>, Vec<u8>) {
    let begun = Millis(5);
    let mut machine = Accepting::new(begun, LIMIT_MS);
    if has_secret {
        let secrets = Secrets { nodes: Some(secret()), clients: Some(secret()) };
        machine = machine.demanding(secrets, nonces()[0]);
        machine.step(begun, AcceptEvent::Through(channel()), &mut Vec::new());
    }
    let (mut unread, mut end, mut now) = (BytesMut::new(), None, begun);
    let mut told = Vec::new();
    for piece in said.chunks(chunk) {
        unread.extend_from_slice(piece);
        now = now.plus(1);
        let mut effects = Vec::new();
        machine.step(now, AcceptEvent::Bytes(&mut unread), &mut effects);
        for effect in effects {
            assert_eq!(end, None, "it ends once");
            match effect {
                AcceptEffect::Say(control) => told.push(control),
                last => end = Some(last),
            }
        }
        match &end {
            None => {
                assert!(!machine.is_known());
                assert!(
                    unread.len() < PREFACE.len() + HEADER_BYTES + HANDSHAKE_BODY_MAX,
                    "{} bytes wait for a HELLO",
                    unread.len()
                );
            }
            Some(AcceptEffect::Native(hello)) => {
                assert_eq!(machine.is_known(), hello.role == HelloRole::Client);
                assert_eq!(machine.deadline(), None);
                assert_eq!(
                    machine.has_proved(),
                    has_secret,
                    "nobody is served who has not proved the secret"
                );
            }
            Some(AcceptEffect::Text) => {
                assert_ne!(said[0], PREFACE[0]);
                assert_eq!(machine.is_known(), unread.len() > TEXT_BYTES_MAX);
            }
            Some(AcceptEffect::RejectText(why)) => {
                assert_eq!((why, said[0]), (&Rejection::TlsAtPlain, TLS_FIRST_BYTE));
                assert!(!machine.is_known());
            }
            Some(AcceptEffect::Reject(_) | AcceptEffect::TimedOut | AcceptEffect::Say(_)) => {
                assert!(!machine.is_known() && !machine.has_proved());
            }
        }
    }
    let is_served = matches!(end, Some(AcceptEffect::Native(_)));
    // The challenge, and the proof in return.
    let most = if !has_secret {
        0
    } else if is_served {
        2
    } else {
        1
    };
    assert!(told.len() <= most && (told.len() == most || !is_served), "{told:?} before {end:?}");
    ends_in_time(&mut machine, begun);
    match end {
        // Bytes after it belong to no one.
        Some(AcceptEffect::Reject(_) | AcceptEffect::RejectText(_)) => (end, Vec::new()),
        Some(
            AcceptEffect::Native(_) | AcceptEffect::Text | AcceptEffect::TimedOut | AcceptEffect::Say(_),
        )
        | None => (end, unread.to_vec()),
    }
}

/// Nobody is waited for longer than the limit.
fn ends_in_time(machine: &mut Accepting, begun: Millis) {
    if let Some(until) = machine.deadline() {
        assert!(until <= begun.plus(1 + LIMIT_MS), "{until}, the first byte came at {}", begun.plus(1));
        let mut effects = Vec::new();
        machine.step(until, AcceptEvent::Tick, &mut effects);
        assert_eq!(effects, [AcceptEffect::TimedOut]);
        assert_eq!(machine.deadline(), None);
    }
}

/// The result of the dialing side, and the bytes that it left unread.
fn dial(hello: &Hello, said: &[u8], chunk: usize, has_secret: bool) -> (Option<DialEffect>, Vec<u8>) {
    let mut greeting = Vec::new();
    let (mut machine, cluster) =
        (Dialing::begin(Millis(5), LIMIT_MS, hello.clone(), &mut greeting), hello.cluster);
    if has_secret {
        machine = machine.with_secret(secret(), nonces()[1]);
        machine.step(Millis(5), DialEvent::Through(channel()), &mut Vec::new());
    }
    let (end, unread) = accept(&greeting, greeting.len(), false);
    assert_eq!((end, unread.len()), (Some(AcceptEffect::Native(hello.clone())), 0), "both sides agree");
    let mut unread = BytesMut::new();
    let mut pieces = said.chunks(chunk);
    let mut has_proved = false;
    for piece in pieces.by_ref() {
        unread.extend_from_slice(piece);
        let mut effects = Vec::new();
        machine.step(Millis(5), DialEvent::Bytes { unread: &mut unread, cluster }, &mut effects);
        for effect in effects {
            match effect {
                DialEffect::Say(_) => {
                    assert!(!has_proved && has_secret, "it proves what it has, and once");
                    has_proved = true;
                }
                DialEffect::GiveUp(_) => return (Some(effect), Vec::new()),
                DialEffect::Welcomed(_) => {
                    assert_eq!(has_proved, has_secret, "whoever has a secret is welcomed by who has it too");
                    // The rest belongs to the link.
                    pieces.for_each(|piece| unread.extend_from_slice(piece));
                    return (Some(effect), unread.to_vec());
                }
            }
        }
        assert!(unread.len() < HEADER_BYTES + HANDSHAKE_BODY_MAX, "{} bytes wait", unread.len());
    }
    (None, unread.to_vec())
}

fn slave() -> HelloRole {
    HelloRole::Slave {
        id: SlaveId::new("s1").expect("a name"),
        incarnation: Incarnation(1),
        seen: None,
        room_bytes: u64::MAX,
    }
}

/// What both sides say when all goes well, and some of what goes wrong.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let hello = |role| {
        let mut out = Vec::new();
        greet(Hello { cluster: Some(ClusterId(7)), role }, &mut out);
        out
    };
    let framed = |message: Message| {
        let mut out = Vec::new();
        frame::encode(&message, &mut out);
        out
    };
    let master = HelloRole::Master { address: "a:1".to_owned(), log_identity: "boot:1:2".to_owned() };
    let state = MasterState { active: true, epoch: Epoch(1), seq: Seq(2), active_address: None };
    let welcome = Welcome { cluster: Some(ClusterId(7)), value_max: 1 << 24, state };
    let accepted = [
        hello(HelloRole::Client),
        hello(slave()),
        hello(master),
        b"*1\r\n$4\r\nPING\r\n".to_vec(),
        [&PREFACE[..], &framed(Message::Ping)].concat(),
    ];
    let dialed = [
        framed(Message::Control(Control::Welcome(welcome))),
        framed(Message::Control(Control::Reject { reason: "no".to_owned() })),
        framed(Message::Ping),
    ];
    let welcomed = dialed[0].clone();
    let accepted = accepted.into_iter().map(|said| [&[0, 3][..], &said].concat());
    let dialed = dialed.into_iter().map(|said| [&[3, 3][..], &said].concat());
    accepted.chain(dialed).chain(proved(&hello(slave()), &welcomed, framed)).collect()
}

/// What both sides say where a secret is proved.
fn proved(greeting: &[u8], welcome: &[u8], framed: impl Fn(Message) -> Vec<u8>) -> [Vec<u8>; 2] {
    let [accepting, dialing] = nonces();
    let said = Exchanged { channel: channel(), accepting, dialing, greeting };
    let proof = Control::Proof { nonce: dialing, proofs: secret().prove(Prover::Dialing, said) };
    let answer = Control::Proved { proof: secret().prove(Prover::Accepting, said)[0] };
    let challenge = framed(Message::Control(Control::Challenge { nonce: accepting }));
    let proof = framed(Message::Control(proof));
    let answer = framed(Message::Control(answer));
    [[&[8, 5], greeting, &proof].concat(), [&[11, 5], &challenge[..], &answer, welcome].concat()]
}
