//! What all connection tasks of one master share with it: the inbox through which they reach it, and what is counted in all.

use super::admission::Gate;
use super::counters::ErrorCounters;
use super::heard::Said;
use super::session::{AnswerPool, Session};
use crate::batch::{Inbox, Outbox};
use crate::reading::READ_BYTES;
use crate::slave_proxy::EndReason;
use crate::turns::TurnLengths;
use actix::prelude::Recipient;
use dsm_protocol::command::Command;
use dsm_protocol::frame::FrameError;
use dsm_protocol::ids::{LinkId, Millis, SessionId};
use dsm_protocol::machine::master::{Asker, ReadId};
use dsm_protocol::message::{Hello, Message};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use tokio::sync::Notify;

/// How often it is told that somebody speaks another version of the wire, in milliseconds.
const VERSION_TOLD_EVERY_MS: u64 = 10_000;

/// Tells the master that its inbox is no longer empty.
#[derive(actix::Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct Drain;

/// What connections bring to the master.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// A session begins.
    Opened(Rc<Session>),
    /// A session asks; the answer goes to its slot.
    Request { asker: Asker, command: Command },
    /// A session is over.
    Closed(SessionId),
    /// A slave wants to register over a new link.
    SlaveHello { link: LinkId, hello: Hello, outbox: Outbox, said: Said },
    /// A slave said something.
    Slave { link: LinkId, message: Message, said: Said },
    /// A slave's link is closed.
    SlaveGone { link: LinkId, reason: EndReason },
    /// The other master has connected. `identity` is what our log is called among the masters that have a part in it.
    PeerHello { link: LinkId, hello: Hello, outbox: Outbox, identity: io::Result<String>, said: Said },
    /// The other master said something over the link that it opened.
    Peer { link: LinkId, message: Message, said: Said },
    /// That link is closed.
    PeerGone { link: LinkId },
    /// Our own link to the other master stands.
    DialedUp {
        generation: LinkId,
        /// The address that was dialed.
        address: String,
        welcome: dsm_protocol::message::Welcome,
        outbox: Outbox,
    },
    /// The other master said something over our own link.
    Dialed { generation: LinkId, message: Message, said: Said },
    /// The other master refuses us.
    DialRefused { reason: String },
    /// Our own link is closed.
    DialedDown { generation: LinkId },
    /// The log was read for a read.
    LogRead { read: ReadId, result: Result<bytes::Bytes, String> },
}

/// Calls those who keep links to other masters: one that has just connected is there, and is dialed at once.
#[derive(Debug, Default)]
pub(crate) struct PeerCalls(RefCell<BTreeMap<String, Rc<Notify>>>);

impl PeerCalls {
    /// What whoever keeps the link to the master at `peer` listens to. The addresses are those of the settings.
    pub(crate) fn keeper(&self, peer: &str) -> Rc<Notify> {
        Rc::clone(self.0.borrow_mut().entry(peer.to_owned()).or_default())
    }

    /// A master has connected that calls itself by `address`. If the settings know it by another name, it may be any of those
    /// to which no link stands, as far as `is_linked` tells.
    pub(crate) fn came(&self, address: &str, is_linked: impl Fn(&str) -> bool) {
        let keepers = self.0.borrow();
        let is_known = keepers.contains_key(address);
        let may_be = |peer: &&String| (*peer == address || !is_known) && !is_linked(peer);
        keepers.iter().filter(|(peer, _)| may_be(peer)).for_each(|(_, keeper)| keeper.notify_one());
    }
}

/// What all connection tasks of one master share.
pub(crate) struct Switchboard {
    pub(super) inbox: Inbox<Arrived>,
    pub(super) drain: Recipient<Drain>,
    pub(super) next: Cell<u64>,
    /// How long the turns of the node are.
    pub(crate) turns: Rc<TurnLengths>,
    /// Bytes and requests in flight in all, kept by the tasks and the master together.
    pub(crate) gate: Rc<Gate>,
    /// The links whose frames may be longer than a handshake's, and how long a value was asked for over each.
    pub(super) trusted: RefCell<BTreeMap<LinkId, usize>>,
    /// Bytes of the answers of all connections.
    pub(crate) answers: Rc<AnswerPool>,
    pub(crate) errors: ErrorCounters,
    /// Set when the node stops: no connection is accepted or read any more.
    pub(crate) stopping: Cell<bool>,
    pub(crate) stop: Notify,
    /// Those who keep links to other masters, to be called when one has connected.
    pub(crate) peer_calls: PeerCalls,
    /// Connections that have ended on our side and are read off, of clients that have just asked something.
    pub(super) read_off: Cell<usize>,
    /// When it was last told that somebody speaks another version.
    pub(super) version_told: Cell<Option<Millis>>,
}

