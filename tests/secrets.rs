//! The secrets of nodes and of native clients with real processes: strangers who speak frames by hand, nodes with another secret
//! or none, and a cluster that moves to a new one.

#[path = "common/certificates.rs"]
mod certificates;
mod common;

use bytes::{Bytes, BytesMut};
use certificates::{Authority, Signed};
use common::cluster::{command, fails, free_ports, Node, Setup, TestCluster, MASTERS};
use common::load::Load;
use common::native::{encoded, slave as hello_of_slave};
use common::resp::{Answer, Connection, Info};
use common::{millis, seconds, stays, wait_for};
use dsm_protocol::command::{Command as StoreCommand, Reply};
use dsm_protocol::frame;
use dsm_protocol::handshake::greet;
use dsm_protocol::ids::{ClusterId, Epoch, Reign, ReignId, RequestId, Seq, Version};
use dsm_protocol::message::{
    Control, Hello, HelloRole, MasterState, Message, Request, Seen, StreamUser, Welcome,
};
use dsm_protocol::secret::{Channel, Exchanged, Nonce, Prover, Secret};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, RootCertStore, StreamOwned};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use tempfile::TempDir;

const NODES: &str = "the secret of these nodes";
const CLIENTS: &str = "the secret of native clients";

/// A file that only its owner may read.
fn private(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    path.to_str().expect("text").to_owned()
}

/// The files of both secrets, in a directory of their own.
struct Files {
    dir: TempDir,
    nodes: String,
    clients: String,
}

impl Files {
    fn new() -> Files {
        let dir = TempDir::new().expect("a directory");
        let nodes = private(dir.path(), "nodes", &format!("{NODES}\n"));
        let clients = private(dir.path(), "clients", &format!("{CLIENTS}\n"));
        Files { dir, nodes, clients }
    }

    fn other(&self) -> String {
        private(self.dir.path(), "other", "the secret of other nodes\n")
    }

    /// A cluster whose nodes have the secret, and whose native clients have theirs.
    fn setup(&self, slaves: usize) -> Setup {
        Setup::slaves(slaves)
            .masters_with(&["--secret-file", &self.nodes, "--client-secret-file", &self.clients])
            .slaves_with(&["--secret-file", &self.nodes])
    }
}

trait Both: Read + Write {
    /// What a connection is known by, once something was read.
    fn channel(&self) -> Channel;
}

impl Both for TcpStream {
    fn channel(&self) -> Channel {
        Channel::tcp(self.peer_addr().expect("it is connected"))
    }
}

impl Both for StreamOwned<ClientConnection, TcpStream> {
    fn channel(&self) -> Channel {
        let exported = self.conn.export_keying_material([0; 32], b"EXPORTER-dsm-secret", None);
        Channel::exported(exported.expect("the handshake is over"))
    }
}

/// Somebody who speaks frames by hand.
struct Stranger {
    stream: Box<dyn Both>,
    received: BytesMut,
}

impl Stranger {
    fn open(address: SocketAddr) -> Stranger {
        Stranger { stream: Box::new(dial(address)), received: BytesMut::new() }
    }

    /// The same over TLS, as a node.
    fn open_tls(address: SocketAddr, authority: &Authority, own: &Signed) -> Stranger {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&authority.ca).expect("a file")).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_file(&own.cert).expect("a file")];
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&own.key).expect("a file"))
            .expect("a key");
        config.alpn_protocols = vec![b"dsm-node/1".to_vec()];
        let connection =
            ClientConnection::new(Arc::new(config), ServerName::from(address.ip())).expect("settings");
        let stream = StreamOwned::new(connection, dial(address));
        Stranger { stream: Box::new(stream), received: BytesMut::new() }
    }

    fn say(&mut self, bytes: &[u8]) {
        // The other side may have ended before it has heard all.
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    /// The next frame; `None` at the end.
    fn hears(&mut self) -> Option<Message> {
        loop {
            let decoded = frame::decode(&mut self.received, 1 << 20).expect("a master speaks frames");
            if decoded.is_some() {
                return decoded;
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.received.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("nothing is said"),
                Err(_) => return None,
            }
        }
    }

    /// Says preface and HELLO; gives them, the challenge, and what the connection is known by.
    fn is_challenged(&mut self, role: HelloRole) -> Challenged {
        let mut greeting = Vec::new();
        greet(Hello { cluster: None, role }, &mut greeting);
        self.say(&greeting);
        match self.hears() {
            Some(Message::Control(Control::Challenge { nonce })) => (greeting, nonce, self.stream.channel()),
            other => panic!("{other:?} is no challenge"),
        }
    }

    /// Why it is refused; then the other side ends.
    fn is_refused(&mut self) -> String {
        match self.hears() {
            Some(Message::Control(Control::Reject { reason })) => {
                assert_eq!(self.hears(), None, "nothing follows");
                reason
            }
            other => panic!("{other:?} is no refusal"),
        }
    }
}

