//! What the new holder of the lock does to the log before it may reign. See `docs/ARCHITECTURE.md`, *Takeover*.
//!
//! Owns the order of those steps: lock the inode, read to the end, cut what is torn, write again what is not known to
//! be on disk, sync file and directory. Never serves and never appends: the EPOCH record is `LogWriter`'s first.

use crate::config::Fsync;
use crate::env::real::passes;
use crate::env::{Env, File, FileIdentity, Group, OpenMode};
use crate::journal::mending::Mending;
use crate::journal::shared_file::log_tailer::{self, Replayed};
use crate::journal::shared_file::volumes::Volumes;
use crate::node_error::NodeError;
use actix::prelude::*;
use dsm_protocol::machine::log_scan::{LogPlace, LogScan, Part};
use dsm_protocol::planted;
use dsm_protocol::record::{BadLine, CrashKind, FileNumber, Position, Scanner, Step};
use futures_util::future;
use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

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
        let mending = self.mending();
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
                mending.cut(&file, bad, crash).await?;
            }
            let Some(hole) = mending.make_durable(&file, &found.place).await.map_err(io_error)? else {
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
            mending.cut(&file, hole, crash).await?;
            from_start = true;
        };
        let position = self.end_line(&file, place.position).await.map_err(io_error)?;
        Ok(Some(Recovered { file, position, identity, number }))
    }

    fn mending(&self) -> Mending {
        let (env, path, fsync) = (Rc::clone(&self.env), self.path.clone(), self.fsync);
        Mending { env, path, line_bytes_max: self.line_bytes_max, fsync, with_members: false }
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

    /// Ends a last line of the original program that has no newline.
    async fn end_line(&self, file: &Rc<dyn File>, position: Position) -> io::Result<Position> {
        if !position.lacks_newline {
            return Ok(position);
        }
        let group = Group { offset: position.offset, bytes: vec![b'\n'], sync: true, ..Group::default() };
        self.mending().write(file, group).await?;
        let mut scanner = Scanner::resume(position, self.line_bytes_max);
        match scanner.next(b"\n") {
            Step::Partial => Ok(scanner.position()),
            Step::Record { .. } | Step::Ignored | Step::Bad(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "a newline did not end the last line"))
            }
        }
    }
}
