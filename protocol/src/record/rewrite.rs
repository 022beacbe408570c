//! Makes a shorter log out of a long one: of each record only the pairs that are still the latest versions.
//!
//! Owns the order and the numbers of the lines that it writes: each keeps its seq and its epoch, says by `After` which record is
//! before it, and claims no more to be on disk than it must. So versions stay what they were, and every reader of logs reads
//! it. Does no IO, and does not know which pairs are live: it is told.
//!
//! A line that says that records before it were damaged and taken out may be left out itself; then the next one that is kept says
//! it. A repair from slaves must know as long as there is the log that no deletion can be ruled out there.
//!
//! EPOCH lines are kept, each of them: they are the table of reigns. The place of a line of the original program is its number,
//! so none is left out: a write that is superseded becomes a deletion, which is short.

use super::encode::{encode_epoch_with, encode_live, encode_live_effects};
use super::{encode_with, BadLine, Body, Operation, Position, Record, Scanner, Step, Trailer, LOST};
use crate::ids::{Epoch, Seq, Version};
use std::fmt;
use std::str::FromStr;

/// Makes the lines of a compacted log. It is given the lines of the log in their order.
#[derive(Clone, Debug)]
pub struct Rewriter {
    /// Reads the log.
    scanner: Scanner,
    /// The last record that was written, or the mark that stands for it.
    seq: Seq,
    epoch: Epoch,
    /// The SYNCED of the last line that was written: it may not fall.
    synced: Seq,
    /// How many records between that line and the next one were damaged and taken out.
    lost: u64,
    lines: u64,
    bytes: u64,
}

impl Rewriter {
    /// A rewriter of a log with lines of at most so many bytes.
    pub fn new(line_bytes_max: usize) -> Self {
        Rewriter {
            scanner: Scanner::new(line_bytes_max),
            seq: Seq(0),
            epoch: Epoch(0),
            synced: Seq(0),
            lost: 0,
            lines: 0,
            bytes: 0,
        }
    }

    /// Takes the log as one that masters on several machines keep.
    #[must_use]
    pub fn with_members(self) -> Self {
        Rewriter { scanner: self.scanner.with_members(), ..self }
    }

    /// Rewrites the next lines of the log, all of them whole, and appends what is left of them to `out`. `is_live` says of each
    /// pair that they write, in their order, whether it is the latest version of its key. `damaged` are the offsets of lines
    /// to pass over: SYNCED marks that cannot be read.
    ///
    /// # Errors
    /// The first line that is bad, or unfinished. Nothing more may be asked then.
    pub fn rewrite(
        &mut self,
        lines: &[u8],
        damaged: &[u64],
        mut is_live: impl Iterator<Item = bool>,
        out: &mut Vec<u8>,
    ) -> Result<(), BadLine> {
        let mut rest = lines;
        while !rest.is_empty() {
            let (before, length) = (self.scanner.position(), out.len());
            if damaged.contains(&before.offset) {
                let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
                self.scanner.skip_line(end);
                rest = &rest[end..];
                continue;
            }
            let step = self.scanner.next(rest);
            let taken = match &step {
                Step::Record { span, .. } => span.bytes as usize,
                Step::Ignored | Step::Partial | Step::Bad(_) => {
                    memchr::memchr(b'\n', rest).map_or(0, |end| end + 1)
                }
            };
            let line = &rest[..taken];
            match step {
                Step::Record { record, .. } => {
                    self.take(line, &record, &mut is_live, out);
                }
                Step::Ignored => {
                    out.extend_from_slice(line);
                    self.lines += 1;
                }
                Step::Bad(bad) => return Err(bad),
                Step::Partial => return Err(self.scanner.unfinished()),
            }
            self.bytes += (out.len() - length) as u64;
            rest = &rest[taken..];
        }
        Ok(())
    }

