//! The log's format: round trips, damage at every byte, power cuts, the original program's logs, the documented
//! examples.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dsm_protocol::ids::{ClusterId, Epoch, Reign, ReignId, Seq, UnixMillis};
use dsm_protocol::record::{
    encode, encode_apply_at, encode_with, encode_write, encode_write_at, line_bytes_max, parse_line,
    value_at, BadLine, Body, CrashKind, Evidence, FileNumber, Judge, KeyEffect, Operation, Place, Position,
    Record, RecordError, ReignMark, Scanner, Span, Step, SyncMode, Trailer, Verdict,
};
use proptest::prelude::*;

const LINE_MAX: usize = line_bytes_max(1 << 20);

/// A record as the scanner saw it, copied.
type Seen = (Seq, Epoch, Operation, Span);

/// Scans all of `log` as a whole file. Gives the accepted records and the bad line that ended the scan.
fn scan(log: &[u8], from: Position) -> (Vec<Seen>, Option<BadLine>, Position) {
    let mut scanner = Scanner::resume(from, LINE_MAX);
    let mut seen = Vec::new();
    let mut at_end = false;
    loop {
        let rest = &log[scanner.position().offset as usize..];
        let step = if at_end { scanner.finish(rest) } else { Some(scanner.next(rest)) };
        match step {
            None => return (seen, None, scanner.position()),
            Some(Step::Record { record, span }) => {
                seen.push((record.seq, record.epoch, record.to_operation(), span));
            }
            Some(Step::Ignored) => {}
            Some(Step::Partial) => at_end = true,
            Some(Step::Bad(bad)) => return (seen, Some(bad), scanner.position()),
        }
    }
}

fn judge(log: &[u8], bad: &BadLine, crash: CrashKind) -> Verdict {
    let mut judge = Judge::new(bad.clone(), crash, LINE_MAX);
    for chunk in log[bad.offset as usize..].chunks(256) {
        judge.push(chunk);
        if judge.is_decided() {
            break;
        }
    }
    judge.finish()
}

fn write(key: &str, value: &str) -> Operation {
    Operation::Write(vec![(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()))])
}

/// A log that is being written, in groups: a group's lines carry the seq that was synced when the group began.
#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    /// Seq, first byte and SYNCED of each line.
    lines: Vec<(u64, usize, u64)>,
    seq: u64,
    synced: u64,
}

impl Log {
    fn started() -> Log {
        let mut log = Log::default();
        log.group(&[
            Operation::Cluster(ClusterId(7)),
            Operation::Epoch { address: "127.0.0.1:1".into(), mark: None },
        ]);
        log
    }

    fn group(&mut self, operations: &[Operation]) {
        for operation in operations {
            self.seq += u64::from(*operation != Operation::Synced);
            self.lines.push((self.seq, self.bytes.len(), self.synced));
            encode(operation, Seq(self.seq), Epoch(1), Seq(self.synced), &mut self.bytes);
        }
        self.synced = self.seq;
    }

    fn mark(&mut self) {
        self.group(&[Operation::Synced]);
    }
}

fn thousand_records() -> Log {
    let mut log = Log::started();
    for group in 0..250 {
        let writes: Vec<_> = (0..4).map(|i| write(&format!("key{}", group * 7 % 31 + i), "value")).collect();
        log.group(&writes);
        if group % 50 == 49 {
            log.mark();
        }
    }
    log
}

fn text() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        "[;% a-c\u{e9}\n]{0,6}".prop_map(Bytes::from),
    ]
}

fn mark() -> impl Strategy<Value = ReignMark> {
    let fsync = prop_oneof![Just(SyncMode::Always), Just(SyncMode::Everysec), Just(SyncMode::Never)];
    let reign = || (any::<u64>(), any::<u64>()).prop_map(|(epoch, id)| Reign::new(epoch, id));
    (any::<u64>(), fsync, prop::collection::vec(reign(), 0..3)).prop_map(|(id, fsync, given_up)| ReignMark {
        id: ReignId(id),
        fsync,
        given_up,
    })
}

fn key_effect() -> impl Strategy<Value = KeyEffect> {
    let expires = prop::option::of(any::<u64>().prop_map(UnixMillis));
    prop_oneof![
        2 => (text(), text(), expires).prop_map(|(key, value, expires)| KeyEffect::Set { key, value, expires }),
        1 => text().prop_map(|key| KeyEffect::Del { key }),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => prop::collection::vec((text(), text()), 1..4).prop_map(Operation::Write),
        2 => prop::collection::vec(text(), 1..4).prop_map(Operation::Delete),
        3 => prop::collection::vec(key_effect(), 1..4).prop_map(Operation::Apply),
        1 => "[ -~]{0,20}".prop_map(|address| Operation::Epoch { address, mark: None }),
        1 => Just(Operation::Synced),
    ]
}

