//! The HTTP ports of all roles, with real processes: what health, status and metrics say through a lost slave, a hung standby and
//! a failover, and who may ask.

mod common;

use common::cluster::{Node, Setup, TestCluster, MASTERS};
use common::http::{get, get_from, http_address, Exposition, HttpAnswer};
use common::{seconds, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How long anything may take that comes by itself.
const LIMIT: std::time::Duration = seconds(30);

/// A cluster with two slaves, each node of which has an HTTP port.
fn with_http() -> TestCluster {
    let nodes = [Node::Master, Node::Backup, Node::Slave(0), Node::Slave(1)];
    let setup = nodes
        .into_iter()
        .fold(Setup::slaves(2), |setup, node| setup.node_with_variable(node, "DSM_HTTP", "127.0.0.1:0"));
    setup.start()
}

fn ask(cluster: &TestCluster, node: Node, path: &str) -> HttpAnswer {
    get_from(cluster, node, path).unwrap_or_else(|error| panic!("{node:?} {path}: {error}"))
}

fn status(cluster: &TestCluster, node: Node) -> Value {
    let answer = ask(cluster, node, "/status");
    assert_eq!(answer.code, 200, "{answer:?}");
    serde_json::from_str(&answer.body).expect("JSON")
}

fn metrics(cluster: &TestCluster, node: Node) -> Exposition {
    let answer = ask(cluster, node, "/metrics");
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{answer:?}");
    Exposition::parse(&answer.body)
}

/// Waits until a node is in this state; gives what is missing.
fn wait_for_state(cluster: &TestCluster, node: Node, state: &str) -> String {
    wait_for(&format!("{node:?} is {state}"), LIMIT, || {
        let answer = get_from(cluster, node, "/status").ok()?;
        let status: Value = serde_json::from_str(&answer.body).ok()?;
        (status["state"] == state).then(|| status["why"].to_string())
    })
}

#[test]
fn health_status_and_metrics_tell_of_a_lost_slave_a_hung_standby_and_a_failover() {
    let mut cluster = with_http();
    for node in cluster.nodes() {
        assert_eq!(ask(&cluster, node, "/healthz").body, "ok\n", "{node:?}");
        assert_eq!(ask(&cluster, node, "/readyz").body, "ready\n", "{node:?}");
        wait_for_state(&cluster, node, "healthy");
    }
    let mut client = cluster.connect_to_primary();
    for number in 0..50 {
        client.call(&[b"SET", format!("key-{number}").as_bytes(), b"value"]).expect("an answer");
    }
    client.call(&[b"GET", b"key-1"]).expect("an answer");
    its_numbers_are_those_of_what_was_done(&cluster);

    // A slave is lost, and comes back.
    cluster.kill(Node::Slave(1));
    let why = wait_for_state(&cluster, Node::Master, "degraded");
    assert!(why.contains("1 of 2 slaves"), "{why}");
    assert_eq!(ask(&cluster, Node::Master, "/readyz").code, 200);
    let told = metrics(&cluster, Node::Master);
    assert_eq!(told.of("dsm_slaves_active"), 1.0);
    assert_eq!(told.of("dsm_slaves_removed_total{cause=\"closed\"}"), 1.0);
    cluster.start(Node::Slave(1));
    wait_for_state(&cluster, Node::Master, "healthy");
    wait_for_state(&cluster, Node::Slave(1), "healthy");

    // The standby hangs: its port takes connections and says nothing.
    cluster.pause(Node::Backup);
    let hung = get_from(&cluster, Node::Backup, "/healthz");
    assert!(hung.is_err(), "{hung:?}");
    let why = wait_for_state(&cluster, Node::Master, "degraded");
    assert!(why.contains("standby"), "{why}");
    cluster.resume(Node::Backup);
    wait_for_state(&cluster, Node::Backup, "healthy");
    wait_for_state(&cluster, Node::Master, "healthy");

    // The primary is killed.
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, LIMIT);
    let why = wait_for_state(&cluster, Node::Backup, "degraded");
    assert!(why.contains("standby"), "{why}");
    let told = metrics(&cluster, Node::Backup);
    assert_eq!((told.of("dsm_role{role=\"primary\"}"), told.of("dsm_takeovers_total")), (1.0, 1.0));
    assert_eq!(told.of("dsm_keys"), 50.0);
    let epoch = told.of("dsm_epoch");
    wait_for("the slaves have a place in the new reign", LIMIT, || {
        let epochs = [0, 1].map(|slave| metrics(&cluster, Node::Slave(slave)).of("dsm_epoch"));
        (epochs == [epoch, epoch]).then_some(())
    });
    cluster.start(Node::Master);
    cluster.heal();
}

