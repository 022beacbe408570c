//! The life of one connection: the first bytes tell who is there, and its end is told to whoever reads it.

use super::counters::count;
use super::native::native;
use super::resp::redis;
use super::switchboard::Switchboard;
use super::Context;
use crate::batch::Outbox;
use crate::env::Stream;
use crate::reading::READ_BYTES;
use bytes::BytesMut;
use dsm_protocol::frame;
use std::cell::Cell;
use std::io;
use std::time::Duration;

/// How long a client that was let go may take to close its side.
const PARTING_MAX: Duration = Duration::from_secs(1);

pub(super) async fn connection(stream: Stream, address: String, context: Context, kind: &Cell<&'static str>) {
    let counters = &context.switchboard.gate.counters;
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let handshake = tokio::time::timeout(context.config.handshake_timeout, stream.read(&mut buffer)).await;
    match handshake {
        Ok(Ok(0) | Err(_)) => return,
        Ok(Ok(_)) => {}
        Err(_) => {
            count(&counters.handshakes_timed_out);
            return;
        }
    }
    log::debug!("connection opened address={address}");
    let outbox = Outbox::metered(context.switchboard.answers.meter());
    let serving = async {
        if buffer[0] == frame::PREFACE[0] {
            native(&stream, buffer, &outbox, &context, &address, kind).await
        } else {
            kind.set("session");
            redis(&stream, buffer, &outbox, &context, &address).await
        }
    };
    let pumping = outbox.pump(&stream, context.config.write_timeout);
    tokio::pin!(pumping);
    let (pumped, served) = tokio::select! {
        biased;
        pumped = &mut pumping => (pumped, Ok(())),
        served = serving => {
            outbox.finish();
            // What is answered is still sent, but to nobody who does not take it.
            (pumping.await, served)
        }
    };
    let is_slow = pumped.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
    let why = is_slow.then_some("it takes no answers (--write-timeout)").or(outbox.why_cut());
    if let Some(why) = why {
        count(&counters.slow_readers_cut);
        log::warn!("connection cut address={address} cause={why:?}");
    }
    if pumped.is_ok() && why.is_none() && context.switchboard.stopping.get() {
        // What crosses our end is not executed; were it left unread, the kernel would reset the connection, and
        // answers that the client has not read yet would be lost.
        let reading = read_off(&stream, &outbox, &context.switchboard);
        let _ = tokio::time::timeout(PARTING_MAX, reading).await;
    }
    let cause = pumped.and(served).err().map(|error| error.to_string());
    log::debug!("connection closed address={address} cause={cause:?}");
}

/// Reads and throws away what comes until the other side ends.
async fn read_off(stream: &Stream, outbox: &Outbox, switchboard: &Switchboard) {
    // Nothing crosses from who has asked nothing for long, and connections that nobody looks at may stay open for ever.
    let _counted = outbox.has_asked_within(PARTING_MAX).then(|| ReadOff::begin(&switchboard.read_off));
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
        buffer.clear();
    }
}

/// Counts a connection as long as it is read off.
struct ReadOff<'a>(&'a Cell<usize>);

impl<'a> ReadOff<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        ReadOff(count)
    }
}

impl Drop for ReadOff<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
