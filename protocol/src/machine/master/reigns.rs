//! The reigns of the log: the identity of each epoch, and what a slave's memory of reigns proves.
//!
//! Grows with the log's EPOCH records, one entry each. See `docs/ARCHITECTURE.md`, *Reigns*.

use crate::ids::{Epoch, Reign, ReignId, Seq, Stamp, Version};
use crate::message::{ReignStart, Seen, LINEAGE_MAX};

/// One reign of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReignRecord {
    /// The reign that the record begins.
    pub reign: Reign,
    /// The seq of its EPOCH record.
    pub first: Seq,
    /// Whether each of its records was on disk before a slave saw it (`--fsync always`). A log of the previous version
    /// does not say; then this is false.
    pub durable: bool,
}

impl ReignRecord {
    /// Where it began.
    pub fn start(&self) -> ReignStart {
        ReignStart { reign: self.reign, first: self.first }
    }
}

/// What a slave's memory of its last reign says about the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Testimony {
    /// The log has that reign, and everything in it that the slave can prove; or the loss was accepted.
    Agrees,
    /// The log ended before what the slave has seen: synced records are missing at the end of what was there when this
    /// reign began.
    LogIsShort,
    /// The slave's last reign branches off from this log before the log's last reigns: the log was restored from a copy
    /// and has served since, or the slave belongs to another copy of it.
    Elsewhere,
}

/// The reigns of one log, in its order.
#[derive(Clone, Debug, Default)]
pub struct Reigns {
    /// In the order of the log, which is that of their epochs.
    records: Vec<ReignRecord>,
    /// The reigns whose loss `dsm-log accept-loss` has accepted, in order.
    given_up: Vec<Reign>,
}

impl Reigns {
    /// Adds an EPOCH record. One that is not after the last one is ignored; the log's rules exclude it.
    pub fn begin(&mut self, record: ReignRecord) {
        if self.records.last().is_none_or(|last| last.reign.epoch < record.reign.epoch) {
            self.records.push(record);
        }
    }

