//! Our own link to another master: dialed, kept, and dialed again. There is one for each.
//!
//! Owns the connection. What comes over it goes to the master's inbox; the link's generation tells old from new.

use crate::batch::{Outbox, Turns};
use crate::config::MasterConfig;
use crate::door::heard::Unheard;
use crate::door::links::request_body_max;
use crate::door::switchboard::Arrived;
use crate::door::Context;
use crate::env::{Env, Stream};
use crate::journal;
use crate::reading::read_more;
use crate::supervision::{Backoff, Fate, TaskGuard};
use bytes::BytesMut;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::frame::{self, About, Incoming, Unframer};
use dsm_protocol::ids::{ClusterId, LinkId};
use dsm_protocol::message::{Control, Hello, HelloRole, Message};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause between attempts: a failback should not wait for it.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// What this master says of itself.
pub(crate) struct Introduction {
    /// The address of the other master that is dialed.
    pub(crate) peer: String,
    /// Our own address.
    pub(crate) address: String,
    /// Our settings. Which log they lead to is looked at for each HELLO: somebody may replace it while we run.
    pub(crate) config: Rc<MasterConfig>,
    /// The cluster of our log, once it has one.
    pub(crate) cluster: Rc<Cell<Option<ClusterId>>>,
}

/// Keeps a link to the other master until the node ends.
pub(crate) async fn keep(introduction: Introduction, context: Context, fate: Fate) {
    let _guard = TaskGuard::new("the link to the other master", fate.clone());
    let mut backoff = Backoff::up_to(BACKOFF_MAX);
    let mut complained = false;
    let mut told = false;
    let has_been_up = Cell::new(false);
    // A master that stops needs the link too, to forward what its clients still ask.
    while !fate.is_decided() {
        let generation = LinkId(context.switchboard.next_id());
        match dial(&introduction, &context, generation, &mut backoff, &has_been_up).await {
            Ok(()) => complained = false,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if !std::mem::replace(&mut complained, true) {
                    let reason = error.to_string();
                    context.switchboard.push(Arrived::DialRefused { reason });
                }
            }
            // A wrong address, perhaps. A link that stood and is lost shows in INFO.
            Err(error) if !has_been_up.get() && !std::mem::replace(&mut told, true) => log::info!(
                "no link to the other master yet, trying on address={} cause={:?}",
                introduction.peer,
                error.to_string()
            ),
            Err(error) => {
                log::debug!("no link to the other master address={} error={error}", introduction.peer);
            }
        }
        let delay = backoff.next(&context.env);
        tokio::select! {
            biased;
            // It has just connected to us, so it is there.
            () = context.switchboard.peer_came.notified() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// How long a start waits for the other master's word.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_millis(200);

/// Asks the other master, if there is one, whether it accepts this one: two masters that look at different files must
/// not both begin to serve. `Some` is its refusal.
pub(crate) async fn preflight(introduction: &Introduction, env: &Env) -> Option<String> {
    let asking = async {
        let stream = env.connect(&introduction.peer).await.ok()?;
        let mut hello = frame::PREFACE.to_vec();
        frame::encode(&introduction.hello(env).await.ok()?, &mut hello);
        stream.write_all(&hello).await.ok()?;
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(4096);
            if stream.read(&mut buffer).await.ok()? == 0 {
                return None;
            }
            match frame::decode(&mut buffer, frame::HANDSHAKE_BODY_MAX).ok()? {
                Some(Message::Control(Control::Reject { reason })) => return Some(reason),
                Some(_) => return None,
                None => {}
            }
        }
    };
    tokio::time::timeout(PREFLIGHT_TIMEOUT, asking).await.ok().flatten()
}

impl Introduction {
    async fn hello(&self, env: &Env) -> io::Result<Message> {
        let lock_identity = journal::identity(env, &self.config).await?;
        let role = HelloRole::Master { address: self.address.clone(), lock_identity };
        Ok(Message::Control(Control::Hello(Hello { cluster: self.cluster.get(), role })))
    }
}

async fn dial(
    introduction: &Introduction,
    context: &Context,
    generation: LinkId,
    backoff: &mut Backoff,
    has_been_up: &Cell<bool>,
) -> io::Result<()> {
    let connecting = context.env.connect(&introduction.peer);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
    stream.keep_alive(context.config.tcp_keepalive);
    let outbox = Outbox::default();
    let hello = introduction.hello(&context.env).await?;
    outbox.append(|out| {
        out.extend_from_slice(&frame::PREFACE);
        frame::encode(&hello, out);
    });
    let pumping = outbox.pump(&stream, context.config.write_timeout);
    let reading = read((&stream, &introduction.peer), &outbox, context, generation, backoff, has_been_up);
    let serving = async {
        tokio::select! {
            biased;
            pumped = pumping => pumped,
            read = reading => read,
        }
    };
    Rc::clone(&context.switchboard.turns).watch(&Cell::new("master link"), serving).await
}

/// Reports the end of the link, whatever ends it.
struct Down<'a> {
    context: &'a Context,
    generation: LinkId,
    up: bool,
}

