//! `RaftKeeper`: brings one member's part in the replicated log from following to a reign and back.
//!
//! Owns the machine of `dsm-consensus` (`Newcomer`, then `Consensus`), the stage of the port, and what of the port waits for what.
//! Decides nothing that the machine must decide. It never steps the machine from within a step: what a step leads to here is stepped
//! after it.

use super::acquaintances::Acquaintances;
use super::appends::{AppendAnswer, Appends, Milestone};
use super::arriving::{self, StreamJob};
use super::changing::{self, ChangeBasis, MembersChanging};
use super::disk::RaftDiskSetup;
use super::disk_task::{self, DiskDone, DiskJob, DiskReported, DiskReports};
use super::follower::{FollowerStep, LineFollower, READ_BYTES_MAX};
use super::start::{self, DiskFound, EmptyDisk, StartedDisk};
use super::{EntryLine, FromMember, MemberLinks, MemberSaid, RaftSetup};
use crate::journal::shared_file::volumes::Volumes;
use crate::journal::{
    rests_on_refused, LogEvent, LogId, LogRequest, NewRecord, ReplayPart, Sight, Unread, ValueAnswer,
};
use crate::node_error::NodeError;
use crate::supervision::PanicGuard;
use crate::turns::TurnLengths;
use actix::prelude::*;
use bytes::Bytes;
use dsm_consensus::ids::MemberId;
use dsm_consensus::join::{JoinEffect, Newcomer};
use dsm_consensus::machine::{CommittedEntry, ProposalTag, ReadTag, RefusedBecause};
use dsm_consensus::members::{ChangeRefusal, Members};
use dsm_consensus::wire::join::{EmptyMachine, JoinMessage};
use dsm_consensus::wire::stream::StreamMessage;
use dsm_consensus::wire::PeerMessage;
use dsm_consensus::{Config, Consensus, Effect, Event};
use dsm_protocol::command::{ErrorWord, MembersOrder};
use dsm_protocol::ids::{ClusterId, Seq, Version};
use dsm_protocol::info::MemberInfo;
use dsm_protocol::machine::log_scan::BaseSeen;
use dsm_protocol::machine::master::{Asker, Change};
use dsm_protocol::machine::reign::LeaderSeen;
use dsm_protocol::record::{self, Place};
use dsm_protocol::witness_file::WitnessText;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

mod compacting;

use compacting::LogCopying;

/// How long a tick of the machine is.
const TICK: Duration = Duration::from_millis(10);
const TICK_MS: u64 = 10;

/// What a machine says of itself whose disk is empty.
const NOT_JOINED: &str = "there is no log here: one begins once all masters of --members have answered, or the members of one that is there";

/// A newcomer asks the others every so many ticks.
const ASKS_EVERY_TICKS: u64 = 10;

/// Who the members are is told anew every so many ticks, if anything of that has changed.
const MEMBERS_TOLD_EVERY_TICKS: u64 = 10;

/// Who watches is told who leads every so many ticks.
const LOOKS_EVERY_TICKS: u64 = 3;

/// A leader whose master does not want to lead tries to give that away every so many ticks.
const YIELDS_EVERY_TICKS: u64 = 50;

/// What a master asks, in its order. The answer to a read cannot travel in a message.
pub(super) type Requests = Rc<RefCell<VecDeque<LogRequest>>>;

/// There are requests.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(super) struct RequestsWait;

/// The master is gone: everything is given back.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(super) struct LeaveLog;

/// How far a master has come with the log, in the words of the port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RaftStage {
    /// It is told what is committed.
    Following,
    /// It is told no more once it has taken in the part that is with it.
    Halting,
    Idle,
    /// It leads, and is told the rest.
    Opening,
    Open,
    Reigning,
    /// What is in flight is awaited, then the leadership goes to this address.
    Closing(Option<String>),
    /// It goes to the other member by now.
    Transferring,
    Deposed,
}

/// What this machine is to the log.
enum RaftPart {
    /// Its disk is being opened, or made a member's.
    Opening,
    Joining {
        newcomer: Box<Newcomer>,
        disk: EmptyDisk,
    },
    Member(Box<Member>),
    /// It takes no part.
    Over,
}

/// A member that takes part.
struct Member {
    id: MemberId,
    cluster: ClusterId,
    machine: Consensus,
    jobs: mpsc::UnboundedSender<DiskJob>,
    /// What is to be done with a leader's file.
    streams: mpsc::UnboundedSender<StreamJob>,
    /// Who hears what the disk has done.
    done: DiskReports,
    /// The files in which values stand.
    values: Volumes,
    /// The end of the compacted part.
    base: BaseSeen,
    log: LogId,
    /// The lines on disk that are not committed.
    lines: VecDeque<EntryLine>,
    follower: LineFollower,
    /// The version that began the reign, once it is committed.
    reign: Option<Version>,
}

impl Member {
    /// Through where the master may be told: not the record of its own reign, before it has begun that.
    fn limit(&self, stage: &RaftStage) -> Seq {
        let has_begun =
            matches!(stage, RaftStage::Reigning | RaftStage::Closing(_) | RaftStage::Transferring);
        match self.reign {
            Some(reign) if !has_begun && self.follower.told().seq < reign.seq => Seq(reign.seq.0 - 1),
            Some(_) | None => self.machine.committed(),
        }
    }

