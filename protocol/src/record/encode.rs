//! Writes lines. WRITE and DELETE, the frequent ones, are written without building an [`Operation`].

use super::parse::{is_field_name, Encoded, EncodedEffect, Record};
use super::{FileNumber, KeyEffect, Operation, Place, ReignMark, LOST};
use crate::ids::{Epoch, Reign, Seq, UnixMillis};

/// What follows the `;` of a line, except the checksum.
#[derive(Clone, Copy, Debug)]
pub struct Trailer<'f> {
    /// The record's seq; for SYNCED, that of the last record before it.
    pub seq: Seq,
    /// The reign that writes.
    pub epoch: Epoch,
    /// The seq through which the log is known to be on disk.
    pub synced: Seq,
    /// In a compacted log, where records before this one were left out: the seq of the previous record. `None` where
    /// the seq is simply the next one.
    pub after: Option<Seq>,
    /// Of a WRITE: when its values expire, if they do.
    pub expires: Option<UnixMillis>,
    /// Further fields, in this order. A name is a letter and then letters, digits, `_` and `-`; one that begins
    /// with an upper-case letter must be understood by every reader.
    pub fields: &'f [(&'f str, &'f [u8])],
}

impl Trailer<'_> {
    /// A trailer without further fields.
    pub fn new(seq: Seq, epoch: Epoch, synced: Seq) -> Self {
        Trailer { seq, epoch, synced, after: None, expires: None, fields: &[] }
    }
}

/// Appends one line. For [`Operation::Synced`], `seq` is that of the last record.
///
/// # Panics
/// When a WRITE or DELETE has no key: it would not be a record.
pub fn encode(operation: &Operation, seq: Seq, epoch: Epoch, synced: Seq, out: &mut Vec<u8>) {
    encode_with(operation, Trailer::new(seq, epoch, synced), out);
}

/// Appends one line with further fields in its trailer.
///
/// # Panics
/// When a WRITE or DELETE has no key, or a field's name is not valid.
pub fn encode_with(operation: &Operation, trailer: Trailer<'_>, out: &mut Vec<u8>) {
    match operation {
        Operation::Write(pairs) => encode_write_with(pairs, trailer, out),
        Operation::Delete(keys) => encode_delete_with(keys, trailer, out),
        Operation::Apply(effects) => {
            assert!(!effects.is_empty(), "an APPLY has at least one key");
            sealed(trailer, out, |out| {
                out.extend_from_slice(b"APPLY");
                for effect in effects {
                    match effect {
                        KeyEffect::Set { key, value, expires } => {
                            put_set(key, *expires, out);
                            put_text(out, value);
                        }
                        KeyEffect::Del { key } => put_del(key, out),
                    }
                }
            });
        }
        Operation::Cluster(id) => sealed(trailer, out, |out| {
            out.extend_from_slice(format!("CLUSTER {id} %").as_bytes());
        }),
        Operation::Epoch { address, mark } => encode_epoch(address, mark.as_ref(), trailer, out),
        Operation::Members(text) => sealed(trailer, out, |out| {
            out.extend_from_slice(b"MEMBERS ");
            out.extend_from_slice(text.as_bytes());
        }),
        Operation::Synced => sealed(trailer, out, |out| out.extend_from_slice(b"SYNCED % %")),
    }
}

fn encode_epoch(address: &str, mark: Option<&ReignMark>, trailer: Trailer<'_>, out: &mut Vec<u8>) {
    let body = |out: &mut Vec<u8>| {
        out.extend_from_slice(b"EPOCH ");
        put_number(out, trailer.epoch.0);
        out.push(b' ');
        put_text(out, address.as_bytes());
    };
    let Some(mark) = mark else {
        sealed(trailer, out, body);
        return;
    };
    let id = mark.id.to_string();
    let given_up = mark.given_up.iter().map(Reign::to_string).collect::<Vec<_>>().join(",");
    let mut fields = vec![("Reign", id.as_bytes()), ("Fsync", mark.fsync.as_str().as_bytes())];
    if !given_up.is_empty() {
        fields.push(("GivenUp", given_up.as_bytes()));
    }
    fields.extend_from_slice(trailer.fields);
    sealed(Trailer { fields: &fields, ..trailer }, out, body);
}

/// Appends an EPOCH line again, with another trailer and the fields that it has.
pub(super) fn encode_epoch_with(record: &Record<'_>, trailer: Trailer<'_>, out: &mut Vec<u8>) {
    let is_known = |name: &[u8]| is_of_place(name) || matches!(name, b"Reign" | b"Fsync" | b"GivenUp");
    let fields = further_fields(record, is_known);
    let mut fields: Vec<_> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    fields.extend_from_slice(trailer.fields);
    encode_with(&record.to_operation(), Trailer { fields: &fields, ..trailer }, out);
}

