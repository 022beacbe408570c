//! The reads under way to one slave, and those that wait for room.
//!
//! Owns their order and how many bytes of values may be on their way. Looks at a bounded number of reads at once, because
//! many of those that wait may have gone elsewhere. Never decides where a read goes: the master machine does.

use crate::ids::Stamp;
use crate::machine::master::ReadId;
use std::collections::VecDeque;

/// How many waiting reads are looked at in one step.
const LOOKED_AT_MAX: usize = 256;

/// Long values are asked for a few at a time. Acknowledgements travel on the same link, and must not wait for more values
/// than the link moves in a fraction of the acknowledgement timeout.
#[derive(Debug)]
pub struct ReadWindow {
    /// The most bytes under way, unless it is one value alone: `--slave-window`.
    bytes_max: usize,
    /// How many reads had to wait for room.
    waited: u64,
    /// Expected bytes of the answers, in the order in which the slave sends them.
    asked: VecDeque<u32>,
    asked_bytes: usize,
    /// Reads that wait for room in the window.
    waiting: VecDeque<WaitingRead>,
    /// Expected bytes of their answers.
    waiting_bytes: u64,
    /// Whether a step ended before all waiting reads for which there may be room were looked at.
    is_behind: bool,
}

/// A read that is to be asked of a slave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingRead {
    /// The read that waits.
    pub read: ReadId,
    /// The version that is wanted, and its reign.
    pub stamp: Stamp,
    /// The key that it reads.
    pub key: bytes::Bytes,
    /// Expected bytes of the answer.
    pub bytes: u32,
}

