//! `LogTailer`: follows the log of the active master and rebuilds the directory from it.
//!
//! Owns its place in the log. Reads what is appended within milliseconds of a file notice, holds back a line until
//! its newline is there, and starts again when the file at the path is another one or has become shorter. Never
//! writes, never judges a bad line: whether it is torn is for the next holder of the lock to say.

use crate::env::{Env, File, FileIdentity, OpenMode, Watch};
use crate::log_scan::{LogPlace, LogScan, Part};
use crate::supervision::{Fate, NodeError, PanicGuard, TaskGuard};
use crate::turns::TurnLengths;
use actix::prelude::*;
use dsm_protocol::ids::{Reign, Version};
use dsm_protocol::machine::master::ReignRecord;
use dsm_protocol::planted;
use dsm_protocol::record::{Body, Place, Record, Span, SyncMode};
use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// So many keys are handed to the master at once.
const CHANGES_MAX: usize = 1024;

/// Or keys of so many bytes, and one more.
const KEY_BYTES_MAX: usize = 256 * 1024;

/// After a read the tailer rests this long, so that a busy log costs one wake for many groups.
const REST: Duration = Duration::from_millis(2);

/// A look at the file even without a notice: cheap, and a lost notice must not stop a standby for good.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often the file is looked at where there are no notices.
const LOOK_WITHOUT_NOTICE: Duration = Duration::from_millis(10);

/// What a part of the log does to the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// A key has a new version.
    Put {
        /// The key.
        key: Box<[u8]>,
        /// The version.
        version: Version,
        /// Where the value stands.
        place: Place,
    },
    /// A key is gone.
    Delete {
        /// The key.
        key: Box<[u8]>,
    },
    /// A reign began.
    Reign(ReignRecord),
    /// The loss of a reign was accepted.
    GivenUp(Reign),
}

/// Says what a part of the log holds. Answered when it is taken in, so that at most one part is under way.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Replayed {
    /// Whether the directory is to be forgotten first: the log is another file.
    pub from_start: bool,
    /// The changes, in the order of the log.
    pub changes: Vec<Replay>,
    /// The place behind them.
    pub place: LogPlace,
    /// Which file it is a place in.
    pub file: Option<FileIdentity>,
    /// Whether the end of the log was reached.
    pub caught_up: bool,
}

/// Adds to `changes` what a record does to the directory.
pub(crate) fn replay(record: &Record<'_>, span: Span, changes: &mut Vec<Replay>) {
    let version = Version { epoch: record.epoch, seq: record.seq };
    match record.body {
        Body::Write(pairs) => {
            for (key, value) in pairs {
                changes.push(Replay::Put { key: key.decode().into(), version, place: value.place(span) });
            }
        }
        Body::Delete(_) if planted!(ReplayForgetsDelete) => {}
        Body::Delete(keys) => {
            changes.extend(keys.map(|key| Replay::Delete { key: key.decode().into() }));
        }
        Body::Epoch { mark, .. } => {
            let reign = Reign { epoch: record.epoch, id: mark.id };
            let durable = mark.fsync == Some(SyncMode::Always);
            changes.push(Replay::Reign(ReignRecord { reign, first: record.seq, durable }));
            changes.extend(mark.given_up.map(Replay::GivenUp));
        }
        Body::Cluster(_) | Body::Synced => {}
    }
}

/// Asks the tailer to stop. Every [`Replayed`] that it has sent arrives before [`Halted`].
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Halt;

/// Says that nothing more will be replayed by this tailer.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Halted;

/// Where a tailer goes on.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// A place in the log.
    pub place: LogPlace,
    /// Which file it is a place in; `None` for the start of whatever file is there.
    pub file: Option<FileIdentity>,
}

/// The actor. See the module.
pub struct LogTailer {
    env: Env,
    path: PathBuf,
    line_bytes_max: usize,
    from: Start,
    replayed: Recipient<Replayed>,
    halted: Recipient<Halted>,
    fate: Fate,
    guard: PanicGuard,
    task: Option<JoinHandle<()>>,
    turns: Rc<TurnLengths>,
}

impl LogTailer {
    /// A tailer that goes on at `from`.
    pub fn new(
        env: Env,
        path: PathBuf,
        line_bytes_max: usize,
        from: Start,
        replayed: Recipient<Replayed>,
        halted: Recipient<Halted>,
        fate: Fate,
    ) -> Self {
        let guard = PanicGuard::new("LogTailer", fate.clone());
        let turns = TurnLengths::new(Rc::clone(&env));
        LogTailer { env, path, line_bytes_max, from, replayed, halted, fate, guard, task: None, turns }
    }