#[test]
fn the_clients_status_in_json_says_by_its_exit_code_how_the_cluster_is() {
    let mut cluster = Setup::slaves(2).start();
    let masters = cluster.addresses().map(|address| address.to_string()).join(",");
    let status = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-client"));
        let asked = command.args(["--masters", &masters, "status", "--json"]).output().expect("it is built");
        let status: Option<Value> = serde_json::from_slice(&asked.stdout).ok();
        (asked.status.code(), status)
    };
    let (code, told) = status();
    let told = told.expect("JSON");
    assert_eq!((code, &told["state"]), (Some(0), &Value::from("healthy")));
    assert_eq!(told.pointer("/info/slaves/active_slaves"), Some(&Value::from(2)));
    // A master misses a slave that it has seen when it looked at its health, which it does each tick.
    let uptime = |told: &Value| told.pointer("/info/server/uptime_in_seconds").and_then(Value::as_u64);
    let asked_at = uptime(&told);
    wait_for("a second is over", LIMIT, || status().1.filter(|told| uptime(told) > asked_at));
    cluster.kill(Node::Slave(0));
    let told = wait_for("it is degraded", LIMIT, || match status() {
        (Some(1), told) => told,
        _ => None,
    });
    assert_eq!(told["state"], "degraded");
    assert!(told["why"][0].as_str().is_some_and(|why| why.contains("1 of 2 slaves")), "{told}");
    for master in MASTERS {
        cluster.kill(master);
    }
    assert_eq!(status(), (Some(2), None), "no master answers");
}

/// After 50 writes and a read.
fn its_numbers_are_those_of_what_was_done(cluster: &TestCluster) {
    let told = metrics(cluster, Node::Master);
    assert_eq!(told.of("dsm_writes_total"), 50.0);
    assert_eq!(told.of("dsm_request_seconds_count{command=\"write\"}"), 50.0);
    assert_eq!(told.of("dsm_request_seconds_count{command=\"read\"}"), 1.0);
    assert_eq!((told.of("dsm_keys"), told.of("dsm_slaves_active"), told.of("dsm_ready")), (50.0, 2.0, 1.0));
    assert_eq!(told.of("dsm_limits_hit_total{limit=\"max-requests\"}"), 0.0);
    for counted in ["dsm_sync_seconds_count", "dsm_ack_seconds_count", "dsm_turn_seconds_count"] {
        assert!(told.of(counted) >= 1.0, "{counted}: {}", told.of(counted));
    }
    // A write waits for a sync and an ACK: so long it took at least, and no longer than a test has patience.
    let seconds = told.of("dsm_request_seconds_sum{command=\"write\"}");
    assert!(seconds > 0.0 && seconds < LIMIT.as_secs_f64(), "{seconds}");
    let held = [0, 1].map(|slave| metrics(cluster, Node::Slave(slave)).of("dsm_held_keys"));
    let copies = told.of("dsm_copies");
    assert_eq!((held[0] + held[1], copies), (copies, 50.0), "each key has one copy at one of two slaves");
    let standby = metrics(cluster, Node::Backup);
    assert_eq!((standby.of("dsm_role{role=\"standby\"}"), standby.of("dsm_writes_total")), (1.0, 0.0));

    let told = status(cluster, Node::Master);
    assert_eq!(told.pointer("/info/replication/dsm_role"), Some(&Value::from("primary")));
    assert_eq!(told.pointer("/times_us/requests/write/count"), Some(&Value::from(50)));
    assert_eq!(told.pointer("/info/slaves/slaves").and_then(Value::as_array).map(Vec::len), Some(2));
    let told = status(cluster, Node::Slave(0));
    assert_eq!((&told["node"], &told["ready"]), (&Value::from("slave"), &Value::from(true)));
    assert_eq!(told.pointer("/info/slave/id"), Some(&Value::from("slave-0")));
}

/// A file that only its owner may read.
fn private(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    path
}

#[test]
fn where_there_are_users_one_that_may_use_info_sees_everything_and_everybody_whether_it_lives() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let users = "user default off\nuser sees on >sees-pw -@all +info\nuser writes on >writes-pw ~* +@write\n";
    let users = private(dir.path(), "users.acl", users);
    let setup = Setup::slaves(0).masters_with(&["--http", "127.0.0.1:0", "--users-file"]);
    let mut cluster = setup.masters_with(&[users.to_str().expect("text")]).prepare();
    cluster.start(Node::Master);
    let address: SocketAddr = wait_for("the master listens", LIMIT, || http_address(&cluster, Node::Master));
    let code = |path: &str, login| get(address, path, login).expect("an answer").code;
    wait_for("it serves", LIMIT, || (code("/readyz", None) == 200).then_some(()));
    assert_eq!(code("/healthz", None), 200);
    // In base64: sees:sees-pw, sees:wrong and writes:writes-pw.
    let (sees, wrong, writes) = ("c2VlczpzZWVzLXB3", "c2Vlczp3cm9uZw==", "d3JpdGVzOndyaXRlcy1wdw==");
    for path in ["/status", "/metrics"] {
        let codes = [None, Some(wrong), Some(writes), Some(sees)].map(|login| code(path, login));
        assert_eq!(codes, [401, 401, 403, 200], "{path}");
    }
    let asked = get(address, "/status", None).expect("an answer");
    assert!(asked.head.contains("www-authenticate: Basic realm=\"dsm\""), "{asked:?}");
    let told = Exposition::parse(&get(address, "/metrics", Some(sees)).expect("an answer").body);
    assert_eq!(told.of("dsm_logins_failed_total"), 2.0);
    assert_eq!(told.of("dsm_commands_denied_total"), 2.0);
}

