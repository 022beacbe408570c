//! `/metrics`: what a node counts, in the text form of Prometheus (0.0.4), which the crate `prometheus` encodes.
//!
//! Owns the names, units and meanings of the metrics. Counts nothing: the numbers are those of INFO, and the histograms those of
//! `timings.rs`. Names and units are Prometheus' own: seconds and bytes, `_total` at what only grows. `docs/OPERATIONS.md` says
//! which of them to watch.

use crate::timings::{Tally, Timings, BOUNDS_US};
use crate::told::{NodeFacts, NodeTold};
use dsm_protocol::info::{
    ClientsInfo, CpuInfo, CpuSeconds, KeyspaceInfo, LogInfo, MasterInfo, MasterRole, MemberInfo, MemoryInfo,
    NodeState, ReplicationInfo, RequestsInfo, SlaveInfo, SlaveNodeInfo, SlavesInfo, TurnsInfo,
};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::TextEncoder;
use std::collections::BTreeMap;

/// The whole answer.
///
/// # Errors
/// What the encoder says of a family that is none, which would be a bug here.
pub(super) fn text(told: &NodeTold, timings: &Timings) -> Result<String, prometheus::Error> {
    let mut families = Families::default();
    let verdict = told.verdict();
    families.gauge("dsm_ready", "Whether the node does its part", u64::from(verdict.is_ready()));
    let is_degraded = u64::from(verdict.state != NodeState::Healthy);
    families.gauge("dsm_degraded", "Whether something is missing, as /status says in words", is_degraded);
    match &told.node {
        NodeFacts::Master { info, removed_by } => master(&mut families, info, removed_by),
        NodeFacts::Slave(info) => slave(&mut families, info),
    }
    let requests = timings.requests().into_iter().map(|(word, counted)| (Some(("command", word)), counted));
    families.histogram(
        "dsm_request_seconds",
        "How long requests of this node's clients took, from their reading to their answer, within a turn",
        requests.collect(),
    );
    let whole = |counted| vec![(None, counted)];
    families.histogram("dsm_turn_seconds", "How long turns took", whole(timings.turns.counted()));
    families.histogram("dsm_sync_seconds", "How long syncs of the log took", whole(timings.syncs.counted()));
    families.histogram(
        "dsm_ack_seconds",
        "How long slaves took to acknowledge a value, one value at a time for each slave",
        whole(timings.acks.counted()),
    );
    TextEncoder::new().encode_to_string(&families.0)
}

/// What is told of a metric: its name, what it means, and its value.
type Row = (&'static str, &'static str, u64);

fn master(families: &mut Families, info: &MasterInfo, removed_by: &BTreeMap<&'static str, u64>) {
    let server = &info.server;
    families.process(&server.dsm_version, server.uptime_in_seconds, server.tls_certificate_expires.0);
    families.counter(
        "dsm_log_lines_lost_total",
        "Lines for standard error that were dropped",
        server.log_lines_lost,
    );
    families.memory(&info.memory, &info.cpu);
    families.turns(&info.turns);
    replication(families, &info.replication);
    slaves(families, &info.slaves, removed_by);
    keyspace(families, &info.keyspace, &info.slaves);
    log(families, &info.log);
    requests(families, &info.requests);
    let errors = info.errors.errors.iter();
    families.labelled(
        MetricType::COUNTER,
        ("dsm_errors_total", "Requests answered with an error", "error"),
        errors.map(|(word, count)| (word.as_str().to_ascii_lowercase(), *count as f64)).collect(),
    );
    clients(families, &info.clients);
    limits(families, info);
}

