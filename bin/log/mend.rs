//! `dsm-log repair` of a corrupt log: writes a new log of all lines that are still good, lists what is lost, and replaces
//! the damaged log, which is kept beside it.

use crate::{
    beside, cli, explain, lock, lock_text, say_how_to_go_on, sync_directory, CHUNK_BYTES, EXIT_CLEAN,
    EXIT_CORRUPT, OWNER_ONLY,
};
use anyhow::{ensure, Context as _};
use dsm_protocol::ids::{ClusterId, Epoch, Seq};
use dsm_protocol::record::{
    encode, encode_with, good_line_at_end, parse_line, BadLine, Body, Operation, Position, Record,
    RecordError, Scanner, Step, Trailer, Verdict, LOST,
};
use rustix::fs::{renameat_with, RenameFlags, CWD};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{fchown, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How many damaged places are listed; further ones are only counted.
const LISTED_MAX: usize = 100;

/// How many keys of a damaged place are shown.
const KEYS_SHOWN_MAX: usize = 20;

/// How much of the beginning of a damaged line is kept, to name its keys.
const HEAD_BYTES: usize = 4096;

/// Consecutive lines of the damaged log that cannot be read.
struct Damage {
    offset: u64,
    line: u64,
    bytes: u64,
    lines: u64,
    /// The beginning of the first of them, enough for a key or two.
    head: Vec<u8>,
}

/// The new log, made of the good lines of the damaged one.
struct Draft<W> {
    writer: W,
    /// Checks what is written, as a master will.
    scanner: Scanner,
    /// Damage since the last good line.
    open: Option<Damage>,
    listed: Vec<String>,
    unlisted: usize,
    lost_bytes: u64,
    lost_records: u64,
    kept: u64,
    /// The epoch of the last EPOCH record that is kept.
    named: Epoch,
    /// The epochs whose EPOCH records are lost.
    unnamed: Vec<Epoch>,
    /// Whether the lost records may be the last ones that slaves have seen.
    may_be_known: bool,
}

/// Repairs the locked log at `path`.
pub(crate) fn mend(file: &File, path: &Path, line_max: usize, out: &mut impl Write) -> anyhow::Result<u8> {
    let place = place_of(path)?;
    let draft_path = beside(&place, ".repair");
    let written = write_draft(file, path, &draft_path, line_max);
    let swapped = written.and_then(|draft| swap(file, &place, &draft_path).map(|kept_at| (draft, kept_at)));
    let (draft, kept_at) = match swapped {
        Ok(done) => done,
        Err(error) => {
            let _ = fs::remove_file(&draft_path);
            if let Some(foreign) = error.downcast_ref::<Foreign>() {
                explain(path, Some(&foreign.0));
                return Ok(EXIT_CORRUPT);
            }
            return Err(error);
        }
    };
    for line in &draft.listed {
        writeln!(out, "{line}")?;
    }
    if draft.unlisted > 0 {
        writeln!(out, "and {} more damaged places", draft.unlisted)?;
    }
    writeln!(
        out,
        "repaired {}: {} lines kept, {} bytes taken out, {} records lost; the damaged file is {}",
        path.display(),
        draft.kept,
        draft.lost_bytes,
        draft.lost_records,
        kept_at.display()
    )?;
    for epoch in &draft.unnamed {
        writeln!(
            out,
            "epoch {epoch} has lost its EPOCH line: its records are kept, but nothing says which reign wrote them"
        )?;
    }
    if draft.may_be_known {
        say_how_to_go_on(path, out)?;
    }
    out.flush()?;
    Ok(EXIT_CLEAN)
}

/// Where the log is: a new file goes there, even if the path leads over links.
pub(crate) fn place_of(path: &Path) -> anyhow::Result<PathBuf> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|named| named.is_symlink());
    let found = if is_link { fs::canonicalize(path) } else { Ok(path.to_owned()) };
    found.with_context(|| format!("cannot find {}", path.display()))
}

