//! Checks `docs/SEMANTICS.md` against the code: each test that it names exists in the file that it names, so that no
//! promise refers to a test that was renamed or never written.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;

/// The folder of the transcripts; the document names them by folder and file.
const TRANSCRIPTS: &str = "protocol/src/testscripts";

/// The tests that a document names.
#[derive(Debug, Default)]
struct Links {
    /// Tests and transcripts that exist.
    found: usize,
    /// What is wrong with the others.
    wrong: Vec<String>,
}

/// The source of a file, or of all files of a folder.
fn source(path: &Path) -> Option<String> {
    if path.is_file() {
        return fs::read_to_string(path).ok();
    }
    let entries = fs::read_dir(path).ok()?;
    Some(entries.filter_map(|entry| source(&entry.unwrap().path())).collect())
}

/// Reads bullets, rows and paragraphs separately. In each, code that is a path gives the file of the tests that are named
/// after it.
fn links(root: &Path, document: &str) -> Links {
    let mut parts = vec![String::new()];
    for line in document.lines() {
        if line.is_empty() || line.starts_with(['*', '|']) {
            parts.push(String::new());
        }
        parts.last_mut().unwrap().extend([line, "\n"]);
    }
    let mut links = Links::default();
    for part in parts {
        let mut place: Option<(&str, String)> = None;
        for (index, text) in part.split('`').enumerate() {
            if index % 2 == 1 {
                code(root, text, &mut place, &mut links);
                continue;
            }
            for name in text.split(|c: char| !c.is_alphanumeric() && c != '_') {
                if !name.contains('_') || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
                    continue;
                }
                match &place {
                    Some((_, source)) if source.contains(&format!("fn {name}(")) => links.found += 1,
                    Some((path, _)) => links.wrong.push(format!("{path} has no {name}")),
                    None => links.wrong.push(format!("{name} is named before any file")),
                }
            }
        }
    }
    links
}

/// A path of this repository, a transcript, or something else.
fn code<'a>(root: &Path, text: &'a str, place: &mut Option<(&'a str, String)>, links: &mut Links) {
    let Some((top, _)) = text.split_once('/') else { return };
    if ["tests", "protocol", "actors", "bin"].contains(&top) {
        match source(&root.join(text)) {
            Some(source) => *place = Some((text, source)),
            None => links.wrong.push(format!("there is no {text}")),
        }
    } else if root.join(TRANSCRIPTS).join(top).is_dir() {
        match root.join(TRANSCRIPTS).join(text).is_file() {
            true => links.found += 1,
            false => links.wrong.push(format!("there is no transcript {text}")),
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_test_that_the_semantics_name_is_there() {
    let document = fs::read_to_string(root().join("docs/SEMANTICS.md")).unwrap();
    let links = links(root(), &document);
    assert!(links.wrong.is_empty(), "{:#?}", links.wrong);
    assert!(links.found > 100, "only {} names are recognised", links.found);
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let document = "* `tests/semantics.rs`: a_name_that_does_not_exist_is_found,\n  a_name_of_nobody\n\
                    * `tests/chaos.rs` (all of it, a_name_that_does_not_exist_is_found), `front/no_such_file`\n\
                    * a_name_that_does_not_exist_is_found, `tests/nothing.rs`\n\n\
                    `protocol/tests/model/`: a_handover_loses_nothing; `front/a_stopping_master_refuses`";
    let links = links(root(), document);
    assert_eq!(
        links.wrong,
        [
            "tests/semantics.rs has no a_name_of_nobody".to_owned(),
            "tests/chaos.rs has no a_name_that_does_not_exist_is_found".to_owned(),
            "there is no transcript front/no_such_file".to_owned(),
            "a_name_that_does_not_exist_is_found is named before any file".to_owned(),
            "there is no tests/nothing.rs".to_owned(),
        ]
    );
    assert_eq!(links.found, 3);
}
