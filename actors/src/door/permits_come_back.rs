//! Tests that the permit of each limit is returned however a connection or request ends: by a refusal, a cut in the
//! handshake, a timeout, a panic, a stop.

use super::accept::accept;
use super::session::Session;
use super::switchboard::Arrived;
use super::test_kit::{deaf_master, hello_of_slave};
use super::Context;
use crate::batch::Inbox;
use crate::config::{ClientAuth, MasterConfig, TlsFiles};
use crate::env::{Stream, Tls};
use crate::supervision::Fate;
use crate::test_certificates;
use bytes::BytesMut;
use dsm_protocol::acl::IncidentKind;
use dsm_protocol::acl::Users;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::frame::{self, PREFACE};
use dsm_protocol::handshake::greet;
use dsm_protocol::ids::LinkId;
use dsm_protocol::machine::master::Asker;
use dsm_protocol::message::{Hello, HelloRole, Message};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long anything may take here that happens at once.
const LIMIT: Duration = Duration::from_secs(10);

/// An open door, and the inbox of its master.
struct Open {
    context: Context,
    inbox: Inbox<Arrived>,
    address: String,
    accepting: JoinHandle<()>,
}

/// Settings of a master that waits only a moment for the answers of a client that has gone.
fn impatient() -> MasterConfig {
    MasterConfig { request_timeout: Duration::from_millis(50), ..MasterConfig::default() }
}

async fn open(config: MasterConfig) -> Open {
    open_with(config, None).await
}

async fn open_with(config: MasterConfig, tls: Option<&Tls>) -> Open {
    let (mut context, inbox) = deaf_master(config);
    if let Some(tls) = tls {
        context.env = context.env.secured(tls).unwrap();
    }
    let listener = context.env.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap();
    let accepting = actix::spawn(accept(listener, context.clone(), Fate::default()));
    Open { context, inbox, address, accepting }
}

impl Open {
    async fn connect(&self) -> Stream {
        self.context.env.connect(&self.address).await.unwrap()
    }

