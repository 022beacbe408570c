//! `dsm-cluster`: a whole local cluster as child processes, with the client's prompt.
//!
//! It starts the roles by running itself again (`dsm-cluster role …`, for internal use), reports the end of a child and
//! restarts nothing by itself. All children end with it. There is one cluster per data directory.

// A blocked or closed standard error must neither delay nor end this process: print with `dsm_server::cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

use anyhow::Context as _;
use clap::{Parser, ValueEnum as _};
use dsm::client::{ClientConfig, Serving};
use dsm::config::{self, Fsync, SecretSource, TlsFiles};
use dsm::launcher::{describe_exit, LaunchError, Launcher, LauncherConfig, MasterCommand, Role, RoleCommand};
use dsm_server::cli::{self, Flags};
use dsm_server::prompt::{self, Host, Store};
use dsm_server::roles;
use dsm_server::why_not_launched::sentence;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

// The roles run in this program too, and spend much of their time on small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long a port may still be held by ending processes of the previous cluster.
const PORT_PATIENCE: Duration = Duration::from_secs(1);

/// How long the prompt waits for the other master after the one that serves was killed or paused.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(4);

const HELP: &str = "\
status                shows the processes and the state of the store
kill ROLE             kills a process (SIGKILL); ROLE: primary, backup, slave N
restart ROLE          starts a process again, after stopping it if it runs
pause ROLE            pauses a process (SIGSTOP)
continue ROLE         continues a paused process (SIGCONT)";

const EXAMPLES: &str = "Examples:
  dsm-cluster
  dsm-cluster --slaves 5 --data /var/lib/dsm
  dsm-cluster --port 0 --backup-port 0 -- --placement random --min-slaves 2";

/// Starts a local cluster (a primary, a backup and slaves as child processes) and shows the client's prompt.
///
/// The data directory holds the log and the output of the processes; an existing log is used. All processes end with this
/// one. They read the environment variables of their flags (`DSM_…`), too.
#[derive(Parser, Debug)]
#[command(name = "dsm-cluster", version, after_help = format!("{EXAMPLES}\n\n{}", prompt::HISTORY_HELP))]
struct Args {
    /// Number of slaves, 1 to 64
    #[arg(long, env = "DSM_SLAVES", value_name = "N", default_value = "3",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    slaves: u16,

    /// Directory for the log and the output of the processes
    #[arg(long, env = "DSM_DATA", value_name = "DIR", default_value = "./dsm-data")]
    data: PathBuf,

    /// Port of the primary; 0: any free port
    #[arg(long, env = "DSM_PORT", value_name = "PORT", default_value = "12345")]
    port: u16,

    /// Port of the backup; 0: any free port
    #[arg(long, env = "DSM_BACKUP_PORT", value_name = "PORT", default_value = "12346")]
    backup_port: u16,

    /// Ports of the masters' Sentinels, the primary's first, as in 26379,26380; without them there are none
    #[arg(long, env = "DSM_SENTINEL_PORTS", value_name = "PORT,PORT", value_parser = two_ports)]
    sentinel_ports: Option<[u16; 2]>,

    /// First of the ports at which the processes tell health, status and metrics over HTTP: the primary's; the backup and the
    /// slaves have the next ones; without it there are none
    #[arg(long, env = "DSM_HTTP_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    http_port: Option<u16>,

    /// When a write counts as written to the log [default: that of dsm-master]
    #[arg(long, env = "DSM_FSYNC", value_name = "POLICY", value_enum)]
    fsync: Option<Fsync>,

    #[command(flatten)]
    tls: TlsFiles,

    /// File of the secret that slaves and masters prove to each other
    #[arg(long, env = "DSM_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,

    /// File of the secret that native clients must prove to the masters, as the prompt here does
    #[arg(long, env = "DSM_CLIENT_SECRET_FILE", value_name = "FILE")]
    client_secret_file: Option<PathBuf>,

