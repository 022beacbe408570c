//! Logs of members that are compacted: what is left of the part through the base, and where it ends.
#![allow(clippy::unwrap_used)]

use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};
use dsm_protocol::machine::log_scan::{BaseSeen, LogPlace, LogScan, Next, Part, Replay};
use dsm_protocol::record::{encode_entry, encode_with, line_bytes_max, Operation, Rewriter, Trailer};
use std::collections::BTreeMap;

const LINE_MAX: usize = line_bytes_max(1 << 20);
const CLUSTER: ClusterId = ClusterId(0xabc);

/// The words of the entries, by their terms. Keys are overwritten and deleted, alone and with others, and the members change twice.
const ENTRIES: [(u64, &str); 14] = [
    (1, "CLUSTER 0000000000000abc %"),
    (1, "MEMBERS next=2,prefer=1 1=voter@a:1~0"),
    (2, ""),
    (2, "WRITE a 1 b 2"),
    (2, "WRITE c 3 ;Expire=1790000000000"),
    (2, "WRITE a 4"),
    (2, "MEMBERS next=3,prefer=1 1=voter@a:1~0,2=learner@b:1~7"),
    (2, "DELETE c %"),
    (4, ""),
    (4, "APPLY SET d 5 DEL a %"),
    (4, "WRITE b 6"),
    (4, "MEMBERS next=3,prefer=1 1=voter@a:1~0,2=voter@b:1~7"),
    (4, "WRITE e 7"),
    (4, "WRITE e 8"),
];

/// The lines of the entries after the first `skip`.
fn lines(skip: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for (seq, (term, words)) in (1..).zip(ENTRIES).skip(skip) {
        encode_entry(words.as_bytes(), Version::new(term, seq), Seq(0), CLUSTER, &mut out);
    }
    out
}

fn scan(log: &[u8]) -> Vec<Part> {
    let mut scan = LogScan::new(&LogPlace::default(), LINE_MAX).with_members();
    let mut parts = Vec::new();
    loop {
        match scan.advance() {
            Next::Read { offset, length } => {
                let rest = &log[offset as usize..];
                scan.fill(&rest[..rest.len().min(length)], length);
            }
            Next::Part(part) => {
                let is_over = part.at_end || part.bad.is_some();
                assert!(part.bad.is_none(), "{:?} in {}", part.bad, String::from_utf8_lossy(log));
                parts.push(part);
                if is_over {
                    return parts;
                }
            }
        }
    }
}

/// The version of each key, and whether it expires.
type Keys = BTreeMap<Vec<u8>, (Version, bool)>;

/// What a log says: the keys, and the places of the records of members.
fn content(log: &[u8]) -> (Keys, Vec<Seq>) {
    let (mut keys, mut members) = (BTreeMap::new(), Vec::new());
    for part in scan(log) {
        for change in part.changes {
            match change {
                Replay::Put { key, version, expires, .. } => {
                    keys.insert(key.to_vec(), (version, expires.is_some()));
                }
                Replay::Delete { key } => {
                    keys.remove(&*key);
                }
                Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => {}
            }
        }
        members.extend(part.seen.into_iter().flat_map(|seen| seen.members).map(|(seq, _)| seq));
    }
    (keys, members)
}

/// Rewrites the first lines of a log, `bytes` of it, by what all of it says is live.
fn compacted(log: &[u8], bytes: usize) -> (Vec<u8>, BaseSeen) {
    let (keys, _) = content(log);
    let live: Vec<bool> = scan(&log[..bytes])
        .into_iter()
        .flat_map(|part| part.changes)
        .filter_map(|change| match change {
            Replay::Put { key, version, .. } => Some(keys.get(&*key).is_some_and(|known| known.0 == version)),
            Replay::Delete { .. } | Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => None,
        })
        .collect();
    let mut rewriter = Rewriter::new(LINE_MAX).with_members();
    let mut out = Vec::new();
    rewriter.rewrite(&log[..bytes], &[], live.into_iter(), &mut out).unwrap();
    let version = rewriter.end_base(&mut out);
    assert_eq!(rewriter.bytes(), out.len() as u64);
    let base = BaseSeen { version, end: out.len() as u64 };
    (out, base)
}

/// What a scan says of where the compacted part ends, and of gaps after it.
fn base(log: &[u8]) -> (Option<BaseSeen>, Option<Version>) {
    let seen: Vec<_> = scan(log).into_iter().filter_map(|part| part.seen).collect();
    assert_eq!(seen.len(), 1, "it is one part");
    (seen[0].base, seen[0].gap)
}

#[test]
fn a_log_that_is_compacted_at_any_place_says_the_same_and_where_its_entries_begin() {
    let log = lines(0);
    for through in 1..=ENTRIES.len() {
        let bytes = log.len() - lines(through).len();
        let (mut copy, found) = compacted(&log, bytes);
        assert_eq!(found.version, Version::new(ENTRIES[through - 1].0, through as u64));
        copy.extend_from_slice(&log[bytes..]);
        assert_eq!(content(&copy), content(&log), "through {through}: {}", String::from_utf8_lossy(&copy));
        assert_eq!(base(&copy), (Some(found), None), "through {through}");
        // And what was compacted already, further.
        for further in through + 1..=ENTRIES.len() {
            let bytes = copy.len() - lines(further).len();
            let (mut again, found) = compacted(&copy, bytes);
            again.extend_from_slice(&copy[bytes..]);
            assert_eq!(content(&again), content(&log), "through {through}, then {further}");
            assert_eq!(base(&again), (Some(found), None), "through {through}, then {further}");
            assert_eq!(String::from_utf8_lossy(&again).matches(" base=").count(), 1);
        }
    }
}

#[test]
fn a_gap_that_is_not_compacted_is_told_wherever_it_is() {
    let log = lines(0);
    let bytes = log.len() - lines(8).len();
    let (copy, found) = compacted(&log, bytes);
    // A line is missing after the base, and the next one says so.
    let after = Trailer { after: Some(Seq(8)), ..Trailer::new(Seq(10), Epoch(4), Seq(0)) };
    let mut gap = Vec::new();
    let write = Operation::Write(vec![("z".into(), "9".into())]);
    encode_with(&write, after, &mut gap);
    let with_gap = [&copy[..], &gap].concat();
    assert_eq!(base(&with_gap), (Some(found), Some(Version::new(4, 10))));
    // Nor is a compacted part without its end one.
    let without_end = &copy[..copy[..copy.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1];
    let (found, gap) = base(without_end);
    assert_eq!((found, gap.is_some()), (None, true), "{}", String::from_utf8_lossy(without_end));
}
