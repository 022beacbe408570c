//! Who a master is: a standby, one that leads and is on its way to a reign, the one that serves, one that yields or ends.
//!
//! Owns that one fact, as [`ReignRole`], and every rule and deadline by which it changes: takeover (`takeover.rs`), what comes
//! between the leadership and the first request (`opening.rs`; what a log must hold, `hearsay.rs` and `may_begin.rs`), handover
//! (`handover.rs`, `standbys.rs`), stop (`stop.rs`). Never holds a log, a link or an address: the caller does, and carries out what is
//! wanted of them. To lead the log is to be the only one that may append to it; how that is won is the log's business. See `docs/ARCHITECTURE.md`, *Takeover*, *What a log must hold*, *Handover and failback*.
//!
//! ```text
//!            leads         it continues what was replayed        whole, and read
//! Standby ─▶ Barred ─────▶ Halting ─▶ Recovering ─────────────▶ Waiting ─┐ begins
//!    ▲                                    ▲  another log is there  │     ▼
//!    │ closed                             └─────────────────────────┘   Opening ─▶ Announcing ─▶ Serving
//!    └──────────── Closing ◀─ Yielding ◀─ Preparing ◀─────────────────────────────────┘
//!                      └─ the log was slow, or a request: Serving again
//! ```
//!
//! A slave that has seen what the log lacks makes `Doubting`, and then `Waiting`, of `Announcing`. A reign that is lost to another master
//! ends in `Losing`, and then `Standby`. A stop makes `Stopping`, a log that
//! was moved away makes `Departing`, and both end in `Ended`.

mod handover;
mod hearsay;
mod losing;
pub mod may_begin;
mod opening;
mod standbys;
mod stop;
pub mod takeover;

pub use handover::{HandoverFailure, OPERATORS_MAX};
pub use hearsay::Hearsay;
pub use opening::{StoredLog, Waiting};
pub use stop::Course;
pub use takeover::{LeaderSeen, Queue, Refusal};

use crate::command::Reply;
use crate::ids::{ClusterId, Epoch, LinkId, Millis, Reign, ReignId, SessionId, SlaveId, Version};
use crate::machine::master::{Asker, Reigns};
use crate::machine::welcome::is_outvoted;
use crate::message;
use crate::planted;
use crate::record::Position;
use crate::witness_file::WitnessText;
use hearsay::Knowledge;
use may_begin::{Lack, Log};
use standbys::Standbys;
use takeover::Takeover;

/// The settings of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Whether this is the master that should serve when both can (`dsm-master`).
    pub preferred: bool,
    /// Whether a preferred standby asks for the reign by itself.
    pub failback: bool,
    /// Whether an empty cluster is meant where nobody names one (`--new`).
    pub new: bool,
    /// How long a leader's counter may stand still, in milliseconds.
    pub failover_timeout_ms: u64,
    /// How long the leadership is left to the other master when nobody has it, in milliseconds.
    pub courtesy_ms: u64,
    /// How long a returning preferred master must have been stable before it asks, in milliseconds.
    pub stable_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            preferred: true,
            failback: true,
            new: false,
            failover_timeout_ms: 1000,
            courtesy_ms: 1000,
            stable_ms: 1000,
        }
    }
}

