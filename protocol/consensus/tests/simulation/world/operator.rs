//! Machines with empty disks, and the operator who makes them members, replaces and removes them.

use super::{Happening, World};
use crate::disk::Disk;
use bytes::Bytes;
use dsm_consensus::ids::MemberId;
use dsm_consensus::join::{JoinEffect, JoinRefusal, Newcomer};
use dsm_consensus::machine::CommittedEntry;
use dsm_consensus::members::{Members, MembersChange, NewMachine};
use dsm_consensus::wire::join::{EmptyMachine, JoinMessage};
use dsm_consensus::{Effect, Event};
use dsm_protocol::ids::{ClusterId, Seq};

/// After so long a leader knows that a member is dead, in microseconds.
const NOTICED_US: u64 = 400_000;

impl World {
    /// The machine whose process has this number in the cluster of another one.
    pub(super) fn machine_of(&self, other: usize, id: MemberId) -> Option<usize> {
        let cluster = self.nodes[other].cluster;
        self.nodes.iter().position(|node| node.id == Some(id) && node.cluster == cluster)
    }

    /// Whether it is of a cluster that is given up.
    pub(super) fn is_old(&self, member: usize) -> bool {
        let node = &self.nodes[member];
        node.id.is_some() && node.cluster != self.cluster
    }

    pub(super) fn is_down(&self, member: usize) -> bool {
        self.nodes[member].machine.is_none() && self.nodes[member].newcomer.is_none()
    }

    /// A process starts on an empty disk. Its settings name the machines that begin the cluster, or later all.
    pub(super) fn starts_empty(&mut self, member: usize, token: u64) {
        let named = if self.checks.members().0 == 0 { self.first } else { self.nodes.len() };
        let named = self.nodes[..named].iter().map(|node| node.address.clone()).collect();
        let node = &mut self.nodes[member];
        let own = EmptyMachine { token, address: node.address.clone(), named };
        node.newcomer = Some(Newcomer::new(own, ClusterId(member as u64 + 7)));
        let (life, us) = (node.life, self.random.between(0, 10_000));
        self.later(us, Happening::Asks { member, life });
    }

    pub(super) fn asks(&mut self, member: usize, life: u64) {
        let node = &mut self.nodes[member];
        let Some(newcomer) = node.newcomer.as_mut().filter(|_| node.life == life) else { return };
        let mut effects = Vec::new();
        newcomer.ask(&mut effects);
        self.later(30_000, Happening::Asks { member, life });
        self.join_effects(member, effects);
    }

