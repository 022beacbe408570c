//! After a compaction: tells the master where in the new file the values stand.
//!
//! Owns nothing. Reads the new file as far as it was made of the old one, and takes its time: meanwhile values are read from
//! the old file, and neither a reign nor a takeover waits for this.

use super::compactor::check;
use super::log_tailer::next_piece;
use crate::env::{Env, File};
use crate::journal::{LogEvent, Replay};
use actix::prelude::*;
use dsm_protocol::ids::Seq;
use dsm_protocol::machine::compaction::rest_after_copy_us;
use dsm_protocol::machine::log_scan::{LogPlace, LogScan};
use dsm_protocol::record::FileNumber;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The new file.
pub(super) struct Relocator {
    pub(super) env: Env,
    pub(super) events: Recipient<LogEvent>,
    pub(super) file: Rc<dyn File>,
    pub(super) number: FileNumber,
    /// Values before this offset are told of.
    pub(super) through: u64,
    /// What the master has not taken in yet it would not find.
    pub(super) settled: Option<Seq>,
    pub(super) line_bytes_max: usize,
    /// The numbers of the old files.
    pub(super) old: Vec<FileNumber>,
}

impl Relocator {
    /// Returns once nothing is read from the old files any more.
    ///
    /// # Errors
    /// What the system says, or that a line cannot be read. The old files must stay open then.
    pub(super) async fn run(self) -> io::Result<()> {
        if let Some(through) = self.settled {
            let (answer, answered) = oneshot::channel();
            self.events.do_send(LogEvent::Settle { through, answer });
            answered.await.map_err(io::Error::other)?;
        }
        let file = self.file.duplicate().await?;
        let mut scan =
            LogScan::new(&LogPlace::default(), self.line_bytes_max).in_file(self.number).up_to(self.through);
        while scan.position().offset < self.through {
            let begun_us = self.env.clock_us();
            let (then, part) = file.scan(scan).await?;
            scan = then;
            check(&part, &scan, self.through)?;
            let values = part.changes.into_iter().filter(|change| matches!(change, Replay::Put { .. }));
            let mut changes = values.collect::<Vec<Replay>>().into_iter();
            while changes.len() > 0 {
                let piece = next_piece(&mut changes);
                // One that is gone needs nothing.
                let _ = self.events.send(LogEvent::Relocated(piece)).await;
            }
            let took_us = self.env.clock_us().saturating_sub(begun_us);
            self.env.pause(Duration::from_micros(rest_after_copy_us(took_us))).await;
        }
        for file in self.old {
            let (answer, answered) = oneshot::channel();
            self.events.do_send(LogEvent::Unread { file, answer });
            answered.await.map_err(io::Error::other)?;
        }
        Ok(())
    }
}
