//! The prompt of `dsm-client` and `dsm-cluster`: reads operations, asks the store, prints answers.
//!
//! It owns the texts of the dialog, line editing at a terminal and the thread that runs the client's sockets. The
//! main thread stays the caller's: only it may start processes (see `dsm::launcher`). It never retries by itself.
//! The texts are those of `docs/ARCHITECTURE.md`, "The prompt".

use dsm::client::{Client, ClientConfig, ClientError, Failure, Serving};
use dsm_protocol::command::{PromptLine, COMMAND_FACTS, KEY_MAX};
use rustyline::error::ReadlineError;
use rustyline::ExternalPrinter as _;
use std::future::Future;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc, LazyLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{signal, SignalKind};
use tokio::task::JoinHandle;

/// How long the first prompt waits for a master before it shows itself.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(1);

/// How long each prompt waits for the master to show that it still answers.
const REFRESH_TIMEOUT: Duration = Duration::from_millis(80);

/// How many of these questions may be under way.
const UNANSWERED_MAX: usize = 8;

/// What a line may have beside a key and a value, in bytes.
const LINE_BYTES_MORE: usize = 64;

/// Lines of history that are kept.
const HISTORY_MAX: usize = 1000;

const ASK_KEY: &str = "Enter the key you want to perform the operation on: ";
const ASK_VALUE: &str = "Enter the value corresponding to the key: ";

/// The last line of a dialog.
pub const FAREWELL: &[u8] = b"Exiting Client...";

/// What is told of Ctrl+C at a terminal.
const HINT: &str = "Ctrl+C clears the line; EXIT or Ctrl+D leaves.";

/// What everybody is told who asks for an operation that is not there.
pub const INVALID: &str = "Invalid Operation! Please Try Again.";

/// What HELP says after the operations of the store.
const HELP_MORE: &str = "\
EXIT                  leaves
READ, WRITE and DELETE alone ask for the rest. A key, or a whole value, may stand in quotes as in redis-cli:
\"a b\" with \\n, \\\", \\x00 and the like in it, 'a b' as it is.";

/// The client on a thread of its own, for callers that block.
pub struct Store {
    handle: Handle,
    client: Client,
    /// The longest line that names a key and a value, in bytes.
    line_bytes_max: usize,
    // Dropping it ends the thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Store {
    /// Starts the thread and the client.
    pub fn start(config: ClientConfig) -> io::Result<Store> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::Builder::new().name("client".to_owned()).spawn(move || {
            // The sender's end is the message.
            let _ = runtime.block_on(stopped);
        })?;
        let line_bytes_max = config.value_max.saturating_add(KEY_MAX + LINE_BYTES_MORE);
        let client = handle.block_on(async { Client::connect(config) }).map_err(io::Error::other)?;
        Ok(Store { handle, client, line_bytes_max, _stop: stop })
    }

    /// Runs one call to its end.
    pub fn run<'a, T, F>(&'a self, call: impl FnOnce(&'a Client) -> F) -> T
    where
        F: Future<Output = T>,
    {
        self.handle.block_on(call(&self.client))
    }

    /// The master that serves, as far as is known.
    pub fn serving(&self) -> Option<Serving> {
        self.client.serving()
    }
}

/// What a prompt can do beyond the store, and what it may have to report.
pub trait Host {
    /// Carries out a line, if it is one of the host's; the answer, line by line.
    fn command(&mut self, line: &str, store: &Store) -> Option<Vec<String>>;
    /// Whether it goes on without anybody to give it lines, until a signal comes.
    fn outlives_input(&self) -> bool {
        false
    }
    /// What happened since it was asked last, one line each.
    fn news(&mut self) -> Vec<String>;
    /// The lines that HELP shows for the host's commands.
    fn help(&self) -> &'static str;
}

/// What reaches the main thread.
enum Event {
    Line(io::Result<Option<Vec<u8>>>),
    /// Ctrl+C instead of a line.
    Cleared,
    Printer(Box<dyn FnMut(String) + Send>),
    Stop,
    /// SIGINT: Ctrl+C where no line is edited, or from another process.
    Interrupt,
    Child,
}

/// What a question was answered with.
enum Answer {
    Line(Vec<u8>),
    /// Ctrl+C: nothing was asked for.
    Cleared,
    End,
    Stop,
}

struct Question {
    text: String,
    keep: bool,
}

