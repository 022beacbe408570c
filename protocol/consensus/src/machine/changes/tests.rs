//! Changes of the members at one member whose others are played by hand.

use super::*;
use crate::machine::tests::{appended, batches, id, members, message, words, TestMember};
use crate::machine::{Event, ProposalTag, TransferFailure};
use crate::members::NewMachine;
use bytes::Bytes;
use dsm_protocol::ids::Seq;
use raft::eraftpb::Entry;

fn machine(number: u64) -> NewMachine {
    NewMachine { address: format!("10.0.0.{number}:12345"), token: number }
}

/// A leader that both others have answered in this moment.
fn leader() -> TestMember {
    let mut leader = TestMember::new(1, 3).reigning();
    heard(&mut leader, &[2, 3]);
    leader
}

fn heard(leader: &mut TestMember, from: &[u64]) -> Vec<Effect> {
    let commit = leader.machine.committed().0;
    let answer = |from| Message { from, commit, ..message(MessageType::MsgHeartbeatResponse, 2, 2) };
    from.iter().flat_map(|from| leader.hear(answer(*from))).collect()
}

/// All of these have the log through its end, and so has this disk. The result is what follows from that.
fn have_all(leader: &mut TestMember, effects: &[Effect], from: &[u64]) -> Vec<Effect> {
    let mut then = leader.persist(effects);
    let last = leader.machine.last().0;
    for from in from {
        then.extend(leader.hear(Message { from: *from, ..appended(2, last) }));
    }
    then
}

/// The disks of these know what is committed, and so does this one.
fn know_all(leader: &mut TestMember, effects: &[Effect], from: &[u64]) {
    leader.persist(effects);
    heard(leader, from);
}

fn change(leader: &mut TestMember, change: MembersChange) -> Vec<Effect> {
    leader.step(Event::Change(change))
}

fn told(effects: &[Effect]) -> Option<Members> {
    effects.iter().find_map(|effect| {
        if let Effect::Members { members, .. } = effect {
            Some(members.clone())
        } else {
            None
        }
    })
}

/// The words of the records of the members that are to be persisted.
fn records(effects: &[Effect]) -> Vec<Members> {
    let entries = batches(effects).into_iter().flat_map(|batch| &batch.entries);
    entries.filter_map(|entry| Members::parse(&entry.data)).collect()
}

/// The third member, which was removed, asks for votes in a later term.
fn asks_for_votes() -> Message {
    Message { from: 3, index: 9, log_term: 9, ..message(MessageType::MsgRequestVote, 2, 9) }
}

#[test]
fn a_machine_that_is_added_gets_its_vote_once_it_has_the_log() {
    let mut leader = leader();
    let effects = change(&mut leader, MembersChange::Add(machine(4)));
    assert!(effects.contains(&Effect::ChangeBegun), "{effects:?}");
    let learner = members(3).begin(&MembersChange::Add(machine(4))).unwrap();
    assert_eq!(records(&effects), vec![learner.clone()], "the entry is the record's words");
    let effects = have_all(&mut leader, &effects, &[2]);
    assert_eq!(told(&effects), Some(learner.clone()));
    know_all(&mut leader, &effects, &[2, 3]);
    assert_eq!(records(&leader.tick()), [], "it lacks the log");
    leader.hear(Message { from: 4, ..appended(2, leader.machine.last().0) });
    let effects = leader.tick();
    assert_eq!(records(&effects), [learner.promoted().unwrap()]);
    let effects = have_all(&mut leader, &effects, &[2]);
    assert_eq!(told(&effects).unwrap().voters().count(), 4);
    know_all(&mut leader, &effects, &[2]);
    let settled = |effects: &[Effect]| {
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::MembersSettled(members) if members.get(id(4)).is_some()))
    };
    assert!(!settled(&leader.tick()), "two of four are no majority");
    assert_eq!(
        change(&mut leader, MembersChange::Remove(id(3))),
        [Effect::ChangeRefused(ChangeRefusal::Underway)]
    );
    heard(&mut leader, &[4]);
    let effects = leader.tick();
    assert!(settled(&effects) && leader.machine.is_settled(), "{effects:?}");
    let effects = leader.tick();
    assert!(!settled(&effects) && records(&effects).is_empty(), "it is done");
}

