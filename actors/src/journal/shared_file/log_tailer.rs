//! `LogTailer`: follows the log of the active master and rebuilds the directory from it.
//!
//! Owns its place in the log. Reads what is appended within milliseconds of a file notice, and holds back a line until
//! its newline is there. When the file at the path is another one, or has become shorter, it starts again only if what it
//! has replayed is found in there (`same_log.rs`); until then it keeps what it has, and says that nobody may take over
//! from what stands there. Never writes, never judges a bad line: whether it is torn is for the next holder of the lock
//! to say.

use crate::env::{Displaced, Env, File, FileIdentity, OpenMode, Post, Stands, Watch};
use crate::journal::pieces::next_piece;
use crate::journal::shared_file::same_log::{Proof, ProofVerdict};
use crate::journal::shared_file::volumes::Volumes;
use crate::journal::{Replay, Sight};
use crate::node_error::NodeError;
use crate::supervision::{Fate, PanicGuard, TaskGuard};
use crate::turns::TurnLengths;
use actix::prelude::*;
use dsm_protocol::ids::{Epoch, Seq};
use dsm_protocol::machine::log_scan::{LogPlace, LogScan, Part};
use dsm_protocol::planted;
use dsm_protocol::record::{parse_line, Continuation, FileNumber, Position};
use futures_util::future;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// After a read the tailer rests this long, unless somebody asks, so that a busy log costs one wake for many groups.
const REST: Duration = Duration::from_millis(10);

/// A look at the file even without a notice: cheap, and a lost notice must not stop a standby for good.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often the file is looked at where there are no notices.
const LOOK_WITHOUT_NOTICE: Duration = Duration::from_millis(10);

/// No mark is longer, in bytes.
const MARK_BYTES_MAX: usize = 4096;

/// Says what a part of the log holds. Answered when it is taken in, so that at most one part is under way.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Replayed {
    /// Whether the directory is to be forgotten first: the log is another file.
    pub from_start: bool,
    /// The changes, in the order of the log.
    pub changes: Vec<Replay>,
    /// How many changes more come after them, about; 0 where that is not known.
    pub more: usize,
    /// The place after them.
    pub place: LogPlace,
    /// Which file it is a place in.
    pub file: Option<FileIdentity>,
    /// The number of that file in the places of values.
    pub number: FileNumber,
    /// Whether the end of the log was reached.
    pub caught_up: bool,
    /// The log was compacted, and this is the place in the new file up to which it was made of the old one, in bytes: values
    /// before it are still named by places in that.
    pub moved_to: Option<u64>,
}

/// Says what is seen of the log: when that changes, and to whoever asks by [`Look`], once the file is read to its end.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Sighted(pub Sight);

/// Asks for a fresh look, answered by [`Sighted`].
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Look;

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
    /// The number of that file in the places of values.
    pub number: FileNumber,
}

/// Whom a [`LogTailer`] tells what.
#[derive(Clone)]
pub struct Ports {
    /// Takes in what is replayed.
    pub replayed: Recipient<Replayed>,
    /// Hears what is seen of the log.
    pub sighted: Recipient<Sighted>,
    /// Hears that nothing more comes.
    pub halted: Recipient<Halted>,
}

/// The actor. See the module.
pub struct LogTailer {
    env: Env,
    path: PathBuf,
    line_bytes_max: usize,
    from: Start,
    ports: Ports,
    asked: Rc<Asked>,
    fate: Fate,
    guard: PanicGuard,
    task: Option<JoinHandle<()>>,
    turns: Rc<TurnLengths>,
    volumes: Rc<RefCell<Volumes>>,
}

/// Whether somebody waits for a fresh look.
#[derive(Debug, Default)]
struct Asked {
    is_asked: Cell<bool>,
    wake: Notify,
}

impl LogTailer {
    /// A tailer that goes on at `from`.
    pub fn new(
        env: Env,
        path: PathBuf,
        line_bytes_max: usize,
        from: Start,
        ports: Ports,
        fate: Fate,
    ) -> Self {
        let guard = PanicGuard::new("LogTailer", fate.clone());
        let turns = TurnLengths::new(Rc::clone(&env));
        let asked = Rc::default();
        let volumes = Rc::default();
        LogTailer { env, path, line_bytes_max, from, ports, asked, fate, guard, task: None, turns, volumes }
    }

