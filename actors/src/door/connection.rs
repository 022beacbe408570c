//! The life of one connection: its handshake, the task that serves it, and its end.

use super::admission::ConnectionPermit;
use super::counters::count;
use super::kept_out::is_denied;
use super::links::{peer, reject, slave};
use super::meet::{meet, Met};
use super::members::member;
use super::native::{native_client, NATIVE_UNKNOWN};
use super::resp::redis;
use super::sentinel::sentinel;
use super::switchboard::Switchboard;
use super::{Context, Visitor};
use crate::batch::Outbox;
use crate::env::Stream;
use crate::flusher::Flusher;
use crate::secrets;
use bytes::BytesMut;
use dsm_protocol::frame::FrameError;
use dsm_protocol::handshake::{AcceptEffect, Accepting, Rejection, Security};
use dsm_protocol::machine::protected::{Comer, DENIED_NATIVE, DENIED_NODE, DENIED_TEXT};
use dsm_protocol::message::{Hello, HelloRole};
use dsm_protocol::secret::Secrets;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

const SENTINEL_ONLY: &str =
    "this is the port of a Sentinel (--sentinel), which knows no slaves, masters and native clients";

/// How long the other side may take to close its own end, once this one is closed.
const PARTING_MAX: Duration = Duration::from_secs(1);

/// How many bytes the other side may still send until then: it had sent them before it could know of the end. A connection
/// that sends more is cut off.
const READ_OFF_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How many of these bytes are read at once.
const READ_OFF_BYTES: usize = 16 * 1024;

