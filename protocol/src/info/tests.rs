//! Tests of the text, of parsing what was printed, and that `docs/FORMATS.md` has each field.

use super::*;
use std::collections::BTreeSet;

/// The text of [`example`].
const TEXT: &str = "\
# Server
dsm_version:0.1.0
redis_version:7.4.0
redis_mode:standalone
tcp_port:12345
process_id:4711
started_as:primary
address:127.0.0.1:12345
uptime_in_seconds:61
uptime_in_days:0
log_lines_lost:0
tls:1
tls_certificate_expires:1795989165
secret:1
client_secret:0
cluster_id:00000000000000ab

# Memory
used_memory:524288
used_memory_human:512.00K
used_memory_rss:1048576
used_memory_rss_human:1.00M
maxmemory:0
maxmemory_policy:noeviction

# Persistence
loading:0
rdb_bgsave_in_progress:0
aof_enabled:1
aof_rewrite_in_progress:1
aof_last_bgrewrite_status:ok
aof_current_size:1024

# Stats
total_connections_received:6
total_commands_processed:38
instantaneous_ops_per_sec:4
rejected_connections:0
evicted_keys:0
total_error_replies:3

# Replication
role:master
dsm_role:primary
connected_slaves:1
master_repl_offset:18
epoch:3
active_master:127.0.0.1:12345
peer_connected:1
peer0:address=[::1]:12346,connected=1,serves=0,seq=17
peer1:address=there:12346,connected=0,serves=0,seq=0
member0:id=1,address=10.0.0.1:12345,role=voter,seen=leads,seq=17
member1:id=4,address=10.0.0.4:12345,role=learner/3,seen=live,seq=9
members_change:replace 3 by 4
standby_lag_ms:0
degraded:2 of 3 slaves are active; no room
waiting_for:
takeovers:1
handovers:0
reign_id:7f3a9c0e51d24b88
reigns:2

# Slaves
active_slaves:2
slave0:id=slave-1,slot=0,state=active,copies=5,writes_acked=7,room_bytes=unlimited
slave1:id=slave-2,slot=1,state=active,copies=6,writes_acked=8,room_bytes=4096
slave2:id=slave-3,state=quarantined,failures=2,cause=ack-timeout,ms_left=1500
slave3:id=slave-4,state=connected
slaves_quarantined:1
slaves_full:0
slowest_slave:slave-2
slowest_slave_ack_ms:4
slaves_removed:1
slaves_refused:0
slaves_disputing:0
slaves_leaving:slave-1,slave-2
keys_to_drain:5
slaves_let_go:1
substitutions:0
reads_waited_for_slave_window:0

# CPU
used_cpu_sys:0.250000
used_cpu_user:1.000250

# Keyspace
db0:keys=9,expires=0,avg_ttl=0
keys:9
copies:11
keys_without_copy:0
keys_under_replicated:1
copies_counted_ms_ago:250
copies_setting:half
copies_wanted:2
repair_state:copying
repaired_keys:7
repaired_bytes:800
rebalance_state:waiting
keys_misplaced:3
moved_keys:4
moved_bytes:500
surplus_copies_dropped:1

# Log
log_path:/var/lib/dsm/kv store.log
log_bytes:1024
log_live_bytes:700
log_seq:18
fsync:always
replay_lag_seq:0
standby_log:
compaction:42%
compactions:2
compactions_failed:1
compaction_hindrance:
compaction_last_ms:1500
compaction_last_pause_us:900
compaction_paces_writes:1

# Requests
reads_total:20
writes_total:18
unknown_total:0
expired_keys:0
writes_without_copy:0
read_retries:0
reads_hedged:0
reads_hedged_won:0
reads_from_log:0
reads_waited_for_log_window:0
log_read_bytes:0
reads_of_all_slaves:0
requests_in_flight:1
request_bytes_in_flight:0
requests_waiting_for_master:0
own_pauses:0
own_stalls:0
own_waits_for_processor:0
computed_between_ticks_most_ms:2

# Turns
turns_below_1ms:900
turns_1ms_to_10ms:4
turns_10ms_to_100ms:0
turns_100ms_to_1s:0
turns_above_1s:0
turn_longest_us:2100
turn_longest_in:slave link
turns_computing_above_10ms:0
turn_longest_computing_us:1800
turn_longest_computing_in:requests
turn_longest_computing_by_kind:requests=1800,slave-link=1200

# Errors
errors_standby:0
errors_noquorum:3
errors_loading:0
errors_readonly:0
errors_busy:0
errors_oom:0
errors_err:0
errors_unknown:0

# Clients
connected_clients:1
blocked_clients:0
maxclients:10000
connections:4
connections_total:6
connections_refused:0
connections_denied:0
strangers:0
strangers_cut:0
requests_busy:0
reads_paused:0
requests_parked:0
answer_bytes:0
clients_waiting_for_answer_room:0
unfinished_request_bytes:0
uploads_cut:0
unfinished_link_bytes:0
links_cut:0
slow_readers_cut:0
logins_failed:0
commands_denied:0
keys_denied:0
proofs_refused:0
handshakes_timed_out:0
protocol_errors:0
idle_closed:0
accept_errors:0
";

