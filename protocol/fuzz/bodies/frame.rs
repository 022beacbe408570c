//! The wire: any bytes, and frames whose checksum is right around any body.

use super::Input;
use bytes::{Bytes, BytesMut};
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::frame::{self, FrameError, HEADER_BYTES};
use dsm_protocol::ids::{
    ClusterId, Epoch, Incarnation, Reign, ReignId, RequestId, Seq, SlaveId, Stamp, Version,
};
use dsm_protocol::message::{Control, Hello, HelloRole, MasterState, Message, Request, Seen, Welcome};

/// `MODE CHUNK BODY_MAX` and then bytes of the wire (even mode), or kinds and bodies to be framed (odd mode).
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let framed = input.flag();
    let chunk = 1 + usize::from(input.u8());
    let body_max = usize::from(input.u16());
    if framed {
        let mut wire = Vec::new();
        while !input.is_empty() {
            let (kind, body) = (input.u8(), input.sized());
            seal(kind, body, &mut wire);
        }
        check(&wire, chunk, body_max);
    } else {
        let wire = input.rest();
        let _ = frame::check_preface(wire);
        check(wire, chunk, body_max);
    }
}

/// Puts a header with the right checksum before any body.
fn seal(kind: u8, body: &[u8], wire: &mut Vec<u8>) {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&[kind]), body);
    wire.extend_from_slice(&(body.len() as u32).to_le_bytes());
    wire.extend_from_slice(&checksum.to_le_bytes());
    wire.push(kind);
    wire.extend_from_slice(body);
}

fn check(wire: &[u8], chunk: usize, body_max: usize) {
    let (messages, error) = decode(wire, wire.len().max(1), body_max);
    assert_eq!(decode(wire, chunk, body_max), (messages.clone(), error), "the pieces decide");
    for message in messages {
        let mut encoded = Vec::new();
        frame::encode(&message, &mut encoded);
        let (again, error) = decode(&encoded, encoded.len(), usize::MAX);
        assert_eq!((&again[..], error), (&[message][..], None), "a message does not come back");
    }
}

/// Decodes what arrives in pieces, up to the first error.
fn decode(wire: &[u8], chunk: usize, body_max: usize) -> (Vec<Message>, Option<FrameError>) {
    let mut buffer = BytesMut::new();
    let mut messages = Vec::new();
    for piece in wire.chunks(chunk) {
        buffer.extend_from_slice(piece);
        loop {
            match frame::decode(&mut buffer, body_max) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
        assert!(buffer.len() < HEADER_BYTES.saturating_add(body_max), "a whole frame is left unread");
        let room = HEADER_BYTES.saturating_add(body_max).saturating_add(wire.len());
        assert!(buffer.capacity() <= room.saturating_mul(2).max(1024), "the buffer grows without bound");
    }
    (messages, None)
}

/// One of every kind of message, as they travel and as framed bodies.
#[expect(clippy::too_many_lines, reason = "a list of messages")]
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    let request =
        |command| Message::Request(Request { id: RequestId(7), stream: 300, generation: 2, command });
    let response = |reply| Message::Response { id: RequestId(70_000), reply };
    let (version, reign) = (Version::new(3, 1 << 40), ReignId(1 << 50));
    let state = MasterState {
        active: true,
        epoch: Epoch(3),
        seq: Seq(9),
        active_address: Some("127.0.0.1:12345".to_owned()),
    };
    let id = SlaveId::new("slave1").expect("a valid id");
    let slave = HelloRole::Slave {
        id: id.clone(),
        incarnation: Incarnation(5),
        seen: Some(Seen { reign: Reign::new(2, 9), seq: Seq(9), durable: true }),
        room_bytes: u64::MAX,
    };
    let master = HelloRole::Master { address: "a:1".to_owned(), log_identity: "boot:1:2".to_owned() };
    let hello = |role| Message::Control(Control::Hello(Hello { cluster: Some(ClusterId(7)), role }));
    let messages = [
        vec![request(Command::Get { key: bytes("k") }), request(Command::Status)],
        vec![request(Command::Put { key: bytes("k"), value: bytes("v") })],
        vec![
            request(Command::PutMany { pairs: vec![(bytes("a"), bytes("1")), (bytes("b"), bytes(""))] }),
            request(Command::GetMany { keys: vec![bytes("a"), bytes("b")] }),
        ],
        vec![response(Reply::Done), response(Reply::Value(bytes("v"))), response(Reply::NotFound)],
        vec![
            response(Reply::Values(vec![None, Some(bytes("v"))])),
            response(Reply::Count(252)),
            response(Reply::error(ErrorWord::Standby, "127.0.0.1:12346")),
        ],
        vec![
            Message::Write { version, reign, key: bytes("k"), value: bytes("v") },
            Message::Ping,
            Message::Trial { bytes: bytes("some") },
            Message::Member { cluster: ClusterId(1), member: 2, body: bytes("said") },
            Message::Ack { through: 2, room_bytes: u64::MAX },
            Message::Drop { version, reign, key: bytes("k") },
        ],
        vec![
            Message::Read { tag: 1, version, reign, key: bytes("k") },
            Message::Value { tag: 1, version, reign, value: bytes("v") },
            Message::Missing { tag: 1, held: Some(version) },
            Message::Missing { tag: 1, held: None },
        ],
        vec![hello(slave), hello(master), hello(HelloRole::Client)],
        vec![
            Message::Control(Control::Welcome(Welcome {
                cluster: None,
                value_max: 1 << 24,
                state: state.clone(),
            })),
            Message::Control(Control::MasterState(state)),
            Message::Control(Control::Reject { reason: "another cluster".to_owned() }),
        ],
        vec![
            Message::Control(Control::Holdings {
                entries: vec![(bytes("k"), Stamp { version, reign })],
                last: true,
            }),
            Message::Control(Control::HandoverRequest {
                replayed: Seq(9),
                reign: Reign::new(3, 1),
                log: Some((1, 2)),
                slaves: vec![id],
                forced: false,
            }),
        ],
    ];
    let mut seeds = Vec::new();
    for messages in messages {
        let (mut wire, mut framed) = (vec![0, 6, 0xff, 0xff], vec![1, 6, 0xff, 0xff]);
        for message in messages {
            let mut frame = Vec::new();
            frame::encode(&message, &mut frame);
            let (header, body) = frame.split_at(HEADER_BYTES);
            framed.extend_from_slice(&[header[8], body.len() as u8]);
            framed.extend_from_slice(body);
            wire.extend_from_slice(&frame);
        }
        seeds.extend([wire, framed]);
    }
    seeds
}