proptest! {
    #[test]
    fn every_line_comes_back(
        operation in operation(),
        mark in prop::option::of(mark()),
        numbers in (2u64.., any::<u64>()),
        values in prop::collection::vec(text(), 0..3),
    ) {
        let (seq, epoch) = numbers;
        let operation = match operation {
            Operation::Epoch { address, .. } => Operation::Epoch { address, mark },
            other => other,
        };
        let names = ["client", "request", "expires"];
        let fields: Vec<_> = names.into_iter().zip(values.iter().map(|value| &value[..])).collect();
        let trailer = Trailer { fields: &fields, ..Trailer::new(Seq(seq), Epoch(epoch), Seq(seq / 2)) };
        let mut line = Vec::new();
        encode_with(&operation, trailer, &mut line);
        prop_assert_eq!(memchr::memchr(b'\n', &line), Some(line.len() - 1), "one line, however the bytes look");
        let record = parse_line(&line[..line.len() - 1]).unwrap();
        prop_assert_eq!((record.seq, record.epoch, record.synced), (Seq(seq), Epoch(epoch), Seq(seq / 2)));
        prop_assert_eq!(record.to_operation(), operation.clone());
        let own = record.fields.filter(|(name, _)| !name[0].is_ascii_uppercase());
        prop_assert_eq!(own.count(), values.len());
        for (name, value) in &fields {
            prop_assert_eq!(&record.fields.get(name).unwrap().decode()[..], *value);
        }
        let Operation::Write(pairs) = operation else { return Ok(()) };
        // The places that the writer gives are those that a scanner finds, and each value can be read back from its
        // place alone.
        let offset = seq % 1_000_000;
        let mut file = vec![b'#'; offset as usize];
        let mut places = Vec::new();
        encode_write_at(&pairs, trailer, (FileNumber(3), offset), &mut file, &mut places);
        prop_assert_eq!(&file[offset as usize..], &line[..]);
        let Body::Write(found) = record.body else { unreachable!() };
        let span = Span { file: FileNumber(3), offset, bytes: line.len() as u32 };
        prop_assert_eq!(found.map(|(_, value)| value.place(span)).collect::<Vec<_>>(), places.clone());
        let read = |from: u64, place: Place| {
            let from = from as usize;
            value_at(file[from..file.len().min(from + place.text_bytes as usize)].to_vec(), place, Epoch(1))
        };
        for ((_, value), place) in pairs.iter().zip(places) {
            prop_assert_eq!(read(place.offset, place), Ok(value.clone()));
            prop_assert_eq!(place.bytes as usize, value.len());
            let text = &file[place.offset as usize..][..place.text_bytes as usize];
            if &file[place.offset as usize - 1..][..text.len()] != text {
                prop_assert_eq!(read(place.offset - 1, place), Err(RecordError::OtherValue));
            }
            for bit in 0..8 {
                let mut damaged = text.to_vec();
                damaged[seq as usize % text.len()] ^= 1 << bit;
                prop_assert_eq!(value_at(damaged, place, Epoch(1)), Err(RecordError::OtherValue));
            }
            prop_assert_eq!(value_at(text[1..].to_vec(), place, Epoch(1)), Err(RecordError::OtherValue));
        }
    }

    #[test]
    fn the_places_of_a_transactions_values_are_those_that_a_scanner_finds(
        pairs in prop::collection::vec((text(), text(), prop::option::of(any::<u64>())), 0..4),
        deleted in prop::collection::vec(text(), 1..3),
    ) {
        let expires: Vec<_> = pairs.iter().map(|(.., expires)| expires.map(UnixMillis)).collect();
        let pairs: Vec<_> = pairs.into_iter().map(|(key, value, _)| (key, value)).collect();
        let (mut file, mut places) = (b"#####".to_vec(), Vec::new());
        let trailer = Trailer::new(Seq(7), Epoch(2), Seq(3));
        encode_apply_at((&pairs, &expires), &deleted, trailer, (FileNumber(3), 5), &mut file, &mut places);
        let record = parse_line(&file[5..file.len() - 1]).unwrap();
        let Body::Apply(found) = record.body else { unreachable!() };
        let span = Span { file: FileNumber(3), offset: 5, bytes: file.len() as u32 - 5 };
        let found: Vec<_> = found.filter_map(|effect| Some(effect.value()?.place(span))).collect();
        prop_assert_eq!(&found, &places);
        for ((_, value), place) in pairs.iter().zip(places) {
            let text = file[place.offset as usize..][..place.text_bytes as usize].to_vec();
            prop_assert_eq!(value_at(text, place, Epoch(2)), Ok(value.clone()));
        }
        let deleted = deleted.into_iter().map(|key| KeyEffect::Del { key });
        let set = pairs.into_iter().zip(expires).map(|((key, value), expires)| KeyEffect::Set { key, value, expires });
        prop_assert_eq!(record.to_operation(), Operation::Apply(set.chain(deleted).collect()));
    }

    #[test]
    fn garbage_is_never_a_record_and_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse_line(&garbage).is_err());
        let (_, bad, _) = scan(&garbage, Position::default());
        if let Some(bad) = bad {
            judge(&garbage, &bad, CrashKind::MayHaveLostPower);
        }
    }

    /// A power cut: synced bytes stay; after them each 16 bytes have either arrived, are zero, or hold old bytes, and
    /// the file may end early.
    #[test]
    fn a_power_cut_leaves_every_synced_record_and_a_tail_that_may_be_cut(
        groups in prop::collection::vec(prop::collection::vec(operation(), 1..6), 1..6),
        synced_groups in any::<prop::sample::Index>(),
        fates in prop::collection::vec(0u8..3, 1..200),
        length in any::<prop::sample::Index>(),
        chunk in 1usize..100,
    ) {
        let mut log = Log::started();
        let mut ends = vec![(log.bytes.len(), log.seq)];
        for group in &groups {
            log.group(group);
            ends.push((log.bytes.len(), log.seq));
        }
        // A group begins only when the previous one is synced: two are never in flight.
        let first_in_flight = synced_groups.index(groups.len());
        let (synced_bytes, synced_seq) = ends[first_in_flight];
        let mut disk = log.bytes[..ends[first_in_flight + 1].0].to_vec();
        for (sector, fate) in disk[synced_bytes..].chunks_mut(16).zip(fates.iter().cycle()) {
            match fate {
                0 => {}
                1 => sector.fill(0),
                _ => sector.copy_from_slice(&log.bytes[..sector.len()]),
            }
        }
        disk.truncate(synced_bytes + length.index(disk.len() - synced_bytes + 1));

        let whole = scan(&log.bytes, Position::default()).0;
        let (seen, bad, _) = scan(&disk, Position::default());
        prop_assert_eq!(&seen[..], &whole[..seen.len()], "only what was written");
        prop_assert!(seen.iter().any(|(seq, ..)| seq.0 == synced_seq), "all that was synced");
        if let Some(bad) = bad {
            let mut judge = Judge::new(bad.clone(), CrashKind::MayHaveLostPower, LINE_MAX);
            disk[bad.offset as usize..].chunks(chunk).for_each(|chunk| judge.push(chunk));
            let tail = &disk[bad.offset as usize..];
            let newlines = memchr::memchr_iter(b'\n', tail).count() as u64;
            prop_assert_eq!(judge.finish(), Verdict::Torn {
                offset: bad.offset,
                bytes: tail.len() as u64,
                lines: newlines + u64::from(!tail.ends_with(b"\n")),
            });
        }
    }
}