fn dial(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&address, seconds(20)).expect("the master accepts connections");
    socket.set_nodelay(true).expect("a socket option");
    socket.set_read_timeout(Some(seconds(20))).expect("a socket option");
    socket.set_write_timeout(Some(seconds(20))).expect("a socket option");
    socket
}

fn master_hello() -> HelloRole {
    HelloRole::Master { address: "127.0.0.1:1".to_owned(), log_identity: "none".to_owned() }
}

fn secret(text: &str) -> Secret {
    Secret::parse(text.as_bytes()).expect("it is long enough")
}

/// Preface and HELLO, as they were said, the challenge, and what the connection is known by.
type Challenged = (Vec<u8>, Nonce, Channel);

/// A proof of the secret in `text`, as a frame.
fn proof(text: &str, prover: Prover, (greeting, accepting, channel): &Challenged) -> Vec<u8> {
    let dialing = Nonce::draw(|| 7);
    let proofs =
        secret(text).prove(prover, Exchanged { channel: *channel, accepting: *accepting, dialing, greeting });
    encoded(&Message::Control(Control::Proof { nonce: dialing, proofs }))
}

/// One of each thing that nodes and clients say to each other.
fn everything() -> Vec<Message> {
    let key = || Bytes::from_static(b"stolen");
    let reign = Reign { epoch: Epoch(1000), id: ReignId(7) };
    let version = Version { epoch: Epoch(1000), seq: Seq(1000) };
    let state = || MasterState { active: true, epoch: Epoch(1000), seq: Seq(1000), active_address: None };
    let request = |command| Message::Request(Request { id: RequestId(1), stream: 0, generation: 0, command });
    let mut all = vec![
        request(StoreCommand::Put { key: key(), value: key() }),
        request(StoreCommand::Get { key: key() }),
        request(StoreCommand::Delete { keys: vec![key()] }),
        request(StoreCommand::Failover),
        Message::Response { id: RequestId(1), reply: Reply::Done },
        Message::Write { version, reign: ReignId(7), key: key(), value: key() },
        Message::Ping,
        Message::Trial { bytes: key() },
        Message::Member { cluster: ClusterId(1), member: 1, body: key() },
        Message::Ack { through: 1, room_bytes: 0 },
        Message::Read { tag: 1, version, reign: ReignId(7), key: key() },
        Message::Value { tag: 1, version, reign: ReignId(7), value: key() },
        Message::Missing { tag: 1, held: None },
        Message::Drop { version, reign: ReignId(7), key: key() },
    ];
    let cluster = Some(ClusterId(7));
    let seen = Seen { reign, seq: Seq(1000), durable: true };
    let welcome = Welcome { cluster, value_max: 1, state: state() };
    let controls = [
        Control::Hello(Hello { cluster, role: HelloRole::Client }),
        Control::Hello(Hello { cluster, role: master_hello() }),
        Control::Welcome(welcome),
        Control::Reject { reason: "you are not wanted".to_owned() },
        Control::Announce { cluster: ClusterId(7), reign, seq: Seq(1000), durable: true },
        Control::Enlisted { reign, seen: Some(seen), room_bytes: u64::MAX },
        Control::Outdated { seen },
        Control::Full { number: 1 },
        Control::Holdings { entries: Vec::new(), last: true },
        Control::HoldingsNext,
        Control::Probe,
        Control::Alive,
        Control::MasterState(state()),
        Control::StreamClosed { stream: 1 },
        Control::HandoverRequest { replayed: Seq(1000), reign, log: None, slaves: Vec::new(), forced: true },
        Control::HandoverRefused { reason: "no".to_owned() },
        Control::HandoverOffer,
        Control::Took { bytes: 1 },
        Control::Quarantined { ms: 1, reason: "no".to_owned() },
        Control::Admitted { reign },
        Control::Challenge { nonce: Nonce::draw(|| 1) },
        Control::Proof { nonce: Nonce::draw(|| 1), proofs: Vec::new() },
        Control::StreamUser { stream: 0, user: StreamUser::Program },
    ];
    all.extend(controls.map(Message::Control));
    all
}

