//! Both ends of connections over TLS, over the loopback.

use super::super::{Listener, OsStream, Stream};
use super::*;
use crate::test_certificates::{Authority, Signed};
use bytes::BytesMut;
use dsm_protocol::handshake::Security;
use std::future::Future as _;
use std::io::IoSlice;
use std::path::Path;
use tempfile::TempDir;

/// How long anything may take that comes by itself.
const LIMIT: Duration = Duration::from_secs(30);

fn files(ca: &Path, own: Option<&Signed>) -> TlsFiles {
    TlsFiles {
        cert: own.map(|own| own.cert.clone()),
        key: own.map(|own| own.key.clone()),
        ca: Some(ca.to_owned()),
    }
}

/// A CA, and a node's settings.
fn node(client_auth: ClientAuth) -> (TempDir, Authority, Tls) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ca");
    let own = authority.sign("node");
    let tls = Tls::for_node(&files(&authority.ca, Some(&own)), client_auth).unwrap();
    (directory, authority, tls)
}

async fn listen(tls: &Tls) -> (Listener, String) {
    let listener = Listener::tcp("127.0.0.1:0", Some(tls)).await.unwrap();
    let address = listener.local_address().unwrap();
    (listener, address)
}

async fn dial(address: &str, tls: Option<&Tls>) -> Stream {
    Stream::Os(OsStream::connect(address, tls).await.unwrap())
}

/// Both ends of a connection that `near` has dialed; nothing is said yet.
async fn pair(tls: &Tls, dialing: Option<&Tls>) -> (Stream, Stream) {
    let (listener, address) = listen(tls).await;
    let near = dial(&address, dialing).await;
    (near, listener.accept().await.unwrap().0)
}

async fn read(stream: &Stream, bytes: usize) -> BytesMut {
    let mut read = BytesMut::new();
    while read.len() < bytes {
        let got = tokio::time::timeout(LIMIT, stream.read(&mut read)).await.expect("in time").unwrap();
        assert!(got > 0, "it ended after {} bytes", read.len());
    }
    read
}

/// What each side says of a handshake in which the near one writes, and the far one reads.
async fn outcome(near: &Stream, far: &Stream) -> (Result<Security, String>, Result<(), String>) {
    let accepting = async {
        let mut heard = BytesMut::new();
        let read = far.read(&mut heard).await;
        if read.is_err() {
            far.shut_down_write();
        } else {
            far.write_all(b"welcome").await.unwrap();
        }
        read.map(|_| far.security()).map_err(|error| error.to_string())
    };
    let dialing = async {
        near.write_all(b"hello").await.map_err(|error| error.to_string())?;
        let mut heard = BytesMut::new();
        near.read(&mut heard).await.map(|_| ()).map_err(|error| error.to_string())
    };
    tokio::time::timeout(LIMIT, async { tokio::join!(accepting, dialing) }).await.expect("in time")
}

#[tokio::test]
async fn bytes_go_both_ways_at_once_and_arrive_once_and_in_order() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let (near, far) = pair(&tls, Some(&tls)).await;
    let (said, answered): (Vec<u8>, Vec<u8>) =
        (0..3_000_000u32).map(|place| ((place % 251) as u8, (place % 241) as u8)).unzip();
    outcome(&near, &far).await.0.unwrap();
    let both = async {
        tokio::join!(near.write_all(&said), far.write_all(&answered), read(&near, answered.len()), async {
            read(&far, said.len()).await
        })
    };
    let (_, _, heard, asked) = tokio::time::timeout(LIMIT, both).await.expect("in time");
    assert!(asked[..] == said[..], "what was said is not what was heard");
    assert!(heard[..] == answered[..], "what was answered is not what was heard");
}

