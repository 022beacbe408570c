//! Compacts the log: writes a new file of what is live, and puts it in the log's place while the log is written and read.
//!
//! Owns the new file until it is the log. The order of the steps is what keeps every acknowledged record in the file at the
//! path, whatever ends this process or the machine, and at whatever moment; `docs/ARCHITECTURE.md`, *Compaction*, says why:
//!
//! 1. What is live of the log through a seq that the master has taken in is copied, then what was written since, as it is,
//!    until little is left. Every line is checked on the way.
//! 2. The writer is held. The rest is copied and synced; a mark says that all of it is on disk, and is synced.
//! 3. The old file's last line says where the log goes on, for those that follow it.
//! 4. The two files are exchanged, the directory is synced, and what came out is removed, if it is the file that was held.
//! 5. The writer goes on in the new file.
//!
//! Until the exchange nothing has changed, and a failure costs nothing but the copy.

use super::log_tailer::next_piece;
use super::log_writer::{GoOn, Handoff, Hold, LogEnd, LogWriter, MayGrow, NextLog, WhereEnds};
use crate::env::{Env, File, FileIdentity, Group};
use crate::journal::{CompactionNews, LogEvent, Replay};
use actix::prelude::*;
use actix::WeakAddr;
use dsm_protocol::ids::{Seq, Version};
use dsm_protocol::machine::compaction::{after_round, Compaction, Leg, LogSizes, NextStep, Race};
use dsm_protocol::machine::log_scan::{LogPlace, LogScan, Part};
use dsm_protocol::planted;
use dsm_protocol::record::{self, Continuation, FileNumber, Operation, Rewriter, Trailer};
use dsm_protocol::stored_key::StoredKey;
use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
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

/// What a compaction has come to. The writer is held until it is taken in.
pub(super) struct Compacted {
    pub(super) writer: Addr<LogWriter>,
    /// The new log, to read values from.
    pub(super) values: Rc<dyn File>,
    pub(super) identity: FileIdentity,
    pub(super) number: FileNumber,
    /// Values before this are named by places in the old file.
    pub(super) moved_to: u64,
    /// The seq of the last record before it.
    pub(super) through: Seq,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// What was reckoned to be live when it began, and how long that has become, both in bytes.
    pub(super) live_bytes: u64,
    pub(super) copied_bytes: u64,
    /// How long writes waited, in microseconds.
    pub(super) held_us: u64,
}

/// A compaction under way.
pub(super) struct Compactor {
    pub(super) env: Env,
    /// The path of the log.
    pub(super) path: PathBuf,
    pub(super) line_bytes_max: usize,
    pub(super) events: Recipient<LogEvent>,
    /// Not kept alive by this: the log stays locked as long as its writer lives.
    pub(super) writer: WeakAddr<LogWriter>,
    pub(super) handoff: Rc<RefCell<Handoff>>,
    /// A handle of the log, to read it and to write its last line.
    pub(super) old: Rc<dyn File>,
    pub(super) old_identity: FileIdentity,
    /// The number of the new file.
    pub(super) number: FileNumber,
    /// How fast.
    pub(super) rule: Rc<RefCell<Compaction>>,
    /// What is known of the log by now.
    pub(super) sizes: Rc<Cell<LogSizes>>,
    /// Whether to stop.
    pub(super) given_up: Rc<GivenUp>,
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

/// Lets the log grow as its race with a copy allows, and without bound once this is dropped.
pub(super) struct Pace {
    /// None where another process writes the log: then nothing waits.
    writer: Option<WeakAddr<LogWriter>>,
    race: Race,
    rule: Rc<RefCell<Compaction>>,
    sizes: Rc<Cell<LogSizes>>,
    events: Recipient<LogEvent>,
    is_paying: bool,
}

impl Pace {
    pub(super) fn new(
        writer: Option<WeakAddr<LogWriter>>,
        race: Race,
        rule: &Rc<RefCell<Compaction>>,
        sizes: &Rc<Cell<LogSizes>>,
        events: &Recipient<LogEvent>,
    ) -> Self {
        let (rule, sizes, events) = (Rc::clone(rule), Rc::clone(sizes), events.clone());
        Pace { writer, race, rule, sizes, events, is_paying: false }
    }

