//! Where the lines of a member's log begin, and how entries are read from there.
//!
//! Owns a sparse index of the file, and the parsing of what is read. Never opens, writes or cuts a file.

use crate::env::File;
use dsm_consensus::LogEntry;
use dsm_protocol::ids::{ClusterId, Reign, Seq, Version};
use dsm_protocol::machine::log_scan::{self, Replay};
use dsm_protocol::machine::master::ReignRecord;
use dsm_protocol::record::{self, FileNumber, RecordError, Span};
use std::io;
use std::rc::Rc;
use tokio::sync::oneshot;

/// One line in so many bytes is in the index: 100 GB are 400,000 lines, of 16 bytes each in memory. To find an entry about as
/// many bytes are read.
const STRIDE_BYTES_MAX: u64 = 256 << 10;

/// A log that is compacted early has more of them, as it can be compacted through the line before one of these.
const STRIDES_IN_COMPACT_MIN: u64 = 16;

/// How much is read at once, unless a line is longer, in bytes.
const READ_BYTES: usize = 256 << 10;

/// The line of an entry in this member's file, and what it does to the directory.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryLine {
    /// The entry's version.
    pub version: Version,
    /// Bytes of the file before the line.
    pub offset: u64,
    /// What it does to the directory, with the places of its values in this file.
    pub changes: Vec<Replay>,
}

impl EntryLine {
    /// The line stands in that file now, so many bytes after `to` as it stood after `from`.
    pub(super) fn moves(&mut self, file: FileNumber, (from, to): (u64, u64)) {
        self.offset = self.offset - from + to;
        for change in &mut self.changes {
            if let Replay::Put { place, .. } = change {
                (place.file, place.offset) = (file, place.offset - from + to);
            }
        }
    }

    /// The line of an entry that begins after so many bytes of that file.
    ///
    /// # Errors
    /// The entry's words are no record.
    pub(super) fn of(
        entry: &LogEntry,
        (file, offset): (FileNumber, u64),
        cluster: ClusterId,
    ) -> Result<Self, RecordError> {
        let version = entry.version;
        let mut changes = Vec::new();
        if entry.data.is_empty() {
            let reign = Reign { epoch: version.epoch, id: record::reign_of_term(cluster, version.epoch) };
            changes.push(Replay::Reign(ReignRecord { reign, first: version.seq, durable: true }));
        } else {
            let record = record::parse_words(&entry.data, version)?;
            log_scan::replay(&record, Span { file, offset, bytes: 0 }, &mut changes);
        }
        Ok(EntryLine { version, offset, changes })
    }
}

/// Entries and the places of their lines.
pub(super) type PlacedEntries = Vec<(LogEntry, u64)>;

/// Where some of the lines begin.
#[derive(Debug, Default)]
pub(super) struct LineIndex {
    stride_bytes: u64,
    /// The seq of the record, and the bytes before it, in their order.
    lines: Vec<(Seq, u64)>,
}

impl LineIndex {
    /// That of a log which is compacted when so much is superseded; 0: never.
    pub(super) fn new(compact_min_bytes: u64) -> Self {
        let stride_bytes = match compact_min_bytes / STRIDES_IN_COMPACT_MIN {
            0 => STRIDE_BYTES_MAX,
            stride => stride.min(STRIDE_BYTES_MAX),
        };
        LineIndex { stride_bytes, lines: Vec::new() }
    }

    /// Nothing of it counts any more.
    pub(super) fn clear(&mut self) {
        self.lines.clear();
    }

    /// Takes a line that follows all that were taken, if it is far enough from the last one in the index.
    pub(super) fn note(&mut self, seq: Seq, offset: u64) {
        if self.lines.last().is_none_or(|(_, last)| offset >= last.saturating_add(self.stride_bytes)) {
            self.lines.push((seq, offset));
        }
    }

    /// Everything after this seq is cut off.
    pub(super) fn cut_after(&mut self, seq: Seq) {
        while self.lines.last().is_some_and(|(last, _)| *last > seq) {
            self.lines.pop();
        }
    }

    /// The same lines of a copy, in which those after `base` begin at `end` and not at `offset`.
    pub(super) fn moved(&self, (base, offset): (Seq, u64), end: u64) -> Self {
        let after = self.lines.iter().filter(|(seq, _)| *seq > base);
        let lines = after.map(|(seq, at)| (*seq, at - offset + end)).collect();
        LineIndex { stride_bytes: self.stride_bytes, lines }
    }

