//! The clock of a run: nanoseconds since its origin, the same for all threads, and the dates that belong to them.

use std::time::{Duration, Instant, SystemTime};

/// Counts from its making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
    origin_date: SystemTime,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { origin: Instant::now(), origin_date: SystemTime::now() }
    }

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(&self) -> u64 {
        ns(self.origin.elapsed())
    }

    /// The time until `at_ns`; zero when it has passed.
    pub(crate) fn until(&self, at_ns: u64) -> Duration {
        Duration::from_nanos(at_ns.saturating_sub(self.now_ns()))
    }

    /// `at_ns` as an instant.
    pub(crate) fn instant(&self, at_ns: u64) -> Instant {
        self.origin + Duration::from_nanos(at_ns)
    }

    /// `at_ns` as RFC 3339 in UTC, to the millisecond. It follows no change of the system's date after the start.
    pub(crate) fn date(&self, at_ns: u64) -> String {
        humantime::format_rfc3339_millis(self.origin_date + Duration::from_nanos(at_ns)).to_string()
    }
}

/// A duration in whole nanoseconds; some 584 years at most.
pub(crate) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
