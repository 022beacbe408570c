//! Parses a log part by part, reading each byte once.
//!
//! Owns a place in a log and the bytes read after it that are not parsed yet. Does no IO: it says what it wants to
//! read, and is given the bytes. So the disk's thread can do all the work of reading, checksums and parsing, and an
//! actor gets only the changes to the directory.

use crate::ids::{Reign, Seq, UnixMillis, Version};
use crate::machine::master::ReignRecord;
use crate::planted;
use crate::record::{
    base_of, BadLine, Body, ClockMark, Continuation, EncodedEffect, FileNumber, Place, Position, Record,
    Scanner, Span, Step, SyncMode,
};
use crate::stored_key::StoredKey;

/// How much is read at once, in bytes. Also the length of a part, unless a single line is longer. What one part does to the
/// directory fits into a processor's cache while it is on its way from the file's thread.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// How much is read first, in bytes: whoever follows a log finds little each time, and room is zeroed before it is read into.
const FIRST_READ_BYTES: usize = 64 * 1024;

/// How many bytes before a place are compared to tell whether the log there is still the same.
const TAIL_BYTES: usize = 64;

/// A place in a log, and what is known of it.
#[derive(Clone, Debug, Default)]
pub struct LogPlace {
    /// The end of the last line that was parsed.
    pub position: Position,
    /// The last place before it through which the log is known to be on disk.
    pub durable: Position,
    /// The bytes before it. If they differ in the file, the log was cut and written again. Empty when they are not
    /// known.
    pub tail: Vec<u8>,
}

impl LogPlace {
    /// A place in a log that is durable up to there.
    pub fn durable(position: Position) -> Self {
        LogPlace { position, durable: position, tail: Vec::new() }
    }
}

/// What a part of the log does to the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// A key has a new version.
    Put {
        /// The key that was written.
        key: StoredKey,
        /// Its new version.
        version: Version,
        /// Where the value stands.
        place: Place,
        /// When it expires, if it does.
        expires: Option<UnixMillis>,
    },
    /// A key is gone.
    Delete {
        /// The key that was deleted.
        key: StoredKey,
    },
    /// A reign began with this record.
    Reign(ReignRecord),
    /// The loss of a reign was accepted.
    GivenUp(Reign),
    /// What time it was when a reign began.
    Time(ClockMark),
}

impl Replay {
    /// The key that it changes.
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Replay::Put { key, .. } | Replay::Delete { key } => Some(key),
            Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => None,
        }
    }
}

/// One parsed part of a log.
#[derive(Debug, Default)]
pub struct Part {
    /// The changes to the directory, in the order of the lines.
    pub changes: Vec<Replay>,
    /// Its bytes, if they are kept.
    pub bytes: Vec<u8>,
    /// The bad line that follows it, if one does.
    pub bad: Option<BadLine>,
    /// Whether the end was reached.
    pub at_end: bool,
    /// Whether the bytes before the place have changed; then nothing was parsed.
    pub lost: bool,
    /// The offsets of damaged SYNCED marks that were skipped.
    pub damaged_marks: Vec<u64>,
    /// Where the log goes on in another file, if the last line says so.
    pub continued: Option<Continuation>,
    /// Its records, if the log is one that masters on several machines keep.
    pub seen: Option<Box<EntriesSeen>>,
    /// Whether it ends where it was to end: see [`LogScan::through`].
    pub is_through: bool,
}

/// The records of a part of a log that masters on several machines keep.
#[derive(Debug, Default)]
pub struct EntriesSeen {
    /// All of them.
    pub entries: Vec<EntrySeen>,
    /// The texts of the MEMBERS records among them, after the word.
    pub members: Vec<(Seq, Vec<u8>)>,
    /// Where the compacted part ends, if it ends here.
    pub base: Option<BaseSeen>,
    /// The version of the last line that says that records before it are left out, if the compacted part does not end after it.
    pub gap: Option<Version>,
}

/// The end of the compacted part of a log that masters on several machines keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseSeen {
    /// The last version that is in no entry of the log; (0, 0) when all are.
    pub version: Version,
    /// Bytes of the file through the mark that says so.
    pub end: u64,
}

