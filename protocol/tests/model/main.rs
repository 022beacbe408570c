//! The model check: every interleaving of a small world of the real machines, checked against `docs/ARCHITECTURE.md`.
//!
//! Each test searches one world to its end: all orders of messages, disk and faults, as many faults as the world
//! allows. `MODEL_DEEP=1` adds the worlds with more of everything (`make model`). The tests of bugs neglect one duty
//! of the shell each and require that the search notices.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod explore;
mod part;
mod setup;
mod world;

use dsm_protocol::machine::front::Kind;
use explore::{explore, Report};
use setup::{Bug, Faults, Plan, Setup, Wish};
use world::World;

/// A search of more states than this fails.
const STATES_MAX: usize = 20_000_000;

fn native(wishes: &[Wish]) -> Plan {
    Plan { kind: Kind::Native, pipelines: false, wishes: wishes.to_vec() }
}

/// A Redis client: it asks for everything at once, at either master.
fn forwarded(wishes: &[Wish]) -> Plan {
    Plan { kind: Kind::Forwardable, pipelines: true, wishes: wishes.to_vec() }
}

/// One client writes, another one reads; no faults, masters that do not talk to each other.
fn setup(name: &'static str, slaves: usize) -> Setup {
    let clients = vec![native(&[Wish::Write]), native(&[Wish::Read])];
    Setup { name, slaves, clients, faults: Faults::default(), peers: false, nothing_fails: false, bug: None }
}

/// One of each fault that needs no link between the masters, `total` of them in one run.
fn any_fault(total: u8) -> Faults {
    Faults {
        total,
        crash: 1,
        power: 1,
        pause: 1,
        slave_crash: 1,
        ack_timeout: 1,
        read_timeout: 1,
        leave: 1,
        enlist_timeout: true,
        ..Faults::default()
    }
}

/// A handover, and no other fault.
fn handover() -> Faults {
    Faults { total: 1, handover: 1, ..Faults::default() }
}

/// A handover, and one other fault before, in or after it.
fn handover_and(other: Faults) -> Faults {
    Faults { total: 2, handover: 1, ..other }
}

/// As [`handover_and`]; slaves may also be too late for the new reign, and requests in flight for the handover.
fn late_handover_and(other: Faults) -> Faults {
    Faults { enlist_timeout: true, yield_timeout: true, ..handover_and(other) }
}

/// One client that writes once. The outcome is checked when the world has healed.
fn one_writer() -> Vec<Plan> {
    vec![native(&[Wish::Write])]
}

/// Two clients that overwrite the same key; one then reads it.
fn two_writers() -> Vec<Plan> {
    vec![native(&[Wish::Write, Wish::Read]), native(&[Wish::Write])]
}

fn search(setup: Setup) -> Report {
    let name = setup.name;
    let report = explore(&World::new(setup), STATES_MAX);
    println!("{name}: {}", report.summary());
    report
}

/// Every state is reached, and nothing is wrong in any.
fn holds(setup: Setup) {
    let report = search(setup);
    if let Some(violation) = &report.violation {
        panic!("after {} steps: {}", violation.length, violation.trace);
    }
    assert!(report.complete, "the world is not small");
    assert!(report.quiet > 0, "the world never comes to rest");
}

/// The search notices `bug`, and says `what` of it.
fn is_noticed(bug: Bug, what: &str, setup: Setup) {
    let report = search(Setup { bug: Some(bug), ..setup });
    let violation = report.violation.unwrap_or_else(|| panic!("{bug:?} is not noticed"));
    println!("{bug:?} is noticed after {} steps: {}", violation.length, violation.trace);
    assert!(violation.what.contains(what), "{bug:?}: {}", violation.what);
}

/// As [`holds`], for a world that is too large for every run of the tests.
fn deep(setup: Setup) {
    if std::env::var_os("MODEL_DEEP").is_some() {
        holds(setup);
    } else {
        println!("{}: only with MODEL_DEEP=1", setup.name);
    }
}

#[test]
fn one_fault_of_any_kind_loses_nothing() {
    holds(Setup { faults: any_fault(1), ..setup("one fault, two slaves", 2) });
}

#[test]
fn two_faults_with_one_slave_lose_nothing() {
    let faults = Faults { read_timeout: 0, leave: 0, ..any_fault(2) };
    holds(Setup { faults, ..setup("two faults, one slave", 1) });
}

#[test]
fn slaves_that_fail_twice_lose_nothing() {
    let faults =
        Faults { total: 2, slave_crash: 2, ack_timeout: 2, read_timeout: 1, leave: 1, ..Faults::default() };
    holds(Setup { faults, ..setup("two faults of slaves, two slaves", 2) });
}

#[test]
fn a_key_that_is_written_again_keeps_its_last_value() {
    let clients = vec![native(&[Wish::Write, Wish::Write]), native(&[Wish::Read])];
    holds(Setup { clients, faults: any_fault(1), ..setup("two writes, one fault, one slave", 1) });
}

