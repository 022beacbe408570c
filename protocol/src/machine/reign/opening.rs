//! What comes between the leadership and the first request: the log is looked at, made whole, held against what others know of it,
//! and begun with an EPOCH record; the slaves are told. One that leads without the right log waits.
//!
//! Owns the looks for another log meanwhile. Whether a reign may begin on what was read is `may_begin.rs`.

use super::may_begin::{self, Accepted, Circumstances, Lack, Log, MayBegin, Source};
use super::{Effect, Hearsay, Leadership, Queue, ReignRole, Saying, Surroundings};
use crate::ids::{Epoch, LogId, Millis, Reign, ReignId, SlaveId, Version};
use crate::machine::master::Reigns;
use crate::message;
use crate::planted;
use crate::record::Position;
use crate::witness_file::WitnessText;

/// How long a takeover waits for the connected slaves to accept the new reign before it serves with those that did.
const ENLIST_MS: u64 = 100;

/// How often it is said that nobody serves because the log does not continue what was replayed.
const TELL_BARRED_MS: u64 = 5000;

/// How often it is said what is waited for.
const TELL_LACK_MS: u64 = 60_000;

/// How often it is looked which log is there while the right one is not.
const LOOK_MS: u64 = 500;

/// A master whose log was moved away ceases to serve well within this time, in milliseconds: it looks twice a second. One that
/// serves on serves another log than what its standby has replayed.
const STRAYS_MS: u64 = 3_000;

/// A log that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLog {
    /// Which one it is.
    pub id: LogId,
    /// How long it is, in bytes.
    pub bytes: u64,
}

/// A master that leads, without what is needed to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What the log says; `None` when there is none.
    log: Option<Log>,
    /// Whether it is open, which it is as long as nothing is known to be wrong with it.
    is_open: bool,
    /// The one that was read.
    read: Option<StoredLog>,
    /// Another one that was there at the last look: it is read once it does not grow any more.
    candidate: Option<StoredLog>,
    looked_at: Millis,
    is_looking: bool,
    /// Since when a slave of no cluster is connected.
    newcomer_since: Option<Millis>,
    /// What is waited for, and when it was said last.
    told: Option<(Lack, Millis)>,
    /// What is noted of witnesses.
    noted: WitnessText,
}

impl Waiting {
    /// What is waited for, and when it was said last.
    pub(super) fn told(&self) -> Option<&(Lack, Millis)> {
        self.told.as_ref()
    }

    /// What an operator has given up of this log.
    fn accepted(&self) -> Accepted {
        let noted = &self.noted;
        if noted.cluster.is_none() || self.log.is_none_or(|log| log.cluster != noted.cluster) {
            return Accepted::default();
        }
        Accepted { reigns: noted.accepted.clone(), epoch: noted.accepted_epoch.unwrap_or_default() }
    }

    /// Notes what slaves have seen and the log lacks, each by its name: a restart without those slaves does not serve either, and
    /// a repair waits for them.
    fn note_witnesses(&mut self, lacks: &[Lack], effects: &mut Vec<Effect>) {
        let mut is_new = false;
        for lack in lacks {
            let Lack::Records { source: Source::Slave(id), seen, log } = lack else { continue };
            if self.noted.cluster != log.cluster {
                self.noted = WitnessText { cluster: log.cluster, ..WitnessText::default() };
            }
            is_new |= self.noted.note(id.clone(), *seen);
        }
        if is_new {
            effects.push(Effect::NoteWitnesses(self.noted.clone()));
        }
    }

    /// The log lacks `all` that, and `lack` first of all.
    fn lacks(&mut self, now: Millis, lack: Lack, all: &[Lack], effects: &mut Vec<Effect>) {
        // Whoever puts another one there need not wait until we have let go of this one.
        if std::mem::replace(&mut self.is_open, false) {
            effects.push(Effect::LetGoOfLog);
        }
        self.note_witnesses(all, effects);
        let is_said = |(told, at): &(Lack, Millis)| *told == lack && now.since(*at) < TELL_LACK_MS;
        if !self.told.as_ref().is_some_and(is_said) {
            effects.push(Effect::Say(Saying::Lacking(lack.clone())));
            self.told = Some((lack, now));
        }
        if !self.is_looking && now.since(self.looked_at) >= LOOK_MS {
            self.is_looking = true;
            effects.push(Effect::FindLog);
        }
    }
}

/// What a log that was read says of itself.
impl From<&Position> for Log {
    fn from(end: &Position) -> Log {
        let is_half_repaired = end.is_half_repaired;
        Log { cluster: end.cluster, epoch: end.epoch, end: end.seq, is_half_repaired }
    }
}

