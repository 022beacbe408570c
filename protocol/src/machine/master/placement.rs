//! Which slaves a write goes to.

use super::hash::mix;
use super::membership::{Membership, Slot, SlotSet};
use smallvec::SmallVec;

/// How the slaves of a write are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Rendezvous hashing of the key over the slaves' ids: a key keeps its slaves while membership stands still,
    /// and both masters choose alike.
    #[default]
    Hash,
    /// A fresh uniform subset, without replacement, for each write.
    Random,
}

/// A seeded sequence of numbers (splitmix64): randomness is an argument of the machine.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; the bias is below `bound` / 2^64.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// Chooses up to `count` of `among` for a key.
pub(super) fn choose(
    placement: Placement,
    members: &Membership,
    among: SlotSet,
    count: usize,
    key_hash: u64,
    random: &mut Random,
) -> SlotSet {
    if count >= among.len() {
        return among;
    }
    match placement {
        Placement::Hash => ranked(members, among, count, key_hash),
        Placement::Random => {
            let mut rest = among;
            while rest.len() > among.len() - count {
                if let Some(slot) = rest.nth(random.below(rest.len())) {
                    rest.remove(slot);
                }
            }
            among.without(rest)
        }
    }
}

/// The `count` of `among` with the highest rank for a key.
pub(super) fn ranked(members: &Membership, among: SlotSet, count: usize, key_hash: u64) -> SlotSet {
    if count >= among.len() {
        return among;
    }
    let Some(last) = count.checked_sub(1) else { return SlotSet::EMPTY };
    let weighed = among.iter().map(|slot| (weight(members, slot, key_hash), slot));
    let mut weighed: SmallVec<[(u64, Slot); 16]> = weighed.collect();
    weighed.select_nth_unstable_by(last, |one, other| other.cmp(one));
    weighed.iter().take(count).map(|(_, slot)| *slot).collect()
}

/// The one of `among` with the lowest rank for a key.
pub(super) fn worst(members: &Membership, among: SlotSet, key_hash: u64) -> Option<Slot> {
    among.iter().min_by_key(|slot| weight(members, *slot, key_hash))
}

fn weight(members: &Membership, slot: Slot, key_hash: u64) -> u64 {
    #[cfg(test)]
    WEIGHTS.set(WEIGHTS.get() + 1);
    members.get(slot).map_or(0, |member| mix(key_hash ^ member.id_hash))
}

#[cfg(test)]
thread_local! {
    static WEIGHTS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many ranks of a slave for a key were computed in this thread.
#[cfg(test)]
pub(super) fn weights() -> usize {
    WEIGHTS.get()
}

#[cfg(test)]
mod tests {
    use super::super::hash::hash_bytes;
    use super::*;
    use crate::ids::{LinkId, SlaveId};

    fn nine() -> Membership {
        let mut members = Membership::default();
        for n in 0..9u8 {
            let id = SlaveId::new(format!("slave-{n}")).unwrap();
            members.join(Slot(n), id, LinkId(u64::from(n)), u64::MAX);
        }
        members
    }

    #[test]
    fn both_placements_spread_writes_evenly() {
        let members = nine();
        for placement in [Placement::Hash, Placement::Random] {
            let mut random = Random::new(7);
            let mut loads = [0u32; 9];
            for n in 0..10_000 {
                let key_hash = hash_bytes(format!("key{n}").as_bytes());
                let chosen = choose(placement, &members, members.live(), 5, key_hash, &mut random);
                assert_eq!(chosen.len(), 5);
                for slot in chosen.iter() {
                    loads[usize::from(slot.0)] += 1;
                }
            }
            // Binomial(10000, 5/9): mean 5556, standard deviation 50; five of them on either side.
            assert!(loads.iter().all(|load| (5306..=5806).contains(load)), "{placement:?}: {loads:?}");
        }
    }

    #[test]
    fn a_leaving_slave_moves_only_its_own_keys() {
        let mut members = nine();
        let mut random = Random::new(7);
        let hashes: Vec<u64> = (0..1000).map(|n| hash_bytes(format!("key{n}").as_bytes())).collect();
        let mut place = |members: &Membership| -> Vec<SlotSet> {
            let live = members.live();
            hashes.iter().map(|h| choose(Placement::Hash, members, live, 3, *h, &mut random)).collect()
        };
        let before = place(&members);
        members.leave(Slot(4));
        let after = place(&members);
        for (old, new) in before.iter().zip(&after) {
            let mut kept = *old;
            kept.remove(Slot(4));
            assert_eq!(kept.without(*new), SlotSet::EMPTY, "a surviving holder was abandoned");
        }
    }
}
