//! Reads the first bytes of a connection until the handshake tells who has connected.

use super::admission::ConnectionPermit;
use super::kept_out::is_stranger;
use super::Context;
use crate::env::Stream;
use crate::reading::read_more;
use bytes::BytesMut;
use dsm_protocol::frame;
use dsm_protocol::handshake::{AcceptEffect, AcceptEvent, Accepting};
use dsm_protocol::message::Message;
use dsm_protocol::secret::Prover;
use std::future::{poll_fn, Future as _};
use std::io;
use std::pin::pin;
use std::time::Duration;

/// What a new connection turns out to be.
pub(super) enum Met {
    /// The result of the handshake.
    Told(AcceptEffect),
    /// The connection has ended before that.
    Gone,
    /// The unfinished handshakes of all connections are too many bytes.
    Cut,
}

/// Reads into `buffer` until it is known who has connected. What follows the handshake stays in the buffer.
///
/// # Errors
/// Errors of the socket.
pub(super) async fn meet(
    stream: &Stream,
    buffer: &mut BytesMut,
    handshake: &mut Accepting,
    comes: (&str, &ConnectionPermit),
    context: &Context,
) -> io::Result<Met> {
    let env = &context.env;
    let unfinished = context.switchboard.gate.unfinished_handshakes.part();
    let mut effects = Vec::new();
    while let Some(until) = handshake.deadline() {
        let left = Duration::from_millis(until.since(env.now()));
        let event = match tokio::time::timeout(left, hear(stream, buffer, comes, context)).await {
            Ok(Ok(true)) => {
                handshake.step(env.now(), AcceptEvent::Found(stream.security()), &mut effects);
                if context.secrets.is_any() {
                    // Where it is not known, nothing is proved.
                    if let Ok(channel) = stream.channel(Prover::Accepting) {
                        handshake.step(env.now(), AcceptEvent::Through(channel), &mut effects);
                    }
                }
                AcceptEvent::Bytes(buffer)
            }
            Ok(Ok(false)) => return Ok(Met::Gone),
            Ok(Err(error)) => return Err(error),
            Err(_) => AcceptEvent::Tick,
        };
        handshake.step(env.now(), event, &mut effects);
        for effect in effects.drain(..) {
            let AcceptEffect::Say(control) = effect else { return Ok(Met::Told(effect)) };
            let mut said = Vec::new();
            frame::encode(&Message::Control(control), &mut said);
            // Too short to wait for a peer that reads.
            match tokio::time::timeout(context.config.handshake_timeout, stream.write_all(&said)).await {
                Ok(written) => written?,
                Err(_) => return Ok(Met::Told(AcceptEffect::TimedOut)),
            }
        }
        if !unfinished.hold_all(buffer.len()) {
            return Ok(Met::Cut);
        }
    }
    Ok(Met::Gone)
}

/// Reads once. With a certificate it may be known who comes before he says anything.
async fn hear(
    stream: &Stream,
    buffer: &mut BytesMut,
    (address, permit): (&str, &ConnectionPermit),
    context: &Context,
) -> io::Result<bool> {
    let mut reading = pin!(read_more(stream, buffer, 0));
    poll_fn(|waker| {
        let read = reading.as_mut().poll(waker);
        if read.is_pending() && !is_stranger(stream, address, context) {
            permit.set_known(true);
        }
        read
    })
    .await
}
