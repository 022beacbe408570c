//! Planted bugs: proof that the simulation would find such a bug if it were real.
//!
//! Owns their list and the switch that plants one in the current thread. Without the feature `mutants` none of this exists, and
//! `planted!(…)` is `false`. The list is apart from that of `dsm-protocol`, whose bugs the simulation of whole clusters finds.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!(
    "planted bugs (feature `mutants`) are for tests: they are never built without debug assertions"
);

/// Whether the named bug is planted in this thread; the code then does the wrong thing.
#[cfg(feature = "mutants")]
macro_rules! planted {
    ($bug:ident) => {
        $crate::mutant::is_planted($crate::mutant::ConsensusMutant::$bug)
    };
}

/// Nothing is planted in this build.
#[cfg(not(feature = "mutants"))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

pub(crate) use planted;

#[cfg(feature = "mutants")]
pub use on::{is_planted, plant, ConsensusMutant};

#[cfg(feature = "mutants")]
mod on {
    use std::cell::Cell;

    /// A bug that can be planted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ConsensusMutant {
        /// What is handed to the disk counts as synced at once.
        AckBeforeSync,
        /// Messages that rest on a sync leave before it.
        MessagesBeforeSync,
        /// The vote is not written to the vote file.
        VoteNotKept,
        /// The term is not written to the vote file, so it is used again after a restart.
        TermNotKept,
        /// A conflicting suffix is not cut from the log on disk.
        NotCut,
        /// Reads are confirmed while the leader believes in its reign, without asking the others.
        LeaseRead,
        /// Reads are confirmed before the leader's first entry is committed.
        ReadBeforeFirstEntry,
        /// What a deposed leader proposed is reported as not executed.
        DeposedSaidRefused,
        /// The new file is swapped in before it is synced.
        SwapBeforeSync,
        /// A chunk of a stream is taken wherever in the file it belongs.
        AnyChunkTaken,
        /// A stream of another leader goes on where the one before it ended.
        StreamGoesOnElsewhere,
        /// The log is purged through its end, committed or not.
        PurgedTooFar,
        /// A stream counts as swapped in when that is handed to the disk.
        RestoredBeforeSwap,
        /// A stream is swapped in without its last chunk.
        LastChunkLost,
        /// A transfer of the leadership is reported as done when it begins.
        TransferToldEarly,
        /// A leader goes on although its disk hangs.
        HungDiskGoesOn,
        /// A machine with an empty disk takes the number that its address had, whoever had it.
        NumberTakenAgain,
        /// One member takes another's place in one step, without a time in which both sets of voters must agree.
        JointSkipped,
        /// A member that was removed goes on.
        RemovedGoesOn,
        /// A stream brings everything but the members.
        MembersNotRestored,
        /// The vote file does not learn that a change of the members is committed before the log has the next one.
        ChangeNotNoted,
        /// A member that was removed ends as soon as it knows, whether another one does or not.
        RemovedLeavesAtOnce,
        /// A change of the members is begun whether those that would have a vote are alive or not.
        QuorumNotAsked,
        /// A read is confirmed before a majority was asked.
        ReadAnsweredEarly,
        /// The vote file says that the log is committed further than the disk has it.
        CommitNotedEarly,
        /// The log is purged of what a live follower lacks, although it may be kept.
        LiveFollowerPurged,
        /// A new cluster keeps of the log only what is known to be committed.
        TailForgotten,
        /// A change counts as settled when a majority has its record, known to be committed or not.
        SettledEarly,
    }

    impl ConsensusMutant {
        /// Every bug.
        pub const ALL: [ConsensusMutant; 28] = [
            ConsensusMutant::AckBeforeSync,
            ConsensusMutant::MessagesBeforeSync,
            ConsensusMutant::VoteNotKept,
            ConsensusMutant::TermNotKept,
            ConsensusMutant::NotCut,
            ConsensusMutant::LeaseRead,
            ConsensusMutant::ReadBeforeFirstEntry,
            ConsensusMutant::DeposedSaidRefused,
            ConsensusMutant::SwapBeforeSync,
            ConsensusMutant::AnyChunkTaken,
            ConsensusMutant::StreamGoesOnElsewhere,
            ConsensusMutant::PurgedTooFar,
            ConsensusMutant::RestoredBeforeSwap,
            ConsensusMutant::LastChunkLost,
            ConsensusMutant::TransferToldEarly,
            ConsensusMutant::HungDiskGoesOn,
            ConsensusMutant::NumberTakenAgain,
            ConsensusMutant::JointSkipped,
            ConsensusMutant::RemovedGoesOn,
            ConsensusMutant::MembersNotRestored,
            ConsensusMutant::ChangeNotNoted,
            ConsensusMutant::RemovedLeavesAtOnce,
            ConsensusMutant::QuorumNotAsked,
            ConsensusMutant::ReadAnsweredEarly,
            ConsensusMutant::CommitNotedEarly,
            ConsensusMutant::LiveFollowerPurged,
            ConsensusMutant::TailForgotten,
            ConsensusMutant::SettledEarly,
        ];
    }

    thread_local! {
        static PLANTED: Cell<Option<ConsensusMutant>> = const { Cell::new(None) };
    }

    /// Plants a bug in this thread, or none.
    pub fn plant(bug: Option<ConsensusMutant>) {
        PLANTED.set(bug);
    }

    /// Whether the bug is planted in this thread.
    pub fn is_planted(bug: ConsensusMutant) -> bool {
        PLANTED.get() == Some(bug)
    }
}
