//! What was written and acknowledged, for each key: enough to find stale values while the load runs, in bounded memory.
//!
//! Each write of a key takes the key's next number and notes its *floor*: all writes of the key through that number
//! were over (answered) when it was begun. So after a write is certain (it was acknowledged or read before a further
//! read was sent), that read must never see a number at or below the write's floor. That holds across all connections,
//! and misses nothing at the end, when no write is open. A write with an unknown outcome may take effect at any later
//! time: it is never called stale.
//!
//! It does not judge the order of concurrent operations: `--check` does.

use super::value::WriteNumber;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many writes with an unknown outcome are remembered. Beyond it, stale values are no longer told apart from
/// late ones, and [`Ledger::overflowed`] says so.
const UNKNOWN_MAX: usize = 1 << 20;

/// Why a value must not have been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misread {
    /// It had certainly been replaced before the read was sent.
    Stale,
    /// No such write was ever begun.
    NeverWritten,
}

/// The writes of all keys. Shared by all connections.
#[derive(Debug)]
pub(crate) struct Ledger {
    keys: Vec<Key>,
    unknown: AtomicUsize,
    /// Whether one writer's open writes are executed in the order in which they are begun.
    ordered: bool,
}

#[derive(Debug, Default)]
struct Key {
    /// A value at or below this number is stale.
    floor: AtomicU64,
    /// The number of the latest write that was begun.
    last: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Numbers of the writes that are not answered, and who sent them.
    writes: Vec<(u64, u32)>,
    /// Numbers of the writes whose outcome is unknown.
    unknown: Vec<u64>,
    /// When the write was acknowledged (or read) that set the floor, in nanoseconds of the run's clock.
    certain_ns: u64,
}

impl Ledger {
    /// No key is written, and one writer's open writes are executed in the order in which they are begun.
    pub(crate) fn new(keys: u32) -> Ledger {
        let keys = (0..keys).map(|_| Key::default()).collect();
        Ledger { keys, unknown: AtomicUsize::new(0), ordered: true }
    }

    /// Whether one writer's open writes are executed in the order in which they are begun.
    pub(crate) fn ordered(self, ordered: bool) -> Ledger {
        Ledger { ordered, ..self }
    }

    fn key(&self, key: u32) -> &Key {
        &self.keys[key as usize]
    }

    /// Begins a write of `key`.
    pub(crate) fn begin(&self, key: u32, writer: u32) -> WriteNumber {
        let key = self.key(key);
        let mut open = lock(&key.open);
        let seq = key.last.load(Ordering::Relaxed) + 1;
        let concurrent =
            open.writes.iter().filter(|(_, by)| !self.ordered || *by != writer).map(|(seq, _)| *seq).min();
        let floor = concurrent.unwrap_or(seq) - 1;
        open.writes.push((seq, writer));
        // Within the lock: a reader can have the value only from a store that got it from here.
        key.last.store(seq, Ordering::Release);
        WriteNumber { writer, seq, floor }
    }

    /// A write was acknowledged.
    pub(crate) fn acknowledged(&self, key: u32, version: WriteNumber, now_ns: u64) {
        let key = self.key(key);
        let mut open = lock(&key.open);
        open.writes.retain(|(seq, _)| *seq != version.seq);
        raise(key, &mut open, version.floor, now_ns);
    }

    /// A write was answered *not executed*.
    pub(crate) fn not_executed(&self, key: u32, version: WriteNumber) {
        lock(&self.key(key).open).writes.retain(|(seq, _)| *seq != version.seq);
    }

    /// A write may have been executed, or may be later.
    pub(crate) fn unknown(&self, key: u32, version: WriteNumber) {
        let mut open = lock(&self.key(key).open);
        open.writes.retain(|(seq, _)| *seq != version.seq);
        if self.unknown.fetch_add(1, Ordering::Relaxed) < UNKNOWN_MAX {
            open.unknown.push(version.seq);
        }
    }

    /// To be asked before a read is sent and given to [`Ledger::judge`] with its answer.
    pub(crate) fn floor(&self, key: u32) -> u64 {
        self.key(key).floor.load(Ordering::Acquire)
    }

    /// Whether `version` may be what a read brought back that was sent when the floor was `floor`.
    pub(crate) fn judge(
        &self,
        key: u32,
        version: WriteNumber,
        floor: u64,
        now_ns: u64,
    ) -> Result<(), Misread> {
        let key = self.key(key);
        if version.seq > key.last.load(Ordering::Acquire) {
            return Err(Misread::NeverWritten);
        }
        if version.seq <= floor && !self.overflowed() && !lock(&key.open).unknown.contains(&version.seq) {
            return Err(Misread::Stale);
        }
        if version.floor > key.floor.load(Ordering::Relaxed) {
            // It was seen, so later reads must not see what it had replaced.
            raise(key, &mut lock(&key.open), version.floor, now_ns);
        }
        Ok(())
    }

