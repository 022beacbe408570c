//! Masters that keep one log on machines of their own (`--members`), as real processes: they are killed, stopped and started in any
//! order under load. Every test ends in the proof that the histories are linearizable and that what was acknowledged is there.

#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::cluster::{command, command_in_network, fails, free_ports, Node, Process, Setup, TestCluster};
use common::isolation::{isolated, Networks, Silence};
use common::native::Native;
use common::resp::{Answer, Connection, Info};
use common::skip::skip;
use common::{millis, seconds, wait_for};
use dsm_history::{Action, History, OperationOutcome};
use dsm_protocol::message::HelloRole;
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

/// The networks of machines that can be cut off.
const NETWORKS: [&str; MASTERS] = ["one", "two", "three"];

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
    /// A network for each master, if they have some.
    networks: Option<Networks>,
    /// Further flags of masters.
    flags: &'static [&'static str],
    addresses: Vec<SocketAddr>,
    masters: BTreeMap<usize, Process>,
    slaves: Vec<Process>,
}

impl Members {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further flags of the masters.
    fn start_with(flags: &'static [&'static str]) -> Self {
        let [one, two] = free_ports();
        let [three, _] = free_ports();
        Self::start_at(vec![one, two, three], None, flags)
    }

    /// Each master in a network of its own, the slaves in the test's.
    fn start_in(networks: Networks) -> Self {
        let address = |name| SocketAddr::from((networks.address(name), 12345));
        Self::start_at(NETWORKS.map(address).to_vec(), Some(networks), &[])
    }

    fn start_at(
        addresses: Vec<SocketAddr>,
        networks: Option<Networks>,
        flags: &'static [&'static str],
    ) -> Self {
        let place = Setup::slaves(0).prepare();
        let mut members =
            Members { place, networks, flags, addresses, masters: BTreeMap::new(), slaves: Vec::new() };
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
        let mut command = match self.networks {
            Some(_) => command_in_network(Node::Master, NETWORKS[master]),
            None => command(Node::Master),
        };
        command.args(["--listen", &self.addresses[master].to_string(), "--members", &self.named(), "--log"]);
        command.arg(self.log(master)).args(self.flags);
        if self.networks.is_some() {
            command.args(["--protected-mode", "no"]);
        }
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

    /// Empties a machine's disk.
    fn wipe(&self, master: usize) {
        std::fs::remove_dir_all(self.log(master).parent().unwrap()).unwrap();
    }

    /// Asks a master for a change of the members.
    fn change(&self, master: usize, words: &[&str]) -> Answer {
        let mut connection = Connection::open(self.addresses[master], seconds(20)).unwrap();
        let words: Vec<&[u8]> = ["MEMBERS"].iter().chain(words).map(|word| word.as_bytes()).collect();
        connection.call(&words).unwrap()
    }

    /// Waits until these are the members, all with a vote, and a majority knows it for good.
    fn wait_for_members(&self, ids: &[u64]) {
        let wanted: Vec<String> = ids.iter().map(|id| format!("id={id},")).collect();
        wait_for(&format!("the members are {ids:?}"), SETTLE, || {
            let infos = self.masters.keys().filter_map(|master| self.info(*master));
            let leader = infos.into_iter().find(|info| info.get("members_change") == Some("no"))?;
            let members: Vec<&str> =
                (0..).map_while(|number| leader.get(&format!("member{number}"))).collect();
            let are_they = members.len() == wanted.len()
                && members
                    .iter()
                    .zip(&wanted)
                    .all(|(member, id)| member.starts_with(id.as_str()) && member.contains("role=voter,"));
            are_they.then_some(())
        });
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

    /// How long a member's log is, in bytes, and whether it was compacted.
    fn log_of(&self, master: usize) -> (u64, bool) {
        let log = std::fs::read(self.log(master)).unwrap();
        (log.len() as u64, memchr::memmem::find(&log, b" base=").is_some())
    }

    /// What a master has written to standard error in all its lives.
    fn stderr(&self, master: usize) -> String {
        std::fs::read_to_string(self.place.dir().join(format!("member-{master}.stderr"))).unwrap_or_default()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (0..self.addresses.len())
                .for_each(|master| println!("---- member {master}\n{}", self.stderr(master)));
        }
    }
}

