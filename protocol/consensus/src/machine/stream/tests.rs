//! A stream from both ends, with the other member played by hand.

use super::*;
use crate::machine::tests::{members, TestMember};
use crate::machine::{Config, Event, LogBatch, Start};
use crate::members::{MembersChange, NewMachine};
use crate::storage::LogEntry;
use crate::vote::VoteRecord;
use crate::wire::PeerMessage;
use dsm_protocol::ids::{ClusterId, Seq};

fn id(number: u64) -> MemberId {
    MemberId::new(number).unwrap()
}

const BASE: (u64, u64) = (2, 9);

/// A follower of the first member in term 3, which has nothing but the first entry.
fn follower() -> Consensus {
    let vote = VoteRecord {
        number: 0,
        cluster: ClusterId(7),
        member: id(2),
        term: Epoch(3),
        vote: None,
        commit: Seq(1),
    };
    let first = LogEntry { version: Version::new(1, 1), data: Bytes::from_static(b"CLUSTER") };
    let records = vec![(Seq(1), members(3))];
    let start =
        Start { vote, base: Version::default(), records, terms: vec![first.version], tail: vec![first] };
    let mut machine = Consensus::new(Config::new(id(2), 3), &start).unwrap();
    let beat = Message { msg_type: MessageType::MsgHeartbeat, from: 1, to: 2, term: 3, ..Message::default() };
    step(&mut machine, 0, Event::Message { from: id(1), message: PeerMessage(beat) });
    machine
}

fn step(machine: &mut Consensus, now: u64, event: Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    machine.step(Millis(now), event, &mut effects);
    effects
}

/// One more than the follower knows of.
fn four() -> Members {
    let machine = NewMachine { address: "10.0.0.4:12345".to_owned(), token: 4 };
    members(3).begin(&MembersChange::Add(machine)).unwrap()
}

fn says(word: StreamWord, offset: u64, data: &'static str, is_last: bool) -> StreamMessage {
    let is_offer = word == StreamWord::Offer;
    StreamMessage {
        word,
        to: id(2),
        from: id(1),
        cluster: ClusterId(7),
        term: Epoch(3),
        base: Version::new(BASE.0, BASE.1),
        offset,
        is_last,
        data: if is_offer { four().to_string().into() } else { Bytes::from_static(data.as_bytes()) },
    }
}

fn hear(machine: &mut Consensus, message: StreamMessage) -> Vec<Effect> {
    step(machine, 0, Event::Stream { from: id(1), message })
}

fn asks(offset: u64) -> Effect {
    let ask = says(StreamWord::Ask, offset, "", false);
    Effect::SendStream(StreamMessage { to: id(1), from: id(2), ..ask })
}

#[test]
fn a_file_is_written_chunk_by_chunk_synced_and_only_then_takes_the_place_of_the_log() {
    let mut machine = follower();
    let number = StreamNumber(1);
    assert_eq!(hear(&mut machine, says(StreamWord::Offer, 0, "", false)), [asks(0)]);
    let write = |offset, data: &'static str| Effect::WriteChunk { stream: number, offset, data: data.into() };
    assert_eq!(hear(&mut machine, says(StreamWord::Chunk, 0, "one", false)), [write(0, "one")]);
    assert_eq!(hear(&mut machine, says(StreamWord::Chunk, 3, "two", true)), [], "one chunk at a time");
    assert_eq!(step(&mut machine, 0, Event::ChunkWritten(number)), [asks(3)]);
    assert_eq!(hear(&mut machine, says(StreamWord::Chunk, 0, "one", false)), [], "it has that");
    assert_eq!(hear(&mut machine, says(StreamWord::Chunk, 3, "two", true)), [write(3, "two")]);
    assert_eq!(step(&mut machine, 0, Event::ChunkWritten(number)), [Effect::SyncStream(number)]);
    assert_eq!((machine.last(), machine.committed()), (Seq(1), Seq(1)));
    let effects = step(&mut machine, 0, Event::StreamSynced(number));
    let [Effect::Persist(LogBatch { number: batch, install, entries, .. })] = &effects[..] else {
        panic!("{effects:?}");
    };
    let base = Version::new(BASE.0, BASE.1);
    assert_eq!((*install, entries.len()), (Some((number, base)), 0));
    assert_eq!((machine.last(), machine.committed()), (Seq(9), Seq(1)), "it is not swapped in yet");
    let effects = step(&mut machine, 0, Event::Persisted(*batch));
    let [Effect::Send(answer), Effect::Restored(restored), told] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(*told, Effect::Members { version: base, members: four() });
    assert_eq!((answer.word(), answer.index(), *restored), ("appended", Seq(9), base));
    assert_eq!(machine.committed(), Seq(9));
}

