//! Judges single answers by what was asked and what the ledger knows. Sends nothing, counts nothing and reads no clock;
//! `load` and the last reading of `run` pass their answers to it.

use super::check::{Deed, HistoryEntry, ValueRead};
use super::driver::{Access, Answer, Execution, LoadRequest, ResponseSink};
use super::failures::{RequestFailure, Wrong};
use super::ledger::{Ledger, Misread};
use super::value::{Misfit, Texts, WriteNumber};

/// What is known of a request in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    /// What decides whether it is measured.
    pub due_ns: u64,
    /// From when its latency counts.
    pub begun_ns: u64,
    /// Reads: what is stale, as of before it was sent.
    pub floor: u64,
    /// Reads: the write of the same key before it in the batch.
    pub behind: Option<u32>,
    /// What became of it so far.
    pub ended: Ended,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is not answered yet.
    Open,
    /// As it may. `seen`: by a read.
    Right { at_ns: u64, seen: Option<ValueRead> },
    /// As it must not, or with an error. Why is in [`AnswerJudge::failures`].
    Wrong { at_ns: u64, fate: Execution, seen: Option<ValueRead> },
}

/// What the check must know of an operation; nothing for a read without a result.
pub(crate) fn entry(writer: u32, sent_ns: u64, request: LoadRequest, flight: Flight) -> Option<HistoryEntry> {
    let (deed, returned_ns) = match (request.action, flight.ended) {
        (Access::Write(version), Ended::Open) => {
            (Deed::Wrote(version.seq, Some(Execution::Unknown)), u64::MAX)
        }
        (Access::Write(version), Ended::Right { at_ns, .. }) => (Deed::Wrote(version.seq, None), at_ns),
        (Access::Write(version), Ended::Wrong { at_ns, fate, .. }) => {
            (Deed::Wrote(version.seq, Some(fate)), at_ns)
        }
        (Access::Read, Ended::Right { at_ns, seen } | Ended::Wrong { at_ns, seen, .. }) => {
            (Deed::Saw(seen?), at_ns)
        }
        (Access::Read, Ended::Open) => return None,
    };
    Some(HistoryEntry { client: writer, key: request.key, deed, invoked_ns: sent_ns, returned_ns })
}

/// Looks at each answer as it arrives.
pub(crate) struct AnswerJudge<'a> {
    pub ledger: &'a Ledger,
    pub texts: &'a Texts,
    pub batch: &'a [LoadRequest],
    pub flights: &'a mut [Flight],
    pub failures: &'a mut Vec<(usize, RequestFailure)>,
    pub leave: bool,
}

impl ResponseSink for AnswerJudge<'_> {
    fn answer(&mut self, index: usize, answer: Answer<'_>, at_ns: u64) {
        let request = self.batch[index];
        let ledger = self.ledger;
        let ended = match (request.action, answer) {
            (Access::Write(version), Answer::Done) => {
                ledger.acknowledged(request.key, version, at_ns);
                Ended::Right { at_ns, seen: None }
            }
            (Access::Read, Answer::Value(value)) => {
                let flight = self.flights[index];
                let mut floor = flight.floor;
                if let Some(write) = flight.behind.map(|at| at as usize) {
                    if let (Ended::Right { .. }, Access::Write(version)) =
                        (self.flights[write].ended, self.batch[write].action)
                    {
                        floor = floor.max(version.floor);
                    }
                }
                match judge_value(self.texts, ledger, request.key, value, floor, at_ns) {
                    (seen, None) => Ended::Right { at_ns, seen: Some(seen) },
                    (seen, Some(wrong)) => self.failed(
                        index,
                        RequestFailure::Wrong(wrong),
                        Execution::NotExecuted,
                        at_ns,
                        Some(seen),
                    ),
                }
            }
            (Access::Read, Answer::Missing) if ledger.is_written(request.key) => self.failed(
                index,
                RequestFailure::Wrong(Wrong::Stale),
                Execution::NotExecuted,
                at_ns,
                Some(ValueRead::Missing),
            ),
            (Access::Read, Answer::Missing) => Ended::Right { at_ns, seen: Some(ValueRead::Missing) },
            (action, Answer::Error { class, fate, leave }) => {
                self.leave |= leave;
                if let Access::Write(version) = action {
                    match fate {
                        Execution::NotExecuted => ledger.not_executed(request.key, version),
                        Execution::Unknown => ledger.unknown(request.key, version),
                    }
                }
                self.failed(index, RequestFailure::Refused(class.to_owned()), fate, at_ns, None)
            }
            (Access::Write(version), Answer::Value(_) | Answer::Missing | Answer::Odd) => {
                ledger.unknown(request.key, version);
                self.failed(index, RequestFailure::Wrong(Wrong::Mangled), Execution::Unknown, at_ns, None)
            }
            (Access::Read, Answer::Done) => {
                self.failed(index, RequestFailure::Wrong(Wrong::Mangled), Execution::NotExecuted, at_ns, None)
            }
            (Access::Read, Answer::Odd) => {
                self.failed(index, RequestFailure::Wrong(Wrong::Mangled), Execution::Unknown, at_ns, None)
            }
        };
        self.flights[index].ended = ended;
    }
}

impl AnswerJudge<'_> {
    fn failed(
        &mut self,
        index: usize,
        why: RequestFailure,
        fate: Execution,
        at_ns: u64,
        seen: Option<ValueRead>,
    ) -> Ended {
        self.failures.push((index, why));
        Ended::Wrong { at_ns, fate, seen }
    }
}

