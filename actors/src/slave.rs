//! `SlaveActor`: one slave. Holds the values, acknowledges writes, answers reads.
//!
//! Owns the slave machine. The link to each master is a plain task, which keeps the connection and hands over in
//! batches what arrives. A slave is connected to all masters and obeys the one with the latest reign.

mod status;

use crate::batch::{Inbox, Outbox, Turns};
use crate::config::SlaveConfig;
use crate::dial::{self, DialError, Greeted, Kept, Manner};
use crate::env::{Env, Stream};
use crate::reading::read_some;
use crate::shown::{shown_error, shown_message};
use crate::supervision::{Dismiss, Fate, PanicGuard, Stop};
use crate::turns::{Turn, TurnLengths};
use actix::prelude::*;
use dsm_protocol::frame::{self, Incoming, Unframer};
use dsm_protocol::handshake::HandshakeFailure;
use dsm_protocol::ids::{ClusterId, Incarnation, LinkId, SlaveId, Stamp};
use dsm_protocol::machine::reign::may_begin::SLAVE_PAUSE_MAX_MS;
use dsm_protocol::machine::slave::{Effect, Event, Slave};
use dsm_protocol::message::{Control, Hello, HelloRole, Message as Wire, Seen};
use dsm_protocol::planted;
use dsm_protocol::secret::Secret;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a master may take over the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest pause after a refusal.
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The link to a master that takes no answers for this long is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A master that sends nothing for this long is asked for a sign of life. A master whose machine lost power has not
/// closed the connection, and a slave that only waits for commands would wait for ever.
const SILENCE: Duration = Duration::from_secs(2);

/// How long the master may take to answer that.
const SIGN_OF_LIFE_TIMEOUT: Duration = Duration::from_secs(3);

/// Room for one read from the socket, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// A turn ends after this many messages, each of which takes some microseconds.
const TURN_STEPS_MAX: usize = 1024;

/// A turn also ends after this time, in microseconds. One message may take as long again.
const TURN_US_MAX: u64 = 3_000;

/// After so many reads the turn looks how long it has taken, and after anything else: the value that a write replaces may be a
/// long one, which takes its time to be freed. To look costs as much as a short step does.
const STEPS_A_LOOK: usize = 16;

/// How many messages may wait for their turn before no more are read.
const BACKLOG_MAX: usize = 4 * TURN_STEPS_MAX;

#[derive(Message, Debug)]
#[rtype(result = "()")]
struct Drain;

/// Asks the actor to go on with what was left at the end of a turn. Other tasks have run in between.
#[derive(Message, Debug)]
#[rtype(result = "()")]
struct Resume;

#[derive(Debug)]
enum Arrived {
    Up { link: LinkId, address: String, outbox: Outbox },
    Frame { link: LinkId, message: Wire },
    BatchEnded { link: LinkId },
    Down { link: LinkId },
}

/// What a link's HELLO says of the slave. The actor keeps it up to date.
#[derive(Debug)]
struct Facts {
    id: SlaveId,
    incarnation: Incarnation,
    cluster: Cell<Option<ClusterId>>,
    seen: Cell<Option<Seen>>,
    room_bytes: Cell<u64>,
}

/// What belongs to a slave that has begun, beside its actor.
pub(crate) struct BegunSlave {
    pub(crate) id: SlaveId,
    /// The tasks of the links. Dropping them cuts the links.
    pub(crate) links: JoinSet<()>,
    /// The lengths of its turns.
    pub(crate) turns: Rc<TurnLengths>,
}

/// What a slave has done since its start.
#[derive(Debug, Default)]
struct Done {
    writes_taken: u64,
    writes_refused: u64,
    reads_answered: u64,
}

