//! Commands on the time at which keys expire, and the options of other commands that set it.

use super::entry::{
    argument, spec, token, AnswerLength, Argument, Changes, CommandFacts, Does, KeyRange, Spec, KEY,
};
use super::words::{Unfit, Words};
use super::{Command, ExpiryCondition, Lifetime, TimeForm, Update};
use crate::ids::UnixMillis;
use crate::integer::parse_integer;
use bytes::Bytes;

/// The names of this family, the busiest first.
pub(super) const NAMES: &[Spec] = &[
    EXPIRE_SPEC,
    TTL_SPEC,
    PEXPIRE_SPEC,
    PTTL_SPEC,
    EXPIREAT_SPEC,
    PEXPIREAT_SPEC,
    PERSIST_SPEC,
    EXPIRETIME_SPEC,
    PEXPIRETIME_SPEC,
];

/// No time of expiry is later, so that it may be counted from any moment, in milliseconds. In the year 2248 there will be a
/// millisecond more than that.
const MILLIS_MAX: i64 = i64::MAX - (1 << 43);

/// What a time is counted in, and from when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// `EX`
    Seconds,
    /// `PX`
    Millis,
    /// `EXAT`
    UnixSeconds,
    /// `PXAT`
    UnixMillis,
}

impl Counted {
    /// The option of that name.
    pub(super) fn from_option(name: &[u8]) -> Option<Self> {
        let options = [
            ("EX", Counted::Seconds),
            ("PX", Counted::Millis),
            ("EXAT", Counted::UnixSeconds),
            ("PXAT", Counted::UnixMillis),
        ];
        let found = options.into_iter().find(|(option, _)| name.eq_ignore_ascii_case(option.as_bytes()));
        found.map(|(_, counted)| counted)
    }

    /// How long a key lives with this number. Times that are past are times.
    pub(super) fn lifetime(self, number: &[u8]) -> Result<Lifetime, Unfit> {
        let number = parse_integer(number).ok_or(Unfit::NoInteger)?;
        let millis = match self {
            Counted::Seconds | Counted::UnixSeconds => number.checked_mul(1000).ok_or(Unfit::ExpireTime)?,
            Counted::Millis | Counted::UnixMillis => number,
        };
        // Negative: it is past.
        let past_or = u64::try_from(millis).unwrap_or_default();
        match self {
            Counted::Seconds | Counted::Millis if millis > MILLIS_MAX => Err(Unfit::ExpireTime),
            Counted::Seconds | Counted::Millis => Ok(Lifetime::For(past_or)),
            Counted::UnixSeconds | Counted::UnixMillis => Ok(Lifetime::Until(UnixMillis(past_or))),
        }
    }

    /// The same of a number that must be greater than 0.
    pub(super) fn positive(self, number: &[u8]) -> Result<Lifetime, Unfit> {
        match self.lifetime(number)? {
            Lifetime::For(0) | Lifetime::Until(UnixMillis(0)) => Err(Unfit::ExpireTime),
            life @ (Lifetime::For(_) | Lifetime::Until(_) | Lifetime::Endless | Lifetime::Same) => Ok(life),
        }
    }
}

/// The options of `SET` and `GETEX` that set a time.
pub(super) const TIMES: [Argument; 4] = [
    Argument { token: Some("EX"), ..argument("seconds", "integer") },
    Argument { token: Some("PX"), ..argument("milliseconds", "integer") },
    Argument { token: Some("EXAT"), ..argument("unix-time-seconds", "unix-time") },
    Argument { token: Some("PXAT"), ..argument("unix-time-milliseconds", "unix-time") },
];

const CONDITION: Argument = Argument {
    flags: &["optional"],
    arguments: &[token("nx", "NX"), token("xx", "XX"), token("gt", "GT"), token("lt", "LT")],
    ..argument("condition", "oneof")
};

/// An entry of a command that sets the time of a key.
const fn expire_spec(
    name: &'static str,
    does: Does,
    summary: &'static str,
    arguments: &'static [Argument],
) -> Spec {
    Spec {
        flags: &["write", "fast"],
        keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "update"] }),
        categories: &["keyspace", "write", "fast"],
        group: "generic",
        arguments,
        ..spec(name, does, -3, summary)
    }
}

const EXPIRE_SPEC: Spec = expire_spec(
    "expire",
    Does::Ask(|words| expire(words, Counted::Seconds)),
    "Set a key's time to live in seconds",
    &[KEY, argument("seconds", "integer"), CONDITION],
);

const PEXPIRE_SPEC: Spec = expire_spec(
    "pexpire",
    Does::Ask(|words| expire(words, Counted::Millis)),
    "Set a key's time to live in milliseconds",
    &[KEY, argument("milliseconds", "integer"), CONDITION],
);

const EXPIREAT_SPEC: Spec = expire_spec(
    "expireat",
    Does::Ask(|words| expire(words, Counted::UnixSeconds)),
    "Set the expiration for a key as a UNIX timestamp",
    &[KEY, argument("unix-time-seconds", "unix-time"), CONDITION],
);

const PEXPIREAT_SPEC: Spec = expire_spec(
    "pexpireat",
    Does::Ask(|words| expire(words, Counted::UnixMillis)),
    "Set the expiration for a key as a UNIX timestamp specified in milliseconds",
    &[KEY, argument("unix-time-milliseconds", "unix-time"), CONDITION],
);

