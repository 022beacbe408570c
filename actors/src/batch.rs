//! The types in which bytes and requests travel between socket tasks and actors: whole batches, never one by one.
//!
//! Everything here stays on one thread. No cell is borrowed across an await.

use crate::env::Stream;
use dsm_protocol::pieces::{Piece, Pieces, Sink as _};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A queue from many tasks to one actor. The edge from empty to non-empty is what the actor is woken for.
#[derive(Debug)]
pub(crate) struct Inbox<T>(Rc<RefCell<Vec<T>>>);

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Inbox(Rc::clone(&self.0))
    }
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Inbox(Rc::default())
    }
}

impl<T> Inbox<T> {
    /// Adds an item; whether the inbox was empty, so that its owner is to be woken.
    pub(crate) fn push(&self, item: T) -> bool {
        let mut items = self.0.borrow_mut();
        items.push(item);
        items.len() == 1
    }

    /// How many items are in it.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Exchanges the content for an empty vector, whose room is used again.
    pub(crate) fn take(&self, empty: &mut Vec<T>) {
        debug_assert!(empty.is_empty());
        std::mem::swap(&mut *self.0.borrow_mut(), empty);
    }
}

/// After so many frames or requests a connection lets others run, even if more are waiting. Long reads and writes do so
/// by themselves.
const IN_A_ROW_MAX: u32 = 256;

/// Keeps a connection whose socket is never empty from keeping the thread.
#[derive(Debug, Default)]
pub(crate) struct Turns(u32);