    /// How long one operation at the prompt may take before it is given up, as in 500ms or 2s
    #[arg(long, env = "DSM_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "2s",
          value_parser = humantime::parse_duration)]
    request_timeout: Duration,

    /// How long the processes may take to start, replaying the log included, as in 30s or 2min
    #[arg(long, env = "DSM_START_TIMEOUT", value_name = "DURATION", default_value = "60s",
          value_parser = humantime::parse_duration)]
    start_timeout: Duration,

    /// Show prompts even if standard input is not a terminal
    #[arg(long, env = "DSM_PROMPT")]
    prompt: bool,

    #[command(flatten)]
    log: cli::LogArgs,

    /// Further flags for both masters, after `--`
    #[arg(last = true, value_name = "MASTER_FLAGS")]
    master_flags: Vec<OsString>,
}

impl Flags for Args {
    fn validate(&self) -> Result<(), String> {
        let [(first, first_flag), (second, second_flag)] = self.ports();
        if first.is_some() && first == second {
            return Err(format!("{first_flag} and {second_flag} are the same"));
        }
        if let Some(first_http) = self.http_port {
            let Some(last) = first_http.checked_add(1 + self.slaves) else {
                return Err(format!("--http-port {first_http} leaves no port for the slaves"));
            };
            for (port, flag) in [(first, first_flag), (second, second_flag)] {
                if port.is_some_and(|port| (first_http..=last).contains(&port)) {
                    return Err(format!(
                        "--http-port takes the ports {first_http} to {last}, and {flag} is one of them"
                    ));
                }
            }
        }
        config::check_timeout("--request-timeout", self.request_timeout)
            .and_then(|()| config::check_timeout("--start-timeout", self.start_timeout))
            .map_err(|error| error.to_string())
    }
}

