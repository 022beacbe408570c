//! A listener on a path: a Unix socket, for clients and slaves on the same machine.
//!
//! Owns the file of the socket: how it is made, when one that is there already is replaced, and when it is removed. What a
//! path of a socket looks like is `address.rs`'s.
//!
//! A process that was killed leaves its socket behind, and nobody can listen at that path before the file is gone. So a
//! socket to which nobody listens any more is replaced, which the system tells whoever connects to it. One to which somebody
//! listens, and a file that is no socket, are left alone. Of two that start at once, both could find a socket that nobody
//! listens to, and the second one would remove the first one's new socket: so the look and what follows are done under a lock
//! on the directory. (It leaves no file behind, as a lock file would; Redis removes whatever is at the path, nginx nothing.)

use super::unix_connection::UnixConnection;
use crate::address::of_unix_path;
use crate::env::FileIdentity;
use dsm_protocol::secret::Channel;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;

/// The most connections that wait to be accepted. The system may allow fewer, and refuses more at once.
const BACKLOG: i32 = 4096;

/// How often the lock on the directory is tried, this far apart: others hold it for as long as a socket takes to be made.
const LOCK_TRIES: u32 = 100;
const LOCK_TRIED_EVERY: Duration = Duration::from_millis(10);

/// A listener on a path. Its drop removes the file, if that is still its own.
#[derive(Debug)]
pub struct PathListener {
    address: String,
    path: PathBuf,
    /// The file that was made.
    made: FileIdentity,
    channel: Channel,
    listener: UnixListener,
}

impl PathListener {
    /// Listens at a socket that [`make`] has made at `path`.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::env) fn new(path: PathBuf, (socket, made): (OwnedFd, FileIdentity)) -> io::Result<Self> {
        let address = of_unix_path(&path).map_err(invalid)?;
        // From here on the drop removes the file.
        let listener = UnixListener::from_std(socket.into())?;
        let channel = channel(&path);
        Ok(PathListener { address, path, made, channel, listener })
    }

    /// Waits for the next connection. Its address ends in the process on the other side, as that of TCP does in its port.
    pub(super) async fn accept(&self) -> io::Result<(UnixConnection, String)> {
        let (socket, _) = self.listener.accept().await?;
        let pid = socket.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default();
        let connection = UnixConnection::new(socket.into_std()?, self.channel)?;
        Ok((connection, format!("{}:{pid}", self.address)))
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

/// A socket that goes is removed before it is closed: a later start finds none, and whoever finds it is not refused yet.
impl Drop for PathListener {
    fn drop(&mut self) {
        if matches!(look(&self.path), Ok(Some((found, FileType::Socket))) if found == self.made) {
            if let Err(error) = std::fs::remove_file(&self.path) {
                log::warn!("socket not removed address={} error={error}", self.address);
            }
        }
    }
}

/// Connects to the socket at `path`, or is refused: nothing is waited for.
///
/// # Errors
/// What the system says; `WouldBlock` when as many wait to be accepted as may.
pub(super) fn connect(path: &Path) -> io::Result<UnixConnection> {
    let socket = new_socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    UnixConnection::new(socket, channel(path))
}

/// What both ends know a connection to the socket at `path` by: its directory, over whatever links that is named, and its
/// name there. A link in place of the socket counts as another one: whoever may write in the directory could change it
/// after the connect.
fn channel(path: &Path) -> Channel {
    let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
    let resolved = directory.zip(path.file_name()).map(|(directory, name)| directory.join(name));
    Channel::named(&format!("unix:{}", resolved.as_deref().unwrap_or(path).display()))
}

/// Makes a socket at `path` with the access rights `mode`, and listens. Waits for disks.
///
/// # Errors
/// `AddrInUse` when somebody listens there or starts to, `AlreadyExists` when a file that is no socket is there, and what the
/// system says.
pub(in crate::env) fn make(path: &Path, mode: u32) -> io::Result<(OwnedFd, FileIdentity)> {
    let address = SocketAddrUnix::new(path)?;
    let parent = path.parent().ok_or_else(|| invalid("a socket is in a directory"))?;
    let _starting = lock(parent)?;
    match look(path)? {
        None => {}
        Some((_, FileType::Socket)) => clear(path, &address)?,
        Some(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"))
        }
    }
    let socket = bound(&address, mode)?;
    let listening = std::fs::metadata(path).and_then(|made| {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        if made.permissions().mode() & 0o777 != mode {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(FileIdentity { device: made.dev(), inode: made.ino() })
    });
    match listening {
        Ok(made) => Ok((socket, made)),
        Err(error) => {
            // Ours: it was just made, under the lock.
            drop(std::fs::remove_file(path));
            Err(error)
        }
    }
}

/// Whether there can be sockets in a directory: makes one, and removes it. Waits for disks.
///
/// # Errors
/// Why not.
pub(crate) fn try_sockets_in(directory: &Path) -> io::Result<()> {
    let path = directory.join(format!("{}.sock", std::process::id()));
    let (socket, _) = make(&path, 0o600)?;
    std::fs::remove_file(&path)?;
    drop(socket);
    Ok(())
}

/// Makes the file of a socket. From the start it has no more than the rights `mode`, so that nobody connects who may not; and
/// fewer by what the umask takes.
fn bound(address: &SocketAddrUnix, mode: u32) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&socket, address)?;
    Ok(socket)
}

