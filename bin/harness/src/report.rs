//! Writes the report of a sweep: one HTML file that needs nothing else, no network, no script, no other file.
//!
//! It owns the page's words and looks. It computes no measurement: every number is in the record of the runs, and the
//! plots are those that were drawn.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::path::Path;

use anyhow::Context as _;

use super::findings::is_right;
use super::plots::number::{count, counted, per_cent, short, thousands};
use super::plots::{name, Plot, SweptBy};
use super::record::{Percentiles, RunRecord, Second, SweepRecord};
use super::verdict::{HistoryVerdict, Wrong};

/// Looks of the page. In the dark the plots are inverted and their hues turned back, so that blue stays blue.
const STYLE: &str = include_str!("report.css");

/// Writes one self-contained `report.html`. The plots are read from the directory that `path` is in.
///
/// # Errors
/// When there is no run and no placement, a plot cannot be read, or the file cannot be written.
pub(crate) fn write(sweep: &SweepRecord, plots: &[Plot], path: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        !sweep.runs.is_empty() || !sweep.placement.is_empty(),
        "there is nothing to report: the sweep has no run"
    );
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut drawn = Vec::with_capacity(plots.len());
    for plot in plots {
        let file = directory.join(&plot.svg);
        let svg =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        drawn.push((plot, inline(&svg, &plot.title)));
    }
    let mut page = String::new();
    html(&mut page, sweep, &drawn).context("cannot build the report")?;
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// Text that shows as it is, wherever in an HTML page it stands. Control characters become a replacement character.
struct Text<T>(T);

impl<T: AsRef<str>> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.as_ref().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// An SVG document as a part of a page: named for those who cannot see it, without what only a file of its own needs.
fn inline(svg: &str, title: &str) -> String {
    let start = svg.find("<svg ").unwrap_or(0);
    svg[start..].replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1).replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{}\" ", Text(title)),
        1,
    )
}

fn html(page: &mut String, sweep: &SweepRecord, plots: &[(&Plot, String)]) -> fmt::Result {
    let title = match sweep.runs.as_slice() {
        [] => "Load distribution".to_owned(),
        [run] => format!("Load test: {}", name(sweep, run)),
        runs => format!("Load test: {} runs", runs.len()),
    };
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n",
        title = Text(&title)
    )?;
    lead(page, sweep)?;
    page.push_str("</header>\n");
    if let [run] = sweep.runs.as_slice() {
        cards(page, run)?;
    }
    verdicts(page, sweep)?;
    match sweep.runs.as_slice() {
        [] => {}
        [run] => totals(page, run)?,
        _ => runs_table(page, sweep)?,
    }
    errors(page, sweep)?;
    faults(page, sweep)?;
    plots_section(page, plots)?;
    setup(page, sweep)?;
    page.push_str("</main>\n</body>\n</html>\n");
    Ok(())
}

/// The paragraph under the title: what, when, how long.
fn lead(page: &mut String, sweep: &SweepRecord) -> fmt::Result {
    let Some(first) = sweep.runs.first() else { return Ok(()) };
    let seconds: f64 = sweep.runs.iter().map(|run| run.duration_s).sum();
    let store = if first.store.is_empty() { "an unnamed store" } else { &first.store };
    write!(
        page,
        "<p class=\"lead\">{} measured for {} s",
        Text(store),
        Text(short((seconds * 10.0).round() / 10.0))
    )?;
    if sweep.runs.len() > 1 {
        write!(page, " in {} runs", sweep.runs.len())?;
    }
    write!(page, ", from <time>{}</time>", Text(&first.started_at))?;
    if let Some(target) = &first.settings.target {
        write!(page, ", at {}", Text(target))?;
    }
    page.push_str(".</p>\n");
    let fastest =
        sweep.runs.iter().max_by(|a, b| a.totals.throughput_rps.total_cmp(&b.totals.throughput_rps));
    if let (Some(run), true) = (fastest, sweep.runs.len() > 1) {
        let rate = thousands(run.totals.throughput_rps, 0);
        writeln!(
            page,
            "<p class=\"lead\">Fastest: {rate} successful requests/s with {}.</p>",
            Text(name(sweep, run))
        )?;
    }
    let interrupted = sweep.runs.iter().filter(|run| run.interrupted).count();
    if interrupted > 0 {
        let what =
            if sweep.runs.len() == 1 { "The run".to_owned() } else { counted(interrupted as u64, "run") };
        writeln!(
            page,
            "<p class=\"note\">{what} ended early, by a signal; the figures are of the time until then.</p>"
        )?;
    }
    let bound = sweep.runs.iter().filter(|run| run.totals.bound_by_think).count();
    if bound > 0 {
        let what = if sweep.runs.len() == 1 {
            "This run was".to_owned()
        } else {
            format!("{bound} of the runs were")
        };
        writeln!(
            page,
            "<p class=\"note\">{what} bound by think time: the clients' pauses, not the store, set the throughput. It \
             is the load that was asked for, not the most the store can do.</p>"
        )?;
    }
    Ok(())
}

