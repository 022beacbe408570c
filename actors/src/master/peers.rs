//! The other masters: those that have connected to this one, and this one's links to them.
//!
//! Owns what each has said of itself and what it was told, and the way to it. Never decides who leads: the machine of the
//! reign does. What peers say is heard in `peer_events.rs`.

use super::agenda::Allowance;
use super::forwards::{Foreknowledge, Forwards};
use super::send;
use crate::batch::Outbox;
use dsm_protocol::ids::{LinkId, Millis, Seq, SessionId};
use dsm_protocol::machine::health::{Lag, TELL_MS};
use dsm_protocol::message::{Control, MasterState, Message, Request, StreamUser};
use std::collections::BTreeMap;

/// Another master that has connected to this one.
struct PeerInbound {
    outbox: Outbox,
    address: String,
    /// Its forwarded sessions by its own numbers.
    streams: BTreeMap<u64, SessionId>,
    /// Whether it was asked for a sign that it knows that no request is taken in any more, and has given none.
    may_forward: bool,
}

/// A link of this master to another one.
pub(super) struct PeerOutbound {
    link: LinkId,
    /// The address that was dialed.
    address: String,
    outbox: Outbox,
    /// What it has said last.
    state: MasterState,
    /// How far it is behind.
    lag: Lag,
    forwards: Forwards,
}

impl PeerOutbound {
    /// A link that stands, to the master at `address`, which has said this of itself while the own log ended at `own_seq`.
    pub(super) fn new(
        now: Millis,
        link: LinkId,
        (address, outbox): (String, Outbox),
        (state, own_seq): (MasterState, Seq),
    ) -> Self {
        let forwards = Forwards::new(link, outbox.clone());
        let lag = Lag::new(now, state.seq, own_seq);
        PeerOutbound { link, address, outbox, state, lag, forwards }
    }

    /// The address that was dialed.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What it has said last.
    pub(super) fn state(&self) -> &MasterState {
        &self.state
    }

    /// Its name.
    pub(super) fn link(&self) -> LinkId {
        self.link
    }

    /// The way to it.
    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}

/// All other masters.
pub(super) struct Peers {
    /// Where they are reached, in the order of the settings.
    addresses: Vec<String>,
    inbound: BTreeMap<LinkId, PeerInbound>,
    outbound: BTreeMap<LinkId, PeerOutbound>,
    /// Those that have refused this one when it dialed them last, by their addresses in the settings, and why.
    refusals: BTreeMap<String, String>,
    /// The last seq that the foremost of them has told of.
    seq: Seq,
    /// What they were told last of how far this one has come, and when.
    told: (Seq, Millis),
}

impl Peers {
    /// Nobody is connected.
    pub(super) fn new(addresses: Vec<String>, now: Millis) -> Self {
        Peers {
            addresses,
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            refusals: BTreeMap::new(),
            seq: Seq::default(),
            told: (Seq::default(), now),
        }
    }

    /// Where they are reached, in the order of the settings.
    pub(super) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// One has connected, and calls itself by this address.
    pub(super) fn came(&mut self, link: LinkId, outbox: Outbox, address: String) {
        let peer = PeerInbound { outbox, address, streams: BTreeMap::new(), may_forward: false };
        self.inbound.insert(link, peer);
    }

    /// One that had connected is gone; gives the sessions that it forwarded for.
    pub(super) fn went(&mut self, link: LinkId) -> Option<impl Iterator<Item = SessionId>> {
        let peer = self.inbound.remove(&link)?;
        log::debug!("other master disconnected address={}", peer.address);
        Some(peer.streams.into_values())
    }

    /// What the one that has connected over `link` calls itself.
    pub(super) fn address_of(&self, link: LinkId) -> Option<&str> {
        self.inbound.get(&link).map(|peer| peer.address.as_str())
    }

    /// The way to the one that has connected over `link`.
    pub(super) fn outbox_of(&self, link: LinkId) -> Option<&Outbox> {
        self.inbound.get(&link).map(|peer| &peer.outbox)
    }

    /// Says something to all that have connected.
    pub(super) fn say_to_all(&self, said: Control) {
        let message = Message::Control(said);
        self.inbound.values().for_each(|peer| send(&peer.outbox, &message));
    }

    /// Says to all that have connected who serves, and how far this master has come.
    pub(super) fn tell(&mut self, now: Millis, state: MasterState) {
        self.told = (state.seq, now);
        self.say_to_all(Control::MasterState(state));
    }

