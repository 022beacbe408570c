//! The port between a master and its log: what a master asks of it, and what it hears.
//!
//! Owns the words that both sides use, and no rule. A master holds one [`Journal`], asks it by [`LogRequest`]s, and hears
//! [`LogEvent`]s in its mailbox. It knows neither what its log is made of nor how many other masters have a part in it.
//! Both enums are closed: a new word fails to compile wherever it must be understood.
//!
//! | a master | the log as one file ([`shared_file`]) | a log replicated by Raft |
//! |---|---|---|
//! | follows: [`LogEvent::Replayed`], [`LogEvent::Sighted`] | reads the file as it grows, and proves that another file at its path continues what was replayed | hands out the entries of its own log once they are committed; the sight never changes |
//! | [`LogRequest::Queue`], [`LogEvent::Won`] | waits for the lock file's lock; holds it | may campaign; has won an election, whose term is known and whose first entry is not committed yet |
//! | suspects: [`LogEvent::Looked`], [`LogRequest::Oust`] | the holder's beat stands still: it is killed, once it is certain who it is | the elections do that by themselves; it looks as if the leader made progress |
//! | [`LogRequest::Open`] | locks the inode, cuts what is torn, writes again and syncs what is not known to be on disk, replays the rest | replays its own log to the end |
//! | [`LogRequest::Begin`] | appends and syncs an EPOCH record | the entry that a leader appends first is committed: its term is the epoch, and the reign's identity follows from it |
//! | [`LogRequest::Confirm`] | never asked: who holds the lock leads | one round of messages, for all that was asked of a turn |
//! | [`LogRequest::Append`] | one group, one write, one sync | one proposal, the own sync beside the replication |
//! | written | the file has it, on disk under `--fsync always` | a majority has it on disk, this machine among them |
//! | [`LogRequest::Read`] | the file that is locked, at a place | this machine's own log: a place is local, and what is written is here |
//! | [`LogRequest::Weigh`] | the file is written anew without what is superseded, and exchanged | a snapshot of this machine's own log |
//! | [`LogRequest::ChangeMembers`] | refused | one change after the other, each step a record |
//! | [`LogRequest::Sync`] | a sync beside the writes | the follower that is to lead next has all but the last moment |
//! | [`LogRequest::Close`] | all is synced and marked, the inode is unlocked | leadership goes to the follower that is named |
//! | [`LogEvent::Deposed`] | another file stands at the path: no restart would find what is written | never |
//! | [`LogEvent::Lost`] | never | a higher term is seen, or no majority is heard |
//! | [`LogEvent::Failed`] | a write or sync failed: nothing is known of what was in flight | the same of this machine's log |
//!
//! **Order.** What is asked is done in the order in which it is asked, and answers of one kind come in the order of their
//! questions. A write that is answered as written is in what each later leader replays, and so is all that was appended
//! before it; a refused one is in nobody's log, unless its word is *unknown*. After [`LogEvent::Deposed`] nothing is
//! written any more, and [`LogEvent::Abandoned`] comes after the last refusal.
//!
//! **Invariant:** the request path pays one message a turn, whatever is in it, and nothing for each record.
//! `actors/tests/journal/` holds every implementation to this contract.

mod copying;
#[cfg(feature = "testing")]
pub mod memory;
pub(crate) mod mending;
mod pieces;
pub mod raft;
pub mod shared_file;

pub use dsm_protocol::ids::LogId;
pub use dsm_protocol::machine::log_scan::Replay;
pub use raft::RaftMembers;

use crate::config::{ConfigError, MasterConfig};
use crate::env::Env;
use crate::node_error::NodeError;
use crate::supervision::Fate;
use crate::turns::TurnLengths;
use actix::prelude::*;
use bytes::Bytes;
use dsm_protocol::command::{ErrorWord, MembersOrder};
use dsm_protocol::ids::{ClusterId, Epoch, Reign, ReignId, Seq, UnixMillis, Version};
use dsm_protocol::info::MemberInfo;
use dsm_protocol::machine::master::{Asker, Change, WriteId};
use dsm_protocol::machine::reign::may_begin::Lack;
use dsm_protocol::machine::reign::LeaderSeen;
use dsm_protocol::record::{FileNumber, Place, Position};
use dsm_protocol::secret::Secret;
use dsm_protocol::stored_key::StoredKey;
use dsm_protocol::witness_file::WitnessText;
use raft::HeardLink;
use smallvec::SmallVec;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::oneshot;

