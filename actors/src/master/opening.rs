//! What a master does between the lock and its EPOCH record: it holds the log against what others know of it, and waits
//! with the lock when something is missing.
//!
//! Owns the looks at the path meanwhile. The rule itself is `machine/reign/start.rs`.

use super::{MasterActor, Phase, Role};
use crate::config::MasterConfig;
use crate::env::{Env, FileIdentity, Group, LockGuard, OpenMode};
use crate::journal::shared_file::log_scan::LogPlace;
use crate::journal::shared_file::log_tailer::{self, Halt};
use crate::journal::shared_file::log_writer::Close;
use crate::journal::shared_file::recovery::Recovered;
use crate::journal::Sight;
use crate::node_error::NodeError;
use actix::prelude::*;
use dsm_protocol::ids::{ClusterId, LinkId, Millis, SlaveId};
use dsm_protocol::machine::master::{Event, Testimony};
use dsm_protocol::machine::reign::start::{self, Accepted, Circumstances, Claim, Lack, Log, Source, Verdict};
use dsm_protocol::message::Seen;
use dsm_protocol::planted;
use dsm_protocol::record::Position;
use dsm_protocol::witness_file::WitnessText;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// How often the path is looked at while the right log is not there, in milliseconds.
const LOOK_MS: u64 = 500;

/// The longest file of witnesses that is read, in bytes.
const NOTED_BYTES_MAX: usize = 64 * 1024;

/// How often it is said what is waited for, in milliseconds.
const TELL_AGAIN_MS: u64 = 60_000;

/// The log as a reign needs it.
pub(crate) struct Opened {
    pub(super) recovered: Recovered,
    pub(super) values: Rc<dyn crate::env::File>,
    pub(super) sync_file: Rc<dyn crate::env::File>,
}

/// Which file is at the path, and how long it is in bytes.
type AtPath = (FileIdentity, u64);

/// With the lock, and without what is needed to begin.
pub(crate) struct Waiting {
    pub(super) guard: Box<dyn LockGuard>,
    /// The log, locked, as long as nothing is known to be wrong with it.
    opened: Option<Opened>,
    /// What it says; `None` when there is none.
    log: Option<Log>,
    /// The file that was read.
    read: Option<AtPath>,
    /// Another one that was there at the last look: it is read once it does not grow any more.
    candidate: Option<AtPath>,
    looked_at: Millis,
    is_looking: bool,
    /// Since when a slave of no cluster is connected.
    newcomer_since: Option<Millis>,
    /// What is waited for, and when it was said last.
    told: Option<(Lack, Millis)>,
    /// What stands in the file of witnesses.
    noted: WitnessText,
}

/// What this master has itself read in the log, of what is certainly on disk, or written there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    cluster: ClusterId,
    seen: Option<Seen>,
}

impl MasterActor {
    /// The file is locked and read, or there is none: from now on it is asked whether a reign may begin on it.
    pub(super) fn opened(&mut self, opened: Option<Opened>, noted: WitnessText, ctx: &mut Context<Self>) {
        let Role::Recovering { guard, told } = std::mem::replace(&mut self.role, Role::Ended) else { return };
        let now = self.env.now();
        let recovered = opened.as_ref().map(|opened| &opened.recovered);
        self.role = Role::Waiting(Box::new(Waiting {
            guard,
            log: recovered.map(|recovered| log_at(&recovered.position)),
            read: recovered.map(|recovered| (recovered.identity, recovered.position.offset)),
            opened,
            candidate: None,
            looked_at: now,
            is_looking: false,
            newcomer_since: None,
            told,
            noted,
        }));
        self.consider(now, ctx);
    }

