//! The prompt of `dsm-client` and `dsm-cluster`: reads operations, asks the store, prints answers.
//!
//! The dialog runs on the caller's main thread, because only that may start processes (see `dsm::launcher`). The prompt
//! never retries by itself. Its texts are those of `docs/ARCHITECTURE.md`, "The prompt".
//!
//! | file | owns |
//! |---|---|
//! | `dialog.rs` | the questions, the operations, the display of the serving master |
//! | `typed.rs` | an operation as it was typed |
//! | `answers.rs` | the lines that are printed |
//! | `terminal.rs`, `input.rs`, `history.rs` | the queue of lines and signals; reading and editing lines; keeping lines |
//! | `store.rs` | the client on a thread of its own |

mod answers;
mod dialog;
mod history;
mod input;
mod store;
mod terminal;
mod typed;

pub use answers::{
    error_line, help, key_lines, not_found, say, shown, status_text, FAREWELL, INVALID, MEMBERS_BEGUN,
    REMOVAL_BEGUN,
};
pub use dialog::run;
pub use history::HISTORY_HELP;
pub use store::Store;
pub use terminal::Terminal;
pub use typed::TypedOperation;

/// The program that runs the prompt: its further commands and its news.
pub trait Host {
    /// Carries out a line, if it is one of the host's; the answer, line by line.
    fn command(&mut self, line: &str, store: &Store) -> Option<Vec<String>>;
    /// Whether it goes on without input, until a signal comes.
    fn outlives_input(&self) -> bool {
        false
    }
    /// What has happened since the last call, one line each.
    fn news(&mut self) -> Vec<String>;
    /// The lines that HELP shows for the host's commands.
    fn help(&self) -> &'static str;
}
