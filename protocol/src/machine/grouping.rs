//! When the records that wait become a group: at once, or after a pause in which more can join them.
//!
//! Clients that wait for their answers write again once they have them, one after another. A group that is closed with the
//! first of those writes leaves the others to the next group, and from then on half of the clients wait for the sync of
//! the other half. So a group waits for as many records as were answered with the last one, while more arrive, for at
//! most half of what the last group took. Where syncs are fast that is not worth a timer. Where the records do not come
//! in that time, as clients read in between or are many, it is better to sync while they come: after such a pause there
//! is none for a while.
//!
//! While the processors are full, a pause of a fixed time pays on a fast disk, too: each group costs a sync and several
//! changes of threads, which delay everybody else.
//!
//! Owns what is known of the last group, and whether the processors are full. Source: PostgreSQL's `commit_delay` and `commit_siblings`, which an operator
//! must set; here both follow from what is measured.

/// After a group of fewer records there is no pause: the sync that it might save delays nobody else.
const RETURNING_MIN: usize = 4;

/// A step of a pause is this part of the last group's time: when nothing arrives in one, the pause ends.
const STEPS: u64 = 4;

/// No step is shorter, in microseconds: a timer costs some itself.
const STEP_US_MIN: u64 = 50;

/// No pause is longer, in microseconds.
const PAUSE_US_MAX: u64 = 5_000;

/// So many groups have no pause after one that was in vain.
const REST_GROUPS: u8 = 32;

/// While the processors are full, the first record of a group waits so long for others, in microseconds.
const FULL_PAUSE_US: u64 = 300;

/// If the last group took this long, the disk is what everybody waits for, in microseconds.
const FULL_TOOK_US_MAX: u64 = 1_000;

/// How often it is asked whether the processors are full, in microseconds.
const LOOK_EVERY_US: u64 = 10_000;

/// They are if this thread waited for one for at least a fifth of that time.
const WAITED_PART: u64 = 5;

/// See the module.
#[derive(Debug, Default)]
pub struct Grouping {
    /// How many records the last group had.
    last: usize,
    /// How many there will be once everyone who got an answer has written again.
    expected: usize,
    /// When the pause ends at the latest, in microseconds.
    until_us: u64,
    /// How long a step of the pause is, in microseconds. 0: there is no pause.
    step_us: u64,
    step: Option<PauseStep>,
    /// How many groups have no pause.
    resting: u8,
    /// When it was last asked how long the thread had waited for a processor, and the answer, both in microseconds.
    looked: Option<(u64, Option<u64>)>,
    are_processors_full: bool,
    /// Whether that is a reason for a pause in front of the next group.
    pauses_as_full: bool,
}

#[derive(Debug)]
struct PauseStep {
    ends_us: u64,
    /// How many records waited when it began.
    waiting: usize,
}

impl Grouping {
    /// A group of `records` is done, `took_us` microseconds after it was closed; `waiting` more have arrived meanwhile.
    pub fn done(&mut self, now_us: u64, took_us: u64, records: usize, waiting: usize) {
        self.resting = self.resting.saturating_sub(1);
        let was_in_vain = records < self.expected - self.expected / 8;
        if self.step.take().is_some() && was_in_vain && !self.pauses_as_full {
            self.resting = REST_GROUPS;
        }
        self.pauses_as_full = self.are_processors_full && took_us < FULL_TOOK_US_MAX;
        self.last = records;
        self.expected = records + waiting;
        self.step_us = took_us / STEPS;
        if self.step_us < STEP_US_MIN || self.resting > 0 {
            self.step_us = 0;
        }
        self.until_us = now_us + (took_us / 2).min(PAUSE_US_MAX);
    }

    /// How long the records that wait should wait for others, in microseconds. 0: they are a group now.
    ///
    /// To be asked again when that time is over, and whenever a record arrives.
    pub fn pause_us(&mut self, now_us: u64, waiting: usize) -> u64 {
        if self.last < RETURNING_MIN || waiting >= self.expected {
            return 0;
        }
        if self.step.is_none() && self.pauses_as_full {
            // It begins when the first record arrives: whoever sends one waits for a processor, too.
            (self.step_us, self.until_us) = (FULL_PAUSE_US, now_us + FULL_PAUSE_US);
        }
        if self.step_us == 0 || now_us >= self.until_us {
            return 0;
        }
        match &self.step {
            Some(step) if now_us < step.ends_us => return step.ends_us - now_us,
            Some(step) if waiting == step.waiting => return 0,
            Some(_) | None => {}
        }
        let ends_us = self.until_us.min(now_us + self.step_us);
        self.step = Some(PauseStep { ends_us, waiting });
        ends_us - now_us
    }

