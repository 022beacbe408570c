//! Checks that the tables of flags in `docs/OPERATIONS.md` are those of `--help`. `UPDATE_GOLDENFILES=1` writes them
//! anew.

use std::fmt::Write as _;
use std::process::Command;

/// The headings of the document, each with the programs whose flags are below it.
const TABLES: [(&str, &[&str]); 4] = [
    (
        "### `dsm-master` and `dsm-backup-master`",
        &[env!("CARGO_BIN_EXE_dsm-master"), env!("CARGO_BIN_EXE_dsm-backup-master")],
    ),
    ("### `dsm-slave`", &[env!("CARGO_BIN_EXE_dsm-slave")]),
    ("### `dsm-client`", &[env!("CARGO_BIN_EXE_dsm-client")]),
    ("### `dsm-cluster`", &[env!("CARGO_BIN_EXE_dsm-cluster")]),
];

/// Flags of all programs, which the document describes once.
const COMMON: [&str; 3] = ["--log-level", "-h", "-V"];

const HEAD: &str = "| flag | variable | default | |\n|---|---|---|---|\n";

/// One flag of a help text.
#[derive(Default)]
struct Flag {
    name: String,
    variable: String,
    default: String,
    text: String,
}

/// The lines of a help text below `Options:`, until the next heading.
fn options(help: &str) -> impl Iterator<Item = &str> {
    let below = help.lines().skip_while(|line| *line != "Options:").skip(1);
    below.take_while(|line| line.is_empty() || line.starts_with(' '))
}

/// The flags of a program, in their order.
fn flags(program: &str) -> Vec<Flag> {
    let help = Command::new(program).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut flags: Vec<Flag> = Vec::new();
    for line in options(&help) {
        let words = line.trim();
        let indent = line.len() - line.trim_start().len();
        if words.starts_with('-') && indent < 10 {
            flags.push(Flag { name: words.replace(['<', '>'], ""), ..Flag::default() });
            continue;
        }
        let Some(flag) = flags.last_mut() else { continue };
        let marked = |mark: &str| words.strip_prefix(mark).and_then(|rest| rest.strip_suffix(']'));
        if let Some(variable) = marked("[env: ") {
            flag.variable = variable.trim_end_matches('=').to_owned();
        } else if let Some(default) = marked("[default: ") {
            flag.default = format!("`{}`", default.trim_matches('"'));
        } else if words == "Possible values:" {
            flag.text.push(':');
        } else if let Some((value, meaning)) = words.strip_prefix("- ").and_then(|rest| rest.split_once(": "))
        {
            let separator = if flag.text.ends_with(':') { " " } else { "; " };
            let mut meaning = meaning.trim_start().to_owned();
            // There a sentence, here a part of one.
            meaning[..1].make_ascii_lowercase();
            write!(flag.text, "{separator}`{value}` {meaning}").unwrap();
        } else if !words.is_empty() {
            let separator = if flag.text.is_empty() { "" } else { " " };
            write!(flag.text, "{separator}{words}").unwrap();
        }
    }
    // A default that is not a value is in the text.
    for flag in &mut flags {
        let Some((text, rest)) = flag.text.split_once(" [default: ") else { continue };
        let (default, rest) = rest.split_once(']').unwrap();
        (flag.default, flag.text) = (default.to_owned(), format!("{text}{rest}"));
    }
    flags.retain(|flag| !COMMON.iter().any(|common| flag.name.starts_with(common)));
    flags
}

fn table(program: &str) -> String {
    let mut table = HEAD.to_owned();
    for Flag { name, variable, default, text } in flags(program) {
        writeln!(table, "| `{name}` | `{variable}` | {default} | {text} |").unwrap();
    }
    table
}

#[test]
fn the_flags_in_the_document_are_those_of_the_programs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md");
    let mut document = std::fs::read_to_string(path).unwrap();
    let renews = std::env::var_os("UPDATE_GOLDENFILES").is_some();
    for (heading, programs) in TABLES {
        for program in programs {
            let section = document.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
            let begin = section + document[section..].find("\n|").unwrap() + 1;
            let end = begin + document[begin..].find("\n\n").unwrap() + 1;
            let wanted = table(program);
            assert!(wanted.lines().count() > 5, "{program} has hardly a flag: {wanted}");
            if renews {
                document.replace_range(begin..end, &wanted);
            } else {
                assert_eq!(&document[begin..end], wanted, "{heading}: see {}", file!());
            }
        }
    }
    if renews {
        std::fs::write(path, document).unwrap();
    }
}
