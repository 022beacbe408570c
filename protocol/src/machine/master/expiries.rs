//! When keys expire: a time for each key that does, by the number of its entry in the directory.
//!
//! A key that never expires costs nothing here, one that does 8 bytes, and no call takes long. Nothing is kept in the order of
//! the times: a page knows the earliest of its own, and only pages in which a time has come are searched.

use crate::ids::UnixMillis;

/// Times in one page.
const PAGE_TIMES: usize = 4096;

/// To look whether a page has to be searched takes as long as to look at so many times.
const PAGE_LOOK: usize = 4;

/// The time of an entry that never expires.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Debug)]
struct Page {
    times: Box<[u64]>,
    /// How many of them are times.
    count: usize,
    /// No time is earlier.
    earliest: u64,
}

impl Page {
    fn new() -> Self {
        Page { times: vec![NEVER; PAGE_TIMES].into(), count: 0, earliest: NEVER }
    }
}

/// The times by the numbers of entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Expiries {
    pages: Vec<Option<Page>>,
    /// How many keys expire.
    len: usize,
    /// The sum of their times.
    sum: u128,
    /// Pages that were forgotten all at once and are still to be freed.
    forgotten: Vec<Option<Page>>,
}

impl Expiries {
    /// How many keys expire.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The mean of their times; `None` without any.
    pub(super) fn mean(&self) -> Option<UnixMillis> {
        (self.len > 0).then(|| UnixMillis((self.sum / self.len as u128) as u64))
    }

    /// When the key with this number expires.
    pub(super) fn get(&self, number: u32) -> Option<UnixMillis> {
        let page = self.pages.get(number as usize / PAGE_TIMES)?.as_ref()?;
        let time = page.times[number as usize % PAGE_TIMES];
        (time != NEVER).then_some(UnixMillis(time))
    }

    /// Notes when the key with this number expires, and gives what was noted before.
    pub(super) fn set(&mut self, number: u32, expires: Option<UnixMillis>) -> Option<UnixMillis> {
        let (at, within) = (number as usize / PAGE_TIMES, number as usize % PAGE_TIMES);
        if at >= self.pages.len() {
            expires?;
            self.pages.resize_with(at + 1, || None);
        }
        let place = &mut self.pages[at];
        if place.is_none() {
            expires?;
        }
        let page = place.get_or_insert_with(Page::new);
        let time = expires.map_or(NEVER, |time| time.0.min(NEVER - 1));
        let before = std::mem::replace(&mut page.times[within], time);
        let before = (before != NEVER).then_some(UnixMillis(before));
        if let Some(before) = before {
            self.sum -= u128::from(before.0);
            (self.len, page.count) = (self.len - 1, page.count - 1);
        }
        if expires.is_some() {
            self.sum += u128::from(time);
            (self.len, page.count) = (self.len + 1, page.count + 1);
            page.earliest = page.earliest.min(time);
        } else if page.count == 0 {
            *place = None;
        }
        before
    }

    /// Looks from number `from` on for keys whose time has come by `time`, and shows their numbers, until `show` says that it
    /// wants no more, or `looks` are spent: one is taken off for each time that is looked at. Where to go on; `None` at the end.
    pub(super) fn due(
        &mut self,
        time: UnixMillis,
        from: u32,
        looks: &mut usize,
        mut show: impl FnMut(u32, &mut usize) -> bool,
    ) -> Option<u32> {
        let (mut at, mut within) = (from as usize / PAGE_TIMES, from as usize % PAGE_TIMES);
        while at < self.pages.len() {
            let place = &mut self.pages[at];
            let Some(page) = place.as_mut().filter(|page| page.earliest <= time.0) else {
                (at, within) = (at + 1, 0);
                *looks = looks.saturating_sub(PAGE_LOOK);
                if *looks == 0 {
                    return self.number(at, within);
                }
                continue;
            };
            let is_whole = within == 0;
            let mut earliest = NEVER;
            while within < PAGE_TIMES {
                if *looks == 0 {
                    return self.number(at, within);
                }
                *looks -= 1;
                let expires = page.times[within];
                earliest = earliest.min(expires);
                within += 1;
                if expires <= time.0 && !show((at * PAGE_TIMES + within - 1) as u32, looks) {
                    return self.number(at, within);
                }
            }
            if is_whole {
                page.earliest = earliest;
            }
            (at, within) = (at + 1, 0);
        }
        None
    }

