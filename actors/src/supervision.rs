//! How a node ends: exit reasons, the guard that notices panics, and the delays between attempts.

use crate::env::Env;
use crate::node_error::NodeError;
use actix::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// Asks an actor to stop cleanly.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Stop;

/// Ends an actor and its children: the node is over.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct Dismiss;

/// How one node ends; the first word counts.
#[derive(Clone, Debug, Default)]
pub struct Fate(Rc<FateState>);

#[derive(Debug, Default)]
struct FateState {
    outcome: RefCell<Option<Result<(), NodeError>>>,
    decided: Notify,
}

impl Fate {
    /// Ends the node with this outcome, unless it has one already.
    pub fn decide(&self, outcome: Result<(), NodeError>) {
        let mut decided = self.0.outcome.borrow_mut();
        if decided.is_none() {
            *decided = Some(outcome);
            self.0.decided.notify_one();
        }
    }

    /// Whether the node has ended.
    pub fn is_decided(&self) -> bool {
        self.0.outcome.borrow().is_some()
    }

    /// Waits for the node's end.
    ///
    /// # Errors
    /// Why it ended, if nobody asked it to.
    pub async fn decided(&self) -> Result<(), NodeError> {
        loop {
            if let Some(outcome) = self.0.outcome.borrow().clone() {
                return outcome;
            }
            self.0.decided.notified().await;
        }
    }
}

/// Lives in an actor that the node cannot do without. When the actor goes away without having stopped, it has
/// panicked: tokio swallows that, so the guard's drop is what ends the node.
#[derive(Debug)]
pub struct PanicGuard {
    actor: &'static str,
    fate: Fate,
    stopped: bool,
}

impl PanicGuard {
    /// Guards `actor`.
    pub fn new(actor: &'static str, fate: Fate) -> Self {
        PanicGuard { actor, fate, stopped: false }
    }

    /// To be called in the actor's `stopped`. actix calls that hook for a panicking actor too, while the panic unwinds
    /// through its task: then it is no clean stop.
    pub fn stopped_cleanly(&mut self) {
        self.stopped = !std::thread::panicking();
    }
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if !self.stopped && !self.fate.is_decided() {
            log::error!("actor panicked actor={}", self.actor);
            self.fate.decide(Err(NodeError::Panicked { actor: self.actor }));
        }
    }
}

/// Lives in a task that the node cannot do without, as the guard of an actor does. A task may end or be aborted; only a
/// panic ends the node.
#[derive(Debug)]
pub(crate) struct TaskGuard {
    task: &'static str,
    fate: Fate,
}

impl TaskGuard {
    /// Guards `task`.
    pub(crate) fn new(task: &'static str, fate: Fate) -> Self {
        TaskGuard { task, fate }
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fate.decide(Err(NodeError::Panicked { actor: self.task }));
        }
    }
}

/// Delays that double from 10 ms to a limit, each with up to half of it at random, so that many who lost the same
/// peer do not return at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    next_ms: u64,
    max_ms: u64,
}

impl Backoff {
    const FIRST_MS: u64 = 10;

    /// The delays of links between nodes: up to 2 s.
    pub fn new() -> Self {
        Self::up_to(Duration::from_secs(2))
    }

    /// Delays up to `max`.
    pub fn up_to(max: Duration) -> Self {
        Backoff { next_ms: Self::FIRST_MS, max_ms: (max.as_millis() as u64).max(Self::FIRST_MS) }
    }

    /// The next delay, longer than the last one up to the longest, and drawn at random.
    pub fn next(&mut self, env: &Env) -> Duration {
        let full = self.next_ms;
        self.next_ms = (full * 2).min(self.max_ms);
        Duration::from_millis(full / 2 + env.random() % (full / 2 + 1))
    }

    /// Begins with short delays again.
    pub fn reset(&mut self) {
        self.next_ms = Self::FIRST_MS;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::real::RealEnv;

    struct Panics(PanicGuard);

    impl Actor for Panics {
        type Context = Context<Self>;

        fn stopped(&mut self, _: &mut Self::Context) {
            self.0.stopped_cleanly();
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Do(fn(&mut Context<Panics>));

    impl Handler<Do> for Panics {
        type Result = ();

        fn handle(&mut self, message: Do, ctx: &mut Self::Context) {
            (message.0)(ctx);
        }
    }

    #[actix::test]
    async fn a_panicking_actor_ends_the_node() {
        let fate = Fate::default();
        let actor = Panics(PanicGuard::new("Panics", fate.clone())).start();
        actor.do_send(Do(|_| panic!("on purpose")));
        assert!(matches!(fate.decided().await, Err(NodeError::Panicked { actor: "Panics" })));
    }

    #[actix::test]
    async fn an_actor_that_stops_does_not() {
        let fate = Fate::default();
        let actor = Panics(PanicGuard::new("Panics", fate.clone())).start();
        actor.send(Do(|ctx| ctx.stop())).await.unwrap();
        while actor.connected() {
            tokio::task::yield_now().await;
        }
        drop(actor);
        assert!(!fate.is_decided());
    }

    #[actix::test]
    async fn a_panicking_task_ends_the_node_and_an_aborted_one_does_not() {
        let fate = Fate::default();
        let aborted = fate.clone();
        let task = actix::spawn(async move {
            let _guard = TaskGuard::new("aborted", aborted);
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.is_err());
        assert!(!fate.is_decided());
        let panics = fate.clone();
        actix::spawn(async move {
            let _guard = TaskGuard::new("panics", panics);
            panic!("on purpose");
        });
        assert!(matches!(fate.decided().await, Err(NodeError::Panicked { actor: "panics" })));
    }

    #[actix::test]
    async fn delays_double_up_to_the_limit_and_jitter() {
        let env = RealEnv::new();
        let mut backoff = Backoff::new();
        for full in [10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000] {
            let delay = backoff.next(&env).as_millis() as u64;
            assert!((full / 2..=full).contains(&delay), "{delay} ms where up to {full} ms were due");
        }
    }
}