/// So many keys are overwritten.
const OVERWRITTEN: usize = 100;

/// Writes each key so many times. The last value of each is `ROUND-KEY` and much more.
fn overwrite(connection: &mut Connection, rounds: std::ops::Range<usize>) {
    for round in rounds {
        for key in 0..OVERWRITTEN {
            let value = value_after(round, key);
            let words = [&b"SET"[..], &format!("key-{key}").into_bytes(), value.as_bytes()];
            assert_eq!(connection.call(&words).unwrap(), Answer::Simple("OK".to_owned()));
        }
    }
}

fn value_after(round: usize, key: usize) -> String {
    format!("{round}-{key}-{}", "x".repeat(2000))
}

fn reads_all(address: SocketAddr, round: usize) {
    let mut connection = Connection::open(address, seconds(10)).unwrap();
    for key in 0..OVERWRITTEN {
        let answer = connection.call(&[b"GET", format!("key-{key}").as_bytes()]).unwrap();
        assert_eq!(answer, Answer::Bulk(value_after(round, key).into()), "key-{key}");
    }
}

#[test]
fn logs_are_compacted_and_who_was_away_gets_the_leaders_file() {
    let mut members = Members::start_with(&["--compact-min", "512KiB"]);
    let leader = members.settle();
    let mut connection = Connection::open(members.addresses[leader], seconds(10)).unwrap();
    assert_eq!(connection.call(&[b"SET", b"once", b"early"]).unwrap(), Answer::Simple("OK".to_owned()));
    let away = (leader + 1) % MASTERS;
    members.kill(away);
    // 6 MB, of which 0.2 are live; then once more.
    overwrite(&mut connection, 0..30);
    let both = [leader, (leader + 2) % MASTERS];
    let are_short = |members: &Members, masters: &[usize]| {
        masters.iter().all(|master| matches!(members.log_of(*master), (..3_000_000, true))).then_some(())
    };
    wait_for("the logs of both are compacted", SETTLE, || are_short(&members, &both));
    overwrite(&mut connection, 30..60);
    members.start_master(away);
    overwrite(&mut connection, 60..61);
    let all: Vec<usize> = (0..MASTERS).collect();
    wait_for("all logs are compacted", SETTLE, || are_short(&members, &all));
    assert!(
        members.stderr(away).contains("log is the leader's from now on"),
        "it has got it in no other way"
    );
    // What the file says counts: the other two are lost one after the other, and come back.
    for master in both {
        members.settle();
        members.kill(master);
        let serving = wait_for("another one serves", SETTLE, || {
            let is_it = |other: &usize| members.info(*other).is_some_and(|info| info.role() == "primary");
            members.masters.keys().copied().find(is_it)
        });
        reads_all(members.addresses[serving], 60);
        members.start_master(master);
    }
    // And all at once.
    members.settle();
    for master in &all {
        members.kill(*master);
    }
    all.iter().for_each(|master| members.start_master(*master));
    let leader = members.settle();
    reads_all(members.addresses[leader], 60);
    let mut connection = Connection::open(members.addresses[leader], seconds(10)).unwrap();
    assert_eq!(connection.call(&[b"GET", b"once"]).unwrap(), Answer::Bulk("early".into()));
    overwrite(&mut connection, 61..62);
    reads_all(members.addresses[away], 61);
    for master in all {
        let checked =
            Command::new(env!("CARGO_BIN_EXE_dsm-log")).arg("check").arg(members.log(master)).output();
        let checked = checked.unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
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

    /// Waits until so many more writes are acknowledged.
    fn wait_for_writes(&self, more: usize) {
        let count = || self.recording.acknowledged.lock().unwrap().len();
        let wanted = count() + more;
        wait_for("writes are acknowledged", SETTLE, || (count() >= wanted).then_some(()));
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
fn a_machine_that_is_cut_off_loses_nothing_and_one_that_two_others_see_starts_no_elections() {
    let tested = isolated(
        || Networks::new(&NETWORKS),
        |networks| {
            let members = Members::start_in(networks);
            let networks = members.networks.as_ref().unwrap();
            let load = Load::start(&members);
            for silence in [Silence::Both, Silence::Deaf, Silence::Mute] {
                let leader = members.settle();
                load.wait_for_writes(50);
                let cut = Instant::now();
                networks.cut_off(NETWORKS[leader], silence);
                // What was on its way when it was cut off may still come.
                let after = load.wait_for_write(cut + millis(100));
                println!("the leader is cut off ({silence:?}), the next write {after:?} later");
                load.wait_for_writes(50);
                networks.rejoin(NETWORKS[leader]);
            }
            // Else the preferred one would take the reign back meanwhile.
            let is_preferred = || (members.settle() == 0).then_some(0);
            let leader = wait_for("the preferred one leads", SETTLE, is_preferred);
            let epoch = members.info(leader).unwrap().number("epoch");
            let cluster_end = |other: usize| NETWORKS[(leader + other) % MASTERS];
            networks.part(cluster_end(0), cluster_end(1));
            // As many as take several times the longest election.
            load.wait_for_writes(1000);
            let serving = members.info((leader + 2) % MASTERS).unwrap();
            // A busy machine may cost it one election, and one more gives the reign back. A storm has several a second.
            let elections = serving.number("epoch") - epoch;
            assert!(elections < 3, "the one that both hear knows that the leader lives: {elections}");
            networks.rejoin(cluster_end(0));
            load.prove(&members);
        },
    );
    if let Err(why) = tested {
        skip(
            a_machine_that_is_cut_off_loses_nothing_and_one_that_two_others_see_starts_no_elections,
            "",
            &why,
        );
    }
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
fn a_machine_whose_disk_is_lost_takes_its_place_again_under_load_as_a_new_member() {
    let mut members = Members::start();
    let load = Load::start(&members);
    load.wait_for_write(Instant::now());
    members.kill(2);
    members.wipe(2);
    let third = members.addresses[2].to_string();
    let answer = members.change(0, &["REPLACE", "3", &third]);
    assert!(
        matches!(&answer, Answer::Error(why) if why.contains("no master with an empty log asks")),
        "{answer:?}"
    );
    members.start_master(2);
    wait_for("it says that it may not take part", SETTLE, || {
        members.stderr(2).contains("is member 3 of").then_some(())
    });
    // A standby passes it on.
    assert_eq!(members.change(1, &["REPLACE", &third, &third]), Answer::ok());
    members.wait_for_members(&[1, 2, 4]);
    members.settle();
    // It has all of the log, and a vote: with another one dead nothing is lost.
    let killed = members.kill(0);
    println!("killed, the next write {:?} later", load.wait_for_write(killed));
    members.settle();
    members.start_master(0);
    members.settle();
    // A restart finds the members that there are.
    members.kill(2);
    members.start_master(2);
    members.settle();
    load.prove(&members);
}

#[test]
fn a_machine_is_added_and_another_removed_and_what_would_cost_the_majority_is_refused() {
    let mut members = Members::start();
    let [fourth, _] = free_ports();
    members.addresses.push(fourth);
    // It names the others, which do not name it.
    members.start_master(3);
    wait_for("it says that it is no member", SETTLE, || {
        members.stderr(3).contains("this machine is no member of cluster").then_some(())
    });
    assert_eq!(members.change(0, &["ADD", &fourth.to_string()]), Answer::ok());
    members.wait_for_members(&[1, 2, 3, 4]);
    let is_refused = |answer: Answer, why: &str| {
        assert!(matches!(&answer, Answer::Error(said) if said.contains(why)), "{answer:?}");
    };
    is_refused(members.change(0, &["REMOVE", "1"]), "that member leads");
    is_refused(members.change(0, &["REMOVE", "9"]), "no member is 9");
    is_refused(members.change(0, &["ADD", &fourth.to_string()]), "no master with an empty log asks");
    is_refused(members.change(0, &["LIST", "x"]), "MEMBERS ADD <address>");
    assert_eq!(members.change(1, &["REMOVE", "3"]), Answer::ok());
    members.wait_for_members(&[1, 2, 4]);
    let mut removed = members.masters.remove(&2).expect("it runs");
    let status = wait_for("it ends", SETTLE, || removed.0.try_wait().expect("it is a child"));
    assert_eq!(status.code(), Some(1), "{}", members.stderr(2));
    assert!(members.stderr(2).contains("this member was removed from the cluster"), "{}", members.stderr(2));
    // Of 1, 2 and 4 one is dead: without 2 nobody could decide anything.
    members.kill(3);
    wait_for("it is known to be dead", SETTLE, || {
        let info = members.info(0)?;
        info.get("member2")?.contains("seen=silent").then_some(())
    });
    wait_for("it is said that the cluster is degraded", SETTLE, || {
        let degraded = format!("no word from {fourth}");
        members.info(0)?.get("degraded")?.contains(&degraded).then_some(())
    });
    is_refused(members.change(0, &["REMOVE", "2"]), "no majority is alive");
    assert_eq!(members.change(0, &["REMOVE", &fourth.to_string()]), Answer::ok());
    members.wait_for_members(&[1, 2]);
    let mut connection = Connection::open(members.addresses[1], ANSWER_TIMEOUT).unwrap();
    assert_eq!(connection.call(&[b"SET", b"k", b"v"]).unwrap(), Answer::ok());
}

#[test]
fn a_machine_that_no_others_name_is_removed_while_it_lives_and_hears_of_it_then_or_later() {
    let mut members = Members::start();
    let [fourth, _] = free_ports();
    members.addresses.push(fourth);
    members.start_master(3);
    let place = fourth.to_string();
    wait_for("it asks", SETTLE, || (members.change(0, &["ADD", &place]) == Answer::ok()).then_some(()));
    members.wait_for_members(&[1, 2, 3, 4]);
    assert_eq!(members.change(0, &["REMOVE", "4"]), Answer::ok());
    let change = members.info(0).unwrap();
    let is_through = change.get("members_change") == Some("no") && change.get("member3").is_none();
    assert!(
        change.get("members_change") == Some("settling") || is_through,
        "not what was before: {change:?}"
    );
    let ends = |members: &mut Members| {
        let mut removed = members.masters.remove(&3).expect("it runs");
        let status = wait_for("it ends", SETTLE, || removed.0.try_wait().expect("it is a child"));
        assert_eq!(status.code(), Some(1), "{}", members.stderr(3));
    };
    ends(&mut members);
    assert!(members.stderr(3).contains("this member was removed from the cluster"), "{}", members.stderr(3));
    // One that comes back has what it had, and asks again.
    members.start_master(3);
    ends(&mut members);
}

#[test]
fn a_stranger_cannot_say_how_it_is_dialed_nor_have_anything_sent_over_a_network() {
    let members = Members::start();
    let told = |address: &str| {
        let mut link = Native::open(members.addresses[0], seconds(5));
        link.say_hello(None, HelloRole::Member { address: address.to_owned() }).unwrap();
        link.welcome().map(|_| ())
    };
    assert_eq!(told("127.0.0.1:1"), Ok(()), "it may be about to become a member");
    assert_eq!(told(&members.addresses[1].to_string()), Ok(()));
    let odd = [
        "plain:127.0.0.1:1",
        "tls:127.0.0.1:1",
        "unix:/a",
        "[0:0::1]:1",
        "127.0.0.1:01",
        " 127.0.0.1:1",
        "a,b:1",
        "",
    ];
    for odd in odd {
        assert!(told(odd).is_err_and(|why| why.contains("must be HOST:PORT")), "{odd:?}");
    }
    // Without certificates that would be plain bytes.
    assert!(told("10.9.8.7:1").is_err_and(|why| why.contains("must be reached by TLS")));
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
