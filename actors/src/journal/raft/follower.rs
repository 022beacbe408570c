//! What a master is told of a log that it follows: the lines that are committed, in their order, one part after the other.
//!
//! Owns how far the master was told, and the lines that wait for it. It keeps no more of them than a bound: what was dropped is read
//! from the disk again. Pure: it says what is to be read, and gives what is to be told.

use super::lines::EntryLine;
use dsm_protocol::ids::{ClusterId, Reign, Seq, Version};
use dsm_protocol::machine::log_scan::Replay;
use dsm_protocol::machine::master::ReignRecord;
use dsm_protocol::record::{self, Position};
use std::collections::VecDeque;

/// So many changes wait in memory at most. Those of one record are in any case.
const CHANGES_MAX: usize = 64 * 1024;

/// A part has about so many changes: what takes a master some milliseconds.
const PART_CHANGES: usize = 4096;

/// So many bytes of the log are read at once.
pub(super) const READ_BYTES_MAX: u64 = 256 << 10;

/// What is next for the master.
#[derive(Debug, PartialEq)]
pub(super) enum FollowerStep {
    /// Tell it this.
    Tell {
        /// Whether what it was told before is to be forgotten.
        from_start: bool,
        changes: Vec<Replay>,
        end: Position,
        caught_up: bool,
    },
    /// Tell it the compacted part of the log from its start, and then [`LineFollower::replayed`].
    Replay,
    /// Read these lines, and give them by [`LineFollower::read`].
    Read { from: Seq, through: Seq },
    /// Nothing, for now.
    Nothing,
}

/// How far a master has come with the log.
#[derive(Debug)]
pub(super) struct LineFollower {
    cluster: ClusterId,
    /// The place after what the master was told.
    told: Position,
    /// The lines after that, without a gap from the first one on.
    waiting: VecDeque<EntryLine>,
    changes: usize,
    committed: Seq,
    /// Whether a part is with the master, or being read.
    is_busy: bool,
    /// Whether it is to forget what it was told.
    is_anew: bool,
    /// Through where the log is compacted: before that no line is an entry.
    base: Seq,
    /// Where it was last told that nothing more comes for now.
    caught_up_at: Option<Seq>,
}

impl LineFollower {
    /// A master that was told everything through `told`.
    pub(super) fn new(cluster: ClusterId, told: Position) -> Self {
        LineFollower {
            cluster,
            told,
            waiting: VecDeque::new(),
            changes: 0,
            committed: told.seq,
            is_busy: false,
            is_anew: false,
            base: Seq(0),
            caught_up_at: Some(told.seq),
        }
    }

    /// The place after what the master was told.
    pub(super) fn told(&self) -> Position {
        self.told
    }

    /// A line is committed. What the master has written itself it is not told of again.
    pub(super) fn committed(&mut self, line: EntryLine, is_own: bool) {
        let seq = line.version.seq;
        assert_eq!(seq, self.committed.next(), "what is committed has a gap");
        if is_own && self.told.seq == self.committed {
            self.advance(&line);
            self.committed = seq;
            self.caught_up_at = Some(seq);
            return;
        }
        let follows = self.waiting.back().map_or(self.told.seq, |last| last.version.seq) == self.committed;
        self.committed = seq;
        let fits = self.changes + line.changes.len() <= CHANGES_MAX || self.waiting.is_empty();
        // What does not fit, and what would leave a gap, is read from the disk when it is its turn.
        if follows && fits {
            self.changes += line.changes.len();
            self.waiting.push_back(line);
        }
    }

    /// The master begins a reign, of which it is told in another way: everything before it, it was told.
    pub(super) fn begins(&mut self, reign: Version) {
        assert_eq!(
            self.told.seq.next(),
            reign.seq,
            "the master was not told of all that is before its reign"
        );
        let id = record::reign_of_term(self.cluster, reign.epoch);
        let begins = self.waiting.pop_front();
        let offset = begins.map_or(self.told.offset, |line| line.offset);
        let record = ReignRecord { reign: Reign { epoch: reign.epoch, id }, first: reign.seq, durable: true };
        self.advance(&EntryLine { version: reign, offset, changes: vec![Replay::Reign(record)] });
        self.caught_up_at = Some(reign.seq);
        self.changes = self.waiting.iter().map(|line| line.changes.len()).sum();
    }

