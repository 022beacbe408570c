//! Dialing: the one place that connects to a master, greets it, and keeps the link.
//!
//! Owns the connect, this side of the handshake, whose rules are `dsm_protocol::handshake`'s, and the pauses between attempts.
//! What a link is for, and what travels over it, is its owner's. A name with several addresses is looked up and tried by
//! `env/net/names.rs`, behind [`Environment::connect`](crate::env::Environment::connect). Where there is
//! TLS, its handshake comes with the first bytes of the greeting, within the same time.

use crate::env::{Env, OsStream, Stream};
use crate::secrets::{self, Credential};
use crate::supervision::{Backoff, Fate, TaskGuard};
use crate::turns::TurnLengths;
use bytes::BytesMut;
use dsm_protocol::frame;
use dsm_protocol::handshake::{DialEffect, DialEvent, Dialing, HandshakeFailure};
use dsm_protocol::ids::{ClusterId, Millis};
use dsm_protocol::message::{Hello, Message, Welcome};
use dsm_protocol::secret::{Channel, Prover, Secret};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;
use tokio::time::Instant;

/// Room for what a master answers, in bytes.
const ANSWER_BYTES: usize = 16 * 1024;

/// Why there is no link.
#[derive(Debug, Error)]
pub(crate) enum DialError {
    /// What the system says.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What became of the handshake.
    #[error(transparent)]
    Handshake(#[from] HandshakeFailure),
}

impl DialError {
    /// Whether one of both sides does not want the other: to ask again at once is of no use.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            DialError::Handshake(
                HandshakeFailure::Rejected { .. }
                | HandshakeFailure::OtherCluster { .. }
                | HandshakeFailure::SecretDemanded { .. }
                | HandshakeFailure::NotProved { .. },
            ) => true,
            DialError::Handshake(
                HandshakeFailure::Frame(_)
                | HandshakeFailure::NoWelcome
                | HandshakeFailure::Ended
                | HandshakeFailure::TimedOut,
            )
            | DialError::Io(_) => false,
        }
    }

    /// What counts as the same refusal as before. Whoever has not proved the secret has no new one for each of his words.
    fn complaint(&self) -> String {
        match self {
            DialError::Handshake(HandshakeFailure::NotProved { flag, .. }) => (*flag).to_owned(),
            DialError::Handshake(_) | DialError::Io(_) => self.to_string(),
        }
    }
}

/// A socket over which a master can be greeted: a node's, or a client's, which may be anywhere.
pub(crate) trait Socket {
    /// Writes all of `bytes`.
    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Reads what is there; 0 at the end of the stream.
    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize>;

    /// What this connection is known by at both its ends.
    fn channel(&self) -> io::Result<Channel>;
}

impl Socket for Stream {
    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Stream::write_all(self, bytes).await
    }

    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        Stream::read(self, buffer).await
    }

    fn channel(&self) -> io::Result<Channel> {
        Stream::channel(self, Prover::Dialing)
    }
}

impl Socket for OsStream {
    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        OsStream::write_all(self, bytes).await
    }

    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        OsStream::read_at_most(self, buffer, usize::MAX).await
    }

    fn channel(&self) -> io::Result<Channel> {
        OsStream::channel(self, Prover::Dialing)
    }
}

/// How a master has answered.
pub(crate) struct Greeted {
    pub(crate) welcome: Welcome,
    /// What it has said after that.
    pub(crate) unread: BytesMut,
}

