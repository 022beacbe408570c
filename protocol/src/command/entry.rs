//! The types of a command's entry. Each command has one, in the file of its family.
//!
//! Owns only the types. Everything about commands is derived from the entries: the answers to `COMMAND`
//! (`resp/command.rs`), the checks of requests, the expected length of answers, the words in logs, the prompt's help.

use super::words::{Unfit, Words};
use super::{Command, ComparedChange, Excerpt, ScriptCall, Transaction};
use bytes::Bytes;

/// What each key of a request with several keys counts in the bytes in flight, in addition to its own length.
const KEY_OVERHEAD_BYTES: usize = 32;

/// The facts about a [`Command`] that do not depend on the name under which it is asked.
#[derive(Debug)]
pub struct CommandFacts {
    /// What it changes in the store, if anything.
    pub changes: Changes,
    /// How long its answer is.
    pub answer: AnswerLength,
    /// Its word in the program's log lines.
    pub log_word: &'static str,
    /// The names of the RESP protocol under which it is asked.
    pub asked_as: &'static [&'static str],
    /// The prompt's help for it, if the prompt has this command.
    pub prompt: Option<PromptLine>,
}

/// What a command changes. If the answer to a command that changes something is lost, the outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    /// It only reads, or does not reach the store.
    Nothing,
    /// Values: it makes one `WRITE` record.
    Values,
    /// Which keys exist: it makes one `DELETE` record.
    Keys,
    /// Both, at once: it makes one record, whichever is needed for that.
    Effects,
    /// Who serves. It makes no record.
    Server,
}

/// What is known of the length of a command's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerLength {
    /// A number or a word.
    Short,
    /// The values of the keys that it names.
    Values,
    /// A description of the node.
    Status,
}

/// How a command is written at the prompt.
#[derive(Clone, Copy, Debug)]
pub struct PromptLine {
    /// `READ <key>`.
    pub usage: &'static str,
    /// What it does, in a few words.
    pub means: &'static str,
}

/// The keys and values that a command names, in the order asked.
#[derive(Clone, Copy, Debug)]
pub enum Operands<'a> {
    /// It has no keys.
    None,
    /// One key, without a value.
    Key(&'a Bytes),
    /// One key and its value.
    KeyAndValue(&'a Bytes, &'a Bytes),
    /// One key, its value if it gets one, and what it is compared with.
    Compared(&'a Bytes, &'a ComparedChange),
    /// A list of keys.
    Keys(&'a [Bytes]),
    /// A list of keys with their values.
    Pairs(&'a [(Bytes, Bytes)]),
    /// Those of all its commands, and those that it watches.
    All(&'a Transaction),
    /// Those that a script is told of, and its arguments.
    Script(&'a ScriptCall),
    /// Further words of so many bytes, which are neither.
    Words(usize),
}

impl Operands<'_> {
    /// How many keys there are.
    pub fn keys(self) -> usize {
        match self {
            Operands::None | Operands::Words(_) => 0,
            Operands::Key(_) | Operands::KeyAndValue(..) | Operands::Compared(..) => 1,
            Operands::Keys(keys) => keys.len(),
            Operands::Pairs(pairs) => pairs.len(),
            Operands::All(transaction) => transaction.keys(),
            Operands::Script(call) => call.keys(),
        }
    }

    /// Bytes of keys and values, as the limits on requests in flight count them.
    pub fn payload_bytes(self) -> usize {
        match self {
            Operands::None => 0,
            Operands::Words(bytes) => bytes,
            Operands::Key(key) => key.len(),
            Operands::KeyAndValue(key, value) => key.len() + value.len(),
            Operands::Compared(key, change) => key.len() + change.payload_bytes(),
            Operands::Keys(keys) => keys.iter().map(|key| key.len() + KEY_OVERHEAD_BYTES).sum(),
            Operands::Pairs(pairs) => {
                pairs.iter().map(|(key, value)| key.len() + value.len() + KEY_OVERHEAD_BYTES).sum()
            }
            Operands::All(transaction) => transaction.payload_bytes(),
            Operands::Script(call) => call.payload_bytes(),
        }
    }

    /// How long the longest key is, in bytes.
    pub fn longest_key(self) -> usize {
        match self {
            Operands::None | Operands::Words(_) => 0,
            Operands::Key(key) | Operands::KeyAndValue(key, _) | Operands::Compared(key, _) => key.len(),
            Operands::Keys(keys) => keys.iter().map(Bytes::len).max().unwrap_or_default(),
            Operands::Pairs(pairs) => pairs.iter().map(|(key, _)| key.len()).max().unwrap_or_default(),
            Operands::All(transaction) => transaction.longest_key(),
            Operands::Script(call) => call.longest_key(),
        }
    }

    /// How long the longest value is, in bytes.
    pub fn longest_value(self) -> usize {
        match self {
            Operands::None | Operands::Words(_) | Operands::Key(_) | Operands::Keys(_) => 0,
            Operands::KeyAndValue(_, value) => value.len(),
            Operands::Compared(_, change) => change.longest_value(),
            Operands::Pairs(pairs) => pairs.iter().map(|(_, value)| value.len()).max().unwrap_or_default(),
            Operands::All(transaction) => transaction.longest_value(),
            Operands::Script(call) => call.longest_value(),
        }
    }

    /// Whether the command must name keys but names none.
    pub fn lacks_keys(self) -> bool {
        match self {
            Operands::Keys(_) | Operands::Pairs(_) => self.keys() == 0,
            Operands::All(transaction) => transaction.lacks_keys(),
            Operands::None
            | Operands::Key(_)
            | Operands::KeyAndValue(..)
            | Operands::Compared(..)
            | Operands::Script(_)
            | Operands::Words(_) => false,
        }
    }
}

/// The list that is the whole content of a command with many keys.
#[derive(Debug)]
pub(crate) enum KeyList {
    Keys(Vec<Bytes>),
    /// Keys with their values.
    Pairs(Vec<(Bytes, Bytes)>),
}

/// One name of the RESP protocol, or a subcommand of one, with what `COMMAND INFO` and `COMMAND DOCS` say about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// In lower case; `client|id` for a subcommand.
    pub(crate) name: &'static str,
    pub(crate) does: Does,
    /// How many words a request has, the name included; at least that many if negative.
    pub(crate) arity: i32,
    pub(crate) flags: &'static [&'static str],
    pub(crate) keys: Option<KeyRange>,
    /// What it does with its second word, if that is another key.
    pub(crate) second_key: Option<&'static [&'static str]>,
    /// What it does with the keys of which its third word says how many follow it.
    pub(crate) counted_keys: Option<&'static [&'static str]>,
    pub(crate) categories: &'static [&'static str],
    pub(crate) tips: &'static [&'static str],
    pub(crate) summary: &'static str,
    pub(crate) group: &'static str,
    pub(crate) complexity: &'static str,
    pub(crate) arguments: &'static [Argument],
    pub(crate) subcommands: &'static [Spec],
}

