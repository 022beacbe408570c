//! Plots of whole runs: a measure against the number of slaves or clients, and what the load consisted of.
//! It never looks at single seconds, except for the spread of the throughput between them.

use std::collections::BTreeMap;

use plotters::style::RGBColor;

use super::axis::Axis;
use super::figure::{
    in_order, Bar, Figure, Mark, Panel, Point, Shape, Stroke, BLUE, GREEN, ORANGE, PURPLE, VERMILION,
};
use super::number::{count, counted, short};
use super::{describe, think_note, Varied};
use crate::harness::record::{Percentiles, RunRecord, SweepRecord};

/// What stands on the x axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dimension {
    Slaves,
    Clients,
}

impl Dimension {
    pub(super) const ALL: [Dimension; 2] = [Dimension::Slaves, Dimension::Clients];

    /// In file names: `slave`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Dimension::Slaves => "slave",
            Dimension::Clients => "client",
        }
    }

    fn other(self) -> Dimension {
        match self {
            Dimension::Slaves => Dimension::Clients,
            Dimension::Clients => Dimension::Slaves,
        }
    }

    pub(super) fn of(self, run: &RunRecord) -> u32 {
        match self {
            Dimension::Slaves => run.settings.slaves,
            Dimension::Clients => run.settings.clients,
        }
    }

    /// The different values in `sweep`, ascending.
    pub(super) fn values(self, sweep: &SweepRecord) -> Vec<u32> {
        let mut values: Vec<u32> = sweep.runs.iter().map(|run| self.of(run)).collect();
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// What stands on the y axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    Throughput,
    ReadLatency,
    WriteLatency,
    ErrorRate,
}

impl Measure {
    pub(super) const ALL: [Measure; 4] =
        [Measure::Throughput, Measure::ReadLatency, Measure::WriteLatency, Measure::ErrorRate];

    /// In file names.
    pub(super) fn file(self) -> &'static str {
        match self {
            Measure::Throughput => "throughput_rps",
            Measure::ReadLatency => "read_latency_us",
            Measure::WriteLatency => "write_latency_us",
            Measure::ErrorRate => "error_rate",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Measure::Throughput => "Throughput",
            Measure::ReadLatency => "Read latency",
            Measure::WriteLatency => "Write latency",
            Measure::ErrorRate => "Error rate",
        }
    }

    fn axis_name(self) -> &'static str {
        match self {
            Measure::Throughput => "throughput (successful requests/s)",
            Measure::ReadLatency => "read latency (µs)",
            Measure::WriteLatency => "write latency (µs)",
            Measure::ErrorRate => "errors (% of all requests)",
        }
    }

    fn nothing(self) -> &'static str {
        match self {
            Measure::Throughput => "no request succeeded",
            Measure::ReadLatency => "no read succeeded",
            Measure::WriteLatency => "no write succeeded",
            Measure::ErrorRate => "no request was made",
        }
    }

    /// The value of one run; not a number where there is none.
    fn of(self, run: &RunRecord) -> f64 {
        let totals = &run.totals;
        match self {
            Measure::Throughput => totals.throughput_rps,
            Measure::ReadLatency if totals.read_count == 0 => f64::NAN,
            Measure::ReadLatency => totals.read_latency_us,
            Measure::WriteLatency if totals.write_count == 0 => f64::NAN,
            Measure::WriteLatency => totals.write_latency_us,
            Measure::ErrorRate => error_rate(run),
        }
    }

    fn percentiles(self, run: &RunRecord) -> Option<&Percentiles> {
        match self {
            Measure::ReadLatency if run.totals.read_count > 0 => Some(&run.totals.read),
            Measure::WriteLatency if run.totals.write_count > 0 => Some(&run.totals.write),
            _ => None,
        }
    }

    /// What a reader should know, for the report.
    pub(super) fn explains(self, by: Dimension, sweep: &SweepRecord) -> String {
        let what = match self {
            Measure::Throughput => {
                "Successful requests per second, reads and writes together; failed requests do not count. \
                 A line that flattens while clients are added shows where the store, or this machine, is full."
            }
            Measure::ReadLatency => {
                "How long successful reads took, from sending the request to the whole answer, as a client sees it."
            }
            Measure::WriteLatency => {
                "How long successful writes took, until the store had promised to keep them: on disk as --fsync asks, \
                 and on a majority of the slaves."
            }
            Measure::ErrorRate => "The share of requests that did not succeed, of whatever class.",
        };
        let lines = match (by.other().values(sweep).len(), self) {
            (0 | 1, Measure::ReadLatency | Measure::WriteLatency) => {
                " The line is the mean; the bands reach from the median to the 90th and on to the 99th percentile."
            }
            (0 | 1, Measure::Throughput) => " The band holds the middle 80 % of the run's seconds.",
            (0 | 1, Measure::ErrorRate) => "",
            (_, Measure::ReadLatency | Measure::WriteLatency) => " Each line joins means of whole runs.",
            _ => " Each line joins whole runs.",
        };
        format!("{what}{lines}")
    }
}

