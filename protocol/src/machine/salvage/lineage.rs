//! Which copies of slaves a log lacks, and whether such a copy is newer than what the log has of its key.
//!
//! Owns the reigns of the log, those that copies and slaves name beside them (*branches*), and what proves that two of them
//! belong to one history. An epoch and a seq order two versions only within one history: a log that was restored from a copy
//! and has served since has another one than its slaves. What is not proven counts as unknown. See `docs/ARCHITECTURE.md`,
//! *Records that only slaves have*.

use super::super::master::ReignRecord;
use crate::ids::{Epoch, Reign, ReignId, Seq, SlaveId};
use crate::message::Seen;
use std::collections::BTreeMap;

/// The most reigns that a log may lack: the sets of them are words.
pub const BRANCHES_MAX: usize = 64;

/// The number of a reign that the log lacks, whole or from the end on that it has in the log.
pub(super) type BranchId = u8;

/// Where a version is from, as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyOrigin {
    /// The log has, or had, that record.
    Log,
    /// A reign of an earlier repair, which nobody has served.
    Repair,
    /// A reign whose loss was accepted.
    GivenUp,
    /// The log lacks it.
    Beyond(BranchId),
    /// The log lacks it, and there are too many such reigns.
    TooMany,
}

/// A reign that the log lacks.
#[derive(Clone, Debug)]
struct Branch {
    reign: Reign,
    /// The lowest seq that is known of it.
    lowest: Seq,
    /// The place of the reign in the log, if that has its beginning.
    tail_of: Option<usize>,
    /// The branches that are certainly before it in its history.
    ancestors: u64,
    /// The log is certainly part of its history through this seq.
    common: Seq,
}

/// What one slave has had a part in: all of it is one history.
#[derive(Clone, Copy, Debug, Default)]
struct Witness {
    branches: u64,
    /// The highest seq of the log of which it has a copy, or has seen the record.
    common: Seq,
}

/// The reigns of a log, and of what slaves hold beside it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lineage {
    /// In the order of the log.
    reigns: Vec<ReignRecord>,
    given_up: Vec<Reign>,
    /// The reigns of repairs at the end of the log that came to nothing.
    repairs: Vec<Reign>,
    /// The last record before them.
    end: Seq,
    branches: Vec<Branch>,
    witnesses: BTreeMap<SlaveId, Witness>,
}

impl Lineage {
    /// Adds an EPOCH record. `is_repair`: it is one of a repair that may have come to nothing.
    pub(super) fn begin(
        &mut self,
        record: ReignRecord,
        is_repair: bool,
        given_up: impl Iterator<Item = Reign>,
    ) {
        self.given_up.extend(given_up);
        if is_repair {
            self.repairs.push(record.reign);
        } else {
            // Somebody has served what that repair has left.
            self.repairs.clear();
        }
        self.reigns.push(record);
    }

    /// The log ends here. What repairs have appended that came to nothing does not count.
    pub(super) fn close(&mut self, end: Seq) {
        let whole = self.reigns.len() - self.repairs.len();
        self.end = self.reigns.get(whole).map_or(end, |first| Seq(first.first.0.saturating_sub(1)));
        self.reigns.truncate(whole);
    }

    /// Copies of this reign prove nothing: it is that of the repair itself.
    pub(super) fn ignore(&mut self, reign: Reign) {
        self.repairs.push(reign);
    }

    /// The last record before a repair that came to nothing.
    pub(super) fn end(&self) -> Seq {
        self.end
    }

    /// Whether a repair of this log has come to nothing.
    pub(super) fn is_unfinished(&self) -> bool {
        !self.repairs.is_empty()
    }

    /// Where a version of that reign and seq is from.
    pub(super) fn origin(&mut self, reign: Reign, seq: Seq) -> CopyOrigin {
        if self.repairs.contains(&reign) {
            return CopyOrigin::Repair;
        }
        let known = self.reigns.iter().position(|record| record.reign == reign);
        match known {
            Some(index) if seq <= self.last_of(index) => CopyOrigin::Log,
            // Lines of the original program.
            None if reign == Reign::default() => CopyOrigin::Log,
            Some(_) | None if self.given_up.contains(&reign) => CopyOrigin::GivenUp,
            Some(_) | None => self.branch(reign, seq, known),
        }
    }

