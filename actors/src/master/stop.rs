//! How a master that is asked to stop ends: it offers its reign to the standby, lets its clients go between their
//! requests, and only then is gone. Without a standby it answers what is in flight, and ends.

use super::{send, MasterActor, Phase, Role, STOP_MAX_MS, STOP_MS};
use crate::door::origin::Origin;
use crate::door::session::Session;
use crate::journal::shared_file::failover_watcher;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::front;
use dsm_protocol::message::{Control, Message};
use dsm_protocol::planted;

/// How long the standby may take to ask for the reign that it is offered, and the log to be synced.
const OFFER_MS: u64 = 1000;

/// After so long a standby that was refused, for it lacked slaves or lagged, may ask once more.
const OFFER_AGAIN_MS: u64 = 100;

/// How long a connection may be silent before it is closed all the same: until then it is closed with an answer.
const SILENT_MS: u64 = 500;

/// How long another master may take to say that it forwards no more.
const FAREWELL_MS: u64 = 500;

/// How long clients are forwarded before those that are left are cut.
const LEAVE_MS: u64 = 3000;

/// What is done about a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Nobody has asked for one, or a takeover must come to its end first.
    Open,
    /// The standby is offered the reign; requests are served as before.
    Offering {
        /// Since when.
        since: Millis,
        /// When it was offered last.
        offered: Millis,
    },
    /// The other master serves. What clients ask is forwarded, and they are let go between their requests.
    Leaving {
        /// Since when.
        since: Millis,
        /// Whether those that say nothing have been let go too.
        silent_too: bool,
    },
    /// There is nobody to hand over to: no request is taken in any more, those in flight are answered.
    Closing {
        /// Since when.
        since: Millis,
    },
}

