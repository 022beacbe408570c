//! Commands on strings: those that read, those that write, and those that do both in one step.

use super::entry::{
    argument, spec, token, AnswerLength, Argument, Changes, CommandFacts, Does, KeyRange, PromptLine, Spec,
    KEY, KEYS, VALUE,
};
use super::expiry::{Counted, GETEX_SPEC, TIMES};
use super::words::{Unfit, Words};
use super::{
    Command, ComparedChange, Comparison, Condition, Consequence, Excerpt, Lifetime, Update, CHECKED_KEYS_MAX,
};
use crate::ids::Version;
use bytes::Bytes;

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[
    GET_SPEC,
    SET_SPEC,
    MGET_SPEC,
    MSET_SPEC,
    STRLEN_SPEC,
    INCR_SPEC,
    SETNX_SPEC,
    GETRANGE_SPEC,
    SETEX_SPEC,
    GETEX_SPEC,
    APPEND_SPEC,
    DECR_SPEC,
    DECRBY_SPEC,
    GETDEL_SPEC,
    GETSET_SPEC,
    DELEX_SPEC,
    DELIFEQ_SPEC,
    GETV_SPEC,
    SETV_SPEC,
    DELV_SPEC,
    INCRBY_SPEC,
    MSETNX_SPEC,
    PSETEX_SPEC,
    SETRANGE_SPEC,
    Spec { name: "read", ..GET_SPEC },
    WRITE_SPEC,
    Spec { name: "substr", ..GETRANGE_SPEC },
];

/// The values that the entries of commands share which change one key by what it holds.
const UPDATE_SPEC: Spec = Spec {
    flags: &["write", "denyoom", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "access", "update"] }),
    categories: &["write", "string", "fast"],
    group: "string",
    ..GET_SPEC
};

/// An entry of such a command.
const fn update_spec(
    name: &'static str,
    does: Does,
    arity: i32,
    summary: &'static str,
    arguments: &'static [Argument],
) -> Spec {
    Spec { name, does, arity, summary, arguments, ..UPDATE_SPEC }
}

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

const CONDITION: Argument = Argument {
    flags: &["optional"],
    arguments: &[token("nx", "NX"), token("xx", "XX"), COMPARISONS[0], COMPARISONS[1]],
    ..argument("condition", "oneof")
};
const COMPARISONS: [Argument; 2] = [
    Argument { token: Some("IFEQ"), ..argument("ifeq-value", "string") },
    Argument { token: Some("IFNE"), ..argument("ifne-value", "string") },
];
const OLD: Argument = Argument { flags: &["optional"], ..token("get", "GET") };
const TIME: Argument = Argument {
    flags: &["optional"],
    arguments: &[TIMES[0], TIMES[1], TIMES[2], TIMES[3], token("keepttl", "KEEPTTL")],
    ..argument("expiration", "oneof")
};

const SET_SPEC: Spec = Spec {
    flags: &["write", "denyoom"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "access", "update", "variable_flags"] }),
    categories: &["write", "string", "slow"],
    group: "string",
    arguments: &[KEY, VALUE, CONDITION, OLD, TIME],
    ..spec("set", Does::Ask(set), -3, "Set the string value of a key")
};

const WRITE_SPEC: Spec = Spec { name: "write", arity: 3, does: Does::Ask(write), ..SET_SPEC };

fn write(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    Ok(Command::Put { key, value: words.value()? })
}

/// The options that compare the value.
#[derive(Clone, Copy)]
enum CompareOption {
    Equal,
    Different,
}

impl CompareOption {
    /// The option of that name.
    fn from_name(name: &[u8]) -> Option<Self> {
        if name.eq_ignore_ascii_case(b"IFEQ") {
            Some(CompareOption::Equal)
        } else if name.eq_ignore_ascii_case(b"IFNE") {
            Some(CompareOption::Different)
        } else {
            None
        }
    }

    fn with(self, value: Bytes) -> Comparison {
        match self {
            CompareOption::Equal => Comparison::Equal(value),
            CompareOption::Different => Comparison::Different(value),
        }
    }
}

/// What a `SET` asks for beside the value.
#[derive(Clone, Default)]
struct SetOptions {
    condition: Option<Condition>,
    /// With what the value is compared.
    compared: Option<(CompareOption, Bytes)>,
    wants_old: bool,
    keeps_ttl: bool,
    expires: Option<(Counted, Bytes)>,
}