#[test]
fn a_port_that_is_taken_ends_a_node_with_one_line() {
    let mut cluster = with_http();
    let taken = http_address(&cluster, Node::Slave(0)).expect("it is told").to_string();
    for (node, role) in [(MASTERS[1], "dsm-backup-master"), (Node::Slave(1), "dsm-slave")] {
        let mut command = common::cluster::command(node);
        command.args(["--http", &taken]);
        if node == Node::Slave(1) {
            command.args(["--masters", &cluster.address(Node::Master).to_string()]);
        } else {
            command.args(["--listen", "127.0.0.1:0", "--log"]).arg(cluster.dir().join("other.log"));
        }
        let (code, told) = common::cluster::fails(command);
        assert_eq!(code, 1, "{role}: {told}");
        assert!(told.contains(&taken), "{role}: {told}");
    }
    cluster.settle();
}

/// The names of metrics in a text, as they stand there.
fn named_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("dsm_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// The alarms of a file in the layout of ours: of each its name, its expression and its severity.
fn alarms(text: &str) -> Vec<[String; 3]> {
    let mut lines = text.lines().skip_while(|line| line.starts_with('#')).peekable();
    for expected in ["groups:", "  - name: dsm", "    rules:"] {
        assert_eq!(lines.next(), Some(expected));
    }
    let mut alarms = Vec::new();
    while lines.peek().is_some() {
        let mut value = |key: &str| {
            let line = lines.next().expect("a whole alarm");
            let value = line.strip_prefix(key).unwrap_or_else(|| panic!("{key:?} is expected: {line:?}"));
            let quoted = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
            let value = quoted.unwrap_or(value);
            assert!(!value.contains('\'') && !value.is_empty(), "{line}");
            value.to_owned()
        };
        let (name, expression, lasts) =
            (value("      - alert: "), value("        expr: "), value("        for: "));
        assert!(lasts.trim_end_matches(['s', 'm', 'h']).parse::<u32>().is_ok(), "{name}: {lasts}");
        let severity = {
            assert_eq!(lines.next(), Some("        labels:"));
            lines.next().and_then(|line| line.strip_prefix("          severity: ")).expect("a severity")
        };
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        assert_eq!(lines.next(), Some("        annotations:"));
        let summary = lines.next().and_then(|line| line.strip_prefix("          summary: '"));
        let summary = summary.and_then(|summary| summary.strip_suffix(": {{ $labels.instance }}'"));
        // In quotes a quote is written twice.
        let is_quoted = |summary: &str| !summary.replace("''", "").contains('\'');
        assert!(summary.is_some_and(is_quoted), "{name}: {summary:?}");
        for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
            let of = |bracket| expression.matches(bracket).count();
            assert_eq!(of(open), of(close), "{name}: {expression}");
        }
        alarms.push([name, expression, severity.to_owned()]);
    }
    alarms
}

#[test]
fn each_metric_that_the_alarms_and_the_dashboard_name_exists_and_each_alarm_is_explained() {
    let cluster = with_http();
    let mut client = cluster.connect_to_primary();
    client.call(&[b"SET", b"key", b"value"]).expect("an answer");
    let told = [Node::Master, Node::Slave(0)].map(|node| metrics(&cluster, node));
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (name, kind) in told.iter().flat_map(|told| &told.kinds) {
        known.insert(name.clone());
        if kind == "histogram" {
            known.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        }
    }
    // Only with certificates.
    known.insert("dsm_certificate_expires_timestamp_seconds".to_owned());
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let read = |name: &str| fs::read_to_string(docs.join(name)).expect("it is there");
    let (rules, dashboard, operations) = (read("alerts.yml"), read("grafana.json"), read("OPERATIONS.md"));
    let alarms = alarms(&rules);
    assert!(alarms.len() >= 20, "{}", alarms.len());
    for [name, expression, severity] in &alarms {
        let unknown: Vec<_> = named_in(expression).into_iter().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
        assert!(operations.contains(&format!("\n| `{name}` | {severity} | ")), "{name} is not explained");
    }
    let explained = operations.lines().filter(|line| line.starts_with("| `Dsm")).count();
    assert_eq!(explained, alarms.len(), "an alarm is explained that there is not");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() >= 10);
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets")) {
        let expression = target["expr"].as_str().expect("an expression");
        let named = named_in(expression);
        assert!(!named.is_empty() && named.is_subset(&known), "{expression}: {named:?}");
    }
    let (_, section) = operations.split_once("\n### Health, status and metrics\n").expect("a section");
    let (section, _) = section.split_once("\n### What is logged\n").expect("the next one");
    let documented: Vec<_> =
        named_in(section).into_iter().filter(|name| name != "dsm_" && !known.contains(name)).collect();
    assert!(documented.is_empty(), "the document names what is not told: {documented:?}");
}
