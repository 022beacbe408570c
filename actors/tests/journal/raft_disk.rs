//! The disk of a member of a replicated log, in a simulated world: what it finds again, whatever a crash has left.

use bytes::Bytes;
use dsm::env::sim::{DiskFault, Loss, Machine, World};
use dsm::env::OpenMode;
use dsm::journal::raft::disk::{Persisted, RaftDisk, RaftDiskSetup};
use dsm::journal::raft::start::{open, DiskFound, EmptyDisk, StartedDisk};
use dsm::journal::raft::EntryLine;
use dsm::journal::{LogEvent, Replay, ReplayPart};
use dsm::node_error::{LogStep, NodeError};
use dsm::testing::Probe;
use dsm_consensus::ids::MemberId;
use dsm_consensus::machine::{BatchNumber, LogBatch};
use dsm_consensus::members::{Members, NewMachine};
use dsm_consensus::{Config, Consensus, LogEntry};
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};
use dsm_protocol::record;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const LOG: &str = "kv_store.log";
const VOTE: &str = "kv_store.log.vote";
const CLUSTER: ClusterId = ClusterId(0x7f3a_9c0e_51d2_4b88);

fn setup(env: dsm::env::Env) -> RaftDiskSetup {
    RaftDiskSetup { env, path: LOG.into(), line_bytes_max: 8 << 20, compact_min_bytes: 0 }
}

fn members() -> Members {
    let machine = |number: u64| NewMachine { address: format!("10.0.0.{number}:12345"), token: number };
    Members::first(&[machine(1), machine(2), machine(3)]).expect("they are members")
}

fn write(term: u64, seq: u64, value: &str) -> LogEntry {
    let words = record::write_words(&[(format!("key{}", seq % 7), value)], None);
    LogEntry { version: Version::new(term, seq), data: words.into() }
}

/// The first entry of a reign.
fn reign(term: u64, seq: u64) -> LogEntry {
    LogEntry { version: Version::new(term, seq), data: Bytes::new() }
}

fn batch(number: u64) -> LogBatch {
    let number = BatchNumber(number);
    LogBatch { number, vote: None, install: None, cut_after: None, entries: Vec::new() }
}

/// A batch with entries, and with the vote that must come before them.
fn entries(number: u64, vote: Option<(u64, u64)>, entries: Vec<LogEntry>) -> LogBatch {
    let vote = vote.map(|(term, commit)| (Epoch(term), MemberId::new(1), Seq(commit)));
    LogBatch { vote, entries, ..batch(number) }
}

/// What a start has found, and what the master was told.
struct Started {
    disk: RaftDisk,
    found: dsm_consensus::Start,
    lines: Vec<EntryLine>,
    parts: Vec<ReplayPart>,
}

impl Started {
    /// The seqs of the entries after what is known to be committed, or the last one.
    fn tail(&self) -> Vec<u64> {
        self.found.tail.iter().map(|entry| entry.version.seq.0).collect()
    }

    /// The keys and versions that were told.
    fn told(&self) -> Vec<(String, Version)> {
        let changes = self.parts.iter().flat_map(|part| &part.changes);
        let puts = changes.filter_map(|change| match change {
            Replay::Put { key, version, .. } => Some((String::from_utf8_lossy(key).into_owned(), *version)),
            Replay::Delete { .. } | Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => None,
        });
        puts.collect()
    }
}

async fn find(env: dsm::env::Env) -> (Result<DiskFound, NodeError>, Vec<ReplayPart>) {
    let (port, events) = Probe::begin();
    let found = open(setup(env), &port).await;
    let part = |event| match event {
        LogEvent::Replayed(part) => part,
        other => panic!("{other:?}"),
    };
    (found, events.take().into_iter().map(part).collect())
}

async fn empty(env: dsm::env::Env) -> EmptyDisk {
    match find(env).await.0 {
        Ok(DiskFound::Empty(empty)) => empty,
        Ok(DiskFound::Member(_)) => panic!("it is a member's disk"),
        Err(error) => panic!("{error}"),
    }
}

