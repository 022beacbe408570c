//! A disk that fails, is full, writes only half or hangs, at each of the first writes and syncs of a master's life.
//!
//! `tests/shim/disk_faults.c`, preloaded into `dsm-master`, makes one chosen call on the log fail while a client runs a
//! script. Each case has its own cluster, and ends with the check that the client's answers were true: its history is
//! linearizable, before and after a restart of everything without faults.
//!
//! The first 20 calls are tried; with `DSM_NIGHTLY=1` the first 200. What the machine does not allow is reported as
//! skipped on standard error; the last `disk_errors summary` says what was done.

mod common;

use bytes::Bytes;
use common::cluster::{Node, Setup, TestCluster, LOG_NAME};
use common::isolation::{isolated, CuttableDisk};
use common::load::{judge, now_ns, read_back, Load, READER};
use common::programs::compile;
use common::resp::{encoded, Answer, Connection};
use common::skip::{skip, skipped, tell};
use common::{is_nightly, millis, seconds, wait_for};
use dsm_history::{Action, Begun, History, OperationOutcome};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a hanging call hangs: longer than the standby's patience with a primary that makes no progress.
const STALL: Duration = millis(2000);

/// That patience.
const FAILOVER_TIMEOUT: &str = "1200ms";

/// How many cases run at the same time. They wait far more than they compute.
const AT_ONCE: usize = 10;

/// How long a case may take without progress.
const PATIENCE: Duration = seconds(30);

/// Steps of the script that must succeed after the fault.
const STEPS_BEHIND: u64 = 8;

/// How many slaves a case has.
const SLAVES: usize = 2;

static ERRORS: AtomicUsize = AtomicUsize::new(0);
static FULL_DISKS: AtomicUsize = AtomicUsize::new(0);

/// Prints what all tests of this process have done so far, on standard error even if a test's output is captured.
fn tell_summary() {
    let [errors, full_disks] = [&ERRORS, &FULL_DISKS].map(|counter| counter.load(Ordering::Relaxed));
    tell(&format!("disk_errors summary: errors={errors} full_disks={full_disks} skipped={}", skipped()));
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    WriteError,
    /// For three calls, so that a retry with a smaller reserve does not help.
    WriteFull,
    /// Half is written, the rest does not fit.
    WriteShort,
    /// The same, and the half line cannot be cut off.
    WriteShortForGood,
    WriteStall,
    SyncError,
    /// ENOSPC from a sync: the file system finds no room for bytes that it had accepted.
    SyncFull,
    SyncStall,
}

impl Fault {
    const ALL: [Fault; 8] = [
        Fault::WriteStall,
        Fault::SyncStall,
        Fault::WriteError,
        Fault::WriteFull,
        Fault::WriteShort,
        Fault::WriteShortForGood,
        Fault::SyncError,
        Fault::SyncFull,
    ];

    /// The shim's list of faults for the `n`-th call.
    fn list(self, n: u64) -> String {
        match self {
            Fault::WriteError => format!("pwrite {n} eio"),
            Fault::WriteFull => format!("pwrite {n} enospc 3"),
            Fault::WriteShort => format!("pwrite {n} short,pwrite {} enospc", n + 1),
            Fault::WriteShortForGood => {
                format!("pwrite {n} short,pwrite {} enospc,ftruncate 1 eio 1000", n + 1)
            }
            Fault::WriteStall => format!("pwrite {n} stall"),
            Fault::SyncError => format!("fdatasync {n} eio"),
            Fault::SyncFull => format!("fdatasync {n} enospc"),
            Fault::SyncStall => format!("fdatasync {n} stall"),
        }
    }
}

/// One fault at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    fault: Fault,
    n: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at call {}", self.fault, self.n)
    }
}

impl Case {
    /// Whether the master must end by itself: after any error of a write or sync, and when half a line stays. A full
    /// disk does not end it: if a reign cannot begin, the master waits for room.
    fn ends_master(self) -> bool {
        match self.fault {
            Fault::WriteError | Fault::WriteShortForGood | Fault::SyncError | Fault::SyncFull => true,
            Fault::WriteStall | Fault::SyncStall | Fault::WriteFull | Fault::WriteShort => false,
        }
    }
}

