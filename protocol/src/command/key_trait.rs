//! What can be told of a key without showing what it holds.
//!
//! Knows nothing of the log or of slaves: the master machine asks it at the request's place in the log, as it decides an update
//! (`update.rs`).

use super::reply::{ErrorWord, Reply};
use crate::integer::parse_integer;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The memory of an entry of a slave in addition to its key and value, in bytes: table slots, two allocations, version and reign.
pub const ENTRY_OVERHEAD_BYTES: u64 = 104;

/// A longer value is `raw`, in bytes: Redis keeps a shorter one together with its header.
const EMBEDDED_MAX: u64 = 44;

/// A longer value is no integer of 64 bits, in bytes.
const INTEGER_MAX: u64 = 20;

const NO_IDLE_TIME: &str = "idle time is not tracked: nothing is evicted";
const NO_FREQUENCY: &str =
    "An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when \
     switching between policies at runtime LRU and LFU data will take some time to adjust.";

/// What is asked about a key. The answer is `NotFound` if it is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyTrait {
    /// How Redis would keep a value that was set like this. Answer: `Value`, `int`, `embstr` or `raw`.
    Encoding,
    /// How many keys share the value. Answer: `Count`, 1.
    References,
    /// How long nobody has used it. Answer: an error, as nobody keeps that.
    IdleTime,
    /// How often it is used. Answer: an error, as nobody keeps that.
    Frequency,
    /// How many bytes each of its copies takes, as `--max-memory` counts them. Answer: `Count`.
    MemoryUsage,
}

impl KeyTrait {
    /// The answer for a key of which key and value have so many bytes; `None` if it depends on a value that is not at hand.
    pub(super) fn tell(self, key_bytes: usize, value_bytes: u64, value: Option<&Bytes>) -> Option<Reply> {
        Some(match self {
            KeyTrait::Encoding => Reply::Value(Bytes::from_static(encoding(value_bytes, value)?.as_bytes())),
            KeyTrait::References => Reply::Count(1),
            KeyTrait::IdleTime => Reply::error(ErrorWord::Bad, NO_IDLE_TIME),
            KeyTrait::Frequency => Reply::error(ErrorWord::Bad, NO_FREQUENCY),
            KeyTrait::MemoryUsage => Reply::Count(key_bytes as u64 + value_bytes + ENTRY_OVERHEAD_BYTES),
        })
    }

    /// The name of the RESP protocol under which it is asked.
    pub(super) fn asked_as(self) -> &'static [&'static str] {
        match self {
            KeyTrait::Encoding => &["object|encoding"],
            KeyTrait::References => &["object|refcount"],
            KeyTrait::IdleTime => &["object|idletime"],
            KeyTrait::Frequency => &["object|freq"],
            KeyTrait::MemoryUsage => &["memory|usage"],
        }
    }
}

fn encoding(bytes: u64, value: Option<&Bytes>) -> Option<&'static str> {
    Some(match bytes {
        0..=INTEGER_MAX if parse_integer(value?).is_some() => "int",
        0..=EMBEDDED_MAX => "embstr",
        _ => "raw",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_encoded_as_redis_would_and_read_only_if_it_may_be_a_number() {
        let told = |text: &str| {
            let value = Bytes::copy_from_slice(text.as_bytes());
            encoding(value.len() as u64, Some(&value))
        };
        let digits = "1".repeat(21);
        for (text, expected) in [
            ("", "embstr"),
            ("0", "int"),
            ("-9223372036854775808", "int"),
            ("9223372036854775807", "int"),
            ("9223372036854775808", "embstr"),
            ("-0", "embstr"),
            ("01", "embstr"),
            (&digits, "embstr"),
            (&"x".repeat(44), "embstr"),
            (&"x".repeat(45), "raw"),
        ] {
            assert_eq!(told(text), Some(expected), "{text}");
        }
        assert_eq!((encoding(20, None), encoding(21, None)), (None, Some("embstr")));
    }

    #[test]
    fn what_nobody_keeps_is_refused_and_the_rest_needs_no_value() {
        let told = |what: KeyTrait| what.tell(3, 5, None);
        assert_eq!(told(KeyTrait::References), Some(Reply::Count(1)));
        assert_eq!(told(KeyTrait::MemoryUsage), Some(Reply::Count(8 + ENTRY_OVERHEAD_BYTES)));
        for what in [KeyTrait::IdleTime, KeyTrait::Frequency] {
            assert!(
                matches!(told(what), Some(Reply::Error(error)) if error.word == ErrorWord::Bad),
                "{what:?}"
            );
        }
    }
}