async fn start(env: dsm::env::Env) -> Started {
    let (found, parts) = find(env).await;
    let Ok(DiskFound::Member(member)) = found else { panic!("{:?}", found.err()) };
    let StartedDisk { disk, start, lines, .. } = *member;
    // Whatever is found must be what a machine can start with.
    let config = Config::new(start.vote.member, 7);
    assert_eq!(Consensus::new(config, &start).err(), None, "{start:?}");
    Started { disk, found: start, lines, parts }
}

async fn fails(env: dsm::env::Env) -> String {
    match find(env).await.0 {
        Ok(_) => panic!("it starts"),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        }
    }
}

/// The disk of the member that begins a cluster.
async fn begin(env: dsm::env::Env) -> RaftDisk {
    let (port, _events) = Probe::begin();
    let begun = empty(env).await.begin(CLUSTER, &members(), &port).await;
    begun.unwrap_or_else(|error| panic!("{error}")).disk
}

fn run<F: std::future::Future<Output = ()>>(test: impl FnOnce(World, Machine) -> F) {
    World::run(7, |world| {
        let machine = world.machine("host");
        test(world, machine)
    });
}

fn seqs(lines: &[EntryLine]) -> Vec<u64> {
    lines.iter().map(|line| line.version.seq.0).collect()
}

fn lines(machine: &Machine) -> Vec<String> {
    let text = machine.content(Path::new(LOG)).expect("there is a log");
    let text = String::from_utf8(text).expect("it is text");
    // Without the checksums.
    text.lines().map(|line| line.rsplit_once(' ').expect("a checksum").0.to_owned()).collect()
}

#[test]
fn a_member_finds_again_what_it_has_written() {
    run(|world, machine| async move {
        let mut disk = begin(world.env(&machine, "a")).await;
        assert_eq!((disk.last(), disk.vote().commit), (Version::new(1, 2), Seq(2)));
        let first = entries(4, Some((2, 2)), vec![reign(2, 3), write(2, 4, "four")]);
        let second = entries(5, None, vec![write(2, 5, "fünf %")]);
        let persisted = disk.write(vec![first, second]).await.expect("it is written");
        let Persisted { through, lines: wrote, log_bytes, .. } = persisted;
        assert_eq!((through, log_bytes), (Some(BatchNumber(5)), disk.log_bytes()));
        disk.mark().await.expect("it is marked");
        disk.mark().await.expect("once");
        let sixth = entries(6, Some((2, 4)), vec![write(2, 6, "")]);
        let sixth = disk.write(vec![sixth]).await.expect("it is written");
        let reign_id = record::reign_of_term(CLUSTER, Epoch(2));
        assert_eq!(
            lines(&machine),
            [
                format!("CLUSTER {CLUSTER} % ;1 1 0"),
                format!("{} ;2 1 0", members()),
                format!("EPOCH 2 members ;3 2 2 Reign={reign_id} Fsync=always"),
                "WRITE key4 four ;4 2 2".to_owned(),
                "WRITE key5 fünf%20%25 ;5 2 2".to_owned(),
                "SYNCED % % ;5 2 5".to_owned(),
                "WRITE key6 % ;6 2 5".to_owned(),
            ]
        );
        drop(disk);
        let again = start(world.env(&machine, "a")).await;
        assert_eq!(again.found.vote.number, 2, "{:?}", again.found.vote);
        assert_eq!(again.told(), [("key4".to_owned(), Version::new(2, 4))]);
        assert_eq!(again.tail(), [5, 6]);
        assert_eq!(again.lines, wrote[2..].iter().cloned().chain(sixth.lines).collect::<Vec<_>>());
        assert_eq!(again.found.terms, [Version::new(1, 1), Version::new(2, 3)]);
        assert_eq!(again.found.records, [(Seq(2), members())]);
        assert!(again.parts.first().is_some_and(|part| part.from_start));
        assert!(again.parts.last().is_some_and(|part| part.caught_up && part.end.seq == Seq(4)));
    });
}

