//! `FailoverWatcher`: queues for the lock, looks at it, and fences its holder when it is told to.
//!
//! Owns its place in the queue. What a look means is for the master's machine to say; none of it waits for the master's
//! mailbox or for a disk: the holder's counter is read from the kernel.

use crate::config::Fence;
use crate::env::{Env, Fenced, LockGuard, LockSeen};
use crate::node_error::NodeError;
use crate::supervision::{Fate, PanicGuard, Stop};
use actix::prelude::*;
use dsm_protocol::machine::fence::Spared;
use dsm_protocol::machine::reign::LeaderSeen;
use dsm_protocol::planted;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// How often the lock is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Asks for looks at the lock: one now, and others until it is won. Each is told by [`LockLooked`].
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct WatchLock;

/// Asks to queue for the lock. That it is won is told by [`LockWon`].
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct WaitForLock;

/// Asks to make sure that the holder of the lock runs no more.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct FenceHolder {
    /// Where its counter stands: one whose counter has moved since is spared. `None`: it has not begun to count.
    pub beat: Option<u64>,
}

/// Says what a look at the lock has shown.
#[derive(Message, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct LockLooked(pub LeaderSeen);

/// Whoever holds the lock leads.
impl From<LockSeen> for LeaderSeen {
    fn from(seen: LockSeen) -> LeaderSeen {
        match seen {
            LockSeen::Free => LeaderSeen::Nobody,
            LockSeen::Held { beat } => LeaderSeen::Leads { beat },
        }
    }
}

/// Hands the lock over: this process holds it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LockWon(pub Box<dyn LockGuard>);

/// Whom a [`FailoverWatcher`] tells what.
#[derive(Clone)]
pub struct Ports {
    /// Hears what each look has shown.
    pub looked: Recipient<LockLooked>,
    /// Is told that this master holds the lock.
    pub won: Recipient<LockWon>,
}

/// The actor. See the module.
pub struct FailoverWatcher {
    env: Env,
    lock_path: PathBuf,
    fence: Fence,
    ports: Ports,
    fate: Fate,
    guard: PanicGuard,
    /// What was last said about a holder that cannot be fenced.
    complaint: Option<String>,
    /// Whether looks are wanted.
    watching: bool,
    waiting: bool,
    looking: bool,
    fencing: bool,
}

impl FailoverWatcher {
    /// A watcher that is not asked for anything yet.
    pub fn new(env: Env, lock_path: PathBuf, fence: Fence, ports: Ports, fate: Fate) -> Self {
        let guard = PanicGuard::new("FailoverWatcher", fate.clone());
        FailoverWatcher {
            env,
            lock_path,
            fence,
            ports,
            fate,
            guard,
            complaint: None,
            watching: false,
            waiting: false,
            looking: false,
            fencing: false,
        }
    }

    fn wait_for_lock(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.waiting, true) {
            return;
        }
        let env = Rc::clone(&self.env);
        let path = self.lock_path.clone();
        let waiting = async move { env.locks().acquire(&path).await };
        ctx.spawn(waiting.into_actor(self).map(|won, watcher, _| {
            watcher.waiting = false;
            match won {
                Ok(guard) => {
                    watcher.watching = false;
                    watcher.ports.won.do_send(LockWon(guard));
                }
                Err(error) => watcher.fate.decide(Err(NodeError::file(&watcher.lock_path, error))),
            }
        }));
    }

    fn fence(&mut self, beat: Option<u64>, ctx: &mut Context<Self>) {
        planted!(TakeoverWithoutLock => {
            self.lock_path.set_extension("nobody");
            self.waiting = false;
            self.wait_for_lock(ctx);
            return;
        });
        planted!(NeverFences => {
            return;
        });
        if self.fence == Fence::None {
            self.complain(
                "the active master makes no progress, and --fence none forbids to kill it: kill it by hand, and this \
                 master takes over"
                    .to_owned(),
            );
            return;
        }
        if std::mem::replace(&mut self.fencing, true) {
            return;
        }
        let (locks, path) = (self.env.locks(), self.lock_path.clone());
        let fencing = async move { locks.fence(&path, beat).await };
        ctx.spawn(fencing.into_actor(self).map(|fenced, watcher, _| {
            watcher.fencing = false;
            match fenced {
                Fenced::Killed { pid } => log::warn!("active master fenced pid={pid} cause=no-progress"),
                Fenced::Gone => {}
                Fenced::Spared(Spared::Running) => {
                    log::info!("active master not fenced cause=progress-again")
                }
                Fenced::Spared(why) => {
                    watcher.complain(format!("the active master makes no progress and is not fenced: {why}"));
                }
                Fenced::Failed { error } => {
                    watcher
                        .complain(format!("the active master makes no progress and is not fenced: {error}"));
                }
            }
        }));
    }

    /// Says it once, until something else is to be said.
    fn complain(&mut self, complaint: String) {
        if self.complaint.as_ref() != Some(&complaint) {
            log::error!("{complaint}");
            self.complaint = Some(complaint);
        }
    }

    fn look_again(&mut self, ctx: &mut Context<Self>) {
        self.look(ctx);
        ctx.run_later(LOOK_EVERY, Self::look_again);
    }

    /// Looks at the lock, once at a time: a disk that hangs may hold up a look.
    fn look(&mut self, ctx: &mut Context<Self>) {
        if !self.watching || std::mem::replace(&mut self.looking, true) {
            return;
        }
        let (locks, path) = (self.env.locks(), self.lock_path.clone());
        let looking = async move { locks.look(&path).await };
        ctx.spawn(looking.into_actor(self).map(|seen, watcher, _| {
            watcher.looking = false;
            match seen {
                Ok(seen) => {
                    if seen == LockSeen::Free {
                        watcher.complaint = None;
                    }
                    if watcher.watching {
                        watcher.ports.looked.do_send(LockLooked(seen.into()));
                    }
                }
                Err(error) => watcher.complain(format!("the lock cannot be checked: {error}")),
            }
        }));
    }
}

impl Actor for FailoverWatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.look_again(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.guard.stopped_cleanly();
    }
}

impl Handler<WatchLock> for FailoverWatcher {
    type Result = ();

    fn handle(&mut self, _: WatchLock, ctx: &mut Self::Context) {
        self.watching = true;
        self.look(ctx);
    }
}

impl Handler<WaitForLock> for FailoverWatcher {
    type Result = ();

    fn handle(&mut self, _: WaitForLock, ctx: &mut Self::Context) {
        self.wait_for_lock(ctx);
    }
}

impl Handler<FenceHolder> for FailoverWatcher {
    type Result = ();

    fn handle(&mut self, fence: FenceHolder, ctx: &mut Self::Context) {
        self.fence(fence.beat, ctx);
    }
}

impl Handler<Stop> for FailoverWatcher {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
