//! Waits for parts of a millisecond, which tokio's timers cannot.
//!
//! Owns the one timer of the system that an environment keeps for that: to make one for each wait would double its cost.

use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
};
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Keeps a timer of the system while nobody waits for it.
#[derive(Clone, Debug, Default)]
pub(super) struct ShortTimer(Rc<RefCell<Option<AsyncFd<OwnedFd>>>>);

impl ShortTimer {
    /// Waits for `time`. Where the system gives no timer, tokio's does, up to 2 ms late.
    pub(super) async fn wait(self, time: Duration) {
        if self.wait_exactly(time).await.is_err() {
            tokio::time::sleep(time).await;
        }
    }

    #[allow(
        deprecated,
        reason = "`register` is unsafe, as a type may change its descriptor: `OwnedFd` does not"
    )]
    fn registered(timer: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
        AsyncFd::new(timer)
    }

    async fn wait_exactly(&self, time: Duration) -> io::Result<()> {
        let kept = self.0.take();
        let timer = match kept {
            Some(timer) => timer,
            None => {
                let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
                Self::registered(timerfd_create(TimerfdClockId::Monotonic, flags)?)?
            }
        };
        let mut lent = Lent { timer: Some(timer), home: self };
        let waited = match &lent.timer {
            Some(timer) => Self::expiry(timer, time).await,
            None => Ok(()),
        };
        if waited.is_err() {
            // The runtime to which it belongs may be gone.
            lent.timer = None;
        }
        waited
    }

    async fn expiry(timer: &AsyncFd<OwnedFd>, time: Duration) -> io::Result<()> {
        // Zero would stop it.
        let time = Timespec::try_from(time.max(Duration::from_nanos(1))).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: time };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut expired = timer.readable().await?;
            // It may have expired for somebody who waited before and did not take note of it.
            let read = expired.try_io(|timer| Ok(rustix::io::read(timer, &mut [0; 8])?));
            if let Ok(read) = read {
                return read.map(drop);
            }
        }
    }
}

/// A timer in use. It goes back to where it is kept, even if nobody waits for it any more.
struct Lent<'a> {
    timer: Option<AsyncFd<OwnedFd>>,
    home: &'a ShortTimer,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.home.0.borrow_mut() = self.timer.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use tokio::time::Instant;

    #[actix::test]
    async fn it_waits_as_long_as_it_is_told_and_never_less() {
        let timer = ShortTimer::default();
        for time_us in [0, 1, 200, 1_500, 20_000] {
            let (began, time) = (Instant::now(), Duration::from_micros(time_us));
            timer.clone().wait(time).await;
            assert!(began.elapsed() >= time, "{time_us} µs: {:?}", began.elapsed());
        }
    }

    #[test]
    fn it_works_on_when_its_runtime_has_gone() {
        let timer = ShortTimer::default();
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime().block_on(timer.clone().wait_exactly(Duration::from_micros(100))).unwrap();
        let second = runtime();
        second.block_on(timer.clone().wait(Duration::from_micros(100)));
        second.block_on(timer.wait_exactly(Duration::from_micros(100))).unwrap();
    }

    #[actix::test]
    async fn a_wait_that_was_given_up_does_not_end_the_next_one() {
        let timer = ShortTimer::default();
        let mut given_up = Box::pin(timer.clone().wait(Duration::from_micros(10)));
        assert!(given_up.as_mut().now_or_never().is_none());
        // It expires, the runtime knows of it, and nobody reads that.
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(given_up);
        let began = Instant::now();
        timer.wait(Duration::from_millis(30)).await;
        assert!(began.elapsed() >= Duration::from_millis(30), "{:?}", began.elapsed());
    }
}
