//! The world: time, the network, the processes, their clients, and what goes wrong.

mod disaster;
mod faults;
mod files;
mod operator;

use crate::checks::Checks;
use crate::disk::Disk;
use bytes::Bytes;
use dsm_consensus::ids::MemberId;
use dsm_consensus::join::{is_draft, Newcomer};
use dsm_consensus::machine::{ProposalTag, ReadTag, StartError};
use dsm_consensus::vote::VoteRecord;
use dsm_consensus::wire::join::JoinMessage;
use dsm_consensus::wire::stream::StreamMessage;
use dsm_consensus::wire::PeerMessage;
use dsm_consensus::{Config, Consensus, Effect, Event, Start};
use dsm_protocol::ids::{ClusterId, Millis, Version};
use std::collections::{BTreeMap, BTreeSet};

/// How long faults happen, and how long all is well afterwards, in microseconds.
const FAULTS_US: u64 = 3_000_000;
const HEALED_US: u64 = 1_500_000;

/// How many machines there are beside those that begin the cluster.
const SPARE_MACHINES: usize = 2;

/// A sync of a disk that hangs ends after the run.
const HANGS_US: u64 = 100_000_000;

/// How long nothing else goes wrong while a disk hangs, in microseconds.
const CALM_US: u64 = 1_000_000;

/// What came of one run, or several.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) wrong: Vec<String>,
    pub(crate) trace: u64,
    pub(crate) events: u64,
    pub(crate) acknowledged: u64,
    pub(crate) read: u64,
    pub(crate) refused: u64,
    pub(crate) deposed: u64,
    pub(crate) elections: u64,
    pub(crate) fetched: u64,
    pub(crate) cuts: u64,
    pub(crate) torn: u64,
    pub(crate) compacted: u64,
    pub(crate) installed: u64,
    pub(crate) dropped: u64,
    pub(crate) transferred: u64,
    pub(crate) not_transferred: u64,
    pub(crate) hung: u64,
    pub(crate) yielded: u64,
    pub(crate) changed: u64,
    pub(crate) unchanged: u64,
    pub(crate) wiped: u64,
    pub(crate) disks_refused: u64,
    pub(crate) left: u64,
    pub(crate) disturbed: u64,
    pub(crate) hung_receivers: u64,
    pub(crate) one_file: u64,
    pub(crate) forced: u64,
    pub(crate) returned: u64,
    pub(crate) drafts: u64,
    pub(crate) alone: u64,
    pub(crate) settled: u64,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Outcome) {
        self.events += other.events;
        self.acknowledged += other.acknowledged;
        self.read += other.read;
        self.refused += other.refused;
        self.deposed += other.deposed;
        self.elections += other.elections;
        self.fetched += other.fetched;
        self.cuts += other.cuts;
        self.torn += other.torn;
        self.compacted += other.compacted;
        self.installed += other.installed;
        self.dropped += other.dropped;
        self.transferred += other.transferred;
        self.not_transferred += other.not_transferred;
        self.hung += other.hung;
        self.yielded += other.yielded;
        self.changed += other.changed;
        self.unchanged += other.unchanged;
        self.wiped += other.wiped;
        self.disks_refused += other.disks_refused;
        self.left += other.left;
        self.disturbed += other.disturbed;
        self.hung_receivers += other.hung_receivers;
        self.one_file += other.one_file;
        self.forced += other.forced;
        self.returned += other.returned;
        self.drafts += other.drafts;
        self.alone += other.alone;
        self.settled += other.settled;
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }
}

/// What is to happen at some time.
enum Happening {
    /// To a member's process, in one of its lives.
    Event {
        member: usize,
        life: u64,
        event: Event,
    },
    Tick {
        member: usize,
        life: u64,
    },
    /// Bytes arrive, on a connection that may be broken by now.
    Arrives {
        from: usize,
        to: usize,
        link: u64,
        bytes: Bytes,
    },
    Synced {
        member: usize,
        life: u64,
    },
    Starts {
        member: usize,
    },
    PowerFails {
        member: usize,
        life: u64,
    },
    /// A disk that hung works again.
    DiskWorks {
        member: usize,
        life: u64,
    },
    /// A machine with an empty disk asks who the members are.
    Asks {
        member: usize,
        life: u64,
    },
    /// All members but one are gone for good.
    Disaster,
    /// A machine of which the operator thought that it is gone.
    Returns {
        member: usize,
        is_wiped: bool,
    },
    Operator,
    Client,
    Compacts,
    CompactsAll {
        member: usize,
    },
    Transfers {
        member: usize,
        other: usize,
    },
    Fault,
    Heal,
}

