//! The streams of another master's clients on the link that it has opened: for whom each asks, and whether he may.
//!
//! Owns who that is. The rules are `dsm_protocol::acl`'s; what is not allowed is answered here and never reaches the master.

use super::Context;
use crate::batch::Outbox;
use dsm_protocol::acl::{Denied, ForwardRefused, ForwardedRequest, IncidentKind};
use dsm_protocol::frame;
use dsm_protocol::message::{Control, Message, Request, StreamUser};
use std::collections::BTreeMap;

/// How many steps of a turn judge whether a request is allowed, some nanoseconds each.
const JUDGED_STEPS: usize = 100_000;

/// The streams of one link.
pub(super) struct Streams<'a> {
    context: &'a Context,
    outbox: &'a Outbox,
    /// What the other master calls itself.
    address: String,
    users: BTreeMap<u64, StreamUser>,
}

impl<'a> Streams<'a> {
    /// None yet, of the master at that address.
    pub(super) fn new(context: &'a Context, outbox: &'a Outbox, address: String) -> Self {
        Streams { context, outbox, address, users: BTreeMap::new() }
    }

    /// Takes in what the other master says; gives what is for this one.
    pub(super) async fn hear(&mut self, message: Message) -> Option<Message> {
        match message {
            Message::Control(Control::StreamUser { stream, user }) => {
                let max = self.context.switchboard.gate.forwarded_sessions_max();
                note(&mut self.users, max, stream, user);
                None
            }
            Message::Control(Control::StreamClosed { stream }) => {
                self.users.remove(&stream);
                Some(Message::Control(Control::StreamClosed { stream }))
            }
            Message::Request(request) => match self.judge(&request).await {
                Ok(()) => Some(Message::Request(request)),
                Err(refused) => {
                    let reply = refused.reply();
                    self.context.switchboard.errors.note(&reply);
                    self.outbox.append_pieces(|out| frame::encode_response(request.id, &reply, out));
                    None
                }
            },
            other => Some(other),
        }
    }

    async fn judge(&self, request: &Request) -> Result<(), ForwardRefused> {
        let accounts = &self.context.switchboard.accounts;
        let nobody = StreamUser::default();
        let user = self.users.get(&request.stream).unwrap_or(&nobody);
        let Some(mut judging) = ForwardedRequest::begin(accounts, user, &request.command)? else {
            return Ok(());
        };
        let judged = loop {
            match judging.go_on(JUDGED_STEPS) {
                Some(judged) => break judged,
                None => tokio::task::yield_now().await,
            }
        };
        if let Err(ForwardRefused { denied: Some(denied) }) = &judged {
            let (kind, object) = match denied {
                Denied::Command(name) => (IncidentKind::Command, name.as_bytes()),
                Denied::Key(key) => (IncidentKind::Key, &key[..]),
            };
            let name = judging.user();
            let client = format!("addr={} user={name}, forwarded by that master\n", self.address);
            accounts.note(kind, object, name, client);
        }
        judged
    }
}

/// Notes for whom a stream asks from here on, be it that there is room for no more of them: it never keeps its former user.
/// Further streams have no sessions here either, and are known to be nobody.
fn note(users: &mut BTreeMap<u64, StreamUser>, max: usize, stream: u64, user: StreamUser) {
    users.remove(&stream);
    if user != StreamUser::Anonymous && users.len() < max {
        users.insert(stream, user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_no_former_user_however_many_there_are() {
        let named = |name: &str| StreamUser::Named(name.to_owned());
        let mut users = BTreeMap::new();
        for (stream, name) in [(1, "ops"), (2, "ops"), (3, "ops")] {
            note(&mut users, 2, stream, named(name));
        }
        assert_eq!(users, BTreeMap::from([(1, named("ops")), (2, named("ops"))]));
        note(&mut users, 2, 1, named("app"));
        note(&mut users, 2, 2, StreamUser::Anonymous);
        assert_eq!(users, BTreeMap::from([(1, named("app"))]));
        // Nobody takes no room.
        note(&mut users, 2, 4, StreamUser::Anonymous);
        note(&mut users, 2, 3, StreamUser::Program);
        assert_eq!(users, BTreeMap::from([(1, named("app")), (3, StreamUser::Program)]));
    }
}
