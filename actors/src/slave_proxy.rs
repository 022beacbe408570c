//! `SlaveProxy`: one life of one link to one slave.
//!
//! Owns the link's window, its acknowledgement deadlines and its end. The bytes themselves go from the master's
//! machine straight into the link's outbox; deadlines and lifecycle are decided here. Ends with a typed reason, which
//! its supervisor, `MasterActor`, turns into the slave's removal.

use crate::batch::Outbox;
use crate::env::Env;
use actix::prelude::*;
use dsm_protocol::ids::{LinkId, Millis, SlaveId};
use dsm_protocol::machine::doubt::SelfDoubt;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// Why a link to a slave ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The connection is closed.
    Closed(String),
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

/// What is sent and not yet acknowledged, shared by the proxy and by whoever moves the link's bytes.
#[derive(Debug, Default)]
pub(crate) struct Window {
    sent: Cell<u64>,
    acked: Cell<u64>,
    /// The last number of each batch and when it was sent.
    batches: RefCell<VecDeque<(u64, Millis)>>,
    /// When an announcement or a probe was sent that is not answered yet.
    question: Cell<Option<Millis>>,
    counting: Cell<bool>,
}

impl Window {
    /// Begins to count from 1: the slave has joined.
    pub(crate) fn begin(&self) {
        self.sent.set(0);
        self.acked.set(0);
        self.batches.borrow_mut().clear();
        self.question.set(None);
        self.counting.set(true);
    }

    /// Stops counting: the reign is over.
    pub(crate) fn end(&self) {
        self.begin();
        self.counting.set(false);
    }

    /// Notes a counted message. Those of one turn make one batch.
    pub(crate) fn note_sent(&self, now: Millis) {
        let number = self.sent.get() + 1;
        self.sent.set(number);
        let mut batches = self.batches.borrow_mut();
        match batches.back_mut() {
            Some((last, at)) if *at == now => *last = number,
            Some(_) | None => batches.push_back((number, now)),
        }
    }

    /// Notes an acknowledgement; false when it covers what was never sent.
    pub(crate) fn note_acked(&self, through: u64) -> bool {
        if through > self.sent.get() || through < self.acked.get() {
            return false;
        }
        self.acked.set(through);
        let mut batches = self.batches.borrow_mut();
        while batches.front().is_some_and(|(last, _)| *last <= through) {
            batches.pop_front();
        }
        true
    }

    /// Notes that an answer is owed outside the count.
    pub(crate) fn note_question(&self, now: Millis) {
        self.question.set(self.question.get().or(Some(now)));
    }

    /// Notes that it has come.
    pub(crate) fn note_answer(&self) {
        self.question.set(None);
    }

    /// Since when an answer is owed.
    fn oldest(&self) -> Option<Millis> {
        let batch = self.batches.borrow().front().map(|(_, at)| *at);
        match (batch, self.question.get()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn is_counting(&self) -> bool {
        self.counting.get()
    }
}

/// Whom a [`SlaveProxy`] tells what.
#[derive(Clone)]
pub struct Ports {
    /// Hears of the end.
    pub ended: Recipient<SlaveEnded>,
    /// Is asked for pings.
    pub ping: Recipient<PingWanted>,
}

/// The actor. See the module.
pub struct SlaveProxy {
    env: Env,
    link: LinkId,
    id: SlaveId,
    outbox: Outbox,
    window: Rc<Window>,
    ack_timeout: Duration,
    doubt: Rc<RefCell<SelfDoubt>>,
    ports: Ports,
    idle_since: Millis,
    ended: bool,
}

impl SlaveProxy {
    /// A proxy for a link whose handshake is done.
    #[allow(clippy::too_many_arguments, reason = "a link's parts, named once, where it is admitted")]
    pub(crate) fn new(
        env: Env,
        link: LinkId,
        id: SlaveId,
        outbox: Outbox,
        window: Rc<Window>,
        ack_timeout: Duration,
        doubt: Rc<RefCell<SelfDoubt>>,
        ports: Ports,
    ) -> Self {
        let idle_since = env.now();
        SlaveProxy { env, link, id, outbox, window, ack_timeout, doubt, ports, idle_since, ended: false }
    }

    /// Looks at the oldest unanswered batch and comes back at its deadline, or soon.
    fn watch(&mut self, ctx: &mut Context<Self>) {
        #[cfg(feature = "testing")]
        crate::testing::pass(
            |place| matches!(place, crate::testing::Place::SlaveProxy(id) if *id == self.id),
        );
        let now = self.env.now();
        let timeout_ms = self.ack_timeout.as_millis() as u64;
        self.doubt.borrow_mut().observe(now);
        let mut next_ms = (timeout_ms / 8).max(1);
        if let Some(oldest) = self.window.oldest() {
            self.idle_since = now;
            let doubt = self.doubt.borrow();
            if doubt.expired(now, oldest, timeout_ms) {
                drop(doubt);
                self.end(EndReason::AckTimeout, ctx);
                return;
            }
            let elapsed_ms = now.since(doubt.counted_from(oldest));
            next_ms = next_ms.min(timeout_ms.saturating_sub(elapsed_ms)).max(1);
        } else if self.window.is_counting() && now.since(self.idle_since) >= timeout_ms {
            // A slave that hangs while nobody writes is found before somebody does.
            self.idle_since = now;
            self.ports.ping.do_send(PingWanted { link: self.link });
        }
        ctx.run_later(Duration::from_millis(next_ms), Self::watch);
    }

    fn end(&mut self, reason: EndReason, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &reason {
            // What is in the outbox may be the reason for the refusal.
            EndReason::Refused(_) | EndReason::Protocol(_) | EndReason::Replaced => self.outbox.finish(),
            EndReason::Closed(_) | EndReason::AckTimeout => self.outbox.abort(),
        }
        log::debug!("slave link ended slave={} link={} cause={reason}", self.id, self.link);
        self.ports.ended.do_send(SlaveEnded { link: self.link, reason });
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
            self.outbox.abort();
            let reason = EndReason::Closed("the proxy is gone".to_owned());
            self.ports.ended.do_send(SlaveEnded { link: self.link, reason });
        }
    }
}

impl Handler<End> for SlaveProxy {
    type Result = ();

    fn handle(&mut self, end: End, ctx: &mut Self::Context) {
        self.end(end.0, ctx);
    }
}
