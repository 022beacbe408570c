//! The binaries as a user sees them: `dsm-client` against a small scripted master, `dsm-cluster` as it is.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "cli/flags_documented.rs"]
mod flags_documented;

use bytes::BytesMut;
use common::flags::wrong_addresses_are_named;
use common::resp::Connection;
use common::skip::{hears_hangups, need_program, skip};
use dsm_protocol::command::{Command as StoreCommand, ErrorWord, Reply};
use dsm_protocol::frame;
use dsm_protocol::ids::Epoch;
use dsm_protocol::message::{Control, MasterState, Message, Welcome};
use rustix::process::{kill_process, Pid, Signal};
use std::collections::BTreeMap;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Anything here that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a read of `slow` takes.
const SLOW: Duration = Duration::from_millis(700);

type Map = Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// A master that serves from a map, on its own threads. The key `busy` is always refused, `lost` ends the link, a read of
/// `slow` sets the key `asked`, and while the key `hangs` exists, it does not answer how many keys it has.
fn small_master(values: &Map) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let values = values.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let values = values.clone();
            // The client may hang up at any point.
            std::thread::spawn(move || serve(stream?, &values));
        }
    });
    address
}

fn serve(mut stream: TcpStream, values: &Map) -> io::Result<()> {
    let mut preface = [0; frame::PREFACE.len()];
    stream.read_exact(&mut preface)?;
    assert_eq!(preface, frame::PREFACE);
    let mut input = BytesMut::new();
    loop {
        while let Some(message) = frame::decode(&mut input, 1 << 26).unwrap() {
            let answer = match message {
                Message::Control(Control::Hello(_)) => {
                    let state = MasterState {
                        active: true,
                        epoch: Epoch(1),
                        seq: dsm_protocol::ids::Seq::default(),
                        active_address: None,
                    };
                    Message::Control(Control::Welcome(Welcome { cluster: None, value_max: 16 << 20, state }))
                }
                Message::Request(request) => match answer(&request.command, values) {
                    Some(reply) => Message::Response { id: request.id, reply },
                    None => return Ok(()),
                },
                other => panic!("not from a client: {other:?}"),
            };
            let mut out = Vec::new();
            frame::encode(&answer, &mut out);
            stream.write_all(&out)?;
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            read => input.extend_from_slice(&chunk[..read]),
        }
    }
}

fn answer(command: &StoreCommand, map: &Map) -> Option<Reply> {
    let mut values = map.lock().unwrap();
    Some(match command {
        StoreCommand::Put { key, .. } if &key[..] == b"busy" => {
            Reply::error(ErrorWord::NoQuorum, "0 of 1 slaves are active")
        }
        StoreCommand::Put { key, .. } if &key[..] == b"lost" => return None,
        StoreCommand::Put { key, value } => {
            values.insert(key.to_vec(), value.to_vec());
            Reply::Done
        }
        StoreCommand::Get { key } if &key[..] == b"slow" => {
            values.insert(b"asked".to_vec(), Vec::new());
            drop(values);
            std::thread::sleep(SLOW);
            Reply::NotFound
        }
        StoreCommand::Get { key } => match values.get(&key[..]) {
            Some(value) => Reply::Value(value.clone().into()),
            None => Reply::NotFound,
        },
        StoreCommand::Delete { keys } => {
            Reply::Count(keys.iter().filter(|key| values.remove(&key[..]).is_some()).count() as u64)
        }
        StoreCommand::Status => {
            let degraded = values.get(&b"degraded"[..]).map(|what| String::from_utf8(what.clone()).unwrap());
            let degraded = degraded.map_or_else(String::new, |what| format!("degraded:{what}\r\n"));
            Reply::Text(format!("# Replication\r\ndsm_role:primary\r\n{degraded}"))
        }
        StoreCommand::KeyCount => {
            while values.contains_key(&b"hangs"[..]) {
                drop(values);
                std::thread::sleep(Duration::from_millis(1));
                values = map.lock().unwrap();
            }
            Reply::Count(values.len() as u64)
        }
        StoreCommand::Failover | StoreCommand::RemoveSlave { .. } => Reply::Done,
        other => panic!("the client does not ask {other:?}"),
    })
}

/// An address at which nothing listens.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn client(masters: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-client"));
    command.arg("--masters").arg(masters.join(",")).args(words);
    command
}

fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not read its input has closed it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn assert_one_line(error: &[u8]) {
    assert_eq!(text(error).matches('\n').count(), 1, "{:?}", text(error));
}

