//! How many requests a second clients ask of this master, for INFO.
//!
//! Owns some counts of the last seconds and when they were taken; never counts itself.

use dsm_protocol::ids::Millis;
use std::collections::VecDeque;

/// How far two counts are apart at least, in milliseconds.
const APART_MS: u64 = 100;

/// So many of them are kept: the rate is that of the last two seconds.
const COUNTS: usize = 20;

/// The counts.
#[derive(Debug, Default)]
pub(super) struct OpsRate(VecDeque<(Millis, u64)>);

impl OpsRate {
    /// Notes how many requests there were until now.
    pub(super) fn note(&mut self, now: Millis, requests: u64) {
        if self.0.back().is_some_and(|(at, _)| now.since(*at) < APART_MS) {
            return;
        }
        if self.0.len() == COUNTS {
            self.0.pop_front();
        }
        self.0.push_back((now, requests));
    }

    /// Requests a second between the first count and the last one.
    pub(super) fn per_second(&self) -> u64 {
        let (Some((began, before)), Some((ended, after))) = (self.0.front(), self.0.back()) else { return 0 };
        let ms = ended.since(*began);
        (after - before) * 1000 / ms.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_two_seconds() {
        let mut rate = OpsRate::default();
        assert_eq!(rate.per_second(), 0);
        // Ten requests in each tick of 25 ms, for a minute.
        for tick in 0..2400 {
            rate.note(Millis(tick * 25), tick * 10);
        }
        assert_eq!(rate.per_second(), 400);
        // Then none.
        for tick in 2400..2440 {
            rate.note(Millis(tick * 25), 24_000);
        }
        assert!((150..250).contains(&rate.per_second()), "{}", rate.per_second());
        for tick in 2440..2520 {
            rate.note(Millis(tick * 25), 24_000);
        }
        assert_eq!(rate.per_second(), 0);
    }
}
