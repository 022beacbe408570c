//! The log of masters on several machines, replicated by Raft.
//!
//! Bytes and events in, bytes and effects out, as in `dsm-protocol`: no IO, no clock, no thread, no log line.
//!
//! | module | owns |
//! |---|---|
//! | [`ids`] | the number of a member |
//! | [`vote`] | the text of the vote file: what a member must not forget beside its log |
//! | [`wire`] | the bytes of what members say to each other |

#![deny(clippy::disallowed_methods)]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod ids;
pub mod vote;
pub mod wire;
