//! What it takes to write a log anew: the new file until it is the log, and what the master is asked meanwhile.
//!
//! Owns no order of steps: who compacts a log has that ([`shared_file`](super::shared_file), [`raft`](super::raft)).

use crate::env::{Env, File, FileIdentity, Group};
use crate::journal::pieces::next_piece;
use crate::journal::{CompactionNews, LogEvent, Replay};
use actix::prelude::*;
use dsm_protocol::ids::{Seq, Version};
use dsm_protocol::machine::log_scan::{LogScan, Part};
use dsm_protocol::planted;
use dsm_protocol::record::{Position, Rewriter};
use dsm_protocol::stored_key::StoredKey;
use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use thiserror::Error;
use tokio::sync::{oneshot, Notify};

/// How a compaction ends without a new log.
#[derive(Debug, Error)]
pub(super) enum NotCompacted {
    /// The system refuses something, or a line cannot be read. The log is as it was.
    #[error("{0}")]
    Failed(#[from] io::Error),
    /// The reign is about to end, or has.
    #[error("the log is closed")]
    GivenUp,
    /// The files are exchanged, and it is not known which of them a restart finds.
    #[error("{0}")]
    Unknown(io::Error),
}

/// By which a compaction is told to stop.
#[derive(Default)]
pub(super) struct GivenUp {
    is_given_up: Cell<bool>,
    wake: Notify,
}

impl GivenUp {
    /// Tells the compaction to stop at its next step.
    pub(super) fn give_up(&self) {
        self.is_given_up.set(true);
        self.wake.notify_one();
    }
}

/// The name of a new file while it is written, beside the log.
pub(super) fn path_beside(log: &Path, ending: &str) -> PathBuf {
    let mut name = log.file_name().map_or_else(OsString::new, OsString::from);
    name.push(ending);
    log.with_file_name(name)
}

/// The name of the copy while it is written; and for a moment that of the old file.
pub(super) fn draft_path(log: &Path) -> PathBuf {
    path_beside(log, ".compact")
}

/// A new file that is to be the log.
pub(super) struct Draft {
    pub(super) file: Rc<dyn File>,
    pub(super) identity: FileIdentity,
    pub(super) path: PathBuf,
    /// The path of the log itself, where symbolic links lead.
    pub(super) place: PathBuf,
    pub(super) bytes: u64,
    pub(super) lines: u64,
    pub(super) synced_bytes: u64,
}

impl Draft {
    /// An empty one beside the log that `place` is the path of, with its owner and rights.
    pub(super) async fn create(env: &Env, path: PathBuf, place: PathBuf) -> io::Result<Self> {
        let file = env.disk().create(&path, &place).await?;
        let identity = file.identity().await?;
        Ok(Draft { file, identity, path, place, bytes: 0, lines: 0, synced_bytes: 0 })
    }

    /// Whoever finds it at the log's path must find it locked.
    pub(super) fn lock(&self) -> io::Result<()> {
        if self.file.try_lock()? {
            return Ok(());
        }
        Err(io::Error::other("the new file is locked by another process"))
    }

    /// Appends bytes, once so much space is set aside.
    pub(super) async fn append(&mut self, bytes: Vec<u8>, reserve_to: Option<u64>) -> io::Result<()> {
        let length = bytes.len();
        if length == 0 && reserve_to.is_none() {
            return Ok(());
        }
        let group = Group { offset: self.bytes, bytes, reserve_to, ..Group::default() };
        let appended = self.file.append(group).await;
        if appended.written < length || appended.write_error.is_some() {
            return Err(appended.write_error.unwrap_or_else(|| io::ErrorKind::WriteZero.into()));
        }
        self.bytes += length as u64;
        Ok(())
    }

    /// How much is not on the disk.
    pub(super) fn unsynced_bytes(&self) -> u64 {
        self.bytes - self.synced_bytes
    }

    /// Brings it to the disk.
    pub(super) async fn sync(&mut self) -> io::Result<()> {
        self.file.sync().await?;
        self.synced_bytes = self.bytes;
        Ok(())
    }

    /// Copies the next lines of a log that ends at `end`, as they are.
    pub(super) async fn copy_part(&mut self, old: &dyn File, scan: LogScan, end: u64) -> io::Result<LogScan> {
        let lines = scan.position().line;
        let (scan, part) = old.scan(scan).await?;
        check(&part, &scan, end)?;
        self.lines += scan.position().line - lines;
        self.append(part.bytes, None).await?;
        Ok(scan)
    }

