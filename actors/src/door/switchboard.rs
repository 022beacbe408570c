//! What all connection tasks of one master share with it: the master's inbox, and the counters of all connections.

use super::admission::{ConnectionPlace, Gate};
use super::counters::ErrorCounters;
use super::heard::Said;
use super::session::{AnswerPool, Session};
use crate::batch::{Inbox, Outbox};
use crate::flusher::Flusher;
use crate::reading::READ_BYTES;
use crate::slave_proxy::EndReason;
use crate::turns::TurnLengths;
use actix::prelude::Recipient;
use dsm_protocol::acl::Accounts;
use dsm_protocol::command::Command;
use dsm_protocol::frame::FrameError;
use dsm_protocol::handshake::Rejection;
use dsm_protocol::ids::{LinkId, Millis, SessionId};
use dsm_protocol::machine::master::{Asker, ReadId};
use dsm_protocol::message::{Hello, Message};
use dsm_protocol::serving_view::SharedView;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use tokio::sync::Notify;

/// How often a peer with another version of the wire is logged, in milliseconds.
const VERSION_TOLD_EVERY_MS: u64 = 10_000;

/// How often the same refused proof of one address is logged, in milliseconds; and of how many that is known.
const PROOF_TOLD_EVERY_MS: u64 = 60_000;
const PROOFS_TOLD_MAX: usize = 64;

/// Tells the master that its inbox is no longer empty.
#[derive(actix::Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct Drain;

/// What connections put into the master's inbox.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// A session begins.
    Opened(Rc<Session>),
    /// A session asks; the answer goes to its place in the session.
    Request { asker: Asker, command: Command },
    /// A session is over.
    Closed(SessionId),
    /// A slave wants to register over a new link.
    SlaveHello { link: LinkId, hello: Hello, outbox: Outbox, said: Said },
    /// A slave has sent a message.
    Slave { link: LinkId, message: Message, said: Said },
    /// A slave's link is closed.
    SlaveGone { link: LinkId, reason: EndReason },
    /// The other master has connected. `identity` is what our log is called among the masters that have a part in it.
    PeerHello { link: LinkId, hello: Hello, outbox: Outbox, identity: io::Result<String>, said: Said },
    /// The other master has sent a message over the link that it opened.
    Peer { link: LinkId, message: Message, said: Said },
    /// That link is closed.
    PeerGone { link: LinkId },
    /// The link that we dialed to the other master is established.
    DialedUp {
        generation: LinkId,
        /// The address that was dialed.
        address: String,
        welcome: dsm_protocol::message::Welcome,
        outbox: Outbox,
    },
    /// The other master has sent a message over the link that we dialed.
    Dialed { generation: LinkId, message: Message, said: Said },
    /// The other master refuses us.
    DialRefused { address: String, reason: String },
    /// The link that we dialed is closed.
    DialedDown { generation: LinkId },
    /// A value was read from the log for a read.
    LogRead { read: ReadId, result: Result<bytes::Bytes, String> },
}

/// Wakes the tasks that keep links to other masters: a master that has just connected is alive, and is dialed at once.
#[derive(Debug, Default)]
pub(crate) struct PeerCalls(RefCell<BTreeMap<String, Rc<Notify>>>);

impl PeerCalls {
    /// The notification for the task that keeps the link to the master at `peer`, an address of the settings.
    pub(crate) fn keeper(&self, peer: &str) -> Rc<Notify> {
        Rc::clone(self.0.borrow_mut().entry(peer.to_owned()).or_default())
    }

    /// A master has connected and gives `address` as its own. If the settings know it by another name, it may be any of those
    /// for which `is_linked` tells that there is no link.
    pub(crate) fn came(&self, address: &str, is_linked: impl Fn(&str) -> bool) {
        let keepers = self.0.borrow();
        let is_known = keepers.contains_key(address);
        let may_be = |peer: &&String| (*peer == address || !is_known) && !is_linked(peer);
        keepers.iter().filter(|(peer, _)| may_be(peer)).for_each(|(_, keeper)| keeper.notify_one());
    }
}

