//! The interface between the actors and the world: network, disk, locks and fencing, file notice, clocks, randomness.
//!
//! Everything that an actor does to the world goes through [`Env`], so that a simulated world can replace the real one.
//! Only the real environment has threads.

pub(crate) mod local;
mod net;
pub mod real;
mod short_timer;
#[cfg(feature = "sim")]
pub mod sim;
pub(crate) mod small_file;
mod threads;

pub(crate) use net::{tls_channel, try_sockets_in};
pub use net::{
    ClientAuth, Listener, LocalListener, OsStream, PathListener, Stream, Tls, TlsError, TlsFiles, TlsStream,
    UnixConnection,
};

use bytes::Bytes;
use dsm_protocol::ids::{Epoch, Millis, UnixMillis};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::fence::Spared;
use dsm_protocol::machine::log_scan::{LogScan, Next, Part};
use dsm_protocol::record::{self, Place};
use futures_util::future::LocalBoxFuture;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The world, as one node sees it.
pub type Env = Rc<dyn Environment>;

/// What a node may ask of the world.
pub trait Environment {
    /// Time since the environment was made. It never stops, except in tests, where it follows tokio's clock.
    fn now(&self) -> Millis;

    /// The same in microseconds, to tell how long a turn takes.
    fn clock_us(&self) -> u64;

    /// What the wall clock shows. It may be set, ahead and back.
    fn wall_clock(&self) -> UnixMillis;

    /// How long the machine has been running since its boot, without the time in which it slept where that is not counted. It is
    /// never set.
    fn uptime(&self) -> Millis;

    /// The processor time of this thread so far, in microseconds. `None` where the system does not count it.
    fn computed_us(&self) -> Option<u64> {
        None
    }

    /// The same for a machine that is to know it in the middle of a step. `None` where no time passes in one.
    fn cpu_time(&self) -> Option<fn() -> Duration> {
        None
    }

    /// How long this thread was ready to run but waited for a processor so far, in microseconds. `None` where the system
    /// does not count it.
    fn waited_us(&self) -> Option<u64> {
        None
    }

    /// Waits for `time`, which may be less than a millisecond. It may take longer.
    fn pause(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    /// A random number. In the real world nobody can guess it.
    fn random(&self) -> u64;

    /// Listens at `address` (`host:port`).
    ///
    /// # Errors
    /// Errors of the system, as for a port in use.
    fn listen<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Listener>>;

    /// Listens at the Unix socket `path`, to which those may connect whom the access rights `mode` let write.
    ///
    /// # Errors
    /// Errors of the system, as for a path at which somebody listens; `Unsupported` where there are none.
    fn listen_unix<'a>(&'a self, path: &'a Path, mode: u32) -> LocalBoxFuture<'a, io::Result<Listener>> {
        let _ = (path, mode);
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    /// Connects to `address` (`host:port`, or `unix:/path` where there are such). The caller sets the time limit.
    ///
    /// # Errors
    /// Errors of the system.
    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>>;

    /// The same world, with TLS over TCP: every address is listened at and dialed with it, unless it says otherwise. `None`
    /// where there is no TLS.
    fn secured(&self, tls: &Tls) -> Option<Env> {
        let _ = tls;
        None
    }

    /// Whether nobody can stand on the way to an address that is listened at or dialed: it is within this machine, or there is
    /// TLS. Worlds without a network have no such ways.
    fn is_private_way(&self, address: &str) -> bool {
        let _ = address;
        true
    }

    /// Until when the certificate of this node is valid, in seconds since 1970; `None` without TLS.
    fn certificate_expires(&self) -> Option<u64> {
        None
    }

    /// How often the manager of services that has started this process wants to be told how it is; `None` if there is none, or it
    /// does not.
    fn service_interval(&self) -> Option<Duration> {
        None
    }

    /// Tells it that. Never waits.
    fn tell_service(&self, news: ServiceNews) {
        let _ = news;
    }

    /// The files that this node may open.
    fn disk(&self) -> Rc<dyn Disk>;

    /// The locks that this node may take.
    fn locks(&self) -> Rc<dyn Locks>;

    /// The running boot of this machine.
    fn boot_id(&self) -> String;

    /// This process, as the system numbers it.
    fn pid(&self) -> u32;

    /// Log lines of this process that were lost because standard error did not take them.
    fn log_lines_lost(&self) -> u64 {
        0
    }

    /// Resident memory of this process, in bytes; 0 when it is not known.
    fn resident_bytes(&self) -> u64;

    /// That part of it that no file stands behind; 0 when it is not known.
    fn private_bytes(&self) -> u64 {
        0
    }

    /// How long all threads of this process have computed, in microseconds: in the program, and in the kernel. `None` where the
    /// system does not count it.
    fn processor_time_us(&self) -> Option<(u64, u64)> {
        None
    }
}

/// What the manager of services is told of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceNews {
    /// Whether it does its part.
    pub is_ready: bool,
    /// In words, on one line.
    pub status: String,
}

/// The identity of a file, whatever its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// The number of the device that the file is on.
    pub device: u64,
    /// The inode on it.
    pub inode: u64,
}