    /// That one writes the log now.
    pub(super) fn follow(&mut self, writer: Option<WeakAddr<LogWriter>>) {
        self.writer = writer;
    }

    /// The copy has got to `done` in round `round`, and the log ends at `log_bytes`.
    pub(super) fn go_on(&mut self, done: u64, round: usize, log_bytes: u64) {
        let sizes = LogSizes { log_bytes, ..self.sizes.get() };
        let ceiling = self.race.ceiling(&self.rule.borrow(), done, round, sizes);
        let writer = self.writer.as_ref().and_then(WeakAddr::upgrade);
        let (Some(to), Some(writer)) = (ceiling, writer) else { return };
        if !std::mem::replace(&mut self.is_paying, true) {
            log::info!("writes wait for the compaction of the log bytes={log_bytes} copied={done}");
            self.events.do_send(LogEvent::Compaction(CompactionNews::Paces(true)));
        }
        writer.do_send(MayGrow { to: Some(to) });
    }

    /// How long to rest after a part that took `took_us`.
    pub(super) fn rest(&self, took_us: u64, done: u64, log_bytes: u64) -> Duration {
        if self.writer.is_none() {
            // Nor are the sizes known then.
            return Duration::from_micros(self.race.unhurried_us(took_us));
        }
        let sizes = LogSizes { log_bytes, ..self.sizes.get() };
        Duration::from_micros(self.race.rest_us(&self.rule.borrow(), took_us, done, sizes))
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        if self.is_paying {
            self.events.do_send(LogEvent::Compaction(CompactionNews::Paces(false)));
            if let Some(writer) = self.writer.as_ref().and_then(WeakAddr::upgrade) {
                writer.do_send(MayGrow { to: None });
            }
        }
    }
}

/// The new file.
struct Draft {
    file: Rc<dyn File>,
    identity: FileIdentity,
    path: PathBuf,
    /// The path of the log itself, where symbolic links lead.
    place: PathBuf,
    bytes: u64,
    lines: u64,
    synced_bytes: u64,
}

/// The name of the new file while it is written, beside the log; and for a moment that of the old one.
pub(super) fn draft_path(log: &Path) -> PathBuf {
    let mut name = log.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".compact");
    log.with_file_name(name)
}

impl Compactor {
    /// Compacts the log.
    ///
    /// # Errors
    /// See [`NotCompacted`].
    pub(super) async fn run(self) -> Result<Compacted, NotCompacted> {
        let live_bytes = self.sizes.get().live_bytes;
        let place = self.env.disk().resolve(&self.path).await?;
        let path = draft_path(&place);
        let file = self.env.disk().create(&path, &place).await?;
        let identity = file.identity().await?;
        // Until it is removed nobody else's file may get its inode.
        let held = Rc::clone(&file);
        self.handoff.borrow_mut().is_full = false;
        let draft = Draft { file, identity, path, place, bytes: 0, lines: 0, synced_bytes: 0 };
        let path = draft.path.clone();
        let compacted = self.write_and_exchange(draft, live_bytes).await;
        if let Err(NotCompacted::Failed(_) | NotCompacted::GivenUp) = &compacted {
            if let Err(error) = self.env.disk().remove(&path, identity).await {
                log::warn!("unfinished copy of the log not removed path={} error={error}", path.display());
            }
        }
        drop(held);
        compacted
    }

