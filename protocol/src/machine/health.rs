//! The health of a cluster: when a trouble begins, when it ends, and how it is worded.
//!
//! Owns how long a trouble must last before it is reported, and how long it must be gone before it counts as over. Gets the
//! facts several times a second, and repairs nothing.

use crate::ids::{Millis, Seq};
use crate::planted;
use std::collections::BTreeMap;

/// A standby that is behind by more than this lags, in milliseconds.
pub const LAG_MS_MAX: u64 = 5000;

/// How often a master tells the other one how far it has come, in milliseconds.
pub const TELL_MS: u64 = 500;

/// How far the other master lags, as far as it tells. One that hangs tells nothing.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    heard: Millis,
    theirs: Seq,
    /// A place in our log, and when we were there.
    mark: (Seq, Millis),
}

impl Lag {
    /// The other master has connected, and has come as far as `theirs`.
    pub fn new(now: Millis, theirs: Seq, ours: Seq) -> Self {
        Lag { heard: now, theirs, mark: (ours, now) }
    }

    /// Notes how far it says it has come.
    pub fn told(&mut self, now: Millis, theirs: Seq, ours: Seq) {
        (self.heard, self.theirs) = (now, theirs);
        if theirs >= self.mark.0 {
            self.mark = (ours, now);
        }
    }

    /// This process did not run: what the other master told meanwhile is not read yet.
    pub fn restart(&mut self, now: Millis) {
        self.heard = now;
        self.mark.1 = now;
    }

    /// How far it lags, in milliseconds: the time since it lacks a record, or has been silent.
    pub fn ms(&self, now: Millis) -> u64 {
        let silent_ms = now.since(self.heard);
        let behind_ms = if self.theirs < self.mark.0 { now.since(self.mark.1) } else { 0 };
        if silent_ms > 3 * TELL_MS {
            silent_ms.max(behind_ms)
        } else {
            behind_ms
        }
    }
}

/// The troubles that are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// There is no standby to take over.
    NoStandby,
    /// The standby lags, or is silent.
    StandbyLags,
    /// Others that keep the log, on machines of their own, are silent.
    MembersSilent,
    /// This master does not serve and knows of none that does.
    NobodyServes,
    /// Fewer slaves are active than there were before.
    SlavesMissing,
    /// Slaves have no room for a value.
    SlavesFull,
    /// No active slave holds some of the keys.
    KeysWithoutCopy,
}

impl Trouble {
    const ALL: [Trouble; 7] = [
        Trouble::NoStandby,
        Trouble::StandbyLags,
        Trouble::MembersSilent,
        Trouble::NobodyServes,
        Trouble::SlavesMissing,
        Trouble::SlavesFull,
        Trouble::KeysWithoutCopy,
    ];

    /// The message when it is over.
    pub fn over(self) -> &'static str {
        match self {
            Trouble::NoStandby => "a standby is connected",
            Trouble::StandbyLags => "the standby has caught up",
            Trouble::MembersSilent => "all that keep the log are heard",
            Trouble::NobodyServes => "a master serves",
            Trouble::SlavesMissing => "all slaves are active",
            Trouble::SlavesFull => "all slaves have room",
            Trouble::KeysWithoutCopy => "all keys have a copy",
        }
    }

    /// How long it must last before it is reported, and how long it must be gone before its end is, in milliseconds.
    fn patience_ms(self) -> (u64, u64) {
        match self {
            Trouble::NoStandby | Trouble::NobodyServes => (2000, 0),
            Trouble::StandbyLags => (0, 1000),
            // Who starts anew is silent for a moment.
            Trouble::MembersSilent => (1000, 0),
            Trouble::SlavesMissing => (500, 0),
            // A full slave has room now and then, while values come and go.
            Trouble::SlavesFull => (0, 10_000),
            Trouble::KeysWithoutCopy => (0, 0),
        }
    }
}

/// The facts, as a master sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether this master serves.
    pub serves: bool,
    /// Whether it knows of another one that does.
    pub knows_active: bool,
    /// The leader, in the log's words, if this master knows no master that serves.
    pub leader: Option<String>,
    /// How far the other master lags, in milliseconds, as far as it tells; `None` when it is not connected.
    pub standby_lag_ms: Option<u64>,
    /// The addresses of those that keep the log with this master, on machines of their own, and are silent.
    pub silent_members: Vec<String>,
    /// How many slaves are active.
    pub slaves: usize,
    /// How many were removed and are not active: nobody misses them.
    pub slaves_not_missed: usize,
    /// How many must be, so that keys can have the number of copies that is set; 0 when none is.
    pub slaves_wanted: usize,
    /// The names of those without room.
    pub full: Vec<String>,
    /// Keys without a copy.
    pub keys_without_copy: u64,
}

