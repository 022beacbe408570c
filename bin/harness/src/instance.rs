//! A store that runs for a measurement: its processes on free ports of the loopback, in a temporary directory, up to the
//! moment they serve; and how redis-server and valkey-server are started.
//!
//! Owns the children, and ends them by their ids. Call it from the main thread: the kernel kills the children when the
//! thread that started them ends.

use super::access::{AccessFiles, StoreAccess};
use super::cluster::OwnCluster;
use super::credentials::RunCredentials;
use super::stop::StopSignal;
use anyhow::{bail, ensure, Context as _};
use dsm::launcher::describe_exit;
use dsm_server::why_not_launched::sentence;
use rustix::process::{kill_process, Pid, Signal};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a store may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a process may take to end when asked to, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The interval at which another process's progress is polled.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long one question may take.
pub(crate) const ASK_LIMIT: Duration = Duration::from_millis(500);

/// A store that serves.
#[derive(Debug)]
pub(crate) struct Instance {
    // In this order: the processes first, then what they write to.
    processes: Vec<ChildProcess>,
    cluster: Option<OwnCluster>,
    directory: Option<TempDir>,
    /// `host:port`; where a leader serves best, it is the first.
    pub targets: Vec<String>,
    /// How they are reached.
    pub access: StoreAccess,
    /// `redis 7.0.15`.
    pub version: String,
    /// The command lines, `DIR` for the temporary directory.
    pub commands: Vec<String>,
}

impl Instance {
    /// Starts a cluster that is prepared, and waits until it serves.
    ///
    /// # Errors
    /// When it cannot be started, does not serve in time, or `stop` is set.
    pub(crate) fn of_cluster(mut cluster: OwnCluster, stop: &StopSignal) -> anyhow::Result<Instance> {
        stop.also_set(cluster.launcher().interruption());
        let started = cluster.launcher().start_all().map_err(|error| anyhow::anyhow!(sentence(&error)));
        started.context("the cluster does not start")?;
        let (targets, access) = (cluster.launcher().masters(), cluster.access().clone());
        let slaves = cluster.launcher().roles().len() - 2;
        let others = if slaves > 1 { format!(" (to slave-{slaves})") } else { String::new() };
        let tls = match access.tls() {
            Some(_) => " --tls-cert DIR/node.crt --tls-key DIR/node.key --tls-ca DIR/ca.pem",
            None => "",
        };
        let flags = format!("--log DIR/kv_store.log --fsync always --placement hash{tls}");
        let commands = vec![
            format!("dsm-master --listen … --peer … {flags}"),
            format!("dsm-backup-master --listen … --peer … {flags}"),
            format!("dsm-slave --masters …,… --id slave-1{tls}{others}"),
        ];
        let version = format!("dsm {}", env!("CARGO_PKG_VERSION"));
        let processes = Vec::new();
        Ok(Instance {
            processes,
            cluster: Some(cluster),
            directory: None,
            targets,
            access,
            version,
            commands,
        })
    }

    /// Starts the processes that `start` wants and waits until they serve; it gives their targets and the store's version.
    /// `parent`: where the directory is made; `tls`: whether they are to speak TLS.
    ///
    /// # Errors
    /// When it cannot be started, does not serve in time, or `stop` is set.
    pub(crate) fn start(
        parent: Option<&Path>,
        tls: bool,
        stop: &StopSignal,
        start: impl FnOnce(&mut Starting<'_>) -> anyhow::Result<(Vec<String>, String)>,
    ) -> anyhow::Result<Instance> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("dsm-peers.");
        let directory = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let directory = directory.context("cannot make a directory")?;
        let mut access = AccessFiles::default();
        if tls {
            let made = RunCredentials::make(directory.path())?;
            access = AccessFiles {
                password_file: None,
                ca: Some(made.ca),
                cert: Some(made.cert),
                key: Some(made.key),
            };
        }
        let mut starting = Starting {
            directory,
            processes: Vec::new(),
            access: StoreAccess::read(&access)?,
            tls: access,
            commands: Vec::new(),
            stop,
            deadline: Instant::now() + START_LIMIT,
        };
        let (targets, version) = start(&mut starting)?;
        let Starting { directory, processes, access, commands, .. } = starting;
        Ok(Instance {
            processes,
            cluster: None,
            directory: Some(directory),
            targets,
            access,
            version,
            commands,
        })
    }