/// The figures that everybody looks for first.
fn cards(page: &mut String, run: &RunRecord) -> fmt::Result {
    let totals = &run.totals;
    let latency = |percentiles: &Percentiles, requests: u64| match requests {
        0 => ("–".to_owned(), "none succeeded".to_owned()),
        _ => (format!("{} µs", count(percentiles.p50)), format!("p99 {} µs", count(percentiles.p99))),
    };
    let (read, read_tail) = latency(&totals.read, totals.read_count);
    let (write, write_tail) = latency(&totals.write, totals.write_count);
    let errors = match totals.total_requests {
        0 => "–".to_owned(),
        all => per_cent(totals.error_count as f64 / all as f64 * 100.0),
    };
    let cards = [
        (
            "Throughput",
            format!("{}/s", thousands(totals.throughput_rps, 0)),
            "successful requests".to_owned(),
        ),
        ("Read latency, median", read, read_tail),
        ("Write latency, median", write, write_tail),
        (
            "Errors",
            errors,
            format!("{} of {}", count(totals.error_count), counted(totals.total_requests, "request")),
        ),
    ];
    page.push_str("<div class=\"cards\">\n");
    for (name, value, more) in cards {
        writeln!(page, "<div><h2>{name}</h2><p>{}</p><small>{}</small></div>", Text(value), Text(more))?;
    }
    page.push_str("</div>\n");
    Ok(())
}

/// How many of `errors` are answers that must never be.
fn wrong(errors: &BTreeMap<String, u64>) -> u64 {
    Wrong::ALL.iter().filter_map(|wrong| errors.get(wrong.class())).sum()
}

/// What was checked, and what came out.
fn verdicts(page: &mut String, sweep: &SweepRecord) -> fmt::Result {
    if sweep.runs.is_empty() {
        return Ok(());
    }
    page.push_str("<section>\n<h2>Was everything right?</h2>\n");
    let all = sweep.runs.len();
    let right = sweep.runs.iter().filter(|run| is_right(run)).count();
    if all > 1 && right > 0 {
        let checked = match sweep.runs.iter().filter(|run| run.check.is_some()).count() {
            0 => "the order of the answers was not judged (<code>--check</code>)",
            n if n == all => "every history was linearizable",
            _ => "every history that was judged was linearizable",
        };
        writeln!(
            page,
            "<p><strong class=\"good\">{right} of {all} runs: nothing wrong.</strong> No answer was wrong, nothing was \
             lost, and {checked}.</p>"
        )?;
    }
    for (index, run) in sweep.runs.iter().enumerate() {
        if all > 1 {
            if is_right(run) {
                continue;
            }
            writeln!(page, "<h3>Run {}: {}</h3>", index + 1, Text(name(sweep, run)))?;
        }
        verdict(page, run)?;
    }
    page.push_str("</section>\n");
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "one line of the page after the other")]
fn verdict(page: &mut String, run: &RunRecord) -> fmt::Result {
    let (within, outside) = (wrong(&run.totals.errors), wrong(&run.wrong_outside));
    if within + outside > 0 {
        write!(
            page,
            "<p><strong class=\"bad\">Wrong answers.</strong> {} had a value that must not have been there",
            Text(counted(within + outside, "answer"))
        )?;
        if outside > 0 {
            write!(page, ", {} of them outside the measurement (as in the warm-up)", count(outside))?;
        }
        let classes: Vec<String> = [&run.totals.errors, &run.wrong_outside]
            .into_iter()
            .flatten()
            .filter(|(class, _)| Wrong::of_class(class).is_some())
            .map(|(class, n)| format!("{class} {}", count(*n)))
            .collect();
        writeln!(page, ": {}.</p>", Text(classes.join(", ")))?;
    } else {
        page.push_str(
            "<p><strong class=\"good\">No wrong answer.</strong> Every value that was read was compared with what had \
             been written.</p>\n",
        );
    }
    match &run.check {
        Some(check) => {
            let (class, word, meaning) = match check.verdict {
                HistoryVerdict::Linearizable => {
                    ("good", "Linearizable", "one order of all operations explains every answer")
                }
                HistoryVerdict::Violation => {
                    ("bad", "Violation", "no order of the operations explains the answers")
                }
                HistoryVerdict::Interrupted => ("unsure", "Undecided", "a signal ended the check"),
                HistoryVerdict::GaveUp => {
                    ("unsure", "Undecided", "the checker gave up before it had looked at everything")
                }
            };
            writeln!(
                page,
                "<p><strong class=\"{class}\">{word}.</strong> {} on {}: {meaning}.</p>",
                Text(counted(check.operations, "operation")),
                Text(counted(check.keys, "key")),
            )?;
            if let Some(at_s) = check.cut_at_s {
                writeln!(
                    page,
                    "<p>Operations that were begun after {} s of the measurement are not judged: <code>--check-max</code> \
                     was reached.</p>",
                    thousands(at_s, 1)
                )?;
            }
            if let Some(example) = &check.counter_example {
                writeln!(
                    page,
                    "<p>The smallest part of the history found that has no explanation:</p>\n<pre>{}</pre>",
                    Text(example)
                )?;
            }
        }
        None => page.push_str("<p>The order of the answers was not judged (<code>--check</code>).</p>\n"),
    }
    match &run.read_back {
        Some(back) => {
            let (class, word) = match (back.lost, back.mangled) {
                (0, 0) => ("good", "Nothing lost."),
                (0, _) => ("bad", "Mangled values."),
                _ => ("bad", "Acknowledged writes are missing."),
            };
            writeln!(
                page,
                "<p><strong class=\"{class}\">{word}</strong> Of {} read back at the end, {} had lost the latest \
                 acknowledged write and {} held a value that nobody wrote.</p>",
                Text(counted(back.keys_checked, "key")),
                count(back.lost),
                count(back.mangled),
            )
        }
        None => writeln!(
            page,
            "<p><strong class=\"bad\">Not read back.</strong> The keys could not be read back at the end, so nobody \
             knows what was lost: {}.</p>",
            Text(&run.read_back_error)
        ),
    }
}

