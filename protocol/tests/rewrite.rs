//! Compacted logs: what a log says is what is left of it when it is rewritten.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dsm_protocol::ids::{ClusterId, Epoch, Reign, ReignId, Seq, UnixMillis, Version};
use dsm_protocol::record::{
    encode, encode_with, line_bytes_max, Body, Continuation, Encoded, EncodedEffect, KeyEffect, LogCopier,
    NotCopied, Operation, Position, ReignMark, Rewriter, Scanner, Step, SyncMode, Trailer,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

const LINE_MAX: usize = line_bytes_max(1 << 20);

/// One line of a log that is made up.
#[derive(Clone, Debug)]
enum Line {
    Write(Vec<(u8, Vec<u8>)>),
    Delete(Vec<u8>),
    /// What becomes of keys: a value, or nothing.
    Apply(Vec<(u8, Option<String>)>),
    Mark,
    Epoch {
        is_old: bool,
    },
}

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let key = 0..12u8;
    let value = prop::collection::vec(any::<u8>(), 0..6);
    let line = prop_oneof![
        8 => prop::collection::vec((key.clone(), value), 1..4).prop_map(Line::Write),
        3 => prop::collection::vec(key, 1..3).prop_map(Line::Delete),
        3 => prop::collection::vec((0..9u8, prop::option::of("[ -~]{0,8}")), 1..4).prop_map(distinct).prop_map(Line::Apply),
        2 => Just(Line::Mark),
        1 => any::<bool>().prop_map(|is_old| Line::Epoch { is_old }),
    ];
    prop::collection::vec(line, 0..60)
}

/// No key stands twice in a transaction's record.
fn distinct(effects: Vec<(u8, Option<String>)>) -> Vec<(u8, Option<String>)> {
    effects.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect()
}

fn key(number: u8) -> Bytes {
    // Some need to be encoded.
    Bytes::from(format!("key{}{}", if number.is_multiple_of(3) { " " } else { "" }, number))
}

/// The text of such a log, line by line, with some lines of the original program in front.
fn text(legacy: usize, lines: &[Line]) -> Vec<Vec<u8>> {
    let mut log: Vec<Vec<u8>> = (0..legacy)
        .map(|number| match number % 4 {
            0 | 2 => format!("WRITE key{} old {number}\n", number % 5),
            1 => format!("READ key{number}\n"),
            _ => format!("DELETE key{}\n", number % 5),
        })
        .map(String::into_bytes)
        .collect();
    let mut seq = Seq((0..legacy).filter(|number| number % 4 != 1).count() as u64);
    let (mut epoch, mut synced) = (Epoch(1), Seq(0));
    let mut add = |operation: &Operation, seq, epoch, synced, fields: &[(&str, &[u8])]| {
        let mut line = Vec::new();
        encode_with(operation, Trailer { fields, ..Trailer::new(seq, epoch, synced) }, &mut line);
        log.push(line);
    };
    seq = seq.next();
    add(&Operation::Cluster(ClusterId(7)), seq, epoch, synced, &[]);
    for line in lines {
        match line {
            Line::Write(pairs) => {
                seq = seq.next();
                let pairs =
                    pairs.iter().map(|(number, value)| (key(*number), value.clone().into())).collect();
                add(&Operation::Write(pairs), seq, epoch, synced, &[("client", b"x y")]);
            }
            Line::Delete(keys) => {
                seq = seq.next();
                add(
                    &Operation::Delete(keys.iter().map(|number| key(*number)).collect()),
                    seq,
                    epoch,
                    synced,
                    &[],
                );
            }
            Line::Apply(effects) => {
                seq = seq.next();
                let effect = |(number, value): &(u8, Option<String>)| match value {
                    Some(value) => KeyEffect::Set {
                        key: key(*number),
                        value: value.clone().into(),
                        expires: (*number % 2 == 0).then_some(UnixMillis(u64::from(*number))),
                    },
                    None => KeyEffect::Del { key: key(*number) },
                };
                let effects = effects.iter().map(effect).collect();
                add(&Operation::Apply(effects), seq, epoch, synced, &[("client", b"x y")]);
            }
            Line::Mark => {
                synced = seq;
                add(&Operation::Synced, seq, epoch, synced, &[]);
            }
            Line::Epoch { is_old } => {
                seq = seq.next();
                epoch = Epoch(epoch.0 + 1);
                let given_up = vec![Reign { epoch: Epoch(1), id: ReignId(5) }];
                let mark = ReignMark { id: ReignId(seq.0 * 77), fsync: SyncMode::Always, given_up };
                let operation = Operation::Epoch { address: "a:1".into(), mark: (!is_old).then_some(mark) };
                add(&operation, seq, epoch, synced, &[]);
            }
        }
    }
    log
}

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    values: BTreeMap<Vec<u8>, (Version, Vec<u8>)>,
    reigns: Vec<(Seq, Reign, Vec<Reign>)>,
}

