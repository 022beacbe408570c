//! The answers to `COMMAND`, in the shapes of Redis 7, and the errors for an unknown name and for a wrong number of
//! arguments. All of it is derived from the table (`command/`); owns only its form.

use super::encode::{array, bulk, error, error_parts, integer, map, null, set, status, unsigned};
use super::Protocol;
use crate::command::{find_by_full_name, find_command, find_subcommand, Argument, KeyRange, Spec, COMMANDS};
use crate::glob;
use crate::integer::parse_integer;
use bytes::Bytes;

/// The most names that one `COMMAND INFO` or `COMMAND DOCS` may ask for, because the answer for each is long.
const NAMES_MAX: usize = 256;

/// Finds the command of a request, or appends the error of Redis for an unknown command or a wrong number of arguments.
/// `args` holds at least the name.
pub(super) fn find(args: &[Bytes], out: &mut Vec<u8>) -> Option<&'static Spec> {
    let Some(mut spec) = find_command(&args[0]) else {
        unknown_command(args, out);
        return None;
    };
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

/// The command of a request, whose number of arguments may be wrong.
pub(super) fn look_up(args: &[Bytes]) -> Option<&'static Spec> {
    let spec = find_command(&args[0])?;
    match args.get(1) {
        Some(word) if !spec.subcommands.is_empty() => find_subcommand(spec, word),
        Some(_) | None => Some(spec),
    }
}

/// Appends the error for a wrong number of arguments.
pub(super) fn wrong_arity(name: &str, out: &mut Vec<u8>) {
    error_parts(out, &[b"ERR wrong number of arguments for '", name.as_bytes(), b"' command"]);
}

/// Appends the error for a name that no command has.
pub(super) fn unknown_command(args: &[Bytes], out: &mut Vec<u8>) {
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

/// The part of a client's word that Redis shows: up to `length_max` bytes, or to the first zero byte.
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
    let first = spec.first_key() as i32;
    let (first, last, step) = match spec.keys {
        // A range's last key counts from the first one, unless it counts from the end.
        Some(keys) if keys.last < 0 => (first, keys.last, keys.step),
        Some(keys) => (first, first + keys.last + i32::from(spec.second_key.is_some()), keys.step),
        None => (0, 0, 0),
    };
    integer(out, i64::from(first));
    integer(out, i64::from(last));
    integer(out, i64::from(step));
    statuses(protocol, spec.categories, "@", out);
    set(protocol, out, spec.tips.len());
    spec.tips.iter().for_each(|tip| bulk(out, tip.as_bytes()));
    let specs = [spec.keys.is_some(), spec.second_key.is_some(), spec.counted_keys.is_some()];
    set(protocol, out, specs.into_iter().filter(|is| *is).count());
    if let Some(flags) = spec.counted_keys {
        describe_counted(protocol, flags, out);
    }
    if let Some(keys) = spec.keys {
        describe_range(protocol, spec.first_key(), keys, out);
    }
    if let Some(flags) = spec.second_key {
        describe_range(protocol, spec.first_key() + 1, KeyRange { last: 0, step: 1, flags }, out);
    }
    // Redis answers an empty set, but an array if there are subcommands.
    if spec.subcommands.is_empty() {
        set(protocol, out, 0);
    } else {
        array(out, spec.subcommands.len());
        spec.subcommands.iter().for_each(|spec| describe_one(protocol, spec, out));
    }
}

