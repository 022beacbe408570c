//! What an update or a transaction is decided by, and what has become of a decision.

use super::{Entry, WriteId};
use crate::command::Reply;
use crate::ids::{UnixMillis, Version};
use bytes::Bytes;
use std::collections::HashMap;

/// A value that is not longer is fetched before its update's turn comes, in bytes.
pub(super) const FETCHED_AHEAD_MAX: u32 = 4 * 1024;

/// What has become of a decision.
pub(super) enum Outlook {
    /// It is made: the request is appended or answered.
    Decided,
    /// The value of this key is needed, and so many bytes are to be set aside for it.
    Fetch(Bytes, Entry, u64),
    /// The same of several.
    FetchAll(Vec<(Bytes, Entry)>, u64),
    /// That depends on what becomes of this write.
    Behind(WriteId),
    /// The answer, if that write is written.
    RestsOn(WriteId, Reply),
    /// Too many values are in flight.
    Crowded,
}

/// What a key holds by the last accepted write.
pub(super) enum Holds {
    Nothing,
    /// This value, which expires then.
    Value(Bytes, Option<UnixMillis>),
    /// Its value is not in memory.
    Stored(Entry),
}

impl Holds {
    pub(super) fn expires(&self) -> Option<UnixMillis> {
        match self {
            Holds::Nothing => None,
            Holds::Value(_, expires) => *expires,
            Holds::Stored(entry) => entry.expires,
        }
    }
}

/// A value as it is kept until it is needed: a short one would keep the buffer that it was read into.
pub(super) fn kept(value: Bytes) -> Bytes {
    let is_short = value.len() <= FETCHED_AHEAD_MAX as usize;
    if is_short {
        Bytes::copy_from_slice(&value)
    } else {
        value
    }
}

/// The values for a transaction that are fetched together.
#[derive(Clone, Debug, Default)]
pub(super) struct WantedValues {
    /// By key, with the versions that they have; `None` for one that is under way. Never iterated, but to forget.
    values: HashMap<Bytes, (Version, Option<Bytes>), foldhash::fast::FixedState>,
    /// Those that were asked for last, by their places.
    asked: Vec<Bytes>,
    /// How many are under way.
    open: usize,
    /// Why one of them cannot be had.
    failed: Option<Reply>,
}

impl WantedValues {
    /// Whether all of them are there.
    pub(super) fn are_there(&self) -> bool {
        self.open == 0
    }

    /// Bytes of those that are there.
    pub(super) fn bytes(&self) -> u64 {
        self.values.values().filter_map(|(_, value)| value.as_ref()).map(|value| value.len() as u64).sum()
    }

    pub(super) fn of(&self, key: &Bytes, version: Version) -> Option<&Bytes> {
        let (of, value) = self.values.get(key)?;
        value.as_ref().filter(|_| *of == version)
    }

    /// What is still to be fetched of these, with the places at which it is expected. What no longer counts goes.
    pub(super) fn want(&mut self, entries: Vec<(Bytes, Entry)>) -> Vec<(u32, Bytes, Entry)> {
        self.values.retain(|_, (_, value)| value.is_some());
        self.asked = entries.iter().map(|(key, _)| key.clone()).collect();
        (self.open, self.failed) = (entries.len(), None);
        self.values.extend(entries.iter().map(|(key, entry)| (key.clone(), (entry.version, None))));
        (0..).zip(entries).map(|(place, (key, entry))| (place, key, entry)).collect()
    }

    /// The value at that place has come, or why there is none; the answer to the request once nothing is under way, if it fails.
    pub(super) fn came(&mut self, place: u32, reply: Reply) -> Option<Reply> {
        match reply.into_value() {
            Ok(value) => {
                let key = self.asked.get(place as usize);
                if let Some((_, wanted)) = key.and_then(|key| self.values.get_mut(key)) {
                    *wanted = Some(kept(value));
                }
            }
            Err(refusal) => self.failed = Some(refusal),
        }
        self.open = self.open.saturating_sub(1);
        if self.open > 0 {
            return None;
        }
        self.failed.take()
    }
}
