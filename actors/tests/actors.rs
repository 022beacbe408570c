//! Single actors with stand-ins for their collaborators, in virtual time where the clock matters.

use actix::prelude::*;
use dsm::config::{Fence, Fsync};
use dsm::embed::{self, Get, Put, Status};
use dsm::env::{Disk as _, LockSeen, OpenMode, Post, Stands};
use dsm::journal::shared_file::failover_watcher::{
    self, FailoverWatcher, FenceHolder, LockLooked, LockWon, WaitForLock, WatchLock,
};
use dsm::journal::shared_file::log_tailer::{self, LogTailer, Replayed};
use dsm::journal::shared_file::log_writer::{
    self, Abandon, Abandoned, Append, Close, Closed, EpochWritten, LogDisplaced, LogFailed, LogWriter,
    Reopen, Reopened, Sync, Synced,
};
use dsm::journal::{LogEvent, NewRecord, Replay};
use dsm::node_error::NodeError;
use dsm::slave_proxy::EndReason;
use dsm::supervision::{Fate, PanicGuard, Stop};
use dsm::testing::{virtual_time, FileOperation, MemoryDisk, MemoryEnv, Probe, ProxyBench, Received};
use dsm_protocol::command::{Command, ErrorWord};
use dsm_protocol::frame;
use dsm_protocol::ids::{
    ClusterId, Epoch, Incarnation, LinkId, Millis, Reign, ReignId, Seq, SessionId, SlaveId, UnixMillis,
    Version,
};
use dsm_protocol::machine::master::{self, Asker, Effect, Master, WriteId};
use dsm_protocol::machine::reign::{self, Event, Leadership};
use dsm_protocol::message::{Control, Hello, HelloRole, Message as Wire};
use dsm_protocol::record::{self, ClockMark, FileNumber, Position, Scanner, Step};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{advance, sleep, timeout, Instant};

const LOG: &str = "kv_store.log";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Lets everything run that can, without letting time pass.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

mod slave_proxy {
    use super::*;

    const ACK_TIMEOUT: Duration = Duration::from_secs(1);

    fn reasons(bench: &ProxyBench) -> Vec<EndReason> {
        bench.ended.take().into_iter().map(|ended| ended.reason).collect()
    }

    #[test]
    fn a_slave_that_never_acknowledges_ends_its_proxy_at_the_timeout() {
        virtual_time(async {
            let bench = ProxyBench::start(&MemoryEnv::new().env(), ACK_TIMEOUT);
            sleep(ms(300)).await;
            bench.send();
            sleep(ms(999)).await;
            assert!(bench.ended.is_empty() && !bench.is_cut(), "too early");
            sleep(ms(130)).await;
            assert_eq!(reasons(&bench), [EndReason::AckTimeout]);
            assert!(bench.is_cut() && !bench.runs());
        });
    }

    #[test]
    fn a_slave_that_acknowledges_late_but_in_time_stays_and_an_idle_one_is_pinged() {
        virtual_time(async {
            let bench = ProxyBench::start(&MemoryEnv::new().env(), ACK_TIMEOUT);
            for number in 1..=20 {
                bench.send();
                sleep(ms(900)).await;
                assert!(bench.ack(number));
            }
            assert_eq!(bench.pings(), 0, "a busy link is not pinged");
            sleep(ms(1200)).await;
            assert_eq!(bench.pings(), 1);
            assert!(bench.ended.is_empty());
            bench.end(EndReason::Replaced);
        });
    }

    #[test]
    fn a_long_value_may_take_its_time_on_a_slow_link_and_a_stuck_one_may_not() {
        virtual_time(async {
            let bench = ProxyBench::start(&MemoryEnv::new().env(), ACK_TIMEOUT);
            // 16 MiB, of which the socket takes 2 MiB a second.
            bench.send_bytes(16 << 20);
            bench.let_the_socket_take(2 << 20, ms(1000), 8).await;
            assert!(bench.ended.is_empty(), "it makes progress: {:?}", reasons(&bench));
            assert!(bench.ack(1));
            // The next one stands still after 2 MiB.
            bench.send_bytes(16 << 20);
            bench.let_the_socket_take(2 << 20, ms(500), 1).await;
            sleep(ms(5600)).await;
            assert_eq!(reasons(&bench), [EndReason::AckTimeout]);
        });
    }

    #[test]
    fn acknowledgements_that_arrive_in_a_pause_of_this_process_are_not_late() {
        virtual_time(async {
            let bench = ProxyBench::start(&MemoryEnv::new().env(), ACK_TIMEOUT);
            sleep(ms(500)).await;
            bench.send();
            sleep(ms(200)).await;
            // Stopped for ten seconds; what the slave has said meanwhile lies unread in the socket.
            advance(Duration::from_secs(10)).await;
            sleep(ms(900)).await;
            assert!(bench.ended.is_empty(), "judged by a time in which nothing could be read");
            assert!(bench.ack(1));
            for _ in 0..10 {
                sleep(Duration::from_secs(1)).await;
                assert!(bench.ack_all(), "a ping among it");
            }
            assert!(bench.ended.is_empty());

            // The same pause and no acknowledgement: the deadline begins anew, once.
            bench.send();
            advance(Duration::from_secs(10)).await;
            sleep(ms(1300)).await;
            assert_eq!(reasons(&bench), [EndReason::AckTimeout]);
        });
    }

    #[test]
    fn a_flood_of_acknowledgements_that_say_nothing_new_does_not_move_the_deadline() {
        virtual_time(async {
            let bench = ProxyBench::start(&MemoryEnv::new().env(), ACK_TIMEOUT);
            bench.send();
            assert!(bench.ack(1));
            bench.send();
            for _ in 0..1200 {
                for _ in 0..50 {
                    assert!(bench.ack(1), "a repeated ACK is allowed");
                }
                sleep(ms(1)).await;
            }
            assert_eq!(reasons(&bench), [EndReason::AckTimeout]);
        });
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_refused() {
        virtual_time(async {
            let bench = ProxyBench::start(&MemoryEnv::new().env(), ACK_TIMEOUT);
            bench.send();
            assert!(!bench.ack(2));
            assert!(bench.ack(1));
            assert!(!bench.ack(0), "backwards");
            bench.end(EndReason::Protocol("ACK of 2".to_owned()));
            settle().await;
            assert_eq!(reasons(&bench), [EndReason::Protocol("ACK of 2".to_owned())]);
        });
    }
}

mod log_writer_actor {
    use super::*;

