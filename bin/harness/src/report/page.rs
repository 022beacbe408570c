//! What stands in the report, in its order: the record of a sweep as words and figures. `page.html` sets them.

use std::collections::BTreeMap;

use askama::Template;

use crate::failures::{HistoryVerdict, Wrong};
use crate::plots::number::{count, counted, per_cent, short, thousands};
use crate::plots::{name, Plot, SweptBy};
use crate::record::{CheckRecord, Percentiles, RunRecord, Second, SweepRecord};
use crate::verdict::is_right;

/// Looks of the page. In the dark the plots are inverted and their hues turned back, so that blue stays blue.
const STYLE: &str = include_str!("report.css");

/// The page. A part that is `None` has nothing to say about this sweep.
#[derive(Template)]
#[template(path = "page.html")]
pub(super) struct Page<'a> {
    title: String,
    style: &'static str,
    lead: Option<Lead<'a>>,
    cards: Option<[Card; 4]>,
    checks: Option<Checks<'a>>,
    totals: Option<TotalsTable>,
    runs: Option<RunsTable>,
    errors: Option<ErrorTable<'a>>,
    faults: Option<FaultTable<'a>>,
    plots: Plots,
    setup: Option<Setup>,
}

impl<'a> Page<'a> {
    /// The page about `sweep`, with what was drawn of it.
    pub(super) fn new(sweep: &'a SweepRecord, figures: Vec<SetFigure>) -> Self {
        let only = match sweep.runs.as_slice() {
            [run] => Some(run),
            _ => None,
        };
        let title = match sweep.runs.as_slice() {
            [] => "Load distribution".to_owned(),
            [run] => format!("Load test: {}", name(sweep, run)),
            runs => format!("Load test: {} runs", runs.len()),
        };
        Page {
            title,
            style: STYLE,
            lead: Lead::new(sweep),
            cards: only.map(cards),
            checks: Checks::new(sweep),
            totals: only.map(TotalsTable::new),
            runs: (sweep.runs.len() > 1).then(|| RunsTable::new(sweep)),
            errors: ErrorTable::new(sweep),
            faults: FaultTable::new(sweep),
            plots: Plots::new(figures),
            setup: Setup::new(sweep),
        }
    }
}

/// What, when, how long.
struct Lead<'a> {
    store: &'a str,
    seconds: String,
    runs: usize,
    started_at: &'a str,
    target: Option<&'a str>,
    /// Its rate and its name, if there are others.
    fastest: Option<(String, String)>,
    /// Which runs a signal ended.
    interrupted: Option<String>,
    /// Which runs, with their verb.
    bound_by_think: Option<String>,
}

impl<'a> Lead<'a> {
    fn new(sweep: &'a SweepRecord) -> Option<Self> {
        let first = sweep.runs.first()?;
        let runs = sweep.runs.len();
        let seconds: f64 = sweep.runs.iter().map(|run| run.duration_s).sum();
        let fastest =
            sweep.runs.iter().max_by(|a, b| a.totals.throughput_rps.total_cmp(&b.totals.throughput_rps));
        let fastest = fastest.filter(|_| runs > 1);
        let interrupted = sweep.runs.iter().filter(|run| run.interrupted).count();
        let bound = sweep.runs.iter().filter(|run| run.totals.bound_by_think).count();
        Some(Lead {
            store: if first.store.is_empty() { "an unnamed store" } else { &first.store },
            seconds: short((seconds * 10.0).round() / 10.0),
            runs,
            started_at: &first.started_at,
            target: first.settings.target.as_deref(),
            fastest: fastest.map(|run| (thousands(run.totals.throughput_rps, 0), name(sweep, run))),
            interrupted: (interrupted > 0).then(|| match runs {
                1 => "The run".to_owned(),
                _ => counted(interrupted as u64, "run"),
            }),
            bound_by_think: (bound > 0).then(|| match runs {
                1 => "This run was".to_owned(),
                _ => format!("{bound} of the runs were"),
            }),
        })
    }
}

