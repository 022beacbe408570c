//! Commands on keys, whatever kind of value they hold: DEL and UNLINK, EXISTS, TOUCH, TYPE; RENAME, RENAMENX, COPY and MOVE; SCAN,
//! KEYS and RANDOMKEY.

use super::entry::{
    argument, spec, token, AnswerLength, Argument, Changes, CommandFacts, Does, KeyRange, Own, PromptLine,
    Spec, KEY, KEYS,
};
use super::words::{Unfit, Words};
use super::{Command, Excerpt, Transfer};
use bytes::Bytes;

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[
    DEL_SPEC,
    EXISTS_SPEC,
    UNLINK_SPEC,
    TYPE_SPEC,
    TOUCH_SPEC,
    SCAN_SPEC,
    KEYS_SPEC,
    RANDOMKEY_SPEC,
    RENAME_SPEC,
    RENAMENX_SPEC,
    COPY_SPEC,
    MOVE_SPEC,
];

/// About so many keys one SCAN looks at if it does not say how many.
const SCAN_COUNT: u32 = 10;

/// See [`Command::Delete`].
pub(super) static DEL: CommandFacts = CommandFacts {
    changes: Changes::Keys,
    answer: AnswerLength::Short,
    log_word: "DELETE",
    asked_as: &["del", "delex", "unlink"],
    prompt: Some(PromptLine { usage: "DELETE <key>", means: "deletes the key" }),
};

const DEL_SPEC: Spec = Spec {
    flags: &["write"],
    keys: Some(KeyRange { last: -1, step: 1, flags: &["RM", "delete"] }),
    categories: &["keyspace", "write", "slow"],
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    group: "generic",
    complexity: "O(N) where N is the number of keys that will be removed.",
    arguments: &[KEYS],
    ..spec("del", Does::Ask(delete), -2, "Delete a key")
};

const UNLINK_SPEC: Spec = Spec {
    name: "unlink",
    flags: &["write", "fast"],
    categories: &["keyspace", "write", "fast"],
    ..DEL_SPEC
};

fn delete(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Delete { keys: words.keys()? })
}

/// See [`Command::Transfer`].
pub(super) static RENAME: CommandFacts = CommandFacts {
    changes: Changes::Effects,
    answer: AnswerLength::Short,
    log_word: "RENAME",
    asked_as: &["copy", "rename", "renamenx"],
    prompt: None,
};

const RENAME_SPEC: Spec = Spec {
    flags: &["write"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "access", "delete"] }),
    second_key: Some(&["OW", "update"]),
    categories: &["keyspace", "write", "slow"],
    group: "generic",
    arguments: &[KEY, argument("newkey", "key")],
    ..spec("rename", Does::Ask(rename), 3, "Rename a key")
};

const RENAMENX_SPEC: Spec = Spec {
    flags: &["write", "fast"],
    second_key: Some(&["OW", "insert"]),
    categories: &["keyspace", "write", "fast"],
    name: "renamenx",
    does: Does::Ask(rename_if_none),
    summary: "Rename a key, only if the new key does not exist",
    ..RENAME_SPEC
};

const COPY_SPEC: Spec = Spec {
    flags: &["write", "denyoom"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RO", "access"] }),
    name: "copy",
    does: Does::Ask(copy),
    arity: -3,
    summary: "Copy a key",
    complexity: "O(N) where N is the length of the value.",
    arguments: &[
        argument("source", "key"),
        argument("destination", "key"),
        Argument { token: Some("DB"), flags: &["optional"], ..argument("destination-db", "integer") },
        Argument { flags: &["optional"], ..token("replace", "REPLACE") },
    ],
    ..RENAME_SPEC
};

/// There is one database, so it never finds another one to move to.
const MOVE_SPEC: Spec = Spec {
    flags: &["write", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "access", "update"] }),
    categories: &["keyspace", "write", "fast"],
    group: "generic",
    arguments: &[KEY, argument("db", "integer")],
    ..spec("move", Does::Own(Own::Move), 3, "Move a key to another database")
};

fn rename(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Transfer { keys: Box::new([words.key()?, words.key()?]), transfer: Transfer::Rename })
}

fn rename_if_none(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Transfer { keys: Box::new([words.key()?, words.key()?]), transfer: Transfer::RenameIfNone })
}

fn copy(words: &mut Words) -> Result<Command, Unfit> {
    let keys = Box::new([words.key()?, words.key()?]);
    let mut transfer = Transfer::Copy;
    while let Some(word) = words.word() {
        if word.eq_ignore_ascii_case(b"replace") {
            transfer = Transfer::CopyOver;
        } else if word.eq_ignore_ascii_case(b"db") {
            if words.optional_integer()? != 0 {
                return Err(Unfit::Options("DB index is out of range"));
            }
        } else {
            return Err(Unfit::Syntax);
        }
    }
    Ok(Command::Transfer { keys, transfer })
}

