//! Everything one node may say to another over a native link. How it looks in bytes is `frame.rs`'s business.

use crate::command::{Command, Reply};
use crate::ids::{
    ClusterId, Epoch, Incarnation, LogId, Reign, ReignId, RequestId, Seq, SlaveId, Stamp, Version,
};
use crate::secret::{Mac, Nonce};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One frame's content.
///
/// Between a master and a slave the messages marked *counted* are numbered from 1 by both ends in the order in
/// which they travel on one link; [`Message::Ack`] names them by that number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Client (or forwarding master) to master: a request.
    Request(Request),
    /// Master to client: the answer to the request with that id, in any order.
    Response {
        /// The id the request came with.
        id: RequestId,
        /// The answer to the request.
        reply: Reply,
    },
    /// Master to slave, counted: hold this value unless a higher version is held.
    Write {
        /// The version the value gets.
        version: Version,
        /// Which reign of the version's epoch wrote it.
        reign: ReignId,
        /// The key to be written.
        key: Bytes,
        /// The value to be held.
        value: Bytes,
    },
    /// Master to slave, counted: answer with an ACK, nothing else.
    Ping,
    /// Master to slave, not counted: take these bytes, which mean nothing, and answer with [`Control::Took`]. Asked of a
    /// slave that has failed, before it counts again.
    Trial {
        /// Bytes that stand for values; the slave keeps none of them.
        bytes: Bytes,
    },
    /// Slave to master: every counted message up to `through` is applied (or was refused just before).
    Ack {
        /// The number of the last applied counted message on this link.
        through: u64,
        /// Bytes the slave can still take; `u64::MAX` when it has no limit.
        room_bytes: u64,
    },
    /// Master to slave: send the value of `key`, which should be at `version`.
    Read {
        /// Comes back with the answer.
        tag: u64,
        /// The version the master's directory names.
        version: Version,
        /// Which reign of the version's epoch wrote it.
        reign: ReignId,
        /// The key to be read.
        key: Bytes,
    },
    /// Slave to master: the value, at `version`, which is at least the one that was asked for.
    Value {
        /// The tag of the read.
        tag: u64,
        /// The version that is held.
        version: Version,
        /// Which reign of the version's epoch wrote it.
        reign: ReignId,
        /// The value that is held.
        value: Bytes,
    },
    /// Slave to master: only an older version is held, or none.
    Missing {
        /// The tag of the read.
        tag: u64,
        /// The older version held, if any.
        held: Option<Version>,
    },
    /// Master to slave: forget `key` if it is at `version` or lower. A copy of the same epoch that another reign made
    /// is spared.
    Drop {
        /// The highest version to forget.
        version: Version,
        /// Which reign of the version's epoch is meant.
        reign: ReignId,
        /// The key to be forgotten.
        key: Bytes,
    },
    /// Master to master, over a link of those that keep one log on machines of their own: what one has to say to the other for
    /// that.
    Member {
        /// Whose log the sender has; means nothing while it is no member.
        cluster: ClusterId,
        /// Its number there; 0 while it is no member.
        member: u64,
        /// What it says: see `docs/FORMATS.md`, *What members say to each other*.
        body: Bytes,
    },
    /// What is rare enough to be coded by serde.
    Control(Control),
}

/// A request as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Comes back with the response. Chosen by the sender, unique among its requests in flight.
    pub id: RequestId,
    /// 0 on a client's link. On a link between masters: the origin's number for the forwarded session.
    pub stream: u64,
    /// 0 on a client's link. On a link between masters: raised by the origin when it sends a stream's refused
    /// requests again; what comes with a lower number after a refusal is refused too.
    pub generation: u32,
    /// What the request is.
    pub command: Command,
}

