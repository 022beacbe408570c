//! The world that is searched: two masters of real machines, slaves, one log, one lock, clients, and all that may
//! happen next.
//!
//! Owns what is not a machine, as small as it can be: links as queues, the log as a list with a synced prefix, the lock
//! as a name, the shell's duties as `actors/` performs them. Never decides what a machine should do.

use crate::explore::Model;
use crate::part::{digest_of, Digest, Part};
use crate::setup::{Bug, Faults, Setup, Wish};
use bytes::Bytes;
use dsm_protocol::command::{Command, ErrorWord, Reply};
use dsm_protocol::ids::{Epoch, LinkId, Millis, RequestId, SessionId, SlaveId, Version};
use dsm_protocol::machine::front::{self, Front, Kind};
use dsm_protocol::machine::master::{self, Asker, Change, Master, ReadId, Slot, WriteId};
use dsm_protocol::machine::slave::{self, Slave};
use dsm_protocol::machine::takeover::{self, Seen, Takeover};
use dsm_protocol::record::Place;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::rc::Rc;

/// No request of the world waits long enough to be given up by a machine.
const DEADLINE: Millis = Millis(u64::MAX / 2);

/// Sessions from here on are those of the other master's clients.
const FORWARDED: u64 = 1000;

/// More steps than any world needs to come to rest.
const SETTLE_STEPS_MAX: usize = 2000;

/// Every how many states the way to rest is tried (all quiet ones are looked at in any case).
const SETTLE_EVERY: Digest = 64;

/// One step of the world. `m` is a master, `s` a slave, `c` a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Send { c: usize, m: usize },
    LogWrite { m: usize },
    LogSync { m: usize },
    LogRead { m: usize },
    ToSlave { m: usize, s: usize },
    ToMaster { m: usize, s: usize },
    ToPeer { m: usize },
    FromPeer { m: usize },
    Connect { m: usize, s: usize },
    Dial { m: usize },
    CatchUp { m: usize },
    Look { m: usize },
    WinLock { m: usize },
    Recover { m: usize },
    Suspect { m: usize },
    EnlistOver { m: usize },
    Close { m: usize },
    FrontTick { m: usize },
    AbortYield { m: usize },
    Resume { m: usize },
    Restart { m: usize },
    RestartSlave { s: usize },
    Crash { m: usize },
    Power { kept: usize },
    Pause { m: usize },
    CrashSlave { s: usize },
    AckTimeout { m: usize, s: usize },
    ReadTimeout { m: usize },
    Handover { m: usize },
    Leave { c: usize },
    Stray { c: usize, m: usize },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Action::Send { c, m } => write!(f, "client {c} asks master {m}"),
            Action::LogWrite { m } => write!(f, "master {m}: what waits for the log is written"),
            Action::LogSync { m } => write!(f, "master {m}: the log is synced"),
            Action::LogRead { m } => write!(f, "master {m}: a value is read from the log"),
            Action::ToSlave { m, s } => write!(f, "slave {s} takes in a message of master {m}"),
            Action::ToMaster { m, s } => write!(f, "master {m} takes in a message of slave {s}"),
            Action::ToPeer { m } => write!(f, "master {} takes in what master {m} asked", 1 - m),
            Action::FromPeer { m } => write!(f, "master {m} takes in an answer of master {}", 1 - m),
            Action::Connect { m, s } => write!(f, "slave {s} connects to master {m}"),
            Action::Dial { m } => write!(f, "master {m} connects to master {}", 1 - m),
            Action::CatchUp { m } => write!(f, "master {m} has replayed the log"),
            Action::Look { m } => write!(f, "master {m} looks at the lock"),
            Action::WinLock { m } => write!(f, "master {m} gets the lock"),
            Action::Recover { m } => write!(f, "master {m} reads the log to its end and syncs it"),
            Action::Suspect { m } => write!(f, "master {m} sees the counter of the other stand still"),
            Action::EnlistOver { m } => write!(f, "master {m} waits no longer for slaves"),
            Action::Close { m } => write!(f, "master {m} closes the log and gives the lock away"),
            Action::FrontTick { m } => write!(f, "master {m}: time passes for what is held"),
            Action::AbortYield { m } => write!(f, "master {m} gives the handover up"),
            Action::Resume { m } => write!(f, "master {m} runs again"),
            Action::Restart { m } => write!(f, "master {m} is started"),
            Action::RestartSlave { s } => write!(f, "slave {s} is started"),
            Action::Crash { m } => write!(f, "FAULT master {m} dies"),
            Action::Power { kept } => write!(f, "FAULT power loss, {kept} records remain"),
            Action::Pause { m } => write!(f, "FAULT master {m} is stopped"),
            Action::CrashSlave { s } => write!(f, "FAULT slave {s} dies"),
            Action::AckTimeout { m, s } => write!(f, "FAULT master {m} waited too long for slave {s}"),
            Action::ReadTimeout { m } => write!(f, "FAULT master {m} waited too long for a value"),
            Action::Handover { m } => write!(f, "FAULT an operator wants master {m} to serve"),
            Action::Leave { c } => write!(f, "FAULT client {c} waits no longer"),
            Action::Stray { c, m } => write!(f, "FAULT client {c} asks master {m}, which does not serve"),
        }
    }
}

#[derive(Clone, Debug)]
enum ToSlave {
    Announce(Epoch),
    Write { version: Version, key: Bytes, value: Bytes },
    Read { tag: u64, version: Version, key: Bytes },
    Drop { version: Version, key: Bytes },
    HoldingsNext,
}

/// One life after the other of the link between a master and a slave.
#[derive(Clone, Debug, Default)]
struct Link {
    id: LinkId,
    master_up: bool,
    slave_up: bool,
    slot: Option<Slot>,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Announcing,
    Serving,
    Yielding,
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Standby,
    Recovering,
    Reigning { epoch: Epoch, phase: Phase },
}

#[derive(Clone, Debug)]
enum Queued {
    Change(WriteId, Change),
    Epoch { above: Epoch },
}

/// What is on its way to the disk: written, and not yet known to be synced.
#[derive(Clone, Debug)]
enum InGroup {
    Change(WriteId, usize),
    Epoch(usize),
}

/// What a master has beside its machines.
#[derive(Clone, Debug)]
struct Shell {
    life: Life,
    role: Role,
    now: Millis,
    known_epoch: Epoch,
    replayed: usize,
    caught_up: bool,
    waits_for_lock: bool,
    queue: VecDeque<Queued>,
    group: Vec<InGroup>,
    log_reads: Vec<(ReadId, Place, Version, Bytes)>,
    handover_wanted: bool,
}

#[derive(Clone)]
struct Node {
    core: Part<Master>,
    front: Part<Front>,
    watcher: Part<Takeover>,
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

/// Something that a client asks for.
#[derive(Clone, Debug)]
struct Request {
    progress: Progress,
    /// The highest place in the log that anybody had heard of when this was first asked.
    floor: usize,
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

/// The clients, and what the world has heard from them.
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
        let config = takeover::Config { preferred: m == 0, failback: false, ..takeover::Config::default() };
        Node {
            core: Part::new(Master::new(master::Config::default())),
            front: Part::new(Front::new(front::Config::default())),
            watcher: Part::new(Takeover::new(config, Millis(0))),
            shell: Part::new(Shell {
                life,
                role: Role::Standby,
                now: Millis(0),
                known_epoch: Epoch::default(),
                replayed: 0,
                caught_up: false,
                waits_for_lock: false,
                queue: VecDeque::new(),
                group: Vec::new(),
                log_reads: Vec::new(),
                handover_wanted: false,
            }),
        }
    }