/// A figure that everybody looks for first.
struct Card {
    name: &'static str,
    value: String,
    more: String,
}

fn cards(run: &RunRecord) -> [Card; 4] {
    let totals = &run.totals;
    let latency = |name, percentiles: &Percentiles, requests: u64| match requests {
        0 => Card { name, value: "–".to_owned(), more: "none succeeded".to_owned() },
        _ => Card {
            name,
            value: format!("{} µs", count(percentiles.p50)),
            more: format!("p99 {} µs", count(percentiles.p99)),
        },
    };
    [
        Card {
            name: "Throughput",
            value: format!("{}/s", thousands(totals.throughput_rps, 0)),
            more: "successful requests".to_owned(),
        },
        latency("Read latency, median", &totals.read, totals.read_count),
        latency("Write latency, median", &totals.write, totals.write_count),
        Card {
            name: "Errors",
            value: error_rate(run),
            more: format!("{} of {}", count(totals.error_count), counted(totals.total_requests, "request")),
        },
    ]
}

/// Which part of the requests failed.
fn error_rate(run: &RunRecord) -> String {
    match run.totals.total_requests {
        0 => "–".to_owned(),
        all => per_cent(run.totals.error_count as f64 / all as f64 * 100.0),
    }
}

/// How many of `errors` are answers that must never be.
fn wrong(errors: &BTreeMap<String, u64>) -> u64 {
    Wrong::ALL.iter().filter_map(|wrong| errors.get(wrong.class())).sum()
}

/// How often each class is in `errors`.
fn classes<'a>(errors: impl IntoIterator<Item = (&'a String, &'a u64)>) -> String {
    let classes: Vec<String> =
        errors.into_iter().map(|(class, n)| format!("{class} {}", count(*n))).collect();
    classes.join(", ")
}

/// What was checked, and what came out.
struct Checks<'a> {
    /// Of several runs: how many had nothing wrong, of how many, and what was judged of them (HTML).
    right: Option<(usize, usize, &'static str)>,
    /// A single run, or those with something wrong.
    each: Vec<Check<'a>>,
}

impl<'a> Checks<'a> {
    fn new(sweep: &'a SweepRecord) -> Option<Self> {
        let all = sweep.runs.len();
        let right = sweep.runs.iter().filter(|run| is_right(run)).count();
        let checked = match sweep.runs.iter().filter(|run| run.check.is_some()).count() {
            0 => "the order of the answers was not judged (<code>--check</code>)",
            n if n == all => "every history was linearizable",
            _ => "every history that was judged was linearizable",
        };
        let each = sweep.runs.iter().enumerate().filter(|(_, run)| all == 1 || !is_right(run));
        let heading = |index, run| (all > 1).then(|| (index + 1, name(sweep, run)));
        (all > 0).then(|| Checks {
            right: (all > 1 && right > 0).then_some((right, all, checked)),
            each: each.map(|(index, run)| Check::new(run, heading(index, run))).collect(),
        })
    }
}

/// What came out for one run.
struct Check<'a> {
    /// Its number and name.
    heading: Option<(usize, String)>,
    wrong: Option<WrongAnswers>,
    history: Option<History<'a>>,
    kept: Kept<'a>,
}

struct WrongAnswers {
    answers: String,
    outside: Option<String>,
    classes: String,
}

struct History<'a> {
    class: &'static str,
    word: &'static str,
    meaning: &'static str,
    operations: String,
    keys: String,
    cut_at_s: Option<String>,
    counter_example: Option<&'a str>,
}

/// What the keys held at the end.
enum Kept<'a> {
    ReadBack { class: &'static str, word: &'static str, keys: String, lost: String, mangled: String },
    NotReadBack(&'a str),
}

