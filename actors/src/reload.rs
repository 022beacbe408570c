//! The files that a node reads again while it runs: its certificates, and those of its users.
//!
//! Owns when that is. What is read, and what becomes of a file that is of no use, is `certificates.rs`' and
//! `door/accounts.rs`'.

use crate::certificates;
use crate::config::Reload;
use crate::door::{accounts, Context};
use crate::env::Tls;
use crate::supervision::{Fate, TaskGuard};
use std::time::Duration;
use tokio::task::JoinSet;

/// How often a node looks when its certificate ends.
const LOOK_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads these files of a node again whenever that is asked for, for as long as what this gives lives. `users` is of a master
/// that has some.
pub(crate) fn keep(tls: Option<Tls>, users: Option<Context>, reload: Reload, fate: &Fate) -> JoinSet<()> {
    let mut keeping = JoinSet::new();
    if tls.is_some() || users.is_some() {
        keeping.spawn_local(read_again(tls, users, reload, fate.clone()));
    }
    keeping
}

async fn read_again(tls: Option<Tls>, users: Option<Context>, reload: Reload, fate: Fate) {
    let _guard = TaskGuard::new("the files that are read again", fate);
    loop {
        tls.iter().for_each(certificates::warn_of_end);
        if tokio::time::timeout(LOOK_EVERY, reload.asked()).await.is_err() {
            continue;
        }
        if let Some(tls) = &tls {
            certificates::read_again(tls).await;
        }
        if let Some(users) = &users {
            // What is wrong is told where it is found.
            let _ = accounts::read_anew(users).await;
        }
    }
}