impl MasterActor {
    /// Whether no request is taken in any more.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.course, Course::Closing { .. })
    }

    /// Since when no request is taken in any more.
    pub(super) fn closing_since(&self) -> Option<Millis> {
        match self.course {
            Course::Closing { since } => Some(since),
            Course::Open | Course::Offering { .. } | Course::Leaving { .. } => None,
        }
    }

    /// Whether clients are let go.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.course, Course::Leaving { .. })
    }

    /// Asks for the end of this node.
    pub(super) fn begin_stop(&mut self, now: Millis) {
        if self.stopping_since.is_some() {
            return;
        }
        log::info!("stopping");
        self.stopping_since = Some(now);
        self.tick_role(now);
        self.flush();
    }

    /// What is due about a stop by now.
    pub(super) fn tick_stop(&mut self, now: Millis) {
        let Some(asked) = self.stopping_since else { return };
        let late = now.since(asked) >= STOP_MAX_MS;
        match (&self.role, self.course) {
            (Role::Ended, _) => {}
            (Role::Standby { .. }, Course::Leaving { since, silent_too }) => {
                self.leave_on(now, since, silent_too, late);
            }
            (Role::Standby { .. }, Course::Offering { .. }) => self.leave(now),
            // Another one serves, or is about to: what clients have asked meanwhile is held for it.
            (Role::Standby { .. }, Course::Open) if self.has_other() => self.leave(now),
            (
                Role::Standby { .. }
                | Role::Barred { .. }
                | Role::Halting { .. }
                | Role::Recovering { .. }
                | Role::Waiting(_),
                _,
            ) => {
                self.begin_closing(now);
                self.end();
            }
            (Role::Reigning(_), Course::Closing { .. }) => {}
            (Role::Reigning(reign), course) => match (&reign.phase, course) {
                (Phase::Serving, Course::Open)
                    if !self.peers.is_empty() && !planted!(StopHandsOverNothing) =>
                {
                    self.course = Course::Offering { since: now, offered: now };
                    self.offer_reign();
                }
                // A handover is under way already.
                (Phase::Preparing { .. } | Phase::Yielding { .. } | Phase::Closing { .. }, Course::Open) => {
                    self.course = Course::Offering { since: now, offered: now };
                }
                (Phase::Serving | Phase::Preparing { .. }, Course::Offering { since, offered }) => {
                    let is_gone = self.peers.is_empty();
                    if is_gone || now.since(since) >= OFFER_MS {
                        let cause = if is_gone { "it is gone" } else { "it does not ask in time" };
                        log::info!("the reign is not handed over cause={cause:?}");
                        self.begin_closing(now);
                    } else if now.since(offered) >= OFFER_AGAIN_MS {
                        self.course = Course::Offering { since, offered: now };
                        self.offer_reign();
                    }
                }
                (Phase::Serving, Course::Open | Course::Leaving { .. } | Course::Closing { .. }) => {
                    self.begin_closing(now);
                }
                (
                    Phase::Opening
                    | Phase::Announcing { .. }
                    | Phase::Doubting
                    | Phase::Preparing { .. }
                    | Phase::Yielding { .. }
                    | Phase::Closing { .. }
                    | Phase::Stopping
                    | Phase::Departing
                    | Phase::Ending,
                    _,
                ) => {}
            },
        }
    }

    fn has_other(&self) -> bool {
        self.dialed.is_some() || !self.peers.is_empty()
    }

    /// Lets the masters that are connected ask for the reign.
    pub(super) fn offer_reign(&self) {
        for peer in self.peers.values() {
            send(&peer.outbox, &Message::Control(Control::HandoverOffer));
        }
    }

    /// From here on nothing is taken in.
    pub(super) fn begin_closing(&mut self, now: Millis) {
        if self.is_closing() {
            return;
        }
        self.course = Course::Closing { since: now };
        self.stop_accepting();
        self.step_front(now, front::Event::StoppingBegan);
        if matches!(self.role, Role::Reigning(_)) {
            self.take_leave();
        }
    }

    /// Asks the masters that forward to this one for a sign that they do so no more. What they have forwarded in front of that
    /// is here then, and is answered; what would cross our end would be unknown to its clients.
    fn take_leave(&mut self) {
        self.tell_state();
        for peer in self.peers.values_mut() {
            send(&peer.outbox, &Message::Control(Control::Probe));
            peer.may_forward = true;
        }
    }

    /// Whether something may be on its way here that another master has forwarded, and is still waited for.
    pub(super) fn may_be_forwarded_to(&self, now: Millis) -> bool {
        let Course::Closing { since } = self.course else { return false };
        now.since(since) < FAREWELL_MS && self.peers.values().any(|peer| peer.may_forward)
    }

    /// Lets the port go. Who has connected already is still heard.
    fn stop_accepting(&self) {
        self.switchboard.stopping.set(true);
        self.switchboard.stop.notify_waiters();
        self.switchboard.stop.notify_one();
    }

    /// Another master serves, or is about to.
    fn leave(&mut self, now: Millis) {
        log::info!("letting clients go sessions={}", self.sessions.len());
        self.course = Course::Leaving { since: now, silent_too: false };
        // This master wins no lock any more.
        self.watcher.do_send(failover_watcher::Stop);
        self.stop_accepting();
        let state = self.state();
        for session in self.sessions.values() {
            match session.origin() {
                Origin::Native => session.send(&Message::Control(Control::MasterState(state.clone()))),
                Origin::Resp | Origin::Embedded | Origin::Forwarded { .. } => {}
            }
            session.let_go(false);
        }
    }

    /// Who comes now may ask one thing.
    pub(super) fn let_go_if_leaving(&self, session: &Session) {
        if let Course::Leaving { silent_too, .. } = self.course {
            session.let_go(silent_too);
        }
    }

    fn leave_on(&mut self, now: Millis, since: Millis, silent_too: bool, late: bool) {
        let waited_ms = now.since(since);
        // Neither the program around this master nor the other master's sessions are let go.
        let is_empty = self.front.waiting() == 0
            && !self.sessions.values().any(|session| session.origin().leaves_at_a_stop());
        // Nobody is there to forward to: what waits is refused, which is no lie.
        let is_stranded = self.dialed.is_none() && self.peers.is_empty();
        if is_empty || is_stranded || late || waited_ms >= LEAVE_MS || planted!(StopDoesNotWait) {
            self.begin_closing(now);
            self.end();
            return;
        }
        if waited_ms >= SILENT_MS && !silent_too {
            self.course = Course::Leaving { since, silent_too: true };
            self.sessions.values().for_each(|session| session.let_go(true));
        }
    }

    /// How long a handover waits for the requests in flight: one for a stop has nothing to go back to.
    pub(super) fn yield_ms(&self) -> u64 {
        if self.stopping_since.is_some() {
            STOP_MS
        } else {
            super::YIELD_MS
        }
    }
}