/// What a stranger might move.
fn moved(info: &Info) -> [u64; 6] {
    ["epoch", "active_slaves", "slaves_removed", "slaves_refused", "takeovers", "keys"]
        .map(|field| info.number(field))
}

/// Says everything before and instead of a proof, as everybody; how often a proof was refused.
fn tries_everything(open: impl Fn() -> Stranger) -> u64 {
    let mut refused = 0;
    for message in everything() {
        if !matches!(message, Message::Control(Control::Hello(_))) {
            let mut stranger = open();
            stranger.say(&[&frame::PREFACE[..], &encoded(&message)].concat());
            assert_eq!(stranger.is_refused(), "the first frame is no HELLO", "{message:?}");
        }
        // The name of a slave that there is, and lives.
        for role in [hello_of_slave("slave-0"), master_hello(), HelloRole::Client] {
            let flag = if role == HelloRole::Client { "--client-secret-file" } else { "--secret-file" };
            let mut stranger = open();
            stranger.is_challenged(role);
            stranger.say(&encoded(&message));
            let why = stranger.is_refused();
            assert!(why.contains(flag), "{why}: {message:?}");
            refused += 1;
        }
    }
    refused
}

#[test]
fn a_cluster_with_secrets_serves_and_fails_over_and_shows_them_nowhere() {
    let files = Files::new();
    let mut cluster = files.setup(2).start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    for master in MASTERS {
        let info = cluster.info(master).expect("it answers");
        assert_eq!((info.get("secret"), info.get("client_secret")), (Some("1"), Some("1")), "{master:?}");
        assert_eq!(info.number("proofs_refused"), 0, "{master:?}");
        let text = format!("{info:?}");
        assert!(!text.contains(NODES) && !text.contains(CLIENTS), "{text}");
    }
    for process in cluster.process_ids() {
        let words = fs::read_to_string(format!("/proc/{process}/cmdline")).expect("it runs");
        assert!(!words.contains(NODES) && !words.contains(CLIENTS), "{words}");
    }
    cluster.kill(Node::Master);
    cluster.wait_until_serves(Node::Backup, seconds(20));
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("v"));
    cluster.start(Node::Master);
    cluster.wait_until_serves(Node::Master, seconds(20));
    assert_eq!(cluster.settle(), Node::Master);
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("v"));
    for node in cluster.nodes() {
        let told = cluster.stderr(node);
        assert!(!told.contains(NODES) && !told.contains(CLIENTS), "{told}");
    }
}

#[test]
fn before_its_proof_a_stranger_moves_nothing_whatever_it_says() {
    let files = Files::new();
    let mut cluster = files.setup(2).start();
    let load = Load::start(&cluster, 4, 20);
    let before = MASTERS.map(|master| moved(&cluster.info(master).expect("it answers")));
    for master in MASTERS {
        let address = cluster.address(master);
        let refused = tries_everything(|| Stranger::open(address));
        let info = cluster.info(master).expect("it answers");
        assert_eq!(info.number("proofs_refused"), refused, "{master:?}");
        assert_eq!(info.number("links_cut"), 0);
        let told = cluster.stderr(master);
        let lines = told.lines().filter(|line| line.contains("connection refused")).count();
        // One of each kind: a proof of nodes and one of clients, missing and wrong.
        assert!((1..=4).contains(&lines), "{lines} lines:\n{told}");
    }
    let after = MASTERS.map(|master| moved(&cluster.info(master).expect("it answers")));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before[..5], after[..5]);
    }
    assert_eq!(cluster.ask(&[b"EXISTS", b"stolen"]), Answer::Integer(0));
    load.wait_for_writes(100, seconds(10));
    assert_eq!(load.failures(), Vec::<String>::new(), "a client noticed");
    load.prove(&mut cluster);
}

