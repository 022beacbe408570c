//! Programs and libraries that people use with Redis, against both masters: they connect, set, get and leave, without
//! any warning. What is missing on the machine is reported as skipped; `.ci/run` installs it.

mod common;

use common::cluster::{Node, Process, Setup, TestCluster, MASTERS};
use common::skip::{need_program, skip, Lack};
use common::{seconds, wait_for};
use redis::Commands as _;
use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// A program with empty input, which is killed after a minute.
fn program(name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60", name]).stdin(Stdio::null());
    command
}

fn redis_cli(cluster: &TestCluster, master: Node, arguments: &[&str]) -> Command {
    let mut command = program("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", &cluster.address(master).port().to_string()]).args(arguments);
    command
}

/// Runs a program that must succeed and print nothing on standard error; gives its standard output.
fn said(mut command: Command) -> String {
    let output = command.output().expect("timeout is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    assert_eq!(errors, "", "{command:?} says {text}");
    text
}

/// The same with a text for standard input.
fn said_to(cluster: &TestCluster, mut command: Command, input: &str) -> String {
    let path = cluster.dir().join("input");
    std::fs::write(&path, input).expect("a file");
    command.stdin(File::open(&path).expect("a file"));
    said(command)
}

#[test]
fn redis_cli_sets_and_gets_with_one_shot_commands() {
    if let Err(lack) = need_program("redis-cli", &["--version"], "redis-tools") {
        return skip(redis_cli_sets_and_gets_with_one_shot_commands, "", &lack);
    }
    let cluster = Setup::slaves(2).beside_others().start();
    for master in MASTERS {
        for flags in [&[][..], &["-2"], &["-3"]] {
            let run = |words: &[&str]| said(redis_cli(&cluster, master, &[flags, words].concat()));
            assert_eq!(run(&["SET", "k", "a value"]), "OK\n");
            assert_eq!(run(&["GET", "k"]), "a value\n");
            assert_eq!(run(&["MSET", "a", "1", "b", "2"]), "OK\n");
            assert_eq!(run(&["MGET", "a", "nothing", "b"]), "1\n\n2\n");
            assert_eq!(run(&["--no-raw", "GET", "nothing"]), "(nil)\n");
            assert_eq!(run(&["EXISTS", "k", "a"]), "2\n");
            assert_eq!(run(&["DBSIZE"]), "3\n");
            assert_eq!(run(&["DEL", "k", "a", "b"]), "3\n");
            assert_eq!(run(&["-n", "0", "PING"]), "PONG\n");
            assert!(run(&["INFO", "replication"]).starts_with("# Replication"));
            assert_eq!(
                run(&["NOSUCH"]).trim_end(),
                "ERR unknown command 'NOSUCH', with args beginning with:"
            );
        }
    }
}

#[test]
fn redis_cli_reads_commands_from_a_pipe() {
    if let Err(lack) = need_program("redis-cli", &["--version"], "redis-tools") {
        return skip(redis_cli_reads_commands_from_a_pipe, "", &lack);
    }
    let cluster = Setup::slaves(2).beside_others().start();
    for master in MASTERS {
        // It handles QUIT itself.
        let script = "SET k 'a value'\nGET k\nDEL k\n\nPING\nQUIT\nPING\n";
        let answers = said_to(&cluster, redis_cli(&cluster, master, &[]), script);
        assert_eq!(answers, "OK\na value\n1\nPONG\n", "{master:?}");
    }
}

#[test]
fn redis_cli_inserts_in_bulk() {
    if let Err(lack) = need_program("redis-cli", &["--version"], "redis-tools") {
        return skip(redis_cli_inserts_in_bulk, "", &lack);
    }
    let cluster = Setup::slaves(2).beside_others().start();
    for (round, master) in MASTERS.into_iter().enumerate() {
        let mut requests = String::new();
        for number in 0..2000 {
            requests.push_str(&format!("SET bulk-{round}-{number} {number}\r\n"));
        }
        let told = said_to(&cluster, redis_cli(&cluster, master, &["--pipe"]), &requests);
        assert!(told.ends_with("errors: 0, replies: 2000\n"), "{master:?}: {told}");
        assert_eq!(said(redis_cli(&cluster, master, &["GET", &format!("bulk-{round}-1999")])), "1999\n");
        assert_eq!(said(redis_cli(&cluster, master, &["DBSIZE"])), format!("{}\n", 2000 * (round + 1)));
    }
}

#[test]
fn redis_cli_talks_at_a_terminal() {
    let both = need_program("redis-cli", &["--version"], "redis-tools")
        .and_then(|()| need_program("script", &["--version"], "bsdutils"));
    if let Err(lack) = both {
        return skip(redis_cli_talks_at_a_terminal, "", &lack);
    }
    let cluster = Setup::slaves(2).beside_others().start();
    for master in MASTERS {
        let mut terminal = Terminal::start(&cluster, master);
        terminal.expect_prompt();
        terminal.send("SET k \"a value\"", "OK");
        terminal.send("GET k", "\"a value\"");
        terminal.send("GET nothing", "(nil)");
        terminal.send("SELECT 1", "(error) ERR DB index is out of range");
        // A command that Redis does not have: the program knows it from COMMAND DOCS.
        terminal.send("HELP WRITE", "  \x1b[33msummary:\x1b[0m Set the string value of a key");
        terminal.send("HELLO 3", "1# \"server\" => \"dsm\"");
        terminal.send("CLIENT GETNAME", "(nil)");
        terminal.send("DEL k", "(integer) 1");
        terminal.type_in("QUIT\r");
        let all = terminal.ended();
        let lower = all.to_lowercase();
        assert!(!lower.contains("warning") && !lower.contains("could not"), "{master:?}: {all}");
    }
}

/// redis-cli at a pseudo-terminal.
struct Terminal {
    process: Process,
    output: std::path::PathBuf,
    prompt: String,
    seen: usize,
}

impl Terminal {
    fn start(cluster: &TestCluster, master: Node) -> Terminal {
        let output = cluster.dir().join("terminal");
        // With a size of zero, redis-cli would ask the terminal where its cursor is.
        let port = cluster.address(master).port();
        let dialog = format!("stty cols 200 rows 50; exec redis-cli -h 127.0.0.1 -p {port}");
        let mut command = program("script");
        command
            .args(["-qec", &dialog, "/dev/null"])
            .env("HOME", cluster.dir())
            .env("TERM", "xterm")
            .env("REDISCLI_HISTFILE", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(File::create(&output).expect("a file"))
            .stderr(Stdio::inherit());
        let process = Process(command.spawn().expect("timeout is installed"));
        Terminal { process, output, prompt: format!("127.0.0.1:{port}> "), seen: 0 }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).expect("a file")).into_owned()
    }

    /// Waits for a text after those that were already found.
    fn expect(&mut self, wanted: &str) {
        let end = wait_for(&format!("the terminal shows {wanted:?}"), seconds(30), || {
            let text = self.text();
            let found = text.get(self.seen..).and_then(|new| new.find(wanted));
            if found.is_none() && self.process.0.try_wait().expect("a child can be asked").is_some() {
                panic!("redis-cli ended before it showed {wanted:?}: {text}");
            }
            found.map(|at| self.seen + at + wanted.len())
        });
        self.seen = end;
    }

    fn type_in(&mut self, keys: &str) {
        let stdin = self.process.0.stdin.as_mut().expect("piped");
        stdin.write_all(keys.as_bytes()).expect("it reads");
    }

    /// Types a line, and waits for its answer and the next prompt.
    fn send(&mut self, line: &str, answer: &str) {
        self.type_in(&format!("{line}\r"));
        // The line is shown while it is typed; the answer begins a line.
        self.expect(&format!("\n{answer}"));
        self.expect_prompt();
    }

    /// Waits for the prompt: anything typed before it is discarded.
    fn expect_prompt(&mut self) {
        self.expect(&self.prompt.clone());
    }

    /// Waits for the end; gives everything that was shown.
    fn ended(&mut self) -> String {
        let status = wait_for("redis-cli ends", seconds(30), || {
            self.process.0.try_wait().expect("a child can be asked")
        });
        assert!(status.success(), "{status}: {}", self.text());
        self.text()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("==== the terminal:\n{}", self.text().escape_debug());
        }
    }
}

