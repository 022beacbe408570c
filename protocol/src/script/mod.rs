//! Scripts in Lua: the interpreter, what a script finds in it, and what it may take.
//!
//! | file | owns |
//! |---|---|
//! | `engine.rs` | the interpreter, and one run of a script |
//! | `prelude.lua` | the globals of scripts |
//! | `meter.rs` | steps, memory, and the end of a script that takes more |
//! | `values.rs` | answers of commands as values of Lua, and values of Lua as answers |
//! | `patterns.rs`, `json.rs`, `bits.rs` | what libraries do that must be bounded or that Lua does not have |
//! | `text.rs` | the text of a script: its digest, and its first line |
//!
//! A run is deterministic: it reads no clock but the one that it may be given to be stopped by, its random numbers come from a seed,
//! and the commands that it calls are the business of its [`ScriptHost`]. So the interpreter may stand in this half of the system.
//! It keeps nothing from one script to the next: each thread has one, because to make it takes longer than a short script.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "values and errors of the interpreter are those of a library, and more of them may come"
)]

mod bits;
mod engine;
mod json;
mod meter;
mod patterns;
mod text;
mod values;

pub(crate) use engine::{check, run, Run};
pub(crate) use meter::{Over, RunAllowance};
pub(crate) use text::{sha1hex, ScriptText};

use bytes::Bytes;

/// What executes the commands that a script calls.
pub(crate) trait ScriptHost {
    /// Executes a command, of which `words` are all; `resp3` is the form of the answer. The script has so many steps left.
    fn call(&mut self, words: Vec<Bytes>, resp3: bool, steps: u64) -> Called;

    /// Whether the script's user may do that; `None` if it is no command.
    fn may(&mut self, words: &[Bytes]) -> Option<bool>;
}

/// What has come of a call.
pub(crate) enum Called {
    /// The answer in the form of RESP, and how many steps it took.
    Answer(Vec<u8>, u64),
    /// The script cannot go on now.
    Stop,
}

/// How a run has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// With this answer, in RESP3.
    Answer(Vec<u8>),
    /// With this error, raised at this line of this text.
    Failed(Vec<u8>, Option<(String, u64)>),
    /// It cannot be executed.
    NotCompiled(String),
    /// It is cut off.
    Over(Over),
}

#[cfg(test)]
mod tests;
