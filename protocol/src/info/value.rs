//! How the value of an INFO field is printed and parsed.
//!
//! Owns the types that exist only for the text: words, lists of parts, values that may be empty.

use super::{ErrorWord, Info};
use crate::ids::{ClusterId, Epoch, ReignId, Seq, SlaveId};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;
use thiserror::Error;

/// A text that is not the INFO of a master of this version.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InfoError {
    /// A field is missing.
    #[error("INFO lacks the field {0}")]
    Missing(String),
    /// A field has a value of another kind.
    #[error("INFO has {0}:{1}, which is not a value of that field")]
    Value(String, String),
}

/// A value that is one word.
pub(super) trait Word: Sized {
    fn push(&self, text: &mut String);

    fn read(word: &str) -> Option<Self>;

    /// The same in JSON: its text, unless it is a number or no word at all.
    fn json(&self) -> Value {
        let mut text = String::new();
        self.push(&mut text);
        Value::String(text)
    }
}

/// The value of a field: none, one or several lines.
pub(super) trait InfoField: Sized {
    fn print(&self, name: &str, text: &mut String);

    fn parse(name: &str, lines: &Info) -> Result<Self, InfoError>;

    /// Adds it to an object of JSON: a list of numbered fields by its name and an `s`, a field that is missing not at all.
    fn add_json(&self, name: &str, object: &mut Map<String, Value>);
}

/// Bytes in short, as Redis writes them: `512B`, `1.50K`, `2.00G`.
pub fn human_bytes(bytes: u64) -> String {
    let units = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)];
    match units.into_iter().rfind(|(_, unit)| bytes >= *unit) {
        Some((letter, unit)) => format!("{:.2}{letter}", bytes as f64 / unit as f64),
        None => format!("{bytes}B"),
    }
}

/// Adds what `format_args!` gives. Writing to a string cannot fail.
fn add(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

/// Whether clients of Redis take a text for a list of names and values, and fail: redis-py does so of any with a comma and an equals
/// sign.
fn looks_like_a_list(text: &str) -> bool {
    text.contains(',') && text.contains('=') && text.split(',').any(|part| !part.contains('='))
}

impl<W: Word> InfoField for W {
    fn print(&self, name: &str, text: &mut String) {
        add(text, format_args!("{name}:"));
        let begins = text.len();
        Word::push(self, text);
        if looks_like_a_list(&text[begins..]) {
            let plain = text[begins..].replace('=', ":");
            text.truncate(begins);
            text.push_str(&plain);
        }
        text.push('\n');
    }

    fn parse(name: &str, lines: &Info) -> Result<Self, InfoError> {
        let word = lines.get(name).ok_or_else(|| InfoError::Missing(name.to_owned()))?;
        Word::read(word).ok_or_else(|| InfoError::Value(name.to_owned(), word.to_owned()))
    }

    fn add_json(&self, name: &str, object: &mut Map<String, Value>) {
        object.insert(name.to_owned(), self.json());
    }
}

/// Words that are written as they are displayed, and read by `FromStr` of the type that is named last.
macro_rules! displayed {
    ($($type:ty, $parse:expr $(, $number:expr)?;)*) => {$(
        impl Word for $type {
            fn push(&self, text: &mut String) {
                add(text, format_args!("{self}"));
            }

            fn read(word: &str) -> Option<Self> {
                let parse: fn(&str) -> Option<Self> = $parse;
                parse(word)
            }

            $(fn json(&self) -> Value {
                let number: fn(&Self) -> u64 = $number;
                number(self).into()
            })?
        }
    )*};
}

fn parsed<T: FromStr>(word: &str) -> Option<T> {
    word.parse().ok()
}

displayed! {
    u32, parsed, |number| u64::from(*number);
    u64, parsed, |number| *number;
    String, parsed;
    SlaveId, parsed;
    ClusterId, parsed;
    Epoch, |word| parsed(word).map(Epoch), |epoch| epoch.0;
    Seq, |word| parsed(word).map(Seq), |seq| seq.0;
    ReignId, |word| u64::from_str_radix(word, 16).ok().map(ReignId);
}

/// `1` or `0`.
impl Word for bool {
    fn push(&self, text: &mut String) {
        text.push(if *self { '1' } else { '0' });
    }

    fn read(word: &str) -> Option<Self> {
        match word {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }
    }

    fn json(&self) -> Value {
        Value::Bool(*self)
    }
}

/// A value whose field is printed empty when it is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrEmpty<T>(pub Option<T>);

impl<W: Word> Word for OrEmpty<W> {
    fn push(&self, text: &mut String) {
        if let Some(value) = &self.0 {
            value.push(text);
        }
    }

    fn read(word: &str) -> Option<Self> {
        if word.is_empty() {
            return Some(OrEmpty(None));
        }
        W::read(word).map(|value| OrEmpty(Some(value)))
    }

    fn json(&self) -> Value {
        self.0.as_ref().map_or(Value::Null, Word::json)
    }
}

/// A number; `None` is printed as `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrUnlimited(pub Option<u64>);

impl Word for OrUnlimited {
    fn push(&self, text: &mut String) {
        match self.0 {
            Some(number) => number.push(text),
            None => text.push_str("unlimited"),
        }
    }

    fn read(word: &str) -> Option<Self> {
        if word == "unlimited" {
            return Some(OrUnlimited(None));
        }
        u64::read(word).map(|number| OrUnlimited(Some(number)))
    }

    fn json(&self) -> Value {
        self.0.map_or(Value::Null, Value::from)
    }
}

/// An enum that is one of some words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $( $(#[$variant_doc:meta])* $variant:ident = $word:literal, )* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $( $(#[$variant_doc])* $variant, )*
        }

        impl Word for $name {
            fn push(&self, text: &mut String) {
                text.push_str(match self {
                    $( $name::$variant => $word, )*
                });
            }

            fn read(word: &str) -> Option<Self> {
                match word {
                    $( $word => Some($name::$variant), )*
                    _ => None,
                }
            }
        }
    };
}

