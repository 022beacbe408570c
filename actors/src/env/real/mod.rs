//! The real world: TCP, files with a thread each (`disk.rs`), flock, `/proc`, inotify.
//!
//! All threads of a node are started here: one for each open file, one while a path is opened or checked, one that reads
//! lock files, one that waits for the lock and then publishes the holder's counter.

mod disk;
mod service;

use super::short_timer::ShortTimer;
use super::threads::spawn_thread;
use super::{
    net, Disk, Environment, Fenced, FileIdentity, Listener, LockGuard, LockSeen, Locks, OsStream, Stream, Tls,
};
use crate::address;
use disk::RealDisk;
use dsm_protocol::ids::{Millis, UnixMillis};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::fence::{may_kill, Holders, MayKill, Observer};
use dsm_protocol::record::ClockMark;
use futures_util::future::LocalBoxFuture;
use nix::fcntl::{fcntl, FcntlArg};
use nix::libc;
use nix::sys::resource::{getrusage, UsageWho};
use nix::sys::time::{TimeVal, TimeValLike as _};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::ClockId;
use service::ServiceManager;
use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Access rights of a master's files, which hold the values of all clients.
const OWNER_ONLY: u32 = 0o600;

/// The real environment of one node.
#[derive(Clone, Debug)]
pub struct RealEnv {
    start: Instant,
    lines_lost: fn() -> u64,
    lock_paths: Rc<LockPaths>,
    short_timer: ShortTimer,
    /// TLS for every connection over TCP, if there is any.
    tls: Option<Tls>,
    /// Who has started this process and wants to know how it is.
    service: Option<ServiceManager>,
}

impl RealEnv {
    /// An environment whose time begins now. Must be called within a tokio runtime.
    #[allow(clippy::new_ret_no_self, reason = "everybody takes an environment as an `Env`")]
    ///
    /// From now on SIGXFSZ does not end the process: a write beyond the limit on the file size (`ulimit -f`) is an error
    /// like that of a full disk.
    pub fn new() -> super::Env {
        RealEnv::of_process(|| 0, None)
    }

    /// The same for a process that is this node and nothing else, and may lose log lines: `lines_lost` gives their number since the
    /// start, and never waits. The manager of services is told how it is.
    pub fn logging(lines_lost: fn() -> u64) -> super::Env {
        RealEnv::of_process(lines_lost, ServiceManager::open())
    }

    fn of_process(lines_lost: fn() -> u64, service: Option<ServiceManager>) -> super::Env {
        // A signal with a handler does not have its default effect. Nothing needs to receive it.
        if let Err(error) = signal(SignalKind::from_raw(libc::SIGXFSZ)) {
            log::warn!("a file that outgrows its limit will end this process cause={error}");
        }
        Rc::new(RealEnv {
            start: Instant::now(),
            lines_lost,
            lock_paths: Rc::default(),
            short_timer: ShortTimer::default(),
            tls: None,
            service,
        })
    }
}

impl Environment for RealEnv {
    fn service_interval(&self) -> Option<Duration> {
        self.service.as_ref().map(ServiceManager::every)
    }

    fn tell_service(&self, news: super::ServiceNews) {
        if let Some(service) = &self.service {
            service.tell(news);
        }
    }

    fn now(&self) -> Millis {
        Millis(self.start.elapsed().as_millis() as u64)
    }

    fn clock_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn computed_us(&self) -> Option<u64> {
        Some(computed().as_micros() as u64)
    }

    fn cpu_time(&self) -> Option<fn() -> Duration> {
        Some(computed)
    }

    fn waited_us(&self) -> Option<u64> {
        // Nanoseconds on a processor, nanoseconds of waiting for one, and the number of time slices. No disk is read
        // for it.
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let waited_ns: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(waited_ns / 1000)
    }

    fn pause(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(self.short_timer.clone().wait(time))
    }

    // Everything else must use this clock.
    #[allow(clippy::disallowed_methods)]
    fn random(&self) -> u64 {
        rand::random()
    }

    fn listen<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Listener>> {
        Box::pin(Listener::tcp(address, self.tls.as_ref()))
    }

