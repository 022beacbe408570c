//! What a master does when the log that it writes does not stand at its path any more: it takes nothing in, answers what
//! is not executed, and ends with what stands there. No restart would find what it wrote on.

use super::{MasterActor, Phase, Role, Todo};
use crate::journal::shared_file::log_writer::{Abandon, Abandoned, LogDisplaced};
use crate::node_error::NodeError;
use actix::prelude::*;
use dsm_protocol::machine::front;
use std::time::Duration;

/// How long the answers may take that say what is not executed.
const DEPART_WITHIN: Duration = Duration::from_millis(500);

impl MasterActor {
    /// Ends the node, once what is answered is on its way. What is in the log and not acknowledged stays unanswered: a
    /// connection that is lost during a write means *unknown*, which is the truth.
    pub(super) fn depart(&mut self) {
        let Role::Reigning(reign) = &mut self.role else { return };
        let Phase::Departing = reign.phase else { return };
        let Some(found) = self.displaced.take() else { return };
        reign.phase = Phase::Ending;
        self.end_links();
        self.fate.decide(Err(NodeError::LogDisplaced { path: self.config.log.clone(), found }));
    }
}

impl Handler<LogDisplaced> for MasterActor {
    type Result = ();

    fn handle(&mut self, displaced: LogDisplaced, ctx: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        let now = self.env.now();
        let Role::Reigning(reign) = &mut self.role else { return };
        log::error!(
            "log is not at its path, this master ends path={} cause=\"{}\"",
            self.config.log.display(),
            displaced.found
        );
        reign.phase = Phase::Departing;
        self.displaced = Some(displaced.found);
        // Whoever asks from now on is told that this master does not serve, which is to say *not executed*.
        self.step_front(now, front::Event::StoppingBegan);
        self.flush();
        if let Role::Reigning(reign) = &self.role {
            reign.log.do_send(Abandon);
        }
        ctx.run_later(DEPART_WITHIN, |master, _| master.depart());
    }
}

impl Handler<Abandoned> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Abandoned, ctx: &mut Self::Context) {
        let turn = self.turns.begin("role");
        self.todo.push_back(Todo::Depart);
        self.work(&turn, ctx);
    }
}
