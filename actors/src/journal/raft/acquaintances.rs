//! Whom a member has heard of late that its record of the members does not name, or not at that address.
//!
//! Owns where such machines are, for as long as they speak: one that asks to become a member, one that has become one as this member
//! does not know yet, and one that was removed and does not know that. Pure, and bounded: whoever has the secret of nodes may speak
//! from any address.

use dsm_consensus::ids::MemberId;
use std::collections::BTreeMap;

/// So many machines are remembered. When there are more, the one that has been silent for longest is forgotten.
const ACQUAINTANCES_MAX: usize = 16;

/// A machine that has said nothing for so many ticks is not there.
const SPOKE_WITHIN_TICKS: u64 = 100;

/// What was heard of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Acquaintance {
    /// The number under which it speaks.
    number: Option<MemberId>,
    /// Its token, if it asks to become a member.
    token: Option<u64>,
    /// The tick in which it spoke last.
    spoke: u64,
}

/// All of them, by their addresses.
#[derive(Debug, Default)]
pub(super) struct Acquaintances(BTreeMap<String, Acquaintance>);

impl Acquaintances {
    /// One speaks, with its number or the token of one that asks for one; whether that is another address than before.
    pub(super) fn speaks(
        &mut self,
        address: &str,
        (number, token): (Option<MemberId>, Option<u64>),
        tick: u64,
    ) -> bool {
        let is_new = !self.0.contains_key(address);
        if is_new && self.0.len() >= ACQUAINTANCES_MAX {
            let longest = self.0.iter().min_by_key(|(_, known)| known.spoke);
            let longest = longest.map(|(address, _)| address.clone());
            longest.map(|address| self.0.remove(&address));
        }
        self.0.insert(address.to_owned(), Acquaintance { number, token, spoke: tick });
        is_new
    }

    /// Forgets those that are silent.
    pub(super) fn forget_silent(&mut self, tick: u64) {
        self.0.retain(|_, known| known.spoke + SPOKE_WITHIN_TICKS > tick);
    }

    /// Where they are.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Where the one with this number was heard last.
    pub(super) fn address_of(&self, number: MemberId) -> Option<&String> {
        let its = self.0.iter().filter(|(_, known)| known.number == Some(number));
        its.max_by_key(|(_, known)| known.spoke).map(|(address, _)| address)
    }

    /// The token of a machine that asks to become a member at this address.
    pub(super) fn token_at(&self, address: &str, tick: u64) -> Option<u64> {
        let known = self.0.get(address).filter(|known| known.spoke + SPOKE_WITHIN_TICKS > tick);
        known.and_then(|known| known.token)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn number(id: u64) -> (Option<MemberId>, Option<u64>) {
        (MemberId::new(id), None)
    }

    #[test]
    fn no_more_are_remembered_than_a_few_and_the_silent_ones_go_first() {
        let mut known = Acquaintances::default();
        for tick in 0..100 {
            assert!(known.speaks(&format!("m{tick}:1"), number(tick + 1), tick));
            known.speaks("leader:1", number(7), tick);
        }
        assert_eq!(known.addresses().count(), ACQUAINTANCES_MAX);
        assert_eq!(known.address_of(MemberId::new(7).unwrap()).unwrap(), "leader:1", "it speaks on");
        known.forget_silent(98 + SPOKE_WITHIN_TICKS);
        assert_eq!(known.addresses().collect::<Vec<_>>(), ["leader:1", "m99:1"]);
    }

    #[test]
    fn the_last_words_of_an_address_count_and_of_a_number_the_last_address() {
        let mut known = Acquaintances::default();
        known.speaks("a:1", (None, Some(77)), 1);
        assert!(!known.speaks("a:1", (None, Some(78)), 2));
        assert_eq!(known.token_at("a:1", 3), Some(78), "it has started anew");
        assert_eq!(known.token_at("a:1", 2 + SPOKE_WITHIN_TICKS), None, "it is gone");
        known.speaks("a:1", number(4), 5);
        assert_eq!(known.token_at("a:1", 5), None, "it asks no more");
        known.speaks("b:1", number(4), 6);
        assert_eq!(known.address_of(MemberId::new(4).unwrap()).unwrap(), "b:1");
        assert_eq!(known.address_of(MemberId::new(5).unwrap()), None);
    }
}
