//! The record's text, and which record follows which.

use super::*;
use proptest::prelude::*;
use raft::storage::MemStorage;
use raft::RawNode;

fn id(number: u64) -> MemberId {
    MemberId::new(number).unwrap()
}

fn machine(number: u64) -> NewMachine {
    NewMachine { address: format!("10.0.0.{number}:12345"), token: number * 0x11 }
}

fn three() -> Members {
    Members::first(&[machine(1), machine(2), machine(3)]).unwrap()
}

#[test]
fn the_record_is_readable_text_and_comes_back_from_it() {
    let members = three().begin(&MembersChange::Replace(id(2), machine(4))).unwrap();
    let text = members.to_string();
    assert_eq!(
        text,
        "MEMBERS next=5,prefer=1 1=voter@10.0.0.1:12345~0000000000000011,\
         2=voter@10.0.0.2:12345~0000000000000022,3=voter@10.0.0.3:12345~0000000000000033,\
         4=learner/2@10.0.0.4:12345~0000000000000044"
    );
    let joint = members.promoted().unwrap();
    for members in [members, joint.clone(), joint.settled().unwrap()] {
        assert_eq!(Members::parse(members.to_string().as_bytes()), Some(members));
    }
}

#[test]
fn text_that_makes_no_sense_is_no_record() {
    let good = three().to_string();
    assert!(Members::parse(good.as_bytes()).is_some());
    for (from, to) in [
        ("next=4", "next=3"),
        ("next=4", "next=04"),
        ("prefer=1", "prefer=x"),
        ("3=voter", "3=leaving"),
        ("3=voter", "3=learner/7"),
        ("3=voter", "3=joining"),
        ("3=voter", "0=voter"),
        ("~0000000000000033", ""),
        ("3=voter@10.0.0.3:12345", "3=voter@"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        assert_eq!(Members::parse(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn a_number_is_never_given_twice() {
    let mut members = three();
    for number in 4..10 {
        members = members.begin(&MembersChange::Add(machine(number))).unwrap();
        assert_eq!(members.learner(), Some((id(number), None)));
        members = members.begin(&MembersChange::Remove(id(number))).unwrap();
        assert!(members.was_removed(id(number)));
        assert!(!members.was_removed(id(number + 1)));
    }
}

#[test]
fn a_machine_takes_a_members_place_by_way_of_both_and_with_its_preference() {
    let learner =
        three().begin(&MembersChange::Replace(id(1), NewMachine { token: 9, ..machine(1) })).unwrap();
    assert_eq!(learner.promoted().map(|joint| joint.is_joint()), Some(true));
    let joint = learner.promoted().unwrap();
    let live = |ids: &'static [u64]| move |member: MemberId| ids.contains(&member.get());
    assert!(joint.has_quorum(live(&[2, 3])));
    assert!(!joint.has_quorum(live(&[1, 2])), "no majority of the new ones");
    assert!(!joint.has_quorum(live(&[4, 2])), "no majority of the old ones");
    let settled = joint.settled().unwrap();
    assert_eq!(settled.voters().collect::<Vec<_>>(), [id(2), id(3), id(4)]);
    assert_eq!((settled.preferred(), settled.was_removed(id(1))), (Some(id(4)), true));
}

#[test]
fn one_change_at_a_time_and_none_that_leaves_nobody() {
    let learner = three().begin(&MembersChange::Add(machine(4))).unwrap();
    assert_eq!(learner.begin(&MembersChange::Add(machine(5))), Err(ChangeRefusal::Underway));
    assert_eq!(learner.begin(&MembersChange::Remove(id(1))), Err(ChangeRefusal::Underway));
    assert_eq!(three().begin(&MembersChange::Remove(id(4))), Err(ChangeRefusal::Unknown));
    assert_eq!(three().begin(&MembersChange::Add(machine(3))), Err(ChangeRefusal::Address));
    let strange = NewMachine { address: "a,b".to_owned(), token: 7 };
    assert_eq!(three().begin(&MembersChange::Add(strange)), Err(ChangeRefusal::Address));
    let alone = Members::first(&[machine(1)]).unwrap();
    assert_eq!(alone.begin(&MembersChange::Remove(id(1))), Err(ChangeRefusal::Quorum));
    let ten: Vec<NewMachine> = (1..11).map(machine).collect();
    assert_eq!(Members::first(&ten), Err(ChangeRefusal::TooMany));
}

/// Every record that can be reached from three members by a few changes.
fn reachable() -> Vec<Members> {
    let mut all = vec![Members::default(), three()];
    for round in 0..3 {
        for at in 1..all.len() {
            let members = all[at].clone();
            let changes = [
                MembersChange::Add(machine(20 + round)),
                MembersChange::Remove(id(2)),
                MembersChange::Remove(id(4)),
                MembersChange::Replace(id(3), machine(30 + round)),
            ];
            let next = changes.iter().filter_map(|change| members.begin(change).ok());
            for next in next.chain(members.promoted()).chain(members.settled()) {
                if !all.contains(&next) {
                    all.push(next);
                }
            }
        }
    }
    all
}

/// The engine that has these members.
fn engine(members: &Members) -> RawNode<MemStorage> {
    let storage = MemStorage::new_with_conf_state((members.conf_state().voters.clone(), vec![]));
    storage.wl().set_conf_state(members.conf_state());
    let config = raft::Config { id: 99, ..raft::Config::default() };
    RawNode::new(&config, storage, &slog::Logger::root(slog::Discard, slog::o!())).unwrap()
}

fn sorted(mut state: ConfState) -> ConfState {
    for ids in [&mut state.voters, &mut state.voters_outgoing, &mut state.learners] {
        ids.sort_unstable();
    }
    state
}

#[test]
fn the_engine_comes_from_any_members_to_any_others_and_by_one_step_to_the_next() {
    let all = reachable();
    assert!(all.len() > 20, "{}", all.len());
    for from in &all {
        for to in all.iter().filter(|to| !to.is_empty()) {
            let mut engine = engine(from);
            let steps = to.steps_from(&from.conf_state(), id(99));
            let mut state = from.conf_state();
            for step in &steps {
                state = engine.apply_conf_change(step).unwrap();
            }
            assert_eq!(sorted(state), sorted(to.conf_state()), "{from} -> {to}");
            if from.promoted().as_ref() == Some(to) || from.settled().as_ref() == Some(to) {
                assert_eq!(steps.len(), 1, "{from} -> {to}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_do_harm(at in 0..130_usize, byte: u8) {
        let mut bytes = three().to_string().into_bytes();
        let place = at.min(bytes.len() - 1);
        bytes[place] = byte;
        if let Some(members) = Members::parse(&bytes) {
            prop_assert_eq!(members.to_string().into_bytes(), bytes);
        }
    }
}
