//! The members change: a machine becomes one, one leaves, a machine takes another's place.
//!
//! Owns when a record of the members is proposed, and what follows when one is committed. The record itself says how far a change
//! is, so whoever leads goes on with it. Never proposes one before the one before it is told as committed, nor one whose voters
//! could not decide.

use super::{Consensus, Effect};
use crate::ids::MemberId;
use crate::members::{ChangeRefusal, Members, MembersChange};
use crate::mutant::planted;
use dsm_protocol::ids::{ClusterId, Seq, Version};
use raft::eraftpb::{EntryType, Message, MessageType};
use raft::{ProgressState, StateRole};
use std::collections::BTreeSet;

/// What a member has heard of its own removal.
#[derive(Debug)]
pub(super) struct Removal {
    /// The latest members that it has heard of, and through where the log was known to be committed by that.
    members: Members,
    seq: Seq,
    /// Who of the others knows it for good.
    known_to: BTreeSet<MemberId>,
}

impl Consensus {
    pub(super) fn change(&mut self, change: &MembersChange, effects: &mut Vec<Effect>) {
        let own = self.config.member;
        let is_busy = self.transfer.is_some() || self.engine.0.raft.has_pending_conf() || !self.is_settled();
        let next = if !self.reigns {
            Err(ChangeRefusal::NotLeader)
        } else if is_busy {
            Err(ChangeRefusal::Underway)
        } else if matches!(change, MembersChange::Remove(id) | MembersChange::Replace(id, _) if *id == own) {
            Err(ChangeRefusal::Leads)
        } else {
            self.members.begin(change)
        };
        let refusal = match next {
            Ok(next) if !self.can_decide(&next) => Some(ChangeRefusal::Quorum),
            Ok(next) => (!self.propose_members(&next)).then_some(ChangeRefusal::Full),
            Err(refusal) => Some(refusal),
        };
        effects.push(refusal.map_or(Effect::ChangeBegun, Effect::ChangeRefused));
    }

    /// Whether this member leads, and knows of a majority of the members that their disks know who the members are.
    pub fn is_settled(&self) -> bool {
        let since = self.engine.0.store().members_since(self.handed_out);
        let prs = self.engine.0.raft.prs();
        let knows = |id: MemberId| match prs.get(id.get()) {
            _ if id == self.config.member => self.durable_commit >= since,
            progress if planted!(SettledEarly) => progress.is_some_and(|progress| progress.matched >= since),
            progress => progress.is_some_and(|progress| progress.committed_index >= since),
        };
        self.reigns && self.members.has_quorum(knows)
    }

    pub(super) fn say_who_is_settled(&mut self, effects: &mut Vec<Effect>) {
        let since = self.engine.0.store().members_since(self.handed_out);
        if self.settled != since && self.is_settled() {
            self.settled = since;
            effects.push(Effect::MembersSettled(self.members.clone()));
        }
    }

    /// Whether enough of those are alive that have a vote then.
    fn can_decide(&self, members: &Members) -> bool {
        planted!(QuorumNotAsked) || members.has_quorum(|id| self.is_live(id))
    }

    /// Whether a member was heard of late, or is this one.
    pub(super) fn is_live(&self, id: MemberId) -> bool {
        let span = self.config.election_ticks as u64;
        let heard = self.heard.get(&id).is_some_and(|tick| tick + span > self.ticks);
        heard || id == self.config.member
    }

    /// Proposes a record. Only one is under way at a time: the engine would put nothing in place of another.
    fn propose_members(&mut self, members: &Members) -> bool {
        assert!(!self.engine.0.raft.has_pending_conf(), "one change at a time");
        let has = self.engine.0.raft.prs().conf().to_conf_state();
        let Some(step) = members.steps_from(&has, self.config.member).into_iter().next() else {
            return false;
        };
        // The engine takes its own form; what it has in the log are the words.
        self.engine.0.propose_conf_change(members.to_string().into_bytes(), step).is_ok()
    }

    /// A leader goes on with the change that the record says is under way.
    pub(super) fn changes_go_on(&mut self) {
        let is_busy = self.transfer.is_some() || self.engine.0.raft.has_pending_conf() || !self.is_settled();
        if !self.reigns || is_busy {
            return;
        }
        let next = if self.members.is_joint() {
            if !self.members.is_voter(self.config.member) {
                // It is about to be a member no more: another one is to lead then.
                if let Some(to) = self.most_advanced() {
                    self.begin_transfer(to, false);
                }
                return;
            }
            self.members.settled()
        } else {
            let learner = self.members.learner().map(|(learner, _)| learner);
            let is_due = learner.is_some_and(|learner| self.is_caught_up(learner));
            // Whoever leads gives the leadership away before another one takes its place.
            let replaced = self.members.learner().and_then(|(_, replaces)| replaces);
            if is_due && replaced == Some(self.config.member) {
                if let Some(to) = self.most_advanced() {
                    self.begin_transfer(to, false);
                }
                return;
            }
            is_due.then(|| self.members.promoted()).flatten()
        };
        if let Some(next) = next.filter(|next| self.can_decide(next)) {
            // If there is no room for it, the next tick tries again.
            self.propose_members(&next);
        }
    }

    /// Whether a learner has nearly all of the log.
    fn is_caught_up(&self, learner: MemberId) -> bool {
        let lag = self.config.learner_lag_max;
        let progress = self.engine.0.raft.prs().get(learner.get());
        let has = progress.filter(|progress| progress.state == ProgressState::Replicate);
        self.is_live(learner) && has.is_some_and(|progress| progress.matched + lag >= self.handed_out)
    }

