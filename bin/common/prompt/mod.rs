//! The prompt of `dsm-client` and `dsm-cluster`: reads operations, asks the store, prints answers.
//!
//! The main thread stays the caller's: only it may start processes (see `dsm::launcher`). The prompt never retries by
//! itself. Its texts are those of `docs/ARCHITECTURE.md`, "The prompt".
//!
//! | file | owns |
//! |---|---|
//! | `dialog.rs` | the questions, the operations, what is told of who serves |
//! | `typed.rs` | an operation as it was typed |
//! | `answers.rs` | the lines that are printed |
//! | `terminal.rs`, `input.rs`, `history.rs` | where lines come from and signals arrive; how lines are read and edited; which are kept |
//! | `store.rs` | the client on a thread of its own |

mod answers;
mod dialog;
mod history;
mod input;
mod store;
mod terminal;
mod typed;

pub use answers::{error_line, help, not_found, say, shown, status_text, FAREWELL, INVALID};
pub use dialog::run;
pub use history::HISTORY_HELP;
pub use store::Store;
pub use terminal::Terminal;
pub use typed::TypedOperation;

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
