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

use super::log_writer::{GoOn, Handoff, Hold, LogEnd, LogWriter, MayGrow, NextLog, WhereEnds};
use crate::env::{Env, File, FileIdentity, Group};
use crate::journal::copying::{check, draft_path, Draft, MasterAsked, NotCompacted};
use crate::journal::{CompactionNews, LogEvent};
use actix::prelude::*;
use actix::WeakAddr;
use dsm_protocol::ids::Seq;
use dsm_protocol::machine::compaction::{after_round, Compaction, Leg, LogSizes, NextStep, Race};
use dsm_protocol::machine::log_scan::{LogPlace, LogScan};
use dsm_protocol::planted;
use dsm_protocol::record::{self, Continuation, FileNumber, Operation, Rewriter, Trailer};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

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
    pub(super) asked: MasterAsked,
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

impl Compactor {
    /// Compacts the log.
    ///
    /// # Errors
    /// See [`NotCompacted`].
    pub(super) async fn run(self) -> Result<Compacted, NotCompacted> {
        let live_bytes = self.sizes.get().live_bytes;
        let place = self.env.disk().resolve(&self.path).await?;
        let draft = Draft::create(&self.env, draft_path(&place), place).await?;
        // Until it is removed nobody else's file may get its inode.
        let held = Rc::clone(&draft.file);
        self.handoff.borrow_mut().is_full = false;
        let (path, identity) = (draft.path.clone(), draft.identity);
        let compacted = self.write_and_exchange(draft, live_bytes).await;
        if let Err(NotCompacted::Failed(_) | NotCompacted::GivenUp) = &compacted {
            Draft::remove(&self.env, &path, identity).await;
        }
        drop(held);
        compacted
    }

    async fn write_and_exchange(&self, mut draft: Draft, live_bytes: u64) -> Result<Compacted, NotCompacted> {
        draft.lock()?;
        let reserve_to = Some(self.rule.borrow().live_bytes(self.sizes.get()));
        draft.append(Vec::new(), reserve_to).await?;
        let end = self.where_ends().await?;
        let race = Race::new(Leg::Copying, end.offset, end.offset);
        let mut pace =
            Pace::new(Some(self.writer.clone()), race, &self.rule, &self.sizes, &self.asked.events);
        pace.go_on(0, 0, end.offset);
        self.asked.settle(end.seq).await?;
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
        let end = match self.asked.await_answer(held).await {
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
            let live = self.asked.which_live(part.changes).await?;
            rewriter = draft.rewrite_part(rewriter, (part.bytes, part.damaged_marks), live).await?;
            self.sync_at_times(draft, pace).await?;
            self.asked.tell(&scan.position(), end);
            let bytes = scan.position().offset;
            let log_bytes = self.where_ends().await?.offset;
            pace.go_on(bytes, 0, log_bytes);
            let rest = pace.rest(self.env.clock_us().saturating_sub(begun_us), bytes, log_bytes);
            if !rest.is_zero() {
                self.env.pause(rest).await;
            }
        }
        let mut joint = Vec::new();
        rewriter.join(&mut joint);
        draft.append(joint, None).await?;
        draft.lines = rewriter.lines();
        draft.sync().await?;
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
            scan = draft.copy_part(&*self.old, scan, end).await?;
            self.sync_at_times(draft, pace).await?;
            let log_bytes = self.where_ends().await?.offset;
            pace.go_on(scan.position().offset, round + 1, log_bytes);
        }
        draft.sync().await?;
        Ok(scan)
    }

    /// Copies the last lines, while no further ones are written.
    async fn copy_rest(&self, draft: &mut Draft, mut scan: LogScan, end: u64) -> Result<(), NotCompacted> {
        scan.go_on_to(end);
        while scan.position().offset < end {
            scan = draft.copy_part(&*self.old, scan, end).await?;
        }
        Ok(())
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
        draft.append(mark, None).await?;
        draft.lines += 1;
        if !planted!(CompactedNotSynced) {
            draft.file.sync().await?;
        }
        *grown = self.write_last_line(&moved, end).await?;
        draft.take_place(&self.env, self.old_identity).await?;
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

    async fn where_ends(&self) -> Result<LogEnd, NotCompacted> {
        let (answer, answered) = oneshot::channel();
        self.writer.upgrade().ok_or(NotCompacted::GivenUp)?.do_send(WhereEnds { answer });
        self.asked.await_answer(answered).await
    }

    async fn sync_at_times(&self, draft: &mut Draft, pace: &Pace) -> io::Result<()> {
        if pace.race.is_sync_due(draft.unsynced_bytes()) {
            draft.sync().await?;
        }
        Ok(())
    }

    fn stop_if_given_up(&self) -> Result<(), NotCompacted> {
        self.asked.go_on()?;
        if self.handoff.borrow().is_full {
            // The room is the log's.
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        Ok(())
    }
}
