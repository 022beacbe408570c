//! Another file takes the place of a member's log: its own copy that was compacted, or a leader's.
//!
//! Owns what [`RaftDisk`] does for that between two batches, and the file that arrives. Never decides how far a log may be compacted, or
//! whether a file is taken.

use super::{failed, InstalledLog, RaftDisk};
use crate::env::{File, FileIdentity};
use crate::journal::copying::{Draft, NotCompacted};
use crate::journal::raft::lines::LineIndex;
use crate::node_error::{LogStep, NodeError};
use dsm_consensus::machine::StreamNumber;
use dsm_protocol::ids::{Seq, Version};
use dsm_protocol::machine::log_scan::{BaseSeen, LogScan};
use dsm_protocol::record::{self, FileNumber, Operation, Trailer};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// Through where a log may be compacted that keeps so many bytes of its entries.
pub(in crate::journal::raft) struct Survey {
    /// The last version that need not be an entry any more.
    pub(in crate::journal::raft) base: Version,
    /// The place after it.
    pub(in crate::journal::raft) offset: u64,
    /// A handle of the log.
    pub(in crate::journal::raft) old: Rc<dyn File>,
    pub(in crate::journal::raft) old_identity: FileIdentity,
}

/// What the log's writer and its copies share of the disk's room, which is the log's first.
#[derive(Default)]
pub(in crate::journal::raft) struct SharedRoom {
    /// Whether the log waits for room.
    pub(in crate::journal::raft) is_full: Cell<bool>,
    /// The copy that is to be the log. Who waits for room removes it.
    pub(in crate::journal::raft) copy: RefCell<Option<Box<CompactedCopy>>>,
}

/// A compacted copy of the log, but for its last lines.
pub(in crate::journal::raft) struct CompactedCopy {
    pub(in crate::journal::raft) draft: Draft,
    /// The end of its compacted part.
    pub(in crate::journal::raft) base: BaseSeen,
    /// What it was made of.
    pub(in crate::journal::raft) survey: Survey,
    /// How far the log is copied.
    pub(in crate::journal::raft) scan: LogScan,
}

/// The copy is the log.
pub(in crate::journal::raft) struct SwappedLog {
    /// A handle to read it by.
    pub(in crate::journal::raft) reader: Rc<dyn File>,
    pub(in crate::journal::raft) number: FileNumber,
    pub(in crate::journal::raft) base: BaseSeen,
    /// Its length.
    pub(in crate::journal::raft) bytes: u64,
    /// Where in the old file the line stood that is the first after the base.
    pub(in crate::journal::raft) moved_from: u64,
}

/// What becomes of a copy that is to be the log.
pub(in crate::journal::raft) type SwapOutcome = Result<SwappedLog, NotCompacted>;

impl RaftDisk {
    /// Says through where the log may be compacted; `None` when nothing is to be gained. A copy is about to be begun.
    ///
    /// # Errors
    /// Errors of the system, or a line that is damaged.
    pub(in crate::journal::raft) async fn survey(&mut self, kept_bytes: u64) -> io::Result<Option<Survey>> {
        let first = self.index.last_before(self.end.saturating_sub(kept_bytes));
        let base = first.map_or(Seq(0), |first| Seq(first.0.saturating_sub(1)));
        if base <= self.base.version.seq {
            return Ok(None);
        }
        self.shortest = u64::MAX;
        let (offset, base) = self.end_of(base).await?;
        let old = self.log.duplicate().await?;
        Ok(Some(Survey { base, offset, old, old_identity: self.identity }))
    }

    /// Copies the rest, and makes the copy the log. Nothing is written meanwhile.
    ///
    /// # Errors
    /// It is not known which file a restart finds, and the member must end.
    pub(in crate::journal::raft) async fn swap(&mut self) -> Result<SwapOutcome, NodeError> {
        let copy = self.room.copy.borrow_mut().take();
        // It was removed for the log's sake.
        let Some(copy) = copy else { return Ok(Err(io::Error::from(io::ErrorKind::StorageFull).into())) };
        let (path, identity) = (copy.draft.path.clone(), copy.draft.identity);
        // Until it is removed nobody else's file may get its inode.
        let held = Rc::clone(&copy.draft.file);
        let outcome = match self.try_swap(*copy).await {
            Err(NotCompacted::Unknown(error)) => return Err(failed(LogStep::Exchange, error)),
            outcome @ (Ok(_) | Err(NotCompacted::Failed(_) | NotCompacted::GivenUp)) => outcome,
        };
        if outcome.is_err() {
            Draft::remove(&self.setup.env, &path, identity).await;
        }
        drop(held);
        Ok(outcome)
    }

