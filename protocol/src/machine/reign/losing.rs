//! How a reign ends that another master has taken away: what is in flight comes to its end, then the log is closed and followed.
//!
//! That another one leads does not tell whether it has what was to be written: of that nobody knows, and the log says so. What
//! only reads, or waits for slaves, ends as ever.

use super::handover::HandoverFailure;
use super::{Effect, Ending, Leadership, Queue, ReignRole, Surroundings};
use crate::command::{ErrorWord, Reply};
use crate::ids::Millis;

/// How long what is in flight may take to come to its end, in milliseconds: longer than any request may. Then the node ends.
const LOSE_MS: u64 = 120_000;

impl Leadership {
    /// Another master leads.
    pub(super) fn lost(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let reign = match self.role {
            ReignRole::Standby { .. }
            | ReignRole::Losing { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => return,
            // Nothing was begun.
            ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. } => {
                effects.push(Effect::Follow);
                return self.become_role(ReignRole::Standby { queue: Queue::Replaying }, effects);
            }
            ReignRole::Preparing { reign, to, .. }
            | ReignRole::Yielding { reign, to, .. }
            | ReignRole::Closing { reign, to, .. } => {
                effects.push(Effect::RefuseHandover { to, why: HandoverFailure::LeadershipLost });
                reign
            }
            ReignRole::Announcing { reign, .. }
            | ReignRole::Doubting { reign, .. }
            | ReignRole::Serving { reign }
            | ReignRole::Stopping { reign } => reign,
        };
        let why = HandoverFailure::LeadershipLost;
        self.answer_operators(
            &Reply::error(ErrorWord::Busy, format!("the handover was aborted: {why}")),
            effects,
        );
        let losing = ReignRole::Losing { reign, since: now, is_answered: false, is_closing: false };
        self.become_role(losing, effects);
        effects.push(Effect::AbandonLog);
    }

    /// Closes the log once nothing is in flight any more.
    pub(super) fn tick_losing(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        let ReignRole::Losing { since, is_answered, is_closing, .. } = &mut self.role else { return };
        if *is_closing {
            return;
        }
        if *is_answered && around.in_flight == 0 && !around.is_behind {
            *is_closing = true;
            effects.push(Effect::CloseLog);
        } else if now.since(*since) >= LOSE_MS {
            self.become_role(ReignRole::Ended, effects);
            effects.push(Effect::End(Ending::Deposed));
        }
    }
}