impl Turns {
    /// Counts a frame or a request.
    pub(crate) async fn count(&mut self) {
        self.0 += 1;
        if self.0 >= IN_A_ROW_MAX {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// How an [`Outbox`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// What is in it is written first.
    Flush,
    /// What waits to be sent is thrown away.
    Abort,
}

/// So much of what is long is added to its checksum in one turn.
const SUMMED_AT_ONCE: usize = 1 << 20;

/// So many pieces of what is not written any more are freed in one turn.
const FREED_AT_ONCE: usize = 64;

/// So much is written before others have their turn.
const PIECE_BYTES: usize = 256 * 1024;

/// So many pieces are written at once.
const PIECES_AT_ONCE: usize = 8;

/// No more than this is written by the turn that has appended it, in bytes.
const AT_ONCE_BYTES_MAX: usize = 16 * 1024;

/// A socket that takes nothing for so long waits for its peer.
const PAUSE: Duration = Duration::from_millis(100);

/// Writes at the end of an actor's turn what the turn has appended.
pub(crate) trait TurnWriter: std::fmt::Debug {
    /// Takes an outbox that had nothing and has something now; whether it will be written.
    fn take(&self, outbox: &Outbox) -> bool;
}

/// Counts the bytes in many outboxes.
pub(crate) type Meter = Rc<Cell<usize>>;

/// How a turn may write by itself.
#[derive(Debug)]
struct Direct {
    writer: Rc<dyn TurnWriter>,
    stream: Weak<Stream>,
}

#[derive(Debug, Default)]
struct Out {
    pieces: RefCell<Pieces>,
    /// What an abort has left behind. Whoever pumps frees it, little by little.
    litter: RefCell<Pieces>,
    /// Bytes that were ever appended.
    queued: Cell<u64>,
    /// Bytes of the piece that is being written.
    writing: Cell<usize>,
    /// Bytes that are to come: answers that are on their way, or wait for an earlier one.
    reserved: Cell<usize>,
    /// Bytes that the other side of the socket has said.
    heard: Cell<u64>,
    ending: Cell<Option<Ending>>,
    /// Why it was cut, if it was.
    cut: Cell<Option<&'static str>>,
    /// Counts what is in here, with the same of others.
    meter: RefCell<Option<Meter>>,
    /// Since when the socket has taken nothing although there is something.
    stuck_since: Cell<Option<Instant>>,
    /// Whether it has taken something again after it had taken nothing for a while: its peer reads, be it slowly.
    resumed: Cell<bool>,
    /// When a client last sent something.
    asked_at: Cell<Option<Instant>>,
    /// Who writes what turns append, and to which socket.
    direct: RefCell<Option<Direct>>,
    /// Whether whoever pumps waits for something to pump.
    is_pump_idle: Cell<bool>,
    /// A piece of which a turn has written so many bytes.
    begun: RefCell<Option<(Piece, usize)>>,
    /// Whether what is to be appended next is about to come.
    is_more_near: Cell<bool>,
    wake: Notify,
    drained: Notify,
}

impl Out {
    fn len(&self) -> usize {
        self.pieces.borrow().len() + self.writing.get()
    }

    fn meter(&self, change: impl FnOnce(usize) -> usize) {
        if let Some(meter) = &*self.meter.borrow() {
            meter.set(change(meter.get()));
        }
    }

    /// Notes that the socket has taken `bytes` of what is being written.
    fn took(&self, bytes: usize) {
        self.writing.set(self.writing.get() - bytes);
        self.meter(|metered| metered - bytes);
        let is_empty = self.len() == 0;
        if self.stuck_since.get().is_some_and(|since| since.elapsed() >= PAUSE) {
            self.resumed.set(true);
        }
        self.stuck_since.set((!is_empty).then(Instant::now));
        self.drained.notify_one();
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.meter(|metered| metered - self.len() - self.reserved.get());
    }
}

/// Bytes on their way to a socket: appended to by actors, written once per wake by [`Outbox::pump`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox(Rc<Out>);

impl Outbox {
    /// An outbox whose bytes `meter` counts.
    pub(crate) fn metered(meter: Meter) -> Self {
        let outbox = Outbox::default();
        *outbox.0.meter.borrow_mut() = Some(meter);
        outbox
    }

    /// Lets turns write to `stream` at once what they append, through `writer`.
    pub(crate) fn write_through(&self, writer: Rc<dyn TurnWriter>, stream: &Rc<Stream>) {
        *self.0.direct.borrow_mut() = Some(Direct { writer, stream: Rc::downgrade(stream) });
    }

    /// Counts its bytes no more: they are no answers.
    pub(crate) fn leave_meter(&self) {
        self.0.meter(|metered| metered - self.load());
        *self.0.meter.borrow_mut() = None;
    }

    /// Lets `append` add short things at the end and wakes the writer. Nothing is added to an outbox that has ended.
    pub(crate) fn append(&self, append: impl FnOnce(&mut Vec<u8>)) {
        self.append_pieces(|out| append(out.tail()));
    }

    /// The same for what may hold long values, which are not copied.
    pub(crate) fn append_pieces(&self, append: impl FnOnce(&mut Pieces)) {
        if self.0.ending.get().is_some() {
            return;
        }
        let mut pieces = self.0.pieces.borrow_mut();
        let before = pieces.len();
        append(&mut pieces);
        let added = pieces.len().saturating_sub(before);
        if added == 0 {
            return;
        }
        self.0.queued.set(self.0.queued.get() + added as u64);
        self.0.meter(|metered| metered + added);
        if before == 0 {
            if self.0.writing.get() == 0 {
                self.0.stuck_since.set(Some(Instant::now()));
            }
            drop(pieces);
            if !self.is_left_to_turn() {
                self.0.wake.notify_one();
            }
        }
    }

    /// Whether the turn that appends writes it at its end.
    fn is_left_to_turn(&self) -> bool {
        let direct = self.0.direct.borrow();
        direct.as_ref().is_some_and(|direct| self.0.is_pump_idle.get() && direct.writer.take(self))
    }

    /// Notes whether what is to be appended next is about to come.
    pub(crate) fn set_more_near(&self, is_near: bool) {
        self.0.is_more_near.set(is_near);
    }

    /// Whether what is to be appended next is about to come.
    pub(crate) fn is_more_near(&self) -> bool {
        self.0.is_more_near.get() && self.0.ending.get().is_none()
    }

    /// Wakes whoever pumps, who has it all from now on.
    pub(crate) fn wake(&self) {
        self.0.is_pump_idle.set(false);
        self.0.wake.notify_one();
    }

    /// Writes what the socket takes at once if it is short, and leaves the rest to whoever pumps.
    pub(crate) fn write_now(&self) {
        let direct = self.0.direct.borrow();
        let stream = direct.as_ref().and_then(|direct| direct.stream.upgrade());
        let mut pieces = self.0.pieces.borrow_mut();
        let is_short = pieces.len() <= AT_ONCE_BYTES_MAX && !pieces.sum_on(0);
        let piece =
            if self.0.is_pump_idle.get() && is_short && stream.is_some() { pieces.pop() } else { None };
        drop(pieces);
        let (Some(stream), Some(piece)) = (stream, piece) else {
            self.wake();
            return;
        };
        let bytes = piece.bytes().len();
        self.0.writing.set(bytes);
        // Whoever pumps hears of an error when it writes on.
        let written = stream.try_write(piece.bytes()).ok().flatten().unwrap_or(0);
        if written > 0 {
            self.0.took(written);
        }
        if written == bytes {
            self.0.pieces.borrow_mut().recycle(piece);
        } else {
            self.0.begun.replace(Some((piece, written)));
        }
        if self.len() > 0 {
            self.wake();
        }
    }

    /// For tests that take out what nobody pumps.
    #[cfg(test)]
    pub(crate) fn note_taken(&self, bytes: usize) {
        self.0.meter(|metered| metered - bytes);
    }

    /// Bytes that the socket has not yet taken.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Counts bytes that are to come.
    pub(crate) fn reserve(&self, bytes: usize) {
        self.0.reserved.set(self.0.reserved.get() + bytes);
        self.0.meter(|metered| metered + bytes);
    }

    /// Counts them no more: they have come, or will not.
    pub(crate) fn release(&self, bytes: usize) {
        self.0.reserved.set(self.0.reserved.get() - bytes);
        self.0.meter(|metered| metered - bytes);
    }

    /// Bytes that the socket has not yet taken, and those that are to come.
    pub(crate) fn load(&self) -> usize {
        self.len() + self.0.reserved.get()
    }

    /// For how long the socket has taken nothing although there is something.
    pub(crate) fn stuck_for(&self) -> Duration {
        self.0.stuck_since.get().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether it was seen that the peer reads, if slowly.
    pub(crate) fn has_resumed(&self) -> bool {
        self.0.resumed.get()
    }

    /// Whether a client has asked something so lately.
    pub(crate) fn has_asked_within(&self, time: Duration) -> bool {
        self.0.asked_at.get().is_some_and(|asked| asked.elapsed() < time)
    }

    /// Bytes that were ever appended.
    pub(crate) fn queued(&self) -> u64 {
        self.0.queued.get()
    }

    /// Bytes of these that the socket has taken, to within a piece.
    pub(crate) fn taken(&self) -> u64 {
        self.queued() - self.len() as u64
    }

    /// Bytes of these that the other side may have: of what is being written, the socket may have taken a part.
    pub(crate) fn reached(&self) -> u64 {
        self.taken() + PIECE_BYTES.min(self.0.writing.get()) as u64
    }

    /// Takes bytes off the front as a socket does.
    #[cfg(feature = "testing")]
    pub(crate) fn discard(&self, bytes: usize) {
        let mut pieces = self.0.pieces.borrow_mut();
        let mut all = Vec::new();
        while let Some(piece) = pieces.pop() {
            all.extend_from_slice(piece.bytes());
        }
        let gone = bytes.min(all.len());
        pieces.tail().extend_from_slice(&all[gone..]);
        self.0.meter(|metered| metered - gone);
    }

    /// Notes that a client asks more: it has not gone, be it that it does not listen yet.
    pub(crate) fn note_sends(&self) {
        self.0.asked_at.set(Some(Instant::now()));
    }

    /// Notes bytes that the other side of the socket has said.
    pub(crate) fn note_heard(&self, bytes: usize) {
        self.0.heard.set(self.0.heard.get() + bytes as u64);
    }

    /// Bytes that the other side of the socket has said.
    pub(crate) fn heard(&self) -> u64 {
        self.0.heard.get()
    }

    /// Ends the outbox once everything in it is written.
    pub(crate) fn finish(&self) {
        self.end(Ending::Flush);
    }

    /// Ends the outbox at once.
    pub(crate) fn abort(&self) {
        let mut pieces = self.0.pieces.borrow_mut();
        self.0.meter(|metered| metered - pieces.len());
        let litter = std::mem::take(&mut *pieces);
        drop(pieces);
        if !litter.is_empty() {
            self.0.litter.replace(litter);
        }
        self.0.ending.set(None);
        self.end(Ending::Abort);
    }

    /// Ends the outbox at once, for a reason that is told where its connection ends.
    pub(crate) fn cut(&self, why: &'static str) {
        self.0.cut.set(Some(why));
        self.abort();
    }

    /// Why the outbox was cut, if it was.
    pub(crate) fn why_cut(&self) -> Option<&'static str> {
        self.0.cut.get()
    }

    fn end(&self, ending: Ending) {
        if self.0.ending.get().is_none() {
            self.0.ending.set(Some(ending));
        }
        self.0.wake.notify_one();
        self.0.drained.notify_one();
    }

    /// Whether the outbox has ended or is about to.
    pub(crate) fn is_ended(&self) -> bool {
        self.0.ending.get().is_some()
    }

    /// Whether everything in it was to be written before its end.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.ending.get() == Some(Ending::Flush)
    }

    /// Waits until the outbox has ended. For one that nobody pumps.
    pub(crate) async fn ended(&self) {
        while !self.is_ended() {
            self.0.wake.notified().await;
        }
    }

    /// Waits until at most `bytes` are left, or the outbox has ended.
    pub(crate) async fn drained_to(&self, bytes: usize) {
        while self.len() > bytes && !self.is_ended() {
            self.0.drained.notified().await;
        }
    }

    /// Writes what is appended until the outbox ends; one write per wake.
    ///
    /// # Errors
    /// What the socket says. The outbox has ended then.
    ///
    /// A peer that takes nothing for `stall` is cut off, unless it is a client that still sends.
    pub(crate) async fn pump(&self, stream: &Stream, stall: Duration) -> io::Result<()> {
        let result = self.write(stream, stall).await;
        if result.is_err() {
            self.abort();
        }
        self.0.drained.notify_one();
        while self.0.litter.borrow_mut().free(FREED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        result
    }

    async fn write(&self, stream: &Stream, stall: Duration) -> io::Result<()> {
        let mut leaving = Leaving::default();
        loop {
            if let Some((piece, written)) = self.0.begun.take() {
                leaving = Leaving { pieces: VecDeque::from([piece]), written };
            } else {
                while self.0.pieces.borrow_mut().sum_on(SUMMED_AT_ONCE) {
                    tokio::task::yield_now().await;
                }
            }
            leaving.take(&mut self.0.pieces.borrow_mut());
            self.0.writing.set(leaving.bytes());
            if leaving.pieces.is_empty() {
                if self.0.ending.get().is_some() {
                    self.end_stream(stream, stall).await;
                    return Ok(());
                }
                self.0.is_pump_idle.set(true);
                self.0.wake.notified().await;
                self.0.is_pump_idle.set(false);
                continue;
            }
            let written = tokio::select! {
                biased;
                written = self.write_all(stream, &mut leaving, stall) => Some(written),
                () = self.aborted() => None,
            };
            // What is left of it goes with the connection.
            let left = self.0.writing.replace(0);
            self.0.meter(|metered| metered - left);
            match written {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
        }
    }

    /// Ends the stream once all is written. A peer that does not take the end in time is not waited for.
    async fn end_stream(&self, stream: &Stream, stall: Duration) {
        let is_told = tokio::select! {
            biased;
            ended = tokio::time::timeout(stall, stream.end_write()) => ended.is_ok_and(|ended| ended.is_ok()),
            () = self.aborted() => false,
        };
        if !is_told {
            stream.shut_down_write();
        }
    }

    async fn aborted(&self) {
        while self.0.ending.get() != Some(Ending::Abort) {
            self.0.wake.notified().await;
        }
    }

    /// Writes all that leaves, in parts. The peer must take something within `stall`, or be a client that still asks: who asks
    /// for much before it listens has not gone.
    async fn write_all(&self, stream: &Stream, leaving: &mut Leaving, stall: Duration) -> io::Result<()> {
        let mut in_a_row = 0;
        while !leaving.pieces.is_empty() {
            // Most sockets take all at once, and no clock is asked.
            let written = match leaving.try_write(stream, PIECE_BYTES - in_a_row)? {
                Some(written) => written,
                None => self.write_some(stream, leaving.first(PIECE_BYTES - in_a_row), stall).await?,
            };
            self.0.took(written);
            leaving.went(written, |piece| self.0.pieces.borrow_mut().recycle(piece));
            in_a_row += written;
            // A peer that takes all at once keeps nobody else waiting.
            if in_a_row == PIECE_BYTES {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Waits until the peer takes some of `bytes`.
    async fn write_some(&self, stream: &Stream, bytes: &[u8], stall: Duration) -> io::Result<usize> {
        let writing = stream.write(bytes);
        tokio::pin!(writing);
        loop {
            match tokio::time::timeout(stall, &mut writing).await {
                Ok(written) => return written,
                Err(_) if self.has_asked_within(stall) => {}
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}

/// Pieces that are being written: a long value with what comes before and after it, so that these are no packets of their own.
#[derive(Debug, Default)]
struct Leaving {
    pieces: VecDeque<Piece>,
    /// So many bytes of the first one have been written.
    written: usize,
}

impl Leaving {
    /// Takes the next ones, as long as there is little.
    fn take(&mut self, pieces: &mut Pieces) {
        let mut bytes = self.bytes();
        while self.pieces.len() < PIECES_AT_ONCE && bytes < PIECE_BYTES && !pieces.sum_on(0) {
            let Some(piece) = pieces.pop() else { break };
            bytes += piece.bytes().len();
            self.pieces.push_back(piece);
        }
    }

    /// Bytes that are left to be written.
    fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes().len()).sum::<usize>() - self.written
    }

    /// What is left of the first piece, or so much of it.
    fn first(&self, bytes_max: usize) -> &[u8] {
        let rest = self.pieces.front().map_or(&[][..], |piece| &piece.bytes()[self.written..]);
        &rest[..rest.len().min(bytes_max)]
    }

    /// Writes up to so many bytes, as many as the system takes at once; `None` when it takes nothing now.
    fn try_write(&self, stream: &Stream, bytes_max: usize) -> io::Result<Option<usize>> {
        if self.pieces.len() == 1 {
            return stream.try_write(self.first(bytes_max));
        }
        let mut parts = [IoSlice::new(&[]); PIECES_AT_ONCE];
        let (mut count, mut left) = (0, bytes_max);
        let rests = self.pieces.iter().skip(1).map(Piece::bytes);
        for (part, rest) in parts.iter_mut().zip(std::iter::once(self.first(bytes_max)).chain(rests)) {
            if left == 0 {
                break;
            }
            *part = IoSlice::new(&rest[..rest.len().min(left)]);
            left -= part.len();
            count += 1;
        }
        stream.try_write_parts(&parts[..count])
    }

    /// Notes that so many bytes have been written; `done` gets the pieces that are through.
    fn went(&mut self, bytes: usize, mut done: impl FnMut(Piece)) {
        self.written += bytes;
        while let Some(length) = self.pieces.front().map(|piece| piece.bytes().len()) {
            if self.written < length {
                break;
            }
            self.written -= length;
            self.pieces.pop_front().into_iter().for_each(&mut done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::real::RealEnv;
    use bytes::BytesMut;

    async fn pair() -> (Stream, Stream) {
        let env = RealEnv::new();
        let listener = env.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap();
        let near = env.connect(&address).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (near, far)
    }

    #[tokio::test]
    async fn what_was_appended_before_the_end_arrives() {
        let (near, far) = pair().await;
        let outbox = Outbox::default();
        outbox.append(|out| out.extend_from_slice(b"one "));
        outbox.append(|out| out.extend_from_slice(b"two"));
        outbox.finish();
        outbox.append(|out| out.extend_from_slice(b"late"));
        outbox.pump(&near, Duration::from_secs(5)).await.unwrap();
        let mut read = BytesMut::new();
        while far.read(&mut read).await.unwrap() > 0 {}
        assert_eq!(&read[..], b"one two");
    }

    #[tokio::test]
    async fn long_values_and_what_is_around_them_arrive_in_their_order() {
        let (near, far) = pair().await;
        let (meter, mut said) = (Meter::default(), Vec::new());
        let outbox = Outbox::metered(Rc::clone(&meter));
        for number in 0..200_usize {
            // Shorter and longer than what is shared, than what is written at once, and than what the socket takes.
            let length = [5, 40_000, 70_000, 300_000, 1_500_000][number % 5];
            let value: Vec<u8> = (0..length).map(|at| (at * 31 + number) as u8).collect();
            outbox.append_pieces(|out| {
                out.tail().extend_from_slice(format!("<{number}:").as_bytes());
                out.value(&value.clone().into());
                out.tail().push(b'>');
            });
            said.extend_from_slice(format!("<{number}:").as_bytes());
            said.extend(value);
            said.push(b'>');
        }
        outbox.finish();
        let mut read = BytesMut::new();
        let reading = async { while far.read(&mut read).await.unwrap() > 0 {} };
        let (pumped, ()) = tokio::join!(outbox.pump(&near, Duration::from_secs(20)), reading);
        pumped.unwrap();
        assert!(read[..] == said[..], "{} of {} bytes", read.len(), said.len());
        assert_eq!((outbox.len(), meter.get()), (0, 0));
    }

    #[tokio::test]
    async fn a_long_value_leaves_with_what_is_around_it() {
        let (near, far) = pair().await;
        let mut pieces = Pieces::default();
        pieces.tail().extend_from_slice(b"head");
        pieces.value(&vec![b'x'; 40_000].into());
        pieces.tail().extend_from_slice(b"1234");
        let mut leaving = Leaving::default();
        leaving.take(&mut pieces);
        assert_eq!(leaving.bytes(), 40_008);
        // Two and a half pieces, and then the rest.
        assert_eq!(leaving.try_write(&near, 40_006).unwrap(), Some(40_006));
        let mut done = 0;
        leaving.went(40_006, |_| done += 1);
        assert_eq!((done, leaving.first(10)), (2, &b"34"[..]));
        assert_eq!(leaving.try_write(&near, 10).unwrap(), Some(2));
        leaving.went(2, |_| done += 1);
        assert_eq!((done, leaving.pieces.len(), leaving.written), (3, 0, 0));
        let mut read = BytesMut::new();
        while read.len() < 40_008 {
            far.read(&mut read).await.unwrap();
        }
        assert!(read.starts_with(b"headx") && read.ends_with(b"x1234"));
    }

    #[tokio::test]
    async fn an_abort_ends_a_write_that_the_peer_does_not_take() {
        let (near, _far) = pair().await;
        let outbox = Outbox::default();
        outbox.append(|out| out.resize(64 << 20, 0));
        let waiting = outbox.clone();
        let pump = outbox.pump(&near, Duration::from_secs(60));
        let pumped = tokio::time::timeout(Duration::from_secs(20), pump);
        let aborted = async {
            while waiting.0.writing.get() == 0 {
                tokio::task::yield_now().await;
            }
            waiting.abort();
        };
        let (pumped, ()) = tokio::join!(pumped, aborted);
        pumped.expect("the writer ended").unwrap();
        assert_eq!(waiting.len(), 0);
    }
}
