//! TLS with real processes: clients of all kinds, nodes, certificates that change, and a cluster that moves over.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/certificates.rs"]
mod certificates;
mod common;

use certificates::{Authority, Signed};
use common::skip::{need_program, skip, Lack};
use common::{millis, seconds, wait_for};
use dsm::client::{Client, ClientConfig};
use dsm::config::TlsFiles;
use dsm::launcher::{Launcher, LauncherConfig, MasterCommand, Role, RoleCommand};
use redis::Commands as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, RootCertStore, StreamOwned};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

/// How long anything may take that comes by itself.
const LIMIT: std::time::Duration = seconds(60);

const MIB: usize = 1 << 20;

fn files(authority: &Authority, own: Option<&Signed>) -> TlsFiles {
    TlsFiles {
        cert: own.map(|own| own.cert.clone()),
        key: own.map(|own| own.key.clone()),
        ca: Some(authority.ca.clone()),
    }
}

/// A connection of redis-rs, the usual client in Rust, by `rediss://`.
fn redis_rs(cluster: &Secured, role: Role, protocol: &str) -> redis::RedisResult<redis::Connection> {
    let url = format!("rediss://127.0.0.1:{}/0?protocol={protocol}", cluster.port(role));
    let read = |path: &Path| std::fs::read(path).unwrap();
    let own =
        redis::ClientTlsConfig { client_cert: read(&cluster.own.cert), client_key: read(&cluster.own.key) };
    let certificates =
        redis::TlsCertificates { client_tls: Some(own), root_cert: Some(read(&cluster.authority.ca)) };
    let client = redis::Client::build_with_tls(url, certificates)?;
    let connection = client.get_connection_with_timeout(LIMIT)?;
    connection.set_read_timeout(Some(LIMIT))?;
    Ok(connection)
}

/// A cluster whose nodes speak TLS alone, with a plain port of the primary beside.
struct Secured {
    launcher: Launcher,
    authority: Authority,
    own: Signed,
    plain: SocketAddr,
    directory: TempDir,
}

/// A port that was free just now.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Secured {
    fn start(slaves: usize, master_flags: &[&str]) -> Secured {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new(directory.path(), "ca");
        let own = authority.sign("node");
        let plain = free_port();
        let primary = RoleCommand::new(env!("CARGO_BIN_EXE_dsm-master"))
            .with_extra(master_flags)
            .with_extra(["--plain-listen", &plain.to_string()]);
        let backup = RoleCommand::new(env!("CARGO_BIN_EXE_dsm-backup-master")).with_extra(master_flags);
        let slave = RoleCommand::new(env!("CARGO_BIN_EXE_dsm-slave"));
        let masters = [primary, backup].map(MasterCommand::from);
        let mut config = LauncherConfig::new(masters, slave, directory.path().join("data"));
        config.slaves = slaves;
        config.tls = files(&authority, Some(&own));
        config.ready_timeout = LIMIT;
        let mut launcher = Launcher::new(config).unwrap();
        launcher.start_all().unwrap_or_else(|why| panic!("{why:?}"));
        Secured { launcher, authority, own, plain, directory }
    }

    fn port(&self, role: Role) -> u16 {
        self.launcher.address(role).unwrap().port()
    }

    fn client(&self) -> ClientConfig {
        let masters = self.launcher.masters();
        let tls = files(&self.authority, Some(&self.own));
        ClientConfig { masters, tls, request_timeout: LIMIT, ..ClientConfig::default() }
    }

    fn info(&mut self, role: Role) -> String {
        let mut stream = self.dial(role);
        ask(&mut stream, b"INFO\r\n")
    }

    /// A client of RESP over TLS, with the node's certificate.
    fn dial(&self, role: Role) -> Tls {
        dial(self.launcher.address(role).unwrap(), &self.authority, Some(&self.own)).unwrap()
    }
}

type Tls = BufReader<StreamOwned<ClientConnection, TcpStream>>;

fn dial(address: SocketAddr, authority: &Authority, own: Option<&Signed>) -> std::io::Result<Tls> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&authority.ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&own.cert).unwrap()],
                PrivateKeyDer::from_pem_file(&own.key).unwrap(),
            )
            .unwrap(),
    };
    let connection = ClientConnection::new(Arc::new(config), ServerName::from(address.ip())).unwrap();
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    Ok(BufReader::new(StreamOwned::new(connection, socket)))
}