impl<'a> Check<'a> {
    fn new(run: &'a RunRecord, heading: Option<(usize, String)>) -> Self {
        let (within, outside) = (wrong(&run.totals.errors), wrong(&run.wrong_outside));
        let all = [&run.totals.errors, &run.wrong_outside].into_iter().flatten();
        let wrong = (within + outside > 0).then(|| WrongAnswers {
            answers: counted(within + outside, "answer"),
            outside: (outside > 0).then(|| count(outside)),
            classes: classes(all.filter(|(class, _)| Wrong::of_class(class).is_some())),
        });
        let kept = match &run.read_back {
            Some(back) => {
                let (class, word) = match (back.lost, back.mangled) {
                    (0, 0) => ("good", "Nothing lost."),
                    (0, _) => ("bad", "Mangled values."),
                    _ => ("bad", "Acknowledged writes are missing."),
                };
                let keys = counted(back.keys_checked, "key");
                Kept::ReadBack { class, word, keys, lost: count(back.lost), mangled: count(back.mangled) }
            }
            None => Kept::NotReadBack(&run.read_back_error),
        };
        Check { heading, wrong, history: run.check.as_ref().map(History::new), kept }
    }
}

impl<'a> History<'a> {
    fn new(check: &'a CheckRecord) -> Self {
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
        History {
            class,
            word,
            meaning,
            operations: counted(check.operations, "operation"),
            keys: counted(check.keys, "key"),
            cut_at_s: check.cut_at_s.map(|at_s| thousands(at_s, 1)),
            counter_example: check.counter_example.as_deref(),
        }
    }
}

/// A column of a table.
struct Column {
    name: String,
    /// Whether it holds numbers.
    numbers: bool,
}

fn words(name: &str) -> Column {
    Column { name: name.to_owned(), numbers: false }
}

fn numbers(name: &str) -> Column {
    Column { name: name.to_owned(), numbers: true }
}

struct TotalsTable {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    late: Option<String>,
    longest_write_gap_ms: Option<String>,
}