/// What a value that was read says, and what is wrong if it must not have been read.
pub(crate) fn judge_value(
    texts: &Texts,
    ledger: &Ledger,
    key: u32,
    value: &[u8],
    floor: u64,
    at_ns: u64,
) -> (ValueRead, Option<Wrong>) {
    match texts.read_value(key, value) {
        Ok(version) => {
            let WriteNumber { seq, .. } = version;
            match ledger.judge(key, version, floor, at_ns) {
                Ok(()) => (ValueRead::Write(seq), None),
                Err(Misread::Stale) => (ValueRead::Write(seq), Some(Wrong::Stale)),
                Err(Misread::NeverWritten) => (ValueRead::Odd, Some(Wrong::NeverWritten)),
            }
        }
        Err(Misfit::OtherKey) => (ValueRead::Odd, Some(Wrong::NeverWritten)),
        Err(Misfit::OtherRun) => (ValueRead::Odd, Some(Wrong::Stale)),
        Err(Misfit::Mangled) => (ValueRead::Odd, Some(Wrong::Mangled)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What became of a batch, and of one request after the other what was wrong.
    fn judged(
        (ledger, texts): (&Ledger, &Texts),
        batch: &[LoadRequest],
        behind: Option<u32>,
        answers: &[Answer<'_>],
    ) -> (Vec<Ended>, Vec<(usize, RequestFailure)>) {
        let flight = |request: &LoadRequest| {
            let floor = ledger.floor(request.key);
            Flight { due_ns: 0, begun_ns: 0, floor, behind, ended: Ended::Open }
        };
        let mut flights: Vec<Flight> = batch.iter().map(flight).collect();
        let mut failures = Vec::new();
        let (flights_of, failures_of) = (&mut flights, &mut failures);
        let mut judge =
            AnswerJudge { ledger, texts, batch, flights: flights_of, failures: failures_of, leave: false };
        for (index, answer) in answers.iter().enumerate() {
            judge.answer(index, *answer, 10);
        }
        (flights.into_iter().map(|flight| flight.ended).collect(), failures)
    }

    fn value(texts: &Texts, version: WriteNumber) -> Vec<u8> {
        let mut value = Vec::new();
        texts.push_value(0, version, &mut value);
        value
    }

    #[test]
    fn a_read_after_a_write_of_its_own_batch_must_not_see_what_that_write_replaced() {
        let (ledger, texts) = (Ledger::new(1), Texts::new("key", 1, 64, 0));
        let old = ledger.begin(0, 1);
        ledger.acknowledged(0, old, 1);
        let new = ledger.begin(0, 1);
        let batch = [
            LoadRequest { key: 0, action: Access::Write(new) },
            LoadRequest { key: 0, action: Access::Read },
        ];
        let old = value(&texts, old);
        let answers = [Answer::Done, Answer::Value(&old)];
        let stale = [(1, RequestFailure::Wrong(Wrong::Stale))];
        let (ended, failures) = judged((&ledger, &texts), &batch, Some(0), &answers);
        assert_eq!(failures, stale);
        let seen = Some(ValueRead::Write(1));
        assert_eq!(ended[1], Ended::Wrong { at_ns: 10, fate: Execution::NotExecuted, seen });
    }

    #[test]
    fn a_read_beside_that_write_may_see_either() {
        let (ledger, texts) = (Ledger::new(1), Texts::new("key", 1, 64, 0));
        let old = ledger.begin(0, 1);
        ledger.acknowledged(0, old, 1);
        let new = ledger.begin(0, 1);
        let batch = [
            LoadRequest { key: 0, action: Access::Write(new) },
            LoadRequest { key: 0, action: Access::Read },
        ];
        let old = value(&texts, old);
        let answers = [Answer::Done, Answer::Value(&old)];
        assert_eq!(judged((&ledger, &texts), &batch, None, &answers).1, []);
    }

    #[test]
    fn a_write_that_is_answered_by_nonsense_may_have_been_executed() {
        let (ledger, texts) = (Ledger::new(1), Texts::new("key", 1, 64, 0));
        let odd = ledger.begin(0, 1);
        let batch = [LoadRequest { key: 0, action: Access::Write(odd) }];
        let (ended, failures) = judged((&ledger, &texts), &batch, None, &[Answer::Odd]);
        assert_eq!(failures, [(0, RequestFailure::Wrong(Wrong::Mangled))]);
        assert_eq!(ended, [Ended::Wrong { at_ns: 10, fate: Execution::Unknown, seen: None }]);
        // Two writes later it may still come: it is not called stale.
        for _ in 0..2 {
            let next = ledger.begin(0, 1);
            ledger.acknowledged(0, next, 20);
        }
        let late = value(&texts, odd);
        let read = [LoadRequest { key: 0, action: Access::Read }];
        assert_eq!(judged((&ledger, &texts), &read, None, &[Answer::Value(&late)]).1, []);
    }

    #[test]
    fn a_key_that_was_written_is_not_missing() {
        let (ledger, texts) = (Ledger::new(2), Texts::new("key", 2, 64, 0));
        let version = ledger.begin(0, 1);
        ledger.acknowledged(0, version, 1);
        let batch =
            [LoadRequest { key: 0, action: Access::Read }, LoadRequest { key: 1, action: Access::Read }];
        let (_, failures) = judged((&ledger, &texts), &batch, None, &[Answer::Missing, Answer::Missing]);
        assert_eq!(failures, [(0, RequestFailure::Wrong(Wrong::Stale))]);
    }
}