#[test]
fn a_log_cut_at_any_byte_loses_only_the_line_that_was_cut() {
    let log = thousand_records();
    let whole = scan(&log.bytes, Position::default()).0;
    assert_eq!(whole.len(), 1007);
    let mut position = Position::default();
    for (index, &(_, start, _)) in log.lines.iter().enumerate() {
        let end = log.lines.get(index + 1).map_or(log.bytes.len(), |line| line.1);
        for cut in start..end {
            let (seen, bad, after) = scan(&log.bytes[..cut], position);
            assert!(seen.is_empty(), "cut at {cut}");
            assert_eq!(after, position);
            assert_eq!(bad.is_some(), cut > start, "cut at {cut}");
            let Some(bad) = bad else { continue };
            assert_eq!((bad.offset, &bad.cause), (start as u64, &RecordError::Unfinished));
            for crash in [CrashKind::SameBoot, CrashKind::MayHaveLostPower] {
                assert_eq!(
                    judge(&log.bytes[..cut], &bad, crash),
                    Verdict::Torn { offset: start as u64, bytes: (cut - start) as u64, lines: 1 }
                );
            }
        }
        position = scan(&log.bytes[..end], position).2;
    }
}

#[test]
fn a_bit_flipped_at_any_byte_is_noticed_and_is_corruption_as_soon_as_a_later_line_contradicts() {
    let log = thousand_records();
    let mut bytes = log.bytes.clone();
    let mut position = Position::default();
    let (mut torn, mut corrupt) = (0, 0);
    for (index, &(_, start, _)) in log.lines.iter().enumerate() {
        let end = log.lines.get(index + 1).map_or(log.bytes.len(), |line| line.1);
        for at in start..end {
            // Every bit of the first lines, then one of each byte.
            let bits = if index < 20 { 0..8 } else { at % 8..at % 8 + 1 };
            for bit in bits {
                bytes[at] ^= 1 << bit;
                let (seen, bad, _) = scan(&bytes, position);
                assert!(seen.is_empty(), "bit {bit} of byte {at}: {seen:?}");
                let bad = bad.unwrap();
                assert_eq!((bad.offset, bad.line), (start as u64, index as u64 + 1));
                // A line without its newline is joined with the next one, but that one is still a proof.
                let behind = index + 1;
                let witness = log.lines.iter().skip(behind).position(|line| line.2 >= bad.expected_seq.0);
                match judge(&bytes, &bad, CrashKind::MayHaveLostPower) {
                    Verdict::Torn { .. } => {
                        torn += 1;
                        assert_eq!(witness, None, "bit {bit} of byte {at}");
                    }
                    Verdict::Corrupt { evidence, offset, .. } => {
                        corrupt += 1;
                        assert_eq!(offset, start as u64);
                        let witness = &log.lines[behind + witness.unwrap()];
                        let evidence = evidence.unwrap();
                        assert_eq!((evidence.offset, evidence.synced.0), (witness.1 as u64, witness.2));
                    }
                }
                let same_boot = judge(&bytes, &bad, CrashKind::SameBoot);
                let last_unfinished = at + 1 == log.bytes.len();
                assert_eq!(matches!(same_boot, Verdict::Torn { .. }), last_unfinished);
                bytes[at] ^= 1 << bit;
            }
        }
        position = scan(&log.bytes[..end], position).2;
    }
    // The last mark says that everything before it is on disk: only the mark can be torn.
    assert!(torn >= log.bytes.len() - log.lines.last().unwrap().1, "{torn} torn");
    assert!(torn < 200 && corrupt > 30_000, "{torn} torn, {corrupt} corrupt");
}

