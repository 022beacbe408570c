//! What a node's numbers mean in a word: whether it does its part, and whether something is missing.
//!
//! Owns the rule alone. `/status`, `/readyz` and `dsm-client status` say what it says.

use super::{MasterInfo, MasterRole, SlaveNodeInfo};
use std::fmt;

/// How a node is, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeState {
    /// It does its part, and nothing is missing.
    Healthy,
    /// It does its part, and something is missing: another failure may be one too many.
    Degraded,
    /// It does not do its part.
    Down,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NodeState::Healthy => "healthy",
            NodeState::Degraded => "degraded",
            NodeState::Down => "down",
        })
    }
}

/// The state of a node, and why it is not better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeVerdict {
    /// The word.
    pub state: NodeState,
    /// What is missing, in words; nothing when it is healthy.
    pub why: Vec<String>,
}

impl NodeVerdict {
    fn new(down: Option<String>, degraded: &str) -> Self {
        let missing = degraded.split("; ").filter(|what| !what.is_empty()).map(str::to_owned);
        let state = match (&down, degraded.is_empty()) {
            (Some(_), _) => NodeState::Down,
            (None, false) => NodeState::Degraded,
            (None, true) => NodeState::Healthy,
        };
        let why = down.iter().cloned().chain(missing).collect();
        NodeVerdict { state, why }
    }

    /// Whether the node does its part: requests may be sent to it, and another one may be restarted.
    pub fn is_ready(&self) -> bool {
        self.state != NodeState::Down
    }

    /// That of a master: its part is to serve, or to follow the log as a standby that could.
    pub fn of_master(info: &MasterInfo) -> Self {
        let (replication, log) = (&info.replication, &info.log);
        let down = match (replication.dsm_role, log.standby_log.as_str()) {
            (MasterRole::Primary, _) | (MasterRole::Standby, "follows") => None,
            (MasterRole::Standby, "replaying") => {
                Some("it replays the log, and could not take over yet".to_owned())
            }
            (MasterRole::Standby, seen) => Some(format!("it cannot follow the log, which is {seen:?}")),
            (MasterRole::Recovering, _) if replication.waiting_for.is_empty() => {
                Some("it does not serve yet".to_owned())
            }
            (MasterRole::Recovering, _) => Some(replication.waiting_for.clone()),
        };
        // Of one that is recovering it is what it waits for.
        let is_recovering = replication.dsm_role == MasterRole::Recovering;
        NodeVerdict::new(down, if is_recovering { "" } else { &replication.degraded })
    }

    /// That of a slave: its part is to hold copies for the master that it obeys.
    pub fn of_slave(info: &SlaveNodeInfo) -> Self {
        let slave = &info.slave;
        let down = (!slave.admitted).then(|| {
            let is_connected = slave.master.iter().any(|master| master.connected);
            let why = if is_connected { "no master has given it a place" } else { "no master is connected" };
            why.to_owned()
        });
        let mut missing: Vec<String> = Vec::new();
        // Without a link to the others it would be no help to the next reign at once.
        for master in slave.master.iter().filter(|master| !master.connected) {
            missing.push(format!("the master {} is not connected", master.address));
        }
        if slave.room_bytes.0 == Some(0) {
            missing.push("it has no room".to_owned());
        }
        NodeVerdict::new(down, &missing.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::tests::{example, slave_example};
    use crate::info::{OrEmpty, OrUnlimited};

    fn why(verdict: &NodeVerdict) -> Vec<&str> {
        verdict.why.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_master_is_healthy_if_it_serves_and_nothing_is_missing() {
        let mut info = example();
        let verdict = NodeVerdict::of_master(&info);
        assert_eq!((verdict.state, verdict.is_ready()), (NodeState::Degraded, true));
        assert_eq!(why(&verdict), ["2 of 3 slaves are active", "no room"]);
        info.replication.degraded.clear();
        info.replication.standby_lag_ms = OrEmpty(None);
        assert_eq!(NodeVerdict::of_master(&info), NodeVerdict { state: NodeState::Healthy, why: Vec::new() });
    }

    #[test]
    fn a_standby_does_its_part_once_it_follows_the_log() {
        let mut info = example();
        info.replication.degraded.clear();
        info.replication.dsm_role = MasterRole::Standby;
        for (seen, state) in [
            ("follows", NodeState::Healthy),
            ("replaying", NodeState::Down),
            ("gone", NodeState::Down),
            ("other", NodeState::Down),
        ] {
            info.log.standby_log = seen.to_owned();
            assert_eq!(NodeVerdict::of_master(&info).state, state, "{seen}");
        }
    }

    #[test]
    fn a_master_that_waits_says_for_what() {
        let mut info = example();
        info.replication.dsm_role = MasterRole::Recovering;
        info.replication.waiting_for = "the log is missing; it looks again".to_owned();
        info.replication.degraded = info.replication.waiting_for.clone();
        let verdict = NodeVerdict::of_master(&info);
        assert_eq!(
            (verdict.state, why(&verdict)),
            (NodeState::Down, vec!["the log is missing; it looks again"])
        );
        info.replication.waiting_for.clear();
        info.replication.degraded.clear();
        assert_eq!(why(&NodeVerdict::of_master(&info)), ["it does not serve yet"]);
    }

    #[test]
    fn a_slave_does_its_part_once_it_has_a_place() {
        let mut info = slave_example();
        assert_eq!(NodeVerdict::of_slave(&info), NodeVerdict { state: NodeState::Healthy, why: Vec::new() });
        info.slave.master[1].connected = false;
        info.slave.room_bytes = OrUnlimited(Some(0));
        let verdict = NodeVerdict::of_slave(&info);
        assert_eq!(verdict.state, NodeState::Degraded);
        assert_eq!(why(&verdict), ["the master b:2 is not connected", "it has no room"]);
        info.slave.admitted = false;
        assert_eq!(NodeVerdict::of_slave(&info).why[0], "no master has given it a place");
        info.slave.master[0].connected = false;
        let verdict = NodeVerdict::of_slave(&info);
        assert_eq!((verdict.state, verdict.is_ready()), (NodeState::Down, false));
        assert_eq!(verdict.why[0], "no master is connected");
    }
}