fn replication(families: &mut Families, info: &ReplicationInfo) {
    let roles = [
        ("primary", MasterRole::Primary),
        ("standby", MasterRole::Standby),
        ("recovering", MasterRole::Recovering),
    ];
    families.labelled(
        MetricType::GAUGE,
        ("dsm_role", "What the master is: 1 at its role", "role"),
        roles.map(|(word, role)| (word.to_owned(), f64::from(u8::from(info.dsm_role == role)))).into(),
    );
    families.gauge("dsm_epoch", "The highest epoch that is known", info.epoch.0);
    families.counter("dsm_takeovers_total", "How often this master began to serve", info.takeovers);
    families.counter("dsm_handovers_total", "How often this master gave the reign away", info.handovers);
    families.labelled(
        MetricType::GAUGE,
        ("dsm_peer_connected", "Whether the link to each other master stands", "peer"),
        info.peer.iter().map(|peer| (peer.address.clone(), f64::from(u8::from(peer.connected)))).collect(),
    );
    // A master that does not lead knows nothing of the others, and says nothing of them.
    let known: Vec<&MemberInfo> =
        info.member.iter().filter(|member| member.seen != MemberInfo::UNKNOWN).collect();
    if !known.is_empty() {
        let live = |member: &MemberInfo| f64::from(u8::from(member.seen != MemberInfo::SILENT));
        families.labelled(
            MetricType::GAUGE,
            ("dsm_member_live", "Whether each master that keeps the log is heard", "member"),
            known.iter().map(|member| (member.address.clone(), live(member))).collect(),
        );
        families.labelled(
            MetricType::GAUGE,
            ("dsm_member_seq", "The last record that each master is known to have", "member"),
            known.iter().map(|member| (member.address.clone(), member.seq.0 as f64)).collect(),
        );
    }
    if let Some(ms) = info.standby_lag_ms.0 {
        families.seconds(
            "dsm_standby_lag_seconds",
            "For how long the standby of this master lacks something or is silent; missing without a standby",
            ms as f64 / 1e3,
        );
    }
}

fn slaves(families: &mut Families, info: &SlavesInfo, removed_by: &BTreeMap<&'static str, u64>) {
    families.gauges(&[
        (
            "dsm_slaves_active",
            "Slaves that count for writes; at a standby connected ones",
            info.active_slaves,
        ),
        (
            "dsm_slaves_quarantined",
            "Connected slaves that failed too lately to count",
            info.slaves_quarantined,
        ),
        ("dsm_slaves_full", "Active slaves that lately had no room for a value", info.slaves_full),
        (
            "dsm_slaves_disputing",
            "Connected slaves that have seen what this log lacks",
            info.slaves_disputing,
        ),
    ]);
    families.labelled(
        MetricType::COUNTER,
        ("dsm_slaves_removed_total", "Active slaves that were lost, by the reason", "cause"),
        // All causes from the start: a rate needs the zero before the first.
        ["closed", "ack-timeout", "protocol-error", "refused", "replaced", "dismissed"]
            .map(|cause| (cause.to_owned(), removed_by.get(cause).copied().unwrap_or_default() as f64))
            .into(),
    );
    families.counter("dsm_slaves_refused_total", "Slaves whose hello was refused", info.slaves_refused);
    families.counter(
        "dsm_substitutions_total",
        "Keys written to another slave than was meant",
        info.substitutions,
    );
    families.seconds(
        "dsm_slowest_slave_ack_seconds",
        "How long the slowest active slave takes to acknowledge",
        info.slowest_slave_ack_ms as f64 / 1e3,
    );
    each_slave(families, info);
}

/// What is told of each active slave.
fn each_slave(families: &mut Families, info: &SlavesInfo) {
    let active: Vec<_> = info
        .slave
        .iter()
        .filter_map(|slave| match slave {
            SlaveInfo::Active(slave) => Some(slave),
            SlaveInfo::Quarantined(_) | SlaveInfo::Connected(_) => None,
        })
        .collect();
    let of_each = |value: fn(&dsm_protocol::info::ActiveSlave) -> Option<u64>| {
        let values = active.iter().filter_map(|slave| Some((slave.id.to_string(), value(slave)? as f64)));
        values.collect::<Vec<_>>()
    };
    families.labelled(
        MetricType::GAUGE,
        ("dsm_slave_copies", "Keys that each active slave is known to hold", "slave"),
        of_each(|slave| Some(slave.copies)),
    );
    families.labelled(
        MetricType::GAUGE,
        (
            "dsm_slave_room_bytes",
            "For how many bytes of values each active slave has room; only where limited",
            "slave",
        ),
        of_each(|slave| slave.room_bytes.0),
    );
    families.labelled(
        MetricType::COUNTER,
        (
            "dsm_slave_writes_acked_total",
            "Keys of clients' writes that each slave acknowledged on this link",
            "slave",
        ),
        of_each(|slave| Some(slave.writes_acked)),
    );
}

