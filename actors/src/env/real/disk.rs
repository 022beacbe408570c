//! The real disk: a thread for each open file, one while a path is opened or checked, and inotify.
//!
//! inotify is used through nix, because one folder is watched for one name; crates for file notice watch trees, with
//! threads of their own.

use super::{identity_at, identity_of, on_thread, patiently, OWNER_ONLY};
use crate::env::threads::spawn_thread;
use crate::env::{
    small_file, Appended, Disk, Displaced, File, FileIdentity, Group, OpenMode, Post, Stands, Watch,
};
use bytes::Bytes;
use dsm_protocol::ids::Epoch;
use dsm_protocol::machine::log_scan::{LogScan, Next, Part};
use dsm_protocol::record::{self, Place};
use futures_util::future::LocalBoxFuture;
use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{renameat_with, FallocateFlags, FlockOperation, RenameFlags, XattrFlags, CWD};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{fchown, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::time::Duration;
use tokio::sync::{oneshot, Notify};
use tokio::time::Instant;

/// Waits for no one at the other end of a pipe.
fn open_to_read(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn open_existing(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).write(true).open(path)
}

fn open_or_make(path: &Path) -> io::Result<fs::File> {
    match open_existing(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    // This does not follow a symbolic link: if the link's target is missing, it is not created.
    let made = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(OWNER_ONLY).open(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_existing(path),
        made => made,
    }
}

/// Makes an empty file for [`Disk::create`].
fn make_like(path: &Path, like: &Path) -> io::Result<fs::File> {
    let original = fs::metadata(like)?;
    let list = access_list(like)?;
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => fs::remove_file(path)?,
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Nobody else may open it before it has its own rights.
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(OWNER_ONLY).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path)?;
    if let Err(error) = take_over_access(&file, path, &original, list.as_deref()) {
        // It was made just now, and is empty.
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(file)
}

/// Gives a new file the owner, the access list and the access rights of another one.
fn take_over_access(
    file: &fs::File,
    path: &Path,
    original: &fs::Metadata,
    list: Option<&[u8]>,
) -> io::Result<()> {
    let (uid, gid) = (original.uid(), original.gid());
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (uid, gid) {
        // Who is not root may give a file to a group of its own, though not to another user.
        let given =
            fchown(file, Some(uid), Some(gid)).or_else(|error| fchown(file, None, Some(gid)).and(Err(error)));
        if let Err(error) = given {
            log::warn!(
                "a new file lacks the owner of the old one path={path:?} uid={uid} gid={gid} error={error}"
            );
        }
    }
    // It may have got the list that its directory has for new files.
    match rustix::fs::fremovexattr(file, ACCESS_LIST) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut is_like = file.metadata()?.gid() == gid;
    if let Some(list) = list.filter(|_| is_like) {
        if let Err(error) = rustix::fs::fsetxattr(file, ACCESS_LIST, list, XattrFlags::empty()) {
            log::warn!("a new file lacks the access list of the old one path={path:?} error={error}");
            is_like = false;
        }
    }
    file.set_permissions(fs::Permissions::from_mode(mode_like(original.mode(), is_like)))
}

/// The access rights of a file that is to be like one with this mode; `is_like`: it has the group and the access list of that
/// one. Without them, whoever was in the group may be one of the others, or the reverse: both get only what both had.
fn mode_like(mode: u32, is_like: bool) -> u32 {
    if is_like {
        return mode & 0o777;
    }
    let shared = mode & (mode >> 3) & 0o007;
    mode & 0o700 | shared << 3 | shared
}

/// The attribute in which Linux keeps who has rights beside owner, group and others.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// The longest attribute, in bytes.
const ACCESS_LIST_MAX: usize = 1 << 16;

/// The access list of a file; `None` when it has none, or its file system knows none.
fn access_list(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut list = vec![0; ACCESS_LIST_MAX];
    match rustix::fs::getxattr(path, ACCESS_LIST, &mut *list) {
        Ok(length) => {
            list.truncate(length);
            Ok(Some(list))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn exchange(first: &Path, second: &Path) -> io::Result<()> {
    renameat_with(CWD, first, CWD, second, RenameFlags::EXCHANGE).map_err(not_exchanged)
}

fn not_exchanged(errno: Errno) -> io::Error {
    // What a file system says that cannot do this, or a kernel that does not know it.
    if [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTTY].contains(&errno) {
        let what = format!("its file system cannot exchange two files: {errno}");
        return io::Error::new(io::ErrorKind::Unsupported, what);
    }
    errno.into()
}

/// Removes the file at `path` if it is that one.
fn remove(path: &Path, identity: FileIdentity) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && identity_of(&found) == identity => {}
        Ok(_) => return Ok(false),
        Err(error) if is_absence(&error) => return Ok(false),
        Err(error) => return Err(error),
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Runs work that may wait for a disk on a thread of its own, for which it waits while the system has none. The work is done
/// once, whatever its result.
async fn on_some_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Clone + Send + 'static,
) -> io::Result<T> {
    patiently("a thread for a path", async || on_thread(work.clone()).await).await?
}

/// The files of this machine.
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>> {
        Box::pin(async move {
            let open = async || {
                let path = path.to_owned();
                let opened = on_thread(move || match mode {
                    OpenMode::Read => open_to_read(&path),
                    OpenMode::Existing => open_existing(&path),
                    OpenMode::Write => open_or_make(&path),
                });
                RealFile::new(opened.await??)
            };
            let file: Rc<dyn File> = Rc::new(patiently("a file and its thread", open).await?);
            Ok(file)
        })
    }

    fn read_small<'a>(&'a self, path: &'a Path, bytes_max: usize) -> LocalBoxFuture<'a, io::Result<Vec<u8>>> {
        let path = path.to_owned();
        Box::pin(on_some_thread(move || small_file::read(&path, bytes_max)))
    }

    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Option<FileIdentity>>> {
        Box::pin(async move {
            let path = path.to_owned();
            on_thread(move || identity_at(&path)).await?
        })
    }

    fn others_may_read<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Option<u32>>> {
        Box::pin(async move {
            let path = path.to_owned();
            let mode = on_thread(move || fs::metadata(path)).await??.mode() & 0o777;
            Ok((mode & 0o044 != 0).then_some(mode))
        })
    }

    fn resolve<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<PathBuf>> {
        let path = path.to_owned();
        Box::pin(on_some_thread(move || fs::canonicalize(path)))
    }

    fn create<'a>(&'a self, path: &'a Path, like: &'a Path) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>> {
        Box::pin(async move {
            let create = async || {
                let (path, like) = (path.to_owned(), like.to_owned());
                RealFile::new(on_thread(move || make_like(&path, &like)).await??)
            };
            let file: Rc<dyn File> = Rc::new(patiently("a new file and its thread", create).await?);
            Ok(file)
        })
    }

    fn exchange<'a>(&'a self, first: &'a Path, second: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        let (first, second) = (first.to_owned(), second.to_owned());
        Box::pin(on_some_thread(move || exchange(&first, &second)))
    }

    fn remove<'a>(&'a self, path: &'a Path, identity: FileIdentity) -> LocalBoxFuture<'a, io::Result<bool>> {
        let path = path.to_owned();
        Box::pin(on_some_thread(move || remove(&path, identity)))
    }

    fn free_bytes<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<u64>> {
        let path = path.to_owned();
        Box::pin(on_some_thread(move || {
            let found = rustix::fs::statvfs(&path)?;
            Ok(found.f_bavail.saturating_mul(found.f_frsize))
        }))
    }

    fn sync_directory<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let open = async || {
                let directory = directory_of(path);
                on_thread(move || fs::File::open(directory)).await?
            };
            let directory = patiently("a directory", open).await?;
            // The sync itself is tried only once, whatever its result.
            let sync = async || {
                let directory = directory.try_clone()?;
                on_thread(move || directory.sync_all()).await
            };
            patiently("a thread for a directory", sync).await?
        })
    }

    fn watch<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn Watch>>> {
        Box::pin(async move {
            let directory = directory_of(path);
            let inotify = on_thread(move || {
                let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
                let flags = AddWatchFlags::IN_MODIFY
                    | AddWatchFlags::IN_CREATE
                    | AddWatchFlags::IN_DELETE
                    | AddWatchFlags::IN_MOVED_FROM
                    | AddWatchFlags::IN_MOVED_TO;
                inotify.add_watch(&directory, flags)?;
                Ok::<_, io::Error>(inotify)
            });
            let inotify = inotify.await??;
            let name = path.file_name().map(OsString::from).unwrap_or_default();
            let watch: Box<dyn Watch> = Box::new(RealWatch::new(inotify, name)?);
            Ok(watch)
        })
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

type Job = Box<dyn FnOnce(&fs::File) + Send>;

/// A file and the thread that works on it.
struct RealFile {
    file: Arc<fs::File>,
    jobs: mpsc::Sender<Job>,
}

impl RealFile {
    fn new(file: fs::File) -> io::Result<Self> {
        let file = Arc::new(file);
        let (jobs, queue) = mpsc::channel::<Job>();
        let on_thread = Arc::clone(&file);
        spawn_thread("dsm-disk", move || {
            while let Ok(job) = queue.recv() {
                // A job that panics drops its answer, and its caller takes that for an error. Later jobs still run: a
                // bug in one must not leave all other readers of the file without answers.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(|| job(&on_thread)));
            }
        })?;
        Ok(RealFile { file, jobs })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&fs::File) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |file| drop(answer.send(work(file))));
        let gone = || io::Error::other("the disk thread is gone, or has panicked over this");
        self.jobs.send(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

impl File for RealFile {
    fn read_at(&self, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Vec<u8>>> {
        Box::pin(async move { self.run(move |file| read_at(file, offset, length)).await? })
    }

    fn compute(&self, work: Box<dyn FnOnce() + Send>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.run(move |_| work()).await })
    }

    fn read_value(&self, place: Place, epoch: Epoch) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            self.run(move |file| {
                let text = read_at(file, place.offset, place.text_bytes as usize)?;
                record::value_at(text, place, epoch).map_err(io::Error::other)
            })
            .await?
        })
    }

    fn append(&self, group: Group) -> LocalBoxFuture<'_, Appended> {
        Box::pin(async move {
            self.run(move |file| append(file, group))
                .await
                .unwrap_or_else(|error| Appended { sync_error: Some(error), ..Appended::nothing(Vec::new()) })
        })
    }

    fn look(&self, post: Post, length: u64) -> LocalBoxFuture<'_, io::Result<Option<Displaced>>> {
        Box::pin(async move { self.run(move |file| look(file, &post, length)).await? })
    }

    fn sync(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.run(|file| file.sync_data()).await? })
    }

    fn truncate(&self, length: u64) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.run(move |file| file.set_len(length)).await? })
    }

    fn length(&self) -> LocalBoxFuture<'_, io::Result<u64>> {
        Box::pin(async move { self.run(|file| Ok(file.metadata()?.len())).await? })
    }

    fn identity(&self) -> LocalBoxFuture<'_, io::Result<FileIdentity>> {
        Box::pin(async move { self.run(|file| Ok(identity_of(&file.metadata()?))).await? })
    }

    fn shown(&self) -> Option<String> {
        Some(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    fn duplicate(&self) -> LocalBoxFuture<'_, io::Result<Rc<dyn File>>> {
        Box::pin(async move {
            let file: Rc<dyn File> = Rc::new(RealFile::new(self.file.try_clone()?)?);
            Ok(file)
        })
    }

    fn scan(&self, scan: LogScan) -> LocalBoxFuture<'_, io::Result<(LogScan, Part)>> {
        let mut scan = scan;
        Box::pin(async move {
            self.run(move |file| loop {
                match scan.advance() {
                    Next::Part(part) => return Ok((scan, part)),
                    Next::Read { offset, length } => {
                        scan.fill_by(length, |room| read_into(file, offset, room))?;
                    }
                }
            })
            .await?
        })
    }

    fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(rustix::fs::flock(&self.file, FlockOperation::Unlock)?)
    }
}