    fn branch(&mut self, reign: Reign, seq: Seq, tail_of: Option<usize>) -> CopyOrigin {
        let known = self.branches.iter().position(|branch| branch.reign == reign);
        let index = known.unwrap_or(self.branches.len());
        if known.is_none() {
            if index >= BRANCHES_MAX {
                return CopyOrigin::TooMany;
            }
            self.branches.push(Branch { reign, lowest: seq, tail_of, ancestors: 0, common: Seq(0) });
        }
        let branch = &mut self.branches[index];
        branch.lowest = branch.lowest.min(seq);
        CopyOrigin::Beyond(index as BranchId)
    }

    /// The last seq that a reign of the log has there.
    fn last_of(&self, index: usize) -> Seq {
        self.reigns.get(index + 1).map_or(self.end, |next| Seq(next.first.0.saturating_sub(1)))
    }

    /// Notes that a slave has a copy of that origin and seq, or has seen it.
    pub(super) fn note(&mut self, slave: &SlaveId, origin: CopyOrigin, seq: Seq) {
        if matches!(origin, CopyOrigin::Repair | CopyOrigin::GivenUp | CopyOrigin::TooMany) {
            return;
        }
        if !self.witnesses.contains_key(slave) {
            self.witnesses.insert(slave.clone(), Witness::default());
        }
        let Some(witness) = self.witnesses.get_mut(slave) else { return };
        match origin {
            CopyOrigin::Log => witness.common = witness.common.max(seq),
            CopyOrigin::Beyond(branch) => witness.branches |= bit(branch),
            CopyOrigin::Repair | CopyOrigin::GivenUp | CopyOrigin::TooMany => {}
        }
    }

    /// Notes what a slave says that it has seen; whether the log lacks that.
    pub(super) fn note_seen(&mut self, slave: &SlaveId, seen: &Seen) -> bool {
        let origin = self.origin(seen.reign, seen.seq);
        self.note(slave, origin, seen.seq);
        matches!(origin, CopyOrigin::Beyond(_) | CopyOrigin::TooMany)
    }

    /// Notes that all these reigns are of one history.
    pub(super) fn note_line(&mut self, witness: &SlaveId, reigns: &[Reign]) {
        for reign in reigns {
            let begun = self.reigns.iter().find(|record| record.reign == *reign).map(|record| record.first);
            // Where one began that the log lacks is not known.
            let seq = begun.unwrap_or(self.end.next());
            let origin = self.origin(*reign, seq);
            self.note(witness, origin, seq);
        }
    }

    /// Draws the conclusions from all that was noted.
    pub(super) fn settle(&mut self) {
        let mut order: Vec<usize> = (0..self.branches.len()).collect();
        order.sort_by_key(|index| self.branches[*index].reign.epoch);
        for &index in &order {
            let own = self.branches[index].reign.epoch;
            let beside = self.witnesses.values().filter(|witness| witness.branches & 1 << index != 0);
            let beside = beside.fold(0, |all, witness| all | witness.branches);
            let before = self.ids().filter(|id| beside & bit(*id) != 0 && self.epoch(*id) < own);
            let ancestors =
                before.fold(0, |all, id| all | bit(id) | self.branches[usize::from(id)].ancestors);
            self.branches[index].ancestors = ancestors;
        }
        for index in order {
            self.branches[index].common = self.common_of(index);
        }
    }

    /// How far the log is certainly part of the history of a branch.
    fn common_of(&self, index: usize) -> Seq {
        let branch = &self.branches[index];
        let line = branch.ancestors | 1 << index;
        // A slave that has also seen what follows has left the log at the same place.
        let related = self.branches.iter().enumerate().filter(|(_, other)| other.ancestors & 1 << index != 0);
        let related = related.fold(line, |all, (other, _)| all | 1 << other);
        let witnesses = self.witnesses.values().filter(|witness| witness.branches & related != 0);
        let proven = witnesses.map(|witness| witness.common).max().unwrap_or_default();
        let mut common = Seq(0);
        if proven > Seq(0) {
            // A reign is written by one master, into one file: who has a part of it has what is before it.
            let next = self.reigns.partition_point(|record| record.first <= proven);
            common = next.checked_sub(1).map_or(proven, |own| self.last_of(own));
        }
        let own = || self.ids().filter(|id| line & bit(*id) != 0).map(|id| &self.branches[usize::from(id)]);
        let tail = own().filter_map(|branch| Some(self.last_of(branch.tail_of?))).max();
        common = common.max(tail.unwrap_or_default());
        // What the log has in the place of one of its records is not in its history.
        own().fold(common, |common, branch| common.min(Seq(branch.lowest.0.saturating_sub(1))))
    }

