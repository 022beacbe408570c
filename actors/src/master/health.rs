//! What this master's cluster is short of: looked at with every tick, told in the log when it begins and ends.

use super::MasterActor;
use crate::journal::LogRequest;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::health::{Facts, News};

/// How often a master that knows of nobody that serves looks who holds the lock, in milliseconds.
const LOOK_MS: u64 = 1000;

/// Who leads, as far as it was looked at.
#[derive(Debug, Default)]
pub(super) struct LeaderSeen {
    leader: Option<String>,
    /// Whether it was asked and is not answered: the disk may take any time for it.
    is_asked: bool,
}

impl MasterActor {
    /// Looks at what is missing, and says what is new.
    pub(super) fn look_after_health(&mut self, now: Millis) {
        let serves = self.serves();
        if serves {
            self.census.look(now, &self.machine);
        } else {
            self.census.forget();
        }
        // Between two roles nobody is short of anything yet.
        if self.reign.is_stopping() || (!serves && !self.reign.is_standby()) {
            return;
        }
        let knows_active = self.dialed.serving().is_some();
        if serves || knows_active {
            self.leader.leader = None;
        } else if now.since(self.lock_looked_at) >= LOOK_MS {
            self.lock_looked_at = now;
            if !std::mem::replace(&mut self.leader.is_asked, true) {
                self.log.ask(LogRequest::WhoLeads);
            }
        }
        let facts = Facts {
            serves,
            lock_holder: self.leader.leader.clone(),
            knows_active,
            standby_lag_ms: self.standby_lag_ms(now),
            slaves: if serves { self.machine.slave_count() } else { 0 },
            full: self.machine.full_slaves().map(|(id, ..)| id.to_string()).collect(),
            keys_without_copy: self.census.last().map_or(0, |(_, lacking)| lacking.without_copy),
        };
        for news in self.health.look(now, facts) {
            match news {
                News::Began(trouble) => log::warn!("degraded: {}", self.health.words(trouble)),
                News::Ended { trouble, ms } => {
                    log::warn!("no longer degraded: {} after_ms={ms}", trouble.over());
                }
            }
        }
    }

    /// Who leads, by the log.
    pub(super) fn leader_seen(&mut self, leader: Option<String>) {
        self.leader = LeaderSeen { leader, is_asked: false };
    }

    /// How far the best of the other masters is behind; `None` when none is connected.
    pub(super) fn standby_lag_ms(&self, now: Millis) -> Option<u64> {
        self.dialed.iter().map(|dialed| dialed.lag.ms(now)).min()
    }
}