fn read_at(file: &fs::File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let filled = read_into(file, offset, &mut bytes)?;
    bytes.truncate(filled);
    Ok(bytes)
}

/// Reads until the room is filled or the file ends, and gives how much was read.
fn read_into(file: &fs::File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Checks whether `file` is at its path with that length. One system call, if it is.
fn look(file: &fs::File, post: &Post, length: u64) -> io::Result<Option<Displaced>> {
    let found = match fs::metadata(&post.path) {
        Ok(found) => Some(found),
        Err(error) if is_absence(&error) => None,
        Err(error) => return Err(error),
    };
    let Some(stands) = post.judge(found.map(|found| (identity_of(&found), found.len())), length) else {
        return Ok(None);
    };
    Ok(Some(match stands {
        // It has a name: its path leads to it.
        Stands::Shorter { .. } | Stands::Longer { .. } => Displaced { stands, is_deleted: false },
        Stands::Nothing | Stands::Dangling { .. } | Stands::Other => {
            let stands = match (stands, fs::read_link(&post.path)) {
                (Stands::Nothing, Ok(target)) => Stands::Dangling { target },
                (stands, _) => stands,
            };
            Displaced { stands, is_deleted: file.metadata()?.nlink() == 0 }
        }
    }))
}

/// Whether an error means that there is nothing at a path, rather than that the path cannot be followed now.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(libc::ELOOP)
}