    /// The member at an address. Of two one takes the other's place: that is the one that is alive and has a vote, if there is one.
    fn member_at(&self, address: &str) -> Option<MemberId> {
        let (members, progress) = (self.machine.members(), self.machine.progress());
        let is_live = |id: MemberId| progress.iter().any(|other| other.member == id && other.is_live);
        let there = members.iter().filter(|(_, entry)| entry.address == address).map(|(id, _)| id);
        there.max_by_key(|id| (members.is_voter(*id) && is_live(*id), members.is_voter(*id)))
    }
}

/// The actor. See the module.
pub(super) struct RaftKeeper {
    setup: RaftSetup,
    requests: Requests,
    links: Box<dyn MemberLinks>,
    turns: Rc<TurnLengths>,
    membership: RaftPart,
    stage: RaftStage,
    /// Whether the master wants to lead.
    is_queued: bool,
    /// Whether it was told that it may.
    has_won: bool,
    /// Whether it wants to be told who leads.
    watches: bool,
    appends: Appends,
    changing: MembersChanging,
    /// Who has spoken of late and is no member, as far as this one knows.
    acquaintances: Acquaintances,
    /// Who the members were by the last record.
    members_before: Vec<(MemberId, String)>,
    /// What was told of the members last.
    members_told: (Vec<MemberInfo>, String),
    noted: WitnessText,
    /// Events of the machine that are not stepped yet.
    pending: VecDeque<Event>,
    /// To whom the leadership was to be given last, as this master does not want it.
    yielded_to: Option<MemberId>,
    /// In which tick that was.
    yielded_at: u64,
    /// Whether the master wants to be told everything from the start, once the log is open.
    is_anew: bool,
    copying: LogCopying,
    ticks: u64,
    guard: PanicGuard,
}

impl RaftKeeper {
    pub(super) fn new(
        setup: RaftSetup,
        turns: Rc<TurnLengths>,
        requests: Requests,
        links: Box<dyn MemberLinks>,
    ) -> Self {
        RaftKeeper {
            turns,
            guard: PanicGuard::new("RaftKeeper", setup.fate.clone()),
            copying: LogCopying::new(setup.compact_min_bytes),
            setup,
            requests,
            links,
            membership: RaftPart::Opening,
            stage: RaftStage::Following,
            is_queued: false,
            has_won: false,
            watches: false,
            appends: Appends::default(),
            changing: MembersChanging::default(),
            acquaintances: Acquaintances::default(),
            members_before: Vec::new(),
            members_told: Default::default(),
            noted: WitnessText::default(),
            pending: VecDeque::new(),
            yielded_to: None,
            yielded_at: 0,
            is_anew: false,
            // The first time is not too soon.
            ticks: YIELDS_EVERY_TICKS,
        }
    }

    fn tell(&self, event: LogEvent) {
        self.setup.events.do_send(event);
    }

    /// Takes no part any more: the node must end.
    fn fail(&mut self, error: NodeError) {
        self.nobody_waits_for_changes();
        self.membership = RaftPart::Over;
        self.pending.clear();
        self.tell(LogEvent::Failed(error));
    }

    fn no_member(&mut self, reason: impl Into<String>) {
        let (path, reason) = (self.setup.path.clone(), reason.into());
        self.fail(NodeError::NoMember { path, reason });
    }

    fn member(&mut self) -> Option<&mut Member> {
        match &mut self.membership {
            RaftPart::Member(member) => Some(member),
            RaftPart::Opening | RaftPart::Joining { .. } | RaftPart::Over => None,
        }
    }

    /// Opens the disk: it is a member's, or a newcomer's.
    fn open_disk(&mut self, ctx: &mut Context<Self>) {
        let RaftSetup { env, path, line_bytes_max, compact_min_bytes, events, .. } = &self.setup;
        let (env, path) = (Rc::clone(env), path.clone());
        let (line_bytes_max, compact_min_bytes) = (*line_bytes_max, *compact_min_bytes);
        let setup = RaftDiskSetup { env, path, line_bytes_max, compact_min_bytes };
        let events = events.clone();
        let opening = async move { start::open(setup, &events).await };
        ctx.spawn(opening.into_actor(self).map(|found, keeper, ctx| match found {
            Ok(DiskFound::Member(started)) => keeper.take_part(*started, ctx),
            Ok(DiskFound::Empty(disk)) => {
                let (env, setup) = (&keeper.setup.env, &keeper.setup);
                let (address, named) = (setup.address.clone(), setup.named.clone());
                let own = EmptyMachine { token: env.random(), address, named };
                let newcomer = Box::new(Newcomer::new(own, ClusterId(env.random())));
                keeper.membership = RaftPart::Joining { newcomer, disk };
                keeper.tell(LogEvent::KeptOut(Some(NOT_JOINED.to_owned())));
                keeper.join(|newcomer, effects| newcomer.ask(effects), ctx);
            }
            Err(error) => keeper.fail(error),
        }));
    }

    /// Steps the newcomer.
    fn join(&mut self, step: impl FnOnce(&mut Newcomer, &mut Vec<JoinEffect>), ctx: &mut Context<Self>) {
        let RaftPart::Joining { newcomer, .. } = &mut self.membership else { return };
        let mut effects = Vec::new();
        step(newcomer, &mut effects);
        for effect in effects {
            match effect {
                JoinEffect::Tell { to, message } => self.say_join(&to, &message),
                JoinEffect::Refused(why) => {
                    log::error!("no member of the cluster: {why}");
                    self.tell(LogEvent::KeptOut(Some(why.to_string())));
                }
                JoinEffect::Begin { cluster, members } => {
                    log::info!("new log path={} cluster={cluster}", self.setup.path.display());
                    self.becomes(ctx, async move |disk, events| disk.begin(cluster, &members, &events).await);
                }
                JoinEffect::Adopt { cluster, member } => {
                    log::info!("new member member={member} cluster={cluster}");
                    self.becomes(ctx, async move |disk, events| disk.adopt(cluster, member, &events).await);
                }
            }
        }
    }

