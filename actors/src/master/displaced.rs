//! What a master does when the log that it writes does not stand at its path any more: it takes nothing in, answers what
//! is not executed, says what stands there and how to go on, and ends. No restart would find what it wrote on.

use super::{MasterActor, Phase, Role, Todo};
use crate::env::{Displaced, Stands};
use crate::log_writer::{Abandon, Abandoned, LogDisplaced};
use crate::supervision::NodeError;
use actix::prelude::*;
use dsm_protocol::machine::front;
use std::path::Path;
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
        self.fate.decide(Err(NodeError::LogDisplaced(account(&self.config.log, &found))));
    }
}

/// Says what stands at the path, what that means and how to go on.
fn account(path: &Path, found: &Displaced) -> String {
    let path = path.display();
    let remedy = match &found.stands {
        Stands::Nothing | Stands::Dangling { .. } | Stands::Other if found.is_deleted => format!(
            "restore it: a standby that still runs has it open and says how to copy it, else put the newest copy at {path}"
        ),
        Stands::Nothing => {
            format!("put the file back (`mv` it back to {path}, or mount its volume)")
        }
        Stands::Dangling { .. } => {
            format!("put the file back (`mv` it back to where {path} points, or mount its volume)")
        }
        Stands::Other => format!(
            "put the file back (move what stands there out of the way, and `mv` the log back to {path})"
        ),
        Stands::Shorter { .. } => {
            format!("put the file back (the newest copy that there is, as {path})")
        }
        Stands::Longer { .. } => format!(
            "end whoever else writes to it, stop the other master, look with `dsm-log check {path}`, and let `dsm-log repair \
             {path}` take out what is no record"
        ),
    };
    let before = match &found.stands {
        Stands::Shorter { .. } => "what was cut or overwritten is no longer in that file",
        Stands::Nothing | Stands::Dangling { .. } | Stands::Other | Stands::Longer { .. } => {
            "what was acknowledged before stands in the file that it had open"
        }
    };
    format!(
        "the log is not what stands at {path} any more: {found}; a restart would not find what is written on, so that \
         nothing was acknowledged since this was seen and this master ends; {before}: {remedy}, then start the master again"
    )
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