#[tokio::test]
async fn what_the_system_does_not_take_is_not_told_to_be_taken_and_never_sent_twice() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let (near, far) = pair(&tls, Some(&tls)).await;
    outcome(&near, &far).await.0.unwrap();
    far.show_progress();
    let said: Vec<u8> = (0..20_000_000u32).map(|place| (place % 251) as u8).collect();
    let mut taken = 0;
    while let Some(written) = far.try_write(&said[taken..]).unwrap() {
        taken += written;
        assert!(taken < said.len(), "the system takes everything");
    }
    // Nobody reads: nothing more is taken, however often it is offered, and however much of it.
    for offered in [1, 10, 100_000] {
        assert_eq!(far.try_write(&said[taken..taken + offered]).unwrap(), None);
    }
    let parts = [IoSlice::new(&said[taken..taken + 3]), IoSlice::new(&said[taken + 3..taken + 9])];
    assert_eq!(far.try_write_parts(&parts).unwrap(), None);
    // What was encrypted is told to be taken in as small pieces as it is offered in.
    let writing = async {
        let mut left = &said[taken..];
        for offered in [1, 2, 3] {
            let mut part = &left[..offered];
            while !part.is_empty() {
                let written = far.write(part).await.unwrap();
                part = &part[written..];
            }
            left = &left[offered..];
        }
        far.write_all(left).await.unwrap();
    };
    let (heard, ()) = tokio::join!(read(&near, said.len()), writing);
    assert!(heard[..] == said[..], "what was heard is not what was said");
}

#[tokio::test]
async fn a_reader_with_little_room_loses_nothing() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let (near, far) = pair(&tls, Some(&tls)).await;
    outcome(&near, &far).await.0.unwrap();
    let said: Vec<u8> = (0..500_000u32).map(|place| (place % 251) as u8).collect();
    let reading = async {
        let mut heard = Vec::new();
        for bytes_max in [1, 7, 100, 20_000].into_iter().cycle() {
            let mut some = BytesMut::with_capacity(bytes_max);
            let read = near.read_at_most(&mut some, bytes_max).await.unwrap();
            assert!(0 < read && read == some.len() && read <= bytes_max, "{read} of {bytes_max}");
            heard.extend_from_slice(&some);
            if heard.len() == said.len() {
                return heard;
            }
        }
        unreachable!("the cycle has no end")
    };
    let both = async { tokio::join!(reading, far.write_all(&said)) };
    let (heard, written) = tokio::time::timeout(LIMIT, both).await.expect("in time");
    written.unwrap();
    assert!(heard == said, "what was heard is not what was said");
}

#[tokio::test]
async fn an_end_is_an_end_with_or_without_a_word() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    for says_so in [true, false] {
        let (near, far) = pair(&tls, Some(&tls)).await;
        outcome(&near, &far).await.0.unwrap();
        far.write_all(b"the last").await.unwrap();
        if says_so {
            far.shut_down_write();
            // The other direction stays.
            near.write_all(b"an answer").await.unwrap();
            assert_eq!(read(&far, 9).await, b"an answer"[..]);
        } else {
            let Stream::Os(OsStream::Tls(far)) = &far else { panic!("over TLS") };
            rustix::net::shutdown(far.socket(), rustix::net::Shutdown::Write).unwrap();
        }
        let mut heard = read(&near, 8).await;
        assert_eq!(heard, b"the last"[..], "said so: {says_so}");
        assert_eq!(near.read(&mut heard).await.unwrap(), 0, "said so: {says_so}");
    }
}

#[tokio::test]
async fn a_node_is_known_by_a_certificate_of_the_ca_and_by_nothing_less() {
    let (directory, authority, tls) = node(ClientAuth::No);
    let stranger = Authority::new(directory.path(), "stranger");
    let own = authority.sign("other");
    let foreign = stranger.sign("foreign");
    let elsewhere = authority.sign_for("elsewhere", &["10.0.0.1", "example.org"], 1);
    let node_of = |own: &Signed| Tls::for_node(&files(&authority.ca, Some(own)), ClientAuth::No).unwrap();
    let (near, far) = pair(&tls, Some(&node_of(&own))).await;
    assert_eq!(outcome(&near, &far).await, (Ok(Security::Tls { is_node: true }), Ok(())));
    // Another CA's.
    let (near, far) = pair(&tls, Some(&node_of(&foreign))).await;
    let not_ours = "the other side's certificate is not of the CA in --tls-ca".to_owned();
    let told = "this side's certificate is not of the CA of the other side".to_owned();
    assert_eq!(outcome(&near, &far).await, (Err(not_ours.clone()), Err(told)));
    // A master that is not of the CA is not talked to.
    let (near, far) = pair(&node_of(&foreign), Some(&tls)).await;
    assert_eq!(outcome(&near, &far).await.1, Err(not_ours));
    // Nor one whose certificate is for another host.
    let (near, far) = pair(&node_of(&elsewhere), Some(&tls)).await;
    let other_host = "the other side's certificate does not name the host of this address".to_owned();
    assert_eq!(outcome(&near, &far).await.1, Err(other_host));
}

