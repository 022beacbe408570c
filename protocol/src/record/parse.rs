//! Reads one line. Everything is checked here and nothing is copied: keys and values are decoded when asked for.

use super::{KeyEffect, Operation, Place, RecordError, ReignMark, Span, SyncMode};
use crate::ids::{ClusterId, Epoch, Reign, ReignId, Seq, UnixMillis};
use crate::planted;
use bytes::Bytes;
use std::borrow::Cow;

/// Bytes of the checksum and the space before it.
const CHECKSUM_BYTES: usize = 9;

/// A parsed line. It borrows from the line.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The record's seq; for SYNCED, that of the last record before it.
    pub seq: Seq,
    /// The reign that wrote it; 0 for a line of the original program.
    pub epoch: Epoch,
    /// The seq through which the log was known to be on disk.
    pub synced: Seq,
    /// In a compacted log: the seq of the previous record. `None` where the seq is simply the next one.
    pub after: Option<Seq>,
    /// When the values that a WRITE writes expire, if they do.
    pub expires: Option<UnixMillis>,
    /// What the line does.
    pub body: Body<'a>,
    /// The further fields of the trailer.
    pub fields: Fields<'a>,
}

impl Record<'_> {
    /// What the line does, decoded and copied.
    pub fn to_operation(&self) -> Operation {
        match self.body {
            Body::Cluster(id) => Operation::Cluster(id),
            Body::Epoch { address, mark } => Operation::Epoch {
                address: String::from_utf8_lossy(&address.decode()).into_owned(),
                mark: mark.fsync.map(|fsync| ReignMark {
                    id: mark.id,
                    fsync,
                    given_up: mark.given_up.collect(),
                }),
            },
            Body::Write(pairs) => {
                Operation::Write(pairs.map(|(key, value)| (key.to_bytes(), value.to_bytes())).collect())
            }
            Body::Delete(keys) => Operation::Delete(keys.map(|key| key.to_bytes()).collect()),
            Body::Members(text) => Operation::Members(String::from_utf8_lossy(text).into_owned()),
            Body::Apply(effects) => Operation::Apply(effects.map(EncodedEffect::to_effect).collect()),
            Body::Synced => Operation::Synced,
        }
    }
}

/// What a parsed line does.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Which cluster the log belongs to.
    Cluster(ClusterId),
    /// A reign begins with this line.
    Epoch {
        /// Where the new primary serves.
        address: Encoded<'a>,
        /// What identifies the reign.
        mark: EpochMark<'a>,
    },
    /// Writes keys, all or none.
    Write(Pairs<'a>),
    /// Deletes keys, all or none.
    Delete(Keys<'a>),
    /// Who keeps the log: the text after the word.
    Members(&'a [u8]),
    /// Writes and deletes keys, all or none.
    Apply(EncodedEffects<'a>),
    /// The log is on disk through the trailer's SYNCED.
    Synced,
}

/// What an EPOCH line says of its reign.
#[derive(Clone, Copy, Debug)]
pub struct EpochMark<'a> {
    /// Its identity. A line of the previous version has none, and its checksum is used instead.
    pub id: ReignId,
    /// When its records were synced; `None` in a line of the previous version.
    pub fsync: Option<SyncMode>,
    /// Reigns whose loss is accepted with this line.
    pub given_up: GivenUpReigns<'a>,
}

/// Reigns whose loss is accepted, in the order of the line.
#[derive(Clone, Copy, Debug, Default)]
pub struct GivenUpReigns<'a> {
    rest: &'a [u8],
}

impl Iterator for GivenUpReigns<'_> {
    type Item = Reign;

    fn next(&mut self) -> Option<Self::Item> {
        let end = memchr::memchr(b',', self.rest).unwrap_or(self.rest.len());
        let reign = parse_reign(&self.rest[..end])?;
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(reign)
    }
}

/// One key or value, encoded as in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded<'a> {
    text: &'a [u8],
    /// Bytes of the line before it.
    at: usize,
    /// A line of the original program: nothing is encoded.
    raw: bool,
}

