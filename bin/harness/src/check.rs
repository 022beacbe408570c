//! The recorded history of a run, and its judgement by [`dsm_history`].
//!
//! Operations are kept small until the end (48 bytes each), and at most [`Recorder::max`] of them. Once that bound is
//! reached nothing more is recorded; operations that began before are judged. Owns the translation and the bound, never
//! the rules of linearizability.

use super::driver::Execution;
use super::failures::HistoryVerdict;
use super::record::CheckRecord;
use super::value::Texts;
use bytes::Bytes;
use dsm_history::{check, Action, ClientOperation, OperationOutcome, Violation};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// One operation that is over, or a write that may still take effect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryEntry {
    /// The number of the connection.
    pub client: u32,
    /// The number of the key.
    pub key: u32,
    pub deed: Deed,
    /// Before it was sent.
    pub invoked_ns: u64,
    /// After it was answered.
    pub returned_ns: u64,
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The number of the write; `None` for one that was acknowledged.
    Wrote(u64, Option<Execution>),
    /// A read that brought this.
    Saw(ValueRead),
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueRead {
    /// The key had no value.
    Missing,
    /// This write of the key.
    Write(u64),
    /// A value that no write of this key can explain.
    Odd,
}

/// Bounds what is recorded.
#[derive(Debug)]
pub(crate) struct Recorder {
    max: usize,
    recorded: AtomicUsize,
    /// Operations begun from here on are not judged.
    cut_ns: AtomicU64,
}

impl Recorder {
    /// Records `max` operations, and a few more.
    pub(crate) fn new(max: usize) -> Recorder {
        Recorder { max, recorded: AtomicUsize::new(0), cut_ns: AtomicU64::new(u64::MAX) }
    }

    /// Notes `operations` that were begun at `invoked_ns`, or that the bound is reached.
    pub(crate) fn note(
        &self,
        invoked_ns: u64,
        count: usize,
        entries: &mut Vec<HistoryEntry>,
        operations: impl IntoIterator<Item = HistoryEntry>,
    ) {
        if invoked_ns >= self.cut_ns.load(Ordering::Acquire) {
            return;
        }
        if self.recorded.fetch_add(count, Ordering::Relaxed) >= self.max {
            self.cut_ns.fetch_min(invoked_ns, Ordering::AcqRel);
            return;
        }
        entries.extend(operations);
    }

    /// How many operations may be recorded.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// When the bound was reached.
    pub(crate) fn cut_ns(&self) -> Option<u64> {
        Some(self.cut_ns.load(Ordering::Acquire)).filter(|cut_ns| *cut_ns != u64::MAX)
    }
}

/// Judges what was recorded, key by key.
pub(crate) fn judge(mut entries: Vec<HistoryEntry>, cut_ns: Option<u64>, texts: &Texts) -> CheckRecord {
    if let Some(cut_ns) = cut_ns {
        // A write that began before is needed, whenever it ended. A read that ended later may have seen a write that is
        // not recorded, and may be left out.
        entries.retain(|entry| {
            let writes = matches!(entry.deed, Deed::Wrote(..));
            entry.invoked_ns < cut_ns && (writes || entry.returned_ns < cut_ns)
        });
    }
    entries.sort_unstable_by_key(|entry| (entry.key, entry.invoked_ns));
    let mut record = CheckRecord { verdict: HistoryVerdict::Linearizable, ..CheckRecord::default() };
    for part in entries.chunk_by(|a, b| a.key == b.key) {
        record.keys += 1;
        record.operations += part.len() as u64;
        let operations: Vec<ClientOperation> = part.iter().map(|entry| operation(entry, texts)).collect();
        match check(&operations) {
            Ok(_) => {}
            Err(violation @ Violation::NotLinearizable(_)) => {
                record.verdict = HistoryVerdict::Violation;
                record.counter_example = Some(violation.to_string());
                break;
            }
            // A proven contradiction of another key takes precedence.
            Err(violation @ Violation::GaveUp { .. }) => {
                record.verdict = HistoryVerdict::GaveUp;
                record.counter_example.get_or_insert(violation.to_string());
            }
        }
    }
    record
}

