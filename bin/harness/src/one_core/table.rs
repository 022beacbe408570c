//! The tables of a run, as Markdown, made from its record alone.

use super::figures::{paired, Quartiles, SPREAD_MAX, VALUES_MIN};
use super::plan::{CoreLoad, CoreStore};
use super::record::{CoreFigures, CoreRecord};
use super::usage::{ServerPart, ThreadUsage};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// System calls that are made less often than this for 1,000 operations are not shown.
const CALLS_SHOWN_MIN: f64 = 0.5;

/// Above this share of the core for others, rates say little.
const OTHERS_MAX: f64 = 0.10;

/// A figure of a run.
type Figure = fn(&CoreFigures) -> f64;

/// All tables, and what is to be said about them.
pub(crate) fn render(record: &CoreRecord) -> String {
    let mut text = head(record);
    // Writing to a string cannot fail.
    let _ = write!(text, "{}\n{}", rates(record), costs(record));
    if !record.counts.is_empty() {
        let _ = write!(text, "\n{}", counts(record));
    }
    let _ = write!(text, "\n{}", noise(record));
    for remark in &record.remarks {
        let _ = writeln!(text, "{remark}.");
    }
    for run in &record.runs {
        if let Some(why) = &run.failed {
            let _ = writeln!(
                text,
                "Failed: {}, {}, round {}: {why}.",
                run.load.name(),
                run.store.title(),
                run.round
            );
        }
    }
    if let Some(why) = &record.ended_early {
        let _ = writeln!(text, "Ended early: {why}.");
    }
    text
}

fn head(record: &CoreRecord) -> String {
    let stores = record.stores.iter().map(|store| format!("{}: {}", store.store.title(), store.what));
    format!(
        "All on core {} of {} ({}), {} rounds, {} s of warm-up and {} s of measurement each; {} keys, values of {} bytes, \
         {} connections{}, {} slaves, `--fsync always`.\n{}.\n\n",
        record.core,
        record.system.cpu_model,
        record.system.kernel,
        record.rounds,
        record.warmup_s,
        record.duration_s,
        record.keys,
        record.value_bytes,
        record.connections,
        if record.tls { " over TLS" } else { "" },
        record.slaves,
        stores.collect::<Vec<_>>().join("; ")
    )
}

/// Of each round, the figure of one store under one load; `None` where it failed.
fn each_round(record: &CoreRecord, load: CoreLoad, store: CoreStore, figure: Figure) -> Vec<Option<f64>> {
    let of_round = |round: u32| {
        let run = record.runs.iter().find(|run| (run.round, run.load, run.store) == (round, load, store))?;
        run.failed.is_none().then(|| figure(&run.figures))
    };
    (1..=record.rounds).map(of_round).collect()
}

/// The ratios of a figure of two stores under one load, round by round.
pub(crate) fn ratio(
    record: &CoreRecord,
    load: CoreLoad,
    (of, by): (CoreStore, CoreStore),
    figure: Figure,
) -> Option<Quartiles> {
    let of = each_round(record, load, of, figure);
    Quartiles::of(&paired(&of, &each_round(record, load, by, figure)))
}

fn median(record: &CoreRecord, load: CoreLoad, store: CoreStore, figure: Figure) -> Option<f64> {
    let values: Vec<f64> = each_round(record, load, store, figure).into_iter().flatten().collect();
    Quartiles::of(&values).map(|found| found.median)
}

/// `1.02 (0.99–1.04)`, with a mark when it is not to be trusted.
fn shown(ratio: Option<Quartiles>) -> String {
    let Some(ratio) = ratio else { return "–".to_owned() };
    let mark = if ratio.is_trusted() { "" } else { " ?" };
    format!("{:.2} ({:.2}–{:.2}){mark}", ratio.median, ratio.low, ratio.high)
}

/// The stores with a run that has figures.
fn measured(record: &CoreRecord) -> Vec<CoreStore> {
    let is_there =
        |store: &CoreStore| record.runs.iter().any(|run| run.store == *store && run.failed.is_none());
    record.stores.iter().map(|store| store.store).filter(is_there).collect()
}

fn rates(record: &CoreRecord) -> String {
    let stores = measured(record);
    let has = |store| stores.contains(&store);
    let mut text = "| load | store | kop/s | of base | of redis | kop per CPU s | of base | of redis | server µs/op | of base | p50 µs | p99 µs |\n\
                    |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for load in &record.loads {
        for store in &stores {
            let against = |by: CoreStore, figure: Figure| {
                if *store == by || !has(by) || (by == CoreStore::Base && *store != CoreStore::Build) {
                    return String::new();
                }
                shown(ratio(record, *load, (*store, by), figure))
            };
            let value =
                |figure: Figure, scale: f64, digits: usize| match median(record, *load, *store, figure) {
                    Some(value) => format!("{:.digits$}", value * scale),
                    None => "–".to_owned(),
                };
            let cells = [
                load.name().to_owned(),
                store.title().to_owned(),
                value(CoreFigures::rate, 1e-3, 1),
                against(CoreStore::Base, CoreFigures::rate),
                against(CoreStore::Redis, CoreFigures::rate),
                value(CoreFigures::rate_of_core, 1e-3, 1),
                against(CoreStore::Base, CoreFigures::rate_of_core),
                against(CoreStore::Redis, CoreFigures::rate_of_core),
                value(CoreFigures::server_us, 1.0, 2),
                against(CoreStore::Base, CoreFigures::server_us),
                value(|figures| figures.p50_us, 1.0, 0),
                value(|figures| figures.p99_us, 1.0, 0),
            ];
            row(&mut text, &cells);
        }
    }
    text
}

