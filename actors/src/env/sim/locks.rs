//! The simulated locks: flock on a path with a queue, the holder's published progress, and SIGKILL.
//!
//! A waiter is in the kernel's queue: it gets the lock even while its process is stopped. The holder's progress is
//! published outside the tasks of its process, but a stop of the process stops that too.

use super::disk::{unlock, Inode, Lock};
use super::{boot_id, sleep, Moment, Process, World};
use crate::env::LockSeen;
use crate::env::{Fenced, LockGuard, Locks};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::fence::{may_kill, Holders, MayKill, Observer};
use futures_util::future::LocalBoxFuture;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long a waiter may take to wake up, and the write of a text may take.
const WAKE_MS: std::ops::RangeInclusive<u64> = 0..=2;

/// How long a holder takes to write its text into the lock file.
const NAMED_AFTER: Duration = Duration::from_millis(1);

/// How often progress is published.
const BEAT_EVERY: Duration = Duration::from_millis(25);

/// The locks as one process sees them.
pub(super) struct SimLocks {
    world: World,
    process: Process,
}

impl SimLocks {
    pub(super) fn new(world: &World, process: &Process) -> Self {
        SimLocks { world: world.clone(), process: process.clone() }
    }

    fn inode(&self, path: &Path) -> Rc<Inode> {
        self.process.0.machine.0.files.inode(path)
    }

    fn existing(&self, path: &Path) -> Option<Rc<Inode>> {
        self.process.0.machine.0.files.existing(path)
    }
}

impl Locks for SimLocks {
    fn acquire<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn LockGuard>>> {
        Box::pin(async move {
            loop {
                let inode = self.inode(path);
                let handle = self.process.0.machine.0.files.next_handle();
                let (granted, grant) = oneshot::channel();
                self.world.spawn(wait(
                    self.world.clone(),
                    self.process.clone(),
                    Rc::clone(&inode),
                    handle,
                    granted,
                ));
                if grant.await.is_err() || !self.process.is_alive() {
                    return std::future::pending().await;
                }
                // A lock on a file that is no longer at the path protects nothing: queue at the new one.
                if !self.existing(path).is_some_and(|at_path| Rc::ptr_eq(&at_path, &inode)) {
                    unlock(&self.process, &inode, handle);
                    continue;
                }
                self.world.moment(&self.process, Moment::LockWon);
                self.world.say(|| format!("{} holds the lock", self.process.host()));
                // A process that is stopped here holds the lock while the file still names the previous holder.
                sleep(NAMED_AFTER).await;
                return Ok(self.guard(inode, handle));
            }
        })
    }

    fn look<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<LockSeen>> {
        Box::pin(async move {
            let Some(inode) = self.existing(path) else { return Ok(LockSeen::Free) };
            let lock = inode.lock.borrow();
            Ok(lock.as_ref().map_or(LockSeen::Free, |lock| LockSeen::Held { beat: lock.beat }))
        })
    }

    fn text<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<LockText>> {
        Box::pin(async move {
            let text = self.existing(path).map(|inode| text_of(&inode));
            Ok(text.unwrap_or_default())
        })
    }

    fn fence<'a>(&'a self, path: &'a Path, stood_at: Option<u64>) -> LocalBoxFuture<'a, Fenced> {
        Box::pin(async move { self.fence_now(path, stood_at) })
    }

    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<String>> {
        Box::pin(async move {
            let inode = self.inode(path);
            Ok(format!("{}:1:{}", boot_id(&self.process.0.machine), inode.number()))
        })
    }
}

impl SimLocks {
    fn fence_now(&self, path: &Path, stood_at: Option<u64>) -> Fenced {
        let Some(inode) = self.existing(path) else { return Fenced::Gone };
        let holder = inode.lock.borrow().as_ref().map(|lock| lock.process.clone());
        let text = text_of(&inode);
        let named = text.pid.and_then(|pid| self.world.alive(&self.process.0.machine, pid));
        let start = named.as_ref().map(Process::start);
        let beat = inode.lock.borrow().as_ref().and_then(|lock| lock.beat);
        let holders = Holders { pids: holder.iter().map(Process::pid).collect(), beat };
        let boot = boot_id(&self.process.0.machine);
        let observer = Observer { pid: self.process.pid(), boot, pid_ns: None };
        match (may_kill(&text, &holders, &observer, start, stood_at), named) {
            (MayKill::Yes { pid }, Some(named)) => {
                if !holder.is_some_and(|holder| holder.is(&named)) {
                    let (killer, killed) = (self.process.host(), named.host());
                    self.world
                        .note_wrong_kill(format!("{killer} kills {killed}, which does not hold the lock"));
                    return Fenced::Killed { pid };
                }
                self.world.kill(&named);
                self.world.moment(&self.process, Moment::Fenced);
                Fenced::Killed { pid }
            }
            (MayKill::Yes { .. }, None) | (MayKill::Gone, _) => Fenced::Gone,
            (MayKill::No(why), _) => Fenced::Spared(why),
        }
    }
}

