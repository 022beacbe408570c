//! An operation as it was typed, at the prompt or as words of a command line.

use dsm_protocol::command::{MembersOrder, PromptLine, COMMAND_FACTS};
use dsm_protocol::ids::SlaveId;
use std::sync::LazyLock;

/// An operation as it was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum TypedOperation {
    /// `READ key`; without a key it is asked for.
    Read(Option<Vec<u8>>),
    /// `WRITE key value`; without both they are asked for.
    Write(Option<(Vec<u8>, Vec<u8>)>),
    /// `DELETE key`; without a key it is asked for.
    Delete(Option<Vec<u8>>),
    /// `KEYS pattern`.
    Keys(Vec<u8>),
    /// `STATUS`.
    Status,
    /// `FAILOVER`.
    Failover,
    /// `MEMBERS ADD address` and the like.
    Members(MembersOrder),
    /// `REMOVE-SLAVE slave`.
    RemoveSlave(SlaveId),
    /// `HELP`.
    Help,
    /// `EXIT`.
    Exit,
    /// Nothing but white space.
    Empty,
    /// Something else, with the right usage.
    Invalid(&'static str),
}

/// The usage of the store's operations, from the entries of the commands.
pub(super) fn prompt_lines() -> impl Iterator<Item = PromptLine> {
    COMMAND_FACTS.iter().filter_map(|facts| facts.prompt)
}

/// The usage of all operations.
pub(super) fn usage() -> &'static str {
    static USAGE: LazyLock<String> = LazyLock::new(|| {
        let usages = prompt_lines().map(|line| line.usage).chain(["HELP"]);
        format!("{} or EXIT", usages.collect::<Vec<_>>().join(", "))
    });
    &USAGE
}

/// The usage of the store's operation that begins with `word`.
pub(super) fn usage_of(word: &str) -> &'static str {
    let is_its = |line: &PromptLine| line.usage.split(' ').next() == Some(word);
    prompt_lines().find(is_its).map_or_else(usage, |line| line.usage)
}

impl TypedOperation {
    /// Parses a line. A key is one word, or in quotes. The value begins after the one character that follows the key;
    /// if all of it is in quotes, it is taken without them.
    pub fn parse(line: &[u8]) -> TypedOperation {
        let (word, rest) = first_word(line.trim_ascii_start());
        let rest = rest.trim_ascii_start();
        let one_key = |usage| match key_and_rest(rest) {
            None if rest.is_empty() => Ok(None),
            Some((key, after)) if after.trim_ascii().is_empty() => Ok(Some(key)),
            Some(_) | None => Err(TypedOperation::Invalid(usage)),
        };
        let alone = |operation| if rest.is_empty() { operation } else { TypedOperation::Invalid(usage()) };
        match word.to_ascii_uppercase().as_slice() {
            b"" => TypedOperation::Empty,
            b"READ" => one_key(usage_of("READ")).map_or_else(|invalid| invalid, TypedOperation::Read),
            b"DELETE" => one_key(usage_of("DELETE")).map_or_else(|invalid| invalid, TypedOperation::Delete),
            b"WRITE" if rest.is_empty() => TypedOperation::Write(None),
            b"WRITE" => match key_and_rest(rest) {
                Some((key, value)) if !value.trim_ascii().is_empty() => {
                    TypedOperation::Write(Some((key, value_of(&value[1..]))))
                }
                Some(_) | None => TypedOperation::Invalid(usage_of("WRITE")),
            },
            b"KEYS" => match one_key(usage_of("KEYS")) {
                Ok(Some(pattern)) => TypedOperation::Keys(pattern),
                Ok(None) => TypedOperation::Invalid(usage_of("KEYS")),
                Err(invalid) => invalid,
            },
            b"STATUS" => alone(TypedOperation::Status),
            b"FAILOVER" => alone(TypedOperation::Failover),
            b"REMOVE-SLAVE" => remove_slave(rest.trim_ascii_end()),
            b"MEMBERS" => {
                let words = rest.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
                members(&words.collect::<Vec<_>>())
            }
            b"HELP" => alone(TypedOperation::Help),
            b"EXIT" | b"QUIT" => alone(TypedOperation::Exit),
            _ => TypedOperation::Invalid(usage()),
        }
    }

