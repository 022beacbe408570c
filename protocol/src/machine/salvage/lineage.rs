//! Which copies of slaves a log lacks, and whether such a copy is newer than what the log has of its key.
//!
//! Owns the tree of reigns: of each reign after which one it began, and with which seq. The log says so of its own reigns, and
//! slaves of those of the log in which they had their last place. The id of a reign is random, and its EPOCH record stands in one
//! place after one history; so logs that share a reign share all that is before it, and two histories are one up to the record
//! with which the first reign began that only one of them has. What is not proven counts as unknown. See
//! `docs/ARCHITECTURE.md`, *Records that only slaves have*.

use super::super::master::ReignRecord;
use crate::ids::{Epoch, Reign, ReignId, Seq};
use crate::message::ReignStart;
use std::collections::BTreeMap;

/// The most reigns that a log may lack, and the most parts of them: the sets of parts are words.
pub const BRANCHES_MAX: usize = 64;

/// The number of a part of a reign that the log lacks. Where other reigns have begun after a record of it, it has several parts.
pub(super) type BranchId = u8;

/// Where a version is from, as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyOrigin {
    /// The log has, or had, that record.
    Log,
    /// The reign of the repair itself.
    Repair,
    /// A reign whose loss was accepted.
    GivenUp,
    /// The log lacks it.
    Beyond(BranchId),
    /// The log lacks it and has accepted its loss, but the history of a slave went on with it.
    Disputed(BranchId),
    /// The log lacks it, and there are too many such reigns.
    TooMany,
}

/// A part of a reign that the log lacks: all of it is in the same histories.
#[derive(Clone, Debug)]
struct Branch {
    reign: Reign,
    /// The part begins with this seq, or after it.
    from: Seq,
}

/// How a reign began.
#[derive(Clone, Copy, Debug)]
struct Beginning {
    /// The seq of its EPOCH record.
    first: Seq,
    /// The reign before; `None` where nobody has said it.
    after: Option<Reign>,
}

