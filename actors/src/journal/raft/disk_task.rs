//! The task that serves a member's disk.
//!
//! Owns the order of its jobs, and what becomes one group: all batches that wait are written together and synced once. Decides
//! nothing. It ends when nobody asks for anything any more, or when the disk has failed; with it the log's lock is free.

use super::disk::{Persisted, RaftDisk};
use super::lines::EntryLine;
use crate::node_error::NodeError;
use actix::prelude::*;
use dsm_consensus::machine::LogBatch;
use dsm_consensus::LogEntry;
use dsm_protocol::ids::Seq;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// After so long without writes a SYNCED mark covers the last group.
const MARK_AFTER: Duration = Duration::from_millis(10);

/// What a member's disk is to do.
#[derive(Debug)]
pub(super) enum DiskJob {
    /// Bring this to the disk.
    Write(LogBatch),
    /// Read entries, for another member.
    Fetch { from: Seq, through: Seq, bytes_max: u64 },
    /// Read lines, for this member's master.
    ReadLines { from: Seq, through: Seq, bytes_max: u64 },
}

/// What a member's disk has done.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(super) enum DiskDone {
    Persisted(Persisted),
    Fetched {
        from: Seq,
        entries: Vec<LogEntry>,
    },
    LinesRead(Vec<EntryLine>),
    /// Nothing is known of what was in flight.
    Failed(NodeError),
}

/// Serves `disk` until nobody asks any more.
pub(super) async fn serve(
    mut disk: RaftDisk,
    mut jobs: mpsc::UnboundedReceiver<DiskJob>,
    done: Recipient<DiskDone>,
) {
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
                        return done.do_send(DiskDone::Failed(error));
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
            Ok(Some(what)) => done.do_send(what),
            Ok(None) => {}
            Err(error) => return done.do_send(DiskDone::Failed(error)),
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
        Some(DiskJob::Write(_)) | None => None,
    })
}
