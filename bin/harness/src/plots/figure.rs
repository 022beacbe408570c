//! What a plot shows, without how it is painted: panels, axes, marks, events. Plots build one, `paint` draws it.

use plotters::style::RGBColor;

use super::axis::Axis;

/// Colours of Okabe and Ito, which people with any colour vision tell apart, without the yellow that white swallows.
pub(super) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(super) const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub(super) const VERMILION: RGBColor = RGBColor(213, 94, 0);
pub(super) const GREEN: RGBColor = RGBColor(0, 158, 115);
pub(super) const PURPLE: RGBColor = RGBColor(204, 121, 167);
pub(super) const GREY: RGBColor = RGBColor(120, 126, 133);

pub(super) struct Figure {
    pub(super) title: String,
    /// Lines under the title.
    pub(super) subtitle: Vec<String>,
    /// From top to bottom.
    pub(super) panels: Vec<Panel>,
    /// How many panels stand side by side; at least 1.
    pub(super) columns: usize,
}

/// One pair of axes and what is drawn between them.
pub(super) struct Panel {
    /// Empty in a figure of one panel.
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    /// Painted in this order.
    pub(super) marks: Vec<Mark>,
    pub(super) events: Vec<TimeMark>,
    /// Written across an empty panel: why there is nothing to see.
    pub(super) note: Option<String>,
}

/// Something drawn. Marks with one label share a legend entry; an empty label has none.
pub(super) enum Mark {
    /// The area between two curves: x, low, high.
    Band { label: String, colour: RGBColor, alpha: f64, points: Vec<(f64, f64, f64)> },
    /// A curve. A value that its axis cannot show (not a number; zero on a logarithmic axis) is a gap.
    Line { label: String, colour: RGBColor, stroke: Stroke, shape: Option<Marker>, points: Vec<Point> },
    /// Rectangles, each from `low` to `high`.
    Bars { label: String, colour: RGBColor, values_shown: bool, bars: Vec<Bar> },
}

impl Mark {
    pub(super) fn label(&self) -> &str {
        match self {
            Mark::Band { label, .. } | Mark::Line { label, .. } | Mark::Bars { label, .. } => label,
        }
    }
}

/// How a curve's points are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stroke {
    None,
    Thin,
    Thick,
    Dashed,
}

/// The marker at each point of a curve, so that curves differ by more than their colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Dot,
    Circle,
    Square,
    Triangle,
    Diamond,
    Wedge,
}

/// One point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Drawn as an outline: the figure's subtitle says why.
    pub(super) hollow: bool,
}

impl Point {
    pub(super) fn new(x: f64, y: f64) -> Point {
        Point { x, y, hollow: false }
    }
}

/// One rectangle, in the values of the axes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bar {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Something that happened at a point in time, or lasted until another.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TimeMark {
    pub(super) at: f64,
    pub(super) until: Option<f64>,
    pub(super) label: String,
}

/// The colour and marker of the `at`-th of `of` curves whose order means something (a growing number of clients): from
/// dark violet over blue and green to a yellow-green that still shows on white, lightness growing all the way.
pub(super) fn in_order(at: usize, of: usize) -> (RGBColor, Marker) {
    const STOPS: [(f64, f64, f64); 6] = [
        (68.0, 1.0, 84.0),
        (65.0, 68.0, 135.0),
        (42.0, 120.0, 142.0),
        (34.0, 168.0, 132.0),
        (100.0, 190.0, 70.0),
        (170.0, 190.0, 20.0),
    ];
    const SHAPES: [Marker; 5] =
        [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond, Marker::Wedge];
    let place = if of > 1 { at.min(of - 1) as f64 / (of - 1) as f64 } else { 0.4 } * (STOPS.len() - 1) as f64;
    let stop = (place as usize).min(STOPS.len() - 2);
    let part = place - stop as f64;
    let mix = |a: f64, b: f64| (a + (b - a) * part).round() as u8;
    let (a, b) = (STOPS[stop], STOPS[stop + 1]);
    (RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2)), SHAPES[at % SHAPES.len()])
}

/// The labels of `events` as they are written, and the key to them: the names themselves where they fit, otherwise a
/// letter for each different name.
pub(super) fn abbreviate(events: &[TimeMark]) -> (Vec<String>, Vec<(String, String)>) {
    let mut key: Vec<(String, String)> = Vec::new();
    let short = events
        .iter()
        .map(|event| {
            if let Some((letter, _)) = key.iter().find(|(_, name)| *name == event.label) {
                return letter.clone();
            }
            let at = key.len();
            let letter = char::from(b'A' + (at % 26) as u8).to_string();
            let letter = if at < 26 { letter } else { format!("{letter}{}", at / 26) };
            key.push((letter.clone(), event.label.clone()));
            letter
        })
        .collect();
    (short, key)
}

/// Puts labels that start at `starts` and are `widths` wide into as few rows as keep them apart by `gap`: the row of
/// each, or `None` where `rows_max` rows do not suffice for it. `starts` must be ascending.
///
/// A label stands above all that begin under it, so that the line down from its own beginning crosses none of them.
pub(super) fn rows(starts: &[f64], widths: &[f64], gap: f64, rows_max: usize) -> Vec<Option<usize>> {
    let mut rows: Vec<Option<usize>> = vec![None; starts.len()];
    for at in (0..starts.len()).rev() {
        let end = starts[at] + widths[at] + gap;
        let under = (at + 1..starts.len()).take_while(|later| starts[*later] < end);
        let row = under.filter_map(|later| rows[later]).max().map_or(0, |row| row + 1);
        rows[at] = (row < rows_max).then_some(row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_would_overlap_go_into_further_rows() {
        assert_eq!(rows(&[0.0, 10.0, 40.0], &[30.0, 30.0, 30.0], 2.0, 3), [Some(2), Some(1), Some(0)]);
        assert_eq!(rows(&[0.0, 1.0, 2.0], &[30.0; 3], 2.0, 2), [None, Some(1), Some(0)]);
    }

    #[test]
    fn events_of_one_name_share_a_letter() {
        let event = |label: &str| TimeMark { at: 0.0, until: None, label: label.to_owned() };
        let (short, key) = abbreviate(&[event("kill"), event("pause"), event("kill")]);
        assert_eq!(short, ["A", "B", "A"]);
        assert_eq!(key, [("A".to_owned(), "kill".to_owned()), ("B".to_owned(), "pause".to_owned())]);
    }

    #[test]
    fn ordered_colours_differ() {
        let colours: std::collections::BTreeSet<_> =
            (0..9).map(|at| in_order(at, 9).0).map(|colour| (colour.0, colour.1, colour.2)).collect();
        assert_eq!(colours.len(), 9);
    }
}