#[test]
fn a_deleted_key_stays_deleted() {
    let clients = vec![native(&[Wish::Write, Wish::Delete]), native(&[Wish::Read])];
    holds(Setup { clients, faults: any_fault(1), ..setup("a deletion, one fault, one slave", 1) });
}

#[test]
fn a_handover_loses_nothing() {
    let faults = Faults { stray: 1, enlist_timeout: true, yield_timeout: true, ..handover() };
    holds(Setup { faults, peers: true, ..setup("a handover, one slave", 1) });
}

#[test]
fn a_handover_fails_no_request() {
    let setup = setup("a handover, one slave, nothing else", 1);
    holds(Setup { faults: handover(), peers: true, nothing_fails: true, ..setup });
}

#[test]
fn a_pipeline_goes_through_a_handover_in_order_and_without_a_failure() {
    let clients = vec![forwarded(&[Wish::Write, Wish::Read])];
    let setup = setup("a handover, a forwarded pipeline of 2, one slave", 1);
    let faults = Faults { yield_timeout: true, ..handover() };
    holds(Setup { clients, faults, peers: true, nothing_fails: true, ..setup });
}

#[test]
fn a_pipeline_keeps_its_order_when_a_master_dies() {
    let clients = vec![forwarded(&[Wish::Write, Wish::Read])];
    let faults = Faults { total: 1, crash: 1, ..Faults::default() };
    holds(Setup {
        clients,
        faults,
        peers: true,
        ..setup("a crash, a forwarded pipeline of 2, one slave", 1)
    });
}

#[test]
fn a_master_that_dies_around_a_handover_loses_nothing() {
    let faults = handover_and(Faults { crash: 1, ..Faults::default() });
    let setup = setup("a handover and a crash, one writer, one slave", 1);
    holds(Setup { clients: one_writer(), faults, peers: true, ..setup });
}

#[test]
fn a_master_that_is_paused_around_a_handover_loses_nothing() {
    let faults = handover_and(Faults { pause: 1, ..Faults::default() });
    let setup = setup("a handover and a pause, one writer, one slave", 1);
    holds(Setup { clients: one_writer(), faults, peers: true, ..setup });
}

#[test]
fn a_slave_that_fails_around_a_handover_loses_nothing() {
    let faults = late_handover_and(Faults { slave_crash: 1, ack_timeout: 1, ..Faults::default() });
    holds(Setup { faults, peers: true, ..setup("a late handover and a fault of the slave", 1) });
}

#[test]
fn two_writers_lose_nothing_by_any_fault() {
    let setup = setup("two writers, one fault of any kind, one slave", 1);
    holds(Setup { clients: two_writers(), faults: any_fault(1), ..setup });
}

#[test]
fn two_writers_lose_nothing_in_a_handover() {
    let setup = setup("two writers, a handover, one slave", 1);
    holds(Setup { clients: two_writers(), faults: handover(), peers: true, nothing_fails: true, ..setup });
}

#[test]
fn deep_a_master_that_dies_around_a_handover_loses_nothing() {
    let faults = late_handover_and(Faults { crash: 1, ..Faults::default() });
    deep(Setup { faults, peers: true, ..setup("a late handover and a crash, one slave", 1) });
}

#[test]
fn deep_a_master_that_is_paused_around_a_handover_loses_nothing() {
    let faults = late_handover_and(Faults { pause: 1, ..Faults::default() });
    deep(Setup { faults, peers: true, ..setup("a late handover and a pause, one slave", 1) });
}

#[test]
fn deep_a_power_cut_around_a_handover_loses_nothing() {
    let faults = handover_and(Faults { power: 1, ..Faults::default() });
    deep(Setup { faults, peers: true, ..setup("a handover and a power cut, one slave", 1) });
}

#[test]
fn deep_two_writers_with_two_slaves_lose_nothing_by_any_fault() {
    let setup = setup("two writers, one fault of any kind, two slaves", 2);
    deep(Setup { clients: two_writers(), faults: any_fault(1), ..setup });
}

#[test]
fn deep_two_writers_lose_nothing_when_a_master_dies_around_a_handover() {
    let clients = vec![native(&[Wish::Write]), native(&[Wish::Write])];
    let faults = handover_and(Faults { crash: 1, ..Faults::default() });
    let setup = setup("two writers, a handover and a crash, one slave", 1);
    deep(Setup { clients, faults, peers: true, ..setup });
}

#[test]
fn deep_a_forwarded_write_is_not_lost_when_a_master_dies_around_a_handover() {
    let clients = vec![forwarded(&[Wish::Write])];
    let faults = handover_and(Faults { crash: 1, ..Faults::default() });
    let setup = setup("a handover and a crash, a forwarded write, one slave", 1);
    deep(Setup { clients, faults, peers: true, ..setup });
}

