//! Commands that look at a key without reading it: OBJECT and MEMORY.

use super::entry::{
    argument, spec, AnswerLength, Argument, Changes, CommandFacts, Does, KeyRange, Own, Spec, KEY,
};
use super::words::{Unfit, Words};
use super::{Command, KeyTrait};

/// The names of this family.
pub(super) const NAMES: &[Spec] = &[
    Spec {
        categories: &["slow"],
        group: "generic",
        complexity: "Depends on subcommand.",
        subcommands: OBJECT_COMMANDS,
        ..spec("object", Does::Own(Own::Container), -2, "A container for object introspection commands")
    },
    Spec {
        categories: &["slow"],
        group: "server",
        complexity: "Depends on subcommand.",
        subcommands: MEMORY_COMMANDS,
        ..spec("memory", Does::Own(Own::Container), -2, "A container for memory diagnostics commands")
    },
];

/// See [`Command::Examine`].
pub(super) static EXAMINE: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "EXAMINE",
    asked_as: &["memory|usage", "object|encoding", "object|freq", "object|idletime", "object|refcount"],
    prompt: None,
};

/// A subcommand of `OBJECT`.
const fn object(name: &'static str, does: Does, summary: &'static str) -> Spec {
    Spec {
        flags: &["readonly"],
        keys: Some(KeyRange { last: 0, step: 1, flags: &["RO"] }),
        categories: &["keyspace", "read", "slow"],
        tips: &["nondeterministic_output"],
        group: "generic",
        arguments: &[KEY],
        ..spec(name, does, 3, summary)
    }
}

const OBJECT_COMMANDS: &[Spec] = &[
    object(
        "object|encoding",
        Does::Ask(|words| examine(words, KeyTrait::Encoding)),
        "Inspect the encoding that Redis would give the value",
    ),
    object(
        "object|freq",
        Does::Ask(|words| examine(words, KeyTrait::Frequency)),
        "Not supported: it is not kept how often a key is used",
    ),
    Spec {
        flags: &["loading", "stale"],
        categories: &["keyspace", "slow"],
        group: "generic",
        ..spec(
            "object|help",
            Does::Own(Own::ObjectHelp),
            2,
            "Show helpful text about the different subcommands",
        )
    },
    object(
        "object|idletime",
        Does::Ask(|words| examine(words, KeyTrait::IdleTime)),
        "Not supported: it is not kept when a key was used",
    ),
    object(
        "object|refcount",
        Does::Ask(|words| examine(words, KeyTrait::References)),
        "Get the number of references to the value of the key: always 1",
    ),
];

const MEMORY_COMMANDS: &[Spec] = &[
    Spec {
        flags: &["loading", "stale"],
        categories: &["slow"],
        group: "server",
        ..spec(
            "memory|help",
            Does::Own(Own::MemoryHelp),
            2,
            "Show helpful text about the different subcommands",
        )
    },
    Spec {
        flags: &["readonly"],
        keys: Some(KeyRange { last: 0, step: 1, flags: &["RO"] }),
        categories: &["read", "slow"],
        group: "server",
        arguments: &[
            KEY,
            Argument { token: Some("SAMPLES"), flags: &["optional"], ..argument("count", "integer") },
        ],
        ..spec("memory|usage", Does::Ask(usage), -3, "Estimate the memory usage of a key")
    },
];

fn examine(words: &mut Words, what: KeyTrait) -> Result<Command, Unfit> {
    words.word();
    Ok(Command::Examine { key: words.key()?, what })
}

/// A value has no parts of which some could be sampled.
fn usage(words: &mut Words) -> Result<Command, Unfit> {
    let asked = examine(words, KeyTrait::MemoryUsage)?;
    while let Some(option) = words.word() {
        if !option.eq_ignore_ascii_case(b"samples") || words.optional_integer()? < 0 {
            return Err(Unfit::Syntax);
        }
    }
    Ok(asked)
}