impl Args {
    /// The masters' ports, the primary's first, with the flags that name them; `None`: a free one.
    fn ports(&self) -> [(Option<u16>, &'static str); 2] {
        [(self.port, "--port"), (self.backup_port, "--backup-port")]
            .map(|(port, flag)| ((port != 0).then_some(port), flag))
    }

    /// The flags of a master's Sentinel: of the first one, or of the second.
    fn sentinel_flags(&self, number: usize) -> Vec<OsString> {
        let Some(ports) = self.sentinel_ports else { return Vec::new() };
        let (own, other) = (ports[number], ports[1 - number]);
        let at = |port: u16| format!("127.0.0.1:{port}").into();
        vec!["--sentinel".into(), at(own), "--sentinel-peer".into(), at(other)]
    }

    /// The flags of all masters.
    fn masters_with(&self) -> Vec<OsString> {
        let mut flags = self.master_flags.clone();
        if let Some(policy) = self.fsync.and_then(|policy| policy.to_possible_value()) {
            flags.extend(["--fsync".into(), policy.get_name().into()]);
        }
        flags
    }
}

/// Reads two different ports.
fn two_ports(text: &str) -> Result<[u16; 2], String> {
    let ports: Vec<u16> = text.split(',').map_while(|port| port.trim().parse().ok()).collect();
    match ports[..] {
        [first, second] if first != 0 && second != 0 && first != second && text.split(',').count() == 2 => {
            Ok([first, second])
        }
        _ => Err("give two different ports, as 26379,26380".to_owned()),
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "role") {
        let role = words.next().unwrap_or_default();
        return roles::run(&role.to_string_lossy(), words.collect());
    }
    cli::outlive_file_limit();
    let args = match cli::parse::<Args>(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    // The masters' own flags are checked before anything is started.
    let value_max = match roles::value_max(&args.masters_with()) {
        Ok(value_max) => value_max,
        Err(code) => return code,
    };
    args.log.start("warn");
    cli::finish(run(args, value_max), 1)
}

fn run(args: Args, value_max: usize) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&args.data)
        .with_context(|| format!("cannot create the data directory {}", args.data.display()))?;
    let _lock = lock(&args.data)?;
    for (port, flag) in args.ports() {
        port.map_or(Ok(()), |port| check_port(port, flag))?;
    }
    let mut launcher = Launcher::new(launcher_config(&args)?).map_err(told)?;
    let client = ClientConfig {
        masters: launcher.masters(),
        tls: args.tls.clone(),
        secret: args.client_secret_file.clone().map(SecretSource::File),
        request_timeout: args.request_timeout,
        value_max,
        ..ClientConfig::default()
    };
    // Signals are caught from here on, so nothing may be started before.
    let store = Store::start(client).context("cannot start the client")?;
    let mut terminal = prompt::Terminal::open(&store, args.prompt, launcher.interruption())
        .context("cannot read standard input")?;
    match launcher.start_all() {
        Ok(()) => {}
        Err(LaunchError::Interrupted) => {
            launcher.stop_all();
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(told(error)).context("the cluster does not start"),
    }
    let mut cluster = Cluster { launcher };
    let shown = cluster.table(false).iter().try_for_each(|line| prompt::say(line.as_bytes()));
    let result = match shown {
        Ok(()) => prompt::run(&store, &mut terminal, &mut cluster),
        Err(error) => Err(error).context("cannot write to standard output"),
    };
    drop(terminal);
    cluster.launcher.stop_all();
    result.map(|()| ExitCode::SUCCESS)
}

fn told(error: LaunchError) -> anyhow::Error {
    anyhow::anyhow!(sentence(&error))
}

fn launcher_config(args: &Args) -> anyhow::Result<LauncherConfig> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let role = |name: &str| RoleCommand::new(&program).with_prefix(["role", name]);
    let master_flags = args.masters_with();
    let roles = ["master", "backup"].into_iter().enumerate().zip(args.ports());
    let masters = roles.map(|((number, name), (port, _))| {
        let command = role(name).with_extra(master_flags.clone()).with_extra(args.sentinel_flags(number));
        MasterCommand { command, port }
    });
    let mut config = LauncherConfig::new(masters, role("slave"), &args.data);
    config.slaves = usize::from(args.slaves);
    config.unix_sockets = true;
    config.tls = args.tls.clone();
    config.secret_file = args.secret_file.clone();
    config.client_secret_file = args.client_secret_file.clone();
    config.http_port = args.http_port;
    config.ready_timeout = args.start_timeout;
    Ok(config)
}

/// Locks the data directory for this process. The kernel releases the lock when the process ends, however it ends.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("cluster.lock");
    let open = File::options().create(true).read(true).write(true).truncate(false).open(&path);
    let mut file = open.with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only to name its holder.
            let _ = file.read_to_string(&mut holder);
            let (data, holder) = (data.display(), holder.trim());
            anyhow::bail!(
                "a cluster is running on {data} already (pid {holder}); choose another with --data"
            );
        }
        Err(errno) => return Err(io::Error::from(errno)).context(format!("cannot lock {}", path.display())),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

fn check_port(port: u16, flag: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if begun.elapsed() >= PORT_PATIENCE {
                    anyhow::bail!("port {port} is in use by another program; choose another with {flag}");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error).context(format!("cannot listen at port {port} ({flag})")),
        }
    }
}

/// The processes, as commands at the prompt see them.
struct Cluster {
    launcher: Launcher,
}

impl Cluster {
    fn table(&mut self, states: bool) -> Vec<String> {
        let row = |role: &str, pid: &str, state: &str, address: &str, output: &str| {
            let state = if states { format!("{state:<20} ") } else { String::new() };
            format!("{role:<10} {pid:<8} {state}{address:<17} {output}").trim_end().to_owned()
        };
        let mut lines = vec![row("ROLE", "PID", "STATE", "ADDRESS", "LOG")];
        for role in self.launcher.roles() {
            let pid = self.launcher.pid(role).map_or("-".to_owned(), |pid| pid.to_string());
            let state = self.launcher.state(role).to_string();
            let address = self.launcher.address(role).map_or("-".to_owned(), |address| address.to_string());
            let output = self.launcher.output_path(role).display().to_string();
            lines.push(row(&role.to_string(), &pid, &state, &address, &output));
        }
        lines
    }