/// What a master is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReignRole {
    /// Follows the log and does not lead.
    Standby {
        /// Whether it wants to lead.
        queue: Queue,
    },
    /// Leads, and waits for a look at the log: from what does not continue what was replayed nobody takes over.
    Barred {
        /// When it was said last that this master cannot take over.
        told_at: Millis,
    },
    /// Leads; what follows the log is told to stop, so that nothing is replayed twice.
    Halting,
    /// Makes the log whole.
    Recovering {
        /// What is waited for, and when it was said last, if the log was not the right one before.
        told: Option<(Lack, Millis)>,
    },
    /// Leads, and does not begin yet: the log is missing or lacks something, or others may still say so.
    Waiting(Box<Waiting>),
    /// The EPOCH record is on its way to the disk.
    Opening {
        /// The epoch that the record begins.
        epoch: Epoch,
        /// Whether something is noted of witnesses, which the record settles.
        is_noted: bool,
    },
    /// Slaves are told of the reign, and nobody is served yet.
    Announcing {
        /// The reign that they are told of.
        reign: Reign,
        /// Since when they are told.
        since: Millis,
    },
    /// A slave has seen records that the log lacks: it is closed, and nobody is served.
    Doubting {
        /// The reign that never will be.
        reign: Reign,
        /// Which slave that is.
        slave: SlaveId,
        /// What it has seen.
        seen: message::Seen,
    },
    /// Requests are executed.
    Serving {
        /// The reign that serves.
        reign: Reign,
    },
    /// Requests are served while the log is synced, so that a handover finds little left to sync.
    Preparing {
        /// The reign that serves.
        reign: Reign,
        /// Since when it is synced this time.
        since: Millis,
        /// Which standby has asked.
        to: LinkId,
        /// How often it was synced, with this time.
        syncs: u32,
    },
    /// Requests are held back until those in flight are done, for a handover.
    Yielding {
        /// The reign that is handed over.
        reign: Reign,
        /// Since when requests are held back.
        since: Millis,
        /// The link of the standby that asked.
        to: LinkId,
    },
    /// The log is being closed for a handover, or has been asked back.
    Closing {
        /// The reign that ends.
        reign: Reign,
        /// Since when it is being closed.
        since: Millis,
        /// To which standby it goes.
        to: LinkId,
        /// Whether the log was asked back.
        asked_back: bool,
    },
    /// Leads no more, without having been asked: another master does. What is in flight comes to its end, then this one
    /// follows.
    Losing {
        /// The reign that is over.
        reign: Reign,
        /// Since when.
        since: Millis,
        /// Whether the fate of all that was to be written is known.
        is_answered: bool,
        /// Whether the log is being closed.
        is_closing: bool,
    },
    /// The log is being closed for good.
    Stopping {
        /// The reign that ends.
        reign: Reign,
    },
    /// Leads no more, without having been asked: what is not executed is answered, then the node ends.
    Departing {
        /// Since when nothing more is accepted.
        since: Millis,
    },
    /// The node ends, and nothing is waited for any more.
    Ended,
}

/// What a master does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// It does not serve: they are forwarded, or held until somebody serves.
    Standby,
    /// It hands over: they are held.
    Holding,
    /// It serves: they are executed.
    Serving,
    /// It is about to end: they are refused.
    Stopping,
}

/// What the machine cannot know by itself, as it is right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// How many requests are executed and not answered.
    pub in_flight: usize,
    /// Whether something that has come is not begun yet.
    pub is_behind: bool,
    /// Whether our link to another master stands.
    pub has_dialed: bool,
    /// Whether a master was asked for a sign that it forwards nothing any more, and has given none.
    pub may_forward: bool,
    /// How many connected slaves have not accepted the reign.
    pub slaves_undecided: usize,
    /// How many clients, and requests of theirs that wait for a master, a stop has still to let go.
    pub clients_left: usize,
    /// Whether the log that is there continues what was replayed.
    pub log_follows: bool,
}

