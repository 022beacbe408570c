//! Runs the example scripts, which check themselves, with the binaries under test.

use std::path::Path;
use std::process::Command;

/// Runs a script with the binaries under test, and prints its output when it fails.
fn holds(script: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_dsm-master")).parent().expect("a binary has a folder");
    // Named here so that cargo builds them.
    let _ = [
        env!("CARGO_BIN_EXE_dsm-backup-master"),
        env!("CARGO_BIN_EXE_dsm-slave"),
        env!("CARGO_BIN_EXE_dsm-client"),
        env!("CARGO_BIN_EXE_dsm-log"),
    ];
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120"])
        .arg(root.join("examples").join(script))
        .env("DSM_BIN", binaries)
        .output()
        .expect("bash and timeout are there");
    assert!(
        output.status.success(),
        "{script} ended with {}:\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_failover_loses_nothing() {
    holds("failover.sh");
}

#[test]
fn a_rolling_restart_fails_no_request() {
    holds("rolling_restart.sh");
}

#[test]
fn a_failback_fails_no_request() {
    holds("failback.sh");
}

#[test]
fn a_slave_is_lost_and_returns() {
    holds("slave_loss.sh");
}

#[test]
fn all_slaves_are_lost_and_the_log_answers() {
    holds("all_slaves_lost.sh");
}

#[test]
fn a_deleted_lock_file_makes_no_second_primary() {
    holds("split_brain.sh");
}

#[test]
fn a_backup_brings_back_what_a_mistake_took() {
    holds("backup_restore.sh");
}

#[test]
fn masters_on_three_machines_lose_nothing() {
    holds("three_machines.sh");
}

#[test]
fn a_machine_of_three_whose_disk_is_lost_is_replaced() {
    holds("machines/replace.sh");
}
