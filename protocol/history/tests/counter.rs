//! The check of counters against histories whose verdict is known, and against brute force on small random ones.

use dsm_history::{check_counter, CounterStats, CounterViolation, Increment, OperationOutcome};
use proptest::prelude::*;

fn increment(answered: u64, invoked_ns: u64, returned_ns: u64) -> Increment {
    Increment { client: 1, outcome: OperationOutcome::Done, answered, invoked_ns, returned_ns }
}

fn unknown(invoked_ns: u64) -> Increment {
    Increment { outcome: OperationOutcome::Unknown, ..increment(0, invoked_ns, u64::MAX) }
}

fn refused(invoked_ns: u64, returned_ns: u64) -> Increment {
    Increment { outcome: OperationOutcome::NotExecuted, ..increment(0, invoked_ns, returned_ns) }
}

fn passes(increments: &[Increment], last: u64) -> CounterStats {
    check_counter(increments, last).unwrap_or_else(|violation| panic!("{violation}"))
}

fn fails(increments: &[Increment], last: u64) -> CounterViolation {
    check_counter(increments, last).expect_err("no order explains it")
}

#[test]
fn a_counter_that_nothing_increments_is_zero() {
    assert_eq!(passes(&[], 0), CounterStats::default());
    assert_eq!(passes(&[refused(0, 1)], 0).not_executed, 1);
    fails(&[], 1);
}

#[test]
fn numbers_follow_the_order_of_time() {
    passes(&[increment(1, 0, 1), increment(2, 2, 3), increment(3, 4, 5)], 3);
    passes(&[increment(2, 0, 9), increment(1, 2, 3)], 2);
    let (late, early) = (increment(1, 6, 7), increment(2, 0, 5));
    assert_eq!(fails(&[late, early], 2), CounterViolation::OutOfOrder(early, late));
    passes(&[increment(1, 5, 7), early], 2);
}

#[test]
fn no_number_is_answered_twice() {
    let (first, second) = (increment(1, 0, 9), increment(1, 0, 8));
    let violation = fails(&[first, second], 1);
    assert_eq!(violation, CounterViolation::AnsweredTwice(first, second));
    assert_eq!(
        violation.to_string(),
        "one number was answered twice: client 1 was answered 1 (0 ns to 9 ns); \
         client 1 was answered 1 (0 ns to 8 ns)"
    );
}

#[test]
fn the_last_value_counts_all_that_were_done_and_perhaps_the_unknown() {
    let done = [increment(1, 0, 1), increment(2, 2, 3)];
    assert_eq!(fails(&done, 1), CounterViolation::Lost { increment: done[1], last: 1 });
    let some = [done[0], done[1], unknown(0), unknown(9), refused(4, 5)];
    let stats = passes(&some, 3);
    assert_eq!(stats, CounterStats { done: 2, not_executed: 1, unknown: 2, unknown_counted: 1 });
    assert_eq!(stats.to_string(), "3 increments are counted (1 not executed; 1 of 2 unknown ones happened)");
    passes(&some, 2);
    passes(&some, 4);
    let violation = fails(&some, 5);
    assert_eq!(
        violation.to_string(),
        "the counter is 5 at the end, but only 2 increments were done and 2 are unknown \
         (1 were answered 'not executed'); nobody was answered 3"
    );
}

#[test]
fn a_number_that_nobody_was_answered_belongs_to_an_unknown_increment_that_was_invoked_in_time() {
    let after = increment(2, 2, 5);
    passes(&[after, unknown(5)], 2);
    assert_eq!(fails(&[after, unknown(6)], 2), CounterViolation::Skipped { number: 1, before: after });
    // The greater number that had returned first counts, whichever it is.
    let (slow, quick) = (increment(2, 0, 9), increment(3, 0, 4));
    passes(&[slow, quick, unknown(4)], 3);
    assert_eq!(fails(&[slow, quick, unknown(5)], 3), CounterViolation::Skipped { number: 1, before: quick });
    // Each explains one number.
    fails(&[increment(3, 0, 4), unknown(0), unknown(5)], 3);
    passes(&[increment(3, 0, 4), unknown(0), unknown(4)], 3);
}

#[test]
fn what_was_not_executed_is_not_counted() {
    let violation = fails(&[refused(0, 1), increment(2, 2, 3)], 2);
    assert!(violation.to_string().ends_with("nobody was answered 1"), "{violation}");
    passes(&[refused(0, 1), increment(1, 2, 3)], 1);
}

#[test]
fn a_number_below_one_is_found() {
    assert_eq!(fails(&[increment(0, 0, 1)], 1), CounterViolation::OutOfRange(increment(0, 0, 1)));
}

/// The plain definition: tries every order of every choice of increments.
fn brute_force(increments: &[Increment], used: &mut Vec<bool>, counter: u64, last: u64) -> bool {
    let done = |i: usize| increments[i].outcome == OperationOutcome::Done;
    let open: Vec<usize> = (0..increments.len()).filter(|&i| !used[i]).collect();
    if counter == last && !open.iter().any(|&i| done(i)) {
        return true;
    }
    open.iter().copied().any(|i| {
        let next = &increments[i];
        let preceded = open.iter().any(|&j| done(j) && increments[j].returned_ns < next.invoked_ns);
        let executed = next.outcome != OperationOutcome::NotExecuted;
        if preceded || !executed || (done(i) && next.answered != counter + 1) {
            return false;
        }
        used[i] = true;
        let explained = brute_force(increments, used, counter + 1, last);
        used[i] = false;
        explained
    })
}

/// A correct counter, the numbers as they are answered, of which `changed` may add one to one number.
fn counted(lives: &[(u64, u64, u8)], changed: usize) -> Vec<Increment> {
    let mut increments: Vec<(u64, Increment)> = lives
        .iter()
        .map(|&(from, length, kind)| {
            let at = from + length / 2;
            match kind {
                0 => (from + length * 3, unknown(from)),
                1 => (u64::MAX, unknown(from)),
                2 => (u64::MAX, refused(from, from + length)),
                _ => (at, increment(0, from, from + length)),
            }
        })
        .collect();
    increments.sort_by_key(|(at, _)| *at);
    let mut increments: Vec<Increment> = (1..)
        .zip(increments)
        .map(|(number, (_, increment))| match increment.outcome {
            OperationOutcome::Done => Increment { answered: number, ..increment },
            OperationOutcome::Unknown | OperationOutcome::NotExecuted => increment,
        })
        .collect();
    if let Some(increment) = increments.get_mut(changed) {
        increment.answered += 1;
    }
    increments
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn verdicts_agree_with_brute_force(
        lives in prop::collection::vec((0..20_u64, 0..12_u64, 0..6_u8), 0..7),
        changed in 0..14_usize,
        last in 0..8_u64,
    ) {
        let increments = counted(&lives, changed);
        let explained = brute_force(&increments, &mut vec![false; increments.len()], 0, last);
        let verdict = check_counter(&increments, last);
        prop_assert_eq!(verdict.is_ok(), explained, "{:?}", verdict);
    }
}