    async fn write_and_exchange(&self, mut draft: Draft, live_bytes: u64) -> Result<Compacted, NotCompacted> {
        // Whoever finds it at the log's path must find it locked.
        if !draft.file.try_lock()? {
            return Err(io::Error::other("the new file is locked by another process").into());
        }
        let reserve_to = Some(self.rule.borrow().live_bytes(self.sizes.get()));
        self.append(&mut draft, Vec::new(), reserve_to).await?;
        let end = self.where_ends().await?;
        let race = Race::new(Leg::Copying, end.offset, end.offset);
        let mut pace = Pace::new(Some(self.writer.clone()), race, &self.rule, &self.sizes, &self.events);
        pace.go_on(0, 0, end.offset);
        self.settle(end.seq).await?;
        let mut scan = self.copy_live(&mut draft, end.offset, &mut pace).await?;
        let copied_bytes = draft.bytes;
        for round in 0.. {
            let end = self.where_ends().await?;
            let left_bytes = end.offset - scan.position().offset;
            match after_round(round, left_bytes) {
                NextStep::Hold => break,
                NextStep::CopyOn => {}
                NextStep::Fail => {
                    let what = format!("the log grows faster than it is copied: {left_bytes} bytes are left");
                    return Err(io::Error::other(what).into());
                }
            }
            scan = self.copy_round(&mut draft, scan, end.offset, round, &mut pace).await?;
        }
        let (values, sync_file) = (draft.file.duplicate().await?, draft.file.duplicate().await?);
        self.stop_if_given_up()?;
        let (answer, held) = oneshot::channel();
        // From here on it must live until the exchange is over.
        let writer = self.writer.upgrade().ok_or(NotCompacted::GivenUp)?;
        writer.do_send(Hold { answer });
        let end = match self.await_answer(held).await {
            Ok(end) => end,
            Err(error) => {
                // It may have been held in the same moment.
                writer.do_send(GoOn { grown: 0 });
                return Err(error);
            }
        };
        let begun_us = self.env.clock_us();
        // The old file stays locked by this until its place is taken.
        let locked = self.handoff.borrow().locked.clone();
        let mut grown = 0;
        let exchanged = self.exchange(&mut draft, scan, end, &mut grown).await;
        let outcome = exchanged.map(|moved_to| {
            let Draft { file, identity, bytes, lines, .. } = draft;
            let next = NextLog { file, sync_file, identity, number: self.number, offset: bytes, lines };
            self.handoff.borrow_mut().next = Some(next);
            let held_us = self.env.clock_us().saturating_sub(begun_us);
            Compacted {
                writer: writer.clone(),
                values,
                identity,
                number: self.number,
                moved_to,
                through: end.seq,
                bytes,
                live_bytes,
                copied_bytes,
                held_us,
            }
        });
        if matches!(outcome, Err(NotCompacted::Failed(_) | NotCompacted::GivenUp)) {
            writer.do_send(GoOn { grown });
        }
        drop(locked);
        outcome
    }

    /// Copies what is live of the log up to `end`.
    async fn copy_live(&self, draft: &mut Draft, end: u64, pace: &mut Pace) -> Result<LogScan, NotCompacted> {
        let mut rewriter = Rewriter::new(self.line_bytes_max);
        let mut scan = LogScan::new(&LogPlace::default(), self.line_bytes_max).keeping_bytes_to(end);
        while scan.position().offset < end {
            self.stop_if_given_up()?;
            let begun_us = self.env.clock_us();
            let (then, part) = self.old.scan(scan).await?;
            scan = then;
            check(&part, &scan, end)?;
            let live = self.which_live(part.changes).await?;
            let (bytes, damaged) = (part.bytes, part.damaged_marks);
            let (answer, answered) = oneshot::channel();
            let work = move || {
                let mut out = Vec::new();
                let rewritten = rewriter.rewrite(&bytes, &damaged, live.into_iter(), &mut out);
                drop(answer.send((rewriter, rewritten.map(|()| out))));
            };
            draft.file.compute(Box::new(work)).await?;
            let (then, rewritten) = answered.await.map_err(io::Error::other)?;
            rewriter = then;
            let out = rewritten.map_err(|bad| io::Error::other(bad.cause.to_string()))?;
            self.append(draft, out, None).await?;
            self.sync_at_times(draft, pace).await?;
            let (bytes, of) = (scan.position().offset, end);
            self.tell(CompactionNews::Copying { bytes, of });
            let log_bytes = self.where_ends().await?.offset;
            pace.go_on(bytes, 0, log_bytes);
            let rest = pace.rest(self.env.clock_us().saturating_sub(begun_us), bytes, log_bytes);
            if !rest.is_zero() {
                self.env.pause(rest).await;
            }
        }
        let mut joint = Vec::new();
        rewriter.join(&mut joint);
        self.append(draft, joint, None).await?;
        draft.lines = rewriter.lines();
        draft.file.sync().await?;
        Ok(scan)
    }

