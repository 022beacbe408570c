//! The consensus machine: one member's part in the replicated log.
//!
//! Owns the engine, and what it needs to be a machine: election timeouts that are functions of the seed, the order between the
//! disk and the messages that rest on it, the fate of each proposal and read, and what to do when a connection ends. Never keeps an
//! entry that is on disk and committed longer than the tail is allowed to be.
//!
//! **Order.** The caller performs the effects in their order. It may write the batches of several [`Effect::Persist`] together and
//! sync once, and go on stepping the machine meanwhile: [`Event::Persisted`] says through which batch everything is on disk. Within a
//! batch, a cut is synced before anything is appended.
//!
//! **Fate of a proposal.** Each gets exactly one of: [`Effect::Committed`] with its tag; [`Effect::Refused`], and no log ever has it;
//! [`Effect::Deposed`], and nobody knows. **Fate of a read**: [`Effect::ReadConfirmed`] or [`Effect::ReadRefused`].

use crate::ids::MemberId;
use crate::members::{ChangeRefusal, Members, MembersChange};
use crate::mutant::planted;
use crate::purge::purge_through;
use crate::storage::{entry_type, LogEntry, LogView, Wish};
use crate::vote::VoteRecord;
use crate::wire::join::JoinMessage;
use crate::wire::stream::StreamMessage;
use crate::wire::PeerMessage;
use dsm_protocol::ids::{ClusterId, Epoch, Millis, Seq, Version};
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use raft::{GetEntriesContext, ProgressState, RawNode, ReadOnlyOption, Ready, StateRole};
use std::collections::{BTreeMap, VecDeque};
use thiserror::Error;

mod changes;
mod stream;
mod transfer;

pub use stream::StreamNumber;

/// The settings of a member.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this member is.
    pub member: MemberId,
    /// Election timeouts are functions of it, the term and the role.
    pub seed: u64,
    /// A leader is heard at least every so many ticks.
    pub heartbeat_ticks: usize,
    /// A member campaigns after so many ticks without a leader, at least, and twice as many at most. A leader that hears no
    /// majority for as long gives up.
    pub election_ticks: usize,
    /// How long a transfer of the leadership may take, in milliseconds. Proposals are refused meanwhile.
    pub transfer_max_ms: u64,
    /// A leader whose disk has not synced for as long gives the leadership away, in milliseconds.
    pub disk_stall_max_ms: u64,
    /// How much later each next member campaigns when the leader's connection ends, in milliseconds.
    pub rank_delay_ms: u64,
    /// About how many bytes of entries a message carries. One entry fits in any case.
    pub message_bytes_max: u64,
    /// How many appends may be on their way to one member.
    pub messages_in_flight_max: usize,
    /// Proposals are refused when more bytes than this wait for a majority. One is taken in any case. At least
    /// `message_bytes_max`.
    pub uncommitted_bytes_max: u64,
    /// How many bytes of committed entries are kept in memory for members that are a little behind.
    pub tail_bytes_max: usize,
    /// About how many bytes of entries are told as committed at once.
    pub committed_bytes_max: u64,
    /// How many reads may wait to be confirmed.
    pub reads_max: usize,
    /// A learner gets its vote once it lacks no more entries than this.
    pub learner_lag_max: u64,
    /// The vote file learns how far the log is committed at least every so many entries: a start holds those after it in memory.
    pub commit_noted_entries: u64,
    /// How long a member waits before it asks for a chunk or offers a stream again, in milliseconds.
    pub stream_retry_ms: u64,
    /// A stream that is asked for nothing for as long is over, in milliseconds. It may be offered again.
    pub stream_quiet_max_ms: u64,
}

impl Config {
    /// The usual settings, for ticks of 10 ms.
    pub fn new(member: MemberId, seed: u64) -> Self {
        Config {
            member,
            seed,
            heartbeat_ticks: 5,
            election_ticks: 15,
            transfer_max_ms: 150,
            disk_stall_max_ms: 1000,
            rank_delay_ms: 15,
            message_bytes_max: 1 << 20,
            messages_in_flight_max: 256,
            uncommitted_bytes_max: 64 << 20,
            tail_bytes_max: 64 << 20,
            committed_bytes_max: 4 << 20,
            reads_max: 1024,
            learner_lag_max: 1000,
            commit_noted_entries: 10_000,
            stream_retry_ms: 200,
            stream_quiet_max_ms: 10_000,
        }
    }
}

/// What is on this member's disk when it starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// The vote file. The caller has taken in its own log through `commit`, or through the base if that is further.
    pub vote: VoteRecord,
    /// The last version that is in no entry of the log, because it was compacted; (0, 0) when all are.
    pub base: Version,
    /// The records of the members in the log, through the base and `commit` at least, ascending: the last one before the base is
    /// enough of those. None if it has none.
    pub records: Vec<(Seq, Members)>,
    /// The first version of each term in the log after the base, ascending.
    pub terms: Vec<Version>,
    /// The last entries of the log: at least the last one, and all after `commit` and the base. None if the log has none after the base.
    pub tail: Vec<LogEntry>,
}