fn keyspace(families: &mut Families, info: &KeyspaceInfo, slaves: &SlavesInfo) {
    families.gauges(&[
        ("dsm_keys", "Keys that exist", info.keys),
        ("dsm_copies", "Copies of keys at active slaves; 0 at a standby", info.copies),
        ("dsm_copies_wanted", "How many copies each key is to have", info.copies_wanted),
        ("dsm_keys_without_copy", "Keys that only the log has", info.keys_without_copy),
        ("dsm_keys_under_replicated", "Keys with fewer copies than wanted", info.keys_under_replicated),
        ("dsm_keys_misplaced", "Keys with copies at other slaves than they should be", info.keys_misplaced),
        ("dsm_keys_to_drain", "Keys that drained slaves still hold for others", slaves.keys_to_drain),
    ]);
    families.counters(&[
        ("dsm_repaired_keys_total", "Keys that repair has given copies", info.repaired_keys),
        ("dsm_repaired_bytes_total", "Bytes that repair has copied", info.repaired_bytes),
        ("dsm_moved_keys_total", "Keys of which rebalancing has moved a copy", info.moved_keys),
        ("dsm_moved_bytes_total", "Bytes that rebalancing has copied", info.moved_bytes),
    ]);
}

fn log(families: &mut Families, info: &LogInfo) {
    families.gauges(&[
        ("dsm_log_bytes", "How far the log is written or replayed", info.log_bytes),
        ("dsm_log_live_bytes", "How long a log of the latest versions alone would be", info.log_live_bytes),
        ("dsm_log_seq", "The last record that is written or replayed", info.log_seq.0),
        ("dsm_replay_lag_records", "Records that a standby has yet to replay", info.replay_lag_seq),
        ("dsm_compaction_running", "Whether the log is compacted now", u64::from(info.compaction != "no")),
        (
            "dsm_compaction_paces_writes",
            "Whether writes wait for compaction now",
            u64::from(info.compaction_paces_writes),
        ),
    ]);
    families.counter("dsm_compactions_total", "How often the log was compacted", info.compactions);
    families.counter(
        "dsm_compactions_failed_total",
        "How often a compaction came to nothing",
        info.compactions_failed,
    );
    families.seconds(
        "dsm_compaction_last_seconds",
        "How long the last compaction took",
        info.compaction_last_ms as f64 / 1e3,
    );
    families.seconds(
        "dsm_compaction_last_pause_seconds",
        "How long writes waited for the last compaction",
        info.compaction_last_pause_us as f64 / 1e6,
    );
}

fn requests(families: &mut Families, info: &RequestsInfo) {
    families.counters(&[
        ("dsm_reads_total", "Reads that were answered", info.reads_total),
        ("dsm_writes_total", "Writes that were done", info.writes_total),
        ("dsm_unknown_total", "Writes that are in the log and ended UNKNOWN", info.unknown_total),
        ("dsm_expired_keys_total", "Keys deleted because their time had come", info.expired_keys),
        ("dsm_writes_without_copy_total", "Keys of writes that only the log has", info.writes_without_copy),
        ("dsm_read_retries_total", "Reads that went on to a further slave", info.read_retries),
        ("dsm_reads_hedged_total", "Reads that a second slave was asked about", info.reads_hedged),
        ("dsm_reads_hedged_won_total", "Those that the second one answered first", info.reads_hedged_won),
        ("dsm_reads_from_log_total", "Reads that took the value from the log", info.reads_from_log),
    ]);
    families.gauges(&[
        ("dsm_requests_in_flight", "Requests that are not answered yet", info.requests_in_flight),
        ("dsm_request_bytes_in_flight", "Their keys and values", info.request_bytes_in_flight),
        (
            "dsm_requests_waiting_for_master",
            "Requests that are held or forwarded",
            info.requests_waiting_for_master,
        ),
    ]);
    families.labelled(
        MetricType::COUNTER,
        (
            "dsm_own_silences_total",
            "How often the process noticed that it had not run, by the reason",
            "cause",
        ),
        vec![
            ("paused".to_owned(), info.own_pauses as f64),
            ("own-work".to_owned(), info.own_stalls as f64),
            ("no-processor".to_owned(), info.own_waits_for_processor as f64),
        ],
    );
}

