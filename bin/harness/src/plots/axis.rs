//! Axes: which range a plot shows, linear or logarithmic, and where its ticks stand. It knows numbers only, no pixels.

use super::number::{short, thousands};

/// From this ratio of the largest to the smallest value on, a latency axis is logarithmic.
const LOG_FROM: f64 = 20.0;

/// About how many ticks a linear axis gets.
const TICKS: f64 = 6.0;

/// One axis of a panel.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// What it measures, with the unit: `read latency, mean (µs)`.
    pub(super) name: String,
    /// Values and their labels, in ascending order.
    pub(super) ticks: Vec<(f64, String)>,
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// A linear axis from zero to a round number at or above `max`.
    pub(super) fn from_zero(name: impl Into<String>, max: f64) -> Axis {
        let max = if max.is_finite() && max > 0.0 { max } else { 1.0 };
        let step = nice_step(max / TICKS);
        let steps = (max / step - 1e-9).ceil().max(1.0);
        let ticks = labelled((0..=steps as u32).map(|at| f64::from(at) * step), step);
        // A little air above, so that the highest point is not on the frame.
        let high = (steps * step).max(max * 1.04);
        Axis { name: name.into(), ticks, low: 0.0, high, log: false }
    }

    /// A linear axis for a share in per cent, which never ends above 100.
    pub(super) fn for_share(name: impl Into<String>, max: f64) -> Axis {
        let mut axis = Axis::from_zero(name, max.min(100.0));
        // The air above stays; the ticks stop.
        axis.ticks.retain(|(value, _)| *value <= 100.0);
        axis.high = axis.high.min(104.0);
        axis
    }

    /// A linear axis around zero, as far down as up.
    pub(super) fn around_zero(name: impl Into<String>, reach: f64) -> Axis {
        let reach = if reach.is_finite() && reach > 0.0 { reach } else { 1.0 };
        let step = nice_step(reach / 4.0);
        let steps = (reach / step).floor() as i32;
        let mut ticks = labelled((-steps..=steps).map(|at| f64::from(at) * step), step);
        for (value, label) in &mut ticks {
            if *value > 0.0 {
                label.insert(0, '+');
            }
        }
        Axis { name: name.into(), ticks, low: -reach * 1.05, high: reach * 1.05, log: false }
    }

    /// An axis for positive values: logarithmic where they span decades, from zero otherwise. Zeros mean that there
    /// was no value and do not count.
    pub(super) fn for_latency(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Axis {
        let (mut min, mut max) = (f64::INFINITY, 0.0_f64);
        for value in values.into_iter().filter(|value| value.is_finite() && *value > 0.0) {
            min = min.min(value);
            max = max.max(value);
        }
        if max > 0.0 && max / min >= LOG_FROM {
            Axis::log(name, min, max)
        } else {
            Axis::from_zero(name, max)
        }
    }

    fn log(name: impl Into<String>, min: f64, max: f64) -> Axis {
        // From one of 1, 2, 5 times a power of ten to another.
        let marks = |decade: i32| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade));
        let (first, last) = (min.log10().floor() as i32, max.log10().floor() as i32 + 1);
        let all: Vec<f64> = (first..=last).flat_map(marks).collect();
        let low = all.iter().copied().rev().find(|mark| *mark <= min).unwrap_or(min);
        let high = all.iter().copied().find(|mark| *mark >= max).unwrap_or(max);
        let wide = (high / low).log10() > 4.0;
        let ticks = all
            .into_iter()
            .filter(|mark| (low..=high).contains(mark))
            .filter(|mark| !wide || (mark.log10() - mark.log10().round()).abs() < 1e-9)
            .map(|mark| (mark, thousands(mark, if mark < 1.0 { 1 } else { 0 })))
            .collect();
        // The marks have rounding errors, and the values at the ends must stay inside.
        Axis { name: name.into(), ticks, low: low * 0.98, high: high * 1.02, log: true }
    }

    /// An axis for counts that were chosen (slaves, clients): a tick at each of `values`, logarithmic where the
    /// values grow by factors. `values` must be ascending.
    pub(super) fn for_counts(name: impl Into<String>, values: &[f64]) -> Axis {
        let ticks: Vec<(f64, String)> = values.iter().map(|value| (*value, short(*value))).collect();
        let first = values.first().copied().unwrap_or(1.0);
        let last = values.last().copied().unwrap_or(1.0);
        let log = first > 0.0 && last / first >= 16.0;
        let (low, high) = if log {
            let air = (last / first).powf(0.05);
            (first / air, last * air)
        } else {
            let air = if last > first { (last - first) * 0.06 } else { 1.0 };
            (first - air, last + air)
        };
        Axis { name: name.into(), ticks, low, high, log }
    }

    /// An axis with one place for each of `labels`, at 0, 1, 2, ….
    pub(super) fn for_names(name: impl Into<String>, labels: impl IntoIterator<Item = String>) -> Axis {
        let ticks: Vec<(f64, String)> =
            labels.into_iter().enumerate().map(|(at, label)| (at as f64, label)).collect();
        Axis { name: name.into(), low: -0.6, high: ticks.len().max(1) as f64 - 0.4, ticks, log: false }
    }

    /// Time since the start, from zero to `end_s` seconds, labelled in the unit that suits its length.
    pub(super) fn for_time(end_s: f64) -> Axis {
        let end_s = if end_s.is_finite() && end_s > 0.0 { end_s } else { 1.0 };
        let rough = end_s / 10.0;
        let step = [
            0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0,
        ]
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or_else(|| 3600.0 * nice_step(rough / 3600.0).max(1.0));
        let (unit, label): (&str, fn(f64) -> String) = if end_s <= 180.0 {
            ("s", |at| thousands(at, usize::from(at != at.trunc())))
        } else if end_s <= 3.0 * 3600.0 {
            ("min:s", |at| format!("{}:{:02}", at as u64 / 60, at as u64 % 60))
        } else {
            ("h:min", |at| format!("{}:{:02}", at as u64 / 3600, at as u64 / 60 % 60))
        };
        let ticks = (0..=(end_s / step + 1e-9) as u32)
            .map(|at| f64::from(at) * step)
            .map(|at| (at, label(at)))
            .collect();
        let name = format!("time since the start of the measurement ({unit})");
        Axis { name, ticks, low: 0.0, high: end_s, log: false }
    }

    /// Where `value` lies, in the units of [`Axis::bounds`]; `None` where the axis cannot show it (not a number, or
    /// not positive on a logarithmic axis). What lies outside is put on the rim.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        if !value.is_finite() || (self.log && value <= 0.0) {
            return None;
        }
        let value = value.clamp(self.low, self.high);
        Some(if self.log { value.log10() } else { value })
    }

    /// The two ends; logarithms of them on a logarithmic axis.
    pub(super) fn bounds(&self) -> (f64, f64) {
        if self.log {
            (self.low.log10(), self.high.log10())
        } else {
            (self.low, self.high)
        }
    }

    /// Where `value` lies between the ends: 0 to 1.
    pub(super) fn share(&self, value: f64) -> Option<f64> {
        let (low, high) = self.bounds();
        self.place(value).map(|place| (place - low) / (high - low))
    }
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= rough * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// Ticks with as many decimals as tell them apart.
fn labelled(values: impl Iterator<Item = f64>, step: f64) -> Vec<(f64, String)> {
    let decimals = (0..6).find(|decimals| {
        let scaled = step * 10f64.powi(*decimals);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0)
    });
    values.map(|value| (value, thousands(value, decimals.unwrap_or(6) as usize))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn a_linear_axis_ends_at_a_round_number_above_the_largest_value() {
        let axis = Axis::from_zero("rate", 11_300.0);
        assert_eq!(labels(&axis), ["0", "2,000", "4,000", "6,000", "8,000", "10,000", "12,000"]);
        assert_eq!(labels(&Axis::from_zero("rate", 0.8)), ["0.0", "0.2", "0.4", "0.6", "0.8"]);
        for max in [0.0, f64::NAN, f64::INFINITY, 1e-9, 1e18] {
            let axis = Axis::from_zero("rate", max);
            assert!(axis.ticks.len() >= 2 && axis.ticks.len() <= 12, "{max}: {axis:?}");
            assert!(axis.place(max).is_none_or(|place| place <= axis.bounds().1), "{max}: {axis:?}");
        }
    }

    #[test]
    fn a_latency_axis_is_logarithmic_only_where_the_values_span_decades() {
        assert!(!Axis::for_latency("t", [100.0, 900.0, 0.0]).log);
        let axis = Axis::for_latency("t", [130.0, 48_000.0, 0.0]);
        assert!(axis.log);
        assert_eq!(
            labels(&axis),
            ["100", "200", "500", "1,000", "2,000", "5,000", "10,000", "20,000", "50,000"]
        );
        assert_eq!(axis.place(0.0), None);
        assert!(!Axis::for_latency("t", [0.0, 0.0]).log);
    }

    #[test]
    fn values_at_the_ends_of_any_axis_lie_inside_it() {
        let axes = [
            (Axis::for_latency("t", [1.0, 1e6]), 1.0, 1e6),
            (Axis::for_latency("t", [7.0, 7e9]), 7.0, 7e9),
            (Axis::for_counts("slaves", &[1.0, 3.0, 9.0]), 1.0, 9.0),
            (Axis::for_counts("clients", &[1.0, 256.0]), 1.0, 256.0),
            (Axis::for_counts("clients", &[0.0, 256.0]), 0.0, 256.0),
            (Axis::for_counts("slaves", &[5.0]), 5.0, 5.0),
            (Axis::for_time(600.0), 0.0, 600.0),
        ];
        for (axis, low, high) in axes {
            for value in [low, high] {
                let share = axis.share(value);
                assert!(
                    share.is_some_and(|share| (0.0..=1.0).contains(&share)),
                    "{value} on {axis:?}: {share:?}"
                );
            }
        }
    }

    #[test]
    fn time_is_labelled_in_the_unit_that_suits_its_length() {
        assert_eq!(labels(&Axis::for_time(30.0)), ["0", "5", "10", "15", "20", "25", "30"]);
        assert_eq!(labels(&Axis::for_time(600.0)).last(), Some(&"10:00"));
        assert_eq!(labels(&Axis::for_time(4.0 * 3600.0)).last(), Some(&"4:00"));
        assert_eq!(labels(&Axis::for_time(1.0)).first(), Some(&"0"));
    }
}
