//! The checker against histories whose verdict is known, against brute force on small random ones, and on the
//! sizes that the cluster's tests record.

use bytes::Bytes;
use dsm_history::{
    check, check_within, readable_after, Action, ClientOperation, CounterExample, History, OperationOutcome,
    SearchLimits, Stats, Violation,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn operation(
    client: u64,
    action: Action,
    outcome: OperationOutcome,
    invoked_ns: u64,
    returned_ns: u64,
) -> ClientOperation {
    ClientOperation { client, key: bytes("k"), action, outcome, invoked_ns, returned_ns }
}

fn write(client: u64, value: &str, from: u64, to: u64) -> ClientOperation {
    operation(client, Action::Write(bytes(value)), OperationOutcome::Done, from, to)
}

fn read(client: u64, value: &str, from: u64, to: u64) -> ClientOperation {
    operation(client, Action::Read(Some(bytes(value))), OperationOutcome::Done, from, to)
}

fn missing(client: u64, from: u64, to: u64) -> ClientOperation {
    operation(client, Action::Read(None), OperationOutcome::Done, from, to)
}

fn delete(client: u64, existed: Option<bool>, from: u64, to: u64) -> ClientOperation {
    operation(client, Action::Delete { existed }, OperationOutcome::Done, from, to)
}

fn swap(client: u64, value: Option<&str>, seen: Option<&str>, from: u64, to: u64) -> ClientOperation {
    let action = Action::Swap { value: value.map(bytes), seen: seen.map(bytes) };
    operation(client, action, OperationOutcome::Done, from, to)
}

/// `SET k value NX`, and whether it wrote.
fn write_if_missing(client: u64, value: &str, done: bool, from: u64, to: u64) -> ClientOperation {
    let action = Action::WriteIf { value: bytes(value), if_present: false, done };
    operation(client, action, OperationOutcome::Done, from, to)
}

/// `SET k value XX`, and whether it wrote.
fn write_if_present(client: u64, value: &str, done: bool, from: u64, to: u64) -> ClientOperation {
    let action = Action::WriteIf { value: bytes(value), if_present: true, done };
    operation(client, action, OperationOutcome::Done, from, to)
}

fn with(outcome: OperationOutcome, mut operation: ClientOperation) -> ClientOperation {
    operation.outcome = outcome;
    operation
}

fn passes(operations: &[ClientOperation]) -> Stats {
    check(operations).unwrap_or_else(|violation| panic!("{violation}"))
}

fn fails(operations: &[ClientOperation]) -> CounterExample {
    match check(operations) {
        Err(Violation::NotLinearizable(example)) => example,
        other => panic!("expected a counter-example, not {other:?}"),
    }
}

#[test]
fn an_empty_history_passes() {
    assert_eq!(passes(&[]), Stats::default());
}

#[test]
fn a_read_sees_the_write_that_returned_before_it() {
    passes(&[write(1, "a", 0, 1), read(2, "a", 2, 3)]);
    fails(&[write(1, "a", 0, 1), missing(2, 2, 3)]);
}

#[test]
fn a_read_beside_a_write_may_see_it_or_not() {
    passes(&[write(1, "a", 0, 9), read(2, "a", 2, 3)]);
    passes(&[write(1, "a", 0, 9), missing(2, 2, 3)]);
    // Once seen, it stays seen.
    fails(&[write(1, "a", 0, 9), read(2, "a", 2, 3), missing(3, 4, 5)]);
}

#[test]
fn operations_that_touch_in_one_nanosecond_are_concurrent() {
    passes(&[write(1, "a", 0, 5), missing(2, 5, 6)]);
    fails(&[write(1, "a", 0, 5), missing(2, 6, 7)]);
}

#[test]
fn a_stale_read_is_found() {
    let example = fails(&[write(1, "a", 0, 1), write(1, "b", 2, 3), read(2, "b", 4, 5), read(3, "a", 6, 7)]);
    assert_eq!(example.operations, [write(1, "a", 0, 1), write(1, "b", 2, 3), read(3, "a", 6, 7)]);
}

#[test]
fn a_write_may_not_be_undone() {
    fails(&[write(1, "a", 0, 1), write(2, "b", 0, 9), read(3, "b", 2, 3), read(3, "a", 4, 5)]);
    passes(&[write(1, "a", 0, 4), write(2, "b", 0, 9), read(3, "b", 2, 3), read(3, "a", 4, 5)]);
}

#[test]
fn an_unknown_write_may_happen_late_or_never() {
    let unknown = with(OperationOutcome::Unknown, write(1, "a", 0, 1));
    passes(&[unknown.clone(), missing(2, 2, 3)]);
    passes(&[unknown.clone(), missing(2, 2, 3), read(2, "a", 4, 5)]);
    passes(&[unknown.clone(), write(2, "b", 2, 3), read(2, "b", 4, 5), read(2, "a", 6, 7)]);
    // But only once.
    fails(&[unknown.clone(), read(2, "a", 2, 3), missing(2, 4, 5)]);
    fails(&[unknown, read(2, "a", 2, 3), write(2, "b", 4, 5), read(2, "a", 6, 7)]);
}

#[test]
fn an_unknown_delete_may_happen_late_or_never() {
    let unknown = with(OperationOutcome::Unknown, delete(1, None, 0, 1));
    passes(&[unknown.clone(), write(2, "a", 2, 3), read(2, "a", 4, 5), missing(2, 6, 7)]);
    fails(&[unknown, write(2, "a", 2, 3), missing(2, 4, 5), read(2, "a", 6, 7)]);
}

#[test]
fn a_write_that_was_not_executed_must_not_be_seen() {
    let refused = with(OperationOutcome::NotExecuted, write(1, "a", 0, 1));
    passes(&[refused.clone(), missing(2, 2, 3)]);
    let example = fails(&[refused.clone(), read(2, "a", 2, 3)]);
    assert_eq!(example.operations, [refused, read(2, "a", 2, 3)]);
    assert!(example.reason.contains("not executed"), "{}", example.reason);
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    let example = fails(&[write(1, "a", 0, 1), read(2, "x", 2, 3)]);
    assert_eq!(example.operations, [read(2, "x", 2, 3)]);
    assert_eq!(example.reason, "nobody wrote \"x\"");
}

#[test]
fn a_value_may_not_be_read_before_it_was_written() {
    fails(&[read(2, "a", 0, 1), write(1, "a", 2, 3)]);
}

#[test]
fn a_failed_read_says_nothing() {
    passes(&[
        write(1, "a", 0, 1),
        with(OperationOutcome::Unknown, missing(2, 2, 3)),
        with(OperationOutcome::NotExecuted, read(2, "x", 2, 3)),
        read(2, "a", 4, 5),
    ]);
}

#[test]
fn what_a_delete_says_about_the_key_counts() {
    passes(&[
        write(1, "a", 0, 1),
        delete(2, Some(true), 2, 3),
        delete(2, Some(false), 4, 5),
        missing(1, 6, 7),
    ]);
    fails(&[write(1, "a", 0, 1), delete(2, Some(false), 2, 3)]);
    fails(&[delete(2, Some(true), 2, 3)]);
    fails(&[write(1, "a", 0, 1), delete(2, Some(true), 2, 9), delete(3, Some(true), 2, 9)]);
    // An unread write serves a delete that found something, though nobody read it.
    passes(&[with(OperationOutcome::Unknown, write(1, "a", 0, 1)), delete(2, Some(true), 2, 3)]);
}

#[test]
fn a_swap_sees_what_it_replaces() {
    passes(&[write(1, "a", 0, 1), swap(2, Some("b"), Some("a"), 2, 3), read(1, "b", 4, 5)]);
    passes(&[swap(1, Some("a"), None, 0, 1), swap(1, None, Some("a"), 2, 3), missing(1, 4, 5)]);
    fails(&[write(1, "a", 0, 1), swap(2, Some("b"), None, 2, 3)]);
    fails(&[write(1, "a", 0, 1), swap(2, Some("b"), Some("a"), 2, 3), read(1, "a", 4, 5)]);
    // One value is taken by one of two that ask at once, although both writes are there to be read.
    passes(&[write(1, "a", 0, 1), swap(2, None, Some("a"), 2, 9), swap(3, None, None, 2, 9)]);
    let example =
        fails(&[write(1, "a", 0, 1), swap(2, None, Some("a"), 2, 9), swap(3, None, Some("a"), 2, 9)]);
    assert_eq!(example.operations.len(), 3, "{example}");
    // Each of a chain leaves what the next one sees, in one order only.
    let chain = |last: &str| {
        [
            swap(1, Some("a"), None, 0, 9),
            swap(2, Some("b"), Some("a"), 0, 9),
            swap(3, Some("c"), Some("b"), 0, 9),
            read(4, last, 10, 11),
        ]
    };
    passes(&chain("c"));
    fails(&chain("b"));
}

#[test]
fn a_swap_that_leaves_what_it_saw_is_a_read() {
    passes(&[write(1, "a", 0, 1), swap(2, Some("a"), Some("a"), 2, 3), read(1, "a", 4, 5)]);
    fails(&[write(1, "a", 0, 1), write(1, "b", 2, 3), swap(2, Some("a"), Some("a"), 4, 5)]);
}

#[test]
fn an_unknown_swap_replaces_anything_late_or_never() {
    let unknown = with(OperationOutcome::Unknown, swap(1, Some("a"), None, 0, 1));
    passes(&[unknown.clone(), missing(2, 2, 3), read(2, "a", 4, 5)]);
    passes(&[unknown.clone(), write(2, "b", 2, 3), read(2, "b", 4, 5), read(2, "a", 6, 7)]);
    fails(&[unknown, read(2, "a", 2, 3), write(2, "b", 4, 5), read(2, "a", 6, 7)]);
}

#[test]
fn one_of_the_writes_that_need_a_missing_key_is_done() {
    let (won, lost) = (write_if_missing(1, "a", true, 0, 9), write_if_missing(2, "b", false, 0, 9));
    passes(&[won.clone(), lost.clone(), read(3, "a", 10, 11)]);
    let example = fails(&[won.clone(), lost.clone(), read(3, "b", 10, 11)]);
    assert_eq!(example.operations, [lost.clone(), read(3, "b", 10, 11)]);
    assert_eq!(example.reason, "\"b\" was read, but its conditional write was answered 'not written'");
    // Both cannot win, and one cannot lose to nobody.
    fails(&[won.clone(), write_if_missing(2, "b", true, 0, 9)]);
    fails(&[lost, missing(3, 10, 11)]);
    // A delete in between makes room for another one.
    passes(&[won, delete(3, Some(true), 0, 9), write_if_missing(2, "b", true, 0, 9), read(3, "b", 10, 11)]);
}

#[test]
fn a_write_that_needs_the_key_is_done_only_where_one_is() {
    passes(&[write(1, "a", 0, 1), write_if_present(2, "b", true, 2, 3), read(1, "b", 4, 5)]);
    passes(&[write_if_present(2, "b", false, 0, 1), missing(1, 2, 3)]);
    fails(&[write_if_present(2, "b", true, 0, 1)]);
    fails(&[write(1, "a", 0, 1), write_if_present(2, "b", false, 2, 3)]);
    fails(&[write(1, "a", 0, 1), write_if_present(2, "b", true, 2, 3), read(1, "a", 4, 5)]);
}

#[test]
fn an_unknown_conditional_write_still_needs_its_condition() {
    let nx = with(OperationOutcome::Unknown, write_if_missing(1, "a", false, 0, 1));
    passes(&[nx.clone(), missing(2, 2, 3), read(2, "a", 4, 5)]);
    passes(&[nx.clone(), write(2, "b", 2, 3), delete(2, None, 4, 5), read(2, "a", 6, 7)]);
    fails(&[nx.clone(), write(2, "b", 2, 3), read(2, "a", 4, 5)]);
    // It needs nothing if it did not happen.
    passes(&[nx, write(2, "b", 2, 3), read(2, "b", 4, 5)]);
    let xx = with(OperationOutcome::Unknown, write_if_present(1, "a", false, 0, 1));
    passes(&[xx.clone(), write(2, "b", 2, 3), read(2, "b", 4, 5), read(2, "a", 6, 7)]);
    passes(&[xx.clone(), missing(2, 2, 3)]);
    fails(&[xx.clone(), missing(2, 2, 3), read(2, "a", 4, 5)]);
    // Another unknown write, that nobody saw, or an unknown delete, makes room for it.
    passes(&[xx, with(OperationOutcome::Unknown, write(2, "b", 0, 1)), read(2, "a", 4, 5)]);
    passes(&[
        write(2, "b", 0, 1),
        with(OperationOutcome::Unknown, delete(3, None, 2, 3)),
        with(OperationOutcome::Unknown, write_if_missing(1, "a", false, 2, 3)),
        read(2, "b", 4, 5),
        read(2, "a", 6, 7),
    ]);
}

#[test]
fn unknown_writes_of_one_value_are_not_the_same_if_they_need_different_things() {
    // The plain write comes first in time, but must happen last.
    let plain = with(OperationOutcome::Unknown, write(1, "a", 0, 1));
    let nx = with(OperationOutcome::Unknown, write_if_missing(1, "a", false, 1, 2));
    let between = [read(2, "a", 3, 4), write(2, "b", 5, 6), read(2, "b", 7, 8), read(2, "a", 9, 10)];
    passes(&[&[plain.clone(), nx], &between[..]].concat());
    let xx = with(OperationOutcome::Unknown, write_if_present(1, "a", false, 2, 3));
    let between = [read(2, "a", 4, 5), delete(2, None, 6, 7), missing(2, 8, 9), read(2, "a", 10, 11)];
    passes(&[&[write(2, "b", 0, 1), plain, xx], &between[..]].concat());
}

#[test]
fn a_write_that_was_never_seen_does_not_skip_a_condition() {
    // The unread write must come between, not first.
    let nx = with(OperationOutcome::Unknown, write_if_missing(1, "a", false, 0, 1));
    passes(&[write(2, "x", 0, 9), nx, read(3, "a", 3, 4)]);
    let xx = with(OperationOutcome::Unknown, write_if_present(1, "a", false, 0, 1));
    passes(&[write(2, "b", 0, 1), delete(3, None, 2, 9), write(2, "x", 2, 9), xx, read(4, "a", 10, 11)]);
    passes(&[write(2, "x", 0, 9), swap(1, Some("a"), None, 0, 9)]);
    passes(&[write(2, "x", 0, 9), write_if_missing(1, "y", true, 0, 9)]);
    passes(&[delete(3, None, 0, 9), write(2, "x", 0, 9), write_if_present(1, "y", true, 0, 9)]);
}

#[test]
fn a_counter_example_tells_conditional_writes_and_swaps() {
    let operations = [
        write_if_missing(1, "a", true, 0, 1_000_000),
        write_if_present(2, "b", true, 2_000_000, 3_000_000),
        swap(3, None, Some("a"), 4_000_000, 5_000_000),
        with(OperationOutcome::Unknown, swap(4, Some("c"), None, 4_000_000, 5_000_000)),
    ];
    let example = fails(&operations);
    let text = example.to_string();
    let lines: Vec<&str> =
        text.lines().skip(2).map(|line| line[line.rfind('|').unwrap() + 1..].trim()).collect();
    // Only what a swap saw is needed for the contradiction: the conditions of the writes are left out.
    assert_eq!(lines, ["WRITE \"a\" -> ok", "WRITE \"b\" -> ok", "READ AND DELETE -> \"a\""], "\n{text}");
    let example = fails(&[write(1, "a", 0, 1), write_if_missing(2, "b", true, 2, 3)]);
    assert!(example.to_string().contains("WRITE \"b\" IF MISSING -> ok"), "{example}");
    let example = fails(&[write(1, "a", 0, 1), write_if_present(2, "b", false, 2, 3)]);
    assert!(example.to_string().contains("WRITE \"b\" IF PRESENT -> not written"), "{example}");
    let example = fails(&[write(1, "a", 0, 1), swap(2, Some("b"), None, 2, 3)]);
    assert!(example.to_string().contains("READ AND WRITE \"b\" -> not found"), "{example}");
}

#[test]
fn keys_are_checked_apart() {
    let mut other = missing(2, 2, 3);
    other.key = bytes("other");
    let stats = passes(&[write(1, "a", 0, 1), other]);
    assert_eq!((stats.keys, stats.done), (2, 2));
}

#[test]
fn the_bound_on_the_search_is_kept() {
    // Every order of the writes is possible, but none explains what was read last.
    let mut operations = Vec::new();
    for i in 0..8 {
        operations.push(write(i, &i.to_string(), 0, 99));
        operations.push(read(i, &i.to_string(), 0, 99));
    }
    operations.push(read(8, "0", 100, 101));
    operations.push(read(8, "1", 102, 103));
    match check_within(&operations, SearchLimits { steps_max: 5 }) {
        Err(Violation::GaveUp { operations: 18, steps: 6, .. }) => {}
        other => panic!("expected to give up, not {other:?}"),
    }
    fails(&operations);
}

#[test]
fn a_counter_example_is_small_and_readable() {
    let mut operations = Vec::new();
    for i in 0..100 {
        operations.push(write(1, &format!("v{i}"), 1_000_000 * i, 1_000_000 * i + 400_000));
        operations.push(read(2, &format!("v{i}"), 1_000_000 * i + 500_000, 1_000_000 * i + 600_000));
    }
    operations.push(read(3, "v41", 77_700_000, 77_800_000));
    let example = fails(&operations);
    assert_eq!(example.of, 201);
    let expected = [
        "key \"k\" is not linearizable: no order of the operations explains the answers \
         (3 of its 201 operations suffice)",
        "  client      from ms        to ms",
        "       1        0.000        0.400  |-|            WRITE \"v41\" -> ok",
        "       1        1.000        1.400      |-|        WRITE \"v42\" -> ok",
        "       3       36.700       36.800          |-|    READ -> \"v41\"",
    ];
    let text = example.to_string();
    assert_eq!(text.lines().map(str::trim_end).collect::<Vec<_>>(), expected, "\n{text}");
}

#[test]
fn a_counter_example_keeps_what_explains_the_innocent_answers() {
    // Without the delete, the first read would look guilty.
    let example = fails(&[write(1, "a", 0, 1), delete(1, None, 2, 3), missing(2, 4, 5), read(3, "a", 6, 7)]);
    assert!(example.operations.contains(&read(3, "a", 6, 7)), "{example}");
    // Without the unread write, the delete would.
    let example = fails(&[
        missing(2, 0, 1),
        write(1, "b", 2, 3),
        delete(1, Some(true), 4, 5),
        write(1, "a", 6, 7),
        missing(2, 8, 9),
    ]);
    assert_eq!(example.operations, [write(1, "a", 6, 7), missing(2, 8, 9)]);
}

#[test]
fn a_counter_example_keeps_what_innocent_conditional_writes_need() {
    let guilty = write_if_present(3, "y", false, 4, 5);
    let convicted = [write(1, "b", 2, 3), guilty.clone()];
    // Without the write of b, the write that was done because of it would look guilty.
    let done = write_if_present(4, "c", true, 6, 7);
    let example = fails(&[missing(2, 0, 1), write(1, "b", 2, 3), guilty.clone(), done]);
    assert_eq!(example.operations, convicted);
    let perhaps = with(OperationOutcome::Unknown, write_if_present(4, "c", false, 6, 7));
    let example = fails(&[missing(2, 0, 1), write(1, "b", 2, 3), guilty, perhaps, read(2, "c", 8, 9)]);
    assert_eq!(example.operations, convicted);
    // And without the delete, the one that needs a missing key.
    let convicted = [write(1, "b", 0, 1), delete(1, None, 2, 3), write_if_missing(3, "y", false, 4, 5)];
    let perhaps = with(OperationOutcome::Unknown, write_if_missing(4, "c", false, 6, 7));
    let example = fails(&[&convicted[..], &[perhaps, read(2, "c", 8, 9)]].concat());
    assert!(example.operations.starts_with(&convicted), "{example}");
    // What nothing needs is left out.
    let perhaps = with(OperationOutcome::Unknown, swap(4, None, None, 4, 5));
    let convicted = [write(1, "a", 0, 1), write(1, "b", 2, 3), read(2, "a", 6, 7)];
    let example = fails(&[&convicted[..], &[perhaps]].concat());
    assert_eq!(example.operations, convicted);
}

#[test]
fn a_history_is_recorded_in_order_and_open_operations_are_unknown() {
    let mut history = History::new();
    let first = history.begin(1, bytes("k"), Action::Write(bytes("a")), 0);
    let second = history.begin(1, bytes("k"), Action::Read(None), 5);
    history.begin(1, bytes("k"), Action::Write(bytes("b")), 6);
    history.finish(first, OperationOutcome::Done, 4);
    history.finish_read(second, Some(bytes("b")), 9);
    let mut other = History::new();
    let third = other.begin(2, bytes("k"), Action::Delete { existed: None }, 10);
    other.finish_delete(third, true, 11);
    history.merge(other);
    assert_eq!(
        history.operations(),
        [
            write(1, "a", 0, 4),
            read(1, "b", 5, 9),
            with(OperationOutcome::Unknown, write(1, "b", 6, u64::MAX)),
            delete(2, Some(true), 10, 11),
        ]
    );
    let stats = history.check().expect("the open write explains the read");
    assert_eq!((stats.done, stats.unknown), (3, 1));
}

#[test]
fn what_a_swap_saw_and_whether_a_condition_held_is_recorded() {
    let mut history = History::new();
    let if_missing = Action::WriteIf { value: bytes("a"), if_present: false, done: false };
    let if_present = Action::WriteIf { value: bytes("b"), if_present: true, done: false };
    let first = history.begin(1, bytes("k"), if_missing.clone(), 0);
    history.finish_write_if(first, true, 1);
    let second = history.begin(1, bytes("k"), if_missing, 2);
    history.finish_write_if(second, false, 3);
    // `SET k b XX GET` answers what it replaced.
    let third = history.begin(1, bytes("k"), if_present, 4);
    history.finish_swap(third, Some(bytes("a")), 5);
    let fourth = history.begin(1, bytes("k"), Action::Swap { value: None, seen: None }, 6);
    history.finish_swap(fourth, Some(bytes("b")), 7);
    assert_eq!(
        history.operations(),
        [
            write_if_missing(1, "a", true, 0, 1),
            write_if_missing(1, "a", false, 2, 3),
            swap(1, Some("b"), Some("a"), 4, 5),
            swap(1, None, Some("b"), 6, 7),
        ]
    );
    history.check().expect("one client after the other");
}

#[test]
fn what_must_be_readable_is_what_nothing_certainly_replaced() {
    let readable = |operations: &[ClientOperation]| {
        let readable = readable_after(operations).remove("k".as_bytes()).expect("the key is there");
        let values: Vec<String> =
            readable.values.iter().map(|v| String::from_utf8_lossy(v).into_owned()).collect();
        (values.join(" "), readable.missing)
    };
    let state = |values: &str, missing| (values.to_string(), missing);
    assert_eq!(readable(&[missing(1, 0, 1)]), state("", true));
    assert_eq!(readable(&[write(1, "a", 0, 1)]), state("a", false));
    assert_eq!(readable(&[write(1, "a", 0, 1), write(1, "b", 2, 3)]), state("b", false));
    assert_eq!(readable(&[write(1, "a", 0, 2), write(2, "b", 1, 3)]), state("a b", false));
    assert_eq!(readable(&[write(1, "a", 0, 1), delete(1, Some(true), 2, 3)]), state("", true));
    assert_eq!(readable(&[write(1, "a", 0, 1), delete(1, None, 2, 3)]), state("", true));
    assert_eq!(readable(&[delete(1, Some(false), 0, 1), write(1, "a", 0, 1)]), state("a", false));
    assert_eq!(
        readable(&[with(OperationOutcome::Unknown, write(1, "a", 0, 1)), write(1, "b", 2, 3)]),
        state("a b", false)
    );
    assert_eq!(
        readable(&[with(OperationOutcome::NotExecuted, write(1, "a", 0, 1)), write(1, "b", 2, 3)]),
        state("b", false)
    );
    assert_eq!(readable(&[write(1, "a", 0, 1), swap(1, Some("b"), Some("a"), 2, 3)]), state("b", false));
    assert_eq!(readable(&[write(1, "a", 0, 1), swap(1, None, Some("a"), 2, 3)]), state("", true));
    assert_eq!(readable(&[write(1, "a", 0, 1), write_if_present(1, "b", true, 2, 3)]), state("b", false));
    assert_eq!(readable(&[write(1, "a", 0, 1), write_if_missing(1, "b", false, 2, 3)]), state("a", false));
    assert_eq!(
        readable(&[
            with(OperationOutcome::Unknown, write_if_missing(1, "a", false, 0, 1)),
            write(1, "b", 2, 3)
        ]),
        state("a b", false)
    );
}

/// The plain definition: tries every order of every choice of operations.
fn brute_force(operations: &[ClientOperation]) -> bool {
    fn explained(operations: &[ClientOperation], used: &mut Vec<bool>, state: &Option<Bytes>) -> bool {
        let done = |i: usize| operations[i].outcome == OperationOutcome::Done;
        let open: Vec<usize> = (0..operations.len()).filter(|&i| !used[i]).collect();
        if !open.iter().any(|&i| done(i)) {
            return true;
        }
        open.iter().copied().any(|i| {
            let preceded =
                open.iter().any(|&j| done(j) && operations[j].returned_ns < operations[i].invoked_ns);
            let fits = match &operations[i].action {
                _ if preceded || operations[i].outcome == OperationOutcome::NotExecuted => false,
                Action::Write(_) | Action::Delete { existed: None } => true,
                Action::Delete { existed: Some(existed) } => !done(i) || *existed == state.is_some(),
                Action::Read(value) => done(i) && value == state,
                Action::Swap { seen, .. } => !done(i) || seen == state,
                Action::WriteIf { if_present, done: wrote, .. } => {
                    !done(i) || *wrote == (*if_present == state.is_some())
                }
            };
            let after = match &operations[i].action {
                Action::Write(value) => Some(value.clone()),
                Action::Delete { .. } => None,
                Action::Read(_) => state.clone(),
                Action::Swap { value, .. } => value.clone(),
                Action::WriteIf { value, if_present, .. } if *if_present == state.is_some() => {
                    Some(value.clone())
                }
                Action::WriteIf { .. } => state.clone(),
            };
            used[i] = true;
            let explained = fits && explained(operations, used, &after);
            used[i] = false;
            explained
        })
    }
    explained(operations, &mut vec![false; operations.len()], &None)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(bytes("a")), Just(bytes("b")), Just(bytes("c"))]
}

