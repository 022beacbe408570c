//! `dsm-log repair --from-slaves`: records that a log has lost come back from the slaves that hold them, whatever the log is (an
//! older copy, a cut one, one of another day), and whatever becomes of the repair.

mod common;

use common::cluster::{Node, Process, Setup, TestCluster, MASTERS};
use common::resp::{Answer, Connection};
use common::{seconds, wait_for};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOON: Duration = seconds(20);

/// What must be readable.
type Values = BTreeMap<Vec<u8>, Vec<u8>>;

fn dsm_log(arguments: &[&str], log: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-log"));
    command.args(arguments).arg(log).stdin(Stdio::null());
    command
}

/// A repair of the cluster's log, with these flags.
fn repair(cluster: &TestCluster, flags: &[&str]) -> Command {
    let mut command = dsm_log(&["repair", "--from-slaves"], &cluster.log());
    let listen = MASTERS.map(|master| cluster.address(master).to_string()).join(",");
    command.args(["--listen", &listen]).args(flags);
    command
}

/// Runs a command to its end; gives its exit code and its output.
fn run(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().expect("the binary is built");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Runs a repair that must succeed; gives what it says.
fn repairs(cluster: &TestCluster, flags: &[&str]) -> String {
    let (code, said) = run(repair(cluster, flags));
    assert_eq!(code, Some(0), "{said}");
    said
}

fn set(connection: &mut Connection, values: &mut Values, key: &[u8], value: &[u8]) {
    assert_eq!(connection.call(&[b"SET", key, value]).expect("an answer"), Answer::ok());
    values.insert(key.to_vec(), value.to_vec());
}

/// Writes so many keys, each with a value that names the round.
fn fill(cluster: &TestCluster, values: &mut Values, keys: std::ops::Range<usize>, round: &str) {
    let mut connection = cluster.connect_to_primary();
    for key in keys {
        set(&mut connection, values, format!("key {key}").as_bytes(), format!("{round} {key}").as_bytes());
    }
}

/// All values are as they were acknowledged, and other keys are not there.
fn reads_back(cluster: &TestCluster, values: &Values) {
    let mut connection = cluster.connect_to_primary();
    for (key, value) in values {
        let shown = String::from_utf8_lossy(key).into_owned();
        let answer = connection.call(&[b"GET", key]).expect("an answer");
        assert!(answer == Answer::bulk(value), "{shown}: {:.200}", format!("{answer:?}"));
    }
    assert_eq!(connection.call(&[b"DBSIZE"]).expect("an answer"), Answer::Integer(values.len() as i64));
}

/// Waits until a master says that it does not serve.
fn waits(cluster: &TestCluster, master: Node) {
    wait_for(&format!("{master:?} waits"), SOON, || {
        let info = cluster.info(master)?;
        let waiting = info.get("waiting_for").filter(|waiting| !waiting.is_empty())?;
        assert_eq!(info.role(), "recovering", "{waiting}");
        Some(())
    });
}

/// Kills the masters, puts this in the place of the log, and keeps the slaves as they are.
fn replace_log(cluster: &mut TestCluster, content: &[u8]) {
    cluster.kill_at_once(&MASTERS);
    std::fs::write(cluster.log(), content).expect("restored");
}

/// Starts the masters again: they serve, with all values.
fn serves_all(cluster: &mut TestCluster, values: &Values) {
    cluster.start_all();
    cluster.settle();
    reads_back(cluster, values);
    // Without slaves, from the log alone.
    cluster.kill_all();
    let (code, said) = run(dsm_log(&["check"], &cluster.log()));
    assert_eq!(code, Some(0), "{said}");
    cluster.start_all();
    cluster.settle();
    reads_back(cluster, values);
}

#[test]
fn what_a_restored_backup_lacks_comes_back_from_the_slaves() {
    let mut cluster = Setup::slaves(3).start();
    let mut values = Values::new();
    fill(&cluster, &mut values, 0..300, "first");
    let backup = std::fs::read(cluster.log()).expect("the log is there");
    fill(&cluster, &mut values, 100..200, "second");
    // Two more reigns, each with writes.
    cluster.restart(Node::Master);
    cluster.settle();
    fill(&cluster, &mut values, 150..250, "third");
    cluster.restart(Node::Master);
    cluster.settle();
    fill(&cluster, &mut values, 290..350, "fourth");
    let mut connection = cluster.connect_to_primary();
    set(&mut connection, &mut values, b"long", &vec![b'x'; 5_000_000]);
    set(&mut connection, &mut values, b"\0 %\xff\n;", b"\0\r\n% ;\xfe");
    set(&mut connection, &mut values, b"empty", b"");
    replace_log(&mut cluster, &backup);
    // A master does not serve it, and names the way.
    cluster.start(Node::Master);
    waits(&cluster, Node::Master);
    wait_for("it names the way", SOON, || {
        cluster.stderr(Node::Master).contains("--from-slaves").then_some(())
    });
    let (code, said) = run(repair(&cluster, &["--slaves", "3"]));
    assert_eq!((code, said.contains("is in use by a master")), (Some(2), true), "{said}");
    cluster.kill(Node::Master);
    let said = repairs(&cluster, &["--slaves", "3", "--dry-run"]);
    assert!(said.contains("which the log lacks") && said.contains("is not changed"), "{said}");
    assert_eq!(std::fs::read(cluster.log()).expect("the log is there"), backup);
    let said = repairs(&cluster, &["--slaves", "3"]);
    assert!(said.contains("recovered 213 keys"), "{said}");
    let (code, said) = run(repair(&cluster, &["--wait", "1s"]));
    assert_eq!((code, said.contains("lacks nothing")), (Some(0), true), "{said}");
    serves_all(&mut cluster, &values);
}

#[test]
fn what_was_cut_off_a_log_comes_back_from_the_slaves() {
    let mut cluster = Setup::slaves(3).start();
    let mut values = Values::new();
    fill(&cluster, &mut values, 0..200, "first");
    fill(&cluster, &mut values, 50..150, "second");
    let whole = std::fs::read(cluster.log()).expect("the log is there");
    // In the middle of a line.
    let cut = whole.iter().take(whole.len() * 2 / 5).rposition(|byte| *byte == b'\n').expect("lines") + 9;
    replace_log(&mut cluster, &whole[..cut]);
    // Nobody has noted anything, and nobody says how many slaves there are.
    let said = repairs(&cluster, &["--wait", "4s"]);
    assert!(said.contains("cut a torn tail of 8 bytes") && said.contains("recovered "), "{said}");
    serves_all(&mut cluster, &values);
}

#[test]
fn a_log_of_another_day_keeps_what_it_has_and_gets_what_it_cannot_know() {
    let mut cluster = Setup::slaves(3).start();
    let mut values = Values::new();
    fill(&cluster, &mut values, 0..100, "first");
    let backup = std::fs::read(cluster.log()).expect("the log is there");
    cluster.restart(Node::Master);
    cluster.settle();
    fill(&cluster, &mut values, 0..50, "theirs");
    fill(&cluster, &mut values, 100..120, "new");
    // Two slaves are out of reach, and on the old copy the third one goes on alone.
    for slave in [Node::Slave(0), Node::Slave(1)] {
        cluster.pause(slave);
    }
    cluster.kill(Node::Slave(2));
    replace_log(&mut cluster, &backup);
    for file in [cluster.lock(), cluster.log().with_extension("log.witness")] {
        let _ = std::fs::remove_file(file);
    }
    cluster.start(Node::Slave(2));
    cluster.start(Node::Master);
    cluster.wait_until_serves(Node::Master, SOON);
    fill(&cluster, &mut values, 30..40, "ours");
    assert_eq!(cluster.ask(&[b"DEL", b"key 45"]), Answer::Integer(1));
    values.remove(&b"key 45"[..]);
    cluster.kill(Node::Master);
    for slave in [Node::Slave(0), Node::Slave(1)] {
        cluster.resume(slave);
    }
    let (code, said) = run(repair(&cluster, &["--slaves", "3"]));
    assert_eq!(code, Some(1), "{said}");
    for key in (30..40).chain([45]) {
        assert!(said.contains(&format!("undecided: \"key {key}\"")), "{said}");
    }
    assert!(
        said.contains("of 11 keys it cannot be decided") && said.contains("nothing was put back"),
        "{said}"
    );
    let log = std::fs::read(cluster.log()).expect("the log is there");
    assert!(!String::from_utf8_lossy(&log).contains("recovered="), "nothing was put back");
    cluster.start(Node::Master);
    waits(&cluster, Node::Master);
    cluster.kill(Node::Master);
    let said = repairs(&cluster, &["--slaves", "3", "--undecided", "log"]);
    assert!(said.contains("recovered 59 keys"), "{said}");
    serves_all(&mut cluster, &values);
}

#[test]
fn a_copy_of_which_every_key_was_written_since_is_known_by_the_slaves_to_be_only_old() {
    let mut cluster = Setup::slaves(2).start();
    let mut values = Values::new();
    fill(&cluster, &mut values, 0..5, "first");
    let backup = std::fs::read(cluster.log()).expect("the log is there");
    for round in ["second", "third"] {
        cluster.restart(Node::Master);
        cluster.settle();
        fill(&cluster, &mut values, 0..5, round);
    }
    replace_log(&mut cluster, &backup);
    // The machine of the masters is lost, and all that is left beside the slaves is the copy.
    std::fs::remove_file(cluster.lock()).expect("removed");
    let said = repairs(&cluster, &["--slaves", "2"]);
    assert!(said.contains("recovered 5 keys"), "{said}");
    serves_all(&mut cluster, &values);
}

/// A process of a master that serves a copy of the cluster's log, at the address of the backup.
fn serve_copy(cluster: &TestCluster, copy: &Path) -> Process {
    let mut command = common::cluster::command(Node::Master);
    let [primary, backup] = cluster.addresses();
    command.args(["--listen", &backup.to_string(), "--peer", &primary.to_string()]).arg("--log").arg(copy);
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    Process(command.spawn().expect("the binary is built"))
}

#[test]
fn a_deletion_after_a_fork_inside_one_reign_does_not_come_undone() {
    let mut cluster = Setup::slaves(2).start();
    let mut values = Values::new();
    fill(&cluster, &mut values, 0..10, "first");
    cluster.kill(Node::Backup);
    // The master is out of reach, and a copy of its log is served elsewhere, to both slaves.
    cluster.pause(Node::Master);
    let copy = cluster.dir().join("elsewhere.log");
    std::fs::copy(cluster.log(), &copy).expect("copied");
    let other = serve_copy(&cluster, &copy);
    wait_for("the copy is served", SOON, || {
        let info = cluster.info(Node::Backup)?;
        (info.get("active_slaves")? == "2").then_some(())
    });
    let mut connection = cluster.connect(Node::Backup);
    for value in ["theirs", "theirs again"] {
        assert_eq!(connection.call(&[b"SET", b"key 5", value.as_bytes()]).expect("an answer"), Answer::ok());
    }
    drop((connection, other));
    // The reign of the original goes on, with a new slave.
    for slave in [Node::Slave(0), Node::Slave(1)] {
        cluster.pause(slave);
    }
    cluster.resume(Node::Master);
    let mut command = common::cluster::command(Node::Slave(7));
    command.args(["--id", "slave-7", "--masters", &cluster.address(Node::Master).to_string()]);
    let (new, _) = cluster.start_stranger(command, "slave-7");
    // A deletion waits for no slave.
    wait_for("the new slave has its place", SOON, || {
        cluster.stderr(Node::Master).contains("slave active slave=slave-7").then_some(())
    });
    wait_for("the key is deleted", SOON, || {
        (cluster.connect(Node::Master).call(&[b"DEL", b"key 5"]).ok()? == Answer::Integer(1)).then_some(())
    });
    values.remove(&b"key 5"[..]);
    cluster.kill(Node::Master);
    for slave in [Node::Slave(0), Node::Slave(1)] {
        cluster.resume(slave);
    }
    let (code, said) = run(repair(&cluster, &["--slaves", "3"]));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("of 1 keys it cannot be decided") && said.contains("\"key 5\""), "{said}");
    repairs(&cluster, &["--slaves", "3", "--undecided", "log"]);
    drop(new);
    serves_all(&mut cluster, &values);
}