    /// Asks again whether a reign may begin, and looks whether the file has come.
    pub(super) fn consider(&mut self, now: Millis, ctx: &mut Context<Self>) {
        let claims = match &self.role {
            Role::Waiting(waiting) => self.claims(waiting),
            Role::Standby { .. }
            | Role::Barred { .. }
            | Role::Halting { .. }
            | Role::Recovering { .. }
            | Role::Reigning(_)
            | Role::Ended => return,
        };
        let has_newcomer = self.slaves.values().any(|slave| slave.cluster.is_none());
        let Role::Waiting(waiting) = &mut self.role else { return };
        waiting.newcomer_since = if has_newcomer { waiting.newcomer_since.or(Some(now)) } else { None };
        let circumstances = Circumstances {
            new: self.config.new,
            heard_ms: now.since(self.started_at),
            newcomer_ms: waiting.newcomer_since.map(|since| now.since(since)),
            is_warm: self.has_been_served,
        };
        let accepted = accepted(waiting);
        match start::judge(waiting.log.as_ref(), self.machine.reigns(), &claims, &accepted, circumstances) {
            Verdict::Begin => self.leave_waiting(ctx),
            Verdict::NotYet => {}
            Verdict::Wait(lack) => {
                // Whoever puts another file there need not wait for our lock on this one.
                waiting.opened = None;
                self.note_witness(&lack);
                self.tell_lack(now, lack);
                self.look_at_path(now, ctx);
            }
        }
    }

    /// Everything that somebody knows of the log.
    fn claims(&self, waiting: &Waiting) -> Vec<Claim> {
        let mut claims = Vec::new();
        let text = waiting.guard.previous();
        if let Some(cluster) = text.cluster {
            claims.push(Claim { source: Source::LockFile, cluster, epoch: text.epoch, seen: None });
        }
        if let Some(Memory { cluster, seen }) = self.memory {
            claims.push(Claim { source: Source::Memory, cluster, epoch: None, seen });
        }
        if let Some(cluster) = self.peer_cluster {
            let epoch = self.dialed.as_ref().map(|dialed| dialed.state.epoch);
            claims.push(Claim { source: Source::Peer, cluster, epoch, seen: None });
        }
        let connected = self.slaves.values().filter_map(|slave| {
            let source = Source::Slave(slave.id.clone());
            Some(Claim { source, cluster: slave.cluster?, epoch: None, seen: slave.seen })
        });
        claims.extend(connected);
        if let Some(cluster) = waiting.noted.cluster {
            let noted = waiting.noted.seen.iter().map(|(id, seen)| {
                let source = Source::Noted(id.clone());
                Claim { source, cluster, epoch: None, seen: Some(*seen) }
            });
            claims.extend(noted);
        }
        if let Some((id, cluster)) = &self.slave_of {
            let source = Source::Slave(id.clone());
            claims.push(Claim { source, cluster: *cluster, epoch: None, seen: None });
        }
        claims
    }

    /// Begins a reign on what was found; what is not locked any more, or not there yet, is opened first.
    fn leave_waiting(&mut self, ctx: &mut Context<Self>) {
        let Role::Waiting(waiting) = std::mem::replace(&mut self.role, Role::Ended) else { return };
        let waiting = *waiting;
        match waiting.opened {
            Some(opened) => self.begin_reign(waiting.guard, opened, waiting.noted, ctx),
            None => {
                let makes_file = waiting.log.is_none();
                self.recover(waiting.guard, makes_file, waiting.told, ctx);
            }
        }
    }

    /// Notes what a slave has seen and the log lacks, so that a restart without that slave does not serve either.
    fn note_witness(&mut self, lack: &Lack) {
        let Role::Waiting(waiting) = &mut self.role else { return };
        let Lack::Records { source: Source::Slave(id), seen, log } = lack else { return };
        if waiting.noted.cluster != log.cluster {
            waiting.noted = WitnessText { cluster: log.cluster, ..WitnessText::default() };
        }
        if waiting.noted.note(id.clone(), *seen) {
            let text = waiting.noted.to_string();
            self.noted_file.write(&self.env, &self.config, text);
        }
    }

    /// Whether slaves that accept the reign wait for their places until it serves: before that, it may still be put aside.
    pub(super) fn holds_places_back(&self) -> bool {
        matches!(&self.role, Role::Reigning(reign) if matches!(reign.phase, Phase::Announcing { .. }))
    }