/// Where lines come from and signals arrive.
pub struct Terminal {
    questions: mpsc::Sender<Question>,
    events: mpsc::Receiver<Event>,
    printer: Option<Box<dyn FnMut(String) + Send>>,
    /// Prompts are shown.
    dialog: bool,
    /// Lines are edited; the editor shows the prompts.
    editing: bool,
    /// The terminal's mode before the editor changed it.
    mode: Option<rustix::termios::Termios>,
    /// A signal has asked for an end of what runs now.
    interrupted: Arc<AtomicBool>,
}

impl Terminal {
    /// Prepares to read lines. `interrupted` is set when a signal asks the process to stop, and by Ctrl+C: where lines
    /// are edited, that ends the command that runs, and no more.
    pub fn open(store: &Store, dialog: bool, interrupted: Arc<AtomicBool>) -> io::Result<Terminal> {
        let editing = io::stdin().is_terminal() && io::stdout().is_terminal();
        let mode = editing.then(|| rustix::termios::tcgetattr(io::stdin()).ok()).flatten();
        let (questions, asked) = mpsc::channel();
        let (sender, events) = mpsc::channel();
        watch_signals(store, &sender, Arc::clone(&interrupted))?;
        let line_bytes_max = store.line_bytes_max;
        std::thread::Builder::new().name("input".to_owned()).spawn(move || {
            if editing {
                edit_lines(&asked, &sender, line_bytes_max);
            } else {
                read_lines(&asked, &sender, line_bytes_max);
            }
        })?;
        let dialog = dialog || io::stdin().is_terminal();
        Ok(Terminal { questions, events, printer: None, dialog, editing, mode, interrupted })
    }

    fn ask(&mut self, text: &str, keep: bool, host: &mut dyn Host) -> io::Result<Answer> {
        if self.dialog && !self.editing {
            say_part(text.as_bytes())?;
        }
        if self.questions.send(Question { text: text.to_owned(), keep }).is_err() {
            return Ok(Answer::End);
        }
        loop {
            match self.events.recv() {
                Ok(Event::Line(line)) => {
                    return Ok(match line? {
                        Some(line) => Answer::Line(line),
                        None => Answer::End,
                    })
                }
                Ok(Event::Cleared) => {
                    say(HINT.as_bytes())?;
                    return Ok(Answer::Cleared);
                }
                Ok(Event::Printer(printer)) => self.printer = Some(printer),
                Ok(Event::Stop) => return Ok(Answer::Stop),
                // It was for the command before, or comes from another process, whose SIGTERM would be meant.
                Ok(Event::Interrupt) if self.editing => {
                    self.forget_interruption();
                    self.notice(HINT)?;
                }
                Ok(Event::Interrupt) => return Ok(Answer::Stop),
                Ok(Event::Child) => self.report(host)?,
                Err(mpsc::RecvError) => return Ok(Answer::End),
            }
        }
    }

    /// Waits for a signal that asks the process to stop.
    fn wait_for_stop(&mut self, host: &mut dyn Host) -> io::Result<()> {
        loop {
            match self.events.recv() {
                Ok(Event::Stop | Event::Interrupt) | Err(mpsc::RecvError) => return Ok(()),
                Ok(Event::Child) => self.report(host)?,
                Ok(Event::Line(_) | Event::Cleared | Event::Printer(_)) => {}
            }
        }
    }

    fn report(&mut self, host: &mut dyn Host) -> io::Result<()> {
        host.news().iter().try_for_each(|line| self.notice(line))
    }

    fn notice(&mut self, line: &str) -> io::Result<()> {
        match &mut self.printer {
            // Above the line that is being edited.
            Some(print) => print(format!("{line}\n")),
            None => say(line.as_bytes())?,
        }
        Ok(())
    }

    /// What was interrupted has ended. A request to stop stays in force: its event is on its way.
    fn forget_interruption(&self) {
        self.interrupted.store(false, Ordering::Relaxed);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(mode) = &self.mode {
            // The editor may still be waiting for a key, with the terminal in its mode.
            let _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, mode);
        }
    }
}