#[test]
fn deep_two_faults_of_any_kind_lose_nothing() {
    deep(Setup { faults: any_fault(2), ..setup("two faults of any kind, one slave", 1) });
}

#[test]
fn deep_a_crash_and_a_pause_with_two_slaves_lose_nothing() {
    let faults = Faults { total: 2, crash: 1, pause: 1, enlist_timeout: true, ..Faults::default() };
    deep(Setup { faults, ..setup("a crash and a pause, two slaves", 2) });
}

#[test]
fn deep_a_handover_with_two_slaves_loses_nothing() {
    let faults = Faults { stray: 1, enlist_timeout: true, yield_timeout: true, ..handover() };
    deep(Setup { faults, peers: true, ..setup("a handover, two slaves", 2) });
}

#[test]
fn deep_a_long_pipeline_goes_through_a_handover_in_order_and_without_a_failure() {
    let clients = vec![forwarded(&[Wish::Write, Wish::Write, Wish::Read])];
    let setup = setup("a handover, a forwarded pipeline of 3, one slave", 1);
    let faults = Faults { yield_timeout: true, ..handover() };
    deep(Setup { clients, faults, peers: true, nothing_fails: true, ..setup });
}

#[test]
fn a_write_that_counts_as_written_before_it_is_synced_is_noticed() {
    is_noticed(Bug::WrittenBeforeSync, "before it is durable", setup("a bug", 1));
}

#[test]
fn a_takeover_that_serves_what_it_has_not_synced_is_noticed() {
    let faults = Faults { total: 2, crash: 1, power: 1, ..Faults::default() };
    is_noticed(
        Bug::RecoveredWithoutSync,
        "announced before it is durable",
        Setup { faults, ..setup("a bug", 1) },
    );
}

#[test]
fn a_takeover_that_does_not_read_the_log_to_its_end_is_noticed() {
    let faults = Faults { total: 1, crash: 1, ..Faults::default() };
    is_noticed(Bug::TailNotRead, "nothing is read after place", Setup { faults, ..setup("a bug", 1) });
}

#[test]
fn a_deletion_that_counts_wrongly_is_noticed() {
    let clients = vec![native(&[Wish::Write]), native(&[Wish::Delete])];
    let faults = Faults { total: 1, crash: 1, ..Faults::default() };
    is_noticed(Bug::TailNotRead, "a deletion of 0 keys", Setup { clients, faults, ..setup("a bug", 1) });
}

#[test]
fn an_epoch_that_is_announced_before_it_is_durable_is_noticed() {
    let faults = Faults { total: 1, crash: 1, ..Faults::default() };
    is_noticed(Bug::AnnouncedBeforeEpoch, "announced before", Setup { faults, ..setup("a bug", 1) });
}

#[test]
fn an_epoch_that_is_not_raised_is_noticed() {
    let faults = Faults { total: 1, crash: 1, ..Faults::default() };
    is_noticed(Bug::EpochNotRaised, "begins after", Setup { faults, ..setup("a bug", 1) });
}

#[test]
fn a_takeover_without_the_lock_is_noticed() {
    is_noticed(Bug::LockNotAwaited, "is written after", setup("a bug", 1));
}

#[test]
fn a_fence_that_does_not_kill_is_noticed() {
    let faults = Faults { total: 1, pause: 1, ..Faults::default() };
    is_noticed(Bug::FenceWithoutKill, "is written after", Setup { faults, ..setup("a bug", 1) });
}

#[test]
fn a_handover_with_requests_in_flight_is_noticed() {
    is_noticed(
        Bug::YieldedInFlight,
        "without the lock",
        Setup { faults: handover(), peers: true, ..setup("a bug", 1) },
    );
}

#[test]
fn a_handover_that_does_not_hold_requests_back_is_noticed() {
    let faults = Faults { stray: 1, ..handover() };
    let what = "a reign ends with requests in flight";
    is_noticed(Bug::YieldedWithoutHolding, what, Setup { faults, peers: true, ..setup("a bug", 1) });
}

#[test]
fn a_client_that_sends_an_unknown_write_again_is_noticed() {
    let faults = Faults { total: 1, leave: 1, ..Faults::default() };
    is_noticed(Bug::UnknownSentAgain, "executed twice", Setup { faults, ..setup("a bug", 1) });
}

#[test]
fn a_lost_slave_that_is_kept_is_noticed() {
    let faults = Faults { total: 1, slave_crash: 1, ..Faults::default() };
    is_noticed(Bug::LostSlaveKept, "where nobody is", Setup { faults, ..setup("a bug", 2) });
}

#[test]
fn a_report_that_is_ignored_is_noticed() {
    let faults = Faults { total: 1, crash: 1, ..Faults::default() };
    is_noticed(Bug::ReportIgnored, "as a holder it is named: false", Setup { faults, ..setup("a bug", 1) });
}
