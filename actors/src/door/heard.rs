//! The messages of one link that wait for the master. Their number is bounded: beyond it the link's socket is not read.

use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::Notify;

/// How many messages of one link may wait for the master before the link is no longer read.
const UNHEARD_MAX: usize = 4096;

/// The same in bytes of their bodies, or one message.
const UNHEARD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The messages of one link that wait for the master. The task of the link's socket waits here while there are too many,
/// so that a peer that sends faster than the master works fills only its own socket.
#[derive(Debug, Default)]
pub(crate) struct Unheard {
    messages: Cell<usize>,
    bytes: Cell<usize>,
    is_waited_for: Cell<bool>,
    heard: Notify,
}

impl Unheard {
    /// Counts a message of so many bytes until the master has handled it.
    pub(crate) fn say(self: &Rc<Self>, bytes: usize) -> Said {
        self.messages.set(self.messages.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        Said { unheard: Rc::clone(self), bytes }
    }

    /// Whether one more message may be read.
    pub(super) fn has_room(&self) -> bool {
        self.messages.get() < UNHEARD_MAX && (self.bytes.get() < UNHEARD_BYTES_MAX || self.is_empty())
    }

    /// Whether the master has handled all messages.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.get() == 0
    }

    /// Waits until one more message may be read.
    pub(crate) async fn room(&self) {
        self.wait_until(Self::has_room).await;
    }

    /// Waits until the master has handled all messages.
    pub(super) async fn heard_out(&self) {
        self.wait_until(Self::is_empty).await;
    }

    pub(super) async fn wait_until(&self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            self.is_waited_for.set(true);
            self.heard.notified().await;
        }
        self.is_waited_for.set(false);
    }
}

/// One message that waits for the master. Its drop marks it as handled.
#[derive(Debug)]
pub(crate) struct Said {
    unheard: Rc<Unheard>,
    bytes: usize,
}

impl Drop for Said {
    fn drop(&mut self) {
        let Unheard { messages, bytes, is_waited_for, heard } = &*self.unheard;
        messages.set(messages.get() - 1);
        bytes.set(bytes.get() - self.bytes);
        if is_waited_for.get() {
            heard.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MasterConfig;
    use crate::door::switchboard::Arrived;
    use crate::door::test_kit::{deaf_master, slave_of};
    use dsm_protocol::frame;
    use dsm_protocol::message::{Control, Message};

    #[actix::test]
    async fn a_link_is_read_no_faster_than_the_master_handles_it() {
        const FRAMES: usize = 20_000;
        let (context, inbox) = deaf_master(MasterConfig::default());
        let (far, link, _outbox, said) = slave_of(&context, &inbox).await;
        context.switchboard.trust(link);
        drop(said);
        let mut out = Vec::new();
        for through in 0..FRAMES as u64 {
            frame::encode(&Message::Ack { through, room_bytes: 0 }, &mut out);
        }
        let writing = actix::spawn(async move { far.write_all(&out).await.map(|()| far) });
        let waits = || inbox.len();
        while waits() < UNHEARD_MAX {
            tokio::task::yield_now().await;
        }
        // Long enough for everything else that could be read.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(waits(), UNHEARD_MAX);
        // Each message that is handled makes room for another one, until all have come.
        let mut heard = 0;
        while heard < FRAMES {
            assert!(waits() <= UNHEARD_MAX);
            let mut arrived = Vec::new();
            inbox.take(&mut arrived);
            heard += arrived.len();
            drop(arrived);
            tokio::task::yield_now().await;
        }
        writing.await.unwrap().unwrap();
    }

    #[actix::test]
    async fn a_link_that_waits_for_the_master_takes_no_turns() {
        let (context, inbox) = deaf_master(MasterConfig::default());
        let (far, link, _outbox, said) = slave_of(&context, &inbox).await;
        let mut out = Vec::new();
        frame::encode(&Message::Control(Control::Probe), &mut out);
        far.write_all(&out).await.unwrap();
        let turns = || context.switchboard.turns.count();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        let before = turns();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(turns(), before, "it asks again and again");
        drop(said);
        let mut arrived = Vec::new();
        while arrived.is_empty() {
            tokio::task::yield_now().await;
            inbox.take(&mut arrived);
        }
        assert!(matches!(&arrived[..], [Arrived::Slave { link: its, .. }] if *its == link), "{arrived:?}");
    }
}
