//! What a master hears of the other masters: who serves, forwarded requests, handovers.
//!
//! Owns one rule: how far a standby may lag when the reign is handed to it. `machine/welcome.rs` says who is taken in, what they
//! ask goes the way of all requests, and what they say of reigns goes to the machine of the reign.

use super::peers::PeerOutbound;
use super::{send, told, MasterActor};
use crate::batch::Outbox;
use crate::door::admission::check_sizes;
use crate::door::counters::count;
use crate::door::links::reject;
use crate::door::origin::Origin;
use crate::door::session::{Coding, Session};
use crate::journal::{LogId, Wording};
use crate::shown::shown_message;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::frame;
use dsm_protocol::ids::{LinkId, Millis, Reign as ReignName, Seq, SessionId, SlaveId};
use dsm_protocol::machine::front;
use dsm_protocol::machine::master::Asker;
use dsm_protocol::machine::reign;
use dsm_protocol::machine::welcome::{judge_cluster, judge_master, MasterNames, Unwelcome};
use dsm_protocol::message::{Control, Hello, HelloRole, MasterState, Message, Request, Welcome};
use std::rc::Rc;

/// What a standby that asks for the reign has replayed.
#[derive(Clone, Copy, Debug)]
struct Follows {
    /// Through which seq.
    replayed: Seq,
    /// The reign of the last EPOCH record.
    reign: ReignName,
    /// Which log it follows.
    log: Option<LogId>,
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
            self.peers.serving().map(|serving| serving.address().to_owned())
        };
        // What is not on disk yet is not said: who hears it would miss it in the log.
        let epoch = self.reign.reign().map_or(self.log.durable_epoch(), |reign| reign.epoch);
        MasterState { active: serves, epoch, seq: self.log.seq(), active_address }
    }

    /// The answer to a HELLO that is accepted.
    pub(super) fn welcome(&self) -> Welcome {
        Welcome {
            cluster: self.log.cluster(),
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
        self.peers.tell(self.env.now(), state);
    }

    /// Lets the other masters know how far we have come, for their INFO, and that we live.
    pub(super) fn tell_seq(&mut self, now: Millis) {
        if self.peers.are_to_be_told(now, self.log.seq(), self.serves()) {
            self.tell_state();
        }
    }

    pub(super) fn peer_hello(
        &mut self,
        link: LinkId,
        hello: Hello,
        outbox: Outbox,
        identity: std::io::Result<String>,
    ) {
        let HelloRole::Master { address, log_identity } = hello.role else { return };
        let address = shown_address(&address);
        let own_identity = match identity {
            Ok(own_identity) => own_identity,
            // It may pass (no descriptor left, say), and a Reject would end the other master: let it dial again.
            Err(error) => {
                log::warn!("other master not answered address={address} error={error}");
                outbox.abort();
                return;
            }
        };
        let own =
            MasterNames { address: &self.address, cluster: self.log.cluster(), log_identity: &own_identity };
        let other = MasterNames { address: &address, cluster: hello.cluster, log_identity: &log_identity };
        let judged = judge_master(own, other, || self.log.words(Wording::HowToShare));
        if let Err(why) = judged {
            self.refuse_peer(&address, &outbox, why);
            return;
        }
        let now = self.env.now();
        self.refusals.forget(&address);
        self.step_reign(now, reign::Event::PeerNamed { cluster: hello.cluster });
        let welcome = self.welcome();
        self.switchboard.trust(link);
        self.switchboard.welcome(link);
        send(&outbox, &Message::Control(Control::Welcome(welcome)));
        log::debug!("other master connected address={address} link={link}");
        self.switchboard.peer_calls.came(&address, |peer| self.peers.dialed_at(peer).is_some());
        self.peers.came(link, outbox, address);
        self.step_reign(now, reign::Event::StandbyCame { link });
    }

    /// Says no to another master: to it, and in the log.
    fn refuse_peer(&mut self, address: &str, outbox: &Outbox, why: Unwelcome) {
        let reason = why.to_string();
        self.tell_of_refused_peer(address, why);
        reject(outbox, &reason);
    }

    /// Says in the log that another master is refused. It asks again, several times a second.
    fn tell_of_refused_peer(&mut self, address: &str, why: Unwelcome) {
        let reason = why.to_string();
        match self.refusals.is_new(address, why, self.env.now()) {
            Some(unsaid) => {
                let more = told::more(unsaid);
                log::error!(
                    "other master refused address={address} cause={reason:?}; its further attempts are not logged{more}"
                );
            }
            None => log::debug!("other master refused again address={address} cause={reason:?}"),
        }
    }

    pub(super) fn peer_gone(&mut self, now: Millis, link: LinkId) {
        let Some(sessions) = self.peers.went(link) else { return };
        for session in sessions {
            self.session_closed(now, session);
        }
        self.step_reign(now, reign::Event::StandbyGone { link });
    }

    /// The other master says something over its link to us.
    pub(super) fn peer_message(&mut self, now: Millis, link: LinkId, message: Message) {
        let Some(outbox) = self.peers.outbox_of(link) else { return };
        match message {
            Message::Request(request) => self.forwarded(now, link, request),
            Message::Control(Control::StreamClosed { stream }) => {
                if let Some(session) = self.peers.stream_closed(link, stream) {
                    self.session_closed(now, session);
                }
            }
            Message::Control(Control::Alive) => self.peers.forwards_no_more(link),
            Message::Control(Control::HandoverRequest { replayed, reign, log, slaves, forced }) => {
                self.handover_requested(now, link, Follows { replayed, reign, log }, &slaves, forced);
            }
            other => {
                count(&self.switchboard.gate.counters.protocol_errors);
                reject(outbox, &format!("a master must not send {}", shown_message(&other)));
            }
        }
    }

    /// A request of one of the other master's sessions.
    fn forwarded(&mut self, now: Millis, link: LinkId, request: Request) {
        let Request { id, stream, generation, command } = request;
        let board = Rc::clone(&self.switchboard);
        let session = match self.peers.session_of(link, stream) {
            Some(session) => session,
            None => {
                let Some(outbox) = self.peers.outbox_of(link) else { return };
                if self.peers.streams() >= board.gate.forwarded_sessions_max() {
                    let refusal = Reply::error(ErrorWord::Busy, "too many clients of the other master");
                    board.errors.note(&refusal);
                    outbox.append_pieces(|out| frame::encode_response(id, &refusal, out));
                    return;
                }
                let session = SessionId(board.next_id());
                let forwarded = Session::new(session, Origin::forwarded(), outbox.clone(), &board.answers);
                self.peers.stream_began(link, stream, session);
                self.clients.open(Rc::new(forwarded));
                session
            }
        };
        let Some(session) = self.clients.get(session).cloned() else { return };
        session.set_generation(generation);
        let permit = board.gate.forwarded_request(command.payload_bytes());
        let busy = permit.is_none();
        let is_quick = !command.is_write();
        let tag = session.ask_for(Coding::Native(id), permit, is_quick);
        let asker = Asker { session: session.id(), tag };
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
        let lag = self.log.seq().0.saturating_sub(follows.replayed.0);
        let has_slaves = self.machine.slaves().all(|(id, ..)| slaves.contains(id));
        // A seq alone says nothing: it may be one of another log.
        let own = self.log.followed();
        let own_reign = self.machine.reigns().last().map(|record| record.reign);
        let is_same = follows.log == own && Some(follows.reign) == own_reign;
        if !is_same {
            log::warn!(
                "the standby follows another log file=\"{:?}\" ours=\"{own:?}\" reign={}",
                follows.log,
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
        if let Err(refused) = judge_cluster(&address, self.log.cluster(), welcome.cluster) {
            self.tell_of_refused_peer(&address, refused);
            outbox.abort();
            return;
        }
        self.refusals.forget(&address);
        self.step_reign(now, reign::Event::PeerNamed { cluster: welcome.cluster });
        self.switchboard.trust(generation);
        let said = (welcome.state, self.log.seq());
        self.peers.dialed(PeerOutbound::new(now, generation, (address, outbox), said));
        self.peers_say(now);
    }

    /// Another master refuses us: it is of another cluster or uses another log. Whoever serves goes on, and says so; whether
    /// one that does not serve yet ends for it is the machine's to say.
    pub(super) fn dial_refused(&mut self, now: Millis, address: String, reason: String) {
        if self.reign.has_begun() || self.peers.addresses().len() > 1 {
            log::error!("refused by the other master address={address} cause={reason:?}");
        }
        self.peers.refused_by(address, reason);
        let (refusing, peers) = (self.peers.refusing(), self.peers.addresses().len());
        self.step_reign(now, reign::Event::Refused { refusing, peers });
    }

    pub(super) fn dialed_down(&mut self, now: Millis, generation: LinkId) {
        if self.peers.lost(generation) {
            self.step_front(now, front::Event::PeerDown { link: generation });
            self.step_reign(now, reign::Event::PeerLost { link: generation });
            self.peers_say(now);
        }
    }

    pub(super) fn dialed_message(&mut self, now: Millis, generation: LinkId, message: Message) {
        let Some(peer) = self.peers.outbound(generation) else { return };
        match message {
            Message::Response { id, reply } => {
                self.step_front(now, front::Event::Response { link: generation, id, reply });
            }
            Message::Control(Control::MasterState(state)) => {
                self.peers.told(now, generation, state, self.log.seq());
                self.peers_say(now);
            }
            Message::Control(Control::HandoverRefused { reason }) => {
                log::info!("handover refused cause={reason:?}");
                self.step_reign(now, reign::Event::HandoverRefused { link: generation });
            }
            Message::Control(Control::HandoverOffer) => {
                self.step_reign(now, reign::Event::HandoverOffered { link: generation });
            }
            Message::Control(Control::Probe) => self.peers.sign_off(generation),
            other => {
                let said = shown_message(&other);
                log::warn!("the other master sent what a master must not send: {said}");
                peer.outbox().abort();
            }
        }
    }

    /// Notes what the other masters say by now: of one that serves, if there is one.
    fn peers_say(&mut self, now: Millis) {
        if self.log.confirms() {
            // It answers nothing before it notices, and nobody ends its process: whoever waits for it hears that his write is unknown.
            self.peers.deposed().for_each(|peer| peer.outbox().abort());
        }
        self.tell_view();
        let Some(foremost) = self.peers.foremost() else {
            self.front.set_active_address(None);
            return;
        };
        let (state, address) = (foremost.state().clone(), foremost.address().to_owned());
        let peer = foremost.link();
        let leads = (state.active && !self.serves()).then_some((peer, address));
        let (link, address) = leads.unzip();
        self.peers.note_seq(state.seq);
        self.front.set_active_address(address);
        self.step_front(now, front::Event::PeerLeads { link });
        self.step_reign(now, reign::Event::PeerSaid { link: peer, active: state.active, epoch: state.epoch });
    }

    /// Asks the active master for the reign.
    pub(super) fn ask_handover(&self, to: LinkId, forced: bool) {
        let Some(peer) = self.peers.outbound(to) else { return };
        let slaves = self.slaves.iter().map(|slave| slave.id().clone()).collect();
        let replayed = self.log.seq();
        let log = self.log.may_be_taken_over();
        let reign = self.machine.reigns().last().map(|record| record.reign).unwrap_or_default();
        log::info!("asking for the reign address={} replayed={replayed}", peer.address());
        send(
            peer.outbox(),
            &Message::Control(Control::HandoverRequest { replayed, reign, log, slaves, forced }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_unknown_peer_is_logged_as_one_short_line() {
        assert_eq!(shown_address("[::1]:12345"), "[::1]:12345");
        assert_eq!(shown_address("a:1\n[ERROR] forged\x1b[2J"), "a:1\\n[ERROR] forged\\u{1b}[2J");
        assert_eq!(shown_address(&"x".repeat(4000)).len(), ADDRESS_SHOWN_MAX);
    }
}