fn watch_signals(
    store: &Store,
    sender: &mpsc::Sender<Event>,
    interrupted: Arc<AtomicBool>,
) -> io::Result<()> {
    let _inside = store.handle.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = crate::cli::hangup()?;
    let mut child = signal(SignalKind::child())?;
    let sender = sender.clone();
    store.handle.spawn(async move {
        loop {
            let event = tokio::select! {
                _ = interrupt.recv() => Event::Interrupt,
                _ = terminate.recv() => Event::Stop,
                () = crate::cli::hung_up(&mut hangup) => Event::Stop,
                _ = child.recv() => Event::Child,
            };
            if matches!(event, Event::Stop | Event::Interrupt) {
                interrupted.store(true, Ordering::Relaxed);
            }
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn read_lines(asked: &mpsc::Receiver<Question>, sender: &mpsc::Sender<Event>, line_bytes_max: usize) {
    let mut input = io::stdin().lock();
    for _ in asked {
        let mut line = Vec::new();
        let read =
            input.by_ref().take((line_bytes_max as u64).saturating_add(1)).read_until(b'\n', &mut line);
        let line = match read {
            Err(error) => Err(error),
            Ok(0) => Ok(None),
            Ok(_) if line.len() > line_bytes_max => {
                Err(io::Error::other(format!("a line of more than {line_bytes_max} bytes")))
            }
            Ok(_) => {
                if line.last() == Some(&b'\n') {
                    line.pop();
                    if line.last() == Some(&b'\r') {
                        line.pop();
                    }
                }
                Ok(Some(line))
            }
        };
        if sender.send(Event::Line(line)).is_err() {
            return;
        }
    }
}

fn edit_lines(asked: &mpsc::Receiver<Question>, sender: &mpsc::Sender<Event>, line_bytes_max: usize) {
    // Without bracketed paste: pasted lines are operations, one each, and a kill leaves the terminal as it was.
    let config = rustyline::Config::builder().bracketed_paste(false).max_history_size(HISTORY_MAX);
    let editor = config.and_then(|config| rustyline::DefaultEditor::with_config(config.build()));
    let mut editor = match editor {
        Ok(editor) => editor,
        Err(error) => {
            log::warn!("no line editing cause={error}");
            return read_lines(asked, sender, line_bytes_max);
        }
    };
    if let Ok(mut printer) = editor.create_external_printer() {
        let print = move |text| {
            if let Err(error) = printer.print(text) {
                log::warn!("notice lost cause={error}");
            }
        };
        let _ = sender.send(Event::Printer(Box::new(print)));
    }
    let history = history_path();
    if let Some(path) = &history {
        // It is not there the first time.
        let _ = editor.load_history(path);
    }
    for question in asked {
        let line = match editor.readline(&question.text) {
            Ok(line) => {
                if question.keep && !line.trim().is_empty() {
                    let _ = editor.add_history_entry(&line);
                    if let Some(path) = &history {
                        if let Err(error) = editor.append_history(path) {
                            log::debug!("history not saved cause={error}");
                        }
                    }
                }
                Ok(Some(line.into_bytes()))
            }
            Err(ReadlineError::Interrupted) => {
                if sender.send(Event::Cleared).is_err() {
                    return;
                }
                continue;
            }
            Err(ReadlineError::Eof) => Ok(None),
            Err(ReadlineError::Io(error)) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        };
        if sender.send(Event::Line(line)).is_err() {
            return;
        }
    }
}

/// What the binaries' help says of the history.
pub const HISTORY_HELP: &str = "\
Environment:
  DSM_HISTORY   File that keeps the last 1000 lines typed at a terminal, with their keys and values; /dev/null keeps
                none [default: ~/.dsm_history]";

/// `DSM_HISTORY`, or `.dsm_history` in the home directory.
fn history_path() -> Option<PathBuf> {
    let in_home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".dsm_history"));
    kept_in(std::env::var_os("DSM_HISTORY").map(PathBuf::from).or_else(in_home)?)
}

/// The path, if lines can be kept there. The editor takes a history away from all but its owner, and must not do that
/// to a device: then nobody could use /dev/null any more.
fn kept_in(path: PathBuf) -> Option<PathBuf> {
    let can_be = std::fs::metadata(&path).map_or(!path.as_os_str().is_empty(), |there| there.is_file());
    can_be.then_some(path)
}

/// An operation as it was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum TypedOperation {
    /// `READ key`; without a key it is asked for.
    Read(Option<Vec<u8>>),
    /// `WRITE key value`; without both they are asked for.
    Write(Option<(Vec<u8>, Vec<u8>)>),
    /// `DELETE key`; without a key it is asked for.
    Delete(Option<Vec<u8>>),
    /// `STATUS`.
    Status,
    /// `FAILOVER`.
    Failover,
    /// `HELP`.
    Help,
    /// `EXIT`.
    Exit,
    /// Nothing but white space.
    Empty,
    /// Something else; how to do it right.
    Invalid(&'static str),
}

/// How the operations of the store are written, as the commands themselves say.
fn prompt_lines() -> impl Iterator<Item = PromptLine> {
    COMMAND_FACTS.iter().filter_map(|facts| facts.prompt)
}

/// How every operation is written.
fn usage() -> &'static str {
    static USAGE: LazyLock<String> = LazyLock::new(|| {
        let usages = prompt_lines().map(|line| line.usage).chain(["HELP"]);
        format!("{} or EXIT", usages.collect::<Vec<_>>().join(", "))
    });
    &USAGE
}

/// How the operation of the store is written that begins with `word`.
fn usage_of(word: &str) -> &'static str {
    let is_its = |line: &PromptLine| line.usage.split(' ').next() == Some(word);
    prompt_lines().find(is_its).map_or_else(usage, |line| line.usage)
}

