//! The tables of docs/BENCHMARKS.md, made from a record of a run and nothing else.
//!
//! Owns medians, ratios and Markdown. Ratios are made within each round, between figures that were measured minutes
//! apart; then their median is taken.

use super::super::record::Percentiles;
use super::plan::{Cell, Peer};
use super::record::{PeerRun, PeersRecord};
use anyhow::Context as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The marks before and after the tables.
const BEGIN: &str = "<!-- tables of `make bench-peers`: begin -->";
const END: &str = "<!-- tables of `make bench-peers`: end -->";

/// From this share of one core on, in percent, the load generator's only thread may have limited the figure.
const BUSY_PCT: f64 = 90.0;

/// The text for a missing figure.
const NONE: &str = "–";

/// Puts `tables` between the marks of `document`.
///
/// # Errors
/// When the marks are not there, each once and in order.
pub(crate) fn replace(document: &str, tables: &str) -> anyhow::Result<String> {
    let marks = "the document lacks the marks of the tables";
    let (before, rest) = document.split_once(BEGIN).context(marks)?;
    let (_, behind) = rest.split_once(END).context(marks)?;
    anyhow::ensure!(
        !behind.contains(BEGIN) && !behind.contains(END),
        "the document has marks of tables twice"
    );
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{behind}", tables.trim()))
}

pub(crate) fn render(record: &PeersRecord) -> String {
    let view = View { record };
    let mut out = String::new();
    view.about(&mut out);
    view.throughput(&mut out);
    view.ratios(&mut out);
    view.latencies(&mut out);
    view.costs(&mut out);
    view.noise(&mut out);
    view.failures(&mut out);
    view.commands(&mut out);
    out
}

pub(super) struct View<'a> {
    pub(super) record: &'a PeersRecord,
}