/// A record of a log that masters on several machines keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntrySeen {
    /// Its version.
    pub version: Version,
    /// Bytes of the file before its line.
    pub offset: u64,
    /// How many of the part's changes are its.
    pub changes: usize,
}

/// What a [`LogScan`] wants next.
#[derive(Debug)]
pub enum Next {
    /// To be given these bytes, by [`LogScan::fill`].
    Read {
        /// The first byte that is wanted.
        offset: u64,
        /// How many bytes; fewer only at the end of the file.
        length: usize,
    },
    /// To hand out this part.
    Part(Part),
}

/// A log that is being parsed.
#[derive(Debug)]
pub struct LogScan {
    scanner: Scanner,
    /// What was read from `buffer_offset` on. The bytes before the scanner's place are parsed already.
    buffer: Vec<u8>,
    buffer_offset: u64,
    /// How much is read next if no line is longer.
    read_bytes: usize,
    /// Whether the buffer ends where the file ends.
    ended: bool,
    /// Whether more must be read before anything can be parsed.
    starved: bool,
    tail: Vec<u8>,
    tail_checked: bool,
    /// Nothing is read beyond this, as if the file ended there.
    end: Option<u64>,
    /// Whether the file's end ends the last line of a log of the original program.
    finishes: bool,
    keeps_bytes: bool,
    with_members: bool,
    /// A part ends after the record with this seq.
    through: Option<Seq>,
}

impl LogScan {
    /// A scan from `place` on.
    pub fn new(place: &LogPlace, line_bytes_max: usize) -> Self {
        LogScan {
            scanner: Scanner::resume_from(place.position, place.durable, line_bytes_max),
            buffer: Vec::new(),
            buffer_offset: place.position.offset,
            read_bytes: FIRST_READ_BYTES,
            ended: false,
            starved: true,
            tail: place.tail.clone(),
            tail_checked: place.tail.is_empty(),
            end: None,
            finishes: false,
            keeps_bytes: false,
            with_members: false,
            through: None,
        }
    }

    /// Reads a log that masters on several machines keep, and tells its records one by one.
    #[must_use]
    pub fn with_members(self) -> Self {
        LogScan { scanner: self.scanner.with_members(), with_members: true, ..self }
    }

    /// Gives places in a file of that number.
    #[must_use]
    pub fn in_file(self, file: FileNumber) -> Self {
        LogScan { scanner: self.scanner.in_file(file), ..self }
    }

    /// Takes the end of the file as the end of the log: a last line of the original program needs no newline.
    #[must_use]
    pub fn finishing(self) -> Self {
        LogScan { finishes: true, ..self }
    }

    /// Stops at `end`.
    #[must_use]
    pub fn up_to(self, end: u64) -> Self {
        LogScan { end: Some(end), finishes: true, ..self }
    }

    /// Ends a part after the record with this seq, or the first one after it, once.
    #[must_use]
    pub fn through(self, seq: Seq) -> Self {
        LogScan { through: Some(seq), ..self }
    }

    /// Goes on to `end`, after it was read to an earlier one.
    pub fn go_on_to(&mut self, end: u64) {
        self.end = Some(end);
        self.ended = false;
        self.starved = true;
    }

    /// Stops at `end`, and keeps the bytes of the lines that it parses.
    #[must_use]
    pub fn keeping_bytes_to(self, end: u64) -> Self {
        LogScan { end: Some(end), keeps_bytes: true, finishes: true, ..self }
    }

    /// The end of everything parsed so far.
    pub fn place(&self) -> LogPlace {
        LogPlace {
            position: self.scanner.position(),
            durable: self.scanner.durable(),
            tail: self.tail.clone(),
        }
    }

    /// The position of that place.
    pub fn position(&self) -> Position {
        self.scanner.position()
    }

    fn taken(&self) -> usize {
        self.scanner.position().offset.saturating_sub(self.buffer_offset) as usize
    }

