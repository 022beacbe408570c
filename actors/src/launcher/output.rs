//! The files that take the processes' output.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// How many bytes at the end of a child's output are searched for the reason of its end.
const OUTPUT_TAIL_BYTES: u64 = 4096;

/// Creates an empty output file; the previous one is kept with `.1` added to its name.
pub(super) fn new_output(path: &Path) -> io::Result<File> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    match fs::rename(path, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // It may name keys.
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// The last line that is not empty; of a long file, only if it is near the end.
pub(super) fn last_line(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(OUTPUT_TAIL_BYTES);
    file.seek(io::SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(OUTPUT_TAIL_BYTES).read_to_end(&mut tail)?;
    let text = String::from_utf8_lossy(&tail);
    Ok(text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned())
}
