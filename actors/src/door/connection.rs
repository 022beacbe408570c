//! The life of one connection: its handshake, the task that serves it, and its end.

use super::counters::count;
use super::links::{peer, reject, slave};
use super::meet::{meet, Met};
use super::native::{native_client, NATIVE_UNKNOWN};
use super::resp::redis;
use super::switchboard::Switchboard;
use super::Context;
use crate::batch::Outbox;
use crate::env::Stream;
use crate::flusher::Flusher;
use crate::secrets;
use bytes::BytesMut;
use dsm_protocol::frame::FrameError;
use dsm_protocol::handshake::{AcceptEffect, Accepting, Rejection};
use dsm_protocol::message::{Hello, HelloRole};
use dsm_protocol::secret::Secrets;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How long the other side may take to close its own end, once this one is closed.
const PARTING_MAX: Duration = Duration::from_secs(1);

/// How many bytes the other side may still send until then: it had sent them before it could know of the end. A connection
/// that sends more is cut off.
const READ_OFF_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How many of these bytes are read at once.
const READ_OFF_BYTES: usize = 16 * 1024;

pub(super) async fn connection(stream: Stream, address: String, context: Context, kind: &Cell<&'static str>) {
    let stream = Rc::new(stream);
    let counters = &context.switchboard.gate.counters;
    let mut buffer = BytesMut::new();
    let limit_ms = context.config.handshake_timeout.as_millis() as u64;
    let mut handshake = Accepting::new(context.env.now(), limit_ms);
    if context.secrets.is_any() {
        handshake = handshake.demanding(Secrets::clone(&context.secrets), secrets::nonce(&context.env));
    }
    let told = match meet(&stream, &mut buffer, &mut handshake, &context).await {
        Ok(Met::Told(told)) => told,
        // The condition is temporary; a Reject would tell a master or slave that it is not wanted at all.
        Ok(Met::Cut | Met::Gone) => return,
        Err(error) => return give_up(&stream, &address, &error, &context).await,
    };
    if told == AcceptEffect::TimedOut {
        count(&counters.handshakes_timed_out);
        return;
    }
    log::debug!("connection opened address={address}");
    let outbox = Outbox::metered(context.switchboard.answers.meter());
    if matches!(&told, AcceptEffect::Text | AcceptEffect::Native(Hello { role: HelloRole::Client, .. })) {
        // Not those of links: what waits for a link's own task leaves in larger parts, and wakes the other side less often.
        outbox.write_through(Rc::<Flusher>::clone(&context.switchboard.flusher), &stream);
    }
    let serving = serve((told, handshake), &stream, buffer, &outbox, &context, &address, kind);
    let pumping = outbox.pump(&stream, context.config.write_timeout);
    tokio::pin!(pumping);
    let (pumped, served) = tokio::select! {
        biased;
        pumped = &mut pumping => (pumped, Ok(())),
        served = serving => {
            outbox.finish();
            // Answers that are ready are still sent, as long as the other side takes them.
            (pumping.await, served)
        }
    };
    let is_slow = pumped.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
    let why = is_slow.then_some("it takes no answers (--write-timeout)").or(outbox.why_cut());
    if let Some(why) = why {
        count(&counters.slow_readers_cut);
        log::warn!("connection cut address={address} cause={why:?}");
    }
    if pumped.is_ok() && outbox.is_finished() {
        // If something were left unread, the kernel would reset the connection, and the other side would lose what it has
        // not read yet, the reason for the end included. What it sends from now on is not executed.
        let reading = read_off(&stream, &outbox, &context.switchboard);
        let _ = tokio::time::timeout(PARTING_MAX, reading).await;
    }
    let cause = pumped.and(served).err().map(|error| error.to_string());
    log::debug!("connection closed address={address} cause={cause:?}");
}

/// Ends a connection whose handshake has failed. What TLS has to say about it arrives only if nothing is left unread.
async fn give_up(stream: &Stream, address: &str, error: &io::Error, context: &Context) {
    if error.kind() != io::ErrorKind::InvalidData {
        return;
    }
    count(&context.switchboard.gate.counters.protocol_errors);
    log::debug!("connection refused address={address} cause={:?}", error.to_string());
    stream.shut_down_write();
    let mut buffer = BytesMut::with_capacity(READ_OFF_BYTES);
    let reading = async {
        let mut thrown_away = 0;
        while thrown_away < READ_OFF_BYTES && stream.read_off(&mut buffer).await.is_ok_and(|read| read > 0) {
            thrown_away += buffer.len();
            buffer.clear();
        }
    };
    let _ = tokio::time::timeout(PARTING_MAX, reading).await;
}