/// What is noted of a link that is read.
#[derive(Default)]
struct ReadLink {
    /// Its place, if it was accepted.
    place: Option<Rc<ConnectionPlace>>,
    /// If its frames may be longer than one of the handshake: the longest value that was asked for over it, in bytes.
    longest: Option<usize>,
}

/// What all connection tasks of one master share.
pub(crate) struct Switchboard {
    pub(super) inbox: Inbox<Arrived>,
    pub(super) drain: Recipient<Drain>,
    pub(super) next: Cell<u64>,
    /// The lengths of the node's turns.
    pub(crate) turns: Rc<TurnLengths>,
    /// The limits on connections, requests and bytes, shared by the tasks and the master.
    pub(crate) gate: Rc<Gate>,
    /// The links that are read, each from the begin of its task to its end.
    links: RefCell<BTreeMap<LinkId, ReadLink>>,
    /// Bytes of the answers of all connections.
    pub(crate) answers: Rc<AnswerPool>,
    /// Writes the answers of the master's turns.
    pub(crate) flusher: Rc<Flusher>,
    pub(crate) errors: ErrorCounters,
    /// The users, and what was refused to them.
    pub(crate) accounts: Rc<Accounts>,
    /// Set when the node stops: connections are then neither accepted nor read.
    pub(crate) stopping: Cell<bool>,
    pub(crate) stop: Notify,
    /// Set when the node ends although its log is not closed: the process keeps the lock, and another master waits for it.
    pub(crate) is_over_time: Cell<bool>,
    /// Wakes the tasks that keep links to other masters.
    pub(crate) peer_calls: PeerCalls,
    /// Who serves, as the master knows.
    pub(crate) view: SharedView,
    /// Notified when that is another one.
    pub(crate) view_changed: Notify,
    /// Connections of recently active clients that have ended on our side and are still read off.
    pub(super) read_off: Cell<usize>,
    /// When a peer with another version was last logged.
    pub(super) version_told: Cell<Option<Millis>>,
    /// Whose proofs were refused lately, with which words, and when that was logged.
    proofs_told: RefCell<BTreeMap<(String, String), Millis>>,
}

impl Switchboard {
    /// A switchboard whose master drains `inbox`.
    pub(crate) fn new(
        inbox: Inbox<Arrived>,
        drain: Recipient<Drain>,
        gate: Rc<Gate>,
        answers: AnswerPool,
        turns: Rc<TurnLengths>,
        accounts: Rc<Accounts>,
    ) -> Self {
        Switchboard {
            answers: Rc::new(answers),
            flusher: Rc::default(),
            turns,
            inbox,
            drain,
            next: Cell::new(1),
            gate,
            links: RefCell::default(),
            errors: ErrorCounters::default(),
            accounts,
            stopping: Cell::new(false),
            stop: Notify::new(),
            is_over_time: Cell::new(false),
            peer_calls: PeerCalls::default(),
            view: SharedView::default(),
            view_changed: Notify::new(),
            read_off: Cell::new(0),
            version_told: Cell::new(None),
            proofs_told: RefCell::default(),
        }
    }

    /// Logs that a peer speaks another version of the wire; seldom, because such a peer tries again and again.
    pub(super) fn tell_of_version(&self, now: Millis, address: &str, error: &FrameError) {
        if self.version_told.get().is_none_or(|told| now.since(told) >= VERSION_TOLD_EVERY_MS) {
            self.version_told.set(Some(now));
            log::warn!("connection refused address={address} cause=\"{error}\"");
        }
    }

