//! What clients of Redis are told of who serves.
//!
//! Owns the last master that was known to serve; the rest is taken from where it is.

use super::MasterActor;
use dsm_protocol::info::RedisRole;
use dsm_protocol::serving_view::{OtherMaster, ServingView};

impl MasterActor {
    /// Who serves, as this master sees it now.
    pub(super) fn serving_view(&self) -> ServingView {
        let state = self.state();
        let is_served = state.active_address.is_some();
        let follows = self.reign.is_standby() || (is_served && !state.active);
        let other = |address: &String| {
            let dialed = self.peers.dialed_at(address);
            OtherMaster {
                address: address.clone(),
                is_connected: dialed.is_some(),
                seq: dialed.map(|dialed| dialed.state().seq).unwrap_or_default(),
            }
        };
        ServingView {
            // One that leads and does not serve yet is what it is about to be: Redis' clients ask it for LOADING.
            role: if follows && !self.serves() { RedisRole::Slave } else { RedisRole::Master },
            own: self.address.clone(),
            master: state.active_address.or_else(|| self.switchboard.view.now().master.clone()),
            is_served,
            others: self.peers.addresses().iter().map(other).collect(),
            seq: state.seq,
            epoch: state.epoch,
        }
    }

    /// Lets connections know who serves.
    pub(super) fn tell_view(&self) {
        let view = self.serving_view();
        let is_news = view.differs_from(&self.switchboard.view.now());
        self.switchboard.view.set(view);
        if is_news {
            self.switchboard.view_changed.notify_waiters();
        }
    }
}