    struct Rig {
        disk: MemoryDisk,
        writer: Addr<LogWriter>,
        written: Received<LogEvent>,
        epoch: Received<EpochWritten>,
        failed: Received<LogFailed>,
        displaced: Received<LogDisplaced>,
        abandoned: Received<Abandoned>,
        synced: Received<Synced>,
        closed: Received<Closed>,
        reopened: Received<Reopened>,
        fate: Fate,
        machine: Master,
        asked: u64,
    }

    /// A writer whose EPOCH record is written, and no SYNCED mark yet.
    async fn rig() -> Rig {
        let rig = rig_on(MemoryEnv::new()).await;
        assert_eq!(rig.epoch.take().len(), 1);
        rig.disk.take_operations();
        rig
    }

    /// A writer that has been told to begin.
    async fn rig_on(world: MemoryEnv) -> Rig {
        let open = || async { world.disk.open(Path::new(LOG), OpenMode::Write).await };
        let (file, sync_file) = (open().await.expect("in memory"), open().await.expect("in memory"));
        let identity = file.identity().await.expect("in memory");
        let start = log_writer::Start {
            env: world.env(),
            file,
            sync_file,
            post: Post { path: Path::new(LOG).into(), identity },
            position: Position::default(),
            reign: Reign::new(1, 1),
            number: FileNumber::default(),
            handoff: std::rc::Rc::default(),
            given_up: Vec::new(),
            clock: ClockMark { time: UnixMillis(1_000), uptime: Millis(5), boot: "boot".to_owned() },
            head: Some(record::Operation::Cluster(ClusterId(7))),
            address: "127.0.0.1:1".to_owned(),
            fsync: Fsync::Always,
        };
        let (written_port, written) = Probe::begin();
        let (epoch_port, epoch) = Probe::begin();
        let (failed_port, failed) = Probe::begin();
        let (displaced_port, displaced) = Probe::begin();
        let (abandoned_port, abandoned) = Probe::begin();
        let (synced_port, synced) = Probe::begin();
        let (closed_port, closed) = Probe::begin();
        let (reopened_port, reopened) = Probe::begin();
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
        let fate = Fate::default();
        let writer = LogWriter::new(start, ports, PanicGuard::new("LogWriter", fate.clone())).start();
        // The machine names the writes: it alone can.
        let mut machine = Master::new(master::Config::default());
        let mut effects = Vec::new();
        machine.step(
            Millis(0),
            master::Event::ReignBegan { version: Version::new(1, 2), id: ReignId(1) },
            &mut effects,
        );
        let id = SlaveId::new("slave1").expect("a valid id");
        let joined = master::Event::SlaveJoined { id, link: LinkId(1), room_bytes: u64::MAX };
        machine.step(Millis(0), joined, &mut effects);
        settle().await;
        let disk = world.disk;
        Rig {
            disk,
            writer,
            written,
            epoch,
            failed,
            displaced,
            abandoned,
            synced,
            closed,
            reopened,
            fate,
            machine,
            asked: 0,
        }
    }

    impl Rig {
        /// A write of a key of its own.
        fn change(&mut self) -> NewRecord {
            self.asked += 1;
            let asker = Asker { session: SessionId(1), tag: self.asked };
            let command = Command::Put { key: format!("key{:03}", self.asked).into(), value: "value".into() };
            let request = master::Event::Request { asker, deadline: Millis(1000), command };
            let mut effects = Vec::new();
            self.machine.step(Millis(0), request, &mut effects);
            match effects.pop() {
                Some(Effect::Append { write, change, expires, after }) => {
                    NewRecord { write, change, expires, after }
                }
                other => panic!("{other:?}"),
            }
        }

        /// Appends `count` writes in one batch; their names.
        fn append(&mut self, count: usize) -> Vec<WriteId> {
            let changes: Vec<_> = (0..count).map(|_| self.change()).collect();
            let names = changes.iter().map(|record| record.write).collect();
            self.writer.do_send(Append { changes });
            names
        }

        fn content(&self) -> Vec<u8> {
            self.disk.content(Path::new(LOG))
        }

        /// The operations of the log's lines, all of which must be good.
        fn lines(&self) -> Vec<String> {
            let content = self.content();
            let mut scanner = Scanner::new(1 << 20);
            while let Step::Record { .. } = scanner.next(&content[scanner.position().offset as usize..]) {}
            assert_eq!(scanner.position().offset, content.len() as u64, "a bad line");
            let text = String::from_utf8(content).expect("text");
            text.lines().map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect()
        }
    }

    #[test]
    fn a_write_is_answered_once_it_is_synced_and_the_log_closes_marked() {
        virtual_time(async {
            let mut rig = rig().await;
            let names = rig.append(1);
            settle().await;
            let written = rig.written.take_written();
            assert_eq!(written.len(), 1);
            assert_eq!(written[0].writes[0].write, names[0]);
            assert_eq!(written[0].writes[0].version, Version::new(1, 3));
            let operations = rig.disk.take_operations();
            assert!(matches!(operations[..], [FileOperation::Append { sync: true, .. }]), "{operations:?}");
            rig.writer.do_send(Close);
            settle().await;
            let closed = rig.closed.take();
            assert_eq!(closed[0].position.synced, Seq(3));
            assert_eq!(closed[0].position.offset, rig.content().len() as u64);
            assert_eq!(rig.lines(), ["CLUSTER", "EPOCH", "WRITE", "SYNCED"]);
            assert!(!rig.writer.connected() && !rig.fate.is_decided());
        });
    }

