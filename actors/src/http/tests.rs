//! The HTTP port of a node that is no more than an actor which answers, or does not.

use super::*;
use crate::address;
use crate::env::real::RealEnv;
use crate::process_info::{cpu_info, memory_info};
use crate::told::NodeFacts;
use actix::{Actor, Context, Handler, ResponseFuture};
use bytes::BytesMut;
use dsm_protocol::ids::{Epoch, SlaveId};
use dsm_protocol::info::{HolderInfo, MasterLinkInfo, OrEmpty, OrUnlimited, SlaveNodeInfo};
use std::time::Duration;

/// A slave's actor, as far as this port knows it.
struct Holder {
    env: Env,
    turns: Rc<TurnLengths>,
    is_admitted: bool,
    /// Whether it answers at all.
    is_alive: bool,
}

impl Actor for Holder {
    type Context = Context<Self>;
}

impl Handler<AskNode> for Holder {
    type Result = ResponseFuture<NodeTold>;

    fn handle(&mut self, _: AskNode, _: &mut Self::Context) -> Self::Result {
        let link = |address: &str, is_obeyed| MasterLinkInfo {
            address: address.to_owned(),
            connected: self.is_admitted,
            obeyed: is_obeyed,
        };
        let info = SlaveNodeInfo {
            slave: HolderInfo {
                dsm_version: "0.1.0".to_owned(),
                process_id: 7,
                id: SlaveId::new("slave-1").unwrap(),
                uptime_in_seconds: 60,
                tls_certificate_expires: OrEmpty(Some(1_795_989_165)),
                log_lines_lost: 0,
                cluster_id: None,
                epoch: Epoch(3),
                admitted: self.is_admitted,
                master: vec![link("a:1", true), link("b:2", false)],
                keys: 5,
                held_bytes: 700,
                room_bytes: OrUnlimited(None),
                writes_taken: 9,
                reads_answered: 2,
                writes_refused: 0,
            },
            memory: memory_info(&self.env),
            cpu: cpu_info(&self.env),
            turns: self.turns.info(),
        };
        let told = NodeTold { node: NodeFacts::Slave(Box::new(info)), wall_clock_ms: 1 };
        let is_alive = self.is_alive;
        Box::pin(async move {
            if !is_alive {
                std::future::pending::<()>().await;
            }
            told
        })
    }
}

/// The port of such a slave, for as long as the tasks live; and its address.
async fn port(is_admitted: bool, is_alive: bool) -> (JoinSet<()>, Env, String) {
    let env: Env = RealEnv::new();
    let listener = env.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap();
    let turns = TurnLengths::new(Rc::clone(&env));
    let holder = Holder { env: Rc::clone(&env), turns: Rc::clone(&turns), is_admitted, is_alive };
    let look = holder.start().recipient();
    let host = || HttpHost::new(&env, look, Guard::Slave, &turns);
    (keep(Some(listener), host, &Fate::default()), env, address)
}

/// What is answered to these bytes until the connection ends.
async fn ask(env: &Env, address: &str, request: &str) -> String {
    let stream = env.connect(address::name(address)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&stream).await
}

async fn rest(stream: &Stream) -> String {
    let mut answer = BytesMut::new();
    while stream.read(&mut answer).await.is_ok_and(|read| read > 0) {}
    String::from_utf8_lossy(&answer).into_owned()
}

