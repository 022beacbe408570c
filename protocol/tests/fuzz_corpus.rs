//! Runs the bodies of the fuzz targets (`fuzz/bodies`) without a fuzzer: over every file of the corpus, over damaged
//! copies of them, and over random bytes. Damage and random bytes differ in each run. Their seed is printed with a
//! failure, and `DSM_FUZZ_SEED=n` uses it again. For each bug that is found a file is added to the corpus.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use bodies::{noise, Target, TARGETS};
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};

/// How often each file of the corpus is damaged, and how many random inputs each body gets.
const ROUNDS: u64 = 60;

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

/// The files of a target's corpus, in the order of their names.
fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// The seed of this run: random, or the one that was asked for.
fn seed() -> u64 {
    match std::env::var("DSM_FUZZ_SEED") {
        Ok(seed) => seed.parse().expect("DSM_FUZZ_SEED is a number"),
        // The keys of the standard library's hashes are the only source of randomness without a dependency.
        Err(_) => RandomState::new().build_hasher().finish(),
    }
}

/// Runs a body; if it panics, prints how to repeat it.
fn run(target: &Target, input: &[u8], what: &dyn Fn() -> String) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.body)(input))) {
        eprintln!("target {} with {}: {}", target.name, what(), input.escape_ascii());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn every_file_of_the_corpus_passes() {
    for target in TARGETS {
        let files = corpus(target);
        assert!(files.len() >= 3, "the corpus of {} is missing", target.name);
        for (path, input) in &files {
            run(target, input, &|| path.display().to_string());
        }
    }
}

#[test]
fn damaged_copies_of_the_corpus_pass() {
    let seed = seed();
    for target in TARGETS {
        for (path, input) in corpus(target) {
            for round in 0..ROUNDS {
                let mut damaged = input.clone();
                for step in noise(seed.wrapping_add(round), 8).chunks(4).filter(|_| !input.is_empty()) {
                    let length = damaged.len().max(1);
                    let at = usize::from(u16::from_le_bytes([step[0], step[1]])) % length;
                    match step[2] % 4 {
                        0 => damaged.truncate(at),
                        1 => damaged.insert(at, step[3]),
                        2 => damaged.extend_from_within(at..),
                        _ => damaged.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= step[3]),
                    }
                }
                run(target, &damaged, &|| {
                    format!("{} damaged, round {round} of DSM_FUZZ_SEED={seed}", path.display())
                });
            }
        }
    }
}

#[test]
fn random_bytes_pass() {
    let seed = seed();
    for target in TARGETS {
        for round in 0..10 * ROUNDS {
            let length = (round * round % 1201) as usize;
            let input = noise(seed.wrapping_add(1_000_000 + round), length);
            run(target, &input, &|| format!("noise {round} of {length} bytes, DSM_FUZZ_SEED={seed}"));
        }
    }
}

/// The path and the bytes of each seed of a target.
fn seeds(target: &Target) -> impl Iterator<Item = (PathBuf, Vec<u8>)> + '_ {
    let named = |(number, seed)| (folder(target).join(format!("seed-{number:02}")), seed);
    (target.seeds)().into_iter().enumerate().map(named)
}

#[test]
fn the_seeds_of_the_corpus_are_what_the_targets_write() {
    for target in TARGETS {
        let expected: Vec<_> = seeds(target).collect();
        let is_seed = |path: &Path| path.file_name().unwrap().to_string_lossy().starts_with("seed-");
        let found: Vec<_> = corpus(target).into_iter().filter(|(path, _)| is_seed(path)).collect();
        let same = found == expected;
        assert!(same, "{}: write the seeds anew, with --ignored seeds_are_written", folder(target).display());
    }
}

/// `cargo test -p dsm-protocol --test fuzz_corpus -- --ignored seeds_are_written`, when the formats have changed.
#[test]
#[ignore = "writes the seeds of the corpus anew"]
fn seeds_are_written() {
    for target in TARGETS {
        fs::create_dir_all(folder(target)).unwrap();
        for (path, seed) in seeds(target) {
            fs::write(path, seed).unwrap();
        }
    }
}
