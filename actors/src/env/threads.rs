//! Starts threads. Blocking work runs on one of these, never on a node's own thread.

use std::io;

/// Runs `run` on a new thread, which the system shows under `name`.
///
/// # Errors
/// When the system refuses a thread, which may be temporary.
#[allow(clippy::disallowed_methods)]
pub(super) fn spawn_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}