/// The first line and the body of the answer to one GET.
async fn get(env: &Env, address: &str, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: there\r\nConnection: close\r\n\r\n");
    let answer = ask(env, address, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

const OK: &str = "HTTP/1.1 200 OK";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable";

fn pair(line: &str, body: &str) -> (String, String) {
    (line.to_owned(), body.to_owned())
}

#[actix::test]
async fn a_node_that_does_its_part_is_alive_and_ready() {
    let (_port, env, address) = port(true, true).await;
    assert_eq!(get(&env, &address, "/healthz").await, pair(OK, "ok\n"));
    assert_eq!(get(&env, &address, "/readyz").await, pair(OK, "ready\n"));
    let (line, status) = get(&env, &address, "/status").await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(line, OK);
    assert_eq!((&status["node"], &status["state"]), (&"slave".into(), &"healthy".into()));
    assert_eq!(status["info"]["slave"]["masters"][0]["address"], "a:1");
    let (line, metrics) = get(&env, &address, "/metrics").await;
    assert_eq!(line, OK);
    for sample in ["dsm_held_keys 5\n", "dsm_ready 1\n", "dsm_master_connected{master=\"b:2\"} 1\n"] {
        assert!(metrics.contains(sample), "{sample}: {metrics}");
    }
    assert!(metrics.contains("\ndsm_turn_seconds_bucket{le=\"+Inf\"} "), "{metrics}");
}

#[actix::test]
async fn a_node_that_has_no_part_is_alive_and_not_ready() {
    let (_port, env, address) = port(false, true).await;
    assert_eq!(get(&env, &address, "/healthz").await, pair(OK, "ok\n"));
    let (line, why) = get(&env, &address, "/readyz").await;
    assert_eq!(line, UNAVAILABLE);
    assert!(why.starts_with("no master is connected\n"), "{why}");
}

#[actix::test]
async fn a_node_whose_actor_does_not_answer_is_not_alive() {
    let (_port, env, address) = port(true, false).await;
    for path in ["/healthz", "/readyz", "/status", "/metrics"] {
        assert_eq!(get(&env, &address, path).await, pair(UNAVAILABLE, routes::HUNG), "{path}");
    }
}

#[actix::test]
async fn requests_that_would_change_something_and_other_paths_are_refused() {
    let (_port, env, address) = port(true, true).await;
    let refused = ask(
        &env,
        &address,
        "POST /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
    )
    .await;
    assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("allow: GET, HEAD\r\n"), "{refused}");
    assert!(get(&env, &address, "/other").await.0.starts_with("HTTP/1.1 404 "));
    let head = ask(&env, &address, "HEAD /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(head.starts_with(OK) && head.ends_with("\r\n\r\n"), "{head}");
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(carrier::HEAD_BYTES_MAX));
    let refused = ask(&env, &address, &long).await;
    assert!(refused.starts_with("HTTP/1.1 431 "), "{refused}");
    assert!(!ask(&env, &address, "no HTTP at all\r\n\r\n").await.contains(" 200 "));
}

/// The clock of this test jumps to the end of a wait when nobody has anything to do.
#[actix::test]
async fn a_connection_that_does_not_finish_its_request_is_closed_in_time() {
    let (_port, env, address) = port(true, true).await;
    let stream = env.connect(&address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a").await.unwrap();
    tokio::task::yield_now().await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert_eq!(rest(&stream).await, "");
    let lasted = began.elapsed();
    assert!(lasted <= carrier::IDLE_MAX + Duration::from_secs(1), "{lasted:?}");
}

#[actix::test]
async fn one_connection_asks_several_times_and_there_are_only_so_many() {
    let (_port, env, address) = port(true, true).await;
    let request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let stream = env.connect(&address).await.unwrap();
        for _ in 0..2 {
            stream.write_all(request).await.unwrap();
            let mut answer = BytesMut::new();
            while !answer.ends_with(b"ok\n") {
                assert!(stream.read(&mut answer).await.unwrap() > 0);
            }
        }
        held.push(stream);
    }
    let further = env.connect(&address).await.unwrap();
    assert_eq!(rest(&further).await, "");
    held.pop();
    // The place is free once the port has noticed.
    loop {
        let stream = env.connect(&address).await.unwrap();
        let _ = stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await;
        if rest(&stream).await.ends_with("ok\n") {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[actix::test]
async fn a_slave_is_not_asked_from_elsewhere_without_tls() {
    let (_port, env, address) = port(true, true).await;
    let stream = env.connect(&address).await.unwrap();
    assert!(Guard::Slave.lets_in(&stream, "127.0.0.1:5"));
    assert!(!Guard::Slave.lets_in(&stream, "10.0.0.7:5"));
}

#[actix::test]
async fn the_page_needs_nothing_else_and_is_told_each_second_what_is_new() {
    let (_port, env, address) = port(true, true).await;
    let (line, page) = get(&env, &address, "/").await;
    assert_eq!(line, OK);
    assert!(page.contains("new EventSource(\"events\")"));
    for elsewhere in ["https:", "http:", "src=", "href=", "@import", "url("] {
        let named = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!named.contains(elsewhere), "{elsewhere}");
    }
    let stream = env.connect(&address).await.unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = BytesMut::new();
    let events = loop {
        assert!(stream.read(&mut answer).await.unwrap() > 0);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let events: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect();
        if events.len() == 3 && text.ends_with("\n\r\n") {
            break events;
        }
    };
    let events: Vec<serde_json::Value> =
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(events[0]["samples"].is_array() && events[1]["samples"].is_null(), "{events:?}");
    assert_eq!(events[2]["status"]["state"], "healthy");
    assert!(events[2]["sample"].is_array(), "a second later there is a sample: {}", events[2]);
}

#[actix::test]
async fn there_are_only_so_many_streams_of_events() {
    let (_port, env, address) = port(true, true).await;
    let mut open = Vec::new();
    for _ in 0..events::STREAMS_MAX {
        let stream = env.connect(&address).await.unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = BytesMut::new();
        while !String::from_utf8_lossy(&answer).contains("data: ") {
            assert!(stream.read(&mut answer).await.unwrap() > 0);
        }
        open.push(stream);
    }
    let (line, why) = get(&env, &address, "/events").await;
    assert_eq!((line.as_str(), why.as_str()), (UNAVAILABLE, "too many pages are open\n"));
}
