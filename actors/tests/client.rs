//! The client library against scripted masters: real sockets, real frames, no cluster.

#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use dsm::client::{Client, ClientConfig, ClientError, Failure, MasterFailure, Serving};
use dsm_protocol::command::{Command, Comparison, ErrorWord, Reply};
use dsm_protocol::frame;
use dsm_protocol::ids::{Epoch, RequestId, Version};
use dsm_protocol::message::{Control, HelloRole, MasterState, Message, Request, Welcome};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// A master whose every move the test writes down.
struct FakeMaster {
    listener: TcpListener,
    address: String,
}

impl FakeMaster {
    async fn new() -> FakeMaster {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        FakeMaster { listener, address }
    }

    async fn accept(&self, active: bool, active_address: Option<&str>) -> Link {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut link = Link { stream, input: BytesMut::with_capacity(1 << 16) };
        while link.input.len() < frame::PREFACE.len() {
            link.stream.read_buf(&mut link.input).await.unwrap();
        }
        assert_eq!(frame::check_preface(&link.input), Ok(true));
        let _ = link.input.split_to(frame::PREFACE.len());
        let hello = link.message().await.unwrap();
        let Message::Control(Control::Hello(hello)) = hello else { panic!("{hello:?}") };
        assert_eq!(hello.role, HelloRole::Client);
        let active_address = active_address.map(str::to_owned);
        let state =
            MasterState { active, epoch: Epoch(1), seq: dsm_protocol::ids::Seq::default(), active_address };
        link.send(Message::Control(Control::Welcome(Welcome { cluster: None, value_max: 16 << 20, state })))
            .await;
        link
    }
}

struct Link {
    stream: TcpStream,
    input: BytesMut,
}

impl Link {
    async fn message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = frame::decode(&mut self.input, 1 << 26).unwrap() {
                return Some(message);
            }
            if self.stream.read_buf(&mut self.input).await.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn request(&mut self) -> Request {
        let message = self.message().await.expect("a request");
        let Message::Request(request) = message else { panic!("{message:?}") };
        request
    }

