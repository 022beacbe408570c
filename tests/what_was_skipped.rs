//! Runs last, because of its name and its package's. Prints what all tests of this `cargo test` have skipped, and checks that
//! a skip is reported, counted and, with `DSM_REQUIRE_ALL=1`, a failure.

mod common;

use common::skip::{forget_others, noted, skip, tell, Lack};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

/// The folders of the tests that may be skipped.
const DIRECTORIES: [&str; 2] = ["tests", "bin/harness/tests"];

/// The names of all these tests.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = |directory| std::fs::read_dir(root.join(directory)).expect("the tests are there");
    let mut names = BTreeSet::new();
    for entry in DIRECTORIES.into_iter().flat_map(files) {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(path).expect("a source");
            let functions = source.lines().filter_map(|line| line.strip_prefix("fn ")?.split_once('('));
            names.extend(functions.map(|(name, _)| name.to_string()));
        }
    }
    names
}

#[test]
fn the_number_of_skipped_tests_is_reported() {
    forget_others().expect("old notes can be removed");
    let lines = noted().expect("the notes can be read");
    let tests = tests();
    for line in &lines {
        let name = line.split([' ', ':']).nth(1).expect("a name");
        assert!(tests.contains(name), "no test has this name: {line}");
    }
    match lines.len() {
        0 => tell("SKIPPED in all: 0"),
        count => tell(&format!(
            "SKIPPED in all: {count}. CONTRIBUTING.md says what they need:\n  {}",
            lines.join("\n  ")
        )),
    }
}

#[test]
#[ignore = "is run by the test below"]
fn one_that_lacks_a_program() {
    let lack = Lack::Missing("no-such-program: not found".into());
    skip(one_that_lacks_a_program, "a part", &lack);
}

#[test]
#[ignore = "is run by the test below"]
fn one_that_the_machine_refuses() {
    skip(one_that_the_machine_refuses, "", &Lack::Refused("no such file system".into()));
}

#[test]
fn a_skip_is_reported_and_fails_if_all_is_required_and_possible() {
    let run = |name: &str, required: bool| -> Output {
        let mut command = Command::new(std::env::current_exe().expect("this test is a program"));
        // Output is captured as usual, but a skip must still be shown.
        command.args(["--ignored", "--exact", name]).env_remove("DSM_REQUIRE_ALL");
        if required {
            command.env("DSM_REQUIRE_ALL", "1");
        }
        command.output().expect("this program can be started")
    };
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = run("one_that_lacks_a_program", false);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(told(&output), "SKIPPED one_that_lacks_a_program (a part): no-such-program: not found\n");
    assert!(!run("one_that_lacks_a_program", true).status.success());
    for required in [false, true] {
        let output = run("one_that_the_machine_refuses", required);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(told(&output), "SKIPPED one_that_the_machine_refuses: no such file system\n");
    }
}
