//! The log's format: one record as one line of text, and what a damaged line means. Pure code: bytes in, records
//! and verdicts out. It never opens a file, never cuts one and never decides who may write.
//!
//! ```text
//! OPERATION KEY VALUE[ KEY VALUE]* ;SEQ EPOCH SYNCED[ name=value]* CRC
//! ```
//!
//! [`encode`](fn@encode) writes lines, [`parse_line`] reads one, [`Scanner`] reads a whole log and checks the rules
//! between lines, [`Judge`] tells a torn tail from corruption. The grammar is in `docs/FORMATS.md`.

mod clock;
mod copy;
mod encode;
mod entry;
mod judge;
mod parse;
mod rewrite;
mod scan;

pub use clock::ClockMark;
pub use copy::{CopiedLog, LogCopier, NotCopied};
pub use encode::{
    encode, encode_apply_at, encode_delete, encode_delete_with, encode_with, encode_write, encode_write_at,
    encode_write_with, Trailer,
};
pub use entry::{
    apply_words, delete_words, encode_entry, parse_words, reign_of_term, words_of, write_words, MEMBERS,
};
pub use judge::{CrashKind, Evidence, Judge, Verdict};
pub use parse::{
    good_line_at_end, parse_legacy, parse_line, Body, Encoded, EncodedEffect, EncodedEffects, EpochMark,
    Fields, GivenUpReigns, Keys, LegacyLine, Pairs, Record,
};
pub use rewrite::{base_of, Continuation, NoContinuation, Rewriter};
pub use scan::{BadLine, Position, Scanner, Step};

use crate::command::KEY_MAX;
use crate::ids::{ClusterId, Epoch, Reign, ReignId, Seq, UnixMillis};
use bytes::Bytes;
use thiserror::Error;

/// The most bytes of a line's trailer, operation and fields, without its keys and values.
const LINE_OVERHEAD_BYTES: usize = 64 * 1024;

/// The longest line of a log whose writes carry at most `value_max` bytes of values, in bytes with the newline:
/// every byte of key and value may need three (`%XX`).
pub const fn line_bytes_max(value_max: usize) -> usize {
    3 * (KEY_MAX + value_max) + LINE_OVERHEAD_BYTES
}

/// The most bytes of keys and values in one record. Any such line is shorter than 4 GiB, as a [`Span`], a [`Place`] and
/// the log's reader require.
pub const PAYLOAD_BYTES_MAX: usize = (u32::MAX as usize - LINE_OVERHEAD_BYTES) / 3 - KEY_MAX;

/// The most bytes of keys and values in one record where one value has at most `value_max`: several values of that length must
/// fit, or many short ones.
pub fn payload_bytes_max(value_max: usize) -> usize {
    (4 * value_max.min(PAYLOAD_BYTES_MAX / 4)).clamp(64 * 1024 * 1024, PAYLOAD_BYTES_MAX)
}

const _: () = assert!(line_bytes_max(PAYLOAD_BYTES_MAX) <= u32::MAX as usize);

/// The place of a line in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The file that it is in.
    pub file: FileNumber,
    /// Bytes before the line.
    pub offset: u64,
    /// Bytes of the line, with its newline.
    pub bytes: u32,
}

/// Where an EPOCH record says that a reign serves that a repair from slaves begins: nowhere. A log whose last reign is that of a
/// repair is half repaired, and nobody serves it.
pub const REPAIR_BEGUN: &str = "repair";

/// The name of the field by which a record that such a repair has put back says which version it was.
pub const RECOVERED: &str = "recovered";

/// The name of the field by which a record that such a repair has put back says that it was not known to be the newest.
pub const UNDECIDED: &str = "undecided";

/// The name of the field by which a record says that some before it were damaged and taken out, not only left out by compaction.
pub const LOST: &str = "lost";

/// Counts the files that a log has been since a process opened it: each compaction makes another one. Wraps around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileNumber(pub u16);

impl FileNumber {
    /// The number of the file that replaces this one.
    #[must_use]
    pub fn next(self) -> Self {
        FileNumber(self.0.wrapping_add(1))
    }
}

/// The place of a value in the log, and enough about it to notice that the bytes there have changed.
///
/// It is the place of the value, not of its line. A line may hold tens of thousands of values, and reading one must not
/// cost as much as reading all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file that it is in.
    pub file: FileNumber,
    /// Bytes before the value's text.
    pub offset: u64,
    /// Bytes of its text, percent-encoded.
    pub text_bytes: u32,
    /// CRC-32C of its text. The line's own checksum covers the whole line and cannot be checked with a part of it.
    pub text_crc: u32,
    /// Bytes of the value.
    pub bytes: u32,
}