/// Opens a table with these columns; those that begin with `#` hold numbers.
fn table_head(page: &mut String, columns: &[&str]) -> fmt::Result {
    page.push_str("<div class=\"wide\"><table>\n<thead><tr>");
    for column in columns {
        match column.strip_prefix('#') {
            Some(name) => write!(page, "<th class=\"number\" scope=\"col\">{}</th>", Text(name))?,
            None => write!(page, "<th scope=\"col\">{}</th>", Text(column))?,
        }
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    Ok(())
}

fn table_end(page: &mut String) {
    page.push_str("</tbody>\n</table></div>\n");
}

/// One row: the first `words` cells hold words, the others numbers.
fn row(page: &mut String, words: usize, cells: &[String]) -> fmt::Result {
    page.push_str("<tr>");
    for (at, cell) in cells.iter().enumerate() {
        let class = if at < words { "" } else { " class=\"number\"" };
        write!(page, "<td{class}>{}</td>", Text(cell))?;
    }
    page.push_str("</tr>\n");
    Ok(())
}

fn totals(page: &mut String, run: &RunRecord) -> fmt::Result {
    let totals = &run.totals;
    page.push_str("<section>\n<h2>Totals</h2>\n");
    let columns =
        ["", "#requests", "#per second", "#mean, µs", "#p50", "#p90", "#p99", "#p99.9", "#slowest, µs"];
    table_head(page, &columns)?;
    type Kind<'a> = (&'static str, u64, f64, &'a Percentiles, fn(&Second) -> u64);
    let kinds: [Kind<'_>; 2] = [
        ("successful reads", totals.read_count, totals.read_latency_us, &totals.read, |s| s.read_count),
        ("successful writes", totals.write_count, totals.write_latency_us, &totals.write, |s| s.write_count),
    ];
    // What was answered behind the end is in no second, and in no rate.
    let per_second = |of: fn(&Second) -> u64| match run.duration_s {
        seconds if seconds > 0.0 => thousands(run.seconds.iter().map(of).sum::<u64>() as f64 / seconds, 0),
        _ => "–".to_owned(),
    };
    for (name, requests, mean, percentiles, of) in kinds {
        let mut cells = vec![name.to_owned(), count(requests), per_second(of)];
        if requests > 0 {
            cells.push(thousands(mean, 0));
            let Percentiles { p50, p90, p99, p999, max } = *percentiles;
            cells.extend([p50, p90, p99, p999, max].map(count));
        } else {
            cells.resize(columns.len(), "–".to_owned());
        }
        row(page, 1, &cells)?;
    }
    type Sum = (&'static str, u64, fn(&Second) -> u64);
    let sums: [Sum; 2] = [
        ("errors", totals.error_count, |s| s.error_count),
        ("all requests", totals.total_requests, |s| s.total_requests),
    ];
    for (name, requests, of) in sums {
        let mut cells = vec![name.to_owned(), count(requests), per_second(of)];
        cells.resize(columns.len(), String::new());
        row(page, 1, &cells)?;
    }
    table_end(page);
    if totals.late_count > 0 {
        writeln!(
            page,
            "<p class=\"small\">{} of these requests were answered, or given up, behind the end of the measurement. They \
             count in numbers and latencies, but in no rate.</p>",
            count(totals.late_count)
        )?;
    }
    if let Some(gap_ms) = totals.longest_write_gap_ms {
        writeln!(
            page,
            "<p class=\"small\">Longest time without an acknowledged write, over all connections: {} ms.</p>",
            thousands(gap_ms, 1)
        )?;
    }
    page.push_str("</section>\n");
    Ok(())
}

fn runs_table(page: &mut String, sweep: &SweepRecord) -> fmt::Result {
    let runs = &sweep.runs;
    page.push_str("<section>\n<h2>Runs</h2>\n");
    let noted = runs.iter().any(|run| run.totals.bound_by_think || run.interrupted);
    let varied = SweptBy::varied(sweep);
    let always = [SweptBy::Slaves, SweptBy::Clients];
    let places: Vec<SweptBy> =
        SweptBy::ALL.into_iter().filter(|by| always.contains(by) || varied.contains(by)).collect();
    let heads: Vec<String> = places.iter().map(|by| format!("#{}", by.word())).collect();
    let mut columns = vec!["#run"];
    columns.extend(heads.iter().map(String::as_str));
    columns.extend([
        "#success/s",
        "#errors",
        "#error rate",
        "#read mean, µs",
        "#read p50",
        "#read p99",
        "#write mean, µs",
        "#write p50",
        "#write p99",
    ]);
    columns.push("check");
    columns.extend(noted.then_some("note"));
    table_head(page, &columns)?;
    let best = runs.iter().map(|run| run.totals.throughput_rps).fold(0.0, f64::max);
    for (index, run) in runs.iter().enumerate() {
        let totals = &run.totals;
        let rate = match totals.total_requests {
            0 => "–".to_owned(),
            all => per_cent(totals.error_count as f64 / all as f64 * 100.0),
        };
        let latency = |requests: u64, mean: f64, percentiles: &Percentiles| match requests {
            0 => ["–".to_owned(), "–".to_owned(), "–".to_owned()],
            _ => [thousands(mean, 0), count(percentiles.p50), count(percentiles.p99)],
        };
        let mut cells = vec![(index + 1).to_string()];
        cells.extend(places.iter().map(|by| short(by.of(run))));
        cells.extend([thousands(totals.throughput_rps, 0), count(totals.error_count), rate]);
        cells.extend(latency(totals.read_count, totals.read_latency_us, &totals.read));
        cells.extend(latency(totals.write_count, totals.write_latency_us, &totals.write));
        let class = if totals.throughput_rps == best && best > 0.0 { " class=\"best\"" } else { "" };
        write!(page, "<tr{class}>")?;
        for cell in cells {
            write!(page, "<td class=\"number\">{}</td>", Text(cell))?;
        }
        write!(page, "<td>{}</td>", Text(outcome(run)))?;
        if noted {
            let notes = [(totals.bound_by_think, "think time"), (run.interrupted, "ended early")];
            let notes: Vec<&str> = notes.into_iter().filter(|(so, _)| *so).map(|(_, note)| note).collect();
            write!(page, "<td class=\"note-cell\">{}</td>", notes.join(", "))?;
        }
        page.push_str("</tr>\n");
    }
    table_end(page);
    page.push_str("<p class=\"small\">The fastest run is set in bold.</p>\n</section>\n");
    Ok(())
}

/// What the checks of a run came to, in a few words.
fn outcome(run: &RunRecord) -> String {
    let answers = match wrong(&run.totals.errors) + wrong(&run.wrong_outside) {
        0 => None,
        wrong => Some(format!("{} wrong", count(wrong))),
    };
    let verdict = run.check.as_ref().map(|check| check.verdict.to_string());
    let kept = match run.read_back.as_ref().map(|back| back.lost + back.mangled) {
        None => "not read back".to_owned(),
        Some(0) => "nothing lost".to_owned(),
        Some(lost) => format!("{} lost", counted(lost, "key")),
    };
    answers.into_iter().chain(verdict).chain([kept]).collect::<Vec<_>>().join(", ")
}

/// What a class of errors means to the client.
fn meaning(class: &str) -> &'static str {
    match class {
        "standby" => "Not executed: the node asked was not the active master.",
        "noquorum" => "Not executed: fewer slaves were connected than a write or read needs.",
        "loading" => "Not executed: the master was still reading its log.",
        "readonly" => "Not executed: the store took no writes at that time.",
        "busy" => "Not executed: the store shed load.",
        "oom" => "Not executed: the slaves had no room.",
        "noauth" | "noperm" => "Not executed: the client was not allowed to.",
        "wrongtype" | "err" => "Not executed: the store refused the request as it was.",
        "unknown" => "It may or may not have been executed: the store could not tell.",
        "connection" => "The connection failed before the answer; a write may or may not have been executed.",
        "timeout" => "No answer in time; a write may or may not have been executed.",
        "wrong_value" => "A read gave a value that this key never had. This should never be.",
        "stale_value" => {
            "A read gave a value that a later acknowledged write had replaced, one of an earlier run, or none although the \
             key had been written. This should never be."
        }
        "mangled" => "A read gave bytes that nobody wrote, or the answer made no sense. This should never be.",
        "unsent" => "It was due (--rate) and never sent: its connection was still busy with what was due before.",
        "wait" => "Executed, but fewer replicas than --wait asks for confirmed it in time.",
        "other" => "One more class than the 40 that are told apart.",
        _ => "",
    }
}

fn errors(page: &mut String, sweep: &SweepRecord) -> fmt::Result {
    let mut classes: BTreeMap<&str, u64> = BTreeMap::new();
    let mut requests = 0;
    for run in &sweep.runs {
        requests += run.totals.total_requests;
        for (class, errors) in &run.totals.errors {
            *classes.entry(class).or_default() += errors;
        }
    }
    classes.retain(|_, errors| *errors > 0);
    if sweep.runs.is_empty() {
        return Ok(());
    }
    page.push_str("<section>\n<h2>Errors</h2>\n");
    if classes.is_empty() {
        page.push_str("<p>No request failed.</p>\n</section>\n");
        return Ok(());
    }
    table_head(page, &["class", "#errors", "#of all requests", "meaning"])?;
    for (class, errors) in classes {
        let share = per_cent(errors as f64 / requests.max(1) as f64 * 100.0);
        writeln!(
            page,
            "<tr><td><code>{}</code></td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td></tr>",
            Text(class),
            count(errors),
            Text(share),
            meaning(class)
        )?;
    }
    table_end(page);
    page.push_str("</section>\n");
    Ok(())
}

fn faults(page: &mut String, sweep: &SweepRecord) -> fmt::Result {
    if sweep.runs.iter().all(|run| run.faults.is_empty()) {
        return Ok(());
    }
    page.push_str(
        "<section>\n<h2>Faults</h2>\n<p>What was done to the cluster, and which of its processes ended by themselves. The \
         gap is the longest time without an acknowledged write, from the fault to the next one; errors are counted over the \
         same time. A key is lost if its latest acknowledged write was gone at the end; the first fault behind the \
         acknowledgement is blamed.</p>\n",
    );
    let numbered = sweep.runs.len() > 1;
    let mut columns =
        vec!["fault", "#at", "#until", "#longest gap", "#errors", "#lost keys", "errors by class"];
    if numbered {
        columns.insert(0, "run");
    }
    table_head(page, &columns)?;
    for (index, run) in sweep.runs.iter().enumerate() {
        for fault in &run.faults {
            page.push_str("<tr>");
            if numbered {
                write!(page, "<td>{}: {}</td>", index + 1, Text(name(sweep, run)))?;
            }
            let until = fault.until_s.map_or("–".to_owned(), |until| format!("{} s", thousands(until, 1)));
            let gap =
                fault.longest_gap_ms.map_or("–".to_owned(), |gap| format!("{} ms", thousands(gap, 1)));
            let classes: Vec<String> = fault
                .errors
                .iter()
                .filter(|(_, n)| **n > 0)
                .map(|(class, n)| format!("{class} {}", count(*n)))
                .collect();
            writeln!(
                page,
                "<td><code>{}</code></td><td class=\"number\">{} s</td><td class=\"number\">{until}</td>\
                 <td class=\"number\">{gap}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td></tr>",
                Text(&fault.name),
                thousands(fault.at_s, 1),
                count(fault.errors.values().sum()),
                count(fault.lost),
                Text(classes.join(", ")),
            )?;
        }
    }
    table_end(page);
    page.push_str("</section>\n");
    Ok(())
}

/// The plots by the directory they are in: those of the whole sweep first.
fn plots_section(page: &mut String, plots: &[(&Plot, String)]) -> fmt::Result {
    if plots.is_empty() {
        return Ok(());
    }
    let folder = |plot: &Plot| {
        plot.svg.parent().map(|parent| parent.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let groups: Vec<(String, String)> = std::iter::once(("Plots".to_owned(), String::new()))
        .chain(SweptBy::ALL.map(|by| (format!("By {}", by.name()), by.folder())))
        .collect();
    for (heading, wanted) in &groups {
        let mut members = plots.iter().filter(|(plot, _)| folder(plot) == *wanted).peekable();
        if members.peek().is_none() {
            continue;
        }
        writeln!(page, "<section>\n<h2>{heading}</h2>")?;
        for (plot, svg) in members {
            figure(page, plot, svg)?;
        }
        page.push_str("</section>\n");
    }
    // The runs of a sweep, one by one, are for those who ask.
    let mut runs: Vec<(String, Vec<&(&Plot, String)>)> = Vec::new();
    for entry in plots {
        let folder = folder(entry.0);
        if groups.iter().any(|(_, known)| *known == folder) {
            continue;
        }
        match runs.iter_mut().find(|(known, _)| *known == folder) {
            Some((_, members)) => members.push(entry),
            None => runs.push((folder, vec![entry])),
        }
    }
    if runs.is_empty() {
        return Ok(());
    }
    page.push_str("<section>\n<h2>Each run over time</h2>\n");
    for (_, members) in runs {
        let name =
            members.first().and_then(|(plot, _)| plot.title.split_once(':')).map_or("", |(name, _)| name);
        writeln!(page, "<details>\n<summary>{}</summary>", Text(name))?;
        for (plot, svg) in members {
            figure(page, plot, svg)?;
        }
        page.push_str("</details>\n");
    }
    page.push_str("</section>\n");
    Ok(())
}

fn figure(page: &mut String, plot: &Plot, svg: &str) -> fmt::Result {
    writeln!(
        page,
        "<figure>\n{svg}\n<figcaption>{} <code>{}</code></figcaption>\n</figure>",
        Text(&plot.explains),
        Text(plot.png.to_string_lossy())
    )
}

/// What a repetition needs.
#[expect(clippy::too_many_lines, reason = "one line of the page after the other")]
fn setup(page: &mut String, sweep: &SweepRecord) -> fmt::Result {
    let Some(first) = sweep.runs.first() else { return Ok(()) };
    page.push_str("<section>\n<h2>How it was measured</h2>\n<h3>Command line</h3>\n");
    writeln!(page, "<pre>{}</pre>", Text(shell(&first.command_line)))?;
    let all = |of: &dyn Fn(&RunRecord) -> String| {
        let mut values: Vec<String> = Vec::new();
        for run in &sweep.runs {
            let value = of(run);
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values.join(", ")
    };
    let or =
        |text: &str, otherwise: &str| if text.is_empty() { otherwise.to_owned() } else { text.to_owned() };
    page.push_str("<div class=\"columns\">\n<div>\n<h3>Load</h3>\n<table class=\"facts\"><tbody>\n");
    let load = [
        ("target", all(&|run| run.settings.target.clone().unwrap_or_else(|| "a cluster of its own".into()))),
        ("slaves", all(&|run| count(run.settings.slaves.into()))),
        ("clients", all(&|run| count(run.settings.clients.into()))),
        ("connections of each client", all(&|run| count(run.settings.pool.into()))),
        ("requests in flight on each", all(&|run| count(run.settings.pipeline.into()))),
        (
            "rate asked for",
            all(&|run| {
                run.settings
                    .rate
                    .map_or("as fast as answers come".into(), |rate| format!("{}/s", short(rate)))
            }),
        ),
        ("think time", all(&|run| format!("{} ms", short(run.settings.think_ms)))),
        ("writes", all(&|run| format!("{} %", short(run.settings.write_pct)))),
        (
            "keys",
            all(&|run| {
                let settings = &run.settings;
                let exponent = settings.zipf_exponent.map(|s| format!(" with exponent {}", short(s)));
                let (last, exponent) = (settings.keys.saturating_sub(1), exponent.unwrap_or_default());
                let prefix = &settings.key_prefix;
                format!("{prefix}0 to {prefix}{last}, {}{exponent}", settings.distribution)
            }),
        ),
        ("length of a value", all(&|run| format!("{} B", count(run.settings.value_bytes.into())))),
        ("protocol", all(&|run| or(&run.settings.protocol, "unknown"))),
        (
            "WAIT behind each write",
            all(&|run| run.settings.wait.map_or("no".into(), |replicas| format!("for {replicas} replicas"))),
        ),
        ("time for an answer", all(&|run| format!("{} s", short(run.settings.timeout_s)))),
        ("threads of the harness", all(&|run| count(run.settings.threads.into()))),
        ("warm-up", all(&|run| format!("{} s", short(run.settings.warmup_s)))),
        ("measurement asked for", all(&|run| format!("{} s", short(run.settings.duration_s)))),
        ("placement", all(&|run| or(&run.settings.placement, "the target's"))),
        ("fsync", all(&|run| or(&run.settings.fsync, "the target's"))),
        ("faults", all(&|run| or(&run.settings.faults, "none"))),
        ("flags of the masters", all(&|run| or(&shell(&run.settings.master_flags), "none"))),
        ("seed", all(&|run| run.settings.seed.to_string())),
        ("tag of the values", all(&|run| or(&run.run_tag, "unknown"))),
    ];
    facts(page, &load)?;
    page.push_str("</div>\n<div>\n<h3>System</h3>\n<table class=\"facts\"><tbody>\n");
    let gibibytes =
        |bytes: u64| format!("{} GiB", short((bytes as f64 / f64::from(1 << 30) * 10.0).round() / 10.0));
    let system = [
        ("processor", all(&|run| or(&run.system.cpu_model, "unknown"))),
        ("cores", all(&|run| count(run.system.cores))),
        ("memory", all(&|run| gibibytes(run.system.memory_bytes))),
        ("kernel", all(&|run| or(&run.system.kernel, "unknown"))),
        ("compiler", all(&|run| or(&run.system.rustc, "unknown"))),
        ("store", all(&|run| or(&run.store, "unknown"))),
        ("harness", all(&|run| run.version.clone())),
    ];
    facts(page, &system)?;
    page.push_str("</div>\n</div>\n");
    let user: f64 = sweep.runs.iter().map(|run| run.harness_cpu.user_s).sum();
    let kernel: f64 = sweep.runs.iter().map(|run| run.harness_cpu.system_s).sum();
    let seconds: f64 = sweep.runs.iter().map(|run| run.duration_s).sum();
    let requests: u64 = sweep.runs.iter().map(|run| run.totals.total_requests).sum();
    if user + kernel > 0.0 && seconds > 0.0 {
        writeln!(
            page,
            "<p>The harness itself used {} s of processor time ({} s of it in the kernel): {} of one core on average, {} µs \
             for each request. It runs on the same machine as a cluster of its own, so this is time the store did not \
             have.</p>",
            thousands(user + kernel, 1),
            thousands(kernel, 1),
            Text(per_cent(((user + kernel) / seconds * 100.0).round())),
            thousands((user + kernel) * 1e6 / requests.max(1) as f64, 1),
        )?;
    }
    let from = match first.settings.rate {
        Some(_) => "from the moment at which each was due (<code>--rate</code>)",
        None => "from sending",
    };
    write!(
        page,
        "<p>Latencies are those of successful requests, {from} to the whole answer, in microseconds. The warm-up is in none \
         of the figures, except in the slaves' acknowledgements, which the masters counted.</p>\n</section>\n",
    )
}

/// Rows of names and values; closes the table.
fn facts(page: &mut String, facts: &[(&str, String)]) -> fmt::Result {
    for (name, value) in facts {
        writeln!(page, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", Text(name), Text(value))?;
    }
    page.push_str("</tbody></table>\n");
    Ok(())
}

/// `command` as one would type it in a shell.
fn shell(command: &[String]) -> String {
    let quoted = command.iter().map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::plots::tests::{break_seconds, fault, made_up_run, placement, sweep_of};
    use super::super::plots::{draw, Plot};
    use super::super::record::{CheckRecord, ReadBack};
    use super::*;

    fn report(sweep: &SweepRecord) -> String {
        let directory = tempfile::tempdir().unwrap();
        let plots = draw(sweep, directory.path()).unwrap();
        let path = directory.path().join("report.html");
        write(sweep, &plots, &path).unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    /// Whether anything in `html` would make a browser fetch something, or run it.
    fn reaches_out(html: &str) -> Vec<&'static str> {
        let html = html.to_lowercase();
        let signs = [
            "http://", "https://", "src=", "href", "url(", "@import", "<script", "<link", "<iframe", "<img",
            "<base",
        ];
        signs.into_iter().filter(|sign| html.contains(sign)).collect()
    }

    #[test]
    fn a_report_holds_everything_and_refers_to_nothing() {
        let mut run = made_up_run(5, 18, 12);
        break_seconds(&mut run, 3, 5);
        run.faults = vec![fault("kill-primary", 3.2, Some(5.0))];
        run.system.cpu_model = "Some Processor 9000".into();
        run.check = Some(CheckRecord {
            operations: 1234,
            keys: 56,
            verdict: HistoryVerdict::Violation,
            counter_example: Some("READ k -> <nothing>".into()),
            ..CheckRecord::default()
        });
        run.read_back = Some(ReadBack { keys_checked: 10_000, lost: 3, mangled: 0 });
        let mut sweep = sweep_of(vec![run]);
        sweep.placement = vec![placement("hash", [5540; 9])];
        let html = report(&sweep);
        for part in [
            "dsm-test-harness --slaves 5 --clients 18",
            "Some Processor 9000",
            "dsm 0.1.0",
            "41.5 ms",
            "kill-primary",
            "The connection failed before the answer",
            "Violation.",
            "READ k -&gt; &lt;nothing&gt;",
            "3 had lost the latest acknowledged write",
            "10,000 writes, each to 5 of 9 slaves",
            "Content-Security-Policy",
        ] {
            assert!(html.contains(part), "no {part:?}");
        }
        // What compares runs is drawn where a grid varies something: a single run shows its course and its slaves.
        let single = html.matches("<svg ").count();
        assert_eq!(single, 5);
        assert_eq!(reaches_out(&html), [""; 0]);
        sweep.runs.push(made_up_run(5, 36, 12));
        let grid = report(&sweep).matches("<svg ").count();
        assert!(grid > single, "{grid} plots of two numbers of clients");
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let attack = "'\"><script src=https://evil.example/x.js></script><img onerror=a>&\u{0}";
        let mut run = made_up_run(2, 2, 3);
        run.command_line = vec![attack.into()];
        run.store = attack.into();
        run.started_at = attack.into();
        run.system.cpu_model = attack.into();
        run.settings.target = Some(attack.into());
        run.settings.distribution = attack.into();
        run.faults = vec![fault(attack, 1.0, None)];
        run.faults[0].errors.insert(attack.into(), 3);
        run.totals.errors.insert(attack.into(), 3);
        run.slave_loads[0].slave = attack.into();
        run.check = Some(CheckRecord {
            verdict: HistoryVerdict::Violation,
            counter_example: Some(attack.into()),
            ..CheckRecord::default()
        });
        let mut second = run.clone();
        second.settings.slaves = 3;
        for sweep in [sweep_of(vec![run.clone()]), sweep_of(vec![run, second])] {
            let html = report(&sweep);
            assert!(html.contains("&lt;script src=https://evil.example"), "the text itself must show");
            for tag in ["<script", "<img", "\u{0}"] {
                assert!(!html.contains(tag), "{tag:?} got through");
            }
        }
    }

    #[test]
    fn a_sweep_lists_its_runs_and_marks_the_fastest() {
        let mut runs: Vec<_> = [1, 3, 9].map(|slaves| made_up_run(slaves, 8, 3)).into();
        runs[2].totals.bound_by_think = true;
        runs[1].interrupted = true;
        let html = report(&sweep_of(runs));
        assert_eq!(html.matches("<tr class=\"best\">").count(), 1);
        assert_eq!(html.matches("<details>").count(), 3);
        assert!(html.contains("<td class=\"note-cell\">think time</td>") && html.contains("ended early"));
        assert!(html.contains("1 of the runs were bound by think time"));
        assert_eq!(reaches_out(&html), [""; 0]);
    }

    #[test]
    fn what_went_wrong_is_told_of_each_run_and_what_went_right_of_all() {
        let right = |slaves| {
            let mut run = made_up_run(slaves, 8, 3);
            run.read_back = Some(ReadBack { keys_checked: 10, ..ReadBack::default() });
            run
        };
        let mut wrong_answers = right(2);
        wrong_answers.totals.errors.insert("stale_value".into(), 5);
        let mut wrong_before = right(3);
        wrong_before.wrong_outside.insert("mangled".into(), 1);
        let unread = RunRecord { read_back_error: "nobody is there".into(), ..made_up_run(4, 8, 3) };
        let mut cut = right(5);
        cut.check = Some(CheckRecord {
            verdict: HistoryVerdict::Violation,
            cut_at_s: Some(1.26),
            ..CheckRecord::default()
        });
        let sweep = sweep_of(vec![right(1), wrong_answers.clone(), wrong_before, unread.clone(), cut]);
        let html = report(&sweep);
        for part in [
            "1 of 5 runs: nothing wrong.",
            "5 answers had a value",
            "stale_value 5",
            "1 answer had a value that must not have been there, 1 of them outside the measurement",
            "could not be read back at the end, so nobody knows what was lost: nobody is there",
            "begun after 1.3 s",
            "<td>5 wrong, nothing lost</td>",
            "<td>not read back</td>",
        ] {
            assert!(html.contains(part), "no {part:?}");
        }
        assert!(!html.contains("<h3>Run 1:") && html.contains("<h3>Run 4:"));
        assert!(report(&sweep_of(vec![wrong_answers])).contains("Wrong answers."));
        assert!(report(&sweep_of(vec![unread])).contains("Not read back."));
        assert!(report(&sweep_of(vec![right(1)])).contains("No wrong answer."));
    }

    #[test]
    fn texts_say_what_is_true_of_the_run_shown() {
        let own = report(&sweep_of(vec![made_up_run(5, 8, 3), made_up_run(5, 16, 3)]));
        assert!(own.contains("on ⌈n/2⌉ of the n slaves") && own.contains("from sending"));
        let mut run = made_up_run(5, 8, 3);
        run.settings.target = Some("127.0.0.1:6379".into());
        run.settings.rate = Some(1000.0);
        run.settings.faults = "kill-primary@1s".into();
        run.totals.errors.insert("unsent".into(), 4);
        let mut second = run.clone();
        second.settings.clients *= 2;
        let html = report(&sweep_of(vec![run, second]));
        assert!(!html.contains("⌈n/2⌉") && !html.contains("from sending"), "a target may be any store");
        assert!(html.contains("which each was due") && html.contains("never sent"));
        assert!(html.contains("<td>kill-primary@1s</td>"));
    }

    #[test]
    fn nothing_to_report_and_a_missing_plot_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.html");
        assert!(write(&SweepRecord::default(), &[], &path).is_err());
        let plot = Plot { title: "x".into(), explains: "y".into(), png: "x.png".into(), svg: "x.svg".into() };
        let error = write(&sweep_of(vec![made_up_run(1, 1, 1)]), &[plot], &path).unwrap_err();
        assert!(error.to_string().contains("x.svg"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_run_without_any_request_is_reported() {
        let html = report(&sweep_of(vec![RunRecord::default()]));
        assert!(html.contains("No request failed") && !html.contains("NaN") && !html.contains("inf"));
    }

    #[test]
    fn a_command_line_is_quoted_as_a_shell_needs_it() {
        let words = ["dsm", "--out=a/b", "it's", "", "$x"].map(String::from);
        assert_eq!(shell(&words), r"dsm --out=a/b 'it'\''s' '' '$x'");
    }
}
