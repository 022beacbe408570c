//! `MasterActor`: one master, primary or standby.
//!
//! Owns the master machine (directory, active slaves, requests in flight), the front (where requests go), and the
//! node's role; supervises a `SlaveProxy` per slave, and asks its log through the port [`journal`](crate::journal).
//! A shell: what arrives becomes events, what the machines decide is carried out in `effects.rs`. Never blocks, never
//! decides a rule of replication or failover by itself.

mod asked;
mod effects;
mod forwards;
mod health;
mod log_events;
mod long_answers;
mod peers;
mod reign;
mod slaves;
mod status;
mod told;

use crate::batch::{Inbox, Outbox};
use crate::config::{Fsync, MasterConfig, MasterKind};
use crate::door::admission::Gate;
use crate::door::counters::count;
use crate::door::embedded::EmbeddedCaller;
use crate::door::origin::Origin;
use crate::door::session::{AnswerPool, Room, Session};
use crate::door::switchboard::{Arrived, Drain, Switchboard};
use crate::door::Sessions;
use crate::env::Env;
use crate::journal::{Journal, LogId, LogRequest, MakesJournal, Sight, WrittenRecord};
use crate::node_error::NodeError;
use crate::shown::shown_key;
use crate::slave_proxy::{self, End, EndReason, SlaveProxy};
use crate::supervision::{Dismiss, Fate, PanicGuard, Stop};
use crate::turns::{Turn, TurnLengths};
use actix::prelude::*;
use dsm_protocol::command::{AnswerLength, Command, ErrorWord, Operands, Reply};
use dsm_protocol::ids::{ClusterId, LinkId, Millis, SessionId, SlaveId};
use dsm_protocol::machine::doubt::{self, Cause, SelfDoubt};
use dsm_protocol::machine::front::{self, Front};
use dsm_protocol::machine::health::{Health, Lag};
use dsm_protocol::machine::link::{Quarantine, ReadWindow, WaitingRead};
use dsm_protocol::machine::master::{self, Asker, Census, Change, Master, WriteId};
use dsm_protocol::machine::reign::{self as reign_rules, Leadership};
use dsm_protocol::message::{Control, MasterState, Message as Wire, Seen};
use dsm_protocol::record::Position;
use long_answers::LongAnswer;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How often the master looks at its clock, its deadlines and its role.
const TICK: Duration = Duration::from_millis(25);

/// A turn ends after so many steps, of which each takes some microseconds.
const TURN_STEPS_MAX: usize = 1024;

/// Or after so many microseconds. One step may take as long again.
const TURN_US_MAX: u64 = 3_000;

/// So many requests that were put aside are looked at in one turn.
const RESUMED_MAX: usize = 1024;

/// A client that takes nothing for so long gives its room to others that wait as long.
const DEAF: Duration = Duration::from_secs(1);

/// The same for one that was seen to take some after a while without: over a poor line the next part may take its time.
const DEAF_AND_SLOW: Duration = Duration::from_secs(5);

/// What the read of one key among many takes beside its value until all are there, in bytes: what is known of it in the
/// machine, the question to the slave, and the value's place in the answer.
const PART_BYTES: usize = 512;

/// Of more keys than this the values are not foreseen one by one.
const FORESEEN_KEYS_MAX: usize = 2048;

/// About how long the answer to STATUS is, in bytes.
const STATUS_BYTES: usize = 8 * 1024;

/// How often this process found that it had fallen silent, by what it was.
#[derive(Clone, Copy, Debug, Default)]
struct Jumps {
    paused: u64,
    busy: u64,
    starved: u64,
}

/// What this thread has spent its time on so far.
struct Spent {
    at: Millis,
    computed_us: Option<u64>,
    waited_us: Option<u64>,
}

impl Spent {
    fn now(env: &Env) -> Self {
        Spent { at: env.now(), computed_us: env.computed_us(), waited_us: env.waited_us() }
    }

    /// Milliseconds since `before`, and those of them in which this thread computed, and waited for a processor.
    fn since(&self, before: &Spent) -> (u64, u64, u64) {
        let ms = |later: Option<u64>, earlier: Option<u64>| {
            later.zip(earlier).map_or(0, |(later, earlier)| later.saturating_sub(earlier) / 1000)
        };
        let computed_ms = ms(self.computed_us, before.computed_us);
        (self.at.since(before.at), computed_ms, ms(self.waited_us, before.waited_us))
    }
}

