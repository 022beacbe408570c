//! The secrets that a process is given: in a file, or by the program around it.
//!
//! Owns how the file is read. What a secret is and how it is proved is `dsm_protocol::secret`'s.

use crate::env::Env;
pub use dsm_protocol::secret::Secret;
use dsm_protocol::secret::{Nonce, Secrets, SECRET_FILE_BYTES_MAX};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use thiserror::Error;

/// The flag of the secret of nodes, and that of native clients.
pub(crate) const NODES: &str = "--secret-file";
pub(crate) const CLIENTS: &str = "--client-secret-file";

/// Where a secret comes from. Its text is never that of the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, which is read when the process starts.
    File(PathBuf),
    /// The program that fills in the settings.
    Given(Secret),
}

/// Why a file gives no secret.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{flag} {}: {why}", path.display())]
pub struct SecretFileError {
    /// The flag that names it.
    pub flag: &'static str,
    /// Its path.
    pub path: PathBuf,
    /// What is wrong. Never shows any of its content.
    pub why: String,
}

/// Reads the secret from where it comes. Waits for disks.
///
/// # Errors
/// That the file is missing or has none.
fn open(source: Option<&SecretSource>, flag: &'static str) -> Result<Option<Secret>, SecretFileError> {
    match source {
        None => Ok(None),
        Some(SecretSource::Given(secret)) => Ok(Some(secret.clone())),
        Some(SecretSource::File(path)) => {
            read(path).map(Some).map_err(|why| SecretFileError { flag, path: path.clone(), why })
        }
    }
}

fn read(path: &Path) -> Result<Secret, String> {
    let failed = |error: std::io::Error| error.to_string();
    // Who opens a pipe would wait for its other end.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits();
    let nonblock = i32::try_from(nonblock).unwrap_or_default();
    let file = File::options().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mode = found.mode() & 0o777;
    if mode & 0o066 != 0 {
        let done = if mode & 0o044 != 0 { "read" } else { "written" };
        log::warn!(
            "secrets can be {done} by others path={} mode={mode:o}: `chmod 600` keeps them to their owner",
            path.display()
        );
    }
    let mut text = zeroize::Zeroizing::new(Vec::with_capacity(SECRET_FILE_BYTES_MAX + 1));
    file.take(SECRET_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut text).map_err(failed)?;
    Secret::parse(&text).map_err(|error| error.to_string())
}

/// The secrets that must be proved to a master, from where those of nodes and of native clients come. Waits for disks.
///
/// # Errors
/// That a file is missing or has none.
pub(crate) fn of_master(
    nodes: Option<&SecretSource>,
    clients: Option<&SecretSource>,
) -> Result<Secrets, SecretFileError> {
    Ok(Secrets { nodes: open(nodes, NODES)?, clients: open(clients, CLIENTS)? })
}

/// The secret of a slave. Waits for disks.
///
/// # Errors
/// That the file is missing or has none.
pub(crate) fn of_slave(source: Option<&SecretSource>) -> Result<Option<Secret>, SecretFileError> {
    open(source, NODES)
}

/// The secret of a native client. Waits for disks.
///
/// # Errors
/// That the file is missing or has none.
pub(crate) fn of_client(source: Option<&SecretSource>) -> Result<Option<Secret>, SecretFileError> {
    open(source, CLIENTS)
}

/// What a side proves over one connection.
pub(crate) struct Credential {
    pub(crate) secret: Secret,
    /// For that connection alone.
    pub(crate) nonce: Nonce,
}

/// What a node proves over a new connection.
pub(crate) fn credential(env: &Env, secret: Option<&Secret>) -> Option<Credential> {
    let secret = secret?.clone();
    Some(Credential { secret, nonce: nonce(env) })
}

/// The same for a program without an environment.
#[allow(clippy::disallowed_methods, reason = "a program that uses the client library has no environment")]
pub(crate) fn fresh_credential(secret: Secret) -> Credential {
    Credential { secret, nonce: Nonce::draw(rand::random) }
}

/// A number for one connection.
pub(crate) fn nonce(env: &Env) -> Nonce {
    Nonce::draw(|| env.random())
}

/// The secrets of a master, shared by its connections.
pub(crate) type SharedSecrets = Rc<Secrets>;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_that_is_of_no_use_is_named_with_its_flag_and_nothing_of_it_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let told = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let source = SecretSource::File(path);
            open(Some(&source), NODES).map_err(|error| error.to_string())
        };
        assert_eq!(
            told("good", b"0123456789abcdef\n"),
            Ok(Some(Secret::parse(b"0123456789abcdef").unwrap()))
        );
        let short = told("short", b"hunter2\n").unwrap_err();
        assert!(short.starts_with("--secret-file ") && short.contains("16 bytes"), "{short}");
        assert!(!short.contains("hunter2"), "{short}");
        let long = told("long", &[b'x'; 5000]).unwrap_err();
        assert!(long.contains("4096 bytes"), "{long}");
        let missing = SecretSource::File(dir.path().join("missing"));
        assert!(open(Some(&missing), CLIENTS).unwrap_err().to_string().contains("No such file"));
        let directory = SecretSource::File(dir.path().to_owned());
        assert!(open(Some(&directory), CLIENTS).unwrap_err().to_string().contains("not a file"));
        assert_eq!(open(None, NODES), Ok(None));
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let why = open(Some(&SecretSource::File(path)), NODES).unwrap_err();
        assert_eq!(why.why, "it is not a file");
    }
}
