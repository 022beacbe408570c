//! Masters that keep one log on machines of their own (`--members`), as real processes: they are killed, stopped and started in any
//! order under load. Every test ends in the proof that the histories are linearizable and that what was acknowledged is there.

#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::cluster::{command, fails, free_ports, Node, Process, Setup, TestCluster};
use common::resp::{Answer, Connection, Info};
use common::{millis, seconds, wait_for};
use dsm_history::{Action, History, OperationOutcome};
use rustix::process::{kill_process, Pid, Signal};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MASTERS: usize = 3;

const SLAVES: usize = 3;

const CLIENTS: u64 = 6;

const KEYS: u64 = 4;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = seconds(4);

/// How long the cluster may take to be whole again.
const SETTLE: Duration = seconds(30);

/// Three masters with directories of their own, and slaves. They end with the drop.
struct Members {
    /// A directory, and the right to use the machine.
    place: TestCluster,
    addresses: Vec<SocketAddr>,
    masters: BTreeMap<usize, Process>,
    slaves: Vec<Process>,
}

impl Members {
    fn start() -> Self {
        let place = Setup::slaves(0).prepare();
        let [one, two] = free_ports();
        let [three, _] = free_ports();
        let mut members =
            Members { place, addresses: vec![one, two, three], masters: BTreeMap::new(), slaves: Vec::new() };
        (0..MASTERS).for_each(|master| members.start_master(master));
        for slave in 0..SLAVES {
            let mut command = command(Node::Slave(slave));
            command.args(["--masters", &members.named(), "--id", &format!("slave-{slave}")]);
            members.slaves.push(members.spawn(command, &format!("slave-{slave}")));
        }
        members.settle();
        members
    }

    fn named(&self) -> String {
        let named: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
        named.join(",")
    }

    fn log(&self, master: usize) -> PathBuf {
        self.place.dir().join(format!("member-{master}")).join("kv_store.log")
    }

    fn command(&self, master: usize) -> Command {
        let mut command = command(Node::Master);
        command.args(["--listen", &self.addresses[master].to_string(), "--members", &self.named(), "--log"]);
        command.arg(self.log(master));
        command
    }

    fn start_master(&mut self, master: usize) {
        std::fs::create_dir_all(self.log(master).parent().unwrap()).unwrap();
        let process = self.spawn(self.command(master), &format!("member-{master}"));
        self.masters.insert(master, process);
    }

    fn spawn(&self, mut command: Command, name: &str) -> Process {
        let path = self.place.dir().join(format!("{name}.stderr"));
        let output = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        command.env("RUST_LOG", "info").stdout(Stdio::null()).stderr(output);
        Process(command.spawn().expect("the binary is built"))
    }

    fn signal(&self, master: usize, signal: Signal) -> Instant {
        let pid = Pid::from_child(&self.masters[&master].0);
        kill_process(pid, signal).unwrap();
        Instant::now()
    }

    /// `kill -9`.
    fn kill(&mut self, master: usize) -> Instant {
        let at = Instant::now();
        drop(self.masters.remove(&master).expect("it runs"));
        at
    }

    fn info(&self, master: usize) -> Option<Info> {
        Info::of(self.addresses[master], seconds(2)).ok()
    }

    /// Waits until one of those that run serves with all slaves, and the others follow; gives it.
    fn settle(&self) -> usize {
        let masters: Vec<usize> = self.masters.keys().copied().collect();
        wait_for("one serves with all slaves, and the others follow", SETTLE, || {
            let infos: Vec<Info> = masters.iter().filter_map(|master| self.info(*master)).collect();
            let serving = infos.iter().position(|info| info.role() == "primary")?;
            let follow = infos.iter().filter(|info| info.role() == "standby").count();
            let has_slaves = infos[serving].number("active_slaves") == SLAVES as u64;
            (has_slaves && follow + 1 == masters.len()).then(|| masters[serving])
        })
    }

    /// What a master has written to standard error in all its lives.
    fn stderr(&self, master: usize) -> String {
        std::fs::read_to_string(self.place.dir().join(format!("member-{master}.stderr"))).unwrap_or_default()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (0..MASTERS).for_each(|master| println!("---- member {master}\n{}", self.stderr(master)));
        }
    }
}

/// What all clients record.
struct Recording {
    addresses: Vec<SocketAddr>,
    begun: Instant,
    values: AtomicU64,
    is_over: AtomicBool,
    history: Mutex<History>,
    /// When writes were acknowledged.
    acknowledged: Mutex<Vec<Instant>>,
}

