//! An operator's changes of the members: what is asked, and what becomes of it.
//!
//! Owns who waits for the answer to a change, and what is shown of the members. Pure. What may be changed and when is the machine's
//! decision; a change that has begun goes on whoever leads, and nobody waits for its end here.

use dsm_consensus::ids::MemberId;
use dsm_consensus::machine::{Consensus, MemberProgress};
use dsm_consensus::members::{ChangeRefusal, MemberRole, Members, MembersChange, NewMachine};
use dsm_protocol::command::{ErrorWord, MasterName, MembersOrder};
use dsm_protocol::ids::Seq;
use dsm_protocol::info::MemberInfo;
use dsm_protocol::machine::master::Asker;

/// Whoever asked for a change is told that its outcome is unknown after so many ticks without its first record.
const UNKNOWN_AFTER_TICKS: u64 = 400;

/// A word and a reason.
pub(super) type ChangeRefused = (ErrorWord, String);

/// What an order is judged by.
pub(super) struct ChangeBasis<'a> {
    /// The members.
    pub(super) members: &'a Members,
    /// Who of the others is alive.
    pub(super) is_live: &'a dyn Fn(MemberId) -> bool,
    /// The token of a machine that asks to become a member at an address.
    pub(super) asks_at: &'a dyn Fn(&str) -> Option<u64>,
    /// When that is.
    pub(super) tick: u64,
}

/// Who waits for a change.
#[derive(Debug, Default)]
pub(super) struct MembersChanging {
    waiting: Option<WaitingForChange>,
}

/// Who waits for the first record of a change.
#[derive(Debug)]
struct WaitingForChange {
    asker: Asker,
    /// Since which tick.
    since: u64,
    /// What is told then.
    then: Result<(), ChangeRefused>,
}

impl MembersChanging {
    /// What is to be asked of the machine for an order; the one who gave it waits from then on.
    pub(super) fn begin(
        &mut self,
        order: &MembersOrder,
        basis: &ChangeBasis<'_>,
        asker: Asker,
    ) -> Result<MembersChange, ChangeRefused> {
        let ChangeBasis { members, is_live, asks_at, tick } = *basis;
        if self.waiting.is_some() {
            return Err((ErrorWord::Busy, "another change of the members is being begun".to_owned()));
        }
        let newcomer = |address: &MasterName| newcomer(address, members, asks_at);
        let mut change = match order {
            MembersOrder::Add { master } => MembersChange::Add(newcomer(master)?),
            MembersOrder::Remove { master } => MembersChange::Remove(known(members, master)?),
            MembersOrder::Replace { master, by } => {
                MembersChange::Replace(known(members, master)?, newcomer(by)?)
            }
        };
        let mut then = Ok(());
        if let MembersChange::Add(machine) | MembersChange::Replace(_, machine) = &change {
            // A process that has started anew, with an empty disk, never takes the number that was for the one before.
            let learner = members.learner().map(|(learner, _)| learner);
            let is_its =
                |id: &MemberId| members.get(*id).is_some_and(|entry| entry.address == machine.address);
            if let Some(learner) = learner.filter(is_its) {
                if is_live(learner) {
                    let why = format!("{learner} is there, and becomes a member: see members_change in INFO");
                    return Err((ErrorWord::Busy, why));
                }
                // What was asked for has not begun, and something was changed: neither *done* nor *not executed*.
                let why = format!(
                    "number {learner} is taken back, as that machine has started anew before it took it: ask again"
                );
                then = Err((ErrorWord::Unknown, why));
                change = MembersChange::Remove(learner);
            }
        }
        self.waiting = Some(WaitingForChange { asker, since: tick, then });
        Ok(change)
    }

    /// Who waits no more, and what is told if what was asked for has begun.
    pub(super) fn answered(&mut self) -> Option<(Asker, Result<(), ChangeRefused>)> {
        self.waiting.take().map(|waiting| (waiting.asker, waiting.then))
    }

    /// Whether somebody has waited for too long.
    pub(super) fn is_overdue(&self, tick: u64) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.since + UNKNOWN_AFTER_TICKS <= tick)
    }
}

/// The machine at an address that asks to become a member.
fn newcomer(
    address: &MasterName,
    members: &Members,
    asks_at: &dyn Fn(&str) -> Option<u64>,
) -> Result<NewMachine, ChangeRefused> {
    // One that has become a member by this token asks no more.
    let is_member = |token: u64| members.iter().any(|(_, entry)| entry.token == token);
    let token = asks_at(address.as_str()).filter(|token| !is_member(*token));
    let why = || {
        format!(
            "no master with an empty log asks at {address}: start one there, with a --members that names it and a master of \
             this cluster"
        )
    };
    let token = token.ok_or_else(|| (ErrorWord::Bad, why()))?;
    Ok(NewMachine { address: address.as_str().to_owned(), token })
}