fn read(log: &[u8]) -> (Said, Position) {
    let mut said = Said::default();
    let mut scanner = Scanner::new(LINE_MAX);
    loop {
        match scanner.next(&log[scanner.position().offset as usize..]) {
            Step::Record { record, .. } => {
                let version = Version { epoch: record.epoch, seq: record.seq };
                match record.body {
                    Body::Write(pairs) => {
                        said.values.extend(pairs.map(|(key, value)| {
                            (key.decode().into(), (version, value.decode().into_owned()))
                        }))
                    }
                    Body::Delete(keys) => keys.for_each(|key| {
                        said.values.remove(&*key.decode());
                    }),
                    Body::Apply(effects) => effects.for_each(|effect| match effect {
                        EncodedEffect::Set { key, value, expires } => {
                            let value = [&value.decode()[..], format!("{expires:?}").as_bytes()].concat();
                            said.values.insert(key.decode().into(), (version, value));
                        }
                        EncodedEffect::Del { key } => {
                            said.values.remove(&*key.decode());
                        }
                    }),
                    Body::Epoch { mark, .. } => said.reigns.push((
                        record.seq,
                        Reign { epoch: record.epoch, id: mark.id },
                        mark.given_up.collect(),
                    )),
                    Body::Cluster(_) | Body::Members(_) | Body::Synced => {}
                }
            }
            Step::Ignored => {}
            Step::Partial => return (said, scanner.position()),
            Step::Bad(bad) => panic!("{bad:?} in {}", String::from_utf8_lossy(log)),
        }
    }
}

/// Rewrites the first `through` lines of a log in parts of so many lines, with what `said` calls the latest versions, and
/// copies the rest.
fn compact(log: &[Vec<u8>], through: usize, part: usize, said: &Said) -> Vec<u8> {
    let mut rewriter = Rewriter::new(LINE_MAX);
    let mut out = Vec::new();
    let mut scanner = Scanner::new(LINE_MAX);
    for part in log[..through].chunks(part) {
        let mut live = Vec::new();
        for line in part {
            if let Step::Record { record, .. } = scanner.next(line) {
                let version = Version { epoch: record.epoch, seq: record.seq };
                let is_live =
                    |key: Encoded<'_>| said.values.get(&*key.decode()).is_some_and(|(v, _)| *v == version);
                match record.body {
                    Body::Write(pairs) => live.extend(pairs.map(|(key, _)| is_live(key))),
                    Body::Apply(effects) => {
                        let set = effects.filter(|effect| effect.value().is_some());
                        live.extend(set.map(|effect| is_live(effect.key())));
                    }
                    Body::Delete(_)
                    | Body::Cluster(_)
                    | Body::Epoch { .. }
                    | Body::Members(_)
                    | Body::Synced => {}
                }
            }
        }
        let before = out.len();
        rewriter.rewrite(&part.concat(), &[], live.into_iter(), &mut out).unwrap();
        assert!(out.len() >= before);
    }
    rewriter.join(&mut out);
    assert_eq!(out.len() as u64, rewriter.bytes());
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count() as u64, rewriter.lines());
    log[through..].iter().for_each(|line| out.extend_from_slice(line));
    out
}

