//! The conversation on one connection: requests that concern only the connection are answered here, all others become a
//! [`Command`]. Owns the connection's state (protocol version, names), never the socket, the store or the order of
//! answers.

use super::command;
use super::encode::{array, bulk, error, error_parts, map, null, status, unsigned, verbatim};
use super::parse::parse_integer;
use super::{glob, Args, Limits, Protocol, Shape};
use crate::command::{Command, Does, Lengths, Own, Unfit, Words};
use crate::ids::SlaveIdError;
use crate::info::Sections;
use bytes::Bytes;
use std::time::Duration;

/// The longest name that a client may give itself or its library, in bytes.
pub const CLIENT_ATTRIBUTE_MAX: usize = 256;

/// The only user there is. It has no password.
const USER: &[u8] = b"default";

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const SYNTAX_ERROR: &str = "ERR syntax error";

/// The settings that `CONFIG GET` and `HELLO` show, in addition to the fixed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// What a connection may ask for.
    pub limits: Limits,
    /// `maxclients`: the most client connections.
    pub clients_max: usize,
    /// `timeout`: how long a connection may be idle; zero is for ever.
    pub idle_timeout: Duration,
    /// `appendfsync`, as Redis spells it: `always`, `everysec` or `no`.
    pub fsync: &'static str,
}

impl ServerFacts {
    /// The server's parameters under the names that Redis gives them.
    fn parameters(&self) -> [(&'static str, String); 9] {
        [
            ("save", String::new()),
            ("appendonly", "yes".to_owned()),
            ("appendfsync", self.fsync.to_owned()),
            ("databases", "1".to_owned()),
            ("maxclients", self.clients_max.to_string()),
            ("maxmemory", "0".to_owned()),
            ("maxmemory-policy", "noeviction".to_owned()),
            ("proto-max-bulk-len", self.limits.bulk_max().to_string()),
            ("timeout", self.idle_timeout.as_secs().to_string()),
        ]
    }
}

/// What the caller has to do for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Nothing more: the answer is in `out`.
    Answered,
    /// Ask the store; its reply goes through [`encode_reply`](super::encode_reply), with this shape and the
    /// protocol version that the conversation has now.
    Ask {
        /// The command for the store.
        command: Command,
        /// How the reply is encoded.
        shape: Shape,
    },
    /// The answer is in `out`: send all answers that are due, then close the connection.
    AnsweredAndClose,
    /// Close the connection without an answer.
    Close,
}

/// The state of one connection: the version of the protocol, names.
#[derive(Clone, Debug)]
pub struct Conversation {
    id: u64,
    facts: ServerFacts,
    protocol: Protocol,
    peer_address: String,
    local_address: String,
    client_name: String,
    library_name: String,
    library_version: String,
}

impl Conversation {
    /// A new connection, shown as `id`, in RESP2 and without a name.
    pub fn new(id: u64, facts: ServerFacts) -> Self {
        Conversation {
            id,
            facts,
            protocol: Protocol::Resp2,
            peer_address: String::new(),
            local_address: String::new(),
            client_name: String::new(),
            library_name: String::new(),
            library_version: String::new(),
        }
    }

    /// Adds the connection's two ends, for `CLIENT INFO`.
    #[must_use]
    pub fn with_addresses(mut self, peer: impl Into<String>, local: impl Into<String>) -> Self {
        self.peer_address = peer.into();
        self.local_address = local.into();
        self
    }

    /// The version of RESP in which the next answer is encoded.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The name that the client gave itself; empty before it did.
    pub fn client_name(&self) -> &str {
        &self.client_name
    }

