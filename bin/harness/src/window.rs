//! Counting: what happened in a second, and in the whole measurement. Owns the figures' definitions (what is a
//! success, in which second a request counts), never how they are shown.

use super::failures::RequestFailure;
use super::record::{Percentiles, Second, Totals};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// The longest latency that is told exactly, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// How many classes of errors are told apart.
const CLASSES_MAX: usize = 40;

/// How many failed, by class.
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
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    /// Some 80 KiB: made when there is something to hold.
    histogram: Option<Histogram<u32>>,
    sum_ns: u64,
    max_ns: u64,
}

impl Latencies {
    fn histogram(&mut self) -> &mut Histogram<u32> {
        self.histogram.get_or_insert_with(|| {
            let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS);
            histogram.expect("the bounds are constants that fit each other")
        })
    }

    fn record(&mut self, latency_ns: u64) {
        self.histogram().saturating_record((latency_ns / 1000).max(1));
        self.sum_ns += latency_ns;
        self.max_ns = self.max_ns.max(latency_ns);
    }

    fn add(&mut self, other: &Latencies) {
        let Some(histogram) = &other.histogram else { return };
        // Both have the same constant bounds, so everything fits.
        let _ = self.histogram().add(histogram);
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    fn count(&self) -> u64 {
        self.histogram.as_ref().map_or(0, Histogram::len)
    }

    fn mean_us(&self) -> f64 {
        if self.count() == 0 {
            0.0
        } else {
            self.sum_ns as f64 / 1000.0 / self.count() as f64
        }
    }

    fn percentiles(&self) -> Percentiles {
        let Some(histogram) = &self.histogram else { return Percentiles::default() };
        let max = self.max_ns.div_ceil(1000);
        // A bucket's upper end may lie above everything that was recorded in it.
        let at = |quantile| histogram.value_at_quantile(quantile).min(max);
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max }
    }
}

/// A span of time. Successes are in the histograms, everything else in the errors.
#[derive(Clone, Debug, Default)]
pub(crate) struct TimeWindow {
    reads: Latencies,
    writes: Latencies,
    errors: Errors,
}

impl TimeWindow {
    pub(crate) fn read(&mut self, latency_ns: u64) {
        self.reads.record(latency_ns);
    }

    pub(crate) fn write(&mut self, latency_ns: u64) {
        self.writes.record(latency_ns);
    }

    /// Requests that did not succeed. Their times are in no latency.
    pub(crate) fn errors(&mut self, failure: &RequestFailure, count: u64) {
        count_errors(&mut self.errors, failure.class(), count);
    }

    /// Takes the requests that did not succeed.
    pub(crate) fn take_errors(&mut self) -> Errors {
        std::mem::take(&mut self.errors)
    }

    /// Adds what happened elsewhere.
    pub(crate) fn add(&mut self, other: &TimeWindow) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        for (class, count) in &other.errors {
            count_errors(&mut self.errors, class, *count);
        }
    }

    pub(crate) fn successes(&self) -> u64 {
        self.reads.count() + self.writes.count()
    }

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

    /// The figures of a measurement that took `length_s`. What was answered after its end counts in everything but
    /// the throughput: there it would be a rate that the store never had.
    pub(crate) fn totals(&self, length_s: f64, late: &TimeWindow) -> Totals {
        let mut all = self.clone();
        all.add(late);
        let second = all.second(length_s);
        Totals {
            total_requests: second.total_requests,
            success_count: second.success_count,
            error_count: second.error_count,
            read_count: second.read_count,
            write_count: second.write_count,
            late_count: late.successes() + late.failures(),
            throughput_rps: self.second(length_s).throughput_rps,
            read_latency_us: second.read_latency_us,
            write_latency_us: second.write_latency_us,
            read: second.read,
            write: second.write,
            errors: second.errors,
            longest_write_gap_ms: None,
            bound_by_think: false,
        }
    }
}

/// What one thread has counted and was not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    /// The seconds of the measurement in which requests ended.
    windows: BTreeMap<u64, TimeWindow>,
    /// What belongs to the measurement and ended after it.
    late: TimeWindow,
    /// Wrong answers to requests that do not belong to the measurement.
    outside: Errors,
}

impl Windows {
    /// The second with this number, from 0.
    pub(crate) fn second(&mut self, number: u64) -> &mut TimeWindow {
        self.windows.entry(number).or_default()
    }

    /// What ended after the measurement.
    pub(crate) fn late(&mut self) -> &mut TimeWindow {
        &mut self.late
    }

    /// Notes a failure outside the measurement, where only wrong answers count.
    pub(crate) fn outside(&mut self, failure: &RequestFailure) {
        if let RequestFailure::Wrong(wrong) = failure {
            count_errors(&mut self.outside, wrong.class(), 1);
        }
    }

    /// Takes what is in no second: what ended after the end, and wrong answers outside the measurement.
    pub(crate) fn take_rest(&mut self) -> (TimeWindow, Errors) {
        (std::mem::take(&mut self.late), std::mem::take(&mut self.outside))
    }

    /// Takes the seconds before `number`.
    pub(crate) fn take_before(&mut self, number: u64) -> BTreeMap<u64, TimeWindow> {
        let later = self.windows.split_off(&number);
        std::mem::replace(&mut self.windows, later)
    }
}

#[cfg(test)]
mod tests {
    use super::super::failures::Wrong;
    use super::*;

    #[test]
    fn failures_count_neither_as_throughput_nor_in_latencies() {
        let mut window = TimeWindow::default();
        window.read(1_000_000);
        window.write(3_000_000);
        window.errors(&RequestFailure::Refused("STANDBY".to_owned()), 1);
        window.errors(&RequestFailure::Refused("standby".to_owned()), 1);
        let second = window.second(0.5);
        assert_eq!((second.total_requests, second.success_count, second.error_count), (4, 2, 2));
        assert_eq!((second.read_count, second.write_count), (1, 1));
        assert_eq!(second.throughput_rps, 4.0);
        assert_eq!((second.read_latency_us, second.write_latency_us), (1000.0, 3000.0));
        assert_eq!(second.read.max, 1000);
        assert_eq!(second.errors, Errors::from([("standby".to_owned(), 2)]));
    }

    #[test]
    fn answers_after_the_end_count_but_are_no_throughput() {
        let (mut window, mut late) = (TimeWindow::default(), TimeWindow::default());
        for _ in 0..10 {
            window.read(1_000_000);
        }
        for _ in 0..90 {
            late.read(2_000_000_000);
        }
        late.errors(&RequestFailure::Timeout, 3);
        let totals = window.totals(5.0, &late);
        assert_eq!((totals.total_requests, totals.success_count, totals.error_count), (103, 100, 3));
        assert_eq!((totals.throughput_rps, totals.late_count), (2.0, 93));
        assert!(totals.read.p50.abs_diff(2_000_000) <= 2_000, "{totals:?}");
    }

    #[test]
    fn only_wrong_answers_are_noted_outside_the_measurement() {
        let mut windows = Windows::default();
        let stale = RequestFailure::Wrong(Wrong::Stale);
        for failure in [&stale, &RequestFailure::Timeout, &RequestFailure::Wrong(Wrong::Mangled), &stale] {
            windows.outside(failure);
        }
        let expected = Errors::from([("stale_value".to_owned(), 2), ("mangled".to_owned(), 1)]);
        assert_eq!(windows.take_rest().1, expected);
        assert_eq!(windows.take_rest().1, Errors::new());
    }

    #[test]
    fn windows_add_up_and_percentiles_are_true_to_a_thousandth() {
        let (mut whole, mut part) = (TimeWindow::default(), TimeWindow::default());
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
