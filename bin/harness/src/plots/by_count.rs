//! Plots of whole runs: a measure against the number of slaves or clients, and what the load consisted of.
//! It never looks at single seconds, except for the spread of the throughput between them.

use plotters::style::RGBColor;

use super::axis::Axis;
use super::figure::{
    in_order, Bar, Figure, Mark, Marker, Panel, Point, Stroke, BLUE, GREEN, ORANGE, PURPLE, VERMILION,
};
use super::number::short;
use super::{describe, think_note};
use crate::record::{Percentiles, RunRecord, SweepRecord};

/// What can differ between the runs of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SweptBy {
    Slaves,
    Clients,
    Pool,
    Pipeline,
    WritePct,
    ValueBytes,
}

impl SweptBy {
    pub(crate) const ALL: [SweptBy; 6] = [
        SweptBy::Slaves,
        SweptBy::Clients,
        SweptBy::Pool,
        SweptBy::Pipeline,
        SweptBy::WritePct,
        SweptBy::ValueBytes,
    ];

    /// The name as it stands in names of files.
    pub(super) fn file(self) -> &'static str {
        match self {
            SweptBy::Slaves => "slave_count",
            SweptBy::Clients => "client_count",
            SweptBy::Pool => "pool",
            SweptBy::Pipeline => "pipeline",
            SweptBy::WritePct => "write_pct",
            SweptBy::ValueBytes => "value_bytes",
        }
    }

    /// Where the plots by it lie.
    pub(crate) fn folder(self) -> String {
        format!("plots_by_{}", self.file())
    }

    /// In titles and beside axes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            SweptBy::Slaves => "number of slaves",
            SweptBy::Clients => "number of clients",
            SweptBy::Pool => "connections of each client",
            SweptBy::Pipeline => "requests in flight on each connection",
            SweptBy::WritePct => "writes (% of requests)",
            SweptBy::ValueBytes => "length of a value (bytes)",
        }
    }

    /// At the head of a column.
    pub(crate) fn word(self) -> &'static str {
        match self {
            SweptBy::Slaves => "slaves",
            SweptBy::Clients => "clients",
            SweptBy::Pool => "pool",
            SweptBy::Pipeline => "pipeline",
            SweptBy::WritePct => "writes, %",
            SweptBy::ValueBytes => "value, B",
        }
    }

    /// One value with its unit, or, given the ends, all between them: `1–9 slaves`.
    pub(super) fn shown(self, first: f64, last: f64) -> String {
        let one = first == last;
        let values = if one { short(first) } else { format!("{}–{}", short(first), short(last)) };
        let s = if one && first == 1.0 { "" } else { "s" };
        match self {
            SweptBy::Slaves => format!("{values} slave{s}"),
            SweptBy::Clients => format!("{values} client{s}"),
            SweptBy::Pool => format!("pool of {values}"),
            SweptBy::Pipeline => format!("pipeline of {values}"),
            SweptBy::WritePct => format!("{values} % writes"),
            SweptBy::ValueBytes => format!("{values} B values"),
        }
    }

    /// Its value in `run`.
    pub(crate) fn of(self, run: &RunRecord) -> f64 {
        let settings = &run.settings;
        match self {
            SweptBy::Slaves => settings.slaves.into(),
            SweptBy::Clients => settings.clients.into(),
            SweptBy::Pool => settings.pool.into(),
            SweptBy::Pipeline => settings.pipeline.into(),
            SweptBy::WritePct => settings.write_pct,
            SweptBy::ValueBytes => settings.value_bytes.into(),
        }
    }

    /// The different values in `sweep`, ascending.
    pub(super) fn values(self, sweep: &SweepRecord) -> Vec<f64> {
        let mut values: Vec<f64> = sweep.runs.iter().map(|run| self.of(run)).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values
    }

    /// The dimensions in which the runs of `sweep` differ.
    pub(crate) fn varied(sweep: &SweepRecord) -> Vec<SweptBy> {
        SweptBy::ALL.into_iter().filter(|dimension| dimension.values(sweep).len() > 1).collect()
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

    /// The name as it stands in names of files.
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
    pub(super) fn explains(self, by: SweptBy, sweep: &SweepRecord) -> String {
        // Neither differs between the runs of a sweep.
        let settings = sweep.runs.first().map(|run| &run.settings);
        let from = match settings.and_then(|settings| settings.rate) {
            Some(_) => {
                "from the moment at which each was due (--rate), however long it then waited to be sent,"
            }
            None => "from sending the request",
        };
        let what = match self {
            Measure::Throughput => {
                "Successful requests per second, reads and writes together; failed requests do not count. \
                 A line that flattens while clients are added shows where the store, or this machine, is full."
                    .to_owned()
            }
            Measure::ReadLatency => {
                format!("How long successful reads took, {from} to the whole answer, as a client sees it.")
            }
            Measure::WriteLatency => {
                let promise = match settings.map(|settings| (&settings.target, settings.wait)) {
                    Some((Some(_), Some(_))) => {
                        "until the store had acknowledged them and WAIT the replicas that were asked for"
                    }
                    Some((Some(_), None)) => "until the store had acknowledged them",
                    _ => {
                        "until the store had promised to keep them: in the log, as --fsync asks, and on ⌈n/2⌉ of the n \
                         slaves"
                    }
                };
                format!("How long successful writes took, {from} {promise}.")
            }
            Measure::ErrorRate => "The share of requests that did not succeed, of whatever class.".to_owned(),
        };
        let alone = SweptBy::varied(sweep).into_iter().all(|dimension| dimension == by);
        let lines = match (alone, self) {
            (true, Measure::ReadLatency | Measure::WriteLatency) => {
                " The line is the mean; the bands reach from the median to the 90th and on to the 99th percentile."
            }
            (true, Measure::Throughput) => " The band holds the middle 80 % of the run's seconds.",
            (true, Measure::ErrorRate) => "",
            (false, Measure::ReadLatency | Measure::WriteLatency) => " Each line joins means of whole runs.",
            (false, _) => " Each line joins whole runs.",
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

/// More lines than this are not told apart by name.
const NAMED_MAX: usize = 12;

/// The runs that differ in `by` alone, as one line each: what they have in common, and the runs.
fn lines(sweep: &SweepRecord, by: SweptBy) -> Vec<(String, Vec<&RunRecord>)> {
    let others: Vec<SweptBy> =
        SweptBy::varied(sweep).into_iter().filter(|dimension| *dimension != by).collect();
    let mut lines: Vec<(Vec<f64>, Vec<&RunRecord>)> = Vec::new();
    for run in &sweep.runs {
        let place: Vec<f64> = others.iter().map(|other| other.of(run)).collect();
        match lines.iter_mut().find(|(known, _)| *known == place) {
            Some((_, runs)) => runs.push(run),
            None => lines.push((place, vec![run])),
        }
    }
    lines.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    // Of too many lines, names go to some that are evenly apart, the first and the last among them.
    let last = lines.len().saturating_sub(1);
    let named = |at: usize| {
        last < NAMED_MAX
            || (0..NAMED_MAX).any(|nth| at == (nth * last + (NAMED_MAX - 1) / 2) / (NAMED_MAX - 1))
    };
    let name = |place: Vec<f64>| {
        let parts = others.iter().zip(place).map(|(other, value)| other.shown(value, value));
        parts.collect::<Vec<_>>().join(", ")
    };
    lines
        .into_iter()
        .enumerate()
        .map(|(at, (place, runs))| (if named(at) { name(place) } else { String::new() }, runs))
        .collect()
}

/// `measure` against `by`: one line for each value of what else differs.
pub(super) fn figure(sweep: &SweepRecord, measure: Measure, by: SweptBy) -> Figure {
    let values = by.values(sweep);
    let lines = lines(sweep, by);
    let alone = lines.len() == 1;
    let count_of_lines = lines.len();
    let mut marks = Vec::new();
    let mut all = Vec::new();
    for (index, (name, runs)) in lines.into_iter().enumerate() {
        let (colour, shape) =
            if alone { (measure_colour(measure), Marker::Circle) } else { in_order(index, count_of_lines) };
        let label = if !alone {
            name
        } else if matches!(measure, Measure::ReadLatency | Measure::WriteLatency) {
            "mean".to_owned()
        } else {
            "each run".to_owned()
        };
        if alone {
            spread(sweep, measure, by, colour, &mut marks, &mut all);
        }
        // Runs at the same place are joined by their mean.
        let mut sums: Vec<(f64, f64, f64)> = Vec::new();
        let mut points = Vec::new();
        for run in runs {
            let (x, y) = (by.of(run), measure.of(run));
            all.push(y);
            points.push(Point { x, y, hollow: run.totals.bound_by_think });
            if y.is_finite() {
                match sums.iter_mut().find(|(known, ..)| *known == x) {
                    Some((_, sum, of)) => (*sum, *of) = (*sum + y, *of + 1.0),
                    None => sums.push((x, y, 1.0)),
                }
            }
        }
        sums.sort_by(|a, b| a.0.total_cmp(&b.0));
        let means = sums.into_iter().map(|(x, sum, of)| Point::new(x, sum / of)).collect();
        let stroke = if values.len() > 1 { Stroke::Thin } else { Stroke::None };
        marks.push(Mark::Line { label: label.clone(), colour, stroke, shape: None, points: means });
        marks.push(Mark::Line { label, colour, stroke: Stroke::None, shape: Some(shape), points });
    }
    let name = measure.axis_name();
    let y = match measure {
        Measure::ReadLatency | Measure::WriteLatency => {
            let name = if !alone { format!("mean {name}") } else { name.to_owned() };
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
    let mut subtitle = vec![describe(sweep, &[by])];
    if count_of_lines > NAMED_MAX {
        subtitle.push(format!("{NAMED_MAX} of the {count_of_lines} lines are named."));
    }
    subtitle.extend(think_note(sweep));
    let x = Axis::for_counts(by.name(), &values);
    Figure {
        title: format!("{} by {}", measure.title(), by.name()),
        subtitle,
        panels: vec![Panel { title: String::new(), x, y, marks, events: Vec::new(), note }],
        columns: 1,
    }
}

/// Around the only line: the bands of its percentiles, or of its seconds.
fn spread(
    sweep: &SweepRecord,
    measure: Measure,
    by: SweptBy,
    colour: RGBColor,
    marks: &mut Vec<Mark>,
    all: &mut Vec<f64>,
) {
    // Of repeated runs the widest counts.
    let mut inner: Vec<(f64, f64, f64)> = Vec::new();
    let mut outer: Vec<(f64, f64, f64)> = Vec::new();
    let widen = |bands: &mut Vec<(f64, f64, f64)>, x: f64, low: f64, high: f64| match bands
        .iter_mut()
        .find(|(known, ..)| *known == x)
    {
        Some((_, lowest, highest)) => (*lowest, *highest) = (lowest.min(low), highest.max(high)),
        None => bands.push((x, low, high)),
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
    for (mut bands, label, alpha) in [(inner, names[0], 0.28), (outer, names[1], 0.13)] {
        if bands.is_empty() {
            continue;
        }
        bands.sort_by(|a, b| a.0.total_cmp(&b.0));
        all.extend(bands.iter().flat_map(|(_, low, high)| [*low, *high]));
        marks.push(Mark::Band { label: label.to_owned(), colour, alpha, points: bands });
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
    let varied = SweptBy::varied(sweep);
    let labels: Vec<String> = sweep
        .runs
        .iter()
        .enumerate()
        .map(|(at, run)| match varied.as_slice() {
            [] => (at + 1).to_string(),
            varied => varied.iter().map(|by| short(by.of(run))).collect::<Vec<_>>().join("×"),
        })
        .collect();
    let name = match varied.as_slice() {
        [] => "run".to_owned(),
        [only] => only.name().to_owned(),
        several => several.iter().map(|by| by.word()).collect::<Vec<_>>().join(" × "),
    };
    let rate = |run: &RunRecord, of: u64| if run.duration_s > 0.0 { of as f64 / run.duration_s } else { 0.0 };
    let stacks: Vec<[f64; 3]> = sweep
        .runs
        .iter()
        .map(|run| {
            [run.totals.read_count, run.totals.write_count, run.totals.error_count].map(|of| rate(run, of))
        })
        .collect();
    let x = Axis::for_names(name, labels);
    let places = (0..stacks.len()).map(|at| (at as f64 - 0.4, at as f64 + 0.4));
    let mut subtitle = vec![describe(sweep, &varied)];
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