    /// Whether a key was ever acknowledged or seen, so that it must not be missing.
    pub(crate) fn is_written(&self, key: u32) -> bool {
        self.key(key).last.load(Ordering::Acquire) > 0
    }

    /// When the write became certain that [`Ledger::floor`] of this key rests on.
    pub(crate) fn certain_ns(&self, key: u32) -> u64 {
        lock(&self.key(key).open).certain_ns
    }

    /// Whether more outcomes are unknown than can be remembered: stale values are no longer found.
    pub(crate) fn overflowed(&self) -> bool {
        self.unknown.load(Ordering::Relaxed) > UNKNOWN_MAX
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    // No panic can leave a change unfinished.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn raise(key: &Key, open: &mut Open, floor: u64, now_ns: u64) {
    if floor > key.floor.load(Ordering::Relaxed) {
        key.floor.store(floor, Ordering::Release);
        open.certain_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_order_the_earlier_of_a_writers_open_writes_may_win() {
        let judged = |ledger: Ledger| {
            let (first, second) = (ledger.begin(0, 1), ledger.begin(0, 1));
            ledger.acknowledged(0, second, 10);
            ledger.acknowledged(0, first, 11);
            ledger.judge(0, first, ledger.floor(0), 12)
        };
        assert_eq!(judged(Ledger::new(1)), Err(Misread::Stale));
        assert_eq!(judged(Ledger::new(1).ordered(false)), Ok(()));
    }

    #[test]
    fn what_an_acknowledged_write_replaced_is_stale() {
        let ledger = Ledger::new(1);
        let first = ledger.begin(0, 1);
        ledger.acknowledged(0, first, 5);
        let second = ledger.begin(0, 2);
        assert_eq!(ledger.judge(0, first, ledger.floor(0), 6), Ok(()), "the second is under way");
        let floor_before = ledger.floor(0);
        ledger.acknowledged(0, second, 7);
        assert_eq!(ledger.judge(0, first, ledger.floor(0), 8), Err(Misread::Stale));
        assert_eq!(ledger.judge(0, first, floor_before, 8), Ok(()), "that read was sent before");
        assert_eq!(ledger.judge(0, second, ledger.floor(0), 8), Ok(()));
        assert_eq!(ledger.certain_ns(0), 7);
    }

    #[test]
    fn concurrent_writes_may_be_seen_in_either_order_but_not_what_both_replaced() {
        let ledger = Ledger::new(1);
        let old = ledger.begin(0, 1);
        ledger.acknowledged(0, old, 0);
        let (left, right) = (ledger.begin(0, 1), ledger.begin(0, 2));
        ledger.acknowledged(0, right, 1);
        ledger.acknowledged(0, left, 2);
        for version in [left, right] {
            assert_eq!(ledger.judge(0, version, ledger.floor(0), 3), Ok(()));
        }
        assert_eq!(ledger.judge(0, old, ledger.floor(0), 3), Err(Misread::Stale));
    }

    #[test]
    fn one_connections_pipelined_writes_are_in_order() {
        let ledger = Ledger::new(1);
        let (first, second) = (ledger.begin(0, 1), ledger.begin(0, 1));
        ledger.acknowledged(0, first, 0);
        ledger.acknowledged(0, second, 0);
        assert_eq!(ledger.judge(0, first, ledger.floor(0), 1), Err(Misread::Stale));
    }

    #[test]
    fn what_was_read_once_must_not_go_backwards() {
        let ledger = Ledger::new(1);
        let first = ledger.begin(0, 1);
        ledger.acknowledged(0, first, 0);
        let second = ledger.begin(0, 2);
        assert_eq!(ledger.judge(0, second, ledger.floor(0), 1), Ok(()), "not acknowledged yet, but seen");
        assert_eq!(ledger.judge(0, first, ledger.floor(0), 2), Err(Misread::Stale));
    }

    #[test]
    fn an_unknown_write_may_come_late_and_is_not_waited_for() {
        let ledger = Ledger::new(1);
        let lost = ledger.begin(0, 1);
        ledger.unknown(0, lost);
        let known = ledger.begin(0, 2);
        ledger.acknowledged(0, known, 0);
        let next = ledger.begin(0, 2);
        ledger.acknowledged(0, next, 0);
        assert_eq!(ledger.judge(0, lost, ledger.floor(0), 1), Ok(()));
        assert_eq!(ledger.judge(0, known, ledger.floor(0), 1), Err(Misread::Stale));
    }

    #[test]
    fn a_write_that_was_never_begun_is_not_believed() {
        let ledger = Ledger::new(2);
        let written = ledger.begin(0, 1);
        assert_eq!(ledger.judge(1, written, 0, 0), Err(Misread::NeverWritten));
        assert!(ledger.is_written(0));
        assert!(!ledger.is_written(1));
    }
}
