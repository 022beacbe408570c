//! How evenly the slaves were loaded, and how evenly chance alone would load them.

use super::axis::Axis;
use super::figure::{Bar, Figure, Mark, Marker, Panel, Point, Stroke, BLUE, GREY, ORANGE, VERMILION};
use super::number::{count, thousands};
use super::printable;
use crate::record::{PlacementRecord, SlaveLoad};

/// What decides which slaves a write goes to, and so how far their loads differ by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spread {
    /// Every write chooses anew.
    EachWrite,
    /// The key chooses, and each write takes one of so many keys, all equally likely.
    Keys(u64),
    /// The key chooses, and this is the sum of the squares of the keys' numbers of writes.
    Counted(u64),
    /// Nothing is known, or some keys are more popular than others: no spread is drawn.
    Unknown,
}

impl Spread {
    /// How the band was computed, for people.
    pub(super) fn explains(self) -> String {
        let band = "the dashed line is the expected mean, writes × copies / slaves; ";
        let how = match self {
            Spread::EachWrite => {
                "the band is ±2σ of a binomial spread, σ² = W·p·(1−p) with p = copies / slaves, as every write chooses \
                 its slaves anew or has a key of its own: about 19 of 20 slaves lie inside."
                    .to_owned()
            }
            Spread::Keys(keys) => format!(
                "the band is ±2σ. Writes of one key go to the same slaves, so σ² = p·(1−p)·W·(1 + (W−1)/K), with \
                 p = copies / slaves and K = {} keys: about 19 of 20 slaves lie inside.",
                count(keys)
            ),
            Spread::Counted(squares) => format!(
                "the band is ±2σ. Writes of one key go to the same slaves, so σ² = p·(1−p)·Σw², with p = copies / slaves \
                 and Σw² = {} over the keys' numbers of writes w: about 19 of 20 slaves lie inside.",
                count(squares)
            ),
            Spread::Unknown => {
                "no band is drawn, because the popularity of the keys, or the placement, is not known.".to_owned()
            }
        };
        format!("{band}{how}")
    }
}

/// What each slave should have had.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Expected {
    /// Mean number of writes of a slave.
    mean: f64,
    /// Standard deviation of a slave's number of writes, where it is known.
    sigma: Option<f64>,
}

/// The expected load of one of `slaves` slaves when each of `writes` writes goes to `copies` of them.
///
/// A write reaches a given slave with probability p = copies / slaves. Where every write chooses anew, a slave's number of
/// writes is binomial: mean W·p, variance W·p·(1−p). Where the key chooses, all writes of a key go to the same
/// slaves: the variance is p·(1−p)·Σw², the sum over the keys' numbers of writes w. For W writes drawn uniformly from K
/// keys the expectation of Σw² is W·(1 + (W−1)/K).
fn expected(slaves: u64, writes: u64, copies: u64, spread: Spread) -> Expected {
    if slaves == 0 {
        return Expected { mean: 0.0, sigma: None };
    }
    let writes = writes as f64;
    let p = (copies as f64 / slaves as f64).min(1.0);
    let squares = match spread {
        Spread::EachWrite => Some(writes),
        Spread::Keys(keys) => Some(writes * (1.0 + (writes - 1.0).max(0.0) / keys.max(1) as f64)),
        Spread::Counted(squares) => Some(squares as f64),
        Spread::Unknown => None,
    };
    Expected { mean: writes * p, sigma: squares.map(|squares| (squares * p * (1.0 - p)).sqrt()) }
}

/// The loads of each placement, side by side: counts above, deviations from the expected mean below.
pub(super) fn figure(title: &str, subtitle: Vec<String>, placements: &[(PlacementRecord, Spread)]) -> Figure {
    let placements: Vec<(PlacementRecord, Expected)> = placements
        .iter()
        .map(|(record, spread)| {
            let mut record = record.clone();
            record.loads.sort_by(|a, b| (a.slave.len(), &a.slave).cmp(&(b.slave.len(), &b.slave)));
            let expected = expected(record.loads.len() as u64, record.writes, record.copies, *spread);
            (record, expected)
        })
        .collect();
    // One scale for all, so that they compare.
    let top = placements
        .iter()
        .flat_map(|(record, expected)| {
            record.loads.iter().map(|load| load.writes as f64).chain([expected.mean])
        })
        .fold(0.0, f64::max);
    let reach = placements
        .iter()
        .filter(|(_, expected)| expected.mean > 0.0)
        .flat_map(|(record, expected)| {
            let off = record.loads.iter().map(|load| deviation(load, expected).abs());
            off.chain(expected.sigma.map(|sigma| 3.0 * sigma / expected.mean * 100.0))
        })
        .fold(0.0, f64::max);
    let mut panels = Vec::new();
    for (record, expected) in &placements {
        panels.push(counts(record, expected, top));
    }
    for (record, expected) in &placements {
        panels.push(deviations(record, expected, reach));
    }
    Figure { title: title.to_owned(), subtitle, panels, columns: placements.len().max(1) }
}

