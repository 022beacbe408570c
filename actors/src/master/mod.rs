//! `MasterActor`: one master, primary or standby.
//!
//! A shell: what arrives becomes events of three machines (master, front, reign), and what they want done is carried out in
//! their order. What there is beside the machines has an owner each, with private fields. Never blocks, never decides a rule
//! of replication or failover by itself.
//!
//! | owner | has | what is heard of it |
//! |---|---|---|
//! | `agenda` | what has come and waits for its turn, and how long a turn may be | `turn` |
//! | `wanted` | what the machines want done | `effects`, `reign` |
//! | `own_log` | the port to the [`journal`](crate::journal), and what is known of this master's log | `log_events` |
//! | `slaves`, `slave_link` | the slaves that are connected, and what is sent to each; each has a `SlaveProxy`, which this actor supervises | `slave_events` |
//! | `peers`, `forwards` | the other masters, and what is sent to them | `peer_events` |
//! | `clients`, `long_answers` | the sessions of those who ask, and answers of many values | `requests`, `asked` |
//! | `room_line` | sessions that wait for room for their answers | `requests` |
//! | `confirmed` | answers that wait until others confirm that this master leads | |
//! | `health` | what the cluster was short of when it was looked at last | |
//! | `hedges` | when it looks at reads that wait unusually long | |
//! | `silence` | whether this process has fallen silent itself | `turn` |
//! | `told` | which refusals the log tells of already | |
//! | `ops_rate` | how many requests a second there were lately | |
//!
//! `status` is what INFO says of all of them, and `view` what connections know of who serves.

mod agenda;
mod asked;
mod clients;
mod confirmed;
mod effects;
mod forwards;
mod health;
mod hedges;
mod log_events;
mod long_answers;
mod ops_rate;
mod own_log;
mod peer_events;
mod peers;
mod reign;
mod requests;
mod room_line;
mod silence;
mod slave_events;
mod slave_link;
mod slaves;
mod status;
mod told;
mod turn;
mod view;
mod wanted;

use crate::batch::{Inbox, Outbox};
use crate::config::{Fsync, MasterConfig, MasterKind};
use crate::door::admission::Gate;
use crate::door::embedded::EmbeddedCaller;
use crate::door::session::AnswerPool;
use crate::door::switchboard::{Arrived, Drain, Switchboard};
use crate::env::Env;
use crate::journal::{LogRequest, MakesJournal};
use crate::slave_proxy::EndReason;
use crate::supervision::{Dismiss, Fate, PanicGuard, Stop};
use crate::turns::TurnLengths;
use actix::prelude::*;
use agenda::Agenda;
use clients::Clients;
use dsm_protocol::acl::Accounts;
use dsm_protocol::ids::ClusterId;
use dsm_protocol::machine::confirm::Confirmations;
use dsm_protocol::machine::front::{self, Front};
use dsm_protocol::machine::master::{self, Master};
use dsm_protocol::machine::reign::{self as reign_rules, Leadership};
use dsm_protocol::message::Message as Wire;
use health::HealthWatch;
use hedges::HedgeTimer;
use ops_rate::OpsRate;
use own_log::OwnLog;
use peers::Peers;
use reign::ReignMoves;
use room_line::RoomLine;
use silence::SilenceWatch;
use slaves::Slaves;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use told::Told;
use wanted::Wanted;

/// Asks to go on with what was left at the end of a turn. Others have had theirs in between.
#[derive(Message, Debug)]
#[rtype(result = "()")]
struct Resume;

/// The actor. See the module.
pub struct MasterActor {
    env: Env,
    /// The boot of this machine.
    boot: String,
    config: Rc<MasterConfig>,
    kind: MasterKind,
    address: String,
    fate: Fate,
    guard: PanicGuard,
    switchboard: Rc<Switchboard>,
    /// For requests of the program around this master.
    embedded: EmbeddedCaller,
    agenda: Agenda,
    /// Which slaves hold what.
    machine: Master,
    /// Where requests go.
    front: Front,
    /// What this master is.
    reign: Leadership,
    wanted: Wanted,
    log: OwnLog,
    silence: SilenceWatch,
    hedges: HedgeTimer,
    clients: Clients,
    line: RoomLine,
    slaves: Slaves,
    health: HealthWatch,
    peers: Peers,
    refusals: Told,
    /// Answers that wait until others confirm that this master leads.
    confirmations: Confirmations,
    /// How often the reign has moved, for INFO.
    moves: ReignMoves,
    ops: OpsRate,
}

/// What a master is built from.
pub(crate) struct Parts {
    pub(crate) env: Env,
    pub(crate) config: Rc<MasterConfig>,
    pub(crate) kind: MasterKind,
    /// The address at which others reach this master.
    pub(crate) address: String,
    pub(crate) fate: Fate,
    /// Whose log it is, once that is known: shared with the links to other masters.
    pub(crate) cluster: Rc<Cell<Option<ClusterId>>>,
    pub(crate) journal: MakesJournal,
    /// Who may do what.
    pub(crate) accounts: Rc<Accounts>,
}