fn small_operation() -> impl Strategy<Value = ClientOperation> {
    let action = prop_oneof![
        4 => value().prop_map(Action::Write),
        2 => prop_oneof![Just(None), Just(Some(true)), Just(Some(false))]
            .prop_map(|existed| Action::Delete { existed }),
        4 => value().prop_map(|value| Action::Read(Some(value))),
        1 => Just(Action::Read(None)),
        3 => (prop::option::of(value()), prop::option::of(value()))
            .prop_map(|(value, seen)| Action::Swap { value, seen }),
        3 => (value(), any::<bool>(), any::<bool>())
            .prop_map(|(value, if_present, done)| Action::WriteIf { value, if_present, done }),
    ];
    let outcome = prop_oneof![8 => Just(OperationOutcome::Done), 2 => Just(OperationOutcome::Unknown), 1 => Just(OperationOutcome::NotExecuted)];
    (action, outcome, 0..20_u64, 0..12_u64, 0..4_u64).prop_map(|(action, outcome, from, length, client)| {
        operation(client, action, outcome, from, from + length)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(6000) })]

    #[test]
    fn verdicts_agree_with_brute_force(operations in prop::collection::vec(small_operation(), 0..8)) {
        match check(&operations) {
            Ok(_) => prop_assert!(brute_force(&operations)),
            Err(Violation::NotLinearizable(example)) => {
                prop_assert!(!brute_force(&operations));
                prop_assert!(!brute_force(&example.operations), "explained after all:\n{}", example);
                prop_assert!(!example.operations.is_empty());
            }
            Err(gave_up) => prop_assert!(false, "{gave_up}"),
        }
    }

    #[test]
    fn a_history_of_a_real_register_passes_and_one_changed_answer_is_judged_as_brute_force_does(
        seed in 0..u64::MAX,
        changed in 0..8_usize,
    ) {
        let mut operations =
            Simulated { seed, clients: 3, keys: 1, operations: 8, unknown_percent: 20, conditions: true }.run();
        prop_assert!(check(&operations).is_ok());
        prop_assert!(brute_force(&operations));
        let other = bytes("1");
        match &mut operations[changed].action {
            Action::Read(value) => *value = Some(other),
            Action::Delete { existed } => *existed = existed.map(|existed| !existed),
            Action::Write(value) => *value = other,
            Action::Swap { seen, .. } => *seen = Some(other),
            Action::WriteIf { done, .. } => *done = !*done,
        }
        prop_assert_eq!(check(&operations).is_ok(), brute_force(&operations));
    }

    #[test]
    fn final_reads_are_allowed_as_the_checker_allows_them(seed in 0..u64::MAX, value in 0..9_u32) {
        let mut operations =
            Simulated { seed, clients: 3, keys: 1, operations: 8, unknown_percent: 20, conditions: true }.run();
        let key = operations[0].key.clone();
        let value = (value > 0).then(|| bytes(&value.to_string()));
        let allowed = readable_after(&operations)[&key].allows(value.as_ref());
        let mut last = operation(9, Action::Read(value), OperationOutcome::Done, u64::MAX - 2, u64::MAX - 1);
        last.key = key;
        operations.push(last);
        // The rule ignores what others have read, so it may allow more than the checker, never less.
        prop_assert!(allowed || check(&operations).is_err());
    }
}