/// Failed requests in per cent of all; not a number without requests.
fn error_rate(run: &RunRecord) -> f64 {
    if run.totals.total_requests == 0 {
        return f64::NAN;
    }
    run.totals.error_count as f64 / run.totals.total_requests as f64 * 100.0
}

/// `measure` against `by`: one line for each value of the other dimension.
pub(super) fn figure(sweep: &SweepRecord, measure: Measure, by: Dimension) -> Figure {
    let values = by.values(sweep);
    let others = by.other().values(sweep);
    let mut marks = Vec::new();
    let mut all = Vec::new();
    for (index, other) in others.iter().enumerate() {
        let runs = || sweep.runs.iter().filter(|run| by.other().of(run) == *other);
        let alone = others.len() == 1;
        let (colour, shape) =
            if alone { (measure_colour(measure), Shape::Circle) } else { in_order(index, others.len()) };
        let label = if !alone {
            counted(u64::from(*other), by.other().word())
        } else if matches!(measure, Measure::ReadLatency | Measure::WriteLatency) {
            "mean".to_owned()
        } else {
            "each run".to_owned()
        };
        if alone {
            spread(sweep, measure, by, colour, &mut marks, &mut all);
        }
        // Runs of the same size are joined by their mean.
        let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        let mut points = Vec::new();
        for run in runs() {
            let (x, y) = (f64::from(by.of(run)), measure.of(run));
            all.push(y);
            points.push(Point { x, y, hollow: run.totals.bound_by_think });
            if y.is_finite() {
                let sum = sums.entry(by.of(run)).or_default();
                *sum = (sum.0 + y, sum.1 + 1.0);
            }
        }
        let means = sums.into_iter().map(|(x, (sum, of))| Point::new(f64::from(x), sum / of)).collect();
        let stroke = if values.len() > 1 { Stroke::Thin } else { Stroke::None };
        marks.push(Mark::Line { label: label.clone(), colour, stroke, shape: None, points: means });
        marks.push(Mark::Line { label, colour, stroke: Stroke::None, shape: Some(shape), points });
    }
    let name = measure.axis_name();
    let y = match measure {
        Measure::ReadLatency | Measure::WriteLatency => {
            let name = if others.len() > 1 { format!("mean {name}") } else { name.to_owned() };
            Axis::for_latency(name, all.iter().copied())
        }
        Measure::ErrorRate => Axis::for_share(name, largest(&all)),
        Measure::Throughput => Axis::from_zero(name, largest(&all)),
    };
    let shown = all.iter().any(|value| value.is_finite() && (*value > 0.0 || measure == Measure::ErrorRate));
    let note = match measure {
        _ if !shown => Some(measure.nothing().to_owned()),
        Measure::ErrorRate if largest(&all) == 0.0 => Some("no errors".to_owned()),
        _ => None,
    };
    let name = match by {
        Dimension::Slaves => "slaves",
        Dimension::Clients => "clients",
    };
    let mut subtitle = vec![describe(sweep, &[Varied::from(by)])];
    if let [only] = values.as_slice() {
        subtitle.push(format!(
            "One {} count only ({}): nothing varies along this axis.",
            by.word(),
            count(u64::from(*only))
        ));
    }
    subtitle.extend(think_note(sweep));
    let x = Axis::for_counts(format!("number of {name}"), &values);
    Figure {
        title: format!("{} by number of {name}", measure.title()),
        subtitle,
        panels: vec![Panel { title: String::new(), x, y, marks, events: Vec::new(), note }],
        columns: 1,
    }
}