    /// A message to or from a machine with an empty disk, or one that says who the members are.
    pub(super) fn hears_of_members(&mut self, from: usize, to: usize, life: u64, bytes: &Bytes) {
        let message = match JoinMessage::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.checks.fail(format!("{error}")),
        };
        if self.nodes[to].paused_until > self.now {
            return;
        }
        if let Some(newcomer) = &mut self.nodes[to].newcomer {
            let mut effects = Vec::new();
            newcomer.hear(message, &mut effects);
            return self.join_effects(to, effects);
        }
        let (Some(id), Some(machine)) = (self.nodes[to].id, &self.nodes[to].machine) else { return };
        let notice = machine.notice();
        match message {
            JoinMessage::Asks(other) => self.tells(to, &other.address, &notice),
            JoinMessage::Members { cluster, seq, members } => {
                let JoinMessage::Members { cluster: own, .. } = notice else { return };
                let Some(from) = self.nodes[from].id else { return };
                let is_gone = own == cluster && members.was_removed(id);
                self.event(to, life, Event::Notice { from, cluster, seq, members });
                if is_gone && self.nodes[to].id == Some(id) && !self.is_old(to) {
                    self.checks.hears_of_removal(id);
                }
            }
            JoinMessage::IsEmpty(_) => {}
        }
    }

    fn tells(&mut self, from: usize, address: &str, message: &JoinMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        if let Some(to) = self.nodes.iter().position(|node| node.address == *address) {
            self.send_bytes(from, to, bytes);
        }
    }

    fn join_effects(&mut self, member: usize, effects: Vec<JoinEffect>) {
        for effect in effects {
            match effect {
                JoinEffect::Tell { to, message } => self.tells(member, &to, &message),
                JoinEffect::Begin { cluster, members } => {
                    self.nodes[member].disk.begins_cluster(&members);
                    if self.random.next().is_multiple_of(6) {
                        // Its log is not whole, or its vote file is not there.
                        self.counts.drafts += 1;
                        let node = &mut self.nodes[member];
                        node.disk.log.truncate(self.random.next() as usize % 3);
                        node.newcomer = None;
                        node.life += 1;
                        return self.later(20_000, Happening::Starts { member });
                    }
                    self.cluster = Some(cluster);
                    let entries = self.nodes[member].disk.log.clone().into_iter();
                    let entries: Vec<CommittedEntry> =
                        entries.map(|entry| CommittedEntry { entry, tag: None }).collect();
                    self.checks.committed(MemberId::FIRST, &entries);
                    self.takes_number(member, cluster, MemberId::FIRST, Seq(2));
                }
                JoinEffect::Adopt { cluster, member: id } => {
                    self.takes_number(member, cluster, id, Seq(0));
                }
                JoinEffect::Refused(JoinRefusal::DiskLost { .. }) => self.counts.disks_refused += 1,
                JoinEffect::Refused(_) => {}
            }
        }
    }

    fn takes_number(&mut self, member: usize, cluster: ClusterId, id: MemberId, commit: Seq) {
        if self.cluster == Some(cluster) {
            self.checks.takes_number(id);
        }
        self.nodes[member].disk.takes_number(cluster, id, commit);
        self.nodes[member].newcomer = None;
        self.starts(member);
    }

    pub(super) fn member_effect(&mut self, member: usize, id: MemberId, effect: Effect) {
        match effect {
            Effect::Transferred { to, term } => self.checks.transferred(id, to, term),
            Effect::TransferFailed { .. } => self.checks.not_transferred(id),
            Effect::DiskStalls { .. } => self.counts.yielded += 1,
            Effect::ChangeBegun => {
                self.counts.changed += 1;
                self.fails_at_a_step(member);
            }
            Effect::MembersSettled(members) => self.is_known_for_good(id, &members),
            Effect::ChangeRefused(_) => self.counts.unchanged += 1,
            Effect::Members { version, members } => {
                self.counts.alone += u64::from(members.voters().count() == 1);
                self.checks.has_members(id, version, &members);
                self.fails_at_a_step(member);
            }
            Effect::SendNotice(to) => {
                let to = self.machine_of(member, to).map(|to| self.nodes[to].address.clone());
                let notice = self.nodes[member].machine.as_ref().map(|machine| machine.notice());
                if let (Some(to), Some(notice)) = (to, notice) {
                    self.tells(member, &to, &notice);
                }
            }
            Effect::Removed => self.leaves(member),
            _ => {}
        }
    }

    /// A leader says that a majority knows for good who the members are: its disks say so.
    fn is_known_for_good(&mut self, leader: MemberId, members: &Members) {
        self.counts.settled += 1;
        let knows = |id: MemberId| {
            let is_its = |node: &&super::Node| node.id == Some(id) && node.cluster == self.cluster;
            let disk = self.nodes.iter().find(is_its).map(|node| &node.disk);
            // A disk that was lost meanwhile may have known it.
            disk.is_none_or(|disk| disk.knows_for_good(members))
        };
        if !members.has_quorum(knows) {
            self.checks.fail(format!("{leader} says that a majority knows {members}, and none does"));
        }
    }

    /// The power may fail at each step of a change.
    fn fails_at_a_step(&mut self, member: usize) {
        if self.random.next().is_multiple_of(12) {
            let (life, us) = (self.nodes[member].life, self.random.between(1, 3000));
            self.later(us, Happening::PowerFails { member, life });
        }
    }

    /// A member that was removed ends, and its disk is emptied.
    pub(super) fn leaves(&mut self, member: usize) {
        self.counts.left += 1;
        self.ends(member, false);
        self.wipe(member);
    }

    pub(super) fn wipe(&mut self, member: usize) {
        let node = &mut self.nodes[member];
        let before = std::mem::replace(&mut node.disk, Disk::new());
        (node.id, node.cluster) = (None, None);
        self.counts.cuts += before.cuts;
        self.counts.torn += before.torn;
        self.counts.installed += before.installed;
    }

    /// A member whose disk is gone, or that nobody will become any more.
    pub(super) fn lost(&self) -> Option<MemberId> {
        let members = self.checks.members().1;
        let is_there = |id: MemberId, token: u64| {
            let is_its = |newcomer: &Newcomer| newcomer.own().token == token;
            let has_it = |node: &super::Node| node.id == Some(id) && node.cluster == self.cluster;
            self.nodes.iter().any(|node| has_it(node) || node.newcomer.as_ref().is_some_and(is_its))
        };
        let lost = members.iter().find(|(id, member)| !is_there(*id, member.token)).map(|(id, _)| id);
        lost
    }

    /// A disk loses everything. It is one at a time, of a member that the others can do without, and while no change is under way: the
    /// leader says that a majority knows of the last one.
    pub(super) fn loses_disk(&mut self, member: usize) {
        let (seq, members) = self.checks.members();
        let is_voter = self.nodes[member].id.is_some_and(|id| members.is_voter(id));
        let is_settled = !members.is_joint() && members.learner().is_none() && members.voters().count() >= 3;
        let is_settled = is_settled
            && self
                .nodes
                .iter()
                .filter_map(|node| node.machine.as_ref())
                .any(|machine| machine.is_settled() && *machine.members() == members);
        let is_changing = self
            .nodes
            .iter()
            .any(|node| node.cluster == self.cluster && node.disk.records_after(Seq(seq)) > 0);
        if is_voter && !self.is_old(member) && is_settled && !is_changing && self.lost().is_none() {
            self.counts.wiped += 1;
            self.lost_at = self.now;
            self.ends(member, true);
            self.wipe(member);
        }
    }

    pub(super) fn operator(&mut self) {
        if self.is_healed {
            return;
        }
        let us = self.random.between(40_000, 250_000);
        self.later(us, Happening::Operator);
        if self.now >= self.calm_until {
            self.operator_acts();
        }
    }

    /// The operator asks whoever seems to lead for a change.
    pub(super) fn operator_acts(&mut self) {
        let leads = |node: &super::Node| node.machine.as_ref().is_some_and(|machine| machine.term().1);
        let Some(leader) = self.nodes.iter().position(leads) else { return };
        let node = &self.nodes[leader];
        let Some(members) = node.machine.as_ref().map(|machine| machine.members().clone()) else { return };
        let life = node.life;
        if node.paused_until > self.now {
            return;
        }
        let is_known = self.lost_at.max(node.paused_until) + NOTICED_US <= self.now;
        let voters: Vec<MemberId> = members.voters().collect();
        let is_new = |machine: &NewMachine| members.iter().all(|(_, member)| member.token != machine.token);
        let newcomers = self.nodes.iter().filter_map(|node| node.newcomer.as_ref()).map(Newcomer::own);
        let spares: Vec<NewMachine> = newcomers
            .map(|own| NewMachine { address: own.address.clone(), token: own.token })
            .filter(is_new)
            .collect();
        let drawn = self.random.next() as usize;
        let voter = voters[(drawn >> 8) % voters.len()];
        let spare = spares.get((drawn >> 16) % spares.len().max(1)).cloned();
        let lost = self.lost();
        let change = match (members.learner(), lost, spare) {
            (Some((learner, _)), _, _) if lost == Some(learner) || drawn.is_multiple_of(8) => {
                MembersChange::Remove(learner)
            }
            (Some(_), _, _) => return,
            // It would cost the quorum. Before the leader can know that, the operator waits.
            (None, Some(lost), _) if drawn.is_multiple_of(3) && voter != lost => {
                if !is_known {
                    return;
                }
                MembersChange::Remove(voter)
            }
            (None, Some(lost), Some(spare)) if !drawn.is_multiple_of(4) => {
                MembersChange::Replace(lost, spare)
            }
            (None, Some(lost), _) => MembersChange::Remove(lost),
            (None, None, Some(spare)) if drawn.is_multiple_of(4) && voters.len() < 5 => {
                MembersChange::Add(spare)
            }
            (None, None, Some(spare)) if drawn % 4 > 1 => MembersChange::Replace(voter, spare),
            (None, None, Some(spare)) if voters.len() == 1 => MembersChange::Add(spare),
            (None, None, _) if voters.len() > 2 || (voters.len() == 2 && drawn.is_multiple_of(3)) => {
                MembersChange::Remove(voter)
            }
            (None, None, _) => return,
        };
        self.event(leader, life, Event::Change(change));
    }
}
