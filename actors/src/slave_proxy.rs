//! `SlaveProxy`: one life of one link to one slave.
//!
//! Holds the deadline of the link's acknowledgements and its end; whether one is late is decided by `machine/link/`. The
//! bytes themselves go from the master's machine straight into the link's outbox. Ends with a typed reason, which its
//! supervisor, `MasterActor`, turns into the slave's removal.

use crate::batch::Outbox;
use crate::env::Env;
use crate::turns::TurnLengths;
use actix::prelude::*;
use dsm_protocol::ids::{LinkId, SlaveId};
use dsm_protocol::machine::doubt::SelfDoubt;
use dsm_protocol::machine::link::{Link, Traffic, Verdict};
use std::cell::{Cell, RefCell};
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
    /// What the slave sent breaks the protocol.
    Protocol(String),
    /// The slave is not wanted.
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
    /// The link.
    pub link: LinkId,
    /// Why.
    pub reason: EndReason,
}

/// Asks for a sign of life to be sent over an idle link.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct PingWanted {
    /// The link.
    pub link: LinkId,
}

/// Ends a link.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct End(pub EndReason);

/// Whom a [`SlaveProxy`] tells what.
#[derive(Clone)]
pub struct Ports {
    /// Hears of the end.
    pub ended: Recipient<SlaveEnded>,
    /// Is asked for pings.
    pub ping: Recipient<PingWanted>,
}

/// A link's window, shared by the proxy and by whoever moves the link's bytes.
pub(crate) type Window = Rc<RefCell<Link>>;

/// The bytes of values that were asked of a slave and are not here yet.
pub(crate) type Owed = Rc<Cell<usize>>;

/// The parts of a link, named once, where it is admitted.
pub(crate) struct Parts {
    pub(crate) link: LinkId,
    pub(crate) id: SlaveId,
    pub(crate) outbox: Outbox,
    pub(crate) window: Window,
    pub(crate) owed: Owed,
    pub(crate) doubt: Rc<RefCell<SelfDoubt>>,
    pub(crate) ports: Ports,
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

    /// Looks at what is owed for longest and comes back at its deadline, or soon.
    fn watch(&mut self, ctx: &mut Context<Self>) {
        #[cfg(feature = "testing")]
        crate::testing::pass(
            |place| matches!(place, crate::testing::Place::SlaveProxy(id) if *id == self.parts.id),
        );
        let _turn = self.parts.turns.begin("slave proxy");
        let now = self.env.now();
        let Parts { outbox, window, owed, doubt, .. } = &self.parts;
        doubt.borrow_mut().observe(now);
        let traffic = Traffic {
            queued: outbox.queued(),
            taken: outbox.taken(),
            heard: outbox.heard(),
            owed: owed.get() as u64,
        };
        let verdict = window.borrow_mut().look(now, traffic, &doubt.borrow());
        let next_ms = match verdict {
            Verdict::Late => {
                self.end(EndReason::AckTimeout, ctx);
                return;
            }
            Verdict::Ping(next_ms) => {
                self.parts.ports.ping.do_send(PingWanted { link: self.parts.link });
                next_ms
            }
            Verdict::Wait(next_ms) => next_ms,
        };
        ctx.run_later(Duration::from_millis(next_ms), Self::watch);
    }

    fn end(&mut self, reason: EndReason, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &reason {
            // What is in the outbox may be the reason for the refusal.
            EndReason::Refused(_) | EndReason::Protocol(_) | EndReason::Replaced => {
                self.parts.outbox.finish()
            }
            EndReason::Closed(_) | EndReason::Dismissed(_) | EndReason::AckTimeout => {
                self.parts.outbox.abort()
            }
        }
        log::debug!("slave link ended slave={} link={} cause={reason}", self.parts.id, self.parts.link);
        self.parts.ports.ended.do_send(SlaveEnded { link: self.parts.link, reason });
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
            self.parts.ports.ended.do_send(SlaveEnded { link: self.parts.link, reason });
        }
    }
}

impl Handler<End> for SlaveProxy {
    type Result = ();

    fn handle(&mut self, end: End, ctx: &mut Self::Context) {
        self.end(end.0, ctx);
    }
}
