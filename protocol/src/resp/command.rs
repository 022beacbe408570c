//! The commands that RESP clients may send: the table of them, the lookup by name, and the answers of
//! `COMMAND`, which describe the table in the shapes of Redis 7. Owns names, arities and documentation, never
//! what a command does.

use super::encode::{array, bulk, error, error_parts, integer, map, null, set, status, unsigned};
use super::{glob, Protocol};
use bytes::Bytes;

/// The most names that one `COMMAND INFO` or `COMMAND DOCS` may ask for: a short name has a long answer.
const NAMES_MAX: usize = 256;

/// What to do for a request, once its name and the number of its arguments are known to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Set,
    Delete,
    Exists,
    GetMany,
    SetMany,
    KeyCount,
    Info,
    Failover,
    Quit,
    /// Is answered by the connection alone.
    Own(Own),
}

/// What the connection answers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    Ping,
    Echo,
    Select,
    Hello,
    Auth,
    Reset,
    /// `CLIENT`, `CONFIG`: nothing without the second word, which says what to do.
    Container,
    ClientGetName,
    ClientHelp,
    ClientId,
    ClientInfo,
    ClientList,
    ClientNoEvict,
    ClientNoTouch,
    ClientReply,
    ClientSetInfo,
    ClientSetName,
    CommandAll,
    CommandCount,
    CommandDocs,
    CommandHelp,
    CommandInfo,
    CommandList,
    ConfigGet,
    ConfigHelp,
    ConfigResetStat,
    ConfigRewrite,
    ConfigSet,
}

/// One command or subcommand, with what `COMMAND INFO` and `COMMAND DOCS` say about it.
#[derive(Debug)]
pub(super) struct Spec {
    /// In lower case; `client|id` for a subcommand.
    pub(super) name: &'static str,
    pub(super) verb: Verb,
    /// How many words a request has, the name included; at least that many if negative.
    arity: i32,
    flags: &'static [&'static str],
    keys: Option<Keys>,
    categories: &'static [&'static str],
    tips: &'static [&'static str],
    summary: &'static str,
    group: &'static str,
    complexity: &'static str,
    arguments: &'static [Argument],
    subcommands: &'static [Spec],
}

/// Where a command's keys stand: from the first argument on.
#[derive(Clone, Copy, Debug)]
struct Keys {
    /// -1: to the last argument.
    last: i32,
    step: i32,
    flags: &'static [&'static str],
}

/// One argument, as `COMMAND DOCS` describes it.
#[derive(Clone, Copy, Debug)]
struct Argument {
    name: &'static str,
    kind: &'static str,
    token: Option<&'static str>,
    flags: &'static [&'static str],
    arguments: &'static [Argument],
}

const fn argument(name: &'static str, kind: &'static str) -> Argument {
    Argument { name, kind, token: None, flags: &[], arguments: &[] }
}

const fn token(name: &'static str, word: &'static str) -> Argument {
    Argument { token: Some(word), ..argument(name, "pure-token") }
}

const KEY: Argument = argument("key", "key");
const VALUE: Argument = argument("value", "string");
const KEYS: Argument = Argument { flags: &["multiple"], ..KEY };
const NAMES: Argument = Argument { flags: &["optional", "multiple"], ..argument("command-name", "string") };
const SECTION: Argument = Argument { flags: &["optional", "multiple"], ..argument("section", "string") };
const ON_OFF: Argument =
    Argument { arguments: &[token("on", "ON"), token("off", "OFF")], ..argument("enabled", "oneof") };

const CONNECTION: &[&str] = &["noscript", "loading", "stale", "fast", "no_auth", "allow_busy"];
const CLIENT: &[&str] = &["noscript", "loading", "stale"];
const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];

/// What most entries of the table share.
const fn spec(name: &'static str, verb: Verb, arity: i32, summary: &'static str) -> Spec {
    Spec {
        name,
        verb,
        arity,
        flags: &[],
        keys: None,
        categories: &[],
        tips: &[],
        summary,
        group: "connection",
        complexity: "O(1)",
        arguments: &[],
        subcommands: &[],
    }
}

