//! Ctrl+C and SIGTERM: the first one ends the measurement early and cleanly, the second one ends the process at once.

use anyhow::Context as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::signal::unix::{signal, SignalKind};

/// The exit code after a second signal: that of a shell for SIGINT.
const AT_ONCE: i32 = 130;

/// Whether to stop; wakes who waits for the time to pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// What is to be set when it is time to stop.
    flags: Vec<Arc<AtomicBool>>,
}

impl Stop {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// When they cannot be caught.
    pub(crate) fn on_signals() -> anyhow::Result<Stop> {
        let stop = Stop::default();
        let stopper = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start a runtime")?;
        let (mut interrupt, mut terminate, mut hangup) = {
            let _entered = runtime.enter();
            let catch = |kind| signal(kind).context("cannot catch signals");
            (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?, catch(SignalKind::hangup())?)
        };
        let work = move || {
            runtime.block_on(async {
                for count in 1.. {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    if count > 1 {
                        // The processes of the cluster die with this one.
                        std::process::exit(AT_ONCE);
                    }
                    stopper.stop();
                }
            });
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(work)
            .context("cannot start a thread")?;
        Ok(stop)
    }

    fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        for flag in state.flags.drain(..) {
            flag.store(true, Ordering::Release);
        }
        self.shared.1.notify_all();
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

    /// Whether to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.lock().stopped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half way through a change.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `deadline`, or until it is time to stop; whether it is.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.stopped || left.is_zero() {
                return state.stopped;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_stop_ends_waits_and_sets_flags_before_and_after() {
        let stop = Stop::default();
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
}