pub(super) fn example() -> MasterInfo {
    MasterInfo::parse(TEXT).unwrap()
}

/// The text of [`slave_example`], as far as it has no section of masters.
const SLAVE_TEXT: &str = "\
# Slave
dsm_version:0.1.0
process_id:4712
id:slave-1
uptime_in_seconds:60
tls_certificate_expires:
log_lines_lost:0
cluster_id:00000000000000ab
epoch:3
admitted:1
master0:address=a:1,connected=1,obeyed=1
master1:address=b:2,connected=1,obeyed=0
keys:5
held_bytes:700
room_bytes:unlimited
writes_taken:9
reads_answered:2
writes_refused:0
";

/// A slave that does its part.
pub(super) fn slave_example() -> SlaveNodeInfo {
    let section = |from: &str, to: &str| {
        let begin = TEXT.find(from).unwrap();
        &TEXT[begin..begin + TEXT[begin..].find(to).unwrap()]
    };
    let (memory, cpu, turns) =
        (section("# Memory", "\n# Pers"), section("# CPU", "\n# Key"), section("# Turns", "\n# Err"));
    let text = format!("{SLAVE_TEXT}\n{memory}\n{cpu}\n{turns}");
    let info = SlaveNodeInfo::parse(&text).unwrap();
    assert_eq!(info.print(), text);
    info
}

#[test]
fn in_json_numbers_are_numbers_and_lists_are_lists() {
    let json = example().json();
    let sections: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(sections.len(), SECTIONS.len());
    for (place, expected) in [
        ("/server/cluster_id", Value::from("00000000000000ab")),
        ("/server/tls", true.into()),
        ("/server/tls_certificate_expires", 1_795_989_165_u64.into()),
        ("/replication/epoch", 3.into()),
        ("/replication/dsm_role", "primary".into()),
        ("/replication/peers/1/address", "there:12346".into()),
        ("/slaves/slaves/0/room_bytes", Value::Null),
        ("/slaves/slaves/2/state", "quarantined".into()),
        ("/cpu/used_cpu_user", 1.000_25.into()),
        ("/turns/turn_longest_computing_by_kind/slave-link", 1200.into()),
        ("/errors/errors_noquorum", 3.into()),
    ] {
        assert_eq!(json.pointer(place), Some(&expected), "{place}");
    }
    assert_eq!(json.pointer("/replication/master_host"), None, "what is missing is missing");
    let json = slave_example().json();
    assert_eq!(json.pointer("/slave/masters/0/obeyed"), Some(&Value::Bool(true)));
    assert_eq!(json.pointer("/slave/tls_certificate_expires"), Some(&Value::Null));
}

/// `TEXT` with one line replaced.
fn with(line: &str, other: &str) -> String {
    let changed = TEXT.replacen(line, other, 1);
    assert_ne!(changed, TEXT, "{line}");
    changed
}

#[test]
fn a_text_is_printed_as_it_was_read() {
    assert_eq!(example().print(), TEXT);
    assert_eq!(MasterInfo::parse(&TEXT.replace('\n', "\r\n")), Ok(example()));
}

#[test]
fn a_text_is_never_taken_for_a_list_of_names_and_values() {
    let mut info = example();
    "waiting for the log, which another master holds: pid=7".clone_into(&mut info.replication.degraded);
    info.log.log_path = "/a=b/kv_store.log".to_owned();
    let text = info.print();
    assert!(text.contains("\ndegraded:waiting for the log, which another master holds: pid:7\n"), "{text}");
    assert!(text.contains("\nlog_path:/a=b/kv_store.log\n"), "one without a comma is not");
    let example = example().print();
    for line in text.lines().chain(example.lines()) {
        let value = line.split_once(':').map_or("", |(_, value)| value);
        let is_list = value.contains(',') && value.contains('=');
        assert!(!is_list || value.split(',').all(|part| part.contains('=')), "{line}");
    }
}

#[test]
fn fields_are_read_as_what_they_are() {
    let info = example();
    assert!(info.is_primary());
    assert_eq!(info.server.cluster_id, Some(ClusterId(0xab)));
    assert_eq!(info.replication.epoch, Epoch(3));
    assert_eq!(info.replication.peer[0].address, "[::1]:12346");
    assert_eq!((info.replication.peer[0].connected, info.replication.peer[1].connected), (true, false));
    assert_eq!(info.replication.standby_lag_ms, OrEmpty(Some(0)));
    let SlaveInfo::Active(slave) = &info.slaves.slave[1] else { panic!("{:?}", info.slaves.slave) };
    assert_eq!((slave.id.as_str(), slave.slot, slave.room_bytes), ("slave-2", 1, OrUnlimited(Some(4096))));
    let SlaveInfo::Quarantined(slave) = &info.slaves.slave[2] else { panic!("{:?}", info.slaves.slave) };
    assert_eq!((slave.failures, slave.cause.as_str(), slave.ms_left), (2, "ack-timeout", 1500));
    assert!(matches!(&info.slaves.slave[3], SlaveInfo::Connected(slave) if slave.id.as_str() == "slave-4"));
    assert_eq!(info.turns.turn_longest_computing_by_kind[1], ("slave-link".to_owned(), 1200));
    assert_eq!(info.errors.errors[1], (ErrorWord::NoQuorum, 3));
}