#[test]
fn redis_benchmark_finds_nothing_to_complain_about() {
    if let Err(lack) = need_program("redis-benchmark", &["--version"], "redis-tools") {
        return skip(redis_benchmark_finds_nothing_to_complain_about, "", &lack);
    }
    let cluster = Setup::slaves(3).beside_others().start();
    for master in MASTERS {
        for protocol in [&[][..], &["-3"]] {
            let mut command = program("redis-benchmark");
            let port = cluster.address(master).port().to_string();
            command.args(["-h", "127.0.0.1", "-p", &port, "-t", "ping,get,set,mset"]);
            command.args(["-P", "16", "-n", "5000", "-c", "20", "-r", "1000", "-q"]).args(protocol);
            let text = said(command);
            let lower = text.to_lowercase();
            for bad in ["error", "warn", "fail", "could not"] {
                assert!(!lower.contains(bad), "{master:?}: {text}");
            }
            for part in ["PING_INLINE: ", "PING_MBULK: ", "SET: ", "GET: ", "MSET (10 keys): "] {
                assert!(text.contains(part), "{part} is missing: {text}");
            }
        }
    }
    let keys = cluster.info(Node::Master).expect("INFO").number("keys");
    assert!((1..=1000).contains(&keys), "{keys} of 1000 keys");
}