// Writing to a string cannot fail: its results are left alone below.
impl View<'_> {
    fn about(&self, out: &mut String) {
        let record = self.record;
        let system = &record.system;
        let _ = writeln!(
            out,
            "Measured from {} to {} on {} ({} cores, {:.0} GiB of memory, {}): {} rounds, in each of them {} s of \
             warm-up and {} s of measurement for each load on each store; {} keys, values of {} bytes. Command: \
             `dsm-test-harness {}`.\n",
            record.started_at,
            record.ended_at,
            if system.cpu_model.is_empty() { "an unknown processor" } else { &system.cpu_model },
            system.cores,
            system.memory_bytes as f64 / f64::from(1 << 30),
            system.kernel,
            record.rounds,
            record.warmup_s,
            record.duration_s,
            record.keys,
            record.value_bytes,
            record.command_line.join(" "),
        );
        if let Some(why) = &record.ended_early {
            let _ = writeln!(out, "**This run is not complete: {why}.**\n");
        }
        let versions: BTreeSet<&str> = record
            .peers
            .iter()
            .map(|peer| peer.version.as_str())
            .filter(|version| !version.is_empty())
            .collect();
        let versions: Vec<&str> = versions.into_iter().collect();
        let _ = writeln!(out, "Versions: {}.\n", versions.join(", "));
    }

    fn throughput(&self, out: &mut String) {
        let _ = writeln!(out, "### Throughput\n\nThousand operations per second, medians of the rounds; the lowest and \
            the highest round in brackets. `*`: the load generator's one thread was busy for more than {BUSY_PCT} % of \
            the time, so that the store may be able to do more.\n");
        self.by_cell(out, &self.peers(), |peer, cell| {
            let mut all = self.values(peer, cell, |run| run.throughput_rps / 1000.0);
            let median = median(&mut all)?;
            let busy = self.median(peer, cell, |run| run.harness_cpu_pct)? > BUSY_PCT;
            let star = if busy { "\\*" } else { "" };
            let (low, high) = (all.first()?, all.last()?);
            Some(format!("{}{star} ({}–{})", short(median), short(*low), short(*high)))
        });
    }

    fn ratios(&self, out: &mut String) {
        let others: Vec<Peer> = self.peers().into_iter().filter(|peer| *peer != Peer::Dsm).collect();
        if others.len() == self.peers().len() {
            return;
        }
        let _ = writeln!(
            out,
            "### Throughput of dsm as a multiple of each peer's\n\nThe median of the rounds' ratios: \
            above 1, dsm did more.\n"
        );
        self.by_cell(out, &others, |peer, cell| {
            self.ratio(peer, cell).map(|ratio| format!("{}×", short(ratio)))
        });
    }

    fn latencies(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "### Latency\n\nMicroseconds, p50 / p99 / p99.9, medians of the rounds; with a pipeline, \
            from the sending of a batch to each answer.\n"
        );
        for (what, takes) in [
            ("Reads", (|cell: Cell| cell.write_pct < 100) as fn(Cell) -> bool),
            ("Writes", |cell: Cell| cell.write_pct > 0),
        ] {
            let _ = writeln!(out, "{what}:\n");
            let reads = what == "Reads";
            let cells: Vec<Cell> = self.record.cells.iter().copied().filter(|cell| takes(*cell)).collect();
            let figure = |peer: Peer, cell: Cell| {
                let of = |percentile: fn(&Percentiles) -> u64| {
                    self.median(peer, cell, |run| {
                        percentile(if reads { &run.read } else { &run.write }) as f64
                    })
                };
                let (p50, p99, p999) = (of(|p| p.p50)?, of(|p| p.p99)?, of(|p| p.p999)?);
                Some(format!("{p50:.0} / {p99:.0} / {p999:.0}"))
            };
            self.table(out, &cells, &self.peers(), figure);
        }
    }

    fn costs(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "### Servers' processor time per operation\n\nMicroseconds, all processes of a store \
            together, user and kernel, medians of the rounds.\n"
        );
        self.by_cell(out, &self.peers(), |peer, cell| {
            self.median(peer, cell, |run| run.server_cpu_us).map(|us| format!("{us:.1}"))
        });
    }

    fn noise(&self, out: &mut String) {
        let mut others: Vec<f64> = self.good().map(|run| run.other_cpu_pct).collect();
        let Some(middle) = median(&mut others) else { return };
        let (low, high) =
            (others.first().copied().unwrap_or_default(), others.last().copied().unwrap_or_default());
        let _ = writeln!(out, "### Noise\n\nProcessor time that neither the store nor the load generator used while a \
            load was measured: {middle:.0} % of one core in the median, from {low:.0} to {high:.0} %, of {:.0} % that \
            the machine has.\n", 100.0 * self.record.system.cores as f64);
    }

    fn failures(&self, out: &mut String) {
        let _ = writeln!(out, "### Failures\n");
        let mut found: BTreeMap<(Peer, String), Vec<String>> = BTreeMap::new();
        for run in &self.record.runs {
            let whence = format!("{} (round {})", run.cell.title(), run.round);
            if let Some(why) = &run.failed {
                found.entry((run.peer, format!("not measured: {why}"))).or_default().push(whence);
            } else {
                for (class, count) in &run.errors {
                    let total = run.success_count + run.error_count;
                    let whence = format!("{whence}: {count} of {total}");
                    found.entry((run.peer, format!("`{class}`"))).or_default().push(whence);
                }
            }
        }
        if found.is_empty() {
            let _ =
                writeln!(out, "None: every request of every run was answered, and every answer was right.\n");
            return;
        }
        for ((peer, what), whence) in found {
            let _ = writeln!(out, "* {}, {what}: {}", peer.title(), whence.join("; "));
        }
        out.push('\n');
    }

    fn commands(&self, out: &mut String) {
        let _ = writeln!(out, "### How each store was started\n\nOn free ports, in this run:\n\n```text");
        for peer in self.record.peers.iter().filter(|told| !told.peer.shares_processes()) {
            let _ = writeln!(out, "# {}", peer.peer.title());
            for command in &peer.commands {
                let _ = writeln!(out, "{command}");
            }
        }
        let _ = writeln!(out, "```\n");
    }

    fn by_cell(&self, out: &mut String, peers: &[Peer], figure: impl Fn(Peer, Cell) -> Option<String>) {
        self.table(out, &self.record.cells, peers, figure);
    }

    fn table(
        &self,
        out: &mut String,
        cells: &[Cell],
        peers: &[Peer],
        figure: impl Fn(Peer, Cell) -> Option<String>,
    ) {
        let titles: Vec<&str> = peers.iter().map(|peer| peer.title()).collect();
        let _ = writeln!(out, "| load | {} |\n|---|{}", titles.join(" | "), "--:|".repeat(peers.len()));
        for cell in cells {
            let figures: Vec<String> =
                peers.iter().map(|peer| figure(*peer, *cell).unwrap_or_else(|| NONE.to_owned())).collect();
            let _ = writeln!(out, "| {} | {} |", cell.title(), figures.join(" | "));
        }
        out.push('\n');
    }

    pub(super) fn peers(&self) -> Vec<Peer> {
        self.record.peers.iter().map(|told| told.peer).collect()
    }

    fn good(&self) -> impl Iterator<Item = &PeerRun> {
        self.record.runs.iter().filter(|run| run.failed.is_none())
    }

    fn values(&self, peer: Peer, cell: Cell, of: impl Fn(&PeerRun) -> f64) -> Vec<f64> {
        self.good().filter(|run| run.peer == peer && run.cell == cell).map(of).collect()
    }

    pub(super) fn median(&self, peer: Peer, cell: Cell, of: impl Fn(&PeerRun) -> f64) -> Option<f64> {
        median(&mut self.values(peer, cell, of))
    }

    fn ratio(&self, peer: Peer, cell: Cell) -> Option<f64> {
        let of = |peer: Peer, round: u32| {
            let mut runs = self.good().filter(|run| run.peer == peer && run.cell == cell);
            runs.find(|run| run.round == round).map(|run| run.throughput_rps)
        };
        let rounds = 1..=self.record.rounds;
        let mut ratios: Vec<f64> =
            rounds.filter_map(|round| Some(of(Peer::Dsm, round)? / of(peer, round)?)).collect();
        median(&mut ratios)
    }
}

