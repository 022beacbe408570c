//! `bit` of scripts: operations on 32 bits.
//!
//! Source: Lua BitOp 1.0.

use mlua::{Lua, Result, Table, Variadic};

/// The operations by their names.
pub(super) fn table(lua: &Lua) -> Result<Table> {
    let table = lua.create_table()?;
    let one = |name: &str, operation: fn(i32) -> i32| {
        table.set(name, lua.create_function(move |_, number: f64| Ok(f64::from(operation(bits(number)))))?)
    };
    one("tobit", |number| number)?;
    one("bnot", |number| !number)?;
    one("bswap", i32::swap_bytes)?;
    let all = |name: &str, operation: fn(i32, i32) -> i32| {
        let function = lua.create_function(move |_, numbers: Variadic<f64>| {
            Ok(f64::from(numbers.iter().copied().map(bits).reduce(operation).unwrap_or_default()))
        })?;
        table.set(name, function)
    };
    all("band", |a, b| a & b)?;
    all("bor", |a, b| a | b)?;
    all("bxor", |a, b| a ^ b)?;
    let shift = |name: &str, operation: fn(i32, u32) -> i32| {
        let function = lua.create_function(move |_, (number, by): (f64, Option<f64>)| {
            Ok(f64::from(operation(bits(number), bits(by.unwrap_or_default()) as u32 & 31)))
        })?;
        table.set(name, function)
    };
    shift("lshift", |number, by| number << by)?;
    shift("rshift", |number, by| (number as u32 >> by) as i32)?;
    shift("arshift", |number, by| number >> by)?;
    shift("rol", i32::rotate_left)?;
    shift("ror", i32::rotate_right)?;
    let tohex = lua.create_function(|_, (number, digits): (f64, Option<f64>)| {
        let digits = digits.map_or(8, bits);
        let count = digits.unsigned_abs().min(8) as usize;
        let hex = format!("{:08x}", bits(number));
        let hex = &hex[8 - count..];
        Ok(if digits < 0 { hex.to_ascii_uppercase() } else { hex.to_owned() })
    })?;
    table.set("tohex", tohex)?;
    Ok(table)
}

/// The lowest 32 bits of a number.
fn bits(number: f64) -> i32 {
    let rounded = number.round_ties_even();
    if rounded.abs() < 9e15 {
        rounded as i64 as i32
    } else {
        0
    }
}