    /// Says what to do next.
    pub fn advance(&mut self) -> Next {
        if self.starved && !self.ended {
            return self.read_more();
        }
        if !self.tail_checked {
            if !self.buffer.starts_with(&self.tail) {
                self.forget_buffer();
                return Next::Part(Part { lost: true, ..Part::default() });
            }
            self.tail_checked = true;
        }
        let begins = self.taken();
        let mut part = Part::default();
        loop {
            let taken = self.taken();
            if taken - begins >= CHUNK_BYTES {
                return self.tell(part, begins);
            }
            let rest = &self.buffer[taken..];
            let step = if self.ended && self.finishes {
                self.scanner.finish(rest).unwrap_or(Step::Partial)
            } else {
                self.scanner.next(rest)
            };
            match step {
                Step::Record { record, span } => {
                    part.continued = Continuation::of(&record);
                    let before = part.changes.len();
                    replay(&record, span, &mut part.changes);
                    if self.with_members {
                        let changes = part.changes.len() - before;
                        see(&record, (span, changes), part.seen.get_or_insert_default());
                    }
                    let seq = record.seq;
                    if self.through.take_if(|through| seq >= *through).is_some() {
                        part.is_through = true;
                        return self.tell(part, begins);
                    }
                }
                Step::Ignored => {}
                Step::Partial if self.ended => {
                    part.at_end = true;
                    return self.tell(part, begins);
                }
                Step::Partial if taken > begins => {
                    self.starved = true;
                    return self.tell(part, begins);
                }
                Step::Partial => return self.read_more(),
                Step::Bad(bad) => {
                    let at = bad.offset;
                    let rest = &self.buffer[self.taken()..];
                    match self.scanner.pass_damaged_mark(rest) {
                        Some(true) => part.damaged_marks.push(at),
                        // Bytes that are not read yet may show that nothing is missing.
                        None if !self.ended && self.taken() == begins => return self.read_more(),
                        None if !self.ended => {
                            self.starved = true;
                            return self.tell(part, begins);
                        }
                        Some(false) | None => {
                            part.bad = Some(bad);
                            part.at_end = self.ended;
                            return self.tell(part, begins);
                        }
                    }
                }
            }
        }
    }

    /// Takes the bytes that were read when [`Next::Read`] asked for `length` bytes.
    pub fn fill(&mut self, bytes: &[u8], length: usize) {
        self.buffer.extend_from_slice(bytes);
        self.filled(bytes.len(), length);
    }

    /// The same for a caller that reads straight into the buffer. `read` is given the free room, and returns how much
    /// of it was filled.
    ///
    /// # Errors
    /// The error of `read`.
    pub fn fill_by<E>(
        &mut self,
        length: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let before = self.buffer.len();
        self.buffer.resize(before + length, 0);
        let filled = read(&mut self.buffer[before..])?;
        self.buffer.truncate(before + filled);
        self.filled(filled, length);
        Ok(())
    }

    fn filled(&mut self, filled: usize, length: usize) {
        let end = self.buffer_offset + self.buffer.len() as u64;
        self.ended = filled < length || self.end.is_some_and(|limit| end >= limit);
        self.starved = false;
        self.read_bytes = CHUNK_BYTES;
    }

    fn read_more(&mut self) -> Next {
        if self.buffer.is_empty() {
            let tail = if self.tail_checked { 0 } else { self.tail.len() };
            self.buffer_offset = self.scanner.position().offset - tail as u64;
        } else if self.tail_checked {
            let taken = self.taken();
            self.buffer.drain(..taken);
            self.buffer_offset += taken as u64;
        }
        // Doubling keeps the search for the end of a long line linear.
        let doubled =
            self.buffer.len().clamp(self.read_bytes, self.scanner.line_bytes_max().max(CHUNK_BYTES));
        let offset = self.buffer_offset + self.buffer.len() as u64;
        let left = self.end.map_or(u64::MAX, |end| end.saturating_sub(offset));
        self.starved = true;
        Next::Read { offset, length: doubled.min(usize::try_from(left).unwrap_or(usize::MAX)) }
    }

    /// Gives a part whose lines begin at `begins` in the buffer.
    fn tell(&mut self, mut part: Part, begins: usize) -> Next {
        let taken = self.taken();
        let lines = &self.buffer[begins..taken];
        if !lines.is_empty() {
            if lines.len() < TAIL_BYTES {
                self.tail.extend_from_slice(lines);
            } else {
                self.tail.clear();
                self.tail.extend_from_slice(&lines[lines.len() - TAIL_BYTES..]);
            }
            let spare = self.tail.len().saturating_sub(TAIL_BYTES);
            self.tail.drain(..spare);
        }
        if self.keeps_bytes {
            part.bytes = lines.to_vec();
        }
        if part.at_end || part.bad.is_some() {
            // These bytes may be overwritten before the next read.
            self.forget_buffer();
        }
        Next::Part(part)
    }

