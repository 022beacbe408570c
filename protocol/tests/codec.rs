//! Round trips and garbage for the wire's codec.

#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use dsm_protocol::command::{
    Command, ComparedChange, Comparison, Condition, Consequence, ErrorWord, ExpiryCondition, KeyTrait,
    Lifetime, MembersOrder, Replies, Reply, ScriptCall, ScriptName, ScriptRequest, ScriptRights, TimeForm,
    Transaction, Transfer, Update,
};
use dsm_protocol::frame::{self, About, FrameError, Incoming, Unframer};
use dsm_protocol::ids::{
    Epoch, Incarnation, Reign, ReignId, RequestId, Seq, SlaveId, Stamp, UnixMillis, Version,
};
use dsm_protocol::message::{
    Control, Hello, HelloRole, MasterState, Message, Request, Seen, StreamUser, Welcome,
};
use dsm_protocol::pieces::Pieces;
use dsm_protocol::secret::{Channel, Exchanged, Nonce, Prover, Secret};
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn version() -> impl Strategy<Value = Version> {
    (any::<u64>(), any::<u64>()).prop_map(|(epoch, seq)| Version::new(epoch, seq))
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (version(), any::<u64>()).prop_map(|(version, reign)| Stamp { version, reign: ReignId(reign) })
}

fn command() -> impl Strategy<Value = Command> {
    let keys = || prop::collection::vec(bytes(), 0..4);
    prop_oneof![
        bytes().prop_map(|key| Command::Get { key }),
        keys().prop_map(|keys| Command::GetMany { keys }),
        (bytes(), bytes()).prop_map(|(key, value)| Command::Put { key, value }),
        prop::collection::vec((bytes(), bytes()), 0..4).prop_map(|pairs| Command::PutMany { pairs }),
        keys().prop_map(|keys| Command::Delete { keys }),
        keys().prop_map(|keys| Command::Exists { keys }),
        Just(Command::KeyCount),
        Just(Command::Status),
        Just(Command::Failover),
        Just(Command::RemoveSlave { id: SlaveId::new("slave-2").unwrap() }),
        Just(Command::ChangeMembers {
            order: MembersOrder::from_words(b"REPLACE", &[b"3", b"d:1"]).unwrap()
        }),
        bytes().prop_map(|key| Command::ValueLength { key }),
        (bytes(), update()).prop_map(|(key, update)| Command::Update { key, update }),
        (bytes(), bytes(), condition(), lifetime()).prop_map(|(key, value, when, life)| Command::Swap {
            key,
            value,
            when,
            life
        }),
        (bytes(), lifetime()).prop_map(|(key, life)| Command::Renew { key, life }),
        (bytes(), comparison(), consequence()).prop_map(|(key, when, makes)| Command::Compare {
            key,
            change: Box::new(ComparedChange { when, makes }),
        }),
        bytes().prop_map(|key| Command::GetVersioned { key }),
        (bytes(), key_trait()).prop_map(|(key, what)| Command::Examine { key, what }),
        (bytes(), time_form()).prop_map(|(key, form)| Command::TimeToLive { key, form }),
        (any::<u64>(), prop::option::of(bytes()), any::<u32>(), any::<bool>())
            .prop_map(|(cursor, pattern, count, strings)| Command::Scan { cursor, pattern, count, strings }),
        bytes().prop_map(|pattern| Command::Keys { pattern }),
        Just(Command::RandomKey),
        Just(Command::DeleteAll),
        bytes().prop_map(|key| Command::Take { key }),
        prop::collection::vec((bytes(), bytes()), 0..4).prop_map(|pairs| Command::PutManyIfNone { pairs }),
        keys().prop_map(|keys| Command::Watch { keys }),
        (bytes(), keys(), keys(), any::<bool>(), any::<bool>()).prop_map(
            |(text, keys, args, is_read_only, is_text)| {
                let script = if is_text { ScriptName::Text(text) } else { ScriptName::Digest(text) };
                let rights = ScriptRights::default();
                let call = ScriptCall { script, keys, args, is_read_only, rights };
                Command::Evaluate { call: Box::new(call) }
            }
        ),
        bytes().prop_map(|text| Command::ScriptCache { request: ScriptRequest::Load(text) }),
        keys().prop_map(|digests| Command::ScriptCache { request: ScriptRequest::Known(digests) }),
        Just(Command::ScriptCache { request: ScriptRequest::Forget }),
        Just(Command::Time),
        (bytes(), bytes(), 0..4_usize).prop_map(|(from, to, kind)| Command::Transfer {
            keys: Box::new([from, to]),
            transfer: [Transfer::Rename, Transfer::RenameIfNone, Transfer::Copy, Transfer::CopyOver][kind],
        }),
    ]
}

