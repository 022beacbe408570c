//! How many keys lack copies.
//!
//! A walk over the directory, a slice at a time: when a slave leaves, millions of keys lose a copy at once, which cannot
//! be counted in one turn. The result is as old as the walk. Only reads.

use super::{Master, SlotSet};
use crate::ids::Millis;

/// Entries that one slice looks at: about a millisecond.
const SLICE_ENTRIES: usize = 32 * 1024;

/// How long a walk rests before the next one, in milliseconds.
const REST_MS: u64 = 1000;

/// It also rests this many times as long as the walk took.
const REST_TIMES: u64 = 4;

/// How many keys lack copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Keys that no active slave is known to hold.
    pub without_copy: u64,
    /// Keys with fewer copies than [`Master::copies_wanted`] on active slaves, without those that are to leave.
    pub under_replicated: u64,
}

/// A slave that reports nothing new for this long is not waited for, in milliseconds: what it holds stays unknown.
const REPORT_STILL_MS: u64 = 5000;

/// A report that takes longer than this is not waited for, either, in milliseconds. One of ten million keys takes half
/// a minute.
const REPORT_MS: u64 = 120_000;

/// Since when it is waited for slaves that have not reported everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReportWait {
    since: Millis,
    /// When they last reported something new, and how many copies they are known to hold.
    moved: Millis,
    copies: u64,
}

impl ReportWait {
    /// Whether `unreported`, which are known to hold so many `copies`, are not to be waited for (any more).
    pub(super) fn is_over(wait: &mut Option<Self>, now: Millis, unreported: SlotSet, copies: u64) -> bool {
        if unreported.is_empty() {
            *wait = None;
            return true;
        }
        let wait = wait.get_or_insert(ReportWait { since: now, moved: now, copies });
        if wait.copies != copies {
            (wait.moved, wait.copies) = (now, copies);
        }
        now.since(wait.moved) >= REPORT_STILL_MS || now.since(wait.since) >= REPORT_MS
    }
}

/// A walk over all keys that counts copies, a slice at a time.
#[derive(Clone, Debug, Default)]
pub struct Census {
    walk: Option<Walk>,
    last: Option<(Millis, Lacking)>,
    due: Millis,
    waiting: Option<ReportWait>,
}

#[derive(Clone, Copy, Debug)]
struct Walk {
    next: usize,
    began: Millis,
    lacking: Lacking,
}

impl Census {
    /// Counts the next slice, if it is due. Call it every few dozen milliseconds while `master` reigns. Nothing is counted
    /// before the slaves have reported what they hold, but a report that does not end delays the count only for a bounded
    /// time.
    pub fn look(&mut self, now: Millis, master: &Master) {
        let unreported = master.members.unreported();
        let copies = master.members.copies_of(unreported);
        if !ReportWait::is_over(&mut self.waiting, now, unreported, copies) {
            (self.walk, self.due) = (None, now);
            return;
        }
        if self.walk.is_none() && now < self.due {
            return;
        }
        let mut walk = self.walk.unwrap_or(Walk { next: 0, began: now, lacking: Lacking::default() });
        let (live, staying) = (master.members.live(), master.members.staying());
        let wanted = master.copies_wanted().max(1);
        let lacking = &mut walk.lacking;
        let next = master.directory.walk(walk.next, SLICE_ENTRIES, |entry| {
            // One that leaves still answers reads.
            lacking.without_copy += u64::from(entry.holders.intersection(live).is_empty());
            lacking.under_replicated += u64::from(entry.holders.intersection(staying).len() < wanted);
        });
        self.walk = next.map(|next| Walk { next, ..walk });
        if next.is_none() {
            self.last = Some((walk.began, walk.lacking));
            self.due = now.plus((REST_TIMES * now.since(walk.began)).max(REST_MS));
        }
    }

    /// Forgets everything: the reign is over.
    pub fn forget(&mut self) {
        *self = Census::default();
    }

