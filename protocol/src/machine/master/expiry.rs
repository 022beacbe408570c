//! Keys that expire. The log decides: a key whose time has come is gone once its deletion is written, and nobody is told that it
//! is gone before that. So what was seen expired never comes back, whatever the clock of a later primary says.
//!
//! Owns the deletions that no client has asked for: those for which requests wait, and those of keys that nobody asks for, a few
//! at each tick.

use super::hash::hash_bytes;
use super::latest::Found;
use super::room::RoomReserved;
use super::writes::Terms;
use super::{Asker, Change, Effect, Entry, Master, WriteId};
use crate::ids::{Millis, SessionId, UnixMillis};
use bytes::Bytes;
use smallvec::SmallVec;

/// Who asks for the deletion of a key whose time has come: no client. Sessions count from 0.
const NOBODY: Asker = Asker { session: SessionId(u64::MAX), tag: 0 };

/// One tick makes at most so many records of such keys, and none while so many are in flight.
const RECORDS_AT_ONCE: usize = 8;

/// At most so many keys are in one of them.
const KEYS_IN_RECORD: usize = 256;

/// A record of them takes no further key once they have so many bytes.
const BYTES_IN_RECORD: usize = 64 << 10;

/// One tick looks at about so many times of keys.
const LOOKS_AT_ONCE: usize = 64 << 10;

/// To look at a key takes as long as to look at so many times, and so many bytes of it as long as one.
const KEY_LOOKS: usize = 32;
const BYTES_FOR_LOOK: usize = 16;

/// After the log has refused one, keys that nobody asks for are left alone for so long, in milliseconds.
const PAUSE_MS: u64 = 1000;

/// The deletions of keys whose time has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expiring {
    /// How many are neither written nor refused.
    in_flight: usize,
    /// From which entry on keys are sought that nobody asks for.
    next: u32,
    /// Until when none of these is deleted.
    paused_until: Millis,
}

impl Expiring {
    /// A reign has ended.
    pub(super) fn clear(&mut self) {
        *self = Expiring::default();
    }
}

/// What is to be done about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpiryLook {
    /// It has not expired.
    Alive,
    /// Its time has come: the answer waits for this write.
    Waits(WriteId),
    /// Its time has come, and a later write of the same session is under way, which this answer must not see; or it was waited for
    /// too long.
    Lost,
}

impl Asker {
    /// Whether no client waits for the answer.
    pub(super) fn is_nobody(self) -> bool {
        self == NOBODY
    }
}

impl Master {
    /// Whether the time of this entry is over: to the end of its last millisecond, since it began within one.
    pub(super) fn is_expired(&self, entry: &Entry) -> bool {
        entry.expires.is_some_and(|expires| expires < self.time)
    }

    /// What is to be done about the first of `keys`, which has this entry, for somebody who waits until his deadline for all of
    /// them.
    pub(super) fn look_at(
        &mut self,
        entry: Option<&Entry>,
        keys: &[Bytes],
        (asker, deadline): (Asker, Millis),
        effects: &mut Vec<Effect>,
    ) -> ExpiryLook {
        if !entry.is_some_and(|entry| self.is_expired(entry)) {
            return ExpiryLook::Alive;
        }
        // Only who has waited for another write comes here with one: else it would have waited for this one.
        if self.now >= deadline || self.last_unwritten_of_any(asker, keys).is_some() {
            return ExpiryLook::Lost;
        }
        self.delete_expired(keys, effects).map_or(ExpiryLook::Lost, ExpiryLook::Waits)
    }

    /// The write that an answer must wait for which says that the first of `keys` is gone, whose time has come: its deletion, or
    /// a later write of it. Of the next keys those are deleted with it whose time has come, too.
    fn delete_expired(&mut self, keys: &[Bytes], effects: &mut Vec<Effect>) -> Option<WriteId> {
        if let Some(write) = self.unwritten_of(keys.first()?) {
            return Some(write);
        }
        let is_due = |key: &&Bytes| {
            let entry = self.directory.get(key);
            entry.is_some_and(|entry| self.is_expired(&entry)) && self.unwritten_of(key).is_none()
        };
        let mut due: SmallVec<[Bytes; 1]> =
            keys.iter().take(KEYS_IN_RECORD).filter(is_due).cloned().collect();
        due.sort_unstable();
        due.dedup();
        Some(self.append_expiry(due, None, effects))
    }

