//! The links that slaves and the other master have opened: each frame goes to the master's inbox, and no faster than it
//! hears.

use super::counters::count;
use super::heard::{Said, Unheard};
use super::switchboard::{Arrived, Switchboard};
use super::Context;
use crate::batch::{Outbox, Turns};
use crate::env::Stream;
use crate::journal;
use crate::reading::read_more;
use crate::slave_proxy::EndReason;
use bytes::BytesMut;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::frame::{self, About, FrameError, Incoming, Unframer};
use dsm_protocol::ids::LinkId;
use dsm_protocol::message::{Control, Hello, Message};
use std::io;
use std::rc::Rc;

/// What anybody else hears.
const LINK_CUT: &str = "too many bytes of unfinished frames";

/// Why a link is not read any further.
pub(super) enum LinkError {
    Io(io::Error),
    Frame(FrameError),
    /// Too many bytes wait in all for the rest of their frames.
    Cut,
}

/// Says why and lets the outbox end.
pub(crate) fn reject(outbox: &Outbox, reason: &str) {
    let message = Message::Control(Control::Reject { reason: reason.to_owned() });
    outbox.append(|out| frame::encode(&message, out));
    outbox.finish();
}

/// The longest body of a frame from a client or a master: a request.
pub(crate) fn request_body_max(context: &Context) -> usize {
    frame::body_max(context.config.value_max().max(context.facts.limits.request_bytes_max))
}

/// A slave's report of what it holds is shorter than this.
const REPORT_BYTES_MAX: usize = 1024 * 1024;

/// The longest body of a frame from a slave: a value, or a part of its report.
fn slave_body_max(context: &Context) -> usize {
    frame::body_max(context.config.value_max().max(REPORT_BYTES_MAX))
}

/// Reads frames and hands each to `take` until the stream or the outbox ends. They are as short as a handshake's until
/// the master trusts the link, and then up to `body_max`; a longer one that concerns one request is skipped, and
/// `refuse` is told. What an unknown link says is heard before it may say more; others may be ahead of the master by a
/// bounded number of messages.
async fn frames(
    stream: &Stream,
    buffer: &mut BytesMut,
    context: &Context,
    (link, outbox, unheard): (LinkId, &Outbox, &Rc<Unheard>),
    body_max: usize,
    arrived: impl Fn(Message, Said) -> Arrived,
    mut refuse: impl FnMut(About, usize),
) -> Result<(), LinkError> {
    let switchboard = &*context.switchboard;
    let trusted = &switchboard.trusted;
    let unfinished = context.switchboard.gate.unfinished_frames.part();
    let mut is_trusted = false;
    let mut turns = Turns::default();
    let mut unframer = Unframer::default();
    loop {
        loop {
            // It is never taken back: what was asked for is still on its way.
            is_trusted = is_trusted || trusted.borrow().contains_key(&link);
            if !is_trusted && buffer.len() >= frame::HEADER_BYTES {
                // A long frame may stand right behind the short one that makes the link known: the master hears that
                // one out first.
                unheard.heard_out().await;
                is_trusted = trusted.borrow().contains_key(&link);
            }
            unheard.room().await;
            let before = buffer.len();
            if !is_trusted {
                match frame::decode(buffer, frame::HANDSHAKE_BODY_MAX).map_err(LinkError::Frame)? {
                    Some(message) => {
                        switchboard.push(arrived(message, unheard.say(before - buffer.len())));
                    }
                    None => break,
                }
                turns.count().await;
                continue;
            }
            // A value from before `--max-value` was lowered is as long as it is, and was asked for.
            let asked = frame::body_max(switchboard.asked(link));
            match unframer.next(buffer, body_max.max(asked)).map_err(LinkError::Frame)? {
                Some(Incoming::Message(message)) => {
                    switchboard.push(arrived(message, unheard.say(before - buffer.len())));
                }
                Some(Incoming::TooLong { about, length }) => refuse(about, length),
                None => break,
            }
            turns.count().await;
        }
        let may = if is_trusted { unfinished.hold(buffer.len()) } else { unfinished.hold_all(buffer.len()) };
        if !may {
            return Err(LinkError::Cut);
        }
        let unread = buffer.len();
        if !read_more(stream, buffer, frame::missing(buffer)).await.map_err(LinkError::Io)? {
            return Ok(());
        }
        outbox.note_heard(buffer.len() - unread);
    }
}