    #[test]
    fn the_log_is_synced_while_it_is_written_and_one_sync_answers_all_who_asked_before_it() {
        virtual_time(async {
            let mut rig = rig().await;
            rig.append(1);
            settle().await;
            rig.disk.take_operations();
            rig.disk.set_latency(ms(5));
            rig.writer.do_send(Sync);
            settle().await;
            // Too late for the sync that has begun, and in time for the next one, both of them.
            rig.writer.do_send(Sync);
            rig.writer.do_send(Sync);
            rig.append(1);
            sleep(ms(6)).await;
            assert_eq!(rig.written.take_written().len(), 2, "the log is written meanwhile");
            assert!(rig.synced.is_empty());
            sleep(ms(5)).await;
            assert_eq!(rig.synced.take().len(), 1);
            let syncs = rig.disk.take_operations();
            let syncs = syncs.iter().filter(|operation| matches!(operation, FileOperation::Sync)).count();
            assert_eq!(syncs, 2);
            sleep(ms(50)).await;
            assert!(rig.synced.is_empty());
        });
    }

    #[test]
    fn a_close_that_is_taken_back_in_time_leaves_the_log_open_and_marked_once() {
        virtual_time(async {
            let mut rig = rig().await;
            rig.append(1);
            settle().await;
            rig.disk.set_latency(ms(5));
            rig.writer.do_send(Close);
            // In the midst of the last sync.
            sleep(ms(7)).await;
            rig.writer.do_send(Reopen);
            rig.append(1);
            settle().await;
            assert_eq!(rig.reopened.take().len(), 1, "said without waiting for the disk");
            sleep(ms(12)).await;
            assert_eq!(rig.written.take_written().len(), 2);
            assert_eq!(rig.lines(), ["CLUSTER", "EPOCH", "WRITE", "SYNCED", "WRITE"]);
            // A second close finds a write that it must not cut off.
            rig.append(1);
            rig.writer.do_send(Close);
            sleep(ms(50)).await;
            assert_eq!(rig.written.take_written().len(), 1);
            let closed = rig.closed.take();
            assert_eq!(closed.len(), 1);
            assert_eq!(closed[0].position.offset, rig.content().len() as u64);
            assert_eq!(closed[0].position.line, 7);
            assert_eq!(rig.lines()[3..], ["SYNCED", "WRITE", "WRITE", "SYNCED"]);
            assert!(!rig.writer.connected());
        });
    }

    #[test]
    fn a_log_that_is_closed_is_not_given_back() {
        virtual_time(async {
            let rig = rig().await;
            rig.writer.do_send(Close);
            sleep(ms(1)).await;
            rig.writer.do_send(Reopen);
            settle().await;
            assert_eq!((rig.closed.take().len(), rig.reopened.take().len()), (1, 0));
        });
    }

    #[test]
    fn what_waits_while_a_group_is_at_the_disk_becomes_one_group_with_one_sync() {
        virtual_time(async {
            let mut rig = rig().await;
            rig.disk.set_latency(ms(5));
            let mut names = rig.append(1);
            settle().await;
            for _ in 0..10 {
                names.extend(rig.append(2));
            }
            sleep(ms(12)).await;
            let written = rig.written.take_written();
            let sizes: Vec<usize> = written.iter().map(|written| written.writes.len()).collect();
            assert_eq!(sizes, [1, 20]);
            let answered: Vec<_> = written.iter().flat_map(|w| w.writes.iter().map(|r| r.write)).collect();
            assert_eq!(answered, names, "in the order of the appends");
            let operations = rig.disk.take_operations();
            assert!(
                matches!(
                    operations[..],
                    [FileOperation::Append { sync: true, .. }, FileOperation::Append { sync: true, .. }]
                ),
                "{operations:?}"
            );
        });
    }

    #[test]
    fn the_next_group_waits_while_those_who_were_answered_write_again() {
        virtual_time(async {
            let mut rig = rig().await;
            let sizes = |rig: &mut Rig| {
                let written = rig.written.take_written();
                written.iter().map(|written| written.writes.len()).collect::<Vec<_>>()
            };
            rig.disk.set_latency(ms(32));
            rig.append(10);
            sleep(ms(33)).await;
            assert_eq!(sizes(&mut rig), [10]);
            // One after another they write again.
            for _ in 0..4 {
                rig.append(1);
                sleep(ms(1)).await;
            }
            rig.append(6);
            sleep(ms(33)).await;
            assert_eq!(sizes(&mut rig), [10], "all in one group");
            // This time one does, and no other comes.
            rig.append(1);
            sleep(ms(10)).await;
            rig.append(9);
            sleep(ms(33)).await;
            assert_eq!(sizes(&mut rig), [1]);
            // What is asked for before the log closes is not waited with.
            sleep(ms(33)).await;
            assert_eq!(sizes(&mut rig), [9]);
            rig.append(1);
            settle().await;
            rig.writer.do_send(Close);
            sleep(ms(33)).await;
            assert_eq!(sizes(&mut rig), [1]);
        });
    }

    #[test]
    fn after_ten_quiet_milliseconds_a_mark_covers_the_last_group_without_a_sync() {
        virtual_time(async {
            let mut rig = rig().await;
            rig.append(1);
            sleep(ms(9)).await;
            assert_eq!(rig.lines(), ["CLUSTER", "EPOCH", "WRITE"]);
            // A write begins the wait anew.
            rig.append(1);
            sleep(ms(9)).await;
            assert_eq!(rig.lines().len(), 4);
            rig.disk.take_operations();
            sleep(ms(3)).await;
            assert_eq!(rig.lines(), ["CLUSTER", "EPOCH", "WRITE", "WRITE", "SYNCED"]);
            let operations = rig.disk.take_operations();
            assert!(matches!(operations[..], [FileOperation::Append { sync: false, .. }]), "{operations:?}");
            sleep(Duration::from_secs(5)).await;
            assert_eq!(rig.disk.take_operations(), [], "one mark is enough");
        });
    }