    /// Logs that somebody does not prove a secret: the first of each kind and address a minute. `address` has a port, or the
    /// number of a process.
    pub(super) fn tell_of_proof(&self, now: Millis, address: &str, why: &Rejection) {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let mut told = self.proofs_told.borrow_mut();
        told.retain(|_, at| now.since(*at) < PROOF_TOLD_EVERY_MS);
        let key = (host.to_owned(), why.to_string());
        // Of more addresses than that, the count in INFO tells.
        if told.contains_key(&key) || told.len() >= PROOFS_TOLD_MAX {
            return;
        }
        log::warn!("connection refused address={address} cause=\"{why}\"; more of it within a minute is counted alone");
        told.insert(key, now);
    }

    /// Bytes of answers that wait for a socket, plus one for each connection that is still read off; 0 once the node is over
    /// its time.
    pub(crate) fn unsaid(&self) -> usize {
        if self.is_over_time.get() {
            return 0;
        }
        self.answers.len() + self.read_off.get()
    }

    /// Puts something into the master's inbox. One message wakes the master for all that arrives until it runs.
    pub(crate) fn push(&self, arrived: Arrived) {
        if self.inbox.push(arrived) {
            self.drain.do_send(Drain);
        }
    }

    /// A link is read from now on.
    pub(super) fn link_began(&self, link: LinkId) {
        self.links.borrow_mut().insert(link, ReadLink::default());
    }

    /// A link is read no more.
    pub(super) fn link_ended(&self, link: LinkId) {
        self.links.borrow_mut().remove(&link);
    }

    /// A link was accepted, and has this place.
    pub(super) fn link_holds(&self, link: LinkId, place: &Rc<ConnectionPlace>) {
        if let Some(read) = self.links.borrow_mut().get_mut(&link) {
            read.place = Some(Rc::clone(place));
        }
    }

    /// The master has welcomed a link: it makes room for nobody from now on. It may be long before it is trusted, or never, as at
    /// a standby, where slaves wait.
    pub(crate) fn welcome(&self, link: LinkId) {
        if let Some(ReadLink { place: Some(place), .. }) = self.links.borrow().get(&link) {
            self.gate.note_stranger(place, None);
        }
    }

    /// Lets a link send long frames from now on: the master knows who it is and asks for them. Of one that is gone, which the
    /// master may not have heard, nothing is kept.
    pub(crate) fn trust(&self, link: LinkId) {
        if let Some(read) = self.links.borrow_mut().get_mut(&link) {
            read.longest.get_or_insert(0);
        }
    }

    /// Whether a link may send long frames.
    pub(super) fn is_trusted(&self, link: LinkId) -> bool {
        self.links.borrow().get(&link).is_some_and(|read| read.longest.is_some())
    }

    /// Notes that an answer of so many bytes was asked for over a trusted link. Short ones need not be noted.
    ///
    /// This never falls while the link stands: an answer may come late, when nobody waits for it any more. Whoever keeps a long
    /// frame unfinished so holds no more than one value as long as one that he was asked for, for each link, and the master asks
    /// only its slaves and the master that serves.
    pub(crate) fn expect(&self, link: LinkId, bytes: usize) {
        if bytes <= READ_BYTES {
            return;
        }
        if let Some(ReadLink { longest: Some(longest), .. }) = self.links.borrow_mut().get_mut(&link) {
            *longest = bytes.max(*longest);
        }
    }

    /// The longest answer that was asked for over a link; 0 when all were short.
    pub(crate) fn asked(&self, link: LinkId) -> usize {
        self.links.borrow().get(&link).and_then(|read| read.longest).unwrap_or_default()
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

    /// Which of these is woken when that master has connected.
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
    fn a_master_that_connects_wakes_the_task_that_keeps_the_link_to_it() {
        let calls = PeerCalls::default();
        assert_eq!(called(&calls, "two:2", &[]), ["two:2"]);
        assert_eq!(called(&calls, "two:2", &["one:1"]), ["two:2"]);
        assert_eq!(called(&calls, "two:2", &["two:2"]), [] as [&str; 0], "the link stands");
        assert_eq!(called(&calls, "2.example:2", &["one:1"]), ["two:2", "three:3"], "it may be either");
    }
}
