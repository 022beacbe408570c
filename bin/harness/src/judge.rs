//! The judge of single answers: what was asked for, what came back, what the ledger knows. It sends nothing, counts
//! nothing and has no time of its own; `load` and the last reading of `run` bring their answers here.

use super::check::{Deed, Entry, Seen};
use super::driver::{Action, Answer, Fate, Request, Sink};
use super::ledger::{Ledger, Misread};
use super::value::{Texts, Unfit, Version};
use super::verdict::{Failure, Wrong};

/// What is known of a request in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    /// What decides whether it is measured.
    pub due_ns: u64,
    /// From when its latency counts.
    pub begun_ns: u64,
    /// Reads: what is stale, as of before it was sent.
    pub floor: u64,
    /// Reads: the write of the same key that is in front of it in the batch.
    pub behind: Option<u32>,
    pub ended: Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Open,
    /// `seen`: by a read.
    Right {
        at_ns: u64,
        seen: Option<Seen>,
    },
    /// Why is in [`Judge::failures`].
    Wrong {
        at_ns: u64,
        fate: Fate,
        seen: Option<Seen>,
    },
}

/// What the check must know of an operation; nothing of a read that brought nothing.
pub(crate) fn entry(writer: u32, sent_ns: u64, request: Request, flight: Flight) -> Option<Entry> {
    let (deed, returned_ns) = match (request.action, flight.ended) {
        (Action::Write(version), Ended::Open) => (Deed::Wrote(version.seq, Some(Fate::Unknown)), u64::MAX),
        (Action::Write(version), Ended::Right { at_ns, .. }) => (Deed::Wrote(version.seq, None), at_ns),
        (Action::Write(version), Ended::Wrong { at_ns, fate, .. }) => {
            (Deed::Wrote(version.seq, Some(fate)), at_ns)
        }
        (Action::Read, Ended::Right { at_ns, seen } | Ended::Wrong { at_ns, seen, .. }) => {
            (Deed::Saw(seen?), at_ns)
        }
        (Action::Read, Ended::Open) => return None,
    };
    Some(Entry { client: writer, key: request.key, deed, invoked_ns: sent_ns, returned_ns })
}

/// Looks at each answer as it arrives.
pub(crate) struct Judge<'a> {
    /// What was written.
    pub ledger: &'a Ledger,
    /// How values look.
    pub texts: &'a Texts,
    pub batch: &'a [Request],
    pub flights: &'a mut [Flight],
    pub failures: &'a mut Vec<(usize, Failure)>,
    pub leave: bool,
}

impl Sink for Judge<'_> {
    fn answer(&mut self, index: usize, answer: Answer<'_>, at_ns: u64) {
        let request = self.batch[index];
        let ledger = self.ledger;
        let ended = match (request.action, answer) {
            (Action::Write(version), Answer::Done) => {
                ledger.acknowledged(request.key, version, at_ns);
                Ended::Right { at_ns, seen: None }
            }
            (Action::Read, Answer::Value(value)) => {
                let flight = self.flights[index];
                let mut floor = flight.floor;
                if let Some(write) = flight.behind.map(|at| at as usize) {
                    if let (Ended::Right { .. }, Action::Write(version)) =
                        (self.flights[write].ended, self.batch[write].action)
                    {
                        floor = floor.max(version.floor);
                    }
                }
                match judge_value(self.texts, ledger, request.key, value, floor, at_ns) {
                    (seen, None) => Ended::Right { at_ns, seen: Some(seen) },
                    (seen, Some(wrong)) => {
                        self.failed(index, Failure::Wrong(wrong), Fate::NotExecuted, at_ns, Some(seen))
                    }
                }
            }
            (Action::Read, Answer::Missing) if ledger.is_written(request.key) => self.failed(
                index,
                Failure::Wrong(Wrong::Stale),
                Fate::NotExecuted,
                at_ns,
                Some(Seen::Missing),
            ),
            (Action::Read, Answer::Missing) => Ended::Right { at_ns, seen: Some(Seen::Missing) },
            (action, Answer::Error { class, fate, leave }) => {
                self.leave |= leave;
                if let Action::Write(version) = action {
                    match fate {
                        Fate::NotExecuted => ledger.not_executed(request.key, version),
                        Fate::Unknown => ledger.unknown(request.key, version),
                    }
                }
                self.failed(index, Failure::Refused(class.to_owned()), fate, at_ns, None)
            }
            (Action::Write(version), Answer::Value(_) | Answer::Missing | Answer::Odd) => {
                ledger.unknown(request.key, version);
                self.failed(index, Failure::Wrong(Wrong::Mangled), Fate::Unknown, at_ns, None)
            }
            (Action::Read, Answer::Done) => {
                self.failed(index, Failure::Wrong(Wrong::Mangled), Fate::NotExecuted, at_ns, None)
            }
            (Action::Read, Answer::Odd) => {
                self.failed(index, Failure::Wrong(Wrong::Mangled), Fate::Unknown, at_ns, None)
            }
        };
        self.flights[index].ended = ended;
    }
}

impl Judge<'_> {
    fn failed(&mut self, index: usize, why: Failure, fate: Fate, at_ns: u64, seen: Option<Seen>) -> Ended {
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
) -> (Seen, Option<Wrong>) {
    match texts.read_value(key, value) {
        Ok(version) => {
            let Version { seq, .. } = version;
            match ledger.judge(key, version, floor, at_ns) {
                Ok(()) => (Seen::Write(seq), None),
                Err(Misread::Stale) => (Seen::Write(seq), Some(Wrong::Stale)),
                Err(Misread::NeverWritten) => (Seen::Odd, Some(Wrong::NeverWritten)),
            }
        }
        Err(Unfit::OtherKey) => (Seen::Odd, Some(Wrong::NeverWritten)),
        Err(Unfit::OtherRun) => (Seen::Odd, Some(Wrong::Stale)),
        Err(Unfit::Mangled) => (Seen::Odd, Some(Wrong::Mangled)),
    }
}