/// Every command, the busiest first: the lookup goes through it in order.
pub(super) static COMMANDS: [Spec; 23] = [
    Spec { name: "get", ..GET },
    Spec { name: "set", arity: -3, ..SET },
    Spec { flags: &["write"], categories: &["keyspace", "write", "slow"], ..DELETE },
    Spec {
        flags: &["readonly", "fast"],
        keys: Some(Keys { last: -1, step: 1, flags: &["RO"] }),
        categories: &["keyspace", "read", "fast"],
        tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
        group: "generic",
        complexity: "O(N) where N is the number of keys to check.",
        arguments: &[KEYS],
        ..spec("exists", Verb::Exists, -2, "Determine if a key exists")
    },
    Spec {
        flags: &["readonly", "fast"],
        keys: Some(Keys { last: -1, step: 1, flags: &["RO", "access"] }),
        categories: &["read", "string", "fast"],
        tips: &["request_policy:multi_shard"],
        group: "string",
        complexity: "O(N) where N is the number of keys to retrieve.",
        arguments: &[KEYS],
        ..spec("mget", Verb::GetMany, -2, "Get the values of all the given keys")
    },
    Spec {
        flags: &["write", "denyoom"],
        keys: Some(Keys { last: -1, step: 2, flags: &["OW", "update"] }),
        categories: &["write", "string", "slow"],
        tips: &["request_policy:multi_shard", "response_policy:all_succeeded"],
        group: "string",
        complexity: "O(N) where N is the number of keys to set.",
        arguments: &[Argument {
            flags: &["multiple"],
            arguments: &[KEY, VALUE],
            ..argument("key_value", "block")
        }],
        ..spec("mset", Verb::SetMany, -3, "Set multiple keys to multiple values")
    },
    Spec {
        flags: &["fast"],
        categories: &["fast", "connection"],
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        arguments: &[Argument { flags: &["optional"], ..argument("message", "string") }],
        ..spec("ping", Verb::Own(Own::Ping), -1, "Ping the server")
    },
    Spec { name: "read", ..GET },
    Spec { name: "write", arity: 3, ..SET },
    Spec { name: "unlink", flags: &["write", "fast"], categories: &["keyspace", "write", "fast"], ..DELETE },
    Spec {
        flags: &["readonly", "fast"],
        categories: &["keyspace", "read", "fast"],
        tips: &["request_policy:all_shards", "response_policy:agg_sum"],
        group: "server",
        ..spec("dbsize", Verb::KeyCount, 1, "Return the number of keys")
    },
    Spec { name: "info", ..INFO },
    Spec { name: "status", ..INFO },
    Spec {
        flags: &["admin", "noscript", "stale"],
        categories: &["admin", "slow", "dangerous"],
        group: "server",
        ..spec("failover", Verb::Failover, 1, "Hand over from the active master to its standby")
    },
    Spec {
        flags: &["loading", "stale", "fast"],
        categories: &["fast", "connection"],
        arguments: &[argument("message", "string")],
        ..spec("echo", Verb::Own(Own::Echo), 2, "Echo the given string")
    },
    Spec {
        flags: &["loading", "stale", "fast"],
        categories: &["fast", "connection"],
        arguments: &[argument("index", "integer")],
        ..spec("select", Verb::Own(Own::Select), 2, "Change the selected database: there is only number 0")
    },
    Spec {
        flags: CONNECTION,
        categories: &["fast", "connection"],
        arguments: &[Argument {
            flags: &["optional"],
            arguments: &[
                argument("protover", "integer"),
                Argument {
                    token: Some("AUTH"),
                    flags: &["optional"],
                    arguments: &[argument("username", "string"), argument("password", "string")],
                    ..argument("username_password", "block")
                },
                Argument { token: Some("SETNAME"), flags: &["optional"], ..argument("clientname", "string") },
            ],
            ..argument("arguments", "block")
        }],
        ..spec("hello", Verb::Own(Own::Hello), -1, "Choose the version of the protocol, describe the server")
    },
    Spec {
        flags: CONNECTION,
        categories: &["fast", "connection"],
        arguments: &[
            Argument { flags: &["optional"], ..argument("username", "string") },
            argument("password", "string"),
        ],
        ..spec("auth", Verb::Own(Own::Auth), -2, "Authenticate to the server")
    },
    Spec {
        flags: CONNECTION,
        categories: &["fast", "connection"],
        ..spec("reset", Verb::Own(Own::Reset), 1, "Reset the connection")
    },
    Spec {
        flags: CONNECTION,
        categories: &["fast", "connection"],
        ..spec("quit", Verb::Quit, -1, "Close the connection")
    },
    Spec {
        categories: &["slow"],
        complexity: "Depends on subcommand.",
        subcommands: &CLIENT_COMMANDS,
        ..spec("client", Verb::Own(Own::Container), -2, "A container for client connection commands")
    },
    Spec {
        flags: &["loading", "stale"],
        categories: &["slow", "connection"],
        tips: &["nondeterministic_output_order"],
        group: "server",
        complexity: "O(N) where N is the total number of commands",
        subcommands: &COMMAND_COMMANDS,
        ..spec("command", Verb::Own(Own::CommandAll), -1, "Get array of command details")
    },
    Spec {
        categories: &["slow"],
        group: "server",
        complexity: "Depends on subcommand.",
        subcommands: &CONFIG_COMMANDS,
        ..spec("config", Verb::Own(Own::Container), -2, "A container for server configuration commands")
    },
];

