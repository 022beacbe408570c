//! Waiting for a condition, and short names for durations.

use std::time::{Duration, Instant};

/// How often a condition is checked.
pub(crate) const POLL: Duration = Duration::from_millis(3);

/// Waits until a condition holds.
///
/// # Panics
/// When it does not hold within `within`; `what` names the condition.
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

/// Checks that a condition stays true for a while.
///
/// # Panics
/// When it is false once; `what` says what should have stayed true.
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
