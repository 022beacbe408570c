//! When a log is compacted, how fast, and when one that failed is tried again.
//!
//! A log only grows: what was overwritten or deleted stays in it until the log is written anew without that. This begins when
//! at least half of the log, and not too little, is superseded. So each byte that is written costs at most one further byte
//! that is copied, and the log has at most twice the bytes of what is live, and what is written while the copy is made. It
//! begins earlier when the disk is about to have no room for a copy: later there would never be any. Meanwhile writes pay for what
//! the copy falls behind ([`Race`]).
//!
//! Owns what was learnt from the last compaction: how long the lines of what is live really are. Has no clock and does no IO.
//! Source: the rewriting of Redis' append-only file, which begins at a growth of 100 % and 64 MB; and Bitcask's merge, which
//! looks at the part that is dead.

use crate::ids::Millis;

/// A disk with so much room beside what is live is not about to have too little, in bytes.
const ROOM_BYTES: u64 = 64 << 20;

/// What must stay free beside a copy, in bytes: the log goes on growing.
const SPARE_BYTES: u64 = 16 << 20;

/// After a failure it is tried again after so long, and twice as long after each further one, in milliseconds.
const RETRY_MS: u64 = 10_000;
const RETRY_MS_MAX: u64 = 600_000;

/// Free space is looked at so often, in milliseconds.
const LOOK_EVERY_MS: u64 = 1_000;

/// A copy rests for this many times what its last part took, so that requests keep most of disk and processor: a sync of the log
/// waits for what the copy has given to the disk, and so do all writes behind it.
const RESTS: u64 = 4;

/// The same for what follows a copy: that only reads.
const RESTS_AFTER_COPY: u64 = 1;

/// A copy is brought to the disk each time so much was written; and while writes wait for it, so much.
const SYNC_BYTES: u64 = 256 << 10;
const SYNC_BYTES_IN_HASTE: u64 = 4 << 20;

/// Writes wait for the copy from this round on, whatever room the log has left.
const PAYING_ROUND: usize = 8;

/// The longest rest, in microseconds: a disk may have hung.
const REST_US_MAX: u64 = 500_000;

/// What may be left to copy while no write goes on, in bytes.
const HOLD_BYTES: u64 = 256 << 10;

/// So often what was written meanwhile is copied before that; then this much may be left.
const ROUNDS_MAX: usize = 24;
const HOLD_BYTES_MAX: u64 = 16 << 20;

/// What follows a round of copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Copy what was written meanwhile.
    CopyOn,
    /// Hold the writer, copy the rest, exchange the files.
    Hold,
    /// The log grows faster than it is copied: give it up.
    Fail,
}

/// What to do when so many rounds were copied and so many bytes of the log are not.
pub fn after_round(rounds: usize, left_bytes: u64) -> NextStep {
    let is_last = rounds >= ROUNDS_MAX;
    if left_bytes <= if is_last { HOLD_BYTES_MAX } else { HOLD_BYTES } {
        NextStep::Hold
    } else if is_last {
        NextStep::Fail
    } else {
        NextStep::CopyOn
    }
}

/// What is known of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSizes {
    /// The length of the file, in bytes.
    pub log_bytes: u64,
    /// How long a log of nothing but the latest versions would be, as the directory reckons, in bytes.
    pub live_bytes: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing now.
    Wait,
    /// Say how much room the disk has, by [`Compaction::decide`].
    LookForRoom,
    /// Begin.
    Begin,
    /// It is time, but the disk has no room for the copy. Told once until that changes.
    NoRoom {
        /// How many bytes it would take.
        needed_bytes: u64,
        /// How many there are.
        free_bytes: u64,
    },
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Compaction {
    /// So much must be superseded. `None`: the log is never compacted.
    least_bytes: Option<u64>,
    /// What a byte of the directory's reckoning was worth in the last copy, in thousandths.
    worth: u64,
    /// What the last copy kept beside that, in bytes: the table of reigns, lines of the original program.
    kept: u64,
    is_running: bool,
    failures: u32,
    /// Nothing is begun, nor looked at, before this.
    not_before: Millis,
    /// The room is not looked for before this, unless the log has just become due.
    look_at: Millis,
    told_no_room: bool,
    /// Whether the log was due when its room was looked for last.
    was_due: bool,
}