/// What masters call a log of which each has a file of its own.
const RAFT_IDENTITY: &str = "one log on several machines (--members)";

/// Makes a master's log, which tells it what happens and counts its turns among the master's.
pub(crate) type MakesJournal = Box<dyn FnOnce(Recipient<LogEvent>, Rc<TurnLengths>) -> Box<dyn Journal>>;

/// What makes the log of a master.
pub(crate) struct Seat<'a> {
    pub(crate) env: &'a Env,
    pub(crate) config: &'a MasterConfig,
    /// The address at which others reach the master.
    pub(crate) address: &'a str,
    /// The longest line, in bytes.
    pub(crate) line_bytes_max: usize,
    /// What nodes prove to each other.
    pub(crate) secret: Option<Secret>,
    pub(crate) fate: &'a Fate,
}

/// What a master's log is made of.
#[derive(Clone, Default)]
pub enum JournalKind {
    /// One file that the masters of one machine share, at the path of the settings.
    #[default]
    SharedFile,
    /// One file for each master, which Raft keeps equal.
    Raft(RaftMembers),
    /// A log in memory.
    #[cfg(feature = "testing")]
    Memory(memory::MemoryLog),
}

impl JournalKind {
    /// The kind that the settings ask for.
    pub fn of(config: &MasterConfig) -> Self {
        if config.members.is_empty() {
            JournalKind::SharedFile
        } else {
            JournalKind::Raft(RaftMembers::default())
        }
    }

    /// A link by which another member of a log on several machines is heard that is reached at `address`; `None` when this is none.
    pub(crate) fn heard_member(&self, address: &str) -> Option<HeardLink> {
        match self {
            JournalKind::Raft(members) => members.heard(address),
            JournalKind::SharedFile => None,
            #[cfg(feature = "testing")]
            JournalKind::Memory(_) => None,
        }
    }

    /// How many other masters may have a part in such a log; `None` when any number may.
    fn peers_max(&self) -> Option<usize> {
        match self {
            JournalKind::SharedFile => Some(shared_file::PEERS_MAX),
            JournalKind::Raft(_) => None,
            #[cfg(feature = "testing")]
            JournalKind::Memory(_) => None,
        }
    }

    /// Checks that so many other masters may have a part in the log.
    ///
    /// # Errors
    /// [`ConfigError::TooManyPeers`].
    pub(crate) fn check_peers(&self, named: usize) -> Result<(), ConfigError> {
        match self.peers_max() {
            Some(max) if named > max => Err(ConfigError::TooManyPeers { named, max }),
            Some(_) | None => Ok(()),
        }
    }

    /// Finds out early whether the log can be used at all, so that a wrong setting is one clear line at the start.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) async fn check(&self, env: &Env, config: &MasterConfig) -> Result<(), NodeError> {
        match self {
            JournalKind::SharedFile => shared_file::check(env, config).await,
            // What is wrong with its files is found when they are opened, and ends the node.
            JournalKind::Raft(_) => Ok(()),
            #[cfg(feature = "testing")]
            JournalKind::Memory(_) => Ok(()),
        }
    }

    /// What all masters that have a part in one log name alike, and no others: two that name different things must not both
    /// serve.
    ///
    /// # Errors
    /// What the system says. It may pass.
    pub(crate) async fn identity(&self, env: &Env, config: &MasterConfig) -> io::Result<String> {
        match self {
            JournalKind::SharedFile => shared_file::identity(env, config).await,
            // The cluster's name says the rest, once there is one.
            JournalKind::Raft(_) => Ok(RAFT_IDENTITY.to_owned()),
            #[cfg(feature = "testing")]
            JournalKind::Memory(log) => Ok(log.identity()),
        }
    }

    /// Gives what makes the log of a master.
    pub(crate) fn of_master(&self, seat: &Seat<'_>) -> MakesJournal {
        match self {
            JournalKind::SharedFile => {
                let Seat { env, config, address, line_bytes_max, fate, .. } = seat;
                shared_file::of_master(env, config, (address, *line_bytes_max), fate)
            }
            JournalKind::Raft(members) => members.of_master(seat),
            #[cfg(feature = "testing")]
            JournalKind::Memory(log) => {
                let (log, address) = (log.clone(), seat.address.to_owned());
                Box::new(move |events, _| Box::new(log.join(&address, events)))
            }
        }
    }
}