/// Why a member cannot take part with what is on its disk.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StartError {
    /// The vote file is another member's.
    #[error("the vote file is of member {found}, this one is {expected}")]
    OtherMember {
        /// Of whom the vote file is.
        found: MemberId,
        /// Who this is.
        expected: MemberId,
    },
    /// The log has entries of a later term than the vote file, which is synced first.
    #[error("the log has entries of term {log}, the vote file knows only terms up to {vote}: it is older than the log")]
    VoteBehindLog {
        /// The last term of the log.
        log: Epoch,
        /// The term of the vote file.
        vote: Epoch,
    },
    /// The log lacks entries that were known to be committed.
    #[error("the log ends at {last}, but was known to be committed through {commit}")]
    LogShort {
        /// Its last seq.
        last: Seq,
        /// What the vote file says.
        commit: Seq,
    },
    /// What was given of the log does not hang together.
    #[error("the log has a gap, falling terms, or less in its tail than is needed: at {0}")]
    Gap(Seq),
    /// A record of the members makes no sense.
    #[error("the record of the members at {0} makes no sense")]
    Members(Seq),
    /// The engine does not take the settings.
    #[error("the settings of the log's replication do not go together: {0}")]
    Settings(String),
}

/// The caller's name for a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalTag(pub u64);

/// The caller's name for a read, or a turn's reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadTag(pub u64);

/// The number of a batch for the disk: later ones have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchNumber(pub u64);

/// What happens to a member.
#[derive(Clone, Debug)]
pub enum Event {
    /// A tick has passed.
    Tick,
    /// [`Consensus::deadline`] has come.
    Due,
    /// A member says something. The peer has proved who it is.
    Message {
        /// Who says it.
        from: MemberId,
        /// What it says.
        message: PeerMessage,
    },
    /// The connection with a member has ended: its process is dead, or the network broke it.
    LinkDown(MemberId),
    /// Append these entries, in this order: the turn's records. None is empty.
    Propose(Vec<(ProposalTag, bytes::Bytes)>),
    /// Confirm that what is committed by now is what a read has to see.
    Read(ReadTag),
    /// All batches through this one are on disk.
    Persisted(BatchNumber),
    /// What [`Effect::Fetch`] asked for: as many entries as fit, or none when they are not there any more.
    Fetched {
        /// The first seq that was asked for.
        from: Seq,
        /// The entries from there on.
        entries: Vec<LogEntry>,
    },
    /// Give the leadership to this member. Answered by [`Effect::Transferred`] or [`Effect::TransferFailed`].
    Transfer(MemberId),
    /// Change the members. Answered by [`Effect::ChangeBegun`] or [`Effect::ChangeRefused`]; [`Effect::Members`] tells each step, and
    /// whoever leads goes on with it.
    Change(MembersChange),
    /// A member says who the members are. The peer has proved who it is.
    Notice {
        /// Who says it.
        from: MemberId,
        /// Whose log it has.
        cluster: ClusterId,
        /// Through where it knows the log to be committed.
        seq: Seq,
        /// Who they are by that.
        members: Members,
    },
    /// A member says something about a stream. The peer has proved who it is.
    Stream {
        /// Who says it.
        from: MemberId,
        /// What it says.
        message: StreamMessage,
    },
    /// What [`Effect::ReadChunk`] asked for.
    ChunkRead {
        /// For whom.
        to: MemberId,
        /// Of which file.
        base: Version,
        /// Where the chunk begins.
        offset: u64,
        /// At least one byte, unless the file ends there.
        data: bytes::Bytes,
        /// Whether the compacted part of the file ends with it.
        is_last: bool,
    },
    /// The chunk of [`Effect::WriteChunk`] is written. It need not be synced.
    ChunkWritten(StreamNumber),
    /// All that was written of this stream is on disk.
    StreamSynced(StreamNumber),
    /// What was to be written of this stream cannot be, or is not what a leader sends. It may be offered again.
    StreamFailed(StreamNumber),
    /// This member's log was compacted through this version: a file that begins after it has taken the log's place. It may not go
    /// further than [`Consensus::purgeable`].
    Compacted(Version),
}

/// What is to be brought to the disk, in this order: the vote, the new file, the cut, the entries. Each is synced before the next is begun, so
/// that the log never has a term that the vote file does not know. Of several batches only the last vote is written, as two writes
/// without a sync in between could tear both slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogBatch {
    /// Its number.
    pub number: BatchNumber,
    /// Write the next record of the vote file with this term, vote and commit.
    pub vote: Option<(Epoch, Option<MemberId>, Seq)>,
    /// Rename the file of this stream over the log, and sync the directory. The log has everything through the version then, and
    /// no entry after it. The batches before are done by then. A compaction that is under way is given up.
    pub install: Option<(StreamNumber, Version)>,
    /// Cut everything after this seq off the log, and sync that before anything is appended.
    pub cut_after: Option<Seq>,
    /// Append these.
    pub entries: Vec<LogEntry>,
}

/// Why a proposal is refused. It is in no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBecause {
    /// This member does not lead.
    NotLeader,
    /// The leadership is being given away.
    Transferring,
    /// Too many bytes wait for a majority.
    Full,
}

/// Why a transfer of the leadership came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferFailure {
    /// This member does not lead.
    NotLeader,
    /// It has no vote, or leads already.
    NotEligible,
    /// Another transfer is under way.
    Underway,
    /// It took too long, and is called off.
    Late,
    /// Somebody else was elected.
    OtherLeads,
}

/// An entry that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedEntry {
    /// It and its version.
    pub entry: LogEntry,
    /// Which proposal it is, if it was proposed here in this reign.
    pub tag: Option<ProposalTag>,
}

