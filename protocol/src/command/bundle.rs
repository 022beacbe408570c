//! What is asked of the store for a transaction: the commands, which are executed together, and the versions of the keys that were
//! watched, which are the same at every master.

use super::{Command, KEYS_MAX, KEY_MAX};
use crate::ids::Version;
use bytes::Bytes;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most commands in one transaction: all of them are executed in one step.
pub const TRANSACTION_COMMANDS_MAX: usize = 4 * 1024;

/// The most keys that its commands name in all.
pub const TRANSACTION_KEYS_MAX: usize = 4 * 1024;

/// What a command in a transaction takes in memory beside its keys and values, in bytes, as the limits count it.
pub const QUEUED_BYTES: usize = 384;

/// The most bytes that a transaction may bring, and as many that it may answer, where one value has at most `value_max`: all of it
/// is encoded and decoded in one step.
pub fn transaction_bytes_max(value_max: usize) -> usize {
    value_max.saturating_add(KEY_MAX + QUEUED_BYTES).max(TRANSACTION_BYTES)
}

const TRANSACTION_BYTES: usize = 16 * 1024 * 1024;

/// Commands that are executed in one step, as one record.
///
/// On the wire it has a frame of its own, in which no command can be another transaction: so decoding never recurses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Keys, and the versions that they must have; `None` for one that must not be there.
    pub watched: Vec<(Bytes, Option<Version>)>,
    /// What is executed, in this order: commands on keys alone.
    pub commands: Vec<Command>,
}

impl Transaction {
    /// Whether it changes anything.
    pub fn is_write(&self) -> bool {
        self.commands.iter().any(Command::is_write)
    }

    /// How many keys it names.
    pub fn keys(&self) -> usize {
        self.watched.len() + self.commands.iter().map(Command::keys).sum::<usize>()
    }

    /// Bytes of its keys and values, as the limits on requests in flight count them.
    pub fn payload_bytes(&self) -> usize {
        let watched: usize = self.watched.iter().map(|(key, _)| key.len() + QUEUED_BYTES).sum();
        let commands: usize =
            self.commands.iter().map(|command| command.payload_bytes() + QUEUED_BYTES).sum();
        watched + commands
    }

    /// How long its longest key is, in bytes.
    pub fn longest_key(&self) -> usize {
        let watched = self.watched.iter().map(|(key, _)| key.len());
        let named = self.commands.iter().map(|command| command.operands().longest_key());
        watched.chain(named).max().unwrap_or_default()
    }

    /// How long the longest value is that it brings, in bytes.
    pub fn longest_value(&self) -> usize {
        let brought = self.commands.iter().map(|command| command.operands().longest_value());
        brought.max().unwrap_or_default()
    }

    /// Whether a command in it must name keys but names none.
    pub fn lacks_keys(&self) -> bool {
        self.commands.iter().any(|command| command.operands().lacks_keys())
    }

    /// Why it cannot be executed in one step, where one value has at most `value_max` bytes; `None` if it can.
    pub fn excess(&self, value_max: usize) -> Option<String> {
        let bytes_max = transaction_bytes_max(value_max);
        if self.payload_bytes() > bytes_max {
            Some(format!("a transaction has at most {bytes_max} bytes"))
        } else if self.commands.len() > TRANSACTION_COMMANDS_MAX {
            Some(format!("a transaction has at most {TRANSACTION_COMMANDS_MAX} commands"))
        } else if self.keys() > TRANSACTION_KEYS_MAX {
            Some(format!("a transaction names at most {TRANSACTION_KEYS_MAX} keys"))
        } else if let Some(excess) = self.commands.iter().find_map(Command::script_excess) {
            Some(excess)
        } else if !self.commands.iter().all(Command::is_queueable) {
            Some("a command is not allowed inside a transaction".to_owned())
        } else {
            None
        }
    }
}

impl Command {
    /// Whether it may be part of a transaction: whether it is about keys that it names.
    pub fn is_queueable(&self) -> bool {
        match self {
            Command::Get { .. }
            | Command::GetMany { .. }
            | Command::Put { .. }
            | Command::PutMany { .. }
            | Command::Delete { .. }
            | Command::Exists { .. }
            | Command::ValueLength { .. }
            | Command::Update { .. }
            | Command::Swap { .. }
            | Command::Take { .. }
            | Command::PutManyIfNone { .. }
            | Command::TimeToLive { .. }
            | Command::Renew { .. }
            | Command::Examine { .. }
            | Command::Evaluate { .. }
            | Command::ScriptCache { .. }
            | Command::Transfer { .. }
            | Command::Time => true,
            // Within a transaction keys have no versions: they get one with it.
            Command::Compare { change, .. } => !change.needs_version(),
            Command::GetVersioned { .. }
            | Command::KeyCount
            | Command::Scan { .. }
            | Command::Keys { .. }
            | Command::RandomKey
            | Command::DeleteAll
            | Command::Status
            | Command::Failover
            | Command::RemoveSlave { .. }
            | Command::ChangeMembers { .. }
            | Command::Transact { .. }
            | Command::Watch { .. } => false,
        }
    }
}

const OWN_FRAME: &str = "it has a frame of its own";

impl Serialize for Transaction {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom(OWN_FRAME))
    }
}

impl<'de> Deserialize<'de> for Transaction {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(OWN_FRAME))
    }
}

const _: () = assert!(TRANSACTION_KEYS_MAX <= KEYS_MAX);
