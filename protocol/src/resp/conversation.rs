//! The conversation on one connection: requests that concern only the connection are answered here, all others become a
//! [`Command`]. Owns the connection's state (protocol version, names), never the socket, the store or the order of
//! answers.

use super::acl::{NewPassword, UserListing};
use super::encode::{
    array, bulk, encode_reply, error, error_parts, integer, map, null, status, unsigned, verbatim,
};
use super::queue::{is_queueable, CommandQueue, Executed, QueuedPart, NOT_ALLOWED};
use super::{acl, command};
use super::{Args, Limits, Protocol, Shape, REDIS_VERSION};
use crate::acl::{Accounts, Denied, IncidentKind, Judging, User, DEFAULT_USER};
use crate::command::{
    Command, Does, Lengths, Own, Replies, Reply, ScriptJudge, ScriptRights, Spec, Unfit, Words,
    PATTERN_BYTES_MAX, PATTERN_PART_BYTES_MAX,
};
use crate::glob;
use crate::ids::{Seq, SlaveIdError};
use crate::info::{RedisRole, Sections};
use crate::integer::parse_integer;
use crate::serving_view::{host_and_port, ServingView, SharedView};
use bytes::Bytes;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The longest name that a client may give itself or its library, in bytes.
pub const CLIENT_ATTRIBUTE_MAX: usize = 256;

/// A request that is queued and not longer is copied, in bytes.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// How long the answer to a wrong password waits, in milliseconds, and twice as long after each further one on the connection.
const LOGIN_PAUSE_MS: u64 = 50;
const LOGIN_PAUSE_MS_MAX: u64 = 2000;

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const NO_AUTH: &str = "NOAUTH Authentication required.";
const NO_AUTH_HELLO: &str = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
     AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time";
const NO_PASSWORD: &str =
    "ERR AUTH <password> called without any password configured for the default user. Are you sure \
     your configuration is correct?";
const NO_ACL_CHANGE: &str = "ERR users are not changed by commands: edit the users file and send ACL LOAD";
const NO_CLUSTER: &str = "ERR This instance has cluster support disabled";
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
    /// A password was wrong, or many were from where this one comes: send the answer in `out` after this pause, and go on.
    AnsweredLate(Duration),
    /// Write the answer in parts, and go on.
    ListUsers(UserListing),
    /// Draw this password, answer with it, and go on.
    DrawPassword(NewPassword),
    /// Read the users anew, answer with what has become of it, and go on.
    LoadUsers,
    /// Ask the store, as for `Ask`, and tell [`Conversation::watched`] its reply before the next request is handled.
    Watch {
        /// The command for the store.
        command: Command,
    },
}

/// The state of one connection: the version of the protocol, who it is, names.
#[derive(Clone, Debug)]
pub struct Conversation {
    id: u64,
    facts: ServerFacts,
    protocol: Protocol,
    peer_address: String,
    local_address: String,
    /// The number by which the system knows the connection; -1 if it has none.
    descriptor: i32,
    /// How long the connection has stood when its present request came, in seconds.
    age_seconds: u64,
    view: SharedView,
    /// Whether it is one to a Sentinel.
    is_of_sentinel: bool,
    /// To how many channels and patterns it has subscribed.
    subscriptions: (usize, usize),
    client_name: String,
    library_name: String,
    library_version: String,
    accounts: Rc<Accounts>,
    /// The name that it has proved; `None` before.
    identity: Option<String>,
    /// Who it is by now; `None` if it must say so first.
    user: Option<Arc<User>>,
    /// The users of which that is one.
    generation: u64,
    wrong_passwords: u32,
    /// What is judged of the next request before it is handled.
    verdict: Option<Verdict>,
    queue: CommandQueue,
}

/// What is judged of a request, by users of that generation.
#[derive(Clone, Debug)]
struct Verdict {
    generation: u64,
    judging: Judging,
    judged: Option<Result<(), Denied>>,
}