#[test]
fn what_got_lost_is_asked_for_again() {
    let mut machine = follower();
    hear(&mut machine, says(StreamWord::Offer, 0, "", false));
    assert_eq!(step(&mut machine, 199, Event::Tick), []);
    assert_eq!(step(&mut machine, 200, Event::Tick), [asks(0)]);
    assert_eq!(hear(&mut machine, says(StreamWord::Offer, 0, "", false)), [], "it has begun");
}

#[test]
fn offers_of_other_clusters_other_terms_and_of_who_does_not_lead_are_not_taken() {
    let mut machine = follower();
    let offer = || says(StreamWord::Offer, 0, "", false);
    for other in [
        StreamMessage { cluster: ClusterId(8), ..offer() },
        StreamMessage { term: Epoch(2), ..offer() },
        StreamMessage { term: Epoch(4), ..offer() },
        StreamMessage { from: id(3), ..offer() },
        StreamMessage { to: id(3), ..offer() },
    ] {
        assert_eq!(hear(&mut machine, other), []);
    }
    let other = StreamMessage { from: id(3), ..offer() };
    assert_eq!(step(&mut machine, 0, Event::Stream { from: id(3), message: other }), []);
}

#[test]
fn a_stream_ends_with_its_leader() {
    let mut machine = follower();
    hear(&mut machine, says(StreamWord::Offer, 0, "", false));
    let beat = Message { msg_type: MessageType::MsgHeartbeat, from: 3, to: 2, term: 4, ..Message::default() };
    let effects = step(&mut machine, 0, Event::Message { from: id(3), message: PeerMessage(beat) });
    assert!(effects.contains(&Effect::DropStream(StreamNumber(1))), "{effects:?}");
    assert_eq!(hear(&mut machine, says(StreamWord::Chunk, 0, "one", false)), []);
}

/// The base of each file that is offered.
fn offered(effects: &[Effect]) -> Vec<Version> {
    let base = |effect: &Effect| {
        if let Effect::SendStream(message) = effect {
            (message.word == StreamWord::Offer).then_some(message.base)
        } else {
            None
        }
    };
    effects.iter().filter_map(base).collect()
}

#[test]
fn a_leader_that_compacts_its_log_further_offers_the_new_file_at_once() {
    let first = Version::new(1, 1);
    let start = Start { base: first, terms: vec![], tail: vec![], ..crate::machine::tests::start(1) };
    let mut leader = TestMember::with(Config::new(id(1), 3), &start).reigning();
    let lacks = Message {
        from: 3,
        index: 1,
        reject: true,
        ..crate::machine::tests::message(MessageType::MsgAppendResponse, 2, 2)
    };
    assert_eq!(offered(&leader.hear(lacks)), [first]);
    let ask = StreamMessage {
        to: id(1),
        from: id(3),
        term: Epoch(2),
        base: first,
        ..says(StreamWord::Ask, 0, "", false)
    };
    let asked = leader.step(Event::Stream { from: id(3), message: ask.clone() });
    assert!(matches!(asked[..], [Effect::ReadChunk { .. }]), "{asked:?}");
    assert!(leader.machine.progress().iter().any(|progress| progress.member == id(3) && progress.gets_file));
    let next = Version::new(2, 2);
    leader.step(Event::Compacted(next));
    assert_eq!(leader.step(Event::Stream { from: id(3), message: ask }), [], "that file is gone");
    let chunk = Event::ChunkRead {
        to: id(3),
        base: first,
        offset: 0,
        data: Bytes::from_static(b"one"),
        is_last: true,
    };
    assert_eq!(leader.step(chunk), []);
    let beat = crate::machine::tests::message(MessageType::MsgHeartbeatResponse, 2, 2);
    assert_eq!(offered(&leader.hear(Message { from: 3, ..beat })), [next]);
}

#[test]
fn a_newer_file_takes_the_place_of_one_that_is_under_way() {
    let mut machine = follower();
    hear(&mut machine, says(StreamWord::Offer, 0, "", false));
    hear(&mut machine, says(StreamWord::Chunk, 0, "one", false));
    let newer = StreamMessage { base: Version::new(2, 12), ..says(StreamWord::Offer, 0, "", false) };
    let ask =
        StreamMessage { word: StreamWord::Ask, to: id(1), from: id(2), data: Bytes::new(), ..newer.clone() };
    assert_eq!(hear(&mut machine, newer), [Effect::DropStream(StreamNumber(1)), Effect::SendStream(ask)]);
    assert_eq!(step(&mut machine, 0, Event::ChunkWritten(StreamNumber(1))), [], "that file is dropped");
    assert_eq!(hear(&mut machine, says(StreamWord::Chunk, 3, "two", true)), []);
}
