//! The streams of another master's clients on the link that it has opened: for whom each asks, and whether he may.
//!
//! Owns who that is. The rules are `dsm_protocol::acl`'s; what is not allowed is answered here and never reaches the master.

use super::Context;
use crate::batch::Outbox;
use dsm_protocol::acl::{Denied, ForwardRefused, ForwardedRequest, IncidentKind};
use dsm_protocol::command::{ErrorWord, Reply, ScriptRights};
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
    /// `None` for a stream of somebody for whom there was no room.
    users: BTreeMap<u64, Option<StreamUser>>,
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
            Message::Request(mut request) => match self.judge(&request).await {
                Ok(rights) => {
                    request.command.grant(&rights);
                    Some(Message::Request(request))
                }
                Err(reply) => {
                    self.context.switchboard.errors.note(&reply);
                    self.outbox.append_pieces(|out| frame::encode_response(request.id, &reply, out));
                    None
                }
            },
            other => Some(other),
        }
    }

    /// Whether the request may be made, and what its scripts may do; else the answer.
    async fn judge(&self, request: &Request) -> Result<ScriptRights, Reply> {
        let accounts = &self.context.switchboard.accounts;
        let nobody = Some(StreamUser::default());
        let Some(user) = self.users.get(&request.stream).unwrap_or(&nobody) else {
            // Nothing is known of what he may do, so nothing is said of that.
            return match accounts.is_guarded() {
                true => Err(Reply::error(ErrorWord::Busy, "too many clients of the other master")),
                false => Ok(ScriptRights::default()),
            };
        };
        let begun = ForwardedRequest::begin(accounts, user, &request.command);
        let Some(mut judging) = begun.map_err(|refused| refused.reply())? else {
            return Ok(ScriptRights::default());
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
        judged.map_err(|refused| refused.reply())?;
        Ok(judging.rights())
    }
}

/// Notes for whom a stream asks from here on, be it that there is room for no more of them: it never keeps its former user. Of as
/// many further streams it is known that they are somebody's; even further ones are nobody's.
fn note(users: &mut BTreeMap<u64, Option<StreamUser>>, max: usize, stream: u64, user: StreamUser) {
    users.remove(&stream);
    if user != StreamUser::Anonymous && users.len() < max.saturating_mul(2) {
        let has_room = users.len() < max;
        users.insert(stream, has_room.then_some(user));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_no_former_user_however_many_there_are() {
        let named = |name: &str| StreamUser::Named(name.to_owned());
        let mut users = BTreeMap::new();
        for stream in 1..=5 {
            note(&mut users, 2, stream, named("ops"));
        }
        let ops = Some(named("ops"));
        let all = [(1, ops.clone()), (2, ops.clone()), (3, None), (4, None)];
        assert_eq!(users, BTreeMap::from(all), "of the last one nothing is known");
        // Who says something new while there is no room is not taken for who he was.
        note(&mut users, 2, 1, named("app"));
        note(&mut users, 2, 2, StreamUser::Anonymous);
        assert_eq!(users, BTreeMap::from([(1, None), (3, None), (4, None)]));
        for stream in [1, 3, 4] {
            note(&mut users, 2, stream, StreamUser::Anonymous);
        }
        // Nobody takes no room.
        assert_eq!(users, BTreeMap::new());
        note(&mut users, 2, 4, StreamUser::Anonymous);
        note(&mut users, 2, 3, StreamUser::Program);
        assert_eq!(users, BTreeMap::from([(3, Some(StreamUser::Program))]));
    }
}