#[test]
fn values_stand_where_the_places_say() {
    run(|world, machine| async move {
        let mut disk = begin(world.env(&machine, "a")).await;
        let wrote = vec![reign(2, 3), write(2, 4, "four"), write(2, 5, "two words")];
        let persisted = disk.write(vec![entries(1, Some((2, 2)), wrote.clone())]).await.expect("written");
        let reader = disk.reader().await.expect("a second handle");
        for (entry, line) in wrote.iter().zip(persisted.lines).skip(1) {
            let [Replay::Put { place, .. }] = line.changes.as_slice() else { panic!("{line:?}") };
            let value = reader.read_value(*place, Epoch(2)).await.expect("it is there");
            assert_eq!(value, if entry.version.seq == Seq(4) { "four" } else { "two words" });
        }
    });
}

#[test]
fn a_member_that_gets_its_log_from_others_finds_it_again() {
    run(|world, machine| async move {
        let (port, _events) = Probe::begin();
        let member = MemberId::new(2).expect("it is not 0");
        let adopted = empty(world.env(&machine, "a")).await.adopt(CLUSTER, member, &port).await;
        let mut disk = adopted.unwrap_or_else(|error| panic!("{error}")).disk;
        assert_eq!(disk.last(), Version::default());
        disk.mark().await.expect("an empty log has no mark");
        drop(disk);
        let mut again = start(world.env(&machine, "a")).await;
        assert_eq!((again.tail(), again.found.vote.member), (vec![], member));
        let text = [format!("CLUSTER {CLUSTER} %"), members().to_string()];
        let mut got: Vec<LogEntry> = text
            .into_iter()
            .zip(1..)
            .map(|(words, seq)| LogEntry { version: Version::new(1, seq), data: words.into() })
            .collect();
        got.push(reign(2, 3));
        again.disk.write(vec![entries(1, Some((2, 0)), got)]).await.expect("it is written");
        drop(again);
        let again = start(world.env(&machine, "a")).await;
        assert_eq!((again.tail(), again.told()), (vec![1, 2, 3], vec![]));
    });
}

#[test]
fn what_a_later_leader_does_not_have_is_cut_and_never_comes_back() {
    run(|world, machine| async move {
        let mut disk = begin(world.env(&machine, "a")).await;
        let old = vec![reign(2, 3), write(2, 4, "kept"), write(2, 5, "gone"), write(2, 6, "gone")];
        disk.write(vec![entries(1, Some((2, 2)), old)]).await.expect("it is written");
        disk.mark().await.expect("it is marked");
        let cut = LogBatch {
            cut_after: Some(Seq(4)),
            ..entries(2, Some((3, 3)), vec![reign(3, 5), write(3, 6, "new")])
        };
        let persisted = disk.write(vec![cut]).await.expect("it is written");
        assert_eq!(seqs(&persisted.lines), [5, 6]);
        assert_eq!((disk.last(), disk.vote().term), (Version::new(3, 6), Epoch(3)));
        // Of one turn: what the first batch has is cut by the second one.
        let both = [
            entries(3, None, vec![write(3, 7, "gone"), write(3, 8, "gone")]),
            LogBatch { cut_after: Some(Seq(7)), ..entries(4, Some((4, 3)), vec![reign(4, 8)]) },
        ];
        let persisted = disk.write(both.to_vec()).await.expect("it is written");
        assert_eq!(seqs(&persisted.lines), [7, 8]);
        assert!(!lines(&machine)[4..].iter().any(|line| line.contains("gone ;8")), "{:?}", lines(&machine));
        drop(disk);
        let again = start(world.env(&machine, "a")).await;
        assert_eq!(again.tail(), [4, 5, 6, 7, 8]);
        let terms: Vec<u64> = again.found.terms.iter().map(|first| first.seq.0).collect();
        assert_eq!(terms, [1, 3, 5, 8]);
    });
}

