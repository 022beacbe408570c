//! The world that is searched: two masters of real machines, slaves, one log, one lock, clients, and all that may
//! happen next.
//!
//! Owns what is not a machine, in its simplest form: links as queues, the log as a list with a synced prefix, the lock
//! as a name, and the shell's duties as `actors/` performs them. Never decides what a machine should do.

mod actions;
mod checks;
mod clients;
mod masters;
mod peers;
mod slaves;

use crate::explore::Model;
use crate::part::{digest_of, Digest, Part};
use crate::setup::{Bug, Faults, Setup, Wish};
use actions::Action;
use bytes::Bytes;
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::ids::{
    ClusterId, Epoch, LinkId, Millis, Reign, ReignId, RequestId, Seq, SessionId, SlaveId, Version,
};
use dsm_protocol::machine::front::{self, Front, Kind};
use dsm_protocol::machine::link::Count;
use dsm_protocol::machine::master::{self, Asker, Change, Master, ReadId, WriteId};
use dsm_protocol::machine::reign::{
    self, Hearsay, LeaderSeen, Leadership, Queue, ReignRole, Stance, StoredLog, Surroundings,
};
use dsm_protocol::machine::slave::{self, Slave};
use dsm_protocol::record::{Place, Position};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::rc::Rc;

/// A deadline that no request reaches.
const DEADLINE: Millis = Millis(u64::MAX / 2);

/// The cluster of the one log.
const CLUSTER: ClusterId = ClusterId(1);

/// The link over which a master gets the other one's messages.
const STANDBY: LinkId = LinkId(1);

/// How long a master that was just started waits for what others know of the log.
const HEAR_MS: u64 = reign::may_begin::HEAR_MS;

/// Longer than any wait of a handover or for slaves, and too short for a pause of our own.
const TIMEOUT_MS: u64 = 500;

/// Sessions from here on are those of the other master's clients.
const FORWARDED: u64 = 1000;

/// How often time passes for held requests in one run. It is bounded because each retry is forwarded under new numbers.
const FRONT_TICKS_MAX: u8 = 3;

/// More steps than any world needs to settle.
const SETTLE_STEPS_MAX: usize = 2000;

/// The most lines that are printed about the settling.
const TOLD_MAX: usize = 80;

/// One in this many states is healed (and every quiet one).
const SETTLE_EVERY: Digest = 64;

#[derive(Clone, Debug)]
enum ToSlave {
    Announce(Reign, Seq),
    Admitted(Reign),
    Write { version: Version, reign: ReignId, key: Bytes, value: Bytes },
    Read { tag: u64, version: Version, reign: ReignId, key: Bytes },
    Drop { version: Version, reign: ReignId, key: Bytes },
    HoldingsNext,
}

/// One life after the other of the link between a master and a slave.
#[derive(Clone, Debug, Default)]
struct Link {
    id: LinkId,
    master_up: bool,
    slave_up: bool,
    /// The count of its messages, while the slave has a place in the reign.
    count: Option<Count>,
    /// The room of a slave that has accepted a reign which does not serve yet.
    enlisted: Option<u64>,
    to_slave: VecDeque<ToSlave>,
    to_master: VecDeque<slave::Effect>,
}

#[derive(Clone, Debug)]
enum ToPeer {
    Request { id: RequestId, stream: u64, generation: u32, command: Command },
    StreamClosed { stream: u64 },
    HandoverRequest { slaves: Vec<usize>, forced: bool },
}

#[derive(Clone, Debug)]
enum FromPeer {
    State { active: bool, epoch: Epoch },
    Response { id: RequestId, reply: Reply },
    HandoverRefused,
}

/// The link that one master has dialed to the other.
#[derive(Clone, Debug, Default)]
struct PeerLink {
    generation: u64,
    dialer_up: bool,
    other_up: bool,
    to: VecDeque<ToPeer>,
    from: VecDeque<FromPeer>,
    /// Streams that the other side knows.
    streams: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Down,
    Running,
    Paused,
}

#[derive(Clone, Debug)]
enum Queued {
    Change(WriteId, Change),
    Epoch,
}

/// A record that is written and not known to be synced yet.
#[derive(Clone, Debug)]
enum InGroup {
    Change(WriteId, usize),
    Epoch(usize),
}