impl SetOptions {
    fn read(words: &mut Words) -> Result<Self, Unfit> {
        let mut options = SetOptions::default();
        while let Some(option) = words.word() {
            let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
            if let Some(compared) = CompareOption::from_name(&option) {
                let is_first = options.condition.is_none() && options.compared.is_none();
                let Some(value) = words.word().filter(|_| is_first) else { return Err(Unfit::Syntax) };
                options.compared = Some((compared, value));
            } else if (is("NX") || is("XX")) && options.compared.is_some() {
                return Err(Unfit::Syntax);
            } else if is("NX") && options.condition != Some(Condition::IfPresent) {
                options.condition = Some(Condition::IfAbsent);
            } else if is("XX") && options.condition != Some(Condition::IfAbsent) {
                options.condition = Some(Condition::IfPresent);
            } else if is("GET") {
                options.wants_old = true;
            } else if is("KEEPTTL") && options.expires.is_none() {
                options.keeps_ttl = true;
            } else {
                let counted = Counted::from_option(&option).filter(|_| !options.keeps_ttl);
                let before = options.expires.as_ref().map(|(before, _)| *before);
                let counted = counted.filter(|counted| before.is_none_or(|before| before == *counted));
                let (Some(counted), Some(number)) = (counted, words.word()) else {
                    return Err(Unfit::Syntax);
                };
                options.expires = Some((counted, number));
            }
        }
        Ok(options)
    }

    fn life(&self) -> Result<Lifetime, Unfit> {
        match &self.expires {
            Some((counted, number)) => counted.positive(number),
            None if self.keeps_ttl => Ok(Lifetime::Same),
            None => Ok(Lifetime::Endless),
        }
    }
}

fn set(words: &mut Words) -> Result<Command, Unfit> {
    let (Some(key), Some(value)) = (words.word(), words.word()) else { return Err(Unfit::Arity) };
    let options = SetOptions::read(words)?;
    let (key, value, life) = (words.is_key(key)?, words.is_value(value)?, options.life()?);
    if let Some((compared, with)) = options.compared {
        let when = compared.with(words.is_value(with)?);
        let makes = Consequence::Set { value, life, answers_old: options.wants_old };
        return Ok(Command::Compare { key, change: Box::new(ComparedChange { when, makes }) });
    }
    let when = options.condition.unwrap_or(Condition::Always);
    Ok(if options.wants_old {
        Command::Swap { key, value, when, life }
    } else if when == Condition::Always && life == Lifetime::Endless {
        Command::Put { key, value }
    } else {
        Command::Update { key, update: Update::Set { value, when, life } }
    })
}

const SETEX_SPEC: Spec = Spec {
    keys: Some(KeyRange { last: 0, step: 1, flags: &["OW", "update"] }),
    arguments: &[KEY, argument("seconds", "integer"), VALUE],
    arity: 4,
    name: "setex",
    does: Does::Ask(|words| set_for(words, Counted::Seconds)),
    summary: "Set the value and expiration of a key",
    ..SET_SPEC
};

const PSETEX_SPEC: Spec = Spec {
    arguments: &[KEY, argument("milliseconds", "integer"), VALUE],
    name: "psetex",
    does: Does::Ask(|words| set_for(words, Counted::Millis)),
    summary: "Set the value and expiration in milliseconds of a key",
    ..SETEX_SPEC
};

fn set_for(words: &mut Words, counted: Counted) -> Result<Command, Unfit> {
    let key = words.key()?;
    let number = words.word().ok_or(Unfit::Arity)?;
    let value = words.value()?;
    let life = counted.positive(&number)?;
    Ok(Command::Update { key, update: Update::Set { value, when: Condition::Always, life } })
}

/// See [`Command::Update`].
pub(super) static UPDATE: CommandFacts = CommandFacts {
    changes: Changes::Values,
    answer: AnswerLength::Short,
    log_word: "UPDATE",
    asked_as: &[
        "append",
        "decr",
        "decrby",
        "expire",
        "expireat",
        "incr",
        "incrby",
        "persist",
        "pexpire",
        "pexpireat",
        "psetex",
        "set",
        "setex",
        "setnx",
        "setrange",
    ],
    prompt: None,
};

const SETNX_SPEC: Spec = Spec {
    keys: Some(KeyRange { last: 0, step: 1, flags: &["OW", "insert"] }),
    ..update_spec(
        "setnx",
        Does::AskFor(set_if_absent),
        3,
        "Set the value of a key, only if the key does not exist",
        &[KEY, VALUE],
    )
};

