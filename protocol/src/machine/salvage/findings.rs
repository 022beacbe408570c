//! What a repair from slaves has found and done, for people.

use crate::ids::{Reign, SlaveId};
use crate::message::Seen;

/// How many keys are named at most.
pub const NAMED_MAX: usize = 100;

/// One slave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlaveFound {
    /// Its name.
    pub id: SlaveId,
    /// The last reign that it was part of.
    pub seen: Option<Seen>,
    /// Whether the log lacks that.
    pub is_witness: bool,
    /// Keys that it has reported.
    pub keys: u64,
    /// Those of them that were taken from it.
    pub recovered_keys: u64,
    /// Bytes of these keys and values.
    pub recovered_bytes: u64,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The slaves that have come, by name.
    pub slaves: Vec<SlaveFound>,
    /// The reigns that the log lacks, in part or whole.
    pub reigns: Vec<Reign>,
    /// Keys of which slaves have copies that the log lacks.
    pub lacking_keys: u64,
    /// Keys of which it is not known what is newest; the first of them by name.
    pub undecided: Vec<Vec<u8>>,
    /// How many these are.
    pub undecided_keys: u64,
    /// Keys that an earlier repair, which came to nothing, had put into the log.
    pub done_before: u64,
}

impl Findings {
    pub(super) fn slave(&mut self, id: &SlaveId) -> Option<&mut SlaveFound> {
        self.slaves.iter_mut().find(|slave| slave.id == *id)
    }

    /// Keys that were put back.
    pub fn recovered_keys(&self) -> u64 {
        self.slaves.iter().map(|slave| slave.recovered_keys).sum()
    }

    /// Bytes of these keys and values.
    pub fn recovered_bytes(&self) -> u64 {
        self.slaves.iter().map(|slave| slave.recovered_bytes).sum()
    }
}
