//! What a world contains, which faults it may suffer, and which of the shell's duties it neglects.

use dsm_protocol::machine::front::Kind;

/// What a client does, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wish {
    Write,
    Delete,
    Read,
}

/// A client: a session at a master, and what it asks for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// Whether it sends the next request before the last one is answered.
    pub(crate) pipelines: bool,
    pub(crate) wishes: Vec<Wish>,
}

/// How often each kind of fault may happen in one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// All kinds together.
    pub(crate) total: u8,
    /// A master's process dies.
    pub(crate) crash: u8,
    /// Both masters lose power.
    pub(crate) power: u8,
    /// A master's process is stopped, and keeps its locks.
    pub(crate) pause: u8,
    /// A slave's process dies: it comes back empty.
    pub(crate) slave_crash: u8,
    /// A slave's acknowledgement is late: its link is closed.
    pub(crate) ack_timeout: u8,
    /// A slave's answer to a read is late.
    pub(crate) read_timeout: u8,
    /// An operator wants the standby to serve.
    pub(crate) handover: u8,
    /// A client gives up waiting and leaves its master.
    pub(crate) leave: u8,
    /// A client asks a master that does not serve. Not counted in `total`.
    pub(crate) stray: u8,
    /// Whether a new reign may begin without connected slaves, any number of times.
    pub(crate) enlist_timeout: bool,
    /// Whether requests in flight may take too long for a handover, any number of times.
    pub(crate) yield_timeout: bool,
}

/// A duty of the shell that it neglects: the search must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The machine is told that a record is written before it is synced.
    WrittenBeforeSync,
    /// A takeover serves what it has read without syncing it first.
    RecoveredWithoutSync,
    /// A takeover begins without the rest of the log.
    TailNotRead,
    /// The reign is announced before its EPOCH record is synced.
    AnnouncedBeforeEpoch,
    /// A takeover goes on under the epoch that it found.
    EpochNotRaised,
    /// The standby takes over although the lock is held.
    LockNotAwaited,
    /// A holder that is stopped counts as dead without being killed.
    FenceWithoutKill,
    /// A handover gives the lock away with requests in flight.
    YieldedInFlight,
    /// A handover does not hold new requests back.
    YieldedWithoutHolding,
    /// A client sends a write again whose outcome it does not know.
    UnknownSentAgain,
    /// The master does not notice that the link of a slave has ended.
    LostSlaveKept,
    /// The report of what a slave holds is ignored.
    ReportIgnored,
}

/// A world to search.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    pub(crate) slaves: usize,
    pub(crate) clients: Vec<Plan>,
    pub(crate) faults: Faults,
    /// Whether masters talk to each other: forwarding and handovers need it.
    pub(crate) peers: bool,
    /// Whether every request must have a result, as when the only fault is a handover.
    pub(crate) nothing_fails: bool,
    pub(crate) bug: Option<Bug>,
}