    /// Whether those that have connected are to be told how far this master has come, which is `seq`: when that is news of
    /// one that `serves`, and often enough to be known to live.
    pub(super) fn are_to_be_told(&self, now: Millis, seq: Seq, serves: bool) -> bool {
        let (told_seq, told_at) = self.told;
        !self.inbound.is_empty() && ((serves && told_seq != seq) || now.since(told_at) >= TELL_MS)
    }

    /// Asks those that forward to this one for a sign that they do so no more.
    pub(super) fn ask_forwarders(&mut self) {
        self.say_to_all(Control::Probe);
        self.inbound.values_mut().for_each(|peer| peer.may_forward = true);
    }

    /// One gives that sign.
    pub(super) fn forwards_no_more(&mut self, link: LinkId) {
        if let Some(peer) = self.inbound.get_mut(&link) {
            peer.may_forward = false;
        }
    }

    /// Whether somebody that was asked has not given it.
    pub(super) fn may_forward(&self) -> bool {
        self.inbound.values().any(|peer| peer.may_forward)
    }

    /// The session for which a stream is forwarded, if it is known.
    pub(super) fn session_of(&self, link: LinkId, stream: u64) -> Option<SessionId> {
        self.inbound.get(&link)?.streams.get(&stream).copied()
    }

    /// How many sessions are forwarded for.
    pub(super) fn streams(&self) -> usize {
        self.inbound.values().map(|peer| peer.streams.len()).sum()
    }

    /// A session begins for a stream.
    pub(super) fn stream_began(&mut self, link: LinkId, stream: u64, session: SessionId) {
        if let Some(peer) = self.inbound.get_mut(&link) {
            peer.streams.insert(stream, session);
        }
    }

    /// A stream is closed; gives its session.
    pub(super) fn stream_closed(&mut self, link: LinkId, stream: u64) -> Option<SessionId> {
        self.inbound.get_mut(&link)?.streams.remove(&stream)
    }

    /// Has the links of those that have connected ended, once what is said is sent.
    pub(super) fn finish(&self) {
        self.inbound.values().for_each(|peer| peer.outbox.finish());
    }

    /// One of those in the settings refuses this one.
    pub(super) fn refused_by(&mut self, address: String, reason: String) {
        self.refusals.insert(address, reason);
    }

    /// How many refuse this one.
    pub(super) fn refusing(&self) -> usize {
        self.refusals.len()
    }