impl TotalsTable {
    fn new(run: &RunRecord) -> Self {
        let totals = &run.totals;
        let figures =
            ["requests", "per second", "mean, µs", "p50", "p90", "p99", "p99.9", "slowest, µs"].map(numbers);
        let columns: Vec<Column> = [words("")].into_iter().chain(figures).collect();
        type Latencies<'a> = (&'static str, u64, f64, &'a Percentiles, fn(&Second) -> u64);
        let latencies: [Latencies<'_>; 2] = [
            ("successful reads", totals.read_count, totals.read_latency_us, &totals.read, |s| s.read_count),
            ("successful writes", totals.write_count, totals.write_latency_us, &totals.write, |s| {
                s.write_count
            }),
        ];
        type Sum = (&'static str, u64, fn(&Second) -> u64);
        let sums: [Sum; 2] = [
            ("errors", totals.error_count, |s| s.error_count),
            ("all requests", totals.total_requests, |s| s.total_requests),
        ];
        // What was answered after the end is in no second, and in no rate.
        let per_second = |of: fn(&Second) -> u64| match run.duration_s {
            seconds if seconds > 0.0 => {
                thousands(run.seconds.iter().map(of).sum::<u64>() as f64 / seconds, 0)
            }
            _ => "–".to_owned(),
        };
        let mut rows = Vec::new();
        for (name, requests, mean, percentiles, of) in latencies {
            let mut cells = vec![name.to_owned(), count(requests), per_second(of)];
            if requests > 0 {
                cells.push(thousands(mean, 0));
                let Percentiles { p50, p90, p99, p999, max } = *percentiles;
                cells.extend([p50, p90, p99, p999, max].map(count));
            } else {
                cells.resize(columns.len(), "–".to_owned());
            }
            rows.push(cells);
        }
        for (name, requests, of) in sums {
            let mut cells = vec![name.to_owned(), count(requests), per_second(of)];
            cells.resize(columns.len(), String::new());
            rows.push(cells);
        }
        TotalsTable {
            columns,
            rows,
            late: (totals.late_count > 0).then(|| count(totals.late_count)),
            longest_write_gap_ms: totals.longest_write_gap_ms.map(|gap_ms| thousands(gap_ms, 1)),
        }
    }
}

struct RunsTable {
    columns: Vec<Column>,
    rows: Vec<RunRow>,
}

struct RunRow {
    is_best: bool,
    figures: Vec<String>,
    outcome: String,
    /// `Some` in all rows or in none.
    note: Option<String>,
}

impl RunsTable {
    fn new(sweep: &SweepRecord) -> Self {
        let runs = &sweep.runs;
        let noted = runs.iter().any(|run| run.totals.bound_by_think || run.interrupted);
        let varied = SweptBy::varied(sweep);
        let always = [SweptBy::Slaves, SweptBy::Clients];
        let places: Vec<SweptBy> =
            SweptBy::ALL.into_iter().filter(|by| always.contains(by) || varied.contains(by)).collect();
        let mut columns = vec![numbers("run")];
        columns.extend(places.iter().map(|by| numbers(by.word())));
        columns.extend(["success/s", "errors", "error rate"].map(numbers));
        columns.extend(["read mean, µs", "read p50", "read p99"].map(numbers));
        columns.extend(["write mean, µs", "write p50", "write p99"].map(numbers));
        columns.push(words("check"));
        columns.extend(noted.then(|| words("note")));
        let best = runs.iter().map(|run| run.totals.throughput_rps).fold(0.0, f64::max);
        let row = |(index, run): (usize, &RunRecord)| {
            let totals = &run.totals;
            let latency = |requests: u64, mean: f64, percentiles: &Percentiles| match requests {
                0 => ["–".to_owned(), "–".to_owned(), "–".to_owned()],
                _ => [thousands(mean, 0), count(percentiles.p50), count(percentiles.p99)],
            };
            let mut figures = vec![(index + 1).to_string()];
            figures.extend(places.iter().map(|by| short(by.of(run))));
            figures.extend([thousands(totals.throughput_rps, 0), count(totals.error_count), error_rate(run)]);
            figures.extend(latency(totals.read_count, totals.read_latency_us, &totals.read));
            figures.extend(latency(totals.write_count, totals.write_latency_us, &totals.write));
            let notes = [(totals.bound_by_think, "think time"), (run.interrupted, "ended early")];
            let notes: Vec<&str> = notes.into_iter().filter(|(so, _)| *so).map(|(_, note)| note).collect();
            RunRow {
                is_best: totals.throughput_rps == best && best > 0.0,
                figures,
                outcome: outcome(run),
                note: noted.then(|| notes.join(", ")),
            }
        };
        RunsTable { columns, rows: runs.iter().enumerate().map(row).collect() }
    }
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

struct ErrorTable<'a> {
    columns: Vec<Column>,
    rows: Vec<ErrorRow<'a>>,
}

struct ErrorRow<'a> {
    class: &'a str,
    count: String,
    share: String,
    meaning: &'static str,
}

impl<'a> ErrorTable<'a> {
    fn new(sweep: &'a SweepRecord) -> Option<Self> {
        let mut classes: BTreeMap<&str, u64> = BTreeMap::new();
        let mut requests = 0;
        for run in &sweep.runs {
            requests += run.totals.total_requests;
            for (class, errors) in &run.totals.errors {
                *classes.entry(class).or_default() += errors;
            }
        }
        let rows = classes.into_iter().filter(|(_, errors)| *errors > 0).map(|(class, errors)| ErrorRow {
            class,
            count: count(errors),
            share: per_cent(errors as f64 / requests.max(1) as f64 * 100.0),
            meaning: meaning(class),
        });
        let columns = vec![words("class"), numbers("errors"), numbers("of all requests"), words("meaning")];
        (!sweep.runs.is_empty()).then(|| ErrorTable { columns, rows: rows.collect() })
    }
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

struct FaultTable<'a> {
    columns: Vec<Column>,
    rows: Vec<FaultRow<'a>>,
}

struct FaultRow<'a> {
    /// The number and name of its run, if there are several.
    run: Option<(usize, String)>,
    name: &'a str,
    figures: [String; 5],
    classes: String,
}