    /// The place after the record of a reign that is to begin. It stands in the log already, and other masters may know of it.
    pub(super) fn opened(&self, reign: Version) -> Position {
        let id = record::reign_of_term(self.cluster, reign.epoch);
        let reigns = Reign { epoch: reign.epoch, id };
        Position { seq: reign.seq, epoch: reign.epoch, reign: reigns, ..self.told }
    }

    /// The master follows from here on: it is told at least that nothing is new.
    pub(super) fn resume(&mut self) {
        self.caught_up_at = None;
    }

    /// Another log is there, which is compacted through `base` and ends there. The master is to forget what it was told.
    pub(super) fn restored(&mut self, base: Seq) {
        self.committed = base;
        self.begin_anew(base);
    }

    /// The lines that wait for the master.
    pub(super) fn waiting(&mut self) -> impl Iterator<Item = &mut EntryLine> {
        self.waiting.iter_mut()
    }

    /// The master was told the log from its start to there.
    pub(super) fn replayed(&mut self, end: Position) {
        (self.told, self.is_busy, self.is_anew) = (end, false, false);
    }

    /// The master is to forget what it was told of the log, which is compacted through `base`.
    pub(super) fn begin_anew(&mut self, base: Seq) {
        self.base = base;
        self.told = Position::default();
        self.waiting.clear();
        self.changes = 0;
        (self.is_anew, self.caught_up_at) = (true, None);
    }

    /// Whether a part is with the master.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// The master has taken in what it was told.
    pub(super) fn taken_in(&mut self) {
        self.is_busy = false;
    }

    /// Lines that were to be read.
    pub(super) fn read(&mut self, lines: Vec<EntryLine>) {
        self.is_busy = false;
        let is_next = lines.first().is_some_and(|line| line.version.seq == self.told.seq.next());
        if is_next && self.waiting.is_empty() {
            self.changes = lines.iter().map(|line| line.changes.len()).sum();
            self.waiting = lines.into();
        }
    }

    /// What is next, of the lines through `limit` and what is committed.
    pub(super) fn next(&mut self, limit: Seq) -> FollowerStep {
        let limit = limit.min(self.committed);
        if self.is_busy {
            return FollowerStep::Nothing;
        }
        if self.is_anew && self.base > Seq(0) {
            self.is_busy = true;
            return FollowerStep::Replay;
        }
        if self.told.seq >= limit {
            if self.caught_up_at == Some(self.told.seq) {
                return FollowerStep::Nothing;
            }
            return self.tell(Vec::new(), limit);
        }
        if self.waiting.is_empty() {
            self.is_busy = true;
            return FollowerStep::Read { from: self.told.seq.next(), through: limit };
        }
        let mut changes = Vec::new();
        while let Some(line) = self.waiting.front() {
            if line.version.seq > limit || changes.len() >= PART_CHANGES {
                break;
            }
            let mut line = self.waiting.pop_front().expect("it is in front");
            self.changes -= line.changes.len();
            self.advance(&line);
            changes.append(&mut line.changes);
        }
        self.tell(changes, limit)
    }

    fn tell(&mut self, changes: Vec<Replay>, limit: Seq) -> FollowerStep {
        let caught_up = self.told.seq >= limit;
        self.is_busy = true;
        self.caught_up_at = caught_up.then_some(self.told.seq);
        let from_start = std::mem::take(&mut self.is_anew);
        FollowerStep::Tell { from_start, changes, end: self.told, caught_up }
    }