/// What has come and is to be done, in its order.
enum Todo {
    /// What a connection has brought.
    Arrived(Arrived),
    /// A record is written.
    Written(WrittenRecord),
    /// A record is not, and why.
    Refused(WriteId, ErrorWord, String),
    /// A request that the front has held back.
    Serve { asker: Asker, deadline: Millis, command: Command },
    /// The log is not at its path: end, now that everything in front of this is answered.
    Depart,
}

/// So many bytes that are copied or checksummed count as a step.
const STEP_BYTES: usize = 32 * 1024;

/// So much of a turn is left. It is counted in steps, so that a simulated world without time within a turn sees the same
/// bounds, and in time.
pub(super) struct Allowance<'a> {
    turn: &'a Turn,
    steps: usize,
}

impl<'a> Allowance<'a> {
    fn new(turn: &'a Turn) -> Self {
        Allowance { turn, steps: TURN_STEPS_MAX }
    }

    /// Notes that so many steps were made.
    pub(super) fn spend(&mut self, steps: usize) {
        self.steps = self.steps.saturating_sub(steps);
    }

    /// Whether the turn is to end.
    pub(super) fn is_spent(&self) -> bool {
        self.steps == 0 || self.turn.took_us() >= TURN_US_MAX
    }
}

/// Asks to go on with what was left at the end of a turn. Others have had theirs in between.
#[derive(Message, Debug)]
#[rtype(result = "()")]
struct Resume;

pub(super) struct SlaveLink {
    id: SlaveId,
    /// All that is known of the link, shared with the proxy.
    link: slave_proxy::SharedLink,
    outbox: Outbox,
    proxy: Addr<SlaveProxy>,
    /// The cluster that it named in its hello. If it is ours, it may know of our reigns.
    cluster: Option<ClusterId>,
    /// What it had seen when it said so last.
    seen: Option<Seen>,
    /// What it says it has seen is not in the log: it gets no place in this reign, and nothing of it is dropped.
    disputes: bool,
}

/// The other master, connected to us.
pub(super) struct PeerInbound {
    outbox: Outbox,
    address: String,
    /// Its forwarded sessions by its own numbers.
    streams: BTreeMap<u64, SessionId>,
    /// Whether it was asked for a sign that it knows that no request is taken in any more, and has given none.
    may_forward: bool,
}

/// Our link to another master.
pub(super) struct PeerOutbound {
    generation: LinkId,
    /// The address that was dialed.
    address: String,
    outbox: Outbox,
    state: MasterState,
    /// How far it is behind.
    lag: Lag,
    /// What is to be sent there and is not encoded yet. It ends with the link.
    forwards: VecDeque<forwards::Forward>,
}

