//! The words of a request after its name, from which a [`Command`](super::Command) is made.
//!
//! Owns the checks that all commands share: the lengths of keys and values, and the errors of a malformed request. The
//! file of the command's family gives each word its meaning.

use super::MembersOrderError;
use crate::glob;
use crate::integer::parse_integer;
use bytes::Bytes;
use smallvec::SmallVec;

/// How long keys and values may be, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    pub(crate) key_max: usize,
    pub(crate) value_max: usize,
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// There are too few or too many words.
    Arity,
    /// A word is not allowed at its place.
    Syntax,
    /// A word is no integer of 64 bits.
    NoInteger,
    /// A number has no negative of 64 bits.
    NoNegative,
    /// An offset is negative.
    Offset,
    TooManyKeys {
        keys: usize,
        keys_max: usize,
    },
    /// A word is no slave's name.
    NoSlaveId,
    /// The words are no change of who keeps the log.
    Members(MembersOrderError),
    /// A time of expiry that is none: not later than now, or out of range.
    ExpireTime,
    /// An option that there is not.
    Option(Bytes),
    /// A word is no cursor.
    Cursor,
    /// A pattern is too long.
    Pattern,
    /// Options that exclude each other, in words.
    Options(&'static str),
    TooLong {
        what: &'static str,
        length: usize,
        length_max: usize,
    },
}

/// The longest pattern for keys; and its longest part after a star, because the work for those is their length times that of a key.
/// In bytes.
pub(crate) const PATTERN_BYTES_MAX: usize = 1024;
pub(crate) const PATTERN_PART_BYTES_MAX: usize = 64;

/// The words that are not taken yet.
pub(crate) struct Words {
    left: smallvec::IntoIter<[Bytes; 4]>,
    lengths: Lengths,
}

impl Words {
    /// The words of a request, of which the first is the name.
    pub(crate) fn after_name(words: SmallVec<[Bytes; 4]>, lengths: Lengths) -> Self {
        let mut left = words.into_iter();
        left.next();
        Words { left, lengths }
    }

    /// The next word, whatever it is.
    pub(crate) fn word(&mut self) -> Option<Bytes> {
        self.left.next()
    }

    /// How many words are left.
    pub(crate) fn left(&self) -> usize {
        self.left.len()
    }

    /// The next word as a key.
    pub(crate) fn key(&mut self) -> Result<Bytes, Unfit> {
        let key = self.word().ok_or(Unfit::Arity)?;
        self.is_key(key)
    }

    /// The next word as a value.
    pub(crate) fn value(&mut self) -> Result<Bytes, Unfit> {
        let value = self.word().ok_or(Unfit::Arity)?;
        self.is_value(value)
    }

    /// The next word as an integer.
    pub(crate) fn integer(&mut self) -> Result<i64, Unfit> {
        let word = self.word().ok_or(Unfit::Arity)?;
        parse_integer(&word).ok_or(Unfit::NoInteger)
    }

    /// The number of an option, of which the word may be missing.
    pub(crate) fn optional_integer(&mut self) -> Result<i64, Unfit> {
        let word = self.word().ok_or(Unfit::Syntax)?;
        parse_integer(&word).ok_or(Unfit::NoInteger)
    }

    /// The next word as a cursor: digits, or nothing for 0.
    pub(crate) fn cursor(&mut self) -> Result<u64, Unfit> {
        let word = self.word().ok_or(Unfit::Arity)?;
        word.iter()
            .try_fold(0u64, |number, byte| {
                let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
                number.checked_mul(10)?.checked_add(digit)
            })
            .ok_or(Unfit::Cursor)
    }

    /// The next word as a pattern for keys.
    pub(crate) fn pattern(&mut self) -> Result<Bytes, Unfit> {
        let pattern = self.word().ok_or(Unfit::Syntax)?;
        pattern_fits(&pattern).then_some(pattern).ok_or(Unfit::Pattern)
    }

    /// All words that are left as keys.
    pub(crate) fn keys(&mut self) -> Result<Vec<Bytes>, Unfit> {
        let mut keys = Vec::with_capacity(self.left.len());
        while let Some(key) = self.word() {
            keys.push(self.is_key(key)?);
        }
        Ok(keys)
    }

    /// All words that are left, in turn as keys and as their values.
    pub(crate) fn pairs(&mut self) -> Result<Vec<(Bytes, Bytes)>, Unfit> {
        if !self.left.len().is_multiple_of(2) {
            return Err(Unfit::Arity);
        }
        let mut pairs = Vec::with_capacity(self.left.len() / 2);
        while let (Some(key), Some(value)) = (self.word(), self.word()) {
            pairs.push((self.is_key(key)?, self.is_value(value)?));
        }
        Ok(pairs)
    }

    /// `word`, if it is short enough for a key.
    pub(crate) fn is_key(&self, word: Bytes) -> Result<Bytes, Unfit> {
        fits("key", word, self.lengths.key_max)
    }

    /// `word`, if it is short enough for a value.
    pub(crate) fn is_value(&self, word: Bytes) -> Result<Bytes, Unfit> {
        fits("value", word, self.lengths.value_max)
    }
}

/// Whether it does not take too long to match keys with this pattern.
pub(crate) fn pattern_fits(pattern: &[u8]) -> bool {
    pattern.len() <= PATTERN_BYTES_MAX && glob::longest_sought(pattern) <= PATTERN_PART_BYTES_MAX
}

fn fits(what: &'static str, word: Bytes, length_max: usize) -> Result<Bytes, Unfit> {
    if word.len() <= length_max {
        Ok(word)
    } else {
        Err(Unfit::TooLong { what, length: word.len(), length_max })
    }
}
