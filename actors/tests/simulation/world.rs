//! The world itself, where the faults of the swarm lean on it. It must be neither kinder nor more cruel than it says.

use bytes::BytesMut;
use dsm::env::sim::{DiskFailures, DiskFault, World};
use dsm::env::{Env, Group, OpenMode};
use std::path::Path;
use std::time::Duration;

const FILE: &str = "/data/file";

const SECTORS: usize = 64;

fn group(bytes: Vec<u8>) -> Group {
    Group { offset: 0, bytes, sync: true, ..Group::default() }
}

/// Runs something in a process of its own, and gives what it comes to.
async fn in_process<T: 'static, F: std::future::Future<Output = T> + 'static>(
    world: &World,
    machine: &dsm::env::sim::Machine,
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
