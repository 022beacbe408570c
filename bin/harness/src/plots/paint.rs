//! Paints a [`Figure`] as PNG and as SVG. It owns sizes, fonts and the places of texts; it knows nothing of runs.
//!
//! Both come from one pass of drawing calls on the same grid of pixels, twice as fine as the size that is shown. The
//! letters of the PNG are a font inside the program, so that no machine needs one; the SVG names `sans-serif`.

use std::ops::Range;
use std::path::Path;

use anyhow::{anyhow, Context as _};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::FontTransform;

use super::axis::Axis;
use super::figure::{abbreviate, rows, Figure, Mark, Marker, Panel, Point, Stroke, TimeMark};
use super::raster::{self, Raster};

/// Pixels of the drawing for each pixel shown.
pub(super) const FINE: u32 = 2;
/// Width of each figure as shown.
pub(super) const WIDTH: u32 = 1000;

const INK: RGBColor = RGBColor(31, 36, 40);
const SOFT_INK: RGBColor = RGBColor(84, 92, 100);
const FRAME: RGBColor = RGBColor(130, 138, 146);
const GRID: RGBColor = RGBColor(226, 230, 234);

/// Sizes in pixels as shown.
const MARGIN: i32 = 16;
const TITLE: i32 = 20;
const TEXT: i32 = 13;
const SMALL: i32 = 12;
const LINE_HEIGHT: i32 = 19;
const EVENT_ROW: i32 = 16;
const EVENT_ROWS_MAX: usize = 4;
const X_LABELS: i32 = 48;
const Y_LABELS: i32 = 88;

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;
type Area<DB> = DrawingArea<DB, Shift>;

