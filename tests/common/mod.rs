//! What the tests of the whole system share: real processes on free ports ([`cluster`]), a client of the RESP
//! door ([`resp`]), one of the native door ([`native`]), clients that load the cluster and record what they saw ([`load`]),
//! what they ask ([`requests`]), a client of the HTTP ports ([`http`]), disks and networks that can be cut ([`isolation`]), small C programs ([`programs`]), what
//! a test does that cannot run here ([`skip`]), what is said of wrong flags ([`flags`]), conditions ([`wait`]).
//!
//! Nothing here knows how the servers are built: it sees binaries, flags, sockets, exit codes and the log.

// Each test file is a crate of its own and uses its part of this.
#![allow(dead_code)]

pub(crate) mod cluster;
pub(crate) mod flags;
pub(crate) mod http;
pub(crate) mod isolation;
pub(crate) mod load;
pub(crate) mod native;
pub(crate) mod programs;
pub(crate) mod requests;
pub(crate) mod resp;
pub(crate) mod skip;
pub(crate) mod wait;

#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use wait::{millis, seconds, stays, wait_for};

/// Checks that a load runs without a failure during `attack`: three slaves, eight clients, no takeover, every promise
/// kept. `masters_with` are the masters' flags.
pub(crate) fn nobody_notices(masters_with: &[&str], attack: impl FnOnce(&cluster::TestCluster, &load::Load)) {
    unnoticed(masters_with, load::Load::start, attack);
}

/// The same for a load of short requests alone, where `attack` uses up what longer ones need.
pub(crate) fn no_short_request_notices(
    masters_with: &[&str],
    attack: impl FnOnce(&cluster::TestCluster, &load::Load),
) {
    unnoticed(masters_with, load::Load::start_short, attack);
}

fn unnoticed(
    masters_with: &[&str],
    start: impl FnOnce(&cluster::TestCluster, u64, u64) -> load::Load,
    attack: impl FnOnce(&cluster::TestCluster, &load::Load),
) {
    let mut cluster = cluster::Setup::slaves(3).masters_with(masters_with).start();
    let load = start(&cluster, 8, 20);
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