impl Drop for Down<'_> {
    fn drop(&mut self) {
        if self.up {
            self.context.switchboard.push(Arrived::DialedDown { generation: self.generation });
        }
    }
}

async fn read(
    (stream, peer): (&Stream, &str),
    outbox: &Outbox,
    context: &Context,
    generation: LinkId,
    backoff: &mut Backoff,
    has_been_up: &Cell<bool>,
) -> io::Result<()> {
    let mut down = Down { context, generation, up: false };
    let unfinished = context.switchboard.gate.unfinished_frames.part();
    let invalid = |error: frame::FrameError| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut buffer = BytesMut::new();
    let mut turns = Turns::default();
    let mut unframer = Unframer::default();
    let unheard = Rc::<Unheard>::default();
    loop {
        let need = frame::missing(&buffer);
        let reading = read_more(stream, &mut buffer, need);
        let more = if down.up {
            reading.await?
        } else {
            tokio::time::timeout(context.config.handshake_timeout, reading).await??
        };
        if !more {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        loop {
            unheard.room().await;
            let before = buffer.len();
            // Whoever answers at the address is nobody we know before it says Welcome.
            let incoming = if down.up {
                // A value from before `--max-value` was lowered is as long as it is, and was asked for.
                let asked = frame::body_max(context.switchboard.asked(generation));
                unframer.next(&mut buffer, request_body_max(context).max(asked)).map_err(invalid)?
            } else {
                frame::decode(&mut buffer, frame::HANDSHAKE_BODY_MAX).map_err(invalid)?.map(Incoming::Message)
            };
            let message = match incoming {
                Some(Incoming::Message(message)) => message,
                Some(Incoming::TooLong { about: About::Response(id), length }) => {
                    let why =
                        format!("the answer has {length} bytes, more than this master takes (--max-value)");
                    Message::Response { id, reply: Reply::error(ErrorWord::Bad, why) }
                }
                Some(Incoming::TooLong { about: About::Request(_) | About::Value(_), .. }) => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                None => break,
            };
            turns.count().await;
            match message {
                Message::Control(Control::Welcome(welcome)) if !down.up => {
                    down.up = true;
                    backoff.reset();
                    has_been_up.set(true);
                    let outbox = outbox.clone();
                    let address = peer.to_owned();
                    context.switchboard.push(Arrived::DialedUp { generation, address, welcome, outbox });
                }
                // Only the answer to our HELLO is about who we are. Later ones are about a frame, and pass.
                Message::Control(Control::Reject { reason }) => {
                    let kind = if down.up { io::ErrorKind::Other } else { io::ErrorKind::PermissionDenied };
                    return Err(io::Error::new(kind, reason));
                }
                message if down.up => {
                    let said = unheard.say(before - buffer.len());
                    context.switchboard.push(Arrived::Dialed { generation, message, said });
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        let may = if down.up { unfinished.hold(buffer.len()) } else { unfinished.hold_all(buffer.len()) };
        if !may {
            return Err(io::Error::other("too many bytes of unfinished frames"));
        }
    }
}
