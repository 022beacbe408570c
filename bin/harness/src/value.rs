//! The texts of keys and values: what a write sends and what a read must bring back.
//!
//! A value names its key, the run, the writer, the number of the write of that key and its distance from the latest
//! finished write, and is filled up with a pattern: `key42:9f3c01:2a:1f4:1;ABCDEF…`. So a value shows whether it was
//! written for this key, is whole, and how old it is. Owns this text; [`super::ledger`] knows what was acknowledged.

/// Which write a value came from. Writes of one key are numbered from 1 in the order in which they were begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteNumber {
    /// The connection that wrote it; 0 wrote the first values, before the load.
    pub writer: u32,
    /// Which write of its key.
    pub seq: u64,
    /// All writes of the key through this number had ended, with whatever outcome, when this one was begun.
    pub floor: u64,
}

/// Why a value cannot be an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// It was written for another key.
    OtherKey,
    /// Another run wrote it, before this one wrote all keys.
    OtherRun,
    /// It was never written.
    Mangled,
}

/// Hexadecimal digits of the run in a value.
const RUN_DIGITS: usize = 6;

/// Digits of a writer, and of a number of a write, at most.
const WRITER_DIGITS_MAX: usize = 8;
const SEQ_DIGITS_MAX: usize = 10;

/// The fill of values, from a place that differs from one write to the next.
const PATTERN: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Texts one after the other in a single allocation.
#[derive(Debug, Default)]
pub(crate) struct TextTable {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl TextTable {
    /// `count` texts, each written by `write`.
    pub(crate) fn new(count: u32, mut write: impl FnMut(u32, &mut Vec<u8>)) -> TextTable {
        let mut table = TextTable::default();
        for index in 0..count {
            write(index, &mut table.bytes);
            table.ends.push(table.bytes.len());
        }
        table
    }

    /// The text with this number.
    pub(crate) fn get(&self, index: u32) -> &[u8] {
        let index = index as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..self.ends[index]]
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        self.ends.len() as u32
    }
}

/// The keys and values of one run.
#[derive(Debug)]
pub(crate) struct Texts {
    keys: TextTable,
    run: [u8; RUN_DIGITS],
    value_bytes: usize,
    /// [`PATTERN`] again and again, longer than a value by one pattern.
    fill: Vec<u8>,
}

impl Texts {
    /// Keys `{prefix}0` to `{prefix}{count - 1}` and values of `value_bytes`. `run` tells runs on one store apart.
    pub(crate) fn new(prefix: &str, count: u32, value_bytes: usize, run: u32) -> Texts {
        let mut tag = [0; RUN_DIGITS];
        let mut left = run;
        for digit in &mut tag {
            *digit = b"0123456789abcdef"[(left & 15) as usize];
            left >>= 4;
        }
        let keys = TextTable::new(count, |index, out| {
            out.extend_from_slice(prefix.as_bytes());
            push_number(out, u64::from(index), 10);
        });
        let fill = PATTERN.iter().copied().cycle().take(value_bytes + PATTERN.len()).collect();
        Texts { keys, run: tag, value_bytes, fill }
    }

    /// The shortest value that can carry all it must.
    pub(crate) fn value_bytes_min(prefix: &str, count: u32) -> usize {
        let digits = count.saturating_sub(1).max(1).ilog10() as usize + 1;
        prefix.len() + digits + RUN_DIGITS + WRITER_DIGITS_MAX + 2 * SEQ_DIGITS_MAX + 5
    }

    /// What stands for the run in each value.
    pub(crate) fn run_tag(&self) -> &str {
        std::str::from_utf8(&self.run).expect("hexadecimal digits are ASCII")
    }

    pub(crate) fn keys(&self) -> &TextTable {
        &self.keys
    }

    /// Length of every value.
    pub(crate) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Appends the value of a write; it is [`Texts::value_bytes`] long.
    pub(crate) fn push_value(&self, key: u32, version: WriteNumber, out: &mut Vec<u8>) {
        let end = out.len() + self.value_bytes;
        out.extend_from_slice(self.keys.get(key));
        out.push(b':');
        out.extend_from_slice(&self.run);
        out.push(b':');
        push_number(out, u64::from(version.writer), 16);
        out.push(b':');
        push_number(out, version.seq, 16);
        out.push(b':');
        push_number(out, version.seq - version.floor, 16);
        out.push(b';');
        let from = place_in_pattern(version);
        let left = end.saturating_sub(out.len());
        out.extend_from_slice(&self.fill[from..from + left]);
    }