    /// Counts its turns among those of its node.
    pub(crate) fn counting(self, turns: Rc<TurnLengths>) -> Self {
        LogTailer { turns, ..self }
    }
}

impl Actor for LogTailer {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        let follower = Follower {
            env: Rc::clone(&self.env),
            path: self.path.clone(),
            line_bytes_max: self.line_bytes_max,
            replayed: self.replayed.clone(),
            scan: Some(LogScan::new(&self.from.place, self.line_bytes_max)),
            identity: self.from.file,
            from_start: false,
            told: self.from.place.clone(),
            warned_at: None,
        };
        let fate = self.fate.clone();
        let path = self.path.display().to_string();
        let turns = Rc::clone(&self.turns);
        self.task = Some(actix::spawn(async move {
            let _guard = TaskGuard::new("LogTailer's follower", fate.clone());
            // A tail that cannot be read is a standby that cannot take over: it must not pretend to be one.
            let kind = Cell::new("tailer");
            if let Err(error) = turns.watch(&kind, follower.follow()).await {
                fate.decide(Err(NodeError::File { path, error: error.to_string() }));
            }
        }));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.guard.stopped_cleanly();
    }
}

impl Handler<Halt> for LogTailer {
    type Result = ();

    fn handle(&mut self, _: Halt, ctx: &mut Self::Context) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        // Whatever the task has sent lies in front of this in the same mailbox.
        self.halted.do_send(Halted);
        ctx.stop();
    }
}

/// The loop that follows the file.
struct Follower {
    env: Env,
    path: PathBuf,
    line_bytes_max: usize,
    replayed: Recipient<Replayed>,
    /// Absent only while a file's thread has it.
    scan: Option<LogScan>,
    identity: Option<FileIdentity>,
    from_start: bool,
    /// The place that the master was told last.
    told: LogPlace,
    /// The place of the bad line that was complained about.
    warned_at: Option<u64>,
}

impl Follower {
    async fn follow(mut self) -> io::Result<()> {
        let mut watch: Option<Box<dyn Watch>> = match self.env.disk().watch(&self.path).await {
            Ok(watch) => Some(watch),
            Err(error) => {
                log::warn!("no file notice, looking every {LOOK_WITHOUT_NOTICE:?} instead error={error}");
                None
            }
        };
        let mut file: Option<Rc<dyn File>> = None;
        loop {
            self.check_file(&mut file).await?;
            match &file {
                Some(file) => self.read_to_end(file).await?,
                None => self.tell(Vec::new(), true).await,
            }
            tokio::time::sleep(REST).await;
            match &mut watch {
                Some(noticing) => {
                    let noticed = tokio::time::timeout(LOOK_EVERY, noticing.changed()).await;
                    if let Ok(Err(error)) = noticed {
                        log::warn!("no more file notices, looking every {LOOK_WITHOUT_NOTICE:?} instead error={error}");
                        watch = None;
                    }
                }
                None => tokio::time::sleep(LOOK_WITHOUT_NOTICE).await,
            }
        }
    }