fn deviation(load: &SlaveLoad, expected: &Expected) -> f64 {
    (load.writes as f64 - expected.mean) / expected.mean * 100.0
}

fn x_axis(record: &PlacementRecord) -> Axis {
    let names: Vec<String> = record.loads.iter().map(|load| printable(&load.slave)).collect();
    let (prefix, names) = without_common_prefix(&names);
    let name = if prefix.is_empty() { "slave".to_owned() } else { format!("slave ({prefix}…)") };
    Axis::for_names(name, names)
}

fn band(record: &PlacementRecord, low: f64, high: f64) -> Mark {
    let last = record.loads.len().max(1) as f64 - 0.4;
    let points = vec![(-0.6, low, high), (last, low, high)];
    Mark::Band { label: "expected, ±2σ".into(), colour: GREY, alpha: 0.30, points }
}

fn level(record: &PlacementRecord, label: &str, y: f64) -> Mark {
    let last = record.loads.len().max(1) as f64 - 0.4;
    let points = vec![Point::new(-0.6, y), Point::new(last, y)];
    Mark::Line { label: label.into(), colour: VERMILION, stroke: Stroke::Dashed, shape: None, points }
}

fn colour(record: &PlacementRecord) -> plotters::style::RGBColor {
    if record.placement == "random" {
        ORANGE
    } else {
        BLUE
    }
}

fn counts(record: &PlacementRecord, expected: &Expected, top: f64) -> Panel {
    let bars = record.loads.iter().enumerate().map(|(at, load)| {
        let at = at as f64;
        Bar { from: at - 0.36, to: at + 0.36, low: 0.0, high: load.writes as f64 }
    });
    let label = placement_label(record);
    let (mean, two) = (expected.mean, expected.sigma.map(|sigma| 2.0 * sigma));
    let title = match two {
        Some(two) => format!("{label}: expected {} ± {} (2σ)", thousands(mean, 0), thousands(two, 0)),
        None => format!("{label}: expected {}", thousands(mean, 0)),
    };
    let mut marks = vec![Mark::Bars {
        label,
        colour: colour(record),
        values_shown: record.loads.len() <= 12,
        bars: bars.collect(),
    }];
    marks.extend(two.map(|two| band(record, (mean - two).max(0.0), mean + two)));
    marks.push(level(record, "expected mean", mean));
    Panel {
        title,
        x: x_axis(record),
        y: Axis::from_zero("writes of the slave", top * 1.08),
        marks,
        events: Vec::new(),
        note: record.loads.is_empty().then(|| "no slave reported its load".to_owned()),
    }
}

fn deviations(record: &PlacementRecord, expected: &Expected, reach: f64) -> Panel {
    let mut marks = Vec::new();
    if expected.mean > 0.0 {
        let points = record.loads.iter().enumerate();
        let points = points.map(|(at, load)| Point::new(at as f64, deviation(load, expected))).collect();
        marks.extend(
            expected
                .sigma
                .map(|sigma| 2.0 * sigma / expected.mean * 100.0)
                .map(|two| band(record, -two, two)),
        );
        marks.push(level(record, "expected mean", 0.0));
        let shape = Some(Marker::Circle);
        marks.push(Mark::Line {
            label: String::new(),
            colour: colour(record),
            stroke: Stroke::None,
            shape,
            points,
        });
    }
    let note = marks.is_empty().then(|| "no write was counted".to_owned());
    Panel {
        title: "Off the expected mean".to_owned(),
        x: x_axis(record),
        y: Axis::around_zero("deviation (%)", reach * 1.1),
        marks,
        events: Vec::new(),
        note,
    }
}

fn placement_label(record: &PlacementRecord) -> String {
    match record.placement.as_str() {
        "hash" => "Placement by hash".to_owned(),
        "random" => "Random placement".to_owned(),
        other => printable(other),
    }
}