#[test]
fn a_witness_that_does_not_come_is_not_given_up_in_silence() {
    let mut cluster = Setup::slaves(2).start();
    let mut values = Values::new();
    fill(&cluster, &mut values, 0..40, "old");
    let backup = std::fs::read(cluster.log()).expect("the log is there");
    fill(&cluster, &mut values, 0..40, "new");
    replace_log(&mut cluster, &backup);
    cluster.start(Node::Master);
    let note = cluster.log().with_extension("log.witness");
    wait_for("both slaves are noted", SOON, || {
        let text = std::fs::read_to_string(&note).ok()?;
        (text.lines().filter(|line| line.starts_with("seen=")).count() == 2).then_some(())
    });
    cluster.kill(Node::Master);
    cluster.pause(Node::Slave(1));
    let (code, said) = run(repair(&cluster, &["--wait", "2s"]));
    assert_eq!((code, said.contains("missing: slave-1;")), (Some(1), true), "{said}");
    // Another one that is new counts for nobody.
    let mut command = common::cluster::command(Node::Slave(7));
    command.args(["--id", "slave-7", "--masters", &cluster.address(Node::Master).to_string()]);
    let (new, _) = cluster.start_stranger(command, "slave-7");
    let (code, said) = run(repair(&cluster, &["--slaves", "2", "--wait", "2s"]));
    assert_eq!((code, said.contains("missing: slave-1;")), (Some(1), true), "{said}");
    assert_eq!(std::fs::read(cluster.log()).expect("the log is there"), backup);
    cluster.resume(Node::Slave(1));
    let said = repairs(&cluster, &["--slaves", "2"]);
    assert!(said.contains("recovered 40 keys"), "{said}");
    drop(new);
    serves_all(&mut cluster, &values);
}