words! {
    /// Which program a master is.
    StartedAs {
        /// `dsm-master`.
        Primary = "primary",
        /// `dsm-backup-master`.
        Backup = "backup",
    }
}

words! {
    /// What a master is to clients of Redis.
    RedisRole {
        /// It serves, or is about to and knows of nobody else who does.
        Master = "master",
        /// Another one serves, or is to.
        Slave = "slave",
    }
}

words! {
    /// Whether a master serves.
    MasterRole {
        /// It executes requests.
        Primary = "primary",
        /// It follows the log and waits for the lock.
        Standby = "standby",
        /// It has the lock but does not serve yet, or it is about to end.
        Recovering = "recovering",
    }
}

words! {
    /// What repair is doing.
    RepairState {
        /// It is switched off.
        Off = "off",
        /// There is nothing to be done, as far as is known.
        Resting = "resting",
        /// It begins soon: slaves may be back at once, or report what they hold.
        Waiting = "waiting",
        /// It walks over the keys, and copies.
        Copying = "copying",
    }
}

words! {
    /// What rebalancing is doing.
    RebalanceState {
        /// It is switched off.
        Off = "off",
        /// Keys are where they belong, as far as is known.
        Resting = "resting",
        /// It begins when no slave has come or gone for a while, or looks for what is to be moved.
        Waiting = "waiting",
        /// It moves copies, or drops what is too many.
        Moving = "moving",
    }
}

/// Processor time in microseconds, which is printed in seconds: `1.000250`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSeconds(pub u64);

impl Word for CpuSeconds {
    fn push(&self, text: &mut String) {
        add(text, format_args!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000));
    }

    fn read(word: &str) -> Option<Self> {
        let (seconds, micros) = word.split_once('.')?;
        let micros: u64 = (micros.len() == 6).then(|| parsed(micros))??;
        parsed::<u64>(seconds)?.checked_mul(1_000_000)?.checked_add(micros).map(CpuSeconds)
    }

    fn json(&self) -> Value {
        (self.0 as f64 / 1e6).into()
    }
}

/// A field that is missing when its value is `None`.
impl<W: Word> InfoField for Option<W> {
    fn print(&self, name: &str, text: &mut String) {
        if let Some(value) = self {
            InfoField::print(value, name, text);
        }
    }

    fn parse(name: &str, lines: &Info) -> Result<Self, InfoError> {
        lines.get(name).map(|_| InfoField::parse(name, lines)).transpose()
    }