    /// Deletes all of these keys, whose time has come, and gives a write that an answer must wait for which says that they are gone;
    /// then it must look whether they are: there may be others, or one was refused.
    pub(super) fn delete_all_expired(
        &mut self,
        keys: &[Bytes],
        effects: &mut Vec<Effect>,
    ) -> Option<WriteId> {
        let (mut last, mut bytes) = (None, 0);
        let mut record: SmallVec<[Bytes; 1]> = SmallVec::new();
        for key in keys {
            if let Some(write) = self.unwritten_of(key) {
                last = Some(write);
                continue;
            }
            bytes += key.len();
            record.push(key.clone());
            if record.len() >= KEYS_IN_RECORD || bytes >= BYTES_IN_RECORD {
                bytes = 0;
                last = Some(self.append_expiry(std::mem::take(&mut record), None, effects));
            }
        }
        if !record.is_empty() {
            last = Some(self.append_expiry(record, None, effects));
        }
        last
    }

    /// The last write that may change this key, if it is not taken in.
    fn unwritten_of(&self, key: &[u8]) -> Option<WriteId> {
        let (Found::Here(write) | Found::Perhaps(write)) = self.writes.latest.of(hash_bytes(key))?;
        self.writes.all.get(write.0).is_some_and(|write| !write.is_resolved).then_some(write)
    }

    /// Deletes keys whose time has come. `after` as in [`Effect::Append`].
    pub(super) fn append_expiry(
        &mut self,
        keys: SmallVec<[Bytes; 1]>,
        after: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> WriteId {
        self.expiring.in_flight += 1;
        let terms = Terms { after, ..Terms::default() };
        // However few slaves there are: it needs none.
        self.accept(NOBODY, Change::Delete(keys), RoomReserved::default(), terms, effects)
    }

    /// What became of such a deletion.
    pub(super) fn expiry_ended(&mut self, now: Millis, deleted: Option<u64>) {
        self.expiring.in_flight -= 1;
        match deleted {
            Some(deleted) => self.counters.expired += deleted,
            None => self.expiring.paused_until = now.plus(PAUSE_MS),
        }
    }

    /// Deletes keys whose time has come and that nobody asks for, a bounded number.
    pub(super) fn expire_some(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if now < self.expiring.paused_until {
            return;
        }
        if matches!(self.writes.latest.of_any(), Some(Found::Perhaps(_))) {
            // It may be of any key.
            return;
        }
        let mut records = RECORDS_AT_ONCE.saturating_sub(self.expiring.in_flight);
        let mut looks = LOOKS_AT_ONCE;
        while records > 0 && looks > 0 {
            let (keys, next) = self.due_keys(&mut looks);
            records -= 1;
            self.expiring.next = next.unwrap_or(0);
            if !keys.is_empty() {
                self.append_expiry(keys, None, effects);
            }
            if next.is_none() {
                return;
            }
        }
    }

    /// Some keys whose time has come, for one record, and where to go on. Takes off what is looked at.
    fn due_keys(&mut self, looks: &mut usize) -> (SmallVec<[Bytes; 1]>, Option<u32>) {
        let Master { directory, writes, time, expiring, .. } = self;
        let (mut keys, mut bytes) = (SmallVec::new(), 0);
        let past = UnixMillis(time.0.saturating_sub(1));
        let next = directory.due(past, expiring.next, looks, |key, looks| {
            *looks = looks.saturating_sub(KEY_LOOKS + key.len() / BYTES_FOR_LOOK);
            // What is written at this moment is looked at again later.
            if writes.latest.of(hash_bytes(key)).is_none() {
                keys.push(Bytes::copy_from_slice(key));
                bytes += key.len();
            }
            keys.len() < KEYS_IN_RECORD && bytes < BYTES_IN_RECORD
        });
        (keys, next)
    }
}
