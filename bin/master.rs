//! `dsm-master`. See `--help`.

mod common;
mod roles;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    roles::run("master", roles::own_flags())
}