    /// Whether it is a cluster of ours.
    pub(crate) fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// The ids of its processes: of a cluster the primary's, the backup's and the slaves', in this order.
    pub(crate) fn pids(&mut self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.processes.iter().map(|process| process.child.id()).collect();
        if let Some(cluster) = &mut self.cluster {
            let launcher = cluster.launcher();
            let roles = launcher.roles();
            pids.extend(roles.into_iter().filter_map(|role| launcher.pid(role)));
        }
        pids
    }

    /// Stops all processes and removes the directory.
    ///
    /// # Errors
    /// When the directory cannot be removed.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        let Instance { mut processes, cluster, directory, .. } = self;
        processes.iter().for_each(ChildProcess::ask_to_end);
        processes.iter_mut().for_each(ChildProcess::end);
        if let Some(cluster) = cluster {
            cluster.stop()?;
        }
        match directory {
            Some(directory) => directory.close().context("cannot remove the store's directory"),
            None => Ok(()),
        }
    }
}

/// Where `PATH` has a program.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// A store that does not serve yet.
#[derive(Debug)]
pub(crate) struct Starting<'a> {
    // In this order: the processes first, then what they write to.
    processes: Vec<ChildProcess>,
    directory: TempDir,
    access: StoreAccess,
    /// The files of TLS, if it is to be spoken.
    tls: AccessFiles,
    commands: Vec<String>,
    stop: &'a StopSignal,
    deadline: Instant,
}

impl Starting<'_> {
    /// redis-server, alone and with nothing on disk.
    pub(crate) fn redis(&mut self) -> anyhow::Result<(Vec<String>, String)> {
        self.like_redis("redis", false, 0)
    }

    /// redis-server with `appendfsync always`, and so many replicas in memory.
    pub(crate) fn redis_always(&mut self, replicas: usize) -> anyhow::Result<(Vec<String>, String)> {
        self.like_redis("redis", true, replicas)
    }

    /// valkey-server, alone and with nothing on disk.
    pub(crate) fn valkey(&mut self) -> anyhow::Result<(Vec<String>, String)> {
        self.like_redis("valkey", false, 0)
    }

    /// The store `name`, which is Redis or was forked from it: one process that `appends` each write to a file, or not, and
    /// replicas in memory.
    fn like_redis(
        &mut self,
        name: &str,
        appends: bool,
        replicas: usize,
    ) -> anyhow::Result<(Vec<String>, String)> {
        let ports = free_ports(1 + replicas)?;
        let program = format!("{name}-server");
        for (number, port) in ports.iter().enumerate() {
            let directory = self.make(&format!("{name}-{number}"))?;
            let mut words = vec![program.clone()];
            let port = port.to_string();
            let mut option = |name: &str, value: &str| words.extend([format!("--{name}"), value.to_owned()]);
            let files = &self.tls;
            if let (Some(ca), Some(cert), Some(key)) = (&files.ca, &files.cert, &files.key) {
                option("port", "0");
                option("tls-port", &port);
                option("tls-replication", "yes");
                for (name, file) in [("tls-ca-cert-file", ca), ("tls-cert-file", cert), ("tls-key-file", key)]
                {
                    option(name, &file.to_string_lossy());
                }
            } else {
                option("port", &port);
            }
            option("bind", "127.0.0.1");
            option("dir", &directory);
            option("save", "");
            option("appendonly", if number == 0 && appends { "yes" } else { "no" });
            if number == 0 && appends {
                option("appendfsync", "always");
            }
            if number == 0 && replicas > 0 {
                option("repl-diskless-sync-delay", "0");
            }
            if number > 0 {
                option("replicaof", &format!("127.0.0.1 {}", ports[0]));
            }
            self.spawn(&format!("{name}-{number}"), &words)?;
        }
        let target = format!("127.0.0.1:{}", ports[0]);
        let access = self.access.clone();
        let version = self.wait(&program, || {
            let info = access.ask(&target, &["INFO"], ASK_LIMIT).ok()?;
            let online = info.lines().filter(|line| line.contains("state=online")).count();
            let field = format!("{name}_version:");
            let version = info.lines().find_map(|line| line.trim_end().strip_prefix(&field))?;
            (online == replicas).then(|| format!("{name} {version}"))
        })?;
        Ok((vec![target], version))
    }

    /// Makes a directory for one process.
    pub(crate) fn make(&self, name: &str) -> anyhow::Result<String> {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        path.into_os_string().into_string().ok().context("the directory's name is not UTF-8")
    }

    /// Starts one process; its output goes to `NAME.out`.
    pub(crate) fn spawn(&mut self, name: &str, words: &[String]) -> anyhow::Result<()> {
        let path = self.directory.path();
        let shown: Vec<String> =
            words.iter().map(|word| word.replace(&path.to_string_lossy().into_owned(), "DIR")).collect();
        self.commands.push(shown.join(" "));
        self.processes.push(ChildProcess::spawn(name, words, &path.join(format!("{name}.out")))?);
        Ok(())
    }

    /// Calls `look` until it gives a result.
    pub(crate) fn wait<T>(&mut self, what: &str, look: impl Fn() -> Option<T>) -> anyhow::Result<T> {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            for process in &mut self.processes {
                process.check()?;
            }
            ensure!(!self.stop.is_set(), "interrupted");
            ensure!(Instant::now() < self.deadline, "{what} does not serve after {START_LIMIT:?}");
            self.stop.wait_until(Instant::now() + LOOK_INTERVAL);
        }
    }
}