    /// Copies what was written meanwhile up to `end`, as it is, and brings it to the disk.
    async fn copy_round(
        &self,
        draft: &mut Draft,
        mut scan: LogScan,
        end: u64,
        round: usize,
        pace: &mut Pace,
    ) -> Result<LogScan, NotCompacted> {
        scan.go_on_to(end);
        while scan.position().offset < end {
            self.stop_if_given_up()?;
            scan = self.copy_part(draft, scan, end).await?;
            self.sync_at_times(draft, pace).await?;
            let log_bytes = self.where_ends().await?.offset;
            pace.go_on(scan.position().offset, round + 1, log_bytes);
        }
        draft.file.sync().await?;
        draft.synced_bytes = draft.bytes;
        Ok(scan)
    }

    /// Copies the last lines, while no further ones are written.
    async fn copy_rest(&self, draft: &mut Draft, mut scan: LogScan, end: u64) -> Result<(), NotCompacted> {
        scan.go_on_to(end);
        while scan.position().offset < end {
            scan = self.copy_part(draft, scan, end).await?;
        }
        Ok(())
    }

    async fn copy_part(&self, draft: &mut Draft, scan: LogScan, end: u64) -> Result<LogScan, NotCompacted> {
        let lines = scan.position().line;
        let (scan, part) = self.old.scan(scan).await?;
        check(&part, &scan, end)?;
        draft.lines += scan.position().line - lines;
        self.append(draft, part.bytes, None).await?;
        Ok(scan)
    }

    /// With the writer held: makes the new file whole, and puts it in the place of the log. Gives the end of what was copied.
    async fn exchange(
        &self,
        draft: &mut Draft,
        scan: LogScan,
        end: LogEnd,
        grown: &mut u64,
    ) -> Result<u64, NotCompacted> {
        if !planted!(CompactionSkipsRest) {
            self.copy_rest(draft, scan, end.offset).await?;
        }
        let moved = Continuation {
            file: (draft.identity.device, draft.identity.inode),
            offset: draft.bytes,
            line: draft.lines,
        };
        // Space that was set aside beyond the end is given back: it was for what has turned out not to be live.
        draft.file.truncate(draft.bytes).await?;
        if !planted!(CompactedNotSynced) {
            draft.file.sync().await?;
        }
        let came_from = format!("{}:{}", self.old_identity.device, self.old_identity.inode);
        let fields = [("continues", came_from.as_bytes())];
        let mut mark = Vec::new();
        let trailer = Trailer { fields: &fields, ..Trailer::new(end.seq, end.epoch, end.seq) };
        record::encode_with(&Operation::Synced, trailer, &mut mark);
        self.append(draft, mark, None).await?;
        draft.lines += 1;
        if !planted!(CompactedNotSynced) {
            draft.file.sync().await?;
        }
        *grown = self.write_last_line(&moved, end).await?;
        let disk = self.env.disk();
        if let Err(error) = disk.exchange(&draft.path, &draft.place).await {
            return Err(match disk.identity(&draft.place).await {
                Ok(there) if there != Some(draft.identity) => error.into(),
                Ok(_) | Err(_) => NotCompacted::Unknown(error),
            });
        }
        // From here on nothing may be taken back but by another exchange.
        if !planted!(ExchangeNotSynced) {
            disk.sync_directory(&draft.place).await.map_err(NotCompacted::Unknown)?;
        }
        let came_out = disk.identity(&draft.path).await.map_err(NotCompacted::Unknown)?;
        if came_out != Some(self.old_identity) {
            disk.exchange(&draft.path, &draft.place).await.map_err(NotCompacted::Unknown)?;
            disk.sync_directory(&draft.place).await.map_err(NotCompacted::Unknown)?;
            let found = "another file stood at the log's path, and was put back";
            return Err(io::Error::other(found).into());
        }
        if let Err(error) = disk.remove(&draft.path, self.old_identity).await {
            log::warn!("old log not removed path={} error={error}", draft.path.display());
        }
        Ok(moved.offset)
    }