    /// Makes the empty disk a member's.
    fn becomes(
        &mut self,
        ctx: &mut Context<Self>,
        makes: impl AsyncFnOnce(EmptyDisk, Recipient<LogEvent>) -> Result<StartedDisk, NodeError> + 'static,
    ) {
        let RaftPart::Joining { disk, .. } = std::mem::replace(&mut self.membership, RaftPart::Opening)
        else {
            return;
        };
        let events = self.setup.events.clone();
        let making = async move { makes(disk, events).await };
        ctx.spawn(making.into_actor(self).map(|started, keeper, ctx| match started {
            Ok(started) => keeper.take_part(started, ctx),
            Err(error) => keeper.fail(error),
        }));
    }

    /// Starts the machine of a member with what is on its disk.
    fn take_part(&mut self, started: StartedDisk, ctx: &mut Context<Self>) {
        let done = DiskReports::new(ctx.address().recipient());
        let starting = async move {
            let reader = started.disk.reader().await?;
            Ok((started, reader))
        };
        ctx.spawn(starting.into_actor(self).map(move |opened: Result<_, NodeError>, keeper, _| {
            let (StartedDisk { disk, start, lines, end, base }, reader) = match opened {
                Ok(opened) => opened,
                Err(error) => return keeper.fail(error),
            };
            let (id, cluster) = (start.vote.member, start.vote.cluster);
            // Each has a file of its own, and all of them one log.
            let log = (cluster.0, 0);
            let machine = match Consensus::new(Config::new(id, keeper.setup.env.random()), &start) {
                Ok(machine) => machine,
                Err(error) => return keeper.no_member(error.to_string()),
            };
            let (jobs, queue) = mpsc::unbounded_channel();
            keeper.is_long(disk.log_bytes());
            keeper.copying.of_disk(Rc::clone(&disk.room));
            let (streams, arriving) = mpsc::unbounded_channel();
            actix::spawn(arriving::serve(disk.setup.clone(), cluster, arriving, done.clone()));
            actix::spawn(disk_task::serve(disk, queue, done.clone()));
            let (lines, mut follower, reign) = (lines.into(), LineFollower::new(cluster, end), None);
            if std::mem::take(&mut keeper.is_anew) {
                follower.begin_anew(base.version.seq);
            }
            let mut values = Volumes::default();
            values.read_by(reader);
            let member = Member {
                id,
                cluster,
                machine,
                jobs,
                streams,
                done,
                values,
                base,
                log,
                lines,
                follower,
                reign,
            };
            keeper.members_before = where_they_are(member.machine.members());
            keeper.membership = RaftPart::Member(Box::new(member));
            keeper.tell(LogEvent::KeptOut(None));
            keeper.reach_members();
            keeper.settle();
        }));
    }

    fn say(&mut self, to: &str, body: Vec<u8>) {
        let from = self.member().map(|member| (member.cluster, member.id));
        let address = self.setup.address.clone();
        self.links.send(to, MemberSaid { address, from, body: body.into() });
    }

    fn say_join(&mut self, to: &str, message: &JoinMessage) {
        self.say(to, encoded(|body| message.encode(body)));
    }

    /// Says something to a member, if it is known where that is.
    fn say_to(&mut self, member: Option<MemberId>, body: Vec<u8>) {
        if let Some(address) = member.and_then(|id| self.address_of(id)) {
            self.say(&address, body);
        }
    }

    /// Where a member is, or one of which this member knows only that it was heard.
    fn address_of(&mut self, id: MemberId) -> Option<String> {
        let known = self.member()?.machine.members().get(id).map(|entry| entry.address.clone());
        known.or_else(|| self.acquaintances.address_of(id).cloned())
    }

    /// Hears what another master says.
    fn hear(&mut self, said: MemberSaid, ctx: &mut Context<Self>) {
        let MemberSaid { address, from, body } = said;
        if JoinMessage::is_one(&body) {
            match JoinMessage::decode(&body) {
                Ok(message) => self.hear_join((from, &address), message, ctx),
                // Whoever may open a link could fill the log with more than that.
                Err(error) => log::debug!("another master says what means nothing error={error}"),
            }
            return;
        }
        let Some(from) = self.heeded(from, &address) else { return };
        let heard = if StreamMessage::is_one(&body) {
            StreamMessage::decode(body).map(|message| Event::Stream { from, message })
        } else {
            PeerMessage::decode(body).map(|message| Event::Message { from, message })
        };
        match heard {
            Ok(event) => self.pending.push_back(event),
            Err(error) => log::debug!("member {from} says what means nothing error={error}"),
        }
    }

    /// Which number speaks, if it is heeded: it has this log, and is where the record says. Where one is that the record does not
    /// name is noted: a member that has no log yet learns from this alone where the others are, and one that was removed is to
    /// hear that.
    fn heeded(&mut self, from: Option<(ClusterId, MemberId)>, address: &str) -> Option<MemberId> {
        let ticks = self.ticks;
        let member = self.member()?;
        let (_, from) = from.filter(|(cluster, _)| *cluster == member.cluster)?;
        match member.machine.members().get(from) {
            Some(known) if known.address == address => {}
            Some(_) => {
                log::debug!("not heard: member {from} is at another address than {address:?}");
                return None;
            }
            None => {
                if self.acquaintances.speaks(address, (Some(from), None), ticks) {
                    self.reach_members();
                }
            }
        }
        Some(from)
    }

