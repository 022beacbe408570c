//! Encodes answers in both versions of RESP. Owns their form on the wire, never their content.
//!
//! ```text
//!                RESP2                 RESP3
//! OK             +OK                   +OK
//! a value        $3 foo                $3 foo
//! no value       $-1                   _
//! a count        :2                    :2
//! values         *2 $3 foo $-1         *2 $3 foo _
//! a map          *2 $1 k $1 v          %1 $1 k $1 v
//! a set          *1 $1 a               ~1 $1 a
//! some keys      *2 $1 7 *1 $3 foo     *2 $1 7 *1 $3 foo
//! a text         $5 a:1                =9 txt:a:1
//! an error       -ERR why              -ERR why
//! ```

use super::Protocol;
use crate::command::{Excerpt, Reply};
use crate::info::Sections;
use crate::integer::parse_integer;
use crate::pieces::Sink;
use bytes::Bytes;
use std::sync::Arc;

/// How the reply to a command is encoded. Only the form of texts depends on the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `Done` is `OK`, a value a bulk string, `NotFound` null, values an array, a count an integer.
    Plain,
    /// A text is the answer to `INFO`: these sections of it, verbatim in RESP3.
    Info(Sections),
    /// Only this of it is shown.
    Excerpt(Excerpt),
    /// The answers to the commands of a transaction, each in its own shape.
    Parts(Arc<[AnswerPart]>),
}

/// How the answer to one command of a transaction is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPart {
    /// The store has answered it.
    Asked(Shape),
    /// The connection has.
    Said(Vec<u8>),
}

/// Appends the store's reply to a command that came with `shape`.
pub fn encode_reply(protocol: Protocol, shape: &Shape, reply: &Reply, out: &mut impl Sink) {
    match (shape, reply) {
        (Shape::Excerpt(Excerpt::Range { .. }), Reply::NotFound) => bulk(out.tail(), b""),
        (Shape::Excerpt(Excerpt::Range { first, last }), Reply::Value(value)) => {
            stored(out, &cut(value, *first, *last));
        }
        // A key that it watched has changed.
        (Shape::Parts(_), Reply::NotFound) => null_array(protocol, out.tail()),
        (Shape::Parts(parts), Reply::Many(replies)) => {
            array(out.tail(), parts.len());
            let mut replies = replies.0.iter();
            for part in &**parts {
                match part {
                    AnswerPart::Said(said) => out.tail().extend_from_slice(said),
                    AnswerPart::Asked(shape) => match replies.next() {
                        Some(reply) => encode_reply(protocol, shape, reply, out),
                        // Nothing else stands for it.
                        None => error(out.tail(), "ERR the answer is missing"),
                    },
                }
            }
        }
        (Shape::Excerpt(Excerpt::Type), Reply::Count(count)) => {
            status(out.tail(), if *count > 0 { "string" } else { "none" });
        }
        (Shape::Excerpt(Excerpt::WhetherDone), Reply::Done) => unsigned(out.tail(), 1),
        (Shape::Excerpt(Excerpt::WhetherDone), Reply::NotFound) => unsigned(out.tail(), 0),
        _ => encode_whole(protocol, shape, reply, out),
    }
}

fn encode_whole(protocol: Protocol, shape: &Shape, reply: &Reply, out: &mut impl Sink) {
    match reply {
        Reply::Done => status(out.tail(), "OK"),
        Reply::Value(value) => stored(out, value),
        Reply::NotFound => null(protocol, out.tail()),
        Reply::Values(values) => {
            encode_values(values.len(), out);
            values.iter().for_each(|value| encode_entry(protocol, value.as_ref(), out));
        }
        Reply::Count(count) => unsigned(out.tail(), *count),
        Reply::Integer(number) => integer(out.tail(), *number),
        Reply::Page { next, keys } => {
            array(out.tail(), 2);
            bulk(out.tail(), next.to_string().as_bytes());
            array(out.tail(), keys.len());
            keys.iter().for_each(|key| bulk(out.tail(), key));
        }
        Reply::Many(replies) => {
            array(out.tail(), replies.0.len());
            replies.0.iter().for_each(|reply| encode_reply(protocol, &Shape::Plain, reply, out));
        }
        // They are for the connection.
        Reply::Versions(_) => status(out.tail(), "OK"),
        Reply::Encoded(answer) => encoded(protocol, answer, out),
        Reply::Text(text) => match shape {
            Shape::Plain | Shape::Excerpt(_) | Shape::Parts(_) => bulk(out.tail(), text.as_bytes()),
            Shape::Info(sections) => verbatim(protocol, out.tail(), &sections.select(text)),
        },
        Reply::Error(reply) => {
            let space = if reply.detail.is_empty() { "" } else { " " };
            let parts = [reply.word.as_str().as_bytes(), space.as_bytes(), reply.detail.as_bytes()];
            error_parts(out.tail(), &parts);
        }
    }
}