impl<'a> Encoded<'a> {
    /// The decoded bytes. Borrows from the line unless something is percent-encoded.
    pub fn decode(self) -> Cow<'a, [u8]> {
        if self.raw {
            return Cow::Borrowed(self.text);
        }
        if self.text == b"%" {
            return Cow::Borrowed(&[]);
        }
        match memchr::memchr(b'%', self.text) {
            None => Cow::Borrowed(self.text),
            Some(first) => Cow::Owned(decode_escapes(self.text, first)),
        }
    }

    /// The length of the decoded bytes.
    pub fn decoded_bytes(self) -> usize {
        if self.raw {
            return self.text.len();
        }
        if self.text == b"%" {
            return 0;
        }
        self.text.len() - 2 * memchr::memchr_iter(b'%', self.text).count()
    }

    /// Its place in the log, as a value of a line at `span`.
    pub fn place(self, span: Span) -> Place {
        Place {
            file: span.file,
            offset: span.offset + self.at as u64,
            // A line is shorter than 4 GiB, as its span.
            text_bytes: self.text.len() as u32,
            text_crc: crc32c::crc32c(self.text),
            bytes: self.decoded_bytes() as u32,
        }
    }

    /// The decoded bytes, copied.
    pub fn to_bytes(self) -> Bytes {
        match self.decode() {
            Cow::Borrowed(text) => Bytes::copy_from_slice(text),
            Cow::Owned(text) => Bytes::from(text),
        }
    }

    /// Whether it decodes to `plain`.
    pub fn is(self, plain: &[u8]) -> bool {
        *self.decode() == *plain
    }

    /// The encoded text.
    pub fn as_text(self) -> &'a [u8] {
        self.text
    }
}

/// Decodes a text whose first escape is at `first`.
fn decode_escapes(text: &[u8], first: usize) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    decoded.extend_from_slice(&text[..first]);
    let mut rest = &text[first..];
    while let [b'%', high, low, behind @ ..] = rest {
        decoded.push(hex_value(*high) << 4 | hex_value(*low));
        let plain = memchr::memchr(b'%', behind).unwrap_or(behind.len());
        decoded.extend_from_slice(&behind[..plain]);
        rest = &behind[plain..];
    }
    decoded
}

/// Decodes the text of a value, without a copy where nothing is percent-encoded.
pub(super) fn decode_value(text: Vec<u8>, raw: bool) -> Bytes {
    if raw {
        return Bytes::from(text);
    }
    if text == b"%" {
        return Bytes::new();
    }
    match memchr::memchr(b'%', &text) {
        None => Bytes::from(text),
        Some(first) => Bytes::from(decode_escapes(&text, first)),
    }
}

/// The keys and values of a WRITE, in the order of the line.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
    /// Bytes of the line in front of the rest.
    at: usize,
    raw: bool,
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (Encoded<'a>, Encoded<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (key, rest) = cut_word(self.rest);
        let (value, rest) = if self.raw { (rest, &[][..]) } else { cut_word(rest) };
        let (key_at, value_at) = (self.at, self.at + key.len() + 1);
        self.rest = rest;
        self.at = value_at + value.len() + 1;
        let raw = self.raw;
        Some((Encoded { text: key, at: key_at, raw }, Encoded { text: value, at: value_at, raw }))
    }
}

/// The keys of a DELETE, in the order of the line.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a>(Pairs<'a>);

impl<'a> Iterator for Keys<'a> {
    type Item = Encoded<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, _)| key)
    }
}

/// What an APPLY does to one key, encoded as in the line.
#[derive(Clone, Copy, Debug)]
pub enum EncodedEffect<'a> {
    /// It gets a value.
    Set {
        /// Which key it is.
        key: Encoded<'a>,
        /// What it holds from then on.
        value: Encoded<'a>,
        /// When it expires, if it does.
        expires: Option<UnixMillis>,
    },
    /// It is deleted.
    Del {
        /// Which key it is.
        key: Encoded<'a>,
    },
}

