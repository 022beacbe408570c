//! What commands answer, as scripts see it, and what scripts answer, as clients are told it: both in the form of RESP.
//!
//! Source: Redis 7.0, "Redis Lua API reference", data type conversion.

use super::json::short;
use super::meter::{Over, ScriptMeter};
use mlua::{Lua, Result, Table, Value};

/// How deep the tables of an answer may nest.
const DEPTH_MAX: usize = 64;

/// An answer of a command, as a script sees it.
pub(super) fn to_lua(lua: &Lua, answer: &[u8], meter: &ScriptMeter) -> Result<Value> {
    let mut reader = Reader { lua, answer, at: 0, meter };
    reader.value()
}

struct Reader<'a> {
    lua: &'a Lua,
    answer: &'a [u8],
    at: usize,
    meter: &'a ScriptMeter,
}

impl Reader<'_> {
    fn line(&mut self) -> &[u8] {
        let rest = &self.answer[self.at..];
        let length = memchr::memchr(b'\r', rest).unwrap_or(rest.len());
        let begin = self.at;
        self.at = (begin + length + 2).min(self.answer.len());
        &self.answer[begin..begin + length]
    }

    fn number(&mut self) -> i64 {
        let line = self.line();
        std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    fn bulk(&mut self, length: usize) -> &[u8] {
        let begin = self.at.min(self.answer.len());
        let end = begin.saturating_add(length).min(self.answer.len());
        self.at = (end + 2).min(self.answer.len());
        &self.answer[begin..end]
    }

    fn said(&mut self, field: &str) -> Result<Value> {
        let (lua, table) = (self.lua, self.lua.create_table()?);
        let text = lua.create_string(self.line())?;
        table.raw_set(field, text)?;
        Ok(Value::Table(table))
    }

    fn value(&mut self) -> Result<Value> {
        self.meter.spend(4)?;
        let kind = self.answer.get(self.at).copied();
        self.at += 1;
        match kind {
            Some(b'+') => self.said("ok"),
            Some(b'-') => self.said("err"),
            Some(b':') => Ok(Value::Number(self.number() as f64)),
            Some(b'$') => match usize::try_from(self.number()) {
                Ok(length) => {
                    let lua = self.lua;
                    Ok(Value::String(lua.create_string(self.bulk(length))?))
                }
                Err(_) => Ok(Value::Boolean(false)),
            },
            Some(b'*') => match usize::try_from(self.number()) {
                Ok(length) => {
                    let table = self.lua.create_table()?;
                    for index in 1..=length {
                        let element = self.value()?;
                        table.raw_set(index, element)?;
                    }
                    Ok(Value::Table(table))
                }
                Err(_) => Ok(Value::Boolean(false)),
            },
            Some(b'_') => {
                self.line();
                Ok(Value::Nil)
            }
            // No command that a script may call answers anything else.
            Some(_) | None => Ok(Value::Nil),
        }
    }
}

/// Appends what a script answers, in RESP3; with `resp3` a truth value is one.
pub(super) fn from_lua(
    value: &Value,
    is_resp3: bool,
    meter: &ScriptMeter,
    max: usize,
    out: &mut Vec<u8>,
) -> Result<()> {
    Writer { is_resp3, meter, max }.write(value, 0, out)
}

struct Writer<'a> {
    is_resp3: bool,
    meter: &'a ScriptMeter,
    max: usize,
}