    fn add_json(&self, name: &str, object: &mut Map<String, Value>) {
        if let Some(value) = self {
            value.add_json(name, object);
        }
    }
}

/// One field for each word: `errors_busy:3`.
impl InfoField for Vec<(ErrorWord, u64)> {
    fn print(&self, name: &str, text: &mut String) {
        for (word, answered) in self {
            InfoField::print(answered, &error_name(name, *word), text);
        }
    }

    fn parse(name: &str, lines: &Info) -> Result<Self, InfoError> {
        let words = ErrorWord::ALL.into_iter().filter(|word| !word.is_reserved());
        words.map(|word| Ok((word, InfoField::parse(&error_name(name, word), lines)?))).collect()
    }

    fn add_json(&self, name: &str, object: &mut Map<String, Value>) {
        for (word, answered) in self {
            object.insert(error_name(name, *word), (*answered).into());
        }
    }
}

fn error_name(name: &str, word: ErrorWord) -> String {
    format!("{name}_{}", word.as_str().to_ascii_lowercase())
}

/// Numbers by name in one field: `requests=2100,session=1800`.
impl Word for Vec<(String, u64)> {
    fn push(&self, text: &mut String) {
        for (index, (name, number)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            add(text, format_args!("{comma}{}={number}", name.replace(' ', "-")));
        }
    }

    fn read(word: &str) -> Option<Self> {
        let parts = word.split(',').filter(|part| !part.is_empty());
        parts
            .map(|part| {
                part.split_once('=').and_then(|(name, number)| Some((name.to_owned(), parsed(number)?)))
            })
            .collect()
    }

    fn json(&self) -> Value {
        self.iter().map(|(name, number)| (name.replace(' ', "-"), Value::from(*number))).collect()
    }
}

/// The value of a numbered field: parts `name=value`, separated by commas.
trait Parts: Sized {
    fn print_parts(&self, text: &mut String);

    fn parse_parts(parts: &BTreeMap<&str, &str>) -> Option<Self>;

    fn json_parts(&self) -> Value;
}

/// Fields `name0`, `name1` and so on.
impl<P: Parts> InfoField for Vec<P> {
    fn print(&self, name: &str, text: &mut String) {
        for (index, item) in self.iter().enumerate() {
            add(text, format_args!("{name}{index}:"));
            item.print_parts(text);
            text.push('\n');
        }
    }

    fn parse(name: &str, lines: &Info) -> Result<Self, InfoError> {
        let item = |(field, value): (String, &str)| {
            P::parse_parts(&Info::parts(value)).ok_or_else(|| InfoError::Value(field, value.to_owned()))
        };
        let fields = (0..).map(|index| format!("{name}{index}"));
        fields.map_while(|field| lines.get(&field).map(|value| (field, value))).map(item).collect()
    }

    fn add_json(&self, name: &str, object: &mut Map<String, Value>) {
        object.insert(format!("{name}s"), self.iter().map(Parts::json_parts).collect());
    }
}