/// The actor. See the module.
pub struct SlaveActor {
    env: Env,
    config: Rc<SlaveConfig>,
    machine: Slave,
    done: Done,
    facts: Rc<Facts>,
    inbox: Inbox<Arrived>,
    arrived: Vec<Arrived>,
    /// What has arrived and is not handled yet.
    todo: VecDeque<Arrived>,
    /// The number of these, for the tasks that read.
    backlog: Rc<Cell<usize>>,
    /// Whether a [`Resume`] is on its way.
    is_resuming: bool,
    effects: Vec<Effect>,
    links: BTreeMap<LinkId, (String, Outbox)>,
    fate: Fate,
    guard: PanicGuard,
    turns: Rc<TurnLengths>,
}

struct Board {
    inbox: Inbox<Arrived>,
    /// How many messages the actor has taken from the channel and not handled yet.
    backlog: Rc<Cell<usize>>,
    drain: Recipient<Drain>,
    next: Cell<u64>,
    turns: Rc<TurnLengths>,
}

impl Board {
    fn push(&self, arrived: Arrived) {
        if self.inbox.push(arrived) {
            self.drain.do_send(Drain);
        }
    }

    /// Waits until the actor has handled all but a bounded number of the messages that have arrived.
    async fn keep_pace(&self) {
        while self.backlog.get() > BACKLOG_MAX {
            tokio::task::yield_now().await;
        }
    }
}

impl SlaveActor {
    /// Starts a slave and its links.
    pub(crate) fn begin(
        env: &Env,
        config: &Rc<SlaveConfig>,
        secret: Option<&Secret>,
        fate: &Fate,
    ) -> (Addr<Self>, BegunSlave) {
        let (slave, board, facts) = Self::without_links(env, config, fate);
        let mut links = JoinSet::new();
        for address in &config.masters {
            let link = LinkToMaster {
                config: Rc::clone(config),
                address: address.trim().to_owned(),
                secret: secret.cloned(),
                facts: Rc::clone(&facts),
                board: Rc::clone(&board),
            };
            let manner = Manner {
                connect_timeout: config.connect_timeout,
                handshake_timeout: HANDSHAKE_TIMEOUT,
                keepalive: config.tcp_keepalive,
                // A master that starts waits a while for slaves before it serves: a slave that lives must connect
                // within that time.
                pause_max: Duration::from_millis(SLAVE_PAUSE_MAX_MS),
                refused_pause_max: REFUSED_PAUSE_MAX,
            };
            links.spawn_local(dial::keep(
                link,
                Rc::clone(env),
                manner,
                Rc::clone(&board.turns),
                fate.clone(),
            ));
        }
        (slave, BegunSlave { id: facts.id.clone(), links, turns: Rc::clone(&board.turns) })
    }

    /// Starts the actor, and gives what it shares with its links.
    fn without_links(env: &Env, config: &Rc<SlaveConfig>, fate: &Fate) -> (Addr<Self>, Rc<Board>, Rc<Facts>) {
        let random_id = || format!("slave-{:08x}", env.random() as u32);
        let id = config.id.clone().unwrap_or_else(|| {
            SlaveId::new(random_id()).expect("letters, digits and a dash make a valid slave id")
        });
        let machine = Slave::new(config.max_memory.map(|max| max.as_u64()), env.random());
        let facts = Rc::new(Facts {
            id,
            incarnation: Incarnation(env.random()),
            cluster: Cell::new(None),
            seen: Cell::new(None),
            room_bytes: Cell::new(machine.room_bytes()),
        });
        let inbox = Inbox::default();
        let turns = TurnLengths::new(Rc::clone(env));
        let backlog = Rc::new(Cell::new(0));
        let slave = SlaveActor {
            env: Rc::clone(env),
            config: Rc::clone(config),
            machine,
            done: Done::default(),
            facts: Rc::clone(&facts),
            inbox: inbox.clone(),
            arrived: Vec::new(),
            todo: VecDeque::new(),
            backlog: Rc::clone(&backlog),
            is_resuming: false,
            effects: Vec::new(),
            links: BTreeMap::new(),
            fate: fate.clone(),
            guard: PanicGuard::new("SlaveActor", fate.clone()),
            turns: Rc::clone(&turns),
        }
        .start();
        let drain = slave.clone().recipient();
        (slave, Rc::new(Board { inbox, backlog, drain, next: Cell::new(1), turns }), facts)
    }