/// What a member wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Bring this to the disk, after the batches before it. Answered by [`Event::Persisted`].
    Persist(LogBatch),
    /// Send this to the member that it names. It may get lost.
    Send(PeerMessage),
    /// These entries follow the last ones that were committed. They are on this member's disk.
    Committed(Vec<CommittedEntry>),
    /// A read may be answered from what is committed through this seq, or further. It is never beyond what was told as committed.
    ReadConfirmed {
        /// Which read.
        read: ReadTag,
        /// What it has to see.
        through: Seq,
    },
    /// A read cannot be confirmed here.
    ReadRefused(ReadTag),
    /// These proposals were not executed and never will be.
    Refused {
        /// Which.
        tags: Vec<ProposalTag>,
        /// Why.
        why: RefusedBecause,
    },
    /// This member leads no more. What became of these proposals is not known.
    Deposed {
        /// Which, in the order of the log.
        tags: Vec<ProposalTag>,
    },
    /// This member was elected.
    Elected(Epoch),
    /// The first entry of this member's reign is committed: everything before it is told. Its version begins the reign.
    Reigns(Version),
    /// Who is believed to lead, when that changes and it is not this member.
    Follows {
        /// In which term.
        term: Epoch,
        /// Who; `None` when nobody is known to.
        leader: Option<MemberId>,
    },
    /// The transfer of the leadership is done: this member leads now.
    Transferred {
        /// Who.
        to: MemberId,
        /// In which term.
        term: Epoch,
    },
    /// The transfer of the leadership came to nothing, as far as is known. If this member still leads, it takes proposals again.
    TransferFailed {
        /// To whom it was to go.
        to: MemberId,
        /// Why.
        why: TransferFailure,
    },
    /// The first step of a change of the members is proposed.
    ChangeBegun,
    /// The members are not changed.
    ChangeRefused(ChangeRefusal),
    /// These are the members from this version on: it is committed.
    Members {
        /// The version of the record, or of the file that has it.
        version: Version,
        /// Who they are.
        members: Members,
    },
    /// A majority of the members knows for good that they are these: if others of them are lost from now on, it can decide. A change
    /// is done when these are the members that it was to bring about.
    MembersSettled(Members),
    /// Tell this member, or one that is none any more, who the members are. It may get lost.
    SendNotice(MemberId),
    /// This member was removed, and a majority of the others knows it for good. It does nothing any more: the node must end, and may
    /// not take part under its number again.
    Removed,
    /// The disk of this member has not synced for long, and it leads: the leadership is being given to this member.
    DiskStalls {
        /// To whom.
        to: MemberId,
    },
    /// Read entries from this member's own log, for one that is behind. Answered by [`Event::Fetched`].
    Fetch {
        /// The first.
        from: Seq,
        /// The last.
        through: Seq,
        /// As many as fit, at least one.
        bytes_max: u64,
    },
    /// Tell a member this about a stream. It may get lost.
    SendStream(StreamMessage),
    /// Read a chunk of the compacted part of this member's own file. Answered by [`Event::ChunkRead`], or not at all when the file
    /// is another one by now.
    ReadChunk {
        /// For whom.
        to: MemberId,
        /// Of which file: it has everything through this version.
        base: Version,
        /// Where the chunk begins.
        offset: u64,
        /// The chunk has no more bytes than this.
        bytes_max: u64,
    },
    /// Write a chunk to the new file of this stream. Answered by [`Event::ChunkWritten`].
    WriteChunk {
        /// Of which stream. At offset 0 the file is created.
        stream: StreamNumber,
        /// Where.
        offset: u64,
        /// What.
        data: bytes::Bytes,
    },
    /// Sync the new file of this stream. Answered by [`Event::StreamSynced`].
    SyncStream(StreamNumber),
    /// The stream came to nothing: remove its file. A start removes what a crash left of any.
    DropStream(StreamNumber),
    /// A stream has taken the place of the log: what is committed is what its file says, through this version. Whatever was told
    /// before is in it.
    Restored(Version),
    /// The leader knows that this member had more of the log than it has: its disk has lost what was acknowledged. The node must
    /// end, and may not take part under its id again.
    LogLost {
        /// Where the log ends.
        last: Seq,
        /// What is committed and was acknowledged here.
        committed: Seq,
    },
}

/// How far another member is, as the leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberProgress {
    /// Which one.
    pub member: MemberId,
    /// Through where it has acknowledged the log.
    pub has: Seq,
    /// Whether it was heard of late.
    pub is_live: bool,
    /// Whether it gets the leader's file, as it lacks what was purged.
    pub gets_file: bool,
}

/// What waits for the disk: a batch, or messages after one.
#[derive(Debug)]
struct Unsynced {
    number: u64,
    /// Whether the disk has anything to do for it.
    is_batch: bool,
    since: Millis,
    messages: Vec<Message>,
}

/// One member's part in the replicated log.
#[derive(Debug)]
pub struct Consensus {
    config: Config,
    engine: Engine,
    now: Millis,
    unsynced: VecDeque<Unsynced>,
    /// Proposals of this reign that are not committed, with their indexes.
    proposed: VecDeque<(u64, ProposalTag)>,
    /// Reads that wait to be confirmed, by their number on the wire.
    reads: BTreeMap<u64, ReadTag>,
    last_read: u64,
    /// The term of the reign, while this member leads.
    leads: Option<u64>,
    reigns: bool,
    /// Whom it believed to lead when it last said so.
    follows: (u64, u64),
    transfer: Option<transfer::Handover>,
    /// When the leadership was last to be given away because of the disk.
    yielded: Millis,
    campaign_at: Option<Millis>,
    handed_out: u64,
    /// Term, vote and commit as the vote file will have them.
    noted: (u64, u64, u64),
    /// Batches with a vote, and the commit that it notes.
    noting: VecDeque<(u64, u64)>,
    /// Through where the disk knows the log to be committed.
    durable_commit: u64,
    /// Wishes that were told, by the first index.
    fetches: BTreeMap<u64, GetEntriesContext>,
    is_lost: bool,
    is_removed: bool,
    /// What it has heard of its own removal.
    removal: Option<changes::Removal>,
    /// The record of the members, by its place, of which it was said that it is settled.
    settled: u64,
    /// The members by what was told as committed.
    members: Members,
    ticks: u64,
    /// In which tick each other member was heard last.
    heard: BTreeMap<MemberId, u64>,
    cluster: ClusterId,
    incoming: Option<stream::ArrivingFile>,
    last_stream: u64,
    given: BTreeMap<MemberId, stream::Given>,
    /// The batch that swaps a stream's file in, and the file's base, until it is done.
    restoring: Option<(u64, Version)>,
}

