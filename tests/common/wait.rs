//! Waiting for a condition, and durations that are short to write.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(3);

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