impl Writer<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        self.meter.spend(4)?;
        if out.len() > self.max {
            return Err(self.meter.end(Over::Answer));
        }
        match value {
            Value::String(text) => self.bulk(&text.as_bytes(), out)?,
            Value::Boolean(is) if self.is_resp3 => {
                out.extend_from_slice(if *is { b"#t\r\n" } else { b"#f\r\n" })
            }
            Value::Boolean(true) => out.extend_from_slice(b":1\r\n"),
            Value::Integer(number) => line(b':', number.to_string().as_bytes(), out),
            Value::Number(number) => line(b':', cut(*number).to_string().as_bytes(), out),
            Value::Table(_) if depth >= DEPTH_MAX => line(b'-', b"ERR reached lua stack limit", out),
            Value::Table(table) => self.table(table, depth, out)?,
            _ => out.extend_from_slice(b"_\r\n"),
        }
        Ok(())
    }

    fn bulk(&self, text: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if out.len() + text.len() > self.max {
            return Err(self.meter.end(Over::Answer));
        }
        self.meter.spend(text.len() as u64 / 64)?;
        line(b'$', text.len().to_string().as_bytes(), out);
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn table(&self, table: &Table, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        if let Value::String(text) = table.raw_get::<Value>("err")? {
            line(b'-', &text.as_bytes(), out);
        } else if let Value::String(text) = table.raw_get::<Value>("ok")? {
            line(b'+', &text.as_bytes(), out);
        } else if let Some(number) = number(&table.raw_get("double")?) {
            line(b',', short(number, 17).as_bytes(), out);
        } else if let Value::Table(map) = table.raw_get::<Value>("map")? {
            self.pairs(b'%', &map, depth, out)?;
        } else if let Value::Table(set) = table.raw_get::<Value>("set")? {
            self.pairs(b'~', &set, depth, out)?;
        } else if let Value::String(text) = table.raw_get::<Value>("big_number")? {
            line(b'(', &text.as_bytes(), out);
        } else if let Value::Table(text) = table.raw_get::<Value>("verbatim_string")? {
            match (text.raw_get::<Value>("string")?, text.raw_get::<Value>("format")?) {
                (Value::String(text), Value::String(format)) => {
                    let (text, format) = (text.as_bytes(), format.as_bytes());
                    let mut kind = [b' '; 3];
                    kind.iter_mut().zip(format.iter()).for_each(|(kind, byte)| *kind = *byte);
                    line(b'=', (text.len() + 4).to_string().as_bytes(), out);
                    out.extend_from_slice(&kind);
                    out.push(b':');
                    out.extend_from_slice(&text);
                    out.extend_from_slice(b"\r\n");
                }
                _ => out.extend_from_slice(b"_\r\n"),
            }
        } else {
            let begin = out.len();
            let mut count = 0u64;
            loop {
                let element: Value = table.raw_get(count + 1)?;
                if element.is_nil() {
                    break;
                }
                self.write(&element, depth + 1, out)?;
                count += 1;
            }
            let mut head = Vec::new();
            line(b'*', count.to_string().as_bytes(), &mut head);
            self.meter.spend((out.len() - begin) as u64 / 64)?;
            out.splice(begin..begin, head);
        }
        Ok(())
    }

    /// A map, or a set: the keys of its table.
    fn pairs(&self, kind: u8, table: &Table, depth: usize, out: &mut Vec<u8>) -> Result<()> {
        let pairs = table.pairs::<Value, Value>().collect::<Result<Vec<_>>>()?;
        line(kind, pairs.len().to_string().as_bytes(), out);
        for (key, value) in pairs {
            self.write(&key, depth + 1, out)?;
            if kind == b'%' {
                self.write(&value, depth + 1, out)?;
            }
        }
        Ok(())
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => Some(*number),
        Value::Integer(number) => Some(*number as f64),
        _ => None,
    }
}

/// A number without what follows the point, as the processors do it on which Redis runs: what is out of range is the least one.
fn cut(number: f64) -> i64 {
    let is_in_range = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number);
    if is_in_range {
        number as i64
    } else {
        i64::MIN
    }
}

/// Appends `kind` and a text as one line.
fn line(kind: u8, text: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    let begin = out.len();
    out.extend_from_slice(text);
    out[begin..].iter_mut().filter(|byte| matches!(byte, b'\r' | b'\n')).for_each(|byte| *byte = b' ');
    out.extend_from_slice(b"\r\n");
}