/// A correct register under concurrent clients: every operation takes effect at one moment of its life.
struct Simulated {
    seed: u64,
    clients: u64,
    keys: u64,
    operations: usize,
    unknown_percent: u64,
    /// Whether there are swaps and conditional writes, too.
    conditions: bool,
}

impl Simulated {
    fn run(&self) -> Vec<ClientOperation> {
        let mut random = self.seed | 1;
        let mut below = move |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) % bound
        };
        let mut free_at: Vec<u64> = (0..self.clients).collect();
        let mut lives = Vec::new();
        for index in 0..self.operations {
            let client = index % free_at.len();
            let from = free_at[client] + below(50);
            let unknown = below(100) < self.unknown_percent;
            let takes = 1 + below(1000);
            // An operation with unknown outcome may take effect long after its client gave up, or never.
            let effect_at = match unknown {
                true if below(2) == 0 => u64::MAX,
                true => from + below(20_000),
                false => from + below(takes),
            };
            free_at[client] = from + takes;
            let key = bytes(&format!("key{}", below(self.keys)));
            let value = bytes(&(index + 1).to_string());
            let action = match below(if self.conditions { 16 } else { 10 }) {
                0 => Action::Delete { existed: None },
                1..=4 => Action::Read(None),
                5..=9 => Action::Write(value),
                10 => Action::Swap { value: None, seen: None },
                11 => Action::Swap { value: Some(value), seen: None },
                kind => Action::WriteIf { value, if_present: kind < 14, done: false },
            };
            let outcome = if unknown { OperationOutcome::Unknown } else { OperationOutcome::Done };
            let client = client as u64;
            let operation =
                ClientOperation { client, key, action, outcome, invoked_ns: from, returned_ns: from + takes };
            lives.push((effect_at, operation));
        }
        lives.sort_by_key(|(effect_at, _)| *effect_at);
        let mut store: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        for (effect_at, operation) in &mut lives {
            if *effect_at == u64::MAX {
                break;
            }
            match &mut operation.action {
                Action::Write(value) => {
                    store.insert(operation.key.clone(), value.clone());
                }
                Action::Delete { existed } => *existed = Some(store.remove(&operation.key).is_some()),
                Action::Read(value) => *value = store.get(&operation.key).cloned(),
                Action::Swap { value, seen } => {
                    *seen = store.remove(&operation.key);
                    store.extend(value.clone().map(|value| (operation.key.clone(), value)));
                }
                Action::WriteIf { value, if_present, done } => {
                    *done = *if_present == store.contains_key(&operation.key);
                    if *done {
                        store.insert(operation.key.clone(), value.clone());
                    }
                }
            }
        }
        lives.into_iter().map(|(_, operation)| operation).collect()
    }
}

