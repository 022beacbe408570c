//! Where threads begin: what blocks is done on one of these, and never on a node's own.

use std::io;

/// Runs `run` on a thread of its own, which the system shows under `name`.
///
/// # Errors
/// When the system has no thread to give, which may pass.
#[allow(clippy::disallowed_methods)]
pub(super) fn spawn_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}