struct Node {
    /// Its number, if it has one, and in which cluster.
    id: Option<MemberId>,
    cluster: Option<ClusterId>,
    /// It does not start.
    is_gone: bool,
    address: String,
    machine: Option<Consensus>,
    newcomer: Option<Newcomer>,
    life: u64,
    disk: Disk,
    sync_us: u64,
    paused_until: u64,
    due: Option<Millis>,
    /// It is to compact its log and keep so many entries.
    keeps: Option<u64>,
    /// What its disk would have done, did it not hang.
    stalled: Vec<Event>,
}

impl Node {
    /// Whether its disk hangs.
    fn hangs(&self) -> bool {
        self.sync_us == HANGS_US
    }
}

struct World {
    now: u64,
    random: Random,
    queue: BTreeMap<(u64, u64), Happening>,
    number: u64,
    nodes: Vec<Node>,
    cut: BTreeSet<(usize, usize)>,
    links: BTreeMap<(usize, usize), u64>,
    fifo: BTreeMap<(usize, usize), u64>,
    checks: Checks,
    /// The one that lives, if there is one.
    cluster: Option<ClusterId>,
    /// How many machines begin the cluster.
    first: usize,
    counts: Outcome,
    is_healed: bool,
    /// Until when nothing else goes wrong.
    calm_until: u64,
    acknowledged_before: u64,
    /// When a disk was lost last.
    lost_at: u64,
    tag: u64,
}

/// Runs one seed.
pub(crate) fn run(seed: u64, members: u64) -> Outcome {
    let first = members as usize;
    let node = |at: usize| Node {
        id: None,
        cluster: None,
        is_gone: false,
        address: format!("m{at}:1"),
        machine: None,
        newcomer: None,
        life: 0,
        disk: Disk::new(),
        sync_us: 0,
        paused_until: 0,
        due: None,
        keeps: None,
        stalled: Vec::new(),
    };
    let mut world = World {
        now: 0,
        random: Random(seed),
        queue: BTreeMap::new(),
        number: 0,
        nodes: (0..first + SPARE_MACHINES).map(node).collect(),
        cut: BTreeSet::new(),
        links: BTreeMap::new(),
        fifo: BTreeMap::new(),
        checks: Checks::default(),
        cluster: None,
        first,
        counts: Outcome::default(),
        is_healed: false,
        calm_until: 0,
        acknowledged_before: 0,
        lost_at: 0,
        tag: 0,
    };
    if seed % 8 == 6 {
        world.has_one_file();
    }
    if seed % 10 == 9 {
        let us = world.random.between(FAULTS_US / 3, FAULTS_US * 2 / 3);
        world.later(us, Happening::Disaster);
    }
    for member in 0..world.nodes.len() {
        world.later(0, Happening::Starts { member });
    }
    world.later(1, Happening::Client);
    world.later(300_000, Happening::Compacts);
    world.later(400_000, Happening::Fault);
    world.later(400_000, Happening::Operator);
    world.later(FAULTS_US, Happening::Heal);
    world.goes_on();
    let World { nodes, checks, counts, .. } = world;
    Outcome {
        acknowledged: checks.acknowledged,
        read: checks.read,
        refused: checks.refusals(),
        deposed: checks.deposed,
        elections: checks.elections(),
        cuts: counts.cuts + nodes.iter().map(|node| node.disk.cuts).sum::<u64>(),
        torn: counts.torn + nodes.iter().map(|node| node.disk.torn).sum::<u64>(),
        installed: counts.installed + nodes.iter().map(|node| node.disk.installed).sum::<u64>(),
        transferred: checks.transferred,
        not_transferred: checks.not_transferred,
        wrong: checks.wrong,
        ..counts
    }
}

impl World {
    fn later(&mut self, us: u64, happening: Happening) {
        self.number += 1;
        self.queue.insert((self.now + us, self.number), happening);
    }

    fn note(&mut self, what: u64) {
        let counts = &mut self.counts;
        counts.trace = (counts.trace ^ what ^ self.now.rotate_left(20)).wrapping_mul(0x0100_0000_01b3);
        counts.events += 1;
    }