    fn runs(&self) -> bool {
        self.shell.life == Life::Running
    }

    fn phase(&self) -> Option<Phase> {
        match self.shell.role {
            Role::Reigning { phase, .. } => Some(phase),
            Role::Standby | Role::Recovering => None,
        }
    }

    fn serves(&self) -> bool {
        self.phase() == Some(Phase::Serving)
    }

    fn is_announced(&self) -> bool {
        matches!(self.phase(), Some(Phase::Announcing | Phase::Serving | Phase::Yielding))
    }

    fn set_phase(&mut self, to: Phase) {
        if let Role::Reigning { phase, .. } = &mut self.shell.change().role {
            *phase = to;
        }
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
                Request { progress: Progress::Waiting, floor: 0, overtaken: false };
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
        // Nobody asks for anything before the cluster stands.
        world.settle(true);
        assert_eq!(world.violation, None);
        assert!(world.masters[0].serves() && world.masters[1].shell.waits_for_lock);
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

    // ---- What may happen ----

    fn progress_actions(&self) -> Vec<Action> {
        let mut all = Vec::new();
        for m in 0..2 {
            let node = &self.masters[m];
            let shell = &node.shell;
            match shell.life {
                Life::Down => all.push(Action::Restart { m }),
                Life::Paused => all.push(Action::Resume { m }),
                Life::Running => self.actions_of_master(m, &mut all),
            }
        }
        for s in 0..self.slaves.len() {
            if !self.slaves[s].up {
                all.push(Action::RestartSlave { s });
                continue;
            }
            for m in 0..2 {
                let link = &self.links[m][s];
                if link.slave_up && !link.to_slave.is_empty() {
                    all.push(Action::ToSlave { m, s });
                }
                if !link.slave_up && self.masters[m].runs() {
                    all.push(Action::Connect { m, s });
                }
            }
        }
        self.client_actions(&mut all);
        for m in 0..2 {
            if self.masters[m].runs() && self.masters[m].phase() == Some(Phase::Announcing) {
                all.push(Action::EnlistOver { m });
            }
            if self.masters[m].runs() && self.masters[m].phase() == Some(Phase::Yielding) {
                all.push(Action::AbortYield { m });
            }
        }
        all
    }

    fn actions_of_master(&self, m: usize, all: &mut Vec<Action>) {
        let node = &self.masters[m];
        let shell = &node.shell;
        for s in 0..self.slaves.len() {
            let link = &self.links[m][s];
            if link.master_up && (!link.to_master.is_empty() || !link.slave_up) {
                all.push(Action::ToMaster { m, s });
            }
        }
        if !shell.group.is_empty() {
            all.push(Action::LogSync { m });
        } else if !shell.queue.is_empty() {
            all.push(Action::LogWrite { m });
        }
        if !shell.log_reads.is_empty() {
            all.push(Action::LogRead { m });
        }
        let (mine, theirs) = (&self.peers[m], &self.peers[1 - m]);
        if mine.dialer_up && (!mine.from.is_empty() || !mine.other_up) {
            all.push(Action::FromPeer { m });
        }
        if theirs.other_up && (!theirs.to.is_empty() || !theirs.dialer_up) {
            all.push(Action::ToPeer { m: 1 - m });
        }
        if self.setup.peers && !mine.dialer_up && !mine.other_up && self.masters[1 - m].runs() {
            all.push(Action::Dial { m });
        }
        match shell.role {
            Role::Standby => {
                let lock = self.disk.lock;
                if !shell.caught_up {
                    all.push(Action::CatchUp { m });
                } else if !shell.waits_for_lock {
                    // A second of courtesy does not pass while somebody who runs waits for a lock that is free.
                    let other = &self.masters[1 - m];
                    if lock.is_some() || !other.runs() || !other.shell.waits_for_lock {
                        all.push(Action::Look { m });
                    }
                } else if lock.is_none() || self.bug(Bug::LockNotAwaited) {
                    all.push(Action::WinLock { m });
                } else if lock == Some(1 - m) && self.masters[1 - m].shell.life == Life::Paused {
                    all.push(Action::Suspect { m });
                }
            }
            Role::Recovering => all.push(Action::Recover { m }),
            Role::Reigning { phase, .. } => {
                if phase == Phase::Closing && shell.group.is_empty() && shell.queue.is_empty() {
                    all.push(Action::Close { m });
                }
            }
        }
        if node.front.waiting() > 0 && self.front_ticks < 3 {
            all.push(Action::FrontTick { m });
        }
    }

    fn client_actions(&self, all: &mut Vec<Action>) {
        for (c, client) in self.clients.all.iter().enumerate() {
            let Some(plan) = self.setup.clients.get(c) else { continue };
            let Some(next) = client.requests.iter().position(|r| r.progress == Progress::Waiting) else {
                continue;
            };
            let asked = client.requests.iter().any(|r| r.progress == Progress::Asked);
            if asked && !plan.pipelines {
                continue;
            }
            // What was refused in the middle of a pipeline is asked again when the rest has been answered.
            if client.requests[next + 1..].iter().any(|r| r.progress == Progress::Asked) {
                continue;
            }
            for m in 0..2 {
                if !self.masters[m].runs() || (asked && client.at != Some(m)) {
                    continue;
                }
                let waits_there = match plan.kind {
                    Kind::Native => self.masters[m].serves(),
                    Kind::Forwardable | Kind::Forwarded { .. } => client.at.is_none_or(|at| at == m),
                };
                if waits_there {
                    all.push(Action::Send { c, m });
                } else if self.spent.stray < self.setup.faults.stray {
                    all.push(Action::Stray { c, m });
                }
            }
        }
    }

    fn fault_actions(&self, all: &mut Vec<Action>) {
        let (spent, limits) = (&self.spent, &self.setup.faults);
        if spent.total >= limits.total {
            return;
        }
        for m in 0..2 {
            let node = &self.masters[m];
            if node.shell.life == Life::Down {
                continue;
            }
            if spent.crash < limits.crash {
                all.push(Action::Crash { m });
            }
            if !node.runs() {
                continue;
            }
            if spent.pause < limits.pause {
                all.push(Action::Pause { m });
            }
            for s in 0..self.slaves.len() {
                let link = &self.links[m][s];
                let owes = link.slot.is_some_and(|slot| !node.core.is_idle(slot));
                if spent.ack_timeout < limits.ack_timeout && link.master_up && owes {
                    all.push(Action::AckTimeout { m, s });
                }
            }
            let asked = self.links[m].iter().any(|link| link.slot.is_some()) && node.core.in_flight() > 0;
            if spent.read_timeout < limits.read_timeout && asked {
                all.push(Action::ReadTimeout { m });
            }
            let standby = node.shell.role == Role::Standby && node.shell.waits_for_lock;
            if spent.handover < limits.handover && standby && self.masters[1 - m].serves() {
                all.push(Action::Handover { m });
            }
        }
        if spent.power < limits.power {
            all.extend((self.disk.synced..=self.disk.log.len()).map(|kept| Action::Power { kept }));
        }
        if spent.slave_crash < limits.slave_crash {
            let up = (0..self.slaves.len()).filter(|s| self.slaves[*s].up);
            all.extend(up.map(|s| Action::CrashSlave { s }));
        }
        if spent.leave < limits.leave {
            let asked = |client: &&Client| client.requests.iter().any(|r| r.progress == Progress::Asked);
            let all_clients = self.clients.all.iter().enumerate();
            all.extend(all_clients.filter(|(_, c)| asked(c)).map(|(c, _)| Action::Leave { c }));
        }
    }

    // ---- What happens ----

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send { c, m } => self.send(c, m),
            Action::Stray { c, m } => {
                self.spent.stray += 1;
                self.send(c, m);
            }
            Action::LogWrite { m } => self.log_write(m),
            Action::LogSync { m } => self.log_sync(m),
            Action::LogRead { m } => self.log_read(m),
            Action::ToSlave { m, s } => self.slave_takes(m, s),
            Action::ToMaster { m, s } => self.master_takes(m, s),
            Action::ToPeer { m } => self.peer_asks(m),
            Action::FromPeer { m } => self.peer_answers(m),
            Action::Connect { m, s } => self.connect(m, s),
            Action::Dial { m } => self.dial(m),
            Action::CatchUp { m } => {
                self.replay(m);
                self.masters[m].shell.change().caught_up = true;
                self.watch(m, takeover::Event::CaughtUp);
            }
            Action::Look { m } => self.look(m),
            Action::WinLock { m } => self.win_lock(m),
            Action::Recover { m } => self.recover(m),
            Action::Suspect { m } => self.suspect(m),
            Action::EnlistOver { m } => self.serve(m),
            Action::Close { m } => self.close(m),
            Action::FrontTick { m } => {
                self.front_ticks += 1;
                self.front(m, front::Event::Tick);
            }
            Action::AbortYield { m } => self.abort_yield(m),
            Action::Resume { m } => self.masters[m].shell.change().life = Life::Running,
            Action::Restart { m } => {
                self.masters[m] = Node::new(m, Life::Running);
            }
            Action::RestartSlave { s } => self.slaves[s].change().up = true,
            Action::Crash { m } => {
                self.spent.crash += 1;
                self.spent.total += 1;
                self.crash(m);
            }
            Action::Power { kept } => {
                self.spent.power += 1;
                self.spent.total += 1;
                (0..2)
                    .filter(|m| self.masters[*m].shell.life != Life::Down)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|m| self.crash(m));
                self.disk.change().log.truncate(kept);
            }
            Action::Pause { m } => {
                self.spent.pause += 1;
                self.spent.total += 1;
                self.masters[m].shell.change().life = Life::Paused;
            }
            Action::CrashSlave { s } => {
                self.spent.slave_crash += 1;
                self.spent.total += 1;
                let node = self.slaves[s].change();
                node.up = false;
                node.machine = Slave::new(None, 1);
                for m in 0..2 {
                    if self.links[m][s].slave_up {
                        let link = self.links[m][s].change();
                        link.slave_up = false;
                        link.to_slave.clear();
                    }
                }
            }
            Action::AckTimeout { m, s } => {
                self.spent.ack_timeout += 1;
                self.spent.total += 1;
                self.slave_ended(m, s);
            }
            Action::ReadTimeout { m } => {
                self.spent.read_timeout += 1;
                self.spent.total += 1;
                let shell = self.masters[m].shell.change();
                shell.now = shell.now.plus(200);
                self.core(m, master::Event::Tick);
            }
            Action::Handover { m } => {
                self.spent.handover += 1;
                self.spent.total += 1;
                self.watch(m, takeover::Event::HandoverOffered);
            }
            Action::Leave { c } => {
                self.spent.leave += 1;
                self.spent.total += 1;
                self.tell(|| format!("client {c} goes away"));
                let at = self.clients.all[c].at;
                let session = self.session_of(c);
                self.session_lost(c, true);
                if let Some(m) = at.filter(|m| self.masters[*m].shell.life != Life::Down) {
                    self.front(m, front::Event::SessionClosed { session });
                }
            }
        }
        for m in 0..2 {
            if self.masters[m].runs() {
                self.after_turn(m);
            }
        }
        self.check_state();
    }

    /// What a master looks at whenever something has happened.
    fn after_turn(&mut self, m: usize) {
        let node = &self.masters[m];
        match node.phase() {
            Some(Phase::Announcing) => {
                if self.links[m].iter().all(|link| !link.master_up || link.slot.is_some()) {
                    self.serve(m);
                }
            }
            Some(Phase::Yielding) => {
                if node.core.in_flight() == 0 || self.bug(Bug::YieldedInFlight) {
                    self.masters[m].set_phase(Phase::Closing);
                }
            }
            Some(Phase::Opening | Phase::Serving | Phase::Closing) | None => {}
        }
    }

    // ---- The machines of a master ----

    fn core(&mut self, m: usize, event: master::Event) {
        let mut effects = Vec::new();
        let now = self.masters[m].shell.now;
        self.masters[m].core.change().step(now, event, &mut effects);
        for effect in effects {
            self.perform_core(m, effect);
        }
    }

    fn perform_core(&mut self, m: usize, effect: master::Effect) {
        match effect {
            master::Effect::Reply { to, reply } => {
                if !matches!(reply, Reply::Error(_)) && !self.may_serve(m) {
                    self.wrong(format!("master {m} answers {reply:?} without the lock"));
                }
                self.reply(m, to, reply);
            }
            master::Effect::Append { write, change } => {
                self.masters[m].shell.change().queue.push_back(Queued::Change(write, change));
            }
            master::Effect::Joined { link, slot } => {
                let s = self.slave_of(m, link);
                self.links[m][s].change().slot = Some(slot);
                self.tell(|| format!("slave {s} is active at master {m}"));
            }
            master::Effect::NoSlot { .. } => self.wrong("no slot is left for a slave".to_owned()),
            master::Effect::SendWrite { slot, version, key, value } => {
                let place = usize::try_from(version.seq.0).unwrap();
                let durable = place <= self.disk.synced
                    && self.disk.log.get(place.wrapping_sub(1)).is_some_and(|record| {
                        record.version == version && value_in(record, &key) == Some(Some(value.clone()))
                    });
                if !durable {
                    self.wrong(format!("{version} is sent to a slave before it is durable in the log"));
                }
                self.send_to_slave(m, slot, ToSlave::Write { version, key, value });
            }
            master::Effect::SendRead { slot, read, version, key, .. } => {
                self.send_to_slave(m, slot, ToSlave::Read { tag: read.tag(), version, key });
            }
            master::Effect::SendDrop { slot, version, key } => {
                self.send_to_slave(m, slot, ToSlave::Drop { version, key });
            }
            master::Effect::SendHoldingsNext { slot } => self.send_to_slave(m, slot, ToSlave::HoldingsNext),
            master::Effect::ReadLog { read, place, version, key } => {
                self.masters[m].shell.change().log_reads.push((read, place, version, key));
            }
            master::Effect::Witnessed { version, .. } => {
                self.wrong(format!("a slave holds {version}, which the log lacks"));
            }
        }
    }

    fn front(&mut self, m: usize, event: front::Event) {
        let mut effects = Vec::new();
        let now = self.masters[m].shell.now;
        self.masters[m].front.change().step(now, event, &mut effects);
        for effect in effects {
            match effect {
                front::Effect::Serve { asker, deadline, command } => {
                    self.core(m, master::Event::Request { asker, deadline, command });
                }
                front::Effect::Forward { id, stream, generation, command } => {
                    if self.peers[m].dialer_up {
                        self.peers[m].change().to.push_back(ToPeer::Request {
                            id,
                            stream,
                            generation,
                            command,
                        });
                    }
                }
                front::Effect::StreamClosed { stream } => {
                    if self.peers[m].dialer_up {
                        self.peers[m].change().to.push_back(ToPeer::StreamClosed { stream });
                    }
                }
                front::Effect::Reply { to, reply } => self.reply(m, to, reply),
                front::Effect::CloseSession { session } => {
                    if let Some(c) = self.client_of(m, session) {
                        self.session_lost(c, true);
                    }
                    self.front(m, front::Event::SessionClosed { session });
                }
            }
        }
    }

    fn watch(&mut self, m: usize, event: takeover::Event) -> bool {
        let mut effects = Vec::new();
        let now = self.masters[m].shell.now;
        self.masters[m].watcher.change().step(now, event, &mut effects);
        let mut fences = false;
        for effect in effects {
            match effect {
                takeover::Effect::WaitForLock => self.masters[m].shell.change().waits_for_lock = true,
                takeover::Effect::Fence => fences = true,
                takeover::Effect::AskHandover { forced } => {
                    let slaves = (0..self.slaves.len()).filter(|s| self.links[m][*s].master_up).collect();
                    if self.peers[m].dialer_up {
                        let request = ToPeer::HandoverRequest { slaves, forced };
                        self.peers[m].change().to.push_back(request);
                    }
                }
                takeover::Effect::GrantHandover => self.begin_yield(m),
                takeover::Effect::RefuseHandover(_) => self.refuse_handover(m),
            }
        }
        fences
    }

    // ---- Clients ----

    fn session_of(&self, c: usize) -> SessionId {
        SessionId(c as u64 + 10 * self.clients.all[c].session)
    }

    fn client_of(&self, m: usize, session: SessionId) -> Option<usize> {
        let found = (0..self.clients.all.len()).find(|c| self.session_of(*c) == session);
        found.filter(|c| self.clients.all[*c].at == Some(m))
    }

    fn command_of(&self, c: usize, index: usize) -> Command {
        match self.setup.clients[c].wishes[index] {
            Wish::Write => Command::Put { key: key(), value: value_of(c, index) },
            Wish::Delete => Command::Delete { keys: vec![key()] },
            Wish::Read => Command::Get { key: key() },
        }
    }

    fn send(&mut self, c: usize, m: usize) {
        let next = self.clients.all[c].requests.iter().position(|r| r.progress == Progress::Waiting).unwrap();
        let old = self.clients.all[c].at.filter(|at| *at != m);
        if let Some(old) = old.filter(|old| self.masters[*old].shell.life != Life::Down) {
            let session = self.session_of(c);
            self.front(old, front::Event::SessionClosed { session });
        }
        let session = self.session_of(c);
        let clients = self.clients.change();
        let floor = clients.floor;
        let client = &mut clients.all[c];
        client.at = Some(m);
        let request = &mut client.requests[next];
        request.progress = Progress::Asked;
        if request.floor == 0 {
            request.floor = floor;
        }
        let command = self.command_of(c, next);
        self.tell(|| format!("client {c}: {command:?}"));
        let asker = Asker { session, tag: next as u64 };
        let kind = self.setup.clients[c].kind;
        self.front(m, front::Event::Request { asker, kind, deadline: DEADLINE, command });
    }

    fn reply(&mut self, m: usize, to: Asker, reply: Reply) {
        if to.session.0 >= FORWARDED {
            let link = self.peers[1 - m].change();
            if link.other_up && to.session.0 / FORWARDED == link.generation {
                link.from.push_back(FromPeer::Response { id: RequestId(to.tag), reply });
            }
        } else if let Some(c) = self.client_of(m, to.session) {
            self.answered(c, usize::try_from(to.tag).unwrap(), reply);
        }
    }

    fn answered(&mut self, c: usize, index: usize, reply: Reply) {
        self.tell(|| format!("client {c} hears {reply:?} to request {index}"));
        let wish = self.setup.clients[c].wishes[index];
        let value = value_of(c, index);
        if self.clients.all[c].requests[index].progress != Progress::Asked {
            self.wrong(format!("request {index} of client {c} is answered twice"));
            return;
        }
        let floor = self.clients.all[c].requests[index].floor;
        let mut result = true;
        let progress = match (reply, wish) {
            (Reply::Done, Wish::Write) => {
                match self.place_of(|record| value_in(record, &key()) == Some(Some(value.clone())), 0) {
                    Some(place) => self.acknowledge(m_of(self, c), place),
                    None => self.wrong(format!("{value:?} is acknowledged and not in the log")),
                }
                Progress::Answered
            }
            (Reply::Count(_), Wish::Delete) => {
                match self.place_of(|record| value_in(record, &key()) == Some(None), floor) {
                    Some(place) => self.acknowledge(None, place),
                    None => self.wrong("a deletion is acknowledged and not in the log".to_owned()),
                }
                Progress::Answered
            }
            (Reply::Value(value), Wish::Read) => {
                match self.place_of(|record| value_in(record, &key()) == Some(Some(value.clone())), 0) {
                    Some(place) => self.has_read(place, floor),
                    None => self.wrong(format!("{value:?} is read and not in the log")),
                }
                Progress::Answered
            }
            (Reply::NotFound, Wish::Read) => {
                let never = (floor == 0).then_some(0);
                match never.or(self.place_of(|record| value_in(record, &key()) == Some(None), floor)) {
                    Some(place) => self.has_read(place, floor),
                    None => self.wrong(format!("nothing is read behind place {floor} of the log")),
                }
                Progress::Answered
            }
            (Reply::Error(error), _) => {
                result = false;
                match error.word {
                    ErrorWord::Standby | ErrorWord::Loading => Progress::Waiting,
                    ErrorWord::Unknown if wish == Wish::Read => Progress::Waiting,
                    ErrorWord::Unknown if self.bug(Bug::UnknownSentAgain) => Progress::Waiting,
                    ErrorWord::Unknown => Progress::Unknown,
                    _ => {
                        if wish != Wish::Read {
                            self.not_executed(&value);
                        }
                        Progress::NotExecuted
                    }
                }
            }
            (reply, wish) => {
                self.wrong(format!("{reply:?} to {wish:?}"));
                Progress::Answered
            }
        };
        let client = &mut self.clients.change().all[c];
        client.requests[index].progress = progress;
        if result {
            for earlier in &mut client.requests[..index] {
                earlier.overtaken |= earlier.progress == Progress::Asked;
            }
        }
    }

    fn not_executed(&mut self, value: &Bytes) {
        if self.place_of(|record| value_in(record, &key()) == Some(Some(value.clone())), 0).is_some() {
            self.wrong(format!("{value:?} is answered 'not executed' and in the log"));
        }
    }

    /// The first place from `from` on (counted from 1) that `fits`.
    fn place_of(&self, fits: impl Fn(&Record) -> bool, from: usize) -> Option<usize> {
        (from.max(1)..=self.disk.log.len()).find(|place| fits(&self.disk.log[place - 1]))
    }

    fn acknowledge(&mut self, by: Option<usize>, place: usize) {
        let clients = self.clients.change();
        clients.floor = clients.floor.max(place);
        clients.acknowledged.insert(place);
        if let Some(m) = by {
            self.somebody_holds(m, place);
        }
    }

    /// Whoever acknowledged a write holds it, unless it was overtaken since.
    fn somebody_holds(&mut self, m: usize, place: usize) {
        let version = self.disk.log[place - 1].version;
        if self.masters[m].core.directory().get(&key()).map(|entry| entry.version) != Some(version) {
            return;
        }
        let active = (0..self.slaves.len()).filter(|s| self.links[m][*s].slot.is_some());
        // One that is gone may have held it: its last word is still taken in.
        let may_hold =
            |s: usize| !self.links[m][s].slave_up || self.held(s).is_some_and(|(held, _)| held == version);
        if !active.into_iter().any(may_hold) {
            self.wrong(format!("{version} is acknowledged, and no active slave holds it"));
        }
    }

    fn has_read(&mut self, place: usize, floor: usize) {
        if place < floor {
            self.wrong(format!(
                "a read shows place {place} of the log, behind an answer that showed {floor}"
            ));
        }
        if place > self.disk.synced {
            self.wrong(format!("a read shows place {place} of the log, which is not synced"));
        }
        let clients = self.clients.change();
        clients.floor = clients.floor.max(place);
    }

    /// A client's session is gone: what it had asked has no answer.
    fn session_lost(&mut self, c: usize, anew: bool) {
        let again = self.bug(Bug::UnknownSentAgain);
        let wishes = self.setup.clients[c].wishes.clone();
        let client = &mut self.clients.change().all[c];
        client.at = None;
        client.session += u64::from(anew);
        for (request, wish) in client.requests.iter_mut().zip(wishes) {
            if request.progress == Progress::Asked {
                let ask_again = wish == Wish::Read || again;
                request.progress = if ask_again { Progress::Waiting } else { Progress::Unknown };
            }
        }
    }

    // ---- The log ----

    fn log_write(&mut self, m: usize) {
        let queue = std::mem::take(&mut self.masters[m].shell.change().queue);
        for queued in queue {
            let place = self.disk.log.len() + 1;
            let Role::Reigning { epoch, .. } = &mut self.masters[m].shell.change().role else {
                unreachable!("only a reign has a log");
            };
            let (record, done) = match queued {
                Queued::Change(write, change) => {
                    let version = Version::new(epoch.0, place as u64);
                    (Record { version, change: Some(change) }, InGroup::Change(write, place))
                }
                Queued::Epoch { above } => {
                    if above >= *epoch {
                        *epoch = above.next();
                    }
                    (
                        Record { version: Version::new(epoch.0, place as u64), change: None },
                        InGroup::Epoch(place),
                    )
                }
            };
            self.append(m, record);
            self.masters[m].shell.change().group.push(done);
        }
        if self.bug(Bug::WrittenBeforeSync) {
            let group = std::mem::take(&mut self.masters[m].shell.change().group);
            self.group_done(m, &group);
        } else if self.bug(Bug::AnnouncedBeforeEpoch) {
            let group = self.masters[m].shell.group.clone();
            if let [InGroup::Epoch(_)] = group[..] {
                self.masters[m].shell.change().group.clear();
                self.group_done(m, &group);
            }
        }
    }

    fn append(&mut self, m: usize, record: Record) {
        let version = record.version;
        self.tell(|| format!("{version} {:?}", record.change));
        if !self.may_serve(m) {
            self.wrong(format!("master {m} writes to the log without the lock"));
        }
        let last = self.disk.log.last().map(|record| record.version).unwrap_or_default();
        if record.change.is_none() && version.epoch <= last.epoch {
            self.wrong(format!("epoch {} begins behind epoch {}", version.epoch, last.epoch));
        }
        if version.epoch < last.epoch {
            self.wrong(format!("{version} stands behind {last}"));
        }
        if let Some(Change::Put(pairs)) = &record.change {
            let value = &pairs[0].1;
            if self.place_of(|old| value_in(old, &key()) == Some(Some(value.clone())), 0).is_some() {
                self.wrong(format!("{value:?} is executed twice"));
            }
            self.executed(value);
        }
        self.disk.change().log.push(record);
    }

    /// A write is executed now: nothing that its session asked for later may have been answered before.
    fn executed(&mut self, value: &Bytes) {
        let all: Vec<(usize, usize)> = (0..self.clients.all.len())
            .flat_map(|c| (0..self.clients.all[c].requests.len()).map(move |index| (c, index)))
            .collect();
        for (c, index) in all {
            if value_of(c, index) != *value {
                continue;
            }
            let Request { overtaken, progress, .. } = self.clients.all[c].requests[index];
            if overtaken {
                self.wrong(format!("{value:?} is executed behind what its session asked for later"));
            }
            if progress == Progress::NotExecuted {
                self.wrong(format!("{value:?} was answered 'not executed' and is executed"));
            }
        }
    }

    fn log_sync(&mut self, m: usize) {
        let group = std::mem::take(&mut self.masters[m].shell.change().group);
        let (InGroup::Change(_, first) | InGroup::Epoch(first)) = group[0];
        let disk = self.disk.change();
        // What another process has written may be clean in memory and not on disk: its sync may have failed.
        if first <= disk.synced + 1 {
            disk.synced = disk.log.len();
        }
        self.group_done(m, &group);
    }

    fn group_done(&mut self, m: usize, group: &[InGroup]) {
        for done in group {
            match *done {
                InGroup::Change(write, place) => {
                    let version = self.disk.log[place - 1].version;
                    let place = Place { offset: place as u64, bytes: 1 };
                    self.core(m, master::Event::Written { write, version, place });
                }
                InGroup::Epoch(place) => self.epoch_written(m, self.disk.log[place - 1].version),
            }
        }
    }

    fn epoch_written(&mut self, m: usize, version: Version) {
        self.disk.change().lock_epoch = version.epoch;
        let shell = self.masters[m].shell.change();
        shell.known_epoch = shell.known_epoch.max(version.epoch);
        if self.masters[m].phase() == Some(Phase::Opening) {
            self.masters[m].set_phase(Phase::Announcing);
            self.core(m, master::Event::ReignBegan { version });
            for s in 0..self.slaves.len() {
                self.announce(m, s);
            }
        } else {
            self.core(m, master::Event::ReignRaised { version });
            for s in 0..self.slaves.len() {
                self.slave_ended(m, s);
            }
        }
    }

    fn log_read(&mut self, m: usize) {
        let (read, place, version, key) = self.masters[m].shell.change().log_reads.remove(0);
        let record = &self.disk.log[usize::try_from(place.offset).unwrap() - 1];
        assert_eq!(record.version, version, "the place of a read names another version");
        let value = value_in(record, &key).flatten().expect("the place of a read names another key");
        self.core(m, master::Event::LogRead { read, result: Ok(value) });
    }

    fn replay(&mut self, m: usize) {
        let node = &mut self.masters[m];
        let from = node.shell.replayed;
        for (index, record) in self.disk.log.iter().enumerate().skip(from) {
            let place = Place { offset: index as u64 + 1, bytes: 1 };
            match &record.change {
                Some(Change::Put(pairs)) => {
                    pairs.iter().for_each(|(key, _)| {
                        node.core.change().replay_put(key, record.version, place);
                    });
                }
                Some(Change::Delete(keys)) => {
                    keys.iter().for_each(|key| node.core.change().replay_delete(key));
                }
                None => {}
            }
        }
        let shell = node.shell.change();
        shell.replayed = self.disk.log.len();
        let last = self.disk.log.last().map(|record| record.version.epoch).unwrap_or_default();
        shell.known_epoch = shell.known_epoch.max(last);
    }

    // ---- Reigns ----

    fn look(&mut self, m: usize) {
        match self.disk.lock {
            Some(_) => {
                self.watch(m, takeover::Event::Looked(Seen::Held { beat: Some(1) }));
            }
            None => {
                let until = self.masters[m].shell.now.plus(1100);
                while self.masters[m].shell.now < until && !self.masters[m].shell.waits_for_lock {
                    self.watch(m, takeover::Event::Looked(Seen::Free));
                    let shell = self.masters[m].shell.change();
                    shell.now = shell.now.plus(100);
                }
            }
        }
    }

    fn win_lock(&mut self, m: usize) {
        self.disk.change().lock = Some(m);
        let shell = self.masters[m].shell.change();
        shell.waits_for_lock = false;
        shell.role = Role::Recovering;
        self.watch(m, takeover::Event::LockWon);
    }

    fn recover(&mut self, m: usize) {
        if !self.bug(Bug::TailNotRead) {
            self.replay(m);
        }
        if !self.bug(Bug::RecoveredWithoutSync) {
            let disk = self.disk.change();
            disk.synced = disk.log.len();
        }
        let last = self.disk.log.last().map(|record| record.version.epoch).unwrap_or_default();
        let shell = self.masters[m].shell.change();
        let seen = shell.known_epoch.max(last).max(self.disk.lock_epoch);
        let epoch =
            if self.setup.bug == Some(Bug::EpochNotRaised) { seen.max(Epoch(1)) } else { seen.next() };
        shell.role = Role::Reigning { epoch, phase: Phase::Opening };
        shell.queue.push_back(Queued::Epoch { above: Epoch::default() });
    }

    fn serve(&mut self, m: usize) {
        self.masters[m].set_phase(Phase::Serving);
        self.tell(|| format!("master {m} serves"));
        self.front(m, front::Event::ServingBegan);
        self.watch(m, takeover::Event::ReignBegan);
        self.tell_state(m);
    }

    /// The other master stands still: its beat does, while our own clock runs.
    fn suspect(&mut self, m: usize) {
        let looks = (0..60).any(|_| {
            let shell = self.masters[m].shell.change();
            shell.now = shell.now.plus(25);
            self.watch(m, takeover::Event::Looked(Seen::Held { beat: Some(7) }))
        });
        if !looks {
            self.wrong("a holder that stands still is not fenced".to_owned());
        } else if self.bug(Bug::FenceWithoutKill) {
            self.disk.change().lock = None;
        } else {
            self.tell(|| format!("master {} is fenced", 1 - m));
            self.crash(1 - m);
        }
    }

    fn begin_yield(&mut self, m: usize) {
        if !self.masters[m].serves() {
            self.refuse_handover(m);
            return;
        }
        self.masters[m].shell.change().handover_wanted = false;
        self.masters[m].set_phase(Phase::Yielding);
        if !self.bug(Bug::YieldedWithoutHolding) {
            self.front(m, front::Event::HoldingBegan);
        }
    }

    fn refuse_handover(&mut self, m: usize) {
        self.masters[m].shell.change().handover_wanted = false;
        if self.peers[1 - m].other_up {
            self.peers[1 - m].change().from.push_back(FromPeer::HandoverRefused);
        }
    }

    fn abort_yield(&mut self, m: usize) {
        self.masters[m].set_phase(Phase::Serving);
        self.refuse_handover(m);
        self.front(m, front::Event::ServingBegan);
    }

    fn close(&mut self, m: usize) {
        let bug = self.bug(Bug::YieldedInFlight);
        let disk = self.disk.change();
        disk.lock = None;
        if !bug {
            disk.synced = disk.log.len();
        }
        if self.masters[m].core.in_flight() == 0 {
            self.core(m, master::Event::ReignEnded);
        } else if !bug {
            self.wrong("a reign ends with requests in flight".to_owned());
        } else {
            // It goes on answering what it had.
            return;
        }
        for s in 0..self.slaves.len() {
            self.links[m][s].change().slot = None;
        }
        let end = self.disk.log.len();
        let shell = self.masters[m].shell.change();
        shell.role = Role::Standby;
        shell.replayed = end;
        shell.caught_up = false;
        self.tell(|| format!("master {m} is a standby"));
        self.watch(m, takeover::Event::ReignEnded);
        self.front(m, front::Event::StandbyBegan);
        self.tell_state(m);
    }

    fn crash(&mut self, m: usize) {
        self.masters[m] = Node::new(m, Life::Down);
        if self.disk.lock == Some(m) {
            self.disk.change().lock = None;
        }
        for s in 0..self.slaves.len() {
            if self.links[m][s].master_up {
                self.master_side_ends(m, s);
            }
        }
        for c in 0..self.clients.all.len() {
            if self.clients.all[c].at == Some(m) {
                self.session_lost(c, false);
            }
        }
        if self.peers[m].dialer_up {
            let link = self.peers[m].change();
            link.dialer_up = false;
            link.from.clear();
        }
        if self.peers[1 - m].other_up {
            let link = self.peers[1 - m].change();
            link.other_up = false;
            link.to.clear();
            link.streams.clear();
        }
    }

    // ---- Slaves ----

    fn slave_of(&self, m: usize, link: LinkId) -> usize {
        self.links[m].iter().position(|l| l.id == link).expect("the machine names a link that it was told of")
    }

    fn send_to_slave(&mut self, m: usize, slot: Slot, message: ToSlave) {
        let Some(s) = self.links[m].iter().position(|link| link.slot == Some(slot)) else {
            self.wrong(format!("master {m} sends to {slot:?}, where nobody is"));
            return;
        };
        if self.links[m][s].slave_up {
            self.links[m][s].change().to_slave.push_back(message);
        }
    }

    fn connect(&mut self, m: usize, s: usize) {
        if self.links[m][s].master_up {
            self.slave_ended(m, s);
        }
        let epoch = self.slaves[s].machine.epoch();
        let link = self.links[m][s].change();
        let id = LinkId(link.id.0.max((10 * m + s) as u64) + 100);
        *link = Link { id, master_up: true, slave_up: true, ..Link::default() };
        self.slaves[s].change().machine.step(slave::Event::LinkUp { link: id }, &mut Vec::new());
        self.heard_of_epoch(m, epoch);
        if self.masters[m].is_announced() {
            self.announce(m, s);
        }
    }

    fn announce(&mut self, m: usize, s: usize) {
        let Role::Reigning { epoch, .. } = self.masters[m].shell.role else { return };
        let durable = self.disk.log[..self.disk.synced]
            .iter()
            .any(|record| record.change.is_none() && record.version.epoch == epoch);
        if !durable {
            self.wrong(format!("epoch {epoch} is announced before it is durable"));
        }
        if self.links[m][s].master_up && self.links[m][s].slave_up {
            self.links[m][s].change().to_slave.push_back(ToSlave::Announce(epoch));
        }
    }

    fn heard_of_epoch(&mut self, m: usize, heard: Epoch) {
        let shell = self.masters[m].shell.change();
        shell.known_epoch = shell.known_epoch.max(heard);
        if let Role::Reigning { epoch, .. } = shell.role {
            if heard > epoch {
                shell.queue.push_back(Queued::Epoch { above: heard });
            }
        }
    }

    /// The master removes a slave. What was sent to it may still arrive there.
    fn slave_ended(&mut self, m: usize, s: usize) {
        if !self.links[m][s].master_up {
            return;
        }
        let (link, slot) = (self.links[m][s].id, self.links[m][s].slot);
        self.master_side_ends(m, s);
        if slot.is_some() && !self.bug(Bug::LostSlaveKept) {
            self.tell(|| format!("slave {s} is removed at master {m}"));
            self.core(m, master::Event::SlaveLost { link });
        }
    }

    fn master_side_ends(&mut self, m: usize, s: usize) {
        let link = self.links[m][s].change();
        link.master_up = false;
        link.slot = None;
        link.to_master.clear();
        self.end_if_drained(m, s);
    }

    /// A slave sees the end of a link behind the last message of it.
    fn end_if_drained(&mut self, m: usize, s: usize) {
        let link = &self.links[m][s];
        if !link.master_up && link.slave_up && link.to_slave.is_empty() {
            let id = link.id;
            self.links[m][s].change().slave_up = false;
            self.slaves[s].change().machine.step(slave::Event::LinkDown { link: id }, &mut Vec::new());
        }
    }

    fn slave_takes(&mut self, m: usize, s: usize) {
        let link = self.links[m][s].change();
        let id = link.id;
        let message = link.to_slave.pop_front().unwrap();
        self.tell(|| format!("{message:?}"));
        let event = match message {
            ToSlave::Announce(epoch) => slave::Event::Announced { link: id, epoch },
            ToSlave::Write { version, key, value } => slave::Event::Write { link: id, version, key, value },
            ToSlave::Read { tag, version, key } => slave::Event::Read { link: id, tag, version, key },
            ToSlave::Drop { version, key } => slave::Event::Drop { link: id, version, key },
            ToSlave::HoldingsNext => slave::Event::HoldingsNext { link: id },
        };
        let mut effects = Vec::new();
        let machine = &mut self.slaves[s].change().machine;
        machine.step(event, &mut effects);
        machine.step(slave::Event::BatchEnded { link: id }, &mut effects);
        if self.links[m][s].master_up {
            self.links[m][s].change().to_master.extend(effects);
        } else {
            self.end_if_drained(m, s);
        }
    }

    fn master_takes(&mut self, m: usize, s: usize) {
        let link = self.links[m][s].change();
        let (id, slot) = (link.id, link.slot);
        let Some(message) = link.to_master.pop_front() else {
            self.slave_ended(m, s);
            return;
        };
        self.tell(|| format!("{message:?}"));
        let event = match (message, slot) {
            (slave::Effect::Enlisted { epoch, room_bytes, .. }, None) => {
                let ours =
                    matches!(self.masters[m].shell.role, Role::Reigning { epoch: e, .. } if e == epoch);
                if !ours || !self.masters[m].is_announced() {
                    return;
                }
                master::Event::SlaveJoined { id: slave_id(s), link: id, room_bytes }
            }
            (slave::Effect::Outdated { epoch, .. }, _) => {
                self.heard_of_epoch(m, epoch);
                return;
            }
            (slave::Effect::Ack { through, room_bytes, .. }, Some(slot)) => {
                master::Event::Acked { slot, link: id, through, room_bytes }
            }
            (slave::Effect::Full { number, .. }, Some(slot)) => {
                master::Event::Full { slot, link: id, number }
            }
            (slave::Effect::Value { tag, version, value, .. }, Some(slot)) => {
                master::Event::Value { slot, link: id, read: ReadId::from_tag(tag), version, value }
            }
            (slave::Effect::Missing { tag, .. }, Some(slot)) => {
                master::Event::Missing { slot, link: id, read: ReadId::from_tag(tag) }
            }
            (slave::Effect::Holdings { entries, last, .. }, Some(slot)) => {
                let entries = if self.bug(Bug::ReportIgnored) { Vec::new() } else { entries };
                master::Event::Holdings { slot, link: id, entries, last }
            }
            // What a slave said to a reign that has ended since.
            (
                slave::Effect::Enlisted { .. }
                | slave::Effect::Ack { .. }
                | slave::Effect::Full { .. }
                | slave::Effect::Value { .. }
                | slave::Effect::Missing { .. }
                | slave::Effect::Holdings { .. },
                _,
            ) => return,
        };
        self.core(m, event);
    }

    /// What slave `s` holds of the key.
    fn held(&self, s: usize) -> Option<(Version, Bytes)> {
        let mut machine = self.slaves[s].machine.clone();
        let link = LinkId(u64::MAX);
        let epoch = machine.epoch();
        let mut effects = Vec::new();
        machine.step(slave::Event::LinkUp { link }, &mut effects);
        machine.step(slave::Event::Announced { link, epoch }, &mut effects);
        machine
            .step(slave::Event::Read { link, tag: 0, version: Version::default(), key: key() }, &mut effects);
        match effects.pop() {
            Some(slave::Effect::Value { version, value, .. }) => Some((version, value)),
            Some(slave::Effect::Missing { held: None, .. }) => None,
            other => panic!("{other:?}"),
        }
    }

    // ---- The other master ----

    fn dial(&mut self, m: usize) {
        let other = &self.masters[1 - m];
        let state = FromPeer::State { active: other.serves(), epoch: other.shell.known_epoch };
        let link = self.peers[m].change();
        let generation = link.generation + 1;
        *link = PeerLink { generation, dialer_up: true, other_up: true, ..PeerLink::default() };
        link.from.push_back(state);
    }

    fn tell_state(&mut self, m: usize) {
        if self.peers[1 - m].other_up {
            let node = &self.masters[m];
            let state = FromPeer::State { active: node.serves(), epoch: node.shell.known_epoch };
            self.peers[1 - m].change().from.push_back(state);
        }
    }

    /// Master `m` takes in what came over the link that it has dialed.
    fn peer_answers(&mut self, m: usize) {
        let link = self.peers[m].change();
        let Some(message) = link.from.pop_front() else {
            link.dialer_up = false;
            link.to.clear();
            self.front(m, front::Event::PeerDown);
            self.watch(m, takeover::Event::Peer { active: None });
            return;
        };
        self.tell(|| format!("{message:?}"));
        match message {
            FromPeer::State { active, epoch } => {
                self.heard_of_epoch(m, epoch);
                let believed = active && !self.masters[m].serves();
                self.front(m, front::Event::PeerState { active: believed });
                self.watch(m, takeover::Event::Peer { active: Some(active) });
            }
            FromPeer::Response { id, reply } => self.front(m, front::Event::Response { id, reply }),
            FromPeer::HandoverRefused => {
                self.watch(m, takeover::Event::HandoverRefused);
            }
        }
    }

    /// The other master takes in what `m` sent over the link that it has dialed.
    fn peer_asks(&mut self, m: usize) {
        let link = self.peers[m].change();
        let generation = link.generation;
        let session = |stream: u64| SessionId(generation * FORWARDED + stream);
        let Some(message) = link.to.pop_front() else {
            link.other_up = false;
            link.from.clear();
            for stream in std::mem::take(&mut link.streams) {
                self.front(1 - m, front::Event::SessionClosed { session: session(stream) });
            }
            if self.masters[1 - m].phase() == Some(Phase::Yielding) {
                self.abort_yield(1 - m);
            }
            return;
        };
        self.tell(|| format!("{message:?}"));
        match message {
            ToPeer::Request { id, stream, generation, command } => {
                self.peers[m].change().streams.insert(stream);
                let asker = Asker { session: session(stream), tag: id.0 };
                let kind = Kind::Forwarded { generation };
                self.front(1 - m, front::Event::Request { asker, kind, deadline: DEADLINE, command });
            }
            ToPeer::StreamClosed { stream } => {
                self.peers[m].change().streams.remove(&stream);
                self.front(1 - m, front::Event::SessionClosed { session: session(stream) });
            }
            ToPeer::HandoverRequest { slaves, forced } => {
                let active = (0..self.slaves.len()).filter(|s| self.links[1 - m][*s].slot.is_some());
                let ready = active.into_iter().all(|s| slaves.contains(&s));
                self.masters[1 - m].shell.change().handover_wanted = true;
                self.watch(1 - m, takeover::Event::HandoverRequested { ready, forced });
            }
        }
    }

    // ---- What must hold ----

    /// Whether master `m` holds the lock. A world whose bug is about the lock is to show what comes of it.
    fn may_serve(&self, m: usize) -> bool {
        self.disk.lock == Some(m) || self.bug(Bug::LockNotAwaited) || self.bug(Bug::FenceWithoutKill)
    }

    fn check_state(&mut self) {
        let serving: Vec<usize> =
            (0..2).filter(|m| self.masters[*m].front.is_serving() || self.masters[*m].serves()).collect();
        if serving.len() > 1 {
            self.wrong("two masters serve".to_owned());
        }
        if let [m] = serving[..] {
            if !self.may_serve(m) {
                self.wrong(format!("master {m} serves without the lock"));
            }
        }
        let synced = self.disk.synced.min(self.disk.log.len());
        if let Some(lost) = self.clients.acknowledged.iter().find(|place| **place > synced) {
            self.wrong(format!("place {lost} of the log is acknowledged and not durable"));
        }
    }

    /// Takes the steps that are no faults until nothing is left to do.
    fn settle(&mut self, booting: bool) {
        self.front_ticks = 0;
        for _ in 0..SETTLE_STEPS_MAX {
            let all = self.progress_actions();
            let next = all.into_iter().find(|action| match action {
                // The first reign is master 0's.
                Action::Restart { .. } => !booting || self.masters[0].serves(),
                Action::Stray { .. } | Action::AbortYield { .. } => false,
                _ => true,
            });
            let Some(action) = next else { return };
            if matches!(action, Action::FrontTick { .. }) {
                self.front_ticks = 0;
            }
            self.tell(|| format!("healing: {action}"));
            self.perform(action);
            if self.violation.is_some() {
                return;
            }
        }
        let next: Vec<String> = self.progress_actions().iter().map(Action::to_string).collect();
        self.wrong(format!("the world does not come to rest, there is always: {}", next.join("; ")));
    }

    /// What is wrong when all has healed and nothing is under way.
    fn check_at_rest(&mut self) {
        let Some(m) = (0..2).find(|m| self.masters[*m].serves()) else {
            self.wrong("nobody serves although all has healed".to_owned());
            return;
        };
        let open = |r: &Request| matches!(r.progress, Progress::Waiting | Progress::Asked);
        if self.clients.all.iter().any(|client| client.requests.iter().any(open)) {
            self.wrong("a request never gets an answer".to_owned());
        }
        if (0..2).any(|m| self.masters[m].core.in_flight() > 0 || self.masters[m].front.waiting() > 0) {
            self.wrong("a request hangs in a master".to_owned());
        }
        if !self.masters[1 - m].shell.waits_for_lock {
            self.wrong("the standby does not wait for the lock".to_owned());
        }
        self.replay(1 - m);
        let mut latest: Option<(Version, Bytes)> = None;
        for record in &self.disk.log {
            if let Some(value) = value_in(record, &key()) {
                latest = value.map(|value| (record.version, value));
            }
        }
        let version = latest.as_ref().map(|(version, _)| *version);
        for m in 0..2 {
            let named = self.masters[m].core.directory().get(&key()).map(|entry| entry.version);
            if named != version {
                self.wrong(format!("the directory of master {m} names {named:?}, the log {version:?}"));
            }
        }
        let holders = self.masters[m].core.directory().get(&key()).map(|entry| entry.holders);
        for s in 0..self.slaves.len() {
            let Some(slot) = self.links[m][s].slot else {
                self.wrong(format!("slave {s} is not active although all has healed"));
                continue;
            };
            let (named, held) = (holders.is_some_and(|holders| holders.contains(slot)), self.held(s));
            if held.is_some() && held != latest {
                self.wrong(format!("slave {s} holds {held:?}, the log {latest:?}"));
            }
            if named != held.is_some() {
                self.wrong(format!("slave {s} holds {held:?}, as a holder it is named: {named}"));
            }
            if !self.masters[m].core.is_idle(slot) {
                self.wrong(format!("slave {s} owes acknowledgements at rest"));
            }
        }
    }

    /// Heals everything, and holds that a write and a read by a new client end well.
    fn heals(&self) -> Option<String> {
        let wrong = self.healed(false).violation?;
        let way = self.healed(true).told.unwrap_or_default();
        Some(format!("after healing: {wrong}\n         {}", way.join("\n         ")))
    }

    fn healed(&self, narrates: bool) -> World {
        let mut world = self.clone();
        world.told = narrates.then(Vec::new);
        world.settle(false);
        if world.violation.is_none() {
            world.check_at_rest();
        }
        if world.violation.is_none() {
            let wishes = vec![Wish::Write, Wish::Read];
            let plan = crate::setup::Plan { kind: Kind::Native, pipelines: false, wishes };
            let mut setup = (*world.setup).clone();
            setup.clients.push(plan);
            world.setup = Rc::new(setup);
            let request = Request { progress: Progress::Waiting, floor: 0, overtaken: false };
            let client = Client { at: None, session: 0, requests: vec![request.clone(), request] };
            world.clients.change().all.push(client);
            world.settle(false);
            let last = world.clients.all.last().unwrap();
            if last.requests.iter().any(|request| request.progress != Progress::Answered) {
                world.wrong("a write and a read behind all faults have no result".to_owned());
            }
        }
        if world.violation.is_none() {
            world.check_at_rest();
        }
        world
    }
}

/// The master that answers client `c` itself, if it does.
fn m_of(world: &World, c: usize) -> Option<usize> {
    world.clients.all[c].at.filter(|m| world.masters[*m].phase().is_some())
}

/// What a record makes of a key: `None` when nothing, `Some(None)` when it deletes it.
fn value_in(record: &Record, key: &Bytes) -> Option<Option<Bytes>> {
    match record.change.as_ref()? {
        Change::Put(pairs) => {
            pairs.iter().rev().find(|(k, _)| k == key).map(|(_, value)| Some(value.clone()))
        }
        Change::Delete(keys) => keys.contains(key).then_some(None),
    }
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
        let look = quiet || digest.is_multiple_of(SETTLE_EVERY);
        (quiet, if look { self.heals() } else { None })
    }

    fn digest(&self, text: &mut String) -> Digest {
        let mut all: Vec<Digest> = Vec::with_capacity(32);
        for node in &self.masters {
            all.push(node.core.digest(text));
            all.push(node.front.digest(text));
            all.push(node.watcher.digest(text));
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
