//! The examples run as their first lines say.

use rustix::process::{kill_process, Pid, Signal};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// No example may run longer than this.
const LIMIT: Duration = Duration::from_secs(30);

/// Builds the examples once, and gives the path of one.
fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        // They are up to date when all tests are built, but not when only this file is. What cargo tells this test of its package
        // is no setting for the build: crates that look at it would be built anew, and all that need them.
        let mut build = Command::new(env!("CARGO"));
        for (name, _) in std::env::vars_os() {
            let is_of_package =
                |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
            if name.to_str().is_some_and(is_of_package) {
                build.env_remove(name);
            }
        }
        let built = build
            .args(["build", "--quiet", "--locked", "--examples", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .status()
            .expect("cargo runs");
        assert!(built.success(), "the examples do not build");
        let test = std::env::current_exe().expect("the test has a path");
        let target = test.ancestors().nth(3).expect("target/PROFILE/deps/TEST");
        target.join("debug/examples")
    });
    directory.join(name)
}

/// An example that runs, killed when a test fails.
struct Running(Child);

impl Running {
    fn start(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(example(name));
        let child = command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        Running(child.expect("the example starts"))
    }

    fn wait(&mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(since.elapsed() < LIMIT, "the example does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs an example to its end, and gives what it printed.
fn printed(name: &str) -> String {
    let mut running = Running::start(name, &[]);
    let status = running.wait();
    let mut text = String::new();
    running.0.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    assert!(status.success(), "{status}: {text}");
    text
}

#[test]
fn one_process_cluster_fails_over_and_ends() {
    let text = printed("one_process_cluster");
    assert!(text.contains("key99 is value99, key0 is gone\nthe backup says keys:99\n"), "{text}");
    assert!(text.ends_with("done\n"), "{text}");
}

#[test]
fn tokio_client_writes_reads_and_ends() {
    let text = printed("tokio_client");
    assert!(text.contains("writes: 100 done, 0 not executed, 0 unknown\n"), "{text}");
    assert!(text.contains("user42 is Some(\"name42\")\n") && text.contains("99 keys"), "{text}");
    assert!(text.ends_with("done\n"), "{text}");
}

/// One request over a new connection; gives the status code and the body.
fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status line"), body.to_owned())
}

#[test]
fn embed_in_actix_web_serves_keys_and_ends_by_ctrl_c() {
    let mut running = Running::start("embed_in_actix_web", &["127.0.0.1:0"]);
    let mut output = BufReader::new(running.0.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("it says where it listens");
    let address = line.trim().strip_prefix("listening at http://").and_then(|rest| rest.strip_suffix("/kv/"));
    let address = address.unwrap_or_else(|| panic!("{line:?}"));
    assert_eq!(http(address, "GET", "/kv/user1", ""), (404, "no such key\n".to_owned()));
    assert_eq!(http(address, "PUT", "/kv/user1", "Alice").0, 204);
    assert_eq!(http(address, "GET", "/kv/user1", ""), (200, "Alice".to_owned()));
    assert_eq!(http(address, "DELETE", "/kv/user1", "").0, 204);
    assert_eq!(http(address, "DELETE", "/kv/user1", "").0, 404);
    let (status, text) = http(address, "GET", "/status", "");
    assert!(status == 200 && text.contains("active_slaves:3"), "{status} {text}");
    let pid = i32::try_from(running.0.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::INT).expect("it runs");
    let status = running.wait();
    assert!(status.success(), "{status}");
}
