//! The processes of each store: on free ports of the loopback, in a temporary directory, up to the moment they serve.
//!
//! It owns the children and their configurations, which docs/BENCHMARKS.md shows, and ends them by their ids. Call it
//! from the main thread: the children ask the kernel to be killed when the thread that started them is gone.

use super::super::cluster::OwnCluster;
use super::super::monitor::ask;
use super::super::record::LoadSettings;
use super::super::stop::StopSignal;
use super::plan::Peer;
use anyhow::{bail, ensure, Context as _};
use dsm::launcher::describe_exit;
use dsm_server::why_not_launched::sentence;
use rustix::process::{kill_process, Pid, Signal};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a store may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a process may take to end when asked to, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at another process's progress, which cannot wake us.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long one question may take.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// The longest answer to a question, in bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Nodes of etcd and ZooKeeper.
const NODES: usize = 3;

/// Where Debian puts ZooKeeper's program and its logging configuration.
const ZOOKEEPER_CLASSES: &str = "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar";
const ZOOKEEPER_JAR: &str = "/usr/share/java/zookeeper.jar";

/// A store that serves.
#[derive(Debug)]
pub(crate) struct Instance {
    // In this order: the processes first, then what they write to.
    processes: Vec<Process>,
    cluster: Option<OwnCluster>,
    directory: Option<TempDir>,
    /// `host:port`; where a leader serves best, it is the first.
    pub targets: Vec<String>,
    /// `redis 7.0.15`.
    pub version: String,
    /// The command lines, `DIR` for the temporary directory.
    pub commands: Vec<String>,
}

/// What a store's processes need that is not installed; nothing, if it can be started.
pub(crate) fn missing(peer: Peer) -> Option<String> {
    let (program, file, package) = match peer {
        Peer::Dsm => return None,
        Peer::Redis | Peer::RedisAlways | Peer::RedisWait => ("redis-server", None, "redis-server"),
        Peer::Etcd => ("etcd", None, "etcd-server"),
        Peer::Zookeeper | Peer::ZookeeperLocal => {
            ("java", Some(ZOOKEEPER_JAR), "zookeeper and default-jre-headless")
        }
    };
    let is_there = find(program).is_some() && file.is_none_or(|file| Path::new(file).exists());
    (!is_there).then(|| format!("not installed: Debian's package {package}"))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

impl Instance {
    /// Starts the store and waits until it serves. `parent`: where its directory is made.
    ///
    /// # Errors
    /// When it cannot be started, does not serve in time, or `stop` is set.
    pub(crate) fn start(peer: Peer, parent: Option<&Path>, stop: &StopSignal) -> anyhow::Result<Instance> {
        if peer == Peer::Dsm {
            return start_dsm(parent, stop);
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix("dsm-peers.");
        let directory = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let mut starting = Starting {
            directory: directory.context("cannot make a directory")?,
            processes: Vec::new(),
            commands: Vec::new(),
            stop,
            deadline: Instant::now() + START_LIMIT,
        };
        let (targets, version) = match peer {
            Peer::Dsm => bail!("not started here"),
            Peer::Redis => starting.redis("no", 0)?,
            Peer::RedisAlways => starting.redis("yes", 0)?,
            Peer::RedisWait => starting.redis("yes", 2)?,
            Peer::Etcd => starting.etcd()?,
            Peer::Zookeeper | Peer::ZookeeperLocal => starting.zookeeper()?,
        };
        let Starting { directory, processes, commands, .. } = starting;
        Ok(Instance { processes, cluster: None, directory: Some(directory), targets, version, commands })
    }

    /// The ids of its processes.
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
        processes.iter().for_each(Process::ask_to_end);
        processes.iter_mut().for_each(Process::end);
        if let Some(cluster) = cluster {
            cluster.stop()?;
        }
        match directory {
            Some(directory) => directory.close().context("cannot remove the store's directory"),
            None => Ok(()),
        }
    }
}

fn start_dsm(parent: Option<&Path>, stop: &StopSignal) -> anyhow::Result<Instance> {
    let settings = LoadSettings {
        slaves: 3,
        placement: "hash".to_owned(),
        fsync: "always".to_owned(),
        ..LoadSettings::default()
    };
    let mut cluster = OwnCluster::prepare(&settings, &[], parent)?;
    stop.also_set(cluster.launcher().interruption());
    let started = cluster.launcher().start_all().map_err(|error| anyhow::anyhow!(sentence(&error)));
    started.context("the cluster does not start")?;
    let targets = cluster.launcher().masters();
    let commands = vec![
        "dsm-master --listen … --peer … --log DIR/kv_store.log --fsync always --placement hash".to_owned(),
        "dsm-backup-master --listen … --peer … --log DIR/kv_store.log --fsync always --placement hash"
            .to_owned(),
        "dsm-slave --masters …,… --id slave-1 (and 2, 3)".to_owned(),
    ];
    let version = format!("dsm {}", env!("CARGO_PKG_VERSION"));
    let processes = Vec::new();
    Ok(Instance { processes, cluster: Some(cluster), directory: None, targets, version, commands })
}

/// A store that does not serve yet.
struct Starting<'a> {
    // In this order: the processes first, then what they write to.
    processes: Vec<Process>,
    directory: TempDir,
    commands: Vec<String>,
    stop: &'a StopSignal,
    deadline: Instant,
}

