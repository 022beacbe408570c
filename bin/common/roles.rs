//! The roles as whole programs: flags, signals, exit codes. Each role's binary is this and nothing else; `dsm-cluster`
//! runs the roles through it too.

use crate::cli::{self, Flags, LogArgs};
use crate::why_ended;
use anyhow::Context as _;
use clap::Parser;
use dsm::address;
use dsm::config::{MasterConfig, MasterKind, SlaveConfig, BACKUP_ADDRESS, PRIMARY_ADDRESS};
use dsm::env::real::RealEnv;
use dsm::node::{run_node, NodeConfig};
use rustix::process::{getrlimit, setrlimit, Resource, Signal};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use tokio::signal::unix::{signal, SignalKind};

/// Runs the primary master, which serves clients, writes the log and sends values to the slaves.
///
/// It knows which slaves hold which key and keeps no values itself. It is a standby while the backup serves, and asks the
/// backup to hand over a second after it is ready; no request fails by that.
#[derive(Parser, Debug)]
#[command(name = "dsm-master", version, after_help = MASTER_EXAMPLES)]
struct MasterArgs {
    #[command(flatten)]
    config: MasterConfig,
    #[command(flatten)]
    process: ProcessArgs,
}

/// Runs the backup master, which follows the log and takes over when the primary dies.
///
/// It then serves until the primary is back and asks it to hand over.
#[derive(Parser, Debug)]
#[command(name = "dsm-backup-master", version, after_help = BACKUP_EXAMPLES)]
struct BackupArgs {
    #[command(flatten)]
    config: MasterConfig,
    #[command(flatten)]
    process: ProcessArgs,
}

/// Runs a slave, which holds values in memory and acknowledges writes.
///
/// It connects to both masters and obeys the one that serves. It keeps nothing on disk: a restarted slave is empty.
#[derive(Parser, Debug)]
#[command(name = "dsm-slave", version, after_help = SLAVE_EXAMPLES)]
struct SlaveArgs {
    #[command(flatten)]
    config: SlaveConfig,
    #[command(flatten)]
    process: ProcessArgs,
}

const MASTER_EXAMPLES: &str = "Examples:
  dsm-master
  dsm-master --listen 127.0.0.1:7001 --peer 127.0.0.1:7002 --log /var/lib/dsm/kv_store.log";

const BACKUP_EXAMPLES: &str = "Examples:
  dsm-backup-master
  dsm-backup-master --listen 127.0.0.1:7002 --peer 127.0.0.1:7001 --log /var/lib/dsm/kv_store.log";

const SLAVE_EXAMPLES: &str = "Examples:
  dsm-slave
  dsm-slave --masters 127.0.0.1:7001,127.0.0.1:7002 --id rack1 --max-memory 4GiB";

#[derive(clap::Args, Clone, Debug)]
struct ProcessArgs {
    #[command(flatten)]
    log: LogArgs,

    /// End when this process, which must be the parent, ends
    #[arg(long, value_name = "PID", hide = true)]
    die_with_parent: Option<i32>,
}

impl Flags for MasterArgs {
    fn validate(&self) -> Result<(), String> {
        self.config.validate(MasterKind::Primary).map_err(|error| error.to_string())
    }
}

impl Flags for BackupArgs {
    fn validate(&self) -> Result<(), String> {
        self.config.validate(MasterKind::Backup).map_err(|error| error.to_string())
    }
}

impl Flags for SlaveArgs {
    fn validate(&self) -> Result<(), String> {
        self.config.validate().map_err(|error| error.to_string())
    }
}

/// Runs `role` (`master`, `backup` or `slave`) with the flags of its own binary, without a program name.
pub fn run(role: &str, flags: Vec<OsString>) -> ExitCode {
    let words = |name: &str| std::iter::once(OsString::from(name)).chain(flags).collect::<Vec<_>>();
    match role {
        "master" => run_as::<MasterArgs>(words("dsm-master"), |args| {
            (NodeConfig::Master(MasterKind::Primary, args.config), args.process)
        }),
        "backup" => run_as::<BackupArgs>(words("dsm-backup-master"), |args| {
            (NodeConfig::Master(MasterKind::Backup, args.config), args.process)
        }),
        "slave" => {
            run_as::<SlaveArgs>(words("dsm-slave"), |args| (NodeConfig::Slave(args.config), args.process))
        }
        other => cli::fail(&format!("no role {other:?}: there are master, backup and slave"), 2),
    }
}

/// What masters take as a value at most, in bytes, with the flags that a launcher gives them, these, and this process's
/// environment.
///
/// # Errors
/// The exit code when masters would not start with them; it is told why.
pub fn value_max(master_flags: &[OsString]) -> Result<usize, ExitCode> {
    let launched =
        ["dsm-master", "--listen", PRIMARY_ADDRESS, "--peer", BACKUP_ADDRESS, "--log", "kv_store.log"];
    let words = launched.map(OsString::from).into_iter().chain(master_flags.iter().cloned());
    cli::parse::<MasterArgs>(words).map(|args| args.config.value_max())
}