    /// Reads a value that was answered for `key`, every byte of it.
    pub(crate) fn read_value(&self, key: u32, value: &[u8]) -> Result<WriteNumber, Misfit> {
        let mangled = Misfit::Mangled;
        let name = self.keys.get(key);
        let right_key = value.starts_with(name) && value.get(name.len()) == Some(&b':');
        let name_end =
            if right_key { name.len() } else { memchr::memchr(b':', value).ok_or(Misfit::Mangled)? };
        let rest = &value[name_end + 1..];
        let (run, rest) = rest.split_at_checked(RUN_DIGITS).ok_or(mangled)?;
        let rest = rest.strip_prefix(b":").ok_or(mangled)?;
        let (writer, rest) = take_hex(rest, b':').ok_or(mangled)?;
        let (seq, rest) = take_hex(rest, b':').ok_or(mangled)?;
        let (behind, fill) = take_hex(rest, b';').ok_or(mangled)?;
        let writer = u32::try_from(writer).map_err(|_| mangled)?;
        let version = WriteNumber { writer, seq, floor: seq.checked_sub(behind).ok_or(mangled)? };
        if run == self.run && value.len() != self.value_bytes {
            return Err(mangled);
        }
        let from = place_in_pattern(version);
        let expected = self.fill.get(from..from + fill.len());
        if run == self.run && expected != Some(fill) {
            return Err(mangled);
        }
        match (right_key, run == self.run) {
            (true, true) => Ok(version),
            (false, _) => Err(Misfit::OtherKey),
            (true, false) => Err(Misfit::OtherRun),
        }
    }
}

fn place_in_pattern(version: WriteNumber) -> usize {
    (version.seq.wrapping_mul(7).wrapping_add(u64::from(version.writer)) % PATTERN.len() as u64) as usize
}

/// Appends a number in base 10 or 16, without an allocation.
pub(crate) fn push_number(out: &mut Vec<u8>, mut number: u64, base: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[(number % base) as usize];
        number /= base;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A number in hexadecimal and what stands after `end`.
fn take_hex(bytes: &[u8], end: u8) -> Option<(u64, &[u8])> {
    let mut number: u64 = 0;
    for (index, byte) in bytes.iter().enumerate().take(17) {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ if *byte == end && index > 0 => return Some((number, &bytes[index + 1..])),
            _ => return None,
        };
        number = number.checked_mul(16)? + u64::from(digit);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(run: u32) -> Texts {
        Texts::new("key", 1000, 80, run)
    }

    fn value(texts: &Texts, key: u32, version: WriteNumber) -> Vec<u8> {
        let mut out = Vec::new();
        texts.push_value(key, version, &mut out);
        out
    }

    const VERSION: WriteNumber = WriteNumber { writer: 42, seq: 500, floor: 498 };

    #[test]
    fn a_value_is_as_long_as_asked_and_read_back() {
        let texts = texts(7);
        let value = value(&texts, 42, VERSION);
        assert_eq!(value.len(), 80);
        assert!(value.starts_with(b"key42:700000:2a:1f4:2;"));
        assert_eq!(texts.read_value(42, &value), Ok(VERSION));
    }

    #[test]
    fn the_shortest_value_still_carries_the_largest_numbers() {
        let min = Texts::value_bytes_min("key", 1000);
        let texts = Texts::new("key", 1000, min, 1);
        let largest = WriteNumber { writer: u32::MAX, seq: (1 << 40) - 1, floor: 0 };
        let value = value(&texts, 999, largest);
        assert_eq!(value.len(), min);
        assert_eq!(texts.read_value(999, &value), Ok(largest));
    }

    #[test]
    fn another_key_and_another_run_are_distinguished() {
        let texts = texts(7);
        assert_eq!(texts.read_value(4, &value(&texts, 42, VERSION)), Err(Misfit::OtherKey));
        let other = Texts::new("key", 1000, 100, 8);
        assert_eq!(texts.read_value(42, &value(&other, 42, VERSION)), Err(Misfit::OtherRun));
    }

    #[test]
    fn any_changed_cut_or_added_byte_is_noticed() {
        let texts = texts(7);
        let good = value(&texts, 42, VERSION);
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert_ne!(texts.read_value(42, &bad), Ok(VERSION), "byte {place}");
        }
        for place in good.iter().position(|byte| *byte == b';').unwrap() + 1..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert_eq!(texts.read_value(42, &bad), Err(Misfit::Mangled), "byte {place}");
        }
        for length in 0..good.len() {
            assert_eq!(texts.read_value(42, &good[..length]), Err(Misfit::Mangled), "length {length}");
        }
        assert_eq!(texts.read_value(42, &[&good[..], b"x"].concat()), Err(Misfit::Mangled));
    }
}