#[tokio::test]
async fn clients_show_certificates_as_it_is_set() {
    for (auth, without, with_foreign) in
        [(ClientAuth::No, true, true), (ClientAuth::Optional, true, false), (ClientAuth::Yes, false, false)]
    {
        let (directory, authority, tls) = node(auth);
        let own = authority.sign("client");
        let foreign = Authority::new(directory.path(), "stranger").sign("foreign");
        for (shown, is_let_in) in [(None, without), (Some(&own), true), (Some(&foreign), with_foreign)] {
            let client = Tls::for_client(&files(&authority.ca, shown)).unwrap();
            let (near, far) = pair(&tls, Some(&client)).await;
            let (accepted, dialed) = outcome(&near, &far).await;
            assert_eq!(accepted.is_ok(), is_let_in, "{auth:?} {shown:?} {accepted:?}");
            assert_eq!(dialed.is_ok(), is_let_in, "{auth:?} {shown:?} {dialed:?}");
            if is_let_in {
                assert_eq!(accepted, Ok(Security::Tls { is_node: false }));
            } else if shown.is_none() {
                let asked = "the other side asks for a certificate: give --tls-cert and --tls-key";
                assert_eq!(dialed.unwrap_err(), asked);
            }
        }
    }
}

#[tokio::test]
async fn plain_bytes_at_a_port_of_tls_are_handed_through_to_be_refused() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let (listener, address) = listen(&tls).await;
    let near = dial(&format!("plain:{address}"), Some(&tls)).await;
    let (far, _) = listener.accept().await.unwrap();
    near.write_all(b"PING\r\n").await.unwrap();
    assert_eq!(read(&far, 6).await, b"PING\r\n"[..]);
    assert_eq!(far.security(), Security::Missing);
    far.write_all(b"-ERR\r\n").await.unwrap();
    assert_eq!(read(&near, 6).await, b"-ERR\r\n"[..]);
    far.shut_down_write();
    assert_eq!(near.read(&mut BytesMut::new()).await.unwrap(), 0);
    let refused = OsStream::connect(&format!("tls:{address}"), None).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_handshake_in_single_bytes_is_one_and_garbage_is_none() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let (listener, address) = listen(&tls).await;
    // The bytes of a client's first message, one by one.
    let raw = tokio::net::TcpStream::connect(&address).await.unwrap();
    raw.set_nodelay(true).unwrap();
    let (far, _) = listener.accept().await.unwrap();
    let mut connection =
        ClientConnection::new(Arc::clone(&tls.material().dial), ServerName::try_from("127.0.0.1").unwrap())
            .unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let reading = async { far.read(&mut BytesMut::new()).await };
    let writing = async {
        for byte in hello.chunks(1) {
            raw.writable().await.unwrap();
            raw.try_write(byte).unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = BytesMut::with_capacity(16 * 1024);
        raw.readable().await.unwrap();
        while raw.try_read_buf(&mut answer).unwrap_or(0) == 0 {
            raw.readable().await.unwrap();
        }
        // A record of a handshake: its hello. Then nonsense.
        assert_eq!(answer[0], 0x16);
        raw.try_write(&[0x17, 3, 3, 0, 40]).unwrap();
        raw.try_write(&[7; 40]).unwrap();
    };
    let (read, ()) = tokio::time::timeout(LIMIT, async { tokio::join!(reading, writing) }).await.unwrap();
    let error = read.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    // It stays so.
    assert!(far.read(&mut BytesMut::new()).await.is_err());
    assert!(far.try_write(b"more").is_err());
}

