//! What all binaries share: logging to standard error, one line for what went wrong, exit codes.

// Each binary uses its part of this module.
#![allow(dead_code)]

use std::ffi::OsString;
use std::process::ExitCode;

/// The flags about logging, flattened into each binary's own.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct LogArgs {
    /// What to log to standard error: error, warn, info, debug (operations) or trace (frames), also per module
    /// as in `info,dsm::client=debug`; RUST_LOG works too [default: info; for dsm-client and dsm-cluster: warn]
    #[arg(long, env = "DSM_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
}

impl LogArgs {
    /// Starts logging; `default` is the level when the flag is not given.
    pub(crate) fn start(&self, default: &str) {
        let usual = std::env::var("RUST_LOG").ok();
        let filter = self.log_level.as_deref().or(usual.as_deref()).unwrap_or(default);
        // A second start, as in a role within another process, changes nothing.
        let _ = env_logger::Builder::new()
            .parse_filters(filter)
            .format_timestamp_millis()
            .target(env_logger::Target::Stderr)
            .try_init();
    }
}

/// Reads the words of a command line, the program's name first. What is wrong with it is told in one line; help and
/// version are printed as clap prints them. The exit code is for what the caller has nothing more to do.
pub(crate) fn parse<A: clap::Parser>(words: impl IntoIterator<Item = OsString>) -> Result<A, ExitCode> {
    A::try_parse_from(words).map_err(|error| {
        if error.use_stderr() {
            eprintln!("{}", first_paragraph(&error.render().to_string()));
        } else {
            // Whoever reads it may have enough of it.
            let _ = error.print();
        }
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
    })
}

/// The words in front of the first empty line, in one line: behind it stand tips and the usage.
fn first_paragraph(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.trim().is_empty());
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Turns the result of a binary into its exit code and prints the chain of an error once, in one line.
pub(crate) fn finish(result: anyhow::Result<ExitCode>, failure: u8) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            // The alternate form joins the causes by colons.
            let chain = format!("{error:#}").replace(['\n', '\r'], " ");
            eprintln!("error: {chain}");
            ExitCode::from(failure)
        }
    }
}
