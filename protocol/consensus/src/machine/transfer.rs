//! The leadership is given away: because the caller asks for it, or because the leader's disk hangs.
//!
//! Owns the transfers that this member begins. Each that was asked for is answered once. The engine brings the new leader up to
//! date and tells it to campaign; this member takes no proposals meanwhile, and calls the transfer off if that takes too long.
//! It knows that the transfer is done only by hearing from the new leader.

use super::{Consensus, Effect, TransferFailure};
use crate::ids::MemberId;
use crate::mutant::planted;
use dsm_protocol::ids::{Epoch, Millis};
use std::cmp::Reverse;

/// A transfer that this member has begun.
#[derive(Debug)]
pub(super) struct Handover {
    to: MemberId,
    /// The term in which it leads.
    term: u64,
    pub(super) until: Millis,
    /// Whether the caller has asked for it.
    is_asked: bool,
}

impl Consensus {
    pub(super) fn transfer(&mut self, to: MemberId, effects: &mut Vec<Effect>) {
        let is_other = to != self.config.member && self.members.is_voter(to);
        let why = if !self.is_leader() {
            TransferFailure::NotLeader
        } else if !is_other {
            TransferFailure::NotEligible
        } else if self.transfer.is_some() {
            TransferFailure::Underway
        } else {
            if planted!(TransferToldEarly) {
                effects.push(Effect::Transferred { to, term: Epoch(self.engine.0.raft.term + 1) });
            }
            self.begin_transfer(to, !planted!(TransferToldEarly));
            return;
        };
        effects.push(Effect::TransferFailed { to, why });
    }

    pub(super) fn begin_transfer(&mut self, to: MemberId, is_asked: bool) {
        self.engine.0.transfer_leader(to.get());
        let (term, until) = (self.engine.0.raft.term, self.now.plus(self.config.transfer_max_ms));
        self.transfer = Some(Handover { to, term, until, is_asked });
    }

    /// A leader whose disk hangs hands out nothing more as committed: gives the leadership to the member that has the most of the
    /// log. If that comes to nothing, it waits for as long again before it tries once more.
    pub(super) fn disk_stalls(&mut self, effects: &mut Vec<Effect>) {
        let stalls_at = |since: Millis| since.max(self.yielded).plus(self.config.disk_stall_max_ms);
        let first = self.unsynced.front().filter(|first| first.is_batch);
        let stalls = first.is_some_and(|first| stalls_at(first.since) <= self.now);
        if !stalls || !self.is_leader() || self.transfer.is_some() || planted!(HungDiskGoesOn) {
            return;
        }
        if let Some(to) = self.most_advanced() {
            self.yielded = self.now;
            self.begin_transfer(to, false);
            effects.push(Effect::DiskStalls { to });
        }
    }

    /// The other voter that is alive and has the most of the log; of two that have as much, the one with the lower number.
    pub(super) fn most_advanced(&self) -> Option<MemberId> {
        let prs = self.engine.0.raft.prs();
        let matched = |id: MemberId| prs.get(id.get()).map_or(0, |progress| progress.matched);
        let others = self.members.voters().filter(|id| *id != self.config.member && self.is_live(*id));
        others.map(|id| (matched(id), Reverse(id))).max().map(|(_, Reverse(id))| id)
    }

    /// This member takes part no more, and does not hear what came of the transfer.
    pub(super) fn transfer_lost(&mut self, effects: &mut Vec<Effect>) {
        if let Some(Handover { to, is_asked: true, .. }) = self.transfer.take() {
            effects.push(Effect::TransferFailed { to, why: TransferFailure::NotLeader });
        }
    }

    /// Ends the transfer, if it is done or has come to nothing.
    pub(super) fn settle_transfer(&mut self, effects: &mut Vec<Effect>) {
        let Some(Handover { to, term, until, is_asked }) = &self.transfer else { return };
        let (to, is_asked, is_late) = (*to, *is_asked, *until <= self.now);
        let raft = &mut self.engine.0.raft;
        let ended = if raft.term == *term && self.leads.is_some() {
            if is_late {
                raft.abort_leader_transfer();
            }
            // The engine gives up by itself, too.
            raft.lead_transferee.is_none().then_some(TransferFailure::Late).map(Err)
        } else if raft.leader_id == to.get() {
            Some(Ok(Epoch(raft.term)))
        } else if raft.leader_id != raft::INVALID_ID {
            Some(Err(TransferFailure::OtherLeads))
        } else {
            is_late.then_some(Err(TransferFailure::Late))
        };
        let Some(ended) = ended else { return };
        self.transfer = None;
        if is_asked {
            effects.push(match ended {
                Ok(term) => Effect::Transferred { to, term },
                Err(why) => Effect::TransferFailed { to, why },
            });
        }
    }
}
