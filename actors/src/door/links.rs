//! The links that slaves and the other master have opened: each frame goes to the master's inbox, no faster than the
//! master works.

use super::admission::ConnectionPermit;
use super::counters::count;
use super::heard::{Said, Unheard};
use super::streams::Streams;
use super::switchboard::{Arrived, Switchboard};
use super::Context;
use crate::batch::{Outbox, Turns};
use crate::env::Stream;
use crate::reading::UsualLength;
use crate::slave_proxy::EndReason;
use bytes::BytesMut;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::frame::{self, About, FrameError, Incoming, Unframer, HANDSHAKE_BODY_MAX};
use dsm_protocol::handshake::{AcceptEvent, Accepting};
use dsm_protocol::ids::LinkId;
use dsm_protocol::message::{Control, Hello, HelloRole, Message};
use std::io;
use std::rc::Rc;

/// The reason that is sent when a link is cut.
const LINK_CUT: &str = "too many bytes of unfinished frames";

/// Why a link is no longer read.
pub(super) enum LinkError {
    Io(io::Error),
    Frame(FrameError),
    /// The unfinished frames of all links are too many bytes.
    Cut,
}

/// Sends the reason and finishes the outbox.
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
pub(crate) const REPORT_BYTES_MAX: usize = 1024 * 1024;

/// The longest body of a frame from a slave: a value, or a part of its report.
fn slave_body_max(context: &Context) -> usize {
    frame::body_max(context.config.value_max().max(REPORT_BYTES_MAX))
}

/// A link that is being read.
pub(super) struct LinkReader<'a> {
    pub(super) stream: &'a Stream,
    pub(super) buffer: BytesMut,
    pub(super) context: &'a Context,
    /// Its handshake, until the master has admitted the other side; `None` for one that is known already.
    pub(super) stranger: Option<Accepting>,
    pub(super) link: LinkId,
    pub(super) outbox: &'a Outbox,
    pub(super) unheard: &'a Rc<Unheard>,
    /// What judges requests that another master forwards; `None` on other links.
    pub(super) streams: Option<Streams<'a>>,
    /// While more bytes wait for its socket, the link is not read: whoever asks must take the answers.
    pub(super) unsent_max: usize,
}