    /// Why they do.
    pub(super) fn refusals(&self) -> String {
        self.refusals.values().map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    /// A link to one stands: it does not refuse this one any more.
    pub(super) fn dialed(&mut self, peer: PeerOutbound) {
        self.refusals.remove(&peer.address);
        self.outbound.insert(peer.link, peer);
    }

    /// A link to one is gone; whether it was known.
    pub(super) fn lost(&mut self, link: LinkId) -> bool {
        self.outbound.remove(&link).is_some()
    }

    /// Whether a link to one stands.
    pub(super) fn has_dialed(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// A link to one.
    pub(super) fn outbound(&self, link: LinkId) -> Option<&PeerOutbound> {
        self.outbound.get(&link)
    }

    /// The link to the one at this address of the settings.
    pub(super) fn dialed_at(&self, address: &str) -> Option<&PeerOutbound> {
        self.outbound.values().find(|peer| peer.address == address)
    }

    /// One tells who serves and how far it has come, while the own log ends at `own_seq`.
    pub(super) fn told(&mut self, now: Millis, link: LinkId, state: MasterState, own_seq: Seq) {
        if let Some(peer) = self.outbound.get_mut(&link) {
            peer.lag.told(now, state.seq, own_seq);
            peer.state = state;
        }
    }

    /// We did not run ourselves: what they have told meanwhile is not read yet.
    pub(super) fn restart_lags(&mut self, now: Millis) {
        self.outbound.values_mut().for_each(|peer| peer.lag.restart(now));
    }

    /// How far the best of them is behind, in milliseconds; `None` when no link to one stands.
    pub(super) fn lag_ms(&self, now: Millis) -> Option<u64> {
        self.outbound.values().map(|peer| peer.lag.ms(now)).min()
    }

    /// The link to the master that serves: of several that say so, the one of the latest reign.
    pub(super) fn serving(&self) -> Option<&PeerOutbound> {
        self.outbound.values().filter(|peer| peer.state.active).max_by_key(|peer| peer.state.epoch)
    }

    /// That one, or else one to the master whose log has come furthest.
    pub(super) fn foremost(&self) -> Option<&PeerOutbound> {
        let furthest = || self.outbound.values().max_by_key(|peer| (peer.state.epoch, peer.state.seq));
        self.serving().or_else(furthest)
    }

    /// Those that say that they serve, in an earlier reign than another one that serves by now.
    pub(super) fn deposed(&self) -> impl Iterator<Item = &PeerOutbound> {
        let latest = self.serving().map(|serving| serving.state.epoch);
        let serves = self.outbound.values().filter(|peer| peer.state.active);
        serves.filter(move |peer| latest.is_some_and(|latest| peer.state.epoch < latest))
    }

    /// Notes how far the foremost has come.
    pub(super) fn note_seq(&mut self, seq: Seq) {
        self.seq = seq;
    }

    /// By how many records this master is behind the foremost of the others.
    pub(super) fn seqs_behind(&self, own_seq: Seq) -> u64 {
        self.seq.0.saturating_sub(own_seq.0)
    }

    /// Sends a request of that user over a link; over one that is gone, nothing: the front hears of its end.
    pub(super) fn forward(
        &mut self,
        link: LinkId,
        (request, user): (Request, Option<StreamUser>),
        known: &Foreknowledge<'_>,
    ) {
        if let Some(peer) = self.outbound.get_mut(&link) {
            peer.forwards.request(request, user.unwrap_or_default(), known);
        }
    }

    /// Tells one that a forwarded session is closed.
    pub(super) fn close_stream(&mut self, link: LinkId, stream: u64) {
        if let Some(peer) = self.outbound.get_mut(&link) {
            peer.forwards.close_stream(stream);
        }
    }

    /// Says to one of them that nothing more is forwarded to it than what it gets before this.
    pub(super) fn sign_off(&mut self, link: LinkId) {
        if let Some(peer) = self.outbound.get_mut(&link) {
            peer.forwards.say(Control::Alive);
        }
    }

    /// Whether something is still to be encoded for one of them.
    pub(super) fn is_behind(&self) -> bool {
        self.outbound.values().any(|peer| peer.forwards.is_behind())
    }

    /// Goes on with what is to be sent to them, as far as the turn has time for it.
    pub(super) fn forward_on(&mut self, known: &Foreknowledge<'_>, left: &mut Allowance<'_>) {
        self.outbound.values_mut().for_each(|peer| peer.forwards.go_on(known, left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_protocol::ids::Epoch;

    fn peers() -> Peers {
        Peers::new(Vec::new(), Millis(0))
    }

    fn link(number: u64, (epoch, seq): (u64, u64), active: bool) -> PeerOutbound {
        let state = MasterState { active, epoch: Epoch(epoch), seq: Seq(seq), active_address: None };
        let way = (format!("peer{number}:1"), Outbox::default());
        PeerOutbound::new(Millis(0), LinkId(number), way, (state, Seq(0)))
    }

    fn foremost(peers: &Peers) -> Option<u64> {
        peers.foremost().map(|peer| peer.link.0)
    }

    #[test]
    fn a_refusal_counts_once_for_each_master_until_that_admits_this_one() {
        let mut peers = peers();
        for (address, reason) in [("peer1:1", "no"), ("peer2:1", "never"), ("peer1:1", "still no")] {
            peers.refused_by(address.to_owned(), reason.to_owned());
        }
        assert_eq!((peers.refusing(), peers.refusals().as_str()), (2, "still no; never"));
        peers.dialed(link(1, (1, 1), false));
        assert_eq!((peers.refusing(), peers.refusals().as_str()), (1, "never"));
    }

    #[test]
    fn the_foremost_is_the_one_that_serves_in_the_latest_reign_or_has_come_furthest() {
        let mut peers = peers();
        assert_eq!(foremost(&peers), None);
        peers.dialed(link(1, (2, 9), true));
        peers.dialed(link(2, (4, 7), true));
        peers.dialed(link(3, (3, 9), true));
        peers.dialed(link(4, (5, 8), false));
        peers.dialed(link(5, (5, 6), false));
        assert_eq!(peers.serving().map(|peer| peer.link), Some(LinkId(2)));
        assert_eq!(
            foremost(&peers),
            Some(2),
            "the one that serves, even if the log of another one is longer"
        );
        // Nobody says any more that it serves.
        peers.outbound.values_mut().for_each(|peer| peer.state.active = false);
        assert!(peers.serving().is_none());
        assert_eq!(foremost(&peers), Some(4), "a record of a later epoch follows");
        assert!(peers.lost(LinkId(4)));
        assert!(!peers.lost(LinkId(4)), "it was gone");
        assert_eq!(foremost(&peers), Some(5));
    }
}