#[test]
fn a_line_after_a_gap_that_says_the_gap_was_synced_is_corruption() {
    let mut log = Log::started();
    log.group(&[write("a", "1")]);
    log.group(&[write("b", "2")]);
    let (gap, end) = (log.lines[2].1, log.lines[3].1);
    log.bytes.drain(gap..end);
    let (seen, bad, _) = scan(&log.bytes, Position::default());
    assert_eq!(seen.len(), 2);
    let bad = bad.unwrap();
    assert_eq!(bad.cause, RecordError::Seq { expected: Seq(3), found: Seq(4) });
    let evidence = Some(Evidence { offset: gap as u64, line: 3, synced: Seq(3) });
    let verdict = Verdict::Corrupt { offset: gap as u64, line: 3, cause: bad.cause.clone(), evidence };
    assert_eq!(judge(&log.bytes, &bad, CrashKind::MayHaveLostPower), verdict);
}

#[test]
fn a_line_that_lost_its_newline_does_not_hide_the_witness_after_it() {
    let mut log = Log::started();
    log.group(&[write("a", "1"), write("WRITE", "SYNCED")]);
    log.mark();
    let (start, mark) = (log.lines[3].1, log.lines[4].1);
    for damaged in [0, b' ', 0x0b, b'x'] {
        log.bytes[mark - 1] = damaged;
        let bad = scan(&log.bytes, Position::default()).1.unwrap();
        let evidence = Some(Evidence { offset: mark as u64, line: 4, synced: Seq(4) });
        let verdict = Verdict::Corrupt { offset: start as u64, line: 4, cause: bad.cause.clone(), evidence };
        assert_eq!(judge(&log.bytes, &bad, CrashKind::MayHaveLostPower), verdict, "{damaged:#x}");
        // The mark without its own newline says the same.
        let unfinished = &log.bytes[..log.bytes.len() - 1];
        assert_eq!(judge(unfinished, &bad, CrashKind::MayHaveLostPower), verdict, "{damaged:#x}");
    }
    // A damaged mark says nothing.
    log.bytes[mark + 3] ^= 1;
    let bad = scan(&log.bytes, Position::default()).1.unwrap();
    assert!(matches!(judge(&log.bytes, &bad, CrashKind::MayHaveLostPower), Verdict::Torn { .. }));
}

/// How long the line of a WRITE with small numbers is.
fn write_length(key: &str, value: &str) -> usize {
    let mut line = Vec::new();
    encode(&write(key, value), Seq(3), Epoch(1), Seq(2), &mut line);
    line.len()
}

#[test]
fn a_hole_is_what_was_never_on_disk() {
    let mut log = Log::started();
    log.group(&[write("a", &"1".repeat(700)), write("b", &"2".repeat(700)), write("c", "3")]);
    let verdict = |zeros: std::ops::Range<usize>, crash, log: &Log| {
        let mut bytes = log.bytes.clone();
        bytes[zeros].fill(0);
        let bad = scan(&bytes, Position::default()).1.unwrap();
        judge(&bytes, &bad, crash)
    };
    let first = log.lines[2].1 as u64;
    let torn =
        |verdict: &Verdict| matches!(verdict, Verdict::Torn { offset, lines: 3, .. } if *offset == first);
    // A write of the page failed while the machine ran.
    assert!(torn(&verdict(496..512, CrashKind::SameBoot, &log)));
    assert!(torn(&verdict(300..512, CrashKind::SameBoot, &log)));
    assert!(torn(&verdict(512 - 200..512, CrashKind::MayHaveLostPower, &log)));
    // The synced bytes ended shortly before the sector's end.
    let mut short = Log { bytes: Log::started().bytes, ..Log::default() };
    let pad = 500 - short.bytes.len() - write_length("pad", "");
    encode(&write("pad", &"p".repeat(pad + 1)), Seq(3), Epoch(1), Seq(2), &mut short.bytes);
    let begins = short.bytes.len();
    assert_eq!(begins, 500);
    encode(&write("a", "1"), Seq(4), Epoch(1), Seq(3), &mut short.bytes);
    encode(&write("b", "2"), Seq(5), Epoch(1), Seq(3), &mut short.bytes);
    let found = verdict(begins..512, CrashKind::SameBoot, &short);
    assert!(matches!(found, Verdict::Torn { offset: 500, lines: 2, .. }), "{found:?}");
    let found = verdict(begins + 1..512, CrashKind::SameBoot, &short);
    assert!(matches!(found, Verdict::Corrupt { .. }), "{found:?}");
    // This looks like damage, and in the same boot nothing else explains it.
    for zeros in [497..512, 511..512, 300..511, 300..301, 513..700] {
        let found = verdict(zeros.clone(), CrashKind::SameBoot, &log);
        assert!(matches!(found, Verdict::Corrupt { evidence: None, .. }), "{zeros:?} {found:?}");
    }
    // A good line after it says that it had been synced.
    log.group(&[write("d", "4")]);
    for crash in [CrashKind::SameBoot, CrashKind::MayHaveLostPower] {
        let found = verdict(300..512, crash, &log);
        assert!(matches!(found, Verdict::Corrupt { evidence: Some(_), .. }), "{found:?}");
    }
}