/// An answer in RESP3, for whom that is too new in RESP2: each token by itself, whatever is in what.
fn encoded(protocol: Protocol, answer: &Bytes, out: &mut impl Sink) {
    let mut at = 0;
    while let Some(kind) = answer.get(at).copied() {
        let rest = &answer[at + 1..];
        let line = &rest[..memchr::memchr(b'\r', rest).unwrap_or(rest.len())];
        let head = (at + 1 + line.len() + 2).min(answer.len());
        let length = || parse_integer(line).and_then(|length| usize::try_from(length).ok());
        let body = if matches!(kind, b'$' | b'=') { length().unwrap_or_default() } else { 0 };
        let whole =
            if matches!(kind, b'$' | b'=') { head.saturating_add(body).saturating_add(2) } else { head };
        let whole = whole.min(answer.len());
        let text = answer.slice(head.min(whole)..whole.saturating_sub(2).max(head.min(whole)));
        match (protocol, kind) {
            (_, b'$') => stored(out, &text),
            (Protocol::Resp2, b'_') => null(protocol, out.tail()),
            (Protocol::Resp2, b'#') => unsigned(out.tail(), u64::from(line == b"t")),
            (Protocol::Resp2, b',' | b'(') => bulk(out.tail(), line),
            (Protocol::Resp2, b'~') => array(out.tail(), length().unwrap_or_default()),
            (Protocol::Resp2, b'%') => map(protocol, out.tail(), length().unwrap_or_default()),
            (Protocol::Resp2, b'=') => bulk(out.tail(), text.get(4..).unwrap_or_default()),
            _ => out.tail().extend_from_slice(&answer[at..whole]),
        }
        at = whole;
    }
}

/// The bytes of `value` from `first` through `last`, as Redis' GETRANGE counts them. They keep the whole value in memory only
/// if they are most of it.
fn cut(value: &Bytes, first: i64, last: i64) -> Bytes {
    if first < 0 && last < 0 && first > last {
        return Bytes::new();
    }
    let length = value.len() as i64;
    let from_start = |place: i64| if place < 0 { length.saturating_add(place).max(0) } else { place };
    let (first, end) = (from_start(first), from_start(last).min(length - 1) + 1);
    if first >= end {
        return Bytes::new();
    }
    let range = value.slice(first as usize..end as usize);
    if range.len() > value.len() / 2 {
        range
    } else {
        Bytes::copy_from_slice(&range)
    }
}

/// `*2`: the values of so many keys follow, each by [`encode_entry`].
pub fn encode_values(count: usize, out: &mut impl Sink) {
    array(out.tail(), count);
}

/// The value of one key among several.
pub fn encode_entry(protocol: Protocol, value: Option<&Bytes>, out: &mut impl Sink) {
    match value {
        Some(value) => stored(out, value),
        None => null(protocol, out.tail()),
    }
}

/// `$3 foo`, of a value.
fn stored(out: &mut impl Sink, value: &Bytes) {
    header(out.tail(), b'$', value.len() as u64);
    out.value(value);
    out.tail().extend_from_slice(b"\r\n");
}

/// `+OK`: a word of this program, without line ends.
pub(super) fn status(out: &mut Vec<u8>, word: &str) {
    out.push(b'+');
    out.extend_from_slice(word.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// `-ERR why`.
pub(super) fn error(out: &mut Vec<u8>, text: &str) {
    error_parts(out, &[text.as_bytes()]);
}

/// `-ERR why`, from parts that may hold a client's bytes: CR and LF become spaces, at the end nothing.
pub(super) fn error_parts(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.push(b'-');
    let start = out.len();
    for part in parts {
        out.extend_from_slice(part);
    }
    while out.len() > start && matches!(out.last(), Some(b'\r' | b'\n')) {
        out.pop();
    }
    for byte in &mut out[start..] {
        if matches!(byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// `$3 foo`.
pub(super) fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() + 16);
    header(out, b'$', bytes.len() as u64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// `*-1` or `_`: no array.
pub(super) fn null_array(protocol: Protocol, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Resp2 => out.extend_from_slice(b"*-1\r\n"),
        Protocol::Resp3 => null(protocol, out),
    }
}

/// `$-1` or `_`.
pub(super) fn null(protocol: Protocol, out: &mut Vec<u8>) {
    out.extend_from_slice(match protocol {
        Protocol::Resp2 => b"$-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// `:7`.
pub(super) fn unsigned(out: &mut Vec<u8>, number: u64) {
    header(out, b':', number);
}

/// `:-7`.
pub(super) fn integer(out: &mut Vec<u8>, number: i64) {
    if number < 0 {
        out.extend_from_slice(b":-");
        decimal(out, number.unsigned_abs());
        out.extend_from_slice(b"\r\n");
    } else {
        unsigned(out, number.unsigned_abs());
    }
}

/// `*2`: that many values follow.
pub(super) fn array(out: &mut Vec<u8>, length: usize) {
    header(out, b'*', length as u64);
}

/// `*4` or `%2`: that many pairs follow.
pub(super) fn map(protocol: Protocol, out: &mut Vec<u8>, pairs: usize) {
    match protocol {
        Protocol::Resp2 => header(out, b'*', 2 * pairs as u64),
        Protocol::Resp3 => header(out, b'%', pairs as u64),
    }
}

/// `*2` or `~2`: that many different values follow.
pub(super) fn set(protocol: Protocol, out: &mut Vec<u8>, length: usize) {
    header(out, if protocol == Protocol::Resp2 { b'*' } else { b'~' }, length as u64);
}

/// `$5 a:1` or `=9 txt:a:1`.
pub(super) fn verbatim(protocol: Protocol, out: &mut Vec<u8>, text: &str) {
    match protocol {
        Protocol::Resp2 => bulk(out, text.as_bytes()),
        Protocol::Resp3 => {
            header(out, b'=', text.len() as u64 + 4);
            out.extend_from_slice(b"txt:");
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

pub(super) fn header(out: &mut Vec<u8>, kind: u8, number: u64) {
    out.push(kind);
    decimal(out, number);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number without the standard formatting, which is slower: every answer holds a number.
fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
