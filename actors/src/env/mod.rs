//! The seam between the actors and the world: network, disk, locks and fencing, file notice, clocks, randomness.
//!
//! Everything an actor does to the world goes through [`Env`], so that a simulated world can take the real one's
//! place. Threads belong to the real environment alone.

pub(crate) mod local;
mod local_listener;
pub(crate) mod names;
mod net;
pub mod real;
#[cfg(feature = "sim")]
pub mod sim;
mod threads;

pub use local_listener::LocalListener;
pub(crate) use net::keep_alive;
pub use net::{Listener, Stream};

use bytes::Bytes;
use dsm_protocol::ids::{Epoch, Millis};
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

/// The world, as one node sees it.
pub type Env = Rc<dyn Environment>;

/// What a node may ask of the world.
pub trait Environment {
    /// Time since the environment was made. Stands still nowhere, follows tokio's clock in tests.
    fn now(&self) -> Millis;

    /// The same in microseconds, to tell how long a turn takes.
    fn clock_us(&self) -> u64;

    /// For how long this thread has computed so far, in microseconds. `None` where nobody counts that.
    fn computed_us(&self) -> Option<u64> {
        None
    }

    /// For how long this thread was ready to compute and others had the processors, in microseconds. `None` where nobody
    /// counts that.
    fn waited_us(&self) -> Option<u64> {
        None
    }

    /// A random number, not for cryptography.
    fn random(&self) -> u64;

    /// Listens at `address` (`host:port`).
    ///
    /// # Errors
    /// What the system says, as for a port in use.
    fn listen<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Listener>>;

    /// Connects to `address` (`host:port`). The caller sets the time limit.
    ///
    /// # Errors
    /// What the system says.
    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>>;

    /// The files that this node may open.
    fn disk(&self) -> Rc<dyn Disk>;

    /// The locks that this node may take.
    fn locks(&self) -> Rc<dyn Locks>;

    /// The running boot of this machine.
    fn boot_id(&self) -> String;

    /// This process, as the system numbers it.
    fn pid(&self) -> u32;

    /// Log lines of this process that nobody took and that are lost.
    fn log_lines_lost(&self) -> u64 {
        0
    }

    /// Memory of this process that is resident, in bytes; 0 when nobody knows.
    fn resident_bytes(&self) -> u64;
}

/// Which file a path or a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// The number of the device that the file is on.
    pub device: u64,
    /// The inode on it.
    pub inode: u64,
}

/// Where a file is to stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// The path. It may lead there over symbolic links.
    pub path: Arc<Path>,
    /// What the path must lead to.
    pub identity: FileIdentity,
}

impl Post {
    /// What is wrong with what a look has found: a file with its length, or nothing.
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

/// Says that a file does not stand where it is to stand as its writer has left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Displaced {
    /// What stands there instead.
    pub stands: Stands,
    /// Whether the file has no name at all any more: it goes with the last process that has it open.
    pub is_deleted: bool,
}

/// What stands at a path instead of the file that its writer has left there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stands {
    /// Nothing stands there.
    Nothing,
    /// A symbolic link that leads nowhere.
    Dangling {
        /// Where the link points, where nothing stands.
        target: PathBuf,
    },
    /// Another file stands there.
    Other,
    /// The same file with less in it.
    Shorter {
        /// How many bytes are missing.
        bytes: u64,
    },
    /// The same file with more in it.
    Longer {
        /// How many bytes are too many.
        bytes: u64,
    },
}

impl fmt::Display for Displaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.stands {
            Stands::Nothing if self.is_deleted => f.write_str("nothing stands there, it was deleted"),
            Stands::Nothing => {
                f.write_str("nothing stands there, it was moved away or its volume is not mounted")
            }
            Stands::Dangling { target } => {
                write!(f, "a symbolic link to {} stands there, which leads nowhere", target.display())
            }
            Stands::Other if self.is_deleted => f.write_str("another file stands there, and it was deleted"),
            Stands::Other => f.write_str("another file stands there, it was moved away"),
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
    /// For reading and writing; made when it does not exist, but never where a symbolic link leads to.
    Write,
}

