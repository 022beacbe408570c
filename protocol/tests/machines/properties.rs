//! Properties of the machines under random drivers.

use crate::world::{Action, World};
use dsm_protocol::machine::master::Placement;
use proptest::prelude::*;

fn action() -> impl Strategy<Value = Action> {
    let session = any::<u8>();
    let key = any::<u8>();
    let keys = any::<(u8, u8)>();
    prop_oneof![
        10 => (session, key).prop_map(|(session, key)| Action::Get { session, key }),
        2 => (session, keys).prop_map(|(session, keys)| Action::GetMany { session, keys }),
        1 => (session, key).prop_map(|(session, key)| Action::Exists { session, key }),
        1 => session.prop_map(|session| Action::KeyCount { session }),
        10 => (session, key).prop_map(|(session, key)| Action::Put { session, key }),
        2 => (session, keys).prop_map(|(session, keys)| Action::PutMany { session, keys }),
        4 => (session, key).prop_map(|(session, key)| Action::Delete { session, key }),
        1 => (session, keys).prop_map(|(session, keys)| Action::DeleteMany { session, keys }),
        10 => (1..5u8).prop_map(|count| Action::Log { count }),
        1 => Just(Action::LogRefuses),
        4 => (any::<u8>(), prop::bool::weighted(0.1)).prop_map(|(which, fails)| Action::LogRead { which, fails }),
        14 => (any::<u8>(), 1..6u8).prop_map(|(link, count)| Action::ToSlave { link, count }),
        14 => (any::<u8>(), 1..6u8).prop_map(|(link, count)| Action::ToMaster { link, count }),
        3 => (any::<u8>(), 1..6u8).prop_map(|(link, count)| Action::Zombie { link, count }),
        3 => any::<u8>().prop_map(|node| Action::Connect { node }),
        2 => any::<u8>().prop_map(|node| Action::Lose { node }),
        1 => any::<u8>().prop_map(|node| Action::Kill { node }),
        1 => any::<u8>().prop_map(|link| Action::Ping { link }),
        3 => (1..300u16).prop_map(|ms| Action::Sleep { ms }),
        1 => any::<u8>().prop_map(|logged| Action::Crash { logged }),
        1 => Just(Action::Handover),
        1 => Just(Action::Raise),
        1 => Just(Action::Settle),
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
    fn whatever_happens_answers_are_true_and_the_directory_names_the_holders(
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
