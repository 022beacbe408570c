//! `dsm-test-harness` as a user runs it: with real stores, real clusters, and servers that lie or stall, which it must
//! detect.

#[path = "../../../tests/common"]
mod common {
    //! The parts of the system tests' shared code that it uses.
    #![allow(dead_code, reason = "it uses a part")]

    pub(crate) mod certificates;
    pub(crate) mod flags;
    pub(crate) mod resp;
    pub(crate) mod skip;
    pub(crate) mod wait;

    pub(crate) use wait::{millis, seconds, wait_for};
}

use common::certificates::Authority;
use common::flags::Refuses::{AnythingButYesAndNo, Nothing, These};
use common::flags::{
    bad_flags_are_named, masters_flags_are_looked_at_first, wrong_addresses_are_named, Flags, NO_DURATION,
    NO_LEVEL,
};
use common::resp::encoded;
use common::skip::{need_program, skip, Lack};
use common::{millis, seconds, wait_for};
use rustix::process::{kill_process, Pid, Signal};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a short run may take on a busy machine.
const PATIENCE: Duration = seconds(120);

/// A run of the harness in a directory of its own.
struct Run {
    directory: TempDir,
}

impl Run {
    fn new() -> Run {
        Run { directory: tempfile::tempdir().expect("a directory") }
    }

    /// The harness with `line`, a short warm-up and measurement, and no placement experiment unless `line` speaks of it;
    /// the clusters' directories are made in ours.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-test-harness"));
        command.args(line.split_whitespace());
        for (flag, value) in [("--warmup", "200ms"), ("--duration", "1s")] {
            if !line.contains(flag) {
                command.args([flag, value]);
            }
        }
        if !line.contains("--placement-experiment") {
            command.arg("--placement-experiment=never");
        }
        let temporary = self.directory.path().join("tmp");
        fs::create_dir_all(&temporary).expect("a directory");
        command.arg("--output").arg(self.output()).env("TMPDIR", temporary);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn spawn(&self, line: &str) -> Harness {
        Harness(Some(self.command(line).spawn().expect("the harness starts")))
    }

    fn run(&self, line: &str) -> Output {
        self.spawn(line).wait()
    }

    fn output(&self) -> PathBuf {
        self.directory.path().join("results")
    }

    fn json(&self, name: &str) -> Value {
        let text = fs::read_to_string(self.output().join(name)).expect("the file is written");
        serde_json::from_str(&text).expect("JSON")
    }

    fn csv(&self) -> Vec<BTreeMap<String, String>> {
        let text = fs::read_to_string(self.output().join("results.csv")).expect("the file is written");
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().expect("a head").split(',').collect();
        let row = |line: &str| {
            let values: Vec<&str> = line.split(',').collect();
            assert_eq!(values.len(), names.len(), "{line}");
            names.iter().zip(values).map(|(name, value)| (name.to_string(), value.to_owned())).collect()
        };
        lines.map(row).collect()
    }

    /// Checks that nothing of a cluster is left: no directory, and no process with one in its command line.
    fn assert_nothing_left(&self) {
        let left: Vec<_> = fs::read_dir(self.directory.path().join("tmp")).expect("ours").collect();
        assert!(left.is_empty(), "{left:?}");
        let here = self.directory.path().display().to_string();
        let ours = processes().into_iter().filter(|(_, line)| line.contains(&here)).collect::<Vec<_>>();
        assert!(ours.is_empty(), "{ours:?}");
    }
}

/// Pid and command line of every process.
fn processes() -> Vec<(i32, String)> {
    let pids = fs::read_dir("/proc")
        .expect("procfs")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
    .collect()
}

/// A harness that does not outlive its test.
struct Harness(Option<Child>);

impl Harness {
    fn pid(&self) -> Pid {
        Pid::from_child(self.0.as_ref().expect("it runs"))
    }

    fn wait(mut self) -> Output {
        let pid = self.pid();
        let child = self.0.take().expect("it runs");
        let (done, waited) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let output = child.wait_with_output();
            // The receiver is gone if it took too long.
            let _ = done.send(());
            output
        });
        if waited.recv_timeout(PATIENCE).is_err() {
            kill_process(pid, Signal::KILL).expect("our child");
            let output = waiter.join().expect("no panic").expect("its output");
            panic!("it did not end: {}", told(&output));
        }
        waiter.join().expect("no panic").expect("its output")
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", told(output));
}

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path).unwrap_or_else(|| panic!("no {path} in {value}"));
    found.as_f64().unwrap_or_else(|| panic!("{path} is {found}"))
}