/// What happens to the machine.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// Time passed. At least every 50 ms, and whenever one of the surroundings may be what is waited for.
    Tick(Surroundings),
    /// A turn has done all it can, while [`Leadership::waits_for_requests`].
    TurnEnded(Surroundings),
    /// A part of the log is replayed.
    Replayed {
        /// The place after it.
        end: Position,
        /// The last place in front of that through which the log is known to be on disk.
        durable: Position,
        /// The log's reigns so far.
        reigns: &'a Reigns,
    },
    /// The log is replayed to its end for the first time (since the last reign).
    CaughtUp,
    /// A look at who leads. At least every 50 ms while that is wanted.
    Looked(LeaderSeen),
    /// This master leads.
    Won {
        /// Whose log it is, by what the last leader has declared.
        cluster: Option<ClusterId>,
        /// The epoch that he has declared.
        epoch: Option<Epoch>,
    },
    /// The log that is there was looked at.
    Sighted {
        /// Whether it continues what was replayed.
        follows: bool,
    },
    /// Nothing more will be replayed by what followed the log.
    Halted,
    /// The log is open, whole and read; or there is none.
    Recovered {
        /// What it says of itself.
        log: Option<Log>,
        /// Which one was read.
        read: Option<StoredLog>,
        /// What is noted of witnesses.
        noted: WitnessText,
    },
    /// What others know of the log, as far as they have said so. At least with each tick of a master that is `Waiting`.
    Heard(Hearsay<'a>),
    /// Which log is there: the answer to [`Effect::FindLog`].
    LogFound(Option<StoredLog>),
    /// The EPOCH record is on disk.
    EpochWritten {
        /// Its epoch and place.
        version: Version,
        /// The identity of the reign, as the record has it.
        id: ReignId,
    },
    /// A slave of this cluster has seen records that the log lacks.
    Accused {
        /// Which slave that is.
        slave: SlaveId,
        /// What it has seen.
        seen: message::Seen,
    },
    /// The log was synced for a handover.
    Synced,
    /// The log is closed.
    Closed {
        /// Its end, of the reign that has ended.
        end: Position,
        /// Which one it is.
        log: Option<StoredLog>,
        /// The reigns of that log.
        reigns: &'a Reigns,
    },
    /// The log was not closed and is open.
    Reopened,
    /// This master leads no more, without having been asked, and may not follow either.
    Deposed,
    /// This master leads no more, without having been asked, and may follow whoever leads now.
    Lost,
    /// Everything in front of that is answered.
    Answered,
    /// Something failed that the node cannot go on without.
    Failed,
    /// The node is asked to stop.
    StopAsked,
    /// A slave has come.
    SlaveCame {
        /// The name of the slave.
        slave: SlaveId,
        /// Whose it is, if it belongs to a cluster.
        cluster: Option<ClusterId>,
    },
    /// The other master has said whose it is, if it knows.
    PeerNamed {
        /// The cluster that it is of; nothing if it knows of none.
        cluster: Option<ClusterId>,
    },
    /// What another master says of itself: of several, the foremost.
    PeerSaid {
        /// Our link to it.
        link: LinkId,
        /// Whether it says that it serves.
        active: bool,
        /// The epoch of its last durable EPOCH record.
        epoch: Epoch,
    },
    /// A link to another master is gone.
    PeerLost {
        /// The link that is gone.
        link: LinkId,
    },
    /// Other masters refuse this one.
    Refused {
        /// So many of them, as far as they have answered.
        refusing: usize,
        /// So many there are, beside this one.
        peers: usize,
    },
    /// Another master has connected, and may ask for the reign.
    StandbyCame {
        /// Its link to this one.
        link: LinkId,
    },
    /// The other master asks for the reign.
    HandoverRequested {
        /// The link of the standby that asks.
        from: LinkId,
        /// Whether it follows this master's log and reign.
        follows: bool,
        /// Whether it has replayed all but the last moment of the log and has our slaves.
        ready: bool,
        /// Whether an operator asked for it.
        forced: bool,
    },
    /// Another master does not yield.
    HandoverRefused {
        /// Our link to it.
        link: LinkId,
    },
    /// Another master offers its reign: an operator wants this standby to serve.
    HandoverOffered {
        /// Our link to it.
        link: LinkId,
    },
    /// The link of a standby is gone.
    StandbyGone {
        /// The link that is gone.
        link: LinkId,
    },
    /// An operator wants the standby to serve.
    FailoverAsked {
        /// The operator's session and request.
        asker: Asker,
        /// How long he waits.
        deadline: Millis,
    },
    /// Nobody waits for the answers of a session any more.
    SessionClosed {
        /// The session that is closed.
        session: SessionId,
    },
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Look who leads now, and every 50 ms or more often until this master does.
    WatchLeader,
    /// Queue for the leadership.
    QueueToLead,
    /// Make sure that whoever leads runs no more, unless it makes progress again.
    Fence {
        /// Where its counter stands.
        beat: Option<u64>,
    },
    /// Leave the queue, and look no more who leads.
    LeaveQueue,
    /// Give the leadership back, with all that is held of the log: another master may serve from now on.
    StopLeading,
    /// Have what follows the log look whether what is there continues what was replayed.
    LookAtLog,
    /// Have what follows the log stop.
    StopFollowing,
    /// Follow the log from where it was closed.
    Follow,
    /// Forget what was replayed, and follow whatever log is there.
    FollowAnew,
    /// Open the log, make it whole and read it.
    Recover {
        /// Whether one is made if there is none.
        makes_log: bool,
    },
    /// Let go of the log: another one may be put in its place.
    LetGoOfLog,
    /// Look which log is there.
    FindLog,
    /// Note what slaves have seen and the log lacks; nothing, when all of it is settled.
    NoteWitnesses(WitnessText),
    /// Begin to write the log with an EPOCH record.
    WriteEpoch {
        /// The epoch that the record begins.
        epoch: Epoch,
        /// Reigns of which records are given up.
        given_up: Vec<Reign>,
    },
    /// Let others know that this master leads and has a whole log; if it serves, of which reign.
    Declare {
        /// Whether this master serves from now on.
        serves: bool,
    },
    /// Begin the reign in the master machine.
    BeginReign {
        /// Epoch and place of its EPOCH record.
        version: Version,
        /// The identity of the reign, as its EPOCH record has it.
        id: ReignId,
    },
    /// Tell the slaves of the reign.
    Announce,
    /// Give their places to the slaves that have accepted the reign so far.
    GivePlaces,
    /// End the reign in the master machine, and take the slaves' places.
    EndReign,
    /// What is done with requests is another thing from now on: [`Leadership::stance`].
    StanceChanged,
    /// Tell the masters that are connected who serves.
    TellState,
    /// Name the cluster, if none is named yet: its log was served.
    NameCluster(ClusterId),
    /// Have the log synced.
    SyncLog,
    /// Have the log closed.
    CloseLog,
    /// Have the log back unless it is closed already.
    AskLogBack,
    /// Have the log given up: what is not written will not be.
    AbandonLog,
    /// Let the masters that are connected ask for the reign.
    OfferReign,
    /// Ask the active master for the reign.
    AskForReign {
        /// Our link to it.
        to: LinkId,
        /// Whether an operator wants it.
        forced: bool,
    },
    /// Answer that the reign is not yielded now.
    RefuseHandover {
        /// The link of the standby that asked.
        to: LinkId,
        /// Why it is not handed over.
        why: HandoverFailure,
    },
    /// Tell an operator how the failover that he asked for has ended.
    AnswerOperator {
        /// The operator's session and request.
        to: Asker,
        /// The answer to the operator.
        reply: Reply,
    },
    /// Let the port go. Who has connected already is still heard.
    StopAccepting,
    /// Ask the masters that forward to this one for a sign that they do so no more.
    AskForwarders,
    /// Let clients go, each between its requests.
    LetClientsGo {
        /// Whether those that say nothing too.
        silent_too: bool,
    },
    /// End the node in this way.
    End(Ending),
    /// Say something in the log.
    Say(Saying),
}

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Because other masters refuse it, before it has begun to write.
    Refused,
    /// Cleanly, with nothing held any more.
    Clean,
    /// Cleanly, although the log is not closed: the leadership is kept until the process is gone.
    Unclosed,
    /// Because it leads no more, without having been asked: what it holds is kept until the process is gone.
    Deposed,
}

