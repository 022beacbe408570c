//! The answers to `ACL`, in the shapes of Redis 7, out of the users and incidents that all connections share.

use super::command;
use super::encode::{array, bulk, error, error_parts, map, null, status, unsigned};
use super::Protocol;
use crate::acl::{commands_of, Accounts, Denied, Incident, Users, CATEGORIES};
use crate::integer::parse_integer;
use bytes::Bytes;
use std::sync::Arc;

/// What `ACL HELP` says: Redis' words, of `SETUSER`, `DELUSER` and `SAVE` as well, which say themselves what to do instead.
const HELP: &[&str] = &[
    "ACL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CAT [<category>]",
    "    List all commands that belong to <category>, or all command categories",
    "    when no category is specified.",
    "DELUSER <username> [<username> ...]",
    "    Delete a list of users.",
    "DRYRUN <username> <command> [<arg> ...]",
    "    Returns whether the user can execute the given command without executing the command.",
    "GETUSER <username>",
    "    Get the user's details.",
    "GENPASS [<bits>]",
    "    Generate a secure 256-bit user password. The optional `bits` argument can",
    "    be used to specify a different size.",
    "LIST",
    "    Show users details in config file format.",
    "LOAD",
    "    Reload users from the ACL file.",
    "LOG [<count> | RESET]",
    "    Show the ACL log entries.",
    "SAVE",
    "    Save the current config to the ACL file.",
    "SETUSER <username> <attribute> [<attribute> ...]",
    "    Create or modify a user with the specified attributes.",
    "USERS",
    "    List all the registered usernames.",
    "WHOAMI",
    "    Return the current connection username.",
    "HELP",
    "    Prints this help.",
];

/// How many bits a password has if `ACL GENPASS` is not told, and at most.
const PASSWORD_BITS: i64 = 256;
const PASSWORD_BITS_MAX: i64 = 4096;

/// The most words of a request that is tried.
const TRIED_WORDS_MAX: usize = 256;

/// How many incidents `ACL LOG` shows if it is not told.
const SHOWN_INCIDENTS: usize = 10;

/// `ACL CAT [category]`; `typed` is the subcommand as it was typed.
pub(super) fn categories(typed: &[u8], args: &[Bytes], out: &mut Vec<u8>) {
    let names: Vec<&str> = match args {
        [] => CATEGORIES.to_vec(),
        [category] => {
            let known = CATEGORIES.iter().find(|known| category.eq_ignore_ascii_case(known.as_bytes()));
            let Some(category) = known else {
                let category = command::printable(category, 128);
                return error_parts(out, &[b"ERR Unknown category '", category, b"'"]);
            };
            commands_of(category).collect()
        }
        _ => return too_many_words(typed, out),
    };
    array(out, names.len());
    names.iter().for_each(|name| bulk(out, name.as_bytes()));
}

/// `ACL HELP`.
pub(super) fn help(out: &mut Vec<u8>) {
    array(out, HELP.len());
    HELP.iter().for_each(|line| status(out, line));
}

/// A password that `ACL GENPASS` asks for, and that is still to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewPassword {
    /// Hexadecimal digits, of four bits each.
    digits: usize,
}

impl NewPassword {
    /// Reads `ACL GENPASS [bits]`; `typed` is the subcommand as it was typed. Appends what is wrong with it.
    pub(super) fn read(typed: &[u8], args: &[Bytes], out: &mut Vec<u8>) -> Option<Self> {
        let bits = match args {
            [] => PASSWORD_BITS,
            [bits] => match parse_integer(bits) {
                Some(bits) => bits,
                None => {
                    error(out, "ERR value is not an integer or out of range");
                    return None;
                }
            },
            _ => {
                too_many_words(typed, out);
                return None;
            }
        };
        if !(1..=PASSWORD_BITS_MAX).contains(&bits) {
            let why = "ERR ACL GENPASS argument must be the number of bits for the output password, a positive number \
                       up to 4096";
            error(out, why);
            return None;
        }
        Some(NewPassword { digits: (bits as usize).div_ceil(4) })
    }

    /// Appends the answer, of random numbers that nobody can guess.
    pub fn write(self, mut random: impl FnMut() -> u64, out: &mut Vec<u8>) {
        let mut text = String::new();
        while text.len() < self.digits {
            text.push_str(&format!("{:016x}", random()));
        }
        bulk(out, &text.as_bytes()[..self.digits]);
    }
}

fn too_many_words(typed: &[u8], out: &mut Vec<u8>) {
    let typed = command::printable(typed, 128);
    let text =
        [&b"ERR unknown subcommand or wrong number of arguments for '"[..], typed, b"'. Try ACL HELP."];
    error_parts(out, &text);
}

/// The answer to `ACL LIST` or `ACL USERS`, which is written in parts: there may be thousands of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserListing {
    users: Arc<Users>,
    /// As lines of the file, with their rules.
    with_rules: bool,
    /// The last one that is written; `None` before the first.
    last: Option<String>,
}

impl UserListing {
    pub(super) fn new(accounts: &Accounts, with_rules: bool) -> Self {
        UserListing { users: accounts.users(), with_rules, last: None }
    }

