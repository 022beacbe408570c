//! Who keeps the log: the record MEMBERS, and which record may follow which.
//!
//! Owns the text of the record and the rules for its changes. Never knows who is alive, but for what is passed in.
//!
//! ```text
//! MEMBERS next=5,prefer=1 1=voter@10.0.0.1:12345~7f3a9c0e51d24b88,2=voter@…~…,4=learner/2@…~…
//! ```
//!
//! `next` is the lowest number that no member has had: numbers are never given again. `prefer` is the member that is to lead if it
//! can; 0 for none. Then each member: number, role, address, and the token of the process that may take the number on an empty
//! disk. The role is `voter`; `learner`, which is to become one; `learner/2`, which is to take the place of member 2; while one takes
//! another's place, `joining` and `leaving`: then a majority of the voters with the one, and one with the other, must agree.

use crate::ids::MemberId;
use crate::mutant::planted;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The first word of the record, and the space after it.
const WORD: &str = "MEMBERS ";

/// The most members of one record, learners included.
pub const MEMBERS_MAX: usize = 9;

/// The longest address, in bytes.
const ADDRESS_BYTES_MAX: usize = 256;

/// What a member is to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// It has a vote.
    Voter,
    /// It gets the log, and has no vote yet.
    Learner {
        /// Whose place it is to take; `None` when it is one more.
        replaces: Option<MemberId>,
    },
    /// It has a vote in the new set of voters alone.
    Joining,
    /// It has a vote in the old set of voters alone, and is no member afterwards.
    Leaving,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberEntry {
    /// What it is to the log.
    pub role: MemberRole,
    /// Where it is reached.
    pub address: String,
    /// Drawn at random by the process that may take the number on an empty disk.
    pub token: u64,
}

/// A machine that is to become a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMachine {
    /// Where it is reached.
    pub address: String,
    /// Drawn at random by its process, which has an empty disk.
    pub token: u64,
}

/// A change of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembersChange {
    /// One voter more.
    Add(NewMachine),
    /// One member less. Of a learner: it is not to become a voter.
    Remove(MemberId),
    /// A machine takes the place of a voter.
    Replace(MemberId, NewMachine),
}

/// Why the members are not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeRefusal {
    /// This member does not lead, or does not yet.
    NotLeader,
    /// Another change, or a transfer of the leadership, is under way.
    Underway,
    /// There is no such member, or it has no vote.
    Unknown,
    /// It leads: it has to give the leadership away first.
    Leads,
    /// Another member has this address or token, or the address has no form.
    Address,
    /// There are as many members as there may be.
    TooMany,
    /// Of those that would have a vote, no majority is alive.
    Quorum,
    /// Too many bytes wait for a majority.
    Full,
}

/// All members. The default is of a machine that has not heard of any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    next: u64,
    prefer: Option<MemberId>,
    members: BTreeMap<MemberId, MemberEntry>,
}

impl Default for Members {
    fn default() -> Self {
        Members { next: 1, prefer: None, members: BTreeMap::new() }
    }
}

impl Members {
    /// The members of a new cluster: all have a vote, and the first one is preferred.
    ///
    /// # Errors
    /// [`ChangeRefusal`]: an address has no form, or is there twice, or there are too many.
    pub fn first(machines: &[NewMachine]) -> Result<Self, ChangeRefusal> {
        let mut members = Members { prefer: Some(MemberId::FIRST), ..Members::default() };
        for machine in machines {
            members.give_number(machine, MemberRole::Voter, None)?;
        }
        Ok(members)
    }

    /// This machine alone, under a number that no member has had.
    pub(crate) fn replaced_by(&self, machine: &NewMachine) -> Result<Self, ChangeRefusal> {
        let mut members =
            Members { next: self.next, prefer: MemberId::new(self.next), members: BTreeMap::new() };
        members.give_number(machine, MemberRole::Voter, None)?;
        Ok(members)
    }

