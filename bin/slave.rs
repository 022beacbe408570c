//! `dsm-slave`. See `--help`.

// Nobody may wait for whoever reads standard error, nor fail with it: `dsm_server::cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

use dsm_server::roles;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    roles::run("slave", roles::own_flags())
}
