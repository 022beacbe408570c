//! The processes of a cluster and their names.

use std::fmt;
use std::str::FromStr;

/// A process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `dsm-master`.
    Primary,
    /// `dsm-backup-master`.
    Backup,
    /// `dsm-slave`, counted from 1.
    Slave(usize),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Primary => f.pad("primary"),
            Role::Backup => f.pad("backup"),
            Role::Slave(number) => f.pad(&format!("slave {number}")),
        }
    }
}

impl FromStr for Role {
    type Err = String;

    /// Reads `primary`, `backup` or `slave 2`, in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<String> = text.split_whitespace().map(str::to_ascii_lowercase).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["primary" | "master"] => Ok(Role::Primary),
            ["backup"] => Ok(Role::Backup),
            ["slave", number] => match number.parse() {
                Ok(number) if number > 0 => Ok(Role::Slave(number)),
                Ok(_) | Err(_) => Err(format!("{number:?} is not the number of a slave")),
            },
            _ => Err("name one of: primary, backup, slave N".to_owned()),
        }
    }
}

impl Role {
    /// The name in file names and as a slave's id: `primary`, `backup`, `slave-2`.
    pub fn file_name(self) -> String {
        match self {
            Role::Primary => "primary".to_owned(),
            Role::Backup => "backup".to_owned(),
            Role::Slave(number) => format!("slave-{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_read_and_written() {
        for (text, role) in
            [("primary", Role::Primary), ("Backup", Role::Backup), ("slave  2", Role::Slave(2))]
        {
            assert_eq!(text.parse(), Ok(role));
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        for text in ["", "slave", "slave 0", "slave x", "primary 1"] {
            assert!(text.parse::<Role>().is_err(), "{text}");
        }
    }
}
