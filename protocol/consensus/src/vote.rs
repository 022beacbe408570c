//! The vote file, `kv_store.log.vote`: what a member must not forget over a crash, beside the log.
//!
//! Owns the text of the file and the rule which of its two slots counts. Never reads or writes the file itself. The vote is
//! not in the log: a conflicting suffix is cut there, and the vote could go with it.
//!
//! The file has two slots of [`SLOT_BYTES`]. Each is one line of text, padded with spaces:
//!
//! ```text
//! VOTE number=7 cluster=7f3a9c0e51d24b88 member=2 term=4 vote=1 commit=99 crc=5b3c8e10
//! ```
//!
//! Each write has the next number and goes to the slot that does not hold the last one, so a write that a crash cuts short
//! leaves the one before it whole. Nobody was answered on the strength of a write that is not synced, so a torn slot is passed
//! over. A slot that decays after its sync looks the same; a log with entries of a higher term than the vote shows it.

use crate::ids::MemberId;
use dsm_protocol::ids::{ClusterId, Epoch, Seq};
use std::fmt::Write as _;
use thiserror::Error;

/// Bytes of one slot: no sector or page has parts of both.
pub const SLOT_BYTES: usize = 4096;

/// Bytes of the file.
pub const FILE_BYTES: usize = 2 * SLOT_BYTES;

/// The first word of a slot.
const MAGIC: &str = "VOTE";

/// What a member must not forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteRecord {
    /// How many writes came before it. Its lowest bit is its slot.
    pub number: u64,
    /// Whose log it is.
    pub cluster: ClusterId,
    /// Who this member is.
    pub member: MemberId,
    /// The highest term that this member has seen.
    pub term: Epoch,
    /// Whom it gave its vote in this term; `None` before it gave it to anybody.
    pub vote: Option<MemberId>,
    /// Through where the log was known to be committed. It may be behind what is.
    pub commit: Seq,
}

/// Why the bytes of the file say nothing that may be relied on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VoteFileError {
    /// A crash damages one slot at most.
    #[error("neither slot of the vote file is whole: this member may have voted and cannot know for whom, so it must not take part under its id again; replace it")]
    BothTorn,
    /// Slots of two members or clusters, or two of one number.
    #[error("the slots of the vote file contradict each other: `{0}` and `{1}`")]
    Contradiction(String, String),
    /// The file has another size.
    #[error("the vote file has {0} bytes instead of {FILE_BYTES}")]
    Length(usize),
}

impl VoteRecord {
    /// The line without padding and newline.
    fn line(&self) -> String {
        let VoteRecord { number, cluster, member, term, vote, commit } = self;
        let vote = vote.map_or(0, MemberId::get);
        let mut line = format!(
            "{MAGIC} number={number} cluster={cluster} member={member} term={term} vote={vote} commit={commit}"
        );
        let checksum = crc32c::crc32c(line.as_bytes());
        // A String takes everything.
        let _ = write!(line, " crc={checksum:08x}");
        line
    }

    /// Where its slot begins in the file, and the slot's bytes.
    pub fn slot(&self) -> (usize, Vec<u8>) {
        let mut bytes = self.line().into_bytes();
        bytes.resize(SLOT_BYTES - 1, b' ');
        bytes.push(b'\n');
        let at = if self.number & 1 == 0 { 0 } else { SLOT_BYTES };
        (at, bytes)
    }

    /// The bytes of a new file, of which this is the first record: the other slot is empty.
    pub fn new_file(&self) -> Vec<u8> {
        let (at, slot) = self.slot();
        let mut bytes = vec![b' '; FILE_BYTES];
        bytes[SLOT_BYTES - 1] = b'\n';
        bytes[FILE_BYTES - 1] = b'\n';
        bytes[at..at + SLOT_BYTES].copy_from_slice(&slot);
        bytes
    }

    /// Reads the newest record of the file.
    ///
    /// # Errors
    /// [`VoteFileError`]: nothing is known of the vote, and the member must not take part.
    pub fn of_file(bytes: &[u8]) -> Result<Self, VoteFileError> {
        if bytes.len() != FILE_BYTES {
            return Err(VoteFileError::Length(bytes.len()));
        }
        let (first, second) = bytes.split_at(SLOT_BYTES);
        match (parse(first, 0), parse(second, 1)) {
            (None, None) => Err(VoteFileError::BothTorn),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (Some(even), Some(odd)) => {
                let (older, newer) = if even.number < odd.number { (even, odd) } else { (odd, even) };
                let follows = older.number + 1 == newer.number
                    && older.cluster == newer.cluster
                    && older.member == newer.member
                    && older.term <= newer.term;
                if follows {
                    Ok(newer)
                } else {
                    Err(VoteFileError::Contradiction(even.line(), odd.line()))
                }
            }
        }
    }
}

