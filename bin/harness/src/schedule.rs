//! When the requests of an open loop are due: evenly spaced slots, each computed from its number, so that rounding
//! errors do not add up.

/// The slots of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    first_ns: f64,
    interval_ns: f64,
    next: u64,
}

impl Schedule {
    /// The share of connection `number`, from 0, in `rate` requests per second that `connections` make together from
    /// `start_ns` on, one after the other.
    pub(crate) fn new(start_ns: u64, rate: f64, connections: usize, number: usize) -> Schedule {
        let interval_ns = 1e9 * connections as f64 / rate;
        let first_ns = start_ns as f64 + interval_ns * number as f64 / connections as f64;
        Schedule { first_ns, interval_ns, next: 0 }
    }

    /// When the next request is due.
    pub(crate) fn due_ns(&self) -> u64 {
        self.slot_ns(self.next)
    }

    /// The next request is sent.
    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }

    /// Leaves out what was due before `at_ns`.
    pub(crate) fn skip_before(&mut self, at_ns: u64) {
        self.next = self.next.max(self.slots_before(at_ns));
    }

    /// Leaves out what is due from here on and before `at_ns`; how many requests that is.
    pub(crate) fn take_before(&mut self, at_ns: u64) -> u64 {
        let before = self.next;
        self.skip_before(at_ns);
        self.next - before
    }

    fn slot_ns(&self, number: u64) -> u64 {
        (self.first_ns + self.interval_ns * number as f64) as u64
    }

    /// How many slots lie before `at_ns`.
    fn slots_before(&self, at_ns: u64) -> u64 {
        let mut count = ((at_ns as f64 - self.first_ns) / self.interval_ns).max(0.0) as u64;
        // The division may be off by one; what `slot_ns` says counts.
        while count > 0 && self.slot_ns(count - 1) >= at_ns {
            count -= 1;
        }
        while self.slot_ns(count) < at_ns {
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn connections_take_turns_and_make_the_rate_together() {
        let due = |number| {
            let mut schedule = Schedule::new(1000, 1e6, 4, number);
            let mut due = Vec::new();
            for _ in 0..2 {
                due.push(schedule.due_ns());
                schedule.advance();
            }
            due
        };
        assert_eq!([due(0), due(1), due(3)], [[1000, 5000], [2000, 6000], [4000, 8000]]);
    }

    #[test]
    fn what_was_due_before_is_left_out_and_counted_however_much_it_is() {
        for (rate, connections, number) in
            [(3.0, 1, 0), (1000.0, 7, 6), (333.3, 10, 3), (1e8, 1, 0), (0.01, 5, 4)]
        {
            let mut schedule = Schedule::new(7, rate, connections, number);
            let first = schedule.due_ns();
            let from_ns = 3600 * SECOND;
            let left_out = schedule.take_before(from_ns);
            assert!(schedule.due_ns() >= from_ns || first >= from_ns, "{rate}");
            assert!(left_out == 0 || schedule.slot_ns(left_out - 1) < from_ns, "{rate}");
            let expected = rate / connections as f64 * 3600.0;
            assert!((left_out as f64 - expected).abs() <= 1.0, "{rate}: {left_out}, not {expected}");
            // The next ones are neither left out nor counted twice.
            assert_eq!(schedule.take_before(from_ns), 0, "{rate}");
            assert_eq!(schedule.take_before(from_ns - SECOND), 0, "{rate}");
            let (half, rest) =
                (schedule.take_before(from_ns + SECOND / 2), schedule.take_before(from_ns + SECOND));
            let mut whole = Schedule::new(7, rate, connections, number);
            whole.skip_before(from_ns);
            assert_eq!(half + rest, whole.take_before(from_ns + SECOND), "{rate}");
        }
    }
}
