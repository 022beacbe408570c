//! The commands and replies of clients, whichever protocol they speak.
//!
//! | file | owns |
//! |---|---|
//! | `mod.rs` | the list of commands: their fields, and their numbers on the wire |
//! | `strings.rs`, `generic.rs`, `object.rs`, `expiry.rs`, `transaction.rs`, `scripting.rs`, `server.rs`, `connection.rs`, `acl.rs` | one family each: the entries of its commands |
//! | `entry.rs` | the types of an entry |
//! | `words.rs` | the words of a request, and the checks of them |
//! | `lookup.rs` | the names, and the lookup in them |
//! | `bundle.rs` | the commands of a transaction |
//! | `script_call.rs` | a script, what it is given, and who judges what it calls |
//! | `compared.rs` | a change under a condition on the value |
//! | `key_trait.rs` | what can be told of a key without its value |
//! | `lifetime.rs` | how long a key lives on |
//! | `members_order.rs` | what an operator wants changed of who keeps the log |
//! | `reply.rs` | answers |
//! | `transfer.rs` | what becomes of a key and of another one that gets what it holds |
//! | `update.rs` | what becomes of a key by what it holds |
//!
//! A new command is a line in the list, an entry in the file of its family, and its semantics in the master machine
//! (`machine/master/`). Everything else is derived.

mod acl;
mod bundle;
mod compared;
mod connection;
mod entry;
mod expiry;
mod generic;
mod key_trait;
mod lifetime;
mod lookup;
mod members_order;
mod object;
mod reply;
mod script_call;
mod scripting;
mod server;
mod strings;
mod transaction;
mod transfer;
mod update;
mod words;

pub use bundle::{
    transaction_bytes_max, Transaction, QUEUED_BYTES, TRANSACTION_COMMANDS_MAX, TRANSACTION_KEYS_MAX,
};
pub use compared::{ComparedChange, Comparison, Consequence};
pub use entry::{AnswerLength, Changes, CommandFacts, Operands, PromptLine};
pub(crate) use entry::{Argument, Does, KeyList, KeyRange, Own, Spec};
pub use key_trait::{KeyTrait, ENTRY_OVERHEAD_BYTES};
pub use lifetime::Lifetime;
pub(crate) use lookup::{find_by_full_name, find_command, find_subcommand, COMMANDS};
pub use members_order::{MasterName, MasterNameError, MembersOrder, MembersOrderError};
pub use reply::{ErrorWord, Excerpt, Replies, Reply, ReplyError};
pub use script_call::{
    Judgement, ScriptCall, ScriptJudge, ScriptName, ScriptRequest, ScriptRights, SCRIPT_BYTES_MAX,
};
pub use transfer::Transfer;
pub use update::{Condition, DecidedBy, Decision, ExpiryCondition, KnownValue, Update};
pub(crate) use update::{OneKey, Rule};
pub(crate) use words::{pattern_fits, Lengths, Unfit, Words, PATTERN_BYTES_MAX, PATTERN_PART_BYTES_MAX};

use crate::ids::{SlaveId, UnixMillis};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest key, in bytes (64 KiB).
pub const KEY_MAX: usize = 64 * 1024;

/// The most keys in one request.
pub const KEYS_MAX: usize = 64 * 1024;

/// The most keys that are looked at in one step before they are written: those of `MSETNX`.
pub const CHECKED_KEYS_MAX: usize = 1024;

/// The default of `--max-value`: the longest value, in bytes (16 MiB).
pub const VALUE_MAX_DEFAULT: usize = 16 * 1024 * 1024;

