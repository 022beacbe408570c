//! How a master that is asked to stop ends: it offers its reign to the standby, lets its clients go between their requests,
//! and only then is gone. Without a standby it answers what is in flight, and ends.

use super::{Effect, Ending, Leadership, ReignRole, Saying, Stance, Surroundings};
use crate::ids::Millis;
use crate::planted;

/// How long a stop waits for the requests in flight.
pub(super) const STOP_MS: u64 = 1000;

/// After so long a stop ends the node whatever the disk is at.
const STOP_MAX_MS: u64 = 6000;

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
pub enum Course {
    /// Nobody has asked for one, or a takeover must come to its end first.
    Open,
    /// The standby is offered the reign; requests are served as before.
    Offering {
        /// Since when it is offered.
        since: Millis,
        /// When it was offered last.
        offered: Millis,
    },
    /// The other master serves. What clients ask is forwarded, and they are let go between their requests.
    Leaving {
        /// Since when clients are let go.
        since: Millis,
        /// Whether those that say nothing have been let go too.
        silent_too: bool,
    },
    /// There is nobody to hand over to: no request is taken in any more, those in flight are answered.
    Closing {
        /// Since when the end of what is in flight is waited for.
        since: Millis,
    },
}

impl Leadership {
    /// Whether no request is taken in any more.
    pub fn is_closing(&self) -> bool {
        matches!(self.course, Course::Closing { .. })
    }

    /// Whether clients are let go.
    pub fn is_leaving(&self) -> bool {
        matches!(self.course, Course::Leaving { .. })
    }

    /// Whether a link to another master stands, in one direction or the other.
    fn has_other(&self, around: &Surroundings) -> bool {
        around.has_dialed || !self.standbys.is_empty()
    }

    /// Asks for the end of this node.
    pub(super) fn stop_asked(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.stopping_since.is_none() {
            self.stopping_since = Some(now);
            effects.push(Effect::Say(Saying::Stopping));
        }
    }

    /// Whether the answers of masters that forward to this one are still waited for: what they had on its way would be
    /// unknown to its clients if it crossed our end.
    pub(super) fn awaits_forwarders(&self, now: Millis) -> bool {
        match self.course {
            Course::Closing { since } | Course::Leaving { since, .. } => now.since(since) < FAREWELL_MS,
            Course::Open | Course::Offering { .. } => false,
        }
    }

    /// What is due about a stop by now.
    pub(super) fn tick_stop(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        let Some(asked) = self.stopping_since else { return };
        match (&self.role, self.course) {
            (ReignRole::Standby { .. }, Course::Leaving { since, silent_too }) => {
                let is_late = now.since(asked) >= STOP_MAX_MS;
                self.leave_on(now, (since, silent_too), is_late, around, effects);
            }
            (ReignRole::Standby { .. }, Course::Offering { .. }) => self.leave(now, effects),
            // Another one serves, or is about to: what clients have asked meanwhile is held for it.
            (ReignRole::Standby { .. }, Course::Open) if self.has_other(around) => self.leave(now, effects),
            (
                ReignRole::Standby { .. }
                | ReignRole::Barred { .. }
                | ReignRole::Halting
                | ReignRole::Recovering { .. }
                | ReignRole::Waiting(_),
                _,
            ) => {
                self.begin_closing(now, effects);
                self.end(effects);
            }
            (ReignRole::Serving { .. }, Course::Open)
                if !self.standbys.is_empty() && !planted!(StopHandsOverNothing) =>
            {
                self.course = Course::Offering { since: now, offered: now };
                effects.push(Effect::OfferReign);
            }
            // A handover is under way already.
            (
                ReignRole::Preparing { .. } | ReignRole::Yielding { .. } | ReignRole::Closing { .. },
                Course::Open,
            ) => {
                self.course = Course::Offering { since: now, offered: now };
            }
            (
                ReignRole::Serving { .. } | ReignRole::Preparing { .. },
                Course::Offering { since, offered },
            ) => {
                self.offer_on(now, since, offered, effects);
            }
            (ReignRole::Serving { .. }, Course::Open | Course::Leaving { .. }) => {
                self.begin_closing(now, effects)
            }
            // The log decides how long that takes.
            (
                ReignRole::Opening { .. }
                | ReignRole::Announcing { .. }
                | ReignRole::Doubting { .. }
                | ReignRole::Serving { .. }
                | ReignRole::Preparing { .. }
                | ReignRole::Yielding { .. }
                | ReignRole::Closing { .. }
                | ReignRole::Losing { .. }
                | ReignRole::Stopping { .. }
                | ReignRole::Departing { .. }
                | ReignRole::Ended,
                _,
            ) => {}
        }
    }