/// Appends a WRITE line again, with the pairs of `live`, with another trailer and the fields that it has. Nothing when there
/// is no pair; gives whether there was one. Keys and values are copied as they are.
pub(super) fn encode_live<'a>(
    live: impl Iterator<Item = (Encoded<'a>, Encoded<'a>)>,
    record: &Record<'_>,
    trailer: Trailer<'_>,
    out: &mut Vec<u8>,
) -> bool {
    let mut live = live.peekable();
    if live.peek().is_none() {
        return false;
    }
    sealed_again(record, trailer, out, |out| {
        out.extend_from_slice(b"WRITE");
        for (key, value) in live {
            out.push(b' ');
            out.extend_from_slice(key.as_text());
            out.push(b' ');
            out.extend_from_slice(value.as_text());
        }
    });
    true
}

/// Appends an APPLY line again with what of `live` it writes, with another trailer and the fields that it has; what it deletes
/// is left out. Nothing when it writes nothing; gives whether it did.
pub(super) fn encode_live_effects<'a>(
    live: impl Iterator<Item = EncodedEffect<'a>>,
    record: &Record<'_>,
    trailer: Trailer<'_>,
    out: &mut Vec<u8>,
) -> bool {
    let mut live = live.filter_map(|effect| match effect {
        EncodedEffect::Set { key, value, expires } => Some((key, value, expires)),
        EncodedEffect::Del { .. } => None,
    });
    let Some(first) = live.next() else { return false };
    sealed_again(record, trailer, out, |out| {
        out.extend_from_slice(b"APPLY");
        for (key, value, expires) in std::iter::once(first).chain(live) {
            put_kind(expires, out);
            out.extend_from_slice(key.as_text());
            out.push(b' ');
            out.extend_from_slice(value.as_text());
        }
    });
    true
}

/// Writes the body of a line again, with another trailer and the fields that it has.
fn sealed_again(
    record: &Record<'_>,
    trailer: Trailer<'_>,
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let fields = further_fields(record, is_of_trailer);
    let mut fields: Vec<_> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    fields.extend_from_slice(trailer.fields);
    sealed(Trailer { fields: &fields, expires: record.expires, ..trailer }, out, body);
}

/// Whether a field says which records before the line are left out or lost.
fn is_of_place(name: &[u8]) -> bool {
    name == b"After" || name == LOST.as_bytes()
}

/// Whether a field is written in another way: by a part of the trailer.
fn is_of_trailer(name: &[u8]) -> bool {
    is_of_place(name) || name == b"Expire"
}

/// The fields of a record, decoded, without those that are written in another way.
fn further_fields(record: &Record<'_>, is_known: impl Fn(&[u8]) -> bool) -> Vec<(String, Vec<u8>)> {
    let fields = record.fields.filter(|(name, _)| !is_known(name));
    fields
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.decode().into_owned()))
        .collect()
}

/// Appends a WRITE line.
///
/// # Panics
/// When `pairs` is empty.
pub fn encode_write<K, V>(pairs: &[(K, V)], seq: Seq, epoch: Epoch, synced: Seq, out: &mut Vec<u8>)
where
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    encode_write_with(pairs, Trailer::new(seq, epoch, synced), out);
}

/// Appends a WRITE line with further fields in its trailer.
///
/// # Panics
/// When `pairs` is empty, or a field's name is not one.
pub fn encode_write_with<K, V>(pairs: &[(K, V)], trailer: Trailer<'_>, out: &mut Vec<u8>)
where
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    put_write(pairs, trailer, out, |_, _, _| {});
}

/// Appends a WRITE line that will be at `offset` in the file of that number, and adds the place of each of its values to `places`, in
/// the order of `pairs`.
///
/// # Panics
/// When `pairs` is empty, or longer than [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX).
pub fn encode_write_at<K, V>(
    pairs: &[(K, V)],
    trailer: Trailer<'_>,
    (file, offset): (FileNumber, u64),
    out: &mut Vec<u8>,
    places: &mut impl Extend<Place>,
) where
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let start = out.len();
    put_write(pairs, trailer, out, |line, at, bytes| {
        places.extend([place_of(&line[at..], bytes, (file, offset + (at - start) as u64))]);
    });
}

/// Appends a WRITE line. `placed` is called for each value, with what is written so far, where the value's text begins
/// in it, and the length of the value.
fn put_write<K, V>(
    pairs: &[(K, V)],
    trailer: Trailer<'_>,
    out: &mut Vec<u8>,
    mut placed: impl FnMut(&[u8], usize, usize),
) where
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    assert!(!pairs.is_empty(), "a WRITE has at least one key");
    sealed(trailer, out, |out| {
        out.extend_from_slice(b"WRITE");
        for (key, value) in pairs {
            out.push(b' ');
            put_text(out, key.as_ref());
            out.push(b' ');
            let at = out.len();
            put_text(out, value.as_ref());
            placed(out, at, value.as_ref().len());
        }
    });
}

