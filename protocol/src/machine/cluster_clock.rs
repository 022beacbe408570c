//! The time of the cluster, by which keys expire.
//!
//! It is logged at the beginning of each reign, and goes on with the clock that counts since the machine was started. So a step
//! of the wall clock moves it only slowly, and a new primary continues the time of the one before. Only who finds no time that
//! continues on this machine, as after a restart of it, takes over the wall clock's; never an earlier time than was logged.

use crate::ids::{Millis, UnixMillis};

/// The time of the cluster is moved ahead to the wall clock's by one millisecond in so many.
const SLEW: u64 = 2000;

/// A machine that slept for so long did so, in milliseconds.
const SLEEP_MIN_MS: u64 = 1000;

/// The clock of one master.
///
/// It is never slowed down: a new primary continues the logged time without what was added or taken since, and must not be ahead of
/// the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterClock {
    /// What time it was when.
    set: Option<(Millis, UnixMillis)>,
    /// It was so late at least.
    logged: UnixMillis,
    /// When it was moved towards the wall clock.
    moved: Option<Millis>,
    /// How long the machine had been running when.
    seen: Option<(Millis, Millis)>,
}

impl ClusterClock {
    /// The time; 0 before any was heard of.
    pub fn at(&self, now: Millis) -> UnixMillis {
        let running = self.set.map(|(then, time)| time.plus(now.since(then)));
        running.unwrap_or_default().max(self.logged)
    }

    /// The log says that it was `time` when it was written. By now, so long after the machine was started, it is `continued`, if that
    /// is known.
    pub fn logged(&mut self, now: Millis, uptime: Millis, time: UnixMillis, continued: Option<UnixMillis>) {
        self.logged = self.logged.max(time);
        self.set = continued.map(|time| (now, time));
        self.seen = continued.map(|_| (now, uptime));
        self.moved = None;
    }

    /// A reign begins, or lasts, with this time of the wall clock, and so long after the machine was started.
    pub fn compare(&mut self, now: Millis, wall: UnixMillis, uptime: Millis) {
        // What the process did not count: the machine slept. Less than that is what the two clocks are read apart.
        let (then, before) = *self.seen.get_or_insert((now, uptime));
        let mut slept = uptime.since(before).saturating_sub(now.since(then));
        if slept < SLEEP_MIN_MS {
            slept = 0;
        } else {
            self.seen = Some((now, uptime));
        }
        let time = match self.set {
            None => wall.max(self.logged),
            Some(_) => self.moved_ahead(now, self.at(now).plus(slept), wall),
        };
        self.set = Some((now, time));
    }

    fn moved_ahead(&mut self, now: Millis, time: UnixMillis, wall: UnixMillis) -> UnixMillis {
        let then = *self.moved.get_or_insert(now);
        let most = now.since(then) / SLEW;
        self.moved = Some(then.plus(most * SLEW));
        time.plus(wall.since(time).min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_is_that_of_the_wall_clock_and_not_before_what_was_logged() {
        for (logged, wall, time) in [(0, 5000, 5000), (4000, 5000, 5000), (9000, 5000, 9000)] {
            let mut clock = ClusterClock::default();
            assert_eq!(clock.at(Millis(3)), UnixMillis(0));
            clock.logged(Millis(3), Millis(3), UnixMillis(logged), None);
            clock.compare(Millis(10), UnixMillis(wall), Millis(10));
            assert_eq!(clock.at(Millis(10)), UnixMillis(time), "{logged} {wall}");
            assert_eq!(clock.at(Millis(25)), UnixMillis(time + 15), "{logged} {wall}");
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_ahead_moves_it_slowly_and_one_back_not_at_all() {
        for (step, expected) in [(3_600_000_i64, 40..=50), (-3_600_000, 0..=0)] {
            let mut clock = ClusterClock::default();
            let start = 10_000_000_u64;
            clock.compare(Millis(0), UnixMillis(start), Millis(0));
            for now in (0..100_000).step_by(50) {
                let wall = (start + now).saturating_add_signed(step);
                clock.compare(Millis(now), UnixMillis(wall), Millis(now));
                assert!(clock.at(Millis(now)).0 >= start + now, "it is slower at {now}");
            }
            let moved = clock.at(Millis(99_950)).0 - (start + 99_950);
            assert!(expected.contains(&moved), "moved by {moved}");
        }
    }

    #[test]
    fn a_new_primary_is_never_ahead_of_the_one_before() {
        for step in [3_600_000_i64, 0, -3_600_000] {
            let (mut old, mut new) = (ClusterClock::default(), ClusterClock::default());
            let start = 10_000_000_u64;
            old.compare(Millis(0), UnixMillis(start), Millis(0));
            let logged = old.at(Millis(0));
            for now in (0..1_000_000).step_by(25) {
                let wall = (start + now).saturating_add_signed(step);
                old.compare(Millis(now), UnixMillis(wall), Millis(now));
            }
            let now = Millis(999_990);
            new.logged(now, now, logged, Some(logged.plus(999_990)));
            assert!(new.at(Millis(1_000_000)) <= old.at(Millis(1_000_000)), "{step}");
        }
    }

    #[test]
    fn the_time_in_which_the_machine_sleeps_counts() {
        let mut clock = ClusterClock::default();
        clock.compare(Millis(0), UnixMillis(1_000_000), Millis(50));
        clock.compare(Millis(25), UnixMillis(1_000_025), Millis(3_600_075));
        assert_eq!(clock.at(Millis(30)), UnixMillis(4_600_030));
        // So it does for a standby, which looks at its clocks only when it takes over.
        clock.logged(Millis(40), Millis(90), UnixMillis(500), Some(UnixMillis(5_000_000)));
        clock.compare(Millis(60), UnixMillis(0), Millis(7_200_110));
        assert_eq!(clock.at(Millis(60)), UnixMillis(12_200_020));
    }

    #[test]
    fn a_wall_clock_that_agrees_again_is_followed_no_further() {
        let mut clock = ClusterClock::default();
        clock.compare(Millis(0), UnixMillis(1_000_000), Millis(0));
        for now in (0..100_000).step_by(50) {
            clock.compare(Millis(now), UnixMillis(1_000_010 + now), Millis(now));
        }
        assert_eq!(clock.at(Millis(100_000)), UnixMillis(1_100_010));
    }

    #[test]
    fn a_new_primary_continues_the_time_of_the_one_before_whatever_the_wall_clock_says() {
        let mut clock = ClusterClock::default();
        clock.logged(Millis(5), Millis(5), UnixMillis(1000), Some(UnixMillis(51_000)));
        assert_eq!(clock.at(Millis(15)), UnixMillis(51_010));
        clock.compare(Millis(25), UnixMillis(9_000_000), Millis(25));
        assert_eq!(clock.at(Millis(25)), UnixMillis(51_020));
    }
}