    /// Parses the words of a command line; each is taken literally.
    pub fn from_words(words: &[Vec<u8>]) -> TypedOperation {
        let Some((word, rest)) = words.split_first() else { return TypedOperation::Invalid(usage()) };
        match (word.to_ascii_uppercase().as_slice(), rest) {
            (b"READ", [key]) => TypedOperation::Read(Some(key.clone())),
            (b"READ", _) => TypedOperation::Invalid(usage_of("READ")),
            (b"DELETE", [key]) => TypedOperation::Delete(Some(key.clone())),
            (b"DELETE", _) => TypedOperation::Invalid(usage_of("DELETE")),
            (b"WRITE", [key, value @ ..]) if !value.is_empty() => {
                TypedOperation::Write(Some((key.clone(), value.join(&b' '))))
            }
            (b"WRITE", _) => TypedOperation::Invalid(usage_of("WRITE")),
            (b"KEYS", [pattern]) => TypedOperation::Keys(pattern.clone()),
            (b"KEYS", _) => TypedOperation::Invalid(usage_of("KEYS")),
            (b"STATUS", []) => TypedOperation::Status,
            (b"FAILOVER", []) => TypedOperation::Failover,
            (b"MEMBERS", words) => members(&words.iter().map(Vec::as_slice).collect::<Vec<_>>()),
            (b"REMOVE-SLAVE", [slave]) => remove_slave(slave),
            (b"REMOVE-SLAVE", _) => TypedOperation::Invalid(usage_of("REMOVE-SLAVE")),
            (b"HELP", []) => TypedOperation::Help,
            (b"EXIT" | b"QUIT", []) => TypedOperation::Exit,
            _ => TypedOperation::Invalid(usage()),
        }
    }
}

fn remove_slave(name: &[u8]) -> TypedOperation {
    let slave = std::str::from_utf8(name).ok().and_then(|name| SlaveId::new(name).ok());
    slave.map_or(TypedOperation::Invalid(usage_of("REMOVE-SLAVE")), TypedOperation::RemoveSlave)
}

fn members(words: &[&[u8]]) -> TypedOperation {
    let order = words.split_first().and_then(|(what, masters)| MembersOrder::from_words(what, masters).ok());
    order.map_or(TypedOperation::Invalid(MembersOrder::USAGE), TypedOperation::Members)
}

/// The bytes up to the first white space, and the rest with it.
fn first_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    text.split_at(end)
}

/// The key at the beginning, one word or in quotes, and the rest with its white space; `None` when there is none, or its
/// quotes do not close.
fn key_and_rest(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    match text.first()? {
        b'"' | b'\'' => quoted(text).filter(|(key, _)| !key.is_empty()),
        _ => {
            let (key, rest) = first_word(text);
            Some((key.to_vec(), rest))
        }
    }
}

/// The value of a text: without its quotes if all of it is in quotes, else unchanged.
fn value_of(text: &[u8]) -> Vec<u8> {
    match quoted(text.trim_ascii()) {
        Some((value, [])) => value,
        Some(_) | None => text.to_vec(),
    }
}

