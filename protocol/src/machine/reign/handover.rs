//! How a reign goes to the standby that asks for it: the log is synced while requests are served, then they are held, those in
//! flight come to their end, and the log is closed. And the operator who waits for that.
//!
//! Any of these that takes too long gives the handover up, and the master serves on.

use super::{Effect, Leadership, Refusal, ReignRole, Saying, Surroundings};
use crate::command::{ErrorWord, Reply};
use crate::ids::{LinkId, Millis};
use crate::machine::master::Asker;
use crate::planted;
use std::fmt;

/// The most operators that wait for one failover.
pub const OPERATORS_MAX: usize = 64;

/// A handover holds requests back once the log was synced within so long: closing it takes no longer, then.
const SYNC_MS: u64 = 100;

/// So often a handover has the log synced; then it goes on in any case.
const SYNCS_MAX: u32 = 5;

/// How long a handover waits for the requests in flight.
const YIELD_MS: u64 = 50;

/// How long a handover waits for the log to be closed.
const CLOSE_MS: u64 = 500;

/// Why a handover does not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoverFailure {
    /// It was not granted.
    Refused(Refusal),
    /// Requests in flight took too long.
    RequestsInFlight,
    /// The standby that asked is gone.
    StandbyGone,
    /// The log took too long to be closed.
    LogNotClosed,
    /// Another master leads by now.
    LeadershipLost,
}

impl fmt::Display for HandoverFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandoverFailure::Refused(refusal) => refusal.fmt(f),
            HandoverFailure::RequestsInFlight => f.write_str("requests in flight were not done in time"),
            HandoverFailure::StandbyGone => f.write_str("the standby is gone"),
            HandoverFailure::LogNotClosed => f.write_str("the log could not be closed in time"),
            HandoverFailure::LeadershipLost => f.write_str("another master leads"),
        }
    }
}

impl Leadership {
    /// A standby asks for the reign; what it said of itself.
    pub(super) fn handover_requested(
        &mut self,
        now: Millis,
        from: LinkId,
        said: (bool, bool, bool),
        effects: &mut Vec<Effect>,
    ) {
        let verdict = match self.role {
            ReignRole::Serving { reign } if !self.is_closing() => {
                let connected_ms = self.standbys.connected_ms(now, from);
                self.takeover.verdict(connected_ms, said).map(|()| reign)
            }
            ReignRole::Serving { .. }
            | ReignRole::Preparing { .. }
            | ReignRole::Yielding { .. }
            | ReignRole::Closing { .. }
            | ReignRole::Stopping { .. } => Err(Refusal::Occupied),
            ReignRole::Standby { .. }
            | ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. }
            | ReignRole::Announcing { .. }
            | ReignRole::Doubting { .. }
            | ReignRole::Losing { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => Err(Refusal::NotActive),
        };
        let refusal = match verdict {
            Ok(reign) => {
                self.standbys.granted(from);
                self.become_role(ReignRole::Preparing { reign, since: now, to: from, syncs: 1 }, effects);
                effects.push(Effect::SyncLog);
                return;
            }
            Err(refusal) => refusal,
        };
        // Of one that is under way it is told how it ends, and operators wait for that.
        if refusal != Refusal::Occupied {
            effects.push(Effect::Say(Saying::Refused(refusal)));
        }
        effects.push(Effect::RefuseHandover { to: from, why: HandoverFailure::Refused(refusal) });
        if refusal != Refusal::Occupied && !self.operators.is_empty() {
            self.standbys.refused(from, refusal);
            self.answer_if_all_refused(effects);
        }
    }

    /// Tells operators that none of the standbys gets the reign, once that is so.
    fn answer_if_all_refused(&mut self, effects: &mut Vec<Effect>) {
        if let Some(refusal) = self.standbys.all_refused() {
            let why = format!("the handover was refused: {refusal}");
            self.answer_operators(&Reply::error(ErrorWord::Busy, why), effects);
        }
    }

    /// The log is synced: with little left to sync, requests may be held.
    pub(super) fn synced(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let ReignRole::Preparing { reign, since, to, syncs } = self.role else { return };
        if self.is_closing() {
            // The log is closed for good as soon as nothing is in flight.
            return;
        }
        let took_ms = now.since(since);
        if took_ms > SYNC_MS && syncs < SYNCS_MAX {
            effects.push(Effect::Say(Saying::SlowSync { took_ms, syncs }));
            self.become_role(ReignRole::Preparing { reign, since: now, to, syncs: syncs + 1 }, effects);
            effects.push(Effect::SyncLog);
            return;
        }
        effects.push(Effect::Say(Saying::HandingOver));
        self.become_role(ReignRole::Yielding { reign, since: now, to }, effects);
    }