/// What a line does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The first record of every log: which cluster it belongs to.
    Cluster(ClusterId),
    /// The first record of a reign, whose epoch the trailer holds.
    Epoch {
        /// Where the new primary serves.
        address: String,
        /// The identity of the reign; `None` in a log of the previous version.
        mark: Option<ReignMark>,
    },
    /// Writes keys, all or none. A key that stands twice takes its last value.
    Write(Vec<(Bytes, Bytes)>),
    /// Deletes keys, all or none.
    Delete(Vec<Bytes>),
    /// Who keeps the log, where the masters of several machines keep it: the text after the word. What it says is told by
    /// `dsm-consensus`.
    Members(String),
    /// Writes and deletes keys, all or none: what a transaction has done in the end. A key that stands twice takes its last
    /// effect.
    Apply(Vec<KeyEffect>),
    /// Not a record but a mark: it gives the seq through which the log is on disk, and has no seq of its own.
    Synced,
}

/// What becomes of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyEffect {
    /// It gets a value.
    Set {
        /// Which key it is.
        key: Bytes,
        /// What it holds from then on.
        value: Bytes,
        /// When it expires, if it does.
        expires: Option<UnixMillis>,
    },
    /// It is deleted.
    Del {
        /// Which key it is.
        key: Bytes,
    },
}

/// When the records of a reign were synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Before a slave or a client was told of them.
    Always,
    /// The log is synced once a second.
    Everysec,
    /// Never by the program; the system decides.
    Never,
}

impl SyncMode {
    /// The word for it in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            SyncMode::Always => "always",
            SyncMode::Everysec => "everysec",
            SyncMode::Never => "never",
        }
    }

    fn from_text(text: &[u8]) -> Option<Self> {
        [SyncMode::Always, SyncMode::Everysec, SyncMode::Never]
            .into_iter()
            .find(|mode| mode.as_str().as_bytes() == text)
    }
}

/// What an EPOCH record says of its reign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReignMark {
    /// The identity of the reign.
    pub id: ReignId,
    /// When its records were synced.
    pub fsync: SyncMode,
    /// Reigns that this log lacks and whose loss is accepted with this record.
    pub given_up: Vec<Reign>,
}

/// Why a line is bad.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// The line does not end in a trailer.
    #[error("the line has no trailer")]
    NoTrailer,
    /// The checksum does not match.
    #[error("the checksum does not match")]
    Checksum,
    /// The checksum matches, but the trailer's numbers or fields do not fit the grammar.
    #[error("the trailer is malformed")]
    Trailer,
    /// The checksum matches, but the keys or values do not fit the operation.
    #[error("keys or values of the line are malformed")]
    Body,
    /// A newer program wrote the line: its operation is not known.
    #[error("operation {0} is not known to this version")]
    Operation(String),
    /// A newer program wrote the line: a field that must be understood is not known.
    #[error("field {0} is not known to this version and must be understood")]
    RequiredField(String),
    /// The seq is not the next one.
    #[error("seq {found} is in the place of seq {expected}")]
    Seq {
        /// The seq after that of the previous record.
        expected: Seq,
        /// The seq in the line.
        found: Seq,
    },
    /// The epoch is lower than that of the previous record.
    #[error("epoch {found} follows epoch {before}")]
    EpochFell {
        /// The epoch of the previous record.
        before: Epoch,
        /// The epoch in the line.
        found: Epoch,
    },
    /// The line says that more is on disk than the lines before it, or less than an earlier line said.
    #[error("synced {found} is not within {low} and {high}")]
    Synced {
        /// The seq that an earlier line gave.
        low: Seq,
        /// The last seq before the line.
        high: Seq,
        /// The number in the line.
        found: Seq,
    },
    /// The first line with a trailer is not CLUSTER.
    #[error("the first line with a trailer is not CLUSTER")]
    NoCluster,
    /// There is a second CLUSTER line.
    #[error("a second CLUSTER record")]
    SecondCluster,
    /// Before the first trailer there is a line that the original program does not write.
    #[error("the line is neither a record nor a line of the original program")]
    Foreign,
    /// The line is longer than any record may be. It may still be good, if the limit was higher when it was written, so
    /// it is never torn.
    #[error("the line is longer than {0} bytes (is --max-value lower than it was?)")]
    TooLong(usize),
    /// The file ends within the line.
    #[error("the line has no end")]
    Unfinished,
    /// The bytes at the place of a value are not those that were written.
    #[error("the bytes there are not the value that was written")]
    OtherValue,
}

impl RecordError {
    /// Whether the line is whole, but written by a newer program. It is never torn.
    pub fn is_from_newer(&self) -> bool {
        matches!(self, RecordError::Operation(_) | RecordError::RequiredField(_))
    }
}

/// Decodes a value: `text` is what the log holds at `place`, and `epoch` is the epoch of the value's version. Values of
/// the original program (epoch 0) are not percent-encoded.
///
/// # Errors
/// `OtherValue` when the text is not what was written there: the file was damaged, cut or replaced.
pub fn value_at(text: Vec<u8>, place: Place, epoch: Epoch) -> Result<Bytes, RecordError> {
    if text.len() != place.text_bytes as usize || crc32c::crc32c(&text) != place.text_crc {
        return Err(RecordError::OtherValue);
    }
    Ok(parse::decode_value(text, epoch == Epoch(0)))
}
