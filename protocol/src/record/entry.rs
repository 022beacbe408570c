//! The records of a log that masters on several machines keep alike: words, which all of them have, and lines, which are each
//! one's own.
//!
//! Owns the text of an entry. It is the line's text up to ` ;`, and after another ` ;` the fields that the record itself has:
//!
//! ```text
//! WRITE user1 Alice ;Expire=1790000000000
//! ```
//!
//! A member adds what is its own when it writes the line: SEQ and EPOCH are the entry's index and term, SYNCED is what its disk
//! had, CRC is of all that. So a value begins at the same byte of the words and of the line. The first entry of a reign has no
//! words: those of its line follow from its term.

use super::encode::{put_del, put_number, put_set, put_text, seal};
use super::parse::{check, cut_fields, parse_checked, Checked, Record};
use super::{encode_with, Operation, RecordError, ReignMark, SyncMode, Trailer, LOST};
use crate::ids::{ClusterId, Epoch, ReignId, Seq, UnixMillis, Version};
use ring::digest::{digest, SHA256};
use std::io::Write as _;

/// What an EPOCH line has instead of an address, as which member led is no fact of the log.
pub const MEMBERS: &str = "members";

/// The identity of the reign that began with this term: all members must write the same.
pub fn reign_of_term(cluster: ClusterId, term: Epoch) -> ReignId {
    let mut text = [0; 16];
    text[..8].copy_from_slice(&cluster.0.to_be_bytes());
    text[8..].copy_from_slice(&term.0.to_be_bytes());
    let hash = digest(&SHA256, &text);
    let first = hash.as_ref().first_chunk::<8>().expect("a SHA-256 has 32 bytes");
    ReignId(u64::from_be_bytes(*first))
}

/// The words of a WRITE.
///
/// # Panics
/// When `pairs` is empty.
pub fn write_words<K, V>(pairs: &[(K, V)], expires: Option<UnixMillis>) -> Vec<u8>
where
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    assert!(!pairs.is_empty(), "a WRITE has at least one key");
    let plain: usize = pairs.iter().map(|(key, value)| key.as_ref().len() + value.as_ref().len() + 2).sum();
    let mut words = Vec::with_capacity(plain + 64);
    words.extend_from_slice(b"WRITE");
    for (key, value) in pairs {
        words.push(b' ');
        put_text(&mut words, key.as_ref());
        words.push(b' ');
        put_text(&mut words, value.as_ref());
    }
    if let Some(expires) = expires {
        words.extend_from_slice(b" ;Expire=");
        put_number(&mut words, expires.0);
    }
    words
}

/// The words of a DELETE.
///
/// # Panics
/// When `keys` is empty.
pub fn delete_words<K: AsRef<[u8]>>(keys: &[K]) -> Vec<u8> {
    assert!(!keys.is_empty(), "a DELETE has at least one key");
    let mut words = b"DELETE".to_vec();
    for key in keys {
        words.push(b' ');
        put_text(&mut words, key.as_ref());
        words.extend_from_slice(b" %");
    }
    words
}

/// The words of an APPLY: `pairs` are written, each with the time of the same place in `expires`, and `deleted` are deleted.
///
/// # Panics
/// When there is no key at all, or not a time for each pair.
pub fn apply_words<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    (pairs, expires): (&[(K, V)], &[Option<UnixMillis>]),
    deleted: &[K],
) -> Vec<u8> {
    assert!(!pairs.is_empty() || !deleted.is_empty(), "an APPLY has at least one key");
    assert_eq!(pairs.len(), expires.len(), "each pair has its time");
    let mut words = b"APPLY".to_vec();
    for ((key, value), expires) in pairs.iter().zip(expires) {
        put_set(key.as_ref(), *expires, &mut words);
        put_text(&mut words, value.as_ref());
    }
    deleted.iter().for_each(|key| put_del(key.as_ref(), &mut words));
    words
}

/// Splits words into the line's text and the fields.
fn split(words: &[u8]) -> (&[u8], Option<&[u8]>) {
    // No word begins with a plain `;`, so there is only one.
    let mut search = words;
    while let Some(at) = memchr::memrchr(b';', search) {
        if at > 0 && search[at - 1] == b' ' {
            return (&words[..at - 1], Some(&words[at + 1..]));
        }
        search = &search[..at];
    }
    (words, None)
}

