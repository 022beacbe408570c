//! When to queue for the leadership, whom to suspect, when to ask for the reign, and when a standby that asks is trusted with it.
//!
//! The log decides who leads; these rules only decide when to queue for that, when a leader that stands still is to be
//! fenced, and when a handover is asked for or granted.
//!
//! Of several other masters the foremost is the one that is asked, and what is said here of the other master is what is known of
//! it. One that asks is judged by itself: `standbys.rs`.

use super::{Config, Effect, Leadership, ReignRole};
use crate::ids::{ClusterId, Epoch, LinkId, Millis};
use crate::machine::doubt::SelfDoubt;

/// A reign of the other master that ended sooner than this doubles how long it must be stable before the next.
const SHORT_REIGN_MS: u64 = 10_000;

/// The longest stable time that is asked for.
const STABLE_MAX_MS: u64 = 64_000;

/// What was seen of who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderSeen {
    /// Nobody does.
    Nobody,
    /// Somebody does, with this counter (`None`: it has not begun to count).
    Leads {
        /// The progress counter that the leader publishes.
        beat: Option<u64>,
    },
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
    /// This master hands over already, or stops.
    Occupied,
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
            Refusal::Occupied => f.write_str("this master does not serve, or hands over already"),
        }
    }
}

/// Whether a standby wants to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Not at all: it is behind the log.
    Replaying,
    /// It leaves the leadership to the other master until then.
    Courting {
        /// When its courtesy ends; `None` before it has seen that nobody leads.
        until: Option<Millis>,
    },
    /// Queued for the leadership.
    Queued {
        /// The leader's counter and since when it stands there.
        beat: Option<(Option<u64>, Millis)>,
    },
}

/// What is known of the other master and of ourselves, from reign to reign.
#[derive(Clone, Debug)]
pub(super) struct Takeover {
    config: Config,
    doubt: SelfDoubt,
    peer: Option<Peer>,
    /// When this master last yielded.
    yielded_at: Option<Millis>,
    /// For how long a standby must be connected before it gets the reign.
    patience_ms: u64,
}

/// The other master, as long as a link to one stands. With several it is the foremost: the one that serves, or whose log has
/// come furthest.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// Our link to it. What is asked and said over another link is about somebody else.
    link: LinkId,
    /// Since when it serves, as far as this is known.
    active_since: Option<Millis>,
    /// The epoch of its last durable EPOCH record.
    epoch: Epoch,
    /// Whether it was asked for the reign, and has not answered.
    is_asked: bool,
    /// Whether it has offered the reign: an operator wants this master to serve.
    has_offered: bool,
}

impl Takeover {
    pub(super) fn new(config: Config, now: Millis) -> Self {
        Takeover {
            config,
            doubt: SelfDoubt::new(now, (config.failover_timeout_ms / 4).max(100)),
            peer: None,
            yielded_at: None,
            patience_ms: config.stable_ms,
        }
    }

    /// Notes that the process runs.
    pub(super) fn observe(&mut self, now: Millis) {
        self.doubt.observe(now);
    }

    /// The epoch that the other master is in, if our link to it stands.
    pub(super) fn peer_epoch(&self) -> Option<Epoch> {
        self.peer.map(|peer| peer.epoch)
    }

    /// The epoch in which the other master serves, if it does.
    pub(super) fn served_epoch(&self) -> Option<Epoch> {
        self.peer.filter(|peer| peer.active_since.is_some()).map(|peer| peer.epoch)
    }

    fn is_courteous(&self) -> bool {
        !self.config.preferred || self.yielded_at.is_some()
    }

    fn won(&mut self) {
        if let Some(peer) = &mut self.peer {
            (peer.is_asked, peer.has_offered) = (false, false);
        }
    }

    /// A reign of this master has begun.
    pub(super) fn reign_began(&mut self, now: Millis) {
        // The other one reigned between our yielding and now.
        if let Some(yielded_at) = self.yielded_at.take() {
            let short = now.since(yielded_at) < SHORT_REIGN_MS;
            self.patience_ms =
                if short { (self.patience_ms * 2).min(STABLE_MAX_MS) } else { self.config.stable_ms };
        }
    }

    /// This master has given its reign away.
    pub(super) fn yielded(&mut self, now: Millis) {
        self.yielded_at = Some(now);
    }

    pub(super) fn peer_said(&mut self, now: Millis, link: LinkId, active: bool, epoch: Epoch) {
        // What was asked of another one, or offered by it, ends with its being the foremost.
        let same = self.peer.filter(|peer| peer.link == link);
        self.peer = Some(Peer {
            link,
            active_since: active.then(|| same.and_then(|peer| peer.active_since).unwrap_or(now)),
            epoch,
            is_asked: active && same.is_some_and(|peer| peer.is_asked),
            has_offered: same.is_some_and(|peer| peer.has_offered),
        });
    }

    pub(super) fn peer_lost(&mut self, link: LinkId) {
        self.peer = self.peer.filter(|peer| peer.link != link);
    }