#[test]
fn the_order_of_lines_is_held_even_where_every_checksum_is_right() {
    let cases: &[(u64, u64, u64, RecordError)] = &[
        (4, 2, 1, RecordError::Seq { expected: Seq(3), found: Seq(4) }),
        (2, 2, 1, RecordError::Seq { expected: Seq(3), found: Seq(2) }),
        (3, 1, 1, RecordError::EpochFell { before: Epoch(2), found: Epoch(1) }),
        (3, 2, 0, RecordError::Synced { low: Seq(1), high: Seq(2), found: Seq(0) }),
        (3, 2, 3, RecordError::Trailer),
    ];
    for (seq, epoch, synced, cause) in cases {
        let mut log = Vec::new();
        encode(&Operation::Cluster(ClusterId(1)), Seq(1), Epoch(2), Seq(0), &mut log);
        encode(&Operation::Epoch { address: String::new(), mark: None }, Seq(2), Epoch(2), Seq(1), &mut log);
        encode(&write("k", "v"), Seq(*seq), Epoch(*epoch), Seq(*synced), &mut log);
        let (seen, bad, _) = scan(&log, Position::default());
        assert_eq!(seen.len(), 2);
        assert_eq!(&bad.unwrap().cause, cause, "seq {seq} epoch {epoch} synced {synced}");
    }
    let mut log = Log::started();
    log.group(&[Operation::Cluster(ClusterId(7))]);
    assert_eq!(scan(&log.bytes, Position::default()).1.unwrap().cause, RecordError::SecondCluster);
    let mut log = Log::default();
    log.group(&[write("k", "v")]);
    assert_eq!(scan(&log.bytes, Position::default()).1.unwrap().cause, RecordError::NoCluster);
}

#[test]
fn a_compacted_log_names_its_gaps() {
    let compacted = |after: u64| {
        let mut log = Log::started().bytes;
        let record = Trailer { after: Some(Seq(after)), ..Trailer::new(Seq(40), Epoch(3), Seq(0)) };
        encode_with(&write("k", "v"), record, &mut log);
        let mark = Trailer { after: Some(Seq(40)), ..Trailer::new(Seq(99), Epoch(7), Seq(99)) };
        encode_with(&Operation::Synced, mark, &mut log);
        encode(&write("k", "w"), Seq(100), Epoch(7), Seq(99), &mut log);
        log
    };
    let (seen, bad, position) = scan(&compacted(2), Position::default());
    assert_eq!(bad, None);
    assert_eq!(seen.iter().map(|(seq, ..)| seq.0).collect::<Vec<_>>(), [1, 2, 40, 99, 100]);
    assert_eq!(position.synced, Seq(99));
    let (_, bad, _) = scan(&compacted(3), Position::default());
    assert_eq!(bad.unwrap().cause, RecordError::Seq { expected: Seq(3), found: Seq(40) });
}

#[test]
fn unknown_fields_are_ignored_unless_they_must_be_understood_and_then_nothing_is_cut() {
    let with = |name: &str| {
        let mut log = Log::started();
        let fields = [(name, &b"x"[..])];
        let trailer = Trailer { fields: &fields, ..Trailer::new(Seq(3), Epoch(1), Seq(2)) };
        encode_with(&write("k", "v"), trailer, &mut log.bytes);
        log.bytes
    };
    assert_eq!(scan(&with("color"), Position::default()).1, None);
    let (_, bad, _) = scan(&with("Type"), Position::default());
    let bad = bad.unwrap();
    assert_eq!(bad.cause, RecordError::RequiredField("Type".into()));
    let verdict = judge(&with("Type"), &bad, CrashKind::MayHaveLostPower);
    assert!(matches!(verdict, Verdict::Corrupt { evidence: None, .. }), "{verdict:?}");
}

#[test]
fn positions_know_what_is_on_disk_and_carry_a_scan_over() {
    let mut log = Log::started();
    log.group(&[write("k", "v")]);
    log.mark();
    let mark = *log.lines.last().unwrap();
    let (_, _, position) = scan(&log.bytes, Position::default());
    let expected = Position {
        offset: log.bytes.len() as u64,
        line: 4,
        seq: Seq(3),
        epoch: Epoch(1),
        synced: Seq(3),
        cluster: Some(ClusterId(7)),
        seen_trailer: true,
        ends_with_mark: true,
        mark_offset: mark.1 as u64,
        // The mark itself is not known to be on disk.
        unsynced_offset: mark.1 as u64,
        lacks_newline: false,
        is_half_repaired: false,
        // That of an EPOCH line without a reign id: the line's checksum.
        reign: position.reign,
    };
    assert_eq!(position, expected);
    assert_eq!(position.reign.epoch, Epoch(1));
    log.group(&[write("k", "w")]);
    let (seen, _, after) = scan(&log.bytes, position);
    assert_eq!(seen.len(), 1);
    assert_eq!((after.ends_with_mark, after.mark_offset), (false, position.mark_offset));
    // The sync of the group after it may have failed for the mark's page too: both are written again.
    assert_eq!(after.unsynced_offset, mark.1 as u64);
    let end = log.bytes.len() as u64;
    log.group(&[write("k", "x")]);
    let (_, _, after) = scan(&log.bytes, after);
    assert_eq!(after.unsynced_offset, end);
}