    /// The last line in it that begins at this byte or before it: its seq.
    pub(super) fn last_before(&self, offset: u64) -> Option<Seq> {
        let after = self.lines.partition_point(|(_, indexed)| *indexed <= offset);
        after.checked_sub(1).map(|at| self.lines[at].0)
    }

    /// Where to begin to read for the line of this seq: at it, or at one before it.
    fn before(&self, seq: Seq) -> u64 {
        let after = self.lines.partition_point(|(indexed, _)| *indexed <= seq);
        after.checked_sub(1).map_or(0, |at| self.lines[at].1)
    }
}

/// What is wanted of a log.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryRange {
    /// The first entry.
    pub(super) from: Seq,
    /// The last one.
    pub(super) through: Seq,
    /// As many as fit, at least one.
    pub(super) bytes_max: u64,
}

/// Reads entries from `file`, of which the first `end` bytes are the log. Fewer than are wanted only where they do not fit or the
/// log ends.
///
/// # Errors
/// Errors of the system, or a line that is damaged.
pub(super) async fn fetch(
    file: &Rc<dyn File>,
    index: &LineIndex,
    end: u64,
    wanted: EntryRange,
) -> io::Result<PlacedEntries> {
    let mut search =
        Search { buffer: Vec::new(), offset: index.before(wanted.from), wanted, bytes: 0, found: Vec::new() };
    let mut read_bytes = READ_BYTES;
    loop {
        let at = search.offset + search.buffer.len() as u64;
        let length = read_bytes.min(usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(search.found);
        }
        let bytes = file.read_at(at, length).await?;
        if bytes.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = search.offset;
        // To check megabytes takes its time.
        let (answer, answered) = oneshot::channel();
        let work = move || {
            let done = search.take(&bytes);
            drop(answer.send((search, done)));
        };
        file.compute(Box::new(work)).await?;
        let (then, done) = answered.await.map_err(io::Error::other)?;
        search = then;
        if done? {
            return Ok(search.found);
        }
        // Doubling keeps the search for the end of a long line linear.
        read_bytes = if search.offset == before { 2 * read_bytes } else { READ_BYTES };
    }
}

/// A search for entries, while it is under way.
struct Search {
    /// What was read and is not parsed: the beginning of a line.
    buffer: Vec<u8>,
    /// The bytes of the file before it.
    offset: u64,
    wanted: EntryRange,
    /// The words of what is found.
    bytes: u64,
    found: PlacedEntries,
}

impl Search {
    /// Takes more bytes. Says whether nothing more is wanted.
    fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let mut search_from = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        let mut taken = 0;
        let mut is_done = false;
        while let Some(end) = memchr::memchr(b'\n', &self.buffer[search_from..]) {
            let end = search_from + end;
            let words = record::words_of(&self.buffer[taken..end]).map_err(|error| {
                let at = self.offset + taken as u64;
                io::Error::other(format!("the line at byte {at} is damaged: {error}"))
            })?;
            if let Some((version, words)) = words {
                let EntryRange { from, through, bytes_max } = self.wanted;
                let is_over = !self.found.is_empty() && self.bytes + words.len() as u64 > bytes_max;
                is_done = version.seq > through || is_over;
                if !is_done && version.seq >= from {
                    self.bytes += words.len() as u64;
                    let entry = LogEntry { version, data: words.into() };
                    self.found.push((entry, self.offset + taken as u64));
                }
            }
            taken = end + 1;
            search_from = taken;
            if is_done {
                break;
            }
        }
        self.buffer.drain(..taken);
        self.offset += taken as u64;
        Ok(is_done)
    }
}

/// Where the line after this entry's begins, and the version of that one: a cut there leaves everything through it. `None` for the
/// version where the log is to be empty.
///
/// # Errors
/// Errors of the system, or that the log has no such entry.
pub(super) async fn cut_place(
    file: &Rc<dyn File>,
    index: &LineIndex,
    end: u64,
    seq: Seq,
) -> io::Result<(u64, Version)> {
    let wanted = EntryRange { from: seq, through: seq.next(), bytes_max: u64::MAX };
    let found = fetch(file, index, end, wanted).await?;
    let missing = || io::Error::other(format!("the log has no entry after seq {seq}"));
    if seq == Seq(0) {
        return found.first().map(|(_, offset)| (*offset, Version::default())).ok_or_else(missing);
    }
    match found.as_slice() {
        [(last, _), (_, offset)] => Ok((*offset, last.version)),
        _ => Err(missing()),
    }
}