/// A master's log. With its drop everything of it is given back, leadership included.
pub trait Journal {
    /// Takes a request. What it leads to is told by [`LogEvent`]s.
    fn ask(&mut self, request: LogRequest);

    /// Says that this master makes progress: one that leads and says nothing for long loses its leadership. Cheap.
    fn advance(&self);

    /// Whether it may be that another master leads and this one does not know it: then answers wait for
    /// [`LogRequest::Confirm`].
    fn confirms(&self) -> bool;

    /// What a master says of its log to people, in one line: only the journal knows what the log is made of, and how that is
    /// mended.
    fn words(&self, wording: Wording<'_>) -> String;
}

/// What is to be said of a log.
#[derive(Clone, Copy, Debug)]
pub enum Wording<'a> {
    /// Where the log is, for INFO.
    Place,
    /// Which log this is and how another master comes to use it too, for one that uses another: the end of a sentence.
    HowToShare,
    /// This master leads: the beginning of a sentence.
    Won,
    /// Another log is there, and is read.
    AnotherLog,
    /// What keeps a master that leads from serving, for INFO.
    WaitsFor(Hindrance<'a>),
    /// The same as a sentence of the master's log, and how to go on.
    DoesNotServe(Hindrance<'a>),
}

/// What keeps a master that leads from serving.
#[derive(Clone, Copy, Debug)]
pub enum Hindrance<'a> {
    /// What is seen of the log does not continue what was replayed.
    Barred {
        /// What is seen.
        sight: &'a Sight,
        /// The seq through which the log was replayed.
        seq: Seq,
    },
    /// The log lacks what others know of.
    Lacks(&'a Lack),
}

/// What a master asks of its log.
#[derive(Debug)]
pub enum LogRequest {
    /// Look who leads, now and from now on, until this master does or leaves the queue. Told by [`LogEvent::Looked`].
    Watch,
    /// Queue for the leadership. Told by [`LogEvent::Won`].
    Queue,
    /// Make sure that whoever leads and makes no progress runs no more.
    Oust {
        /// How far his counter had come: one whose counter has moved since is spared. `None`: it has not begun to count.
        beat: Option<u64>,
    },
    /// Want no leadership any more, for good, and look no more who has it.
    LeaveQueue,
    /// Give the leadership to whoever wants it, and everything that is held of the log.
    GiveUp,
    /// Say who leads, in words. Answered by [`LogEvent::Leader`].
    WhoLeads,

    /// Follow the log from where it was closed.
    Follow,
    /// Forget what was replayed, and follow what is there from its start.
    FollowAnew,
    /// Say what is seen of the log that is followed. Answered by [`LogEvent::Sighted`].
    Look,
    /// Follow no more. Answered by [`LogEvent::Halted`].
    Halt,

    /// With the leadership, and while nothing is followed: make the log whole and replay the rest of it. Answered by
    /// [`LogEvent::Opened`].
    Open {
        /// Whether an empty log is made if there is none.
        makes: bool,
    },
    /// Let go of the opened log, but not of the leadership: it is not the right one, and another may be put in its place.
    PutAside,
    /// Say which log is there by now. Answered by [`LogEvent::Found`].
    Find,
    /// Keep this beside the log, for the next [`LogEvent::Opened`] to tell.
    Note(WitnessText),
    /// After [`LogEvent::Opened`]: begin a reign. Answered by [`LogEvent::Begun`].
    Begin {
        /// Its epoch is this one, or a higher one where the log itself counts them.
        epoch: Epoch,
        /// Reigns whose loss is accepted with it.
        given_up: Vec<Reign>,
        /// What time it is, which is to be found in the log.
        time: UnixMillis,
    },
    /// Let others know who leads.
    Declare {
        /// Whether requests are served, so that others may miss this reign if it is lost.
        serves: bool,
    },

    /// Say whether this master leads, by word of a majority of those that have a part in the log, which are asked after this.
    /// Needed where [`Journal::confirms`]. Answered by [`LogEvent::Confirmed`].
    Confirm {
        /// A number for it. Later ones are higher.
        round: u64,
    },
    /// Append these writes, in this order. Answered by [`LogEvent::Written`].
    Append {
        /// The writes and what they change.
        changes: Vec<NewRecord>,
    },
    /// Read a value that is written.
    Read {
        /// Where the value stands, as the log has told.
        place: Place,
        /// The version that it has there.
        version: Version,
        /// Where to give it. Not through the mailbox: many may be read in one turn.
        answer: ValueAnswer,
    },
    /// Hear how long a log of nothing but the latest versions would be, about: a log that has much beside them is compacted,
    /// while it is written and read. Asked now and then in a reign.
    Weigh {
        /// How long it is, in bytes.
        log_bytes: u64,
        /// How long it would be, in bytes.
        live_bytes: u64,
    },
    /// Change who keeps the log, where masters on several machines do. Answered by [`LogEvent::MembersChanged`].
    ChangeMembers {
        /// What is to be changed.
        order: MembersOrder,
        /// Who wants it, for the answer.
        asker: Asker,
    },
    /// Bring to the disk what is written so far, while records are appended: what [`LogRequest::Close`] finds is little
    /// then. Answered by [`LogEvent::Synced`], once for all that ask before it begins.
    Sync,
    /// Bring everything to the disk and let the log go: nothing is appended after this, unless [`LogRequest::Reopen`] takes
    /// it back. Answered by [`LogEvent::Closed`]. The leadership is kept.
    Close {
        /// The address of the master that is to lead next; `None` when it does not matter.
        to: Option<String>,
    },
    /// Take [`LogRequest::Close`] back. Answered by [`LogEvent::Reopened`], unless [`LogEvent::Closed`] was told first.
    Reopen,
    /// After [`LogEvent::Deposed`]: say when all that was asked for is refused, by [`LogEvent::Abandoned`].
    Abandon,
}

/// What a master hears of its log.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub enum LogEvent {
    /// Who leads, as far as it was looked at. At least every 50 ms while that is wanted.
    Looked(LeaderSeen),
    /// This master may lead, and nobody else until it gives that up or is deposed.
    Won {
        /// Whose log it is, by what the last leader has declared.
        cluster: Option<ClusterId>,
        /// The epoch that he has declared.
        epoch: Option<Epoch>,
    },
    /// Who leads, in words; `None` when nobody does.
    Leader(Option<String>),

    /// What keeps this master from having a part in the log, in words; `None` when nothing does any more.
    KeptOut(Option<String>),
    /// Who keeps the log, and what changes of that: told when there is something new, not more often than each 100 ms.
    Members {
        /// Each of them.
        members: Vec<MemberInfo>,
        /// See `members_change` in `docs/FORMATS.md`.
        change: String,
    },
    /// What became of [`LogRequest::ChangeMembers`]: it has begun for good, or the word and the reason why not.
    MembersChanged {
        /// Who wanted it.
        asker: Asker,
        /// What became of it.
        result: Result<(), (ErrorWord, String)>,
    },
    /// A part of the log. It is answered when the part is taken in, so that at most one is under way.
    Replayed(ReplayPart),
    /// What is seen of the log that is followed, when that changes or somebody has asked.
    Sighted(Sight),
    /// Nothing more is replayed, and all that was is taken in.
    Halted,

    /// The log is whole, and all of it is replayed.
    Opened {
        /// It and its end; `None` when there is none.
        log: Option<(LogId, Position)>,
        /// What was noted beside it.
        noted: WitnessText,
    },
    /// Which log is there, and how many bytes it has.
    Found(Option<(LogId, u64)>),
    /// The reign has begun: its first record is where no crash takes it away.
    Begun {
        /// Whose log it is. Chosen now, in a new log.
        cluster: ClusterId,
        /// The version of its record.
        version: Version,
        /// The identity of the new reign.
        id: ReignId,
        /// The length of the log, in bytes.
        bytes: u64,
    },

    /// Whether this master led when it asked so, in an answer to [`LogRequest::Confirm`].
    Confirmed {
        /// The number of that, and of all before it that have no answer.
        round: u64,
        /// Whether it did, as far as others know.
        leads: bool,
    },
    /// Writes are in the log, or refused.
    Written(Written),
    /// Answer once all records through this seq are taken in, if they are not.
    Settle {
        /// The seq.
        through: Seq,
        /// Gets the answer.
        answer: oneshot::Sender<()>,
    },
    /// Answer which of these are the latest versions.
    WhichLive {
        /// Keys and versions.
        keys: Vec<(StoredKey, Version)>,
        /// Gets the answers, in the order of the keys.
        answer: oneshot::Sender<Vec<bool>>,
    },
    /// The values of these versions stand in other places now; those of others, which are superseded, do not matter.
    /// It is answered when it is taken in.
    Relocated(Vec<Replay>),
    /// Answer once no read asks for a value in this file any more.
    Unread {
        /// The number of the file.
        file: FileNumber,
        /// Gets the answer.
        answer: oneshot::Sender<()>,
    },
    /// The log was compacted: it is another one to those who name it, and has so many bytes.
    Replaced {
        /// Which log it is.
        log: LogId,
        /// Its length in bytes.
        bytes: u64,
    },
    /// How a compaction goes.
    Compaction(CompactionNews),
    /// What was written when [`LogRequest::Sync`] was asked is on disk.
    Synced,
    /// Everything is on disk, and nothing is appended any more.
    Closed {
        /// Which log it is.
        log: LogId,
        /// The place after its last record.
        end: Position,
    },
    /// The log is still this master's.
    Reopened,
    /// This master leads no more, without having been asked. What it appends is refused. The node ends once
    /// [`LogEvent::Abandoned`] has come.
    Deposed(NodeError),
    /// This master leads no more, without having been asked, and may follow whoever does, after [`LogRequest::Close`]. What it
    /// appends is refused. What it has asked for before it hears this, and what is not answered, has no answer.
    Lost,
    /// Everything that was asked for before [`LogRequest::Abandon`] is answered.
    Abandoned,
    /// Nothing is known of what was in flight, and nothing more is told of it: the node must end.
    Failed(NodeError),
}

/// What is told of a compaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompactionNews {
    /// So much of the log is gone through.
    Copying {
        /// The bytes that are, of the log that is there.
        bytes: u64,
        /// All that are to be.
        of: u64,
    },
    /// Whether writes wait for it, as the log grows faster than it is copied.
    Paces(bool),
    /// The log is compacted.
    Done {
        /// How long that took, in milliseconds.
        took_ms: u64,
        /// How long writes waited for the exchange, in microseconds.
        held_us: u64,
    },
    /// Nothing has come of it, and the log is as it was.
    Failed(String),
    /// It was given up for something else.
    GivenUp,
    /// The disk has no room for it.
    NoRoom {
        /// How many bytes it takes.
        needed_bytes: u64,
        /// How many there are.
        free_bytes: u64,
    },
}