/// A master's state outside its machines.
#[derive(Clone, Debug)]
struct Shell {
    life: Life,
    now: Millis,
    replayed: usize,
    /// The epoch under which its log is written.
    epoch: Epoch,
    queue: VecDeque<Queued>,
    group: Vec<InGroup>,
    log_reads: Vec<(ReadId, Place, Version, Bytes)>,
}

/// The machine of a reign. Its self-doubt is left out of the digest: here a timeout may come at any moment, and a holder is
/// suspected when it is stopped. So is since when a standby is connected: here only operators move a reign, and that does not
/// count for them.
#[derive(Clone)]
struct Timeless(Leadership);

impl fmt::Debug for Timeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:?}", self.0);
        let (before, rest) = text.split_once("doubt: SelfDoubt {").expect("the machine doubts itself");
        let (_, after) = rest.split_once('}').expect("a struct ends");
        write!(f, "{before}")?;
        let digits = |letter: char| letter.is_ascii_digit();
        let parts = after.split("connected_since: Millis(");
        parts.into_iter().try_for_each(|part| write!(f, "{}", part.trim_start_matches(digits)))
    }
}

impl std::ops::Deref for Timeless {
    type Target = Leadership;

    fn deref(&self) -> &Leadership {
        &self.0
    }
}

impl std::ops::DerefMut for Timeless {
    fn deref_mut(&mut self) -> &mut Leadership {
        &mut self.0
    }
}

#[derive(Clone)]
struct Node {
    core: Part<Master>,
    front: Part<Front>,
    reign: Part<Timeless>,
    shell: Part<Shell>,
}

#[derive(Clone, Debug)]
struct Record {
    version: Version,
    change: Option<Change>,
}

/// The disk that the masters share.
#[derive(Clone, Debug, Default)]
struct Disk {
    log: Vec<Record>,
    synced: usize,
    lock: Option<usize>,
    lock_epoch: Epoch,
}

#[derive(Clone, Debug)]
struct SlaveNode {
    up: bool,
    machine: Slave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    Asked,
    Answered,
    NotExecuted,
    Unknown,
}

/// A client's request.
#[derive(Clone, Debug)]
struct Request {
    progress: Progress,
    /// The highest place in the log that any client had seen when this was first asked.
    floor: Option<usize>,
    /// Whether a later request of the same session was answered while this one was not.
    overtaken: bool,
}

#[derive(Clone, Debug)]
struct Client {
    /// Where its session is.
    at: Option<usize>,
    /// Counts sessions.
    session: u64,
    requests: Vec<Request>,
}

/// The clients, and what they have seen.
#[derive(Clone, Debug)]
struct Clients {
    all: Vec<Client>,
    /// The highest place in the log that an answer has shown.
    floor: usize,
    /// The places of acknowledged writes.
    acknowledged: BTreeSet<usize>,
}

#[derive(Clone)]
pub(crate) struct World {
    setup: Rc<Setup>,
    masters: [Node; 2],
    slaves: Vec<Part<SlaveNode>>,
    links: [Vec<Part<Link>>; 2],
    peers: [Part<PeerLink>; 2],
    disk: Part<Disk>,
    clients: Part<Clients>,
    spent: Faults,
    front_ticks: u8,
    violation: Option<String>,
    told: Option<Vec<String>>,
}

/// The identity of the reign of an EPOCH record, made from its place: no two have the same.
fn reign_of(version: Version) -> Reign {
    Reign { epoch: version.epoch, id: ReignId(version.seq.0) }
}

fn key() -> Bytes {
    Bytes::from_static(b"k")
}

fn slave_id(s: usize) -> SlaveId {
    SlaveId::new(format!("slave-{s}")).unwrap()
}

fn value_of(c: usize, index: usize) -> Bytes {
    Bytes::from(format!("value-{c}-{index}"))
}

impl Node {
    fn new(m: usize, life: Life) -> Node {
        let config =
            reign::Config { preferred: m == 0, failback: false, new: true, ..reign::Config::default() };
        Node {
            core: Part::new(Master::new(master::Config::default())),
            front: Part::new(Front::new(front::Config::default())),
            reign: Part::new(Timeless(Leadership::new(config, Millis(0)))),
            shell: Part::new(Shell {
                life,
                now: Millis(0),
                replayed: 0,
                epoch: Epoch(0),
                queue: VecDeque::new(),
                group: Vec::new(),
                log_reads: Vec::new(),
            }),
        }
    }

