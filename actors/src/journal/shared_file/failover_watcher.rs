//! `FailoverWatcher`: queues for the lock, watches its holder, fences one that hangs, arranges handovers.
//!
//! Owns the takeover machine and carries out what it decides. Its verdicts do not depend on the master's mailbox: the
//! holder's counter is read from the kernel, and a standby that was itself paused accuses nobody.

use crate::config::Fence;
use crate::env::{Env, Fenced, LockGuard};
use crate::node_error::NodeError;
use crate::supervision::{Fate, PanicGuard};
use actix::prelude::*;
use dsm_protocol::lock_file::Spared;
use dsm_protocol::machine::reign::takeover::{Config, Effect, Event, Refusal, Seen, Takeover};
use dsm_protocol::planted;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// How often the lock is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Tells the watcher what happened at the master.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Notice(pub Event);

/// Tells the master what happened to the leadership.
#[derive(Message)]
#[rtype(result = "()")]
pub enum LeadershipChanged {
    /// This process holds the lock: recover the log and serve.
    LockWon(Box<dyn LockGuard>),
    /// Ask the active master for the reign.
    AskHandover {
        /// Whether an operator wants it.
        forced: bool,
    },
    /// Yield the reign to the standby that asked.
    GrantHandover,
    /// Do not yield it.
    RefuseHandover(Refusal),
}

/// The actor. See the module.
pub struct FailoverWatcher {
    env: Env,
    lock_path: PathBuf,
    fence: Fence,
    machine: Takeover,
    master: Recipient<LeadershipChanged>,
    fate: Fate,
    guard: PanicGuard,
    /// What was last said about a holder that cannot be fenced.
    complaint: Option<String>,
    waiting: bool,
    looking: bool,
    fencing: bool,
    /// What the last look has shown.
    seen: Option<Seen>,
}

impl FailoverWatcher {
    /// A watcher of a standby that has not read the log yet.
    pub fn new(
        env: Env,
        lock_path: PathBuf,
        fence: Fence,
        config: Config,
        master: Recipient<LeadershipChanged>,
        fate: Fate,
    ) -> Self {
        let machine = Takeover::new(config, env.now());
        let guard = PanicGuard::new("FailoverWatcher", fate.clone());
        FailoverWatcher {
            env,
            lock_path,
            fence,
            machine,
            master,
            fate,
            guard,
            complaint: None,
            waiting: false,
            looking: false,
            fencing: false,
            seen: None,
        }
    }

    fn step(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        self.machine.step(self.env.now(), event, &mut effects);
        if !matches!(event, Event::Looked(_)) || !effects.is_empty() {
            log::trace!("takeover event={event:?} effects={effects:?}");
        }
        for effect in effects {
            match effect {
                Effect::WaitForLock => self.wait_for_lock(ctx),
                Effect::Fence => {
                    planted!(TakeoverWithoutLock => {
                        self.lock_path.set_extension("nobody");
                        self.waiting = false;
                        self.wait_for_lock(ctx);
                        continue;
                    });
                    planted!(NeverFences => {
                        continue;
                    });
                    self.fence(ctx);
                }
                Effect::AskHandover { forced } => {
                    self.master.do_send(LeadershipChanged::AskHandover { forced })
                }
                Effect::GrantHandover => self.master.do_send(LeadershipChanged::GrantHandover),
                Effect::RefuseHandover(refusal) => {
                    self.master.do_send(LeadershipChanged::RefuseHandover(refusal));
                }
            }
        }
    }

    fn wait_for_lock(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.waiting, true) {
            return;
        }
        let env = Rc::clone(&self.env);
        let path = self.lock_path.clone();
        let waiting = async move { env.locks().acquire(&path).await };
        ctx.spawn(waiting.into_actor(self).map(|won, watcher, ctx| {
            watcher.waiting = false;
            match won {
                Ok(guard) => {
                    watcher.step(Event::LockWon, ctx);
                    watcher.master.do_send(LeadershipChanged::LockWon(guard));
                }
                Err(error) => watcher.fate.decide(Err(NodeError::file(&watcher.lock_path, error))),
            }
        }));
    }

    fn fence(&mut self, ctx: &mut Context<Self>) {
        if self.fence == Fence::None {
            self.complain(
                "the active master makes no progress, and --fence none forbids to kill it: kill it by hand, and this \
                 master takes over"
                    .to_owned(),
            );
            return;
        }
        let Some(Seen::Held { beat }) = self.seen else { return };
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
        if !self.machine.is_standby() || std::mem::replace(&mut self.looking, true) {
            return;
        }
        let (locks, path) = (self.env.locks(), self.lock_path.clone());
        let looking = async move { locks.look(&path).await };
        ctx.spawn(looking.into_actor(self).map(|seen, watcher, ctx| {
            watcher.looking = false;
            match seen {
                Ok(seen) => {
                    if seen == Seen::Free {
                        watcher.complaint = None;
                    }
                    watcher.seen = Some(seen);
                    watcher.step(Event::Looked(seen), ctx);
                }
                Err(error) => watcher.complain(format!("the lock cannot be looked at: {error}")),
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

impl Handler<Notice> for FailoverWatcher {
    type Result = ();

    fn handle(&mut self, notice: Notice, ctx: &mut Self::Context) {
        self.step(notice.0, ctx);
        if notice.0 == Event::CaughtUp {
            // A holder who dies before the next regular look must not cost the courtesy of a second.
            self.look(ctx);
        }
    }
}

/// Ends the watcher.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Stop;

impl Handler<Stop> for FailoverWatcher {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
