//! What the new holder of the lock does to the log before it may reign. See `docs/ARCHITECTURE.md`, *Takeover*.
//!
//! Owns the order of those steps: lock the inode, read to the end, cut what is torn, write again what is not known to
//! be on disk, sync file and directory. Never serves and never appends: the EPOCH record is `LogWriter`'s first.

use crate::config::Fsync;
use crate::env::real::passes;
use crate::env::{Env, File, FileIdentity, Group, OpenMode};
use crate::journal::shared_file::log_tailer::{self, Replayed};
use crate::journal::shared_file::log_writer::{is_full, ROOM_EVERY};
use crate::journal::shared_file::volumes::Volumes;
use crate::node_error::{LogDamage, NodeError};
use actix::prelude::*;
use dsm_protocol::machine::log_scan::{LogPlace, LogScan, Part, CHUNK_BYTES};
use dsm_protocol::planted;
use dsm_protocol::record::{
    BadLine, CrashKind, FileNumber, Judge, Position, RecordError, Scanner, Step, Verdict,
};
use futures_util::future;
use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// A torn tail longer than this is not cut by itself when the log is not synced before answers, in bytes.
const CUT_MAX_BYTES: u64 = 1 << 20;

/// How long it may take until it is strange that the log's inode is still locked, in milliseconds: the kernel frees the
/// locks of a killed holder one after another, and this one last.
const INODE_LOCK_PATIENCE_MS: u64 = 500;

/// How often the lock on the log's inode is tried while somebody without the lock file still has it.
const INODE_LOCK_EVERY: Duration = Duration::from_millis(20);

/// What recovery starts from.
pub(crate) struct Recovery {
    pub(crate) env: Env,
    /// The path of the log.
    pub(crate) path: PathBuf,
    /// The longest line that a record may take, in bytes.
    pub(crate) line_bytes_max: usize,
    /// When records count as written.
    pub(crate) fsync: Fsync,
    /// What can have happened to the log since it was last known to be whole.
    pub(crate) crash: CrashKind,
    /// Where the tailer stopped.
    pub(crate) from: log_tailer::Start,
    /// Takes in what is found.
    pub(crate) replayed: Recipient<Replayed>,
    /// Whether the file is made if there is none.
    pub(crate) makes_file: bool,
    /// Where the files are kept in which values stand.
    pub(crate) volumes: Rc<RefCell<Volumes>>,
}

/// How far a replay has come.
struct Found {
    /// The place after what is replayed.
    place: LogPlace,
    /// The bad line there, if one ended it.
    bad: Option<BadLine>,
    /// Whether it could not go on where it was to begin.
    lost: bool,
}

/// A log that is whole, durable, locked and replayed.
pub(crate) struct Recovered {
    pub(crate) file: Rc<dyn File>,
    /// The place after its last record.
    pub(crate) position: Position,
    /// Which file it is.
    pub(crate) identity: FileIdentity,
    /// Its number in the places of values.
    pub(crate) number: FileNumber,
}

