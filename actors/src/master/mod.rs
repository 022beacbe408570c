//! `MasterActor`: one master, primary or standby.
//!
//! Owns the master machine (directory, active slaves, requests in flight), the front (where requests go), and the
//! node's role; supervises a `SlaveProxy` per slave, and asks its log through the port [`journal`](crate::journal).
//! A shell: what arrives becomes events, what the machines decide is carried out in `effects.rs`. Never blocks, never
//! decides a rule of replication or failover by itself.

mod agenda;
mod asked;
mod effects;
mod forwards;
mod health;
mod log_events;
mod long_answers;
mod own_log;
mod peer_events;
mod peers;
mod reign;
mod silence;
mod slave_events;
mod slave_link;
mod slaves;
mod status;
mod told;
mod wanted;

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
use crate::journal::{LogRequest, MakesJournal, WrittenRecord};
use crate::shown::shown_key;
use crate::slave_proxy::EndReason;
use crate::supervision::{Fate, PanicGuard};
use crate::turns::{Turn, TurnLengths};
use actix::prelude::*;
use agenda::{Agenda, Allowance, Todo};
use dsm_protocol::command::{AnswerLength, Command, ErrorWord, Operands, Reply};
use dsm_protocol::ids::{ClusterId, Millis, SessionId};
use dsm_protocol::machine::front::{self, Front};
use dsm_protocol::machine::master::{self, Asker, Master};
use dsm_protocol::machine::reign::{self as reign_rules, Leadership};
use dsm_protocol::message::{Control, Message as Wire};
use health::HealthWatch;
use long_answers::LongAnswer;
use own_log::OwnLog;
use peers::Peers;
use silence::SilenceWatch;
use slaves::Slaves;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use wanted::Wanted;

/// How often the master looks at its clock, its deadlines and its role.
const TICK: Duration = Duration::from_millis(25);

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

/// Asks the node to stop cleanly.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Stop;

/// Ends the actor and its children: the node is over.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct Dismiss;

/// Asks to go on with what was left at the end of a turn. Others have had theirs in between.
#[derive(Message, Debug)]
#[rtype(result = "()")]
struct Resume;

/// The actor. See the module.
pub struct MasterActor {
    env: Env,
    config: Rc<MasterConfig>,
    kind: MasterKind,
    address: String,
    fate: Fate,
    guard: PanicGuard,
    switchboard: Rc<Switchboard>,
    /// For requests of the program around this master.
    embedded: EmbeddedCaller,
    /// What is to be done.
    agenda: Agenda,
    machine: Master,
    front: Front,
    /// What this master is.
    reign: Leadership,
    /// What these three want done.
    wanted: Wanted,
    log: OwnLog,
    silence: SilenceWatch,
    /// Answers of many values that are being encoded.
    long_answers: VecDeque<LongAnswer>,
    sessions: Sessions,
    /// Sessions with requests that are put aside until their own answers have left.
    congested: VecDeque<SessionId>,
    /// The same until answers of others have left, and since when. The first in line is the first to go on.
    in_line: VecDeque<(SessionId, Millis)>,
    slaves: Slaves,
    health: HealthWatch,
    peers: Peers,
    takeovers: u64,
    /// Slaves and masters whose refusal the log tells of already.
    refusals: told::Told,
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
    /// Makes the log.
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
        let journal = journal(ctx.address().recipient(), Rc::clone(&switchboard.turns));
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
            guard: PanicGuard::new("MasterActor", fate.clone()),
            embedded: EmbeddedCaller::new(Rc::clone(&switchboard), Rc::clone(&config)),
            switchboard,
            agenda: Agenda::new(inbox),
            machine,
            front: Front::new(front::Config {
                requests_max: config.max_requests,
                bytes_max: config.max_request_bytes.as_u64() as usize,
            }),
            reign,
            wanted: Wanted::default(),
            log: OwnLog::new(journal, cluster),
            silence: SilenceWatch::new(&env, jump_ms),
            long_answers: VecDeque::new(),
            sessions: Sessions::default(),
            congested: VecDeque::new(),
            in_line: VecDeque::new(),
            slaves: Slaves::default(),
            health: HealthWatch::new(now),
            peers: Peers::new(config.peer_addresses(kind), now),
            takeovers: 0,
            refusals: told::Told::default(),
            handovers: 0,
            env,
            config,
            kind,
            address,
            fate,
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        let turn = self.switchboard.turns.begin("tick");
        let now = self.env.now();
        self.observe(now);
        self.silence.tick();
        self.log.advance();
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
        self.log.advance();
        let mut left = Allowance::new(turn);
        self.encode_part(&mut left);
        self.forward_on(&mut left);
        self.perform_within(now, &mut left);
        self.slaves.read_on(&self.machine, &mut left);
        while !left.is_spent() {
            let Some(todo) = self.agenda.next() else { break };
            left.spend(1);
            match todo {
                Todo::Arrived(arrived) => self.arrived(now, arrived, ctx),
                Todo::Written(WrittenRecord { write, version, places }) => {
                    self.log.note_written(version.seq);
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
        self.slaves.tidy(&mut left);
        self.log.send_appends();
        self.log.advance();
        self.turn_ended(now);
        self.perform_reign(now);
        self.resume_later(ctx);
    }

    /// Whether something that has come is not done yet.
    fn is_behind(&self) -> bool {
        self.agenda.is_behind() || self.wanted.is_behind()
    }

    /// Sees to it that there is another turn if something is left to be done, once everybody else has had one.
    fn resume_later(&mut self, ctx: &mut Context<Self>) {
        let is_left = self.is_behind()
            || self.machine.has_chores()
            || !self.long_answers.is_empty()
            || self.peers.is_behind()
            || self.slaves.is_behind();
        if is_left && self.agenda.call_for_turn() {
            let master = ctx.address();
            // Not from here: actix empties the mailbox before it lets anybody else run.
            actix::spawn(async move {
                tokio::task::yield_now().await;
                master.do_send(Resume);
            });
        }
    }

    /// Notes that the process runs.
    fn observe(&mut self, now: Millis) {
        if self.silence.observe(now) {
            self.machine.restart_read_timeouts(now);
            self.peers.restart_lags(now);
        }
    }

    /// Advances the master machine and keeps what it wants done for the end of the turn.
    fn step(&mut self, now: Millis, event: master::Event) {
        self.wanted.step_master(&mut self.machine, now, event);
    }

    /// Advances the front and carries out at once what it wants done.
    fn step_front(&mut self, now: Millis, event: front::Event) {
        // What the front holds back is served in its turn: there may be thousands.
        let releases = matches!(event, front::Event::StanceChanged);
        let mut effects = self.wanted.take_front();
        self.front.step(now, self.reign.stance(), event, &mut effects);
        for effect in effects.drain(..) {
            self.perform_front(now, effect, releases);
        }
        self.wanted.give_back(effects);
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
