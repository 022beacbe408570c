//! Changes of one key that depend on what it holds, as rules: from what is there to what is to be there, and the answer.
//!
//! Knows nothing of the log or of slaves. The master machine calls it at the change's place in the log
//! (`machine/master/updates.rs`), and the log gets the result, so a replay never applies a change twice.

use super::reply::{ErrorWord, Reply};
use super::{Command, ComparedChange, Consequence, KeyTrait, Lifetime, ScriptCall, Transaction, Transfer};
use crate::ids::{UnixMillis, Version};
use crate::integer::parse_integer;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// When a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// In any case.
    Always,
    /// If the key is not there: `NX`.
    IfAbsent,
    /// If the key is there: `XX`.
    IfPresent,
}

impl Condition {
    fn holds(self, is_there: bool) -> bool {
        match self {
            Condition::Always => true,
            Condition::IfAbsent => !is_there,
            Condition::IfPresent => is_there,
        }
    }
}

/// Which times of expiry are changed. All of these must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryCondition {
    /// The key does not expire: `NX`.
    pub if_none: bool,
    /// The key expires: `XX`.
    pub if_some: bool,
    /// It expires earlier than it is to: `GT`. A key that never expires does not.
    pub if_later: bool,
    /// It expires later than it is to, or never: `LT`.
    pub if_earlier: bool,
}

impl ExpiryCondition {
    fn holds(self, present: Option<UnixMillis>, new: UnixMillis) -> bool {
        (!self.if_none || present.is_none())
            && (!self.if_some || present.is_some())
            && (!self.if_later || present.is_some_and(|present| new > present))
            && (!self.if_earlier || present.is_none_or(|present| new < present))
    }
}

/// What a change is decided by beside the value.
#[derive(Clone, Copy, Debug)]
pub struct DecidedBy {
    /// The time.
    pub time: UnixMillis,
    /// When the key expires, if it does. It has not.
    pub expires: Option<UnixMillis>,
    /// Of which version it is, if that matters.
    pub version: Option<Version>,
    /// No value is longer, in bytes.
    pub value_max: usize,
}

/// A change of one key that depends on what it holds, and that is answered shortly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Update {
    /// Writes the value under a condition. Answer: `Done`, or `NotFound` if nothing was written.
    Set {
        /// Up to `--max-value` bytes, any of them.
        value: Bytes,
        /// When it is written.
        when: Condition,
        /// How long the key lives then.
        life: Lifetime,
    },
    /// Changes when the key expires. Answer: `Count`, 1 if that was done and 0 if not.
    Expire {
        /// How long it lives from now on.
        life: Lifetime,
        /// When that is changed.
        when: ExpiryCondition,
    },
    /// Adds to the end of the value; a key that is not there holds nothing. Answer: `Count`, how many bytes there are then.
    Append {
        /// What is added.
        tail: Bytes,
    },
    /// Overwrites a part of the value, which is padded with zero bytes up to `offset` if it is shorter. Answer: as `Append`.
    SetRange {
        /// From which byte on.
        offset: u64,
        /// The new bytes. If there are none, nothing is written.
        bytes: Bytes,
    },
    /// Adds to the value, which is a decimal number; a key that is not there holds 0. Answer: `Integer`, the sum.
    Add {
        /// What is added; may be negative.
        number: i64,
    },
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownValue {
    /// It is not there.
    Missing,
    /// It holds this.
    Value(Bytes),
    /// It holds so many bytes, which are not at hand.
    Bytes(u64),
}

impl KnownValue {
    fn is_there(&self) -> bool {
        *self != KnownValue::Missing
    }

    /// How many bytes it holds.
    pub(crate) fn length(&self) -> u64 {
        match self {
            KnownValue::Missing => 0,
            KnownValue::Value(value) => value.len() as u64,
            KnownValue::Bytes(length) => *length,
        }
    }
}

/// What is to become of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// That depends on the value, which is not at hand.
    NeedsValue,
    /// Nothing; and the answer.
    Keep(Reply),
    /// It gets this value, and expires then; and the answer once that is safe.
    Put(Bytes, Option<UnixMillis>, Reply),
    /// It is removed; and the answer once that is safe.
    Delete(Reply),
}

/// No integer of 64 bits has so many digits.
const INTEGER_MAX: u64 = 21;

const NOT_AN_INTEGER: &str = "value is not an integer or out of range";
const OVERFLOW: &str = "increment or decrement would overflow";
const TOO_LONG: &str = "string exceeds maximum allowed size (proto-max-bulk-len)";

