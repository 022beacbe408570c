//! Writes the manual pages and the completions of shells of a program, as its flags and their help texts have them.
//!
//! Exists with the feature `manuals` alone, for packages and `make manuals`: a program that serves is built without it, and needs
//! none of the crates that do this.

use anyhow::Context as _;
use clap::Command;
use clap_complete::{generate, Shell};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// `NAME --write-manuals DIRECTORY`, and nothing else.
const FLAG: &str = "--write-manuals";

/// Writes them if the words of the command line ask for it; then the program is to end with this.
pub(crate) fn written(command: &Command, words: &[OsString]) -> Option<anyhow::Result<ExitCode>> {
    let [_, flag, directory] = words else { return None };
    if flag != FLAG {
        return None;
    }
    Some(write(command, Path::new(directory)).map(|()| ExitCode::SUCCESS))
}

/// Writes below `share`, which is `/usr/share` once a package is installed.
fn write(command: &Command, share: &Path) -> anyhow::Result<()> {
    let name = command.get_name();
    let completions = [
        (Shell::Bash, "bash-completion/completions", name.to_owned()),
        (Shell::Zsh, "zsh/site-functions", format!("_{name}")),
        (Shell::Fish, "fish/vendor_completions.d", format!("{name}.fish")),
    ];
    for (shell, directory, file) in completions {
        let directory = share.join(directory);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut text = Vec::new();
        generate(shell, &mut command.clone(), name, &mut text);
        let path = directory.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let pages = share.join("man/man1");
    fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
    // One page for each subcommand, too.
    clap_mangen::generate_to(command.clone(), &pages)
        .with_context(|| format!("cannot write to {}", pages.display()))
}
