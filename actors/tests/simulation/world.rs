//! The world itself, where the faults of the swarm lean on it. It must be neither kinder nor more cruel than it says.

use bytes::BytesMut;
use dsm::env::sim::{DiskFailures, DiskFault, Loss, Machine, World};
use dsm::env::{Disk, Env, File, Group, OpenMode};
use futures_util::future;
use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const FILE: &str = "/data/file";

/// A file in the same directory.
const DRAFT: &str = "/data/file.draft";

const SECTORS: usize = 64;

fn group(bytes: Vec<u8>) -> Group {
    Group { offset: 0, bytes, sync: true, ..Group::default() }
}

/// Runs something in a process of its own, and gives what it comes to.
async fn in_process<T: 'static, F: Future<Output = T> + 'static>(
    world: &World,
    machine: &Machine,
    main: impl FnOnce(Env) -> F,
) -> T {
    let (_, end) = world.start(machine, "host", main);
    end.await.expect("nobody kills it")
}

#[test]
fn a_clock_that_drifts_or_jumps_never_goes_back_and_counts_from_when_it_is_set() {
    World::run(0, |world| async move {
        let machine = world.machine("machine");
        let (process, mut went_back) = world.start(&machine, "host", |env| async move {
            let mut before = env.now();
            while env.now() >= before {
                before = env.now();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        for ppm in [50_000, -50_000, 0] {
            tokio::time::sleep(Duration::from_secs(10)).await;
            process.set_drift_ppm(ppm);
            process.jump(Duration::from_millis(7));
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(process.clock(), Duration::from_millis(4 * 10_000 + 500 - 500 + 3 * 7));
        assert!(went_back.try_recv().is_err(), "the clock goes back");
    });
}

#[test]
fn a_failed_sync_brings_some_sectors_to_the_disk_and_the_next_one_none() {
    World::run(1, |world| async move {
        let machine = world.machine("machine");
        machine.fail(1, DiskFault::SyncFails);
        in_process(&world, &machine, |env| async move {
            let file = env.disk().open(Path::new(FILE), OpenMode::Write).await.unwrap();
            assert!(file.append(group(vec![1; 512 * SECTORS])).await.sync_error.is_some());
            file.sync().await.unwrap();
            env.disk().sync_directory(Path::new(FILE)).await.unwrap();
        })
        .await;
        let kept = machine.read_durable(Path::new(FILE), |bytes| {
            bytes.chunks(512).filter(|sector| sector.iter().all(|byte| *byte == 1)).count()
        });
        assert!(kept.is_some_and(|kept| (1..SECTORS).contains(&kept)), "{kept:?} of {SECTORS} sectors");
        assert_eq!(machine.disk_failures(), DiskFailures { failed_syncs: 1, ..DiskFailures::default() });
    });
}

#[test]
fn a_sync_of_a_directory_covers_the_names_at_its_start() {
    World::run(2, |world| async move {
        let machine = world.machine("machine");
        machine.change_disk(|disk| disk.sync_ms = 10..=10);
        in_process(&world, &machine, |env| async move {
            let disk = env.disk();
            disk.open(Path::new(FILE), OpenMode::Write).await.unwrap();
            let late = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                disk.open(Path::new("/data/late"), OpenMode::Write).await.unwrap();
            };
            let (synced, ()) = tokio::join!(disk.sync_directory(Path::new(FILE)), late);
            synced.unwrap();
        })
        .await;
        assert!(machine.read_durable(Path::new(FILE), |_| ()).is_some());
        assert!(machine.read_durable(Path::new("/data/late"), |_| ()).is_none());
    });
}

#[test]
fn a_disk_that_cannot_set_space_aside_is_full_where_its_bytes_end() {
    World::run(3, |world| async move {
        let machine = world.machine("machine");
        machine.change_disk(|disk| {
            disk.can_reserve = false;
            disk.capacity = Some(700);
        });
        let written = in_process(&world, &machine, |env| async move {
            let file = env.disk().open(Path::new(FILE), OpenMode::Write).await.unwrap();
            file.append(Group { reserve_to: Some(1 << 20), ..group(vec![1; 1000]) }).await.written
        })
        .await;
        assert_eq!(written, 700);
        assert_eq!(machine.disk_failures(), DiskFailures { full_writes: 1, ..DiskFailures::default() });
    });
}

#[test]
fn a_cut_says_whether_it_held_anything_and_ends_when_each_is_healed() {
    World::run(4, |world| async move {
        let machine = world.machine("machine");
        let (_, _end) = world.start(&machine, "there", |env| async move {
            let listener = env.listen("there:1").await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            std::future::pending::<()>().await;
        });
        world.cut("there", "here");
        world.cut("there", "elsewhere");
        let here = world.env(&machine, "here");
        let connecting = tokio::task::spawn_local(async move {
            let stream = here.connect("there:1").await.unwrap();
            stream.read(&mut BytesMut::new()).await.unwrap()
        });
        world.cut("there", "here");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!world.heal_way("there", "elsewhere"));
        assert!(world.heal_way("there", "here"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!connecting.is_finished(), "one of the two cuts is left");
        assert!(world.heal_way("there", "here"));
        assert_eq!(connecting.await.unwrap(), 5);
    });
}

/// A file with this text, on the disk but for its name.
async fn put(env: &Env, path: &str, text: &str) -> Rc<dyn File> {
    let file = env.disk().open(Path::new(path), OpenMode::Write).await.expect("a file");
    let appended = file.append(group(text.as_bytes().to_vec())).await;
    assert_eq!((appended.written, appended.sync_error.is_none()), (text.len(), true));
    file
}

/// What a restart finds at the two paths.
fn found(machine: &Machine) -> [Option<String>; 2] {
    [FILE, DRAFT].map(|path| {
        machine.content(Path::new(path)).map(|bytes| String::from_utf8(bytes).expect("what was written"))
    })
}

fn both(file: &str, draft: &str) -> [Option<String>; 2] {
    [Some(file.to_owned()), Some(draft.to_owned())]
}

/// Does something to a file and its draft, both of which are durable with their names; then the power goes. Gives what a
/// restart finds.
fn after_a_power_cut<F: Future<Output = ()> + 'static>(
    seed: u64,
    loss: Loss,
    work: impl FnOnce(Rc<dyn Disk>) -> F + 'static,
) -> [Option<String>; 2] {
    World::run(seed, |world| async move {
        let machine = world.machine("machine");
        in_process(&world, &machine, |env| async move {
            put(&env, FILE, "old").await;
            put(&env, DRAFT, "new").await;
            env.disk().sync_directory(Path::new(FILE)).await.expect("a directory");
            work(env.disk()).await;
        })
        .await;
        world.power_off(&machine, loss);
        world.power_on(&machine);
        found(&machine)
    })
}

async fn exchange(disk: &Rc<dyn Disk>) {
    disk.exchange(Path::new(FILE), Path::new(DRAFT)).await.expect("both are there");
}

async fn remove(disk: &Rc<dyn Disk>, path: &str) {
    let identity = disk.identity(Path::new(path)).await.expect("a look").expect("it is there");
    assert!(disk.remove(Path::new(path), identity).await.expect("a removal"));
}

#[test]
fn a_power_cut_before_its_directory_is_synced_keeps_an_exchange_as_a_whole_or_not_at_all() {
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        let found = after_a_power_cut(seed, Loss::Torn, |disk| async move { exchange(&disk).await });
        assert!(found == both("old", "new") || found == both("new", "old"), "{found:?}");
        seen.insert(found);
    }
    assert_eq!(seen.len(), 2, "always the same");
}

#[test]
fn an_exchange_is_durable_once_its_directory_is_synced() {
    let found = after_a_power_cut(0, Loss::All, |disk| async move { exchange(&disk).await });
    assert_eq!(found, both("old", "new"));
    let found = after_a_power_cut(0, Loss::All, |disk| async move {
        exchange(&disk).await;
        disk.sync_directory(Path::new(DRAFT)).await.unwrap();
    });
    assert_eq!(found, both("new", "old"));
}

#[test]
fn a_power_cut_keeps_no_change_of_a_name_after_one_that_it_loses() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        seen.insert(after_a_power_cut(seed, Loss::Torn, |disk| async move {
            exchange(&disk).await;
            exchange(&disk).await;
            remove(&disk, DRAFT).await;
            disk.create(Path::new(DRAFT), Path::new(FILE)).await.unwrap();
        }));
    }
    let removed = [Some("old".to_owned()), None];
    assert_eq!(seen, BTreeSet::from([both("old", "new"), both("new", "old"), removed, both("old", "")]));
}

