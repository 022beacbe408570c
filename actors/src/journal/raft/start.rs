//! What a member finds on its disk when it starts, and how an empty disk becomes a member's.
//!
//! Owns the steps: the lock on the log's inode, the vote file, the replay of what is known to be committed, the torn end, what is
//! written again, and the rest of the log for the machine. Never decides whether a machine may be a member.

use super::arriving::stream_path;
use super::disk::{RaftDisk, RaftDiskSetup};
use super::lines::{EntryLine, LineIndex};
use crate::config::Fsync;
use crate::env::{File, FileIdentity, Group, OpenMode};
use crate::journal::copying::draft_path;
use crate::journal::mending::Mending;
use crate::journal::{LogEvent, ReplayPart};
use crate::node_error::NodeError;
use actix::prelude::*;
use dsm_consensus::ids::MemberId;
use dsm_consensus::join::is_draft;
use dsm_consensus::members::Members;
use dsm_consensus::vote::{VoteFileError, VoteRecord, FILE_BYTES};
use dsm_consensus::{LogEntry, Start};
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};
use dsm_protocol::machine::log_scan::{BaseSeen, EntriesSeen, LogPlace, LogScan, Part, Replay};
use dsm_protocol::record::{self, BadLine, CrashKind, FileNumber, Position};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// What is on the disk of a machine.
pub enum DiskFound {
    /// Nothing, or what a crash has left of a beginning of which nobody was told.
    Empty(EmptyDisk),
    /// A member's log.
    Member(Box<StartedDisk>),
}

/// A member's disk, and what its machine starts with.
pub struct StartedDisk {
    /// The disk.
    pub disk: RaftDisk,
    /// What the machine starts with.
    pub start: Start,
    /// The lines of the entries that are not known to be committed.
    pub lines: Vec<EntryLine>,
    /// The place after what is known to be committed, all of which was told.
    pub end: Position,
    /// The end of the compacted part.
    pub base: BaseSeen,
}

/// So often the lock of the log is tried, with such pauses: five seconds in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The disk of a machine that is no member yet. Its log is empty, and locked.
pub struct EmptyDisk {
    setup: RaftDiskSetup,
    log: Rc<dyn File>,
}

/// Opens the disk of a machine, and tells `events` what the log is known to have committed, part by part, as
/// [`LogEvent::Replayed`]. The last part says that nothing comes after it for now.
///
/// # Errors
/// `NoMember` when what is there must not take part, `Corrupt` when what was on disk is damaged, `File` when the system refuses
/// something or another process has the log.
pub async fn open(setup: RaftDiskSetup, events: &Recipient<LogEvent>) -> Result<DiskFound, NodeError> {
    let disk = setup.env.disk();
    let vote = read_vote(&setup).await?;
    let error = |error| NodeError::file(&setup.path, error);
    let is_there = disk.identity(&setup.path).await.map_err(error)?.is_some();
    if let (false, Some(Ok(vote))) = (is_there, &vote) {
        let VoteRecord { member, cluster, .. } = vote;
        return Err(setup.no_member(format!(
            "it is missing, but its vote file is there, of member {member} of cluster {cluster}: what it had \
             acknowledged is lost here; put it back, or let another machine take the member's place"
        )));
    }
    let log = open_locked(&setup).await?;
    remove_drafts(&setup).await;
    // Nobody else writes it from here on.
    let vote = match read_vote(&setup).await? {
        Some(Ok(vote)) => vote,
        Some(Err(error)) => return begins_anew(setup, log, Some(error)).await.map(DiskFound::Empty),
        None => return begins_anew(setup, log, None).await.map(DiskFound::Empty),
    };
    let member = Box::pin(Replaying::new(setup, log, vote, events).await?.run()).await?;
    Ok(DiskFound::Member(Box::new(member)))
}

/// What the vote file says; `None` when there is none.
async fn read_vote(setup: &RaftDiskSetup) -> Result<Option<Result<VoteRecord, VoteFileError>>, NodeError> {
    match setup.env.disk().read_small(&setup.vote_path(), FILE_BYTES).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => {
            let bytes = read.map_err(|error| NodeError::file(setup.vote_path(), error))?;
            Ok(Some(VoteRecord::of_file(&bytes)))
        }
    }
}

/// Opens the log, and locks it. Another process may have put another file in its place before it was locked.
async fn open_locked(setup: &RaftDiskSetup) -> Result<Rc<dyn File>, NodeError> {
    let disk = setup.env.disk();
    let error = |error| NodeError::file(&setup.path, error);
    loop {
        let log = disk.open(&setup.path, OpenMode::Write).await.map_err(error)?;
        lock(setup, &*log).await?;
        let identity = log.identity().await.map_err(error)?;
        if disk.identity(&setup.path).await.map_err(error)? == Some(identity) {
            return Ok(log);
        }
    }
}

