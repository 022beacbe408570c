//! The door of a master: connections, their protocols, the limits, and the sessions of clients.
//!
//! Owns the sockets, their tasks and the counters. A connection's task ends with its connection, and a panic in it ends only
//! that connection: a guard's drop frees its place in the master's tables. Nothing here executes a request, and nothing here
//! imports the master.
//!
//! | file | is |
//! |---|---|
//! | `accounts` | the users, read from their files |
//! | `accept` | the listening socket |
//! | `connection` | the life of one connection, of whatever kind |
//! | `kept_out` | whom protected mode keeps out, and who has to show first who he is |
//! | `members` | the links over which other members of a log on several machines say what belongs to that |
//! | `meet` | the handshake; its rules are in `dsm_protocol::handshake` |
//! | `native`, `resp` | a client's requests: in frames, and in Redis' protocol |
//! | `links`, `dialed` | the links that slaves and the other master have opened; the links that this master dials |
//! | `sentinel` | who asks a master's Sentinel which one serves |
//! | `client_standing` | the time that a client has to say who it is |
//! | `admission` | the limits, and the permits of what is admitted |
//! | `counters` | counters for INFO |
//! | `heard` | the messages of a link that wait for the master |
//! | `origin` | where a session's requests come from |
//! | `session`, `session_guard` | the order of a client's answers and the room for them; a connection's hold on its session |
//! | `streams` | for whom the sessions of another master ask, and whether he may |
//! | `embedded` | requests of the program that embeds a master, without a socket |
//! | `switchboard` | what all connections share, and their way to the master |

pub(crate) mod accept;
pub(crate) mod accounts;
pub(crate) mod admission;
mod client_standing;
mod connection;
pub(crate) mod counters;
pub(crate) mod dialed;
pub(crate) mod embedded;
pub(crate) mod heard;
mod kept_out;
pub(crate) mod links;
mod meet;
mod members;
mod native;
pub(crate) mod origin;
#[cfg(test)]
mod permits_come_back;
mod resp;
mod sentinel;
pub(crate) mod session;
mod session_guard;
mod streams;
pub(crate) mod switchboard;
#[cfg(test)]
mod test_kit;

use crate::batch::Outbox;
use crate::config::MasterConfig;
use crate::env::{Env, Stream};
use crate::journal::JournalKind;
use crate::secrets::SharedSecrets;
use admission::ConnectionPermit;
use dsm_protocol::ids::SessionId;
use dsm_protocol::resp::sentinel::SentinelFacts;
use dsm_protocol::resp::{Limits, ServerFacts};
use session::Session;
use std::collections::HashMap;
use std::rc::Rc;
use switchboard::Switchboard;

/// What a connection's task needs.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) env: Env,
    pub(crate) config: Rc<MasterConfig>,
    pub(crate) facts: ServerFacts,
    /// What the master's log is made of.
    pub(crate) journal: JournalKind,
    /// What must be proved to it.
    pub(crate) secrets: SharedSecrets,
    pub(crate) switchboard: Rc<Switchboard>,
    /// At the port of a Sentinel: what that is. Elsewhere nothing.
    pub(crate) sentinel: Option<Rc<SentinelFacts>>,
}

/// A client's connection, and by what it holds its place.
#[derive(Clone, Copy)]
struct Visitor<'a> {
    stream: &'a Stream,
    outbox: &'a Outbox,
    context: &'a Context,
    address: &'a str,
    permit: &'a ConnectionPermit,
}

impl Context {
    /// The same at the port of the master's Sentinel.
    pub(crate) fn at_sentinel(&self) -> Context {
        let (config, env) = (&self.config, &self.env);
        let mut id = format!("{:016x}{:016x}{:016x}", env.random(), env.random(), env.random());
        id.truncate(40);
        let facts = SentinelFacts {
            name: config.sentinel_name.clone(),
            id,
            others: config.sentinel_peers.clone(),
            down_after_ms: config.failover_timeout.as_millis() as u64,
        };
        Context { sentinel: Some(Rc::new(facts)), ..self.clone() }
    }
}

/// Whether the other side of a connection whose first bytes are read may come in as it is. If not, it is counted.
pub(crate) fn lets_in(stream: &Stream, address: &str, context: &Context) -> bool {
    kept_out::lets_in(stream, address, context)
}

/// What Redis clients may ask about the server.
pub(crate) fn server_facts(config: &MasterConfig) -> ServerFacts {
    ServerFacts {
        limits: Limits::for_values(config.value_max()),
        clients_max: config.max_connections,
        idle_timeout: config.idle_timeout,
        fsync: match config.fsync {
            crate::config::Fsync::Always => "always",
            crate::config::Fsync::Everysec => "everysec",
            crate::config::Fsync::Never => "no",
        },
    }
}

/// Open sessions by number.
pub(crate) type Sessions = HashMap<SessionId, Rc<Session>, foldhash::fast::FixedState>;