    #[test]
    fn a_sync_that_fails_is_reported_and_never_tried_again() {
        virtual_time(async {
            let mut rig = rig().await;
            rig.disk.set_sync_fails(true);
            rig.append(1);
            settle().await;
            assert_eq!(rig.failed.take().len(), 1);
            assert!(rig.written.is_empty(), "nobody knows whether it is written");
            assert_eq!(rig.disk.take_operations().len(), 1);
            // The disk is well again, or claims to be: what it lost it does not say.
            rig.disk.set_sync_fails(false);
            rig.append(1);
            rig.writer.do_send(Close);
            sleep(Duration::from_secs(10)).await;
            assert_eq!(rig.disk.take_operations(), []);
            assert!(rig.failed.is_empty() && rig.written.is_empty() && rig.closed.is_empty());
        });
    }

    /// What the writer has found at its path.
    fn found(rig: &Rig) -> Option<Stands> {
        let displaced = rig.displaced.take().pop()?;
        assert!(rig.failed.is_empty() && rig.closed.is_empty());
        Some(displaced.found.stands)
    }

    #[test]
    fn nothing_is_appended_to_a_log_that_is_not_at_its_path_as_it_was_left() {
        let path = Path::new(LOG);
        let moved = Path::new("/moved");
        type Do = fn(&MemoryDisk, &Path, &Path);
        let faults: [(Do, Stands); 4] = [
            (|disk, path, moved| disk.rename(path, moved), Stands::Nothing),
            (
                |disk, path, moved| {
                    disk.rename(path, moved);
                    disk.extend(path, b"");
                },
                Stands::Other,
            ),
            (|disk, path, _| disk.cut(path, 7), Stands::Shorter { bytes: 0 }),
            (|disk, path, _| disk.extend(path, b"more"), Stands::Longer { bytes: 4 }),
        ];
        for (fault, stands) in faults {
            virtual_time(async move {
                let mut rig = rig().await;
                rig.append(1);
                settle().await;
                assert_eq!(rig.written.take_written()[0].writes.len(), 1);
                let length = rig.content().len() as u64;
                let stands = match stands {
                    Stands::Shorter { .. } => Stands::Shorter { bytes: length - 7 },
                    other => other,
                };
                fault(&rig.disk, path, moved);
                rig.disk.take_operations();
                let before = (rig.disk.content(path), rig.disk.content(moved));
                let refused = rig.append(3);
                settle().await;
                assert_eq!(found(&rig), Some(stands));
                // What comes later is refused too, and then it is said that all is.
                let later = rig.append(1);
                rig.writer.do_send(Abandon);
                settle().await;
                assert_eq!(rig.abandoned.take().len(), 1);
                let told = rig.written.take_written();
                assert!(told.iter().all(|told| told.writes.is_empty()));
                assert!(told
                    .iter()
                    .all(|told| told.refusal.as_ref().is_some_and(|(word, _)| word.is_not_executed())));
                let told: Vec<_> = told.into_iter().flat_map(|told| told.refused).collect();
                assert_eq!(told, [refused, later].concat());
                rig.writer.do_send(Close);
                sleep(Duration::from_secs(2)).await;
                assert_eq!(rig.disk.take_operations(), [], "nothing is written any more");
                assert_eq!((rig.disk.content(path), rig.disk.content(moved)), before);
                assert!(rig.closed.is_empty() && rig.failed.is_empty());
            });
        }
    }

    #[test]
    fn a_group_whose_log_is_moved_during_the_write_is_unknown_and_later_writes_are_refused() {
        virtual_time(async {
            let mut rig = rig().await;
            rig.disk.set_latency(ms(5));
            let at_disk = rig.append(1);
            settle().await;
            let waits = rig.append(2);
            rig.disk.rename(Path::new(LOG), Path::new("/moved"));
            sleep(ms(6)).await;
            assert_eq!(found(&rig), Some(Stands::Nothing));
            let told = rig.written.take_written();
            let told: Vec<_> = told
                .into_iter()
                .map(|told| (told.writes.len(), told.refused, told.refusal.map(|(word, _)| word)))
                .collect();
            let unknown = (0, at_disk, Some(ErrorWord::Unknown));
            assert_eq!(told, [unknown, (0, waits, Some(ErrorWord::ReadOnly))]);
        });
    }

    #[test]
    fn the_path_is_checked_even_if_nothing_is_written_and_right_before_a_log_is_closed() {
        virtual_time(async {
            let idle = rig().await;
            sleep(Duration::from_secs(5)).await;
            idle.disk.rename(Path::new(LOG), Path::new("/moved"));
            sleep(Duration::from_secs(1)).await;
            assert_eq!(found(&idle), Some(Stands::Nothing));
            // A log that is put back in time was never away.
            let closing = rig().await;
            closing.disk.rename(Path::new(LOG), Path::new("/moved"));
            closing.disk.rename(Path::new("/moved"), Path::new(LOG));
            sleep(Duration::from_secs(5)).await;
            assert_eq!(found(&closing), None);
            closing.disk.replace(Path::new(LOG), b"");
            closing.writer.do_send(Close);
            settle().await;
            assert_eq!(found(&closing), Some(Stands::Other));
            assert!(closing.closed.is_empty());
        });
    }

    #[test]
    fn a_reign_whose_epoch_finds_no_room_begins_when_there_is_some() {
        virtual_time(async {
            let world = MemoryEnv::new();
            world.disk.set_length_max(Some(30));
            let mut rig = rig_on(world).await;
            sleep(ms(10_000)).await;
            assert!(rig.epoch.is_empty() && rig.failed.is_empty(), "it neither begins nor ends");
            let tries = rig.disk.take_operations().len();
            assert!(tries < 200, "{tries} operations in ten seconds");
            rig.disk.set_length_max(None);
            sleep(ms(300)).await;
            assert_eq!(rig.epoch.take().len(), 1);
            rig.append(1);
            settle().await;
            assert_eq!(rig.written.take_written()[0].writes[0].version, Version::new(1, 3));
            assert_eq!(rig.lines()[..4], ["CLUSTER", "EPOCH", "SYNCED", "WRITE"]);
        });
    }