    async fn try_swap(&mut self, copy: CompactedCopy) -> SwapOutcome {
        let CompactedCopy { mut draft, base, survey, mut scan } = copy;
        let copied = scan.position().offset;
        if survey.old_identity != self.identity || base.version.seq <= self.base.version.seq {
            return Err(NotCompacted::GivenUp);
        }
        if self.shortest < copied || self.end < copied {
            return Err(io::Error::other("the log was cut while it was copied").into());
        }
        scan.go_on_to(self.end);
        while scan.position().offset < self.end {
            scan = draft.copy_part(&*survey.old, scan, self.end).await?;
        }
        let reader = draft.file.duplicate().await?;
        // Space that was set aside beyond the end is given back.
        draft.file.truncate(draft.bytes).await?;
        draft.sync().await?;
        let Version { epoch, seq } = self.last;
        let mut mark = Vec::new();
        record::encode_with(&Operation::Synced, Trailer::new(seq, epoch, seq), &mut mark);
        draft.append(mark, None).await?;
        draft.sync().await?;
        draft.take_place(&self.setup.env, self.identity).await?;
        let index = self.index.moved((base.version.seq, survey.offset), base.end);
        self.go_on_in(draft, base, index);
        (self.synced, self.is_marked) = (seq, true);
        let (number, bytes) = (self.number, self.end);
        Ok(SwappedLog { reader, number, base, bytes, moved_from: survey.offset })
    }

    /// Puts a leader's file, which is whole and on disk, in the place of the log.
    ///
    /// # Errors
    /// It is not there, or it is not known which file a restart finds. The member must end.
    pub(in crate::journal::raft) async fn install(
        &mut self,
        stream: StreamNumber,
        base: Version,
    ) -> Result<InstalledLog, NodeError> {
        let arrived = self.arrived.take().filter(|(number, ..)| *number == stream);
        let Some((_, draft)) = arrived else {
            return Err(self.setup.no_member(format!("the leader's file through {base} is not there")));
        };
        let read = draft.file.duplicate().await;
        let reader = read.map_err(|error| NodeError::file(&draft.path, error))?;
        match draft.take_place(&self.setup.env, self.identity).await {
            Ok(()) => {}
            Err(NotCompacted::Unknown(error) | NotCompacted::Failed(error)) => {
                return Err(failed(LogStep::Exchange, error));
            }
            Err(NotCompacted::GivenUp) => unreachable!("nobody gives it up"),
        }
        let base = BaseSeen { version: base, end: draft.bytes };
        self.go_on_in(draft, base, LineIndex::new(self.setup.compact_min_bytes));
        (self.last, self.synced, self.is_marked) = (base.version, base.version.seq, false);
        let (number, identity) = (self.number, self.identity);
        Ok(InstalledLog { reader, number, identity, base })
    }

    fn go_on_in(&mut self, draft: Draft, base: BaseSeen, index: LineIndex) {
        (self.log, self.identity, self.end) = (draft.file, draft.identity, draft.bytes);
        (self.base, self.index) = (base, index);
        self.number = self.number.next();
        self.shortest = u64::MAX;
    }

    /// A leader's file is whole and on disk. It may have been forgotten before it was.
    pub(in crate::journal::raft) async fn arrived(&mut self, stream: StreamNumber, draft: Draft) {
        let is_over = self.forgotten.is_some_and(|forgotten| stream <= forgotten);
        let needless = if is_over { Some((stream, draft)) } else { self.arrived.replace((stream, draft)) };
        self.remove_arrived(needless).await;
    }

    /// Nothing comes of a leader's file.
    pub(in crate::journal::raft) async fn forget_arrived(&mut self, stream: StreamNumber) {
        self.forgotten = self.forgotten.max(Some(stream));
        let needless = self.arrived.take_if(|(number, _)| *number <= stream);
        self.remove_arrived(needless).await;
    }

    async fn remove_arrived(&self, arrived: Option<(StreamNumber, Draft)>) {
        if let Some((_, draft)) = arrived {
            Draft::remove(&self.setup.env, &draft.path, draft.identity).await;
        }
    }

    /// The log waits for room, which a copy has that waits for the log.
    pub(in crate::journal::raft) async fn make_room(&self) {
        self.room.is_full.set(true);
        let copy = self.room.copy.borrow_mut().take();
        if let Some(copy) = copy {
            Draft::remove(&self.setup.env, &copy.draft.path, copy.draft.identity).await;
        }
    }
}