/// The path at which a file must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// The path. It may lead over symbolic links.
    pub path: Arc<Path>,
    /// The file to which the path must lead.
    pub identity: FileIdentity,
}

impl Post {
    /// What is wrong with what was found at the path: a file with its length, or nothing.
    pub(crate) fn judge(&self, found: Option<(FileIdentity, u64)>, length: u64) -> Option<Stands> {
        match found {
            None => Some(Stands::Nothing),
            Some((identity, _)) if identity != self.identity => Some(Stands::Other),
            Some((_, found)) if found < length => Some(Stands::Shorter { bytes: length - found }),
            Some((_, found)) if found > length => Some(Stands::Longer { bytes: found - length }),
            Some(_) => None,
        }
    }
}

/// A file is not at its path as its writer has left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Displaced {
    /// What is there instead.
    pub stands: Stands,
    /// Whether the file has no name any more: it is deleted once the last process closes it.
    pub is_deleted: bool,
}

/// What is at a path instead of the file that its writer has left there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stands {
    /// Nothing.
    Nothing,
    /// A dangling symbolic link.
    Dangling {
        /// The path to which the link points.
        target: PathBuf,
    },
    /// Another file.
    Other,
    /// The same file, shorter.
    Shorter {
        /// How many bytes are missing.
        bytes: u64,
    },
    /// The same file, longer.
    Longer {
        /// How many bytes are too many.
        bytes: u64,
    },
}

impl fmt::Display for Displaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.stands {
            Stands::Nothing if self.is_deleted => f.write_str("nothing is there, it was deleted"),
            Stands::Nothing => {
                f.write_str("nothing is there, it was moved away or its volume is not mounted")
            }
            Stands::Dangling { target } => {
                write!(f, "a symbolic link to {} is there, which leads nowhere", target.display())
            }
            Stands::Other if self.is_deleted => f.write_str("another file is there, and it was deleted"),
            Stands::Other => f.write_str("another file is there, it was moved away"),
            Stands::Shorter { bytes } => write!(
                f,
                "it is {bytes} bytes shorter than what was written, it was truncated or an older copy was written over it"
            ),
            Stands::Longer { bytes } => {
                write!(f, "it is {bytes} bytes longer than what was written, somebody else writes to it")
            }
        }
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Existing,
    /// For reading and writing; created when it does not exist, but never at the target of a symbolic link.
    Write,
}

/// Opens files by path, and changes what is at a path. A change goes on when its future is dropped.
pub trait Disk {
    /// Opens a file.
    ///
    /// # Errors
    /// Errors of the system.
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>>;

    /// Reads a whole regular file of at most `bytes_max` bytes. What is no such file is refused without a wait for it.
    ///
    /// # Errors
    /// Errors of the system; `InvalidInput` and `FileTooLarge` for another file.
    fn read_small<'a>(&'a self, path: &'a Path, bytes_max: usize) -> LocalBoxFuture<'a, io::Result<Vec<u8>>> {
        Box::pin(async move {
            let text = self.open(path, OpenMode::Read).await?.read_at(0, bytes_max + 1).await?;
            if text.len() > bytes_max {
                return Err(small_file::too_long(bytes_max));
            }
            Ok(text)
        })
    }

    /// The identity of the file at `path`; `None` when there is none.
    ///
    /// # Errors
    /// Errors of the system.
    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Option<FileIdentity>>>;

    /// The access rights of the file at `path`, if they let others than its owner read it.
    ///
    /// # Errors
    /// Errors of the system.
    fn others_may_read<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Option<u32>>> {
        let _ = path;
        Box::pin(async { Ok(None) })
    }

    /// Where the file is to which `path` leads over symbolic links.
    ///
    /// # Errors
    /// Errors of the system; `NotFound` when it leads nowhere.
    fn resolve<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<PathBuf>>;