    fn step(&mut self, event: Event) {
        self.machine.step(event, &mut self.effects);
    }

    fn arrived(&mut self, arrived: Arrived) {
        match arrived {
            Arrived::Up { link, address, outbox } => {
                log::info!("registered slave={} master={address}", self.facts.id);
                self.links.insert(link, (address, outbox));
                self.step(Event::LinkUp { link });
            }
            Arrived::Down { link } => {
                if let Some((address, _)) = self.links.remove(&link) {
                    log::info!("master lost slave={} master={address}", self.facts.id);
                }
                self.step(Event::LinkDown { link });
            }
            Arrived::BatchEnded { link } => self.step(Event::BatchEnded { link }),
            Arrived::Frame { link, message } => self.frame(link, message),
        }
    }

    /// Handles what has arrived, in its order, for as long as a turn may take; the rest is handled in later turns.
    fn work(&mut self, turn: &Turn, ctx: &mut Context<Self>) {
        let mut effects = std::mem::take(&mut self.effects);
        for step in 1..=TURN_STEPS_MAX {
            let Some(arrived) = self.todo.pop_front() else { break };
            let is_read = matches!(arrived, Arrived::Frame { message: Wire::Read { .. }, .. });
            self.arrived(arrived);
            std::mem::swap(&mut effects, &mut self.effects);
            effects.drain(..).for_each(|effect| self.perform(effect));
            if (!is_read || step % STEPS_A_LOOK == 0) && turn.took_us() >= TURN_US_MAX {
                break;
            }
        }
        self.effects = effects;
        self.facts.seen.set(self.machine.seen());
        self.facts.room_bytes.set(self.machine.room_bytes());
        self.backlog.set(self.todo.len());
        if !self.todo.is_empty() && !std::mem::replace(&mut self.is_resuming, true) {
            let slave = ctx.address();
            // Not sent from here: actix empties the mailbox before any other task runs.
            actix::spawn(async move {
                tokio::task::yield_now().await;
                slave.do_send(Resume);
            });
        }
    }

    fn frame(&mut self, link: LinkId, message: Wire) {
        if log::log_enabled!(log::Level::Debug) {
            log_command(&message);
        }
        match message {
            Wire::Write { version, reign, key, value } => {
                self.done.writes_taken += 1;
                self.step(Event::Write { link, version, reign, key, value });
            }
            Wire::Read { tag, version, reign, key } => {
                self.step(Event::Read { link, tag, version, reign, key });
            }
            Wire::Drop { version, reign, key } => self.step(Event::Drop { link, version, reign, key }),
            Wire::Ping => self.step(Event::Ping { link }),
            Wire::Control(Control::Admitted { reign }) => self.step(Event::Admitted { link, reign }),
            Wire::Control(Control::Announce { cluster, reign, seq, durable }) => {
                match self.facts.cluster.get() {
                    Some(ours) if ours != cluster => {
                        log::error!("left a master of another cluster ours={ours} theirs={cluster}");
                        if let Some((_, outbox)) = self.links.get(&link) {
                            outbox.abort();
                        }
                    }
                    // A slave's values belong to one cluster for good.
                    Some(_) | None => {
                        self.facts.cluster.set(Some(cluster));
                        self.step(Event::Announced { link, reign, seq, durable });
                    }
                }
            }
            Wire::Control(Control::Lineage { reigns }) => self.step(Event::Lineage { link, reigns }),
            Wire::Control(Control::AskLineage) => {
                let reigns = self.machine.lineage().to_vec();
                self.send(link, &Wire::Control(Control::Lineage { reigns }));
            }
            Wire::Control(Control::HoldingsNext) => self.step(Event::HoldingsNext { link }),
            Wire::Trial { bytes } => {
                self.send(link, &Wire::Control(Control::Took { bytes: bytes.len() as u64 }));
            }
            Wire::Control(Control::Quarantined { ms, reason }) => {
                let (id, master) = (&self.facts.id, self.links.get(&link).map_or("", |(address, _)| address));
                log::warn!(
                    "in quarantine, not used for a while slave={id} master={master} ms={ms} cause={reason:?}"
                );
            }
            Wire::Control(Control::Probe) => self.send(link, &Wire::Control(Control::Alive)),
            Wire::Control(Control::Reject { reason }) => {
                log::warn!("link ended by the master slave={} cause={reason:?}", self.facts.id);
            }
            // Only the announcement says who serves. A sign of life needs no handling: it is enough that it arrived.
            Wire::Control(Control::MasterState(_) | Control::Alive) => {}
            other => {
                log::warn!("a master must not send {}, closing the link", shown_message(&other));
                if let Some((_, outbox)) = self.links.get(&link) {
                    outbox.abort();
                }
            }
        }
    }

