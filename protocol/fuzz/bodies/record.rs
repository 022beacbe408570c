//! The log: lines are read as they were written; a scan does not depend on the pieces in which the bytes arrive, and
//! agrees with the lines parsed one by one; a verdict does not depend on the pieces, either.

use super::Input;
use bytes::Bytes;
use dsm_protocol::ids::{ClusterId, Epoch, Reign, ReignId, Seq, UnixMillis};
use dsm_protocol::record::{
    encode_with, parse_legacy, parse_line, value_at, BadLine, Body, CrashKind, EncodedEffect, Judge,
    KeyEffect, Operation, Position, Record, RecordError, ReignMark, Scanner, Span, Step, SyncMode, Trailer,
    Verdict,
};

/// Low, so that small inputs reach it.
const LINE_MAX: usize = 300;

/// `MODE CHUNK` and then a file (mode 0), lines to be given the right checksum (1), or records to be written (2, 3).
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8() % 4;
    let chunk = 1 + usize::from(input.u8());
    match mode {
        0 => check(input.rest(), chunk),
        1 => check(&sealed(input.rest()), chunk),
        _ => {
            let mut log = written(&mut input, mode == 3);
            // What is left damages the file.
            while !input.is_empty() && !log.is_empty() {
                let at = usize::from(input.u16()) % log.len();
                match input.u8() {
                    0 => log.truncate(at),
                    1 => log[at..].fill(0),
                    flip => log[at] ^= flip,
                }
            }
            check(&log, chunk);
        }
    }
}

/// Gives each line the checksum that makes it pass: else nothing after the checksum would ever be reached.
fn sealed(text: &[u8]) -> Vec<u8> {
    let mut log = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let start = log.len();
        log.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        // Some lines stay as they are: those of the original program, and damaged ones.
        if line.contains(&b';') {
            log.push(b' ');
            let checksum = crc32c::crc32c(&log[start..]);
            log.extend_from_slice(format!("{checksum:08x}").as_bytes());
        }
        if line.ends_with(b"\n") {
            log.push(b'\n');
        }
    }
    log
}

/// Writes records in groups as the log writer does; each must come back. With `gaps`, seqs are left out and named.
fn written(input: &mut Input<'_>, gaps: bool) -> Vec<u8> {
    let mut log = Vec::new();
    let (mut seq, mut epoch, mut synced) = (1, 1, 0);
    push(&Operation::Cluster(ClusterId(input.number())), Trailer::new(Seq(1), Epoch(1), Seq(0)), &mut log);
    for _ in 0..input.below(12) {
        let choice = input.u8();
        if choice & 0x80 != 0 {
            synced = seq;
        }
        let bytes = |input: &mut Input<'_>| Bytes::copy_from_slice(input.sized());
        let operation = match choice & 7 {
            0 => {
                epoch += 1 + u64::from(input.u8());
                let given_up =
                    (0..input.below(3)).map(|_| Reign::new(input.number(), input.number())).collect();
                let (id, fsync) = (ReignId(input.number()), SyncMode::Always);
                let mark = input.flag().then_some(ReignMark { id, fsync, given_up });
                Operation::Epoch { address: String::from_utf8_lossy(input.sized()).into_owned(), mark }
            }
            1 => Operation::Synced,
            4 => Operation::Apply(
                (0..1 + input.below(3))
                    .map(|_| match input.flag() {
                        true => KeyEffect::Del { key: bytes(input) },
                        false => {
                            let expires = input.flag().then(|| UnixMillis(input.number()));
                            KeyEffect::Set { key: bytes(input), value: bytes(input), expires }
                        }
                    })
                    .collect(),
            ),
            2 | 3 => Operation::Delete((0..1 + input.below(3)).map(|_| bytes(input)).collect()),
            _ => Operation::Write((0..1 + input.below(3)).map(|_| (bytes(input), bytes(input))).collect()),
        };
        let before = seq;
        seq += u64::from(operation != Operation::Synced);
        let mut after = None;
        if gaps && choice & 0x40 != 0 {
            seq += u64::from(input.u8());
            after = Some(Seq(before));
        }
        let value = if choice & 0x20 != 0 { Some(input.sized()) } else { None };
        let fields: Vec<_> = value.iter().map(|value| ("client", *value)).collect();
        let trailer = Trailer { after, fields: &fields, ..Trailer::new(Seq(seq), Epoch(epoch), Seq(synced)) };
        push(&operation, trailer, &mut log);
    }
    log
}

/// Writes a line and reads it back.
fn push(operation: &Operation, trailer: Trailer<'_>, log: &mut Vec<u8>) {
    let start = log.len();
    encode_with(operation, trailer, log);
    let line = log[start..].strip_suffix(b"\n").expect("a line ends");
    assert!(!line.contains(&b'\n'), "a line is two");
    let record = parse_line(line).expect("a written line is good");
    assert_eq!(record.to_operation(), *operation);
    assert_eq!((record.seq, record.epoch, record.synced), (trailer.seq, trailer.epoch, trailer.synced));
    assert_eq!(record.after, trailer.after);
    for (name, value) in trailer.fields {
        assert_eq!(record.fields.get(name).expect("the field is there").decode(), *value);
    }
}