impl Compaction {
    /// A log that is compacted when `least_bytes` and half of it are superseded; never, if that is 0.
    pub fn new(least_bytes: u64) -> Self {
        Compaction {
            least_bytes: (least_bytes > 0).then_some(least_bytes),
            worth: 1000,
            kept: 0,
            is_running: false,
            failures: 0,
            not_before: Millis(0),
            look_at: Millis(0),
            told_no_room: false,
            was_due: false,
        }
    }

    /// What is live, in bytes, by what the last copy has taught.
    pub fn live_bytes(&self, sizes: LogSizes) -> u64 {
        sizes.live_bytes.saturating_mul(self.worth) / 1000
    }

    /// Whether the size of the log is a reason to look further.
    pub fn weigh(&mut self, now: Millis, sizes: LogSizes) -> Advice {
        let Some(least) = self.least_bytes else { return Advice::Wait };
        if self.is_running || now < self.not_before {
            return Advice::Wait;
        }
        let live = self.live_bytes(sizes);
        let superseded = sizes.log_bytes.saturating_sub(live).saturating_sub(self.kept);
        if superseded < (least / 4).max(live / 8) {
            return Advice::Wait;
        }
        // A log that has just become due does not wait: in a second it may grow by its whole allowance.
        let is_due = superseded >= least.max(live);
        if now < self.look_at && (!is_due || std::mem::replace(&mut self.was_due, true)) {
            return Advice::Wait;
        }
        self.was_due = is_due;
        self.look_at = now.plus(LOOK_EVERY_MS);
        Advice::LookForRoom
    }

    /// Decides, with what the disk has free.
    pub fn decide(&mut self, sizes: LogSizes, free_bytes: u64) -> Advice {
        let Some(least) = self.least_bytes.filter(|_| !self.is_running) else { return Advice::Wait };
        let live = self.live_bytes(sizes);
        let superseded = sizes.log_bytes.saturating_sub(live).saturating_sub(self.kept);
        let is_due = superseded >= least.max(live);
        let is_tight = free_bytes < live.saturating_add(live / 4).saturating_add(ROOM_BYTES.min(least));
        if !is_due && !is_tight {
            return Advice::Wait;
        }
        let needed_bytes = live.saturating_add(SPARE_BYTES.min(least));
        if free_bytes < needed_bytes {
            if std::mem::replace(&mut self.told_no_room, true) {
                return Advice::Wait;
            }
            return Advice::NoRoom { needed_bytes, free_bytes };
        }
        (self.told_no_room, self.was_due) = (false, false);
        self.is_running = true;
        Advice::Begin
    }

    /// The copy stands in the log's place. Of what was live when it began it has `copied_bytes`, and the directory reckoned
    /// `live_bytes`.
    pub fn done(&mut self, live_bytes: u64, copied_bytes: u64) {
        self.is_running = false;
        self.failures = 0;
        // A small log says little: EPOCH lines and marks count in it.
        if live_bytes >= self.least_bytes.unwrap_or(0) / 4 && live_bytes > 0 {
            self.worth = (copied_bytes.saturating_mul(1000) / live_bytes).clamp(500, 8000);
        }
        self.kept = copied_bytes.saturating_sub(live_bytes.saturating_mul(self.worth) / 1000);
    }

    /// Nothing has come of it.
    pub fn failed(&mut self, now: Millis) {
        self.is_running = false;
        let wait = RETRY_MS << self.failures.min(6);
        self.failures += 1;
        self.not_before = now.plus(wait.min(RETRY_MS_MAX));
    }

