//! The interpreter: one of each thread, which scripts share one after the other, and nothing in it.

use super::meter::{Over, RaisedReply, RunAllowance, ScriptMeter, HEAVY_LOOKS_EVERY, LOOKS_EVERY};
use super::patterns::{self, Capture, Unmatched};
use super::{bits, json, sha1hex, values, Called, RunEnd, ScriptHost};
use crate::resp::REDIS_VERSION;
use bytes::Bytes;
use mlua::chunk::ChunkMode;
use mlua::{
    Error, Function, HookTriggers, Lua, LuaOptions, LuaString, MultiValue, Result, StdLib, Table, Value,
    VmState,
};
use std::cell::RefCell;
use std::rc::Rc;

const PRELUDE: &str = include_str!("prelude.lua");

/// As scripts are called in errors.
const SCRIPT_NAME: &str = "@user_script";
const PRELUDE_NAME: &str = "=[prelude]";

/// An interpreter that holds more when a script is over is not used again, in bytes.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// [`REDIS_VERSION`] as scripts compare it.
const REDIS_VERSION_NUM: u32 = 0x0007_0400;

/// What a call of a command takes, in steps, beside its words and its answer.
const CALL_STEPS: u64 = 200;

thread_local! {
    static IDLE: RefCell<Option<Interpreter>> = const { RefCell::new(None) };
}

struct Interpreter {
    lua: Lua,
    meter: Rc<ScriptMeter>,
    run: Function,
}

/// A script and what it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// Its text, without a first line that is for the server.
    pub(crate) body: &'a [u8],
    pub(crate) keys: &'a [Bytes],
    pub(crate) args: &'a [Bytes],
    pub(crate) allowance: RunAllowance,
    /// What `math.random` begins with.
    pub(crate) seed: u32,
}

/// Whether a script can be executed at all.
///
/// # Errors
/// What the interpreter says against it.
pub(crate) fn check(body: &[u8]) -> std::result::Result<(), String> {
    let interpreter = IDLE.take().map_or_else(Interpreter::new, Ok);
    let interpreter = interpreter.map_err(|error| error.to_string())?;
    let checked = compile(&interpreter.lua, body).map(drop);
    IDLE.set(Some(interpreter));
    checked
}

/// Executes a script, and says how many steps are left.
pub(crate) fn run(run: &Run<'_>, host: &mut dyn ScriptHost) -> (RunEnd, u64) {
    let interpreter = match IDLE.take().map_or_else(Interpreter::new, Ok) {
        Ok(interpreter) => interpreter,
        Err(error) => return (RunEnd::Failed(format!("ERR {error}").into_bytes(), None), 0),
    };
    let ended = interpreter.run(run, host);
    let left = interpreter.meter.left();
    let is_whole = !matches!(ended, RunEnd::Over(Over::Memory));
    if is_whole && interpreter.lua.used_memory() <= KEPT_BYTES_MAX {
        IDLE.set(Some(interpreter));
    }
    (ended, left)
}

fn compile(lua: &Lua, body: &[u8]) -> std::result::Result<Function, String> {
    let chunk = lua.load(body).set_name(SCRIPT_NAME).set_mode(ChunkMode::Text);
    chunk.into_function().map_err(|error| match error {
        Error::SyntaxError { message, .. } => message,
        other => other.to_string(),
    })
}