fn set_if_absent(words: &mut Words) -> Result<(Command, Excerpt), Unfit> {
    let key = words.key()?;
    let update = Update::Set { value: words.value()?, when: Condition::IfAbsent, life: Lifetime::Endless };
    Ok((Command::Update { key, update }, Excerpt::WhetherDone))
}

const INCR_SPEC: Spec =
    update_spec("incr", Does::Ask(increment), 2, "Increment the integer value of a key by one", &[KEY]);

fn increment(words: &mut Words) -> Result<Command, Unfit> {
    Ok(add(words.key()?, 1))
}

fn add(key: Bytes, number: i64) -> Command {
    Command::Update { key, update: Update::Add { number } }
}

const DECR_SPEC: Spec =
    update_spec("decr", Does::Ask(decrement), 2, "Decrement the integer value of a key by one", &[KEY]);

fn decrement(words: &mut Words) -> Result<Command, Unfit> {
    Ok(add(words.key()?, -1))
}

const INCRBY_SPEC: Spec = update_spec(
    "incrby",
    Does::Ask(increment_by),
    3,
    "Increment the integer value of a key by the given amount",
    &[KEY, argument("increment", "integer")],
);

fn increment_by(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    Ok(add(key, words.integer()?))
}

const DECRBY_SPEC: Spec = update_spec(
    "decrby",
    Does::Ask(decrement_by),
    3,
    "Decrement the integer value of a key by the given number",
    &[KEY, argument("decrement", "integer")],
);

fn decrement_by(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    let number = words.integer()?.checked_neg().ok_or(Unfit::NoNegative)?;
    Ok(add(key, number))
}

const APPEND_SPEC: Spec = Spec {
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "insert"] }),
    complexity: "O(N) where N is the length of the value after it.",
    ..update_spec("append", Does::Ask(append), 3, "Append a value to a key", &[KEY, VALUE])
};

fn append(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    Ok(Command::Update { key, update: Update::Append { tail: words.value()? } })
}

const SETRANGE_SPEC: Spec = Spec {
    flags: &["write", "denyoom"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "update"] }),
    categories: &["write", "string", "slow"],
    complexity: "O(N) where N is the length of the value after it.",
    ..update_spec(
        "setrange",
        Does::Ask(set_range),
        4,
        "Overwrite part of a string at key starting at the specified offset",
        &[KEY, argument("offset", "integer"), VALUE],
    )
};

fn set_range(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    let offset = u64::try_from(words.integer()?).map_err(|_| Unfit::Offset)?;
    Ok(Command::Update { key, update: Update::SetRange { offset, bytes: words.value()? } })
}

/// See [`Command::Swap`].
pub(super) static SWAP: CommandFacts = CommandFacts {
    changes: Changes::Values,
    answer: AnswerLength::Values,
    log_word: "SWAP",
    asked_as: &["getset", "set"],
    prompt: None,
};

const GETSET_SPEC: Spec = update_spec(
    "getset",
    Does::Ask(get_and_set),
    3,
    "Set the string value of a key and return its old value",
    &[KEY, VALUE],
);

fn get_and_set(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    let (when, life) = (Condition::Always, Lifetime::Endless);
    Ok(Command::Swap { key, value: words.value()?, when, life })
}

/// See [`Command::Take`].
pub(super) static TAKE: CommandFacts = CommandFacts {
    changes: Changes::Keys,
    answer: AnswerLength::Values,
    log_word: "TAKE",
    asked_as: &["getdel"],
    prompt: None,
};

const GETDEL_SPEC: Spec = Spec {
    flags: &["write", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "access", "delete"] }),
    ..update_spec("getdel", Does::Ask(get_and_delete), 2, "Get the value of a key and delete the key", &[KEY])
};

fn get_and_delete(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Take { key: words.key()? })
}

/// See [`Command::Compare`].
pub(super) static COMPARE: CommandFacts = CommandFacts {
    changes: Changes::Effects,
    answer: AnswerLength::Values,
    log_word: "COMPARE",
    asked_as: &["delex", "delifeq", "dsm.delv", "dsm.setv", "set"],
    prompt: None,
};

/// As in Redis 8.4, without its digests.
const DELEX_SPEC: Spec = Spec {
    flags: &["write", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "delete", "variable_flags"] }),
    ..update_spec(
        "delex",
        Does::Ask(delete_if),
        -2,
        "Conditionally removes the specified key based on value comparison.",
        &[KEY, Argument { flags: &["optional"], arguments: &COMPARISONS, ..argument("condition", "oneof") }],
    )
};