    /// It was given up for something else, as for a handover.
    pub fn given_up(&mut self) {
        self.is_running = false;
    }

    /// How long the log may be before a leg rests no more and writes wait for it, and how long it may be at all, in bytes.
    fn marks(&self, leg: Leg, sizes: LogSizes) -> (u64, u64) {
        let (live, least) = (self.live_bytes(sizes), self.least_bytes.unwrap_or(0));
        let of = |eighths_of_live: u64, eighths_of_least: u64| {
            let live = live.saturating_mul(eighths_of_live) / 8;
            self.kept.saturating_add(live).saturating_add(least.saturating_mul(eighths_of_least) / 8)
        };
        let due = self.kept.saturating_add(live).saturating_add(live.max(least));
        let in_haste = of(17, 10).max(due);
        match leg {
            Leg::Relocating => (due, in_haste),
            // A group more may be written than is allowed.
            Leg::Copying => (in_haste, of(19, 13)),
        }
    }
}

/// What runs against the growth of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// The log is copied.
    Copying,
    /// The master is told where values stand in the new file. The next copy waits for that.
    Relocating,
}

/// One leg of the race between a compaction and the growth of the log. As long as its progress keeps up with that it rests, so
/// that requests keep disk and processor; else it hurries; and in the end writes wait for it, each byte for at least two that
/// are copied. So the log has a bound however fast it is overwritten.
#[derive(Clone, Debug)]
pub struct Race {
    leg: Leg,
    /// How long the log was when it began.
    begun_bytes: u64,
    /// How far it has to go, in bytes.
    way: u64,
    /// Since when writes wait for it.
    paying: Option<Paying>,
}

#[derive(Clone, Copy, Debug)]
struct Paying {
    log_bytes: u64,
    done: u64,
}

impl Race {
    /// One that has `way` bytes to go, at a log of so many.
    pub fn new(leg: Leg, log_bytes: u64, way: u64) -> Self {
        Race { leg, begun_bytes: log_bytes, way, paying: None }
    }

    /// How long it rests after a part that took `took_us` and brought it to `done` bytes, in microseconds.
    pub fn rest_us(&self, rule: &Compaction, took_us: u64, done: u64, sizes: LogSizes) -> u64 {
        let (hurry_at, _) = rule.marks(self.leg, sizes);
        let room = u128::from(hurry_at.saturating_sub(self.begun_bytes));
        let grown = u128::from(sizes.log_bytes.saturating_sub(self.begun_bytes));
        let keeps_up = grown * u128::from(self.way) <= u128::from(done) * room;
        if self.paying.is_some() || sizes.log_bytes >= hurry_at || !keeps_up {
            return 0;
        }
        self.unhurried_us(took_us)
    }

    /// The same where another process writes the log: it is in no hurry, and this one's share of the disk and the processor is
    /// better left to that.
    pub fn unhurried_us(&self, took_us: u64) -> u64 {
        let rests = match self.leg {
            Leg::Copying => RESTS,
            Leg::Relocating => RESTS_AFTER_COPY,
        };
        took_us.saturating_mul(rests).min(REST_US_MAX)
    }

    /// How long the log may become before it gets further than `done` bytes, in bytes; `None`: as long as it likes. `rounds` is
    /// how often what was written meanwhile has been copied.
    pub fn ceiling(&mut self, rule: &Compaction, done: u64, rounds: usize, sizes: LogSizes) -> Option<u64> {
        rule.least_bytes?;
        let (hurry_at, bound) = rule.marks(self.leg, sizes);
        let log_bytes = sizes.log_bytes;
        if self.paying.is_none() && (log_bytes >= hurry_at || rounds >= PAYING_ROUND) {
            self.paying = Some(Paying { log_bytes, done });
        }
        let paying = self.paying?;
        let goal = match self.leg {
            Leg::Copying => bound.max(paying.log_bytes),
            Leg::Relocating => self.way,
        };
        let way = u128::from(goal.saturating_sub(paying.done).max(1));
        let gone = done.saturating_sub(paying.done);
        let room = u128::from(bound.saturating_sub(paying.log_bytes));
        let allowed = (u128::from(gone) * room / way).clamp(u128::from(gone / 8), u128::from(gone / 2));
        Some(paying.log_bytes.saturating_add(allowed as u64))
    }

