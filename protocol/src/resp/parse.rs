//! Parses requests: `*2\r\n$3\r\nGET\r\n$1\r\nk\r\n`, or inline `GET k\r\n`. Owns the framing and its limits, never
//! what a request means.
//!
//! Written by hand: redis-protocol and similar crates copy values, and have neither Redis' error texts nor a limit per
//! argument.

use super::{Args, Limits};
use crate::integer::parse_integer;
use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memchr;
use smallvec::SmallVec;
use thiserror::Error;

/// Why bytes are not a request, in Redis' words. Each of these errors ends the connection, because the next request's
/// beginning is unknown. [`ProtocolError::encode`] writes the last answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// The number after `*` is not a number, or over [`Limits::args_max`].
    #[error("Protocol error: invalid multibulk length")]
    InvalidArrayLength,
    /// The number after `$` is not a number, is negative, or over [`Limits::bulk_max`].
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// The number after `*` is over [`STRANGER_ARGS_MAX`], of a client that must say who it is.
    #[error("Protocol error: unauthenticated multibulk length")]
    StrangerArrayLength,
    /// The number after `$` is over [`STRANGER_BULK_MAX`], of a client that must say who it is.
    #[error("Protocol error: unauthenticated bulk length")]
    StrangerBulkLength,
    /// An array's entry does not begin with `$`.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    ExpectedBulk(u8),
    /// The line after `*` does not end.
    #[error("Protocol error: too big mbulk count string")]
    ArrayLengthTooLong,
    /// The line after `$` does not end.
    #[error("Protocol error: too big bulk count string")]
    BulkLengthTooLong,
    /// An inline request is over [`Limits::inline_max`].
    #[error("Protocol error: too big inline request")]
    InlineTooLong,
    /// A quote of an inline request is not closed, or not followed by a space.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// The request is over [`Limits::request_bytes_max`].
    #[error("Protocol error: too big request")]
    RequestTooLong,
}

impl ProtocolError {
    /// Appends the error's answer: `-ERR Protocol error: ...`, on one line whatever the wrong byte is.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            // Not as text, which would turn a byte over 0x7f into two.
            ProtocolError::ExpectedBulk(byte) => super::encode::error_parts(
                out,
                &[b"ERR Protocol error: expected '$', got '", &[byte][..], b"'"],
            ),
            ProtocolError::InvalidArrayLength
            | ProtocolError::InvalidBulkLength
            | ProtocolError::StrangerArrayLength
            | ProtocolError::StrangerBulkLength
            | ProtocolError::ArrayLengthTooLong
            | ProtocolError::BulkLengthTooLong
            | ProtocolError::InlineTooLong
            | ProtocolError::UnbalancedQuotes
            | ProtocolError::RequestTooLong => super::encode::error(out, &format!("ERR {self}")),
        }
    }
}

/// The most words in a request of a client that must say who it is, as in Redis.
pub const STRANGER_ARGS_MAX: usize = 10;

/// The longest of them, in bytes.
pub const STRANGER_BULK_MAX: usize = 16 * 1024;

/// Parses requests from a growing buffer.
///
/// It remembers its place in an unfinished request, so every byte is looked at once, however small the pieces that
/// arrive. An unfinished request stays in the buffer in one piece, so that a trickle of short arguments cannot keep
/// many half-empty buffers alive.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    is_of_stranger: bool,
    /// Bytes at the buffer's front that are parsed and belong to the request in progress.
    cursor: usize,
    /// Bytes after the cursor that are known to hold no line end.
    scanned: usize,
    stage: Stage,
    /// The arguments found so far: where they begin and end in the buffer.
    spans: SmallVec<[(u32, u32); 4]>,
    /// A whole request whose arguments are being cut out.
    cutting: Option<Cutting>,
    failed: Option<ProtocolError>,
}

/// A whole request whose arguments are being cut out.
#[derive(Debug)]
struct Cutting {
    /// Its bytes, which are taken off the buffer.
    whole: Bytes,
    /// The arguments that are cut out so far.
    args: Args,
}

/// What a bounded step of a [`Parser`] gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole request.
    Request(Args),
    /// There is no whole request: more bytes are needed.
    NotWhole,
    /// Nothing yet: call again. No more bytes are needed.
    Unfinished,
}

/// What is expected at the cursor.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// A request.
    Start,
    /// The length of the first of `left` arguments.
    Length { left: usize },
    /// The content of the first of `left` arguments.
    Body { left: usize, length: usize },
}

impl Parser {
    /// Starts at the beginning of a request.
    pub fn new(limits: Limits) -> Self {
        // Spans are 32 bits wide.
        let limits = Limits { request_bytes_max: limits.request_bytes_max.min(u32::MAX as usize), ..limits };
        Parser {
            limits,
            is_of_stranger: false,
            cursor: 0,
            scanned: 0,
            stage: Stage::Start,
            spans: SmallVec::new(),
            cutting: None,
            failed: None,
        }
    }

