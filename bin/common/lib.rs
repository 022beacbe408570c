//! What the programs of this package share. No program's file uses another's: what two of them need is here.
//!
//! | module | owns |
//! |---|---|
//! | [`cli`] | flags and their variables, logging, signals, one-line errors, exit codes |
//! | [`roles`] | the roles as whole programs |
//! | [`prompt`] | the dialog of `dsm-client` and `dsm-cluster` |
//! | [`why_not_launched`] | the sentences for launcher errors |

// A blocked or closed standard error must neither delay nor end a program: print with `cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod cli;
mod error_output;
mod levels;
#[cfg(feature = "manuals")]
mod manuals;
pub mod prompt;
pub mod roles;
mod why_ended;
pub mod why_not_launched;
mod words;