    /// Writes into the old file where the log goes on. Gives how long that line is.
    async fn write_last_line(&self, moved: &Continuation, end: LogEnd) -> Result<u64, NotCompacted> {
        let mut line = Vec::new();
        moved.encode(end.seq, end.epoch, end.synced, &mut line);
        let length = line.len();
        let appended = self.old.append(Group { offset: end.offset, bytes: line, ..Group::default() }).await;
        if appended.written == length {
            return Ok(length as u64);
        }
        // Half a line must not stay in front of what is appended next.
        self.old.truncate(end.offset).await.map_err(NotCompacted::Unknown)?;
        Err(NotCompacted::Failed(appended.write_error.unwrap_or_else(|| io::ErrorKind::WriteZero.into())))
    }

    async fn append(&self, draft: &mut Draft, bytes: Vec<u8>, reserve_to: Option<u64>) -> io::Result<()> {
        let length = bytes.len();
        if length == 0 && reserve_to.is_none() {
            return Ok(());
        }
        let group = Group { offset: draft.bytes, bytes, reserve_to, ..Group::default() };
        let appended = draft.file.append(group).await;
        if appended.written < length || appended.write_error.is_some() {
            return Err(appended.write_error.unwrap_or_else(|| io::ErrorKind::WriteZero.into()));
        }
        draft.bytes += length as u64;
        Ok(())
    }

    async fn sync_at_times(&self, draft: &mut Draft, pace: &Pace) -> io::Result<()> {
        if pace.race.is_sync_due(draft.bytes - draft.synced_bytes) {
            draft.file.sync().await?;
            draft.synced_bytes = draft.bytes;
        }
        Ok(())
    }

    async fn where_ends(&self) -> Result<LogEnd, NotCompacted> {
        let (answer, answered) = oneshot::channel();
        self.writer.upgrade().ok_or(NotCompacted::GivenUp)?.do_send(WhereEnds { answer });
        self.await_answer(answered).await
    }

    /// Waits for an answer, or until this is given up: a master whose reign has ended may give none.
    async fn await_answer<T>(&self, answered: oneshot::Receiver<T>) -> Result<T, NotCompacted> {
        tokio::select! {
            answer = answered => answer.map_err(|_| NotCompacted::GivenUp),
            () = self.given_up.wake.notified() => Err(NotCompacted::GivenUp),
        }
    }

    async fn settle(&self, through: Seq) -> Result<(), NotCompacted> {
        let (answer, answered) = oneshot::channel();
        if planted!(CompactedUnsettled) {
            return Ok(());
        }
        self.tell_master(LogEvent::Settle { through, answer });
        self.await_answer(answered).await
    }

    /// Which of the pairs that these changes write are the latest versions.
    async fn which_live(&self, changes: Vec<Replay>) -> Result<Vec<bool>, NotCompacted> {
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
                self.tell_master(LogEvent::WhichLive { keys, answer });
                live.extend(self.await_answer(answered).await?);
            }
        }
        Ok(live)
    }

    fn stop_if_given_up(&self) -> Result<(), NotCompacted> {
        if self.given_up.is_given_up.get() {
            return Err(NotCompacted::GivenUp);
        }
        if self.handoff.borrow().is_full {
            // The room is the log's.
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        Ok(())
    }

    fn tell(&self, news: CompactionNews) {
        self.tell_master(LogEvent::Compaction(news));
    }

    fn tell_master(&self, event: LogEvent) {
        // One that is gone answers nothing, and its dropped question says so.
        self.events.do_send(event);
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
