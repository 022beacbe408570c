//! Counting: what happened in a second, and in the whole measurement. Owns the figures' definitions (what is a
//! success, in which second a request counts), never how they are shown.

use super::record::{Percentiles, Second, Totals};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// The longest latency that is told exactly, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// How many classes of errors are told apart.
const CLASSES_MAX: usize = 40;

/// Errors by class.
pub(crate) type Errors = BTreeMap<String, u64>;

/// Adds `count` errors of a class.
pub(crate) fn count_errors(errors: &mut Errors, class: &str, count: u64) {
    if let Some(counted) = errors.get_mut(class) {
        *counted += count;
        return;
    }
    let class = class.to_ascii_lowercase();
    let class = if errors.len() < CLASSES_MAX { class } else { "other".to_owned() };
    *errors.entry(class).or_default() += count;
}

/// The successful requests of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    histogram: Histogram<u32>,
    sum_ns: u64,
    max_ns: u64,
}

impl Latencies {
    fn new() -> Latencies {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS);
        let histogram = histogram.expect("the bounds are constants that fit each other");
        Latencies { histogram, sum_ns: 0, max_ns: 0 }
    }

    fn record(&mut self, latency_ns: u64) {
        self.histogram.saturating_record((latency_ns / 1000).max(1));
        self.sum_ns += latency_ns;
        self.max_ns = self.max_ns.max(latency_ns);
    }

    fn add(&mut self, other: &Latencies) {
        // Both have the same constant bounds, so there is nothing that does not fit.
        let _ = self.histogram.add(&other.histogram);
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    fn count(&self) -> u64 {
        self.histogram.len()
    }

    fn mean_us(&self) -> f64 {
        if self.count() == 0 {
            0.0
        } else {
            self.sum_ns as f64 / 1000.0 / self.count() as f64
        }
    }

    fn percentiles(&self) -> Percentiles {
        let max = self.max_ns.div_ceil(1000);
        // A bucket's upper end may lie above everything that was recorded in it.
        let at = |quantile| self.histogram.value_at_quantile(quantile).min(max);
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max }
    }
}

/// A span of time. Successes are in the histograms, everything else in the errors.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    reads: Latencies,
    writes: Latencies,
    errors: Errors,
}

impl Default for Window {
    fn default() -> Self {
        Window::new()
    }
}

impl Window {
    /// Nothing happened.
    pub(crate) fn new() -> Window {
        Window { reads: Latencies::new(), writes: Latencies::new(), errors: Errors::new() }
    }

    /// A successful read.
    pub(crate) fn read(&mut self, latency_ns: u64) {
        self.reads.record(latency_ns);
    }

    /// A successful write.
    pub(crate) fn write(&mut self, latency_ns: u64) {
        self.writes.record(latency_ns);
    }

    /// A request that did not succeed. Its time is in no latency.
    pub(crate) fn error(&mut self, class: &str) {
        count_errors(&mut self.errors, class, 1);
    }

    /// Adds what happened elsewhere.
    pub(crate) fn add(&mut self, other: &Window) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        for (class, count) in &other.errors {
            count_errors(&mut self.errors, class, *count);
        }
    }

    /// Successful requests.
    pub(crate) fn successes(&self) -> u64 {
        self.reads.count() + self.writes.count()
    }

    /// Failed requests.
    pub(crate) fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The figures of a second that took `length_s`; dates and processor time are the caller's.
    pub(crate) fn second(&self, length_s: f64) -> Second {
        let (success_count, error_count) = (self.successes(), self.failures());
        Second {
            total_requests: success_count + error_count,
            success_count,
            error_count,
            read_count: self.reads.count(),
            write_count: self.writes.count(),
            throughput_rps: if length_s > 0.0 { success_count as f64 / length_s } else { 0.0 },
            read_latency_us: self.reads.mean_us(),
            write_latency_us: self.writes.mean_us(),
            read: self.reads.percentiles(),
            write: self.writes.percentiles(),
            errors: self.errors.clone(),
            ..Second::default()
        }
    }

    /// The figures of a measurement that took `length_s`.
    pub(crate) fn totals(&self, length_s: f64) -> Totals {
        let second = self.second(length_s);
        Totals {
            total_requests: second.total_requests,
            success_count: second.success_count,
            error_count: second.error_count,
            read_count: second.read_count,
            write_count: second.write_count,
            throughput_rps: second.throughput_rps,
            read_latency_us: second.read_latency_us,
            write_latency_us: second.write_latency_us,
            read: second.read,
            write: second.write,
            errors: second.errors,
            bound_by_think: false,
        }
    }
}

/// The seconds in which one thread's requests ended and that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    windows: BTreeMap<u64, Window>,
}

impl Windows {
    /// The second with this number, from 0.
    pub(crate) fn second(&mut self, number: u64) -> &mut Window {
        self.windows.entry(number).or_default()
    }

    /// Takes the seconds before `number`.
    pub(crate) fn take_before(&mut self, number: u64) -> BTreeMap<u64, Window> {
        let later = self.windows.split_off(&number);
        std::mem::replace(&mut self.windows, later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_neither_as_throughput_nor_in_latencies() {
        let mut window = Window::new();
        window.read(1_000_000);
        window.write(3_000_000);
        window.error("STANDBY");
        window.error("standby");
        let second = window.second(0.5);
        assert_eq!((second.total_requests, second.success_count, second.error_count), (4, 2, 2));
        assert_eq!((second.read_count, second.write_count), (1, 1));
        assert_eq!(second.throughput_rps, 4.0);
        assert_eq!((second.read_latency_us, second.write_latency_us), (1000.0, 3000.0));
        assert_eq!(second.read.max, 1000);
        assert_eq!(second.errors, Errors::from([("standby".to_owned(), 2)]));
    }

    #[test]
    fn windows_add_up_and_percentiles_are_true_to_a_thousandth() {
        let (mut whole, mut part) = (Window::new(), Window::new());
        for us in 1..=5000 {
            whole.read(us * 1000);
            part.read((us + 5000) * 1000);
        }
        whole.add(&part);
        let read = whole.second(1.0).read;
        for (found, expected) in [(read.p50, 5000), (read.p90, 9000), (read.p99, 9900), (read.p999, 9990)] {
            assert!(found.abs_diff(expected) <= expected / 1000 + 1, "{read:?}");
        }
        assert_eq!(read.max, 10_000);
    }

    #[test]
    fn classes_are_bounded() {
        let mut errors = Errors::new();
        for number in 0..1000 {
            count_errors(&mut errors, &format!("class{number}"), 1);
        }
        assert_eq!(errors.len(), CLASSES_MAX + 1);
        assert_eq!(errors.values().sum::<u64>(), 1000);
    }
}
