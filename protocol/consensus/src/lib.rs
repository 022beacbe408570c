//! The log of masters on several machines, replicated by Raft.
//!
//! Bytes and events in, bytes and effects out, as in `dsm-protocol`: no IO, no clock, no thread, no log line, no randomness. The
//! engine is `raft` of TiKV; this crate is what makes it a machine as the others are. Nothing of it is seen from outside, so that
//! another engine could take its place. The journal `dsm::journal::raft` is built on it.
//!
//! | module | owns |
//! |---|---|
//! | [`alone`] | how a log that is there becomes that of a new cluster |
//! | [`ids`] | the number of a member |
//! | [`join`] | how a machine with an empty disk becomes a member |
//! | [`machine`] | the machine: events, effects, the fate of proposals and reads |
//! | [`members`] | the record of the members, and which may follow which |
//! | [`purge`] | how far the log may be purged |
//! | `storage` | what the engine may ask of the log, and what is not in memory |
//! | [`vote`] | the text of the vote file: what a member must not forget beside its log |
//! | [`wire`] | the bytes of what members say to each other |
//! | `mutant` | bugs on purpose, in test builds only |
//!
//! An entry of the log is the words of a record. A version is (epoch, seq) = (term, index). The first two entries are in term 1: the
//! cluster and its first members. The one that begins a cluster has them from the start, all others get them from it. The first
//! entry of each reign is the engine's and empty: its words follow from its version.
//!
//! # Invariants
//!
//! * Nothing that another member counts on is said before it is on disk: acknowledgements and votes leave after
//!   [`Event::Persisted`].
//! * The vote is synced before the log has an entry of its term, and a cut before anything is appended after it.
//! * What is committed is on this member's disk, and is never cut.
//! * A follower's log gives way to a leader's file only once that is whole and synced, and only what is committed is purged.
//! * A proposal is refused only if no log ever has it. A leader that is deposed does not know.
//! * A read is confirmed by a majority that was asked after it, in a reign whose first entry is told. No clock matters.
//! * A member steps a proposal only while it leads, and none that comes from another one.
//! * A number is taken on an empty disk only by the process that the record of the members names by its token, so by none whose
//!   disk has lost anything.
//! * Of two records of the members that follow each other, each majority of the one has a member of each majority of the other; and
//!   the log has at most one that the vote file does not know to be committed.
//! * A record of the members follows another one only once a majority knows that one for good, and who was removed votes on until
//!   then.
//! * The same settings and events give the same effects.

#![deny(clippy::disallowed_methods)]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod alone;
pub mod ids;
pub mod join;
pub mod machine;
pub mod members;
#[doc(hidden)]
pub mod mutant;
pub mod purge;
mod storage;
pub mod vote;
pub mod wire;

pub use machine::{Config, Consensus, Effect, Event, Start};
pub use storage::LogEntry;