/// One of any command, or a transaction of some.
fn request() -> impl Strategy<Value = Command> {
    let watched = prop::collection::vec((bytes(), prop::option::of(version())), 0..3);
    let commands = prop::collection::vec(command(), 0..4);
    let transaction = (watched, commands).prop_map(|(watched, commands)| Command::Transact {
        transaction: Box::new(Transaction { watched, commands }),
    });
    prop_oneof![4 => command(), 1 => transaction]
}

fn answer() -> impl Strategy<Value = Reply> {
    let all = prop::collection::vec(reply(), 0..4).prop_map(|replies| Reply::Many(Replies(replies)));
    prop_oneof![4 => reply(), 1 => all]
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![Just(Condition::Always), Just(Condition::IfAbsent), Just(Condition::IfPresent)]
}

fn lifetime() -> impl Strategy<Value = Lifetime> {
    prop_oneof![
        Just(Lifetime::Endless),
        Just(Lifetime::Same),
        any::<u64>().prop_map(Lifetime::For),
        any::<u64>().prop_map(|time| Lifetime::Until(UnixMillis(time))),
    ]
}

fn expiry_condition() -> impl Strategy<Value = ExpiryCondition> {
    any::<[bool; 4]>().prop_map(|[if_none, if_some, if_later, if_earlier]| ExpiryCondition {
        if_none,
        if_some,
        if_later,
        if_earlier,
    })
}

fn comparison() -> impl Strategy<Value = Comparison> {
    prop_oneof![
        bytes().prop_map(Comparison::Equal),
        bytes().prop_map(Comparison::Different),
        prop::option::of(version()).prop_map(Comparison::Version),
    ]
}

fn consequence() -> impl Strategy<Value = Consequence> {
    let set = (bytes(), lifetime(), any::<bool>()).prop_map(|(value, life, answers_old)| Consequence::Set {
        value,
        life,
        answers_old,
    });
    prop_oneof![set, Just(Consequence::Delete)]
}

fn key_trait() -> impl Strategy<Value = KeyTrait> {
    prop::sample::select(vec![
        KeyTrait::Encoding,
        KeyTrait::References,
        KeyTrait::IdleTime,
        KeyTrait::Frequency,
        KeyTrait::MemoryUsage,
    ])
}

fn time_form() -> impl Strategy<Value = TimeForm> {
    prop::sample::select(vec![
        TimeForm::Seconds,
        TimeForm::Millis,
        TimeForm::UnixSeconds,
        TimeForm::UnixMillis,
    ])
}

fn update() -> impl Strategy<Value = Update> {
    prop_oneof![
        (bytes(), condition(), lifetime()).prop_map(|(value, when, life)| Update::Set { value, when, life }),
        (lifetime(), expiry_condition()).prop_map(|(life, when)| Update::Expire { life, when }),
        bytes().prop_map(|tail| Update::Append { tail }),
        (any::<u64>(), bytes()).prop_map(|(offset, bytes)| Update::SetRange { offset, bytes }),
        any::<i64>().prop_map(|number| Update::Add { number }),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        Just(Reply::Done),
        Just(Reply::NotFound),
        bytes().prop_map(Reply::Value),
        bytes().prop_map(Reply::Encoded),
        any::<u64>().prop_map(Reply::Count),
        any::<i64>().prop_map(Reply::Integer),
        (any::<u64>(), prop::collection::vec(bytes(), 0..4))
            .prop_map(|(next, keys)| Reply::Page { next, keys }),
        prop::collection::vec(prop::option::of(version()), 0..4).prop_map(Reply::Versions),
        prop::collection::vec(prop::option::of(bytes()), 0..4).prop_map(Reply::Values),
        "[ -~]{0,20}".prop_map(Reply::Text),
        (0..ErrorWord::ALL.len(), "[ -~]{0,20}")
            .prop_map(|(word, detail)| Reply::error(ErrorWord::ALL[word], detail)),
    ]
}