/// The engine.
struct Engine(RawNode<LogView>);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raft = &self.0.raft;
        write!(f, "{:?} of term {} with {:?}", raft.state, raft.term, raft.store())
    }
}

impl Consensus {
    /// Starts with what is on disk.
    ///
    /// # Errors
    /// [`StartError`]: the member must not take part.
    pub fn new(config: Config, start: &Start) -> Result<Self, StartError> {
        check(&config, start)?;
        let Start { vote, base, records, terms, tail } = start;
        // The vote file may be behind: what was compacted or came as a file is committed.
        let commit = vote.commit.max(base.seq).0;
        let hard_state = HardState {
            term: vote.term.0,
            vote: vote.vote.map_or(0, MemberId::get),
            commit,
            ..HardState::default()
        };
        let view = LogView::new(hard_state, *base, records, terms, tail, config.tail_bytes_max);
        let members = view.members_at(commit).clone();
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let engine = RawNode::new(&engine_config(&config, commit), view, &log)
            .map_err(|error| StartError::Settings(error.to_string()))?;
        let mut machine = Consensus {
            engine: Engine(engine),
            now: Millis(0),
            unsynced: VecDeque::new(),
            proposed: VecDeque::new(),
            reads: BTreeMap::new(),
            last_read: 0,
            leads: None,
            reigns: false,
            follows: (vote.term.0, raft::INVALID_ID),
            transfer: None,
            yielded: Millis(0),
            campaign_at: None,
            handed_out: commit,
            noted: (vote.term.0, vote.vote.map_or(0, MemberId::get), vote.commit.0),
            noting: VecDeque::new(),
            durable_commit: commit,
            fetches: BTreeMap::new(),
            is_lost: false,
            is_removed: false,
            removal: None,
            settled: 0,
            members,
            ticks: 0,
            heard: BTreeMap::new(),
            cluster: vote.cluster,
            incoming: None,
            last_stream: 0,
            given: BTreeMap::new(),
            restoring: None,
            config,
        };
        machine.pin_election_timeout();
        Ok(machine)
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, now: Millis, event: Event, effects: &mut Vec<Effect>) {
        if self.is_lost || self.is_removed {
            return;
        }
        self.now = self.now.max(now);
        match event {
            Event::Tick => self.tick(effects),
            Event::Due => {}
            Event::Message { from, message } => self.hear(from, message, effects),
            Event::LinkDown(peer) => self.link_down(peer),
            Event::Propose(entries) => self.propose(entries, effects),
            Event::Read(read) => self.read(read, effects),
            Event::Persisted(through) => self.persisted(through.0, effects),
            Event::Fetched { from, entries } => self.fetched(from.0, &entries),
            Event::Transfer(to) => self.transfer(to, effects),
            Event::Change(change) => self.change(&change, effects),
            Event::Notice { from, cluster, seq, members } => {
                self.hear_notice((from, cluster), seq, &members, effects);
            }
            Event::Stream { from, message } => self.hear_stream(from, message, effects),
            Event::ChunkRead { to, base, offset, data, is_last } => {
                self.chunk_read((to, base, offset), data, is_last, effects);
            }
            Event::ChunkWritten(stream) => self.chunk_written(stream, effects),
            Event::StreamSynced(stream) => self.stream_synced(stream),
            Event::StreamFailed(stream) => self.stream_failed(stream),
            Event::Compacted(base) => self.compacted(base),
        }
        self.deadlines();
        self.settle(effects);
        if self.is_removed {
            self.leave(effects);
        }
    }

    /// When the machine wants a tick at the latest, beside the usual ones.
    pub fn deadline(&self) -> Option<Millis> {
        let transfer = self.transfer.as_ref().map(|transfer| transfer.until);
        self.campaign_at.into_iter().chain(transfer).min()
    }

    /// The term, and whether this member leads in it.
    pub fn term(&self) -> (Epoch, bool) {
        (Epoch(self.engine.0.raft.term), self.leads.is_some())
    }

    /// Who is believed to lead.
    pub fn leader(&self) -> Option<MemberId> {
        MemberId::new(self.engine.0.raft.leader_id)
    }

    /// The last seq of the log, on disk or on its way to it.
    pub fn last(&self) -> Seq {
        Seq(self.engine.0.store().last())
    }

    /// The last seq that was told as committed.
    pub fn committed(&self) -> Seq {
        Seq(self.handed_out)
    }

    /// The members, by what was told as committed.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What this member says to a machine that asks who the members are.
    pub fn notice(&self) -> JoinMessage {
        JoinMessage::Members { cluster: self.cluster, seq: self.committed(), members: self.members.clone() }
    }

