//! Files that are read as a whole: certificates, keys, users and passwords.
//!
//! Owns what such a file may be: a regular one, and no longer than its reader allows. A pipe or a device at its path would hold
//! up whoever opens it, or never end.

use rustix::fs::OFlags;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Reads the file at `path`. Waits for disks, and for nobody else.
///
/// # Errors
/// What the system says; `InvalidInput` for what is not a file, and `FileTooLarge` beyond `bytes_max` bytes.
pub(crate) fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    // Without this a pipe is opened once somebody writes to it.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut text)?;
    if text.len() > bytes_max {
        return Err(too_long(bytes_max));
    }
    Ok(text)
}

/// The error for a file of more than `bytes_max` bytes.
pub(super) fn too_long(bytes_max: usize) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_pipe_a_device_a_socket_a_directory_and_a_long_file_are_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        fs::write(at("long"), [b'x'; 101]).unwrap();
        fs::write(at("fits"), [b'x'; 100]).unwrap();
        std::os::unix::fs::symlink(at("fits"), at("link")).unwrap();
        // One that would take a disk's worth of memory.
        fs::File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        let why = |path: &Path| read(path, 100).unwrap_err().to_string();
        for path in [at("pipe"), "/dev/zero".into(), directory.path().to_owned()] {
            assert_eq!(why(&path), "it is not a regular file", "{path:?}");
        }
        assert!(read(&at("socket"), 100).is_err());
        for path in [at("long"), at("sparse")] {
            assert_eq!(why(&path), "it has more than 100 bytes");
        }
        for path in [at("fits"), at("link")] {
            assert_eq!(read(&path, 100).unwrap(), [b'x'; 100]);
        }
    }
}
