//! What the tests of the whole system share: real processes on free ports ([`cluster`]), a client of the RESP
//! door ([`resp`]), one of the native door ([`native`]), clients that load the cluster and record what they saw ([`load`]),
//! what they ask ([`requests`]), disks and networks that can be cut ([`isolation`]), small C programs ([`programs`]), what
//! a test does that cannot run here ([`skip`]), what is said of wrong flags ([`flags`]), conditions ([`wait`]).
//!
//! Nothing here knows how the servers are built: it sees binaries, flags, sockets, exit codes and the log.

// Each test file is a crate of its own and uses its part of this.
#![allow(dead_code)]

pub(crate) mod cluster;
pub(crate) mod flags;
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

/// What a client is told whose long request finds no room.
const CUT: &str = "BUSY too many bytes of unfinished requests";

/// Checks that a load runs without a failure during `attack`: three slaves, eight clients, no takeover, every promise
/// kept. `masters_with` are the masters' flags.
pub(crate) fn nobody_notices(masters_with: &[&str], attack: impl FnOnce(&cluster::TestCluster, &load::Load)) {
    let mut cluster = cluster::Setup::slaves(3).masters_with(masters_with).start();
    let load = load::Load::start(&cluster, 8, 20);
    let epochs = |cluster: &cluster::TestCluster| {
        cluster::MASTERS.map(|master| cluster.info(master).map(|info| info.number("epoch")))
    };
    let before = epochs(&cluster);
    attack(&cluster, &load);
    load.wait_for_writes(200, seconds(5));
    // The load has requests of hundreds of KiB. While others use up the room for unfinished requests these may be cut, as
    // *Limits* says; those of up to 16 KiB may not.
    let mut failures = load.failures();
    if failures.iter().any(|failure| failure.starts_with(CUT)) {
        failures
            .retain(|failure| !failure.starts_with(CUT) && failure != "connection: unexpected end of file");
    }
    assert_eq!(failures, Vec::<String>::new(), "a client noticed");
    assert_eq!(epochs(&cluster), before, "no master was replaced");
    cluster.wait_for_active_slaves(3, seconds(3));
    load.prove(&mut cluster);
}

/// Whether the long forms of tests were asked for, as `make nightly` does.
pub(crate) fn is_nightly() -> bool {
    std::env::var_os("DSM_NIGHTLY").is_some()
}