    fn ids(&self) -> impl Iterator<Item = BranchId> {
        (0..self.branches.len()).map(|index| index as BranchId)
    }

    fn epoch(&self, branch: BranchId) -> Epoch {
        self.branches[usize::from(branch)].reign.epoch
    }

    /// The reign of a branch.
    pub(super) fn reign(&self, branch: BranchId) -> Reign {
        self.branches[usize::from(branch)].reign
    }

    /// The identity of that reign.
    pub(super) fn id(&self, branch: BranchId) -> ReignId {
        self.reign(branch).id
    }

    /// Whether all these branches are certainly before `branch` in its history.
    pub(super) fn follows_all(&self, branch: BranchId, others: u64) -> bool {
        let line = self.branches[usize::from(branch)].ancestors | bit(branch);
        others & !line == 0
    }

    /// The seq through which the log is certainly part of the history of a branch.
    pub(super) fn common(&self, branch: BranchId) -> Seq {
        self.branches[usize::from(branch)].common
    }

    /// All reigns that the log lacks, as far as they are known.
    pub(super) fn lacking(&self) -> impl Iterator<Item = Reign> + '_ {
        self.branches.iter().map(|branch| branch.reign)
    }
}

/// The set of one branch.
pub(super) fn bit(branch: BranchId) -> u64 {
    1 << branch
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reign 1 (id 10) from seq 2 and 2 (id 20) from seq 8; the log ends at seq 11.
    fn lineage() -> Lineage {
        let mut lineage = Lineage::default();
        for (epoch, first) in [(1, 2), (2, 8)] {
            let reign = Reign::new(epoch, epoch * 10);
            let record = ReignRecord { reign, first: Seq(first), durable: true };
            lineage.begin(record, false, std::iter::empty());
        }
        lineage.close(Seq(11));
        lineage
    }

    fn slave(name: &str) -> SlaveId {
        SlaveId::new(name).unwrap()
    }

    /// Notes copies of a slave: epoch, id, seq. Gives their origins.
    fn holds(lineage: &mut Lineage, name: &str, copies: &[(u64, u64, u64)]) -> Vec<CopyOrigin> {
        let origins = copies.iter().map(|(epoch, id, seq)| {
            let origin = lineage.origin(Reign::new(*epoch, *id), Seq(*seq));
            lineage.note(&slave(name), origin, Seq(*seq));
            origin
        });
        origins.collect()
    }

    #[test]
    fn a_copy_is_of_the_log_or_beyond_it() {
        let mut lineage = lineage();
        let origins = holds(
            &mut lineage,
            "s",
            &[(0, 0, 1), (1, 10, 7), (2, 20, 11), (1, 10, 8), (2, 20, 12), (2, 21, 9)],
        );
        let wanted = [CopyOrigin::Log, CopyOrigin::Log, CopyOrigin::Log];
        assert_eq!(origins[..3], wanted);
        assert_eq!(origins[3..], [CopyOrigin::Beyond(0), CopyOrigin::Beyond(1), CopyOrigin::Beyond(2)]);
    }

    #[test]
    fn a_truncated_log_is_part_of_all_that_follows_it() {
        let mut lineage = lineage();
        holds(&mut lineage, "s", &[(2, 20, 9), (2, 20, 14), (3, 30, 20), (5, 50, 30)]);
        holds(&mut lineage, "t", &[(5, 50, 33)]);
        lineage.settle();
        for branch in 0..3 {
            assert_eq!(lineage.common(branch), Seq(11), "branch {branch}");
        }
        assert!(lineage.follows_all(2, 0b11));
        assert!(!lineage.follows_all(0, 0b110));
    }

    #[test]
    fn of_a_reign_that_no_copy_joins_to_the_log_nothing_is_known() {
        let mut lineage = lineage();
        holds(&mut lineage, "s", &[(3, 30, 20)]);
        lineage.settle();
        assert_eq!(lineage.common(0), Seq(0));
        // The record that it has seen may be of a reign before, too.
        holds(&mut lineage, "s", &[(1, 10, 3)]);
        lineage.settle();
        assert_eq!(lineage.common(0), Seq(7), "reign 1 is of its history, and reign 2 may not be");
    }

    #[test]
    fn a_list_of_reigns_proves_what_copies_do_not() {
        let line =
            |epochs: &[u64]| epochs.iter().map(|epoch| Reign::new(*epoch, epoch * 10)).collect::<Vec<_>>();
        let mut older = lineage();
        holds(&mut older, "s", &[(4, 40, 20)]);
        older.note_line(&slave("list"), &line(&[1, 2, 3, 4]));
        older.settle();
        assert_eq!(older.common(0), Seq(11));
        // One that knows reign 2 as another one.
        let mut other = lineage();
        holds(&mut other, "s", &[(4, 40, 20)]);
        other.note_line(&slave("list"), &[line(&[1]), vec![Reign::new(2, 22)], line(&[4])].concat());
        other.settle();
        assert_eq!(other.common(0), Seq(7));
    }

    #[test]
    fn a_log_that_went_on_by_itself_is_common_only_up_to_the_fork() {
        // The slaves' reign 1 goes on where the log has its reign 2.
        let mut lineage = lineage();
        holds(&mut lineage, "s", &[(1, 10, 9), (2, 22, 15), (3, 30, 40)]);
        lineage.settle();
        for branch in 0..3 {
            assert_eq!(lineage.common(branch), Seq(7), "branch {branch}");
        }
    }

    #[test]
    fn a_record_in_the_place_of_one_of_the_log_is_after_the_fork() {
        let mut lineage = lineage();
        // A copy in the last reign of the log, which goes on elsewhere from seq 10 on.
        holds(&mut lineage, "s", &[(2, 20, 9), (3, 30, 10)]);
        lineage.settle();
        assert_eq!(lineage.common(0), Seq(9));
    }

    #[test]
    fn two_reigns_of_one_epoch_have_no_order_and_neither_have_their_followers() {
        let mut lineage = lineage();
        holds(&mut lineage, "s", &[(2, 20, 9), (3, 30, 14), (4, 40, 20)]);
        holds(&mut lineage, "t", &[(2, 20, 9), (3, 31, 14), (5, 51, 20)]);
        lineage.settle();
        assert!(lineage.follows_all(1, 1));
        assert!(!lineage.follows_all(2, 1));
        assert!(!lineage.follows_all(3, 1), "5 follows 31, not 30");
        assert!(lineage.follows_all(3, 0b100));
    }

    #[test]
    fn what_an_unfinished_repair_has_appended_and_what_was_given_up_prove_nothing() {
        let mut lineage = Lineage::default();
        let record = |epoch: u64, first| {
            let reign = Reign::new(epoch, epoch * 10);
            ReignRecord { reign, first: Seq(first), durable: true }
        };
        lineage.begin(record(1, 2), false, std::iter::empty());
        lineage.begin(record(5, 8), false, [Reign::new(2, 22)].into_iter());
        lineage.begin(record(6, 12), true, std::iter::empty());
        lineage.begin(record(7, 20), true, std::iter::empty());
        lineage.close(Seq(25));
        assert_eq!((lineage.end(), lineage.is_unfinished()), (Seq(11), true));
        let origins = holds(&mut lineage, "s", &[(7, 70, 24), (2, 22, 9), (3, 30, 20)]);
        assert_eq!(origins, [CopyOrigin::Repair, CopyOrigin::GivenUp, CopyOrigin::Beyond(0)]);
        lineage.settle();
        assert_eq!(lineage.common(0), Seq(0));
    }

    #[test]
    fn there_are_so_many_branches_and_no_more() {
        let mut lineage = lineage();
        let copies: Vec<_> = (3..3 + BRANCHES_MAX as u64).map(|epoch| (epoch, epoch, epoch + 20)).collect();
        holds(&mut lineage, "s", &copies);
        lineage.settle();
        assert!(lineage.follows_all(BRANCHES_MAX as u8 - 1, u64::MAX));
        assert_eq!(lineage.origin(Reign::new(1000, 1), Seq(1)), CopyOrigin::TooMany);
    }
}
