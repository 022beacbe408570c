//! Checks the sources for the habits of this project that neither the compiler nor clippy checks: CONTRIBUTING.md,
//! "Habits".

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod crates;
mod imports;
mod names;
mod sockets;
mod sources;

use sources::{product, sources, Source};

/// The findings, one line each.
fn lines(wrong: &[String]) -> String {
    wrong.join("\n")
}

#[test]
fn each_file_says_what_it_is_for() {
    let silent = |source: &Source| !source.text.trim_start().starts_with("//!");
    let wrong: Vec<String> = sources().into_iter().filter(silent).map(|source| source.path).collect();
    assert!(wrong.is_empty(), "these files do not begin with a line of //!:\n{}", lines(&wrong));
}

#[test]
fn a_type_name_has_one_meaning() {
    let wrong = names::collisions(&product());
    assert!(wrong.is_empty(), "{}", lines(&wrong));
}

#[test]
fn imports_make_no_circle() {
    let wrong = imports::circles(&product());
    assert!(wrong.is_empty(), "{}", lines(&wrong));
}

#[test]
fn sockets_are_opened_in_one_place() {
    let wrong = sockets::strays(&product());
    assert!(wrong.is_empty(), "{}", lines(&wrong));
}

#[test]
fn the_crates_of_others_come_once() {
    let wrong = crates::doubles();
    assert!(wrong.is_empty(), "{}", lines(&wrong));
}

#[test]
fn the_licences_of_all_crates_are_allowed() {
    let wrong = crates::licences();
    assert!(wrong.is_empty(), "{}", lines(&wrong));
}