/// The actor. See the module.
pub struct MasterActor {
    env: Env,
    config: Rc<MasterConfig>,
    kind: MasterKind,
    address: String,
    /// Where the other masters are reached.
    peer_addresses: Vec<String>,
    fate: Fate,
    guard: PanicGuard,
    switchboard: Rc<Switchboard>,
    /// For requests of the program around this master.
    embedded: EmbeddedCaller,
    inbox: Inbox<Arrived>,
    arrived: Vec<Arrived>,
    /// What has come and is not done.
    todo: VecDeque<Todo>,
    /// The same of slaves and of reads of the log: it ends requests, and may not wait behind all those that are to begin.
    answers: VecDeque<Arrived>,
    /// Whose turn it is.
    answers_next: bool,
    /// What the front has held back and is to be done first.
    released: VecDeque<Todo>,
    /// Whether what the front serves is held back no more, but comes in its turn.
    releasing: bool,
    machine: Master,
    front: Front,
    /// What the machine wants done.
    effects: VecDeque<master::Effect>,
    made: Vec<master::Effect>,
    front_effects: Vec<front::Effect>,
    appends: Vec<(WriteId, Arc<Change>)>,
    /// Answers of many values that are being encoded.
    long_answers: VecDeque<LongAnswer>,
    doubt: Rc<RefCell<SelfDoubt>>,
    jumps_seen: u64,
    /// What the jumps were.
    jumps: Jumps,
    /// The most that this thread has computed from one tick to the next, in milliseconds.
    computed_between_ticks_ms: u64,
    /// At the last tick.
    spent: Spent,
    turns: Rc<TurnLengths>,
    /// Whether a [`Resume`] is on its way.
    resuming: bool,
    sessions: Sessions,
    /// Sessions with requests that are put aside until their own answers have left.
    congested: VecDeque<SessionId>,
    /// The same until answers of others have left, and since when. The first in line is the first to go on.
    in_line: VecDeque<(SessionId, Millis)>,
    slaves: BTreeMap<LinkId, SlaveLink>,
    /// Slaves that have failed and must wait before they count again.
    quarantine: Quarantine,
    census: Census,
    health: Health,
    /// Who holds the lock, and when that was looked at, while nobody is known to serve.
    leader: health::LeaderSeen,
    lock_looked_at: Millis,
    /// Slaves whose name is taken, until it is known whether the other one lives.
    parked: BTreeMap<LinkId, (dsm_protocol::message::Hello, Outbox)>,
    peers: BTreeMap<LinkId, PeerInbound>,
    dialed: peers::Dialed,
    /// What this master is.
    reign: Leadership,
    /// What that wants done.
    reign_effects: Vec<reign_rules::Effect>,
    /// What it holds in its role.
    journal: Box<dyn Journal>,
    /// Which log was replayed or written last.
    followed: Option<LogId>,
    /// The place through which that is known to be on disk.
    durable: Position,
    /// What is seen of the log that is followed.
    sight: Sight,
    replay_caught_up: bool,
    /// The last seq that the active master has told of.
    peer_seq: dsm_protocol::ids::Seq,
    cluster: Rc<Cell<Option<ClusterId>>>,
    log_bytes: u64,
    log_seq: dsm_protocol::ids::Seq,
    told_seq: dsm_protocol::ids::Seq,
    told_at: Millis,
    /// Why this master leads no more, until it ends for that.
    deposed: Option<NodeError>,
    takeovers: u64,
    slaves_removed: u64,
    slaves_refused: u64,
    /// When it was last said that a slave accuses the log, and how often it was not said since.
    accused: (Option<Millis>, u64),
    /// Slaves and masters whose refusal the log tells of already.
    refusals: told::Told,
    /// Reads that had to wait for room in the windows of slaves that are gone.
    reads_waited: u64,
    /// What such windows leave behind, to be freed.
    litter: Vec<VecDeque<WaitingRead>>,
    handovers: u64,
}