    async fn send(&mut self, message: Message) {
        let mut out = Vec::new();
        frame::encode(&message, &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    async fn answer(&mut self, request: &Request, reply: Reply) {
        self.send(Message::Response { id: request.id, reply }).await;
    }
}

fn config(masters: &[&str]) -> ClientConfig {
    let masters = masters.iter().map(|master| (*master).to_owned()).collect();
    ClientConfig { masters, request_timeout: Duration::from_secs(5), ..ClientConfig::default() }
}

fn put(key: &'static str, value: &'static str) -> Command {
    Command::Put { key: key.into(), value: value.into() }
}

/// An address nobody listens at, until this test binds it.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn calls_become_requests_and_responses_in_any_order_find_their_caller() {
    let master = FakeMaster::new().await;
    let client = Client::connect(config(&[&master.address])).unwrap();
    let script = async {
        let mut link = master.accept(true, None).await;
        let first = link.request().await;
        let second = link.request().await;
        let third = link.request().await;
        assert_eq!(first.command, put("a", "1"));
        assert_eq!(second.command, Command::Get { key: "b".into() });
        assert_eq!(third.command, Command::Delete { keys: vec!["c".into()] });
        link.answer(&third, Reply::Count(1)).await;
        link.answer(&second, Reply::Value("two".into())).await;
        link.answer(&first, Reply::Done).await;
        link
    };
    let (first, second, third, _link) =
        tokio::join!(client.put("a", "1"), client.get("b"), client.delete("c"), script);
    assert_eq!(first, Ok(()));
    assert_eq!(second, Ok(Some("two".into())));
    assert_eq!(third, Ok(true));
    assert_eq!(client.serving(), Some(Serving { place: 0 }));
}

#[tokio::test]
async fn a_value_is_read_with_its_version_and_written_over_that_version() {
    let master = FakeMaster::new().await;
    let client = Client::connect(config(&[&master.address])).unwrap();
    let version = Version::new(3, 17);
    let script = async {
        let mut link = master.accept(true, None).await;
        for told in
            [[Some("v"), Some("3.17")], [None, Some("0.0")], [Some("v"), Some("3")], [Some("v"), None]]
        {
            let request = link.request().await;
            assert_eq!(request.command, Command::GetVersioned { key: "a".into() });
            let told = told.into_iter().map(|word| word.map(Bytes::from)).collect();
            link.answer(&request, Reply::Values(told)).await;
        }
        for (when, reply) in [(Some(version), Reply::Done), (None, Reply::NotFound)] {
            let request = link.request().await;
            let Command::Compare { key, change } = &request.command else { panic!("{request:?}") };
            assert_eq!((&key[..], &change.when), (&b"a"[..], &Comparison::Version(when)));
            link.answer(&request, reply).await;
        }
        link
    };
    let calls = async {
        assert_eq!(client.get_versioned("a").await, Ok(Some(("v".into(), version))));
        assert_eq!(client.get_versioned("a").await, Ok(None));
        assert!(client.get_versioned("a").await.is_err(), "that is no version");
        assert!(client.get_versioned("a").await.is_err(), "a value without a version");
        assert_eq!(client.compare_and_set("a", "w", Some(version)).await, Ok(true));
        assert_eq!(client.compare_and_set("a", "w", None).await, Ok(false));
    };
    tokio::join!(calls, script);
}

#[tokio::test]
async fn concurrent_calls_arrive_in_one_piece() {
    let master = FakeMaster::new().await;
    let client = Client::connect(config(&[&master.address])).unwrap();
    let accepted = master.accept(true, None);
    let (mut link, serving) = tokio::join!(accepted, client.wait_serving(Duration::from_secs(5)));
    assert_eq!(serving, Some(Serving { place: 0 }));
    let calls: Vec<_> = (0..100)
        .map(|number: u32| {
            let client = client.clone();
            tokio::spawn(async move { client.get(number.to_string().into_bytes()).await })
        })
        .collect();
    let first = link.request().await;
    // All of them came with the bytes of one read, as far as the buffer went.
    assert!(link.input.len() > 1000, "{}", link.input.len());
    link.answer(&first, Reply::NotFound).await;
    for _ in 1..100 {
        let request = link.request().await;
        link.answer(&request, Reply::NotFound).await;
    }
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(None));
    }
}

#[tokio::test]
async fn a_master_that_dies_makes_the_write_in_flight_unknown_and_the_read_moves_on() {
    let (primary, backup) = (FakeMaster::new().await, FakeMaster::new().await);
    let client = Client::connect(config(&[&primary.address, &backup.address])).unwrap();
    let script = async {
        let mut link = primary.accept(true, None).await;
        link.request().await;
        link.request().await;
        let FakeMaster { listener, .. } = primary;
        drop(listener);
        drop(link);
        let died = Instant::now();
        let mut link = backup.accept(true, None).await;
        let request = link.request().await;
        assert!(died.elapsed() < Duration::from_millis(100), "{:?}", died.elapsed());
        assert_eq!(request.command, Command::Get { key: "b".into() });
        link.answer(&request, Reply::Value("kept".into())).await;
        link
    };
    let (write, read, mut link) = tokio::join!(client.put("a", "1"), client.get("b"), script);
    assert_eq!(write, Err(ClientError::Indeterminate { cause: Failure::LinkLost }));
    assert_eq!(read, Ok(Some("kept".into())));
    assert_eq!(client.serving(), Some(Serving { place: 1 }));
    // The write never comes again by itself.
    let (next, request) = tokio::join!(client.put("c", "3"), async {
        let request = link.request().await;
        link.answer(&request, Reply::Done).await;
        request
    });
    assert_eq!((next, request.command), (Ok(()), put("c", "3")));
}