#[test]
fn a_node_certificate_is_no_proof_of_the_secret() {
    let files = Files::new();
    let authority = Authority::new(files.dir.path(), "ca");
    let own = authority.sign("node");
    let [listen, peer] = free_ports();
    let [plain, _] = free_ports();
    let mut master = command(Node::Master);
    master
        .args(["--new", "--listen", &listen.to_string(), "--peer", &peer.to_string()])
        .args(["--plain-listen", &plain.to_string(), "--secret-file", &files.nodes])
        .args(["--client-secret-file", &files.clients, "--log"])
        .arg(files.dir.path().join("kv_store.log"))
        .arg("--tls-cert")
        .arg(&own.cert)
        .arg("--tls-key")
        .arg(&own.key)
        .arg("--tls-ca")
        .arg(&authority.ca)
        .stderr(Stdio::null());
    let _master = common::cluster::Process(master.spawn().expect("the binary is built"));
    let info = || Info::of(plain, seconds(2)).ok();
    let before = wait_for("it serves", seconds(20), || info().filter(|info| info.role() == "primary"));
    let refused = tries_everything(|| Stranger::open_tls(listen, &authority, &own));
    let after = info().expect("it answers");
    assert_eq!(moved(&before), moved(&after));
    assert_eq!(after.number("proofs_refused"), refused);
    // With it, that certificate makes a slave.
    let mut slave = Stranger::open_tls(listen, &authority, &own);
    let challenge = slave.is_challenged(hello_of_slave("one"));
    slave.say(&proof(NODES, Prover::Dialing, &challenge));
    assert!(matches!(slave.hears(), Some(Message::Control(Control::Proved { .. }))));
    assert!(matches!(slave.hears(), Some(Message::Control(Control::Welcome(_)))));
}

#[test]
fn a_proof_of_another_connection_role_side_or_secret_is_refused() {
    let files = Files::new();
    let cluster = files.setup(1).start();
    let address = cluster.address(Node::Master);
    // A handshake that goes well, as somebody on the way records it.
    let mut slave = Stranger::open(address);
    let challenge = slave.is_challenged(hello_of_slave("one"));
    let recorded = proof(NODES, Prover::Dialing, &challenge);
    slave.say(&recorded);
    let Some(Message::Control(Control::Proved { proof: answer })) = slave.hears() else { panic!("no proof") };
    let said = Exchanged {
        channel: challenge.2,
        accepting: challenge.1,
        dialing: Nonce::draw(|| 7),
        greeting: &challenge.0,
    };
    assert!(secret(NODES).check(Prover::Accepting, said, &[answer]).is_some(), "the master proves it, too");
    assert!(secret(CLIENTS).check(Prover::Accepting, said, &[answer]).is_none());
    assert!(matches!(slave.hears(), Some(Message::Control(Control::Welcome(_)))));
    let wrong = |role: HelloRole, proof: &dyn Fn(&Challenged) -> Vec<u8>| {
        let mut stranger = Stranger::open(address);
        let challenge = stranger.is_challenged(role);
        stranger.say(&proof(&challenge));
        let why = stranger.is_refused();
        assert!(why.contains("is another one"), "{why}");
    };
    wrong(hello_of_slave("one"), &|_| recorded.clone());
    // The proof of that slave, over a HELLO of something else.
    for role in [hello_of_slave("two"), master_hello()] {
        wrong(role, &|(_, nonce, channel)| {
            proof(NODES, Prover::Dialing, &(challenge.0.clone(), *nonce, *channel))
        });
    }
    wrong(hello_of_slave("one"), &|challenge| proof(NODES, Prover::Accepting, challenge));
    // That of native clients is none of nodes, and the other way round.
    wrong(hello_of_slave("one"), &|challenge| proof(CLIENTS, Prover::Dialing, challenge));
    wrong(HelloRole::Client, &|challenge| proof(NODES, Prover::Dialing, challenge));
    assert_eq!(cluster.info(Node::Master).expect("it answers").number("proofs_refused"), 6);
}