    /// Adds a reign whose loss was accepted.
    pub fn give_up(&mut self, reign: Reign) {
        if let Err(index) = self.given_up.binary_search(&reign) {
            self.given_up.insert(index, reign);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Reigns::default();
    }

    /// The reign that began last; `None` before the first.
    pub fn last(&self) -> Option<ReignRecord> {
        self.records.last().copied()
    }

    /// The last of them, as slaves are told of them.
    pub fn lineage(&self) -> Vec<ReignStart> {
        let left_out = self.records.len().saturating_sub(LINEAGE_MAX);
        self.records.iter().skip(left_out).map(ReignRecord::start).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The identity of the log's reign with that epoch; 0 for an epoch without an EPOCH record, such as that of the
    /// original program's lines.
    pub fn id_of(&self, epoch: Epoch) -> ReignId {
        match self.records.last() {
            Some(last) if last.reign.epoch == epoch => last.reign.id,
            Some(_) | None => self.index_of(epoch).map_or(ReignId(0), |index| self.records[index].reign.id),
        }
    }

    /// What identifies a copy of this version.
    pub fn stamp(&self, version: Version) -> Stamp {
        Stamp { version, reign: self.id_of(version.epoch) }
    }

    /// Whether a copy is from a reign of this log.
    pub(super) fn is_ours(&self, stamp: Stamp) -> bool {
        self.id_of(stamp.version.epoch) == stamp.reign
    }

    /// Whether a copy that the directory does not name may be dropped: the log proves that it is superseded, or that
    /// nothing is lost with it. If not, it is evidence of records that the log lacks.
    pub(super) fn may_drop(&self, stamp: Stamp) -> bool {
        let Stamp { version, reign } = stamp;
        if self.is_given_up(Reign { epoch: version.epoch, id: reign }) {
            return true;
        }
        let index = self.index_of(version.epoch).ok();
        match index.and_then(|index| self.records.get(index)) {
            Some(record) if record.reign.id == reign => {
                !record.durable || self.end_of(version.epoch).is_none_or(|end| version.seq < end)
            }
            Some(_) => false,
            // An epoch without an EPOCH record: lines of the original program, or written by hand.
            None => reign == ReignId(0),
        }
    }

    /// Judges a slave's memory, at a master whose own reign is the last one here.
    pub fn testimony(&self, seen: &Seen) -> Testimony {
        let Some((own, before)) = self.records.split_last() else { return Testimony::Agrees };
        if seen.reign == own.reign {
            return Testimony::Agrees;
        }
        self.weigh(before, own.first, seen)
    }

    /// Judges a slave's memory at a master whose reign has not begun: the log ends with the record `end`.
    pub fn testimony_at(&self, end: Seq, seen: &Seen) -> Testimony {
        self.weigh(&self.records, end.next(), seen)
    }

    /// The same for the reigns in `log`, the last of which has ended before the seq `end`.
    fn weigh(&self, log: &[ReignRecord], end: Seq, seen: &Seen) -> Testimony {
        if self.is_given_up(seen.reign) {
            return Testimony::Agrees;
        }
        let last = log.last().map(|last| last.reign);
        let ended_last = last.is_none_or(|last| last == seen.reign || seen.reign.epoch > last.epoch);
        let index = log.binary_search_by_key(&seen.reign.epoch, |record| record.reign.epoch).ok();
        let known = index.filter(|index| log[*index].reign.id == seen.reign.id);
        let agrees = known.is_some_and(|index| {
            !seen.durable || seen.seq < log.get(index + 1).map_or(end, |next| next.first)
        });
        if agrees {
            Testimony::Agrees
        } else if ended_last {
            Testimony::LogIsShort
        } else {
            Testimony::Elsewhere
        }
    }

    fn is_given_up(&self, reign: Reign) -> bool {
        self.given_up.binary_search(&reign).is_ok()
    }

    /// The seq at which the reign of that epoch has ended; `None` while it is the last one.
    fn end_of(&self, epoch: Epoch) -> Option<Seq> {
        let next = self.records.partition_point(|record| record.reign.epoch <= epoch);
        self.records.get(next).map(|record| record.first)
    }

    fn index_of(&self, epoch: Epoch) -> Result<usize, usize> {
        self.records.binary_search_by_key(&epoch, |record| record.reign.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reign 1 (id 10) from seq 2, reign 2 (id 20) from seq 8, reign 3 (id 30), ours, from seq 12.
    fn table(durable: bool) -> Reigns {
        let mut reigns = Reigns::default();
        for (epoch, first) in [(1, 2), (2, 8), (3, 12)] {
            reigns.begin(ReignRecord { reign: Reign::new(epoch, epoch * 10), first: Seq(first), durable });
        }
        reigns
    }

    fn seen(epoch: u64, id: u64, seq: u64) -> Seen {
        Seen { reign: Reign::new(epoch, id), seq: Seq(seq), durable: true }
    }

    #[test]
    fn an_epoch_stands_for_one_reign() {
        let reigns = table(true);
        assert_eq!(reigns.id_of(Epoch(2)), ReignId(20));
        assert_eq!(reigns.id_of(Epoch(9)), ReignId(0));
        assert!(reigns.is_ours(Stamp { version: Version::new(2, 9), reign: ReignId(20) }));
        assert!(!reigns.is_ours(Stamp { version: Version::new(2, 9), reign: ReignId(21) }));
    }

    #[test]
    fn what_a_slave_has_seen_must_be_in_the_log() {
        let reigns = table(true);
        assert_eq!(reigns.testimony(&seen(2, 20, 11)), Testimony::Agrees);
        assert_eq!(reigns.testimony(&seen(1, 10, 7)), Testimony::Agrees);
        assert_eq!(reigns.testimony(&seen(3, 30, 99)), Testimony::Agrees);
        // A version after the end of the last reign before ours; a reign of our own epoch, and a later one.
        assert_eq!(reigns.testimony(&seen(2, 20, 12)), Testimony::LogIsShort);
        assert_eq!(reigns.testimony(&seen(3, 31, 12)), Testimony::LogIsShort);
        assert_eq!(reigns.testimony(&seen(7, 70, 1)), Testimony::LogIsShort);
        // The branch is before a reign that has served since.
        assert_eq!(reigns.testimony(&seen(2, 21, 9)), Testimony::Elsewhere);
        assert_eq!(reigns.testimony(&seen(1, 10, 8)), Testimony::Elsewhere);
    }

    #[test]
    fn slaves_are_told_of_the_last_reigns_in_order() {
        let mut reigns = table(true);
        let first = reigns.lineage()[0];
        assert_eq!((first.reign, first.first, reigns.lineage().len()), (Reign::new(1, 10), Seq(2), 3));
        for epoch in 4..=LINEAGE_MAX as u64 + 1 {
            let reign = Reign::new(epoch, epoch);
            reigns.begin(ReignRecord { reign, first: Seq(epoch * 10), durable: true });
        }
        let told = reigns.lineage();
        assert_eq!((told.len(), told[0].reign), (LINEAGE_MAX, Reign::new(2, 20)));
        assert_eq!(told[LINEAGE_MAX - 1].first, Seq(LINEAGE_MAX as u64 * 10 + 10));
    }

    #[test]
    fn only_a_durable_reign_bears_witness_of_its_end() {
        let tail = Seen { durable: false, ..seen(2, 20, 12) };
        assert_eq!(table(true).testimony(&tail), Testimony::Agrees);
        // Its EPOCH record was on disk all the same.
        let reign = Seen { durable: false, ..seen(7, 70, 1) };
        assert_eq!(table(true).testimony(&reign), Testimony::LogIsShort);
    }

    #[test]
    fn an_accepted_loss_is_no_loss() {
        let mut reigns = table(true);
        reigns.give_up(Reign::new(7, 70));
        assert_eq!(reigns.testimony(&seen(7, 70, 1)), Testimony::Agrees);
        assert!(reigns.may_drop(Stamp { version: Version::new(7, 1), reign: ReignId(70) }));
    }

    #[test]
    fn a_copy_is_dropped_only_if_the_log_proves_it_superseded() {
        let stamp = |epoch, seq, id| Stamp { version: Version::new(epoch, seq), reign: ReignId(id) };
        let reigns = table(true);
        assert!(reigns.may_drop(stamp(2, 9, 20)));
        assert!(reigns.may_drop(stamp(3, 13, 30)));
        assert!(!reigns.may_drop(stamp(2, 12, 20)));
        assert!(!reigns.may_drop(stamp(2, 9, 21)));
        assert!(!reigns.may_drop(stamp(4, 9, 40)));
        assert!(table(false).may_drop(stamp(2, 12, 20)));
        assert!(reigns.may_drop(stamp(0, 1, 0)));
    }
}