#[tokio::test]
async fn a_standby_redirects_and_the_write_is_executed_once_at_the_other_master() {
    let (primary, backup) = (FakeMaster::new().await, FakeMaster::new().await);
    let client = Client::connect(config(&[&primary.address, &backup.address])).unwrap();
    let script = async {
        let mut link = primary.accept(true, None).await;
        let request = link.request().await;
        link.answer(&request, Reply::error(ErrorWord::Standby, backup.address.clone())).await;
        assert_eq!(link.message().await, None, "the link to the standby is closed");
        let mut link = backup.accept(true, None).await;
        let request = link.request().await;
        assert_eq!(request.command, put("a", "1"));
        link.answer(&request, Reply::Done).await;
        link
    };
    let (write, _link) = tokio::join!(client.put("a", "1"), script);
    assert_eq!(write, Ok(()));
    assert_eq!(client.serving(), Some(Serving { place: 1 }));
}

#[tokio::test]
async fn a_standby_in_a_takeover_is_asked_again_within_milliseconds() {
    let gone = free_address();
    let backup = FakeMaster::new().await;
    let client = Client::connect(config(&[&gone, &backup.address])).unwrap();
    let script = async {
        let mut link = backup.accept(false, Some(&gone)).await;
        let request = link.request().await;
        link.answer(&request, Reply::error(ErrorWord::Standby, gone.clone())).await;
        let refused = Instant::now();
        let request = link.request().await;
        assert!(refused.elapsed() < Duration::from_millis(100), "{:?}", refused.elapsed());
        link.answer(&request, Reply::Done).await;
        link
    };
    let (write, _link) = tokio::join!(client.put("a", "1"), script);
    assert_eq!(write, Ok(()));
}

#[tokio::test]
async fn with_both_masters_down_the_error_says_so_and_names_them() {
    let (primary, backup) = (free_address(), free_address());
    let settings =
        ClientConfig { request_timeout: Duration::from_millis(200), ..config(&[&primary, &backup]) };
    let client = Client::connect(settings).unwrap();
    let error = client.put("a", "1").await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ClientError::NotExecuted { cause: Failure::Unreachable(_) }), "{error:?}");
    assert!(error.is_retryable());
    assert!(text.contains(&primary) && text.contains(&backup) && text.contains("refused"), "{text}");
    assert_eq!(client.serving(), None);
}

/// Answers whoever connects with `said`, and closes.
async fn answers(said: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // The client may have gone meanwhile.
            let mut greeting = [0; 64];
            let _ = stream.read(&mut greeting).await;
            let _ = stream.write_all(&said).await;
        }
    });
    address
}

#[tokio::test]
async fn the_error_says_what_happened_at_each_master() {
    let mut reject = Vec::new();
    frame::encode(&Message::Control(Control::Reject { reason: "it is\nfull".to_owned() }), &mut reject);
    let mut ping = Vec::new();
    frame::encode(&Message::Ping, &mut ping);
    let masters = [
        free_address(),
        answers(reject).await,
        answers(b"HTTP/1.1 400 Bad Request\r\n".to_vec()).await,
        answers(Vec::new()).await,
        answers(ping).await,
    ];
    let addresses = masters.each_ref().map(String::as_str);
    let settings = ClientConfig { request_timeout: Duration::from_millis(400), ..config(&addresses) };
    let error = Client::connect(settings).unwrap().get("a").await.unwrap_err();
    let ClientError::NotExecuted { cause: Failure::Unreachable(unreached) } = error else {
        panic!("{error}")
    };
    let (named, failures): (Vec<_>, Vec<_>) = unreached.masters().unzip();
    assert_eq!(named, addresses);
    use MasterFailure::{Closed, Frame, Handshake, Rejected, System};
    let [System(refused), Rejected(reason), nonsense @ Frame(cause), Closed, Handshake(_)] = failures[..]
    else {
        panic!("{failures:?}")
    };
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(reason, "it is full", "what others say is one line");
    assert_eq!(std::error::Error::source(nonsense).unwrap().to_string(), cause.to_string());
    let text = unreached.to_string();
    let wanted = format!("{}: does not speak the store's protocol: {cause}; ", masters[2]);
    assert!(text.contains(&wanted), "{text}");
    assert!(text.ends_with(": did not answer the handshake"), "{text}");
}

