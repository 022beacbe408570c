//! The masters that are connected to this one: each may ask for the reign.
//!
//! Owns since when each is connected, and which of them could not have the reign that an operator wants to move. Whether one
//! that asks gets it is `takeover.rs`'s to say.

use super::Refusal;
use crate::ids::{LinkId, Millis};
use std::collections::BTreeMap;

/// One of them.
#[derive(Clone, Copy, Debug)]
struct ConnectedStandby {
    connected_since: Millis,
    /// Why it was refused, since an operator last had the reign offered; nothing while none waits.
    refused: Option<Refusal>,
}

/// All of them, by their links to this master.
#[derive(Clone, Debug, Default)]
pub(super) struct Standbys(BTreeMap<LinkId, ConnectedStandby>);

impl Standbys {
    pub(super) fn came(&mut self, now: Millis, link: LinkId) {
        self.0.insert(link, ConnectedStandby { connected_since: now, refused: None });
    }

    pub(super) fn went(&mut self, link: LinkId) {
        self.0.remove(&link);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How long the one on that link has been connected, in milliseconds.
    pub(super) fn connected_ms(&self, now: Millis, link: LinkId) -> u64 {
        self.0.get(&link).map_or(0, |standby| now.since(standby.connected_since))
    }

    /// The reign is offered to all of them anew, or no operator waits any more.
    pub(super) fn forget_refusals(&mut self) {
        self.0.values_mut().for_each(|standby| standby.refused = None);
    }

    /// The one on that link has asked, and does not get the reign.
    pub(super) fn refused(&mut self, link: LinkId, why: Refusal) {
        if let Some(standby) = self.0.get_mut(&link) {
            standby.refused = Some(why);
        }
    }

    /// The one on that link has asked, and the log is being handed over to it.
    pub(super) fn granted(&mut self, link: LinkId) {
        if let Some(standby) = self.0.get_mut(&link) {
            standby.refused = None;
        }
    }

    /// Why none of them gets the reign; nothing while one may still ask for it.
    pub(super) fn all_refused(&self) -> Option<Refusal> {
        let refusals: Option<Vec<Refusal>> = self.0.values().map(|standby| standby.refused).collect();
        refusals?.pop()
    }
}