/// Makes the file of a new log, with the owner and the access rights of the old one.
pub(crate) fn create_draft(file: &File, draft_path: &Path) -> anyhow::Result<File> {
    let context = || format!("cannot write {}", draft_path.display());
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(OWNER_ONLY);
    let output = options.open(draft_path).with_context(context)?;
    let original = file.metadata()?;
    let (uid, gid) = (original.uid(), original.gid());
    let made = output.metadata()?;
    if (made.uid(), made.gid()) != (uid, gid) {
        // The file keeps the masters' owner, whoever repairs it. If they cannot open it, they say so at their start.
        if let Err(error) = fchown(&output, Some(uid), Some(gid)) {
            cli::tell(&format!(
                "warning: the new log will not belong to user {uid} and group {gid}, as the one before does: {error}"
            ));
        }
    }
    output.set_permissions(original.permissions()).with_context(context)?;
    Ok(output)
}

/// Why a file is not repaired: it is not a log, or it is one of a newer version.
#[derive(Debug)]
struct Foreign(Verdict);

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the log cannot be mended")
    }
}

impl std::error::Error for Foreign {}

impl Foreign {
    fn at(bad: BadLine) -> Self {
        let BadLine { offset, line, cause, .. } = bad;
        Foreign(Verdict::Corrupt { offset, line, cause, evidence: None })
    }
}

fn write_draft(
    mut file: &File,
    path: &Path,
    draft_path: &Path,
    line_max: usize,
) -> anyhow::Result<Draft<()>> {
    let context = || format!("cannot write {}", draft_path.display());
    let output = create_draft(file, draft_path)?;
    // If the new log is found at the path before it is whole, it must be locked.
    lock(&output, path)?;
    let mut draft = Draft {
        writer: BufWriter::with_capacity(CHUNK_BYTES, &output),
        scanner: Scanner::new(line_max),
        open: None,
        listed: Vec::new(),
        unlisted: 0,
        lost_bytes: 0,
        lost_records: 0,
        kept: 0,
        named: Epoch(0),
        unnamed: Vec::new(),
        may_be_known: false,
    };
    file.seek(SeekFrom::Start(0))?;
    let mut lines = Lines {
        file,
        head: Vec::new(),
        buffer: Vec::new(),
        start: 0,
        offset: 0,
        number: 1,
        at_end: false,
        line_end: 0,
        line_max,
    };
    while let Some(line) = lines.next()? {
        draft.take(path, &line)?;
    }
    // For losses before that, the following lines are proof enough.
    draft.may_be_known = draft.open.is_some() || draft.scanner.position().epoch > draft.named;
    draft.close_damage(None);
    ensure!(draft.kept > 0, "{} has no good line to keep: it may not be a log at all", path.display());
    // Everything is on disk before the file gets its final name, so the mark is true for every reader.
    let Position { seq, epoch, ends_with_mark, .. } = draft.scanner.position();
    if !ends_with_mark && draft.scanner.position().seen_trailer {
        let mut mark = Vec::new();
        encode(&Operation::Synced, seq, epoch, seq, &mut mark);
        draft.accept(&mark)?;
    }
    draft.writer.flush().with_context(context)?;
    output.sync_all().with_context(context)?;
    let Draft {
        scanner, listed, unlisted, lost_bytes, lost_records, kept, named, unnamed, may_be_known, ..
    } = draft;
    Ok(Draft {
        writer: (),
        scanner,
        open: None,
        listed,
        unlisted,
        lost_bytes,
        lost_records,
        kept,
        named,
        unnamed,
        may_be_known,
    })
}

/// Replaces the log by the draft; gives the path of the damaged log.
fn swap(file: &File, path: &Path, draft_path: &Path) -> anyhow::Result<PathBuf> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let kept_at = beside(path, &format!(".damaged-{seconds}"));
    ensure!(fs::symlink_metadata(&kept_at).is_err(), "{} exists, try again", kept_at.display());
    file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
    // The new name is reserved first, and then the two files are exchanged in one step. A failure before that step
    // changes nothing, and the damaged log never has a name under which anything here would remove it.
    renameat_with(CWD, draft_path, CWD, &kept_at, RenameFlags::NOREPLACE)
        .with_context(|| format!("cannot take the name {} for the damaged log", kept_at.display()))?;
    if let Err(error) = renameat_with(CWD, &kept_at, CWD, path, RenameFlags::EXCHANGE) {
        let _ = fs::remove_file(&kept_at);
        return Err(error)
            .with_context(|| format!("cannot put the new log in the place of {}", path.display()));
    }
    sync_directory(path)?;
    Ok(kept_at)
}