    /// A record of the members is committed: from now on they are these.
    pub(super) fn take_members(&mut self, version: Version, members: Members, effects: &mut Vec<Effect>) {
        let own = self.config.member;
        let has = self.engine.0.raft.prs().conf().to_conf_state();
        for step in members.steps_from(&has, own) {
            self.engine.0.apply_conf_change(&step).expect("the engine comes from any members to any others");
        }
        self.members = members.clone();
        effects.push(Effect::Members { version, members });
        self.step_down_if_removed();
    }

    /// A stream has taken the place of the log: the members are what it says.
    pub(super) fn restored(&mut self, base: Version, effects: &mut Vec<Effect>) {
        effects.push(Effect::Restored(base));
        if !planted!(MembersNotRestored) {
            self.members = self.engine.0.store().base_members().clone();
        }
        effects.push(Effect::Members { version: base, members: self.members.clone() });
        self.step_down_if_removed();
    }

    fn step_down_if_removed(&mut self) {
        if self.members.was_removed(self.config.member) {
            let members = self.members.clone();
            self.hear_of_removal(Seq(self.handed_out), &members);
            self.is_removed |= planted!(RemovedLeavesAtOnce);
        }
    }

    /// Who was removed leads and campaigns no more, but votes on: as long as a majority of the others does not know for good that it
    /// was removed, they may need its vote.
    fn hear_of_removal(&mut self, seq: Seq, members: &Members) -> &mut Removal {
        let raft = &mut self.engine.0.raft;
        if raft.state != StateRole::Follower {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
        }
        let first = || Removal { members: members.clone(), seq, known_to: BTreeSet::new() };
        let removal = self.removal.get_or_insert_with(first);
        if removal.seq < seq {
            (removal.members, removal.seq) = (members.clone(), seq);
        }
        removal
    }

    /// Who was removed does not campaign when nobody leads, whether the engine knows of the removal or not. It does not hold on to the
    /// leader that it had, either, but votes for another one.
    pub(super) fn is_idle_as_removed(&mut self) -> bool {
        let raft = &mut self.engine.0.raft;
        let is_due = self.removal.is_some() && raft.election_elapsed + 1 >= self.config.election_ticks;
        if is_due {
            raft.leader_id = raft::INVALID_ID;
        }
        is_due
    }

    /// A member that was removed asks the others now and then whether they know it.
    pub(super) fn ask_as_removed(&self, effects: &mut Vec<Effect>) {
        let is_due = self.ticks.is_multiple_of(self.config.election_ticks as u64);
        let removal = self.removal.iter().filter(|_| is_due);
        effects.extend(removal.flat_map(|removal| removal.members.voters()).map(Effect::SendNotice));
    }

    /// A member says who the members are, by what is committed. One that was removed is told so by who knows it for good.
    pub(super) fn hear_notice(
        &mut self,
        (from, cluster): (MemberId, ClusterId),
        seq: Seq,
        members: &Members,
        effects: &mut Vec<Effect>,
    ) {
        if cluster != self.cluster || planted!(RemovedGoesOn) {
            return;
        }
        if members.was_removed(self.config.member) {
            let removal = self.hear_of_removal(seq, members);
            removal.known_to.insert(from);
            self.is_removed = removal.members.has_quorum(|id| removal.known_to.contains(&id));
        } else {
            self.is_heard(from, effects);
        }
    }

    /// This member was removed: whatever waits for it is ended, and nothing more is said.
    pub(super) fn leave(&mut self, effects: &mut Vec<Effect>) {
        if self.leads.take().is_some() {
            effects.push(Effect::Deposed { tags: self.proposed.drain(..).map(|(_, tag)| tag).collect() });
        }
        effects.extend(std::mem::take(&mut self.reads).into_values().map(Effect::ReadRefused));
        effects.extend(self.incoming.take().map(|stream| Effect::DropStream(stream.number)));
        self.transfer_lost(effects);
        effects.push(Effect::Removed);
    }

    /// Whether what this member says is heard. One that was removed is told so: it may not know.
    pub(super) fn is_heard(&self, from: MemberId, effects: &mut Vec<Effect>) -> bool {
        if self.members.was_removed(from) {
            // Not before a start would know it, too.
            if self.engine.0.store().members_since(self.handed_out) <= self.durable_commit {
                effects.push(Effect::SendNotice(from));
            }
            return false;
        }
        from != self.config.member
    }

    /// Cuts an append before the second change of the members of which none is told as committed: it comes again. So whatever
    /// log has a change, its vote file knows that the one before it is committed.
    pub(super) fn cut_changes(&self, message: &mut Message) {
        if message.msg_type != MessageType::MsgAppend || planted!(ChangeNotNoted) {
            return;
        }
        let mut has_one = self.engine.0.store().changes_members(self.handed_out, message.index);
        let is_second = |entry: &raft::eraftpb::Entry| {
            let is_change = entry.entry_type == EntryType::EntryConfChangeV2 && entry.index > self.handed_out;
            is_change && std::mem::replace(&mut has_one, true)
        };
        if let Some(at) = message.entries.iter().position(is_second) {
            message.entries.truncate(at);
        }
    }
}

#[cfg(test)]
mod tests;
