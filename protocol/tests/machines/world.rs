//! A world of real machines, driven at random: two masters, slaves on links that deliver late or never, a log, and
//! clients whose history is checked.
//!
//! Owns what is not a machine: links as queues, the log as a list, time as a counter. Never decides what a machine
//! should do; it only checks them against `docs/ARCHITECTURE.md`.

use bytes::Bytes;
use dsm_history::{check, Action as Did, Begun, History, OperationOutcome};
use dsm_protocol::command::{
    Command, ComparedChange, Comparison, Condition, Consequence, ErrorWord, ExpiryCondition, KeyTrait,
    Lifetime, Operands, Replies, Reply, ScriptCall, ScriptName, ScriptRights, TimeForm, Transaction,
    Transfer, Update,
};
use dsm_protocol::ids::{LinkId, Millis, Reign, ReignId, Seq, SessionId, SlaveId, UnixMillis, Version};
use dsm_protocol::info::{RebalanceState, RepairState};
use dsm_protocol::machine::link::Count;
use dsm_protocol::machine::master::{
    Asker, Change, Config, CopyCount, Counters, Effect, Event, Lacking, Leaving, Master, Moved, Placement,
    ReadId, ReignRecord, Testimony, WriteId, READS_IN_A_ROW,
};
use dsm_protocol::machine::slave::{self, Slave, ENTRY_OVERHEAD_BYTES};
use dsm_protocol::record::Place;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub(crate) const KEYS: u8 = 5;
pub(crate) const SESSIONS: u8 = 4;
const PIPELINE_MAX: usize = 5;
const DEADLINE_MS: u64 = 1000;

/// What the log answers where it cannot be read.
const NOT_READ: &str = "the disk says no";

/// What the wall clock showed when the world began.
const BEGAN: UnixMillis = UnixMillis(1_000_000);

/// The tag of a deletion that no client has asked for.
const NOBODYS: u64 = u64::MAX;

/// Who removes slaves.
const OPERATOR: SessionId = SessionId(99);

/// The driver's next action. Numbers choose among the candidates.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Get {
        session: u8,
        key: u8,
    },
    GetMany {
        session: u8,
        keys: (u8, u8),
    },
    Exists {
        session: u8,
        key: u8,
    },
    Length {
        session: u8,
        key: u8,
    },
    TimeToLive {
        session: u8,
        key: u8,
    },
    KeyCount {
        session: u8,
    },
    /// A SCAN of everything, KEYS or RANDOMKEY.
    LookAtKeys {
        session: u8,
        kind: u8,
    },
    Put {
        session: u8,
        key: u8,
    },
    PutMany {
        session: u8,
        keys: (u8, u8),
    },
    Delete {
        session: u8,
        key: u8,
    },
    DeleteMany {
        session: u8,
        keys: (u8, u8),
    },
    /// An update of one key, one of several kinds.
    Update {
        session: u8,
        key: u8,
        kind: u8,
    },
    PutManyIfNone {
        session: u8,
        keys: (u8, u8),
    },
    /// A transaction on two keys, one of several kinds, that watches both of them or one or none.
    Transact {
        session: u8,
        keys: (u8, u8),
        kind: u8,
    },
    Watch {
        session: u8,
        keys: (u8, u8),
    },
    /// The log answers up to so many appends.
    Log {
        count: u8,
    },
    /// The log refuses the oldest append.
    LogRefuses,
    /// One of the reads of the log comes back.
    LogRead {
        which: u8,
        fails: bool,
    },
    /// A slave takes in up to so many messages as one batch.
    ToSlave {
        link: u8,
        count: u8,
    },
    /// The master takes in up to so many messages of a slave.
    ToMaster {
        link: u8,
        count: u8,
    },
    /// A message of a reign that is over arrives late.
    Zombie {
        link: u8,
        count: u8,
    },
    /// The slave connects, if it is not connected.
    Join {
        node: u8,
    },
    /// The slave connects again.
    Connect {
        node: u8,
    },
    /// The link breaks; both sides learn of it.
    Lose {
        node: u8,
    },
    /// The slave's process dies: it comes back empty.
    Kill {
        node: u8,
    },
    /// An operator removes the slave.
    Remove {
        node: u8,
    },
    Ping {
        link: u8,
    },
    Sleep {
        ms: u16,
    },
    /// The master dies; this many of the appends that were not reported yet are in the log. The other one takes over.
    Crash {
        logged: u8,
    },
    /// The reign is handed over as soon as nothing is in flight.
    Handover,
    /// A slave has seen a higher epoch.
    /// Everything under way arrives.
    Settle,
}

#[derive(Debug)]
enum ToSlave {
    Announce(Reign, Seq),
    Admitted(Reign),
    Write { version: Version, reign: ReignId, key: Bytes, value: Bytes },
    Read { tag: u64, version: Version, reign: ReignId, key: Bytes },
    Drop { version: Version, reign: ReignId, key: Bytes },
    HoldingsNext,
    Ping,
}

#[derive(Debug, Default)]
struct Link {
    node: usize,
    /// The count of its messages, while the slave has a place in the reign.
    count: Option<Count>,
    to_slave: VecDeque<ToSlave>,
    to_master: VecDeque<slave::Effect>,
}

#[derive(Debug)]
struct Node {
    slave: Slave,
    memory_max: Option<u64>,
    link: Option<LinkId>,
    /// Whether it was drained, and not started anew since.
    is_let_go: bool,
}

/// One record of the log.
#[derive(Clone, Debug)]
struct Record {
    version: Version,
    change: Option<Change>,
    /// When its values expire.
    expires: Option<UnixMillis>,
}

/// What is to be a record.
struct Append {
    write: WriteId,
    change: Change,
    expires: Option<UnixMillis>,
    /// The refusals that it is decided after, if it rests on another one.
    after: Option<u64>,
}

/// What a key holds, and until when.
type Held = Option<(Bytes, Option<UnixMillis>)>;

/// A request without an answer, with what its answer must fulfil.
struct Asked {
    session: SessionId,
    begun: Vec<Begun>,
    command: Command,
    /// When it was asked, and how long the log was then.
    at: (u64, usize),
    /// What time it was.
    time: UnixMillis,
    /// What had expired of its keys by then.
    dead: BTreeMap<Bytes, Version>,
    /// For each key the session's own last write without an answer, and whether it waits for just that one.
    own_before: Vec<(Bytes, Option<(u64, bool)>)>,
}

/// The log's answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Written(Version),
    Refused,
}

pub(crate) struct World {
    config: Config,
    masters: [Master; 2],
    active: usize,
    reign: Version,
    log: Vec<Record>,
    appends: VecDeque<Append>,
    /// The deletions of keys whose time had come, under way.
    expiring: VecDeque<(WriteId, Vec<Begun>)>,
    refusals: u64,
    /// Reads of the log that are under way, with the master that has asked: no other one hears of the answer.
    log_reads: Vec<(usize, ReadId, Place, Version, Bytes)>,
    nodes: Vec<Node>,
    links: BTreeMap<LinkId, Link>,
    /// Links of reigns that are over, whose last messages may still arrive.
    zombies: BTreeMap<LinkId, Link>,
    next_link: u64,
    now: Millis,
    clock: u64,
    history: History,
    asked: BTreeMap<u64, Asked>,
    next_tag: u64,
    /// The log's answer to each write, by the tag of its request.
    fates: BTreeMap<u64, Fate>,
    /// The request of each append that is under way.
    tags: Vec<(WriteId, u64)>,
    /// The values that reads of the log have put back on slaves, by key.
    put_back: BTreeSet<(Bytes, Version)>,
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) without_copy: usize,
    pub(crate) read: usize,
    /// Updates that have written, and those that were answered without.
    pub(crate) updated: (usize, usize),
    /// Transactions that have written, those that were answered without, and those whose keys had changed.
    pub(crate) transacted: (usize, usize, usize),
    /// Appends that were refused because they rest on a refused one.
    pub(crate) rested: usize,
    /// Keys that were deleted because their time had come, and values that were written with a time.
    pub(crate) expired: (usize, usize),
    /// Keys that repair gave copies at last.
    pub(crate) repaired: u64,
    /// What was rebalanced in the last reign.
    pub(crate) moved: Moved,
    /// Slaves that are let go now: their links end after what else the same step wants.
    leaving: Vec<LinkId>,
    /// How many slaves were drained.
    pub(crate) let_go: u64,
}

fn key_of(number: u8) -> Bytes {
    Bytes::from(format!("key{}", number % KEYS))
}

fn keys_of(command: &Command) -> Vec<Bytes> {
    match command.operands() {
        Operands::None | Operands::Words(_) => Vec::new(),
        Operands::Script(call) => call.keys.clone(),
        Operands::Key(key) | Operands::KeyAndValue(key, _) | Operands::Compared(key, _) => vec![key.clone()],
        Operands::Keys(keys) => keys.to_vec(),
        Operands::Pairs(pairs) => pairs.iter().map(|(key, _)| key.clone()).collect(),
        Operands::All(transaction) => {
            let watched = transaction.watched.iter().map(|(key, _)| key.clone());
            watched.chain(transaction.commands.iter().flat_map(keys_of)).collect()
        }
    }
}

/// A script that calls the commands of a transaction, and answers what they do.
fn scripted(transaction: &Transaction) -> Command {
    let (mut text, mut args) = ("local answers = {}\n".to_owned(), Vec::new());
    for (index, command) in transaction.commands.iter().enumerate() {
        let words = words_of(command);
        let places = (args.len() + 1..).take(words.len()).map(|place| format!("ARGV[{place}]"));
        let places = places.collect::<Vec<_>>().join(", ");
        text.push_str(&format!("answers[{}] = redis.pcall({places})\n", index + 1));
        args.extend(words);
    }
    text.push_str("return answers");
    // Some are told of their keys.
    let keys = match args.len() % 2 {
        0 => transaction.commands.iter().flat_map(keys_of).collect(),
        _ => Vec::new(),
    };
    let (script, rights) = (ScriptName::Text(text.into()), ScriptRights::default());
    Command::Evaluate { call: Box::new(ScriptCall { script, keys, args, is_read_only: false, rights }) }
}