/// The middle one, or the mean of the two in the middle; sorts them.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// With three digits that mean something.
fn short(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::PeerRecord;
    use super::*;

    const CELL: Cell = Cell { write_pct: 30, connections: 50, pipeline: 1 };

    fn run(peer: Peer, round: u32, throughput_rps: f64) -> PeerRun {
        PeerRun {
            failed: None,
            throughput_rps,
            success_count: 10,
            read: Percentiles { p50: 5, p99: 6, p999: 7, ..Percentiles::default() },
            harness_cpu_pct: if peer == Peer::Redis { 95.0 } else { 50.0 },
            ..PeerRun::failed(peer, CELL, round, String::new())
        }
    }

    fn record(runs: Vec<PeerRun>) -> PeersRecord {
        let peers = [Peer::Dsm, Peer::Redis, Peer::Etcd];
        let told =
            |peer| PeerRecord { peer, version: "one 1".to_owned(), commands: vec!["start me".to_owned()] };
        PeersRecord {
            rounds: 3,
            cells: vec![CELL],
            peers: peers.map(told).to_vec(),
            runs,
            ..PeersRecord::default()
        }
    }

    #[test]
    fn ratios_are_made_within_a_round_and_then_their_median() {
        let rates = [(1, 100e3, 200e3), (2, 10e3, 100e3), (3, 300e3, 300e3)];
        let mut runs: Vec<PeerRun> = rates
            .iter()
            .flat_map(|(round, ours, theirs)| {
                [run(Peer::Dsm, *round, *ours), run(Peer::Redis, *round, *theirs)]
            })
            .collect();
        runs.push(PeerRun::failed(Peer::Etcd, CELL, 1, "no leader".to_owned()));
        let text = render(&record(runs));
        let line = |head: &str| {
            let section = text.split("### ").find(|section| section.starts_with(head)).unwrap();
            section.lines().find(|line| line.starts_with("| 30 %")).unwrap().to_owned()
        };
        assert_eq!(
            line("Throughput\n"),
            "| 30 % writes, 50 connections, pipeline 1 | 100 (10.0–300) | 200\\* (100–300) | – |"
        );
        assert_eq!(line("Throughput of"), "| 30 % writes, 50 connections, pipeline 1 | 0.50× | – |");
        assert_eq!(
            line("Latency"),
            "| 30 % writes, 50 connections, pipeline 1 | 5 / 6 / 7 | 5 / 6 / 7 | – |"
        );
        let failure = "* etcd, not measured: no leader: 30 % writes, 50 connections, pipeline 1 (round 1)";
        assert!(text.contains(failure), "{text}");
        assert!(text.contains("# redis\nstart me\n"), "{text}");
    }

    #[test]
    fn errors_are_listed_with_their_number() {
        let mut bad = run(Peer::Dsm, 2, 1.0);
        bad.errors.insert("stale_value".to_owned(), 3);
        bad.error_count = 3;
        let text = render(&record(vec![bad]));
        assert!(
            text.contains("* dsm, `stale_value`: 30 % writes, 50 connections, pipeline 1 (round 2): 3 of 13")
        );
        assert!(render(&record(vec![run(Peer::Dsm, 1, 1.0)])).contains("None: every request"));
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let document = format!("before\n{BEGIN}\nold\n{END}\nbehind\n");
        let once = replace(&document, "new\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\n\nnew\n\n{END}\nbehind\n"));
        assert_eq!(replace(&once, "new").unwrap(), once);
        assert!(replace("no marks", "new").is_err());
        assert!(replace(&format!("{END} {BEGIN}"), "new").is_err());
        assert!(replace(&format!("{document}{document}"), "new").is_err());
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0]), Some(2.5));
        assert_eq!(median(&mut []), None);
    }
}