    fn listen_unix<'a>(&'a self, path: &'a Path, mode: u32) -> LocalBoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move {
            let at = path.to_owned();
            let made = on_thread(move || net::make_unix(&at, mode)).await??;
            Listener::unix(path.to_owned(), made)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { Ok(Stream::Os(OsStream::connect(address, self.tls.as_ref()).await?)) })
    }

    fn secured(&self, tls: &Tls) -> Option<super::Env> {
        Some(Rc::new(RealEnv { tls: Some(tls.clone()), ..self.clone() }))
    }

    fn is_private_way(&self, address: &str) -> bool {
        address::is_private_way(address, self.tls.is_some())
    }

    fn certificate_expires(&self) -> Option<u64> {
        self.tls.as_ref()?.expires()
    }

    fn disk(&self) -> Rc<dyn Disk> {
        Rc::new(RealDisk)
    }

    fn locks(&self) -> Rc<dyn Locks> {
        Rc::new(RealLocks { paths: Rc::clone(&self.lock_paths) })
    }

    fn wall_clock(&self) -> UnixMillis {
        UnixMillis(clock_ms(ClockId::Realtime))
    }

    fn uptime(&self) -> Millis {
        Millis(clock_ms(ClockId::Boottime))
    }

    fn boot_id(&self) -> String {
        boot_id()
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    // No disk is read: the kernel makes this file's content when it is read.
    fn log_lines_lost(&self) -> u64 {
        (self.lines_lost)()
    }

    fn resident_bytes(&self) -> u64 {
        statm_bytes().map_or(0, |(resident, _)| resident)
    }

    fn private_bytes(&self) -> u64 {
        statm_bytes().map_or(0, |(resident, shared)| resident.saturating_sub(shared))
    }

    fn processor_time_us(&self) -> Option<(u64, u64)> {
        let used = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).ok();
        Some((micros(used.user_time())?, micros(used.system_time())?))
    }
}

/// Resident memory of this process, and the part of it that is of files, in bytes. No disk is read for it.
fn statm_bytes() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split(' ').skip(1).map_while(|pages| pages.parse::<u64>().ok());
    let page = rustix::param::page_size() as u64;
    Some((pages.next()? * page, pages.next()? * page))
}

/// What a clock of the system shows, in milliseconds; 0 before it begins.
fn clock_ms(clock: ClockId) -> u64 {
    let shown = rustix::time::clock_gettime(clock);
    u64::try_from(shown.tv_sec).unwrap_or_default() * 1000 + shown.tv_nsec as u64 / 1_000_000
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| ClockMark::UNKNOWN_BOOT.to_owned(), |text| text.trim().to_owned())
}

/// The pid name space of this process: processes in different name spaces may have the same id.
fn pid_namespace() -> Option<String> {
    let name = fs::read_link("/proc/self/ns/pid").ok()?;
    let name = name.to_str()?;
    // `pid:[4026531836]`
    Some(name.strip_prefix("pid:[")?.strip_suffix(']')?.to_owned())
}

fn identity_of(metadata: &fs::Metadata) -> FileIdentity {
    FileIdentity { device: metadata.dev(), inode: metadata.ino() }
}

fn identity_at(path: &Path) -> io::Result<Option<FileIdentity>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(identity_of(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first pause before the system is asked again for something it has refused. It doubles each time.
const REFUSED_PAUSE_MIN: Duration = Duration::from_millis(20);

/// The longest of these pauses.
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Whether an error is temporary: the system lacks a thread, a descriptor, memory or room in a table of locks.
pub(crate) fn passes(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else { return false };
    [libc::EAGAIN, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::ENOLCK, libc::EINTR]
        .contains(&code)
}

/// Retries while the system refuses temporarily, and logs it once. The process must not end for that: it may be the
/// only one that could serve.
async fn patiently<T>(what: &str, mut attempt: impl AsyncFnMut() -> io::Result<T>) -> io::Result<T> {
    let mut pause = REFUSED_PAUSE_MIN;
    loop {
        match attempt().await {
            Err(error) if passes(&error) => {
                if pause == REFUSED_PAUSE_MIN {
                    log::warn!("the system refuses for now, retrying what={what:?} error={error}");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(REFUSED_PAUSE_MAX);
            }
            outcome => return outcome,
        }
    }
}

/// Runs work that may wait for a disk on its own thread: the path can be on a disk that hangs.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (answer, answered) = oneshot::channel();
    spawn_thread("dsm-path", move || drop(answer.send(work())))?;
    answered.await.map_err(|_| io::Error::other("a thread for a path has panicked"))
}

/// One look at a lock file.
type Look = Box<dyn FnOnce() + Send>;

/// The thread that reads lock files. It is one for all looks, because there are many of them and a disk that hangs must
/// block only one thread. It starts with the first look for which the system has a thread.
#[derive(Default)]
struct LockPaths(RefCell<Option<mpsc::Sender<Look>>>);

impl fmt::Debug for LockPaths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockPaths")
    }
}