impl Starting<'_> {
    fn redis(&mut self, appends: &str, replicas: usize) -> anyhow::Result<(Vec<String>, String)> {
        let ports = free_ports(1 + replicas)?;
        for (number, port) in ports.iter().enumerate() {
            let directory = self.make(&format!("redis-{number}"))?;
            let mut words = vec!["redis-server".to_owned()];
            let port = port.to_string();
            let mut option = |name: &str, value: &str| words.extend([format!("--{name}"), value.to_owned()]);
            option("port", &port);
            option("bind", "127.0.0.1");
            option("dir", &directory);
            option("save", "");
            option("appendonly", if number == 0 { appends } else { "no" });
            if number == 0 && appends == "yes" {
                option("appendfsync", "always");
            }
            if number == 0 && replicas > 0 {
                option("repl-diskless-sync-delay", "0");
            }
            if number > 0 {
                option("replicaof", &format!("127.0.0.1 {}", ports[0]));
            }
            self.spawn(&format!("redis-{number}"), &words)?;
        }
        let target = format!("127.0.0.1:{}", ports[0]);
        let version = self.wait("redis-server", || {
            let info = ask(&target, &["INFO"], ASK_LIMIT).ok()?;
            let online = info.lines().filter(|line| line.contains("state=online")).count();
            let version = info.lines().find_map(|line| line.trim_end().strip_prefix("redis_version:"))?;
            (online == replicas).then(|| format!("redis {version}"))
        })?;
        Ok((vec![target], version))
    }

    fn etcd(&mut self) -> anyhow::Result<(Vec<String>, String)> {
        let ports = free_ports(2 * NODES)?;
        let (clients, peers) = ports.split_at(NODES);
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let members: Vec<String> =
            peers.iter().enumerate().map(|(number, port)| format!("node{number}={}", url(port))).collect();
        for number in 0..NODES {
            let directory = self.make(&format!("etcd-{number}"))?;
            let (client, peer) = (url(&clients[number]), url(&peers[number]));
            let words = [
                "etcd".to_owned(),
                format!("--name=node{number}"),
                format!("--data-dir={directory}"),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", members.join(",")),
                "--initial-cluster-state=new".to_owned(),
                "--logger=zap".to_owned(),
                "--log-level=warn".to_owned(),
            ];
            self.spawn(&format!("etcd-{number}"), &words)?;
        }
        let nodes: Vec<String> = clients.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        self.wait("etcd", || {
            let healthy = |node: &String| get(node, "/health").is_some_and(|text| text.contains("\"true\""));
            nodes.iter().all(healthy).then_some(())
        })?;
        let targets = self.wait("etcd's leader", || {
            let leads = |node: &String| {
                let metrics = get(node, "/metrics")?;
                metrics.lines().find(|line| *line == "etcd_server_is_leader 1").map(|_| ())
            };
            leader_first(&nodes, |node| leads(node).is_some())
        })?;
        let version = get(&targets[0], "/version").unwrap_or_default();
        let version =
            version.split('"').skip_while(|word| *word != "etcdserver").nth(2).unwrap_or("?").to_owned();
        Ok((targets, format!("etcd {version}")))
    }

    fn zookeeper(&mut self) -> anyhow::Result<(Vec<String>, String)> {
        let ports = free_ports(3 * NODES)?;
        let (clients, rest) = ports.split_at(NODES);
        let (quorum, election) = rest.split_at(NODES);
        let mut members = String::new();
        for number in 0..NODES {
            members.push_str(&format!(
                "server.{}=127.0.0.1:{}:{};127.0.0.1:{}\n",
                number + 1,
                quorum[number],
                election[number],
                clients[number]
            ));
        }
        for number in 0..NODES {
            let directory = self.make(&format!("zookeeper-{number}"))?;
            let write = |name: &str, text: String| {
                let path = Path::new(&directory).join(name);
                fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
            };
            write("myid", format!("{}\n", number + 1))?;
            write(
                "zoo.cfg",
                format!(
                    "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={directory}\nmaxClientCnxns=0\n\
                     admin.enableServer=false\n4lw.commands.whitelist=srvr\n{members}"
                ),
            )?;
            let words = [
                "java".to_owned(),
                "-Xmx1000m".to_owned(),
                format!("-Dzookeeper.log.dir={directory}"),
                "-Dzookeeper.root.logger=WARN,CONSOLE".to_owned(),
                "-cp".to_owned(),
                ZOOKEEPER_CLASSES.to_owned(),
                "org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned(),
                format!("{directory}/zoo.cfg"),
            ];
            self.spawn(&format!("zookeeper-{number}"), &words)?;
        }
        let nodes: Vec<String> = clients.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mode = |node: &String| {
            let text = exchange(node, b"srvr")?;
            text.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
        };
        let targets = self.wait("ZooKeeper", || {
            let modes: Option<Vec<String>> = nodes.iter().map(mode).collect();
            modes?;
            leader_first(&nodes, |node| mode(node).as_deref() == Some("leader"))
        })?;
        let text = exchange(&targets[0], b"srvr").unwrap_or_default();
        let version = text.split_once("version: ").and_then(|(_, rest)| rest.split(['-', ',']).next());
        Ok((targets, format!("ZooKeeper {}", version.unwrap_or("?"))))
    }

    /// Makes a directory for one process.
    fn make(&self, name: &str) -> anyhow::Result<String> {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        path.into_os_string().into_string().ok().context("the directory's name is not UTF-8")
    }

    fn spawn(&mut self, name: &str, words: &[String]) -> anyhow::Result<()> {
        let path = self.directory.path();
        let shown: Vec<String> =
            words.iter().map(|word| word.replace(&path.to_string_lossy().into_owned(), "DIR")).collect();
        self.commands.push(shown.join(" "));
        self.processes.push(Process::spawn(name, words, &path.join(format!("{name}.out")))?);
        Ok(())
    }

    /// Asks `look` until it tells something.
    fn wait<T>(&mut self, what: &str, look: impl Fn() -> Option<T>) -> anyhow::Result<T> {
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

/// The nodes with the one for which `leads` holds in front; nothing, if there is none.
fn leader_first(nodes: &[String], leads: impl Fn(&String) -> bool) -> Option<Vec<String>> {
    let leader = nodes.iter().position(leads)?;
    let mut nodes = nodes.to_vec();
    nodes[..=leader].rotate_right(1);
    Some(nodes)
}

/// Ports that were free a moment ago, all different.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
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

/// Sends `request` and reads until the other side closes.
fn exchange(address: &str, request: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, ASK_LIMIT).ok()?;
    stream.set_read_timeout(Some(ASK_LIMIT)).ok()?;
    stream.set_write_timeout(Some(ASK_LIMIT)).ok()?;
    stream.write_all(request).ok()?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn get(address: &str, path: &str) -> Option<String> {
    exchange(address, format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
}

/// A child process. It is killed and reaped when it is dropped.
#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    fn spawn(name: &str, words: &[String], output: &Path) -> anyhow::Result<Process> {
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
        Ok(Process { name: name.to_owned(), child, output: output.to_owned() })
    }

    /// # Errors
    /// When it has ended.
    fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait().context("cannot ask for a process")? {
            let text = fs::read_to_string(&self.output).unwrap_or_default();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            bail!("{} ended before it served ({}): {last}", self.name, describe_exit(status));
        }
        Ok(())
    }

    fn ask_to_end(&self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may be gone already; it has not been reaped, so its id is still its own.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn end(&mut self) {
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

impl Drop for Process {
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
    fn the_leader_comes_first_and_the_others_stay_in_order() {
        let nodes = ["a", "b", "c"].map(str::to_owned);
        let first = |leader: &str| leader_first(&nodes, |node| node == leader);
        assert_eq!(first("a").unwrap(), ["a", "b", "c"]);
        assert_eq!(first("c").unwrap(), ["c", "a", "b"]);
        assert_eq!(first("x"), None);
    }

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
        let mut process = Process::spawn("shell", &words, &directory.path().join("out")).unwrap();
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
        let mut process = Process::spawn("sleeper", &words, &directory.path().join("out")).unwrap();
        process.check().unwrap();
        process.ask_to_end();
        process.end();
        assert!(process.child.try_wait().unwrap().is_some());
        let process = Process::spawn("sleeper", &words, &directory.path().join("out")).unwrap();
        let pid = process.child.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
