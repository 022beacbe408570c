//! How a machine with an empty disk becomes a member.
//!
//! Owns the decision: begin a cluster, take a number, or neither and why. Never gives a number to a machine whose disk has lost
//! anything: it would not know what it had promised, and a majority could forget what is committed.
//!
//! Each process that starts with an empty disk draws a token. The record of the members names the token of whoever may take a
//! number, so only a process takes it that has been there, and empty, since before that record was written. A cluster is begun by
//! the machine that all name first, once all say that they are empty and name the same ones.

use crate::ids::MemberId;
use crate::members::{Members, NewMachine};
use crate::mutant::planted;
use crate::storage::LogEntry;
use crate::wire::join::{EmptyMachine, JoinMessage};
use dsm_protocol::ids::{ClusterId, Seq, Version};
use std::collections::BTreeMap;
use std::fmt;

/// What is to be done for a machine with an empty disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinEffect {
    /// Tell this to the master at the address. It may get lost.
    Tell {
        /// Where.
        to: String,
        /// What.
        message: JoinMessage,
    },
    /// Begin a cluster: this machine's log gets the entries CLUSTER and the record of these members, in term 1, and its vote file
    /// knows both as committed. All that is synced before anybody is told. It is over then.
    Begin {
        /// The new cluster.
        cluster: ClusterId,
        /// Its members; this machine is the first.
        members: Members,
    },
    /// Become this member: the vote file is made, in term 1 and with nothing committed, and synced. The log is empty. It is over
    /// then.
    Adopt {
        /// Of which cluster.
        cluster: ClusterId,
        /// Which number.
        member: MemberId,
    },
    /// This machine is no member, and why: a line for people. It goes on asking.
    Refused(JoinRefusal),
}

/// Why a machine with an empty disk is no member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinRefusal {
    /// It was one, and its disk is another one or has lost everything.
    DiskLost {
        /// Which one.
        member: MemberId,
        /// Of which cluster.
        cluster: ClusterId,
    },
    /// Nobody has made it one.
    NotMember(ClusterId),
    /// The settings of another machine name others, or in another order.
    OthersNamed(String),
    /// The masters that it names have logs of two clusters.
    TwoClusters(ClusterId, ClusterId),
}

impl fmt::Display for JoinRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinRefusal::DiskLost { member, cluster } => write!(
                f,
                "the log is empty, but this address is member {member} of cluster {cluster}: what it had acknowledged is lost \
                 here, so it may not take part under that number again; replace member {member} by this machine"
            ),
            JoinRefusal::NotMember(cluster) => {
                write!(f, "this machine is no member of cluster {cluster}: add it, or let it take a member's place")
            }
            JoinRefusal::OthersNamed(other) => {
                write!(f, "{other} names other masters, or in another order: their settings must be the same")
            }
            JoinRefusal::TwoClusters(one, other) => {
                write!(f, "the masters that are named have logs of two clusters, {one} and {other}")
            }
        }
    }
}

/// So many reasons are given at most why a machine is no member.
const REFUSALS_MAX: usize = 16;

/// Whether a log without a vote file is what a crash has left of [`JoinEffect::Begin`]: nobody was told of it, so the disk counts as
/// empty.
pub fn is_draft(log: &[LogEntry]) -> bool {
    let is_first = |(entry, seq): (&LogEntry, u64)| {
        entry.version == Version::new(1, seq) && Members::is_record(&entry.data) == (seq == 2)
    };
    log.len() <= 2 && log.iter().zip(1..).all(is_first)
}

/// A machine with an empty disk.
#[derive(Debug)]
pub struct Newcomer {
    own: EmptyMachine,
    /// The cluster that it begins, if it does.
    cluster: ClusterId,
    /// Who said that it is empty, and its token.
    empty: BTreeMap<String, u64>,
    /// The latest that was heard of the members.
    heard: Option<(ClusterId, Seq, Members)>,
    /// What it has said, so that it says each of them once.
    said: Vec<JoinRefusal>,
    is_over: bool,
}

impl Newcomer {
    /// Starts on an empty disk. Token and cluster are drawn at random.
    pub fn new(own: EmptyMachine, cluster: ClusterId) -> Self {
        Newcomer { own, cluster, empty: BTreeMap::new(), heard: None, said: Vec::new(), is_over: false }
    }

    /// What it says of itself.
    pub fn own(&self) -> &EmptyMachine {
        &self.own
    }

    /// Asks all others. To be called now and then.
    pub fn ask(&mut self, effects: &mut Vec<JoinEffect>) {
        let others = self.own.named.iter().filter(|address| **address != self.own.address);
        for to in others.filter(|_| !self.is_over) {
            effects.push(JoinEffect::Tell { to: to.clone(), message: JoinMessage::Asks(self.own.clone()) });
        }
        self.begin_if_all_are_empty(effects);
    }

