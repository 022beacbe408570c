//! The log of masters on several machines: each keeps one of its own, and Raft keeps them equal.
//!
//! [`RaftJournal`] is the journal that a master holds. Its `keeper` holds the machine of `dsm-consensus`, which decides
//! everything, and brings its words and those of the port together; `appends` keeps the answers to a leader's appends in their order,
//! `follower` what a follower is told, `changing`
//! who waits for a change of the members, `acquaintances` who speaks that is none. [`disk`] is one member's log and vote file, served by
//! the task in `disk_task`; [`start`] finds at a start what is there, `lines` an entry's line in the file. `compactor` makes a compacted
//! copy, `arriving` writes a leader's, and `disk::swaps` puts either in the log's place.
//!
//! Members reach each other by [`MemberLinks`]: `dialed` has those of a node, each member dials all others, and what it hears comes over
//! the links that they have opened, through [`RaftMembers`]. See *The seat* in `docs/ARCHITECTURE.md`.
//!
//! **Invariant:** everything here that a disk holds is one member's own: places, SYNCED and the marks differ between members, the
//! words of the entries do not.

mod acquaintances;
mod appends;
mod arriving;
mod changing;
mod compactor;
mod dialed;
pub mod disk;
mod disk_task;
mod follower;
mod keeper;
mod lines;
pub mod start;

pub use lines::EntryLine;

use super::shared_file::words::what_lacks;
use super::{Hindrance, Journal, LogEvent, LogRequest, MakesJournal, Seat, Wording};
use crate::env::Env;
use crate::supervision::Fate;
use crate::turns::TurnLengths;
use actix::prelude::*;
use bytes::Bytes;
use dsm_consensus::ids::MemberId;
use dsm_protocol::ids::ClusterId;
use keeper::{LeaveLog, RaftKeeper, Requests, RequestsWait};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

/// Carries what members say to each other. It may get lost, and what does not fit is dropped; it is never doubled or changed, and
/// what one member says to another comes in its order.
pub trait MemberLinks {
    /// Sends this to the master at the address.
    fn send(&mut self, to: &str, said: MemberSaid);

    /// These are the masters to which something may be said from now on. Those that the settings name are among them.
    fn reach(&mut self, masters: BTreeSet<String>);
}

/// What one master says to another that keeps the same log.
#[derive(Clone, Debug)]
pub struct MemberSaid {
    /// Where the sender is reached.
    pub address: String,
    /// Whose log the sender has, and which member it is; `None` while it is none. A link has proved it.
    pub from: Option<(ClusterId, MemberId)>,
    /// The body: see `docs/FORMATS.md`, *What members say to each other*.
    pub body: Bytes,
}

/// What comes from another master.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub enum FromMember {
    /// It says this, in this order.
    Said(Vec<MemberSaid>),
    /// The last connection by which this member was heard from this address has ended, and not because this side closed it.
    LinkDown {
        /// Whose log it has, and which member it is.
        from: (ClusterId, MemberId),
        /// Where it said that it is reached.
        address: String,
    },
}

/// What a [`RaftJournal`] is made from.
pub struct RaftSetup {
    /// The world that it runs in.
    pub env: Env,
    /// The path of the log. The vote file is beside it.
    pub path: PathBuf,
    /// The longest line, in bytes.
    pub line_bytes_max: usize,
    /// So much must be superseded before the log is compacted, in bytes, and at least so much is kept as entries. 0: it is never
    /// compacted.
    pub compact_min_bytes: u64,
    /// The address at which others reach this master.
    pub address: String,
    /// The masters that the settings name, in the same order on all machines, this one among them.
    pub named: Vec<String>,
    /// How the node ends.
    pub fate: Fate,
    /// Who hears what happens.
    pub events: Recipient<LogEvent>,
}

/// How what members say comes to the log of one master: its door gives it to whom this names.
#[derive(Clone, Default)]
pub struct RaftMembers(Rc<HeardMembers>);

/// A member, and where it says that it is reached.
type HeardAs = ((ClusterId, MemberId), String);

#[derive(Default)]
struct HeardMembers {
    port: RefCell<Option<Recipient<FromMember>>>,
    /// Over how many links a member is heard, by the address that it gives: another one may claim its number.
    links: RefCell<BTreeMap<HeardAs, usize>>,
}

/// A link by which another master is heard. The end of a member's last one is told with its drop.
pub(crate) struct HeardLink {
    members: RaftMembers,
    port: Recipient<FromMember>,
    /// Where the other side says that it is reached.
    address: String,
    from: Option<(ClusterId, MemberId)>,
    is_cut: bool,
}

impl HeardLink {
    /// Where to give what is heard.
    pub(crate) fn port(&self) -> &Recipient<FromMember> {
        &self.port
    }