/// Appends an APPLY line that will be at `offset` in the file of that number: `pairs` are written, each with the time of the same
/// place in `expires`, and `deleted` are deleted. Adds the place of each value to `places`, in the order of `pairs`.
///
/// # Panics
/// When there is no key at all, when there is not a time for each pair, or when it is longer than
/// [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX).
pub fn encode_apply_at<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    (pairs, expires): (&[(K, V)], &[Option<UnixMillis>]),
    deleted: &[K],
    trailer: Trailer<'_>,
    (file, offset): (FileNumber, u64),
    out: &mut Vec<u8>,
    places: &mut impl Extend<Place>,
) {
    assert!(!pairs.is_empty() || !deleted.is_empty(), "an APPLY has at least one key");
    assert_eq!(pairs.len(), expires.len(), "each pair has its time");
    let start = out.len();
    sealed(trailer, out, |out| {
        out.extend_from_slice(b"APPLY");
        for ((key, value), expires) in pairs.iter().zip(expires) {
            put_set(key.as_ref(), *expires, out);
            let at = out.len();
            put_text(out, value.as_ref());
            places.extend([place_of(&out[at..], value.as_ref().len(), (file, offset + (at - start) as u64))]);
        }
        deleted.iter().for_each(|key| put_del(key.as_ref(), out));
    });
}

/// `" SET@1764500000000 key "`: what stands in front of a value.
pub(super) fn put_set(key: &[u8], expires: Option<UnixMillis>, out: &mut Vec<u8>) {
    put_kind(expires, out);
    put_text(out, key);
    out.push(b' ');
}

fn put_kind(expires: Option<UnixMillis>, out: &mut Vec<u8>) {
    out.extend_from_slice(b" SET");
    if let Some(expires) = expires {
        out.push(b'@');
        put_number(out, expires.0);
    }
    out.push(b' ');
}

pub(super) fn put_del(key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b" DEL ");
    put_text(out, key);
    out.extend_from_slice(b" %");
}

/// The place of a value of so many bytes whose text stands at `offset` in a file.
fn place_of(text: &[u8], bytes: usize, (file, offset): (FileNumber, u64)) -> Place {
    let length = |bytes: usize| u32::try_from(bytes).expect("a line is shorter than 4 GiB");
    Place {
        file,
        offset,
        text_bytes: length(text.len()),
        text_crc: crc32c::crc32c(text),
        bytes: length(bytes),
    }
}

/// Appends a DELETE line.
///
/// # Panics
/// When `keys` is empty.
pub fn encode_delete<K: AsRef<[u8]>>(keys: &[K], seq: Seq, epoch: Epoch, synced: Seq, out: &mut Vec<u8>) {
    encode_delete_with(keys, Trailer::new(seq, epoch, synced), out);
}

/// Appends a DELETE line with further fields in its trailer.
///
/// # Panics
/// When `keys` is empty, or a field's name is not one.
pub fn encode_delete_with<K: AsRef<[u8]>>(keys: &[K], trailer: Trailer<'_>, out: &mut Vec<u8>) {
    assert!(!keys.is_empty(), "a DELETE has at least one key");
    sealed(trailer, out, |out| {
        out.extend_from_slice(b"DELETE");
        for key in keys {
            out.push(b' ');
            put_text(out, key.as_ref());
            out.extend_from_slice(b" %");
        }
    });
}

/// Writes the body, the trailer and the checksum of both.
fn sealed(trailer: Trailer<'_>, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    body(out);
    out.extend_from_slice(b" ;");
    put_number(out, trailer.seq.0);
    out.push(b' ');
    put_number(out, trailer.epoch.0);
    out.push(b' ');
    put_number(out, trailer.synced.0);
    if let Some(after) = trailer.after {
        out.extend_from_slice(b" After=");
        put_number(out, after.0);
    }
    if let Some(expires) = trailer.expires {
        out.extend_from_slice(b" Expire=");
        put_number(out, expires.0);
    }
    for (name, value) in trailer.fields {
        assert!(is_field_name(name.as_bytes()), "{name:?} cannot be the name of a field");
        out.push(b' ');
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        put_text(out, value);
    }
    seal(start, out);
}

/// Ends the line that begins at `start`: the checksum of it, and the newline.
pub(super) fn seal(start: usize, out: &mut Vec<u8>) {
    out.push(b' ');
    let checksum = crc32c::crc32c(&out[start..]);
    for digit in (0..8).rev() {
        out.push(b"0123456789abcdef"[(checksum >> (4 * digit)) as usize & 15]);
    }
    out.push(b'\n');
}

pub(super) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Writes a key, a value or a field's value as one word.
pub(super) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if text.is_empty() {
        out.push(b'%');
        return;
    }
    let mut plain_from = 0;
    for (at, &byte) in text.iter().enumerate() {
        // All other bytes are written unchanged, so that UTF-8 stays readable.
        if byte <= b' ' || byte == 0x7f || byte == b'%' || (byte == b';' && at == 0) {
            out.extend_from_slice(&text[plain_from..at]);
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            plain_from = at + 1;
        }
    }
    out.extend_from_slice(&text[plain_from..]);
}