/// A part of a log.
#[derive(Debug)]
pub struct ReplayPart {
    /// Whether what was replayed before is to be forgotten first.
    pub from_start: bool,
    /// What it does to the directory, in the order of the log.
    pub changes: Vec<Replay>,
    /// How many changes more come after it, about; 0 where that is not known.
    pub more: usize,
    /// The place after it.
    pub end: Position,
    /// The last place before that through which the log is known to be on disk.
    pub durable: Position,
    /// Which log it is.
    pub log: Option<LogId>,
    /// Whether nothing comes after it for now.
    pub caught_up: bool,
}

/// What a master that follows the log sees of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// What is there continues what was replayed.
    Follows,
    /// Nothing is there, in words.
    Gone(String),
    /// Something is there in which what was replayed is not found.
    Other(String),
    /// What is there ends in front of what was replayed.
    Short(String),
}

impl Sight {
    /// The word for it in INFO.
    pub fn word(&self) -> &'static str {
        match self {
            Sight::Follows => "follows",
            Sight::Gone(_) => "gone",
            Sight::Other(_) => "other",
            Sight::Short(_) => "short",
        }
    }
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sight::Follows => f.write_str("it continues what was replayed"),
            Sight::Gone(what) | Sight::Other(what) | Sight::Short(what) => f.write_str(what),
        }
    }
}

