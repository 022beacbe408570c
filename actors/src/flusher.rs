//! What an actor's turn appends to its clients' answers is written at the turn's end, by the turn itself: to wake the task
//! of each connection for one short answer costs about as much as to write it.
//!
//! Owns the outboxes that are to be written, and how long one may wait for more: a pipeline's answers come from several
//! slaves, and leave together when the next of them is about to come. Writes only what a socket takes at once; the rest,
//! and everything long, is left to [`Outbox::pump`].

use crate::batch::{Outbox, TurnWriter};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// One turn writes to no more sockets than this, so that it stays short. The tasks of the others are woken.
const WRITES_MAX: usize = 64;

/// So many turns may end before an answer leaves whose session is about to be given another one.
const HELD_TURNS_MAX: u8 = 2;

/// Answers of more bytes than this do not wait for others.
const HELD_BYTES_MAX: usize = 4 * 1024;

/// No answer waits longer than this for others, to within the system's timers.
const HELD_MAX: Duration = Duration::from_millis(1);

/// The answers of one actor's turns.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    /// Whether a turn is under way: what is appended in it is written at its end.
    is_in_turn: Cell<bool>,
    /// Outboxes that have something, each once.
    waiting: RefCell<Vec<Waiting>>,
    /// Whether somebody sees to it that none of them waits for too long.
    is_timed: Cell<bool>,
}

/// An outbox that is to be written.
#[derive(Debug)]
struct Waiting {
    outbox: Outbox,
    /// How many turns have ended since.
    turns: u8,
}

impl Flusher {
    /// Begins a turn, which ends with the drop of what this gives.
    pub(crate) fn turn(self: &Rc<Self>) -> FlushingTurn {
        self.is_in_turn.set(true);
        FlushingTurn(Rc::clone(self))
    }

    fn end_turn(self: &Rc<Self>) {
        self.is_in_turn.set(false);
        self.write(|waiting| {
            let may_wait = waiting.outbox.is_more_near() && waiting.outbox.len() < HELD_BYTES_MAX;
            waiting.turns += 1;
            may_wait && waiting.turns <= HELD_TURNS_MAX
        });
        if !self.waiting.borrow().is_empty() && !self.is_timed.replace(true) {
            let flusher = Rc::clone(self);
            actix::spawn(async move {
                tokio::time::sleep(HELD_MAX).await;
                flusher.is_timed.set(false);
                flusher.write(|_| false);
            });
        }
    }

    /// Writes all that wait, but those that `may_stay`.
    fn write(&self, mut may_stay: impl FnMut(&mut Waiting) -> bool) {
        let mut waiting = self.waiting.take();
        let mut writes = 0;
        waiting.retain_mut(|waiting| {
            if may_stay(waiting) {
                return true;
            }
            writes += 1;
            if writes > WRITES_MAX {
                waiting.outbox.wake();
            } else {
                waiting.outbox.write_now();
            }
            false
        });
        // Nothing is appended by a write.
        self.waiting.replace(waiting);
    }
}

impl TurnWriter for Flusher {
    fn take(&self, outbox: &Outbox) -> bool {
        if !self.is_in_turn.get() {
            return false;
        }
        self.waiting.borrow_mut().push(Waiting { outbox: outbox.clone(), turns: 0 });
        true
    }
}

/// A turn at the end of which answers are written.
#[must_use]
pub(crate) struct FlushingTurn(Rc<Flusher>);

