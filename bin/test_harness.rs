//! `dsm-test-harness`: loads a cluster, or any RESP server, and measures what comes back. See `--help`.

mod harness;

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
