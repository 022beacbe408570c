//! Commands that the connection answers without the master: PING, HELLO, CLIENT and the like.

use super::entry::{argument, spec, token, Argument, Does, Own, Spec, ADMIN};

const ON_OFF: Argument =
    Argument { arguments: &[token("on", "ON"), token("off", "OFF")], ..argument("enabled", "oneof") };

const CONNECTION: &[&str] = &["noscript", "loading", "stale", "fast", "no_auth", "allow_busy"];
const CLIENT: &[&str] = &["noscript", "loading", "stale"];

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[
    Spec {
        flags: &["fast"],
        categories: &["fast", "connection"],
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        arguments: &[Argument { flags: &["optional"], ..argument("message", "string") }],
        ..spec("ping", Does::Own(Own::Ping), -1, "Ping the server")
    },
    Spec {
        flags: &["loading", "stale", "fast"],
        categories: &["fast", "connection"],
        arguments: &[argument("message", "string")],
        ..spec("echo", Does::Own(Own::Echo), 2, "Echo the given string")
    },
    Spec {
        flags: &["loading", "stale", "fast"],
        categories: &["fast", "connection"],
        arguments: &[argument("index", "integer")],
        ..spec("select", Does::Own(Own::Select), 2, "Change the selected database: there is only number 0")
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
        ..spec("hello", Does::Own(Own::Hello), -1, "Choose the version of the protocol, describe the server")
    },
    Spec {
        flags: CONNECTION,
        categories: &["fast", "connection"],
        arguments: &[
            Argument { flags: &["optional"], ..argument("username", "string") },
            argument("password", "string"),
        ],
        ..spec("auth", Does::Own(Own::Auth), -2, "Authenticate to the server")
    },
    Spec {
        flags: CONNECTION,
        categories: &["fast", "connection"],
        ..spec("reset", Does::Own(Own::Reset), 1, "Reset the connection")
    },
    READONLY_SPEC,
    Spec { name: "readwrite", ..READONLY_SPEC },
    Spec {
        flags: CONNECTION,
        categories: &["fast", "connection"],
        ..spec("quit", Does::Quit, -1, "Close the connection")
    },
    Spec {
        categories: &["slow"],
        complexity: "Depends on subcommand.",
        subcommands: CLIENT_COMMANDS,
        ..spec("client", Does::Own(Own::Container), -2, "A container for client connection commands")
    },
];

const READONLY_SPEC: Spec = Spec {
    flags: &["loading", "stale", "fast"],
    categories: &["fast", "connection"],
    group: "cluster",
    ..spec("readonly", Does::Own(Own::OfCluster), 1, "Not supported: there is no cluster of Redis")
};

/// A subcommand of `CLIENT` that any client may use.
const fn client(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec { flags: CLIENT, categories: &["slow", "connection"], ..spec(name, Does::Own(own), arity, summary) }
}

/// A subcommand of `CLIENT` that concerns the server.
const fn client_admin(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec {
        flags: ADMIN,
        categories: &["admin", "slow", "dangerous", "connection"],
        ..spec(name, Does::Own(own), arity, summary)
    }
}

const CLIENT_COMMANDS: &[Spec] = &[
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