/// What is to be said in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saying {
    /// This master leads, and the log does not continue what it has replayed.
    Barred,
    /// This master leads, and waits for what the log lacks.
    Lacking(Lack),
    /// Another log is there, and is read.
    AnotherLog,
    /// A reign is given up before it serves.
    Doubted {
        /// Who has seen more than the log holds.
        slave: SlaveId,
        /// What that slave has seen.
        seen: message::Seen,
    },
    /// This master serves from now on.
    Serving {
        /// The epoch that it serves in.
        epoch: Epoch,
    },
    /// The log took long to be synced, and a handover waits.
    SlowSync {
        /// How long, in milliseconds.
        took_ms: u64,
        /// How often it was synced.
        syncs: u32,
    },
    /// Requests are held for a handover.
    HandingOver,
    /// A handover is not granted.
    Refused(Refusal),
    /// A handover is given up.
    Aborted(HandoverFailure),
    /// The reign is lost to another master, which this one follows.
    Lost {
        /// The epoch that ended.
        epoch: Epoch,
    },
    /// The reign is handed over.
    HandedOver {
        /// The epoch that ended.
        epoch: Epoch,
    },
    /// This node was asked to stop.
    Stopping,
    /// A stop does not hand over.
    NotHandedOver {
        /// Whether the standby is gone; else it does not ask.
        is_gone: bool,
    },
    /// A stop has waited for the disk as long as it does.
    Unclosed {
        /// How long, in milliseconds.
        waited_ms: u64,
    },
}