/// A real Redis on a free port.
struct Redis {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Redis {
    /// # Errors
    /// That there is none here.
    fn start() -> Result<Redis, Lack> {
        Redis::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Result<Redis, Lack> {
        need_program("redis-server", &["--version"], "redis-server")?;
        let directory = tempfile::tempdir().expect("a directory");
        // Held until just before it starts, so that no other test gets the same one.
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(flags)
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("it could be started just now");
        let redis = Redis { child, address: SocketAddr::from(([127, 0, 0, 1], port)), _directory: directory };
        wait_for("redis answers", seconds(20), || {
            let mut stream = TcpStream::connect(redis.address).ok()?;
            stream.write_all(b"PING\r\n").ok()?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).ok()?;
            // Or what it says to those without a password.
            (&answer == b"+PONG\r\n" || &answer == b"-NOAUTH").then_some(())
        });
        Ok(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Gives the answer to a request of the harness, from the store, the number of the connection, and the words.
type Answer = dyn Fn(&Mutex<BTreeMap<Vec<u8>, Vec<u8>>>, &[Vec<u8>]) -> Vec<u8> + Send + Sync;

/// A server with arbitrary answers. Its threads end with its connections.
fn server(answer: Arc<Answer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let store = Arc::new(Mutex::new(BTreeMap::new()));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let (answer, store) = (Arc::clone(&answer), Arc::clone(&store));
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().expect("a descriptor");
                let mut reader = BufReader::new(stream);
                while let Some(words) = request(&mut reader) {
                    if writer.write_all(&answer(&store, &words)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// One request as Redis' clients send them.
fn request(reader: &mut impl std::io::BufRead) -> Option<Vec<Vec<u8>>> {
    let number = |kind: char, reader: &mut dyn std::io::BufRead| -> Option<usize> {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        line.trim_end().strip_prefix(kind)?.parse().ok()
    };
    let count = number('*', reader)?;
    (0..count)
        .map(|_| {
            let mut word = vec![0; number('$', reader)? + 2];
            reader.read_exact(&mut word).ok()?;
            word.truncate(word.len() - 2);
            Some(word)
        })
        .collect()
}

fn bulk(value: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
}

/// What an honest store answers.
fn honest(store: &Mutex<BTreeMap<Vec<u8>, Vec<u8>>>, words: &[Vec<u8>]) -> Vec<u8> {
    let mut store = store.lock().expect("no panic");
    match (words[0].as_slice(), &words[1..]) {
        (b"SET", [key, value]) => {
            store.insert(key.clone(), value.clone());
            b"+OK\r\n".to_vec()
        }
        (b"GET", [key]) => store.get(key).map_or(b"$-1\r\n".to_vec(), |value| bulk(value)),
        _ => b"-ERR unknown command\r\n".to_vec(),
    }
}

#[test]
fn a_redis_is_measured_and_every_file_is_written() {
    let redis = match Redis::start() {
        Ok(redis) => redis,
        Err(lack) => return skip(a_redis_is_measured_and_every_file_is_written, "", &lack),
    };
    let run = Run::new();
    let line =
        format!("--target {} -clients 3 -pool=2 --think 0 --pipeline 4 --check --seed 7", redis.address);
    let output = run.run(&line);
    assert_code(&output, 0);
    let record = run.json("run.json");
    assert!(record["store"].as_str().expect("text").starts_with("redis "), "{record}");
    assert_eq!(number(&record, "/settings/clients"), 3.0);
    assert_eq!(number(&record, "/settings/pool"), 2.0);
    assert_eq!(number(&record, "/settings/seed"), 7.0);
    assert_eq!(number(&record, "/totals/error_count"), 0.0);
    assert_eq!(record["check"]["verdict"], "linearizable");
    assert_eq!(number(&record, "/read_back/keys_checked"), 1000.0);
    assert!(number(&record, "/harness_cpu/us_per_request") > 0.0);
    let (reads, writes) = (number(&record, "/totals/read_count"), number(&record, "/totals/write_count"));
    assert!(reads + writes > 500.0, "{record}");
    let share = writes / (reads + writes);
    assert!((0.2..0.4).contains(&share), "30 % are writes: {share}");
    // Each second stands in the CSV file, and the seconds add up to the whole.
    let rows = run.csv();
    assert_eq!(rows.len(), record["seconds"].as_array().expect("a list").len());
    let sum: f64 = rows.iter().map(|row| row["success_count"].parse::<f64>().expect("a number")).sum();
    let late = number(&record, "/totals/late_count");
    assert_eq!(sum + late, number(&record, "/totals/success_count"), "except for what came after the end");
    assert_eq!(rows[0]["client_count"], "3");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("reads") && table.contains("p99.9") && table.contains("redis"), "{table}");
}

#[test]
fn a_write_that_too_few_replicas_have_is_an_error() {
    let redis = match Redis::start() {
        Ok(redis) => redis,
        Err(lack) => return skip(a_write_that_too_few_replicas_have_is_an_error, "", &lack),
    };
    for (replicas, errors) in [(0, false), (1, true)] {
        let run = Run::new();
        // So many that not all of them begin with writes, of which each waits for its replica as long as the others are measured.
        let line = format!("--target {} --wait {replicas} --think 0 --clients 8 --pool 2", redis.address);
        let output = run.run(&format!("{line} --duration 2s --warmup 0"));
        assert_code(&output, 0);
        let record = run.json("run.json");
        assert_eq!(number(&record, "/totals/write_count") == 0.0, errors, "{record}");
        assert_eq!(record.pointer("/totals/errors/wait").is_some(), errors, "{record}");
        assert!(number(&record, "/totals/read_count") > 0.0);
    }
}

#[test]
fn a_cluster_is_started_checked_and_removed() {
    let run = Run::new();
    let output = run.run("-slaves 2 -clients 4 --pool 3 --think 1ms --check --timeout 20s");
    assert_code(&output, 0);
    let record = run.json("run.json");
    assert!(record["store"].as_str().expect("text").starts_with("dsm "), "{record}");
    assert_eq!(record["check"]["verdict"], "linearizable", "{record}");
    assert_eq!(number(&record, "/totals/error_count"), 0.0, "{record}");
    assert_eq!(number(&record, "/read_back/lost"), 0.0);
    // With two slaves each write is on one.
    let loads = record["slave_loads"].as_array().expect("a list");
    let applied: f64 = loads.iter().map(|load| number(load, "/writes")).sum();
    assert_eq!(loads.len(), 2, "{record}");
    assert!(applied >= number(&record, "/totals/write_count"), "the warm-up is counted, too: {record}");
    run.assert_nothing_left();
}

/// The command lines of the nodes that this run's harness has started, once there are so many.
fn nodes(harness: &Harness, count: usize) -> Vec<String> {
    wait_for("the nodes run", PATIENCE, || {
        let nodes: Vec<String> = harness_children(harness_pid(harness)).into_values().collect();
        (nodes.len() == count).then_some(nodes)
    })
}

#[test]
fn a_cluster_over_tls_and_with_secrets_is_checked_through_a_handover_and_a_kill() {
    let run = Run::new();
    let line =
        "--tls --secrets --slaves 2 --clients 4 --pool 3 --think 1ms --timeout 20s --check --duration 3s";
    let harness = run.spawn(&format!("{line} --fault failover-request@500ms,kill-backup@1500ms+500ms"));
    let nodes = nodes(&harness, 4);
    for (flag, having) in
        [("--tls-cert", 4), ("--secret-file", 4), ("--client-secret-file", 2), ("--password-file", 2)]
    {
        let found = nodes.iter().filter(|line| line.contains(&format!(" {flag} "))).count();
        assert_eq!(found, having, "{flag}: {nodes:?}");
    }
    let password = find(run.directory.path(), "password").expect("it is made before the nodes");
    let password = fs::read_to_string(password).expect("ours");
    let output = harness.wait();
    assert_code(&output, 0);
    let record = run.json("run.json");
    assert_eq!((&record["settings"]["tls"], &record["settings"]["secrets"]), (&true.into(), &true.into()));
    assert!(record["store"].as_str().expect("text").starts_with("dsm "), "INFO is asked for, too: {record}");
    assert_eq!(record["check"]["verdict"], "linearizable", "{record}");
    assert_eq!(number(&record, "/read_back/lost"), 0.0);
    assert!(number(&record, "/totals/write_count") > 0.0, "{record}");
    assert_eq!(record["slave_loads"].as_array().expect("a list").len(), 2, "{record}");
    assert!(!record.to_string().contains(password.trim()), "{record}");
    assert!(!told(&output).contains("warning: failover"), "{}", told(&output));
    run.assert_nothing_left();
}

#[test]
fn a_store_that_is_given_is_reached_by_tls_and_with_a_password() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new(directory.path(), "ca");
    let (node, own) = (authority.sign("node"), authority.sign_client("own"));
    let other = Authority::new(directory.path(), "other");
    let shown = |path: &Path| path.display().to_string();
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let (port, ca) = (port.to_string(), shown(&authority.ca));
    let mut flags = vec!["--tls-port", &port, "--requirepass", "open sesame", "--tls-ca-cert-file", &ca];
    let (cert, key) = (shown(&node.cert), shown(&node.key));
    flags.extend(["--tls-cert-file", &cert, "--tls-key-file", &key]);
    let redis = match Redis::start_with(&flags) {
        Ok(redis) => redis,
        Err(lack) => {
            return skip(a_store_that_is_given_is_reached_by_tls_and_with_a_password, "", &lack);
        }
    };
    let password = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("ours");
        shown(&path)
    };
    let (right, wrong) = (password("right", "open sesame\n"), password("wrong", "another one\n"));
    let (own_cert, own_key, other) = (shown(&own.cert), shown(&own.key), shown(&other.ca));
    let line = format!("--target 127.0.0.1:{port} --clients 3 --pool 2 --think 0 --check");
    let shows = format!("--tls-cert {own_cert} --tls-key {own_key}");
    let run = Run::new();
    assert_code(&run.run(&format!("{line} --tls-ca {ca} {shows} --password-file {right}")), 0);
    let record = run.json("run.json");
    assert!(record["store"].as_str().expect("text").starts_with("redis "), "{record}");
    assert_eq!(record["check"]["verdict"], "linearizable", "{record}");
    assert_eq!(number(&record, "/totals/error_count"), 0.0, "{record}");
    for (flags, why) in [
        (format!("--tls-ca {ca} {shows} --password-file {wrong}"), "the password is refused: WRONGPASS"),
        (format!("--tls-ca {ca} {shows}"), "noauth"),
        (format!("--tls-ca {ca} --password-file {right}"), "ertificateRequired"),
        (format!("--tls-ca {other} {shows} --password-file {right}"), "invalid peer certificate"),
        (format!("--tls-ca {own_key}"), "--tls-ca "),
    ] {
        let output = run.run(&format!("{line} {flags}"));
        assert_code(&output, 1);
        let told = told(&output);
        assert!(told.to_lowercase().contains(&why.to_lowercase()), "{flags}: {told}");
        assert!(!told.contains("sesame"), "{told}");
    }
    drop(redis);
}

#[test]
fn a_killed_primary_is_reported_with_its_gap_and_nothing_is_lost() {
    let run = Run::new();
    let faults = "--fault kill-primary@500ms+500ms,pause-slave:1@1s+200ms";
    let output =
        run.run(&format!("--slaves 3 --clients 2 --pool 3 --think 2ms --duration 2s --check {faults}"));
    assert_code(&output, 0);
    let record = run.json("run.json");
    let faults = record["faults"].as_array().expect("a list");
    assert_eq!(
        (faults[0]["name"].as_str(), faults[1]["name"].as_str()),
        (Some("kill-primary"), Some("pause-slave:1"))
    );
    assert!(number(&faults[0], "/at_s") >= 0.5);
    assert!(number(&faults[0], "/until_s") > number(&faults[0], "/at_s"));
    assert!(number(&faults[0], "/longest_gap_ms") > 0.0);
    assert!(number(&faults[0], "/errors/connection") > 0.0, "its connections broke: {record}");
    assert_eq!(number(&faults[0], "/lost"), 0.0);
    assert_eq!(number(&record, "/read_back/lost"), 0.0);
    assert_eq!(record["check"]["verdict"], "linearizable", "{record}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("longest gap between acknowledged writes"));
    run.assert_nothing_left();
}

#[test]
fn an_interrupted_run_leaves_its_files_and_no_process() {
    for signal in [Signal::INT, Signal::TERM] {
        let run = Run::new();
        let harness = run.spawn("--slaves 2 --clients 2 --pool 2 --duration 1h");
        let children = || harness_children(harness_pid(&harness));
        wait_for("the cluster runs", PATIENCE, || (children().len() == 4).then_some(()));
        // The connections of the load are there once the first values are written; a second of measurement follows.
        wait_for_log(&run, 200_000);
        let pid = harness_pid(&harness);
        kill_process(harness.pid(), signal).expect("our child");
        let output = harness.wait();
        assert_code(&output, 0);
        let record = run.json("run.json");
        assert_eq!(record["interrupted"], true);
        assert!(number(&record, "/totals/success_count") > 0.0, "{}", told(&output));
        assert_eq!(number(&record, "/read_back/keys_checked"), 1000.0);
        assert!(!run.csv().is_empty());
        assert_eq!(harness_children(pid), BTreeMap::new());
        run.assert_nothing_left();
    }
}

fn harness_pid(harness: &Harness) -> i32 {
    harness.pid().as_raw_nonzero().get()
}

/// The nodes of a harness' cluster, by pid.
fn harness_children(pid: i32) -> BTreeMap<i32, String> {
    let flag = format!("--die-with-parent {pid} ");
    processes().into_iter().filter(|(_, line)| line.contains(&flag)).collect()
}

/// Waits until the cluster of `run` has logged so much.
fn wait_for_log(run: &Run, bytes: u64) {
    let log = wait_for("there is a log", PATIENCE, || find(run.directory.path(), "kv_store.log"));
    wait_for("the load writes", PATIENCE, || (fs::metadata(&log).ok()?.len() > bytes).then_some(()));
}

#[test]
fn a_primary_that_is_killed_by_hand_is_reported_like_a_fault() {
    let run = Run::new();
    let harness = run.spawn("--slaves 2 --clients 2 --pool 2 --think 2ms --warmup 0 --duration 1h");
    wait_for_log(&run, 200_000);
    let primary = wait_for("the primary runs", PATIENCE, || {
        let children = harness_children(harness_pid(&harness));
        children.into_iter().find(|(_, line)| line.contains(" role master ")).map(|(pid, _)| pid)
    });
    kill_process(Pid::from_raw(primary).expect("a pid"), Signal::KILL).expect("it runs");
    let log = find(run.directory.path(), "kv_store.log").expect("it is there");
    let before = fs::metadata(&log).expect("it is there").len();
    wait_for_log(&run, before + 200_000);
    kill_process(harness.pid(), Signal::INT).expect("our child");
    let output = harness.wait();
    assert_code(&output, 0);
    let record = run.json("run.json");
    assert_eq!(record["faults"][0]["name"], "primary ended (signal 9)", "{record}");
    assert!(number(&record, "/faults/0/longest_gap_ms") > 0.0, "{record}");
    assert!(number(&record, "/faults/0/errors/connection") > 0.0, "{record}");
    assert_eq!(number(&record, "/faults/0/lost"), 0.0, "{record}");
    assert!(number(&record, "/totals/longest_write_gap_ms") >= number(&record, "/faults/0/longest_gap_ms"));
    assert!(told(&output).contains("warning: primary ended (signal 9)"), "{}", told(&output));
    assert!(told(&output).contains("errors: connection "), "{}", told(&output));
    run.assert_nothing_left();
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.filter_map(Result::ok).find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            find(&path, name)
        } else {
            (path.file_name()? == name).then_some(path)
        }
    })
}

/// Runs against a server that answers reads with what `lie` makes of the honest value and of the key's first value.
fn against_a_liar(lie: impl Fn(&[u8], &[u8], &[u8]) -> Vec<u8> + Send + Sync + 'static) -> (Output, Value) {
    let first = Mutex::new(BTreeMap::<Vec<u8>, Vec<u8>>::new());
    let reads = Mutex::new(0_u64);
    let address = server(Arc::new(move |store, words| {
        let answer = honest(store, words);
        match words[0].as_slice() {
            b"SET" => {
                first.lock().expect("no panic").entry(words[1].clone()).or_insert_with(|| words[2].clone());
                answer
            }
            b"GET" => {
                let mut reads = reads.lock().expect("no panic");
                *reads += 1;
                if !reads.is_multiple_of(50) {
                    return answer;
                }
                let value = store.lock().expect("no panic").get(&words[1]).cloned().unwrap_or_default();
                let first = first.lock().expect("no panic").get(&words[1]).cloned().unwrap_or_default();
                lie(&words[1], &value, &first)
            }
            _ => answer,
        }
    }));
    let run = Run::new();
    let output = run.run(&format!("--target {address} --clients 2 --pool 2 --think 0 --keys 20 --warmup 0"));
    let record = run.json("run.json");
    (output, record)
}

#[test]
fn a_value_of_another_key_is_a_wrong_value() {
    let (output, record) = against_a_liar(|key, value, _| {
        let name: &[u8] = if key == b"key3" { b"key4" } else { b"key3" };
        let behind = value.iter().position(|byte| *byte == b':').expect("a value names its key");
        bulk(&[name, &value[behind..]].concat())
    });
    assert_code(&output, 1);
    assert!(number(&record, "/totals/errors/wrong_value") > 0.0, "{record}");
    assert!(told(&output).contains("wrong_value"), "{}", told(&output));
}

#[test]
fn a_value_that_was_replaced_is_a_stale_value() {
    let (output, record) = against_a_liar(|_, _, first| bulk(first));
    assert_code(&output, 1);
    assert!(number(&record, "/totals/errors/stale_value") > 0.0, "{record}");
}

#[test]
fn a_lost_key_is_a_stale_value() {
    let (output, record) = against_a_liar(|_, _, _| b"$-1\r\n".to_vec());
    assert_code(&output, 1);
    assert!(number(&record, "/totals/errors/stale_value") > 0.0, "{record}");
}

#[test]
fn a_changed_byte_is_a_mangled_value() {
    let (output, record) = against_a_liar(|_, value, _| {
        let mut value = value.to_vec();
        *value.last_mut().expect("it is not empty") ^= 1;
        bulk(&value)
    });
    assert_code(&output, 1);
    assert!(number(&record, "/totals/errors/mangled") > 0.0, "{record}");
    assert_eq!(number(&record, "/totals/error_count"), number(&record, "/totals/errors/mangled"));
}

#[test]
fn a_write_that_was_acknowledged_and_dropped_is_lost() {
    let written = Mutex::new(BTreeSet::new());
    let address = server(Arc::new(move |store, words| {
        // Each key keeps its first value and a little more.
        if words[0] == b"SET" && !written.lock().expect("no panic").insert(words[1].clone()) {
            return b"+OK\r\n".to_vec();
        }
        honest(store, words)
    }));
    let run = Run::new();
    let line = "--clients 1 --pool 1 --think 0 --keys 5 --write-pct 100 --check";
    let output = run.run(&format!("--target {address} {line}"));
    assert_code(&output, 1);
    let record = run.json("run.json");
    assert_eq!(number(&record, "/read_back/lost"), 5.0, "{record}");
    assert_eq!(record["check"]["verdict"], "violation");
    let example = record["check"]["counter_example"].as_str().expect("text");
    assert!(example.contains("is not linearizable"), "{example}");
    assert!(told(&output).contains(example.lines().next().expect("a line")), "it is on standard error, too");
}

#[test]
fn the_open_loop_counts_a_stall_for_all_who_had_to_wait() {
    let stall = millis(300);
    let begun = Instant::now();
    let stalled = Mutex::new(false);
    let address = server(Arc::new(move |store, words| {
        // All connections wait for the one that stalls.
        let mut stalled = stalled.lock().expect("no panic");
        if !*stalled && words[0] == b"GET" && begun.elapsed() > millis(700) {
            *stalled = true;
            std::thread::sleep(stall);
        }
        honest(store, words)
    }));
    let run = Run::new();
    let line = "--clients 1 --pool 4 --rate 1000 --write-pct 10 --warmup 0 --duration 3s";
    let output = run.run(&format!("--target {address} {line}"));
    assert_code(&output, 0);
    let record = run.json("run.json");
    // 300 of 3000 requests were due in the stall: a tenth waited, 150 ms on average. In a closed loop it would be four.
    let (p99, max) = (number(&record, "/totals/read/p99"), number(&record, "/totals/read/max"));
    assert!(max >= 290_000.0, "{record}");
    assert!(p99 >= 150_000.0, "{record}");
    let sent = number(&record, "/totals/total_requests");
    assert!((2990.0..=3010.0).contains(&sent), "whatever happens, 1000 a second are due: {sent}");
}

#[test]
fn an_open_loop_above_capacity_shows_what_the_store_did_in_each_second() {
    let one_at_a_time = Mutex::new(());
    let address = server(Arc::new(move |store, words| {
        let _turn = one_at_a_time.lock().expect("no panic");
        if words[0] == b"GET" {
            std::thread::sleep(millis(2));
        }
        honest(store, words)
    }));
    let run = Run::new();
    let line =
        "--clients 1 --pool 4 --rate 5000 --write-pct 0 --keys 5 --timeout 1s --warmup 1s --duration 2200ms";
    let output = run.run(&format!("--target {address} {line}"));
    assert_code(&output, 0);
    let record = run.json("run.json");
    let seconds = record["seconds"].as_array().expect("a list");
    assert_eq!(seconds.len(), 2, "the short rest belongs to the second before: {record}");
    let sum = |path: &str| seconds.iter().map(|second| number(second, path)).sum::<f64>();
    for second in seconds {
        // At most 500 a second are served, and the warm-up's backlog is not worked off first.
        assert!((1.0..700.0).contains(&number(second, "/throughput_rps")), "{record}");
        assert!(number(second, "/errors/unsent") > 0.0, "it counts when it was due: {record}");
        let all = number(second, "/success_count") + number(second, "/error_count");
        assert_eq!(number(second, "/total_requests"), all);
    }
    let late = number(&record, "/totals/late_count");
    assert!(late > 0.0, "what was due is still sent after the end: {record}");
    assert_eq!(number(&record, "/totals/total_requests"), sum("/total_requests") + late);
    assert!((10_990.0..=11_010.0).contains(&number(&record, "/totals/total_requests")), "{record}");
    let throughput = number(&record, "/totals/throughput_rps") * number(&record, "/duration_s");
    assert!((throughput - sum("/success_count")).abs() < 1.0, "what came late is no throughput: {record}");
    assert!(number(&record, "/totals/success_count") > throughput + 1.0, "but it succeeded: {record}");
    assert_eq!(record["totals"]["longest_write_gap_ms"], Value::Null, "nothing was to be written");
}

#[test]
fn targets_that_serve_nobody_are_not_asked_in_a_hot_loop() {
    let (first, standbys) = (Mutex::new(None), Arc::new(Mutex::new(0_u32)));
    let asked = Arc::clone(&standbys);
    let address = server(Arc::new(move |store, words| {
        if words[0] == b"GET" {
            let begun = *first.lock().expect("no panic").get_or_insert_with(Instant::now);
            if begun.elapsed() < millis(1500) {
                *asked.lock().expect("no panic") += 1;
                return b"-STANDBY elsewhere\r\n".to_vec();
            }
        }
        honest(store, words)
    }));
    let run = Run::new();
    let output =
        run.run(&format!("--target {address} --clients 1 --pool 2 --think 0 --write-pct 0 --keys 5"));
    // Nothing succeeded in the measurement, if the machine was fast enough to make it within that time.
    assert!(output.status.code().is_some(), "{}", told(&output));
    let standbys = *standbys.lock().expect("no panic");
    assert!((2..300).contains(&standbys), "each connection rests longer and longer: {standbys}");
}

#[test]
fn a_wrong_answer_in_the_warm_up_is_exit_code_1_and_in_no_figure() {
    let lies = Mutex::new(10);
    let address = server(Arc::new(move |store, words| {
        let mut lies = lies.lock().expect("no panic");
        if words[0] == b"GET" && *lies > 0 {
            *lies -= 1;
            return b"$3\r\nlie\r\n".to_vec();
        }
        honest(store, words)
    }));
    let run = Run::new();
    let line = "--clients 1 --pool 1 --think 0 --write-pct 10 --keys 5 --warmup 2s";
    let output = run.run(&format!("--target {address} {line}"));
    assert_code(&output, 1);
    let record = run.json("run.json");
    assert_eq!(number(&record, "/wrong_outside/mangled"), 10.0, "{record}");
    assert_eq!(number(&record, "/totals/error_count"), 0.0, "{record}");
    assert!(told(&output).contains("10 answers outside the measurement had"), "{}", told(&output));
    let report = fs::read_to_string(run.output().join("report.html")).expect("text");
    assert!(report.contains("10 of them outside the measurement"));
}

#[test]
fn the_files_are_written_even_if_nobody_reads_the_table() {
    let address = server(Arc::new(honest));
    let run = Run::new();
    let mut harness = run.spawn(&format!("--target {address} --clients 1 --pool 1 --think 0 --keys 5"));
    drop(harness.0.as_mut().and_then(|child| child.stdout.take()));
    assert_code(&harness.wait(), 0);
    assert!(number(&run.json("run.json"), "/totals/success_count") > 0.0);
    assert!(run.output().join("report.html").exists());
}

#[test]
fn the_verdicts_are_printed_even_if_the_files_cannot_be_written() {
    let address = server(Arc::new(honest));
    let run = Run::new();
    fs::create_dir_all(run.output().join("results.csv")).expect("a directory");
    let output = run.run(&format!("--target {address} --clients 1 --pool 1 --think 0 --keys 5"));
    assert_code(&output, 1);
    assert!(told(&output).contains("cannot write"), "{}", told(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("read back: 5 keys"), "{}", told(&output));
    let left: Vec<_> = fs::read_dir(run.output()).expect("ours").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_file_that_may_not_grow_is_reported_and_ends_no_run() {
    let address = server(Arc::new(honest));
    let run = Run::new();
    let harness = run.spawn(&format!("--target {address} --clients 1 --pool 1 --think 0 --keys 5"));
    let limit = rustix::process::Rlimit { current: Some(100), maximum: None };
    let child = harness.0.as_ref().expect("it runs");
    rustix::process::prlimit(Some(Pid::from_child(child)), rustix::process::Resource::Fsize, limit)
        .expect("our own process");
    let output = harness.wait();
    assert_code(&output, 1);
    assert!(told(&output).contains("File too large"), "{}", told(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("read back: 5 keys"), "{}", told(&output));
}

/// Answers, but for requests with `word`; those are never answered. Whether there was one.
fn silent_to(word: &'static [u8]) -> (SocketAddr, Arc<Mutex<bool>>) {
    let asked = Arc::new(Mutex::new(false));
    let noted = Arc::clone(&asked);
    let address = server(Arc::new(move |store, words| {
        if words[0] == word {
            *noted.lock().expect("no panic") = true;
            // Blocks until the process of this test ends.
            loop {
                std::thread::park();
            }
        }
        honest(store, words)
    }));
    (address, asked)
}

#[test]
fn the_figures_are_there_before_the_last_reading_and_a_signal_ends_that() {
    let (address, asked) = silent_to(b"GET");
    let run = Run::new();
    let line = "--clients 1 --pool 1 --think 0 --write-pct 100 --keys 5 --timeout 1h";
    let harness = run.spawn(&format!("--target {address} {line}"));
    wait_for("the last reading begins", PATIENCE, || asked.lock().expect("no panic").then_some(()));
    let record = run.json("run.json");
    assert!(number(&record, "/totals/write_count") > 0.0, "{record}");
    assert!(!run.csv().is_empty());
    kill_process(harness.pid(), Signal::INT).expect("our child");
    let output = harness.wait();
    assert_code(&output, 1);
    let record = run.json("run.json");
    assert_eq!(
        (&record["read_back"], &record["read_back_error"]),
        (&Value::Null, &Value::from("interrupted"))
    );
    assert!(told(&output).contains("could not be read back"), "{}", told(&output));
}

#[test]
fn a_signal_ends_the_first_writing() {
    let (address, asked) = silent_to(b"SET");
    let run = Run::new();
    let harness = run.spawn(&format!("--target {address} --keys 5 --timeout 1h"));
    wait_for("the first writing begins", PATIENCE, || asked.lock().expect("no panic").then_some(()));
    kill_process(harness.pid(), Signal::INT).expect("our child");
    let output = harness.wait();
    assert_code(&output, 1);
    assert!(told(&output).contains("nothing was measured"), "{}", told(&output));
}

#[test]
fn a_bound_of_the_check_that_was_reached_is_in_the_record() {
    let address = server(Arc::new(honest));
    let run = Run::new();
    let line = "--clients 1 --pool 1 --think 0 --keys 5 --check --check-max 10";
    let output = run.run(&format!("--target {address} {line}"));
    assert_code(&output, 0);
    let record = run.json("run.json");
    assert!(number(&record, "/check/cut_at_s") < 0.0, "in the warm-up: {record}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("(--check-max)"), "{}", told(&output));
    assert!(fs::read_to_string(run.output().join("report.html")).expect("text").contains("--check-max"));
}

#[test]
fn a_cluster_that_does_not_start_leaves_its_last_words() {
    let run = Run::new();
    let mut command = run.command("--slaves 1");
    command.args(["--", "--no-such-flag"]);
    let output = Harness(Some(command.spawn().expect("the harness starts"))).wait();
    assert_code(&output, 2);
    assert!(told(&output).contains("unexpected argument '--no-such-flag'"), "{}", told(&output));
    run.assert_nothing_left();
}

#[test]
fn more_errors_than_allowed_are_exit_code_1() {
    let flip = Mutex::new(0_u32);
    let address = server(Arc::new(move |store, words| {
        let mut flip = flip.lock().expect("no panic");
        *flip += 1;
        if words[0] == b"GET" && flip.is_multiple_of(4) {
            return b"-BUSY later\r\n".to_vec();
        }
        honest(store, words)
    }));
    let line = format!("--target {address} --clients 1 --pool 1 --think 0 --keys 5 --quiet");
    let run = Run::new();
    let output = run.run(&format!("{line} --max-error-rate 90"));
    assert_code(&output, 0);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "--quiet: {}", told(&output));
    let record = run.json("run.json");
    let (all, good) = (number(&record, "/totals/total_requests"), number(&record, "/totals/success_count"));
    assert_eq!(all - good, number(&record, "/totals/errors/busy"));
    let throughput = number(&record, "/totals/throughput_rps") * number(&record, "/duration_s");
    let late = number(&record, "/totals/late_count");
    assert!((-1.0..late + 1.0).contains(&(good - throughput)), "only successes are throughput: {record}");
    assert_code(&Run::new().run(&format!("{line} --max-error-rate 1")), 1);
}

#[test]
fn clients_go_on_at_the_next_target() {
    let refused = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let standby = server(Arc::new(|_, _| b"-STANDBY elsewhere\r\n".to_vec()));
    let good = server(Arc::new(honest));
    let run = Run::new();
    let line = "--clients 1 --pool 2 --think 0 --keys 5 --max-error-rate 50";
    let output = run.run(&format!("--target {standby},{refused},{good} {line} --warmup 0"));
    assert_code(&output, 0);
    let record = run.json("run.json");
    assert_eq!(number(&record, "/totals/errors/standby"), 2.0, "each connection asked there once: {record}");
}

#[test]
fn a_sweep_runs_every_point_and_announces_its_time() {
    let address = server(Arc::new(honest));
    let run = Run::new();
    let line = "--sweep clients=1,2 --sweep pipeline=1..3 --pool 1 --think 0 --keys 5 --warmup 50ms --duration 200ms";
    let output = run.run(&format!("--target {address} {line}"));
    assert_code(&output, 0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("6 runs, about"), "{}", told(&output));
    let sweep = run.json("sweep.json");
    let points: Vec<_> = sweep["runs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|run| (number(run, "/settings/clients") as u32, number(run, "/settings/pipeline") as u32))
        .collect();
    let tags: BTreeSet<&str> = sweep["runs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|run| run["run_tag"].as_str().expect("text"))
        .collect();
    assert_eq!(tags.len(), 6, "the values of each run are its own: {tags:?}");
    assert_eq!(points, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]);
    assert_eq!(run.csv().len(), 6);
    assert!(!run.output().join("run.json").exists());
}

#[test]
fn placement_is_counted_by_the_slaves_after_each_run() {
    let run = Run::new();
    let output = run.run("--slaves 1 --clients 1 --keys 500 --placement-experiment=after");
    assert_code(&output, 0);
    let record = run.json("run.json");
    assert!(number(&record, "/totals/success_count") > 0.0, "{record}");
    assert_ten_thousand_writes_were_counted(&run, &record);
}

#[test]
fn placement_alone_makes_no_run() {
    let run = Run::new();
    let output = run.run("--placement-experiment --keys 500");
    assert_code(&output, 0);
    let record = run.json("sweep.json");
    assert_eq!(record["runs"].as_array().map(Vec::len), Some(0), "{record}");
    assert_ten_thousand_writes_were_counted(&run, &record);
}

/// By nine slaves, for either placement, and drawn.
fn assert_ten_thousand_writes_were_counted(run: &Run, record: &Value) {
    assert!(run.output().join("load_distribution.png").exists());
    assert!(fs::read_to_string(run.output().join("report.html"))
        .expect("text")
        .contains("Load distribution"));
    for (index, name) in ["hash", "random"].into_iter().enumerate() {
        let record = &record["placement"][index];
        assert_eq!(record["placement"], name);
        let loads = record["loads"].as_array().expect("a list");
        assert_eq!(loads.len(), 9, "{record}");
        let sum: f64 = loads.iter().map(|load| number(load, "/writes")).sum();
        assert!(sum >= 50_000.0, "10,000 writes, five copies of each: {record}");
    }
    run.assert_nothing_left();
}

/// The programs of a build: this one in its roles, each of which first tells on which cores it may run.
fn programs(run: &Run) -> PathBuf {
    let directory = run.directory.path().join("programs");
    fs::create_dir_all(&directory).expect("a directory");
    for (name, role) in [("dsm-master", "master"), ("dsm-backup-master", "backup"), ("dsm-slave", "slave")] {
        let script = format!(
            "#!/bin/sh\n/bin/grep Cpus_allowed_list: /proc/$$/status >> {}/cores\nexec {} role {role} \"$@\"\n",
            directory.display(),
            env!("CARGO_BIN_EXE_dsm-test-harness"),
        );
        let path = directory.join(name);
        fs::write(&path, script).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    directory
}

/// `one-core` with `line`, on the programs of [`programs`] unless `line` names others.
fn one_core(run: &Run, line: &str) -> Command {
    let programs = programs(run);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-test-harness"));
    command.arg("one-core").args(line.split_whitespace());
    if !line.contains("--build") {
        command.arg("--build").arg(&programs);
    }
    let temporary = run.directory.path().join("tmp");
    fs::create_dir_all(&temporary).expect("a directory");
    command.arg("--output").arg(run.output()).env("TMPDIR", temporary);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_start_is_measured_with_slaves_that_are_empty_and_with_slaves_that_stayed() {
    let run = Run::new();
    let (programs, temporary) = (programs(&run), run.directory.path().join("tmp"));
    fs::create_dir_all(&temporary).expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-test-harness"));
    command.args("cold-start --keys 2000 --slaves 1 --build".split_whitespace()).arg(programs);
    command.env("TMPDIR", &temporary).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = Harness(Some(command.spawn().expect("the harness starts"))).wait();
    assert_code(&output, 0);
    let text = String::from_utf8_lossy(&output.stdout);
    for what in ["slaves that are empty", "slaves that stayed"] {
        let row = text.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {text}"));
        let figures = row.split('|').skip(3).take(3).map(|word| word.trim().trim_end_matches(" s"));
        assert!(figures.into_iter().all(|word| word.parse::<f64>().is_ok_and(|value| value > 0.0)), "{row}");
    }
    let left = fs::read_dir(&temporary).expect("a directory").count();
    assert_eq!(left, 0, "the log and what the processes said is removed");
}

#[test]
fn builds_are_measured_in_pairs_on_one_core_and_without_redis_too() {
    let run = Run::new();
    let mut command = one_core(&run, "--load reads,mixed-16 --rounds 2 --duration 100ms --warmup 20ms");
    // Neither redis-server nor strace nor perf is found.
    command.arg("--base").arg(programs(&run)).env("PATH", run.directory.path());
    let output = Harness(Some(command.spawn().expect("the harness starts"))).wait();
    assert_code(&output, 0);
    let text = told(&output);
    for row in ["| reads | build |", "| reads | base |", "| mixed-16 | build |", "| mixed-16 | base |"] {
        assert_eq!(text.matches(row).count(), 2, "its rate and its costs: {row}: {text}");
    }
    for told in ["Redis is left out", "strace is not installed", "perf is not installed", "Noise: "] {
        assert!(text.contains(told), "{told}: {text}");
    }
    let record = run.json("one-core.json");
    let runs = record["runs"].as_array().expect("a list");
    let order: Vec<&str> = runs.iter().map(|run| run["store"].as_str().expect("a name")).collect();
    assert_eq!(order, ["build", "base", "base", "build", "base", "build", "build", "base"]);
    for run in runs {
        assert!(number(run, "/figures/operations") > 0.0 && run["failed"].is_null(), "{run}");
        for part in ["master", "standby", "slaves"] {
            assert!(number(run, &format!("/figures/parts/{part}/cpu_s")) > 0.0, "{part}: {run}");
        }
    }
    let table = fs::read_to_string(run.output().join("one-core.csv")).expect("the file is written");
    assert_eq!(table.lines().count(), 1 + runs.len(), "{table}");
    let cores = fs::read_to_string(run.directory.path().join("programs/cores")).expect("they ran");
    let core = format!("Cpus_allowed_list:\t{}", record["core"]);
    assert_eq!(cores.lines().count(), 2 * 2 * 5, "{cores}");
    assert!(cores.lines().all(|line| line == core), "{core}: {cores}");
    run.assert_nothing_left();
}

#[test]
fn a_build_is_measured_beside_both_kinds_of_redis() {
    if let Err(lack) = need_program("redis-server", &["--version"], "redis-server") {
        return skip(a_build_is_measured_beside_both_kinds_of_redis, "", &lack);
    }
    let run = Run::new();
    let line = "--load mixed --rounds 1 --duration 200ms --warmup 20ms --replicated";
    let output = Harness(Some(one_core(&run, line).spawn().expect("the harness starts"))).wait();
    assert_code(&output, 0);
    let text = told(&output);
    for row in ["| mixed | build |", "| mixed | redis |", "| mixed | redis always + WAIT 1 |"] {
        assert!(text.contains(row), "{row}: {text}");
    }
    assert!(text.contains("fewer than 3 rounds") && text.contains(" ? |"), "{text}");
    let record = run.json("one-core.json");
    assert!(number(&record, "/runs/2/figures/parts/slaves/cpu_s") > 0.0, "the replicas': {record}");
    // Where strace is there and may attach, calls are counted; else it is said why they are not.
    let counted = record["counts"].as_array().map_or(0, Vec::len);
    let remarks = record["remarks"].to_string();
    assert!(counted == 3 || remarks.contains("strace") || remarks.contains("Not counted"), "{record}");
    run.assert_nothing_left();
}

#[test]
fn builds_and_redis_are_measured_over_tls() {
    if let Err(lack) = need_program("redis-server", &["--version"], "redis-server") {
        return skip(builds_and_redis_are_measured_over_tls, "", &lack);
    }
    let run = Run::new();
    let line = "--tls --load reads,mixed-16 --rounds 1 --duration 200ms --replicated --no-counts";
    let output = Harness(Some(one_core(&run, line).spawn().expect("the harness starts"))).wait();
    assert_code(&output, 0);
    let record = run.json("one-core.json");
    assert_eq!(record["tls"], true, "{record}");
    let runs = record["runs"].as_array().expect("a list");
    assert_eq!(runs.len(), 6, "two loads on a build and two kinds of Redis: {record}");
    for run in runs {
        assert!(number(run, "/figures/operations") > 0.0, "{run}");
    }
    for store in record["stores"].as_array().expect("a list") {
        assert!(store["commands"].to_string().contains("--tls-"), "{store}");
    }
    let title = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(title.contains(" connections over TLS, "), "{title}");
    run.assert_nothing_left();
}

#[test]
fn sizes_keys_connections_and_slaves_are_those_that_were_asked_for() {
    let run = Run::new();
    let line = "--load mixed-16 --rounds 1 --duration 200ms --warmup 20ms --no-counts --value-bytes 100000 --keys 20 \
                --connections 3 --slaves 2";
    let mut command = one_core(&run, line);
    command.env("PATH", run.directory.path());
    let output = Harness(Some(command.spawn().expect("the harness starts"))).wait();
    assert_code(&output, 0);
    let title = "20 keys, values of 100000 bytes, 3 connections, 2 slaves";
    assert!(told(&output).contains(title), "{}", told(&output));
    let record = run.json("one-core.json");
    for (name, value) in [("keys", 20), ("value_bytes", 100_000), ("connections", 3), ("slaves", 2)] {
        assert_eq!(record[name], value, "{name}: {record}");
    }
    assert!(number(&record, "/runs/0/figures/operations") > 0.0, "{record}");
    let cores = fs::read_to_string(run.directory.path().join("programs/cores")).expect("they ran");
    assert_eq!(cores.lines().count(), 2 + 2, "two masters and two slaves: {cores}");
    run.assert_nothing_left();
}

#[test]
fn a_signal_ends_the_pairs_with_what_was_measured() {
    let run = Run::new();
    let command = &mut one_core(&run, "--load reads --rounds 100 --duration 200ms --no-counts");
    let mut harness = Harness(Some(command.spawn().expect("the harness starts")));
    // Its lines tell when the first load is measured.
    let mut lines =
        BufReader::new(harness.0.as_mut().and_then(|child| child.stderr.take()).expect("piped")).lines();
    assert!(lines.any(|line| line.expect("text").contains("op/s")), "something is measured");
    kill_process(harness.pid(), Signal::INT).expect("our child");
    std::thread::spawn(move || lines.count());
    let output = harness.wait();
    assert_code(&output, 1);
    assert!(told(&output).contains("Ended early: interrupted by a signal."), "{}", told(&output));
    assert!(run.json("one-core.json")["runs"].as_array().is_some_and(|runs| !runs.is_empty()));
    run.assert_nothing_left();
}

#[test]
fn pairs_that_cannot_be_measured_are_reported_in_one_line() {
    let run = Run::new();
    let empty = run.directory.path().join("empty");
    fs::create_dir(&empty).expect("a directory");
    let no_build = format!("--build {}", empty.display());
    for (line, code, why) in [
        (no_build.as_str(), 1, "there is no "),
        ("--core 1023", 1, "core 1023 is not one of those"),
        ("--slower-max 5", 2, "--base"),
        ("--load quiet", 2, "--load"),
        ("--rounds 0", 2, "--rounds"),
        ("--value-bytes 15", 2, "--value-bytes"),
        ("--slaves 65", 2, "--slaves"),
        ("--duration 1ms", 2, "--duration must be 10ms to 1m"),
        ("--warmup 2m", 2, "--warmup must be at most 1m"),
        ("--quick --rounds 4", 2, "--quick"),
    ] {
        let output = Harness(Some(one_core(&run, line).spawn().expect("the harness starts"))).wait();
        assert_code(&output, code);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(why) && text.lines().count() == 1, "{line}: {text}");
    }
    run.assert_nothing_left();
}

#[test]
fn wrong_usage_and_an_unreachable_target_are_distinguished() {
    let run = Run::new();
    for line in
        ["--slaves 0", "--target a:1 --slaves 2", "--fault explode@1s", "--no-such-flag", "--sweep a=1"]
    {
        let output = run.run(line);
        assert_code(&output, 2);
    }
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let mut child = run.spawn(&format!("--target {nobody}"));
    let mut line = String::new();
    let stderr = child.0.as_mut().and_then(|child| child.stderr.take()).expect("piped");
    BufReader::new(stderr).read_line(&mut line).expect("text");
    assert!(line.contains(&nobody.to_string()) && line.contains("refused"), "{line}");
    assert_code(&child.wait(), 1);
    let output = run.run("--help");
    assert_code(&output, 0);
    assert!(String::from_utf8_lossy(&output.stdout).contains("Examples:"));
}

#[test]
fn the_requests_of_this_file_are_read_as_they_are_sent() {
    let sent = encoded(&[b"SET", b"k", b"a\r\nb"]);
    let words = request(&mut BufReader::new(&sent[..])).expect("a request");
    assert_eq!(words, [b"SET".to_vec(), b"k".to_vec(), b"a\r\nb".to_vec()]);
}

const FLAGS: Flags = &[
    ("--log-level", NO_LEVEL),
    ("--slaves", These(&["0", "65"])),
    ("--target", These(&["nowhere"])),
    ("--protocol", These(&["morse"])),
    ("--placement", These(&["left"])),
    ("--fsync", These(&["sometimes"])),
    ("--data", Nothing),
    ("--tls", AnythingButYesAndNo),
    ("--secrets", AnythingButYesAndNo),
    ("--tls-ca", Nothing),
    ("--tls-cert", Nothing),
    ("--tls-key", Nothing),
    ("--password-file", Nothing),
    ("--clients", These(&["0", "10001"])),
    ("--pool", These(&["0", "10001"])),
    ("--keys", These(&["0", "1000001"])),
    ("--key-prefix", These(&["a:b", "a b", "\u{e4}"])),
    ("--distribution", These(&["flat"])),
    ("--zipf-exponent", These(&["-1", "NaN", "inf"])),
    ("--write-pct", These(&["-1", "101", "NaN"])),
    ("--value-bytes", These(&["10", "4294967295"])),
    ("--think", NO_DURATION),
    ("--rate", These(&["0", "2e8", "NaN"])),
    ("--pipeline", These(&["0", "10001"])),
    ("--wait", These(&["-1"])),
    ("--timeout", These(&["soon", "0", "0s"])),
    ("--threads", These(&["0", "257"])),
    ("--seed", These(&["luck"])),
    ("--warmup", NO_DURATION),
    ("--duration", These(&["soon", "0", "0s"])),
    ("--fault", These(&["nonsense", "kill-slave:4@1s", "kill-primary@1h"])),
    ("--check", AnythingButYesAndNo),
    ("--check-max", These(&["-1"])),
    ("--sweep", These(&["colour=1", "slaves=0", "clients=1..1001", "value-bytes=10"])),
    ("--placement-experiment", These(&["soon"])),
    ("--output", Nothing),
    ("--quiet", AnythingButYesAndNo),
    ("--max-error-rate", These(&["-1", "101"])),
];

#[test]
fn a_bad_flag_is_named_in_one_line() {
    let program = env!("CARGO_BIN_EXE_dsm-test-harness");
    bad_flags_are_named(program, &[], FLAGS);
    masters_flags_are_looked_at_first(program);
    wrong_addresses_are_named(program, &[], "--target", "");
}