impl Conversation {
    /// A new connection, shown as `id`, in RESP2 and without a name, that may do what anybody may by `accounts`.
    pub fn new(id: u64, facts: ServerFacts, accounts: Rc<Accounts>) -> Self {
        let user = accounts.users().anonymous().cloned();
        Conversation {
            generation: accounts.generation(),
            accounts,
            identity: None,
            user,
            wrong_passwords: 0,
            verdict: None,
            queue: CommandQueue::default(),
            id,
            facts,
            protocol: Protocol::Resp2,
            peer_address: String::new(),
            local_address: String::new(),
            descriptor: -1,
            age_seconds: 0,
            view: SharedView::default(),
            is_of_sentinel: false,
            subscriptions: (0, 0),
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

    /// Adds the number by which the system knows the connection, for `CLIENT INFO`.
    #[must_use]
    pub fn with_descriptor(mut self, descriptor: i32) -> Self {
        self.descriptor = descriptor;
        self
    }

    /// Adds who serves, for `HELLO` and `ROLE`.
    #[must_use]
    pub fn with_view(mut self, view: SharedView) -> Self {
        self.view = view;
        self
    }

    /// Makes it one to a Sentinel, for `HELLO`.
    #[must_use]
    pub(super) fn of_sentinel(mut self) -> Self {
        self.is_of_sentinel = true;
        self
    }

    /// Notes to how many channels and patterns it has subscribed, for `CLIENT INFO`.
    pub(super) fn set_subscriptions(&mut self, channels: usize, patterns: usize) {
        self.subscriptions = (channels, patterns);
    }

    /// Notes how long the connection has stood, for `CLIENT INFO`.
    pub fn set_age(&mut self, seconds: u64) {
        self.age_seconds = seconds;
    }

    /// Bytes of what it has queued and watches.
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// What the store has answered to a [`Handling::Watch`].
    pub fn watched(&mut self, reply: &Reply) {
        self.queue.watched(reply);
    }

    /// The version of RESP in which the next answer is encoded.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether it may do anything but say who it is.
    pub fn is_known(&mut self) -> bool {
        self.look_at_users();
        self.user.is_some()
    }

    /// Judges the request that is handled next in as many steps; whether it is judged. For a request of many keys and a user of
    /// many patterns that takes a while.
    pub fn judge(&mut self, args: &Args, steps: usize) -> bool {
        self.look_at_users();
        let (Some(user), Some(spec)) = (&self.user, command::look_up(args)) else { return true };
        let generation = self.generation;
        let fresh = Verdict { generation, judging: Judging::default(), judged: None };
        let verdict = match &mut self.verdict {
            Some(verdict) if verdict.generation == generation => verdict,
            verdict => verdict.insert(fresh),
        };
        verdict.judged = user.check_on(spec, args, &mut verdict.judging, steps);
        verdict.judged.is_some()
    }

    /// The user that it is; `None` if it must say so first.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref().map(User::name)
    }

    /// The name of the user that it has proved to be; `None` if it has not said who it is.
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
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
        // What was judged is about this request alone, whatever becomes of it.
        let verdict = self.verdict.take();
        let Some(spec) = command::find(&args, out) else {
            if ["post", "host:"].iter().any(|name| args[0].eq_ignore_ascii_case(name.as_bytes())) {
                // A browser that was tricked into sending to this port: close before its body is taken for requests.
                out.truncate(before);
                return Handling::Close;
            }
            self.refused(&args[0], before, out);
            return Handling::Answered;
        };
        if !self.may(verdict, spec, &args, out) {
            self.refused(&args[0], before, out);
            return Handling::Answered;
        }
        if self.queue.is_open() && !is_immediate(spec.does) {
            self.enqueue(spec, args, out);
            return Handling::Answered;
        }
        match spec.does {
            Does::Own(Own::Exec) => self.exec(out),
            Does::Own(Own::Watch) => match self.words(args).keys() {
                Ok(keys) => match self.queue.watch(keys, out) {
                    Some(command) => Handling::Watch { command },
                    None => Handling::Answered,
                },
                Err(unfit) => {
                    self.queue.blind();
                    say_unfit(spec.name, &unfit, out);
                    Handling::Answered
                }
            },
            Does::Own(Own::Auth) => self.auth(&args[1..], out),
            Does::Own(Own::Hello) => self.hello(&args[1..], out),
            Does::Own(Own::AclLoad) => Handling::LoadUsers,
            Does::Own(Own::AclGenPass) => match NewPassword::read(&args[1], &args[2..], out) {
                Some(password) => Handling::DrawPassword(password),
                None => Handling::Answered,
            },
            Does::Own(Own::AclList) => Handling::ListUsers(UserListing::new(&self.accounts, true)),
            Does::Own(Own::AclUsers) => Handling::ListUsers(UserListing::new(&self.accounts, false)),
            Does::Ask(read) => {
                let asked = read(&mut self.words(args)).map(|command| (self.granted(command), Shape::Plain));
                ask(spec.name, asked, out)
            }
            Does::AskFor(read) => {
                let asked = read(&mut self.words(args));
                ask(spec.name, asked.map(|(command, excerpt)| (command, Shape::Excerpt(excerpt))), out)
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

    /// A request was refused with the error in `out`, from `before` on: what that means for a transaction.
    fn refused(&mut self, name: &[u8], before: usize, out: &mut Vec<u8>) {
        if name.eq_ignore_ascii_case(b"exec") {
            let refusal = out.split_off(before);
            let refusal = refusal.strip_prefix(b"-").unwrap_or(&refusal);
            let refusal = refusal.strip_prefix(b"ERR ").unwrap_or(refusal);
            self.queue.abort(refusal.trim_ascii_end(), out);
        } else if name.eq_ignore_ascii_case(b"watch") {
            self.queue.blind();
        } else {
            self.queue.refuse();
        }
    }

    /// Queues a request of a transaction.
    fn enqueue(&mut self, spec: &'static Spec, args: Args, out: &mut Vec<u8>) {
        let args = detached(args);
        let words = args.iter().map(Bytes::len).sum::<usize>();
        let asked = match spec.does {
            Does::Ask(read) => {
                read(&mut self.words(args)).map(|command| (self.granted(command), Shape::Plain))
            }
            Does::AskFor(read) => {
                read(&mut self.words(args)).map(|(command, excerpt)| (command, Shape::Excerpt(excerpt)))
            }
            Does::Own(own) if is_queueable(own) => {
                let part = QueuedPart::Own(own, spec.name, args);
                return self.queue.push(part, (None, words), &self.facts.limits, out);
            }
            Does::Own(_) | Does::Describe | Does::Quit => {
                self.queue.refuse();
                return error(out, NOT_ALLOWED);
            }
        };
        match asked {
            Ok((command, _)) if !command.is_queueable() => {
                self.queue.refuse();
                error(out, NOT_ALLOWED);
            }
            Ok((command, shape)) => {
                let bytes = command.payload_bytes();
                let part = QueuedPart::Asked(shape);
                self.queue.push(part, (Some(command), bytes), &self.facts.limits, out);
            }
            // As in Redis, that is found when it is executed.
            Err(unfit) => {
                let mut said = Vec::new();
                say_unfit(spec.name, &unfit, &mut said);
                let bytes = said.len();
                self.queue.push(QueuedPart::Said(said), (None, bytes), &self.facts.limits, out);
            }
        }
    }

    /// `EXEC`.
    fn exec(&mut self, out: &mut Vec<u8>) -> Handling {
        let Some(Executed { parts, transaction }) = self.queue.execute(self.generation, out) else {
            return Handling::Answered;
        };
        let parts = Executed::parts(parts, |own, name, args, out| self.answer(own, name, args, out));
        let shape = Shape::Parts(parts.into());
        if transaction.watched.is_empty() && transaction.commands.is_empty() {
            encode_reply(self.protocol, &shape, &Reply::Many(Replies::default()), out);
            return Handling::Answered;
        }
        Handling::Ask { command: Command::Transact { transaction: Box::new(transaction) }, shape }
    }

    /// A command, of which the scripts have the rights of this user.
    fn granted(&self, mut command: Command) -> Command {
        if let (true, Some(user)) = (matches!(command, Command::Evaluate { .. }), &self.user) {
            command.grant(&ScriptRights::of(Arc::clone(user) as Arc<dyn ScriptJudge>));
        }
        command
    }

    fn words(&self, args: Args) -> Words {
        let Limits { key_max, value_max, .. } = self.facts.limits;
        Words::after_name(args, Lengths { key_max, value_max })
    }

    /// Answers a request that concerns only the connection; `args` is what follows the name.
    #[expect(clippy::too_many_lines, reason = "one arm for each request, each short")]
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
            Own::OfCluster => error(out, NO_CLUSTER),
            // Those are handled before.
            Own::Hello
            | Own::Auth
            | Own::AclGenPass
            | Own::AclLoad
            | Own::AclList
            | Own::AclUsers
            | Own::Exec
            | Own::Watch => {}
            Own::Multi => self.queue.begin(self.generation, out),
            Own::Discard => self.queue.discard(out),
            Own::Unwatch => {
                self.queue.forget();
                status(out, "OK");
            }
            Own::Reset => {
                self.queue = CommandQueue::default();
                self.protocol = Protocol::Resp2;
                self.identity = None;
                self.user = self.accounts.users().anonymous().cloned();
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
            Own::CommandGetKeys => command::keys_of(self.protocol, rest, false, out),
            Own::CommandGetKeysAndFlags => command::keys_of(self.protocol, rest, true, out),
            Own::CommandInfo => command::describe(self.protocol, rest, out),
            Own::CommandList => command::list(rest, out),
            Own::AclCat => acl::categories(&args[0], rest, out),
            Own::AclChange => error(out, NO_ACL_CHANGE),
            Own::AclDryrun => acl::try_out(&self.accounts, &rest[0], &rest[1..], out),
            Own::AclGetUser => acl::user(self.protocol, &self.accounts, &rest[0], out),
            Own::AclHelp => acl::help(out),
            Own::AclLog => acl::log(self.protocol, &self.accounts, &args[0], rest, out),
            Own::AclWhoAmI => bulk(out, self.user().unwrap_or(DEFAULT_USER).as_bytes()),
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
            Own::Role => role(&self.view.now(), out),
            Own::Move => move_key(&args[1], out),
            Own::Wait => self.wait(&args[0], &args[1], out),
            Own::SlowlogGet => slow_entries(rest, out),
            // Nothing is recorded.
            Own::SlowlogLen | Own::LatencyReset => unsigned(out, 0),
            Own::SlowlogReset => status(out, "OK"),
            Own::LatencyEvents => array(out, 0),
            Own::SlowlogHelp => command::help("slowlog", out),
            Own::LatencyHelp => command::help("latency", out),
            Own::ObjectHelp => command::help("object", out),
            Own::MemoryHelp => command::help("memory", out),
            Own::ScriptHelp => command::help("script", out),
            Own::ScriptKill => error(out, "NOTBUSY No scripts in execution right now."),
        }
    }

    /// `WAIT`: every write that was answered is in the log, which all standbys follow.
    fn wait(&self, replicas: &[u8], timeout: &[u8], out: &mut Vec<u8>) {
        match (parse_integer(replicas), parse_integer(timeout)) {
            (None, _) => error(out, NOT_AN_INTEGER),
            (_, None) => error(out, "ERR timeout is not an integer or out of range"),
            (_, Some(timeout)) if timeout < 0 => error(out, "ERR timeout is negative"),
            (Some(_), Some(_)) => unsigned(out, self.view.now().followers().count() as u64),
        }
    }

    /// Whether this connection may make that request; else appends why not.
    fn may(
        &mut self,
        verdict: Option<Verdict>,
        spec: &'static Spec,
        args: &[Bytes],
        out: &mut Vec<u8>,
    ) -> bool {
        self.look_at_users();
        let judged = verdict.filter(|verdict| verdict.generation == self.generation);
        let denied = match &self.user {
            None => None,
            Some(user) => {
                let judged = judged.and_then(|verdict| verdict.judged);
                match judged.unwrap_or_else(|| user.check(spec, args)) {
                    Ok(()) => return true,
                    Err(denied) => Some((denied, user.name())),
                }
            }
        };
        match denied {
            // By these it says who it is, or leaves.
            None if spec.flags.contains(&"no_auth") => return true,
            None => error(out, NO_AUTH),
            Some((Denied::Command(name), user)) => {
                self.accounts.note(IncidentKind::Command, name.as_bytes(), user, self.describe(spec.name));
                let name = name.as_bytes();
                error_parts(out, &[b"NOPERM this user has no permissions to run the '", name, b"' command"]);
            }
            Some((Denied::Key(key), user)) => {
                self.accounts.note(IncidentKind::Key, &key, user, self.describe(spec.name));
                error(out, "NOPERM this user has no permissions to access one of the keys used as arguments");
            }
        }
        false
    }

    /// Finds out who it is among the users of now, if they have changed.
    fn look_at_users(&mut self) {
        if self.generation != self.accounts.generation() {
            self.generation = self.accounts.generation();
            let users = self.accounts.users();
            self.user = match &self.identity {
                None => users.anonymous(),
                Some(name) => users.get(name).filter(|user| user.is_on()),
            }
            .cloned();
        }
    }

    /// Becomes that user if the password is right, and says how long the answer waits; else appends that it is not, and says so.
    fn log_in(
        &mut self,
        name: &[u8],
        password: &[u8],
        command: &str,
        out: &mut Vec<u8>,
    ) -> Result<Duration, Handling> {
        let users = self.accounts.users();
        let origin = origin(&self.peer_address);
        let origin_pause_ms = self.accounts.login_pause_ms(&origin);
        if let Some(user) = users.authenticate(name, password) {
            self.identity = Some(user.name().to_owned());
            self.user = Some(Arc::clone(user));
            return Ok(Duration::from_millis(origin_pause_ms));
        }
        let pause_ms = (LOGIN_PAUSE_MS << self.wrong_passwords.min(10)).min(LOGIN_PAUSE_MS_MAX);
        let pause_ms = pause_ms.max(origin_pause_ms);
        self.wrong_passwords += 1;
        self.accounts.note_guess(&origin);
        let user = String::from_utf8_lossy(command::printable(name, CLIENT_ATTRIBUTE_MAX));
        self.accounts.note(IncidentKind::Auth, command.as_bytes(), &user, self.describe(command));
        error(out, WRONG_PASSWORD);
        Err(Handling::AnsweredLate(Duration::from_millis(pause_ms)))
    }

    /// `AUTH [user] password`.
    fn auth(&mut self, args: &[Bytes], out: &mut Vec<u8>) -> Handling {
        let (user, password) = match args {
            [_] if self.accounts.users().anonymous().is_some() => {
                error(out, NO_PASSWORD);
                return Handling::Answered;
            }
            [password] => (DEFAULT_USER.as_bytes(), password),
            [user, password] => (&user[..], password),
            _ => {
                error(out, SYNTAX_ERROR);
                return Handling::Answered;
            }
        };
        match self.log_in(user, password, "auth", out) {
            Err(late) => late,
            Ok(pause) => {
                status(out, "OK");
                after(pause)
            }
        }
    }

    fn hello(&mut self, args: &[Bytes], out: &mut Vec<u8>) -> Handling {
        match self.greet(args, out) {
            Ok(pause) => after(pause),
            Err(late) => late,
        }
    }

    /// `HELLO [version [AUTH user password] [SETNAME name]]`. Changes nothing unless all of it is right.
    fn greet(&mut self, args: &[Bytes], out: &mut Vec<u8>) -> Result<Duration, Handling> {
        let wrong = |out: &mut Vec<u8>, text: &str| {
            error(out, text);
            Err(Handling::Answered)
        };
        let protocol = match args.first().map(|version| parse_integer(version)) {
            None => self.protocol,
            Some(Some(2)) => Protocol::Resp2,
            Some(Some(3)) => Protocol::Resp3,
            Some(Some(_)) => return wrong(out, "NOPROTO unsupported protocol version"),
            Some(None) => return wrong(out, "ERR Protocol version is not an integer or out of range"),
        };
        let mut user = None;
        let mut name = None;
        let mut options = args.get(1..).unwrap_or_default();
        loop {
            options = match options {
                [] => break,
                [option, given, password, rest @ ..] if option.eq_ignore_ascii_case(b"auth") => {
                    user = Some((given, password));
                    rest
                }
                [option, given, rest @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                    let Some(given) = client_name(given, out) else {
                        return Err(Handling::Answered);
                    };
                    name = Some(given);
                    rest
                }
                [option, ..] => {
                    let option = command::printable(option, 128);
                    error_parts(out, &[b"ERR Syntax error in HELLO option '", option, b"'"]);
                    return Err(Handling::Answered);
                }
            };
        }
        let pause = match user {
            Some((user, password)) => self.log_in(user, password, "hello", out)?,
            None if self.user.is_none() => return wrong(out, NO_AUTH_HELLO),
            None => Duration::ZERO,
        };
        self.protocol = protocol;
        if let Some(name) = name {
            self.client_name = name;
        }
        map(protocol, out, if self.is_of_sentinel { 6 } else { 7 });
        for (name, value) in [("server", "dsm"), ("version", REDIS_VERSION)] {
            bulk(out, name.as_bytes());
            bulk(out, value.as_bytes());
        }
        bulk(out, b"proto");
        unsigned(out, self.protocol_number());
        bulk(out, b"id");
        unsigned(out, self.id);
        let role = match self.view.now().role {
            RedisRole::Master => "master",
            RedisRole::Slave => "replica",
        };
        let what: &[_] = match self.is_of_sentinel {
            true => &[("mode", "sentinel")],
            false => &[("mode", "standalone"), ("role", role)],
        };
        for (name, value) in what {
            bulk(out, name.as_bytes());
            bulk(out, value.as_bytes());
        }
        bulk(out, b"modules");
        array(out, 0);
        Ok(pause)
    }

    fn protocol_number(&self) -> u64 {
        match self.protocol {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        }
    }

    /// This connection as a line of `CLIENT LIST`: the fields of Redis that mean something here.
    fn describe(&self, command: &str) -> String {
        // Whoever asks for this has just been heard.
        let (channels, patterns) = self.subscriptions;
        let flags = match self.queue.len() {
            Some(_) => "x",
            None if channels + patterns > 0 => "P",
            None => "N",
        };
        let queued = self.queue.len().map_or(-1, |queued| i64::try_from(queued).unwrap_or(i64::MAX));
        format!(
            "id={} addr={} laddr={} fd={} name={} age={} idle=0 flags={flags} db=0 sub={channels} psub={patterns} ssub=0 \
             multi={queued} events=r cmd={command} user={} redir=-1 resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.peer_address,
            self.local_address,
            self.descriptor,
            self.client_name,
            self.age_seconds,
            self.user().unwrap_or(DEFAULT_USER),
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

/// Copies the words of a short request: they would keep the buffer that they were read into for as long as they are queued.
fn detached(args: Args) -> Args {
    let bytes: usize = args.iter().map(Bytes::len).sum();
    if bytes > COPIED_BYTES_MAX {
        return args;
    }
    let all = Bytes::from(args.concat());
    let mut at = 0;
    let words = args.iter().map(|word| {
        at += word.len();
        all.slice(at - word.len()..at)
    });
    words.collect()
}

/// Whether that is done at once within a transaction, too.
fn is_immediate(does: Does) -> bool {
    match does {
        Does::Quit => true,
        Does::Own(own) => {
            matches!(own, Own::Multi | Own::Exec | Own::Discard | Own::Watch | Own::Reset)
        }
        Does::Ask(_) | Does::AskFor(_) | Does::Describe => false,
    }
}

fn after(pause: Duration) -> Handling {
    if pause.is_zero() {
        Handling::Answered
    } else {
        Handling::AnsweredLate(pause)
    }
}

/// Where a connection comes from, as whoever guesses cannot change it at will: an IPv4 address, the network of an IPv6 address, or
/// the path of a Unix socket.
fn origin(peer: &str) -> String {
    match peer.parse::<SocketAddr>().map(|peer| peer.ip().to_canonical()) {
        Ok(IpAddr::V4(address)) => address.to_string(),
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::")
        }
        // Without the number of the process.
        Err(_) => peer.rsplit_once(':').map_or(peer, |(path, _)| path).to_owned(),
    }
}

/// A request for the store, or the error for a malformed one.
fn ask(name: &str, asked: Result<(Command, Shape), Unfit>, out: &mut Vec<u8>) -> Handling {
    match asked {
        Ok((command, shape)) => Handling::Ask { command, shape },
        Err(unfit) => {
            say_unfit(name, &unfit, out);
            Handling::Answered
        }
    }
}

/// Answers what a script may ask of its connection: `args` is what follows the name.
pub(crate) fn answer_in_script(own: Own, name: &str, args: &[Bytes], out: &mut Vec<u8>) {
    match (own, args) {
        (Own::Ping, []) => status(out, "PONG"),
        (Own::Ping | Own::Echo, [message]) => bulk(out, message),
        (Own::Select, [index]) => select(index, out),
        _ => command::wrong_arity(name, out),
    }
}

/// Appends the error for a malformed request.
pub(crate) fn say_unfit(name: &str, unfit: &Unfit, out: &mut Vec<u8>) {
    match unfit {
        Unfit::Arity => command::wrong_arity(name, out),
        Unfit::Syntax => error(out, SYNTAX_ERROR),
        Unfit::NoInteger => error(out, NOT_AN_INTEGER),
        Unfit::NoNegative => error(out, "ERR decrement would overflow"),
        Unfit::Offset => error(out, "ERR offset is out of range"),
        Unfit::TooManyKeys { keys, keys_max } => {
            error(out, &format!("ERR too many keys: {keys}, the limit is {keys_max} for '{name}'"));
        }
        Unfit::Cursor => error(out, "ERR invalid cursor"),
        Unfit::Pattern => error(
            out,
            &format!(
                "ERR pattern is too long: the limit is {PATTERN_BYTES_MAX} bytes, and {PATTERN_PART_BYTES_MAX} in each part \
                 after a star"
            ),
        ),
        Unfit::Members(why) => error(out, &format!("ERR {why}")),
        Unfit::NoSlaveId => error(out, &format!("ERR {SlaveIdError}")),
        Unfit::ExpireTime => error(out, &format!("ERR invalid expire time in '{name}' command")),
        Unfit::Option(option) => error_parts(out, &[b"ERR Unsupported option ", option]),
        Unfit::Options(why) => error_parts(out, &[b"ERR ", why.as_bytes()]),
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

/// The answer of `ROLE`; offsets are numbers of records.
fn role(view: &ServingView, out: &mut Vec<u8>) {
    let offset = |seq: Seq| i64::try_from(seq.0).unwrap_or(i64::MAX);
    match view.role {
        RedisRole::Master => {
            array(out, 3);
            bulk(out, b"master");
            integer(out, offset(view.seq));
            array(out, view.followers().count());
            for follower in view.followers() {
                let (host, port) = host_and_port(&follower.address);
                array(out, 3);
                bulk(out, host.as_bytes());
                bulk(out, port.to_string().as_bytes());
                bulk(out, follower.seq.0.to_string().as_bytes());
            }
        }
        RedisRole::Slave => {
            let (host, port) = host_and_port(view.followed());
            array(out, 5);
            bulk(out, b"slave");
            bulk(out, host.as_bytes());
            integer(out, i64::from(port));
            bulk(out, if view.is_linked() { b"connected" } else { b"connect" });
            integer(out, offset(view.seq));
        }
    }
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

/// `MOVE`: the only database is the one in which the key is.
fn move_key(index: &[u8], out: &mut Vec<u8>) {
    match parse_integer(index) {
        None => error(out, NOT_AN_INTEGER),
        Some(0) => error(out, "ERR source and destination objects are the same"),
        Some(_) => error(out, "ERR DB index is out of range"),
    }
}

/// `SLOWLOG GET`: `count` is what follows it.
fn slow_entries(count: &[Bytes], out: &mut Vec<u8>) {
    match count {
        [] => array(out, 0),
        [count] if parse_integer(count).is_some_and(|count| count >= -1) => array(out, 0),
        [_] => error(out, "ERR count should be greater than or equal to -1"),
        _ => command::wrong_arity("slowlog|get", out),
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
