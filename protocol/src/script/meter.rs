//! What a script has used up of what it may take. A script that takes more is over: no `pcall` brings it back.

use mlua::{Error, Lua, Value};
use std::cell::Cell;
use std::time::Duration;

/// The interpreter looks at the meter after so many instructions, and after fewer if the script holds so many bytes: then one
/// instruction may take long.
pub(super) const LOOKS_EVERY: u32 = 100;
pub(super) const HEAVY_LOOKS_EVERY: u32 = 10;
const HEAVY_BYTES: usize = 4 << 20;

/// What a run may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunAllowance {
    /// Steps: about one instruction of the interpreter, or 64 bytes that are copied.
    pub(crate) steps: u64,
    /// Bytes that the interpreter may hold for it.
    pub(crate) memory_bytes: usize,
    /// Bytes of its answer.
    pub(crate) answer_bytes: usize,
    /// What measures the time that this thread has computed; `None` where time does not pass in a step.
    pub(crate) cpu_time: Option<fn() -> Duration>,
}

/// A run may compute for so long whatever its steps are: some instructions take far longer than others.
const CPU_TIME_MAX: Duration = Duration::from_millis(40);

/// Why a script is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// It calls for what is not at hand.
    Stopped,
    Steps,
    Memory,
    Answer,
}

/// A command has answered this error, and it was not asked for by `redis.pcall`.
#[derive(Debug)]
pub(super) struct RaisedReply(pub(super) Vec<u8>);

impl std::fmt::Display for RaisedReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl std::error::Error for RaisedReply {}

/// What an error was before it went through functions.
fn root(error: &Error) -> &Error {
    match error {
        Error::CallbackError { cause, .. } => root(cause),
        other => other,
    }
}

#[derive(Debug)]
pub(super) struct ScriptMeter {
    steps: Cell<u64>,
    allowance: Cell<RunAllowance>,
    over: Cell<Option<Over>>,
    /// When it began.
    begun: Cell<Duration>,
    /// Bytes that the interpreter held when it was looked at last.
    held: Cell<usize>,
    pub(super) is_heavy: Cell<bool>,
    /// What `math.random` goes on with.
    random: Cell<u64>,
    /// The version of RESP in which answers are given to it.
    pub(super) version: Cell<u8>,
}

impl ScriptMeter {
    pub(super) fn new() -> Self {
        let allowance =
            RunAllowance { steps: u64::MAX, memory_bytes: usize::MAX, answer_bytes: 0, cpu_time: None };
        ScriptMeter {
            steps: Cell::new(u64::MAX),
            allowance: Cell::new(allowance),
            over: Cell::new(None),
            begun: Cell::default(),
            held: Cell::new(0),
            is_heavy: Cell::new(false),
            random: Cell::new(0),
            version: Cell::new(2),
        }
    }

    pub(super) fn begin(&self, allowance: RunAllowance, seed: u32, held: usize) {
        self.steps.set(allowance.steps);
        self.allowance.set(allowance);
        self.over.set(None);
        self.begun.set(allowance.cpu_time.map_or(Duration::ZERO, |now| now()));
        self.held.set(held);
        self.is_heavy.set(false);
        self.version.set(2);
        self.seed(seed);
    }

    pub(super) fn left(&self) -> u64 {
        self.steps.get()
    }

    pub(super) fn set_left(&self, steps: u64) {
        self.steps.set(steps);
    }

    pub(super) fn over(&self) -> Option<Over> {
        self.over.get()
    }

    /// Ends the script for that reason, and gives the error to raise.
    pub(super) fn end(&self, over: Over) -> Error {
        if self.over.get().is_none() {
            self.over.set(Some(over));
        }
        Error::runtime("the script is over")
    }

    /// Takes so many steps.
    ///
    /// # Errors
    /// It has none left, or was over before.
    pub(super) fn spend(&self, steps: u64) -> mlua::Result<()> {
        if let Some(over) = self.over.get() {
            return Err(self.end(over));
        }
        match self.steps.get().checked_sub(steps) {
            Some(left) => {
                self.steps.set(left);
                Ok(())
            }
            None => {
                self.steps.set(0);
                Err(self.end(Over::Steps))
            }
        }
    }

    /// Whether so many bytes may be made at once.
    ///
    /// # Errors
    /// They may not.
    pub(super) fn holds(&self, bytes: usize) -> mlua::Result<()> {
        if bytes > self.allowance.get().memory_bytes {
            return Err(self.end(Over::Memory));
        }
        Ok(())
    }

    /// The interpreter has executed some instructions; whether it is to be looked at more, or less, often from now on.
    ///
    /// # Errors
    /// The script is over.
    pub(super) fn look(&self, lua: &Lua) -> mlua::Result<bool> {
        let held = lua.used_memory();
        let more = held.saturating_sub(self.held.replace(held));
        let instructions = if self.is_heavy.get() { HEAVY_LOOKS_EVERY } else { LOOKS_EVERY };
        self.spend(u64::from(instructions) + more as u64 / 64)?;
        let was_heavy = self.is_heavy.replace(held > HEAVY_BYTES);
        if let Some(now) = self.allowance.get().cpu_time {
            let is_due = was_heavy || (self.steps.get() / u64::from(LOOKS_EVERY)).is_multiple_of(16);
            if is_due && now().saturating_sub(self.begun.get()) > CPU_TIME_MAX {
                return Err(self.end(Over::Steps));
            }
        }
        Ok(was_heavy != self.is_heavy.get())
    }

    /// Whether that is an error that nothing may catch.
    pub(super) fn is_over(&self, error: &Value) -> bool {
        let is_memory = match error {
            Value::Error(error) => matches!(root(error), Error::MemoryError(_)),
            Value::String(text) => text.as_bytes().ends_with(b"not enough memory"),
            _ => false,
        };
        if is_memory {
            self.end(Over::Memory);
        }
        self.over.get().is_some()
    }

    /// The error of a command that a script has called, as a table of Lua.
    pub(super) fn raised(lua: &Lua, error: &Value) -> mlua::Result<Value> {
        let table = lua.create_table()?;
        let text = match error {
            Value::Error(error) => match root(error) {
                Error::ExternalError(external) => match external.downcast_ref::<RaisedReply>() {
                    Some(RaisedReply(text)) => lua.create_string(text)?,
                    None => lua.create_string(external.to_string())?,
                },
                other => lua.create_string(format!("ERR {other}"))?,
            },
            other => return Ok(other.clone()),
        };
        table.raw_set("err", text)?;
        Ok(Value::Table(table))
    }

    /// As Redis' `math.randomseed`.
    pub(super) fn seed(&self, seed: u32) {
        self.random.set(u64::from(seed) << 16 | 0x330e);
    }

    /// As Redis' `math.random`: the generator of `drand48`, from 0 to less than 1.
    pub(super) fn random(&self) -> f64 {
        let next = self.random.get().wrapping_mul(0x5_deec_e66d).wrapping_add(0xb) & 0xffff_ffff_ffff;
        self.random.set(next);
        let max = i32::MAX as u64;
        ((next >> 17) % max) as f64 / max as f64
    }
}
