//! What tests of single actors need (feature `testing`): stand-ins for collaborators, and a world in memory.
//!
//! A [`Probe`] takes any actor's messages. [`recover_log`] is a takeover's work on the log, without a master around it.
//! [`MemoryEnv`] has files, locks and a clock but no network; its files fail, fill up and take time when they are told
//! to. [`virtual_time`] runs a test on a paused clock and then checks that no actor is left. [`panic_at`] makes a
//! running node's own code panic. Nothing here is for production.

use crate::batch::Outbox;
use crate::config::Fsync;
use crate::env::{
    Appended, Disk, Displaced, Env, Environment, Fenced, File, FileIdentity, Group, Listener, LockGuard,
    LockSeen, Locks, OpenMode, Post, Stream, Watch,
};
use crate::journal::shared_file::log_tailer::{self, Replayed};
use crate::journal::shared_file::recovery::Recovery;
use crate::journal::{LogEvent, Written};
use crate::node_error::NodeError;
use crate::slave_proxy::{End, EndReason, Parts, SharedLink, SlaveEnded, SlaveProxy};
use crate::turns::TurnLengths;
use actix::dev::ToEnvelope;
use actix::prelude::*;
use dsm_protocol::ids::{Incarnation, LinkId, Millis, SlaveId, UnixMillis};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::doubt::SelfDoubt;
use dsm_protocol::machine::link::{Life, Link, LinkLimits};
use dsm_protocol::message::Message as Wire;
use dsm_protocol::record::{CrashKind, Position};
use futures_util::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::Instant;

pub use crate::test_hooks::{look_at_masters, panic_at, set_slice_keys, MasterLook, PanicPlace};

/// How long after a test its actors may take to end, in virtual time.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Runs `test` on a clock that stands still while anything can run and jumps to the next timer when nothing can: an
/// hour of timers takes milliseconds. Then every task must end by itself.
///
/// # Panics
/// When the test does, or when something of it still runs a minute (of that clock) after its end.
pub fn virtual_time<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime can be built");
    let local = LocalSet::new();
    let result = local.block_on(&runtime, test);
    let ended = runtime.block_on(async { tokio::time::timeout(END_LIMIT, local).await });
    ended.expect("an actor or a task is left running");
    result
}

/// An actor that keeps what it is sent, in place of a collaborator.
pub struct Probe<M: Message<Result = ()>> {
    kept: Rc<RefCell<Vec<M>>>,
}

/// What a [`Probe`] was sent.
pub struct Received<M>(Rc<RefCell<Vec<M>>>);

impl<M> Received<M> {
    /// Takes everything that has come so far, in its order.
    pub fn take(&self) -> Vec<M> {
        std::mem::take(&mut *self.0.borrow_mut())
    }

    /// How much has come and was not taken.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether nothing has come that was not taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Received<LogEvent> {
    /// Takes what has become of writes, when nothing else is told through this port.
    ///
    /// # Panics
    /// When something else is.
    pub fn take_written(&self) -> Vec<Written> {
        let written = self.take().into_iter().map(|event| match event {
            LogEvent::Written(written) => written,
            other => panic!("not about writes: {other:?}"),
        });
        written.collect()
    }
}

impl<M> Probe<M>
where
    M: Message<Result = ()> + Send + Unpin + 'static,
    Context<Self>: ToEnvelope<Self, M>,
{
    /// Starts a probe: the port to hand to an actor, and what comes through it. It ends with the port's last clone.
    pub fn begin() -> (Recipient<M>, Received<M>) {
        let kept = Rc::new(RefCell::new(Vec::new()));
        let probe = Probe { kept: Rc::clone(&kept) }.start();
        (probe.recipient(), Received(kept))
    }
}

impl<M: Message<Result = ()> + Unpin + 'static> Actor for Probe<M> {
    type Context = Context<Self>;
}

impl<M: Message<Result = ()> + Unpin + 'static> Handler<M> for Probe<M> {
    type Result = ();

    fn handle(&mut self, message: M, _: &mut Self::Context) {
        self.kept.borrow_mut().push(message);
    }
}

