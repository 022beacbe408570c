//! The disk of a member: its log, and its vote file.
//!
//! Owns the order in which a batch gets to the disk: the vote, then the cut, then the entries, each synced before the next is
//! begun. Never decides what is written, who leads, or what is committed. A write or sync that fails ends the member, as nothing is
//! known of what was in flight; a full disk is waited for.
//!
//! Operations run one after the other: whoever holds a [`RaftDisk`] awaits each before it asks for the next.

use super::lines::{cut_place, fetch, EntryLine, EntryRange, LineIndex};
use crate::env::{Env, File, FileIdentity, Group};
use crate::journal::copying::Draft;
use crate::journal::mending::is_full;
use crate::node_error::{LogStep, NodeError};
use dsm_consensus::ids::MemberId;
use dsm_consensus::machine::{BatchNumber, LogBatch, StreamNumber};
use dsm_consensus::vote::VoteRecord;
use dsm_consensus::LogEntry;
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};
use dsm_protocol::machine::log_scan::BaseSeen;
use dsm_protocol::record::{self, FileNumber, Operation};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

pub(super) mod swaps;

use swaps::SharedRoom;

/// How long a group of lines is, unless a single one is longer, in bytes.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Groups of more words than this are encoded on the disk's thread, in bytes.
const ENCODED_AT_ONCE_BYTES_MAX: usize = 64 << 10;

/// How often a batch for which the disk has no room is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// What a [`RaftDisk`] is made from.
#[derive(Clone)]
pub struct RaftDiskSetup {
    /// The world that it runs in.
    pub env: Env,
    /// The path of the log. The vote file is beside it.
    pub path: PathBuf,
    /// The longest line, in bytes.
    pub line_bytes_max: usize,
    /// So much must be superseded before the log is compacted, in bytes. 0: it is never compacted.
    pub compact_min_bytes: u64,
}

impl RaftDiskSetup {
    /// The path of the vote file.
    pub fn vote_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".vote");
        path.into()
    }

    /// Why this machine is no member, in words.
    pub(super) fn no_member(&self, reason: impl Into<String>) -> NodeError {
        NodeError::NoMember { path: self.path.clone(), reason: reason.into() }
    }
}

/// What was brought to the disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Persisted {
    /// All batches through this one; `None` when there was none.
    pub through: Option<BatchNumber>,
    /// The line of each entry. What was told of an entry that was cut does not count any more.
    pub lines: Vec<EntryLine>,
    /// The length of the log, in bytes.
    pub log_bytes: u64,
    /// A leader's file has taken the place of the log. Of what was written before nothing is left.
    pub(super) installed: Option<InstalledLog>,
}

/// Another file is the log.
#[derive(Clone)]
pub(super) struct InstalledLog {
    /// A handle to read it by.
    pub(super) reader: Rc<dyn File>,
    pub(super) number: FileNumber,
    pub(super) identity: FileIdentity,
    /// The end of its compacted part.
    pub(super) base: BaseSeen,
}

impl fmt::Debug for InstalledLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} from {:?} on", self.identity, self.base)
    }
}

impl PartialEq for InstalledLog {
    fn eq(&self, other: &Self) -> bool {
        (self.identity, self.base) == (other.identity, other.base)
    }
}

/// A member's log and vote file, open for writing.
pub struct RaftDisk {
    pub(super) setup: RaftDiskSetup,
    pub(super) log: Rc<dyn File>,
    pub(super) vote_file: Rc<dyn File>,
    /// What the vote file says.
    pub(super) vote: VoteRecord,
    pub(super) index: LineIndex,
    /// Which file the log is, and its number among those that it has been since the start.
    pub(super) identity: FileIdentity,
    pub(super) number: FileNumber,
    /// The end of the part that is compacted.
    pub(super) base: BaseSeen,
    /// A leader's file that is whole and on disk, until a batch puts it in the log's place.
    pub(super) arrived: Option<(StreamNumber, Draft)>,
    /// The last of those files of which nothing came.
    pub(super) forgotten: Option<StreamNumber>,
    pub(super) room: Rc<SharedRoom>,
    /// The shortest that the log has been since a copy of it was begun.
    pub(super) shortest: u64,
    /// The length of the log.
    pub(super) end: u64,
    /// The last entry; (0, 0) when there is none.
    pub(super) last: Version,
    /// Everything through this seq is on disk.
    pub(super) synced: Seq,
    /// Whether the last line is a SYNCED mark.
    pub(super) is_marked: bool,
    /// Whether it was said that the disk is full.
    pub(super) is_full: bool,
}

