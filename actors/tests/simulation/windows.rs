//! The windows of a node's work in which a fault hurts: in the recovery of the log, in a takeover, in a handover, and
//! between append, sync, replication and acknowledgement of a write.
//!
//! Owns what the holder of the lock is about, as far as the world and the witness show it from outside. Never breaks anything.

use crate::witness::{Handover, Talk};
use dsm::env::sim::Moment;
use std::time::Duration;
use tokio::time::Instant;

/// How long after its EPOCH is durable a master's takeover goes on: slaves enlist.
const ENLIST: Duration = Duration::from_millis(100);

/// How long a handover may take from the request to the release of the lock.
const HANDOVER: Duration = Duration::from_millis(200);

/// A window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Window {
    /// From the lock to a log that is whole and durable.
    Recovery,
    /// The fence, and from there to slaves that have enlisted: EPOCH written, synced, announced.
    Takeover,
    /// From the standby's request to the release of the lock.
    Handover,
    /// A group is written to the log.
    Append,
    /// It is synced.
    Sync,
    /// A write goes to a slave.
    Replicate,
    /// A slave's acknowledgement of it goes to the master.
    Acknowledge,
    /// A file is made for the place of the log, is exchanged with it, or the old one is removed.
    Exchange,
}

impl Window {
    pub(crate) const ALL: [Window; 8] = [
        Window::Recovery,
        Window::Takeover,
        Window::Handover,
        Window::Append,
        Window::Sync,
        Window::Replicate,
        Window::Acknowledge,
        Window::Exchange,
    ];

    /// Whether a run has only a few of them.
    pub(crate) fn is_rare(self) -> bool {
        matches!(self, Window::Recovery | Window::Takeover | Window::Handover | Window::Exchange)
    }

    /// The moments of it that a node can have.
    pub(crate) fn moments(self, is_master: bool) -> &'static [Moment] {
        match (self, is_master) {
            (Window::Recovery, true) => &[
                Moment::LockWon,
                Moment::Opened,
                Moment::Truncated,
                Moment::WriteBegan,
                Moment::Written,
                Moment::SyncBegan,
                Moment::Synced,
                Moment::DirectorySynced,
            ],
            (Window::Takeover, true) => &[
                Moment::Fenced,
                Moment::WriteBegan,
                Moment::Written,
                Moment::SyncBegan,
                Moment::Synced,
                Moment::Sent,
                Moment::Received,
            ],
            (Window::Handover, true) => &[
                Moment::Received,
                Moment::Sent,
                Moment::WriteBegan,
                Moment::SyncBegan,
                Moment::Synced,
                Moment::LockReleased,
            ],
            (Window::Exchange, true) => &[Moment::NamesChanged],
            (Window::Append, true) => &[Moment::WriteBegan, Moment::Written],
            (Window::Sync, true) => &[Moment::SyncBegan, Moment::Synced],
            (Window::Replicate, true) | (Window::Acknowledge, false) => &[Moment::Sent],
            (Window::Replicate, false) | (Window::Acknowledge, true) => &[Moment::Received],
            (
                Window::Recovery
                | Window::Takeover
                | Window::Handover
                | Window::Append
                | Window::Sync
                | Window::Exchange,
                false,
            ) => &[],
        }
    }
}

/// What the holder of the lock is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Recovering,
    TakingOver,
    /// Since when EPOCH is durable.
    Announcing {
        since: Instant,
    },
    /// After a handover that was refused, too.
    Reigning,
    /// Since when it is asked for.
    HandingOver {
        since: Instant,
    },
}

/// What the holder of the lock is about, and which process it is. There is one at most.
#[derive(Debug, Default)]
pub(crate) struct Windows(Option<(u32, Stage)>);

impl Windows {
    /// A moment has come for a process; the window that it lies in.
    pub(crate) fn at(&mut self, pid: u32, is_master: bool, moment: Moment, talk: Talk) -> Option<Window> {
        let lasting = if is_master { self.step(pid, moment) } else { None };
        lasting.or(match (moment, talk) {
            (Moment::Sent | Moment::Received, Talk::Write) => Some(Window::Replicate),
            (Moment::Sent | Moment::Received, Talk::Ack) => Some(Window::Acknowledge),
            (Moment::NamesChanged, _) if is_master => Some(Window::Exchange),
            (Moment::WriteBegan | Moment::Written, _) if is_master => Some(Window::Append),
            (Moment::SyncBegan | Moment::Synced, _) if is_master => Some(Window::Sync),
            _ => None,
        })
    }

    fn step(&mut self, pid: u32, moment: Moment) -> Option<Window> {
        let stage = self.0.filter(|(holder, _)| *holder == pid).map(|(_, stage)| stage);
        let window = self.of(pid);
        let next = match (stage, moment) {
            (_, Moment::Fenced) => return Some(Window::Takeover),
            (_, Moment::LockWon) => Stage::Recovering,
            (Some(_), Moment::LockReleased) => {
                self.0 = None;
                return Some(Window::Handover);
            }
            (Some(Stage::Recovering), Moment::DirectorySynced) => Stage::TakingOver,
            (Some(Stage::TakingOver), Moment::Synced) => Stage::Announcing { since: Instant::now() },
            (_, _) => return window,
        };
        self.0 = Some((pid, next));
        window.or(self.of(pid))
    }

    /// What a process is about that may last: recovery, takeover, handover.
    pub(crate) fn of(&self, pid: u32) -> Option<Window> {
        match self.0.filter(|(holder, _)| *holder == pid)?.1 {
            Stage::Recovering => Some(Window::Recovery),
            Stage::TakingOver => Some(Window::Takeover),
            Stage::Announcing { since } if since.elapsed() < ENLIST => Some(Window::Takeover),
            Stage::HandingOver { since } if since.elapsed() < HANDOVER => Some(Window::Handover),
            Stage::Announcing { .. } | Stage::Reigning | Stage::HandingOver { .. } => None,
        }
    }

    /// Masters have spoken of a handover.
    pub(crate) fn heard(&mut self, handover: Handover) {
        let Some((_, stage)) = &mut self.0 else { return };
        match (handover, *stage) {
            (_, Stage::Recovering | Stage::TakingOver) => {}
            (Handover::Asked, _) => *stage = Stage::HandingOver { since: Instant::now() },
            (Handover::Refused, Stage::HandingOver { .. }) => *stage = Stage::Reigning,
            (Handover::Refused, Stage::Announcing { .. } | Stage::Reigning) => {}
        }
    }
}
