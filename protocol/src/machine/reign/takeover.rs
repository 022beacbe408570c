//! The takeover machine: when to wait for the lock, whom to suspect, when to ask for the reign and when to yield it.
//!
//! Owns the verdicts of `FailoverWatcher`. The lock decides who is primary; this machine only decides when to queue
//! for it, when a holder that stands still is to be fenced, and when a handover is asked for or granted.

use crate::ids::Millis;
use crate::machine::doubt::SelfDoubt;

/// The settings of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Whether this is the master that should serve when both can (`dsm-master`).
    pub preferred: bool,
    /// Whether a preferred standby asks for the reign by itself.
    pub failback: bool,
    /// How long a holder's counter may stand still, in milliseconds.
    pub failover_timeout_ms: u64,
    /// How long a free lock is left to the other master, in milliseconds.
    pub courtesy_ms: u64,
    /// How long a returning preferred master must have been stable before it asks, in milliseconds.
    pub stable_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            preferred: true,
            failback: true,
            failover_timeout_ms: 1000,
            courtesy_ms: 1000,
            stable_ms: 1000,
        }
    }
}

/// A reign of the other master that ended sooner than this doubles how long it must be stable before the next.
const SHORT_REIGN_MS: u64 = 10_000;

/// The longest stable time that is asked for.
const STABLE_MAX_MS: u64 = 64_000;

/// What was seen of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nobody holds it.
    Free,
    /// Somebody holds it, with this counter (`None`: it has not begun to count).
    Held {
        /// The progress counter that the holder publishes.
        beat: Option<u64>,
    },
}

/// What happens to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The log is replayed to its end for the first time (since the last reign).
    CaughtUp,
    /// A look at the lock. At least every 50 ms.
    Looked(Seen),
    /// This master holds the lock.
    LockWon,
    /// This master serves.
    ReignBegan,
    /// This master has released the lock, in a handover.
    ReignEnded,
    /// What the other master says of itself, or that the link to it is gone (`None`).
    Peer {
        /// Whether it is active.
        active: Option<bool>,
    },
    /// The other master asks for the reign.
    HandoverRequested {
        /// Whether it follows this master's log and reign.
        follows: bool,
        /// Whether it has replayed all but the last moment of the log and has our slaves.
        ready: bool,
        /// Whether an operator asked for it.
        forced: bool,
    },
    /// The other master does not yield.
    HandoverRefused,
    /// An operator wants this standby to serve.
    HandoverOffered,
}

/// What the machine wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Queue for the lock.
    WaitForLock,
    /// Make sure that the holder runs no more.
    Fence,
    /// Ask the active master for the reign.
    AskHandover {
        /// Whether an operator wants it.
        forced: bool,
    },
    /// Yield the reign to the standby that asked.
    GrantHandover,
    /// Answer that the reign is not yielded now.
    RefuseHandover(Refusal),
}

