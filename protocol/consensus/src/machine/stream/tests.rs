//! A stream from both ends, with the other member played by hand.

use super::*;
use crate::machine::tests::members;
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