#[tokio::test]
async fn a_silent_master_makes_a_write_unknown_after_the_timeout_and_is_left() {
    let (primary, backup) = (FakeMaster::new().await, FakeMaster::new().await);
    let masters = config(&[&primary.address, &backup.address]);
    let client =
        Client::connect(ClientConfig { request_timeout: Duration::from_millis(200), ..masters }).unwrap();
    let mut kept = None;
    let (write, ()) = tokio::join!(client.put("a", "1"), async {
        kept = Some(primary.accept(true, None).await);
    });
    let cause = Failure::TimedOut(Duration::from_millis(200));
    assert_eq!(write, Err(ClientError::Indeterminate { cause }));
    let (read, _link) = tokio::join!(client.get("a"), async {
        let mut link = backup.accept(true, None).await;
        let request = link.request().await;
        link.answer(&request, Reply::NotFound).await;
        link
    });
    assert_eq!(read, Ok(None));
}

#[tokio::test]
async fn garbage_from_a_master_ends_the_link_and_is_named() {
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 64], &[0; 64]] {
        let master = FakeMaster::new().await;
        let masters = config(&[&master.address]);
        let client =
            Client::connect(ClientConfig { request_timeout: Duration::from_millis(300), ..masters }).unwrap();
        let script = async {
            let mut link = master.accept(true, None).await;
            link.request().await;
            link.stream.write_all(garbage).await.unwrap();
            assert_eq!(link.message().await, None, "the client hangs up");
            drop(master);
        };
        let (write, ()) = tokio::join!(client.put("a", "1"), script);
        assert_eq!(write, Err(ClientError::Indeterminate { cause: Failure::LinkLost }));
        assert!(client.get("a").await.is_err());
    }
}

#[tokio::test]
async fn a_rejected_handshake_is_reported_to_the_caller() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let masters = config(&[&address]);
    let client =
        Client::connect(ClientConfig { request_timeout: Duration::from_millis(200), ..masters }).unwrap();
    let rejecting = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut link = Link { stream, input: BytesMut::with_capacity(1 << 16) };
            link.send(Message::Control(Control::Reject { reason: "full\nhouse".to_owned() })).await;
            // Until the client has read it.
            let _ = link.stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let text = client.get("a").await.unwrap_err().to_string();
    assert!(text.contains("full house"), "{text}");
    rejecting.abort();
}

#[tokio::test]
async fn a_request_that_no_master_accepts_is_refused_without_a_connection() {
    let client = Client::connect(config(&[&free_address()])).unwrap();
    let long_key = vec![b'k'; dsm_protocol::command::KEY_MAX + 1];
    let half = bytes::Bytes::from(vec![b'v'; dsm_protocol::command::VALUE_MAX_DEFAULT * 2 / 3]);
    let long_value = vec![b'v'; dsm_protocol::command::VALUE_MAX_DEFAULT + 1];
    for refused in [
        client.get(long_key.clone()).await.unwrap_err(),
        client.put(long_key, "v").await.unwrap_err(),
        client.put("k", long_value).await.unwrap_err(),
        client.get_many(Vec::new()).await.unwrap_err(),
        client.put_many(vec![("a".into(), half.clone()), ("b".into(), half)]).await.unwrap_err(),
    ] {
        assert!(matches!(refused, ClientError::NotExecuted { cause: Failure::Invalid(_) }), "{refused:?}");
        assert!(!refused.is_retryable());
    }
}

#[tokio::test]
async fn calls_beyond_the_bounds_wait_for_their_turn() {
    let master = FakeMaster::new().await;
    let masters = config(&[&master.address]);
    let client =
        Client::connect(ClientConfig { request_bytes_max: 100, requests_max: 2, ..masters }).unwrap();
    let script = async {
        let mut link = master.accept(true, None).await;
        for _ in 0..3 {
            let request = link.request().await;
            // The next one is sent only after this one has ended.
            let early = tokio::time::timeout(Duration::from_millis(20), link.message()).await;
            assert!(early.is_err(), "{early:?}");
            link.answer(&request, Reply::Done).await;
        }
        link
    };
    let value = || vec![b'v'; 80];
    let (first, second, third, _link) =
        tokio::join!(client.put("a", value()), client.put("b", value()), client.put("c", value()), script);
    assert_eq!((first, second, third), (Ok(()), Ok(()), Ok(())));
}