    fn take(
        &mut self,
        line: &[u8],
        record: &Record<'_>,
        is_live: &mut impl Iterator<Item = bool>,
        out: &mut Vec<u8>,
    ) {
        match record.body {
            Body::Write(mut pairs) if record.epoch == Epoch(0) => match pairs.next() {
                Some((key, _)) if !is_live.next().unwrap_or(true) => {
                    out.extend_from_slice(b"DELETE ");
                    out.extend_from_slice(key.as_text());
                    out.push(b'\n');
                    self.wrote(record.seq, record.epoch);
                }
                Some(_) | None => self.keep(line, record, out),
            },
            Body::Delete(_) if record.epoch == Epoch(0) => self.keep(line, record, out),
            Body::Cluster(_) => self.keep(line, record, out),
            Body::Epoch { mark, .. } if mark.fsync.is_none() => {
                // Its checksum is the identity of the reign: not a byte may change.
                self.bridge(record, out);
                self.keep(line, record, out);
            }
            Body::Epoch { .. } => {
                self.lost = self.lost.saturating_add(lost_before(record));
                let after = (record.seq != self.seq.next()).then_some(self.seq);
                self.with_trailer(record.seq, record.epoch, after, |trailer| {
                    encode_epoch_with(record, trailer, out);
                });
                self.wrote(record.seq, record.epoch);
            }
            Body::Write(pairs) => {
                self.lost = self.lost.saturating_add(lost_before(record));
                let after = (record.seq != self.seq.next()).then_some(self.seq);
                let live = pairs.filter(|_| is_live.next().unwrap_or(true));
                let is_written = self.with_trailer(record.seq, record.epoch, after, |trailer| {
                    encode_live(live, record, trailer, out)
                });
                if is_written {
                    self.wrote(record.seq, record.epoch);
                }
            }
            Body::Members(_) => {
                self.bridge(record, out);
                self.keep(line, record, out);
            }
            Body::Apply(effects) => {
                self.lost = self.lost.saturating_add(lost_before(record));
                let after = (record.seq != self.seq.next()).then_some(self.seq);
                // Only of values it is known whether they live.
                let live =
                    effects.filter(|effect| effect.value().is_some() && is_live.next().unwrap_or(true));
                let is_written = self.with_trailer(record.seq, record.epoch, after, |trailer| {
                    encode_live_effects(live, record, trailer, out)
                });
                if is_written {
                    self.wrote(record.seq, record.epoch);
                }
            }
            // With what they deleted gone, they say nothing more than what was lost before them.
            Body::Delete(_) | Body::Synced => self.lost = self.lost.saturating_add(lost_before(record)),
        }
    }

