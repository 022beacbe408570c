//! A record as one JSON object, for `dump --json`.
//!
//! Owns the names of the members. A key or value that is not UTF-8 cannot be a JSON string, so it is printed as
//! hexadecimal digits under `key_hex` or `value_hex`. Characters that could change a terminal's state are escaped
//! although JSON does not require it.

use crate::operation_name;
use dsm_protocol::record::{Body, Encoded, EncodedEffect, EncodedEffects, Record, Span};
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter};
use std::io::{self, Write};

/// Writes `record`, which is at `span` of the log, as one line.
pub(crate) fn write(record: &Record<'_>, span: Span, out: &mut impl Write) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, Printable);
    Line { record, span }.serialize(&mut serializer)?;
    writeln!(out)
}

struct Line<'a> {
    record: &'a Record<'a>,
    span: Span,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Line { record, span } = self;
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry("offset", &span.offset)?;
        line.serialize_entry("bytes", &span.bytes)?;
        line.serialize_entry("seq", &record.seq.0)?;
        line.serialize_entry("epoch", &record.epoch.0)?;
        line.serialize_entry("synced", &record.synced.0)?;
        line.serialize_entry("operation", operation_name(&record.body))?;
        match record.body {
            Body::Cluster(id) => line.serialize_entry("cluster", &id.to_string())?,
            Body::Epoch { address, mark } => {
                entry(&mut line, "address", address)?;
                line.serialize_entry("reign", &mark.id.to_string())?;
                if let Some(fsync) = mark.fsync {
                    line.serialize_entry("fsync", fsync.as_str())?;
                }
                let given_up: Vec<String> = mark.given_up.map(|reign| reign.to_string()).collect();
                if !given_up.is_empty() {
                    line.serialize_entry("given_up", &given_up)?;
                }
            }
            Body::Members(text) => line.serialize_entry("members", &String::from_utf8_lossy(text))?,
            Body::Synced => {}
            Body::Write(pairs) => {
                let pairs: Vec<_> =
                    pairs.map(|(key, value)| Texts(vec![("key", key), ("value", value)])).collect();
                line.serialize_entry("pairs", &pairs)?;
            }
            Body::Delete(keys) => {
                let keys: Vec<_> = keys.map(|key| Texts(vec![("key", key)])).collect();
                line.serialize_entry("keys", &keys)?;
            }
            Body::Apply(effects) => line.serialize_entry("effects", &EffectsJson(effects))?,
        }
        let fields: Vec<_> =
            record.fields.map(|(name, value)| (String::from_utf8_lossy(name), value)).collect();
        if !fields.is_empty() {
            line.serialize_entry("fields", &Texts(fields))?;
        }
        line.end()
    }
}

/// An object of texts.
struct Texts<'a, N>(Vec<(N, Encoded<'a>)>);

impl<N: AsRef<str>> Serialize for Texts<'_, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(Some(self.0.len()))?;
        for (name, text) in &self.0 {
            entry(&mut object, name.as_ref(), *text)?;
        }
        object.end()
    }
}

/// A list of what becomes of which keys.
struct EffectsJson<'a>(EncodedEffects<'a>);

impl Serialize for EffectsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        self.0.into_iter().try_for_each(|effect| list.serialize_element(&EffectJson(effect)))?;
        list.end()
    }
}

struct EffectJson<'a>(EncodedEffect<'a>);

impl Serialize for EffectJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        match self.0 {
            EncodedEffect::Set { key, value, expires } => {
                object.serialize_entry("effect", "set")?;
                entry(&mut object, "key", key)?;
                entry(&mut object, "value", value)?;
                if let Some(expires) = expires {
                    object.serialize_entry("expires", &expires.0)?;
                }
            }
            EncodedEffect::Del { key } => {
                object.serialize_entry("effect", "del")?;
                entry(&mut object, "key", key)?;
            }
        }
        object.end()
    }
}

/// `"name":"text"`, or `"name_hex":"ff00"`.
fn entry<M: SerializeMap>(object: &mut M, name: &str, text: Encoded<'_>) -> Result<(), M::Error> {
    let text = text.decode();
    match std::str::from_utf8(&text) {
        Ok(text) => object.serialize_entry(name, text),
        Err(_) => {
            let digits: String = text.iter().map(|byte| format!("{byte:02x}")).collect();
            object.serialize_entry(&format!("{name}_hex"), &digits)
        }
    }
}

/// JSON without spaces, with every control character, also above ASCII, written as `\u000a`.
struct Printable;

impl Formatter for Printable {
    fn write_char_escape<W: ?Sized + Write>(&mut self, out: &mut W, escape: CharEscape) -> io::Result<()> {
        let control: u8 = match escape {
            CharEscape::Quote => return out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => return out.write_all(b"\\\\"),
            CharEscape::Solidus => return out.write_all(b"/"),
            CharEscape::Backspace => 0x08,
            CharEscape::FormFeed => 0x0c,
            CharEscape::LineFeed => b'\n',
            CharEscape::CarriageReturn => b'\r',
            CharEscape::Tab => b'\t',
            CharEscape::AsciiControl(control) => control,
        };
        write!(out, "\\u{control:04x}")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(char::is_control) {
            let (plain, tail) = rest.split_at(at);
            out.write_all(plain.as_bytes())?;
            let mut letters = tail.chars();
            if let Some(control) = letters.next() {
                write!(out, "\\u{:04x}", u32::from(control))?;
            }
            rest = letters.as_str();
        }
        out.write_all(rest.as_bytes())
    }
}