impl Interpreter {
    fn new() -> Result<Self> {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH;
        let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(false))?;
        let meter = Rc::new(ScriptMeter::new());
        let given = given(&lua, &meter)?;
        let prelude = lua.load(PRELUDE).set_name(PRELUDE_NAME).set_mode(ChunkMode::Text);
        let run = prelude.call::<Function>(given)?;
        Ok(Interpreter { lua, meter, run })
    }

    fn watch(lua: &Lua, meter: &Rc<ScriptMeter>, every: u32) -> Result<()> {
        let meter = Rc::clone(meter);
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(every), move |lua, _| {
            if meter.look(lua)? {
                let every = if meter.is_heavy.get() { HEAVY_LOOKS_EVERY } else { LOOKS_EVERY };
                Interpreter::watch(lua, &meter, every)?;
            }
            Ok(VmState::Continue)
        })
    }

    fn run(&self, run: &Run<'_>, host: &mut dyn ScriptHost) -> RunEnd {
        let (lua, meter) = (&self.lua, &self.meter);
        let held = lua.used_memory();
        meter.begin(run.allowance, run.seed, held);
        let ran = meter
            .spend(2 * run.body.len() as u64)
            .and_then(|()| lua.set_memory_limit(held.saturating_add(run.allowance.memory_bytes)))
            .and_then(|_| Self::watch(lua, meter, LOOKS_EVERY))
            .and_then(|()| self.call(run, host));
        lua.remove_global_hook();
        // Even if it got away with something else.
        if let Some(over) = meter.over() {
            return RunEnd::Over(over);
        }
        let ended = ran.unwrap_or_else(|error| {
            if matches!(error, Error::MemoryError(_)) {
                RunEnd::Over(Over::Memory)
            } else {
                RunEnd::Failed(format!("ERR {error}").into_bytes(), None)
            }
        });
        drop(lua.set_memory_limit(0));
        ended
    }

    fn call(&self, run: &Run<'_>, host: &mut dyn ScriptHost) -> Result<RunEnd> {
        let (lua, meter) = (&self.lua, &self.meter);
        let script = match compile(lua, run.body) {
            Ok(script) => script,
            Err(why) => return Ok(RunEnd::NotCompiled(why)),
        };
        let keys = lua.create_sequence_from(
            run.keys.iter().map(|key| lua.create_string(key)).collect::<Result<Vec<_>>>()?,
        )?;
        let args = lua.create_sequence_from(
            run.args.iter().map(|arg| lua.create_string(arg)).collect::<Result<Vec<_>>>()?,
        )?;
        let host = RefCell::new(host);
        let asked = |lua: &Lua, words: MultiValue| {
            let words = match words_of(words, meter)? {
                Ok(words) => words,
                Err(why) => return Ok(Err(why.as_bytes().to_vec())),
            };
            match host.borrow_mut().call(words, meter.version.get() == 3, meter.left()) {
                Called::Answer(answer, steps) => {
                    meter.spend(CALL_STEPS + steps + answer.len() as u64 / 64)?;
                    match answer.strip_prefix(b"-") {
                        Some(error) => Ok(Err(error.trim_ascii_end().to_vec())),
                        None => Ok(Ok(values::to_lua(lua, &answer, meter)?)),
                    }
                }
                Called::Stop => Err(meter.end(Over::Stopped)),
            }
        };
        lua.scope(|scope| {
            let call = scope.create_function(|lua, words: MultiValue| {
                asked(lua, words)?.map_err(|error| Error::external(RaisedReply(error)))
            })?;
            let attempt = scope.create_function(|lua, words: MultiValue| match asked(lua, words)? {
                Ok(value) => Ok(value),
                Err(error) => {
                    let table = lua.create_table()?;
                    table.raw_set("err", lua.create_string(error)?)?;
                    Ok(Value::Table(table))
                }
            })?;
            let may = scope.create_function(|_, words: MultiValue| {
                meter.spend(CALL_STEPS)?;
                // What is no word is no command either.
                Ok(words_of(words, meter)?.map_or(None, |words| host.borrow_mut().may(&words)))
            })?;
            let (ok, result): (bool, Value) = self.run.call((script, keys, args, call, attempt, may))?;
            self.ended(ok, &result, run.allowance.answer_bytes)
        })
    }

    /// What has come of a script, of which that is the result or the error.
    fn ended(&self, ok: bool, result: &Value, answer_bytes: usize) -> Result<RunEnd> {
        let meter = &self.meter;
        if !ok && meter.is_over(result) {
            return Err(Error::runtime("the script is over"));
        }
        if ok {
            let mut answer = Vec::new();
            values::from_lua(result, meter.version.get() == 3, meter, answer_bytes, &mut answer)?;
            return Ok(RunEnd::Answer(answer));
        }
        let Value::Table(error) = result else {
            return Ok(RunEnd::Failed(b"ERR unknown error".to_vec(), None));
        };
        let text: LuaString = error.raw_get("err")?;
        let place = match (error.raw_get::<Value>("source")?, error.raw_get::<Value>("line")?) {
            (Value::String(source), Value::Integer(line)) => Some((source.to_string_lossy(), line as u64)),
            (Value::String(source), Value::Number(line)) => Some((source.to_string_lossy(), line as u64)),
            _ => None,
        };
        let text = text.as_bytes().to_vec();
        Ok(RunEnd::Failed(text, place))
    }
}

/// The words of a call; the inner error is for the script.
fn words_of(words: MultiValue, meter: &ScriptMeter) -> Result<std::result::Result<Vec<Bytes>, &'static str>> {
    if words.is_empty() {
        return Ok(Err("ERR Please specify at least one argument for this redis lib call"));
    }
    let mut all = Vec::with_capacity(words.len());
    for word in words {
        let word = match word {
            Value::String(word) => Bytes::copy_from_slice(&word.as_bytes()),
            Value::Integer(number) => Bytes::from(number.to_string()),
            Value::Number(number) => Bytes::from(json::short(number, 17)),
            _ => return Ok(Err("ERR Lua redis lib command arguments must be strings or integers")),
        };
        meter.spend(4 + word.len() as u64 / 64)?;
        all.push(word);
    }
    Ok(Ok(all))
}