    fn status(&mut self) -> Vec<String> {
        let mut lines = self.table(true);
        lines.push(match self.launcher.serving() {
            None => "store: no master serves".to_owned(),
            Some((role, info)) => format!(
                "store: the {role} serves, epoch:{} active_slaves:{} keys:{} copies:{} log_bytes:{}",
                info.replication.epoch,
                info.slaves.active_slaves,
                info.keyspace.keys,
                info.keyspace.copies,
                info.log.log_bytes,
            ),
        });
        lines
    }

    /// The answer when a process is named that does not exist.
    fn no_such(&self, role: Role) -> String {
        let roles = self.launcher.roles();
        let (masters, slaves): (Vec<Role>, Vec<Role>) =
            roles.into_iter().partition(|role| matches!(role, Role::Master(_)));
        match (role, slaves.len()) {
            (Role::Master(_), _) => {
                let masters: Vec<String> = masters.iter().map(Role::to_string).collect();
                format!("there is no {role}; there are {}", masters.join(" and "))
            }
            (Role::Slave(_), 1) => format!("there is no {role}; there is slave 1"),
            (Role::Slave(_), slaves) => format!("there is no {role}; there are slaves 1 to {slaves}"),
        }
    }

    fn act(&mut self, action: &str, role: Role, store: &Store) -> Result<String, LaunchError> {
        let before = store.serving();
        let serves = before.is_some_and(|serving| role == Role::Master(serving.place));
        match action {
            "kill" => {
                self.launcher.kill(role)?;
                if serves {
                    wait_takeover(store, before);
                }
                Ok(format!("{role} killed"))
            }
            "pause" => {
                self.launcher.pause(role)?;
                if serves {
                    wait_takeover(store, before);
                }
                Ok(format!("{role} paused"))
            }
            "continue" => {
                self.launcher.resume(role)?;
                Ok(format!("{role} continued"))
            }
            _ => {
                self.launcher.restart(role)?;
                match role {
                    Role::Master(_) => self.launcher.wait_answering(role)?,
                    Role::Slave(_) => {}
                }
                let pid = self.launcher.pid(role).ok_or(LaunchError::NotRunning(role))?;
                Ok(format!("{role} restarted (pid {pid})"))
            }
        }
    }
}

/// Waits until the prompt can tell which master serves, at most as long as a takeover takes.
fn wait_takeover(store: &Store, before: Option<Serving>) {
    store.run(|client| client.wait_serving_other(before, TAKEOVER_PATIENCE));
}

impl Host for Cluster {
    fn command(&mut self, line: &str, store: &Store) -> Option<Vec<String>> {
        let (action, target) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let action = action.to_ascii_lowercase();
        match action.as_str() {
            "status" if target.trim().is_empty() => Some(self.status()),
            "kill" | "pause" | "continue" | "restart" => Some(vec![match target.parse() {
                Ok(role) if !self.launcher.roles().contains(&role) => self.no_such(role),
                Ok(role) => match self.act(&action, role, store) {
                    Ok(done) => done,
                    Err(error @ LaunchError::NotRunning(_)) => {
                        format!("{error}; \"restart {role}\" starts it")
                    }
                    Err(error) => sentence(&error),
                },
                Err(why) => format!("{action}: {why}"),
            }]),
            _ => None,
        }
    }

    fn outlives_input(&self) -> bool {
        true
    }

    fn news(&mut self) -> Vec<String> {
        let ended = self.launcher.take_ended();
        let told = ended.into_iter().map(|(role, status)| {
            let last = self.launcher.last_output(role);
            let last = if last.is_empty() { String::new() } else { format!(": {last}") };
            format!("{role} ended ({}){last}; \"restart {role}\" starts it again", describe_exit(status))
        });
        told.collect()
    }

    fn help(&self) -> &'static str {
        HELP
    }
}