impl Leadership {
    /// Lets a standby forget what it has replayed, where nobody ever served that and the other master serves something else:
    /// it was the wrong log. The other master is given the time to notice that its own log was moved away: then what was
    /// replayed may be the log that it serves.
    pub(super) fn tick_standby(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        let is_served = self.takeover.served_epoch().is_some();
        if !is_served || around.log_follows || self.known.has_memory() {
            self.strays_since = None;
            return;
        }
        let since = *self.strays_since.get_or_insert(now);
        if now.since(since) >= STRAYS_MS {
            self.strays_since = None;
            effects.push(Effect::FollowAnew);
        }
    }

    /// Says again what keeps this master from serving.
    pub(super) fn tick_barred(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        let ReignRole::Barred { told_at } = &mut self.role else { return };
        if !around.log_follows && now.since(*told_at) >= TELL_BARRED_MS {
            *told_at = now;
            effects.push(Effect::Say(Saying::Barred));
        }
    }

    pub(super) fn sighted(&mut self, follows: bool, effects: &mut Vec<Effect>) {
        if let (ReignRole::Barred { .. }, true) = (&self.role, follows) {
            // What follows the log stops first, so that nothing is replayed twice or out of order.
            self.become_role(ReignRole::Halting, effects);
            effects.push(Effect::StopFollowing);
        }
    }

    pub(super) fn halted(&mut self, effects: &mut Vec<Effect>) {
        if self.role == ReignRole::Halting {
            self.recover(false, None, effects);
        }
    }

    fn recover(&mut self, makes_log: bool, told: Option<(Lack, Millis)>, effects: &mut Vec<Effect>) {
        self.become_role(ReignRole::Recovering { told }, effects);
        effects.push(Effect::Recover { makes_log });
    }

    /// The log is open and read, or there is none: from now on it is asked whether a reign may begin on it.
    pub(super) fn recovered(
        &mut self,
        now: Millis,
        log: Option<Log>,
        read: Option<StoredLog>,
        noted: WitnessText,
    ) {
        let ReignRole::Recovering { told } = &mut self.role else { return };
        let told = told.take();
        self.role = ReignRole::Waiting(Box::new(Waiting {
            is_open: log.is_some(),
            log,
            read,
            candidate: None,
            looked_at: now,
            is_looking: false,
            newcomer_since: None,
            told,
            noted,
        }));
    }

    /// Asks again whether a reign may begin.
    pub(super) fn consider(&mut self, now: Millis, hearsay: &Hearsay<'_>, effects: &mut Vec<Effect>) {
        let ReignRole::Waiting(waiting) = &mut self.role else { return };
        let peer_epoch = self.takeover.peer_epoch();
        let claims = self.known.claims(hearsay, peer_epoch, &waiting.noted);
        waiting.newcomer_since =
            if hearsay.has_newcomer { waiting.newcomer_since.or(Some(now)) } else { None };
        let circumstances = Circumstances {
            new: self.config.new,
            heard_ms: self.known.heard_ms(now),
            newcomer_ms: waiting.newcomer_since.map(|since| now.since(since)),
            is_warm: self.known.has_been_served(),
        };
        let accepted = waiting.accepted();
        match may_begin::judge(waiting.log.as_ref(), hearsay.reigns, &claims, &accepted, circumstances) {
            MayBegin::Yes => self.leave_waiting(effects),
            MayBegin::NotYet => {}
            MayBegin::No(lack) => {
                let all: Vec<Lack> = match waiting.log {
                    Some(log) => may_begin::lacks(&log, hearsay.reigns, &claims, &accepted).collect(),
                    None => Vec::new(),
                };
                waiting.lacks(now, lack, &all, effects);
            }
        }
    }

    /// Begins a reign on what was found; what is not open any more, or not there yet, is opened first.
    fn leave_waiting(&mut self, effects: &mut Vec<Effect>) {
        let ReignRole::Waiting(waiting) = &mut self.role else { return };
        let makes_log = waiting.log.is_none();
        let Some(log) = waiting.log.filter(|_| waiting.is_open) else {
            let told = waiting.told.take();
            self.recover(makes_log, told, effects);
            return;
        };
        let (is_noted, given_up) = (!waiting.noted.is_empty(), std::mem::take(&mut waiting.noted.accepted));
        // Above every epoch that anybody has seen.
        let highest = self.known_epoch.max(log.epoch).max(self.known.declared_epoch());
        let epoch = if planted!(EpochNotRaised) { highest.max(Epoch(1)) } else { highest.next() };
        self.become_role(ReignRole::Opening { epoch, is_noted }, effects);
        effects.push(Effect::WriteEpoch { epoch, given_up });
    }