impl LockPaths {
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let jobs = match self.jobs() {
            Ok(jobs) => jobs,
            // Without a thread, look from here: a look that may hang is better than none.
            Err(error) if passes(&error) => return Ok(work()),
            Err(error) => return Err(error),
        };
        let (answer, answered) = oneshot::channel();
        jobs.send(Box::new(move || drop(answer.send(work()))))
            .map_err(|_| io::Error::other("the thread that looks at the lock is gone"))?;
        answered.await.map_err(|_| io::Error::other("the thread that looks at the lock has panicked"))
    }

    fn jobs(&self) -> io::Result<mpsc::Sender<Look>> {
        let mut jobs = self.0.borrow_mut();
        if let Some(jobs) = &*jobs {
            return Ok(jobs.clone());
        }
        let (sender, queue) = mpsc::channel::<Look>();
        spawn_thread("dsm-lock-look", move || {
            while let Ok(job) = queue.recv() {
                // A look that panics drops its answer, and its caller takes that for an error.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(job));
            }
        })?;
        Ok(jobs.insert(sender).clone())
    }
}

struct RealLocks {
    paths: Rc<LockPaths>,
}

impl Locks for RealLocks {
    fn acquire<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn LockGuard>>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let mut asked = Some((path.to_owned(), answer));
            let mut start = || {
                let (path, answer) =
                    asked.take().ok_or_else(|| io::Error::other("the lock is waited for"))?;
                // When a thread cannot be started, what was given to it is dropped.
                let (into, from) = mpsc::channel();
                match spawn_thread("dsm-lock", move || hold_lock(from)) {
                    Ok(()) => {
                        into.send((path, answer)).map_err(|_| io::Error::other("the lock thread is gone"))
                    }
                    Err(error) => {
                        asked = Some((path, answer));
                        Err(error)
                    }
                }
            };
            patiently("the thread that waits for the lock", async || start()).await?;
            let guard = answered.await.map_err(|_| io::Error::other("the lock thread is gone"))??;
            let guard: Box<dyn LockGuard> = Box::new(guard);
            Ok(guard)
        })
    }

    fn look<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<LockSeen>> {
        Box::pin(async move {
            let path = path.to_owned();
            self.paths.run(move || look_at_lock(&path)).await?
        })
    }

    fn text<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<LockText>> {
        Box::pin(async move {
            let path = path.to_owned();
            self.paths.run(move || lock_text(&path)).await?
        })
    }

    fn try_kinds<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let path = path.to_owned();
            self.paths.run(move || try_kinds(&path)).await?
        })
    }

    fn fence<'a>(&'a self, path: &'a Path, beat: Option<u64>) -> LocalBoxFuture<'a, Fenced> {
        Box::pin(async move {
            let path = path.to_owned();
            let fenced = self.paths.run(move || fence(&path, beat)).await.and_then(|fenced| fenced);
            fenced.unwrap_or_else(|error| Fenced::Failed { error: error.to_string() })
        })
    }

    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<String>> {
        Box::pin(async move {
            let path = path.to_owned();
            self.paths.run(move || lock_identity(&path)).await?
        })
    }
}

fn look_at_lock(path: &Path) -> io::Result<LockSeen> {
    let file = match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LockSeen::Free),
        Err(error) => return Err(error),
    };
    if let Some(beat) = read_beat(&file)? {
        return Ok(LockSeen::Held { beat: Some(beat) });
    }
    let holders = flock_holders(identity_of(&file.metadata()?))?;
    Ok(if holders.is_empty() { LockSeen::Free } else { LockSeen::Held { beat: None } })
}

