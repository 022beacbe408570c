//! Commands on strings: GET and READ, GETRANGE and SUBSTR, MGET, SET and WRITE, MSET, STRLEN.

use super::entry::{
    argument, spec, AnswerLength, Argument, Changes, CommandFacts, Does, KeyRange, PromptLine, Spec, KEY,
    KEYS, VALUE,
};
use super::words::{Unfit, Words};
use super::{Command, Excerpt};

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[
    GET_SPEC,
    SET_SPEC,
    MGET_SPEC,
    MSET_SPEC,
    STRLEN_SPEC,
    GETRANGE_SPEC,
    Spec { name: "read", ..GET_SPEC },
    WRITE_SPEC,
    Spec { name: "substr", ..GETRANGE_SPEC },
];

/// See [`Command::Get`].
pub(super) static GET: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Values,
    log_word: "READ",
    asked_as: &["get", "getrange", "read", "substr"],
    prompt: Some(PromptLine { usage: "READ <key>", means: "prints the value of the key" }),
};

const GET_SPEC: Spec = Spec {
    flags: &["readonly", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RO", "access"] }),
    categories: &["read", "string", "fast"],
    group: "string",
    arguments: &[KEY],
    ..spec("get", Does::Ask(get), 2, "Get the value of a key")
};

fn get(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Get { key: words.key()? })
}

const GETRANGE_SPEC: Spec = Spec {
    flags: &["readonly"],
    categories: &["read", "string", "slow"],
    complexity: "O(N) where N is the length of the value.",
    arguments: &[KEY, argument("start", "integer"), argument("end", "integer")],
    keys: GET_SPEC.keys,
    group: "string",
    ..spec("getrange", Does::AskFor(get_range), 4, "Get a substring of the string stored at a key")
};

/// The whole value is read, and the connection cuts it: a range of it has no checksum of its own.
fn get_range(words: &mut Words) -> Result<(Command, Excerpt), Unfit> {
    let key = words.key()?;
    let (first, last) = (words.integer()?, words.integer()?);
    Ok((Command::Get { key }, Excerpt::Range { first, last }))
}

/// See [`Command::ValueLength`].
pub(super) static STRLEN: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "LENGTH",
    asked_as: &["strlen"],
    prompt: None,
};

const STRLEN_SPEC: Spec = Spec {
    flags: &["readonly", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RO"] }),
    categories: &["read", "string", "fast"],
    group: "string",
    arguments: &[KEY],
    ..spec("strlen", Does::Ask(value_length), 2, "Get the length of the value stored in a key")
};

fn value_length(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::ValueLength { key: words.key()? })
}

/// See [`Command::GetMany`].
pub(super) static MGET: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Values,
    log_word: "READ",
    asked_as: &["mget"],
    prompt: None,
};

const MGET_SPEC: Spec = Spec {
    flags: &["readonly", "fast"],
    keys: Some(KeyRange { last: -1, step: 1, flags: &["RO", "access"] }),
    categories: &["read", "string", "fast"],
    tips: &["request_policy:multi_shard"],
    group: "string",
    complexity: "O(N) where N is the number of keys to retrieve.",
    arguments: &[KEYS],
    ..spec("mget", Does::Ask(get_many), -2, "Get the values of all the given keys")
};

fn get_many(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::GetMany { keys: words.keys()? })
}

/// See [`Command::Put`].
pub(super) static SET: CommandFacts = CommandFacts {
    changes: Changes::Values,
    answer: AnswerLength::Short,
    log_word: "WRITE",
    asked_as: &["set", "write"],
    prompt: Some(PromptLine {
        usage: "WRITE <key> <value>",
        means: "writes the key; the value is the rest of the line",
    }),
};

const SET_SPEC: Spec = Spec {
    flags: &["write", "denyoom"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["OW", "update"] }),
    categories: &["write", "string", "slow"],
    group: "string",
    arguments: &[KEY, VALUE],
    ..spec("set", Does::Ask(set), -3, "Set the string value of a key")
};

const WRITE_SPEC: Spec = Spec { name: "write", arity: 3, ..SET_SPEC };

/// Options of `SET` that Redis 7 has and this server does not have yet.
const SET_OPTIONS: [&str; 8] = ["NX", "XX", "GET", "EX", "PX", "EXAT", "PXAT", "KEEPTTL"];

fn set(words: &mut Words) -> Result<Command, Unfit> {
    let (Some(key), Some(value)) = (words.word(), words.word()) else { return Err(Unfit::Arity) };
    match words.word() {
        None => Ok(Command::Put { key: words.is_key(key)?, value: words.is_value(value)? }),
        Some(option) if SET_OPTIONS.iter().any(|known| option.eq_ignore_ascii_case(known.as_bytes())) => {
            Err(Unfit::Option { of: "SET", option })
        }
        Some(_) => Err(Unfit::Syntax),
    }
}

/// See [`Command::PutMany`].
pub(super) static MSET: CommandFacts = CommandFacts {
    changes: Changes::Values,
    answer: AnswerLength::Short,
    log_word: "WRITE",
    asked_as: &["mset"],
    prompt: None,
};

const MSET_SPEC: Spec = Spec {
    flags: &["write", "denyoom"],
    keys: Some(KeyRange { last: -1, step: 2, flags: &["OW", "update"] }),
    categories: &["write", "string", "slow"],
    tips: &["request_policy:multi_shard", "response_policy:all_succeeded"],
    group: "string",
    complexity: "O(N) where N is the number of keys to set.",
    arguments: &[Argument {
        flags: &["multiple"],
        arguments: &[KEY, VALUE],
        ..argument("key_value", "block")
    }],
    ..spec("mset", Does::Ask(set_many), -3, "Set multiple keys to multiple values")
};

fn set_many(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::PutMany { pairs: words.pairs()? })
}
