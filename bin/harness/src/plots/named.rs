//! Bars beside each other, one for each name, in panels below each other. One bar of each panel stands out.

use std::path::Path;

use super::axis::Axis;
use super::figure::{Bar, Figure, Mark, Panel, BLUE, GREY};
use super::paint;

pub(crate) struct Named {
    /// The text above the panel.
    pub title: String,
    /// A name and its value, or none.
    pub values: Vec<(String, Option<f64>)>,
}

/// Draws `panels` to `path` (without extension), as PNG and SVG; the bars named `own` stand out.
///
/// # Errors
/// When there is no panel, or a file cannot be written.
pub(crate) fn bars(
    title: &str,
    subtitle: Vec<String>,
    unit: &str,
    own: &str,
    panels: &[Named],
    path: &Path,
) -> anyhow::Result<()> {
    anyhow::ensure!(!panels.is_empty(), "there is nothing to draw: no load was measured");
    let panels = panels.iter().map(|panel| drawn(panel, unit, own)).collect();
    paint::save(&Figure { title: title.to_owned(), subtitle, panels, columns: 1 }, path)
}

fn drawn(panel: &Named, unit: &str, own: &str) -> Panel {
    let top = panel.values.iter().filter_map(|(_, value)| *value).fold(0.0, f64::max);
    let group = |is_own: bool| {
        let bars = panel.values.iter().enumerate().filter(|(_, (name, _))| (name == own) == is_own);
        let bars = bars.filter_map(|(at, (_, value))| {
            let (at, high) = (at as f64, (*value)?);
            Some(Bar { from: at - 0.36, to: at + 0.36, low: 0.0, high })
        });
        let colour = if is_own { BLUE } else { GREY };
        Mark::Bars { label: String::new(), colour, values_shown: true, bars: bars.collect() }
    };
    Panel {
        title: panel.title.clone(),
        x: Axis::for_names("", panel.values.iter().map(|(name, _)| name.clone())),
        y: Axis::from_zero(unit, top * 1.12),
        marks: vec![group(true), group(false)],
        events: Vec::new(),
        note: (top <= 0.0).then(|| "nothing was measured".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_gets_its_place_and_what_is_missing_gets_no_bar() {
        let directory = tempfile::tempdir().unwrap();
        let values = vec![("dsm".to_owned(), Some(12_345.0)), ("etcd".to_owned(), None)];
        let panels = [Named { title: "reads only".to_owned(), values }];
        bars(
            "Throughput",
            vec!["<b>".to_owned()],
            "operations/s",
            "dsm",
            &panels,
            &directory.path().join("it"),
        )
        .unwrap();
        let svg = std::fs::read_to_string(directory.path().join("it.svg")).unwrap();
        let svg = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = svg.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        for text in ["Throughput", "<b>", "operations/s", "reads only", "dsm", "etcd", "12,345"] {
            assert!(texts.contains(&text), "no {text} in {texts:?}");
        }
        assert!(directory.path().join("it.png").is_file());
        assert!(bars("", Vec::new(), "", "", &[], &directory.path().join("none")).is_err());
    }
}