fn lock_text(path: &Path) -> io::Result<LockText> {
    match fs::read(path) {
        Ok(bytes) => Ok(LockText::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(LockText::default()),
        Err(error) => Err(error),
    }
}

fn lock_identity(path: &Path) -> io::Result<String> {
    let file = open_lock_file(path)?;
    let identity = identity_of(&file.metadata()?);
    Ok(format!("{}:{}:{}", boot_id(), identity.device, identity.inode))
}

fn try_kinds(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".try-{}", std::process::id()));
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(OWNER_ONLY);
    // An error is reported by the call that needs the file.
    let Ok(file) = options.open(&name) else { return Ok(()) };
    let _ = fs::remove_file(&name);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(errno) if passes(&errno.into()) => {}
        Err(errno) => {
            return Err(io::Error::new(
                errno.kind(),
                format!("its file system takes no locks (flock: {errno}): put the log on a local one"),
            ))
        }
    }
    if let Err(errno) = fcntl(&file, FcntlArg::F_OFD_SETLK(&byte_lock(libc::F_WRLCK, BEAT_OFFSET, 1))) {
        log::warn!(
            "progress cannot be published here, so that a master that hangs is not fenced error={errno}"
        );
    }
    Ok(())
}

fn open_lock_file(path: &Path) -> io::Result<fs::File> {
    // Rust opens close-on-exec: a child must not keep the lock of a dead master.
    fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(OWNER_ONLY).open(path)
}

/// A request for the lock at a path.
type LockAsked = (PathBuf, oneshot::Sender<io::Result<RealGuard>>);

/// The thread that waits for the lock and then publishes the holder's progress. So a takeover needs no new thread, which
/// the system might refuse.
fn hold_lock(asked: mpsc::Receiver<LockAsked>) {
    let Ok((path, answer)) = asked.recv() else { return };
    // If no caller waits any more, the guard is dropped here, and the lock with it.
    match wait_for_lock(&path, || answer.is_closed()).map(|file| file.map(RealGuard::new)) {
        Ok(None) => {}
        Ok(Some(Ok((guard, beat)))) => {
            drop(answer.send(Ok(guard)));
            beat.publish();
        }
        Ok(Some(Err(error))) | Err(error) => drop(answer.send(Err(error))),
    }
}

/// Waits for the lock and takes it; `None` when it is no longer wanted by then.
fn wait_for_lock(path: &Path, unwanted: impl Fn() -> bool) -> io::Result<Option<fs::File>> {
    let mut told = false;
    loop {
        match queue_for_lock(path, &unwanted) {
            Err(error) if passes(&error) => {
                if !std::mem::replace(&mut told, true) {
                    log::warn!("the system refuses for now, retrying what=\"the lock\" error={error}");
                }
                std::thread::sleep(REFUSED_PAUSE_MAX);
                if unwanted() {
                    return Ok(None);
                }
            }
            outcome => return outcome,
        }
    }
}