fn control() -> impl Strategy<Value = Control> {
    let cluster = || prop::option::of(any::<u64>().prop_map(dsm_protocol::ids::ClusterId));
    let state = || {
        (any::<bool>(), any::<u64>(), prop::option::of("[ -~]{0,20}")).prop_map(
            |(active, epoch, active_address)| MasterState {
                active,
                epoch: Epoch(epoch),
                seq: Seq(epoch / 2),
                active_address,
            },
        )
    };
    let slave = || "[a-z]{1,8}".prop_map(|name| SlaveId::new(name).unwrap());
    prop_oneof![
        (cluster(), slave(), any::<u64>(), version(), any::<u64>()).prop_map(
            |(cluster, id, incarnation, highest, room_bytes)| {
                Control::Hello(Hello {
                    cluster,
                    role: HelloRole::Slave {
                        id,
                        incarnation: Incarnation(incarnation),
                        seen: Some(Seen {
                            reign: Reign { epoch: highest.epoch, id: ReignId(incarnation) },
                            seq: highest.seq,
                            durable: true,
                        }),
                        room_bytes,
                    },
                })
            }
        ),
        (cluster(), state()).prop_map(|(cluster, state)| Control::Welcome(Welcome {
            cluster,
            value_max: 7,
            state
        })),
        prop::collection::vec((bytes(), stamp()), 0..4)
            .prop_map(|entries| Control::Holdings { entries, last: true }),
        (any::<u64>(), prop::collection::vec(slave(), 0..3)).prop_map(|(replayed, slaves)| {
            Control::HandoverRequest {
                replayed: Seq(replayed),
                reign: Reign::new(replayed, 7),
                log: Some((1, replayed)),
                slaves,
                forced: replayed % 2 == 0,
            }
        }),
        Just(Control::HandoverOffer),
        any::<u64>().prop_map(|number| Control::Challenge { nonce: Nonce::draw(|| number) }),
        any::<u64>().prop_map(|number| {
            let nonce = Nonce::draw(|| number);
            let said = Exchanged {
                channel: Channel::named("a"),
                accepting: nonce,
                dialing: nonce,
                greeting: b"hello",
            };
            let secret = Secret::parse(b"a secret of this test\nand another one of it").unwrap();
            Control::Proof { nonce, proofs: secret.prove(Prover::Dialing, said) }
        }),
        (any::<u64>(), "[a-z]{1,8}").prop_map(|(stream, name)| Control::StreamUser {
            stream,
            user: if stream % 2 == 0 { StreamUser::Named(name) } else { StreamUser::Program },
        }),
        any::<u64>().prop_map(|bytes| Control::Took { bytes }),
        any::<u64>().prop_map(|ms| Control::Quarantined { ms, reason: format!("late by {ms}") }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u64>(), any::<u64>(), any::<u32>(), request()).prop_map(
            |(id, stream, generation, command)| {
                Message::Request(Request { id: RequestId(id), stream, generation, command })
            }
        ),
        (any::<u64>(), answer()).prop_map(|(id, reply)| Message::Response { id: RequestId(id), reply }),
        (stamp(), bytes(), bytes()).prop_map(|(Stamp { version, reign }, key, value)| Message::Write {
            version,
            reign,
            key,
            value
        }),
        Just(Message::Ping),
        bytes().prop_map(|bytes| Message::Trial { bytes }),
        (any::<u64>(), any::<u64>(), bytes()).prop_map(|(cluster, member, body)| Message::Member {
            cluster: dsm_protocol::ids::ClusterId(cluster),
            member,
            body
        }),
        (any::<u64>(), any::<u64>()).prop_map(|(through, room_bytes)| Message::Ack { through, room_bytes }),
        (any::<u64>(), stamp(), bytes()).prop_map(|(tag, Stamp { version, reign }, key)| Message::Read {
            tag,
            version,
            reign,
            key
        }),
        (any::<u64>(), stamp(), bytes()).prop_map(|(tag, Stamp { version, reign }, value)| Message::Value {
            tag,
            version,
            reign,
            value
        }),
        (any::<u64>(), prop::option::of(version())).prop_map(|(tag, held)| Message::Missing { tag, held }),
        (stamp(), bytes()).prop_map(|(Stamp { version, reign }, key)| Message::Drop { version, reign, key }),
        control().prop_map(Message::Control),
    ]
}