    /// The other master, if that is the link to it.
    fn peer_on(&mut self, link: LinkId) -> Option<&mut Peer> {
        self.peer.as_mut().filter(|peer| peer.link == link)
    }

    /// The master on that link does not yield.
    pub(super) fn refused(&mut self, now: Millis, link: LinkId) {
        if let Some(peer) = self.peer_on(link) {
            (peer.is_asked, peer.has_offered) = (false, false);
            peer.active_since = peer.active_since.map(|_| now);
        }
    }

    /// The master on that link offers its reign.
    pub(super) fn offered(&mut self, link: LinkId) {
        if let Some(peer) = self.peer_on(link) {
            peer.has_offered = true;
        }
    }

    /// Asks the active master for the reign, if it is time: for one that is queued to lead.
    pub(super) fn ask_if_due(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let Some(peer) = self.peer.as_mut().filter(|peer| !peer.is_asked) else { return };
        let Some(since) = peer.active_since else { return };
        let by_itself = self.config.preferred && self.config.failback;
        let due = by_itself && self.doubt.expired(now, since, self.config.stable_ms);
        if due || peer.has_offered {
            peer.is_asked = true;
            effects.push(Effect::AskForReign { to: peer.link, forced: peer.has_offered });
        }
    }

    /// A counter that stands still while our own clock runs is a leader that hangs.
    fn suspect(
        &self,
        now: Millis,
        beat: Option<u64>,
        last: Option<(Option<u64>, Millis)>,
        effects: &mut Vec<Effect>,
    ) -> Option<(Option<u64>, Millis)> {
        match last {
            Some((counter, since)) if counter == beat => {
                if self.doubt.expired(now, since, self.config.failover_timeout_ms) {
                    effects.push(Effect::Fence { beat });
                    return Some((beat, now));
                }
                last
            }
            Some(_) | None => Some((beat, now)),
        }
    }

    /// Whether a standby that asks is trusted with the reign by what it has replayed and by how long it was connected itself; if
    /// not, why.
    pub(super) fn verdict(
        &self,
        connected_ms: u64,
        (follows, ready, forced): (bool, bool, bool),
    ) -> Result<(), Refusal> {
        if !follows {
            return Err(Refusal::OtherLog);
        }
        if !ready {
            return Err(Refusal::NotReady);
        }
        if !forced && connected_ms < self.patience_ms {
            let remaining_ms = self.patience_ms - connected_ms;
            return Err(Refusal::Unstable { remaining_ms });
        }
        Ok(())
    }
}

impl Leadership {
    pub(super) fn caught_up(&mut self, effects: &mut Vec<Effect>) {
        let ReignRole::Standby { queue } = &mut self.role else { return };
        if *queue == Queue::Replaying {
            if self.takeover.is_courteous() {
                *queue = Queue::Courting { until: None };
            } else {
                *queue = Queue::Queued { beat: None };
                effects.push(Effect::QueueToLead);
            }
            // A leader who dies before the next regular look must not cost the courtesy of a second.
            effects.push(Effect::WatchLeader);
        }
    }

    pub(super) fn looked(&mut self, now: Millis, seen: LeaderSeen, effects: &mut Vec<Effect>) {
        let ReignRole::Standby { queue } = &mut self.role else { return };
        let courtesy_ms = self.config.courtesy_ms;
        let is_over = |until: &Option<Millis>| until.is_some_and(|until| now >= until);
        *queue = match (*queue, seen) {
            (Queue::Courting { .. }, LeaderSeen::Leads { .. }) => {
                effects.push(Effect::QueueToLead);
                Queue::Queued { beat: None }
            }
            (Queue::Courting { until }, LeaderSeen::Nobody) if is_over(&until) => {
                effects.push(Effect::QueueToLead);
                Queue::Queued { beat: None }
            }
            (Queue::Courting { until }, LeaderSeen::Nobody) => {
                Queue::Courting { until: until.or(Some(now.plus(courtesy_ms))) }
            }
            (Queue::Queued { beat: last }, LeaderSeen::Leads { beat }) => {
                Queue::Queued { beat: self.takeover.suspect(now, beat, last, effects) }
            }
            (Queue::Queued { .. }, LeaderSeen::Nobody) => Queue::Queued { beat: None },
            (Queue::Replaying, _) => Queue::Replaying,
        };
    }

    /// This master leads: have the log looked at, before anything is done to it. A leadership that is not wanted any more is given
    /// up by the caller, who finds that this master is not `Barred`.
    pub(super) fn won(
        &mut self,
        now: Millis,
        cluster: Option<ClusterId>,
        epoch: Option<Epoch>,
        effects: &mut Vec<Effect>,
    ) {
        // It may have been on its way when this master left the queue: the other one gets it.
        if !self.is_standby() || self.is_leaving() {
            return;
        }
        self.takeover.won();
        self.known.won(cluster, epoch);
        self.become_role(ReignRole::Barred { told_at: now }, effects);
        effects.push(Effect::LookAtLog);
    }
}
