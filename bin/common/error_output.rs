//! Standard error with a bounded queue, so that logging never waits for the reader of standard error.
//!
//! Owns the lines that are not written yet, at most [`QUEUE_BYTES_MAX`] of them, and the thread that writes them. With a
//! pipe that is not read, a terminal that is stopped or a full disk, lines are dropped, and their number is printed once
//! writing works again. The caller never waits, and the exit code of the process does not change.

use rustix::event::{PollFd, PollFlags};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most bytes of lines that wait; lines that do not fit are dropped and counted.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// How long the end of the process waits for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the end of the process waits for them if standard error would take them: then this process itself has not had the
/// processor.
const STARVED_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the report of a panic of the main thread may hold that thread.
const PANIC_FLUSH_TIMEOUT: Duration = Duration::from_millis(25);

/// How long after the system has refused a thread no new one is asked for.
const THREAD_RETRY: Duration = Duration::from_millis(100);

static QUEUE: Queue = Queue { state: Mutex::new(State::EMPTY), filled: Condvar::new(), idle: Condvar::new() };

/// A copy of [`State::lost`] that is read without the queue's lock.
static LOST: AtomicU64 = AtomicU64::new(0);

struct Queue {
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// Every line was written, or has failed.
    idle: Condvar,
}

struct State {
    waiting: Vec<u8>,
    /// Lines lost and not reported yet.
    dropped: u64,
    /// Lines lost since the beginning.
    lost: u64,
    /// The thread is writing lines.
    writing: bool,
    thread: Thread,
}

enum Thread {
    None,
    Runs,
    /// The system refused the thread at that time.
    Refused(Instant),
}

/// The rules for lines, apart from the file to which they go.
impl State {
    const EMPTY: State =
        State { waiting: Vec::new(), dropped: 0, lost: 0, writing: false, thread: Thread::None };

    /// Puts whole lines into the queue, or counts them as dropped.
    fn push(&mut self, lines: &[u8]) {
        let note = self.note();
        if self.waiting.len() + note.len() + lines.len() > QUEUE_BYTES_MAX {
            self.drop_lines(lines);
            return;
        }
        if !note.is_empty() {
            self.waiting.extend_from_slice(note.as_bytes());
            self.dropped = 0;
        }
        self.waiting.extend_from_slice(lines);
    }

    fn drop_lines(&mut self, lines: &[u8]) {
        let lost = count(lines);
        self.dropped += lost;
        self.lost += lost;
    }

    /// The message about the lines that were dropped so far; empty when there are none.
    fn note(&self) -> String {
        match self.dropped {
            0 => String::new(),
            lost => format!("dsm: {lost} lines dropped here: standard error did not take them\n"),
        }
    }

    /// The lines of `tried` were written, except the last `failed` bytes.
    fn written(&mut self, tried: &[u8], failed: Option<&[u8]>) {
        match failed {
            Some(rest) => self.drop_lines(rest),
            // The next line may come much later, so what was dropped meanwhile is reported now.
            None if self.waiting.is_empty() && !tried.is_empty() && self.dropped > 0 => self.push(b""),
            None => {}
        }
    }
}

/// The number of lines in `bytes`, the last one with or without its line end.
fn count(bytes: &[u8]) -> u64 {
    let ends = memchr::memchr_iter(b'\n', bytes).count() as u64;
    ends + u64::from(!bytes.is_empty() && !bytes.ends_with(b"\n"))
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic leaves nothing inconsistent here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&'static self, lines: &[u8]) {
        let mut state = self.lock();
        state.push(lines);
        LOST.store(state.lost, Ordering::Relaxed);
        let wanted = match state.thread {
            Thread::None => true,
            Thread::Runs => false,
            Thread::Refused(at) => at.elapsed() >= THREAD_RETRY,
        };
        if wanted {
            let spawned =
                std::thread::Builder::new().name("dsm-stderr".to_owned()).spawn(|| self.write_all());
            state.thread = match spawned {
                Ok(_) => Thread::Runs,
                Err(_) => Thread::Refused(Instant::now()),
            };
        }
        self.filled.notify_one();
    }

    /// The thread: writes until the process ends.
    fn write_all(&self) {
        let mut batch = Vec::new();
        let mut state = self.lock();
        loop {
            while state.waiting.is_empty() {
                self.idle.notify_all();
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut state.waiting, &mut batch);
            state.writing = true;
            drop(state);
            let left = write(&batch);
            state = self.lock();
            state.writing = false;
            state.written(&batch, left.map(|left| &batch[left..]));
            LOST.store(state.lost, Ordering::Relaxed);
            batch.clear();
        }
    }

    /// Waits until all lines are written, at most for `limit`, and for `starved` while standard error would take them.
    fn flush(&self, limit: Duration, starved: Duration) {
        let begun = Instant::now();
        let mut end = begun + limit;
        let mut state = self.lock();
        while state.writing || !state.waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if begun.elapsed() >= starved || !is_writable() {
                    return;
                }
                end = Instant::now() + limit;
                continue;
            }
            if !matches!(state.thread, Thread::Runs) {
                let lines = std::mem::take(&mut state.waiting);
                drop(state);
                write_without_thread(&lines, end);
                return;
            }
            state = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Whether standard error would take something now.