/// What is to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A trouble has lasted long enough to be reported.
    Began(Trouble),
    /// A trouble that was reported is over.
    Ended {
        /// What is over.
        trouble: Trouble,
        /// How long it lasted, in milliseconds.
        ms: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct State {
    since: Millis,
    /// When it was last seen.
    seen: Millis,
    told: bool,
}

/// The cluster's troubles, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Health {
    facts: Facts,
    /// The most slaves that were active at once while this master has served.
    slaves_most: usize,
    troubles: BTreeMap<Trouble, State>,
}

impl Health {
    /// Takes the present facts, and gives what is to be reported.
    pub fn look(&mut self, now: Millis, facts: Facts) -> Vec<News> {
        if facts.serves != self.facts.serves {
            // Troubles of one role do not apply to the other.
            self.troubles.clear();
            self.slaves_most = 0;
        }
        self.slaves_most = self.slaves_most.max(facts.slaves + facts.slaves_not_missed);
        self.facts = facts;
        let mut news = Vec::new();
        for trouble in Trouble::ALL {
            let (begins_ms, ends_ms) = trouble.patience_ms();
            if self.is_there(trouble) {
                let new = State { since: now, seen: now, told: false };
                let state = self.troubles.entry(trouble).or_insert(new);
                state.seen = now;
                if !state.told && now.since(state.since) >= begins_ms && !planted!(LackNotTold) {
                    state.told = true;
                    news.push(News::Began(trouble));
                }
            } else if let Some(state) = self.troubles.get(&trouble).copied() {
                if !state.told {
                    self.troubles.remove(&trouble);
                } else if now.since(state.seen) >= ends_ms {
                    self.troubles.remove(&trouble);
                    news.push(News::Ended { trouble, ms: now.since(state.since) });
                }
            }
        }
        news
    }

    /// How many slaves are to be active.
    fn slaves_due(&self) -> usize {
        let most = self.slaves_most.saturating_sub(self.facts.slaves_not_missed);
        most.max(self.facts.slaves_wanted)
    }

    fn is_there(&self, trouble: Trouble) -> bool {
        let Facts { serves, knows_active, standby_lag_ms, silent_members, slaves, full, .. } = &self.facts;
        match trouble {
            Trouble::NoStandby => *serves && standby_lag_ms.is_none(),
            Trouble::StandbyLags => *serves && standby_lag_ms.is_some_and(|ms| ms >= LAG_MS_MAX),
            Trouble::MembersSilent => *serves && !silent_members.is_empty(),
            Trouble::NobodyServes => !serves && !knows_active,
            Trouble::SlavesMissing => *serves && (*slaves < self.slaves_due() || *slaves == 0),
            Trouble::SlavesFull => *serves && !full.is_empty(),
            Trouble::KeysWithoutCopy => *serves && self.facts.keys_without_copy > 0,
        }
    }