/// The rare messages: handshakes, roles, reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// The first frame of the side that connected.
    Hello(Hello),
    /// The answer to a [`Hello`] that is accepted.
    Welcome(Welcome),
    /// The answer to a [`Hello`] that is refused, or the reason why the link is closed. One line for people.
    Reject {
        /// Why the connection is refused, in words.
        reason: String,
    },
    /// Master to slave: this master is the primary of `reign`. Answered by [`Control::Enlisted`] or
    /// [`Control::Outdated`].
    Announce {
        /// The cluster that the reign is of.
        cluster: ClusterId,
        /// The new reign. Its EPOCH record is on disk.
        reign: Reign,
        /// The EPOCH record's seq.
        seq: Seq,
        /// Whether a record of this reign is on disk before a slave sees it (`--fsync always`).
        durable: bool,
    },
    /// Slave to master: the reign is accepted; commands of lower epochs are refused from now on.
    Enlisted {
        /// The reign that was announced.
        reign: Reign,
        /// The last reign that the slave was part of before; `None` for one that is new.
        seen: Option<Seen>,
        /// Bytes the slave can still take; `u64::MAX` when it has no limit.
        room_bytes: u64,
    },
    /// Slave to master: a command or an announcement of a reign that is over, or of another time line, was refused.
    Outdated {
        /// The highest reign the slave knows.
        seen: Seen,
    },
    /// Slave to master: the counted message `number` was a write that did not fit.
    Full {
        /// The number of the refused write.
        number: u64,
    },
    /// Slave to master: a part of what the slave holds. Answered by [`Control::HoldingsNext`].
    Holdings {
        /// Keys, their versions and whose those are.
        entries: Vec<(Bytes, Stamp)>,
        /// Whether this part is the last one.
        last: bool,
    },
    /// Master to slave: the part was taken in, the next one may follow.
    HoldingsNext,
    /// Either way between a slave and a master, whether it reigns or not: are you there? Answered by
    /// [`Control::Alive`].
    Probe,
    /// The answer to a probe: whoever sends it lives.
    Alive,
    /// Master to a peer master that is connected to it: who serves.
    MasterState(MasterState),
    /// Standby to active, over a link between masters: a forwarded session is closed.
    StreamClosed {
        /// The origin's number of the session.
        stream: u64,
    },
    /// Standby to active: hand over to me.
    HandoverRequest {
        /// The last seq the standby has replayed.
        replayed: Seq,
        /// The reign of the last record it has replayed.
        reign: Reign,
        /// The log that it replays; `None` when there is none.
        log: Option<LogId>,
        /// The slaves that are connected to the standby.
        slaves: Vec<SlaveId>,
        /// Whether an operator asked for it.
        forced: bool,
    },
    /// Active to standby: not now.
    HandoverRefused {
        /// Why it is not handed over, in words.
        reason: String,
    },
    /// Active to standby: an operator asked for a failover; ask for the handover now.
    HandoverOffer,
    /// Slave to master: a [`Message::Trial`] has arrived whole.
    Took {
        /// Its length in bytes.
        bytes: u64,
    },
    /// Master to slave: the slave has failed and is told of no reign for a while.
    Quarantined {
        /// How long, in milliseconds.
        ms: u64,
        /// Why the slave must wait, in words.
        reason: String,
    },
    /// Master to slave: the slave has its place in the reign. From here on the reign is the last one it was part of.
    Admitted {
        /// The reign that was announced.
        reign: Reign,
    },
    /// Master to slave, before [`Control::Admitted`]: the last reigns of the log in which the slave gets a place. Slave to a
    /// repair that asks for it: those of the log in which it had its last place.
    Lineage {
        /// In the order of the log, each right after the one before; at most [`LINEAGE_MAX`].
        reigns: Vec<ReignStart>,
    },
    /// A repair to a slave: where are your copies from? Answered by [`Control::Lineage`].
    AskLineage,
    /// The answer to a [`Hello`] of one who is to prove a secret first.
    Challenge {
        /// Drawn for this connection.
        nonce: Nonce,
    },
    /// The answer to that, by the side that connected.
    Proof {
        /// Drawn for this connection.
        nonce: Nonce,
        /// One for each secret that it has, of at most two.
        proofs: Vec<Mac>,
    },
    /// The proof of the accepting side, that it has the same secret. Then the [`Hello`] is answered.
    Proved {
        /// Of the secret that was proved to it.
        proof: Mac,
    },
    /// Standby to active, over a link between masters: for whom a session asks from here on. Before the first of these, for one
    /// who has not said who he is.
    StreamUser {
        /// The origin's number of the session.
        stream: u64,
        /// Who that is.
        user: StreamUser,
    },
}

/// For whom a session of another master asks.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum StreamUser {
    /// One who has not said who he is.
    #[default]
    Anonymous,
    /// The user of this name, which was proved there.
    Named(String),
    /// The program around that master, which may do everything.
    Program,
}

/// The most reigns that a slave remembers of a log.
pub const LINEAGE_MAX: usize = 64;

/// One reign of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReignStart {
    /// The reign.
    pub reign: Reign,
    /// The seq of its EPOCH record.
    pub first: Seq,
}

/// Who connects, and what it must be asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster this node has belonged to so far, if any.
    pub cluster: Option<ClusterId>,
    /// What the node is.
    pub role: HelloRole,
}

/// The roles that open links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloRole {
    /// A native client.
    Client,
    /// A slave, which obeys the master.
    Slave {
        /// The name of the slave.
        id: SlaveId,
        /// This life of it.
        incarnation: Incarnation,
        /// The last reign that it was part of; `None` for one that is new.
        seen: Option<Seen>,
        /// Bytes it can still take; `u64::MAX` when it has no limit.
        room_bytes: u64,
    },
    /// Another master.
    Master {
        /// The address it serves at.
        address: String,
        /// What all masters that have a part in one log name alike, and no others.
        log_identity: String,
    },
    /// A master that keeps the same log on another machine, over the link by which it says what belongs to that. It hears
    /// nothing over this link.
    Member {
        /// The address it serves at.
        address: String,
    },
}

/// What a slave knows of the last reign that it was part of. A log of its cluster that lacks the reign, or ends it before
/// that seq, has lost records: an EPOCH record is on disk before it is announced, and in a durable reign each record is
/// before a slave sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The reign of those records.
    pub reign: Reign,
    /// The highest seq that the slave has seen in it.
    pub seq: Seq,
    /// Whether a record of that reign was on disk before a slave saw it.
    pub durable: bool,
}

/// The master's side of an accepted handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster; `None` while the log is still empty.
    pub cluster: Option<ClusterId>,
    /// The longest value of this cluster, in bytes: longer frames are refused, shorter ones must be taken.
    pub value_max: u64,
    /// Whether this master serves, and who does if not.
    pub state: MasterState,
}

/// What a master says about who serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterState {
    /// Whether this master is the active one.
    pub active: bool,
    /// The highest epoch it knows.
    pub epoch: Epoch,
    /// The last seq that this master has written or replayed.
    pub seq: Seq,
    /// The address of the active master, if this master knows it.
    pub active_address: Option<String>,
}
