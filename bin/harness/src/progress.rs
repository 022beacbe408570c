//! What is shown during and after a run: a bar with live figures on a terminal, a line now and then elsewhere, and the
//! table at the end. Everything but the table goes to standard error. With `--quiet` only warnings.
//!
//! Written by hand: one line that is redrawn once a second, and one table of eight columns of fixed width. indicatif
//! and comfy-table would add four crates to each build of the harness to save about forty lines.

use super::record::{Percentiles, RunRecord, Second};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;

/// Width of the bar in columns.
const BAR: usize = 24;

/// Seconds between two lines where there is no terminal.
const LINE_EVERY_S: f64 = 10.0;

/// Shows how it goes.
#[derive(Debug)]
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    /// Whether the line of the bar stands unfinished.
    drawn: bool,
    label: String,
}

impl Progress {
    /// `quiet`: only warnings.
    pub(crate) fn new(quiet: bool) -> Progress {
        Progress { quiet, terminal: io::stderr().is_terminal(), drawn: false, label: String::new() }
    }

    /// What stands before the bar: the point of a grid.
    pub(crate) fn label(&mut self, label: String) {
        self.label = label;
    }

    /// How long the warm-up still takes.
    pub(crate) fn warm_up(&mut self, left_s: f64) {
        if self.terminal && !self.quiet {
            self.draw(&format!("{}warm-up, {left_s:.0} s left", self.label));
        }
    }

    /// A second of the measurement is over.
    pub(crate) fn second(&mut self, at_s: f64, of_s: f64, second: &Second, failures: u64) {
        if self.quiet {
            return;
        }
        let done = if of_s > 0.0 { (at_s / of_s).min(1.0) } else { 1.0 };
        let figures = format!(
            "{:.0}/s  read p99 {}  write p99 {}  errors {failures}",
            second.throughput_rps,
            time(second.read.p99),
            time(second.write.p99)
        );
        if self.terminal {
            let full = (done * BAR as f64).round() as usize;
            let bar: String = (0..BAR).map(|column| if column < full { '#' } else { '.' }).collect();
            self.draw(&format!("{}[{bar}] {at_s:.0}/{of_s:.0} s  {figures}", self.label));
        } else if at_s % LINE_EVERY_S == 0.0 {
            self.line(&format!("{}{at_s:.0}/{of_s:.0} s  {figures}", self.label));
        }
    }

    /// Says what is done now.
    pub(crate) fn say(&mut self, text: &str) {
        if !self.quiet {
            let text = format!("{}{text}", self.label);
            self.line(&text);
        }
    }