impl TypedOperation {
    /// Reads a line. A key is one word, or stands in quotes; a value is what follows the one character after the key,
    /// without the quotes if all of it stands in quotes.
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
            b"STATUS" => alone(TypedOperation::Status),
            b"FAILOVER" => alone(TypedOperation::Failover),
            b"HELP" => alone(TypedOperation::Help),
            b"EXIT" | b"QUIT" => alone(TypedOperation::Exit),
            _ => TypedOperation::Invalid(usage()),
        }
    }

    /// Reads the words of a command line; each is taken as it is.
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
            (b"STATUS", []) => TypedOperation::Status,
            (b"FAILOVER", []) => TypedOperation::Failover,
            (b"HELP", []) => TypedOperation::Help,
            (b"EXIT" | b"QUIT", []) => TypedOperation::Exit,
            _ => TypedOperation::Invalid(usage()),
        }
    }
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

/// A value as it was meant: all of it in quotes, or as it is.
fn value_of(text: &[u8]) -> Vec<u8> {
    match quoted(text.trim_ascii()) {
        Some((value, [])) => value,
        Some(_) | None => text.to_vec(),
    }
}

/// What stands in quotes at the beginning, by the rules of redis-cli, and the rest, which begins with white space if
/// there is one.
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

/// Whether standard input is something that operations could come from: a terminal, a pipe, a file; not /dev/null.
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
        // Whoever read our answers has enough of them.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// What follows an operation.
enum Next {
    /// The next one.
    Ask,
    /// Nothing: the input ended in the middle of the dialog.
    Leave,
}