/// The quoted text at the beginning, by the rules of redis-cli, and the rest, which is empty or begins with white
/// space.
fn quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (&quote, mut rest) = text.split_first().filter(|(quote, _)| **quote == b'"' || **quote == b'\'')?;
    let mut word = Vec::new();
    loop {
        rest = match (quote, rest) {
            (b'"', [b'\\', b'x', high, low, rest @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |letter: u8| char::from(letter).to_digit(16).unwrap_or(0) as u8;
                word.push(digit(*high) << 4 | digit(*low));
                rest
            }
            (b'"', [b'\\', letter, rest @ ..]) => {
                word.push(match letter {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest
            }
            (b'\'', [b'\\', b'\'', rest @ ..]) => {
                word.push(b'\'');
                rest
            }
            (_, [letter, rest @ ..]) if *letter == quote => {
                let ends = rest.first().is_none_or(u8::is_ascii_whitespace);
                return ends.then_some((word, rest));
            }
            (_, [letter, rest @ ..]) => {
                word.push(*letter);
                rest
            }
            (_, []) => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        text.as_bytes().to_vec()
    }

    #[test]
    fn operations_are_read_from_a_line_in_any_case() {
        let write = |key, value| TypedOperation::Write(Some((bytes(key), bytes(value))));
        for (line, operation) in [
            ("READ foo", TypedOperation::Read(Some(bytes("foo")))),
            ("  read \t foo  ", TypedOperation::Read(Some(bytes("foo")))),
            ("Read", TypedOperation::Read(None)),
            ("READ a b", TypedOperation::Invalid(usage_of("READ"))),
            ("WRITE a one two", write("a", "one two")),
            ("write a  one ", write("a", " one ")),
            ("WRITE", TypedOperation::Write(None)),
            ("WRITE a", TypedOperation::Invalid(usage_of("WRITE"))),
            ("WRITE a ", TypedOperation::Invalid(usage_of("WRITE"))),
            ("DELETE a", TypedOperation::Delete(Some(bytes("a")))),
            ("STATUS", TypedOperation::Status),
            ("STATUS now", TypedOperation::Invalid(usage())),
            ("failover", TypedOperation::Failover),
            ("keys  user:* ", TypedOperation::Keys(b"user:*".to_vec())),
            ("KEYS", TypedOperation::Invalid(usage_of("KEYS"))),
            ("KEYS a b", TypedOperation::Invalid(usage_of("KEYS"))),
            ("remove-slave  slave-2 ", TypedOperation::RemoveSlave(SlaveId::new("slave-2").unwrap())),
            ("REMOVE-SLAVE", TypedOperation::Invalid(usage_of("REMOVE-SLAVE"))),
            (
                " members  replace 3 d:1 ",
                TypedOperation::Members(MembersOrder::from_words(b"REPLACE", &[b"3", b"d:1"]).unwrap()),
            ),
            ("MEMBERS", TypedOperation::Invalid(MembersOrder::USAGE)),
            ("MEMBERS ADD a,b", TypedOperation::Invalid(MembersOrder::USAGE)),
            ("REMOVE-SLAVE a b", TypedOperation::Invalid(usage_of("REMOVE-SLAVE"))),
            ("help", TypedOperation::Help),
            ("exit", TypedOperation::Exit),
            ("", TypedOperation::Empty),
            (" \t", TypedOperation::Empty),
            ("UPDATE a", TypedOperation::Invalid(usage())),
            (r#"WRITE "a b" c"#, write("a b", "c")),
            (r#"WRITE k "one two""#, write("k", "one two")),
            (r#"WRITE 'a\'b' 'it''s'"#, write("a'b", "'it''s'")),
            (r#"WRITE k say "hi""#, write("k", r#"say "hi""#)),
            (r#"WRITE k "hi" he said"#, write("k", r#""hi" he said"#)),
            (r#"WRITE k """#, write("k", "")),
            (r#"WRITE k "no end"#, write("k", r#""no end"#)),
            (r#"WRITE "k"v w"#, TypedOperation::Invalid(usage_of("WRITE"))),
            (r#"WRITE "no end"#, TypedOperation::Invalid(usage_of("WRITE"))),
            (r#"READ "a\tb\"\x41\\""#, TypedOperation::Read(Some(bytes("a\tb\"A\\")))),
            (r#"READ 'a\tb' "#, TypedOperation::Read(Some(bytes(r"a\tb")))),
            (r#"READ "a" b"#, TypedOperation::Invalid(usage_of("READ"))),
            (r#"READ """#, TypedOperation::Invalid(usage_of("READ"))),
            (r#"DELETE a"b"#, TypedOperation::Delete(Some(bytes(r#"a"b"#)))),
        ] {
            assert_eq!(TypedOperation::parse(line.as_bytes()), operation, "{line:?}");
        }
    }

    #[test]
    fn words_of_a_command_line_are_taken_as_they_are() {
        let words = |words: &[&str]| -> Vec<Vec<u8>> { words.iter().map(|word| bytes(word)).collect() };
        let write = |key, value| TypedOperation::Write(Some((bytes(key), bytes(value))));
        for (line, operation) in [
            (&["READ", "a b"][..], TypedOperation::Read(Some(bytes("a b")))),
            (&["READ"], TypedOperation::Invalid(usage_of("READ"))),
            (&["write", "k", "one", "two"], write("k", "one two")),
            (&["WRITE", "k", ""], write("k", "")),
            (&["WRITE", "k"], TypedOperation::Invalid(usage_of("WRITE"))),
            (&["DELETE", "-k"], TypedOperation::Delete(Some(bytes("-k")))),
            (&["FAILOVER"], TypedOperation::Failover),
            (&["KEYS", "a b*"], TypedOperation::Keys(b"a b*".to_vec())),
            (&["KEYS"], TypedOperation::Invalid(usage_of("KEYS"))),
            (&["REMOVE-SLAVE", "one"], TypedOperation::RemoveSlave(SlaveId::new("one").unwrap())),
            (&["REMOVE-SLAVE"], TypedOperation::Invalid(usage_of("REMOVE-SLAVE"))),
            (
                &["MEMBERS", "add", "d:1"],
                TypedOperation::Members(MembersOrder::from_words(b"ADD", &[b"d:1"]).unwrap()),
            ),
            (&["MEMBERS", "ADD"], TypedOperation::Invalid(MembersOrder::USAGE)),
            (&["REMOVE-SLAVE", ""], TypedOperation::Invalid(usage_of("REMOVE-SLAVE"))),
            (&["help"], TypedOperation::Help),
            (&["EXIT"], TypedOperation::Exit),
            (&["EXIT", "now"], TypedOperation::Invalid(usage())),
        ] {
            assert_eq!(TypedOperation::from_words(&words(line)), operation, "{line:?}");
        }
    }
}