    /// Takes one request as [`Parser`](super::Parser) gives it. Answers a request that concerns only the connection, or
    /// that is malformed: the answer is appended to `out`.
    ///
    /// # Panics
    /// When `args` is empty: the parser never gives that.
    pub fn handle(&mut self, args: Args, out: &mut Vec<u8>) -> Handling {
        assert!(!args.is_empty(), "a request has a name");
        let before = out.len();
        let Some(spec) = command::find(&args, out) else {
            if ["post", "host:"].iter().any(|name| args[0].eq_ignore_ascii_case(name.as_bytes())) {
                // A browser that was tricked into sending to this port: close before its body is taken for requests.
                out.truncate(before);
                return Handling::Close;
            }
            return Handling::Answered;
        };
        match spec.does {
            Does::Ask(read) => {
                let Limits { key_max, value_max, .. } = self.facts.limits;
                match read(&mut Words::after_name(args, Lengths { key_max, value_max })) {
                    Ok(command) => Handling::Ask { command, shape: Shape::Plain },
                    Err(unfit) => {
                        say_unfit(spec.name, &unfit, out);
                        Handling::Answered
                    }
                }
            }
            Does::Describe => Handling::Ask {
                command: Command::Status,
                shape: Shape::Info(Sections::named(args[1..].iter().map(|name| &name[..]))),
            },
            Does::Quit => {
                status(out, "OK");
                Handling::AnsweredAndClose
            }
            Does::Own(own) => {
                self.answer(own, spec.name, &args[1..], out);
                Handling::Answered
            }
        }
    }

    /// Answers a request that concerns only the connection; `args` is what follows the name.
    fn answer(&mut self, own: Own, name: &str, args: &[Bytes], out: &mut Vec<u8>) {
        // A subcommand's own arguments.
        let rest = args.get(1..).unwrap_or_default();
        match own {
            Own::Ping => match args {
                [] => status(out, "PONG"),
                [message] => bulk(out, message),
                _ => command::wrong_arity(name, out),
            },
            Own::Echo => args.iter().for_each(|message| bulk(out, message)),
            Own::Select => select(&args[0], out),
            Own::Hello => self.hello(args, out),
            Own::Auth => auth(args, out),
            Own::Reset => {
                self.protocol = Protocol::Resp2;
                self.client_name.clear();
                status(out, "RESET");
            }
            Own::ClientGetName if self.client_name.is_empty() => null(self.protocol, out),
            Own::ClientGetName => bulk(out, self.client_name.as_bytes()),
            Own::ClientId => unsigned(out, self.id),
            Own::ClientInfo => verbatim(self.protocol, out, &self.describe(name)),
            Own::ClientList => self.client_list(name, rest, out),
            Own::ClientNoEvict | Own::ClientNoTouch => {
                // Nothing is evicted and the last use of a key is not tracked, so both settings are always on.
                let known = ["on", "off"].iter().any(|word| rest[0].eq_ignore_ascii_case(word.as_bytes()));
                if known {
                    status(out, "OK");
                } else {
                    error(out, SYNTAX_ERROR);
                }
            }
            Own::ClientReply => error(out, "ERR CLIENT REPLY is not supported: every request is answered"),
            Own::ClientSetInfo => self.set_info(&rest[0], &rest[1], out),
            Own::ClientSetName => {
                if let Some(name) = client_name(&rest[0], out) {
                    self.client_name = name;
                    status(out, "OK");
                }
            }
            Own::CommandAll => command::describe(self.protocol, &[], out),
            Own::CommandCount => command::count(out),
            Own::CommandDocs => command::document(self.protocol, rest, out),
            Own::CommandInfo => command::describe(self.protocol, rest, out),
            Own::CommandList => command::list(rest, out),
            Own::ClientHelp => command::help("client", out),
            Own::CommandHelp => command::help("command", out),
            Own::ConfigHelp => command::help("config", out),
            Own::ConfigGet => self.config_get(rest, out),
            Own::ConfigSet => {
                error(out, "ERR CONFIG SET is not supported: settings are given when the server starts");
            }
            Own::ConfigResetStat => error(out, "ERR CONFIG RESETSTAT is not supported"),
            Own::ConfigRewrite => error(out, "ERR The server is running without a config file"),
            Own::Container => command::wrong_arity(name, out),
        }
    }