/// What a master is built from.
pub(crate) struct Parts {
    pub(crate) env: Env,
    pub(crate) config: Rc<MasterConfig>,
    pub(crate) kind: MasterKind,
    /// The address at which others reach this master.
    pub(crate) address: String,
    pub(crate) fate: Fate,
    /// What the other master has said of our cluster, shared with the link to it.
    pub(crate) cluster: Rc<Cell<Option<ClusterId>>>,
    pub(crate) journal: MakesJournal,
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
            let switchboard =
                Rc::new(Switchboard::new(for_switchboard, drain, Gate::new(&parts.config), answers, turns));
            *shared_board.borrow_mut() = Some(Rc::clone(&switchboard));
            Self::new(parts, inbox, switchboard, ctx)
        });
        let switchboard = board.borrow_mut().take().expect("create runs its closure before it returns");
        (address, switchboard)
    }

    #[expect(clippy::too_many_lines, reason = "one field after the other; it has too many")]
    fn new(
        parts: Parts,
        inbox: Inbox<Arrived>,
        switchboard: Rc<Switchboard>,
        ctx: &mut Context<Self>,
    ) -> Self {
        let Parts { env, config, kind, address, fate, cluster, journal } = parts;
        let now = env.now();
        let reign = Leadership::new(
            reign_rules::Config {
                preferred: kind == MasterKind::Primary,
                failback: !config.no_failback,
                new: config.new,
                failover_timeout_ms: config.failover_timeout.as_millis() as u64,
                ..reign_rules::Config::default()
            },
            now,
        );
        let turns = Rc::clone(&switchboard.turns);
        let journal = journal(ctx.address().recipient(), Rc::clone(&turns));
        let machine = Master::new(master::Config {
            placement: config.placement.into(),
            slaves_min: config.min_slaves,
            read_timeout_ms: config.read_timeout.as_millis() as u64,
            seed: env.random(),
            durable: config.fsync == Fsync::Always,
            value_max: config.value_max(),
            log_window_bytes: config.log_read_window.as_u64(),
            slice_keys: slice_keys(),
            gather_bytes_max: config.gather_bytes_max(),
        });
        let jump_ms = (config.ack_timeout.min(config.failover_timeout).as_millis() as u64 / 4).max(100);
        MasterActor {
            peer_addresses: config.peer_addresses(kind),
            guard: PanicGuard::new("MasterActor", fate.clone()),
            embedded: EmbeddedCaller::new(Rc::clone(&switchboard), Rc::clone(&config)),
            switchboard,
            inbox,
            arrived: Vec::new(),
            todo: VecDeque::new(),
            answers: VecDeque::new(),
            answers_next: true,
            released: VecDeque::new(),
            releasing: false,
            machine,
            front: Front::new(front::Config {
                requests_max: config.max_requests,
                bytes_max: config.max_request_bytes.as_u64() as usize,
            }),
            effects: VecDeque::new(),
            made: Vec::new(),
            front_effects: Vec::new(),
            appends: Vec::new(),
            long_answers: VecDeque::new(),
            doubt: Rc::new(RefCell::new(SelfDoubt::new(now, jump_ms))),
            jumps_seen: 0,
            jumps: Jumps::default(),
            computed_between_ticks_ms: 0,
            spent: Spent::now(&env),
            turns,
            resuming: false,
            sessions: Sessions::default(),
            congested: VecDeque::new(),
            in_line: VecDeque::new(),
            slaves: BTreeMap::new(),
            quarantine: Quarantine::default(),
            census: Census::default(),
            health: Health::default(),
            leader: health::LeaderSeen::default(),
            lock_looked_at: now,
            parked: BTreeMap::new(),
            peers: BTreeMap::new(),
            dialed: peers::Dialed::default(),
            reign,
            reign_effects: Vec::new(),
            journal,
            followed: None,
            durable: Position::default(),
            sight: Sight::Follows,
            replay_caught_up: false,
            peer_seq: dsm_protocol::ids::Seq::default(),
            cluster,
            log_bytes: 0,
            log_seq: dsm_protocol::ids::Seq::default(),
            told_seq: dsm_protocol::ids::Seq::default(),
            told_at: now,
            deposed: None,
            takeovers: 0,
            slaves_removed: 0,
            slaves_refused: 0,
            accused: (None, 0),
            refusals: told::Told::default(),
            reads_waited: 0,
            litter: Vec::new(),
            handovers: 0,
            env,
            config,
            kind,
            address,
            fate,
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        let turn = self.turns.begin("tick");
        let now = self.env.now();
        self.observe(now);
        let spent = Spent::now(&self.env);
        let (_, computed_ms, _) = spent.since(&self.spent);
        self.computed_between_ticks_ms = computed_ms.max(self.computed_between_ticks_ms);
        self.spent = spent;
        self.advance();
        self.step(now, master::Event::Tick);
        self.step_front(now, front::Event::Tick);
        self.tick_reign(now);
        self.perform_reign(now);
        self.hear(now);
        self.perform_reign(now);
        self.relieve(now);
        self.refuse_waiting(now);
        self.admit_waiting(now);
        self.look_after_health(now);
        self.tell_seq(now);
        self.work(&turn, ctx);
        ctx.run_later(TICK, Self::tick);
    }

    /// Does what has come, in its order, for as long as a turn may take; the rest is done in turns of its own.
    fn work(&mut self, turn: &Turn, ctx: &mut Context<Self>) {
        let now = self.env.now();
        self.observe(now);
        self.advance();
        let mut left = Allowance::new(turn);
        self.encode_part(&mut left);
        self.forward_on(&mut left);
        self.perform_within(now, &mut left);
        self.read_on(&mut left);
        while !left.is_spent() {
            // What the front held comes before whatever came since.
            let todo = self.released.pop_front().or_else(|| self.next_todo());
            let Some(todo) = todo else { break };
            left.spend(1);
            match todo {
                Todo::Arrived(arrived) => self.arrived(now, arrived, ctx),
                Todo::Written(WrittenRecord { write, version, places }) => {
                    self.log_seq = version.seq;
                    self.step(now, master::Event::Written { write, version, places });
                }
                Todo::Refused(write, word, detail) => {
                    self.step(now, master::Event::NotWritten { write, word, detail });
                }
                Todo::Serve { asker, deadline, command } => {
                    self.step(now, master::Event::Request { asker, deadline, command });
                }
                Todo::Depart => {
                    self.step_reign(now, reign_rules::Event::Answered);
                    self.perform_reign(now);
                }
            }
            self.perform_within(now, &mut left);
        }
        self.resume_congested(now);
        self.perform_within(now, &mut left);
        while !left.is_spent() && !self.long_answers.is_empty() {
            self.encode_part(&mut left);
        }
        self.tidy(&mut left);
        self.append();
        self.advance();
        self.turn_ended(now);
        self.perform_reign(now);
        self.resume_later(ctx);
    }

    /// What is to be done next: in turn something that ends a request and something that may begin one, so that neither
    /// waits for all of the other.
    fn next_todo(&mut self) -> Option<Todo> {
        self.answers_next = !self.answers_next;
        let answer = |answers: &mut VecDeque<Arrived>| answers.pop_front().map(Todo::Arrived);
        if self.answers_next {
            answer(&mut self.answers).or_else(|| self.todo.pop_front())
        } else {
            self.todo.pop_front().or_else(|| answer(&mut self.answers))
        }
    }

    /// Whether something that has come is not done yet.
    fn is_behind(&self) -> bool {
        !self.todo.is_empty()
            || !self.answers.is_empty()
            || !self.released.is_empty()
            || !self.effects.is_empty()
    }

    /// What a slave has acknowledged or answered is no longer owed, even if it takes a while until the rest of it is
    /// done.
    fn note_arrived(&self, now: Millis, arrived: &Arrived) {
        let Arrived::Slave { link, message, .. } = arrived else { return };
        let Some(slave) = self.slaves.get(link) else { return };
        slave.link.borrow_mut().note_arrived(now, message, slave.outbox.reached());
    }

    /// Sees to it that there is another turn if something is left to be done, once everybody else has had one.
    fn resume_later(&mut self, ctx: &mut Context<Self>) {
        let is_left = self.is_behind()
            || self.machine.has_chores()
            || !self.long_answers.is_empty()
            || self.has_forwards()
            || !self.litter.is_empty()
            || self.slaves.values().any(|slave| slave.link.borrow().reads().is_behind());
        if is_left && !std::mem::replace(&mut self.resuming, true) {
            let master = ctx.address();
            // Not from here: actix empties the mailbox before it lets anybody else run.
            actix::spawn(async move {
                tokio::task::yield_now().await;
                master.do_send(Resume);
            });
        }
    }

    /// Notes that the process runs. Whoever looks first after a pause of our own notices it; here it is acted upon.
    fn observe(&mut self, now: Millis) {
        self.doubt.borrow_mut().observe(now);
        let jumps = self.doubt.borrow().jumps();
        if std::mem::replace(&mut self.jumps_seen, jumps) != jumps {
            let (silent_ms, computed_ms, waited_ms) = Spent::now(&self.env).since(&self.spent);
            match doubt::cause(silent_ms, computed_ms, waited_ms) {
                Cause::Busy => {
                    self.jumps.busy += 1;
                    log::warn!(
                        "this process was busy, deadlines start again ms={silent_ms} busy_ms={computed_ms}"
                    );
                }
                Cause::Starved => {
                    self.jumps.starved += 1;
                    log::warn!(
                        "this process waited for a processor, which others had, deadlines start again ms={silent_ms} waited_ms={waited_ms}"
                    );
                }
                Cause::Paused => {
                    self.jumps.paused += 1;
                    log::warn!("this process was paused, deadlines start again ms={silent_ms}");
                }
            }
            self.machine.restart_read_timeouts(now);
            self.dialed.iter_mut().for_each(|dialed| dialed.lag.restart(now));
        }
    }

    /// Says that this master makes progress: the standby kills one that does not.
    fn advance(&self) {
        self.journal.advance();
    }

    /// Advances the master machine and keeps what it wants done for the end of the turn.
    fn step(&mut self, now: Millis, event: master::Event) {
        if !matches!(event, master::Event::Tick | master::Event::Chore) {
            log::trace!("master event={event:?}");
        }
        self.machine.step(now, event, &mut self.made);
        self.effects.extend(self.made.drain(..));
    }

    /// Advances the front and carries out at once what it wants done.
    fn step_front(&mut self, now: Millis, event: front::Event) {
        let mut effects = std::mem::take(&mut self.front_effects);
        self.front.step(now, self.reign.stance(), event, &mut effects);
        for effect in effects.drain(..) {
            self.perform_front(now, effect);
        }
        self.front_effects = effects;
    }

    fn request(&mut self, now: Millis, asker: Asker, command: Command) {
        let Some(session) = self.sessions.get(&asker.session) else { return };
        // Closed after an unknown write: what the client had pipelined after it must not run.
        if session.is_closed() && !matches!(session.origin(), Origin::Forwarded { .. }) {
            return;
        }
        let parked = &self.switchboard.gate.counters.parked;
        if session.has_parked() {
            count(parked);
            session.park(now, asker.tag, command, Room::NotHere);
            return;
        }
        let bytes_max = self.config.max_pipeline_bytes.as_u64() as usize;
        let gather_bytes_max = self.config.gather_bytes_max();
        // To look up more keys than that takes its time: it is found out when they are read.
        let is_narrow = (2..=FORESEEN_KEYS_MAX).contains(&command.keys());
        if is_narrow && written_bytes(&self.machine, &command) > gather_bytes_max {
            let why =
                format!("the values have more than {gather_bytes_max} bytes in all (--max-pipeline-bytes)");
            self.reply(asker, &Reply::error(dsm_protocol::command::ErrorWord::Bad, why));
            return;
        }
        let answer_bytes = foreseen((&self.machine, &self.front), asker.session, &command, bytes_max);
        if answer_bytes > 0 {
            match session.expect(asker.tag, answer_bytes, bytes_max) {
                Room::Yes => {}
                room @ (Room::NotHere | Room::NotInAll) => {
                    count(parked);
                    session.park(now, asker.tag, command, room);
                    self.set_aside(now, asker.session, room);
                    return;
                }
            }
        }
        self.execute(now, asker, command);
    }

    /// Notes that a session has requests that are put aside.
    fn set_aside(&mut self, now: Millis, session: SessionId, room: Room) {
        match room {
            Room::NotHere => self.congested.push_back(session),
            Room::NotInAll => self.in_line.push_back((session, now)),
            Room::Yes => {}
        }
    }

    /// Goes on with sessions whose requests were put aside until earlier answers have left.
    fn resume_congested(&mut self, now: Millis) {
        let mut left = RESUMED_MAX;
        // Whoever has waited longest for room among all gets it first, and then waits for all others.
        for _ in 0..self.in_line.len().min(RESUMED_MAX) {
            let Some((id, since)) = self.in_line.pop_front() else { break };
            left -= 1;
            match self.resume(now, id) {
                Ok(true) => self.in_line.push_back((id, now)),
                Ok(false) => {}
                Err(Room::NotInAll) => {
                    self.in_line.push_front((id, since));
                    break;
                }
                Err(room) => self.set_aside(now, id, room),
            }
        }
        for _ in 0..self.congested.len() {
            let Some(id) = self.congested.pop_front() else { break };
            loop {
                if left == 0 {
                    self.congested.push_front(id);
                    return;
                }
                left -= 1;
                match self.resume(now, id) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(room) => {
                        self.set_aside(now, id, room);
                        break;
                    }
                }
            }
        }
    }

    /// Executes the first request of a session that was put aside, if there is room for its answer; whether there may
    /// be more.
    fn resume(&mut self, now: Millis, id: SessionId) -> Result<bool, Room> {
        let session = match self.sessions.get(&id) {
            Some(session) if !session.is_closed() => Rc::clone(session),
            Some(_) | None => return Ok(false),
        };
        let bytes_max = self.config.max_pipeline_bytes.as_u64() as usize;
        let known = (&self.machine, &self.front);
        match session.unpark(now, bytes_max, |command| foreseen(known, id, command, bytes_max))? {
            Some((tag, command)) => {
                self.execute(now, Asker { session: id, tag }, command);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Cuts a client that has taken nothing for long while others wait for the room that its answers take: the one that
    /// has taken nothing for longest, and one at a time.
    fn relieve(&mut self, now: Millis) {
        let Some((_, since)) = self.in_line.front() else { return };
        if now.since(*since) < DEAF.as_millis() as u64 {
            return;
        }
        let deaf = self.sessions.values().map(|session| (session.is_deaf_for(), session));
        let is_over = |(time, session): &(Duration, &Rc<Session>)| {
            *time >= if session.reads_slowly() { DEAF_AND_SLOW } else { DEAF }
        };
        let deafest = deaf.filter(is_over).max_by_key(|(time, session)| (*time, session.id()));
        if let Some((_, session)) = deafest {
            session.cut("it takes no answers, and others wait for the room (--max-answer-bytes)");
        }
    }

    /// Refuses what has waited for room among the answers of all for as long as a request may take: those who take theirs
    /// slowly, and yet take them, are not cut for it.
    fn refuse_waiting(&mut self, now: Millis) {
        let limit_ms = self.config.request_timeout.as_millis() as u64;
        let has_waited = |id: &SessionId| {
            self.sessions.get(id).is_some_and(|session| session.has_waited_for_others(now, limit_ms))
        };
        let mut left = RESUMED_MAX;
        let late = self.in_line.iter().map(|(id, _)| *id).filter(has_waited).take(left);
        for id in late.collect::<Vec<_>>() {
            while let Some(tag) = self.sessions.get(&id).and_then(|session| session.give_up(now, limit_ms)) {
                count(&self.switchboard.gate.counters.busy);
                let why = "the answers of others take all the room (--max-answer-bytes)";
                self.reply(Asker { session: id, tag }, &Reply::error(ErrorWord::Busy, why));
                // What stands after it may need no room.
                loop {
                    if left == 0 {
                        self.congested.push_front(id);
                        return;
                    }
                    left -= 1;
                    match self.resume(now, id) {
                        Ok(true) => {}
                        // Who waits for others still stands in the line.
                        Ok(false) | Err(Room::NotInAll) => break,
                        Err(room) => {
                            self.set_aside(now, id, room);
                            break;
                        }
                    }
                }
            }
        }
    }

    fn execute(&mut self, now: Millis, asker: Asker, command: Command) {
        let Some(session) = self.sessions.get(&asker.session) else { return };
        let kind = session.origin().kind();
        if log::log_enabled!(log::Level::Debug) {
            log_operation(asker, &command);
        }
        if command == Command::Status {
            let reply = Reply::Text(self.status());
            self.reply(asker, &reply);
            return;
        }
        let deadline = now.plus(self.config.request_timeout.as_millis() as u64);
        self.step_front(now, front::Event::Request { asker, kind, deadline, command });
    }

    fn arrived(&mut self, now: Millis, arrived: Arrived, ctx: &mut Context<Self>) {
        match arrived {
            Arrived::Opened(session) => {
                if session.origin().kind() == front::Kind::Native {
                    let welcome = self.welcome();
                    session.send(&Wire::Control(Control::Welcome(welcome)));
                }
                self.let_go_if_leaving(&session);
                self.sessions.insert(session.id(), session);
            }
            Arrived::Request { asker, command } => self.request(now, asker, command),
            Arrived::Closed(session) => self.session_closed(now, session),
            // Each of them is heard, with the drop of `said`, once it is dealt with.
            Arrived::SlaveHello { link, hello, outbox, said: _said } => {
                self.slave_hello(now, link, hello, outbox, ctx);
            }
            Arrived::Slave { link, message, said: _said } => self.slave_message(now, link, message),
            Arrived::SlaveGone { link, reason } => self.slave_gone(link, reason),
            Arrived::PeerHello { link, hello, outbox, lock, said: _said } => {
                self.peer_hello(link, hello, outbox, lock);
            }
            Arrived::Peer { link, message, said: _said } => self.peer_message(now, link, message),
            Arrived::PeerGone { link } => self.peer_gone(now, link),
            Arrived::DialedUp { generation, address, welcome, outbox } => {
                self.dialed_up(now, (generation, address), welcome, outbox);
            }
            Arrived::Dialed { generation, message, said: _said } => {
                self.dialed_message(now, generation, message);
            }
            Arrived::DialRefused { reason } => self.dial_refused(reason),
            Arrived::DialedDown { generation } => self.dialed_down(now, generation),
            Arrived::LogRead { read, result } => self.step(now, master::Event::LogRead { read, result }),
        }
        self.perform_reign(now);
    }

    fn session_closed(&mut self, now: Millis, session: SessionId) {
        if let Some(closed) = self.sessions.remove(&session) {
            self.step_reign(now, reign_rules::Event::SessionClosed { session });
            closed.abandon();
        }
        self.step_front(now, front::Event::SessionClosed { session });
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

/// How long the values that `command` asks for are, as far as they are written.
fn written_bytes(machine: &Master, command: &Command) -> usize {
    let written =
        |key: &bytes::Bytes| machine.directory().get(key).map_or(0, |entry| entry.place.bytes as usize);
    match (command.facts().answer, command.operands()) {
        (AnswerLength::Values, Operands::Key(key)) => written(key),
        (AnswerLength::Values, Operands::Keys(keys)) => keys.iter().map(written).sum(),
        (AnswerLength::Values | AnswerLength::Short | AnswerLength::Status, _) => 0,
    }
}

/// How much the answer to `command` will take while it waits at most, in bytes, as far as the directory and what the
/// session itself writes in front of it tell. The values of several keys together are refused above `bytes_max`.
fn foreseen(
    (machine, front): (&Master, &Front),
    session: SessionId,
    command: &Command,
    bytes_max: usize,
) -> usize {
    let value = |key: &bytes::Bytes| machine.foreseen_bytes(session, key).max(front.longest_waiting(session));
    match (command.facts().answer, command.operands()) {
        (AnswerLength::Values, Operands::Key(key)) => value(key),
        // To look up tens of thousands takes its time, and is done when they are read. More than that they are not.
        (AnswerLength::Values, Operands::Keys(keys)) if keys.len() > FORESEEN_KEYS_MAX => {
            bytes_max + keys.len() * PART_BYTES
        }
        (AnswerLength::Values, Operands::Keys(keys)) => {
            let values = keys.iter().map(value).sum::<usize>();
            let values = if keys.len() > 1 { values.min(bytes_max) } else { values };
            values + keys.len() * PART_BYTES
        }
        (AnswerLength::Status, _) => STATUS_BYTES,
        (AnswerLength::Values | AnswerLength::Short, _) => 0,
    }
}

fn log_operation(asker: Asker, command: &Command) {
    let (word, session) = (command.facts().log_word, asker.session);
    match command.operands() {
        Operands::None => log::debug!("{word} session={session}"),
        Operands::Key(key) => log::debug!("{word} key={} session={session}", shown_key(key)),
        Operands::KeyAndValue(key, value) => {
            log::debug!("{word} key={} bytes={} session={session}", shown_key(key), value.len());
        }
        operands @ (Operands::Keys(_) | Operands::Pairs(_)) => {
            log::debug!("{word} keys={} session={session}", operands.keys());
        }
    }
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
        let turn = self.turns.begin("requests");
        let mut arrived = std::mem::take(&mut self.arrived);
        self.inbox.take(&mut arrived);
        let now = self.env.now();
        for arrived in arrived.drain(..) {
            self.note_arrived(now, &arrived);
            match arrived {
                Arrived::SlaveHello { .. }
                | Arrived::Slave { .. }
                | Arrived::SlaveGone { .. }
                | Arrived::LogRead { .. } => self.answers.push_back(arrived),
                Arrived::Opened(_)
                | Arrived::Request { .. }
                | Arrived::Closed(_)
                | Arrived::PeerHello { .. }
                | Arrived::Peer { .. }
                | Arrived::PeerGone { .. }
                | Arrived::DialedUp { .. }
                | Arrived::Dialed { .. }
                | Arrived::DialRefused { .. }
                | Arrived::DialedDown { .. } => self.todo.push_back(Todo::Arrived(arrived)),
            }
        }
        self.arrived = arrived;
        self.work(&turn, ctx);
    }
}

impl Handler<Resume> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Resume, ctx: &mut Self::Context) {
        let turn = self.turns.begin("rest");
        self.resuming = false;
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
        self.journal.ask(LogRequest::LeaveQueue);
        self.journal.ask(LogRequest::GiveUp);
        for slave in self.slaves.values() {
            slave.proxy.do_send(End(EndReason::Dismissed("the node has ended")));
        }
        ctx.stop();
    }
}

/// A frame for a peer.
pub(super) fn send(outbox: &Outbox, message: &Wire) {
    outbox.append(|out| dsm_protocol::frame::encode(message, out));
}
