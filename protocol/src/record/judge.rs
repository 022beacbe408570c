//! Tells a torn tail from corruption by what follows the bad line. Reads the rest of the log in bounded memory.

use super::parse::{check, check_end_of};
use super::{BadLine, RecordError};
use crate::ids::Seq;
use crate::planted;

/// What can have happened to the log since it was last known to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// The machine kept running, so everything that was written is there unless the disk failed. Only two lines can be
    /// torn: the last one, if its write was cut short, and one with a hole.
    SameBoot,
    /// The power may have gone: whatever was not synced may be missing, garbled or zero, in any order.
    MayHaveLostPower,
}

/// The unit in which bytes reach a disk or do not: a divisor of every page and sector size.
const SECTOR_BYTES: u64 = 512;

/// At least this many zeros up to the end of a sector (fewer, if the line begins with them) are a hole: bytes that were written
/// and never reached the disk. Either the file was extended and then the write of its page failed, or the disk was reset to a
/// snapshot. So what was not synced may be missing although the machine kept running. Other damage looks different.
const HOLE_BYTES_MIN: u64 = 16;

/// A good line which proves that the bad one had been on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Bytes before the good line.
    pub offset: u64,
    /// The number of the line in which it was found; the first line has 1. It is its own line, or an earlier one that
    /// lost its newline.
    pub line: u64,
    /// The seq through which it says the log was on disk.
    pub synced: Seq,
}

/// What a bad line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing from here on was ever known to be on disk, and so nothing was acknowledged as durable: it may be cut.
    Torn {
        /// Bytes before the cut.
        offset: u64,
        /// Bytes after the cut.
        bytes: u64,
        /// Lines after the cut, an unfinished one included.
        lines: u64,
    },
    /// Acknowledged data is damaged, or the file is not a log. It must not be cut unless an operator asks for it.
    Corrupt {
        /// Bytes before the bad line.
        offset: u64,
        /// Its number; the first line has 1.
        line: u64,
        /// What is wrong with it.
        cause: RecordError,
        /// The line that proves it; `None` when it follows from the kind of crash, or from a line that no crash
        /// explains.
        evidence: Option<Evidence>,
    },
}

/// Judges one bad line. It is fed all bytes from the bad line's first one to the end of the file.
#[derive(Clone, Debug)]
pub struct Judge {
    bad: BadLine,
    crash: CrashKind,
    line_bytes_max: usize,
    /// The beginning of the line that the last chunk left unfinished, up to the longest length of a good line.
    carry: Vec<u8>,
    /// Bytes of that line, including those that were not kept.
    carry_bytes: u64,
    /// Whether the kept part has a zero byte, which no good line has.
    carry_has_hole: bool,
    /// Bytes and finished lines so far.
    bytes: u64,
    newlines: u64,
    evidence: Option<Evidence>,
    /// Whether the file begins with something that no crash of this program leaves at the start of a log.
    foreign: bool,
    /// Zero bytes at the end of what was read of the bad line.
    zeros: u64,
    /// Whether the bad line has a hole: see [`HOLE_BYTES_MIN`].
    has_hole: bool,
    /// Whether a line is too long to be checked, and could be good under a higher limit.
    oversized: bool,
}

impl Judge {
    /// Begins with a bad line that a [`Scanner`](super::Scanner) with the same `line_bytes_max` found.
    pub fn new(bad: BadLine, crash: CrashKind, line_bytes_max: usize) -> Self {
        Judge {
            bad,
            crash,
            line_bytes_max,
            carry: Vec::new(),
            carry_bytes: 0,
            carry_has_hole: false,
            bytes: 0,
            newlines: 0,
            evidence: None,
            foreign: false,
            zeros: 0,
            has_hole: false,
            oversized: false,
        }
    }