    fn send(&self, link: LinkId, message: &Wire) {
        if let Some((_, outbox)) = self.links.get(&link) {
            outbox.append(|out| frame::encode(message, out));
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Value { link, tag, version, reign, value, checksum } => {
                self.done.reads_answered += 1;
                if let Some((_, outbox)) = self.links.get(&link) {
                    let stamp = Stamp { version, reign };
                    outbox.append_pieces(|out| frame::encode_value(tag, stamp, &value, checksum, out));
                }
            }
            Effect::Ack { link, through, room_bytes } => {
                self.send(link, &Wire::Ack { through, room_bytes });
            }
            Effect::Missing { link, tag, held } => self.send(link, &Wire::Missing { tag, held }),
            Effect::Enlisted { link, reign, seen, room_bytes } => {
                let epoch = reign.epoch;
                log::info!("enlisted slave={} epoch={epoch} keys={}", self.facts.id, self.machine.len());
                self.send(link, &Wire::Control(Control::Enlisted { reign, seen, room_bytes }));
            }
            Effect::Outdated { link, seen } => {
                log::warn!(
                    "refused a master whose reign is over, or which has another copy of the log slave={} reign={}",
                    self.facts.id,
                    seen.reign
                );
                self.send(link, &Wire::Control(Control::Outdated { seen }));
            }
            Effect::Full { link, number } => {
                self.done.writes_taken = self.done.writes_taken.saturating_sub(1);
                self.done.writes_refused += 1;
                self.send(link, &Wire::Control(Control::Full { number }));
            }
            Effect::Holdings { link, entries, last } => {
                self.send(link, &Wire::Control(Control::Holdings { entries, last }));
            }
        }
    }
}

fn log_command(message: &Wire) {
    use crate::shown::shown_key;
    match message {
        Wire::Write { version, key, value, .. } => {
            log::debug!("write key={} version={version} bytes={}", shown_key(key), value.len());
        }
        Wire::Read { version, key, .. } => log::debug!("read key={} version={version}", shown_key(key)),
        Wire::Drop { version, key, .. } => log::debug!("drop key={} version={version}", shown_key(key)),
        other => log::trace!("frame {other:?}"),
    }
}

impl Actor for SlaveActor {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.guard.stopped_cleanly();
    }
}

impl Handler<Drain> for SlaveActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        let turn = self.turns.begin("requests");
        let mut arrived = std::mem::take(&mut self.arrived);
        self.inbox.take(&mut arrived);
        self.todo.extend(arrived.drain(..));
        self.arrived = arrived;
        self.work(&turn, ctx);
    }
}

impl Handler<Resume> for SlaveActor {
    type Result = ();

    fn handle(&mut self, _: Resume, ctx: &mut Self::Context) {
        let turn = self.turns.begin("rest");
        self.is_resuming = false;
        self.work(&turn, ctx);
    }
}

