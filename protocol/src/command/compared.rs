//! A change of one key under a condition on its value.
//!
//! Knows nothing of the log or of slaves: `update.rs` decides it at its place in the log.

use super::lifetime::Lifetime;
use crate::ids::Version;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What a key must hold so that it is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// Just this: `IFEQ`. A key that is not there does not.
    Equal(Bytes),
    /// Anything else, or nothing: `IFNE`.
    Different(Bytes),
    /// What that write left; `None`: nothing.
    Version(Option<Version>),
}

impl Comparison {
    /// Whether a key that is not there is changed.
    pub(super) fn holds_for_none(&self) -> bool {
        match self {
            Comparison::Equal(_) => false,
            Comparison::Different(_) => true,
            Comparison::Version(version) => version.is_none(),
        }
    }

    /// Whether one with that version, and a value of so many bytes, is; `None` if it depends on the value, which is not at hand.
    pub(super) fn holds(&self, version: Option<Version>, bytes: u64, value: Option<&Bytes>) -> Option<bool> {
        let is_equal = |compared: &Bytes| Some(bytes == compared.len() as u64 && value? == compared);
        match self {
            Comparison::Equal(compared) => is_equal(compared),
            Comparison::Different(compared) => is_equal(compared).map(|is_equal| !is_equal),
            Comparison::Version(wanted) => Some(wanted.is_some() && *wanted == version),
        }
    }

    /// The value with which it compares.
    fn value(&self) -> Option<&Bytes> {
        match self {
            Comparison::Equal(compared) | Comparison::Different(compared) => Some(compared),
            Comparison::Version(_) => None,
        }
    }
}

/// What becomes of the key then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consequence {
    /// It is written. Answer: `Done`, or `NotFound` if it was not.
    Set {
        /// Up to `--max-value` bytes, any of them.
        value: Bytes,
        /// How long the key lives then.
        life: Lifetime,
        /// Whether the answer is what it held, `Value` or `NotFound`, whatever became of it.
        answers_old: bool,
    },
    /// It is deleted. Answer: `Count`, 1 if that was done and 0 if not.
    Delete,
}

/// A change, and the condition under which it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedChange {
    /// When it is made.
    pub when: Comparison,
    /// What it is.
    pub makes: Consequence,
}

impl ComparedChange {
    /// The value that it writes.
    pub fn value(&self) -> Option<&Bytes> {
        match &self.makes {
            Consequence::Set { value, .. } => Some(value),
            Consequence::Delete => None,
        }
    }

    /// Whether it depends on the version of the key.
    pub(crate) fn needs_version(&self) -> bool {
        matches!(self.when, Comparison::Version(_))
    }

    /// Whether the answer is what the key held.
    pub fn answers_old(&self) -> bool {
        matches!(self.makes, Consequence::Set { answers_old: true, .. })
    }

    /// Bytes of the values that it brings.
    pub(super) fn payload_bytes(&self) -> usize {
        self.when.value().map_or(0, Bytes::len) + self.value().map_or(0, Bytes::len)
    }

    /// How long the longest of them is, in bytes.
    pub(super) fn longest_value(&self) -> usize {
        self.when.value().map_or(0, Bytes::len).max(self.value().map_or(0, Bytes::len))
    }

    /// The names of the RESP protocol under which it is asked.
    pub(super) fn asked_as(&self) -> &'static [&'static str] {
        match (&self.makes, &self.when) {
            (Consequence::Set { .. }, Comparison::Version(_)) => &["dsm.setv"],
            (Consequence::Set { .. }, Comparison::Equal(_) | Comparison::Different(_)) => &["set"],
            (Consequence::Delete, Comparison::Version(_)) => &["dsm.delv"],
            (Consequence::Delete, Comparison::Equal(_)) => &["delex", "delifeq"],
            (Consequence::Delete, Comparison::Different(_)) => &["delex"],
        }
    }
}
