//! ACL: who may do what. The connection answers it, from the users that all connections of a node share.

use super::entry::{argument, spec, token, Argument, Does, Own, Spec, ADMIN};

/// The names of this family.
pub(super) const NAMES: &[Spec] = &[Spec {
    categories: &["slow"],
    group: "server",
    complexity: "Depends on subcommand.",
    subcommands: ACL_COMMANDS,
    ..spec("acl", Does::Own(Own::Container), -2, "A container for Access List Control commands ")
}];

const ANY: &[&str] = &["noscript", "loading", "stale"];
const USERNAME: Argument = argument("username", "string");

/// A subcommand for everybody.
const fn acl(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec { flags: ANY, categories: &["slow"], group: "server", ..spec(name, Does::Own(own), arity, summary) }
}

/// A subcommand for administrators.
const fn acl_admin(name: &'static str, own: Own, arity: i32, summary: &'static str) -> Spec {
    Spec { flags: ADMIN, categories: &["admin", "slow", "dangerous"], ..acl(name, own, arity, summary) }
}

const ACL_COMMANDS: &[Spec] = &[
    Spec {
        complexity: "O(1) since the categories and commands are a fixed set.",
        arguments: &[Argument { flags: &["optional"], ..argument("categoryname", "string") }],
        ..acl("acl|cat", Own::AclCat, -2, "List the ACL categories or the commands inside a category")
    },
    acl_admin("acl|deluser", Own::AclChange, -3, "Not supported: users are those of the users file"),
    Spec {
        complexity: "O(1).",
        arguments: &[
            USERNAME,
            argument("command", "string"),
            Argument { flags: &["optional", "multiple"], ..argument("arg", "string") },
        ],
        ..acl_admin(
            "acl|dryrun",
            Own::AclDryrun,
            -4,
            "Returns whether the user can execute the given command without executing the command.",
        )
    },
    Spec {
        arguments: &[Argument { flags: &["optional"], ..argument("bits", "integer") }],
        ..acl(
            "acl|genpass",
            Own::AclGenPass,
            -2,
            "Generate a pseudorandom secure password to use for ACL users",
        )
    },
    Spec {
        complexity: "O(N). Where N is the number of password, command and pattern rules that the user has.",
        arguments: &[USERNAME],
        ..acl_admin("acl|getuser", Own::AclGetUser, 3, "Get the rules for a specific ACL user")
    },
    Spec {
        flags: &["loading", "stale"],
        ..acl("acl|help", Own::AclHelp, 2, "Show helpful text about the different subcommands")
    },
    Spec {
        complexity: "O(N). Where N is the number of configured users.",
        ..acl_admin("acl|list", Own::AclList, 2, "List the current ACL rules in ACL config file format")
    },
    Spec {
        complexity: "O(N). Where N is the number of configured users.",
        ..acl_admin("acl|load", Own::AclLoad, 2, "Reload the ACLs from the configured ACL file")
    },
    Spec {
        complexity: "O(N) with N being the number of entries shown.",
        arguments: &[Argument {
            flags: &["optional"],
            arguments: &[argument("count", "integer"), token("reset", "RESET")],
            ..argument("operation", "oneof")
        }],
        ..acl_admin("acl|log", Own::AclLog, -2, "List latest events denied because of ACLs in place")
    },
    acl_admin("acl|save", Own::AclChange, 2, "Not supported: users are those of the users file"),
    acl_admin("acl|setuser", Own::AclChange, -3, "Not supported: users are those of the users file"),
    Spec {
        complexity: "O(N). Where N is the number of configured users.",
        ..acl_admin("acl|users", Own::AclUsers, 2, "List the username of all the configured ACL rules")
    },
    acl("acl|whoami", Own::AclWhoAmI, 2, "Return the name of the user associated to the current connection"),
];