impl<'a> FaultTable<'a> {
    fn new(sweep: &'a SweepRecord) -> Option<Self> {
        let numbered = sweep.runs.len() > 1;
        let mut columns: Vec<Column> = numbered.then(|| words("run")).into_iter().collect();
        columns.push(words("fault"));
        columns.extend(["at", "until", "longest gap", "errors", "lost keys"].map(numbers));
        columns.push(words("errors by class"));
        let mut rows = Vec::new();
        for (index, run) in sweep.runs.iter().enumerate() {
            for fault in &run.faults {
                let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
                rows.push(FaultRow {
                    run: numbered.then(|| (index + 1, name(sweep, run))),
                    name: &fault.name,
                    figures: [
                        format!("{} s", thousands(fault.at_s, 1)),
                        or_dash(fault.until_s.map(|until| format!("{} s", thousands(until, 1)))),
                        or_dash(fault.longest_gap_ms.map(|gap| format!("{} ms", thousands(gap, 1)))),
                        count(fault.errors.values().sum()),
                        count(fault.lost),
                    ],
                    classes: classes(fault.errors.iter().filter(|(_, n)| **n > 0)),
                });
            }
        }
        (!rows.is_empty()).then_some(FaultTable { columns, rows })
    }
}

/// A plot that is drawn.
pub(super) struct SetFigure {
    /// The folder it is in, from that of the report on.
    folder: String,
    title: String,
    explains: String,
    png: String,
    /// To stand in the page.
    svg: String,
}

impl SetFigure {
    /// `plot`, with its drawing.
    pub(super) fn new(plot: &Plot, svg: String) -> Self {
        let folder = plot.svg.parent().map(|parent| parent.to_string_lossy().into_owned());
        SetFigure {
            folder: folder.unwrap_or_default(),
            title: plot.title.clone(),
            explains: plot.explains.clone(),
            png: plot.png.to_string_lossy().into_owned(),
            svg,
        }
    }
}

/// The plots by the folder they are in.
struct Plots {
    /// Those of the whole sweep, under their headings.
    groups: Vec<(String, Vec<SetFigure>)>,
    /// The runs one by one, for those who ask.
    runs: Vec<(String, Vec<SetFigure>)>,
}

impl Plots {
    fn new(figures: Vec<SetFigure>) -> Self {
        let known = std::iter::once(("Plots".to_owned(), String::new()))
            .chain(SweptBy::ALL.map(|by| (format!("By {}", by.name()), by.folder())));
        let mut groups: Vec<(String, String, Vec<SetFigure>)> =
            known.map(|(heading, folder)| (heading, folder, Vec::new())).collect();
        let mut runs: Vec<(String, String, Vec<SetFigure>)> = Vec::new();
        for figure in figures {
            let all = groups.iter_mut().chain(&mut runs);
            match all.into_iter().find(|(_, folder, _)| *folder == figure.folder) {
                Some((_, _, members)) => members.push(figure),
                None => {
                    let name = figure.title.split_once(':').map_or("", |(name, _)| name).to_owned();
                    runs.push((name, figure.folder.clone(), vec![figure]));
                }
            }
        }
        let shown = |found: Vec<(String, String, Vec<SetFigure>)>| {
            let found = found.into_iter().filter(|(_, _, members)| !members.is_empty());
            found.map(|(heading, _, members)| (heading, members)).collect()
        };
        Plots { groups: shown(groups), runs: shown(runs) }
    }
}