/// A cluster whose log lacks 60 MB that its slaves hold.
fn much_is_lost(values: &mut Values) -> TestCluster {
    let mut cluster = Setup::slaves(3).start();
    fill(&cluster, values, 0..50, "first");
    let backup = std::fs::read(cluster.log()).expect("the log is there");
    let mut connection = cluster.connect_to_primary();
    for key in 0..300 {
        let value = format!("{key} ").repeat(200_000 / format!("{key} ").len());
        set(&mut connection, values, format!("long {key}").as_bytes(), value.as_bytes());
    }
    replace_log(&mut cluster, &backup);
    cluster
}

fn log_bytes(cluster: &TestCluster) -> u64 {
    std::fs::metadata(cluster.log()).expect("the log is there").len()
}

#[test]
fn a_repair_that_is_killed_leaves_a_log_that_is_not_served_until_another_one_has_come_to_its_end() {
    let mut values = Values::new();
    let mut cluster = much_is_lost(&mut values);
    let mut kills = 0;
    for grown in [1, 9_000_000, 18_000_000] {
        let before = log_bytes(&cluster);
        let mut command = repair(&cluster, &["--slaves", "3"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process(command.spawn().expect("the binary is built"));
        let is_killed = wait_for("the log grows", SOON, || {
            let is_over = process.0.try_wait().expect("a child can be asked").is_some();
            (is_over || log_bytes(&cluster) >= before + grown).then_some(!is_over)
        });
        if !is_killed {
            break;
        }
        process.0.kill().expect("it runs");
        process.0.wait().expect("a child can be waited for");
        kills += 1;
        cluster.start(Node::Master);
        waits(&cluster, Node::Master);
        cluster.kill(Node::Master);
    }
    assert!(kills >= 2, "{kills} kills");
    let said = repairs(&cluster, &["--slaves", "3"]);
    assert!(said.contains("of an earlier run"), "{said}");
    serves_all(&mut cluster, &values);
}

#[test]
fn a_half_repaired_log_is_not_served_without_its_note_either() {
    let mut values = Values::new();
    let mut cluster = much_is_lost(&mut values);
    let before = log_bytes(&cluster);
    let mut command = repair(&cluster, &["--slaves", "3"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process(command.spawn().expect("the binary is built"));
    wait_for("the log grows", SOON, || (log_bytes(&cluster) > before + 1_000_000).then_some(()));
    process.0.kill().expect("it runs");
    process.0.wait().expect("a child can be waited for");
    let half = std::fs::read(cluster.log()).expect("the log is there");
    assert!(!String::from_utf8_lossy(&half).contains("EPOCH repaired"), "it was faster than the kill");
    for file in [cluster.log().with_extension("log.witness"), cluster.lock()] {
        std::fs::remove_file(file).expect("removed");
    }
    let (code, said) = run(dsm_log(&["check"], &cluster.log()));
    // A line may be torn, too.
    assert!(code != Some(2) && said.contains("has not come to its end"), "{said}");
    let (code, said) = run(dsm_log(&["compact"], &cluster.log()));
    assert_eq!((code, said.contains("has not come to its end")), (Some(2), true), "{said}");
    // Nor where the slaves are not there to object.
    for slave in cluster.slaves() {
        cluster.pause(slave);
    }
    for master in MASTERS {
        cluster.start(master);
        wait_for("it is said", SOON, || {
            let info = cluster.info(master)?;
            let waiting = info.get("waiting_for").filter(|waiting| !waiting.is_empty())?;
            assert!(waiting.contains("has not come to its end"), "{waiting}");
            Some(())
        });
        cluster.kill(master);
    }
    for slave in cluster.slaves() {
        cluster.resume(slave);
    }
    let said = repairs(&cluster, &["--slaves", "3"]);
    assert!(said.contains("of an earlier run"), "{said}");
    serves_all(&mut cluster, &values);
}

#[test]
fn what_a_repair_has_not_put_back_can_be_given_up() {
    let mut values = Values::new();
    let mut cluster = much_is_lost(&mut values);
    let mut command = repair(&cluster, &["--slaves", "3"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process(command.spawn().expect("the binary is built"));
    let before = log_bytes(&cluster);
    wait_for("the log grows", SOON, || (log_bytes(&cluster) > before + 1_000_000).then_some(()));
    process.0.kill().expect("it runs");
    process.0.wait().expect("a child can be waited for");
    cluster.kill_all();
    let (code, said) = run(dsm_log(&["accept-loss"], &cluster.log()));
    assert_eq!((code, said.contains("what it has not put back is given up")), (Some(0), true), "{said}");
    cluster.start_all();
    cluster.settle();
    let mut connection = cluster.connect_to_primary();
    for key in 0..50 {
        let key = format!("key {key}");
        let answer = connection.call(&[b"GET", key.as_bytes()]).expect("an answer");
        assert_eq!(answer, Answer::bulk(&values[key.as_bytes()]), "{key}");
    }
}

#[test]
fn a_repair_that_finds_no_room_leaves_whole_lines_and_goes_on_when_there_is_some() {
    let mut values = Values::new();
    let mut cluster = much_is_lost(&mut values);
    // In blocks of 512 bytes.
    let limit = (log_bytes(&cluster) + 20_000_000) / 512;
    let full = repair(&cluster, &["--slaves", "3"]);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -f {limit}; exec \"$0\" \"$@\"")).arg(full.get_program());
    limited.args(full.get_args()).stdin(Stdio::null());
    let (code, said) = run(limited);
    assert_eq!((code, said.contains("is not repaired")), (Some(2), true), "{said}");
    let (code, said) = run(dsm_log(&["check"], &cluster.log()));
    assert_eq!(code, Some(0), "{said}");
    cluster.start(Node::Master);
    waits(&cluster, Node::Master);
    cluster.kill(Node::Master);
    repairs(&cluster, &["--slaves", "3"]);
    serves_all(&mut cluster, &values);
}

#[test]
fn slaves_that_are_missing_are_waited_for_and_one_that_is_lost_is_replaced_by_another_holder() {
    let mut values = Values::new();
    let mut cluster = much_is_lost(&mut values);
    let before = std::fs::read(cluster.log()).expect("the log is there");
    cluster.pause(Node::Slave(2));
    let (code, said) = run(repair(&cluster, &["--slaves", "3", "--wait", "2s"]));
    assert_eq!((code, said.contains("2 slaves came")), (Some(1), true), "{said}");
    assert_eq!(std::fs::read(cluster.log()).expect("the log is there"), before);
    cluster.resume(Node::Slave(2));
    // Each value has two copies.
    let mut command = repair(&cluster, &["--slaves", "3"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().expect("the binary is built"));
    wait_for("the log grows", SOON, || (log_bytes(&cluster) > before.len() as u64 + 1_000_000).then_some(()));
    cluster.kill(Node::Slave(0));
    let status = wait_for("the repair ends", SOON, || process.0.try_wait().expect("a child can be asked"));
    assert_eq!(status.code(), Some(0));
    cluster.start(Node::Slave(0));
    serves_all(&mut cluster, &values);
}