    /// Makes an empty file at `path` with the owner and the access rights of the file at `like`, open for reading and
    /// writing. A regular file that is there is removed first. Never follows a symbolic link at `path`. If the owner
    /// cannot be taken over, the file is made all the same, with rights that nobody lacks at `like`.
    ///
    /// # Errors
    /// Errors of the system; `AlreadyExists` when something else than a regular file is there. Then no new file is
    /// there, but the old one may be gone.
    fn create<'a>(&'a self, path: &'a Path, like: &'a Path) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>>;

    /// Exchanges the two files in one step. Durable once the directory is synced.
    ///
    /// # Errors
    /// Errors of the system; `Unsupported` when the file system cannot do it. Then nothing has changed.
    fn exchange<'a>(&'a self, first: &'a Path, second: &'a Path) -> LocalBoxFuture<'a, io::Result<()>>;

    /// Removes the file at `path` if it is that one; says whether it was. Never follows a symbolic link. Durable once
    /// the directory is synced.
    ///
    /// # Errors
    /// Errors of the system. Then nothing has changed.
    fn remove<'a>(&'a self, path: &'a Path, identity: FileIdentity) -> LocalBoxFuture<'a, io::Result<bool>>;

    /// How many bytes this user may still write on the file system that holds `path`.
    ///
    /// # Errors
    /// Errors of the system.
    fn free_bytes<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<u64>>;

    /// Makes the entries of the directory that holds `path` durable.
    ///
    /// # Errors
    /// Errors of the system.
    fn sync_directory<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<()>>;

    /// Watches the directory that holds `path` for changes of that file.
    ///
    /// # Errors
    /// Errors of the system.
    fn watch<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn Watch>>>;
}

/// An open file. Operations on one handle run one after another, in the order of the calls, on the handle's own thread.
/// Operations on different handles are independent.
pub trait File {
    /// Reads up to `length` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// Errors of the system.
    fn read_at(&self, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Vec<u8>>>;

    /// Runs `work`, which takes a while and does no IO, off the node's own thread, in order with the other operations.
    /// Where there are no threads it runs at once.
    ///
    /// # Errors
    /// Errors of the system. Then the work may not have been done.
    fn compute(&self, work: Box<dyn FnOnce() + Send>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            work();
            Ok(())
        })
    }

    /// Reads, checks and decodes the value at `place`, of a version of that epoch; off the caller's thread where files
    /// have their own.
    ///
    /// # Errors
    /// Errors of the system, or that the place holds something else.
    fn read_value(&self, place: Place, epoch: Epoch) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let text = self.read_at(place.offset, place.text_bytes as usize).await?;
            record::value_at(text, place, epoch).map_err(io::Error::other)
        })
    }

    /// Writes a group at its `offset` and, if asked, makes it durable. Space is set aside first if `reserve_to` asks
    /// for it.
    fn append(&self, group: Group) -> LocalBoxFuture<'_, Appended>;

    /// Checks whether this file, with that length, is at its path.
    ///
    /// # Errors
    /// Errors of the system. Then nothing is known.
    fn look(&self, post: Post, length: u64) -> LocalBoxFuture<'_, io::Result<Option<Displaced>>>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// Errors of the system. After one, nothing is known about what was written since the last success.
    fn sync(&self) -> LocalBoxFuture<'_, io::Result<()>>;

    /// Cuts the file to `length` bytes.
    ///
    /// # Errors
    /// Errors of the system.
    fn truncate(&self, length: u64) -> LocalBoxFuture<'_, io::Result<()>>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// Errors of the system.
    fn length(&self) -> LocalBoxFuture<'_, io::Result<u64>>;

    /// Which file this is.
    ///
    /// # Errors
    /// Errors of the system.
    fn identity(&self) -> LocalBoxFuture<'_, io::Result<FileIdentity>>;

    /// A path at which another process can read this open file, even if it is deleted; `None` where there is none.
    fn shown(&self) -> Option<String> {
        None
    }

    /// A second handle of the same file, whatever is at its path now. Its operations are independent of this one's. The
    /// lock stays with this handle: it is released when this handle is dropped or gives it back.
    ///
    /// # Errors
    /// Errors of the system.
    fn duplicate(&self) -> LocalBoxFuture<'_, io::Result<Rc<dyn File>>>;

    /// Goes on with a scan: reads and parses until a part is complete; off the caller's thread where files have their
    /// own.
    ///
    /// # Errors
    /// Errors of the system.
    fn scan(&self, scan: LogScan) -> LocalBoxFuture<'_, io::Result<(LogScan, Part)>> {
        let mut scan = scan;
        Box::pin(async move {
            loop {
                match scan.advance() {
                    Next::Part(part) => return Ok((scan, part)),
                    Next::Read { offset, length } => {
                        let bytes = self.read_at(offset, length).await?;
                        scan.fill(&bytes, length);
                    }
                }
            }
        })
    }

    /// Takes the exclusive lock on the file without waiting; it is released when the last handle is dropped.
    ///
    /// # Errors
    /// Errors of the system; `Ok(false)` when another process holds the lock.
    fn try_lock(&self) -> io::Result<bool>;

    /// Gives that lock back before the handle is dropped.
    ///
    /// # Errors
    /// Errors of the system.
    fn unlock(&self) -> io::Result<()>;
}