proptest! {
    #[test]
    fn every_message_comes_back_however_the_bytes_arrive(
        messages in prop::collection::vec(message(), 1..5),
        step in 1usize..50,
    ) {
        let mut wire = Vec::new();
        for message in &messages {
            frame::encode(message, &mut wire);
        }
        let mut buffer = BytesMut::new();
        let mut decoded = Vec::new();
        for piece in wire.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(message) = frame::decode(&mut buffer, 1 << 20).unwrap() {
                decoded.push(message);
            }
        }
        prop_assert_eq!(decoded, messages);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn a_flipped_bit_never_yields_a_message(message in message(), flip in any::<prop::sample::Index>()) {
        let mut wire = Vec::new();
        frame::encode(&message, &mut wire);
        let bit = flip.index(wire.len() * 8);
        wire[bit / 8] ^= 1 << (bit % 8);
        let mut buffer = BytesMut::from(&wire[..]);
        let decoded = frame::decode(&mut buffer, 1 << 20);
        prop_assert!(!matches!(decoded, Ok(Some(_))), "decoded {decoded:?}");
    }

    #[test]
    fn garbage_neither_panics_nor_grows_the_buffer(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut buffer = BytesMut::from(&garbage[..]);
        let _ = frame::decode(&mut buffer, 4096);
        prop_assert!(buffer.capacity() <= 3 * (4096 + frame::HEADER_BYTES));
    }
}

#[test]
fn a_body_over_the_limit_is_refused_from_its_header_alone() {
    let mut header = BytesMut::from(&4097u32.to_le_bytes()[..]);
    header.extend_from_slice(&[0; 5]);
    assert_eq!(frame::decode(&mut header, 4096), Err(FrameError::TooLong { length: 4097, max: 4096 }));
}

/// Feeds a link's bytes in parts of `part` bytes, and gives what was decoded.
fn unframed(bytes: &[u8], part: usize, body_max: usize) -> Result<Vec<Incoming>, FrameError> {
    let (mut unframer, mut buffer, mut all) = (Unframer::default(), BytesMut::new(), Vec::new());
    for part in bytes.chunks(part) {
        buffer.extend_from_slice(part);
        while let Some(incoming) = unframer.next(&mut buffer, body_max)? {
            all.push(incoming);
        }
        assert!(buffer.len() <= body_max + frame::HEADER_BYTES + part.len(), "what is skipped is not kept");
    }
    assert!(buffer.is_empty());
    Ok(all)
}

#[test]
fn a_frame_over_the_limit_ends_its_request_and_not_the_link() {
    let long = Bytes::from(vec![b'x'; 5000]);
    let key = Bytes::from_static(b"k");
    let command = Command::Put { key: key.clone(), value: long.clone() };
    let too_long = [
        Message::Response { id: RequestId(7), reply: Reply::Value(long.clone()) },
        Message::Response { id: RequestId(8), reply: Reply::Values(vec![Some(long.clone())]) },
        Message::Value { tag: 9, version: Version::new(1, 2), reign: ReignId(3), value: long.clone() },
        Message::Request(Request { id: RequestId(10), stream: 1, generation: 0, command }),
    ];
    let next = Message::Missing { tag: 1, held: None };
    let mut bytes = Vec::new();
    let mut lengths = Vec::new();
    for message in &too_long {
        let before = bytes.len();
        frame::encode(message, &mut bytes);
        lengths.push(bytes.len() - before - frame::HEADER_BYTES);
        frame::encode(&next, &mut bytes);
    }
    let abouts = [
        About::Response(RequestId(7)),
        About::Response(RequestId(8)),
        About::Value(9),
        About::Request(RequestId(10)),
    ];
    let expected: Vec<Incoming> = abouts
        .into_iter()
        .zip(lengths)
        .flat_map(|(about, length)| [Incoming::TooLong { about, length }, Incoming::Message(next.clone())])
        .collect();
    for part in [1, 7, 9, 17, 100, 5009, bytes.len()] {
        assert_eq!(unframed(&bytes, part, 4096).unwrap(), expected, "in parts of {part}");
    }
    // A frame that concerns no single request cannot be skipped: a slave counts the writes that it gets.
    let mut write = Vec::new();
    frame::encode(
        &Message::Write { version: Version::new(1, 2), reign: ReignId(3), key, value: long },
        &mut write,
    );
    assert!(matches!(unframed(&write, 100, 4096), Err(FrameError::TooLong { .. })));
}