    #[test]
    fn on_a_full_disk_whole_lines_are_answered_and_the_rest_is_refused_until_there_is_room() {
        virtual_time(async {
            let mut rig = rig().await;
            let before = rig.content().len();
            rig.append(1);
            settle().await;
            rig.written.take_written();
            let line = rig.content().len() - before;
            rig.disk.take_operations();

            // Two lines and a half fit of the next four; another two wait behind them.
            rig.disk.set_length_max(Some(before + line + 2 * line + line / 2));
            rig.disk.set_latency(ms(2));
            let first = rig.append(4);
            settle().await;
            let behind = rig.append(2);
            sleep(ms(8)).await;
            let written = rig.written.take_written();
            assert_eq!(written.len(), 1, "{written:?}");
            let done: Vec<_> = written[0].writes.iter().map(|record| record.write).collect();
            assert_eq!(done, first[..2]);
            let refused: Vec<_> = first[2..].iter().chain(&behind).copied().collect();
            assert_eq!(written[0].refused, refused, "what comes after it is refused too, in order");
            let word = written[0].refusal.as_ref().map(|(word, _)| *word);
            assert_eq!(word, Some(ErrorWord::ReadOnly));
            assert_eq!(rig.content().len(), before + 3 * line, "the half line is cut");
            let operations = rig.disk.take_operations();
            assert!(
                matches!(
                    operations[..],
                    [FileOperation::Append { .. }, FileOperation::Truncate { .. }, FileOperation::Sync, ..]
                ),
                "{operations:?}"
            );

            // Full as it is: refused whole, and the log stays good. Then there is room again.
            rig.disk.set_length_max(Some(before + 3 * line));
            let full = rig.append(1);
            sleep(ms(30)).await;
            assert_eq!(rig.written.take_written()[0].refused, full);
            rig.disk.set_length_max(None);
            let resumed = rig.append(1);
            sleep(ms(5)).await;
            let written = rig.written.take_written();
            assert_eq!(written[0].writes[0].write, resumed[0]);
            assert_eq!(written[0].writes[0].version, Version::new(1, 6), "no seq is left out");
            assert_eq!(rig.lines(), ["CLUSTER", "EPOCH", "WRITE", "WRITE", "WRITE", "WRITE"]);
            assert!(rig.failed.is_empty() && rig.epoch.is_empty());
        });
    }

    #[test]
    fn a_panic_ends_the_node() {
        virtual_time(async {
            let mut rig = rig().await;
            rig.disk.poison();
            rig.append(1);
            let outcome = timeout(Duration::from_secs(1), rig.fate.decided()).await;
            assert!(matches!(outcome, Ok(Err(NodeError::Panicked { actor: "LogWriter" }))), "{outcome:?}");
        });
    }
}

mod log_tailer_actor {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use tokio::sync::Notify;

    struct Rig {
        disk: MemoryDisk,
        tailer: Addr<LogTailer>,
        replayed: Received<Replayed>,
        sighted: Received<log_tailer::Sighted>,
        halted: Received<log_tailer::Halted>,
        fate: Fate,
        seen: Vec<String>,
    }

    fn rig() -> Rig {
        let world = MemoryEnv::new();
        let (replayed_port, replayed) = Probe::begin();
        let (sighted_port, sighted) = Probe::begin();
        let (halted_port, halted) = Probe::begin();
        let fate = Fate::default();
        let tailer = LogTailer::new(
            world.env(),
            LOG.into(),
            1 << 20,
            log_tailer::Start::default(),
            log_tailer::Ports { replayed: replayed_port, sighted: sighted_port, halted: halted_port },
            fate.clone(),
        )
        .start();
        Rig { disk: world.disk, tailer, replayed, sighted, halted, fate, seen: Vec::new() }
    }

    impl Rig {
        /// What has been replayed since the last call: keys, `-key` for deleted ones, `start` for a new beginning.
        async fn replayed(&mut self) -> Vec<String> {
            sleep(ms(300)).await;
            for replayed in self.replayed.take() {
                if replayed.from_start {
                    self.seen.push("start".to_owned());
                }
                for change in replayed.changes {
                    let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
                    match change {
                        Replay::Put { key, .. } => self.seen.push(text(&key)),
                        Replay::Delete { key } => self.seen.push(format!("-{}", text(&key))),
                        Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => {}
                    }
                }
            }
            std::mem::take(&mut self.seen)
        }
    }

    /// A log whose writes are of `keys`.
    fn log(keys: &[&str]) -> Vec<u8> {
        log_of(7, 0, keys)
    }

    /// The same of a cluster, with a reign that begins by its EPOCH record if it has an id.
    fn log_of(cluster: u64, reign: u64, keys: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        record::encode(&record::Operation::Cluster(ClusterId(cluster)), Seq(1), Epoch(1), Seq(0), &mut out);
        let mut seq = 1;
        if reign > 0 {
            seq = 2;
            let mark = record::ReignMark {
                id: ReignId(reign),
                fsync: record::SyncMode::Always,
                given_up: Vec::new(),
            };
            let begun = record::Operation::Epoch { address: "here:1".to_owned(), mark: Some(mark) };
            record::encode(&begun, Seq(seq), Epoch(1), Seq(0), &mut out);
        }
        for key in keys {
            seq += 1;
            record::encode_write(&[(key, "v")], Seq(seq), Epoch(1), Seq(seq - 1), &mut out);
        }
        out
    }

    #[test]
    fn half_a_line_is_held_back_until_its_end_is_there() {
        virtual_time(async {
            let mut rig = rig();
            assert!(rig.replayed().await.is_empty(), "no file yet");
            let path = Path::new(LOG);
            let bytes = log(&["a", "b", "c"]);
            let half = log(&["a", "b"]).len() - 5;
            rig.disk.extend(path, &bytes[..half]);
            assert_eq!(rig.replayed().await, ["start", "a"]);
            rig.disk.extend(path, &bytes[half..half + 4]);
            assert!(rig.replayed().await.is_empty(), "all but the newline");
            rig.disk.extend(path, &bytes[half + 4..half + 5]);
            assert_eq!(rig.replayed().await, ["b"]);
            rig.disk.extend(path, &bytes[half + 5..]);
            assert_eq!(rig.replayed().await, ["c"]);
            assert!(!rig.fate.is_decided());
        });
    }