fn expire(words: &mut Words, counted: Counted) -> Result<Command, Unfit> {
    let key = words.key()?;
    let number = words.word().ok_or(Unfit::Arity)?;
    let when = condition(words)?;
    let life = counted.lifetime(&number)?;
    Ok(Command::Update { key, update: Update::Expire { life, when } })
}

fn condition(words: &mut Words) -> Result<ExpiryCondition, Unfit> {
    let mut when = ExpiryCondition::default();
    while let Some(option) = words.word() {
        let flag = match option.to_ascii_uppercase().as_slice() {
            b"NX" => &mut when.if_none,
            b"XX" => &mut when.if_some,
            b"GT" => &mut when.if_later,
            b"LT" => &mut when.if_earlier,
            _ => return Err(Unfit::Option(option)),
        };
        *flag = true;
    }
    if when.if_none && (when.if_some || when.if_later || when.if_earlier) {
        return Err(Unfit::Options("NX and XX, GT or LT options at the same time are not compatible"));
    }
    if when.if_later && when.if_earlier {
        return Err(Unfit::Options("GT and LT options at the same time are not compatible"));
    }
    Ok(when)
}

const PERSIST_SPEC: Spec = Spec {
    arity: 2,
    ..expire_spec("persist", Does::Ask(persist), "Remove the expiration from a key", &[KEY])
};

fn persist(words: &mut Words) -> Result<Command, Unfit> {
    let when = ExpiryCondition::default();
    Ok(Command::Update { key: words.key()?, update: Update::Expire { life: Lifetime::Endless, when } })
}

/// See [`Command::TimeToLive`].
pub(super) static TTL: CommandFacts = CommandFacts {
    changes: Changes::Nothing,
    answer: AnswerLength::Short,
    log_word: "TTL",
    asked_as: &["expiretime", "pexpiretime", "pttl", "ttl"],
    prompt: None,
};

const TTL_SPEC: Spec = Spec {
    flags: &["readonly", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RO", "access"] }),
    categories: &["keyspace", "read", "fast"],
    tips: &["nondeterministic_output"],
    group: "generic",
    arguments: &[KEY],
    ..spec(
        "ttl",
        Does::Ask(|words| time_to_live(words, TimeForm::Seconds)),
        2,
        "Get the time to live for a key in seconds",
    )
};

const PTTL_SPEC: Spec = Spec {
    name: "pttl",
    does: Does::Ask(|words| time_to_live(words, TimeForm::Millis)),
    summary: "Get the time to live for a key in milliseconds",
    ..TTL_SPEC
};

const EXPIRETIME_SPEC: Spec = Spec {
    name: "expiretime",
    does: Does::Ask(|words| time_to_live(words, TimeForm::UnixSeconds)),
    summary: "Get the expiration Unix timestamp for a key",
    tips: &[],
    ..TTL_SPEC
};

const PEXPIRETIME_SPEC: Spec = Spec {
    name: "pexpiretime",
    does: Does::Ask(|words| time_to_live(words, TimeForm::UnixMillis)),
    summary: "Get the expiration Unix timestamp for a key in milliseconds",
    ..EXPIRETIME_SPEC
};

fn time_to_live(words: &mut Words, form: TimeForm) -> Result<Command, Unfit> {
    Ok(Command::TimeToLive { key: words.key()?, form })
}

/// See [`Command::Renew`].
pub(super) static GETEX: CommandFacts = CommandFacts {
    changes: Changes::Values,
    answer: AnswerLength::Values,
    log_word: "RENEW",
    asked_as: &["getex"],
    prompt: None,
};

const GETEX_TIME: Argument = Argument {
    flags: &["optional"],
    arguments: &[TIMES[0], TIMES[1], TIMES[2], TIMES[3], token("persist", "PERSIST")],
    ..argument("expiration", "oneof")
};

/// Among the strings.
pub(super) const GETEX_SPEC: Spec = Spec {
    flags: &["write", "fast"],
    keys: Some(KeyRange { last: 0, step: 1, flags: &["RW", "access", "update"] }),
    categories: &["write", "string", "fast"],
    group: "string",
    arguments: &[KEY, GETEX_TIME],
    ..spec("getex", Does::Ask(get_and_renew), -2, "Get the value of a key and optionally set its expiration")
};

fn get_and_renew(words: &mut Words) -> Result<Command, Unfit> {
    let key = words.key()?;
    let mut chosen: Option<(Option<Counted>, Bytes)> = None;
    while let Some(option) = words.word() {
        let counted = Counted::from_option(&option);
        let may_follow = chosen.as_ref().is_none_or(|(before, _)| *before == counted);
        let number = match counted {
            Some(_) => words.word().ok_or(Unfit::Syntax)?,
            None if option.eq_ignore_ascii_case(b"PERSIST") => Bytes::new(),
            None => return Err(Unfit::Syntax),
        };
        if !may_follow {
            return Err(Unfit::Syntax);
        }
        chosen = Some((counted, number));
    }
    let life = match chosen {
        None => Lifetime::Same,
        Some((None, _)) => Lifetime::Endless,
        Some((Some(counted), number)) => counted.positive(&number)?,
    };
    Ok(Command::Renew { key, life })
}