#[test]
fn ten_thousand_operations_of_twenty_clients_take_about_a_step_each() {
    let sizes = [(1000, 0), (40, 0), (40, 3), (5, 1), (1, 0)];
    for (conditions, (keys, unknown_percent)) in
        [false, true].into_iter().flat_map(|conditions| sizes.map(|size| (conditions, size)))
    {
        for seed in 1..=3 {
            let seed = u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15);
            let simulated =
                Simulated { seed, clients: 20, keys, operations: 10_000, unknown_percent, conditions };
            let stats = passes(&simulated.run());
            println!("{keys} keys, {unknown_percent}% unknown, conditions {conditions}: {stats}");
            let steps_max = if keys == 1 { 1_000_000 } else { 30_000 };
            assert!(stats.steps < steps_max, "{keys} keys, {unknown_percent}% unknown: {stats}");
        }
    }
}

#[test]
fn a_lost_write_among_ten_thousand_operations_is_found_and_made_small() {
    let mut operations = Simulated {
        seed: 7,
        clients: 20,
        keys: 10,
        operations: 10_000,
        unknown_percent: 1,
        conditions: false,
    }
    .run();
    let lost = operations
        .iter()
        .filter(|o| o.outcome == OperationOutcome::Done && matches!(o.action, Action::Write(_)))
        .nth(4000)
        .expect("there are more writes")
        .clone();
    let stale = ClientOperation {
        client: 99,
        action: Action::Read(None),
        outcome: OperationOutcome::Done,
        invoked_ns: lost.returned_ns + 1,
        returned_ns: lost.returned_ns + 2,
        ..lost
    };
    operations.push(stale);
    let example = fails(&operations);
    println!("{example}");
    assert!(example.operations.len() <= 12, "{example}");
}