/// A command as a script says it.
fn words_of(command: &Command) -> Vec<Bytes> {
    let word = |word: &'static str| Bytes::from_static(word.as_bytes());
    let all = |name: &'static str, keys: &[Bytes]| {
        std::iter::once(word(name)).chain(keys.iter().cloned()).collect::<Vec<_>>()
    };
    match command {
        Command::Put { key, value } => vec![word("SET"), key.clone(), value.clone()],
        Command::Get { key } => vec![word("GET"), key.clone()],
        Command::Take { key } => vec![word("GETDEL"), key.clone()],
        Command::Examine { key, what: KeyTrait::Encoding } => {
            vec![word("OBJECT"), word("ENCODING"), key.clone()]
        }
        Command::ValueLength { key } => vec![word("STRLEN"), key.clone()],
        Command::Delete { keys } => all("DEL", keys),
        Command::Exists { keys } => all("EXISTS", keys),
        Command::GetMany { keys } => all("MGET", keys),
        Command::Transfer { keys, transfer: Transfer::Rename } => all("RENAME", &keys[..]),
        Command::Transfer { keys, transfer: Transfer::RenameIfNone } => all("RENAMENX", &keys[..]),
        Command::Transfer { keys, transfer: Transfer::Copy } => all("COPY", &keys[..]),
        Command::Transfer { keys, transfer: Transfer::CopyOver } => {
            let mut words = all("COPY", &keys[..]);
            words.push(word("REPLACE"));
            words
        }
        Command::PutManyIfNone { pairs } => {
            let pairs = pairs.iter().flat_map(|(key, value)| [key.clone(), value.clone()]);
            std::iter::once(word("MSETNX")).chain(pairs).collect()
        }
        Command::Swap { key, value, life: Lifetime::Until(time), .. } => {
            let time = Bytes::from(time.0.to_string());
            vec![word("SET"), key.clone(), value.clone(), word("GET"), word("PXAT"), time]
        }
        Command::Update { key, update: Update::Add { number } } => {
            vec![word("INCRBY"), key.clone(), Bytes::from(number.to_string())]
        }
        Command::Update { key, update: Update::Append { tail } } => {
            vec![word("APPEND"), key.clone(), tail.clone()]
        }
        Command::Update { key, update: Update::Set { value, when: Condition::IfAbsent, .. } } => {
            vec![word("SET"), key.clone(), value.clone(), word("NX")]
        }
        other => panic!("no transaction has {other:?}"),
    }
}

/// The answer of such a script as that of the transaction.
fn unscripted(transaction: &Transaction, answer: &[u8]) -> Reply {
    let mut rest = answer;
    let mut token = || {
        let end = rest.iter().position(|byte| *byte == b'\r').expect("a line ends");
        let (kind, line) = (rest[0], &rest[1..end]);
        rest = &rest[end + 2..];
        let number = std::str::from_utf8(line).ok().and_then(|line| line.parse::<i64>().ok());
        if kind == b'$' {
            let (value, after) = rest.split_at(number.expect("a length") as usize);
            rest = &after[2..];
            return (kind, value, None);
        }
        (kind, line, number)
    };
    let (b'*', _, Some(count)) = token() else { panic!("no array") };
    assert_eq!(count as usize, transaction.commands.len());
    let mut replies = Vec::new();
    for command in &transaction.commands {
        let reply = match token() {
            (b'+', ..) => Reply::Done,
            (b'$', value, _) => Reply::Value(Bytes::copy_from_slice(value)),
            (b'_', ..) => Reply::NotFound,
            (b':', _, Some(number))
                if matches!(command, Command::Update { update: Update::Add { .. }, .. }) =>
            {
                Reply::Integer(number)
            }
            (b':', _, Some(number)) => Reply::Count(number as u64),
            (b'*', _, Some(count)) => {
                let values = (0..count).map(|_| match token() {
                    (b'$', value, _) => Some(Bytes::copy_from_slice(value)),
                    _ => None,
                });
                Reply::Values(values.collect())
            }
            (b'-', line, _) => {
                let line = String::from_utf8_lossy(line);
                Reply::error(ErrorWord::Bad, line.strip_prefix("ERR ").expect("an error").to_owned())
            }
            other => panic!("{other:?}"),
        };
        replies.push(reply);
    }
    Reply::Many(Replies(replies))
}

fn value_in(change: &Change, key: &[u8]) -> Option<Option<Bytes>> {
    held_in(change, None, key).map(|held| held.map(|(value, _)| value))
}

/// What a record makes of a key, if it is one of its keys.
fn held_in(change: &Change, expires: Option<UnixMillis>, key: &[u8]) -> Option<Held> {
    match change.pairs().iter().rposition(|(k, _)| k == key) {
        Some(at) => Some(Some((change.pairs()[at].1.clone(), change.expires(at, expires)))),
        None => change.deleted().iter().any(|k| k == key).then_some(None),
    }
}