#[test]
fn a_machine_takes_a_members_place_by_two_records_and_the_other_is_told() {
    let mut leader = leader();
    let effects = change(&mut leader, MembersChange::Replace(id(3), machine(4)));
    let effects = have_all(&mut leader, &effects, &[2]);
    know_all(&mut leader, &effects, &[2, 3]);
    leader.hear(Message { from: 4, ..appended(2, leader.machine.last().0) });
    let effects = leader.tick();
    let effects = have_all(&mut leader, &effects, &[2]);
    assert!(told(&effects).is_some_and(|members| members.is_joint()), "{effects:?}");
    assert_eq!(records(&leader.tick()), [], "the disks of a majority do not know of that");
    know_all(&mut leader, &effects, &[2, 4]);
    let effects = leader.tick();
    let effects = have_all(&mut leader, &effects, &[2, 4]);
    assert_eq!(told(&effects).map(|members| members.was_removed(id(3))), Some(true), "{effects:?}");
    assert_eq!(leader.hear(asks_for_votes()), [], "the disk does not know it yet");
    leader.persist(&effects);
    assert_eq!(leader.hear(asks_for_votes()), [Effect::SendNotice(id(3))]);
}

#[test]
fn what_would_cost_the_quorum_is_refused_and_so_is_what_is_under_way_or_the_leaders_own_removal() {
    let refused = |why| [Effect::ChangeRefused(why)];
    let mut leader = TestMember::new(1, 3).reigning();
    for _ in 0..20 {
        leader.tick();
        heard(&mut leader, &[2]);
    }
    assert_eq!(
        change(&mut leader, MembersChange::Remove(id(2))),
        refused(ChangeRefusal::Quorum),
        "the third is dead"
    );
    assert_eq!(change(&mut leader, MembersChange::Remove(id(1))), refused(ChangeRefusal::Leads));
    assert_eq!(change(&mut leader, MembersChange::Remove(id(7))), refused(ChangeRefusal::Unknown));
    let effects = change(&mut leader, MembersChange::Remove(id(3)));
    assert!(effects.contains(&Effect::ChangeBegun));
    assert_eq!(change(&mut leader, MembersChange::Add(machine(4))), refused(ChangeRefusal::Underway));
    let effects = have_all(&mut leader, &effects, &[2]);
    assert_eq!(told(&effects).unwrap().voters().collect::<Vec<_>>(), [id(1), id(2)]);
    let mut follower = TestMember::new(2, 3);
    assert_eq!(change(&mut follower, MembersChange::Remove(id(3))), refused(ChangeRefusal::NotLeader));
}

#[test]
fn what_a_live_follower_lacks_is_not_purged_whenever_that_is_asked() {
    let mut leader = leader();
    let proposed = leader.propose(1..4);
    leader.persist(&proposed);
    leader.hear(appended(2, 5));
    for _ in 0..40 {
        // An answer comes every fifth tick only, as heartbeats do.
        for _ in 0..5 {
            let effects = leader.tick();
            leader.persist(&effects);
            assert_eq!(leader.machine.purgeable(Seq(1)).seq, Seq(0), "the third has told of nothing");
            assert_eq!(leader.machine.purgeable(Seq(4)).seq, Seq(3), "no more may be kept");
        }
        heard(&mut leader, &[2, 3]);
    }
    let third = leader.machine.progress()[1];
    assert_eq!((third.member, third.is_live, third.gets_file), (id(3), true, false));
}

#[test]
fn no_change_is_proposed_while_the_leadership_is_given_away() {
    let mut leader = leader();
    leader.step(Event::Transfer(id(2)));
    assert_eq!(
        change(&mut leader, MembersChange::Add(machine(4))),
        [Effect::ChangeRefused(ChangeRefusal::Underway)]
    );
}

#[test]
fn one_that_was_removed_is_not_heard_but_told() {
    let mut leader = leader();
    let effects = change(&mut leader, MembersChange::Remove(id(3)));
    let effects = have_all(&mut leader, &effects, &[2]);
    leader.persist(&effects);
    assert_eq!(leader.hear(asks_for_votes()), [Effect::SendNotice(id(3))]);
    assert_eq!(leader.machine.term().0 .0, 2);
}