    /// Whether the next request is one of a client that must say who it is.
    pub fn set_of_stranger(&mut self, is_of_stranger: bool) {
        self.is_of_stranger = is_of_stranger;
    }

    /// Takes the next whole request off the front of `buffer`; `None` when it is not whole yet. Empty lines
    /// and empty arrays are skipped.
    ///
    /// Between two calls the caller may only append to `buffer`.
    ///
    /// # Errors
    /// A [`ProtocolError`] as soon as the bytes show it (an argument that is too long when its length is
    /// read, not when it has arrived), and again at every later call.
    #[allow(
        clippy::should_implement_trait,
        reason = "no iterator: it takes the buffer each time, and may fail"
    )]
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Args>, ProtocolError> {
        loop {
            match self.next_within(buffer, usize::MAX)? {
                Parsed::Request(args) => return Ok(Some(args)),
                Parsed::NotWhole => return Ok(None),
                Parsed::Unfinished => {}
            }
        }
    }

    /// The same in a step of at most `words` arguments, and at least one: a request may have a million. The result does not
    /// depend on the steps.
    ///
    /// # Errors
    /// As [`Parser::next`].
    pub fn next_within(&mut self, buffer: &mut BytesMut, words: usize) -> Result<Parsed, ProtocolError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        assert!(self.cursor <= buffer.len(), "the buffer lost bytes of a request in progress");
        let mut left = words.max(1);
        let result = match self.cutting.take() {
            Some(cutting) => Ok(self.cut_on(cutting, &mut left)),
            None => self.advance(buffer, &mut left),
        };
        self.failed = result.as_ref().err().copied();
        result
    }

    /// How many bytes the request in progress lacks at least, when `buffered` have arrived. So the caller can make room
    /// for a long value in one step. 0 when it is not known.
    pub fn missing(&self, buffered: usize) -> usize {
        match self.stage {
            Stage::Body { length, .. } => (self.cursor + length + 2).saturating_sub(buffered),
            Stage::Start | Stage::Length { .. } => 0,
        }
    }

    fn advance(&mut self, buffer: &mut BytesMut, words: &mut usize) -> Result<Parsed, ProtocolError> {
        loop {
            match self.stage {
                Stage::Start => match buffer.first() {
                    None => return Ok(Parsed::NotWhole),
                    Some(b'*') => {
                        let Some(end) = self.line_end(buffer, ProtocolError::ArrayLengthTooLong)? else {
                            return Ok(Parsed::NotWhole);
                        };
                        let left = match parse_integer(&buffer[1..end]) {
                            Some(count) if count <= 0 => 0,
                            Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
                            None => return Err(ProtocolError::InvalidArrayLength),
                        };
                        if left > self.limits.args_max {
                            return Err(ProtocolError::InvalidArrayLength);
                        }
                        if self.is_of_stranger && left > STRANGER_ARGS_MAX {
                            return Err(ProtocolError::StrangerArrayLength);
                        }
                        self.pass(end + 2);
                        if left == 0 {
                            buffer.advance(self.cursor);
                            self.cursor = 0;
                        } else {
                            self.stage = Stage::Length { left };
                        }
                    }
                    Some(_) => match self.inline(buffer)? {
                        Inline::Request(args) => return Ok(Parsed::Request(args)),
                        Inline::Empty => {}
                        Inline::NotWhole => return Ok(Parsed::NotWhole),
                    },
                },
                Stage::Length { left } => {
                    if *words == 0 {
                        return Ok(Parsed::Unfinished);
                    }
                    let Some(end) = self.line_end(buffer, ProtocolError::BulkLengthTooLong)? else {
                        return Ok(Parsed::NotWhole);
                    };
                    if buffer[self.cursor] != b'$' {
                        return Err(ProtocolError::ExpectedBulk(buffer[self.cursor]));
                    }
                    let length = parse_integer(&buffer[self.cursor + 1..end])
                        .and_then(|length| usize::try_from(length).ok())
                        .filter(|&length| length <= self.limits.bulk_max())
                        .ok_or(ProtocolError::InvalidBulkLength)?;
                    if self.is_of_stranger && length > STRANGER_BULK_MAX {
                        return Err(ProtocolError::StrangerBulkLength);
                    }
                    self.pass(end + 2);
                    if self.cursor.saturating_add(length).saturating_add(2) > self.limits.request_bytes_max {
                        return Err(ProtocolError::RequestTooLong);
                    }
                    self.stage = Stage::Body { left, length };
                }
                Stage::Body { left, length } => {
                    // The two bytes in the place of CR LF are not checked, as in Redis.
                    if buffer.len() < self.cursor + length + 2 {
                        return Ok(Parsed::NotWhole);
                    }
                    self.spans.push((self.cursor as u32, (self.cursor + length) as u32));
                    *words = words.saturating_sub(1);
                    self.pass(self.cursor + length + 2);
                    if left == 1 {
                        return Ok(self.take(buffer, words));
                    }
                    self.stage = Stage::Length { left: left - 1 };
                }
            }
        }
    }

    /// Where the line that begins at the cursor ends with CR and another byte; `None` when it does not yet.
    fn line_end(
        &mut self,
        buffer: &BytesMut,
        too_long: ProtocolError,
    ) -> Result<Option<usize>, ProtocolError> {
        let from = self.cursor + self.scanned;
        let found = memchr(b'\r', &buffer[from..]).map(|at| from + at);
        self.scanned = found.unwrap_or(buffer.len()) - self.cursor;
        if self.scanned > self.limits.inline_max {
            return Err(too_long);
        }
        Ok(found.filter(|end| end + 1 < buffer.len()))
    }

    fn pass(&mut self, cursor: usize) {
        self.cursor = cursor;
        self.scanned = 0;
    }

    /// Takes the request that ends at the cursor.
    fn take(&mut self, buffer: &mut BytesMut, words: &mut usize) -> Parsed {
        let whole = buffer.split_to(self.cursor).freeze();
        self.cursor = 0;
        self.stage = Stage::Start;
        let args = Args::with_capacity(self.spans.len());
        // Found and cut in one step, as most are.
        *words = if self.spans.spilled() { *words } else { self.spans.len() };
        self.cut_on(Cutting { whole, args }, words)
    }

    /// Cuts out up to `words` arguments more.
    fn cut_on(&mut self, cutting: Cutting, words: &mut usize) -> Parsed {
        let Cutting { whole, mut args } = cutting;
        let next = args.len();
        let end = next.saturating_add(*words).min(self.spans.len());
        args.extend(
            self.spans[next..end].iter().map(|&(start, end)| whole.slice(start as usize..end as usize)),
        );
        *words -= end - next;
        if end < self.spans.len() {
            self.cutting = Some(Cutting { whole, args });
            return Parsed::Unfinished;
        }
        if self.spans.spilled() {
            self.spans = SmallVec::new();
        } else {
            self.spans.clear();
        }
        Parsed::Request(args)
    }

    fn inline(&mut self, buffer: &mut BytesMut) -> Result<Inline, ProtocolError> {
        let found = memchr(b'\n', &buffer[self.scanned..]).map(|at| self.scanned + at);
        self.scanned = found.unwrap_or(buffer.len());
        if self.scanned > self.limits.inline_max {
            return Err(ProtocolError::InlineTooLong);
        }
        let Some(end) = found else {
            return Ok(Inline::NotWhole);
        };
        self.scanned = 0;
        if buffer[..end].iter().all(|&byte| is_space(byte)) {
            buffer.advance(end + 1);
            return Ok(Inline::Empty);
        }
        let line = buffer.split_to(end + 1).freeze();
        split_line(&line.slice(..end)).map(Inline::Request)
    }
}

