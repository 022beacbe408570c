//! Precise waits: one kernel timer for each thread of the load, exact to some ten microseconds.
//!
//! tokio's timer counts whole milliseconds, which would show in every latency of an open loop. One descriptor serves
//! all waits of a thread, so that a wait costs only a place in a heap, and an early end ([`Pacer::close`]) wakes all.

use super::clock::Clock;
use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Waits that end within this time are ended together, in nanoseconds.
const SLACK_NS: u64 = 20_000;

/// The waits of one thread's connections.
#[derive(Debug)]
pub(crate) struct Pacer {
    clock: Clock,
    timer: AsyncFd<OwnedFd>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When, and who. An entry whose waiter has no waker is over.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    waiters: Vec<Option<(u64, Waker)>>,
    /// When the timer goes off; `u64::MAX`: never.
    armed_ns: u64,
    closed: bool,
}

impl Pacer {
    /// For `waiters` waiters, numbered from 0. To be made within the runtime that runs [`Pacer::drive`].
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub(crate) fn new(clock: Clock, waiters: usize) -> io::Result<Pacer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let state = State {
            due: BinaryHeap::with_capacity(waiters),
            waiters: vec![None; waiters],
            armed_ns: u64::MAX,
            closed: false,
        };
        // Deprecated for types that may swap their descriptor, which an `OwnedFd` that is not shared cannot. The
        // successor is unsafe, and unsafe code is forbidden here.
        #[allow(deprecated)]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Pacer { clock, timer, state: Mutex::new(state) })
    }

    /// Waits until `at_ns`, give or take [`SLACK_NS`], or until all waits are ended. `waiter` has one wait at a time.
    pub(crate) async fn until(&self, waiter: usize, at_ns: u64) {
        poll_fn(|context| {
            // A waiter that was woken is due: a stricter check would make it wait for a timer that has already fired.
            if self.clock.now_ns() + SLACK_NS >= at_ns {
                return Poll::Ready(());
            }
            let mut state = self.lock();
            if state.closed {
                return Poll::Ready(());
            }
            let before = state.waiters[waiter].replace((at_ns, context.waker().clone()));
            if before.is_none_or(|(before_ns, _)| before_ns != at_ns) {
                state.due.push(Reverse((at_ns, waiter)));
                self.arm(&mut state);
            }
            Poll::Pending
        })
        .await;
    }

    /// Ends all waits and all future ones.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for waiter in &mut state.waiters {
            if let Some((_, waker)) = waiter.take() {
                waker.wake();
            }
        }
    }

    /// Wakes who is due, for as long as it is polled.
    ///
    /// # Errors
    /// When the timer cannot be read.
    pub(crate) async fn drive(&self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            let mut count = [0; 8];
            match rustix::io::read(self.timer.get_ref(), &mut count) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
            self.wake_due(self.clock.now_ns());
        }
    }

    /// The timer has gone off: wakes who is due at `now_ns` and sets it for the next one.
    fn wake_due(&self, now_ns: u64) {
        let mut state = self.lock();
        state.armed_ns = u64::MAX;
        while let Some(Reverse((at_ns, waiter))) = state.due.peek().copied() {
            if at_ns > now_ns + SLACK_NS {
                break;
            }
            state.due.pop();
            // A later wait of the same waiter has an entry of its own.
            if state.waiters[waiter].as_ref().is_some_and(|(wanted_ns, _)| *wanted_ns == at_ns) {
                if let Some((_, waker)) = state.waiters[waiter].take() {
                    waker.wake();
                }
            }
        }
        self.arm(&mut state);
    }

    fn arm(&self, state: &mut State) {
        let Some(Reverse((at_ns, _))) = state.due.peek().copied() else { return };
        if at_ns >= state.armed_ns {
            return;
        }
        // A time of zero would stop the timer.
        let left = self.clock.until(at_ns).max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let time = Itimerspec { it_interval: zero, it_value: value };
        match timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &time) {
            Ok(_) => state.armed_ns = at_ns,
            // Only a bad descriptor or a bad time could be refused.
            Err(error) => log::error!("timer not set cause={error}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can leave a change unfinished.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future as _;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Arc;
    use std::task::Context;

    fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn waits_end_in_their_order_and_not_before_their_time() {
        block_on(async {
            let clock = Clock::start();
            let pacer = Pacer::new(clock, 2).unwrap();
            let order = Mutex::new(Vec::new());
            let wait = |waiter: usize, at_ns: u64| {
                let (pacer, order) = (&pacer, &order);
                async move {
                    pacer.until(waiter, at_ns).await;
                    assert!(clock.now_ns() + SLACK_NS >= at_ns, "too early");
                    order.lock().unwrap().push(waiter);
                }
            };
            let waits = async { tokio::join!(wait(0, 30_000_000), wait(1, 10_000_000)) };
            tokio::select! {
                _ = waits => {}
                _ = pacer.drive() => panic!("it drives for ever"),
            }
            assert_eq!(*order.lock().unwrap(), [1, 0]);
        });
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wait_that_was_woken_and_polled_before_its_time_is_woken_again() {
        block_on(async {
            let pacer = Pacer::new(Clock::start(), 1).unwrap();
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let mut context = Context::from_waker(&waker);
            let at_ns = u64::MAX / 4;
            let mut wait = pin!(pacer.until(0, at_ns));
            for times in 1..=3 {
                assert!(wait.as_mut().poll(&mut context).is_pending());
                // Polled for another reason: it stays one entry.
                assert!(wait.as_mut().poll(&mut context).is_pending());
                pacer.wake_due(at_ns - SLACK_NS);
                assert_eq!(woken.0.load(Ordering::SeqCst), times);
            }
        });
    }

    #[test]
    fn waits_that_end_within_the_slack_of_each_other_all_end() {
        block_on(async {
            let clock = Clock::start();
            let pacer = Pacer::new(clock, 2).unwrap();
            let waits = async {
                for _ in 0..500 {
                    let at_ns = clock.now_ns() + 100_000;
                    tokio::join!(pacer.until(0, at_ns), pacer.until(1, at_ns + 10_000));
                }
            };
            tokio::select! {
                _ = waits => {}
                _ = pacer.drive() => panic!("it drives for ever"),
                () = tokio::time::sleep(Duration::from_secs(60)) => panic!("a wait was forgotten"),
            }
        });
    }

    #[test]
    fn closing_ends_every_wait_now_and_later() {
        block_on(async {
            let pacer = Pacer::new(Clock::start(), 2).unwrap();
            let waits = async { tokio::join!(pacer.until(0, u64::MAX / 2), pacer.until(1, u64::MAX / 2)) };
            let close = async {
                tokio::task::yield_now().await;
                pacer.close();
            };
            tokio::join!(waits, close);
            pacer.until(0, u64::MAX / 2).await;
        });
    }
}
