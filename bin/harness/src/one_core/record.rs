//! What a run leaves behind: the types of its JSON file, and the lines of its CSV file. Tables are made from nothing else.

use super::super::record::SystemRecord;
use super::plan::{CoreLoad, CoreStore};
use super::usage::{ServerPart, ThreadUsage};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The value of `format`.
pub(crate) const FORMAT: u32 = 1;

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CoreRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub ended_at: String,
    /// How it was called.
    pub command_line: Vec<String>,
    /// Where.
    pub system: SystemRecord,
    /// The core to which everything was pinned.
    pub core: usize,
    /// How often each load was to be measured on each store.
    pub rounds: u32,
    /// Load before each measurement in seconds.
    pub warmup_s: f64,
    /// Each measurement in seconds.
    pub duration_s: f64,
    /// Different keys.
    pub keys: u32,
    /// Length of each value.
    pub value_bytes: usize,
    /// Connections of the loads that have many.
    pub connections: u32,
    /// Slaves of the clusters.
    pub slaves: u32,
    /// Whether all stores were reached by TLS.
    #[serde(default)]
    pub tls: bool,
    /// The loads.
    pub loads: Vec<CoreLoad>,
    /// The stores that were measured.
    pub stores: Vec<StoreRecord>,
    /// In the order in which they were made.
    pub runs: Vec<CoreRun>,
    /// What was counted apart from the rates.
    pub counts: Vec<CountRecord>,
    /// What could not be measured here, and why.
    pub remarks: Vec<String>,
    /// Why it ended early, if it did.
    pub ended_early: Option<String>,
}

/// A store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoreRecord {
    /// Which.
    pub store: CoreStore,
    /// What it is: the directory of a build, or `redis 7.0.15`; empty when it never ran.
    pub what: String,
    /// Its command lines, `DIR` for the temporary directory.
    pub commands: Vec<String>,
}

/// One load on one store in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CoreRun {
    /// From 1.
    pub round: u32,
    /// Which load.
    pub load: CoreLoad,
    /// On which store.
    pub store: CoreStore,
    /// Why there are no figures.
    pub failed: Option<String>,
    /// The figures.
    pub figures: CoreFigures,
}

/// What one load on one store gave.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CoreFigures {
    /// Requests that were answered.
    pub operations: u64,
    /// In so many seconds.
    pub elapsed_s: f64,
    /// The median time from the sending of a batch to its last answer, in microseconds.
    pub p50_us: f64,
    /// Its 99th percentile.
    pub p99_us: f64,
    /// What the store used.
    pub parts: BTreeMap<ServerPart, ThreadUsage>,
    /// Processor time of the load generator in seconds.
    pub generator_s: f64,
    /// Processor time of this core that neither the store nor the generator used, what the hypervisor took included, in
    /// seconds.
    pub others_s: f64,
}

impl CoreFigures {
    /// Processor time of the store in seconds.
    pub(crate) fn server_s(&self) -> f64 {
        self.parts.values().map(|usage| usage.cpu_s).sum()
    }

    /// Operations a second.
    pub(crate) fn rate(&self) -> f64 {
        self.operations as f64 / self.elapsed_s
    }

    /// Operations in a second of processor time of the store and the generator: the rate that the core would give if it did
    /// nothing else and never waited for a disk.
    pub(crate) fn rate_of_core(&self) -> f64 {
        self.operations as f64 / (self.server_s() + self.generator_s)
    }

    /// Processor time of the store for one operation in microseconds.
    pub(crate) fn server_us(&self) -> f64 {
        self.server_s() * 1e6 / self.operations as f64
    }

    /// What others used of the core, as a share of the time.
    pub(crate) fn others(&self) -> f64 {
        self.others_s / self.elapsed_s
    }
}

/// What was counted of one load on one store, apart from all timed measurements.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CountRecord {
    /// Which load.
    pub load: CoreLoad,
    /// On which store.
    pub store: CoreStore,
    /// Operations while system calls were counted.
    pub operations: u64,
    /// System calls of each part of the store, by name.
    pub calls: BTreeMap<ServerPart, BTreeMap<String, u64>>,
    /// Instructions of the store for one operation, in user mode and in the kernel, where the processor counts them.
    pub instructions: BTreeMap<String, f64>,
}

/// The runs, one a line.
///
/// # Errors
/// When the table cannot be made.
pub(crate) fn csv(record: &CoreRecord) -> anyhow::Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    let mut head: Vec<String> = [
        "round",
        "load",
        "store",
        "operations",
        "elapsed_s",
        "rate",
        "rate_of_core",
        "p50_us",
        "p99_us",
        "server_cpu_us",
        "generator_cpu_us",
        "others_pct",
    ]
    .map(str::to_owned)
    .to_vec();
    for part in ServerPart::ALL {
        let part = part.title().replace(' ', "_");
        for figure in ["user_us", "kernel_us", "waits", "preempted"] {
            head.push(format!("{part}_{figure}"));
        }
    }
    table.write_record(&head)?;
    for run in record.runs.iter().filter(|run| run.failed.is_none()) {
        let figures = &run.figures;
        let each = |value: f64| format!("{:.4}", value / figures.operations as f64);
        let mut row = vec![
            run.round.to_string(),
            run.load.name().to_owned(),
            run.store.title().to_owned(),
            figures.operations.to_string(),
            format!("{:.6}", figures.elapsed_s),
            format!("{:.1}", figures.rate()),
            format!("{:.1}", figures.rate_of_core()),
            format!("{:.1}", figures.p50_us),
            format!("{:.1}", figures.p99_us),
            format!("{:.4}", figures.server_us()),
            each(figures.generator_s * 1e6),
            format!("{:.1}", 100.0 * figures.others()),
        ];
        for part in ServerPart::ALL {
            let usage = figures.parts.get(&part).copied().unwrap_or_default();
            let (user_s, kernel_s) = usage.split_s();
            row.extend([each(user_s * 1e6), each(kernel_s * 1e6)]);
            row.extend([each(usage.waits as f64), each(usage.preempted as f64)]);
        }
        table.write_record(&row)?;
    }
    table.into_inner().context("cannot make the CSV file")
}