impl RaftDisk {
    /// What the vote file says.
    pub fn vote(&self) -> &VoteRecord {
        &self.vote
    }

    /// The last entry of the log; (0, 0) when there is none.
    pub fn last(&self) -> Version {
        self.last
    }

    /// The length of the log, in bytes.
    pub fn log_bytes(&self) -> u64 {
        self.end
    }

    /// The log's open file, from which values are read.
    ///
    /// # Errors
    /// Errors of the system.
    pub async fn reader(&self) -> Result<Rc<dyn File>, NodeError> {
        self.log.duplicate().await.map_err(|error| NodeError::file(&self.setup.path, error))
    }

    /// Brings batches to the disk, in their order. Of their votes only the last is written: two writes without a sync in between
    /// could tear both slots. As long as the disk is full, it waits.
    ///
    /// # Errors
    /// A write or a sync has failed: nothing is known of what was in flight, and the member must end.
    pub async fn write(&mut self, batches: Vec<LogBatch>) -> Result<Persisted, NodeError> {
        let through = batches.last().map(|batch| batch.number);
        let (mut lines, mut installed) = (Vec::new(), None);
        if let Some(vote) = batches.iter().rev().find_map(|batch| batch.vote) {
            self.write_vote(vote).await?;
        }
        let mut waiting = Vec::new();
        for batch in batches {
            if let Some((stream, base)) = batch.install {
                // Nothing of it is left, whether it was written or not.
                (waiting, lines) = (Vec::new(), Vec::new());
                installed = Some(self.install(stream, base).await?);
            }
            if let Some(seq) = batch.cut_after {
                self.append(std::mem::take(&mut waiting), &mut lines).await?;
                self.cut_after(seq).await?;
                lines.retain(|line: &EntryLine| line.version.seq <= seq);
            }
            waiting.extend(batch.entries);
        }
        self.append(waiting, &mut lines).await?;
        Ok(Persisted { through, lines, log_bytes: self.end, installed })
    }

    /// Says in the log that all of it is on disk, for those who judge its end after a crash. To be called once nothing was written
    /// for a while. It is not synced itself.
    ///
    /// # Errors
    /// A write has failed, and the member must end.
    pub async fn mark(&mut self) -> Result<(), NodeError> {
        let Version { epoch, seq } = self.last;
        if self.is_marked || seq == Seq(0) || self.synced != seq {
            return Ok(());
        }
        let mut bytes = Vec::new();
        record::encode(&Operation::Synced, seq, epoch, seq, &mut bytes);
        let length = bytes.len() as u64;
        let appended = self.log.append(Group { offset: self.end, bytes, ..Group::default() }).await;
        match appended.write_error {
            None => {
                self.end += length;
                self.is_marked = true;
                Ok(())
            }
            // Nothing rests on it. What was written of it is written over.
            Some(error) if is_full(Some(&error)) => self.forget_half_a_group(appended.written).await,
            Some(error) => Err(failed(LogStep::Write, error)),
        }
    }

