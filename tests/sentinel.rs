//! The Sentinels of both masters, with real processes: what redis-py's own Sentinel client and a subscriber see when the primary
//! is killed. ioredis and node-redis are in `make compat`.

mod common;

use common::cluster::{free_ports, Node, Process, Setup, TestCluster, MASTERS};
use common::resp::{Answer, Connection};
use common::skip::{skip, Lack};
use common::{seconds, wait_for};
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// How long one answer may take.
const PATIENCE: std::time::Duration = seconds(20);

/// A cluster with two slaves whose masters are Sentinels at these addresses.
fn with_sentinels(setup: Setup) -> (TestCluster, [SocketAddr; 2]) {
    let sentinels = free_ports();
    let mut setup = setup;
    for (master, [own, other]) in MASTERS.into_iter().zip([[0, 1], [1, 0]]) {
        setup = setup
            .node_with_variable(master, "DSM_SENTINEL", sentinels[own].to_string())
            .node_with_variable(master, "DSM_SENTINEL_PEER", sentinels[other].to_string());
    }
    (setup.start(), sentinels)
}

fn ask(sentinel: SocketAddr, request: &[&[u8]]) -> Answer {
    let mut connection = Connection::open(sentinel, PATIENCE).expect("the Sentinel accepts connections");
    connection.call(request).expect("an answer")
}

/// What `GET-MASTER-ADDR-BY-NAME` gives for the master at this address.
fn address_of(master: SocketAddr) -> Answer {
    Answer::Array(vec![Answer::bulk(master.ip().to_string()), Answer::bulk(master.port().to_string())])
}

fn wait_until_told(sentinel: SocketAddr, master: SocketAddr) {
    wait_for("the Sentinel tells the master that serves", PATIENCE, || {
        let told = ask(sentinel, &[b"SENTINEL", b"get-master-addr-by-name", b"dsm"]);
        (told == address_of(master)).then_some(())
    });
}

/// The takeover that a subscriber is told next: from which port to which.
fn switch_told(subscriber: &mut Connection) -> (u16, u16) {
    let Ok(Answer::Array(parts)) = subscriber.answer() else { panic!("no takeover is told") };
    let [kind, channel, Answer::Bulk(payload)] = &parts[..] else { panic!("{parts:?}") };
    assert_eq!((kind, channel), (&Answer::bulk("message"), &Answer::bulk("+switch-master")));
    let payload = String::from_utf8_lossy(payload).into_owned();
    let words: Vec<&str> = payload.split(' ').collect();
    let ["dsm", "127.0.0.1", from, "127.0.0.1", to] = words[..] else { panic!("{payload}") };
    (from.parse().expect("a port"), to.parse().expect("a port"))
}

