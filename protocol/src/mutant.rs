//! Planted bugs: proof that the simulation would find such a bug if it were real. See `docs/ARCHITECTURE.md`, *Planted
//! bugs*.
//!
//! Owns the list of the bugs and the switch that plants one in the current thread. Without the feature `mutants` none
//! of this exists, and `planted!(…)` is `false`. With the feature the build fails without debug assertions, so that no
//! released program can contain a planted bug.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!(
    "planted bugs (feature `mutants`) are for tests: they are never built without debug assertions"
);

/// Whether the named `Mutant` is planted in this thread; the code then does the wrong thing. With a block: runs the
/// block, which is the wrong thing, if the mutant is planted.
#[cfg(feature = "mutants")]
#[doc(hidden)]
#[macro_export]
macro_rules! planted {
    ($mutant:ident) => {
        $crate::mutant::is_planted($crate::mutant::Mutant::$mutant)
    };
    ($mutant:ident => $wrong:block) => {
        if $crate::mutant::is_planted($crate::mutant::Mutant::$mutant) $wrong
    };
}

/// Nothing is planted in this build.
#[cfg(not(feature = "mutants"))]
#[doc(hidden)]
#[macro_export]
macro_rules! planted {
    ($mutant:ident) => {
        false
    };
    ($mutant:ident => $wrong:block) => {};
}

#[cfg(feature = "mutants")]
pub use on::{is_planted, plant, Mutant, Planted};

#[cfg(feature = "mutants")]
mod on {
    use std::cell::Cell;
    use std::marker::PhantomData;

    /// The enum, the list of its variants, and their descriptions for the table.
    macro_rules! mutants {
        ($(#[doc = $doc:literal] $name:ident,)+) => {
            /// A bug that can be planted.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub enum Mutant {
                $(#[doc = $doc] $name,)+
            }

            impl Mutant {
                /// Every bug, in the order of the declaration.
                pub const ALL: &[Mutant] = &[$(Mutant::$name),+];

                /// What it breaks, in one sentence.
                pub fn breaks(self) -> &'static str {
                    match self {
                        $(Mutant::$name => $doc.trim_ascii(),)+
                    }
                }
            }
        };
    }

