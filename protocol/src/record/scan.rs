//! Reads a log line by line and checks the rules between lines. Keeps a place, never bytes.

use super::parse::{check, parse_checked, parse_legacy, parse_line, Body, Fields, LegacyLine, Record};
use super::{FileNumber, RecordError, Span, RECOVERED, REPAIR_BEGUN};
use crate::ids::{ClusterId, Epoch, Reign, Seq};
use crate::planted;

/// A place between two lines of a log, with the state after the lines before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Bytes before the place.
    pub offset: u64,
    /// Lines before the place.
    pub line: u64,
    /// The seq of the last record; 0 when there is none.
    pub seq: Seq,
    /// The epoch of the last record.
    pub epoch: Epoch,
    /// The reign of the last EPOCH record; 0, as for the original program's lines, before the first.
    pub reign: Reign,
    /// Whether that is the reign of a repair from slaves, which has not come to its end.
    pub is_half_repaired: bool,
    /// The seq through which the log is known to have been on disk.
    pub synced: Seq,
    /// The cluster; `None` before the CLUSTER record.
    pub cluster: Option<ClusterId>,
    /// Whether a line with a trailer was seen. From then on lines of the original program are bad.
    pub seen_trailer: bool,
    /// Whether the last line is a SYNCED mark that covers everything before it.
    pub ends_with_mark: bool,
    /// Where the last SYNCED mark begins that covers everything before it: the bytes before are on disk. 0 when there
    /// is none.
    pub mark_offset: u64,
    /// The bytes before this offset are known to be on disk. It is the beginning of the last group of lines, or of the
    /// SYNCED mark before that group, which was not synced by itself. It is never too high, but may be lower than
    /// necessary where syncs lag.
    pub unsynced_offset: u64,
    /// Whether the last line, one of the original program, has no newline: then one must be written before anything is
    /// appended.
    pub lacks_newline: bool,
}

impl Position {
    /// The seq that the next record must have, unless it says that it comes after a gap.
    pub fn expected_seq(&self) -> Seq {
        Seq(self.seq.0.saturating_add(1))
    }
}

/// The next step of a scan.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// A good line.
    Record {
        /// Its content. Lines of the original program get the seq of their place and epoch 0.
        record: Record<'a>,
        /// The place of the line.
        span: Span,
    },
    /// A READ of the original program.
    Ignored,
    /// There is no newline yet (or no byte): more bytes are needed. The position stays.
    Partial,
    /// A bad line. The position stays.
    Bad(BadLine),
}

/// A line that breaks the format or the order of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Bytes before it.
    pub offset: u64,
    /// Its number; the first line has 1.
    pub line: u64,
    /// What is wrong with it.
    pub cause: RecordError,
    /// The seq that a good record in its place would have.
    pub expected_seq: Seq,
    /// Whether its newline was seen.
    pub finished: bool,
    /// Whether it is before the first line with a trailer.
    pub before_trailer: bool,
}

/// Parses a log into records, one line per call, in memory that does not depend on the log's length.
#[derive(Clone, Debug)]
pub struct Scanner {
    position: Position,
    /// The position at its `unsynced_offset`.
    durable: Position,
    line_bytes_max: usize,
    file: FileNumber,
    /// Whether the log may be one that the masters of several machines keep.
    takes_members: bool,
}

impl Scanner {
    /// Begins at the start of a log. A line of more than `line_bytes_max` bytes is bad: see
    /// [`line_bytes_max`](super::line_bytes_max).
    pub fn new(line_bytes_max: usize) -> Self {
        Scanner::resume(Position::default(), line_bytes_max)
    }

    /// Goes on where another scanner was. The caller must not use [`durable`](Self::durable).
    pub fn resume(position: Position, line_bytes_max: usize) -> Self {
        Scanner::resume_from(position, position, line_bytes_max)
    }

    /// Goes on where another scanner was; both positions are from that scanner.
    pub fn resume_from(position: Position, durable: Position, line_bytes_max: usize) -> Self {
        // A span's length is a u32.
        let line_bytes_max = line_bytes_max.min(u32::MAX as usize);
        Scanner { position, durable, line_bytes_max, file: FileNumber::default(), takes_members: false }
    }

    /// Takes MEMBERS records. To everybody else they are of a program that is not known, so that a log which masters of
    /// several machines keep is never taken for one file that one of them may append to.
    #[must_use]
    pub fn with_members(self) -> Self {
        Scanner { takes_members: true, ..self }
    }

    /// Gives places in a file of that number.
    #[must_use]
    pub fn in_file(self, file: FileNumber) -> Self {
        Scanner { file, ..self }
    }

    /// The end of everything parsed so far.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The place at the position's `unsynced_offset`: everything before it is known to be on disk, and a scanner that
    /// begins there reads the rest again.
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// The longest line, in bytes.
    pub fn line_bytes_max(&self) -> usize {
        self.line_bytes_max
    }

