//! What a client may ask and hear, whichever protocol it speaks.

mod reply;

pub use reply::{ErrorWord, Reply, ReplyError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest key, in bytes (64 KiB).
pub const KEY_MAX: usize = 64 * 1024;

/// The most keys in one request.
pub const KEYS_MAX: usize = 64 * 1024;

/// What a key costs in the count of bytes in flight, beside its own length.
const KEY_OVERHEAD_BYTES: usize = 32;

/// The default of `--max-value`: the longest value, in bytes (16 MiB).
pub const VALUE_MAX_DEFAULT: usize = 16 * 1024 * 1024;

/// A request of a client that concerns the store. What concerns only the connection (PING, AUTH, ...) is
/// answered by the session and never becomes a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Reads one key. Answer: `Value` or `NotFound`.
    Get {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
    },
    /// Reads several keys, each linearizable by itself. Answer: `Values`, in the order asked.
    GetMany {
        /// 1 to [`KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        keys: Vec<Bytes>,
    },
    /// Writes one key. Answer: `Done`.
    Put {
        /// Up to [`KEY_MAX`] bytes, any of them.
        key: Bytes,
        /// Up to `--max-value` bytes, any of them.
        value: Bytes,
    },
    /// Writes several keys as one record: all or nothing. A key that stands twice takes its last value.
    /// Answer: `Done`.
    PutMany {
        /// 1 to [`KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        pairs: Vec<(Bytes, Bytes)>,
    },
    /// Deletes keys as one record. Answer: `Count`, the number of keys that existed.
    Delete {
        /// 1 to [`KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        keys: Vec<Bytes>,
    },
    /// Counts how many of the keys exist; one that stands twice counts twice. Answer: `Count`.
    Exists {
        /// 1 to [`KEYS_MAX`].
        #[serde(deserialize_with = "at_most_keys_max")]
        keys: Vec<Bytes>,
    },
    /// Counts all keys. Answer: `Count`.
    KeyCount,
    /// Describes the node, in the text form of Redis' INFO. Answered by any master for itself. Answer: `Text`.
    Status,
    /// Asks the active master to hand over to its standby. Answer: `Done`.
    Failover,
}

impl Command {
    /// Whether the command can change the store: if its answer is lost, the outcome is unknown.
    pub fn is_write(&self) -> bool {
        match self {
            Command::Put { .. } | Command::PutMany { .. } | Command::Delete { .. } | Command::Failover => {
                true
            }
            Command::Get { .. }
            | Command::GetMany { .. }
            | Command::Exists { .. }
            | Command::KeyCount
            | Command::Status => false,
        }
    }

    /// How many keys the command names.
    pub fn keys(&self) -> usize {
        match self {
            Command::Get { .. } | Command::Put { .. } => 1,
            Command::GetMany { keys } | Command::Delete { keys } | Command::Exists { keys } => keys.len(),
            Command::PutMany { pairs } => pairs.len(),
            Command::KeyCount | Command::Status | Command::Failover => 0,
        }
    }

    /// Bytes of keys and values, as the limits on requests in flight count them.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Command::Get { key } => key.len(),
            Command::GetMany { keys } | Command::Delete { keys } | Command::Exists { keys } => {
                keys.iter().map(|key| key.len() + KEY_OVERHEAD_BYTES).sum()
            }
            Command::Put { key, value } => key.len() + value.len(),
            Command::PutMany { pairs } => {
                pairs.iter().map(|(key, value)| key.len() + value.len() + KEY_OVERHEAD_BYTES).sum()
            }
            Command::KeyCount | Command::Status | Command::Failover => 0,
        }
    }
}

/// Reads a list and stops at the first element too many: a few bytes a key must not become a long list in memory.
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
