//! The wire: the bytes of a [`Message`]. The only module that uses bincode.
//!
//! A link begins with the [`PREFACE`] of the side that connected. Then frames follow in both directions:
//!
//! ```text
//! offset  bytes  content
//! 0       4      length of the body, little endian
//! 4       4      CRC-32C of kind and body, little endian
//! 8       1      kind
//! 9       ..     body
//! ```
//!
//! The messages of the request path are coded by hand, because a busy master spends its time on them. All others are of one
//! kind, coded by serde and bincode with a size limit. The byte tables are in `docs/FORMATS.md`. A library's codec would
//! copy each value once more, and could not take frames in parts.

use crate::checksum;
use crate::command::{
    Command, ErrorWord, KeyList, Replies, Reply, ReplyError, Transaction, KEYS_MAX, TRANSACTION_COMMANDS_MAX,
    TRANSACTION_KEYS_MAX,
};
use crate::ids::{ClusterId, Epoch, ReignId, RequestId, Seq, Stamp, Version};
use crate::message::{Message, Request};
use crate::pieces::{put_checksum, Pieces, Sink};
use bytes::{Buf as _, Bytes, BytesMut};
use thiserror::Error;

/// The first bytes of a native link: a byte that no text protocol begins with, a name, and the version of the
/// wire as a little-endian `u16`.
pub const PREFACE: [u8; 6] = [0xd5, b'D', b'S', b'M', WIRE_VERSION as u8, (WIRE_VERSION >> 8) as u8];

/// The version of the wire that this code speaks.
pub const WIRE_VERSION: u16 = 2;

/// Bytes of a frame before its body.
pub const HEADER_BYTES: usize = 9;

/// The longest body before the handshake is done, in bytes.
pub const HANDSHAKE_BODY_MAX: usize = 4096;

/// Above this length a buffer is grown by doubling.
const GROW_BYTES_MIN: usize = 16 * 1024;

/// The longest body of a frame that carries `value_max` bytes of values.
pub fn body_max(value_max: usize) -> usize {
    value_max + crate::command::KEY_MAX + 1024
}

const KIND_CONTROL: u8 = 1;
const KIND_GET: u8 = 16;
const KIND_PUT: u8 = 17;
const KIND_COMMAND: u8 = 18;
const KIND_TRANSACTION: u8 = 19;
const KIND_DONE: u8 = 24;
const KIND_FOUND: u8 = 25;
const KIND_NOT_FOUND: u8 = 26;
const KIND_REPLY: u8 = 27;
const KIND_REPLY_ERROR: u8 = 28;
const KIND_REPLIES: u8 = 29;
const KIND_WRITE: u8 = 32;
const KIND_READ: u8 = 33;
const KIND_ACK: u8 = 34;
const KIND_VALUE: u8 = 35;
const KIND_MISSING: u8 = 36;
const KIND_DROP: u8 = 37;
const KIND_PING: u8 = 38;
const KIND_TRIAL: u8 = 39;
const KIND_MEMBER: u8 = 40;

/// The limit of bincode for one body, in bytes. The caller bounds the body itself, and bincode cannot read beyond it;
/// this limit only stops lengths that are wrong by orders of magnitude.
const CONTROL_BYTES_MAX: usize = 8 << 30;

/// Why bytes are not a frame. Each of them ends the link, because the next frame border is unknown.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The stream does not begin with [`PREFACE`]'s name.
    #[error("not a native link: the preface does not match")]
    NotNative,
    /// The other side speaks another version of the wire.
    #[error(
        "wire version {theirs} is not supported, this side speaks {WIRE_VERSION}: all masters, slaves and native clients of a cluster must be of one version"
    )]
    WireVersion {
        /// The version in the preface.
        theirs: u16,
    },
    /// The body is longer than allowed.
    #[error("a frame of {length} bytes is over the limit of {max}")]
    TooLong {
        /// Bytes of the body.
        length: usize,
        /// The longest payload that is read here, in bytes.
        max: usize,
    },
    /// The checksum does not match.
    #[error("a frame's checksum does not match")]
    Checksum,
    /// No message has this kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The body ends too early, has bytes left over, or holds a number that means nothing.
    #[error("a frame of kind {0} is malformed")]
    Malformed(u8),
}

