//! What is told once, though it happens again and again: a peer that is refused asks again, for as long as it lives.

use std::collections::VecDeque;

/// How many are remembered; of more, the oldest are told again.
const KNOWN_MAX: usize = 256;

/// Who was told of, and why.
#[derive(Debug, Default)]
pub(super) struct Told(VecDeque<(String, String)>);

impl Told {
    /// Whether this is to be told: it is of somebody, or for a reason, that was not told before.
    pub(super) fn is_new(&mut self, who: &str, why: &str) -> bool {
        let is_known = self.0.iter().any(|(known, reason)| known == who && reason == why);
        if !is_known {
            self.forget(who);
            if self.0.len() >= KNOWN_MAX {
                self.0.pop_front();
            }
            self.0.push_back((who.to_owned(), why.to_owned()));
        }
        !is_known
    }

    /// What happens to this one next is told again.
    pub(super) fn forget(&mut self, who: &str) {
        self.0.retain(|(known, _)| known != who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_and_again_after_it_had_passed() {
        let mut told = Told::default();
        assert!(told.is_new("slave-1", "id-in-use"));
        assert!(!told.is_new("slave-1", "id-in-use"));
        assert!(told.is_new("slave-2", "id-in-use"));
        assert!(told.is_new("slave-1", "no-slot"));
        assert!(!told.is_new("slave-1", "no-slot"));
        told.forget("slave-1");
        assert!(told.is_new("slave-1", "no-slot"));
        assert!(!told.is_new("slave-2", "id-in-use"));
    }

    #[test]
    fn many_names_take_bounded_memory() {
        let mut told = Told::default();
        for number in 0..10 * KNOWN_MAX {
            assert!(told.is_new(&number.to_string(), "no-slot"));
        }
        assert_eq!(told.0.len(), KNOWN_MAX);
    }
}