/// What a repetition needs.
struct Setup {
    command_line: String,
    load: Vec<(&'static str, String)>,
    system: Vec<(&'static str, String)>,
    harness: Option<HarnessCpu>,
    /// Whether requests were due at moments of their own.
    is_paced: bool,
}

/// What the harness itself used of the processors.
struct HarnessCpu {
    seconds: String,
    kernel_seconds: String,
    of_a_core: String,
    us_per_request: String,
}

impl HarnessCpu {
    fn new(sweep: &SweepRecord) -> Option<Self> {
        let user: f64 = sweep.runs.iter().map(|run| run.harness_cpu.user_s).sum();
        let kernel: f64 = sweep.runs.iter().map(|run| run.harness_cpu.system_s).sum();
        let seconds: f64 = sweep.runs.iter().map(|run| run.duration_s).sum();
        let requests: u64 = sweep.runs.iter().map(|run| run.totals.total_requests).sum();
        (user + kernel > 0.0 && seconds > 0.0).then(|| HarnessCpu {
            seconds: thousands(user + kernel, 1),
            kernel_seconds: thousands(kernel, 1),
            of_a_core: per_cent(((user + kernel) / seconds * 100.0).round()),
            us_per_request: thousands((user + kernel) * 1e6 / requests.max(1) as f64, 1),
        })
    }
}

impl Setup {
    fn new(sweep: &SweepRecord) -> Option<Self> {
        let first = sweep.runs.first()?;
        Some(Setup {
            command_line: shell(&first.command_line),
            load: load(sweep),
            system: system(sweep),
            harness: HarnessCpu::new(sweep),
            is_paced: first.settings.rate.is_some(),
        })
    }
}

/// The values that the runs have, each once, in the order of the runs.
fn all(sweep: &SweepRecord, of: impl Fn(&RunRecord) -> String) -> String {
    let mut values: Vec<String> = Vec::new();
    for value in sweep.runs.iter().map(of) {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values.join(", ")
}

/// `text`, or `otherwise` if it is empty.
fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise } else { text }.to_owned()
}

fn load(sweep: &SweepRecord) -> Vec<(&'static str, String)> {
    let all = |of: &dyn Fn(&RunRecord) -> String| all(sweep, of);
    vec![
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
            "WAIT after each write",
            all(&|run| run.settings.wait.map_or("no".into(), |replicas| format!("for {replicas} replicas"))),
        ),
        ("time for an answer", all(&|run| format!("{} s", short(run.settings.timeout_s)))),
        ("threads of the harness", all(&|run| count(run.settings.threads.into()))),
        ("warm-up", all(&|run| format!("{} s", short(run.settings.warmup_s)))),
        ("measurement asked for", all(&|run| format!("{} s", short(run.settings.duration_s)))),
        ("placement", all(&|run| or(&run.settings.placement, "the target's"))),
        ("fsync", all(&|run| or(&run.settings.fsync, "the target's"))),
        ("TLS", all(&|run| if run.settings.tls { "yes".into() } else { "no".into() })),
        ("secrets and a password", all(&|run| if run.settings.secrets { "yes".into() } else { "no".into() })),
        ("faults", all(&|run| or(&run.settings.faults, "none"))),
        ("flags of the masters", all(&|run| or(&shell(&run.settings.master_flags), "none"))),
        ("seed", all(&|run| run.settings.seed.to_string())),
        ("tag of the values", all(&|run| or(&run.run_tag, "unknown"))),
    ]
}

fn system(sweep: &SweepRecord) -> Vec<(&'static str, String)> {
    let gibibytes =
        |bytes: u64| format!("{} GiB", short((bytes as f64 / f64::from(1 << 30) * 10.0).round() / 10.0));
    let all = |of: &dyn Fn(&RunRecord) -> String| all(sweep, of);
    vec![
        ("processor", all(&|run| or(&run.system.cpu_model, "unknown"))),
        ("cores", all(&|run| count(run.system.cores))),
        ("memory", all(&|run| gibibytes(run.system.memory_bytes))),
        ("kernel", all(&|run| or(&run.system.kernel, "unknown"))),
        ("compiler", all(&|run| or(&run.system.rustc, "unknown"))),
        ("store", all(&|run| or(&run.store, "unknown"))),
        ("harness", all(&|run| run.version.clone())),
    ]
}

/// `command` as one would type it in a shell.
pub(super) fn shell(command: &[String]) -> String {
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
