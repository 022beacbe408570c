//! What a client may ask and hear, whichever protocol it speaks.

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

/// The answer to a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The write took effect and is safe.
    Done,
    /// The value of the key that was asked for.
    Value(Bytes),
    /// The key was never written, or was deleted.
    NotFound,
    /// One entry a key, in the order asked; `None` for a key that is not there.
    Values(Vec<Option<Bytes>>),
    /// A number of keys.
    Count(u64),
    /// A text for people and scripts.
    Text(String),
    /// The request did not end in a result.
    Error(ReplyError),
}

impl Reply {
    /// Builds an error reply.
    pub fn error(word: ErrorWord, detail: impl Into<String>) -> Reply {
        Reply::Error(ReplyError { word, detail: detail.into() })
    }
}

/// An error answer: its first word says which kind it is, the rest is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyError {
    /// Which error this is, and so whether the request may have taken effect.
    pub word: ErrorWord,
    /// One line without line ends. For `Standby`: the address of the active master first, if it is known.
    pub detail: String,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            f.write_str(self.word.as_str())
        } else {
            write!(f, "{} {}", self.word.as_str(), self.detail)
        }
    }
}

impl std::error::Error for ReplyError {}

/// The first word of an error answer. All but [`ErrorWord::Unknown`] mean: *not executed*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorWord {
    /// This master does not serve; the detail begins with the address of the one that does, if known.
    Standby,
    /// Fewer slaves are active than `--min-slaves`.
    NoQuorum,
    /// No master was found to serve before the deadline, or a forwarded read was not answered in time.
    Loading,
    /// The log cannot take writes now (a full disk); reads go on.
    ReadOnly,
    /// A limit on requests in flight is reached, no holder answered a read in time, or a handover was refused or
    /// aborted.
    Busy,
    /// Fewer slaves have room for the value than a write needs.
    OutOfMemory,
    /// The connection must authenticate first. Reserved: never answered yet.
    NoAuth,
    /// The connection may not do this. Reserved: never answered yet.
    NoPermission,
    /// The key holds another kind of value. Reserved: never answered yet.
    WrongType,
    /// The request is malformed, unknown or out of bounds; or the log does not hold a value that it should.
    Bad,
    /// The write may or may not take effect.
    Unknown,
}

impl ErrorWord {
    /// Every word, in the order of the declaration.
    pub const ALL: [ErrorWord; 11] = [
        ErrorWord::Standby,
        ErrorWord::NoQuorum,
        ErrorWord::Loading,
        ErrorWord::ReadOnly,
        ErrorWord::Busy,
        ErrorWord::OutOfMemory,
        ErrorWord::NoAuth,
        ErrorWord::NoPermission,
        ErrorWord::WrongType,
        ErrorWord::Bad,
        ErrorWord::Unknown,
    ];

    /// The word as it stands in an answer: `STANDBY`, `NOQUORUM`, `LOADING`, `READONLY`, `BUSY`, `OOM`,
    /// `NOAUTH`, `NOPERM`, `WRONGTYPE`, `ERR` or `UNKNOWN`.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorWord::Standby => "STANDBY",
            ErrorWord::NoQuorum => "NOQUORUM",
            ErrorWord::Loading => "LOADING",
            ErrorWord::ReadOnly => "READONLY",
            ErrorWord::Busy => "BUSY",
            ErrorWord::OutOfMemory => "OOM",
            ErrorWord::NoAuth => "NOAUTH",
            ErrorWord::NoPermission => "NOPERM",
            ErrorWord::WrongType => "WRONGTYPE",
            ErrorWord::Bad => "ERR",
            ErrorWord::Unknown => "UNKNOWN",
        }
    }

    /// Whether no answer begins with this word yet: there are no passwords, permissions or types.
    pub fn is_reserved(self) -> bool {
        match self {
            ErrorWord::NoAuth | ErrorWord::NoPermission | ErrorWord::WrongType => true,
            ErrorWord::Standby
            | ErrorWord::NoQuorum
            | ErrorWord::Loading
            | ErrorWord::ReadOnly
            | ErrorWord::Busy
            | ErrorWord::OutOfMemory
            | ErrorWord::Bad
            | ErrorWord::Unknown => false,
        }
    }

    /// Whether the request certainly had no effect.
    pub fn is_not_executed(self) -> bool {
        self != ErrorWord::Unknown
    }
}
