//! The dialog: asks for operations, carries them out, and shows which master serves.

use super::answers::{
    error_line, help, key_lines, not_found, say, shown, status_text, FAREWELL, INVALID, MEMBERS_BEGUN,
    REMOVAL_BEGUN,
};
use super::store::Store;
use super::terminal::{LineAnswer, Terminal};
use super::typed::{usage_of, TypedOperation};
use super::Host;
use dsm::client::{Client, Serving};
use dsm::launcher::Role;
use std::io::{self, IsTerminal as _};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long the first prompt waits for a master before it is shown.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(1);

/// How long each prompt waits for the master to show that it still answers.
const REFRESH_TIMEOUT: Duration = Duration::from_millis(80);

/// How many of these questions may be under way.
const UNANSWERED_MAX: usize = 8;

const ASK_KEY: &str = "Enter the key you want to perform the operation on: ";
const ASK_VALUE: &str = "Enter the value corresponding to the key: ";

/// Whether standard input may give operations: a terminal, a pipe or a file, but not /dev/null.
fn is_fed() -> bool {
    let kind = rustix::fs::fstat(io::stdin()).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
    kind.is_ok_and(|kind| kind != rustix::fs::FileType::CharacterDevice) || io::stdin().is_terminal()
}

/// Runs the dialog until EXIT, the end of the input or a signal.
///
/// # Errors
/// When the input cannot be read or the output not be written.
pub fn run(store: &Store, terminal: &mut Terminal, host: &mut dyn Host) -> anyhow::Result<()> {
    match (Dialog { store, terminal, host, told: None, unanswered: Vec::new() }).run() {
        // The reader of our answers has closed the output.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// What follows an operation.
enum Next {
    Ask,
    /// End the dialog: the input ended in the middle of a question.
    Leave,
}

struct Dialog<'a> {
    store: &'a Store,
    terminal: &'a mut Terminal,
    host: &'a mut dyn Host,
    /// The serving master that the user was told of last.
    told: Option<Option<Serving>>,
    /// Questions of [`Dialog::refresh`].
    unanswered: Vec<JoinHandle<()>>,
}

impl Dialog<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut is_first = true;
        loop {
            self.terminal.report(self.host)?;
            let mut text = String::new();
            if self.terminal.dialog {
                let label = self.label()?;
                text = format!("[{label}] Enter the Operation you would like to perform (READ/WRITE/EXIT): ");
            }
            let line = match self.terminal.ask(&text, true, self.host)? {
                LineAnswer::Line(line) => line,
                LineAnswer::Cleared => continue,
                LineAnswer::End => return self.end_of_input(is_first),
                LineAnswer::Stop => return self.farewell(),
            };
            is_first = false;
            if let Ok(words) = std::str::from_utf8(&line) {
                if let Some(answer) = self.host.command(words.trim(), self.store) {
                    for line in answer {
                        say(line.as_bytes())?;
                    }
                    continue;
                }
            }
            let operation = TypedOperation::parse(&line);
            if operation == TypedOperation::Exit {
                return say(FAREWELL);
            }
            match self.perform(operation)? {
                Next::Ask => {}
                Next::Leave => return self.farewell(),
            }
        }
    }

    /// Handles the end of the input: there will be no further line or, as under systemd and nohup, no first one.
    fn end_of_input(&mut self, is_first: bool) -> io::Result<()> {
        if !self.host.outlives_input() || self.terminal.dialog {
            return self.farewell();
        }
        if is_first && !is_fed() {
            say(b"No operations come from /dev/null: serving until SIGINT or SIGTERM.")?;
            return self.terminal.wait_for_stop(self.host);
        }
        if is_first {
            log::warn!("standard input has ended without an operation, and the cluster ends with it; with </dev/null it serves until a signal");
        }
        self.farewell()
    }

    /// Announces an end that was not typed. Only for people, so that a script gets only its answers.
    fn farewell(&self) -> io::Result<()> {
        if self.terminal.dialog {
            say(&[b"\n", FAREWELL].concat())?;
        }
        Ok(())
    }

    /// Whether a master answers now. An idle client does not notice a master that hangs, and looks for one that has come
    /// back only now and then.
    fn refresh(&mut self) -> bool {
        let Store { handle, client, .. } = self.store;
        self.unanswered.retain(|question| !question.is_finished());
        // Bounded, however often a prompt is shown.
        if self.unanswered.len() < UNANSWERED_MAX {
            let client = client.clone();
            // Which master the client finds is what counts, not the answer.
            self.unanswered.push(handle.spawn(async move { drop(client.key_count().await) }));
        }
        let Some(question) = self.unanswered.last_mut() else { return false };
        handle.block_on(async { tokio::time::timeout(REFRESH_TIMEOUT, question).await.is_ok() })
    }

    /// Tells which master serves if that has changed, and returns it for the prompt.
    fn label(&mut self) -> io::Result<String> {
        if self.told.is_none() {
            self.store.run(|client| client.wait_serving(WELCOME_TIMEOUT));
        }
        let answered = self.refresh();
        let serving = self.store.client.serving();
        let before = self.told.replace(serving);
        if before != Some(serving) {
            match serving {
                Some(serving) if serving.is_primary() => say(b"Connected to Master Server!!")?,
                Some(_) | None => {
                    say(b"Connection to Master Server failed, connecting to Backup Master...")?;
                }
            }
            if serving.is_none() {
                say(b"No master serves at the moment; every operation tries again.")?;
            }
        }
        Ok(match serving {
            None => "NO MASTER".to_owned(),
            Some(Serving { place }) => {
                let name = Role::Master(place).to_string().to_uppercase();
                // It served when it last answered, and is silent now.
                let doubt = if answered { "" } else { "?" };
                format!("{name}{doubt}")
            }
        })
    }

    fn perform(&mut self, operation: TypedOperation) -> io::Result<Next> {
        let answer = match operation {
            TypedOperation::Empty | TypedOperation::Exit => return Ok(Next::Ask),
            TypedOperation::Help => {
                say(help(self.host.help()).as_bytes())?;
                return Ok(Next::Ask);
            }
            TypedOperation::Invalid(usage) => return self.invalid(usage),
            TypedOperation::Read(key) => {
                let key = match self.given_or_asked(key, ASK_KEY)? {
                    Ok(key) => key,
                    Err(next) => return Ok(next),
                };
                if key.is_empty() {
                    return self.invalid(usage_of("READ"));
                }
                self.store.run(|client| client.get(key.clone())).map(|value| match value {
                    Some(value) => [b"Value for key ", &shown(&key)[..], b" = ", &shown(&value)].concat(),
                    None => not_found(&key),
                })
            }
            TypedOperation::Write(pair) => {
                let (key, value) = match pair {
                    Some(pair) => pair,
                    None => {
                        let key = match self.given_or_asked(None, ASK_KEY)? {
                            Ok(key) if key.is_empty() => return self.invalid(usage_of("WRITE")),
                            Ok(key) => key,
                            Err(next) => return Ok(next),
                        };
                        match self.given_or_asked(None, ASK_VALUE)? {
                            Ok(value) => (key, value),
                            Err(next) => return Ok(next),
                        }
                    }
                };
                self.store.run(|client| client.put(key, value)).map(|()| b"WRITE_DONE".to_vec())
            }
            TypedOperation::Delete(key) => {
                let key = match self.given_or_asked(key, ASK_KEY)? {
                    Ok(key) => key,
                    Err(next) => return Ok(next),
                };
                if key.is_empty() {
                    return self.invalid(usage_of("DELETE"));
                }
                self.store.run(|client| client.delete(key.clone())).map(|existed| match existed {
                    true => b"DELETE_DONE".to_vec(),
                    false => not_found(&key),
                })
            }
            TypedOperation::Keys(pattern) => {
                self.store.run(|client| client.keys(pattern)).map(|keys| key_lines(&keys))
            }
            TypedOperation::Status => {
                self.store.run(Client::status).map(|text| status_text(&text).into_bytes())
            }
            TypedOperation::Failover => self.store.run(Client::failover).map(|()| b"FAILOVER_DONE".to_vec()),
            TypedOperation::Members(order) => {
                self.store.run(|client| client.change_members(order)).map(|()| MEMBERS_BEGUN.to_vec())
            }
            TypedOperation::RemoveSlave(slave) => {
                self.store.run(|client| client.remove_slave(slave)).map(|()| REMOVAL_BEGUN.to_vec())
            }
        };
        match answer {
            Ok(line) => say(&line)?,
            Err(error) => say(error_line(&error).as_bytes())?,
        }
        Ok(Next::Ask)
    }

    /// The given word, or the answer to `question`; else what happens instead of the operation.
    fn given_or_asked(
        &mut self,
        given: Option<Vec<u8>>,
        question: &str,
    ) -> io::Result<Result<Vec<u8>, Next>> {
        match given {
            Some(given) => Ok(Ok(given)),
            None => Ok(match self.terminal.ask(question, false, self.host)? {
                LineAnswer::Line(line) => Ok(line),
                LineAnswer::Cleared => Err(Next::Ask),
                LineAnswer::End | LineAnswer::Stop => Err(Next::Leave),
            }),
        }
    }

    fn invalid(&self, usage: &str) -> io::Result<Next> {
        say(INVALID.as_bytes())?;
        if self.terminal.dialog {
            say(format!("Usage: {usage}").as_bytes())?;
        } else {
            crate::cli::tell(&format!("usage: {usage}"));
        }
        Ok(Next::Ask)
    }
}