/// Checks the first bytes of a link. `Ok(false)` while there are too few to tell.
///
/// # Errors
/// `NotNative` and `WireVersion`.
pub fn check_preface(bytes: &[u8]) -> Result<bool, FrameError> {
    let known = bytes.len().min(4);
    if bytes[..known] != PREFACE[..known] {
        return Err(FrameError::NotNative);
    }
    if bytes.len() < PREFACE.len() {
        return Ok(false);
    }
    let theirs = u16::from_le_bytes([bytes[4], bytes[5]]);
    if theirs != WIRE_VERSION {
        return Err(FrameError::WireVersion { theirs });
    }
    Ok(true)
}

/// Takes the next whole frame off the front of `buffer`; `None` when it is not whole yet. The length is checked before
/// the body has arrived, so `buffer` never needs to grow beyond `body_max` and a header.
///
/// # Errors
/// `TooLong`, `Checksum`, `Kind` and `Malformed`.
pub fn decode(buffer: &mut BytesMut, body_max: usize) -> Result<Option<Message>, FrameError> {
    let mut summed = Summed::default();
    let decoded = decode_on(buffer, body_max, &mut summed);
    let lacking = missing(buffer);
    // The buffer grows with the bytes that arrive, not with the announced length: to announce a length costs the sender
    // nothing.
    if decoded == Ok(None) && lacking > 0 && buffer.len() >= GROW_BYTES_MIN {
        buffer.reserve(lacking.min(buffer.len()));
    }
    decoded
}

/// The checksum of the part of a frame that has arrived.
#[derive(Clone, Copy, Debug, Default)]
struct Summed {
    /// How many bytes of kind and body are in it.
    bytes: usize,
    checksum: u32,
}

/// The same as [`decode`] with a running checksum: each call adds the bytes that have arrived.
fn decode_on(
    buffer: &mut BytesMut,
    body_max: usize,
    summed: &mut Summed,
) -> Result<Option<Message>, FrameError> {
    if buffer.len() < HEADER_BYTES {
        return Ok(None);
    }
    let length = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
    if length > body_max {
        return Err(FrameError::TooLong { length, max: body_max });
    }
    let whole = HEADER_BYTES + length;
    let arrived = buffer.len().min(whole);
    summed.checksum = crc32c::crc32c_append(summed.checksum, &buffer[8 + summed.bytes..arrived]);
    summed.bytes = arrived - 8;
    if arrived < whole {
        return Ok(None);
    }
    let checksum = u32::from_le_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]);
    if std::mem::take(summed).checksum != checksum {
        return Err(FrameError::Checksum);
    }
    let kind = buffer[8];
    let mut body = buffer.split_to(whole).freeze();
    body.advance(HEADER_BYTES);
    decode_body(kind, body).map(Some)
}

/// A frame of a link, taken or skipped.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole message.
    Message(Message),
    /// A frame that is longer than this side takes. It is skipped: it concerns one request, not the link.
    TooLong {
        /// What the frame is about.
        about: About,
        /// Bytes of its body.
        length: usize,
    },
}

/// What a skipped frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A request with this id.
    Request(RequestId),
    /// The response to the request with this id.
    Response(RequestId),
    /// The value that was asked for under this tag.
    Value(u64),
}

/// Takes frames off a link that carries the requests of many clients: a frame that is too long ends only its own request.
/// The checksum of a long frame is computed as its bytes arrive, so that its last byte causes no long step.
#[derive(Debug, Default)]
pub struct Unframer {
    /// How many bytes of a skipped frame are still to come.
    skip: usize,
    summed: Summed,
}

