//! How long what a node does takes, as histograms with fixed bounds.
//!
//! Owns the counts. One thread writes and reads them, so that noting a time costs a few additions, and no lock. What a request
//! takes is measured by the clock of the turns, which the node looks at anyway (`turns.rs`): from the beginning of the turn in
//! which it was read to the last look at the clock before its answer, so to within a turn.

use dsm_protocol::command::{Command, COMMAND_FACTS};
use std::cell::Cell;
use std::collections::BTreeMap;

/// Where the classes end, in microseconds. What takes longer than the last is in a class of its own.
pub(crate) const BOUNDS_US: [u64; 19] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// How many times were of which length.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    counts: [Cell<u64>; BOUNDS_US.len() + 1],
    sum_us: Cell<u64>,
}

/// What a histogram has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Times up to each of [`BOUNDS_US`], and at the end those above.
    pub(crate) counts: [u64; BOUNDS_US.len() + 1],
    /// All of them together, in microseconds.
    pub(crate) sum_us: u64,
}

impl Histogram {
    /// Counts a time, in microseconds.
    pub(crate) fn note(&self, us: u64) {
        // Most are short: the first classes are found at once.
        let class = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
        let count = &self.counts[class];
        count.set(count.get() + 1);
        self.sum_us.set(self.sum_us.get().wrapping_add(us));
    }

    /// What it has counted.
    pub(crate) fn counted(&self) -> Tally {
        let mut counted = Tally { sum_us: self.sum_us.get(), ..Tally::default() };
        for (to, from) in counted.counts.iter_mut().zip(&self.counts) {
            *to = from.get();
        }
        counted
    }
}

impl Tally {
    /// How many times there were.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// With what another one has counted.
    fn and(mut self, other: Tally) -> Tally {
        for (to, from) in self.counts.iter_mut().zip(other.counts) {
            *to += from;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
        self
    }

    /// What was counted since it was `earlier`.
    pub(crate) fn since(mut self, earlier: &Tally) -> Tally {
        for (to, from) in self.counts.iter_mut().zip(earlier.counts) {
            *to = to.saturating_sub(from);
        }
        self.sum_us = self.sum_us.wrapping_sub(earlier.sum_us);
        self
    }

    /// Up to which bound so many of a thousand of them were, in microseconds; `None` without any. What is above the last
    /// bound counts as that.
    pub(crate) fn quantile_us(&self, per_mille: u64) -> Option<u64> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let wanted = (total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        let class = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        class.map(|class| BOUNDS_US[class.min(BOUNDS_US.len() - 1)])
    }
}

/// The histograms of a node.
#[derive(Debug)]
pub(crate) struct Timings {
    /// When the node last looked at the clock of its turns, in microseconds.
    now_us: Cell<u64>,
    /// Turns.
    pub(crate) turns: Histogram,
    /// Syncs of the log.
    pub(crate) syncs: Histogram,
    /// From the sending of a value to a slave to its acknowledgement; one at a time for each slave.
    pub(crate) acks: Histogram,
    /// Requests of this node's own clients, by the number of their command.
    requests: Box<[Histogram]>,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            now_us: Cell::new(0),
            turns: Histogram::default(),
            syncs: Histogram::default(),
            acks: Histogram::default(),
            requests: COMMAND_FACTS.iter().map(|_| Histogram::default()).collect(),
        }
    }
}

/// A request that is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    command: u8,
    at_us: u64,
}

impl Timings {
    /// The node has looked at the clock.
    pub(crate) fn note_clock(&self, now_us: u64) {
        self.now_us.set(now_us);
    }

    /// When it last did, in microseconds.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us.get()
    }

    /// A request has come.
    pub(crate) fn begin(&self, command: &Command) -> Began {
        Began { command: command.number(), at_us: self.now_us() }
    }

    /// It is answered, or given up.
    pub(crate) fn end(&self, began: Began) {
        if let Some(histogram) = self.requests.get(usize::from(began.command)) {
            histogram.note(self.now_us().saturating_sub(began.at_us));
        }
    }

    /// What was counted of requests, by the word that the log has for their command, in small letters. Commands that nobody has
    /// used are left out.
    pub(crate) fn requests(&self) -> BTreeMap<String, Tally> {
        let mut by_word: BTreeMap<String, Tally> = BTreeMap::new();
        for (facts, histogram) in COMMAND_FACTS.iter().zip(&self.requests) {
            let counted = histogram.counted();
            if counted.total() > 0 {
                let sum = by_word.entry(facts.log_word.to_ascii_lowercase()).or_default();
                *sum = sum.and(counted);
            }
        }
        by_word
    }

    /// The same of all commands together.
    pub(crate) fn all_requests(&self) -> Tally {
        self.requests.iter().map(Histogram::counted).fold(Tally::default(), Tally::and)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_time_is_counted_in_the_class_that_it_fits() {
        let histogram = Histogram::default();
        for us in [0, 25, 26, 1_000, 30_000_000, 30_000_001] {
            histogram.note(us);
        }
        let counted = histogram.counted();
        assert_eq!((counted.counts[0], counted.counts[1], counted.counts[5]), (2, 1, 1));
        assert_eq!((counted.counts[18], counted.counts[19]), (1, 1));
        assert_eq!((counted.total(), counted.sum_us), (6, 60_001_052));
    }

    #[test]
    fn a_quantile_is_the_bound_below_which_so_many_are() {
        let histogram = Histogram::default();
        assert_eq!(histogram.counted().quantile_us(500), None);
        (0..99).for_each(|_| histogram.note(60));
        histogram.note(4_000);
        let counted = histogram.counted();
        let quantiles = [500, 990, 999].map(|per_mille| counted.quantile_us(per_mille));
        assert_eq!(quantiles, [Some(100), Some(100), Some(5_000)]);
        let longest = Histogram::default();
        longest.note(40_000_000);
        assert_eq!(longest.counted().quantile_us(500), Some(30_000_000));
    }

    #[test]
    fn requests_are_counted_by_the_word_of_their_command() {
        let timings = Timings::default();
        let key = Bytes::from_static(b"key");
        timings.note_clock(1_000);
        let read = timings.begin(&Command::Get { key: key.clone() });
        let many = timings.begin(&Command::GetMany { keys: vec![key.clone()] });
        let write = timings.begin(&Command::Put { key: key.clone(), value: key });
        timings.note_clock(1_060);
        timings.end(read);
        timings.note_clock(1_300);
        timings.end(many);
        timings.end(write);
        let requests = timings.requests();
        assert_eq!(requests.keys().collect::<Vec<_>>(), ["read", "write"]);
        assert_eq!((requests["read"].total(), requests["read"].sum_us), (2, 360));
        assert_eq!((requests["write"].total(), requests["write"].sum_us), (1, 300));
    }
}
