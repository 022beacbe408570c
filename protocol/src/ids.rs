//! The newtypes of ids, places and times: none of them travels as a bare `u64` or `String`.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// Tells one stored log from another: two masters that follow the same one name the same numbers.
pub type LogId = (u64, u64);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The reign of one primary. Every takeover begins a new, higher one; 0 is before the first.
    Epoch
}
number! {
    /// A record's place in the log: 1 for the first record, one more for each that follows. 0 is "none".
    Seq
}
number! {
    /// One client connection at one master, unique within that process's life.
    SessionId
}
number! {
    /// One life of one link between two nodes. Answers that carry an older generation are ignored.
    LinkId
}
number! {
    /// One life of a slave process: a restarted slave is empty, whatever its id.
    Incarnation
}
number! {
    /// A client that asked for exactly-once retries. Granted by a logged record.
    ClientId
}
number! {
    /// The number of a request within its connection (or within its client, for exactly-once retries).
    RequestId
}

impl Seq {
    /// The seq of the record that follows this one.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl Epoch {
    /// The reign that follows this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

/// The version of a write: the reign of the primary that made it, and its place in the log. Higher wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The reign that wrote it. Compared first.
    pub epoch: Epoch,
    /// Compared within one epoch.
    pub seq: Seq,
}

impl Version {
    /// Builds a version from plain numbers.
    pub fn new(epoch: u64, seq: u64) -> Self {
        Version { epoch: Epoch(epoch), seq: Seq(seq) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}

impl std::str::FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number =
            |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok());
        let parts = text.split_once('.').and_then(|(epoch, seq)| Some((number(epoch)??, number(seq)??)));
        parts.map(|(epoch, seq)| Version::new(epoch, seq)).ok_or(VersionError)
    }
}

/// A text is no version.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a version is two numbers with a point between them: its epoch and its place in the log")]
pub struct VersionError;

/// The random identity of a cluster, the first record of its log: 16 hexadecimal digits in text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for ClusterId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(ClusterId)
    }
}

/// The random identity of one reign, from its EPOCH record: 16 hexadecimal digits in text. An epoch alone does not
/// identify a reign: two logs that began as copies of each other use the same epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReignId(pub u64);

impl fmt::Display for ReignId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A reign by number and identity: `3-7f3a9c0e51d24b88` in text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reign {
    /// Its number. Other logs may have a reign with the same number.
    pub epoch: Epoch,
    /// Its identity.
    pub id: ReignId,
}

impl Reign {
    /// Builds a reign from plain numbers.
    pub fn new(epoch: u64, id: u64) -> Self {
        Reign { epoch: Epoch(epoch), id: ReignId(id) }
    }

    /// Reads the text that it is shown as; `None` when it is something else.
    pub fn from_text(text: &str) -> Option<Self> {
        let (epoch, id) = text.split_once('-')?;
        let id = (id.len() == 16).then(|| u64::from_str_radix(id, 16).ok())??;
        Some(Reign { epoch: Epoch(epoch.parse().ok()?), id: ReignId(id) })
    }
}

impl fmt::Display for Reign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.id)
    }
}

/// What identifies a copy of a value: the version of the write, and which reign of that epoch made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// The version of the write.
    pub version: Version,
    /// The identity of the reign with that epoch.
    pub reign: ReignId,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.version, self.reign)
    }
}

/// A slave's name, chosen by its operator or at random: 1 to 64 bytes of letters, digits, `-`, `_` and `.`.
/// A name that comes over the wire is checked too: it ends up in logs and in INFO.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct SlaveId(String);

/// A name that no slave may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a slave id is 1 to {} letters, digits, '-', '_' or '.'", SlaveId::LEN_MAX)]
pub struct SlaveIdError;

impl SlaveId {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 64;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// When `name` is not a valid name.
    pub fn new(name: impl Into<String>) -> Result<Self, SlaveIdError> {
        let name = name.into();
        let fits = (1..=Self::LEN_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if fits {
            Ok(SlaveId(name))
        } else {
            Err(SlaveIdError)
        }
    }

    /// The name as text: 1 to [`SlaveId::LEN_MAX`] bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SlaveId {
    type Error = SlaveIdError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        SlaveId::new(name)
    }
}

impl fmt::Display for SlaveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for SlaveId {
    type Err = SlaveIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        SlaveId::new(text)
    }
}

/// A point in time: milliseconds since the process began to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// Milliseconds from `earlier` to this point; 0 when `earlier` is later.
    pub fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The point `ms` milliseconds later.
    #[must_use]
    pub fn plus(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// A point in the time of the cluster: milliseconds since 1970-01-01.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Milliseconds from `earlier` to this point; 0 when `earlier` is later.
    pub fn since(self, earlier: UnixMillis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The point `ms` milliseconds later.
    #[must_use]
    pub fn plus(self, ms: u64) -> UnixMillis {
        UnixMillis(self.0.saturating_add(ms))
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
