//! What all binaries share: flags and their variables, logging to standard error, one-line errors, exit codes.

pub use crate::error_output::{flush, lines_lost, tell};
pub use crate::words::two_dashes;

use crate::{error_output, levels, words};
use clap::builder::{BoolishValueParser, Resettable};
use clap::{Arg, ArgAction};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::SystemTime;

/// The flags about logging, flattened into each binary's own.
#[derive(clap::Args, Clone, Debug)]
pub struct LogArgs {
    /// What to log to standard error: error, warn, info, debug (operations) or trace (frames); also per module, as in
    /// `info,dsm::client=debug`; without the flag, RUST_LOG is read [default: info for the roles, warn for other programs]
    #[arg(long, env = "DSM_LOG_LEVEL", value_name = "LEVEL", value_parser = levels::parse)]
    log_level: Option<String>,
}

impl LogArgs {
    /// Starts logging; `default` is the level when the flag is not given.
    pub fn start(&self, default: &str) {
        let usual = std::env::var("RUST_LOG").ok().filter(|filter| !filter.trim().is_empty());
        // RUST_LOG is for all programs: a filter for other programs must not silence this one.
        let (usual, refused) = match usual.as_deref().map(levels::parse) {
            Some(Ok(filter)) => (Some(filter), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        let filter = self.log_level.as_deref().or(usual.as_deref()).unwrap_or(default);
        let plain = !io::stderr().is_terminal()
            || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let style = if plain { env_logger::WriteStyle::Never } else { env_logger::WriteStyle::Always };
        // A second start, as in a role within another process, changes nothing.
        let _ = env_logger::Builder::new()
            .parse_filters(filter)
            .format(log_line)
            .write_style(style)
            .target(env_logger::Target::Pipe(Box::new(error_output::ErrorOutput)))
            .try_init();
        error_output::catch_panics();
        if let (Some(why), None) = (refused, &self.log_level) {
            log::warn!("RUST_LOG is ignored: {why}");
        }
    }
}

/// `[2026-11-21T07:13:49.834Z INFO  dsm::node] started`. The format of env_logger, but without its crate for the time, which
/// takes a tenth of this project's build time.
fn log_line(line: &mut env_logger::fmt::Formatter, record: &log::Record<'_>) -> io::Result<()> {
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    let (level, style) = (record.level(), line.default_level_style(record.level()));
    writeln!(line, "[{now} {style}{level:<5}{style:#} {}] {}", record.target(), record.args())
}

/// From now on SIGXFSZ does not end this process: a write beyond the limit on the file size (`ulimit -f`) is an error like
/// that of a full disk. The environment of a role does this too.
pub fn outlive_file_limit() {
    let kind = tokio::signal::unix::SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // The handler stays when its runtime is gone. Nothing needs to receive the signal.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let caught = runtime.and_then(|runtime| {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(kind)
    });
    if let Err(error) = caught {
        tell(&format!("a file that outgrows its limit will end this program: {error}"));
    }
}

/// A stream of SIGHUP; `None` if this program was started with SIGHUP ignored, as nohup does.
///
/// # Errors
/// When the signal cannot be caught.
pub fn hangup() -> io::Result<Option<tokio::signal::unix::Signal>> {
    if is_hangup_ignored() {
        return Ok(None);
    }
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).map(Some)
}

/// Whether this program ignores SIGHUP by now, as one that was started with nohup does.
pub fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // The lowest bit is signal 1.
    ignored & 1 != 0
}

/// Waits for the next SIGHUP.
pub async fn hung_up(hangup: &mut Option<tokio::signal::unix::Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// What a command line is read into.
pub trait Flags: clap::Parser {
    /// Checks what clap cannot check: flags that are out of bounds or contradict each other.
    ///
    /// # Errors
    /// What is wrong, naming the flags as they are typed.
    fn validate(&self) -> Result<(), String>;
}

/// The exit code of a program whose flags are wrong.
const EXIT_USAGE: u8 = 2;

/// Parses the words of a command line, the program's name first. An error, found by clap or by [`Flags::validate`], is
/// printed on one line; help and version are printed as clap prints them. In these cases the caller must end with the
/// exit code.
pub fn parse<A: Flags>(words: impl IntoIterator<Item = OsString>) -> Result<A, ExitCode> {
    let command = A::command().mut_args(with_variable);
    let words = words::two_dashes(&command, words);
    #[cfg(feature = "manuals")]
    if let Some(written) = crate::manuals::written(&A::command(), &words) {
        return Err(finish(written, 1));
    }
    let parsed = command.clone().try_get_matches_from(&words);
    let args = parsed.and_then(|mut matches| A::from_arg_matches_mut(&mut matches)).map_err(|error| {
        if error.use_stderr() {
            let code = u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE);
            fail(&words::one_line(&error, &command, &words), code)
        } else {
            // The reader of the output may have closed it.
            let _ = error.print();
            ExitCode::SUCCESS
        }
    })?;
    match args.validate() {
        Ok(()) => Ok(args),
        Err(what) => Err(fail(&words::refused(&what, &command, &words), EXIT_USAGE)),
    }
}

/// Adds to a text that names flags of `A` which of them were set by a variable and not on the command line.
pub fn with_variables<A: clap::Parser>(text: &str, words: impl IntoIterator<Item = OsString>) -> String {
    let command = A::command().mut_args(with_variable);
    let words = words::two_dashes(&command, words);
    words::with_variables(text, &command, &words)
}

/// How a flag reads its variable. An empty variable counts as not set, and one that Kubernetes sets for a Service is
/// ignored. A flag without a value takes the usual words for yes and no.
fn with_variable(arg: Arg) -> Arg {
    let arg = match arg.get_action() {
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        _ => arg,
    };
    let value = arg.get_env().and_then(std::env::var_os);
    match value {
        Some(value) if value.is_empty() || words::is_service_link(&value.to_string_lossy()) => {
            arg.env(Resettable::Reset)
        }
        Some(_) | None => arg,
    }
}

/// Prints an error on one line, and gives its exit code.
pub fn fail(what: &str, code: u8) -> ExitCode {
    let what = what.replace(['\n', '\r'], " ");
    let begun = if what.starts_with("error: ") { "" } else { "error: " };
    tell(&format!("{begun}{what}"));
    ended(ExitCode::from(code))
}

/// Gives the program's last lines a moment to be written. Call this last.
pub fn ended(code: ExitCode) -> ExitCode {
    flush();
    code
}

/// Turns the result of a binary into its exit code, and prints the chain of an error once, on one line. A closed
/// standard output is not an error.
pub fn finish(result: anyhow::Result<ExitCode>, failure: u8) -> ExitCode {
    match result {
        Ok(code) => ended(code),
        Err(error) if is_broken_pipe(&error) => ended(ExitCode::SUCCESS),
        // The alternate form joins the causes by colons.
        Err(error) => fail(&format!("{error:#}"), failure),
    }
}

/// Whether the error means that standard output was closed by its reader.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
}
