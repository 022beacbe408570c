//! The RESP protocol, as pure code: the requests and answers of Redis clients.
//!
//! Bytes become requests ([`Parser`]), a request is answered at once or becomes a [`Command`](crate::command::Command)
//! ([`Conversation`]), and the store's reply becomes bytes again ([`encode_reply`]). Wording and shapes follow Redis
//! 7.0; `tests/resp.rs` checks them byte by byte.
//!
//! Nothing here does IO, keeps time or queues: the caller owns the socket, and the order of answers.
//!
//! See <https://redis.io/docs/latest/develop/reference/protocol-spec/> and `docs/FORMATS.md`.

mod acl;
mod command;
mod conversation;
mod encode;
mod parse;
mod queue;
pub mod sentinel;

pub use acl::{NewPassword, UserListing};
pub(crate) use conversation::{answer_in_script, say_unfit};
pub use conversation::{Conversation, Handling, ServerFacts, CLIENT_ATTRIBUTE_MAX};
pub use encode::{encode_entry, encode_reply, encode_values, AnswerPart, Shape};
pub use parse::{Parsed, Parser, ProtocolError, STRANGER_ARGS_MAX, STRANGER_BULK_MAX};

use crate::record::payload_bytes_max;
use bytes::Bytes;
use smallvec::SmallVec;

/// The version of Redis that clients are told, beside our own: that of which they may expect what they know how to use. What is
/// missing of it is refused with an error.
pub const REDIS_VERSION: &str = "7.4.0";

/// One request: the command's name and its arguments, at least one entry.
///
/// The entries of an array of bulk strings are slices of one allocation, the request's bytes. They keep it
/// alive.
pub type Args = SmallVec<[Bytes; 4]>;

/// The version of RESP that a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Used until `HELLO 3`.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// What one connection may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest value, in bytes.
    pub value_max: usize,
    /// The longest key, in bytes.
    pub key_max: usize,
    /// The most bulk strings in one request.
    pub args_max: usize,
    /// The longest request, in bytes with its framing. At most 4 GiB - 1; a larger limit counts as that.
    pub request_bytes_max: usize,
    /// The longest inline request, and the longest line that holds a length, in bytes without the line's end.
    pub inline_max: usize,
}

impl Limits {
    /// The limits that come with values of up to `value_max` bytes.
    pub fn for_values(value_max: usize) -> Limits {
        let value_max = value_max.min(u32::MAX as usize / 4);
        Limits {
            value_max,
            key_max: crate::command::KEY_MAX,
            args_max: 1024 * 1024,
            request_bytes_max: payload_bytes_max(value_max),
            inline_max: 64 * 1024,
        }
    }

    /// The longest bulk string that is read. A value up to the longest key's length is read whole even if `value_max`
    /// is lower, so that the connection need not be closed with the error.
    pub fn bulk_max(&self) -> usize {
        self.value_max.max(self.key_max)
    }
}
