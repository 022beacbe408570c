//! How a client stands that may have to say who it is.
//!
//! Owns the time that it has for that, and whose room for unfinished requests it uses. Whether it is known, its conversation
//! says.

use super::admission::{ConnectionPermit, Unfinished};
use super::Context;
use dsm_protocol::ids::Millis;

/// How a client stands that may have to say who it is: by when, and with whom it shares the room for what is not whole.
pub(super) struct ClientStanding<'a> {
    permit: &'a ConnectionPermit,
    unfinished: [Unfinished<'a>; 2],
    pub(super) is_known: bool,
    /// By when it must say who it is; `None` for one who has, or need not.
    until: Option<Millis>,
    /// By when the handshake must be over.
    handshake_until: Option<Millis>,
    /// Of the users by which protected mode has let it in.
    generation: u64,
}

impl<'a> ClientStanding<'a> {
    /// One that is known until [`ClientStanding::look`] says otherwise.
    pub(super) fn new(
        context: &'a Context,
        permit: &'a ConnectionPermit,
        handshake_until: Option<Millis>,
    ) -> Self {
        let gate = &context.switchboard.gate;
        let unfinished = [gate.unfinished_requests.part(), gate.unfinished_of_strangers.part()];
        let generation = context.switchboard.accounts.generation();
        ClientStanding { permit, unfinished, is_known: true, until: None, handshake_until, generation }
    }

    /// Whether there are other users than when this was asked last.
    pub(super) fn has_other_users(&mut self, context: &Context) -> bool {
        let generation = context.switchboard.accounts.generation();
        std::mem::replace(&mut self.generation, generation) != generation
    }

    /// Notes whether the client has said who it is; gives that. One that is known no more has the time of a handshake again.
    pub(super) fn look(&mut self, is_known: bool, context: &Context) -> bool {
        self.permit.set_known(is_known);
        if is_known != self.is_known {
            self.is_known = is_known;
            for part in &self.unfinished {
                let _ = part.hold(0);
            }
            let again = context.env.now().plus(context.config.handshake_timeout.as_millis() as u64);
            self.until = (!is_known).then(|| self.handshake_until.take().unwrap_or(again));
        }
        is_known
    }

    /// By when it must say who it is; `None` for one who has, or need not.
    pub(super) fn until(&self) -> Option<Millis> {
        self.until
    }

    /// Whether that is past.
    pub(super) fn is_overdue(&self, context: &Context) -> bool {
        self.until.is_some_and(|until| until <= context.env.now())
    }

    /// Notes how much its buffer holds; whether it may go on.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        let [of_known, of_strangers] = &self.unfinished;
        if self.is_known { of_known } else { of_strangers }.hold(bytes)
    }
}
