//! What a master says to those who ask it as a Sentinel: who serves. The conversation on one connection of that port.
//!
//! Owns the commands of that port, their answers and subscriptions, never the socket. How it is found out who serves is not its
//! concern: a [`ServingView`] says so. Nothing is watched here, voted on or set: the masters see to that, whoever asks.
//!
//! ```text
//! SENTINEL GET-MASTER-ADDR-BY-NAME dsm     *2 $9 127.0.0.1 $5 12345
//! SUBSCRIBE +switch-master                 later: +switch-master "dsm 127.0.0.1 12345 127.0.0.1 12346"
//! ```
//!
//! Wording and shapes are those of redis-server 7.0 as a Sentinel, and of
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.

mod answers;
mod subscriptions;
#[cfg(test)]
mod tests;

pub use subscriptions::{CHANNEL_BYTES_MAX, SUBSCRIPTIONS_MAX};

use super::encode::{array, bulk, error, error_parts, map, status, unsigned};
use super::{command, Args, Conversation, Handling, Limits, Protocol};
use crate::serving_view::{host_and_port, ServingView, SharedView};
use bytes::Bytes;
use std::rc::Rc;
use subscriptions::{SubscriptionKind, Subscriptions};

/// The name of the master that `--sentinel-name` has by default.
pub const SENTINEL_NAME_DEFAULT: &str = "dsm";

/// Where a takeover is told.
const SWITCH_MASTER: &str = "+switch-master";

const NO_SUCH_MASTER: &str = "ERR No such master with that name";
const NO_AUTH: &str = "NOAUTH Authentication required.";

/// What is fixed about a Sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelFacts {
    /// What clients call the master.
    pub name: String,
    /// What this Sentinel calls itself: 40 hexadecimal digits.
    pub id: String,
    /// The Sentinels of the other masters, as clients reach them.
    pub others: Vec<String>,
    /// After how long a master that makes no progress is given up, in milliseconds.
    pub down_after_ms: u64,
}

/// What one of these connections may ask for.
pub fn sentinel_limits() -> Limits {
    Limits {
        value_max: 1024,
        key_max: 1024,
        args_max: 128,
        request_bytes_max: 16 * 1024,
        inline_max: 4 * 1024,
    }
}

/// What is done for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// What every connection answers by itself.
    AsEverywhere,
    Ping,
    Role,
    Info,
    /// The second word says what.
    Sentinel,
    About,
    Add(SubscriptionKind),
    Remove(SubscriptionKind),
}

/// A command of this port.
struct Known {
    name: &'static str,
    /// As Redis has it: how many words a request has, at least that many if negative.
    arity: i32,
    does: Does,
    /// Whether it may come before it is known who asks.
    is_free: bool,
    /// Whether RESP2 has it while there are subscriptions.
    in_subscription: bool,
}

const fn known(name: &'static str, arity: i32, does: Does) -> Known {
    Known { name, arity, does, is_free: false, in_subscription: false }
}

const KNOWN: [Known; 14] = [
    Known { is_free: true, ..known("auth", -2, Does::AsEverywhere) },
    known("client", -2, Does::AsEverywhere),
    known("command", -1, Does::About),
    Known { is_free: true, ..known("hello", -1, Does::AsEverywhere) },
    known("info", -1, Does::Info),
    Known { in_subscription: true, ..known("ping", -1, Does::Ping) },
    Known { in_subscription: true, ..known("psubscribe", -2, Does::Add(SubscriptionKind::Pattern)) },
    Known { in_subscription: true, ..known("punsubscribe", -1, Does::Remove(SubscriptionKind::Pattern)) },
    Known { is_free: true, in_subscription: true, ..known("quit", -1, Does::AsEverywhere) },
    Known { is_free: true, in_subscription: true, ..known("reset", 1, Does::AsEverywhere) },
    known("role", 1, Does::Role),
    known("sentinel", -2, Does::Sentinel),
    Known { in_subscription: true, ..known("subscribe", -2, Does::Add(SubscriptionKind::Channel)) },
    Known { in_subscription: true, ..known("unsubscribe", -1, Does::Remove(SubscriptionKind::Channel)) },
];

/// The state of one connection.
#[derive(Clone, Debug)]
pub struct SentinelTalk {
    facts: Rc<SentinelFacts>,
    /// Who it is, its names and its version of the protocol.
    conversation: Conversation,
    view: SharedView,
    subscriptions: Subscriptions,
    /// The master of which this connection was told last, or that served when it began.
    told: Option<String>,
}

