//! What this master's cluster is short of: looked at with every tick, told in the log when it begins and ends.

use super::MasterActor;
use crate::env::Locks;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::health::{Facts, News};
use dsm_protocol::machine::reign::takeover::Seen;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

/// How often a master that knows of nobody that serves looks who holds the lock, in milliseconds.
const LOOK_MS: u64 = 1000;

/// Who holds the lock, as far as it was looked at.
#[derive(Debug, Default)]
pub(super) struct LockHolder {
    seen: RefCell<Option<String>>,
    /// Whether a look is under way.
    looking: Cell<bool>,
}

/// Who holds the lock, if somebody does: pid and address from the lock file's text.
async fn lock_holder(locks: &dyn Locks, path: &Path) -> Option<String> {
    match locks.look(path).await {
        Ok(Seen::Held { .. }) => {}
        Ok(Seen::Free) | Err(_) => return None,
    }
    let text = locks.text(path).await.ok()?;
    let pid = text.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    Some(format!("pid={pid} address={}", text.address.as_deref().unwrap_or("unknown")))
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
        let knows_active = self.dialed.as_ref().is_some_and(|dialed| dialed.state.active);
        if serves || knows_active {
            self.lock_holder.seen.take();
        } else if now.since(self.lock_looked_at) >= LOOK_MS {
            self.lock_looked_at = now;
            self.look_for_lock_holder();
        }
        let facts = Facts {
            serves,
            lock_holder: self.lock_holder.seen.borrow().clone(),
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

    /// Finds out who holds the lock, one look at a time: the disk may take any time for it.
    fn look_for_lock_holder(&self) {
        let holder = Rc::clone(&self.lock_holder);
        if holder.looking.replace(true) {
            return;
        }
        let (locks, path) = (self.env.locks(), self.config.lock_path());
        actix::spawn(async move {
            let seen = lock_holder(&*locks, &path).await;
            holder.looking.set(false);
            holder.seen.replace(seen);
        });
    }

    /// How far the other master is behind; `None` when it is not connected.
    pub(super) fn standby_lag_ms(&self, now: Millis) -> Option<u64> {
        self.dialed.as_ref().map(|dialed| dialed.lag.ms(now))
    }

    /// The active slave that takes longest to acknowledge, and how long, in milliseconds.
    pub(super) fn slowest_slave(&self, now: Millis) -> Option<(&str, u64)> {
        let active = self.slaves.values().filter(|slave| slave.link.borrow().is_active());
        let waits = active.map(|slave| (slave.id.as_str(), slave.link.borrow().ack_ms(now)));
        waits.max_by_key(|(_, ms)| *ms)
    }
}
