//! What members say to each other, as bytes: the body of a frame.
//!
//! Owns the byte table below. Coded by hand: the engine's own codec is protobuf 2, whose parser can be made to recurse until the
//! stack ends (RUSTSEC-2024-0437), so it never sees bytes from a network. Of the engine's messages only those have a kind here
//! that a member may hear from another one. So a proposal, a read or a transfer that is forwarded does not even have a form.
//!
//! ```text
//! offset  bytes  content, numbers little endian
//! 0       1      kind
//! 1       1      flags: 1 rejected, 2 campaign of a transfer
//! 2       8      to
//! 10      8      from
//! 18      8      term
//! 26      8      term of the entry at the index
//! 34      8      index
//! 42      8      commit; of who answers, as far as its vote file knows
//! 50      8      term of the entry at commit
//! 58      8      hint of a rejection
//! 66      1      length of the context, at most 32
//! 67      ..     context: which reads a heartbeat confirms
//! ..      ..     entries, to the end: each term (8), length of the data (4), data
//! ```
//!
//! An entry whose words are a record of the members is a change of them to the engine, which is never sent in the engine's form.
//!
//! The first entry's index is the message's plus one, and each further one's is one more. Data are slices of what was read. What
//! is decoded takes memory in proportion to the bytes that are there, never to a length that they name.

pub mod join;
pub mod stream;

use crate::ids::MemberId;
use crate::members::Members;
use crate::storage::{entry_type, words};
use bytes::{Buf as _, Bytes};
use dsm_protocol::ids::{Epoch, Seq};
use raft::eraftpb::{Entry, Message, MessageType};
use thiserror::Error;

/// Bytes in front of the context.
const FIXED_BYTES: usize = 67;

/// Bytes of an entry in front of its data.
const ENTRY_BYTES: usize = 12;

/// The longest context, in bytes.
const CONTEXT_BYTES_MAX: usize = 32;

const FLAG_REJECT: u8 = 1;
const FLAG_TRANSFER: u8 = 2;

/// The engine's word for a campaign that a leader has asked for.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// The kinds that have a form, each with its number: the place in this list.
const KINDS: [MessageType; 9] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Why bytes are not a message. Each ends the link.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// They end too early.
    #[error("a message of a member ends too early")]
    TooShort,
    /// No message has this kind.
    #[error("unknown kind {0} of a member's message")]
    Kind(u8),
    /// Something in it means nothing.
    #[error("a member's message is malformed: {0}")]
    Malformed(&'static str),
}

/// A message from one member to another.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerMessage(pub(crate) Message);

impl PeerMessage {
    /// Who sends it.
    pub fn from(&self) -> Option<MemberId> {
        MemberId::new(self.0.from)
    }

    /// Whom it is for.
    pub fn to(&self) -> Option<MemberId> {
        MemberId::new(self.0.to)
    }

    /// The term of its sender, or the one that he wants to begin.
    pub fn term(&self) -> Epoch {
        Epoch(self.0.term)
    }

    /// The place in the log that it speaks of.
    pub fn index(&self) -> Seq {
        Seq(self.0.index)
    }

