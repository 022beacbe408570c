//! The slaves of a repair (`dsm-log repair --from-slaves`): listens where masters would, and carries messages between slaves and
//! the machine that decides what of their copies goes back into the log.
//!
//! Owns the ports and the links for the time of the repair. Decides nothing: that is `dsm_protocol::machine::salvage`. Never
//! touches the log: its [`SalvageStore`] does. The door is that of a master; clients and masters that come to it are told to
//! come back later.

use crate::batch::{Inbox, Outbox};
use crate::certificates;
use crate::config::MasterConfig;
use crate::door::admission::Gate;
use crate::door::links::reject;
use crate::door::session::{AnswerPool, Session};
use crate::door::switchboard::{Arrived, Drain, Switchboard};
use crate::door::{self, Context as DoorContext};
use crate::env::Env;
use crate::journal::JournalKind;
use crate::node::{check_ways, end_tasks, open_door, Linger};
use crate::node_error::NodeError;
use crate::supervision::Fate;
use crate::turns::TurnLengths;
use actix::prelude::*;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::frame;
use dsm_protocol::ids::{ClusterId, Epoch, LinkId, Reign, Seq, SessionId, Stamp};
use dsm_protocol::machine::front;
use dsm_protocol::machine::salvage::{Effect, Event, Salvage, SalvageOutcome};
use dsm_protocol::message::{Control, Hello, HelloRole, MasterState, Message as Wire, Welcome};
use dsm_protocol::witness_file::WitnessText;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What clients and masters hear that come meanwhile.
const BEING_REPAIRED: &str =
    "the log is being repaired from the slaves (dsm-log repair); come back when that is done";

/// The log of a repair, for the one who holds its locks.
pub trait SalvageStore {
    /// Writes and syncs the note of witnesses beside the log.
    ///
    /// # Errors
    /// What the system says.
    fn note(&mut self, text: &WitnessText) -> io::Result<()>;

    /// Appends and syncs the EPOCH record of a reign in which nobody is served. Gives the reign and the record's seq.
    ///
    /// # Errors
    /// What the system says.
    fn begin(&mut self, epoch: Epoch) -> io::Result<(Reign, Seq)>;

    /// Reads some of the log, as it was when the repair began, and gives its records to [`Salvage::touch`]; whether more is to
    /// be read. Takes milliseconds.
    ///
    /// # Errors
    /// What the system says.
    fn survey(&mut self, salvage: &mut Salvage) -> io::Result<bool>;

    /// Appends a record that writes a key, and says which version that was and whether it is not known to be the newest. Need not be on disk.
    ///
    /// # Errors
    /// What the system says.
    fn append(&mut self, key: &[u8], stamp: Stamp, value: &[u8], is_undecided: bool) -> io::Result<()>;

    /// Syncs what was appended, then appends and syncs the EPOCH record that gives these reigns up and a mark, and then
    /// empties the note.
    ///
    /// # Errors
    /// What the system says.
    fn finish(&mut self, epoch: Epoch, given_up: Vec<Reign>) -> io::Result<()>;
}

/// Why a repair ends without an outcome.
#[derive(Debug, Error)]
pub enum SalvageError {
    /// It cannot listen.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Log or note cannot be read or written.
    #[error("the log cannot be read or written")]
    Store(#[from] io::Error),
}

/// Wakes the repair for what arrives.
struct Waker(Rc<Notify>);

impl Actor for Waker {
    type Context = Context<Self>;
}

impl Handler<Drain> for Waker {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.0.notify_one();
    }
}

/// A repair that is under way.
struct Repair<'a, S> {
    env: Env,
    cluster: ClusterId,
    value_max: u64,
    board: Rc<Switchboard>,
    machine: &'a mut Salvage,
    store: &'a mut S,
    links: BTreeMap<LinkId, Outbox>,
    sessions: HashMap<SessionId, Rc<Session>>,
    /// What happens because of an effect.
    events: VecDeque<Event>,
    /// Whether the log is being read again.
    is_surveying: bool,
    outcome: Option<SalvageOutcome>,
}

