//! What the runners of transcripts share.
//!
//! A transcript lives in `src/testscripts/MACHINE/`, proves one behaviour, and says which in its first lines.
//! `UPDATE_GOLDENFILES=1` writes the outputs anew; commit only a difference that you can explain.

use dsm_protocol::command::{
    Command, Condition, ExpiryCondition, Lifetime, Reply, ScriptCall, ScriptName, ScriptRights, TimeForm,
    Transaction, Update,
};
use dsm_protocol::ids::Version;
use std::error::Error;
use std::path::Path;

pub(crate) type Res<T> = Result<T, Box<dyn Error>>;

/// Runs every transcript of a machine, each with a runner of its own.
pub(crate) fn run_all<R: goldenscript::Runner>(machine: &str, mut runner: impl FnMut() -> R) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testscripts").join(machine);
    let mut scripts: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for script in scripts {
        println!("{}", script.display());
        goldenscript::run(&mut runner(), script).unwrap();
    }
}

/// `epoch.seq`.
pub(crate) fn version(text: &str) -> Res<Version> {
    let (epoch, seq) = text.split_once('.').ok_or_else(|| format!("{text} is no version"))?;
    Ok(Version::new(epoch.parse()?, seq.parse()?))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn show_reply(reply: &Reply) -> String {
    match reply {
        Reply::Done => "OK".to_owned(),
        Reply::Value(value) => format!("value {}", text(value)),
        Reply::NotFound => "not found".to_owned(),
        Reply::Values(values) => {
            let values: Vec<String> =
                values.iter().map(|v| v.as_ref().map_or("-".to_owned(), |v| text(v))).collect();
            format!("values {}", values.join(" "))
        }
        Reply::Count(count) => format!("count {count}"),
        Reply::Integer(number) => format!("integer {number}"),
        Reply::Text(said) => format!("text {said}"),
        Reply::Page { next, keys } => {
            // The cursor itself depends on hashes.
            let rest = if *next == 0 { "end" } else { "more" };
            let mut keys: Vec<String> = keys.iter().map(|key| text(key)).collect();
            keys.sort();
            format!("page {}, {rest}", keys.join(" "))
        }
        Reply::Error(error) => error.to_string(),
        Reply::Encoded(answer) => {
            format!("encoded {}", String::from_utf8_lossy(answer).trim_end().replace("\r\n", " "))
        }
        Reply::Many(replies) => {
            let replies: Vec<String> = replies.0.iter().map(show_reply).collect();
            format!("all of ({})", replies.join(") ("))
        }
        Reply::Versions(versions) => {
            let shown = versions.iter().map(|version| version.map_or("-".to_owned(), |v| v.to_string()));
            format!("versions {}", shown.collect::<Vec<_>>().join(" "))
        }
    }
}

/// The command that a line of a script asks for: `get k`, `mget a b`, `set k v`, `mset a=1 b=2`, `del a b`, ...
#[expect(clippy::too_many_lines, reason = "one arm for each command, each short")]
pub(crate) fn client_command(
    name: &str,
    args: &mut goldenscript::ArgumentConsumer<'_>,
) -> Res<Option<Command>> {
    fn one(args: &mut goldenscript::ArgumentConsumer<'_>) -> Res<bytes::Bytes> {
        Ok(args.next_pos().ok_or("an argument is missing")?.to_owned().into())
    }
    fn rest(args: &mut goldenscript::ArgumentConsumer<'_>) -> Vec<bytes::Bytes> {
        std::iter::from_fn(|| args.next_pos()).map(|key| key.to_owned().into()).collect()
    }
    Ok(Some(match name {
        "get" => Command::Get { key: one(args)? },
        "mget" => Command::GetMany { keys: rest(args) },
        "exists" => Command::Exists { keys: rest(args) },
        "length" => Command::ValueLength { key: one(args)? },
        "count" => Command::KeyCount,
        "set" => Command::Put { key: one(args)?, value: one(args)? },
        "mset" => {
            let pair = |pair: (&str, &str)| (pair.0.to_owned().into(), pair.1.to_owned().into());
            Command::PutMany { pairs: std::iter::from_fn(|| args.next_key()).map(pair).collect() }
        }
        "del" => Command::Delete { keys: rest(args) },
        "setnx" => {
            let (key, value) = (one(args)?, one(args)?);
            let (when, life) = (Condition::IfAbsent, Lifetime::Endless);
            Command::Update { key, update: Update::Set { value, when, life } }
        }
        // setex KEY MS VALUE
        "setex" => {
            let (key, life) = (one(args)?, Lifetime::For(args.next_pos().ok_or("MS?")?.parse()?));
            let when = Condition::Always;
            Command::Update { key, update: Update::Set { value: one(args)?, when, life } }
        }
        // expire KEY MS
        "expire" => {
            let (key, life) = (one(args)?, Lifetime::For(args.next_pos().ok_or("MS?")?.parse()?));
            Command::Update { key, update: Update::Expire { life, when: ExpiryCondition::default() } }
        }
        "persist" => {
            let (life, when) = (Lifetime::Endless, ExpiryCondition::default());
            Command::Update { key: one(args)?, update: Update::Expire { life, when } }
        }
        "ttl" => Command::TimeToLive { key: one(args)?, form: TimeForm::Millis },
        // getex KEY MS
        "getex" => {
            let (key, life) = (one(args)?, Lifetime::For(args.next_pos().ok_or("MS?")?.parse()?));
            Command::Renew { key, life }
        }
        // scan [PATTERN]
        "scan" => {
            let pattern = args.next_pos().map(|pattern| pattern.to_owned().into());
            Command::Scan { cursor: 0, pattern, count: 1000, strings: true }
        }
        "keys" => Command::Keys { pattern: one(args)? },
        "randomkey" => Command::RandomKey,
        "flushall" => Command::DeleteAll,
        "append" => Command::Update { key: one(args)?, update: Update::Append { tail: one(args)? } },
        "incr" => Command::Update { key: one(args)?, update: Update::Add { number: 1 } },
        "getset" => {
            let (key, value) = (one(args)?, one(args)?);
            Command::Swap { key, value, when: Condition::Always, life: Lifetime::Endless }
        }
        "getdel" => Command::Take { key: one(args)? },
        "msetnx" => {
            let pair = |pair: (&str, &str)| (pair.0.to_owned().into(), pair.1.to_owned().into());
            Command::PutManyIfNone { pairs: std::iter::from_fn(|| args.next_key()).map(pair).collect() }
        }
        "watch" => Command::Watch { keys: rest(args) },
        // eval "return redis.call('get', KEYS[1])" k
        "eval" => {
            let (script, rights) = (ScriptName::Text(one(args)?), ScriptRights::default());
            let call = ScriptCall { script, keys: rest(args), args: Vec::new(), is_read_only: false, rights };
            Command::Evaluate { call: Box::new(call) }
        }
        // multi "set a 1" "get b" a=1.2 b=none, where a must have that version and b must not be there
        "multi" => {
            let commands = std::iter::from_fn(|| args.next_pos()).map(queued).collect::<Res<_>>()?;
            let watched = std::iter::from_fn(|| args.next_key()).map(|(key, of)| {
                let of = if of == "none" { None } else { Some(version(of)?) };
                Ok((bytes::Bytes::from(key.to_owned()), of))
            });
            let watched = watched.collect::<Res<_>>()?;
            Command::Transact { transaction: Box::new(Transaction { watched, commands }) }
        }
        _ => return Ok(None),
    }))
}

/// A command of a transaction, as one text.
fn queued(text: &str) -> Res<Command> {
    let mut words = text.split(' ').map(|word| bytes::Bytes::from(word.to_owned()));
    let name = words.next().unwrap_or_default();
    let key = words.next().ok_or("a key is missing")?;
    let mut value = || words.next().ok_or("a value is missing");
    Ok(match &*name {
        b"get" => Command::Get { key },
        b"set" => Command::Put { key, value: value()? },
        b"setpx" => {
            let life = Lifetime::For(std::str::from_utf8(&value()?)?.parse()?);
            let update = Update::Set { value: value()?, when: Condition::Always, life };
            Command::Update { key, update }
        }
        b"del" => Command::Delete { keys: vec![key] },
        b"incr" => Command::Update { key, update: Update::Add { number: 1 } },
        b"append" => Command::Update { key, update: Update::Append { tail: value()? } },
        b"getdel" => Command::Take { key },
        b"ttl" => Command::TimeToLive { key, form: TimeForm::Millis },
        other => return Err(format!("{other:?} is no command of a transaction").into()),
    })
}
