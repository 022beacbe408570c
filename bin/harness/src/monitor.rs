//! The INFO of the store during a run: its version, the active slaves, the writes that each of them acknowledged. A
//! separate thread asks every target once a second.
//!
//! A master counts only the acknowledgements that it got itself since its start. So the growth of each counter is
//! summed over both masters, and when a master dies at most one second of them is lost.

use super::access::StoreAccess;
use super::record::SlaveLoad;
use anyhow::Context as _;
use dsm_protocol::info::Info;
use std::collections::BTreeMap;
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often INFO is asked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long one question may take.
const LIMIT: Duration = Duration::from_millis(500);

/// How long a FAILOVER may take.
const FAILOVER_LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub(crate) struct Monitored {
    /// `dsm 0.1.0`, `redis 7.0.15`; empty when it did not say.
    pub store: String,
    /// Active slaves, at most; replicas of a Redis.
    pub slaves: u32,
    /// Writes acknowledged by each slave since the start.
    pub loads: Vec<SlaveLoad>,
}

/// Asks until it is finished.
#[derive(Debug)]
pub(crate) struct Monitor {
    finish: Sender<()>,
    thread: JoinHandle<Monitored>,
}

impl Monitor {
    /// Notes the counters as they are and starts to ask. `told`: whether the store is known to be `dsm`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(targets: Vec<String>, access: StoreAccess, told: bool) -> anyhow::Result<Monitor> {
        let (finish, finished) = channel();
        let mut state = State { targets, access, ..State::default() };
        // Before the load begins, or its first writes would not be counted.
        state.look();
        if told && state.monitored.store.is_empty() {
            state.monitored.store = format!("dsm {}", env!("CARGO_PKG_VERSION"));
        }
        let work = move || {
            while finished.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                state.look();
            }
            state.look();
            let loads = state.grown.into_iter().map(|(slave, writes)| SlaveLoad { slave, writes });
            Monitored { loads: loads.collect(), ..state.monitored }
        };
        let thread = std::thread::Builder::new().name("monitor".to_owned()).spawn(work);
        Ok(Monitor { finish, thread: thread.context("cannot start a thread")? })
    }

    /// Asks a last time; what was seen.
    pub(crate) fn finish(self) -> Monitored {
        // The thread ends in any case, because the channel is dropped with us.
        let _ = self.finish.send(());
        match self.thread.join() {
            Ok(monitored) => monitored,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    targets: Vec<String>,
    access: StoreAccess,
    monitored: Monitored,
    /// The counters at the last look, by target and slave.
    last: BTreeMap<(String, String), u64>,
    grown: BTreeMap<String, u64>,
    looked: bool,
}

impl State {
    fn look(&mut self) {
        for target in self.targets.clone() {
            // A target that is down or hangs is not reported here: the load notices it.
            if let Ok(info) = self.access.ask(&target, &["INFO"], LIMIT) {
                self.take(&target, &info);
            }
        }
        self.looked = true;
    }

    fn take(&mut self, target: &str, info: &str) {
        let info = Info::parse(info);
        for (field, name) in
            [("dsm_version", "dsm"), ("valkey_version", "valkey"), ("redis_version", "redis")]
        {
            if let (true, Some(version)) = (self.monitored.store.is_empty(), info.get(field)) {
                self.monitored.store = format!("{name} {version}");
            }
        }
        // Of a Redis, the role alone tells.
        let serves =
            info.get("dsm_role").map_or(info.get("role") == Some("master"), |role| role == "primary");
        let slaves = info.get("active_slaves").or_else(|| info.get("connected_slaves"));
        if let (true, Some(Ok(slaves))) = (serves, slaves.map(|text| text.parse::<u32>())) {
            self.monitored.slaves = self.monitored.slaves.max(slaves);
        }
        for (id, writes) in slave_counters(&info) {
            let grown = self.grown.entry(id.clone()).or_default();
            let last = self.last.insert((target.to_owned(), id), writes);
            *grown += match last {
                Some(last) if last <= writes => writes - last,
                // The slave, or the master, is a new one since the last look.
                Some(_) => writes,
                None if self.looked => writes,
                None => 0,
            };
        }
    }
}

/// The fields `id` and `writes_acked` of the lines `slave0:id=…,…`.
fn slave_counters(info: &Info) -> Vec<(String, u64)> {
    let of = |slave: BTreeMap<&str, &str>| {
        Some(((*slave.get("id")?).to_owned(), slave.get("writes_acked")?.parse().ok()?))
    };
    info.slaves().filter_map(of).collect()
}

/// Asks the master that serves to hand over, without waiting for it: the load goes on meanwhile.
pub(crate) fn request_failover(targets: Vec<String>, access: StoreAccess) {
    let work = move || {
        for target in targets {
            match access.ask(&target, &["INFO"], LIMIT) {
                Ok(info) if Info::parse(&info).get("dsm_role") == Some("primary") => {
                    if let Err(error) = access.ask(&target, &["FAILOVER"], FAILOVER_LIMIT) {
                        log::warn!("failover request failed target={target} cause={error}");
                    }
                    return;
                }
                Ok(_) => {}
                Err(error) => log::debug!("not asked target={target} cause={error}"),
            }
        }
        log::warn!("failover request: no target serves");
    };
    if let Err(error) = std::thread::Builder::new().name("failover".to_owned()).spawn(work) {
        log::warn!("failover request not sent cause={error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(first: u64, second: u64) -> String {
        format!(
            "# Server\r\ndsm_version:0.1.0\r\ndsm_role:primary\r\nactive_slaves:2\r\nslaves_removed:0\r\n\
             slave0:id=slave-1,slot=0,copies=3,writes_acked={first},room_bytes=unlimited\r\n\
             slave1:id=slave-2,slot=1,copies=3,writes_acked={second},room_bytes=unlimited\r\n"
        )
    }

    #[test]
    fn the_growth_of_the_counters_is_summed_over_masters_and_restarts() {
        let mut state = State::default();
        state.take("a", &info(100, 200));
        state.looked = true;
        state.take("a", &info(150, 220));
        // The slave came back with a new counter, and then another master served.
        state.take("a", &info(10, 230));
        state.take("b", &info(5, 0));
        assert_eq!(state.grown, BTreeMap::from([("slave-1".to_owned(), 65), ("slave-2".to_owned(), 30)]));
        assert_eq!((state.monitored.store.as_str(), state.monitored.slaves), ("dsm 0.1.0", 2));
    }

    #[test]
    fn a_redis_is_known_and_has_no_counters() {
        let mut state = State::default();
        state.take(
            "a",
            "redis_version:7.0.15\r\nrole:master\r\nconnected_slaves:1\r\nslave0:ip=::1,port=1\r\n",
        );
        assert_eq!((state.monitored.store.as_str(), state.monitored.slaves), ("redis 7.0.15", 1));
        assert!(state.grown.is_empty());
    }
}
