//! The processes of a cluster and their names.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A master, by its place in [`LauncherConfig::masters`](super::LauncherConfig::masters), from 0. The first one is the
    /// primary, all others are backups.
    Master(usize),
    /// `dsm-slave`, counted from 1.
    Slave(usize),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Master(0) => f.pad("primary"),
            Role::Master(1) => f.pad("backup"),
            Role::Master(place) => f.pad(&format!("backup {place}")),
            Role::Slave(number) => f.pad(&format!("slave {number}")),
        }
    }
}

/// Why a text names no process.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RoleError {
    /// It does not begin with a name, or something follows the name.
    #[error("name one of: primary, backup, slave N")]
    Unknown,
    /// What should be a number from 1 on is not one.
    #[error("{number:?} is not the number of a {kind}")]
    Number {
        /// `backup` or `slave`.
        kind: &'static str,
        /// What was given.
        number: String,
    },
}

impl FromStr for Role {
    type Err = RoleError;

    /// Reads `primary`, `backup`, `backup 2` (the second one) or `slave 2`, in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<String> = text.split_whitespace().map(str::to_ascii_lowercase).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let number = |kind, number: &str| match number.parse() {
            Ok(number) if number > 0 => Ok(number),
            Ok(_) | Err(_) => Err(RoleError::Number { kind, number: number.to_owned() }),
        };
        match words[..] {
            ["primary" | "master"] => Ok(Role::PRIMARY),
            ["backup"] => Ok(Role::BACKUP),
            ["backup", place] => number("backup", place).map(Role::Master),
            ["slave", which] => number("slave", which).map(Role::Slave),
            _ => Err(RoleError::Unknown),
        }
    }
}

impl Role {
    /// The first master.
    pub const PRIMARY: Role = Role::Master(0);

    /// The first of the others.
    pub const BACKUP: Role = Role::Master(1);

    /// The name in file names and as a slave's id: `primary`, `backup`, `slave-2`.
    pub fn file_name(self) -> String {
        self.to_string().replace(' ', "-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_read_and_written() {
        for (text, role, file_name) in [
            ("primary", Role::PRIMARY, "primary"),
            ("Backup", Role::BACKUP, "backup"),
            ("backup 2", Role::Master(2), "backup-2"),
            ("slave  2", Role::Slave(2), "slave-2"),
        ] {
            assert_eq!(text.parse(), Ok(role));
            assert_eq!(role.to_string().parse(), Ok(role));
            assert_eq!(role.file_name(), file_name);
        }
        assert_eq!("backup 1".parse(), Ok(Role::BACKUP));
        for text in ["", "slave", "slave 0", "slave x", "primary 1", "backup 0", "backup x"] {
            assert!(text.parse::<Role>().is_err(), "{text}");
        }
        let error = "slave 0".parse::<Role>().unwrap_err();
        assert_eq!(error.to_string(), "\"0\" is not the number of a slave");
    }
}