/// A process that ended while another file was to become the log has left that, or the log as it was before.
async fn remove_drafts(setup: &RaftDiskSetup) {
    let disk = setup.env.disk();
    let removing = async |path: &Path| -> io::Result<()> {
        if let Some(identity) = disk.identity(path).await? {
            if disk.remove(path, identity).await? {
                log::info!("unfinished copy of the log removed path={}", path.display());
            }
        }
        Ok(())
    };
    let Ok(place) = disk.resolve(&setup.path).await else { return };
    for path in [draft_path(&place), stream_path(&place)] {
        if let Err(error) = removing(&path).await {
            log::warn!("unfinished copy of the log not removed path={} error={error}", path.display());
        }
    }
}

/// Locks the log. A process that was killed a moment ago may be at the disk still.
async fn lock(setup: &RaftDiskSetup, log: &dyn File) -> Result<(), NodeError> {
    let error = |error| NodeError::file(&setup.path, error);
    for _ in 0..LOCK_TRIES {
        if log.try_lock().map_err(error)? {
            return Ok(());
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    Err(error(io::Error::new(io::ErrorKind::WouldBlock, "another process has it locked")))
}

/// A disk without a vote file that says anything counts as empty, if the log has no more than what [`EmptyDisk::begin`] writes before
/// it makes one: then nobody was told of it.
async fn begins_anew(
    setup: RaftDiskSetup,
    log: Rc<dyn File>,
    torn: Option<VoteFileError>,
) -> Result<EmptyDisk, NodeError> {
    let error = |error| NodeError::file(&setup.path, error);
    let mut entries = Vec::new();
    let mut scan = LogScan::new(&LogPlace::default(), setup.line_bytes_max).with_members().through(Seq(3));
    let bad = loop {
        let (then, part) = log.scan(scan).await.map_err(error)?;
        scan = then;
        let is_over = part.at_end || part.bad.is_some() || part.is_through;
        let seen = part.seen.unwrap_or_default();
        let mut members = seen.members.into_iter();
        entries.extend(seen.entries.iter().map(|seen| {
            // What a record says does not matter here, but for whether it is one of the members.
            let is_members = seen.version.seq == Seq(2) && members.next().is_some();
            let words: &[u8] = if is_members { b"MEMBERS " } else { b"CLUSTER" };
            LogEntry { version: seen.version, data: bytes::Bytes::from_static(words) }
        }));
        if is_over || entries.len() > 2 {
            break part.bad;
        }
    };
    if entries.len() > 2 || !is_draft(&entries) {
        return Err(match torn {
            Some(error) => NodeError::file(setup.vote_path(), io::Error::new(io::ErrorKind::InvalidData, error)),
            None => setup.no_member(
                "it has records, but no vote file: it is that of masters on one machine, or the file beside it is lost",
            ),
        });
    }
    if let Some(bad) = bad {
        mending(&setup).cut(&log, bad, CrashKind::MayHaveLostPower).await?;
    }
    log.truncate(0).await.map_err(error)?;
    log.sync().await.map_err(error)?;
    Ok(EmptyDisk { setup, log })
}

fn mending(setup: &RaftDiskSetup) -> Mending {
    Mending {
        env: Rc::clone(&setup.env),
        path: setup.path.clone(),
        line_bytes_max: setup.line_bytes_max,
        fsync: Fsync::Always,
        with_members: true,
    }
}

impl EmptyDisk {
    /// Makes it the disk of the member that begins this cluster: the log has its first two entries, and the vote file knows them as
    /// committed. All that is on disk when it is done.
    ///
    /// # Errors
    /// As [`open`].
    pub async fn begin(
        self,
        cluster: ClusterId,
        members: &Members,
        events: &Recipient<LogEvent>,
    ) -> Result<StartedDisk, NodeError> {
        let mut bytes = Vec::new();
        let words = [format!("CLUSTER {cluster} %"), members.to_string()];
        for (words, seq) in words.iter().zip(1..) {
            record::encode_entry(words.as_bytes(), Version::new(1, seq), Seq(0), cluster, &mut bytes);
        }
        let error = |error| NodeError::file(&self.setup.path, error);
        let group = Group { offset: 0, bytes, sync: true, ..Group::default() };
        write_all(&self.log, group).await.map_err(error)?;
        let member = MemberId::FIRST;
        self.becomes(
            VoteRecord { number: 0, cluster, member, term: Epoch(1), vote: None, commit: Seq(2) },
            events,
        )
        .await
    }

    /// Makes it the disk of this member: its log is empty, and it gets all of it from the others.
    ///
    /// # Errors
    /// As [`open`].
    pub async fn adopt(
        self,
        cluster: ClusterId,
        member: MemberId,
        events: &Recipient<LogEvent>,
    ) -> Result<StartedDisk, NodeError> {
        let vote = VoteRecord { number: 0, cluster, member, term: Epoch(1), vote: None, commit: Seq(0) };
        self.becomes(vote, events).await
    }

    /// Makes the vote file, once the log and its name are on disk.
    async fn becomes(self, vote: VoteRecord, events: &Recipient<LogEvent>) -> Result<StartedDisk, NodeError> {
        let EmptyDisk { setup, log } = self;
        let (disk, path) = (setup.env.disk(), setup.vote_path());
        let error = |error| NodeError::file(&path, error);
        disk.sync_directory(&setup.path).await.map_err(error)?;
        let file = disk.open(&path, OpenMode::Write).await.map_err(error)?;
        // What a crash has left of an earlier attempt may be longer.
        file.truncate(0).await.map_err(error)?;
        let group = Group { offset: 0, bytes: vote.new_file(), sync: true, ..Group::default() };
        write_all(&file, group).await.map_err(error)?;
        disk.sync_directory(&path).await.map_err(error)?;
        Box::pin(Replaying::new(setup, log, vote, events).await?.run()).await
    }
}

/// Writes a whole group.
async fn write_all(file: &Rc<dyn File>, group: Group) -> io::Result<()> {
    let appended = file.append(group).await;
    appended.write_error.or(appended.sync_error).map_or(Ok(()), Err)
}

/// A member's log while it is replayed.
struct Replaying<'e> {
    setup: RaftDiskSetup,
    log: Rc<dyn File>,
    identity: FileIdentity,
    vote_file: Rc<dyn File>,
    vote: VoteRecord,
    events: &'e Recipient<LogEvent>,
    found: Replayed,
}

/// What was found in the log.
#[derive(Default)]
struct Replayed {
    index: LineIndex,
    /// The first version of each term.
    terms: Vec<Version>,
    /// The records of the members that are known to be committed.
    records: Vec<(Seq, Members)>,
    /// The place after what is known to be committed.
    committed: Position,
    /// The last entry.
    last: Version,
    /// The end of the part that is compacted.
    base: BaseSeen,
    /// A line that says that records are left out, and is in no such part.
    gap: Option<Version>,
}

impl Replayed {
    /// What was found so far is compacted through there.
    fn begins_after(&mut self, base: BaseSeen) {
        if self.base != base {
            (self.base, self.last) = (base, base.version);
            self.index.clear();
            self.terms.clear();
        }
    }
}

impl<'e> Replaying<'e> {
    async fn new(
        setup: RaftDiskSetup,
        log: Rc<dyn File>,
        vote: VoteRecord,
        events: &'e Recipient<LogEvent>,
    ) -> Result<Self, NodeError> {
        let path = setup.vote_path();
        let vote_file = setup.env.disk().open(&path, OpenMode::Existing).await;
        let vote_file = vote_file.map_err(|error| NodeError::file(&path, error))?;
        let identity = log.identity().await.map_err(|error| NodeError::file(&setup.path, error))?;
        Ok(Replaying { setup, log, identity, vote_file, vote, events, found: Replayed::default() })
    }

    async fn run(mut self) -> Result<StartedDisk, NodeError> {
        let mending = mending(&self.setup);
        let path = self.setup.path.clone();
        let error = |error| NodeError::file(&path, error);
        let place = loop {
            let index = LineIndex::new(self.setup.compact_min_bytes);
            self.found = Replayed { index, ..Replayed::default() };
            let (place, bad) = self.replay().await?;
            let base = self.found.base.version.seq;
            if base > self.vote.commit {
                // A crash has come between the file and its note. What is compacted is committed: it is told from the start.
                self.vote = VoteRecord { number: self.vote.number + 1, commit: base, ..self.vote };
                continue;
            }
            if let Some(gap) = self.found.gap {
                let reason = format!("records before {gap} are left out, and not as a member does that");
                return Err(self.setup.no_member(reason));
            }
            if let Some(bad) = bad {
                // What a member was told while it ran may have been lost by its disk: only SYNCED is proof.
                mending.cut(&self.log, bad, CrashKind::MayHaveLostPower).await?;
            }
            let Some(hole) = mending.make_durable(&self.log, &place).await.map_err(error)? else {
                break place;
            };
            log::warn!(
                "log was read from memory, but it is not on the disk: a write failed, and nothing of that was \
                 acknowledged path={} offset={}",
                self.setup.path.display(),
                hole.offset
            );
            // What is missing may have been replayed: begin again, without it. The file is shorter each time.
            mending.cut(&self.log, hole, CrashKind::MayHaveLostPower).await?;
        };
        // The vote file's last write may not be on the disk, either, if its sync has failed.
        let (offset, bytes) = self.vote.slot();
        let group = Group { offset: offset as u64, bytes, sync: true, ..Group::default() };
        let vote_path = self.setup.vote_path();
        write_all(&self.vote_file, group).await.map_err(|error| NodeError::file(vote_path, error))?;
        self.tell(Vec::new(), self.found.committed, (false, true)).await;
        self.finish(place.position).await
    }

    /// Replays the log once from its start. Gives the place after it, and the bad line there, if one ended it.
    async fn replay(&mut self) -> Result<(LogPlace, Option<BadLine>), NodeError> {
        let path = self.setup.path.clone();
        let error = |error| NodeError::file(&path, error);
        let commit = self.vote.commit;
        let scan = LogScan::new(&LogPlace::default(), self.setup.line_bytes_max).with_members().finishing();
        let mut scan = if commit > Seq(0) { scan.through(commit) } else { scan };
        let mut is_first = true;
        let mut is_committed = commit > Seq(0);
        loop {
            let (then, part) = self.log.scan(scan).await.map_err(error)?;
            scan = then;
            let Part { changes, bad, at_end, is_through, seen, .. } = part;
            self.note(&seen.unwrap_or_default(), is_committed)?;
            let position = scan.position();
            self.check_cluster(&position)?;
            if is_committed {
                self.found.committed = position;
                self.tell(changes, position, (std::mem::take(&mut is_first), false)).await;
                is_committed = !is_through;
            }
            if at_end || bad.is_some() {
                return Ok((scan.place(), bad));
            }
        }
    }

    /// Notes the entries of a part.
    fn note(&mut self, part: &EntriesSeen, is_committed: bool) -> Result<(), NodeError> {
        if part.base.is_some() {
            self.found.gap = None;
        }
        self.found.gap = part.gap.or(self.found.gap);
        for seen in &part.entries {
            if let Some(base) = part.base.filter(|base| base.version.seq < seen.version.seq) {
                self.found.begins_after(base);
            }
            if seen.version.epoch == Epoch(0) {
                return Err(self.setup.no_member("it has lines of the original program"));
            }
            self.found.index.note(seen.version.seq, seen.offset);
            if self.found.last.epoch != seen.version.epoch {
                self.found.terms.push(seen.version);
            }
            self.found.last = seen.version;
        }
        part.base.into_iter().for_each(|base| self.found.begins_after(base));
        for (seq, text) in part.members.iter().filter(|_| is_committed) {
            let words = [b"MEMBERS ", &text[..]].concat();
            let members = Members::parse(&words).ok_or_else(|| {
                self.setup.no_member(format!("its record of the members at seq {seq} makes no sense"))
            })?;
            self.found.records.push((*seq, members));
        }
        Ok(())
    }

    fn check_cluster(&self, position: &Position) -> Result<(), NodeError> {
        let VoteRecord { cluster, .. } = self.vote;
        match position.cluster {
            Some(other) if other != cluster => Err(self.setup.no_member(format!(
                "it is the log of cluster {other}, but its vote file is of cluster {cluster}"
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// Tells the master what the log has committed, and waits until that is taken in.
    async fn tell(&self, changes: Vec<Replay>, end: Position, (from_start, caught_up): (bool, bool)) {
        let FileIdentity { device, inode } = self.identity;
        let part = ReplayPart {
            from_start,
            changes,
            more: 0,
            end,
            durable: end,
            log: Some((device, inode)),
            caught_up,
        };
        // A master that is gone takes nothing in.
        let _ = self.events.send(LogEvent::Replayed(part)).await;
    }

    /// Gives what the machine starts with: the end of the log is read once more, as entries.
    async fn finish(self, position: Position) -> Result<StartedDisk, NodeError> {
        let Replaying { setup, log, identity, vote_file, vote, found, .. } = self;
        let Replayed { index, terms, records, committed, last, base, .. } = found;
        let disk = RaftDisk {
            setup,
            log,
            vote_file,
            vote,
            index,
            identity,
            number: FileNumber::default(),
            base,
            arrived: None,
            forgotten: None,
            room: Rc::default(),
            shortest: u64::MAX,
            end: position.offset,
            last,
            synced: last.seq,
            is_marked: position.ends_with_mark,
            is_full: false,
        };
        let mut tail = Vec::new();
        let mut lines = Vec::new();
        if last.seq > base.version.seq {
            let from = vote.commit.next().min(last.seq);
            let found = disk.fetch(from, last.seq, u64::MAX).await?;
            for (entry, offset) in found.iter().filter(|(entry, _)| entry.version.seq > vote.commit) {
                let line = EntryLine::of(entry, (disk.number, *offset), vote.cluster);
                lines
                    .push(line.map_err(|error| disk.setup.no_member(format!("{}: {error}", entry.version)))?);
            }
            tail = found.into_iter().map(|(entry, _)| entry).collect();
        }
        let start = Start { vote, base: base.version, records, terms, tail };
        Ok(StartedDisk { disk, start, lines, end: committed, base })
    }
}