impl<'a> EncodedEffect<'a> {
    /// Which key it is.
    pub fn key(self) -> Encoded<'a> {
        match self {
            EncodedEffect::Set { key, .. } | EncodedEffect::Del { key } => key,
        }
    }

    /// The value that the key gets, if it gets one.
    pub fn value(self) -> Option<Encoded<'a>> {
        match self {
            EncodedEffect::Set { value, .. } => Some(value),
            EncodedEffect::Del { .. } => None,
        }
    }

    /// The same, decoded and copied.
    fn to_effect(self) -> KeyEffect {
        match self {
            EncodedEffect::Set { key, value, expires } => {
                KeyEffect::Set { key: key.to_bytes(), value: value.to_bytes(), expires }
            }
            EncodedEffect::Del { key } => KeyEffect::Del { key: key.to_bytes() },
        }
    }
}

/// What an APPLY does, in the order of the line.
#[derive(Clone, Copy, Debug)]
pub struct EncodedEffects<'a> {
    rest: &'a [u8],
    /// Bytes of the line in front of the rest.
    at: usize,
}

impl<'a> EncodedEffects<'a> {
    /// The next one; `None` when the words are not one.
    fn cut(&mut self) -> Option<EncodedEffect<'a>> {
        let (kind, rest) = cut_word(self.rest);
        let (key, rest) = cut_word(rest);
        let (value, behind) = cut_word(rest);
        if !is_word(key) || !is_word(value) {
            return None;
        }
        let key_at = self.at + kind.len() + 1;
        let value_at = key_at + key.len() + 1;
        // After the last word there is no space.
        let is_last = value.len() == rest.len();
        self.rest = behind;
        self.at = value_at + value.len() + 1;
        if behind.is_empty() && !is_last {
            return None;
        }
        let encoded = |text, at| Encoded { text, at, raw: false };
        let set = |expires| {
            let (key, value) = (encoded(key, key_at), encoded(value, value_at));
            Some(EncodedEffect::Set { key, value, expires })
        };
        match kind {
            b"SET" => set(None),
            b"DEL" if value == b"%" => Some(EncodedEffect::Del { key: encoded(key, key_at) }),
            [b'S', b'E', b'T', b'@', time @ ..] => set(Some(UnixMillis(number_value(time)?))),
            _ => None,
        }
    }

    /// Whether all of the words are effects, one at least.
    fn are_whole(mut self) -> bool {
        loop {
            if self.cut().is_none() {
                return false;
            }
            if self.rest.is_empty() {
                return true;
            }
        }
    }
}

impl<'a> Iterator for EncodedEffects<'a> {
    type Item = EncodedEffect<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        self.cut()
    }
}

/// The further fields of a trailer, in the order of the line. Ignore unknown names: lines with a field that must be
/// understood are refused before this.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    rest: &'a [u8],
    /// Bytes of the line in front of the rest.
    at: usize,
}

impl<'a> Fields<'a> {
    /// The value of the first field with this name.
    pub fn get(mut self, name: &str) -> Option<Encoded<'a>> {
        self.find(|(candidate, _)| *candidate == name.as_bytes()).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], Encoded<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (field, rest) = cut_word(self.rest);
        let name_end = memchr::memchr(b'=', field).unwrap_or(field.len());
        let value = field.get(name_end + 1..).unwrap_or_default();
        let at = self.at + name_end + 1;
        self.rest = rest;
        self.at += field.len() + 1;
        Some((&field[..name_end], Encoded { text: value, at, raw: false }))
    }
}

/// A line whose checksum and numbers are right; its body and fields are not checked yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked<'a> {
    pub(super) body: &'a [u8],
    pub(super) fields: Option<&'a [u8]>,
    /// Bytes of the line in front of the fields.
    pub(super) fields_at: usize,
    pub(super) seq: Seq,
    pub(super) epoch: Epoch,
    pub(super) synced: Seq,
    pub(super) checksum: u32,
}

