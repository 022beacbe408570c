//! Looks in a file for a place of a log: whether this is the log that was replayed, and holds at least as much.
//!
//! Owns how far the file is looked through. Keeps nothing of what it reads but the reign of the place, so that its memory is
//! that of a part, however long the file is; and goes on where it was when the file has grown.

use crate::env::{File, FileIdentity};
use crate::journal::Replay;
use dsm_protocol::ids::Reign;
use dsm_protocol::machine::log_scan::{LogPlace, LogScan};
use dsm_protocol::record::Position;
use std::io;
use std::rc::Rc;

/// What was found out so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProofVerdict {
    /// The place is there.
    Found,
    /// The file ends in front of it, in words.
    Short(String),
    /// It is not there and will not come to be, in words.
    Other(String),
}

/// A search for a place.
pub(crate) struct Proof {
    file: Rc<dyn File>,
    identity: FileIdentity,
    /// What is looked for.
    position: Position,
    line_bytes_max: usize,
    scan: LogScan,
    /// The reign of the record that would be the one, as far as is read.
    reign: Reign,
    /// What was found for good, and how long the file was then.
    settled: Option<(ProofVerdict, u64)>,
}

impl Proof {
    /// A search from the file's start.
    pub(crate) fn new(
        file: Rc<dyn File>,
        identity: FileIdentity,
        position: Position,
        line_bytes_max: usize,
    ) -> Self {
        let scan = LogScan::new(&LogPlace::default(), line_bytes_max);
        Proof { file, identity, position, line_bytes_max, scan, reign: Reign::default(), settled: None }
    }

    /// Whether it is for this place in this file.
    pub(crate) fn is_of(&self, identity: FileIdentity, position: &Position) -> bool {
        self.identity == identity && self.position == *position
    }

    pub(crate) fn file(&self) -> &Rc<dyn File> {
        &self.file
    }

    /// Looks on, to the place or to the end.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn go_on(mut self) -> io::Result<(Self, ProofVerdict)> {
        let length = self.file.length().await?;
        if let Some((verdict, before)) = &self.settled {
            if *before == length {
                let verdict = verdict.clone();
                return Ok((self, verdict));
            }
            self.begin_again();
        }
        let read = self.scan.position().offset;
        if length < read {
            self.begin_again();
        }
        loop {
            let file = Rc::clone(&self.file);
            let (scan, part) = file.scan(self.scan).await?;
            self.scan = scan;
            if part.lost {
                self.begin_again();
                continue;
            }
            let wanted = self.position;
            for change in &part.changes {
                if let Replay::Reign(record) = change {
                    if record.first <= wanted.seq {
                        self.reign = record.reign;
                    }
                }
            }
            let at = self.scan.position();
            let verdict = match (at.cluster, wanted.cluster) {
                (Some(theirs), Some(ours)) if theirs != ours => Some(ProofVerdict::Other(format!(
                    "it is the log of cluster {theirs}, this is cluster {ours}"
                ))),
                _ if at.seq >= wanted.seq && self.reign == wanted.reign => Some(ProofVerdict::Found),
                _ if at.seq >= wanted.seq => Some(ProofVerdict::Other(format!(
                    "its record {} is of reign {}, and one of reign {} was replayed",
                    wanted.seq, self.reign, wanted.reign
                ))),
                _ => part.bad.map(|bad| {
                    ProofVerdict::Other(format!(
                        "it is not a log, or is damaged, at byte {}, line {}, before what was replayed: {}",
                        bad.offset, bad.line, bad.cause
                    ))
                }),
            };
            match verdict {
                Some(ProofVerdict::Found) => return Ok((self, ProofVerdict::Found)),
                Some(verdict) => {
                    self.settled = Some((verdict.clone(), length));
                    return Ok((self, verdict));
                }
                None if part.at_end => {
                    let what = format!("it ends at seq {}, and seq {} was replayed", at.seq, wanted.seq);
                    return Ok((self, ProofVerdict::Short(what)));
                }
                None => {}
            }
        }
    }

    fn begin_again(&mut self) {
        self.scan = LogScan::new(&LogPlace::default(), self.line_bytes_max);
        self.reign = Reign::default();
        self.settled = None;
    }
}
