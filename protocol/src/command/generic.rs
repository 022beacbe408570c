//! Commands on keys, whatever kind of value they hold: DEL and UNLINK, EXISTS, TOUCH, TYPE.

use super::entry::{spec, AnswerLength, Changes, CommandFacts, Does, KeyRange, PromptLine, Spec, KEY, KEYS};
use super::words::{Unfit, Words};
use super::{Command, Excerpt};

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[DEL_SPEC, EXISTS_SPEC, UNLINK_SPEC, TYPE_SPEC, TOUCH_SPEC];

/// See [`Command::Delete`].
pub(super) static DEL: CommandFacts = CommandFacts {
    changes: Changes::Keys,
    answer: AnswerLength::Short,
    log_word: "DELETE",
    asked_as: &["del", "unlink"],
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