/// Ports that were free a moment ago, all different.
pub(crate) fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // All are held until the last one is known.
    let listeners: Result<Vec<TcpListener>, _> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let ports: Result<Vec<u16>, _> = listeners
        .context("no port is free")?
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect();
    ports
}

/// A child process. It is killed and reaped when it is dropped.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    name: String,
    child: Child,
    output: PathBuf,
}

impl ChildProcess {
    /// Starts a program; what it prints goes to the file `output`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn spawn(name: &str, words: &[String], output: &Path) -> anyhow::Result<ChildProcess> {
        let (program, rest) = words.split_first().context("nothing to start")?;
        // It must not outlive us, however we end; setpriv becomes the program itself, under the same id.
        let mut command = if find("setpriv").is_some() {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", program]);
            command
        } else {
            Command::new(program)
        };
        let file = File::create(output).with_context(|| format!("cannot make {}", output.display()))?;
        let errors = file.try_clone().context("cannot duplicate a file")?;
        command.args(rest).stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        Ok(ChildProcess { name: name.to_owned(), child, output: output.to_owned() })
    }

    /// # Errors
    /// When it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait().context("cannot ask for a process")? {
            let text = fs::read_to_string(&self.output).unwrap_or_default();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            bail!("{} ended before it served ({}): {last}", self.name, describe_exit(status));
        }
        Ok(())
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, by SIGTERM.
    pub(crate) fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to end, as Ctrl+C does.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may be gone already; it has not been reaped, so its id is still its own.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it has ended.
    pub(crate) fn end(&mut self) {
        let deadline = Instant::now() + STOP_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                log::warn!("killed: did not end when asked to process={}", self.name);
                // It is reaped by the drop.
                return;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // Both fail for a process that has been reaped, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ() {
        let mut ports = free_ports(20).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn a_process_that_ends_too_early_is_named_with_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let words = ["sh", "-c", "echo first; echo last words; echo; exit 7"].map(str::to_owned);
        let mut process = ChildProcess::spawn("shell", &words, &directory.path().join("out")).unwrap();
        process.child.wait().unwrap();
        let error = process.check().unwrap_err().to_string();
        assert!(
            error.contains("shell") && error.contains("code 7") && error.ends_with("last words"),
            "{error}"
        );
    }

    #[test]
    fn a_process_ends_when_asked_and_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let words = ["sleep", "1000"].map(str::to_owned);
        let mut process = ChildProcess::spawn("sleeper", &words, &directory.path().join("out")).unwrap();
        process.check().unwrap();
        process.ask_to_end();
        process.end();
        assert!(process.child.try_wait().unwrap().is_some());
        let process = ChildProcess::spawn("sleeper", &words, &directory.path().join("out")).unwrap();
        let pid = process.child.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