impl SentinelTalk {
    /// A new connection, that is otherwise like this one to the port of clients.
    pub fn new(facts: Rc<SentinelFacts>, conversation: Conversation, view: SharedView) -> Self {
        let told = view.now().master.clone();
        let conversation = conversation.of_sentinel();
        SentinelTalk { facts, conversation, view, subscriptions: Subscriptions::default(), told }
    }

    /// What it has in common with connections of the port of clients.
    pub fn conversation(&mut self) -> &mut Conversation {
        &mut self.conversation
    }

    /// Whether it waits to be told something.
    pub fn is_subscribed(&self) -> bool {
        self.subscriptions.is_any()
    }

    /// Appends what there is to be told unasked: that another master serves than the one that this connection was told of. Of
    /// several takeovers since, that is the last.
    pub fn look(&mut self, out: &mut Vec<u8>) {
        let view = self.view.now();
        let Some(master) = view.master.as_ref().filter(|_| view.is_served) else { return };
        if self.told.as_ref() == Some(master) {
            return;
        }
        let Some(last) = self.told.replace(master.clone()) else { return };
        let ((old_host, old_port), (host, port)) = (host_and_port(&last), host_and_port(master));
        let message = format!("{} {old_host} {old_port} {host} {port}", self.facts.name);
        self.subscriptions.publish(self.conversation.protocol(), SWITCH_MASTER, &message, out);
    }

    /// Takes one request as [`Parser`](super::Parser) gives it; the answer is appended to `out`.
    ///
    /// # Panics
    /// When `args` is empty: the parser never gives that.
    pub fn handle(&mut self, args: Args, out: &mut Vec<u8>) -> Handling {
        assert!(!args.is_empty(), "a request has a name");
        let Some(known) = KNOWN.iter().find(|known| args[0].eq_ignore_ascii_case(known.name.as_bytes()))
        else {
            if ["post", "host:"].iter().any(|name| args[0].eq_ignore_ascii_case(name.as_bytes())) {
                // A browser that was tricked into sending to this port.
                return Handling::Close;
            }
            command::unknown_command(&args, out);
            return Handling::Answered;
        };
        if !fits(known.arity, args.len()) {
            command::wrong_arity(known.name, out);
        } else if !known.is_free && !self.conversation.is_known() {
            error(out, NO_AUTH);
        } else if self.conversation.protocol() == Protocol::Resp2
            && self.is_subscribed()
            && !known.in_subscription
        {
            let name = known.name;
            error(
                out,
                &format!(
                    "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are \
                     allowed in this context"
                ),
            );
        } else {
            return self.answer(known, args, out);
        }
        Handling::Answered
    }

    fn answer(&mut self, known: &Known, args: Args, out: &mut Vec<u8>) -> Handling {
        let protocol = self.conversation.protocol();
        match known.does {
            Does::AsEverywhere => {
                if known.name == "reset" {
                    self.subscriptions.clear();
                }
                self.note_subscriptions();
                return self.conversation.handle(args, out);
            }
            Does::Ping => self.ping(&args[1..], out),
            Does::Role => {
                array(out, 2);
                bulk(out, b"sentinel");
                array(out, 1);
                bulk(out, self.facts.name.as_bytes());
            }
            Does::Info => answers::info(protocol, &self.facts, &self.view.now(), &args[1..], out),
            Does::Sentinel => self.sentinel(&args[1..], out),
            Does::About => about(protocol, &args[1..], out),
            Does::Add(kind) => self.subscriptions.add(protocol, kind, &args[1..], out),
            Does::Remove(kind) => self.subscriptions.remove(protocol, kind, &args[1..], out),
        }
        Handling::Answered
    }

    fn note_subscriptions(&mut self) {
        let (channels, patterns) = self.subscriptions.counts();
        self.conversation.set_subscriptions(channels, patterns);
    }

    /// `PING [message]`; with subscriptions in RESP2 the answer looks like something that is published.
    fn ping(&self, args: &[Bytes], out: &mut Vec<u8>) {
        let is_pushed = self.conversation.protocol() == Protocol::Resp2 && self.is_subscribed();
        match args {
            [] | [_] if is_pushed => {
                array(out, 2);
                bulk(out, b"pong");
                bulk(out, args.first().map_or(b"", |message| message));
            }
            [] => status(out, "PONG"),
            [message] => bulk(out, message),
            _ => command::wrong_arity("ping", out),
        }
    }