    /// Appends some more of the answer, `bytes` of it or a little more; whether that was the last of it.
    pub fn write_on(&mut self, bytes: usize, out: &mut Vec<u8>) -> bool {
        let until = out.len() + bytes;
        if self.last.is_none() {
            array(out, self.users.iter().count());
        }
        let mut last = None;
        for user in self.users.after(self.last.as_deref()) {
            if self.with_rules {
                bulk(out, format!("user {} {}", user.name(), user.to_rules()).as_bytes());
            } else {
                bulk(out, user.name().as_bytes());
            }
            last = Some(user.name().to_owned());
            if out.len() >= until {
                break;
            }
        }
        self.last = last.or(self.last.take());
        self.users.after(self.last.as_deref()).next().is_none()
    }
}

/// `ACL GETUSER name`.
pub(super) fn user(protocol: Protocol, accounts: &Accounts, name: &[u8], out: &mut Vec<u8>) {
    let users = accounts.users();
    let Some(user) = std::str::from_utf8(name).ok().and_then(|name| users.get(name)) else {
        return null(protocol, out);
    };
    map(protocol, out, 6);
    bulk(out, b"flags");
    let flags = user.flags();
    super::encode::set(protocol, out, flags.len());
    flags.iter().for_each(|flag| bulk(out, flag.as_bytes()));
    bulk(out, b"passwords");
    let passwords: Vec<String> = user.passwords().collect();
    array(out, passwords.len());
    passwords.iter().for_each(|hash| bulk(out, hash.as_bytes()));
    permissions(&user.permissions(), out);
    bulk(out, b"selectors");
    let selectors: Vec<[String; 3]> = user.selectors().collect();
    array(out, selectors.len());
    for selector in selectors {
        map(protocol, out, 3);
        permissions(&selector, out);
    }
}

fn permissions(rules: &[String; 3], out: &mut Vec<u8>) {
    for (name, rules) in ["commands", "keys", "channels"].iter().zip(rules) {
        bulk(out, name.as_bytes());
        bulk(out, rules.as_bytes());
    }
}

/// `ACL DRYRUN name command [arg ...]`; `words` are the request that is tried.
pub(super) fn try_out(accounts: &Accounts, name: &[u8], words: &[Bytes], out: &mut Vec<u8>) {
    let users = accounts.users();
    let Some(user) = std::str::from_utf8(name).ok().and_then(|name| users.get(name)) else {
        return error_parts(out, &[b"ERR User '", command::printable(name, 128), b"' not found"]);
    };
    if words.len() > TRIED_WORDS_MAX {
        return error(out, "ERR too many arguments");
    }
    let mut unfit = Vec::new();
    let Some(spec) = command::find(words, &mut unfit) else {
        let first = command::printable(&words[0], 128);
        if unfit.starts_with(b"-ERR wrong number") {
            return out.extend_from_slice(&unfit);
        }
        return error_parts(out, &[b"ERR Command '", first, b"' not found"]);
    };
    match user.check(spec, words) {
        Ok(()) => status(out, "OK"),
        Err(Denied::Command(name)) => {
            bulk(out, format!("This user has no permissions to run the '{name}' command").as_bytes());
        }
        Err(Denied::Key(key)) => {
            let key = command::printable(&key, 128);
            bulk(out, &[b"This user has no permissions to access the '", key, b"' key"].concat());
        }
    }
}

/// `ACL LOG [count | RESET]`; `typed` is the subcommand as it was typed.
pub(super) fn log(protocol: Protocol, accounts: &Accounts, typed: &[u8], args: &[Bytes], out: &mut Vec<u8>) {
    let count = match args {
        [] => SHOWN_INCIDENTS,
        [reset] if reset.eq_ignore_ascii_case(b"reset") => {
            accounts.forget_incidents();
            return status(out, "OK");
        }
        [count] => match parse_integer(count) {
            Some(count) => usize::try_from(count).unwrap_or(0),
            None => return error(out, "ERR value is not an integer or out of range"),
        },
        _ => return too_many_words(typed, out),
    };
    let incidents: Vec<_> = accounts.incidents().take(count).collect();
    array(out, incidents.len());
    for (incident, age_ms) in incidents {
        let Incident { kind, object, user, client, count, .. } = &*incident;
        map(protocol, out, 7);
        bulk(out, b"count");
        unsigned(out, *count);
        for (name, value) in [
            ("reason", kind.word().as_bytes()),
            ("context", b"toplevel"),
            ("object", object),
            ("username", user.as_bytes()),
        ] {
            bulk(out, name.as_bytes());
            bulk(out, value);
        }
        bulk(out, b"age-seconds");
        let age = format!("{}.{:03}", age_ms / 1000, age_ms % 1000);
        match protocol {
            Protocol::Resp2 => bulk(out, age.as_bytes()),
            Protocol::Resp3 => out.extend_from_slice(format!(",{age}\r\n").as_bytes()),
        }
        bulk(out, b"client-info");
        bulk(out, client.trim_end().as_bytes());
    }
}
