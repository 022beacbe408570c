//! After a compaction: tells the master where in the new file the values stand.
//!
//! Owns nothing. Reads the new file as far as it was made of the old one, and takes its time: meanwhile values are read from
//! the old file, and neither a reign nor a takeover waits for this.

use super::compactor::Pace;
use super::log_writer::{LogWriter, WhereEnds};
use super::Hot;
use crate::env::{Env, File};
use crate::journal::copying::check;
use crate::journal::pieces::next_piece;
use crate::journal::{LogEvent, Replay};
use actix::prelude::*;
use actix::WeakAddr;
use dsm_protocol::ids::Seq;
use dsm_protocol::machine::compaction::{Compaction, Leg, LogSizes, Race};
use dsm_protocol::machine::log_scan::{LogPlace, LogScan};
use dsm_protocol::record::FileNumber;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use tokio::sync::oneshot;

/// The new file.
pub(in crate::journal) struct Relocator {
    pub(in crate::journal) env: Env,
    pub(in crate::journal) events: Recipient<LogEvent>,
    pub(in crate::journal) file: Rc<dyn File>,
    pub(in crate::journal) number: FileNumber,
    /// Values before this offset are told of.
    pub(in crate::journal) through: u64,
    /// What the master has not taken in yet it would not find.
    pub(in crate::journal) settled: Option<Seq>,
    pub(in crate::journal) line_bytes_max: usize,
    /// The numbers of the old files.
    pub(in crate::journal) old: Vec<FileNumber>,
    /// Who writes the log, once this master leads: writes wait for this where the next compaction does.
    /// None where nothing waits.
    pub(in crate::journal) hot: Option<Rc<Hot>>,
    /// Whether masters on several machines keep the log.
    pub(in crate::journal) with_members: bool,
    /// How fast.
    pub(in crate::journal) rule: Rc<RefCell<Compaction>>,
    /// What is known of the log by now.
    pub(in crate::journal) sizes: Rc<Cell<LogSizes>>,
}

impl Relocator {
    /// Returns once nothing is read from the old files any more.
    ///
    /// # Errors
    /// What the system says, or that a line cannot be read. The old files must stay open then.
    pub(in crate::journal) async fn run(self) -> io::Result<()> {
        if let Some(through) = self.settled {
            let (answer, answered) = oneshot::channel();
            self.events.do_send(LogEvent::Settle { through, answer });
            answered.await.map_err(io::Error::other)?;
        }
        let file = self.file.duplicate().await?;
        let scan = LogScan::new(&LogPlace::default(), self.line_bytes_max);
        let mut scan = scan.in_file(self.number).up_to(self.through);
        if self.with_members {
            scan = scan.with_members();
        }
        let race = Race::new(Leg::Relocating, self.log_bytes().await, self.through);
        let mut pace = Pace::new(self.writer(), race, &self.rule, &self.sizes, &self.events);
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
            let (done, log_bytes) = (scan.position().offset, self.log_bytes().await);
            pace.follow(self.writer());
            pace.go_on(done, 0, log_bytes);
            let rest = pace.rest(self.env.clock_us().saturating_sub(begun_us), done, log_bytes);
            if !rest.is_zero() {
                self.env.pause(rest).await;
            }
        }
        drop(pace);
        for file in self.old {
            let (answer, answered) = oneshot::channel();
            self.events.do_send(LogEvent::Unread { file, answer });
            answered.await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn writer(&self) -> Option<WeakAddr<LogWriter>> {
        self.hot.as_ref()?.writer().map(|(writer, _)| writer.downgrade())
    }

    /// How long the log is; at a standby, which does not know, how long it was when this began.
    async fn log_bytes(&self) -> u64 {
        let (answer, answered) = oneshot::channel();
        let writer = self.hot.as_ref().and_then(|hot| hot.writer());
        let Some((writer, _)) = writer else { return self.through };
        writer.do_send(WhereEnds { answer });
        drop(writer);
        // A writer that closes the log says nothing.
        answered.await.map_or(self.through, |end| end.offset)
    }
}