    #[test]
    fn what_is_appended_is_replayed_within_milliseconds() {
        virtual_time(async {
            let mut rig = rig();
            rig.disk.extend(Path::new(LOG), &log(&["a"]));
            rig.replayed().await;
            let bytes = log(&["a", "b"]);
            rig.disk.extend(Path::new(LOG), &bytes[log(&["a"]).len()..]);
            let began = Instant::now();
            while rig.replayed.is_empty() {
                sleep(ms(1)).await;
            }
            assert!(began.elapsed() <= ms(4), "{:?}", began.elapsed());
        });
    }

    /// A master that takes in a part when it is let, and how many keys each had and where it ended.
    struct Busy {
        parts: Rc<RefCell<Vec<(usize, u64)>>>,
        free: Rc<Notify>,
    }

    impl Actor for Busy {
        type Context = Context<Self>;
    }

    impl Handler<Replayed> for Busy {
        type Result = ResponseFuture<()>;

        fn handle(&mut self, replayed: Replayed, _: &mut Self::Context) -> Self::Result {
            self.parts.borrow_mut().push((replayed.changes.len(), replayed.place.position.offset));
            let free = Rc::clone(&self.free);
            Box::pin(async move { free.notified().await })
        }
    }

    #[test]
    fn the_next_part_and_no_more_is_read_while_the_master_takes_one_in() {
        virtual_time(async {
            let (world, path) = (MemoryEnv::new(), Path::new(LOG));
            let (parts, free) = (Rc::default(), Rc::new(Notify::new()));
            let busy = Busy { parts: Rc::clone(&parts), free: Rc::clone(&free) }.start();
            let ((sighted, _told), (halted, _ended)) = (Probe::begin(), Probe::begin());
            let ports = log_tailer::Ports { replayed: busy.recipient(), sighted, halted };
            let mut content = log(&[]);
            for seq in 2..=2000 {
                let pairs = [(format!("key{seq}"), "v".repeat(1000))];
                record::encode_write(&pairs, Seq(seq), Epoch(1), Seq(seq - 1), &mut content);
            }
            world.disk.extend(path, &content);
            let start = log_tailer::Start::default();
            let _tailer =
                LogTailer::new(world.env(), LOG.into(), 1 << 20, start, ports, Fate::default()).start();
            let taken = || parts.borrow().iter().map(|(keys, _)| keys).sum::<usize>();
            while taken() < 200 {
                free.notify_one();
                sleep(ms(1)).await;
            }
            let (first, end) = (taken(), parts.borrow().last().map_or(0, |(_, end)| *end));
            // What is read later than now is not found.
            world.disk.lose(path, end as usize..content.len());
            for _ in 0..100 {
                free.notify_one();
                sleep(ms(1)).await;
            }
            let second = taken() - first;
            assert!((200..=300).contains(&second), "{second} keys of the next part, of 256 KiB");
        });
    }

    #[test]
    fn another_file_at_the_path_is_read_from_its_start() {
        virtual_time(async {
            let mut rig = rig();
            rig.disk.extend(Path::new(LOG), &log(&["a", "b"]));
            assert_eq!(rig.replayed().await, ["start", "a", "b"]);
            // A compacted log of the same length and more: only its identity tells.
            rig.disk.replace(Path::new(LOG), &log(&["x", "y", "z"]));
            assert_eq!(rig.replayed().await, ["start", "x", "y", "z"]);
        });
    }

    #[test]
    fn a_file_that_was_cut_as_a_takeover_may_cut_it_is_read_from_its_start() {
        virtual_time(async {
            let mut rig = rig();
            let path = Path::new(LOG);
            rig.disk.extend(path, &log(&["a", "b", "c"]));
            assert_eq!(rig.replayed().await, ["start", "a", "b", "c"]);
            // The line of c says that b was on disk, and none says so of c.
            let kept = log(&["a", "b"]).len();
            rig.disk.cut(path, kept);
            assert_eq!(rig.replayed().await, ["start", "a", "b"]);
            rig.disk.extend(path, &log(&["a", "b", "d"])[kept..]);
            assert_eq!(rig.replayed().await, ["d"]);
            assert!(rig.sighted.is_empty(), "it was followed all the time");
        });
    }

    /// What was said of the log since the last call, in INFO's words.
    fn sights(rig: &Rig) -> Vec<&'static str> {
        rig.sighted.take().into_iter().map(|sighted| sighted.0.word()).collect()
    }

    #[test]
    fn a_file_without_what_was_replayed_is_not_followed_and_the_log_is_once_it_is_back() {
        let path = Path::new(LOG);
        let keys = ["a", "b", "c", "d"];
        type Do = fn(&MemoryDisk, &Path);
        let faults: [(&str, Do, &str); 7] = [
            ("moved", |disk, path| disk.rename(path, Path::new("/moved")), "gone"),
            ("an empty one", |disk, path| disk.replace(path, b""), "short"),
            ("an older copy", |disk, path| disk.replace(path, &log_of(7, 5, &["a", "b"])), "short"),
            (
                "another cluster's",
                |disk, path| disk.replace(path, &log_of(8, 5, &["a", "b", "c", "d", "e"])),
                "other",
            ),
            (
                "another reign's",
                |disk, path| disk.replace(path, &log_of(7, 6, &["a", "b", "c", "d", "e"])),
                "other",
            ),
            ("no log", |disk, path| disk.replace(path, b"a text\nof two lines\n"), "other"),
            ("cut", |disk, path| disk.cut(path, 0), "short"),
        ];
        for (what, fault, word) in faults {
            virtual_time(async move {
                let mut rig = rig();
                let content = log_of(7, 5, &keys);
                rig.disk.extend(path, &content);
                assert_eq!(rig.replayed().await, ["start", "a", "b", "c", "d"], "{what}");
                assert!(sights(&rig).is_empty());
                let held = content;
                fault(&rig.disk, path);
                assert!(rig.replayed().await.is_empty(), "{what}");
                assert_eq!(sights(&rig), [word], "{what}");
                sleep(Duration::from_secs(5)).await;
                assert_eq!(sights(&rig), [""; 0], "{what}: said once");
                rig.tailer.do_send(log_tailer::Look);
                settle().await;
                sleep(ms(10)).await;
                assert_eq!(sights(&rig), [word], "{what}: whoever asks hears it");
                // Half of a copy is no log yet; all of it, and more, is.
                rig.disk.replace(path, &held[..held.len() / 2]);
                assert!(rig.replayed().await.is_empty(), "{what}");
                let longer = log_of(7, 5, &["a", "b", "c", "d", "e"]);
                rig.disk.extend(path, &longer[held.len() / 2..]);
                assert_eq!(rig.replayed().await, ["start", "a", "b", "c", "d", "e"], "{what}");
                assert_eq!(sights(&rig).last(), Some(&"follows"), "{what}");
                assert!(!rig.fate.is_decided());
            });
        }
    }