/// The flags that this process was started with.
pub fn own_flags() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

fn run_as<A: Flags>(words: Vec<OsString>, role: impl FnOnce(A) -> (NodeConfig, ProcessArgs)) -> ExitCode {
    let args = match cli::parse::<A>(words.clone()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let (mut config, process) = role(args);
    process.log.start("info");
    take_small_pages();
    if let NodeConfig::Master(_, config) = &mut config {
        fit_descriptors(config);
    }
    let result = die_with(process.die_with_parent).and_then(|()| serve(config));
    match result {
        Ok(()) => cli::ended(ExitCode::SUCCESS),
        Err(error) => cli::fail(&cli::with_variables::<A>(&format!("{error:#}"), words), 1),
    }
}

/// Has the kernel give this process its memory in pages of 4 KiB. A huge one is cleared in one go when it is first touched,
/// wherever that happens: where the machine under the kernel has no memory ready, that takes 10 ms for 2 MiB, in which the
/// one thread of a node does nothing else.
fn take_small_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        log::info!("huge pages of memory stay on, turns may be longer error={error}");
    }
}

/// Descriptors that a master needs beside those of its connections.
const OWN_DESCRIPTORS: u64 = 32;

/// Raises this process's limit on open files as far as `--max-connections` needs, or else lowers that flag: a
/// connection too many is refused with a reason, and the master's own files can always be opened.
fn fit_descriptors(config: &mut MasterConfig) {
    let mut limit = getrlimit(Resource::Nofile);
    let has_sockets = config.listen.iter().any(|address| address::unix_path(address).is_some());
    // A Unix socket whose peer takes nothing has a second descriptor, by which the system tells when it does again.
    let of_each = if has_sockets { 2 } else { 1 };
    let wanted = (config.max_connections as u64).saturating_mul(of_each).saturating_add(OWN_DESCRIPTORS);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let before = limit.current;
    limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
    if setrlimit(Resource::Nofile, limit).is_err() {
        limit.current = before;
    }
    let fitting = limit.current.unwrap_or(wanted).saturating_sub(OWN_DESCRIPTORS) / of_each;
    let fitting = usize::try_from(fitting).unwrap_or(usize::MAX).max(1);
    if fitting < config.max_connections {
        // A few fewer change nothing for anybody.
        let level =
            if fitting < config.max_connections / 10 * 9 { log::Level::Warn } else { log::Level::Info };
        log::log!(
            level,
            "open files are limited, lowering --max-connections from={} to={fitting}: raise the limit (ulimit -n)",
            config.max_connections
        );
        config.max_connections = fitting;
    }
}

/// Asks the kernel to end this process with its parent. It follows the parent's *thread* that started us.
fn die_with(parent: Option<i32>) -> anyhow::Result<()> {
    let Some(parent) = parent else { return Ok(()) };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot follow the parent's death")?;
    let actual = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    anyhow::ensure!(actual == parent, "the parent {parent} is gone");
    Ok(())
}

fn serve(config: NodeConfig) -> anyhow::Result<()> {
    let reload = match &config {
        NodeConfig::Master(_, config) => config.has_files_to_reload().then(|| config.reload.clone()),
        NodeConfig::Slave(config) => config.tls.is_on().then(|| config.reload.clone()),
    };
    let system = actix_rt::System::new();
    system.block_on(async move {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        // Whoever closes the terminal means the programs in it, but those that were started with nohup; else it means "read
        // your files again".
        let is_kept = cli::is_hangup_ignored();
        let mut hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
        let at_terminal = !is_kept && (io::stdin().is_terminal() || io::stderr().is_terminal());
        let (ask, asked) = tokio::sync::oneshot::channel();
        let mut ask = Some(ask);
        let signals = async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => match (at_terminal, &reload) {
                        (true, _) => {}
                        (false, Some(reload)) => {
                            reload.ask();
                            continue;
                        }
                        (false, None) => {
                            log::info!(
                                "SIGHUP ignored: no file is read again, and the output belongs to whoever started this"
                            );
                            continue;
                        }
                    }
                }
                match ask.take() {
                    // Nobody listens any more when the node has ended by itself.
                    Some(ask) => drop(ask.send(())),
                    None => return,
                }
            }
        };
        let stop = async move {
            // The sender waits for a signal as long as the node runs.
            let _ = asked.await;
        };
        tokio::select! {
            biased;
            ended = run_node(config, RealEnv::logging(cli::lines_lost), stop) => {
                ended.map_err(|error| anyhow::anyhow!(why_ended::sentence(&error)))
            }
            () = signals => {
                log::warn!("ended at once by a second signal");
                cli::flush();
                // Threads may wait for a disk: nothing waits for them.
                std::process::exit(1);
            }
        }
    })
}
