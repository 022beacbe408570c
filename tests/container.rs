//! `packaging/container/`: the flags and variables in it exist; and without any container program, in a directory that has only what
//! the image has, as its user and in networks of the test's own: the command of the image is a first process that stops when it is told
//! to, and the services of the compose file are a cluster that survives a master that hangs.

mod common;

use common::cluster::Process;
use common::isolation::isolated;
use common::skip::{need_program, skip, Lack};
use common::{seconds, wait_for};
use rustix::process::{kill_process, Pid, Signal};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{chown, symlink, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The user of the image.
const NOBODY: u32 = 65534;

const PROGRAMS: [&str; 6] = [
    env!("CARGO_BIN_EXE_dsm-master"),
    env!("CARGO_BIN_EXE_dsm-backup-master"),
    env!("CARGO_BIN_EXE_dsm-slave"),
    env!("CARGO_BIN_EXE_dsm-client"),
    env!("CARGO_BIN_EXE_dsm-log"),
    env!("CARGO_BIN_EXE_dsm-cluster"),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/container")
}

/// A service of the compose file.
#[derive(Clone, Debug)]
struct Service {
    command: Vec<String>,
    environment: BTreeMap<String, String>,
}

/// The services, as a reader of YAML has them.
fn services() -> Result<BTreeMap<String, Service>, Lack> {
    let read = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let compose = folder().join("compose.yaml");
    let json = ["python3", "/usr/bin/python3"].iter().find_map(|python| {
        let output = Command::new(python).args(["-c", read]).arg(&compose).output().ok()?;
        let is_there = !String::from_utf8_lossy(&output.stderr).contains("No module named");
        assert!(!is_there || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        is_there.then_some(output.stdout)
    });
    let json =
        json.ok_or_else(|| Lack::Missing("python3 has no yaml; Debian has it in python3-yaml".into()))?;
    let compose: Value = serde_json::from_slice(&json).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let named = compose["services"].as_object().expect("services").iter().map(|(name, service)| {
        let command = service["command"].as_array().expect("a command").iter().map(text).collect();
        let environment = service["environment"].as_object().into_iter().flatten();
        let environment = environment.map(|(name, value)| (name.clone(), text(value))).collect();
        (name.clone(), Service { command, environment })
    });
    Ok(named.collect())
}

/// The command of the image.
fn command_of_image() -> Vec<String> {
    let file = fs::read_to_string(folder().join("Containerfile")).expect("it is there");
    let command = file.lines().find_map(|line| line.strip_prefix("CMD ")).expect("a command");
    serde_json::from_str(command).expect("a list")
}

fn help_of(program: &str) -> String {
    let path = PROGRAMS.iter().find(|path| path.ends_with(&format!("/{program}")));
    let path = path.unwrap_or_else(|| panic!("there is no {program}"));
    let output = Command::new(path).arg("--help").output().expect("the binary is built");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn flags_and_variables_of_image_and_services_exist() {
    let services = match services() {
        Ok(services) => services,
        Err(lack) => return skip(flags_and_variables_of_image_and_services_exist, "", &lack),
    };
    let commands = services.values().map(|service| service.command.clone()).chain([command_of_image()]);
    let mut flags = 0;
    for command in commands.filter(|command| command[0].starts_with("dsm-")) {
        let help = help_of(&command[0]);
        for flag in command.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(&format!("\n      {flag}")), "{flag} of {}", command[0]);
            flags += 1;
        }
    }
    let helps: String = ["dsm-master", "dsm-slave", "dsm-client"].map(help_of).concat();
    for variable in services.values().flat_map(|service| service.environment.keys()) {
        assert!(helps.contains(&format!("[env: {variable}=")), "{variable}");
    }
    assert!(flags > 10 && services.len() == 6, "{services:?}");
}

/// What the image has, in a directory of the test's own `/run`, which goes with its name space. Nothing is ever removed from
/// it: a removal would follow what is mounted there.
struct Root(PathBuf);

impl Root {
    fn new() -> Root {
        let root = Root(PathBuf::from("/run/dsm-image"));
        for directory in ["usr/bin", "etc", "dev", "proc", "run/secrets", "tmp", "var/lib/dsm"] {
            fs::create_dir_all(root.path(directory)).expect("a directory");
        }
        symlink("usr/bin", root.path("bin")).expect("a link");
        let healthy = folder().join("healthy");
        let others = [Path::new("/bin/bash"), &healthy];
        for file in PROGRAMS.map(Path::new).into_iter().chain(others) {
            fs::copy(file, root.path("usr/bin").join(file.file_name().expect("a name"))).expect("a copy");
        }
        for library in libraries(PROGRAMS[0]).into_iter().chain(libraries("/bin/bash")) {
            let to = root.path(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
            fs::copy(&library, to).expect("a library");
        }
        let devices = root.path("dev").display().to_string();
        tool("cp", &["-a", "/dev/null", "/dev/urandom", &devices]).expect("root may do that");
        fs::write(root.path("etc/nsswitch.conf"), "hosts: files\n").expect("a file");
        fs::write(root.path("etc/hosts"), "127.0.0.1 localhost\n10.9.0.1 primary\n10.9.0.2 backup\n")
            .expect("a file");
        let data = root.path("var/lib/dsm");
        chown(&data, Some(NOBODY), Some(NOBODY)).expect("as root");
        fs::set_permissions(data, fs::Permissions::from_mode(0o700)).expect("its rights");
        root
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.join(inside)
    }

    /// The words of a command that runs this in the directory, as its user.
    fn words(&self, command: &[String]) -> Vec<String> {
        let root = self.0.display().to_string();
        let user = format!("--userspec=+{NOBODY}:+{NOBODY}");
        let chroot = ["chroot".to_owned(), user, "--groups=".to_owned(), root];
        chroot.into_iter().chain(command.iter().cloned()).collect()
    }

    fn command(&self, words: &[String], environment: &BTreeMap<String, String>) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(environment);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    }

    /// Runs a command to its end; gives its exit code and what it says.
    fn runs(&self, words: &[&str], environment: &BTreeMap<String, String>) -> (Option<i32>, String) {
        let words = self.words(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let output = self.command(&words, environment).output().expect("chroot is there");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn is_healthy(&self, port: u16, path: &str) -> bool {
        self.runs(&["healthy", &port.to_string(), path], &BTreeMap::new()).0 == Some(0)
    }

    fn start(&self, name: &str, words: &[String], environment: &BTreeMap<String, String>) -> Process {
        let output = fs::File::create(self.path(&format!("{name}.stderr"))).expect("a file");
        let mut command = self.command(words, environment);
        command.stdout(Stdio::null()).stderr(output);
        Process(command.spawn().expect("it is there"))
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.stderr"))).unwrap_or_default()
    }
}

/// The libraries of a program, and what loads them.
fn libraries(program: &str) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().expect("ldd is there");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

fn tool(program: &str, arguments: &[&str]) -> Result<(), Lack> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| Lack::Missing(format!("{program}: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output
        .status
        .success()
        .then_some(())
        .ok_or_else(|| Lack::Refused(format!("{program} {arguments:?}: {said}")))
}

#[test]
fn the_command_of_the_image_is_a_first_process_of_nobody_that_ends_when_it_is_told_to() {
    let lack = isolated(
        || tool("unshare", &["--pid", "--fork", "true"]),
        |()| {
            let root = Root::new();
            let proc = format!("--mount-proc={}", root.path("proc").display());
            let unshare = ["unshare", "--pid", "--fork", "--kill-child", &proc].map(str::to_owned);
            let words: Vec<_> = unshare.into_iter().chain(root.words(&command_of_image())).collect();
            let mut outer = root.start("image", &words, &BTreeMap::new());
            wait_for("it is healthy", seconds(60), || {
                let ended = outer.0.try_wait().expect("a child can be asked");
                assert!(ended.is_none(), "{ended:?}: {}", root.said("image"));
                root.is_healthy(9345, "/readyz").then_some(())
            });
            let (code, said) = root.runs(&["dsm-client", "WRITE", "a", "b"], &BTreeMap::new());
            assert_eq!(code, Some(0), "{said}");
            let children = format!("/proc/{0}/task/{0}/children", outer.0.id());
            let first = fs::read_to_string(children).expect("the kernel tells");
            let first: i32 = first.trim().parse().expect("one process");
            let status = fs::read_to_string(format!("/proc/{first}/status")).expect("it runs");
            let is_nobody = status.lines().any(|line| line.starts_with("Uid:\t65534\t65534"));
            let is_first = status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
            assert!(is_nobody && is_first, "{status}");
            kill_process(Pid::from_raw(first).expect("its id"), Signal::TERM).expect("it runs");
            let ended =
                wait_for("it ends", seconds(30), || outer.0.try_wait().expect("a child can be asked"));
            assert_eq!(ended.code(), Some(0), "{}", root.said("image"));
            let log = fs::metadata(root.path("var/lib/dsm/kv_store.log")).expect("its log");
            assert_eq!(log.permissions().mode() & 0o777, 0o600);
        },
    );
    if let Err(lack) = lack {
        skip(the_command_of_the_image_is_a_first_process_of_nobody_that_ends_when_it_is_told_to, "", &lack);
    }
}

/// The services, each with a port for its health of its own: here they share a network.
fn with_ports(services: BTreeMap<String, Service>) -> BTreeMap<String, (Service, u16)> {
    let nodes = services.into_iter().filter(|(_, service)| service.command[0].starts_with("dsm-"));
    let numbered = nodes.zip(9345..).map(|((name, mut service), port)| {
        let http = service.environment.get_mut("DSM_HTTP").expect("a port");
        *http = http.replace(":9345", &format!(":{port}"));
        (name, (service, port))
    });
    numbered.collect()
}

#[test]
fn the_services_of_the_compose_file_are_a_cluster_that_survives_a_master_that_hangs() {
    let prepare = || {
        need_program("openssl", &["version"], "openssl")?;
        // Not on loopback for those who listen and dial there.
        for address in ["10.9.0.1/24", "10.9.0.2/24"] {
            tool("ip", &["address", "add", address, "dev", "lo"])?;
        }
        services()
    };
    let lack = isolated(prepare, |services| {
        let root = Root::new();
        let proc = root.path("proc").display().to_string();
        tool("mount", &["-t", "proc", "proc", &proc]).expect("the mounts are the test's own");
        let secrets = root.path("run/secrets").display().to_string();
        tool(&folder().join("secrets.sh").display().to_string(), &[&secrets]).expect("the secrets are made");
        fs::set_permissions(&secrets, fs::Permissions::from_mode(0o755)).expect("its rights");
        let services = with_ports(services);
        let mut nodes: BTreeMap<_, _> = services
            .iter()
            .map(|(name, (service, _))| {
                (name.as_str(), root.start(name, &root.words(&service.command), &service.environment))
            })
            .collect();
        let (primary, _) = &services["primary"];
        let client = |words: &[&str]| root.runs(&[&["dsm-client"], words].concat(), &primary.environment);
        let mut last = String::new();
        wait_for("the cluster is whole", seconds(60), || {
            for (name, node) in &mut nodes {
                let ended = node.0.try_wait().expect("a child can be asked");
                assert!(ended.is_none(), "{name}: {ended:?}: {}", root.said(name));
            }
            let (code, said) = client(&["STATUS"]);
            last = said;
            (code == Some(0)).then_some(())
        });
        assert_eq!(client(&["WRITE", "greeting", "hello"]), (Some(0), "WRITE_DONE\n".to_owned()), "{last}");
        for (name, (_, port)) in &services {
            assert!(root.is_healthy(*port, "/healthz") && root.is_healthy(*port, "/readyz"), "{name}");
        }
        assert!(!root.is_healthy(9999, "/healthz"), "nobody is there");
        // Who shows no certificate is told nothing.
        let masters =
            ["DSM_MASTERS", "DSM_TLS_CA"].map(|name| (name.to_owned(), primary.environment[name].clone()));
        let (code, said) = root.runs(&["dsm-client", "READ", "greeting"], &masters.into());
        assert_eq!(code, Some(2), "{said}");

        let process = |node: &Process| Pid::from_child(&node.0);
        let hangs = nodes.get_mut("primary").expect("it was started");
        kill_process(process(hangs), Signal::STOP).expect("it runs");
        let ended =
            wait_for("the backup ends it", seconds(20), || hangs.0.try_wait().expect("a child can be asked"));
        assert_eq!(ended.signal(), Some(9));
        wait_for("the backup serves", seconds(20), || {
            (client(&["READ", "greeting"]).0 == Some(0)).then_some(())
        });
        nodes.remove("primary");
        for (name, mut node) in nodes.into_iter().rev() {
            kill_process(process(&node), Signal::TERM).expect("it runs");
            let ended = wait_for("it ends", seconds(20), || node.0.try_wait().expect("a child can be asked"));
            assert_eq!(ended.code(), Some(0), "{name}: {}", root.said(name));
        }
    });
    if let Err(lack) = lack {
        skip(the_services_of_the_compose_file_are_a_cluster_that_survives_a_master_that_hangs, "", &lack);
    }
}