impl World {
    /// `memory_max`: how many bytes each slave may take.
    pub(crate) fn new(placement: Placement, seed: u64, memory_max: &[Option<u64>]) -> World {
        // In every other world a slice has one key, so that requests of several keys are done in slices.
        let slice_keys = if seed % 2 == 1 { 1 } else { Config::default().slice_keys };
        let reads_in_a_row = if seed % 4 < 2 { 1 } else { READS_IN_A_ROW };
        // In one world of three nothing is repaired.
        let repair_bytes_per_second = if seed % 3 == 2 { 0 } else { 1 << 20 };
        // In some a second holder is asked only after the first one's time is over.
        let hedge_percent = if seed.is_multiple_of(7) { 0 } else { 100 };
        let copies = match seed % 5 {
            0 => CopyCount::Fixed(1),
            1 => CopyCount::Fixed(2),
            _ => CopyCount::Half,
        };
        let config = Config {
            placement,
            copies,
            seed,
            slice_keys,
            reads_in_a_row,
            repair_bytes_per_second,
            hedge_percent,
            ..Config::default()
        };
        let nodes = memory_max
            .iter()
            .map(|max| Node { slave: Slave::new(*max, seed), memory_max: *max, link: None, is_let_go: false })
            .collect();
        let mut world = World {
            config,
            masters: [Master::new(config), Master::new(config)],
            active: 0,
            reign: Version::default(),
            log: Vec::new(),
            appends: VecDeque::new(),
            expiring: VecDeque::new(),
            refusals: 0,
            log_reads: Vec::new(),
            nodes,
            links: BTreeMap::new(),
            zombies: BTreeMap::new(),
            next_link: 1,
            now: Millis(0),
            clock: 0,
            history: History::new(),
            asked: BTreeMap::new(),
            next_tag: 0,
            fates: BTreeMap::new(),
            tags: Vec::new(),
            put_back: BTreeSet::new(),
            acknowledged: 0,
            unknown: 0,
            without_copy: 0,
            read: 0,
            updated: (0, 0),
            transacted: (0, 0, 0),
            rested: 0,
            expired: (0, 0),
            repaired: 0,
            moved: Moved::default(),
            leaving: Vec::new(),
            let_go: 0,
        };
        world.begin_reign();
        for node in 0..world.nodes.len() {
            world.connect(node);
        }
        world.settle();
        world
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each action, each short")]
    pub(crate) fn act(&mut self, action: &Action) {
        match *action {
            Action::Get { session, key } => self.ask(session, Command::Get { key: key_of(key) }),
            Action::GetMany { session, keys: (a, b) } => {
                self.ask(session, Command::GetMany { keys: vec![key_of(a), key_of(b)] });
            }
            Action::Exists { session, key } => {
                self.ask(session, Command::Exists { keys: vec![key_of(key)] });
            }
            Action::Length { session, key } => self.ask(session, Command::ValueLength { key: key_of(key) }),
            Action::TimeToLive { session, key } => {
                self.ask(session, Command::TimeToLive { key: key_of(key), form: TimeForm::Millis });
            }
            Action::KeyCount { session } => self.ask(session, Command::KeyCount),
            Action::LookAtKeys { session, kind } => {
                let command = match kind % 3 {
                    0 => Command::Scan { cursor: 0, pattern: None, count: 1000, strings: true },
                    1 => Command::Keys { pattern: Bytes::from_static(b"*") },
                    _ => Command::RandomKey,
                };
                self.ask(session, command);
            }
            Action::Put { session, key } => {
                let value = self.fresh_value("");
                self.ask(session, Command::Put { key: key_of(key), value });
            }
            Action::PutMany { session, keys: (a, b) } => {
                // A key that is named twice takes its last value: the first value must never be visible.
                let pairs = vec![(key_of(a), self.fresh_value("a")), (key_of(b), self.fresh_value("b"))];
                self.ask(session, Command::PutMany { pairs });
            }
            Action::Delete { session, key } => {
                self.ask(session, Command::Delete { keys: vec![key_of(key)] });
            }
            Action::DeleteMany { session, keys: (a, b) } => {
                self.ask(session, Command::Delete { keys: vec![key_of(a), key_of(b)] });
            }
            Action::Update { session, key, kind } => {
                let command = self.update(key_of(key), kind);
                self.ask(session, command);
            }
            Action::PutManyIfNone { session, keys: (a, b) } => {
                let pairs = vec![(key_of(a), self.fresh_value("a")), (key_of(b), self.fresh_value("b"))];
                self.ask(session, Command::PutManyIfNone { pairs });
            }
            Action::Transact { session, keys: (a, b), kind } => {
                let transaction = Box::new(self.transaction((key_of(a), key_of(b)), kind));
                // What needs no versions may be a script, too.
                let sent = (kind >= 128 && transaction.watched.is_empty()).then(|| scripted(&transaction));
                let command = Command::Transact { transaction };
                let sent = sent.unwrap_or_else(|| command.clone());
                self.ask_as(session, command, sent);
            }
            Action::Watch { session, keys: (a, b) } => {
                self.ask(session, Command::Watch { keys: vec![key_of(a), key_of(b)] });
            }
            Action::Log { count } => (0..count).for_each(|_| self.log_answers(false)),
            Action::LogRefuses => self.log_answers(true),
            Action::LogRead { which, fails } => self.log_read(usize::from(which), fails),
            Action::ToSlave { link, count } => {
                if let Some(link) = nth(&self.links, link) {
                    self.deliver_to_slave(link, usize::from(count));
                }
            }
            Action::ToMaster { link, count } => {
                if let Some(link) = nth(&self.links, link) {
                    self.deliver_to_master(link, usize::from(count));
                }
            }
            Action::Zombie { link, count } => {
                if let Some(link) = nth(&self.zombies, link) {
                    self.deliver_zombie(link, usize::from(count));
                }
            }
            Action::Join { node } => {
                let node = usize::from(node) % self.nodes.len();
                if self.nodes[node].link.is_none() {
                    self.connect(node);
                }
            }
            Action::Connect { node } => self.connect(usize::from(node) % self.nodes.len()),
            Action::Lose { node } => self.lose(usize::from(node) % self.nodes.len()),
            Action::Kill { node } => {
                let node = usize::from(node) % self.nodes.len();
                self.lose(node);
                self.zombies.retain(|_, link| link.node != node);
                self.nodes[node].slave = Slave::new(self.nodes[node].memory_max, 3);
                self.nodes[node].is_let_go = false;
                self.step(Event::SlaveStartedAnew { id: slave_id(node) });
            }
            Action::Remove { node } => {
                let id = slave_id(usize::from(node) % self.nodes.len());
                let asker = Asker { session: OPERATOR, tag: 0 };
                let (deadline, command) = (self.now.plus(DEADLINE_MS), Command::RemoveSlave { id });
                self.step(Event::Request { asker, deadline, command });
            }
            Action::Ping { link } => {
                if let Some(link) = nth(&self.links, link).and_then(|id| self.links.get_mut(&id)) {
                    if link.count.as_mut().is_some_and(Count::ping) {
                        link.to_slave.push_back(ToSlave::Ping);
                    }
                }
            }
            Action::Sleep { ms } => {
                self.now = self.now.plus(u64::from(ms));
                if self.masters[self.active].hedge_at().is_some_and(|at| at <= self.now) {
                    self.step(Event::Hedge);
                }
                self.step(Event::Tick);
                // In half of the worlds keys expire only when somebody asks for them.
                if self.config.seed % 4 < 2 {
                    self.step(Event::Expire);
                }
                self.chore();
            }
            Action::Crash { logged } => self.crash(usize::from(logged)),
            Action::Handover => self.hand_over(),
            Action::Settle => self.settle(),
        }
    }

    /// What the master that is active at the end has counted.
    pub(crate) fn counters(&self) -> Counters {
        self.masters[self.active].counters()
    }

    fn fresh_value(&mut self, suffix: &str) -> Bytes {
        self.clock += 1;
        Bytes::from(format!("value{}{suffix}", self.clock))
    }

    fn update(&mut self, key: Bytes, kind: u8) -> Command {
        let value = self.fresh_value("");
        // So that sums are unique, too.
        let number = self.clock as i64 * 1_000_000;
        let (absent, present) = (Condition::IfAbsent, Condition::IfPresent);
        let life = self.lifetime();
        let any = ExpiryCondition::default();
        let update = match kind % 19 {
            0 => return Command::Swap { key, value, when: Condition::Always, life },
            1 => return Command::Swap { key, value, when: absent, life },
            2 => return Command::Swap { key, value, when: present, life },
            3 => return Command::Take { key },
            4 => Update::Set { value: Bytes::from(number.to_string()), when: Condition::Always, life },
            5 => Update::Set { value, when: absent, life },
            6 => Update::Set { value, when: present, life },
            7 => Update::Append { tail: value },
            8 => Update::SetRange { offset: 3, bytes: value },
            9 => Update::SetRange { offset: 3, bytes: Bytes::new() },
            10 => return Command::Renew { key, life },
            11 => return self.compare(key, value, life),
            18 => return Command::Examine { key, what: KeyTrait::Encoding },
            12..14 => Update::Expire { life, when: any },
            14 => Update::Expire { life, when: ExpiryCondition { if_none: true, ..any } },
            15 => Update::Expire { life, when: ExpiryCondition { if_later: true, ..any } },
            16 => Update::Expire { life, when: ExpiryCondition { if_earlier: true, ..any } },
            _ => Update::Add { number },
        };
        Command::Update { key, update }
    }

    /// A change under a condition that may hold.
    fn compare(&self, key: Bytes, value: Bytes, life: Lifetime) -> Command {
        let held = self.held_after(self.log.len(), &key).map_or_else(Bytes::new, |(value, _)| value);
        let version = self.masters[self.active].directory().get(&key).map(|entry| entry.version);
        let when = match self.clock % 8 {
            0..3 => Comparison::Equal(held),
            3 => Comparison::Different(held),
            4 => return Command::GetVersioned { key },
            _ => Comparison::Version(version),
        };
        let makes = match self.clock % 3 {
            0 => Consequence::Delete,
            turn => Consequence::Set { value, life, answers_old: turn == 1 },
        };
        Command::Compare { key, change: Box::new(ComparedChange { when, makes }) }
    }

    fn transaction(&mut self, (a, b): (Bytes, Bytes), kind: u8) -> Transaction {
        let (value, number) = (self.fresh_value("t"), self.clock as i64 * 1_000_000);
        let put = |key: &Bytes| Command::Put { key: key.clone(), value: value.clone() };
        let get = |key: &Bytes| Command::Get { key: key.clone() };
        let update = |key: &Bytes, update: Update| Command::Update { key: key.clone(), update };
        let delete =
            |keys: &[&Bytes]| Command::Delete { keys: keys.iter().map(|key| (*key).clone()).collect() };
        let add = |key: &Bytes| update(key, Update::Add { number });
        let append = |key: &Bytes| update(key, Update::Append { tail: value.clone() });
        let if_absent =
            Update::Set { value: value.clone(), when: Condition::IfAbsent, life: Lifetime::Endless };
        let swap = |key: &Bytes| Command::Swap {
            key: key.clone(),
            value: value.clone(),
            when: Condition::Always,
            life: Lifetime::Until(self.time().plus(40)),
        };
        let transfer = |from: &Bytes, to: &Bytes, transfer| Command::Transfer {
            keys: Box::new([from.clone(), to.clone()]),
            transfer,
        };
        let commands = match kind % 14 {
            0 => vec![put(&a), put(&b)],
            1 => vec![get(&a), get(&b)],
            2 => vec![put(&a), delete(&[&b, &a]), append(&b)],
            3 => vec![add(&a), add(&b), get(&a)],
            4 => vec![append(&a), append(&a), delete(&[&b])],
            5 => vec![
                Command::Take { key: a.clone() },
                put(&b),
                Command::Exists { keys: vec![a.clone(), b.clone()] },
            ],
            6 => vec![
                swap(&a),
                put(&b),
                Command::ValueLength { key: a.clone() },
                Command::Examine { key: a.clone(), what: KeyTrait::Encoding },
            ],
            7 => vec![update(&a, if_absent.clone()), update(&b, if_absent), get(&b)],
            8 => vec![
                Command::PutManyIfNone {
                    pairs: vec![(a.clone(), value.clone()), (b.clone(), value.clone())],
                },
                get(&a),
            ],
            9 => vec![delete(&[&a]), put(&a), delete(&[&a])],
            10 => vec![transfer(&a, &b, Transfer::Rename), get(&b), get(&a)],
            11 => vec![transfer(&a, &b, Transfer::Copy), append(&b), transfer(&b, &a, Transfer::CopyOver)],
            12 => vec![transfer(&a, &b, Transfer::RenameIfNone), append(&b)],
            _ => vec![Command::GetMany { keys: vec![b.clone(), a.clone()] }, swap(&b), delete(&[&a])],
        };
        let watched = match kind / 14 % 4 {
            0 => vec![a],
            1 => vec![a, b],
            _ => Vec::new(),
        };
        let directory = self.masters[self.active].directory();
        let version = |key: Bytes| (directory.get(&key).map(|entry| entry.version), key);
        let watched = watched.into_iter().map(version).map(|(version, key)| (key, version)).collect();
        Transaction { watched, commands }
    }

    /// One of several lifetimes, in turn.
    fn lifetime(&self) -> Lifetime {
        match self.clock % 11 {
            0..3 => Lifetime::Endless,
            3 => Lifetime::Same,
            4 => Lifetime::Until(self.time().plus(40)),
            5 => Lifetime::Until(UnixMillis(7)),
            other => Lifetime::For(15 * other),
        }
    }

    fn time(&self) -> UnixMillis {
        BEGAN.plus(self.now.0)
    }

    fn ask(&mut self, session: u8, command: Command) {
        self.ask_as(session, command.clone(), command);
    }

    /// Sends a request that means the same as `command`.
    #[expect(clippy::too_many_lines, reason = "one arm for each command, each short")]
    fn ask_as(&mut self, session: u8, command: Command, sent: Command) {
        let session = SessionId(u64::from(session % SESSIONS));
        if self.asked.values().filter(|asked| asked.session == session).count() >= PIPELINE_MAX {
            return;
        }
        self.clock += 1;
        let now = self.clock;
        let client = session.0;
        let mut begin = |key: &Bytes, did: Did| self.history.begin(client, key.clone(), did, now);
        let begun = match &command {
            Command::Get { key } => vec![begin(key, Did::Read(None))],
            Command::GetMany { keys } => keys.iter().map(|key| begin(key, Did::Read(None))).collect(),
            Command::Put { key, value } => vec![begin(key, Did::Write(value.clone()))],
            Command::PutMany { pairs } => {
                let last: BTreeMap<&Bytes, &Bytes> = pairs.iter().map(|(k, v)| (k, v)).collect();
                last.into_iter().map(|(key, value)| begin(key, Did::Write(value.clone()))).collect()
            }
            Command::Delete { keys } => {
                let mut keys = keys.clone();
                keys.dedup();
                keys.iter().map(|key| begin(key, Did::Delete { existed: None })).collect()
            }
            Command::Exists { .. }
            | Command::KeyCount
            | Command::ValueLength { .. }
            | Command::Scan { .. }
            | Command::Keys { .. }
            | Command::RandomKey
            | Command::TimeToLive { .. }
            | Command::ScriptCache { .. }
            | Command::Time
            | Command::Watch { .. } => Vec::new(),
            // What they write is known once it is appended.
            Command::Update { .. }
            | Command::Swap { .. }
            | Command::Take { .. }
            | Command::Renew { .. }
            | Command::Examine { .. }
            | Command::Compare { .. }
            | Command::GetVersioned { .. }
            | Command::PutManyIfNone { .. }
            | Command::Evaluate { .. }
            | Command::Transfer { .. }
            | Command::Transact { .. } => Vec::new(),
            Command::Status
            | Command::Failover
            | Command::RemoveSlave { .. }
            | Command::ChangeMembers { .. }
            | Command::DeleteAll => Vec::new(),
        };
        // Behind an update, or a request that looks at all keys, it may wait longer than for the write.
        let is_in_line =
            self.asked.values().any(|asked| asked.session == session && makes_line(&asked.command));
        let own_before = keys_of(&command)
            .into_iter()
            .map(|key| {
                let last = self
                    .asked
                    .iter()
                    .filter(|(_, asked)| asked.session == session && asked.command.is_write())
                    .filter(|(_, asked)| keys_of(&asked.command).contains(&key))
                    .map(|(tag, _)| (*tag, self.fates[tag] == Fate::Open && !is_in_line))
                    .next_back();
                (key, last)
            })
            .collect();
        let tag = self.next_tag;
        self.next_tag += 1;
        if command.is_write() {
            self.fates.insert(tag, Fate::Open);
        }
        let at = (now, self.log.len());
        let time = self.time();
        let entry_of = |key: Bytes| Some((self.masters[self.active].directory().get(&key)?, key));
        let entries = keys_of(&command).into_iter().filter_map(entry_of);
        let dead = entries
            .filter(|(entry, _)| entry.expires.is_some_and(|expires| expires < time))
            .map(|(entry, key)| (key, entry.version))
            .collect();
        self.asked
            .insert(tag, Asked { session, begun, command: command.clone(), at, time, dead, own_before });
        let deadline = self.now.plus(DEADLINE_MS);
        self.step(Event::Request { asker: Asker { session, tag }, deadline, command: sent });
    }

    fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        let is_of_log = matches!(event, Event::LogRead { .. });
        self.masters[self.active].step(self.now, event, &mut effects);
        for effect in effects {
            if let (Effect::SendWrite { version, key, .. }, true) = (&effect, is_of_log) {
                self.put_back.insert((key.clone(), *version));
            }
            self.perform(effect);
        }
        while let Some(link) = self.leaving.pop() {
            self.let_go(link);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { to, .. } if to.session == OPERATOR => {}
            Effect::Leaving { state: Leaving::Draining, .. } => {}
            Effect::Leaving { link, state: Leaving::LetGo } => self.leaving.push(link),
            Effect::Reply { to, reply } => self.answered(to, reply),
            Effect::Append { write, change, expires, after } => {
                let asker = self.masters[self.active].asker(write);
                let asker = asker.expect("a write that is appended is in flight");
                if asker.session.0 < u64::from(SESSIONS) {
                    self.tags.push((write, asker.tag));
                    self.note_update(asker.tag, &change);
                } else {
                    self.tags.push((write, NOBODYS));
                    let Change::Delete(keys) = &*change else { panic!("{change:?} by nobody") };
                    let now = self.clock;
                    // Each is a client that asks for nothing else.
                    let client = 1000 + self.expired.0 as u64 + self.expiring.len() as u64;
                    let mut begin = |key: &Bytes| {
                        self.history.begin(client, key.clone(), Did::Delete { existed: None }, now)
                    };
                    let begun = keys.iter().map(&mut begin).collect();
                    self.expiring.push_back((write, begun));
                }
                let change = Arc::unwrap_or_clone(change);
                self.appends.push_back(Append { write, change, expires, after });
            }
            Effect::Joined { link } => {
                let reign = reign_of(self.reign);
                let link = self.links.get_mut(&link).expect("a link joined");
                link.count = Some(Count::default());
                link.to_slave.push_back(ToSlave::Admitted(reign));
            }
            Effect::NoSlot { .. } => panic!("no slot for a handful of slaves"),
            Effect::SlotFree { link } => {
                let link = self.links.get_mut(&link).expect("a slave that waits for a slot is connected");
                link.to_slave.push_back(ToSlave::Announce(reign_of(self.reign), self.reign.seq));
            }
            Effect::SendWrite { link, version, reign, key, value } => {
                self.send(link, ToSlave::Write { version, reign, key, value });
            }
            Effect::SendRead { link, read, version, reign, key, .. } => {
                self.send(link, ToSlave::Read { tag: read.tag(), version, reign, key });
            }
            Effect::SendDrop { link, version, reign, key } => {
                self.send(link, ToSlave::Drop { version, reign, key });
            }
            Effect::SendHoldingsNext { link } => self.send(link, ToSlave::HoldingsNext),
            Effect::ReadLog { read, place, version, key } => {
                self.log_reads.push((self.active, read, place, version, key));
            }
            Effect::Repair(_) => {}
            Effect::Witnessed { link, stamp } => {
                panic!("{link:?} accuses a whole log of lacking {stamp}")
            }
        }
    }