fn append(file: &fs::File, group: Group) -> Appended {
    let Group { offset, bytes, sync, reserve_to, post } = group;
    let mut unseen = None;
    let mut displaced = |length| {
        let looked = post.as_ref().map_or(Ok(None), |post| look(file, post, length));
        looked.unwrap_or_else(|error| {
            unseen = Some(error);
            None
        })
    };
    if let Some(displaced) = displaced(offset) {
        return Appended { displaced: Some(displaced), ..Appended::nothing(bytes) };
    }
    if let Some(end) = reserve_to {
        let length = end.saturating_sub(offset);
        let reserved = loop {
            match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, length) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        // Only a lack of space forbids the write; on a file system that cannot set space aside it is written without.
        if let Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) = reserved {
            return Appended { write_error: Some(error.into()), ..Appended::nothing(bytes) };
        }
    }
    let mut written = 0;
    let mut write_error = None;
    while written < bytes.len() {
        match file.write_at(&bytes[written..], offset + written as u64) {
            Ok(0) => {
                write_error = Some(io::ErrorKind::WriteZero.into());
                break;
            }
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                write_error = Some(error);
                break;
            }
        }
    }
    let (mut sync_error, mut sync_us) = (None, None);
    if sync && written > 0 {
        let began = Instant::now();
        sync_error = file.sync_data().err();
        sync_us = Some(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    let displaced = displaced(offset + written as u64);
    Appended { bytes, written, write_error, sync_error, displaced, unseen, sync_us }
}

/// A notice of changes, from a thread that waits for inotify.
struct RealWatch {
    changed: Arc<Notify>,
    failed: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
}

/// After a notice the thread rests so long: a busy log is noticed once in a while, not with every group.
const NOTICE_REST: Duration = Duration::from_millis(5);

/// How long the notice thread may outlive its watch.
const NOTICE_STOP: Duration = Duration::from_millis(200);

impl RealWatch {
    fn new(inotify: Inotify, name: OsString) -> io::Result<Self> {
        let watch = RealWatch {
            changed: Arc::new(Notify::new()),
            failed: Arc::new(AtomicBool::new(false)),
            stopped: Arc::new(AtomicBool::new(false)),
        };
        let (changed, failed) = (Arc::clone(&watch.changed), Arc::clone(&watch.failed));
        let stopped = Arc::clone(&watch.stopped);
        spawn_thread("dsm-notice", move || {
            while !stopped.load(Ordering::Acquire) {
                match wait_for_notice(&inotify, &name) {
                    Ok(false) => {}
                    Ok(true) => {
                        changed.notify_one();
                        std::thread::sleep(NOTICE_REST);
                    }
                    Err(error) => {
                        log::error!("file notice failed error={error}");
                        failed.store(true, Ordering::Release);
                        changed.notify_one();
                        return;
                    }
                }
            }
        })?;
        Ok(watch)
    }
}

/// Waits for a while, and tells whether something about the file was noticed.
fn wait_for_notice(inotify: &Inotify, name: &OsString) -> io::Result<bool> {
    let mut polled = [PollFd::new(inotify, PollFlags::IN)];
    let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: NOTICE_STOP.as_nanos() as i64 };
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(0) | Err(Errno::INTR) => return Ok(false),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    match inotify.read_events() {
        // An event without a name is an overflow: then anything may have changed.
        Ok(events) => Ok(events.iter().any(|event| event.name.as_ref().is_none_or(|n| n == name))),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Watch for RealWatch {
    fn changed(&mut self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.changed.notified().await;
            if self.failed.load(Ordering::Acquire) {
                return Err(io::Error::other("the file notice has failed"));
            }
            Ok(())
        })
    }
}