/// The keys from a word on.
fn describe_range(protocol: Protocol, index: usize, keys: KeyRange, out: &mut Vec<u8>) {
    map(protocol, out, 3);
    bulk(out, b"flags");
    statuses(protocol, keys.flags, "", out);
    bulk(out, b"begin_search");
    map(protocol, out, 2);
    pair(out, "type", "index");
    bulk(out, b"spec");
    map(protocol, out, 1);
    bulk(out, b"index");
    unsigned(out, index as u64);
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

/// What keys are of which the third word says how many follow it.
fn describe_counted(protocol: Protocol, flags: &[&str], out: &mut Vec<u8>) {
    map(protocol, out, 3);
    bulk(out, b"flags");
    statuses(protocol, flags, "", out);
    bulk(out, b"begin_search");
    map(protocol, out, 2);
    pair(out, "type", "index");
    bulk(out, b"spec");
    map(protocol, out, 1);
    bulk(out, b"index");
    integer(out, 2);
    bulk(out, b"find_keys");
    map(protocol, out, 2);
    pair(out, "type", "keynum");
    bulk(out, b"spec");
    map(protocol, out, 3);
    bulk(out, b"keynumidx");
    integer(out, 0);
    bulk(out, b"firstkey");
    integer(out, 1);
    bulk(out, b"keystep");
    integer(out, 1);
}

/// Appends the answer of `COMMAND GETKEYS` with a whole request, or of `COMMAND GETKEYSANDFLAGS`.
pub(super) fn keys_of(protocol: Protocol, args: &[Bytes], has_flags: bool, out: &mut Vec<u8>) {
    let Some(spec) = args.first().and_then(|_| look_up(args)) else {
        return error(out, "ERR Invalid command specified");
    };
    if spec.keys.is_none() && spec.counted_keys.is_none() {
        return error(out, "ERR The command has no key arguments");
    }
    let (words, least) = (args.len(), spec.arity.unsigned_abs() as usize);
    if words < least || (spec.arity > 0 && words != least) {
        return error(out, "ERR Invalid number of arguments specified for command");
    }
    let Some(range) = spec.keys else { return counted_keys_of(protocol, spec, args, has_flags, out) };
    // A range's last key counts from the first one, unless it counts from the end.
    let counted = range.last.unsigned_abs() as usize;
    let first = spec.first_key();
    let end = if range.last < 0 { words + 1 - counted } else { first + 1 + counted };
    let flags = flags_of(spec, &range, args);
    let keys = args[first..end].iter().step_by(range.step.unsigned_abs() as usize).map(|key| (key, flags));
    let second = spec.second_key.map(|flags| (&args[first + 1], flags));
    array(out, keys.len() + usize::from(second.is_some()));
    for (key, flags) in keys.chain(second) {
        if !has_flags {
            bulk(out, key);
            continue;
        }
        array(out, 2);
        bulk(out, key);
        statuses(protocol, flags, "", out);
    }
}

/// The same of keys of which the third word says how many follow it.
fn counted_keys_of(protocol: Protocol, spec: &Spec, args: &[Bytes], has_flags: bool, out: &mut Vec<u8>) {
    let count = parse_integer(&args[2]).and_then(|count| usize::try_from(count).ok());
    // As in Redis, none if there are not as many.
    let keys = count.and_then(|count| args.get(3..count.checked_add(3)?)).unwrap_or_default();
    array(out, keys.len());
    for key in keys {
        if has_flags {
            array(out, 2);
        }
        bulk(out, key);
        if has_flags {
            statuses(protocol, spec.counted_keys.unwrap_or_default(), "", out);
        }
    }
}

/// What a request does with its keys. That of `SET` and `DELEX` depends on their options.
fn flags_of<'a>(spec: &Spec, keys: &KeyRange, args: &[Bytes]) -> &'a [&'a str] {
    if !keys.flags.contains(&"variable_flags") {
        return keys.flags;
    }
    match (spec.reads(keys, args), keys.flags.contains(&"delete")) {
        (true, false) => &["RW", "access", "update"],
        (false, false) => &["OW", "update"],
        (true, true) => &["RW", "access", "delete"],
        (false, true) => &["RM", "delete"],
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
    let mut keys = 0;
    for argument in arguments {
        let is_key = argument.kind == "key";
        let extra =
            [is_key, argument.token.is_some(), !argument.flags.is_empty(), !argument.arguments.is_empty()];
        map(protocol, out, 2 + extra.into_iter().filter(|&given| given).count());
        pair(out, "name", argument.name);
        pair(out, "type", argument.kind);
        if is_key {
            bulk(out, b"key_spec_index");
            integer(out, keys);
            keys += 1;
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

/// Appends the answer of `COMMAND LIST [FILTERBY MODULE|ACLCAT|PATTERN what]`; `filter` is what follows `LIST`.
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