    /// Takes the next bytes. They may end anywhere.
    pub fn push(&mut self, chunk: &[u8]) {
        let mut chunk = chunk;
        if self.newlines == 0 && self.crash == CrashKind::SameBoot {
            self.look_for_hole(chunk);
        }
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            if self.carry_bytes == 0 && end < self.line_bytes_max {
                self.weigh(&chunk[..end]);
            } else {
                self.keep(&chunk[..end]);
                self.weigh_carry();
            }
            self.bytes += self.carry_bytes.max(end as u64) + 1;
            self.newlines += 1;
            self.carry.clear();
            self.carry_bytes = 0;
            self.carry_has_hole = false;
            chunk = &chunk[end + 1..];
        }
        self.keep(chunk);
    }

    /// Whether the verdict is corruption whatever follows, so that the rest of the file need not be read.
    pub fn is_decided(&self) -> bool {
        self.evidence.is_some() || self.foreign || self.oversized || self.bad.cause.is_from_newer()
    }

    /// Gives the verdict: the file ends here.
    pub fn finish(mut self) -> Verdict {
        let unfinished = self.carry_bytes > 0;
        if unfinished {
            self.weigh_carry();
        }
        let outlived_by_newline = self.crash == CrashKind::SameBoot && self.newlines > 0 && !self.has_hole;
        if self.is_decided() || outlived_by_newline {
            return Verdict::Corrupt {
                offset: self.bad.offset,
                line: self.bad.line,
                cause: self.bad.cause,
                evidence: self.evidence,
            };
        }
        Verdict::Torn {
            offset: self.bad.offset,
            bytes: self.bytes + self.carry_bytes,
            lines: self.newlines + u64::from(unfinished),
        }
    }

    /// Searches the bad line for zeros that reach the end of a sector.
    fn look_for_hole(&mut self, chunk: &[u8]) {
        let line = &chunk[..memchr::memchr(b'\n', chunk).unwrap_or(chunk.len())];
        let mut offset = self.bad.offset + self.bytes + self.carry_bytes;
        for byte in line {
            self.zeros = if *byte == 0 { self.zeros + 1 } else { 0 };
            offset += 1;
            let is_enough = self.zeros >= HOLE_BYTES_MIN || self.zeros == offset - self.bad.offset;
            self.has_hole |= is_enough && offset.is_multiple_of(SECTOR_BYTES);
        }
    }

    /// Keeps a part of an unfinished line, as far as the limit allows.
    fn keep(&mut self, part: &[u8]) {
        let room = self.line_bytes_max.saturating_sub(self.carry.len());
        let kept = &part[..part.len().min(room)];
        self.carry.extend_from_slice(kept);
        self.carry_bytes += part.len() as u64;
        self.carry_has_hole |= memchr::memchr(0, kept).is_some();
        // If the limit was lowered, a cut here would remove acknowledged data. The scanner uses the same limit, newline
        // included.
        self.oversized |= self.carry_bytes >= self.line_bytes_max as u64 && !self.carry_has_hole;
    }

    fn weigh_carry(&mut self) {
        let carry = std::mem::take(&mut self.carry);
        self.weigh(&carry);
        self.carry = carry;
    }

    /// Checks whether one line forbids the cut. The bad line itself can: a line with a right checksum after a gap
    /// proves that the missing records had been on disk.
    fn weigh(&mut self, line: &[u8]) {
        let good = match check(line) {
            Ok(good) => Some((0, good)),
            Err(_) => {
                // In a new log, and after the lines of the original program, this program first syncs CLUSTER and
                // EPOCH. Anything else there means that this is the wrong file, which must not be cut.
                self.foreign |= self.bad.before_trailer && !may_be_torn_head(line);
                // A damaged newline joins a line with the next one, which may be the only proof.
                check_end_of(line)
            }
        };
        let Some((begins_at, good)) = good else { return };
        let proves = good.synced >= self.bad.expected_seq && !planted!(EvidenceIgnored);
        if self.evidence.is_none() && proves {
            self.evidence = Some(Evidence {
                offset: self.bad.offset + self.bytes + begins_at as u64,
                line: self.bad.line + self.newlines,
                synced: good.synced,
            });
        }
    }
}

/// Whether an unsynced first group of a log can have become `line`.
fn may_be_torn_head(line: &[u8]) -> bool {
    let begins_like = |head: &[u8]| {
        let length = line.len().min(head.len());
        line[..length] == head[..length]
    };
    begins_like(b"CLUSTER ") || begins_like(b"EPOCH ") || line.iter().all(|byte| *byte == 0)
}