    /// Makes sure that `file` is the one at the path, and that the place is within it.
    async fn check_file(&mut self, file: &mut Option<Rc<dyn File>>) -> io::Result<()> {
        let at_path = self.env.disk().identity(&self.path).await?;
        let Some(at_path) = at_path else {
            if file.take().is_some() {
                log::warn!("log is gone path={}", self.path.display());
            }
            return Ok(());
        };
        if file.is_none() || self.identity != Some(at_path) {
            let opened = match self.env.disk().open(&self.path, OpenMode::Read).await {
                Ok(opened) => opened,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            let identity = opened.identity().await?;
            if self.identity != Some(identity) {
                self.restart("another file");
                self.identity = Some(identity);
            }
            *file = Some(opened);
        }
        if let Some(file) = file {
            if file.length().await? < self.place().position.offset {
                self.restart("it became shorter");
            }
        }
        Ok(())
    }

    fn restart(&mut self, why: &str) {
        if self.place().position.offset > 0 {
            log::info!("log is replayed from its start path={} cause={why:?}", self.path.display());
        }
        self.scan = Some(LogScan::new(&LogPlace::default(), self.line_bytes_max));
        self.from_start = true;
        self.told = LogPlace::default();
        self.warned_at = None;
    }

    fn place(&self) -> LogPlace {
        self.scan.as_ref().map_or_else(LogPlace::default, LogScan::place)
    }

    async fn read_to_end(&mut self, file: &Rc<dyn File>) -> io::Result<()> {
        loop {
            let Some(scan) = self.scan.take() else { return Ok(()) };
            let (scan, part) = file.scan(scan).await?;
            self.scan = Some(scan);
            tell_of_marks(&self.path, &part);
            if part.lost {
                // Somebody took over, cut what the disk had not taken, and wrote on behind it.
                self.restart("what was read is not there any more");
                continue;
            }
            if let Some(bad) = part.bad {
                if self.warned_at.replace(bad.offset) != Some(bad.offset) {
                    log::warn!(
                        "bad log line offset={} line={} cause={:?}",
                        bad.offset,
                        bad.line,
                        bad.cause.to_string()
                    );
                }
                self.tell(part.changes, true).await;
                return Ok(());
            }
            self.tell(part.changes, part.at_end).await;
            if part.at_end {
                return Ok(());
            }
        }
    }

    async fn tell(&mut self, changes: Vec<Replay>, caught_up: bool) {
        let replayed = Replayed {
            from_start: std::mem::take(&mut self.from_start),
            changes,
            place: self.place(),
            file: self.identity,
            caught_up,
        };
        let before = std::mem::replace(&mut self.told, replayed.place.clone());
        hand_over(&self.replayed, replayed, before).await;
    }
}

/// Says which damaged marks a part of the log had. Nothing is missing with them.
pub(crate) fn tell_of_marks(path: &Path, part: &Part) {
    for offset in &part.damaged_marks {
        log::warn!(
            "damaged SYNCED mark passed over, no record is missing path={} offset={offset} (is the disk failing?)",
            path.display()
        );
    }
}

/// Hands a part of the log to the master in pieces that one turn can take in. All but the last name the place `before`
/// the part: if the rest does not follow, what was taken in is replayed again, which changes nothing.
pub(crate) async fn hand_over(replayed: &Recipient<Replayed>, mut part: Replayed, before: LogPlace) {
    let mut changes = std::mem::take(&mut part.changes).into_iter();
    loop {
        let piece = next_piece(&mut changes);
        if changes.len() == 0 {
            part.changes = piece;
            break;
        }
        let piece = Replayed {
            from_start: std::mem::take(&mut part.from_start),
            changes: piece,
            place: before.clone(),
            file: part.file,
            caught_up: false,
        };
        // The master is gone only when the node ends.
        let _ = replayed.send(piece).await;
    }
    let _ = replayed.send(part).await;
}

/// Takes off as many changes as one turn may take in.
fn next_piece(changes: &mut std::vec::IntoIter<Replay>) -> Vec<Replay> {
    let mut piece = Vec::with_capacity(changes.len().min(CHANGES_MAX));
    let mut bytes = 0;
    while piece.len() < CHANGES_MAX && bytes < KEY_BYTES_MAX {
        let Some(change) = changes.next() else { break };
        bytes += match &change {
            Replay::Put { key, .. } | Replay::Delete { key } => key.len(),
            Replay::Reign(_) | Replay::GivenUp(_) => 0,
        };
        piece.push(change);
    }
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deletions(keys: usize, key_bytes: usize) -> std::vec::IntoIter<Replay> {
        let deletion = |_| Replay::Delete { key: vec![b'k'; key_bytes].into() };
        (0..keys).map(deletion).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn a_part_is_handed_over_in_pieces_of_bounded_keys_and_bytes() {
        for (keys, key_bytes) in [(5 * CHANGES_MAX + 1, 10), (300, 64 * 1024), (1, 1), (0, 0)] {
            let mut changes = deletions(keys, key_bytes);
            let mut taken = 0;
            while changes.len() > 0 {
                let piece = next_piece(&mut changes);
                assert!(!piece.is_empty() && piece.len() <= CHANGES_MAX, "{} changes", piece.len());
                let in_front = (piece.len() - 1) * key_bytes;
                assert!(in_front < KEY_BYTES_MAX, "{in_front} bytes and one key more");
                taken += piece.len();
            }
            assert_eq!(taken, keys);
        }
    }
}
