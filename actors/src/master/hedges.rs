//! When the master looks at reads that wait unusually long.
//!
//! Owns the timer of the next look. Never decides who is asked: the master machine does.

use super::MasterActor;
use actix::prelude::*;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::master::Event;
use std::time::Duration;

/// A look that comes so late says that this process was late: what it waits for may be unread in its sockets.
const LATE_MS: u64 = 2;

/// The next look: when it is, and its timer.
#[derive(Default)]
pub(super) struct HedgeTimer(Option<(Millis, SpawnHandle)>);

impl MasterActor {
    /// Sets the next look, if reads are under way that a second slave may be asked about.
    pub(super) fn look_after_reads(&mut self, now: Millis, ctx: &mut Context<Self>) {
        let Some(at) = self.machine.hedge_at() else { return };
        let due = at.max(now.plus(1));
        if let Some((set, timer)) = self.hedges.0 {
            if set <= due {
                return;
            }
            // It is set for a long value, which has more time than what was asked since.
            ctx.cancel_future(timer);
        }
        let wait = Duration::from_millis(due.since(now));
        let timer = ctx.run_later(wait, move |master, ctx| master.hedge(due, ctx));
        self.hedges.0 = Some((due, timer));
    }

    fn hedge(&mut self, due: Millis, ctx: &mut Context<Self>) {
        let turn = self.switchboard.turns.begin("hedge");
        self.hedges.0 = None;
        let now = self.env.now();
        self.observe(now);
        if now.since(due) <= LATE_MS {
            self.step(now, Event::Hedge);
        }
        self.work(&turn, ctx);
    }
}