/// Greets a master over a connection that stands, which has `limit` to answer. If `cluster` names one when it does, it must be
/// of that. With a `credential` both sides prove that secret.
///
/// # Errors
/// What the socket says, and what became of the handshake.
pub(crate) async fn greet(
    socket: &mut impl Socket,
    (hello, credential): (Hello, Option<Credential>),
    limit: Duration,
    cluster: impl Fn() -> Option<ClusterId>,
) -> Result<Greeted, DialError> {
    let begun = Instant::now();
    let now = || Millis(to_millis(begun.elapsed()));
    let mut greeting = Vec::new();
    let mut dialing = Dialing::begin(now(), to_millis(limit), hello, &mut greeting);
    let proves = credential.is_some();
    if let Some(Credential { secret, nonce }) = credential {
        dialing = dialing.with_secret(secret, nonce);
    }
    match tokio::time::timeout(limit, socket.write_all(&greeting)).await {
        Ok(written) => written?,
        Err(_) => return Err(HandshakeFailure::TimedOut.into()),
    }
    let mut unread = BytesMut::new();
    let mut effects = Vec::new();
    loop {
        unread.reserve(ANSWER_BYTES);
        let left = Duration::from_millis(dialing.deadline().since(now()));
        let event = match tokio::time::timeout(left, socket.read(&mut unread)).await {
            Ok(Ok(0)) => DialEvent::Ended,
            Ok(Ok(_)) => {
                if proves {
                    dialing.step(now(), DialEvent::Through(socket.channel()?), &mut effects);
                }
                DialEvent::Bytes { unread: &mut unread, cluster: cluster() }
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => DialEvent::Tick,
        };
        dialing.step(now(), event, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                DialEffect::Welcomed(welcome) => return Ok(Greeted { welcome, unread }),
                DialEffect::GiveUp(why) => return Err(why.into()),
                DialEffect::Say(control) => {
                    let mut said = Vec::new();
                    frame::encode(&Message::Control(control), &mut said);
                    let left = Duration::from_millis(dialing.deadline().since(now()));
                    match tokio::time::timeout(left, socket.write_all(&said)).await {
                        Ok(written) => written?,
                        Err(_) => return Err(HandshakeFailure::TimedOut.into()),
                    }
                }
            }
        }
    }
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How a link is dialed.
pub(crate) struct Manner {
    /// How long a connect may take.
    pub(crate) connect_timeout: Duration,
    /// How long a master may take over the handshake.
    pub(crate) handshake_timeout: Duration,
    /// After how much silence the system asks whether the other side is there.
    pub(crate) keepalive: Duration,
    /// The longest pause between two attempts.
    pub(crate) pause_max: Duration,
    /// The same after a refusal.
    pub(crate) refused_pause_max: Duration,
}

/// What a link to a master is for.
pub(crate) trait Kept {
    /// What its task is called when it panics.
    const TASK: &'static str;

    /// The address of the master that the link leads to.
    fn master(&self) -> &str;

    /// The same, with what the settings say of how it is reached.
    fn dialed(&self) -> &str {
        self.master()
    }

    /// What this side says of itself.
    ///
    /// # Errors
    /// What the system says when it cannot be told.
    async fn hello(&self) -> io::Result<Hello>;

    /// The secret that both sides must prove, if there is one.
    fn secret(&self) -> Option<&Secret> {
        None
    }

    /// The cluster that a master must be of, if it is of one.
    fn cluster(&self) -> Option<ClusterId> {
        None
    }

    /// Serves a link from its welcome to its end.
    ///
    /// # Errors
    /// How it ended.
    async fn serve(&self, stream: &Stream, greeted: Greeted) -> Result<(), DialError>;

    /// Hears that one of both sides does not want the other: once for each reason, of which not to have proved the secret is
    /// one, whatever is said instead; until there was a link that ended otherwise.
    fn refused(&self, why: &DialError);

    /// Hears that there is no link; `is_first`: for the first time, and there was none before. A wrong address, perhaps.
    fn failed(&self, why: &DialError, is_first: bool);

    /// Waits so long, or until there is a reason to try earlier.
    async fn pause(&self, delay: Duration) {
        tokio::time::sleep(delay).await;
    }
}

/// Keeps a link until the node ends.
pub(crate) async fn keep<K: Kept>(kept: K, env: Env, manner: Manner, turns: Rc<TurnLengths>, fate: Fate) {
    let _guard = TaskGuard::new(K::TASK, fate.clone());
    let mut backoff = Backoff::up_to(manner.pause_max);
    // A refusal may come after the welcome, which is no reason to ask again at once.
    let mut refused = Backoff::up_to(manner.refused_pause_max);
    let mut complaint = None;
    let mut told = false;
    let mut has_been_up = false;
    while !fate.is_decided() {
        let (mut is_refused, mut is_up) = (false, false);
        let ended = link(&kept, &env, &manner, &turns, || {
            backoff.reset();
            is_up = true;
        });
        let ended = ended.await;
        has_been_up |= is_up;
        match ended {
            Ok(()) => complaint = None,
            Err(why) if why.is_refusal() => {
                is_refused = true;
                let said = why.complaint();
                if complaint.as_ref() != Some(&said) {
                    kept.refused(&why);
                    complaint = Some(said);
                }
            }
            Err(why) => {
                if is_up {
                    complaint = None;
                }
                kept.failed(&why, !has_been_up && !std::mem::replace(&mut told, true));
            }
        }
        if fate.is_decided() {
            return;
        }
        if !is_refused {
            refused.reset();
        }
        let delay = if is_refused { &mut refused } else { &mut backoff }.next(&env);
        kept.pause(delay).await;
    }
}

/// One life of a link, of which `up` hears when it stands.
async fn link(
    kept: &impl Kept,
    env: &Env,
    manner: &Manner,
    turns: &Rc<TurnLengths>,
    up: impl FnOnce(),
) -> Result<(), DialError> {
    let connecting = tokio::time::timeout(manner.connect_timeout, env.connect(kept.dialed()));
    let mut stream = connecting.await.map_err(io::Error::from)??;
    stream.keep_alive(manner.keepalive);
    let hello = kept.hello().await?;
    let introduction = (hello, secrets::credential(env, kept.secret()));
    let linked = async {
        let greeted = greet(&mut stream, introduction, manner.handshake_timeout, || kept.cluster()).await?;
        up();
        kept.serve(&stream, greeted).await
    };
    Rc::clone(turns).watch(&Cell::new("master link"), linked).await
}

/// Asks the master at `address` what it says to a HELLO, and leaves it again. It has `limit` to answer.
///
/// # Errors
/// What the socket says, and what became of the handshake.
pub(crate) async fn ask(
    env: &Env,
    address: &str,
    introduction: (Hello, Option<Credential>),
    limit: Duration,
) -> Result<(), DialError> {
    let mut stream = env.connect(address).await?;
    greet(&mut stream, introduction, limit, || None).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::real::RealEnv;
    use crate::env::Listener;
    use dsm_protocol::ids::{Epoch, Seq};
    use dsm_protocol::message::{Control, HelloRole, MasterState};
    use std::cell::RefCell;

    /// How long the world may take over what it does at once.
    const LIMIT: Duration = Duration::from_secs(10);

    fn client() -> Hello {
        Hello { cluster: None, role: HelloRole::Client }
    }

    fn framed(messages: &[Message]) -> Vec<u8> {
        let mut out = Vec::new();
        messages.iter().for_each(|message| frame::encode(message, &mut out));
        out
    }

    fn welcome() -> Message {
        let state = MasterState { active: true, epoch: Epoch(1), seq: Seq(2), active_address: None };
        let cluster = Some(ClusterId(7));
        Message::Control(Control::Welcome(Welcome { cluster, value_max: 1 << 24, state }))
    }

    fn rejected(reason: &str) -> Message {
        Message::Control(Control::Reject { reason: reason.to_owned() })
    }

    /// A connection, and the other end of it.
    async fn pair(env: &Env) -> (Stream, Stream) {
        let listener = env.listen("127.0.0.1:0").await.unwrap();
        let near = env.connect(&listener.local_address().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[actix::test]
    async fn bytes_after_the_welcome_of_a_master_belong_to_the_link() {
        let env: Env = RealEnv::new();
        let (mut near, far) = pair(&env).await;
        let said = framed(&[welcome(), Message::Ping]);
        // In pieces, of which the first ones are no whole frame.
        let telling = async {
            for piece in said.chunks(7) {
                far.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut heard = BytesMut::new();
            far.read(&mut heard).await.unwrap();
            heard
        };
        let (greeted, heard) = tokio::join!(greet(&mut near, (client(), None), LIMIT, || None), telling);
        let Greeted { welcome, mut unread } = greeted.unwrap();
        assert_eq!(welcome.cluster, Some(ClusterId(7)));
        while unread.len() < framed(&[Message::Ping]).len() {
            assert!(near.read(&mut unread).await.unwrap() > 0);
        }
        assert_eq!(unread, framed(&[Message::Ping]));
        let mut greeting = Vec::new();
        dsm_protocol::handshake::greet(client(), &mut greeting);
        assert_eq!(heard, greeting);
    }

    #[actix::test]
    async fn a_master_that_says_nothing_or_ends_is_given_up() {
        let env: Env = RealEnv::new();
        let (mut near, far) = pair(&env).await;
        let silent = greet(&mut near, (client(), None), Duration::from_millis(20), || None).await;
        assert!(
            matches!(silent, Err(DialError::Handshake(HandshakeFailure::TimedOut))),
            "{:?}",
            silent.err()
        );
        // Its first word comes in time and the rest does not.
        far.write_all(&framed(&[welcome()])[..5]).await.unwrap();
        let slow = greet(&mut near, (client(), None), Duration::from_millis(20), || None).await;
        assert!(matches!(slow, Err(DialError::Handshake(HandshakeFailure::TimedOut))), "{:?}", slow.err());
        far.shut_down_write();
        let ended = greet(&mut near, (client(), None), LIMIT, || None).await;
        assert!(matches!(ended, Err(DialError::Handshake(HandshakeFailure::Ended))), "{:?}", ended.err());
    }

    /// What has become of a link that is kept.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum News {
        Served,
        Refused(String),
        Failed { is_first: bool },
    }

    /// A link whose owner notes what becomes of it, and that ends at once.
    struct Noted {
        address: String,
        news: Rc<RefCell<Vec<News>>>,
    }

    impl Kept for Noted {
        const TASK: &'static str = "a link";

        fn master(&self) -> &str {
            &self.address
        }

        async fn hello(&self) -> io::Result<Hello> {
            Ok(client())
        }

        async fn serve(&self, _: &Stream, _: Greeted) -> Result<(), DialError> {
            self.news.borrow_mut().push(News::Served);
            // As the links of masters and slaves do: their other end is not expected to leave.
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }

        fn refused(&self, why: &DialError) {
            self.news.borrow_mut().push(News::Refused(why.to_string()));
        }

        fn failed(&self, _: &DialError, is_first: bool) {
            self.news.borrow_mut().push(News::Failed { is_first });
        }

        async fn pause(&self, _: Duration) {}
    }

    /// Answers the next connection with `said`, and ends it.
    async fn answer(listener: &Listener, said: &[u8]) {
        let (stream, _) = listener.accept().await.unwrap();
        stream.write_all(said).await.unwrap();
        stream.shut_down_write();
        let mut heard = BytesMut::new();
        while stream.read(&mut heard).await.is_ok_and(|read| read > 0) {}
    }

    #[actix::test]
    async fn a_link_is_dialed_again_and_again_and_each_refusal_is_logged_once() {
        let env: Env = RealEnv::new();
        let listener = env.listen("127.0.0.1:0").await.unwrap();
        let (news, fate) = (Rc::<RefCell<Vec<News>>>::default(), Fate::default());
        let kept = Noted { address: listener.local_address().unwrap(), news: Rc::clone(&news) };
        let manner = Manner {
            connect_timeout: LIMIT,
            handshake_timeout: LIMIT,
            keepalive: Duration::ZERO,
            pause_max: Duration::ZERO,
            refused_pause_max: Duration::ZERO,
        };
        let turns = TurnLengths::new(Rc::clone(&env));
        let keeping = actix::spawn(keep(kept, Rc::clone(&env), manner, turns, fate.clone()));
        let full = framed(&[rejected("it is full")]);
        let other = framed(&[rejected("it is another one's")]);
        let welcome = framed(&[welcome()]);
        let nonsense = framed(&[Message::Ping]);
        for said in [&[][..], &nonsense, &full, &full, &other, &other, &welcome, &other, &[]] {
            answer(&listener, said).await;
        }
        let refused = |why: &str| News::Refused(why.to_owned());
        let wanted = [
            News::Failed { is_first: true },
            News::Failed { is_first: false },
            refused("it is full"),
            refused("it is another one's"),
            News::Served,
            News::Failed { is_first: false },
            refused("it is another one's"),
            News::Failed { is_first: false },
        ];
        let told = async {
            while news.borrow().len() < wanted.len() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, told).await.unwrap();
        assert_eq!(news.borrow()[..wanted.len()], wanted);
        fate.decide(Ok(()));
        drop(listener);
        tokio::time::timeout(LIMIT, keeping).await.unwrap().unwrap();
    }
}