impl Recording {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Asks one thing; whether the connection is of further use.
    fn step(&self, client: u64, connection: &mut Connection, key: Bytes, writes: bool) -> bool {
        let value = Bytes::from(format!("v{}", self.values.fetch_add(1, Ordering::Relaxed)));
        let (words, action): (Vec<&[u8]>, Action) = match writes {
            true => (vec![b"SET", &key, &value], Action::Write(value.clone())),
            false => (vec![b"GET", &key], Action::Read(None)),
        };
        let begun = self.history.lock().unwrap().begin(client, key.clone(), action, self.now());
        let answer = connection.call(&words);
        let mut history = self.history.lock().unwrap();
        let now = self.now();
        match answer {
            Ok(Answer::Simple(_)) if writes => {
                history.finish(begun, OperationOutcome::Done, now);
                self.acknowledged.lock().unwrap().push(Instant::now());
            }
            Ok(Answer::Bulk(value)) if !writes => history.finish_read(begun, Some(value.into()), now),
            Ok(Answer::Null) if !writes => history.finish_read(begun, None, now),
            Ok(answer) => match answer.error_word() {
                Some("UNKNOWN") => {}
                Some(_) => history.finish(begun, OperationOutcome::NotExecuted, now),
                None => panic!("{answer:?}"),
            },
            Err(_) => {
                if !writes {
                    history.finish(begun, OperationOutcome::NotExecuted, now);
                }
                return false;
            }
        }
        true
    }
}

/// Clients that write and read at all masters.
struct Load {
    recording: Arc<Recording>,
    clients: Vec<JoinHandle<()>>,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key{number}"))
}

impl Load {
    fn start(members: &Members) -> Self {
        let recording = Arc::new(Recording {
            addresses: members.addresses.clone(),
            begun: Instant::now(),
            values: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            history: Mutex::default(),
            acknowledged: Mutex::default(),
        });
        let run = |client: u64| {
            let recording = Arc::clone(&recording);
            std::thread::spawn(move || {
                let mut connection = None;
                let mut turn = client;
                while !recording.is_over.load(Ordering::Relaxed) {
                    turn += 1;
                    let address = recording.addresses[(turn % MASTERS as u64) as usize];
                    if connection.is_none() {
                        connection = Connection::open(address, ANSWER_TIMEOUT).ok();
                    }
                    let Some(open) = &mut connection else {
                        std::thread::sleep(millis(5));
                        continue;
                    };
                    if !recording.step(client, open, key(turn % KEYS), turn.is_multiple_of(2)) {
                        connection = None;
                    }
                    std::thread::sleep(millis(2));
                }
            })
        };
        let clients = (0..CLIENTS).map(run).collect();
        Load { recording, clients }
    }

    /// Waits until a write that was acknowledged after `at`, and gives how long after.
    fn wait_for_write(&self, at: Instant) -> Duration {
        wait_for("a write is acknowledged", SETTLE, || {
            let acknowledged = self.recording.acknowledged.lock().unwrap();
            acknowledged.iter().find(|done| **done > at).map(|done| *done - at)
        })
    }

    /// Ends the load, reads everything at each master, and checks the history.
    fn prove(self, members: &Members) {
        self.recording.is_over.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("a client has panicked"));
        members.settle();
        for address in &members.addresses {
            let mut connection = Connection::open(*address, ANSWER_TIMEOUT).unwrap();
            for number in 0..KEYS {
                assert!(self.recording.step(CLIENTS, &mut connection, key(number), false));
            }
        }
        let stats = self.recording.history.lock().unwrap().check();
        match stats {
            Ok(stats) => println!("{stats}"),
            Err(violation) => panic!("{violation}"),
        }
        for master in 0..MASTERS {
            assert!(!members.stderr(master).contains("panicked"), "{}", members.stderr(master));
        }
    }
}

#[test]
fn masters_on_three_machines_are_killed_and_stopped_in_turn_and_nothing_is_lost() {
    let mut members = Members::start();
    let load = Load::start(&members);
    for _ in 0..4 {
        let leader = members.settle();
        let killed = members.kill(leader);
        println!("killed, the next write {:?} later", load.wait_for_write(killed));
        members.settle();
        members.start_master(leader);
        let leader = members.settle();
        // One that was stopped believes that it leads, and must not answer a read with what it has.
        let stopped = members.signal(leader, Signal::STOP);
        println!("stopped, the next write {:?} later", load.wait_for_write(stopped + millis(100)));
        std::thread::sleep(millis(500));
        members.signal(leader, Signal::CONT);
    }
    load.prove(&members);
}

