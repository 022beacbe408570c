//! What an operator wants changed of who keeps the log.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// A master as an operator names it: its address, or the number that it has as a member of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct MasterName(String);

/// A name that no master can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a master is named by its address, HOST:PORT, or by its number: 1 to {} printable characters, none of , = @ ~ % ;", MasterName::LEN_MAX)]
pub struct MasterNameError;

impl MasterName {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 256;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// When `name` could not stand in the record of the members.
    pub fn new(name: impl Into<String>) -> Result<Self, MasterNameError> {
        let name = name.into();
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b",=@~%;".contains(&byte);
        let fits = (1..=Self::LEN_MAX).contains(&name.len()) && name.bytes().all(is_plain);
        if fits {
            Ok(MasterName(name))
        } else {
            Err(MasterNameError)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MasterName {
    type Error = MasterNameError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        MasterName::new(name)
    }
}

impl fmt::Display for MasterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A change of who keeps the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembersOrder {
    /// One master more.
    Add {
        /// Its address: its log is empty, and it asks to become a member.
        master: MasterName,
    },
    /// One master less.
    Remove {
        /// Which.
        master: MasterName,
    },
    /// A master takes another one's place.
    Replace {
        /// Whose.
        master: MasterName,
        /// The address of the new one: its log is empty, and it asks to become a member. It may be that of the old one.
        by: MasterName,
    },
}

impl MembersOrder {
    /// How it is written.
    pub const USAGE: &str =
        "MEMBERS ADD <address>, MEMBERS REMOVE <member> or MEMBERS REPLACE <member> <address>";

    /// Reads the words of a command: what is to be done, and the masters.
    ///
    /// # Errors
    /// [`MembersOrderError`]
    pub fn from_words(what: &[u8], masters: &[&[u8]]) -> Result<Self, MembersOrderError> {
        let name = |word: &[u8]| {
            let text = std::str::from_utf8(word).map_err(|_| MasterNameError)?;
            MasterName::new(text)
        };
        Ok(match (what.to_ascii_uppercase().as_slice(), masters) {
            (b"ADD", [master]) => MembersOrder::Add { master: name(master)? },
            (b"REMOVE", [master]) => MembersOrder::Remove { master: name(master)? },
            (b"REPLACE", [master, by]) => MembersOrder::Replace { master: name(master)?, by: name(by)? },
            _ => return Err(MembersOrderError::Words),
        })
    }
}

/// Why words are no such change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MembersOrderError {
    /// They are others, or more or fewer.
    #[error("{}", MembersOrder::USAGE)]
    Words,
    /// A name makes no sense.
    #[error(transparent)]
    Name(#[from] MasterNameError),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_words_say_what_is_to_be_done() {
        let name = |text: &str| MasterName::new(text).unwrap();
        let parsed = |what: &str, masters: &[&[u8]]| MembersOrder::from_words(what.as_bytes(), masters);
        assert_eq!(parsed("add", &[b"a:1"]), Ok(MembersOrder::Add { master: name("a:1") }));
        assert_eq!(parsed("Remove", &[b"3"]), Ok(MembersOrder::Remove { master: name("3") }));
        let replace = MembersOrder::Replace { master: name("3"), by: name("[::1]:4") };
        assert_eq!(parsed("REPLACE", &[b"3", b"[::1]:4"]), Ok(replace));
        for (what, masters) in [("ADD", 0), ("ADD", 2), ("REPLACE", 1), ("LIST", 0), ("", 1)] {
            assert_eq!(
                parsed(what, &[b"a:1" as &[u8]; 2][..masters]),
                Err(MembersOrderError::Words),
                "{what}"
            );
        }
        for bad in [b"" as &[u8], b"a,b", b"a b", b"a~b", b"\xff", &[b'a'; 257]] {
            assert_eq!(parsed("ADD", &[bad]), Err(MembersOrderError::Name(MasterNameError)));
        }
    }
}