/// Declares [`Command`]: the fields, facts and operands of each command. A command that consists only of a list is marked,
/// because it is encoded key by key.
macro_rules! commands {
    ($(
        $(#[$doc:meta])*
        $name:ident $({ $( $(#[$field_doc:meta])* $field:ident : $type:ty ),+ $(,)? })?
            => $facts:path, $operands:expr $(, list $kind:ident($list:ident))? ;
    )+) => {
        /// A request of a client that concerns the store. Requests that concern only the connection (PING, AUTH, ...)
        /// are answered by the session and never become a command.
        ///
        /// The place in the list is the number on the wire, so a new command goes at the end.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Command {
            $( $(#[$doc])* $name $({ $( $(#[$field_doc])* $field: $type ),+ })? ),+
        }

        /// The numbers of the commands on the wire.
        #[derive(Clone, Copy)]
        enum Number {
            $($name),+
        }

        /// The facts about each command, in the order of their numbers.
        pub static COMMAND_FACTS: &[&CommandFacts] = &[$(&$facts),+];

        impl Command {
            /// Its place in [`COMMAND_FACTS`], which is its number on the wire, too.
            pub fn number(&self) -> u8 {
                match self {
                    $(Command::$name { .. } => Number::$name as u8,)+
                }
            }

            /// The facts about the command.
            pub fn facts(&self) -> &'static CommandFacts {
                match self {
                    $(Command::$name { .. } => &$facts,)+
                }
            }

            /// The keys and values that the command names.
            pub fn operands(&self) -> Operands<'_> {
                match self {
                    $(Command::$name $({ $($field),+ })? => {
                        // Not every field is an operand.
                        $($( let _ = $field; )+)?
                        $operands
                    })+
                }
            }

            /// The number and the list of a command that consists only of a list; else the command itself.
            pub(crate) fn into_list(self) -> Result<(u8, KeyList), Command> {
                let number = self.number();
                match self {
                    $(Command::$name $({ $($field),+ })? => {
                        list_or_command!(number, [$($kind($list))?] $name $({ $($field),+ })?)
                    })+
                }
            }

            /// An empty list for the command with this number on the wire, if it consists only of a list.
            pub(crate) fn empty_list(number: u8) -> Option<KeyList> {
                $($(
                    if number == Number::$name as u8 {
                        return Some(KeyList::$kind(Vec::new()));
                    }
                )?)+
                let _ = number;
                None
            }

            /// The command with this number on the wire that consists only of `list`, if there is one.
            pub(crate) fn from_list(number: u8, list: KeyList) -> Option<Command> {
                $(
                    command_of_list!(number, list, [$($kind($list))?] $name $({ $($field),+ })?);
                )+
                None
            }
        }
    };
}

macro_rules! list_or_command {
    ($number:ident, [] $name:ident $($fields:tt)?) => {
        Err(Command::$name $($fields)?)
    };
    ($number:ident, [$kind:ident($list:ident)] $name:ident $($fields:tt)?) => {
        Ok(($number, KeyList::$kind($list)))
    };
}

macro_rules! command_of_list {
    ($number:ident, $given:ident, [] $name:ident $($fields:tt)?) => {};
    ($number:ident, $given:ident, [$kind:ident($list:ident)] $name:ident $($fields:tt)?) => {
        if $number == Number::$name as u8 {
            return if let KeyList::$kind($list) = $given { Some(Command::$name $($fields)?) } else { None };
        }
    };
}

commands! {
    /// Reads one key. Answer: `Value` or `NotFound`.
    Get {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
    } => strings::GET, Operands::Key(key);

    /// Reads several keys, each linearizable by itself. Answer: `Values`, in the order asked.
    GetMany {
        /// 1 to [`KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        keys: Vec<Bytes>,
    } => strings::MGET, Operands::Keys(keys), list Keys(keys);

    /// Writes one key. Answer: `Done`.
    Put {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
        /// Up to `--max-value` bytes, any of them.
        value: Bytes,
    } => strings::SET, Operands::KeyAndValue(key, value);

    /// Writes several keys as one record: all or nothing. A key that stands twice takes its last value.
    /// Answer: `Done`.
    PutMany {
        /// 1 to [`KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        pairs: Vec<(Bytes, Bytes)>,
    } => strings::MSET, Operands::Pairs(pairs), list Pairs(pairs);

    /// Deletes keys as one record. Answer: `Count`, the number of keys that existed.
    Delete {
        /// 1 to [`KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        keys: Vec<Bytes>,
    } => generic::DEL, Operands::Keys(keys), list Keys(keys);

    /// Counts how many of the keys exist; one that stands twice counts twice. Answer: `Count`.
    Exists {
        /// 1 to [`KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        keys: Vec<Bytes>,
    } => generic::EXISTS, Operands::Keys(keys), list Keys(keys);

    /// Counts all keys. Answer: `Count`.
    KeyCount => server::DBSIZE, Operands::None;

    /// Describes the node, in the text form of Redis' INFO. Answered by any master for itself. Answer: `Text`.
    Status => server::INFO, Operands::None;

    /// Asks the active master to hand over to its standby. Answer: `Done`.
    Failover => server::FAILOVER, Operands::None;

    /// Drains a slave and lets it go. Answer: `Done`, as soon as that has begun.
    RemoveSlave {
        /// Its name.
        id: SlaveId,
    } => server::REMOVE_SLAVE, Operands::None;

    /// How many bytes the value of a key has; none if the key is not there. Answer: `Count`.
    ValueLength {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
    } => strings::STRLEN, Operands::Key(key);

    /// Changes one key by what it holds, in one step. Answer: as the update says.
    Update {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
        /// What is done to it.
        update: Update,
    } => strings::UPDATE, match update.operand() {
        Some(operand) => Operands::KeyAndValue(key, operand),
        None => Operands::Key(key),
    };

    /// Writes one key under a condition and answers what it held: `Value` or `NotFound`.
    Swap {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
        /// Up to `--max-value` bytes, any of them.
        value: Bytes,
        /// When it is written.
        when: Condition,
        /// How long the key lives then.
        life: Lifetime,
    } => strings::SWAP, Operands::KeyAndValue(key, value);

    /// Deletes one key and answers what it held: `Value` or `NotFound`.
    Take {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
    } => strings::TAKE, Operands::Key(key);

    /// Writes several keys as one record if none of them is there. Answer: `Count`, 1 if they were written and 0 if not.
    PutManyIfNone {
        /// 1 to [`CHECKED_KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        pairs: Vec<(Bytes, Bytes)>,
    } => strings::MSETNX, Operands::Pairs(pairs), list Pairs(pairs);

    /// When a key expires. Answer: `Integer`; -1 if it does not, -2 if it is not there.
    TimeToLive {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
        /// How the time is told.
        form: TimeForm,
    } => expiry::TTL, Operands::Key(key);

    /// Changes when a key expires, and answers what it holds: `Value` or `NotFound`.
    Renew {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
        /// How long it lives from now on.
        life: Lifetime,
    } => expiry::GETEX, Operands::Key(key);

    /// Goes on with a walk over all keys, for a bounded part of it. Answer: `Page`.
    Scan {
        /// Where to go on: 0 to begin, else as the last page said.
        cursor: u64,
        /// A glob that the keys match; `None` for all.
        pattern: Option<Bytes>,
        /// About so many keys are looked at.
        count: u32,
        /// Whether keys are shown that hold strings: else none is, as there are no other types.
        strings: bool,
    } => generic::SCAN, Operands::None;

    /// All keys that match. Answer: `Values`, or an error if there are more than [`KEYS_MAX`].
    Keys {
        /// A glob.
        pattern: Bytes,
    } => generic::KEYS_FACTS, Operands::None;

    /// Any key. Answer: `Value`, which is the key; or `NotFound` if there is none.
    RandomKey => generic::RANDOMKEY, Operands::None;

    /// Deletes each key that is there, by many records: not all at one moment. Answer: `Done`, once all of them are written.
    DeleteAll => server::FLUSHALL, Operands::None;

    /// Executes commands in one step, as one record. Answer: `Many`, or `NotFound` if a watched key has changed.
    Transact {
        /// What is watched, and the commands.
        transaction: Box<Transaction>,
    } => transaction::EXEC, Operands::All(transaction);

    /// Which versions keys have. Answer: `Versions`, in the order asked.
    Watch {
        /// 1 to [`CHECKED_KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        keys: Vec<Bytes>,
    } => transaction::WATCH, Operands::Keys(keys), list Keys(keys);

    /// Executes a script in one step, as one record. Answer: `Encoded`, or an error if it ends with one; then it has no effect.
    Evaluate {
        /// Which script, and what it is given.
        call: Box<ScriptCall>,
    } => scripting::EVAL, Operands::Script(call);

    /// Asks about the scripts that the master knows. Answer: as the request says.
    ScriptCache {
        /// What is asked.
        request: ScriptRequest,
    } => scripting::SCRIPT, Operands::Words(request.payload_bytes());

    /// What time it is in the cluster. Answer: `Values`, the seconds since 1970-01-01 and the microseconds of the next one.
    Time => server::TIME, Operands::None;

    /// Gives a key what another one holds, with its expiry. Answer: as the transfer says, or an error.
    Transfer {
        /// From which key to which.
        keys: Box<[Bytes; 2]>,
        /// What becomes of both.
        transfer: Transfer,
    } => generic::RENAME, Operands::Keys(&keys[..]);

    /// Changes which masters keep the log. Answer: `Done`, as soon as that has begun for good.
    ChangeMembers {
        /// What is to be changed.
        order: MembersOrder,
    } => server::MEMBERS, Operands::None;

    /// Looks at a key without reading it. Answer: as asked, or `NotFound`.
    Examine {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
        /// What is asked.
        what: KeyTrait,
    } => object::EXAMINE, Operands::Key(key);

    /// Changes one key under a condition on its value. Answer: as the change says.
    Compare {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
        /// What is compared, and what is done.
        change: Box<ComparedChange>,
    } => strings::COMPARE, Operands::Compared(key, change);

    /// Reads one key, with the version of the write that left it. Answer: `Values`, the value and the version as a text; `None` and
    /// `0.0` if it is not there.
    GetVersioned {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
    } => strings::GETV, Operands::Key(key);
}

/// How the time is told at which a key expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeForm {
    /// The seconds that are left, rounded.
    Seconds,
    /// The milliseconds that are left.
    Millis,
    /// The time in seconds since 1970-01-01, rounded.
    UnixSeconds,
    /// The time in milliseconds since 1970-01-01.
    UnixMillis,
}

impl TimeForm {
    /// What is told at `time` of a key that expires at `expires`.
    pub fn tell(self, time: UnixMillis, expires: UnixMillis) -> i64 {
        let millis = match self {
            TimeForm::Seconds | TimeForm::Millis => expires.since(time),
            TimeForm::UnixSeconds | TimeForm::UnixMillis => expires.0,
        };
        let told = match self {
            TimeForm::Seconds | TimeForm::UnixSeconds => millis.saturating_add(500) / 1000,
            TimeForm::Millis | TimeForm::UnixMillis => millis,
        };
        i64::try_from(told).unwrap_or(i64::MAX)
    }
}

impl Command {
    /// Whether the command can change the store: if its answer is lost, the outcome is unknown.
    pub fn is_write(&self) -> bool {
        if let Command::Transact { transaction } = self {
            return transaction.is_write();
        }
        if let Command::Evaluate { call } = self {
            return !call.is_read_only;
        }
        self.facts().changes != Changes::Nothing
    }

    /// The names of the RESP protocol under which just this is asked.
    pub(crate) fn asked_as(&self) -> &'static [&'static str] {
        if let Command::Update { update, .. } = self {
            update.asked_as()
        } else if let Command::Evaluate { call } = self {
            call.asked_as()
        } else if let Command::Transfer { transfer, .. } = self {
            transfer.asked_as()
        } else if let Command::ScriptCache { request } = self {
            request.asked_as()
        } else if let Command::Examine { what, .. } = self {
            what.asked_as()
        } else if let Command::Compare { change, .. } = self {
            change.asked_as()
        } else {
            self.facts().asked_as
        }
    }

    /// How many keys the command names.
    pub fn keys(&self) -> usize {
        self.operands().keys()
    }

    /// Bytes of keys and values, as the limits on requests in flight count them.
    pub fn payload_bytes(&self) -> usize {
        self.operands().payload_bytes()
    }
}

/// Reads a list and stops when it is too long: short keys must not become a long list in memory.
fn at_most_keys_max<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct AtMost<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for AtMost<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {KEYS_MAX} keys")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(element) = sequence.next_element()? {
                if list.len() == KEYS_MAX {
                    return Err(serde::de::Error::invalid_length(KEYS_MAX + 1, &self));
                }
                list.push(element);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(AtMost(std::marker::PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LinkId, Millis, ReignId, SessionId, Version};
    use crate::machine::master::{Asker, Change, Config, Effect, Event, Master};

    fn compare_sample() -> Command {
        let (value, when) =
            (Bytes::from_static(b"value"), Comparison::Different(Bytes::from_static(b"other")));
        let makes = Consequence::Set { value, life: Lifetime::Endless, answers_old: false };
        Command::Compare { key: Bytes::from_static(b"key"), change: Box::new(ComparedChange { when, makes }) }
    }

    /// One of each, in the order of their numbers.
    fn samples() -> Vec<Command> {
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let keys = vec![key.clone(), Bytes::from_static(b"longer")];
        let pairs = vec![(key.clone(), value.clone())];
        let all = vec![
            Command::Get { key: key.clone() },
            Command::GetMany { keys: keys.clone() },
            Command::Put { key, value },
            Command::PutMany { pairs },
            Command::Delete { keys: keys.clone() },
            Command::Exists { keys },
            Command::KeyCount,
            Command::Status,
            Command::Failover,
            Command::RemoveSlave { id: SlaveId::new("one").unwrap() },
            Command::ValueLength { key: Bytes::from_static(b"key") },
            Command::Update { key: Bytes::from_static(b"key"), update: Update::Add { number: 1 } },
            Command::Swap {
                key: Bytes::from_static(b"key"),
                value: Bytes::from_static(b"value"),
                when: Condition::Always,
                life: Lifetime::Endless,
            },
            Command::Take { key: Bytes::from_static(b"key") },
            Command::PutManyIfNone {
                pairs: vec![(Bytes::from_static(b"key"), Bytes::from_static(b"value"))],
            },
            Command::TimeToLive { key: Bytes::from_static(b"key"), form: TimeForm::Millis },
            Command::Renew { key: Bytes::from_static(b"key"), life: Lifetime::Endless },
            Command::Scan { cursor: 7, pattern: Some(Bytes::from_static(b"k*")), count: 10, strings: true },
            Command::Keys { pattern: Bytes::from_static(b"k*") },
            Command::RandomKey,
            Command::DeleteAll,
            Command::Transact {
                transaction: Box::new(Transaction {
                    watched: vec![(Bytes::from_static(b"longest"), None)],
                    commands: vec![
                        Command::Put { key: Bytes::from_static(b"key"), value: Bytes::from_static(b"value") },
                        Command::Exists { keys: vec![Bytes::from_static(b"key")] },
                    ],
                }),
            },
            Command::Watch { keys: vec![Bytes::from_static(b"key")] },
            Command::Evaluate {
                call: Box::new(ScriptCall {
                    script: ScriptName::Text(Bytes::from_static(b"return redis.call('SET', KEYS[1], 'v')")),
                    keys: vec![Bytes::from_static(b"key")],
                    args: vec![Bytes::from_static(b"value")],
                    is_read_only: false,
                    rights: ScriptRights::default(),
                }),
            },
            Command::ScriptCache { request: ScriptRequest::Load(Bytes::from_static(b"return 1")) },
            Command::Time,
            Command::Transfer {
                keys: Box::new([Bytes::from_static(b"key"), Bytes::from_static(b"longer")]),
                transfer: Transfer::Rename,
            },
            Command::ChangeMembers { order: MembersOrder::from_words(b"ADD", &[b"a:1"]).unwrap() },
            Command::Examine { key: Bytes::from_static(b"key"), what: KeyTrait::Encoding },
            compare_sample(),
            Command::GetVersioned { key: Bytes::from_static(b"key") },
        ];
        assert_eq!(all.len(), COMMAND_FACTS.len(), "each command is one of the samples");
        all
    }

    #[test]
    fn a_command_has_the_number_that_stands_for_it_on_the_wire() {
        for (number, command) in samples().into_iter().enumerate() {
            assert!(std::ptr::eq(command.facts(), COMMAND_FACTS[number]));
            if matches!(command, Command::Transact { .. }) {
                continue;
            }
            let encoded = bincode::serde::encode_to_vec(&command, bincode::config::standard()).unwrap();
            assert_eq!(
                (usize::from(command.number()), usize::from(encoded[0])),
                (number, number),
                "{command:?}"
            );
        }
    }

    #[test]
    fn the_names_under_which_a_command_is_asked_are_those_of_the_table() {
        let mut named: Vec<_> = COMMAND_FACTS.iter().flat_map(|facts| facts.asked_as).copied().collect();
        let asks = |spec: &&Spec| matches!(spec.does, Does::Ask(_) | Does::AskFor(_) | Does::Describe);
        let every = COMMANDS.iter().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands));
        let mut known: Vec<_> = every.filter(asks).map(|spec| spec.name).collect();
        named.sort_unstable();
        // `SET` asks for one of four commands, `DELEX` for one of two.
        named.dedup();
        known.sort_unstable();
        assert_eq!(named, known);
        let words = |name: &'static str| match name {
            "append" | "getset" | "mset" | "msetnx" | "set" | "setnx" | "write" => vec![name, "key", "value"],
            "decrby" | "incrby" | "expire" | "pexpire" | "expireat" | "pexpireat" => vec![name, "key", "1"],
            "setex" | "psetex" => vec![name, "key", "1", "value"],
            "scan" => vec![name, "1"],
            "getrange" | "setrange" | "substr" => vec![name, "key", "0", "1"],
            "eval" | "eval_ro" | "evalsha" | "evalsha_ro" => vec![name, "text", "1", "key"],
            "copy" | "rename" | "renamenx" => vec![name, "key", "longer"],
            "members" => vec![name, "ADD", "a:1"],
            "memory|usage" | "object|encoding" | "object|freq" | "object|idletime" | "object|refcount" => {
                vec![name, "word", "key"]
            }
            "delex" => vec![name, "key", "IFEQ", "value"],
            "dsm.setv" => vec![name, "key", "value", "1.2"],
            "dsm.delv" => vec![name, "key", "1.2"],
            "delifeq" => vec![name, "key", "value"],
            "script|exists" | "script|load" => vec![name, "word", "text"],
            _ => vec![name, "key"],
        };
        for command in samples() {
            let is_meant = |name: &&&str| match **name {
                "set" => matches!(command, Command::Put { .. }),
                "delex" => matches!(command, Command::Compare { .. }),
                _ => true,
            };
            for name in command.facts().asked_as.iter().filter(is_meant) {
                let has_words = find_by_full_name(name.as_bytes()).unwrap().arity.abs() > 1;
                let args = words(name).into_iter().take(if has_words { 4 } else { 1 });
                let args = args.map(Bytes::from).collect();
                let mut words = Words::after_name(args, Lengths { key_max: 10, value_max: 10 });
                let made = match find_by_full_name(name.as_bytes()).unwrap().does {
                    Does::Ask(read) => read(&mut words).unwrap(),
                    Does::AskFor(read) => read(&mut words).unwrap().0,
                    Does::Describe | Does::Quit | Does::Own(_) => continue,
                };
                assert_eq!(std::mem::discriminant(&made), std::mem::discriminant(&command), "{name}");
            }
        }
    }

    #[test]
    fn a_list_becomes_the_command_again_that_it_was() {
        let mut lists = Vec::new();
        for command in samples() {
            let Ok((number, list)) = command.clone().into_list() else {
                assert!(Command::empty_list(command.number()).is_none(), "{command:?}");
                continue;
            };
            let empty = Command::empty_list(number).unwrap();
            assert_eq!(std::mem::discriminant(&empty), std::mem::discriminant(&list));
            assert_eq!(Command::from_list(number, list), Some(command));
            lists.push(number);
        }
        assert_eq!(lists, [1, 3, 4, 5, 14, 22]);
        assert_eq!(Command::from_list(1, KeyList::Pairs(Vec::new())), None, "of another kind");
        assert_eq!(Command::from_list(0, KeyList::Keys(Vec::new())), None, "not a list");
    }

    #[test]
    fn a_command_makes_the_record_that_its_entry_names() {
        for command in samples() {
            let mut master = Master::new(Config::default());
            let id = SlaveId::new("one").unwrap();
            let asker = Asker { session: SessionId(1), tag: 1 };
            let (changes, deadline) = (command.facts().changes, Millis(1000));
            let mut effects = Vec::new();
            for event in [
                Event::ReignBegan { version: Version::new(1, 1), id: ReignId(1) },
                Event::SlaveJoined { id, link: LinkId(1), room_bytes: u64::MAX },
                Event::Request { asker, deadline, command: command.clone() },
            ] {
                master.step(Millis(0), event, &mut effects);
            }
            let made = effects.iter().find_map(|effect| {
                let Effect::Append { change, .. } = effect else { return None };
                Some(match **change {
                    Change::Put(_) => Changes::Values,
                    Change::Delete(_) => Changes::Keys,
                    Change::Apply(_) => Changes::Effects,
                })
            });
            let expected = match changes {
                // There is nothing to be taken.
                _ if matches!(
                    command,
                    Command::Take { .. }
                        | Command::Renew { .. }
                        | Command::DeleteAll
                        | Command::Transfer { .. }
                ) =>
                {
                    None
                }
                Changes::Values | Changes::Keys => Some(changes),
                // It writes one key alone.
                Changes::Effects => Some(Changes::Values),
                Changes::Nothing | Changes::Server => None,
            };
            assert_eq!(made, expected, "{command:?}");
        }
    }

    #[test]
    fn what_a_command_names_is_counted_and_measured() {
        let samples = samples();
        let measured = samples.iter().map(|command| {
            let operands = command.operands();
            (operands.keys(), operands.payload_bytes(), operands.longest_key(), operands.longest_value())
        });
        let (key, two_keys) = ((1, 3, 3, 0), (2, 9 + 64, 6, 0));
        let (pair, pairs, none) = ((1, 8, 3, 5), (1, 8 + 32, 3, 5), (0, 0, 0, 0));
        let expected = [
            key,
            two_keys,
            pair,
            pairs,
            two_keys,
            two_keys,
            none,
            none,
            none,
            none,
            key,
            key,
            pair,
            key,
            pairs,
            key,
            key,
            none,
            none,
            none,
            none,
            (3, 7 + 8 + 3 + 32 + 3 * QUEUED_BYTES, 7, 5),
            (1, 3 + 32, 3, 0),
            (1, 38 + 3 + 5 + 2 * 32, 3, 5),
            (0, 8, 0, 0),
            none,
            two_keys,
            none,
            key,
            (1, 3 + 5 + 5, 3, 5),
            key,
        ];
        assert!(measured.eq(expected));
        assert!(Command::Exists { keys: Vec::new() }.operands().lacks_keys());
        assert!(!Command::KeyCount.operands().lacks_keys());
    }
}
