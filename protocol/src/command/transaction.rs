//! Transactions: MULTI, EXEC, DISCARD, WATCH and UNWATCH.
//!
//! The connection queues the commands (`resp/queue.rs`) and asks for all of them at once (`bundle.rs`), so a transaction is never open
//! at the store.

use super::entry::{spec, AnswerLength, Changes, CommandFacts, Does, KeyRange, Own, Spec, KEYS};

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[
    control("multi", Own::Multi, "Mark the start of a transaction block"),
    Spec {
        flags: &["noscript", "loading", "stale", "skip_slowlog"],
        categories: &["slow", "transaction"],
        complexity: "Depends on commands in the transaction",
        ..control("exec", Own::Exec, "Execute all commands issued after MULTI")
    },
    Spec {
        complexity: "O(N), when N is the number of queued commands",
        ..control("discard", Own::Discard, "Discard all commands issued after MULTI")
    },
    Spec {
        keys: Some(KeyRange { last: -1, step: 1, flags: &["RO"] }),
        arity: -2,
        arguments: &[KEYS],
        complexity: "O(1) for every key.",
        ..control("watch", Own::Watch, "Watch the given keys to determine execution of the MULTI/EXEC block")
    },
    control("unwatch", Own::Unwatch, "Forget about all watched keys"),
];

const fn control(name: &'static str, own: Own, summary: &'static str) -> Spec {
    Spec {
        flags: &["noscript", "loading", "stale", "fast", "allow_busy"],
        categories: &["fast", "transaction"],
        group: "transactions",
        ..spec(name, Does::Own(own), 1, summary)
    }
}

/// See [`Command::Transact`].
pub(super) static EXEC: CommandFacts = CommandFacts {
    changes: Changes::Effects,
    answer: AnswerLength::Values,
    log_word: "EXEC",
    asked_as: &[],
    prompt: None,
};

/// See [`Command::Watch`].
pub(super) static WATCH: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "WATCH",
    asked_as: &[],
    prompt: None,
};
