//! Who takes part: the number of a member.

use std::fmt;

/// A master's number among those that keep one log. It is never 0, and never given to another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(u64);

impl MemberId {
    /// The member that begins a cluster.
    pub const FIRST: MemberId = MemberId(1);

    /// The member with this number; `None` for 0, by which the engine means nobody.
    pub fn new(number: u64) -> Option<Self> {
        (number != 0).then_some(MemberId(number))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
