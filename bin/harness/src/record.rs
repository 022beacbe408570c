//! The results of a run: the types of `run.json` ([`RunRecord`]) and `sweep.json` ([`SweepRecord`]).
//!
//! Owns names, units and meanings (docs/HARNESS.md explains them to readers of the files), and never computes. Plots
//! and the report read only these.

use super::failures::HistoryVerdict;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The value of `format` in both files. It changes when a reader of the last one would be misled.
pub(crate) const FORMAT: u32 = 1;

/// One run: `run.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// When the measurement began, after the warm-up: RFC 3339, UTC.
    pub started_at: String,
    /// How the harness was called.
    pub command_line: Vec<String>,
    /// Version of the harness.
    pub version: String,
    /// What was measured: `dsm 0.1.0`, `redis 7.0.15`; empty when it did not say.
    pub store: String,
    pub system: SystemRecord,
    pub settings: LoadSettings,
    /// What was measured, in seconds, without the warm-up; shorter than asked for after Ctrl+C.
    pub duration_s: f64,
    /// Whether a signal ended it.
    pub interrupted: bool,
    /// By which the values of this run are told from those of others: the second part of each value.
    #[serde(default)]
    pub run_tag: String,
    /// One for each second, the warm-up excluded; the last one may be shorter.
    pub seconds: Vec<Second>,
    /// Sums and latencies over the whole measurement, warm-up left out.
    pub totals: Totals,
    /// Wrong answers to requests that do not belong to the measurement, as those of the warm-up, by class.
    #[serde(default)]
    pub wrong_outside: BTreeMap<String, u64>,
    /// The faults, and the processes that ended by themselves, in the order in which it happened.
    pub faults: Vec<FaultRecord>,
    /// Writes that each slave acknowledged during the run, the warm-up included.
    pub slave_loads: Vec<SlaveLoad>,
    /// The judgement of the history, with `--check`.
    pub check: Option<CheckRecord>,
    /// The last reading of every key; missing when it was not brought to its end.
    pub read_back: Option<ReadBack>,
    /// Why the last reading is missing; empty when it is not.
    #[serde(default)]
    pub read_back_error: String,
    /// What the harness itself cost during the measurement.
    pub harness_cpu: CpuRecord,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SystemRecord {
    /// As the kernel names it.
    pub cpu_model: String,
    /// Logical processors this process may use.
    pub cores: u64,
    /// The machine's memory in all.
    pub memory_bytes: u64,
    /// Name and release, as `uname` has them.
    pub kernel: String,
    /// The compiler of the harness; empty when it is unknown.
    pub rustc: String,
}

/// The load, with everything that a repetition needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LoadSettings {
    /// `--target`; `None` when the harness started a cluster of its own.
    pub target: Option<String>,
    /// Slaves of the cluster; for a target what it said, 0 if it said nothing.
    pub slaves: u32,
    /// Connections that ask at once.
    pub clients: u32,
    /// Connections of each client.
    pub pool: u32,
    /// How many different keys.
    pub keys: u32,
    /// `uniform` or `zipf`.
    pub distribution: String,
    /// Writes in percent of all operations.
    pub write_pct: f64,
    /// Length of each value in bytes.
    pub value_bytes: u32,
    /// Pause of a connection between two operations in milliseconds.
    pub think_ms: f64,
    /// Requests per second of the open loop; `None`: closed loop.
    pub rate: Option<f64>,
    /// Requests a connection has in flight at once.
    pub pipeline: u32,
    pub warmup_s: f64,
    /// Measurement asked for, in seconds.
    pub duration_s: f64,
    /// `hash` or `random`; empty for a target.
    pub placement: String,
    /// `always`, `everysec` or `never`; empty for a target.
    pub fsync: String,
    /// Of the random choices.
    pub seed: u64,
    /// How long an answer, or a connect, may take, in seconds.
    #[serde(default)]
    pub timeout_s: f64,
    /// Threads that make the load.
    #[serde(default)]
    pub threads: u32,
    /// Replicas that WAIT asks for after each write; `None`: no WAIT.
    #[serde(default)]
    pub wait: Option<u32>,
    /// The exponent of `zipf`; `None` for another distribution.
    #[serde(default)]
    pub zipf_exponent: Option<f64>,
    /// What keys begin with.
    #[serde(default)]
    pub key_prefix: String,
    /// How the store is talked to: `resp`.
    #[serde(default)]
    pub protocol: String,
    /// As in `--fault`; empty: none.
    #[serde(default)]
    pub faults: String,
    /// Whether all connections are over TLS.
    #[serde(default)]
    pub tls: bool,
    /// Whether connections give a password; the nodes and native clients of a cluster of the harness' own then also prove
    /// secrets.
    #[serde(default)]
    pub secrets: bool,
    /// Further flags of both masters.
    #[serde(default)]
    pub master_flags: Vec<String>,
}

impl LoadSettings {
    /// The settings of a cluster as it is measured beside other stores: 3 slaves, everything on disk.
    pub(crate) fn standard() -> LoadSettings {
        LoadSettings {
            slaves: 3,
            placement: "hash".to_owned(),
            fsync: "always".to_owned(),
            ..LoadSettings::default()
        }
    }
}

