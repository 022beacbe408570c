//! Requests on their way to another master: one may name tens of thousands of keys and is encoded in parts.
//!
//! Owns what has not reached the link's outbox, and keeps its order: a session's later request never overtakes an earlier one
//! that takes longer to encode. Never decides what is forwarded: the front does.

use super::{send, Allowance, MasterActor, PeerOutbound};
use crate::door::switchboard::Switchboard;
use dsm_protocol::command::Command;
use dsm_protocol::frame::{self, RequestFrame};
use dsm_protocol::machine::master::Master;
use dsm_protocol::message::{Control, Message, Request};

/// A request of more keys, or of more bytes in several, is encoded in parts.
const KEYS_MAX: usize = 256;
const BYTES_MAX: usize = 256 * 1024;

/// So many keys are encoded in a part.
const PART_KEYS: usize = 256;

/// What waits to be encoded, in its order.
pub(super) enum Forward {
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
    /// Sends something to another master, after whatever is still being encoded for it: a request to the one that serves,
    /// the end of a session to all.
    pub(super) fn forward(&mut self, forward: Forward) {
        match forward {
            Forward::Request(request) => {
                let answer_bytes = super::written_bytes(&self.machine, &request.command);
                let Some(dialed) = self.dialed.forwarding_mut() else { return };
                if !dialed.forwards.is_empty() || is_long(&request.command) {
                    dialed.forwards.push_back(Forward::Request(request));
                    return;
                }
                expect_answer(&self.switchboard, self.config.value_max(), dialed, answer_bytes);
                dialed.outbox.append_pieces(|out| frame::encode_request(&request, out));
            }
            Forward::StreamClosed { stream } => {
                for dialed in self.dialed.iter_mut() {
                    if dialed.forwards.is_empty() {
                        send(&dialed.outbox, &Message::Control(Control::StreamClosed { stream }));
                    } else {
                        dialed.forwards.push_back(Forward::StreamClosed { stream });
                    }
                }
            }
            part @ Forward::Part { .. } => {
                if let Some(dialed) = self.dialed.forwarding_mut() {
                    dialed.forwards.push_back(part);
                }
            }
        }
    }

    /// Whether something is still to be encoded.
    pub(super) fn has_forwards(&self) -> bool {
        self.dialed.iter().any(|dialed| !dialed.forwards.is_empty())
    }

    /// Goes on with what is to be sent to other masters, as far as the turn has time for it.
    pub(super) fn forward_on(&mut self, left: &mut Allowance<'_>) {
        let (board, machine, value_max) = (&self.switchboard, &self.machine, self.config.value_max());
        for dialed in self.dialed.iter_mut() {
            while !left.is_spent() {
                let Some(first) = dialed.forwards.pop_front() else { break };
                let (frame, answer_bytes) = match first {
                    Forward::Request(request) if is_long(&request.command) => {
                        match RequestFrame::begin(request) {
                            Ok(frame) => (frame, 0),
                            Err(request) => {
                                forward_short((board, machine, value_max), dialed, &request);
                                continue;
                            }
                        }
                    }
                    Forward::Request(request) => {
                        left.spend(1);
                        forward_short((board, machine, value_max), dialed, &request);
                        continue;
                    }
                    Forward::Part { frame, answer_bytes } => (frame, answer_bytes),
                    Forward::StreamClosed { stream } => {
                        left.spend(1);
                        send(&dialed.outbox, &Message::Control(Control::StreamClosed { stream }));
                        continue;
                    }
                };
                left.spend(PART_KEYS / 4);
                match forward_part(machine, frame, answer_bytes) {
                    ForwardStep::Part(part) => dialed.forwards.push_front(part),
                    ForwardStep::Whole { frame, answer_bytes } => {
                        // Of what is removed or counted no value comes back, but room for it does no harm.
                        expect_answer(board, value_max, dialed, answer_bytes);
                        dialed.outbox.append_pieces(|out| out.append(&mut frame.finish()));
                    }
                }
            }
        }
    }
}

/// What is left of a request that was encoded on.
enum ForwardStep {
    Part(Forward),
    Whole { frame: RequestFrame, answer_bytes: usize },
}

/// Encodes a part of a request.
fn forward_part(machine: &Master, mut frame: RequestFrame, mut answer_bytes: usize) -> ForwardStep {
    let directory = machine.directory();
    let is_whole = frame.step(PART_KEYS, |key| {
        answer_bytes += directory.get(key).map_or(0, |entry| entry.place.bytes as usize);
    });
    if is_whole {
        ForwardStep::Whole { frame, answer_bytes }
    } else {
        ForwardStep::Part(Forward::Part { frame, answer_bytes })
    }
}

fn forward_short(
    (board, machine, value_max): (&Switchboard, &Master, usize),
    dialed: &PeerOutbound,
    request: &Request,
) {
    expect_answer(board, value_max, dialed, super::written_bytes(machine, &request.command));
    dialed.outbox.append_pieces(|out| frame::encode_request(request, out));
}

/// An answer may be longer than a value that is taken now: `--max-value` was once higher, then.
fn expect_answer(board: &Switchboard, value_max: usize, dialed: &PeerOutbound, answer_bytes: usize) {
    if answer_bytes > value_max {
        board.expect(dialed.generation, answer_bytes);
    }
}