/// Reads words as a record of this version; its SYNCED is 0. The words of a reign's first entry are none.
///
/// # Errors
/// The words are no record: `Body`, `Trailer`, `Operation`, `RequiredField`.
pub fn parse_words(words: &[u8], version: Version) -> Result<Record<'_>, RecordError> {
    let (body, fields) = split(words);
    // Neither would be one line, or one record, in a file.
    if memchr::memchr(b'\n', words).is_some() {
        return Err(RecordError::Body);
    }
    let fields_at = body.len() + 2;
    let Version { epoch, seq } = version;
    parse_checked(Checked { body, fields, fields_at, seq, epoch, synced: Seq(0), checksum: 0 })
}

/// Appends the line of an entry. Words that are empty are those of the first entry of a reign.
pub fn encode_entry(words: &[u8], version: Version, synced: Seq, cluster: ClusterId, out: &mut Vec<u8>) {
    let Version { epoch, seq } = version;
    if words.is_empty() {
        let mark =
            ReignMark { id: reign_of_term(cluster, epoch), fsync: SyncMode::Always, given_up: Vec::new() };
        let begins = Operation::Epoch { address: MEMBERS.to_owned(), mark: Some(mark) };
        return encode_with(&begins, Trailer::new(seq, epoch, synced), out);
    }
    let (body, fields) = split(words);
    let start = out.len();
    out.reserve(words.len() + 80);
    out.extend_from_slice(body);
    // A Vec takes everything.
    let _ = write!(out, " ;{seq} {epoch} {synced}");
    if let Some(fields) = fields {
        out.push(b' ');
        out.extend_from_slice(fields);
    }
    seal(start, out);
}