fn is_writable() -> bool {
    let output = io::stderr();
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = rustix::event::poll(&mut [PollFd::new(&output, PollFlags::OUT)], Some(&now));
    matches!(ready, Ok(count) if count > 0)
}

/// Writes to standard error, however long that takes; gives where it failed, if it did.
fn write(bytes: &[u8]) -> Option<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(io::stderr(), &bytes[written..]) {
            Ok(0) => return Some(written),
            Ok(count) => written += count,
            Err(rustix::io::Errno::INTR) => {}
            // Another process has made the shared file non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let output = io::stderr();
                let ready = rustix::event::poll(&mut [PollFd::new(&output, PollFlags::OUT)], None);
                if !matches!(ready, Ok(_) | Err(rustix::io::Errno::INTR)) {
                    return Some(written);
                }
            }
            Err(_) => return Some(written),
        }
    }
    None
}

/// Writes as much as is accepted until `end`, for a caller that must not wait longer.
fn write_without_thread(bytes: &[u8], end: Instant) {
    // As much as a pipe that polls as writable accepts at once.
    const CHUNK: usize = 4096;
    for chunk in bytes.chunks(CHUNK) {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        let output = io::stderr();
        let ready = rustix::event::poll(&mut [PollFd::new(&output, PollFlags::OUT)], Some(&timeout));
        if !matches!(ready, Ok(count) if count > 0) || write(chunk).is_some() {
            return;
        }
    }
}

/// The queue as the logger's target.
pub(crate) struct ErrorOutput;

impl Write for ErrorOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        QUEUE.push(bytes);
        Ok(bytes.len())
    }

    /// The thread flushes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints one line for people on standard error, soon and without waiting.
pub fn tell(line: &str) {
    QUEUE.push(format!("{line}\n").as_bytes());
}

/// How many lines were lost so far because standard error did not take them.
pub fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Gives the last lines a moment to be written before the process ends.
pub fn flush() {
    QUEUE.flush(FLUSH_TIMEOUT, STARVED_FLUSH_TIMEOUT);
}

/// Reports a panic through the same queue: the usual hook would wait for the reader of standard error.
pub(crate) fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let place = panic.location().map_or_else(|| "nowhere".to_owned(), ToString::to_string);
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let why = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        tell(&format!("thread '{name}' panicked at {place}:\n{why}{trace}"));
        if name == "main" {
            // It may be the last line of the process.
            QUEUE.flush(PANIC_FLUSH_TIMEOUT, PANIC_FLUSH_TIMEOUT);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_lines_are_counted_and_reported_where_they_are_missing() {
        let mut state = State::EMPTY;
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..QUEUE_BYTES_MAX / line.len() + 2 {
            state.push(&line);
        }
        assert_eq!((state.waiting.len(), state.dropped), (QUEUE_BYTES_MAX, 2));
        state.push(b"two\nlines");
        assert_eq!(state.dropped, 4);
        // The thread takes and writes the lines. The next line may come much later, so the note comes at once.
        let batch = std::mem::take(&mut state.waiting);
        state.written(&batch, None);
        let note = "dsm: 4 lines dropped here: standard error did not take them\n";
        assert_eq!(std::str::from_utf8(&state.waiting), Ok(note));
        assert_eq!((state.dropped, state.lost), (0, 4));
        state.push(b"next\n");
        assert_eq!(state.waiting, [note.as_bytes(), b"next\n"].concat());
    }

    #[test]
    fn lines_that_cannot_be_written_are_reported_before_the_next_one_that_can() {
        let mut state = State::EMPTY;
        state.push(b"one\ntwo\nthree\n");
        let batch = std::mem::take(&mut state.waiting);
        // "one" is written.
        state.written(&batch, Some(&batch[4..]));
        assert!(state.waiting.is_empty(), "writing the note again and again would turn in circles");
        state.push(b"four\n");
        let told = "dsm: 2 lines dropped here: standard error did not take them\nfour\n";
        assert_eq!(std::str::from_utf8(&state.waiting), Ok(told));
        assert_eq!((state.dropped, state.lost), (0, 2));
    }
}