/// Somebody who listens at an address of his own, and passes on to that master what he hears, and back.
fn relay(master: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for victim in listener.incoming().flatten() {
            // It may not be there yet.
            let Ok(there) = TcpStream::connect(master) else { continue };
            for (mut from, mut to) in [(&victim, &there), (&there, &victim)]
                .map(|(from, to)| (from.try_clone().expect("a handle"), to.try_clone().expect("a handle")))
            {
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    address
}

#[test]
fn a_handshake_that_somebody_passes_on_to_another_master_proves_nothing() {
    let files = Files::new();
    let cluster = files.setup(1).start();
    let before = cluster.info(Node::Master).expect("it answers");
    let address = relay(cluster.address(Node::Master));
    for (role, text) in
        [(hello_of_slave("one"), NODES), (master_hello(), NODES), (HelloRole::Client, CLIENTS)]
    {
        let mut victim = Stranger::open(address);
        let challenge = victim.is_challenged(role.clone());
        victim.say(&proof(text, Prover::Dialing, &challenge));
        let why = victim.is_refused();
        assert!(why.contains("or to another address"), "{role:?}: {why}");
    }
    // The same with those whom he would speak for.
    let mut slave = command(Node::Slave(9));
    slave.args(["--id", "newcomer", "--masters", &address.to_string(), "--secret-file", &files.nodes]);
    let (_slave, output) = cluster.start_stranger(slave, "newcomer");
    told(&output, "or to another address");
    let mut client = Command::new("timeout");
    client.args(["--signal=KILL", "60", env!("CARGO_BIN_EXE_dsm-client"), "--masters", &address.to_string()]);
    client.args(["--client-secret-file", &files.clients, "READ", "k"]).stdin(Stdio::null());
    let read = client.output().expect("it runs");
    let said = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.code() == Some(2) && said.contains("or to another address"), "{said}");
    let after = cluster.info(Node::Master).expect("it answers");
    assert_eq!(moved(&before), moved(&after));
    // Nobody is between them and the master itself.
    let direct = run_client(&cluster, &["--client-secret-file", &*files.clients], &["WRITE", "k", "v"]);
    assert!(direct.status.success(), "{direct:?}");
}

#[test]
fn a_master_whose_handshake_is_passed_back_to_it_learns_nothing_from_that_and_serves() {
    let files = Files::new();
    let [listen, _] = free_ports();
    // While the other master is down, somebody listens at its address.
    let peer = relay(listen);
    let mut master = command(Node::Master);
    master
        .args(["--new", "--listen", &listen.to_string(), "--peer", &peer.to_string()])
        .args(["--secret-file", &files.nodes, "--log"])
        .arg(files.dir.path().join("kv_store.log"))
        .stderr(fs::File::create(files.dir.path().join("told")).expect("a file"));
    let _master = common::cluster::Process(master.spawn().expect("the binary is built"));
    let info = || Info::of(listen, seconds(2)).ok();
    wait_for("it refuses its own proof", seconds(30), || {
        info().filter(|info| info.number("proofs_refused") > 1)
    });
    let is_told =
        |word: &str| fs::read_to_string(files.dir.path().join("told")).expect("a file").contains(word);
    wait_for("it says why", seconds(20), || is_told("or to another address").then_some(()));
    // Somebody who calls himself by its address is asked for a proof like all others, and hears nothing else.
    let own = HelloRole::Master { address: listen.to_string(), log_identity: "none".to_owned() };
    let mut stranger = Stranger::open(listen);
    let challenge = stranger.is_challenged(own.clone());
    stranger.say(&proof(CLIENTS, Prover::Dialing, &challenge));
    let why = stranger.is_refused();
    assert!(why.contains("is another one"), "{why}");
    assert!(!is_told("dials itself"), "that is for those who have the secret");
    let mut slave = Stranger::open(listen);
    let challenge = slave.is_challenged(hello_of_slave("one"));
    slave.say(&proof(NODES, Prover::Dialing, &challenge));
    assert!(matches!(slave.hears(), Some(Message::Control(Control::Proved { .. }))));
    assert!(matches!(slave.hears(), Some(Message::Control(Control::Welcome(_)))), "it serves");
    // Who has it is told.
    let mut node = Stranger::open(listen);
    let challenge = node.is_challenged(own);
    node.say(&proof(NODES, Prover::Dialing, &challenge));
    assert!(matches!(node.hears(), Some(Message::Control(Control::Proved { .. }))));
    let why = node.is_refused();
    assert!(why.contains("dials itself"), "{why}");
}

fn run_client(cluster: &TestCluster, flags: &[&str], words: &[&str]) -> Output {
    let masters = MASTERS.map(|master| cluster.address(master).to_string()).join(",");
    let mut client = Command::new("timeout");
    client.args(["--signal=KILL", "60", env!("CARGO_BIN_EXE_dsm-client"), "--masters", &masters]);
    client.args(flags).args(words).stdin(Stdio::null());
    client.output().expect("it runs")
}

#[test]
fn a_native_client_proves_its_secret_and_may_then_do_everything_whatever_users_there_are() {
    let files = Files::new();
    let users = private(files.dir.path(), "users", "user default on nopass -@all +info +ping\n");
    let cluster = files.setup(1).masters_with(&["--users-file", &users]).beside_others().start();
    let right = ["--client-secret-file", &*files.clients];
    let done = run_client(&cluster, &right, &["WRITE", "k", "v"]);
    assert!(done.status.success(), "{done:?}");
    let read = run_client(&cluster, &right, &["READ", "k"]);
    assert_eq!(String::from_utf8_lossy(&read.stdout), "v\n");
    let none = run_client(&cluster, &[], &["READ", "k"]);
    let told = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(2) && told.contains("give --client-secret-file"), "{told}");
    let other = files.other();
    let wrong = run_client(&cluster, &["--client-secret-file", &other], &["READ", "k"]);
    let told = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(2) && told.contains("is another one"), "{told}");
    assert!(!told.contains("other nodes"), "{told}");
    // One that has a secret does not talk to masters that have none.
    let open = Setup::slaves(1).beside_others().start();
    let refused = run_client(&open, &right, &["READ", "k"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && told.contains("has not proved the secret"), "{told}");
}

