//! How a master carries out what the machine of its reign wants: of the log, slaves, clients and the other master.
//!
//! Never decides when: `protocol/src/machine/reign/` does.

use super::{send, MasterActor};
use crate::door::session::Session;
use crate::journal::{Hindrance, LogRequest, Wording};
use crate::node_error::NodeError;
use dsm_protocol::ids::Millis;
use dsm_protocol::machine::front;
use dsm_protocol::machine::master;
use dsm_protocol::machine::reign::may_begin::Lack;
use dsm_protocol::machine::reign::{Course, Effect, Ending, Event, Saying, Stance, Surroundings};
use dsm_protocol::message::{Control, Message};

/// How often the reign has moved to this master and, by a handover, away from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReignMoves {
    takeovers: u64,
    handovers: u64,
}

impl ReignMoves {
    fn note(&mut self, saying: &Saying) {
        match saying {
            Saying::Serving { .. } => self.takeovers += 1,
            Saying::HandedOver { .. } => self.handovers += 1,
            Saying::Barred
            | Saying::Lacking(_)
            | Saying::AnotherLog
            | Saying::Doubted { .. }
            | Saying::SlowSync { .. }
            | Saying::HandingOver
            | Saying::Refused(_)
            | Saying::Aborted(_)
            | Saying::Lost { .. }
            | Saying::Stopping
            | Saying::NotHandedOver { .. }
            | Saying::Unclosed { .. } => {}
        }
    }

    /// How often this master began to serve.
    pub(super) fn takeovers(self) -> u64 {
        self.takeovers
    }

    /// How often it handed the reign over.
    pub(super) fn handovers(self) -> u64 {
        self.handovers
    }
}

impl MasterActor {
    /// Advances the machine of the reign and keeps what it wants done for [`perform_reign`](Self::perform_reign).
    pub(super) fn step_reign(&mut self, now: Millis, event: Event<'_>) {
        let is_news = !matches!(event, Event::Tick(_) | Event::TurnEnded(_) | Event::Looked(_));
        if is_news {
            log::trace!("reign event={event:?}");
        }
        self.wanted.step_reign(&mut self.reign, now, event);
    }