fn refused(why: &str) -> Decision {
    Decision::Keep(Reply::error(ErrorWord::Bad, why))
}

impl Update {
    /// The bytes that it brings.
    pub fn operand(&self) -> Option<&Bytes> {
        match self {
            Update::Set { value, .. } => Some(value),
            Update::Append { tail } => Some(tail),
            Update::SetRange { bytes, .. } => Some(bytes),
            Update::Add { .. } | Update::Expire { .. } => None,
        }
    }

    /// The names of the RESP protocol under which it is asked.
    pub(crate) fn asked_as(&self) -> &'static [&'static str] {
        match self {
            Update::Set { when: Condition::IfAbsent, .. } => &["set", "setnx"],
            Update::Set { when: Condition::Always, .. } => &["psetex", "set", "setex"],
            Update::Set { when: Condition::IfPresent, .. } => &["set"],
            Update::Expire { life: Lifetime::Endless, .. } => &["persist"],
            Update::Expire { .. } => &["expire", "expireat", "pexpire", "pexpireat"],
            Update::Append { .. } => &["append"],
            Update::SetRange { .. } => &["setrange"],
            Update::Add { .. } => &["decr", "decrby", "incr", "incrby"],
        }
    }

    /// What becomes of a key of which that is known.
    pub fn decide(&self, known: &KnownValue, setting: &DecidedBy) -> Decision {
        let value_max = setting.value_max;
        match self {
            Update::Set { value, when, life } if when.holds(known.is_there()) => {
                put(value.clone(), *life, Reply::Done, setting)
            }
            Update::Set { .. } => Decision::Keep(Reply::NotFound),
            Update::Expire { life, when } => expire(*life, *when, known, setting),
            Update::Append { tail } => match known {
                KnownValue::Missing => written_at(&Bytes::new(), 0, tail, setting),
                KnownValue::Value(value) => written_at(value, value.len() as u64, tail, setting),
                KnownValue::Bytes(length) if is_too_long(*length, tail, value_max) => refused(TOO_LONG),
                KnownValue::Bytes(_) => Decision::NeedsValue,
            },
            Update::SetRange { bytes, .. } if bytes.is_empty() => {
                Decision::Keep(Reply::Count(known.length()))
            }
            Update::SetRange { offset, bytes } => match known {
                KnownValue::Missing => written_at(&Bytes::new(), *offset, bytes, setting),
                KnownValue::Value(value) => written_at(value, *offset, bytes, setting),
                KnownValue::Bytes(length)
                    if *length > value_max as u64 || is_too_long(*offset, bytes, value_max) =>
                {
                    refused(TOO_LONG)
                }
                KnownValue::Bytes(_) => Decision::NeedsValue,
            },
            Update::Add { number } => match known {
                KnownValue::Missing => sum(0, *number, setting),
                KnownValue::Value(value) => match parse_integer(value) {
                    Some(present) => sum(present, *number, setting),
                    None => refused(NOT_AN_INTEGER),
                },
                // No number is so long.
                KnownValue::Bytes(INTEGER_MAX..) => refused(NOT_AN_INTEGER),
                KnownValue::Bytes(_) => Decision::NeedsValue,
            },
        }
    }
}

/// Whether `bytes` end behind the longest value when they are written at `offset`.
fn is_too_long(offset: u64, bytes: &Bytes, value_max: usize) -> bool {
    offset.saturating_add(bytes.len() as u64) > value_max as u64
}

/// The key gets this value, for that long.
fn put(value: Bytes, life: Lifetime, reply: Reply, setting: &DecidedBy) -> Decision {
    match life.ends(setting.time, setting.expires) {
        // What is there lives to the end of its last millisecond.
        Some(end) if end <= setting.time && life != Lifetime::Same => Decision::Delete(reply),
        end => Decision::Put(value, end, reply),
    }
}

/// The key lives so long from now on.
fn expire(life: Lifetime, when: ExpiryCondition, known: &KnownValue, setting: &DecidedBy) -> Decision {
    let end = life.ends(setting.time, setting.expires);
    let may = match end {
        _ if !known.is_there() => false,
        // There is nothing to be lifted.
        None => setting.expires.is_some(),
        Some(end) => when.holds(setting.expires, end),
    };
    if !may {
        return Decision::Keep(Reply::Count(0));
    }
    match known {
        _ if end.is_some_and(|end| end <= setting.time) => Decision::Delete(Reply::Count(1)),
        KnownValue::Value(value) => Decision::Put(value.clone(), end, Reply::Count(1)),
        KnownValue::Missing | KnownValue::Bytes(_) => Decision::NeedsValue,
    }
}

