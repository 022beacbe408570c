//! A master that has won the lock and may not take over yet: not before a look has shown that the log at the path goes on
//! what it has replayed. Until then it serves nobody, says what is missing, and goes on by itself.

use super::{MasterActor, Role};
use crate::journal::shared_file::log_tailer::{Halt, Sighted};
use crate::journal::Sight;
use actix::prelude::*;
use dsm_protocol::ids::Millis;

/// How often it is said that nobody serves, and why, in milliseconds.
const TELL_MS: u64 = 5000;

impl MasterActor {
    /// Says again what keeps this master from serving.
    pub(super) fn tick_barred(&mut self, now: Millis) {
        let Role::Barred { told_at, .. } = &mut self.role else { return };
        if self.sight == Sight::Follows || now.since(*told_at) < TELL_MS {
            return;
        }
        *told_at = now;
        let path = self.config.log.display();
        log::warn!(
            "not serving, though no other master does: the log at its path does not go on what was replayed path={path} \
             cause=\"{}\" seq={}: put the file back, and this master goes on by itself; to give up what it has replayed, \
             restart it",
            self.sight,
            self.log_seq
        );
    }
}

impl Handler<Sighted> for MasterActor {
    type Result = ();

    fn handle(&mut self, sighted: Sighted, _: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        self.sight = sighted.0;
        if self.sight != Sight::Follows {
            return;
        }
        self.role = match std::mem::replace(&mut self.role, Role::Ended) {
            // The tailer stops first, so that nothing is replayed twice or out of order.
            Role::Barred { guard, tailer, .. } => {
                tailer.do_send(Halt);
                Role::Halting { guard }
            }
            other => other,
        };
    }
}