    #[test]
    fn a_log_that_is_moved_back_goes_on_where_it_was() {
        virtual_time(async {
            let mut rig = rig();
            let (path, moved) = (Path::new(LOG), Path::new("/moved"));
            let longer = log_of(7, 5, &["a", "b", "c"]);
            let length = log_of(7, 5, &["a", "b"]).len();
            rig.disk.extend(path, &longer[..length]);
            assert_eq!(rig.replayed().await, ["start", "a", "b"]);
            rig.disk.rename(path, moved);
            // The active master has not seen it yet.
            rig.disk.extend(moved, &longer[length..]);
            assert!(rig.replayed().await.is_empty());
            assert_eq!(sights(&rig), ["gone"]);
            rig.disk.rename(moved, path);
            assert_eq!(rig.replayed().await, ["c"]);
            assert_eq!(sights(&rig), ["follows"]);
        });
    }

    #[test]
    fn a_log_that_another_was_written_over_is_not_taken_for_one_that_was_cut() {
        virtual_time(async {
            let mut rig = rig();
            let path = Path::new(LOG);
            rig.disk.extend(path, &log_of(7, 5, &["a", "b", "c"]));
            assert_eq!(rig.replayed().await, ["start", "a", "b", "c"]);
            // As long, and longer, in the same file.
            for keys in [&["x", "y", "z"][..], &["v", "w", "x", "y", "z"]] {
                rig.disk.cut(path, 0);
                rig.disk.extend(path, &log_of(8, 5, keys));
                assert!(rig.replayed().await.is_empty());
            }
            assert_eq!(sights(&rig), ["other"]);
            rig.disk.cut(path, 0);
            rig.disk.extend(path, &log_of(7, 5, &["a", "b", "c", "d"]));
            assert_eq!(rig.replayed().await, ["d"]);
            assert_eq!(sights(&rig), ["follows"]);
        });
    }

    #[test]
    fn the_tailer_does_not_judge_a_bad_line() {
        virtual_time(async {
            let mut rig = rig();
            let path = Path::new(LOG);
            rig.disk.extend(path, &log(&["a"]));
            rig.disk.extend(path, b"WRITE b v ;3 1 2 00000000\n");
            assert_eq!(rig.replayed().await, ["start", "a"]);
            assert!(!rig.fate.is_decided(), "the next holder of the lock decides");
            assert_eq!(rig.disk.content(path).len(), log(&["a"]).len() + 26, "untouched");
        });
    }

    #[test]
    fn a_halted_tailer_says_so_after_everything_it_has_replayed() {
        virtual_time(async {
            let mut rig = rig();
            rig.disk.extend(Path::new(LOG), &log(&["a"]));
            assert_eq!(rig.replayed().await, ["start", "a"]);
            rig.tailer.do_send(log_tailer::Halt);
            settle().await;
            assert_eq!(rig.halted.len(), 1);
            rig.disk.extend(Path::new(LOG), &log(&["a", "b"])[log(&["a"]).len()..]);
            assert!(rig.replayed().await.is_empty());
            assert!(!rig.fate.is_decided());
        });
    }
}

mod failover_watcher_actor {
    use super::*;

    /// A standby: it tells its machine what the watcher has seen, and the watcher what that wants.
    struct Standby {
        env: dsm::env::Env,
        machine: Leadership,
        watcher: Option<Addr<FailoverWatcher>>,
    }

    impl Actor for Standby {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Begin(Addr<FailoverWatcher>);

    impl Standby {
        fn step(&mut self, event: Event<'_>) {
            let mut effects = Vec::new();
            self.machine.step(self.env.now(), event, &mut effects);
            let watcher = self.watcher.as_ref().expect("it is begun before it is told anything");
            for effect in effects {
                match effect {
                    reign::Effect::WatchLeader => watcher.do_send(WatchLock),
                    reign::Effect::QueueToLead => watcher.do_send(WaitForLock),
                    reign::Effect::Fence { beat } => watcher.do_send(FenceHolder { beat }),
                    other => panic!("a standby alone wants {other:?}"),
                }
            }
        }
    }

    impl Handler<Begin> for Standby {
        type Result = ();

        fn handle(&mut self, begin: Begin, _: &mut Self::Context) {
            self.watcher = Some(begin.0);
            self.step(Event::CaughtUp);
        }
    }

    impl Handler<LockLooked> for Standby {
        type Result = ();

        fn handle(&mut self, looked: LockLooked, _: &mut Self::Context) {
            self.step(Event::Looked(looked.0));
        }
    }

    struct Rig {
        world: MemoryEnv,
        watcher: Addr<FailoverWatcher>,
        won: Received<LockWon>,
        fate: Fate,
    }