/// How a record's numbers come about, for a subtitle.
pub(super) fn rule(record: &PlacementRecord) -> String {
    let slaves = record.loads.len() as u64;
    format!(
        "{} writes, each to {} of {} slaves: {} × {} / {} = {} expected on each. Counted by the masters, from the slaves' acknowledgements.",
        count(record.writes),
        count(record.copies),
        count(slaves),
        count(record.writes),
        count(record.copies),
        count(slaves),
        thousands(record.writes as f64 * record.copies as f64 / slaves.max(1) as f64, 1),
    )
}

/// The names without the beginning that all share, and that beginning. A number is never cut in two.
fn without_common_prefix(names: &[String]) -> (String, Vec<String>) {
    let Some(first) = names.first().filter(|_| names.len() > 1) else {
        return (String::new(), names.to_vec());
    };
    let mut length = first.len();
    for name in names {
        let shared = first.char_indices().zip(name.chars()).find(|((_, a), b)| a != b);
        length = length.min(shared.map_or(first.len().min(name.len()), |((at, _), _)| at));
    }
    let shared = first[..length].trim_end_matches(|c: char| c.is_ascii_digit()).len();
    if names.iter().any(|name| name.len() == shared) {
        return (String::new(), names.to_vec());
    }
    (first[..shared].to_owned(), names.iter().map(|name| name[shared..].to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_writes_to_five_of_nine_slaves_spread_as_a_binomial() {
        let sigma = |expected: Expected| expected.sigma.unwrap_or(f64::NAN);
        let random = expected(9, 10_000, 5, Spread::EachWrite);
        assert!((random.mean - 5555.56).abs() < 0.01 && (sigma(random) - 49.69).abs() < 0.01, "{random:?}");
        // With few keys the keys' own luck dominates: 100 keys of about 100 writes each.
        let hash = expected(9, 10_000, 5, Spread::Keys(100));
        assert_eq!(hash.mean, random.mean);
        assert!((sigma(hash) - 49.69 * 100.99_f64.sqrt()).abs() < 0.5, "{hash:?}");
        assert_eq!(expected(1, 100, 1, Spread::EachWrite), Expected { mean: 100.0, sigma: Some(0.0) });
        assert_eq!(expected(0, 100, 1, Spread::Unknown), Expected { mean: 0.0, sigma: None });
    }

    /// The formula for hashed keys against writes that were really drawn: the spread of many slaves' loads.
    #[test]
    fn the_spread_of_hashed_keys_is_what_drawing_keys_gives() {
        use rand::{rngs::StdRng, RngExt as _, SeedableRng as _};
        let (slaves, copies, keys, writes, rounds) = (9usize, 5usize, 50usize, 2_000usize, 300);
        let mut random = StdRng::seed_from_u64(7);
        let mut squares = 0.0;
        let want = expected(slaves as u64, writes as u64, copies as u64, Spread::Keys(keys as u64));
        let want_sigma = want.sigma.unwrap_or(f64::NAN);
        for _ in 0..rounds {
            let mut loads = vec![0u64; slaves];
            let homes: Vec<Vec<usize>> = (0..keys)
                .map(|_| {
                    let mut all: Vec<usize> = (0..slaves).collect();
                    for at in 0..copies {
                        let with = random.random_range(at..slaves);
                        all.swap(at, with);
                    }
                    all.truncate(copies);
                    all
                })
                .collect();
            for _ in 0..writes {
                for home in &homes[random.random_range(0..keys)] {
                    loads[*home] += 1;
                }
            }
            squares +=
                loads.iter().map(|load| (*load as f64 - want.mean).powi(2)).sum::<f64>() / slaves as f64;
        }
        let sigma = (squares / f64::from(rounds)).sqrt();
        assert!((sigma / want_sigma - 1.0).abs() < 0.1, "drawn {sigma}, computed {want_sigma}");
    }

    #[test]
    fn names_are_shortened_without_cutting_a_number() {
        let cut =
            |names: &[&str]| without_common_prefix(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(cut(&["slave-1", "slave-2"]), ("slave-".into(), vec!["1".into(), "2".into()]));
        assert_eq!(cut(&["s11", "s12"]), ("s".into(), vec!["11".into(), "12".into()]));
        assert_eq!(cut(&["s", "s2"]), (String::new(), vec!["s".into(), "s2".into()]));
        assert_eq!(cut(&["ä1", "ö1"]).0, "");
    }
}