    /// What it is, in a word.
    pub fn word(&self) -> &'static str {
        match self.0.msg_type {
            MessageType::MsgAppend => "append",
            MessageType::MsgAppendResponse => "appended",
            MessageType::MsgRequestVote => "vote",
            MessageType::MsgRequestVoteResponse => "voted",
            MessageType::MsgHeartbeat => "heartbeat",
            MessageType::MsgHeartbeatResponse => "heard",
            MessageType::MsgTimeoutNow => "lead",
            MessageType::MsgRequestPreVote => "pre-vote",
            MessageType::MsgRequestPreVoteResponse => "pre-voted",
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgPropose
            | MessageType::MsgSnapshot
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
            | MessageType::MsgTransferLeader
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp => "local",
        }
    }

    /// Whether it says no to what it answers.
    pub fn rejects(&self) -> bool {
        self.0.reject
    }

    /// How many entries it carries.
    pub fn entries(&self) -> usize {
        self.0.entries.len()
    }

    /// Whether a member may hear a message of this kind from another one.
    pub(crate) fn is_for_peers(message: &Message) -> bool {
        KINDS.contains(&message.msg_type)
    }

    /// Appends its bytes.
    ///
    /// # Panics
    /// For a kind that has no form: the machine lets none out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let message = &self.0;
        assert!(Self::is_for_peers(message), "{:?} has no form", message.msg_type);
        let kind = KINDS.iter().position(|kind| *kind == message.msg_type);
        out.push(kind.expect("it is in the list") as u8);
        let is_transfer = message.context[..] == *CAMPAIGN_TRANSFER;
        let context = if is_transfer { &[][..] } else { &message.context[..] };
        assert!(context.len() <= CONTEXT_BYTES_MAX, "a context of {} bytes is too long", context.len());
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        out.push(flag(message.reject, FLAG_REJECT) | flag(is_transfer, FLAG_TRANSFER));
        for number in [
            message.to,
            message.from,
            message.term,
            message.log_term,
            message.index,
            message.commit,
            message.commit_term,
            message.reject_hint,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(context.len() as u8);
        out.extend_from_slice(context);
        for entry in message.entries.iter() {
            let words = words(entry);
            let length = u32::try_from(words.len()).expect("an entry is far below 4 GiB");
            out.extend_from_slice(&entry.term.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(words);
        }
    }

    /// Reads a whole body.
    ///
    /// # Errors
    /// [`WireError`], for whatever bytes.
    pub fn decode(mut body: Bytes) -> Result<Self, WireError> {
        if body.len() < FIXED_BYTES {
            return Err(WireError::TooShort);
        }
        let kind = body.get_u8();
        let flags = body.get_u8();
        let mut message = Message {
            msg_type: *KINDS.get(usize::from(kind)).ok_or(WireError::Kind(kind))?,
            reject: flags & FLAG_REJECT != 0,
            to: body.get_u64_le(),
            from: body.get_u64_le(),
            term: body.get_u64_le(),
            log_term: body.get_u64_le(),
            index: body.get_u64_le(),
            commit: body.get_u64_le(),
            commit_term: body.get_u64_le(),
            reject_hint: body.get_u64_le(),
            ..Message::default()
        };
        let context_bytes = usize::from(body.get_u8());
        if context_bytes > CONTEXT_BYTES_MAX {
            return Err(WireError::Malformed("its context is too long"));
        }
        if body.len() < context_bytes {
            return Err(WireError::TooShort);
        }
        message.context = body.split_to(context_bytes);
        let is_transfer = flags & FLAG_TRANSFER != 0;
        if flags & !(FLAG_REJECT | FLAG_TRANSFER) != 0 || (is_transfer && context_bytes > 0) {
            return Err(WireError::Malformed("its flags mean nothing"));
        }
        if message.context[..] == *CAMPAIGN_TRANSFER {
            return Err(WireError::Malformed("its context is a flag"));
        }
        if is_transfer {
            message.context = Bytes::from_static(CAMPAIGN_TRANSFER);
        }
        if message.to == 0 || message.from == 0 || message.term == 0 {
            return Err(WireError::Malformed("it has no sender, receiver or term"));
        }
        message.entries = entries(&message, body)?.into();
        Ok(PeerMessage(message))
    }
}

/// Reads the entries of an append.
fn entries(message: &Message, mut body: Bytes) -> Result<Vec<Entry>, WireError> {
    let mut entries = Vec::new();
    let (mut term, mut index) = (message.log_term, message.index);
    if !body.is_empty() && message.msg_type != MessageType::MsgAppend {
        return Err(WireError::Malformed("bytes are left over"));
    }
    while !body.is_empty() {
        if body.len() < ENTRY_BYTES {
            return Err(WireError::TooShort);
        }
        let entry_term = body.get_u64_le();
        let length = body.get_u32_le() as usize;
        if body.len() < length {
            return Err(WireError::TooShort);
        }
        index = index.checked_add(1).ok_or(WireError::Malformed("an index is too high"))?;
        if entry_term < term || entry_term > message.term || entry_term == 0 {
            return Err(WireError::Malformed("the terms of its entries fall, or exceed its own"));
        }
        term = entry_term;
        let data = body.split_to(length);
        if Members::is_record(&data) && Members::parse(&data).is_none() {
            return Err(WireError::Malformed("a record of the members makes no sense"));
        }
        entries.push(Entry { entry_type: entry_type(&data), term, index, data, ..Entry::default() });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