/// Checks the checksum and reads the numbers of a line without its newline.
pub(super) fn check(line: &[u8]) -> Result<Checked<'_>, RecordError> {
    let Some(end) = line.len().checked_sub(CHECKSUM_BYTES) else { return Err(RecordError::NoTrailer) };
    let (sealed, checksum) = line.split_at(end + 1);
    if sealed[end] != b' ' {
        return Err(RecordError::NoTrailer);
    }
    let checksum = checksum_value(checksum).ok_or(RecordError::NoTrailer)?;
    if crc32c::crc32c(sealed) != checksum && !planted!(BadChecksumAccepted) {
        return Err(RecordError::Checksum);
    }
    // No word before the trailer begins with a plain `;`, so the last ` ;` is the only one.
    let mut search = sealed;
    let marker = loop {
        let at = memchr::memrchr(b';', search).ok_or(RecordError::Trailer)?;
        if at > 0 && search[at - 1] == b' ' {
            break at;
        }
        search = &search[..at];
    };
    let mut rest = &sealed[marker + 1..];
    let mut number = || take_number(&mut rest).ok_or(RecordError::Trailer);
    let (seq, epoch, synced) = (Seq(number()?), Epoch(number()?), Seq(number()?));
    let fields_at = sealed.len() - rest.len();
    // The last one ends in the space before the checksum.
    let fields = rest.split_last().map(|(_, fields)| fields);
    Ok(Checked { body: &sealed[..marker - 1], fields, fields_at, seq, epoch, synced, checksum })
}

/// The first word of a line.
const OPERATIONS: [&[u8]; 7] = [b"WRITE", b"DELETE", b"APPLY", b"SYNCED", b"EPOCH", b"CLUSTER", b"MEMBERS"];

/// How many times the bytes of a bad line may be read in the search for a good line at its end. Once is enough unless
/// keys or values look like the beginning of a line.
const SEARCH_PASSES: usize = 8;

/// Finds the good line at the end of a bad one (the newline between them is damaged), and gives where it begins. Takes
/// time proportional to the length: a line that is not found within that time counts as absent.
pub(super) fn check_end_of(line: &[u8]) -> Option<(usize, Checked<'_>)> {
    let mut bytes_left = line.len().saturating_mul(SEARCH_PASSES);
    // A good line ends in a space and its checksum.
    let mut front = &line[..line.len().checked_sub(CHECKSUM_BYTES)?];
    checksum_value(&line[front.len() + 1..]).filter(|_| line[front.len()] == b' ')?;
    while let Some(space) = memchr::memrchr(b' ', front) {
        front = &front[..space];
        let Some(operation) = OPERATIONS.iter().find(|operation| front.ends_with(operation)) else {
            continue;
        };
        let begin = space - operation.len();
        if begin > 0 {
            bytes_left = bytes_left.checked_sub(line.len() - begin)?;
            if let Ok(checked) = check(&line[begin..]) {
                return Some((begin, checked));
            }
        }
    }
    None
}

/// Where the good line at the end of a bad one begins, if the newline between them is damaged. The bad line is given
/// without its newline.
pub fn good_line_at_end(line: &[u8]) -> Option<usize> {
    check_end_of(line).map(|(begin, _)| begin)
}

/// Parses one line with a trailer, given without its newline. Checks the checksum, the numbers and the words, but
/// nothing that depends on other lines.
///
/// # Errors
/// `NoTrailer`, `Checksum`, `Trailer`, `Body`, `Operation` and `RequiredField`.
pub fn parse_line(line: &[u8]) -> Result<Record<'_>, RecordError> {
    parse_checked(check(line)?)
}

