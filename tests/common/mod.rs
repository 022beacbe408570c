//! What the tests of the whole system share: real processes on free ports ([`cluster`]), a client of the RESP
//! door ([`resp`]), clients that load the cluster and record what they saw ([`load`]).
//!
//! Nothing here knows how the servers are built: it sees binaries, flags, sockets, exit codes and the log.

// Each test file is a crate of its own and uses its part of this.
#![allow(dead_code)]

pub(crate) mod cluster;
pub(crate) mod load;
pub(crate) mod resp;

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(3);

/// Looks at a condition until it holds.
///
/// # Panics
/// When it does not within `within`; `what` says what was waited for.
pub(crate) fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < within, "waited {within:?} in vain: {what}");
        std::thread::sleep(POLL);
    }
}

/// Holds a condition to be true for a while.
///
/// # Panics
/// When it is not, once; `what` says what should have stayed true.
pub(crate) fn stays<D: std::fmt::Debug>(
    what: &str,
    during: Duration,
    mut condition: impl FnMut() -> Result<(), D>,
) {
    let begun = Instant::now();
    while begun.elapsed() < during {
        if let Err(found) = condition() {
            panic!("after {:?} it was no longer so: {what}: {found:?}", begun.elapsed());
        }
        std::thread::sleep(POLL);
    }
}

/// Seconds, short to write.
pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Milliseconds, short to write.
pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