/// A world in memory: tokio's clock, files, locks; no network. Clones are the same world.
#[derive(Clone)]
pub struct MemoryEnv {
    start: Instant,
    random: Rc<Cell<u64>>,
    /// The files of this world, which outlive its node.
    pub disk: MemoryDisk,
    /// Its locks, of which all paths share one.
    pub locks: MemoryLocks,
}

impl MemoryEnv {
    /// An empty world whose time begins now.
    pub fn new() -> Self {
        MemoryEnv {
            start: Instant::now(),
            random: Rc::default(),
            disk: MemoryDisk::default(),
            locks: MemoryLocks::default(),
        }
    }

    /// The world as actors see it.
    pub fn env(&self) -> Env {
        Rc::new(self.clone())
    }
}

impl Default for MemoryEnv {
    fn default() -> Self {
        Self::new()
    }
}

fn no_network<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this world has no network"))
}

impl Environment for MemoryEnv {
    fn now(&self) -> Millis {
        Millis(self.start.elapsed().as_millis() as u64)
    }

    fn clock_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn random(&self) -> u64 {
        // The same numbers in every run.
        let next = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(next);
        next ^ (next >> 29)
    }

    fn listen<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Listener>> {
        Box::pin(std::future::ready(no_network()))
    }

    fn connect<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(std::future::ready(no_network()))
    }

    fn disk(&self) -> Rc<dyn Disk> {
        Rc::new(self.disk.clone())
    }

    fn locks(&self) -> Rc<dyn Locks> {
        Rc::new(self.locks.clone())
    }

    fn wall_clock(&self) -> UnixMillis {
        UnixMillis(1_000_000_000_000 + self.now().0)
    }

    fn uptime(&self) -> Millis {
        self.now()
    }

    fn boot_id(&self) -> String {
        "boot".to_owned()
    }

    fn pid(&self) -> u32 {
        1
    }

    fn resident_bytes(&self) -> u64 {
        0
    }
}

/// Something that was done to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileOperation {
    /// A group was written.
    Append {
        /// How many of its bytes stand.
        written: usize,
        /// Whether it was to be synced.
        sync: bool,
    },
    /// The file was synced by itself.
    Sync,
    /// The file was cut.
    Truncate {
        /// The length that the file gets, in bytes.
        length: u64,
    },
}

#[derive(Default)]
struct DiskState {
    files: RefCell<BTreeMap<PathBuf, Rc<Inode>>>,
    inodes: Cell<u64>,
    operations: RefCell<Vec<FileOperation>>,
    watches: RefCell<Vec<Rc<Notify>>>,
    latency: Cell<Duration>,
    length_max: Cell<Option<usize>>,
    sync_fails: Cell<bool>,
    poisoned: Cell<bool>,
}

struct Inode {
    number: u64,
    content: RefCell<Vec<u8>>,
    locked: Cell<bool>,
}

/// Files in memory. Clones are the same files. Space is never set aside, as on a file system that cannot.
#[derive(Clone, Default)]
pub struct MemoryDisk(Rc<DiskState>);

impl MemoryDisk {
    /// Lets every write and sync take this long.
    pub fn set_latency(&self, latency: Duration) {
        self.0.latency.set(latency);
    }

    /// Lets no file grow beyond `length` bytes: a full disk.
    pub fn set_length_max(&self, length: Option<usize>) {
        self.0.length_max.set(length);
    }

    /// Lets every sync fail.
    pub fn set_sync_fails(&self, fails: bool) {
        self.0.sync_fails.set(fails);
    }

    /// Lets every write panic.
    pub fn poison(&self) {
        self.0.poisoned.set(true);
    }

    /// Takes what was done to all files so far.
    pub fn take_operations(&self) -> Vec<FileOperation> {
        std::mem::take(&mut *self.0.operations.borrow_mut())
    }