fn sum(present: i64, number: i64, setting: &DecidedBy) -> Decision {
    match present.checked_add(number) {
        Some(sum) => put(Bytes::from(sum.to_string()), Lifetime::Same, Reply::Integer(sum), setting),
        None => refused(OVERFLOW),
    }
}

/// `bytes` written over `value` from `offset` on.
fn written_at(value: &Bytes, offset: u64, bytes: &Bytes, setting: &DecidedBy) -> Decision {
    let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(bytes.len()));
    let fits = |end: &usize| (*end).max(value.len()) <= setting.value_max;
    let Some(end) = end.filter(fits) else { return refused(TOO_LONG) };
    let offset = end - bytes.len();
    let mut written = BytesMut::with_capacity(end.max(value.len()));
    written.extend_from_slice(value);
    written.resize(end.max(value.len()), 0);
    written[offset..end].copy_from_slice(bytes);
    let length = written.len() as u64;
    put(written.freeze(), Lifetime::Same, Reply::Count(length), setting)
}

/// A command that is decided by what its keys hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule<'a> {
    /// Of one key.
    One(&'a Bytes, OneKey<'a>),
    /// All of them are written if none is there.
    IfNone(&'a [(Bytes, Bytes)]),
    /// Of several, in one step.
    Together(&'a Transaction),
    /// As a script says.
    Script(&'a ScriptCall),
    /// What the first key holds goes to the second one.
    Transfer(&'a [Bytes; 2], Transfer),
}

/// What such a command does to one key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OneKey<'a> {
    Update(&'a Update),
    Swap(&'a Bytes, Condition, Lifetime),
    Take,
    Renew(Lifetime),
    Compared(&'a ComparedChange),
    /// Tells what it holds, and of which version that is.
    Versioned,
    /// Of a key of so many bytes.
    Examine(KeyTrait, usize),
}

impl<'a> Rule<'a> {
    /// The rule of a command; `None` for one that is not decided so.
    pub(crate) fn of(command: &'a Command) -> Option<Self> {
        match command {
            Command::Update { key, update } => Some(Rule::One(key, OneKey::Update(update))),
            Command::Swap { key, value, when, life } => {
                Some(Rule::One(key, OneKey::Swap(value, *when, *life)))
            }
            Command::Take { key } => Some(Rule::One(key, OneKey::Take)),
            Command::Renew { key, life } => Some(Rule::One(key, OneKey::Renew(*life))),
            Command::Compare { key, change } => Some(Rule::One(key, OneKey::Compared(change))),
            Command::GetVersioned { key } => Some(Rule::One(key, OneKey::Versioned)),
            Command::Examine { key, what } => Some(Rule::One(key, OneKey::Examine(*what, key.len()))),
            Command::PutManyIfNone { pairs } => Some(Rule::IfNone(pairs)),
            Command::Transact { transaction } => Some(Rule::Together(transaction)),
            Command::Evaluate { call } => Some(Rule::Script(call)),
            Command::Transfer { keys, transfer } => Some(Rule::Transfer(keys, *transfer)),
            Command::Get { .. }
            | Command::GetMany { .. }
            | Command::Put { .. }
            | Command::PutMany { .. }
            | Command::Delete { .. }
            | Command::Exists { .. }
            | Command::KeyCount
            | Command::Status
            | Command::Failover
            | Command::RemoveSlave { .. }
            | Command::ChangeMembers { .. }
            | Command::ValueLength { .. }
            | Command::TimeToLive { .. }
            | Command::Scan { .. }
            | Command::Keys { .. }
            | Command::RandomKey
            | Command::DeleteAll
            | Command::Watch { .. }
            | Command::ScriptCache { .. }
            | Command::Time => None,
        }
    }
}

impl OneKey<'_> {
    /// What becomes of the key of which that is known.
    pub(crate) fn decide(self, known: &KnownValue, setting: &DecidedBy) -> Decision {
        match self {
            OneKey::Update(update) => update.decide(known, setting),
            OneKey::Swap(value, when, life) => swap(value, when, life, known, setting),
            OneKey::Take => take(known),
            OneKey::Renew(life) => renew(life, known, setting),
            OneKey::Compared(change) => compared(change, known, setting),
            OneKey::Versioned => versioned(known, setting),
            OneKey::Examine(what, key_bytes) => examine(what, key_bytes, known),
        }
    }

    /// Whether it answers what the key held.
    pub(crate) fn answers_value(self) -> bool {
        match self {
            OneKey::Swap(..) | OneKey::Take | OneKey::Renew(_) | OneKey::Versioned => true,
            OneKey::Compared(change) => change.answers_old(),
            OneKey::Update(_) | OneKey::Examine(..) => false,
        }
    }

    /// Whether it must know the version of what the key holds.
    pub(crate) fn needs_version(self) -> bool {
        match self {
            OneKey::Versioned => true,
            OneKey::Compared(change) => change.needs_version(),
            OneKey::Update(_) | OneKey::Swap(..) | OneKey::Take | OneKey::Renew(_) | OneKey::Examine(..) => {
                false
            }
        }
    }

    /// Whether it does the same whatever the key holds.
    pub(crate) fn is_blind(self) -> bool {
        matches!(self, OneKey::Update(Update::Set { when: Condition::Always, life, .. }) if *life != Lifetime::Same)
    }

    /// Where the value ends that `APPEND` or `SETRANGE` leaves, if the key holds so many bytes; 0 for the others.
    fn end(self, present: u64) -> u64 {
        match self {
            OneKey::Update(Update::Append { tail }) => present.saturating_add(tail.len() as u64),
            OneKey::Update(Update::SetRange { offset, bytes }) if !bytes.is_empty() => {
                present.max(offset.saturating_add(bytes.len() as u64))
            }
            OneKey::Update(_)
            | OneKey::Swap(..)
            | OneKey::Take
            | OneKey::Renew(_)
            | OneKey::Compared(_)
            | OneKey::Versioned
            | OneKey::Examine(..) => 0,
        }
    }

    /// How many bytes a value has that it writes without having been brought it, if the key holds so many; 0 if its request brings
    /// all of them, or if it is refused.
    pub(crate) fn made_bytes(self, present: u64, value_max: usize) -> u64 {
        if matches!(self, OneKey::Update(Update::Expire { .. }) | OneKey::Renew(_)) {
            // It writes the value again that is there.
            return present;
        }
        let end = self.end(present);
        if end <= value_max as u64 {
            end
        } else {
            0
        }
    }

    /// How long the value may be that it leaves, if the key holds so many bytes.
    pub(crate) fn longest_after(self, present: u64, value_max: usize) -> u64 {
        let brought = match self {
            OneKey::Update(Update::Set { value, .. }) | OneKey::Swap(value, ..) => value.len(),
            OneKey::Compared(change) => change.value().map_or(0, Bytes::len),
            OneKey::Update(_) | OneKey::Take | OneKey::Renew(_) | OneKey::Versioned | OneKey::Examine(..) => {
                0
            }
        };
        present.max(brought as u64).max(self.end(present).min(value_max as u64))
    }
}

/// The value is replaced under a condition, and the answer is what was there: `Value`, or `NotFound`.
fn swap(value: &Bytes, when: Condition, life: Lifetime, known: &KnownValue, setting: &DecidedBy) -> Decision {
    swap_if(when.holds(known.is_there()), value, life, known, setting)
}

fn swap_if(holds: bool, value: &Bytes, life: Lifetime, known: &KnownValue, setting: &DecidedBy) -> Decision {
    let reply = match known {
        KnownValue::Missing => Reply::NotFound,
        KnownValue::Value(old) => Reply::Value(old.clone()),
        KnownValue::Bytes(_) => return Decision::NeedsValue,
    };
    if holds {
        put(value.clone(), life, reply, setting)
    } else {
        Decision::Keep(reply)
    }
}

/// The key lives so long from now on, and the answer is what it holds: `Value`, or `NotFound`.
fn renew(life: Lifetime, known: &KnownValue, setting: &DecidedBy) -> Decision {
    match known {
        KnownValue::Missing => Decision::Keep(Reply::NotFound),
        KnownValue::Value(value)
            if life == Lifetime::Same || (life == Lifetime::Endless && setting.expires.is_none()) =>
        {
            Decision::Keep(Reply::Value(value.clone()))
        }
        KnownValue::Value(value) => put(value.clone(), life, Reply::Value(value.clone()), setting),
        KnownValue::Bytes(_) => Decision::NeedsValue,
    }
}

/// The key is removed, and the answer is what was there: `Value`, or `NotFound`.
fn take(known: &KnownValue) -> Decision {
    match known {
        KnownValue::Missing => Decision::Keep(Reply::NotFound),
        KnownValue::Value(old) => Decision::Delete(Reply::Value(old.clone())),
        KnownValue::Bytes(_) => Decision::NeedsValue,
    }
}

/// The key is changed under a condition on its value.
fn compared(change: &ComparedChange, known: &KnownValue, setting: &DecidedBy) -> Decision {
    let holds = match known {
        KnownValue::Missing => Some(change.when.holds_for_none()),
        KnownValue::Value(value) => change.when.holds(setting.version, value.len() as u64, Some(value)),
        KnownValue::Bytes(length) => change.when.holds(setting.version, *length, None),
    };
    let Some(holds) = holds else { return Decision::NeedsValue };
    match &change.makes {
        Consequence::Set { value, life, answers_old: true } => swap_if(holds, value, *life, known, setting),
        Consequence::Set { value, life, answers_old: false } if holds => {
            put(value.clone(), *life, Reply::Done, setting)
        }
        Consequence::Set { .. } => Decision::Keep(Reply::NotFound),
        Consequence::Delete if holds && known.is_there() => Decision::Delete(Reply::Count(1)),
        Consequence::Delete => Decision::Keep(Reply::Count(0)),
    }
}

/// Tells what a key holds and its version; nothing and 0.0 if it is not there.
fn versioned(known: &KnownValue, setting: &DecidedBy) -> Decision {
    let told = |value, version: Option<Version>| {
        let version = Bytes::from(version.unwrap_or_default().to_string());
        Decision::Keep(Reply::Values(vec![value, Some(version)]))
    };
    match known {
        KnownValue::Missing => told(None, None),
        KnownValue::Value(value) => told(Some(value.clone()), setting.version),
        KnownValue::Bytes(_) => Decision::NeedsValue,
    }
}

/// Nothing becomes of the key: something is told of it.
fn examine(what: KeyTrait, key_bytes: usize, known: &KnownValue) -> Decision {
    let told = match known {
        KnownValue::Missing => return Decision::Keep(Reply::NotFound),
        KnownValue::Value(value) => what.tell(key_bytes, value.len() as u64, Some(value)),
        KnownValue::Bytes(length) => what.tell(key_bytes, *length, None),
    };
    told.map_or(Decision::NeedsValue, Decision::Keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Comparison;

    const MAX: usize = 10;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn there(text: &'static str) -> KnownValue {
        KnownValue::Value(bytes(text))
    }

    /// A key that does not expire, at 1000.
    const SETTING: DecidedBy =
        DecidedBy { time: UnixMillis(1000), expires: None, version: None, value_max: MAX };

    fn put(text: &'static str, reply: Reply) -> Decision {
        Decision::Put(bytes(text), None, reply)
    }

    #[test]
    fn a_condition_is_decided_by_what_is_there_and_without_its_value() {
        let decide = |when, known: &KnownValue| {
            Update::Set { value: bytes("new"), when, life: Lifetime::Endless }.decide(known, &SETTING)
        };
        let (written, kept) = (put("new", Reply::Done), Decision::Keep(Reply::NotFound));
        for (when, missing, is_there) in [
            (Condition::Always, &written, &written),
            (Condition::IfAbsent, &written, &kept),
            (Condition::IfPresent, &kept, &written),
        ] {
            assert_eq!(&decide(when, &KnownValue::Missing), missing, "{when:?}");
            assert_eq!(&decide(when, &KnownValue::Bytes(3)), is_there, "{when:?}");
            assert_eq!(&decide(when, &there("old")), is_there, "{when:?}");
        }
    }

    #[test]
    fn a_swap_answers_what_was_there_whether_it_writes_or_not() {
        let old = || Reply::Value(bytes("old"));
        let new = bytes("new");
        for (when, known, decision) in [
            (Condition::Always, KnownValue::Missing, put("new", Reply::NotFound)),
            (Condition::Always, there("old"), put("new", old())),
            (Condition::IfAbsent, KnownValue::Missing, put("new", Reply::NotFound)),
            (Condition::IfAbsent, there("old"), Decision::Keep(old())),
            (Condition::IfPresent, KnownValue::Missing, Decision::Keep(Reply::NotFound)),
            (Condition::IfPresent, there("old"), put("new", old())),
            (Condition::IfAbsent, KnownValue::Bytes(3), Decision::NeedsValue),
        ] {
            assert_eq!(swap(&new, when, Lifetime::Endless, &known, &SETTING), decision, "{when:?} {known:?}");
        }
        assert_eq!(take(&there("old")), Decision::Delete(old()));
        assert_eq!(take(&KnownValue::Missing), Decision::Keep(Reply::NotFound));
        assert_eq!(take(&KnownValue::Bytes(3)), Decision::NeedsValue);
    }

    #[test]
    fn a_change_is_made_if_the_value_is_what_it_is_compared_with() {
        let (same, other) = (Comparison::Equal(bytes("old")), Comparison::Different(bytes("old")));
        let set =
            |answers_old| Consequence::Set { value: bytes("new"), life: Lifetime::Endless, answers_old };
        let decide = |when: &Comparison, makes: Consequence, known: &KnownValue| {
            compared(&ComparedChange { when: when.clone(), makes }, known, &SETTING)
        };
        let missing = KnownValue::Missing;
        for (when, known, holds) in [
            (&same, &missing, false),
            (&other, &missing, true),
            (&same, &there("old"), true),
            (&other, &there("old"), false),
            (&same, &there("odd"), false),
            (&other, &there("odd"), true),
            // Another length is enough.
            (&same, &KnownValue::Bytes(4), false),
            (&other, &KnownValue::Bytes(4), true),
        ] {
            let written = if holds { put("new", Reply::Done) } else { Decision::Keep(Reply::NotFound) };
            assert_eq!(decide(when, set(false), known), written, "{when:?} {known:?}");
            let deleted = match holds && *known != missing {
                true => Decision::Delete(Reply::Count(1)),
                false => Decision::Keep(Reply::Count(0)),
            };
            assert_eq!(decide(when, Consequence::Delete, known), deleted, "{when:?} {known:?}");
            let old = match known {
                KnownValue::Missing => Reply::NotFound,
                KnownValue::Value(old) => Reply::Value(old.clone()),
                KnownValue::Bytes(_) => {
                    assert_eq!(decide(when, set(true), known), Decision::NeedsValue);
                    continue;
                }
            };
            let swapped = if holds { put("new", old) } else { Decision::Keep(old) };
            assert_eq!(decide(when, set(true), known), swapped, "{when:?} {known:?}");
        }
        for when in [&same, &other] {
            assert_eq!(decide(when, set(false), &KnownValue::Bytes(3)), Decision::NeedsValue);
            assert_eq!(decide(when, Consequence::Delete, &KnownValue::Bytes(3)), Decision::NeedsValue);
        }
        let past = Consequence::Set {
            value: bytes("new"),
            life: Lifetime::Until(UnixMillis(1)),
            answers_old: false,
        };
        assert_eq!(decide(&same, past, &there("old")), Decision::Delete(Reply::Done));
    }

    #[test]
    fn a_version_is_compared_without_the_value_and_told_with_it() {
        let decide = |version: Option<Version>, known: &KnownValue| {
            let makes = Consequence::Set { value: bytes("new"), life: Lifetime::Endless, answers_old: false };
            let setting = DecidedBy { version: Some(Version::new(1, 7)), ..SETTING };
            compared(&ComparedChange { when: Comparison::Version(version), makes }, known, &setting)
        };
        let (written, kept) = (put("new", Reply::Done), Decision::Keep(Reply::NotFound));
        for (version, known, expected) in [
            (None, KnownValue::Missing, &written),
            (None, KnownValue::Bytes(9), &kept),
            (Some(Version::new(1, 7)), KnownValue::Missing, &kept),
            (Some(Version::new(1, 7)), KnownValue::Bytes(9), &written),
            (Some(Version::new(1, 7)), there("old"), &written),
            (Some(Version::new(1, 6)), there("old"), &kept),
            (Some(Version::new(2, 7)), there("old"), &kept),
        ] {
            assert_eq!(&decide(version, &known), expected, "{version:?} {known:?}");
        }
        let setting = DecidedBy { version: Some(Version::new(1, 7)), ..SETTING };
        let told = |value, version| Decision::Keep(Reply::Values(vec![value, Some(bytes(version))]));
        assert_eq!(versioned(&there("old"), &setting), told(Some(bytes("old")), "1.7"));
        assert_eq!(versioned(&KnownValue::Missing, &SETTING), told(None, "0.0"));
        assert_eq!(versioned(&KnownValue::Bytes(3), &setting), Decision::NeedsValue);
    }

    #[test]
    fn a_part_is_written_over_what_is_there_up_to_the_longest_value() {
        let over = |offset, text| Update::SetRange { offset, bytes: bytes(text) };
        for (update, known, decision) in [
            (over(0, "ab"), KnownValue::Missing, put("ab", Reply::Count(2))),
            (over(2, "ab"), KnownValue::Missing, put("\0\0ab", Reply::Count(4))),
            (over(1, "XY"), there("abcd"), put("aXYd", Reply::Count(4))),
            (over(3, "XY"), there("abcd"), put("abcXY", Reply::Count(5))),
            (over(8, "XY"), there("abcd"), put("abcd\0\0\0\0XY", Reply::Count(10))),
            (over(9, "XY"), there("abcd"), refused(TOO_LONG)),
            (over(u64::MAX, "XY"), there("abcd"), refused(TOO_LONG)),
            (over(3, ""), there("abcd"), Decision::Keep(Reply::Count(4))),
            (over(u64::MAX, ""), KnownValue::Missing, Decision::Keep(Reply::Count(0))),
            (over(3, ""), KnownValue::Bytes(7), Decision::Keep(Reply::Count(7))),
            (over(3, "X"), KnownValue::Bytes(7), Decision::NeedsValue),
            (over(9, "XY"), KnownValue::Bytes(7), refused(TOO_LONG)),
            // A value from before the limit was lowered.
            (over(0, "X"), there("abcdefghijk"), refused(TOO_LONG)),
            (over(0, "X"), KnownValue::Bytes(11), refused(TOO_LONG)),
        ] {
            assert_eq!(update.decide(&known, &SETTING), decision, "{update:?} of {known:?}");
        }
        let append = |text| Update::Append { tail: bytes(text) };
        for (update, known, decision) in [
            (append("ab"), KnownValue::Missing, put("ab", Reply::Count(2))),
            (append(""), KnownValue::Missing, put("", Reply::Count(0))),
            (append("cd"), there("ab"), put("abcd", Reply::Count(4))),
            (append("123456789"), there("ab"), refused(TOO_LONG)),
            (append("cd"), KnownValue::Bytes(2), Decision::NeedsValue),
            (append("cd"), KnownValue::Bytes(8), Decision::NeedsValue),
            (append("cd"), KnownValue::Bytes(9), refused(TOO_LONG)),
        ] {
            assert_eq!(update.decide(&known, &SETTING), decision, "{update:?} of {known:?}");
        }
    }

    #[test]
    fn a_number_is_added_to_a_number_alone_and_within_64_bits() {
        let add = |number, known: &KnownValue| Update::Add { number }.decide(known, &SETTING);
        assert_eq!(add(5, &KnownValue::Missing), put("5", Reply::Integer(5)));
        assert_eq!(add(-7, &there("5")), put("-2", Reply::Integer(-2)));
        assert_eq!(add(1, &KnownValue::Bytes(20)), Decision::NeedsValue);
        assert_eq!(add(1, &KnownValue::Bytes(21)), refused(NOT_AN_INTEGER));
        for (present, number) in [("9223372036854775807", 1), ("-9223372036854775808", -1)] {
            assert_eq!(add(number, &there(present)), refused(OVERFLOW));
        }
        for no_number in ["", " 1", "1 ", "+1", "01", "1.0", "x", "9223372036854775808"] {
            assert_eq!(add(1, &there(no_number)), refused(NOT_AN_INTEGER), "{no_number:?}");
        }
    }

    #[test]
    fn a_key_lives_as_long_as_it_is_told_or_as_long_as_before() {
        let set = |life| Update::Set { value: bytes("v"), when: Condition::Always, life };
        let until = |time| Some(UnixMillis(time));
        for (life, before, after) in [
            (Lifetime::Endless, until(5000), None),
            (Lifetime::Same, until(5000), until(5000)),
            (Lifetime::Same, None, None),
            (Lifetime::For(7), until(5000), until(1007)),
            (Lifetime::Until(UnixMillis(1001)), None, until(1001)),
        ] {
            let setting = DecidedBy { expires: before, ..SETTING };
            let expected = Decision::Put(bytes("v"), after, Reply::Done);
            assert_eq!(set(life).decide(&KnownValue::Bytes(1), &setting), expected, "{life:?}");
        }
        for life in [Lifetime::For(0), Lifetime::Until(UnixMillis(1000)), Lifetime::Until(UnixMillis(0))] {
            assert_eq!(set(life).decide(&KnownValue::Missing, &SETTING), Decision::Delete(Reply::Done));
        }
        // What changes a value leaves the time as it is.
        let setting = DecidedBy { expires: until(5000), ..SETTING };
        for (update, value, reply) in [
            (Update::Add { number: 1 }, "8", Reply::Integer(8)),
            (Update::Append { tail: bytes("0") }, "70", Reply::Count(2)),
            (Update::SetRange { offset: 0, bytes: bytes("1") }, "1", Reply::Count(1)),
        ] {
            let expected = Decision::Put(bytes(value), until(5000), reply);
            assert_eq!(update.decide(&there("7"), &setting), expected, "{update:?}");
        }
    }

    #[test]
    fn a_time_is_changed_only_under_its_conditions() {
        let none = ExpiryCondition::default();
        let (nx, xx) = (ExpiryCondition { if_none: true, ..none }, ExpiryCondition { if_some: true, ..none });
        let (gt, lt) =
            (ExpiryCondition { if_later: true, ..none }, ExpiryCondition { if_earlier: true, ..none });
        let xx_lt = ExpiryCondition { if_some: true, ..lt };
        let (early, late) = (Some(UnixMillis(2000)), Some(UnixMillis(9000)));
        for (when, present, holds) in [
            (none, None, true),
            (none, late, true),
            (nx, None, true),
            (nx, early, false),
            (xx, None, false),
            (xx, early, true),
            (gt, None, false),
            (gt, early, true),
            (gt, Some(UnixMillis(5000)), false),
            (gt, late, false),
            (lt, None, true),
            (lt, early, false),
            (lt, Some(UnixMillis(5000)), false),
            (lt, late, true),
            (xx_lt, None, false),
            (xx_lt, late, true),
        ] {
            let update = Update::Expire { life: Lifetime::Until(UnixMillis(5000)), when };
            let setting = DecidedBy { expires: present, ..SETTING };
            let done = Decision::Put(bytes("v"), Some(UnixMillis(5000)), Reply::Count(1));
            let expected = if holds { done } else { Decision::Keep(Reply::Count(0)) };
            assert_eq!(update.decide(&there("v"), &setting), expected, "{when:?} {present:?}");
            let missing = update.decide(&KnownValue::Missing, &setting);
            assert_eq!(missing, Decision::Keep(Reply::Count(0)));
            let unread = update.decide(&KnownValue::Bytes(1), &setting);
            assert_eq!(unread == Decision::NeedsValue, holds, "a value is fetched for nothing");
        }
        let expire = |life| Update::Expire { life, when: none };
        let deleted = Decision::Delete(Reply::Count(1));
        assert_eq!(expire(Lifetime::For(0)).decide(&KnownValue::Bytes(9), &SETTING), deleted);
        // To lift what is not there changes nothing.
        let lift = expire(Lifetime::Endless);
        assert_eq!(lift.decide(&there("v"), &SETTING), Decision::Keep(Reply::Count(0)));
        let expiring = DecidedBy { expires: late, ..SETTING };
        assert_eq!(lift.decide(&there("v"), &expiring), put("v", Reply::Count(1)));
    }

    #[test]
    fn a_read_that_renews_writes_only_what_changes() {
        let expiring = DecidedBy { expires: Some(UnixMillis(9000)), ..SETTING };
        let value = || Reply::Value(bytes("v"));
        for (life, setting, decision) in [
            (Lifetime::Endless, &SETTING, Decision::Keep(value())),
            (Lifetime::Endless, &expiring, put("v", value())),
            (Lifetime::Same, &expiring, Decision::Keep(value())),
            (Lifetime::For(5), &expiring, Decision::Put(bytes("v"), Some(UnixMillis(1005)), value())),
            (Lifetime::Until(UnixMillis(1)), &expiring, Decision::Delete(value())),
        ] {
            assert_eq!(renew(life, &there("v"), setting), decision, "{life:?}");
        }
        assert_eq!(renew(Lifetime::For(5), &KnownValue::Missing, &SETTING), Decision::Keep(Reply::NotFound));
        assert_eq!(renew(Lifetime::For(5), &KnownValue::Bytes(1), &SETTING), Decision::NeedsValue);
    }
}
