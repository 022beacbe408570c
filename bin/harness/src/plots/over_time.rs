//! Plots of one run over time: throughput, latency percentiles, and what the requests were, with the faults marked.

use super::axis::Axis;
use super::by_count::stacked;
use super::figure::{
    Figure, Mark, Marker, Panel, Point, Stroke, TimeMark, BLUE, GREEN, GREY, PURPLE, VERMILION,
};
use super::paint::event_key;
use super::{describe, printable, think_note};
use crate::record::{Percentiles, RunRecord, Second, SweepRecord};

/// More points than this are merged, so that a run of days still gives a plot that can be read.
const POINTS_MAX: usize = 600;
/// As many bars can be told apart.
const BARS_MAX: usize = 150;

/// Takes the latencies of the reads, or of the writes, and how many there were, from a second.
type Kind = fn(&Second) -> (&Percentiles, u64);

/// Plots successes and errors a second.
pub(super) fn throughput(run: &RunRecord) -> Figure {
    let merged = merge(&run.seconds, POINTS_MAX);
    let ok: Vec<Point> = merged.placed().map(|(x, second, _)| Point::new(x, second.throughput_rps)).collect();
    let errors = error_rate(&merged);
    let some_errors = errors.iter().any(|point| point.y > 0.0);
    let top = ok
        .iter()
        .chain(&errors)
        .map(|point| point.y)
        .fold(0.0, f64::max)
        .max(run.settings.rate.unwrap_or(0.0));
    let mut marks = Vec::new();
    if let Some(rate) = run.settings.rate {
        let points = vec![Point::new(0.0, rate), Point::new(end(run), rate)];
        marks.push(Mark::Line {
            label: "rate asked for".into(),
            colour: GREY,
            stroke: Stroke::Dashed,
            shape: None,
            points,
        });
    }
    let shape = match ok.len() {
        0..=10 => Some(Marker::Circle),
        11..=60 => Some(Marker::Dot),
        _ => None,
    };
    marks.push(Mark::Line {
        label: "successful requests".into(),
        colour: GREEN,
        stroke: Stroke::Thin,
        shape,
        points: ok,
    });
    if some_errors {
        marks.push(Mark::Line {
            label: "errors".into(),
            colour: PURPLE,
            stroke: Stroke::Thin,
            shape: None,
            points: errors,
        });
    }
    let panel = Panel {
        title: String::new(),
        x: Axis::for_time(end(run)),
        y: Axis::from_zero("requests/s", top),
        marks,
        events: events(run),
        note: empty(run),
    };
    figure("Throughput over time", run, &merged, "mean", vec![panel])
}

fn error_rate(merged: &Merged) -> Vec<Point> {
    let rate = |second: &Second, width: f64| second.error_count as f64 / width.max(1e-3);
    merged.placed().map(|(x, second, width)| Point::new(x, rate(second, width))).collect()
}

/// Percentiles of the reads' and the writes' latencies.
pub(super) fn latency(run: &RunRecord) -> Figure {
    let merged = merge(&run.seconds, POINTS_MAX);
    let kinds: [(&str, Kind); 2] = [
        ("reads", |second| (&second.read, second.read_count)),
        ("writes", |second| (&second.write, second.write_count)),
    ];
    // One scale for both, so that they compare.
    let all = merged.points.iter().flat_map(|second| {
        let kind = |p: &Percentiles, of: u64| {
            if of > 0 {
                [p.p50, p.p99, p.max].map(|v| v as f64)
            } else {
                [0.0; 3]
            }
        };
        [kind(&second.read, second.read_count), kind(&second.write, second.write_count)].concat()
    });
    let y = Axis::for_latency("latency (µs)", all);
    let mut panels = Vec::new();
    for (name, of) in kinds {
        if !merged.points.iter().any(|second| of(second).1 > 0) {
            continue;
        }
        let mut axis = y.clone();
        axis.name = format!("latency of {name} (µs)");
        panels.push(Panel {
            title: if name == "reads" { "Reads".to_owned() } else { "Writes".to_owned() },
            x: Axis::for_time(end(run)),
            y: axis,
            marks: percentiles(&merged, of),
            events: events(run),
            note: None,
        });
    }
    if panels.is_empty() {
        let (x, note) = (Axis::for_time(end(run)), Some("no request succeeded".to_owned()));
        panels.push(Panel { title: String::new(), x, y, marks: Vec::new(), events: events(run), note });
    }
    figure("Latency percentiles over time", run, &merged, "worst", panels)
}