    /// Gives their places to the slaves that have accepted the reign so far.
    pub(super) fn enlist_all(&mut self, now: Millis) {
        let enlisted = self.slaves.iter().filter_map(|(link, slave)| {
            let room_bytes = slave.link.borrow_mut().take_enlisted()?;
            Some((*link, slave.id.clone(), room_bytes))
        });
        for (link, id, room_bytes) in enlisted.collect::<Vec<_>>() {
            self.step(now, Event::SlaveJoined { id, link, room_bytes });
        }
        self.flush();
    }

    /// A slave has seen what the log lacks. If nobody was served in this reign yet, nobody will be: the log is closed.
    /// Whether that is so.
    pub(super) fn doubt(&mut self, link: LinkId, seen: Seen) -> bool {
        if planted!(WitnessIgnored) {
            return false;
        }
        let Role::Reigning(reign) = &mut self.role else { return false };
        match reign.phase {
            Phase::Announcing { .. } => {
                let id = self.slaves.get(&link).map_or("", |slave| slave.id.as_str());
                log::warn!(
                    "the reign is given up before it serves slave={id} reign={} seq={}",
                    seen.reign,
                    seen.seq
                );
                reign.phase = Phase::Doubting;
                reign.log.do_send(Close);
                self.doubts = self.slaves.get(&link).map(|slave| (slave.id.clone(), seen));
                true
            }
            Phase::Doubting => true,
            Phase::Opening
            | Phase::Serving
            | Phase::Preparing { .. }
            | Phase::Yielding { .. }
            | Phase::Closing { .. }
            | Phase::Stopping
            | Phase::Departing
            | Phase::Ending => false,
        }
    }

    /// The log of a reign that was given up before it served is closed: what it lacks is waited for.
    pub(super) fn doubted(&mut self, guard: Box<dyn LockGuard>, end: &Position) {
        let now = self.env.now();
        self.role = Role::Waiting(Box::new(Waiting {
            guard,
            opened: None,
            log: Some(Log { cluster: self.cluster.get(), ..log_at(end) }),
            read: self.replayed.file.map(|file| (file, end.offset)),
            candidate: None,
            looked_at: now,
            is_looking: false,
            newcomer_since: None,
            told: None,
            noted: WitnessText::default(),
        }));
        if let (Some((id, seen)), Role::Waiting(waiting)) = (self.doubts.take(), &self.role) {
            if let Some(log) = waiting.log {
                self.note_witness(&Lack::Records { log, seen, source: Source::Slave(id) });
            }
        }
    }

    fn tell_lack(&mut self, now: Millis, lack: Lack) {
        let Role::Waiting(waiting) = &mut self.role else { return };
        let is_news =
            !waiting.told.as_ref().is_some_and(|(told, at)| *told == lack && now.since(*at) < TELL_AGAIN_MS);
        if is_news {
            let path = self.config.log.display().to_string();
            let level = if lack == Lack::Unclaimed { log::Level::Warn } else { log::Level::Error };
            log::log!(level, "not serving: {}; {}", lack.what(&path), lack.way_on(&path));
            waiting.told = Some((lack, now));
        }
    }

    /// What is waited for, in words; nothing when nothing is missing.
    pub(super) fn waiting_for(&self) -> String {
        let path = self.config.log.display();
        let told = match &self.role {
            Role::Barred { .. } if self.sight != Sight::Follows => {
                return format!("the log at {path} does not go on what was replayed: {}", self.sight);
            }
            Role::Waiting(waiting) => waiting.told.as_ref(),
            Role::Recovering { told, .. } => told.as_ref(),
            Role::Standby { .. }
            | Role::Barred { .. }
            | Role::Halting { .. }
            | Role::Reigning(_)
            | Role::Ended => None,
        };
        told.map_or_else(String::new, |(lack, _)| lack.what(&path.to_string()))
    }