/// Everything a scan says.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Where each record begins, its line's length, seq and epoch.
    records: Vec<(u64, u32, Seq, Epoch)>,
    position: Position,
    bad: Option<BadLine>,
}

/// Scans a whole file, reading `chunk` bytes at a time, and more only when that is too little.
fn scan(log: &[u8], chunk: usize) -> Seen {
    let mut scanner = Scanner::new(LINE_MAX);
    let mut records = Vec::new();
    let mut length = chunk;
    let bad = loop {
        let before = scanner.position();
        let from = before.offset as usize;
        let read = &log[from..log.len().min(from.saturating_add(length))];
        let at_end = from + read.len() == log.len();
        let step = if at_end { scanner.finish(read) } else { Some(scanner.next(read)) };
        match step {
            None => break None,
            Some(Step::Record { record, span }) => {
                assert_eq!(span.offset, before.offset + u64::from(before.lacks_newline));
                let line = &log[span.offset as usize..span.offset as usize + span.bytes as usize];
                agrees(line, &record, before);
                values_come_back(log, &record, span);
                records.push((span.offset, span.bytes, record.seq, record.epoch));
                length = chunk;
            }
            Some(Step::Ignored) => length = chunk,
            Some(Step::Partial) => length *= 2,
            Some(Step::Bad(bad)) => break Some(bad),
        }
        let after = scanner.position();
        assert!(after.offset >= before.offset && after.seq >= before.seq && after.epoch >= before.epoch);
        assert!(after.synced >= before.synced && after.synced <= after.seq);
        assert!(after.mark_offset <= after.unsynced_offset && after.unsynced_offset <= after.offset);
    };
    Seen { records, position: scanner.position(), bad }
}

/// A line that a scan accepts is also good when parsed alone, with the same content.
fn agrees(line: &[u8], record: &Record<'_>, before: Position) {
    assert!(line.len() <= LINE_MAX, "a line over the limit");
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    match parse_line(text) {
        Ok(alone) => {
            assert!(line.ends_with(b"\n"), "a line without its newline is accepted");
            assert_eq!((alone.seq, alone.epoch, alone.synced), (record.seq, record.epoch, record.synced));
            assert_eq!(alone.to_operation(), record.to_operation());
            // Encoded again it has the same content, though perhaps other bytes.
            let fields: Vec<_> = record
                .fields
                .filter(|(name, _)| *name != b"After")
                .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_bytes()))
                .collect();
            let fields: Vec<_> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
            let trailer = Trailer {
                after: record.after,
                fields: &fields,
                ..Trailer::new(record.seq, record.epoch, record.synced)
            };
            push(&record.to_operation(), trailer, &mut Vec::new());
        }
        Err(_) => {
            assert!(!before.seen_trailer, "a bad line is accepted after the first trailer");
            assert!(parse_legacy(text).is_some(), "a line that nobody wrote is accepted");
            assert_eq!((record.epoch, record.synced), (Epoch(0), Seq(0)));
        }
    }
}

/// Each value can be read back from its place alone, and other bytes are not accepted for it.
fn values_come_back(log: &[u8], record: &Record<'_>, span: Span) {
    let values: Vec<_> = match record.body {
        Body::Write(pairs) => pairs.map(|(_, value)| value).collect(),
        Body::Apply(effects) => effects.filter_map(EncodedEffect::value).collect(),
        Body::Cluster(_) | Body::Epoch { .. } | Body::Delete(_) | Body::Members(_) | Body::Synced => return,
    };
    for value in values {
        let place = value.place(span);
        let (from, length) = (place.offset as usize, place.text_bytes as usize);
        let read = |from: usize| value_at(log[from..from + length].to_vec(), place, record.epoch);
        let read_back = read(from).expect("the value is there");
        assert_eq!(read_back, value.decode()[..]);
        assert_eq!(read_back.len(), place.bytes as usize);
        if length > 0 && log[from - 1..from - 1 + length] != log[from..from + length] {
            assert!(read(from - 1).is_err(), "something else is taken for the value");
        }
    }
}

fn judge(log: &[u8], bad: &BadLine, crash: CrashKind, chunk: usize) -> Verdict {
    let mut judge = Judge::new(bad.clone(), crash, LINE_MAX);
    let rest = &log[bad.offset as usize..];
    for piece in rest.chunks(chunk) {
        judge.push(piece);
        if judge.is_decided() {
            break;
        }
    }
    judge.finish()
}

fn without_evidence(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Corrupt { offset, line, cause, .. } => {
            Verdict::Corrupt { offset, line, cause, evidence: None }
        }
        torn @ Verdict::Torn { .. } => torn,
    }
}