/// What a stranger process has logged, once it is there.
fn told(path: &Path, word: &str) -> String {
    wait_for(word, seconds(20), || fs::read_to_string(path).ok().filter(|text| text.contains(word)))
}

fn slave_of(cluster: &TestCluster, flags: &[&str]) -> Command {
    let masters = cluster.addresses().map(|address| address.to_string()).join(",");
    let mut slave = command(Node::Slave(9));
    slave.args(["--id", "newcomer", "--masters", &masters]).args(flags);
    slave
}

#[test]
fn a_node_without_the_secret_or_with_another_one_says_so_in_one_line() {
    let files = Files::new();
    let cluster = files.setup(1).start();
    let other = files.other();
    for (name, flags, why) in [
        ("without", &[][..], "asks for a secret: give --secret-file"),
        ("other", &["--secret-file", &other], "is another one"),
    ] {
        let (_slave, output) = cluster.start_stranger(slave_of(&cluster, flags), name);
        let text = told(&output, why);
        let lines = text.lines().filter(|line| line.contains(why)).count();
        assert!(lines <= 2, "one for each master:\n{text}");
        assert!(!text.contains("other nodes"), "{text}");
    }
    let listen = free_ports()[0].to_string();
    let master = |flags: &[&str]| {
        let mut master = command(Node::Master);
        let peer = cluster.address(Node::Master).to_string();
        master.args(["--listen", &listen, "--peer", &peer, "--log"]).arg(cluster.log()).args(flags);
        master
    };
    let (code, text) = fails(master(&[]));
    assert!(code == 1 && text.contains("asks for a secret: give --secret-file"), "{text}");
    // Whoever refuses it has not proved that it is a master of this cluster, so it goes on.
    let (_third, output) = cluster.start_stranger(master(&["--secret-file", &other]), "third");
    told(&output, "no link to the other master");
    told(&output, "is another one");
    let before = cluster.info(Node::Master).expect("it answers");
    stays("nobody joins", millis(300), || {
        let now = cluster.info(Node::Master).expect("it answers");
        if moved(&now)[..5] == moved(&before)[..5] {
            Ok(())
        } else {
            Err(now)
        }
    });
}