const GET: Spec = Spec {
    flags: &["readonly", "fast"],
    keys: Some(Keys { last: 0, step: 1, flags: &["RO", "access"] }),
    categories: &["read", "string", "fast"],
    group: "string",
    arguments: &[KEY],
    ..spec("get", Verb::Get, 2, "Get the value of a key")
};

const SET: Spec = Spec {
    flags: &["write", "denyoom"],
    keys: Some(Keys { last: 0, step: 1, flags: &["OW", "update"] }),
    categories: &["write", "string", "slow"],
    group: "string",
    arguments: &[KEY, VALUE],
    ..spec("set", Verb::Set, 3, "Set the string value of a key")
};

const DELETE: Spec = Spec {
    keys: Some(Keys { last: -1, step: 1, flags: &["RM", "delete"] }),
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    group: "generic",
    complexity: "O(N) where N is the number of keys that will be removed.",
    arguments: &[KEYS],
    ..spec("del", Verb::Delete, -2, "Delete a key")
};

const INFO: Spec = Spec {
    flags: &["loading", "stale"],
    categories: &["slow", "dangerous"],
    tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
    group: "server",
    arguments: &[SECTION],
    ..spec("info", Verb::Info, -1, "Get information and statistics about the server")
};

/// A subcommand of `CLIENT` that any client may use.
const fn client(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec { flags: CLIENT, categories: &["slow", "connection"], ..spec(name, Verb::Own(own), arity, summary) }
}

/// A subcommand of `CLIENT` that concerns the server.
const fn client_admin(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec {
        flags: ADMIN,
        categories: &["admin", "slow", "dangerous", "connection"],
        ..spec(name, Verb::Own(own), arity, summary)
    }
}

static CLIENT_COMMANDS: [Spec; 10] = [
    client("client|getname", Own::ClientGetName, 2, "Get the current connection name"),
    Spec {
        flags: &["loading", "stale"],
        ..client("client|help", Own::ClientHelp, 2, "Show helpful text about the different subcommands")
    },
    client("client|id", Own::ClientId, 2, "Returns the client ID for the current connection"),
    Spec {
        tips: &["nondeterministic_output"],
        ..client(
            "client|info",
            Own::ClientInfo,
            2,
            "Returns information about the current client connection.",
        )
    },
    Spec {
        tips: &["nondeterministic_output"],
        arguments: &[
            Argument {
                token: Some("TYPE"),
                flags: &["optional"],
                arguments: &[
                    token("normal", "NORMAL"),
                    token("master", "MASTER"),
                    token("replica", "REPLICA"),
                    token("pubsub", "PUBSUB"),
                ],
                ..argument("normal_master_replica_pubsub", "oneof")
            },
            Argument {
                token: Some("ID"),
                flags: &["optional"],
                arguments: &[Argument { flags: &["multiple"], ..argument("client-id", "integer") }],
                ..argument("id", "block")
            },
        ],
        ..client_admin("client|list", Own::ClientList, -2, "Get information about this connection")
    },
    Spec {
        arguments: &[ON_OFF],
        ..client_admin(
            "client|no-evict",
            Own::ClientNoEvict,
            3,
            "Set client eviction mode for the current connection",
        )
    },
    Spec {
        arguments: &[ON_OFF],
        ..client(
            "client|no-touch",
            Own::ClientNoTouch,
            3,
            "Control whether the connection's commands count as use of a key",
        )
    },
    client("client|reply", Own::ClientReply, 3, "Not supported: every request is answered"),
    Spec {
        arguments: &[Argument {
            arguments: &[
                Argument { token: Some("LIB-NAME"), ..argument("libname", "string") },
                Argument { token: Some("LIB-VER"), ..argument("libver", "string") },
            ],
            ..argument("attr", "oneof")
        }],
        ..client("client|setinfo", Own::ClientSetInfo, 4, "Set client or connection specific info")
    },
    Spec {
        arguments: &[argument("connection-name", "string")],
        ..client("client|setname", Own::ClientSetName, 3, "Set the current connection name")
    },
];

