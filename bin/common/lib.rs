//! What the programs of this package share. No program's file uses another's: what two of them need stands here.
//!
//! | module | owns |
//! |---|---|
//! | [`cli`] | flags and their variables, logging, signals, one line for what went wrong, exit codes |
//! | [`roles`] | the roles as whole programs |
//! | [`prompt`] | the dialog of `dsm-client` and `dsm-cluster` |
//! | [`why_not_launched`] | what is said of a cluster's process that does not start |

// Nobody may wait for whoever reads standard error, nor fail with it: `cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod cli;
mod error_output;
mod levels;
pub mod prompt;
pub mod roles;
mod why_ended;
pub mod why_not_launched;
mod words;