/// A record that is to be appended.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// The write that it is of.
    pub write: WriteId,
    /// What it changes.
    pub change: Arc<Change>,
    /// When its values expire, if they do.
    pub expires: Option<UnixMillis>,
    /// If it was decided by an earlier record that was not written yet: how many refusals of this reign were known then. It
    /// is refused if there were more.
    pub after: Option<u64>,
}

impl NewRecord {
    /// Whether it is to be refused after so many refusals.
    pub(crate) fn is_stale(&self, refusals: u64) -> bool {
        self.after.is_some_and(|known| known < refusals)
    }
}

/// Why a log that is one file has no members.
pub(crate) fn no_members() -> (ErrorWord, String) {
    (ErrorWord::Bad, "the log of these masters is one file: it has no members (--members)".to_owned())
}

/// Why such a record is refused.
pub(crate) fn rests_on_refused() -> (ErrorWord, String) {
    (ErrorWord::Busy, "the write before this one, on which it rests, was refused".to_owned())
}

/// What became of writes. Written means durable, but for the modes of `--fsync` that promise less.
#[derive(Debug)]
pub struct Written {
    /// The writes, in the order of the log.
    pub writes: Vec<WrittenRecord>,
    /// The writes after them that are not in the log, or of which nobody knows, in the order of their appends.
    pub refused: Vec<WriteId>,
    /// Which of the two, and why.
    pub refusal: Option<(ErrorWord, String)>,
    /// The length of the log with what is written, in bytes.
    pub bytes: u64,
}

