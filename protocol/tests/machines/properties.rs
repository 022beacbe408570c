//! Properties of the machines under random drivers.

use crate::world::{Action, World};
use bytes::Bytes;
use dsm_protocol::ids::{LinkId, Reign, ReignId, Seq, Version};
use dsm_protocol::machine::master::{Counters, Placement};
use dsm_protocol::machine::slave::{Effect, Event, Slave};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use std::collections::{BTreeMap, BTreeSet};

fn action() -> impl Strategy<Value = Action> {
    let session = any::<u8>();
    let key = any::<u8>();
    let keys = any::<(u8, u8)>();
    prop_oneof![
        10 => (session, key).prop_map(|(session, key)| Action::Get { session, key }),
        2 => (session, keys).prop_map(|(session, keys)| Action::GetMany { session, keys }),
        1 => (session, key).prop_map(|(session, key)| Action::Exists { session, key }),
        1 => (session, key).prop_map(|(session, key)| Action::Length { session, key }),
        2 => (session, key).prop_map(|(session, key)| Action::TimeToLive { session, key }),
        1 => session.prop_map(|session| Action::KeyCount { session }),
        2 => (session, any::<u8>()).prop_map(|(session, kind)| Action::LookAtKeys { session, kind }),
        10 => (session, key).prop_map(|(session, key)| Action::Put { session, key }),
        2 => (session, keys).prop_map(|(session, keys)| Action::PutMany { session, keys }),
        4 => (session, key).prop_map(|(session, key)| Action::Delete { session, key }),
        1 => (session, keys).prop_map(|(session, keys)| Action::DeleteMany { session, keys }),
        8 => (session, key, any::<u8>()).prop_map(|(session, key, kind)| Action::Update { session, key, kind }),
        1 => (session, keys).prop_map(|(session, keys)| Action::PutManyIfNone { session, keys }),
        5 => (session, keys, any::<u8>()).prop_map(|(session, keys, kind)| Action::Transact { session, keys, kind }),
        1 => (session, keys).prop_map(|(session, keys)| Action::Watch { session, keys }),
        10 => (1..5u8).prop_map(|count| Action::Log { count }),
        1 => Just(Action::LogRefuses),
        4 => (any::<u8>(), prop::bool::weighted(0.1)).prop_map(|(which, fails)| Action::LogRead { which, fails }),
        14 => (any::<u8>(), 1..6u8).prop_map(|(link, count)| Action::ToSlave { link, count }),
        14 => (any::<u8>(), 1..6u8).prop_map(|(link, count)| Action::ToMaster { link, count }),
        3 => (any::<u8>(), 1..6u8).prop_map(|(link, count)| Action::Zombie { link, count }),
        6 => any::<u8>().prop_map(|node| Action::Join { node }),
        2 => any::<u8>().prop_map(|node| Action::Connect { node }),
        1 => any::<u8>().prop_map(|node| Action::Lose { node }),
        1 => any::<u8>().prop_map(|node| Action::Kill { node }),
        1 => any::<u8>().prop_map(|node| Action::Remove { node }),
        1 => any::<u8>().prop_map(|link| Action::Ping { link }),
        3 => (1..300u16).prop_map(|ms| Action::Sleep { ms }),
        1 => any::<u8>().prop_map(|logged| Action::Crash { logged }),
        1 => Just(Action::Handover),
        3 => Just(Action::Settle),
    ]
}

/// Without a limit, or with room for two or three entries.
fn memory() -> impl Strategy<Value = Vec<Option<u64>>> {
    prop::collection::vec(prop::option::weighted(0.2, 220..350u64), 1..6)
}

/// `PROPTEST_CASES` asks for more.
fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    ProptestConfig { failure_persistence: None, cases, ..default }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn answers_are_true_and_the_directory_names_the_holders_whatever_happens(
        random in any::<bool>(),
        seed in any::<u64>(),
        memory in memory(),
        actions in prop::collection::vec(action(), 1..200),
    ) {
        let placement = if random { Placement::Random } else { Placement::Hash };
        let mut world = World::new(placement, seed, &memory);
        for action in &actions {
            world.act(action);
        }
        world.finish();
    }
}