    /// How far the other members are. None are told unless this one leads.
    pub fn progress(&self) -> Vec<MemberProgress> {
        let raft = &self.engine.0.raft;
        let others = self.members.iter().map(|(id, _)| id).filter(|id| *id != self.config.member);
        let told = others.filter(|_| self.is_leader()).filter_map(|member| {
            let progress = raft.prs().get(member.get())?;
            let gets_file = progress.state == ProgressState::Snapshot;
            let (has, is_live) = (Seq(progress.matched), self.is_live(member));
            Some(MemberProgress { member, has, is_live, gets_file })
        });
        told.collect()
    }

    /// How many bytes of entries are in memory.
    pub fn tail_bytes(&self) -> usize {
        self.engine.0.store().tail_bytes()
    }

    /// Through where this member's log may be compacted, when entries from `kept_from` on fit into the bound on what is kept for
    /// members that are behind. It is (0, 0) while a stream's file takes the place of the log: the log before it is not worth it.
    pub fn purgeable(&self, kept_from: Seq) -> Version {
        if self.restoring.is_some() {
            return Version::default();
        }
        let raft = &self.engine.0.raft;
        // A stream that is under way counts as what its receiver has.
        let has = |progress: &raft::Progress| match progress.state {
            ProgressState::Snapshot => progress.matched.max(progress.pending_snapshot),
            ProgressState::Probe | ProgressState::Replicate => progress.matched,
        };
        // The engine forgets each election timeout who is alive, until they answer again.
        let is_live =
            |id: u64| MemberId::new(id).is_some_and(|id| id != self.config.member && self.is_live(id));
        let live = raft.prs().iter().filter(|(id, _)| is_live(**id) && !planted!(LiveFollowerPurged));
        let mut have: Vec<Seq> = live.map(|(_, progress)| Seq(has(progress))).collect();
        if raft.state != StateRole::Leader {
            have = vec![Seq(0)];
        }
        let view = self.engine.0.store();
        let through = match purge_through(self.committed(), kept_from, have) {
            _ if planted!(PurgedTooFar) => self.last(),
            through => through.max(view.base().seq),
        };
        if view.members_at(through.0).is_empty() {
            // A file without the members would be of no use to anybody.
            return view.base();
        }
        view.term_at(through.0).map_or(view.base(), |term| Version::new(term, through.0))
    }

    fn compacted(&mut self, base: Version) {
        assert!(base.seq <= self.committed() || planted!(PurgedTooFar), "{base} is purged and not committed");
        if planted!(PurgedTooFar) && base.seq > self.committed() {
            // The log on disk alone has lost its end.
            return;
        }
        if base.seq < self.engine.0.store().base().seq {
            // A leader's file is about to take its place, and goes further.
            return;
        }
        self.engine.0.mut_store().compacted(base);
        self.durable_commit = self.durable_commit.max(base.seq.0);
        self.end_old_streams();
    }

    fn tick(&mut self, effects: &mut Vec<Effect>) {
        self.ticks += 1;
        // While a file is swapped in, the engine cannot say what it has applied, and must not campaign.
        if self.restoring.is_none() && !self.is_idle_as_removed() {
            self.engine.0.tick();
        }
        self.stream_ticks(effects);
        self.disk_stalls(effects);
        self.changes_go_on();
        self.say_who_is_settled(effects);
        self.ask_as_removed(effects);
    }

    fn is_leader(&self) -> bool {
        self.engine.0.raft.state == StateRole::Leader
    }

    /// Steps a message of a peer, unless it cannot be one.
    fn hear(&mut self, from: MemberId, message: PeerMessage, effects: &mut Vec<Effect>) {
        let mut message = message.0;
        if !self.is_heard(from, effects)
            || message.from != from.get()
            || message.to != self.config.member.get()
        {
            return;
        }
        if !PeerMessage::is_for_peers(&message) {
            return;
        }
        let last = self.engine.0.store().last();
        let is_current = message.term >= self.engine.0.raft.term;
        if message.msg_type == MessageType::MsgHeartbeat && is_current && message.commit > last {
            // The engine would panic: a leader tells each member no more than what that member has acknowledged.
            self.is_lost = true;
            effects.push(Effect::LogLost { last: Seq(last), committed: Seq(message.commit) });
            return;
        }
        if message.msg_type == MessageType::MsgTimeoutNow
            && (self.restoring.is_some() || self.removal.is_some())
        {
            return;
        }
        if message.msg_type == MessageType::MsgAppendResponse && !message.reject && message.index > last {
            return;
        }
        self.heard.insert(from, self.ticks);
        self.cut_changes(&mut message);
        // What the engine refuses is as good as lost.
        let _ = self.engine.0.step(message);
    }

    /// The end of the leader's connection is the best sign that it is dead: forget it, and campaign soon. By pre-vote, so that
    /// nobody is deposed whom the others still hear.
    fn link_down(&mut self, peer: MemberId) {
        let raft = &mut self.engine.0.raft;
        if raft.state == StateRole::Leader {
            self.engine.0.report_unreachable(peer.get());
        } else if raft.leader_id == peer.get() {
            raft.leader_id = raft::INVALID_ID;
            let others = self.members.voters().filter(|member| *member != peer);
            let rank = others.take_while(|member| *member != self.config.member).count() as u64;
            self.campaign_at = Some(self.now.plus(rank * self.config.rank_delay_ms));
        }
    }