    /// Gives the trailer of a line that is rewritten to `encode`.
    fn with_trailer<T>(
        &self,
        seq: Seq,
        epoch: Epoch,
        after: Option<Seq>,
        encode: impl FnOnce(Trailer<'_>) -> T,
    ) -> T {
        let trailer = Trailer { after, ..Trailer::new(seq, epoch, self.synced) };
        if self.lost == 0 {
            return encode(trailer);
        }
        let lost = self.lost.to_string();
        encode(Trailer { fields: &[(LOST, lost.as_bytes())], ..trailer })
    }

    fn wrote(&mut self, seq: Seq, epoch: Epoch) {
        (self.seq, self.epoch, self.lost) = (seq, epoch, 0);
        self.lines += 1;
    }

    /// Keeps a line as it is.
    fn keep(&mut self, line: &[u8], record: &Record<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(line);
        self.synced = self.synced.max(record.synced);
        self.wrote(record.seq, record.epoch);
    }

    /// A mark says which record is before one that is kept as it is, if that is left out.
    fn bridge(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        let before = record.after.unwrap_or(Seq(record.seq.0.saturating_sub(1)));
        if before > self.seq {
            self.mark(before, self.epoch, out);
        }
    }

    fn mark(&mut self, seq: Seq, epoch: Epoch, out: &mut Vec<u8>) {
        self.with_trailer(seq, epoch, Some(self.seq), |trailer| {
            encode_with(&Operation::Synced, trailer, out);
        });
        self.wrote(seq, epoch);
    }

    /// Writes that everything through the last line that was rewritten is compacted. What follows are entries that are whole. Gives
    /// the version of that line.
    pub fn end_base(&mut self, out: &mut Vec<u8>) -> Version {
        let (length, Position { seq, epoch, .. }) = (out.len(), self.scanner.position());
        let text = seq.to_string();
        let fields = [(BASE, text.as_bytes())];
        let trailer =
            Trailer { after: Some(self.seq), fields: &fields, ..Trailer::new(seq, epoch, self.synced) };
        encode_with(&Operation::Synced, trailer, out);
        self.wrote(seq, epoch);
        self.bytes += (out.len() - length) as u64;
        Version { epoch, seq }
    }

    /// Writes what joins these lines to those that follow in the log, which may then be copied as they are.
    pub fn join(&mut self, out: &mut Vec<u8>) {
        let (length, position) = (out.len(), self.scanner.position());
        if position.seq > self.seq {
            self.mark(position.seq, position.epoch, out);
        }
        self.bytes += (out.len() - length) as u64;
    }

    /// How many lines were written.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// How many bytes were written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// How many records before this one were damaged and taken out, as it says. One that says so in another way says one.
fn lost_before(record: &Record<'_>) -> u64 {
    let text = record.fields.get(LOST).map(|text| text.decode());
    text.map_or(0, |text| {
        std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
    })
}

/// The name of the field of [`base_of`].
const BASE: &str = "base";

/// The last version of the compacted part of a log that masters on several machines keep: what the mark says that ends this part.
///
/// Source: `base` in `docs/FORMATS.md`.
pub fn base_of(record: &Record<'_>) -> Option<Version> {
    let is_mark = matches!(record.body, Body::Synced);
    let text = record.fields.get(BASE).filter(|_| is_mark)?.decode();
    let seq = std::str::from_utf8(&text).ok()?.parse().ok()?;
    (record.seq == Seq(seq)).then_some(Version { epoch: record.epoch, seq: record.seq })
}

/// Where a log goes on that was compacted: what the last line of the old file says, for those that follow it.
///
/// Source: `continued` in `docs/FORMATS.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// The device and the inode of the file that replaces this one.
    pub file: (u64, u64),
    /// The place there after the last record that is here, in bytes.
    pub offset: u64,
    /// The same in lines.
    pub line: u64,
}

/// The name of its field.
pub(super) const CONTINUED: &str = "continued";

impl Continuation {
    /// Appends the mark that says it. Everything before it, through `seq`, is on disk in the other file.
    pub fn encode(&self, seq: Seq, epoch: Epoch, synced: Seq, out: &mut Vec<u8>) {
        let text = self.to_string();
        let fields = [(CONTINUED, text.as_bytes())];
        encode_with(&Operation::Synced, Trailer { fields: &fields, ..Trailer::new(seq, epoch, synced) }, out);
    }

    /// What a line says of it.
    pub fn of(record: &Record<'_>) -> Option<Self> {
        if !matches!(record.body, Body::Synced) {
            return None;
        }
        let text = record.fields.get(CONTINUED)?.decode();
        std::str::from_utf8(&text).ok()?.parse().ok()
    }
}

impl fmt::Display for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Continuation { file: (device, inode), offset, line } = self;
        write!(f, "{device}:{inode}:{offset}:{line}")
    }
}

/// The text is not a continuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoContinuation;

impl FromStr for Continuation {
    type Err = NoContinuation;

    fn from_str(text: &str) -> Result<Self, NoContinuation> {
        let mut numbers = text.split(':').map(|number| number.parse::<u64>().map_err(|_| NoContinuation));
        let mut number = || numbers.next().unwrap_or(Err(NoContinuation));
        let file = (number()?, number()?);
        let (offset, line) = (number()?, number()?);
        if numbers.next().is_some() {
            return Err(NoContinuation);
        }
        Ok(Continuation { file, offset, line })
    }
}