impl Recovery {
    /// Makes the log whole. `None` when there is none.
    ///
    /// # Errors
    /// `File` when the system refuses something, `Corrupt` when acknowledged records are damaged.
    pub(crate) async fn run(self) -> Result<Option<Recovered>, NodeError> {
        let path = self.path.display().to_string();
        let io_error = |error: io::Error| NodeError::file(&self.path, error);
        let file = match self.open_locked().await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io_error)?,
        };
        let identity = file.identity().await.map_err(io_error)?;
        let length = file.length().await.map_err(io_error)?;
        let same = self.from.file == Some(identity) && self.from.place.position.offset <= length;
        let mut from_start = !same;
        let mut number = self.from.number;
        let mut crash = self.crash;
        let place = loop {
            if from_start {
                number = self.volumes.borrow_mut().begin_anew();
            }
            let begin = if from_start { LogPlace::default() } else { self.from.place.clone() };
            let found = if same && planted!(RecoveryStopsEarly) {
                Found { place: begin, bad: None, lost: false }
            } else {
                self.replay(&file, begin, from_start, (identity, number)).await.map_err(io_error)?
            };
            if found.lost {
                // The disk has not got it, or somebody has found that out before us, cut it, and written on.
                log::warn!("log is not what was read from memory, reading it again path={path}");
                from_start = true;
                crash = CrashKind::MayHaveLostPower;
                continue;
            }
            if let Some(bad) = found.bad {
                self.cut(&file, bad, crash).await?;
            }
            let Some(hole) = self.make_durable(&file, &found.place).await.map_err(io_error)? else {
                break found.place;
            };
            let end = found.place.position;
            log::warn!(
                "log was read from memory, but it is not on the disk: a write failed, and nothing of that was \
                 acknowledged path={path} offset={} line={} bytes={} lines={}",
                hole.offset,
                hole.line,
                end.offset - hole.offset,
                (end.line + 1).saturating_sub(hole.line)
            );
            // What is missing may have been replayed: begin again, without it. The file is shorter each time.
            crash = CrashKind::MayHaveLostPower;
            self.cut(&file, hole, crash).await?;
            from_start = true;
        };
        let position = self.end_line(&file, place.position).await.map_err(io_error)?;
        Ok(Some(Recovered { file, position, identity, number }))
    }

    /// Opens the log and takes the lock on its inode; whoever still has it reigns without the lock file.
    async fn open_locked(&self) -> io::Result<Rc<dyn File>> {
        let begun = self.env.now();
        let (mut warned, mut refused) = (false, false);
        loop {
            let mode = if self.makes_file { OpenMode::Write } else { OpenMode::Existing };
            let file = self.env.disk().open(&self.path, mode).await?;
            let locked = match file.try_lock() {
                Err(error) if passes(&error) => {
                    if !std::mem::replace(&mut refused, true) {
                        log::warn!(
                            "the system refuses for now, retrying what=\"the log's lock\" error={error}"
                        );
                    }
                    tokio::time::sleep(INODE_LOCK_EVERY).await;
                    continue;
                }
                locked => locked?,
            };
            if locked || planted!(TakeoverWithoutLock) {
                if self.env.disk().identity(&self.path).await? == Some(file.identity().await?) {
                    return Ok(file);
                }
            } else if self.env.now().since(begun) >= INODE_LOCK_PATIENCE_MS
                && !std::mem::replace(&mut warned, true)
            {
                log::warn!(
                    "log is locked by another process, waiting path={} (was the lock file deleted?)",
                    self.path.display()
                );
            }
            tokio::time::sleep(INODE_LOCK_EVERY).await;
        }
    }

    /// Replays the rest of the log from `begin` on.
    async fn replay(
        &self,
        file: &Rc<dyn File>,
        begin: LogPlace,
        from_start: bool,
        (identity, number): (FileIdentity, FileNumber),
    ) -> io::Result<Found> {
        let begin =
            if planted!(RecoveryBelievesMemory) { LogPlace { tail: Vec::new(), ..begin } } else { begin };
        let scan = LogScan::new(&begin, self.line_bytes_max).in_file(number).finishing();
        let mut from_start = from_start;
        let mut before = scan.place();
        let mut scanned = file.scan(scan).await?;
        loop {
            let (scan, part) = scanned;
            log_tailer::tell_of_marks(&self.path, &part);
            let Part { changes, bad, at_end, lost, .. } = part;
            let place = scan.place();
            if lost {
                return Ok(Found { place, bad, lost });
            }
            let replayed = Replayed {
                from_start: std::mem::take(&mut from_start),
                changes,
                more: 0,
                place: place.clone(),
                file: Some(identity),
                number,
                caught_up: at_end,
                moved_to: None,
            };
            let handing_over = log_tailer::hand_over(
                &self.replayed,
                replayed,
                std::mem::replace(&mut before, place.clone()),
            );
            if at_end || bad.is_some() {
                handing_over.await;
                return Ok(Found { place, bad, lost });
            }
            // The next part is read and parsed while the master takes this one in.
            scanned = future::join(handing_over, file.scan(scan)).await.1?;
        }
    }

    /// Judges a bad line and cuts the log in front of it, if it is torn.
    async fn cut(&self, file: &Rc<dyn File>, bad: BadLine, crash: CrashKind) -> Result<(), NodeError> {
        let path = self.path.display();
        let io_error = |error: io::Error| NodeError::file(&self.path, error);
        let corrupt = |damage| NodeError::Corrupt { path: self.path.clone(), damage };
        let mut judge = Judge::new(bad.clone(), crash, self.line_bytes_max);
        let mut offset = bad.offset;
        loop {
            let bytes = file.read_at(offset, CHUNK_BYTES).await.map_err(io_error)?;
            judge.push(&bytes);
            offset += bytes.len() as u64;
            if bytes.len() < CHUNK_BYTES || judge.is_decided() {
                break;
            }
        }
        match judge.finish() {
            Verdict::Torn { offset, bytes, lines } => {
                if self.fsync != Fsync::Always && bytes > CUT_MAX_BYTES {
                    let bytes_max = CUT_MAX_BYTES;
                    return Err(corrupt(LogDamage::TornTooFar { offset, bytes, lines, bytes_max }));
                }
                log::warn!(
                    "log has a torn tail, cutting it path={path} offset={offset} bytes={bytes} lines={lines}"
                );
                file.truncate(offset).await.map_err(io_error)?;
                // The cut must be on disk before anything is appended: old bytes must not come back after it.
                file.sync().await.map_err(io_error)
            }
            Verdict::Corrupt { offset, line, cause: RecordError::Foreign, .. } => {
                Err(corrupt(LogDamage::Foreign { offset, line }))
            }
            Verdict::Corrupt { offset, line, cause, evidence } => {
                Err(corrupt(LogDamage::Record { offset, line, cause, evidence }))
            }
        }
    }

    /// Brings every byte to the disk, those of a failed sync included: the kernel may call pages clean that never
    /// got there, so what no SYNCED covers is written again.
    ///
    /// What is written again is what this reads now, and each line of it is looked at first: since the log was replayed,
    /// the kernel may have thrown such a page away, and then gives what the disk has. Gives the first line that is not
    /// what was replayed.
    async fn make_durable(&self, file: &Rc<dyn File>, place: &LogPlace) -> io::Result<Option<BadLine>> {
        let end = place.position.offset;
        let mut scan =
            LogScan::new(&LogPlace::durable(place.durable), self.line_bytes_max).keeping_bytes_to(end);
        let writes = self.fsync == Fsync::Always && !planted!(RecoveryWritesNothingAgain);
        while writes && scan.position().offset < end {
            let offset = scan.position().offset;
            planted!(RecoveryBelievesMemory => {
                let bytes = file.read_at(offset, (end - offset) as usize).await?;
                self.write(file, Group { offset, bytes, ..Group::default() }).await?;
                break;
            });
            let (then, part) = file.scan(scan).await?;
            scan = then;
            if !part.bytes.is_empty() {
                let group = Group { offset, bytes: part.bytes, ..Group::default() };
                self.write(file, group).await?;
            }
            if part.bad.is_some() {
                return Ok(part.bad);
            }
            if part.at_end && scan.position().offset < end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if !planted!(RecoveryNotSynced) {
            file.sync().await?;
        }
        planted!(DirectoryNotSynced => {
            return Ok(None);
        });
        // That of the file itself, if the path leads there over links: a compaction exchanges it there.
        let place = self.env.disk().resolve(&self.path).await?;
        self.env.disk().sync_directory(&place).await?;
        Ok(None)
    }

    /// Writes a group, however long the disk is full: whoever takes over in our place would find no more room.
    async fn write(&self, file: &Rc<dyn File>, group: Group) -> io::Result<()> {
        let Group { offset, mut bytes, sync, reserve_to, post } = group;
        let mut told = false;
        loop {
            let post = post.clone();
            let appended = file.append(Group { offset, bytes, sync, reserve_to, post }).await;
            // A failed sync is never tried again, whatever its reason.
            if let Some(error) = appended.sync_error {
                return Err(error);
            }
            match appended.write_error {
                None => return Ok(()),
                Some(error) if is_full(Some(&error)) => {
                    if !std::mem::replace(&mut told, true) {
                        log::warn!(
                            "log cannot be made whole, waiting for room cause=disk-full error={error}"
                        );
                    }
                    bytes = appended.bytes;
                    tokio::time::sleep(ROOM_EVERY).await;
                }
                Some(error) => return Err(error),
            }
        }
    }

    /// Ends a last line of the original program that has no newline.
    async fn end_line(&self, file: &Rc<dyn File>, position: Position) -> io::Result<Position> {
        if !position.lacks_newline {
            return Ok(position);
        }
        let group = Group { offset: position.offset, bytes: vec![b'\n'], sync: true, ..Group::default() };
        self.write(file, group).await?;
        let mut scanner = Scanner::resume(position, self.line_bytes_max);
        match scanner.next(b"\n") {
            Step::Partial => Ok(scanner.position()),
            Step::Record { .. } | Step::Ignored | Step::Bad(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "a newline did not end the last line"))
            }
        }
    }
}
