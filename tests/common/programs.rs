//! Small C programs of the tests (`tests/shim/`), compiled when a test needs them. There is no safe call in Rust for
//! what they do.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `tests/shim/NAME.c` into `directory`, as a library to preload or as a program.
///
/// # Panics
/// When there is no `cc` (Rust needs it too), or it prints a warning.
pub(crate) fn compile(name: &str, directory: &Path, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim").join(name).with_extension("c");
    let target = directory.join(name);
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-Wextra", "-Werror"])
        .args(flags)
        .arg("-o")
        .arg(&target)
        .arg(&source)
        .arg("-ldl");
    let output = cc.output().expect("a C compiler, which linking Rust needs too");
    assert!(output.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    target
}