pub(super) fn parse_checked(line: Checked<'_>) -> Result<Record<'_>, RecordError> {
    let Checked { body, fields, fields_at, seq, epoch, synced, checksum } = line;
    let Known { fields, after, expires, reign, fsync, given_up } = parse_fields(fields, fields_at)?;
    let (operation, words) = cut_word(body);
    let at = operation.len() + 1;
    let body = match operation {
        b"WRITE" => {
            if !are_pairs(words, |_| true) {
                return Err(RecordError::Body);
            }
            Body::Write(Pairs { rest: words, at, raw: false })
        }
        b"DELETE" => {
            if !are_pairs(words, |value| value == b"%") {
                return Err(RecordError::Body);
            }
            Body::Delete(Keys(Pairs { rest: words, at, raw: false }))
        }
        b"APPLY" => {
            let effects = EncodedEffects { rest: words, at };
            if !effects.are_whole() {
                return Err(RecordError::Body);
            }
            Body::Apply(effects)
        }
        b"SYNCED" if words == b"% %" => Body::Synced,
        b"EPOCH" => {
            let mut address = words;
            if take_number(&mut address) != Some(epoch.0) || !is_word(address) {
                return Err(RecordError::Body);
            }
            let at = body.len() - address.len();
            let address = Encoded { text: address, at, raw: false };
            // Both fields are there, or neither.
            let id = match (reign, fsync) {
                (Some(id), Some(_)) => id,
                (None, None) if given_up.is_none() => ReignId(u64::from(checksum)),
                _ => return Err(RecordError::Trailer),
            };
            let given_up = given_up.unwrap_or_default();
            Body::Epoch { address, mark: EpochMark { id, fsync, given_up } }
        }
        b"CLUSTER" => Body::Cluster(parse_cluster(words).ok_or(RecordError::Body)?),
        b"MEMBERS" if are_pairs(words, |_| true) && memchr::memchr_iter(b' ', words).count() == 1 => {
            Body::Members(words)
        }
        b"SYNCED" | b"MEMBERS" => return Err(RecordError::Body),
        other => return Err(RecordError::Operation(String::from_utf8_lossy(other).into_owned())),
    };
    let is_marked = reign.is_some() || fsync.is_some() || given_up.is_some();
    if is_marked && !matches!(body, Body::Epoch { .. })
        || expires.is_some() && !matches!(body, Body::Write(_))
    {
        return Err(RecordError::Trailer);
    }
    // SYNCED is about earlier records; a record cannot know that it is on disk itself.
    let synced_max = if matches!(body, Body::Synced) { seq.0 } else { seq.0.saturating_sub(1) };
    if seq == Seq(0) || synced.0 > synced_max {
        return Err(RecordError::Trailer);
    }
    Ok(Record { seq, epoch, synced, after, expires, body, fields })
}

/// A line of the original program.
#[derive(Clone, Copy, Debug)]
pub enum LegacyLine<'a> {
    /// `WRITE key value with spaces` or `DELETE key`.
    Operation(Body<'a>),
    /// `READ …`, which changes nothing.
    Read,
}

/// Parses a line of the original program, given without its newline. `None` when it is not one.
pub fn parse_legacy(line: &[u8]) -> Option<LegacyLine<'_>> {
    let space = memchr::memchr(b' ', line).unwrap_or(line.len());
    let rest = line.get(space + 1..).unwrap_or_default();
    match &line[..space] {
        b"READ" => Some(LegacyLine::Read),
        b"WRITE" => {
            let key_end = memchr::memchr(b' ', rest)?;
            let pairs = Pairs { rest, at: space + 1, raw: true };
            (key_end > 0).then_some(LegacyLine::Operation(Body::Write(pairs)))
        }
        b"DELETE" => {
            let key = rest.strip_suffix(b" ").unwrap_or(rest);
            let fits = !key.is_empty() && memchr::memchr(b' ', key).is_none();
            let keys = Keys(Pairs { rest: key, at: space + 1, raw: true });
            fits.then_some(LegacyLine::Operation(Body::Delete(keys)))
        }
        _ => None,
    }
}

/// Whether `name` can name a field of the trailer.
pub(super) fn is_field_name(name: &[u8]) -> bool {
    name.first().is_some_and(u8::is_ascii_alphabetic)
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// The fields of a line, and separately those that this version knows.
#[derive(Clone, Copy, Debug, Default)]
struct Known<'a> {
    fields: Fields<'a>,
    after: Option<Seq>,
    expires: Option<UnixMillis>,
    reign: Option<ReignId>,
    fsync: Option<SyncMode>,
    given_up: Option<GivenUpReigns<'a>>,
}

/// The fields of a trailer, each with its name.
pub(super) fn cut_fields(text: Option<&[u8]>) -> impl Iterator<Item = &[u8]> {
    text.into_iter().flat_map(|text| text.split(|byte| *byte == b' '))
}