/// Runs a repair of a log of that cluster to its outcome. Listens at the addresses of `config`; its longest value counts, too.
/// Must be called on a `LocalSet`.
///
/// # Errors
/// A [`SalvageError`]; the log is then as it was, or no master serves it before another repair has come to its end.
pub async fn recover_from_slaves<S: SalvageStore>(
    env: Env,
    config: MasterConfig,
    cluster: ClusterId,
    machine: &mut Salvage,
    store: &mut S,
) -> Result<SalvageOutcome, SalvageError> {
    // As at a master: slaves that dial by TLS find it where they look for one.
    let (env, _) = certificates::secure(env, &config.tls, config.tls_client_auth).map_err(NodeError::from)?;
    let secrets = Rc::new(config.open_secrets().map_err(NodeError::from)?);
    let listened = config.listen.iter().map(|address| ("--listen", address.clone()));
    check_ways(&env, secrets.nodes.as_ref(), listened).map_err(NodeError::from)?;
    let mut listeners = Vec::new();
    for address in &config.listen {
        listeners.push(open_door(&env, address, &config).await?);
    }
    let (inbox, arrives, fate) = (Inbox::default(), Rc::<Notify>::default(), Fate::default());
    let turns = TurnLengths::new(Rc::clone(&env));
    let drain = Waker(Rc::clone(&arrives)).start().recipient();
    let answers = AnswerPool::new(config.max_answer_bytes.as_u64() as usize);
    let gate = Gate::new(&config, turns.timings());
    let board = Rc::new(Switchboard::new(inbox.clone(), drain, gate, answers, turns, Rc::default()));
    let (facts, config) = (door::server_facts(&config), Rc::new(config));
    let context = DoorContext {
        env: Rc::clone(&env),
        config: Rc::clone(&config),
        facts,
        journal: JournalKind::default(),
        secrets,
        switchboard: Rc::clone(&board),
        sentinel: None,
    };
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn_local(door::accept::accept(listener, context.clone(), fate.clone()));
    }
    let mut repair = Repair {
        env,
        cluster,
        value_max: config.value_max() as u64,
        board,
        machine,
        store,
        links: BTreeMap::new(),
        sessions: HashMap::new(),
        events: VecDeque::new(),
        is_surveying: false,
        outcome: None,
    };
    let outcome = repair.run(&inbox, &arrives, &fate).await;
    // Slaves are told at once, so that they look for a master.
    repair.part();
    fate.decide(Ok(()));
    drop(repair);
    end_tasks(&mut accepting, Some(Linger::CLEAN), || 0).await;
    outcome
}