    fn runs(&self) -> bool {
        self.shell.life == Life::Running
    }

    fn serves(&self) -> bool {
        self.reign.serves()
    }

    fn waits_for_lock(&self) -> bool {
        matches!(self.reign.role(), ReignRole::Standby { queue: Queue::Queued { .. } })
    }
}

impl World {
    /// A cluster at rest: master 0 serves, all slaves are active, master 1 waits for the lock.
    pub(crate) fn new(setup: Setup) -> World {
        let slaves = setup.slaves;
        let client = |plan: &crate::setup::Plan| Client {
            at: None,
            session: 0,
            requests: vec![
                Request { progress: Progress::Waiting, floor: None, overtaken: false };
                plan.wishes.len()
            ],
        };
        let clients = setup.clients.iter().map(client).collect();
        let link = || Part::new(Link::default());
        let mut world = World {
            masters: [Node::new(0, Life::Running), Node::new(1, Life::Down)],
            slaves: (0..slaves)
                .map(|_| Part::new(SlaveNode { up: true, machine: Slave::new(None, 1) }))
                .collect(),
            links: [(0..slaves).map(|_| link()).collect(), (0..slaves).map(|_| link()).collect()],
            peers: [Part::new(PeerLink::default()), Part::new(PeerLink::default())],
            disk: Part::new(Disk::default()),
            clients: Part::new(Clients { all: clients, floor: 0, acknowledged: BTreeSet::new() }),
            spent: Faults::default(),
            front_ticks: 0,
            violation: None,
            told: None,
            setup: Rc::new(Setup { clients: Vec::new(), bug: None, ..setup.clone() }),
        };
        // No client asks before the cluster is ready.
        world.settle(true);
        assert_eq!(world.violation, None);
        assert!(world.masters[0].serves() && world.masters[1].waits_for_lock());
        world.setup = Rc::new(setup);
        world
    }

    fn bug(&self, bug: Bug) -> bool {
        self.setup.bug == Some(bug)
    }

    fn wrong(&mut self, what: String) {
        self.tell(|| format!("WRONG: {what}"));
        self.violation.get_or_insert(what);
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            told.push(line());
        }
    }
}

/// The effect of a record on a key: `None` when there is none, `Some(None)` when it deletes the key.
fn value_in(record: &Record, key: &Bytes) -> Option<Option<Bytes>> {
    let change = record.change.as_ref()?;
    let given = change.pairs().iter().rev().find(|(k, _)| k == key).map(|(_, value)| Some(value.clone()));
    given.or_else(|| change.deleted().contains(key).then_some(None))
}

impl Model for World {
    type Action = Action;

    fn actions(&self) -> Vec<Action> {
        let mut all = self.progress_actions();
        self.fault_actions(&mut all);
        all
    }

    fn act(&mut self, action: Action) {
        self.perform(action);
    }

    fn violation(&self) -> Option<String> {
        self.violation.clone()
    }

    fn inspect(&self, digest: Digest) -> (bool, Option<String>) {
        let quiet = self.progress_actions().is_empty();
        // What a neglected duty comes to is looked for where nothing depends on digests.
        let sampled = self.setup.bug.is_none() && digest.is_multiple_of(SETTLE_EVERY);
        let look = quiet || sampled;
        (quiet, if look { self.heals() } else { None })
    }

    fn digest(&self, text: &mut String) -> Digest {
        let mut all: Vec<Digest> = Vec::with_capacity(32);
        for node in &self.masters {
            all.push(node.core.digest(text));
            all.push(node.front.digest(text));
            all.push(node.reign.digest(text));
            all.push(node.shell.digest(text));
        }
        all.extend(self.slaves.iter().map(|slave| slave.digest(text)));
        all.extend(self.links.iter().flatten().map(|link| link.digest(text)));
        all.extend(self.peers.iter().map(|link| link.digest(text)));
        all.push(self.disk.digest(text));
        all.push(self.clients.digest(text));
        digest_of(&(all, self.spent, self.front_ticks))
    }

    fn narrate(&mut self) {
        self.told = Some(Vec::new());
    }

    fn told(&mut self) -> Vec<String> {
        self.told.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
