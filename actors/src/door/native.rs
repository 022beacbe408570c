//! A connection that speaks frames: its HELLO tells whether a client, a slave or the other master is there.

use super::admission::check_sizes;
use super::counters::count;
use super::links::{peer, reject, request_body_max, slave, LinkError};
use super::origin::Origin;
use super::session::Coding;
use super::session_guard::{hear, parted, Heard, SessionGuard, UPLOADS_CUT};
use super::Context;
use crate::batch::{Outbox, Turns};
use crate::env::Stream;
use crate::reading::read_more;
use bytes::BytesMut;
use dsm_protocol::frame::{self, FrameError, Unframer};
use dsm_protocol::ids::SessionId;
use dsm_protocol::message::{Control, Hello, HelloRole, Message};
use std::cell::Cell;
use std::io;

/// Somebody who speaks frames: a client, a slave or the other master.
pub(super) async fn native(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    address: &str,
    kind: &Cell<&'static str>,
) -> io::Result<()> {
    let counters = &context.switchboard.gate.counters;
    let shaking = hello(stream, &mut buffer, context);
    let hello = match tokio::time::timeout(context.config.handshake_timeout, shaking).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(LinkError::Io(error))) => return Err(error),
        Ok(Err(LinkError::Frame(error))) => {
            count(&counters.protocol_errors);
            if let FrameError::WireVersion { .. } = error {
                context.switchboard.tell_of_version(context.env.now(), address, &error);
            }
            reject(outbox, &error.to_string());
            return Ok(());
        }
        // It passes; a Reject would tell a master or slave that it is not wanted.
        Ok(Err(LinkError::Cut)) => return Ok(()),
        Err(_) => {
            count(&counters.handshakes_timed_out);
            return Ok(());
        }
    };
    let Some(hello) = hello else { return Ok(()) };
    kind.set(match hello.role {
        HelloRole::Client => "session",
        HelloRole::Slave { .. } => "slave link",
        HelloRole::Master { .. } => "master link",
    });
    match hello.role {
        HelloRole::Client => native_client(stream, buffer, outbox, context).await,
        HelloRole::Slave { .. } => slave(stream, buffer, outbox, context, hello).await,
        HelloRole::Master { .. } => peer(stream, buffer, outbox, context, hello).await,
    }
}

/// Reads preface and HELLO; `None` when the stream ends before.
async fn hello(
    stream: &Stream,
    buffer: &mut BytesMut,
    context: &Context,
) -> Result<Option<Hello>, LinkError> {
    let unfinished = context.switchboard.gate.unfinished_frames.part();
    let mut has_preface = false;
    loop {
        if !has_preface && frame::check_preface(buffer).map_err(LinkError::Frame)? {
            bytes::Buf::advance(buffer, frame::PREFACE.len());
            has_preface = true;
        }
        if has_preface {
            match frame::decode(buffer, frame::HANDSHAKE_BODY_MAX).map_err(LinkError::Frame)? {
                Some(Message::Control(Control::Hello(hello))) => return Ok(Some(hello)),
                Some(_) => return Err(LinkError::Frame(FrameError::NotNative)),
                None => {}
            }
        }
        if !unfinished.hold_all(buffer.len()) {
            return Err(LinkError::Cut);
        }
        if !read_more(stream, buffer, 0).await.map_err(LinkError::Io)? {
            return Ok(None);
        }
    }
}

async fn native_client(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
) -> io::Result<()> {
    let id = SessionId(context.switchboard.next_id());
    let guard = SessionGuard::open(context, id, Origin::Native, outbox);
    let mut result = native_requests(stream, &mut buffer, context, &guard).await;
    if let Err(LinkError::Cut) = result {
        guard.session.send(&Message::Control(Control::Reject { reason: format!("BUSY {UPLOADS_CUT}") }));
        result = Ok(());
    }
    match result {
        Ok(()) | Err(LinkError::Cut) => {
            guard.hear_out(context).await;
            Ok(())
        }
        Err(LinkError::Io(error)) => Err(error),
        Err(LinkError::Frame(error)) => {
            count(&context.switchboard.gate.counters.protocol_errors);
            reject(outbox, &error.to_string());
            Ok(())
        }
    }
}

/// Reads a native client's requests until it has no more.
async fn native_requests(
    stream: &Stream,
    buffer: &mut BytesMut,
    context: &Context,
    guard: &SessionGuard,
) -> Result<(), LinkError> {
    let body_max = request_body_max(context);
    let unfinished = context.switchboard.gate.unfinished_requests.part();
    let mut turns = Turns::default();
    let mut unframer = Unframer::default();
    loop {
        while let Some(message) = unframer.next_of_one(buffer, body_max).map_err(LinkError::Frame)? {
            turns.count().await;
            unfinished.hold(buffer.len());
            let Message::Request(request) = message else {
                return Err(LinkError::Frame(FrameError::Malformed(0)));
            };
            guard.room(context).await;
            let coding = Coding::Native(request.id);
            match check_sizes(&request.command, context.config.value_max()) {
                None => guard.ask(context, coding, request.command),
                Some(refusal) => guard.refuse(coding, &refusal),
            }
        }
        if !unfinished.hold(buffer.len()) {
            return Err(LinkError::Cut);
        }
        let parted = parted(stream, &guard.session, buffer.is_empty());
        let heard = tokio::select! {
            biased;
            heard = hear(stream, buffer, frame::missing(buffer), guard.patience(context), guard) => heard.map_err(LinkError::Io)?,
            () = parted => return Ok(()),
        };
        match heard {
            Heard::More => guard.session.note_sends(),
            Heard::End => return Ok(()),
            Heard::Nothing => {
                count(&context.switchboard.gate.counters.idle_closed);
                return Ok(());
            }
        }
    }
}
