//! What makes a log whole again after a crash: the steps that are the same whoever may append to it.
//!
//! Owns how a torn end is cut, and how what is not known to be on disk is brought there. Never decides what is replayed, and
//! never appends a record.

use crate::config::Fsync;
use crate::env::{Env, File, Group};
use crate::node_error::{LogDamage, NodeError};
use dsm_protocol::machine::log_scan::{LogPlace, LogScan, CHUNK_BYTES};
use dsm_protocol::planted;
use dsm_protocol::record::{BadLine, CrashKind, Judge, RecordError, Verdict};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// A torn tail longer than this is not cut by itself when the log is not synced before answers, in bytes.
const CUT_MAX_BYTES: u64 = 1 << 20;

/// How often a record that must be written is tried again while the disk is full.
pub(crate) const ROOM_EVERY: Duration = Duration::from_millis(250);

/// A log that is to be made whole.
pub(crate) struct Mending {
    pub(crate) env: Env,
    /// The path of the log.
    pub(crate) path: PathBuf,
    /// The longest line that a record may take, in bytes.
    pub(crate) line_bytes_max: usize,
    /// When records count as written.
    pub(crate) fsync: Fsync,
    /// Whether masters on several machines keep it.
    pub(crate) with_members: bool,
}

impl Mending {
    /// Judges a bad line and cuts the log in front of it, if it is torn.
    pub(crate) async fn cut(
        &self,
        file: &Rc<dyn File>,
        bad: BadLine,
        crash: CrashKind,
    ) -> Result<(), NodeError> {
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
    pub(crate) async fn make_durable(
        &self,
        file: &Rc<dyn File>,
        place: &LogPlace,
    ) -> io::Result<Option<BadLine>> {
        let end = place.position.offset;
        let mut scan =
            LogScan::new(&LogPlace::durable(place.durable), self.line_bytes_max).keeping_bytes_to(end);
        if self.with_members {
            scan = scan.with_members();
        }
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
    pub(crate) async fn write(&self, file: &Rc<dyn File>, group: Group) -> io::Result<()> {
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
}

/// Whether an error says that the disk, or what one file or user may have of it, is used up.
pub(crate) fn is_full(error: Option<&io::Error>) -> bool {
    error.is_some_and(|error| {
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            || error.kind() == io::ErrorKind::FileTooLarge
    })
}