    /// The result of the last whole walk, and when that walk began.
    pub fn last(&self) -> Option<(Millis, Lacking)> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LinkId, ReignId, SlaveId, Stamp, Version};
    use crate::machine::master::{Config, Event};
    use crate::record::Place;

    const KEYS: u64 = 100_000;

    fn step(master: &mut Master, event: Event) {
        master.step(Millis(0), event, &mut Vec::new());
    }

    /// A version of a reign without an EPOCH record.
    fn stamp(version: Version) -> Stamp {
        Stamp { version, reign: ReignId(0) }
    }

    fn join(master: &mut Master, number: u64, keys: std::ops::Range<u64>) -> LinkId {
        let (link, id) = (LinkId(number), SlaveId::new(format!("slave-{number}")).expect("a valid id"));
        step(master, Event::SlaveJoined { id, link, room_bytes: u64::MAX });
        let entries =
            keys.map(|key| (key.to_string().into_bytes().into(), stamp(Version::new(1, 2 + key)))).collect();
        step(master, Event::Holdings { link, entries, last: true });
        link
    }

    /// Ticks of 25 ms until the next whole walk has ended; gives how many ticks had work, and the result.
    fn walk(census: &mut Census, now: &mut Millis, master: &Master) -> (u64, Lacking) {
        let (before, mut slices) = (census.last, 0);
        loop {
            *now = now.plus(25);
            let idle = census.walk.is_none() && *now < census.due;
            census.look(*now, master);
            slices += u64::from(!idle);
            if census.last != before {
                return (slices, census.last.expect("it has ended").1);
            }
        }
    }

    #[test]
    fn keys_without_a_copy_are_counted_in_slices_and_anew_when_a_slave_has_left() {
        let mut master = Master::new(Config::default());
        for key in 0..KEYS {
            let version = Version::new(1, 2 + key);
            master.replay_put(key.to_string().as_bytes(), version, Place::default(), None);
        }
        step(&mut master, Event::ReignBegan { version: Version::new(2, KEYS + 2), id: ReignId(2) });
        let (mut census, mut now) = (Census::default(), Millis(0));
        let all = Lacking { without_copy: KEYS, under_replicated: KEYS };
        assert_eq!(walk(&mut census, &mut now, &master), (KEYS.div_ceil(SLICE_ENTRIES as u64), all));
        join(&mut master, 1, 0..70_000);
        let two = join(&mut master, 2, 60_000..90_000);
        join(&mut master, 3, 0..0);
        let lacking = Lacking { without_copy: 10_000, under_replicated: 90_000 };
        assert_eq!(walk(&mut census, &mut now, &master).1, lacking);
        step(&mut master, Event::SlaveLost { link: two });
        let lacking = Lacking { without_copy: 30_000, under_replicated: 30_000 };
        assert_eq!(walk(&mut census, &mut now, &master).1, lacking);
    }

    #[test]
    fn nothing_is_counted_before_all_slaves_have_reported() {
        let mut master = Master::new(Config::default());
        master.replay_put(b"k", Version::new(1, 2), Place::default(), None);
        step(&mut master, Event::ReignBegan { version: Version::new(2, 3), id: ReignId(2) });
        let id = SlaveId::new("one").expect("a valid id");
        step(&mut master, Event::SlaveJoined { id, link: LinkId(1), room_bytes: u64::MAX });
        let mut census = Census::default();
        for tick in 1..100 {
            census.look(Millis(25 * tick), &master);
        }
        assert_eq!(census.last(), None);
    }

    #[test]
    fn a_slave_that_never_ends_its_report_hides_nothing() {
        let mut master = Master::new(Config::default());
        for key in 0..10 {
            master.replay_put(key.to_string().as_bytes(), Version::new(1, 2 + key), Place::default(), None);
        }
        step(&mut master, Event::ReignBegan { version: Version::new(2, 12), id: ReignId(2) });
        join(&mut master, 1, 0..3);
        let (link, id) = (LinkId(2), SlaveId::new("two").expect("a valid id"));
        step(&mut master, Event::SlaveJoined { id, link, room_bytes: u64::MAX });
        let (mut census, mut now, mut first) = (Census::default(), Millis(0), None);
        // It reports something new every two seconds until it has nothing more, and then goes on reporting without
        // news.
        for tick in 0..1000 {
            now = now.plus(25);
            if tick % 80 == 0 {
                let key = 3 + tick / 80;
                let known =
                    (key < 6).then(|| (key.to_string().into_bytes().into(), stamp(Version::new(1, 2 + key))));
                let entries = known.into_iter().collect();
                step(&mut master, Event::Holdings { link, entries, last: false });
            }
            census.look(now, &master);
            if census.last().is_some() {
                first = first.or(Some(now.0));
            }
        }
        // The last news came at 4025.
        assert_eq!(first, Some(4025 + REPORT_STILL_MS));
        assert_eq!(census.last().map(|(_, lacking)| lacking.without_copy), Some(4));
        step(&mut master, Event::Holdings { link, entries: Vec::new(), last: true });
        assert_eq!(walk(&mut census, &mut now, &master).1.without_copy, 4);
    }
}