fn row(text: &mut String, cells: &[String]) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// What each part used under one load, all rounds together, and the operations.
fn pooled(record: &CoreRecord, load: CoreLoad, store: CoreStore) -> (BTreeMap<ServerPart, ThreadUsage>, f64) {
    let mut parts: BTreeMap<ServerPart, ThreadUsage> = BTreeMap::new();
    let mut operations = 0;
    let runs = record.runs.iter().filter(|run| (run.load, run.store) == (load, store));
    for run in runs.filter(|run| run.failed.is_none()) {
        operations += run.figures.operations;
        for (part, usage) in &run.figures.parts {
            parts.entry(*part).or_default().add(*usage);
        }
    }
    (parts, operations as f64)
}

fn costs(record: &CoreRecord) -> String {
    let mut text = "Processor time, µs per operation, user + kernel; and for 1,000 operations, how often threads went to \
                    sleep (each time one must be woken) and were preempted. All rounds together.\n\n"
        .to_owned();
    let mut head = vec!["load".to_owned(), "store".to_owned()];
    head.extend(ServerPart::ALL.iter().map(|part| format!("{} µs", part.title())));
    head.extend(ServerPart::ALL.iter().map(|part| format!("{} sleeps/k", part.title())));
    head.push("preempted/k".to_owned());
    row(&mut text, &head);
    let _ = writeln!(text, "|---|---|{}", "--:|".repeat(head.len() - 2));
    for load in &record.loads {
        for store in measured(record) {
            let (parts, operations) = pooled(record, *load, store);
            let mut cells = vec![load.name().to_owned(), store.title().to_owned()];
            cells.extend(ServerPart::ALL.iter().map(|part| match parts.get(part) {
                Some(usage) => {
                    let (user_s, kernel_s) = usage.split_s();
                    format!("{:.2} + {:.2}", user_s * 1e6 / operations, kernel_s * 1e6 / operations)
                }
                None => String::new(),
            }));
            cells.extend(ServerPart::ALL.iter().map(|part| match parts.get(part) {
                Some(usage) => format!("{:.1}", usage.waits as f64 * 1e3 / operations),
                None => String::new(),
            }));
            let preempted: u64 = parts.values().map(|usage| usage.preempted).sum();
            cells.push(format!("{:.1}", preempted as f64 * 1e3 / operations));
            row(&mut text, &cells);
        }
    }
    text
}

fn counts(record: &CoreRecord) -> String {
    let mut text = "System calls for 1,000 operations (under strace, in a pass of their own), and instructions per operation.\n\n\
                    | load | store | all | by part | instructions |\n|---|---|--:|---|---|\n"
        .to_owned();
    for count in &record.counts {
        let thousands = count.operations as f64 / 1e3;
        let sum = |calls: &BTreeMap<String, u64>| calls.values().sum::<u64>() as f64 / thousands;
        let all: f64 = count.calls.values().map(sum).sum();
        let of_part = |(part, calls): (&ServerPart, &BTreeMap<String, u64>)| {
            let mut calls: Vec<(&String, f64)> =
                calls.iter().map(|(name, count)| (name, *count as f64 / thousands)).collect();
            calls.retain(|(_, count)| *count >= CALLS_SHOWN_MIN);
            calls.sort_by(|a, b| b.1.total_cmp(&a.1));
            let calls: Vec<String> = calls.iter().map(|(name, count)| format!("{name} {count:.1}")).collect();
            // strace follows all threads of a process.
            (!calls.is_empty()).then(|| format!("{}: {}", part.title(), calls.join(", ")))
        };
        let parts: Vec<String> = count.calls.iter().filter_map(of_part).collect();
        let instructions = count.instructions.iter().map(|(event, count)| format!("{event} {count:.0}"));
        let cells = [
            count.load.name().to_owned(),
            count.store.title().to_owned(),
            if count.calls.is_empty() { String::new() } else { format!("{all:.0}") },
            parts.join("; "),
            instructions.collect::<Vec<_>>().join(", "),
        ];
        row(&mut text, &cells);
    }
    text
}