pub(super) async fn connection(
    stream: Stream,
    address: String,
    context: Context,
    kind: &Cell<&'static str>,
    permit: &ConnectionPermit,
) {
    let stream = Rc::new(stream);
    let counters = &context.switchboard.gate.counters;
    let mut buffer = BytesMut::new();
    let limit_ms = context.config.handshake_timeout.as_millis() as u64;
    let mut handshake = Accepting::new(context.env.now(), limit_ms);
    if context.secrets.is_any() {
        handshake = handshake.demanding(Secrets::clone(&context.secrets), secrets::nonce(&context.env));
    }
    let told = match meet(&stream, &mut buffer, &mut handshake, (address.as_str(), permit), &context).await {
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
    let met = Comes { told, handshake, address: &address, permit };
    let serving = serve(met, &stream, buffer, &outbox, &context, kind);
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

/// Who has come, and by what it holds its place.
struct Comes<'a> {
    told: AcceptEffect,
    handshake: Accepting,
    address: &'a str,
    permit: &'a ConnectionPermit,
}

/// Serves the other side until either side ends the connection.
async fn serve(
    Comes { told, handshake, address, permit }: Comes<'_>,
    stream: &Stream,
    buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    kind: &Cell<&'static str>,
) -> io::Result<()> {
    match told {
        AcceptEffect::Text => {
            let visitor = Visitor { stream, outbox, context, address, permit };
            text_client(visitor, buffer, handshake, kind).await
        }
        AcceptEffect::Native(_) if context.sentinel.is_some() => {
            reject(outbox, SENTINEL_ONLY);
            Ok(())
        }
        AcceptEffect::Native(Hello { role: HelloRole::Client, .. })
            if is_denied(Comer::Native, &handshake, stream, address, context) =>
        {
            reject(outbox, DENIED_NATIVE);
            Ok(())
        }
        AcceptEffect::Native(Hello {
            role: HelloRole::Slave { .. } | HelloRole::Master { .. } | HelloRole::Member { .. },
            ..
        }) if is_denied(Comer::Node, &handshake, stream, address, context) => {
            reject(outbox, DENIED_NODE);
            Ok(())
        }
        AcceptEffect::Native(hello) => {
            let visitor = Visitor { stream, outbox, context, address, permit };
            native(visitor, buffer, handshake, hello, kind).await
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

/// Serves whoever has said by HELLO who it is.
async fn native(
    visitor: Visitor<'_>,
    buffer: BytesMut,
    handshake: Accepting,
    hello: Hello,
    kind: &Cell<&'static str>,
) -> io::Result<()> {
    let Visitor { stream, outbox, context, permit, .. } = visitor;
    // Others are once the master has welcomed them.
    if has_shown_itself(&handshake, stream) {
        permit.set_known(true);
    }
    kind.set(match hello.role {
        HelloRole::Client => "session",
        HelloRole::Slave { .. } => "slave link",
        HelloRole::Master { .. } => "master link",
        HelloRole::Member { .. } => "member link",
    });
    match hello.role {
        // It has not said who it is.
        HelloRole::Client if !handshake.has_proved() && context.switchboard.accounts.is_guarded() => {
            reject(outbox, NATIVE_UNKNOWN);
            Ok(())
        }
        HelloRole::Client => {
            permit.set_known(true);
            native_client(stream, buffer, outbox, context, handshake.has_proved()).await
        }
        HelloRole::Slave { .. } => slave(stream, buffer, (handshake, permit), outbox, context, hello).await,
        HelloRole::Master { .. } => peer(stream, buffer, (handshake, permit), outbox, context, hello).await,
        HelloRole::Member { address } => {
            permit.set_known(true);
            member(stream, buffer, outbox, context, address).await
        }
    }
}

/// Serves a client of Redis, by the port to which it has come.
async fn text_client(
    visitor: Visitor<'_>,
    buffer: BytesMut,
    handshake: Accepting,
    kind: &Cell<&'static str>,
) -> io::Result<()> {
    let Visitor { stream, outbox, context, address, .. } = visitor;
    if is_denied(Comer::Text, &handshake, stream, address, context) {
        outbox.append(|out| out.extend_from_slice(DENIED_TEXT.as_bytes()));
        return Ok(());
    }
    kind.set("session");
    match &context.sentinel {
        Some(facts) => sentinel(visitor, buffer, handshake, facts).await,
        None => redis(visitor, buffer, handshake).await,
    }
}

/// Whether a node has shown a certificate, or anybody a secret.
fn has_shown_itself(handshake: &Accepting, stream: &Stream) -> bool {
    handshake.has_proved() || stream.security() == (Security::Tls { is_node: true })
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
    use super::super::test_kit::{connected, connected_from, deaf_master, hello_of_slave, slave_of};
    use super::*;
    use crate::config::{MasterConfig, ProtectedMode};
    use dsm_protocol::acl::Users;
    use dsm_protocol::frame::{self, PREFACE};
    use dsm_protocol::handshake::greet;
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
    async fn in_protected_mode_nobody_from_elsewhere_is_served_who_shows_nothing() {
        let (context, _inbox) = deaf_master(MasterConfig::default());
        let from = |address| connected_from(&context, Some(address));
        let hello = |role| {
            let mut out = Vec::new();
            greet(Hello { cluster: None, role }, &mut out);
            out
        };
        for address in ["10.1.2.3:4", "[2001:db8::1]:4", "[::ffff:10.1.2.3]:4", "nobody knows"] {
            let (far, ended) = from(address).await;
            far.write_all(b"PING\r\n").await.unwrap();
            let mut heard = BytesMut::new();
            while far.read(&mut heard).await.unwrap() > 0 {}
            assert_eq!(heard, DENIED_TEXT.as_bytes());
            ended.await.unwrap();
            for (role, why) in [(HelloRole::Client, DENIED_NATIVE), (hello_of_slave(), DENIED_NODE)] {
                let (far, _ended) = from(address).await;
                far.write_all(&hello(role)).await.unwrap();
                assert_eq!(last_words(&far).await, why);
            }
        }
        let counters = &context.switchboard.gate.counters;
        assert_eq!(counters.denied.get(), 12);
        let pings = async |far: Stream| {
            far.write_all(b"PING\r\n").await.unwrap();
            let mut heard = BytesMut::new();
            far.read(&mut heard).await.unwrap();
            heard
        };
        for address in ["127.0.0.1:4", "127.1.2.3:4", "[::1]:4", "[::ffff:127.0.0.1]:4"] {
            assert_eq!(pings(from(address).await.0).await, b"+PONG\r\n"[..], "{address}");
        }
        // Who must say who he is, may do so.
        let accounts = &context.switchboard.accounts;
        drop(accounts.replace(accounts.ticket(), Users::with_password(b"pw")));
        assert!(pings(from("10.1.2.3:4").await.0).await.starts_with(b"-NOAUTH"));
        // A password is no business of slaves.
        let (far, _ended) = from("10.1.2.3:4").await;
        far.write_all(&hello(hello_of_slave())).await.unwrap();
        assert_eq!(last_words(&far).await, DENIED_NODE);
        assert_eq!(counters.denied.get(), 13);
        let (open, _inbox) =
            deaf_master(MasterConfig { protected_mode: ProtectedMode::No, ..MasterConfig::default() });
        let (far, _ended) = connected_from(&open, Some("10.1.2.3:4")).await;
        assert_eq!(pings(far).await, b"+PONG\r\n"[..]);
    }

    #[actix::test]
    async fn without_users_who_must_log_in_protected_mode_closes_what_it_had_let_in() {
        let (context, _inbox) = deaf_master(MasterConfig::default());
        let accounts = &context.switchboard.accounts;
        drop(accounts.replace(accounts.ticket(), Users::with_password(b"pw")));
        let (far, ended) = connected_from(&context, Some("10.1.2.3:4")).await;
        let (near, _ended) = connected_from(&context, Some("127.0.0.1:4")).await;
        for stream in [&far, &near] {
            let mut heard = BytesMut::new();
            stream.write_all(b"AUTH pw\r\n").await.unwrap();
            stream.read(&mut heard).await.unwrap();
            assert_eq!(heard, b"+OK\r\n"[..]);
        }
        drop(accounts.replace(accounts.ticket(), Users::default()));
        for (stream, told) in [(&far, DENIED_TEXT.as_bytes()), (&near, b"+PONG\r\n")] {
            stream.write_all(b"PING\r\n").await.unwrap();
            let mut heard = BytesMut::new();
            while heard.len() < told.len() && stream.read(&mut heard).await.unwrap() > 0 {}
            assert_eq!(heard, told);
        }
        drop(far);
        ended.await.unwrap();
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
