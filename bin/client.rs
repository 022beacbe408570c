//! `dsm-client`: the prompt, or one operation given on the command line.
//!
//! One operation prints only its result on standard output. The exit code is 0 (found, done), 1 (not found; STATUS: the
//! cluster is degraded, with a line on standard error) or 2 (error, with a line on standard error; STATUS --json: no master
//! serves).

// A blocked or closed standard error must neither delay nor end this process: print with `dsm_server::cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]
// The doc comments of flags are their help texts, in which `<key>` is not an HTML tag.
#![allow(rustdoc::invalid_html_tags)]

#[path = "client/top.rs"]
mod top;

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::Parser;
use dsm::client::{Client, ClientConfig, ClientError};
use dsm::config::{self, SecretSource, TlsFiles};
use dsm_protocol::info::{Info, MasterInfo, NodeState, NodeVerdict};
use dsm_server::cli::{self, Flags};
use dsm_server::prompt::{self, Host, Store, TypedOperation};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Reads and writes keys of a dsm cluster, at a prompt or with one operation.
///
/// With an operation it prints the result and ends with one of the exit codes below. Without one it shows a prompt.
#[derive(Parser, Debug)]
#[command(name = "dsm-client", version, after_help = format!("{EXAMPLES}\n\n{}", prompt::HISTORY_HELP))]
struct Args {
    /// Addresses of the masters, HOST:PORT or unix:/PATH, the primary first
    #[arg(
        long,
        env = "DSM_MASTERS",
        value_name = "ADDR,ADDR",
        value_delimiter = ',',
        value_parser = dsm::address::to_connect,
        default_value = "127.0.0.1:12345,127.0.0.1:12346"
    )]
    masters: Vec<String>,

    #[command(flatten)]
    tls: TlsFiles,

    /// File of the secret of native clients, which this side and the masters prove to each other
    #[arg(long, env = "DSM_CLIENT_SECRET_FILE", value_name = "FILE")]
    client_secret_file: Option<PathBuf>,

    /// How long one operation may take before it is given up, as in 500ms or 2s
    #[arg(long, env = "DSM_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "2s",
          value_parser = humantime::parse_duration)]
    request_timeout: Duration,

    /// How long a connection to one master may take to open, as in 500ms or 2s; less if another one can be tried
    #[arg(long, env = "DSM_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "2s",
          value_parser = humantime::parse_duration)]
    connect_timeout: Duration,

    /// Longest value to write or read; should be the same as the masters'
    #[arg(long, env = "DSM_MAX_VALUE", value_name = "BYTES", default_value = "16MiB")]
    max_value: ByteSize,

    /// Show prompts even if standard input is not a terminal
    #[arg(long, env = "DSM_PROMPT")]
    prompt: bool,

    #[command(flatten)]
    log: cli::LogArgs,

    /// READ KEY | WRITE KEY VALUE... | DELETE KEY | KEYS PATTERN | STATUS [--json] | TOP | FAILOVER | REMOVE-SLAVE SLAVE | MEMBERS CHANGE | HELP [default: show a prompt]
    #[arg(value_name = "OPERATION", trailing_var_arg = true, allow_hyphen_values = true)]
    operation: Vec<OsString>,
}

const EXAMPLES: &str = "Examples:
  dsm-client
  dsm-client WRITE greeting hello world
  dsm-client --masters 127.0.0.1:7001,127.0.0.1:7002 READ greeting
  dsm-client TOP             the state of the cluster on one screen, anew each second; q leaves

Exit codes: 0 done or found; 1 not found, or STATUS: the cluster is degraded; 2 error, or STATUS --json: no master serves.";

impl Flags for Args {
    fn validate(&self) -> Result<(), String> {
        config::check_timeout("--request-timeout", self.request_timeout)
            .and_then(|()| config::check_timeout("--connect-timeout", self.connect_timeout))
            .and_then(|()| config::check_max_value("--max-value", self.max_value))
            .map_err(|error| error.to_string())
    }
}

