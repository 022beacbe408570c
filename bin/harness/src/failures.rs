//! The types of failures: of a request ([`RequestFailure`]), of an answer ([`Wrong`]), of a history ([`HistoryVerdict`]). Those
//! of a whole run are in `verdict.rs`.
//!
//! Owns the words for these in files (`stale_value`, `gave up`) and on standard error. Never looks at a value: `judge`,
//! `ledger` and `check` do.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An answer that must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// A value that was never written to this key.
    NeverWritten,
    /// A value that had certainly been replaced, or none although there must be one.
    Stale,
    /// Bytes that were never written, or something that does not answer the request.
    Mangled,
}

impl Wrong {
    pub(crate) const ALL: [Wrong; 3] = [Wrong::NeverWritten, Wrong::Stale, Wrong::Mangled];

    /// The class under which it is counted.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Wrong::NeverWritten => "wrong_value",
            Wrong::Stale => "stale_value",
            Wrong::Mangled => "mangled",
        }
    }

    /// The one with this class.
    pub(crate) fn of_class(class: &str) -> Option<Wrong> {
        Wrong::ALL.into_iter().find(|wrong| wrong.class() == class)
    }

    /// What such answers had.
    pub(crate) fn means(self) -> &'static str {
        match self {
            Wrong::NeverWritten => "had a value that was never written to their key",
            Wrong::Stale => "had a value that had been replaced, or none",
            Wrong::Mangled => "had a value that nobody wrote, or made no sense",
        }
    }
}

/// Why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestFailure {
    /// It was answered, and the answer must never be.
    Wrong(Wrong),
    /// The connection ended first, or could not be opened.
    Connection,
    /// No answer in time.
    Timeout,
    /// Open loop: it was due and could not be sent.
    Unsent,
    /// The store's own word.
    Refused(String),
}

impl RequestFailure {
    /// The class under which it is counted.
    pub(crate) fn class(&self) -> &str {
        match self {
            RequestFailure::Wrong(wrong) => wrong.class(),
            RequestFailure::Connection => "connection",
            RequestFailure::Timeout => "timeout",
            RequestFailure::Unsent => "unsent",
            RequestFailure::Refused(word) => word,
        }
    }
}

/// What came out of the check of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HistoryVerdict {
    /// One order of all operations explains every answer.
    #[serde(rename = "linearizable")]
    Linearizable,
    /// No order of the operations explains the answers.
    #[serde(rename = "violation")]
    Violation,
    /// The search had a bound, and reached it.
    #[serde(rename = "gave up")]
    GaveUp,
    /// A second signal ended the search, or there was none.
    #[default]
    #[serde(rename = "interrupted")]
    Interrupted,
}

impl fmt::Display for HistoryVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HistoryVerdict::Linearizable => "linearizable",
            HistoryVerdict::Violation => "violation",
            HistoryVerdict::GaveUp => "gave up",
            HistoryVerdict::Interrupted => "interrupted",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_in_files_are_those_that_are_told() {
        for verdict in [
            HistoryVerdict::Linearizable,
            HistoryVerdict::Violation,
            HistoryVerdict::GaveUp,
            HistoryVerdict::Interrupted,
        ] {
            assert_eq!(serde_json::to_string(&verdict).unwrap(), format!("\"{verdict}\""));
        }
        for wrong in Wrong::ALL {
            assert_eq!(Wrong::of_class(wrong.class()), Some(wrong));
        }
        assert_eq!(Wrong::of_class("timeout"), None);
    }
}
