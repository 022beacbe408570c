//! The links by which a member says what it has to say: it dials each of the others, and hears nothing over these links.
//!
//! What one has for a member to which no link stands, or more than a link may have waiting, is dropped: Raft takes that as lost. A
//! link that is not acknowledged for a while is given up, so that one that was cut is soon there again.

use super::{MemberLinks, MemberSaid};
use crate::address;
use crate::batch::Outbox;
use crate::dial::{self, DialError, Greeted, Kept, Manner};
use crate::env::{Env, Stream};
use crate::journal::Seat;
use crate::shown::shown_error;
use crate::supervision::Fate;
use crate::turns::TurnLengths;
use bytes::BytesMut;
use dsm_protocol::frame;
use dsm_protocol::ids::ClusterId;
use dsm_protocol::message::{Hello, HelloRole};
use dsm_protocol::secret::Secret;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The same after a refusal.
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A link of which nothing is acknowledged for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// So many bytes may wait for the socket of one link, or a single message.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// What is needed to dial another member.
#[derive(Clone)]
pub(super) struct MemberIntroduction {
    env: Env,
    /// The address at which others reach this node.
    address: String,
    /// How members are dialed, by their names.
    dials: BTreeMap<String, String>,
    secret: Option<Secret>,
    handshake_timeout: Duration,
    write_timeout: Duration,
    keepalive: Duration,
    fate: Fate,
}

impl MemberIntroduction {
    pub(super) fn of(seat: &Seat<'_>) -> Self {
        let Seat { env, config, address, secret, fate, .. } = seat;
        let dials = config.members.iter().map(|dial| (address::name(dial).to_owned(), dial.clone()));
        MemberIntroduction {
            env: Rc::clone(env),
            address: (*address).to_owned(),
            dials: dials.collect(),
            secret: secret.clone(),
            handshake_timeout: config.handshake_timeout,
            write_timeout: config.write_timeout,
            keepalive: config.tcp_keepalive,
            fate: (*fate).clone(),
        }
    }
}

/// What waits for a link; `None` while none stands.
type Waiting = Rc<RefCell<Option<Outbox>>>;

/// A link that is kept.
struct KeptLink {
    waiting: Waiting,
    task: AbortHandle,
}

impl Drop for KeptLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The links of one member to the others. They end with the drop.
pub(super) struct DialedMembers {
    introduction: MemberIntroduction,
    turns: Rc<TurnLengths>,
    /// To whom something may be said.
    reached: BTreeSet<String>,
    links: BTreeMap<String, KeptLink>,
    tasks: JoinSet<()>,
}

impl DialedMembers {
    pub(super) fn new(introduction: MemberIntroduction, turns: Rc<TurnLengths>) -> Self {
        let reached = introduction.dials.keys().cloned().collect();
        DialedMembers { introduction, turns, reached, links: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Begins to dial a member.
    fn dial(&mut self, member: &str) -> Waiting {
        let MemberIntroduction { env, dials, handshake_timeout, keepalive, fate, .. } = &self.introduction;
        let waiting = Waiting::default();
        let link = LinkToMember {
            dial: dials.get(member).cloned().unwrap_or_else(|| member.to_owned()),
            member: member.to_owned(),
            introduction: self.introduction.clone(),
            waiting: Rc::clone(&waiting),
        };
        let manner = Manner {
            connect_timeout: CONNECT_TIMEOUT,
            handshake_timeout: *handshake_timeout,
            keepalive: *keepalive,
            pause_max: PAUSE_MAX,
            refused_pause_max: REFUSED_PAUSE_MAX,
        };
        let keeping = dial::keep(link, Rc::clone(env), manner, Rc::clone(&self.turns), fate.clone());
        // Those that have ended are not kept for ever.
        while self.tasks.try_join_next().is_some() {}
        let task = self.tasks.spawn_local(keeping);
        let link = KeptLink { waiting: Rc::clone(&waiting), task };
        self.links.insert(member.to_owned(), link);
        waiting
    }
}

impl MemberLinks for DialedMembers {
    fn send(&mut self, to: &str, said: MemberSaid) {
        let waiting = match self.links.get(to) {
            Some(link) => Rc::clone(&link.waiting),
            None if !self.reached.contains(to) => return,
            None => self.dial(to),
        };
        let waiting = waiting.borrow();
        let Some(outbox) = &*waiting else { return };
        let MemberSaid { from, body, .. } = said;
        let length = outbox.len();
        if length > 0 && length + body.len() > WAITING_BYTES_MAX {
            log::debug!("what is said to a member is dropped, its link is full member={to} waiting={length}");
            return;
        }
        let (cluster, member) = from.map_or((ClusterId(0), 0), |(cluster, member)| (cluster, member.get()));
        outbox.append_pieces(|out| frame::encode_member(cluster, member, &body, out));
    }

    fn reach(&mut self, masters: BTreeSet<String>) {
        self.links.retain(|address, _| masters.contains(address));
        self.reached = masters;
    }
}

/// The link to one of the other members.
struct LinkToMember {
    member: String,
    /// The same, with what the settings say of how it is reached.
    dial: String,
    introduction: MemberIntroduction,
    waiting: Waiting,
}

impl LinkToMember {
    /// Whether the settings name it.
    fn is_named(&self) -> bool {
        self.introduction.dials.contains_key(&self.member)
    }
}

/// Lets nothing wait any more.
struct Standing<'a>(&'a Waiting);

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        *self.0.borrow_mut() = None;
    }
}

impl Kept for LinkToMember {
    const TASK: &'static str = "the link to another member";

    fn master(&self) -> &str {
        &self.member
    }

    fn dialed(&self) -> &str {
        &self.dial
    }

    async fn hello(&self) -> io::Result<Hello> {
        let role = HelloRole::Member { address: self.introduction.address.clone() };
        Ok(Hello { cluster: None, role })
    }

    fn secret(&self) -> Option<&Secret> {
        self.introduction.secret.as_ref()
    }

    async fn serve(&self, stream: &Stream, _: Greeted) -> Result<(), DialError> {
        stream.give_up_after(SILENCE_MAX);
        let outbox = Outbox::default();
        *self.waiting.borrow_mut() = Some(outbox.clone());
        let _standing = Standing(&self.waiting);
        log::debug!("link to a member stands member={}", self.member);
        let mut said = BytesMut::new();
        tokio::select! {
            biased;
            pumped = outbox.pump(stream, self.introduction.write_timeout) => Ok(pumped?),
            // The other side says nothing but the end.
            read = stream.read(&mut said) => match read? {
                0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                _ => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            },
        }
    }

    fn refused(&self, why: &DialError) {
        // Whom the settings do not name may be anybody.
        let level = if self.is_named() { log::Level::Error } else { log::Level::Debug };
        log::log!(level, "no link to a member address={} cause={:?}", self.member, why.to_string());
    }

    fn failed(&self, why: &DialError, is_first: bool) {
        let cause = shown_error(why);
        if is_first && self.is_named() {
            log::info!("no link to a member yet, retrying address={} cause={cause:?}", self.member);
        } else {
            log::debug!("no link to a member address={} error={cause}", self.member);
        }
    }
}