fn delete_if(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    let Some(option) = words.word() else { return Ok(Command::Delete { keys: vec![key] }) };
    if words.left() != 1 {
        return Err(Unfit::Arity);
    }
    let compared = CompareOption::from_name(&option).ok_or(Unfit::Syntax)?;
    let when = compared.with(words.value()?);
    Ok(Command::Compare { key, change: Box::new(ComparedChange { when, makes: Consequence::Delete }) })
}

/// As in Valkey 9.
const DELIFEQ_SPEC: Spec = Spec {
    flags: &["write"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RM", "access", "delete"] }),
    categories: &["write", "string", "slow"],
    ..update_spec(
        "delifeq",
        Does::Ask(delete_if_equal),
        3,
        "Delete key if value matches string.",
        &[KEY, VALUE],
    )
};

fn delete_if_equal(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    let when = Comparison::Equal(words.value()?);
    Ok(Command::Compare { key, change: Box::new(ComparedChange { when, makes: Consequence::Delete }) })
}

/// See [`Command::GetVersioned`].
pub(super) static GETV: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Values,
    log_word: "READ",
    asked_as: &["dsm.getv"],
    prompt: None,
};

const VERSION: Argument = argument("version", "string");

const GETV_SPEC: Spec = Spec {
    name: "dsm.getv",
    does: Does::Ask(|words| Ok(Command::GetVersioned { key: words.key()? })),
    summary: "Get the value of a key and its version",
    ..GET_SPEC
};

/// With the options of `SET` that are about time.
const SETV_SPEC: Spec = Spec {
    name: "dsm.setv",
    does: Does::Ask(set_version),
    arity: -4,
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "access", "update"] }),
    arguments: &[KEY, VALUE, VERSION, OLD, TIME],
    summary: "Set the value of a key, only if it has that version",
    ..SET_SPEC
};

fn set_version(words: &mut Words) -> Result<Command, Unfit> {
    let (Some(key), Some(value)) = (words.word(), words.word()) else { return Err(Unfit::Arity) };
    let when = Comparison::Version(version(words)?);
    let options = SetOptions::read(words)?;
    if options.condition.is_some() || options.compared.is_some() {
        return Err(Unfit::Syntax);
    }
    let (key, value, life) = (words.is_key(key)?, words.is_value(value)?, options.life()?);
    let makes = Consequence::Set { value, life, answers_old: options.wants_old };
    Ok(Command::Compare { key, change: Box::new(ComparedChange { when, makes }) })
}

/// A version; `None` for 0.0, which is told of a key that is not there.
fn version(words: &mut Words) -> Result<Option<Version>, Unfit> {
    let word = words.word().ok_or(Unfit::Arity)?;
    let version: Option<Version> = std::str::from_utf8(&word).ok().and_then(|word| word.parse().ok());
    let version = version.ok_or(Unfit::Options("a version is what DSM.GETV tells, as 3.17; 0.0 for none"))?;
    Ok(Some(version).filter(|version| *version != Version::default()))
}

const DELV_SPEC: Spec = Spec {
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "access", "delete"] }),
    ..update_spec(
        "dsm.delv",
        Does::Ask(delete_version),
        3,
        "Delete a key, only if it has that version",
        &[KEY, VERSION],
    )
};

fn delete_version(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    let when = Comparison::Version(version(words)?);
    Ok(Command::Compare { key, change: Box::new(ComparedChange { when, makes: Consequence::Delete }) })
}

/// See [`Command::PutManyIfNone`].
pub(super) static MSETNX: CommandFacts = CommandFacts {
    changes: Changes::Values,
    answer: AnswerLength::Short,
    log_word: "WRITE",
    asked_as: &["msetnx"],
    prompt: None,
};

const MSETNX_SPEC: Spec = Spec {
    name: "msetnx",
    does: Does::Ask(set_many_if_none),
    keys: Some(KeyRange { last: -1, step: 2, flags: &["OW", "insert"] }),
    tips: &["request_policy:multi_shard", "response_policy:agg_min"],
    summary: "Set multiple keys to multiple values, only if none of the keys exist",
    ..MSET_SPEC
};

fn set_many_if_none(words: &mut Words) -> Result<Command, Unfit> {
    let pairs = words.pairs()?;
    if pairs.len() > CHECKED_KEYS_MAX {
        return Err(Unfit::TooManyKeys { keys: pairs.len(), keys_max: CHECKED_KEYS_MAX });
    }
    Ok(Command::PutManyIfNone { pairs })
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