impl Unframer {
    /// Takes the next whole frame off the front of `buffer`, on a link of one client: a frame that is too long ends the link
    /// as soon as its header has arrived. `None` when more bytes are needed. Between two calls the caller may only append to
    /// `buffer`.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn next_of_one(
        &mut self,
        buffer: &mut BytesMut,
        body_max: usize,
    ) -> Result<Option<Message>, FrameError> {
        decode_on(buffer, body_max, &mut self.summed)
    }

    /// Takes the next whole frame off the front of `buffer`, or skips it; `None` when more bytes are needed. Between two
    /// calls the caller may only append to `buffer`.
    ///
    /// # Errors
    /// As [`decode`]; `TooLong` only where a frame names no request.
    pub fn next(&mut self, buffer: &mut BytesMut, body_max: usize) -> Result<Option<Incoming>, FrameError> {
        let skipped = self.skip.min(buffer.len());
        buffer.advance(skipped);
        self.skip -= skipped;
        if self.skip > 0 {
            return Ok(None);
        }
        match decode_on(buffer, body_max, &mut self.summed) {
            Err(FrameError::TooLong { length, max }) => {
                let about: fn(u64) -> About = match buffer[8] {
                    KIND_GET | KIND_PUT | KIND_COMMAND | KIND_TRANSACTION => {
                        |id| About::Request(RequestId(id))
                    }
                    KIND_FOUND | KIND_REPLY | KIND_REPLY_ERROR | KIND_REPLIES => {
                        |id| About::Response(RequestId(id))
                    }
                    KIND_VALUE => About::Value,
                    _ => return Err(FrameError::TooLong { length, max }),
                };
                let Some(number) = buffer.get(HEADER_BYTES..).and_then(|body| body.first_chunk::<8>()) else {
                    return Ok(None);
                };
                let about = about(u64::from_le_bytes(*number));
                let here = buffer.len().min(HEADER_BYTES + length);
                buffer.advance(here);
                self.skip = HEADER_BYTES + length - here;
                Ok(Some(Incoming::TooLong { about, length }))
            }
            decoded => Ok(decoded?.map(Incoming::Message)),
        }
    }
}

/// How many bytes the first frame in `buffer` lacks; 0 when it lacks none, or when its length has not arrived.
pub fn missing(buffer: &[u8]) -> usize {
    match buffer.first_chunk::<4>() {
        Some(length) => (HEADER_BYTES + u32::from_le_bytes(*length) as usize).saturating_sub(buffer.len()),
        None => 0,
    }
}