    /// Appends what is left of the lines of a part, of which the damaged marks at these offsets are passed over.
    pub(super) async fn rewrite_part(
        &mut self,
        rewriter: Rewriter,
        (bytes, damaged): (Vec<u8>, Vec<u64>),
        live: Vec<bool>,
    ) -> io::Result<Rewriter> {
        let mut rewriter = rewriter;
        let (answer, answered) = oneshot::channel();
        let work = move || {
            let mut out = Vec::new();
            let rewritten = rewriter.rewrite(&bytes, &damaged, live.into_iter(), &mut out);
            drop(answer.send((rewriter, rewritten.map(|()| out))));
        };
        self.file.compute(Box::new(work)).await?;
        let (rewriter, rewritten) = answered.await.map_err(io::Error::other)?;
        let out = rewritten.map_err(|bad| io::Error::other(bad.cause.to_string()))?;
        self.append(out, None).await?;
        Ok(rewriter)
    }

    /// Exchanges it and the file that is the log, which is `old`, and removes that one.
    ///
    /// # Errors
    /// `Failed` when nothing has changed, `Unknown` when it is not known which of the two a restart finds.
    pub(super) async fn take_place(&self, env: &Env, old: FileIdentity) -> Result<(), NotCompacted> {
        let disk = env.disk();
        if let Err(error) = disk.exchange(&self.path, &self.place).await {
            return Err(match disk.identity(&self.place).await {
                Ok(there) if there != Some(self.identity) => error.into(),
                Ok(_) | Err(_) => NotCompacted::Unknown(error),
            });
        }
        // From here on nothing may be taken back but by another exchange.
        if !planted!(ExchangeNotSynced) {
            disk.sync_directory(&self.place).await.map_err(NotCompacted::Unknown)?;
        }
        let came_out = disk.identity(&self.path).await.map_err(NotCompacted::Unknown)?;
        if came_out != Some(old) {
            disk.exchange(&self.path, &self.place).await.map_err(NotCompacted::Unknown)?;
            disk.sync_directory(&self.place).await.map_err(NotCompacted::Unknown)?;
            let found = "another file stood at the log's path, and was put back";
            return Err(io::Error::other(found).into());
        }
        if let Err(error) = disk.remove(&self.path, old).await {
            log::warn!("old log not removed path={} error={error}", self.path.display());
        }
        Ok(())
    }

    /// Removes it, which came to nothing.
    pub(super) async fn remove(env: &Env, path: &Path, identity: FileIdentity) {
        if let Err(error) = env.disk().remove(path, identity).await {
            log::warn!("unfinished copy of the log not removed path={} error={error}", path.display());
        }
    }
}

/// What a compaction asks the master.
pub(super) struct MasterAsked {
    pub(super) events: Recipient<LogEvent>,
    /// Whether to stop.
    pub(super) given_up: Rc<GivenUp>,
}

impl MasterAsked {
    /// Waits for an answer, or until this is given up: a master whose reign has ended may give none.
    pub(super) async fn await_answer<T>(&self, answered: oneshot::Receiver<T>) -> Result<T, NotCompacted> {
        tokio::select! {
            answer = answered => answer.map_err(|_| NotCompacted::GivenUp),
            () = self.given_up.wake.notified() => Err(NotCompacted::GivenUp),
        }
    }

    /// Waits until it has taken in all records through this one.
    pub(super) async fn settle(&self, through: Seq) -> Result<(), NotCompacted> {
        let (answer, answered) = oneshot::channel();
        if planted!(CompactedUnsettled) {
            return Ok(());
        }
        self.events.do_send(LogEvent::Settle { through, answer });
        self.await_answer(answered).await
    }

    /// Which of the pairs that these changes write are the latest versions.
    pub(super) async fn which_live(&self, changes: Vec<Replay>) -> Result<Vec<bool>, NotCompacted> {
        let mut live = Vec::with_capacity(changes.len());
        let mut changes = changes.into_iter();
        while changes.len() > 0 {
            let keys: Vec<(StoredKey, Version)> = next_piece(&mut changes)
                .into_iter()
                .filter_map(|change| match change {
                    Replay::Put { key, version, .. } => Some((key, version)),
                    Replay::Delete { .. } | Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => None,
                })
                .collect();
            if !keys.is_empty() {
                let (answer, answered) = oneshot::channel();
                self.events.do_send(LogEvent::WhichLive { keys, answer });
                live.extend(self.await_answer(answered).await?);
            }
        }
        Ok(live)
    }

    /// Stops, if this is given up.
    pub(super) fn go_on(&self) -> Result<(), NotCompacted> {
        if self.given_up.is_given_up.get() {
            return Err(NotCompacted::GivenUp);
        }
        Ok(())
    }

    /// Tells how far it is.
    pub(super) fn tell(&self, position: &Position, of: u64) {
        let bytes = position.offset;
        // One that is gone answers nothing, and its dropped question says so.
        self.events.do_send(LogEvent::Compaction(CompactionNews::Copying { bytes, of }));
    }
}

/// Whether all of a part could be read.
pub(super) fn check(part: &Part, scan: &LogScan, end: u64) -> io::Result<()> {
    if let Some(bad) = &part.bad {
        let what = format!("byte {}, line {} cannot be read: {}", bad.offset, bad.line, bad.cause);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    if part.lost || (part.at_end && scan.position().offset < end) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