fn queue_for_lock(path: &Path, unwanted: impl Fn() -> bool) -> io::Result<Option<fs::File>> {
    loop {
        let file = open_lock_file(path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // A lock on a file that is no longer at the path protects nothing: queue for the new file.
        if identity_at(path)? != Some(identity_of(&file.metadata()?)) {
            continue;
        }
        if unwanted() {
            return Ok(None);
        }
        return Ok(Some(file));
    }
}

/// The longest text of a lock file that is overwritten, in bytes.
const LOCK_TEXT_MAX: usize = 4096;

/// Where the counter's byte range begins in the lock file: far after any text.
const BEAT_OFFSET: i64 = 1 << 40;

/// The counter is published modulo this.
const BEAT_MODULUS: u64 = 1 << 20;

/// How often the counter is published.
const BEAT_EVERY: Duration = Duration::from_millis(25);

/// An `fcntl` lock description.
fn byte_lock(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// The counter that the holder of the lock publishes; `None` when it publishes none.
///
/// The counter is the offset of a locked byte, not the content of the file. The kernel keeps locks in memory, so
/// neither side waits for a disk, which may be what hangs.
fn read_beat(file: &fs::File) -> io::Result<Option<u64>> {
    let mut probe = byte_lock(libc::F_WRLCK, BEAT_OFFSET, BEAT_MODULUS as i64);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    let held = libc::c_int::from(probe.l_type) != libc::F_UNLCK;
    Ok(held.then(|| (probe.l_start - BEAT_OFFSET) as u64))
}

struct RealGuard {
    file: Arc<fs::File>,
    previous: LockText,
    progress: Arc<AtomicU64>,
    released: Arc<AtomicBool>,
    texts: Arc<Mutex<Texts>>,
}

/// The text to be written into the lock file. It must not be written once another process holds the lock. So if a write
/// is under way when the lock is to be released, the writing thread releases it afterwards.
#[derive(Default)]
struct Texts {
    /// The next text.
    next: Option<LockText>,
    /// Whether a thread is writing.
    writing: bool,
    /// Whether the lock is to be released.
    released: bool,
}

impl RealGuard {
    fn new(file: fs::File) -> io::Result<(Self, Beat)> {
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes)?;
        let previous = LockText::parse(&String::from_utf8_lossy(&bytes));
        let file = Arc::new(file);
        let progress = Arc::new(AtomicU64::new(1));
        let released = Arc::new(AtomicBool::new(false));
        let guard = RealGuard {
            file: Arc::clone(&file),
            previous,
            progress: Arc::clone(&progress),
            released: Arc::clone(&released),
            texts: Arc::default(),
        };
        // Only the lock matters. Without the text this holder merely cannot be fenced.
        if let Err(error) = write_text(&guard.file, &guard.held()) {
            log::warn!("lock file not written error={error}");
        }
        // It must not keep the lock alive, so it holds the file weakly.
        let beat = Beat { file: Arc::downgrade(&file), progress, released };
        Ok((guard, beat))
    }
}

/// Publishes the holder's progress.
struct Beat {
    file: Weak<fs::File>,
    progress: Arc<AtomicU64>,
    released: Arc<AtomicBool>,
}

impl Beat {
    /// Publishes until the lock is released.
    fn publish(self) {
        let mut published = 0;
        while !self.released.load(Ordering::Acquire) {
            let current = self.progress.load(Ordering::Relaxed);
            if current != published {
                let Some(file) = self.file.upgrade() else { return };
                publish_beat(&file, published, current);
                published = current;
            }
            std::thread::sleep(BEAT_EVERY);
        }
    }
}

/// Moves the locked byte. The new byte is locked before the old one is released, so that a watcher always sees at least
/// one.
fn publish_beat(file: &fs::File, from: u64, to: u64) {
    let at = |counter: u64| BEAT_OFFSET + (counter % BEAT_MODULUS) as i64;
    let lock = byte_lock(libc::F_WRLCK, at(to), 1);
    let locked = fcntl(file, FcntlArg::F_OFD_SETLK(&lock));
    let unlock = byte_lock(libc::F_UNLCK, at(from), 1);
    let unlocked = if at(from) == at(to) { Ok(0) } else { fcntl(file, FcntlArg::F_OFD_SETLK(&unlock)) };
    if let Err(error) = locked.and(unlocked) {
        log::warn!("progress not published error={error}");
    }
}

impl LockGuard for RealGuard {
    fn previous(&self) -> &LockText {
        &self.previous
    }

    fn held(&self) -> LockText {
        LockText {
            pid: Some(std::process::id()),
            start: start_of(std::process::id()).ok(),
            boot: Some(boot_id()),
            pid_ns: pid_namespace(),
            ..self.previous.clone()
        }
    }

    fn write_text(&self, text: LockText) {
        let mut texts = locked(&self.texts);
        texts.next = Some(text);
        if std::mem::replace(&mut texts.writing, true) {
            return;
        }
        drop(texts);
        // A write can wait for the disk, and a holder that waits would make no progress.
        let (file, texts) = (Arc::clone(&self.file), Arc::clone(&self.texts));
        if let Err(error) = spawn_thread("dsm-lock-text", move || write_texts(&file, &texts)) {
            log::warn!("lock file not written error={error}");
            locked(&self.texts).writing = false;
        }
    }

    fn advance(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for RealGuard {
    fn drop(&mut self) {
        self.released.store(true, Ordering::Release);
        let mut texts = locked(&self.texts);
        texts.released = true;
        if !texts.writing {
            release(&self.file);
        }
    }
}

fn locked(texts: &Mutex<Texts>) -> MutexGuard<'_, Texts> {
    texts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the texts into the lock file, and releases the lock if that was asked for meanwhile.
fn write_texts(file: &fs::File, texts: &Mutex<Texts>) {
    loop {
        let mut state = locked(texts);
        let next = state.next.take().filter(|_| !state.released);
        let Some(text) = next else {
            state.writing = false;
            if state.released {
                release(file);
            }
            return;
        };
        drop(state);
        if let Err(error) = write_text(file, &text) {
            log::warn!("lock file not written error={error}");
        }
    }
}

/// Releases the lock and the beat. Closing the file would do both, but other threads may keep it open for a moment.
fn release(file: &fs::File) {
    let unlock = byte_lock(libc::F_UNLCK, BEAT_OFFSET, BEAT_MODULUS as i64);
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&unlock));
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
}

fn write_text(file: &fs::File, text: &LockText) -> io::Result<()> {
    let text = text.to_string();
    // The rest of a longer old text is blanked with the same write, so that a holder that is killed here leaves no line
    // of it.
    let mut bytes = text.clone().into_bytes();
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0).min(LOCK_TEXT_MAX);
    bytes.resize(bytes.len().max(length), b'\n');
    file.write_all_at(&bytes, 0)?;
    file.set_len(text.len() as u64)
}