/// Removes a socket to which nobody listens.
fn clear(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    let in_use = |why: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, why.to_owned()));
    match rustix::net::connect(new_socket()?, address) {
        Err(Errno::CONNREFUSED) => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        // One more connection than may wait, or one of another type: somebody has it open.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => in_use("a process listens there already"),
        Err(error) => Err(error.into()),
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// What is at `path` itself, be it a link.
fn look(path: &Path) -> io::Result<Option<(FileIdentity, FileType)>> {
    match rustix::fs::lstat(path) {
        Ok(found) => {
            let identity = FileIdentity { device: found.st_dev, inode: found.st_ino };
            Ok(Some((identity, FileType::from_raw_mode(found.st_mode))))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Keeps others from making a socket in this directory, until the drop.
fn lock(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_TRIED_EVERY),
            locked => return locked.map(|()| directory).map_err(io::Error::from),
        }
    }
    let why = "another process holds a lock on the directory, as one does that starts to listen there";
    Err(io::Error::new(io::ErrorKind::AddrInUse, why))
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use super::super::{Listener, OsStream};
    use super::*;
    use crate::env::real::RealEnv;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    use std::sync::Arc;

    const OWNER: u32 = 0o600;

    /// A directory, and the path of a socket in it.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        (directory, path)
    }

    async fn listen(path: &Path) -> io::Result<Listener> {
        RealEnv::new().listen_unix(path, OWNER).await
    }

    /// Leaves a socket behind, as a killed process does.
    fn killed(path: &Path) {
        drop(make(path, OWNER).unwrap());
        assert!(std::fs::metadata(path).unwrap().file_type().is_socket());
        is_left(path);
    }

    /// Waits until nobody listens at `path` any more: a process that another test starts has what is open here until it
    /// executes its program.
    fn is_left(path: &Path) {
        let address = SocketAddrUnix::new(path).unwrap();
        let connect = || rustix::net::connect(new_socket().unwrap(), &address);
        assert!((0..1_000_000).any(|_| connect() == Err(Errno::CONNREFUSED)), "{:?}", connect());
    }

    /// Connects to `path`, and says something that the listener hears.
    async fn works(listener: &Listener, path: &Path) {
        let near = OsStream::connect(&of_unix_path(path).unwrap(), None).await.unwrap();
        near.write_all(b"x").await.unwrap();
        let mut heard = bytes::BytesMut::new();
        // Who only looked whether somebody listens has ended already.
        while heard.is_empty() {
            let (far, address) = listener.accept().await.unwrap();
            assert_eq!(address, format!("{}:{}", listener.local_address().unwrap(), std::process::id()));
            far.read(&mut heard).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_socket_is_made_with_its_rights_and_removed_with_its_listener() {
        let (_directory, path) = place();
        for mode in [0o600, 0o666, 0o770] {
            let listener = RealEnv::new().listen_unix(&path, mode).await.unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode, "{mode:o}");
            assert_eq!(listener.local_address().unwrap(), format!("unix:{}", path.display()));
            works(&listener, &path).await;
            drop(listener);
            assert!(!path.exists());
        }
    }

    /// Not even for a moment, in which somebody could connect and stay.
    #[test]
    fn a_socket_never_has_more_rights_than_it_is_to_have() {
        let (_directory, path) = place();
        let _socket = bound(&SocketAddrUnix::new(&path).unwrap(), OWNER).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, OWNER);
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_replaced() {
        let (_directory, path) = place();
        killed(&path);
        let refused = OsStream::connect(&of_unix_path(&path).unwrap(), None).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let listener = listen(&path).await.unwrap();
        works(&listener, &path).await;
    }

    #[tokio::test]
    async fn a_socket_at_which_somebody_listens_is_left_alone() {
        let (_directory, path) = place();
        let first = listen(&path).await.unwrap();
        let error = listen(&path).await.unwrap_err();
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (io::ErrorKind::AddrInUse, "a process listens there already")
        );
        works(&first, &path).await;
        // Somebody else's, who accepts nothing, and whose queue is full.
        let busy = path.with_file_name("busy.sock");
        let socket = new_socket().unwrap();
        let address = SocketAddrUnix::new(&busy).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let mut queued = Vec::new();
        while let Ok(()) = {
            queued.push(new_socket().unwrap());
            rustix::net::connect(&queued[queued.len() - 1], &address)
        } {}
        assert_eq!(listen(&busy).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // Of another type.
        let datagrams = path.with_file_name("datagrams.sock");
        let _socket = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        assert_eq!(listen(&datagrams).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(busy.exists() && datagrams.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let (directory, path) = place();
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(listen(&path).await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        // Nor a link, though it leads to a socket to which nobody listens.
        let (stale, link) = (directory.path().join("stale.sock"), directory.path().join("link.sock"));
        killed(&stale);
        std::os::unix::fs::symlink(&stale, &link).unwrap();
        assert_eq!(listen(&link).await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(stale.exists() && link.is_symlink());
        let nowhere = listen(&directory.path().join("none/a.sock")).await.unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
        let long = directory.path().join("x".repeat(108));
        assert!(listen(&long).await.is_err());
    }

    #[tokio::test]
    async fn a_socket_that_is_another_ones_by_now_is_not_removed() {
        let (_directory, path) = place();
        let first = listen(&path).await.unwrap();
        // It goes on serving at the path to which it was moved.
        let moved = path.with_extension("moved");
        std::fs::rename(&path, &moved).unwrap();
        let second = listen(&path).await.unwrap();
        OsStream::connect(&of_unix_path(&moved).unwrap(), None).await.unwrap();
        first.accept().await.unwrap();
        drop(first);
        works(&second, &path).await;
        assert!(moved.exists(), "nor one that somebody has put elsewhere");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(second);
        assert!(path.exists());
    }

    /// Without the lock on the directory, two do in one of some dozen rounds, and nobody reaches one of them.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "those who start are other processes")]
    fn of_many_who_start_where_a_killed_process_was_one_listens() {
        let (_directory, path) = place();
        for round in 0..200 {
            killed(&path);
            let path = Arc::new(path.clone());
            let starting: Vec<_> = (0..4)
                .map(|_| {
                    let path = Arc::clone(&path);
                    std::thread::spawn(move || make(&path, OWNER))
                })
                .collect();
            let started: Vec<_> = starting.into_iter().map(|starting| starting.join().unwrap()).collect();
            let listening: Vec<_> = started.iter().flatten().collect();
            assert_eq!(listening.len(), 1, "in round {round}: {started:?}");
            assert_eq!(look(&path).unwrap().unwrap().0, listening[0].1, "in round {round}");
            drop(started);
            is_left(&path);
        }
    }
}
