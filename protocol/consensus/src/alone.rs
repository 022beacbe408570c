//! A log that is there becomes that of a new cluster with one member.
//!
//! Owns what is written for that: the record of the members and the vote file. The log is that of the shared-file mode, or of a
//! cluster whose majority is gone for good. Never decides that a majority is gone: that is the operator's word.
//!
//! The record is appended and synced first, then the vote file is made anew and put in place by a rename. A crash in between leaves
//! a log with a term that the vote file does not know, or without a vote file: no member starts with it, and it is done again.

use crate::ids::MemberId;
use crate::members::{ChangeRefusal, Members, NewMachine};
use crate::mutant::planted;
use crate::storage::LogEntry;
use crate::vote::VoteRecord;
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};

/// What makes a log that of a cluster with one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alone {
    /// The only member.
    pub members: Members,
    /// The record of the members, which follows the last entry of the log.
    pub record: LogEntry,
    /// The vote file's first record. Everything in the log counts as committed.
    pub vote: VoteRecord,
}

/// The log of the shared-file mode, which ends at `last`. It is to be a compacted file through the record: Raft has no entries of
/// it, as those of term 0 would be none.
///
/// # Errors
/// [`ChangeRefusal`]: the machine's address has no form.
pub fn from_one_file(
    cluster: ClusterId,
    last: Version,
    machine: &NewMachine,
) -> Result<Alone, ChangeRefusal> {
    alone(cluster, Epoch(last.epoch.0.max(1)), last.seq.next(), &Members::default(), machine)
}

/// The log of a member that ends at `last`, with `members` by the last record in it, committed or not. The cluster gets a new id and
/// the member a new number, so that no other machine of the old one is ever heard. All of the log is kept, as it may have been
/// acknowledged. What the others had acknowledged after `last` is lost.
///
/// # Errors
/// [`ChangeRefusal`]: the machine's address has no form.
pub fn force_new_cluster(
    cluster: ClusterId,
    vote: &VoteRecord,
    last: Version,
    members: &Members,
    machine: &NewMachine,
) -> Result<Alone, ChangeRefusal> {
    let term = vote.term.max(last.epoch).next();
    let end = if planted!(TailForgotten) { vote.commit } else { last.seq };
    alone(cluster, term, end.next(), members, machine)
}

fn alone(
    cluster: ClusterId,
    term: Epoch,
    seq: Seq,
    before: &Members,
    machine: &NewMachine,
) -> Result<Alone, ChangeRefusal> {
    let members = before.replaced_by(machine)?;
    let member = members.voters().next().unwrap_or(MemberId::FIRST);
    let version = Version { epoch: term, seq };
    let record = LogEntry { version, data: members.to_string().into() };
    let vote = VoteRecord { number: 0, cluster, member, term, vote: None, commit: seq };
    Ok(Alone { members, record, vote })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Config, Consensus, Effect, Event, Start};
    use crate::members::MembersChange;
    use dsm_protocol::ids::Millis;

    fn machine(number: u64) -> NewMachine {
        NewMachine { address: format!("10.0.0.{number}:12345"), token: number }
    }

    /// It leads alone, and commits what it is given.
    fn serves(alone: &Alone, start: &Start) {
        let mut machine = Consensus::new(Config::new(alone.vote.member, 3), start).unwrap();
        assert_eq!(*machine.members(), alone.members);
        let mut effects = Vec::new();
        (0..40).for_each(|tick| machine.step(Millis(10 * tick), Event::Tick, &mut effects));
        let batch = effects.iter().find_map(|effect| {
            if let Effect::Persist(batch) = effect {
                Some(batch.number)
            } else {
                None
            }
        });
        effects.clear();
        machine.step(Millis(400), Event::Persisted(batch.unwrap()), &mut effects);
        let reign = Version { epoch: alone.vote.term.next(), seq: alone.vote.commit.next() };
        assert!(effects.contains(&Effect::Reigns(reign)), "{effects:?}");
    }

    #[test]
    fn the_log_of_one_file_becomes_the_compacted_file_of_the_first_member() {
        let alone = from_one_file(ClusterId(7), Version::new(4, 40), &machine(1)).unwrap();
        assert_eq!(alone.record.version, Version::new(4, 41));
        assert_eq!((alone.vote.term, alone.vote.commit), (Epoch(4), Seq(41)));
        let start = Start {
            vote: alone.vote,
            base: alone.record.version,
            records: vec![(Seq(41), alone.members.clone())],
            terms: vec![],
            tail: vec![],
        };
        serves(&alone, &start);
        let old = from_one_file(ClusterId(7), Version::new(0, 40), &machine(1)).unwrap();
        assert_eq!(old.record.version, Version::new(1, 41), "there is no term 0");
    }

    #[test]
    fn a_new_cluster_keeps_the_whole_log_and_has_one_member_with_a_new_number() {
        let three = Members::first(&[machine(1), machine(2), machine(3)]).unwrap();
        let before = three.begin(&MembersChange::Replace(MemberId::new(3).unwrap(), machine(4))).unwrap();
        let vote = VoteRecord {
            number: 9,
            cluster: ClusterId(7),
            member: MemberId::new(2).unwrap(),
            term: Epoch(6),
            vote: MemberId::new(1),
            commit: Seq(30),
        };
        let last = LogEntry { version: Version::new(5, 40), data: "WRITE".into() };
        let alone = force_new_cluster(ClusterId(8), &vote, last.version, &before, &machine(2)).unwrap();
        assert_eq!(alone.record.version, Version::new(7, 41));
        assert_eq!(
            (alone.vote.cluster, alone.vote.member.get(), alone.vote.commit),
            (ClusterId(8), 5, Seq(41))
        );
        assert!((1..5).all(|gone| alone.members.was_removed(MemberId::new(gone).unwrap())));
        let start = Start {
            vote: alone.vote,
            base: Version::new(5, 39),
            records: vec![(Seq(20), before), (Seq(41), alone.members.clone())],
            terms: vec![alone.record.version],
            tail: vec![last, alone.record.clone()],
        };
        serves(&alone, &start);
        let crashed = Start { vote, ..start };
        let error = Consensus::new(Config::new(vote.member, 3), &crashed).err();
        let behind = crate::machine::StartError::VoteBehindLog { log: Epoch(7), vote: Epoch(6) };
        assert_eq!(error, Some(behind), "it is done again");
    }
}