impl Drop for RealWatch {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_fails_alone() {
        let path = std::env::temp_dir().join(format!("dsm-real-{}", std::process::id()));
        fs::write(&path, "value").expect("a temporary file");
        let file = RealFile::new(fs::File::open(&path).expect("it was just made")).expect("a thread");
        fs::remove_file(&path).expect("it was just made");
        let failed = file.run(|_| panic!("on purpose")).await;
        assert!(failed.expect_err("no answer").to_string().contains("panicked"));
        assert_eq!(file.read_at(1, 3).await.expect("the thread goes on"), b"alu");
    }

    /// How long a notice may take: longer than any machine needs.
    const NOTICED: Duration = Duration::from_secs(30);

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder for temporary files")
    }

    /// A file with this text and these access rights.
    fn put(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).expect("a temporary file");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it was just made");
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).expect("a file")
    }

    fn identity(path: &Path) -> FileIdentity {
        identity_of(&fs::symlink_metadata(path).expect("something is there"))
    }

    #[tokio::test]
    async fn a_file_is_created_with_the_owner_and_the_rights_of_another_in_place_of_a_stale_one() {
        let folder = folder();
        let (like, path) = (folder.path().join("like"), folder.path().join("new"));
        for mode in [0o600, 0o640, 0o666, 0o440] {
            put(&like, "log", mode);
            // Only root may give it away. Anybody else sees that an owner is not lost.
            let _ = std::os::unix::fs::chown(&like, Some(12345), Some(54321));
            put(&path, "stale", 0o644);
            let stale = fs::File::open(&path).expect("it was just made");
            let file = RealDisk.create(&path, &like).await.expect("a file");
            let group = Group { bytes: b"new".to_vec(), ..Group::default() };
            assert_eq!(file.append(group).await.written, 3);
            assert_eq!(file.read_at(0, 10).await.expect("it is open for reading"), b"new");
            assert_eq!(file.identity().await.expect("an open file"), identity(&path));
            assert_eq!(read_at(&stale, 0, 10).expect("it is open"), b"stale", "another file is written");
            let found = |path| {
                let found = fs::metadata(path).expect("a file");
                (found.mode() & 0o7777, found.uid(), found.gid())
            };
            assert_eq!(found(&path), found(&like));
            fs::remove_file(&like).expect("it was made here");
        }
    }

    /// Owner rw, user 12345 r, group nothing, at most r, others nothing.
    fn list() -> Vec<u8> {
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let entries = [(0x01, 6, !0), (0x02, 4, 12345), (0x04, 0, !0), (0x10, 4, !0), (0x20, 0, !0)];
        let entries = entries.into_iter().flat_map(|(tag, rights, id)| entry(tag, rights, id));
        2u32.to_le_bytes().into_iter().chain(entries).collect()
    }

    #[tokio::test]
    async fn a_file_is_created_with_the_access_list_of_another_and_with_no_other_list() {
        let folder = folder();
        let (like, path) = (folder.path().join("like"), folder.path().join("new"));
        put(&like, "log", 0o600);
        let mode = |path| fs::metadata(path).expect("a file").mode() & 0o777;
        let set = rustix::fs::setxattr(&like, ACCESS_LIST, &list(), XattrFlags::empty());
        let expected = (set != Err(Errno::OPNOTSUPP)).then(list);
        assert_eq!(access_list(&like).expect("a look"), expected);
        RealDisk.create(&path, &like).await.expect("a file");
        assert_eq!((access_list(&path).expect("a look"), mode(&path)), (expected.clone(), mode(&like)));
        if expected.is_some() {
            rustix::fs::removexattr(&like, ACCESS_LIST).expect("it has one");
            let of_new_files = "system.posix_acl_default";
            rustix::fs::setxattr(folder.path(), of_new_files, &list(), XattrFlags::empty()).expect("a list");
        }
        put(&like, "log", 0o640);
        RealDisk.create(&path, &like).await.expect("a file");
        assert_eq!((access_list(&path).expect("a look"), mode(&path)), (None, 0o640));
    }

    #[test]
    fn without_its_group_a_file_gives_nobody_what_he_lacked() {
        for (mode, with, without) in [
            (0o600, 0o600, 0o600),
            (0o640, 0o640, 0o600),
            (0o644, 0o644, 0o644),
            (0o664, 0o664, 0o644),
            (0o604, 0o604, 0o600),
            (0o6750, 0o750, 0o700),
        ] {
            assert_eq!((mode_like(mode, true), mode_like(mode, false)), (with, without), "{mode:o}");
        }
    }

    #[tokio::test]
    async fn a_file_is_created_only_in_place_of_a_regular_one() {
        let folder = folder();
        let at = |name: &str| folder.path().join(name);
        put(&at("like"), "log", 0o600);
        put(&at("target"), "target", 0o600);
        fs::create_dir(at("directory")).expect("a directory");
        std::os::unix::fs::symlink(at("target"), at("link")).expect("a link");
        std::os::unix::fs::symlink(at("nothing"), at("dangling")).expect("a link");
        for name in ["directory", "link", "dangling"] {
            let before = identity(&at(name));
            let error = RealDisk.create(&at(name), &at("like")).await.err().expect(name);
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
            assert_eq!(identity(&at(name)), before, "{name}");
        }
        assert_eq!(text(&at("target")), "target");
        assert!(!at("nothing").exists(), "made over a link");
        let error = RealDisk.create(&at("target"), &at("nothing")).await.err().expect("nothing to be like");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(text(&at("target")), "target", "removed for nothing");
    }

    #[tokio::test]
    async fn two_files_are_exchanged_or_stay() {
        let folder = folder();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        put(&first, "one", 0o600);
        put(&second, "two", 0o600);
        let before = (identity(&first), identity(&second));
        RealDisk.exchange(&first, &second).await.expect("a file system that can");
        assert_eq!((identity(&second), identity(&first)), before);
        assert_eq!((text(&first).as_str(), text(&second).as_str()), ("two", "one"));
        fs::remove_file(&second).expect("it is there");
        for (one, other) in [(&first, &second), (&second, &first)] {
            let error = RealDisk.exchange(one, other).await.expect_err("one is missing");
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            assert_eq!(text(&first), "two");
            assert!(!second.exists(), "a file was moved");
        }
    }

    #[test]
    fn a_file_system_that_cannot_exchange_is_told_from_one_that_fails() {
        for errno in [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTTY] {
            assert_eq!(not_exchanged(errno).kind(), io::ErrorKind::Unsupported, "{errno}");
        }
        assert_eq!(not_exchanged(Errno::NOENT).kind(), io::ErrorKind::NotFound);
        assert_eq!(not_exchanged(Errno::IO).raw_os_error(), Some(libc::EIO));
    }

    #[tokio::test]
    async fn only_the_file_that_is_meant_is_removed() {
        let folder = folder();
        let (path, other) = (folder.path().join("path"), folder.path().join("other"));
        let link = folder.path().join("link");
        put(&path, "path", 0o600);
        put(&other, "other", 0o600);
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let meant = identity(&path);
        for wrong in [&other, &link] {
            assert!(!RealDisk.remove(wrong, meant).await.expect("a look"), "{wrong:?}");
        }
        assert!(!RealDisk.remove(&path, identity(&other)).await.expect("a look"));
        assert_eq!((text(&link).as_str(), text(&other).as_str()), ("path", "other"));
        assert!(RealDisk.remove(&path, meant).await.expect("a removal"));
        assert!(!path.exists(), "it is still there");
        assert!(!RealDisk.remove(&path, meant).await.expect("nothing is there"));
    }

    #[tokio::test]
    async fn a_path_is_followed_to_its_file() {
        let folder = folder();
        let root = folder.path().canonicalize().expect("a folder");
        let at = |name: &str| root.join(name);
        fs::create_dir(at("far")).expect("a directory");
        put(&at("far/log"), "log", 0o600);
        std::os::unix::fs::symlink("far/log", at("near")).expect("a link");
        std::os::unix::fs::symlink(at("near"), at("link")).expect("a link");
        assert_eq!(RealDisk.resolve(&at("link")).await.expect("a file"), at("far/log"));
        assert_eq!(RealDisk.resolve(&at("far/log")).await.expect("a file"), at("far/log"));
        fs::remove_file(at("far/log")).expect("it is there");
        let error = RealDisk.resolve(&at("link")).await.expect_err("a dangling link");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn the_free_bytes_are_those_of_the_disk_of_a_path() {
        let folder = folder();
        let free = RealDisk.free_bytes(folder.path()).await.expect("a disk");
        let disk = rustix::fs::statvfs(folder.path()).expect("a disk");
        let all = disk.f_blocks * disk.f_frsize;
        assert!(free > 0 && free <= all, "{free} of {all} bytes");
        let error = RealDisk.free_bytes(&folder.path().join("nothing")).await.expect_err("no file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_watch_notices_that_its_file_was_created_exchanged_or_removed() {
        let folder = folder();
        let (path, other) = (folder.path().join("path"), folder.path().join("other"));
        put(&path, "path", 0o600);
        put(&other, "other", 0o600);
        for (first, second) in [(&path, &other), (&other, &path)] {
            let mut watch = RealDisk.watch(&path).await.expect("a watch");
            RealDisk.exchange(first, second).await.expect("two files");
            let noticed = tokio::time::timeout(NOTICED, watch.changed()).await;
            noticed.expect("an exchange is noticed").expect("a watch");
        }
        let mut watch = RealDisk.watch(&path).await.expect("a watch");
        assert!(RealDisk.remove(&path, identity(&path)).await.expect("a removal"));
        let noticed = tokio::time::timeout(NOTICED, watch.changed()).await;
        noticed.expect("a removal is noticed").expect("a watch");
        let mut watch = RealDisk.watch(&path).await.expect("a watch");
        RealDisk.create(&path, &other).await.expect("a file");
        let noticed = tokio::time::timeout(NOTICED, watch.changed()).await;
        noticed.expect("a new file is noticed").expect("a watch");
    }
}