struct Dialog<'a> {
    store: &'a Store,
    terminal: &'a mut Terminal,
    host: &'a mut dyn Host,
    /// What the user was told last about who serves.
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
                Answer::Line(line) => line,
                Answer::Cleared => continue,
                Answer::End => return self.end_of_input(is_first),
                Answer::Stop => return self.farewell(),
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

    /// Nobody will give another line, or, as under systemd and nohup, a first one.
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

    /// The end that nobody typed: told to people only, so that a script sees its answers and nothing else.
    fn farewell(&self) -> io::Result<()> {
        if self.terminal.dialog {
            say(&[b"\n", FAREWELL].concat())?;
        }
        Ok(())
    }

    /// Whether a master answers now. A client that nobody asks for anything does not notice one that hangs, and looks for
    /// one that has come back only now and then.
    fn refresh(&mut self) -> bool {
        let Store { handle, client, .. } = self.store;
        self.unanswered.retain(|question| !question.is_finished());
        // However often a prompt is shown.
        if self.unanswered.len() < UNANSWERED_MAX {
            let client = client.clone();
            // Whom it leads to is what counts, and not what is answered.
            self.unanswered.push(handle.spawn(async move { drop(client.key_count().await) }));
        }
        let Some(question) = self.unanswered.last_mut() else { return false };
        handle.block_on(async { tokio::time::timeout(REFRESH_TIMEOUT, question).await.is_ok() })
    }

    /// Says who serves when that has changed, and returns it for the prompt.
    fn label(&mut self) -> io::Result<&'static str> {
        if self.told.is_none() {
            self.store.run(|client| client.wait_serving(WELCOME_TIMEOUT));
        }
        let answered = self.refresh();
        let serving = self.store.client.serving();
        let before = self.told.replace(serving);
        if before != Some(serving) {
            match serving {
                Some(Serving::Primary) => say(b"Connected to Master Server!!")?,
                Some(Serving::Backup) | None => {
                    say(b"Connection to Master Server failed, connecting to Backup Master...")?;
                }
            }
            if serving.is_none() {
                say(b"No master serves at the moment; every operation tries again.")?;
            }
        }
        Ok(match (serving, answered) {
            (Some(Serving::Backup), true) => "BACKUP",
            (Some(Serving::Primary), true) => "PRIMARY",
            // It served when it was last heard, and says nothing.
            (Some(Serving::Backup), false) => "BACKUP?",
            (Some(Serving::Primary), false) => "PRIMARY?",
            (None, _) => "NO MASTER",
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
            TypedOperation::Status => {
                self.store.run(Client::status).map(|text| status_text(&text).into_bytes())
            }
            TypedOperation::Failover => self.store.run(Client::failover).map(|()| b"FAILOVER_DONE".to_vec()),
        };
        match answer {
            Ok(line) => say(&line)?,
            Err(error) => say(error_line(&error).as_bytes())?,
        }
        Ok(Next::Ask)
    }

    /// What was given, or the answer to `question`; else what follows instead of the operation.
    fn given_or_asked(
        &mut self,
        given: Option<Vec<u8>>,
        question: &str,
    ) -> io::Result<Result<Vec<u8>, Next>> {
        match given {
            Some(given) => Ok(Ok(given)),
            None => Ok(match self.terminal.ask(question, false, self.host)? {
                Answer::Line(line) => Ok(line),
                Answer::Cleared => Err(Next::Ask),
                Answer::End | Answer::Stop => Err(Next::Leave),
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

/// What HELP shows: the prompt's operations, and the host's commands, which win where both know a word.
pub fn help(of_host: &str) -> String {
    let word = |line: &str| line.split(' ').next().unwrap_or("").to_ascii_lowercase();
    let is_hosts = |line: &str| of_host.lines().any(|host| word(host) == word(line));
    let of_store = prompt_lines().map(|line| format!("{:<22}{}", line.usage, line.means));
    let own = of_store.chain(HELP_MORE.lines().map(str::to_owned));
    let lines = own.filter(|line| !is_hosts(line)).chain(of_host.lines().map(str::to_owned));
    lines.collect::<Vec<_>>().join("\n")
}

/// One line about an error, beginning with the word that says its kind: the store's own, `NOT_EXECUTED`, or
/// `UNKNOWN` for a write that may or may not take effect.
pub fn error_line(error: &ClientError) -> String {
    match error {
        ClientError::NotExecuted { cause: Failure::Refused(refusal) }
        | ClientError::Indeterminate { cause: Failure::Refused(refusal) } => refusal.to_string(),
        ClientError::NotExecuted { cause: Failure::Invalid(why) } => format!("ERR {why}"),
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

fn say_part(text: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text)?;
    output.flush()
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
    fn a_command_of_the_host_takes_the_place_of_the_prompts_own() {
        assert_eq!(
            help(""),
            "READ <key>            prints the value of the key\n\
             WRITE <key> <value>   writes the key; the value is the rest of the line\n\
             DELETE <key>          deletes the key\n\
             STATUS                describes the master that serves\n\
             FAILOVER              asks the master that serves to hand over to the other one\n\
             EXIT                  leaves\n\
             READ, WRITE and DELETE alone ask for the rest. A key, or a whole value, may stand in quotes as in \
             redis-cli:\n\
             \"a b\" with \\n, \\\", \\x00 and the like in it, 'a b' as it is."
        );
        assert_eq!(usage(), "READ <key>, WRITE <key> <value>, DELETE <key>, STATUS, FAILOVER, HELP or EXIT");
        assert_eq!(usage_of("WRITE"), "WRITE <key> <value>");
        let both = help("status   shows more\nkill N   kills");
        assert!(!both.contains("STATUS") && both.contains("FAILOVER"), "{both}");
        assert!(both.ends_with("as it is.\nstatus   shows more\nkill N   kills"), "{both}");
    }

    #[test]
    fn a_history_is_kept_in_files_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("history");
        assert_eq!(kept_in(file.clone()), Some(file.clone()), "it is not there the first time");
        std::fs::write(&file, "#V2\n").unwrap();
        assert_eq!(kept_in(file.clone()), Some(file));
        for no_file in ["/dev/null", ""] {
            assert_eq!(kept_in(no_file.into()), None, "{no_file:?}");
        }
        assert_eq!(kept_in(directory.path().to_owned()), None);
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
            (&["help"], TypedOperation::Help),
            (&["EXIT"], TypedOperation::Exit),
            (&["EXIT", "now"], TypedOperation::Invalid(usage())),
        ] {
            assert_eq!(TypedOperation::from_words(&words(line)), operation, "{line:?}");
        }
    }

    #[test]
    fn a_terminal_gets_no_control_characters_and_no_broken_text() {
        assert_eq!(escaped("grün\t\u{1b}[2J".as_bytes()), "grün\\t\\u{1b}[2J");
        assert_eq!(escaped(b"a\xff\0b"), "a\\xff\\u{0}b");
    }
}