/// Around the only line: the bands of its percentiles, or of its seconds.
fn spread(
    sweep: &SweepRecord,
    measure: Measure,
    by: Dimension,
    colour: RGBColor,
    marks: &mut Vec<Mark>,
    all: &mut Vec<f64>,
) {
    // Of repeated runs the widest counts.
    let mut inner: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
    let mut outer: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
    let widen = |bands: &mut BTreeMap<u32, (f64, f64)>, x, low: f64, high: f64| {
        let band = bands.entry(x).or_insert((low, high));
        *band = (band.0.min(low), band.1.max(high));
    };
    for run in &sweep.runs {
        let x = by.of(run);
        if let Some(percentiles) = measure.percentiles(run) {
            let [p50, p90, p99] = [percentiles.p50, percentiles.p90, percentiles.p99].map(|v| v as f64);
            widen(&mut inner, x, p50, p90);
            widen(&mut outer, x, p90, p99);
        } else if measure == Measure::Throughput && run.seconds.len() >= 10 {
            let mut rates: Vec<f64> = run.seconds.iter().map(|second| second.throughput_rps).collect();
            rates.sort_by(f64::total_cmp);
            let at = |share: f64| rates[((rates.len() - 1) as f64 * share).round() as usize];
            widen(&mut inner, x, at(0.1), at(0.9));
        }
    }
    let names = if measure == Measure::Throughput {
        ["middle 80 % of the seconds", ""]
    } else {
        ["50th to 90th percentile", "90th to 99th percentile"]
    };
    for (bands, label, alpha) in [(inner, names[0], 0.28), (outer, names[1], 0.13)] {
        if bands.is_empty() {
            continue;
        }
        all.extend(bands.values().flat_map(|(low, high)| [*low, *high]));
        let points = bands.into_iter().map(|(x, (low, high))| (f64::from(x), low, high)).collect();
        marks.push(Mark::Band { label: label.to_owned(), colour, alpha, points });
    }
}

fn measure_colour(measure: Measure) -> RGBColor {
    match measure {
        Measure::Throughput => GREEN,
        Measure::ReadLatency => BLUE,
        Measure::WriteLatency => VERMILION,
        Measure::ErrorRate => PURPLE,
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().filter(|value| value.is_finite()).fold(0.0, f64::max)
}

/// What each run's requests were: successful reads, successful writes, errors, stacked.
pub(super) fn breakdown(sweep: &SweepRecord) -> Figure {
    let slaves_vary = Dimension::Slaves.values(sweep).len() > 1;
    let clients_vary = Dimension::Clients.values(sweep).len() > 1;
    let (name, of): (&str, fn(&RunRecord) -> String) = match (slaves_vary, clients_vary) {
        (true, true) => ("slaves × clients of the run", |run| {
            format!("{}×{}", run.settings.slaves, run.settings.clients)
        }),
        (true, false) => ("slaves of the run", |run| run.settings.slaves.to_string()),
        (false, true) => ("clients of the run", |run| run.settings.clients.to_string()),
        (false, false) => ("slaves × clients of the run", |run| {
            format!("{}×{}", run.settings.slaves, run.settings.clients)
        }),
    };
    let rate = |run: &RunRecord, of: u64| if run.duration_s > 0.0 { of as f64 / run.duration_s } else { 0.0 };
    let stacks: Vec<[f64; 3]> = sweep
        .runs
        .iter()
        .map(|run| {
            [run.totals.read_count, run.totals.write_count, run.totals.error_count].map(|of| rate(run, of))
        })
        .collect();
    let x = Axis::for_names(name, sweep.runs.iter().map(of));
    let places = (0..stacks.len()).map(|at| (at as f64 - 0.4, at as f64 + 0.4));
    let mut subtitle = vec![describe(sweep, &[Varied::Slaves, Varied::Clients])];
    subtitle.extend(super::shares(sweep.runs.iter().map(|run| &run.totals)));
    subtitle.extend(think_note(sweep).map(|note| note.replace("Hollow points", "Some runs")));
    Figure {
        title: "Reads, writes and errors of each run".to_owned(),
        subtitle,
        panels: vec![stacked(x, &places.collect::<Vec<_>>(), &stacks)],
        columns: 1,
    }
}

/// Stacked bars of reads, writes and errors per second.
pub(super) fn stacked(x: Axis, places: &[(f64, f64)], stacks: &[[f64; 3]]) -> Panel {
    let names = [("successful reads", BLUE), ("successful writes", ORANGE), ("errors", PURPLE)];
    let top = stacks.iter().map(|stack| stack.iter().sum::<f64>()).fold(0.0, f64::max);
    let marks = names
        .into_iter()
        .enumerate()
        .map(|(layer, (label, colour))| {
            let bars = places.iter().zip(stacks).map(|((from, to), stack)| {
                let low: f64 = stack[..layer].iter().sum();
                Bar { from: *from, to: *to, low, high: low + stack[layer] }
            });
            Mark::Bars { label: label.to_owned(), colour, values_shown: false, bars: bars.collect() }
        })
        .collect();
    Panel {
        title: String::new(),
        x,
        y: Axis::from_zero("requests/s", top),
        marks,
        events: Vec::new(),
        note: (top == 0.0).then(|| "no request was made".to_owned()),
    }
}

/// `12.3 %` of a whole, for subtitles.
pub(super) fn share(part: u64, whole: u64) -> String {
    let share = if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
    format!("{} %", short((share * 100.0).round() / 100.0))
}