impl Drop for FlushingTurn {
    fn drop(&mut self) {
        // Half an answer may stand where a panic came from.
        if std::thread::panicking() {
            self.0.is_in_turn.set(false);
            return;
        }
        self.0.end_turn();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Meter;
    use crate::env::real::RealEnv;
    use crate::env::{Listener, Stream};
    use bytes::BytesMut;

    const STALL: Duration = Duration::from_secs(10);

    /// An outbox that is pumped and written through `flusher`, and the other side of its socket.
    async fn connected(listener: &Listener, flusher: &Rc<Flusher>, meter: &Meter) -> (Outbox, Stream) {
        let far = RealEnv::new().connect(&listener.local_address().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        near.show_progress();
        let (near, outbox) = (Rc::new(near), Outbox::metered(Rc::clone(meter)));
        outbox.write_through(Rc::<Flusher>::clone(flusher), &near);
        let pumped = outbox.clone();
        actix::spawn(async move { pumped.pump(&near, STALL).await });
        // The pump has nothing to do, and knows it.
        tokio::task::yield_now().await;
        (outbox, far)
    }

    async fn one() -> (Rc<Flusher>, Meter, Outbox, Stream) {
        let listener = RealEnv::new().listen("127.0.0.1:0").await.unwrap();
        let (flusher, meter) = (Rc::<Flusher>::default(), Meter::default());
        let (outbox, far) = connected(&listener, &flusher, &meter).await;
        (flusher, meter, outbox, far)
    }

    async fn read(far: &Stream, bytes: usize) -> Vec<u8> {
        let mut read = BytesMut::new();
        while read.len() < bytes {
            assert!(far.read(&mut read).await.unwrap() > 0, "it ended after {} bytes", read.len());
        }
        read.to_vec()
    }

    fn add(outbox: &Outbox, bytes: &[u8]) {
        outbox.append(|out| out.extend_from_slice(bytes));
    }

    #[actix::test]
    async fn what_a_turn_appends_is_written_at_its_end() {
        let (flusher, meter, outbox, far) = one().await;
        let turn = flusher.turn();
        add(&outbox, b"one ");
        add(&outbox, b"two ");
        assert_eq!(outbox.len(), 8, "the turn goes on");
        drop(turn);
        assert_eq!((outbox.len(), meter.get()), (0, 0));
        // Outside of turns there is the pump.
        add(&outbox, b"three");
        assert_eq!(read(&far, 13).await, b"one two three");
    }

    #[actix::test]
    async fn an_answer_waits_two_turns_for_the_next_one_and_no_longer() {
        let (flusher, _, outbox, far) = one().await;
        outbox.set_more_near(true);
        let turn = flusher.turn();
        add(&outbox, b"held");
        drop(turn);
        assert_eq!(outbox.len(), 4);
        drop(flusher.turn());
        assert_eq!(outbox.len(), 4);
        drop(flusher.turn());
        assert_eq!(outbox.len(), 0);
        // With what comes meanwhile it leaves at once.
        let turn = flusher.turn();
        add(&outbox, b" this");
        drop(turn);
        let turn = flusher.turn();
        outbox.set_more_near(false);
        add(&outbox, b" and that");
        drop(turn);
        assert_eq!(outbox.len(), 0);
        // Nor does it wait for a turn that does not come.
        outbox.set_more_near(true);
        let turn = flusher.turn();
        add(&outbox, b" alone");
        drop(turn);
        assert_eq!(read(&far, 24).await, b"held this and that alone");
    }

    #[actix::test]
    async fn what_a_socket_does_not_take_at_once_follows_in_its_order() {
        let (flusher, meter, outbox, far) = one().await;
        let mut said = Vec::new();
        for number in 0u32..1000 {
            let turn = flusher.turn();
            let part: Vec<u8> = number.to_le_bytes().repeat(1000 + number as usize % 4000);
            add(&outbox, &part);
            said.extend(part);
            drop(turn);
        }
        assert!(outbox.len() > 0, "the system took it all");
        assert_eq!(meter.get(), outbox.len());
        assert!(read(&far, said.len()).await == said);
        assert_eq!((outbox.len(), meter.get()), (0, 0));
    }

    #[actix::test]
    async fn what_was_begun_goes_with_an_abort() {
        let (flusher, meter, outbox, far) = one().await;
        while outbox.len() == 0 {
            let turn = flusher.turn();
            add(&outbox, &[b'x'; 10_000]);
            drop(turn);
        }
        outbox.abort();
        let mut rest = BytesMut::new();
        while far.read(&mut rest).await.unwrap() > 0 {}
        assert_eq!((outbox.len(), meter.get()), (0, 0));
    }

    #[actix::test]
    async fn a_turn_writes_to_few_sockets_and_the_others_get_theirs_too() {
        let listener = RealEnv::new().listen("127.0.0.1:0").await.unwrap();
        let (flusher, meter) = (Rc::<Flusher>::default(), Meter::default());
        let mut all = Vec::new();
        for _ in 0..WRITES_MAX + 20 {
            all.push(connected(&listener, &flusher, &meter).await);
        }
        let turn = flusher.turn();
        for (outbox, _) in &all {
            add(outbox, b"answer");
        }
        drop(turn);
        assert_eq!(all.iter().filter(|(outbox, _)| outbox.len() > 0).count(), 20);
        for (_, far) in &all {
            assert_eq!(read(far, 6).await, b"answer");
        }
    }
}