/// Lines from a few bytes to more than is read at once, over several entries of the index.
#[test]
fn old_entries_are_fetched_wherever_they_are() {
    run(|world, machine| async move {
        let mut disk = begin(world.env(&machine, "a")).await;
        let mut wrote = vec![reign(2, 3)];
        for seq in 4..400 {
            let bytes = if seq % 90 == 0 { 700_000 } else { (seq as usize * 37) % 3000 };
            wrote.push(write(2, seq, &"v".repeat(bytes)));
        }
        let persisted = disk.write(vec![entries(1, Some((2, 2)), wrote.clone())]).await.expect("written");
        disk.mark().await.expect("it is marked");
        for (at, entry) in wrote.iter().enumerate().step_by(13) {
            let seq = entry.version.seq;
            let found = disk.fetch(seq, Seq(seq.0 + 5), u64::MAX).await.expect("it is read");
            let (found, places): (Vec<LogEntry>, Vec<u64>) = found.into_iter().unzip();
            let to = wrote.len().min(at + 6);
            assert_eq!(found, wrote[at..to], "from {seq}");
            let expected: Vec<u64> = persisted.lines[at..to].iter().map(|line| line.offset).collect();
            assert_eq!(places, expected);
        }
        let bounded = disk.fetch(Seq(89), Seq(399), 10).await.expect("it is read");
        assert_eq!(bounded.len(), 1, "one in any case");
        assert_eq!(disk.fetch(Seq(400), Seq(500), 10).await.expect("it is read"), [], "there is no such one");
    });
}

#[test]
fn a_full_disk_is_waited_for_and_the_log_goes_on_where_it_was() {
    run(|world, machine| async move {
        let mut disk = begin(world.env(&machine, "a")).await;
        machine.fail(1, DiskFault::WriteShort);
        machine.fail(2, DiskFault::WriteFull);
        let begun = world.elapsed();
        disk.write(vec![entries(1, None, vec![write(1, 3, "three")])]).await.expect("it is written at last");
        assert!(world.elapsed() - begun >= Duration::from_secs(2), "it waits between attempts");
        disk.write(vec![entries(2, None, vec![write(1, 4, "four")])]).await.expect("it is written");
        drop(disk);
        assert_eq!(start(world.env(&machine, "a")).await.tail(), [3, 4]);
    });
}