/// Checks the fields, and picks out the ones that this version knows.
fn parse_fields(text: Option<&[u8]>, at: usize) -> Result<Known<'_>, RecordError> {
    let Some(text) = text else { return Ok(Known::default()) };
    let mut known = Known { fields: Fields { rest: text, at }, ..Known::default() };
    let mut words = text;
    loop {
        let (field, rest) = cut_word(words);
        let equals = memchr::memchr(b'=', field).ok_or(RecordError::Trailer)?;
        let (name, value) = (&field[..equals], &field[equals + 1..]);
        if !is_field_name(name) || !is_word(value) {
            return Err(RecordError::Trailer);
        }
        match name {
            b"After" => known.after = Some(Seq(number_value(value).ok_or(RecordError::Trailer)?)),
            b"Expire" => {
                known.expires = Some(UnixMillis(number_value(value).ok_or(RecordError::Trailer)?));
            }
            b"Reign" => known.reign = Some(parse_reign_id(value).ok_or(RecordError::Trailer)?),
            b"Fsync" => known.fsync = Some(SyncMode::from_text(value).ok_or(RecordError::Trailer)?),
            b"GivenUp" => {
                if !value.split(|byte| *byte == b',').all(|reign| parse_reign(reign).is_some()) {
                    return Err(RecordError::Trailer);
                }
                known.given_up = Some(GivenUpReigns { rest: value });
            }
            [b'A'..=b'Z', ..] => {
                return Err(RecordError::RequiredField(String::from_utf8_lossy(name).into_owned()));
            }
            _ => {}
        }
        // A word and a space came before, so an empty rest is an empty field.
        if rest.is_empty() && field.len() == words.len() {
            return Ok(known);
        }
        words = rest;
    }
}

/// Cuts off the part before the next space; all of it when there is none.
fn cut_word(text: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b' ', text) {
        Some(space) => (&text[..space], &text[space + 1..]),
        None => (text, &[]),
    }
}

/// Whether `words` are keys and values, one space between any two.
fn are_pairs(words: &[u8], value_fits: impl Fn(&[u8]) -> bool) -> bool {
    let mut words = words;
    loop {
        let (key, rest) = cut_word(words);
        let (value, behind) = cut_word(rest);
        if !is_word(key) || !is_word(value) || !value_fits(value) {
            return false;
        }
        if value.len() == rest.len() {
            return true;
        }
        words = behind;
    }
}

/// How many bytes of a word are checked before the result is looked at.
const BLOCK_BYTES: usize = 4096;

/// Whether `text` is a well-formed encoded key or value, so that decoding it cannot fail.
fn is_word(text: &[u8]) -> bool {
    if text == b"%" {
        return true;
    }
    if text.is_empty() || text[0] == b';' {
        return false;
    }
    // Most words are short and have nothing to escape.
    if text.len() <= SHORT_BYTES && is_plain(text) {
        return true;
    }
    // The digits of an escape are never `%`, so each `%` begins one. So every byte can be checked with only the two after
    // it. Values may be long and hold any bytes, so no branch depends on a byte.
    let (front, last) = text.split_at(text.len().saturating_sub(2));
    if last.iter().any(|byte| is_forbidden(*byte) || *byte == b'%') {
        return false;
    }
    let mut from = 0;
    while from < front.len() {
        let to = front.len().min(from + BLOCK_BYTES);
        let bytes = text[from..to].iter().zip(&text[from + 1..to + 1]).zip(&text[from + 2..to + 2]);
        let wrong = bytes.fold(false, |wrong, ((byte, high), low)| {
            wrong | is_forbidden(*byte) | ((*byte == b'%') & !(is_digit(*high) & is_digit(*low)))
        });
        if wrong {
            return false;
        }
        from = to;
    }
    true
}

/// Words of up to so many bytes are looked at eight bytes at a time first.
const SHORT_BYTES: usize = 64;

/// Whether `text` has no byte that is forbidden in a word, and no `%`.
fn is_plain(text: &[u8]) -> bool {
    let Some(last) = text.last_chunk::<8>() else {
        return !text.iter().any(|byte| is_forbidden(*byte) || *byte == b'%');
    };
    let (eights, _) = text.as_chunks::<8>();
    // The last eight overlap those before them unless nothing is left over.
    let found =
        eights.iter().chain([last]).fold(0, |found, eight| found | striking(u64::from_le_bytes(*eight)));
    found == 0
}

/// Not zero if one of these eight bytes is forbidden in a word, or `%`: in each byte, the highest bit of a difference that has to
/// borrow. Which of them it is may be told wrongly.
/// Source: *Bit Twiddling Hacks*, "Determine if a word has a zero byte" and "a byte less than n".
#[inline]
fn striking(eight: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES << 7;
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word & HIGHS;
    let equal = |byte: u8| below(eight ^ (ONES * u64::from(byte)), 1);
    below(eight, b' ' + 1) | equal(0x7f) | equal(b'%')
}

