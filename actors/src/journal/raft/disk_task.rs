//! The task that serves a member's disk.
//!
//! Owns the order of its jobs, and what becomes one group: all batches that wait are written together and synced once. Decides
//! nothing. It ends when nobody asks for anything any more, or when the disk has failed; with it the log's lock is free.

use super::disk::swaps::{Survey, SwapOutcome};
use super::disk::{Persisted, RaftDisk};
use super::lines::EntryLine;
use crate::journal::copying::Draft;
use crate::node_error::NodeError;
use actix::prelude::*;
use bytes::Bytes;
use dsm_consensus::ids::MemberId;
use dsm_consensus::machine::{LogBatch, StreamNumber};
use dsm_consensus::LogEntry;
use dsm_protocol::ids::{Seq, Version};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// After so long without writes a SYNCED mark covers the last group.
const MARK_AFTER: Duration = Duration::from_millis(10);

/// What a member's disk is to do.
pub(super) enum DiskJob {
    /// Bring this to the disk.
    Write(LogBatch),
    /// Read entries, for another member.
    Fetch { from: Seq, through: Seq, bytes_max: u64 },
    /// Read lines, for this member's master.
    ReadLines { from: Seq, through: Seq, bytes_max: u64 },
    /// Say through where the log may be compacted that keeps so many bytes.
    Survey { kept_bytes: u64 },
    /// Make the copy the log that is in the shared room.
    Swap,
    /// Keep a leader's file for the batch that makes it the log.
    Arrived { stream: StreamNumber, draft: Draft },
    /// Nothing comes of that file.
    ForgetArrived(StreamNumber),
}

/// The disk has done something.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(super) struct DiskReported;

/// Where it is told what the disk has done, in its order. Files cannot travel in a message.
#[derive(Clone)]
pub(super) struct DiskReports {
    waiting: Rc<RefCell<VecDeque<DiskDone>>>,
    wake: Recipient<DiskReported>,
}

impl DiskReports {
    pub(super) fn new(wake: Recipient<DiskReported>) -> Self {
        DiskReports { waiting: Rc::default(), wake }
    }

    /// Tells what was done.
    pub(super) fn tell(&self, done: DiskDone) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back(done);
        if waiting.len() == 1 {
            self.wake.do_send(DiskReported);
        }
    }

    /// Takes all that was told.
    pub(super) fn take(&self) -> VecDeque<DiskDone> {
        std::mem::take(&mut *self.waiting.borrow_mut())
    }
}

/// What a member's disk has done.
pub(super) enum DiskDone {
    Persisted(Persisted),
    Fetched {
        from: Seq,
        entries: Vec<LogEntry>,
    },
    LinesRead(Vec<EntryLine>),
    Surveyed(io::Result<Option<Survey>>),
    Swapped(SwapOutcome),
    /// A chunk of this member's file was read, for another one.
    ChunkRead {
        to: MemberId,
        base: Version,
        offset: u64,
        data: Bytes,
        is_last: bool,
    },
    /// A chunk of a leader's file is written.
    ChunkWritten(StreamNumber),
    /// A leader's file cannot be written, or is none.
    StreamFailed(StreamNumber),
    /// A leader's file is whole, checked and on disk.
    StreamSynced {
        stream: StreamNumber,
        draft: Draft,
    },
    /// Nothing is known of what was in flight.
    Failed(NodeError),
}

/// Serves `disk` until nobody asks any more.
pub(super) async fn serve(mut disk: RaftDisk, mut jobs: mpsc::UnboundedReceiver<DiskJob>, done: DiskReports) {
    let mut waiting = VecDeque::new();
    let mut is_marked = false;
    loop {
        if waiting.is_empty() {
            let next = if is_marked { Ok(jobs.recv().await) } else { timeout(MARK_AFTER, jobs.recv()).await };
            match next {
                Ok(Some(job)) => waiting.push_back(job),
                Ok(None) => return,
                Err(_) => {
                    if let Err(error) = disk.mark().await {
                        return done.tell(DiskDone::Failed(error));
                    }
                    is_marked = true;
                    continue;
                }
            }
        }
        while let Ok(job) = jobs.try_recv() {
            waiting.push_back(job);
        }
        is_marked = false;
        match work(&mut disk, &mut waiting).await {
            Ok(Some(what)) => done.tell(what),
            Ok(None) => {}
            Err(error) => return done.tell(DiskDone::Failed(error)),
        }
    }
}

/// Does the first job, or all batches in front.
async fn work(disk: &mut RaftDisk, waiting: &mut VecDeque<DiskJob>) -> Result<Option<DiskDone>, NodeError> {
    let mut batches = Vec::new();
    while let Some(job) = waiting.pop_front() {
        match job {
            DiskJob::Write(batch) => batches.push(batch),
            other => {
                waiting.push_front(other);
                break;
            }
        }
    }
    if !batches.is_empty() {
        return Ok(Some(DiskDone::Persisted(disk.write(batches).await?)));
    }
    Ok(match waiting.pop_front() {
        Some(DiskJob::Fetch { from, through, bytes_max }) => {
            let found = disk.fetch(from, through, bytes_max).await?;
            let entries = found.into_iter().map(|(entry, _)| entry).collect();
            Some(DiskDone::Fetched { from, entries })
        }
        Some(DiskJob::ReadLines { from, through, bytes_max }) => {
            Some(DiskDone::LinesRead(disk.lines(from, through, bytes_max).await?))
        }
        Some(DiskJob::Survey { kept_bytes }) => Some(DiskDone::Surveyed(disk.survey(kept_bytes).await)),
        Some(DiskJob::Swap) => Some(DiskDone::Swapped(disk.swap().await?)),
        Some(DiskJob::Arrived { stream, draft }) => {
            disk.arrived(stream, draft).await;
            None
        }
        Some(DiskJob::ForgetArrived(stream)) => {
            disk.forget_arrived(stream).await;
            None
        }
        Some(DiskJob::Write(_)) | None => None,
    })
}