#[test]
fn what_may_be_missing_or_empty_is_read_and_printed_so() {
    for (line, other) in [
        ("cluster_id:00000000000000ab\n", ""),
        ("standby_lag_ms:0\n", "standby_lag_ms:\n"),
        ("dsm_role:primary", "dsm_role:standby"),
        ("dsm_role:primary", "dsm_role:recovering"),
        (
            "role:master\ndsm_role:primary\n",
            "role:slave\ndsm_role:standby\nmaster_host:::1\nmaster_port:12346\nmaster_link_status:down\n\
             slave_repl_offset:18\nslave_read_only:0\n",
        ),
        ("used_cpu_sys:0.250000\nused_cpu_user:1.000250\n", ""),
        ("db0:keys=9,expires=0,avg_ttl=0\n", ""),
        ("started_as:primary", "started_as:backup"),
        ("slowest_slave:slave-2\n", "slowest_slave:\n"),
        ("requests=1800,slave-link=1200", ""),
        ("peer1:address=there:12346,connected=0,serves=0,seq=0\n", ""),
    ] {
        let text = with(line, other);
        assert_eq!(MasterInfo::parse(&text).map(|info| info.print()), Ok(text));
    }
}

#[test]
fn a_field_that_is_missing_or_of_another_kind_is_named() {
    let missing = |name: &str| Err(InfoError::Missing(name.to_owned()));
    let value = |name: &str, value: &str| Err(InfoError::Value(name.to_owned(), value.to_owned()));
    for (text, expected) in [
        (with("reigns:2\n", ""), missing("reigns")),
        (with("errors_busy:0\n", ""), missing("errors_busy")),
        (with("keys:9", "keys:many"), value("keys", "many")),
        (with("cluster_id:00000000000000ab", "cluster_id:none"), value("cluster_id", "none")),
        (with("peer_connected:1", "peer_connected:yes"), value("peer_connected", "yes")),
        (with("role:master", "role:primary"), value("role", "primary")),
        (with("dsm_role:primary", "dsm_role:master"), value("dsm_role", "master")),
        (with("used_cpu_sys:0.250000", "used_cpu_sys:0.25"), value("used_cpu_sys", "0.25")),
        (with("id=slave-4,state=connected", "id=slave-4"), value("slave3", "id=slave-4")),
        ("redis_version:7.0.15\r\nrole:master\r\n".to_owned(), missing("dsm_version")),
    ] {
        assert_eq!(MasterInfo::parse(&text), expected);
    }
    let newer = with("# Slaves\n", "# Slaves\nslaves_of_a_later_version:1\n");
    assert_eq!(MasterInfo::parse(&newer), Ok(example()));
}

#[test]
fn bytes_in_short_are_written_as_redis_writes_them() {
    let shown = [0, 1023, 1024, 1536, 1 << 20, (1 << 30) * 5 / 2, 1 << 40].map(human_bytes);
    assert_eq!(shown, ["0B", "1023B", "1.00K", "1.50K", "1.00M", "2.50G", "1.00T"]);
}

/// The fields as the rows of `docs/FORMATS.md`, *INFO*, explain them: section, name, unit.
fn explained() -> Vec<(String, String, String)> {
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/FORMATS.md")).unwrap();
    let (_, section) = document.split_once("\n## INFO\n").unwrap();
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let (mut heading, mut fields) = (String::new(), Vec::new());
    for row in section.lines().filter(|line| line.starts_with('|')).skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        if !cells[0].is_empty() {
            cells[0].clone_into(&mut heading);
        }
        for name in cells[1].split('`').skip(1).step_by(2) {
            let name = match name {
                _ if name.starts_with("errors_") => "errors",
                _ if name.starts_with("peer")
                    || name.starts_with("member")
                    || name.starts_with("slave")
                    || name.starts_with("db") =>
                {
                    name.trim_end_matches(|c: char| c.is_ascii_digit())
                }
                _ => name,
            };
            fields.push((heading.clone(), name.to_owned(), cells[3].to_owned()));
        }
    }
    // `slave0` and `slave1` stand for one field.
    fields.dedup();
    fields
}

#[test]
fn the_document_has_each_field_in_its_place_with_its_unit() {
    let fields = MasterInfo::FIELDS.iter();
    let fields: Vec<_> = fields
        .map(|field| (field.section.to_owned(), field.name.to_owned(), field.unit.to_owned()))
        .collect();
    assert_eq!(explained(), fields);
    let sections: BTreeSet<String> = fields.iter().map(|(section, ..)| section.to_lowercase()).collect();
    assert_eq!(sections, SECTIONS.map(str::to_owned).into());
}