/// What happened in a case. The test checks that the faults have had their effects.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    /// The master ended by itself.
    ended: bool,
    /// Answers READONLY.
    read_only: u64,
    /// Writes with unknown outcome.
    unknown: u64,
    /// Batches of which only a part was executed.
    parted: u64,
}

#[test]
fn each_disk_error_is_answered_truthfully() {
    let calls: u64 = if is_nightly() { 200 } else { 20 };
    let dir = TempDir::with_prefix("dsm-shim-").expect("a directory for temporary files");
    let shim = compile("disk_faults", dir.path(), &["-shared", "-fPIC"]);
    let cases: Vec<Case> = (1..=calls).flat_map(|n| Fault::ALL.map(|fault| Case { fault, n })).collect();
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let shown = Mutex::new(BTreeMap::new());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(&case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // The other cases go on, and the cluster prints its own report of the failure.
                    match catch_unwind(AssertUnwindSafe(|| run(case, &shim))) {
                        Ok(result) => drop(shown.lock().expect("no panic").insert(case, result)),
                        Err(_) => failed.lock().expect("no panic").push(case.to_string()),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{} of {} cases failed: {failed:?}", failed.len(), cases.len());

    let shown = shown.into_inner().expect("no panic");
    for fault in Fault::ALL {
        let of_fault = || shown.iter().filter(|(case, _)| case.fault == fault).map(|(_, shown)| *shown);
        let sum = |count: fn(Shown) -> u64| of_fault().map(count).sum::<u64>();
        let (ended, read_only) = (sum(|s| u64::from(s.ended)), sum(|s| s.read_only));
        let (unknown, parted) = (sum(|s| s.unknown), sum(|s| s.parted));
        println!("{fault:?}: {calls} cases, {ended} masters ended, {read_only} READONLY, {unknown} unknown, {parted} parted");
        // The effect that each fault must have had at least once; else the script does not reach it.
        match fault {
            Fault::WriteError | Fault::SyncError | Fault::SyncFull => {
                assert_eq!(ended, calls, "{fault:?} ends the master each time");
                assert!(unknown > 0, "{fault:?} leaves writes unknown");
            }
            Fault::WriteFull => assert!(read_only > 0, "a full disk is told"),
            Fault::WriteShort => assert!(parted > 0, "the whole lines of a short write stay"),
            Fault::WriteShortForGood => assert!(ended > 0, "half a line that stays ends the master"),
            Fault::WriteStall | Fault::SyncStall => assert_eq!((ended, read_only, unknown), (0, 0, 0)),
        }
    }
    println!("{} cases in {:?}", cases.len(), begun.elapsed());
    ERRORS.fetch_add(cases.len(), Ordering::Relaxed);
    tell_summary();
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room_and_takeovers_need_none() {
    for file_system in ["ext4", "xfs"] {
        let tested = isolated(|| CuttableDisk::new(file_system), |disk| fill_and_take_over(&disk));
        if let Err(why) = tested {
            skip(a_full_disk_refuses_writes_until_there_is_room_and_takeovers_need_none, file_system, &why);
        } else {
            FULL_DISKS.fetch_add(1, Ordering::Relaxed);
        }
    }
    tell_summary();
}

fn fill_and_take_over(disk: &CuttableDisk) {
    let mut cluster = Setup::slaves(SLAVES).masters_with(&["--no-failback"]).log_in(&disk.mounted()).start();
    let load = Load::start(&cluster, 6, 10);
    assert_eq!(cluster.ask(&[b"SET", b"kept", b"value"]), Answer::ok());
    let filler = disk.fill();
    // The log has space set aside: longer and then shorter values use it up.
    for bytes in [256 << 10, 16 << 10, 1 << 10, 1] {
        let value = vec![b'x'; bytes];
        let refused = (0..200).find_map(|_| match cluster.ask(&[b"SET", b"large", &value]) {
            Answer::Simple(_) => None,
            refused => Some(refused),
        });
        let refused = refused.expect("the disk is full");
        assert_eq!(refused.error_word(), Some("READONLY"), "{refused:?}");
    }
    assert_eq!(cluster.ask(&[b"GET", b"kept"]), Answer::bulk("value"), "reads go on");

    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, PATIENCE);
    assert_eq!(cluster.ask(&[b"GET", b"kept"]), Answer::bulk("value"));
    let refused = cluster.ask(&[b"SET", b"large", &[b'x'; 64 << 10]]);
    assert_eq!(refused.error_word(), Some("READONLY"), "{refused:?}");

    std::fs::remove_file(filler).expect("it was just made");
    load.wait_for_writes(200, PATIENCE);
    assert_eq!(cluster.ask(&[b"SET", b"large", &[b'x'; 64 << 10]]), Answer::ok());
    load.prove(&mut cluster);
}

#[test]
fn a_log_on_a_full_disk_is_compacted_once_there_is_room() {
    for file_system in ["ext4", "xfs"] {
        let tested = isolated(|| CuttableDisk::new(file_system), |disk| fill_and_compact(&disk));
        if let Err(why) = tested {
            skip(a_log_on_a_full_disk_is_compacted_once_there_is_room, file_system, &why);
        } else {
            FULL_DISKS.fetch_add(1, Ordering::Relaxed);
        }
    }
    tell_summary();
}

fn fill_and_compact(disk: &CuttableDisk) {
    const LEFT_BYTES: u64 = 16 << 20;
    let mut cluster =
        Setup::slaves(SLAVES).masters_with(&["--compact-min", "4MiB"]).log_in(&disk.mounted()).start();
    let load = Load::start(&cluster, 6, 10);
    let filler = disk.fill();
    let all = std::fs::metadata(&filler).expect("it is there").len();
    let file = std::fs::File::options().write(true).open(&filler).expect("it is there");
    file.set_len(all - LEFT_BYTES).expect("it may be shortened");
    // It would keep its space while it is open.
    drop(file);
    // A copy needs room for one of them and 4 MiB.
    let refused =
        (b'a'..=b'z').find_map(|letter| match cluster.ask(&[b"SET", b"large", &vec![letter; 4 << 20]]) {
            Answer::Simple(_) => None,
            refused => Some((letter, refused)),
        });
    let (letter, refused) = refused.expect("the disk is full");
    assert_eq!(refused.error_word(), Some("READONLY"), "{refused:?}");
    let now = wait_for("the compaction waits for room", PATIENCE, || {
        let info = cluster.info(Node::Master)?;
        info.get("compaction_hindrance").is_some_and(|why| !why.is_empty()).then_some(info)
    });
    assert_eq!(now.number("compactions"), 0, "{now:?}");
    assert_eq!(cluster.ask(&[b"GET", b"large"]), Answer::bulk(vec![letter - 1; 4 << 20]), "reads go on");

    std::fs::remove_file(filler).expect("it was just made");
    wait_for("the log is compacted", PATIENCE, || {
        cluster.info(Node::Master).filter(|info| info.number("compactions") > 0)
    });
    assert_eq!(cluster.ask(&[b"GET", b"large"]), Answer::bulk(vec![letter - 1; 4 << 20]));
    load.wait_for_writes(200, PATIENCE);
    load.prove(&mut cluster);
}

fn run(case: Case, shim: &Path) -> Shown {
    let reports = TempDir::with_prefix("dsm-fault-").expect("a directory for temporary files");
    let report = reports.path().join("report");
    let mut cluster = Setup::slaves(SLAVES)
        .beside_others()
        .masters_with(&["--failover-timeout", FAILOVER_TIMEOUT, "--no-failback"])
        // Many clusters share the machine: none of them must lose a slave that only waits for a processor.
        .masters_with(&["--ack-timeout", "20s"])
        .node_with_variable(Node::Master, "LD_PRELOAD", shim)
        .node_with_variable(Node::Master, "DISK_FAULTS_NAME", LOG_NAME)
        .node_with_variable(Node::Master, "DISK_FAULTS", case.fault.list(case.n))
        .node_with_variable(Node::Master, "DISK_FAULTS_STALL_MS", STALL.as_millis().to_string())
        .node_with_variable(Node::Master, "DISK_FAULTS_REPORT", &report)
        .prepare();
    cluster.start_all();
    let mut script = Script::new(&cluster, report);
    script.run_until_the_fault(&mut cluster);
    let ended = case.ends_master();
    if ended {
        let status = cluster.wait_for_exit(Node::Master, PATIENCE);
        assert_eq!(status.code(), Some(1), "{case}: the master ends in order: {status}");
        let told = cluster.stderr(Node::Master);
        assert!(!told.contains("panicked"), "{case}: {told}");
        let last = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let clear = last.starts_with("error: ")
            && ["Input/output error", "No space left"].iter().any(|why| last.contains(why));
        assert!(clear, "{case}: the last line says what happened: {last}");
        cluster.wait_until_serves(Node::Backup, PATIENCE);
    }
    script.run_behind_the_fault(&mut cluster, ended);
    let (primary, info) = cluster.wait_for_primary(PATIENCE);
    assert_eq!(primary, if ended { Node::Backup } else { Node::Master }, "{case}: who serves");
    if !ended {
        assert_eq!(info.number("epoch"), 1, "{case}: nobody was fenced");
    }

    let Script { mut history, keys, origin, shown, .. } = script;
    read_back(&cluster, &keys, origin, READER, &mut history);
    judge(&history, &format!("{case}: after the fault"));
    cluster.forget_environment();
    cluster.kill_all();
    cluster.start_all();
    cluster.wait_for_active_slaves(SLAVES as u64, PATIENCE);
    read_back(&cluster, &keys, origin, READER + 1, &mut history);
    judge(&history, &format!("{case}: after a restart"));
    Shown { ended, ..shown }
}

/// The client: fixed steps, one after another, each recorded with its outcome.
struct Script {
    addresses: [std::net::SocketAddr; 2],
    report: PathBuf,
    origin: Instant,
    history: History,
    keys: BTreeSet<Bytes>,
    connection: Option<Connection>,
    /// The master to which it talks.
    master: usize,
    step: u64,
    /// A write was answered with a result: from then on no master may answer that it does not serve or lacks slaves.
    served: bool,
    shown: Shown,
}

impl Script {
    fn new(cluster: &TestCluster, report: PathBuf) -> Script {
        Script {
            addresses: cluster.addresses(),
            report,
            origin: Instant::now(),
            history: History::new(),
            keys: BTreeSet::new(),
            connection: None,
            master: 0,
            step: 0,
            served: false,
            shown: Shown::default(),
        }
    }

    /// The faults that the shim has reported.
    fn reported(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.report).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    fn run_until_the_fault(&mut self, cluster: &mut TestCluster) {
        let begun = Instant::now();
        while self.reported().is_empty() && cluster.exited(Node::Master).is_none() {
            assert!(begun.elapsed() < PATIENCE, "the fault is never met: {} steps", self.step);
            self.next_step();
        }
        assert!(!self.reported().is_empty(), "the master ended without a fault");
    }

    fn run_behind_the_fault(&mut self, cluster: &mut TestCluster, ended: bool) {
        if ended {
            self.master = 1;
            self.connection = None;
            self.served = false;
        }
        let begun = Instant::now();
        let mut succeeded = 0;
        while succeeded < STEPS_BEHIND {
            assert!(begun.elapsed() < PATIENCE, "no {STEPS_BEHIND} steps in a row succeed");
            let gone = if ended { None } else { cluster.exited(Node::Master) };
            assert_eq!(gone, None, "the fault must not end a master");
            succeeded = if self.next_step() { succeeded + 1 } else { 0 };
        }
    }

    /// Runs one step, and tells whether all its requests had results.
    fn next_step(&mut self) -> bool {
        let opened = match self.connection.take() {
            Some(connection) => Some(connection),
            None => Connection::open(self.addresses[self.master], seconds(10)).ok(),
        };
        let Some(mut connection) = opened else {
            std::thread::sleep(millis(2));
            return false;
        };
        self.step += 1;
        let step = self.step;
        let value = |part: u64| Bytes::from(format!("{step}.{part}"));
        let shared = Bytes::from(format!("shared-{}", step % 3));
        let requests: Vec<(Bytes, Action)> = match step % 5 {
            // One write of several lines, whose keys are never written again.
            1 => (0..4)
                .map(|part| (format!("once-{step}-{part}").into(), Action::Write(value(part))))
                .collect(),
            2 => vec![(shared, Action::Write(value(0)))],
            3 => vec![(shared, Action::Delete { existed: None })],
            // Several at once, which overwrite each other.
            4 => (0..3).map(|part| (format!("shared-{part}").into(), Action::Write(value(part)))).collect(),
            // A pause before this step, so that the log gets its mark.
            _ => {
                std::thread::sleep(millis(15));
                vec![(shared, Action::Read(None))]
            }
        };
        let mut bytes = Vec::new();
        let mut begun = Vec::new();
        for (key, action) in &requests {
            let request: Vec<&[u8]> = match action {
                Action::Write(value) => vec![b"SET", key, value],
                Action::Delete { .. } => vec![b"DEL", key],
                Action::Read(_) => vec![b"GET", key],
                Action::Swap { .. } | Action::WriteIf { .. } => unreachable!("no step asks this"),
            };
            bytes.extend(encoded(&request));
            self.keys.insert(key.clone());
            begun.push(self.history.begin(0, key.clone(), action.clone(), now_ns(self.origin)));
        }
        let mut open = connection.send(&bytes).is_ok();
        let mut words = Vec::new();
        for (begun, (_, action)) in begun.into_iter().zip(&requests) {
            let answer = if open { connection.answer().ok() } else { None };
            open = answer.is_some();
            words.push(self.finish(begun, action, answer));
        }
        if open {
            self.connection = Some(connection);
        }
        let stand = words.iter().take_while(|word| **word == Word::Result).count();
        let refused = words.iter().filter(|word| **word == Word::ReadOnly).count();
        // A refused write means that all later ones are refused, too.
        if refused > 0 {
            assert_eq!(stand + refused, words.len(), "whole lines come before refused ones: {words:?}");
            self.shown.parted += u64::from(stand > 0);
        }
        stand == words.len()
    }

    fn finish(&mut self, begun: Begun, action: &Action, answer: Option<Answer>) -> Word {
        let is_write = !matches!(action, Action::Read(_));
        let now = now_ns(self.origin);
        let word = match (action, answer) {
            (Action::Write(_), Some(answer)) if answer == Answer::ok() => {
                self.history.finish(begun, OperationOutcome::Done, now);
                Word::Result
            }
            (Action::Delete { .. }, Some(Answer::Integer(count @ 0..=1))) => {
                self.history.finish_delete(begun, count == 1, now);
                Word::Result
            }
            (Action::Read(_), Some(Answer::Bulk(value))) => {
                self.history.finish_read(begun, Some(value.into()), now);
                Word::Result
            }
            (Action::Read(_), Some(Answer::Null)) => {
                self.history.finish_read(begun, None, now);
                Word::Result
            }
            (_, Some(Answer::Error(text))) => match text.split(' ').next().unwrap_or_default() {
                "READONLY" if is_write => {
                    self.history.finish(begun, OperationOutcome::NotExecuted, now);
                    self.shown.read_only += 1;
                    Word::ReadOnly
                }
                "LOADING" | "NOQUORUM" | "STANDBY" if !self.served => {
                    self.history.finish(begun, OperationOutcome::NotExecuted, now);
                    Word::Early
                }
                _ => panic!("{text:?} to {action:?}"),
            },
            // The connection ended: the outcome is unknown.
            (_, None) => {
                self.history.finish(begun, OperationOutcome::Unknown, now);
                self.shown.unknown += u64::from(is_write);
                Word::Broken
            }
            (action, Some(answer)) => panic!("{answer:?} to {action:?}"),
        };
        self.served |= is_write && word == Word::Result;
        word
    }
}

/// How a request of the script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Result,
    ReadOnly,
    /// Not executed, because no master serves yet.
    Early,
    Broken,
}