fn main() -> ExitCode {
    cli::outlive_file_limit();
    match cli::parse::<Args>(std::env::args_os()) {
        Ok(args) => {
            args.log.start("warn");
            cli::finish(run(args), 2)
        }
        Err(code) => code,
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = ClientConfig {
        masters: args.masters,
        tls: args.tls,
        secret: args.client_secret_file.map(SecretSource::File),
        request_timeout: args.request_timeout,
        connect_timeout: args.connect_timeout,
        value_max: args.max_value.as_u64() as usize,
        ..ClientConfig::default()
    };
    // Words of the operation may begin with a dash, because keys and values may. The first word, the operation itself,
    // never does.
    let first = args.operation.first().map(|word| word.to_string_lossy().into_owned());
    let mistaken = first.filter(|word| word.starts_with('-'));
    let (mut in_json, mut is_top) = (false, false);
    let operation = match args.operation.is_empty() {
        true => None,
        false => {
            let mut words: Vec<_> = args.operation.into_iter().map(OsString::into_vec).collect();
            in_json = is_status_in_json(&words);
            if in_json {
                words.pop();
            }
            is_top = matches!(&words[..], [word] if word.eq_ignore_ascii_case(b"TOP"));
            if is_top {
                words = vec![b"STATUS".to_vec()];
            }
            Some(TypedOperation::from_words(&words))
        }
    };
    if let Some(flag) = mistaken {
        anyhow::bail!("unexpected argument '{flag}' found; see dsm-client --help");
    }
    if let Some(TypedOperation::Invalid(usage)) = operation {
        anyhow::bail!("{} Usage: {usage}", prompt::INVALID);
    }
    let store = Store::start(config).context("cannot start the client")?;
    match operation {
        Some(_) if in_json => status_in_json(&store),
        Some(_) if is_top => top::show(&store),
        Some(operation) => once(&store, operation),
        None => {
            let mut terminal = prompt::Terminal::open(&store, args.prompt, Default::default())
                .context("cannot read standard input")?;
            prompt::run(&store, &mut terminal, &mut NoHost)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Whether these words are `STATUS --json`.
fn is_status_in_json(words: &[Vec<u8>]) -> bool {
    matches!(words, [status, json] if status.eq_ignore_ascii_case(b"STATUS") && json == b"--json")
}

/// Prints the state of the cluster as an object of JSON; its exit code says it, too.
fn status_in_json(store: &Store) -> anyhow::Result<ExitCode> {
    let text =
        store.run(Client::status).map_err(|error| anyhow::anyhow!("{}", prompt::error_line(&error)))?;
    let info = MasterInfo::parse(&text).context("the master is of another version")?;
    let mut verdict = NodeVerdict::of_master(&info);
    if !info.is_primary() {
        verdict.state = NodeState::Down;
        verdict.why.insert(0, "no master serves that can be reached".to_owned());
    }
    let code = match verdict.state {
        NodeState::Healthy => 0,
        NodeState::Degraded => 1,
        NodeState::Down => 2,
    };
    let state = verdict.state.to_string();
    let status = serde_json::json!({ "state": state, "why": verdict.why, "info": info.json() });
    let text = serde_json::to_string_pretty(&status).context("cannot write JSON")?;
    prompt::say(text.as_bytes()).context("cannot write the result")?;
    Ok(ExitCode::from(code))
}

fn once(store: &Store, operation: TypedOperation) -> anyhow::Result<ExitCode> {
    let failed = |error: ClientError| anyhow::anyhow!("{}", prompt::error_line(&error));
    let not_found = |key: &[u8]| {
        cli::tell(&String::from_utf8_lossy(&prompt::not_found(key)));
        Ok(ExitCode::from(1))
    };
    let line = match operation {
        TypedOperation::Read(Some(key)) => {
            match store.run(|client| client.get(key.clone())).map_err(failed)? {
                Some(value) => prompt::shown(&value),
                None => return not_found(&key),
            }
        }
        TypedOperation::Write(Some((key, value))) => {
            store.run(|client| client.put(key, value)).map_err(failed)?;
            b"WRITE_DONE".to_vec()
        }
        TypedOperation::Delete(Some(key)) => {
            if !store.run(|client| client.delete(key.clone())).map_err(failed)? {
                return not_found(&key);
            }
            b"DELETE_DONE".to_vec()
        }
        TypedOperation::Keys(pattern) => {
            let keys = store.run(|client| client.keys(pattern)).map_err(failed)?;
            if keys.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            prompt::key_lines(&keys)
        }
        TypedOperation::Status => {
            let text = prompt::status_text(&store.run(Client::status).map_err(failed)?);
            prompt::say(text.as_bytes()).context("cannot write the result")?;
            return Ok(match Info::parse(&text).get("degraded") {
                None | Some("") => ExitCode::SUCCESS,
                Some(what) => {
                    cli::tell(&format!("degraded: {what}"));
                    ExitCode::from(1)
                }
            });
        }
        TypedOperation::Failover => {
            store.run(Client::failover).map_err(failed)?;
            b"FAILOVER_DONE".to_vec()
        }
        TypedOperation::Members(order) => {
            store.run(|client| client.change_members(order)).map_err(failed)?;
            prompt::MEMBERS_BEGUN.to_vec()
        }
        TypedOperation::RemoveSlave(slave) => {
            store.run(|client| client.remove_slave(slave)).map_err(failed)?;
            prompt::REMOVAL_BEGUN.to_vec()
        }
        TypedOperation::Help => prompt::help("").into_bytes(),
        // There is nothing to leave.
        TypedOperation::Exit => prompt::FAREWELL.to_vec(),
        TypedOperation::Read(None)
        | TypedOperation::Write(None)
        | TypedOperation::Delete(None)
        | TypedOperation::Empty
        | TypedOperation::Invalid(_) => anyhow::bail!("{}", prompt::INVALID),
    };
    prompt::say(&line).context("cannot write the result")?;
    Ok(ExitCode::SUCCESS)
}

/// The host of a prompt without further commands.
struct NoHost;

impl Host for NoHost {
    fn command(&mut self, _line: &str, _store: &Store) -> Option<Vec<String>> {
        None
    }

    fn news(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn help(&self) -> &'static str {
        ""
    }
}
