//! The lines that nodes log: each test has a thread of its own, with all its nodes.

use std::cell::RefCell;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct KeepsLines;

impl log::Log for KeepsLines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.with_borrow_mut(|lines| lines.push(format!("{} {}", record.level(), record.args())));
        }
    }

    fn flush(&self) {}
}

/// Keeps from now on what this thread logs.
pub(crate) fn keep() {
    // Another test has set it already, for all threads.
    let _ = log::set_logger(&KeepsLines);
    log::set_max_level(log::LevelFilter::Info);
    LINES.with_borrow_mut(Vec::clear);
}

/// How many lines were kept that contain this.
pub(crate) fn count(what: &str) -> usize {
    LINES.with_borrow(|lines| lines.iter().filter(|line| line.contains(what)).count())
}
