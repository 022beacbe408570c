//! The results of a run of the benchmark: the types of `peers.json`. Tables are made only from these.

use super::super::record::{Percentiles, SystemRecord};
use super::plan::{Cell, Peer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The value of `format`.
pub(crate) const FORMAT: u32 = 1;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PeersRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub ended_at: String,
    /// How it was called.
    pub command_line: Vec<String>,
    pub system: SystemRecord,
    /// How often each cell was to be measured.
    pub rounds: u32,
    /// Load before each cell in seconds.
    pub warmup_s: f64,
    /// Measurement of each cell in seconds.
    pub duration_s: f64,
    /// Different keys.
    pub keys: u32,
    /// Length of each value.
    pub value_bytes: u32,
    pub cells: Vec<Cell>,
    /// The stores, in the order of the tables.
    pub peers: Vec<PeerRecord>,
    /// In the order in which they were made.
    pub runs: Vec<PeerRun>,
    /// Why it ended early, if it did.
    pub ended_early: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PeerRecord {
    pub peer: Peer,
    /// `redis 7.0.15`; empty when it never ran.
    pub version: String,
    /// Its command lines, `DIR` for the temporary directory.
    pub commands: Vec<String>,
}

/// One cell of one store in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PeerRun {
    pub peer: Peer,
    pub cell: Cell,
    /// From 1.
    pub round: u32,
    /// Why there are no figures.
    pub failed: Option<String>,
    /// Successful operations a second.
    pub throughput_rps: f64,
    /// Successful requests of the measurement.
    pub success_count: u64,
    /// Operations that failed.
    pub error_count: u64,
    /// How many failed, by class.
    pub errors: BTreeMap<String, u64>,
    /// Successful reads.
    pub read_count: u64,
    /// Successful writes.
    pub write_count: u64,
    /// Latencies of the reads, in microseconds.
    pub read: Percentiles,
    /// Latencies of the writes, in microseconds.
    pub write: Percentiles,
    /// Processor time of all processes of the store for one success, in microseconds.
    pub server_cpu_us: f64,
    /// Processor time of the store in percent of one core.
    pub server_cpu_pct: f64,
    /// Of the load generator, in percent of one core.
    pub harness_cpu_pct: f64,
    /// Of everything else on the machine: how noisy it was.
    pub other_cpu_pct: f64,
}

impl PeerRun {
    /// One that brought nothing.
    pub(crate) fn failed(peer: Peer, cell: Cell, round: u32, why: String) -> PeerRun {
        PeerRun {
            peer,
            cell,
            round,
            failed: Some(why),
            throughput_rps: 0.0,
            success_count: 0,
            error_count: 0,
            errors: BTreeMap::new(),
            read_count: 0,
            write_count: 0,
            read: Percentiles::default(),
            write: Percentiles::default(),
            server_cpu_us: 0.0,
            server_cpu_pct: 0.0,
            harness_cpu_pct: 0.0,
            other_cpu_pct: 0.0,
        }
    }
}