/// The member that an operator names by number or address.
fn known(members: &Members, name: &MasterName) -> Result<MemberId, ChangeRefused> {
    let number = name.as_str().parse().ok().and_then(MemberId::new);
    let by_number = number.filter(|id| members.get(*id).is_some());
    // Of two at one address one takes the other's place: that is the one that is not a learner.
    let is_it = |(_, entry): &(MemberId, &dsm_consensus::members::MemberEntry)| {
        entry.address == name.as_str() && !matches!(entry.role, MemberRole::Learner { .. })
    };
    let at_address = || members.iter().find(is_it).map(|(id, _)| id);
    let learner_at = || members.iter().find(|(_, entry)| entry.address == name.as_str()).map(|(id, _)| id);
    by_number.or_else(at_address).or_else(learner_at).ok_or_else(|| {
        (ErrorWord::Bad, format!("no member is {name}: INFO lists them as member0, member1, …"))
    })
}

/// Why the machine does not begin a change.
pub(super) fn refused(why: ChangeRefusal) -> ChangeRefused {
    let busy = |text: &str| (ErrorWord::Busy, text.to_owned());
    let bad = |text: &str| (ErrorWord::Bad, text.to_owned());
    match why {
        ChangeRefusal::NotLeader => (ErrorWord::Standby, "this master does not lead".to_owned()),
        ChangeRefusal::Underway => {
            busy("another change of the members, or of who leads, is under way: see members_change in INFO")
        }
        ChangeRefusal::Unknown => bad("there is no such member, or it has no vote"),
        ChangeRefusal::Leads => bad("that member leads: let another master serve first (FAILOVER, or stop it)"),
        ChangeRefusal::Address => bad("a member has this address, or the machine is one already"),
        ChangeRefusal::TooMany => bad("there are as many members as there may be"),
        ChangeRefusal::Quorum => {
            bad("of the members that would have a vote then, no majority is alive: nothing could be written any more")
        }
        ChangeRefusal::Full => busy("too many bytes wait for a majority of the masters"),
    }
}

/// What is shown of the members.
pub(super) fn shown(machine: &Consensus, own: MemberId) -> (Vec<MemberInfo>, String) {
    let (members, progress) = (machine.members(), machine.progress());
    let leader = machine.leader();
    let leads = leader == Some(own);
    let info = |(id, entry): (MemberId, &dsm_consensus::members::MemberEntry)| {
        let known: Option<&MemberProgress> = progress.iter().find(|other| other.member == id);
        let seen = match known {
            _ if leader == Some(id) => "leads",
            Some(known) if known.is_live => "live",
            Some(_) => MemberInfo::SILENT,
            None if id == own => "live",
            None => MemberInfo::UNKNOWN,
        };
        let own_seq = if id == own { machine.committed() } else { Seq(0) };
        MemberInfo {
            id: id.get(),
            address: entry.address.clone(),
            role: role(entry.role),
            seen: seen.to_owned(),
            seq: known.map_or(own_seq, |known| known.has),
        }
    };
    let change = match members.learner() {
        Some((learner, None)) => format!("add {learner}"),
        Some((learner, Some(replaced))) => format!("replace {replaced} by {learner}"),
        None if members.is_joint() || (leads && !machine.is_settled()) => "settling".to_owned(),
        None if leads => "no".to_owned(),
        None => "unknown".to_owned(),
    };
    (members.iter().map(info).collect(), change)
}