    /// After `Bad`: whether the bad line can only have been a SYNCED mark, because the good line after it has the next
    /// seq, so that no record is missing. If so, the mark is skipped. `bytes` are those of the last call, or more.
    /// `None` when they do not hold the whole line after the bad one.
    pub fn pass_damaged_mark(&mut self, bytes: &[u8]) -> Option<bool> {
        if !self.position.seen_trailer || self.position.lacks_newline {
            return Some(false);
        }
        let within = &bytes[..bytes.len().min(self.line_bytes_max)];
        let Some(end) = memchr::memchr(b'\n', within) else { return Some(false) };
        let next = &bytes[end + 1..];
        let within = &next[..next.len().min(self.line_bytes_max)];
        let Some(next_end) = memchr::memchr(b'\n', within) else {
            return (next.len() >= self.line_bytes_max).then_some(false);
        };
        let follows = parse_line(&next[..next_end]).is_ok_and(|record| self.admit(&record).is_ok());
        if follows {
            self.skip_line(end + 1);
        }
        Some(follows)
    }

    /// Takes the next line as [`next`](Self::next) does, but skips damaged marks.
    pub fn next_past_marks<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let start = self.position.offset;
        loop {
            let rest = &bytes[(self.position.offset - start) as usize..];
            match self.next(rest) {
                Step::Bad(_) if self.pass_damaged_mark(rest) == Some(true) => {}
                step @ (Step::Record { .. } | Step::Ignored | Step::Partial | Step::Bad(_)) => return step,
            }
        }
    }

    /// Takes the next line. `bytes` begins at the position's offset and goes as far as the caller has read. To stay
    /// within linear time, a caller that gets `Partial` should double the bytes that it gives.
    #[inline]
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let mut bytes = bytes;
        if self.position.lacks_newline {
            match bytes.first() {
                None => return Step::Partial,
                Some(b'\n') => {
                    self.position.lacks_newline = false;
                    self.position.offset += 1;
                    bytes = &bytes[1..];
                }
                Some(_) => return Step::Bad(self.bad(RecordError::Unfinished, false)),
            }
        }
        let within = &bytes[..bytes.len().min(self.line_bytes_max)];
        let Some(end) = memchr::memchr(b'\n', within) else { return self.without_newline(bytes) };
        self.take(&bytes[..end], end + 1)
    }

    /// Takes the rest of a file that ends at the end of `rest`: nothing (`None`), a last line of the original program
    /// without a newline, which is good, or an unfinished line, which is bad.
    pub fn finish<'a>(&mut self, rest: &'a [u8]) -> Option<Step<'a>> {
        let step = match self.next(rest) {
            Step::Partial => match self.finish_legacy(rest) {
                Some(step) => step,
                None if rest.is_empty() || self.position.lacks_newline => return None,
                None => Step::Bad(self.bad(RecordError::Unfinished, false)),
            },
            step @ (Step::Record { .. } | Step::Ignored | Step::Bad(_)) => step,
        };
        Some(step)
    }

    /// Accepts the last line of a log of the original program without a newline, as that program may leave it. `None`
    /// when `rest` is not such a line.
    pub fn finish_legacy<'a>(&mut self, rest: &'a [u8]) -> Option<Step<'a>> {
        let whole = !self.position.seen_trailer && !self.position.lacks_newline && check(rest).is_err();
        if !whole || memchr::memchr(b'\n', rest).is_some() || parse_legacy(rest).is_none() {
            return None;
        }
        let step = self.take(rest, rest.len());
        self.position.lacks_newline = true;
        Some(step)
    }

    /// Tells a line that is still being written from one that stays bad whatever follows.
    fn without_newline(&self, bytes: &[u8]) -> Step<'static> {
        // A hole reads as zeros. No line holds a zero, so the end of a long hole need not be read.
        let hole = if self.position.seen_trailer {
            memchr::memchr(0, &bytes[..bytes.len().min(self.line_bytes_max)]).is_some()
        } else {
            bytes.first() == Some(&0)
        };
        if hole {
            Step::Bad(self.bad(RecordError::NoTrailer, false))
        } else if bytes.len() >= self.line_bytes_max {
            Step::Bad(self.bad(RecordError::TooLong(self.line_bytes_max), false))
        } else {
            Step::Partial
        }
    }

    fn take<'a>(&mut self, line: &'a [u8], bytes: usize) -> Step<'a> {
        let checked = match check(line) {
            Ok(checked) => checked,
            Err(RecordError::NoTrailer | RecordError::Checksum) if !self.position.seen_trailer => {
                return self.take_legacy(line, bytes);
            }
            Err(cause) => return Step::Bad(self.bad(cause, true)),
        };
        match parse_checked(checked).and_then(|record| self.admit(&record).map(|()| record)) {
            Ok(record) => Step::Record { record, span: self.advance(&record, bytes) },
            Err(cause) => Step::Bad(self.bad(cause, true)),
        }
    }

    fn take_legacy<'a>(&mut self, line: &'a [u8], bytes: usize) -> Step<'a> {
        match parse_legacy(line) {
            Some(LegacyLine::Read) => {
                self.position.offset += bytes as u64;
                self.position.line += 1;
                Step::Ignored
            }
            Some(LegacyLine::Operation(body)) => {
                let span = Span { file: self.file, offset: self.position.offset, bytes: bytes as u32 };
                self.position.seq = self.position.expected_seq();
                self.position.offset += bytes as u64;
                self.position.line += 1;
                let record = Record {
                    seq: self.position.seq,
                    epoch: Epoch(0),
                    synced: Seq(0),
                    after: None,
                    expires: None,
                    body,
                    fields: Fields::default(),
                };
                Step::Record { record, span }
            }
            None => Step::Bad(self.bad(RecordError::Foreign, true)),
        }
    }

    /// Checks a well-formed line against the lines before it.
    fn admit(&self, record: &Record<'_>) -> Result<(), RecordError> {
        let before = &self.position;
        if matches!(record.body, Body::Members(_)) && !self.takes_members {
            return Err(RecordError::Operation("MEMBERS".to_owned()));
        }
        let is_cluster = matches!(record.body, Body::Cluster(_));
        match (is_cluster, before.seen_trailer) {
            (true, true) => return Err(RecordError::SecondCluster),
            (false, false) => return Err(RecordError::NoCluster),
            (true, false) | (false, true) => {}
        }
        let is_mark = matches!(record.body, Body::Synced);
        let expected = if is_mark { before.seq } else { before.expected_seq() };
        let follows = match record.after {
            None => record.seq == expected,
            Some(after) => after == before.seq && record.seq >= expected,
        };
        // The highest seq has no successor.
        if !follows || (!is_mark && record.seq == before.seq) {
            return Err(RecordError::Seq { expected, found: record.seq });
        }
        if record.epoch < before.epoch {
            return Err(RecordError::EpochFell { before: before.epoch, found: record.epoch });
        }
        // Every reign has its own epoch. In the previous version the epoch could rise within a reign.
        if let Body::Epoch { mark, .. } = record.body {
            if mark.fsync.is_some() && record.epoch <= before.reign.epoch {
                return Err(RecordError::EpochFell { before: before.reign.epoch, found: record.epoch });
            }
        }
        let synced_max = if is_mark { record.seq } else { before.seq };
        if record.synced < before.synced || record.synced > synced_max {
            return Err(RecordError::Synced { low: before.synced, high: synced_max, found: record.synced });
        }
        Ok(())
    }

    fn advance(&mut self, record: &Record<'_>, bytes: usize) -> Span {
        let front = self.position;
        let position = &mut self.position;
        let span = Span { file: self.file, offset: position.offset, bytes: bytes as u32 };
        let before = position.seq;
        position.seq = record.seq;
        position.epoch = record.epoch;
        position.synced = record.synced;
        position.seen_trailer = true;
        let follows_mark = position.ends_with_mark;
        position.ends_with_mark = matches!(record.body, Body::Synced) && record.synced == record.seq;
        if position.ends_with_mark {
            position.mark_offset = position.offset;
        }
        // A mark says that everything before it is on disk. The mark itself reaches the disk with the next group.
        if position.ends_with_mark || (record.synced == before && !follows_mark) {
            position.unsynced_offset = position.offset;
            self.durable = Position { unsynced_offset: front.offset, ..front };
        }
        planted!(MarkNotWrittenAgain => {
            if position.ends_with_mark {
                position.unsynced_offset = position.offset + bytes as u64;
            } else if record.synced == before {
                position.unsynced_offset = position.offset;
            }
        });
        match record.body {
            Body::Cluster(id) => position.cluster = Some(id),
            Body::Epoch { address, mark } => {
                position.reign = Reign { epoch: record.epoch, id: mark.id };
                position.is_half_repaired = address.is(REPAIR_BEGUN.as_bytes());
            }
            // Its EPOCH record is lost: that of a repair, or of a reign that has served what a repair had left.
            Body::Write(_) | Body::Delete(_) | Body::Apply(_) if record.epoch > position.reign.epoch => {
                position.is_half_repaired = record.fields.get(RECOVERED).is_some();
            }
            Body::Write(_) | Body::Delete(_) | Body::Apply(_) | Body::Members(_) | Body::Synced => {}
        }
        position.offset += bytes as u64;
        position.line += 1;
        planted!(MarkNotWrittenAgain => {
            if position.ends_with_mark {
                self.durable = *position;
            }
        });
        span
    }

    /// Passes over a line of so many bytes, a mark that cannot be read.
    pub(super) fn skip_line(&mut self, bytes: usize) {
        self.position.offset += bytes as u64;
        self.position.line += 1;
        self.position.ends_with_mark = false;
    }

    /// The line that begins here, as one that has no end.
    pub(super) fn unfinished(&self) -> BadLine {
        self.bad(RecordError::Unfinished, false)
    }

    fn bad(&self, cause: RecordError, finished: bool) -> BadLine {
        BadLine {
            offset: self.position.offset,
            line: self.position.line + 1,
            cause,
            expected_seq: self.position.expected_seq(),
            finished,
            before_trailer: !self.position.seen_trailer,
        }
    }
}