#[tokio::test]
async fn certificates_are_read_anew_for_new_connections_and_bad_ones_change_nothing() {
    let (_directory, authority, tls) = node(ClientAuth::Yes);
    let (near, far) = pair(&tls, Some(&tls)).await;
    outcome(&near, &far).await.0.unwrap();
    let before = tls.expires();
    authority.sign_for("node", &["127.0.0.1"], 20);
    assert_eq!(tls.expires(), before, "nobody has asked for it");
    tls.read_again().await.unwrap();
    assert!(tls.expires() < before, "{:?}", tls.expires());
    assert_eq!(tls.expires_within(), None);
    let last = authority.sign_for("node", &["127.0.0.1"], 13);
    tls.read_again().await.unwrap();
    assert!(tls.expires_within().is_some_and(|left| left <= Duration::from_secs(13 * 24 * 3600)));
    // A connection that stood goes on, and a new one has the new certificate.
    near.write_all(b"still").await.unwrap();
    assert_eq!(read(&far, 5).await, b"still"[..]);
    let (near, far) = pair(&tls, Some(&tls)).await;
    assert_eq!(outcome(&near, &far).await, (Ok(Security::Tls { is_node: true }), Ok(())));
    std::fs::write(&last.cert, "no certificate").unwrap();
    let wrong = tls.read_again().await.unwrap_err();
    assert_eq!(wrong, format!("--tls-cert {}: it has no certificate in PEM", last.cert.display()));
    let (near, far) = pair(&tls, Some(&tls)).await;
    assert_eq!(outcome(&near, &far).await, (Ok(Security::Tls { is_node: true }), Ok(())));
}

#[tokio::test]
async fn many_short_records_are_read_in_many_turns() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let (near, far) = pair(&tls, Some(&tls)).await;
    outcome(&near, &far).await.0.unwrap();
    let mut said = Vec::new();
    while said.len() < 4000 && far.try_write(&[said.len() as u8]).unwrap() == Some(1) {
        said.push(said.len() as u8);
    }
    assert!(said.len() > 1000, "the system has taken {} records", said.len());
    let reading = read(&near, said.len());
    let mut reading = std::pin::pin!(reading);
    let mut turns = 0;
    let heard = std::future::poll_fn(|context| {
        turns += 1;
        reading.as_mut().poll(context)
    });
    let heard = tokio::time::timeout(LIMIT, heard).await.expect("in time");
    assert!(heard[..] == said[..], "what was heard is not what was said");
    let in_one = 400;
    assert!(turns >= said.len() / in_one, "{} records in {turns} turns", said.len());
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the other side of a socket is elsewhere")]
async fn the_last_word_of_tls_comes_after_all_that_the_system_had_no_room_for() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let (listener, address) = listen(&tls).await;
    let (full, is_full) = std::sync::mpsc::channel();
    let dialing = tls.clone();
    let reader = std::thread::spawn(move || {
        let socket = std::net::TcpStream::connect(&address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut stream = dialing.dial_blocking(socket, [127, 0, 0, 1].into()).unwrap();
        io::Write::write_all(&mut stream, b"hello").unwrap();
        is_full.recv().unwrap();
        let mut heard = Vec::new();
        // An end without the word is an error here.
        let ended = io::Read::read_to_end(&mut stream, &mut heard);
        (heard.len(), ended.map_err(|error| error.kind()))
    });
    let (far, _) = listener.accept().await.unwrap();
    read(&far, 5).await;
    far.show_progress();
    let some = vec![b'x'; 100_000];
    let mut taken = 0;
    while let Some(written) = far.try_write(&some).unwrap() {
        taken += written;
    }
    full.send(()).unwrap();
    tokio::time::timeout(LIMIT, far.end_write()).await.expect("in time").unwrap();
    let (heard, ended) = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    assert_eq!(ended, Ok(heard));
    assert!(heard >= taken, "{heard} of {taken}");
}

/// A node of this certificate that sends these after it.
fn with_chain(authority: &Authority, own: &Signed, chain: &[&Path]) -> Tls {
    let mut text = std::fs::read_to_string(&own.cert).unwrap();
    for certificate in chain {
        text += &std::fs::read_to_string(certificate).unwrap();
    }
    let cert = own.cert.with_extension(format!("{}.chain", chain.len()));
    std::fs::write(&cert, text).unwrap();
    let own = Signed { cert, key: own.key.clone() };
    Tls::for_node(&files(&authority.ca, Some(&own)), ClientAuth::Yes).unwrap()
}

