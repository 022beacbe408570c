//! Keeps the manager of services told how a node is: ready once it does its part, and alive as long as its actor answers.
//!
//! Owns when that is told; whether it does its part is `dsm_protocol::info`'s to say. A node whose actor does not answer is not
//! told of, so that the manager's watchdog ends it.

use crate::env::{Env, ServiceNews};
use crate::told::AskNode;
use actix::Recipient;
use std::time::Duration;
use tokio::task::JoinSet;

/// How soon it is looked again at a node that is not ready.
const SOON: Duration = Duration::from_millis(100);

/// Tells as long as the tasks live, if somebody wants to know.
pub(crate) fn keep(tasks: &mut JoinSet<()>, env: &Env, look: Recipient<AskNode>) {
    if let Some(every) = env.service_interval() {
        tasks.spawn_local(tell(env.clone(), look, every));
    }
}

async fn tell(env: Env, look: Recipient<AskNode>, every: Duration) {
    // An actor that does not answer is waited for: until it does, nothing is told.
    while let Ok(told) = look.send(AskNode).await {
        let verdict = told.verdict();
        let is_ready = verdict.is_ready();
        let status = match verdict.why.is_empty() {
            true => verdict.state.to_string(),
            // The manager shows one line.
            false => format!("{}: {}", verdict.state, verdict.why.join("; ")).replace('\n', " "),
        };
        env.tell_service(ServiceNews { is_ready, status });
        tokio::time::sleep(if is_ready { every } else { every.min(SOON) }).await;
    }
}