    fn hear_join(
        &mut self,
        (from, address): (Option<(ClusterId, MemberId)>, &str),
        message: JoinMessage,
        ctx: &mut Context<Self>,
    ) {
        // Whoever speaks for another one is not heard.
        if let JoinMessage::Asks(other) | JoinMessage::IsEmpty(other) = &message {
            if other.address != address {
                return;
            }
        }
        self.join(
            {
                let message = message.clone();
                |newcomer, effects| newcomer.hear(message, effects)
            },
            ctx,
        );
        match message {
            JoinMessage::Asks(other) => {
                let Some(member) = self.member() else { return };
                let notice = member.machine.notice();
                if self.acquaintances.speaks(address, (None, Some(other.token)), self.ticks) {
                    self.reach_members();
                }
                self.say_join(address, &notice);
            }
            JoinMessage::Members { cluster, seq, members } => {
                if let Some(from) = self.heeded(from, address) {
                    self.pending.push_back(Event::Notice { from, cluster, seq, members });
                }
            }
            JoinMessage::IsEmpty(_) => {}
        }
    }

    /// Says to whom there are links: those that the settings name, the members, and who speaks without being one.
    fn reach_members(&mut self) {
        let RaftPart::Member(member) = &self.membership else { return };
        let members = member.machine.members();
        let mut reached: BTreeSet<String> = self.setup.named.iter().cloned().collect();
        reached.extend(members.iter().map(|(_, entry)| entry.address.clone()));
        reached.extend(self.acquaintances.addresses().cloned());
        reached.remove(&self.setup.address);
        self.links.reach(reached);
    }

    /// Begins a change of the members.
    fn change_members(&mut self, order: &MembersOrder, asker: Asker) {
        let reigns = self.stage == RaftStage::Reigning;
        let begun = match &self.membership {
            RaftPart::Member(member) if reigns => {
                let (members, progress) = (member.machine.members(), member.machine.progress());
                let is_live = |id| progress.iter().any(|other| other.member == id && other.is_live);
                let tick = self.ticks;
                let asks_at = |address: &str| self.acquaintances.token_at(address, tick);
                let basis = ChangeBasis { members, is_live: &is_live, asks_at: &asks_at, tick };
                self.changing.begin(order, &basis, asker)
            }
            RaftPart::Member(_) | RaftPart::Opening | RaftPart::Joining { .. } | RaftPart::Over => {
                Err(changing::refused(ChangeRefusal::NotLeader))
            }
        };
        match begun {
            Ok(change) => self.pending.push_back(Event::Change(change)),
            Err(refused) => self.tell(LogEvent::MembersChanged { asker, result: Err(refused) }),
        }
    }

    /// A record of the members is committed: what somebody waits for has begun for good.
    fn members_are_others(&mut self) {
        let RaftPart::Member(member) = &self.membership else { return };
        let members = member.machine.members();
        let before = std::mem::replace(&mut self.members_before, where_they_are(members));
        for (id, address) in before.iter().filter(|(id, _)| members.was_removed(*id)) {
            // What is on its way to it tells it so, if it is alive.
            self.acquaintances.speaks(address, (Some(*id), None), self.ticks);
        }
        self.reach_members();
        // Before the answer: what was shown until now is over.
        self.tell_members();
        if let Some((asker, result)) = self.changing.answered() {
            self.tell(LogEvent::MembersChanged { asker, result });
        }
    }

    /// Whoever waits for a change of the members waits in vain.
    fn change_fails(&mut self, why: (ErrorWord, String)) {
        if let Some((asker, _)) = self.changing.answered() {
            self.tell(LogEvent::MembersChanged { asker, result: Err(why) });
        }
    }

    /// Nothing is heard of the log any more, or of this reign.
    fn nobody_waits_for_changes(&mut self) {
        let why = "this master leads no more, and whoever does goes on with the change or never heard of it: see INFO";
        self.change_fails((ErrorWord::Unknown, why.to_owned()));
    }

    /// Tells the master who the members are, if that is new.
    fn tell_members(&mut self) {
        let RaftPart::Member(member) = &self.membership else { return };
        let shown = changing::shown(&member.machine, member.id);
        if shown != self.members_told {
            self.members_told = shown.clone();
            let (members, change) = shown;
            self.tell(LogEvent::Members { members, change });
        }
    }