    /// What stands in the file at `path`; nothing when there is none.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let files = self.0.files.borrow();
        files.get(path).map_or_else(Vec::new, |inode| inode.content.borrow().clone())
    }

    /// Adds bytes to the file at `path`, as another process would.
    pub fn extend(&self, path: &Path, bytes: &[u8]) {
        self.inode(path).content.borrow_mut().extend_from_slice(bytes);
        self.notice();
    }

    /// Cuts the file at `path`, as another process would.
    pub fn cut(&self, path: &Path, length: usize) {
        self.inode(path).content.borrow_mut().truncate(length);
        self.notice();
    }

    /// Lets a part of the file at `path` read as zeros, as a page does that the disk never got.
    ///
    /// # Panics
    /// When the file does not reach so far.
    pub fn lose(&self, path: &Path, part: std::ops::Range<usize>) {
        self.inode(path).content.borrow_mut()[part].fill(0);
    }

    /// Puts another file at `path`, as a rename does.
    pub fn replace(&self, path: &Path, content: &[u8]) {
        let inode = self.new_inode();
        inode.content.borrow_mut().extend_from_slice(content);
        self.0.files.borrow_mut().insert(path.to_owned(), inode);
        self.notice();
    }

    /// Gives the file at a path another name, as a rename does.
    pub fn rename(&self, from: &Path, to: &Path) {
        let mut files = self.0.files.borrow_mut();
        if let Some(inode) = files.remove(from) {
            files.insert(to.to_owned(), inode);
        }
        drop(files);
        self.notice();
    }

    fn new_inode(&self) -> Rc<Inode> {
        let number = self.0.inodes.get() + 1;
        self.0.inodes.set(number);
        Rc::new(Inode { number, content: RefCell::default(), locked: Cell::new(false) })
    }

    fn inode(&self, path: &Path) -> Rc<Inode> {
        if let Some(inode) = self.0.files.borrow().get(path) {
            return Rc::clone(inode);
        }
        let inode = self.new_inode();
        self.0.files.borrow_mut().insert(path.to_owned(), Rc::clone(&inode));
        inode
    }

    fn notice(&self) {
        for watch in &*self.0.watches.borrow() {
            watch.notify_one();
        }
    }

    fn note(&self, operation: FileOperation) {
        self.0.operations.borrow_mut().push(operation);
    }

    /// Lets the time pass that the disk needs. Without latency nothing is awaited.
    async fn work(&self) {
        let latency = self.0.latency.get();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
    }

    fn synced(&self) -> io::Result<()> {
        if self.0.sync_fails.get() {
            Err(io::Error::other("the disk is broken"))
        } else {
            Ok(())
        }
    }
}

impl Disk for MemoryDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>> {
        Box::pin(async move {
            if mode != OpenMode::Write && !self.0.files.borrow().contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let file: Rc<dyn File> =
                Rc::new(MemoryFile { disk: self.clone(), inode: self.inode(path), locks: Cell::new(false) });
            Ok(file)
        })
    }

    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Option<FileIdentity>>> {
        let files = self.0.files.borrow();
        let found = files.get(path).map(|inode| FileIdentity { device: 1, inode: inode.number });
        Box::pin(std::future::ready(Ok(found)))
    }

    fn resolve<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<PathBuf>> {
        let found = self.0.files.borrow().contains_key(path);
        let resolved = found.then(|| path.to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into());
        Box::pin(std::future::ready(resolved))
    }

    fn create<'a>(&'a self, path: &'a Path, like: &'a Path) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>> {
        Box::pin(async move {
            if !self.0.files.borrow().contains_key(like) {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.replace(path, b"");
            self.open(path, OpenMode::Existing).await
        })
    }

    fn exchange<'a>(&'a self, first: &'a Path, second: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            {
                let mut files = self.0.files.borrow_mut();
                let at = |path| files.get(path).cloned().ok_or(io::ErrorKind::NotFound);
                let (at_first, at_second) = (at(first)?, at(second)?);
                files.insert(first.to_owned(), at_second);
                files.insert(second.to_owned(), at_first);
            }
            self.notice();
            Ok(())
        })
    }

    fn remove<'a>(&'a self, path: &'a Path, identity: FileIdentity) -> LocalBoxFuture<'a, io::Result<bool>> {
        Box::pin(async move {
            let is_there = self.identity(path).await? == Some(identity);
            if is_there {
                self.0.files.borrow_mut().remove(path);
                self.notice();
            }
            Ok(is_there)
        })
    }

    /// As many as the file at `path` may grow.
    fn free_bytes<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<u64>> {
        let length = self.content(path).len();
        let free = self.0.length_max.get().map_or(u64::MAX / 4, |max| max.saturating_sub(length) as u64);
        Box::pin(std::future::ready(Ok(free)))
    }

    fn sync_directory<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn watch<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn Watch>>> {
        let changed = Rc::new(Notify::new());
        self.0.watches.borrow_mut().push(Rc::clone(&changed));
        let watch: Box<dyn Watch> = Box::new(MemoryWatch(changed));
        Box::pin(std::future::ready(Ok(watch)))
    }
}