    /// Lets a standby forget what it has replayed, where nobody ever served that and the other master serves something
    /// else: it was the wrong log.
    pub(super) fn follow_anew(&mut self, ctx: &mut Context<Self>) {
        let is_served = self.dialed.as_ref().is_some_and(|dialed| dialed.state.active);
        if !is_served || self.memory.is_some() || self.sight == Sight::Follows {
            return;
        }
        let Role::Standby { tailer } = &self.role else { return };
        log::info!(
            "what was replayed was never served, following what the other master serves path={}",
            self.config.log.display()
        );
        tailer.do_send(Halt);
        self.sight = Sight::Follows;
        self.replayed = log_tailer::Start::default();
        let tailer = Self::tailer(&self.env, &self.config, &self.replayed, &self.fate, &self.turns, ctx);
        self.role = Role::Standby { tailer };
    }

    /// Looks at the path, beside this thread.
    fn look_at_path(&mut self, now: Millis, ctx: &mut Context<Self>) {
        let Role::Waiting(waiting) = &mut self.role else { return };
        if waiting.is_looking || now.since(waiting.looked_at) < LOOK_MS {
            return;
        }
        waiting.is_looking = true;
        let looking = look(Rc::clone(&self.env), self.config.log.clone());
        ctx.spawn(looking.into_actor(self).map(|seen, master, ctx| {
            let now = master.env.now();
            // What cannot be seen now may be at the next look.
            master.looked(now, seen.unwrap_or_default(), ctx);
        }));
    }

    fn looked(&mut self, now: Millis, seen: Option<AtPath>, ctx: &mut Context<Self>) {
        let Role::Waiting(waiting) = &mut self.role else { return };
        (waiting.is_looking, waiting.looked_at) = (false, now);
        let is_new = match (seen, waiting.read) {
            (Some((_, bytes)), None) => bytes > 0,
            (seen, read) => seen != read,
        };
        let before = std::mem::replace(&mut waiting.candidate, seen.filter(|_| is_new));
        // A file that is being copied there is left alone until it is whole.
        if waiting.candidate.is_none() || waiting.candidate != before {
            return;
        }
        log::info!("another file is there, reading it path={}", self.config.log.display());
        let Role::Waiting(waiting) = std::mem::replace(&mut self.role, Role::Ended) else { return };
        let waiting = *waiting;
        self.recover(waiting.guard, false, waiting.told, ctx);
    }

    /// Remembers what the log certainly holds on disk, once it is served: what nobody serves may be the wrong one. A log that
    /// has less, or something else, does not make it forget.
    pub(super) fn remember(&mut self, place: &LogPlace) {
        let Position { cluster, reign, seq, .. } = place.durable;
        let Some(cluster) = cluster.filter(|_| self.has_been_served) else { return };
        if self.cluster.get().is_none() {
            self.cluster.set(Some(cluster));
        }
        let is_reign = reign != dsm_protocol::ids::Reign::default();
        let seen = is_reign.then_some(Seen { reign, seq, durable: true });
        let end = place.position.seq;
        // The other master serves a later reign of it: then what was remembered of an earlier one is settled.
        let served =
            self.dialed.as_ref().filter(|dialed| dialed.state.active).map(|dialed| dialed.state.epoch);
        let is_settled = |old: &Seen| served == Some(reign.epoch) && reign.epoch > old.reign.epoch;
        let has_more = |old: &Memory| {
            let lacks = |old: &Seen| self.machine.reigns().testimony_at(end, old) != Testimony::Agrees;
            let is_further = |old: &Seen| {
                seen.is_none_or(|seen| (old.reign.epoch, old.seq) > (seen.reign.epoch, seen.seq))
            };
            old.cluster != cluster
                || old.seen.as_ref().is_some_and(|old| (lacks(old) && !is_settled(old)) || is_further(old))
        };
        if !self.memory.as_ref().is_some_and(has_more) {
            self.memory = Some(Memory { cluster, seen });
        }
    }