/// The reigns of a log, and of what slaves hold beside it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lineage {
    /// In the order of the log.
    reigns: Vec<ReignRecord>,
    given_up: Vec<Reign>,
    /// Of those that were given up: the first seq after all that a slave's history, which was not, has of them.
    went_on: Option<BTreeMap<Reign, Seq>>,
    /// The reigns of repairs at the end of the log that nobody is known to have served.
    unserved: Vec<ReignRecord>,
    /// The last record before them.
    end: Seq,
    /// The last record of all.
    log_end: Seq,
    /// The reign of the repair itself.
    own: Option<Reign>,
    beginnings: BTreeMap<Reign, Beginning>,
    branches: Vec<Branch>,
    /// Reigns that somebody has seen, and of which the log lacks records.
    lacking: Vec<Reign>,
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
        if !is_repair {
            // Somebody has served what those repairs have left.
            self.reigns.append(&mut self.unserved);
            self.reigns.push(record);
        } else {
            self.unserved.push(record);
        }
    }

    /// The log ends here. What repairs have appended counts only if a slave's log had it, too: then somebody has served it.
    pub(super) fn close(&mut self, end: Seq) {
        self.log_end = end;
        self.end = self.unserved.first().map_or(end, |first| Seq(first.first.0.saturating_sub(1)));
        let starts: Vec<ReignStart> =
            self.reigns.iter().chain(&self.unserved).map(ReignRecord::start).collect();
        self.tell_line(&starts);
    }

    /// The epoch of the last reign so far.
    pub(super) fn last_epoch(&self) -> Epoch {
        let last = self.unserved.last().or(self.reigns.last());
        last.map_or(Epoch(0), |record| record.reign.epoch)
    }

    /// Copies of this reign prove nothing: it is that of the repair itself.
    pub(super) fn ignore(&mut self, reign: Reign) {
        self.own = Some(reign);
    }

    /// The last record before a repair that came to nothing.
    pub(super) fn end(&self) -> Seq {
        self.end
    }

    /// Whether a repair of this log has come to nothing.
    pub(super) fn is_unfinished(&self) -> bool {
        !self.unserved.is_empty()
    }

    /// Takes in some reigns of one log, each right after the one before. Must not be called any more once a copy was looked at.
    pub(super) fn tell(&mut self, starts: &[ReignStart]) {
        let is_named = |record: &ReignRecord| starts.contains(&record.start());
        if let Some(last) = self.unserved.iter().rposition(is_named) {
            self.reigns.extend(self.unserved.drain(..=last));
            self.end =
                self.unserved.first().map_or(self.log_end, |first| Seq(first.first.0.saturating_sub(1)));
        }
        self.went_on = None;
        self.tell_line(starts);
    }

    fn tell_line(&mut self, starts: &[ReignStart]) {
        let mut after: Option<ReignStart> = None;
        for start in starts {
            let follows =
                |before: &ReignStart| before.reign.epoch < start.reign.epoch && before.first < start.first;
            // What is out of order was not read in a log.
            let before = after.filter(follows).map(|before| before.reign);
            let told = Beginning { first: start.first, after: before };
            let known = self.beginnings.entry(start.reign).or_insert(told);
            known.after = known.after.or(before.filter(|_| known.first == start.first));
            after = Some(*start);
        }
    }

    /// The place of a reign in the log.
    fn position(&self, reign: Reign) -> Option<usize> {
        self.reigns.iter().position(|record| record.reign == reign)
    }

    /// The last seq that a reign of the log has there.
    fn last_of(&self, index: usize) -> Seq {
        self.reigns.get(index + 1).map_or(self.end, |next| Seq(next.first.0.saturating_sub(1)))
    }

    /// Where a version is from, if it is not one that the log lacks.
    fn known_origin(&self, reign: Reign, seq: Seq) -> Option<CopyOrigin> {
        if self.own == Some(reign) {
            return Some(CopyOrigin::Repair);
        }
        if let Some(index) = self.unserved.iter().position(|record| record.reign == reign) {
            let next = self.unserved.get(index + 1);
            let last = next.map_or(self.log_end, |next| Seq(next.first.0.saturating_sub(1)));
            return (seq <= last).then_some(CopyOrigin::Log);
        }
        match self.position(reign) {
            Some(index) if seq <= self.last_of(index) => Some(CopyOrigin::Log),
            // Lines of the original program.
            None if reign == Reign::default() => Some(CopyOrigin::Log),
            Some(_) | None => self.given_up.contains(&reign).then_some(CopyOrigin::GivenUp),
        }
    }

    /// Whether the log lacks a version of that reign and seq.
    pub(super) fn lacks(&self, reign: Reign, seq: Seq) -> bool {
        self.known_origin(reign, seq).is_none()
    }

    /// Notes what somebody has seen; whether the log lacks that.
    pub(super) fn note_seen(&mut self, reign: Reign, seq: Seq) -> bool {
        let lacks = self.lacks(reign, seq);
        if lacks && !self.lacking.contains(&reign) {
            self.lacking.push(reign);
        }
        lacks
    }

    /// Where a version of that reign and seq is from.
    pub(super) fn origin(&mut self, reign: Reign, seq: Seq) -> CopyOrigin {
        let known = self.known_origin(reign, seq);
        let is_disputed = known == Some(CopyOrigin::GivenUp) && self.went_on(reign, seq);
        if let Some(known) = known.filter(|_| !is_disputed) {
            return known;
        }
        self.note_seen(reign, seq);
        let followers = self.beginnings.values().filter(|other| other.after == Some(reign));
        let from = followers.map(|other| other.first).filter(|first| *first <= seq).max().unwrap_or_default();
        let known = self.branches.iter().position(|branch| branch.reign == reign && branch.from == from);
        let index = known.unwrap_or(self.branches.len());
        if known.is_none() {
            if index >= BRANCHES_MAX || self.lacking.len() > BRANCHES_MAX {
                return CopyOrigin::TooMany;
            }
            self.branches.push(Branch { reign, from });
        }
        let branch = index as BranchId;
        if is_disputed {
            CopyOrigin::Disputed(branch)
        } else {
            CopyOrigin::Beyond(branch)
        }
    }

    /// Whether a version of a reign that was given up is in the history of one that was not, and that the log lacks.
    fn went_on(&mut self, reign: Reign, seq: Seq) -> bool {
        if self.went_on.is_none() {
            let mut ends = BTreeMap::new();
            let is_beyond =
                |other: &&Reign| !self.given_up.contains(other) && self.position(**other).is_none();
            for other in self.beginnings.keys().filter(is_beyond) {
                for before in self.before(*other).filter(|before| self.given_up.contains(&before.reign)) {
                    let end = ends.entry(before.reign).or_insert(before.first);
                    *end = before.first.max(*end);
                }
            }
            self.went_on = Some(ends);
        }
        let end = self.went_on.as_ref().and_then(|ends| ends.get(&reign));
        end.is_some_and(|end| seq < *end)
    }

    /// The reigns before one, from the last one down, each with the seq at which the history of that one leaves it. The last one
    /// that is named may have others before it of which nobody has told.
    fn before(&self, reign: Reign) -> impl Iterator<Item = ReignStart> + '_ {
        let mut next = Some(reign);
        std::iter::from_fn(move || {
            let Beginning { first, after } = *self.beginnings.get(&next?)?;
            next = after;
            Some(ReignStart { reign: after?, first })
        })
    }

    /// The seq through which the log is certainly part of the history of a branch; 0 where nothing is known.
    pub(super) fn common(&self, branch: BranchId) -> Seq {
        let reign = self.branches[usize::from(branch)].reign;
        if let Some(index) = self.position(reign) {
            // It goes on after the end that this reign has in the log.
            return self.last_of(index);
        }
        let fork = self.before(reign).find_map(|before| Some((self.position(before.reign)?, before.first)));
        fork.map_or(Seq(0), |(index, left)| self.last_of(index).min(Seq(left.0.saturating_sub(1))))
    }

    /// Whether one branch is certainly before another one in its history.
    fn is_before(&self, one: BranchId, other: BranchId) -> bool {
        let [one, other] = [one, other].map(|branch| &self.branches[usize::from(branch)]);
        if one.reign == other.reign {
            return one.from < other.from;
        }
        let left = self.before(other.reign).find(|before| before.reign == one.reign);
        left.is_some_and(|left| one.from < left.first)
    }

    /// Whether all these branches are certainly before `branch` in its history.
    pub(super) fn follows_all(&self, branch: BranchId, others: u64) -> bool {
        let ids = (0..self.branches.len()).map(|index| index as BranchId);
        ids.filter(|id| *id != branch && others & bit(*id) != 0).all(|id| self.is_before(id, branch))
    }

    /// Whether a version is certainly not in the history that ends with the reign `last`: a slave that was part of it has it
    /// from another one, or from a record that was lost since.
    pub(super) fn is_astray(&self, last: Reign, reign: Reign, seq: Seq) -> bool {
        if reign == last {
            return false;
        }
        let mut lowest = last;
        for before in self.before(last) {
            if before.reign == reign {
                return seq >= before.first;
            }
            lowest = before.reign;
        }
        // Nothing is told of what was before that one.
        reign.epoch >= lowest.epoch
    }

    /// The identity of the reign of a branch.
    pub(super) fn id(&self, branch: BranchId) -> ReignId {
        self.branches[usize::from(branch)].reign.id
    }

    /// All reigns of which the log lacks records, as far as they are known.
    pub(super) fn lacking(&self) -> impl Iterator<Item = Reign> + '_ {
        self.lacking.iter().copied()
    }
}