impl LinkReader<'_> {
    /// Reads frames until the stream or the outbox ends, and brings each to the master in the form that `arrived` gives
    /// it. Until the master has admitted the other side a frame may be as long as one of the handshake, then up to
    /// `body_max`. A longer frame that concerns one request is skipped, and `refuse` is called. Each frame of a stranger
    /// is handled before the next one is read; for others a bounded number of messages may wait.
    pub(super) async fn frames(
        mut self,
        body_max: usize,
        arrived: impl Fn(Message, Said) -> Result<Arrived, LinkError>,
        mut refuse: impl FnMut(About, usize) -> Result<(), LinkError>,
    ) -> Result<(), LinkError> {
        let switchboard = &*self.context.switchboard;
        let (gate, unfinished) = (&switchboard.gate, switchboard.gate.unfinished_frames.part());
        let mut turns = Turns::default();
        let mut unframer = Unframer::default();
        let mut usual = UsualLength::default();
        loop {
            loop {
                if self.stranger.is_some() {
                    self.meet().await;
                }
                self.unheard.room().await;
                if self.outbox.len() > self.unsent_max {
                    count(&gate.counters.reads_paused);
                    self.outbox.drained_to(self.unsent_max).await;
                }
                let before = self.buffer.len();
                let incoming = if self.stranger.is_some() {
                    frame::decode(&mut self.buffer, HANDSHAKE_BODY_MAX)
                        .map(|message| message.map(Incoming::Message))
                } else {
                    // A value may be longer than `--max-value` if that limit was lowered later; the master has asked
                    // for it.
                    let asked = frame::body_max(switchboard.asked(self.link));
                    unframer.next(&mut self.buffer, body_max.max(asked))
                };
                match incoming.map_err(LinkError::Frame)? {
                    Some(Incoming::Message(message)) => {
                        let length = before - self.buffer.len();
                        usual.note(length);
                        // What a stranger says is for the master alone to refuse.
                        let message = match &mut self.streams {
                            Some(streams) if self.stranger.is_none() => streams.hear(message).await,
                            Some(_) | None => Some(message),
                        };
                        if let Some(message) = message {
                            switchboard.push(arrived(message, self.unheard.say(length))?);
                        }
                    }
                    Some(Incoming::TooLong { about, length }) => refuse(about, length)?,
                    None => break,
                }
                turns.count().await;
            }
            let bytes = self.buffer.len();
            let may = if self.stranger.is_some() {
                unfinished.hold_all(bytes)
            } else {
                // A frame that was asked for is counted among the answers. It must not be cut because of frames that
                // nobody asked for.
                let asked = switchboard.asked(self.link);
                unfinished.hold(if asked == 0 { bytes } else { bytes.saturating_sub(frame::body_max(asked)) })
            };
            if !may {
                return Err(LinkError::Cut);
            }
            let need = frame::missing(&self.buffer);
            if !usual.read_more(self.stream, &mut self.buffer, need).await.map_err(LinkError::Io)? {
                return Ok(());
            }
            self.outbox.note_heard(self.buffer.len() - bytes);
        }
    }

    /// Checks whether the master has admitted the other side. That is never revoked: values that were asked for may still
    /// arrive.
    async fn meet(&mut self) {
        let board = &self.context.switchboard;
        let mut is_taken_in = board.is_trusted(self.link);
        if !is_taken_in && self.buffer.len() >= frame::HEADER_BYTES {
            // A long frame may follow right after the short one that makes the link known: the master handles the short
            // one first.
            self.unheard.heard_out().await;
            is_taken_in = board.is_trusted(self.link);
        }
        if let (true, Some(handshake)) = (is_taken_in, &mut self.stranger) {
            handshake.step(self.context.env.now(), AcceptEvent::TakenIn, &mut Vec::new());
            if handshake.is_known() {
                self.stranger = None;
            }
        }
    }
}

/// A link that is read. Its drop reports the end of the link, also when its task panics.
pub(super) struct LinkGuard<'a> {
    switchboard: &'a Switchboard,
    link: LinkId,
    gone: Option<Arrived>,
}

impl<'a> LinkGuard<'a> {
    /// The link begins; its end is told by `gone`.
    pub(super) fn new(switchboard: &'a Switchboard, link: LinkId, gone: Arrived) -> Self {
        switchboard.link_began(link);
        LinkGuard { switchboard, link, gone: Some(gone) }
    }
}

impl Drop for LinkGuard<'_> {
    fn drop(&mut self) {
        self.switchboard.link_ended(self.link);
        if let Some(gone) = self.gone.take() {
            self.switchboard.push(gone);
        }
    }
}

