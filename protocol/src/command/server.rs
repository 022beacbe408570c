//! Commands on the server: DBSIZE, TIME, FLUSHALL and FLUSHDB, INFO and STATUS, FAILOVER, REMOVE-SLAVE, MEMBERS, COMMAND, CONFIG.

use super::entry::{
    argument, spec, token, AnswerLength, Argument, Changes, CommandFacts, Does, Own, PromptLine, Spec, ADMIN,
};
use super::words::{Unfit, Words};
use super::{Command, MembersOrder};
use crate::ids::SlaveId;

const COMMAND_NAMES: Argument =
    Argument { flags: &["optional", "multiple"], ..argument("command-name", "string") };
const COMMAND_LINE: &[Argument] = &[
    argument("command", "string"),
    Argument { flags: &["optional", "multiple"], ..argument("arg", "string") },
];
const SECTION: Argument = Argument { flags: &["optional", "multiple"], ..argument("section", "string") };

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[
    DBSIZE_SPEC,
    TIME_SPEC,
    INFO_SPEC,
    Spec { name: "status", ..INFO_SPEC },
    FLUSHALL_SPEC,
    FLUSHDB_SPEC,
    FAILOVER_SPEC,
    REMOVE_SLAVE_SPEC,
    MEMBERS_SPEC,
    Spec {
        flags: &["noscript", "loading", "stale", "fast"],
        categories: &["admin", "fast", "dangerous"],
        group: "server",
        ..spec("role", Does::Own(Own::Role), 1, "Return the role of this master in the replication")
    },
    Spec {
        flags: &["loading", "stale"],
        categories: &["slow", "connection"],
        tips: &["nondeterministic_output_order"],
        group: "server",
        complexity: "O(N) where N is the total number of commands",
        subcommands: COMMAND_COMMANDS,
        ..spec("command", Does::Own(Own::CommandAll), -1, "Get array of command details")
    },
    Spec {
        categories: &["slow"],
        group: "server",
        complexity: "Depends on subcommand.",
        subcommands: CONFIG_COMMANDS,
        ..spec("config", Does::Own(Own::Container), -2, "A container for server configuration commands")
    },
    Spec {
        flags: &["noscript"],
        categories: &["slow", "connection"],
        tips: &["request_policy:all_shards", "response_policy:agg_min"],
        group: "generic",
        arguments: &[argument("numreplicas", "integer"), argument("timeout", "integer")],
        ..spec("wait", Does::Own(Own::Wait), 3, "Wait for the synchronous replication of all the write commands sent in the context of the current connection")
    },
    Spec {
        categories: &["slow"],
        group: "server",
        complexity: "Depends on subcommand.",
        subcommands: SLOWLOG_COMMANDS,
        ..spec("slowlog", Does::Own(Own::Container), -2, "A container for slow log commands")
    },
    Spec {
        categories: &["slow"],
        group: "server",
        complexity: "Depends on subcommand.",
        subcommands: LATENCY_COMMANDS,
        ..spec("latency", Does::Own(Own::Container), -2, "A container for latency diagnostics commands")
    },
];

/// See [`Command::KeyCount`].
pub(super) static DBSIZE: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "KEYCOUNT",
    asked_as: &["dbsize"],
    prompt: None,
};

const DBSIZE_SPEC: Spec = Spec {
    flags: &["readonly", "fast"],
    categories: &["keyspace", "read", "fast"],
    tips: &["request_policy:all_shards", "response_policy:agg_sum"],
    group: "server",
    ..spec("dbsize", Does::Ask(key_count), 1, "Return the number of keys")
};

fn key_count(_: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::KeyCount)
}

/// See [`Command::Time`].
pub(super) static TIME: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "TIME",
    asked_as: &["time"],
    prompt: None,
};

const TIME_SPEC: Spec = Spec {
    flags: &["loading", "stale", "fast"],
    categories: &["fast"],
    tips: &["nondeterministic_output"],
    group: "server",
    ..spec("time", Does::Ask(time), 1, "Return the current server time")
};

fn time(_: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Time)
}

const SLOWLOG_COMMANDS: &[Spec] = &[
    Spec {
        tips: &["request_policy:all_nodes", "nondeterministic_output"],
        arguments: &[Argument { flags: &["optional"], ..argument("count", "integer") }],
        ..diagnosis(
            "slowlog|get",
            Own::SlowlogGet,
            -2,
            "Get the slow log's entries: none, as there is no slow log",
        )
    },
    Spec {
        flags: &["loading", "stale"],
        categories: &["slow"],
        ..diagnosis("slowlog|help", Own::SlowlogHelp, 2, "Show helpful text about the different subcommands")
    },
    Spec {
        tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
        ..diagnosis("slowlog|reset", Own::SlowlogReset, 2, "Clear all entries from the slow log")
    },
    Spec {
        tips: &["request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"],
        ..diagnosis("slowlog|len", Own::SlowlogLen, 2, "Get the slow log's length")
    },
];