    /// The place after this line.
    fn advance(&mut self, line: &EntryLine) {
        let told = &mut self.told;
        (told.epoch, told.seq) = (line.version.epoch, line.version.seq);
        (told.offset, told.line) = (line.offset, told.line + 1);
        (told.cluster, told.seen_trailer) = (Some(self.cluster), true);
        (told.synced, told.unsynced_offset) = (line.version.seq, line.offset);
        for change in &line.changes {
            if let Replay::Reign(record) = change {
                told.reign = record.reign;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_protocol::stored_key::StoredKey;

    fn line(seq: u64, changes: usize) -> EntryLine {
        let delete = || Replay::Delete { key: StoredKey::from(&b"key"[..]) };
        let changes = std::iter::repeat_with(delete).take(changes).collect();
        EntryLine { version: Version::new(1, seq), offset: 100 * seq, changes }
    }

    fn follower() -> LineFollower {
        LineFollower::new(ClusterId(7), Position::default())
    }

    fn told(step: FollowerStep) -> (usize, u64, bool) {
        let FollowerStep::Tell { changes, end, caught_up, .. } = step else { panic!("{step:?}") };
        (changes.len(), end.seq.0, caught_up)
    }

    #[test]
    fn one_part_is_under_way_and_the_next_has_all_that_has_come_meanwhile() {
        let mut follower = follower();
        follower.committed(line(1, 1), false);
        assert_eq!(told(follower.next(Seq(9))), (1, 1, true));
        follower.committed(line(2, 2), false);
        follower.committed(line(3, 3), false);
        assert_eq!(follower.next(Seq(9)), FollowerStep::Nothing);
        follower.taken_in();
        assert_eq!(told(follower.next(Seq(2))), (2, 2, true), "no further than the limit");
        follower.taken_in();
        assert_eq!(follower.next(Seq(2)), FollowerStep::Nothing, "it is told once");
        assert_eq!(told(follower.next(Seq(9))), (3, 3, true));
        follower.taken_in();
        assert_eq!(follower.next(Seq(9)), FollowerStep::Nothing);
    }

    #[test]
    fn what_the_master_has_written_itself_it_is_not_told() {
        let mut follower = follower();
        follower.committed(line(1, 1), true);
        assert_eq!(follower.next(Seq(9)), FollowerStep::Nothing);
        assert_eq!(follower.told().seq, Seq(1));
    }

    #[test]
    fn what_does_not_fit_into_memory_is_read_again() {
        let mut follower = follower();
        for seq in 1..=4 {
            follower.committed(line(seq, CHANGES_MAX / 2), false);
        }
        assert_eq!(told(follower.next(Seq(9))), (CHANGES_MAX / 2, 1, false));
        follower.taken_in();
        assert_eq!(told(follower.next(Seq(9))), (CHANGES_MAX / 2, 2, false));
        follower.taken_in();
        assert_eq!(follower.next(Seq(9)), FollowerStep::Read { from: Seq(3), through: Seq(4) });
        follower.committed(line(5, 1), false);
        follower.read(vec![line(3, 10)]);
        assert_eq!(told(follower.next(Seq(9))), (10, 3, false));
        follower.taken_in();
        assert_eq!(follower.next(Seq(9)), FollowerStep::Read { from: Seq(4), through: Seq(5) });
    }

    #[test]
    fn who_begins_anew_is_told_everything_from_the_start() {
        let mut follower = follower();
        follower.committed(line(1, 1), true);
        follower.begin_anew(Seq(0));
        assert_eq!(follower.next(Seq(9)), FollowerStep::Read { from: Seq(1), through: Seq(1) });
        follower.read(vec![line(1, 1)]);
        let FollowerStep::Tell { from_start, changes, .. } = follower.next(Seq(9)) else { panic!("nothing") };
        assert_eq!((from_start, changes.len()), (true, 1));
    }

    #[test]
    fn of_another_log_the_master_is_told_the_compacted_part_and_then_the_lines() {
        let mut follower = follower();
        follower.committed(line(1, 1), false);
        assert_eq!(told(follower.next(Seq(9))), (1, 1, true));
        follower.restored(Seq(7));
        follower.committed(line(8, 2), false);
        assert_eq!(follower.next(Seq(9)), FollowerStep::Nothing, "a part is with the master");
        follower.taken_in();
        assert_eq!(follower.next(Seq(9)), FollowerStep::Replay);
        assert_eq!(follower.next(Seq(9)), FollowerStep::Nothing);
        follower.replayed(Position { seq: Seq(7), ..Position::default() });
        assert_eq!(follower.next(Seq(9)), FollowerStep::Read { from: Seq(8), through: Seq(8) });
        follower.read(vec![line(8, 2)]);
        assert_eq!(told(follower.next(Seq(9))), (2, 8, true));
    }
}
