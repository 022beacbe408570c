//! The master machine and slave machines behind links that deliver late or never: the world of the machines' tests,
//! driven by bytes. One order must explain all answers, and the directory must agree with the slaves at rest.

use super::Input;
use dsm_protocol::machine::master::Placement;

#[allow(dead_code, reason = "what only the other user of the world counts")]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#[path = "../../tests/machines/world.rs"]
mod world;

use world::{Action, World};

/// More would make single inputs slow without finding more.
const ACTIONS_MAX: usize = 400;

/// `PLACEMENT SEED SLAVES MEMORY*` and then actions.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let placement = if input.flag() { Placement::Random } else { Placement::Hash };
    let seed = u64::from(input.u8());
    let memory: Vec<_> = (0..1 + input.below(5))
        .map(|_| match input.u8() {
            small @ 0..=50 => Some(220 + 3 * u64::from(small)),
            _ => None,
        })
        .collect();
    let mut world = World::new(placement, seed, &memory);
    for _ in 0..ACTIONS_MAX {
        if input.is_empty() {
            break;
        }
        let action = action(&mut input);
        world.act(&action);
    }
    world.finish();
}

fn action(input: &mut Input<'_>) -> Action {
    let choice = input.u8();
    let (a, b, c) = match choice % 23 {
        // Without an argument.
        3 | 9 | 19..=22 => (0, 0, 0),
        _ => {
            let packed = input.u8();
            (packed & 7, packed >> 3 & 7, packed >> 6)
        }
    };
    match choice % 23 {
        0 => Action::Get { session: a, key: b },
        1 => Action::GetMany { session: a, keys: (b, c) },
        2 => Action::Exists { session: a, key: b },
        3 if c > 1 => Action::LookAtKeys { session: a, kind: b },
        3 => Action::KeyCount { session: 1 },
        4 | 5 => Action::Put { session: a, key: b },
        6 => Action::PutMany { session: a, keys: (b, c) },
        7 => Action::Delete { session: a, key: b },
        8 => Action::DeleteMany { session: a, keys: (b, c) },
        9 => Action::LogRefuses,
        10 => Action::Log { count: 1 + a },
        11 => Action::LogRead { which: a, fails: b == 0 },
        12 => Action::ToSlave { link: a, count: 1 + b },
        13 => Action::ToMaster { link: a, count: 1 + b },
        14 => Action::Zombie { link: a, count: 1 + b },
        15 => Action::Join { node: a },
        16 => match c {
            0 => Action::Kill { node: a },
            1 => Action::Lose { node: a },
            _ => Action::Connect { node: a },
        },
        17 => match c {
            0 => Action::Crash { logged: a },
            1 => Action::Ping { link: a },
            _ => Action::Sleep { ms: 1 + 40 * u16::from(a) },
        },
        18 => Action::Sleep { ms: 1 + u16::from(a) },
        19 => Action::Handover,
        _ => Action::Settle,
    }
}

/// Random drives of several lengths, and one where everything goes well.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut calm = vec![0, 1, 2, 255, 255, 255, 15, 0, 15, 1, 15, 2, 21];
    for key in 0..4 {
        calm.extend_from_slice(&[4, key << 3, 10, 1, 12, 0, 12, 1, 13, 0, 13, 1, 0, key << 3 | 1, 21]);
    }
    calm.extend_from_slice(&[19, 21, 0, 8, 7, 8, 21]);
    let drives = [100, 300, 600].into_iter().enumerate();
    drives.map(|(seed, length)| super::noise(seed as u64, length)).chain([calm]).collect()
}
