//! The words of a command line: spellings that clap does not accept, and the errors for wrong words.

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command};
use std::ffi::{OsStr, OsString};

/// Adds the second dash to long flags with one dash. The words of an operation, and words after `--`, are not changed.
pub fn two_dashes(command: &Command, words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let find = |name: &str| {
        command.get_arguments().find(|arg| {
            arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|names| names.contains(&name))
        })
    };
    let has_operation = command.get_arguments().any(Arg::is_trailing_var_arg_set);
    let (mut over, mut is_value) = (false, false);
    let words = words.into_iter().enumerate().map(|(place, word)| {
        // The first word is the program's name.
        if place == 0 || over || std::mem::take(&mut is_value) {
            return word;
        }
        over = word == "--";
        let Some(name) = word.to_str().and_then(|text| text.strip_prefix('-')).filter(|_| !over) else {
            over |= has_operation;
            return word;
        };
        let has_two = name.starts_with('-');
        let name = name.strip_prefix('-').unwrap_or(name);
        let (flag, value) = name.split_once('=').map_or((name, None), |(flag, value)| (flag, Some(value)));
        let arg = find(flag);
        is_value = value.is_none()
            && arg.is_some_and(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set());
        let is_long = name.len() > 1 && (arg.is_some() || ["help", "version"].contains(&flag));
        if has_two || !is_long {
            word
        } else {
            OsString::from(format!("--{name}"))
        }
    });
    words.collect()
}

/// Whether a variable's value is what Kubernetes and container links set for a service that bears the program's name:
/// `DSM_PORT=tcp://10.0.0.1:12345`.
pub(crate) fn is_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// An error of a command line on one line, with a pointer to the help.
pub(crate) fn one_line(error: &clap::Error, command: &Command, words: &[OsString]) -> String {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let mut line = first.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    if let Some(variable) = variable_of(error, command, words) {
        line.push_str(&format!(" (it is from the environment variable {variable})"));
    }
    let tips = paragraphs.flat_map(str::lines).map(str::trim).filter(|line| line.starts_with("tip:"));
    // The hint that words may follow `--` does not help after a mistyped flag.
    for tip in tips.filter(|tip| !tip.contains(" as a value")) {
        line.push_str("; ");
        line.push_str(tip);
    }
    format!("{line}; {}", see_help(command))
}

/// The same for a command line that clap has accepted: `what` is wrong with it.
pub(crate) fn refused(what: &str, command: &Command, words: &[OsString]) -> String {
    format!("{}; {}", with_variables(what, command, words), see_help(command))
}

fn see_help(command: &Command) -> String {
    format!("see {} --help", command.get_name())
}

/// Adds to a text that names flags which of them were set by a variable, as far as the words of the command line do not
/// set them.
pub(crate) fn with_variables(text: &str, command: &Command, words: &[OsString]) -> String {
    let is_name = |letter: char| letter.is_ascii_lowercase() || letter == '-';
    let flags = text.split(|letter| !is_name(letter)).filter(|word| word.starts_with("--") && word.len() > 2);
    let mut told = text.to_owned();
    let mut seen = Vec::new();
    for flag in flags {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(&flag[2..]));
        let Some(variable) = arg.and_then(Arg::get_env).and_then(OsStr::to_str) else { continue };
        if std::env::var_os(variable).is_some() && !is_given(flag, words) && !seen.contains(&flag) {
            seen.push(flag);
            told.push_str(&format!(" ({flag} is from the environment variable {variable})"));
        }
    }
    told
}

fn is_given(long: &str, words: &[OsString]) -> bool {
    let with_value = format!("{long}=");
    words.iter().any(|word| word.to_str().is_some_and(|word| word == long || word.starts_with(&with_value)))
}

/// The variable from which the refused value came, if it came from one.
fn variable_of(error: &clap::Error, command: &Command, words: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    let mut command = command.clone();
    // Before that, arguments cannot be displayed.
    command.build();
    let arg = command.get_arguments().find(|arg| arg.to_string() == *shown)?;
    let variable = arg.get_env()?.to_str()?.to_owned();
    let set = std::env::var_os(&variable).is_some();
    (set && !is_given(&format!("--{}", arg.get_long()?), words)).then_some(variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_two(command: &Command, words: &[&str]) -> Vec<String> {
        let words = std::iter::once("program").chain(words.iter().copied()).map(OsString::from);
        two_dashes(command, words).into_iter().skip(1).map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn long_flags_with_one_dash_get_their_second_one() {
        let command = Command::new("program")
            .arg(Arg::new("slaves").long("slaves").alias("slave-count"))
            .arg(Arg::new("id").long("id"))
            .arg(Arg::new("rest").last(true).num_args(0..));
        for (typed, meant) in [
            (&["-slaves", "5"][..], &["--slaves", "5"][..]),
            (
                &["-slaves=5", "--slaves=6", "-slave-count", "7"],
                &["--slaves=5", "--slaves=6", "--slave-count", "7"],
            ),
            (&["-help", "-h", "-5", "-frob"], &["--help", "-h", "-5", "-frob"]),
            (&["--id", "-slaves"], &["--id", "-slaves"]),
            (&["--", "-slaves"], &["--", "-slaves"]),
        ] {
            assert_eq!(with_two(&command, typed), meant, "{typed:?}");
        }
    }

    #[test]
    fn an_error_names_the_variables_that_have_set_its_flags() {
        // A variable that is always set.
        let wait = Arg::new("wait").long("wait").env("PATH");
        let command = Command::new("program").arg(wait).arg(Arg::new("path").long("path"));
        let told = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            refused("--wait and --path: --wait is 0", &command, &words)
        };
        let by_variable =
            "--wait and --path: --wait is 0 (--wait is from the environment variable PATH); see program --help";
        assert_eq!(told(&["program", "--path", "x"]), by_variable);
        assert_eq!(told(&["program", "--wait=0"]), "--wait and --path: --wait is 0; see program --help");
    }

    #[test]
    fn the_words_of_an_operation_stay_as_they_are() {
        let command = Command::new("program")
            .arg(Arg::new("masters").long("masters"))
            .arg(Arg::new("operation").trailing_var_arg(true).allow_hyphen_values(true).num_args(0..));
        let typed = ["-masters", "a:1", "WRITE", "-masters", "-help"];
        assert_eq!(with_two(&command, &typed), ["--masters", "a:1", "WRITE", "-masters", "-help"]);
    }
}