/// One second. Latencies are microseconds of successful requests, 0 where there was none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Second {
    /// End of the second, since the start of the measurement.
    pub at_s: f64,
    /// The same as RFC 3339, UTC.
    pub timestamp: String,
    /// Requests that ended in this second, successes and errors.
    pub total_requests: u64,
    /// Requests with a right answer.
    pub success_count: u64,
    /// Requests that failed, for whatever other reason.
    pub error_count: u64,
    /// Successful reads.
    pub read_count: u64,
    /// Successful writes.
    pub write_count: u64,
    /// Successes only, by the real length of this second.
    pub throughput_rps: f64,
    /// The mean of the successful reads, in microseconds.
    pub read_latency_us: f64,
    /// The mean of the successful writes, in microseconds.
    pub write_latency_us: f64,
    pub read: Percentiles,
    pub write: Percentiles,
    /// By class; the classes stand in docs/HARNESS.md.
    pub errors: BTreeMap<String, u64>,
    /// Processor time of the harness in percent of one core.
    pub harness_cpu_pct: f64,
}

/// A distribution of latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    /// The median, in microseconds.
    pub p50: u64,
    /// The 90th percentile, in microseconds.
    pub p90: u64,
    /// The 99th percentile, in microseconds.
    pub p99: u64,
    /// The 99.9th percentile, in microseconds.
    pub p999: u64,
    /// The slowest one, in microseconds.
    pub max: u64,
}

/// The whole measurement; the fields are those of [`Second`]. What was begun within it and answered after its end is
/// in none of the seconds; here it counts in everything but the throughput.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Requests that ended, successes and errors.
    pub total_requests: u64,
    /// Requests with a right answer.
    pub success_count: u64,
    /// Requests that failed, for whatever other reason.
    pub error_count: u64,
    /// Successful reads.
    pub read_count: u64,
    /// Successful writes.
    pub write_count: u64,
    /// How many of all requests were answered, or given up, after the end.
    #[serde(default)]
    pub late_count: u64,
    /// Successes within the measurement only.
    pub throughput_rps: f64,
    /// The mean of the successful reads, in microseconds.
    pub read_latency_us: f64,
    /// The mean of the successful writes, in microseconds.
    pub write_latency_us: f64,
    pub read: Percentiles,
    pub write: Percentiles,
    /// How many failed, by class.
    pub errors: BTreeMap<String, u64>,
    /// The longest time without an acknowledged write, over all connections, from the start to the end; `None` when no
    /// write was asked for.
    #[serde(default)]
    pub longest_write_gap_ms: Option<f64>,
    /// Whether the pauses between operations, and not the store, set the throughput.
    pub bound_by_think: bool,
}

/// A fault, or an unrequested end of a process, with the effect on the load until the next one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FaultRecord {
    /// As in `--fault`: `kill-primary`, `pause-slave:2`; or `primary ended (signal 9)`.
    pub name: String,
    /// When it struck, since the start of the measurement.
    pub at_s: f64,
    /// When it was undone, if it lasts.
    pub until_s: Option<f64>,
    /// The longest time without an acknowledged write, from this fault to the next; `None` when no write was asked for.
    pub longest_gap_ms: Option<f64>,
    /// Errors from this fault to the next.
    pub errors: BTreeMap<String, u64>,
    /// Keys whose latest acknowledged write was gone at the end, by the first fault after its acknowledgement.
    pub lost: u64,
}

/// How much one slave had to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlaveLoad {
    /// The slave's name.
    pub slave: String,
    /// Writes that it acknowledged during the run.
    pub writes: u64,
}

/// What the checker of linearizability said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CheckRecord {
    /// Operations that were judged.
    pub operations: u64,
    /// Different keys.
    pub keys: u64,
    /// `linearizable`, `violation`, `gave up`, or `interrupted` by a second signal.
    pub verdict: HistoryVerdict,
    /// Operations that were begun later than this are not judged: `--check-max` was reached. Since the start of the
    /// measurement, so below 0 in the warm-up.
    #[serde(default)]
    pub cut_at_s: Option<f64>,
    /// A smallest part of the history that has no explanation, for people.
    pub counter_example: Option<String>,
}

/// The last reading of every key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ReadBack {
    /// How many were read.
    pub keys_checked: u64,
    /// Keys whose latest acknowledged write is gone.
    pub lost: u64,
    /// Keys with a value that was never written.
    pub mangled: u64,
}

/// Processor time of the harness.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CpuRecord {
    /// Time in user mode, in seconds.
    pub user_s: f64,
    /// Time in the kernel, in seconds.
    pub system_s: f64,
    /// Both, for one request.
    pub us_per_request: f64,
}

/// A grid of runs: `sweep.json`. A single run is a sweep of one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SweepRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// In the order in which they were made.
    pub runs: Vec<RunRecord>,
    /// The placement experiment; empty when it was not made.
    pub placement: Vec<PlacementRecord>,
}

/// A single run and what was found beside it: `run.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SingleRecord {
    #[serde(flatten)]
    pub run: RunRecord,
    /// The placement experiment; empty when it was not made.
    #[serde(default)]
    pub placement: Vec<PlacementRecord>,
}

/// How one placement spreads writes over the slaves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PlacementRecord {
    /// `hash` or `random`.
    pub placement: String,
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Copies of each, `ceil(n/2)`.
    pub copies: u64,
    /// The sum, over all keys, of the square of a key's number of writes; 0 where it was not counted. All writes of a key
    /// go to the same slaves where the key chooses, and this says how much that spreads their loads.
    #[serde(default)]
    pub squares: u64,
    /// What each slave had of it.
    pub loads: Vec<SlaveLoad>,
}
