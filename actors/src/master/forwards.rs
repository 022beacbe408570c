//! Requests on their way to the other master: one may name tens of thousands of keys and is encoded in parts.
//!
//! Owns what has not reached the link's outbox, and keeps its order: a session's later request never overtakes an earlier one
//! that takes longer to encode. Never decides what is forwarded: the front does.

use super::{send, Allowance, MasterActor, PeerOutbound};
use dsm_protocol::command::Command;
use dsm_protocol::frame::{self, RequestFrame};
use dsm_protocol::message::{Control, Message, Request};

/// A request of more keys, or of more bytes in several, is encoded in parts.
const KEYS_MAX: usize = 256;
const BYTES_MAX: usize = 256 * 1024;

/// So many keys are encoded in a part.
const PART_KEYS: usize = 256;

/// What waits to be encoded, in its order.
pub(super) enum Forward {
    /// A request.
    Request(Request),
    /// One that is being encoded, and how long the values are that it asks for as far as that is known, in bytes.
    Part { frame: RequestFrame, answer_bytes: usize },
    /// A session that is closed.
    StreamClosed { stream: u64 },
}

/// Whether a request is to be encoded in parts.
fn is_long(command: &Command) -> bool {
    let keys = command.keys();
    keys > KEYS_MAX || (keys > 1 && command.payload_bytes() > BYTES_MAX)
}

impl MasterActor {
    /// Sends something to the other master, behind whatever is still being encoded.
    pub(super) fn forward(&mut self, forward: Forward) {
        let Some(dialed) = &mut self.dialed else { return };
        let is_first = dialed.forwards.is_empty();
        match forward {
            Forward::Request(request) if is_first && !is_long(&request.command) => {
                self.forward_short(&request)
            }
            Forward::StreamClosed { stream } if is_first => {
                send(&dialed.outbox, &Message::Control(Control::StreamClosed { stream }));
            }
            later @ (Forward::Request(_) | Forward::Part { .. } | Forward::StreamClosed { .. }) => {
                dialed.forwards.push_back(later);
            }
        }
    }

    fn forward_short(&self, request: &Request) {
        let Some(dialed) = &self.dialed else { return };
        self.expect_answer(dialed, super::written_bytes(&self.machine, &request.command));
        dialed.outbox.append_pieces(|out| frame::encode_request(request, out));
    }

    /// An answer may be longer than a value that is taken now: `--max-value` was once higher, then.
    fn expect_answer(&self, dialed: &PeerOutbound, answer_bytes: usize) {
        if answer_bytes > self.config.value_max() {
            self.switchboard.expect(dialed.generation, answer_bytes);
        }
    }

    /// Whether something is still to be encoded.
    pub(super) fn has_forwards(&self) -> bool {
        self.dialed.as_ref().is_some_and(|dialed| !dialed.forwards.is_empty())
    }

    /// Goes on with what is to be sent to the other master, as far as the turn has time for it.
    pub(super) fn forward_on(&mut self, left: &mut Allowance<'_>) {
        while !left.is_spent() {
            let first = self.dialed.as_mut().and_then(|dialed| dialed.forwards.pop_front());
            let Some(first) = first else { return };
            let rest = match first {
                Forward::Request(request) if is_long(&request.command) => {
                    match RequestFrame::begin(request) {
                        Ok(frame) => self.forward_part(frame, 0, left),
                        Err(request) => {
                            self.forward_short(&request);
                            None
                        }
                    }
                }
                Forward::Request(request) => {
                    left.spend(1);
                    self.forward_short(&request);
                    None
                }
                Forward::Part { frame, answer_bytes } => self.forward_part(frame, answer_bytes, left),
                Forward::StreamClosed { stream } => {
                    left.spend(1);
                    if let Some(dialed) = &self.dialed {
                        send(&dialed.outbox, &Message::Control(Control::StreamClosed { stream }));
                    }
                    None
                }
            };
            if let (Some(rest), Some(dialed)) = (rest, &mut self.dialed) {
                dialed.forwards.push_front(rest);
            }
        }
    }

    /// Encodes a part of a request, and sends it if that was the last one; gives what is left of it.
    fn forward_part(
        &self,
        mut frame: RequestFrame,
        mut answer_bytes: usize,
        left: &mut Allowance<'_>,
    ) -> Option<Forward> {
        let directory = self.machine.directory();
        let is_whole = frame.step(PART_KEYS, |key| {
            answer_bytes += directory.get(key).map_or(0, |entry| entry.place.bytes as usize);
        });
        left.spend(PART_KEYS / 4);
        if !is_whole {
            return Some(Forward::Part { frame, answer_bytes });
        }
        if let Some(dialed) = &self.dialed {
            // Of what is removed or counted no value comes back, but room for it does no harm.
            self.expect_answer(dialed, answer_bytes);
            dialed.outbox.append_pieces(|out| out.append(&mut frame.finish()));
        }
        None
    }
}