impl Switchboard {
    /// A switchboard whose master drains `inbox`.
    pub(crate) fn new(
        inbox: Inbox<Arrived>,
        drain: Recipient<Drain>,
        gate: Rc<Gate>,
        answers: AnswerPool,
        turns: Rc<TurnLengths>,
    ) -> Self {
        Switchboard {
            answers: Rc::new(answers),
            turns,
            inbox,
            drain,
            next: Cell::new(1),
            gate,
            trusted: RefCell::default(),
            errors: ErrorCounters::default(),
            stopping: Cell::new(false),
            stop: Notify::new(),
            peer_calls: PeerCalls::default(),
            read_off: Cell::new(0),
            version_told: Cell::new(None),
        }
    }

    /// Says in the log that somebody speaks another version of the wire: seldom, for it tries again and again.
    pub(super) fn tell_of_version(&self, now: Millis, address: &str, error: &FrameError) {
        if self.version_told.get().is_none_or(|told| now.since(told) >= VERSION_TOLD_EVERY_MS) {
            self.version_told.set(Some(now));
            log::warn!("connection refused address={address} cause=\"{error}\"");
        }
    }

    /// Bytes of answers that wait for a socket, and one for each connection that is still read for what may have crossed its
    /// end.
    pub(crate) fn unsaid(&self) -> usize {
        self.answers.len() + self.read_off.get()
    }

    /// Brings something to the master; one message wakes it for everything that arrives in the meantime.
    pub(crate) fn push(&self, arrived: Arrived) {
        if self.inbox.push(arrived) {
            self.drain.do_send(Drain);
        }
    }

    /// Lets a link send long frames from now on: the master knows who it is and asks for them.
    pub(crate) fn trust(&self, link: LinkId) {
        self.trusted.borrow_mut().entry(link).or_default();
    }

    /// Notes that an answer of so many bytes was asked for over a trusted link. Short ones need no leave.
    pub(crate) fn expect(&self, link: LinkId, bytes: usize) {
        if bytes <= READ_BYTES {
            return;
        }
        if let Some(longest) = self.trusted.borrow_mut().get_mut(&link) {
            *longest = bytes.max(*longest);
        }
    }

    /// The longest answer that was asked for over a link; 0 when all were short.
    pub(crate) fn asked(&self, link: LinkId) -> usize {
        self.trusted.borrow().get(&link).copied().unwrap_or_default()
    }

    /// Forgets a link that is gone.
    pub(crate) fn forget(&self, link: LinkId) {
        self.trusted.borrow_mut().remove(&link);
    }

    /// A number that no session and no link of this process has had.
    pub(crate) fn next_id(&self) -> u64 {
        let next = self.next.get();
        self.next.set(next + 1);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    /// Which of these is called, now that the master has come.
    fn called(calls: &PeerCalls, came: &str, linked: &[&str]) -> Vec<&'static str> {
        let peers = ["one:1", "two:2", "three:3"];
        let keepers = peers.map(|peer| (peer, calls.keeper(peer)));
        calls.came(came, |peer| linked.contains(&peer));
        let is_called = |keeper: &Notify| {
            pin!(keeper.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        keepers.iter().filter(|(_, keeper)| is_called(keeper)).map(|(peer, _)| *peer).collect()
    }

    #[test]
    fn a_master_that_comes_calls_the_one_who_keeps_the_link_to_it() {
        let calls = PeerCalls::default();
        assert_eq!(called(&calls, "two:2", &[]), ["two:2"]);
        assert_eq!(called(&calls, "two:2", &["one:1"]), ["two:2"]);
        assert_eq!(called(&calls, "two:2", &["two:2"]), [] as [&str; 0], "the link stands");
        assert_eq!(called(&calls, "2.example:2", &["one:1"]), ["two:2", "three:3"], "it may be either");
    }
}
