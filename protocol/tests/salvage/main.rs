//! Repairs from slaves against a world that knows everything: logs that were copied, cut and served apart, slaves that had places
//! in several of them, masters and slaves that are lost in between, and repairs that are killed at any moment.
//!
//! The world keeps every record that was ever written with the one before it, so it knows which of two copies is newer, and whether
//! one log may know that. Slaves are real slave machines; the log is real text. `DSM_SALVAGE_SEED=n` runs one seed.
#![allow(clippy::unwrap_used)]

mod repair;
mod world;

use repair::Repairs;
use std::panic::{catch_unwind, AssertUnwindSafe};
use world::World;

/// How many worlds there are.
const SEEDS: u64 = 10_000;

#[test]
fn what_slaves_hold_comes_back_and_what_the_log_has_done_since_does_not_come_undone() {
    let chosen = std::env::var("DSM_SALVAGE_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds = chosen.map_or(0..SEEDS, |seed| seed..seed + 1);
    let (mut recovered, mut undecided, mut cut) = (0, 0, 0);
    for seed in seeds {
        let told = catch_unwind(AssertUnwindSafe(|| {
            let mut world = World::new(seed);
            world.happen();
            Repairs::begin(world).run()
        }));
        let Ok(told) = told else { panic!("seed {seed} failed: DSM_SALVAGE_SEED={seed} runs it again") };
        recovered += u64::from(told.recovered_keys > 0);
        undecided += u64::from(told.undecided_keys > 0);
        cut += u64::from(told.crashes > 0);
    }
    if chosen.is_none() {
        // Nothing is shown by worlds in which nothing happens.
        assert!(recovered > SEEDS / 4, "{recovered} of {SEEDS} put something back");
        assert!(undecided > SEEDS / 40, "{undecided} of {SEEDS} could not decide something");
        assert!(cut > SEEDS / 10, "{cut} of {SEEDS} were killed in between");
    }
}