fn percentiles(merged: &Merged, of: Kind) -> Vec<Mark> {
    let value = |second: &Second, pick: fn(&Percentiles) -> u64| {
        let (percentiles, count) = of(second);
        if count == 0 {
            f64::NAN
        } else {
            // Less than a microsecond still shows on a logarithmic axis.
            (pick(percentiles) as f64).max(1.0)
        }
    };
    let band =
        |label: &str, alpha: f64, low: fn(&Percentiles) -> u64, high: fn(&Percentiles) -> u64| Mark::Band {
            label: label.to_owned(),
            colour: BLUE,
            alpha,
            points: merged
                .placed()
                .map(|(x, second, _)| (x, value(second, low), value(second, high)))
                .collect(),
        };
    let line = |label: &str, colour, stroke, shape, pick: fn(&Percentiles) -> u64| Mark::Line {
        label: label.to_owned(),
        colour,
        stroke,
        shape,
        points: merged.placed().map(|(x, second, _)| Point::new(x, value(second, pick))).collect(),
    };
    vec![
        band("p50 to p90", 0.34, |p| p.p50, |p| p.p90),
        band("p90 to p99", 0.15, |p| p.p90, |p| p.p99),
        line("slowest", GREY, Stroke::None, Some(Marker::Dot), |p| p.max),
        line("p99.9", VERMILION, Stroke::Thin, None, |p| p.p999),
        line("p99", GREEN, Stroke::Thin, None, |p| p.p99),
        line("p50 (median)", BLUE, Stroke::Thick, None, |p| p.p50),
    ]
}

/// What the requests of each second were.
pub(super) fn breakdown(run: &RunRecord) -> Figure {
    let merged = merge(&run.seconds, BARS_MAX);
    let places: Vec<(f64, f64)> = merged
        .points
        .iter()
        .enumerate()
        .map(|(at, second)| {
            let from = if at == 0 { 0.0 } else { merged.points[at - 1].at_s };
            let air = (second.at_s - from) * 0.06;
            (from + air, second.at_s - air)
        })
        .collect();
    let stacks: Vec<[f64; 3]> = merged
        .points
        .iter()
        .zip(&merged.widths)
        .map(|(second, width)| {
            let width = width.max(1e-3);
            [second.read_count, second.write_count, second.error_count].map(|count| count as f64 / width)
        })
        .collect();
    let mut panel = stacked(Axis::for_time(end(run)), &places, &stacks);
    panel.events = events(run);
    let mut figure = figure("Reads, writes and errors over time", run, &merged, "mean", vec![panel]);
    let at = figure.subtitle.len().min(1);
    if let Some(shares) = super::shares(std::iter::once(&run.totals)) {
        figure.subtitle.insert(at, shares);
    }
    figure
}

fn figure(title: &str, run: &RunRecord, merged: &Merged, kind: &str, panels: Vec<Panel>) -> Figure {
    let sweep = SweepRecord { runs: vec![bare(run)], ..SweepRecord::default() };
    let mut subtitle = vec![describe(&sweep, &[])];
    if merged.each > 1 {
        subtitle.push(format!("Each point is the {kind} of {} seconds.", merged.each));
    }
    subtitle.extend(think_note(&sweep));
    subtitle
        .extend(panels.first().and_then(event_key).iter().flat_map(|key| wrap(&format!("Faults: {key}"))));
    Figure { title: title.to_owned(), subtitle, panels, columns: 1 }
}

/// `run` without what is long.
fn bare(run: &RunRecord) -> RunRecord {
    RunRecord { seconds: Vec::new(), ..run.clone() }
}

fn empty(run: &RunRecord) -> Option<String> {
    match run.totals.success_count {
        _ if run.seconds.is_empty() => Some("no second was measured".to_owned()),
        0 => Some("no request succeeded".to_owned()),
        _ => None,
    }
}