#[test]
fn a_failed_sync_or_write_ends_the_member() {
    for (nth, fault, expected) in [
        (1, DiskFault::SyncFails, LogStep::Sync),
        (2, DiskFault::SyncFails, LogStep::Sync),
        (3, DiskFault::SyncFails, LogStep::Sync),
        (1, DiskFault::WriteFails, LogStep::Write),
        (2, DiskFault::WriteFails, LogStep::Write),
    ] {
        run(|world, machine| async move {
            let mut disk = begin(world.env(&machine, "a")).await;
            disk.write(vec![entries(1, None, vec![write(1, 3, "old")])]).await.expect("it is written");
            machine.fail(nth, fault);
            // Its syncs are of the vote, of the cut and of the entries.
            let cut = LogBatch { cut_after: Some(Seq(2)), ..entries(2, Some((2, 2)), vec![reign(2, 3)]) };
            match disk.write(vec![cut]).await {
                Err(NodeError::LogFailed { step, .. }) => assert_eq!(step, expected, "{nth} {fault:?}"),
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn what_must_not_take_part_is_refused_in_one_line() {
    let edit =
        |machine: &Machine, path: &str, edit: &dyn Fn(&mut Vec<u8>)| machine.edit(Path::new(path), edit);
    type Break<'a> = (&'a str, &'a dyn Fn(&Machine));
    let breaks: [Break<'_>; 6] = [
        ("no vote file", &|machine| machine.remove(Path::new(VOTE))),
        ("it is missing, but its vote file is there", &|machine| machine.remove(Path::new(LOG))),
        ("neither slot", &|machine| edit(machine, VOTE, &|bytes| bytes.fill(0))),
        ("its vote file is of cluster", &|machine| {
            edit(machine, VOTE, &|bytes| *bytes = vote_of(ClusterId(1)).new_file());
        }),
        ("not as a member does that", &|machine| {
            edit(machine, LOG, &|bytes| {
                let seq = (Seq(9), Epoch(2), Seq(5));
                let trailer =
                    record::Trailer { after: Some(Seq(5)), ..record::Trailer::new(seq.0, seq.1, seq.2) };
                record::encode_write_with(&[("a", "b")], trailer, bytes);
            });
        }),
        ("is damaged", &|machine| {
            // Of what SYNCED says that it was on disk.
            edit(machine, LOG, &|bytes| {
                let at = memchr::memmem::find(bytes, b"WRITE key4").expect("it is there");
                bytes[at + 7] ^= 1;
            });
        }),
    ];
    for (expected, breaks) in breaks {
        run(|world, machine| async move {
            let mut disk = begin(world.env(&machine, "a")).await;
            let wrote = vec![reign(2, 3), write(2, 4, "four"), write(2, 5, "five")];
            disk.write(vec![entries(1, Some((2, 2)), wrote)]).await.expect("it is written");
            disk.mark().await.expect("it is marked");
            let locked = fails(world.env(&machine, "b")).await;
            assert!(locked.contains("another process"), "{locked}");
            drop(disk);
            breaks(&machine);
            let (log, vote) = (machine.content(Path::new(LOG)), machine.content(Path::new(VOTE)));
            let error = fails(world.env(&machine, "a")).await;
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
            assert_eq!(machine.content(Path::new(LOG)), log, "nothing is changed: {expected}");
            assert_eq!(machine.content(Path::new(VOTE)), vote);
        });
    }
}

fn vote_of(cluster: ClusterId) -> dsm_consensus::vote::VoteRecord {
    let (term, commit) = (Epoch(2), Seq(2));
    dsm_consensus::vote::VoteRecord { number: 0, cluster, member: MemberId::FIRST, term, vote: None, commit }
}

#[test]
fn the_log_of_masters_on_one_machine_is_not_taken_for_an_empty_one() {
    run(|world, machine| async move {
        machine.edit(Path::new(LOG), |bytes| {
            record::encode(&record::Operation::Cluster(CLUSTER), Seq(1), Epoch(1), Seq(0), bytes);
            let mark = record::ReignMark {
                id: dsm_protocol::ids::ReignId(1),
                fsync: record::SyncMode::Always,
                given_up: Vec::new(),
            };
            let begun = record::Operation::Epoch { address: "a:1".to_owned(), mark: Some(mark) };
            record::encode(&begun, Seq(2), Epoch(1), Seq(0), bytes);
        });
        let before = machine.content(Path::new(LOG));
        let error = fails(world.env(&machine, "a")).await;
        assert!(error.contains("masters on one machine"), "{error}");
        assert_eq!(machine.content(Path::new(LOG)), before);
    });
}

/// Runs `work` on a machine whose power fails at the `nth` moment; says whether it failed. What `work` gives says whether it came to
/// its end: a process may notice that it is dead before it ends.
async fn with_power_loss<F: std::future::Future<Output = bool> + 'static>(
    (world, machine): (&World, &Machine),
    (nth, loss): (u64, Loss),
    work: impl FnOnce(dsm::env::Env) -> F,
) -> bool {
    let left = Rc::new(Cell::new(nth));
    let (power, counted) = (machine.clone(), Rc::clone(&left));
    world.set_hook(Some(Box::new(move |world, _, _| {
        let now = counted.get().saturating_sub(1);
        counted.set(now);
        if now == 0 && power.is_on() {
            world.power_off(&power, loss);
        }
    })));
    let (_process, ended) = world.start(machine, "victim", work);
    let is_done = ended.await.unwrap_or(false);
    assert_ne!(is_done, left.get() == 0, "it ends for no other reason");
    world.set_hook(None);
    world.power_on(machine);
    !is_done
}

const LOSSES: [Loss; 4] = [Loss::All, Loss::Nothing, Loss::Torn, Loss::Garbled];

#[test]
fn a_power_loss_at_any_step_of_a_beginning_leaves_an_empty_disk_or_a_member() {
    let (mut begun, mut empty_ones) = (0, 0);
    for (seed, loss) in (0..6).flat_map(|seed| LOSSES.map(|loss| (seed, loss))) {
        for nth in 1.. {
            let lost = World::run(seed, |world| async move {
                let machine = world.machine("host");
                let lost = with_power_loss((&world, &machine), (nth, loss), |env| async move {
                    let (port, _events) = Probe::begin();
                    let Ok(DiskFound::Empty(empty)) = find(env).await.0 else { return false };
                    empty.begin(CLUSTER, &members(), &port).await.is_ok()
                });
                if !lost.await {
                    return None;
                }
                let (found, _) = find(world.env(&machine, "again")).await;
                match found {
                    Ok(DiskFound::Empty(_)) => Some(false),
                    Ok(DiskFound::Member(member)) => {
                        let StartedDisk { start, .. } = *member;
                        assert_eq!((start.vote.commit, start.tail.len()), (Seq(2), 1), "{loss:?} {nth}");
                        Some(true)
                    }
                    Err(error) => {
                        panic!("{loss:?} at moment {nth}: {error} {:?}", std::error::Error::source(&error))
                    }
                }
            });
            match lost {
                Some(true) => begun += 1,
                Some(false) => empty_ones += 1,
                None => break,
            }
        }
    }
    assert!(begun > 5 && empty_ones > 20, "{begun} {empty_ones}");
}

/// What a member's disk holds, as its machine knows it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: Vec<LogEntry>,
    vote: (Epoch, Option<MemberId>, Seq),
}

impl Model {
    fn of(start: &dsm_consensus::Start, found: &[(LogEntry, u64)]) -> Self {
        let vote = (start.vote.term, start.vote.vote, start.vote.commit);
        Model { entries: found.iter().map(|(entry, _)| entry.clone()).collect(), vote }
    }

    /// The state after each step of a batch.
    fn steps(&self, batch: &LogBatch) -> Vec<Model> {
        let mut steps = vec![self.clone()];
        let mut now = self.clone();
        if let Some(vote) = batch.vote {
            now.vote = vote;
            steps.push(now.clone());
        }
        if let Some(seq) = batch.cut_after {
            now.entries.truncate(seq.0 as usize);
            steps.push(now.clone());
        }
        for entry in &batch.entries {
            now.entries.push(entry.clone());
            steps.push(now.clone());
        }
        steps
    }
}

/// The batches of a member over several terms, some of which cut what an earlier leader had begun.
fn history(seed: u64) -> Vec<LogBatch> {
    let (mut last, mut term, mut commit) = (2, 1, 2);
    let mut batches = Vec::new();
    for number in 1..9 {
        let drawn = seed.wrapping_mul(31).wrapping_add(number * 7);
        let mut made = batch(number);
        if number % 2 == 1 {
            term += 1;
            if drawn.is_multiple_of(3) && last > commit {
                last = commit.max(last - 2);
                made.cut_after = Some(Seq(last));
            }
            last += 1;
            made.vote = Some((Epoch(term), MemberId::new(drawn % 3 + 1), Seq(commit)));
            made.entries.push(reign(term, last));
        }
        for _ in 0..drawn % 4 {
            last += 1;
            made.entries.push(write(term, last, &"x".repeat((drawn as usize * 41) % 900)));
        }
        if drawn.is_multiple_of(5) {
            commit = last;
        }
        batches.push(made);
    }
    batches
}

#[test]
fn a_power_loss_at_any_step_leaves_all_that_was_persisted_and_nothing_that_was_not_begun() {
    let mut lost = 0;
    for (seed, loss) in (0..5).flat_map(|seed| LOSSES.map(|loss| (seed, loss))) {
        for nth in 1.. {
            let is_lost = World::run(seed, |world| async move {
                let machine = world.machine("host");
                drop(begin(world.env(&machine, "first")).await);
                let first = start(world.env(&machine, "first")).await;
                let all = first.disk.fetch(Seq(1), Seq(99), u64::MAX).await.expect("it is read");
                let model = Rc::new(RefCell::new((Model::of(&first.found, &all), batch(0))));
                drop(first);
                let shared = Rc::clone(&model);
                let work = move |env| async move {
                    let Ok(DiskFound::Member(member)) = find(env).await.0 else { return false };
                    let mut disk = member.disk;
                    for batch in history(seed) {
                        shared.borrow_mut().1 = batch.clone();
                        disk.write(vec![batch.clone()]).await.expect("it is written");
                        let done = shared.borrow().0.steps(&batch).pop().expect("it has steps");
                        shared.replace((done, self::batch(batch.number.0)));
                        disk.mark().await.expect("it is marked");
                    }
                    true
                };
                if !with_power_loss((&world, &machine), (nth, loss), work).await {
                    return false;
                }
                let again = start(world.env(&machine, "again")).await;
                let all = again.disk.fetch(Seq(1), Seq(99), u64::MAX).await.expect("it is read");
                let found = Model::of(&again.found, &all);
                let (before, under_way) = model.borrow().clone();
                let may_be = before.steps(&under_way);
                assert!(
                    may_be.contains(&found),
                    "{loss:?} {seed} {nth}: {found:?} after {before:?} {under_way:?}"
                );
                true
            });
            if !is_lost {
                break;
            }
            lost += 1;
        }
    }
    assert!(lost > 500, "{lost}");
}

/// A sync fails, the process ends, and the pages that never got to the disk count as clean: what a start reads may vanish later.
#[test]
fn what_a_start_has_read_stays_though_it_came_from_memory_alone() {
    let mut evicted = 0;
    for seed in 0..60 {
        evicted += World::run(seed, |world| async move {
            let machine = world.machine("host");
            drop(begin(world.env(&machine, "first")).await);
            let failing = machine.clone();
            let work = move |env| async move {
                let mut disk = start(env).await.disk;
                // That of the vote file, or of the log.
                failing.fail(1 + seed % 2, DiskFault::SyncFails);
                let wrote = vec![reign(2, 3), write(2, 4, &"x".repeat(2000)), write(2, 5, "five")];
                let _ = disk.write(vec![entries(1, Some((2, 2)), wrote)]).await;
            };
            let (_process, ended) = world.start(&machine, "victim", work);
            ended.await.expect("it ends by itself");
            let again = start(world.env(&machine, "again")).await;
            let before = again.disk.fetch(Seq(1), Seq(99), u64::MAX).await.expect("it is read");
            let vote = again.found.vote;
            drop(again);
            world.power_off(&machine, Loss::All);
            world.power_on(&machine);
            let later = start(world.env(&machine, "later")).await;
            let after = later.disk.fetch(Seq(1), Seq(99), u64::MAX).await.expect("it is read");
            assert_eq!((after, later.found.vote), (before, vote), "seed {seed}");
            machine.disk_failures().evicted_sectors
        });
    }
    assert!(evicted > 0);
}

#[test]
fn a_file_is_opened_by_nobody_else_while_it_is_empty() {
    run(|world, machine| async move {
        let held = empty(world.env(&machine, "a")).await;
        let error = fails(world.env(&machine, "b")).await;
        assert!(error.contains("another process"), "{error}");
        drop(held);
        let file = world.env(&machine, "b").disk().open(Path::new(LOG), OpenMode::Existing).await;
        assert!(file.is_ok_and(|file| file.try_lock().is_ok_and(|locked| locked)));
    });
}
