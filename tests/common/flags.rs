//! Checks of the errors for wrong flags: one line that names the flag, and exit code 2.

use super::{millis, seconds};
use std::io::Read as _;
use std::process::{Command, ExitStatus, Stdio};

/// What a flag refuses.
pub(crate) enum Refuses {
    /// These values, among others.
    These(&'static [&'static str]),
    /// Nothing: it takes any text.
    Nothing,
    /// It takes no value; its variable takes words for yes and no.
    AnythingButYesAndNo,
}

use Refuses::{AnythingButYesAndNo, Nothing, These};

/// Each flag of a program, in the order of its help, and what it refuses.
pub(crate) type Flags = &'static [(&'static str, Refuses)];

/// A duration that is a text, and above the least one.
pub(crate) const TOO_SHORT: Refuses = These(&["banana", "0s", "9ms"]);
/// A length that is from 1 B to 1 GiB.
pub(crate) const NO_VALUE_MAX: Refuses = These(&["0", "1025MiB", "18446744073709551615", "many"]);
pub(crate) const NO_NUMBER: Refuses = These(&["0", "-1", "several"]);
pub(crate) const NO_BYTES: Refuses = These(&["0", "several"]);
pub(crate) const NO_DURATION: Refuses = These(&["soon"]);
pub(crate) const NO_LEVEL: Refuses = These(&["loud"]);

/// Gives each flag of a program, and its variable, the values that it refuses. Checks that the error is one line with the
/// flag, the variable if that was set, and a pointer to the help, and that the exit code is 2.
///
/// # Panics
/// When it is not, or `flags` are not those of the program's help.
pub(crate) fn bad_flags_are_named(program: &str, words: &[&str], flags: Flags) {
    let name = program.rsplit('/').next().expect("a name");
    let is_bad = |flag: &str, variable: Option<(&str, &str)>| {
        let mut command = without_variables(program);
        // The words of an operation end the list of flags.
        command.args((!flag.is_empty()).then_some(flag)).args(words).envs(variable);
        let (status, told) = fails(command);
        let line = one_line(&told);
        let case = format!("{name} {flag} {variable:?}: {told}");
        assert!(line.starts_with("error: ") && line.ends_with(&format!("; see {name} --help")), "{case}");
        assert!(!line.contains("Usage"), "what is wrong, and at most where to read more: {case}");
        assert_eq!(status.code(), Some(2), "{case}");
        line.to_owned()
    };
    assert!(is_bad("--no-such-flag", None).contains("--no-such-flag"), "{name}");
    let known = flags_and_variables(program);
    let listed: Vec<_> = flags.iter().map(|(flag, _)| *flag).collect();
    let shown: Vec<_> = known.iter().map(|(flag, _)| flag.as_str()).collect();
    assert_eq!(listed, shown, "the flags of {name}, and what each refuses");
    for ((flag, refuses), (_, variable)) in flags.iter().zip(&known) {
        let (as_flag, as_variable): (&[&str], &[&str]) = match refuses {
            These(values) => (values, values),
            Nothing => (&[], &[]),
            AnythingButYesAndNo => (&[], &["perhaps"]),
        };
        for value in as_flag {
            let line = is_bad(&format!("{flag}={value}"), None);
            assert!(line.contains(flag) && !line.contains("variable"), "{name} {flag} {value}: {line}");
        }
        let Some(variable) = variable else { continue };
        for value in as_variable {
            let line = is_bad("", Some((variable, value)));
            let both = line.contains(flag) && line.contains(&format!("environment variable {variable})"));
            assert!(both, "{name} {variable}={value}: {line}");
        }
    }
}

/// Checks that a program that starts a cluster validates its masters' flags before it starts anything.
///
/// # Panics
/// When it does not.
pub(crate) fn masters_flags_are_looked_at_first(program: &str) {
    for (flag, value) in [("--min-slaves", "0"), ("--fence", "gently"), ("--advertise", "nowhere")] {
        let mut command = without_variables(program);
        command.args(["--", flag, value]);
        let (status, told) = fails(command);
        let line = one_line(&told);
        assert!(line.contains(flag) && line.ends_with("; see dsm-master --help"), "{program} {flag}: {told}");
        assert_eq!(status.code(), Some(2), "{program} {flag}: {told}");
    }
}

/// Checks that a program says what is wrong with malformed addresses, on one line that names the flag, or the variable if
/// it has one.
///
/// # Panics
/// When it does not.
pub(crate) fn wrong_addresses_are_named(program: &str, words: &[&str], flag: &str, variable: &str) {
    for (typed, why) in [
        ("localhost", "it names no port"),
        ("::1:12345", "an IPv6 address must be in brackets"),
        ("redis://localhost:1", "it is a URL"),
        ("127.0.0.300:1", "it is no IPv4 address"),
        (":12345", "it names no host"),
    ] {
        let mut command = Command::new(program);
        command.args([flag, typed]).args(words);
        let (status, told) = fails(command);
        assert!(told.contains(flag) && told.contains(typed) && told.contains(why), "{program}: {told}");
        one_line(&told);
        assert_eq!(status.code(), Some(2), "{program} {flag} {typed}");
        if !variable.is_empty() {
            let mut command = Command::new(program);
            command.env(variable, typed).args(words);
            let (status, told) = fails(command);
            assert!(
                told.contains(flag) && told.contains(variable) && told.contains(why),
                "{program}: {told}"
            );
            assert_eq!(status.code(), Some(2), "{program} {variable}={typed}");
        }
    }
}

/// Runs a program that is expected to end by itself; gives its status and its standard error.
///
/// # Panics
/// When it does not end, or succeeds.
pub(crate) fn fails(mut command: Command) -> (ExitStatus, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = command
        .env("RUST_LOG", "error")
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary is built");
    let begun = std::time::Instant::now();
    let status = loop {
        match child.try_wait().expect("a child can be asked") {
            Some(status) => break status,
            None if begun.elapsed() > seconds(10) => {
                child.kill().expect("a child can be killed");
                child.wait().expect("a child can be waited for");
                panic!("{command:?} does not end");
            }
            None => std::thread::sleep(millis(5)),
        }
    };
    let mut told = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut told).expect("text");
    assert!(!status.success(), "{command:?} ends with {status}");
    assert!(status.code().is_some(), "{command:?} ends in order: {status}");
    assert!(!told.contains("panicked"), "{told}");
    (status, told)
}

/// The only line of a text.
///
/// # Panics
/// When there are more, or none.
pub(crate) fn one_line(told: &str) -> &str {
    let lines: Vec<&str> = told.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one clear line, not:\n{told}");
    lines[0]
}

fn without_variables(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("DSM_")) {
        command.env_remove(name);
    }
    command
}

/// The flags of a program and the variable of each, as its help has them.
fn flags_and_variables(program: &str) -> Vec<(String, Option<String>)> {
    let output = without_variables(program).arg("--help").output().expect("the binary is built");
    let help = String::from_utf8(output.stdout).expect("text");
    let mut found: Vec<(String, String)> = Vec::new();
    for line in help.lines() {
        // Help texts are indented further.
        match line.strip_prefix("      --") {
            Some(rest) => {
                let name = rest.split([' ', '[', '=']).next().expect("a first part");
                found.push((format!("--{name}"), rest.to_owned()));
            }
            None => {
                if let Some((_, text)) = found.last_mut() {
                    text.push(' ');
                    text.push_str(line.trim());
                }
            }
        }
    }
    let variable = |text: &str| Some(text.split_once("[env: ")?.1.split_once('=')?.0.to_owned());
    found.into_iter().map(|(flag, text)| (flag, variable(&text))).collect()
}
