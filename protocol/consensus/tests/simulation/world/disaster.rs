//! Clusters that begin with a log that is there: that of one file, and what one machine has when all others are gone for good.

use super::{Happening, World};
use dsm_consensus::alone::{force_new_cluster, from_one_file};
use dsm_consensus::ids::MemberId;
use dsm_consensus::machine::CommittedEntry;
use dsm_consensus::members::{Members, NewMachine};
use dsm_consensus::vote::VoteRecord;
use dsm_consensus::LogEntry;
use dsm_protocol::ids::{ClusterId, Seq, Version};

impl World {
    /// The first machine has a log of the shared-file mode.
    pub(super) fn has_one_file(&mut self) {
        let cluster = ClusterId(self.random.next());
        let (term, lines) = (self.random.between(0, 5), self.random.between(1, 60));
        let entry = |seq| LogEntry {
            version: Version::new(term.max(1), seq),
            data: format!("old {seq}").into_bytes().into(),
        };
        let mut log: Vec<LogEntry> = (1..=lines).map(entry).collect();
        let machine = NewMachine { address: self.nodes[0].address.clone(), token: self.random.next() };
        let alone =
            from_one_file(cluster, Version::new(term, lines), &machine).expect("the address has a form");
        log.push(alone.record.clone());
        self.nodes[0].disk.has_file(&log);
        self.nodes[0].disk.vote_file = alone.vote.new_file();
        let told: Vec<CommittedEntry> =
            log.into_iter().map(|entry| CommittedEntry { entry, tag: None }).collect();
        self.checks.committed(MemberId::FIRST, &told);
        self.checks.takes_number(alone.vote.member);
        self.cluster = Some(cluster);
        self.counts.one_file += 1;
    }

    /// All members but one are gone for good, and the operator makes that one a new cluster.
    pub(super) fn disaster(&mut self) {
        if self.now < self.calm_until {
            return self.later(self.calm_until - self.now, Happening::Disaster);
        }
        let is_member = |member: &usize| {
            let node = &self.nodes[*member];
            node.id.is_some_and(|id| node.disk.members().get(id).is_some())
        };
        let members: Vec<usize> = (0..self.nodes.len()).filter(is_member).collect();
        if members.len() < 2 {
            return;
        }
        let survivor = members[self.random.next() as usize % members.len()];
        for member in 0..self.nodes.len() {
            if self.nodes[member].id.is_some() {
                self.ends(member, true);
                self.nodes[member].is_gone = member != survivor;
            }
        }
        self.forces(survivor);
        let stays = members.into_iter().find(|member| *member != survivor && self.decides_nothing(*member));
        for member in (0..self.nodes.len()).filter(|member| self.nodes[*member].is_gone).collect::<Vec<_>>() {
            let us = self.random.between(10_000, 400_000);
            self.later(us, Happening::Returns { member, is_wiped: stays != Some(member) });
        }
    }

    /// Whether the others of the old cluster would have to be there for anything to be decided, whatever it knows of.
    fn decides_nothing(&self, member: usize) -> bool {
        let node = &self.nodes[member];
        let commit = VoteRecord::of_file(&node.disk.vote_file).map_or(Seq(0), |vote| vote.commit);
        let (mut known, rest): (Vec<_>, Vec<_>) =
            node.disk.records().into_iter().partition(|(seq, _)| *seq <= commit.max(node.disk.base.seq));
        let alone = |(_, members): &(Seq, Members)| members.has_quorum(|id| Some(id) == node.id);
        known.pop().into_iter().chain(rest).all(|record| !alone(&record))
    }

    fn forces(&mut self, member: usize) {
        let cluster = ClusterId(self.random.next());
        let token = self.random.next();
        let is_cut_short = self.random.next().is_multiple_of(3);
        for is_done in [!is_cut_short, true] {
            let disk = &mut self.nodes[member].disk;
            let before = disk.entries();
            let vote = VoteRecord::of_file(&disk.vote_file).expect("one slot is whole");
            let last = before.last().map_or(Version::default(), |entry| entry.version);
            let machine = NewMachine { address: self.nodes[member].address.clone(), token };
            let disk = &mut self.nodes[member].disk;
            let alone = force_new_cluster(cluster, &vote, last, &disk.members(), &machine)
                .expect("the address has a form");
            disk.ends_with(&alone.record);
            if !is_done {
                // A crash: nobody starts with that.
                if self.start_of(member).is_ok() {
                    self.checks.fail("a new cluster that is half made is started".to_owned());
                }
                continue;
            }
            disk.vote_file = alone.vote.new_file();
            let after = disk.entries();
            self.cluster = Some(cluster);
            self.checks.new_cluster(&before, &after, alone.vote.member);
            self.counts.forced += 1;
            return;
        }
    }

    /// A machine of the old cluster is there again, with what it had, or with an empty disk.
    pub(super) fn returns(&mut self, member: usize, is_wiped: bool) {
        if is_wiped {
            self.wipe(member);
        }
        self.counts.returned += u64::from(!is_wiped);
        self.nodes[member].is_gone = false;
        self.starts(member);
    }
}