const LATENCY_COMMANDS: &[Spec] = &[
    Spec {
        arguments: &[argument("event", "string")],
        ..diagnosis(
            "latency|history",
            Own::LatencyEvents,
            3,
            "Return timestamp-latency samples: none are taken",
        )
    },
    diagnosis("latency|latest", Own::LatencyEvents, 2, "Return the latest latency samples for all events"),
    Spec {
        arguments: &[Argument { flags: &["optional", "multiple"], ..argument("event", "string") }],
        ..diagnosis("latency|reset", Own::LatencyReset, -2, "Reset latency data for one or more events")
    },
    Spec {
        flags: &["loading", "stale"],
        categories: &["slow"],
        ..diagnosis("latency|help", Own::LatencyHelp, 2, "Show helpful text about the different subcommands")
    },
];

const fn diagnosis(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec {
        flags: if let Own::LatencyEvents | Own::LatencyReset = own {
            ADMIN
        } else {
            &["admin", "loading", "stale"]
        },
        categories: &["admin", "slow", "dangerous"],
        group: "server",
        ..spec(name, Does::Own(own), arity, summary)
    }
}

/// See [`Command::DeleteAll`].
pub(super) static FLUSHALL: CommandFacts = CommandFacts {
    changes: Changes::Keys,
    answer: AnswerLength::Short,
    log_word: "DELETEALL",
    asked_as: &["flushall", "flushdb"],
    prompt: None,
};

const FLUSHALL_SPEC: Spec = Spec {
    flags: &["write"],
    categories: &["keyspace", "write", "slow", "dangerous"],
    tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
    group: "server",
    complexity: "O(N) where N is the number of keys",
    arguments: &[Argument {
        flags: &["optional"],
        arguments: &[token("async", "ASYNC"), token("sync", "SYNC")],
        ..argument("async", "oneof")
    }],
    ..spec("flushall", Does::Ask(delete_all), -1, "Remove all keys")
};

/// There is one database.
const FLUSHDB_SPEC: Spec = Spec { name: "flushdb", ..FLUSHALL_SPEC };

/// ASYNC is about memory in Redis: there, too, the keys are gone with the answer.
fn delete_all(words: &mut Words) -> Result<Command, Unfit> {
    let is_way = |word: &[u8]| word.eq_ignore_ascii_case(b"async") || word.eq_ignore_ascii_case(b"sync");
    match (words.word(), words.word()) {
        (None, _) => Ok(Command::DeleteAll),
        (Some(way), None) if is_way(&way) => Ok(Command::DeleteAll),
        (Some(_), _) => Err(Unfit::Syntax),
    }
}

/// See [`Command::Status`].
pub(super) static INFO: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Status,
    log_word: "STATUS",
    asked_as: &["info", "status"],
    prompt: Some(PromptLine { usage: "STATUS", means: "describes the master that serves" }),
};

const INFO_SPEC: Spec = Spec {
    flags: &["loading", "stale"],
    categories: &["slow", "dangerous"],
    tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
    group: "server",
    arguments: &[SECTION],
    ..spec("info", Does::Describe, -1, "Get information and statistics about the server")
};

/// See [`Command::Failover`].
pub(super) static FAILOVER: CommandFacts = CommandFacts {
    changes: Changes::Server,
    answer: AnswerLength::Short,
    log_word: "FAILOVER",
    asked_as: &["failover"],
    prompt: Some(PromptLine {
        usage: "FAILOVER",
        means: "asks the master that serves to hand over to the other one",
    }),
};

const FAILOVER_SPEC: Spec = Spec {
    flags: &["admin", "noscript", "stale"],
    categories: &["admin", "slow", "dangerous"],
    group: "server",
    ..spec("failover", Does::Ask(failover), 1, "Hand over from the active master to its standby")
};

fn failover(_: &mut Words) -> Result<Command, Unfit> {
    Ok(Command::Failover)
}

/// See [`Command::RemoveSlave`].
pub(super) static REMOVE_SLAVE: CommandFacts = CommandFacts {
    changes: Changes::Server,
    answer: AnswerLength::Short,
    log_word: "REMOVE-SLAVE",
    asked_as: &["remove-slave"],
    prompt: Some(PromptLine {
        usage: "REMOVE-SLAVE <slave>",
        means: "moves the copies of that slave to others and lets it go",
    }),
};

const REMOVE_SLAVE_SPEC: Spec = Spec {
    flags: &["admin", "noscript", "stale"],
    categories: &["admin", "slow", "dangerous"],
    group: "server",
    arguments: &[argument("slave-id", "string")],
    ..spec("remove-slave", Does::Ask(remove_slave), 2, "Drain a slave and let it go")
};