#[test]
fn a_value_whose_checksum_is_known_makes_the_same_frame() {
    let stamp = Stamp { version: Version::new(1, 2), reign: ReignId(3) };
    for length in [0, 10, 40_000, 1_200_000] {
        let value: Bytes = (0..length).map(|at: usize| (at % 251) as u8).collect::<Vec<_>>().into();
        let (mut plain, mut known, mut pieces) = (Vec::new(), Vec::new(), Pieces::default());
        frame::encode_value(9, stamp, &value, None, &mut plain);
        let checksum = Some(crc32c::crc32c(&value));
        frame::encode_value(9, stamp, &value, checksum, &mut known);
        frame::encode_value(9, stamp, &value, checksum, &mut pieces);
        let mut shared = Vec::new();
        while let Some(piece) = pieces.pop() {
            shared.extend_from_slice(piece.bytes());
        }
        assert!(known == plain && shared == plain, "{length} bytes");
        // What has changed since it was summed is noticed.
        let mut changed = value.to_vec();
        let Some(last) = changed.last_mut() else { continue };
        *last ^= 1;
        known.clear();
        frame::encode_value(9, stamp, &changed.into(), checksum, &mut known);
        let decoded = frame::decode(&mut BytesMut::from(&known[..]), 2 << 20);
        assert_eq!(decoded, Err(FrameError::Checksum), "{length} bytes");
    }
}

#[test]
fn the_preface_tells_native_links_and_versions_apart() {
    assert_eq!(frame::check_preface(&frame::PREFACE), Ok(true));
    assert_eq!(frame::check_preface(&frame::PREFACE[..3]), Ok(false));
    assert_eq!(frame::check_preface(b"*1\r\n"), Err(FrameError::NotNative));
    assert_eq!(
        frame::check_preface(&[0xd5, b'D', b'S', b'M', 9, 0]),
        Err(FrameError::WireVersion { theirs: 9 })
    );
}

/// Values with lengths around each border of the encoding of lengths.
fn odd_values() -> Vec<Option<Bytes>> {
    let lengths = [0, 1, 250, 251, 252, 65_535, 65_536, 200_000];
    let long = lengths.into_iter().map(|length| Some(Bytes::from(vec![b'v'; length])));
    std::iter::once(None).chain(long).chain((0..70_000).map(|_| None)).collect()
}

#[test]
fn an_answer_of_many_values_is_the_same_frame_whether_made_in_parts_or_at_once() {
    let all = odd_values();
    for count in [0, 1, 9, 250, 251, 65_535, 65_536, all.len()] {
        let values = all[..count].to_vec();
        let mut at_once = Vec::new();
        let reply = Reply::Values(values.clone());
        frame::encode_response(RequestId(7), &reply, &mut at_once);
        let mut parts = frame::ValuesFrame::begin(RequestId(7), values.len());
        values.iter().for_each(|value| parts.push(value.as_ref()));
        let mut in_parts = Vec::new();
        let mut pieces = parts.finish();
        while let Some(piece) = pieces.pop() {
            in_parts.extend_from_slice(piece.bytes());
        }
        assert!(at_once == in_parts, "{count} values");
        let decoded = frame::decode(&mut BytesMut::from(&in_parts[..]), usize::MAX).unwrap();
        assert!(decoded == Some(Message::Response { id: RequestId(7), reply }), "{count} values");
    }
}

