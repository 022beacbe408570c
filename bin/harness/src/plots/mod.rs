//! Draws the plots of a sweep, each as PNG and SVG. A single run is a sweep of one.
//!
//! It owns which plots exist and where they lie (docs/HARNESS.md shows them); `by_count`, `over_time` and `load` say what
//! a plot shows, `paint` lays it out, `raster` sets the letters of the PNGs. It reads the record of the runs and nothing
//! else, so that plots can be drawn again from the files of a run.

mod axis;
mod by_count;
mod figure;
mod load;
#[cfg(feature = "peers")]
pub(crate) mod named;
pub(crate) mod number;
mod over_time;
mod paint;
mod raster;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

pub(crate) use self::by_count::SweptBy;

use self::by_count::Measure;
use self::figure::Figure;
use self::number::{count, counted, short};
use super::record::{PlacementRecord, RunRecord, SweepRecord, Totals};

/// How many runs of a sweep have plots over time. More would not be looked at, and the record has their figures.
const RUNS_OVER_TIME_MAX: usize = 12;

/// The plots of one run, and where they lie in a sweep.
const OVER_TIME: [&str; 4] =
    ["throughput_over_time", "latency_percentiles_over_time", "read_write_breakdown", "slave_load"];
const RUNS_FOLDER: &str = "plots_by_run";

/// The plot of the placement experiment.
const PLACEMENTS: &str = "load_distribution";

#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// What it shows, in a line.
    pub title: String,
    /// What it means, in 1 to 3 sentences.
    pub explains: String,
    /// Relative to the directory of the output.
    pub png: PathBuf,
    /// Relative to the directory of the output.
    pub svg: PathBuf,
}

/// Draws every plot that applies to `sweep` below `directory`, which is made if it is missing. The plots of earlier runs
/// that lie there and do not belong to it are removed.
///
/// # Errors
/// When the sweep has no run and no placement, or a file cannot be written or removed.
pub(crate) fn draw(sweep: &SweepRecord, directory: &Path) -> anyhow::Result<Vec<Plot>> {
    draw_from(sweep, directory, 0)
}

/// The same after one more point of a grid: the plots over time of the runs before it stay as they were drawn.
///
/// # Errors
/// See [`draw`].
pub(crate) fn draw_after_point(sweep: &SweepRecord, directory: &Path) -> anyhow::Result<Vec<Plot>> {
    draw_from(sweep, directory, sweep.runs.len().saturating_sub(1))
}

/// `first`: the runs before this one have their plots over time, unless the files are missing.
fn draw_from(sweep: &SweepRecord, directory: &Path, first: usize) -> anyhow::Result<Vec<Plot>> {
    anyhow::ensure!(
        !sweep.runs.is_empty() || !sweep.placement.is_empty(),
        "there is nothing to draw: the sweep has no run"
    );
    let mut book = Book { directory, plots: Vec::new(), drawn_before: false };
    if !sweep.runs.is_empty() {
        // Of what does not vary there would be a single point, which the tables say better.
        for by in SweptBy::varied(sweep) {
            for measure in Measure::ALL {
                book.add(
                    &by_count_name(measure, by),
                    measure.explains(by, sweep),
                    &by_count::figure(sweep, measure, by),
                )?;
            }
        }
    }
    match sweep.runs.as_slice() {
        [] => {}
        [run] => book.add_run("", "", run)?,
        runs => {
            let explains =
                "What the requests of each run were: successful reads, successful writes and errors per \
                            second, stacked. The whole bar is the load that the clients made.";
            book.add("read_write_breakdown", explains.to_owned(), &by_count::breakdown(sweep))?;
            for (at, run) in runs.iter().enumerate().take(RUNS_OVER_TIME_MAX) {
                let (slaves, clients) = (run.settings.slaves, run.settings.clients);
                let folder = format!("{RUNS_FOLDER}/{:02}_{slaves}_slaves_{clients}_clients/", at + 1);
                let which = format!("Run {}, {}: ", at + 1, name(sweep, run));
                book.drawn_before = at < first;
                book.add_run(&folder, &which, run)?;
            }
            book.drawn_before = false;
        }
    }
    if !sweep.placement.is_empty() {
        book.add_placements(sweep)?;
    }
    remove_others(directory, &book.plots)?;
    Ok(book.plots)
}