#[test]
fn all_masters_lose_power_at_once_and_start_in_any_order() {
    let mut members = Members::start();
    let load = Load::start(&members);
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        load.wait_for_write(Instant::now());
        (0..MASTERS).for_each(|master| {
            members.kill(master);
        });
        for master in order {
            members.start_master(master);
            std::thread::sleep(millis(100));
        }
        members.settle();
    }
    load.prove(&members);
}

#[test]
fn an_operator_moves_the_reign_and_the_preferred_master_has_it_back_and_no_request_fails() {
    let mut members = Members::start();
    assert_eq!(members.settle(), 0, "the first one is preferred");
    let load = Load::start(&members);
    load.wait_for_write(Instant::now());
    let begun = load.recording.now();
    let mut operator = Connection::open(members.addresses[0], ANSWER_TIMEOUT).unwrap();
    assert_eq!(operator.call(&[b"FAILOVER"]).unwrap(), Answer::ok());
    wait_for("it has the reign back", SETTLE, || {
        let info = members.info(0).filter(|info| info.role() == "primary")?;
        (info.number("handovers") == 1 && info.number("takeovers") == 2).then_some(())
    });
    load.wait_for_write(Instant::now());
    let history = load.recording.history.lock().unwrap().clone();
    let failed = |operation: &&dsm_history::ClientOperation| {
        operation.invoked_ns > begun
            && operation.returned_ns < u64::MAX
            && operation.outcome != OperationOutcome::Done
    };
    assert_eq!(history.operations().iter().find(failed), None, "a handover fails no request");
    // A member that was killed is behind, and has it back once it is not.
    members.kill(0);
    load.wait_for_write(Instant::now());
    members.start_master(0);
    wait_for("it has the reign back", SETTLE, || {
        members.info(0).filter(|info| info.role() == "primary").map(|_| ())
    });
    load.prove(&members);
}

#[test]
fn a_members_log_is_looked_at_and_not_changed_by_the_tool() {
    let mut members = Members::start();
    let mut connection = Connection::open(members.addresses[0], ANSWER_TIMEOUT).unwrap();
    assert_eq!(connection.call(&[b"SET", b"k", b"v"]).unwrap(), Answer::ok());
    members.kill(0);
    let before = std::fs::read(members.log(0)).unwrap();
    let tool = |words: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_dsm-log")).args(words).arg(members.log(0)).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = tool(&["check"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(tool(&["dump"]).1.contains("MEMBERS"));
    for words in [&["compact"][..], &["repair"], &["new-cluster"], &["accept-loss"], &["forget"]] {
        let (code, said) = tool(words);
        assert!(
            code == Some(2) && said.contains("nothing may change it but its master"),
            "{words:?}: {said}"
        );
    }
    assert_eq!(std::fs::read(members.log(0)).unwrap(), before);
}

#[test]
fn two_of_three_serve_and_one_alone_does_not() {
    let mut members = Members::start();
    members.kill(2);
    let leader = members.settle();
    let mut connection = Connection::open(members.addresses[leader], ANSWER_TIMEOUT).unwrap();
    assert_eq!(connection.call(&[b"SET", b"k", b"v"]).unwrap(), Answer::ok());
    members.kill(1 - leader);
    // Whoever hears no majority any more answers no read, either.
    let read = connection.call(&[b"GET", b"k"]);
    assert!(matches!(read, Err(_) | Ok(Answer::Error(_))), "{read:?}");
    wait_for("it ceases to serve", SETTLE, || {
        members.info(leader).filter(|info| info.role() != "primary").map(|_| ())
    });
    members.start_master(2);
    let next = members.settle();
    let mut connection = Connection::open(members.addresses[next], ANSWER_TIMEOUT).unwrap();
    assert_eq!(connection.call(&[b"GET", b"k"]).unwrap(), Answer::bulk("v"));
}

#[test]
fn a_disk_that_was_emptied_and_a_log_of_another_kind_are_refused_in_one_line() {
    let mut members = Members::start();
    members.kill(1);
    std::fs::remove_dir_all(members.log(1).parent().unwrap()).unwrap();
    members.start_master(1);
    wait_for("it says that it may not take part", SETTLE, || {
        let said = members.stderr(1);
        said.contains("the log is empty, but this address is member 2").then_some(())
    });
    let info = members.info(1).expect("it answers");
    assert!(info.get("waiting_for").is_some_and(|why| why.contains("is member 2 of")), "INFO says so, too");
    members.kill(1);
    members.settle();
    std::fs::write(members.log(1), "WRITE old line\n").unwrap();
    let (code, said) = fails(members.command(1));
    assert_eq!(code, 1);
    let last = said.trim_end().lines().last().unwrap();
    assert!(last.contains("it has records, but no vote file"), "{said}");
}
