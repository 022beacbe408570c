//! What members say to each other while one gets the other's file: the body of a frame.
//!
//! Owns the byte table below. The receiver asks for each chunk once it has written the one before, so that neither side holds more
//! than one, and whatever gets lost is asked for again.
//!
//! ```text
//! offset  bytes  content, numbers little endian
//! 0       1      kind: 64 offer, 65 ask, 66 chunk
//! 1       1      flags: 1 the last chunk
//! 2       8      to
//! 10      8      from
//! 18      8      cluster
//! 26      8      term of the leader
//! 34      8      base: its term
//! 42      8      base: its index
//! 50      8      offset in the file; in an offer, the index of the record of the members at the base
//! 58      ..     to the end: the bytes of a chunk; in an offer, the record of the members at the base
//! ```

use super::WireError;
use crate::ids::MemberId;
use crate::members::Members;
use bytes::{Buf as _, Bytes};
use dsm_protocol::ids::{ClusterId, Epoch, Version};

/// Bytes in front of a chunk's own.
const HEAD_BYTES: usize = 58;

const FLAG_LAST: u8 = 1;

/// What a message of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamWord {
    /// The leader has no entries any more that the receiver needs, but a file.
    Offer,
    /// The receiver wants the chunk at the offset.
    Ask,
    /// The chunk at the offset.
    Chunk,
}

impl StreamWord {
    const ALL: [StreamWord; 3] = [StreamWord::Offer, StreamWord::Ask, StreamWord::Chunk];

    fn kind(self) -> u8 {
        match self {
            StreamWord::Offer => 64,
            StreamWord::Ask => 65,
            StreamWord::Chunk => 66,
        }
    }
}

/// A message about the stream of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamMessage {
    /// What it is.
    pub word: StreamWord,
    /// Whom it is for.
    pub to: MemberId,
    /// Who sends it.
    pub from: MemberId,
    /// Whose log it is.
    pub cluster: ClusterId,
    /// The term of the leader whose file it is.
    pub term: Epoch,
    /// Through where the file has everything.
    pub base: Version,
    /// Where in the file the chunk begins; in an offer, the index of the record of the members.
    pub offset: u64,
    /// Whether the file ends after this chunk.
    pub is_last: bool,
    /// The bytes of the chunk, or the words of the record of the members; empty where the receiver asks.
    pub data: Bytes,
}

impl StreamMessage {
    /// Whether the body is of a message about a stream, judged by its kind. Any other is a [`super::PeerMessage`].
    pub fn is_one(body: &[u8]) -> bool {
        body.first().is_some_and(|kind| StreamWord::ALL.iter().any(|word| word.kind() == *kind))
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.word.kind());
        out.push(if self.is_last { FLAG_LAST } else { 0 });
        for number in [
            self.to.get(),
            self.from.get(),
            self.cluster.0,
            self.term.0,
            self.base.epoch.0,
            self.base.seq.0,
            self.offset,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.data);
    }

    /// Reads a whole body.
    ///
    /// # Errors
    /// [`WireError`], for whatever bytes.
    pub fn decode(mut body: Bytes) -> Result<Self, WireError> {
        if body.len() < HEAD_BYTES {
            return Err(WireError::TooShort);
        }
        let kind = body.get_u8();
        let word = StreamWord::ALL.into_iter().find(|word| word.kind() == kind);
        let word = word.ok_or(WireError::Kind(kind))?;
        let flags = body.get_u8();
        let ends = (MemberId::new(body.get_u64_le()), MemberId::new(body.get_u64_le()));
        let (Some(to), Some(from)) = ends else {
            return Err(WireError::Malformed("it has no sender or receiver"));
        };
        let message = StreamMessage {
            word,
            to,
            from,
            cluster: ClusterId(body.get_u64_le()),
            term: Epoch(body.get_u64_le()),
            base: Version::new(body.get_u64_le(), body.get_u64_le()),
            offset: body.get_u64_le(),
            is_last: flags & FLAG_LAST != 0,
            data: body,
        };
        let is_chunk = message.word == StreamWord::Chunk;
        let is_ask = message.word == StreamWord::Ask;
        if flags & !FLAG_LAST != 0 || (!is_chunk && flags != 0) || (is_ask && !message.data.is_empty()) {
            return Err(WireError::Malformed("bytes or flags are left over"));
        }
        if message.word == StreamWord::Offer && Members::parse(&message.data).is_none() {
            return Err(WireError::Malformed("a record of the members makes no sense"));
        }
        if message.base.seq.0 == 0 || message.base.epoch.0 == 0 || message.base.epoch > message.term {
            return Err(WireError::Malformed("its base is in no log"));
        }
        let end = message.offset.checked_add(message.data.len() as u64);
        end.ok_or(WireError::Malformed("its offset is too high"))?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(word: StreamWord) -> StreamMessage {
        let is_chunk = word == StreamWord::Chunk;
        StreamMessage {
            word,
            to: MemberId::new(2).unwrap(),
            from: MemberId::new(1).unwrap(),
            cluster: ClusterId(7),
            term: Epoch(9),
            base: Version::new(3, 40),
            offset: if word == StreamWord::Offer { 0 } else { 1 << 20 },
            is_last: is_chunk,
            data: Bytes::from_static(match word {
                StreamWord::Offer => b"MEMBERS next=2,prefer=1 1=voter@a:1~0000000000000001",
                StreamWord::Ask => b"",
                StreamWord::Chunk => b"lines",
            }),
        }
    }

    fn encoded(message: &StreamMessage) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    }

    #[test]
    fn each_comes_back_from_its_bytes_and_is_no_other_message() {
        for message in StreamWord::ALL.map(message) {
            let bytes = encoded(&message);
            assert!(StreamMessage::is_one(&bytes));
            assert!(crate::wire::PeerMessage::decode(bytes.clone().into()).is_err());
            assert_eq!(StreamMessage::decode(bytes.into()), Ok(message));
        }
        assert!(!StreamMessage::is_one(&[0; 100]));
        assert!(!StreamMessage::is_one(b""));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let chunk = || message(StreamWord::Chunk);
        let refused = |message: StreamMessage| {
            matches!(StreamMessage::decode(encoded(&message).into()), Err(WireError::Malformed(_)))
        };
        assert!(!refused(chunk()));
        assert!(refused(StreamMessage { base: Version::new(10, 40), ..chunk() }));
        assert!(refused(StreamMessage { base: Version::new(0, 40), ..chunk() }));
        assert!(refused(StreamMessage { base: Version::new(3, 0), ..chunk() }));
        assert!(refused(StreamMessage { offset: u64::MAX, ..chunk() }));
        assert!(refused(StreamMessage { word: StreamWord::Ask, ..chunk() }));
        let no_members = StreamMessage { data: Bytes::new(), ..message(StreamWord::Offer) };
        assert!(refused(no_members));
        let cut = encoded(&chunk())[..HEAD_BYTES - 1].to_vec();
        assert_eq!(StreamMessage::decode(cut.into()), Err(WireError::TooShort));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 60..70u8) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Some(flags) = bytes.get_mut(1) {
                *flags &= 3;
            }
            if let Ok(message) = StreamMessage::decode(bytes.clone().into()) {
                prop_assert_eq!(encoded(&message), bytes);
            }
        }
    }
}
