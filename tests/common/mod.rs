//! What the tests of the whole system share: real processes on free ports ([`cluster`]), a client of the RESP
//! door ([`resp`]), one of the native door ([`native`]), clients that load the cluster and record what they saw ([`load`]),
//! what they ask ([`requests`]), disks and networks that can be cut ([`isolation`]), small C programs ([`programs`]), what
//! a test does that cannot run here ([`skip`]).
//!
//! Nothing here knows how the servers are built: it sees binaries, flags, sockets, exit codes and the log.

// Each test file is a crate of its own and uses its part of this.
#![allow(dead_code)]

pub(crate) mod cluster;
pub(crate) mod isolation;
pub(crate) mod load;
pub(crate) mod native;
pub(crate) mod programs;
pub(crate) mod requests;
pub(crate) mod resp;
pub(crate) mod skip;

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(3);

/// Looks at a condition until it holds.
///
/// # Panics
/// When it does not within `within`; `what` says what was waited for.
pub(crate) fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < within, "waited {within:?} in vain: {what}");
        std::thread::sleep(POLL);
    }
}

/// Holds a condition to be true for a while.
///
/// # Panics
/// When it is not, once; `what` says what should have stayed true.
pub(crate) fn stays<D: std::fmt::Debug>(
    what: &str,
    during: Duration,
    mut condition: impl FnMut() -> Result<(), D>,
) {
    let begun = Instant::now();
    while begun.elapsed() < during {
        if let Err(found) = condition() {
            panic!("after {:?} it was no longer so: {what}: {found:?}", begun.elapsed());
        }
        std::thread::sleep(POLL);
    }
}

/// What a load must be through without a failure: three slaves, eight clients, no master replaced, every promise
/// kept. `masters_with` are the masters' flags; `attack` is what nobody may notice.
pub(crate) fn nobody_notices(masters_with: &[&str], attack: impl FnOnce(&cluster::TestCluster, &load::Load)) {
    let mut cluster = cluster::Setup::slaves(3).masters_with(masters_with).start();
    let load = load::Load::start(&cluster, 8, 20);
    let epochs = |cluster: &cluster::TestCluster| {
        cluster::MASTERS.map(|master| cluster.info(master).map(|info| info.number("epoch")))
    };
    let before = epochs(&cluster);
    attack(&cluster, &load);
    load.wait_for_writes(200, seconds(5));
    assert_eq!(load.failures(), Vec::<String>::new(), "a client noticed");
    assert_eq!(epochs(&cluster), before, "no master was replaced");
    cluster.wait_for_active_slaves(3, seconds(3));
    load.prove(&mut cluster);
}

/// Whether the long forms of tests were asked for, as `make nightly` does.
pub(crate) fn is_nightly() -> bool {
    std::env::var_os("DSM_NIGHTLY").is_some()
}

/// Seconds, short to write.
pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Milliseconds, short to write.
pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
