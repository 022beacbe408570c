//! The types in which bytes and requests travel between socket tasks and actors: whole batches, never one by one.
//!
//! Everything here stays on one thread. No cell is borrowed across an await.

use crate::env::Stream;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

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

    /// Whether nothing waits in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Exchanges the content for an empty vector, whose room is used again.
    pub(crate) fn take(&self, empty: &mut Vec<T>) {
        debug_assert!(empty.is_empty());
        std::mem::swap(&mut *self.0.borrow_mut(), empty);
    }
}

/// After so many frames or requests a connection lets others run, even if more are waiting. Counted in what costs time:
/// large values pass without a stop.
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
    /// At once.
    Abort,
}

/// A buffer above this size is given back to the allocator once it is written.
const KEEP_BYTES_MAX: usize = 1 << 20;

/// The unit in which a peer's progress is judged.
const PIECE_BYTES: usize = 256 * 1024;

#[derive(Debug, Default)]
struct Out {
    bytes: RefCell<Vec<u8>>,
    /// Bytes that were ever appended.
    queued: Cell<u64>,
    writing: Cell<usize>,
    /// Bytes that the other side of the socket has said.
    heard: Cell<u64>,
    ending: Cell<Option<Ending>>,
    wake: Notify,
    drained: Notify,
}

/// Bytes on their way to a socket: appended to by actors, written once per wake by [`Outbox::pump`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox(Rc<Out>);

impl Outbox {
    /// Lets `append` add bytes at the end and wakes the writer. Nothing is added to an outbox that has ended.
    pub(crate) fn append(&self, append: impl FnOnce(&mut Vec<u8>)) {
        if self.0.ending.get().is_some() {
            return;
        }
        let mut bytes = self.0.bytes.borrow_mut();
        let before = bytes.len();
        let was_empty = before == 0;
        append(&mut bytes);
        self.0.queued.set(self.0.queued.get() + (bytes.len() - before) as u64);
        if was_empty && !bytes.is_empty() {
            self.0.wake.notify_one();
        }
    }

    /// Bytes that the socket has not yet taken.
    pub(crate) fn len(&self) -> usize {
        self.0.bytes.borrow().len() + self.0.writing.get()
    }

    /// Bytes that were ever appended.
    pub(crate) fn queued(&self) -> u64 {
        self.0.queued.get()
    }

    /// Bytes of these that the socket has taken, to within a piece.
    pub(crate) fn taken(&self) -> u64 {
        self.queued() - self.len() as u64
    }

    /// Takes bytes off the front as a socket does.
    #[cfg(feature = "testing")]
    pub(crate) fn discard(&self, bytes: usize) {
        let mut queue = self.0.bytes.borrow_mut();
        let bytes = bytes.min(queue.len());
        queue.drain(..bytes);
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
        self.0.bytes.borrow_mut().clear();
        self.0.ending.set(None);
        self.end(Ending::Abort);
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
    /// A peer that takes nothing for `stall` is cut off.
    pub(crate) async fn pump(&self, stream: &Stream, stall: Duration) -> io::Result<()> {
        let result = self.write(stream, stall).await;
        if result.is_err() {
            self.abort();
        }
        self.0.drained.notify_one();
        result
    }

    async fn write(&self, stream: &Stream, stall: Duration) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            std::mem::swap(&mut *self.0.bytes.borrow_mut(), &mut buffer);
            if buffer.is_empty() {
                if self.0.ending.get().is_some() {
                    stream.shut_down_write();
                    return Ok(());
                }
                self.0.wake.notified().await;
                continue;
            }
            self.0.writing.set(buffer.len());
            let aborted = async {
                while self.0.ending.get() != Some(Ending::Abort) {
                    self.0.wake.notified().await;
                }
            };
            let written = tokio::select! {
                biased;
                written = self.write_pieces(stream, &buffer, stall) => Some(written),
                () = aborted => None,
            };
            self.0.writing.set(0);
            self.0.drained.notify_one();
            match written {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
            buffer.clear();
            if buffer.capacity() > KEEP_BYTES_MAX {
                buffer = Vec::new();
            }
        }
    }

    /// Writes `bytes` in pieces, each within `stall`.
    async fn write_pieces(&self, stream: &Stream, bytes: &[u8], stall: Duration) -> io::Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            let written = tokio::time::timeout(stall, stream.write_all(piece)).await;
            written.map_err(|_| io::ErrorKind::TimedOut)??;
            self.0.writing.set(self.0.writing.get() - piece.len());
        }
        Ok(())
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