/// The random driver must reach the interesting cases, or the properties prove nothing.
#[test]
fn the_driver_reaches_every_way_out() {
    let mut runner = TestRunner::deterministic();
    let (mut done, mut unknown, mut read, mut counters) = (0, 0, 0, Counters::default());
    let (mut updated, mut kept, mut rested) = (0, 0, 0);
    let (mut expired, mut timed) = (0, 0);
    let mut transacted = (0, 0, 0);
    let (mut without_copy, mut repaired, mut moved, mut surplus, mut let_go) = (0, 0, 0, 0, 0);
    for number in 0..250 {
        let memory = memory().new_tree(&mut runner).unwrap().current();
        let actions = prop::collection::vec(action(), 100..200).new_tree(&mut runner).unwrap().current();
        let placement = if number % 2 == 0 { Placement::Random } else { Placement::Hash };
        let mut world = World::new(placement, 1, &memory);
        for action in &actions {
            world.act(action);
        }
        world.finish();
        let_go += world.let_go;
        (moved, surplus) = (moved + world.moved.keys, surplus + world.moved.surplus);
        done += world.acknowledged;
        unknown += world.unknown;
        read += world.read;
        (updated, kept, rested) = (updated + world.updated.0, kept + world.updated.1, rested + world.rested);
        (expired, timed) = (expired + world.expired.0, timed + world.expired.1);
        let (written, kept, changed) = world.transacted;
        transacted = (transacted.0 + written, transacted.1 + kept, transacted.2 + changed);
        without_copy += world.without_copy;
        repaired += world.repaired;
        let counted = world.counters();
        counters.log_reads += counted.log_reads;
        counters.asked_all += counted.asked_all;
        counters.read_retries += counted.read_retries;
        counters.substitutions += counted.substitutions;
        counters.hedges += counted.hedges;
        counters.hedges_won += counted.hedges_won;
    }
    println!("writes {done} unknown {unknown} without copy {without_copy} repaired {repaired} reads {read} {counters:?}");
    assert!(updated > 300 && kept > 100 && rested > 3, "updates {updated} kept {kept} rested {rested}");
    assert!(expired > 50 && timed > 200, "{timed} values with a time, {expired} keys expired");
    let (written, kept_all, changed) = transacted;
    assert!(written > 100 && kept_all > 30 && changed > 10, "transactions: {transacted:?}");
    assert!(repaired > 30, "{repaired} keys repaired");
    assert!(let_go > 5, "{let_go} slaves drained");
    assert!(moved > 5 && surplus > 2, "{moved} keys moved, {surplus} copies too many");
    assert!(without_copy > 0, "room never left with its slave");
    assert!(done > 300 && unknown > 5 && read > 500, "writes {done} unknown {unknown} reads {read}");
    let Counters { log_reads, asked_all, read_retries, substitutions, .. } = counters;
    assert!(counters.hedges > 20 && counters.hedges_won > 5, "{counters:?}");
    assert!(log_reads > 20 && asked_all > 3 && read_retries > 20 && substitutions > 20, "{counters:?}");
}

/// An event of a slave while it reports.
#[derive(Clone, Debug)]
enum Step {
    Write { key: u16, seq: u64, bytes: u8 },
    Drop { key: u16, seq: u64 },
    Next,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..3000u16;
    prop_oneof![
        2 => (key.clone(), 1..5u64, any::<u8>()).prop_map(|(key, seq, bytes)| Step::Write { key, seq, bytes }),
        4 => (key, 1..5u64).prop_map(|(key, seq)| Step::Drop { key, seq }),
        1 => Just(Step::Next),
    ]
}

/// A master reigns, and gives the slave a place.
fn announce(slave: &mut Slave, link: LinkId, effects: &mut Vec<Effect>) {
    let reign = Reign::new(1, 1);
    slave.step(Event::Announced { link, reign, seq: Seq(1), durable: true }, effects);
    slave.step(Event::Admitted { link, reign }, effects);
}

/// What is done to one of a few keys.
#[derive(Clone, Copy, Debug)]
enum Touch {
    Write { key: u16, bytes: usize, fill: u8 },
    Read { key: u16 },
    Drop { key: u16 },
}

fn touch() -> impl Strategy<Value = Touch> {
    let key = || 0..3u16;
    let bytes = prop_oneof![Just(10), Just(LONG_BYTES - 1), Just(LONG_BYTES), Just(LONG_BYTES + 7)];
    prop_oneof![
        3 => (key(), bytes, any::<u8>()).prop_map(|(key, bytes, fill)| Touch::Write { key, bytes, fill }),
        5 => key().prop_map(|key| Touch::Read { key }),
        1 => key().prop_map(|key| Touch::Drop { key }),
    ]
}