fn operation(entry: &HistoryEntry, texts: &Texts) -> ClientOperation {
    let value = |seq: u64| Bytes::from(format!("#{seq}"));
    let (action, fate) = match entry.deed {
        Deed::Wrote(seq, fate) => (Action::Write(value(seq)), fate),
        Deed::Saw(ValueRead::Write(seq)) => (Action::Read(Some(value(seq))), None),
        Deed::Saw(ValueRead::Odd) => (Action::Read(Some(Bytes::from_static(b"a value nobody wrote"))), None),
        Deed::Saw(ValueRead::Missing) => (Action::Read(None), None),
    };
    ClientOperation {
        client: u64::from(entry.client),
        key: Bytes::copy_from_slice(texts.keys().get(entry.key)),
        action,
        outcome: match fate {
            None => OperationOutcome::Done,
            Some(Execution::NotExecuted) => OperationOutcome::NotExecuted,
            Some(Execution::Unknown) => OperationOutcome::Unknown,
        },
        invoked_ns: entry.invoked_ns,
        returned_ns: entry.returned_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(seq: u64, invoked_ns: u64, returned_ns: u64, fate: Option<Execution>) -> HistoryEntry {
        HistoryEntry { client: 1, key: 0, deed: Deed::Wrote(seq, fate), invoked_ns, returned_ns }
    }

    fn read(seen: ValueRead, invoked_ns: u64, returned_ns: u64) -> HistoryEntry {
        HistoryEntry { client: 2, key: 0, deed: Deed::Saw(seen), invoked_ns, returned_ns }
    }

    fn verdict(entries: Vec<HistoryEntry>, cut_ns: Option<u64>) -> HistoryVerdict {
        judge(entries, cut_ns, &Texts::new("key", 1, 64, 0)).verdict
    }

    #[test]
    fn a_stale_read_is_a_violation_with_a_counter_example() {
        let history = vec![write(1, 0, 1, None), write(2, 2, 3, None), read(ValueRead::Write(1), 4, 5)];
        let record = judge(history, None, &Texts::new("key", 1, 64, 0));
        assert_eq!((record.verdict, record.operations, record.keys), (HistoryVerdict::Violation, 3, 1));
        let example = record.counter_example.unwrap();
        assert!(example.contains("key0") && example.contains("#1"), "{example}");
    }

    #[test]
    fn an_unknown_write_may_be_read_late_and_one_that_was_not_executed_never() {
        let late =
            |fate| vec![write(1, 0, 1, Some(fate)), write(2, 2, 3, None), read(ValueRead::Write(1), 4, 5)];
        assert_eq!(verdict(late(Execution::Unknown), None), HistoryVerdict::Linearizable);
        assert_eq!(verdict(late(Execution::NotExecuted), None), HistoryVerdict::Violation);
    }

    #[test]
    fn operations_beyond_the_bound_are_not_judged() {
        // The write that the read saw was not recorded.
        let history = vec![write(1, 0, 1, None), read(ValueRead::Write(2), 4, 12)];
        assert_eq!(verdict(history.clone(), Some(10)), HistoryVerdict::Linearizable);
        assert_eq!(verdict(history, Some(13)), HistoryVerdict::Violation);
    }

    #[test]
    fn an_entry_is_as_small_as_the_documentation_says() {
        assert_eq!(size_of::<HistoryEntry>(), 48);
    }

    #[test]
    fn the_bound_stops_the_recording() {
        let recorder = Recorder::new(2);
        let mut entries = Vec::new();
        for at_ns in 0..5 {
            recorder.note(at_ns, 1, &mut entries, [write(at_ns, at_ns, at_ns, None)]);
        }
        assert_eq!(entries.len(), 2);
        assert_eq!(recorder.cut_ns(), Some(2));
    }
}