/// A copy of a log through a record.
fn copy_until(log: &[u8], until: Seq) -> Result<Vec<u8>, NotCopied> {
    let (mut scanner, mut copier, mut out) =
        (Scanner::new(LINE_MAX), LogCopier::new(Some(until), None), Vec::new());
    let mut rest = log;
    while !copier.is_done() {
        let before = scanner.position().offset;
        match scanner.next(rest) {
            Step::Record { record, span } => copier.take(&record, &rest[..span.bytes as usize], &mut out)?,
            Step::Ignored => {}
            Step::Partial => break,
            Step::Bad(bad) => panic!("{bad:?}"),
        }
        rest = &rest[(scanner.position().offset - before) as usize..];
    }
    copier.end(&mut out).map(|_| out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_copy_until_a_record_has_what_there_was_then_or_is_refused(
        legacy in 0..5usize, lines in lines(), through in any::<prop::sample::Index>(), part in 1..20usize,
    ) {
        let log = text(legacy, &lines);
        let through = legacy + 1 + through.index(log.len() - legacy);
        let compacted = compact(&log, through, part, &read(&log[..through].concat()).0);
        let end = read(&compacted).1.seq;
        let mut said = Vec::new();
        for lines in 0..=log.len() {
            let (then, position) = read(&log[..lines].concat());
            // A mark changes nothing: the last one with this seq says what there was.
            said.resize(position.seq.0 as usize + 1, Said::default());
            said[position.seq.0 as usize] = then;
        }
        for (seq, then) in (0..).map(Seq).zip(&said) {
            for (log, is_whole) in [(&log.concat(), true), (&compacted, false)] {
                match copy_until(log, seq) {
                    Ok(copy) => {
                        let (copied, position) = read(&copy);
                        prop_assert_eq!((&copied, position.seq), (then, seq));
                        prop_assert!(position.ends_with_mark);
                    }
                    Err(NotCopied::Compacted(earliest)) => prop_assert!(earliest > seq && earliest <= end),
                    Err(NotCopied::NoCluster) => prop_assert!(seq.0 <= legacy as u64),
                    Err(why) => prop_assert!(false, "{why} of {seq}, is_whole={is_whole}"),
                }
            }
        }
        prop_assert_eq!(copy_until(&compacted, end.next()), Err(NotCopied::TooShort(end)));
        prop_assert!(copy_until(&compacted, end).is_ok(), "the last one can always be told");
    }

    #[test]
    fn a_rewritten_log_says_what_the_log_says(
        legacy in 0..9usize, lines in lines(), through in any::<prop::sample::Index>(), part in 1..20usize,
    ) {
        let log = text(legacy, &lines);
        // At least the cluster is rewritten: nothing is joined to lines of the original program.
        let through = legacy + 1 + through.index(log.len() - legacy);
        let whole = log.concat();
        let (said, end) = read(&whole);
        // The directory may know of later versions than the lines that are rewritten, and never of earlier ones.
        for known in [read(&log[..through].concat()).0, read(&whole).0] {
            let compacted = compact(&log, through, part, &known);
            let (then, position) = read(&compacted);
            prop_assert_eq!(&then, &said);
            prop_assert_eq!((position.seq, position.epoch, position.reign, position.cluster), (end.seq, end.epoch, end.reign, end.cluster));
            prop_assert!(position.synced <= end.synced);
            // Once more, as a compacted log is compacted again.
            let again: Vec<Vec<u8>> = compacted.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            let twice = compact(&again, again.len(), part, &read(&compacted).0);
            prop_assert_eq!(read(&twice).0, then);
            prop_assert!(twice.len() <= compacted.len() + 60);
        }
    }
}

fn write(pairs: &[(&str, &str)], seq: u64, synced: u64) -> Vec<u8> {
    let pairs =
        pairs.iter().map(|(key, value)| ((*key).to_owned().into(), (*value).to_owned().into())).collect();
    let mut line = Vec::new();
    encode(&Operation::Write(pairs), Seq(seq), Epoch(2), Seq(synced), &mut line);
    line
}

#[test]
fn a_compacted_log_is_text_that_names_what_is_left_and_where_the_gaps_are() {
    let mut log = text(0, &[Line::Epoch { is_old: false }]);
    log.push(write(&[("a", "1"), ("b", "2"), ("c", "3")], 3, 2));
    log.push(write(&[("a", "4")], 4, 3));
    log.push(write(&[("d d", "5")], 5, 4));
    log.push(write(&[("d d", "6")], 6, 5));
    log.push(write(&[("e", "7")], 7, 6));
    let known = read(&log.concat()).0;
    let compacted = String::from_utf8(compact(&log, 5, 2, &known)).unwrap();
    let without_checksums: Vec<&str> =
        compacted.lines().map(|line| line.rsplit_once(' ').unwrap().0).collect();
    assert_eq!(
        without_checksums,
        [
            "CLUSTER 0000000000000007 % ;1 1 0",
            "EPOCH 2 a:1 ;2 2 0 Reign=000000000000009a Fsync=always GivenUp=1-0000000000000005",
            "WRITE b 2 c 3 ;3 2 0",
            "WRITE a 4 ;4 2 0",
            "SYNCED % % ;5 2 0 After=4",
            "WRITE d%20d 6 ;6 2 5",
            "WRITE e 7 ;7 2 6",
        ]
    );
}

#[test]
fn a_kept_line_says_what_was_lost_before_those_that_are_left_out() {
    let lost = |operation: &Operation, seq: u64, after: u64, lost: &str| {
        let fields: &[(&str, &[u8])] = &[("lost", lost.as_bytes()), ("client", b"7")];
        let trailer = Trailer { after: Some(Seq(after)), fields, ..Trailer::new(Seq(seq), Epoch(2), Seq(0)) };
        let mut line = Vec::new();
        encode_with(operation, trailer, &mut line);
        line
    };
    let mut log = text(0, &[Line::Epoch { is_old: false }]);
    log.push(lost(&Operation::Delete(vec!["a".into()]), 5, 2, "2"));
    log.push(write(&[("b", "1")], 6, 0));
    log.push(lost(&Operation::Write(vec![("b".into(), "2".into())]), 9, 6, "2"));
    log.push(lost(&Operation::Synced, 11, 9, "x"));
    let shown = |log: &[Vec<u8>]| {
        let compacted = String::from_utf8(compact(log, log.len(), 2, &read(&log.concat()).0)).unwrap();
        let line = |line: &str| line.rsplit_once(' ').unwrap().0.to_owned();
        compacted.lines().skip(2).map(line).collect::<Vec<String>>()
    };
    let kept = "WRITE b 2 ;9 2 0 After=2 client=7 lost=4";
    assert_eq!(shown(&log), [kept, "SYNCED % % ;11 2 0 After=9 lost=1"]);
    let compacted = compact(&log, log.len(), 2, &read(&log.concat()).0);
    let mut again: Vec<Vec<u8>> =
        compacted.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    again.push(write(&[("c", "3")], 12, 0));
    assert_eq!(shown(&again), [kept, "WRITE c 3 ;12 2 0 After=9 lost=1"]);
}

#[test]
fn the_last_line_of_a_log_says_where_it_goes_on_and_readers_take_it_for_a_mark() {
    let continuation = Continuation { file: (9, u64::MAX), offset: 1 << 40, line: 12 };
    let mut line = Vec::new();
    continuation.encode(Seq(7), Epoch(3), Seq(6), &mut line);
    assert!(String::from_utf8_lossy(&line)
        .starts_with("SYNCED % % ;7 3 6 continued=9:18446744073709551615:1099511627776:12 "));
    let record = dsm_protocol::record::parse_line(&line[..line.len() - 1]).unwrap();
    assert_eq!(Continuation::of(&record), Some(continuation));
    for text in ["", "1:2:3", "1:2:3:4:5", "1:2:3:x", "-1:2:3:4"] {
        assert!(text.parse::<Continuation>().is_err(), "{text}");
    }
}

#[test]
fn a_line_that_cannot_be_read_is_rewritten_nowhere_and_a_damaged_mark_is_passed_over() {
    let mut log =
        text(0, &[Line::Write(vec![(1, b"x".to_vec())]), Line::Mark, Line::Write(vec![(2, b"y".to_vec())])]);
    log[2][3] ^= 1;
    let whole = log.concat();
    let damaged = (log[0].len() + log[1].len()) as u64;
    let rewrite = |damaged: &[u64], lines: &[u8]| {
        let mut out = Vec::new();
        Rewriter::new(LINE_MAX).rewrite(lines, damaged, std::iter::repeat(true), &mut out).map(|()| out)
    };
    assert_eq!(rewrite(&[], &whole).unwrap_err().offset, damaged);
    assert_eq!(read(&rewrite(&[damaged], &whole).unwrap()).0.values.len(), 2);
    let unfinished = &whole[..whole.len() - 1];
    assert!(rewrite(&[damaged], unfinished).is_err());
}