struct MemoryWatch(Rc<Notify>);

impl Watch for MemoryWatch {
    fn changed(&mut self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.0.notified().await;
            Ok(())
        })
    }
}

/// An open file in memory.
struct MemoryFile {
    disk: MemoryDisk,
    inode: Rc<Inode>,
    /// Whether this handle holds the lock.
    locks: Cell<bool>,
}

impl MemoryFile {
    fn displaced(&self, post: Option<&Post>, length: u64) -> Option<Displaced> {
        let post = post?;
        let files = self.disk.0.files.borrow();
        let found = files.get(&*post.path);
        let found = found.map(|inode| {
            (FileIdentity { device: 1, inode: inode.number }, inode.content.borrow().len() as u64)
        });
        let is_deleted = !files.values().any(|inode| Rc::ptr_eq(inode, &self.inode));
        post.judge(found, length).map(|stands| Displaced { stands, is_deleted })
    }
}

impl File for MemoryFile {
    fn read_at(&self, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Vec<u8>>> {
        Box::pin(async move {
            let content = self.inode.content.borrow();
            let start = usize::try_from(offset).map_or(content.len(), |start| start.min(content.len()));
            Ok(content[start..content.len().min(start.saturating_add(length))].to_vec())
        })
    }

    fn append(&self, group: Group) -> LocalBoxFuture<'_, Appended> {
        Box::pin(async move {
            let Group { offset, bytes, sync, post, .. } = group;
            if let Some(displaced) = self.displaced(post.as_ref(), offset) {
                return Appended { displaced: Some(displaced), ..Appended::nothing(bytes) };
            }
            self.disk.work().await;
            assert!(!self.disk.0.poisoned.get(), "the disk is poisoned, on purpose");
            let room_end = self.disk.0.length_max.get().unwrap_or(usize::MAX);
            let written = bytes.len().min(room_end.saturating_sub(offset as usize));
            {
                let mut content = self.inode.content.borrow_mut();
                let end = content.len().max(offset as usize + written);
                content.resize(end, 0);
                content[offset as usize..offset as usize + written].copy_from_slice(&bytes[..written]);
            }
            self.disk.note(FileOperation::Append { written, sync });
            self.disk.notice();
            let write_error = (written < bytes.len()).then(|| io::ErrorKind::StorageFull.into());
            let sync_error = if sync && written > 0 { self.disk.synced().err() } else { None };
            let displaced = self.displaced(post.as_ref(), offset + written as u64);
            Appended { bytes, written, write_error, sync_error, displaced, unseen: None, sync_us: None }
        })
    }

    fn look(&self, post: Post, length: u64) -> LocalBoxFuture<'_, io::Result<Option<Displaced>>> {
        Box::pin(async move { Ok(self.displaced(Some(&post), length)) })
    }

    fn sync(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.disk.work().await;
            self.disk.note(FileOperation::Sync);
            self.disk.synced()
        })
    }

    fn truncate(&self, length: u64) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.inode.content.borrow_mut().resize(length as usize, 0);
            self.disk.note(FileOperation::Truncate { length });
            self.disk.notice();
            Ok(())
        })
    }

    fn length(&self) -> LocalBoxFuture<'_, io::Result<u64>> {
        Box::pin(std::future::ready(Ok(self.inode.content.borrow().len() as u64)))
    }

    fn identity(&self) -> LocalBoxFuture<'_, io::Result<FileIdentity>> {
        Box::pin(std::future::ready(Ok(FileIdentity { device: 1, inode: self.inode.number })))
    }

    fn duplicate(&self) -> LocalBoxFuture<'_, io::Result<Rc<dyn File>>> {
        let (disk, inode) = (self.disk.clone(), Rc::clone(&self.inode));
        let file: Rc<dyn File> = Rc::new(MemoryFile { disk, inode, locks: Cell::new(false) });
        Box::pin(std::future::ready(Ok(file)))
    }

    fn try_lock(&self) -> io::Result<bool> {
        if self.inode.locked.get() && !self.locks.get() {
            return Ok(false);
        }
        self.inode.locked.set(true);
        self.locks.set(true);
        Ok(true)
    }

    fn unlock(&self) -> io::Result<()> {
        if self.locks.replace(false) {
            self.inode.locked.set(false);
        }
        Ok(())
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // Cannot fail in memory.
        let _ = self.unlock();
    }
}