/// A bulk string that is the answer to a request.
fn ask(stream: &mut Tls, request: &[u8]) -> String {
    stream.get_mut().write_all(request).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let Some(length) = line.strip_prefix('$').and_then(|length| length.trim().parse::<usize>().ok()) else {
        return line.trim_end().to_owned();
    };
    let mut body = vec![0; length + 2];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body[..length].to_vec()).unwrap()
}

/// The value of a field of INFO.
fn field(info: &str, name: &str) -> u64 {
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {info}"))
}

/// What a plain connection hears of a port until its end.
fn plainly(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(request).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    heard
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Writes numbers in turn until it is told to stop; how many were written, and what went wrong.
fn write_on(config: ClientConfig, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<(u64, Vec<String>)> {
    std::thread::spawn(move || {
        runtime().block_on(async {
            let client = Client::connect(config).unwrap();
            let (mut written, mut failures) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                match client.put(format!("load{}", written % 100), written.to_string()).await {
                    Ok(()) => written += 1,
                    Err(why) => failures.push(why.to_string()),
                }
            }
            (written, failures)
        })
    })
}

/// Standard output and error of a program that ends within a minute, and whether it succeeds.
fn said(words: &[&str]) -> (bool, String) {
    let mut command = Command::new("timeout");
    let output = command.args(["--signal=KILL", "60"]).args(words).stdin(Stdio::null()).output();
    let output = output.expect("timeout is installed");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), text)
}

#[test]
fn redis_cli_talks_to_both_masters_over_tls_also_after_a_kill() {
    if let Err(lack) = need_program("redis-cli", &["--version"], "redis-tools") {
        return skip(redis_cli_talks_to_both_masters_over_tls_also_after_a_kill, "", &lack);
    }
    let mut cluster = Secured::start(2, &[]);
    let [ca, cert, key] =
        [&cluster.authority.ca, &cluster.own.cert, &cluster.own.key].map(|path| path.display().to_string());
    let run = |port: u16, words: &[&str]| {
        let port = port.to_string();
        let tls = ["--tls", "--cacert", &ca, "--cert", &cert, "--key", &key];
        said(&[&["redis-cli", "-h", "127.0.0.1", "-p", &port][..], &tls, words].concat())
    };
    for role in [Role::PRIMARY, Role::BACKUP] {
        let port = cluster.port(role);
        assert_eq!(run(port, &["SET", "k", "a value"]), (true, "OK\n".to_owned()));
        assert_eq!(run(port, &["-3", "GET", "k"]), (true, "a value\n".to_owned()));
    }
    // One without a certificate is refused, by default.
    let port = cluster.port(Role::PRIMARY).to_string();
    let (_, told) = said(&["redis-cli", "-h", "127.0.0.1", "-p", &port, "--tls", "--cacert", &ca, "PING"]);
    assert!(!told.contains("PONG"), "{told}");
    cluster.launcher.kill(Role::PRIMARY).unwrap();
    cluster.launcher.wait_serving(Role::BACKUP).unwrap();
    let port = cluster.port(Role::BACKUP);
    assert_eq!(run(port, &["GET", "k"]), (true, "a value\n".to_owned()));
    assert_eq!(run(port, &["SET", "k", "another"]), (true, "OK\n".to_owned()));
}

#[test]
fn redis_rs_writes_over_tls_at_both_masters_and_through_a_failover() {
    // It uses what its process has chosen; nothing else here depends on that.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut cluster = Secured::start(2, &["--no-failback"]);
    for role in [Role::PRIMARY, Role::BACKUP] {
        for protocol in ["resp2", "resp3"] {
            let mut connection = redis_rs(&cluster, role, protocol).unwrap();
            let _: () = connection.set("k", "a value").unwrap();
            let (got, nothing): (String, Option<String>) =
                (connection.get("k").unwrap(), connection.get("nothing").unwrap());
            assert_eq!((&*got, nothing), ("a value", None), "{role:?} {protocol}");
        }
    }
    let mut here = redis_rs(&cluster, Role::PRIMARY, "resp3").unwrap();
    let write = |connection: &mut redis::Connection, number: usize| {
        connection.set::<_, _, ()>(format!("k{number}"), number)
    };
    (0..100).for_each(|number| write(&mut here, number).unwrap());
    cluster.launcher.kill(Role::PRIMARY).unwrap();
    assert!(write(&mut here, 100).is_err(), "its master is gone");
    let mut there = redis_rs(&cluster, Role::BACKUP, "resp3").unwrap();
    (101..200).for_each(|number| write(&mut there, number).unwrap());
    for number in (0..100).chain(101..200) {
        let got: usize = there.get(format!("k{number}")).unwrap();
        assert_eq!(got, number);
    }
}

