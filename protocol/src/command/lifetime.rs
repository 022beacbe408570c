//! How long a key lives on after a change.

use crate::ids::UnixMillis;
use serde::{Deserialize, Serialize};

/// How long a key lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// For ever.
    Endless,
    /// As long as before; for ever if the key is new.
    Same,
    /// For so many milliseconds; with 0 it is deleted at once.
    For(u64),
    /// Until then; it is deleted at once if that is past.
    Until(UnixMillis),
}

impl Lifetime {
    /// Until when, counted from `time`, of a key that would expire at `expires`; `None` for ever.
    pub(super) fn ends(self, time: UnixMillis, expires: Option<UnixMillis>) -> Option<UnixMillis> {
        match self {
            Lifetime::Endless => None,
            Lifetime::Same => expires,
            Lifetime::For(ms) => Some(time.plus(ms)),
            Lifetime::Until(time) => Some(time),
        }
    }
}