    /// Whether so many bytes that were copied are to be brought to the disk.
    pub fn is_sync_due(&self, unsynced_bytes: u64) -> bool {
        unsynced_bytes >= if self.paying.is_some() { SYNC_BYTES_IN_HASTE } else { SYNC_BYTES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const PLENTY: u64 = 1 << 40;

    fn sizes(log_mib: u64, live_mib: u64) -> LogSizes {
        LogSizes { log_bytes: log_mib * MIB, live_bytes: live_mib * MIB }
    }

    fn at_start() -> Compaction {
        Compaction::new(64 * MIB)
    }

    #[test]
    fn a_log_is_compacted_when_half_of_it_and_enough_is_superseded() {
        assert_eq!(at_start().decide(sizes(63, 0), PLENTY), Advice::Wait, "too little to be worth it");
        assert_eq!(at_start().decide(sizes(64, 0), PLENTY), Advice::Begin);
        assert_eq!(at_start().decide(sizes(1999, 1000), PLENTY), Advice::Wait);
        assert_eq!(at_start().decide(sizes(2000, 1000), PLENTY), Advice::Begin);
        let mut off = Compaction::new(0);
        assert_eq!(off.weigh(Millis(1), sizes(2000, 0)), Advice::Wait, "never");
        assert_eq!(off.decide(sizes(2000, 0), PLENTY), Advice::Wait);
    }

    #[test]
    fn the_disk_is_asked_for_its_room_once_a_second_and_only_when_something_could_come_of_it() {
        let mut machine = at_start();
        assert_eq!(machine.weigh(Millis(0), sizes(1015, 1000)), Advice::Wait);
        assert_eq!(machine.weigh(Millis(0), sizes(1130, 1000)), Advice::LookForRoom);
        assert_eq!(machine.weigh(Millis(999), sizes(1999, 1000)), Advice::Wait);
        assert_eq!(machine.weigh(Millis(1000), sizes(9000, 1000)), Advice::LookForRoom);
    }

    #[test]
    fn it_begins_early_when_the_disk_is_about_to_have_no_room_for_a_copy() {
        assert_eq!(at_start().decide(sizes(1200, 1000), 1400 * MIB), Advice::Wait);
        assert_eq!(at_start().decide(sizes(1200, 1000), 1300 * MIB), Advice::Begin);
        let mut machine = at_start();
        let (needed_bytes, free_bytes) = (1016 * MIB, 1015 * MIB);
        assert_eq!(
            machine.decide(sizes(1200, 1000), free_bytes),
            Advice::NoRoom { needed_bytes, free_bytes }
        );
        assert_eq!(machine.decide(sizes(1200, 1000), free_bytes), Advice::Wait, "told once");
        assert_eq!(machine.decide(sizes(1200, 1000), needed_bytes), Advice::Begin);
    }

    #[test]
    fn one_runs_at_a_time_and_one_that_failed_is_tried_again_later_and_later() {
        let mut machine = at_start();
        assert_eq!(machine.decide(sizes(500, 100), PLENTY), Advice::Begin);
        assert_eq!(machine.decide(sizes(500, 100), PLENTY), Advice::Wait);
        machine.failed(Millis(1000));
        assert_eq!(machine.weigh(Millis(10_999), sizes(500, 100)), Advice::Wait);
        assert_eq!(machine.weigh(Millis(11_000), sizes(500, 100)), Advice::LookForRoom);
        assert_eq!(machine.decide(sizes(500, 100), PLENTY), Advice::Begin);
        machine.failed(Millis(20_000));
        assert_eq!(machine.weigh(Millis(39_999), sizes(500, 100)), Advice::Wait);
        for _ in 0..80 {
            machine.failed(Millis(0));
        }
        assert_eq!(machine.weigh(Millis(599_999), sizes(500, 100)), Advice::Wait);
        assert_eq!(machine.weigh(Millis(600_000), sizes(500, 100)), Advice::LookForRoom);
    }

    #[test]
    fn what_a_copy_has_taught_keeps_a_log_of_long_lines_from_being_copied_again_and_again() {
        let mut machine = at_start();
        // Keys and values of bytes that each take three.
        let of_binary = sizes(310, 100);
        assert_eq!(machine.decide(of_binary, PLENTY), Advice::Begin);
        machine.done(100 * MIB, 300 * MIB);
        assert_eq!(machine.decide(of_binary, PLENTY), Advice::Wait);
        assert_eq!(machine.decide(sizes(600, 100), PLENTY), Advice::Begin);
    }

    #[test]
    fn the_writer_is_held_when_little_is_left_and_never_for_much() {
        assert_eq!(after_round(0, 300 << 10), NextStep::CopyOn);
        assert_eq!(after_round(0, 200 << 10), NextStep::Hold);
        assert_eq!(after_round(23, 10 * MIB), NextStep::CopyOn);
        assert_eq!(after_round(24, 10 * MIB), NextStep::Hold);
        assert_eq!(after_round(24, 20 * MIB), NextStep::Fail);
    }

    #[test]
    fn what_every_copy_keeps_is_no_reason_for_the_next_one() {
        let mut machine = at_start();
        assert_eq!(machine.decide(sizes(200, 1), PLENTY), Advice::Begin);
        machine.done(MIB, 150 * MIB);
        assert_eq!(machine.decide(sizes(150, 1), PLENTY), Advice::Wait);
        assert_eq!(machine.decide(sizes(216, 1), PLENTY), Advice::Begin);
    }

    #[test]
    fn a_log_that_becomes_due_between_two_looks_is_looked_at_at_once() {
        let mut machine = at_start();
        assert_eq!(machine.weigh(Millis(0), sizes(1130, 1000)), Advice::LookForRoom);
        assert_eq!(machine.weigh(Millis(10), sizes(1990, 1000)), Advice::Wait);
        assert_eq!(machine.weigh(Millis(20), sizes(2000, 1000)), Advice::LookForRoom);
        assert_eq!(machine.weigh(Millis(30), sizes(2010, 1000)), Advice::Wait, "the disk had no room");
        assert_eq!(machine.weigh(Millis(1020), sizes(2010, 1000)), Advice::LookForRoom);
        assert_eq!(machine.decide(sizes(2010, 1000), PLENTY), Advice::Begin);
        machine.done(1000 * MIB, 1000 * MIB);
        assert_eq!(
            machine.weigh(Millis(1030), sizes(2000, 1000)),
            Advice::LookForRoom,
            "it grew fast meanwhile"
        );
    }

    #[test]
    fn a_copy_rests_as_long_as_it_keeps_up_with_the_growth_of_the_log() {
        let machine = at_start();
        let race = Race::new(Leg::Copying, 2000 * MIB, 2000 * MIB);
        // The log may grow by 205 MiB before it is in haste.
        for (done_mib, log_mib, rest_us) in
            [(1, 2000, 12_000), (500, 2050, 12_000), (500, 2060, 0), (1999, 2200, 12_000), (2000, 2206, 0)]
        {
            let rest = race.rest_us(&machine, 3000, done_mib * MIB, sizes(log_mib, 1000));
            assert_eq!(rest, rest_us, "{done_mib} MiB copied of a log of {log_mib}");
        }
        assert_eq!(race.rest_us(&machine, 9_000_000, MIB, sizes(2000, 1000)), 500_000, "a disk that hung");
        let after = Race::new(Leg::Relocating, 1000 * MIB, 1000 * MIB);
        assert_eq!(after.rest_us(&machine, 3000, 500 * MIB, sizes(1400, 1000)), 3000);
        assert_eq!(
            after.rest_us(&machine, 3000, 500 * MIB, sizes(1600, 1000)),
            0,
            "the next copy waits for it"
        );
        // A standby knows no sizes.
        assert_eq!(after.rest_us(&machine, 3000, 500 * MIB, sizes(1000, 0)), 0);
        assert_eq!(after.unhurried_us(3000), 3000);
    }

    /// A log that is overwritten as fast as it may be, in groups of so much for each MiB that is copied. Gives the longest that it
    /// was in MiB, and the rounds that it took.
    fn overwhelm(live_mib: u64, begun_mib: u64, group_mib: u64) -> (u64, usize) {
        let machine = at_start();
        let mut race = Race::new(Leg::Copying, begun_mib * MIB, begun_mib * MIB);
        let (mut log, mut done, mut round, mut end) = (begun_mib, 0, 0, begun_mib);
        let mut longest = log;
        loop {
            done += 1;
            let ceiling = race.ceiling(&machine, done * MIB, round, sizes(log, live_mib));
            if ceiling.is_none_or(|to| log * MIB < to) {
                log += group_mib;
            }
            longest = longest.max(log);
            if done < end {
                continue;
            }
            round += 1;
            match after_round(round, (log - done) * MIB) {
                NextStep::Hold => return (longest, round),
                NextStep::CopyOn => end = log,
                NextStep::Fail => panic!("{} MiB are left", log - done),
            }
        }
    }

    #[test]
    fn a_log_that_is_overwritten_faster_than_it_is_copied_stays_within_its_bound() {
        for (live, begun) in [(1, 65), (30, 94), (64, 128), (1000, 2000), (1000, 2250), (5000, 10_000)] {
            for group in [1, 2, 8] {
                let (longest, rounds) = overwhelm(live, begun, group);
                assert!(
                    longest <= live * 5 / 2 + 128,
                    "{longest} MiB with {live} live, in groups of {group}"
                );
                assert!(rounds <= ROUNDS_MAX, "{rounds} rounds");
            }
        }
        // One that is beyond it already comes to an end, too.
        let (longest, _) = overwhelm(100, 4000, 8);
        assert!(longest <= 4000 + 4000 / 6, "{longest}");
    }

    #[test]
    fn writes_do_not_wait_for_a_copy_that_keeps_up() {
        let machine = at_start();
        let mut race = Race::new(Leg::Copying, 2000 * MIB, 2000 * MIB);
        assert_eq!(race.ceiling(&machine, 1900 * MIB, 0, sizes(2200, 1000)), None);
        assert!(race.is_sync_due(256 << 10), "others sync, too");
        assert_eq!(race.ceiling(&machine, 1900 * MIB, 0, sizes(2206, 1000)), Some(2206 * MIB));
        assert!(!race.is_sync_due(256 << 10));
        let allowed = race.ceiling(&machine, 1916 * MIB, 0, sizes(2206, 1000)).expect("a bound") - 2206 * MIB;
        assert!((7 * MIB..=8 * MIB).contains(&allowed), "{allowed} for 16 MiB");
        let mut never = Race::new(Leg::Copying, 2000 * MIB, 2000 * MIB);
        assert_eq!(never.ceiling(&Compaction::new(0), MIB, 0, sizes(9000, 0)), None);
    }

    #[test]
    fn a_copy_that_ends_in_many_rounds_is_waited_for_although_the_log_has_room() {
        let machine = at_start();
        let mut race = Race::new(Leg::Copying, 2000 * MIB, 2000 * MIB);
        assert_eq!(race.ceiling(&machine, 2100 * MIB, 7, sizes(2110, 1000)), None);
        assert_eq!(race.ceiling(&machine, 2100 * MIB, 8, sizes(2110, 1000)), Some(2110 * MIB));
        assert_eq!(race.ceiling(&machine, 2104 * MIB, 8, sizes(2110, 1000)), Some(2112 * MIB));
    }
}