/// The processes that hold a flock on a file with this inode number, from the kernel's list, which omits those of other
/// pid name spaces. The list's device numbers are not always those of stat, so the result may include files with the
/// same number on other devices.
fn flock_holders(identity: FileIdentity) -> io::Result<Vec<u32>> {
    let mut holders = Vec::new();
    let inode = identity.inode.to_string();
    for line in fs::read_to_string("/proc/locks")?.lines() {
        // `1: FLOCK  ADVISORY  WRITE 1234 08:02:131090 0 EOF`; a waiter has `->` after the number.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { continue };
        if file.rsplit(':').next() == Some(&inode) {
            holders.extend(pid.parse::<u32>().ok().filter(|pid| *pid != 0));
        }
    }
    Ok(holders)
}

/// When a process started, in clock ticks since boot.
fn start_of(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; field 22 of the line is the 20th after it.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let field = behind.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat"))
}

/// Kills the holder of the lock at `path` if [`may_kill`] allows it.
fn fence(path: &Path, stood_at: Option<u64>) -> io::Result<Fenced> {
    // The progress is probed with a lock for which the file must be open for writing.
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let text = lock_text(path)?;
    // From here on the pid cannot be reused unnoticed.
    let named = text.pid.map(pin).transpose()?.flatten();
    let start = match (&named, text.pid) {
        (Some(_), Some(pid)) => match start_of(pid) {
            Ok(start) => Some(start),
            // It is just ending, or its file is hidden from us.
            Err(error) => pin(pid)?.map_or(Ok(None), |_| Err(error))?,
        },
        (None, _) | (_, None) => None,
    };
    let beat = read_beat(&file)?;
    let pids = flock_holders(identity_of(&file.metadata()?))?;
    let holders = Holders { pids, beat };
    let observer = Observer { pid: std::process::id(), boot: boot_id(), pid_ns: pid_namespace() };
    match (may_kill(&text, &holders, &observer, start, stood_at), named) {
        (MayKill::Yes { pid }, Some(named)) => {
            match rustix::process::pidfd_send_signal(&named, Signal::KILL) {
                Ok(()) => Ok(Fenced::Killed { pid }),
                Err(rustix::io::Errno::SRCH) => Ok(Fenced::Gone),
                Err(error) => Err(error.into()),
            }
        }
        (MayKill::Yes { .. }, None) | (MayKill::Gone, _) => Ok(Fenced::Gone),
        (MayKill::No(why), _) => Ok(Fenced::Spared(why)),
    }
}

/// Opens a pidfd of the process that has this id now; `None` if there is none.
fn pin(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The processor time of this thread so far.
fn computed() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_holder_that_is_gone_never_follows_the_text_of_the_next() {
        let path = std::env::temp_dir().join(format!("dsm-lock-{}", std::process::id()));
        let lock = || {
            let file = wait_for_lock(&path, || false).expect("the lock").expect("it is wanted");
            RealGuard::new(file).expect("a guard").0
        };
        for round in 0..100 {
            let first = lock();
            for number in 0..3 {
                let address = Some(format!("{round}-{number}"));
                first.write_text(LockText { address, ..first.held() });
            }
            let texts = Arc::clone(&first.texts);
            drop(first);
            // The holder's own text is written before the lock is handed out.
            let second = lock();
            let written = fs::read(&path).expect("the lock file");
            assert!(!locked(&texts).writing, "the next holder has the lock while the last one writes");
            std::thread::yield_now();
            assert_eq!(fs::read(&path).expect("the lock file"), written);
            drop(second);
        }
        fs::remove_file(&path).expect("the lock file");
    }
}