#[test]
fn a_log_of_the_original_program_counts_by_place_until_the_first_trailer() {
    let legacy = b"WRITE user1 Alice B. %41\nREAD user1\nDELETE user1\nWRITE user2 \nWRITE user3 C";
    let (seen, bad, position) = scan(legacy, Position::default());
    assert_eq!(bad, None);
    let operations: Vec<_> = seen.iter().map(|(seq, epoch, op, _)| (seq.0, epoch.0, op.clone())).collect();
    assert_eq!(
        operations,
        [
            (1, 0, write("user1", "Alice B. %41")),
            (2, 0, Operation::Delete(vec![Bytes::from("user1")])),
            (3, 0, write("user2", "")),
            (4, 0, write("user3", "C")),
        ]
    );
    assert!(position.lacks_newline);
    // Nothing is decoded in these lines.
    let Step::Record { record: Record { body: Body::Write(mut pairs), .. }, span } =
        Scanner::new(LINE_MAX).next(legacy)
    else {
        panic!("the first line is a WRITE")
    };
    let place = pairs.next().unwrap().1.place(span);
    assert_eq!((place.offset, place.text_bytes, place.bytes), (12, 12, 12));
    let text = legacy[12..24].to_vec();
    assert_eq!(value_at(text, place, Epoch(0)).unwrap(), "Alice B. %41");
    assert_eq!(value_at(legacy[11..23].to_vec(), place, Epoch(0)), Err(RecordError::OtherValue));

    let mut log = legacy.to_vec();
    log.push(b'\n');
    encode(&Operation::Cluster(ClusterId(7)), Seq(5), Epoch(1), Seq(0), &mut log);
    encode(&write("user1", "x"), Seq(6), Epoch(1), Seq(5), &mut log);
    let (seen, bad, after) = scan(&log, position);
    assert_eq!((seen.len(), bad, after.line), (2, None, 7));
    assert_eq!(scan(&log, Position::default()).0.len(), 6);
    log.extend_from_slice(b"WRITE user9 y\n");
    assert_eq!(scan(&log, Position::default()).1.unwrap().cause, RecordError::NoTrailer);
}

#[test]
fn only_the_beginning_of_a_new_log_is_cut_before_the_first_trailer() {
    let verdict = |log: &[u8]| {
        let bad = scan(log, Position::default()).1.unwrap();
        judge(log, &bad, CrashKind::MayHaveLostPower)
    };
    let mut first_group = Log::started().bytes;
    first_group[10] ^= 1;
    for torn in [&b"CLUST"[..], &[0; 3000], b"WRITE a b\nCLUSTER 7f3a", &first_group] {
        assert!(matches!(verdict(torn), Verdict::Torn { .. }), "{torn:?}");
    }
    for foreign in [&b"root:x:0:0:root\n"[..], b"\0\0\0 ftypisom", b"WRITE a b\n\nWRITE c d\n", b"WRITE use"]
    {
        assert!(matches!(verdict(foreign), Verdict::Corrupt { evidence: None, .. }), "{foreign:?}");
    }
}

#[test]
fn a_line_that_does_not_end_is_bad_in_bounded_memory() {
    let log = Log::started().bytes;
    let position = scan(&log, Position::default()).2;
    let mut scanner = Scanner::resume(position, 1000);
    assert!(matches!(scanner.next(&[b'x'; 999]), Step::Partial));
    let Step::Bad(bad) = scanner.next(&[b'x'; 1000]) else { panic!("1000 bytes are too many") };
    assert_eq!(bad.cause, RecordError::TooLong(1000));
    assert!(matches!(scanner.next(b"WRITE\0"), Step::Bad(_)), "a hole is bad before its end is seen");
    let mut lowered_limit = Judge::new(bad, CrashKind::MayHaveLostPower, 1000);
    lowered_limit.push(&[b'x'; 1001]);
    assert!(lowered_limit.is_decided(), "the line may be good under a higher limit");
    assert!(matches!(lowered_limit.finish(), Verdict::Corrupt { .. }));

    // Whatever the pieces, and wherever its newline is: the scanner finds this line too long, too.
    for length in [1000, 1500, 4000] {
        let mut line = vec![b'x'; length];
        line.push(b'\n');
        let Step::Bad(bad) = scanner.next(&line) else { panic!("{length} bytes are too many") };
        assert_eq!(bad.cause, RecordError::TooLong(1000));
        for piece in [1, 999, 1000, 1001, 5000] {
            let mut judge = Judge::new(bad.clone(), CrashKind::MayHaveLostPower, 1000);
            line.chunks(piece).for_each(|piece| judge.push(piece));
            let verdict = judge.finish();
            assert!(matches!(verdict, Verdict::Corrupt { .. }), "{length} in pieces of {piece}: {verdict:?}");
        }
    }

    let Step::Bad(bad) = scanner.next(&[0; 1]) else { panic!("a hole is no line") };
    let mut judge = Judge::new(bad, CrashKind::MayHaveLostPower, 1000);
    for _ in 0..1000 {
        judge.push(&[0; 1000]);
    }
    judge.push(b"\nx");
    let offset = position.offset;
    assert_eq!(judge.finish(), Verdict::Torn { offset, bytes: 1_000_002, lines: 2 });
}