pub(super) async fn slave(
    stream: &Stream,
    buffer: BytesMut,
    (handshake, permit): (Accepting, &ConnectionPermit),
    outbox: &Outbox,
    context: &Context,
    hello: Hello,
) -> io::Result<()> {
    let switchboard = &*context.switchboard;
    outbox.leave_meter();
    let link = LinkId(switchboard.next_id());
    let reason = EndReason::Closed("the connection's task is gone".to_owned());
    let mut guard = LinkGuard::new(switchboard, link, Arrived::SlaveGone { link, reason });
    switchboard.link_holds(link, permit.place());
    let unheard = Rc::<Unheard>::default();
    let said = unheard.say(0);
    switchboard.push(Arrived::SlaveHello { link, hello, outbox: outbox.clone(), said });
    let arrived = |message, said| Ok(Arrived::Slave { link, message, said });
    // It is longer than the value that was asked for, so it cannot be that value.
    let refuse = |about, length| match about {
        About::Value(tag) => {
            log::warn!("value not taken link={link} bytes={length}");
            let message = Message::Missing { tag, held: None };
            switchboard.push(Arrived::Slave { link, message, said: unheard.say(0) });
            Ok(())
        }
        // It is neither a request nor an answer; the peer will be told.
        About::Request(id) | About::Response(id) => {
            let reply = Reply::error(ErrorWord::Bad, "a slave must not send this");
            let message = Message::Response { id, reply };
            switchboard.push(Arrived::Slave { link, message, said: unheard.say(0) });
            Ok(())
        }
    };
    let stranger = Some(handshake);
    // Its acknowledgements are what values that wait for its socket must not hold up.
    let unsent_max = usize::MAX;
    let unheard = &unheard;
    let reader =
        LinkReader { stream, buffer, context, stranger, link, outbox, unheard, streams: None, unsent_max };
    let result = reader.frames(slave_body_max(context), arrived, refuse).await;
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
    buffer: BytesMut,
    (handshake, permit): (Accepting, &ConnectionPermit),
    outbox: &Outbox,
    context: &Context,
    hello: Hello,
) -> io::Result<()> {
    let switchboard = &*context.switchboard;
    let link = LinkId(switchboard.next_id());
    let _guard = LinkGuard::new(switchboard, link, Arrived::PeerGone { link });
    switchboard.link_holds(link, permit.place());
    let unheard = Rc::<Unheard>::default();
    let said = unheard.say(0);
    // A disk that hangs here delays only the task that asks.
    let address = match &hello.role {
        HelloRole::Master { address, .. } => address.clone(),
        HelloRole::Client | HelloRole::Slave { .. } | HelloRole::Member { .. } => String::new(),
    };
    let streams = Some(Streams::new(context, outbox, address));
    let identity = context.journal.identity(&context.env, &context.config).await;
    switchboard.push(Arrived::PeerHello { link, hello, outbox: outbox.clone(), identity, said });
    let arrived = |message, said| Ok(Arrived::Peer { link, message, said });
    // A request of a client of the other master, where longer ones are allowed: only that client gets an error.
    let refuse = |about, length| match about {
        About::Request(id) => {
            let why =
                format!("the request has {length} bytes, more than the active master takes (--max-value)");
            let reply = Reply::error(ErrorWord::Bad, why);
            switchboard.errors.note(&reply);
            outbox.append_pieces(|out| frame::encode_response(id, &reply, out));
            Ok(())
        }
        About::Response(_) | About::Value(_) => {
            count(&switchboard.gate.counters.protocol_errors);
            reject(outbox, "a master must not send this");
            Ok(())
        }
    };
    let stranger = Some(handshake);
    let unsent_max = context.config.max_pipeline_bytes.as_u64() as usize;
    let unheard = &unheard;
    let reader = LinkReader { stream, buffer, context, stranger, link, outbox, unheard, streams, unsent_max };
    let result = reader.frames(request_body_max(context), arrived, refuse).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MasterConfig;
    use crate::door::test_kit::{deaf_master, slave_of};

    #[actix::test]
    async fn of_a_link_that_is_gone_nothing_is_kept_though_the_master_trusts_it_after_that() {
        let (context, inbox) = deaf_master(MasterConfig::default());
        let (far, link, _outbox, said) = slave_of(&context, &inbox).await;
        drop(said);
        let board = &context.switchboard;
        board.trust(link);
        board.expect(link, 1 << 20);
        assert_eq!((board.is_trusted(link), board.asked(link)), (true, 1 << 20));
        drop(far);
        let mut arrived = Vec::new();
        while !matches!(arrived.last(), Some(Arrived::SlaveGone { .. })) {
            tokio::task::yield_now().await;
            inbox.take(&mut arrived);
        }
        // The master gives it a place before it hears that.
        board.trust(link);
        board.expect(link, 1 << 20);
        assert_eq!((board.is_trusted(link), board.asked(link)), (false, 0));
    }
}