    /// `HELLO [version [AUTH user password] [SETNAME name]]`. Changes nothing unless all of it is right.
    fn hello(&mut self, args: &[Bytes], out: &mut Vec<u8>) {
        let protocol = match args.first().map(|version| parse_integer(version)) {
            None => self.protocol,
            Some(Some(2)) => Protocol::Resp2,
            Some(Some(3)) => Protocol::Resp3,
            Some(Some(_)) => return error(out, "NOPROTO unsupported protocol version"),
            Some(None) => return error(out, "ERR Protocol version is not an integer or out of range"),
        };
        let mut user = None;
        let mut name = None;
        let mut options = args.get(1..).unwrap_or_default();
        loop {
            options = match options {
                [] => break,
                [option, given, _password, rest @ ..] if option.eq_ignore_ascii_case(b"auth") => {
                    user = Some(given);
                    rest
                }
                [option, given, rest @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                    let Some(given) = client_name(given, out) else {
                        return;
                    };
                    name = Some(given);
                    rest
                }
                [option, ..] => {
                    let option = command::printable(option, 128);
                    return error_parts(out, &[b"ERR Syntax error in HELLO option '", option, b"'"]);
                }
            };
        }
        if user.is_some_and(|user| user != USER) {
            return error(out, WRONG_PASSWORD);
        }
        self.protocol = protocol;
        if let Some(name) = name {
            self.client_name = name;
        }
        map(protocol, out, 7);
        for (name, value) in [("server", "dsm"), ("version", env!("CARGO_PKG_VERSION"))] {
            bulk(out, name.as_bytes());
            bulk(out, value.as_bytes());
        }
        bulk(out, b"proto");
        unsigned(out, self.protocol_number());
        bulk(out, b"id");
        unsigned(out, self.id);
        for (name, value) in [("mode", "standalone"), ("role", "master")] {
            bulk(out, name.as_bytes());
            bulk(out, value.as_bytes());
        }
        bulk(out, b"modules");
        array(out, 0);
    }

    fn protocol_number(&self) -> u64 {
        match self.protocol {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        }
    }

    /// This connection as a line of `CLIENT LIST`: the fields of Redis that mean something here.
    fn describe(&self, command: &str) -> String {
        format!(
            "id={} addr={} laddr={} name={} db=0 cmd={command} user=default resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.peer_address,
            self.local_address,
            self.client_name,
            self.protocol_number(),
            self.library_name,
            self.library_version,
        )
    }

    /// `CLIENT LIST [TYPE type | ID id [id ...]]`. It lists only this connection, which knows no other.
    fn client_list(&self, name: &str, filter: &[Bytes], out: &mut Vec<u8>) {
        let shown = match filter {
            [] => true,
            [by, kind] if by.eq_ignore_ascii_case(b"type") => {
                let is = |word: &str| kind.eq_ignore_ascii_case(word.as_bytes());
                if !["normal", "master", "replica", "slave", "pubsub"].into_iter().any(is) {
                    let kind = command::printable(kind, 128);
                    return error_parts(out, &[b"ERR Unknown client type '", kind, b"'"]);
                }
                is("normal")
            }
            [by, ids @ ..] if by.eq_ignore_ascii_case(b"id") && !ids.is_empty() => {
                let mut shown = false;
                for id in ids {
                    match parse_integer(id) {
                        Some(id) => shown |= u64::try_from(id) == Ok(self.id),
                        None => return error(out, "ERR Invalid client ID"),
                    }
                }
                shown
            }
            _ => return error(out, SYNTAX_ERROR),
        };
        let line = if shown { self.describe(name) } else { String::new() };
        verbatim(self.protocol, out, &line);
    }

    /// `CLIENT SETINFO LIB-NAME name` and `CLIENT SETINFO LIB-VER version`, as Redis 7.2 has them.
    fn set_info(&mut self, option: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let shown = command::printable(option, 128);
        let attribute = if option.eq_ignore_ascii_case(b"lib-name") {
            &mut self.library_name
        } else if option.eq_ignore_ascii_case(b"lib-ver") {
            &mut self.library_version
        } else {
            return error_parts(out, &[b"ERR Unrecognized option '", shown, b"'"]);
        };
        match attribute_text(value) {
            Ok(text) => {
                *attribute = text;
                status(out, "OK");
            }
            Err(AttributeError::Bytes) => error_parts(
                out,
                &[b"ERR ", shown, b" cannot contain spaces, newlines or special characters."],
            ),
            Err(AttributeError::Length) => {
                fits("client attribute", value.len(), CLIENT_ATTRIBUTE_MAX, out);
            }
        }
    }