    /// Whether these are the words of such a record.
    pub fn is_record(data: &[u8]) -> bool {
        data.starts_with(WORD.as_bytes())
    }

    /// Reads the record; `None` when it is none.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(data).ok()?;
        let (head, list) = text.strip_prefix(WORD)?.split_once(' ')?;
        let (next, prefer) = head.strip_prefix("next=")?.split_once(",prefer=")?;
        let number = |text: &str| text.parse().ok().and_then(MemberId::new);
        let prefer = if prefer == "0" { None } else { Some(number(prefer)?) };
        let mut members = Members { next: next.parse().ok()?, prefer, members: BTreeMap::new() };
        for text in list.split(',') {
            let (id, member) = text.split_once('=')?;
            let (role, rest) = member.split_once('@')?;
            let (address, token) = rest.split_once('~')?;
            let role = match role.split_once('/') {
                Some(("learner", replaced)) => MemberRole::Learner { replaces: Some(number(replaced)?) },
                Some(_) => return None,
                None => match role {
                    "voter" => MemberRole::Voter,
                    "learner" => MemberRole::Learner { replaces: None },
                    "joining" => MemberRole::Joining,
                    "leaving" => MemberRole::Leaving,
                    _ => return None,
                },
            };
            let token = u64::from_str_radix(token, 16).ok()?;
            members.members.insert(number(id)?, MemberEntry { role, address: address.to_owned(), token });
        }
        // Written again it must be the same text.
        (members.makes_sense() && members.to_string() == text).then_some(members)
    }

    fn makes_sense(&self) -> bool {
        let is_known = |id: &MemberId| self.members.contains_key(id);
        let joining = self.with_role(MemberRole::Joining).count();
        let leaving = self.with_role(MemberRole::Leaving).count();
        let learner = self.learner();
        (1..=MEMBERS_MAX).contains(&self.members.len())
            && self.members.keys().all(|id| id.get() < self.next)
            && self.members.values().all(|member| is_address(&member.address))
            && self.members.values().any(|member| member.role == MemberRole::Voter)
            && joining <= 1
            && joining == leaving
            && self.learners().count() + joining <= 1
            && learner.is_none_or(|(_, replaces)| replaces.is_none_or(|id| is_known(&id)))
    }

    /// Each member by its number.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &MemberEntry)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    /// The member with this number.
    pub fn get(&self, id: MemberId) -> Option<&MemberEntry> {
        self.members.get(&id)
    }

    /// Whether nobody is a member, as far as is known.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member that is to lead if it can.
    pub fn preferred(&self) -> Option<MemberId> {
        self.prefer
    }

    /// Whether the number was a member's and is not any more.
    pub fn was_removed(&self, id: MemberId) -> bool {
        id.get() < self.next && !self.members.contains_key(&id)
    }

    /// Those that have a vote once no other change is under way.
    pub fn voters(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.iter()
            .filter(|(_, member)| matches!(member.role, MemberRole::Voter | MemberRole::Joining))
            .map(|(id, _)| id)
    }

    /// Whether this member has a vote that it keeps.
    pub fn is_voter(&self, id: MemberId) -> bool {
        self.voters().any(|voter| voter == id)
    }

    /// Whether two sets of voters must agree.
    pub fn is_joint(&self) -> bool {
        self.with_role(MemberRole::Leaving).next().is_some()
    }

    fn with_role(&self, role: MemberRole) -> impl Iterator<Item = MemberId> + '_ {
        self.iter().filter(move |(_, member)| member.role == role).map(|(id, _)| id)
    }

    fn learners(&self) -> impl Iterator<Item = (MemberId, Option<MemberId>)> + '_ {
        self.iter().filter_map(|(id, member)| match member.role {
            MemberRole::Learner { replaces } => Some((id, replaces)),
            MemberRole::Voter | MemberRole::Joining | MemberRole::Leaving => None,
        })
    }

    /// Who is to become a voter, and whose place it is to take.
    pub fn learner(&self) -> Option<(MemberId, Option<MemberId>)> {
        self.learners().next()
    }

    /// The voters of the set that is there before a change is through.
    fn old_voters(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.iter()
            .filter(|(_, member)| matches!(member.role, MemberRole::Voter | MemberRole::Leaving))
            .map(|(id, _)| id)
    }

    /// Whether those that are alive can decide.
    pub fn has_quorum(&self, is_live: impl Fn(MemberId) -> bool) -> bool {
        let majority =
            |voters: Vec<MemberId>| 2 * voters.iter().filter(|voter| is_live(**voter)).count() > voters.len();
        majority(self.voters().collect()) && majority(self.old_voters().collect())
    }

    /// The members after the first step of a change.
    ///
    /// # Errors
    /// [`ChangeRefusal`]: the change cannot be, whoever is alive.
    pub fn begin(&self, change: &MembersChange) -> Result<Self, ChangeRefusal> {
        let mut members = self.clone();
        let learner = self.learner().map(|(id, _)| id);
        match change {
            MembersChange::Remove(id) if learner == Some(*id) => {
                members.members.remove(id);
            }
            _ if learner.is_some() || self.is_joint() => return Err(ChangeRefusal::Underway),
            MembersChange::Add(machine) => {
                members.give_number(machine, MemberRole::Learner { replaces: None }, None)?
            }
            MembersChange::Remove(id) => {
                self.get(*id).ok_or(ChangeRefusal::Unknown)?;
                members.members.remove(id);
                members.prefer.take_if(|preferred| preferred == id);
            }
            MembersChange::Replace(id, machine) => {
                self.get(*id).ok_or(ChangeRefusal::Unknown)?;
                let role = MemberRole::Learner { replaces: Some(*id) };
                members.give_number(machine, role, Some(*id))?;
            }
        }
        if members.voters().next().is_none() {
            return Err(ChangeRefusal::Quorum);
        }
        Ok(members)
    }

    fn give_number(
        &mut self,
        machine: &NewMachine,
        role: MemberRole,
        replaces: Option<MemberId>,
    ) -> Result<(), ChangeRefusal> {
        let NewMachine { address, token } = machine;
        let is_same = |(id, member): (&MemberId, &MemberEntry)| {
            member.token == *token || (member.address == *address && Some(*id) != replaces)
        };
        if !is_address(address) || self.members.iter().any(is_same) {
            return Err(ChangeRefusal::Address);
        }
        let id = MemberId::new(self.next).ok_or(ChangeRefusal::TooMany)?;
        if self.members.len() >= MEMBERS_MAX {
            return Err(ChangeRefusal::TooMany);
        }
        self.next += 1;
        self.members.insert(id, MemberEntry { role, address: address.clone(), token: *token });
        Ok(())
    }

    /// The members once the learner has a vote, or both have one of which one takes the other's place.
    pub(crate) fn promoted(&self) -> Option<Self> {
        let (learner, replaces) = self.learner()?;
        let mut members = self.clone();
        let replaced = replaces.and_then(|id| members.members.get_mut(&id));
        let is_joint = replaced.is_some();
        if let Some(member) = replaced {
            member.role = MemberRole::Leaving;
        }
        if let Some(member) = members.members.get_mut(&learner) {
            member.role = if is_joint { MemberRole::Joining } else { MemberRole::Voter };
        }
        if planted!(JointSkipped) && is_joint {
            return members.settled();
        }
        Some(members)
    }

    /// The members once the new set of voters decides alone.
    pub(crate) fn settled(&self) -> Option<Self> {
        let leaving = self.with_role(MemberRole::Leaving).next()?;
        let joining = self.with_role(MemberRole::Joining).next()?;
        let mut members = self.clone();
        members.members.remove(&leaving);
        members.members.get_mut(&joining)?.role = MemberRole::Voter;
        if members.prefer == Some(leaving) {
            members.prefer = Some(joining);
        }
        Some(members)
    }

    /// The members, as the engine has them.
    pub(crate) fn conf_state(&self) -> ConfState {
        let numbers =
            |ids: &mut dyn Iterator<Item = MemberId>| -> Vec<u64> { ids.map(MemberId::get).collect() };
        let mut state = ConfState { voters: numbers(&mut self.voters()), ..ConfState::default() };
        if self.is_joint() {
            state.voters_outgoing = numbers(&mut self.old_voters());
        }
        state.learners = numbers(&mut self.learners().map(|(id, _)| id));
        state
    }

    /// What brings the engine from what it has to these members. One step, unless it has missed some. It keeps `own` even where
    /// the members do not have it yet.
    pub(crate) fn steps_from(&self, has: &ConfState, own: MemberId) -> Vec<ConfChangeV2> {
        let wants = self.conf_state();
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        if (set(&has.voters), set(&has.voters_outgoing)) == (set(&wants.voters), set(&wants.voters_outgoing))
            && set(&has.learners) == set(&wants.learners)
        {
            return Vec::new();
        }
        let mut steps = Vec::new();
        if !has.voters_outgoing.is_empty() {
            steps.push(ConfChangeV2::default());
        }
        let single = |kind, id: u64| {
            let mut change = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
            change.set_change_type(kind);
            change
        };
        let mut change = |kind, id| {
            steps.push(ConfChangeV2 { changes: vec![single(kind, id)].into(), ..ConfChangeV2::default() });
        };
        let voters = set(&has.voters);
        let first = if self.is_joint() { set(&wants.voters_outgoing) } else { set(&wants.voters) };
        first.difference(&voters).for_each(|id| change(ConfChangeType::AddNode, *id));
        voters.difference(&first).for_each(|id| change(ConfChangeType::RemoveNode, *id));
        let (learners, wanted) = (set(&has.learners), set(&wants.learners));
        wanted.difference(&learners).for_each(|id| change(ConfChangeType::AddLearnerNode, *id));
        let stays = |id: &u64| {
            let is_early = *id == own.get() && own.get() >= self.next;
            wanted.contains(id) || first.contains(id) || wants.voters.contains(id) || is_early
        };
        learners.iter().filter(|id| !stays(id)).for_each(|id| change(ConfChangeType::RemoveNode, *id));
        if self.is_joint() {
            let joining =
                self.with_role(MemberRole::Joining).map(|id| single(ConfChangeType::AddNode, id.get()));
            let leaving =
                self.with_role(MemberRole::Leaving).map(|id| single(ConfChangeType::RemoveNode, id.get()));
            let changes: Vec<ConfChangeSingle> = joining.chain(leaving).collect();
            let mut step = ConfChangeV2 { changes: changes.into(), ..ConfChangeV2::default() };
            step.set_transition(ConfChangeTransition::Explicit);
            steps.push(step);
        }
        steps
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{WORD}next={},prefer={}", self.next, self.prefer.map_or(0, MemberId::get))?;
        for (at, (id, member)) in self.iter().enumerate() {
            write!(f, "{}{id}=", if at == 0 { ' ' } else { ',' })?;
            match member.role {
                MemberRole::Voter => f.write_str("voter")?,
                MemberRole::Learner { replaces: None } => f.write_str("learner")?,
                MemberRole::Learner { replaces: Some(replaced) } => write!(f, "learner/{replaced}")?,
                MemberRole::Joining => f.write_str("joining")?,
                MemberRole::Leaving => f.write_str("leaving")?,
            }
            write!(f, "@{}~{:016x}", member.address, member.token)?;
        }
        Ok(())
    }
}

/// Whether an address can stand in the record: what divides its parts is in none.
fn is_address(address: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b",=@~%;".contains(&byte);
    (1..=ADDRESS_BYTES_MAX).contains(&address.len()) && address.bytes().all(is_plain)
}

#[cfg(test)]
mod tests;