#[test]
fn a_request_of_many_keys_is_the_same_frame_whether_made_in_parts_or_at_once() {
    let all: Vec<Bytes> = odd_values().into_iter().map(Option::unwrap_or_default).collect();
    for count in [0, 1, 9, 251, 60_000] {
        let keys = all[..count].to_vec();
        let pairs: Vec<_> = keys.iter().rev().cloned().zip(keys.iter().cloned()).collect();
        for (command, shown) in [
            (Command::GetMany { keys: keys.clone() }, count),
            (Command::PutMany { pairs }, 0),
            (Command::Delete { keys: keys.clone() }, count),
            (Command::Exists { keys: keys.clone() }, count),
        ] {
            let request = Request { id: RequestId(1), stream: 2, generation: 3, command };
            let mut at_once = Vec::new();
            frame::encode_request(&request, &mut at_once);
            let mut parts = frame::RequestFrame::begin(request).unwrap();
            let (mut steps, mut seen) = (1, 0);
            while !parts.step(100, |_| seen += 1) {
                steps += 1;
            }
            assert_eq!((steps, seen), (count.div_ceil(100).max(1), shown));
            let (mut in_parts, mut pieces) = (Vec::new(), parts.finish());
            while let Some(piece) = pieces.pop() {
                in_parts.extend_from_slice(piece.bytes());
            }
            assert!(at_once == in_parts, "{count} keys");
        }
    }
    let short = Request { id: RequestId(1), stream: 2, generation: 3, command: Command::KeyCount };
    assert_eq!(frame::RequestFrame::begin(short.clone()).map(|_| ()), Err(short));
}

#[test]
fn commands_of_many_and_long_keys_survive_the_wire() {
    let keys: Vec<Bytes> = odd_values().into_iter().take(60_000).map(Option::unwrap_or_default).collect();
    let pairs = keys.iter().map(|key| (key.clone(), key.clone())).collect();
    for command in [
        Command::GetMany { keys: keys.clone() },
        Command::Delete { keys: keys.clone() },
        Command::Exists { keys },
        Command::PutMany { pairs },
    ] {
        let request = Request { id: RequestId(1), stream: 2, generation: 3, command };
        let mut frame = Vec::new();
        frame::encode(&Message::Request(request.clone()), &mut frame);
        let decoded = frame::decode(&mut BytesMut::from(&frame[..]), usize::MAX).unwrap();
        assert!(decoded == Some(Message::Request(request)));
    }
}

#[test]
fn a_frame_that_arrives_byte_by_byte_is_checked_all_the_same() {
    let message = Message::Ack { through: 5, room_bytes: 6 };
    let mut whole = Vec::new();
    frame::encode(&message, &mut whole);
    whole.extend_from_within(..);
    for damaged in [None, Some(8), Some(12), Some(whole.len() / 2 - 1)] {
        let mut bytes = whole.clone();
        if let Some(at) = damaged {
            bytes[at] ^= 1;
        }
        let mut unframer = Unframer::default();
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for byte in bytes {
            buffer.extend_from_slice(&[byte]);
            match unframer.next(&mut buffer, 1000) {
                Ok(None) => {}
                Ok(Some(incoming)) => seen.push(incoming),
                Err(error) => {
                    assert_eq!((error, damaged.is_some()), (FrameError::Checksum, true));
                    break;
                }
            }
        }
        let expected = if damaged.is_some() { 0 } else { 2 };
        assert_eq!(seen.len(), expected, "{damaged:?}");
        assert!(seen.iter().all(|incoming| *incoming == Incoming::Message(message.clone())));
    }
}

#[test]
fn a_value_with_its_checksum_is_a_whole_frame_wherever_a_piece_of_the_queue_ends() {
    use dsm_protocol::pieces::{Pieces, Sink as _};
    let value = Bytes::from(vec![7; 10_000]);
    let stamp = Stamp { version: Version::new(1, 2), reign: ReignId(3) };
    let mut expected = Vec::new();
    frame::encode_value(9, stamp, &value, None, &mut expected);
    // A piece ends somewhere in there.
    for before in 65_536 - 100..65_536 + 100 {
        let mut pieces = Pieces::default();
        pieces.tail().resize(before, 0);
        frame::encode_value(9, stamp, &value, Some(crc32c::crc32c(&value)), &mut pieces);
        let mut all = Vec::new();
        while let Some(piece) = pieces.pop() {
            all.extend_from_slice(piece.bytes());
        }
        assert_eq!(all[before..], expected, "after {before} bytes");
    }
}