/// A struct whose fields are the parts of a numbered field, in that order. `state` is a part that is the same in all
/// values of the struct.
macro_rules! parts {
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$first_doc:meta])* $first:ident: $first_type:ty, )* }
        $( state $state:literal { $( $(#[$then_doc:meta])* $then:ident: $then_type:ty, )* } )?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$first_doc])* pub $first: $first_type, )*
            $( $( $(#[$then_doc])* pub $then: $then_type, )* )?
        }

        impl Parts for $name {
            fn print_parts(&self, text: &mut String) {
                $( print_part(stringify!($first), &self.$first, text); )*
                $(
                    print_part("state", &$state.to_owned(), text);
                    $( print_part(stringify!($then), &self.$then, text); )*
                )?
                // The comma after the last part.
                text.pop();
            }

            fn parse_parts(parts: &BTreeMap<&str, &str>) -> Option<Self> {
                $( (*parts.get("state")? == $state).then_some(())?; )?
                Some($name {
                    $( $first: Word::read(parts.get(stringify!($first))?)?, )*
                    $( $( $then: Word::read(parts.get(stringify!($then))?)?, )* )?
                })
            }

            fn json_parts(&self) -> Value {
                let mut object = Map::new();
                $( object.insert(stringify!($first).to_owned(), self.$first.json()); )*
                $(
                    object.insert("state".to_owned(), $state.into());
                    $( object.insert(stringify!($then).to_owned(), self.$then.json()); )*
                )?
                Value::Object(object)
            }
        }
    };
}

fn print_part(name: &str, value: &impl Word, text: &mut String) {
    add(text, format_args!("{name}="));
    value.push(text);
    text.push(',');
}

parts! {
    /// Another master that `--peer` names.
    PeerInfo {
        /// Where it is reached.
        address: String,
        /// Whether this master's own link there stands.
        connected: bool,
        /// Whether that master says that it serves; no while it is not connected.
        serves: bool,
        /// The last record that it has told of; 0 while it is not connected.
        seq: Seq,
    }
}

parts! {
    /// A master that keeps the log with others on machines of their own.
    MemberInfo {
        /// Its number.
        id: u64,
        /// Where it is reached.
        address: String,
        /// `voter`; `learner` until it has the log, `learner/N` of one that is to take the place of member N; `joining` and
        /// `leaving` while one takes the other's place.
        role: String,
        /// `leads`, `live`, `silent`, or `unknown`: who does not lead knows only who does.
        seen: String,
        /// The last record that it is known to have; 0 where that is unknown.
        seq: Seq,
    }
}

impl MemberInfo {
    /// What is seen of one that says nothing.
    pub const SILENT: &str = "silent";

    /// What is seen of one of which this master knows nothing, as it does not lead.
    pub const UNKNOWN: &str = "unknown";
}

parts! {
    /// A master to which a slave is to be connected.
    MasterLinkInfo {
        /// Where it is, as the settings name it.
        address: String,
        /// Whether the link stands.
        connected: bool,
        /// Whether it is the one that the slave obeys, which has given it a place.
        obeyed: bool,
    }
}

parts! {
    /// A database, as Redis numbers them.
    DatabaseInfo {
        /// Keys that exist.
        keys: u64,
        /// Those of them that expire.
        expires: u64,
        /// How long those live on the average, in milliseconds; 0 if that is not known.
        avg_ttl: u64,
    }
}

parts! {
    /// A slave that counts for writes.
    ActiveSlave {
        /// The name that the slave was started with.
        id: SlaveId,
        /// Its place in sets of holders, below 64.
        slot: u32,
    } state "active" {
        /// Keys that it is known to hold.
        copies: u64,
        /// Keys of clients' writes that it acknowledged over this link.
        writes_acked: u64,
        /// For how many bytes of values it has room.
        room_bytes: OrUnlimited,
    }
}

parts! {
    /// A slave that is connected and failed too lately to count.
    QuarantinedSlave {
        /// The name that the slave was started with.
        id: SlaveId,
    } state "quarantined" {
        /// How often it failed in a row.
        failures: u64,
        /// How it failed last: `ack-timeout`, `trial-failed` or `flapping`.
        cause: String,
        /// How long it must still wait, in milliseconds.
        ms_left: u64,
    }
}

parts! {
    /// A slave that is connected to a standby.
    ConnectedSlave {
        /// The name that the slave was started with.
        id: SlaveId,
    } state "connected" {
    }
}

/// A slave that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlaveInfo {
    /// It counts for writes.
    Active(ActiveSlave),
    /// It does not count yet.
    Quarantined(QuarantinedSlave),
    /// The master does not serve.
    Connected(ConnectedSlave),
}

impl Parts for SlaveInfo {
    fn print_parts(&self, text: &mut String) {
        match self {
            SlaveInfo::Active(slave) => slave.print_parts(text),
            SlaveInfo::Quarantined(slave) => slave.print_parts(text),
            SlaveInfo::Connected(slave) => slave.print_parts(text),
        }
    }

    fn json_parts(&self) -> Value {
        match self {
            SlaveInfo::Active(slave) => slave.json_parts(),
            SlaveInfo::Quarantined(slave) => slave.json_parts(),
            SlaveInfo::Connected(slave) => slave.json_parts(),
        }
    }

    fn parse_parts(parts: &BTreeMap<&str, &str>) -> Option<Self> {
        Parts::parse_parts(parts)
            .map(SlaveInfo::Active)
            .or_else(|| Parts::parse_parts(parts).map(SlaveInfo::Quarantined))
            .or_else(|| Parts::parse_parts(parts).map(SlaveInfo::Connected))
    }
}
