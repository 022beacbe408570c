//! The other masters' side of a master: who serves, forwarded requests, handovers.

use super::{send, told, MasterActor, PeerInbound, PeerOutbound};
use crate::batch::Outbox;
use crate::door::admission::check_sizes;
use crate::door::counters::count;
use crate::door::links::reject;
use crate::door::origin::Origin;
use crate::door::session::{Coding, Session};
use crate::journal::Sight;
use crate::node_error::NodeError;
use crate::shown::shown_message;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::ids::{LinkId, Millis, Reign as ReignName, Seq, SessionId, SlaveId};
use dsm_protocol::machine::front;
use dsm_protocol::machine::health::{Lag, TELL_MS};
use dsm_protocol::machine::master::Asker;
use dsm_protocol::machine::reign;
use dsm_protocol::message::{Control, Hello, HelloRole, MasterState, Message, Request, Welcome};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// What a standby that asks for the reign has replayed.
#[derive(Clone, Copy, Debug)]
struct Follows {
    /// The last record that it has replayed.
    replayed: Seq,
    /// The reign of the last EPOCH record.
    reign: ReignName,
    /// Device and inode of the file.
    file: Option<(u64, u64)>,
}

/// Our links to the other masters.
#[derive(Default)]
pub(super) struct Dialed {
    links: BTreeMap<LinkId, PeerOutbound>,
    /// The one to which requests were forwarded last.
    forwarding: Option<LinkId>,
}

/// What a link was that is gone.
#[derive(Debug, PartialEq, Eq)]
enum Removed {
    /// It was none of ours any more.
    Unknown,
    /// Another one is forwarded to.
    Idle,
    /// What was forwarded over it and is not answered will not be; or no link is left.
    Forwarding,
}

impl Dialed {
    /// Whether no link stands.
    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PeerOutbound> {
        self.links.values()
    }

    /// The same, to change them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut PeerOutbound> {
        self.links.values_mut()
    }

    /// The link to the master that serves: of several that say so, the one of the latest reign.
    pub(super) fn serving(&self) -> Option<&PeerOutbound> {
        self.iter().filter(|dialed| dialed.state.active).max_by_key(|dialed| dialed.state.epoch)
    }

    /// That one, or else one to the master whose log has come furthest.
    fn foremost(&self) -> Option<&PeerOutbound> {
        let furthest = || self.iter().max_by_key(|dialed| (dialed.state.epoch, dialed.state.seq));
        self.serving().or_else(furthest)
    }

    /// The link over which requests are forwarded.
    pub(super) fn forwarding_mut(&mut self) -> Option<&mut PeerOutbound> {
        let forwarding = self.forwarding?;
        self.links.get_mut(&forwarding)
    }

    /// A link by its name.
    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut PeerOutbound> {
        self.links.get_mut(&link)
    }

    /// Notes whether requests are forwarded from now on, to the master that serves.
    fn note_forwarding(&mut self, active: bool) {
        if active {
            self.forwarding = self.serving().map(|serving| serving.generation);
        }
    }

    fn insert(&mut self, dialed: PeerOutbound) {
        self.links.insert(dialed.generation, dialed);
    }

    fn remove(&mut self, link: LinkId) -> Removed {
        if self.links.remove(&link).is_none() {
            return Removed::Unknown;
        }
        let was_forwarding = self.forwarding == Some(link);
        if was_forwarding {
            self.forwarding = None;
        }
        if was_forwarding || self.links.is_empty() {
            Removed::Forwarding
        } else {
            Removed::Idle
        }
    }
}

/// A standby that lags behind by more records than this is not handed the reign.
const LAG_MAX: u64 = 10_000;

/// The longest address that is shown, in characters.
const ADDRESS_SHOWN_MAX: usize = 300;

/// What a master calls itself, in one line: anybody can say that he is one, and it ends up in logs and on terminals.
fn shown_address(said: &str) -> String {
    said.escape_debug().take(ADDRESS_SHOWN_MAX).collect()
}

impl MasterActor {
    /// What this master says of itself.
    pub(super) fn state(&self) -> MasterState {
        // Whoever is told so forwards nothing any more, and holds what its clients ask.
        let serves = self.serves() && !self.reign.is_closing();
        let active_address = if serves {
            Some(self.address.clone())
        } else {
            self.dialed.serving().map(|serving| serving.address.clone())
        };
        // What is not on disk yet is not said: who hears it would miss it in the log.
        let epoch = self.reign.reign().map_or(self.durable.epoch, |reign| reign.epoch);
        MasterState { active: serves, epoch, seq: self.log_seq, active_address }
    }

