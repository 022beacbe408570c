//! `dsm-test-harness`: loads a cluster of its own, or any store that speaks Redis' protocol, verifies every answer and
//! measures. See `--help` and `docs/HARNESS.md`.
//!
//! With the feature `peers`, `dsm-test-harness peers` measures this store beside others; see `docs/BENCHMARKS.md`.
//!
//! It runs the roles of its cluster by running itself again (`dsm-test-harness role …`, not meant for people).

// Nobody may wait for whoever reads standard error, nor fail with it: `dsm_server::cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod harness;

use dsm_server::roles;
use std::process::ExitCode;

// It runs the roles too, and they are to be measured with the allocator they have in their own binaries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "peers")]
    if std::env::args_os().nth(1).is_some_and(|word| word == "peers") {
        return harness::peers::main(std::env::args_os().skip(1).collect());
    }
    let mut words = std::env::args_os();
    if words.nth(1).is_some_and(|word| word == "role") {
        let role = words.next().unwrap_or_default();
        return roles::run(&role.to_string_lossy(), words.collect());
    }
    harness::main(std::env::args_os().collect())
}