fn events(run: &RunRecord) -> Vec<TimeMark> {
    run.faults
        .iter()
        .map(|fault| TimeMark {
            at: fault.at_s,
            until: fault.until_s,
            label: shorten(&printable(&fault.name), 32),
        })
        .collect()
}

/// At most `max` characters.
fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max - 1).chain(['…']).collect()
}

/// `text` in at most three lines that fit under a title, broken after commas.
fn wrap(text: &str) -> Vec<String> {
    const LINE_MAX: usize = 130;
    let mut lines = vec![String::new()];
    for word in text.split_inclusive(", ").map(str::trim_end) {
        let (count, Some(line)) = (lines.len(), lines.last_mut()) else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= LINE_MAX {
            line.push(' ');
            line.push_str(word);
        } else if count < 3 {
            lines.push(word.to_owned());
        } else {
            line.push_str(" …");
            break;
        }
    }
    lines
}

/// The end of the last second, or of the last fault if that is later.
fn end(run: &RunRecord) -> f64 {
    let faults = run.faults.iter().flat_map(|fault| [Some(fault.at_s), fault.until_s]).flatten();
    run.seconds.iter().map(|second| second.at_s).chain([run.duration_s]).chain(faults).fold(0.0, f64::max)
}

/// Seconds, merged where there are too many.
struct Merged {
    points: Vec<Second>,
    /// Length of each in seconds.
    widths: Vec<f64>,
    /// How many seconds a point stands for.
    each: usize,
}

impl Merged {
    /// Each point with the middle of its time, to which its value belongs, and the length of it.
    fn placed(&self) -> impl Iterator<Item = (f64, &Second, f64)> {
        self.points
            .iter()
            .zip(&self.widths)
            .map(|(second, width)| (second.at_s - 0.5 * width, second, *width))
    }
}

/// At most `max` points: counts are added, rates are means, latencies the worst of the seconds merged.
fn merge(seconds: &[Second], max: usize) -> Merged {
    let each = seconds.len().div_ceil(max).max(1);
    let mut points = Vec::with_capacity(seconds.len() / each + 1);
    let mut widths = Vec::with_capacity(seconds.len() / each + 1);
    let mut before = 0.0;
    for part in seconds.chunks(each) {
        let mut sum = Second::default();
        for second in part {
            sum.at_s = sum.at_s.max(second.at_s);
            sum.success_count += second.success_count;
            sum.error_count += second.error_count;
            sum.read_count += second.read_count;
            sum.write_count += second.write_count;
            sum.throughput_rps += second.throughput_rps / part.len() as f64;
            sum.read = worst(&sum.read, &second.read);
            sum.write = worst(&sum.write, &second.write);
        }
        widths.push(sum.at_s - before);
        before = sum.at_s;
        points.push(sum);
    }
    Merged { points, widths, each }
}

fn worst(a: &Percentiles, b: &Percentiles) -> Percentiles {
    Percentiles {
        p50: a.p50.max(b.p50),
        p90: a.p90.max(b.p90),
        p99: a.p99.max(b.p99),
        p999: a.p999.max(b.p999),
        max: a.max.max(b.max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_is_merged_to_a_bounded_number_of_points_and_keeps_its_spikes() {
        let seconds: Vec<Second> = (1..=86_400)
            .map(|at| Second {
                at_s: f64::from(at),
                throughput_rps: 10.0,
                write_count: 10,
                error_count: 3,
                write: Percentiles { max: if at == 5_000 { 777 } else { 1 }, ..Percentiles::default() },
                ..Second::default()
            })
            .collect();
        let merged = merge(&seconds, POINTS_MAX);
        assert_eq!((merged.each, merged.points.len()), (144, POINTS_MAX));
        assert_eq!(merged.points.iter().map(|second| second.write.max).max(), Some(777));
        assert_eq!(merged.points.iter().map(|second| second.write_count).sum::<u64>(), 864_000);
        assert!(merged.points.iter().all(|second| (second.throughput_rps - 10.0).abs() < 1e-6));
        let rates = error_rate(&merged);
        assert!(rates.iter().all(|point| (point.y - 3.0).abs() < 1e-6), "errors a second, not a point");
        assert_eq!((rates[0].x, rates[1].x), (72.0, 216.0));
    }
}
