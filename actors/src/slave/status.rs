//! What a slave says of itself when its HTTP port is asked. The fields are [`dsm_protocol::info`]'s.

use super::SlaveActor;
use crate::address;
use crate::process_info::{cpu_info, memory_info};
use crate::told::{AskNode, NodeFacts, NodeTold};
use actix::prelude::Handler;
use dsm_protocol::info::{HolderInfo, MasterLinkInfo, OrEmpty, OrUnlimited, SlaveNodeInfo};

impl SlaveActor {
    fn info(&self) -> SlaveNodeInfo {
        let obeyed = self.machine.obeyed();
        let link_to = |address: &String| {
            let address = address.trim();
            let mut links = self.links.iter().filter(|(_, (master, _))| master == address);
            MasterLinkInfo {
                address: address::name(address).to_owned(),
                connected: links.clone().next().is_some(),
                obeyed: links.any(|(link, _)| Some(*link) == obeyed),
            }
        };
        let room_bytes = self.machine.room_bytes();
        SlaveNodeInfo {
            slave: HolderInfo {
                dsm_version: env!("CARGO_PKG_VERSION").to_owned(),
                process_id: self.env.pid(),
                id: self.facts.id.clone(),
                uptime_in_seconds: self.env.now().0 / 1000,
                tls_certificate_expires: OrEmpty(self.env.certificate_expires()),
                log_lines_lost: self.env.log_lines_lost(),
                cluster_id: self.facts.cluster.get(),
                epoch: self.machine.epoch(),
                admitted: obeyed.is_some(),
                master: self.config.masters.iter().map(link_to).collect(),
                keys: self.machine.len() as u64,
                held_bytes: self.machine.memory_bytes(),
                room_bytes: OrUnlimited((room_bytes != u64::MAX).then_some(room_bytes)),
                writes_taken: self.done.writes_taken,
                reads_answered: self.done.reads_answered,
                writes_refused: self.done.writes_refused,
            },
            memory: memory_info(&self.env),
            cpu: cpu_info(&self.env),
            turns: self.turns.info(),
        }
    }
}

impl Handler<AskNode> for SlaveActor {
    type Result = NodeTold;

    fn handle(&mut self, _: AskNode, _: &mut Self::Context) -> NodeTold {
        let _turn = self.turns.begin("look");
        NodeTold { node: NodeFacts::Slave(Box::new(self.info())), wall_clock_ms: self.env.wall_clock().0 }
    }
}