#[test]
fn a_node_with_the_secret_takes_nothing_from_masters_without() {
    let files = Files::new();
    let cluster = Setup::slaves(1).start();
    let (_slave, output) =
        cluster.start_stranger(slave_of(&cluster, &["--secret-file", &files.nodes]), "careful");
    let text = told(&output, "has not proved the secret of --secret-file");
    assert!(!text.contains("registered"), "{text}");
    assert_eq!(cluster.info(Node::Master).expect("it answers").number("active_slaves"), 1);
}

#[test]
fn where_somebody_may_stand_on_the_way_the_secret_is_not_proved_without_tls() {
    let files = Files::new();
    let [listen, peer] = free_ports().map(|address| address.to_string());
    let with_secret = |node: Node, words: &[&str]| {
        let mut command = command(node);
        command.args(words).args(["--secret-file", &files.nodes]).current_dir(files.dir.path());
        command
    };
    let port = listen.rsplit_once(':').expect("a port").1.to_owned();
    let everywhere = format!("0.0.0.0:{port}");
    for (node, words, flag) in [
        (Node::Master, &["--listen", &*everywhere, "--advertise", &listen, "--peer", &peer][..], "--listen"),
        (Node::Master, &["--listen", &listen, "--peer", "192.0.2.1:1"], "--peer 192.0.2.1:1"),
        (Node::Master, &["--listen", &listen, "--peer", "plain:name.invalid:1"], "--peer name.invalid:1"),
        (Node::Slave(0), &["--masters", "192.0.2.1:1"], "--masters 192.0.2.1:1"),
    ] {
        let (code, told) = fails(with_secret(node, words));
        let line = told.lines().last().unwrap_or_default();
        assert!(code == 1 && line.contains(flag) && line.contains("--tls-cert"), "{told}");
    }
    // The same holds for the secret of native clients, which whoever proves it may do everything with.
    let mut master = command(Node::Master);
    master.args(["--listen", &everywhere, "--advertise", &listen, "--peer", &peer]);
    master.args(["--client-secret-file", &files.clients]).current_dir(files.dir.path());
    let (code, told) = fails(master);
    assert!(code == 1 && told.contains("--client-secret-file") && told.contains("--tls-cert"), "{told}");
    let mut client = Command::new("timeout");
    client.args(["--signal=KILL", "60", env!("CARGO_BIN_EXE_dsm-client"), "--masters", "192.0.2.1:1"]);
    client.args(["--client-secret-file", &files.clients, "READ", "k"]).stdin(Stdio::null());
    let read = client.output().expect("it runs");
    let told = String::from_utf8_lossy(&read.stderr);
    assert!(!read.status.success() && told.contains("only over TLS"), "{told}");
}

#[test]
fn a_file_that_has_no_secret_ends_a_program_with_one_line_and_nothing_of_it() {
    let files = Files::new();
    let [listen, peer] = free_ports().map(|address| address.to_string());
    let log = files.dir.path().join("kv_store.log");
    for (text, why) in [("", "16 bytes"), ("short-one\n", "16 bytes"), ("one\ntwo\n", "16 bytes")] {
        let path = private(files.dir.path(), "wrong", text);
        for flag in ["--secret-file", "--client-secret-file"] {
            let mut master = command(Node::Master);
            master.args(["--listen", &listen, "--peer", &peer, flag, &path, "--log"]).arg(&log);
            let (code, told) = fails(master);
            assert!(code == 1 && told.contains(flag) && told.contains(why), "{told}");
            assert!(!told.contains("short-one"), "{told}");
        }
    }
    let mut slave = command(Node::Slave(0));
    slave.args(["--masters", &listen, "--secret-file", "/no/such/file"]);
    let (code, told) = fails(slave);
    assert!(code == 1 && told.contains("--secret-file /no/such/file: No such file"), "{told}");
    assert!(!log.exists(), "nothing was begun");
}

#[test]
fn a_file_of_a_secret_that_others_may_read_is_told() {
    let files = Files::new();
    fs::set_permissions(&files.nodes, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let cluster = files.setup(1).beside_others().start();
    for node in [Node::Master, Node::Slave(0)] {
        let text = cluster.stderr(node);
        assert!(text.contains("WARN") && text.contains("chmod 600") && text.contains(&files.nodes), "{text}");
    }
}

/// So many more files than usual may be open here.
fn open_files(wanted: u64) {
    use rustix::process::{getrlimit, setrlimit, Resource};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        setrlimit(Resource::Nofile, limit).expect("it is below the hard limit");
    }
}