impl<W: Write> Draft<W> {
    /// Takes one line of the damaged log.
    fn take(&mut self, path: &Path, line: &Line<'_>) -> anyhow::Result<()> {
        if line.is_whole() && self.accept(line.text)? {
            self.close_damage(None);
            return Ok(());
        }
        let text = line.text.strip_suffix(b"\n").unwrap_or(line.text);
        if !self.scanner.position().seen_trailer {
            self.begin(path, line)?;
        }
        let whole = line.is_whole().then(|| parse_line(text));
        match whole {
            Some(Ok(record)) if self.accept_behind_a_gap(&record)? => return Ok(()),
            Some(Err(cause)) if cause.is_from_newer() => {
                let bad = BadLine {
                    offset: line.offset,
                    line: line.number,
                    cause,
                    expected_seq: Seq(0),
                    finished: true,
                    before_trailer: false,
                };
                return Err(Foreign::at(bad).into());
            }
            Some(Ok(_) | Err(_)) | None => {}
        }
        // A damaged newline or a hole joins a line with the next one, which may be good.
        let end = if line.is_whole() { line.text } else { line.end };
        let found = good_line_at_end(end.strip_suffix(b"\n").unwrap_or(end));
        if let Some(good) = found.map(|begins| &end[begins..]).filter(|good| (good.len() as u64) < line.bytes)
        {
            let lost = line.bytes - good.len() as u64;
            self.damaged(line, lost);
            let (offset, bytes) = (line.offset + lost, good.len() as u64);
            return self.take(path, &Line { offset, text: good, end: &[], bytes, ..*line });
        }
        self.damaged(line, line.bytes);
        Ok(())
    }

    /// A log whose first line is damaged has lost the id of its cluster, but the lock file has it too.
    fn begin(&mut self, path: &Path, line: &Line<'_>) -> anyhow::Result<()> {
        let foreign = |cause| {
            let (offset, number) = (line.offset, line.number);
            let (finished, before_trailer) = (true, true);
            let expected_seq = Seq(1);
            Foreign::at(BadLine { offset, line: number, cause, expected_seq, finished, before_trailer })
        };
        // After lines of the original program, damage cannot be told from a file that is not a log.
        if line.offset > 0 {
            return Err(foreign(RecordError::Foreign).into());
        }
        let named = lock_text(path, "cluster").and_then(|id| u64::from_str_radix(&id, 16).ok());
        let Some(id) = named.filter(|_| line.text.starts_with(b"CLUSTER ")) else {
            return Err(foreign(RecordError::NoCluster).into());
        };
        let mut first = Vec::new();
        encode(&Operation::Cluster(ClusterId(id)), Seq(1), Epoch(1), Seq(0), &mut first);
        ensure!(self.accept(&first)?, "the line that names the cluster cannot be written anew");
        Ok(())
    }

    /// Writes a line unchanged, if it may follow what is written.
    fn accept(&mut self, line: &[u8]) -> anyhow::Result<bool> {
        let mut ahead = self.scanner.clone();
        match ahead.next(line) {
            step @ (Step::Record { .. } | Step::Ignored) => {
                if let Step::Record { record, .. } = step {
                    self.keep_epoch(&record);
                }
                self.scanner = ahead;
                self.writer.write_all(line).context("cannot write the repaired log")?;
                self.kept += 1;
                Ok(true)
            }
            Step::Partial | Step::Bad(_) => Ok(false),
        }
    }

    /// Notes which epochs are named by an EPOCH record. In logs of the previous version an epoch could rise without one.
    fn keep_epoch(&mut self, record: &Record<'_>) {
        let is_known = record.epoch <= self.named || self.unnamed.last() == Some(&record.epoch);
        match record.body {
            Body::Epoch { .. } => self.named = record.epoch,
            Body::Write(_) | Body::Delete(_) | Body::Apply(_) if self.lost_bytes > 0 && !is_known => {
                self.unnamed.push(record.epoch);
            }
            Body::Write(_)
            | Body::Delete(_)
            | Body::Apply(_)
            | Body::Cluster(_)
            | Body::Members(_)
            | Body::Synced => {}
        }
    }