/// Reports the end of a link, also when its task panics.
struct LinkGuard<'a> {
    switchboard: &'a Switchboard,
    gone: Option<Arrived>,
}

impl Drop for LinkGuard<'_> {
    fn drop(&mut self) {
        if let Some(gone) = self.gone.take() {
            self.switchboard.push(gone);
        }
    }
}

pub(super) async fn slave(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    hello: Hello,
) -> io::Result<()> {
    let switchboard = &*context.switchboard;
    outbox.leave_meter();
    let link = LinkId(switchboard.next_id());
    let reason = EndReason::Closed("the connection's task is gone".to_owned());
    let mut guard = LinkGuard { switchboard, gone: Some(Arrived::SlaveGone { link, reason }) };
    let unheard = Rc::<Unheard>::default();
    let said = unheard.say(0);
    switchboard.push(Arrived::SlaveHello { link, hello, outbox: outbox.clone(), said });
    let arrived = |message, said| Arrived::Slave { link, message, said };
    // Longer than was asked for: not what it should be, so it holds nothing that is wanted.
    let refuse = |about, length| match about {
        About::Value(tag) => {
            log::warn!("value not taken link={link} bytes={length}");
            switchboard.push(arrived(Message::Missing { tag, held: None }, unheard.say(0)));
        }
        // It answers nothing and asks nothing, which it will hear.
        About::Request(id) | About::Response(id) => {
            let reply = Reply::error(ErrorWord::Bad, "a slave does not say this");
            switchboard.push(arrived(Message::Response { id, reply }, unheard.say(0)));
        }
    };
    let of_link = (link, outbox, &unheard);
    let result =
        frames(stream, &mut buffer, context, of_link, slave_body_max(context), arrived, refuse).await;
    let reason = match &result {
        Ok(()) => EndReason::Closed("end of stream".to_owned()),
        Err(LinkError::Io(error)) => EndReason::Closed(error.to_string()),
        Err(LinkError::Frame(error)) => {
            count(&switchboard.gate.counters.protocol_errors);
            reject(outbox, &error.to_string());
            EndReason::Protocol(error.to_string())
        }
        Err(LinkError::Cut) => {
            reject(outbox, LINK_CUT);
            EndReason::Refused(LINK_CUT.to_owned())
        }
    };
    guard.gone = Some(Arrived::SlaveGone { link, reason });
    Ok(())
}

pub(super) async fn peer(
    stream: &Stream,
    mut buffer: BytesMut,
    outbox: &Outbox,
    context: &Context,
    hello: Hello,
) -> io::Result<()> {
    let switchboard = &*context.switchboard;
    let link = LinkId(switchboard.next_id());
    let _guard = LinkGuard { switchboard, gone: Some(Arrived::PeerGone { link }) };
    let unheard = Rc::<Unheard>::default();
    let said = unheard.say(0);
    // A disk that hangs here holds up nobody but whoever asks.
    let lock = journal::identity(&context.env, &context.config).await;
    switchboard.push(Arrived::PeerHello { link, hello, outbox: outbox.clone(), lock, said });
    let arrived = |message, said| Arrived::Peer { link, message, said };
    // Of a client of the other master, where longer ones are allowed: its error, and nobody else's.
    let refuse = |about, length| match about {
        About::Request(id) => {
            let why =
                format!("the request has {length} bytes, more than the active master takes (--max-value)");
            let reply = Reply::error(ErrorWord::Bad, why);
            switchboard.errors.note(&reply);
            outbox.append_pieces(|out| frame::encode_response(id, &reply, out));
        }
        About::Response(_) | About::Value(_) => {
            count(&switchboard.gate.counters.protocol_errors);
            reject(outbox, "a master does not say this");
        }
    };
    let of_link = (link, outbox, &unheard);
    let result =
        frames(stream, &mut buffer, context, of_link, request_body_max(context), arrived, refuse).await;
    match result {
        Ok(()) | Err(LinkError::Io(_)) => {}
        Err(LinkError::Frame(error)) => {
            count(&switchboard.gate.counters.protocol_errors);
            reject(outbox, &error.to_string());
        }
        Err(LinkError::Cut) => reject(outbox, LINK_CUT),
    }
    Ok(())
}
