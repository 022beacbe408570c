//! A disk that fails at each of the first writes and syncs of a scripted run, and then loses what was not synced.

use crate::clients::{Client, Habits, Recorder};
use crate::cluster::{Cluster, Shape};
use crate::seed::{guarded, verdict, Check, Failure, Report, Trials};
use crate::witness::Witness;
use crate::{number, THREADS};
use dsm::env::sim::{DiskFault, Loss, World};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a disk stalls: longer than any timeout of the cluster.
const STALL_MS: u64 = 2500;

/// How many operations the run goes on after the one that fails.
const BEHIND: u64 = 10;

const FAULTS: [DiskFault; 6] = [
    DiskFault::WriteFails,
    DiskFault::WriteShort,
    DiskFault::WriteFull,
    DiskFault::WriteStalls(STALL_MS),
    DiskFault::SyncFails,
    DiskFault::SyncStalls(STALL_MS),
];

/// Two clients write and delete as fast as they are answered; the `nth` write or sync of the disk goes wrong; then the
/// power goes, and with it what was not synced. Everything that was acknowledged must still be there.
async fn script(world: World, nth: u64, fault: DiskFault) -> Report {
    let cluster = Cluster::start(&world, Shape { slaves: 2, ..Shape::default() });
    let machine = cluster.log_machine().clone();
    machine.fail(nth, fault);
    let recorder = Recorder::default();
    let stop = Rc::new(Cell::new(false));
    let habits = Habits {
        keys: 6,
        writes: 700,
        deletes: 100,
        many: 100,
        updates: 300,
        pipeline: 2,
        think_ms: 0,
        value_bytes: 100,
    };
    let mut clients = JoinSet::new();
    for id in 1..=2 {
        clients.spawn_local(Client::new(&cluster, id, &recorder, habits.clone(), &stop).run());
    }
    // Either kind of operation counts; what is awaited is that both have passed the place of the fault.
    let passed = async {
        loop {
            let (writes, syncs) = machine.disk_operations();
            if writes.min(syncs) >= nth + BEHIND {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(60), passed).await;
    world.power_off(&machine, Loss::All);
    machine.mend();
    world.power_on(&machine);
    cluster.launch_all();
    let mut failure =
        verdict(&cluster, &recorder, &Witness::default(), &stop, clients, habits.keys, Trials::default())
            .await
            .err();
    if reached.is_err() {
        let what = "the run never came to the operation that fails".to_owned();
        failure.get_or_insert(Failure { check: Check::Serves, what });
    }
    if recorder.acknowledged().values().sum::<u64>() == 0 {
        let what = "nothing was acknowledged".to_owned();
        failure.get_or_insert(Failure { check: Check::ServesClients, what });
    }
    Report { failure, operations: recorder.history().operations().len(), ..Report::default() }
}

#[test]
fn a_disk_error_at_each_of_the_first_writes_and_syncs_loses_nothing_and_answers_nothing_wrong() {
    let cases = number("DISK_OPERATIONS", 200) * FAULTS.len() as u64;
    let next = AtomicU64::new(0);
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| loop {
                let case = next.fetch_add(1, Ordering::Relaxed);
                if case >= cases {
                    return;
                }
                let (nth, fault) =
                    (1 + case / FAULTS.len() as u64, FAULTS[(case % FAULTS.len() as u64) as usize]);
                let report = guarded(case, |world| script(world, nth, fault));
                if let Some(failure) = report.failure {
                    failures.lock().expect("nobody panics with it").push((nth, fault, failure));
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panicked with it");
    assert!(failures.is_empty(), "{} of {cases} failed, the first: {:#?}", failures.len(), &failures[..1]);
}
