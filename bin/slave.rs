//! `dsm-slave`. See `--help`.

// A blocked or closed standard error must neither delay nor end this process: print with `dsm_server::cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

use dsm_server::roles;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    roles::run("slave", roles::own_flags())
}
