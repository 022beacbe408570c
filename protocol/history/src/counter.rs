//! The check of a key that is only incremented: the numbers that were answered tell the order.
//!
//! Owns [`check_counter`] and what it says is wrong. As exact as the search, but without one: each number up to the last
//! value belongs to one increment.

use crate::OperationOutcome;
use std::fmt;

/// One increment by one (`INCR key`) of a key that nothing else changes, and that was missing at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Increment {
    /// Which client, for people only: a client may have several increments open.
    pub client: u64,
    /// How it ended, as the client knows.
    pub outcome: OperationOutcome,
    /// The number that was answered. Without meaning unless the outcome is [`OperationOutcome::Done`].
    pub answered: u64,
    /// Nanoseconds on a clock that all clients share: before the request left.
    pub invoked_ns: u64,
    /// Nanoseconds on the same clock: after the answer came. Without meaning when the outcome is unknown.
    pub returned_ns: u64,
}

/// What a check of a counter that passed looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterStats {
    /// Increments with a number.
    pub done: usize,
    /// Increments that were answered *not executed*.
    pub not_executed: usize,
    /// Increments whose outcome is unknown.
    pub unknown: usize,
    /// How many of those happened.
    pub unknown_counted: usize,
}

impl fmt::Display for CounterStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} increments are counted ({} not executed; {} of {} unknown ones happened)",
            self.done + self.unknown_counted,
            self.not_executed,
            self.unknown_counted,
            self.unknown
        )
    }
}

/// Why a counter did not pass: the increments that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CounterViolation {
    /// The counter starts at 0, so that this number cannot be.
    OutOfRange(Increment),
    /// Two increments were answered the same number: one of them is lost.
    AnsweredTwice(Increment, Increment),
    /// The first returned before the second was invoked, and has the greater number.
    OutOfOrder(Increment, Increment),
    /// The last value is less than a number that was answered.
    Lost {
        /// The increment with the greatest number.
        increment: Increment,
        /// The value that was read at the end.
        last: u64,
    },
    /// The last value is more than all increments that may have happened.
    CountedTooOften {
        /// The value that was read at the end.
        last: u64,
        /// The least number that nobody was answered.
        number: u64,
        /// Increments with a number.
        done: usize,
        /// Increments whose outcome is unknown.
        unknown: usize,
        /// Increments that were answered *not executed*: they may have been counted.
        not_executed: usize,
    },
    /// Nobody was answered this number, and no increment of unknown outcome that could be it was invoked in time.
    Skipped {
        /// The number that no increment explains.
        number: u64,
        /// An increment with a greater number, which had returned before.
        before: Increment,
    },
}

impl fmt::Display for CounterViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CounterViolation::OutOfRange(increment) => {
                write!(f, "a counter that starts at 0 cannot answer this: {}", Told(increment))
            }
            CounterViolation::AnsweredTwice(first, second) => {
                write!(f, "one number was answered twice: {}; {}", Told(first), Told(second))
            }
            CounterViolation::OutOfOrder(first, second) => write!(
                f,
                "the first had returned before the second was invoked, but has the greater number: {}; {}",
                Told(first),
                Told(second)
            ),
            CounterViolation::Lost { increment, last } => {
                write!(f, "the counter is {last} at the end, but was greater: {}", Told(increment))
            }
            CounterViolation::CountedTooOften { last, number, done, unknown, not_executed } => write!(
                f,
                "the counter is {last} at the end, but only {done} increments were done and {unknown} are unknown \
                 ({not_executed} were answered 'not executed'); nobody was answered {number}"
            ),
            CounterViolation::Skipped { number, before } => write!(
                f,
                "nobody was answered {number}, and too few increments of unknown outcome were invoked before a \
                 greater number had been answered: {}",
                Told(before)
            ),
        }
    }
}

impl std::error::Error for CounterViolation {}

/// An increment that was done, in words.
struct Told<'a>(&'a Increment);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Increment { client, answered, invoked_ns, returned_ns, .. } = self.0;
        write!(f, "client {client} was answered {answered} ({invoked_ns} ns to {returned_ns} ns)")
    }
}

/// Checks that one order of the increments of one key explains all numbers, and the value `last` that was read when all
/// that were done had returned (0 for a missing key).
///
/// One increment precedes another if it returned at an earlier nanosecond than the other was invoked.
///
/// # Errors
/// What contradicts itself: a number that was answered twice, that is less than an earlier one, or that no increment
/// explains; or a last value that was not counted up to.
pub fn check_counter(increments: &[Increment], last: u64) -> Result<CounterStats, CounterViolation> {
    let with = |outcome: OperationOutcome| increments.iter().filter(move |i| i.outcome == outcome);
    let mut done: Vec<&Increment> = with(OperationOutcome::Done).collect();
    done.sort_by_key(|i| i.answered);
    let mut unknown: Vec<u64> = with(OperationOutcome::Unknown).map(|i| i.invoked_ns).collect();
    unknown.sort_unstable();
    let not_executed = with(OperationOutcome::NotExecuted).count();

    if let Some(increment) = done.first().filter(|i| i.answered < 1) {
        return Err(CounterViolation::OutOfRange(**increment));
    }
    if let Some(pair) = done.windows(2).find(|pair| pair[0].answered == pair[1].answered) {
        return Err(CounterViolation::AnsweredTwice(*pair[0], *pair[1]));
    }
    let first_returned = first_returned(&done);
    for (increment, before) in done.iter().zip(first_returned.iter().skip(1)) {
        if before.returned_ns < increment.invoked_ns {
            return Err(CounterViolation::OutOfOrder(**before, **increment));
        }
    }
    if let Some(increment) = done.last().filter(|i| i.answered > last) {
        return Err(CounterViolation::Lost { increment: **increment, last });
    }
    // The numbers that were answered are different ones of 1..=last: the others belong to the unknown ones.
    let unanswered = last - done.len() as u64;
    if unanswered > unknown.len() as u64 {
        let number = (1..).zip(&done).find(|(number, i)| i.answered != *number);
        let number: u64 = number.map_or(done.len() as u64 + 1, |(number, _)| number);
        let (done, unknown) = (done.len(), unknown.len());
        return Err(CounterViolation::CountedTooOften { last, number, done, unknown, not_executed });
    }
    // The smaller the number, the earlier it must have been invoked: so the earliest of the unknown ones come first.
    let mut unknown_left = unknown.iter();
    let mut number = 0;
    for (increment, before) in done.iter().zip(&first_returned) {
        number += 1;
        while number < increment.answered {
            if unknown_left.next().is_none_or(|invoked_ns| *invoked_ns > before.returned_ns) {
                return Err(CounterViolation::Skipped { number, before: **before });
            }
            number += 1;
        }
    }
    let (done, unknown) = (done.len(), unknown.len());
    Ok(CounterStats { done, not_executed, unknown, unknown_counted: unanswered as usize })
}

/// For each of these, which are sorted by their numbers: which of it and the greater ones returned first.
fn first_returned<'a>(done: &[&'a Increment]) -> Vec<&'a Increment> {
    let mut first: Vec<&Increment> = done.to_vec();
    for index in (1..first.len()).rev() {
        if first[index].returned_ns < first[index - 1].returned_ns {
            first[index - 1] = first[index];
        }
    }
    first
}