/// Who one master is, and what it knows for that.
#[derive(Clone, Debug)]
pub struct Leadership {
    config: Config,
    role: ReignRole,
    takeover: Takeover,
    standbys: Standbys,
    known: Knowledge,
    /// The highest epoch of the log, as far as it is replayed or written.
    known_epoch: Epoch,
    /// Who waits for an operator's failover, and how long.
    operators: Vec<(Asker, Millis)>,
    stopping_since: Option<Millis>,
    /// Since when what is at the log's place does not continue what was replayed, although the other master serves.
    strays_since: Option<Millis>,
    course: Course,
}

impl Leadership {
    /// A standby that has not read the log yet.
    pub fn new(config: Config, now: Millis) -> Self {
        Leadership {
            config,
            role: ReignRole::Standby { queue: Queue::Replaying },
            takeover: Takeover::new(config, now),
            standbys: Standbys::default(),
            known: Knowledge::new(now),
            known_epoch: Epoch::default(),
            operators: Vec::new(),
            stopping_since: None,
            strays_since: None,
            course: Course::Open,
        }
    }

    /// What this master is.
    pub fn role(&self) -> &ReignRole {
        &self.role
    }

    /// What is done about a stop.
    pub fn course(&self) -> Course {
        self.course
    }

    /// Whether the node was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping_since.is_some()
    }

    /// What is done with requests.
    pub fn stance(&self) -> Stance {
        if matches!(self.course, Course::Closing { .. }) {
            return Stance::Stopping;
        }
        match self.role {
            ReignRole::Standby { .. }
            | ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. }
            | ReignRole::Announcing { .. }
            | ReignRole::Doubting { .. } => Stance::Standby,
            ReignRole::Serving { .. } | ReignRole::Preparing { .. } => Stance::Serving,
            ReignRole::Yielding { .. } | ReignRole::Closing { .. } if planted!(HandoverHoldsNothing) => {
                Stance::Serving
            }
            ReignRole::Yielding { .. } | ReignRole::Closing { .. } | ReignRole::Losing { .. } => {
                Stance::Holding
            }
            ReignRole::Stopping { .. } | ReignRole::Departing { .. } | ReignRole::Ended => Stance::Stopping,
        }
    }

    /// Whether requests are served in this role. While a stop takes none in any more, those in flight still are.
    pub fn serves(&self) -> bool {
        matches!(self.role, ReignRole::Serving { .. } | ReignRole::Preparing { .. })
    }

    /// Whether it serves, and is not about to hand over.
    pub fn is_settled(&self) -> bool {
        matches!(self.role, ReignRole::Serving { .. })
    }

    /// Whether this master leads, and the log is not found yet to continue what was replayed.
    pub fn is_barred(&self) -> bool {
        matches!(self.role, ReignRole::Barred { .. })
    }

    /// Whether this master asks what others know of the log, before it begins on it: [`Event::Heard`].
    pub fn is_waiting(&self) -> bool {
        matches!(self.role, ReignRole::Waiting(_))
    }

    /// Whether this master follows the log of another one.
    pub fn is_standby(&self) -> bool {
        matches!(self.role, ReignRole::Standby { .. })
    }

    /// The standby that is to lead next, while the log is closed for it.
    pub fn heir(&self) -> Option<LinkId> {
        if let ReignRole::Closing { to, .. } = self.role {
            return Some(to);
        }
        None
    }

    /// The reign of this master, once its EPOCH record is on disk.
    pub fn reign(&self) -> Option<Reign> {
        match self.role {
            ReignRole::Announcing { reign, .. }
            | ReignRole::Doubting { reign, .. }
            | ReignRole::Serving { reign }
            | ReignRole::Preparing { reign, .. }
            | ReignRole::Yielding { reign, .. }
            | ReignRole::Closing { reign, .. }
            | ReignRole::Losing { reign, .. }
            | ReignRole::Stopping { reign } => Some(reign),
            ReignRole::Standby { .. }
            | ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => None,
        }
    }

    /// The reign that slaves are told of, and may have places in.
    pub fn announced(&self) -> Option<Reign> {
        match self.role {
            ReignRole::Announcing { reign, .. }
            | ReignRole::Serving { reign }
            | ReignRole::Preparing { reign, .. }
            | ReignRole::Yielding { reign, .. }
            | ReignRole::Closing { reign, .. }
            | ReignRole::Losing { reign, .. } => Some(reign),
            ReignRole::Standby { .. }
            | ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. }
            | ReignRole::Doubting { .. }
            | ReignRole::Stopping { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => None,
        }
    }

    /// Whether slaves that accept the reign wait for their places until it serves: before that, it may still be put aside.
    pub fn holds_places_back(&self) -> bool {
        matches!(self.role, ReignRole::Announcing { .. })
    }

    /// Whether a slave that has seen what the log lacks keeps this master from serving.
    pub fn may_doubt(&self) -> bool {
        matches!(self.role, ReignRole::Announcing { .. } | ReignRole::Doubting { .. })
            && !planted!(WitnessIgnored)
    }

    /// Whether this master writes the log, or did until the node began to end: being refused by another one ends it no more.
    pub fn has_begun(&self) -> bool {
        match self.role {
            ReignRole::Opening { .. }
            | ReignRole::Announcing { .. }
            | ReignRole::Doubting { .. }
            | ReignRole::Serving { .. }
            | ReignRole::Preparing { .. }
            | ReignRole::Yielding { .. }
            | ReignRole::Closing { .. }
            | ReignRole::Losing { .. }
            | ReignRole::Stopping { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => true,
            ReignRole::Standby { .. }
            | ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_) => false,
        }
    }

    /// The epoch of this master's reign, be its record on disk or not; else the highest that it has seen in the log.
    pub fn epoch(&self) -> Epoch {
        if let ReignRole::Opening { epoch, .. } = self.role {
            return epoch;
        }
        self.known_epoch
    }

    /// Whether the end of the requests in flight is waited for, to close the log after them.
    pub fn waits_for_requests(&self) -> bool {
        match self.role {
            ReignRole::Yielding { .. } | ReignRole::Losing { .. } => true,
            ReignRole::Serving { .. } | ReignRole::Preparing { .. } => self.is_closing(),
            ReignRole::Standby { .. }
            | ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. }
            | ReignRole::Announcing { .. }
            | ReignRole::Doubting { .. }
            | ReignRole::Closing { .. }
            | ReignRole::Stopping { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => false,
        }
    }

    /// What was said last to be waited for, if anything is.
    pub fn lacking(&self) -> Option<&Lack> {
        let told = match &self.role {
            ReignRole::Recovering { told } => told.as_ref(),
            ReignRole::Waiting(waiting) => waiting.told(),
            ReignRole::Standby { .. }
            | ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Opening { .. }
            | ReignRole::Announcing { .. }
            | ReignRole::Doubting { .. }
            | ReignRole::Serving { .. }
            | ReignRole::Preparing { .. }
            | ReignRole::Yielding { .. }
            | ReignRole::Closing { .. }
            | ReignRole::Losing { .. }
            | ReignRole::Stopping { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => None,
        };
        told.map(|(lack, _)| lack)
    }

    /// Advances the machine. The caller must perform the effects in the order returned.
    pub fn step(&mut self, now: Millis, event: Event<'_>, effects: &mut Vec<Effect>) {
        self.takeover.observe(now);
        match event {
            Event::Tick(around) => self.tick(now, &around, effects),
            Event::TurnEnded(around) => self.turn_ended(now, &around, effects),
            Event::Replayed { end, durable, reigns } => {
                self.known_epoch = self.known_epoch.max(end.epoch);
                self.remember(&durable, end.seq, reigns, effects);
            }
            Event::CaughtUp => self.caught_up(effects),
            Event::Looked(seen) => self.looked(now, seen, effects),
            Event::Won { cluster, epoch } => self.won(now, cluster, epoch, effects),
            Event::Sighted { follows } => self.sighted(follows, effects),
            Event::Halted => self.halted(effects),
            Event::Recovered { log, read, noted } => self.recovered(now, log, read, noted),
            Event::Heard(hearsay) => self.consider(now, &hearsay, effects),
            Event::LogFound(seen) => self.log_found(now, seen, effects),
            Event::EpochWritten { version, id } => self.epoch_written(now, version, id, effects),
            Event::Accused { slave, seen } => self.accused(slave, seen, effects),
            Event::Synced => self.synced(now, effects),
            Event::Closed { end, log, reigns } => self.closed(now, end, log, reigns, effects),
            Event::Reopened => self.abort_handover(HandoverFailure::LogNotClosed, effects),
            Event::Deposed => self.deposed(now, effects),
            Event::Lost => self.lost(now, effects),
            Event::Answered => self.answered(effects),
            Event::Failed => self.become_role(ReignRole::Ended, effects),
            Event::StopAsked => self.stop_asked(now, effects),
            Event::SlaveCame { slave, cluster } => {
                if !self.serves() {
                    self.known.slave_came(&slave, cluster);
                }
            }
            Event::PeerNamed { cluster } => self.known.peer_named(cluster),
            Event::PeerSaid { link, active, epoch } => {
                self.known.peer_said(active);
                self.takeover.peer_said(now, link, active, epoch);
            }
            Event::PeerLost { link } => self.takeover.peer_lost(link),
            Event::Refused { refusing, peers } => self.refused(refusing, peers, effects),
            Event::HandoverRequested { from, follows, ready, forced } => {
                self.handover_requested(now, from, (follows, ready, forced), effects);
            }
            Event::HandoverRefused { link } => self.takeover.refused(now, link),
            Event::HandoverOffered { link } => self.takeover.offered(link),
            Event::StandbyCame { link } => self.standbys.came(now, link),
            Event::StandbyGone { link } => self.standby_gone(link, effects),
            Event::FailoverAsked { asker, deadline } => self.failover_asked(asker, deadline, effects),
            Event::SessionClosed { session } => self.operators.retain(|(asker, _)| asker.session != session),
        }
        if let ReignRole::Standby { queue: Queue::Queued { .. } } = self.role {
            self.takeover.ask_if_due(now, effects);
        }
    }

    fn tick(&mut self, now: Millis, around: &Surroundings, effects: &mut Vec<Effect>) {
        self.expire_failover(now, effects);
        // Masters that forward to this one are asked first whether something is on its way.
        let was_closing = self.is_closing();
        self.tick_stop(now, around, effects);
        if self.is_over_time(now, effects) {
            return;
        }
        match self.role {
            ReignRole::Standby { .. } => self.tick_standby(now, around, effects),
            ReignRole::Barred { .. } => self.tick_barred(now, around, effects),
            ReignRole::Announcing { .. } => self.tick_announcing(now, around, effects),
            ReignRole::Serving { .. } | ReignRole::Preparing { .. } => {
                if was_closing {
                    self.tick_closing(now, around, effects);
                }
            }
            ReignRole::Yielding { .. } => self.tick_yielding(now, around, effects),
            ReignRole::Closing { .. } => self.tick_log_closing(now, effects),
            ReignRole::Losing { .. } => self.tick_losing(now, around, effects),
            ReignRole::Departing { since } => {
                if now.since(since) >= DEPART_MS {
                    self.depart(effects);
                }
            }
            ReignRole::Halting
            | ReignRole::Recovering { .. }
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. }
            | ReignRole::Doubting { .. }
            | ReignRole::Stopping { .. }
            | ReignRole::Ended => {}
        }
    }

    /// Takes a role. What is done with requests may change with it.
    fn become_role(&mut self, role: ReignRole, effects: &mut Vec<Effect>) {
        let before = self.stance();
        self.role = role;
        if self.stance() != before {
            effects.push(Effect::StanceChanged);
        }
    }

    /// Nobody would find what this master writes from now on.
    fn deposed(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.has_begun() || matches!(self.role, ReignRole::Departing { .. } | ReignRole::Ended) {
            return;
        }
        // Whoever asks from now on is told that this master does not serve, which is to say *not executed*.
        self.become_role(ReignRole::Departing { since: now }, effects);
        effects.push(Effect::AbandonLog);
    }

    /// Others refuse this master: it ends before it has begun to write, once it is a minority without them.
    fn refused(&mut self, refusing: usize, peers: usize, effects: &mut Vec<Effect>) {
        if !self.has_begun() && is_outvoted(refusing, peers) {
            self.become_role(ReignRole::Ended, effects);
            effects.push(Effect::End(Ending::Refused));
        }
    }

    /// All that was to be written is answered.
    fn answered(&mut self, effects: &mut Vec<Effect>) {
        if let ReignRole::Losing { is_answered, .. } = &mut self.role {
            *is_answered = true;
        }
        self.depart(effects);
    }

    fn depart(&mut self, effects: &mut Vec<Effect>) {
        if let ReignRole::Departing { .. } = self.role {
            self.become_role(ReignRole::Ended, effects);
            effects.push(Effect::End(Ending::Deposed));
        }
    }
}

/// How long the answers may take that say what is not executed because this master leads no more, in milliseconds.
const DEPART_MS: u64 = 500;