    fn offer_on(&mut self, now: Millis, since: Millis, offered: Millis, effects: &mut Vec<Effect>) {
        let is_gone = self.standbys.is_empty();
        if is_gone || now.since(since) >= OFFER_MS {
            effects.push(Effect::Say(Saying::NotHandedOver { is_gone }));
            self.begin_closing(now, effects);
        } else if now.since(offered) >= OFFER_AGAIN_MS {
            self.course = Course::Offering { since, offered: now };
            effects.push(Effect::OfferReign);
        }
    }

    /// The end of what is in flight is waited for no longer than a stop may take.
    pub(super) fn tick_closing(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        let Course::Closing { since } = self.course else { return };
        if self.nothing_in_flight(now, around) || now.since(since) >= STOP_MS {
            self.close_log(now, effects);
        }
    }

    /// Ends a node that has waited for the disk long enough. What is acknowledged stands in the log, only the mark may be missing.
    pub(super) fn is_over_time(&mut self, now: Millis, effects: &mut Vec<Effect>) -> bool {
        let waited_ms = self.stopping_since.map_or(0, |since| now.since(since));
        let is_over = waited_ms >= STOP_MAX_MS
            && self.has_begun()
            && !matches!(self.role, ReignRole::Departing { .. } | ReignRole::Ended);
        if is_over {
            self.become_role(ReignRole::Ended, effects);
            effects.push(Effect::Say(Saying::Unclosed { waited_ms: STOP_MAX_MS }));
            effects.push(Effect::End(Ending::Unclosed));
        }
        is_over
    }

    /// From here on nothing is taken in.
    pub(super) fn begin_closing(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.is_closing() {
            return;
        }
        let before = self.stance();
        self.course = Course::Closing { since: now };
        effects.push(Effect::StopAccepting);
        if before != Stance::Stopping {
            effects.push(Effect::StanceChanged);
        }
        if self.has_begun() && self.role != ReignRole::Ended {
            effects.push(Effect::AskForwarders);
        }
    }

    /// Another master serves, or is about to.
    fn leave(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        self.course = Course::Leaving { since: now, silent_too: false };
        // This master leads no more.
        effects.push(Effect::LeaveQueue);
        effects.push(Effect::StopAccepting);
        // Of several other masters, one that did not get the reign may not have heard yet that this one has given it away.
        effects.push(Effect::AskForwarders);
        effects.push(Effect::LetClientsGo { silent_too: false });
    }

    fn leave_on(
        &mut self,
        now: Millis,
        (since, silent_too): (Millis, bool),
        is_late: bool,
        around: &Surroundings,
        effects: &mut Vec<Effect>,
    ) {
        let waited_ms = now.since(since);
        // Nobody is there to forward to: what waits is refused, which is no lie.
        let is_stranded = !self.has_other(around);
        let has_farewells = !(around.may_forward && self.awaits_forwarders(now));
        let is_done = around.clients_left == 0 && has_farewells;
        let is_over = is_done || is_stranded || is_late || waited_ms >= LEAVE_MS;
        if is_over || planted!(StopDoesNotWait) {
            self.begin_closing(now, effects);
            self.end(effects);
        } else if waited_ms >= SILENT_MS && !silent_too {
            self.course = Course::Leaving { since, silent_too: true };
            effects.push(Effect::LetClientsGo { silent_too: true });
        }
    }

    /// Ends the node cleanly.
    pub(super) fn end(&mut self, effects: &mut Vec<Effect>) {
        self.become_role(ReignRole::Ended, effects);
        effects.push(Effect::End(Ending::Clean));
    }
}