fn remove_slave(words: &mut Words) -> Result<Command, Unfit> {
    let word = words.word().ok_or(Unfit::Arity)?;
    let id = std::str::from_utf8(&word).ok().and_then(|id| SlaveId::new(id).ok());
    Ok(Command::RemoveSlave { id: id.ok_or(Unfit::NoSlaveId)? })
}

/// See [`Command::ChangeMembers`].
pub(super) static MEMBERS: CommandFacts = CommandFacts {
    changes: Changes::Server,
    answer: AnswerLength::Short,
    log_word: "MEMBERS",
    asked_as: &["members"],
    prompt: Some(PromptLine {
        usage: "MEMBERS <change>",
        means: "ADD <address>, REMOVE <member> or REPLACE <member> <address>: which masters keep the log",
    }),
};

const MEMBERS_SPEC: Spec = Spec {
    flags: &["admin", "noscript", "stale"],
    categories: &["admin", "slow", "dangerous"],
    group: "server",
    arguments: &[
        argument("change", "string"),
        Argument { flags: &["multiple"], ..argument("master", "string") },
    ],
    ..spec("members", Does::Ask(members), -3, "Change which masters keep the log")
};

fn members(words: &mut Words) -> Result<Command, Unfit> {
    let what = words.word().ok_or(Unfit::Arity)?;
    let masters: Vec<_> = std::iter::from_fn(|| words.word()).collect();
    let masters: Vec<&[u8]> = masters.iter().map(|master| &master[..]).collect();
    let order = MembersOrder::from_words(&what, &masters).map_err(Unfit::Members)?;
    Ok(Command::ChangeMembers { order })
}

/// A subcommand of `COMMAND`.
const fn about_commands(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec {
        flags: &["loading", "stale"],
        categories: &["slow", "connection"],
        group: "server",
        ..spec(name, Does::Own(own), arity, summary)
    }
}

const COMMAND_COMMANDS: &[Spec] = &[
    about_commands("command|count", Own::CommandCount, 2, "Get total number of commands"),
    Spec {
        tips: &["nondeterministic_output_order"],
        complexity: "O(N) where N is the number of commands to look up",
        arguments: &[COMMAND_NAMES],
        ..about_commands("command|docs", Own::CommandDocs, -2, "Get array of specific command documentation")
    },
    Spec {
        complexity: "O(N) where N is the number of arguments to the command",
        arguments: COMMAND_LINE,
        ..about_commands("command|getkeys", Own::CommandGetKeys, -4, "Extract keys given a full command")
    },
    Spec {
        complexity: "O(N) where N is the number of arguments to the command",
        arguments: COMMAND_LINE,
        ..about_commands(
            "command|getkeysandflags",
            Own::CommandGetKeysAndFlags,
            -4,
            "Extract keys and access flags given a full command",
        )
    },
    about_commands("command|help", Own::CommandHelp, 2, "Show helpful text about the different subcommands"),
    Spec {
        tips: &["nondeterministic_output_order"],
        complexity: "O(N) where N is the number of commands to look up",
        arguments: &[COMMAND_NAMES],
        ..about_commands(
            "command|info",
            Own::CommandInfo,
            -2,
            "Get array of specific command details, or all when no argument is given.",
        )
    },
    Spec {
        tips: &["nondeterministic_output_order"],
        complexity: "O(N) where N is the total number of commands",
        arguments: &[Argument {
            token: Some("FILTERBY"),
            flags: &["optional"],
            arguments: &[
                Argument { token: Some("MODULE"), ..argument("module-name", "string") },
                Argument { token: Some("ACLCAT"), ..argument("category", "string") },
                Argument { token: Some("PATTERN"), ..argument("pattern", "pattern") },
            ],
            ..argument("filterby", "oneof")
        }],
        ..about_commands("command|list", Own::CommandList, -2, "Get an array of command names")
    },
];

/// A subcommand of `CONFIG`.
const fn config(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec {
        flags: ADMIN,
        categories: &["admin", "slow", "dangerous"],
        group: "server",
        ..spec(name, Does::Own(own), arity, summary)
    }
}

const CONFIG_COMMANDS: &[Spec] = &[
    Spec {
        complexity: "O(N) when N is the number of configuration parameters provided",
        arguments: &[Argument {
            flags: &["multiple"],
            arguments: &[argument("parameter", "string")],
            ..argument("parameter", "block")
        }],
        ..config("config|get", Own::ConfigGet, -3, "Get the values of configuration parameters")
    },
    Spec {
        flags: &["loading", "stale"],
        categories: &["slow"],
        ..config("config|help", Own::ConfigHelp, 2, "Show helpful text about the different subcommands")
    },
    config("config|resetstat", Own::ConfigResetStat, 2, "Not supported: the stats count from the start"),
    config("config|rewrite", Own::ConfigRewrite, 2, "Not supported: there is no configuration file"),
    config("config|set", Own::ConfigSet, -4, "Not supported: settings are fixed at the start"),
];
