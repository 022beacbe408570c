//! What time it was when a reign began, as its EPOCH record says.

use crate::ids::{Millis, UnixMillis};
use std::fmt;
use std::str::FromStr;

/// The time of the cluster, and that of a machine's clock by which it can be continued.
///
/// Source: `clock` in `docs/FORMATS.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockMark {
    /// The time of the cluster.
    pub time: UnixMillis,
    /// How long the machine had been running.
    pub uptime: Millis,
    /// Which boot of which machine that was.
    pub boot: String,
}

impl ClockMark {
    /// The name of its field.
    pub const FIELD: &'static str = "clock";

    /// A boot of which nothing is known.
    pub const UNKNOWN_BOOT: &'static str = "unknown";

    /// What time it is by now on a machine that has been running for so long since this boot; `None` on another one.
    pub fn continued(&self, uptime: Millis, boot: &str) -> Option<UnixMillis> {
        // An unknown boot may be any.
        (self.boot == boot && boot != Self::UNKNOWN_BOOT)
            // All are counted in whole milliseconds, and it must not be ahead.
            .then(|| self.time.plus(uptime.since(self.uptime).saturating_sub(2)))
    }
}

impl fmt::Display for ClockMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}@{}", self.time.0, self.uptime.0, self.boot)
    }
}

/// The text is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoClockMark;

impl FromStr for ClockMark {
    type Err = NoClockMark;

    fn from_str(text: &str) -> Result<Self, NoClockMark> {
        let mut parts = text.splitn(3, '@');
        let mut next = || parts.next().ok_or(NoClockMark);
        let (time, uptime, boot) = (next()?, next()?, next()?);
        let number = |text: &str| text.parse().map_err(|_| NoClockMark);
        Ok(ClockMark {
            time: UnixMillis(number(time)?),
            uptime: Millis(number(uptime)?),
            boot: boot.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_continued_on_the_same_boot_alone() {
        let mark = ClockMark { time: UnixMillis(1000), uptime: Millis(50), boot: "b@1".to_owned() };
        assert_eq!(mark.to_string().parse(), Ok(mark.clone()));
        assert_eq!(mark.continued(Millis(70), "b@1"), Some(UnixMillis(1018)));
        assert_eq!(mark.continued(Millis(70), "b@2"), None);
        let unknown = ClockMark { boot: ClockMark::UNKNOWN_BOOT.to_owned(), ..mark };
        assert_eq!(unknown.continued(Millis(70), ClockMark::UNKNOWN_BOOT), None);
        for no_mark in ["", "1", "1@2", "x@2@b", "1@x@b"] {
            assert_eq!(no_mark.parse::<ClockMark>(), Err(NoClockMark), "{no_mark:?}");
        }
    }
}