    /// Hears a message. The peer has proved who it is.
    pub fn hear(&mut self, message: JoinMessage, effects: &mut Vec<JoinEffect>) {
        if self.is_over {
            return;
        }
        match message {
            JoinMessage::Asks(other) => {
                let message = JoinMessage::IsEmpty(self.own.clone());
                effects.push(JoinEffect::Tell { to: other.address, message });
            }
            JoinMessage::IsEmpty(other) => self.hear_empty(other, effects),
            JoinMessage::Members { cluster, seq, members } => {
                self.hear_members(cluster, seq, members, effects);
            }
        }
    }

    fn hear_empty(&mut self, other: EmptyMachine, effects: &mut Vec<JoinEffect>) {
        // What a machine says that this one does not name is nothing to it.
        if !self.own.named.contains(&other.address) {
            return;
        }
        if other.named == self.own.named && other.address != self.own.address {
            self.empty.insert(other.address, other.token);
            self.begin_if_all_are_empty(effects);
        } else {
            self.refuse(JoinRefusal::OthersNamed(other.address), effects);
        }
    }

    /// Begins a cluster if this machine is the one to do so, and nobody has a log.
    fn begin_if_all_are_empty(&mut self, effects: &mut Vec<JoinEffect>) {
        let EmptyMachine { token, address, named } = &self.own;
        let token_of = |named: &String| {
            if named == address {
                Some(*token)
            } else {
                self.empty.get(named).copied()
            }
        };
        let machine = |named: &String| Some(NewMachine { address: named.clone(), token: token_of(named)? });
        let machines: Option<Vec<NewMachine>> = named.iter().map(machine).collect();
        if self.is_over || self.heard.is_some() || named.first() != Some(address) {
            return;
        }
        if let Some(members) = machines.and_then(|machines| Members::first(&machines).ok()) {
            self.is_over = true;
            effects.push(JoinEffect::Begin { cluster: self.cluster, members });
        }
    }

    fn hear_members(
        &mut self,
        cluster: ClusterId,
        seq: Seq,
        members: Members,
        effects: &mut Vec<JoinEffect>,
    ) {
        let own = |(_, member): &(MemberId, &crate::members::MemberEntry)| {
            let is_at = member.address == self.own.address;
            member.token == self.own.token || (planted!(NumberTakenAgain) && is_at)
        };
        if let Some((member, _)) = members.iter().find(own) {
            self.is_over = true;
            effects.push(JoinEffect::Adopt { cluster, member });
            return;
        }
        match &self.heard {
            Some((other, ..)) if *other != cluster => {
                let other = *other;
                return self.refuse(JoinRefusal::TwoClusters(other, cluster), effects);
            }
            // Of one that is behind nothing is learned.
            Some((_, known, _)) if *known > seq => return,
            Some(_) | None => self.heard = Some((cluster, seq, members.clone())),
        }
        if members.is_empty() {
            return;
        }
        let at_address = members.iter().find(|(_, member)| member.address == self.own.address);
        self.refuse(
            match at_address {
                Some((member, _)) => JoinRefusal::DiskLost { member, cluster },
                None => JoinRefusal::NotMember(cluster),
            },
            effects,
        );
    }