    mutants! {
        /// A group of writes is answered as durable and was not synced.
        GroupNotSynced,
        /// The EPOCH record of a new reign is not synced.
        EpochNotSynced,
        /// A failed sync is tried again, and counts as done when the second try succeeds.
        FailedSyncRetried,
        /// Writes whose sync failed are answered *not executed*, and the log goes on.
        FailedSyncNotExecuted,
        /// A compacted log takes the place of the log before it is synced.
        CompactedNotSynced,
        /// After a compaction writes are answered before the directory is synced.
        ExchangeNotSynced,
        /// A compaction asks what is live before the master has taken in all that is written.
        CompactedUnsettled,
        /// What was written last while a log was compacted is not copied.
        CompactionSkipsRest,
        /// The place of a key's value is replaced by that of an older version.
        RelocatedUnchecked,
        /// SYNCED claims that the earlier records of the same group are on disk.
        SyncedTooHigh,
        /// A short write is answered as a whole one.
        ShortWriteWhole,
        /// The half line of a short write stays before the next group.
        HalfLineStays,
        /// A new holder of the lock does not write again what no SYNCED covers.
        RecoveryWritesNothingAgain,
        /// A new holder of the lock writes again what it reads, without checking that it is what was replayed.
        RecoveryBelievesMemory,
        /// A SYNCED mark that is not known to be on disk is not written again.
        MarkNotWrittenAgain,
        /// A new holder of the lock does not sync the log.
        RecoveryNotSynced,
        /// A new holder of the lock does not sync the log's directory.
        DirectoryNotSynced,
        /// A new holder of the lock goes on where its tailer was, and not at the log's end.
        RecoveryStopsEarly,
        /// A bad line is cut although a line after it proves that it had been on disk.
        EvidenceIgnored,
        /// A line whose checksum is wrong counts as good.
        BadChecksumAccepted,
        /// Every crash counts as one that the machine survived.
        EveryCrashSameBoot,
        /// Every crash counts as a power cut.
        EveryCrashPowerCut,
        /// Replay forgets deletions.
        ReplayForgetsDelete,
        /// A read is answered with a value that is not in the log yet.
        ReadOfUnwritten,
        /// A read does not wait for the write before it in the pipeline of the same connection.
        ReadOvertakesOwnWrite,
        /// A read that waits is answered with whatever is written meanwhile, even by the same connection.
        ReadSeesLaterWrite,
        /// The later slices of a read of many keys see what is written after the first one.
        SliceSeesLaterWrite,
        /// A key that its last holder lacks counts as not found, though the log has it.
        MissingMeansNotFound,
        /// A key whose time has come is told to be gone before its deletion is written.
        ExpiredUnwritten,
        /// A replay forgets when keys expire.
        ReplayForgetsExpiry,
        /// A replay takes in the first change of a transaction alone.
        ReplayHalvesApply,
        /// A transaction is executed although a key that it watches has changed.
        WatchIgnored,
        /// A write is done before any slave has acknowledged it.
        DoneWithoutAck,
        /// A write is placed without regard to the room of the slaves.
        RoomIgnored,
        /// A slave that leaves is not replaced in the writes that wait for it.
        NoSubstitute,
        /// A slave that missed an acknowledgement counts again at once, without a trial.
        LateSlaveUntried,
        /// A slave answers a read with whatever version it holds.
        SlaveReadsOlder,
        /// A slave applies a lower version over a higher one.
        SlaveAppliesLower,
        /// A slave drops a key whatever version it is told to drop.
        SlaveDropsAnyVersion,
        /// A slave obeys a master whose reign is over.
        SlaveObeysLowerEpoch,
        /// A slave waits for ever for a master that has fallen silent.
        SlaveTrustsSilence,
        /// A new reign takes the epoch of the one before.
        EpochNotRaised,
        /// A standby whose primary hangs takes over without the lock.
        TakeoverWithoutLock,
        /// A standby does not end a primary that hangs.
        NeverFences,
        /// A standby kills the process that the lock file names, whether it holds the lock or not.
        KillsUnproven,
        /// A handover does not wait for the requests in flight.
        HandoverDoesNotWait,
        /// Requests that come during a handover are executed.
        HandoverHoldsNothing,
        /// A master that is asked to stop does not wait for the requests in flight.
        StopDoesNotWait,
        /// A master that is asked to stop does not hand over first.
        StopHandsOverNothing,
        /// A standby answers by itself that a key does not exist.
        StandbyAnswersReads,
        /// A forwarded write is sent again when the link to the active master is lost.
        ForwardedWriteRepeated,
        /// Lost copies are not made again.
        LostCopiesStayLost,
        /// A repair sends the value that it has read as the latest one, which it is no longer.
        RepairCopiesOlder,
        /// Copies stay where they are, however slaves come and go.
        MisplacedCopiesStay,
        /// The copies of a slave that is drained count.
        LeavingCopiesCount,
        /// A drained slave is let go without a last walk that finds all copies of its keys elsewhere.
        DrainSkipsLastWalk,
        /// A drained slave is let go before the others have acknowledged what they were sent.
        DrainUnacked,
        /// A slave that is lost during the last walk of a drain does not put that in doubt.
        DrainForgetsLoss,
        /// A removed slave that is started anew is drained again.
        RemovalOutlivesProcess,
        /// Lost redundancy is not reported.
        LackNotTold,
        /// A client gives a master that hangs all of a request's time.
        HangTakesAllTime,
        /// Answers leave a connection in the order in which they become known.
        AnswersOutOfOrder,
        /// A master begins a new log although another process names a cluster whose log is lost.
        BeginsNewLogOverCluster,
        /// A log is served although a slave has seen records that it lacks.
        WitnessIgnored,
        /// A master does not check whether its log is at its path.
        LogPathNotWatched,
        /// A standby replays whatever is at the log's path instead of what it has.
        StandbyBelievesAnyFile,
        /// An update is decided without the write before it that is not written yet.
        UpdateIgnoresUnwritten,
        /// An update is decided by a value that was fetched and has been replaced since.
        UpdateOfOldValue,
        /// A condition is answered as not met because of a write that may yet be refused.
        RefusalOfUnwritten,
        /// A request overtakes an update of its session that is not decided.
        UpdateOvertaken,
    }

    thread_local! {
        static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
        static REACHED: Cell<u64> = const { Cell::new(0) };
    }

    /// Keeps a mutant planted in this thread until it is dropped.
    #[derive(Debug)]
    pub struct Planted(PhantomData<*const ()>);

    impl Planted {
        /// How often the code has reached the place of the bug.
        pub fn reached(&self) -> u64 {
            REACHED.get()
        }
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }

    /// Plants a bug in this thread.
    ///
    /// # Panics
    /// When another one is planted: only one at a time is tested.
    pub fn plant(mutant: Mutant) -> Planted {
        let before = PLANTED.replace(Some(mutant));
        assert_eq!(before, None, "one bug at a time");
        REACHED.set(0);
        Planted(PhantomData)
    }

    /// Whether `mutant` is planted in this thread.
    pub fn is_planted(mutant: Mutant) -> bool {
        let is_planted = PLANTED.get() == Some(mutant);
        if is_planted {
            REACHED.set(REACHED.get() + 1);
        }
        is_planted
    }
}