impl MasterActor {
    /// Starts a master as a standby; gives its address and the switchboard through which connections reach it.
    pub(crate) fn begin(parts: Parts) -> (Addr<Self>, Rc<Switchboard>) {
        let inbox = Inbox::default();
        let for_switchboard = inbox.clone();
        let board = Rc::new(RefCell::new(None));
        let shared_board = Rc::clone(&board);
        let address = MasterActor::create(move |ctx| {
            let answers = AnswerPool::new(parts.config.max_answer_bytes.as_u64() as usize);
            let turns = TurnLengths::new(Rc::clone(&parts.env));
            let drain = ctx.address().recipient();
            let switchboard = {
                let (gate, accounts) =
                    (Gate::new(&parts.config, turns.timings()), Rc::clone(&parts.accounts));
                Rc::new(Switchboard::new(for_switchboard, drain, gate, answers, turns, accounts))
            };
            *shared_board.borrow_mut() = Some(Rc::clone(&switchboard));
            Self::new(parts, inbox, switchboard, ctx)
        });
        let switchboard = board.borrow_mut().take().expect("create runs its closure before it returns");
        (address, switchboard)
    }

    fn new(
        parts: Parts,
        inbox: Inbox<Arrived>,
        switchboard: Rc<Switchboard>,
        ctx: &mut Context<Self>,
    ) -> Self {
        let Parts { env, config, kind, address, fate, cluster, journal, .. } = parts;
        let now = env.now();
        let journal = journal(ctx.address().recipient(), Rc::clone(&switchboard.turns));
        let jump_ms = (config.ack_timeout.min(config.failover_timeout).as_millis() as u64 / 4).max(100);
        MasterActor {
            boot: env.boot_id(),
            guard: PanicGuard::new("MasterActor", fate.clone()),
            embedded: EmbeddedCaller::new(Rc::clone(&switchboard), Rc::clone(&config)),
            switchboard,
            agenda: Agenda::new(inbox),
            machine: Master::new(machine_settings(&config, env.random(), env.cpu_time())),
            front: Front::new(front::Config {
                requests_max: config.max_requests,
                bytes_max: config.max_request_bytes.as_u64() as usize,
            }),
            reign: Leadership::new(reign_settings(&config, kind), now),
            wanted: Wanted::default(),
            log: OwnLog::new(journal, cluster),
            silence: SilenceWatch::new(&env, jump_ms),
            hedges: HedgeTimer::default(),
            clients: Clients::default(),
            line: RoomLine::default(),
            slaves: Slaves::default(),
            health: HealthWatch::new(now),
            peers: Peers::new(config.peer_addresses(kind), now),
            refusals: Told::default(),
            confirmations: Confirmations::default(),
            moves: ReignMoves::default(),
            ops: OpsRate::default(),
            env,
            config,
            kind,
            address,
            fate,
        }
    }
}

/// The settings of the master machine.
fn machine_settings(
    config: &MasterConfig,
    seed: u64,
    cpu_time: Option<fn() -> std::time::Duration>,
) -> master::Config {
    master::Config {
        placement: config.placement.into(),
        copies: config.copies,
        slaves_min: config.min_slaves,
        read_timeout_ms: config.read_timeout.as_millis() as u64,
        seed,
        durable: config.fsync == Fsync::Always,
        value_max: config.value_max(),
        log_window_bytes: config.log_read_window.as_u64(),
        slice_keys: slice_keys(),
        gather_bytes_max: config.gather_bytes_max(),
        reads_in_a_row: master::READS_IN_A_ROW,
        repair_bytes_per_second: config.repair_rate.as_u64(),
        hedge_percent: u64::from(config.hedge_reads),
        cpu_time,
    }
}

/// The settings of the machine of the reign.
fn reign_settings(config: &MasterConfig, kind: MasterKind) -> reign_rules::Config {
    reign_rules::Config {
        preferred: config.is_preferred(kind),
        failback: !config.no_failback,
        new: config.new,
        failover_timeout_ms: config.failover_timeout.as_millis() as u64,
        ..reign_rules::Config::default()
    }
}

/// So many keys of requests and records are gone through in one turn. Tests make it small.
fn slice_keys() -> usize {
    #[cfg(feature = "testing")]
    if let Some(keys) = crate::test_hooks::slice_keys() {
        return keys;
    }
    master::SLICE_KEYS
}

impl Actor for MasterActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Told by messages that are never more than one of a kind, batches or answers of children: the rest is
        // bounded before it gets here.
        ctx.set_mailbox_capacity(1024);
        self.tick(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.guard.stopped_cleanly();
    }
}

impl Handler<Drain> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        let turn = self.switchboard.turns.begin("requests");
        let now = self.env.now();
        let slaves = &self.slaves;
        self.agenda.take_in(|arrived| {
            if let Arrived::Slave { link, message, .. } = arrived {
                slaves.note_arrived(now, *link, message);
            }
        });
        self.work(&turn, ctx);
    }
}

impl Handler<Resume> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Resume, ctx: &mut Self::Context) {
        let turn = self.switchboard.turns.begin("rest");
        self.agenda.turn_came();
        let now = self.env.now();
        self.observe(now);
        if self.machine.has_chores() {
            self.step(now, master::Event::Chore);
        }
        self.work(&turn, ctx);
    }
}

impl Handler<Stop> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Stop, _: &mut Self::Context) {
        let now = self.env.now();
        self.step_reign(now, reign_rules::Event::StopAsked);
        self.tick_reign(now);
        self.perform_reign(now);
        self.turn_ended(now);
        self.perform_reign(now);
        self.flush();
    }
}

impl Handler<Dismiss> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Dismiss, ctx: &mut Self::Context) {
        // Another master may lead with this; the rest of the log goes with the actor.
        self.log.ask(LogRequest::LeaveQueue);
        self.log.ask(LogRequest::GiveUp);
        for slave in self.slaves.iter() {
            slave.end(EndReason::Dismissed("the node has ended"));
        }
        ctx.stop();
    }
}

/// A frame for a peer.
pub(super) fn send(outbox: &Outbox, message: &Wire) {
    outbox.append(|out| dsm_protocol::frame::encode(message, out));
}
