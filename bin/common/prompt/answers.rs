//! The lines that are printed: help, answers, errors.

use super::typed::prompt_lines;
use dsm::client::{ClientError, Failure};
use std::io::{self, IsTerminal as _, Write as _};

/// The last line of a dialog.
pub const FAREWELL: &[u8] = b"Exiting Client...";

/// The answer to a MEMBERS that is accepted.
pub const MEMBERS_BEGUN: &[u8] = b"MEMBERS_BEGUN";
/// The answer to a REMOVE-SLAVE that is accepted.
pub const REMOVAL_BEGUN: &[u8] = b"REMOVE-SLAVE_BEGUN";

/// The answer to an unknown operation.
pub const INVALID: &str = "Invalid Operation! Please Try Again.";

/// What HELP says after the operations of the store.
const HELP_MORE: &str = "\
EXIT                  leaves
READ, WRITE and DELETE alone ask for key and value. A key, or a whole value, may be in quotes, as in redis-cli:
\"a b\" may contain \\n, \\\", \\x00 and the like; 'a b' is taken literally.";

/// The text of HELP: the prompt's operations, and the host's commands, which take precedence.
pub fn help(of_host: &str) -> String {
    let word = |line: &str| line.split(' ').next().unwrap_or("").to_ascii_lowercase();
    let is_hosts = |line: &str| of_host.lines().any(|host| word(host) == word(line));
    let of_store = prompt_lines().map(|line| format!("{:<22}{}", line.usage, line.means));
    let own = of_store.chain(HELP_MORE.lines().map(str::to_owned));
    let lines = own.filter(|line| !is_hosts(line)).chain(of_host.lines().map(str::to_owned));
    lines.collect::<Vec<_>>().join("\n")
}

/// One line about an error. Its first word gives the kind: the store's error word, `NOT_EXECUTED`, or `UNKNOWN` for a
/// write that may or may not take effect.
pub fn error_line(error: &ClientError) -> String {
    match error {
        ClientError::NotExecuted { cause: Failure::Refused(refusal) }
        | ClientError::Indeterminate { cause: Failure::Refused(refusal) } => refusal.to_string(),
        ClientError::NotExecuted { cause: Failure::Invalid(why) } => format!("ERR {why}"),
        ClientError::NotExecuted { cause: Failure::Tls(why) } => format!("ERR {why}"),
        ClientError::NotExecuted { cause } => format!("NOT_EXECUTED {cause}"),
        other => format!("UNKNOWN {other}"),
    }
}

/// The text of a STATUS with plain line ends and none at its end.
pub fn status_text(text: &str) -> String {
    text.replace('\r', "").trim_end().to_owned()
}

/// `Key … not found`.
pub fn not_found(key: &[u8]) -> Vec<u8> {
    [b"Key ", &shown(key)[..], b" not found"].concat()
}

/// Keys, one a line.
pub fn key_lines(keys: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let lines: Vec<Vec<u8>> = keys.iter().map(|key| shown(key.as_ref())).collect();
    lines.join(&b'\n')
}

/// Bytes as they are printed: raw to a pipe; at a terminal, what could change its state is escaped.
pub fn shown(bytes: &[u8]) -> Vec<u8> {
    if io::stdout().is_terminal() {
        escaped(bytes).into_bytes()
    } else {
        bytes.to_vec()
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() {
                text.extend(letter.escape_default());
            } else {
                text.push(letter);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Prints a line to standard output at once.
pub fn say(line: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(line)?;
    output.write_all(b"\n")?;
    output.flush()
}

pub(super) fn say_part(text: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text)?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::super::typed::{usage, usage_of};
    use super::*;

    #[test]
    fn a_command_of_the_host_takes_the_place_of_the_prompts_own() {
        assert_eq!(
            help(""),
            "READ <key>            prints the value of the key\n\
             WRITE <key> <value>   writes the key; the value is the rest of the line\n\
             DELETE <key>          deletes the key\n\
             STATUS                describes the master that serves\n\
             FAILOVER              asks the master that serves to hand over to the other one\n\
             REMOVE-SLAVE <slave>  moves the copies of that slave to others and lets it go\n\
             KEYS <pattern>        prints the keys that match: * is any text\n\
             MEMBERS <change>      ADD <address>, REMOVE <member> or REPLACE <member> <address>: which masters keep the log\n\
             EXIT                  leaves\n\
             READ, WRITE and DELETE alone ask for key and value. A key, or a whole value, may be in quotes, as in \
             redis-cli:\n\
             \"a b\" may contain \\n, \\\", \\x00 and the like; 'a b' is taken literally."
        );
        assert_eq!(
            usage(),
            "READ <key>, WRITE <key> <value>, DELETE <key>, STATUS, FAILOVER, REMOVE-SLAVE <slave>, KEYS <pattern>, \
             MEMBERS <change>, HELP or EXIT"
        );
        assert_eq!(usage_of("WRITE"), "WRITE <key> <value>");
        let both = help("status   shows more\nkill N   kills");
        assert!(!both.contains("STATUS") && both.contains("FAILOVER"), "{both}");
        assert!(both.ends_with("taken literally.\nstatus   shows more\nkill N   kills"), "{both}");
    }

    #[test]
    fn a_terminal_gets_no_control_characters_and_no_broken_text() {
        assert_eq!(escaped("grün\t\u{1b}[2J".as_bytes()), "grün\\t\\u{1b}[2J");
        assert_eq!(escaped(b"a\xff\0b"), "a\\xff\\u{0}b");
    }
}
