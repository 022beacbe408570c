//! The manager of services that has started this process, systemd: is told how the process is, if it wants to know.
//!
//! Owns the thread that tells it. The socket takes no more than the manager reads, so that a manager that hangs holds up this thread
//! alone: what it has not taken by then is dropped.

use crate::env::threads::spawn_thread;
use crate::env::ServiceNews;
use sd_notify::NotifyState;
use std::sync::mpsc::{sync_channel, SyncSender};
use std::time::Duration;

/// How often it is told, unless it wants that more often.
const EVERY: Duration = Duration::from_secs(1);

/// What it has not taken, at most.
const UNTOLD_MAX: usize = 4;

/// The way to the manager.
#[derive(Clone, Debug)]
pub(super) struct ServiceManager {
    news: SyncSender<ServiceNews>,
    every: Duration,
}

impl ServiceManager {
    /// The one that has started this process; `None` if there is none, or it wants to hear nothing.
    pub(super) fn open() -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
        let (news, untold) = sync_channel::<ServiceNews>(UNTOLD_MAX);
        // It kills a process of which it has not heard for that long.
        let patience = sd_notify::watchdog_enabled();
        let tell = move || {
            while let Ok(news) = untold.recv() {
                if let Err(error) = tell(&news) {
                    log::debug!("the manager of services is not told error={error}");
                }
            }
        };
        if let Err(error) = spawn_thread("dsm service", tell) {
            log::warn!("the manager of services is not told how this process is error={error}");
            return None;
        }
        Some(ServiceManager { news, every: patience.map_or(EVERY, |patience| (patience / 3).min(EVERY)) })
    }

    /// How often it is to be told.
    pub(super) fn every(&self) -> Duration {
        self.every
    }

    /// Tells it, without waiting.
    pub(super) fn tell(&self, news: ServiceNews) {
        // What does not fit is told with the next.
        let _ = self.news.try_send(news);
    }
}

fn tell(news: &ServiceNews) -> std::io::Result<()> {
    let status = NotifyState::Status(&news.status);
    match news.is_ready {
        true => sd_notify::notify(&[NotifyState::Ready, NotifyState::Watchdog, status]),
        false => sd_notify::notify(&[NotifyState::Watchdog, status]),
    }
}
