//! How long the turns of this node take.
//!
//! One thread runs everything in a node, so whatever runs long holds everything else up. Owns the count of turns by their
//! length, which INFO shows: a turn is one message to an actor, or what a task does between two waits. How long it took
//! and how long it computed are two things where others have the processors. Judges nothing, and takes two looks at a
//! clock for each turn, which `timings.rs` measures other things by; the one for computing, which is a system call, is asked a thousand times a second at most.

use crate::env::Env;
use crate::timings::Timings;
use dsm_protocol::info::TurnsInfo;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;

/// Where the classes of lengths end, in microseconds. The last class has no end.
const CLASS_ENDS_US: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// The turns of one node.
pub(crate) struct TurnLengths {
    env: Env,
    /// Where all is counted that this node measures.
    timings: Rc<Timings>,
    /// How many turns there were, by their length.
    counts: [Cell<u64>; CLASS_ENDS_US.len() + 1],
    longest: Cell<Longest>,
    /// How many computed for 10 ms or longer.
    computing_long: Cell<u64>,
    longest_computing: Cell<Longest>,
    /// For how long the longest one of each kind computed that took a millisecond or longer, in microseconds.
    computing_by: RefCell<BTreeMap<&'static str, u64>>,
    /// When it was last asked for how long this thread has computed, and the answer, both in microseconds.
    computed: Cell<(u64, Option<u64>)>,
}

/// The longest turn so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Longest {
    /// In microseconds.
    pub(crate) us: u64,
    /// What it was in.
    pub(crate) name: &'static str,
}

impl Longest {
    const NONE: Self = Longest { us: 0, name: "none" };

    fn note(cell: &Cell<Self>, name: &'static str, us: u64) {
        if us > cell.get().us {
            cell.set(Longest { us, name });
        }
    }
}

/// A turn that computes for so long is too long, in microseconds.
const LONG_US: u64 = 10_000;

/// So often it is asked for how long this thread has computed, in microseconds: what a turn computed is known to within
/// that.
const COMPUTED_EVERY_US: u64 = 1_000;

impl TurnLengths {
    pub(crate) fn new(env: Env) -> Rc<Self> {
        Rc::new(TurnLengths {
            env,
            timings: Rc::default(),
            counts: Default::default(),
            longest: Cell::new(Longest::NONE),
            computing_long: Cell::new(0),
            longest_computing: Cell::new(Longest::NONE),
            computing_by: RefCell::default(),
            computed: Cell::new((0, None)),
        })
    }

    /// Where all is counted that this node measures.
    pub(crate) fn timings(&self) -> &Rc<Timings> {
        &self.timings
    }

    /// Begins a turn in what is called `name`; it ends with the drop of what this gives.
    pub(crate) fn begin(self: &Rc<Self>, name: &'static str) -> Turn {
        let began_us = self.env.clock_us();
        self.timings.note_clock(began_us);
        if began_us.saturating_sub(self.computed.get().0) >= COMPUTED_EVERY_US {
            self.computed.set((began_us, self.env.computed_us()));
        }
        Turn { lengths: Rc::clone(self), name, began_us }
    }

    /// Counts the turns of a task, which is called what `name` says at the end of each.
    pub(crate) async fn watch<F: Future>(self: Rc<Self>, name: &Cell<&'static str>, task: F) -> F::Output {
        let mut task = pin!(task);
        std::future::poll_fn(|context| {
            let mut turn = self.begin(name.get());
            let polled = task.as_mut().poll(context);
            turn.name = name.get();
            polled
        })
        .await
    }

    fn note(&self, name: &'static str, took_us: u64) {
        self.timings.turns.note(took_us);
        let class = CLASS_ENDS_US.iter().position(|end| took_us < *end).unwrap_or(CLASS_ENDS_US.len());
        let count = &self.counts[class];
        count.set(count.get() + 1);
        Longest::note(&self.longest, name, took_us);
        if class == 0 {
            return;
        }
        let before = self.computed.replace((self.env.clock_us(), self.env.computed_us())).1;
        let computed = before.zip(self.computed.get().1).map(|(before, after)| after.saturating_sub(before));
        let computing_us = computed.unwrap_or(took_us).min(took_us);
        if computing_us >= LONG_US {
            self.computing_long.set(self.computing_long.get() + 1);
        }
        Longest::note(&self.longest_computing, name, computing_us);
        let mut computing_by = self.computing_by.borrow_mut();
        let longest = computing_by.entry(name).or_default();
        *longest = computing_us.max(*longest);
    }

    /// How many turns there were.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().map(Cell::get).sum()
    }

    /// What INFO says of the turns.
    pub(crate) fn info(&self) -> TurnsInfo {
        let count = |class: usize| self.counts[class].get();
        let (longest, computing) = (self.longest.get(), self.longest_computing.get());
        let by_kind = self.computing_by.borrow();
        TurnsInfo {
            turns_below_1ms: count(0),
            turns_1ms_to_10ms: count(1),
            turns_10ms_to_100ms: count(2),
            turns_100ms_to_1s: count(3),
            turns_above_1s: count(4),
            turn_longest_us: longest.us,
            turn_longest_in: longest.name.to_owned(),
            turns_computing_above_10ms: self.computing_long.get(),
            turn_longest_computing_us: computing.us,
            turn_longest_computing_in: computing.name.to_owned(),
            turn_longest_computing_by_kind: by_kind
                .iter()
                .map(|(name, us)| ((*name).to_owned(), *us))
                .collect(),
        }
    }
}

/// A turn that has begun.
pub(crate) struct Turn {
    lengths: Rc<TurnLengths>,
    name: &'static str,
    began_us: u64,
}

impl Turn {
    /// How long it has taken so far, in microseconds.
    pub(crate) fn took_us(&self) -> u64 {
        self.lengths.env.clock_us().saturating_sub(self.began_us)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now_us = self.lengths.env.clock_us();
        self.lengths.timings.note_clock(now_us);
        self.lengths.note(self.name, now_us.saturating_sub(self.began_us));
    }
}
