//! `dsm-client TOP`: one screen of what the master that serves says of the cluster, anew each second, until `q`.
//!
//! Owns the terminal for that time, and gives it back as it was however this ends: by a key, a signal or a panic. It only asks
//! for STATUS. It is drawn by a dozen escape sequences that every terminal knows; a library for screens would weigh more than the
//! rest of the client.

use anyhow::{bail, Context as _};
use dsm::client::Client;
use dsm_protocol::info::Info;
use dsm_server::prompt::{self, Store};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::termios::{tcgetattr, tcgetwinsize, tcsetattr, OptionalActions, Termios};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{signal, SignalKind};

/// How often it asks.
const EACH: Duration = Duration::from_secs(1);

/// Begins and ends a screen of its own without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// The keys that end it: `q`, `Q`, Ctrl+C, Ctrl+D and Escape.
const ENDS: [u8; 5] = [b'q', b'Q', 3, 4, 27];

/// Shows the screen until a key or a signal ends it.
pub(crate) fn show(store: &Store) -> anyhow::Result<ExitCode> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("TOP needs a terminal: use STATUS, or STATUS --json");
    }
    let signals = hear_signals().context("cannot catch signals")?;
    let screen = Screen::enter().context("cannot use the terminal")?;
    let (mut before, mut next): (Option<(Instant, Info)>, _) = (None, Instant::now());
    loop {
        if Instant::now() >= next {
            let answer = store.run(Client::status).map(|text| Info::parse(&text));
            let now = Instant::now();
            let lines = match &answer {
                Ok(info) => lines(info, before.as_ref().map(|(then, info)| (now - *then, info))),
                Err(error) => vec![format!("no answer: {}", prompt::error_line(error))],
            };
            screen.draw(&lines).context("cannot write to the terminal")?;
            before = answer.ok().map(|info| (now, info));
            next = now + EACH;
        }
        let left = next.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).context("at most a second")?;
        let stdin = io::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut ready, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for a key"),
        }
        let [key, signalled] = ready.map(|one| !one.revents().is_empty());
        if signalled || (key && has_ended(stdin).context("cannot read a key")?) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Whether one of the keys that were pressed ends it, or nobody can press any more.
fn has_ended(mut stdin: io::Stdin) -> io::Result<bool> {
    let mut keys = [0; 64];
    let read = stdin.read(&mut keys)?;
    Ok(read == 0 || keys[..read].iter().any(|key| ENDS.contains(key)))
}

/// A stream that has something to read once a signal has come that is to end this.
fn hear_signals() -> io::Result<UnixStream> {
    let (hears, mut tells) = UnixStream::pair()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
            let [Ok(mut term), Ok(mut int), Ok(mut hup)] = kinds.map(signal) else { return };
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {}, _ = hup.recv() => {} }
        });
        // The drop of the stream says it, too.
        let _ = tells.write_all(b"!");
    })?;
    Ok(hears)
}

/// The terminal in raw mode, as long as this lives.
struct Screen {
    usual: Termios,
}

impl Screen {
    fn enter() -> io::Result<Screen> {
        let usual = tcgetattr(io::stdin())?;
        let mut raw = usual.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        let screen = Screen { usual };
        put(ENTER)?;
        Ok(screen)
    }

    /// Draws over what is there, line by line, so that nothing flickers.
    fn draw(&self, lines: &[String]) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout())?;
        // A terminal that does not know its size says 0.
        let or = |size: u16, usual: usize| if size == 0 { usual } else { size.into() };
        let (rows, columns) = (or(size.ws_row, 24), or(size.ws_col, 80));
        let mut text = "\x1b[H".to_owned();
        for line in lines.iter().take(rows - 1) {
            // What could change the terminal's state is in no field of INFO but names; and a line has one row.
            text.extend(line.chars().filter(|letter| !letter.is_control()).take(columns));
            text.push_str("\x1b[K\r\n");
        }
        text.push_str("q: leave\x1b[J");
        put(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nobody to tell when the terminal is gone.
        let _ = put(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.usual);
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// So many slaves are active at most.
const SLAVES_MAX: usize = 64;

/// What is shown: of each line its name, and the fields of INFO in it.
const LINES: [(&str, &[&str]); 8] = [
    ("serves", &["dsm_role", "active_master", "epoch", "uptime_in_seconds"]),
    (
        "clients",
        &["connected_clients", "requests_in_flight", "unknown_total", "errors_noquorum", "errors_busy"],
    ),
    ("keys", &["keys", "copies", "keys_under_replicated", "keys_misplaced"]),
    ("slaves", &["active_slaves", "slaves_full", "slaves_leaving", "slaves_quarantined"]),
    ("repair", &["repair_state", "repaired_keys", "rebalance_state", "moved_keys"]),
    ("log", &["log_bytes", "log_live_bytes", "compaction", "compactions"]),
    ("standby", &["peer_connected", "standby_lag_ms", "takeovers", "handovers"]),
    ("turns", &["turns_computing_above_10ms", "turn_longest_us", "turn_longest_in"]),
];

/// The lines of the screen. `before` is what was said so long ago.
fn lines(info: &Info, before: Option<(Duration, &Info)>) -> Vec<String> {
    let degraded = info.get("degraded").unwrap_or_default();
    let state = if degraded.is_empty() { "healthy".to_owned() } else { format!("degraded: {degraded}") };
    let rate = |name: &str| -> String {
        let number = |info: &Info| info.get(name).and_then(|number| number.parse::<u64>().ok());
        let Some((time, then)) = &before else { return "-".to_owned() };
        match (number(info), number(then)) {
            (Some(now), Some(then)) => {
                format!("{:.0}", now.saturating_sub(then) as f64 / time.as_secs_f64().max(0.001))
            }
            (None, _) | (_, None) => "-".to_owned(),
        }
    };
    let mut shown = vec![
        format!("state     {state}"),
        format!("requests  reads/s:{} writes/s:{}", rate("reads_total"), rate("writes_total")),
    ];
    for (name, fields) in LINES {
        let mut line = format!("{name:<9}");
        for field in fields {
            if let Some(value) = info.get(field) {
                let _ = write!(line, " {field}:{value}");
            }
        }
        shown.push(line);
    }
    let slaves = (0..SLAVES_MAX).map_while(|number| Some((number, info.get(&format!("slave{number}"))?)));
    shown.extend(slaves.map(|(number, what)| format!("{:<9} {what}", format!("slave {number}"))));
    shown
}
