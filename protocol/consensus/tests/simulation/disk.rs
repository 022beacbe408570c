//! A member's disk: what is synced, what is being synced, and what a power loss leaves of it.

use dsm_consensus::machine::{BatchNumber, LogBatch};
use dsm_consensus::vote::{VoteRecord, SLOT_BYTES};
use dsm_consensus::LogEntry;
use dsm_protocol::ids::{ClusterId, Epoch, Seq, Version};
use std::collections::VecDeque;

/// One thing that is written and, where the next rests on it, synced.
enum Step {
    Vote(VoteRecord),
    CutAfter(Seq),
    Entry(LogEntry),
}

pub(crate) struct Disk {
    pub(crate) vote_file: Vec<u8>,
    pub(crate) log: Vec<LogEntry>,
    waiting: VecDeque<LogBatch>,
    syncing: Vec<LogBatch>,
    pub(crate) cuts: u64,
    pub(crate) torn: u64,
}

impl Disk {
    /// The disk of a new member: the log has its first entry.
    pub(crate) fn new(member: dsm_consensus::ids::MemberId) -> Self {
        let vote = VoteRecord {
            number: 0,
            cluster: ClusterId(7),
            member,
            term: Epoch(1),
            vote: None,
            commit: Seq(1),
        };
        Disk {
            vote_file: vote.new_file(),
            log: vec![LogEntry { version: Version::new(1, 1), data: "CLUSTER".into() }],
            waiting: VecDeque::new(),
            syncing: Vec::new(),
            cuts: 0,
            torn: 0,
        }
    }

    pub(crate) fn write(&mut self, batch: LogBatch) {
        self.waiting.push_back(batch);
    }

    /// Begins to sync everything that waits, unless it is busy. Returns whether it has begun.
    pub(crate) fn begins(&mut self) -> bool {
        if self.syncing.is_empty() && !self.waiting.is_empty() {
            self.syncing = self.waiting.drain(..).collect();
            return true;
        }
        false
    }

    /// Everything that was being synced is on disk.
    pub(crate) fn ends(&mut self) -> Option<BatchNumber> {
        let last = self.syncing.last()?.number;
        self.does(u64::MAX);
        Some(last)
    }

    /// The process dies; the system keeps what was being written.
    pub(crate) fn crash(&mut self) {
        self.does(u64::MAX);
        self.waiting.clear();
    }

    /// The power goes: of what was being synced there is only a part.
    pub(crate) fn power_loss(&mut self, drawn: u64) {
        self.does(drawn);
        self.waiting.clear();
    }

    /// Does the first steps of what is being synced: all, or as many as is drawn. The one after them may be half done.
    fn does(&mut self, drawn: u64) {
        let batches = std::mem::take(&mut self.syncing);
        let mut steps = Vec::new();
        if let Some((term, vote, commit)) = batches.iter().rev().find_map(|batch| batch.vote) {
            let before = VoteRecord::of_file(&self.vote_file).expect("one slot is whole");
            steps.push(Step::Vote(VoteRecord { number: before.number + 1, term, vote, commit, ..before }));
        }
        for batch in batches {
            steps.extend(batch.cut_after.map(Step::CutAfter));
            steps.extend(batch.entries.into_iter().map(Step::Entry));
        }
        let all = drawn == u64::MAX;
        let whole = if all { steps.len() } else { drawn as usize % (steps.len() + 1) };
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Vote(vote) => {
                    let (begin, slot) = vote.slot();
                    let bytes = if at < whole { SLOT_BYTES } else { (drawn >> 8) as usize % 130 };
                    self.vote_file[begin..begin + bytes].copy_from_slice(&slot[..bytes]);
                    self.torn += u64::from(at >= whole);
                }
                Step::CutAfter(seq) if at < whole => {
                    self.log.truncate(seq.0 as usize);
                    self.cuts += 1;
                }
                Step::Entry(entry) if at < whole => {
                    let place = entry.version.seq.0 as usize - 1;
                    if place < self.log.len() {
                        self.log[place] = entry;
                    } else {
                        assert_eq!(place, self.log.len(), "the file has a gap");
                        self.log.push(entry);
                    }
                }
                Step::CutAfter(_) | Step::Entry(_) => {}
            }
            if at >= whole {
                return;
            }
        }
    }
}