#[test]
fn redis_py_writes_over_tls_through_a_failover() {
    let probe = Command::new("/usr/bin/python3").args(["-c", "import redis"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        let why = "no python3 has redis-py; Debian has it in python3-redis";
        return skip(redis_py_writes_over_tls_through_a_failover, "", &Lack::Missing(why.into()));
    }
    let mut cluster = Secured::start(2, &["--no-failback"]);
    // Writes until both masters have served it, and reads everything that was acknowledged.
    let script = "import redis, sys, time\n\
        ca, cert, key = sys.argv[1:4]\n\
        def at(port):\n\
        \x20return redis.Redis('127.0.0.1', int(port), ssl=True, ssl_ca_certs=ca, ssl_certfile=cert,\n\
        \x20                  ssl_keyfile=key, socket_timeout=5)\n\
        clients = [at(port) for port in sys.argv[4:6]]\n\
        clients[0].set('begun', 'yes')\n\
        print('begun', flush=True)\n\
        acknowledged, lost, after = [], False, 0\n\
        end = time.time() + 40\n\
        while after < 200 and time.time() < end:\n\
        \x20name = f'k{len(acknowledged)}'\n\
        \x20try:\n\
        \x20\x20clients[1 if lost else 0].set(name, name)\n\
        \x20\x20acknowledged.append(name)\n\
        \x20\x20after += lost\n\
        \x20except redis.exceptions.RedisError:\n\
        \x20\x20lost = True\n\
        assert after == 200, after\n\
        assert all(clients[1].get(name) == name.encode() for name in acknowledged)\n\
        print(len(acknowledged) > 200)\n";
    let ports = [Role::PRIMARY, Role::BACKUP].map(|role| cluster.port(role).to_string());
    let mut python = Command::new("timeout")
        .args(["--signal=KILL", "60", "/usr/bin/python3", "-c", script])
        .args([&cluster.authority.ca, &cluster.own.cert, &cluster.own.key])
        .args(ports)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(python.stdout.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    let mut here = cluster.dial(Role::BACKUP);
    wait_for("a read through the backup", LIMIT, || (ask(&mut here, b"GET k50\r\n") == "k50").then_some(()));
    cluster.launcher.kill(Role::PRIMARY).unwrap();
    line.clear();
    told.read_line(&mut line).unwrap();
    assert!(python.wait().unwrap().success());
    assert_eq!(line, "True\n");
}

#[test]
fn whoever_comes_the_wrong_way_is_told_so_in_one_line() {
    let mut cluster = Secured::start(1, &[]);
    let secured = cluster.launcher.address(Role::PRIMARY).unwrap();
    let told = plainly(secured, b"PING\r\n");
    assert_eq!(String::from_utf8_lossy(&told), "-ERR this port speaks TLS alone\r\n");
    // The beginning of a handshake of TLS at a plain port.
    let told = plainly(cluster.plain, &[0x16, 3, 1, 0, 200, 1, 0, 0, 196]);
    assert_eq!(String::from_utf8_lossy(&told), "-ERR this port does not speak TLS\r\n");
    let told = plainly(cluster.plain, b"PING\r\nQUIT\r\n");
    assert_eq!(String::from_utf8_lossy(&told), "+PONG\r\n+OK\r\n");
    let client = env!("CARGO_BIN_EXE_dsm-client");
    let (secured, plain) = (secured.to_string(), cluster.plain.to_string());
    let [ca, cert, key] =
        [&cluster.authority.ca, &cluster.own.cert, &cluster.own.key].map(|path| path.display().to_string());
    let stranger = Authority::new(cluster.directory.path(), "stranger");
    let foreign = stranger.sign("foreign");
    let [foreign_ca, foreign_cert, foreign_key] =
        [&stranger.ca, &foreign.cert, &foreign.key].map(|path| path.display().to_string());
    for (masters, tls, why) in [
        (&secured, &[][..], "this port speaks TLS alone"),
        (&plain, &["--tls-ca", &ca][..], "the other side does not speak TLS here"),
        (
            &secured,
            &["--tls-ca", &ca],
            "the other side asks for a certificate: give --tls-cert and --tls-key",
        ),
        (&secured, &["--tls-ca", &foreign_ca], "the other side's certificate is not of the CA in --tls-ca"),
        (
            &secured,
            &["--tls-ca", &ca, "--tls-cert", &foreign_cert, "--tls-key", &foreign_key],
            "this side's certificate is not of the CA of the other side",
        ),
        (&secured, &["--tls-cert", &cert, "--tls-key", &key], "--tls-ca is missing"),
        (&secured, &["--tls-ca", "/no/such/file"], "--tls-ca /no/such/file: No such file"),
        (
            &secured,
            &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &foreign_key],
            "it is not the key of",
        ),
    ] {
        let (is_done, told) = said(&[&[client, "--masters", masters][..], tls, &["READ", "k"]].concat());
        assert!(!is_done && told.contains(why) && told.lines().count() == 1, "{tls:?}: {told}");
    }
    // The address may say it, too.
    let plainly = format!("plain:{plain}");
    let (_, told) = said(&[client, "--masters", &plainly, "--tls-ca", &ca, "READ", "nothing"]);
    assert!(told.contains("not found"), "{told}");
    // Garbage after the handshake.
    let mut stream = cluster.dial(Role::PRIMARY);
    assert_eq!(ask(&mut stream, b"PING\r\n"), "+PONG");
    stream.get_mut().sock.write_all(b"garbage, where a record should be").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    assert!(cluster.info(Role::PRIMARY).contains("\r\ntls:1\r\n"));
}

#[test]
fn a_node_without_a_certificate_of_the_ca_is_not_admitted() {
    let mut cluster = Secured::start(1, &[]);
    let stranger = Authority::new(cluster.directory.path(), "stranger");
    let foreign = stranger.sign("foreign");
    let masters = cluster.launcher.masters().join(",");
    let slave = |flags: &[&Path], names: &[&str]| {
        let path = cluster.directory.path().join("intruder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_dsm-slave"));
        command.args(["--masters", &masters]);
        names.iter().zip(flags).for_each(|(name, path)| {
            command.arg(name).arg(path);
        });
        command.stderr(std::fs::File::create(&path).unwrap());
        (Running(command.spawn().unwrap()), path)
    };
    let all = ["--tls-cert", "--tls-key", "--tls-ca"];
    for (files, why) in [
        (&[][..], "this port speaks TLS alone"),
        (
            &[foreign.cert.as_path(), &foreign.key, &cluster.authority.ca],
            "this side's certificate is not of the CA of the other side",
        ),
    ] {
        let (_running, path) = slave(files, &all);
        let text = || std::fs::read_to_string(&path).unwrap();
        wait_for("why the node is not admitted", LIMIT, || text().contains(why).then_some(()));
        assert!(!text().contains("registered"), "{}", text());
    }
    assert_eq!(field(&cluster.info(Role::PRIMARY), "active_slaves"), 1);
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn half_handshakes_by_the_hundred_are_closed_in_time_and_delay_nobody() {
    let mut cluster = Secured::start(1, &["--handshake-timeout", "1s"]);
    let address = cluster.launcher.address(Role::PRIMARY).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let load = write_on(cluster.client(), Arc::clone(&stop));
    let half: Vec<TcpStream> = (0..300)
        .map(|number| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let hello = [0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
            stream.write_all(&hello[..number % hello.len()]).unwrap();
            stream
        })
        .collect();
    for mut stream in half {
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "it was told something");
    }
    stop.store(true, Ordering::Relaxed);
    let (written, failures) = load.join().unwrap();
    assert!(written > 0 && failures.is_empty(), "{written} {failures:?}");
    assert!(field(&cluster.info(Role::PRIMARY), "handshakes_timed_out") >= 300);
}