    /// Keeps the files in which values stand where others find them.
    pub(super) fn keeping(self, volumes: Rc<RefCell<Volumes>>) -> Self {
        LogTailer { volumes, ..self }
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
            ports: self.ports.clone(),
            asked: Rc::clone(&self.asked),
            scan: Some(LogScan::new(&self.from.place, self.line_bytes_max).in_file(self.from.number)),
            file: None,
            identity: self.from.file,
            number: self.from.number,
            volumes: Rc::clone(&self.volumes),
            continued: None,
            drained_for: None,
            moved_to: None,
            proven: self.from.place.clone(),
            proof: None,
            sight: Sight::Follows,
            from_start: false,
            told: self.from.place.clone(),
            warned_at: None,
            is_unseen: false,
        };
        let fate = self.fate.clone();
        let path = self.path.clone();
        let turns = Rc::clone(&self.turns);
        self.task = Some(actix::spawn(async move {
            let _guard = TaskGuard::new("LogTailer's follower", fate.clone());
            // A tail that cannot be read is a standby that cannot take over: it must not pretend to be one.
            let kind = Cell::new("tailer");
            if let Err(error) = turns.watch(&kind, follower.follow()).await {
                fate.decide(Err(NodeError::file(path, error)));
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

impl Handler<Look> for LogTailer {
    type Result = ();

    fn handle(&mut self, _: Look, _: &mut Self::Context) {
        self.asked.is_asked.set(true);
        self.asked.wake.notify_one();
    }
}

impl Handler<Halt> for LogTailer {
    type Result = ();

    fn handle(&mut self, _: Halt, ctx: &mut Self::Context) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        // Whatever the task has sent lies in front of this in the same mailbox.
        self.ports.halted.do_send(Halted);
        ctx.stop();
    }
}

/// The loop that follows the file.
struct Follower {
    env: Env,
    path: PathBuf,
    line_bytes_max: usize,
    ports: Ports,
    asked: Rc<Asked>,
    /// Absent only while a file's thread has it.
    scan: Option<LogScan>,
    /// The file that is followed, open. It stays so, whatever is at its path: it may have no other name.
    file: Option<Rc<dyn File>>,
    identity: Option<FileIdentity>,
    /// Its number in the places of values.
    number: FileNumber,
    volumes: Rc<RefCell<Volumes>>,
    /// Where the log goes on, if that is what its last line says.
    continued: Option<Continuation>,
    /// The file at the path for which the old one was read to its end.
    drained_for: Option<FileIdentity>,
    /// What is to be told of a log that has gone on in another file.
    moved_to: Option<u64>,
    /// What was replayed and is to be found again in whatever is followed.
    proven: LogPlace,
    /// The search for it, in what is at the path by now.
    proof: Option<Proof>,
    /// What was said of the log last.
    sight: Sight,
    from_start: bool,
    /// The place that the master was told last.
    told: LogPlace,
    /// The place of the bad line that was complained about.
    warned_at: Option<u64>,
    /// Whether it was said that the path cannot be checked.
    is_unseen: bool,
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
        loop {
            let is_asked = self.asked.is_asked.take();
            let sight = self.look().await?;
            self.say(sight, is_asked);
            tokio::select! {
                () = tokio::time::sleep(REST) => {}
                () = self.asked.wake.notified() => continue,
            }
            match &mut watch {
                Some(noticing) => {
                    let noticed = async { tokio::time::timeout(LOOK_EVERY, noticing.changed()).await };
                    let noticed = tokio::select! {
                        noticed = noticed => noticed,
                        () = self.asked.wake.notified() => Ok(Ok(())),
                    };
                    if let Ok(Err(error)) = noticed {
                        log::warn!("no more file notices, looking every {LOOK_WITHOUT_NOTICE:?} instead error={error}");
                        watch = None;
                    }
                }
                None => tokio::time::sleep(LOOK_WITHOUT_NOTICE).await,
            }
        }
    }

    /// Says what is seen, if that is new or somebody waits for it.
    fn say(&mut self, sight: Sight, is_asked: bool) {
        let path = self.path.display();
        let is_new = sight != self.sight;
        if is_new && sight == Sight::Follows {
            log::info!("log at its path continues what was replayed path={path}");
        } else if is_new {
            log::warn!(
                "standby does not take over from the file at the log's path path={path} cause=\"{sight}\": put the \
                 file back, and this master goes on by itself"
            );
        }
        self.sight = sight.clone();
        if is_new || is_asked {
            self.ports.sighted.do_send(Sighted(sight));
        }
    }

    /// Reads what there is to read, if what is at the path continues what was replayed.
    async fn look(&mut self) -> io::Result<Sight> {
        let found = match self.find().await {
            Ok(found) => found,
            Err(error) => {
                // What the system does not tell now it may tell later; that is no reason to end, and none to believe.
                if !std::mem::replace(&mut self.is_unseen, true) {
                    log::warn!(
                        "the log's path cannot be checked, retrying path={} error={error}",
                        self.path.display()
                    );
                }
                let stays = |what: &str| Sight::Gone(format!("{what}: {error}"));
                return Ok(if self.has_replayed() { stays("it cannot be checked") } else { Sight::Follows });
            }
        };
        self.is_unseen = false;
        match found {
            Found::Same => {}
            Found::Nothing(what) if self.has_replayed() => return Ok(Sight::Gone(what)),
            Found::Nothing(_) => {
                self.tell(Vec::new(), true).await;
                return Ok(Sight::Follows);
            }
            Found::Another { file, identity, through } => {
                if self.goes_on_in(&file, identity).await? {
                    self.go_on_in(file, identity);
                    // Whoever opens the log next, were it in a moment, begins there.
                    self.tell(Vec::new(), false).await;
                } else if let Some(sight) = self.prove(file, identity, through).await? {
                    return Ok(sight);
                }
            }
        }
        self.read_to_end().await
    }

    /// Whether another file is the one in which the log goes on after a compaction. Reads what the old one still has.
    async fn goes_on_in(&mut self, file: &Rc<dyn File>, identity: FileIdentity) -> io::Result<bool> {
        let Some(own) = self.identity.filter(|own| *own != identity) else { return Ok(false) };
        // Once: its last line was written before the other file came to the path. To tell the master again and again of a log that
        // is not there would keep it from giving that log up.
        if self.drained_for.replace(identity) != Some(identity) {
            self.read_to_end().await?;
        }
        let Some(moved) = self.continued.filter(|moved| moved.file == (identity.device, identity.inode))
        else {
            return Ok(false);
        };
        // The two lines name each other, so that no file that happens to have that inode is taken for it.
        let text = file.read_at(moved.offset, MARK_BYTES_MAX).await?;
        let Some(end) = text.iter().position(|byte| *byte == b'\n') else { return Ok(false) };
        let Ok(record) = parse_line(&text[..end]) else { return Ok(false) };
        let at = self.place().position;
        let came_from = format!("{}:{}", own.device, own.inode);
        let names_own = record.fields.get("continues").is_some_and(|named| named.is(came_from.as_bytes()));
        Ok(names_own && (record.seq, record.epoch) == (at.seq, at.epoch))
    }

    /// Goes on there, behind what was replayed of the old file.
    fn go_on_in(&mut self, file: Rc<dyn File>, identity: FileIdentity) {
        let Some(moved) = self.continued.take() else { return };
        log::info!("log was compacted, following it there path={}", self.path.display());
        let position = Position {
            offset: moved.offset,
            line: moved.line,
            ends_with_mark: false,
            mark_offset: 0,
            unsynced_offset: moved.offset,
            ..self.place().position
        };
        let place = LogPlace::durable(position);
        self.number = self.volumes.borrow_mut().go_on_in(Rc::clone(&file), self.file.take());
        self.scan = Some(LogScan::new(&place, self.line_bytes_max).in_file(self.number));
        (self.file, self.identity, self.moved_to) = (Some(file), Some(identity), Some(moved.offset));
        (self.told, self.proven) = (place.clone(), place);
        (self.proof, self.warned_at) = (None, None);
    }

    /// Whether something would be lost if what is at the path were believed whatever it is.
    ///
    /// A record that somebody was told of stands after an EPOCH, which is synced, so that its line says so. Lines of the
    /// original program say nothing.
    fn has_replayed(&self) -> bool {
        let LogPlace { position, durable, .. } = &self.proven;
        let has_replayed = durable.seq > Seq(0) || (position.seq > Seq(0) && position.epoch == Epoch(0));
        has_replayed && !planted!(StandbyBelievesAnyFile)
    }

    /// Looks what is at the path.
    async fn find(&mut self) -> io::Result<Found> {
        let Some(file) = self.file.clone() else { return self.open().await };
        let Some(identity) = self.identity else { return self.open().await };
        let post = Post { path: self.path.as_path().into(), identity };
        let displaced = file.look(post, self.place().position.offset).await?;
        let Some(Displaced { stands, is_deleted }) = displaced else { return Ok(Found::Same) };
        let held = match is_deleted.then(|| file.shown()).flatten() {
            Some(shown) => format!("; this process has it open: `cp {shown} {}`", self.path.display()),
            None => String::new(),
        };
        match stands {
            Stands::Longer { .. } => Ok(Found::Same),
            Stands::Nothing | Stands::Dangling { .. } => {
                let found = Displaced { stands, is_deleted };
                Ok(Found::Nothing(format!("{found}{held}")))
            }
            // A takeover may have cut what was not known to be on disk, and nothing else.
            Stands::Shorter { .. } => Ok(Found::Another { file, identity, through: Through::Durable }),
            Stands::Other => self.open().await,
        }
    }

    /// Opens what is at the path.
    async fn open(&mut self) -> io::Result<Found> {
        let nothing = || Found::Nothing("nothing is there".to_owned());
        let file = match self.env.disk().open(&self.path, OpenMode::Read).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing()),
            Err(error) => return Err(error),
        };
        let identity = file.identity().await?;
        if self.identity == Some(identity) {
            let is_short = file.length().await? < self.place().position.offset;
            self.file = Some(Rc::clone(&file));
            let through = Through::Durable;
            return Ok(if is_short { Found::Another { file, identity, through } } else { Found::Same });
        }
        Ok(Found::Another { file, identity, through: Through::All })
    }

    /// Looks in another file, or in one that was cut, for what was replayed, and begins to follow it if it is there. Else
    /// gives what is to be said of it.
    async fn prove(
        &mut self,
        file: Rc<dyn File>,
        identity: FileIdentity,
        through: Through,
    ) -> io::Result<Option<Sight>> {
        let why = match through {
            Through::All => "another file",
            Through::Durable => "it was cut",
        };
        if self.has_replayed() {
            let position = match through {
                Through::All => self.proven.position,
                Through::Durable => self.proven.durable,
            };
            let proof = match self.proof.take().filter(|proof| proof.is_of(identity, &position)) {
                Some(proof) => proof,
                None => Proof::new(file, identity, position, self.line_bytes_max),
            };
            let (proof, verdict) = proof.go_on().await?;
            let file = Rc::clone(proof.file());
            match verdict {
                ProofVerdict::Found => self.file = Some(file),
                ProofVerdict::Short(what) => {
                    self.proof = Some(proof);
                    return Ok(Some(Sight::Short(what)));
                }
                ProofVerdict::Other(what) => {
                    self.proof = Some(proof);
                    return Ok(Some(Sight::Other(what)));
                }
            }
            // Behind that, what was replayed may be gone for good.
            self.proven = LogPlace::durable(position);
        } else {
            self.file = Some(file);
        }
        self.proof = None;
        self.identity = Some(identity);
        self.restart(why);
        Ok(None)
    }

    fn restart(&mut self, why: &str) {
        if self.place().position.offset > 0 {
            log::info!("log is replayed from its start path={} cause={why:?}", self.path.display());
        }
        self.number = self.volumes.borrow_mut().begin_anew();
        self.scan = Some(LogScan::new(&LogPlace::default(), self.line_bytes_max).in_file(self.number));
        (self.from_start, self.continued, self.moved_to) = (true, None, None);
        self.told = LogPlace::default();
        self.warned_at = None;
    }

    fn place(&self) -> LogPlace {
        self.scan.as_ref().map_or_else(LogPlace::default, LogScan::place)
    }

    /// Reads what the file has, and says whether all that was replayed before is among it.
    async fn read_to_end(&mut self) -> io::Result<Sight> {
        let Some(file) = self.file.clone() else { return Ok(Sight::Follows) };
        let (mut ahead, mut length) = (None, None);
        loop {
            let before = self.told.position.offset;
            let (scan, part) = match ahead.take() {
                Some(scanned) => scanned,
                None => {
                    let Some(scan) = self.scan.take() else { return Ok(Sight::Follows) };
                    file.scan(scan).await?
                }
            };
            if scan.position().offset > before {
                self.continued = part.continued;
            }
            self.scan = Some(scan);
            tell_of_marks(&self.path, &part);
            if part.lost {
                // Somebody took over, cut what the disk had not taken, and wrote on after it. Or another file was written
                // over this one.
                let Some(identity) = self.identity else { return Ok(Sight::Follows) };
                match self.prove(Rc::clone(&file), identity, Through::Durable).await? {
                    Some(sight) => return Ok(sight),
                    None => continue,
                }
            }
            let place = self.place();
            if place.position.seq >= self.proven.position.seq {
                self.proven = place;
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
                return Ok(self.completeness());
            }
            if part.at_end {
                self.tell(part.changes, true).await;
                return Ok(self.completeness());
            }
            let length = match length {
                Some(length) => length,
                None => *length.insert(file.length().await?),
            };
            let more = more_changes(part.changes.len(), before..self.place().position.offset, length);
            let telling = self.telling(part.changes, more, false);
            // The next part is read and parsed while the master takes this one in.
            let Some(scan) = self.scan.take() else { return Ok(Sight::Follows) };
            let ((), scanned) = future::join(telling, file.scan(scan)).await;
            ahead = Some(scanned?);
        }
    }

    fn completeness(&self) -> Sight {
        let (is, was) = (self.place().position.seq, self.proven.position.seq);
        if is >= was {
            return Sight::Follows;
        }
        Sight::Short(format!("it ends at seq {is}, and seq {was} was replayed"))
    }

    async fn tell(&mut self, changes: Vec<Replay>, caught_up: bool) {
        self.telling(changes, 0, caught_up).await;
    }

    /// Tells the master what is replayed up to this place, when it is awaited.
    fn telling(&mut self, changes: Vec<Replay>, more: usize, caught_up: bool) -> impl Future<Output = ()> {
        let replayed = Replayed {
            from_start: std::mem::take(&mut self.from_start),
            changes,
            more,
            place: self.place(),
            file: self.identity,
            number: self.number,
            caught_up,
            moved_to: self.moved_to.take(),
        };
        let before = std::mem::replace(&mut self.told, replayed.place.clone());
        let port = self.ports.replayed.clone();
        async move { hand_over(&port, replayed, before).await }
    }
}

/// What is at the path.
enum Found {
    /// The file that is followed, and no less of it than was replayed.
    Same,
    /// Nothing, in words.
    Nothing(String),
    /// Another file, or the same one with less in it.
    Another { file: Rc<dyn File>, identity: FileIdentity, through: Through },
}

/// What must be found again.
#[derive(Clone, Copy)]
enum Through {
    /// All that was replayed.
    All,
    /// What of it was known to be on disk.
    Durable,
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
            more: part.more.saturating_add(changes.len()),
            place: before.clone(),
            file: part.file,
            number: part.number,
            caught_up: false,
            moved_to: part.moved_to.take(),
        };
        // The master is gone only when the node ends.
        let _ = replayed.send(piece).await;
    }
    let _ = replayed.send(part).await;
}

/// How many changes come after a part of so many, whose lines stand at these bytes of a file of that length, if it goes on like
/// that.
pub(crate) fn more_changes(changes: usize, part: Range<u64>, length: u64) -> usize {
    let bytes = (part.end - part.start).max(1) as u128;
    let more = changes as u128 * u128::from(length.saturating_sub(part.end)) / bytes;
    usize::try_from(more).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_log_is_expected_to_be_like_its_last_part() {
        assert_eq!(more_changes(10, 1000..2000, 12_000), 100);
        assert_eq!(more_changes(10, 1000..2000, 2000), 0);
        assert_eq!(more_changes(10, 1000..2000, 1500), 0, "it was cut");
        assert_eq!(more_changes(0, 0..0, u64::MAX), 0);
    }
}
