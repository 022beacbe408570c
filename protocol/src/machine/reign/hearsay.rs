//! What a master has heard of its log from others, and read in it itself: the claims that `may_begin.rs` holds a log against.
//!
//! Owns what it remembers of that from reign to reign. A log that has less, or something else, does not make it forget.

use super::may_begin::{Claim, Source};
use super::{Effect, Leadership};
use crate::ids::{ClusterId, Epoch, Millis, Reign, Seq, SlaveId};
use crate::machine::master::{Reigns, Testimony};
use crate::message;
use crate::record::Position;
use crate::witness_file::WitnessText;

/// What those who are connected say of the log.
#[derive(Clone, Debug)]
pub struct Hearsay<'a> {
    /// Slaves that belong to a cluster: to which, and what they have seen of its log.
    pub slaves: Vec<(SlaveId, ClusterId, Option<message::Seen>)>,
    /// Whether a slave that belongs to none is connected.
    pub has_newcomer: bool,
    /// The reigns of the log that was read.
    pub reigns: &'a Reigns,
}

/// What this master has itself read in the log, of what is certainly on disk, or written there.
#[derive(Clone, Copy, Debug)]
struct Memory {
    cluster: ClusterId,
    seen: Option<message::Seen>,
}

/// What is known of the log beside what stands in it.
#[derive(Clone, Debug)]
pub(super) struct Knowledge {
    /// When others could first reach this master.
    started_at: Millis,
    /// Whether one of the masters has served since this one started.
    has_been_served: bool,
    /// What the log certainly held.
    memory: Option<Memory>,
    /// What the other master calls its cluster.
    peer_cluster: Option<ClusterId>,
    /// A slave that has named a cluster while nobody serves.
    slave_of: Option<(SlaveId, ClusterId)>,
    /// Whose log the last leader has served, by what he has declared.
    declared_cluster: Option<ClusterId>,
    /// The epoch that he has declared.
    declared_epoch: Option<Epoch>,
}

impl Knowledge {
    pub(super) fn new(now: Millis) -> Self {
        Knowledge {
            started_at: now,
            has_been_served: false,
            memory: None,
            peer_cluster: None,
            slave_of: None,
            declared_cluster: None,
            declared_epoch: None,
        }
    }

    pub(super) fn won(&mut self, cluster: Option<ClusterId>, epoch: Option<Epoch>) {
        (self.declared_cluster, self.declared_epoch) = (cluster, epoch);
    }

    pub(super) fn declared_epoch(&self) -> Epoch {
        self.declared_epoch.unwrap_or_default()
    }

    pub(super) fn heard_ms(&self, now: Millis) -> u64 {
        now.since(self.started_at)
    }

    pub(super) fn has_been_served(&self) -> bool {
        self.has_been_served
    }

    pub(super) fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// This master serves: what was heard before is settled.
    pub(super) fn served(&mut self) {
        self.has_been_served = true;
        self.slave_of = None;
    }

    pub(super) fn peer_named(&mut self, cluster: Option<ClusterId>) {
        self.peer_cluster = cluster.or(self.peer_cluster);
    }

    pub(super) fn peer_said(&mut self, active: bool) {
        self.has_been_served |= active;
    }

    /// Notes whose a slave is, as long as that is all that is known of the log. A slave that has been restarted belongs
    /// to nobody.
    pub(super) fn slave_came(&mut self, id: &SlaveId, cluster: Option<ClusterId>) {
        match cluster {
            Some(cluster) if self.slave_of.is_none() => self.slave_of = Some((id.clone(), cluster)),
            None if self.slave_of.as_ref().is_some_and(|(named, _)| named == id) => self.slave_of = None,
            Some(_) | None => {}
        }
    }

    /// Everything that somebody knows of the log.
    pub(super) fn claims(
        &self,
        hearsay: &Hearsay<'_>,
        peer_epoch: Option<Epoch>,
        noted: &WitnessText,
    ) -> Vec<Claim> {
        let mut claims = Vec::new();
        if let Some(cluster) = self.declared_cluster {
            claims.push(Claim {
                source: Source::LastLeader,
                cluster,
                epoch: self.declared_epoch,
                seen: None,
            });
        }
        if let Some(Memory { cluster, seen }) = self.memory {
            claims.push(Claim { source: Source::Memory, cluster, epoch: None, seen });
        }
        if let Some(cluster) = self.peer_cluster {
            claims.push(Claim { source: Source::Peer, cluster, epoch: peer_epoch, seen: None });
        }
        claims.extend(hearsay.slaves.iter().map(|(id, cluster, seen)| {
            let source = Source::Slave(id.clone());
            Claim { source, cluster: *cluster, epoch: None, seen: *seen }
        }));
        if let Some(cluster) = noted.cluster {
            claims.extend(noted.seen.iter().map(|(id, seen)| {
                let source = Source::Noted(id.clone());
                Claim { source, cluster, epoch: None, seen: Some(*seen) }
            }));
        }
        if let Some((id, cluster)) = &self.slave_of {
            let source = Source::Slave(id.clone());
            claims.push(Claim { source, cluster: *cluster, epoch: None, seen: None });
        }
        claims
    }
}

impl Leadership {
    /// Remembers what the log certainly holds on disk, once it is served: what nobody serves may be the wrong one. A log that
    /// has less, or something else, does not make it forget.
    pub(super) fn remember(
        &mut self,
        durable: &Position,
        end: Seq,
        reigns: &Reigns,
        effects: &mut Vec<Effect>,
    ) {
        let Position { cluster, reign, seq, .. } = *durable;
        let Some(cluster) = cluster.filter(|_| self.known.has_been_served) else { return };
        effects.push(Effect::NameCluster(cluster));
        let is_reign = reign != Reign::default();
        let seen = is_reign.then_some(message::Seen { reign, seq, durable: true });
        // The other master serves a later reign of it: then what was remembered of an earlier one is settled.
        let served = self.takeover.served_epoch();
        let is_settled = |old: &message::Seen| served == Some(reign.epoch) && reign.epoch > old.reign.epoch;
        let lacks = |old: &message::Seen| reigns.testimony_at(end, old) != Testimony::Agrees;
        let is_further = |old: &message::Seen| {
            seen.is_none_or(|seen| (old.reign.epoch, old.seq) > (seen.reign.epoch, seen.seq))
        };
        let has_more = |old: &Memory| {
            old.cluster != cluster
                || old.seen.as_ref().is_some_and(|old| (lacks(old) && !is_settled(old)) || is_further(old))
        };
        if !self.known.memory.as_ref().is_some_and(has_more) {
            self.known.memory = Some(Memory { cluster, seen });
        }
    }
}
