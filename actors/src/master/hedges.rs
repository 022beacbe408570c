//! When the master looks at reads that wait unusually long.
//!
//! Owns whether such a look is set for later. Never decides who is asked: the master machine does.

use super::MasterActor;
use actix::prelude::*;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::master::Event;
use std::time::Duration;

/// A look that comes so late says that this process was late: what it waits for may be unread in its sockets.
const LATE_MS: u64 = 2;

/// The next look.
#[derive(Default)]
pub(super) struct HedgeTimer {
    is_set: bool,
}

impl MasterActor {
    /// Sets the next look, if reads are under way that a second slave may be asked about.
    pub(super) fn look_after_reads(&mut self, now: Millis, ctx: &mut Context<Self>) {
        if self.hedges.is_set {
            return;
        }
        let Some(at) = self.machine.hedge_at() else { return };
        self.hedges.is_set = true;
        let due = at.max(now.plus(1));
        let wait = Duration::from_millis(due.since(now));
        ctx.run_later(wait, move |master, ctx| master.hedge(due, ctx));
    }

    fn hedge(&mut self, due: Millis, ctx: &mut Context<Self>) {
        let turn = self.switchboard.turns.begin("hedge");
        self.hedges.is_set = false;
        let now = self.env.now();
        self.observe(now);
        if now.since(due) <= LATE_MS {
            self.step(now, Event::Hedge);
        }
        self.work(&turn, ctx);
    }
}
