//! Answers of many values, encoded in parts: one of them may hold 32 MiB in tens of thousands of values.
//!
//! Owns those that are not encoded to their end. Each turn does a part of the first of them at least, so that none waits
//! for short requests for ever. Never decides the order in which answers leave: their sessions do.

use super::agenda::{Allowance, STEP_BYTES};
use super::MasterActor;
use crate::door::session::Coding;
use bytes::Bytes;
use dsm_protocol::frame::ValuesFrame;
use dsm_protocol::machine::master::Asker;
use dsm_protocol::pieces::Pieces;
use dsm_protocol::resp::{self, Protocol};

/// An answer with more values, or more bytes of them, is encoded in parts.
const VALUES_MAX: usize = 256;
const BYTES_MAX: usize = 256 * 1024;

/// So many values are encoded in a part.
const PART_VALUES: usize = 256;

/// An answer that is being encoded.
pub(super) struct LongAnswer {
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

impl MasterActor {
    /// Begins an answer of many values.
    pub(super) fn begin_long_answer(&mut self, to: Asker, values: Vec<Option<Bytes>>) {
        let begin = |coding: &Coding| match coding {
            Coding::Resp(protocol, _) => {
                let mut out = Pieces::default();
                resp::encode_values(values.len(), &mut out);
                Some(Encoding::Resp(*protocol, out))
            }
            Coding::Native(id) => Some(Encoding::Native(ValuesFrame::begin(*id, values.len()))),
            Coding::Embedded(_) => None,
        };
        let begun = self.sessions.get(&to.session).and_then(|session| session.begin_answer(to.tag, begin));
        // Who asks in this process gets the values as they are.
        let Some(encoding) = begun.unwrap_or(Some(Encoding::Forgotten)) else {
            self.reply(to, &dsm_protocol::command::Reply::Values(values));
            return;
        };
        self.long_answers.push_back(LongAnswer { to, values: values.into_iter(), encoding });
    }

    /// Encodes a part of the first answer, whose turn comes again after the others.
    pub(super) fn encode_part(&mut self, left: &mut Allowance<'_>) {
        let Some(mut answer) = self.long_answers.pop_front() else { return };
        let (bytes, is_whole) = answer.part();
        left.spend(PART_VALUES / 4 + bytes / STEP_BYTES);
        if !is_whole {
            self.long_answers.push_back(answer);
            return;
        }
        let coded = match answer.encoding {
            Encoding::Resp(_, out) => out,
            Encoding::Native(frame) => frame.finish(),
            Encoding::Forgotten => return,
        };
        let Some(session) = self.sessions.get(&answer.to.session) else { return };
        session.answer_coded(answer.to.tag, coded);
    }
}