#[test]
fn each_takeover_is_told_to_each_subscriber_once() {
    let (mut cluster, sentinels) = with_sentinels(Setup::slaves(2));
    let [primary, backup] = cluster.addresses();
    sentinels.iter().for_each(|sentinel| wait_until_told(*sentinel, primary));
    let mut subscribers: Vec<Connection> = (0..2)
        .map(|_| {
            let mut subscriber = Connection::open(sentinels[1], PATIENCE).expect("a connection");
            let subscribed = subscriber.call(&[b"SUBSCRIBE", b"+switch-master"]).expect("an answer");
            let expected = [Answer::bulk("subscribe"), Answer::bulk("+switch-master"), Answer::Integer(1)];
            assert_eq!(subscribed, Answer::Array(expected.to_vec()));
            subscriber
        })
        .collect();

    cluster.kill(Node::Master);
    for subscriber in &mut subscribers {
        assert_eq!(switch_told(subscriber), (primary.port(), backup.port()));
    }
    assert_eq!(ask(sentinels[1], &[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", b"dsm"]), address_of(backup));

    // It gets its place back by a handover.
    cluster.start(Node::Master);
    for subscriber in &mut subscribers {
        assert_eq!(switch_told(subscriber), (backup.port(), primary.port()));
    }
    sentinels.iter().for_each(|sentinel| wait_until_told(*sentinel, primary));
    for subscriber in &mut subscribers {
        let pong = Answer::Array(vec![Answer::bulk("pong"), Answer::bulk("")]);
        assert_eq!(subscriber.call(&[b"PING"]).expect("an answer"), pong, "nothing else was told");
    }
}

#[test]
fn a_sentinel_knows_the_other_master_and_the_other_sentinel_and_no_data() {
    let (cluster, sentinels) = with_sentinels(Setup::slaves(1).beside_others());
    let [primary, backup] = cluster.addresses();
    for (own, other) in [(sentinels[0], sentinels[1]), (sentinels[1], sentinels[0])] {
        wait_until_told(own, primary);
        assert_eq!(
            ask(own, &[b"ROLE"]),
            Answer::Array(vec![Answer::bulk("sentinel"), Answer::Array(vec![Answer::bulk("dsm")])])
        );
        let shown = format!("{:?}", ask(own, &[b"SENTINEL", b"SENTINELS", b"dsm"]));
        assert!(shown.contains(&format!("{:?}", Answer::bulk(other.port().to_string()))), "{shown}");
        let shown = format!("{:?}", ask(own, &[b"SENTINEL", b"REPLICAS", b"dsm"]));
        assert!(shown.contains(&format!("{:?}", Answer::bulk(backup.port().to_string()))), "{shown}");
        assert_eq!(ask(own, &[b"GET", b"k"]).error_word(), Some("ERR"));
        assert_eq!(ask(own, &[b"SET", b"k", b"v"]).error_word(), Some("ERR"));
    }
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::Null);
}

/// Writes through redis-py's Sentinel client, each key once, until the end of the input; then reads what was acknowledged.
const PYTHON: &str = r#"
import sys, threading, time
import redis
from redis.sentinel import Sentinel

sentinel = Sentinel([("127.0.0.1", int(port)) for port in sys.argv[1:]], socket_timeout=5)
client = sentinel.master_for("dsm", decode_responses=True, socket_timeout=5)
is_over = threading.Event()

def wait_for_the_end():
    sys.stdin.read()
    is_over.set()

threading.Thread(target=wait_for_the_end, daemon=True).start()
acknowledged, failed, number = [], 0, 0
while not is_over.is_set():
    number += 1
    try:
        client.set("key-%d" % number, number)
    except (redis.ConnectionError, redis.TimeoutError):
        failed += 1
        time.sleep(0.005)
        continue
    except redis.ResponseError as error:
        if str(error).split(" ")[0] not in ("UNKNOWN", "STANDBY", "NOQUORUM", "LOADING", "BUSY"):
            raise
        failed += 1
        continue
    acknowledged.append(number)
    print(len(acknowledged), client.connection_pool.master_address[1], flush=True)
lost = [number for number in acknowledged if client.get("key-%d" % number) != str(number)]
print("end lost=%d failed=%d" % (len(lost), failed), flush=True)
"#;

/// The program above at work.
struct PythonClient {
    process: Process,
    output: PathBuf,
}

impl PythonClient {
    /// # Errors
    /// That there is no redis-py.
    fn start(cluster: &TestCluster, sentinels: [SocketAddr; 2]) -> Result<PythonClient, Lack> {
        let has_it = |python: &&str| {
            let mut probe = Command::new(python);
            probe.args(["-c", "import redis.sentinel"]).stdout(Stdio::null()).stderr(Stdio::null());
            probe.status().is_ok_and(|status| status.success())
        };
        // Another Python may precede the system's in PATH; only the system's has the packages.
        let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(has_it) else {
            let why = "no python3 has redis-py; Debian has it in python3-redis";
            return Err(Lack::Missing(why.into()));
        };
        let output = cluster.dir().join("python");
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", "120", python, "-c", PYTHON])
            .args(sentinels.map(|sentinel| sentinel.port().to_string()))
            .stdin(Stdio::piped())
            .stdout(File::create(&output).expect("a file"));
        let process = Process(command.spawn().expect("timeout is installed"));
        Ok(PythonClient { process, output })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).expect("a file")).into_owned()
    }

    /// How many writes were acknowledged, and by the master at which port the last one.
    fn acknowledged(&self) -> (u64, u16) {
        let text = self.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let last = whole.lines().next_back().and_then(|line| line.split_once(' '));
        let read = |(count, port): (&str, &str)| Some((count.parse().ok()?, port.parse().ok()?));
        last.and_then(read).unwrap_or_default()
    }

    /// Waits until so many more are acknowledged by that master.
    fn wait_for_writes(&mut self, by: SocketAddr, more: u64) {
        let mut from = None;
        wait_for(&format!("redis-py writes at {by}"), seconds(60), || {
            let ended = self.process.0.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "redis-py has ended: {ended:?}\n{}", self.text());
            let (count, port) = self.acknowledged();
            if port != by.port() {
                return None;
            }
            (count >= *from.get_or_insert(count) + more).then_some(())
        });
    }

    /// Ends its writing, waits until it has read everything, and gives its last line.
    fn finish(&mut self) -> String {
        drop(self.process.0.stdin.take());
        let status = wait_for("redis-py has read everything", seconds(60), || {
            self.process.0.try_wait().expect("a child can be asked")
        });
        assert!(status.success(), "{status}\n{}", self.text());
        self.text().lines().next_back().unwrap_or_default().to_owned()
    }
}

#[test]
fn redis_py_goes_on_by_its_own_sentinel_client_and_loses_no_acknowledged_write() {
    let (mut cluster, sentinels) = with_sentinels(Setup::slaves(3));
    let [primary, backup] = cluster.addresses();
    let mut python = match PythonClient::start(&cluster, sentinels) {
        Ok(python) => python,
        Err(lack) => {
            return skip(
                redis_py_goes_on_by_its_own_sentinel_client_and_loses_no_acknowledged_write,
                "",
                &lack,
            );
        }
    };
    python.wait_for_writes(primary, 200);
    cluster.kill(Node::Master);
    python.wait_for_writes(backup, 200);
    // The place is handed back, under load, and then lost again.
    cluster.start(Node::Master);
    cluster.wait_until_serves(Node::Master, seconds(20));
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, seconds(20));
    python.wait_for_writes(backup, 200);
    let told = python.finish();
    println!("{told}");
    assert!(told.starts_with("end lost=0 "), "{told}");
}