impl Spec {
    /// The place of its first key among the words of a request, of which the name is 0.
    pub(crate) fn first_key(&self) -> usize {
        if self.name.contains('|') {
            2
        } else {
            1
        }
    }

    /// Whether a request reads its key. For some commands that depends on its options.
    pub(crate) fn reads(&self, keys: &KeyRange, words: &[Bytes]) -> bool {
        if !keys.flags.contains(&"variable_flags") {
            return keys.flags.contains(&"access");
        }
        let mut options = words.iter().skip(self.arity.unsigned_abs() as usize);
        options
            .any(|word| ["get", "ifeq", "ifne"].iter().any(|name| word.eq_ignore_ascii_case(name.as_bytes())))
    }
}

/// What is done for a request, once its name and the number of its arguments are known to be right.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    /// Asks the store; the words after the name make the command.
    Ask(fn(&mut Words) -> Result<Command, Unfit>),
    /// The same, but the client is shown only a part of the answer.
    AskFor(fn(&mut Words) -> Result<(Command, Excerpt), Unfit>),
    /// Asks for the INFO text; the words after the name choose its sections.
    Describe,
    Quit,
    /// The connection answers it without the master.
    Own(Own),
}

/// What the connection answers without the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    Ping,
    Echo,
    Select,
    /// Only a cluster of Redis knows it.
    OfCluster,
    Hello,
    Auth,
    Reset,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    /// `CLIENT`, `CONFIG`: the second word says what to do.
    Container,
    AclCat,
    /// What only the users file can do.
    AclChange,
    AclDryrun,
    AclGenPass,
    AclGetUser,
    AclHelp,
    AclList,
    AclLoad,
    AclLog,
    AclUsers,
    AclWhoAmI,
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
    CommandGetKeys,
    CommandGetKeysAndFlags,
    CommandHelp,
    CommandInfo,
    CommandList,
    ConfigGet,
    ConfigHelp,
    ConfigResetStat,
    ConfigRewrite,
    ConfigSet,
    Move,
    MemoryHelp,
    ObjectHelp,
    LatencyEvents,
    LatencyReset,
    Role,
    SlowlogGet,
    SlowlogHelp,
    SlowlogLen,
    SlowlogReset,
    LatencyHelp,
    Wait,
    ScriptHelp,
    ScriptKill,
}

/// Where a command's keys stand: from the first argument on, or of a subcommand from the one after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRange {
    /// -1: to the last argument.
    pub(crate) last: i32,
    pub(crate) step: i32,
    pub(crate) flags: &'static [&'static str],
}

/// One argument, as `COMMAND DOCS` describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Argument {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) token: Option<&'static str>,
    pub(crate) flags: &'static [&'static str],
    pub(crate) arguments: &'static [Argument],
}

pub(crate) const fn argument(name: &'static str, kind: &'static str) -> Argument {
    Argument { name, kind, token: None, flags: &[], arguments: &[] }
}

pub(crate) const fn token(name: &'static str, word: &'static str) -> Argument {
    Argument { token: Some(word), ..argument(name, "pure-token") }
}

pub(crate) const KEY: Argument = argument("key", "key");
pub(crate) const VALUE: Argument = argument("value", "string");
pub(crate) const KEYS: Argument = Argument { flags: &["multiple"], ..KEY };

/// The flags of commands for administrators.
pub(crate) const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];

/// An entry with the values that most entries share.
pub(crate) const fn spec(name: &'static str, does: Does, arity: i32, summary: &'static str) -> Spec {
    Spec {
        name,
        does,
        arity,
        flags: &[],
        keys: None,
        second_key: None,
        counted_keys: None,
        categories: &[],
        tips: &[],
        summary,
        group: "connection",
        complexity: "O(1)",
        arguments: &[],
        subcommands: &[],
    }
}
