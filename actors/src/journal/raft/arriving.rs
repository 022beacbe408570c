//! The task that writes a leader's file which is to be this member's log.
//!
//! Owns that file until it is whole, checked and on disk: then it is given away. Its disk may be slow: the log's own batches do not
//! wait for it.

use super::disk::RaftDiskSetup;
use super::disk_task::{DiskDone, DiskReports};
use crate::journal::copying::{check, path_beside, Draft};
use crate::journal::mending::is_full;
use bytes::Bytes;
use dsm_consensus::machine::StreamNumber;
use dsm_protocol::ids::ClusterId;
use dsm_protocol::machine::log_scan::{BaseSeen, LogPlace, LogScan};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How often a chunk for which the disk has no room is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The name of a leader's file while it is written, beside the log.
pub(super) fn stream_path(log: &Path) -> PathBuf {
    path_beside(log, ".stream")
}

/// What is to be done with a leader's file.
#[derive(Debug)]
pub(super) enum StreamJob {
    /// Write this at this byte. At byte 0 the file is made.
    Write { stream: StreamNumber, offset: u64, data: Bytes },
    /// All of it is there: bring it to the disk.
    Sync(StreamNumber),
    /// Nothing comes of it.
    Drop(StreamNumber),
}

/// Writes leaders' files until nobody asks any more.
pub(super) async fn serve(
    setup: RaftDiskSetup,
    cluster: ClusterId,
    mut jobs: mpsc::UnboundedReceiver<StreamJob>,
    done: DiskReports,
) {
    let mut arriving = Arriving { setup, cluster, draft: None, waiting: None };
    loop {
        let job = match arriving.waiting.take() {
            None => jobs.recv().await,
            // The disk has no room. What is asked meanwhile may be to forget the file.
            Some(chunk) => match timeout(RETRY_EVERY, jobs.recv()).await {
                Ok(job) => {
                    arriving.waiting = Some(chunk);
                    job
                }
                Err(_) => Some(chunk),
            },
        };
        let Some(job) = job else { break };
        arriving.work(job).await.into_iter().for_each(|what| done.tell(what));
    }
    arriving.forget().await;
}

struct Arriving {
    setup: RaftDiskSetup,
    cluster: ClusterId,
    draft: Option<(StreamNumber, Draft)>,
    /// What the disk has no room for.
    waiting: Option<StreamJob>,
}

impl Arriving {
    /// Does a job. Gives what is to be told of it, if it is done or has failed.
    async fn work(&mut self, job: StreamJob) -> Option<DiskDone> {
        let (stream, worked) = match job {
            StreamJob::Write { stream, offset, data } => (stream, self.write(stream, offset, &data).await),
            StreamJob::Sync(stream) => (stream, self.sync(stream).await),
            StreamJob::Drop(stream) => {
                if self.draft.as_ref().is_some_and(|(number, _)| *number == stream) {
                    self.forget().await;
                }
                return None;
            }
        };
        match worked {
            Ok(done) => done,
            Err(error) => {
                let path = stream_path(&self.setup.path);
                log::warn!(
                    "leader's file not written, waiting for another path={} error={error}",
                    path.display()
                );
                self.forget().await;
                Some(DiskDone::StreamFailed(stream))
            }
        }
    }

    /// Writes a chunk, or keeps it while the disk is full.
    async fn write(
        &mut self,
        stream: StreamNumber,
        offset: u64,
        data: &Bytes,
    ) -> io::Result<Option<DiskDone>> {
        if offset == 0 {
            self.begin(stream).await?;
        }
        let is_its = |draft: &&mut (StreamNumber, Draft)| draft.0 == stream && draft.1.bytes == offset;
        let Some((_, draft)) = self.draft.as_mut().filter(is_its) else { return Ok(None) };
        match draft.append(data.to_vec(), None).await {
            Ok(()) => Ok(Some(DiskDone::ChunkWritten(stream))),
            Err(error) if is_full(Some(&error)) => {
                let data = data.clone();
                self.waiting = Some(StreamJob::Write { stream, offset, data });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// All of it is there: brings it to the disk, and checks it.
    async fn sync(&mut self, stream: StreamNumber) -> io::Result<Option<DiskDone>> {
        let Some((_, draft)) = self.draft.as_mut().filter(|(number, _)| *number == stream) else {
            return Ok(None);
        };
        draft.sync().await?;
        if let Some((_, draft)) = &self.draft {
            self.check(draft).await?;
        }
        Ok(self.draft.take().map(|(stream, draft)| DiskDone::StreamSynced { stream, draft }))
    }

    async fn begin(&mut self, stream: StreamNumber) -> io::Result<()> {
        self.forget().await;
        let place = self.setup.env.disk().resolve(&self.setup.path).await?;
        let draft = Draft::create(&self.setup.env, stream_path(&place), place).await?;
        draft.lock()?;
        self.draft = Some((stream, draft));
        Ok(())
    }

    async fn forget(&mut self) {
        self.waiting = None;
        if let Some((_, draft)) = self.draft.take() {
            Draft::remove(&self.setup.env, &draft.path, draft.identity).await;
        }
    }

    /// Whether it is what a leader sends: lines of this cluster's log that are all compacted.
    async fn check(&self, draft: &Draft) -> io::Result<()> {
        let file = draft.file.duplicate().await?;
        let scan = LogScan::new(&LogPlace::default(), self.setup.line_bytes_max);
        let mut scan = scan.with_members().up_to(draft.bytes);
        let mut base = BaseSeen::default();
        while scan.position().offset < draft.bytes {
            let (then, part) = file.scan(scan).await?;
            scan = then;
            check(&part, &scan, draft.bytes)?;
            base = part.seen.and_then(|seen| seen.base).unwrap_or(base);
        }
        let found = scan.position().cluster;
        if found != Some(self.cluster) || base.end != draft.bytes {
            return Err(io::Error::other(format!(
                "what the leader has sent is no compacted log of cluster {}: it ends at byte {}, its compacted part at {}",
                self.cluster, draft.bytes, base.end
            )));
        }
        Ok(())
    }
}
