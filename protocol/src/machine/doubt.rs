//! Self-doubt: whether a deadline has passed because of the peer, or because this process did not run.
//!
//! Owns the rule that a timeout counts only time in which this process ran. Decides nothing about peers.

use crate::ids::Millis;

/// Watches our own clock. It must be told the time every few dozen milliseconds. A longer gap means that the process
/// did not run (SIGSTOP, a suspended machine, a starved scheduler).
#[derive(Clone, Debug)]
pub struct SelfDoubt {
    jump_ms: u64,
    last: Millis,
    resumed: Option<Millis>,
    jumps: u64,
}

impl SelfDoubt {
    /// A gap of more than `jump_ms` counts as a pause of our own.
    pub fn new(now: Millis, jump_ms: u64) -> Self {
        SelfDoubt { jump_ms, last: now, resumed: None, jumps: 0 }
    }

    /// Notes that the process runs at `now`. Returns whether it had been paused.
    pub fn observe(&mut self, now: Millis) -> bool {
        let jumped = now.since(self.last) > self.jump_ms;
        if jumped {
            self.resumed = Some(now);
            self.jumps += 1;
        }
        self.last = self.last.max(now);
        jumped
    }

    /// The point from which a wait that began at `began` is counted. After a pause of our own the wait starts again,
    /// because answers may lie unread in our sockets.
    pub fn counted_from(&self, began: Millis) -> Millis {
        self.resumed.map_or(began, |resumed| resumed.max(began))
    }

    /// Whether a wait that began at `began` has lasted `timeout_ms` of our own running time.
    pub fn expired(&self, now: Millis, began: Millis, timeout_ms: u64) -> bool {
        now.since(self.last) <= self.jump_ms && now.since(self.counted_from(began)) >= timeout_ms
    }

    /// How often the process had been paused.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }
}

/// Why a process has fallen silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its own work took so long.
    Busy,
    /// It was ready to run, but other processes had the processors.
    Starved,
    /// Neither: it was stopped, or its machine was.
    Paused,
}

/// Why a process has fallen silent for `silent_ms`: whatever took most of that time. It computed for `computed_ms` and
/// waited for a processor for `waited_ms`, as far as the system counts that.
pub fn cause(silent_ms: u64, computed_ms: u64, waited_ms: u64) -> Cause {
    let unaccounted_ms = silent_ms.saturating_sub(computed_ms).saturating_sub(waited_ms);
    if unaccounted_ms > computed_ms.max(waited_ms) {
        Cause::Paused
    } else if waited_ms > computed_ms {
        Cause::Starved
    } else {
        Cause::Busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_named_after_what_took_most_of_it() {
        for (silent_ms, computed_ms, waited_ms, expected) in [
            (5000, 0, 0, Cause::Paused),
            (5000, 20, 40, Cause::Paused),
            (300, 290, 5, Cause::Busy),
            (300, 100, 190, Cause::Starved),
            (300, 10, 285, Cause::Starved),
            // The three times are counted in different places, so their sum may exceed the whole.
            (300, 290, 290, Cause::Busy),
            (300, 100, 60, Cause::Paused),
        ] {
            let found = cause(silent_ms, computed_ms, waited_ms);
            assert_eq!(found, expected, "{silent_ms} {computed_ms} {waited_ms}");
        }
    }

    #[test]
    fn a_wait_counts_from_the_end_of_a_pause_of_this_process() {
        let mut doubt = SelfDoubt::new(Millis(0), 250);
        for at in (0..=900).step_by(25) {
            assert!(!doubt.observe(Millis(at)));
        }
        // Stopped from 900 to 5000: the deadline at 1000 passed while the process could not read the answer.
        assert!(!doubt.expired(Millis(5000), Millis(0), 1000), "a verdict before anyone observed the jump");
        assert!(doubt.observe(Millis(5000)));
        assert!(!doubt.expired(Millis(5000), Millis(0), 1000));
        for at in (5000..=6000).step_by(25) {
            doubt.observe(Millis(at));
        }
        assert!(doubt.expired(Millis(6000), Millis(0), 1000));
        assert_eq!(doubt.jumps(), 1);
    }

    #[test]
    fn a_wait_that_began_after_the_pause_is_not_prolonged() {
        let mut doubt = SelfDoubt::new(Millis(0), 250);
        doubt.observe(Millis(5000));
        for at in (5000..=6100).step_by(25) {
            doubt.observe(Millis(at));
        }
        assert!(doubt.expired(Millis(6100), Millis(5100), 1000));
        assert!(!doubt.expired(Millis(6099), Millis(5100), 1000));
    }
}
