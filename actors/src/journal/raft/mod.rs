//! The log of masters on several machines: each keeps one of its own, and Raft keeps them equal.
//!
//! What is here so far is the disk of one member: [`disk`] writes what the machine of `dsm-consensus` wants on disk, in the order
//! in which it must get there, [`start`] finds at a start what is there, and `lines` finds an entry's line in the file. No journal is
//! made of it yet, so no master uses it: see *The seat* in `docs/ARCHITECTURE.md`.
//!
//! **Invariant:** everything here that a disk holds is one member's own: places, SYNCED and the marks differ between members, the
//! words of the entries do not.

pub mod disk;
mod lines;
pub mod start;
