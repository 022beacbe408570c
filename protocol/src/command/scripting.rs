//! Scripts: EVAL and EVALSHA, their forms that only read, and SCRIPT.
//!
//! What a script does is decided at the store (`machine/master/scripts.rs`), where its text is known by its digest.

use super::entry::{
    argument, spec, token, AnswerLength, Argument, Changes, CommandFacts, Does, Own, Spec, KEY,
};
use super::script_call::{ScriptCall, ScriptName, ScriptRequest, ScriptRights, SCRIPT_BYTES_MAX};
use super::words::{Unfit, Words};
use super::Command;
use bytes::Bytes;

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[
    EVALSHA_SPEC,
    EVAL_SPEC,
    Spec {
        flags: READING,
        counted_keys: Some(&["RO", "access"]),
        ..evaluation(
            "evalsha_ro",
            "sha1",
            evaluate_known_read_only,
            "Execute a read-only Lua script server side",
        )
    },
    Spec {
        flags: READING,
        counted_keys: Some(&["RO", "access"]),
        ..evaluation("eval_ro", "script", evaluate_read_only, "Execute a read-only Lua script server side")
    },
    Spec {
        categories: &["slow"],
        group: "scripting",
        complexity: "Depends on subcommand.",
        subcommands: SCRIPT_COMMANDS,
        ..spec("script", Does::Own(Own::Container), -2, "A container for Lua scripts management commands")
    },
];

const WRITING: &[&str] = &["noscript", "stale", "skip_monitor", "no_mandatory_keys", "movablekeys"];
const READING: &[&str] =
    &["readonly", "noscript", "stale", "skip_monitor", "no_mandatory_keys", "movablekeys"];

const EVAL_SPEC: Spec = evaluation("eval", "script", evaluate, "Execute a Lua script server side");
const EVALSHA_SPEC: Spec = evaluation("evalsha", "sha1", evaluate_known, "Execute a Lua script server side");

const fn evaluation(
    name: &'static str,
    script: &'static str,
    read: fn(&mut Words) -> Result<Command, Unfit>,
    summary: &'static str,
) -> Spec {
    Spec {
        flags: WRITING,
        categories: &["slow", "scripting"],
        group: "scripting",
        complexity: "Depends on the script that is executed.",
        counted_keys: Some(&["RW", "access", "update"]),
        arguments: match script.len() {
            4 => DIGEST_ARGUMENTS,
            _ => TEXT_ARGUMENTS,
        },
        ..spec(name, Does::Ask(read), -3, summary)
    }
}

const TEXT_ARGUMENTS: &[Argument] =
    &[argument("script", "string"), argument("numkeys", "integer"), SCRIPT_KEYS, SCRIPT_ARGS];
const DIGEST_ARGUMENTS: &[Argument] =
    &[argument("sha1", "string"), argument("numkeys", "integer"), SCRIPT_KEYS, SCRIPT_ARGS];
const SCRIPT_KEYS: Argument = Argument { flags: &["optional", "multiple"], ..KEY };
const SCRIPT_ARGS: Argument = Argument { flags: &["optional", "multiple"], ..argument("arg", "string") };

const SCRIPT_COMMANDS: &[Spec] = &[
    Spec {
        arguments: &[Argument { flags: &["multiple"], ..argument("sha1", "string") }],
        complexity: "O(N) with N being the number of scripts to check (so checking a single script is an O(1) operation).",
        tips: &["request_policy:all_shards", "response_policy:agg_logical_and"],
        ..subcommand(
            "script|exists",
            Does::Ask(known),
            -3,
            "Check existence of scripts in the script cache.",
        )
    },
    Spec {
        arguments: &[Argument {
            flags: &["optional"],
            arguments: &[token("async", "ASYNC"), token("sync", "SYNC")],
            ..argument("async", "oneof")
        }],
        complexity: "O(N) with N being the number of scripts in cache",
        tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
        ..subcommand("script|flush", Does::Ask(forget), -2, "Remove all the scripts from the script cache.")
    },
    Spec {
        arguments: &[argument("script", "string")],
        flags: &["noscript", "stale"],
        complexity: "O(N) with N being the length in bytes of the script body.",
        tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
        ..subcommand("script|load", Does::Ask(load), 3, "Load the specified Lua script into the script cache.")
    },
    Spec {
        flags: &["noscript", "allow_busy"],
        tips: &["request_policy:all_shards", "response_policy:one_succeeded"],
        ..subcommand(
            "script|kill",
            Does::Own(Own::ScriptKill),
            2,
            "Kill the script currently in execution.",
        )
    },
    Spec {
        flags: &["loading", "stale"],
        ..subcommand(
            "script|help",
            Does::Own(Own::ScriptHelp),
            2,
            "Show helpful text about the different subcommands",
        )
    },
];

