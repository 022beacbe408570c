//! The world: time, the network, the processes, their clients, and what goes wrong.

mod operator;

use crate::checks::Checks;
use crate::disk::Disk;
use bytes::Bytes;
use dsm_consensus::ids::MemberId;
use dsm_consensus::join::Newcomer;
use dsm_consensus::machine::{ProposalTag, ReadTag};
use dsm_consensus::vote::VoteRecord;
use dsm_consensus::wire::join::JoinMessage;
use dsm_consensus::wire::stream::StreamMessage;
use dsm_consensus::wire::PeerMessage;
use dsm_consensus::{Config, Consensus, Effect, Event, Start};
use dsm_protocol::ids::{Millis, Seq, Version};
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
    Operator,
    Client,
    Compacts,
    Fault,
    Heal,
}

struct Node {
    /// Its number, if it has one.
    id: Option<MemberId>,
    address: String,
    machine: Option<Consensus>,
    newcomer: Option<Newcomer>,
    life: u64,
    disk: Disk,
    sync_us: u64,
    paused_until: u64,
    due: Option<Millis>,
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
    /// How many machines begin the cluster.
    first: usize,
    counts: Outcome,
    is_healed: bool,
    /// Until when nothing else goes wrong.
    calm_until: u64,
    acknowledged_before: u64,
    tag: u64,
}