impl Handler<Stop> for SlaveActor {
    type Result = ();

    fn handle(&mut self, _: Stop, _: &mut Self::Context) {
        let turns = self.turns.info();
        log::info!(
            "stopping turns_computing_above_10ms={} turn_longest_computing_us={} turn_longest_computing_in={:?}",
            turns.turns_computing_above_10ms,
            turns.turn_longest_computing_us,
            turns.turn_longest_computing_in
        );
        for (_, outbox) in self.links.values() {
            outbox.finish();
        }
        self.fate.decide(Ok(()));
    }
}

impl Handler<Dismiss> for SlaveActor {
    type Result = ();

    fn handle(&mut self, _: Dismiss, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// The link to one master.
struct LinkToMaster {
    config: Rc<SlaveConfig>,
    address: String,
    secret: Option<Secret>,
    facts: Rc<Facts>,
    board: Rc<Board>,
}

impl Kept for LinkToMaster {
    const TASK: &'static str = "the link to a master";

    fn master(&self) -> &str {
        &self.address
    }

    async fn hello(&self) -> io::Result<Hello> {
        let role = HelloRole::Slave {
            id: self.facts.id.clone(),
            incarnation: self.facts.incarnation,
            seen: self.facts.seen.get(),
            room_bytes: self.facts.room_bytes.get(),
        };
        Ok(Hello { cluster: self.facts.cluster.get(), role })
    }

    fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.facts.cluster.get()
    }

    async fn serve(&self, stream: &Stream, greeted: Greeted) -> Result<(), DialError> {
        let outbox = Outbox::default();
        let pumping = outbox.pump(stream, WRITE_TIMEOUT);
        let reading = self.read(stream, &outbox, greeted);
        tokio::select! {
            biased;
            pumped = pumping => Ok(pumped?),
            read = reading => read,
        }
    }

    fn refused(&self, why: &DialError) {
        log::error!("refused by the master master={} cause={:?}", self.address, why.to_string());
    }

    fn failed(&self, why: &DialError, is_first: bool) {
        let cause = shown_error(why);
        // The loss of an established link is logged where it is noticed.
        if is_first {
            log::info!("no link yet, retrying master={} cause={cause:?}", self.address);
        } else {
            log::debug!("no link master={} error={cause}", self.address);
        }
    }
}

impl LinkToMaster {
    async fn read(&self, stream: &Stream, outbox: &Outbox, greeted: Greeted) -> Result<(), DialError> {
        let Greeted { welcome, unread: mut buffer } = greeted;
        let link = LinkId(self.board.next.replace(self.board.next.get() + 1));
        // If a slave took only shorter values than its cluster allows, one long value would end its link.
        let value_max = usize::try_from(welcome.value_max).unwrap_or(usize::MAX).min(1 << 30);
        let body_max = frame::body_max(value_max.max(self.config.max_value.as_u64() as usize));
        let _down = Down { board: &self.board, link };
        self.board.push(Arrived::Up { link, address: self.address.clone(), outbox: outbox.clone() });
        let invalid = |error: frame::FrameError| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut turns = Turns::default();
        let mut unframer = Unframer::default();
        loop {
            while let Some(incoming) = unframer.next(&mut buffer, body_max).map_err(invalid)? {
                match incoming {
                    Incoming::TooLong { .. } => {
                        return Err(io::Error::from(io::ErrorKind::InvalidData).into())
                    }
                    Incoming::Message(Wire::Control(Control::Reject { reason })) => {
                        return Err(HandshakeFailure::Rejected { reason }.into());
                    }
                    Incoming::Message(message) => {
                        self.board.push(Arrived::Frame { link, message });
                        turns.count().await;
                    }
                }
            }
            self.board.push(Arrived::BatchEnded { link });
            self.board.keep_pace().await;
            let need = frame::missing(&buffer);
            if read_or_probe(read_some(stream, &mut buffer, need, READ_BYTES), outbox).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

/// Reads from a master; asks a silent one for a sign of life.
///
/// # Errors
/// Errors of the system; `TimedOut` when there is no sign of life.
async fn read_or_probe(
    reading: impl Future<Output = io::Result<usize>>,
    outbox: &Outbox,
) -> io::Result<usize> {
    if planted!(SlaveTrustsSilence) {
        return reading.await;
    }
    let mut reading = pin!(reading);
    if let Ok(read) = tokio::time::timeout(SILENCE, &mut reading).await {
        return read;
    }
    outbox.append(|out| frame::encode(&Wire::Control(Control::Probe), out));
    // What has arrived is read before the time is checked, so that a slave that was paused itself does not blame the
    // master.
    tokio::time::timeout(SIGN_OF_LIFE_TIMEOUT, reading).await?
}

/// Reports the end of a link, however it ends.
struct Down<'a> {
    board: &'a Board,
    link: LinkId,
}

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.board.push(Arrived::Down { link: self.link });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::real::RealEnv;
    use bytes::BytesMut;
    use dsm_protocol::ids::{Reign, Seq, Version};

    const PINGS: usize = 10 * TURN_STEPS_MAX;
    const READS: u64 = 10;

    #[actix::test]
    async fn a_turn_takes_in_a_bounded_number_of_messages_and_their_order_stays() {
        let env: Env = RealEnv::new();
        let listener = env.listen("127.0.0.1:0").await.unwrap();
        let near = env.connect(&listener.local_address().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let fate = Fate::default();
        let (slave, board, _) = SlaveActor::without_links(&env, &Rc::default(), &fate);
        let (link, outbox) = (LinkId(1), Outbox::default());
        let pumped = outbox.clone();
        let pump = actix::spawn(async move { pumped.pump(&near, WRITE_TIMEOUT).await });
        let (reign, version) = (Reign::new(1, 7), Version::new(1, 5));
        let frame = |message| Arrived::Frame { link, message };
        let key = || bytes::Bytes::from_static(b"key");
        let announce = Control::Announce { cluster: ClusterId(1), reign, seq: Seq(1), durable: true };
        board.push(Arrived::Up { link, address: "far".to_owned(), outbox: outbox.clone() });
        board.push(frame(Wire::Control(announce)));
        board.push(frame(Wire::Control(Control::Admitted { reign })));
        for number in 0..PINGS {
            board.push(frame(Wire::Ping));
            if number % (PINGS / READS as usize) == 0 {
                let tag = number as u64;
                board.push(frame(Wire::Read { tag, version, reign: reign.id, key: key() }));
            }
        }
        board.push(Arrived::BatchEnded { link });
        slave.send(Drain).await.unwrap();
        // Another turn may have followed before this check, but not all of them.
        assert!(board.backlog.get() >= PINGS / 2, "{} are left", board.backlog.get());
        board.keep_pace().await;
        assert!(board.backlog.get() <= BACKLOG_MAX);
        let (mut buffer, mut unframer, mut tags) = (BytesMut::new(), Unframer::default(), Vec::new());
        let through = loop {
            match unframer.next(&mut buffer, usize::MAX).unwrap() {
                Some(Incoming::Message(Wire::Missing { tag, held: None })) => tags.push(tag),
                Some(Incoming::Message(Wire::Ack { through, .. })) => break through,
                Some(Incoming::Message(Wire::Control(
                    Control::Enlisted { .. } | Control::Holdings { .. },
                ))) => {}
                Some(other) => panic!("{other:?}"),
                None => assert!(far.read(&mut buffer).await.unwrap() > 0),
            }
        };
        assert_eq!((through, board.backlog.get()), (PINGS as u64, 0));
        assert_eq!(tags, (0..READS).map(|read| read * PINGS as u64 / READS).collect::<Vec<_>>());
        outbox.finish();
        pump.await.unwrap().unwrap();
        slave.send(Dismiss).await.unwrap();
    }
}