impl<S: SalvageStore> Repair<'_, S> {
    async fn run(
        &mut self,
        inbox: &Inbox<Arrived>,
        arrives: &Notify,
        fate: &Fate,
    ) -> Result<SalvageOutcome, SalvageError> {
        let tick = Duration::from_millis(self.machine.tick_ms());
        let mut arrived = Vec::new();
        loop {
            if self.is_surveying {
                // Slaves ask for a sign of life meanwhile.
                tokio::task::yield_now().await;
            } else {
                let _ = tokio::time::timeout(tick, arrives.notified()).await;
            }
            if fate.is_decided() {
                fate.decided().await?;
            }
            let flusher = Rc::clone(&self.board.flusher);
            let _turn = flusher.turn();
            inbox.take(&mut arrived);
            for arrived in arrived.drain(..) {
                self.arrived(arrived)?;
            }
            if self.is_surveying && !self.store.survey(self.machine)? {
                self.is_surveying = false;
                self.step(Event::Surveyed)?;
            }
            self.step(Event::Tick)?;
            if let Some(outcome) = self.outcome.take() {
                return Ok(outcome);
            }
        }
    }

    fn step(&mut self, event: Event) -> io::Result<()> {
        self.events.push_back(event);
        while let Some(event) = self.events.pop_front() {
            let mut effects = Vec::new();
            self.machine.step(self.env.now(), event, &mut effects);
            for effect in effects {
                self.perform(effect)?;
            }
        }
        Ok(())
    }

    fn arrived(&mut self, arrived: Arrived) -> io::Result<()> {
        match arrived {
            Arrived::SlaveHello { link, hello, outbox, said: _said } => {
                self.links.insert(link, outbox);
                if let Hello { cluster, role: HelloRole::Slave { id, incarnation, seen, .. } } = hello {
                    self.step(Event::Came { link, id, incarnation, cluster, seen })?;
                }
            }
            Arrived::Slave { link, message, said: _said } => self.heard(link, message)?,
            Arrived::SlaveGone { link, .. } => {
                self.links.remove(&link);
                self.step(Event::Gone { link })?;
            }
            Arrived::PeerHello { outbox, .. } => reject(&outbox, BEING_REPAIRED),
            Arrived::Opened(session) => {
                if session.origin().kind() == front::Kind::Native {
                    let reason = format!("{} {BEING_REPAIRED}", ErrorWord::Loading.as_str());
                    session.send(&Wire::Control(Control::Reject { reason }));
                    session.close();
                }
                self.sessions.insert(session.id(), session);
            }
            Arrived::Request { asker, .. } => {
                if let Some(session) = self.sessions.get(&asker.session) {
                    session.answer(asker.tag, &Reply::error(ErrorWord::Loading, BEING_REPAIRED));
                }
            }
            Arrived::Closed(session) => {
                self.sessions.remove(&session);
            }
            Arrived::Peer { .. }
            | Arrived::PeerGone { .. }
            | Arrived::DialedUp { .. }
            | Arrived::Dialed { .. }
            | Arrived::DialRefused { .. }
            | Arrived::DialedDown { .. }
            | Arrived::LogRead { .. } => {}
        }
        Ok(())
    }

    fn heard(&mut self, link: LinkId, message: Wire) -> io::Result<()> {
        match message {
            Wire::Control(Control::Enlisted { reign, seen, .. }) => {
                self.step(Event::Enlisted { link, reign, seen })
            }
            Wire::Control(Control::Lineage { reigns }) => self.step(Event::Lineage { link, reigns }),
            Wire::Control(Control::Outdated { .. }) => self.step(Event::Outdated { link }),
            Wire::Control(Control::Holdings { entries, last }) => {
                self.step(Event::Holdings { link, entries, last })
            }
            Wire::Value { tag, version, reign, value } => {
                self.step(Event::Value { link, tag, stamp: Stamp { version, reign }, value })
            }
            Wire::Missing { tag, .. } => self.step(Event::Missing { link, tag }),
            Wire::Control(Control::Probe) => {
                // One that it has not taken is enough.
                if self.links.get(&link).is_some_and(|outbox| outbox.len() == 0) {
                    self.send(link, &Wire::Control(Control::Alive));
                }
                Ok(())
            }
            // Acknowledgements of what it was sent before.
            Wire::Ack { .. } | Wire::Control(Control::Alive) => Ok(()),
            _ => {
                if let Some(outbox) = self.links.get(&link) {
                    reject(outbox, "a slave must not send this");
                }
                Ok(())
            }
        }
    }

    fn send(&self, link: LinkId, message: &Wire) {
        if let Some(outbox) = self.links.get(&link) {
            outbox.append(|out| frame::encode(message, out));
        }
    }

    fn control(&self, link: LinkId, control: Control) {
        self.send(link, &Wire::Control(control));
    }

    fn perform(&mut self, effect: Effect) -> io::Result<()> {
        match effect {
            Effect::Welcome { link } => {
                let state = MasterState {
                    active: false,
                    epoch: Epoch::default(),
                    seq: Seq::default(),
                    active_address: None,
                };
                let (cluster, value_max) = (Some(self.cluster), self.value_max);
                self.board.welcome(link);
                self.control(link, Control::Welcome(Welcome { cluster, value_max, state }));
            }
            Effect::AskLineage { link } => self.control(link, Control::AskLineage),
            Effect::Refuse { link, why } => {
                if let Some(outbox) = self.links.get(&link) {
                    log::warn!("slave refused link={link} cause=\"{why}\"");
                    reject(outbox, &why.to_string());
                }
            }
            Effect::Note(text) => self.store.note(&text)?,
            Effect::Begin { epoch } => {
                let (reign, seq) = self.store.begin(epoch)?;
                self.events.push_back(Event::Begun { reign, seq });
            }
            Effect::Announce { link, reign, seq } => {
                let cluster = self.cluster;
                self.control(link, Control::Announce { cluster, reign, seq, durable: true });
            }
            Effect::Admit { link, reign } => {
                // Its reports are long, and values that it is asked for.
                self.board.trust(link);
                self.control(link, Control::Admitted { reign });
            }
            Effect::AskReport { link } => self.control(link, Control::HoldingsNext),
            Effect::Survey => self.is_surveying = true,
            Effect::Read { link, tag, stamp, key } => {
                if let Some(outbox) = self.links.get(&link) {
                    outbox.append(|out| frame::encode_read(tag, stamp, &key, out));
                }
            }
            Effect::Append { key, stamp, value, is_undecided } => {
                self.store.append(&key, stamp, &value, is_undecided)?;
            }
            Effect::Finish { epoch, given_up } => {
                self.store.finish(epoch, given_up)?;
                self.events.push_back(Event::Finished);
            }
            Effect::End(outcome) => self.outcome = Some(outcome),
        }
        Ok(())
    }

    /// Ends all links.
    fn part(&mut self) {
        self.links.values().for_each(Outbox::finish);
        self.sessions.values().for_each(|session| session.close());
    }
}