/// A typical use of redis-py. Each warning is an error, and each log line is printed.
const PYTHON: &str = r#"
import inspect, logging, sys, warnings
warnings.simplefilter("error")
logging.basicConfig(level=logging.WARNING)
import redis
port = int(sys.argv[1])
knows_protocols = "protocol" in inspect.signature(redis.Redis.__init__).parameters
for options in [{}, {"protocol": 2}, {"protocol": 3}] if knows_protocols else [{}]:
    r = redis.Redis(host="127.0.0.1", port=port, decode_responses=True, client_name="a-name", socket_timeout=20, **options)
    assert r.ping() is True
    assert r.client_getname() == "a-name"
    assert r.set("k", "a value") is True
    assert r.get("k") == "a value"
    assert r.get("nothing") is None
    assert r.mset({"a": 1, "b": "2"}) is True
    assert r.mget("a", "nothing", "b") == ["1", None, "2"]
    assert r.exists("k", "nothing") == 1
    assert r.dbsize() == 3
    assert r.echo("x") == "x"
    replication = r.info("replication")
    assert (replication["role"], replication["dsm_role"]) in (("master", "primary"), ("slave", "standby"))
    assert r.info()["redis_version"] >= "7.4.0" and r.info()["loading"] == 0
    # A standby replays a little later.
    assert replication["role"] == "slave" or r.info("keyspace")["db0"]["keys"] == 3
    everything = r.info("everything")
    for field in ["used_memory", "used_memory_rss", "total_commands_processed", "connected_clients"]:
        assert everything[field] > 0, (field, everything)
    # Of a process that is young the kernel counts one of them alone.
    assert everything["used_cpu_user"] + everything["used_cpu_sys"] > 0, everything
    assert everything["used_memory"] <= everything["used_memory_rss"], everything
    role = r.execute_command("ROLE")
    assert role[0] == replication["role"], role
    if role[0] == "slave":
        assert role[1:4] == [replication["master_host"], replication["master_port"], "connected"], role
    [one] = [client for client in r.client_list() if int(client["id"]) == r.client_id()]
    assert (one["name"], one["flags"], one["db"], one["user"]) == ("a-name", "N", "0", "default"), one
    assert one["addr"] and one["laddr"].endswith(":%d" % port) and int(one["fd"]) > 2, one
    assert r.execute_command("COMMAND GETKEYS", "MSET", "a", 1, "b", 2) == ["a", "b"]
    assert r.config_get("maxmemory") == {"maxmemory": "0"}
    assert r.command_count() > 10
    with r.pipeline(transaction=False) as pipe:
        for number in range(100):
            pipe.set("k", number)
            pipe.get("k")
        assert pipe.execute() == [x for number in range(100) for x in (True, str(number))]
    try:
        r.execute_command("NOSUCH", "x")
        raise SystemExit("an unknown command was taken")
    except redis.ResponseError as error:
        assert "unknown command" in str(error), error
    assert r.delete("k", "a", "b", "nothing") == 3
    r.close()
print("redis-py", redis.__version__)
"#;

#[test]
fn redis_py_connects_sets_and_gets() {
    let has_it = |python: &&str| {
        let mut probe = program(python);
        probe.args(["-c", "import redis"]).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().expect("timeout is installed").success()
    };
    // Another Python may precede the system's in PATH; only the system's has the packages.
    let pythons: Vec<&str> = ["python3", "/usr/bin/python3"].into_iter().filter(has_it).collect();
    if pythons.is_empty() {
        let why = "no python3 has redis-py; Debian has it in python3-redis";
        return skip(redis_py_connects_sets_and_gets, "", &Lack::Missing(why.into()));
    }
    let cluster = Setup::slaves(2).beside_others().start();
    for python in pythons {
        for master in MASTERS {
            let mut command = program(python);
            command.args(["-c", PYTHON, &cluster.address(master).port().to_string()]);
            let text = said(command);
            assert!(text.starts_with("redis-py "), "{text}");
            print!("{text}");
        }
    }
}

#[test]
fn redis_rs_connects_sets_and_gets() {
    let cluster = Setup::slaves(2).beside_others().start();
    for master in MASTERS {
        for protocol in ["resp2", "resp3"] {
            let url = format!("redis://{}/0?protocol={protocol}", cluster.address(master));
            let client = redis::Client::open(url).expect("an address");
            let mut connection = client.get_connection_with_timeout(seconds(20)).expect("a connection");
            connection.set_read_timeout(Some(seconds(20))).expect("a timeout");
            let set: String = connection.set("k", "a value").expect("set");
            assert_eq!(set, "OK");
            let got: String = connection.get("k").expect("a value");
            assert_eq!(got, "a value");
            let nothing: Option<String> = connection.get("nothing").expect("an answer");
            assert_eq!(nothing, None);
            let _: () = connection.mset(&[("a", 1), ("b", 2)]).expect("set");
            let both: Vec<Option<i32>> = connection.mget(&["a", "nothing", "b"]).expect("values");
            assert_eq!(both, [Some(1), None, Some(2)]);
            let mut pipe = redis::pipe();
            for number in 0..100 {
                pipe.set("k", number).ignore().get("k");
            }
            let numbers: Vec<i32> = pipe.query(&mut connection).expect("answers");
            assert_eq!(numbers, (0..100).collect::<Vec<_>>());
            let error = redis::cmd("NOSUCH").query::<()>(&mut connection).expect_err("unknown");
            assert!(error.to_string().contains("unknown command"), "{error}");
            let gone: i32 = connection.del(&["k", "a", "b", "nothing"]).expect("a count");
            assert_eq!(gone, 3);
        }
    }
}
