//! Tests of the machines against `docs/ARCHITECTURE.md`: transcripts, one for each behaviour, and properties under a
//! random driver.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod client_script;
mod compaction_script;
mod front_script;
mod handshake_script;
mod link_script;
mod master_script;
mod properties;
mod reign_script;
mod salvage_script;
mod scripts;
mod slave_script;
mod takeover_script;
mod world;