    fn send(&mut self, link: LinkId, message: ToSlave) {
        let link = self.links.get_mut(&link).expect("a slave that is there is sent something");
        let count = link.count.as_mut().expect("it has a place in the reign");
        if let ToSlave::Write { .. } = message {
            count.write();
        }
        link.to_slave.push_back(message);
    }

    /// An update is appended: what it writes is known by now.
    fn note_update(&mut self, tag: u64, change: &Change) {
        let Some(asked) = self.asked.get_mut(&tag).filter(|asked| is_update(&asked.command)) else { return };
        let did = match change {
            // The value is there, and stays: that is a read of it.
            Change::Put(pairs) if is_renewal(&asked.command) => {
                pairs.iter().map(|(key, _)| (key.clone(), Did::Read(None))).collect()
            }
            change => {
                let written =
                    change.pairs().iter().map(|(key, value)| (key.clone(), Did::Write(value.clone())));
                let deleted = change.deleted().iter().map(|key| (key.clone(), Did::Delete { existed: None }));
                written.chain(deleted).collect::<Vec<_>>()
            }
        };
        let (client, at) = (asked.session.0, asked.at.0);
        asked.begun = did.into_iter().map(|(key, did)| self.history.begin(client, key, did, at)).collect();
    }

    /// What `key` holds after so many records of the log.
    fn held_after(&self, records: usize, key: &[u8]) -> Held {
        self.log[..records]
            .iter()
            .rev()
            .find_map(|record| held_in(record.change.as_ref()?, record.expires, key))?
    }

    /// The version that `key` has after so many records of the log.
    fn version_after(&self, records: usize, key: &[u8]) -> Option<Version> {
        let mut before = self.log[..records].iter().rev();
        let last = before.find_map(|record| Some((record.version, value_in(record.change.as_ref()?, key)?)));
        last.and_then(|(version, value)| value.map(|_| version))
    }

    /// What a transaction makes of its keys, and what it answers, after so many records of the log.
    #[expect(clippy::too_many_lines, reason = "one arm for each command, each short")]
    fn transacted(
        &self,
        transaction: &Transaction,
        records: usize,
        time: UnixMillis,
    ) -> (BTreeMap<Bytes, Held>, Reply) {
        let is_same =
            |(key, version): &(Bytes, Option<Version>)| self.version_after(records, key) == *version;
        let mut now: BTreeMap<Bytes, Held> = BTreeMap::new();
        if !transaction.watched.iter().all(is_same) {
            return (now, Reply::NotFound);
        }
        let mut replies = Vec::new();
        for command in &transaction.commands {
            let holds = |now: &BTreeMap<Bytes, Held>, key: &Bytes| {
                now.get(key).cloned().unwrap_or_else(|| self.held_after(records, key))
            };
            let value = |now: &BTreeMap<Bytes, Held>, key: &Bytes| holds(now, key).map(|(value, _)| value);
            replies.push(match command {
                Command::Put { key, value } => {
                    now.insert(key.clone(), Some((value.clone(), None)));
                    Reply::Done
                }
                Command::Get { key } => value(&now, key).map_or(Reply::NotFound, Reply::Value),
                Command::GetMany { keys } => Reply::Values(keys.iter().map(|key| value(&now, key)).collect()),
                Command::Exists { keys } => {
                    Reply::Count(keys.iter().filter(|key| holds(&now, key).is_some()).count() as u64)
                }
                Command::ValueLength { key } => {
                    Reply::Count(value(&now, key).map_or(0, |value| value.len() as u64))
                }
                Command::Delete { keys } => Reply::Count(
                    keys.iter()
                        .filter(|key| {
                            let was_there = holds(&now, key).is_some();
                            now.insert((*key).clone(), None);
                            was_there
                        })
                        .count() as u64,
                ),
                Command::Transfer { keys, transfer } => {
                    let [from, to] = &**keys;
                    let (source, is_there) = (holds(&now, from), holds(&now, to).is_some());
                    let is_copy = matches!(transfer, Transfer::Copy | Transfer::CopyOver);
                    let spares = matches!(transfer, Transfer::Copy | Transfer::RenameIfNone);
                    if is_copy && from == to {
                        Reply::error(ErrorWord::Bad, "source and destination objects are the same")
                    } else if source.is_none() && is_copy {
                        Reply::Count(0)
                    } else if source.is_none() {
                        Reply::error(ErrorWord::Bad, "no such key")
                    } else if spares && is_there {
                        Reply::Count(0)
                    } else {
                        now.insert(from.clone(), source.clone().filter(|_| is_copy));
                        now.insert(to.clone(), source);
                        if *transfer == Transfer::Rename {
                            Reply::Done
                        } else {
                            Reply::Count(1)
                        }
                    }
                }
                command => {
                    let held: Vec<_> = keys_of(command).iter().map(|key| holds(&now, key)).collect();
                    let (change, ends, reply) = outcome_of(command, &held, time);
                    let expires = match ends {
                        Ends::Never => None,
                        Ends::At(end) => Some(end),
                        Ends::After(ms) => panic!("a lifetime of {ms} in a transaction"),
                    };
                    for (key, value) in change.iter().flat_map(Change::pairs) {
                        now.insert(key.clone(), Some((value.clone(), expires)));
                    }
                    for key in change.iter().flat_map(Change::deleted) {
                        now.insert(key.clone(), None);
                    }
                    reply
                }
            });
        }
        (now, Reply::Many(Replies(replies)))
    }

    /// A transaction was answered: by what its keys hold at its place in the log, all of them at once.
    fn check_transaction(
        &mut self,
        asked: Asked,
        transaction: &Transaction,
        reply: &Reply,
        fate: Option<Fate>,
    ) {
        if let Some(Fate::Written(version)) = fate {
            let place = self.log.iter().position(|record| record.version == version).expect("it is written");
            // It was decided at some time between.
            let [early, late] =
                [asked.time, self.time()].map(|time| self.transacted(transaction, place, time));
            let change = self.log[place].change.as_ref().expect("it changes something");
            let fits = |(made, expected): &(BTreeMap<Bytes, Held>, Reply)| {
                let mut changed = change.pairs().iter().map(|(key, _)| key).chain(change.deleted());
                expected == reply
                    && made.iter().all(|(key, held)| *held == self.held_after(place + 1, key))
                    && changed.all(|key| made.contains_key(key))
            };
            assert!(
                fits(&early) || fits(&late),
                "{transaction:?}: {change:?} and {reply:?}, not {early:?} or {late:?}"
            );
            for begun in asked.begun {
                self.history.finish(begun, OperationOutcome::Done, self.clock);
            }
            self.transacted.0 += 1;
            return;
        }
        let is_of_store = |word| word != ErrorWord::Bad;
        if !matches!(reply, Reply::Error(error) if is_of_store(error.word) || error.detail == NOT_READ) {
            let own = asked.own_before.iter().filter_map(|(_, own)| own.as_ref());
            let own = own.filter_map(|(tag, _)| match self.fates[tag] {
                Fate::Written(version) => Some(version),
                Fate::Open | Fate::Refused => None,
            });
            let after = own.max().map_or(0, |version| version.seq.0 as usize);
            let places = asked.at.1.max(after)..=self.log.len();
            let fits = places.clone().any(|records| {
                [asked.time, self.time()].into_iter().any(|time| {
                    let (made, expected) = self.transacted(transaction, records, time);
                    let is_same = |(key, held): (&Bytes, &Held)| self.held_after(records, key) == *held;
                    expected == *reply && made.iter().all(is_same)
                })
            });
            assert!(fits, "{reply:?} to {transaction:?} at no place of {places:?}");
            let was_changed = *reply == Reply::NotFound;
            self.transacted.1 += usize::from(!was_changed);
            self.transacted.2 += usize::from(was_changed);
        }
        for begun in asked.begun {
            self.history.finish(begun, OperationOutcome::NotExecuted, self.clock);
        }
    }