#[test]
fn a_sync_of_a_directory_takes_nothing_back_that_became_durable_meanwhile() {
    World::run(0, |world| async move {
        let machine = world.machine("machine");
        machine.change_disk(|disk| disk.sync_ms = 10..=10);
        let disk_of = machine.clone();
        in_process(&world, &machine, |env| async move {
            let disk = env.disk();
            put(&env, FILE, "old").await;
            put(&env, DRAFT, "new").await;
            disk.sync_directory(Path::new(FILE)).await.unwrap();
            let fast = async {
                disk_of.change_disk(|disk| disk.sync_ms = 0..=0);
                exchange(&disk).await;
                disk.sync_directory(Path::new(FILE)).await.unwrap();
            };
            let (slow, ()) = tokio::join!(disk.sync_directory(Path::new(FILE)), fast);
            slow.unwrap();
        })
        .await;
        let durable = machine.read_durable(Path::new(FILE), <[u8]>::to_vec);
        assert_eq!(durable.as_deref(), Some(b"new".as_slice()));
    });
}

#[test]
fn a_removed_file_is_read_and_takes_up_space_until_it_is_closed() {
    World::run(0, |world| async move {
        let machine = world.machine("machine");
        machine.change_disk(|disk| disk.capacity = Some(1000));
        in_process(&world, &machine, |env| async move {
            let (disk, path) = (env.disk(), Path::new(FILE));
            let free = async || disk.free_bytes(path).await.unwrap();
            let file = put(&env, FILE, &"x".repeat(600)).await;
            assert_eq!(free().await, 400);
            remove(&disk, FILE).await;
            assert_eq!(disk.identity(path).await.unwrap(), None);
            let second = file.duplicate().await.unwrap();
            drop(file);
            assert_eq!(second.read_at(598, 10).await.unwrap(), b"xx");
            assert_eq!(free().await, 400, "it is still open");
            let other = put(&env, DRAFT, &"y".repeat(400)).await;
            let more = Group { offset: 400, bytes: vec![1], ..Group::default() };
            assert_eq!(other.append(more).await.written, 0, "the disk is full");
            drop(second);
            assert_eq!(free().await, 600);
        })
        .await;
    });
}

