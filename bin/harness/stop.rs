//! Ctrl+C and SIGTERM: the first one ends the measurement early and cleanly, the second one ends the process at once.

use anyhow::Context as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;
use tokio::signal::unix::{signal, SignalKind};

/// The exit code after a second signal: that of a shell for SIGINT.
const AT_ONCE: i32 = 130;

/// Whether to stop; wakes who waits for the time to pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Stop {
    /// Catches the signals from now on. `also` is set by the first one, too.
    ///
    /// # Errors
    /// When they cannot be caught.
    pub(crate) fn on_signals(also: Vec<Arc<AtomicBool>>) -> anyhow::Result<Stop> {
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
                    also.iter().for_each(|flag| flag.store(true, Ordering::Release));
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
        let (stopped, changed) = &*self.shared;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }

    /// Whether to stop.
    pub(crate) fn is_set(&self) -> bool {
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `deadline`, or until it is time to stop; whether it is.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let (stopped, changed) = &*self.shared;
        let mut guard = stopped.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if *guard || left.is_zero() {
                return *guard;
            }
            guard = changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