    /// The answer to a HELLO that is accepted.
    pub(super) fn welcome(&self) -> Welcome {
        Welcome {
            cluster: self.cluster.get(),
            value_max: self.config.value_max() as u64,
            state: self.state(),
        }
    }

    pub(super) fn serves(&self) -> bool {
        self.reign.serves()
    }

    /// Tells the masters that are connected to us who serves.
    pub(super) fn tell_state(&mut self) {
        let state = self.state();
        (self.told_seq, self.told_at) = (state.seq, self.env.now());
        for peer in self.peers.values() {
            send(&peer.outbox, &Message::Control(Control::MasterState(state.clone())));
        }
    }

    /// Lets the other master know how far we have come, for its INFO, and that we live.
    pub(super) fn tell_seq(&mut self, now: Millis) {
        let is_news = self.serves() && self.told_seq != self.log_seq;
        if !self.peers.is_empty() && (is_news || now.since(self.told_at) >= TELL_MS) {
            self.tell_state();
        }
    }

    pub(super) fn peer_hello(
        &mut self,
        link: LinkId,
        hello: Hello,
        outbox: Outbox,
        lock: std::io::Result<String>,
    ) {
        let HelloRole::Master { address, lock_identity } = hello.role else { return };
        let address = shown_address(&address);
        let ours = match lock {
            Ok(ours) => ours,
            // It may pass (no descriptor left, say), and a Reject would end the other master: let it dial again.
            Err(error) => {
                log::warn!("other master not answered address={address} error={error}");
                outbox.abort();
                return;
            }
        };
        let refusal = self.refuse_peer(&address, hello.cluster, &ours, &lock_identity);
        if let Some(reason) = refusal {
            if let Some(unsaid) = self.refusals.is_new(&address, &reason, self.env.now()) {
                log::error!("other master refused address={address} cause={reason:?}{}", told::more(unsaid));
            }
            reject(&outbox, &reason);
            return;
        }
        let now = self.env.now();
        self.step_reign(now, reign::Event::PeerNamed { cluster: hello.cluster });
        let welcome = self.welcome();
        self.switchboard.trust(link);
        send(&outbox, &Message::Control(Control::Welcome(welcome)));
        log::debug!("other master connected address={address} link={link}");
        self.peers
            .insert(link, PeerInbound { outbox, address, streams: BTreeMap::new(), may_forward: false });
        if self.dialed.is_empty() {
            self.switchboard.peer_came.notify_one();
        }
    }