/// Paints `figure` to `path` with the extensions `png` and `svg`.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn save(figure: &Figure, path: &Path) -> anyhow::Result<()> {
    for (extension, bytes) in [("png", png(figure)?), ("svg", svg(figure)?.into_bytes())] {
        let path = path.with_extension(extension);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// `figure` as a PNG.
pub(super) fn png(figure: &Figure) -> anyhow::Result<Vec<u8>> {
    let (width, height) = size(figure);
    let mut pixels = vec![0; 3 * width as usize * height as usize];
    let area = Raster::new(&mut pixels, (width, height))?.into_drawing_area();
    paint(&area, figure).map_err(|e| anyhow!("cannot draw \"{}\": {e}", figure.title))?;
    drop(area);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    // 192 dots per inch: programs that mind it show the plot in the size it was made for.
    let dots_per_metre = 3780 * FINE;
    encoder.set_pixel_dims(Some(png::PixelDimensions {
        xppu: dots_per_metre,
        yppu: dots_per_metre,
        unit: png::Unit::Meter,
    }));
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// `figure` as an SVG document.
pub(super) fn svg(figure: &Figure) -> anyhow::Result<String> {
    let (width, height) = size(figure);
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
    paint(&area, figure).map_err(|e| anyhow!("cannot draw \"{}\": {e}", figure.title))?;
    drop(area);
    // The view box keeps the fine grid; width and height are the size shown.
    let fine = format!("<svg width=\"{width}\" height=\"{height}\"");
    let shown = format!("<svg width=\"{}\" height=\"{}\"", width / FINE, height / FINE);
    Ok(text.replacen(&fine, &shown, 1))
}

/// Width and height in pixels of the drawing.
pub(super) fn size(figure: &Figure) -> (u32, u32) {
    let columns = figure.columns.max(1);
    let each = match figure.panels.len().div_ceil(columns) {
        0 | 1 => 430,
        _ => 310,
    };
    let panels = figure.panels.len().div_ceil(columns).max(1) as u32 * each;
    let header = header_height(figure)
        + figure.panels.iter().map(|panel| event_strip(panel, WIDTH as i32).0).max().unwrap_or(0);
    (WIDTH * FINE, (panels + header.max(0) as u32) * FINE)
}

/// Pixels of the drawing.
fn fine(shown: i32) -> i32 {
    shown * FINE as i32
}

fn font(size: i32, bold: bool, colour: &RGBColor) -> TextStyle<'static> {
    // The backends take the size for the height of a line, and set the letters in 1/1.24 of it.
    let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
    FontDesc::new(FontFamily::SansSerif, f64::from(fine(size)) * raster::LINE, style).color(colour)
}

fn at(style: &TextStyle<'static>, h: HPos, v: VPos) -> TextStyle<'static> {
    style.pos(Pos::new(h, v))
}

/// Width of `text` in pixels as shown, with a little to spare: another `sans-serif` may be wider than ours.
fn width_of(text: &str, size: i32) -> f64 {
    raster::width(text, f64::from(size)) * 1.06
}

fn paint<DB: DrawingBackend>(root: &Area<DB>, figure: &Figure) -> Drawn<DB> {
    root.fill(&WHITE)?;
    let header = header(root, figure)?;
    let (width, height) = (WIDTH as i32, (size(figure).1 / FINE) as i32);
    let columns = figure.columns.max(1);
    let lines = figure.panels.len().div_ceil(columns).max(1);
    let gap = 14;
    for (index, one) in figure.panels.iter().enumerate() {
        let (column, line) = ((index % columns) as i32, (index / columns) as i32);
        let across = (width - 2 * MARGIN + gap) / columns as i32;
        let down = (height - header - 8) / lines as i32;
        let (left, top) = (MARGIN + column * across, header + line * down);
        panel(root, one, left..left + across - gap, top..top + down)?;
    }
    root.present()
}

/// The label, colour and looks of each entry of the legend.
fn legend(figure: &Figure) -> Vec<(String, Vec<&Mark>)> {
    let mut entries: Vec<(String, Vec<&Mark>)> = Vec::new();
    for mark in figure.panels.iter().flat_map(|panel| &panel.marks) {
        let label = mark.label();
        if label.is_empty() {
            continue;
        }
        match entries.iter_mut().find(|(known, _)| known == label) {
            Some((_, marks)) if marks.iter().any(|known| look_alike(known, mark)) => {}
            Some((_, marks)) => marks.push(mark),
            None => entries.push((label.to_owned(), vec![mark])),
        }
    }
    entries
}

/// Whether one swatch shows both.
fn look_alike(a: &Mark, b: &Mark) -> bool {
    match (a, b) {
        (Mark::Line { stroke: a, shape: of_a, .. }, Mark::Line { stroke: b, shape: of_b, .. }) => {
            (a, of_a) == (b, of_b)
        }
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

const SWATCH: f64 = 34.0;

/// The place of each legend entry, and the number of rows.
fn legend_places(entries: &[(String, Vec<&Mark>)]) -> (Vec<(i32, i32)>, i32) {
    let (mut x, mut row) = (f64::from(MARGIN), 0);
    let mut places = Vec::with_capacity(entries.len());
    for (label, _) in entries {
        let width = SWATCH + width_of(label, TEXT) + 20.0;
        if x + width > f64::from(WIDTH as i32 - MARGIN) && x > f64::from(MARGIN) {
            x = f64::from(MARGIN);
            row += 1;
        }
        places.push((x as i32, row));
        x += width;
    }
    (places, if entries.is_empty() { 0 } else { row + 1 })
}

fn header_height(figure: &Figure) -> i32 {
    let legend_rows = legend_places(&legend(figure)).1;
    let legend = if legend_rows > 0 { legend_rows * LINE_HEIGHT + 8 } else { 0 };
    MARGIN + TITLE + 10 + figure.subtitle.len() as i32 * (LINE_HEIGHT - 1) + legend + 12
}

/// Title, subtitle and legend; gives their height.
fn header<DB: DrawingBackend>(
    root: &Area<DB>,
    figure: &Figure,
) -> Result<i32, DrawingAreaErrorKind<DB::ErrorType>> {
    let left_top = |style| at(&style, HPos::Left, VPos::Top);
    let mut y = MARGIN - 4;
    root.draw_text(&figure.title, &left_top(font(TITLE, true, &INK)), (fine(MARGIN), fine(y)))?;
    y += TITLE + 12;
    for line in &figure.subtitle {
        root.draw_text(line, &left_top(font(TEXT, false, &SOFT_INK)), (fine(MARGIN), fine(y)))?;
        y += LINE_HEIGHT - 1;
    }
    y += 8;
    let entries = legend(figure);
    let (places, _) = legend_places(&entries);
    for ((label, marks), (x, row)) in entries.iter().zip(places) {
        let middle = y + row * LINE_HEIGHT + LINE_HEIGHT / 2;
        for mark in marks {
            swatch(root, mark, (x, middle))?;
        }
        let style = at(&font(TEXT, false, &INK), HPos::Left, VPos::Center);
        root.draw_text(label, &style, (fine(x) + fine(SWATCH as i32), fine(middle)))?;
    }
    Ok(header_height(figure))
}

fn swatch<DB: DrawingBackend>(root: &Area<DB>, mark: &Mark, (x, y): (i32, i32)) -> Drawn<DB> {
    let (left, right, middle) = (fine(x), fine(x + 26), fine(y));
    match mark {
        Mark::Band { colour, alpha, .. } => root.draw(&Rectangle::new(
            [(left, middle - fine(6)), (right, middle + fine(6))],
            colour.mix(*alpha).filled(),
        )),
        Mark::Bars { colour, .. } => root.draw(&Rectangle::new(
            [(left + fine(6), middle - fine(6)), (right - fine(6), middle + fine(6))],
            colour.filled(),
        )),
        Mark::Line { colour, stroke, shape, .. } => {
            curve(root, &[(left, middle), (right, middle)], *stroke, colour)?;
            match shape {
                Some(shape) => marker(root, *shape, ((left + right) / 2, middle), colour, false),
                None => Ok(()),
            }
        }
    }
}

/// Where a panel's values lie on the drawing.
struct Frame<'a> {
    panel: &'a Panel,
    x: Range<i32>,
    y: Range<i32>,
}

impl Frame<'_> {
    fn x(&self, value: f64) -> Option<i32> {
        self.panel
            .x
            .share(value)
            .map(|share| self.x.start + ((self.x.end - self.x.start) as f64 * share).round() as i32)
    }

    fn y(&self, value: f64) -> Option<i32> {
        self.panel
            .y
            .share(value)
            .map(|share| self.y.end - ((self.y.end - self.y.start) as f64 * share).round() as i32)
    }
}

/// Paints one panel between these edges, given in pixels as shown.
fn panel<DB: DrawingBackend>(root: &Area<DB>, panel: &Panel, x: Range<i32>, y: Range<i32>) -> Drawn<DB> {
    let (strip, labels) = event_strip(panel, x.end - x.start);
    let title = if panel.title.is_empty() { 0 } else { LINE_HEIGHT + 4 };
    if title > 0 {
        let style = at(&font(TEXT, true, &INK), HPos::Left, VPos::Top);
        root.draw_text(&panel.title, &style, (fine(x.start + Y_LABELS), fine(y.start)))?;
    }
    let frame = Frame {
        panel,
        x: fine(x.start + Y_LABELS)..fine(x.end - 10),
        y: fine(y.start + title + strip + 6)..fine(y.end - X_LABELS),
    };
    grid(root, &frame, fine(x.start))?;
    for event in &panel.events {
        shade(root, &frame, event)?;
    }
    for mark in &panel.marks {
        draw_mark(root, &frame, mark)?;
    }
    bar_values(root, &frame)?;
    for event in &panel.events {
        event_line(root, &frame, event)?;
    }
    for label in labels {
        let place = (frame.x.start + fine(label.x), frame.y.start - fine(4 + label.row as i32 * EVENT_ROW));
        let style = at(&font(SMALL, false, &SOFT_INK), label.side, VPos::Bottom);
        root.draw_text(&label.text, &style, place)?;
        if label.row > 0 {
            let stroke = SOFT_INK.mix(0.5).stroke_width(FINE / 2);
            let x = frame.x.start + fine(label.line_x);
            root.draw(&PathElement::new([(x, place.1), (x, frame.y.start)], stroke))?;
        }
    }
    if let Some(note) = &panel.note {
        let middle = ((frame.x.start + frame.x.end) / 2, (frame.y.start + frame.y.end) / 2);
        let (across, up) = (fine(width_of(note, 16) as i32 / 2 + 6), fine(12));
        root.draw(&Rectangle::new(
            [(middle.0 - across, middle.1 - up), (middle.0 + across, middle.1 + up)],
            WHITE.filled(),
        ))?;
        root.draw_text(note, &at(&font(16, false, &SOFT_INK), HPos::Center, VPos::Center), middle)?;
    }
    root.draw(&Rectangle::new(
        [(frame.x.start, frame.y.start), (frame.x.end, frame.y.end)],
        FRAME.stroke_width(FINE / 2),
    ))
}

/// Grid lines, tick labels (those that fit) and the names of the axes.
fn grid<DB: DrawingBackend>(root: &Area<DB>, frame: &Frame<'_>, left: i32) -> Drawn<DB> {
    let Frame { panel, x, y } = frame;
    let label = font(SMALL, false, &SOFT_INK);
    let line = GRID.stroke_width(FINE / 2);
    for (value, text) in fitting(&panel.y, (y.end - y.start) / FINE as i32, |_| f64::from(SMALL) + 4.0) {
        let Some(at_y) = frame.y(value) else { continue };
        root.draw(&PathElement::new([(x.start, at_y), (x.end, at_y)], line))?;
        let style = at(&label, HPos::Right, VPos::Center);
        root.draw_text(&text, &style, (x.start - fine(7), at_y))?;
    }
    for (value, text) in
        fitting(&panel.x, (x.end - x.start) / FINE as i32, |text| width_of(text, SMALL) + 8.0)
    {
        let Some(at_x) = frame.x(value) else { continue };
        root.draw(&PathElement::new([(at_x, y.start), (at_x, y.end)], line))?;
        root.draw_text(&text, &at(&label, HPos::Center, VPos::Top), (at_x, y.end + fine(6)))?;
    }
    let name = font(TEXT, false, &INK);
    let under = at(&name, HPos::Center, VPos::Top);
    root.draw_text(&panel.x.name, &under, ((x.start + x.end) / 2, y.end + fine(24)))?;
    // Turned by a quarter to the left, "top" is what stands towards the left edge.
    let beside = at(&name, HPos::Center, VPos::Top).transform(FontTransform::Rotate270);
    root.draw_text(&panel.y.name, &beside, (left, (y.start + y.end) / 2))
}

/// The ticks of `axis` whose labels do not touch on `length` pixels: every second, third, … where that leaves most of
/// them, otherwise as many as fit from the first on.
fn fitting(axis: &Axis, length: i32, extent: impl Fn(&str) -> f64) -> Vec<(f64, String)> {
    let ticks: Vec<(f64, f64, &(f64, String))> = axis
        .ticks
        .iter()
        .filter_map(|tick| Some((axis.share(tick.0)? * f64::from(length), extent(&tick.1) / 2.0, tick)))
        .collect();
    let mut edge = f64::NEG_INFINITY;
    let greedy = ticks.iter().filter(|(place, half, _)| {
        let fits = place - half >= edge;
        edge = if fits { place + half } else { edge };
        fits
    });
    let greedy: Vec<(f64, String)> = greedy.map(|(_, _, tick)| (*tick).clone()).collect();
    let apart = |a: &(f64, f64, &(f64, String)), b: &(f64, f64, &(f64, String))| a.0 + a.1 <= b.0 - b.1;
    for step in 1..=ticks.len() {
        let kept: Vec<_> = ticks.iter().step_by(step).collect();
        if kept.len() * 10 < greedy.len() * 7 {
            break;
        }
        if kept.windows(2).all(|pair| apart(pair[0], pair[1])) {
            return kept.into_iter().map(|(_, _, tick)| (*tick).clone()).collect();
        }
    }
    greedy
}

/// One event's label: where it starts, in which row above the frame.
struct EventLabel {
    text: String,
    /// From the left edge of the frame, in pixels as shown.
    x: i32,
    line_x: i32,
    row: usize,
    side: HPos,
}

impl EventLabel {
    /// A label that begins, or ends, at the event's line.
    fn new(text: String, line_x: f64, row: usize, ends_there: bool) -> EventLabel {
        let line_x = line_x as i32;
        let (side, x) = if ends_there { (HPos::Right, line_x + 2) } else { (HPos::Left, line_x - 2) };
        EventLabel { text, x, line_x, row, side }
    }
}

/// Height of the strip of event labels above a panel that is `across` pixels wide, and the labels: names where they
/// fit, letters otherwise; the figure's subtitle has the key to these.
fn event_strip(panel: &Panel, across: i32) -> (i32, Vec<EventLabel>) {
    if panel.events.is_empty() {
        return (0, Vec::new());
    }
    let length = f64::from(across - Y_LABELS - 10);
    let labels = if names_fit(panel, across) {
        let names: Vec<String> = panel.events.iter().map(|event| event.label.clone()).collect();
        place_labels(panel, &names, length)
    } else {
        place_letters(panel, &abbreviate(&panel.events).0, length)
    };
    let rows = labels.iter().map(|label| label.row + 1).max().unwrap_or(0);
    (rows as i32 * EVENT_ROW, labels)
}

/// Whether the names of all events have room above a panel that is `across` pixels wide.
fn names_fit(panel: &Panel, across: i32) -> bool {
    let length = f64::from(across - Y_LABELS - 10);
    let names: Vec<String> = panel.events.iter().map(|event| event.label.clone()).collect();
    place_labels(panel, &names, length).len() == names.len()
}

/// The key to the letters in the place of event labels, if a figure of this panel needs one.
pub(super) fn event_key(panel: &Panel) -> Option<String> {
    if panel.events.is_empty() || names_fit(panel, WIDTH as i32 - 2 * MARGIN) {
        return None;
    }
    let key: Vec<String> =
        abbreviate(&panel.events).1.into_iter().map(|(letter, name)| format!("{letter} = {name}")).collect();
    Some(key.join(", "))
}

/// Where each event stands, in pixels as shown from the left edge of the frame, and which it is; from left to right.
fn in_sequence(panel: &Panel, length: f64) -> Vec<(f64, usize)> {
    let events = panel.events.iter().enumerate();
    let mut order: Vec<(f64, usize)> =
        events.filter_map(|(index, event)| Some((panel.x.share(event.at)? * length, index))).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    order
}

/// A label at each event, in rows; those for which there is no row are left out.
fn place_labels(panel: &Panel, texts: &[String], length: f64) -> Vec<EventLabel> {
    let order = in_sequence(panel, length);
    let widths: Vec<f64> = order.iter().map(|(_, index)| width_of(&texts[*index], SMALL)).collect();
    // A label begins at its line; near the right edge it ends there.
    let ends_there = |at: usize| order[at].0 + widths[at] > length;
    let starts: Vec<f64> =
        (0..order.len()).map(|at| order[at].0 - if ends_there(at) { widths[at] } else { 0.0 }).collect();
    rows(&starts, &widths, 8.0, EVENT_ROWS_MAX)
        .into_iter()
        .enumerate()
        .filter_map(|(at, row)| {
            let (line_x, index) = order[at];
            Some(EventLabel::new(texts[index].clone(), line_x, row?, ends_there(at)))
        })
        .collect()
}

/// Letters in one row: where they would overlap, the letters of several events stand together at the first.
fn place_letters(panel: &Panel, letters: &[String], length: f64) -> Vec<EventLabel> {
    const TOGETHER_MAX: usize = 10;
    let mut groups: Vec<(f64, Vec<&str>)> = Vec::new();
    for (x, index) in in_sequence(panel, length) {
        match groups.last_mut() {
            Some((first, group)) if x < *first + width_of(&group.join(" "), SMALL) + 5.0 => {
                group.push(&letters[index])
            }
            _ => groups.push((x, vec![&letters[index]])),
        }
    }
    let label = |(x, mut group): (f64, Vec<&str>)| {
        if group.len() > TOGETHER_MAX {
            group.truncate(TOGETHER_MAX);
            group.push("…");
        }
        let text = group.join(" ");
        let ends_there = x + width_of(&text, SMALL) > length;
        EventLabel::new(text, x, 0, ends_there)
    };
    groups.into_iter().map(label).collect()
}

/// The time that an event lasted.
fn shade<DB: DrawingBackend>(root: &Area<DB>, frame: &Frame<'_>, event: &TimeMark) -> Drawn<DB> {
    match (frame.x(event.at), event.until.and_then(|until| frame.x(until))) {
        (Some(from), Some(until)) if until > from => root.draw(&Rectangle::new(
            [(from, frame.y.start), (until, frame.y.end)],
            SOFT_INK.mix(0.10).filled(),
        )),
        _ => Ok(()),
    }
}

fn event_line<DB: DrawingBackend>(root: &Area<DB>, frame: &Frame<'_>, event: &TimeMark) -> Drawn<DB> {
    let Some(x) = frame.x(event.at) else { return Ok(()) };
    dashes(root, &[(x, frame.y.start), (x, frame.y.end)], SOFT_INK.mix(0.9).stroke_width(FINE / 2), 4, 3)
}

fn draw_mark<DB: DrawingBackend>(root: &Area<DB>, frame: &Frame<'_>, mark: &Mark) -> Drawn<DB> {
    match mark {
        Mark::Band { colour, alpha, points, .. } => {
            let placed =
                points.iter().map(|(x, low, high)| Some((frame.x(*x)?, frame.y(*low)?, frame.y(*high)?)));
            for part in unbroken(placed) {
                let outline: Vec<(i32, i32)> = match part.as_slice() {
                    [(x, low, high)] => {
                        let (left, right) = (x - fine(5), x + fine(5));
                        vec![(left, *low), (left, *high), (right, *high), (right, *low)]
                    }
                    _ => {
                        let upper = part.iter().map(|(x, _, high)| (*x, *high));
                        upper.chain(part.iter().rev().map(|(x, low, _)| (*x, *low))).collect()
                    }
                };
                root.draw(&Polygon::new(outline, colour.mix(*alpha).filled()))?;
            }
            Ok(())
        }
        Mark::Line { colour, stroke, shape, points, .. } => {
            let placed = |point: &Point| Some((frame.x(point.x)?, frame.y(point.y)?));
            for part in unbroken(points.iter().map(placed)) {
                curve(root, &part, *stroke, colour)?;
                // A lonely point of a line would be invisible.
                if let ([place], None) = (part.as_slice(), shape) {
                    marker(root, Marker::Circle, *place, colour, false)?;
                }
            }
            let Some(shape) = shape else { return Ok(()) };
            for point in points {
                if let Some(place) = placed(point) {
                    marker(root, *shape, place, colour, point.hollow)?;
                }
            }
            Ok(())
        }
        Mark::Bars { colour, values_shown, bars, .. } => {
            for bar in bars {
                let places = (frame.x(bar.from), frame.x(bar.to), frame.y(bar.low), frame.y(bar.high));
                let (Some(from), Some(to), Some(low), Some(high)) = places else { continue };
                if low == high && !values_shown {
                    continue;
                }
                root.draw(&Rectangle::new([(from, high), (to, low)], colour.filled()))?;
            }
            Ok(())
        }
    }
}

/// The size of the letters of a bar's value, and how far it stands from the bar's end.
const BAR_VALUE: i32 = 11;
const BAR_VALUE_GAP: i32 = 3;

/// The values of bars that are to show them: above the bars, or, where a line would strike one through there, all of the
/// panel at the foot of their bars.
fn bar_values<DB: DrawingBackend>(root: &Area<DB>, frame: &Frame<'_>) -> Drawn<DB> {
    let values = bar_values_above(frame);
    let at_foot = values.iter().any(|(_, place)| is_struck(frame, place));
    for (text, place) in values {
        let middle = (place.x.start + place.x.end) / 2;
        if !at_foot {
            let style = at(&font(BAR_VALUE, false, &INK), HPos::Center, VPos::Bottom);
            root.draw_text(&text, &style, (middle, place.y.end))?;
            continue;
        }
        let bottom = frame.y.end - fine(BAR_VALUE_GAP);
        let top = bottom - (place.y.end - place.y.start) - fine(2);
        root.draw(&Rectangle::new([(place.x.start, top), (place.x.end, bottom)], WHITE.filled()))?;
        let style = at(&font(BAR_VALUE, false, &INK), HPos::Center, VPos::Center);
        root.draw_text(&text, &style, (middle, (top + bottom) / 2))?;
    }
    Ok(())
}

/// A place on the drawing.
struct Place {
    x: Range<i32>,
    y: Range<i32>,
}

/// The values that are to be shown, each with its place above its bar.
fn bar_values_above(frame: &Frame<'_>) -> Vec<(String, Place)> {
    let mut values = Vec::new();
    for mark in &frame.panel.marks {
        let Mark::Bars { values_shown: true, bars, .. } = mark else { continue };
        for bar in bars {
            let places = (frame.x(bar.from), frame.x(bar.to), frame.y(bar.high));
            let (Some(from), Some(to), Some(high)) = places else { continue };
            let text = super::number::thousands(bar.high - bar.low, 0);
            let half = fine(width_of(&text, BAR_VALUE) as i32 / 2 + 2);
            let (middle, foot) = ((from + to) / 2, high - fine(BAR_VALUE_GAP));
            values
                .push((text, Place { x: middle - half..middle + half, y: foot - fine(BAR_VALUE + 1)..foot }));
        }
    }
    values
}

/// Whether a line of the panel goes through `place`.
fn is_struck(frame: &Frame<'_>, place: &Place) -> bool {
    let crosses = |points: &[Point]| {
        points.windows(2).any(|pair| {
            let spot = |point: &Point| Some((frame.x(point.x)?, frame.y(point.y)?));
            let (Some(from), Some(to)) = (spot(&pair[0]), spot(&pair[1])) else { return false };
            // The part of the segment above, below or at the place, by its ends.
            let (left, right) = (from.0.max(place.x.start), to.0.min(place.x.end));
            if left > right || from.0 == to.0 {
                return false;
            }
            let slope = f64::from(to.1 - from.1) / f64::from(to.0 - from.0);
            let y = |x: i32| from.1 + (f64::from(x - from.0) * slope).round() as i32;
            let (a, b) = (y(left), y(right));
            a.min(b) <= place.y.end && a.max(b) >= place.y.start
        })
    };
    frame.panel.marks.iter().any(|mark| match mark {
        Mark::Line { stroke, points, .. } => *stroke != Stroke::None && crosses(points),
        Mark::Band { .. } | Mark::Bars { .. } => false,
    })
}

/// The stretches of `points` between gaps.
fn unbroken<T>(points: impl Iterator<Item = Option<T>>) -> Vec<Vec<T>> {
    let mut parts = vec![Vec::new()];
    for point in points {
        match (point, parts.last_mut()) {
            (Some(point), Some(part)) => part.push(point),
            (None, Some(part)) if !part.is_empty() => parts.push(Vec::new()),
            _ => {}
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn curve<DB: DrawingBackend>(
    root: &Area<DB>,
    points: &[(i32, i32)],
    stroke: Stroke,
    colour: &RGBColor,
) -> Drawn<DB> {
    let width = match stroke {
        Stroke::None => return Ok(()),
        Stroke::Thin | Stroke::Dashed => FINE * 3 / 2,
        Stroke::Thick => FINE * 2,
    };
    if stroke == Stroke::Dashed {
        return dashes(root, points, colour.stroke_width(width), 7, 4);
    }
    if points.len() < 2 {
        return Ok(());
    }
    root.draw(&PathElement::new(points.to_vec(), colour.stroke_width(width)))
}

/// A dashed path: `on` pixels drawn, `off` left out.
fn dashes<DB: DrawingBackend>(
    root: &Area<DB>,
    points: &[(i32, i32)],
    style: ShapeStyle,
    on: i32,
    off: i32,
) -> Drawn<DB> {
    let (on, off) = (f64::from(fine(on)), f64::from(fine(off)));
    let mut done = 0.0;
    for pair in points.windows(2) {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
        let (dx, dy) = (f64::from(x1 - x0), f64::from(y1 - y0));
        let length = dx.hypot(dy);
        if length == 0.0 {
            continue;
        }
        let spot = |along: f64| {
            let share = along / length;
            (x0 + (dx * share).round() as i32, y0 + (dy * share).round() as i32)
        };
        let mut along = 0.0;
        while along < length {
            let phase = (done + along) % (on + off);
            let rest = if phase < on { on - phase } else { on + off - phase };
            // Rounding must never make a step of nothing.
            let next = (along + rest.max(0.5)).min(length);
            if phase < on {
                root.draw(&PathElement::new([spot(along), spot(next)], style))?;
            }
            along = next;
        }
        done += length;
    }
    Ok(())
}

fn marker<DB: DrawingBackend>(
    root: &Area<DB>,
    shape: Marker,
    (x, y): (i32, i32),
    colour: &RGBColor,
    hollow: bool,
) -> Drawn<DB> {
    let r = fine(4);
    let outline: Vec<(i32, i32)> = match shape {
        Marker::Dot => return root.draw(&Circle::new((x, y), fine(3) / 2, colour.filled())),
        Marker::Circle => {
            root.draw(&Circle::new((x, y), r, if hollow { WHITE.filled() } else { colour.filled() }))?;
            return root.draw(&Circle::new((x, y), r, colour.stroke_width(FINE)));
        }
        Marker::Square => vec![(-r, -r), (r, -r), (r, r), (-r, r)],
        Marker::Triangle => vec![(0, -r - 2), (r + 1, r), (-r - 1, r)],
        Marker::Diamond => vec![(0, -r - 3), (r + 3, 0), (0, r + 3), (-r - 3, 0)],
        Marker::Wedge => vec![(0, r + 2), (r + 1, -r), (-r - 1, -r)],
    };
    let mut outline: Vec<(i32, i32)> = outline.into_iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
    root.draw(&Polygon::new(outline.clone(), if hollow { WHITE.filled() } else { colour.filled() }))?;
    outline.extend(outline.first().copied());
    root.draw(&PathElement::new(outline, colour.stroke_width(FINE)))
}

#[cfg(test)]
mod tests {
    use super::super::figure::Bar;
    use super::*;

    #[test]
    fn a_gap_splits_a_curve() {
        let parts = unbroken([None, Some(1), Some(2), None, None, Some(3), None].into_iter());
        assert_eq!(parts, [vec![1, 2], vec![3]]);
    }

    /// A panel of bars with a line across all of it, and whether that goes through one of their values.
    fn is_any_value_struck(bars: &[f64], line: f64) -> bool {
        let bar = |(at, high): (usize, &f64)| Bar {
            from: at as f64 - 0.36,
            to: at as f64 + 0.36,
            low: 0.0,
            high: *high,
        };
        let last = bars.len() as f64 - 0.4;
        let panel = Panel {
            title: String::new(),
            x: Axis::for_names("", bars.iter().map(|_| "slave".to_owned())),
            y: Axis::from_zero("", 1000.0),
            marks: vec![
                Mark::Bars {
                    label: String::new(),
                    colour: super::super::figure::BLUE,
                    values_shown: true,
                    bars: bars.iter().enumerate().map(bar).collect(),
                },
                Mark::Line {
                    label: String::new(),
                    colour: super::super::figure::VERMILION,
                    stroke: Stroke::Dashed,
                    shape: None,
                    points: vec![Point::new(-0.6, line), Point::new(last, line)],
                },
            ],
            events: Vec::new(),
            note: None,
        };
        let frame = Frame { panel: &panel, x: fine(60)..fine(460), y: fine(20)..fine(320) };
        let values = bar_values_above(&frame);
        assert_eq!(values.len(), bars.len());
        values.iter().any(|(_, place)| is_struck(&frame, place))
    }

    #[test]
    fn a_line_just_above_a_bar_strikes_its_value_and_one_elsewhere_does_not() {
        assert!(is_any_value_struck(&[500.0, 400.0], 520.0));
        assert!(is_any_value_struck(&[800.0, 510.0], 520.0));
        assert!(!is_any_value_struck(&[500.0, 400.0], 900.0));
        assert!(!is_any_value_struck(&[500.0, 480.0], 100.0), "it goes through the bars");
    }

    #[test]
    fn tick_labels_that_would_touch_are_left_out() {
        let axis = Axis::for_counts("slaves", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        let kept = |length| fitting(&axis, length, |_| 20.0).len();
        assert_eq!((kept(900), kept(1)), (9, 1));
        assert!((4..=5).contains(&kept(100)), "{}", kept(100));
    }
}