#[test]
fn words_and_numbers_that_the_grammar_excludes_are_bad_even_with_the_right_checksum() {
    let sealed = |text: &str| {
        let text = format!("{text} ");
        format!("{text}{:08x}", crc32c::crc32c(text.as_bytes())).into_bytes()
    };
    assert!(parse_line(&sealed("WRITE k v ;3 1 2")).is_ok());
    let operations = ["READ k v ;3 1 2", "write k v ;3 1 2", "WRITE\tk v ;3 1 2"];
    for text in operations {
        assert!(matches!(parse_line(&sealed(text)), Err(RecordError::Operation(_))), "{text}");
    }
    let bodies = [
        "WRITE k ;3 1 2",
        "WRITE ;3 1 2",
        "WRITE k  ;3 1 2",
        "WRITE k v w ;3 1 2",
        "WRITE k  v ;3 1 2",
        "WRITE ;k v ;3 1 2",
        "WRITE k \x7f ;3 1 2",
        "WRITE k a\tb ;3 1 2",
        "WRITE k %4 ;3 1 2",
        "WRITE k %zz ;3 1 2",
        "WRITE k %e9 ;3 1 2",
        "WRITE k a% ;3 1 2",
        "DELETE k v ;3 1 2",
        "DELETE k ;3 1 2",
        "EPOCH 2 a ;3 1 2",
        "EPOCH 1 ;3 1 2",
        "SYNCED % ;3 1 2",
        "CLUSTER 12 % ;1 1 0",
        "CLUSTER 00000000000000AB % ;1 1 0",
    ];
    for text in bodies {
        assert_eq!(parse_line(&sealed(text)).unwrap_err(), RecordError::Body, "{text}");
    }
    let trailers = [
        "WRITE k v",
        "WRITE k v ;03 1 2",
        "WRITE k v ;3 1",
        "WRITE k v ;3 1 +2",
        "WRITE k v ;3 1 18446744073709551616",
        "WRITE k v ;3 1 3",
        "WRITE k v ;0 1 0",
        "SYNCED % % ;3 1 4",
        "WRITE k v ;3 1 2 ",
        "WRITE k v ;3 1 2 a",
        "WRITE k v ;3 1 2 a=",
        "WRITE k v ;3 1 2 9=a",
        "WRITE k v ;3 1 2 a=b  c=d",
        "WRITE k v ;3 1 2 After=x",
    ];
    for text in trailers {
        assert_eq!(parse_line(&sealed(text)).unwrap_err(), RecordError::Trailer, "{text}");
    }
}

/// The first fenced block after `heading` in the documentation.
fn documented(heading: &str) -> &'static str {
    let formats = include_str!("../../docs/FORMATS.md");
    let section = formats.split_once(heading).expect(heading).1;
    section.split("```").nth(1).unwrap().trim_start_matches("text").trim_start()
}

#[test]
fn the_documented_example_is_a_log() {
    let (seen, bad, position) = scan(documented("### Example").as_bytes(), Position::default());
    assert_eq!(bad, None);
    let operations: Vec<_> = seen.into_iter().map(|(_, _, operation, _)| operation).collect();
    assert_eq!(
        operations,
        [
            Operation::Cluster(ClusterId(0x7f3a_9c0e_51d2_4b88)),
            Operation::Epoch {
                address: "127.0.0.1:12345".into(),
                mark: Some(ReignMark {
                    id: ReignId(0x2c1f_88d0_4be7_93a6),
                    fsync: SyncMode::Always,
                    given_up: Vec::new(),
                }),
            },
            write("user1", "Alice"),
            Operation::Delete(vec![Bytes::from("user2")]),
            Operation::Write(vec![
                (Bytes::from("greeting"), Bytes::from("grüß dich, 100%")),
                (Bytes::from("empty"), Bytes::new()),
            ]),
            Operation::Synced,
        ]
    );
    assert!(position.ends_with_mark);
}

fn epoch_line(epoch: u64, seq: u64, mark: Option<ReignMark>) -> Vec<u8> {
    let mut line = Vec::new();
    let operation = Operation::Epoch { address: "a:1".into(), mark };
    encode(&operation, Seq(seq), Epoch(epoch), Seq(0), &mut line);
    line
}

fn mark_of(id: u64) -> ReignMark {
    ReignMark {
        id: ReignId(id),
        fsync: SyncMode::Everysec,
        given_up: vec![Reign::new(2, 7), Reign::new(3, 8)],
    }
}

#[test]
fn an_epoch_line_names_its_reign_and_what_is_given_up() {
    let line = epoch_line(4, 9, Some(mark_of(5)));
    let shown = String::from_utf8(line.clone()).unwrap();
    let fields = "Reign=0000000000000005 Fsync=everysec GivenUp=2-0000000000000007,3-0000000000000008";
    assert!(shown.starts_with(&format!("EPOCH 4 a:1 ;9 4 0 {fields} ")), "{shown}");
    let record = parse_line(line.strip_suffix(b"\n").unwrap()).unwrap();
    assert_eq!(record.to_operation(), Operation::Epoch { address: "a:1".into(), mark: Some(mark_of(5)) });
}