#[test]
fn a_member_that_is_left_alone_notes_that_and_tells_who_left() {
    let mut leader = leader();
    for gone in [3, 2] {
        let effects = change(&mut leader, MembersChange::Remove(id(gone)));
        let effects = have_all(&mut leader, &effects, &[2]);
        assert!(batches(&effects).iter().any(|batch| batch.vote.is_some()), "{effects:?}");
        know_all(&mut leader, &effects, &[2]);
    }
    let members = leader.machine.members().clone();
    assert_eq!(members.voters().collect::<Vec<_>>(), [id(1)]);
    let asks = Event::Notice { from: id(2), cluster: ClusterId(7), seq: Seq(9), members };
    assert_eq!(leader.step(asks), [Effect::SendNotice(id(2))]);
    let proposed = leader.propose(1..2);
    let told = leader.persist(&proposed);
    assert!(told.iter().any(|effect| matches!(effect, Effect::Committed(_))), "{told:?}");
}

#[test]
fn one_that_hears_that_it_was_removed_says_so_and_keeps_quiet() {
    let gone = members(3).begin(&MembersChange::Remove(id(2))).unwrap();
    let mut member = TestMember::new(2, 3);
    let notice = |cluster, from, members| {
        let (from, cluster) = (id(from), ClusterId(cluster));
        Event::Notice { from, cluster, seq: Seq(5), members }
    };
    assert_eq!(member.step(notice(8, 1, gone.clone())), [], "of another cluster");
    assert_eq!(member.step(notice(7, 1, members(3))), []);
    assert_eq!(member.step(notice(7, 1, gone.clone())), []);
    let asked: Vec<Effect> = (0..100).flat_map(|_| member.tick()).collect();
    let asks = [Effect::SendNotice(id(1)), Effect::SendNotice(id(3))];
    assert!(asked.iter().all(|effect| asks.contains(effect)), "it campaigns no more: {asked:?}");
    let asks = message(MessageType::MsgRequestVote, 1, 9);
    let effects = member.hear(Message { index: 9, log_term: 9, ..asks });
    assert_eq!(words(&member.persist(&effects)), ["voted"], "the third may need its vote");
    assert_eq!(member.step(notice(7, 1, gone.clone())), [], "it is the same one");
    assert_eq!(member.step(notice(7, 3, gone)), [Effect::Removed]);
    assert_eq!((0..100).map(|_| member.tick().len()).sum::<usize>(), 0);
}

#[test]
fn a_leader_that_is_removed_leaves_its_proposals_unknown() {
    let mut leader = leader();
    leader.propose(1..2);
    leader.step(Event::Transfer(id(2)));
    let gone = members(3).begin(&MembersChange::Remove(id(1))).unwrap();
    let notice =
        |from| Event::Notice { from: id(from), cluster: ClusterId(7), seq: Seq(9), members: gone.clone() };
    let effects = leader.step(notice(2));
    assert!(effects.contains(&Effect::Deposed { tags: vec![ProposalTag(1)] }), "{effects:?}");
    let failed = Effect::TransferFailed { to: id(2), why: TransferFailure::NotLeader };
    assert_eq!(leader.step(notice(3)), [failed, Effect::Removed]);
}

/// A leader that is about to be none: the log has its removal, which is not known to be committed.
#[test]
fn a_leader_that_commits_its_own_removal_leads_no_more_but_votes_until_another_one_knows_it() {
    let joint = members(3).begin(&MembersChange::Replace(id(1), machine(4))).unwrap().promoted().unwrap();
    let settled = joint.settled().unwrap();
    let mut start = crate::machine::tests::start(1);
    start.records = vec![(Seq(1), joint)];
    let data = Bytes::from(settled.to_string());
    start.tail.push(crate::storage::LogEntry { version: Version::new(1, 2), data });
    let mut leader = TestMember::with(crate::machine::Config::new(id(1), 3), &start);
    while leader.tick().is_empty() {}
    let voted = |kind, from| Message { from, ..message(kind, 2, 2) };
    leader.hear(voted(MessageType::MsgRequestPreVoteResponse, 2));
    let effects = leader.hear(voted(MessageType::MsgRequestPreVoteResponse, 3));
    leader.persist(&effects);
    leader.hear(voted(MessageType::MsgRequestVoteResponse, 2));
    let effects = leader.hear(voted(MessageType::MsgRequestVoteResponse, 3));
    assert!(leader.machine.term().1);
    let effects = have_all(&mut leader, &effects, &[2, 3]);
    assert_eq!(told(&effects), Some(settled.clone()));
    assert!(effects.contains(&Effect::Deposed { tags: vec![] }), "{effects:?}");
    assert!(!effects.contains(&Effect::Removed) && !leader.machine.term().1);
    let asked: Vec<Effect> = (0..15).flat_map(|_| leader.tick()).collect();
    assert!(asked.contains(&Effect::SendNotice(id(4))), "{asked:?}");
    let asks = Message { index: 9, log_term: 2, ..message(MessageType::MsgRequestVote, 2, 3) };
    let effects = leader.hear(asks);
    assert_eq!(words(&leader.persist(&effects)), ["voted"]);
    let knows =
        |from| Event::Notice { from: id(from), cluster: ClusterId(7), seq: Seq(9), members: settled.clone() };
    assert_eq!(leader.step(knows(2)), []);
    assert_eq!(leader.step(knows(4)), [Effect::Removed]);
}