    /// Writes a good line that comes after lost ones, with the field that names the record before the gap.
    fn accept_behind_a_gap(&mut self, record: &Record<'_>) -> anyhow::Result<bool> {
        let before = self.scanner.position();
        let operation = record.to_operation();
        let fields: Vec<_> = record
            .fields
            .filter(|(name, _)| !is_written_anew(name))
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_bytes()))
            .collect();
        let is_mark = operation == Operation::Synced;
        let first = before.seq.next();
        let last = if is_mark { record.seq } else { Seq(record.seq.0.saturating_sub(1)) };
        let lost = last.0.saturating_add(1).saturating_sub(first.0);
        let says_lost = lost.to_string();
        let mut fields: Vec<_> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        if lost > 0 {
            fields.push((LOST, says_lost.as_bytes()));
        }
        // Its SYNCED may cover lost records; now it covers the records before it.
        let synced_max = if is_mark { record.seq } else { before.seq };
        let synced = record.synced.min(synced_max).max(before.synced);
        let trailer = Trailer {
            after: Some(before.seq),
            fields: &fields,
            ..Trailer::new(record.seq, record.epoch, synced)
        };
        let mut line = Vec::new();
        encode_with(&operation, trailer, &mut line);
        if !self.accept(&line)? {
            return Ok(false);
        }
        self.lost_records += lost;
        self.close_damage(Some((first, last)));
        Ok(true)
    }

    /// Notes that the first `bytes` of a line are lost.
    fn damaged(&mut self, line: &Line<'_>, bytes: u64) {
        self.lost_bytes += bytes;
        match &mut self.open {
            Some(damage) => {
                damage.bytes += bytes;
                damage.lines += 1;
            }
            None => {
                let length =
                    line.text.len().min(HEAD_BYTES).min(usize::try_from(bytes).unwrap_or(usize::MAX));
                let head = line.text[..length].to_vec();
                let (offset, number) = (line.offset, line.number);
                self.open = Some(Damage { offset, line: number, bytes, lines: 1, head });
            }
        }
    }

    /// Lists the damage before a good line. `seqs` are those of the missing records; `None` where only marks were
    /// damaged, or the end of the log.
    fn close_damage(&mut self, seqs: Option<(Seq, Seq)>) {
        let damage = self.open.take();
        let what = match seqs {
            Some((first, last)) if first > last && damage.is_none() => return,
            Some((first, last)) if first > last => "no record before a good one is lost".to_owned(),
            Some((first, last)) if first < last => format!("seqs {first} to {last} are lost"),
            Some((first, _)) => format!("seq {first} is lost"),
            None if damage.is_some() => "no record before a good one is lost".to_owned(),
            None => return,
        };
        if self.listed.len() >= LISTED_MAX {
            self.unlisted += 1;
            return;
        }
        let place = damage.as_ref().map_or_else(
            || "lines that are gone".to_owned(),
            |damage| {
                format!(
                    "byte {}, line {}: {} bytes ({} lines) cannot be read",
                    damage.offset, damage.line, damage.bytes, damage.lines
                )
            },
        );
        let keys = damage.map_or_else(Vec::new, |damage| keys_in(&damage.head));
        let about = if keys.is_empty() {
            String::new()
        } else {
            format!(
                "; as far as it can be read, it is about {} (which may have older values)",
                keys.join(" ")
            )
        };
        self.listed.push(format!("{place}: {what}{about}"));
    }
}

/// Whether a field of a line is written by what the line says now, and not because it was there.
fn is_written_anew(name: &[u8]) -> bool {
    matches!(name, b"After" | b"Reign" | b"Fsync" | b"GivenUp") || name == LOST.as_bytes()
}

