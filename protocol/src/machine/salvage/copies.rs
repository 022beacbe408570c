//! The keys of which slaves have copies that the log lacks: the highest of each, who has it, and what the log has of its key.
//!
//! Owns one entry for each such key, and the verdict on it. Knows no slave but by the number of its place.

use super::lineage::{bit, BranchId, Lineage};
use crate::ids::{Seq, Stamp, Version};
use crate::machine::table::Table;

/// The highest copy of a key.
#[derive(Clone, Copy, Debug)]
struct LackingCopy {
    version: Version,
    branch: BranchId,
    /// Which slaves have it, by their places.
    holders: u64,
    /// The branches of lower copies of the key.
    beside: u64,
    /// The last record of the log that writes or deletes the key; 0 for none.
    touched: Seq,
    /// Whether that record writes it.
    is_live: bool,
    /// Whether an earlier repair, which came to nothing, has put it into the log.
    is_in_log: bool,
    /// Whether somebody has it whose last log did not have that record.
    is_disputed: bool,
}

/// Who has a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A slave, by its place.
    Slave(u32),
    /// The slave at that place; the log in which it had its last place did not have that record.
    Astray(u32),
    /// The log: an earlier repair has put it there.
    Log,
}

impl Holder {
    fn places(self) -> u64 {
        match self {
            Holder::Slave(place) | Holder::Astray(place) => 1 << place,
            Holder::Log => 0,
        }
    }
}

/// What is to become of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyVerdict {
    /// It is newer than what the log has.
    Newer,
    /// The same, and it is in the log already.
    Done,
    /// It is not known which is newer.
    Undecided,
}

/// All keys of which slaves have copies that the log lacks.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    table: Table<LackingCopy>,
    /// The last seq of the log that was left out of it; 0 for none.
    gap: Seq,
    /// The last seq of the log that was taken out of it because it was damaged; 0 for none.
    lost: Seq,
}

impl Copies {
    pub(super) fn new(seed: u64) -> Self {
        Copies { table: Table::new(seed), gap: Seq(0), lost: Seq(0) }
    }

    /// Somebody has a copy of a key.
    pub(super) fn add(&mut self, key: &[u8], version: Version, branch: BranchId, holder: Holder) {
        let (holders, is_disputed) = (holder.places(), matches!(holder, Holder::Astray(_)));
        let new = LackingCopy {
            version,
            branch,
            holders,
            beside: 0,
            touched: Seq(0),
            is_live: false,
            is_in_log: holder == Holder::Log,
            is_disputed,
        };
        let Some(copy) = self.table.get_mut(key) else {
            self.table.insert(key, new);
            return;
        };
        if copy.branch == branch && copy.version == version {
            copy.holders |= holders;
            copy.is_in_log |= new.is_in_log;
            copy.is_disputed |= is_disputed;
            return;
        }
        let beside = copy.beside | bit(branch) | bit(copy.branch);
        if (version, branch) > (copy.version, copy.branch) {
            *copy = LackingCopy { touched: copy.touched, is_live: copy.is_live, ..new };
        }
        copy.beside = beside;
    }

    /// The log has a record that writes or deletes the key.
    pub(super) fn touch(&mut self, key: &[u8], seq: Seq, is_live: bool) {
        if let Some(copy) = self.table.get_mut(key) {
            (copy.touched, copy.is_live) = (seq, is_live);
        }
    }

    /// The log has left out the record of that seq, and maybe others before it. `is_lost`: it was not superseded but damaged.
    pub(super) fn left_out(&mut self, seq: Seq, is_lost: bool) {
        self.gap = self.gap.max(seq);
        if is_lost {
            self.lost = self.lost.max(seq);
        }
    }

    /// The key with that number: its copy, as slaves are asked for it, and who has it.
    pub(super) fn at(&self, number: usize, lineage: &Lineage) -> Option<(&[u8], Stamp, u64)> {
        let (key, copy) = self.table.at(number)?;
        Some((key, Stamp { version: copy.version, reign: lineage.id(copy.branch) }, copy.holders))
    }

    /// What is to become of the copy with that number.
    pub(super) fn judge(&self, number: usize, lineage: &Lineage) -> Option<CopyVerdict> {
        let (_, copy) = self.table.at(number)?;
        let common = lineage.common(copy.branch);
        // What was lost may have written or deleted any key. A compacted log has left out deletions, but of what it still has none came later.
        let may_be_deleted = !copy.is_live && self.gap > common;
        let is_ordered = lineage.follows_all(copy.branch, copy.beside) && !copy.is_disputed;
        Some(if !is_ordered {
            CopyVerdict::Undecided
        } else if copy.is_in_log {
            // Whoever has put it there has decided what was to be.
            CopyVerdict::Done
        } else if copy.touched > common || may_be_deleted || self.lost > common {
            CopyVerdict::Undecided
        } else {
            CopyVerdict::Newer
        })
    }

    /// Whether an earlier repair has put the copy with that number into the log.
    pub(super) fn is_in_log(&self, number: usize) -> bool {
        self.table.at(number).is_some_and(|(_, copy)| copy.is_in_log)
    }

    /// The slave at that place does not have the copy; whether another one has.
    pub(super) fn forget_holder(&mut self, number: usize, place: u32) -> bool {
        let Some(copy) = self.table.at_mut(number) else { return false };
        copy.holders &= !(1 << place);
        copy.holders != 0
    }

    /// All numbers are below this.
    pub(super) fn numbers(&self) -> usize {
        self.table.numbers()
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}