#[test]
fn certificates_are_read_again_at_sighup_without_an_end_of_any_connection() {
    let mut cluster = Secured::start(2, &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let load = write_on(cluster.client(), Arc::clone(&stop));
    let mut stood = cluster.dial(Role::PRIMARY);
    assert_eq!(ask(&mut stood, b"PING\r\n"), "+PONG");
    let before = field(&cluster.info(Role::PRIMARY), "tls_certificate_expires");
    let roles = cluster.launcher.roles();
    let hang_up = |cluster: &mut Secured| {
        for role in &roles {
            let pid = cluster.launcher.pid(*role).unwrap().to_string();
            assert!(said(&["kill", "-HUP", &pid]).0);
        }
    };
    // It ends soon: each node warns.
    cluster.authority.sign_for("node", &["127.0.0.1"], 5);
    hang_up(&mut cluster);
    for role in &roles {
        let output = cluster.launcher.output_path(*role);
        let text = || std::fs::read_to_string(&output).unwrap();
        wait_for("the certificates read again", LIMIT, || {
            text().contains("certificates read again").then_some(())
        });
        wait_for("the warning", LIMIT, || text().contains("the certificate ends soon days=").then_some(()));
    }
    assert!(field(&cluster.info(Role::PRIMARY), "tls_certificate_expires") < before);
    // A bad file: one line, and everything goes on.
    std::fs::write(&cluster.own.key, "no key").unwrap();
    hang_up(&mut cluster);
    let output = cluster.launcher.output_path(Role::PRIMARY);
    let text = || std::fs::read_to_string(&output).unwrap();
    wait_for("the refusal of the bad file", LIMIT, || {
        text().contains("certificates not read again, the old ones stay").then_some(())
    });
    assert_eq!(ask(&mut stood, b"PING\r\n"), "+PONG");
    cluster.authority.sign("node");
    hang_up(&mut cluster);
    let mut fresh = cluster.dial(Role::PRIMARY);
    assert_eq!(ask(&mut fresh, b"PING\r\n"), "+PONG");
    stop.store(true, Ordering::Relaxed);
    let (written, failures) = load.join().unwrap();
    assert!(written > 0 && failures.is_empty(), "{written} {failures:?}");
    for role in &roles {
        let told = std::fs::read_to_string(cluster.launcher.output_path(*role)).unwrap();
        assert!(!told.contains("slave removed"), "{told}");
    }
}

#[test]
fn the_longest_values_and_long_pipelines_go_over_tls() {
    let cluster = Secured::start(2, &[]);
    let value: Vec<u8> = (0..16 * MIB).map(|place| (place % 251) as u8).collect();
    runtime().block_on(async {
        let client = Client::connect(cluster.client()).unwrap();
        client.put("long", value.clone()).await.unwrap();
        assert!(client.get("long").await.unwrap().unwrap()[..] == value[..]);
    });
    let mut stream = cluster.dial(Role::PRIMARY);
    stream.get_mut().write_all(b"GET long\r\n").unwrap();
    let mut head = String::new();
    stream.read_line(&mut head).unwrap();
    assert_eq!(head, format!("${}\r\n", value.len()));
    let mut body = vec![0; value.len() + 2];
    stream.read_exact(&mut body).unwrap();
    assert!(body[..value.len()] == value[..]);
    // A hundred thousand requests, of which each answer is that of its own.
    let (mut written, mut read) = (0, 0);
    let batch = 10_000;
    while read < 100_000 {
        if written < 100_000 {
            let some: String =
                (written..written + batch).map(|number| format!("ECHO {number}\r\n")).collect();
            stream.get_mut().write_all(some.as_bytes()).unwrap();
            written += batch;
        }
        for number in read..written {
            let (mut line, mut told) = (String::new(), String::new());
            stream.read_line(&mut line).unwrap();
            stream.read_line(&mut told).unwrap();
            assert_eq!(told.trim_end(), number.to_string());
        }
        read = written;
    }
}

#[test]
fn a_client_that_reads_nothing_over_tls_is_cut_as_any_other() {
    let cluster = Secured::start(1, &["--write-timeout", "1s"]);
    let value = vec![b'x'; MIB];
    runtime().block_on(async { Client::connect(cluster.client()).unwrap().put("k", value).await }).unwrap();
    let mut deaf = cluster.dial(Role::PRIMARY);
    let asked = "GET k\r\n".repeat(30);
    deaf.get_mut().write_all(asked.as_bytes()).unwrap();
    let mut other = cluster.dial(Role::PRIMARY);
    let begun = Instant::now();
    wait_for("the cut", LIMIT, || {
        (field(&ask(&mut other, b"INFO\r\n"), "slow_readers_cut") == 1).then_some(())
    });
    assert!(begun.elapsed() >= millis(500), "it was cut before its time");
}

/// `dsm-log repair --from-slaves` is reached by slaves that dial by TLS, and by nobody without a certificate of the CA.
#[test]
fn a_log_is_repaired_from_slaves_that_speak_tls() {
    let mut cluster = Secured::start(2, &[]);
    let write = |cluster: &Secured, values: &[(&str, &str)]| {
        runtime().block_on(async {
            let client = Client::connect(cluster.client()).unwrap();
            for (key, value) in values {
                client.put((*key).to_owned(), (*value).to_owned()).await.unwrap();
            }
        });
    };
    write(&cluster, &[("kept", "old"), ("changed", "old")]);
    let backup = std::fs::read(cluster.launcher.log_path()).unwrap();
    write(&cluster, &[("changed", "new"), ("added", "new")]);
    cluster.launcher.kill(Role::BACKUP).unwrap();
    cluster.launcher.kill(Role::PRIMARY).unwrap();
    std::fs::write(cluster.launcher.log_path(), backup).unwrap();
    let masters = [Role::PRIMARY, Role::BACKUP].map(|role| format!("127.0.0.1:{}", cluster.port(role)));
    let path = |path: &Path| path.display().to_string();
    let log = path(&cluster.launcher.log_path());
    let words = ["repair", &log, "--from-slaves", "--slaves", "2", "--listen", &masters.join(",")];
    let words: Vec<String> =
        std::iter::once(env!("CARGO_BIN_EXE_dsm-log")).chain(words).map(str::to_owned).collect();
    let repair = |flags: &[&str]| {
        let words: Vec<&str> = words.iter().map(String::as_str).chain(flags.iter().copied()).collect();
        said(&words)
    };
    let (done, told) = repair(&["--wait", "2s"]);
    assert!(!done && told.contains("0 slaves came"), "without TLS no slave reaches it: {told}");
    let stranger = Authority::new(cluster.directory.path(), "other").sign("stranger");
    let (own, ca) = (&cluster.own, path(&cluster.authority.ca));
    let [cert, key, other_cert, other_key] =
        [&own.cert, &own.key, &stranger.cert, &stranger.key].map(|file| path(file));
    let (done, told) =
        repair(&["--wait", "2s", "--tls-cert", &other_cert, "--tls-key", &other_key, "--tls-ca", &ca]);
    assert!(!done && told.contains("0 slaves came"), "slaves want a certificate of their CA: {told}");
    let (done, told) = repair(&["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca]);
    assert!(done && told.contains("recovered 2 keys"), "{told}");
    cluster.launcher.start(Role::PRIMARY).unwrap();
    let values = runtime().block_on(async {
        let client = Client::connect(cluster.client()).unwrap();
        let mut values = Vec::new();
        for key in ["kept", "changed", "added"] {
            values.push(client.get(key).await.unwrap().unwrap());
        }
        values
    });
    assert_eq!(values, ["old", "new", "new"]);
}

/// The processes of a cluster that changes its flags as it runs.
struct Moving {
    directory: TempDir,
    authority: Authority,
    own: Signed,
    running: std::collections::BTreeMap<&'static str, Running>,
}

impl Moving {
    fn tls(&self) -> Vec<String> {
        let Signed { cert, key } = &self.own;
        let named = [("--tls-cert", cert), ("--tls-key", key), ("--tls-ca", &self.authority.ca)];
        named.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()]).collect()
    }

    /// Stops the process of this name if it runs, and starts it with these flags.
    fn start(&mut self, name: &'static str, words: &str, with_tls: bool) {
        if let Some(mut old) = self.running.remove(name) {
            assert!(said(&["kill", "-TERM", &old.0.id().to_string()]).0);
            let ended = wait_for("a clean end", LIMIT, || old.0.try_wait().unwrap());
            assert!(ended.success(), "{name}: {ended}");
        }
        let program = match name {
            "primary" => env!("CARGO_BIN_EXE_dsm-master"),
            "backup" => env!("CARGO_BIN_EXE_dsm-backup-master"),
            _ => env!("CARGO_BIN_EXE_dsm-slave"),
        };
        let mut command = Command::new(program);
        command.args(words.split_whitespace());
        if name.starts_with("slave") {
            command.args(["--id", name]);
        } else {
            command.arg("--log").arg(self.directory.path().join("kv_store.log"));
        }
        if with_tls {
            command.args(self.tls());
        }
        let path = self.directory.path().join(format!("{name}.out"));
        let output = std::fs::File::options().create(true).append(true).open(path).unwrap();
        command.stderr(output).stdin(Stdio::null());
        self.running.insert(name, Running(command.spawn().unwrap()));
    }

    /// INFO of a master, over TLS or not.
    fn info(&self, address: SocketAddr, with_tls: bool) -> Option<String> {
        if with_tls {
            let mut stream = dial(address, &self.authority, Some(&self.own)).ok()?;
            stream.get_mut().write_all(b"INFO\r\nQUIT\r\n").ok()?;
            let mut told = String::new();
            stream.read_to_string(&mut told).ok()?;
            return Some(told);
        }
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        stream.write_all(b"INFO\r\nQUIT\r\n").ok()?;
        let mut told = String::new();
        stream.read_to_string(&mut told).ok()?;
        Some(told)
    }

    /// Waits until the primary serves with both slaves and the backup follows it.
    fn settled(&self, [primary, backup]: [SocketAddr; 2], with_tls: bool) {
        let has = |address, facts: &[&str]| {
            let info = self.info(address, with_tls).unwrap_or_default();
            facts.iter().all(|fact| info.contains(fact))
        };
        wait_for("the cluster to settle", LIMIT, || {
            let serves = has(
                primary,
                &["dsm_role:primary", "active_slaves:2", "peer_connected:1", "standby_lag_ms:0"],
            );
            let follows = has(backup, &["dsm_role:standby", "active_slaves:2", "peer_connected:1"]);
            (serves && follows).then_some(())
        });
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.running.keys() {
                let told = std::fs::read_to_string(self.directory.path().join(format!("{name}.out")));
                eprintln!("--- {name}\n{}", told.unwrap_or_default());
            }
        }
    }
}