/// Serves the other side until either side ends the connection.
async fn serve(
    (told, handshake): (AcceptEffect, Accepting),
    stream: &Stream,
    buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    address: &str,
    kind: &Cell<&'static str>,
) -> io::Result<()> {
    match told {
        AcceptEffect::Text => {
            kind.set("session");
            redis(stream, buffer, handshake, outbox, context, address).await
        }
        AcceptEffect::Native(hello) => {
            kind.set(match hello.role {
                HelloRole::Client => "session",
                HelloRole::Slave { .. } => "slave link",
                HelloRole::Master { .. } => "master link",
            });
            match hello.role {
                // It has not said who it is.
                HelloRole::Client if !handshake.has_proved() && context.switchboard.accounts.is_guarded() => {
                    reject(outbox, NATIVE_UNKNOWN);
                    Ok(())
                }
                HelloRole::Client => {
                    native_client(stream, buffer, outbox, context, handshake.has_proved()).await
                }
                HelloRole::Slave { .. } => slave(stream, buffer, handshake, outbox, context, hello).await,
                HelloRole::Master { .. } => peer(stream, buffer, handshake, outbox, context, hello).await,
            }
        }
        AcceptEffect::Reject(why) => {
            count(&context.switchboard.gate.counters.protocol_errors);
            if let Rejection::Frame(error @ FrameError::WireVersion { .. }) = &why {
                context.switchboard.tell_of_version(context.env.now(), address, error);
            }
            if let Rejection::NoProof { .. } | Rejection::WrongProof { .. } = &why {
                count(&context.switchboard.gate.counters.proofs_refused);
                context.switchboard.tell_of_proof(context.env.now(), address, &why);
            }
            reject(outbox, &why.to_string());
            Ok(())
        }
        AcceptEffect::RejectText(why) => {
            count(&context.switchboard.gate.counters.protocol_errors);
            outbox.append(|out| out.extend_from_slice(format!("-ERR {why}\r\n").as_bytes()));
            Ok(())
        }
        // What is to be said is said before.
        AcceptEffect::TimedOut | AcceptEffect::Say(_) => Ok(()),
    }
}

/// Reads and discards what arrives, until the other side closes or has sent too much.
async fn read_off(stream: &Stream, outbox: &Outbox, switchboard: &Switchboard) {
    // A client that has asked nothing for some time has nothing on its way, and a client that ignores its connection
    // may keep it open for ever: a stop waits for neither.
    let is_let_go = switchboard.stopping.get() && outbox.has_asked_within(PARTING_MAX);
    let _counted = is_let_go.then(|| ReadOff::begin(&switchboard.read_off));
    let mut buffer = BytesMut::with_capacity(READ_OFF_BYTES);
    let mut thrown_away = 0;
    while thrown_away < READ_OFF_BYTES_MAX && stream.read_off(&mut buffer).await.is_ok_and(|read| read > 0) {
        thrown_away += buffer.len();
        buffer.clear();
        // The timeout is checked only when this task yields, and the other side may send without end.
        tokio::task::yield_now().await;
    }
}

/// Counts a connection while it is read off.
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

#[cfg(test)]
mod tests {
    use super::super::test_kit::{connected, deaf_master, slave_of};
    use super::*;
    use crate::config::MasterConfig;
    use dsm_protocol::frame::{self, PREFACE};
    use dsm_protocol::message::{Control, Message};

    /// More than a connection reads before it knows who is there, in bytes.
    const UNREAD_BYTES: usize = 1 << 20;

    /// What the other side says before it closes its end.
    async fn last_words(stream: &Stream) -> String {
        let mut read = BytesMut::new();
        while stream.read(&mut read).await.expect("an end, and no reset") > 0 {}
        // A write to a connection that was reset fails. Other systems than Linux also lose what was not read yet.
        stream.write_all(b"more").await.expect("the connection was reset");
        match frame::decode(&mut read, UNREAD_BYTES) {
            Ok(Some(Message::Control(Control::Reject { reason }))) if read.is_empty() => reason,
            other => panic!("{other:?}"),
        }
    }

    #[actix::test]
    async fn a_peer_with_another_wire_version_is_told_why_before_the_end_whatever_it_sends() {
        let (context, _inbox) = deaf_master(MasterConfig::default());
        let (far, ended) = connected(&context).await;
        let mut said = PREFACE.to_vec();
        // The version is the last part of the preface.
        said[PREFACE.len() - 1] ^= 0xff;
        said.resize(UNREAD_BYTES, b'x');
        far.write_all(&said).await.unwrap();
        assert!(last_words(&far).await.contains("version"));
        drop(far);
        ended.await.unwrap();
    }

    #[actix::test]
    async fn a_refused_slave_is_told_why_before_the_end_whatever_it_sends() {
        let (context, inbox) = deaf_master(MasterConfig::default());
        let (far, _link, outbox, _said) = slave_of(&context, &inbox).await;
        far.write_all(&[b'x'; UNREAD_BYTES]).await.unwrap();
        reject(&outbox, "not this one");
        assert_eq!(last_words(&far).await, "not this one");
    }

    #[actix::test]
    async fn a_peer_that_goes_on_sending_is_cut_off() {
        let (context, _inbox) = deaf_master(MasterConfig::default());
        let (far, ended) = connected(&context).await;
        let mut said = PREFACE.to_vec();
        said[PREFACE.len() - 1] ^= 0xff;
        far.write_all(&said).await.unwrap();
        // More than all buffers on the way hold and the other side reads off.
        let more = vec![b'x'; 64 << 20];
        let sent = far.write_all(&more).await;
        assert!(sent.is_err(), "64 MiB were read of a refused peer");
        ended.await.unwrap();
    }

    #[actix::test]
    async fn a_peer_that_never_closes_its_end_is_not_waited_for() {
        let (context, _inbox) = deaf_master(MasterConfig::default());
        let (far, ended) = connected(&context).await;
        let mut said = PREFACE.to_vec();
        said.resize(PREFACE.len() + frame::HEADER_BYTES, 0xff);
        far.write_all(&said).await.unwrap();
        last_words(&far).await;
        let begun = tokio::time::Instant::now();
        tokio::time::timeout(10 * PARTING_MAX, ended).await.expect("it ends by itself").unwrap();
        assert!(begun.elapsed() >= PARTING_MAX / 2, "it was waited for");
    }
}
