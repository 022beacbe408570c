//! Which lines are kept for the next time, and where.

use std::path::PathBuf;

/// Lines of history that are kept.
pub(super) const HISTORY_MAX: usize = 1000;

/// What the binaries' help says of the history.
pub const HISTORY_HELP: &str = "\
Environment:
  DSM_HISTORY   File for the last 1000 lines typed at a terminal, with their keys and values;
                /dev/null keeps none [default: ~/.dsm_history]";

/// `DSM_HISTORY`, or `.dsm_history` in the home directory.
pub(super) fn history_path() -> Option<PathBuf> {
    let in_home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".dsm_history"));
    kept_in(std::env::var_os("DSM_HISTORY").map(PathBuf::from).or_else(in_home)?)
}

/// The path, if lines can be kept there. The editor removes everyone else's access to a history file. It must not do
/// that to a device, or /dev/null would become unusable.
fn kept_in(path: PathBuf) -> Option<PathBuf> {
    let can_be = std::fs::metadata(&path).map_or(!path.as_os_str().is_empty(), |there| there.is_file());
    can_be.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_kept_in_files_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("history");
        assert_eq!(kept_in(file.clone()), Some(file.clone()), "it is not there the first time");
        std::fs::write(&file, "#V2\n").unwrap();
        assert_eq!(kept_in(file.clone()), Some(file));
        for no_file in ["/dev/null", ""] {
            assert_eq!(kept_in(no_file.into()), None, "{no_file:?}");
        }
        assert_eq!(kept_in(directory.path().to_owned()), None);
    }
}