fn role(role: MemberRole) -> String {
    match role {
        MemberRole::Voter => "voter".to_owned(),
        MemberRole::Learner { replaces: None } => "learner".to_owned(),
        MemberRole::Learner { replaces: Some(replaced) } => format!("learner/{replaced}"),
        MemberRole::Joining => "joining".to_owned(),
        MemberRole::Leaving => "leaving".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use dsm_protocol::ids::SessionId;

    fn asker(number: u64) -> Asker {
        Asker { session: SessionId(number), tag: number }
    }

    fn name(text: &str) -> MasterName {
        MasterName::new(text).unwrap()
    }

    fn three() -> Members {
        let machine = |number: u64| NewMachine { address: format!("10.0.0.{number}:1"), token: number };
        Members::first(&[machine(1), machine(2), machine(3)]).unwrap()
    }

    /// What becomes of an order when these machines ask, and nobody is alive but those.
    fn decide(
        changing: &mut MembersChanging,
        order: &MembersOrder,
        (members, live, asking): (&Members, &[u64], &[(&str, u64)]),
    ) -> Result<MembersChange, ChangeRefused> {
        let is_live = |id: MemberId| live.contains(&id.get());
        let asks_at = |address: &str| {
            let asks = asking.iter().find(|(asks, _)| *asks == address);
            asks.map(|(_, token)| *token)
        };
        let basis = ChangeBasis { members, is_live: &is_live, asks_at: &asks_at, tick: 10 };
        changing.begin(order, &basis, asker(1))
    }

    fn add(address: &str) -> MembersOrder {
        MembersOrder::Add { master: name(address) }
    }

    #[test]
    fn a_machine_is_taken_that_asks_and_no_other() {
        let mut changing = MembersChanging::default();
        let refused = decide(&mut changing, &add("d:1"), (&three(), &[], &[])).unwrap_err();
        assert_eq!(refused.0, ErrorWord::Bad);
        assert!(refused.1.contains("no master with an empty log asks at d:1"), "{}", refused.1);
        let machine = NewMachine { address: "d:1".to_owned(), token: 78 };
        let begun = decide(&mut changing, &add("d:1"), (&three(), &[], &[("d:1", 78)]));
        assert_eq!(begun, Ok(MembersChange::Add(machine)));
        let busy = decide(&mut changing, &add("d:1"), (&three(), &[], &[("d:1", 78)])).unwrap_err();
        assert_eq!(busy.0, ErrorWord::Busy, "one after the other");
        assert_eq!(changing.answered(), Some((asker(1), Ok(()))));
        assert_eq!(changing.answered(), None);
        let third = ("10.0.0.3:1", 3);
        assert!(decide(&mut changing, &add(third.0), (&three(), &[], &[third])).is_err(), "it is a member");
    }

    #[test]
    fn a_member_is_named_by_number_or_address() {
        let mut changing = MembersChanging::default();
        let third = MemberId::new(3).unwrap();
        for text in ["3", "10.0.0.3:1"] {
            let order = MembersOrder::Remove { master: name(text) };
            assert_eq!(decide(&mut changing, &order, (&three(), &[], &[])), Ok(MembersChange::Remove(third)));
            changing.answered();
        }
        assert_eq!(known(&three(), &name("4")).unwrap_err().0, ErrorWord::Bad);
        let replace = MembersOrder::Replace { master: name("10.0.0.3:1"), by: name("10.0.0.3:1") };
        let machine = NewMachine { address: "10.0.0.3:1".to_owned(), token: 9 };
        let change = MembersChange::Replace(third, machine);
        let begun = decide(&mut changing, &replace, (&three(), &[], &[("10.0.0.3:1", 9)]));
        assert_eq!(begun, Ok(change.clone()));
        let both = three().begin(&change).unwrap();
        assert_eq!(known(&both, &name("10.0.0.3:1")), Ok(third), "not the one that takes its place");
        assert_eq!(known(&both, &name("4")), Ok(MemberId::new(4).unwrap()));
    }

    #[test]
    fn the_number_of_a_newcomer_that_has_started_anew_is_taken_back_unless_that_is_there() {
        let mut changing = MembersChanging::default();
        let machine = |token| NewMachine { address: "d:1".to_owned(), token };
        let with_learner = three().begin(&MembersChange::Add(machine(7))).unwrap();
        let busy = decide(&mut changing, &add("d:1"), (&with_learner, &[4], &[("d:1", 8)])).unwrap_err();
        assert_eq!(busy.0, ErrorWord::Busy, "another one says that it is at that address");
        let begun = decide(&mut changing, &add("d:1"), (&with_learner, &[], &[("d:1", 8)]));
        assert_eq!(begun, Ok(MembersChange::Remove(MemberId::new(4).unwrap())));
        let (_, told) = changing.answered().unwrap();
        assert_eq!(told.unwrap_err().0, ErrorWord::Unknown, "it had an effect, and is to be asked for again");
        let again = decide(&mut changing, &add("d:1"), (&three(), &[], &[("d:1", 8)]));
        assert_eq!(again, Ok(MembersChange::Add(machine(8))));
    }

    #[test]
    fn who_waits_for_too_long_is_told_so_once() {
        let mut changing = MembersChanging::default();
        decide(&mut changing, &MembersOrder::Remove { master: name("3") }, (&three(), &[], &[])).unwrap();
        assert!(
            !changing.is_overdue(9 + UNKNOWN_AFTER_TICKS) && changing.is_overdue(10 + UNKNOWN_AFTER_TICKS)
        );
        assert_eq!(changing.answered(), Some((asker(1), Ok(()))));
        assert!(!changing.is_overdue(10 + UNKNOWN_AFTER_TICKS));
    }
}