    /// The troubles that were reported and are not over.
    pub fn troubles(&self) -> impl Iterator<Item = Trouble> + '_ {
        self.troubles.iter().filter(|(_, state)| state.told).map(|(trouble, _)| *trouble)
    }

    /// What is wrong now, in words; empty when nothing is.
    pub fn degraded(&self) -> String {
        let words: Vec<String> = self.troubles().map(|trouble| self.words(trouble)).collect();
        words.join("; ")
    }

    /// A trouble in words.
    pub fn words(&self, trouble: Trouble) -> String {
        let Facts { leader, standby_lag_ms, silent_members, slaves, full, keys_without_copy, .. } =
            &self.facts;
        match trouble {
            Trouble::NoStandby => "no standby is connected".to_owned(),
            Trouble::StandbyLags => format!("the standby is {} ms behind", standby_lag_ms.unwrap_or(0)),
            Trouble::MembersSilent => format!("no word from {}", silent_members.join(", ")),
            Trouble::NobodyServes => match leader {
                Some(leader) => format!("waiting for the log, which another master holds: {leader}"),
                None => "no master is known to serve".to_owned(),
            },
            Trouble::SlavesMissing if self.slaves_most == 0 => "no slave is active".to_owned(),
            Trouble::SlavesMissing => format!("{slaves} of {} slaves are active", self.slaves_due()),
            Trouble::SlavesFull => format!("no room at {}", full.join(", ")),
            Trouble::KeysWithoutCopy => format!("{keys_without_copy} keys have no copy"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Facts {
        Facts { serves: true, standby_lag_ms: Some(0), slaves: 3, ..Facts::default() }
    }

    /// What is reported and when, if the facts change at each of these moments.
    fn told(health: &mut Health, changes: &[(u64, Facts)], until: u64) -> Vec<(u64, News)> {
        let mut told = Vec::new();
        for now in (0..=until).step_by(25) {
            let (_, facts) =
                changes.iter().rev().find(|(from, _)| *from <= now).expect("the first is from 0 on");
            told.extend(health.look(Millis(now), facts.clone()).into_iter().map(|news| (now, news)));
        }
        told
    }

    #[test]
    fn each_loss_is_reported_once_when_it_begins_and_once_when_it_ends() {
        use Trouble::*;
        let losses = [
            (NoStandby, Facts { standby_lag_ms: None, ..fine() }, "no standby is connected", 2000, 0),
            (
                StandbyLags,
                Facts { standby_lag_ms: Some(7000), ..fine() },
                "the standby is 7000 ms behind",
                0,
                1000,
            ),
            (
                MembersSilent,
                Facts { silent_members: vec!["c:1".into()], ..fine() },
                "no word from c:1",
                1000,
                0,
            ),
            (SlavesMissing, Facts { slaves: 2, ..fine() }, "2 of 3 slaves are active", 500, 0),
            (
                SlavesMissing,
                Facts { slaves: 1, slaves_not_missed: 1, ..fine() },
                "1 of 2 slaves are active",
                500,
                0,
            ),
            (SlavesMissing, Facts { slaves_wanted: 4, ..fine() }, "3 of 4 slaves are active", 500, 0),
            (
                SlavesFull,
                Facts { full: vec!["a".into(), "b".into()], ..fine() },
                "no room at a, b",
                0,
                10_000,
            ),
            (KeysWithoutCopy, Facts { keys_without_copy: 9, ..fine() }, "9 keys have no copy", 0, 0),
        ];
        for (trouble, facts, words, begins_ms, ends_ms) in losses {
            let mut health = Health::default();
            let changes = [(0, fine()), (1000, facts.clone()), (20_000, fine())];
            let news = told(&mut health, &changes[..2], 19_975);
            assert_eq!(news, [(1000 + begins_ms, News::Began(trouble))]);
            assert_eq!(health.degraded(), words);
            let mut health = Health::default();
            let news = told(&mut health, &changes, 40_000);
            let ended = 20_000 + if ends_ms == 0 { 0 } else { ends_ms - 25 };
            assert_eq!(news[1..], [(ended, News::Ended { trouble, ms: ended - 1000 })], "{trouble:?}");
            assert_eq!(health.degraded(), "");
        }
    }

    #[test]
    fn a_standby_lags_by_what_it_lacks_or_by_its_silence() {
        let (ours, mut now) = (Seq(100), Millis(0));
        let mut lag = Lag::new(now, Seq(100), ours);
        assert_eq!(lag.ms(Millis(1500)), 0, "it speaks now and then");
        assert_eq!(lag.ms(Millis(1501)), 1501, "it hangs");
        // It reports, lacks only what is being written, and keeps up.
        for step in 1..=20 {
            now = Millis(500 * step);
            lag.told(now, Seq(90 + 10 * step), Seq(100 + 10 * step));
            assert!(lag.ms(now) <= 500, "{} at {now}", lag.ms(now));
        }
        // It reports, but does not move.
        for step in 21..=40 {
            now = Millis(500 * step);
            lag.told(now, Seq(290), Seq(100 + 10 * step));
        }
        assert!((9500..=10_500).contains(&lag.ms(now)), "{}", lag.ms(now));
        lag.restart(now);
        assert_eq!(lag.ms(now), 0);
    }

    #[test]
    fn a_trouble_that_ends_soon_is_not_reported() {
        let mut health = Health::default();
        let restarts = [
            (0, fine()),
            (1000, Facts { slaves: 2, ..fine() }),
            (1400, fine()),
            (2000, Facts { standby_lag_ms: None, ..fine() }),
            (3900, fine()),
        ];
        assert_eq!(told(&mut health, &restarts, 10_000), []);
    }

    #[test]
    fn a_full_slave_that_has_room_now_and_then_is_reported_once() {
        let full = Facts { full: vec!["a".into()], ..fine() };
        let changes: Vec<(u64, Facts)> =
            (0..20).map(|n| (n * 3000, if n % 2 == 0 { full.clone() } else { fine() })).collect();
        let news = told(&mut Health::default(), &changes, 60_000);
        assert_eq!(news, [(0, News::Began(Trouble::SlavesFull))]);
    }

    #[test]
    fn a_change_of_role_ends_the_troubles_of_the_old_one() {
        let mut health = Health::default();
        let standby = Facts { knows_active: true, ..Facts::default() };
        let changes = [(0, fine()), (1000, Facts { slaves: 1, ..fine() }), (3000, standby)];
        assert_eq!(told(&mut health, &changes, 9000), [(1500, News::Began(Trouble::SlavesMissing))]);
        assert_eq!(health.degraded(), "");
        let mut health = Health::default();
        let news = told(&mut health, &[(0, Facts::default())], 9000);
        assert_eq!(news, [(2000, News::Began(Trouble::NobodyServes))]);
        assert_eq!(health.degraded(), "no master is known to serve");
        let led = Facts { leader: Some("pid=7 address=a:1".to_owned()), ..Facts::default() };
        health.look(Millis(9025), led);
        assert_eq!(health.degraded(), "waiting for the log, which another master holds: pid=7 address=a:1");
        // There was never more than one slave; but without any slave there are too few in any case.
        let mut health = Health::default();
        let none = [(0, Facts { slaves: 0, ..fine() })];
        assert_eq!(told(&mut health, &none, 9000), [(500, News::Began(Trouble::SlavesMissing))]);
        assert_eq!(health.degraded(), "no slave is active");
    }
}