#[tokio::test]
async fn a_chain_that_is_too_long_is_refused_before_it_is_verified() {
    let (_directory, authority, tls) = node(ClientAuth::Yes);
    let first = authority.sign_authority("first", "first");
    let second = first.sign_authority("second", "second");
    let third = second.sign_authority("third", "third");
    let (of_two, of_three) = (second.sign("of two"), third.sign("of three"));
    let long = "the other side's chain of certificates is too long: it may have 2 between its own and the CA's, and \
                16384 bytes";
    // Whoever dials and whoever is dialed. The CA's own and copies do not count.
    for chain in
        [&[&*second.ca, &first.ca][..], &[&*second.ca, &first.ca, &authority.ca, &second.ca, &of_two.cert]]
    {
        let whole = with_chain(&authority, &of_two, chain);
        let (near, far) = pair(&tls, Some(&whole)).await;
        assert_eq!(outcome(&near, &far).await, (Ok(Security::Tls { is_node: true }), Ok(())));
        let (near, far) = pair(&whole, Some(&tls)).await;
        assert_eq!(outcome(&near, &far).await, (Ok(Security::Tls { is_node: true }), Ok(())));
    }
    let too_long = with_chain(&authority, &of_three, &[&third.ca, &second.ca, &first.ca]);
    let (near, far) = pair(&tls, Some(&too_long)).await;
    assert_eq!(outcome(&near, &far).await.0, Err(long.to_owned()));
    let (near, far) = pair(&too_long, Some(&tls)).await;
    assert_eq!(outcome(&near, &far).await.1, Err(long.to_owned()));
    // Nor is all of it kept.
    let certificate = std::fs::metadata(&first.ca).unwrap().len() as usize;
    let endless = with_chain(&authority, &of_two, &vec![&*first.ca; 60_000 / certificate * 4 / 3]);
    let (near, far) = pair(&tls, Some(&endless)).await;
    assert_eq!(outcome(&near, &far).await.0, Err("its handshake is too long".to_owned()));
}

#[tokio::test]
async fn a_chain_of_which_many_paths_could_be_made_is_not_searched() {
    let (directory, authority, tls) = node(ClientAuth::Yes);
    let evil = tempfile::tempdir().unwrap();
    let twin = Authority::new(evil.path(), "ca");
    // All of them have issued each other, by their names.
    let twins = ["one", "two", "three", "four"].map(|file| twin.sign_authority("ca", file));
    let chain: Vec<&Path> = twins.iter().map(|twin| &*twin.ca).collect();
    let (near, far) = pair(&tls, Some(&with_chain(&authority, &twin.sign("evil"), &chain))).await;
    let told = outcome(&near, &far).await.0;
    assert!(told.as_ref().is_err_and(|told| told.contains("is not of the CA")), "{told:?}");
    let no_chain = "the other side's chain of certificates is no chain: one of them is called like another one, or like its issuer";
    let alike = ["a", "b"].map(|file| authority.sign_authority("alike", file));
    let own = alike[0].sign("of alike");
    let (near, far) = pair(&tls, Some(&with_chain(&authority, &own, &[&alike[0].ca, &alike[1].ca]))).await;
    assert_eq!(outcome(&near, &far).await.0, Err(no_chain.to_owned()));
    let itself = Authority::new(directory.path(), "itself");
    let (near, far) =
        pair(&tls, Some(&with_chain(&authority, &itself.sign("of itself"), &[&itself.ca]))).await;
    assert_eq!(outcome(&near, &far).await.0, Err(no_chain.to_owned()));
}

#[tokio::test]
async fn whatever_bytes_come_a_connection_ends_in_time() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let (listener, address) = listen(&tls).await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..200 {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut connection = ClientConnection::new(Arc::clone(&tls.material().dial), name).unwrap();
        let mut said = Vec::new();
        connection.write_tls(&mut said).unwrap();
        match round % 4 {
            0 => (0..1 + random(3)).for_each(|_| {
                let at = random(said.len());
                said[at] ^= 1 << random(8);
            }),
            1 => {
                said.truncate(random(said.len()));
                said.extend((0..random(5000)).map(|_| random(256) as u8));
            }
            2 => {
                said.clear();
                for _ in 0..1 + random(200) {
                    let length = random(300);
                    let kind = 0x14 + random(6) as u8;
                    said.extend([kind, 3, random(5) as u8, (length >> 8) as u8, length as u8]);
                    said.extend((0..length).map(|_| random(256) as u8));
                }
            }
            _ => said = said.repeat(1 + random(20)),
        }
        let near = dial(&format!("plain:{address}"), Some(&tls)).await;
        let (far, _) = listener.accept().await.unwrap();
        let saying = async {
            // It may have been cut off.
            let _ = near.write_all(&said).await;
            near.shut_down_write();
        };
        let hearing = async {
            let mut heard = BytesMut::new();
            while far.read(&mut heard).await.is_ok_and(|read| read > 0) {
                heard.clear();
            }
        };
        let both = async { tokio::join!(saying, hearing) };
        tokio::time::timeout(LIMIT, both).await.unwrap_or_else(|_| panic!("round {round} does not end"));
    }
}