/// The version and the words of a line, given without its newline; `None` of a mark, which is no entry. An EPOCH line has no words.
///
/// # Errors
/// The line is bad: `NoTrailer`, `Checksum`, `Trailer`.
pub fn words_of(line: &[u8]) -> Result<Option<(Version, Vec<u8>)>, RecordError> {
    let Checked { body, fields, seq, epoch, .. } = check(line)?;
    let version = Version { epoch, seq };
    if body.starts_with(b"SYNCED ") {
        return Ok(None);
    }
    if body.starts_with(b"EPOCH ") {
        return Ok(Some((version, Vec::new())));
    }
    let mut words = body.to_vec();
    let mut is_first = true;
    for field in cut_fields(fields) {
        let name = &field[..memchr::memchr(b'=', field).unwrap_or(field.len())];
        // Which records are left out in front of a line is told by each file for itself.
        if name != b"After" && name != LOST.as_bytes() {
            words.extend_from_slice(if std::mem::take(&mut is_first) { b" ;" } else { b" " });
            words.extend_from_slice(field);
        }
    }
    Ok(Some((version, words)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{
        encode_apply_at, encode_write_with, parse_line, Body, FileNumber, Scanner, Span, Step,
    };

    const CLUSTER: ClusterId = ClusterId(0x7f3a_9c0e_51d2_4b88);

    fn version() -> Version {
        Version::new(3, 7)
    }

    fn line(words: &[u8]) -> Vec<u8> {
        let mut line = Vec::new();
        encode_entry(words, version(), Seq(5), CLUSTER, &mut line);
        assert_eq!(line.pop(), Some(b'\n'));
        line
    }

    #[test]
    fn the_line_of_an_entry_is_that_of_the_record_and_gives_its_words_back() {
        let pairs = [("user 1", "Ali;ce"), ("%", ""), (";a", "\n")];
        for expires in [None, Some(UnixMillis(12))] {
            let words = write_words(&pairs, expires);
            let trailer = Trailer { expires, ..Trailer::new(Seq(7), Epoch(3), Seq(5)) };
            let mut usual = Vec::new();
            encode_write_with(&pairs, trailer, &mut usual);
            assert_eq!(line(&words), usual[..usual.len() - 1]);
            assert_eq!(words_of(&line(&words)), Ok(Some((version(), words.clone()))));
            let record = parse_words(&words, version()).unwrap();
            assert_eq!((record.expires, record.seq, record.epoch), (expires, Seq(7), Epoch(3)));
        }
        let expires = [None, Some(UnixMillis(12)), None];
        let (deleted, trailer) = (["b c", "d"], Trailer::new(Seq(7), Epoch(3), Seq(5)));
        let words = apply_words((&pairs, &expires), &deleted);
        let (mut usual, mut places) = (Vec::new(), Vec::new());
        let at = (FileNumber(0), 0);
        encode_apply_at((&pairs, &expires), &deleted, trailer, at, &mut usual, &mut places);
        assert_eq!(line(&words), usual[..usual.len() - 1]);
        assert_eq!(words_of(&line(&words)), Ok(Some((version(), words))));
        let words = delete_words(&["a", "b c"]);
        assert_eq!(words, b"DELETE a % b%20c %");
        assert_eq!(words_of(&line(&words)), Ok(Some((version(), words))));
    }

    #[test]
    fn a_value_is_at_the_same_byte_of_the_words_and_of_the_line() {
        let words = write_words(&[("a", "one"), ("b", "two")], Some(UnixMillis(9)));
        let line = line(&words);
        let span = Span { offset: 100, ..Span::default() };
        let places = |record: Record<'_>| {
            let Body::Write(pairs) = record.body else { panic!("{record:?}") };
            pairs.map(|(_, value)| value.place(span)).collect::<Vec<_>>()
        };
        let expected = places(parse_line(&line).unwrap());
        assert_eq!(places(parse_words(&words, version()).unwrap()), expected);
        assert_eq!(&line[expected[1].offset as usize - 100..][..3], b"two");
    }

    #[test]
    fn the_first_entry_of_a_reign_has_a_line_that_all_members_write_alike() {
        let line = line(b"");
        let text = String::from_utf8(line.clone()).unwrap();
        assert!(text.starts_with("EPOCH 3 members ;7 3 5 Reign="), "{text}");
        assert_eq!(words_of(&line), Ok(Some((version(), Vec::new()))));
        assert_eq!(reign_of_term(CLUSTER, Epoch(3)), ReignId(0x3e33_2a38_6740_3eaa));
        assert_ne!(reign_of_term(CLUSTER, Epoch(3)), reign_of_term(CLUSTER, Epoch(4)));
        assert_ne!(reign_of_term(CLUSTER, Epoch(3)), reign_of_term(ClusterId(1), Epoch(3)));
    }

    #[test]
    fn what_is_a_files_own_is_no_part_of_the_words() {
        let mut out = Vec::new();
        let fields = [("lost", &b"2"[..]), ("client", b"12")];
        let trailer =
            Trailer { after: Some(Seq(2)), fields: &fields, ..Trailer::new(Seq(7), Epoch(3), Seq(1)) };
        encode_write_with(&[("a", "b")], trailer, &mut out);
        let words = b"WRITE a b ;client=12".to_vec();
        assert_eq!(words_of(&out[..out.len() - 1]), Ok(Some((version(), words))));
        out.clear();
        encode_with(&Operation::Synced, Trailer::new(Seq(7), Epoch(3), Seq(7)), &mut out);
        assert_eq!(words_of(&out[..out.len() - 1]), Ok(None));
    }

    #[test]
    fn words_that_would_not_be_one_record_are_refused() {
        let bad: [&[u8]; 8] = [
            b"",
            b"WRITE a",
            b"WRITE a b\nWRITE c d",
            b"WRITE a b ;",
            b"WRITE a b ;Later=1",
            b"WRITE a b ;1 1 0",
            b"FLUSH % %",
            b"MEMBERS a b c d",
        ];
        for words in bad {
            assert!(parse_words(words, version()).is_err(), "{}", String::from_utf8_lossy(words));
        }
        assert!(parse_words(b"MEMBERS next=2,prefer=1 1=voter@a:1~0", version()).is_ok());
    }

    #[test]
    fn a_record_of_the_members_is_read_only_by_who_expects_one() {
        let mut log = Vec::new();
        for (seq, words) in [(1, "CLUSTER 7f3a9c0e51d24b88 %"), (2, "MEMBERS next=2,prefer=1 1=voter@a:1~0")]
        {
            encode_entry(words.as_bytes(), Version::new(1, seq), Seq(0), CLUSTER, &mut log);
        }
        let scan = |mut scanner: Scanner| {
            assert!(matches!(scanner.next(&log), Step::Record { .. }));
            let at = scanner.position().offset as usize;
            match scanner.next(&log[at..]) {
                Step::Record { record, .. } => Ok(record.to_operation()),
                Step::Bad(bad) => Err(bad.cause),
                other @ (Step::Ignored | Step::Partial) => panic!("{other:?}"),
            }
        };
        let scanner = Scanner::new(1000);
        assert_eq!(scan(scanner.clone()), Err(RecordError::Operation("MEMBERS".to_owned())));
        let members = "next=2,prefer=1 1=voter@a:1~0".to_owned();
        assert_eq!(scan(scanner.with_members()), Ok(Operation::Members(members)));
    }
}