/// A subcommand of `COMMAND`.
const fn about_commands(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec {
        flags: &["loading", "stale"],
        categories: &["slow", "connection"],
        group: "server",
        ..spec(name, Verb::Own(own), arity, summary)
    }
}

static COMMAND_COMMANDS: [Spec; 5] = [
    about_commands("command|count", Own::CommandCount, 2, "Get total number of commands"),
    Spec {
        tips: &["nondeterministic_output_order"],
        complexity: "O(N) where N is the number of commands to look up",
        arguments: &[NAMES],
        ..about_commands("command|docs", Own::CommandDocs, -2, "Get array of specific command documentation")
    },
    about_commands("command|help", Own::CommandHelp, 2, "Show helpful text about the different subcommands"),
    Spec {
        tips: &["nondeterministic_output_order"],
        complexity: "O(N) where N is the number of commands to look up",
        arguments: &[NAMES],
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
        ..spec(name, Verb::Own(own), arity, summary)
    }
}

static CONFIG_COMMANDS: [Spec; 5] = [
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

/// Finds what a request asks for, or appends the error that Redis answers when there is no such command, or
/// the number of its arguments is wrong. `args` holds at least the name.
pub(super) fn find(args: &[Bytes], out: &mut Vec<u8>) -> Option<&'static Spec> {
    let packed = pack(&args[0]);
    let Some(at) = packed.and_then(|packed| PACKED.iter().position(|&entry| entry == packed)) else {
        unknown_command(args, out);
        return None;
    };
    let mut spec = &COMMANDS[at];
    if let (false, Some(word)) = (spec.subcommands.is_empty(), args.get(1)) {
        match find_subcommand(spec, word) {
            Some(found) => spec = found,
            None => {
                let container = spec.name.to_ascii_uppercase();
                let (word, container) = (printable(word, 128), container.as_bytes());
                error_parts(out, &[b"ERR unknown subcommand '", word, b"'. Try ", container, b" HELP."]);
                return None;
            }
        }
    }
    let words = args.len();
    let least = spec.arity.unsigned_abs() as usize;
    if words == least || (words > least && spec.arity < 0) {
        Some(spec)
    } else {
        wrong_arity(spec.name, out);
        None
    }
}

/// Appends the error for a wrong number of arguments.
pub(super) fn wrong_arity(name: &str, out: &mut Vec<u8>) {
    error_parts(out, &[b"ERR wrong number of arguments for '", name.as_bytes(), b"' command"]);
}

/// The names of [`COMMANDS`], each as one number.
static PACKED: [u64; COMMANDS.len()] = {
    let mut packed = [0; COMMANDS.len()];
    let mut at = 0;
    while at < packed.len() {
        packed[at] = match pack(COMMANDS[at].name.as_bytes()) {
            Some(number) => number,
            None => panic!("a command's name has 1 to 8 bytes"),
        };
        at += 1;
    }
    packed
};

/// A name as one number, the same in either case; `None` for one that no command can have.
const fn pack(name: &[u8]) -> Option<u64> {
    if name.is_empty() || name.len() > 8 {
        return None;
    }
    let mut packed = 0;
    let mut at = 0;
    while at < name.len() {
        if name[at] == 0 {
            return None;
        }
        packed = packed << 8 | name[at].to_ascii_lowercase() as u64;
        at += 1;
    }
    Some(packed)
}

fn find_subcommand(container: &'static Spec, word: &[u8]) -> Option<&'static Spec> {
    container
        .subcommands
        .iter()
        .find(|spec| spec.name.as_bytes()[container.name.len() + 1..].eq_ignore_ascii_case(word))
}

/// Finds `get` or `client|id`, as the answers of `COMMAND` name them.
fn find_by_full_name(name: &[u8]) -> Option<&'static Spec> {
    let mut words = name.splitn(2, |&byte| byte == b'|');
    let packed = pack(words.next()?)?;
    let spec = &COMMANDS[PACKED.iter().position(|&entry| entry == packed)?];
    match words.next() {
        None => Some(spec),
        Some(word) => find_subcommand(spec, word),
    }
}

