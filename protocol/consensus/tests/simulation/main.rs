//! Members in virtual time, on simulated disks and a simulated network, with faults drawn from a seed.
//!
//! Owns which seeds are run, and that each planted bug is found. `world.rs` has the world and `checks.rs` what must hold in it.

mod checks;
mod disk;
mod world;

use world::{run, Outcome};

/// How many seeds the quick test runs, and within how many each planted bug is found.
const SEEDS: u64 = 300;

/// Three members, and five in every fourth seed.
fn members(seed: u64) -> u64 {
    if seed % 4 == 3 {
        5
    } else {
        3
    }
}

fn clean(seeds: std::ops::Range<u64>) -> Outcome {
    let mut all = Outcome::default();
    for seed in seeds {
        let outcome = run(seed, members(seed));
        assert_eq!(outcome.wrong, Vec::<String>::new(), "seed {seed}");
        all.add(&outcome);
    }
    all
}

#[test]
fn three_hundred_seeds_break_nothing_and_meet_every_fault() {
    let all = clean(0..SEEDS);
    println!("consensus summary: {all:?}");
    assert!(all.acknowledged > 20 * SEEDS, "{all:?}");
    assert!(all.read > 20 * SEEDS, "{all:?}");
    assert!(all.elections > 2 * SEEDS, "{all:?}");
    for (what, count) in [
        ("refused", all.refused),
        ("deposed", all.deposed),
        ("fetched", all.fetched),
        ("cut", all.cuts),
        ("torn", all.torn),
        ("compacted", all.compacted),
        ("installed", all.installed),
        ("dropped", all.dropped),
        ("transferred", all.transferred),
        ("not transferred", all.not_transferred),
        ("hung", all.hung),
        ("yielded", all.yielded),
        ("changed", all.changed),
        ("unchanged", all.unchanged),
        ("wiped", all.wiped),
        ("refused for a lost disk", all.disks_refused),
        ("left", all.left),
        ("disturbed in a stream", all.disturbed),
        ("hung while it got a file", all.hung_receivers),
        ("begun with one file", all.one_file),
        ("forced to a new cluster", all.forced),
        ("there again after that", all.returned),
        ("begun and not written", all.drafts),
        ("left alone", all.alone),
        ("known for good", all.settled),
    ] {
        assert!(count > 10, "hardly anything was {what}: {all:?}");
    }
}

#[test]
#[ignore = "many seeds: minutes"]
fn many_seeds_break_nothing() {
    let seeds = std::env::var("SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3000);
    println!("consensus summary: {:?}", clean(0..seeds));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut different = std::collections::BTreeSet::new();
    for seed in 0..8 {
        let (first, second) = (run(seed, members(seed)), run(seed, members(seed)));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        different.insert(first.trace);
    }
    assert_eq!(different.len(), 8);
}

#[cfg(feature = "mutants")]
#[test]
fn each_planted_bug_is_found() {
    use dsm_consensus::mutant::{plant, ConsensusMutant};
    let mut missed = Vec::new();
    for bug in ConsensusMutant::ALL {
        plant(Some(bug));
        let found = (0..SEEDS).find_map(|seed| {
            // A broken invariant of the engine or the machine is a find, too.
            let outcome = std::panic::catch_unwind(|| run(seed, members(seed)));
            let wrong =
                outcome.map_or(Some("it panicked".to_owned()), |outcome| outcome.wrong.into_iter().next());
            wrong.map(|wrong| (seed, wrong))
        });
        plant(None);
        println!("{bug:?}: {found:?}");
        if found.is_none() {
            missed.push(bug);
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}