    /// Notes who speaks; whether it may be the one who has spoken so far. Whoever was no member may become one.
    pub(crate) fn speaks(&mut self, from: Option<(ClusterId, MemberId)>) -> bool {
        if self.from == from {
            return true;
        }
        if let (None, Some(member)) = (self.from, from) {
            let key = (member, self.address.clone());
            *self.members.0.links.borrow_mut().entry(key).or_default() += 1;
            self.from = from;
            return true;
        }
        false
    }

    /// This side closes it.
    pub(crate) fn cut(&mut self) {
        self.is_cut = true;
    }
}

impl Drop for HeardLink {
    fn drop(&mut self) {
        let Some(from) = self.from else { return };
        let mut links = self.members.0.links.borrow_mut();
        let key = (from, std::mem::take(&mut self.address));
        let left = links.get_mut(&key).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left > 0 {
            return;
        }
        links.remove(&key);
        if !self.is_cut {
            self.port.do_send(FromMember::LinkDown { from, address: key.1 });
        }
    }
}

impl RaftMembers {
    /// A link by which another master is heard that is reached at `address`, once there is a log.
    pub(crate) fn heard(&self, address: &str) -> Option<HeardLink> {
        let (port, address) = (self.0.port.borrow().clone()?, address.to_owned());
        Some(HeardLink { members: self.clone(), port, address, from: None, is_cut: false })
    }

    /// Gives what makes the log of a master, and its links to the other members.
    pub(super) fn of_master(&self, seat: &Seat<'_>) -> MakesJournal {
        let Seat { env, config, address, line_bytes_max, fate, .. } = seat;
        let (port, env, fate, address) =
            (self.clone(), Rc::clone(env), (*fate).clone(), (*address).to_owned());
        let (path, line_bytes_max) = (config.log.clone(), *line_bytes_max);
        let compact_min_bytes = config.compact_min.as_u64();
        let named = config.member_addresses();
        let introduction = dialed::MemberIntroduction::of(seat);
        Box::new(move |events, turns| {
            let links = dialed::DialedMembers::new(introduction, Rc::clone(&turns));
            let setup =
                RaftSetup { env, path, line_bytes_max, compact_min_bytes, address, named, fate, events };
            let journal = RaftJournal::counting(setup, turns, Box::new(links));
            *port.0.port.borrow_mut() = Some(journal.port());
            Box::new(journal)
        })
    }
}

/// A master's part in a log that masters on several machines keep.
pub struct RaftJournal {
    keeper: Addr<RaftKeeper>,
    requests: Requests,
    /// The path of its own log.
    path: PathBuf,
}

impl RaftJournal {
    /// Opens the log, and begins to follow it.
    pub fn begin(setup: RaftSetup, links: Box<dyn MemberLinks>) -> Self {
        let turns = TurnLengths::new(Rc::clone(&setup.env));
        Self::counting(setup, turns, links)
    }

    /// The same, and counts its turns among those of its node.
    fn counting(setup: RaftSetup, turns: Rc<TurnLengths>, links: Box<dyn MemberLinks>) -> Self {
        let path = setup.path.clone();
        let requests = Requests::default();
        let keeper = RaftKeeper::new(setup, turns, Rc::clone(&requests), links).start();
        RaftJournal { keeper, requests, path }
    }

    /// Where to give what other members say.
    pub fn port(&self) -> Recipient<FromMember> {
        self.keeper.clone().recipient()
    }
}

impl Journal for RaftJournal {
    fn ask(&mut self, request: LogRequest) {
        // Admission has counted these requests, so the mailbox is bounded by the permits.
        let mut requests = self.requests.borrow_mut();
        requests.push_back(request);
        if requests.len() == 1 {
            self.keeper.do_send(RequestsWait);
        }
    }

    /// Whoever hangs says nothing to the other members, either: they elect another one.
    fn advance(&self) {}

    /// Another member may have been elected while this process was stopped, or cut off.
    fn confirms(&self) -> bool {
        true
    }

    fn words(&self, wording: Wording<'_>) -> String {
        let shown = self.path.display().to_string();
        match wording {
            Wording::Place => shown,
            Wording::HowToShare => format!("{shown}: one of its own on each machine"),
            Wording::Won => "elected".to_owned(),
            Wording::AnotherLog => format!("another log is there path={shown}"),
            Wording::WaitsFor(Hindrance::Barred { sight, .. }) => {
                format!("the log at {shown} does not continue what was replayed: {sight}")
            }
            Wording::DoesNotServe(Hindrance::Barred { sight, .. }) => format!(
                "not serving: the log at {shown} does not continue what was replayed: {sight}; restart this master"
            ),
            Wording::WaitsFor(Hindrance::Lacks(lack)) => what_lacks(lack, &shown),
            Wording::DoesNotServe(Hindrance::Lacks(lack)) => {
                format!("not serving: {}; the majority's log counts, so this is not to be", what_lacks(lack, &shown))
            }
        }
    }
}

impl Drop for RaftJournal {
    fn drop(&mut self) {
        self.keeper.do_send(LeaveLog);
    }
}
