//! Answers of many values, encoded in parts: one of them may hold 32 MiB in tens of thousands of values.
//!
//! Owns those that are not encoded to their end. Each turn does a part of the first of them at least, so that none waits
//! for short requests for ever. Never decides the order in which answers leave: their sessions do.

use super::agenda::{Allowance, STEP_BYTES};
use crate::door::session::{Coding, Session};
use bytes::Bytes;
use dsm_protocol::frame::ValuesFrame;
use dsm_protocol::machine::master::Asker;
use dsm_protocol::pieces::Pieces;
use dsm_protocol::resp::{self, Protocol};
use std::collections::VecDeque;

/// An answer with more values, or more bytes of them, is encoded in parts.
const VALUES_MAX: usize = 256;
const BYTES_MAX: usize = 256 * 1024;

/// So many values are encoded in a part.
const PART_VALUES: usize = 256;

/// An answer that is being encoded.
struct LongAnswer {
    to: Asker,
    values: std::vec::IntoIter<Option<Bytes>>,
    encoding: Encoding,
}

enum Encoding {
    Resp(Protocol, Pieces),
    Native(ValuesFrame),
    /// Nobody waits for it any more; to free it takes its time as well.
    Forgotten,
}

/// Whether an answer is to be encoded in parts.
pub(super) fn is_long(values: &[Option<Bytes>]) -> bool {
    let bytes = |values: &[Option<Bytes>]| values.iter().flatten().map(Bytes::len).sum::<usize>();
    values.len() > VALUES_MAX || bytes(values) > BYTES_MAX
}

impl LongAnswer {
    /// Encodes the next part; how many bytes that were, and whether nothing is left.
    fn part(&mut self) -> (usize, bool) {
        let mut bytes = 0;
        for _ in 0..PART_VALUES {
            if bytes > BYTES_MAX {
                break;
            }
            let Some(value) = self.values.next() else { break };
            let value = value.as_ref();
            bytes += value.map_or(0, Bytes::len);
            match &mut self.encoding {
                Encoding::Resp(protocol, out) => resp::encode_entry(*protocol, value, out),
                Encoding::Native(frame) => frame.push(value),
                Encoding::Forgotten => {}
            }
        }
        (bytes, self.values.len() == 0)
    }
}

/// The answers that are being encoded.
#[derive(Default)]
pub(super) struct LongAnswers(VecDeque<LongAnswer>);

impl LongAnswers {
    /// Begins an answer to a session, if that is still open. Who asks in this process gets the values as they are: then they
    /// are given back.
    pub(super) fn begin(
        &mut self,
        to: Asker,
        values: Vec<Option<Bytes>>,
        session: Option<&Session>,
    ) -> Option<Vec<Option<Bytes>>> {
        let begin = |coding: &Coding| match coding {
            Coding::Resp(protocol, _) => {
                let mut out = Pieces::default();
                resp::encode_values(values.len(), &mut out);
                Some(Encoding::Resp(*protocol, out))
            }
            Coding::Native(id) => Some(Encoding::Native(ValuesFrame::begin(*id, values.len()))),
            Coding::Embedded(_) => None,
        };
        let begun = session.and_then(|session| session.begin_answer(to.tag, begin));
        let Some(encoding) = begun.unwrap_or(Some(Encoding::Forgotten)) else { return Some(values) };
        self.0.push_back(LongAnswer { to, values: values.into_iter(), encoding });
        None
    }

    /// Encodes a part of the first answer, whose turn comes again after the others; gives the answer when it is whole.
    pub(super) fn encode_part(&mut self, left: &mut Allowance<'_>) -> Option<(Asker, Pieces)> {
        let mut answer = self.0.pop_front()?;
        let (bytes, is_whole) = answer.part();
        left.spend(PART_VALUES / 4 + bytes / STEP_BYTES);
        if !is_whole {
            self.0.push_back(answer);
            return None;
        }
        match answer.encoding {
            Encoding::Resp(_, out) => Some((answer.to, out)),
            Encoding::Native(frame) => Some((answer.to, frame.finish())),
            Encoding::Forgotten => None,
        }
    }

    /// Whether none is left.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
