//! Ctrl+C and SIGTERM: the first one ends the measurement early and cleanly, the second one the work after it, the
//! third one the process at once. Also notices that a child may have ended.

use anyhow::Context as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::watch;

/// How many signals end the process at once.
const SIGNALS_MAX: u32 = 3;

/// The exit code then: that of a shell for SIGINT.
const AT_ONCE: i32 = 130;

/// Whether to stop; wakes who waits for the time to pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopSignal {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// How many signals there were.
    signals: watch::Sender<u32>,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// Whether a child's state has changed and was not checked yet.
    child: bool,
    /// What is to be set when it is time to stop.
    flags: Vec<Arc<AtomicBool>>,
}

impl StopSignal {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// When they cannot be caught.
    pub(crate) fn on_signals() -> anyhow::Result<StopSignal> {
        let stop = StopSignal::default();
        let stopper = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start a runtime")?;
        let (mut interrupt, mut terminate, mut hangup, mut child) = {
            let _entered = runtime.enter();
            let catch = |kind| signal(kind).context("cannot catch signals");
            (
                catch(SignalKind::interrupt())?,
                catch(SignalKind::terminate())?,
                dsm_server::cli::hangup().context("cannot catch signals")?,
                catch(SignalKind::child())?,
            )
        };
        let work = move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        () = dsm_server::cli::hung_up(&mut hangup) => {}
                        _ = child.recv() => {
                            stopper.child_changed();
                            continue;
                        }
                    }
                    if stopper.stop() >= SIGNALS_MAX {
                        // The processes of the cluster die with this one.
                        std::process::exit(AT_ONCE);
                    }
                }
            });
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(work)
            .context("cannot start a thread")?;
        Ok(stop)
    }

    /// A signal came; how many that makes.
    fn stop(&self) -> u32 {
        let mut state = self.lock();
        state.stopped = true;
        for flag in state.flags.drain(..) {
            flag.store(true, Ordering::Release);
        }
        self.shared.changed.notify_all();
        self.shared.signals.send_modify(|signals| *signals += 1);
        *self.shared.signals.borrow()
    }

    /// A signal came, for tests of others.
    #[cfg(test)]
    pub(crate) fn stop_for_test(&self) {
        self.stop();
    }

    fn child_changed(&self) {
        self.lock().child = true;
        self.shared.changed.notify_all();
    }

    /// Waits until this many signals have come.
    pub(crate) async fn reached(&self, signals: u32) {
        // It ends in one way only: the sender is ours.
        let _ = self.shared.signals.subscribe().wait_for(|came| *came >= signals).await;
    }

    /// Sets `flag`, too, when it is time to stop; at once, if it is.
    pub(crate) fn also_set(&self, flag: Arc<AtomicBool>) {
        let mut state = self.lock();
        if state.stopped {
            flag.store(true, Ordering::Release);
        } else {
            state.flags.push(flag);
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.lock().stopped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can leave a change unfinished.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `deadline`, until it is time to stop, or until a child may have ended. Whether to stop.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if std::mem::take(&mut state.child) || state.stopped || left.is_zero() {
                return state.stopped;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_stop_ends_waits_and_sets_flags_before_and_after() {
        let stop = StopSignal::default();
        let (early, late) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        stop.also_set(Arc::clone(&early));
        assert!(!stop.wait_until(Instant::now()) && !early.load(Ordering::Acquire));
        let waiter = stop.clone();
        let waiter = std::thread::spawn(move || waiter.wait_until(Instant::now() + Duration::from_secs(60)));
        stop.stop();
        stop.also_set(Arc::clone(&late));
        assert!(waiter.join().unwrap());
        assert!(early.load(Ordering::Acquire) && late.load(Ordering::Acquire) && stop.is_set());
    }

    #[test]
    fn a_child_that_changes_ends_one_wait_and_stops_nothing() {
        let stop = StopSignal::default();
        stop.child_changed();
        assert!(!stop.wait_until(Instant::now() + Duration::from_secs(3600)));
        let deadline = Instant::now() + Duration::from_millis(10);
        assert!(!stop.wait_until(deadline));
        assert!(Instant::now() >= deadline, "it is told once");
    }

    #[test]
    fn signals_are_counted_for_those_who_wait_for_more_than_one() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stop = StopSignal::default();
        assert_eq!(stop.stop(), 1);
        runtime.block_on(async {
            stop.reached(1).await;
            tokio::select! {
                biased;
                () = stop.reached(2) => panic!("there was one"),
                () = std::future::ready(()) => {}
            }
            assert_eq!(stop.stop(), 2);
            stop.reached(2).await;
        });
    }
}