/// Removes what an earlier run drew and `plots` has not, and the folders that are empty then. Other files are not ours.
fn remove_others(directory: &Path, plots: &[Plot]) -> anyhow::Result<()> {
    let kept: BTreeSet<&Path> = plots.iter().flat_map(|plot| [plot.png.as_path(), &plot.svg]).collect();
    let mut folders: Vec<String> = SweptBy::ALL.iter().map(|by| by.folder()).collect();
    let mut names: Vec<String> =
        OVER_TIME.iter().chain([&PLACEMENTS]).map(|name| (*name).to_owned()).collect();
    for by in SweptBy::ALL {
        names.extend(Measure::ALL.iter().map(|measure| by_count_name(*measure, by)));
    }
    // A folder that is not there, or cannot be read, has nothing to be removed.
    for entry in std::fs::read_dir(directory.join(RUNS_FOLDER)).into_iter().flatten().flatten() {
        let folder = format!("{RUNS_FOLDER}/{}", entry.file_name().to_string_lossy());
        names.extend(OVER_TIME.iter().map(|name| format!("{folder}/{name}")));
        folders.push(folder);
    }
    folders.push(RUNS_FOLDER.to_owned());
    for name in names {
        for extension in ["png", "svg"] {
            let file = PathBuf::from(format!("{name}.{extension}"));
            if kept.contains(file.as_path()) {
                continue;
            }
            match std::fs::remove_file(directory.join(&file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", file.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
    for folder in folders {
        // One that holds something stays.
        let _ = std::fs::remove_dir(directory.join(folder));
    }
    Ok(())
}

fn by_count_name(measure: Measure, by: SweptBy) -> String {
    format!("{}/{}_vs_{}", by.folder(), measure.file(), by.file())
}

/// The plots made so far.
struct Book<'a> {
    directory: &'a Path,
    plots: Vec<Plot>,
    /// Whether the file that is there shows the same.
    drawn_before: bool,
}

impl Book<'_> {
    /// Paints `figure` to `name` (without extension, relative to the directory).
    fn add(&mut self, name: &str, explains: String, figure: &Figure) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        if !self.drawn_before || !path.with_extension("svg").exists() {
            paint::save(figure, &path)?;
        }
        let with = |extension: &str| PathBuf::from(format!("{name}.{extension}"));
        let title = figure.title.clone();
        self.plots.push(Plot { title, explains, png: with("png"), svg: with("svg") });
        Ok(())
    }

    /// The plots of one run, their titles beginning with `which`.
    fn add_run(&mut self, folder: &str, which: &str, run: &RunRecord) -> anyhow::Result<()> {
        let faults = if run.faults.is_empty() {
            ""
        } else {
            " Dashed lines are the faults; a grey area lasts from a fault until it was undone."
        };
        let mut add = |name: &str, explains: String, mut figure: Figure| {
            figure.title = format!("{which}{}", lower_first(&figure.title, !which.is_empty()));
            self.add(&format!("{folder}{name}"), explains, &figure)
        };
        add(
            "throughput_over_time",
            format!(
                "Requests that succeeded, and those that failed, in each second. A dip to zero is a time without \
                 service: its length is in the table of faults.{faults}"
            ),
            over_time::throughput(run),
        )?;
        add(
            "latency_percentiles_over_time",
            format!(
                "How long successful requests took: the median, the bands up to the 90th and 99th percentile, and the \
                 slowest of each second. What lies far above the bands is rare, but somebody waited for it.{faults}"
            ),
            over_time::latency(run),
        )?;
        add(
            "read_write_breakdown",
            format!(
                "What the requests were: successful reads, successful writes and errors, stacked. The whole bar is \
                 the load that the clients made.{faults}"
            ),
            over_time::breakdown(run),
        )?;
        if run.slave_loads.iter().any(|load| load.writes > 0) {
            let (record, spread) = load_of(run);
            let mut subtitle = vec![load::rule(&record)];
            if !run.faults.is_empty() {
                subtitle.push("Slaves that were away for a while did less, and the others more.".to_owned());
            }
            add(
                "slave_load",
                format!("How the run's writes were spread over the slaves: {}", spread.explains()),
                load::figure("Writes by slave", subtitle, &[(record, spread)]),
            )?;
        }
        Ok(())
    }

    fn add_placements(&mut self, sweep: &SweepRecord) -> anyhow::Result<()> {
        let records: Vec<_> =
            sweep.placement.iter().map(|record| (record.clone(), spread_of(record))).collect();
        let mut subtitle: Vec<String> = Vec::new();
        for (record, _) in &records {
            let rule = load::rule(record);
            if !subtitle.contains(&rule) {
                subtitle.push(rule);
            }
        }
        let slaves = records.first().map_or(0, |(record, _)| record.loads.len());
        let mut explains =
            "How a fixed number of writes was spread over the slaves by each placement.".to_owned();
        for (record, spread) in &records {
            let how = format!(" With {} placement: {}", printable(&record.placement), spread.explains());
            explains.push_str(&how);
        }
        let title = format!("Load distribution over {}", counted(slaves as u64, "slave"));
        self.add(PLACEMENTS, explains, &load::figure(&title, subtitle, &records))
    }
}

/// What decides the spread of the placement experiment.
fn spread_of(record: &PlacementRecord) -> load::Spread {
    match (record.placement.as_str(), record.squares) {
        ("random", _) => load::Spread::EachWrite,
        (_, 0) => load::Spread::Unknown,
        (_, squares) => load::Spread::Counted(squares),
    }
}

/// The load of a run's slaves, as a placement.
fn load_of(run: &RunRecord) -> (PlacementRecord, load::Spread) {
    let slaves = run.slave_loads.len() as u64;
    let copies = slaves.div_ceil(2);
    let applied: u64 = run.slave_loads.iter().map(|load| load.writes).sum();
    let spread = match (run.settings.placement.as_str(), run.settings.distribution.as_str()) {
        ("random", _) => load::Spread::EachWrite,
        ("hash", "uniform") => load::Spread::Keys(u64::from(run.settings.keys)),
        _ => load::Spread::Unknown,
    };
    let record = PlacementRecord {
        placement: run.settings.placement.clone(),
        // Counted at the slaves, so it includes the warm-up and copies for which no client waited.
        writes: applied / copies.max(1),
        copies,
        squares: 0,
        loads: run.slave_loads.clone(),
    };
    (record, spread)
}

/// What tells `run` from the others of `sweep`: `5 slaves, 18 clients`, and what else differs between them.
pub(crate) fn name(sweep: &SweepRecord, run: &RunRecord) -> String {
    let varied = SweptBy::varied(sweep);
    let always = [SweptBy::Slaves, SweptBy::Clients];
    let shown = SweptBy::ALL.into_iter().filter(|by| always.contains(by) || varied.contains(by));
    // A target need not say how many slaves it has.
    let known = shown.filter(|by| *by != SweptBy::Slaves || by.of(run) > 0.0);
    known.map(|by| by.shown(by.of(run), by.of(run))).collect::<Vec<_>>().join(", ")
}

/// The load in a line: what all runs of `sweep` have in common, and the range of what they do not.
fn describe(sweep: &SweepRecord, without: &[SweptBy]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let runs = &sweep.runs;
    for by in SweptBy::ALL.into_iter().filter(|by| !without.contains(by)) {
        let values = by.values(sweep);
        let (Some(first), Some(last)) = (values.first().copied(), values.last().copied()) else { continue };
        let unsaid = match by {
            // A target need not say how many slaves it has.
            SweptBy::Slaves => last == 0.0,
            SweptBy::Pool | SweptBy::Pipeline => last <= 1.0,
            SweptBy::Clients | SweptBy::WritePct | SweptBy::ValueBytes => false,
        };
        if !unsaid {
            parts.push(by.shown(first, last));
        }
    }
    let common = |of: &dyn Fn(&RunRecord) -> String| {
        let mut values = runs.iter().map(of);
        let first = values.next()?;
        (values.all(|value| value == first) && !first.is_empty()).then_some(first)
    };
    parts.extend(common(&|run| {
        let settings = &run.settings;
        format!("{} {} keys", count(settings.keys.into()), printable(&settings.distribution))
    }));
    parts.extend(common(&|run| match run.settings.think_ms {
        think if think > 0.0 => format!("{} ms think time", short(think)),
        _ => String::new(),
    }));
    parts.extend(common(&|run| match run.settings.rate {
        Some(rate) => format!("{} requests/s asked for", short(rate)),
        None => String::new(),
    }));
    parts.extend(common(&|run| match run.settings.fsync.as_str() {
        "" => String::new(),
        fsync => format!("fsync {}", printable(fsync)),
    }));
    parts.extend(common(&|run| match run.settings.placement.as_str() {
        "" => String::new(),
        placement => format!("{} placement", printable(placement)),
    }));
    parts.extend(common(&|run| if run.settings.tls { "TLS".to_owned() } else { String::new() }));
    parts.extend(common(&|run| printable(&run.store)));
    if runs.iter().any(|run| run.interrupted) {
        parts.push("interrupted".to_owned());
    }
    parts.join(", ")
}

/// Says so when pauses of the clients, not the store, set the throughput. In a sweep where that is true of some runs only,
/// their points are hollow.
fn think_note(sweep: &SweepRecord) -> Option<String> {
    let bound = sweep.runs.iter().filter(|run| run.totals.bound_by_think).count();
    match bound {
        0 => None,
        _ if bound == sweep.runs.len() => Some(
            "Bound by think time: this is the load the clients asked for, not the most the store can do."
                .to_owned(),
        ),
        _ => Some(
            "Hollow points were bound by think time: the load asked for, not the most the store can do."
                .to_owned(),
        ),
    }
}

/// The shares of reads, writes and errors in all requests.
fn shares<'a>(totals: impl Iterator<Item = &'a Totals>) -> Option<String> {
    let (mut reads, mut writes, mut errors) = (0, 0, 0);
    for totals in totals {
        reads += totals.read_count;
        writes += totals.write_count;
        errors += totals.error_count;
    }
    let all = reads + writes + errors;
    let share = |part| by_count::share(part, all);
    (all > 0).then(|| {
        format!(
            "In all: {} reads ({}), {} writes ({}), {} errors ({})",
            count(reads),
            share(reads),
            count(writes),
            share(writes),
            count(errors),
            share(errors),
        )
    })
}

/// `text` in one line and without characters that an SVG must not contain.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ' ' } else { c })
        .collect()
}

fn lower_first(text: &str, lower: bool) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if lower => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
