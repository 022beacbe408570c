//! What is told once, though it happens again and again: a peer that is refused asks again, for as long as it lives. Who
//! takes a new name each time gets no more lines than anybody.

use dsm_protocol::ids::Millis;
use dsm_protocol::machine::welcome::Unwelcome;
use std::collections::VecDeque;

/// How many are remembered; of more, the oldest are told again.
const KNOWN_MAX: usize = 256;

/// How much may be told in [`SPAN_MS`], whoever it is of.
const LINES_MAX: usize = 32;

/// The span of [`LINES_MAX`], in milliseconds.
const SPAN_MS: u64 = 60_000;

/// Who was told of, and why.
#[derive(Debug, Default)]
pub(super) struct Told {
    known: VecDeque<(String, Unwelcome)>,
    /// When the span began.
    since: Millis,
    /// How much was told in it.
    lines: usize,
    /// How much was not told since the last line.
    unsaid: u64,
}

impl Told {
    /// Whether this is to be told: it is of somebody, or for a reason, that was not told before, and not too much was. If so,
    /// how much was not told since the last line.
    pub(super) fn is_new(&mut self, who: &str, why: Unwelcome, now: Millis) -> Option<u64> {
        if self.known.iter().any(|(known, reason)| known == who && *reason == why) {
            return None;
        }
        if now.since(self.since) >= SPAN_MS {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines >= LINES_MAX {
            self.unsaid += 1;
            return None;
        }
        self.lines += 1;
        self.forget(who);
        if self.known.len() >= KNOWN_MAX {
            self.known.pop_front();
        }
        self.known.push_back((who.to_owned(), why));
        Some(std::mem::take(&mut self.unsaid))
    }

    /// What happens to this one next is told again.
    pub(super) fn forget(&mut self, who: &str) {
        self.known.retain(|(known, _)| known != who);
    }
}

/// What a line says of those that were not told; nothing, if there were none.
pub(super) fn more(unsaid: u64) -> String {
    if unsaid == 0 {
        return String::new();
    }
    format!("; {unsaid} more were refused and not logged")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_protocol::ids::SlaveId;

    #[test]
    fn each_reason_is_logged_once_and_again_after_it_has_passed() {
        let mut told = Told::default();
        let in_use = Unwelcome::NameInUse { id: SlaveId::new("slave-1").unwrap() };
        let mut is_new = |who: &str, why: &Unwelcome, forget: bool| {
            if forget {
                told.forget(who);
            }
            told.is_new(who, why.clone(), Millis(0)).is_some()
        };
        assert!(is_new("slave-1", &in_use, false));
        assert!(!is_new("slave-1", &in_use, false));
        assert!(is_new("slave-2", &in_use, false));
        assert!(is_new("slave-1", &Unwelcome::NoSlot, false));
        assert!(!is_new("slave-1", &Unwelcome::NoSlot, false));
        assert!(is_new("slave-1", &Unwelcome::NoSlot, true));
        assert!(!is_new("slave-2", &in_use, false));
    }

    #[test]
    fn many_names_take_bounded_memory_and_bounded_lines() {
        let mut told = Told::default();
        for span in 0..20 {
            let now = Millis(span * SPAN_MS);
            let lines = (0..KNOWN_MAX)
                .filter_map(|number| told.is_new(&format!("{span}-{number}"), Unwelcome::NoSlot, now))
                .collect::<Vec<_>>();
            assert_eq!(lines.len(), LINES_MAX);
            let before = if span == 0 { 0 } else { (KNOWN_MAX - LINES_MAX) as u64 };
            assert_eq!(lines[0], before, "what was not told is counted");
            assert_eq!(lines[1..].iter().sum::<u64>(), 0);
        }
        assert_eq!(told.known.len(), KNOWN_MAX);
    }
}