fn text_of(inode: &Inode) -> LockText {
    LockText::parse(&String::from_utf8_lossy(&inode.bytes()))
}

/// Waits in the queue, whatever the process does meanwhile.
async fn wait(world: World, process: Process, inode: Rc<Inode>, handle: u64, granted: oneshot::Sender<()>) {
    loop {
        if !process.is_alive() || granted.is_closed() {
            return;
        }
        if inode.lock.borrow().is_none() {
            break;
        }
        inode.unlocked.notified().await;
    }
    *inode.lock.borrow_mut() = Some(Lock { process: process.clone(), handle, beat: None });
    sleep(Duration::from_millis(world.random_within(WAKE_MS))).await;
    if granted.send(()).is_err() {
        unlock(&process, &inode, handle);
    }
}

impl SimLocks {
    fn guard(&self, inode: Rc<Inode>, handle: u64) -> Box<dyn LockGuard> {
        let previous = text_of(&inode);
        let held = LockText {
            pid: Some(self.process.pid()),
            start: Some(self.process.start()),
            boot: Some(boot_id(&self.process.0.machine)),
            ..previous.clone()
        };
        inode.replace(held.to_string().as_bytes());
        let progress = Arc::new(AtomicU64::new(1));
        let (texts, queue) = mpsc::unbounded_channel();
        let holding = Holding {
            world: self.world.clone(),
            process: self.process.clone(),
            inode,
            handle,
            progress: Arc::clone(&progress),
        };
        holding.publish();
        self.world.spawn(holding.run(queue));
        Box::new(SimGuard { previous, held, progress, texts })
    }
}

/// What a process does for its lock outside its tasks.
struct Holding {
    world: World,
    process: Process,
    inode: Rc<Inode>,
    handle: u64,
    progress: Arc<AtomicU64>,
}

impl Holding {
    fn is_ours(&self) -> bool {
        self.process.is_alive()
            && self.inode.lock.borrow().as_ref().is_some_and(|lock| lock.handle == self.handle)
    }

    fn publish(&self) {
        if self.is_ours() && !self.process.is_paused() {
            if let Some(lock) = &mut *self.inode.lock.borrow_mut() {
                lock.beat = Some(self.progress.load(Ordering::Relaxed));
            }
        }
    }

    async fn run(self, mut texts: mpsc::UnboundedReceiver<LockText>) {
        loop {
            tokio::select! {
                biased;
                text = texts.recv() => match text {
                    Some(text) => {
                        sleep(Duration::from_millis(self.world.random_within(WAKE_MS))).await;
                        if self.is_ours() {
                            self.inode.replace(text.to_string().as_bytes());
                        }
                    }
                    None => break,
                },
                () = tokio::time::sleep(BEAT_EVERY) => self.publish(),
            }
            if !self.process.is_alive() {
                return;
            }
        }
        if self.is_ours() {
            unlock(&self.process, &self.inode, self.handle);
            self.world.moment(&self.process, Moment::LockReleased);
            self.world.say(|| format!("{} gives the lock back", self.process.host()));
        }
    }
}

struct SimGuard {
    previous: LockText,
    held: LockText,
    progress: Arc<AtomicU64>,
    texts: mpsc::UnboundedSender<LockText>,
}

impl LockGuard for SimGuard {
    fn previous(&self) -> &LockText {
        &self.previous
    }

    fn held(&self) -> LockText {
        self.held.clone()
    }

    fn write_text(&self, text: LockText) {
        // Only when the process has ended, the text is not written.
        let _ = self.texts.send(text);
    }

    fn advance(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}