/// The keys of a damaged line, as far as they can be recognised.
fn keys_in(head: &[u8]) -> Vec<String> {
    let words = match head {
        [b'W', b'R', b'I', b'T', b'E', b' ', words @ ..] => words,
        [b'D', b'E', b'L', b'E', b'T', b'E', b' ', words @ ..] => words,
        _ => return Vec::new(),
    };
    let words = words.split(|byte| *byte == b' ' || *byte == b'\n');
    words
        .take_while(|word| !word.starts_with(b";") && !word.contains(&0))
        .step_by(2)
        .take(KEYS_SHOWN_MAX)
        .map(|word| format!("{:?}", String::from_utf8_lossy(&word[..word.len().min(200)])))
        .collect()
}

/// A line of the damaged log.
#[derive(Clone, Copy)]
struct Line<'a> {
    offset: u64,
    /// Its number; the first line has 1.
    number: u64,
    /// The line with its newline, or the beginning of one that is too long.
    text: &'a [u8],
    /// The end of a line that is too long, with its newline: as many bytes as a line may have.
    end: &'a [u8],
    bytes: u64,
}

impl Line<'_> {
    fn is_whole(&self) -> bool {
        self.text.len() as u64 == self.bytes
    }
}

/// Reads lines, however damaged; its memory is bounded by the limit for a line.
struct Lines<'f> {
    file: &'f File,
    /// The beginning of a line that is too long.
    head: Vec<u8>,
    buffer: Vec<u8>,
    start: usize,
    offset: u64,
    number: u64,
    at_end: bool,
    /// Where the line ends in the buffer that [`Lines::pass_long_line`] has read.
    line_end: usize,
    line_max: usize,
}

impl Lines<'_> {
    fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        let mut searched = 0;
        let found = loop {
            let rest = &self.buffer[self.start..];
            if let Some(end) = memchr::memchr(b'\n', &rest[searched..]) {
                break Some(searched + end + 1);
            }
            searched = rest.len();
            if self.at_end || searched >= self.line_max {
                break (searched > 0).then_some(searched);
            }
            self.read()?;
        };
        let Some(length) = found else { return Ok(None) };
        let (offset, number) = (self.offset, self.number);
        let mut text = self.start..self.start + length;
        let passed = if self.buffer[text.end - 1] != b'\n' && !self.at_end {
            let passed = self.pass_long_line()?;
            text = self.start..self.line_end;
            Some(passed)
        } else {
            None
        };
        self.start = text.end;
        let text = &self.buffer[text];
        let line = match passed {
            Some(passed) => {
                let bytes = passed + text.len() as u64;
                Line { offset, number, text: &self.head, end: text, bytes }
            }
            None => Line { offset, number, text, end: &[], bytes: text.len() as u64 },
        };
        self.offset += line.bytes;
        self.number += 1;
        Ok(Some(line))
    }

    fn read(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let before = self.buffer.len();
        let more = before.clamp(CHUNK_BYTES, self.line_max.max(CHUNK_BYTES));
        let read = Read::by_ref(&mut self.file).take(more as u64).read_to_end(&mut self.buffer)?;
        self.at_end = read == 0;
        Ok(())
    }

    /// Reads to the end of a line that is too long, if the end is not in the buffer yet; gives how many of its bytes are gone
    /// by then. As many of its last bytes as a line may have stay in the buffer.
    fn pass_long_line(&mut self) -> io::Result<u64> {
        let head = &self.buffer[self.start..];
        self.head = head[..head.len().min(HEAD_BYTES)].to_vec();
        // One byte more, so that a line that begins there is seen to follow something.
        let (kept, mut passed) = (self.line_max + 1, 0);
        loop {
            let length = self.buffer.len() - self.start;
            // Not each time, because the bytes that stay must be moved.
            if length > 2 * kept {
                self.buffer.drain(..self.start + length - kept);
                self.start = 0;
                passed += (length - kept) as u64;
            }
            let before = self.buffer.len();
            let read = Read::by_ref(&mut self.file).take(CHUNK_BYTES as u64).read_to_end(&mut self.buffer)?;
            self.at_end = read == 0;
            let found = memchr::memchr(b'\n', &self.buffer[before..]);
            if found.is_some() || self.at_end {
                self.line_end = found.map_or(before, |end| before + end + 1);
                return Ok(passed);
            }
        }
    }
}
