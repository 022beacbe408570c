//! The link that this master dials to another one. There is one for each other master.
//!
//! What arrives goes to the master's inbox, as it does on links that others have opened. The link's generation tells old
//! messages from new ones.

use super::heard::Unheard;
use super::links::{request_body_max, LinkError, LinkGuard, LinkReader};
use super::switchboard::Arrived;
use super::Context;
use crate::batch::Outbox;
use crate::config::MasterConfig;
use crate::dial::{self, DialError, Greeted, Kept, Manner};
use crate::env::{Env, Stream};
use crate::journal::JournalKind;
use crate::secrets;
use crate::supervision::Fate;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::frame::About;
use dsm_protocol::handshake::HandshakeFailure;
use dsm_protocol::ids::{ClusterId, LinkId};
use dsm_protocol::message::{Control, Hello, HelloRole, Message};
use dsm_protocol::secret::Secret;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause between attempts: a failback should not wait for it.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// How long a start waits for the answer of the other master.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_millis(200);

/// What this master says of itself.
pub(crate) struct Introduction {
    /// The address of the other master that is dialed.
    pub(crate) peer: String,
    /// The same, with what the settings say of how it is reached.
    pub(crate) dial: String,
    /// The address at which others reach this node.
    pub(crate) address: String,
    /// Our settings. The log to which they lead is looked up for each HELLO, because it may be replaced while we run.
    pub(crate) config: Rc<MasterConfig>,
    /// What our log is made of.
    pub(crate) journal: JournalKind,
    /// The cluster of our log, once it has one.
    pub(crate) cluster: Rc<Cell<Option<ClusterId>>>,
    /// The secret of nodes.
    pub(crate) secret: Option<Secret>,
}

impl Introduction {
    async fn hello(&self, env: &Env) -> io::Result<Hello> {
        let log_identity = self.journal.identity(env, &self.config).await?;
        let role = HelloRole::Master { address: self.address.clone(), log_identity };
        Ok(Hello { cluster: self.cluster.get(), role })
    }
}

/// Asks the other master, if there is one, whether it accepts this one: two masters that use different logs must
/// not both begin to serve. `Some` is its refusal.
pub(crate) async fn preflight(introduction: &Introduction, env: &Env) -> Option<String> {
    let asking = async {
        let hello = introduction.hello(env).await.ok()?;
        let credential = secrets::credential(env, introduction.secret.as_ref());
        match dial::ask(env, &introduction.dial, (hello, credential), PREFLIGHT_TIMEOUT).await {
            Err(DialError::Handshake(HandshakeFailure::Rejected { reason })) => Some(reason),
            Err(DialError::Handshake(demanded @ HandshakeFailure::SecretDemanded { .. })) => {
                Some(demanded.to_string())
            }
            Err(DialError::Handshake(_) | DialError::Io(_)) | Ok(()) => None,
        }
    };
    tokio::time::timeout(PREFLIGHT_TIMEOUT, asking).await.ok().flatten()
}

/// Keeps a link to the other master until the node ends. A master that stops needs the link too: it forwards what its
/// clients still ask.
pub(crate) async fn keep(introduction: Introduction, context: Context, fate: Fate) {
    let manner = Manner {
        connect_timeout: CONNECT_TIMEOUT,
        handshake_timeout: context.config.handshake_timeout,
        keepalive: context.config.tcp_keepalive,
        pause_max: BACKOFF_MAX,
        refused_pause_max: BACKOFF_MAX,
    };
    let (env, turns) = (Rc::clone(&context.env), Rc::clone(&context.switchboard.turns));
    let call = context.switchboard.peer_calls.keeper(&introduction.peer);
    dial::keep(LinkToPeer { introduction, context, call }, env, manner, turns, fate).await;
}

/// A link to one of the other masters.
struct LinkToPeer {
    introduction: Introduction,
    context: Context,
    /// Notified when that master has connected to us.
    call: Rc<Notify>,
}