fn clients(families: &mut Families, info: &ClientsInfo) {
    families.gauges(&[
        (
            "dsm_connected_clients",
            "Sessions of clients, and those that another master forwards",
            info.connected_clients,
        ),
        ("dsm_connections", "Open connections of clients, slaves and other masters", info.connections),
        (
            "dsm_answer_bytes",
            "Values on their way from slaves, and answers that wait to be taken",
            info.answer_bytes,
        ),
        (
            "dsm_unfinished_request_bytes",
            "Clients' long requests that have not arrived whole",
            info.unfinished_request_bytes,
        ),
    ]);
    families.counters(&[
        ("dsm_connections_total", "Connections that came", info.connections_total),
        ("dsm_connections_denied_total", "Connections that protected mode refused", info.connections_denied),
        ("dsm_logins_failed_total", "Passwords that were wrong", info.logins_failed),
        ("dsm_commands_denied_total", "Commands that their users may not use", info.commands_denied),
        ("dsm_keys_denied_total", "Commands on keys that their users may not use so", info.keys_denied),
        ("dsm_proofs_refused_total", "Connections that did not prove a secret", info.proofs_refused),
        (
            "dsm_protocol_errors_total",
            "Connections closed for bytes that make no sense",
            info.protocol_errors,
        ),
        ("dsm_accept_errors_total", "Errors of accept", info.accept_errors),
    ]);
}

/// How often each limit took effect, by its flag.
fn limits(families: &mut Families, info: &MasterInfo) {
    let (clients, requests) = (&info.clients, &info.requests);
    let hits = [
        ("max-connections", clients.connections_refused),
        ("max-requests", clients.requests_busy),
        ("max-pipeline", clients.reads_paused),
        ("max-answer-bytes", clients.requests_parked),
        ("max-request-bytes", clients.uploads_cut),
        ("max-link-bytes", clients.links_cut),
        ("write-timeout", clients.slow_readers_cut),
        ("handshake-timeout", clients.handshakes_timed_out),
        ("idle-timeout", clients.idle_closed),
        ("slave-window", info.slaves.reads_waited_for_slave_window),
        ("log-read-window", requests.reads_waited_for_log_window),
    ];
    families.labelled(
        MetricType::COUNTER,
        ("dsm_limits_hit_total", "How often a limit took effect, by the flag that sets it", "limit"),
        hits.map(|(flag, count)| (flag.to_owned(), count as f64)).into(),
    );
}

fn slave(families: &mut Families, info: &SlaveNodeInfo) {
    let slave = &info.slave;
    families.process(&slave.dsm_version, slave.uptime_in_seconds, slave.tls_certificate_expires.0);
    families.counter(
        "dsm_log_lines_lost_total",
        "Lines for standard error that were dropped",
        slave.log_lines_lost,
    );
    families.memory(&info.memory, &info.cpu);
    families.turns(&info.turns);
    families.gauges(&[
        ("dsm_epoch", "The epoch of the reign that is obeyed", slave.epoch.0),
        (
            "dsm_admitted",
            "Whether the slave has a place in a reign and is connected to its master",
            u64::from(slave.admitted),
        ),
        ("dsm_held_keys", "Keys that the slave holds", slave.keys),
        ("dsm_held_bytes", "What they take", slave.held_bytes),
    ]);
    if let Some(room) = slave.room_bytes.0 {
        families.gauge("dsm_room_bytes", "For how many more bytes it has room; only where limited", room);
    }
    families.labelled(
        MetricType::GAUGE,
        ("dsm_master_connected", "Whether the link to each master stands", "master"),
        slave
            .master
            .iter()
            .map(|master| (master.address.clone(), f64::from(u8::from(master.connected))))
            .collect(),
    );
    families.counters(&[
        ("dsm_writes_taken_total", "Values taken from masters", slave.writes_taken),
        ("dsm_writes_refused_total", "Values for which there was no room", slave.writes_refused),
        ("dsm_reads_answered_total", "Values given to masters", slave.reads_answered),
    ]);
}

