//! The text of a script: its digest, and a first line that is for the server.
//!
//! ```text
//! #!lua flags=no-writes,allow-stale
//! ```

use bytes::Bytes;
use ring::digest::{digest, SHA1_FOR_LEGACY_USE_ONLY};
use std::fmt::Write as _;

/// A text as 40 hexadecimal digits: the names of scripts are no secrets.
pub(crate) fn sha1hex(text: &[u8]) -> String {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text);
    digest.as_ref().iter().fold(String::with_capacity(40), |mut hex, byte| {
        // A String takes everything.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Why the first line of a script is refused, as Redis says it.
type TextFault = String;

/// A script that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScriptText {
    pub(crate) digest: String,
    /// All of it.
    pub(crate) whole: Bytes,
    /// From where on it is for the interpreter.
    begin: usize,
    /// Whether it says that it does not write.
    pub(crate) is_read_only: bool,
}

impl ScriptText {
    /// Reads the first line.
    ///
    /// # Errors
    /// It is for another server.
    pub(crate) fn read(whole: &Bytes) -> Result<Self, TextFault> {
        // What it was sent with is not kept.
        let whole = Bytes::copy_from_slice(whole);
        let mut text = ScriptText { digest: sha1hex(&whole), begin: 0, is_read_only: false, whole };
        if !text.whole.starts_with(b"#!") {
            return Ok(text);
        }
        let Some(end) = memchr::memchr(b'\n', &text.whole) else {
            return Err("Invalid script shebang".to_owned());
        };
        let line = String::from_utf8_lossy(&text.whole[..end]).into_owned();
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("#!lua") {
            return Err(format!(
                "Unexpected engine in script shebang: {}",
                line.split(' ').next().unwrap_or_default()
            ));
        }
        for word in words {
            let Some(flags) = word.strip_prefix("flags=") else {
                return Err(format!("Unknown lua shebang option: {word}"));
            };
            for flag in flags.split(',').filter(|flag| !flag.is_empty()) {
                match flag {
                    "no-writes" => text.is_read_only = true,
                    "allow-oom" | "allow-stale" | "no-cluster" | "allow-cross-slot-keys" => {}
                    other => return Err(format!("Unexpected flag in script shebang: {other}")),
                }
            }
        }
        text.begin = end;
        Ok(text)
    }

    /// What the interpreter gets: with the end of the first line, so that lines have their numbers.
    pub(crate) fn body(&self) -> &[u8] {
        &self.whole[self.begin..]
    }
}