    /// Reads entries from the log: as many as fit into `bytes_max`, at least one. None if they are not there.
    ///
    /// # Errors
    /// The log cannot be read, and the member must end.
    pub async fn fetch(
        &self,
        from: Seq,
        through: Seq,
        bytes_max: u64,
    ) -> Result<Vec<(LogEntry, u64)>, NodeError> {
        if from <= self.base.version.seq {
            return Ok(Vec::new());
        }
        let wanted = EntryRange { from, through, bytes_max };
        let found = fetch(&self.log, &self.index, self.end, wanted).await;
        let found = found.map_err(|error| NodeError::file(&self.setup.path, error))?;
        // Of a log that begins later they are not there, even if later ones are.
        let is_there = found.first().is_some_and(|(entry, _)| entry.version.seq == from);
        Ok(if is_there { found } else { Vec::new() })
    }

    /// The lines of entries, as [`fetch`](Self::fetch) gives entries.
    ///
    /// # Errors
    /// The same.
    pub async fn lines(&self, from: Seq, through: Seq, bytes_max: u64) -> Result<Vec<EntryLine>, NodeError> {
        let entries = self.fetch(from, through, bytes_max).await?;
        let (cluster, file) = (self.vote.cluster, self.number);
        let (answer, answered) = oneshot::channel();
        let work = move || {
            let lines = entries.iter().map(|(entry, offset)| EntryLine::of(entry, (file, *offset), cluster));
            drop(answer.send(lines.collect::<Result<Vec<_>, _>>()));
        };
        let done = self.log.compute(Box::new(work)).await;
        let lines = answered.await.map_err(io::Error::other);
        let error = |error| NodeError::file(&self.setup.path, error);
        done.and(lines).map_err(error)?.map_err(|damage| error(io::Error::other(damage)))
    }

    /// Writes the next record of the vote file, into the slot that does not hold the last one.
    async fn write_vote(
        &mut self,
        (term, vote, commit): (Epoch, Option<MemberId>, Seq),
    ) -> Result<(), NodeError> {
        // What is compacted is committed, and this file may have learnt that before the machine.
        let commit = commit.max(self.vote.commit);
        let record = VoteRecord { number: self.vote.number + 1, term, vote, commit, ..self.vote };
        let (offset, bytes) = record.slot();
        let group = Group { offset: offset as u64, bytes, sync: true, ..Group::default() };
        let appended = self.vote_file.append(group).await;
        if let Some(error) = appended.write_error {
            return Err(failed(LogStep::Write, error));
        }
        if let Some(error) = appended.sync_error {
            return Err(failed(LogStep::Sync, error));
        }
        self.vote = record;
        Ok(())
    }

    /// Cuts everything after this entry off the log.
    async fn cut_after(&mut self, seq: Seq) -> Result<(), NodeError> {
        let (offset, last) =
            self.end_of(seq).await.map_err(|error| NodeError::file(&self.setup.path, error))?;
        self.log.truncate(offset).await.map_err(|error| failed(LogStep::Cut, error))?;
        // Old lines must not come back behind new ones.
        self.log.sync().await.map_err(|error| failed(LogStep::Sync, error))?;
        self.index.cut_after(seq);
        (self.end, self.last, self.synced) = (offset, last, seq);
        self.shortest = self.shortest.min(offset);
        self.is_marked = false;
        Ok(())
    }

    /// The place after this entry, and its version.
    pub(super) async fn end_of(&self, seq: Seq) -> io::Result<(u64, Version)> {
        let BaseSeen { version, end } = self.base;
        if seq == version.seq && end > 0 {
            return Ok((end, version));
        }
        cut_place(&self.log, &self.index, self.end, seq).await
    }