/// Reads one slot; `None` when it is torn, empty or of the other slot.
fn parse(slot: &[u8], parity: u64) -> Option<VoteRecord> {
    let line = std::str::from_utf8(slot).ok()?.strip_suffix('\n')?.trim_end_matches(' ');
    let mut words = line.strip_prefix(MAGIC)?.strip_prefix(' ')?.split(' ');
    let mut value = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=');
    let record = VoteRecord {
        number: value("number")?.parse().ok()?,
        cluster: value("cluster")?.parse().ok()?,
        member: MemberId::new(value("member")?.parse().ok()?)?,
        term: Epoch(value("term")?.parse().ok()?),
        vote: MemberId::new(value("vote")?.parse().ok()?),
        commit: Seq(value("commit")?.parse().ok()?),
    };
    // Written again it must be the same text, the checksum included.
    (record.number & 1 == parity && record.number < u64::MAX && record.line() == line).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64) -> VoteRecord {
        VoteRecord {
            number,
            cluster: ClusterId(0x7f3a_9c0e_51d2_4b88),
            member: MemberId::new(2).unwrap(),
            term: Epoch(number / 2 + 1),
            vote: MemberId::new(number % 4),
            commit: Seq(number * 10),
        }
    }

    /// The file after these records were written one after the other.
    fn file(records: &[VoteRecord]) -> Vec<u8> {
        let mut bytes = records[0].new_file();
        for record in &records[1..] {
            let (at, slot) = record.slot();
            bytes[at..at + SLOT_BYTES].copy_from_slice(&slot);
        }
        bytes
    }

    #[test]
    fn the_last_write_counts_whichever_slot_it_is_in() {
        for last in 0..6 {
            let written: Vec<VoteRecord> = (0..=last).map(record).collect();
            assert_eq!(VoteRecord::of_file(&file(&written)), Ok(record(last)));
        }
    }

    #[test]
    fn the_line_is_readable_text() {
        let (at, slot) = record(7).slot();
        assert_eq!((at, slot.len()), (SLOT_BYTES, SLOT_BYTES));
        let text = String::from_utf8(slot).unwrap();
        assert!(
            text.starts_with("VOTE number=7 cluster=7f3a9c0e51d24b88 member=2 term=4 vote=3 commit=70 crc="),
            "{text}"
        );
    }

    /// A write that stops after each byte, with the rest as it was or full of zeros.
    #[test]
    fn a_torn_slot_is_passed_over_and_the_one_before_it_counts() {
        let before = file(&[record(4), record(5)]);
        let (at, slot) = record(6).slot();
        for cut in 0..120 {
            for rest in [None, Some(0)] {
                let mut torn = before.clone();
                torn[at..at + cut].copy_from_slice(&slot[..cut]);
                if let Some(byte) = rest {
                    torn[at + cut..at + SLOT_BYTES].fill(byte);
                }
                let found = VoteRecord::of_file(&torn).unwrap();
                let whole = torn[at..at + SLOT_BYTES] == slot[..];
                assert_eq!(found, if whole { record(6) } else { record(5) }, "{cut} {rest:?}");
            }
        }
    }

    #[test]
    fn any_flipped_bit_of_a_slot_makes_it_torn() {
        let whole = file(&[record(4), record(5)]);
        for at in 0..90 {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[SLOT_BYTES + at] ^= 1 << bit;
                assert_eq!(VoteRecord::of_file(&damaged), Ok(record(4)), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn two_torn_slots_are_an_error_and_so_is_another_length() {
        let mut torn = file(&[record(4), record(5)]);
        torn[20] ^= 1;
        torn[SLOT_BYTES + 20] ^= 1;
        assert_eq!(VoteRecord::of_file(&torn), Err(VoteFileError::BothTorn));
        assert!(VoteFileError::BothTorn.to_string().contains("neither slot"));
        assert_eq!(VoteRecord::of_file(&[0; FILE_BYTES]), Err(VoteFileError::BothTorn));
        assert_eq!(VoteRecord::of_file(&torn[1..]), Err(VoteFileError::Length(FILE_BYTES - 1)));
        assert_eq!(VoteRecord::of_file(b""), Err(VoteFileError::Length(0)));
    }

    #[test]
    fn slots_of_two_members_or_clusters_or_that_do_not_follow_are_refused() {
        let four = record(4);
        let other_member = VoteRecord { member: MemberId::new(3).unwrap(), ..record(5) };
        let other_cluster = VoteRecord { cluster: ClusterId(1), ..record(5) };
        let lower_term = VoteRecord { term: Epoch(1), ..record(5) };
        for second in [other_member, other_cluster, lower_term, record(7)] {
            let found = VoteRecord::of_file(&file(&[four, second]));
            assert!(matches!(found, Err(VoteFileError::Contradiction(..))), "{found:?}");
        }
    }
}