    fn refuse_peer(
        &self,
        address: &str,
        cluster: Option<dsm_protocol::ids::ClusterId>,
        ours: &str,
        lock_identity: &str,
    ) -> Option<String> {
        // Our own link, or a master that calls itself by our name.
        if address == self.address {
            return Some(format!(
                "master {address} is called by its own name, or dials itself: give the other master's address with --peer"
            ));
        }
        // Only a lock file that both can lock keeps two masters from serving at once.
        if ours != lock_identity {
            return Some(format!(
                "master {address} uses another log than master {}, which has {}: both must name the same file with --log",
                self.address,
                std::path::absolute(&self.config.log).unwrap_or_else(|_| self.config.log.clone()).display()
            ));
        }
        match (self.cluster.get(), cluster) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                Some(format!("master {address} belongs to cluster {theirs}, this is cluster {ours}"))
            }
            _ => None,
        }
    }

    pub(super) fn peer_gone(&mut self, now: Millis, link: LinkId) {
        self.switchboard.forget(link);
        let Some(peer) = self.peers.remove(&link) else { return };
        log::debug!("other master disconnected address={}", peer.address);
        for session in peer.streams.into_values() {
            self.session_closed(now, session);
        }
        let is_last = self.peers.is_empty();
        self.step_reign(now, reign::Event::StandbyGone { link, is_last });
    }

    /// The other master says something over its link to us.
    pub(super) fn peer_message(&mut self, now: Millis, link: LinkId, message: Message) {
        if !self.peers.contains_key(&link) {
            return;
        }
        match message {
            Message::Request(request) => self.forwarded(now, link, request),
            Message::Control(Control::StreamClosed { stream }) => {
                let session = self.peers.get_mut(&link).and_then(|peer| peer.streams.remove(&stream));
                if let Some(session) = session {
                    self.session_closed(now, session);
                }
            }
            Message::Control(Control::Alive) => {
                if let Some(peer) = self.peers.get_mut(&link) {
                    peer.may_forward = false;
                }
            }
            Message::Control(Control::HandoverRequest { replayed, reign, file, slaves, forced }) => {
                self.handover_requested(now, link, Follows { replayed, reign, file }, &slaves, forced);
            }
            other => {
                count(&self.switchboard.gate.counters.protocol_errors);
                if let Some(peer) = self.peers.get(&link) {
                    reject(&peer.outbox, &format!("a master does not say {}", shown_message(&other)));
                }
            }
        }
    }

    /// A request of one of the other master's sessions.
    fn forwarded(&mut self, now: Millis, link: LinkId, request: Request) {
        let Request { id, stream, generation, command } = request;
        let board = Rc::clone(&self.switchboard);
        let Some(peer) = self.peers.get_mut(&link) else { return };
        let session = match peer.streams.get(&stream) {
            Some(session) => *session,
            None => {
                let session = SessionId(board.next_id());
                peer.streams.insert(stream, session);
                let outbox = peer.outbox.clone();
                let forwarded = Session::new(session, Origin::forwarded(), outbox, &board.answers);
                self.sessions.insert(session, Rc::new(forwarded));
                session
            }
        };
        let Some(session) = self.sessions.get(&session).cloned() else { return };
        session.set_generation(generation);
        let permit = board.gate.forwarded_request(command.payload_bytes());
        let busy = permit.is_none();
        let asker = Asker { session: session.id(), tag: session.ask(Coding::Native(id), permit) };
        let refusal = check_sizes(&command, self.config.value_max());
        let busy = || busy.then(|| Reply::error(ErrorWord::Busy, "too many requests in flight"));
        match refusal.or_else(busy) {
            Some(refusal) => self.reply(asker, &refusal),
            None => self.request(now, asker, command),
        }
    }

    fn handover_requested(
        &mut self,
        now: Millis,
        link: LinkId,
        follows: Follows,
        slaves: &[SlaveId],
        forced: bool,
    ) {
        let lag = self.log_seq.0.saturating_sub(follows.replayed.0);
        let has_slaves = self.machine.slaves().all(|(id, ..)| slaves.contains(id));
        // A seq alone says nothing: it may be one of another file, or of another log.
        let own = self.followed;
        let own_reign = self.machine.reigns().last().map(|record| record.reign);
        let is_same = follows.file == own && Some(follows.reign) == own_reign;
        if !is_same {
            log::warn!(
                "the standby follows another log file=\"{:?}\" ours=\"{own:?}\" reign={}",
                follows.file,
                follows.reign
            );
        }
        let ready = lag <= LAG_MAX && has_slaves;
        log::debug!("handover requested lag={lag} has_slaves={has_slaves} forced={forced}");
        self.step_reign(now, reign::Event::HandoverRequested { from: link, follows: is_same, ready, forced });
    }

    /// A link of ours to another master stands.
    pub(super) fn dialed_up(
        &mut self,
        now: Millis,
        (generation, address): (LinkId, String),
        welcome: Welcome,
        outbox: Outbox,
    ) {
        if let (Some(ours), Some(theirs)) = (self.cluster.get(), welcome.cluster) {
            if ours != theirs {
                log::error!("other master belongs to another cluster ours={ours} theirs={theirs}");
                outbox.abort();
                return;
            }
        }
        self.step_reign(now, reign::Event::PeerNamed { cluster: welcome.cluster });
        let state = welcome.state;
        self.switchboard.trust(generation);
        let lag = Lag::new(now, state.seq, self.log_seq);
        let forwards = VecDeque::new();
        self.dialed.insert(PeerOutbound { generation, address, outbox, state, lag, forwards });
        self.peers_say(now);
    }

    /// The other master refuses us: it is of another cluster or locks another file. Whoever does not serve yet must
    /// not begin to; whoever serves goes on, and says so.
    pub(super) fn dial_refused(&mut self, reason: String) {
        if self.reign.has_begun() {
            log::error!("refused by the other master cause={reason:?}");
        } else {
            self.fail(NodeError::Refused { reason });
        }
    }

    pub(super) fn dialed_down(&mut self, now: Millis, generation: LinkId) {
        self.switchboard.forget(generation);
        match self.dialed.remove(generation) {
            Removed::Unknown => {}
            Removed::Idle => self.peers_say(now),
            Removed::Forwarding => {
                self.front.set_active_address(None);
                self.step_front(now, front::Event::PeerDown);
                self.peers_say(now);
            }
        }
    }

    pub(super) fn dialed_message(&mut self, now: Millis, generation: LinkId, message: Message) {
        let Some(dialed) = self.dialed.get_mut(generation) else { return };
        match message {
            Message::Response { id, reply } => {
                self.step_front(now, front::Event::Response { id, reply });
            }
            Message::Control(Control::MasterState(state)) => {
                dialed.lag.told(now, state.seq, self.log_seq);
                dialed.state = state;
                self.peers_say(now);
            }
            Message::Control(Control::HandoverRefused { reason }) => {
                log::info!("handover refused cause={reason:?}");
                self.step_reign(now, reign::Event::HandoverRefused);
            }
            Message::Control(Control::HandoverOffer) => {
                self.step_reign(now, reign::Event::HandoverOffered);
            }
            Message::Control(Control::Probe) => send(&dialed.outbox, &Message::Control(Control::Alive)),
            other => {
                let said = shown_message(&other);
                log::warn!("the other master says what a master does not say: {said}");
                dialed.outbox.abort();
            }
        }
    }

    /// Notes what the other masters say by now: of one that serves, if there is one.
    fn peers_say(&mut self, now: Millis) {
        let Some(foremost) = self.dialed.foremost() else {
            self.step_reign(now, reign::Event::PeerLost);
            return;
        };
        let (state, address) = (foremost.state.clone(), foremost.address.clone());
        self.peer_seq = state.seq;
        let active = state.active && !self.serves();
        self.front.set_active_address(active.then_some(address));
        self.dialed.note_forwarding(active);
        self.step_front(now, front::Event::PeerState { active });
        self.step_reign(now, reign::Event::PeerSaid { active: state.active, epoch: state.epoch });
    }

    /// Asks the active master for the reign.
    pub(super) fn ask_handover(&self, forced: bool) {
        let Some(dialed) = self.dialed.foremost() else { return };
        let slaves = self.slaves.values().map(|slave| slave.id.clone()).collect();
        let replayed = self.log_seq;
        // What it has replayed is not what it would take over from.
        let file = self.followed.filter(|_| self.sight == Sight::Follows);
        let reign = self.machine.reigns().last().map(|record| record.reign).unwrap_or_default();
        log::info!("asking for the reign address={} replayed={replayed}", dialed.address);
        send(
            &dialed.outbox,
            &Message::Control(Control::HandoverRequest { replayed, reign, file, slaves, forced }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_protocol::ids::Epoch;

    #[test]
    fn what_a_stranger_calls_itself_is_one_short_line() {
        assert_eq!(shown_address("[::1]:12345"), "[::1]:12345");
        assert_eq!(shown_address("a:1\n[ERROR] forged\x1b[2J"), "a:1\\n[ERROR] forged\\u{1b}[2J");
        assert_eq!(shown_address(&"x".repeat(4000)).len(), ADDRESS_SHOWN_MAX);
    }

    fn link(number: u64, epoch: u64, active: bool) -> PeerOutbound {
        let state = MasterState { active, epoch: Epoch(epoch), seq: Seq(number), active_address: None };
        PeerOutbound {
            generation: LinkId(number),
            address: format!("peer{number}:1"),
            outbox: Outbox::default(),
            lag: Lag::new(Millis(0), state.seq, Seq(0)),
            state,
            forwards: VecDeque::new(),
        }
    }

    #[test]
    fn requests_go_to_the_master_of_the_latest_reign_and_are_lost_with_its_link_alone() {
        let mut dialed = Dialed::default();
        assert!(dialed.foremost().is_none());
        dialed.insert(link(1, 3, false));
        dialed.insert(link(2, 2, true));
        dialed.insert(link(3, 4, true));
        assert_eq!(dialed.serving().map(|link| link.generation), Some(LinkId(3)));
        dialed.note_forwarding(true);
        assert_eq!(dialed.forwarding_mut().map(|link| link.generation), Some(LinkId(3)));
        assert_eq!(dialed.remove(LinkId(1)), Removed::Idle);
        assert_eq!(dialed.remove(LinkId(1)), Removed::Unknown);
        // Nobody says any more that he serves: what was forwarded may still be answered.
        dialed.iter_mut().for_each(|link| link.state.active = false);
        dialed.note_forwarding(false);
        assert!(dialed.serving().is_none());
        assert_eq!(dialed.foremost().map(|link| link.generation), Some(LinkId(3)));
        assert_eq!(dialed.remove(LinkId(3)), Removed::Forwarding);
        assert_eq!(dialed.remove(LinkId(2)), Removed::Forwarding, "no link is left");
    }
}