/// The handshake of who dials has fewer. A damaged one may leave both sides waiting: that is for the time limit.
const HANDSHAKE_BYTES: usize = 4000;

/// What becomes of the bytes that go one way.
#[derive(Clone, Copy, Debug)]
enum OnTheWay {
    Whole,
    /// One bit of this byte is another one.
    Damaged(usize),
    /// Nothing from this byte on arrives.
    Cut(usize),
}

/// Passes on what comes, in pieces of random lengths, until its end.
async fn pass_on(
    from: &tokio::net::TcpStream,
    to: &tokio::net::TcpStream,
    fate: OnTheWay,
    mut random: impl FnMut(usize) -> usize,
) {
    let (mut passed, mut piece) = (0, BytesMut::new());
    'passing: loop {
        from.readable().await.unwrap();
        match from.try_read_buf(&mut piece) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        }
        if let OnTheWay::Damaged(at) = fate {
            if let Some(byte) = at.checked_sub(passed).and_then(|at| piece.get_mut(at)) {
                *byte ^= 1 << random(8);
            }
        }
        if let OnTheWay::Cut(at) = fate {
            piece.truncate(at.saturating_sub(passed));
        }
        while !piece.is_empty() {
            to.writable().await.unwrap();
            let most = piece.len().min(1 + random(700));
            match to.try_write(&piece[..most]) {
                Ok(written) => {
                    passed += written;
                    drop(piece.split_to(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break 'passing,
            }
        }
        if matches!(fate, OnTheWay::Cut(at) if passed >= at) {
            break;
        }
    }
    let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
}

#[tokio::test]
async fn whatever_happens_on_the_way_what_is_read_is_the_beginning_of_what_was_said() {
    let (_directory, _authority, tls) = node(ClientAuth::Yes);
    let mut state: u64 = 7;
    let mut draw = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut shortened = 0;
    for round in 0..90 {
        let (listener, address) = listen(&tls).await;
        let way = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let said: Vec<u8> = (0..1 + draw(60_000)).map(|place| (place % 251) as u8).collect();
        let at = draw(said.len());
        let fate = [OnTheWay::Whole, OnTheWay::Damaged(HANDSHAKE_BYTES + at), OnTheWay::Cut(at)][round % 3];
        let near = dial(&way.local_addr().unwrap().to_string(), Some(&tls)).await;
        let (victim, _) = way.accept().await.unwrap();
        let there = tokio::net::TcpStream::connect(&address).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let (most, bytes_max) = (1 + draw(9_000), 1 + draw(30_000));
        let saying = async {
            for piece in said.chunks(most) {
                if near.write_all(piece).await.is_err() {
                    break;
                }
            }
            near.shut_down_write();
        };
        let hearing = async {
            let mut heard = BytesMut::new();
            while far.read_at_most(&mut heard, bytes_max).await.is_ok_and(|read| read > 0) {}
            // Whoever has heard the end, or an error, ends too.
            far.shut_down_write();
            heard
        };
        let mut there_lengths = draw(usize::MAX >> 1) as u64;
        let lengths = move |below: usize| {
            there_lengths = there_lengths.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (there_lengths >> 33) as usize % below
        };
        let passing = async {
            tokio::join!(
                pass_on(&victim, &there, fate, lengths),
                pass_on(&there, &victim, OnTheWay::Whole, |below| below - 1)
            )
        };
        let all = async { tokio::join!(saying, hearing, passing).1 };
        let heard =
            tokio::time::timeout(LIMIT, all).await.unwrap_or_else(|_| panic!("{fate:?} does not end"));
        assert!(said.starts_with(&heard), "{fate:?} of {} bytes: something else was heard", said.len());
        match fate {
            OnTheWay::Whole => assert_eq!(heard.len(), said.len(), "all of it arrives"),
            OnTheWay::Cut(at) => assert!(heard.len() <= at, "{} bytes of {at}", heard.len()),
            OnTheWay::Damaged(_) => shortened += usize::from(heard.len() < said.len()),
        }
    }
    assert!(shortened >= 10, "of 30 damaged connections {shortened} have ended early");
}

#[tokio::test]
async fn a_certificate_that_was_issued_for_a_client_makes_no_node() {
    let (_directory, authority, tls) = node(ClientAuth::Yes);
    let files = files(&authority.ca, Some(&authority.sign_client("client")));
    let client = Tls::for_client(&files).unwrap();
    let (near, far) = pair(&tls, Some(&client)).await;
    assert_eq!(outcome(&near, &far).await, (Ok(Security::Tls { is_node: false }), Ok(())));
    let as_node = Tls::for_node(&files, ClientAuth::Yes).unwrap();
    let (near, far) = pair(&tls, Some(&as_node)).await;
    let (accepted, dialed) = outcome(&near, &far).await;
    let why = "certificate is for another purpose";
    assert!(accepted.as_ref().is_err_and(|told| told.contains(why)), "{accepted:?}");
    assert!(dialed.as_ref().is_err_and(|told| told.contains(why)), "{dialed:?}");
    // Nor is it dialed as one.
    let (near, far) = pair(&as_node, Some(&tls)).await;
    let dialed = outcome(&near, &far).await.1;
    assert!(dialed.as_ref().is_err_and(|told| told.contains(why)), "{dialed:?}");
}

#[test]
fn a_file_of_no_use_is_named_with_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ca");
    let (own, other) = (authority.sign("own"), authority.sign("other"));
    let expired = authority.sign_for("expired", &["localhost"], -1);
    let good = files(&authority.ca, Some(&own));
    let why = |files: &TlsFiles| Tls::for_node(files, ClientAuth::Yes).unwrap_err().to_string();
    let mixed = TlsFiles { key: Some(other.key.clone()), ..good.clone() };
    let not_its =
        format!("--tls-key {}: it is not the key of the certificate in --tls-cert", other.key.display());
    assert_eq!(why(&mixed), not_its);
    let swapped = TlsFiles { cert: Some(own.key.clone()), ..good.clone() };
    assert_eq!(why(&swapped), format!("--tls-cert {}: it has no certificate in PEM", own.key.display()));
    let no_key = TlsFiles { key: Some(own.cert.clone()), ..good.clone() };
    let said = why(&no_key);
    assert!(said.ends_with("it has no private key in PEM that is not encrypted"), "{said}");
    let late = why(&files(&authority.ca, Some(&expired)));
    assert!(late.contains("expired.crt: it has expired, on 20"), "{late}");
    let gone = why(&TlsFiles { ca: Some(directory.path().join("none")), ..good.clone() });
    assert!(gone.starts_with("--tls-ca ") && gone.contains("No such file"), "{gone}");
    for (files, missing) in [
        (TlsFiles { cert: None, ..good.clone() }, "--tls-cert is missing"),
        (TlsFiles { key: None, ..good.clone() }, "--tls-key is missing"),
        (TlsFiles { ca: None, ..good.clone() }, "--tls-ca is missing"),
    ] {
        assert!(why(&files).starts_with(missing), "{}", why(&files));
    }
    let pipe = directory.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    for (files, flag) in [
        (TlsFiles { cert: Some(pipe.clone()), ..good.clone() }, "--tls-cert"),
        (TlsFiles { key: Some(pipe.clone()), ..good.clone() }, "--tls-key"),
        (TlsFiles { ca: Some(pipe.clone()), ..good.clone() }, "--tls-ca"),
    ] {
        assert_eq!(why(&files), format!("{flag} {}: it is not a regular file", pipe.display()));
    }
    let tls = Tls::for_node(&good, ClientAuth::Yes).unwrap();
    let shown = format!("{tls:?}");
    assert!(!shown.contains("PRIVATE") && shown.contains("own.key"), "{shown}");
}