fn unknown_command(args: &[Bytes], out: &mut Vec<u8>) {
    // Redis shows 128 bytes of the name, and arguments until they fill 128 bytes.
    let mut shown = Vec::with_capacity(160);
    for arg in &args[1..] {
        if shown.len() >= 128 {
            break;
        }
        let arg = printable(arg, 128 - shown.len());
        shown.push(b'\'');
        shown.extend_from_slice(arg);
        shown.extend_from_slice(b"' ");
    }
    let name = printable(&args[0], 128);
    error_parts(out, &[b"ERR unknown command '", name, b"', with args beginning with: ", &shown]);
}

/// What Redis shows of a client's word: up to `length_max` bytes, or to the first zero byte.
pub(super) fn printable(word: &[u8], length_max: usize) -> &[u8] {
    let word = &word[..word.len().min(length_max)];
    &word[..memchr::memchr(0, word).unwrap_or(word.len())]
}

/// Appends the answer of `COMMAND`, or of `COMMAND INFO` with `names`; without names, of all commands.
pub(super) fn describe(protocol: Protocol, names: &[Bytes], out: &mut Vec<u8>) {
    if !names_fit(names, out) {
        return;
    }
    if names.is_empty() {
        array(out, COMMANDS.len());
        COMMANDS.iter().for_each(|spec| describe_one(protocol, spec, out));
        return;
    }
    array(out, names.len());
    for name in names {
        match find_by_full_name(name) {
            Some(spec) => describe_one(protocol, spec, out),
            None => null(protocol, out),
        }
    }
}

fn describe_one(protocol: Protocol, spec: &Spec, out: &mut Vec<u8>) {
    array(out, 10);
    bulk(out, spec.name.as_bytes());
    integer(out, i64::from(spec.arity));
    statuses(protocol, spec.flags, "", out);
    let (first, last, step) = match spec.keys {
        // A range's last key counts from the first one, unless it counts from the end.
        Some(keys) => (1, if keys.last < 0 { keys.last } else { 1 + keys.last }, keys.step),
        None => (0, 0, 0),
    };
    integer(out, i64::from(first));
    integer(out, i64::from(last));
    integer(out, i64::from(step));
    statuses(protocol, spec.categories, "@", out);
    set(protocol, out, spec.tips.len());
    spec.tips.iter().for_each(|tip| bulk(out, tip.as_bytes()));
    set(protocol, out, usize::from(spec.keys.is_some()));
    if let Some(keys) = spec.keys {
        map(protocol, out, 3);
        bulk(out, b"flags");
        statuses(protocol, keys.flags, "", out);
        bulk(out, b"begin_search");
        map(protocol, out, 2);
        pair(out, "type", "index");
        bulk(out, b"spec");
        map(protocol, out, 1);
        bulk(out, b"index");
        integer(out, 1);
        bulk(out, b"find_keys");
        map(protocol, out, 2);
        pair(out, "type", "range");
        bulk(out, b"spec");
        map(protocol, out, 3);
        bulk(out, b"lastkey");
        integer(out, i64::from(keys.last));
        bulk(out, b"keystep");
        integer(out, i64::from(keys.step));
        bulk(out, b"limit");
        integer(out, 0);
    }
    // Redis says set where there is none, and array where there are some.
    if spec.subcommands.is_empty() {
        set(protocol, out, 0);
    } else {
        array(out, spec.subcommands.len());
        spec.subcommands.iter().for_each(|spec| describe_one(protocol, spec, out));
    }
}

/// Appends the answer of `COMMAND DOCS` with `names`; without names, of all commands. Unknown names are left
/// out.
pub(super) fn document(protocol: Protocol, names: &[Bytes], out: &mut Vec<u8>) {
    if !names_fit(names, out) {
        return;
    }
    if names.is_empty() {
        document_all(protocol, &COMMANDS, out);
        return;
    }
    let found: Vec<&Spec> = names.iter().filter_map(|name| find_by_full_name(name)).collect();
    map(protocol, out, found.len());
    found.iter().for_each(|spec| document_one(protocol, spec, out));
}

fn document_all(protocol: Protocol, specs: &[Spec], out: &mut Vec<u8>) {
    map(protocol, out, specs.len());
    specs.iter().for_each(|spec| document_one(protocol, spec, out));
}

