//! What becomes of a key and of another one that gets what it holds.

use serde::{Deserialize, Serialize};

/// How a key gets what another one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transfer {
    /// The other one is deleted. Answer: `Done`.
    Rename,
    /// The same, if the key is not there. Answer: `Count`, 1 if that was done and 0 if not.
    RenameIfNone,
    /// Both hold it, if the key was not there. Answer: the same.
    Copy,
    /// Both hold it. Answer: the same.
    CopyOver,
}

impl Transfer {
    /// The names under which it is asked for.
    pub(super) fn asked_as(self) -> &'static [&'static str] {
        match self {
            Transfer::Rename => &["rename"],
            Transfer::RenameIfNone => &["renamenx"],
            Transfer::Copy | Transfer::CopyOver => &["copy"],
        }
    }

    /// Whether the key that had the value keeps it.
    pub(crate) fn is_copy(self) -> bool {
        match self {
            Transfer::Rename | Transfer::RenameIfNone => false,
            Transfer::Copy | Transfer::CopyOver => true,
        }
    }

    /// Whether nothing is done if the key that is to get the value is there.
    pub(crate) fn spares(self) -> bool {
        match self {
            Transfer::Rename | Transfer::CopyOver => false,
            Transfer::RenameIfNone | Transfer::Copy => true,
        }
    }
}