    /// A key was deleted because its time had come: it had, and nothing has been written since.
    fn check_expired(&self, keys: &[Bytes]) {
        let before = self.log.len() - 1;
        for key in keys {
            // It may have been deleted by a client meanwhile.
            let Some((_, expires)) = self.held_after(before, key) else { continue };
            let is_due = expires.is_some_and(|expires| expires < self.time());
            assert!(is_due, "{key:?} expires at {expires:?} and is deleted at {}", self.time());
        }
    }

    /// What an update makes of its keys, and what it answers, after so many records of the log.
    fn outcome_after(
        &self,
        records: usize,
        command: &Command,
        time: UnixMillis,
    ) -> (Option<Change>, Ends, Reply) {
        let keys = keys_of(command);
        let held: Vec<_> = keys.iter().map(|key| self.held_after(records, key)).collect();
        let version = keys.first().and_then(|key| self.version_after(records, key));
        match command {
            Command::GetVersioned { .. } => {
                let value = held[0].clone().map(|(value, _)| value);
                let version = Bytes::from(version.unwrap_or_default().to_string());
                (None, Ends::Never, Reply::Values(vec![value, Some(version)]))
            }
            command => outcome_of(&without_version(command, version), &held, time),
        }
    }

    /// An update was answered: by what its keys hold at its place in the log.
    fn check_update(&mut self, asked: Asked, reply: &Reply, fate: Option<Fate>) {
        let now = self.clock;
        let at = |world: &World, records: usize, time: UnixMillis| {
            world.outcome_after(records, &asked.command, time)
        };
        if let Some(Fate::Written(version)) = fate {
            let place = self.log.iter().position(|record| record.version == version);
            let place = place.expect("it is written");
            let record = &self.log[place];
            // It was decided at some time between.
            let [early, late] = [asked.time, self.time()].map(|time| at(self, place, time));
            let (change, life, expected) = if early.0.is_some() { early } else { late };
            // It may have been decided as a deletion, since it would be gone at once by the time when it was decided.
            let is_gone = match (life, &record.change) {
                (Ends::At(end), Some(Change::Delete(_))) => end <= self.time(),
                _ => false,
            };
            if !is_gone {
                assert_eq!(change.as_ref(), record.change.as_ref(), "{:?}", asked.command);
                let fits = match life {
                    Ends::Never => record.expires.is_none(),
                    Ends::At(end) => record.expires == Some(end),
                    Ends::After(ms) => record.expires.is_some_and(|expires| {
                        asked.time.plus(ms) <= expires && expires <= self.time().plus(ms)
                    }),
                };
                assert!(fits, "{:?} expires at {:?}, not {life:?}", asked.command, record.expires);
                self.expired.1 += usize::from(record.expires.is_some());
            }
            assert_eq!(reply, &expected);
            let renewed = match &record.change {
                Some(Change::Put(pairs)) if is_renewal(&asked.command) => Some(pairs[0].1.clone()),
                _ => None,
            };
            for begun in asked.begun {
                match &renewed {
                    Some(value) => self.history.finish_read(begun, Some(value.clone()), now),
                    None => self.history.finish(begun, OperationOutcome::Done, now),
                }
            }
            self.updated.0 += 1;
            return;
        }
        let is_of_store = |word| word != ErrorWord::Bad;
        let refused =
            matches!(reply, Reply::Error(error) if is_of_store(error.word) || error.detail == NOT_READ);
        if !refused {
            let own = asked.own_before.iter().filter_map(|(_, own)| own.as_ref());
            let own = own.filter_map(|(tag, _)| match self.fates[tag] {
                Fate::Written(version) => Some(version),
                Fate::Open | Fate::Refused => None,
            });
            let after = own.max().map_or(0, |version| version.seq.0 as usize);
            let places = asked.at.1.max(after)..=self.log.len();
            let expected = |records, time| {
                let (change, _, reply) = at(self, records, time);
                (change, reply)
            };
            let fits = places.clone().any(|records| {
                [asked.time, self.time()].iter().any(|time| expected(records, *time) == (None, reply.clone()))
            });
            assert!(fits, "{reply:?} to {:?} at no place of {places:?}", asked.command);
            self.updated.1 += 1;
        }
        for begun in asked.begun {
            self.history.finish(begun, OperationOutcome::NotExecuted, now);
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each answer, each short")]
    fn answered(&mut self, to: Asker, reply: Reply) {
        self.clock += 1;
        let now = self.clock;
        let asked =
            self.asked.remove(&to.tag).unwrap_or_else(|| panic!("a second answer to {to:?}: {reply:?}"));
        assert_eq!(asked.session, to.session);
        if looks_at_keys(&asked.command) && !matches!(reply, Reply::Error(_)) {
            self.told_keys(to, reply);
            return;
        }
        let reply = match (reply, &asked.command) {
            (Reply::Encoded(answer), Command::Transact { transaction }) => unscripted(transaction, &answer),
            (reply, _) => reply,
        };
        let fate = self.fates.get(&to.tag).copied();
        match &reply {
            Reply::Error(error) if error.word == ErrorWord::Unknown => {
                assert!(matches!(fate, Some(Fate::Written(_))), "{reply:?} to what is not in the log");
                let active = self.masters[self.active].slave_count();
                // One of several keys may have been placed while there was no slave, and a slave has come since.
                let is_sliced = keys_of(&asked.command).len() > self.config.slice_keys;
                assert!(active == 0 || is_sliced, "{reply:?} with {active} slaves, full or not");
                self.unknown += 1;
            }
            reply if matches!(asked.command, Command::Transact { .. }) => {
                let Command::Transact { transaction } = asked.command.clone() else { return };
                self.check_transaction(asked, &transaction, reply, fate);
            }
            reply if is_update(&asked.command) => self.check_update(asked, reply, fate),
            Reply::Error(_) => {
                assert!(!matches!(fate, Some(Fate::Written(_))), "{reply:?} to what is in the log");
                for begun in asked.begun {
                    self.history.finish(begun, OperationOutcome::NotExecuted, now);
                }
            }
            Reply::Done => {
                self.acknowledged += 1;
                let Some(Fate::Written(version)) = fate else { panic!("OK to what is not in the log") };
                for key in keys_of(&asked.command) {
                    self.somebody_holds(&key, version);
                }
                for begun in asked.begun {
                    self.history.finish(begun, OperationOutcome::Done, now);
                }
            }
            Reply::Value(_) | Reply::NotFound | Reply::Values(_) => {
                self.read += 1;
                let values = match reply {
                    Reply::Value(value) => vec![Some(value)],
                    Reply::NotFound => vec![None],
                    Reply::Values(values) => values,
                    other => panic!("{other:?}"),
                };
                assert_eq!(values.len(), asked.begun.len());
                let single = values.len() == 1;
                for ((begun, value), (key, own)) in asked.begun.into_iter().zip(values).zip(&asked.own_before)
                {
                    self.sees_its_own(key, *own, value.as_ref(), single);
                    // Who waits for an own write is answered at its place.
                    if own.is_none() {
                        self.is_alive(key, value.as_ref(), asked.dead.get(key).copied());
                    }
                    self.history.finish_read(begun, value, now);
                }
            }
            Reply::Count(count) => match (&asked.command, &asked.begun[..]) {
                (command @ Command::Delete { .. }, [begun]) => {
                    self.deleted(command, *begun, *count == 1, fate)
                }
                (Command::Delete { .. }, several) => {
                    assert!(*count <= 2);
                    for begun in several {
                        self.history.finish(*begun, OperationOutcome::Done, now);
                    }
                }
                (command, _) => self.counts_what_is_there(command, *count),
            },
            Reply::Integer(told) => self.tells_time(&asked.command, *told),
            Reply::Versions(told) => {
                let Command::Watch { keys } = &asked.command else {
                    panic!("versions for {:?}", asked.command)
                };
                let directory = self.masters[self.active].directory();
                let alive = keys.iter().map(|key| {
                    let entry = directory.get(key)?;
                    entry.expires.is_none_or(|expires| expires >= self.time()).then_some(entry.version)
                });
                assert!(alive.eq(told.iter().copied()), "{told:?} of {keys:?}");
            }
            other @ (Reply::Text(_) | Reply::Page { .. } | Reply::Many(_) | Reply::Encoded(_)) => {
                panic!("nobody asked for {other:?}")
            }
        }
    }

    /// A request that looks at all keys was answered.
    fn told_keys(&mut self, to: Asker, reply: Reply) {
        match reply {
            Reply::Page { next, keys } => {
                assert_eq!(next, 0, "it was to look at all keys");
                self.shows_all(to, keys);
            }
            Reply::Values(keys) => self.shows_all(to, keys.into_iter().flatten().collect()),
            Reply::Value(key) => self.shows(&key),
            Reply::NotFound => self.shows_all(to, Vec::new()),
            other => panic!("{other:?} instead of keys"),
        }
    }

    /// A deletion was answered: whether the key was there.
    fn deleted(&mut self, command: &Command, begun: Begun, existed: bool, fate: Option<Fate>) {
        let Some(Fate::Written(version)) = fate else { panic!("a count of what is not in the log") };
        let place = self.log.iter().position(|record| record.version == version);
        let held = self.held_after(place.expect("it is written"), &keys_of(command)[0]);
        let expires = held.and_then(|(_, expires)| expires);
        if !existed && expires.is_some_and(|expires| expires < self.time()) {
            // Its time had come: it is this deletion that the log has.
            self.history.finish(begun, OperationOutcome::Done, self.clock);
        } else {
            self.history.finish_delete(begun, existed, self.clock);
        }
    }

    /// When a key expires the directory says, at this moment.
    fn tells_time(&self, command: &Command, told: i64) {
        let Command::TimeToLive { key, .. } = command else { panic!("a time for {command:?}") };
        let entry = self.masters[self.active].directory().get(key);
        let expected =
            entry.map_or(-2, |entry| entry.expires.map_or(-1, |expires| expires.since(self.time()) as i64));
        assert_eq!(told, expected);
        let expires = entry.and_then(|entry| entry.expires);
        assert!(expires.is_none_or(|expires| expires >= self.time()), "its time is over");
    }

    /// A value that is read had not expired in the directory when it was asked for, if it was not written anew.
    fn is_alive(&self, key: &Bytes, value: Option<&Bytes>, dead: Option<Version>) {
        let (Some(value), Some(dead)) = (value, dead) else { return };
        let gives = |record: &&Record| {
            record.change.as_ref().is_some_and(|change| value_in(change, key) == Some(Some(value.clone())))
        };
        let given = self.log.iter().rfind(gives).map(|record| record.version);
        assert!(given != Some(dead), "{key:?}: {value:?} of {dead} is read after its time");
    }

    /// A key that is shown is there.
    fn shows(&self, key: &Bytes) {
        assert!(self.masters[self.active].directory().get(key).is_some(), "{key:?} is not there");
    }

    /// All keys that are there are shown, each once. No later write of the same session is among them, and each earlier one is in
    /// the log.
    fn shows_all(&self, to: Asker, mut keys: Vec<Bytes>) {
        keys.iter().for_each(|key| self.shows(key));
        let shown = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), shown, "a key is shown twice");
        for (key, entry) in self.masters[self.active].directory().iter() {
            let is_alive = entry.expires.is_none_or(|expires| expires >= self.time());
            assert!(!is_alive || keys.iter().any(|shown| shown == key), "{key:?} is not shown");
        }
        for (tag, asked) in self.asked.iter().filter(|(_, asked)| asked.session == to.session) {
            let fate = self.fates.get(tag);
            if *tag > to.tag {
                let Some(Fate::Written(version)) = fate else { continue };
                for key in keys_of(&asked.command) {
                    let entry = self.masters[self.active].directory().get(&key);
                    assert_ne!(entry.map(|entry| entry.version), Some(*version), "a later write is shown");
                }
            } else {
                assert_ne!(fate, Some(&Fate::Open), "an earlier write of the session is not in the log");
            }
        }
    }