/// The set of one branch.
pub(super) fn bit(branch: BranchId) -> u64 {
    1 << branch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(epoch: u64, id: u64, first: u64) -> ReignStart {
        ReignStart { reign: Reign::new(epoch, id), first: Seq(first) }
    }

    /// Reign 1 (id 10) from seq 2 and 2 (id 20) from seq 8; the log ends at seq 11. Slaves have told of these lines.
    fn lineage(told: &[&[(u64, u64, u64)]]) -> Lineage {
        let mut lineage = Lineage::default();
        for (epoch, first) in [(1, 2), (2, 8)] {
            let reign = Reign::new(epoch, epoch * 10);
            let record = ReignRecord { reign, first: Seq(first), durable: true };
            lineage.begin(record, false, std::iter::empty());
        }
        lineage.close(Seq(11));
        for line in told {
            let line: Vec<_> = line.iter().map(|(epoch, id, first)| start(*epoch, *id, *first)).collect();
            lineage.tell(&line);
        }
        lineage
    }

    fn origin(lineage: &mut Lineage, (epoch, id, seq): (u64, u64, u64)) -> CopyOrigin {
        lineage.origin(Reign::new(epoch, id), Seq(seq))
    }

    /// The number of the branch of that version.
    fn branch(lineage: &mut Lineage, version: (u64, u64, u64)) -> BranchId {
        match origin(lineage, version) {
            CopyOrigin::Beyond(branch) => branch,
            CopyOrigin::Log
            | CopyOrigin::Repair
            | CopyOrigin::GivenUp
            | CopyOrigin::Disputed(_)
            | CopyOrigin::TooMany => {
                panic!("{version:?} is not beyond the log")
            }
        }
    }

    /// How far the log is part of the history of that version.
    fn common(lineage: &mut Lineage, version: (u64, u64, u64)) -> Seq {
        let branch = branch(lineage, version);
        lineage.common(branch)
    }

    #[test]
    fn a_copy_is_of_the_log_or_beyond_it() {
        let mut lineage = lineage(&[]);
        for version in [(0, 0, 1), (1, 10, 7), (2, 20, 11)] {
            assert_eq!(origin(&mut lineage, version), CopyOrigin::Log, "{version:?}");
        }
        let lacking = [(1, 10, 8), (2, 20, 12), (2, 21, 9)];
        let branches = lacking.map(|version| branch(&mut lineage, version));
        assert_eq!(branches, [0, 1, 2]);
        assert_eq!(branch(&mut lineage, (2, 20, 99)), 1);
        let reigns = lacking.map(|(epoch, id, _)| Reign::new(epoch, id));
        assert_eq!(lineage.lacking().collect::<Vec<_>>(), reigns);
        assert!(lineage.lacks(Reign::new(2, 20), Seq(12)) && !lineage.lacks(Reign::new(2, 20), Seq(11)));
    }

    #[test]
    fn a_cut_log_is_part_of_all_that_follows_it() {
        let mut lineage = lineage(&[&[(1, 10, 2), (2, 20, 8), (3, 30, 16), (5, 50, 25)]]);
        for version in [(2, 20, 14), (3, 30, 20), (5, 50, 30)] {
            assert_eq!(common(&mut lineage, version), Seq(11), "{version:?}");
        }
        assert!(lineage.follows_all(2, 0b11));
        assert!(!lineage.follows_all(0, 0b110));
    }

    #[test]
    fn of_a_reign_that_nobody_joins_to_the_log_nothing_is_known() {
        let mut lineage = lineage(&[&[(3, 30, 14), (4, 40, 20)]]);
        assert_eq!(common(&mut lineage, (4, 40, 22)), Seq(0));
        assert_eq!(common(&mut lineage, (3, 30, 15)), Seq(0));
        // A slave of a longer memory.
        lineage.tell(&[start(2, 20, 8), start(3, 30, 14)]);
        assert_eq!(lineage.common(0), Seq(11));
    }

    #[test]
    fn a_fork_inside_a_reign_is_where_the_other_reign_began() {
        // The log was copied in reign 2 after seq 9, and both went on.
        let mut lineage = lineage(&[&[(2, 20, 8), (3, 30, 10), (4, 40, 30)]]);
        assert_eq!(common(&mut lineage, (3, 30, 15)), Seq(9));
        assert_eq!(common(&mut lineage, (4, 40, 31)), Seq(9));
        // The slaves' reign 1 goes on where the log has its reign 2.
        lineage.tell(&[start(1, 10, 2), start(2, 22, 15)]);
        assert_eq!(common(&mut lineage, (2, 22, 20)), Seq(7));
        assert_eq!(common(&mut lineage, (1, 10, 9)), Seq(7));
        // Reign 2 began anew after a copy of reign 1.
        lineage.tell(&[start(1, 10, 2), start(2, 23, 5)]);
        assert_eq!(common(&mut lineage, (2, 23, 20)), Seq(4));
    }

    #[test]
    fn a_reign_that_went_on_while_another_one_had_begun_has_no_order_with_that() {
        // The slaves' reign 3 goes on to 30, and reign 4 was begun on a copy of it that ends at seq 19.
        let mut lineage = lineage(&[&[(2, 20, 8), (3, 30, 14), (4, 40, 20)]]);
        let before = branch(&mut lineage, (3, 30, 19));
        let after = branch(&mut lineage, (3, 30, 20));
        let other = branch(&mut lineage, (4, 40, 21));
        assert_eq!(branch(&mut lineage, (3, 30, 15)), before);
        assert!(lineage.follows_all(other, bit(before) | bit(other)));
        assert!(lineage.follows_all(after, bit(before)));
        assert!(!lineage.follows_all(before, bit(after)));
        assert!(!lineage.follows_all(other, bit(after)));
        assert!(!lineage.follows_all(after, bit(other)));
    }

    #[test]
    fn a_reign_that_others_have_followed_at_several_places_has_as_many_parts() {
        let mut lineage =
            lineage(&[&[(2, 20, 8), (3, 30, 14), (4, 40, 20)], &[(2, 20, 8), (3, 30, 14), (4, 41, 25)]]);
        let parts = [19, 22, 27].map(|seq| branch(&mut lineage, (3, 30, seq)));
        let followers = [(4, 40, 30), (4, 41, 30)].map(|version| branch(&mut lineage, version));
        let follows = |of: BranchId| parts.map(|part| lineage.follows_all(of, bit(part)));
        assert_eq!(followers.map(follows), [[true, false, false], [true, true, false]]);
        assert_eq!(parts.map(follows), [[true, false, false], [true, true, false], [true, true, true]]);
    }

    #[test]
    fn two_reigns_of_one_epoch_have_no_order_and_neither_have_their_followers() {
        let mut lineage =
            lineage(&[&[(2, 20, 8), (3, 30, 12), (4, 40, 20)], &[(2, 20, 8), (3, 31, 12), (5, 51, 20)]]);
        let versions = [(3, 30, 14), (3, 31, 14), (4, 40, 25), (5, 51, 25)];
        let [one, other, one_later, other_later] = versions.map(|version| branch(&mut lineage, version));
        assert!(lineage.follows_all(one_later, bit(one)));
        assert!(!lineage.follows_all(other, bit(one)));
        assert!(!lineage.follows_all(other_later, bit(one)), "5 follows 31, not 30");
        assert!(lineage.follows_all(other_later, bit(other)));
    }

    #[test]
    fn a_copy_that_its_slaves_last_log_did_not_have_is_astray() {
        let lineage = lineage(&[&[(3, 30, 14), (4, 40, 20), (6, 60, 30)]]);
        let astray = |epoch, id, seq| lineage.is_astray(Reign::new(6, 60), Reign::new(epoch, id), Seq(seq));
        for (epoch, id, seq) in [(6, 60, 35), (4, 40, 29), (3, 30, 19), (2, 20, 12), (1, 11, 5)] {
            assert!(!astray(epoch, id, seq), "{epoch}");
        }
        for (epoch, id, seq) in [(4, 40, 30), (3, 30, 20), (5, 50, 25), (4, 41, 21), (3, 31, 15), (7, 70, 40)]
        {
            assert!(astray(epoch, id, seq), "{epoch}");
        }
    }

    #[test]
    fn what_is_out_of_order_proves_nothing() {
        let mut lineage = lineage(&[&[(2, 20, 8), (4, 40, 20), (3, 30, 25), (5, 50, 22), (6, 60, 30)]]);
        assert_eq!(common(&mut lineage, (4, 40, 21)), Seq(11));
        assert_eq!(common(&mut lineage, (3, 30, 26)), Seq(0), "its epoch is too low");
        assert_eq!(common(&mut lineage, (5, 50, 26)), Seq(0), "its seq is");
        // Two that disagree about the beginning of one.
        lineage.tell(&[start(2, 20, 8), start(6, 60, 9)]);
        assert_eq!(common(&mut lineage, (6, 60, 31)), Seq(0));
        lineage.tell(&[start(7, 70, 40)]);
        lineage.tell(&[start(2, 20, 8), start(7, 70, 30)]);
        assert_eq!(common(&mut lineage, (7, 70, 45)), Seq(0));
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
        let origins = [(7, 70, 24), (2, 22, 9), (5, 50, 11)].map(|version| origin(&mut lineage, version));
        assert_eq!(origins, [CopyOrigin::Log, CopyOrigin::GivenUp, CopyOrigin::Log]);
        assert_eq!(lineage.lacking().count(), 0);
        lineage.tell(&[start(5, 50, 8), start(6, 66, 15)]);
        assert_eq!(common(&mut lineage, (6, 66, 20)), Seq(11), "the repairs do not count");
        // They do once a master has served what they have left.
        let mut served = Lineage::default();
        served.begin(record(1, 2), false, std::iter::empty());
        served.begin(record(6, 12), true, std::iter::empty());
        served.begin(record(8, 20), false, std::iter::empty());
        served.close(Seq(25));
        assert_eq!((served.end(), served.is_unfinished()), (Seq(25), false));
        assert_eq!(origin(&mut served, (6, 60, 15)), CopyOrigin::Log);
    }

    #[test]
    fn a_repair_that_a_slaves_log_had_was_served_and_one_that_a_copy_names_goes_on() {
        let record = |epoch: u64, first| ReignRecord {
            reign: Reign::new(epoch, epoch * 10),
            first: Seq(first),
            durable: true,
        };
        let mut lineage = Lineage::default();
        lineage.begin(record(1, 2), false, std::iter::empty());
        lineage.begin(record(2, 8), true, std::iter::empty());
        lineage.begin(record(5, 20), true, std::iter::empty());
        lineage.close(Seq(25));
        let mut unproven = lineage.clone();
        assert_eq!(origin(&mut unproven, (2, 20, 19)), CopyOrigin::Log);
        assert_eq!(common(&mut unproven, (2, 20, 30)), Seq(7), "only the copy says that it was served");
        lineage.tell(&[start(1, 10, 2), start(2, 20, 9)]);
        assert_eq!(lineage.end(), Seq(7), "that is another one");
        lineage.tell(&[start(1, 10, 2), start(2, 20, 8), start(3, 30, 40)]);
        assert_eq!(lineage.end(), Seq(19));
        assert_eq!(common(&mut lineage, (2, 20, 30)), Seq(19));
        assert_eq!(common(&mut lineage, (3, 30, 45)), Seq(19));
    }

    #[test]
    fn what_was_given_up_is_disputed_where_a_slaves_history_went_on_with_it() {
        let mut lineage = Lineage::default();
        let record =
            |epoch, first| ReignRecord { reign: start(epoch, epoch * 10, 0).reign, first, durable: true };
        lineage.begin(record(1, Seq(2)), false, std::iter::empty());
        lineage.begin(record(5, Seq(8)), false, [Reign::new(1, 10), Reign::new(2, 20)].into_iter());
        lineage.close(Seq(11));
        lineage.tell(&[start(1, 10, 2), start(2, 20, 15)]);
        assert_eq!(origin(&mut lineage, (1, 10, 9)), CopyOrigin::GivenUp, "all of it was");
        lineage.tell(&[start(1, 10, 2), start(6, 60, 12)]);
        assert!(matches!(origin(&mut lineage, (1, 10, 11)), CopyOrigin::Disputed(_)));
        assert_eq!(
            origin(&mut lineage, (1, 10, 12)),
            CopyOrigin::GivenUp,
            "the other one does not have that"
        );
        assert_eq!(origin(&mut lineage, (2, 20, 16)), CopyOrigin::GivenUp);
    }

    #[test]
    fn there_are_so_many_branches_and_no_more() {
        let mut lineage = lineage(&[]);
        for epoch in 3..3 + BRANCHES_MAX as u64 {
            branch(&mut lineage, (epoch, epoch, epoch + 20));
        }
        assert_eq!(origin(&mut lineage, (1000, 1, 1)), CopyOrigin::TooMany);
        assert_eq!(branch(&mut lineage, (3, 3, 99)), 0);
        assert!(!lineage.follows_all(1, bit(0)));
    }
}
