//! A log that the real `LogWriter` wrote, cut and damaged at every byte, and recovered as a takeover recovers it.
//!
//! `protocol/tests/every_byte` tries every kind of damage on 1,000 records with the judge alone; here a short log shows
//! that what is done about the verdict is right too: what is replayed, what is cut and synced, that a refusal names the
//! place and touches nothing, and that a reign can go on after it.

use actix::prelude::*;
use dsm::config::Fsync;
use dsm::env::{Disk as _, OpenMode, Post};
use dsm::journal::shared_file::log_tailer;
use dsm::journal::shared_file::log_writer::{
    self, Append, Close, Closed, EpochWritten, LogFailed, LogWriter,
};
use dsm::journal::{LogEvent, NewRecord, Replay};
use dsm::node_error::{LogDamage, NodeError};
use dsm::supervision::{Fate, PanicGuard};
use dsm::testing::{
    recover_log, recover_log_from, virtual_time, FileOperation, MemoryEnv, Probe, Received, RecoveredLog,
};
use dsm_protocol::command::Command;
use dsm_protocol::ids::{
    ClusterId, LinkId, Millis, Reign as Name, ReignId, SessionId, SlaveId, UnixMillis, Version,
};
use dsm_protocol::machine::master::{self, Asker, Change, Effect, Master};
use dsm_protocol::record::{self, line_bytes_max, ClockMark, CrashKind, FileNumber, Place, Position};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use CrashKind::{MayHaveLostPower, SameBoot};

const LOG: &str = "kv_store.log";
const LINE_MAX: usize = line_bytes_max(1 << 20);

fn path() -> &'static Path {
    Path::new(LOG)
}

/// Keys, the version and the place of their values.
type Contents = BTreeMap<Vec<u8>, (Version, Place)>;

/// A record that was answered.
struct Acknowledged {
    change: Arc<Change>,
    version: Version,
    places: SmallVec<[Place; 1]>,
    /// Where its line ends.
    end: usize,
}

/// What a reign wrote, as its writer said.
struct History {
    bytes: Vec<u8>,
    records: Vec<Acknowledged>,
    /// Where each group of records begins and ends; what stands between two is a mark.
    groups: Vec<(usize, usize)>,
    /// Where the EPOCH record ends.
    head_end: usize,
}

impl History {
    /// What the records in the first `length` bytes leave.
    fn contents(&self, length: usize) -> Contents {
        let mut contents = Contents::new();
        for record in self.records.iter().filter(|record| record.end <= length) {
            for ((key, _), place) in record.change.pairs().iter().zip(&record.places) {
                contents.insert(key.to_vec(), (record.version, *place));
            }
            record.change.deleted().iter().for_each(|key| {
                contents.remove(&key[..]);
            });
        }
        contents
    }

    /// Where the line begins in which the byte at `at` stands, and its number from 1.
    fn line_at(&self, at: usize) -> (usize, usize) {
        let front = &self.bytes[..at];
        let start = front.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        (start, front.iter().filter(|byte| **byte == b'\n').count() + 1)
    }
}

/// A reign's writer and those it talks to.
struct Reign {
    writer: Addr<LogWriter>,
    written: Received<LogEvent>,
    epoch: Received<EpochWritten>,
    failed: Received<LogFailed>,
    closed: Received<Closed>,
}

impl Reign {
    /// Begins to write at `position`, with an EPOCH record.
    async fn begin(world: &MemoryEnv, position: Position) -> Reign {
        let open = || async { world.disk.open(path(), OpenMode::Write).await.expect("in memory") };
        let file = open().await;
        let identity = file.identity().await.expect("in memory");
        let start = log_writer::Start {
            env: world.env(),
            file,
            sync_file: open().await,
            post: Post { path: path().into(), identity },
            position,
            reign: Name::new(position.epoch.0 + 1, 7),
            number: FileNumber::default(),
            handoff: std::rc::Rc::default(),
            given_up: Vec::new(),
            clock: ClockMark { time: UnixMillis(1_000), uptime: Millis(5), boot: "boot".to_owned() },
            head: position.cluster.is_none().then_some(record::Operation::Cluster(ClusterId(7))),
            address: "127.0.0.1:12345".to_owned(),
            fsync: Fsync::Always,
        };
        let (written_port, written) = Probe::begin();
        let (epoch_port, epoch) = Probe::begin();
        let (failed_port, failed) = Probe::begin();
        let (closed_port, closed) = Probe::begin();
        let ((synced_port, _), (reopened_port, _)) = (Probe::begin(), Probe::begin());
        let ((displaced_port, _), (abandoned_port, _)) = (Probe::begin(), Probe::begin());
        let ports = log_writer::Ports {
            written: written_port,
            epoch: epoch_port,
            failed: failed_port,
            displaced: displaced_port,
            abandoned: abandoned_port,
            synced: synced_port,
            closed: closed_port,
            reopened: reopened_port,
        };
        let writer = LogWriter::new(start, ports, PanicGuard::new("LogWriter", Fate::default())).start();
        Reign { writer, written, epoch, failed, closed }
    }
}