struct LockState {
    seen: Cell<LockSeen>,
    fenced: Cell<usize>,
    given: Notify,
}

/// A lock whose holder the test plays. Clones are the same lock.
#[derive(Clone)]
pub struct MemoryLocks(Rc<LockState>);

impl Default for MemoryLocks {
    fn default() -> Self {
        let state = LockState { seen: Cell::new(LockSeen::Free), fenced: Cell::new(0), given: Notify::new() };
        MemoryLocks(Rc::new(state))
    }
}

impl MemoryLocks {
    /// Says what is to be seen of the lock.
    pub fn set_seen(&self, seen: LockSeen) {
        self.0.seen.set(seen);
    }

    /// Gives the lock to the one who waits for it, or to the next one who will.
    pub fn give(&self) {
        self.0.given.notify_one();
    }

    /// How often the holder was to be fenced.
    pub fn fenced(&self) -> usize {
        self.0.fenced.get()
    }
}

impl Locks for MemoryLocks {
    fn acquire<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn LockGuard>>> {
        Box::pin(async move {
            self.0.given.notified().await;
            let guard: Box<dyn LockGuard> = Box::<MemoryGuard>::default();
            Ok(guard)
        })
    }

    fn look<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, io::Result<LockSeen>> {
        Box::pin(async { Ok(self.0.seen.get()) })
    }

    fn text<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, io::Result<LockText>> {
        Box::pin(async { Ok(LockText::default()) })
    }

    fn fence<'a>(&'a self, _: &'a Path, _: Option<u64>) -> LocalBoxFuture<'a, Fenced> {
        self.0.fenced.set(self.0.fenced.get() + 1);
        Box::pin(async { Fenced::Killed { pid: 2 } })
    }

    fn identity<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, io::Result<String>> {
        Box::pin(async { Ok("boot:1:1".to_owned()) })
    }
}

#[derive(Default)]
struct MemoryGuard {
    previous: LockText,
}

impl LockGuard for MemoryGuard {
    fn previous(&self) -> &LockText {
        &self.previous
    }

    fn held(&self) -> LockText {
        LockText { pid: Some(1), ..self.previous.clone() }
    }

    fn write_text(&self, _: LockText) {}

    fn advance(&self) {}
}

/// What [`recover_log`] found.
pub struct RecoveredLog {
    /// The end of the log, which is whole and durable.
    pub position: Position,
    /// What it holds, in its order.
    pub replayed: Vec<Replayed>,
}

/// Does to the log at `path` what a new holder of the lock does before it reigns, from the start of the file on. The file
/// is let go of again.
///
/// # Errors
/// `File` when the world refuses something, `Corrupt` when the log is damaged and must not be cut.
pub async fn recover_log(
    world: &MemoryEnv,
    path: &Path,
    line_bytes_max: usize,
    fsync: Fsync,
    crash: CrashKind,
) -> Result<RecoveredLog, NodeError> {
    recover_log_from(world, path, line_bytes_max, fsync, crash, log_tailer::Start::default()).await
}