/// The families of metrics, in the order in which they are told.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn add(&mut self, kind: MetricType, (name, help): (&str, &str), metrics: Vec<Metric>) {
        // A family without metrics is none.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(format!("{help}."));
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.add(MetricType::GAUGE, (name, help), vec![number(MetricType::GAUGE, Vec::new(), value as f64)]);
    }

    fn gauges(&mut self, rows: &[Row]) {
        rows.iter().for_each(|(name, help, value)| self.gauge(name, help, *value));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let metrics = vec![number(MetricType::COUNTER, Vec::new(), value as f64)];
        self.add(MetricType::COUNTER, (name, help), metrics);
    }

    fn counters(&mut self, rows: &[Row]) {
        rows.iter().for_each(|(name, help, value)| self.counter(name, help, *value));
    }

    /// A gauge in seconds.
    fn seconds(&mut self, name: &str, help: &str, value: f64) {
        self.add(MetricType::GAUGE, (name, help), vec![number(MetricType::GAUGE, Vec::new(), value)]);
    }

    /// One metric for each value of a label.
    fn labelled(
        &mut self,
        kind: MetricType,
        (name, help, label): (&str, &str, &str),
        values: Vec<(String, f64)>,
    ) {
        let metrics = values.into_iter().map(|(of, value)| number(kind, vec![pair(label, of)], value));
        self.add(kind, (name, help), metrics.collect());
    }

    fn histogram(&mut self, name: &str, help: &str, values: Vec<(Option<(&str, String)>, Tally)>) {
        let metrics = values.into_iter().map(|(label, counted)| {
            let mut metric = Metric::from_label(label.into_iter().map(|(name, of)| pair(name, of)).collect());
            metric.set_histogram(buckets(&counted));
            metric
        });
        self.add(MetricType::HISTOGRAM, (name, help), metrics.collect());
    }

    fn process(&mut self, version: &str, uptime_seconds: u64, certificate_expires: Option<u64>) {
        self.labelled(
            MetricType::GAUGE,
            ("dsm_build_info", "1, with the version of the program", "version"),
            vec![(version.to_owned(), 1.0)],
        );
        self.gauge("dsm_uptime_seconds", "Since the start of the process", uptime_seconds);
        if let Some(expires) = certificate_expires {
            self.gauge(
                "dsm_certificate_expires_timestamp_seconds",
                "Until when the certificate of the node is valid; missing without TLS",
                expires,
            );
        }
    }

    fn memory(&mut self, memory: &MemoryInfo, cpu: &CpuInfo) {
        self.gauge("process_resident_memory_bytes", "Resident memory", memory.used_memory_rss);
        self.gauge("dsm_memory_bytes", "Resident memory that no file stands behind", memory.used_memory);
        if let (Some(CpuSeconds(kernel)), Some(CpuSeconds(program))) = (cpu.used_cpu_sys, cpu.used_cpu_user) {
            let seconds = (kernel + program) as f64 / 1e6;
            let metric = number(MetricType::COUNTER, Vec::new(), seconds);
            let what = ("process_cpu_seconds_total", "How long all threads have computed");
            self.add(MetricType::COUNTER, what, vec![metric]);
        }
    }

    fn turns(&mut self, turns: &TurnsInfo) {
        self.counter(
            "dsm_turns_computing_long_total",
            "Turns in which the thread itself computed for 10 ms or longer",
            turns.turns_computing_above_10ms,
        );
        self.seconds("dsm_turn_longest_seconds", "The longest turn", turns.turn_longest_us as f64 / 1e6);
    }
}

fn pair(name: &str, value: String) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value);
    pair
}

/// A metric that is one number: a counter, or else a gauge.
fn number(kind: MetricType, labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut metric = Metric::from_label(labels);
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

/// The classes of a histogram, each with all below it, as Prometheus wants them; their bounds in seconds.
fn buckets(counted: &Tally) -> Histogram {
    let mut histogram = Histogram::default();
    let mut below = 0;
    let buckets = BOUNDS_US.iter().zip(counted.counts).map(|(bound_us, count)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound_us as f64 / 1e6);
        bucket.set_cumulative_count(below);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counted.total());
    histogram.set_sample_sum(counted.sum_us as f64 / 1e6);
    histogram
}