    /// The directory alone decides this, at this moment.
    fn counts_what_is_there(&self, command: &Command, count: u64) {
        let directory = self.masters[self.active].directory();
        let expected = match command {
            Command::Exists { keys } => {
                let is_there = |key: &&Bytes| {
                    let entry = directory.get(key);
                    entry.is_some_and(|entry| entry.expires.is_none_or(|expires| expires >= self.time()))
                };
                keys.iter().filter(is_there).count() as u64
            }
            Command::ValueLength { key } => {
                directory.get(key).map_or(0, |entry| u64::from(entry.place.bytes))
            }
            Command::KeyCount => directory.len() as u64,
            other => panic!("a count for {other:?}"),
        };
        assert_eq!(count, expected);
    }

    /// A slave that acknowledged `version` of `key` holds it, unless a later version has replaced it.
    fn somebody_holds(&mut self, key: &Bytes, version: Version) {
        let Some(entry) = self.masters[self.active].directory().get(key) else { return };
        if entry.version != version {
            return;
        }
        let slots: Vec<_> =
            self.links.keys().filter_map(|link| self.masters[self.active].slot_of(*link)).collect();
        let live = |slot: &_| slots.contains(slot);
        let is_named = entry.holders.iter().any(|slot| live(&slot));
        let links: Vec<LinkId> =
            self.links.iter().filter(|(_, l)| l.count.is_some()).map(|(id, _)| *id).collect();
        let held =
            links.into_iter().filter(|link| self.held(*link, key).map(|(v, _)| v) == Some(version)).count();
        // The only holder may be one that a read of the log has put the value back on: the write does not wait for that copy.
        let is_from_log = self.put_back.contains(&(key.clone(), version));
        if !is_named || (held == 0 && is_from_log) {
            // The slaves with room have left since the write was accepted.
            assert!(self.nodes.iter().any(|node| node.memory_max.is_some()), "{key:?} has no copy");
            self.without_copy += 1;
            return;
        }
        assert!(held >= 1, "{key:?} at {version} is acknowledged, but no active slave holds it");
    }

    /// A read after the session's own write sees that write or a later one. A read of a single key that waited for the
    /// log sees exactly that write: its place is right after the write.
    fn sees_its_own(&self, key: &Bytes, own: Option<(u64, bool)>, value: Option<&Bytes>, single: bool) {
        let Some((tag, waited)) = own else { return };
        let Fate::Written(own) = self.fates[&tag] else { return };
        // A transaction does not change all keys that it names.
        let written = self.log.iter().find(|record| record.version == own);
        let change = written.and_then(|record| record.change.as_ref());
        if change.is_none_or(|change| value_in(change, key).is_none()) {
            return;
        }
        let gives = |record: &&Record| {
            record.change.as_ref().is_some_and(|change| value_in(change, key) == Some(value.cloned()))
        };
        let seen = self.log.iter().rev().find(gives).map(|record| record.version);
        assert!(seen >= Some(own), "{key:?}: {value:?} of {seen:?} is read after the own write {own}");
        if waited && single {
            let record = self.log.iter().find(|record| record.version == own).expect("it is written");
            assert!(gives(&record), "{key:?}: {value:?} of {seen:?} instead of the own write {own}");
        }
    }

    fn log_answers(&mut self, refuses: bool) {
        let Some(Append { write, change, expires, after }) = self.appends.pop_front() else { return };
        let index = self.tags.iter().position(|(id, _)| *id == write).expect("it was appended");
        let (_, tag) = self.tags.swap_remove(index);
        let is_stale = after.is_some_and(|after| after < self.refusals);
        if refuses || is_stale {
            self.fates.insert(tag, Fate::Refused);
            self.end_expiry(write, OperationOutcome::NotExecuted);
            self.refusals += 1;
            self.rested += usize::from(is_stale);
            let word = if is_stale { ErrorWord::Busy } else { ErrorWord::ReadOnly };
            self.step(Event::NotWritten { write, word, detail: String::new() });
            return;
        }
        let (version, place) = self.append(change, expires);
        self.fates.insert(tag, Fate::Written(version));
        if tag == NOBODYS {
            let Some(Change::Delete(keys)) = &self.log.last().expect("it was just appended").change else {
                panic!("no deletion");
            };
            self.check_expired(keys);
            self.expired.0 += keys.len();
            self.clock += 1;
            self.end_expiry(write, OperationOutcome::Done);
        }
        let change = &self.log.last().expect("it was just appended").change;
        let pairs = change.as_ref().map_or(&[][..], |change| change.pairs());
        let places = pairs.iter().map(|(_, value)| of_value(place, value)).collect();
        self.step(Event::Written { write, version, places });
    }

    /// What became of a deletion that no client has asked for.
    fn end_expiry(&mut self, write: WriteId, outcome: OperationOutcome) {
        let Some(at) = self.expiring.iter().position(|(id, _)| *id == write) else { return };
        let (_, begun) = self.expiring.remove(at).expect("it is there");
        for begun in begun {
            self.history.finish(begun, outcome, self.clock);
        }
    }

    fn append(&mut self, change: Change, expires: Option<UnixMillis>) -> (Version, Place) {
        let version =
            Version { epoch: self.reign.epoch, seq: dsm_protocol::ids::Seq(self.log.len() as u64 + 1) };
        let place = Place { offset: self.log.len() as u64, ..Place::default() };
        self.log.push(Record { version, change: Some(change.clone()), expires });
        replay(&mut self.masters[1 - self.active], &change, (version, place, expires));
        (version, place)
    }

    fn log_read(&mut self, which: usize, fails: bool) {
        if self.log_reads.is_empty() {
            return;
        }
        let (master, read, place, version, key) = self.log_reads.swap_remove(which % self.log_reads.len());
        let record = &self.log[place.offset as usize];
        assert_eq!(record.version, version, "the place names another version");
        let change = record.change.as_ref().expect("the place of an EPOCH");
        let value = value_in(change, &key).flatten().expect("the place names another key");
        let result = if fails { Err(NOT_READ.to_owned()) } else { Ok(value) };
        let event = Event::LogRead { read, result };
        if master == self.active {
            self.step(event);
        } else {
            // It has handed over since, with nothing in flight: nobody waits for this any more.
            let mut effects = Vec::new();
            self.masters[master].step(self.now, event, &mut effects);
            assert!(effects.is_empty(), "{effects:?} of a standby");
        }
    }

    /// Lets the master do one chore, if there is one.
    fn chore(&mut self) -> bool {
        let has_chores = self.masters[self.active].has_chores();
        if has_chores {
            self.step(Event::Chore);
        }
        has_chores
    }

    fn connect(&mut self, node: usize) {
        self.lose(node);
        if self.nodes[node].is_let_go {
            return;
        }
        let id = LinkId(self.next_link);
        self.next_link += 1;
        self.nodes[node].slave.step(slave::Event::LinkUp { link: id }, &mut Vec::new());
        self.nodes[node].link = Some(id);
        let mut link = Link { node, ..Link::default() };
        link.to_slave.push_back(ToSlave::Announce(reign_of(self.reign), self.reign.seq));
        self.links.insert(id, link);
    }

    /// A slave is drained: every key of which it has a copy has all its copies on others.
    fn let_go(&mut self, link: LinkId) {
        let node = self.links[&link].node;
        let others: Vec<LinkId> = self.links.keys().copied().filter(|other| *other != link).collect();
        let master = &self.masters[self.active];
        let (keys, wanted) = ((0..KEYS).map(key_of), master.copies_wanted());
        let slot = master.slot_of(link).expect("it is active");
        let entries = keys.filter_map(|key| Some((master.directory().get(&key)?, key)));
        let entries: Vec<_> = entries.filter(|(entry, _)| entry.holders.contains(slot)).collect();
        for (entry, key) in entries {
            let is_held = |other: &LinkId| {
                let slot = self.masters[self.active].slot_of(*other);
                slot.is_some_and(|slot| entry.holders.contains(slot))
            };
            let holders = others.iter().filter(|other| is_held(other)).count();
            assert!(
                holders >= wanted,
                "{key:?} has {holders} copies of {wanted} when slave {node} is let go"
            );
        }
        self.let_go += 1;
        self.nodes[node].is_let_go = true;
        self.lose(node);
    }

    fn lose(&mut self, node: usize) {
        let Some(id) = self.nodes[node].link.take() else { return };
        self.nodes[node].slave.step(slave::Event::LinkDown { link: id }, &mut Vec::new());
        let link = self.links.remove(&id).expect("the node's link");
        if link.count.is_some() {
            self.step(Event::SlaveLost { link: id });
        }
    }

    fn deliver_to_slave(&mut self, id: LinkId, count: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let count = count.min(link.to_slave.len());
        let batch: Vec<ToSlave> = link.to_slave.drain(..count).collect();
        let mut effects = Vec::new();
        let slave = &mut self.nodes[link.node].slave;
        hand_in(slave, id, batch, &mut effects);
        link.to_master.extend(effects);
    }

    fn deliver_zombie(&mut self, id: LinkId, count: usize) {
        let Some(link) = self.zombies.get_mut(&id) else { return };
        let count = count.min(link.to_slave.len());
        let batch: Vec<ToSlave> = link.to_slave.drain(..count).collect();
        let mut effects = Vec::new();
        hand_in(&mut self.nodes[link.node].slave, id, batch, &mut effects);
        if link.to_slave.is_empty() {
            self.zombies.remove(&id);
        }
    }