    /// `SENTINEL subcommand [name]`.
    fn sentinel(&self, args: &[Bytes], out: &mut Vec<u8>) {
        let (protocol, facts, view) = (self.conversation.protocol(), &*self.facts, &*self.view.now());
        let Some(asked) = Asked::find(&args[0]) else {
            let word = command::printable(&args[0], 128);
            return error_parts(out, &[b"ERR unknown subcommand '", word, b"'. Try SENTINEL HELP."]);
        };
        let is_named = match (asked.is_about_master(), args) {
            (true, [_, name]) => name == facts.name.as_bytes(),
            (false, [_]) => true,
            _ => return command::wrong_arity(&format!("sentinel|{}", asked.word()), out),
        };
        match asked {
            Asked::Address if !is_named => answers::address(protocol, None, out),
            _ if !is_named => error(out, NO_SUCH_MASTER),
            Asked::Address => answers::address(protocol, view.master.as_deref(), out),
            Asked::Quorum => answers::quorum(facts, view, out),
            Asked::Failover => {
                error(out, "ERR a Sentinel of dsm moves nothing: send FAILOVER to a master");
            }
            Asked::Help => answers::help(out),
            Asked::Master => answers::master(protocol, facts, view, out),
            Asked::Masters => {
                array(out, 1);
                answers::master(protocol, facts, view, out);
            }
            Asked::MyId => bulk(out, facts.id.as_bytes()),
            Asked::Replicas | Asked::Slaves => answers::replicas(protocol, view, out),
            Asked::Sentinels => answers::sentinels(protocol, facts, out),
        }
    }
}

/// Subcommands of `SENTINEL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Address,
    Failover,
    Help,
    Master,
    Masters,
    MyId,
    Quorum,
    Replicas,
    Sentinels,
    Slaves,
}

impl Asked {
    const ALL: [Asked; 10] = [
        Asked::Address,
        Asked::Failover,
        Asked::Help,
        Asked::Master,
        Asked::Masters,
        Asked::MyId,
        Asked::Quorum,
        Asked::Replicas,
        Asked::Sentinels,
        Asked::Slaves,
    ];

    fn find(word: &[u8]) -> Option<Asked> {
        Asked::ALL.into_iter().find(|asked| word.eq_ignore_ascii_case(asked.word().as_bytes()))
    }

    fn word(self) -> &'static str {
        match self {
            Asked::Address => "get-master-addr-by-name",
            Asked::Failover => "failover",
            Asked::Help => "help",
            Asked::Master => "master",
            Asked::Masters => "masters",
            Asked::MyId => "myid",
            Asked::Quorum => "ckquorum",
            Asked::Replicas => "replicas",
            Asked::Sentinels => "sentinels",
            Asked::Slaves => "slaves",
        }
    }

    /// Whether a master's name follows.
    fn is_about_master(self) -> bool {
        match self {
            Asked::Address
            | Asked::Failover
            | Asked::Master
            | Asked::Quorum
            | Asked::Replicas
            | Asked::Sentinels
            | Asked::Slaves => true,
            Asked::Help | Asked::Masters | Asked::MyId => false,
        }
    }
}

/// Whether a request may have so many words.
fn fits(arity: i32, words: usize) -> bool {
    let least = arity.unsigned_abs() as usize;
    words == least || (words > least && arity < 0)
}

/// `COMMAND` and its subcommands: only which commands there are. The rest stands in the documentation.
fn about(protocol: Protocol, args: &[Bytes], out: &mut Vec<u8>) {
    let is = |word: &str| args.first().is_some_and(|asked| asked.eq_ignore_ascii_case(word.as_bytes()));
    if is("count") && args.len() == 1 {
        unsigned(out, KNOWN.len() as u64);
    } else if is("list") && args.len() == 1 {
        array(out, KNOWN.len());
        KNOWN.iter().for_each(|known| bulk(out, known.name.as_bytes()));
    } else if is("docs") {
        map(protocol, out, 0);
    } else if args.is_empty() {
        array(out, 0);
    } else {
        error(out, "ERR this is a Sentinel of dsm: of COMMAND it knows COUNT, DOCS and LIST");
    }
}

/// Whether a text may be the name of a master: it stands between spaces in what is published.
pub fn is_master_name(name: &str) -> bool {
    (1..=CHANNEL_BYTES_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether nobody is known to serve.
fn is_down(view: &ServingView) -> bool {
    !view.is_served
}