/// Opens files by path.
pub trait Disk {
    /// Opens a file.
    ///
    /// # Errors
    /// What the system says.
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>>;

    /// Which file stands at `path`; `None` when there is none.
    ///
    /// # Errors
    /// What the system says.
    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Option<FileIdentity>>>;

    /// The access rights of the file at `path`, if they let others than its owner read it.
    ///
    /// # Errors
    /// What the system says.
    fn others_may_read<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Option<u32>>> {
        let _ = path;
        Box::pin(async { Ok(None) })
    }

    /// Makes the entries of the directory that holds `path` durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_directory<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<()>>;

    /// Watches the directory that holds `path` for changes of that file.
    ///
    /// # Errors
    /// What the system says.
    fn watch<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn Watch>>>;
}

/// An open file. Operations on one handle happen one after another, in the order of the calls, on a thread of their
/// own; those on different handles are independent.
pub trait File {
    /// Reads up to `length` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Vec<u8>>>;

    /// Runs `work`, which takes a while and touches nothing of the world, beside the node's own thread, in the order of
    /// the other operations. Where there are no threads it runs at once.
    ///
    /// # Errors
    /// What the system says. The work may not have been done then.
    fn compute(&self, work: Box<dyn FnOnce() + Send>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            work();
            Ok(())
        })
    }

    /// Reads the value at `place`, of a version of that epoch, checks it and decodes it: none of it on the caller's thread
    /// where files have one of their own.
    ///
    /// # Errors
    /// What the system says, and that something else stands there.
    fn read_value(&self, place: Place, epoch: Epoch) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let text = self.read_at(place.offset, place.text_bytes as usize).await?;
            record::value_at(text, place, epoch).map_err(io::Error::other)
        })
    }

    /// Writes a group at `offset` and, if asked, makes it durable. What `reserve_to` asks for is tried first.
    fn append(&self, group: Group) -> LocalBoxFuture<'_, Appended>;

    /// Looks whether this file, with that length, stands where it is to stand.
    ///
    /// # Errors
    /// What the system says. Nothing is known then.
    fn look(&self, post: Post, length: u64) -> LocalBoxFuture<'_, io::Result<Option<Displaced>>>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// What the system says. After an error nothing is known of what was written since the last success.
    fn sync(&self) -> LocalBoxFuture<'_, io::Result<()>>;

    /// Cuts the file to `length` bytes.
    ///
    /// # Errors
    /// What the system says.
    fn truncate(&self, length: u64) -> LocalBoxFuture<'_, io::Result<()>>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn length(&self) -> LocalBoxFuture<'_, io::Result<u64>>;

    /// Which file this is.
    ///
    /// # Errors
    /// What the system says.
    fn identity(&self) -> LocalBoxFuture<'_, io::Result<FileIdentity>>;

    /// A path at which another process can read what this handle has open, be the file deleted; `None` where there is none.
    fn shown(&self) -> Option<String> {
        None
    }

    /// A second handle of the same file, whatever stands at its path by now. Its operations are independent of this
    /// one's. The lock is this handle's and is released with it, or when it is given back.
    ///
    /// # Errors
    /// What the system says.
    fn duplicate(&self) -> LocalBoxFuture<'_, io::Result<Rc<dyn File>>>;

    /// Goes on with a scan: reads and takes apart until it has a part to tell, none of it on the caller's thread where
    /// files have one of their own.
    ///
    /// # Errors
    /// What the system says.
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

    /// Takes the exclusive lock on the file without waiting; it is released with the last handle's drop.
    ///
    /// # Errors
    /// What the system says; that somebody else holds it is `Ok(false)`.
    fn try_lock(&self) -> io::Result<bool>;

    /// Gives that lock back before the handle is dropped.
    ///
    /// # Errors
    /// What the system says.
    fn unlock(&self) -> io::Result<()>;
}