    /// Steps the machine through everything that is pending, and does what follows from it.
    fn settle(&mut self) {
        let now = self.setup.env.now();
        while let Some(event) = self.pending.pop_front() {
            let Some(member) = self.member() else { return };
            let mut effects = Vec::new();
            member.machine.step(now, event, &mut effects);
            effects.into_iter().for_each(|effect| self.perform(effect));
        }
        self.tell_answers();
        self.tell_if_won();
        self.go_on_closing();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(batch) => self.ask_disk(DiskJob::Write(batch)),
            Effect::Fetch { from, through, bytes_max } => {
                self.ask_disk(DiskJob::Fetch { from, through, bytes_max });
            }
            Effect::Send(message) => self.say_to(message.to(), encoded(|body| message.encode(body))),
            Effect::SendNotice(to) => {
                let notice = self.member().map(|member| member.machine.notice());
                let body = encoded(|body| notice.iter().for_each(|notice| notice.encode(body)));
                self.say_to(Some(to), body);
            }
            Effect::Committed(entries) => self.committed(entries),
            Effect::Refused { tags, why } => self.appends.refused(&tags, &refusal(why)),
            Effect::Elected(term) => log::info!("elected term={term}"),
            Effect::Reigns(version) => self.reigns(version),
            Effect::Deposed { tags } => self.deposed(&tags),
            Effect::Follows { term, leader } => {
                let leader = leader.map_or_else(|| "nobody".to_owned(), |leader| leader.to_string());
                log::info!("follows member={leader} term={term}");
            }
            Effect::Transferred { to, term } => {
                log::info!("leadership given away member={to} term={term}");
                if self.stage == RaftStage::Transferring {
                    self.closed();
                }
            }
            Effect::TransferFailed { to, why } => {
                log::warn!("leadership not given away member={to} cause={why:?}");
                self.not_transferred();
            }
            Effect::DiskStalls { to } => {
                log::warn!("the log's disk does not answer, giving the leadership away member={to}");
            }
            Effect::Members { version, members } => {
                log::info!("members version={version} members={members}");
                self.members_are_others();
            }
            // Its first record is awaited: until that is committed it may come to nothing.
            Effect::ChangeBegun => {}
            Effect::ChangeRefused(why) => self.change_fails(changing::refused(why)),
            Effect::MembersSettled(members) => {
                log::info!("members are settled: a majority knows for good members={members}");
                self.tell_members();
            }
            Effect::LogLost { last, committed } => self.no_member(format!(
                "it ends at seq {last}, but this member had acknowledged it through seq {committed}: what is missing is \
                 lost here; let another machine take this member's place"
            )),
            Effect::Removed => self.no_member("this member was removed from the cluster"),
            Effect::ReadConfirmed { read: ReadTag(round), .. } => {
                self.tell(LogEvent::Confirmed { round, leads: true });
            }
            Effect::ReadRefused(ReadTag(round)) => self.tell(LogEvent::Confirmed { round, leads: false }),
            Effect::SendStream(message) => {
                self.say_to(Some(message.to), encoded(|body| message.encode(body)));
            }
            Effect::ReadChunk { to, base, offset, bytes_max } => {
                self.read_chunk(to, base, (offset, bytes_max));
            }
            Effect::WriteChunk { stream, offset, data } => {
                self.ask_stream(StreamJob::Write { stream, offset, data });
            }
            Effect::SyncStream(stream) => self.ask_stream(StreamJob::Sync(stream)),
            Effect::DropStream(stream) => {
                self.ask_stream(StreamJob::Drop(stream));
                self.ask_disk(DiskJob::ForgetArrived(stream));
            }
            Effect::Restored(base) => self.restored(base),
        }
    }

    fn not_transferred(&mut self) {
        let leads = self.member().is_some_and(|member| member.reign.is_some());
        if self.stage == RaftStage::Transferring && leads {
            self.stage = RaftStage::Reigning;
            self.tell(LogEvent::Reopened);
        } else if self.stage == RaftStage::Transferring {
            // Somebody else leads. Nothing was in flight.
            self.closed();
        }
    }

    /// The reign's first entry is committed.
    fn reigns(&mut self, version: Version) {
        if let Some(member) = self.member() {
            member.reign = Some(version);
        }
        self.tell_members();
        // Where nobody wants it, it does not go to and fro as fast as it can.
        if self.ticks >= self.yielded_at + YIELDS_EVERY_TICKS {
            self.yield_to_another();
        }
    }

    fn ask_disk(&mut self, job: DiskJob) {
        if let Some(member) = self.member() {
            // Without a task the disk has failed, and that is told.
            let _ = member.jobs.send(job);
        }
    }

    /// Entries are committed: a leader's own are written, all others are replayed.
    fn committed(&mut self, entries: Vec<CommittedEntry>) {
        let RaftPart::Member(member) = &mut self.membership else { return };
        for CommittedEntry { entry, tag } in entries {
            let line = member.lines.pop_front();
            let line = line.filter(|line| line.version == entry.version);
            let line = line.expect("what is committed is on this member's disk");
            if let Some(tag) = tag {
                self.appends.committed(tag, line.version, &line.changes);
            }
            member.follower.committed(line, tag.is_some());
        }
    }

    /// Writes of unknown outcome, and no leadership any more.
    fn deposed(&mut self, tags: &[ProposalTag]) {
        if let Some(member) = self.member() {
            member.reign = None;
        }
        let unknown = (ErrorWord::Unknown, "another master leads, and may have the write or not".to_owned());
        let was_told = std::mem::take(&mut self.has_won);
        // Of a transfer that is under way the end is told.
        if was_told && self.stage != RaftStage::Transferring {
            // Who was told that it may lead, and has not begun to, follows on.
            if self.stage != RaftStage::Following {
                self.stage = RaftStage::Deposed;
            }
            self.tell(LogEvent::Lost);
        }
        self.appends.refused(tags, &unknown);
        self.nobody_waits_for_changes();
        self.tell_members();
    }

    /// Tells what has become of appends.
    fn tell_answers(&mut self) {
        for answer in self.appends.take_answers() {
            self.tell(match answer {
                AppendAnswer::Written(written) => LogEvent::Written(written),
                AppendAnswer::Reached(Milestone::Sync) => LogEvent::Synced,
                AppendAnswer::Reached(Milestone::Abandon) => LogEvent::Abandoned,
            });
        }
    }

    /// Tells the master that it may lead, once everything before its reign is committed.
    fn tell_if_won(&mut self) {
        let reigns = self.member().is_some_and(|member| member.reign.is_some());
        if reigns && self.is_queued && !self.has_won {
            (self.has_won, self.is_queued, self.watches) = (true, false, false);
            // No other one knows more of the log than this member.
            self.tell(LogEvent::Won { cluster: None, epoch: None });
        }
    }

    /// Goes on once all that is in flight is answered.
    fn go_on_closing(&mut self) {
        let RaftStage::Closing(to) = &self.stage else { return };
        if !self.appends.is_empty() {
            return;
        }
        let to = to.clone();
        let Some(member) = self.member() else { return };
        let next = to.and_then(|address| member.member_at(&address)).filter(|next| *next != member.id);
        match next {
            Some(next) => {
                self.stage = RaftStage::Transferring;
                self.pending.push_back(Event::Transfer(next));
                self.settle();
            }
            None => self.closed(),
        }
    }

    fn closed(&mut self) {
        self.nobody_waits_for_changes();
        self.stage = RaftStage::Idle;
        if let Some(member) = self.member() {
            let (log, end) = (member.log, member.follower.told());
            self.tell(LogEvent::Closed { log, end });
        }
    }

    /// Tells the master what is next, if it follows.
    fn replay(&mut self, ctx: &mut Context<Self>) {
        let follows = matches!(self.stage, RaftStage::Following | RaftStage::Opening);
        let stage = self.stage.clone();
        let Some(member) = self.member() else { return };
        let limit = member.limit(&stage);
        let step = if follows { member.follower.next(limit) } else { FollowerStep::Nothing };
        match step {
            FollowerStep::Tell { from_start, changes, end, caught_up } => {
                let log = Some(member.log);
                let part = ReplayPart { from_start, changes, more: 0, end, durable: end, log, caught_up };
                let taking_in = self.setup.events.send(LogEvent::Replayed(part));
                ctx.spawn(taking_in.into_actor(self).map(|_, keeper, ctx| {
                    if let Some(member) = keeper.member() {
                        member.follower.taken_in();
                    }
                    keeper.replay(ctx);
                }));
            }
            FollowerStep::Read { from, through } => {
                self.ask_disk(DiskJob::ReadLines { from, through, bytes_max: READ_BYTES_MAX });
            }
            FollowerStep::Replay => self.replay_base(ctx),
            FollowerStep::Nothing => self.tell_if_still(),
        }
    }

    /// Tells that nothing more comes, where that was asked for.
    fn tell_if_still(&mut self) {
        let noted = self.noted.clone();
        let stage = self.stage.clone();
        let Some(member) = self.member() else { return };
        if member.follower.is_busy() {
            return;
        }
        let is_told = member.follower.told().seq >= member.limit(&stage);
        let opened = member.reign.map(|reign| member.follower.opened(reign));
        let (log, end) = (member.log, opened.unwrap_or_else(|| member.follower.told()));
        if stage == RaftStage::Halting {
            self.stage = RaftStage::Idle;
            self.tell(LogEvent::Halted);
        } else if stage == RaftStage::Opening && is_told {
            self.stage = RaftStage::Open;
            self.tell(LogEvent::Opened { log: Some((log, end)), noted });
        }
    }

    /// Appends writes, by one proposal.
    fn append(&mut self, changes: Vec<NewRecord>) {
        let mut entries = Vec::with_capacity(changes.len());
        for record in changes {
            if self.stage != RaftStage::Reigning {
                let refusal = (ErrorWord::Standby, "this master does not lead".to_owned());
                self.appends.refuse(record.write, refusal);
            } else if record.is_stale(self.appends.refusals()) {
                self.appends.refuse(record.write, rests_on_refused());
            } else {
                let words = match &*record.change {
                    Change::Put(pairs) => record::write_words(pairs, record.expires),
                    Change::Delete(keys) => record::delete_words(keys),
                    Change::Apply(mixed) => {
                        record::apply_words((&mixed.pairs, &mixed.expires), &mixed.deleted)
                    }
                };
                entries.push((self.appends.propose(record.write), Bytes::from(words)));
            }
        }
        self.pending.push_back(Event::Propose(entries));
    }

    /// Asks the others whether this one leads. Between two reigns of its own another one may have reigned.
    fn confirm(&mut self, round: u64) {
        match self.stage {
            RaftStage::Reigning | RaftStage::Closing(_) | RaftStage::Transferring => {
                self.pending.push_back(Event::Read(ReadTag(round)));
            }
            RaftStage::Following
            | RaftStage::Halting
            | RaftStage::Idle
            | RaftStage::Opening
            | RaftStage::Open
            | RaftStage::Deposed => self.tell(LogEvent::Confirmed { round, leads: false }),
        }
    }

    fn read(&mut self, place: Place, version: Version, answer: ValueAnswer) {
        let reigns =
            matches!(self.stage, RaftStage::Reigning | RaftStage::Closing(_) | RaftStage::Transferring);
        let member = self.member().filter(|_| reigns);
        let reader = member.and_then(|member| member.values.file(place.file));
        let Some(reader) = reader else {
            return answer.give(Err(Unread::Closed));
        };
        actix::spawn(async move {
            answer.give(reader.read_value(place, version.epoch).await.map_err(Unread::Failed));
        });
    }

    /// Begins the reign that the log has begun by itself.
    fn begin(&mut self) {
        let bytes = self.appends.log_bytes;
        if self.stage != RaftStage::Open {
            return;
        }
        let Some(member) = self.member() else { return };
        let (cluster, Some(version)) = (member.cluster, member.reign) else { return };
        // Unless a reign that was given up before it served begins once more.
        if member.follower.told().seq < version.seq {
            member.follower.begins(version);
        }
        self.stage = RaftStage::Reigning;
        self.appends.begin();
        self.noted = WitnessText::default();
        let id = record::reign_of_term(cluster, version.epoch);
        self.tell(LogEvent::Begun { cluster, version, id, bytes });
    }

    fn tell_who_leads(&mut self) {
        let beat = Some(self.ticks);
        let leads = self.member().is_some_and(|member| member.machine.leader().is_some());
        self.tell(LogEvent::Looked(if leads { LeaderSeen::Leads { beat } } else { LeaderSeen::Nobody }));
    }

    fn set_stage(&mut self, from: &RaftStage, to: RaftStage) -> bool {
        let is_there = self.stage == *from;
        if is_there {
            self.stage = to;
        }
        is_there
    }

    /// The log is so long by now.
    fn is_long(&mut self, bytes: u64) {
        self.appends.log_bytes = bytes;
        self.copying.is_long(bytes);
    }

    fn answer(&mut self, request: LogRequest, ctx: &mut Context<Self>) {
        match request {
            LogRequest::Watch => self.watches = true,
            LogRequest::Queue => self.is_queued = true,
            LogRequest::Oust { .. } => self.tell_who_leads(),
            LogRequest::LeaveQueue => (self.is_queued, self.watches) = (false, false),
            LogRequest::GiveUp => self.give_up(),
            LogRequest::WhoLeads => {
                let leader = self.member().and_then(|member| member.machine.leader());
                let leader = leader.and_then(|leader| self.address_of(leader));
                self.tell(LogEvent::Leader(leader));
            }
            LogRequest::Follow => {
                let follows =
                    matches!(self.stage, RaftStage::Idle | RaftStage::Deposed | RaftStage::Following);
                if follows {
                    self.stage = RaftStage::Following;
                    if let Some(member) = self.member() {
                        member.follower.resume();
                    }
                }
            }
            LogRequest::FollowAnew => self.begin_anew(ctx),
            LogRequest::Look => self.tell(LogEvent::Sighted(Sight::Follows)),
            LogRequest::Halt => {
                self.set_stage(&RaftStage::Following, RaftStage::Halting);
            }
            // There is one in any case.
            LogRequest::Open { makes: _ } => {
                let has_won = self.has_won;
                if has_won && matches!(self.stage, RaftStage::Idle | RaftStage::Open) {
                    self.stage = RaftStage::Opening;
                }
            }
            LogRequest::PutAside => {
                self.set_stage(&RaftStage::Open, RaftStage::Idle);
            }
            LogRequest::Find => {
                let bytes = self.appends.log_bytes;
                let found = self.member().map(|member| (member.log, bytes));
                self.tell(LogEvent::Found(found));
            }
            LogRequest::Note(text) => self.noted = text,
            LogRequest::Begin { .. } => self.begin(),
            LogRequest::Append { changes } => self.append(changes),
            LogRequest::Confirm { round } => self.confirm(round),
            LogRequest::ChangeMembers { order, asker } => self.change_members(&order, asker),
            LogRequest::Read { place, version, answer } => self.read(place, version, answer),
            LogRequest::Sync => self.appends.after_all(Milestone::Sync),
            LogRequest::Close { .. } if self.stage == RaftStage::Deposed => self.closed(),
            LogRequest::Close { to } => {
                self.set_stage(&RaftStage::Reigning, RaftStage::Closing(to));
            }
            LogRequest::Reopen => {
                // While it is being given away, the end of that is the answer.
                if matches!(self.stage, RaftStage::Closing(_)) {
                    self.stage = RaftStage::Reigning;
                    self.tell(LogEvent::Reopened);
                }
            }
            LogRequest::Abandon => self.appends.after_all(Milestone::Abandon),
            LogRequest::Weigh { live_bytes, log_bytes: _ } => self.weigh(live_bytes, ctx),
            // The other members know who leads.
            LogRequest::Declare { .. } => {}
        }
    }

    /// Leads no more, as far as the master is concerned: another member is to.
    fn give_up(&mut self) {
        self.has_won = false;
        if !matches!(self.stage, RaftStage::Following | RaftStage::Halting) {
            self.stage = RaftStage::Idle;
        }
        self.yield_to_another();
    }

    /// Gives the leadership to the next live member, as this master does not want it. Who wants it, no other one knows: it goes
    /// round, past one that has not taken it.
    fn yield_to_another(&mut self) {
        let (wants, last) = (self.has_won || self.is_queued, self.yielded_to);
        let RaftPart::Member(member) = &mut self.membership else { return };
        if wants || member.reign.is_none() {
            self.yielded_to = None;
            return;
        }
        let last = last.unwrap_or(member.id);
        let voters = member.machine.progress().into_iter().filter(|other| other.is_live);
        let voters = voters.filter(|other| member.machine.members().is_voter(other.member));
        if let Some(next) = voters.min_by_key(|other| (other.member <= last, other.member)) {
            self.yielded_to = Some(next.member);
            self.yielded_at = self.ticks;
            self.pending.push_back(Event::Transfer(next.member));
        }
    }

    /// One tick for each that has passed, but not more than an election takes: after a pause of this process the others have elected
    /// somebody, or are about to.
    fn tick(&mut self, since: u64, ctx: &mut Context<Self>) {
        let now = self.setup.env.now().0;
        let passed = (now.saturating_sub(since) / TICK_MS).clamp(1, 15);
        for _ in 0..passed {
            self.pending.push_back(Event::Tick);
        }
        self.ticks += 1;
        if self.ticks.is_multiple_of(ASKS_EVERY_TICKS) {
            self.join(|newcomer, effects| newcomer.ask(effects), ctx);
        }
        if self.watches && self.ticks.is_multiple_of(LOOKS_EVERY_TICKS) {
            self.tell_who_leads();
        }
        if self.ticks.is_multiple_of(YIELDS_EVERY_TICKS) {
            self.yield_to_another();
            self.acquaintances.forget_silent(self.ticks);
            self.reach_members();
        }
        if self.changing.is_overdue(self.ticks) {
            let why = "no majority of the masters has the change yet: see members_change in INFO";
            self.change_fails((ErrorWord::Unknown, why.to_owned()));
        }
        self.turn(ctx);
        if self.ticks.is_multiple_of(MEMBERS_TOLD_EVERY_TICKS) {
            self.tell_members();
        }
        ctx.run_later(TICK, move |keeper, ctx| keeper.tick(now, ctx));
    }

    /// Takes in what the disk has done.
    fn disk_has(&mut self, done: DiskDone, ctx: &mut Context<Self>) {
        match done {
            DiskDone::Persisted(persisted) => {
                self.is_long(persisted.log_bytes);
                persisted.installed.into_iter().for_each(|installed| self.installed(installed, ctx));
                let Some(member) = self.member() else { return };
                for line in persisted.lines {
                    // What a later leader does not have was cut.
                    while member.lines.back().is_some_and(|last| last.version.seq >= line.version.seq) {
                        member.lines.pop_back();
                    }
                    member.lines.push_back(line);
                }
                self.pending.extend(persisted.through.map(Event::Persisted));
            }
            DiskDone::Fetched { from, entries } => self.pending.push_back(Event::Fetched { from, entries }),
            DiskDone::LinesRead(lines) => {
                if let Some(member) = self.member() {
                    member.follower.read(lines);
                }
            }
            DiskDone::Surveyed(survey) => self.surveyed(survey, ctx),
            DiskDone::Swapped(outcome) => self.swapped(outcome, ctx),
            DiskDone::ChunkRead { to, base, offset, data, is_last } => {
                self.pending.push_back(Event::ChunkRead { to, base, offset, data, is_last });
            }
            DiskDone::ChunkWritten(stream) => self.pending.push_back(Event::ChunkWritten(stream)),
            DiskDone::StreamFailed(stream) => self.pending.push_back(Event::StreamFailed(stream)),
            DiskDone::StreamSynced { stream, draft } => {
                // Before the batch that makes it the log.
                self.ask_disk(DiskJob::Arrived { stream, draft });
                self.pending.push_back(Event::StreamSynced(stream));
            }
            DiskDone::Failed(error) => self.fail(error),
        }
    }

    /// Ends each turn.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        self.settle();
        self.replay(ctx);
    }
}