fn document_one(protocol: Protocol, spec: &Spec, out: &mut Vec<u8>) {
    bulk(out, spec.name.as_bytes());
    let extra = usize::from(!spec.arguments.is_empty()) + usize::from(!spec.subcommands.is_empty());
    map(protocol, out, 4 + extra);
    pair(out, "summary", spec.summary);
    pair(out, "since", "0.1.0");
    pair(out, "group", spec.group);
    pair(out, "complexity", spec.complexity);
    document_arguments(protocol, spec.arguments, out);
    if !spec.subcommands.is_empty() {
        bulk(out, b"subcommands");
        document_all(protocol, spec.subcommands, out);
    }
}

fn document_arguments(protocol: Protocol, arguments: &[Argument], out: &mut Vec<u8>) {
    if arguments.is_empty() {
        return;
    }
    bulk(out, b"arguments");
    array(out, arguments.len());
    for argument in arguments {
        let is_key = argument.kind == "key";
        let extra =
            [is_key, argument.token.is_some(), !argument.flags.is_empty(), !argument.arguments.is_empty()];
        map(protocol, out, 2 + extra.into_iter().filter(|&given| given).count());
        pair(out, "name", argument.name);
        pair(out, "type", argument.kind);
        if is_key {
            bulk(out, b"key_spec_index");
            integer(out, 0);
        }
        if let Some(token) = argument.token {
            pair(out, "token", token);
        }
        if !argument.flags.is_empty() {
            bulk(out, b"flags");
            statuses(protocol, argument.flags, "", out);
        }
        document_arguments(protocol, argument.arguments, out);
    }
}

/// Appends the answer of `COMMAND LIST [FILTERBY MODULE|ACLCAT|PATTERN what]`; `filter` is what stands behind
/// `LIST`.
pub(super) fn list(filter: &[Bytes], out: &mut Vec<u8>) {
    let all = || COMMANDS.iter().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands));
    let names: Vec<&str> = match filter {
        [] => all().map(|spec| spec.name).collect(),
        [by, kind, what] if by.eq_ignore_ascii_case(b"filterby") => {
            if kind.eq_ignore_ascii_case(b"module") {
                Vec::new()
            } else if kind.eq_ignore_ascii_case(b"aclcat") {
                let in_category = |spec: &&Spec| {
                    spec.categories.iter().any(|category| what.eq_ignore_ascii_case(category.as_bytes()))
                };
                all().filter(in_category).map(|spec| spec.name).collect()
            } else if kind.eq_ignore_ascii_case(b"pattern") {
                all().map(|spec| spec.name).filter(|name| glob::matches(what, name.as_bytes())).collect()
            } else {
                return error(out, "ERR syntax error");
            }
        }
        _ => return error(out, "ERR syntax error"),
    };
    array(out, names.len());
    names.iter().for_each(|name| bulk(out, name.as_bytes()));
}

/// Appends the answer of `COMMAND COUNT`.
pub(super) fn count(out: &mut Vec<u8>) {
    unsigned(out, COMMANDS.len() as u64);
}

/// Appends the answer of `CLIENT HELP` and its like, from the table.
pub(super) fn help(container: &str, out: &mut Vec<u8>) {
    let Some(spec) = find_by_full_name(container.as_bytes()) else {
        return error(out, "ERR syntax error");
    };
    let shown = spec.subcommands;
    array(out, 1 + 2 * shown.len());
    let container = container.to_ascii_uppercase();
    status(out, &format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    for subcommand in shown {
        status(out, &subcommand.name[container.len() + 1..].to_ascii_uppercase());
        status(out, &format!("    {}", subcommand.summary));
    }
}

fn names_fit(names: &[Bytes], out: &mut Vec<u8>) -> bool {
    let fit = names.len() <= NAMES_MAX;
    if !fit {
        error(out, &format!("ERR too many names: {}, the limit is {NAMES_MAX}", names.len()));
    }
    fit
}

fn pair(out: &mut Vec<u8>, name: &str, value: &str) {
    bulk(out, name.as_bytes());
    bulk(out, value.as_bytes());
}

fn statuses(protocol: Protocol, words: &[&str], prefix: &str, out: &mut Vec<u8>) {
    set(protocol, out, words.len());
    for word in words {
        status(out, &format!("{prefix}{word}"));
    }
}