    fn propose(&mut self, entries: Vec<(ProposalTag, bytes::Bytes)>, effects: &mut Vec<Effect>) {
        assert!(
            entries.iter().all(|(_, data)| !data.is_empty() && entry_type(data) == EntryType::EntryNormal),
            "entries without data and the record of the members are the machine's own"
        );
        if entries.is_empty() {
            return;
        }
        let tags: Vec<ProposalTag> = entries.iter().map(|(tag, _)| *tag).collect();
        // Only a leader steps it: the engine of any other member would forward it.
        let why = if !self.is_leader() {
            RefusedBecause::NotLeader
        } else if self.engine.0.raft.lead_transferee.is_some() {
            RefusedBecause::Transferring
        } else {
            let first = self.engine.0.raft.raft_log.last_index() + 1;
            let entries: Vec<Entry> =
                entries.into_iter().map(|(_, data)| Entry { data, ..Entry::default() }).collect();
            let proposal = Message {
                msg_type: MessageType::MsgPropose,
                from: self.config.member.get(),
                entries: entries.into(),
                ..Message::default()
            };
            if self.engine.0.raft.step(proposal).is_ok() {
                self.proposed.extend((first..).zip(tags));
                return;
            }
            RefusedBecause::Full
        };
        effects.push(Effect::Refused { tags, why });
    }

    fn read(&mut self, read: ReadTag, effects: &mut Vec<Effect>) {
        if planted!(ReadBeforeFirstEntry) && self.is_leader() && !self.reigns {
            effects.push(Effect::ReadConfirmed { read, through: Seq(self.handed_out) });
            return;
        }
        if planted!(ReadAnsweredEarly) && self.reigns {
            effects.push(Effect::ReadConfirmed { read, through: Seq(self.handed_out) });
            return;
        }
        // Before its first entry is told, the engine would drop it without a word.
        if !self.is_leader() || !self.reigns || self.reads.len() >= self.config.reads_max {
            effects.push(Effect::ReadRefused(read));
            return;
        }
        self.last_read += 1;
        self.reads.insert(self.last_read, read);
        self.engine.0.read_index(self.last_read.to_le_bytes().to_vec());
    }

    fn fetched(&mut self, from: u64, entries: &[LogEntry]) {
        let Some(context) = self.fetches.remove(&from) else { return };
        self.engine.0.mut_store().fetched(from, entries);
        if !entries.is_empty() {
            self.engine.0.on_entries_fetched(context);
        }
        self.engine.0.mut_store().forget_fetched();
    }

    /// Takes in that the disk has everything through this batch, and lets out what rests on it.
    fn persisted(&mut self, through: u64, effects: &mut Vec<Effect>) {
        let mut last = None;
        while let Some(first) = self.unsynced.front() {
            // What has nothing for the disk rests on the batches before it alone.
            if first.number > through && first.is_batch {
                break;
            }
            let Some(done) = self.unsynced.pop_front() else { break };
            last = Some(done.number);
            while let Some((_, commit)) = self.noting.front().filter(|(batch, _)| *batch <= done.number) {
                self.durable_commit = self.durable_commit.max(*commit);
                self.noting.pop_front();
            }
            effects.extend(done.messages.into_iter().filter_map(|message| self.outgoing(message)));
        }
        if let Some(number) = last {
            self.engine.0.on_persist_ready(number);
            if let Some((_, base)) = self.restoring.take_if(|(batch, _)| *batch <= number) {
                self.engine.0.advance_apply();
                self.handed_out = base.seq.0;
                self.durable_commit = self.durable_commit.max(base.seq.0);
                if !planted!(RestoredBeforeSwap) {
                    self.restored(base, effects);
                }
            }
        }
    }

    fn deadlines(&mut self) {
        let raft = &mut self.engine.0.raft;
        if raft.leader_id != raft::INVALID_ID || raft.state != StateRole::Follower {
            self.campaign_at = None;
        }
        let is_due = self.campaign_at.is_some_and(|at| at <= self.now);
        let may = self.restoring.is_none() && self.removal.is_none() && self.engine.0.raft.promotable();
        if is_due && may {
            self.campaign_at = None;
            // It is refused while a change of members is not taken in; the next timeout tries again.
            let _ = self.engine.0.campaign();
        }
    }

