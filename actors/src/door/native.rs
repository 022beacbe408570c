//! A native client's connection: requests in frames.

use super::admission::check_sizes;
use super::counters::count;
use super::links::{reject, request_body_max, LinkError};
use super::origin::Origin;
use super::session::Coding;
use super::session_guard::{hear, parted, Heard, SessionGuard, UPLOADS_CUT};
use super::Context;
use crate::batch::{Outbox, Turns};
use crate::env::Stream;
use bytes::BytesMut;
use dsm_protocol::frame::{self, FrameError, Unframer};
use dsm_protocol::ids::SessionId;
use dsm_protocol::message::{Control, Message};
use std::io;

/// Why a native client is refused where there are users.
pub(super) const NATIVE_UNKNOWN: &str =
    "this master serves users who say who they are (--users-file, --password-file): use a Redis \
                              client with AUTH, or prove the secret of native clients (--client-secret-file)";

/// Serves a native client until it leaves. One that has proved the secret may do everything, whatever users there are.
pub(super) async fn native_client(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    has_proved: bool,
) -> io::Result<()> {
    let id = SessionId(context.switchboard.next_id());
    let guard = SessionGuard::open(context, id, Origin::Native { has_proved }, outbox);
    let mut result = native_requests(stream, &mut buffer, context, &guard, has_proved).await;
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

/// Reads a native client's requests until it closes its side.
async fn native_requests(
    stream: &Stream,
    buffer: &mut BytesMut,
    context: &Context,
    guard: &SessionGuard,
    has_proved: bool,
) -> Result<(), LinkError> {
    let body_max = request_body_max(context);
    let unfinished = context.switchboard.gate.unfinished_requests.part();
    let mut turns = Turns::default();
    let mut unframer = Unframer::default();
    loop {
        while let Some(message) = unframer.next_of_one(buffer, body_max).map_err(LinkError::Frame)? {
            turns.count().await;
            if !has_proved && context.switchboard.accounts.is_guarded() {
                // There were no users when it came.
                guard.session.send(&Message::Control(Control::Reject { reason: NATIVE_UNKNOWN.to_owned() }));
                return Ok(());
            }
            unfinished.hold(buffer.len());
            count(&context.switchboard.gate.counters.commands);
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