#[expect(clippy::too_many_lines, reason = "one arm for each kind of frame, each short")]
fn decode_body(kind: u8, body: Bytes) -> Result<Message, FrameError> {
    let mut reader = Reader { kind, body };
    let message = match kind {
        KIND_CONTROL => Message::Control(from_bincode(kind, reader.rest())?),
        KIND_GET => Message::Request(Request {
            id: RequestId(reader.u64()?),
            stream: reader.u64()?,
            generation: reader.u32()?,
            command: Command::Get { key: reader.rest() },
        }),
        KIND_PUT => Message::Request(Request {
            id: RequestId(reader.u64()?),
            stream: reader.u64()?,
            generation: reader.u32()?,
            command: Command::Put { key: reader.sized()?, value: reader.rest() },
        }),
        KIND_COMMAND => Message::Request(Request {
            id: RequestId(reader.u64()?),
            stream: reader.u64()?,
            generation: reader.u32()?,
            command: match reader.body.first().and_then(|number| Command::empty_list(*number)) {
                Some(list) => reader.listed(list)?,
                None => from_bincode(kind, reader.rest())?,
            },
        }),
        KIND_TRANSACTION => Message::Request(Request {
            id: RequestId(reader.u64()?),
            stream: reader.u64()?,
            generation: reader.u32()?,
            command: Command::Transact { transaction: Box::new(reader.transaction()?) },
        }),
        KIND_DONE => Message::Response { id: RequestId(reader.u64()?), reply: Reply::Done },
        KIND_FOUND => Message::Response { id: RequestId(reader.u64()?), reply: Reply::Value(reader.rest()) },
        KIND_NOT_FOUND => Message::Response { id: RequestId(reader.u64()?), reply: Reply::NotFound },
        KIND_REPLY => {
            let id = RequestId(reader.u64()?);
            let reply = match reader.body.first() {
                Some(&VARIANT_VALUES) => reader.values()?,
                Some(_) | None => from_bincode(kind, reader.rest())?,
            };
            Message::Response { id, reply }
        }
        KIND_REPLIES => {
            let id = RequestId(reader.u64()?);
            let mut replies = Vec::new();
            for _ in 0..reader.entries(TRANSACTION_COMMANDS_MAX)? {
                replies.push(from_bincode(kind, reader.sized()?)?);
            }
            Message::Response { id, reply: Reply::Many(Replies(replies)) }
        }
        KIND_REPLY_ERROR => {
            let id = RequestId(reader.u64()?);
            let word = reader.u8()?;
            let word = *ErrorWord::ALL.get(usize::from(word)).ok_or(FrameError::Malformed(kind))?;
            let detail = String::from_utf8_lossy(&reader.rest()).into_owned();
            Message::Response { id, reply: Reply::Error(ReplyError { word, detail }) }
        }
        KIND_WRITE => {
            let Stamp { version, reign } = reader.stamp()?;
            Message::Write { version, reign, key: reader.sized()?, value: reader.rest() }
        }
        KIND_READ => {
            let tag = reader.u64()?;
            let Stamp { version, reign } = reader.stamp()?;
            Message::Read { tag, version, reign, key: reader.rest() }
        }
        KIND_ACK => Message::Ack { through: reader.u64()?, room_bytes: reader.u64()? },
        KIND_VALUE => {
            let tag = reader.u64()?;
            let Stamp { version, reign } = reader.stamp()?;
            Message::Value { tag, version, reign, value: reader.rest() }
        }
        KIND_MISSING => {
            let tag = reader.u64()?;
            let held = match reader.u8()? {
                0 => None,
                1 => Some(reader.version()?),
                _ => return Err(FrameError::Malformed(kind)),
            };
            Message::Missing { tag, held }
        }
        KIND_DROP => {
            let Stamp { version, reign } = reader.stamp()?;
            Message::Drop { version, reign, key: reader.rest() }
        }
        KIND_PING => Message::Ping,
        KIND_TRIAL => Message::Trial { bytes: reader.rest() },
        KIND_MEMBER => {
            Message::Member { cluster: ClusterId(reader.u64()?), member: reader.u64()?, body: reader.rest() }
        }
        other => return Err(FrameError::Kind(other)),
    };
    if reader.body.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Malformed(kind))
    }
}

/// Appends `message` as one frame.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Request(request) => encode_request(request, out),
        Message::Response { id, reply } => encode_response(*id, reply, out),
        Message::Write { version, reign, key, value } => {
            encode_write(Stamp { version: *version, reign: *reign }, key, value, out);
        }
        Message::Ping => framed(KIND_PING, out, |_| {}),
        Message::Trial { bytes } => framed(KIND_TRIAL, out, |out| out.extend_from_slice(bytes)),
        Message::Member { cluster, member, body } => encode_member(*cluster, *member, body, out),
        Message::Ack { through, room_bytes } => framed(KIND_ACK, out, |out| {
            put_u64(out, *through);
            put_u64(out, *room_bytes);
        }),
        Message::Read { tag, version, reign, key } => {
            encode_read(*tag, Stamp { version: *version, reign: *reign }, key, out);
        }
        Message::Value { tag, version, reign, value } => {
            encode_value(*tag, Stamp { version: *version, reign: *reign }, value, None, out);
        }
        Message::Missing { tag, held } => framed(KIND_MISSING, out, |out| {
            put_u64(out, *tag);
            match held {
                None => out.push(0),
                Some(version) => {
                    out.push(1);
                    put_version(out, *version);
                }
            }
        }),
        Message::Drop { version, reign, key } => framed(KIND_DROP, out, |out| {
            put_stamp(out, Stamp { version: *version, reign: *reign });
            out.extend_from_slice(key);
        }),
        Message::Control(control) => framed(KIND_CONTROL, out, |out| to_bincode(control, out)),
    }
}

/// Appends what a member says as one frame.
pub fn encode_member(cluster: ClusterId, member: u64, body: &Bytes, out: &mut impl Sink) {
    let head = |out: &mut Vec<u8>| {
        put_u64(out, cluster.0);
        put_u64(out, member);
    };
    framed_value(KIND_MEMBER, out, head, body);
}

