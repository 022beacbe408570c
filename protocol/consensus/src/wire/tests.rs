//! Messages come back from their bytes, and no bytes do harm.

use super::*;
use proptest::prelude::*;
use raft::eraftpb::EntryType;

/// A message of each kind, with everything set that this kind may carry.
fn every_kind() -> Vec<PeerMessage> {
    let of_kind = |(at, kind): (usize, &MessageType)| {
        let mut message = Message {
            msg_type: *kind,
            reject: at % 2 == 1,
            to: 2,
            from: 1,
            term: 9,
            log_term: 3,
            index: 40,
            commit: 39,
            commit_term: 3,
            reject_hint: 11,
            ..Message::default()
        };
        if *kind == MessageType::MsgAppend {
            let entry = |index, term, data: &'static [u8]| Entry {
                entry_type: EntryType::EntryNormal,
                index,
                term,
                data: Bytes::from_static(data),
                ..Entry::default()
            };
            message.entries = vec![entry(41, 3, b"WRITE a b"), entry(42, 9, b"")].into();
        } else if *kind == MessageType::MsgRequestVote {
            message.context = Bytes::from_static(CAMPAIGN_TRANSFER);
        } else if *kind == MessageType::MsgHeartbeat {
            message.context = Bytes::from_static(b"12345678");
        }
        PeerMessage(message)
    };
    KINDS.iter().enumerate().map(of_kind).collect()
}

fn encoded(message: &PeerMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

#[test]
fn a_message_of_each_kind_comes_back_from_its_bytes() {
    for message in every_kind() {
        let bytes = encoded(&message);
        assert_eq!(PeerMessage::decode(bytes.into()), Ok(message));
    }
}

#[test]
fn a_message_that_is_cut_short_is_an_error_or_one_with_fewer_entries() {
    for message in every_kind() {
        let bytes = encoded(&message);
        for cut in 0..bytes.len() {
            match PeerMessage::decode(bytes[..cut].to_vec().into()) {
                Err(error) => assert_eq!(error, WireError::TooShort),
                Ok(shorter) => assert!(shorter.entries() < message.entries(), "{cut}"),
            }
        }
    }
}

#[test]
fn what_members_do_not_say_to_each_other_has_no_form() {
    for kind in KINDS.len()..256 {
        let mut bytes = encoded(&every_kind()[0]);
        bytes[0] = kind as u8;
        assert_eq!(PeerMessage::decode(bytes.into()), Err(WireError::Kind(kind as u8)));
    }
    for local in [
        MessageType::MsgPropose,
        MessageType::MsgReadIndex,
        MessageType::MsgTransferLeader,
        MessageType::MsgHup,
    ] {
        assert!(!PeerMessage::is_for_peers(&Message { msg_type: local, ..Message::default() }));
    }
}

#[test]
fn an_entry_that_names_four_gigabytes_takes_no_memory() {
    let mut bytes = encoded(&every_kind()[0]);
    bytes.truncate(FIXED_BYTES);
    bytes.extend_from_slice(&3u64.to_le_bytes());
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(PeerMessage::decode(bytes.into()), Err(WireError::TooShort));
}

#[test]
fn entries_whose_terms_fall_or_whose_indexes_end_are_refused() {
    let PeerMessage(append) = every_kind().remove(0);
    let with = |change: &dyn Fn(&mut Message)| {
        let mut message = append.clone();
        change(&mut message);
        PeerMessage::decode(encoded(&PeerMessage(message)).into())
    };
    assert!(with(&|_| {}).is_ok());
    assert!(matches!(with(&|message| message.log_term = 4), Err(WireError::Malformed(_))));
    assert!(matches!(with(&|message| message.term = 8), Err(WireError::Malformed(_))));
    assert!(matches!(with(&|message| message.index = u64::MAX), Err(WireError::Malformed(_))));
    assert!(matches!(with(&|message| message.from = 0), Err(WireError::Malformed(_))));
}

/// Whatever is decoded has no more entries than fit into its bytes, whose data are parts of them, and is the same again.
fn check_any(bytes: Vec<u8>) {
    let whole = Bytes::from(bytes);
    let Ok(message) = PeerMessage::decode(whole.clone()) else { return };
    let data: usize = message.0.entries.iter().map(|entry| ENTRY_BYTES + entry.data.len()).sum();
    assert!(FIXED_BYTES + data <= whole.len());
    let range = whole.as_ptr_range();
    for entry in message.0.entries.iter().filter(|entry| !entry.data.is_empty()) {
        assert!(range.contains(&entry.data.as_ptr()), "data are copied");
    }
    assert_eq!(encoded(&message), whole, "two forms of one message");
}

#[test]
fn each_byte_of_each_kind_may_have_any_value() {
    for message in every_kind() {
        let bytes = encoded(&message);
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut changed = bytes.clone();
                changed[at] = value;
                check_any(changed);
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..12u8) {
        check_any(bytes.clone());
        let mut likely = bytes;
        if likely.len() > FIXED_BYTES {
            likely[0] = kind;
            likely[1] &= 3;
            likely[FIXED_BYTES - 1] &= 15;
        }
        check_any(likely);
    }
}