/// The same for a master that has followed the log as far as `from`.
///
/// # Errors
/// As [`recover_log`].
pub async fn recover_log_from(
    world: &MemoryEnv,
    path: &Path,
    line_bytes_max: usize,
    fsync: Fsync,
    crash: CrashKind,
    from: log_tailer::Start,
) -> Result<RecoveredLog, NodeError> {
    let (port, received) = Probe::begin();
    let recovery = Recovery {
        env: world.env(),
        path: path.to_owned(),
        line_bytes_max,
        fsync,
        crash,
        from,
        replayed: port,
        makes_file: true,
        volumes: Rc::default(),
    };
    let recovered = recovery.run().await?;
    let recovered = recovered.ok_or_else(|| NodeError::file(path, io::ErrorKind::NotFound.into()))?;
    Ok(RecoveredLog { position: recovered.position, replayed: received.take() })
}

/// A [`SlaveProxy`] with the test in the place of the link and of the master.
pub struct ProxyBench {
    env: Env,
    proxy: Addr<SlaveProxy>,
    link: SharedLink,
    outbox: Outbox,
    /// How many writes were sent, and their bytes.
    sent: Cell<(u64, u64)>,
    /// What the master hears of the end.
    pub ended: Received<SlaveEnded>,
}

impl ProxyBench {
    /// A proxy whose slave has joined.
    ///
    /// # Panics
    /// Never: the slave's name is a valid one.
    pub fn start(env: &Env, ack_timeout: Duration) -> Self {
        let (ended_port, ended) = Probe::begin();
        let id = SlaveId::new("slave1").expect("letters and a digit make a valid slave id");
        let limits = LinkLimits {
            ack_timeout_ms: ack_timeout.as_millis() as u64,
            read_bytes_max: 8 << 20,
            trial_bytes_max: 1 << 20,
        };
        let mut link = Link::new(Life { id, incarnation: Incarnation(1) }, limits, env.now());
        link.begin(env.now(), 0);
        let link = Rc::new(RefCell::new(link));
        let outbox = Outbox::default();
        let jump_ms = (ack_timeout.as_millis() as u64 / 4).max(100);
        let proxy = SlaveProxy::new(
            Rc::clone(env),
            Parts {
                id: LinkId(1),
                outbox: outbox.clone(),
                link: Rc::clone(&link),
                doubt: Rc::new(RefCell::new(SelfDoubt::new(env.now(), jump_ms))),
                ended: ended_port,
                turns: TurnLengths::new(Rc::clone(env)),
            },
        )
        .start();
        ProxyBench { env: Rc::clone(env), proxy, link, outbox, sent: Cell::default(), ended }
    }

    /// A write goes to the slave.
    pub fn send(&self) {
        self.send_bytes(0);
    }

    /// A write of so many bytes goes to the slave.
    pub fn send_bytes(&self, bytes: usize) {
        self.outbox.append(|out| out.resize(out.len() + bytes, 0));
        self.link.borrow_mut().note_write(self.env.now(), self.outbox.queued());
        let (writes, sent) = self.sent.get();
        self.sent.set((writes + 1, sent + bytes as u64));
    }

    /// How many pings the slave was sent.
    pub fn pings(&self) -> u64 {
        let mut ping = Vec::new();
        dsm_protocol::frame::encode(&Wire::Ping, &mut ping);
        (self.outbox.queued() - self.sent.get().1) / ping.len() as u64
    }

    /// The socket takes so many bytes in each `period`, so many times.
    pub async fn let_the_socket_take(&self, bytes: usize, period: Duration, times: usize) {
        for _ in 0..times {
            tokio::time::sleep(period).await;
            self.outbox.discard(bytes);
        }
    }

    /// The slave acknowledges; false when it breaks the protocol by that.
    pub fn ack(&self, through: u64) -> bool {
        self.link.borrow_mut().note_acked(self.env.now(), through, self.outbox.queued()).is_some()
    }

    /// The slave acknowledges all that it was sent; false when it breaks the protocol by that.
    pub fn ack_all(&self) -> bool {
        self.ack(self.sent.get().0 + self.pings())
    }

    /// The master ends the link.
    pub fn end(&self, reason: EndReason) {
        self.proxy.do_send(End(reason));
    }

    /// Whether the link is cut.
    pub fn is_cut(&self) -> bool {
        self.outbox.is_ended()
    }

    /// Whether the proxy runs.
    pub fn runs(&self) -> bool {
        self.proxy.connected()
    }
}