/// Lets time pass until something has come.
async fn came<M>(received: &Received<M>) -> Vec<M> {
    while received.is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    received.take()
}

/// What the clients ask for in one turn, number `turn`.
fn commands(turn: usize) -> Vec<Command> {
    let key = |number: usize| format!("user{}", number % 9).into();
    let value = |number: usize| "value ".repeat(number % 5).into();
    let mut commands = vec![Command::Put { key: key(turn), value: value(turn) }];
    if turn % 3 == 1 {
        commands.push(Command::Put {
            key: "\0\n;% größe".into(),
            value: vec![0, 10, 37, 255, turn as u8].into(),
        });
        let pairs = vec![
            (key(turn + 1), value(turn)),
            ("".into(), "".into()),
            ("WRITE".into(), "SYNCED % % ;9".into()),
        ];
        commands.push(Command::PutMany { pairs });
    }
    if turn % 4 == 3 {
        commands.push(Command::Delete { keys: vec![key(turn - 1), "WRITE".into()] });
    }
    commands
}

/// Lets a writer write groups of one and of several records, with a mark here and there and at the end.
async fn write_history(world: &MemoryEnv) -> History {
    world.disk.set_latency(Duration::from_millis(5));
    let reign = Reign::begin(world, Position::default()).await;
    let epoch = came(&reign.epoch).await.remove(0);
    // The machine names the writes: it alone can.
    let mut machine = Master::new(master::Config::default());
    let mut effects = Vec::new();
    let (id, link) = (SlaveId::new("slave1").expect("a valid id"), LinkId(1));
    for event in [
        master::Event::ReignBegan { version: epoch.version, id: ReignId(1) },
        master::Event::SlaveJoined { id, link, room_bytes: u64::MAX },
    ] {
        machine.step(Millis(0), event, &mut effects);
    }
    let mut history = History {
        bytes: Vec::new(),
        records: Vec::new(),
        groups: Vec::new(),
        head_end: epoch.offset as usize,
    };
    for turn in 0..24 {
        effects.clear();
        for command in commands(turn) {
            let asker = Asker { session: SessionId(1), tag: 1 };
            let request = master::Event::Request { asker, deadline: Millis(1000), command };
            machine.step(Millis(0), request, &mut effects);
        }
        let changes: Vec<_> = effects
            .drain(..)
            .map(|effect| match effect {
                Effect::Append { write, change, expires, after } => {
                    NewRecord { write, change, expires, after }
                }
                other => panic!("{other:?}"),
            })
            .collect();
        reign.writer.do_send(Append { changes: changes.clone() });
        let LogEvent::Written(written) = came(&reign.written).await.remove(0) else { panic!("not written") };
        assert_eq!((written.writes.len(), written.refused.len()), (changes.len(), 0));
        let file = world.disk.content(path());
        let ends: Vec<usize> = memchr::memchr_iter(b'\n', &file).map(|newline| newline + 1).collect();
        // The records are the last lines of the file.
        let ends = &ends[ends.len() - changes.len() - 1..];
        assert_eq!(written.bytes as usize, ends[changes.len()]);
        history.groups.push((ends[0], ends[changes.len()]));
        for ((record, NewRecord { write, change, .. }), end) in
            written.writes.into_iter().zip(changes).zip(&ends[1..])
        {
            assert_eq!(record.write, write);
            let (version, places) = (record.version, record.places);
            let event = master::Event::Written { write, version, places: places.clone() };
            machine.step(Millis(0), event, &mut effects);
            history.records.push(Acknowledged { change, version, places, end: *end });
        }
        if turn % 6 == 5 {
            sleep(Duration::from_millis(50)).await;
        }
    }
    reign.writer.do_send(Close);
    came(&reign.closed).await;
    assert!(reign.failed.is_empty());
    world.disk.set_latency(Duration::ZERO);
    history.bytes = world.disk.content(path());
    history
}

/// A file as a crash left it, and what may not be lost of it.
struct Crash {
    file: Vec<u8>,
    kind: CrashKind,
    /// Everything in front was synced.
    synced_end: usize,
}