    /// Connects and says something.
    async fn say(&self, bytes: &[u8]) -> Stream {
        let stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// Comes as a slave; its link, once the master has heard of it.
    async fn slave(&self) -> (Stream, LinkId) {
        let stream = self.say(&hello(hello_of_slave())).await;
        match self.next().await {
            Arrived::SlaveHello { link, .. } => (stream, link),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until strangers have been cut so often.
    async fn until_cut(&self, count: u64) {
        let cut = &self.context.switchboard.gate.counters.strangers_cut;
        self.until(&format!("{count} strangers are cut"), |_| cut.get() == count).await;
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Context) -> bool) {
        let waiting = async {
            while !is_so(&self.context) {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, waiting).await.is_ok(), "{what} does not happen");
    }

    async fn until_connected(&self, connections: usize) {
        let gate = &self.context.switchboard.gate;
        self.until(&format!("{connections} are connected"), |_| gate.connections() == connections).await;
    }

    /// Waits until nothing is admitted any more.
    async fn until_empty(&self, way: &str) {
        self.until(&format!("everything is given back: {way}"), is_empty).await;
    }

    /// The next thing in the master's inbox.
    async fn next(&self) -> Arrived {
        let mut arrived = Vec::new();
        self.until("something arrives", |_| self.inbox.len() > 0).await;
        self.inbox.take(&mut arrived);
        let first = arrived.remove(0);
        // Nobody else pushes, so the rest is put back in the same order.
        for later in arrived {
            self.inbox.push(later);
        }
        first
    }

    /// Takes the next session that is opened, as the master does.
    async fn session(&self) -> Rc<Session> {
        match self.next().await {
            Arrived::Opened(session) => session,
            other => panic!("{other:?}"),
        }
    }

    /// Takes the next request.
    async fn request(&self) -> Asker {
        match self.next().await {
            Arrived::Request { asker, .. } => asker,
            other => panic!("{other:?}"),
        }
    }

    /// Takes the end of a session, and does what every master does then.
    async fn closed(&self, session: &Session) {
        match self.next().await {
            Arrived::Closed(closed) if closed == session.id() => session.abandon(),
            other => panic!("{other:?}"),
        }
    }

    fn in_flight(&self) -> (usize, usize) {
        let gate = &self.context.switchboard.gate;
        (gate.requests(), gate.request_bytes())
    }
}

fn is_empty(context: &Context) -> bool {
    let (gate, answers) = (&context.switchboard.gate, &context.switchboard.answers);
    let counted = [
        gate.connections(),
        gate.requests(),
        gate.request_bytes(),
        gate.strangers(),
        gate.unfinished_requests.bytes(),
        gate.unfinished_of_strangers.bytes(),
        gate.unfinished_frames.bytes(),
        gate.unfinished_handshakes.bytes(),
        answers.len(),
        answers.waiting(),
    ];
    counted == [0; 10]
}

/// Reads until the other side ends, and gives what it said.
async fn hear_out(stream: &Stream) -> Vec<u8> {
    let mut heard = BytesMut::new();
    // A connection that is reset has ended too.
    while tokio::time::timeout(LIMIT, stream.read(&mut heard)).await.unwrap().is_ok_and(|read| read > 0) {}
    heard.to_vec()
}

/// A frame of `kind` that announces `length` bytes of body and brings some of them.
fn unfinished(kind: u8, length: u32, brought: usize) -> Vec<u8> {
    [&length.to_le_bytes()[..], &[0; 4], &[kind], &vec![b'x'; brought]].concat()
}

fn hello(role: HelloRole) -> Vec<u8> {
    let mut out = Vec::new();
    greet(Hello { cluster: None, role }, &mut out);
    out
}

const CONTROL: u8 = 1;

#[actix::test]
async fn a_connection_that_ends_in_its_handshake_or_later_gives_its_place_back() {
    let door = open(MasterConfig::default()).await;
    let of_another_version = [&PREFACE[..4], &[0xff, 0xff]].concat();
    let half_hello = [&PREFACE[..], &unfinished(CONTROL, 4000, 100)].concat();
    let long_hello = [&PREFACE[..], &unfinished(CONTROL, 4097, 0)].concat();
    let no_hello = {
        let mut out = PREFACE.to_vec();
        frame::encode(&Message::Ping, &mut out);
        out
    };
    let mut garbled = hello(HelloRole::Client);
    *garbled.last_mut().unwrap() ^= 0x55;
    let ways: [(&str, &[u8]); 10] = [
        ("without a word", b""),
        ("in the preface", &PREFACE[..3]),
        ("of another version", &of_another_version),
        ("in the HELLO", &half_hello),
        ("with a HELLO that is too long", &long_hello),
        ("with something else than a HELLO", &no_hello),
        ("with a HELLO whose checksum is wrong", &garbled),
        ("in a request", b"*2\r\n$3\r\nGET\r\n$5\r\nus"),
        ("with nonsense", b"*1\r\n$x\r\n"),
        ("of a browser", b"POST / HTTP/1.1\r\n\r\n"),
    ];
    for (number, (way, bytes)) in ways.iter().enumerate() {
        let stream = door.say(bytes).await;
        // It was admitted, if only for a moment.
        let total = || door.context.switchboard.gate.counters.connections_total.get();
        door.until("it is let in", |_| total() == number as u64 + 1).await;
        drop(stream);
        door.until_empty(way).await;
        door.inbox.take(&mut Vec::new());
    }
    for role in [HelloRole::Client, hello_of_slave()] {
        let stream = door.say(&hello(role)).await;
        door.until_connected(1).await;
        door.next().await;
        drop(stream);
        door.until_empty("after the HELLO").await;
        door.inbox.take(&mut Vec::new());
    }
}

#[actix::test]
async fn a_handshake_that_takes_too_long_gives_its_place_back() {
    let config = MasterConfig { handshake_timeout: Duration::from_millis(50), ..MasterConfig::default() };
    let door = open(config).await;
    let half_hello = [&PREFACE[..], &unfinished(CONTROL, 4000, 100)].concat();
    let ways: [&[u8]; 4] = [b"", &PREFACE[..3], &half_hello, b"*2\r\n$3\r\nGET\r\n"];
    let silent = futures_util::future::join_all(ways.map(|bytes| door.say(bytes))).await;
    door.until("all are timed out", |context| {
        context.switchboard.gate.counters.handshakes_timed_out.get() == ways.len() as u64
    })
    .await;
    door.until_empty("timed out").await;
    drop(silent);
}

#[actix::test]
async fn a_connection_over_the_limit_takes_no_place() {
    let door = open(MasterConfig { max_connections: 2, ..MasterConfig::default() }).await;
    let first = door.connect().await;
    let _second = door.connect().await;
    door.until_connected(2).await;
    for _ in 0..3 {
        let refused = door.connect().await;
        assert_eq!(hear_out(&refused).await, b"-ERR max number of clients reached\r\n");
        assert_eq!(door.context.switchboard.gate.connections(), 2);
    }
    drop(first);
    door.until_connected(1).await;
    let _third = door.connect().await;
    door.until_connected(2).await;
    assert_eq!(door.context.switchboard.gate.counters.connections_refused.get(), 3);
}

#[actix::test]
async fn a_panic_in_a_connection_gives_its_places_back_and_ends_nothing_else() {
    let door = open(impatient()).await;
    let other = door.say(b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n").await;
    let (others, _) = (door.session().await, door.request().await);
    let panics = door.say(b"*2\r\n$3\r\nGET\r\n$4\r\nkeys\r\n").await;
    let (session, _) = (door.session().await, door.request().await);
    assert_eq!(door.in_flight(), (2, 7));
    crate::test_hooks::panic_at(crate::test_hooks::PanicPlace::Session);
    panics.write_all(b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n").await.unwrap();
    door.closed(&session).await;
    door.until_connected(1).await;
    assert_eq!(door.in_flight(), (1, 3), "the other one's");
    assert!(!others.is_closed());
    drop(other);
    door.closed(&others).await;
    door.until_empty("after a panic").await;
}

#[actix::test]
async fn a_request_gives_its_permit_back_with_its_answer_its_refusal_and_its_sessions_end() {
    let config = MasterConfig { max_requests: 2, ..impatient() };
    let key_max = dsm_protocol::command::KEY_MAX;
    let door = open(config).await;
    let get = |key: &str| format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len());
    // Two are in flight, and the third exceeds the limit.
    let asks = format!("{}{}{}", get("a"), get("bb"), get("ccc"));
    let client = door.say(asks.as_bytes()).await;
    let session = door.session().await;
    let (first, second) = (door.request().await, door.request().await);
    door.until("one is refused", |context| context.switchboard.errors.of(ErrorWord::Busy) == 1).await;
    assert_eq!(door.in_flight(), (2, 3));
    // Answered while an earlier one is not: the answer waits, but its permit is returned.
    assert!(session.answer(second.tag, &Reply::NotFound));
    assert_eq!(door.in_flight(), (1, 1));
    assert!(!session.answer(second.tag, &Reply::NotFound), "it is answered once");
    assert_eq!(door.in_flight(), (1, 1));
    // Now there is room for one more request, which is never answered. A request of a forbidden size takes no permit.
    let long = get(&"x".repeat(key_max + 1));
    client.write_all(format!("{}{long}", get("dddd")).as_bytes()).await.unwrap();
    door.request().await;
    door.until("the long one is refused", |context| context.switchboard.errors.of(ErrorWord::Bad) == 1).await;
    assert_eq!(door.in_flight(), (2, 5));
    assert!(session.answer(first.tag, &Reply::Done));
    assert_eq!(door.in_flight(), (1, 4));
    drop(client);
    // The session waits for what is not answered, and ends by itself when its client is found to be gone.
    session.abort();
    door.closed(&session).await;
    door.until_empty("the session's end").await;
}

#[actix::test]
async fn long_requests_and_frames_that_never_come_whole_give_their_bytes_back() {
    let small = bytesize::ByteSize::kib(64);
    let config = MasterConfig { max_request_bytes: small, max_link_bytes: small, ..MasterConfig::default() };
    let door = open(config).await;
    let half = format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$100000\r\n{}", "x".repeat(40_000));
    let gate = Rc::clone(&door.context.switchboard.gate);
    let first = door.say(half.as_bytes()).await;
    door.until("it waits for the rest", |_| gate.unfinished_requests.bytes() > 40_000).await;
    // The second one has no room and is refused.
    let second = door.say(half.as_bytes()).await;
    assert!(hear_out(&second).await.starts_with(b"-BUSY too many bytes of unfinished requests"));
    assert_eq!(gate.unfinished_requests.cut(), 1);
    drop((first, second));
    let mut sessions = Vec::new();
    door.until_connected(0).await;
    door.inbox.take(&mut sessions);
    drop(sessions);
    door.until_empty("unfinished requests").await;
    // The same with handshakes, of which each byte counts.
    let half = [&PREFACE[..], &unfinished(CONTROL, 4096, 4000)].concat();
    let strangers = futures_util::future::join_all([(); 30].map(|()| door.say(&half))).await;
    door.until("some are cut", |_| gate.unfinished_handshakes.cut() > 0).await;
    assert!(gate.unfinished_handshakes.bytes() <= 16 << 10);
    drop(strangers);
    door.until_empty("unfinished handshakes").await;
}

/// Lets nobody in who does not say the password `pw`.
fn guard(door: &Open) {
    let accounts = &door.context.switchboard.accounts;
    drop(accounts.replace(accounts.ticket(), Users::with_password(b"pw")));
}

async fn answer(stream: &Stream) -> String {
    let mut heard = BytesMut::new();
    while !heard.ends_with(b"\r\n") {
        let read = tokio::time::timeout(LIMIT, stream.read(&mut heard)).await.expect("in time").unwrap();
        assert!(read > 0, "it ends after {heard:?}");
    }
    String::from_utf8(heard.to_vec()).unwrap()
}

#[actix::test]
async fn strangers_have_a_part_of_the_places_and_make_room_for_whoever_comes() {
    let door = open(MasterConfig { max_connections: 8, ..impatient() }).await;
    guard(&door);
    let gate = Rc::clone(&door.context.switchboard.gate);
    let mut known = Vec::new();
    for _ in 0..4 {
        known.push(door.say(b"AUTH pw\r\n").await);
        assert_eq!(answer(&known[known.len() - 1]).await, "+OK\r\n");
    }
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(door.say(b"PING\r\n").await);
        assert!(answer(&strangers[strangers.len() - 1]).await.starts_with("-NOAUTH"));
    }
    // Of eight places two are theirs, and the oldest has left.
    assert_eq!(hear_out(&strangers[0]).await, b"");
    assert_eq!((gate.strangers(), gate.counters.strangers_cut.get()), (2, 1));
    // Whoever logs in has his place, as long as not all are of such.
    for _ in 0..4 {
        known.push(door.say(b"AUTH pw\r\n").await);
        assert_eq!(answer(&known[known.len() - 1]).await, "+OK\r\n");
    }
    door.until_connected(8).await;
    assert_eq!((gate.strangers(), gate.counters.strangers_cut.get()), (0, 3));
    let refused = door.connect().await;
    assert_eq!(hear_out(&refused).await, b"-ERR max number of clients reached\r\n");
    for known in &known {
        known.write_all(b"PING\r\n").await.unwrap();
        assert_eq!(answer(known).await, "+PONG\r\n");
    }
    // One that is known no more makes room as well.
    known[5].write_all(b"RESET\r\n").await.unwrap();
    assert_eq!(answer(&known[5]).await, "+RESET\r\n");
    known.push(door.say(b"AUTH pw\r\n").await);
    assert_eq!(answer(&known[8]).await, "+OK\r\n");
    assert_eq!(hear_out(&known[5]).await, b"");
    drop((known, strangers, refused));
    let mut arrived = Vec::new();
    door.until_connected(0).await;
    door.inbox.take(&mut arrived);
    drop(arrived);
    door.until_empty("strangers").await;
}

#[actix::test]
async fn a_slave_that_is_welcome_makes_room_for_nobody_though_it_waits_to_be_taken_in() {
    let door = open(MasterConfig { max_connections: 8, ..impatient() }).await;
    guard(&door);
    let board = &door.context.switchboard;
    let mut slaves = Vec::new();
    for _ in 0..4 {
        let (stream, link) = door.slave().await;
        assert_eq!(board.gate.strangers(), 1);
        board.welcome(link);
        assert_eq!(board.gate.strangers(), 0);
        slaves.push((stream, link));
    }
    let _unwelcome = door.slave().await;
    let _silent = (door.connect().await, door.connect().await, door.connect().await);
    door.until_cut(2).await;
    door.until_connected(6).await;
    assert!(slaves.iter().all(|(_, link)| !board.is_trusted(*link)));
    for (stream, _) in &slaves {
        let mut out = Vec::new();
        frame::encode(&Message::Ping, &mut out);
        stream.write_all(&out).await.unwrap();
        assert!(matches!(door.next().await, Arrived::SlaveGone { .. } | Arrived::Slave { .. }));
    }
    door.until_connected(6).await;
}

#[actix::test]
async fn who_waits_for_the_answer_to_a_password_makes_no_room_for_the_silent() {
    let door = open(MasterConfig { max_connections: 8, ..impatient() }).await;
    guard(&door);
    let board = &door.context.switchboard;
    for guesses in 1..=30 {
        drop(door.say(b"AUTH guess\r\n").await);
        let is_heard = |_: &Context| board.accounts.count(IncidentKind::Auth) == guesses;
        door.until("the guess is heard", is_heard).await;
    }
    door.until_connected(0).await;
    let known = door.say(b"AUTH pw\r\n").await;
    door.until("its answer waits", |_| board.gate.waiting() == 1).await;
    // Those who have guessed may have made room for each other.
    let cut = board.gate.counters.strangers_cut.get();
    let _silent = (door.connect().await, door.connect().await, door.connect().await, door.connect().await);
    door.until_cut(cut + 3).await;
    assert_eq!(answer(&known).await, "+OK\r\n");
}

#[actix::test]
async fn without_its_certificate_a_connection_makes_room_and_with_it_for_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let authority = test_certificates::Authority::new(directory.path(), "ca");
    let own = authority.sign("node");
    let files = TlsFiles { cert: Some(own.cert), key: Some(own.key), ca: Some(authority.ca) };
    let tls = Tls::for_node(&files, ClientAuth::Yes).unwrap();
    let door = open_with(MasterConfig { max_connections: 8, ..impatient() }, Some(&tls)).await;
    let gate = Rc::clone(&door.context.switchboard.gate);
    let mut known = Vec::new();
    for count in 1..=3 {
        let stream = door.connect().await;
        let is_seen = |_: &Context| (gate.connections(), gate.strangers()) == (count, 0);
        let mut heard = BytesMut::new();
        tokio::select! {
            // It says no more than what TLS does.
            heard = stream.read(&mut heard) => panic!("{heard:?}"),
            () = door.until("its certificate is seen", is_seen) => {}
        }
        known.push(stream);
    }
    let port = door.address.rsplit(':').next().unwrap();
    let mut silent = Vec::new();
    for _ in 0..9 {
        silent.push(door.context.env.connect(&format!("plain:127.0.0.1:{port}")).await.unwrap());
    }
    door.until_cut(7).await;
    door.until_connected(5).await;
    for stream in &known {
        stream.write_all(b"PING\r\n").await.unwrap();
        assert_eq!(answer(stream).await, "+PONG\r\n");
    }
    drop(silent);
}

#[actix::test]
async fn a_stranger_has_no_longer_to_say_who_he_is_however_much_he_says() {
    let door = open(MasterConfig { handshake_timeout: Duration::from_secs(1), ..impatient() }).await;
    guard(&door);
    let gate = Rc::clone(&door.context.switchboard.gate);
    let known = door.say(b"AUTH pw\r\n").await;
    assert_eq!(answer(&known).await, "+OK\r\n");
    let stranger = door.connect().await;
    let said = b"PING\r\n".repeat(1000);
    let talking = async {
        while stranger.write_all(&said).await.is_ok() {
            let mut heard = BytesMut::with_capacity(64 * 1024);
            if stranger.read(&mut heard).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, talking).await.expect("he is cut off");
    assert_eq!(gate.counters.handshakes_timed_out.get(), 1);
    // Who is known has all the time.
    known.write_all(b"PING\r\n").await.unwrap();
    assert_eq!(answer(&known).await, "+PONG\r\n");
}

#[actix::test]
async fn half_requests_of_strangers_take_no_room_of_those_who_are_known() {
    let config = MasterConfig { max_request_bytes: bytesize::ByteSize::kib(256), ..impatient() };
    let door = open(config).await;
    guard(&door);
    let gate = Rc::clone(&door.context.switchboard.gate);
    // As much as a stranger may say: ten words of 16 KiB, of which the last is not whole.
    let word = format!("$16000\r\n{}\r\n", "x".repeat(16_000));
    let half = format!("*10\r\n{}$16000\r\n{}", word.repeat(2), "x".repeat(15_000));
    let strangers = futures_util::future::join_all([(); 8].map(|()| door.say(half.as_bytes()))).await;
    door.until("some are cut", |_| gate.unfinished_of_strangers.cut() > 0).await;
    assert!(gate.unfinished_of_strangers.bytes() <= 64 << 10);
    let known = door.say(b"AUTH pw\r\n").await;
    assert_eq!(answer(&known).await, "+OK\r\n");
    known
        .write_all(format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$250000\r\n{}", "x".repeat(240_000)).as_bytes())
        .await
        .unwrap();
    door.until("it waits for the rest", |_| gate.unfinished_requests.bytes() > 240_000).await;
    assert_eq!(gate.unfinished_requests.cut(), 0);
    drop(strangers);
}

#[actix::test]
async fn a_stop_gives_everything_back() {
    let door = open(MasterConfig::default()).await;
    let half = format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$100000\r\n{}", "x".repeat(40_000));
    let half_hello = [&PREFACE[..], &unfinished(CONTROL, 4000, 100)].concat();
    let ways: [&[u8]; 5] =
        [b"", half.as_bytes(), &half_hello, b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n", &hello(hello_of_slave())];
    let streams = futures_util::future::join_all(ways.map(|bytes| door.say(bytes))).await;
    let gate = Rc::clone(&door.context.switchboard.gate);
    door.until("all are in", |_| {
        gate.connections() == ways.len()
            && gate.requests() == 1
            && gate.unfinished_requests.bytes() > 40_000
            && gate.unfinished_handshakes.bytes() > 100
    })
    .await;
    // First the tasks are cut off, then the master is dropped with its inbox.
    door.accepting.abort();
    door.until_connected(0).await;
    let mut heard = Vec::new();
    door.inbox.take(&mut heard);
    drop(heard);
    door.until_empty("a stop").await;
    drop(streams);
}