    fn goes_on(&mut self) {
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            if at > FAULTS_US + HEALED_US || !self.checks.wrong.is_empty() {
                break;
            }
            self.now = at;
            self.happens(happening);
        }
        let members = self.checks.members().1;
        let at_end: Vec<(MemberId, u64)> = (self.nodes.iter())
            .filter(|node| node.cluster == self.cluster)
            .filter_map(|node| Some((node.id.filter(|id| members.is_voter(*id))?, node)))
            .map(|(id, node)| (id, node.machine.as_ref().map_or(0, |machine| machine.committed().0)))
            .collect();
        self.checks.end(&at_end, self.acknowledged_before);
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Event { member, life, event } => self.event(member, life, event),
            Happening::Tick { member, life } => {
                if self.nodes[member].life == life {
                    let late = self.nodes[member].paused_until.saturating_sub(self.now);
                    self.later(late + 10_000, Happening::Tick { member, life });
                    self.event(member, life, Event::Tick);
                }
            }
            Happening::Arrives { from, to, link, bytes } => {
                let is_whole = self.link(from, to) == link && !self.cut.contains(&(from, to));
                if is_whole {
                    let life = self.nodes[to].life;
                    self.arrives(from, to, life, bytes);
                }
            }
            Happening::Synced { member, life } => {
                let node = &mut self.nodes[member];
                if node.life == life {
                    if let Some(number) = node.disk.ends() {
                        self.compacts_now(member);
                        self.syncs(member);
                        self.event(member, life, Event::Persisted(number));
                    }
                }
            }
            Happening::Starts { member } => self.starts(member),
            Happening::PowerFails { member, life } => {
                if self.nodes[member].life == life && !self.is_healed && self.now >= self.calm_until {
                    self.ends(member, true);
                }
            }
            Happening::DiskWorks { member, life } => self.disk_works(member, life),
            Happening::Asks { member, life } => self.asks(member, life),
            Happening::Operator => self.operator(),
            Happening::Client => self.client(),
            Happening::Compacts => self.compacts(),
            Happening::CompactsAll { member } => self.compacts_all(member),
            Happening::Transfers { member, other } => self.transfers(member, other),
            Happening::Disaster => self.disaster(),
            Happening::Returns { member, is_wiped } => self.returns(member, is_wiped),
            Happening::Fault => self.fault(),
            Happening::Heal => self.heal(),
        }
    }

    fn arrives(&mut self, from: usize, to: usize, life: u64, bytes: Bytes) {
        if JoinMessage::is_one(&bytes) {
            return self.hears_of_members(from, to, life, &bytes);
        }
        // The handshake compares the clusters.
        if self.nodes[from].cluster != self.nodes[to].cluster {
            return;
        }
        // It may have another number by now, or none.
        let Some(from) = self.nodes[from].id else { return };
        let event = if StreamMessage::is_one(&bytes) {
            StreamMessage::decode(bytes).map(|message| Event::Stream { from, message })
        } else {
            PeerMessage::decode(bytes).map(|message| Event::Message { from, message })
        };
        match event {
            Ok(event) => self.event(to, life, event),
            Err(error) => self.checks.fail(format!("{error}")),
        }
    }

    fn link(&self, one: usize, other: usize) -> u64 {
        self.links.get(&(one.min(other), one.max(other))).copied().unwrap_or(0)
    }

    /// Steps a member, now or once it runs again.
    fn event(&mut self, member: usize, life: u64, event: Event) {
        let node = &mut self.nodes[member];
        if node.life != life {
            return;
        }
        if node.paused_until > self.now {
            let wait = node.paused_until - self.now;
            self.later(wait, Happening::Event { member, life, event });
            return;
        }
        let Some(machine) = &mut node.machine else { return };
        let mut effects = Vec::new();
        let now = Millis(self.now / 1000);
        machine.step(now, event, &mut effects);
        let due = machine.deadline();
        if node.due != due {
            node.due = due;
            if let Some(due) = due {
                let us = (due.0 * 1000).saturating_sub(self.now);
                self.later(us, Happening::Event { member, life, event: Event::Due });
            }
        }
        self.note(((member as u64) << 8) | effects.len() as u64);
        for effect in effects {
            self.effect(member, effect);
        }
    }

    fn effect(&mut self, member: usize, effect: Effect) {
        let Some(id) = self.nodes[member].id else { return };
        if self.is_old(member) && !acts(&effect) {
            return;
        }
        match effect {
            Effect::Persist(batch) => {
                self.note(batch.entries.len() as u64);
                if batch.vote.is_some() && self.random.next().is_multiple_of(20) {
                    // While the vote file is written.
                    let (life, us) = (self.nodes[member].life, self.random.between(1, 1500));
                    self.later(us, Happening::PowerFails { member, life });
                }
                self.nodes[member].disk.write(batch);
                self.syncs(member);
            }
            Effect::Send(message) => self.send(member, &message),
            Effect::Committed(entries) => self.checks.committed(id, &entries),
            Effect::ReadConfirmed { read, .. } => {
                let seen = self.nodes[member].machine.as_ref().map_or(0, |machine| machine.committed().0);
                self.checks.confirmed(id, read, seen);
            }
            Effect::Refused { tags, .. } => self.checks.refused(id, &tags),
            Effect::Deposed { tags } => self.checks.deposed(id, &tags),
            Effect::Elected(term) => self.checks.elected(id, term),
            Effect::Fetch { from, through, .. } => {
                self.counts.fetched += 1;
                let node = &self.nodes[member];
                let most = 1 + self.random.next() as usize % 20;
                let entries = match (node.disk.place(from), node.disk.place(through)) {
                    (Some(first), Some(last)) => node.disk.log[first..=last.min(first + most)].to_vec(),
                    _ => Vec::new(),
                };
                let (life, us) = (node.life, self.random.between(100, 3000));
                self.later(us, Happening::Event { member, life, event: Event::Fetched { from, entries } });
            }
            Effect::LogLost { last, committed } => {
                self.checks.fail(format!("{id} ends at {last} and had acknowledged {committed}"));
            }
            Effect::SendStream(message) => self.send_stream(member, &message),
            Effect::ReadChunk { .. }
            | Effect::WriteChunk { .. }
            | Effect::SyncStream(_)
            | Effect::DropStream(_)
            | Effect::Restored(_) => self.stream_effect(member, effect),
            Effect::Transferred { .. }
            | Effect::TransferFailed { .. }
            | Effect::DiskStalls { .. }
            | Effect::ChangeBegun
            | Effect::ChangeRefused(_)
            | Effect::Members { .. }
            | Effect::MembersSettled(_)
            | Effect::SendNotice(_)
            | Effect::Removed => self.member_effect(member, id, effect),
            Effect::ReadRefused(_) | Effect::Reigns(_) | Effect::Follows { .. } => {}
        }
    }

    fn syncs(&mut self, member: usize) {
        let node = &mut self.nodes[member];
        if node.disk.begins() {
            let (life, us) = (node.life, self.random.between(200, 1500) + node.sync_us);
            self.later(us, Happening::Synced { member, life });
        }
    }

    fn send(&mut self, from: usize, message: &PeerMessage) {
        let (Some(member), Some(id)) = (self.nodes[from].id, message.to()) else { return };
        if self.is_old(from) {
            // What it says concerns nobody here.
        } else if message.word() == "voted" && !message.rejects() {
            self.checks.voted(member, message.term(), id);
        } else if ["pre-vote", "vote"].contains(&message.word()) {
            self.checks.campaigns(member);
        }
        let Some(to) = self.machine_of(from, id) else { return };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.send_bytes(from, to, bytes);
    }

    fn send_bytes(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        let link = self.link(from, to);
        let drawn = self.random.next() % 1000;
        if drawn < 3 && !self.is_healed {
            return;
        }
        if drawn < 10 {
            let us = self.random.between(50, 20_000);
            self.later(us, Happening::Arrives { from, to, link, bytes: bytes.clone() });
        }
        let us = self.random.between(50, 1500);
        let last = self.fifo.get(&(from, to)).copied().unwrap_or(0);
        let at = (self.now + us).max(last + 1);
        self.fifo.insert((from, to), at);
        self.later(at - self.now, Happening::Arrives { from, to, link, bytes });
    }

    fn starts(&mut self, member: usize) {
        let node = &mut self.nodes[member];
        if node.machine.is_some() || node.newcomer.is_some() || node.is_gone {
            return;
        }
        if node.disk.vote_file.is_empty() {
            if !is_draft(&node.disk.log) {
                self.checks.fail(format!("machine {member} has a log and no vote file"));
            }
            node.disk.log.clear();
            let token = self.random.next();
            return self.starts_empty(member, token);
        }
        let vote = match VoteRecord::of_file(&node.disk.vote_file) {
            Ok(vote) => vote,
            Err(error) => return self.checks.fail(format!("machine {member}: {error}")),
        };
        let id = vote.member;
        (node.id, node.cluster, node.due) = (Some(id), Some(vote.cluster), None);
        if !self.is_old(member) {
            self.checks.starts(id, &vote);
            self.checks_file(member);
        }
        let disk = &self.nodes[member].disk;
        if disk.records_after(vote.commit.max(disk.base.seq)) > 1 {
            self.checks
                .fail(format!("{id} knows of none of two changes of the members that it is committed"));
        }
        match self.start_of(member) {
            Ok(machine) => self.nodes[member].machine = Some(machine),
            Err(error) => return self.checks.fail(format!("{id} cannot start: {error}")),
        }
        let (life, us) = (self.nodes[member].life, self.random.between(0, 10_000));
        self.later(us, Happening::Tick { member, life });
    }

    /// The machine with what is on the disk.
    fn start_of(&mut self, member: usize) -> Result<Consensus, StartError> {
        let (seed, kept) = (self.random.next(), self.random.next() % 20);
        let disk = &self.nodes[member].disk;
        let vote = VoteRecord::of_file(&disk.vote_file).expect("it was read before");
        let records = disk.records_through(vote.commit);
        let (log, base) = (&disk.log, disk.base);
        let mut terms: Vec<Version> = Vec::new();
        for entry in log {
            if terms.last().is_none_or(|first| first.epoch != entry.version.epoch) {
                terms.push(entry.version);
            }
        }
        let held = (vote.commit.0.saturating_sub(kept) as usize).saturating_sub(base.seq.0 as usize);
        let from = held.min(log.len().saturating_sub(1));
        let tail = log[from..].to_vec();
        let mut config = Config::new(vote.member, seed);
        config.tail_bytes_max = 100;
        config.message_bytes_max = 200;
        config.committed_bytes_max = 100;
        config.uncommitted_bytes_max = 2000;
        config.messages_in_flight_max = 8;
        config.commit_noted_entries = 15;
        config.disk_stall_max_ms = 150;
        config.learner_lag_max = 20;
        config.stream_retry_ms = 30;
        config.stream_quiet_max_ms = 200;
        Consensus::new(config, &Start { vote, base, records, terms, tail })
    }

    fn client(&mut self) {
        let us = self.random.between(500, 8000);
        self.later(us, Happening::Client);
        let member = self.random.next() as usize % self.nodes.len();
        let node = &self.nodes[member];
        let (Some(id), life, true) = (node.id, node.life, node.machine.is_some() && !self.is_old(member))
        else {
            return;
        };
        self.tag += 1;
        let event = if self.random.next().is_multiple_of(2) {
            self.checks.asked(ReadTag(self.tag));
            Event::Read(ReadTag(self.tag))
        } else {
            let tags: Vec<ProposalTag> =
                (0..self.random.between(1, 5)).map(|at| ProposalTag(self.tag * 8 + at)).collect();
            tags.iter().for_each(|tag| self.checks.proposed(id, *tag));
            Event::Propose(tags.iter().map(|tag| (*tag, tag.0.to_string().into())).collect())
        };
        self.event(member, life, event);
    }

    /// The process ends, and comes back. The others notice it if they can be reached.
    fn ends(&mut self, member: usize, by_power: bool) {
        let drawn = self.random.next() >> 1;
        let node = &mut self.nodes[member];
        node.life += 1;
        node.machine = None;
        node.newcomer = None;
        node.paused_until = 0;
        node.keeps = None;
        node.stalled.clear();
        if by_power {
            node.disk.power_loss(drawn);
        } else {
            node.disk.crash();
        }
        if let (Some(id), false) = (node.id, self.is_old(member)) {
            self.checks.gone(id);
        }
        for other in 0..self.nodes.len() {
            if other != member {
                self.breaks(member, other, !by_power);
            }
        }
        let us = self.random.between(1000, 500_000);
        self.later(us, Happening::Starts { member });
    }

    /// The connection between two members breaks, with all that is on its way.
    fn breaks(&mut self, one: usize, other: usize, is_noticed: bool) {
        *self.links.entry((one.min(other), one.max(other))).or_default() += 1;
        for (at, peer) in [(one, other), (other, one)] {
            if is_noticed && !self.cut.contains(&(peer, at)) {
                let (life, us) = (self.nodes[at].life, self.random.between(50, 2000));
                if let Some(id) = self.nodes[peer].id {
                    let event = Event::LinkDown(id);
                    self.later(us, Happening::Event { member: at, life, event });
                }
            }
        }
    }
}

/// What a member does, beside what it tells its own node.
fn acts(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Persist(_)
            | Effect::Send(_)
            | Effect::SendNotice(_)
            | Effect::SendStream(_)
            | Effect::Fetch { .. }
            | Effect::ReadChunk { .. }
            | Effect::WriteChunk { .. }
            | Effect::SyncStream(_)
            | Effect::DropStream(_)
            | Effect::Removed
    )
}
