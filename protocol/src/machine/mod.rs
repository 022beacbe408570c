//! The rules of dsm as deterministic state machines.
//!
//! A machine is a plain struct. It does no IO, reads no clock and draws no random numbers of its own: time is an
//! argument, randomness a seed. Its one entry point is
//!
//! ```text
//! fn step(&mut self, now: Millis, event: Event, effects: &mut Vec<Effect>)
//! ```
//!
//! and the caller must perform the effects in their order. `Event` and `Effect` are closed enums and matched without a
//! catch-all, so that a new variant fails to compile wherever it must be handled. Wherever iteration order can reach an
//! effect, the collection is ordered, so that the same events give the same effects.

pub mod client;
pub mod cluster_clock;
pub mod compaction;
pub mod confirm;
pub mod doubt;
pub mod fence;
pub mod front;
pub mod grouping;
pub mod health;
pub mod link;
pub mod log_scan;
pub mod master;
pub mod protected;
pub mod reign;
pub mod salvage;
pub mod slave;
mod table;
pub mod welcome;
