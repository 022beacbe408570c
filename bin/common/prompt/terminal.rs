//! Lines and signals as one queue of events for the main thread.

use super::answers::{say, say_part};
use super::input::{edit_lines, read_lines, Event, Question};
use super::store::Store;
use super::Host;
use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use tokio::signal::unix::{signal, SignalKind};

/// The hint about Ctrl+C at a terminal.
const HINT: &str = "Ctrl+C clears the line; EXIT or Ctrl+D leaves.";

/// The answer to a question.
pub(super) enum LineAnswer {
    Line(Vec<u8>),
    /// Ctrl+C: nothing was asked for.
    Cleared,
    End,
    Stop,
}

/// The source of lines and signals.
pub struct Terminal {
    questions: mpsc::Sender<Question>,
    events: mpsc::Receiver<Event>,
    printer: Option<Box<dyn FnMut(String) + Send>>,
    /// Whether prompts are shown.
    pub(super) dialog: bool,
    /// Lines are edited; the editor shows the prompts.
    editing: bool,
    /// The terminal's mode before the editor changed it.
    mode: Option<rustix::termios::Termios>,
    /// A signal has asked to end the command that runs now.
    interrupted: Arc<AtomicBool>,
}

impl Terminal {
    /// Prepares to read lines. `interrupted` is set when a signal asks the process to stop, and by Ctrl+C. Where lines
    /// are edited, Ctrl+C ends only the command that runs.
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

    pub(super) fn ask(&mut self, text: &str, keep: bool, host: &mut dyn Host) -> io::Result<LineAnswer> {
        if self.dialog && !self.editing {
            say_part(text.as_bytes())?;
        }
        if self.questions.send(Question { text: text.to_owned(), keep }).is_err() {
            return Ok(LineAnswer::End);
        }
        loop {
            match self.events.recv() {
                Ok(Event::Line(line)) => {
                    return Ok(match line? {
                        Some(line) => LineAnswer::Line(line),
                        None => LineAnswer::End,
                    })
                }
                Ok(Event::Cleared) => {
                    say(HINT.as_bytes())?;
                    return Ok(LineAnswer::Cleared);
                }
                Ok(Event::Printer(printer)) => self.printer = Some(printer),
                Ok(Event::Stop) => return Ok(LineAnswer::Stop),
                // Ignored: it was for the previous command, or another process has sent it, which should send SIGTERM.
                Ok(Event::Interrupt) if self.editing => {
                    self.forget_interruption();
                    self.notice(HINT)?;
                }
                Ok(Event::Interrupt) => return Ok(LineAnswer::Stop),
                Ok(Event::Child) => self.report(host)?,
                Err(mpsc::RecvError) => return Ok(LineAnswer::End),
            }
        }
    }

    /// Waits for a signal that asks the process to stop.
    pub(super) fn wait_for_stop(&mut self, host: &mut dyn Host) -> io::Result<()> {
        loop {
            match self.events.recv() {
                Ok(Event::Stop | Event::Interrupt) | Err(mpsc::RecvError) => return Ok(()),
                Ok(Event::Child) => self.report(host)?,
                Ok(Event::Line(_) | Event::Cleared | Event::Printer(_)) => {}
            }
        }
    }

    pub(super) fn report(&mut self, host: &mut dyn Host) -> io::Result<()> {
        host.news().iter().try_for_each(|line| self.notice(line))
    }

    fn notice(&mut self, line: &str) -> io::Result<()> {
        match &mut self.printer {
            // Printed above the line that is being edited.
            Some(print) => print(format!("{line}\n")),
            None => say(line.as_bytes())?,
        }
        Ok(())
    }

    /// The interrupted command has ended. A request to stop stays in force, because its event is on its way.
    fn forget_interruption(&self) {
        self.interrupted.store(false, Ordering::Relaxed);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(mode) = &self.mode {
            // The editor may still wait for a key, with the terminal in its mode.
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