/// How noisy it was, and which figures that spoils.
fn noise(record: &CoreRecord) -> String {
    let runs = record.runs.iter().filter(|run| run.failed.is_none());
    let others: Vec<f64> = runs.map(|run| run.figures.others()).collect();
    let Some(found) = Quartiles::of(&others) else { return "Nothing was measured.\n".to_owned() };
    let most = others.iter().copied().fold(0.0, f64::max);
    let mut text = format!(
        "Noise: others used {:.0} % of the core in the median, up to {:.0} %.",
        100.0 * found.median,
        100.0 * most
    );
    text.push_str(if found.median > OTHERS_MAX {
        " That is too much for rates (kop/s) and latencies: go by processor time and counts."
    } else {
        " Rates can be believed where they are not marked."
    });
    let _ = writeln!(
        text,
        " A ratio is the median of the rounds' ratios, with its quartiles; `?`: they are more than {:.0} % of it apart, or \
         fewer than {VALUES_MIN} rounds were measured, so that it is not to be trusted.",
        100.0 * SPREAD_MAX
    );
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::{CoreRun, CountRecord, StoreRecord};
    use super::*;

    fn run(round: u32, store: CoreStore, operations: u64, cpu_s: f64) -> CoreRun {
        let usage = ThreadUsage { cpu_s, user_ticks: 1, kernel_ticks: 3, waits: 50, preempted: 7 };
        let parts = BTreeMap::from([(ServerPart::Master, usage), (ServerPart::Slaves, usage)]);
        let figures = CoreFigures {
            operations,
            elapsed_s: 1.0,
            p50_us: 123.0,
            p99_us: 456.0,
            parts,
            generator_s: 0.1,
            others_s: 0.02,
        };
        CoreRun { round, load: CoreLoad::Reads, store, failed: None, figures }
    }

    fn record() -> CoreRecord {
        let mut runs = Vec::new();
        for round in 1..=3 {
            // A round that was slower for all is no noise in a ratio.
            let operations = 10_000 * u64::from(round);
            runs.push(run(round, CoreStore::Build, operations, 0.2));
            runs.push(run(round, CoreStore::Base, operations / 2, 0.2));
            runs.push(run(round, CoreStore::Redis, operations * 2, 0.1));
        }
        let stores = [CoreStore::Build, CoreStore::Base, CoreStore::Redis, CoreStore::RedisWait];
        let stores =
            stores.map(|store| StoreRecord { store, what: "what".to_owned(), commands: Vec::new() }).to_vec();
        CoreRecord { rounds: 3, loads: vec![CoreLoad::Reads], stores, runs, ..CoreRecord::default() }
    }

    #[test]
    fn ratios_are_of_pairs_and_parts_of_all_rounds() {
        let text = render(&record());
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(
            row("| reads | build"),
            "| reads | build | 20.0 | 2.00 (2.00–2.00) | 0.50 (0.50–0.50) | 40.0 | 2.00 (2.00–2.00) | 0.30 (0.30–0.30) \
             | 20.00 | 0.50 (0.50–0.50) | 123 | 456 |"
        );
        assert!(row("| reads | base").starts_with("| reads | base | 10.0 |  | 0.25 (0.25–0.25) |"));
        assert!(row("| reads | redis").starts_with("| reads | redis | 40.0 |  |  |"));
        assert!(
            text.contains("| reads | build | 2.50 + 7.50 |  |  | 2.50 + 7.50 | 2.5 |  |  | 2.5 | 0.7 |"),
            "{text}"
        );
        assert!(!text.contains("WAIT 1 |"), "a store without figures has no row: {text}");
        assert!(text.contains("others used 2 % of the core") && text.contains("can be believed"), "{text}");
    }

    #[test]
    fn the_title_says_what_was_loaded() {
        let record = CoreRecord { keys: 7, value_bytes: 65_536, connections: 200, slaves: 9, ..record() };
        let text = render(&record);
        let title = "; 7 keys, values of 65536 bytes, 200 connections, 9 slaves, `--fsync always`.\n";
        assert!(text.contains(title), "{text}");
        let text = render(&CoreRecord { tls: true, ..record });
        assert!(text.contains(" 200 connections over TLS, "), "{text}");
    }

    #[test]
    fn scattered_figures_are_marked_and_failures_are_listed() {
        let mut record = record();
        record.runs[0].figures.operations = 30_000;
        record.runs[4].failed = Some("it fell over".to_owned());
        for run in &mut record.runs {
            run.figures.others_s = 0.5;
        }
        let text = render(&record);
        assert!(text.contains(" ? |") && text.contains("too much for rates"), "{text}");
        assert!(text.contains("Failed: reads, base, round 2: it fell over."), "{text}");
    }

    #[test]
    fn calls_are_counted_for_1000_operations() {
        let mut record = record();
        let calls = [("recvfrom", 4100), ("close", 1)].map(|(name, count)| (name.to_owned(), count));
        record.counts.push(CountRecord {
            load: CoreLoad::Reads,
            store: CoreStore::Build,
            operations: 4000,
            calls: BTreeMap::from([(ServerPart::Master, BTreeMap::from(calls))]),
            instructions: BTreeMap::from([("instructions:u".to_owned(), 1234.0)]),
        });
        let text = render(&record);
        assert!(
            text.contains("| reads | build | 1025 | master: recvfrom 1025.0 | instructions:u 1234 |"),
            "{text}"
        );
    }
}