impl ReadWindow {
    /// An empty window of so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        ReadWindow {
            bytes_max,
            waited: 0,
            asked: VecDeque::new(),
            asked_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            is_behind: false,
        }
    }

    /// How many reads had to wait for room.
    pub fn waited(&self) -> u64 {
        self.waited
    }

    /// Expected bytes of answers that are on their way.
    pub fn asked_bytes(&self) -> usize {
        self.asked_bytes
    }

    /// Whether [`ReadWindow::go_on`] is to be called although no answer has come.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// The waiting reads, when the window is given up. There may be so many that freeing them takes long.
    pub fn into_waiting(self) -> VecDeque<WaitingRead> {
        self.waiting
    }

    /// Whether a read may be sent now. If so, it is counted as sent.
    pub fn send_now(&mut self, read: &WaitingRead, is_reading: impl Fn(ReadId) -> bool) -> bool {
        // Reads that have gone elsewhere still count. Else a slave that answers nothing would be sent reads without
        // end, and this side would buffer them.
        for _ in 0..LOOKED_AT_MAX {
            if self.waiting.front().is_none_or(|oldest| is_reading(oldest.read)) {
                break;
            }
            self.next_waiting();
        }
        let may = self.waiting.is_empty() && self.has_room(read.bytes);
        if may {
            self.note_sent(read.bytes);
        }
        may
    }

    /// Lets a read wait for room. Gives the bytes that are under way or wait, its own included.
    pub fn wait(&mut self, read: WaitingRead) -> u64 {
        self.waited += 1;
        self.waiting_bytes += u64::from(read.bytes);
        self.waiting.push_back(read);
        // No answer is under way that would let it go on.
        self.is_behind |= self.asked.is_empty();
        self.asked_bytes as u64 + self.waiting_bytes
    }

    /// Notes the answer to the oldest read; whether there was one.
    pub fn answered(&mut self) -> bool {
        let Some(bytes) = self.asked.pop_front() else { return false };
        self.asked_bytes -= bytes as usize;
        true
    }

    /// Gives the reads for which there is room now, in their order, and counts them as sent. Looks at a bounded number
    /// of them.
    pub fn go_on(&mut self, is_reading: impl Fn(ReadId) -> bool, mut send: impl FnMut(&WaitingRead)) {
        self.is_behind = false;
        for _ in 0..LOOKED_AT_MAX {
            let Some(next) = self.waiting.front() else { return };
            let is_wanted = is_reading(next.read);
            if is_wanted && !self.has_room(next.bytes) {
                return;
            }
            let Some(next) = self.next_waiting() else { return };
            if is_wanted {
                self.note_sent(next.bytes);
                send(&next);
            }
        }
        self.is_behind = !self.waiting.is_empty();
    }

    fn note_sent(&mut self, bytes: u32) {
        self.asked.push_back(bytes);
        self.asked_bytes += bytes as usize;
    }

    fn next_waiting(&mut self) -> Option<WaitingRead> {
        let next = self.waiting.pop_front()?;
        self.waiting_bytes -= u64::from(next.bytes);
        Some(next)
    }

    fn has_room(&self, bytes: u32) -> bool {
        self.asked.is_empty() || self.asked_bytes + bytes as usize <= self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ReignId, Version};
    use std::cell::Cell;

    fn read(number: u64, bytes: u32) -> WaitingRead {
        let stamp = Stamp { version: Version::new(1, number), reign: ReignId(1) };
        let key = bytes::Bytes::from(number.to_string());
        WaitingRead { read: ReadId::from_tag(number), stamp, key, bytes }
    }

    /// A window with one read under way, and `dead` and then `live` reads that wait.
    fn window(dead: u64, live: u64) -> ReadWindow {
        let mut window = ReadWindow::new(100);
        assert!(window.send_now(&read(1, 100), |_| true));
        for number in 0..dead + live {
            let next = read(1000 + number, 100);
            assert!(!window.send_now(&next, |_| true));
            assert_eq!(window.wait(next), 100 * (number + 2));
        }
        window
    }

    const DEAD: u64 = 10_000;

    /// The number of a waiting read in its test: the lower half of its tag.
    fn number(read: ReadId) -> u64 {
        (read.tag() & u64::from(u32::MAX)) - 1000
    }

    fn is_live(read: ReadId) -> bool {
        number(read) >= DEAD
    }

    #[test]
    fn reads_that_went_elsewhere_are_passed_over_in_steps_and_those_after_them_are_sent() {
        let mut window = window(DEAD, 2);
        assert!(window.answered());
        let looked_at = Cell::new(0);
        let (mut sent, mut steps) = (Vec::new(), 0);
        loop {
            looked_at.set(0);
            let is_reading = |read| {
                looked_at.set(looked_at.get() + 1);
                is_live(read)
            };
            window.go_on(is_reading, |read| sent.push(number(read.read)));
            assert!(looked_at.get() <= LOOKED_AT_MAX, "{} in one step", looked_at.get());
            steps += 1;
            if !window.is_behind() {
                break;
            }
        }
        assert_eq!((sent, steps), (vec![DEAD], DEAD as usize / LOOKED_AT_MAX + 1));
        // One is under way and fills the window: the last one waits for it.
        assert_eq!((window.asked_bytes(), window.waiting.len()), (100, 1));
        assert!(window.answered());
        window.go_on(is_live, |read| assert_eq!(number(read.read), DEAD + 1));
        assert_eq!((window.asked_bytes(), window.waiting_bytes, window.waited()), (100, 0, DEAD + 2));
    }

    #[test]
    fn reads_are_sent_in_further_steps_even_if_no_answer_is_awaited() {
        let mut window = window(DEAD, 0);
        assert!(window.answered());
        let live = read(1000 + DEAD, 1);
        assert!(!window.send_now(&live, is_live));
        window.wait(live.clone());
        let mut sent = Vec::new();
        while window.is_behind() {
            window.go_on(is_live, |read| sent.push(read.clone()));
        }
        assert_eq!(sent, [live]);
    }

    #[test]
    fn a_new_read_passes_over_a_bounded_number_of_those_that_went_elsewhere() {
        let mut window = window(DEAD, 0);
        assert!(window.answered());
        let mut asked = 0;
        while !window.send_now(&read(1, 1), is_live) {
            window.wait(read(1000 + DEAD, 1));
            window.waiting.pop_back();
            asked += 1;
        }
        assert_eq!(asked, DEAD as usize / LOOKED_AT_MAX, "about so many steps");
    }
}