/// What the prelude is given.
fn given(lua: &Lua, meter: &Rc<ScriptMeter>) -> Result<Table> {
    let given = lua.create_table()?;
    let of = |meter: &Rc<ScriptMeter>| Rc::clone(meter);
    let charged = of(meter);
    given.set("charge", lua.create_function(move |_, steps: f64| charged.spend(steps.max(0.0) as u64))?)?;
    let watched = of(meter);
    given.set("is_over", lua.create_function(move |_, error: Value| Ok(watched.is_over(&error)))?)?;
    let limited = of(meter);
    given.set("fits", lua.create_function(move |_, bytes: f64| limited.holds(bytes.min(1e18) as usize))?)?;
    given.set("kilobytes", lua.create_function(|lua, ()| Ok(lua.used_memory() as f64 / 1024.0))?)?;
    given.set("place", lua.create_function(|lua, ()| Ok(place(lua)))?)?;
    given.set("raised", lua.create_function(|lua, error: Value| ScriptMeter::raised(lua, &error))?)?;
    let spoken = of(meter);
    given.set(
        "speak",
        lua.create_function(move |_, version: u8| {
            spoken.version.set(version);
            Ok(())
        })?,
    )?;
    given.set("sha1hex", lua.create_function(|_, text: LuaString| Ok(sha1hex(&text.as_bytes())))?)?;
    let random = of(meter);
    given.set("random", lua.create_function(move |_, ()| Ok(random.random()))?)?;
    let seeded = of(meter);
    given.set(
        "seed",
        lua.create_function(move |_, seed: f64| {
            seeded.seed(seed as i64 as u32);
            Ok(())
        })?,
    )?;
    let matched = of(meter);
    given.set("search", lua.create_function(move |lua, asked| search(lua, asked, &matched))?)?;
    let encoding = of(meter);
    given.set(
        "encode",
        lua.create_function(move |lua, value: Value| match json::encode(&value, &encoding)? {
            Ok(text) => Ok((Some(lua.create_string(text)?), None)),
            Err(why) => Ok((None, Some(why))),
        })?,
    )?;
    let decoding = of(meter);
    given.set(
        "decode",
        lua.create_function(move |lua, text: LuaString| {
            match json::decode(lua, &text.as_bytes(), &decoding)? {
                Ok(value) => Ok((value, None)),
                Err(why) => Ok((Value::Nil, Some(why))),
            }
        })?,
    )?;
    given.set("null", Value::NULL)?;
    given.set("bit", bits::table(lua)?)?;
    given.set("version", REDIS_VERSION)?;
    given.set("version_number", REDIS_VERSION_NUM)?;
    Ok(given)
}

/// Where a script is: the place that is the nearest in it.
fn place(lua: &Lua) -> (Option<String>, Option<usize>) {
    let mut level = 0;
    while let Some(place) = lua.inspect_stack(level, |debug| {
        let source = debug.source();
        // Functions of the interpreter have no lines, nor have calls whose place another one has taken.
        let is_script = debug.current_line().is_some() && source.source.as_deref() != Some(PRELUDE_NAME);
        is_script.then(|| (source.source.map(|source| source.into_owned()), debug.current_line()))
    }) {
        if let Some(place) = place {
            return place;
        }
        level += 1;
    }
    (None, None)
}

fn search(
    lua: &Lua,
    (text, pattern, init, is_plain): (LuaString, LuaString, f64, bool),
    meter: &ScriptMeter,
) -> Result<MultiValue> {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let length = text.len() as f64;
    let init = if init < 0.0 { (length + init + 1.0).max(1.0) } else { init.max(1.0) };
    let mut values = MultiValue::new();
    if init > length + 1.0 {
        values.push_back(Value::Nil);
        return Ok(values);
    }
    let init = init as usize - 1;
    let is_plain = is_plain || !pattern.iter().any(|byte| b"^$*+?.([%-".contains(byte));
    if is_plain {
        meter.spend(1 + text.len() as u64 / 64)?;
        match memchr::memmem::find(&text[init..], &pattern) {
            Some(at) => {
                values.push_back(Value::Number((init + at + 1) as f64));
                values.push_back(Value::Number((init + at + pattern.len()) as f64));
            }
            None => values.push_back(Value::Nil),
        }
        return Ok(values);
    }
    let mut steps = meter.left();
    let found = patterns::search(&text, &pattern, init, &mut steps);
    meter.set_left(steps);
    match found {
        Err(Unmatched::Steps) => return Err(meter.end(Over::Steps)),
        Err(Unmatched::Malformed(why)) => {
            values.push_back(Value::Boolean(false));
            values.push_back(Value::String(lua.create_string(why)?));
        }
        Ok(None) => values.push_back(Value::Nil),
        Ok(Some(found)) => {
            values.push_back(Value::Number((found.start + 1) as f64));
            values.push_back(Value::Number(found.end as f64));
            for capture in found.captures {
                values.push_back(match capture {
                    Capture::Text(start, length) => {
                        Value::String(lua.create_string(&text[start..start + length])?)
                    }
                    Capture::Place(at) => Value::Number((at + 1) as f64),
                });
            }
        }
    }
    Ok(values)
}