/// Recovers from `crash`, and holds the recovery to the promise. Gives the length that was left, or `None` when the log
/// was refused.
async fn recover(history: &History, crash: &Crash, what: &str) -> Option<usize> {
    let world = MemoryEnv::new();
    world.disk.replace(path(), &crash.file);
    let recovered = recover_log(&world, path(), LINE_MAX, Fsync::Always, crash.kind).await;
    let operations = world.disk.take_operations();
    let left = world.disk.content(path());
    match recovered {
        Ok(recovered) => {
            let length = recovered.position.offset as usize;
            assert_eq!(left, history.bytes[..length], "{what}: what is left is not what was written");
            assert_eq!(contents_of(&recovered), history.contents(length), "{what}: replayed");
            assert!(length >= crash.synced_end, "{what}: acknowledged records after {length} are lost");
            if length < crash.file.len() {
                // The cut is durable before anything is written after it.
                let cut = [FileOperation::Truncate { length: length as u64 }, FileOperation::Sync];
                assert_eq!(operations[..2], cut, "{what}");
            } else {
                let cut = |operation: &FileOperation| matches!(operation, FileOperation::Truncate { .. });
                assert!(!operations.iter().any(cut), "{what}: nothing is to be cut");
            }
            assert_eq!(operations.last(), Some(&FileOperation::Sync), "{what}");
            Some(length)
        }
        Err(NodeError::Corrupt { damage, .. }) => {
            assert_eq!(left, crash.file, "{what}: a refused log is left as it is");
            assert_eq!(operations, [], "{what}");
            let damaged = (0..crash.file.len()).find(|at| crash.file[*at] != history.bytes[*at]);
            let (offset, line) =
                history.line_at(damaged.expect("nothing is damaged, and yet the log is refused"));
            let (LogDamage::Foreign { offset: told, line: in_line }
            | LogDamage::Record { offset: told, line: in_line, .. }) = damage
            else {
                panic!("{what}: {damage}")
            };
            assert_eq!((told, in_line), (offset as u64, line as u64), "{what}: {damage}");
            None
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

fn contents_of(recovered: &RecoveredLog) -> Contents {
    let mut contents = Contents::new();
    for change in recovered.replayed.iter().flat_map(|replayed| &replayed.changes) {
        match change {
            Replay::Put { key, version, place, .. } => {
                // Which number its file has is the reader's.
                contents.insert(key.to_vec(), (*version, Place { file: FileNumber::default(), ..*place }));
            }
            Replay::Delete { key } => {
                contents.remove(&key[..]);
            }
            Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => {}
        }
    }
    contents
}

#[test]
fn a_log_cut_at_any_byte_is_recovered_and_goes_on() {
    virtual_time(async {
        let world = MemoryEnv::new();
        let history = write_history(&world).await;
        let mut cuts = 0;
        let head = (0, history.head_end);
        for &(start, end) in [head].iter().chain(&history.groups) {
            for length in start..=end {
                // The write of this group ended here; what is in front of it was synced before it began.
                let synced_end = if length == end { end } else { start };
                for kind in [SameBoot, MayHaveLostPower] {
                    let crash = Crash { file: history.bytes[..length].to_vec(), kind, synced_end };
                    let left = recover(&history, &crash, &format!("cut at {length}, {kind:?}")).await;
                    assert_eq!(left, Some(history.line_at(length).0));
                    cuts += 1;
                }
            }
        }
        assert!(cuts > 3_000, "{cuts}");
        // The next reign writes after what was left, and all of it is good.
        for length in (0..history.bytes.len()).step_by(11) {
            let world = MemoryEnv::new();
            world.disk.replace(path(), &history.bytes[..length]);
            let recover = || recover_log(&world, path(), LINE_MAX, Fsync::Always, MayHaveLostPower);
            let first = recover().await.expect("only torn");
            let reign = Reign::begin(&world, first.position).await;
            came(&reign.epoch).await;
            reign.writer.do_send(Close);
            came(&reign.closed).await;
            let second = recover().await.expect("whole");
            assert_eq!(contents_of(&second), contents_of(&first), "cut at {length}");
            assert_eq!(second.position.epoch, first.position.epoch.next());
            assert!(
                second.position.ends_with_mark
                    && world.disk.content(path()).starts_with(&history.bytes[..history.line_at(length).0])
            );
        }
    });
}

#[test]
fn a_byte_damaged_anywhere_is_refused_unless_it_was_never_synced() {
    virtual_time(async {
        let world = MemoryEnv::new();
        let history = write_history(&world).await;
        let whole = history.bytes.len();
        let mark = history.groups.last().expect("groups were written").1;
        let (mut refused, mut torn) = (0, 0);
        let head = (0, history.head_end);
        for &(start, end) in [head].iter().chain(&history.groups) {
            for at in start..end {
                let byte = history.bytes[at];
                for damaged in (0..8).map(|bit| byte ^ 1 << bit).chain([b'\n', b' ', 0]) {
                    if damaged == byte {
                        continue;
                    }
                    // All of it was synced, and a mark says so; or this group was under way.
                    for (kind, file_end, synced_end) in [
                        (MayHaveLostPower, whole, mark),
                        (SameBoot, whole, mark),
                        (MayHaveLostPower, end, start),
                    ] {
                        let mut file = history.bytes[..file_end].to_vec();
                        file[at] = damaged;
                        let crash = Crash { file, kind, synced_end };
                        let what = format!(
                            "byte {at}, {byte:#04x} became {damaged:#04x}, {kind:?}, {file_end} bytes"
                        );
                        match recover(&history, &crash, &what).await {
                            None => refused += 1,
                            Some(left) => {
                                assert_eq!(left, history.line_at(at).0, "{what}");
                                torn += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(refused > 50_000 && torn > 20_000, "{refused} refused, {torn} torn");
    });
}

#[test]
fn what_the_disk_lost_is_not_written_again_and_not_served() {
    virtual_time(async {
        let history = write_history(&MemoryEnv::new()).await;
        let mut lost = 0;
        for &(start, end) in &history.groups {
            for hole in [start..end, start + 5..start + 6, start + 3..end - 1, end - 9..end] {
                // A standby has read this group, which is under way, from memory. Its sync fails, and the page goes.
                let world = MemoryEnv::new();
                world.disk.replace(path(), &history.bytes[..end]);
                let recover =
                    |from| recover_log_from(&world, path(), LINE_MAX, Fsync::Always, SameBoot, from);
                let read = recover(log_tailer::Start::default()).await.expect("all of it is good");
                let last = read.replayed.last().expect("it has read something");
                assert_eq!(last.place.position.offset as usize, end);
                assert_eq!(last.place.durable.offset as usize, start - mark_before(&history, start));
                let from =
                    log_tailer::Start { place: last.place.clone(), file: last.file, number: last.number };
                world.disk.lose(path(), hole.clone());
                world.disk.take_operations();
                let recovered = recover(from).await.expect("nothing acknowledged is lost");
                let whole = history.line_at(hole.start).0;
                assert_eq!(world.disk.content(path()), history.bytes[..whole], "{hole:?} of {start}..{end}");
                assert_eq!(recovered.position.offset as usize, whole);
                let began = recovered.replayed.iter().rposition(|replayed| replayed.from_start);
                assert!(began.is_some(), "what is gone is forgotten");
                let replayed = recovered.replayed.into_iter().skip(began.unwrap_or(0)).collect();
                let recovered = RecoveredLog { replayed, ..recovered };
                assert_eq!(contents_of(&recovered), history.contents(whole));
                assert!(world
                    .disk
                    .take_operations()
                    .contains(&FileOperation::Truncate { length: whole as u64 }));
                lost += 1;
            }
        }
        assert!(lost > 90, "{lost}");
    });
}

/// How many bytes the mark in front of a group has; 0 where another group is in front.
fn mark_before(history: &History, start: usize) -> usize {
    let begin = history.line_at(start - 1).0;
    if history.bytes[begin..].starts_with(b"SYNCED") {
        start - begin
    } else {
        0
    }
}

#[test]
fn without_fsync_always_a_long_torn_tail_is_refused_and_left_alone() {
    const CUT_MAX: usize = 1 << 20;
    virtual_time(async {
        let world = MemoryEnv::new();
        let history = write_history(&world).await;
        for (fsync, tail, is_cut) in [
            (Fsync::Everysec, CUT_MAX, true),
            (Fsync::Everysec, CUT_MAX + 1, false),
            (Fsync::Never, CUT_MAX + 1, false),
            (Fsync::Always, CUT_MAX + 1, true),
        ] {
            let mut file = history.bytes.clone();
            file.resize(file.len() + tail, 0);
            world.disk.replace(path(), &file);
            world.disk.take_operations();
            let recovered = recover_log(&world, path(), LINE_MAX, fsync, MayHaveLostPower).await;
            match recovered {
                Ok(recovered) => {
                    assert!(is_cut, "{fsync:?} {tail}");
                    assert_eq!(recovered.position.offset as usize, history.bytes.len());
                    assert_eq!(world.disk.content(path()), history.bytes);
                }
                Err(NodeError::Corrupt { damage, .. }) => {
                    assert!(!is_cut, "{fsync:?} {tail}: {damage}");
                    let LogDamage::TornTooFar { offset, .. } = damage else { panic!("{damage}") };
                    assert_eq!(offset as usize, history.bytes.len());
                    assert_eq!(world.disk.take_operations(), []);
                    assert_eq!(world.disk.content(path()).len(), file.len());
                }
                Err(other) => panic!("{other}"),
            }
        }
    });
}