#[test]
fn only_the_watch_of_a_path_notices_that_it_was_created_exchanged_or_removed() {
    World::run(0, |world| async move {
        let machine = world.machine("machine");
        in_process(&world, &machine, |env| async move {
            let disk = env.disk();
            put(&env, FILE, "old").await;
            put(&env, DRAFT, "new").await;
            put(&env, "/data/other", "other").await;
            let soon = Duration::from_millis(10);
            let mut elsewhere = disk.watch(Path::new("/data/other")).await.unwrap();
            let mut watch = disk.watch(Path::new(FILE)).await.unwrap();
            exchange(&disk).await;
            tokio::time::timeout(soon, watch.changed()).await.expect("an exchange").unwrap();
            disk.exchange(Path::new(DRAFT), Path::new(FILE)).await.unwrap();
            tokio::time::timeout(soon, watch.changed()).await.expect("an exchange").unwrap();
            disk.create(Path::new(FILE), Path::new(DRAFT)).await.unwrap();
            tokio::time::timeout(soon, watch.changed()).await.expect("a new file").unwrap();
            remove(&disk, FILE).await;
            tokio::time::timeout(soon, watch.changed()).await.expect("a removal").unwrap();
            let more = tokio::time::timeout(soon, future::select(watch.changed(), elsewhere.changed()));
            assert!(more.await.is_err(), "nothing else has changed");
        })
        .await;
    });
}

#[test]
fn a_change_of_names_that_fails_changes_nothing() {
    World::run(0, |world| async move {
        let machine = world.machine("machine");
        let disk_of = machine.clone();
        in_process(&world, &machine, |env| async move {
            let (disk, file, draft) = (env.disk(), Path::new(FILE), Path::new(DRAFT));
            put(&env, FILE, "old").await;
            disk_of.fail(2, DiskFault::NameFails);
            put(&env, DRAFT, "new").await;
            assert_eq!(disk_of.name_operations(), 0, "files that are opened do not count");
            exchange(&disk).await;
            let identity = disk.identity(file).await.unwrap().unwrap();
            disk.remove(file, identity).await.expect_err("the second");
            exchange(&disk).await;
            disk_of.fail(1, DiskFault::NameFails);
            disk.exchange(file, draft).await.expect_err("the next");
            disk_of.fail(1, DiskFault::NameFails);
            assert!(disk.create(draft, file).await.is_err());
            disk_of.change_disk(|disk| disk.can_exchange = false);
            let error = disk.exchange(file, draft).await.expect_err("it cannot");
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
            assert!(!disk.remove(draft, disk.identity(file).await.unwrap().unwrap()).await.unwrap());
            for missing in [
                disk.create(draft, Path::new("/data/none")).await.err(),
                disk.resolve(Path::new("/data/none")).await.err(),
            ] {
                assert_eq!(missing.map(|error| error.kind()), Some(std::io::ErrorKind::NotFound));
            }
        })
        .await;
        assert_eq!(found(&machine), both("old", "new"));
        assert_eq!(machine.disk_failures(), DiskFailures { failed_names: 3, ..DiskFailures::default() });
        assert_eq!(machine.name_operations(), 8);
    });
}
