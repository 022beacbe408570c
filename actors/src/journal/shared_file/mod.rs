//! The log as one file that the masters of one machine share: whoever holds its locks may append.
//!
//! [`log_writer`] appends to it during a reign, [`log_tailer`] follows it for a standby, and [`failover_watcher`] queues
//! for the lock. `recovery` is what a new holder of the lock does to the file, [`log_scan`] takes it apart, and
//! `log_proof` says whether a file is the log that was replayed.

pub mod failover_watcher;
pub(crate) mod log_proof;
pub mod log_scan;
pub mod log_tailer;
pub mod log_writer;
pub(crate) mod recovery;
