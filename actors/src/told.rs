//! What a node tells of itself when its HTTP port is asked, or the manager of services is told of it.
//!
//! Owns the question to the node's actor and the forms of the answer. The fields are `dsm_protocol::info`'s.

use actix::Message;
use dsm_protocol::info::{MasterInfo, NodeVerdict, SlaveNodeInfo};
use std::collections::BTreeMap;

/// Asks a node's actor what it sees. That it answers shows that it runs.
#[derive(Debug)]
pub(crate) struct AskNode;

impl Message for AskNode {
    type Result = NodeTold;
}

/// What a node sees of itself.
#[derive(Debug)]
pub(crate) struct NodeTold {
    pub(crate) node: NodeFacts,
    /// What the wall clock shows, in milliseconds since 1970.
    pub(crate) wall_clock_ms: u64,
}

/// The same of each role.
#[derive(Debug)]
pub(crate) enum NodeFacts {
    /// Of a master.
    Master {
        /// All that INFO says.
        info: Box<MasterInfo>,
        /// How many active slaves were lost, by the reason.
        removed_by: BTreeMap<&'static str, u64>,
    },
    /// Of a slave.
    Slave(Box<SlaveNodeInfo>),
}

impl NodeTold {
    /// Whether the node does its part, and what is missing.
    pub(crate) fn verdict(&self) -> NodeVerdict {
        match &self.node {
            NodeFacts::Master { info, .. } => NodeVerdict::of_master(info),
            NodeFacts::Slave(info) => NodeVerdict::of_slave(info),
        }
    }
}

impl<A, M> actix::dev::MessageResponse<A, M> for NodeTold
where
    A: actix::Actor,
    M: Message<Result = NodeTold>,
{
    fn handle(self, _: &mut A::Context, answer: Option<actix::dev::OneshotSender<NodeTold>>) {
        if let Some(answer) = answer {
            // Whoever asked may have given up.
            drop(answer.send(self));
        }
    }
}