    fn deliver_to_master(&mut self, id: LinkId, count: usize) {
        for _ in 0..count {
            let Some(link) = self.links.get_mut(&id) else { return };
            let Some(effect) = link.to_master.pop_front() else { return };
            let node = link.node;
            let event = match (effect, link.count.as_mut()) {
                (slave::Effect::Enlisted { reign, seen, room_bytes, .. }, None) => {
                    assert_eq!(reign, reign_of(self.reign), "a link belongs to one reign");
                    let testimony = seen.map(|seen| self.masters[self.active].reigns().testimony(&seen));
                    assert!(matches!(testimony, None | Some(Testimony::Agrees)), "{seen:?} is {testimony:?}");
                    Event::SlaveJoined { id: slave_id(node), link: id, room_bytes }
                }
                (slave::Effect::Full { number, .. }, Some(count)) => {
                    Event::Full { link: id, before: count.writes_before(number) }
                }
                (slave::Effect::Ack { through, room_bytes, .. }, Some(count)) => {
                    let writes = count.ack(through).expect("a slave acknowledges what it was sent");
                    Event::Acked { link: id, writes, room_bytes }
                }
                (slave::Effect::Value { tag, version, reign, value, .. }, Some(_)) => {
                    Event::Value { link: id, read: ReadId::from_tag(tag), version, reign, value }
                }
                (slave::Effect::Missing { tag, .. }, Some(_)) => {
                    Event::Missing { link: id, read: ReadId::from_tag(tag) }
                }
                (slave::Effect::Holdings { entries, last, .. }, Some(_)) => {
                    Event::Holdings { link: id, entries, last }
                }
                (other, count) => panic!("{other:?} with {count:?}"),
            };
            self.step(event);
        }
    }

    fn begin_reign(&mut self) {
        let epoch = self.reign.epoch.next();
        self.reign = Version::new(epoch.0, self.log.len() as u64 + 1);
        self.log.push(Record { version: self.reign, change: None, expires: None });
        let (wall, uptime) = (self.time(), self.now);
        self.step(Event::Clock { wall, uptime });
        self.refusals = 0;
        let version = self.reign;
        let id = reign_of(version).id;
        self.step(Event::ReignBegan { version, id });
        let durable = self.config.durable;
        let record = ReignRecord { reign: reign_of(version), first: version.seq, durable };
        self.masters[1 - self.active].replay_reign(record);
    }

    /// The links of the reign that ends live on as zombies; the slaves connect to the new master.
    fn change_masters(&mut self) {
        for (id, mut link) in std::mem::take(&mut self.links) {
            self.nodes[link.node].link = None;
            link.count = None;
            self.zombies.insert(id, link);
        }
        self.active = 1 - self.active;
        // The next reign knows of nobody that was removed.
        self.nodes.iter_mut().for_each(|node| node.is_let_go = false);
        self.begin_reign();
        for node in 0..self.nodes.len() {
            self.connect(node);
        }
    }

    fn crash(&mut self, logged: usize) {
        // Some of the records that were handed to the disk are in the log although this was not reported.
        for _ in 0..logged {
            let Some(Append { change, expires, after, .. }) = self.appends.pop_front() else { break };
            if after.is_some_and(|after| after < self.refusals) {
                self.refusals += 1;
            } else {
                self.append(change, expires);
            }
        }
        self.appends.clear();
        // Their outcomes stay unknown, as those of clients.
        self.expiring.clear();
        self.log_reads.retain(|(master, ..)| *master != self.active);
        self.tags.clear();
        // Writes stay unknown in the history; the results of reads were never delivered.
        self.asked.clear();
        let mut newborn = Master::new(self.config);
        for (index, record) in self.log.iter().enumerate() {
            let version = record.version;
            let Some(change) = &record.change else {
                let (reign, durable) = (reign_of(version), self.config.durable);
                newborn.replay_reign(ReignRecord { reign, first: version.seq, durable });
                continue;
            };
            let place = Place { offset: index as u64, ..Place::default() };
            replay(&mut newborn, change, (version, place, record.expires));
        }
        self.masters[self.active] = newborn;
        self.change_masters();
    }

    fn hand_over(&mut self) {
        if self.masters[self.active].in_flight() > 0 {
            return;
        }
        self.step(Event::ReignEnded);
        self.change_masters();
    }

    /// Lets everything under way arrive, without new faults.
    pub(crate) fn settle(&mut self) {
        loop {
            let mut busy = !self.appends.is_empty() || !self.log_reads.is_empty();
            busy |= self.chore();
            while !self.appends.is_empty() {
                self.log_answers(false);
            }
            while !self.log_reads.is_empty() {
                self.log_read(0, false);
            }
            let ids: Vec<LinkId> = self.links.keys().copied().collect();
            for id in ids {
                busy |=
                    self.links.get(&id).is_some_and(|l| !l.to_slave.is_empty() || !l.to_master.is_empty());
                self.deliver_to_slave(id, usize::MAX);
                self.deliver_to_master(id, usize::MAX);
            }
            if !busy {
                break;
            }
        }
        self.check_at_rest();
    }

    /// The version of `key` that the slave at the other end of `link` holds.
    fn held(&mut self, link: LinkId, key: &Bytes) -> Option<(Version, Bytes)> {
        let mut effects = Vec::new();
        let (version, reign) = (Version::default(), ReignId(0));
        let read = slave::Event::Read { link, tag: 0, version, reign, key: key.clone() };
        let node = self.links[&link].node;
        self.nodes[node].slave.step(read, &mut effects);
        match effects.pop() {
            Some(slave::Effect::Value { version, value, .. }) => Some((version, value)),
            Some(slave::Effect::Missing { held: None, .. }) => None,
            // Its place in the reign is still on its way to it.
            None | Some(slave::Effect::Outdated { .. }) => None,
            other => panic!("{other:?}"),
        }
    }

    /// With nothing under way, every request has an answer, and the directory agrees with the slaves on who holds what.
    fn check_at_rest(&mut self) {
        let in_flight = self.masters[self.active].in_flight();
        assert_eq!(
            in_flight,
            0,
            "requests hang: {:?}",
            self.asked.values().map(|a| &a.command).collect::<Vec<_>>()
        );
        assert!(self.asked.is_empty(), "requests without an answer");
        let mut state: BTreeMap<Bytes, (Version, Bytes)> = BTreeMap::new();
        for record in &self.log {
            let Some(change) = &record.change else { continue };
            for (key, value) in change.pairs() {
                state.insert(key.clone(), (record.version, value.clone()));
            }
            change.deleted().iter().for_each(|key| drop(state.remove(key)));
        }
        for master in &self.masters {
            let named: BTreeMap<&[u8], Version> =
                master.directory().iter().map(|(k, e)| (k, e.version)).collect();
            let logged: BTreeMap<&[u8], Version> = state.iter().map(|(k, (v, _))| (&k[..], *v)).collect();
            assert_eq!(named, logged, "a directory and the log differ");
        }
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        for id in ids {
            let slot = self.masters[self.active].slot_of(id).expect("everyone has joined");
            let (mut bytes, mut copies) = (0, 0);
            for number in 0..KEYS {
                let key = key_of(number);
                let entry = self.masters[self.active].directory().get(&key);
                let named = entry.filter(|entry| entry.holders.contains(slot)).map(|entry| entry.version);
                let held = self.held(id, &key);
                let version = held.as_ref().map(|(version, _)| *version);
                assert_eq!(named, version, "{key:?} at {slot:?}: the directory and the slave differ");
                copies += u64::from(named.is_some());
                if let Some((version, value)) = held {
                    assert_eq!(state.get(&key), Some(&(version, value.clone())));
                    bytes += (key.len() + value.len()) as u64 + ENTRY_OVERHEAD_BYTES;
                }
            }
            let node = &self.nodes[self.links[&id].node];
            assert_eq!(node.slave.memory_bytes(), bytes, "memory is miscounted");
            assert!(bytes <= node.memory_max.unwrap_or(u64::MAX));
            let counted = self.masters[self.active].slaves().find(|(_, s, ..)| *s == slot).expect("active").2;
            assert_eq!(counted, copies, "copies are miscounted at {slot:?}");
            assert!(self.masters[self.active].is_idle(id), "{slot:?} owes acknowledgements");
        }
    }

    /// Without another write, each key gets all its copies, if all slaves have room.
    fn check_repaired(&mut self) {
        let has_limits = self.nodes.iter().any(|node| node.memory_max.is_some());
        if self.config.repair_bytes_per_second == 0 || has_limits {
            return;
        }
        let count = Lacking { without_copy: 0, under_replicated: 1 };
        for _ in 0..4 {
            // Long enough for everything that is waited for.
            self.now = self.now.plus(11_000);
            self.masters[self.active].note_count(self.now, self.now, count);
            self.step(Event::Tick);
            self.settle();
        }
        let master = &self.masters[self.active];
        let wanted = master.copies_wanted();
        assert!(wanted >= self.config.copies.of(master.slave_count() - master.draining().count()).max(1));
        let live: Vec<_> = master.slaves().map(|(_, slot, ..)| slot).collect();
        for (key, entry) in master.directory().iter() {
            let copies = live.iter().filter(|slot| entry.holders.contains(**slot)).count();
            assert!(copies >= wanted, "{key:?} has {copies} copies of {wanted}");
        }
        let (left, state) = (master.keys_under_replicated(None), master.repair_state());
        assert_eq!((left, state), (0, RepairState::Resting));
        self.repaired = master.repaired().0;
        self.check_balanced(wanted);
    }

    /// After a calm time each key has exactly its copies, and with placement by hash at the slaves that a write would go to.
    fn check_balanced(&mut self, wanted: usize) {
        for _ in 0..12 {
            self.now = self.now.plus(301_000);
            self.step(Event::Tick);
            self.settle();
        }
        let holders = |world: &World, key: &Bytes| {
            let master = &world.masters[world.active];
            let live = master.slaves().map(|(_, slot, ..)| slot);
            let entry = master.directory().get(key)?;
            Some(live.filter(|slot| entry.holders.contains(*slot)).collect::<Vec<_>>())
        };
        let master = &self.masters[self.active];
        assert_eq!((master.keys_misplaced(), master.rebalance_state()), (0, RebalanceState::Resting));
        self.moved = master.moved();
        for key in (0..KEYS).map(key_of) {
            let Some(balanced) = holders(self, &key) else { continue };
            assert_eq!(balanced.len(), wanted, "{key:?}");
            if self.config.placement == Placement::Hash {
                let value = self.fresh_value("balanced");
                self.ask(0, Command::Put { key: key.clone(), value });
                self.settle();
                assert_eq!(holders(self, &key), Some(balanced), "{key:?}");
            }
        }
    }

    /// Reads all keys at the end, and checks that one order explains all answers.
    pub(crate) fn finish(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].link.is_none() {
                self.connect(node);
            }
        }
        self.settle();
        for key in 0..KEYS {
            self.ask(0, Command::Get { key: key_of(key) });
            self.settle();
        }
        self.check_repaired();
        if let Err(violation) = check(self.history.operations()) {
            panic!("{violation}");
        }
    }
}

/// Whether the later requests of its session wait for it.
fn makes_line(command: &Command) -> bool {
    is_update(command) || matches!(command, Command::Keys { .. } | Command::RandomKey)
}

fn looks_at_keys(command: &Command) -> bool {
    matches!(command, Command::Scan { .. } | Command::Keys { .. } | Command::RandomKey)
}