/// Why a reign is not yielded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This master does not serve.
    NotActive,
    /// What the other one follows is not the log that this master writes.
    OtherLog,
    /// The other one lags behind or lacks slaves.
    NotReady,
    /// The other one's last reigns were short: it must be stable for longer.
    Unstable {
        /// How long it must still wait, in milliseconds.
        remaining_ms: u64,
    },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::NotActive => f.write_str("this master does not serve"),
            Refusal::OtherLog => f.write_str("the standby follows another log than this master writes"),
            Refusal::NotReady => f.write_str("the standby lags behind or lacks slaves"),
            Refusal::Unstable { remaining_ms } => {
                write!(f, "the last reigns were short, {remaining_ms} ms of stability are missing")
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Behind the log.
    Replaying,
    /// Leaves a free lock to the other master until then.
    Courting { until: Option<Millis> },
    /// Queued for the lock.
    Waiting,
    /// Holds the lock, does not serve yet.
    Recovering,
    /// Serves.
    Reigning { since: Millis },
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Takeover {
    config: Config,
    state: State,
    doubt: SelfDoubt,
    /// The holder's counter and since when it stands there.
    beat: Option<(Option<u64>, Millis)>,
    peer_active_since: Option<Millis>,
    peer_connected_since: Option<Millis>,
    /// When this master last yielded.
    yielded_at: Option<Millis>,
    /// How long the other one must be stable before it gets the reign.
    patience_ms: u64,
    asked: bool,
    forced: bool,
}

impl Takeover {
    /// A standby that has not read the log yet.
    pub fn new(config: Config, now: Millis) -> Self {
        Takeover {
            config,
            state: State::Replaying,
            doubt: SelfDoubt::new(now, (config.failover_timeout_ms / 4).max(100)),
            beat: None,
            peer_active_since: None,
            peer_connected_since: None,
            yielded_at: None,
            patience_ms: config.stable_ms,
            asked: false,
            forced: false,
        }
    }

    /// Whether this master is queued for the lock or courts it.
    pub fn is_standby(&self) -> bool {
        match self.state {
            State::Replaying | State::Courting { .. } | State::Waiting => true,
            State::Recovering | State::Reigning { .. } => false,
        }
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, now: Millis, event: Event, effects: &mut Vec<Effect>) {
        self.doubt.observe(now);
        match event {
            Event::CaughtUp => {
                if self.state == State::Replaying {
                    let courteous = !self.config.preferred || self.yielded_at.is_some();
                    if courteous {
                        self.state = State::Courting { until: None };
                    } else {
                        self.wait(effects);
                    }
                }
            }
            Event::Looked(seen) => self.looked(now, seen, effects),
            Event::LockWon => {
                self.state = State::Recovering;
                self.beat = None;
                self.asked = false;
                self.forced = false;
            }
            Event::ReignBegan => {
                self.state = State::Reigning { since: now };
                // The other one reigned between our yielding and now.
                if let Some(yielded_at) = self.yielded_at.take() {
                    let short = now.since(yielded_at) < SHORT_REIGN_MS;
                    self.patience_ms =
                        if short { (self.patience_ms * 2).min(STABLE_MAX_MS) } else { self.config.stable_ms };
                }
            }
            Event::ReignEnded => {
                self.state = State::Replaying;
                self.yielded_at = Some(now);
            }
            Event::Peer { active } => {
                match active {
                    Some(_) => self.peer_connected_since = self.peer_connected_since.or(Some(now)),
                    None => self.peer_connected_since = None,
                }
                self.peer_active_since = match active {
                    Some(true) => self.peer_active_since.or(Some(now)),
                    Some(false) | None => None,
                };
                self.asked &= active == Some(true);
            }
            Event::HandoverRequested { follows, ready, forced } => {
                effects.push(self.verdict(now, follows, ready, forced));
            }
            Event::HandoverRefused => {
                self.asked = false;
                self.forced = false;
                self.peer_active_since = self.peer_active_since.map(|_| now);
            }
            Event::HandoverOffered => self.forced = true,
        }
        self.ask_if_due(now, effects);
    }

    fn wait(&mut self, effects: &mut Vec<Effect>) {
        self.state = State::Waiting;
        self.beat = None;
        effects.push(Effect::WaitForLock);
    }

    fn looked(&mut self, now: Millis, seen: Seen, effects: &mut Vec<Effect>) {
        match (self.state, seen) {
            (State::Courting { .. }, Seen::Held { .. }) => self.wait(effects),
            (State::Courting { until: None }, Seen::Free) => {
                self.state = State::Courting { until: Some(now.plus(self.config.courtesy_ms)) };
            }
            (State::Courting { until: Some(until) }, Seen::Free) => {
                if now >= until {
                    self.wait(effects);
                }
            }
            (State::Waiting, Seen::Held { beat }) => self.suspect(now, beat, effects),
            (State::Waiting, Seen::Free) => self.beat = None,
            (State::Replaying | State::Recovering | State::Reigning { .. }, _) => {}
        }
    }

    /// A counter that stands still while our own clock runs is a holder that hangs.
    fn suspect(&mut self, now: Millis, beat: Option<u64>, effects: &mut Vec<Effect>) {
        match self.beat {
            Some((last, since)) if last == beat => {
                if self.doubt.expired(now, since, self.config.failover_timeout_ms) {
                    effects.push(Effect::Fence);
                    self.beat = Some((beat, now));
                }
            }
            Some(_) | None => self.beat = Some((beat, now)),
        }
    }

    fn ask_if_due(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.state != State::Waiting || self.asked {
            return;
        }
        let Some(since) = self.peer_active_since else { return };
        let by_itself = self.config.preferred && self.config.failback;
        let due = by_itself && self.doubt.expired(now, since, self.config.stable_ms);
        if due || self.forced {
            self.asked = true;
            effects.push(Effect::AskHandover { forced: self.forced });
        }
    }

    fn verdict(&self, now: Millis, follows: bool, ready: bool, forced: bool) -> Effect {
        let State::Reigning { .. } = self.state else {
            return Effect::RefuseHandover(Refusal::NotActive);
        };
        if !follows {
            return Effect::RefuseHandover(Refusal::OtherLog);
        }
        if !ready {
            return Effect::RefuseHandover(Refusal::NotReady);
        }
        let stable_ms = self.peer_connected_since.map_or(0, |since| now.since(since));
        if !forced && stable_ms < self.patience_ms {
            let remaining_ms = self.patience_ms - stable_ms;
            return Effect::RefuseHandover(Refusal::Unstable { remaining_ms });
        }
        Effect::GrantHandover
    }
}
