//! Requests on their way to another master: one may name tens of thousands of keys and is encoded in parts.
//!
//! Owns what has not reached the link's outbox, and keeps its order: a session's later request never overtakes an earlier one
//! that takes longer to encode. Never decides what is forwarded: the front does.

use super::agenda::Allowance;
use super::requests::written_bytes;
use super::send;
use crate::batch::Outbox;
use crate::door::switchboard::Switchboard;
use dsm_protocol::command::Command;
use dsm_protocol::frame::{self, RequestFrame};
use dsm_protocol::ids::LinkId;
use dsm_protocol::machine::master::Master;
use dsm_protocol::message::{Control, Message, Request, StreamUser};
use std::collections::{BTreeMap, VecDeque};

/// A request of more keys, or of more bytes in several, is encoded in parts.
const KEYS_MAX: usize = 256;
const BYTES_MAX: usize = 256 * 1024;

/// So many keys are encoded in a part.
const PART_KEYS: usize = 256;

/// What waits to be encoded, in its order.
enum Forward {
    /// A request.
    Request(Request),
    /// One that is being encoded, and how long the values are that it asks for as far as that is known, in bytes.
    Part { frame: RequestFrame, answer_bytes: usize },
    /// What is said of them: that a session is closed, or that nothing more is forwarded.
    Said(Control),
}

/// Whether a request is to be encoded in parts.
fn is_long(command: &Command) -> bool {
    let keys = command.keys();
    keys > KEYS_MAX || (keys > 1 && command.payload_bytes() > BYTES_MAX)
}

/// What tells how long the answer to a forwarded request may be, and whom to tell.
pub(super) struct Foreknowledge<'a> {
    pub(super) board: &'a Switchboard,
    pub(super) machine: &'a Master,
}

/// What is sent over one link. It ends with the link.
pub(super) struct Forwards {
    link: LinkId,
    outbox: Outbox,
    /// What is not encoded yet.
    queue: VecDeque<Forward>,
    /// For whom the other master knows that its streams ask; those of users without a name are not in it.
    users: BTreeMap<u64, StreamUser>,
}

impl Forwards {
    /// Nothing is sent over `link` yet.
    pub(super) fn new(link: LinkId, outbox: Outbox) -> Self {
        Forwards { link, outbox, queue: VecDeque::new(), users: BTreeMap::new() }
    }

    /// Sends a request of that user, after whatever is still being encoded.
    pub(super) fn request(&mut self, request: Request, user: StreamUser, known: &Foreknowledge<'_>) {
        self.introduce(request.stream, user);
        if !self.queue.is_empty() || is_long(&request.command) {
            self.queue.push_back(Forward::Request(request));
        } else {
            self.short(&request, known);
        }
    }

    /// Says something of what was forwarded, after whatever is still being encoded.
    pub(super) fn say(&mut self, said: Control) {
        if self.queue.is_empty() {
            send(&self.outbox, &Message::Control(said));
        } else {
            self.queue.push_back(Forward::Said(said));
        }
    }

    /// Says for whom a stream asks, if that is another one than before.
    fn introduce(&mut self, stream: u64, user: StreamUser) {
        if self.users.get(&stream).unwrap_or(&StreamUser::Anonymous) == &user {
            return;
        }
        match &user {
            StreamUser::Anonymous => self.users.remove(&stream),
            StreamUser::Named(_) | StreamUser::Program => self.users.insert(stream, user.clone()),
        };
        self.say(Control::StreamUser { stream, user });
    }

    /// Says that a stream is closed, after whatever is still being encoded.
    pub(super) fn close_stream(&mut self, stream: u64) {
        self.users.remove(&stream);
        self.say(Control::StreamClosed { stream });
    }