    /// Whether [`Grouping::look`] is to be called.
    pub fn is_look_due(&self, now_us: u64) -> bool {
        self.looked.is_none_or(|(at_us, _)| now_us >= at_us + LOOK_EVERY_US)
    }

    /// Until now this thread has waited for a processor for `waited_us` microseconds in all. `None`: that is not known.
    pub fn look(&mut self, now_us: u64, waited_us: Option<u64>) {
        let before = self.looked.replace((now_us, waited_us));
        self.are_processors_full = match (before, waited_us) {
            (Some((at_us, Some(before_us))), Some(waited_us)) if at_us < now_us => {
                waited_us.saturating_sub(before_us) * WAITED_PART >= now_us - at_us
            }
            _ => false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Clients that write again `turn_us` after the one before them got its answer, or after their own.
    struct Clients {
        grouping: Grouping,
        sync_us: u64,
        turn_us: u64,
        now_us: u64,
        /// How many groups had a pause.
        pauses: usize,
        /// When the writes arrive that are on their way, in order.
        coming: VecDeque<u64>,
    }

    impl Clients {
        fn new(clients: u64, sync_us: u64, turn_us: u64) -> Self {
            let coming = (0..clients).map(|client| client * turn_us).collect();
            Clients { grouping: Grouping::default(), sync_us, turn_us, now_us: 0, pauses: 0, coming }
        }

        fn arrived(&self) -> usize {
            self.coming.iter().filter(|at_us| **at_us <= self.now_us).count()
        }

        /// Closes a group and waits until it is done; how many records it had.
        fn group(&mut self) -> usize {
            self.now_us = self.now_us.max(*self.coming.front().expect("somebody writes"));
            let before_us = self.now_us;
            loop {
                let pause_us = self.grouping.pause_us(self.now_us, self.arrived());
                if pause_us == 0 {
                    break;
                }
                let end_us = self.now_us + pause_us;
                let next = self.coming.iter().find(|at_us| **at_us > self.now_us);
                self.now_us = next.map_or(end_us, |next| end_us.min(*next));
            }
            self.pauses += usize::from(self.now_us > before_us);
            let records = self.arrived();
            self.now_us += self.sync_us;
            self.coming.drain(..records);
            let waiting = self.arrived();
            let after_us = self.coming.back().map_or(self.now_us, |last_us| self.now_us.max(*last_us));
            self.coming.extend((1..=records as u64).map(|client| after_us + client * self.turn_us));
            self.grouping.done(self.now_us, self.sync_us, records, waiting);
            records
        }

        fn groups(&mut self, groups: usize) -> Vec<usize> {
            (0..groups).map(|_| self.group()).collect()
        }
    }

    #[test]
    fn on_a_slow_disk_all_clients_come_into_one_group() {
        let mut clients = Clients::new(50, 2_000, 15);
        clients.groups(4);
        assert_eq!(clients.groups(5), [50; 5]);
        let before_us = clients.now_us;
        clients.groups(10);
        // A sync, and the time in which all of them write again.
        assert_eq!(clients.now_us - before_us, 10 * (2_000 + 50 * 15));
    }

    #[test]
    fn clients_that_do_not_write_again_in_time_are_waited_for_now_and_then_only() {
        // To write again takes all of them longer than a sync.
        let mut clients = Clients::new(200, 2_000, 40);
        clients.groups(10);
        clients.pauses = 0;
        clients.groups(330);
        assert!((5..=11).contains(&clients.pauses), "{}", clients.pauses);
        // Those that do are found again.
        clients.turn_us = 5;
        clients.groups(2 * usize::from(REST_GROUPS));
        assert_eq!(clients.groups(5), [200; 5]);
    }

    #[test]
    fn a_pause_is_at_most_half_of_what_the_last_group_took() {
        for (took_us, most_us) in [(1_000, 500), (4_000, 2_000), (1_000_000, PAUSE_US_MAX)] {
            let mut grouping = Grouping::default();
            grouping.done(7_000, took_us, 100, 0);
            let (mut now_us, mut waiting) = (7_000, 0);
            loop {
                waiting += 1;
                match grouping.pause_us(now_us, waiting) {
                    0 => break,
                    pause_us => now_us += pause_us,
                }
            }
            assert_eq!(now_us, 7_000 + most_us);
        }
    }

    #[test]
    fn a_pause_ends_when_nothing_arrives() {
        let mut grouping = Grouping::default();
        grouping.done(10_000, 800, 50, 1);
        assert_eq!(grouping.pause_us(10_000, 1), 200);
        assert_eq!(grouping.pause_us(10_160, 2), 40, "the step is not over");
        assert_eq!(grouping.pause_us(10_200, 2), 200, "one has arrived");
        assert_eq!(grouping.pause_us(10_400, 2), 0);
        // That was in vain.
        grouping.done(20_000, 800, 2, 48);
        for group in 1..u64::from(REST_GROUPS) {
            let now_us = 20_000 * (group + 1);
            grouping.done(now_us, 800, 50, 0);
            assert_eq!(grouping.pause_us(now_us, 1), 0);
        }
        grouping.done(1_000_000, 800, 50, 0);
        assert_eq!(grouping.pause_us(1_000_000, 1), 200);
        assert_eq!(grouping.pause_us(1_000_200, 1), 0, "nothing, in the first step");
    }

    #[test]
    fn few_records_and_fast_syncs_are_not_waited_for() {
        let mut grouping = Grouping::default();
        assert_eq!(grouping.pause_us(0, 1), 0, "nothing is known yet");
        grouping.done(10_000, 2_000, RETURNING_MIN - 1, 0);
        assert_eq!(grouping.pause_us(10_000, 1), 0);
        grouping.done(20_000, STEPS * STEP_US_MIN - 1, 50, 0);
        assert_eq!(grouping.pause_us(20_000, 1), 0);
        grouping.done(30_000, STEPS * STEP_US_MIN, 50, 0);
        assert_eq!(grouping.pause_us(30_000, 1), STEP_US_MIN);
        // What arrives later is a new beginning.
        assert_eq!(grouping.pause_us(30_400, 1), 0);
    }

    #[test]
    fn while_the_processors_are_full_records_wait_for_others_on_a_fast_disk_too() {
        let mut grouping = Grouping::default();
        assert!(grouping.is_look_due(0));
        grouping.look(0, Some(500));
        assert!(!grouping.is_look_due(LOOK_EVERY_US - 1));
        assert!(grouping.is_look_due(LOOK_EVERY_US));
        grouping.look(10_000, Some(500 + 2_000));
        grouping.done(10_000, 100, 50, 0);
        assert_eq!(grouping.pause_us(10_500, 1), FULL_PAUSE_US, "from the first one on");
        assert_eq!(grouping.pause_us(10_510, 2), FULL_PAUSE_US - 10);
        assert_eq!(grouping.pause_us(10_550, 50), 0, "all are there");
        for group in 0..5 {
            let now_us = 11_000 + group * 1_000;
            grouping.done(now_us, 100, 50, 0);
            assert_eq!(grouping.pause_us(now_us, 1), FULL_PAUSE_US);
            assert_eq!(grouping.pause_us(now_us + FULL_PAUSE_US, 20), 0, "and again, though not all come");
        }
        // A slow disk is waited for anyway.
        grouping.done(17_000, FULL_TOOK_US_MAX, 50, 0);
        assert_eq!(grouping.pause_us(17_000, 1), FULL_TOOK_US_MAX / STEPS);
        grouping.look(20_000, Some(2_500 + 1_999));
        grouping.done(20_000, 100, 50, 0);
        assert_eq!(grouping.pause_us(20_000, 1), 0, "others have left");
        // Where the system does not say, they are not full.
        for (now_us, waited_us) in [(30_000, None), (40_000, Some(90_000)), (50_000, None)] {
            grouping.look(now_us, waited_us);
            grouping.done(now_us, 100, 50, 0);
            assert_eq!(grouping.pause_us(now_us, 1), 0);
        }
    }
}
