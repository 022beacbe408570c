//! The log of masters on several machines: each keeps one of its own, and Raft keeps them equal.
//!
//! [`RaftJournal`] is the journal that a master holds. Its `keeper` holds the machine of `dsm-consensus`, which decides
//! everything, and brings its words and those of the port together; `appends` keeps the answers to a leader's appends in their order,
//! `follower` what a follower is told. [`disk`] is one member's log and vote file, served by the task in `disk_task`; [`start`] finds at a
//! start what is there, `lines` an entry's line in the file.
//!
//! How members reach each other is not built: who makes a [`RaftJournal`] passes [`MemberLinks`], and no program does. See *The seat* in
//! `docs/ARCHITECTURE.md`.
//!
//! **Invariant:** everything here that a disk holds is one member's own: places, SYNCED and the marks differ between members, the
//! words of the entries do not.

mod appends;
pub mod disk;
mod disk_task;
mod follower;
mod keeper;
mod lines;
pub mod start;

pub use lines::EntryLine;

use super::shared_file::words::what_lacks;
use super::{Hindrance, Journal, LogEvent, LogRequest, Wording};
use crate::env::Env;
use crate::supervision::Fate;
use actix::prelude::*;
use bytes::Bytes;
use dsm_consensus::ids::MemberId;
use dsm_protocol::ids::ClusterId;
use keeper::{LeaveLog, RaftKeeper, Requests, RequestsWait};
use std::path::PathBuf;
use std::rc::Rc;

/// Carries what members say to each other. It may get lost, and what does not fit is dropped; it is never doubled or changed, and
/// what one member says to another comes in its order.
pub trait MemberLinks {
    /// Sends this to the master at the address.
    fn send(&mut self, to: &str, said: MemberSaid);
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
    /// It says this.
    Said(MemberSaid),
    /// The connection with this member has ended, and not because this side closed it.
    LinkDown(MemberId),
}

/// What a [`RaftJournal`] is made from.
pub struct RaftSetup {
    /// The world that it runs in.
    pub env: Env,
    /// The path of the log. The vote file is beside it.
    pub path: PathBuf,
    /// The longest line, in bytes.
    pub line_bytes_max: usize,
    /// The address at which others reach this master.
    pub address: String,
    /// The masters that the settings name, in the same order on all machines, this one among them.
    pub named: Vec<String>,
    /// How the node ends.
    pub fate: Fate,
    /// Who hears what happens.
    pub events: Recipient<LogEvent>,
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
        let path = setup.path.clone();
        let requests = Requests::default();
        let keeper = RaftKeeper::new(setup, Rc::clone(&requests), links).start();
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
