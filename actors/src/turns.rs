//! How long the turns of this node take.
//!
//! One thread runs everything in a node, so whatever runs long holds everything else up. Owns the count of turns by their
//! length, which INFO shows. Judges nothing, and takes two looks at a clock for each turn.

use crate::env::Env;
use std::cell::Cell;
use std::rc::Rc;

/// Where the classes of lengths end, in microseconds. The last class has no end.
const CLASS_ENDS_US: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// The names of the classes, as INFO has them.
const CLASS_NAMES: [&str; 5] =
    ["turns_below_1ms", "turns_1ms_to_10ms", "turns_10ms_to_100ms", "turns_100ms_to_1s", "turns_above_1s"];

/// The turns of one node.
pub(crate) struct TurnLengths {
    env: Env,
    counts: [Cell<u64>; CLASS_NAMES.len()],
    longest_us: Cell<u64>,
    longest_in: Cell<&'static str>,
}

impl TurnLengths {
    /// None yet.
    pub(crate) fn new(env: Env) -> Rc<Self> {
        Rc::new(TurnLengths {
            env,
            counts: Default::default(),
            longest_us: Cell::new(0),
            longest_in: Cell::new("none"),
        })
    }

    /// Begins a turn in what is called `name`; it ends with the drop of what this gives.
    pub(crate) fn begin(self: &Rc<Self>, name: &'static str) -> Turn {
        Turn { lengths: Rc::clone(self), name, began_us: self.env.clock_us() }
    }

    fn note(&self, name: &'static str, took_us: u64) {
        let class = CLASS_ENDS_US.iter().position(|end| took_us < *end).unwrap_or(CLASS_ENDS_US.len());
        let count = &self.counts[class];
        count.set(count.get() + 1);
        if took_us > self.longest_us.get() {
            self.longest_us.set(took_us);
            self.longest_in.set(name);
        }
    }

    /// How many turns there were by their length: the classes with their names.
    pub(crate) fn classes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        CLASS_NAMES.into_iter().zip(self.counts.iter().map(Cell::get))
    }

    /// How long the longest one took, in microseconds, and in what.
    pub(crate) fn longest(&self) -> (u64, &'static str) {
        (self.longest_us.get(), self.longest_in.get())
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
        self.lengths.note(self.name, self.took_us());
    }
}