    /// Says what a person should know in any case.
    pub(crate) fn warn(&mut self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    /// Says why the exit code will be 1.
    pub(crate) fn error(&mut self, text: &str) {
        self.line(&format!("error: {text}"));
    }

    /// Prints a table to standard output, unless it is to be quiet.
    pub(crate) fn table(&mut self, table: &str) {
        if self.quiet {
            return;
        }
        self.end();
        // Its reader may have closed it; the results are in the files.
        let _ = writeln!(io::stdout(), "{table}");
    }

    /// Takes the bar away.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.drawn) {
            self.put("\r\x1b[K");
        }
    }

    fn draw(&mut self, text: &str) {
        self.drawn = true;
        let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col.into());
        let text = cut(text, if columns == 0 { COLUMNS } else { columns });
        self.put(&format!("\r\x1b[K{text}"));
    }

    fn line(&mut self, text: &str) {
        self.end();
        self.put(&format!("{text}\n"));
    }

    fn put(&self, text: &str) {
        // If standard error is closed, there is nowhere to report that.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

/// The part of `text` that fits on a line of this many columns: a wrapped line could not be erased.
fn cut(text: &str, columns: usize) -> &str {
    match text.char_indices().nth(columns.saturating_sub(1)) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// Microseconds, as people read them.
fn time(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..=9_999 => format!("{us} µs"),
        10_000..=9_999_999 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// The table of a run.
pub(crate) fn table(run: &RunRecord) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_table(&mut text, run);
    text
}

#[expect(clippy::too_many_lines, reason = "one line of the table after the other")]
fn write_table(text: &mut String, run: &RunRecord) -> std::fmt::Result {
    let (settings, totals) = (&run.settings, &run.totals);
    let store = if run.store.is_empty() { "a store that does not say what it is" } else { &run.store };
    let loop_kind = match settings.rate {
        Some(rate) => format!("open loop at {rate}/s"),
        None if settings.think_ms > 0.0 => format!("think {} ms", settings.think_ms),
        None => "closed loop, full speed".to_owned(),
    };
    writeln!(
        text,
        "{store}: {} slaves, {} clients x {} connections, pipeline {}, {} % writes of {} bytes, {} keys {}, {loop_kind}",
        settings.slaves,
        settings.clients,
        settings.pool,
        settings.pipeline,
        settings.write_pct,
        settings.value_bytes,
        settings.keys,
        settings.distribution
    )?;
    let early = if run.interrupted { ", interrupted" } else { "" };
    writeln!(
        text,
        "{:.1} s measured{early}: {:.0} successes/s, {} of {} requests succeeded, {} failed",
        run.duration_s,
        totals.throughput_rps,
        totals.success_count,
        totals.total_requests,
        totals.error_count
    )?;
    if totals.late_count > 0 {
        writeln!(
            text,
            "{} of them were answered after the end: they count in everything but the successes/s",
            totals.late_count
        )?;
    }
    writeln!(text)?;
    writeln!(
        text,
        "{:<8}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}",
        "", "count", "mean", "p50", "p90", "p99", "p99.9", "max"
    )?;
    let mut row = |name: &str, count: u64, mean_us: f64, p: &Percentiles| {
        let mean = time(mean_us.round() as u64);
        let [p50, p90, p99, p999, max] = [p.p50, p.p90, p.p99, p.p999, p.max].map(time);
        writeln!(text, "{name:<8}{count:>12}{mean:>12}{p50:>12}{p90:>12}{p99:>12}{p999:>12}{max:>12}")
    };
    row("reads", totals.read_count, totals.read_latency_us, &totals.read)?;
    row("writes", totals.write_count, totals.write_latency_us, &totals.write)?;
    writeln!(text)?;
    if !totals.errors.is_empty() {
        writeln!(text, "errors: {}", by_class(&totals.errors))?;
    }
    if !run.wrong_outside.is_empty() {
        writeln!(text, "wrong answers outside the measurement: {}", by_class(&run.wrong_outside))?;
    }
    if let Some(gap_ms) = totals.longest_write_gap_ms {
        writeln!(text, "longest time without an acknowledged write: {gap_ms:.1} ms")?;
    }
    for fault in &run.faults {
        let errors = if fault.errors.is_empty() { "none".to_owned() } else { by_class(&fault.errors) };
        let until = fault.until_s.map(|until_s| format!(" to {until_s:.1} s")).unwrap_or_default();
        let gap = fault
            .longest_gap_ms
            .map(|gap_ms| format!("longest gap between acknowledged writes {gap_ms:.0} ms, "))
            .unwrap_or_default();
        writeln!(
            text,
            "{} at {:.1} s{until}: {gap}errors: {errors}; {} keys lost their latest acknowledged write",
            fault.name, fault.at_s, fault.lost
        )?;
    }
    if !run.slave_loads.is_empty() {
        let loads: Vec<_> =
            run.slave_loads.iter().map(|load| format!("{} {}", load.slave, load.writes)).collect();
        writeln!(text, "writes by slave: {}", loads.join(", "))?;
    }
    match &run.read_back {
        Some(back) => writeln!(
            text,
            "read back: {} keys, {} lost their latest acknowledged write, {} mangled",
            back.keys_checked, back.lost, back.mangled
        )?,
        None => writeln!(text, "read back: the keys could not be read back: {}", run.read_back_error)?,
    }
    if let Some(check) = &run.check {
        let cut = check.cut_at_s.map(|at_s| format!(", begun before {at_s:.1} s (--check-max)"));
        writeln!(
            text,
            "check: {} operations{} on {} keys: {}",
            check.operations,
            cut.unwrap_or_default(),
            check.keys,
            check.verdict
        )?;
    }
    let cpu = &run.harness_cpu;
    writeln!(
        text,
        "the harness used {:.2} s of processor time, {:.2} µs a request",
        cpu.user_s + cpu.system_s,
        cpu.us_per_request
    )?;
    if totals.bound_by_think {
        writeln!(
            text,
            "bound by --think: the pauses between operations set this throughput, not the store; --think 0 removes them"
        )?;
    }
    Ok(())
}

/// `timeout 3, unknown 5`
fn by_class(errors: &BTreeMap<String, u64>) -> String {
    let errors: Vec<_> = errors.iter().map(|(class, count)| format!("{class} {count}")).collect();
    errors.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        for (us, text) in [(0, "-"), (950, "950 µs"), (12_340, "12.3 ms"), (12_340_000, "12.3 s")] {
            assert_eq!(time(us), text);
        }
    }

    #[test]
    fn a_line_of_a_terminal_is_never_full() {
        assert_eq!(cut("µµµµ", 5), "µµµµ");
        assert_eq!(cut("µµµµ", 4), "µµµ");
        assert_eq!(cut("µµµµ", 0), "");
    }

    #[test]
    fn the_table_tells_what_was_measured_and_what_went_wrong() {
        let mut run = RunRecord { store: "dsm 0.1.0".to_owned(), ..RunRecord::default() };
        run.totals.errors.insert("stale_value".to_owned(), 3);
        run.totals.bound_by_think = true;
        run.read_back_error = "why".to_owned();
        let table = table(&run);
        for part in ["dsm 0.1.0", "errors: stale_value 3", "bound by --think", "could not be read back: why"]
        {
            assert!(table.contains(part), "{part} in {table}");
        }
    }
}