/// A record that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenRecord {
    /// The write that it is of.
    pub write: WriteId,
    /// The version that its keys get.
    pub version: Version,
    /// Where its values stand, in the order of its pairs. None for a deletion.
    pub places: SmallVec<[Place; 1]>,
}

/// Why a value is not had from the log.
#[derive(Debug, Error)]
pub enum Unread {
    /// The log is not this master's any more.
    #[error("the log is closed")]
    Closed,
    /// Whoever was to read it is gone.
    #[error("the read of the log has panicked")]
    Panicked,
    /// What stands there cannot be read, or is something else.
    #[error("{0}")]
    Failed(#[source] io::Error),
}

/// What became of one read.
pub type ReadResult = Result<Bytes, Unread>;

/// Takes the answer to one read. There is one in any case: with its drop, if none was given.
pub struct ValueAnswer(Option<Box<dyn FnOnce(ReadResult)>>);

impl ValueAnswer {
    /// An answer that goes to `give`.
    pub fn new(give: impl FnOnce(ReadResult) + 'static) -> Self {
        ValueAnswer(Some(Box::new(give)))
    }

    /// Sends the result to the one who asked.
    pub fn give(mut self, result: ReadResult) {
        if let Some(give) = self.0.take() {
            give(result);
        }
    }
}

impl Drop for ValueAnswer {
    fn drop(&mut self) {
        if let Some(give) = self.0.take() {
            give(Err(Unread::Panicked));
        }
    }
}

impl fmt::Debug for ValueAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ValueAnswer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_one_file_takes_one_other_master_and_one_in_memory_any_number() {
        let file = JournalKind::default();
        assert_eq!(file.check_peers(1), Ok(()));
        assert_eq!(file.check_peers(2), Err(ConfigError::TooManyPeers { named: 2, max: 1 }));
        assert_eq!(JournalKind::Memory(memory::MemoryLog::default()).check_peers(8), Ok(()));
    }
}