fn check(log: &[u8], chunk: usize) {
    let seen = scan(log, log.len().max(1));
    let mut in_pieces = scan(log, chunk);
    // A hole is found before the end of its line, so its cause differs from that of the whole line.
    if let (Some(bad), Some(whole)) = (&mut in_pieces.bad, &seen.bad) {
        if log[whole.offset as usize..].contains(&0) {
            (bad.cause, bad.finished) = (whole.cause.clone(), whole.finished);
        }
    }
    assert_eq!(in_pieces, seen, "the pieces decide");
    let Some(bad) = &seen.bad else {
        assert_eq!(seen.position.offset as usize, log.len(), "something is left unread");
        return;
    };
    assert_eq!((bad.offset, bad.line), (seen.position.offset, seen.position.line + 1));
    let rest = &log[bad.offset as usize..];
    for crash in [CrashKind::SameBoot, CrashKind::MayHaveLostPower] {
        let verdict = judge(log, bad, crash, rest.len().max(1));
        // Only the amount that is read before the verdict is certain may differ.
        assert_eq!(without_evidence(judge(log, bad, crash, chunk)), without_evidence(verdict.clone()));
        match verdict {
            Verdict::Torn { offset, bytes, .. } => {
                assert_eq!((offset, bytes), (bad.offset, rest.len() as u64));
                assert!(crash != CrashKind::SameBoot || !rest.contains(&b'\n'), "a whole line is cut");
                assert!(!bad.cause.is_from_newer(), "a newer program's line is cut");
                let lines = rest.split(|byte| *byte == b'\n').filter_map(|line| parse_line(line).ok());
                let proof = lines.filter(|record| record.synced >= bad.expected_seq).count();
                assert_eq!(proof, 0, "what had been synced is cut");
                // What is left is whole.
                let left = scan(&log[..offset as usize], chunk);
                assert_eq!((left.records, left.bad), (seen.records.clone(), None));
            }
            Verdict::Corrupt { offset, line, cause, evidence } => {
                assert_eq!((offset, line, &cause), (bad.offset, bad.line, &bad.cause));
                if let Some(evidence) = evidence {
                    let witness = &log[evidence.offset as usize..];
                    let end = witness.iter().position(|byte| *byte == b'\n').unwrap_or(witness.len());
                    match parse_line(&witness[..end]) {
                        Ok(record) => assert_eq!(record.synced, evidence.synced),
                        // Its numbers count although its words do not.
                        Err(error) => assert!(
                            !matches!(error, RecordError::Checksum | RecordError::NoTrailer),
                            "a witness with a wrong checksum"
                        ),
                    }
                    assert!(evidence.synced >= bad.expected_seq && evidence.line >= bad.line);
                }
            }
        }
    }
}

/// Logs of this program and of the original one, whole and damaged.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut log = Vec::new();
    let mut put = |operation: Operation, seq, synced| {
        encode_with(&operation, Trailer::new(Seq(seq), Epoch(1), Seq(synced)), &mut log);
    };
    let bytes = Bytes::from_static;
    put(Operation::Cluster(ClusterId(7)), 1, 0);
    put(Operation::Epoch { address: "127.0.0.1:1".to_owned(), mark: None }, 2, 0);
    put(Operation::Write(vec![(bytes(b"user1"), bytes(b"Alice B. 100%"))]), 3, 2);
    put(Operation::Write(vec![(bytes(b""), bytes(b";x")), (bytes(b"\0\n"), bytes(b""))]), 4, 3);
    put(Operation::Delete(vec![bytes(b"user1"), bytes(b"user2")]), 5, 3);
    put(Operation::Synced, 5, 5);
    let file = |log: &[u8]| [&[0, 6], log].concat();
    let plain = "CLUSTER 0000000000000007 % ;1 1 0\nEPOCH 1 a ;2 1 0\nWRITE k v ;3 1 2 client=1 request=9\n\
                 WRITE k w ;9 1 3 After=3\nSYNCED % % ;9 1 9\nWRITE k v ;10 1 9 Type=x\nFLY k v ;11 1 9\n";
    let legacy = "WRITE user1 Alice B.\nREAD user1\nDELETE user1\nWRITE user2 ";
    let last = log.iter().take(log.len() - 1).rposition(|byte| *byte == b'\n').unwrap_or(0);
    let mut glued = log.clone();
    glued[last] = b' ';
    vec![
        file(&log),
        file(&log[..log.len() - 20]),
        file(&glued),
        file(legacy.as_bytes()),
        file(&[legacy.as_bytes(), b"\n", &log].concat()),
        [&[1, 6], plain.as_bytes()].concat(),
        [&[2, 9][..], &super::noise(1, 200)].concat(),
        [&[3, 9][..], &super::noise(2, 200)].concat(),
        vec![3, 40, 1, 11, 0x85, 0, 1, b'k', 1, b'v', 0xc4, 0, 1, b'k', 1, b'w', 5, 0x81, 0x82, 0, 1, b'k'],
    ]
}
