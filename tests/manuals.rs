//! The manual pages and the completions of shells that packages have: they are made, the tools that read them find no fault,
//! and they know the flags. Needs the feature `manuals`: `cargo test --features manuals --test manuals`.

mod common;

use common::skip::{need_program, skip};
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The programs, and a flag or subcommand of each.
const PROGRAMS: [(&str, &str, &str); 6] = [
    ("dsm-master", env!("CARGO_BIN_EXE_dsm-master"), "--failover-timeout"),
    ("dsm-backup-master", env!("CARGO_BIN_EXE_dsm-backup-master"), "--failover-timeout"),
    ("dsm-slave", env!("CARGO_BIN_EXE_dsm-slave"), "--max-memory"),
    ("dsm-client", env!("CARGO_BIN_EXE_dsm-client"), "--request-timeout"),
    ("dsm-cluster", env!("CARGO_BIN_EXE_dsm-cluster"), "--backup-port"),
    ("dsm-log", env!("CARGO_BIN_EXE_dsm-log"), "--max-value"),
];

/// A directory in which each program has written its own.
fn written() -> TempDir {
    let share = tempfile::tempdir().expect("a directory");
    for (name, program, _) in PROGRAMS {
        let status = Command::new(program).arg("--write-manuals").arg(share.path()).status();
        assert!(status.expect("the binary is built").success(), "{name}");
    }
    share
}

/// Runs a command that must succeed and complain about nothing; gives its output.
fn runs(mut command: Command) -> String {
    let output = command.output().expect("it is there");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complaint.is_empty(), "{command:?}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What bash offers for the last of these words.
fn offered(completions: &Path, words: &[&str]) -> String {
    // What `complete` has named is called as bash does when TAB is pressed.
    let script = r#"
        . "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        of=$(complete -p "$1" | sed -E 's/.* -F ([^ ]+) .*/\1/')
        "$of" "$1" "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$((COMP_CWORD - 1))]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, "bash"]).arg(completions).args(words);
    runs(bash)
}

#[test]
fn completions_of_bash_are_read_and_know_the_flags() {
    let share = written();
    for (name, _, flag) in PROGRAMS {
        let file = share.path().join("bash-completion/completions").join(name);
        let mut bash = Command::new("bash");
        bash.arg("-n").arg(&file);
        runs(bash);
        let begun = &flag[..flag.len() - 3];
        assert_eq!(offered(&file, &[name, begun]).trim(), flag, "{name} {begun}");
    }
    let log = share.path().join("bash-completion/completions/dsm-log");
    assert_eq!(offered(&log, &["dsm-log", "back"]).trim(), "backup");
    assert_eq!(offered(&log, &["dsm-log", "backup", "--unt"]).trim(), "--until");
    for (shell, file) in
        [("zsh", "zsh/site-functions/_dsm-log"), ("fish", "fish/vendor_completions.d/dsm-log.fish")]
    {
        let file = share.path().join(file);
        let text = fs::read_to_string(&file).expect("it was written");
        assert!(text.contains("until"), "{shell}: {text}");
        // Beside bash these are tried where they are.
        if need_program(shell, &["--version"], shell).is_ok() {
            let mut check = Command::new(shell);
            check.arg("-n").arg(&file);
            runs(check);
        }
    }
}

#[test]
fn manual_pages_are_read_without_a_warning_and_know_the_flags() {
    if let Err(lack) = need_program("groff", &["--version"], "groff-base") {
        return skip(manual_pages_are_read_without_a_warning_and_know_the_flags, "", &lack);
    }
    let share = written();
    let page = |name: &str| {
        let mut groff = Command::new("groff");
        groff
            .args(["-man", "-Kutf8", "-Tutf8", "-ww", "-P-cbou"])
            .arg(share.path().join("man/man1").join(name));
        runs(groff)
    };
    for (name, program, flag) in PROGRAMS {
        let text = page(&format!("{name}.1"));
        assert!(text.contains("OPTIONS") && text.contains(flag), "{name}: {text}");
        let mut version = Command::new(program);
        version.arg("--version");
        assert!(text.contains(runs(version).trim().rsplit(' ').next().expect("a number")), "{name}: {text}");
    }
    assert!(page("dsm-log-restore.1").contains("--keep-cluster"));
}