/// Appends a request as one frame.
pub fn encode_request(request: &Request, out: &mut impl Sink) {
    let head = |out: &mut Vec<u8>| {
        put_u64(out, request.id.0);
        put_u64(out, request.stream);
        out.extend_from_slice(&request.generation.to_le_bytes());
    };
    // The most frequent commands have kinds of their own.
    if let Command::Get { key } = &request.command {
        framed(KIND_GET, out.tail(), |out| {
            head(out);
            out.extend_from_slice(key);
        });
    } else if let Command::Put { key, value } = &request.command {
        let head = |out: &mut Vec<u8>| {
            head(out);
            put_sized(out, key);
        };
        framed_value(KIND_PUT, out, head, value);
    } else if let Command::Transact { transaction } = &request.command {
        framed(KIND_TRANSACTION, out.tail(), |out| {
            head(out);
            put_transaction(out, transaction);
        });
    } else {
        framed(KIND_COMMAND, out.tail(), |out| {
            head(out);
            to_bincode(&request.command, out);
        });
    }
}

/// Appends a response as one frame.
pub fn encode_response(id: RequestId, reply: &Reply, out: &mut impl Sink) {
    match reply {
        Reply::Done => framed(KIND_DONE, out.tail(), |out| put_u64(out, id.0)),
        Reply::Value(value) => framed_value(KIND_FOUND, out, |out| put_u64(out, id.0), value),
        Reply::NotFound => framed(KIND_NOT_FOUND, out.tail(), |out| put_u64(out, id.0)),
        Reply::Error(error) => framed(KIND_REPLY_ERROR, out.tail(), |out| {
            put_u64(out, id.0);
            let place = ErrorWord::ALL.iter().position(|word| *word == error.word);
            out.push(place.expect("ALL holds every word") as u8);
            out.extend_from_slice(error.detail.as_bytes());
        }),
        Reply::Many(Replies(replies)) => framed(KIND_REPLIES, out.tail(), |out| {
            put_u64(out, id.0);
            put_count(out, replies.len());
            replies.iter().for_each(|reply| put_bincode(out, reply));
        }),
        other @ (Reply::Values(_)
        | Reply::Count(_)
        | Reply::Integer(_)
        | Reply::Text(_)
        | Reply::Page { .. }
        | Reply::Versions(_)
        | Reply::Encoded(_)) => {
            framed(KIND_REPLY, out.tail(), |out| {
                put_u64(out, id.0);
                to_bincode(other, out);
            });
        }
    }
}

/// A frame whose body is encoded part by part and whose checksum is computed when it leaves, so that no step is long.
#[derive(Debug)]
struct LongFrame {
    kind: u8,
    body: Pieces,
}

impl LongFrame {
    fn new(kind: u8) -> Self {
        LongFrame { kind, body: Pieces::default() }
    }

    fn tail(&mut self) -> &mut Vec<u8> {
        self.body.tail()
    }

    /// Appends the length of bytes and the bytes, as bincode encodes them.
    fn counted(&mut self, bytes: &Bytes) {
        put_varint(self.body.tail(), bytes.len());
        self.body.value(bytes);
    }

    fn finish(self) -> Pieces {
        let length = u32::try_from(self.body.len()).expect("limits keep a body below 4 GiB");
        let mut head = Vec::with_capacity(HEADER_BYTES);
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&[0, 0, 0, 0, self.kind]);
        self.body.headed(head, 4, crc32c::crc32c(&[self.kind]))
    }
}

/// The answer to a read of many keys as one frame, encoded value by value, so that no step is long.
#[derive(Debug)]
pub struct ValuesFrame(LongFrame);

impl ValuesFrame {
    /// Begins the answer to the request `id`, with so many values.
    pub fn begin(id: RequestId, values: usize) -> Self {
        let mut frame = LongFrame::new(KIND_REPLY);
        put_u64(frame.tail(), id.0);
        frame.tail().push(VARIANT_VALUES);
        put_varint(frame.tail(), values);
        ValuesFrame(frame)
    }