    /// Does what follows from a step.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        self.depose(effects);
        while self.engine.0.has_ready() {
            let ready = self.engine.0.ready();
            self.take_ready(ready, effects);
        }
        // It may have been removed by what is committed.
        self.depose(effects);
        self.settle_streams(effects);
        self.pin_election_timeout();
        self.say_who_leads(effects);
        self.settle_transfer(effects);
        self.engine.0.mut_store().evict_through(self.handed_out);
        let wishes = self.engine.0.mut_store().take_wishes();
        for Wish { from, through, bytes_max, context } in wishes {
            self.fetches.insert(from, context);
            effects.push(Effect::Fetch { from: Seq(from), through: Seq(through), bytes_max });
        }
    }

    /// Ends the reign, if it has ended.
    fn depose(&mut self, effects: &mut Vec<Effect>) {
        let raft = &self.engine.0.raft;
        let leads = (raft.state == StateRole::Leader).then_some(raft.term);
        if self.leads == leads {
            return;
        }
        if self.leads.is_some() {
            let tags: Vec<ProposalTag> = self.proposed.drain(..).map(|(_, tag)| tag).collect();
            if planted!(DeposedSaidRefused) {
                effects.push(Effect::Refused { tags, why: RefusedBecause::NotLeader });
                effects.push(Effect::Deposed { tags: Vec::new() });
            } else {
                effects.push(Effect::Deposed { tags });
            }
            let reads = std::mem::take(&mut self.reads);
            effects.extend(reads.into_values().map(Effect::ReadRefused));
            self.fetches.clear();
            self.engine.0.mut_store().forget_wishes();
        }
        self.leads = leads;
        self.reigns = false;
        if let Some(term) = leads {
            self.follows = (term, self.config.member.get());
            effects.push(Effect::Elected(Epoch(term)));
        }
    }

    fn say_who_leads(&mut self, effects: &mut Vec<Effect>) {
        let raft = &self.engine.0.raft;
        let follows = (raft.term, raft.leader_id);
        if self.leads.is_none() && self.follows != follows {
            effects.push(Effect::Follows { term: Epoch(follows.0), leader: MemberId::new(follows.1) });
        }
        self.follows = follows;
    }

    fn take_ready(&mut self, mut ready: Ready, effects: &mut Vec<Effect>) {
        let number = ready.number();
        // The engine itself decides what need not wait for the disk: a leader's appends.
        for message in ready.take_messages() {
            if message.msg_type == MessageType::MsgSnapshot {
                self.offer(&message, effects);
            } else {
                effects.extend(self.outgoing(message));
            }
        }
        let mut messages = ready.take_persisted_messages();
        if planted!(MessagesBeforeSync) {
            effects.extend(std::mem::take(&mut messages).into_iter().filter_map(|it| self.outgoing(it)));
        }
        let read_states = ready.take_read_states();
        let committed = ready.take_committed_entries();
        let commit = committed.last().map_or(self.handed_out, |entry| entry.index);
        let batch = self.batch(&mut ready, commit);
        self.engine.0.advance_append_async(ready);
        let is_batch = batch.is_some();
        effects.extend(batch.map(Effect::Persist));
        // That this member follows the leader's term is on disk: who answers a heartbeat waits for no entries, or a disk that is slow
        // for a while would cost the leader its majority. After a longer while it does: each answer lets the leader send more.
        let stalled_since = self.unsynced.front().map_or(self.now, |oldest| oldest.since);
        let is_slow = self.now.since(stalled_since) > self.config.disk_stall_max_ms;
        if self.noting.is_empty() && !is_slow {
            let is_sign = |message: &mut Message| message.msg_type == MessageType::MsgHeartbeatResponse;
            let signs: Vec<Message> = messages.extract_if(.., is_sign).collect();
            effects.extend(signs.into_iter().filter_map(|message| self.outgoing(message)));
        }
        if let Some((_, base)) =
            self.restoring.filter(|(batch, _)| planted!(RestoredBeforeSwap) && *batch == number)
        {
            self.restored(base, effects);
        }
        self.unsynced.push_back(Unsynced { number, is_batch, since: self.now, messages });
        self.tell_committed(committed, effects);
        for state in read_states {
            let context = state.request_ctx.first_chunk::<8>().map(|context| u64::from_le_bytes(*context));
            if let Some(read) = context.and_then(|number| self.reads.remove(&number)) {
                // What is committed by the others alone, and not on this disk yet, nobody was told.
                let through = Seq(state.index.min(self.handed_out));
                effects.push(Effect::ReadConfirmed { read, through });
            }
        }
        if self.restoring.is_none() {
            self.engine.0.advance_apply();
        }
        if planted!(AckBeforeSync) {
            self.persisted(number, effects);
        }
        // What nothing is in front of may leave.
        self.persisted(0, effects);
    }

    /// What is let out: messages that have a form. The engine makes no others for a peer here. Answers say through where the
    /// disk knows the log to be committed. Who has heard of its removal meanwhile asks for no votes.
    fn outgoing(&self, mut message: Message) -> Option<Effect> {
        let asks = [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote];
        if self.removal.is_some() && asks.contains(&message.msg_type) {
            return None;
        }
        if matches!(message.msg_type, MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse) {
            message.commit = self.durable_commit;
        }
        PeerMessage::is_for_peers(&message).then_some(Effect::Send(PeerMessage(message)))
    }

    /// What the disk has to do, if anything; the view has it from now on. Through `commit` it has what is committed.
    fn batch(&mut self, ready: &mut Ready, commit: u64) -> Option<LogBatch> {
        let install = self.install(ready);
        let entries = ready.take_entries();
        let (term, voted, noted) = self.noted;
        let state = self.engine.0.raft.hard_state();
        let is_far = commit >= noted.saturating_add(self.config.commit_noted_entries);
        let mut vote = None;
        // The log has at most one change of the members that the vote file does not know to be committed: so a start has members that are
        // at most one change old. It is noted at once, as one that was removed waits for it, and a member alone may have nothing else
        // to write.
        let is_change = |entry: &Entry| entry.entry_type == EntryType::EntryConfChangeV2;
        let view = self.engine.0.store();
        let is_unnoted = view.members_since(commit) > noted.max(view.base().seq.0);
        let has_change = (entries.iter().any(is_change) || is_unnoted) && !planted!(ChangeNotNoted);
        if (state.term, state.vote) != (term, voted) || (is_far && !entries.is_empty()) || has_change {
            let commit = if planted!(CommitNotedEarly) { state.commit } else { commit };
            self.noted = (state.term, state.vote, commit);
            vote = Some((Epoch(state.term), MemberId::new(state.vote), Seq(commit)));
        }
        if vote.is_none() && install.is_none() && entries.is_empty() {
            return None;
        }
        let view = self.engine.0.mut_store();
        let cut_after = entries.first().and_then(|first| {
            (first.index <= view.last()).then(|| {
                assert!(first.index > commit, "what is committed is never cut");
                view.cut_after(first.index - 1);
                Seq(first.index - 1)
            })
        });
        view.append(&entries);
        if planted!(TermNotKept) {
            vote = None;
        }
        if planted!(VoteNotKept) {
            vote = vote.map(|(term, _, commit)| (term, None, commit));
        }
        let cut_after = cut_after.filter(|_| !planted!(NotCut));
        self.noting.extend(vote.map(|(_, _, commit)| (ready.number(), commit.0)));
        let entries = entries.iter().map(LogEntry::of).collect();
        Some(LogBatch { number: BatchNumber(ready.number()), vote, install, cut_after, entries })
    }

    /// The stream's file takes the place of the log, if the engine has taken it.
    fn install(&mut self, ready: &Ready) -> Option<(StreamNumber, Version)> {
        if ready.snapshot().is_empty() {
            return None;
        }
        let metadata = ready.snapshot().get_metadata();
        let base = Version::new(metadata.term, metadata.index);
        let stream = self.incoming.take().expect("the engine hears only of files that are whole");
        self.engine.0.mut_store().restore(base, stream.members, stream.members_since);
        self.fetches.clear();
        self.restoring = Some((ready.number(), base));
        Some((stream.number, base))
    }

    fn tell_committed(&mut self, committed: Vec<Entry>, effects: &mut Vec<Effect>) {
        let Some(last) = committed.last() else { return };
        assert_eq!(committed[0].index, self.handed_out + 1, "what is committed has a gap");
        self.handed_out = last.index;
        let mut begins = None;
        let mut told = Vec::with_capacity(committed.len());
        for entry in &committed {
            let is_own = self.proposed.front().is_some_and(|(index, _)| *index == entry.index);
            let tag = if is_own { self.proposed.pop_front().map(|(_, tag)| tag) } else { None };
            if self.leads == Some(entry.term) && !self.reigns {
                self.reigns = true;
                begins = Some(Version::new(entry.term, entry.index));
            }
            told.push(CommittedEntry { entry: LogEntry::of(entry), tag });
        }
        effects.push(Effect::Committed(told));
        effects.extend(begins.map(Effect::Reigns));
        let changes = committed.iter().filter(|entry| entry.entry_type == EntryType::EntryConfChangeV2);
        for entry in changes {
            let members = self.engine.0.store().members_at(entry.index).clone();
            self.take_members(Version::new(entry.term, entry.index), members, effects);
        }
    }

    /// The engine draws election timeouts from the system's randomness when a role or term begins. This one is drawn from the
    /// seed instead, before a tick looks at it.
    fn pin_election_timeout(&mut self) {
        let raft = &mut self.engine.0.raft;
        let span = self.config.election_ticks as u64;
        let role = raft.state as u64;
        let drawn =
            mixed(self.config.seed ^ mixed(self.config.member.get() ^ mixed(raft.term ^ (role << 56))));
        raft.set_randomized_election_timeout(self.config.election_ticks + (drawn % span) as usize);
    }
}

