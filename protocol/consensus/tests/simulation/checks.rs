//! What must hold in every run. An observer sees all members' effects at once.

use dsm_consensus::ids::MemberId;
use dsm_consensus::machine::{CommittedEntry, ProposalTag, ReadTag};
use dsm_consensus::members::Members;
use dsm_consensus::vote::VoteRecord;
use dsm_consensus::LogEntry;
use dsm_protocol::ids::{Epoch, Version};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(crate) struct Checks {
    pub(crate) wrong: Vec<String>,
    committed: BTreeMap<u64, LogEntry>,
    /// The records of the members that are committed.
    records: BTreeMap<u64, Members>,
    numbers: BTreeSet<MemberId>,
    /// Members whose process has heard that it was removed.
    removed: BTreeSet<MemberId>,
    leaders: BTreeMap<Epoch, MemberId>,
    /// Proposals without a fate, and who has them.
    open: BTreeMap<ProposalTag, MemberId>,
    refused: BTreeSet<ProposalTag>,
    /// The highest index that was acknowledged to a client.
    pub(crate) acknowledged_through: u64,
    /// To whom each member gave its vote, in the last term in which it gave one.
    votes: BTreeMap<MemberId, (Epoch, MemberId)>,
    /// For each read, what was acknowledged before it began.
    floors: BTreeMap<ReadTag, u64>,
    /// Members that were asked to give the leadership away and have not answered.
    transferring: BTreeMap<MemberId, u64>,
    pub(crate) transferred: u64,
    pub(crate) not_transferred: u64,
    pub(crate) acknowledged: u64,
    pub(crate) deposed: u64,
    pub(crate) read: u64,
}

impl Checks {
    pub(crate) fn fail(&mut self, what: String) {
        self.wrong.push(what);
    }

    pub(crate) fn elected(&mut self, member: MemberId, term: Epoch) {
        let other = self.leaders.insert(term, member);
        if other.is_some_and(|other| other != member) {
            self.fail(format!("term {term} has two leaders: {member} and {other:?}"));
        }
    }

    /// A member gives its vote.
    pub(crate) fn voted(&mut self, member: MemberId, term: Epoch, candidate: MemberId) {
        let before = self.votes.insert(member, (term, candidate));
        if before.is_some_and(|(other, voted)| other > term || (other == term && voted != candidate)) {
            self.fail(format!("{member} votes for {candidate} in term {term}, and voted before: {before:?}"));
        }
    }

    /// A member starts with this vote: whatever it has told is there.
    pub(crate) fn starts(&mut self, member: MemberId, vote: &VoteRecord) {
        if let Some((term, candidate)) = self.votes.get(&member) {
            if vote.term < *term || (vote.term == *term && vote.vote != Some(*candidate)) {
                self.fail(format!(
                    "{member} has voted for {candidate} in term {term} and starts with {vote:?}"
                ));
            }
        }
    }

    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    pub(crate) fn refusals(&self) -> u64 {
        self.refused.len() as u64
    }

    pub(crate) fn proposed(&mut self, member: MemberId, tag: ProposalTag) {
        self.open.insert(tag, member);
    }

    /// A member's process is gone: its clients know nothing.
    pub(crate) fn gone(&mut self, member: MemberId) {
        self.open.retain(|_, at| *at != member);
        self.transferring.remove(&member);
        self.removed.remove(&member);
    }

    /// A machine with an empty disk takes a number.
    pub(crate) fn takes_number(&mut self, member: MemberId) {
        if !self.numbers.insert(member) {
            self.fail(format!("the number {member} is taken twice"));
        }
    }

    /// A new cluster goes on with the log of one machine, which was `before`. Whatever of it was committed stays.
    pub(crate) fn new_cluster(&mut self, before: &[LogEntry], after: &[LogEntry], member: MemberId) {
        let was_committed = |entry: &&LogEntry| self.committed.get(&entry.version.seq.0) == Some(*entry);
        let lost = before.iter().filter(was_committed).find(|entry| !after.contains(entry));
        if let Some(lost) = lost {
            self.fail(format!("the new cluster lacks {lost:?}"));
        }
        let last = before.last().map_or(0, |entry| entry.version.seq.0);
        self.committed = after.iter().map(|entry| (entry.version.seq.0, entry.clone())).collect();
        let record = |entry: &LogEntry| Some((entry.version.seq.0, Members::parse(&entry.data)?));
        self.records = after.iter().filter_map(record).collect();
        self.acknowledged_through = self.acknowledged_through.min(last);
        self.numbers = BTreeSet::from([member]);
        self.votes.clear();
        self.leaders.clear();
        self.removed.clear();
        self.open.clear();
        self.transferring.clear();
    }

    /// The last record of the members that is committed, and its place.
    pub(crate) fn members(&self) -> (u64, Members) {
        let last = self.records.last_key_value();
        last.map_or((0, Members::default()), |(seq, members)| (*seq, members.clone()))
    }

    /// A member says who the members are.
    pub(crate) fn has_members(&mut self, member: MemberId, version: Version, members: &Members) {
        let known = self.records.range(..=version.seq.0).next_back().map(|(_, members)| members);
        if known != Some(members) {
            self.fail(format!("{member} has {members} through {version}, committed is {known:?}"));
        }
        if members.was_removed(member) {
            self.hears_of_removal(member);
        }
    }

    pub(crate) fn hears_of_removal(&mut self, member: MemberId) {
        self.removed.insert(member);
    }

    /// A member asks for votes.
    pub(crate) fn campaigns(&mut self, member: MemberId) {
        if self.removed.contains(&member) {
            self.fail(format!("{member} campaigns, and knows that it was removed"));
        }
    }