/// Whether this byte is not allowed in a word.
#[inline]
fn is_forbidden(byte: u8) -> bool {
    (byte <= b' ') | (byte == 0x7f)
}

/// Whether this is an upper-case hexadecimal digit.
#[inline]
fn is_digit(byte: u8) -> bool {
    (byte.wrapping_sub(b'0') < 10) | (byte.wrapping_sub(b'A') < 6)
}

/// The value of an upper-case hexadecimal digit that [`is_word`] has checked.
fn hex_value(digit: u8) -> u8 {
    if digit.is_ascii_digit() {
        digit - b'0'
    } else {
        digit.wrapping_sub(b'A' - 10) & 15
    }
}

/// At most 16 lower-case hexadecimal digits.
fn hex_number(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0, |number, &digit| match digit {
        b'0'..=b'9' => Some(number << 4 | u64::from(digit - b'0')),
        b'a'..=b'f' => Some(number << 4 | u64::from(digit - b'a' + 10)),
        _ => None,
    })
}

fn checksum_value(text: &[u8]) -> Option<u32> {
    hex_number(text).and_then(|number| u32::try_from(number).ok())
}

/// `EPOCH-ID`.
fn parse_reign(text: &[u8]) -> Option<Reign> {
    let dash = memchr::memchr(b'-', text)?;
    let epoch = Epoch(number_value(&text[..dash])?);
    Some(Reign { epoch, id: parse_reign_id(&text[dash + 1..])? })
}

fn parse_reign_id(text: &[u8]) -> Option<ReignId> {
    (text.len() == 16).then(|| hex_number(text).map(ReignId))?
}

fn parse_cluster(words: &[u8]) -> Option<ClusterId> {
    let id = words.strip_suffix(b" %")?;
    (id.len() == 16).then(|| hex_number(id).map(ClusterId))?
}

/// A decimal number without leading zeros.
fn number_value(text: &[u8]) -> Option<u64> {
    if text.is_empty() || (text[0] == b'0' && text.len() > 1) {
        return None;
    }
    text.iter().try_fold(0u64, |number, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Takes a number and the space after it off the front.
fn take_number(text: &mut &[u8]) -> Option<u64> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let number = number_value(&text[..space])?;
    *text = &text[space + 1..];
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of `docs/FORMATS.md`, byte by byte.
    fn is_word_plainly(text: &[u8]) -> bool {
        let mut rest = text;
        if text == b"%" {
            return true;
        }
        while let [byte, behind @ ..] = rest {
            rest = match (byte, behind) {
                (0..=b' ' | 0x7f, _) => return false,
                (b'%', [b'0'..=b'9' | b'A'..=b'F', b'0'..=b'9' | b'A'..=b'F', behind @ ..]) => behind,
                (b'%', _) => return false,
                _ => behind,
            };
        }
        !text.is_empty() && text[0] != b';'
    }

    #[test]
    fn every_byte_is_judged_at_every_place_of_a_word_of_every_length() {
        for length in 0..2 * SHORT_BYTES {
            let text = vec![b'a'; length];
            assert_eq!(is_word(&text), is_word_plainly(&text), "{length} bytes");
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = text.clone();
                    text[at] = byte;
                    assert_eq!(is_word(&text), is_word_plainly(&text), "{byte:#x} at {at} of {length}");
                    // Beside a byte that differs from a forbidden one in its lowest bit, from which a borrow may come.
                    text[(at + 1) % length] = 0x7e;
                    assert_eq!(is_word(&text), is_word_plainly(&text), "{byte:#x} at {at} of {length}");
                }
            }
        }
        for escaped in
            [&b"%20"[..], b"a%2Fb", b"aaaaaaa%2Fb", b"%%", b"%2", b"%2f", b"aaaaaaa%", b"%25%25%25%25"]
        {
            assert_eq!(is_word(escaped), is_word_plainly(escaped), "{}", escaped.escape_ascii());
        }
    }
}