/// What [`File::append`] is to write.
#[derive(Debug, Default)]
pub struct Group {
    /// The offset in the file, in bytes.
    pub offset: u64,
    /// The bytes to write. The buffer is returned with the result.
    pub bytes: Vec<u8>,
    /// Whether to make it durable before answering.
    pub sync: bool,
    /// Set disk space aside up to this offset first; if that fails, nothing is written.
    pub reserve_to: Option<u64>,
    /// Check before and after the write that the file is at this path, and ends where the group begins or ends. If the
    /// first check fails, nothing is written.
    pub post: Option<Post>,
}

/// The result of [`File::append`].
#[derive(Debug)]
pub struct Appended {
    /// The buffer, for the next group.
    pub bytes: Vec<u8>,
    /// How many bytes of the group were written.
    pub written: usize,
    /// Why not all were written.
    pub write_error: Option<io::Error>,
    /// Why what was written is not known to be durable, if it was to be.
    pub sync_error: Option<io::Error>,
    /// That the file is not at its path: no restart will find what was written.
    pub displaced: Option<Displaced>,
    /// Why it is not known whether the file is at its path.
    pub unseen: Option<io::Error>,
    /// How long the sync took, in microseconds, if there was one and it was measured.
    pub sync_us: Option<u64>,
}

impl Appended {
    /// Nothing is written yet.
    pub fn nothing(bytes: Vec<u8>) -> Self {
        Appended {
            bytes,
            written: 0,
            write_error: None,
            sync_error: None,
            displaced: None,
            unseen: None,
            sync_us: None,
        }
    }
}

/// A notice of changes.
pub trait Watch {
    /// Waits until the file may have changed since the last call returned.
    ///
    /// # Errors
    /// Errors of the system.
    fn changed(&mut self) -> LocalBoxFuture<'_, io::Result<()>>;
}

/// What was seen of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockSeen {
    /// No process holds it.
    Free,
    /// A process holds it, with this counter (`None`: it has not begun to count).
    Held {
        /// The progress counter that the holder publishes.
        beat: Option<u64>,
    },
}

/// Locks by path, and what can be seen of their holders. A path may be on a disk that hangs, so nothing here waits for a
/// disk on the caller's thread.
pub trait Locks {
    /// Queues for the exclusive lock on the file at `path` (created when it does not exist). Resolves when the lock is
    /// held and the file is still the one at `path`. Dropping the future leaves the queue.
    fn acquire<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn LockGuard>>>;

    /// Whether a process holds the lock, and its progress counter.
    ///
    /// # Errors
    /// Errors of the system.
    fn look<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<LockSeen>>;

    /// Reads the text of the lock file.
    ///
    /// # Errors
    /// Errors of the system.
    fn text<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<LockText>>;

    /// Tries the needed kinds of locks, on a file of its own beside the one at `path`.
    ///
    /// # Errors
    /// The kind that is missing for good: no master can serve there.
    fn try_kinds<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        let _ = path;
        Box::pin(async { Ok(()) })
    }

    /// Makes sure that the holder of the lock no longer runs, if its counter still is `beat` (`None`: it has not begun
    /// to count). A holder whose counter has moved is spared.
    fn fence<'a>(&'a self, path: &'a Path, beat: Option<u64>) -> LocalBoxFuture<'a, Fenced>;

    /// `boot-id:device:inode` of the lock file (created when it does not exist): equal for masters that share it.
    ///
    /// # Errors
    /// Errors of the system.
    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<String>>;
}

/// The result of an attempt to fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// The holder got SIGKILL.
    Killed {
        /// The process that was killed.
        pid: u32,
    },
    /// The lock is free.
    Gone,
    /// It is not certain who the holder is, or it must not be killed.
    Spared(Spared),
    /// The facts could not be read.
    Failed {
        /// Errors of the system.
        error: String,
    },
}

/// The lock, held until this is dropped.
pub trait LockGuard: Send {
    /// The text of the lock file before this holder wrote its own.
    fn previous(&self) -> &LockText;

    /// The lock file's text about this holder.
    fn held(&self) -> LockText;

    /// Has the lock file's text written in place, and does not wait for it. When the guard is dropped, the lock is
    /// released after a write that is under way.
    fn write_text(&self, text: LockText);

    /// Marks that the holder makes progress. Cheap; published to others within 50 ms without a disk access.
    fn advance(&self);
}