    fn forget_buffer(&mut self) {
        // Also frees the memory of a long line.
        self.buffer = Vec::new();
        self.read_bytes = FIRST_READ_BYTES;
        self.ended = false;
        self.starved = true;
        self.tail_checked = self.tail.is_empty();
    }
}

/// Notes a line of a log that masters on several machines keep.
fn see(record: &Record<'_>, (span, changes): (Span, usize), seen: &mut EntriesSeen) {
    let version = Version { epoch: record.epoch, seq: record.seq };
    let offset = span.offset;
    if let Some(version) = base_of(record) {
        seen.base = Some(BaseSeen { version, end: offset + u64::from(span.bytes) });
        seen.gap = None;
    } else if record.after.is_some() {
        seen.gap = Some(version);
    }
    if matches!(record.body, Body::Synced) {
        return;
    }
    seen.entries.push(EntrySeen { version, offset, changes });
    if let Body::Members(text) = record.body {
        seen.members.push((record.seq, text.to_vec()));
    }
}

/// Adds to `changes` what a record does to the directory.
pub fn replay(record: &Record<'_>, span: Span, changes: &mut Vec<Replay>) {
    let version = Version { epoch: record.epoch, seq: record.seq };
    match record.body {
        Body::Write(pairs) => {
            for (key, value) in pairs {
                let (place, expires) = (value.place(span), record.expires);
                changes.push(Replay::Put { key: key.decode().into(), version, place, expires });
            }
        }
        Body::Delete(_) if planted!(ReplayForgetsDelete) => {}
        Body::Delete(keys) => {
            changes.extend(keys.map(|key| Replay::Delete { key: key.decode().into() }));
        }
        Body::Apply(effects) => {
            let is_whole = !planted!(ReplayHalvesApply);
            let first = effects.take(if is_whole { usize::MAX } else { 1 });
            changes.extend(first.map(|effect| match effect {
                EncodedEffect::Set { key, value, expires } => {
                    Replay::Put { key: key.decode().into(), version, place: value.place(span), expires }
                }
                EncodedEffect::Del { key } => Replay::Delete { key: key.decode().into() },
            }));
        }
        Body::Epoch { mark, .. } => {
            let reign = Reign { epoch: record.epoch, id: mark.id };
            let durable = mark.fsync == Some(SyncMode::Always);
            changes.push(Replay::Reign(ReignRecord { reign, first: record.seq, durable }));
            changes.extend(mark.given_up.map(Replay::GivenUp));
            let clock = record.fields.get(ClockMark::FIELD).map(|text| text.decode());
            let clock = clock.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok());
            changes.extend(clock.map(Replay::Time));
        }
        Body::Cluster(_) | Body::Members(_) | Body::Synced => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClusterId, Epoch};
    use crate::record::{encode, line_bytes_max, Operation};

    const LINE_MAX: usize = line_bytes_max(8 << 20);

    /// Lines, some of them many times as long as a chunk, with a mark after every third.
    fn log() -> Vec<u8> {
        let mut log = Vec::new();
        encode(&Operation::Cluster(ClusterId(7)), Seq(1), Epoch(1), Seq(0), &mut log);
        let mut synced = 0;
        for seq in 2..60u64 {
            let bytes = if seq % 10 == 0 { seq as usize * 60_000 } else { seq as usize };
            let value = vec![b'a' + (seq % 26) as u8; bytes].into();
            let pairs = vec![(format!("key{seq}").into(), value)];
            encode(&Operation::Write(pairs), Seq(seq), Epoch(1), Seq(synced), &mut log);
            if seq % 3 == 0 {
                synced = seq;
                encode(&Operation::Synced, Seq(seq), Epoch(1), Seq(seq), &mut log);
            }
        }
        log
    }

    struct Told {
        changes: Vec<Replay>,
        bytes: Vec<u8>,
        bad: Option<BadLine>,
        lost: bool,
        marks: Vec<u64>,
        place: LogPlace,
        /// How many bytes were read.
        read: usize,
    }

    fn run(mut scan: LogScan, log: &[u8]) -> Told {
        let (mut told, mut read) = (Part::default(), 0);
        loop {
            match scan.advance() {
                Next::Read { offset, length } => {
                    let from = (offset as usize).min(log.len());
                    let bytes = &log[from..log.len().min(from + length)];
                    read += bytes.len();
                    scan.fill(bytes, length);
                }
                Next::Part(part) => {
                    told.changes.extend(part.changes);
                    told.bytes.extend(part.bytes);
                    told.damaged_marks.extend(part.damaged_marks);
                    if part.at_end || part.bad.is_some() || part.lost {
                        let Part { changes, bytes, damaged_marks: marks, .. } = told;
                        let place = scan.place();
                        return Told { changes, bytes, bad: part.bad, lost: part.lost, marks, place, read };
                    }
                }
            }
        }
    }

    #[test]
    fn a_follower_reads_a_small_part_first_and_large_ones_where_there_is_much() {
        let log = log();
        let mut scan = start();
        let mut lengths = Vec::new();
        loop {
            match scan.advance() {
                Next::Read { offset, length } => {
                    lengths.push(length);
                    let from = (offset as usize).min(log.len());
                    scan.fill(&log[from..log.len().min(from + length)], length);
                }
                Next::Part(part) if part.at_end => break,
                Next::Part(_) => {}
            }
        }
        assert_eq!(lengths[0], FIRST_READ_BYTES);
        assert!(lengths[1..].iter().all(|length| *length >= CHUNK_BYTES), "{lengths:?}");
        assert!(matches!(scan.advance(), Next::Read { length: FIRST_READ_BYTES, .. }), "it has caught up");
    }

    fn start() -> LogScan {
        LogScan::new(&LogPlace::default(), LINE_MAX)
    }

    #[test]
    fn every_byte_is_read_once_however_long_the_lines_are() {
        let log = log();
        let told = run(start(), &log);
        assert_eq!((told.bad, told.lost, told.changes.len()), (None, false, 58));
        assert_eq!(told.place.position.offset as usize, log.len());
        assert_eq!(told.read, log.len());
    }

    #[test]
    fn what_is_kept_is_what_was_taken_from_the_durable_place_to_the_end() {
        let log = log();
        let place = run(start(), &log).place;
        assert!(place.durable.offset < place.position.offset);
        let from = LogPlace { tail: Vec::new(), ..LogPlace::durable(place.durable) };
        let end = place.position.offset;
        let again = run(LogScan::new(&from, LINE_MAX).keeping_bytes_to(end), &log);
        assert_eq!(again.bytes, log[place.durable.offset as usize..]);
        assert_eq!(again.place.position, place.position);
    }

    #[test]
    fn a_place_is_lost_when_the_bytes_before_it_were_rewritten() {
        let mut log = log();
        let place = run(start(), &log).place;
        log.extend_from_slice(b"more");
        let same = run(LogScan::new(&place, LINE_MAX), &log);
        assert!(!same.lost && same.bad.is_none());
        let at = place.position.offset as usize - 3;
        log[at] ^= 1;
        assert!(run(LogScan::new(&place, LINE_MAX), &log).lost);
        log.truncate(at);
        assert!(run(LogScan::new(&place, LINE_MAX), &log).lost);
    }

    #[test]
    fn a_damaged_mark_hides_nothing_and_a_damaged_record_does() {
        let log = log();
        let lines: Vec<(usize, usize)> = {
            let ends: Vec<usize> = memchr::memchr_iter(b'\n', &log).map(|end| end + 1).collect();
            std::iter::once(0).chain(ends.iter().copied()).zip(ends.iter().copied()).collect()
        };
        for (number, (from, to)) in lines.iter().copied().enumerate() {
            let is_mark = log[from..].starts_with(b"SYNCED");
            let is_last = number + 1 == lines.len();
            let mut damaged = log.clone();
            damaged[from + (to - from) / 2] ^= 4;
            let told = run(start(), &damaged);
            if is_mark && !is_last {
                assert_eq!((told.bad, told.marks), (None, vec![from as u64]), "line {number}");
                assert_eq!(told.changes.len(), 58);
            } else {
                assert_eq!(told.bad.map(|bad| bad.offset), Some(from as u64), "line {number}");
            }
        }
    }
}