/// See [`Command::Exists`].
pub(super) static EXISTS: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "EXISTS",
    asked_as: &["exists", "touch", "type"],
    prompt: None,
};

const EXISTS_SPEC: Spec = Spec {
    flags: &["readonly", "fast"],
    keys: Some(KeyRange { last: -1, step: 1, flags: &["RO"] }),
    categories: &["keyspace", "read", "fast"],
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    group: "generic",
    complexity: "O(N) where N is the number of keys to check.",
    arguments: &[KEYS],
    ..spec("exists", Does::Ask(exists), -2, "Determine if a key exists")
};

fn exists(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Exists { keys: words.keys()? })
}

/// There are no access times: it only counts.
const TOUCH_SPEC: Spec = Spec {
    name: "touch",
    summary: "Returns the number of existing keys specified.",
    complexity: "O(N) where N is the number of keys that will be touched.",
    ..EXISTS_SPEC
};

const TYPE_SPEC: Spec = Spec {
    flags: &["readonly", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RO"] }),
    categories: &["keyspace", "read", "fast"],
    group: "generic",
    arguments: &[KEY],
    ..spec("type", Does::AskFor(type_of), 2, "Determine the type stored at key")
};

fn type_of(words: &mut Words) -> Result<(Command, Excerpt), Unfit> {
    Ok((Command::Exists { keys: vec![words.key()?] }, Excerpt::Type))
}

/// See [`Command::Scan`].
pub(super) static SCAN: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "SCAN",
    asked_as: &["scan"],
    prompt: None,
};

const PATTERN: Argument = argument("pattern", "pattern");

const SCAN_SPEC: Spec = Spec {
    flags: &["readonly"],
    categories: &["keyspace", "read", "slow"],
    tips: &["nondeterministic_output", "request_policy:special"],
    group: "generic",
    complexity: "O(1) for every call. O(N) for a complete iteration, including enough command calls for the cursor to \
                 return back to 0. N is the number of keys.",
    arguments: &[
        argument("cursor", "integer"),
        Argument { token: Some("MATCH"), flags: &["optional"], ..PATTERN },
        Argument { token: Some("COUNT"), flags: &["optional"], ..argument("count", "integer") },
        Argument { token: Some("TYPE"), flags: &["optional"], ..argument("type", "string") },
    ],
    ..spec("scan", Does::Ask(scan), -2, "Incrementally iterate the keys space")
};

fn scan(words: &mut Words) -> Result<Command, Unfit> {
    let cursor = words.cursor()?;
    let (mut pattern, mut count, mut strings) = (None, SCAN_COUNT, true);
    while let Some(option) = words.word() {
        match option.to_ascii_uppercase().as_slice() {
            b"COUNT" => count = scan_count(words)?,
            b"MATCH" => pattern = Some(words.pattern()?),
            b"TYPE" => strings = words.word().ok_or(Unfit::Syntax)?.eq_ignore_ascii_case(b"string"),
            _ => return Err(Unfit::Syntax),
        }
    }
    let pattern = pattern.filter(|pattern: &Bytes| pattern != "*");
    Ok(Command::Scan { cursor, pattern, count, strings })
}

fn scan_count(words: &mut Words) -> Result<u32, Unfit> {
    let count = words.optional_integer()?;
    if count < 1 {
        return Err(Unfit::Syntax);
    }
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// See [`Command::Keys`].
pub(super) static KEYS_FACTS: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "KEYS",
    asked_as: &["keys"],
    prompt: Some(PromptLine { usage: "KEYS <pattern>", means: "prints the keys that match: * is any text" }),
};

const KEYS_SPEC: Spec = Spec {
    flags: &["readonly"],
    categories: &["keyspace", "read", "slow", "dangerous"],
    tips: &["request_policy:all_shards", "nondeterministic_output_order"],
    group: "generic",
    complexity: "O(N) where N is the number of keys.",
    arguments: &[PATTERN],
    ..spec("keys", Does::Ask(keys), 2, "Find all keys matching the given pattern")
};

fn keys(words: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Keys { pattern: words.pattern()? })
}

/// See [`Command::RandomKey`].
pub(super) static RANDOMKEY: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "RANDOMKEY",
    asked_as: &["randomkey"],
    prompt: None,
};

const RANDOMKEY_SPEC: Spec = Spec {
    flags: &["readonly"],
    categories: &["keyspace", "read", "slow"],
    tips: &["request_policy:all_shards", "nondeterministic_output"],
    group: "generic",
    ..spec("randomkey", Does::Ask(|_| Ok(Command::RandomKey)), 1, "Return a random key from the keyspace")
};
