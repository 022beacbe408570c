//! Tells a torn tail from corruption: what stands after a bad line decides. Streams, in bounded memory.

use super::parse::{check, check_end_of};
use super::{BadLine, RecordError};
use crate::ids::Seq;
use crate::planted;

/// What can have happened to the log since it was last known to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// The machine kept running, so everything that was written is there, unless the disk failed to take it: only a line
    /// whose write was cut short, the last one, can be torn, and one with a hole in it.
    SameBoot,
    /// The power may have gone: whatever was not synced may be missing, garbled or zero, in any order.
    MayHaveLostPower,
}

/// What reaches a disk, or does not, as a whole: a divisor of every page and sector size.
const SECTOR_BYTES: u64 = 512;

/// So many zeros that reach the end of a sector, or fewer if nothing of the line stands in front of them, are a hole: bytes that were written and never got to the disk. The file
/// was extended, the write of its page failed, and the page was thrown away; or the disk was put back to a snapshot. Then
/// the machine may have run all the time, and yet what was not synced may be missing. Damage looks different.
const HOLE_BYTES_MIN: u64 = 16;

/// A good line which says that the bad one had been on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Bytes in front of the good line.
    pub offset: u64,
    /// The number of the line in which it stands, the first having 1: its own, or that of one in front which lost
    /// its newline.
    pub line: u64,
    /// The seq through which it says the log was on disk.
    pub synced: Seq,
}

/// What a bad line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing from here on was ever known to be on disk, so nothing of it was acknowledged as durable: it may be
    /// cut.
    Torn {
        /// Bytes in front of the cut.
        offset: u64,
        /// Bytes after the cut.
        bytes: u64,
        /// Lines after the cut, an unfinished one included.
        lines: u64,
    },
    /// Acknowledged data is damaged, or the file is not what it should be. It must not be cut without asking.
    Corrupt {
        /// Bytes in front of the bad line.
        offset: u64,
        /// Its number; the first line has 1.
        line: u64,
        /// What is wrong with it.
        cause: RecordError,
        /// The line that proves it; `None` when the rule for the crash, or a line that no crash explains, decides.
        evidence: Option<Evidence>,
    },
}

/// Judges one bad line. It is fed all bytes from the bad line's first one to the end of the file.
#[derive(Clone, Debug)]
pub struct Judge {
    bad: BadLine,
    crash: CrashKind,
    line_bytes_max: usize,
    /// The begin of the line that the last chunk left unfinished, as far as a good line could reach.
    carry: Vec<u8>,
    /// Bytes of that line, the ones that were not kept included.
    carry_bytes: u64,
    /// Whether the part of it that was kept has a zero byte, which no good line has.
    carry_has_hole: bool,
    /// Bytes and finished lines so far.
    bytes: u64,
    newlines: u64,
    evidence: Option<Evidence>,
    /// Whether something stands there that no crash of this program leaves at the start of a log.
    foreign: bool,
    /// Zero bytes of the bad line up to here without another one between them.
    zeros: u64,
    /// Whether the bad line has a hole: see [`HOLE_BYTES_MIN`].
    has_hole: bool,
    /// Whether a line is too long to be looked at, and yet could be good under a higher limit.
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

    /// Looks at the bad line's bytes for zeros that reach the end of a sector.
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
        // Cutting here because the limit was lowered would cut acknowledged data. The scanner finds the same lines too
        // long, newline included.
        self.oversized |= self.carry_bytes >= self.line_bytes_max as u64 && !self.carry_has_hole;
    }

    fn weigh_carry(&mut self) {
        let carry = std::mem::take(&mut self.carry);
        self.weigh(&carry);
        self.carry = carry;
    }

    /// Looks for a reason against cutting in one line. The bad line itself can be one: a line with a right
    /// checksum after a gap says that what was in the gap had been on disk.
    fn weigh(&mut self, line: &[u8]) {
        let good = match check(line) {
            Ok(good) => Some((0, good)),
            Err(_) => {
                // Behind the lines of the original program, and in a new log, this program first syncs CLUSTER and
                // EPOCH. If anything else stands there, someone gave us the wrong file: it is not ours to cut.
                self.foreign |= self.bad.before_trailer && !may_be_torn_head(line);
                // A line whose newline is damaged takes the next one with it, which may be the only witness.
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
