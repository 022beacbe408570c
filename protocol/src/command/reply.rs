//! Replies to clients, whichever protocol they speak: results, and the words that begin an error.

use crate::ids::Version;
use bytes::Bytes;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// The answer to a [`Command`](super::Command).
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
    /// The request has no result.
    Error(ReplyError),
    /// The number that a key holds after the change.
    Integer(i64),
    /// Some of all keys.
    Page {
        /// Where to go on; 0 at the end.
        next: u64,
        /// Each key once, unless it was deleted and written again meanwhile.
        keys: Vec<Bytes>,
    },
    /// The answers to the commands of a transaction.
    Many(Replies),
    /// One entry a key, in the order asked; `None` for a key that is not there.
    Versions(Vec<Option<Version>>),
    /// An answer of any form: what a script has answered, in RESP3.
    Encoded(Bytes),
}

/// The answers to the commands of a transaction, in their order. They have a frame of their own, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies(pub Vec<Reply>);

impl Serialize for Replies {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom(OWN_FRAME))
    }
}

impl<'de> Deserialize<'de> for Replies {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(OWN_FRAME))
    }
}

const OWN_FRAME: &str = "they have a frame of their own";

/// What a client is shown of a reply, where that is not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excerpt {
    /// Of a count of one key: its type, `string`; or `none`.
    Type,
    /// Of `Done` or `NotFound`: 1 or 0.
    WhetherDone,
    /// Of a value: its bytes from `first` through `last`, both counted from 0, or from the end if they are negative. Of a
    /// key that is not there: an empty value.
    Range {
        /// The first byte.
        first: i64,
        /// The last byte.
        last: i64,
    },
}

impl Reply {
    /// The value, if that is what it is.
    ///
    /// # Errors
    /// The reply itself, if it is another one.
    pub(crate) fn into_value(self) -> Result<Bytes, Reply> {
        if let Reply::Value(value) = self {
            Ok(value)
        } else {
            Err(self)
        }
    }

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