    /// Of two records that follow each other, each majority of the one has a member of each majority of the other.
    fn follows(&mut self, seq: u64, next: Members) {
        let before = self.members().1;
        let ids: Vec<MemberId> = before.iter().chain(next.iter()).map(|(id, _)| id).collect();
        let ids: Vec<MemberId> = ids.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let of = |bits: usize| -> BTreeSet<MemberId> {
            let is_in = |at: usize| bits >> at & 1 == 1;
            ids.iter().enumerate().filter(|(at, _)| is_in(*at)).map(|(_, id)| *id).collect()
        };
        let decides = |members: &Members, bits: usize| {
            let live = of(bits);
            members.has_quorum(|id| live.contains(&id))
        };
        let all = 1_usize << ids.len();
        let is_split = |one: usize| {
            decides(&before, one) && (0..all).any(|other| one & other == 0 && decides(&next, other))
        };
        if !before.is_empty() && (0..all).any(is_split) {
            self.fail(format!("at {seq} two majorities have nobody in common: {before} and {next}"));
        }
        self.records.insert(seq, next);
    }

    pub(crate) fn transfers(&mut self, member: MemberId) {
        *self.transferring.entry(member).or_default() += 1;
    }

    fn transfer_ended(&mut self, member: MemberId) {
        let open = self.transferring.get_mut(&member).filter(|open| **open > 0);
        match open {
            Some(open) => *open -= 1,
            None => self.fail(format!("{member} answers a transfer that nobody has asked for")),
        }
    }

    /// A member says that it has given the leadership away.
    pub(crate) fn transferred(&mut self, member: MemberId, to: MemberId, term: Epoch) {
        self.transfer_ended(member);
        self.transferred += 1;
        if self.leaders.get(&term) != Some(&to) {
            self.fail(format!(
                "{member} has given the leadership to {to}, which does not lead in term {term}"
            ));
        }
    }

    pub(crate) fn not_transferred(&mut self, member: MemberId) {
        self.transfer_ended(member);
        self.not_transferred += 1;
    }

    fn fate(&mut self, member: MemberId, tag: ProposalTag) {
        if self.open.remove(&tag) != Some(member) {
            self.fail(format!("{tag:?} has two fates, or one at another member than {member}"));
        }
    }

    pub(crate) fn refused(&mut self, member: MemberId, tags: &[ProposalTag]) {
        for tag in tags {
            self.fate(member, *tag);
            self.refused.insert(*tag);
        }
    }

    pub(crate) fn deposed(&mut self, member: MemberId, tags: &[ProposalTag]) {
        for tag in tags {
            self.fate(member, *tag);
            self.deposed += 1;
        }
    }

    pub(crate) fn committed(&mut self, member: MemberId, entries: &[CommittedEntry]) {
        for CommittedEntry { entry, tag } in entries {
            let index = entry.version.seq.0;
            let is_first = !self.committed.contains_key(&index);
            if let Some(members) = Members::parse(&entry.data).filter(|_| is_first) {
                self.follows(index, members);
            }
            let known = self.committed.entry(index).or_insert_with(|| entry.clone());
            if known != entry {
                let what = format!("{index} is committed twice: {known:?} and {entry:?} at {member}");
                self.fail(what);
            }
            if let Some(tag) = tag {
                self.fate(member, *tag);
                if entry.data[..] != *tag.0.to_string().as_bytes() {
                    self.fail(format!("{tag:?} is committed as {entry:?}"));
                }
                self.acknowledged += 1;
                self.acknowledged_through = self.acknowledged_through.max(index);
            }
        }
    }

    /// A member's file has this base and these lines before the entries: all that is committed, in order.
    pub(crate) fn has_file(&mut self, member: MemberId, base: Version, lines: &[u8]) {
        if base.seq.0 == 0 && lines.is_empty() {
            return;
        }
        // The one that begins a cluster has its first two entries from the start.
        let mut expected = String::new();
        let mut last = Version::default();
        for entry in self.committed.range(..=base.seq.0).map(|(_, entry)| entry) {
            expected.push_str(&crate::disk::Disk::line(entry));
            last = entry.version;
        }
        if last != base || expected.as_bytes() != lines {
            self.fail(format!(
                "{member} has a file through {base} that is not what is committed through {last}"
            ));
        }
    }

    pub(crate) fn asked(&mut self, read: ReadTag) {
        self.floors.insert(read, self.acknowledged_through);
    }

    /// A read is answered from what is committed through `seen`.
    pub(crate) fn confirmed(&mut self, member: MemberId, read: ReadTag, seen: u64) {
        let floor = self.floors.remove(&read);
        self.read += 1;
        if floor.is_none_or(|floor| seen < floor) {
            self.fail(format!("{member} answers {read:?} from {seen}, {floor:?} was acknowledged before it"));
        }
    }

    /// After everything is healed.
    pub(crate) fn end(&mut self, members: &[(MemberId, u64)], acknowledged_before: u64) {
        if self.acknowledged <= acknowledged_before {
            self.fail("nothing is acknowledged any more".to_owned());
        }
        if self.members().1.is_joint() {
            self.fail("a change of the members is not done".to_owned());
        }
        for (member, committed) in members {
            if committed + 30 < self.acknowledged_through {
                self.fail(format!("{member} is at {committed} of {}", self.acknowledged_through));
            }
        }
        if let Some((member, _)) = self.transferring.iter().find(|(_, open)| **open > 0) {
            self.fail(format!("{member} has not answered a transfer"));
        }
        let data = |entry: &LogEntry| std::str::from_utf8(&entry.data).ok()?.parse().ok().map(ProposalTag);
        let wrong: Vec<ProposalTag> =
            self.committed.values().filter_map(data).filter(|tag| self.refused.contains(tag)).collect();
        if !wrong.is_empty() {
            self.fail(format!("refused and committed: {wrong:?}"));
        }
    }
}
