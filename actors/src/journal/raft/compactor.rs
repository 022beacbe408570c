//! Makes the compacted copy of a member's log, while that is written and read.
//!
//! Owns the copy until the disk takes it ([`RaftDisk::swap`](super::disk::RaftDisk)). What is live of the log through the base is
//! rewritten, as the master says; a mark ends that part; then what follows is copied as it is, until little is left.

use super::disk::swaps::{CompactedCopy, SharedRoom, Survey};
use crate::env::Env;
use crate::journal::copying::{check, draft_path, Draft, MasterAsked, NotCompacted};
use dsm_protocol::machine::compaction::{after_round, Compaction, Leg, LogSizes, NextStep, Race};
use dsm_protocol::machine::log_scan::{BaseSeen, LogPlace, LogScan};
use dsm_protocol::record::Rewriter;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// A copy under way.
pub(super) struct MemberCompactor {
    pub(super) env: Env,
    /// The path of the log.
    pub(super) path: PathBuf,
    pub(super) line_bytes_max: usize,
    pub(super) asked: MasterAsked,
    pub(super) survey: Survey,
    /// How fast.
    pub(super) rule: Rc<RefCell<Compaction>>,
    /// What is known of the log by now: without what it keeps of its entries.
    pub(super) sizes: Rc<Cell<LogSizes>>,
    /// How long the log is by now.
    pub(super) log_bytes: Rc<Cell<u64>>,
    pub(super) room: Rc<SharedRoom>,
    /// How much it keeps of its entries.
    pub(super) kept_bytes: u64,
}

impl MemberCompactor {
    /// Makes the copy.
    ///
    /// # Errors
    /// See [`NotCompacted`]. Nothing is left of it then.
    pub(super) async fn run(self) -> Result<CompactedCopy, NotCompacted> {
        let place = self.env.disk().resolve(&self.path).await?;
        let draft = Draft::create(&self.env, draft_path(&place), place).await?;
        // Until it is removed nobody else's file may get its inode.
        let held = Rc::clone(&draft.file);
        let (path, identity, env) = (draft.path.clone(), draft.identity, Rc::clone(&self.env));
        let copy = self.write(draft).await;
        if copy.is_err() {
            Draft::remove(&env, &path, identity).await;
        }
        drop(held);
        copy
    }

    async fn write(self, mut draft: Draft) -> Result<CompactedCopy, NotCompacted> {
        draft.lock()?;
        let reserve_to = self.rule.borrow().live_bytes(self.sizes.get()) + self.kept_bytes;
        draft.append(Vec::new(), Some(reserve_to)).await?;
        self.asked.settle(self.survey.base.seq).await?;
        let race = Race::new(Leg::Copying, self.sizes.get().log_bytes, self.survey.offset);
        let (mut scan, base) = self.copy_live(&mut draft, &race).await?;
        for round in 0.. {
            self.go_on()?;
            let end = self.log_bytes.get();
            let left_bytes = end.saturating_sub(scan.position().offset);
            match after_round(round, left_bytes) {
                NextStep::Hold => break,
                NextStep::CopyOn => {}
                NextStep::Fail => {
                    let what = format!("the log grows faster than it is copied: {left_bytes} bytes are left");
                    return Err(io::Error::other(what).into());
                }
            }
            scan.go_on_to(end);
            while scan.position().offset < end {
                self.go_on()?;
                scan = draft.copy_part(&*self.survey.old, scan, end).await?;
                sync_at_times(&mut draft, &race).await?;
            }
            draft.sync().await?;
        }
        self.go_on()?;
        Ok(CompactedCopy { draft, base, survey: self.survey, scan })
    }

    /// Copies what is live through the base.
    async fn copy_live(&self, draft: &mut Draft, race: &Race) -> Result<(LogScan, BaseSeen), NotCompacted> {
        let end = self.survey.offset;
        let mut rewriter = Rewriter::new(self.line_bytes_max).with_members();
        let scan = LogScan::new(&LogPlace::default(), self.line_bytes_max);
        let mut scan = scan.with_members().keeping_bytes_to(end);
        while scan.position().offset < end {
            self.go_on()?;
            let begun_us = self.env.clock_us();
            let (then, part) = self.survey.old.scan(scan).await?;
            scan = then;
            check(&part, &scan, end)?;
            let live = self.asked.which_live(part.changes).await?;
            // What the master has forgotten, to be told it anew, it would call superseded.
            self.go_on()?;
            rewriter = draft.rewrite_part(rewriter, (part.bytes, part.damaged_marks), live).await?;
            sync_at_times(draft, race).await?;
            self.asked.tell(&scan.position(), end);
            let log_bytes = self.log_bytes.get().saturating_sub(self.kept_bytes);
            let sizes = LogSizes { log_bytes, ..self.sizes.get() };
            let took_us = self.env.clock_us().saturating_sub(begun_us);
            let rest = race.rest_us(&self.rule.borrow(), took_us, scan.position().offset, sizes);
            if rest > 0 {
                self.env.pause(Duration::from_micros(rest)).await;
            }
        }
        let mut mark = Vec::new();
        let version = rewriter.end_base(&mut mark);
        if version != self.survey.base {
            let what = format!("the copy ends at {version} instead of {}", self.survey.base);
            return Err(io::Error::other(what).into());
        }
        draft.append(mark, None).await?;
        draft.lines = rewriter.lines();
        draft.sync().await?;
        Ok((scan, BaseSeen { version, end: draft.bytes }))
    }

    fn go_on(&self) -> Result<(), NotCompacted> {
        self.asked.go_on()?;
        if self.room.is_full.get() {
            // The room is the log's.
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        Ok(())
    }
}

async fn sync_at_times(draft: &mut Draft, race: &Race) -> io::Result<()> {
    if race.is_sync_due(draft.unsynced_bytes()) {
        draft.sync().await?;
    }
    Ok(())
}
