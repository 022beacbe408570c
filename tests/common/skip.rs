//! Tests that cannot run here. Each is reported on standard error, even if a test's output is captured, and counted:
//! `tests/what_was_skipped.rs` runs last and prints the sum.
//!
//! With `DSM_REQUIRE_ALL=1`, which `.ci/run` sets, a test fails when it lacks something that could be installed.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::ErrorKind::NotFound;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a test cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Something that could be provided: a program, a library, the rights of root.
    Missing(String),
    /// Something that the kernel or the container lacks or forbids; no package provides it.
    Refused(String),
}

/// How many were skipped by this process.
static SKIPPED: AtomicU64 = AtomicU64::new(0);

/// Reports that `test`, or the `part` of it, is not run, and why. The test must then end.
///
/// # Panics
/// When `DSM_REQUIRE_ALL=1` is set and something is missing.
pub(crate) fn skip<T>(test: T, part: &str, lack: &Lack) {
    let part = if part.is_empty() { String::new() } else { format!(" ({part})") };
    let name = name_of(&test);
    let (why, may_be_so) = match lack {
        Lack::Missing(why) => (why, false),
        Lack::Refused(why) => (why, true),
    };
    let line = format!("SKIPPED {name}{part}: {}", why.replace('\n', "; "));
    if is_all_required() && !may_be_so {
        panic!("{line} (DSM_REQUIRE_ALL is set)");
    }
    SKIPPED.fetch_add(1, Ordering::Relaxed);
    tell(&line);
    if let Err(error) = note(&line) {
        tell(&format!("it will not be in the sum: {error}"));
    }
}

/// How often this process has reported a skip.
pub(crate) fn skipped() -> u64 {
    SKIPPED.load(Ordering::Relaxed)
}

/// Prints a line on standard error that is shown even if the test passes, unlike with `eprintln!`.
pub(crate) fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error is open");
}

/// Whether a test must fail when it lacks something that could be provided.
pub(crate) fn is_all_required() -> bool {
    std::env::var_os("DSM_REQUIRE_ALL").is_some_and(|value| value == "1")
}

/// Whether a process that is started here receives SIGHUP: under nohup it is ignored, by children too.
///
/// # Errors
/// That it is ignored.
pub(crate) fn hears_hangups() -> Result<(), Lack> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    match ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
        // The lowest bit is signal 1.
        Some(mask) if mask & 1 != 0 => Err(Lack::Refused("SIGHUP is ignored, as under nohup".to_owned())),
        Some(_) | None => Ok(()),
    }
}

/// Whether a program can be started; `arguments` make it print something and end.
///
/// # Errors
/// That it is missing, and which package has it.
pub(crate) fn need_program(program: &str, arguments: &[&str], package: &str) -> Result<(), Lack> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(_) => Ok(()),
        Err(error) => Err(missing(program, package, &error)),
    }
}

fn missing(program: &str, package: &str, error: &dyn Display) -> Lack {
    Lack::Missing(format!("{program}: {error}; Debian has it in {package}"))
}

/// What the processes of this `cargo test` have skipped so far, one line each. They share a parent.
pub(crate) fn noted() -> std::io::Result<Vec<String>> {
    match std::fs::read_to_string(notes(&notes_directory()?)?) {
        Ok(text) => Ok(text.lines().map(str::to_string).collect()),
        Err(error) if error.kind() == NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removes the notes of every `cargo test` that is over.
pub(crate) fn forget_others() -> std::io::Result<()> {
    for entry in std::fs::read_dir(notes_directory()?)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_over = |pid: &str| {
            std::fs::metadata(format!("/proc/{pid}")).is_err_and(|error| error.kind() == NotFound)
        };
        if name.split_once('-').is_some_and(|(pid, _)| is_over(pid)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn note(line: &str) -> std::io::Result<()> {
    let path = notes(&notes_directory()?)?;
    // One short write to a file that is appended to: lines of other threads and processes stay whole.
    OpenOptions::new().create(true).append(true).open(path)?.write_all(format!("{line}\n").as_bytes())
}

/// A place under `target/`.
fn notes_directory() -> std::io::Result<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// The file of this `cargo test`, named by the process that started this one: its id and the time of its start.
fn notes(directory: &Path) -> std::io::Result<PathBuf> {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let stat = std::fs::read_to_string(format!("/proc/{parent}/stat"))?;
    let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let started = behind_name.split(' ').nth(19).unwrap_or_default();
    Ok(directory.join(format!("{parent}-{started}")))
}

/// The name of a function, from the compiler: a literal could become stale after a renaming.
fn name_of<T>(_: &T) -> &'static str {
    let path = std::any::type_name::<T>();
    path.rsplit_once("::").map_or(path, |(_, name)| name)
}