    /// `CONFIG GET pattern [pattern ...]`: each parameter once, whichever patterns match it. As in Redis, a plain name
    /// is shown as it was spelled first.
    fn config_get(&self, patterns: &[Bytes], out: &mut Vec<u8>) {
        let parameters = self.facts.parameters();
        let mut found: Vec<(&[u8], &str)> = Vec::new();
        for pattern in patterns {
            let is_pattern = pattern.iter().any(|byte| b"*?[".contains(byte));
            for (name, value) in &parameters {
                let name = name.as_bytes();
                let is_wanted = if is_pattern {
                    glob::matches(pattern, name)
                } else {
                    pattern.eq_ignore_ascii_case(name)
                };
                if is_wanted && !found.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
                    found.push((if is_pattern { name } else { pattern }, value));
                }
            }
        }
        map(self.protocol, out, found.len());
        for (name, value) in found {
            bulk(out, name);
            bulk(out, value.as_bytes());
        }
    }
}

/// Appends the error for a malformed request.
fn say_unfit(name: &str, unfit: &Unfit, out: &mut Vec<u8>) {
    match unfit {
        Unfit::Arity => command::wrong_arity(name, out),
        Unfit::Syntax => error(out, SYNTAX_ERROR),
        Unfit::NoSlaveId => error(out, &format!("ERR {SlaveIdError}")),
        Unfit::Option { of, option } => {
            let of = of.as_bytes();
            error_parts(
                out,
                &[b"ERR syntax error: options of ", of, b" are not supported yet: '", option, b"'"],
            );
        }
        Unfit::TooLong { what, length, length_max } => {
            fits(what, *length, *length_max, out);
        }
    }
}

/// Whether `length` is within the limit; otherwise appends an error that names it.
fn fits(what: &str, length: usize, length_max: usize, out: &mut Vec<u8>) -> bool {
    let fits = length <= length_max;
    if !fits {
        error(out, &format!("ERR {what} is too long: {length} bytes, the limit is {length_max} bytes"));
    }
    fits
}

fn select(index: &[u8], out: &mut Vec<u8>) {
    match parse_integer(index) {
        Some(0) => status(out, "OK"),
        Some(index) if i32::try_from(index).is_ok() => error(out, "ERR DB index is out of range"),
        Some(_) => {
            error(out, "ERR value is out of range, value must between -2147483648 and 2147483647");
        }
        None => error(out, NOT_AN_INTEGER),
    }
}

fn auth(args: &[Bytes], out: &mut Vec<u8>) {
    match args {
        [_password] => error(
            out,
            "ERR AUTH <password> called without any password configured for the default user. \
             Are you sure your configuration is correct?",
        ),
        [user, _password] if user == USER => status(out, "OK"),
        [_user, _password] => error(out, WRONG_PASSWORD),
        _ => error(out, SYNTAX_ERROR),
    }
}

enum AttributeError {
    Bytes,
    Length,
}

/// Checks that a name fits between spaces on one line of `CLIENT LIST`.
fn attribute_text(bytes: &[u8]) -> Result<String, AttributeError> {
    if bytes.len() > CLIENT_ATTRIBUTE_MAX {
        return Err(AttributeError::Length);
    }
    if bytes.iter().all(u8::is_ascii_graphic) {
        Ok(bytes.iter().copied().map(char::from).collect())
    } else {
        Err(AttributeError::Bytes)
    }
}

/// Takes a client's name, or appends the error for a bad one.
fn client_name(name: &[u8], out: &mut Vec<u8>) -> Option<String> {
    match attribute_text(name) {
        Ok(name) => return Some(name),
        Err(AttributeError::Bytes) => {
            error(out, "ERR Client names cannot contain spaces, newlines or special characters.");
        }
        Err(AttributeError::Length) => {
            fits("client name", name.len(), CLIENT_ATTRIBUTE_MAX, out);
        }
    }
    None
}