    /// Appends the value of the next key.
    pub fn push(&mut self, value: Option<&Bytes>) {
        self.0.tail().push(u8::from(value.is_some()));
        if let Some(value) = value {
            self.0.counted(value);
        }
    }

    /// The frame, once all values are there.
    pub fn finish(self) -> Pieces {
        self.0.finish()
    }
}

/// A request of many keys as one frame, encoded key by key, so that no step is long.
#[derive(Debug)]
pub struct RequestFrame {
    frame: LongFrame,
    entries: Entries,
}

/// The part of a request that is not encoded yet.
#[derive(Debug)]
enum Entries {
    Keys(std::vec::IntoIter<Bytes>),
    Pairs(std::vec::IntoIter<(Bytes, Bytes)>),
}

impl RequestFrame {
    /// Begins the frame of a request.
    ///
    /// # Errors
    /// Gives the request back when it is not one of many keys: encode it at once, with [`encode_request`].
    pub fn begin(request: Request) -> Result<Self, Request> {
        let Request { id, stream, generation, command } = request;
        let (number, list) =
            command.into_list().map_err(|command| Request { id, stream, generation, command })?;
        let entries = match list {
            KeyList::Keys(keys) => Entries::Keys(keys.into_iter()),
            KeyList::Pairs(pairs) => Entries::Pairs(pairs.into_iter()),
        };
        let mut frame = LongFrame::new(KIND_COMMAND);
        let tail = frame.tail();
        put_u64(tail, id.0);
        put_u64(tail, stream);
        tail.extend_from_slice(&generation.to_le_bytes());
        tail.push(number);
        put_varint(
            tail,
            match &entries {
                Entries::Keys(keys) => keys.len(),
                Entries::Pairs(pairs) => pairs.len(),
            },
        );
        Ok(RequestFrame { frame, entries })
    }

    /// Encodes up to `keys` more keys, and passes those that are read or removed to `show`. Returns whether all keys
    /// are encoded.
    pub fn step(&mut self, keys: usize, mut show: impl FnMut(&Bytes)) -> bool {
        match &mut self.entries {
            Entries::Keys(left) => {
                for key in left.by_ref().take(keys) {
                    show(&key);
                    self.frame.counted(&key);
                }
                left.len() == 0
            }
            Entries::Pairs(left) => {
                for (key, value) in left.by_ref().take(keys) {
                    self.frame.counted(&key);
                    self.frame.counted(&value);
                }
                left.len() == 0
            }
        }
    }

    /// The frame, once all keys are there.
    pub fn finish(self) -> Pieces {
        self.frame.finish()
    }
}

/// Appends a [`Message::Write`] as one frame, without the message.
pub fn encode_write(stamp: Stamp, key: &[u8], value: &Bytes, out: &mut impl Sink) {
    let head = |out: &mut Vec<u8>| {
        put_stamp(out, stamp);
        put_sized(out, key);
    };
    framed_value(KIND_WRITE, out, head, value);
}

/// Appends a [`Message::Read`] as one frame, without the message.
pub fn encode_read(tag: u64, stamp: Stamp, key: &[u8], out: &mut Vec<u8>) {
    framed(KIND_READ, out, |out| {
        put_u64(out, tag);
        put_stamp(out, stamp);
        out.extend_from_slice(key);
    });
}

/// Appends a [`Message::Value`] as one frame, without the message. With the `checksum` of the value, its bytes need not be gone
/// through.
pub fn encode_value(tag: u64, stamp: Stamp, value: &Bytes, checksum: Option<u32>, out: &mut impl Sink) {
    let head = |out: &mut Vec<u8>| {
        put_u64(out, tag);
        put_stamp(out, stamp);
    };
    // The tail that is asked for next may be another one, where this one is full.
    let tail = out.tail();
    let (at, of_head) = framed_head(KIND_VALUE, tail, head, value);
    match checksum {
        Some(checksum) => {
            put_checksum(tail, at, checksum::joined(of_head, checksum, value.len()));
            out.value(value);
        }
        None => out.summed_value(at, of_head, value),
    }
}