enum Inline {
    Request(Args),
    Empty,
    NotWhole,
}

/// Splits an inline request into its words. A word may hold double quotes, with the escapes `\n` `\r` `\t`
/// `\b` `\a` `\xHH` and `\` in front of any other byte, or single quotes, with the escape `\'`.
fn split_line(line: &Bytes) -> Result<Args, ProtocolError> {
    let mut args = Args::new();
    let mut at = 0;
    loop {
        at += line[at..].iter().take_while(|&&byte| is_space(byte)).count();
        if at == line.len() {
            return Ok(args);
        }
        let start = at;
        let plain = |byte: &&u8| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'"' | b'\'');
        at += line[at..].iter().take_while(plain).count();
        match line.get(at) {
            Some(b'"' | b'\'') => {
                let mut word = line[start..at].to_vec();
                at = unquote(line, at, &mut word)?;
                args.push(Bytes::from(word));
            }
            _ => args.push(line.slice(start..at)),
        }
    }
}

/// Appends the text between the quote at `at` and its closing quote, and gives where the word ends.
fn unquote(line: &[u8], at: usize, word: &mut Vec<u8>) -> Result<usize, ProtocolError> {
    let quote = line[at];
    let mut at = at + 1;
    loop {
        match *line.get(at..).unwrap_or_default() {
            [] => return Err(ProtocolError::UnbalancedQuotes),
            [byte, ..] if byte == quote => {
                return match line.get(at + 1) {
                    Some(&next) if !is_space(next) => Err(ProtocolError::UnbalancedQuotes),
                    _ => Ok(at + 1),
                };
            }
            [b'\\', b'\'', ..] if quote == b'\'' => {
                word.push(b'\'');
                at += 2;
            }
            [b'\\', b'x', high, low, ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.push(hex_digit(high) << 4 | hex_digit(low));
                at += 4;
            }
            [b'\\', escaped, ..] if quote == b'"' => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => other,
                });
                at += 2;
            }
            [byte, ..] => {
                word.push(byte);
                at += 1;
            }
        }
    }
}

fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        letter => letter.to_ascii_lowercase() - b'a' + 10,
    }
}

/// C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}