#[test]
fn an_epoch_line_of_the_version_before_is_identified_by_its_checksum() {
    let line = epoch_line(4, 9, None);
    let text = std::str::from_utf8(&line).unwrap().trim_end();
    let checksum = u64::from_str_radix(text.rsplit_once(' ').unwrap().1, 16).unwrap();
    let record = parse_line(text.as_bytes()).unwrap();
    let Body::Epoch { mark, .. } = record.body else { panic!("{record:?}") };
    assert_eq!((mark.id, mark.fsync), (ReignId(checksum), None));
    assert_eq!(record.to_operation(), Operation::Epoch { address: "a:1".into(), mark: None });
}

#[test]
fn the_fields_of_a_reign_stand_together_and_on_an_epoch_line_only() {
    let sealed = |text: &str| {
        let text = format!("{text} ");
        format!("{text}{:08x}", crc32c::crc32c(text.as_bytes()))
    };
    for bad in [
        "EPOCH 4 a:1 ;9 4 0 Reign=0000000000000005",
        "EPOCH 4 a:1 ;9 4 0 Fsync=always",
        "EPOCH 4 a:1 ;9 4 0 Reign=5 Fsync=always",
        "EPOCH 4 a:1 ;9 4 0 Reign=0000000000000005 Fsync=sometimes",
        "EPOCH 4 a:1 ;9 4 0 Reign=0000000000000005 Fsync=always GivenUp=3",
        "EPOCH 4 a:1 ;9 4 0 GivenUp=3-0000000000000008",
        "WRITE k v ;9 4 0 Reign=0000000000000005 Fsync=always",
    ] {
        assert_eq!(parse_line(sealed(bad).as_bytes()).unwrap_err(), RecordError::Trailer, "{bad}");
    }
    let good = sealed("EPOCH 4 a:1 ;9 4 0 Reign=0000000000000005 Fsync=always later=1");
    assert!(parse_line(good.as_bytes()).is_ok());
}

#[test]
fn a_reign_that_takes_the_epoch_of_another_is_a_bad_line() {
    let mut log = Vec::new();
    encode(&Operation::Cluster(ClusterId(7)), Seq(1), Epoch(1), Seq(0), &mut log);
    log.extend(epoch_line(1, 2, Some(mark_of(5))));
    log.extend(epoch_line(1, 3, Some(mark_of(6))));
    let (seen, bad, position) = scan(&log, Position::default());
    assert_eq!((seen.len(), position.reign), (2, Reign::new(1, 5)));
    assert_eq!(bad.unwrap().cause, RecordError::EpochFell { before: Epoch(1), found: Epoch(1) });
}

#[test]
fn a_documented_line_reads_as_the_text_says() {
    let line = documented("### Fields").trim_end();
    let record = parse_line(line.as_bytes()).unwrap();
    assert!(matches!(record.body, Body::Write(_)));
    assert_eq!(&*record.fields.get("client").unwrap().decode(), b"12");
    assert_eq!(&*record.fields.get("request").unwrap().decode(), b"3");
}

/// Run with `cargo test --release -p dsm-protocol --test record -- --ignored --nocapture`.
#[test]
#[ignore = "measures: run in release"]
#[allow(clippy::disallowed_methods)]
fn a_million_records_are_scanned_within_the_time_of_a_restart() {
    let mut log = Log::started().bytes;
    for i in 0..1_000_000u64 {
        let pairs = [(format!("key-{i:012}"), "v".repeat(16 + i as usize % 49))];
        encode_write(&pairs, Seq(i + 3), Epoch(1), Seq(i + 1), &mut log);
    }
    let started = std::time::Instant::now();
    let mut scanner = Scanner::new(LINE_MAX);
    let (mut rest, mut records) = (&log[..], 0);
    while let Step::Record { span, .. } = scanner.next(rest) {
        rest = &rest[span.bytes as usize..];
        records += 1;
    }
    let took = started.elapsed();
    assert_eq!((records, rest.len()), (1_000_002, 0));
    println!("{records} records, {} bytes: {took:?}", log.len());
    assert!(took.as_millis() < 700, "{took:?}");
}

/// Run as the one above.
#[test]
#[ignore = "measures: run in release"]
#[allow(clippy::disallowed_methods)]
fn large_values_are_scanned_faster_than_a_disk_reads_them() {
    for (what, value) in [
        ("text", b"0123456789abcdef".repeat(1 << 20)),
        (
            "any bytes",
            (0..1u32 << 24).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<u8>>(),
        ),
    ] {
        let mut log = Log::started().bytes;
        for seq in 3..11 {
            encode_write(&[("key", &value)], Seq(seq), Epoch(1), Seq(seq - 1), &mut log);
        }
        let started = std::time::Instant::now();
        let mut scanner = Scanner::new(line_bytes_max(64 << 20));
        let (mut rest, mut value_bytes) = (&log[..], 0);
        while let Step::Record { record, span } = scanner.next(rest) {
            if let Body::Write(pairs) = record.body {
                value_bytes += pairs.map(|(_, value)| u64::from(value.place(span).bytes)).sum::<u64>();
            }
            rest = &rest[span.bytes as usize..];
        }
        let took = started.elapsed();
        assert_eq!((value_bytes, rest.len()), (8 << 24, 0));
        let rate = log.len() as f64 / took.as_secs_f64() / 1e9;
        println!("{what}: {} bytes in {took:?}, {rate:.2} GB/s", log.len());
        assert!(rate > 0.4, "{rate} GB/s");
    }
}