    /// A standby that queues for a lock which somebody holds, with a counter at 1.
    async fn rig(fence: Fence) -> Rig {
        let world = MemoryEnv::new();
        world.locks.set_seen(LockSeen::Held { beat: Some(1) });
        let (port, won) = Probe::begin();
        let fate = Fate::default();
        let config = reign::Config { failover_timeout_ms: 1000, ..reign::Config::default() };
        let machine = Leadership::new(config, world.env().now());
        let standby = Standby { env: world.env(), machine, watcher: None }.start();
        let path = "kv_store.log.lock".into();
        let ports = failover_watcher::Ports { looked: standby.clone().recipient(), won: port };
        let watcher = FailoverWatcher::new(world.env(), path, fence, ports, fate.clone()).start();
        standby.do_send(Begin(watcher.clone()));
        settle().await;
        Rig { world, watcher, won, fate }
    }

    impl Rig {
        /// The holder makes progress for a while.
        async fn beat_for(&self, beats: std::ops::Range<u64>) {
            for beat in beats {
                self.world.locks.set_seen(LockSeen::Held { beat: Some(beat) });
                sleep(ms(25)).await;
            }
        }

        async fn end(self) {
            self.watcher.do_send(Stop);
            settle().await;
            assert!(!self.fate.is_decided(), "a stop is no panic");
        }
    }

    #[test]
    fn a_holder_whose_counter_stands_still_is_fenced_at_the_timeout() {
        virtual_time(async {
            let rig = rig(Fence::Kill).await;
            rig.beat_for(2..200).await;
            assert_eq!(rig.world.locks.fenced(), 0, "it made progress for five seconds");
            sleep(ms(950)).await;
            assert_eq!(rig.world.locks.fenced(), 0, "too early");
            sleep(ms(100)).await;
            assert_eq!(rig.world.locks.fenced(), 1);
            rig.end().await;
        });
    }

    #[test]
    fn a_watcher_that_was_paused_fences_nobody() {
        virtual_time(async {
            let rig = rig(Fence::Kill).await;
            rig.beat_for(2..40).await;
            for pause in 1..5 {
                // Stopped for ten seconds, and the holder with it, as on a machine that was suspended.
                advance(Duration::from_secs(10)).await;
                sleep(ms(900)).await;
                assert_eq!(rig.world.locks.fenced(), 0, "after pause {pause}");
                rig.beat_for(100 * pause..100 * pause + 10).await;
            }
            // It still finds the one that hangs.
            advance(Duration::from_secs(10)).await;
            sleep(ms(1200)).await;
            assert_eq!(rig.world.locks.fenced(), 1);
            rig.end().await;
        });
    }

    #[test]
    fn with_fencing_forbidden_it_waits() {
        virtual_time(async {
            let rig = rig(Fence::None).await;
            sleep(Duration::from_secs(60)).await;
            assert_eq!(rig.world.locks.fenced(), 0);
            rig.world.locks.give();
            settle().await;
            assert_eq!(rig.won.take().len(), 1);
            rig.end().await;
        });
    }

    #[test]
    fn the_lock_is_taken_as_soon_as_it_is_free() {
        virtual_time(async {
            let rig = rig(Fence::Kill).await;
            rig.beat_for(2..10).await;
            let died = Instant::now();
            rig.world.locks.give();
            settle().await;
            assert_eq!(rig.won.take().len(), 1);
            assert_eq!(died.elapsed(), Duration::ZERO);
            rig.end().await;
        });
    }
}

/// A slave on a thread of its own, so that nothing slows it down: it says that it lives, as fast as the socket takes it,
/// until `stop`; then one word that a slave does not say. Ends when the master has cut the link.
fn flood(address: &str, stop: &AtomicBool) -> io::Result<()> {
    let mut stream = std::net::TcpStream::connect(address)?;
    let role = HelloRole::Slave {
        id: SlaveId::new("rogue").map_err(io::Error::other)?,
        incarnation: Incarnation(9),
        seen: None,
        room_bytes: u64::MAX,
    };
    let mut out = Vec::new();
    dsm_protocol::handshake::greet(Hello { cluster: None, role }, &mut out);
    for _ in 0..10_000 {
        frame::encode(&Wire::Control(Control::Alive), &mut out);
    }
    stream.write_all(&out)?;
    let mut alive = Vec::new();
    for _ in 0..10_000 {
        frame::encode(&Wire::Control(Control::Alive), &mut alive);
    }
    // A master that is starved cannot say stop.
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(15) {
        stream.write_all(&alive)?;
    }
    let mut word = Vec::new();
    frame::encode(&Wire::Ping, &mut word);
    stream.write_all(&word)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        // Cut while some of what was said is still unread.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => other.map(drop),
    }
}

#[actix::test]
async fn a_slave_that_floods_delays_nobody_and_is_cut_for_a_malformed_message() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = embed::LocalConfig::new(directory.path().join(LOG), 1);
    // The flood comes from outside.
    config.doors = embed::Doors::Loopback;
    let cluster = embed::start_local(config).await.unwrap();
    let master = cluster.primary().master().clone();
    let address = cluster.primary().address().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    // Load from outside of the runtime that is under test.
    #[allow(clippy::disallowed_methods)]
    let flooding = std::thread::spawn(move || flood(&address, &told));
    let has_line = |status: &str, wanted: &str| status.lines().any(|line| line == wanted);
    loop {
        let status = master.send(Status).await.unwrap().unwrap();
        if has_line(&status, "connections:3") {
            break;
        }
        sleep(ms(1)).await;
    }
    for number in 0..30 {
        let began = Instant::now();
        let key: bytes::Bytes = format!("key{number}").into();
        let put = Put { key: key.clone(), value: "v".into() };
        timeout(Duration::from_secs(10), master.send(put)).await.unwrap().unwrap().unwrap();
        assert_eq!(master.send(Get { key }).await.unwrap(), Ok(Some("v".into())));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    assert!(!flooding.is_finished(), "the flood was there all the time");
    stop.store(true, Ordering::Relaxed);
    let cut = async {
        while !flooding.is_finished() {
            sleep(ms(5)).await;
        }
    };
    timeout(Duration::from_secs(20), cut).await.expect("the master cuts the link");
    flooding.join().unwrap().unwrap();
    assert_eq!(master.send(Get { key: "key1".into() }).await.unwrap(), Ok(Some("v".into())));
    cluster.stop().await.unwrap();
}