    /// Says why not, unless it has said so, or as much as anybody would read.
    fn refuse(&mut self, why: JoinRefusal, effects: &mut Vec<JoinEffect>) {
        if self.said.len() < REFUSALS_MAX && !self.said.contains(&why) {
            self.said.push(why.clone());
            effects.push(JoinEffect::Refused(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "10.0.0.1:12345";
    const B: &str = "10.0.0.2:12345";
    const C: &str = "10.0.0.3:12345";

    fn empty(address: &str, token: u64, named: &[&str]) -> EmptyMachine {
        let named = named.iter().map(|named| (*named).to_owned()).collect();
        EmptyMachine { token, address: address.to_owned(), named }
    }

    fn newcomer(address: &str, token: u64) -> Newcomer {
        Newcomer::new(empty(address, token, &[A, B, C]), ClusterId(token))
    }

    fn hear(newcomer: &mut Newcomer, message: JoinMessage) -> Vec<JoinEffect> {
        let mut effects = Vec::new();
        newcomer.hear(message, &mut effects);
        effects
    }

    fn is_empty(address: &str, token: u64) -> JoinMessage {
        JoinMessage::IsEmpty(empty(address, token, &[A, B, C]))
    }

    fn members() -> Members {
        let machine = |address: &str, token| NewMachine { address: address.to_owned(), token };
        Members::first(&[machine(A, 1), machine(B, 2), machine(C, 3)]).unwrap()
    }

    fn told(cluster: u64, seq: u64, members: Members) -> JoinMessage {
        JoinMessage::Members { cluster: ClusterId(cluster), seq: Seq(seq), members }
    }

    #[test]
    fn the_first_one_begins_a_cluster_once_all_say_that_they_are_empty() {
        let mut first = newcomer(A, 1);
        let mut asked = Vec::new();
        first.ask(&mut asked);
        let asks = |to: &str| JoinEffect::Tell {
            to: to.to_owned(),
            message: JoinMessage::Asks(empty(A, 1, &[A, B, C])),
        };
        assert_eq!(asked, [asks(B), asks(C)]);
        assert_eq!(hear(&mut first, is_empty(B, 2)), []);
        let begins = JoinEffect::Begin { cluster: ClusterId(1), members: members() };
        assert_eq!(hear(&mut first, is_empty(C, 3)), [begins]);
        assert_eq!(hear(&mut first, is_empty(C, 3)), [], "it is over");
    }

    #[test]
    fn no_other_one_begins_a_cluster_nor_one_that_hears_of_a_log() {
        let mut second = newcomer(B, 2);
        hear(&mut second, is_empty(A, 1));
        assert_eq!(hear(&mut second, is_empty(C, 3)), []);
        let mut first = newcomer(A, 1);
        hear(&mut first, is_empty(B, 2));
        assert_eq!(hear(&mut first, told(7, 0, Members::default())), []);
        assert_eq!(hear(&mut first, is_empty(C, 3)), []);
    }

    #[test]
    fn an_empty_machine_says_so_to_who_asks() {
        let mut second = newcomer(B, 2);
        let answer = JoinEffect::Tell { to: A.to_owned(), message: is_empty(B, 2) };
        assert_eq!(hear(&mut second, JoinMessage::Asks(empty(A, 1, &[A, B, C]))), [answer]);
    }

    #[test]
    fn a_number_is_taken_by_the_process_that_the_record_names_alone() {
        let id = |number| MemberId::new(number).unwrap();
        let adopts = JoinEffect::Adopt { cluster: ClusterId(7), member: id(2) };
        assert_eq!(hear(&mut newcomer(B, 2), told(7, 2, members())), [adopts]);
        let lost = JoinRefusal::DiskLost { member: id(2), cluster: ClusterId(7) };
        let mut again = newcomer(B, 99);
        assert_eq!(hear(&mut again, told(7, 2, members())), [JoinEffect::Refused(lost.clone())]);
        assert_eq!(hear(&mut again, told(7, 3, members())), [], "it says so once");
        assert!(lost.to_string().contains("is member 2 of cluster") && !lost.to_string().contains('\n'));
    }

    #[test]
    fn a_machine_that_nobody_has_added_says_so_and_takes_its_number_once_it_is() {
        let mut fourth = newcomer("10.0.0.4:12345", 4);
        let refused = JoinEffect::Refused(JoinRefusal::NotMember(ClusterId(7)));
        assert_eq!(hear(&mut fourth, told(7, 2, members())), [refused]);
        let machine = NewMachine { address: "10.0.0.4:12345".to_owned(), token: 4 };
        let added = members().begin(&crate::members::MembersChange::Add(machine)).unwrap();
        let adopts = JoinEffect::Adopt { cluster: ClusterId(7), member: MemberId::new(4).unwrap() };
        assert_eq!(hear(&mut fourth, told(7, 9, added)), [adopts]);
    }

    #[test]
    fn what_a_crash_left_of_a_beginning_counts_as_empty_and_nothing_else_does() {
        let entry = |term, seq, data: &str| LogEntry {
            version: Version::new(term, seq),
            data: data.to_owned().into(),
        };
        let words = members().to_string();
        let begun = [entry(1, 1, "CLUSTER"), entry(1, 2, &words)];
        assert!((0..=2).all(|written| is_draft(&begun[..written])));
        let [cluster, record] = begun;
        assert!(!is_draft(&[cluster.clone(), entry(1, 2, "WRITE")]));
        assert!(!is_draft(&[cluster.clone(), entry(2, 2, &words)]));
        assert!(!is_draft(&[cluster, record, entry(2, 3, "")]));
    }

    #[test]
    fn others_that_name_others_and_logs_of_two_clusters_are_refused() {
        let mut first = newcomer(A, 1);
        let others = JoinMessage::IsEmpty(empty(B, 2, &[B, A, C]));
        let refused = JoinEffect::Refused(JoinRefusal::OthersNamed(B.to_owned()));
        assert_eq!(hear(&mut first, others), [refused]);
        assert_eq!(hear(&mut first, is_empty(C, 3)), []);
        let mut fourth = newcomer("10.0.0.4:12345", 4);
        hear(&mut fourth, told(7, 2, members()));
        let refused = JoinEffect::Refused(JoinRefusal::TwoClusters(ClusterId(7), ClusterId(8)));
        assert_eq!(hear(&mut fourth, told(8, 2, members())), [refused]);
        assert_eq!(hear(&mut fourth, told(7, 3, members())), [], "it has said that, too");
        assert_eq!(hear(&mut fourth, told(8, 3, members())), []);
    }

    #[test]
    fn what_machines_say_that_it_does_not_name_is_nothing_to_a_newcomer() {
        let mut first = newcomer(A, 99);
        for number in 0..1000 {
            assert_eq!(hear(&mut first, is_empty(&format!("10.1.0.1:{number}"), number)), []);
        }
        assert_eq!(first.empty.len(), 0);
        for cluster in 1..100 {
            hear(&mut first, told(cluster, 2, members()));
        }
        assert_eq!(first.said.len(), REFUSALS_MAX);
    }
}
