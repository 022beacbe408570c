//! `SlaveProxy`: one life of one link to one slave.
//!
//! Holds the link's machine (`machine/link/`), which decides when an acknowledgement is late and when an idle slave is
//! pinged. The bytes themselves go from the master's machine straight into the link's outbox; the link's machine counts
//! them. The proxy ends with a typed reason, and its supervisor, `MasterActor`, then removes the slave.

use crate::batch::Outbox;
use crate::env::Env;
use crate::turns::TurnLengths;
use actix::prelude::*;
use dsm_protocol::frame;
use dsm_protocol::ids::LinkId;
use dsm_protocol::machine::doubt::SelfDoubt;
use dsm_protocol::machine::link::{Link, LinkEnding, LinkVerdict, Traffic};
use dsm_protocol::message::Message as Wire;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// Why a link to a slave ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The connection is closed.
    Closed(String),
    /// This master closes the connection for a reason of its own.
    Dismissed(&'static str),
    /// An acknowledgement did not come in time.
    AckTimeout,
    /// The same slave, or another one with its name, has taken its place.
    Replaced,
    /// The slave has broken the protocol.
    Protocol(String),
    /// The slave is refused.
    Refused(String),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndReason::Closed(cause) => write!(f, "closed ({cause})"),
            EndReason::Dismissed(why) => f.write_str(why),
            EndReason::AckTimeout => f.write_str("ack-timeout"),
            EndReason::Replaced => f.write_str("replaced"),
            EndReason::Protocol(what) => write!(f, "protocol error ({what})"),
            EndReason::Refused(why) => write!(f, "refused ({why})"),
        }
    }
}

/// Says that a link has ended.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct SlaveEnded {
    /// The link that has ended.
    pub link: LinkId,
    /// What ended it.
    pub reason: EndReason,
}

/// Ends a link for this reason.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct End(pub EndReason);

impl EndReason {
    /// The reason in one word, of which there are few.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            EndReason::Closed(_) => "closed",
            EndReason::Dismissed(_) => "dismissed",
            EndReason::AckTimeout => "ack-timeout",
            EndReason::Replaced => "replaced",
            EndReason::Protocol(_) => "protocol-error",
            EndReason::Refused(_) => "refused",
        }
    }

    /// What the reason means for the slave.
    pub(crate) fn ending(&self) -> LinkEnding {
        match self {
            EndReason::AckTimeout => LinkEnding::Late,
            EndReason::Closed(_) | EndReason::Replaced | EndReason::Protocol(_) => LinkEnding::Broken,
            EndReason::Dismissed(_) | EndReason::Refused(_) => LinkEnding::Ours,
        }
    }
}

/// A link's machine, shared by the proxy that holds it and the master, which moves the link's bytes.
pub(crate) type SharedLink = Rc<RefCell<Link>>;

impl Outbox {
    /// The link's byte counts: queued, taken, reached and heard.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { queued: self.queued(), taken: self.taken(), reached: self.reached(), heard: self.heard() }
    }
}

/// What a proxy is built from.
pub(crate) struct Parts {
    pub(crate) id: LinkId,
    pub(crate) outbox: Outbox,
    pub(crate) link: SharedLink,
    pub(crate) doubt: Rc<RefCell<SelfDoubt>>,
    /// Is told of the link's end.
    pub(crate) ended: Recipient<SlaveEnded>,
    pub(crate) turns: Rc<TurnLengths>,
}

/// The actor. See the module.
pub struct SlaveProxy {
    env: Env,
    parts: Parts,
    ended: bool,
}

impl SlaveProxy {
    /// A proxy for a link whose handshake is done.
    pub(crate) fn new(env: Env, parts: Parts) -> Self {
        SlaveProxy { env, parts, ended: false }
    }

    /// Checks the oldest acknowledgement that is owed, and comes back at its deadline at the latest.
    fn watch(&mut self, ctx: &mut Context<Self>) {
        #[cfg(feature = "testing")]
        crate::test_hooks::pass(
            |place| matches!(place, crate::test_hooks::PanicPlace::SlaveProxy(id) if *id == self.parts.link.borrow().life().id),
        );
        let _turn = self.parts.turns.begin("slave proxy");
        let now = self.env.now();
        let Parts { outbox, link, doubt, .. } = &self.parts;
        doubt.borrow_mut().observe(now);
        let verdict = link.borrow_mut().look(now, outbox.traffic(), &doubt.borrow());
        let next_ms = match verdict {
            LinkVerdict::Late => {
                self.end(EndReason::AckTimeout, ctx);
                return;
            }
            LinkVerdict::Ping(next_ms) => {
                outbox.append(|out| frame::encode(&Wire::Ping, out));
                link.borrow_mut().note_ping(now, outbox.queued());
                next_ms
            }
            LinkVerdict::Wait(next_ms) => next_ms,
        };
        ctx.run_later(Duration::from_millis(next_ms), Self::watch);
    }

    fn end(&mut self, reason: EndReason, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &reason {
            // The outbox may hold the reason for the refusal.
            EndReason::Refused(_) | EndReason::Protocol(_) | EndReason::Replaced => {
                self.parts.outbox.finish()
            }
            EndReason::Closed(_) | EndReason::Dismissed(_) | EndReason::AckTimeout => {
                self.parts.outbox.abort()
            }
        }
        let slave = self.parts.link.borrow().life().id.clone();
        log::debug!("slave link ended slave={slave} link={} cause={reason}", self.parts.id);
        self.parts.ended.do_send(SlaveEnded { link: self.parts.id, reason });
        ctx.stop();
    }
}

impl Actor for SlaveProxy {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.watch(ctx);
    }
}

impl Drop for SlaveProxy {
    // A panic ends the link like a closed connection.
    fn drop(&mut self) {
        if !self.ended {
            self.parts.outbox.abort();
            let reason = EndReason::Closed("the proxy is gone".to_owned());
            self.parts.ended.do_send(SlaveEnded { link: self.parts.id, reason });
        }
    }
}

impl Handler<End> for SlaveProxy {
    type Result = ();

    fn handle(&mut self, end: End, ctx: &mut Self::Context) {
        self.end(end.0, ctx);
    }
}