/// Runs one seed.
pub(crate) fn run(seed: u64, members: u64) -> Outcome {
    let first = members as usize;
    let node = |at: usize| Node {
        id: None,
        address: format!("m{at}:1"),
        machine: None,
        newcomer: None,
        life: 0,
        disk: Disk::new(),
        sync_us: 0,
        paused_until: 0,
        due: None,
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
        first,
        counts: Outcome::default(),
        is_healed: false,
        calm_until: 0,
        acknowledged_before: 0,
        tag: 0,
    };
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
            Happening::Fault => self.fault(),
            Happening::Heal => self.heal(),
        }
    }

    fn arrives(&mut self, from: usize, to: usize, life: u64, bytes: Bytes) {
        if JoinMessage::is_one(&bytes) {
            return self.hears_of_members(from, to, life, &bytes);
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

    /// A member compacts its log, while nothing is written there.
    fn compacts(&mut self) {
        let us = self.random.between(20_000, 120_000);
        self.later(us, Happening::Compacts);
        let member = self.random.next() as usize % self.nodes.len();
        let kept = self.random.between(0, 40);
        let (now, node) = (self.now, &mut self.nodes[member]);
        let Some(machine) = &node.machine else { return };
        if !node.disk.is_idle() || node.paused_until > now {
            return;
        }
        let base = machine.purgeable(Seq(machine.committed().0.saturating_sub(kept)));
        if base.seq <= node.disk.base.seq {
            return;
        }
        self.counts.compacted += 1;
        node.disk.compact(member, base);
        let (Some(id), life) = (node.id, node.life) else { return };
        self.checks.has_file(id, base, self.nodes[member].disk.compacted_lines());
        self.event(member, life, Event::Compacted(base));
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

    /// What a stream does to the disk.
    fn stream_effect(&mut self, member: usize, effect: Effect) {
        let (us, node) = (self.random.between(50, 3000), &mut self.nodes[member]);
        let (Some(id), life) = (node.id, node.life) else { return };
        let event = match effect {
            Effect::ReadChunk { to, base, offset, bytes_max } if node.disk.base == base => {
                let (data, is_last) = node.disk.chunk(offset, bytes_max);
                Event::ChunkRead { to, base, offset, data: data.into(), is_last }
            }
            Effect::WriteChunk { stream, offset, data } => {
                node.disk.write_chunk(stream, offset, &data);
                Event::ChunkWritten(stream)
            }
            Effect::SyncStream(stream) => {
                node.disk.sync_stream(stream);
                Event::StreamSynced(stream)
            }
            Effect::DropStream(stream) => {
                self.counts.dropped += 1;
                return node.disk.drop_stream(stream);
            }
            Effect::Restored(base) => {
                if node.disk.base != base {
                    let what = format!("{id} says it has a file through {base}, and has {}", node.disk.base);
                    self.checks.fail(what);
                }
                return self.checks.has_file(id, base, self.nodes[member].disk.compacted_lines());
            }
            _ => return,
        };
        if self.random.next().is_multiple_of(40) {
            self.later(us, Happening::PowerFails { member, life });
        }
        self.later(us, Happening::Event { member, life, event });
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
        if message.word() == "voted" && !message.rejects() {
            self.checks.voted(member, message.term(), id);
        }
        if ["pre-vote", "vote"].contains(&message.word()) {
            self.checks.campaigns(member);
        }
        let Some(to) = self.machine_of(id) else { return };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.send_bytes(from, to, bytes);
    }

    fn send_stream(&mut self, from: usize, message: &StreamMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        if let Some(to) = self.machine_of(message.to) {
            self.send_bytes(from, to, bytes);
        }
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
        let seed = self.random.next();
        let kept = self.random.next() % 20;
        let node = &mut self.nodes[member];
        if node.machine.is_some() || node.newcomer.is_some() {
            return;
        }
        if node.disk.vote_file.is_empty() {
            return self.starts_empty(member, seed);
        }
        let vote = match VoteRecord::of_file(&node.disk.vote_file) {
            Ok(vote) => vote,
            Err(error) => return self.checks.fail(format!("machine {member}: {error}")),
        };
        let id = vote.member;
        node.id = Some(id);
        self.checks.starts(id, &vote);
        if node.disk.records_after(vote.commit.max(node.disk.base.seq)) > 1 {
            self.checks
                .fail(format!("{id} knows of none of two changes of the members that it is committed"));
        }
        let records = node.disk.records_through(vote.commit);
        self.checks.has_file(id, node.disk.base, node.disk.compacted_lines());
        let (log, base) = (&node.disk.log, node.disk.base);
        let mut terms: Vec<Version> = Vec::new();
        for entry in log {
            if terms.last().is_none_or(|first| first.epoch != entry.version.epoch) {
                terms.push(entry.version);
            }
        }
        let held = (vote.commit.0.saturating_sub(kept) as usize).saturating_sub(base.seq.0 as usize);
        let from = held.min(log.len().saturating_sub(1));
        let tail = log[from..].to_vec();
        let mut config = Config::new(id, seed);
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
        match Consensus::new(config, &Start { vote, base, records, terms, tail }) {
            Ok(machine) => node.machine = Some(machine),
            Err(error) => return self.checks.fail(format!("{id} cannot start: {error}")),
        }
        node.due = None;
        let life = node.life;
        let us = self.random.between(0, 10_000);
        self.later(us, Happening::Tick { member, life });
    }

    fn client(&mut self) {
        let us = self.random.between(500, 8000);
        self.later(us, Happening::Client);
        let member = self.random.next() as usize % self.nodes.len();
        let node = &self.nodes[member];
        let (Some(id), life, true) = (node.id, node.life, node.machine.is_some()) else { return };
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
        if by_power {
            node.disk.power_loss(drawn);
        } else {
            node.disk.crash();
        }
        if let Some(id) = node.id {
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

    /// A member, the one that leads in every second draw.
    fn victim(&mut self) -> usize {
        let drawn = self.random.next() as usize;
        let leads = |node: &Node| node.machine.as_ref().is_some_and(|machine| machine.term().1);
        let leader = self.nodes.iter().position(leads);
        leader.filter(|_| drawn.is_multiple_of(2)).unwrap_or((drawn >> 1) % self.nodes.len())
    }

    fn fault(&mut self) {
        if self.is_healed {
            return;
        }
        let us = self.random.between(20_000, 400_000);
        let (member, other) = (self.victim(), self.random.next() as usize % self.nodes.len());
        let kind = self.random.next() % 15;
        self.note(kind);
        let now = self.now;
        let is_well = now + CALM_US <= FAULTS_US
            && self.nodes.iter().all(|node| node.id.is_none() || node.machine.is_some())
            && self.nodes.iter().all(|node| node.paused_until <= now)
            && self.lost().is_none();
        self.later(if kind == 11 && is_well { CALM_US } else { us }, Happening::Fault);
        match kind {
            0 | 1 if !self.is_down(member) => self.ends(member, kind == 1),
            2 => {
                // The power of all goes at once.
                for member in 0..self.nodes.len() {
                    if !self.is_down(member) {
                        self.ends(member, true);
                    }
                }
            }
            3 => {
                for peer in (0..self.nodes.len()).filter(|peer| *peer != member) {
                    self.cut.extend([(member, peer), (peer, member)]);
                }
            }
            4 if member != other => {
                self.cut.insert((member, other));
            }
            5 | 6 => self.cut.clear(),
            7 => self.nodes[member].paused_until = self.now + self.random.between(1000, 900_000),
            8 => self.nodes[member].sync_us = self.random.between(0, 2) * self.random.between(1000, 400_000),
            9 if member != other => self.breaks(member, other, true),
            10 => {
                // The clock jumps: the ticks of a long time at once.
                let life = self.nodes[member].life;
                for _ in 0..self.random.between(2, 60) {
                    self.event(member, life, Event::Tick);
                }
            }
            11 if is_well => self.hangs(member),
            12 if self.nodes[member].machine.is_some() => {
                let (life, ids) = (self.nodes[member].life, (self.nodes[member].id, self.nodes[other].id));
                if let (Some(id), Some(to)) = ids {
                    self.checks.transfers(id);
                    self.event(member, life, Event::Transfer(to));
                }
            }
            13 => self.loses_disk(member),
            14 => self.operator_acts(),
            _ => {}
        }
    }

    /// A disk hangs while all else is well, for as long as a leader may take to notice it and be replaced.
    fn hangs(&mut self, member: usize) {
        self.counts.hung += 1;
        self.calm_until = self.now + CALM_US;
        self.cut.clear();
        self.nodes.iter_mut().for_each(|node| node.sync_us = 0);
        self.nodes[member].sync_us = HANGS_US;
        let life = self.nodes[member].life;
        self.later(CALM_US, Happening::DiskWorks { member, life });
    }

    fn disk_works(&mut self, member: usize, hung: u64) {
        let node = &mut self.nodes[member];
        let leads = node.machine.as_ref().is_some_and(|machine| machine.term().1);
        let life = node.life;
        if leads && life == hung {
            self.checks.fail(format!("{:?} leads although its disk has hung for long", node.id));
        }
        node.sync_us = 0;
        self.later(0, Happening::Synced { member, life });
    }

    fn heal(&mut self) {
        self.is_healed = true;
        self.cut.clear();
        self.acknowledged_before = self.checks.acknowledged;
        for node in &mut self.nodes {
            node.sync_us = 0;
            node.paused_until = node.paused_until.min(self.now);
        }
    }
}