fn engine_config(config: &Config, applied: u64) -> raft::Config {
    raft::Config {
        id: config.member.get(),
        election_tick: config.election_ticks,
        min_election_tick: config.election_ticks,
        max_election_tick: 2 * config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        max_size_per_msg: config.message_bytes_max,
        max_inflight_msgs: config.messages_in_flight_max,
        check_quorum: true,
        pre_vote: true,
        max_uncommitted_size: config.uncommitted_bytes_max,
        max_committed_size_per_ready: config.committed_bytes_max,
        // A lease would count ticks, and a leader that was stopped believes in its own.
        read_only_option: if planted!(LeaseRead) { ReadOnlyOption::LeaseBased } else { ReadOnlyOption::Safe },
        ..raft::Config::default()
    }
}

/// Whether what is on disk hangs together.
fn check(config: &Config, start: &Start) -> Result<(), StartError> {
    let Start { vote, base, records, terms, tail } = start;
    if vote.member != config.member {
        return Err(StartError::OtherMember { found: vote.member, expected: config.member });
    }
    let last = tail.last().map_or(*base, |entry| entry.version);
    if last.epoch > vote.term {
        return Err(StartError::VoteBehindLog { log: last.epoch, vote: vote.term });
    }
    if last.seq < vote.commit {
        return Err(StartError::LogShort { last: last.seq, commit: vote.commit });
    }
    let commit = vote.commit.max(base.seq);
    let after_base = Seq(base.seq.0 + 1);
    let has_last = terms.last().map_or(base.epoch, |first| first.epoch) == last.epoch;
    let begins = terms.first().is_none_or(|first| first.seq == after_base || first.epoch > base.epoch);
    let tail_begins = tail.first().map_or(after_base, |entry| entry.version.seq);
    if !has_last || !begins || tail_begins > commit.next() || tail_begins < after_base {
        return Err(StartError::Gap(tail_begins));
    }
    let is_bad = |entry: &&LogEntry| Members::is_record(&entry.data) && Members::parse(&entry.data).is_none();
    if let Some(entry) = tail.iter().find(is_bad) {
        return Err(StartError::Members(entry.version.seq));
    }
    for pair in records.windows(2) {
        if pair[0].0 >= pair[1].0 {
            return Err(StartError::Gap(pair[1].0));
        }
    }
    for pair in terms.windows(2) {
        if pair[0].epoch >= pair[1].epoch || pair[0].seq >= pair[1].seq {
            return Err(StartError::Gap(pair[1].seq));
        }
    }
    for pair in tail.windows(2) {
        if pair[0].version.seq.next() != pair[1].version.seq || pair[0].version.epoch > pair[1].version.epoch
        {
            return Err(StartError::Gap(pair[1].version.seq));
        }
    }
    Ok(())
}

/// SplitMix64's finish: spreads the bits of a number.
fn mixed(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