    pub(super) fn log_found(&mut self, now: Millis, seen: Option<StoredLog>, effects: &mut Vec<Effect>) {
        let ReignRole::Waiting(waiting) = &mut self.role else { return };
        (waiting.is_looking, waiting.looked_at) = (false, now);
        let is_new = match (seen, waiting.read) {
            (Some(found), None) => found.bytes > 0,
            (seen, read) => seen != read,
        };
        let before = std::mem::replace(&mut waiting.candidate, seen.filter(|_| is_new));
        // One that is being copied there is left alone until it is whole.
        if waiting.candidate.is_some() && waiting.candidate == before {
            let told = waiting.told.take();
            effects.push(Effect::Say(Saying::AnotherLog));
            self.recover(false, told, effects);
        }
    }

    pub(super) fn epoch_written(
        &mut self,
        now: Millis,
        version: Version,
        id: ReignId,
        effects: &mut Vec<Effect>,
    ) {
        let ReignRole::Opening { is_noted, .. } = self.role else { return };
        let reign = Reign { epoch: version.epoch, id };
        self.known_epoch = self.known_epoch.max(version.epoch);
        self.become_role(ReignRole::Announcing { reign, since: now }, effects);
        if is_noted {
            // What was noted is in the log, or given up in it.
            effects.push(Effect::NoteWitnesses(WitnessText::default()));
        }
        effects.push(Effect::Declare { serves: false });
        effects.push(Effect::BeginReign { version, id });
        effects.push(Effect::Announce);
    }

    pub(super) fn tick_announcing(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        let ReignRole::Announcing { reign, since } = self.role else { return };
        if around.slaves_undecided > 0 && now.since(since) < ENLIST_MS {
            return;
        }
        effects.push(Effect::GivePlaces);
        // Until now nobody was served in this reign, and nothing is missing if its log is put aside.
        effects.push(Effect::Declare { serves: true });
        effects.push(Effect::Say(Saying::Serving { epoch: reign.epoch }));
        self.known.served();
        self.takeover.reign_began(now);
        self.become_role(ReignRole::Serving { reign }, effects);
        effects.push(Effect::TellState);
    }

    /// A slave has seen what the log lacks. Nobody was served in this reign yet, and nobody will be: the log is closed.
    pub(super) fn accused(&mut self, slave: SlaveId, seen: message::Seen, effects: &mut Vec<Effect>) {
        let ReignRole::Announcing { reign, .. } = self.role else { return };
        effects.push(Effect::Say(Saying::Doubted { slave: slave.clone(), seen }));
        self.become_role(ReignRole::Doubting { reign, slave, seen }, effects);
        effects.push(Effect::CloseLog);
    }

    /// The log is closed: give the leadership away and follow the other master from here on, or end, or wait for the right log.
    pub(super) fn closed(
        &mut self,
        now: Millis,
        end: Position,
        stored: Option<StoredLog>,
        reigns: &Reigns,
        effects: &mut Vec<Effect>,
    ) {
        let (ReignRole::Doubting { reign, .. }
        | ReignRole::Closing { reign, .. }
        | ReignRole::Losing { reign, .. }
        | ReignRole::Stopping { reign }) = &self.role
        else {
            return;
        };
        let reign = *reign;
        effects.push(Effect::EndReign);
        self.known_epoch = self.known_epoch.max(reign.epoch);
        if let (ReignRole::Doubting { slave, seen, .. }, false) = (&self.role, self.is_closing()) {
            let (slave, seen) = (slave.clone(), *seen);
            self.doubted(now, slave, seen, (Log::from(&end), stored), effects);
            return;
        }
        let end = Position { reign, ..end };
        self.remember(&end, end.seq, reigns, effects);
        // The standby that queues for it wakes up.
        effects.push(Effect::StopLeading);
        if self.is_closing() {
            self.end(effects);
            return;
        }
        if let ReignRole::Losing { .. } = self.role {
            effects.push(Effect::Say(Saying::Lost { epoch: reign.epoch }));
        } else {
            effects.push(Effect::Say(Saying::HandedOver { epoch: reign.epoch }));
            self.answer_operators(&crate::command::Reply::Done, effects);
            self.takeover.yielded(now);
        }
        effects.push(Effect::Follow);
        self.become_role(ReignRole::Standby { queue: Queue::Replaying }, effects);
        effects.push(Effect::TellState);
    }

    /// The log of a reign that was given up before it served is closed: what it lacks is waited for.
    fn doubted(
        &mut self,
        now: Millis,
        slave: SlaveId,
        seen: message::Seen,
        (log, stored): (Log, Option<StoredLog>),
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::LetGoOfLog);
        let mut waiting = Waiting {
            log: Some(log),
            is_open: false,
            read: stored,
            candidate: None,
            looked_at: now,
            is_looking: false,
            newcomer_since: None,
            told: None,
            noted: WitnessText::default(),
        };
        let lack = Lack::Records { log, seen, source: Source::Slave(slave) };
        waiting.note_witnesses(&[lack], effects);
        self.become_role(ReignRole::Waiting(Box::new(waiting)), effects);
    }
}