#[test]
fn a_thousand_slow_handshakes_hold_nobody_up_and_end_in_time() {
    open_files(4096);
    let files = Files::new();
    let mut cluster = files.setup(2).masters_with(&["--handshake-timeout", "3s"]).start();
    let load = Load::start(&cluster, 4, 20);
    let address = cluster.address(Node::Master);
    let strangers: Vec<Stranger> = (0..1000)
        .map(|number| {
            let mut stranger = Stranger::open(address);
            match number % 3 {
                0 => {}
                1 => stranger.say(&frame::PREFACE),
                _ => drop(stranger.is_challenged(hello_of_slave("slave-0"))),
            }
            stranger
        })
        .collect();
    let writes = load.writes();
    wait_for("all of them are ended", seconds(60), || {
        let info = cluster.info(Node::Master)?;
        (info.number("handshakes_timed_out") >= 1000).then_some(())
    });
    drop(strangers);
    assert!(load.writes() > writes, "clients are served meanwhile");
    assert_eq!(load.failures(), Vec::<String>::new(), "a client noticed");
    // A slave and a client can still come.
    cluster.restart(Node::Slave(0));
    cluster.settle_under_load();
    let done = run_client(&cluster, &["--client-secret-file", &files.clients], &["WRITE", "k", "v"]);
    assert!(done.status.success(), "{done:?}");
    load.prove(&mut cluster);
}

#[test]
fn a_running_cluster_moves_to_a_new_secret_node_by_node_without_a_failed_request() {
    let files = Files::new();
    let mut cluster = files.setup(2).start();
    let load = Load::start(&cluster, 4, 20);
    let new = "the new secret of these nodes";
    // Whoever has both proves either: the order of the lines does not matter.
    for text in [format!("{new}\n{NODES}\n"), format!("{new}\n")] {
        private(files.dir.path(), "nodes", &text);
        for node in [Node::Slave(0), Node::Slave(1), Node::Backup, Node::Master] {
            cluster.terminate(node);
            cluster.start(node);
            cluster.settle_under_load();
        }
        cluster.wait_until_serves(Node::Master, seconds(20));
    }
    load.wait_for_writes(100, seconds(10));
    assert_eq!(load.failures(), Vec::<String>::new(), "a client noticed");
    for master in MASTERS {
        assert_eq!(cluster.info(master).expect("it answers").number("proofs_refused"), 0);
    }
    // The old one is of no use any more.
    let mut late = Stranger::open(cluster.address(Node::Master));
    let challenge = late.is_challenged(hello_of_slave("late"));
    late.say(&proof(NODES, Prover::Dialing, &challenge));
    assert!(late.is_refused().contains("is another one"));
    load.prove(&mut cluster);
}

#[test]
fn a_repair_from_slaves_asks_them_for_the_secret() {
    let files = Files::new();
    let mut cluster = files.setup(1).start();
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
    for master in [Node::Backup, Node::Master] {
        cluster.terminate(master);
    }
    let listen = cluster.addresses().map(|address| address.to_string()).join(",");
    let repair = |flags: &[&str]| {
        let mut repair = Command::new(env!("CARGO_BIN_EXE_dsm-log"));
        repair.arg("repair").arg(cluster.log()).args(["--from-slaves", "--slaves", "1", "--dry-run"]);
        repair.args(["--listen", &listen, "--wait", "5s"]).args(flags).stdin(Stdio::null());
        repair.output().expect("it runs")
    };
    let found = repair(&["--secret-file", &files.nodes]);
    let told = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.status.success() && told.contains("slave slave-0"), "{found:?}");
    let other = files.other();
    let missing = repair(&["--secret-file", &other]);
    let told = String::from_utf8_lossy(&missing.stdout).into_owned();
    assert!(!missing.status.success() && !told.contains("slave slave-0"), "{missing:?}");
}

#[test]
fn redis_clients_are_asked_for_no_secret() {
    let files = Files::new();
    let cluster = files.setup(1).start();
    let mut client = Connection::open(cluster.address(Node::Master), seconds(10)).expect("it listens");
    assert_eq!(client.call(&[b"SET", b"k", b"v"]).expect("an answer"), Answer::ok());
}