#[tokio::test]
async fn the_time_of_a_call_includes_the_wait_for_its_turn() {
    let master = FakeMaster::new().await;
    let limit = Duration::from_secs(1);
    let config = ClientConfig { requests_max: 1, request_timeout: limit, ..config(&[&master.address]) };
    let client = Client::connect(config).unwrap();
    // When the first one has ended, the client comes again.
    let silent = async {
        loop {
            let mut link = master.accept(true, None).await;
            while link.message().await.is_some() {}
        }
    };
    let first = client.put("a", "1");
    let second = async {
        tokio::time::sleep(limit / 2).await;
        let begun = Instant::now();
        let ended = client.put("b", "2").await;
        (ended, begun.elapsed())
    };
    let calls = async { tokio::join!(first, second) };
    let (first, (second, took)) = tokio::select! {
        ended = calls => ended,
        () = silent => unreachable!(),
    };
    let late = Err(ClientError::Indeterminate { cause: Failure::TimedOut(limit) });
    assert_eq!((first, second), (late.clone(), late));
    assert!(took < limit * 5 / 4, "it was given {took:?}");
}

#[tokio::test]
async fn bytes_that_a_master_does_not_take_count_as_in_flight_when_their_call_has_ended() {
    let master = FakeMaster::new().await;
    let config = ClientConfig {
        request_timeout: Duration::from_millis(200),
        request_bytes_max: 4 << 20,
        ..config(&[&master.address])
    };
    let client = Client::connect(config).unwrap();
    // It listens to nothing, and is not silent.
    let talks = async {
        let mut link = master.accept(true, None).await;
        loop {
            // As the answer to a call that has ended.
            link.send(Message::Response { id: RequestId(u64::MAX), reply: Reply::Done }).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let floods = async {
        // Sockets take some of it.
        for round in 0..64 {
            let ended = client.put("k", vec![b'v'; 1 << 20]).await;
            match ended.unwrap_err() {
                ClientError::Indeterminate { cause: Failure::TimedOut(_) } => {}
                ClientError::NotExecuted { cause: Failure::Overloaded } => return round,
                error => panic!("{error:?}"),
            }
        }
        panic!("64 MiB wait here, and 4 may");
    };
    let rounds = tokio::select! {
        rounds = floods => rounds,
        () = talks => unreachable!(),
    };
    assert!(rounds >= 4, "{rounds}");
}

#[tokio::test]
async fn a_large_write_and_its_read_pass_through_a_slow_socket() {
    let master = FakeMaster::new().await;
    let client = Client::connect(config(&[&master.address])).unwrap();
    let value = vec![0x5a; 8 << 20];
    let script = async {
        let mut link = master.accept(true, None).await;
        let request = link.request().await;
        let Command::Put { value, .. } = request.command.clone() else { panic!() };
        link.answer(&request, Reply::Done).await;
        let request = link.request().await;
        link.answer(&request, Reply::Value(value)).await;
        link
    };
    let calls = async {
        client.put("big", value.clone()).await.unwrap();
        client.get("big").await.unwrap()
    };
    let (read, _link) = tokio::join!(calls, script);
    assert!(read.is_some_and(|read| read == value));
}

#[tokio::test]
async fn the_link_is_closed_when_the_last_handle_is_dropped() {
    let master = FakeMaster::new().await;
    let client = Client::connect(config(&[&master.address])).unwrap();
    let mut link = master.accept(true, None).await;
    drop(client.clone());
    let closed = tokio::time::timeout(Duration::from_millis(20), link.message()).await;
    assert!(closed.is_err(), "still open for the other handle");
    drop(client);
    assert_eq!(link.message().await, None);
}