/// What [`File::append`] is to write.
#[derive(Debug, Default)]
pub struct Group {
    /// Where in the file it is written, in bytes.
    pub offset: u64,
    /// What. The buffer comes back with the answer.
    pub bytes: Vec<u8>,
    /// Whether to make it durable before answering.
    pub sync: bool,
    /// Set disk space aside up to this offset first; without it nothing is written.
    pub reserve_to: Option<u64>,
    /// Look before and after whether the file stands there, and ends where the group begins and ends. If it does not
    /// before, nothing is written.
    pub post: Option<Post>,
}

/// What became of a group.
#[derive(Debug)]
pub struct Appended {
    /// The buffer, for the next group.
    pub bytes: Vec<u8>,
    /// How many bytes stand in the file.
    pub written: usize,
    /// Why not all of them do.
    pub write_error: Option<io::Error>,
    /// Why what stands is not known to be durable, if it was to be.
    pub sync_error: Option<io::Error>,
    /// That the file does not stand where it is to: whatever was written is not where anybody will look for it.
    pub displaced: Option<Displaced>,
    /// Why that is not known.
    pub unseen: Option<io::Error>,
}

impl Appended {
    /// Nothing is written yet.
    pub fn nothing(bytes: Vec<u8>) -> Self {
        Appended { bytes, written: 0, write_error: None, sync_error: None, displaced: None, unseen: None }
    }
}

/// A notice of changes.
pub trait Watch {
    /// Waits until the file may have changed since the last call returned.
    ///
    /// # Errors
    /// What the system says.
    fn changed(&mut self) -> LocalBoxFuture<'_, io::Result<()>>;
}

/// What was seen of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockSeen {
    /// It is free: nobody holds it.
    Free,
    /// Somebody holds it, with this counter (`None`: it has not begun to count).
    Held {
        /// The progress counter that the holder publishes.
        beat: Option<u64>,
    },
}

/// Locks by path, and what can be seen of their holders. A path may be on a disk that hangs: nothing here waits for one on
/// the caller's thread.
pub trait Locks {
    /// Queues for the exclusive lock on the file at `path` (made when it does not exist) and resolves when it is
    /// held and the file is still the one at `path`. Dropping the future leaves the queue.
    fn acquire<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn LockGuard>>>;

    /// Whether somebody holds the lock, and how far its counter has come.
    ///
    /// # Errors
    /// What the system says.
    fn look<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<LockSeen>>;

    /// What the lock file says.
    ///
    /// # Errors
    /// What the system says.
    fn text<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<LockText>>;

    /// Tries, on a file of its own beside the one at `path`, the kinds of locks that are needed.
    ///
    /// # Errors
    /// What is missing, for good: no master can serve there.
    fn try_kinds<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        let _ = path;
        Box::pin(async { Ok(()) })
    }

    /// Makes sure that the holder of the lock runs no more, whose counter stood at `beat` (`None`: it has not begun to
    /// count). One whose counter has moved since is spared.
    fn fence<'a>(&'a self, path: &'a Path, beat: Option<u64>) -> LocalBoxFuture<'a, Fenced>;

    /// `boot-id:device:inode` of the lock file (made when it does not exist): equal for masters that share it.
    ///
    /// # Errors
    /// What the system says.
    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<String>>;
}

/// What became of an attempt to fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// The holder got SIGKILL.
    Killed {
        /// The process that was killed.
        pid: u32,
    },
    /// Nobody holds the lock any more.
    Gone,
    /// It is not certain who the holder is, or it must not be killed.
    Spared(Spared),
    /// What would tell could not be had.
    Failed {
        /// What the system says.
        error: String,
    },
}

/// The lock, as long as this lives.
pub trait LockGuard: Send {
    /// What the lock file said before this holder wrote itself in.
    fn previous(&self) -> &LockText;

    /// What the lock file says of this holder.
    fn held(&self) -> LockText;

    /// Writes the lock file's text in place, soon and without waiting for it. With the drop of the guard the lock is given
    /// back, after a text that is just being written.
    fn write_text(&self, text: LockText);

    /// Says that the holder makes progress. Cheap; published to others within 50 ms without touching a disk.
    fn advance(&self);
}
