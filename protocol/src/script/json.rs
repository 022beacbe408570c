//! `cjson` of scripts: values as JSON and back.
//!
//! Source: lua-cjson 2.1, as Redis 7.0 has it: the texts of its errors, 14 digits of a number, arrays by their keys.

use super::meter::ScriptMeter;
use mlua::{Lua, Result, Table, Value};

/// How deep values may nest: more than that Redis does not encode either (1000), but each level takes stack here.
const DEPTH_MAX: usize = 128;

/// A table with such a hole is a fault, as in lua-cjson: its longest array for its elements, if it is longer than the second.
const SPARSE_RATIO: usize = 2;
const SPARSE_SAFE: usize = 10;

/// Why something has no form.
pub(super) type Why = String;

/// Encodes a value; the inner error is for the script.
pub(super) fn encode(value: &Value, meter: &ScriptMeter) -> Result<std::result::Result<Vec<u8>, Why>> {
    let mut out = Vec::new();
    let encoded = write(value, 0, meter, &mut out)?;
    Ok(encoded.map(|()| out))
}

fn write(
    value: &Value,
    depth: usize,
    meter: &ScriptMeter,
    out: &mut Vec<u8>,
) -> Result<std::result::Result<(), Why>> {
    meter.spend(4)?;
    meter.holds(out.len())?;
    match value {
        Value::Nil => out.extend_from_slice(b"null"),
        Value::LightUserData(null) if null.0.is_null() => out.extend_from_slice(b"null"),
        Value::Boolean(true) => out.extend_from_slice(b"true"),
        Value::Boolean(false) => out.extend_from_slice(b"false"),
        Value::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Number(number) if !number.is_finite() => {
            return Ok(Err("Cannot serialise number: must not be NaN or Inf".to_owned()));
        }
        Value::Number(number) => out.extend_from_slice(short(*number, 14).as_bytes()),
        Value::String(text) => write_string(&text.as_bytes(), meter, out)?,
        Value::Table(table) => {
            if depth >= DEPTH_MAX {
                return Ok(Err(format!("Cannot serialise, excessive depth ({})", depth + 1)));
            }
            match array_length(table, meter)? {
                Ok(Some(length)) => {
                    out.push(b'[');
                    for index in 1..=length {
                        if index > 1 {
                            out.push(b',');
                        }
                        let element: Value = table.raw_get(index)?;
                        if let Err(why) = write(&element, depth + 1, meter, out)? {
                            return Ok(Err(why));
                        }
                    }
                    out.push(b']');
                }
                Ok(None) => return write_object(table, depth, meter, out),
                Err(why) => return Ok(Err(why)),
            }
        }
        other => {
            return Ok(Err(format!("Cannot serialise {}: type not supported", other.type_name())));
        }
    }
    Ok(Ok(()))
}

fn write_object(
    table: &Table,
    depth: usize,
    meter: &ScriptMeter,
    out: &mut Vec<u8>,
) -> Result<std::result::Result<(), Why>> {
    out.push(b'{');
    let mut is_first = true;
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        if !std::mem::take(&mut is_first) {
            out.push(b',');
        }
        match &key {
            Value::Integer(number) => out.extend_from_slice(format!("\"{number}\":").as_bytes()),
            Value::Number(number) => {
                out.extend_from_slice(format!("\"{}\":", short(*number, 14)).as_bytes());
            }
            Value::String(text) => {
                write_string(&text.as_bytes(), meter, out)?;
                out.push(b':');
            }
            _ => {
                let why =
                    format!("Cannot serialise {}: table key must be a number or string", key.type_name());
                return Ok(Err(why));
            }
        }
        if let Err(why) = write(&value, depth + 1, meter, out)? {
            return Ok(Err(why));
        }
    }
    out.push(b'}');
    Ok(Ok(()))
}