fn is_update(command: &Command) -> bool {
    matches!(
        command,
        Command::Update { .. }
            | Command::Swap { .. }
            | Command::Take { .. }
            | Command::Renew { .. }
            | Command::Examine { .. }
            | Command::Compare { .. }
            | Command::GetVersioned { .. }
            | Command::PutManyIfNone { .. }
            | Command::Transact { .. }
    )
}

/// The same for a key of that version, with a comparison of which the outcome is the same.
fn without_version(command: &Command, version: Option<Version>) -> Command {
    let mut command = command.clone();
    if let Command::Compare { change, .. } = &mut command {
        if let Comparison::Version(wanted) = change.when {
            let no_value = Bytes::from_static(b"no value of any key");
            let holds = wanted == version;
            change.when = if holds { Comparison::Different(no_value) } else { Comparison::Equal(no_value) };
        }
    }
    command
}

/// Whether an update leaves the value as it is, if it does not delete it.
fn is_renewal(command: &Command) -> bool {
    matches!(command, Command::Renew { .. } | Command::Update { update: Update::Expire { .. }, .. })
}

/// When a value expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Never,
    At(UnixMillis),
    /// So many milliseconds after it was decided.
    After(u64),
}

/// What an update writes, until when, and what it answers, if its keys hold that and it was asked at `time`: written down once
/// more, and as simply as can be.
fn outcome_of(command: &Command, held: &[Held], time: UnixMillis) -> (Option<Change>, Ends, Reply) {
    let present = held[0].as_ref().and_then(|(_, expires)| *expires);
    let same = present.map_or(Ends::Never, Ends::At);
    let ends = |life: Lifetime| match life {
        Lifetime::Endless => Ends::Never,
        Lifetime::Same => same,
        Lifetime::For(ms) => Ends::After(ms),
        Lifetime::Until(time) => Ends::At(time),
    };
    let held: Vec<Option<Bytes>> =
        held.iter().map(|held| held.as_ref().map(|(value, _)| value.clone())).collect();
    let held = &held[..];
    let value = || held[0].clone().unwrap_or_default().to_vec();
    let life = match command {
        Command::Swap { life, .. } | Command::Renew { life, .. } => *life,
        Command::Compare { change, .. } => match &change.makes {
            Consequence::Set { life, .. } => *life,
            Consequence::Delete => Lifetime::Endless,
        },
        Command::Update { update: Update::Set { life, .. } | Update::Expire { life, .. }, .. } => *life,
        Command::Update { .. } => Lifetime::Same,
        _ => Lifetime::Endless,
    };
    let put_until = |key: &Bytes, value: Vec<u8>, ends: Ends, reply: Reply| {
        let change = match ends {
            Ends::At(end) if end <= time && life != Lifetime::Same => {
                Change::Delete([key.clone()].into_iter().collect())
            }
            _ => Change::Put([(key.clone(), Bytes::from(value))].into_iter().collect()),
        };
        (Some(change), ends, reply)
    };
    let keep = |reply: Reply| (None, Ends::Never, reply);
    let old = || held[0].clone().map_or(Reply::NotFound, Reply::Value);
    match command {
        Command::Renew { .. } if held[0].is_none() || life == Lifetime::Same => return keep(old()),
        Command::Renew { .. } if life == Lifetime::Endless && present.is_none() => return keep(old()),
        Command::Renew { key, .. } => return put_until(key, value(), ends(life), old()),
        Command::Update { key, update: Update::Expire { when, .. } } => {
            let fits = |new: UnixMillis| {
                (!when.if_none || present.is_none())
                    && (!when.if_later || present.is_some_and(|present| new > present))
                    && (!when.if_earlier || present.is_none_or(|present| new < present))
            };
            let may = held[0].is_some()
                && match ends(life) {
                    Ends::Never => present.is_some(),
                    Ends::At(end) => fits(end),
                    // Approximately.
                    Ends::After(ms) => fits(time.plus(ms)),
                };
            return if may {
                put_until(key, value(), ends(life), Reply::Count(1))
            } else {
                keep(Reply::Count(0))
            };
        }
        _ => {}
    }
    let (change, reply) = written_by(command, held);
    match change {
        Some(Change::Put(pairs)) if pairs.len() == 1 && !matches!(command, Command::PutManyIfNone { .. }) => {
            let (key, value) = &pairs[0];
            put_until(key, value.to_vec(), ends(life), reply)
        }
        change => (change, Ends::Never, reply),
    }
}

/// The same without regard to time.
fn written_by(command: &Command, held: &[Option<Bytes>]) -> (Option<Change>, Reply) {
    let put = |key: &Bytes, value: Vec<u8>| {
        Some(Change::Put([(key.clone(), Bytes::from(value))].into_iter().collect()))
    };
    let holds = |when: Condition| match when {
        Condition::Always => true,
        Condition::IfAbsent => held[0].is_none(),
        Condition::IfPresent => held[0].is_some(),
    };
    let old = || held[0].clone().map_or(Reply::NotFound, Reply::Value);
    match command {
        Command::Swap { key, value, when, .. } => {
            (if holds(*when) { put(key, value.to_vec()) } else { None }, old())
        }
        Command::Take { key } => {
            let change = Change::Delete([key.clone()].into_iter().collect());
            (held[0].as_ref().map(|_| change), old())
        }
        Command::PutManyIfNone { .. } if held.iter().any(Option::is_some) => (None, Reply::Count(0)),
        Command::PutManyIfNone { pairs } => {
            // A key that is named twice takes its last value.
            let mut distinct: Vec<(Bytes, Bytes)> = Vec::new();
            for (key, value) in pairs {
                match distinct.iter_mut().find(|(k, _)| k == key) {
                    Some((_, earlier)) => *earlier = value.clone(),
                    None => distinct.push((key.clone(), value.clone())),
                }
            }
            (Some(Change::Put(distinct.into_iter().collect())), Reply::Count(1))
        }
        Command::Update { key, update } => {
            let value = held[0].clone().unwrap_or_default().to_vec();
            match update {
                Update::Set { value, when, .. } if holds(*when) => (put(key, value.to_vec()), Reply::Done),
                Update::Set { .. } => (None, Reply::NotFound),
                Update::Expire { .. } => panic!("it writes no other value"),
                Update::Append { tail } => {
                    let value = [value, tail.to_vec()].concat();
                    let length = value.len() as u64;
                    (put(key, value), Reply::Count(length))
                }
                Update::SetRange { bytes, .. } if bytes.is_empty() => {
                    (None, Reply::Count(value.len() as u64))
                }
                Update::SetRange { offset, bytes } => {
                    let (mut value, end) = (value, *offset as usize + bytes.len());
                    value.resize(end.max(value.len()), 0);
                    value.splice(*offset as usize..end, bytes.iter().copied());
                    let length = value.len() as u64;
                    (put(key, value), Reply::Count(length))
                }
                Update::Add { number } => {
                    let text = if held[0].is_some() { value } else { b"0".to_vec() };
                    match std::str::from_utf8(&text).ok().and_then(|text| text.parse::<i64>().ok()) {
                        Some(present) => {
                            let sum = present + number;
                            (put(key, sum.to_string().into_bytes()), Reply::Integer(sum))
                        }
                        None => {
                            let why = "value is not an integer or out of range";
                            (None, Reply::error(ErrorWord::Bad, why))
                        }
                    }
                }
            }
        }
        Command::Compare { key, change } => compared_by(key, change, held[0].as_ref()),
        Command::Examine { .. } => (None, encoding_of(held[0].as_ref())),
        other => panic!("{other:?} is no update"),
    }
}

/// The same of a change under a condition on the value.
fn compared_by(key: &Bytes, change: &ComparedChange, held: Option<&Bytes>) -> (Option<Change>, Reply) {
    let holds = match &change.when {
        Comparison::Equal(compared) => held == Some(compared),
        Comparison::Different(compared) => held != Some(compared),
        Comparison::Version(_) => panic!("it is not known here"),
    };
    match &change.makes {
        Consequence::Set { value, answers_old, .. } => {
            let pair = [(key.clone(), value.clone())];
            let plain = if holds { Reply::Done } else { Reply::NotFound };
            let old = held.cloned().map_or(Reply::NotFound, Reply::Value);
            (holds.then(|| Change::Put(pair.into_iter().collect())), if *answers_old { old } else { plain })
        }
        Consequence::Delete if holds && held.is_some() => {
            (Some(Change::Delete([key.clone()].into_iter().collect())), Reply::Count(1))
        }
        Consequence::Delete => (None, Reply::Count(0)),
    }
}

/// What OBJECT ENCODING says of a key that holds that.
fn encoding_of(held: Option<&Bytes>) -> Reply {
    let Some(value) = held else { return Reply::NotFound };
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
    Reply::Value(Bytes::from(match value.len() {
        _ if number.is_some_and(|number| number.to_string().as_bytes() == value) => "int",
        0..45 => "embstr",
        _ => "raw",
    }))
}

fn nth(links: &BTreeMap<LinkId, Link>, which: u8) -> Option<LinkId> {
    links.keys().nth(usize::from(which) % links.len().max(1)).copied()
}

/// The identity of the reign of an EPOCH record, made from its place: no two have the same.
fn reign_of(version: Version) -> Reign {
    Reign { epoch: version.epoch, id: ReignId(version.seq.0) }
}

fn slave_id(node: usize) -> SlaveId {
    SlaveId::new(format!("slave-{node}")).unwrap()
}

/// The place of a value in the record there.
fn of_value(record: Place, value: &Bytes) -> Place {
    Place { bytes: value.len() as u32, ..record }
}

fn replay(
    master: &mut Master,
    change: &Change,
    (version, place, expires): (Version, Place, Option<UnixMillis>),
) {
    for (at, (key, value)) in change.pairs().iter().enumerate() {
        master.replay_put(key, version, of_value(place, value), change.expires(at, expires));
    }
    change.deleted().iter().for_each(|key| master.replay_delete(key));
}

fn hand_in(slave: &mut Slave, link: LinkId, batch: Vec<ToSlave>, effects: &mut Vec<slave::Effect>) {
    for message in batch {
        let event = match message {
            ToSlave::Announce(reign, seq) => slave::Event::Announced { link, reign, seq, durable: true },
            ToSlave::Admitted(reign) => slave::Event::Admitted { link, reign },
            ToSlave::Write { version, reign, key, value } => {
                slave::Event::Write { link, version, reign, key, value }
            }
            ToSlave::Read { tag, version, reign, key } => {
                slave::Event::Read { link, tag, version, reign, key }
            }
            ToSlave::Drop { version, reign, key } => slave::Event::Drop { link, version, reign, key },
            ToSlave::HoldingsNext => slave::Event::HoldingsNext { link },
            ToSlave::Ping => slave::Event::Ping { link },
        };
        slave.step(event, effects);
    }
    slave.step(slave::Event::BatchEnded { link }, effects);
}