    /// A turn has done all that it could: goes on with a handover, or a stop, once nothing is in flight.
    pub(super) fn turn_ended(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        if around.is_behind || !self.waits_for_requests() {
            return;
        }
        if let ReignRole::Losing { .. } = self.role {
            return self.tick_losing(now, around, effects);
        }
        planted!(HandoverDoesNotWait => {
            if matches!(self.role, ReignRole::Yielding { .. }) {
                return self.close_log(now, effects);
            }
        });
        planted!(StopDoesNotWait => {
            if !matches!(self.role, ReignRole::Yielding { .. }) {
                return self.close_log(now, effects);
            }
        });
        if self.nothing_in_flight(now, around) {
            self.close_log(now, effects);
        }
    }

    /// Whether no request is in flight here, nor on its way from a master that forwards to this one.
    pub(super) fn nothing_in_flight(&self, now: Millis, around: &Surroundings) -> bool {
        around.in_flight == 0 && !(around.may_forward && self.awaits_forwarders(now))
    }

    pub(super) fn tick_yielding(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        self.turn_ended(now, around, effects);
        let ReignRole::Yielding { since, .. } = self.role else { return };
        // A handover for a stop has nothing to go back to.
        let yield_ms = if self.is_stopping() { super::stop::STOP_MS } else { YIELD_MS };
        if now.since(since) >= yield_ms {
            if self.is_stopping() {
                self.begin_closing(now, effects);
            }
            self.abort_handover(HandoverFailure::RequestsInFlight, effects);
        }
    }

    pub(super) fn tick_log_closing(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let is_stopping = self.is_stopping();
        let ReignRole::Closing { since, asked_back, .. } = &mut self.role else { return };
        if !*asked_back && now.since(*since) >= CLOSE_MS && !is_stopping {
            *asked_back = true;
            effects.push(Effect::AskLogBack);
        }
    }

    /// Nothing is in flight: the log is closed, for whoever asked for the reign or for good.
    pub(super) fn close_log(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let role = match self.role {
            ReignRole::Yielding { reign, to, .. } => {
                ReignRole::Closing { reign, since: now, to, asked_back: false }
            }
            ReignRole::Serving { reign } | ReignRole::Preparing { reign, .. } => {
                ReignRole::Stopping { reign }
            }
            ReignRole::Standby { .. }
            | ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. }
            | ReignRole::Announcing { .. }
            | ReignRole::Doubting { .. }
            | ReignRole::Closing { .. }
            | ReignRole::Losing { .. }
            | ReignRole::Stopping { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => return,
        };
        self.become_role(role, effects);
        effects.push(Effect::CloseLog);
    }

    /// Gives a handover up and goes on serving.
    pub(super) fn abort_handover(&mut self, why: HandoverFailure, effects: &mut Vec<Effect>) {
        let (ReignRole::Preparing { reign, to, .. }
        | ReignRole::Yielding { reign, to, .. }
        | ReignRole::Closing { reign, to, .. }) = self.role
        else {
            return;
        };
        effects.push(Effect::Say(Saying::Aborted(why)));
        effects.push(Effect::RefuseHandover { to, why });
        let reply = Reply::error(ErrorWord::Busy, format!("the handover was aborted: {why}"));
        self.answer_operators(&reply, effects);
        self.become_role(ReignRole::Serving { reign }, effects);
    }

    pub(super) fn standby_gone(&mut self, link: LinkId, effects: &mut Vec<Effect>) {
        self.standbys.went(link);
        if let ReignRole::Preparing { to, .. } | ReignRole::Yielding { to, .. } = self.role {
            if to == link {
                self.abort_handover(HandoverFailure::StandbyGone, effects);
            }
        }
        if self.standbys.is_empty() {
            self.answer_operators(&Reply::error(ErrorWord::Bad, "the standby is gone"), effects);
        } else {
            self.answer_if_all_refused(effects);
        }
    }

    /// An operator wants the standby to serve.
    pub(super) fn failover_asked(&mut self, asker: Asker, deadline: Millis, effects: &mut Vec<Effect>) {
        let refusal = if self.standbys.is_empty() {
            Reply::error(ErrorWord::Bad, "no standby is connected")
        } else if self.operators.len() >= OPERATORS_MAX {
            Reply::error(ErrorWord::Busy, "a failover is already under way")
        } else {
            self.operators.push((asker, deadline));
            self.standbys.forget_refusals();
            effects.push(Effect::OfferReign);
            return;
        };
        effects.push(Effect::AnswerOperator { to: asker, reply: refusal });
    }

    /// A standby that does not take the offer up keeps nobody waiting for ever.
    pub(super) fn expire_failover(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.operators.iter().any(|(_, deadline)| *deadline <= now) {
            let reply = Reply::error(ErrorWord::Unknown, "the standby has not taken over in time");
            self.answer_operators(&reply, effects);
        }
    }

    /// Tells operators how the failover that they asked for has ended.
    pub(super) fn answer_operators(&mut self, reply: &Reply, effects: &mut Vec<Effect>) {
        self.standbys.forget_refusals();
        for (to, _) in std::mem::take(&mut self.operators) {
            effects.push(Effect::AnswerOperator { to, reply: reply.clone() });
        }
    }
}