/// How long the array is that a table is; `None` if it is an object.
fn array_length(table: &Table, meter: &ScriptMeter) -> Result<std::result::Result<Option<usize>, Why>> {
    let (mut longest, mut count) = (0, 0);
    for pair in table.pairs::<Value, Value>() {
        meter.spend(2)?;
        let (key, _) = pair?;
        let index = match key {
            Value::Integer(index) => usize::try_from(index).unwrap_or_default(),
            Value::Number(index) if index >= 1.0 && index.fract() == 0.0 && index < 1e15 => index as usize,
            _ => 0,
        };
        if index == 0 {
            return Ok(Ok(None));
        }
        longest = longest.max(index);
        count += 1;
    }
    if longest > count * SPARSE_RATIO && longest > SPARSE_SAFE {
        return Ok(Err("Cannot serialise table: excessively sparse array".to_owned()));
    }
    // An empty one is an object.
    Ok(Ok((count > 0).then_some(longest)))
}

fn write_string(text: &[u8], meter: &ScriptMeter, out: &mut Vec<u8>) -> Result<()> {
    meter.spend(text.len() as u64 / 16)?;
    meter.holds(out.len() + text.len() + 2)?;
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'/' => out.extend_from_slice(b"\\/"),
            8 => out.extend_from_slice(b"\\b"),
            9 => out.extend_from_slice(b"\\t"),
            10 => out.extend_from_slice(b"\\n"),
            12 => out.extend_from_slice(b"\\f"),
            13 => out.extend_from_slice(b"\\r"),
            0..=31 | 127 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
    Ok(())
}