/// Writes header, body and, once the body is there, its length and checksum.
fn framed(kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, kind]);
    body(out);
    let length = u32::try_from(out.len() - start - HEADER_BYTES).expect("limits keep a body below 4 GiB");
    let checksum = crc32c::crc32c(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// The same for a body that ends in a value, which need not be copied for it.
fn framed_value(kind: u8, out: &mut impl Sink, head: impl FnOnce(&mut Vec<u8>), value: &Bytes) {
    let (at, checksum) = framed_head(kind, out.tail(), head, value);
    out.summed_value(at, checksum, value);
}

/// Writes all of such a frame that comes before the value, but for the checksum: where that goes, and what it is so far.
fn framed_head(kind: u8, tail: &mut Vec<u8>, head: impl FnOnce(&mut Vec<u8>), value: &Bytes) -> (usize, u32) {
    let start = tail.len();
    tail.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, kind]);
    head(tail);
    let length = tail.len() - start - HEADER_BYTES + value.len();
    let length = u32::try_from(length).expect("limits keep a body below 4 GiB");
    let checksum = crc32c::crc32c(&tail[start + 8..]);
    tail[start..start + 4].copy_from_slice(&length.to_le_bytes());
    (start + 4, checksum)
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_version(out: &mut Vec<u8>, version: Version) {
    put_u64(out, version.epoch.0);
    put_u64(out, version.seq.0);
}

fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    put_version(out, stamp.version);
    put_u64(out, stamp.reign.0);
}

/// The number of entries that follow.
fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("limits keep the number of entries small");
    out.extend_from_slice(&count.to_le_bytes());
}

/// The bytes of bincode, after their length.
fn put_bincode<T: serde::Serialize>(out: &mut Vec<u8>, value: &T) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    to_bincode(value, out);
    let length = u32::try_from(out.len() - start - 4).expect("limits keep a body below 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_transaction(out: &mut Vec<u8>, transaction: &Transaction) {
    put_count(out, transaction.watched.len());
    for (key, version) in &transaction.watched {
        put_sized(out, key);
        out.push(u8::from(version.is_some()));
        if let Some(version) = version {
            put_version(out, *version);
        }
    }
    put_count(out, transaction.commands.len());
    transaction.commands.iter().for_each(|command| put_bincode(out, command));
}

fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("limits keep a key below 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The numbers by which bincode encodes these variants: their places in their enums. It encodes a length as one byte
/// below 251, or as 251, 252 or 253 and two, four or eight bytes. A message with tens of thousands of values is coded by
/// hand, so that no value is copied and no step is long. A test requires the same bytes as bincode's.
const VARIANT_VALUES: u8 = 3;

fn put_varint(out: &mut Vec<u8>, number: usize) {
    match number as u64 {
        number @ 0..=250 => out.push(number as u8),
        number @ 251..=0xffff => {
            out.push(251);
            out.extend_from_slice(&(number as u16).to_le_bytes());
        }
        number @ 0x1_0000..=0xffff_ffff => {
            out.push(252);
            out.extend_from_slice(&(number as u32).to_le_bytes());
        }
        number => {
            out.push(253);
            put_u64(out, number);
        }
    }
}

fn to_bincode<T: serde::Serialize>(value: &T, out: &mut Vec<u8>) {
    let bytes = bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("plain data without maps or floats always encodes");
    out.extend_from_slice(&bytes);
}

fn from_bincode<T: serde::de::DeserializeOwned>(kind: u8, body: Bytes) -> Result<T, FrameError> {
    let config = bincode::config::standard().with_limit::<CONTROL_BYTES_MAX>();
    match bincode::serde::decode_from_slice(&body, config) {
        Ok((value, read)) if read == body.len() => Ok(value),
        Ok(_) | Err(_) => Err(FrameError::Malformed(kind)),
    }
}

/// Reads the parts of a body from its front.
struct Reader {
    kind: u8,
    body: Bytes,
}

impl Reader {
    fn need(&self, bytes: usize) -> Result<(), FrameError> {
        if self.body.len() < bytes {
            Err(FrameError::Malformed(self.kind))
        } else {
            Ok(())
        }
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.need(1)?;
        Ok(self.body.get_u8())
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.need(4)?;
        Ok(self.body.get_u32_le())
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.need(8)?;
        Ok(self.body.get_u64_le())
    }

    fn version(&mut self) -> Result<Version, FrameError> {
        Ok(Version { epoch: Epoch(self.u64()?), seq: Seq(self.u64()?) })
    }

    fn stamp(&mut self) -> Result<Stamp, FrameError> {
        Ok(Stamp { version: self.version()?, reign: ReignId(self.u64()?) })
    }

    fn varint(&mut self) -> Result<usize, FrameError> {
        let number = match self.u8()? {
            number @ 0..=250 => u64::from(number),
            251 => {
                self.need(2)?;
                u64::from(self.body.get_u16_le())
            }
            252 => u64::from(self.u32()?),
            253 => self.u64()?,
            254.. => return Err(FrameError::Malformed(self.kind)),
        };
        usize::try_from(number).map_err(|_| FrameError::Malformed(self.kind))
    }

    /// Bytes after their length, as bincode encodes them.
    fn counted(&mut self) -> Result<Bytes, FrameError> {
        let length = self.varint()?;
        self.need(length)?;
        Ok(self.body.split_to(length))
    }

    /// How many entries follow, each of at least a byte.
    fn count(&mut self) -> Result<usize, FrameError> {
        let count = self.varint()?;
        self.need(count)?;
        Ok(count)
    }

    /// [`Reply::Values`].
    fn values(&mut self) -> Result<Reply, FrameError> {
        self.u8()?;
        let count = self.count()?;
        let mut values = Vec::with_capacity(count.min(KEYS_MAX));
        for _ in 0..count {
            values.push(match self.u8()? {
                0 => None,
                1 => Some(self.counted()?),
                _ => return Err(FrameError::Malformed(self.kind)),
            });
        }
        Ok(Reply::Values(values))
    }

    /// Reads the elements of a command that consists only of a list into `list`, which is empty and of the right kind.
    fn listed(&mut self, mut list: KeyList) -> Result<Command, FrameError> {
        let number = self.u8()?;
        let count = self.count()?;
        if count > KEYS_MAX {
            return Err(FrameError::Malformed(self.kind));
        }
        match &mut list {
            KeyList::Keys(keys) => {
                keys.reserve_exact(count);
                for _ in 0..count {
                    keys.push(self.counted()?);
                }
            }
            KeyList::Pairs(pairs) => {
                pairs.reserve_exact(count);
                for _ in 0..count {
                    pairs.push((self.counted()?, self.counted()?));
                }
            }
        }
        Command::from_list(number, list).ok_or(FrameError::Malformed(self.kind))
    }

    /// How many entries follow: at most so many, each of at least a byte.
    fn entries(&mut self, max: usize) -> Result<usize, FrameError> {
        let count = self.u32()? as usize;
        self.need(count)?;
        if count > max {
            return Err(FrameError::Malformed(self.kind));
        }
        Ok(count)
    }

    /// What nests is refused where it is read: there is no [`Transaction`] for serde.
    fn transaction(&mut self) -> Result<Transaction, FrameError> {
        let (mut transaction, mut keys) = (Transaction::default(), 0);
        for _ in 0..self.entries(TRANSACTION_KEYS_MAX)? {
            let key = self.sized()?;
            let version = match self.u8()? {
                0 => None,
                1 => Some(self.version()?),
                _ => return Err(FrameError::Malformed(self.kind)),
            };
            transaction.watched.push((key, version));
        }
        for _ in 0..self.entries(TRANSACTION_COMMANDS_MAX)? {
            let command = self.sized()?;
            let command: Command = from_bincode(self.kind, command)?;
            keys += command.keys();
            // An empty key is one byte here, and many more in memory.
            if keys > TRANSACTION_KEYS_MAX {
                return Err(FrameError::Malformed(self.kind));
            }
            transaction.commands.push(command);
        }
        Ok(transaction)
    }

    fn sized(&mut self) -> Result<Bytes, FrameError> {
        let length = self.u32()? as usize;
        self.need(length)?;
        Ok(self.body.split_to(length))
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.body)
    }
}