    /// Appends entries and brings them to the disk by one sync, adding the places of their lines.
    async fn append(
        &mut self,
        entries: Vec<LogEntry>,
        written: &mut Vec<EntryLine>,
    ) -> Result<(), NodeError> {
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let (mut group, mut bytes) = (Vec::new(), 0);
            let fits =
                |bytes: usize, next: &LogEntry| bytes == 0 || bytes + next.data.len() <= GROUP_BYTES_MAX;
            while let Some(entry) = entries.next_if(|entry| fits(bytes, entry)) {
                bytes += entry.data.len() + 1;
                group.push(entry);
            }
            let is_last = entries.peek().is_none();
            self.append_group(group, bytes, is_last, written).await?;
        }
        Ok(())
    }

    async fn append_group(
        &mut self,
        entries: Vec<LogEntry>,
        words_bytes: usize,
        sync: bool,
        written: &mut Vec<EntryLine>,
    ) -> Result<(), NodeError> {
        let last = entries.last().map_or(self.last, |entry| entry.version);
        let draft = DraftLines {
            entries,
            offset: self.end,
            file: self.number,
            synced: self.synced,
            cluster: self.vote.cluster,
        };
        let encoded = if words_bytes > ENCODED_AT_ONCE_BYTES_MAX {
            let (answer, answered) = oneshot::channel();
            let made = self.log.compute(Box::new(move || drop(answer.send(draft.encode())))).await;
            let encoded = answered.await.map_err(io::Error::other);
            made.and(encoded).map_err(|error| failed(LogStep::Write, error))?
        } else {
            draft.encode()
        };
        let (bytes, lines) = encoded.map_err(|error| self.setup.no_member(error))?;
        let length = bytes.len() as u64;
        self.write_out(bytes, sync).await?;
        for line in &lines {
            self.index.note(line.version.seq, line.offset);
        }
        written.extend(lines);
        self.end += length;
        self.last = last;
        self.is_marked = false;
        if sync {
            self.synced = last.seq;
        }
        Ok(())
    }

    /// Writes bytes at the end of the log, however long the disk is full.
    async fn write_out(&mut self, bytes: Vec<u8>, sync: bool) -> Result<(), NodeError> {
        let mut bytes = bytes;
        loop {
            let appended = self.log.append(Group { offset: self.end, bytes, sync, ..Group::default() }).await;
            // A failed sync is never tried again, whatever its reason.
            if let Some(error) = appended.sync_error {
                return Err(failed(LogStep::Sync, error));
            }
            match appended.write_error {
                None => {
                    self.room.is_full.set(false);
                    if std::mem::take(&mut self.is_full) {
                        log::info!("log is written again, the disk has room");
                    }
                    return Ok(());
                }
                Some(error) if is_full(Some(&error)) => {
                    if !std::mem::replace(&mut self.is_full, true) {
                        log::warn!("log not written, waiting for room cause=disk-full error={error}");
                    }
                    self.forget_half_a_group(appended.written).await?;
                    self.make_room().await;
                }
                Some(error) => return Err(failed(LogStep::Write, error)),
            }
            bytes = appended.bytes;
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Cuts what a short write has left, so that the log is not found torn for no reason. Nobody was told of it, so it need not
    /// be on disk.
    async fn forget_half_a_group(&mut self, written: usize) -> Result<(), NodeError> {
        if written > 0 {
            self.log.truncate(self.end).await.map_err(|error| failed(LogStep::Cut, error))?;
        }
        Ok(())
    }
}

pub(super) fn failed(step: LogStep, error: io::Error) -> NodeError {
    NodeError::LogFailed { step, cause: Arc::new(error) }
}

/// Entries that are to become lines.
struct DraftLines {
    entries: Vec<LogEntry>,
    file: FileNumber,
    offset: u64,
    synced: Seq,
    cluster: ClusterId,
}

/// Lines as bytes, and what each is.
type EncodedLines = (Vec<u8>, Vec<EntryLine>);

impl DraftLines {
    /// Encodes the lines. What is no record would make the log unreadable, so it is refused, in words.
    fn encode(self) -> Result<EncodedLines, String> {
        let (mut bytes, mut lines) = (Vec::new(), Vec::with_capacity(self.entries.len()));
        for entry in &self.entries {
            let LogEntry { version, data } = entry;
            let line = EntryLine::of(entry, (self.file, self.offset + bytes.len() as u64), self.cluster);
            lines.push(line.map_err(|error| format!("the entry {version} is no record: {error}"))?);
            record::encode_entry(data, *version, self.synced, self.cluster, &mut bytes);
        }
        Ok((bytes, lines))
    }
}