/// The steps of OPERATIONS, *TLS*.
#[test]
fn a_running_cluster_moves_to_tls_node_by_node_without_a_failed_request() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ca");
    let own = authority.sign("node");
    let mut cluster = Moving { directory, authority, own, running: Default::default() };
    let held: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<SocketAddr> = held.iter().map(|listener| listener.local_addr().unwrap()).collect();
    drop(held);
    let (plain, tls) = ([ports[0], ports[1]], [ports[2], ports[3]]);
    let slaves = ["slave1", "slave2"];
    // As it was.
    cluster.start("primary", &format!("--listen {} --peer {}", plain[0], plain[1]), false);
    cluster.start("backup", &format!("--listen {} --peer {}", plain[1], plain[0]), false);
    for slave in slaves {
        cluster.start(slave, &format!("--masters {},{}", plain[0], plain[1]), false);
    }
    cluster.settled(plain, false);
    let (before, after) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let client = |masters: [SocketAddr; 2], tls: TlsFiles| {
        let masters = masters.map(|address| address.to_string()).to_vec();
        ClientConfig { masters, tls, request_timeout: LIMIT, ..ClientConfig::default() }
    };
    let old = write_on(client(plain, TlsFiles::default()), Arc::clone(&before));
    // Both masters, one after the other, get ports of TLS beside those that they have.
    let both = |own: usize, peer: String| {
        format!("--listen {0} --plain-listen {1} --advertise {1} --peer {peer}", tls[own], plain[own])
    };
    cluster.start("backup", &both(1, format!("plain:{}", plain[0])), true);
    cluster.settled(plain, false);
    cluster.start("primary", &both(0, tls[1].to_string()), true);
    cluster.settled(plain, false);
    // The slaves.
    for slave in slaves {
        cluster.start(slave, &format!("--masters {},{}", tls[0], tls[1]), true);
        cluster.settled(plain, false);
    }
    // The clients.
    let files = files(&cluster.authority, Some(&cluster.own));
    let new = write_on(client(tls, files), Arc::clone(&after));
    before.store(true, Ordering::Relaxed);
    let (written, failures) = old.join().unwrap();
    assert!(written > 0 && failures.is_empty(), "{written} {failures:?}");
    // And the old ports go.
    cluster.start("backup", &format!("--listen {} --peer {}", tls[1], tls[0]), true);
    cluster.settled(tls, true);
    cluster.start("primary", &format!("--listen {} --peer {}", tls[0], tls[1]), true);
    cluster.settled(tls, true);
    after.store(true, Ordering::Relaxed);
    let (written, failures) = new.join().unwrap();
    assert!(written > 0 && failures.is_empty(), "{written} {failures:?}");
    for address in plain {
        assert!(TcpStream::connect(address).is_err(), "{address} is open");
    }
}