/// A number as `%.14g` writes it.
pub(super) fn short(number: f64, digits: usize) -> String {
    if number == 0.0 {
        return if number.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    if !number.is_finite() {
        return match (number.is_nan(), number > 0.0) {
            (true, _) => "nan",
            (false, true) => "inf",
            (false, false) => "-inf",
        }
        .to_owned();
    }
    let scientific = format!("{number:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs());
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    trimmed(&format!("{number:.decimals$}"))
}

/// Reads JSON; the inner error is for the script.
pub(super) fn decode(lua: &Lua, text: &[u8], meter: &ScriptMeter) -> Result<std::result::Result<Value, Why>> {
    let mut reader = Reader { lua, text, at: 0, meter };
    let value = match reader.value(0)? {
        Ok(value) => value,
        Err(why) => return Ok(Err(why)),
    };
    reader.skip();
    if reader.at < text.len() {
        return Ok(Err(reader.expected("the end")));
    }
    Ok(Ok(value))
}

struct Reader<'a> {
    lua: &'a Lua,
    text: &'a [u8],
    at: usize,
    meter: &'a ScriptMeter,
}

macro_rules! told {
    ($read:expr) => {
        match $read {
            Ok(read) => read,
            Err(why) => return Ok(Err(why)),
        }
    };
}

impl Reader<'_> {
    fn skip(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expected(&self, what: &str) -> Why {
        let found = match self.text.get(self.at) {
            None => "T_END",
            Some(b'{') => "T_OBJ_BEGIN",
            Some(b'}') => "T_OBJ_END",
            Some(b'[') => "T_ARR_BEGIN",
            Some(b']') => "T_ARR_END",
            Some(b'"') => "T_STRING",
            Some(b':') => "T_COLON",
            Some(b',') => "T_COMMA",
            Some(_) => "invalid token",
        };
        format!("Expected {what} but found {found} at character {}", self.at + 1)
    }

    fn value(&mut self, depth: usize) -> Result<std::result::Result<Value, Why>> {
        self.meter.spend(4)?;
        self.skip();
        if depth > DEPTH_MAX {
            return Ok(Err(format!("Found too many nested data structures ({depth})")));
        }
        let rest = &self.text[self.at..];
        let words: [(&[u8], Value); 3] =
            [(b"true", Value::Boolean(true)), (b"false", Value::Boolean(false)), (b"null", Value::NULL)];
        for (word, value) in words {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(Ok(value));
            }
        }
        match rest.first() {
            Some(b'"') => {
                let text = told!(self.string()?);
                Ok(Ok(Value::String(self.lua.create_string(text)?)))
            }
            Some(b'[') => self.array(depth),
            Some(b'{') => self.object(depth),
            Some(b'-' | b'0'..=b'9') => {
                let length = rest
                    .iter()
                    .position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
                    .unwrap_or(rest.len());
                let number =
                    std::str::from_utf8(&rest[..length]).ok().and_then(|text| text.parse::<f64>().ok());
                let Some(number) = number else { return Ok(Err(self.expected("value"))) };
                self.at += length;
                Ok(Ok(Value::Number(number)))
            }
            Some(_) | None => Ok(Err(self.expected("value"))),
        }
    }

    fn array(&mut self, depth: usize) -> Result<std::result::Result<Value, Why>> {
        self.at += 1;
        let table = self.lua.create_table()?;
        self.skip();
        if self.text.get(self.at) == Some(&b']') {
            self.at += 1;
            return Ok(Ok(Value::Table(table)));
        }
        for index in 1.. {
            let value = told!(self.value(depth + 1)?);
            table.raw_set(index, value)?;
            self.skip();
            match self.text.get(self.at) {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    break;
                }
                Some(_) | None => return Ok(Err(self.expected("comma or array end"))),
            }
        }
        Ok(Ok(Value::Table(table)))
    }

    fn object(&mut self, depth: usize) -> Result<std::result::Result<Value, Why>> {
        self.at += 1;
        let table = self.lua.create_table()?;
        self.skip();
        if self.text.get(self.at) == Some(&b'}') {
            self.at += 1;
            return Ok(Ok(Value::Table(table)));
        }
        loop {
            self.skip();
            if self.text.get(self.at) != Some(&b'"') {
                return Ok(Err(self.expected("object key string")));
            }
            let key = told!(self.string()?);
            self.skip();
            if self.text.get(self.at) != Some(&b':') {
                return Ok(Err(self.expected("colon")));
            }
            self.at += 1;
            let value = told!(self.value(depth + 1)?);
            table.raw_set(self.lua.create_string(key)?, value)?;
            self.skip();
            match self.text.get(self.at) {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Ok(Value::Table(table)));
                }
                Some(_) | None => return Ok(Err(self.expected("comma or object end"))),
            }
        }
    }

    /// A string, of which the first quotation mark is next.
    fn string(&mut self) -> Result<std::result::Result<Vec<u8>, Why>> {
        let begin = self.at;
        self.at += 1;
        let mut out = Vec::new();
        loop {
            let Some(&byte) = self.text.get(self.at) else {
                self.at = begin;
                return Ok(Err(format!(
                    "Expected value but found unexpected end of string at character {}",
                    self.text.len() + 1
                )));
            };
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let escaped = self.text.get(self.at).copied();
                    self.at += 1;
                    match escaped {
                        Some(plain @ (b'"' | b'\\' | b'/')) => out.push(plain),
                        Some(b'b') => out.push(8),
                        Some(b't') => out.push(9),
                        Some(b'n') => out.push(10),
                        Some(b'f') => out.push(12),
                        Some(b'r') => out.push(13),
                        Some(b'u') => match self.unicode() {
                            Some(letter) => out.extend_from_slice(letter.to_string().as_bytes()),
                            None => {
                                let why = "invalid unicode escape code";
                                return Ok(Err(format!(
                                    "Expected value but found {why} at character {}",
                                    self.at - 1
                                )));
                            }
                        },
                        Some(_) | None => {
                            let why = "invalid escape code";
                            return Ok(Err(format!(
                                "Expected value but found {why} at character {}",
                                self.at - 1
                            )));
                        }
                    }
                }
                _ => out.push(byte),
            }
        }
        self.meter.spend(out.len() as u64 / 16)?;
        Ok(Ok(out))
    }

    fn unicode(&mut self) -> Option<char> {
        let unit = |reader: &mut Self| {
            let digits = reader.text.get(reader.at..reader.at + 4)?;
            let unit = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
            reader.at += 4;
            Some(unit)
        };
        let first = unit(self)?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        if self.text.get(self.at..self.at + 2) != Some(b"\\u") {
            return None;
        }
        self.at += 2;
        let second = unit(self)?.checked_sub(0xdc00).filter(|second| *second < 0x400)?;
        char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)
    }
}
