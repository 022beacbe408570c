//! The answers to a leader's appends, in the order in which they were asked for.
//!
//! Owns which write is which proposal, and what waits for those before it: refusals, and the ends of syncs and closings. Pure: it
//! takes in what became of a proposal, and gives what is to be told.

use crate::journal::{Written, WrittenRecord};
use dsm_consensus::machine::ProposalTag;
use dsm_protocol::command::ErrorWord;
use dsm_protocol::ids::Version;
use dsm_protocol::machine::log_scan::Replay;
use dsm_protocol::machine::master::WriteId;
use dsm_protocol::record::Place;
use std::collections::VecDeque;

/// Why a write is refused.
pub(super) type WriteRefusal = (ErrorWord, String);

/// What is to be told.
#[derive(Debug)]
pub(super) enum AppendAnswer {
    /// These writes are in the log, or refused.
    Written(Written),
    /// All that was asked for before is answered.
    Reached(Milestone),
}

/// What waits for all appends before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Milestone {
    /// `LogRequest::Sync`.
    Sync,
    /// `LogRequest::Abandon`.
    Abandon,
}

#[derive(Debug)]
enum UnansweredAppend {
    Proposed { tag: ProposalTag, write: WriteId },
    Refused { write: WriteId, refusal: WriteRefusal },
    Milestone(Milestone),
}

/// Appends that are not answered.
#[derive(Debug, Default)]
pub(super) struct Appends {
    waiting: VecDeque<UnansweredAppend>,
    last_tag: u64,
    /// How many of this reign were refused.
    refusals: u64,
    answers: Vec<AppendAnswer>,
    /// The log's length, as it is told.
    pub(super) log_bytes: u64,
}

impl Appends {
    /// A reign begins.
    pub(super) fn begin(&mut self) {
        self.refusals = 0;
    }

    /// How many were refused in this reign.
    pub(super) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A write is about to be proposed; gives its tag.
    pub(super) fn propose(&mut self, write: WriteId) -> ProposalTag {
        self.last_tag += 1;
        let tag = ProposalTag(self.last_tag);
        self.waiting.push_back(UnansweredAppend::Proposed { tag, write });
        tag
    }

    /// A write is refused, and proposed nowhere.
    pub(super) fn refuse(&mut self, write: WriteId, refusal: WriteRefusal) {
        self.refusals += 1;
        self.waiting.push_back(UnansweredAppend::Refused { write, refusal });
        self.settle();
    }

    /// Something is wanted once everything before it is answered.
    pub(super) fn after_all(&mut self, milestone: Milestone) {
        self.waiting.push_back(UnansweredAppend::Milestone(milestone));
        self.settle();
    }

    /// A proposal is in the log.
    pub(super) fn committed(&mut self, tag: ProposalTag, version: Version, changes: &[Replay]) {
        let front = self.waiting.pop_front();
        let Some(UnansweredAppend::Proposed { tag: first, write }) = front else {
            panic!("{tag:?} is committed, and {front:?} comes before it");
        };
        assert_eq!(first, tag, "proposals are committed in their order");
        let places = changes.iter().filter_map(place_of).collect();
        let record = WrittenRecord { write, version, places };
        match self.answers.last_mut() {
            Some(AppendAnswer::Written(Written { writes, refused, .. })) if refused.is_empty() => {
                writes.push(record);
            }
            Some(AppendAnswer::Written(_) | AppendAnswer::Reached(_)) | None => {
                let (refused, refusal, bytes) = (Vec::new(), None, 0);
                let written = Written { writes: vec![record], refused, refusal, bytes };
                self.answers.push(AppendAnswer::Written(written));
            }
        }
        self.settle();
    }

    /// Proposals came to nothing, or nobody knows what became of them.
    pub(super) fn refused(&mut self, tags: &[ProposalTag], refusal: &WriteRefusal) {
        for waiting in &mut self.waiting {
            if let UnansweredAppend::Proposed { tag, write } = waiting {
                if tags.contains(tag) {
                    let (write, refusal) = (*write, refusal.clone());
                    *waiting = UnansweredAppend::Refused { write, refusal };
                    self.refusals += 1;
                }
            }
        }
        self.settle();
    }

    /// What is to be told by now, in this order.
    pub(super) fn take_answers(&mut self) -> Vec<AppendAnswer> {
        let mut answers = std::mem::take(&mut self.answers);
        for answer in &mut answers {
            if let AppendAnswer::Written(written) = answer {
                written.bytes = self.log_bytes;
            }
        }
        answers
    }

    /// Takes what nothing is in front of any more.
    fn settle(&mut self) {
        loop {
            match self.waiting.pop_front() {
                Some(UnansweredAppend::Refused { write, refusal }) => self.tell_refused(write, refusal),
                Some(UnansweredAppend::Milestone(milestone)) => {
                    self.answers.push(AppendAnswer::Reached(milestone))
                }
                Some(proposed @ UnansweredAppend::Proposed { .. }) => {
                    self.waiting.push_front(proposed);
                    return;
                }
                None => return,
            }
        }
    }

    fn tell_refused(&mut self, write: WriteId, refusal: WriteRefusal) {
        if let Some(AppendAnswer::Written(written)) = self.answers.last_mut() {
            if written.refusal.as_ref().is_none_or(|told| *told == refusal) {
                written.refused.push(write);
                written.refusal = Some(refusal);
                return;
            }
        }
        let (writes, refused) = (Vec::new(), vec![write]);
        let written = Written { writes, refused, refusal: Some(refusal), bytes: 0 };
        self.answers.push(AppendAnswer::Written(written));
    }
}

/// Where the value of a change stands, if it writes one.
fn place_of(change: &Replay) -> Option<Place> {
    match change {
        Replay::Put { place, .. } => Some(*place),
        Replay::Delete { .. } | Replay::Reign(_) | Replay::GivenUp(_) | Replay::Time(_) => None,
    }
}