    fn number(&self, at: usize, within: usize) -> Option<u32> {
        (at < self.pages.len()).then_some((at * PAGE_TIMES + within) as u32)
    }

    /// Forgets everything. The memory is freed by [`Expiries::tidy`].
    pub(super) fn clear(&mut self) {
        self.forgotten.append(&mut self.pages);
        (self.len, self.sum) = (0, 0);
    }

    /// Frees a page of what was forgotten.
    pub(super) fn tidy(&mut self) {
        self.forgotten.pop();
    }

    pub(super) fn is_tidy(&self) -> bool {
        self.forgotten.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Op {
        Set(u32, Option<u64>),
        Due(u64),
        Clear,
    }

    fn op() -> impl Strategy<Value = Op> {
        // Numbers of several pages, some with many times and some with one.
        let number = prop_oneof![0..40_u32, Just(PAGE_TIMES as u32 - 1), Just(3 * PAGE_TIMES as u32 + 5)];
        prop_oneof![
            30 => (number, prop::option::weighted(0.7, 0..1000_u64)).prop_map(|(n, time)| Op::Set(n, time)),
            10 => (0..1100_u64).prop_map(Op::Due),
            1 => Just(Op::Clear),
        ]
    }

    /// All that is due, found in steps of so many looks.
    fn due(expiries: &mut Expiries, time: u64, looks: usize) -> Vec<u32> {
        let (mut found, mut from) = (Vec::new(), Some(0));
        while let Some(next) = from {
            let mut looks = looks;
            from = expiries.due(UnixMillis(time), next, &mut looks, |number, _| {
                found.push(number);
                found.len() % 3 > 0
            });
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn they_behave_like_a_map(ops in prop::collection::vec(op(), 0..300), looks in 1..5000_usize) {
            let mut expiries = Expiries::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Set(number, time) => {
                        let before = match time {
                            Some(time) => model.insert(number, time),
                            None => model.remove(&number),
                        };
                        prop_assert_eq!(expiries.set(number, time.map(UnixMillis)), before.map(UnixMillis));
                    }
                    Op::Due(time) => {
                        let expected = model.iter().filter(|(_, at)| **at <= time).map(|(number, _)| *number);
                        prop_assert_eq!(due(&mut expiries, time, looks), expected.collect::<Vec<_>>());
                    }
                    Op::Clear => {
                        expiries.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(expiries.len(), model.len());
                let mean = model.values().sum::<u64>().checked_div(model.len() as u64);
                prop_assert_eq!(expiries.mean(), mean.map(UnixMillis));
                for number in [0, 7, PAGE_TIMES as u32 - 1, 3 * PAGE_TIMES as u32 + 5, u32::MAX] {
                    prop_assert_eq!(expiries.get(number), model.get(&number).copied().map(UnixMillis));
                }
            }
        }
    }

    #[test]
    fn pages_in_which_no_time_has_come_are_not_searched() {
        let mut expiries = Expiries::default();
        for number in 0..10 * PAGE_TIMES as u32 {
            expiries.set(number, Some(UnixMillis(1000 + u64::from(number))));
        }
        let mut shown = 0;
        let mut all_pages_looked_at = 10 * PAGE_LOOK + 2 * PAGE_TIMES;
        let next = expiries.due(UnixMillis(1000 + PAGE_TIMES as u64), 0, &mut all_pages_looked_at, |_, _| {
            shown += 1;
            true
        });
        assert_eq!((next, shown), (None, PAGE_TIMES + 1));
    }

    #[test]
    fn memory_of_keys_that_expire_no_more_is_given_back() {
        let mut expiries = Expiries::default();
        let numbers = [1, 2, 5 * PAGE_TIMES as u32];
        for number in numbers {
            expiries.set(number, Some(UnixMillis(9)));
        }
        assert_eq!(expiries.pages.iter().flatten().count(), 2);
        for number in numbers {
            expiries.set(number, None);
        }
        assert_eq!(expiries.pages.iter().flatten().count(), 0);
        expiries.set(1, Some(UnixMillis(9)));
        expiries.clear();
        assert!(!expiries.is_tidy());
        while !expiries.is_tidy() {
            expiries.tidy();
        }
    }
}