const fn subcommand(name: &'static str, does: Does, arity: i32, summary: &'static str) -> Spec {
    Spec {
        flags: &["noscript"],
        categories: &["slow", "scripting"],
        group: "scripting",
        ..spec(name, does, arity, summary)
    }
}

/// See [`Command::Evaluate`].
pub(super) static EVAL: CommandFacts = CommandFacts {
    changes: Changes::Effects,
    answer: AnswerLength::Values,
    log_word: "EVAL",
    asked_as: &["eval", "eval_ro", "evalsha", "evalsha_ro"],
    prompt: None,
};

/// See [`Command::ScriptCache`].
pub(super) static SCRIPT: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "SCRIPT",
    asked_as: &["script|exists", "script|flush", "script|load"],
    prompt: None,
};

fn evaluate(words: &mut Words) -> Result<Command, Unfit> {
    call(words, ScriptName::Text, false)
}

fn evaluate_read_only(words: &mut Words) -> Result<Command, Unfit> {
    call(words, ScriptName::Text, true)
}

fn evaluate_known(words: &mut Words) -> Result<Command, Unfit> {
    call(words, ScriptName::Digest, false)
}

fn evaluate_known_read_only(words: &mut Words) -> Result<Command, Unfit> {
    call(words, ScriptName::Digest, true)
}

fn call(words: &mut Words, name: fn(Bytes) -> ScriptName, is_read_only: bool) -> Result<Command, Unfit> {
    let script = name(script_text(words)?);
    let count = words.integer()?;
    let Ok(count) = usize::try_from(count) else {
        return Err(Unfit::Options("Number of keys can't be negative"));
    };
    if count > words.left() {
        return Err(Unfit::Options("Number of keys can't be greater than number of args"));
    }
    let mut keys = Vec::with_capacity(count);
    for _ in 0..count {
        keys.push(words.key()?);
    }
    let mut args = Vec::with_capacity(words.left());
    while words.left() > 0 {
        args.push(words.value()?);
    }
    let rights = ScriptRights::default();
    Ok(Command::Evaluate { call: Box::new(ScriptCall { script, keys, args, is_read_only, rights }) })
}

fn script_text(words: &mut Words) -> Result<Bytes, Unfit> {
    let text = words.word().ok_or(Unfit::Arity)?;
    if text.len() > SCRIPT_BYTES_MAX {
        return Err(Unfit::TooLong { what: "script", length: text.len(), length_max: SCRIPT_BYTES_MAX });
    }
    Ok(text)
}

fn load(words: &mut Words) -> Result<Command, Unfit> {
    words.word();
    Ok(Command::ScriptCache { request: ScriptRequest::Load(script_text(words)?) })
}

fn known(words: &mut Words) -> Result<Command, Unfit> {
    words.word();
    Ok(Command::ScriptCache { request: ScriptRequest::Known(words.keys()?) })
}

fn forget(words: &mut Words) -> Result<Command, Unfit> {
    words.word();
    let is_way = |word: &[u8]| word.eq_ignore_ascii_case(b"async") || word.eq_ignore_ascii_case(b"sync");
    match (words.word(), words.word()) {
        (None, _) => Ok(Command::ScriptCache { request: ScriptRequest::Forget }),
        (Some(way), None) if is_way(&way) => Ok(Command::ScriptCache { request: ScriptRequest::Forget }),
        (Some(_), _) => Err(Unfit::Options("SCRIPT FLUSH only support SYNC|ASYNC option")),
    }
}