    /// Whether something is still to be encoded.
    pub(super) fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Goes on, as far as the turn has time for it.
    pub(super) fn go_on(&mut self, known: &Foreknowledge<'_>, left: &mut Allowance<'_>) {
        while !left.is_spent() {
            let Some(first) = self.queue.pop_front() else { break };
            let (frame, answer_bytes) = match first {
                Forward::Request(request) if is_long(&request.command) => {
                    match RequestFrame::begin(request) {
                        Ok(frame) => (frame, 0),
                        Err(request) => {
                            self.short(&request, known);
                            continue;
                        }
                    }
                }
                Forward::Request(request) => {
                    left.spend(1);
                    self.short(&request, known);
                    continue;
                }
                Forward::Part { frame, answer_bytes } => (frame, answer_bytes),
                Forward::Said(said) => {
                    left.spend(1);
                    send(&self.outbox, &Message::Control(said));
                    continue;
                }
            };
            left.spend(PART_KEYS / 4);
            self.part(frame, answer_bytes, known);
        }
    }

    /// Sends a request that is encoded in one go.
    fn short(&self, request: &Request, known: &Foreknowledge<'_>) {
        known.board.expect(self.link, written_bytes(known.machine, &request.command));
        self.outbox.append_pieces(|out| frame::encode_request(request, out));
    }

    /// Encodes a part of a request, and sends it if that was the last one.
    fn part(&mut self, mut frame: RequestFrame, mut answer_bytes: usize, known: &Foreknowledge<'_>) {
        let directory = known.machine.directory();
        let is_whole = frame.step(PART_KEYS, |key| {
            answer_bytes += directory.get(key).map_or(0, |entry| entry.place.bytes as usize);
        });
        if is_whole {
            // Of what is removed or counted no value comes back, but room for it does no harm.
            known.board.expect(self.link, answer_bytes);
            self.outbox.append_pieces(|out| out.append(&mut frame.finish()));
        } else {
            self.queue.push_front(Forward::Part { frame, answer_bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_protocol::ids::RequestId;

    #[test]
    fn a_stream_names_its_user_whenever_that_is_another_one() {
        let mut forwards = Forwards::new(LinkId(1), Outbox::default());
        // While something is being encoded, the rest stays in the queue.
        forwards.queue.push_back(Forward::Said(Control::Alive));
        let (anna, nobody) = (StreamUser::Named("anna".to_owned()), StreamUser::Anonymous);
        for (stream, user) in [(1, &nobody), (1, &anna), (1, &anna), (2, &anna), (1, &nobody), (1, &nobody)] {
            forwards.introduce(stream, user.clone());
        }
        forwards.close_stream(2);
        forwards.introduce(2, anna);
        let said = |forward: &Forward| match forward {
            Forward::Said(Control::StreamUser { stream, user: StreamUser::Named(name) }) => {
                format!("{stream} is {name}")
            }
            Forward::Said(Control::StreamUser { stream, .. }) => format!("{stream} is nobody"),
            Forward::Said(Control::StreamClosed { stream }) => format!("{stream} is closed"),
            Forward::Said(_) | Forward::Request(_) | Forward::Part { .. } => "-".to_owned(),
        };
        let said: Vec<String> = forwards.queue.iter().map(said).collect();
        assert_eq!(said, ["-", "1 is anna", "2 is anna", "1 is nobody", "2 is closed", "2 is anna"]);
    }

    #[test]
    fn the_sign_that_nothing_more_is_forwarded_does_not_overtake_a_request_that_is_still_being_encoded() {
        let outbox = Outbox::default();
        let mut forwards = Forwards::new(LinkId(1), outbox.clone());
        forwards.say(Control::Alive);
        let sign = outbox.len();
        assert!(sign > 0);
        let command = Command::Delete { keys: vec!["k".into(); KEYS_MAX + 1] };
        let request = Request { id: RequestId(1), stream: 1, generation: 0, command };
        forwards.queue.push_back(Forward::Request(request));
        forwards.say(Control::Alive);
        assert_eq!(outbox.len(), sign, "it is sent first, and a master that ends after it loses the request");
        assert!(matches!(forwards.queue.back(), Some(Forward::Said(Control::Alive))));
    }
}
