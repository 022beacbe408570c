//! Reads lines on request, from a pipe or edited at a terminal.

use super::history::{history_path, HISTORY_MAX};
use rustyline::error::ReadlineError;
use rustyline::ExternalPrinter as _;
use std::io::{self, BufRead as _, Read as _};
use std::sync::mpsc;

/// What reaches the main thread.
pub(super) enum Event {
    Line(io::Result<Option<Vec<u8>>>),
    /// Ctrl+C instead of a line.
    Cleared,
    Printer(Box<dyn FnMut(String) + Send>),
    Stop,
    /// SIGINT: Ctrl+C where no line is edited, or from another process.
    Interrupt,
    Child,
}

/// A request for a line.
pub(super) struct Question {
    /// What is shown where it is typed.
    pub(super) text: String,
    /// Whether it goes into the history.
    pub(super) keep: bool,
}

pub(super) fn read_lines(
    asked: &mpsc::Receiver<Question>,
    sender: &mpsc::Sender<Event>,
    line_bytes_max: usize,
) {
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

pub(super) fn edit_lines(
    asked: &mpsc::Receiver<Question>,
    sender: &mpsc::Sender<Event>,
    line_bytes_max: usize,
) {
    // Bracketed paste is off: each pasted line is an operation, and a kill leaves the terminal as it was.
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
        // The file does not exist the first time.
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
