//! The watch over this process's own silence: whether it was paused, busy or without a processor for too long.
//!
//! Owns the clock of self-doubt, which the proxies of slaves share, and what INFO says of it. Never judges a peer: who waits
//! for one is told that waits begin again.

use crate::env::Env;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::doubt::{self, Cause, SelfDoubt};
use std::cell::RefCell;
use std::rc::Rc;

/// How often this process found that it had fallen silent, by what it was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Jumps {
    pub(super) paused: u64,
    pub(super) busy: u64,
    pub(super) starved: u64,
}

/// What this thread has spent its time on so far.
struct Spent {
    at: Millis,
    computed_us: Option<u64>,
    waited_us: Option<u64>,
}

impl Spent {
    fn now(env: &Env) -> Self {
        Spent { at: env.now(), computed_us: env.computed_us(), waited_us: env.waited_us() }
    }

    /// Milliseconds since `before`, and those of them in which this thread computed, and waited for a processor.
    fn since(&self, before: &Spent) -> (u64, u64, u64) {
        let ms = |later: Option<u64>, earlier: Option<u64>| {
            later.zip(earlier).map_or(0, |(later, earlier)| later.saturating_sub(earlier) / 1000)
        };
        let computed_ms = ms(self.computed_us, before.computed_us);
        (self.at.since(before.at), computed_ms, ms(self.waited_us, before.waited_us))
    }
}

/// The watch. It must hear of the time in every turn.
pub(super) struct SilenceWatch {
    env: Env,
    doubt: Rc<RefCell<SelfDoubt>>,
    jumps_seen: u64,
    jumps: Jumps,
    /// The most that this thread has computed from one tick to the next, in milliseconds.
    computed_between_ticks_ms: u64,
    /// At the last tick.
    spent: Spent,
}

impl SilenceWatch {
    /// A silence of more than `jump_ms` counts.
    pub(super) fn new(env: &Env, jump_ms: u64) -> Self {
        SilenceWatch {
            doubt: Rc::new(RefCell::new(SelfDoubt::new(env.now(), jump_ms))),
            jumps_seen: 0,
            jumps: Jumps::default(),
            computed_between_ticks_ms: 0,
            spent: Spent::now(env),
            env: Rc::clone(env),
        }
    }

    /// The clock, for others that judge by timeouts.
    pub(super) fn doubt(&self) -> Rc<RefCell<SelfDoubt>> {
        Rc::clone(&self.doubt)
    }

    /// Notes that the process runs; whether it had fallen silent, so that waits begin again. Whoever looks first after a
    /// silence notices it, be it a proxy; here it is acted upon.
    #[must_use]
    pub(super) fn observe(&mut self, now: Millis) -> bool {
        self.doubt.borrow_mut().observe(now);
        let jumps = self.doubt.borrow().jumps();
        if std::mem::replace(&mut self.jumps_seen, jumps) == jumps {
            return false;
        }
        let (silent_ms, computed_ms, waited_ms) = Spent::now(&self.env).since(&self.spent);
        match doubt::cause(silent_ms, computed_ms, waited_ms) {
            Cause::Busy => {
                self.jumps.busy += 1;
                log::warn!(
                    "this process was busy, deadlines start again ms={silent_ms} busy_ms={computed_ms}"
                );
            }
            Cause::Starved => {
                self.jumps.starved += 1;
                log::warn!(
                    "this process waited for a processor, deadlines start again ms={silent_ms} waited_ms={waited_ms}"
                );
            }
            Cause::Paused => {
                self.jumps.paused += 1;
                log::warn!("this process was paused, deadlines start again ms={silent_ms}");
            }
        }
        true
    }

    /// Notes what was computed since the last tick.
    pub(super) fn tick(&mut self) {
        let spent = Spent::now(&self.env);
        let (_, computed_ms, _) = spent.since(&self.spent);
        self.computed_between_ticks_ms = computed_ms.max(self.computed_between_ticks_ms);
        self.spent = spent;
    }

    /// How often it had fallen silent.
    pub(super) fn jumps(&self) -> Jumps {
        self.jumps
    }

    /// The most that this thread has computed from one tick to the next, in milliseconds.
    pub(super) fn computed_between_ticks_ms(&self) -> u64 {
        self.computed_between_ticks_ms
    }
}