#[test]
fn a_piped_session_gets_one_answer_a_line_and_nothing_else() {
    let master = small_master(&Map::default());
    let script = "WRITE foo one two\nREAD foo\nread nothing\nDELETE foo\nDELETE foo\nWRITE\nk e y\nv a l\n\
                  READ\nk e y\n\nFROB x\nWRITE foo\nWRITE busy 1\nSTATUS\nFAILOVER\nREMOVE-SLAVE slave-2\nEXIT\nREAD foo\n";
    let output = run(client(&[&master], &[]), script.as_bytes());
    assert_eq!(
        text(&output.stdout).lines().collect::<Vec<_>>(),
        [
            "WRITE_DONE",
            "Value for key foo = one two",
            "Key nothing not found",
            "DELETE_DONE",
            "Key foo not found",
            "WRITE_DONE",
            "Value for key k e y = v a l",
            "Invalid Operation! Please Try Again.",
            "Invalid Operation! Please Try Again.",
            "NOQUORUM 0 of 1 slaves are active",
            "# Replication",
            "dsm_role:primary",
            "FAILOVER_DONE",
            "REMOVE-SLAVE_BEGUN",
            "Exiting Client...",
        ]
    );
    assert!(text(&output.stderr).contains("usage: WRITE <key> <value>"));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_end_of_the_input_is_a_silent_success_even_without_a_last_newline() {
    let values = Map::default();
    let master = small_master(&values);
    let output = run(client(&[&master], &[]), b"WRITE a \xff\x01\r\nREAD a");
    assert_eq!(output.stdout, b"WRITE_DONE\nValue for key a = \xff\x01\n");
    assert_eq!((output.stderr, output.status.code()), (Vec::new(), Some(0)));
    assert_eq!(values.lock().unwrap().get(&b"a"[..]).unwrap(), b"\xff\x01");
}

#[test]
fn the_prompt_speaks_the_original_texts() {
    let master = small_master(&Map::default());
    let output = run(client(&[&master], &["--prompt"]), b"WRITE\nfoo\nbar\nREAD foo\nEXIT\n");
    let operation = "[PRIMARY] Enter the Operation you would like to perform (READ/WRITE/EXIT): ";
    assert_eq!(
        text(&output.stdout),
        format!(
            "Connected to Master Server!!\n{operation}Enter the key you want to perform the operation on: \
             Enter the value corresponding to the key: WRITE_DONE\n{operation}Value for key foo = bar\n\
             {operation}Exiting Client...\n"
        )
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_prompt_tells_that_the_backup_serves() {
    let backup = small_master(&Map::default());
    let output = run(client(&[&free_address(), &backup], &["--prompt"]), b"READ foo\n");
    let text = text(&output.stdout);
    assert!(
        text.starts_with(
            "Connection to Master Server failed, connecting to Backup Master...\n\
             [BACKUP] Enter the Operation you would like to perform (READ/WRITE/EXIT): Key foo not found\n"
        ),
        "{text}"
    );
}

#[test]
fn one_operation_prints_its_result_alone_and_tells_the_rest_by_its_exit_code() {
    let values = Map::default();
    let master = small_master(&values);
    let once = |words: &[&str]| {
        let output = run(client(&[&master], words), b"");
        (output.status.code().unwrap(), output.stdout, output.stderr)
    };
    assert_eq!(once(&["WRITE", "a key", " one", "two "]), (0, b"WRITE_DONE\n".to_vec(), Vec::new()));
    assert_eq!(once(&["READ", "a key"]), (0, b" one two \n".to_vec(), Vec::new()));
    assert_eq!(once(&["write", "-n", "--help"]), (0, b"WRITE_DONE\n".to_vec(), Vec::new()));
    assert_eq!(once(&["read", "-n"]), (0, b"--help\n".to_vec(), Vec::new()));
    values.lock().unwrap().insert(b"raw".to_vec(), b"\0\n\xff".to_vec());
    assert_eq!(once(&["READ", "raw"]), (0, b"\0\n\xff\n".to_vec(), Vec::new()));
    values.lock().unwrap().insert(b"word".to_vec(), b"NOT_FOUND".to_vec());
    assert_eq!(once(&["READ", "word"]), (0, b"NOT_FOUND\n".to_vec(), Vec::new()));
    let missing = once(&["READ", "nothing"]);
    assert_eq!((missing.0, missing.1), (1, Vec::new()));
    assert_eq!(once(&["DELETE", "a key"]).0, 0);
    assert_eq!(once(&["DELETE", "a key"]).0, 1);
    assert_eq!(once(&["STATUS"]), (0, b"# Replication\ndsm_role:primary\n".to_vec(), Vec::new()));
    values.lock().unwrap().insert(b"degraded".to_vec(), Vec::new());
    assert_eq!(once(&["STATUS"]).0, 0, "nothing is missing");
    values.lock().unwrap().insert(b"degraded".to_vec(), b"no standby is connected; 2 of 3 slaves".to_vec());
    let (code, text, told) = once(&["STATUS"]);
    assert_eq!((code, told), (1, b"degraded: no standby is connected; 2 of 3 slaves\n".to_vec()));
    assert!(text.starts_with(b"# Replication\n"), "{text:?}");
}

#[test]
fn errors_are_one_line_and_code_2() {
    let master = small_master(&Map::default());
    let down = [&free_address()[..], &free_address()[..]];
    for (masters, words, begin) in [
        (&[&master[..]][..], &["WRITE", "busy", "1"][..], "error: NOQUORUM 0 of 1 slaves are active"),
        (&[&master[..]], &["WRITE", "lost", "1"], "error: UNKNOWN the link to the master broke"),
        (&[&master[..]], &["WRITE", "k"], "error: Invalid Operation! Please Try Again. Usage: WRITE"),
        (&[&master[..]], &["FROB"], "error: Invalid Operation! Please Try Again. Usage: READ"),
        (
            &down[..],
            &["--request-timeout", "100ms", "READ", "k"],
            "error: NOT_EXECUTED no master answers (127.0.0.1:",
        ),
    ] {
        let output = run(client(masters, words), b"");
        assert!(text(&output.stderr).starts_with(begin), "{words:?}: {}", text(&output.stderr));
        assert_one_line(&output.stderr);
        assert_eq!((output.stdout, output.status.code()), (Vec::new(), Some(2)), "{words:?}");
    }
}

#[test]
fn a_bad_flag_is_named_and_help_is_shown() {
    for program in [env!("CARGO_BIN_EXE_dsm-client"), env!("CARGO_BIN_EXE_dsm-cluster")] {
        is_refused(
            program,
            &["--request-timeout", "soon"],
            "error: invalid value 'soon' for '--request-timeout",
        );
        is_refused(program, &["--request-time", "1s"], "error: unexpected argument '--request-time' found; ");
        is_refused(
            program,
            &["--request-timeout"],
            "error: a value is required for '--request-timeout <DURATION>'",
        );
        let mut help = Command::new(program);
        help.arg("--help");
        let output = run(help, b"");
        assert!(text(&output.stdout).contains("[default: 2s]"), "{}", text(&output.stdout));
        for variable in ["DSM_REQUEST_TIMEOUT", "DSM_HISTORY"] {
            assert!(text(&output.stdout).contains(variable), "{}", text(&output.stdout));
        }
        assert_eq!((output.stderr, output.status.code()), (Vec::new(), Some(0)));
    }
    let cluster = env!("CARGO_BIN_EXE_dsm-cluster");
    is_refused(
        cluster,
        &["--request-time", "1s"],
        "error: unexpected argument '--request-time' found; tip: a similar argument exists: '--request-timeout'; see \
         dsm-cluster --help\n",
    );
    is_refused(
        cluster,
        &["--port", "7", "--backup-port", "7"],
        "error: --port and --backup-port are the same; see dsm-cluster --help\n",
    );
    // This must fail before anything is started.
    is_refused(
        cluster,
        &["--", "--no-such-flag"],
        "error: unexpected argument '--no-such-flag' found; see dsm-master --help\n",
    );
    let log = env!("CARGO_BIN_EXE_dsm-log");
    is_refused(
        log,
        &["check", "--crash", "loud", "x"],
        "error: invalid value 'loud' for '--crash <CRASH>' [possible",
    );
    is_refused(log, &["check"], "error: the following required arguments were not provided: <FILE>; see ");
}

/// Checks that the program names the wrong flag on one line, and ends with 2.
fn is_refused(program: &str, flags: &[&str], begin: &str) {
    let mut command = Command::new(program);
    command.args(flags);
    let output = run(command, b"");
    assert!(text(&output.stderr).starts_with(begin), "{flags:?}: {}", text(&output.stderr));
    assert_one_line(&output.stderr);
    assert_eq!((output.stdout, output.status.code()), (Vec::new(), Some(2)), "{flags:?}");
}

#[test]
fn the_prompts_take_values_as_long_as_the_masters_do() {
    let long = vec![b'x'; 17 << 20];
    let script = [b"WRITE k ", &long[..], b"\nREAD k\n"].concat();
    let expected = [b"WRITE_DONE\nValue for key k = ", &long[..], b"\n"].concat();
    let master = small_master(&Map::default());
    let flags = ["--max-value", "18MiB", "--request-timeout", "60s"];
    let output = run(client(&[&master], &flags), &script);
    assert!(output.stdout == expected, "{:.200}", String::from_utf8_lossy(&output.stdout));

    let data = tempfile::tempdir().unwrap();
    let mut command = cluster(data.path());
    command.args(["--request-timeout", "60s", "--", "--max-value", "18MiB", "--ack-timeout", "60s"]);
    let output = run(command, &script);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout.ends_with(&expected), "{:.500} {told}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_signal_ends_the_waiting_client_with_success() {
    let master = small_master(&Map::default());
    for name in ["TERM", "INT"] {
        let mut child =
            client(&[&master], &["--prompt"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut shown = vec![0; "Connected to Master Server!!\n[".len()];
        output.read_exact(&mut shown).unwrap();
        signal(name, child.id());
        assert_eq!(wait(&mut child), Some(0), "SIG{name}");
    }
}

fn signal(name: &str, pid: u32) {
    let signal = match name {
        "INT" => Signal::INT,
        "TERM" => Signal::TERM,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        other => panic!("no test sends SIG{other}"),
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, signal).expect("it runs");
}

/// The exit code, or `None` after a signal.
fn wait(child: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    panic!("still running after {PATIENCE:?}");
}

fn cluster(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-cluster"));
    command.args(["--port", "0", "--backup-port", "0", "--data"]).arg(data);
    command
}

#[test]
fn a_second_cluster_on_the_same_data_is_a_clear_error() {
    let data = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(data.path().join("cluster.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let output = run(cluster(data.path()), b"");
    assert!(text(&output.stderr).starts_with("error: a cluster is running on "), "{}", text(&output.stderr));
    assert_one_line(&output.stderr);
    assert_eq!((output.stdout, output.status.code()), (Vec::new(), Some(1)));
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let data = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-cluster"));
    command.arg("--data").arg(data.path()).arg("--port").arg(port.to_string());
    let output = run(command, b"");
    let expected = format!("error: port {port} is in use by another program; choose another with --port\n");
    assert_eq!(text(&output.stderr), expected);
    assert_eq!(output.status.code(), Some(1));
}

/// `dsm-cluster` with its prompt's input held open.
struct RunningCluster {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    pids: Vec<u32>,
}

impl RunningCluster {
    /// Starts a cluster with 3 slaves and reads its table.
    fn start(data: &Path) -> RunningCluster {
        let mut child = cluster(data).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let pids = (0..6).map(|_| read_line(&mut output)).filter_map(|line| pid_of(&line)).collect();
        let running = RunningCluster { child, output, pids };
        assert_eq!(running.pids.len(), 5, "a primary, a backup, three slaves");
        running
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        read_line(&mut self.output)
    }

    fn assert_no_child_is_left(&self) {
        let begun = Instant::now();
        while self.pids.iter().any(|pid| is_alive(*pid)) {
            assert!(begun.elapsed() < PATIENCE, "children are left: {:?}", self.pids);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for RunningCluster {
    fn drop(&mut self) {
        // In most tests it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_line(output: &mut impl io::BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// The pid in a row of the table.
fn pid_of(row: &str) -> Option<u32> {
    let row = row.strip_prefix("slave ").unwrap_or(row);
    row.split_whitespace().nth(1)?.parse().ok()
}

/// Whether the process runs, and is not a zombie.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_cluster_answers_what_is_piped_into_it() {
    let data = tempfile::tempdir().unwrap();
    let output = run(cluster(data.path()), b"WRITE a one two\nREAD a\n");
    let lines: Vec<_> = text(&output.stdout).lines().collect();
    assert!(lines[0].starts_with("ROLE") && lines[1].starts_with("primary"), "{lines:?}");
    assert_eq!(lines[6..], ["WRITE_DONE", "Value for key a = one two"]);
    assert_eq!(output.status.code(), Some(0));
    // What it wrote is in the log of the next cluster.
    let output = run(cluster(data.path()), b"READ a\n");
    assert_eq!(text(&output.stdout).lines().last(), Some("Value for key a = one two"));
}

#[test]
fn a_cluster_goes_on_when_its_primary_is_killed_and_takes_it_back() {
    let data = tempfile::tempdir().unwrap();
    let mut cluster = RunningCluster::start(data.path());
    assert_eq!(cluster.ask("WRITE a 1"), "WRITE_DONE");
    assert_eq!(cluster.ask("kill primary"), "primary killed");
    assert_eq!(cluster.ask("READ a"), "Value for key a = 1");
    assert_eq!(cluster.ask("WRITE b 2"), "WRITE_DONE");
    assert_eq!(cluster.ask("kill primary"), "primary is not running; \"restart primary\" starts it");
    let restarted = cluster.ask("restart primary");
    assert!(restarted.starts_with("primary restarted (pid "), "{restarted}");
    assert_eq!(cluster.ask("READ b"), "Value for key b = 2");
    assert_eq!(cluster.ask("pause slave 2"), "slave 2 paused");
    assert_eq!(cluster.ask("continue slave 2"), "slave 2 continued");
    for action in ["kill", "restart", "pause", "continue"] {
        let told = cluster.ask(&format!("{action} slave 9"));
        assert_eq!(told, "there is no slave 9; there are slaves 1 to 3", "{action}");
    }
    assert_eq!(cluster.ask("kill"), "kill: name one of: primary, backup, slave N");
    let header = cluster.ask("status");
    assert!(header.contains("STATE"), "{header}");
    let rows: Vec<_> = (0..6).map(|_| read_line(&mut cluster.output)).collect();
    assert!(rows[..5].iter().all(|row| row.contains(" alive ")), "{rows:?}");
    assert!(rows[5].starts_with("store: "), "{rows:?}");
    cluster.pids.push(pid_of(&rows[0]).unwrap());
    assert_eq!(cluster.ask("EXIT"), "Exiting Client...");
    assert_eq!(wait(&mut cluster.child), Some(0));
    cluster.assert_no_child_is_left();
}

#[test]
fn a_cluster_leaves_no_child_behind_however_it_ends() {
    type End = fn(&mut RunningCluster);
    let ends: [(&str, Option<i32>, End); 5] = [
        ("end of input", Some(0), |cluster| drop(cluster.child.stdin.take())),
        ("SIGTERM", Some(0), |cluster| signal("TERM", cluster.child.id())),
        ("SIGINT", Some(0), |cluster| signal("INT", cluster.child.id())),
        ("SIGHUP", Some(0), |cluster| signal("HUP", cluster.child.id())),
        ("SIGKILL", None, |cluster| signal("KILL", cluster.child.id())),
    ];
    for (name, code, end) in ends {
        if let ("SIGHUP", Err(why)) = (name, hears_hangups()) {
            skip(a_cluster_leaves_no_child_behind_however_it_ends, name, &why);
            continue;
        }
        let data = tempfile::tempdir().unwrap();
        let mut cluster = RunningCluster::start(data.path());
        end(&mut cluster);
        assert_eq!(wait(&mut cluster.child), code, "{name}");
        cluster.assert_no_child_is_left();
    }
}

#[test]
fn a_cluster_without_input_serves_until_a_signal_and_outlives_a_hangup_that_is_ignored() {
    let data = tempfile::tempdir().unwrap();
    // As under nohup; systemd gives no input, either.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_dsm-cluster")]);
    shell.args(cluster(data.path()).get_args());
    let mut child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let table: Vec<String> = (0..6).map(|_| read_line(&mut output)).collect();
    let pids = table.iter().filter_map(|line| pid_of(line)).collect();
    let mut running = RunningCluster { child, output, pids };
    assert!(read_line(&mut running.output).contains("serving until SIGINT or SIGTERM"));
    let primary = table[1].split_whitespace().nth(2).expect("an address").to_owned();
    for (pid, name) in [(running.child.id(), "HUP"), (running.pids[0], "HUP"), (running.pids[2], "HUP")] {
        signal(name, pid);
    }
    let written = run(client(&[&primary], &["WRITE", "a", "1"]), b"");
    assert_eq!(text(&written.stdout), "WRITE_DONE\n", "{}", text(&written.stderr));
    // Its report of a death shows that it still watches the processes.
    signal("KILL", running.pids[4]);
    assert!(read_line(&mut running.output).starts_with("slave 3 ended"));
    signal("TERM", running.child.id());
    assert_eq!(wait(&mut running.child), Some(0));
    running.assert_no_child_is_left();
}

#[test]
fn a_cluster_that_ends_because_nothing_was_piped_in_says_so() {
    let data = tempfile::tempdir().unwrap();
    let output = run(cluster(data.path()), b"");
    assert_eq!(output.status.code(), Some(0));
    let told = text(&output.stderr);
    assert!(
        told.contains("standard input has ended without an operation") && told.lines().count() == 1,
        "{told}"
    );
    // With operations on its input, it has done what was asked.
    let output = run(cluster(data.path()), b"WRITE a b\n");
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
}

#[test]
fn a_cluster_reports_a_death_that_it_did_not_cause() {
    let data = tempfile::tempdir().unwrap();
    let mut cluster = RunningCluster::start(data.path());
    signal("KILL", cluster.pids[4]);
    let notice = read_line(&mut cluster.output);
    assert!(notice.starts_with("slave 3 ended (killed by signal 9)"), "{notice}");
    assert_eq!(cluster.ask("WRITE a 1"), "WRITE_DONE");
}

#[test]
fn a_cluster_keeps_its_output_beside_its_log() {
    let data = tempfile::tempdir().unwrap();
    assert_eq!(run(cluster(data.path()), b"").status.code(), Some(0));
    let file = |name: &str| -> PathBuf { data.path().join(name) };
    for name in ["kv_store.log", "primary.out", "backup.out", "slave-1.out", "slave-3.out"] {
        assert!(file(name).exists(), "{name}");
    }
}

/// A full pipe. Nothing reads it while the returned reader lives.
fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    for chunk in [&[b'.'; 4096][..], b"."] {
        while (&writer).write(chunk).is_ok() {}
    }
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

/// A pipe whose reader is gone.
fn broken_pipe() -> io::PipeWriter {
    io::pipe().unwrap().1
}

/// Processes that are killed at the end of the test.
#[derive(Default)]
struct Running(Vec<Child>);

impl Running {
    fn start(&mut self, command: &mut Command) -> usize {
        self.0.push(command.stdin(Stdio::null()).spawn().unwrap());
        self.0.len() - 1
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a client until it succeeds; what it printed.
fn until_done(masters: &[&str], words: &[&str]) -> String {
    let begun = Instant::now();
    loop {
        let output = run(client(masters, words), b"");
        if output.status.success() {
            return text(&output.stdout).trim_end().to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "{words:?}: {}", text(&output.stderr));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_standby_whose_standard_error_takes_nothing_serves_when_the_primary_dies() {
    let data = tempfile::tempdir().unwrap();
    let (primary, backup) = (free_address(), free_address());
    let mut running = Running::default();
    let master = |program: &str, listen: &str, peer: &str| {
        let mut command = Command::new(program);
        command.args(["--listen", listen, "--peer", peer, "--log-level", "trace", "--log"]);
        command.arg(data.path().join("kv_store.log")).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let first = running.start(&mut master(env!("CARGO_BIN_EXE_dsm-master"), &primary, &backup));
    let masters = [&primary[..], &backup[..]];
    let mut slave = Command::new(env!("CARGO_BIN_EXE_dsm-slave"));
    slave.arg("--masters").arg(masters.join(",")).stderr(Stdio::null());
    running.start(&mut slave);
    assert_eq!(until_done(&masters, &["WRITE", "k", "v"]), "WRITE_DONE");
    let (reader, writer) = full_pipe();
    let mut standby = master(env!("CARGO_BIN_EXE_dsm-backup-master"), &backup, &primary);
    let standby = running.start(standby.stderr(writer));
    // The backup can read the value only after the slave has registered there too.
    let begun = Instant::now();
    while !until_done(&masters[1..], &["STATUS"]).contains("dsm_role:standby") {
        assert!(begun.elapsed() < PATIENCE);
    }
    // Lost lines are counted in INFO.
    let lost = |status: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix("log_lines_lost:"));
        line.expect("a field of STATUS").parse().expect("a number")
    };
    assert_eq!(lost(&until_done(&masters[..1], &["STATUS"])), 0, "the other one's lines are taken");
    let address = backup.parse().unwrap();
    let mut connection = Connection::open(address, PATIENCE).unwrap();
    while lost(&until_done(&masters[1..], &["STATUS"])) == 0 {
        assert!(begun.elapsed() < PATIENCE);
        for _ in 0..2000 {
            connection.send(b"GET k\r\n").unwrap();
        }
        for _ in 0..2000 {
            connection.answer().unwrap();
        }
    }
    running.0[first].kill().unwrap();
    running.0[first].wait().unwrap();
    assert_eq!(until_done(&masters[1..], &["READ", "k"]), "v");
    assert_eq!(until_done(&masters[1..], &["WRITE", "k", "w"]), "WRITE_DONE");
    signal("TERM", running.0[standby].id());
    assert_eq!(wait(&mut running.0[standby]), Some(0));
    drop(reader);
}

#[test]
fn a_standard_error_that_fails_changes_no_exit_code() {
    let nowhere = free_address();
    let programs: [(&str, &[&str], i32); 6] = [
        (
            env!("CARGO_BIN_EXE_dsm-client"),
            &["--masters", &nowhere, "--request-timeout", "50ms", "READ", "k"],
            2,
        ),
        (env!("CARGO_BIN_EXE_dsm-client"), &["--no-such-flag"], 2),
        (
            env!("CARGO_BIN_EXE_dsm-master"),
            &["--log", "/no/such/directory/kv_store.log", "--listen", "127.0.0.1:0"],
            1,
        ),
        (env!("CARGO_BIN_EXE_dsm-slave"), &["--masters", "nonsense"], 2),
        (env!("CARGO_BIN_EXE_dsm-log"), &["check", "/no/such/log"], 2),
        (env!("CARGO_BIN_EXE_dsm-cluster"), &["--port", "7", "--backup-port", "7"], 2),
    ];
    for (program, flags, code) in programs {
        let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let (reader, stuck) = full_pipe();
        for (name, error) in
            [("a full disk", full()), ("nobody there", broken_pipe().into()), ("nobody reads", stuck.into())]
        {
            let mut command = Command::new(program);
            let status =
                command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(error).status();
            assert_eq!(status.unwrap().code(), Some(code), "{program} {flags:?} {name}");
        }
        drop(reader);
    }
}

#[test]
fn a_reader_who_has_seen_enough_is_no_error() {
    let master = small_master(&Map::default());
    for words in [&["STATUS"][..], &["WRITE", "k", "v"], &[], &["--prompt"], &["--help"]] {
        let mut command = client(&[&master], words);
        let mut child =
            command.stdin(Stdio::piped()).stdout(broken_pipe()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(b"STATUS\nSTATUS\n");
        let output = child.wait_with_output().unwrap();
        assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)), "{words:?}");
    }
}

#[test]
fn a_variable_is_read_as_people_write_it_and_named_when_it_is_wrong() {
    let with = |program: &str, variable: &str, value: &str, flags: &[&str]| {
        let mut command = Command::new(program);
        command.args(flags).env(variable, value);
        let output = run(command, b"");
        (output.status.code().unwrap(), text(&output.stderr).to_owned())
    };
    let master = env!("CARGO_BIN_EXE_dsm-master");
    // An argument that is checked only after all flags were accepted.
    let log = ["--log", "/no/such/directory/kv_store.log", "--listen", "127.0.0.1:0"];
    for (variable, value) in [
        ("DSM_NO_FAILBACK", "1"),
        ("DSM_NO_FAILBACK", "no"),
        ("DSM_NO_FAILBACK", ""),
        ("DSM_MIN_SLAVES", ""),
        ("DSM_LOG_LEVEL", "warning"),
        // Variables that Kubernetes sets for a Service with the program's name.
        ("DSM_LISTEN", "tcp://10.96.7.1:12345"),
    ] {
        let (code, told) = with(master, variable, value, &log);
        assert_eq!((code, told.contains("/no/such/directory")), (1, true), "{variable}={value}: {told}");
    }
    let (code, told) = with(master, "DSM_NO_FAILBACK", "perhaps", &log);
    assert!(
        told.contains("'perhaps'") && told.contains("--no-failback") && told.contains("DSM_NO_FAILBACK"),
        "{told}"
    );
    assert_eq!(code, 2);
    let (code, told) = with(master, "DSM_LOG_LEVEL", "verbose", &log);
    assert!(
        told.contains("off, error, warn, info, debug and trace") && told.contains("DSM_LOG_LEVEL"),
        "{told}"
    );
    assert_eq!(code, 2);
    // Here the variable must not be blamed.
    let (_, told) = with(master, "DSM_ACK_TIMEOUT", "1s", &["--ack-timeout", "soon"]);
    assert!(told.contains("--ack-timeout") && !told.contains("DSM_ACK_TIMEOUT"), "{told}");
    // RUST_LOG is for all programs; it must not silence this one's errors.
    let data = tempfile::tempdir().unwrap();
    let full = |name: &str| data.path().join(name).display().to_string();
    std::fs::create_dir(full("kv_store.log")).unwrap();
    let (code, told) =
        with(master, "RUST_LOG", "verbose", &["--log", &full("kv_store.log"), "--listen", "127.0.0.1:0"]);
    assert!(told.contains("RUST_LOG is ignored: \"verbose\" is no level"), "{told}");
    assert_eq!(code, 1);
}

#[test]
fn a_cluster_takes_flags_with_one_dash_and_no_variable_of_a_kubernetes_service() {
    let data = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-cluster"));
    command.args(["-backup-port=0", "-slaves", "1", "-port", "0", "-data"]).arg(data.path());
    // The roles inherit it.
    command.env("DSM_LISTEN", "tcp://10.96.7.1:12345").env("DSM_PORT", "tcp://10.96.7.1:12345");
    let output = run(command, b"WRITE a 1\n");
    let lines: Vec<_> = text(&output.stdout).lines().collect();
    assert!(lines[3].starts_with("slave 1"), "{lines:?}");
    assert_eq!((lines[4], lines.len()), ("WRITE_DONE", 5), "{}", text(&output.stderr));
    // Without a flag the port is the default, whatever that variable says.
    let _taken = TcpListener::bind("127.0.0.1:12345");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-cluster"));
    command.args(["--backup-port", "0", "--data"]).arg(data.path()).env("DSM_PORT", "tcp://10.96.7.1:12345");
    let output = run(command, b"");
    assert!(text(&output.stderr).starts_with("error: port 12345 is in use"), "{}", text(&output.stderr));
}

#[test]
fn a_first_master_that_hangs_leaves_time_for_the_second_one() {
    let values = Map::default();
    let serving = small_master(&values);
    // The kernel accepts the connection of a process that hangs, but nothing answers.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs = hanging.local_addr().unwrap().to_string();
    let once = |words: &[&str]| {
        let output = run(client(&[&hangs, &serving], words), b"");
        (text(&output.stdout).to_owned(), text(&output.stderr).to_owned(), output.status.code())
    };
    let done = |line: &str| (format!("{line}\n"), String::new(), Some(0));
    assert_eq!(once(&["WRITE", "k", "v"]), done("WRITE_DONE"));
    assert_eq!(once(&["READ", "k"]), done("v"));
    assert_eq!(once(&["STATUS"]), done("# Replication\ndsm_role:primary"));
    // When no master answers, the error names each of them.
    let also = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = run(client(&[&hangs, &also.local_addr().unwrap().to_string()], &["READ", "k"]), b"");
    assert!(!text(&output.stderr).contains("not tried"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn addresses_are_taken_as_people_type_them() {
    let master = small_master(&Map::default());
    let port = master.rsplit(':').next().unwrap();
    let nobody = free_address();
    for masters in [format!("{nobody}, LocalHost:{port} "), format!("[::1]:{port} ,127.0.0.1:{port}")] {
        let output = run(client(&[&masters], &["WRITE", "k", "v"]), b"");
        assert_eq!(text(&output.stdout), "WRITE_DONE\n", "{masters}: {}", text(&output.stderr));
    }
    let client = env!("CARGO_BIN_EXE_dsm-client");
    let master = env!("CARGO_BIN_EXE_dsm-master");
    let programs: [(&str, &[&str], &str, &str); 5] = [
        (client, &["STATUS"], "--masters", "DSM_MASTERS"),
        (env!("CARGO_BIN_EXE_dsm-slave"), &[], "--masters", "DSM_MASTERS"),
        (master, &[], "--listen", "DSM_LISTEN"),
        (master, &[], "--peer", "DSM_PEER"),
        (env!("CARGO_BIN_EXE_dsm-backup-master"), &[], "--advertise", "DSM_ADVERTISE"),
    ];
    for (program, words, flag, variable) in programs {
        wrong_addresses_are_named(program, words, flag, variable);
    }
}

#[test]
fn a_master_that_is_told_to_be_its_own_peer_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let own = free_address();
    let port = own.rsplit(':').next().unwrap();
    let refused = |flags: &[&str], variable: Option<(&str, &str)>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-master"));
        command.arg("--log").arg(data.path().join("kv_store.log")).args(flags).envs(variable);
        let output = run(command, b"");
        assert_ne!(output.status.code(), Some(0));
        text(&output.stderr).lines().last().unwrap_or_default().to_owned()
    };
    let any = format!("0:{port}");
    let named = format!("localhost:{port}");
    for flags in [["--listen", &own, "--peer", &named], ["--listen", &own, "--peer", &own]] {
        let told = refused(&flags, None);
        assert!(told.contains("give the other master's address with --peer"), "{told}");
    }
    let told = refused(&["--listen", &any, "--advertise", &own, "--peer", &named], None);
    assert!(told.contains("leads to this master itself"), "{told}");
    let told = refused(&["--listen", &any, "--advertise", &own], Some(("DSM_PEER", &own)));
    assert!(told.contains("--advertise and --peer are both") && told.contains("DSM_PEER"), "{told}");
    // A wildcard, however it is written, is not an address at which others could reach it.
    for listen in [any, format!("[::0]:{port}"), format!("0.0.0.0:{port}")] {
        let told = refused(&[], Some(("DSM_LISTEN", &listen)));
        assert!(
            told.contains("is a wildcard: say with --advertise") && told.contains("DSM_LISTEN"),
            "{told}"
        );
    }
}

/// A program at a terminal of its own, by `script`, whose standard input is what is typed.
struct AtTerminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl AtTerminal {
    fn start(command: &Command) -> AtTerminal {
        let quote = |word: &std::ffi::OsStr| format!("'{}'", word.to_str().unwrap());
        let words: Vec<_> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect();
        let mut script = Command::new("script");
        // Without a shell in between: some shells die of a Ctrl+C that their child has survived.
        let alone = format!("exec {}", words.join(" "));
        script.args(["--quiet", "--return", "--command", &alone, "/dev/null"]);
        script.env("DSM_HISTORY", "/dev/null").env("TERM", "xterm").env("SHELL", "/bin/sh");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut output, into) = (child.stdout.take().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut chunk) {
                into.lock().unwrap().extend_from_slice(&chunk[..read]);
            }
        });
        AtTerminal { child, shown }
    }

    fn type_in(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until a text was shown this many times.
    fn wait_for(&self, text: &str, times: usize) {
        let begun = Instant::now();
        while self.shown().matches(text).count() < times {
            assert!(begun.elapsed() < PATIENCE, "{text:?} is not shown {times} times: {}", self.shown());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a full screen begins and ends with: another screen without a cursor, and the one before.
const SCREEN: [&str; 2] = ["\u{1b}[?1049h\u{1b}[?25l", "\u{1b}[?25h\u{1b}[?1049l"];

#[test]
fn top_shows_the_state_anew_and_gives_the_terminal_back_however_it_ends() {
    let master = small_master(&Map::default());
    let output = run(client(&[&master], &["TOP"]), b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        output.stderr.starts_with(b"error: TOP needs a terminal"),
        "{:?}",
        String::from_utf8_lossy(&output.stderr)
    );
    if let Err(why) = need_program("script", &["--version"], "bsdutils") {
        return skip(top_shows_the_state_anew_and_gives_the_terminal_back_however_it_ends, "", &why);
    }
    for ends_by in ["q", CTRL_C, "SIGTERM"] {
        let values = Map::default();
        let master = small_master(&values);
        let mut terminal = AtTerminal::start(&client(&[&master], &["top"]));
        terminal.wait_for("state     healthy", 1);
        let degraded = "no standby \u{1b}[31m is connected";
        values.lock().unwrap().insert(b"degraded".to_vec(), degraded.into());
        // What a name could do to the terminal is left out.
        terminal.wait_for("state     degraded: no standby [31m is connected", 2);
        assert_eq!(terminal.shown().matches(SCREEN[0]).count(), 1);
        assert!(!terminal.shown().contains(SCREEN[1]), "{}", terminal.shown());
        if ends_by == "SIGTERM" {
            let children = format!("/proc/{0}/task/{0}/children", terminal.child.id());
            let client = std::fs::read_to_string(children).unwrap();
            let client = rustix::process::Pid::from_raw(client.trim().parse().unwrap()).unwrap();
            rustix::process::kill_process(client, rustix::process::Signal::TERM).unwrap();
        } else {
            terminal.type_in(ends_by);
        }
        assert_eq!(wait(&mut terminal.child), Some(0), "{ends_by}");
        terminal.wait_for(SCREEN[1], 1);
    }
}

const CTRL_C: &str = "\u{3}";
const CTRL_D: &str = "\u{4}";
const PROMPT: &str = "(READ/WRITE/EXIT): ";

#[test]
fn what_is_pasted_or_typed_ahead_is_read_line_by_line() {
    if let Err(why) = need_program("script", &["--version"], "bsdutils") {
        return skip(what_is_pasted_or_typed_ahead_is_read_line_by_line, "", &why);
    }
    let values = Map::default();
    let master = small_master(&values);
    let mut terminal = AtTerminal::start(&client(&[&master], &[]));
    terminal.wait_for(PROMPT, 1);
    let lines: String = (0..100).map(|number| format!("WRITE key{number} {}\r", "x".repeat(50))).collect();
    terminal.type_in(&lines);
    terminal.wait_for("WRITE_DONE", 100);
    assert_eq!(values.lock().unwrap().len(), 100);
    // While a command waits.
    terminal.type_in("READ slow\r");
    let begun = Instant::now();
    while !values.lock().unwrap().contains_key(&b"asked"[..]) {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
    terminal.type_in("WRITE ahead 1\rREAD ahead\r");
    terminal.wait_for("Value for key ahead = 1", 1);
    terminal.type_in(CTRL_D);
    terminal.wait_for("Exiting Client...", 1);
    assert_eq!(wait(&mut terminal.child), Some(0));
}

#[test]
fn ctrl_c_clears_the_line_and_ends_neither_the_client_nor_a_cluster() {
    if let Err(why) = need_program("script", &["--version"], "bsdutils") {
        return skip(ctrl_c_clears_the_line_and_ends_neither_the_client_nor_a_cluster, "", &why);
    }
    let hint = "Ctrl+C clears the line; EXIT or Ctrl+D leaves.";
    let values = Map::default();
    let master = small_master(&values);
    let data = tempfile::tempdir().unwrap();
    for (name, command) in [("client", client(&[&master], &[])), ("cluster", cluster(data.path()))] {
        let mut terminal = AtTerminal::start(&command);
        terminal.wait_for(PROMPT, 1);
        terminal.type_in(&format!("WRITE half a line{CTRL_C}"));
        terminal.wait_for(hint, 1);
        terminal.type_in("WRITE\r");
        terminal.wait_for("Enter the key you want to perform the operation on: ", 1);
        terminal.type_in(CTRL_C);
        terminal.wait_for(hint, 2);
        if name == "client" {
            // While a command waits: it applies to the next line.
            terminal.type_in("READ slow\r");
            let begun = Instant::now();
            while !values.lock().unwrap().contains_key(&b"asked"[..]) {
                assert!(begun.elapsed() < PATIENCE);
                std::thread::sleep(Duration::from_millis(2));
            }
            terminal.type_in(CTRL_C);
            terminal.wait_for(hint, 3);
        }
        terminal.type_in("WRITE \"a key\" 'a value'\r");
        terminal.wait_for("WRITE_DONE", 1);
        terminal.type_in("READ 'a key'\rREAD half\rEXIT\r");
        terminal.wait_for("Value for key a key = a value", 1);
        terminal.wait_for("Key half not found", 1);
        terminal.wait_for("Exiting Client...", 1);
        assert_eq!(wait(&mut terminal.child), Some(0), "{name}: {}", terminal.shown());
    }
}

#[test]
fn a_history_that_may_not_grow_ends_no_prompt() {
    if let Err(why) = need_program("script", &["--version"], "bsdutils") {
        return skip(a_history_that_may_not_grow_ends_no_prompt, "", &why);
    }
    let master = small_master(&Map::default());
    let directory = tempfile::tempdir().unwrap();
    let history = directory.path().join("history");
    let mut limited = Command::new("sh");
    let with = format!("ulimit -f 1; DSM_HISTORY={} exec \"$0\" \"$@\"", history.display());
    limited.arg("-c").arg(with).arg(env!("CARGO_BIN_EXE_dsm-client")).args(["--masters", &master]);
    let mut terminal = AtTerminal::start(&limited);
    terminal.wait_for(PROMPT, 1);
    for number in 1..=20 {
        terminal.type_in(&format!("WRITE key{number} {}\r", "x".repeat(40)));
        terminal.wait_for("WRITE_DONE", number);
    }
    terminal.type_in("EXIT\r");
    terminal.wait_for("Exiting Client...", 1);
    assert_eq!(wait(&mut terminal.child), Some(0), "{}", terminal.shown());
    assert_eq!(std::fs::metadata(&history).unwrap().len(), 512, "it came to the limit");
}

#[test]
fn the_prompt_and_status_say_which_master_serves_or_that_none_does() {
    let down = free_address();
    let output = run(client(&[&down], &["--prompt", "--request-timeout", "50ms"]), b"READ a\n");
    let shown = text(&output.stdout);
    assert!(shown.contains("[NO MASTER] Enter the Operation") && !shown.contains("[PRIMARY]"), "{shown}");
    let data = tempfile::tempdir().unwrap();
    let output = run(cluster(data.path()), b"status\nkill primary\nREAD a\nstatus\nkill backup\nstatus\n");
    let told: Vec<_> = text(&output.stdout).lines().filter(|line| line.starts_with("store: ")).collect();
    assert!(told[0].starts_with("store: the primary serves, epoch:1"), "{told:?}");
    assert!(told[1].starts_with("store: the backup serves, epoch:2"), "{told:?}");
    assert_eq!(told[2..], ["store: no master serves"]);
}

#[test]
fn each_prompt_says_which_master_serves_and_does_not_wait() {
    if let Err(why) = need_program("script", &["--version"], "bsdutils") {
        return skip(each_prompt_says_which_master_serves_and_does_not_wait, "", &why);
    }
    let begins = |label: &str| format!("[{label}] Enter the Operation");
    let values = Map::default();
    let master = small_master(&values);
    let mut terminal = AtTerminal::start(&client(&[&master], &["--request-timeout", "60s"]));
    terminal.wait_for(&begins("PRIMARY"), 1);
    // A master that hangs is noticed without an operation that waits for it, and earlier than by any time-out.
    values.lock().unwrap().insert(b"hangs".to_vec(), Vec::new());
    let begun = Instant::now();
    for times in 1..=5 {
        terminal.type_in("\r");
        terminal.wait_for(&begins("PRIMARY?"), times);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "five prompts took {:?}", begun.elapsed());
    values.lock().unwrap().clear();
    terminal.type_in("\r");
    terminal.wait_for(&begins("PRIMARY"), 2);

    // Masters that die and come back, seen by an idle client.
    let data = tempfile::tempdir().unwrap();
    let mut cluster = AtTerminal::start(&cluster(data.path()));
    cluster.wait_for(&begins("PRIMARY"), 1);
    let shown = cluster.shown();
    let rows = shown.lines().filter(|line| line.starts_with("primary ") || line.starts_with("backup "));
    let masters: Vec<_> = rows.filter_map(|row| row.split_whitespace().nth(2)).collect();
    assert_eq!(masters.len(), 2, "{shown}");
    let mut terminal = AtTerminal::start(&client(&masters, &[]));
    terminal.wait_for(&begins("PRIMARY"), 1);
    cluster.type_in("kill primary\r");
    cluster.wait_for(&begins("BACKUP"), 1);
    terminal.type_in("\r");
    terminal.wait_for(&begins("BACKUP"), 1);
    cluster.type_in("kill backup\r");
    cluster.wait_for(&begins("NO MASTER"), 1);
    let begun = Instant::now();
    for times in 1..=5 {
        terminal.type_in("\r");
        terminal.wait_for(&begins("NO MASTER"), times);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "five prompts took {:?}", begun.elapsed());
    cluster.type_in("restart primary\r");
    cluster.wait_for("primary restarted", 1);
    cluster.wait_for(&begins("PRIMARY"), 2);
    // An idle client tries again by itself, and each prompt asks.
    let begun = Instant::now();
    while terminal.shown().matches(&begins("PRIMARY")).count() < 2 {
        assert!(begun.elapsed() < PATIENCE, "{}", terminal.shown());
        let prompts = terminal.shown().matches(PROMPT).count();
        terminal.type_in("\r");
        terminal.wait_for(PROMPT, prompts + 1);
    }
}

#[test]
fn help_and_exit_are_operations_too() {
    let nobody = free_address();
    let output = run(client(&[&nobody], &["HELP"]), b"");
    assert!(text(&output.stdout).starts_with("READ <key>"), "{}", text(&output.stdout));
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
    let output = run(client(&[&nobody], &["exit"]), b"");
    assert_eq!((text(&output.stdout), output.status.code()), ("Exiting Client...\n", Some(0)));
}