/// What `encode` writes.
fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::new();
    encode(&mut body);
    body
}

/// Each member's number and address.
fn where_they_are(members: &Members) -> Vec<(MemberId, String)> {
    members.iter().map(|(id, entry)| (id, entry.address.clone())).collect()
}

/// What a master is told of writes that are in no log.
fn refusal(why: RefusedBecause) -> (ErrorWord, String) {
    match why {
        RefusedBecause::NotLeader => (ErrorWord::Standby, "this master does not lead".to_owned()),
        RefusedBecause::Transferring => (ErrorWord::Busy, "the leadership is being given away".to_owned()),
        RefusedBecause::Full => {
            (ErrorWord::Busy, "too many bytes wait for a majority of the masters".to_owned())
        }
    }
}

impl Actor for RaftKeeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.open_disk(ctx);
        let now = self.setup.env.now().0;
        ctx.run_later(TICK, move |keeper, ctx| keeper.tick(now, ctx));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.guard.stopped_cleanly();
    }
}

impl Handler<RequestsWait> for RaftKeeper {
    type Result = ();

    fn handle(&mut self, _: RequestsWait, ctx: &mut Self::Context) {
        let turns = Rc::clone(&self.turns);
        let _turn = turns.begin("raft keeper");
        let requests = std::mem::take(&mut *self.requests.borrow_mut());
        requests.into_iter().for_each(|request| self.answer(request, ctx));
        self.turn(ctx);
    }
}

