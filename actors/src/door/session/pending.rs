//! The answers that a session owes: what was asked and is not answered, and what waits for an earlier answer.

use crate::batch::Outbox;
use crate::door::admission::RequestPermit;
use dsm_protocol::command::{Command, Reply};
use dsm_protocol::ids::{Millis, RequestId};
use dsm_protocol::pieces::Pieces;
use dsm_protocol::resp::{Protocol, Shape};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use tokio::sync::oneshot;

/// How the answer to a request is coded.
#[derive(Debug)]
pub(crate) enum Coding {
    /// For a Redis client.
    Resp(Protocol, Shape),
    /// For a native client or a forwarding master.
    Native(RequestId),
    /// For a caller in this process, which gets the reply itself. If the request is given up, its sender is dropped.
    Embedded(oneshot::Sender<Reply>),
}

/// An answer that is owed, or waits for an earlier one.
#[derive(Debug)]
pub(super) struct PendingAnswer {
    pub(super) coding: Coding,
    /// The user for whom it is, where there are users.
    pub(super) user: Option<Rc<str>>,
    /// Who is told the reply, too, beside the client.
    pub(super) heard: Option<oneshot::Sender<Reply>>,
    /// Whether it waits for no disk: when those in front of it are answered, it is about to be.
    pub(super) is_quick: bool,
    /// Held until the request is answered; `None` for a request that never reached the master.
    pub(super) permit: Option<RequestPermit>,
    /// Expected length of the answer, in bytes.
    pub(super) expected_bytes: usize,
    pub(super) state: AnswerState,
}

#[derive(Debug)]
pub(super) enum AnswerState {
    Asked,
    /// Answered, but an earlier request is not.
    Ready(Pieces),
    /// The same for an answer that the connection gives by itself.
    Said(Vec<u8>),
    Done,
}

#[derive(Debug, Default)]
pub(super) struct PendingAnswers {
    /// The tag of the next request.
    pub(super) next: u64,
    /// Requests of a Redis client, whose answers leave in the order of its requests. The last one has the tag before
    /// `next`.
    pub(super) queue: VecDeque<PendingAnswer>,
    /// Requests of all others: an answer leaves as soon as it is ready, and its entry goes with it.
    pub(super) unordered: HashMap<u64, PendingAnswer, foldhash::fast::FixedState>,
    /// Bytes of the requests that are not answered.
    pub(super) bytes: usize,
    pub(super) expected_bytes: usize,
    /// Bytes of the answers that wait for an earlier one.
    pub(super) ready_bytes: usize,
    /// The same for answers that the connection gives by itself. They may wait for a request that is put aside, so that
    /// request must not wait for them.
    pub(super) said_bytes: usize,
    /// Requests that are not executed before earlier answers have left.
    pub(super) parked: VecDeque<(u64, Command)>,
    /// Since when the first of them waits for the answers of others; `None` if it does not.
    pub(super) waits_in_all: Option<Millis>,
}

impl PendingAnswers {
    pub(super) fn open(&mut self, entry: PendingAnswer) -> u64 {
        let tag = self.next;
        self.next += 1;
        match entry.coding {
            Coding::Resp(..) => self.queue.push_back(entry),
            Coding::Native(_) | Coding::Embedded(_) => {
                self.unordered.insert(tag, entry);
            }
        }
        tag
    }

    /// Where in the queue the request `tag` stands, if it does.
    pub(super) fn index(&self, tag: u64) -> Option<usize> {
        let first = self.next - self.queue.len() as u64;
        usize::try_from(tag.checked_sub(first)?).ok().filter(|index| *index < self.queue.len())
    }

    /// Frees what an answered request has held, with its permit.
    pub(super) fn settle(&mut self, permit: Option<RequestPermit>, expected_bytes: usize, outbox: &Outbox) {
        self.bytes -= permit.map_or(0, |permit| permit.bytes());
        self.expected_bytes -= expected_bytes;
        outbox.release(expected_bytes);
    }

    /// Requests that take memory, those included whose answers wait for an earlier one.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.unordered.len()
    }
}