impl Kept for LinkToPeer {
    const TASK: &'static str = "the link to the other master";

    fn master(&self) -> &str {
        &self.introduction.peer
    }

    fn dialed(&self) -> &str {
        &self.introduction.dial
    }

    async fn hello(&self) -> io::Result<Hello> {
        self.introduction.hello(&self.context.env).await
    }

    fn secret(&self) -> Option<&Secret> {
        self.introduction.secret.as_ref()
    }

    async fn serve(&self, stream: &Stream, greeted: Greeted) -> Result<(), DialError> {
        let outbox = Outbox::default();
        let pumping = outbox.pump(stream, self.context.config.write_timeout);
        let reading = self.read(stream, &outbox, greeted);
        tokio::select! {
            biased;
            pumped = pumping => Ok(pumped?),
            read = reading => Ok(read?),
        }
    }

    fn refused(&self, why: &DialError) {
        if let DialError::Handshake(HandshakeFailure::NotProved { .. }) = why {
            // It may be anybody, so that it moves nothing here.
            log::error!("no link to the other master address={} cause={:?}", self.master(), why.to_string());
            return;
        }
        self.context
            .switchboard
            .push(Arrived::DialRefused { address: self.master().to_owned(), reason: why.to_string() });
    }

    fn failed(&self, why: &DialError, is_first: bool) {
        let address = self.master();
        let cause = crate::shown::shown_error(why);
        // INFO shows the loss of a link that was established.
        if is_first {
            log::info!("no link to the other master yet, retrying address={address} cause={cause:?}");
        } else {
            log::debug!("no link to the other master address={address} error={cause}");
        }
    }

    async fn pause(&self, delay: Duration) {
        tokio::select! {
            biased;
            // It has just connected to us, so it is alive.
            () = self.call.notified() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }
}

impl LinkToPeer {
    async fn read(&self, stream: &Stream, outbox: &Outbox, greeted: Greeted) -> io::Result<()> {
        let (context, switchboard) = (&self.context, &*self.context.switchboard);
        let Greeted { welcome, unread: buffer } = greeted;
        let generation = LinkId(switchboard.next_id());
        let _guard = LinkGuard::new(switchboard, generation, Arrived::DialedDown { generation });
        let (address, up) = (self.master().to_owned(), outbox.clone());
        switchboard.push(Arrived::DialedUp { generation, address, welcome, outbox: up });
        let unheard = Rc::<Unheard>::default();
        let arrived = |message, said| match message {
            // Only a Reject that answers our HELLO is about this master. A later one is about a single frame and is
            // temporary.
            Message::Control(Control::Reject { reason }) => Err(LinkError::Io(io::Error::other(reason))),
            message => Ok(Arrived::Dialed { generation, message, said }),
        };
        let refuse = |about, length| match about {
            About::Response(id) => {
                let why = format!("the answer has {length} bytes, more than this master takes (--max-value)");
                // It may tell what a write has changed.
                let message = Message::Response { id, reply: Reply::error(ErrorWord::Unknown, why) };
                switchboard.push(Arrived::Dialed { generation, message, said: unheard.say(0) });
                Ok(())
            }
            About::Request(_) | About::Value(_) => Err(LinkError::Io(io::ErrorKind::InvalidData.into())),
        };
        let (link, unheard) = (generation, &unheard);
        // The requests on their way are bounded where they are forwarded.
        let unsent_max = usize::MAX;
        let reader = LinkReader {
            stream,
            buffer,
            context,
            stranger: None,
            link,
            outbox,
            unheard,
            streams: None,
            unsent_max,
        };
        match reader.frames(request_body_max(context), arrived, refuse).await {
            Ok(()) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(LinkError::Io(error)) => Err(error),
            Err(LinkError::Frame(error)) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            Err(LinkError::Cut) => Err(io::Error::other("too many bytes of unfinished frames")),
        }
    }
}