impl Handler<FromMember> for RaftKeeper {
    type Result = ();

    fn handle(&mut self, said: FromMember, ctx: &mut Self::Context) {
        let turns = Rc::clone(&self.turns);
        let _turn = turns.begin("raft keeper members");
        match said {
            FromMember::Said(said) => said.into_iter().for_each(|said| self.hear(said, ctx)),
            FromMember::LinkDown { from: (cluster, from), address } => {
                let is_its = |member: &&mut Member| {
                    let known = member.machine.members().get(from);
                    member.cluster == cluster && known.is_some_and(|known| known.address == address)
                };
                if self.member().as_ref().is_some_and(is_its) {
                    self.pending.push_back(Event::LinkDown(from));
                }
            }
        }
        self.turn(ctx);
    }
}

impl Handler<DiskReported> for RaftKeeper {
    type Result = ();

    fn handle(&mut self, _: DiskReported, ctx: &mut Self::Context) {
        let turns = Rc::clone(&self.turns);
        let _turn = turns.begin("raft keeper disk");
        let Some(reports) = self.member().map(|member| member.done.clone()) else { return };
        reports.take().into_iter().for_each(|done| self.disk_has(done, ctx));
        self.turn(ctx);
    }
}

impl Handler<LeaveLog> for RaftKeeper {
    type Result = ();

    fn handle(&mut self, _: LeaveLog, ctx: &mut Self::Context) {
        self.nobody_waits_for_changes();
        self.membership = RaftPart::Over;
        ctx.stop();
    }
}
