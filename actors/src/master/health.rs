//! What this master's cluster is short of: looked at with every tick, told in the log when it begins and ends.
//!
//! Owns the count of copies, and what was seen last of who leads while nobody is known to serve. The rules are
//! `protocol/src/machine/health.rs`'s.

use super::MasterActor;
use crate::journal::LogRequest;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::health::{Facts, Health, News};
use dsm_protocol::machine::master::{Census, CopyCount, Lacking, Master};

/// How often a master that knows of nobody that serves looks who leads, in milliseconds.
const LOOK_MS: u64 = 1000;

/// What is watched.
pub(super) struct HealthWatch {
    health: Health,
    census: Census,
    /// Who leads, as far as it was looked at.
    leader: Option<String>,
    /// Whether that is asked and not answered: the disk may take any time for it.
    is_asked: bool,
    looked_at: Millis,
}

impl HealthWatch {
    /// Nothing is amiss yet.
    pub(super) fn new(now: Millis) -> Self {
        HealthWatch {
            health: Health::default(),
            census: Census::default(),
            leader: None,
            is_asked: false,
            looked_at: now,
        }
    }

    /// Counts on, in the master that serves.
    fn count(&mut self, now: Millis, machine: &Master, serves: bool) {
        if serves {
            self.census.look(now, machine);
        } else {
            self.census.forget();
        }
    }

    /// Whether it is to be asked who leads: when nobody `is_known` to serve, once in a while, one question at a time.
    fn is_to_ask(&mut self, now: Millis, is_known: bool) -> bool {
        if is_known {
            self.leader = None;
            return false;
        }
        if now.since(self.looked_at) < LOOK_MS {
            return false;
        }
        self.looked_at = now;
        !std::mem::replace(&mut self.is_asked, true)
    }

    /// Who leads, by the log.
    pub(super) fn leader_seen(&mut self, leader: Option<String>) {
        (self.leader, self.is_asked) = (leader, false);
    }

    /// Says what is new.
    fn look(&mut self, now: Millis, facts: Facts) {
        for news in self.health.look(now, facts) {
            match news {
                News::Began(trouble) => log::warn!("degraded: {}", self.health.words(trouble)),
                News::Ended { trouble, ms } => {
                    log::warn!("no longer degraded: {} after_ms={ms}", trouble.over());
                }
            }
        }
    }

    /// What is amiss, in words; nothing when nothing is.
    pub(super) fn degraded(&self) -> String {
        self.health.degraded()
    }

    /// What copies were lacking at the last count, and when that was.
    pub(super) fn last_count(&self) -> Option<(Millis, Lacking)> {
        self.census.last()
    }
}

impl MasterActor {
    /// Looks at what is missing, and says what is new.
    pub(super) fn look_after_health(&mut self, now: Millis) {
        let serves = self.serves();
        self.health.count(now, &self.machine, serves);
        if let Some((began, lacking)) = self.health.last_count().filter(|_| serves) {
            self.machine.note_count(now, began, lacking);
        }
        // Between two roles nobody is short of anything yet.
        if self.reign.is_stopping() || (!serves && !self.reign.is_standby()) {
            return;
        }
        let knows_active = self.peers.serving().is_some();
        if self.health.is_to_ask(now, serves || knows_active) {
            self.log.ask(LogRequest::WhoLeads);
        }
        let facts = Facts {
            serves,
            leader: self.health.leader.clone(),
            knows_active,
            standby_lag_ms: self.peers.lag_ms(now),
            silent_members: self.log.silent_members(),
            slaves: if serves { self.machine.slave_count() } else { 0 },
            slaves_not_missed: if serves { self.machine.slaves_not_missed() } else { 0 },
            slaves_wanted: match self.config.copies {
                CopyCount::Half => 0,
                CopyCount::Fixed(copies) => copies.into(),
            },
            full: self.machine.full_slaves().map(|(id, ..)| id.to_string()).collect(),
            keys_without_copy: self.health.last_count().map_or(0, |(_, lacking)| lacking.without_copy),
        };
        self.health.look(now, facts);
    }
}