    /// Notes whose a slave is, as long as that is all that is known of the log. A slave that has been restarted belongs
    /// to nobody.
    pub(super) fn note_slave_of(&mut self, id: &SlaveId, cluster: Option<ClusterId>) {
        match cluster {
            Some(cluster) if self.slave_of.is_none() => self.slave_of = Some((id.clone(), cluster)),
            None if self.slave_of.as_ref().is_some_and(|(named, _)| named == id) => self.slave_of = None,
            Some(_) | None => {}
        }
    }
}

/// What an operator has given up of this log.
fn accepted(waiting: &Waiting) -> Accepted {
    let noted = &waiting.noted;
    if noted.cluster.is_none() || waiting.log.is_none_or(|log| log.cluster != noted.cluster) {
        return Accepted::default();
    }
    Accepted { reigns: noted.accepted.clone(), epoch: noted.accepted_epoch.unwrap_or_default() }
}

/// What the file of witnesses says.
///
/// # Errors
/// When it is there and cannot be read: it may say that the log must not be served.
pub(super) async fn noted(env: &Env, path: &Path) -> Result<WitnessText, NodeError> {
    let read = async {
        let file = match env.disk().open(path, OpenMode::Read).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        file.read_at(0, NOTED_BYTES_MAX).await
    };
    let bytes: io::Result<Vec<u8>> = read.await;
    let bytes = bytes.map_err(|error| NodeError::file(path, error))?;
    Ok(WitnessText::parse(&String::from_utf8_lossy(&bytes)))
}

/// The file of witnesses, which is written beside the actor: one text at a time, and the last one in the end.
#[derive(Debug, Default)]
pub(super) struct NotedFile {
    next: RefCell<Option<String>>,
    is_writing: Cell<bool>,
}

impl NotedFile {
    /// Writes a text; an empty one when all of it is settled.
    pub(super) fn write(self: &Rc<Self>, env: &Env, config: &MasterConfig, text: String) {
        self.next.replace(Some(text));
        if self.is_writing.replace(true) {
            return;
        }
        let (noted, env, path) = (Rc::clone(self), Rc::clone(env), config.witness_path());
        actix::spawn(async move {
            loop {
                let next = noted.next.take();
                let Some(text) = next else { break };
                if let Err(error) = write_noted(&env, &path, text).await {
                    log::warn!("what slaves have seen is not noted path={} error={error}", path.display());
                }
            }
            noted.is_writing.set(false);
        });
    }
}

/// Writes the text over the one that is there. Nothing is cut before it stands: a full disk, or the end of this process, leaves
/// what was noted before.
async fn write_noted(env: &Env, path: &Path, text: String) -> io::Result<()> {
    if text.is_empty() {
        let file = env.disk().open(path, OpenMode::Existing).await?;
        file.truncate(0).await?;
        return file.sync().await;
    }
    let file = env.disk().open(path, OpenMode::Write).await?;
    let length = text.len();
    let mut bytes = text.into_bytes();
    let before = usize::try_from(file.length().await?).unwrap_or(usize::MAX).min(NOTED_BYTES_MAX);
    // Blank lines say nothing.
    bytes.resize(length.max(before), b'\n');
    let appended = file.append(Group { bytes, sync: true, ..Group::default() }).await;
    if let Some(error) = appended.write_error.or(appended.sync_error) {
        return Err(error);
    }
    file.truncate(length as u64).await?;
    env.disk().sync_directory(path).await
}

/// What a log that was read says of itself.
fn log_at(position: &Position) -> Log {
    Log { cluster: position.cluster, epoch: position.epoch, end: position.seq }
}

async fn look(env: Env, path: PathBuf) -> io::Result<Option<AtPath>> {
    let Some(identity) = env.disk().identity(&path).await? else { return Ok(None) };
    let file = env.disk().open(&path, OpenMode::Read).await?;
    if file.identity().await? != identity {
        return Ok(None);
    }
    Ok(Some((identity, file.length().await?)))
}