/// The checksum of a value of so many bytes is kept.
const LONG_BYTES: usize = 32 * 1024;

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn a_long_value_comes_with_its_checksum_whatever_was_held_before(
        touches in prop::collection::vec(touch(), 0..60),
    ) {
        let (link, reign) = (LinkId(1), ReignId(1));
        let mut slave = Slave::new(None, 7);
        let mut held: BTreeMap<u16, Bytes> = BTreeMap::new();
        let mut effects = Vec::new();
        slave.step(Event::LinkUp { link }, &mut effects);
        announce(&mut slave, link, &mut effects);
        for (number, touch) in touches.into_iter().enumerate() {
            let version = Version::new(1, 2 + number as u64);
            effects.clear();
            match touch {
                Touch::Write { key: number, bytes, fill } => {
                    let value = Bytes::from(vec![fill; bytes]);
                    held.insert(number, value.clone());
                    slave.step(Event::Write { link, version, reign, key: key(number), value }, &mut effects);
                }
                Touch::Drop { key: number } => {
                    held.remove(&number);
                    slave.step(Event::Drop { link, version, reign, key: key(number) }, &mut effects);
                }
                Touch::Read { key: number } => {
                    let version = Version::new(1, 1);
                    slave.step(Event::Read { link, tag: 1, version, reign, key: key(number) }, &mut effects);
                    let found = match effects.pop() {
                        Some(Effect::Value { value, checksum, .. }) => Some((value, checksum)),
                        _ => None,
                    };
                    let sum = |value: &Bytes| (value.len() >= LONG_BYTES).then(|| crc32c::crc32c(value));
                    prop_assert_eq!(found, held.get(&number).map(|value| (value.clone(), sum(value))));
                }
            }
        }
    }
}

/// Keys so long, and so many, that both limits split a report into several parts.
fn key(number: u16) -> Bytes {
    Bytes::from(format!("{number:0>200}"))
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn a_report_in_parts_misses_no_key_whatever_is_dropped_meanwhile(
        keys in 1..3000u16,
        memory_max in prop::option::weighted(0.3, 100_000..900_000u64),
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let link = LinkId(1);
        let mut slave = Slave::new(memory_max, 7);
        let mut model: BTreeMap<Bytes, (Version, usize)> = BTreeMap::new();
        let mut effects = Vec::new();
        slave.step(Event::LinkUp { link }, &mut effects);
        announce(&mut slave, link, &mut effects);
        effects.clear();
        let write = |slave: &mut Slave, model: &mut BTreeMap<Bytes, (Version, usize)>, number, seq, bytes| {
            let mut effects = Vec::new();
            let (key, version) = (key(number), Version::new(1, seq));
            let value = Bytes::from(vec![b'v'; bytes]);
            slave.step(Event::Write { link, version, reign: ReignId(1), key: key.clone(), value }, &mut effects);
            let refused = effects.iter().any(|effect| matches!(effect, Effect::Full { .. }));
            if !refused && model.get(&key).is_none_or(|(held, _)| *held < version) {
                model.insert(key, (version, bytes));
            }
        };
        for number in 0..keys {
            write(&mut slave, &mut model, number, 1, 3);
        }
        // Announced anew, the slave reports what it holds: the first part at once.
        announce(&mut slave, link, &mut effects);
        // What was held all the time must be in the report.
        let mut untouched: BTreeMap<Bytes, Version> = model.iter().map(|(k, (v, _))| (k.clone(), *v)).collect();
        let mut reported: BTreeSet<(Bytes, Version)> = BTreeSet::new();
        let mut last = false;
        let mut parts = 0;
        let mut steps = steps.into_iter();
        loop {
            for effect in effects.drain(..) {
                if let Effect::Holdings { entries, last: end, .. } = effect {
                    prop_assert!(!last, "a part after the last one");
                    prop_assert!(entries.len() <= 1024 && (end || !entries.is_empty()));
                    reported.extend(entries.into_iter().map(|(key, stamp)| (key, stamp.version)));
                    last = end;
                    parts += 1;
                }
            }
            match steps.next() {
                _ if last => break,
                Some(Step::Write { key: number, seq, bytes }) => {
                    write(&mut slave, &mut model, number, seq, usize::from(bytes));
                    if model.get(&key(number)).map(|(v, _)| v) != untouched.get(&key(number)) {
                        untouched.remove(&key(number));
                    }
                }
                Some(Step::Drop { key: number, seq }) => {
                    let (key, version) = (key(number), Version::new(1, seq));
                    slave.step(Event::Drop { link, version, reign: ReignId(1), key: key.clone() }, &mut effects);
                    if model.get(&key).is_some_and(|(held, _)| *held <= version) {
                        model.remove(&key);
                        untouched.remove(&key);
                    }
                }
                Some(Step::Next) | None => slave.step(Event::HoldingsNext { link }, &mut effects),
            }
        }
        for (key, version) in untouched {
            prop_assert!(reported.contains(&(key, version)), "held all the time and not reported");
        }
        prop_assert!(parts >= 1);
        let bytes: usize = model.iter().map(|(key, (_, bytes))| key.len() + bytes + 104).sum();
        prop_assert_eq!(slave.memory_bytes(), bytes as u64);
        prop_assert_eq!(slave.len(), model.len());
        prop_assert!(slave.memory_bytes() <= memory_max.unwrap_or(u64::MAX));
    }
}