    /// Carries out everything that the machine of the reign wants, in order.
    pub(super) fn perform_reign(&mut self, now: Millis) {
        // What is performed may step the machine again.
        loop {
            let effects = self.wanted.take_reign();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                log::trace!("reign effect={effect:?}");
                self.perform_reign_effect(now, effect);
            }
        }
    }

    /// What the machine of the reign cannot know by itself.
    fn surroundings(&self) -> Surroundings {
        Surroundings {
            in_flight: self.machine.in_flight() + self.confirmations.held(),
            is_behind: self.is_behind(),
            has_dialed: self.peers.has_dialed(),
            may_forward: self.peers.may_forward(),
            slaves_undecided: self.slaves.undecided(),
            clients_left: if self.reign.is_leaving() { self.clients_left() } else { 0 },
            log_follows: self.log.follows(),
        }
    }

    /// Clients, and requests of theirs, that a stop has still to let go.
    fn clients_left(&self) -> usize {
        self.front.waiting() + self.clients.leaving()
    }

    /// What is due in the role by now.
    pub(super) fn tick_reign(&mut self, now: Millis) {
        let around = self.surroundings();
        self.step_reign(now, Event::Tick(around));
    }

    /// A turn has done all that it could: what the machine waits for may be over with it.
    pub(super) fn turn_ended(&mut self, now: Millis) {
        if self.reign.waits_for_requests() {
            let around = self.surroundings();
            self.step_reign(now, Event::TurnEnded(around));
        }
    }

    /// Tells a machine that waits for the right log what others know of it.
    pub(super) fn hear(&mut self, now: Millis) {
        if !self.reign.is_waiting() {
            return;
        }
        let hearsay = self.slaves.hearsay(self.machine.reigns());
        self.wanted.step_reign(&mut self.reign, now, Event::Heard(hearsay));
    }

    fn perform_reign_effect(&mut self, now: Millis, effect: Effect) {
        match effect {
            Effect::WatchLeader => self.log.ask(LogRequest::Watch),
            Effect::QueueToLead => self.log.ask(LogRequest::Queue),
            Effect::Fence { beat } => self.log.ask(LogRequest::Oust { beat }),
            Effect::LeaveQueue => self.log.ask(LogRequest::LeaveQueue),
            Effect::StopLeading => self.log.ask(LogRequest::GiveUp),
            Effect::LookAtLog => {
                let won = self.log.words(Wording::Won);
                log::info!("{won}, taking over epoch_seen={}", self.reign.epoch());
                self.log.ask(LogRequest::Look);
            }
            Effect::StopFollowing => self.log.ask(LogRequest::Halt),
            Effect::Follow => self.log.follow(),
            Effect::FollowAnew => self.log.follow_anew(),
            Effect::Recover { makes_log } => self.log.ask(LogRequest::Open { makes: makes_log }),
            Effect::LetGoOfLog => self.log.ask(LogRequest::PutAside),
            Effect::FindLog => self.log.ask(LogRequest::Find),
            Effect::NoteWitnesses(text) => self.log.ask(LogRequest::Note(text)),
            Effect::WriteEpoch { epoch, given_up } => {
                given_up.iter().for_each(|reign| self.machine.replay_given_up(*reign));
                let (wall, uptime) = (self.env.wall_clock(), self.env.uptime());
                self.step(now, master::Event::Clock { wall, uptime });
                let time = self.machine.cluster_time(now);
                self.log.ask(LogRequest::Begin { epoch, given_up, time });
            }
            Effect::Declare { serves } => self.log.ask(LogRequest::Declare { serves }),
            Effect::BeginReign { version, id } => {
                self.step(now, master::Event::ReignBegan { version, id });
            }
            Effect::Announce => {
                self.announce(now);
                self.flush();
            }
            Effect::GivePlaces => self.enlist_all(now),
            Effect::EndReign => self.end_reign(now),
            Effect::StanceChanged => self.stance_changed(now),
            Effect::TellState => {
                self.tell_state();
                self.flush();
            }
            Effect::NameCluster(cluster) => self.log.name_cluster(cluster),
            Effect::SyncLog => self.log.ask(LogRequest::Sync),
            Effect::CloseLog => {
                log::debug!("closing the log at={now}");
                let to = self.heir();
                self.log.ask(LogRequest::Close { to });
            }
            Effect::AskLogBack => {
                log::debug!("asking for the log back at={now}");
                self.log.ask(LogRequest::Reopen);
            }
            Effect::AbandonLog => {
                self.flush();
                self.log.ask(LogRequest::Abandon);
            }
            Effect::OfferReign => self.peers.say_to_all(Control::HandoverOffer),
            Effect::AskForReign { to, forced } => self.ask_handover(to, forced),
            Effect::RefuseHandover { to, why } => {
                if let Some(outbox) = self.peers.outbox_of(to) {
                    let reason = why.to_string();
                    send(outbox, &Message::Control(Control::HandoverRefused { reason }));
                }
            }
            Effect::AnswerOperator { to, reply } => self.reply(to, &reply),
            Effect::StopAccepting => self.stop_accepting(),
            Effect::AskForwarders => self.ask_forwarders(),
            Effect::LetClientsGo { silent_too } => self.let_clients_go(silent_too),
            Effect::End(ending) => self.end(ending),
            Effect::Say(saying) => self.say(saying),
        }
    }

    /// The address of the master that is to lead next, if one has asked for that.
    fn heir(&self) -> Option<String> {
        self.peers.address_of(self.reign.heir()?).map(str::to_owned)
    }

    /// What is done with requests is another thing from now on.
    fn stance_changed(&mut self, now: Millis) {
        let serves = self.reign.stance() == Stance::Serving;
        if serves {
            self.front.set_active_address(None);
        }
        self.tell_view();
        self.step_front(now, front::Event::StanceChanged);
        self.flush();
    }

    /// Ends the reign in the machine, and takes the slaves' places.
    fn end_reign(&mut self, now: Millis) {
        if self.machine.in_flight() == 0 {
            self.step(now, master::Event::ReignEnded);
            self.confirmations.nothing_in_flight();
        }
        self.slaves.end_reign();
    }

    /// Asks the masters that forward to this one for a sign that they do so no more. What they have forwarded in front of that
    /// is here then, and is answered; what would cross our end would be unknown to its clients.
    fn ask_forwarders(&mut self) {
        self.tell_state();
        self.peers.ask_forwarders();
    }

    /// Lets the port go. Who has connected already is still heard.
    fn stop_accepting(&self) {
        self.switchboard.stopping.set(true);
        self.switchboard.stop.notify_waiters();
        self.switchboard.stop.notify_one();
    }

    fn let_clients_go(&self, silent_too: bool) {
        if !silent_too {
            log::info!("dismissing clients sessions={}", self.clients.len());
            self.clients.tell_native(&Message::Control(Control::MasterState(self.state())));
        }
        self.clients.let_go(silent_too);
    }

    /// Who comes now may ask one thing.
    pub(super) fn let_go_if_leaving(&self, session: &Session) {
        if let Course::Leaving { silent_too, .. } = self.reign.course() {
            session.let_go(silent_too);
        }
    }

    fn end(&mut self, ending: Ending) {
        match ending {
            Ending::Clean => {
                self.flush();
                self.log.ask(LogRequest::GiveUp);
                self.end_links();
                self.fate.decide(Ok(()));
            }
            Ending::Unclosed => {
                self.switchboard.is_over_time.set(true);
                self.end_links();
                self.fate.decide(Ok(()));
            }
            Ending::Refused => {
                let reason = self.peers.refusals();
                self.fail(NodeError::Refused { reason });
            }
            Ending::Deposed => {
                let Some(error) = self.log.take_deposed() else { return };
                self.end_links();
                self.fate.decide(Err(error));
            }
        }
    }

    /// Closes every link once what is said is sent.
    fn end_links(&self) {
        self.clients.finish();
        self.slaves.iter().for_each(|slave| slave.outbox().finish());
        self.peers.finish();
    }

    /// Ends the node for a reason that no restart of an actor mends.
    pub(super) fn fail(&mut self, error: NodeError) {
        // Nothing may be answered once nobody leads: the other master may have acknowledged newer writes by then. The
        // leadership itself is kept until the process, or the embedded node, is gone.
        let now = self.env.now();
        self.step_reign(now, Event::Failed);
        self.wanted.drop_reign();
        self.step_front(now, front::Event::StanceChanged);
        self.clients.abort();
        self.fate.decide(Err(error));
    }

    fn say(&mut self, saying: Saying) {
        self.moves.note(&saying);
        match saying {
            Saying::Barred => {
                let words = self.log.words(Wording::DoesNotServe(self.log.barred()));
                log::warn!("{words}");
            }
            Saying::Lacking(lack) => {
                let level = if lack == Lack::Unclaimed { log::Level::Warn } else { log::Level::Error };
                let words = self.log.words(Wording::DoesNotServe(Hindrance::Lacks(&lack)));
                log::log!(level, "{words}");
            }
            Saying::AnotherLog => log::info!("{}", self.log.words(Wording::AnotherLog)),
            Saying::Doubted { slave, seen } => log::warn!(
                "the reign is given up before it serves slave={slave} reign={} seq={}",
                seen.reign,
                seen.seq
            ),
            Saying::Serving { epoch } => {
                let keys = self.machine.directory().len();
                let slaves = self.machine.slave_count();
                log::info!("serving epoch={epoch} keys={keys} slaves={slaves} address={}", self.address);
            }
            Saying::SlowSync { took_ms, syncs } => {
                log::info!("handover waits, the log was slow to sync took_ms={took_ms} syncs={syncs}");
            }
            Saying::HandingOver => log::info!("handing over in_flight={}", self.machine.in_flight()),
            Saying::Refused(refusal) => log::info!("handover refused cause=\"{refusal}\""),
            Saying::Aborted(why) => log::warn!("handover aborted cause=\"{why}\""),
            Saying::Lost { epoch } => {
                log::warn!("standby, the reign is lost to another master epoch={epoch}")
            }
            Saying::HandedOver { epoch } => log::info!("standby, the reign is handed over epoch={epoch}"),
            Saying::Stopping => log::info!("stopping"),
            Saying::NotHandedOver { is_gone } => {
                let cause = if is_gone { "it is gone" } else { "it does not ask in time" };
                log::info!("the reign is not handed over cause={cause:?}");
            }
            Saying::Unclosed { waited_ms } => {
                log::warn!("stopped without closing the log cause=disk-slow waited_ms={waited_ms}");
            }
        }
    }

    /// What is waited for, in words; nothing when nothing is missing.
    pub(super) fn waiting_for(&self) -> String {
        if let Some(why) = self.log.kept_out() {
            return why.to_owned();
        }
        let hindrance = self.log.hindrance(&self.reign);
        hindrance.map_or_else(String::new, |hindrance| self.log.words(Wording::WaitsFor(hindrance)))
    }
}