/// Appends of a leader: three others, then a change, then another one.
fn with_two_changes() -> (Members, Members, Message) {
    let one = members(3).begin(&MembersChange::Add(machine(4))).unwrap();
    let two = one.promoted().unwrap();
    let entry = |index, data: String| Entry {
        entry_type: crate::storage::entry_type(data.as_bytes()),
        term: 2,
        index,
        data: data.into(),
        ..Entry::default()
    };
    let entries = vec![entry(2, "x".to_owned()), entry(3, one.to_string()), entry(4, two.to_string())];
    let append = Message {
        index: 1,
        log_term: 1,
        commit: 4,
        entries: entries.into(),
        ..message(MessageType::MsgAppend, 1, 2)
    };
    (one, two, append)
}

#[test]
fn the_vote_file_knows_of_each_change_before_the_log_has_the_next_one() {
    let (one, two, append) = with_two_changes();
    let mut member = TestMember::new(2, 3);
    let effects = member.hear(append.clone());
    assert_eq!(records(&effects), vec![one.clone()], "the second is not taken yet");
    let effects = member.persist(&effects);
    assert_eq!(told(&effects), Some(one));
    let rest: Vec<Entry> = append.entries.iter().skip(2).cloned().collect();
    let effects = member.hear(Message { index: 3, log_term: 2, entries: rest.into(), ..append });
    assert_eq!(records(&effects), vec![two.clone()]);
    assert_eq!(batches(&effects)[0].vote.map(|(_, _, commit)| commit), Some(Seq(3)));
    assert_eq!(told(&member.persist(&effects)), Some(two));
    assert_eq!(words(&effects), Vec::<&str>::new());
}

#[test]
fn a_member_that_starts_in_the_middle_of_a_change_goes_on_with_it() {
    let (one, ..) = with_two_changes();
    let replaced = members(3).begin(&MembersChange::Replace(id(3), machine(4))).unwrap();
    assert_ne!(one, replaced);
    let joint = replaced.promoted().unwrap();
    let mut start = crate::machine::tests::start(1);
    start.records = vec![(Seq(1), joint.clone())];
    let config = crate::machine::Config::new(id(1), 3);
    let mut leader = TestMember::with(config, &start);
    assert_eq!(*leader.machine.members(), joint);
    // The first of the pre-votes and votes go to the old and the new ones.
    let asked = (0..40).map(|_| leader.tick()).find(|effects| !effects.is_empty()).unwrap();
    assert_eq!(words(&asked), ["pre-vote"; 3]);
    let voted = |kind, from| Message { from, ..message(kind, 2, 2) };
    leader.hear(voted(MessageType::MsgRequestPreVoteResponse, 3));
    let effects = leader.hear(voted(MessageType::MsgRequestPreVoteResponse, 4));
    leader.persist(&effects);
    leader.hear(voted(MessageType::MsgRequestVoteResponse, 3));
    assert!(!leader.machine.term().1, "it is no majority of the new ones");
    let effects = leader.hear(voted(MessageType::MsgRequestVoteResponse, 4));
    assert!(leader.machine.term().1);
    have_all(&mut leader, &effects, &[3, 4]);
    heard(&mut leader, &[3, 4]);
    let effects = leader.tick();
    assert_eq!(records(&effects), [joint.settled().unwrap()]);
}

#[test]
fn clients_propose_no_members() {
    let mut leader = leader();
    let data = Bytes::from(members(3).to_string());
    let proposes = std::panic::AssertUnwindSafe(|| {
        leader.step(Event::Propose(vec![(ProposalTag(1), data)]));
    });
    assert!(std::panic::catch_unwind(proposes).is_err());
}
