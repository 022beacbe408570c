//! Tests of the RESP protocol, byte by byte: the answers of Redis, our own ones, and bad input.
//!
//! In the tables `^` stands for CR LF, so that an answer reads as one line. The bytes of `AS_REDIS`, `INLINE`
//! and `PROTOCOL_ERRORS` were taken from redis-server 7.0.15 over a plain socket.

#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use dsm_protocol::command::{
    Command, ComparedChange, Comparison, Condition, Consequence, ErrorWord, Excerpt, ExpiryCondition,
    KeyTrait, Lifetime, MembersOrder, Replies, Reply, TimeForm, Transaction, Update,
};
use dsm_protocol::ids::{Epoch, Seq, SlaveId, UnixMillis, Version};
use dsm_protocol::info::{RedisRole, Sections};
use dsm_protocol::resp::{
    encode_reply, Args, Conversation, Handling, Limits, Parsed, Parser, Protocol, ProtocolError, ServerFacts,
    Shape, CLIENT_ATTRIBUTE_MAX, REDIS_VERSION,
};
use dsm_protocol::serving_view::{OtherMaster, ServingView, SharedView};
use proptest::prelude::*;
use std::rc::Rc;
use std::time::Duration;

const VALUE_MAX: usize = 16 * 1024 * 1024;

fn facts() -> ServerFacts {
    ServerFacts {
        limits: Limits::for_values(VALUE_MAX),
        clients_max: 10_000,
        idle_timeout: Duration::ZERO,
        fsync: "always",
    }
}

/// Connection 7, after `HELLO 3` or before it.
fn conversation(protocol: Protocol) -> Conversation {
    let mut conversation =
        Conversation::new(7, facts(), Rc::default()).with_addresses("10.0.0.1:5", "10.0.0.2:12345");
    if protocol == Protocol::Resp3 {
        let action = conversation.handle(words("HELLO 3"), &mut Vec::new());
        assert_eq!(action, Handling::Answered);
    }
    conversation
}

fn words(request: &str) -> Args {
    request.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
}

/// The request as a client sends it.
fn array<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.as_ref().len()).as_bytes());
        bytes.extend_from_slice(word.as_ref());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Bytes with CR LF as `^`, to compare with the tables.
fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace("\r\n", "^")
}

/// Handles a request that the connection answers by itself.
fn answer(conversation: &mut Conversation, args: Args) -> String {
    let mut out = Vec::new();
    let handling = conversation.handle(args, &mut out);
    assert!(
        matches!(handling, Handling::Answered | Handling::AnsweredLate(_)),
        "{handling:?} {}",
        show(&out)
    );
    show(&out)
}

/// Parses and handles all of `bytes`, without a store; gives the answers, and whether the connection is to be closed.
fn answers_to(bytes: &[u8]) -> (String, bool) {
    let mut parser = Parser::new(facts().limits);
    let mut conversation = conversation(Protocol::Resp2);
    let mut buffer = BytesMut::from(bytes);
    let mut out = Vec::new();
    loop {
        match parser.next(&mut buffer) {
            Ok(None) => return (show(&out), false),
            Ok(Some(args)) => match conversation.handle(args, &mut out) {
                Handling::Answered => {}
                Handling::AnsweredAndClose | Handling::Close => return (show(&out), true),
                Handling::ListUsers(mut listing) => while !listing.write_on(1, &mut out) {},
                Handling::DrawPassword(password) => password.write(|| 7, &mut out),
                Handling::AnsweredLate(_) | Handling::LoadUsers => panic!("anybody may do everything"),
                Handling::Ask { command, .. } | Handling::Watch { command } => {
                    panic!("{command:?} asks the store")
                }
            },
            Err(error) => {
                error.encode(&mut out);
                return (show(&out), true);
            }
        }
    }
}

/// In the third column of a table: the same in RESP3.
const SAME: &str = "";

fn check_table(table: &[(&str, &str, &str)]) {
    let version = format!("${}^{REDIS_VERSION}", REDIS_VERSION.len());
    for (request, resp2, resp3) in table {
        let resp3 = if *resp3 == SAME { resp2 } else { resp3 };
        for (protocol, expected) in [(Protocol::Resp2, resp2), (Protocol::Resp3, resp3)] {
            let answer = answer(&mut conversation(protocol), words(request));
            assert_eq!(answer, expected.replace("@VERSION", &version), "{request} in {protocol:?}");
        }
    }
}

#[test]
fn answers_are_those_of_redis() {
    check_table(AS_REDIS);
}

#[test]
fn answers_are_those_of_this_server() {
    check_table(OUR_OWN);
}

#[test]
fn a_change_of_the_members_becomes_a_command_and_what_is_none_an_error() {
    let asked = |request: &str| {
        let mut out = Vec::new();
        (conversation(Protocol::Resp2).handle(words(request), &mut out), show(&out))
    };
    let order = MembersOrder::from_words(b"REPLACE", &[b"3", b"d:1"]).unwrap();
    let command = Command::ChangeMembers { order };
    assert_eq!(asked("members replace 3 d:1").0, Handling::Ask { command, shape: Shape::Plain });
    for request in ["MEMBERS LIST x", "MEMBERS ADD a,b", "MEMBERS REPLACE 3", "MEMBERS REMOVE 3 4"] {
        let (handling, said) = asked(request);
        assert!(!matches!(handling, Handling::Ask { .. }) && said.starts_with("-ERR "), "{request}: {said}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of requests")]
fn requests_for_the_store_become_commands() {
    let key = |key: &'static str| Bytes::from_static(key.as_bytes());
    let get = || Command::Get { key: key("k") };
    let put = || Command::Put { key: key("k"), value: key("v") };
    let keys = || vec![key("a"), key("b"), key("a")];
    let update = |update| Command::Update { key: key("k"), update };
    let set_for = |when, life| update(Update::Set { value: key("v"), when, life });
    let set = |when| set_for(when, Lifetime::Endless);
    let swap = |when| Command::Swap { key: key("k"), value: key("v"), when, life: Lifetime::Endless };
    let scan = |cursor, pattern: Option<&'static str>, count, strings| {
        let pattern = pattern.map(key);
        Command::Scan { cursor, pattern, count, strings }
    };
    let compare =
        |when, makes| Command::Compare { key: key("k"), change: Box::new(ComparedChange { when, makes }) };
    let set_to = |life, answers_old| Consequence::Set { value: key("v"), life, answers_old };
    let examine = |what| Command::Examine { key: key("k"), what };
    let server = || Shape::Info(Sections::named([&b"server"[..]]));
    for (request, command, shape) in [
        ("GET k", get(), Shape::Plain),
        ("gEt k", get(), Shape::Plain),
        ("READ k", get(), Shape::Plain),
        ("SET k v", put(), Shape::Plain),
        ("write k v", put(), Shape::Plain),
        ("DEL a b a", Command::Delete { keys: keys() }, Shape::Plain),
        ("UNLINK a b a", Command::Delete { keys: keys() }, Shape::Plain),
        ("EXISTS a b a", Command::Exists { keys: keys() }, Shape::Plain),
        ("MGET a b a", Command::GetMany { keys: keys() }, Shape::Plain),
        (
            "MSET a 1 b 2",
            Command::PutMany { pairs: vec![(key("a"), key("1")), (key("b"), key("2"))] },
            Shape::Plain,
        ),
        ("SET k v NX", set(Condition::IfAbsent), Shape::Plain),
        ("SET k v KEEPTTL xx", set_for(Condition::IfPresent, Lifetime::Same), Shape::Plain),
        ("SET k v keepttl", set_for(Condition::Always, Lifetime::Same), Shape::Plain),
        ("SETNX k v", set(Condition::IfAbsent), Shape::Excerpt(Excerpt::WhetherDone)),
        ("SET k v GET", swap(Condition::Always), Shape::Plain),
        ("SET k v get NX", swap(Condition::IfAbsent), Shape::Plain),
        ("GETSET k v", swap(Condition::Always), Shape::Plain),
        ("GETDEL k", Command::Take { key: key("k") }, Shape::Plain),
        ("INCR k", update(Update::Add { number: 1 }), Shape::Plain),
        ("DECRBY k -7", update(Update::Add { number: 7 }), Shape::Plain),
        ("APPEND k v", update(Update::Append { tail: key("v") }), Shape::Plain),
        ("SETRANGE k 5 v", update(Update::SetRange { offset: 5, bytes: key("v") }), Shape::Plain),
        (
            "MSETNX a 1 b 2",
            Command::PutManyIfNone { pairs: vec![(key("a"), key("1")), (key("b"), key("2"))] },
            Shape::Plain,
        ),
        ("DBSIZE", Command::KeyCount, Shape::Plain),
        ("SCAN 0", scan(0, None, 10, true), Shape::Plain),
        ("scan 77 match a* count 5 TYPE string", scan(77, Some("a*"), 5, true), Shape::Plain),
        ("SCAN 0 COUNT 99999999999 MATCH x MATCH * TYPE list", scan(0, None, u32::MAX, false), Shape::Plain),
        ("KEYS *", Command::Keys { pattern: key("*") }, Shape::Plain),
        ("RANDOMKEY", Command::RandomKey, Shape::Plain),
        ("FLUSHALL", Command::DeleteAll, Shape::Plain),
        ("flushall async", Command::DeleteAll, Shape::Plain),
        ("FLUSHDB SYNC", Command::DeleteAll, Shape::Plain),
        ("TOUCH a b a", Command::Exists { keys: keys() }, Shape::Plain),
        ("TYPE k", Command::Exists { keys: vec![key("k")] }, Shape::Excerpt(Excerpt::Type)),
        ("OBJECT ENCODING k", examine(KeyTrait::Encoding), Shape::Plain),
        ("object refcount k", examine(KeyTrait::References), Shape::Plain),
        ("OBJECT IDLETIME k", examine(KeyTrait::IdleTime), Shape::Plain),
        ("OBJECT FREQ k", examine(KeyTrait::Frequency), Shape::Plain),
        ("MEMORY USAGE k", examine(KeyTrait::MemoryUsage), Shape::Plain),
        ("MEMORY USAGE k SAMPLES 0 samples 7", examine(KeyTrait::MemoryUsage), Shape::Plain),
        (
            "SET k v IFEQ w",
            compare(Comparison::Equal(key("w")), set_to(Lifetime::Endless, false)),
            Shape::Plain,
        ),
        (
            "SET k v get ifne w EX 3",
            compare(Comparison::Different(key("w")), set_to(Lifetime::For(3000), true)),
            Shape::Plain,
        ),
        ("DELEX k", Command::Delete { keys: vec![key("k")] }, Shape::Plain),
        ("DELEX k IFEQ v", compare(Comparison::Equal(key("v")), Consequence::Delete), Shape::Plain),
        ("delex k ifne v", compare(Comparison::Different(key("v")), Consequence::Delete), Shape::Plain),
        ("DELIFEQ k v", compare(Comparison::Equal(key("v")), Consequence::Delete), Shape::Plain),
        ("DSM.GETV k", Command::GetVersioned { key: key("k") }, Shape::Plain),
        (
            "dsm.setv k v 0.0",
            compare(Comparison::Version(None), set_to(Lifetime::Endless, false)),
            Shape::Plain,
        ),
        (
            "DSM.SETV k v 3.17 GET PX 5",
            compare(Comparison::Version(Some(Version::new(3, 17))), set_to(Lifetime::For(5), true)),
            Shape::Plain,
        ),
        (
            "DSM.DELV k 3.17",
            compare(Comparison::Version(Some(Version::new(3, 17))), Consequence::Delete),
            Shape::Plain,
        ),
        ("STRLEN k", Command::ValueLength { key: key("k") }, Shape::Plain),
        ("GETRANGE k 0 -1", get(), Shape::Excerpt(Excerpt::Range { first: 0, last: -1 })),
        ("SUBSTR k -7 3", get(), Shape::Excerpt(Excerpt::Range { first: -7, last: 3 })),
        ("INFO", Command::Status, Shape::Info(Sections::ALL)),
        ("INFO Server nothing", Command::Status, server()),
        ("STATUS server", Command::Status, server()),
        ("FAILOVER", Command::Failover, Shape::Plain),
        ("remove-slave slave-2", Command::RemoveSlave { id: SlaveId::new("slave-2").unwrap() }, Shape::Plain),
    ] {
        let mut out = Vec::new();
        let action = conversation(Protocol::Resp2).handle(words(request), &mut out);
        assert_eq!(action, Handling::Ask { command, shape }, "{request}");
        assert!(out.is_empty(), "{request} answered {}", show(&out));
    }
}

#[test]
fn requests_on_times_of_expiry_become_commands() {
    let key = |key: &'static str| Bytes::from_static(key.as_bytes());
    let update = |update| Command::Update { key: key("k"), update };
    let set_for = |when, life| update(Update::Set { value: key("v"), when, life });
    let expire = |life| update(Update::Expire { life, when: ExpiryCondition::default() });
    let until = |time| Lifetime::Until(UnixMillis(time));
    let renew = |life| Command::Renew { key: key("k"), life };
    let time = |form| Command::TimeToLive { key: key("k"), form };
    for (request, command, shape) in [
        ("SET k v EX 10", set_for(Condition::Always, Lifetime::For(10_000)), Shape::Plain),
        ("SET k v nx px 10 PX 11", set_for(Condition::IfAbsent, Lifetime::For(11)), Shape::Plain),
        ("SET k v EXAT 10 XX", set_for(Condition::IfPresent, until(10_000)), Shape::Plain),
        ("SET k v PXAT 10", set_for(Condition::Always, until(10)), Shape::Plain),
        ("SETEX k 3 v", set_for(Condition::Always, Lifetime::For(3000)), Shape::Plain),
        ("PSETEX k 3 v", set_for(Condition::Always, Lifetime::For(3)), Shape::Plain),
        ("EXPIRE k 3", expire(Lifetime::For(3000)), Shape::Plain),
        ("EXPIRE k -3", expire(Lifetime::For(0)), Shape::Plain),
        ("PEXPIRE k 3", expire(Lifetime::For(3)), Shape::Plain),
        ("EXPIREAT k 3", expire(until(3000)), Shape::Plain),
        ("PEXPIREAT k -3", expire(until(0)), Shape::Plain),
        (
            "PEXPIREAT k 3 xx LT",
            update(Update::Expire {
                life: until(3),
                when: ExpiryCondition { if_some: true, if_earlier: true, ..ExpiryCondition::default() },
            }),
            Shape::Plain,
        ),
        ("PERSIST k", expire(Lifetime::Endless), Shape::Plain),
        ("GETEX k", renew(Lifetime::Same), Shape::Plain),
        ("GETEX k EX 3", renew(Lifetime::For(3000)), Shape::Plain),
        ("GETEX k pxat 3", renew(until(3)), Shape::Plain),
        ("GETEX k PERSIST", renew(Lifetime::Endless), Shape::Plain),
        ("TTL k", time(TimeForm::Seconds), Shape::Plain),
        ("PTTL k", time(TimeForm::Millis), Shape::Plain),
        ("EXPIRETIME k", time(TimeForm::UnixSeconds), Shape::Plain),
        ("PEXPIRETIME k", time(TimeForm::UnixMillis), Shape::Plain),
    ] {
        let mut out = Vec::new();
        let action = conversation(Protocol::Resp2).handle(words(request), &mut out);
        assert_eq!(action, Handling::Ask { command, shape }, "{request}");
        assert!(out.is_empty(), "{request} answered {}", show(&out));
    }
}

#[test]
fn replies_are_encoded_as_redis_does() {
    let value = |value: &'static str| Bytes::from_static(value.as_bytes());
    let text = || Reply::Text("# Server\nversion:1\n\n# Keyspace\nkeys:2\n".to_owned());
    let info = |name: &'static str| Shape::Info(Sections::named([name.as_bytes()]));
    let range = |first, last| Shape::Excerpt(Excerpt::Range { first, last });
    for (shape, reply, resp2, resp3) in [
        (Shape::Plain, Reply::Done, "+OK^", SAME),
        (Shape::Plain, Reply::Value(value("v")), "$1^v^", SAME),
        (Shape::Plain, Reply::Value(value("")), "$0^^", SAME),
        (Shape::Plain, Reply::Value(value("NOT_FOUND")), "$9^NOT_FOUND^", SAME),
        (Shape::Plain, Reply::NotFound, "$-1^", "_^"),
        (Shape::Plain, Reply::Values(vec![]), "*0^", SAME),
        (Shape::Excerpt(Excerpt::Type), Reply::Count(1), "+string^", SAME),
        (Shape::Excerpt(Excerpt::Type), Reply::Count(0), "+none^", SAME),
        (Shape::Excerpt(Excerpt::Type), Reply::error(ErrorWord::Busy, "x"), "-BUSY x^", SAME),
        (range(1, 2), Reply::Value(value("abcde")), "$2^bc^", SAME),
        (range(1, -1), Reply::Value(value("abcde")), "$4^bcde^", SAME),
        (range(0, 0), Reply::NotFound, "$0^^", SAME),
        (range(0, 0), Reply::error(ErrorWord::Busy, "x"), "-BUSY x^", SAME),
        (Shape::Plain, Reply::Values(vec![Some(value("1")), None]), "*2^$1^1^$-1^", "*2^$1^1^_^"),
        (Shape::Plain, Reply::Count(0), ":0^", SAME),
        (Shape::Plain, Reply::Page { next: 0, keys: vec![] }, "*2^$1^0^*0^", SAME),
        (Shape::Plain, Reply::Page { next: 17, keys: vec![value("a")] }, "*2^$2^17^*1^$1^a^", SAME),
        (Shape::Plain, Reply::Integer(i64::MIN), ":-9223372036854775808^", SAME),
        (Shape::Excerpt(Excerpt::WhetherDone), Reply::Done, ":1^", SAME),
        (Shape::Excerpt(Excerpt::WhetherDone), Reply::NotFound, ":0^", SAME),
        (Shape::Excerpt(Excerpt::WhetherDone), Reply::error(ErrorWord::Busy, "x"), "-BUSY x^", SAME),
        (Shape::Plain, Reply::Count(u64::MAX), ":18446744073709551615^", SAME),
        (Shape::Plain, Reply::Text("a".to_owned()), "$1^a^", SAME),
        (info("keyspace"), text(), "$20^# Keyspace^keys:2^^", "=24^txt:# Keyspace^keys:2^^"),
        (info("nothing"), text(), "$0^^", "=4^txt:^"),
        (
            Shape::Info(Sections::ALL),
            text(),
            "$43^# Server^version:1^^# Keyspace^keys:2^^",
            "=47^txt:# Server^version:1^^# Keyspace^keys:2^^",
        ),
        (Shape::Plain, Reply::error(ErrorWord::Bad, "no"), "-ERR no^", SAME),
        (Shape::Plain, Reply::error(ErrorWord::Standby, "10.0.0.1:5"), "-STANDBY 10.0.0.1:5^", SAME),
        (Shape::Plain, Reply::error(ErrorWord::Loading, ""), "-LOADING^", SAME),
        (Shape::Plain, Reply::error(ErrorWord::OutOfMemory, "a\r\nb\nc\r\n"), "-OOM a  b c^", SAME),
        (Shape::Info(Sections::ALL), Reply::error(ErrorWord::Unknown, "x"), "-UNKNOWN x^", SAME),
    ] {
        let resp3 = if resp3 == SAME { resp2 } else { resp3 };
        for (protocol, expected) in [(Protocol::Resp2, resp2), (Protocol::Resp3, resp3)] {
            let mut out = b"before".to_vec();
            encode_reply(protocol, &shape, &reply, &mut out);
            assert_eq!(show(&out), format!("before{expected}"), "{reply:?} in {protocol:?}");
        }
    }
}

#[test]
fn client_info_tells_what_the_client_said() {
    let mut talk = conversation(Protocol::Resp2);
    for request in ["CLIENT SETNAME me", "CLIENT SETINFO LIB-NAME lib", "CLIENT SETINFO lib-ver 1.2"] {
        assert_eq!(answer(&mut talk, words(request)), "+OK^");
    }
    talk = talk.with_descriptor(9);
    talk.set_age(61);
    let line = "id=7 addr=10.0.0.1:5 laddr=10.0.0.2:12345 fd=9 name=me age=61 idle=0 flags=N db=0 sub=0 psub=0 ssub=0 \
                multi=-1 events=r cmd=client|info user=default redir=-1 resp=2 lib-name=lib lib-ver=1.2\n";
    assert_eq!(answer(&mut talk, words("CLIENT INFO")), format!("${}^{line}^", line.len()));
    answer(&mut talk, words("HELLO 3"));
    let line = line.replace("resp=2", "resp=3");
    let verbatim = |line: &str| format!("={}^txt:{line}^", line.len() + 4);
    assert_eq!(answer(&mut talk, words("CLIENT INFO")), verbatim(&line));
    let line = line.replace("client|info", "client|list");
    assert_eq!(answer(&mut talk, words("CLIENT LIST")), verbatim(&line));
    assert_eq!(answer(&mut talk, words("CLIENT LIST TYPE normal")), verbatim(&line));
    assert_eq!(answer(&mut talk, words("CLIENT LIST ID 3 7")), verbatim(&line));
    assert_eq!(answer(&mut talk, words("CLIENT LIST ID 3")), "=4^txt:^");
}

/// What a master that has this role, serves or is linked tells, with another one at `[::1]:7`.
fn role_told(role: RedisRole, master: Option<&str>, is_served: bool, is_connected: bool) -> [String; 3] {
    let other = OtherMaster { address: "[::1]:7".to_owned(), is_connected, seq: Seq(8) };
    let view = SharedView::default();
    let mut talk = conversation(Protocol::Resp2).with_view(view.clone());
    view.set(ServingView {
        role,
        own: "10.0.0.2:12345".to_owned(),
        master: master.map(str::to_owned),
        is_served,
        others: vec![other],
        seq: Seq(9),
        epoch: Epoch(3),
    });
    let hello = answer(&mut talk, words("HELLO"));
    let told = hello.split_once("^$4^role^").unwrap().1.split('^').nth(1).unwrap().to_owned();
    let resp2 = answer(&mut talk, words("ROLE"));
    answer(&mut talk, words("HELLO 3"));
    [told, resp2, answer(&mut talk, words("ROLE"))]
}

#[test]
fn role_names_who_follows_a_master_and_whom_a_slave_follows() {
    let master = "*3^$6^master^:9^*1^*3^$3^::1^$1^7^$1^8^";
    let serving = role_told(RedisRole::Master, Some("10.0.0.2:12345"), true, true);
    assert_eq!(serving, ["master", master, master]);
    let alone = role_told(RedisRole::Master, None, false, false);
    assert_eq!(alone, ["master", "*3^$6^master^:9^*0^", "*3^$6^master^:9^*0^"]);
    for (master, is_served, is_connected, state) in [
        (Some("[::1]:7"), true, true, "$9^connected"),
        (Some("[::1]:7"), false, true, "$7^connect"),
        (None, false, false, "$7^connect"),
    ] {
        let slave = format!("*5^$5^slave^$3^::1^:7^{state}^:9^");
        let told = role_told(RedisRole::Slave, master, is_served, is_connected);
        assert_eq!(told, ["replica", &slave, &slave]);
    }
}

#[test]
fn a_client_name_is_kept_until_it_is_emptied_or_the_connection_reset() {
    let mut talk = conversation(Protocol::Resp3);
    answer(&mut talk, words("CLIENT SETNAME x"));
    assert_eq!(answer(&mut talk, words("CLIENT GETNAME")), "$1^x^");
    answer(&mut talk, words("HELLO 3 SETNAME y"));
    assert_eq!(talk.client_name(), "y");
    answer(&mut talk, words("CLIENT SETNAME "));
    assert_eq!(answer(&mut talk, words("CLIENT GETNAME")), "_^");
    answer(&mut talk, words("CLIENT SETNAME z"));
    assert_eq!(answer(&mut talk, words("RESET")), "+RESET^");
    assert_eq!(talk.protocol(), Protocol::Resp2);
    assert_eq!(answer(&mut talk, words("CLIENT GETNAME")), "$-1^");
}

#[test]
fn a_client_name_that_would_break_the_list_is_refused() {
    let mut talk = conversation(Protocol::Resp2);
    let refused = "-ERR Client names cannot contain spaces, newlines or special characters.^";
    for name in ["a b", "a\nb", "\u{e9}"] {
        let args = ["CLIENT", "SETNAME", name].map(|word| Bytes::copy_from_slice(word.as_bytes()));
        assert_eq!(answer(&mut talk, args.into_iter().collect()), refused);
    }
    let long = "x".repeat(CLIENT_ATTRIBUTE_MAX + 1);
    let too_long = |what| format!("-ERR {what} is too long: 257 bytes, the limit is 256 bytes^");
    assert_eq!(answer(&mut talk, words(&format!("CLIENT SETNAME {long}"))), too_long("client name"));
    let set_info = format!("CLIENT SETINFO LIB-NAME {long}");
    assert_eq!(answer(&mut talk, words(&set_info)), too_long("client attribute"));
    assert_eq!(
        answer(&mut talk, ["CLIENT", "SETINFO", "lib-ver", "1 2"].map(Bytes::from).into_iter().collect()),
        "-ERR lib-ver cannot contain spaces, newlines or special characters.^"
    );
    assert_eq!(talk.client_name(), "");
}

#[test]
fn a_hello_that_fails_changes_nothing() {
    let mut talk = conversation(Protocol::Resp2);
    for request in ["HELLO 3 AUTH u p SETNAME y", "HELLO 3 SETNAME y x", "HELLO 4 SETNAME y"] {
        assert!(answer(&mut talk, words(request)).starts_with('-'));
        assert_eq!(talk.protocol(), Protocol::Resp2);
        assert_eq!(talk.client_name(), "");
    }
}

#[test]
fn quit_is_answered_and_closes() {
    assert_eq!(answers_to(b"QUIT now\r\nPING\r\n"), ("+OK^".to_owned(), true));
}

#[test]
fn a_browsers_request_closes_without_an_answer() {
    for request in [
        &b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"post /\r\nPING\r\n",
        b"host: x\r\nPING\r\n",
        b"Host:\r\nPING\r\n",
        b"*1\r\n$4\r\nPOST\r\n",
        b"*2\r\n$5\r\nhOst:\r\n$1\r\nx\r\n",
    ] {
        assert_eq!(answers_to(request), (String::new(), true), "{}", show(request));
    }
    assert!(!answers_to(b"POSTX\r\n").1);
}

#[test]
fn a_close_takes_back_nothing_that_was_answered_before() {
    assert_eq!(answers_to(b"PING\r\nPOST /\r\nPING\r\n"), ("+PONG^".to_owned(), true));
}

#[test]
fn unknown_commands_are_shown_as_redis_shows_them() {
    let y128 = "y".repeat(128);
    let xs = "x".repeat(200);
    let (y100, z100) = ("y".repeat(100), "z".repeat(100));
    for (args, expected) in [
        (vec!["fo\r\no", "a\nb", "c\0d"], "'fo  o', with args beginning with: 'a b' 'c' ".to_owned()),
        (vec!["fo\0x"], "'fo', with args beginning with: ".to_owned()),
        (vec!["get\0"], "'get', with args beginning with: ".to_owned()),
        (vec!["\0get"], "'', with args beginning with: ".to_owned()),
        (vec![""], "'', with args beginning with: ".to_owned()),
        (vec!["x", &y128, "z"], format!("'x', with args beginning with: '{y128}' ")),
        (
            vec![&xs, &y100, &z100, "w"],
            format!("'{}', with args beginning with: '{y100}' '{}' ", &xs[..128], &z100[..25]),
        ),
    ] {
        assert_eq!(answers_to(&array(&args)), (format!("-ERR unknown command {expected}^"), false));
    }
    let expected = format!("-ERR unknown subcommand '{}'. Try CLIENT HELP.^", &xs[..128]);
    assert_eq!(answers_to(&array(&["client", &xs])), (expected, false));
    let expected = "-ERR unknown subcommand 'fo '. Try CONFIG HELP.^".to_owned();
    assert_eq!(answers_to(&array(&["config", "fo\r\0x"])), (expected, false));
}

#[test]
fn a_key_over_the_limit_is_refused_and_the_connection_stays() {
    let long = "k".repeat(64 * 1024 + 1);
    let refused = "-ERR key is too long: 65537 bytes, the limit is 65536 bytes^";
    for request in [
        vec!["GET", &long],
        vec!["SET", &long, "v"],
        vec!["MSET", "a", "1", &long, "2"],
        vec!["MGET", "a", &long],
        vec!["DEL", &long],
        vec!["EXISTS", &long],
    ] {
        assert_eq!(answers_to(&array(&request)), (refused.to_owned(), false), "{}", request[0]);
    }
    let mut out = Vec::new();
    let longest = words(&format!("GET {}", "k".repeat(64 * 1024)));
    assert!(matches!(conversation(Protocol::Resp2).handle(longest, &mut out), Handling::Ask { .. }));
}

#[test]
fn a_value_over_the_limit_that_was_read_is_refused_and_the_connection_stays() {
    let limits = Limits::for_values(10);
    let mut talk = Conversation::new(1, ServerFacts { limits, ..facts() }, Rc::default());
    let mut out = Vec::new();
    for request in ["SET k 12345678901", "MSET a 1 b 12345678901"] {
        out.clear();
        let mut buffer = BytesMut::from(&array(&request.split(' ').collect::<Vec<_>>())[..]);
        let args = Parser::new(limits).next(&mut buffer).unwrap().unwrap();
        assert_eq!(talk.handle(args, &mut out), Handling::Answered);
        assert_eq!(show(&out), "-ERR value is too long: 11 bytes, the limit is 10 bytes^");
    }
    assert!(matches!(talk.handle(words("SET k 1234567890"), &mut out), Handling::Ask { .. }));
}

#[test]
fn many_names_do_not_make_a_huge_answer() {
    let request = format!("COMMAND DOCS{}", " get".repeat(257));
    let refused = "-ERR too many names: 257, the limit is 256^";
    assert_eq!(answer(&mut conversation(Protocol::Resp2), words(&request)), refused);
    let request = request.replace("DOCS", "INFO");
    assert_eq!(answer(&mut conversation(Protocol::Resp2), words(&request)), refused);
}

#[test]
fn command_describes_every_command() {
    let all = answer(&mut conversation(Protocol::Resp2), words("COMMAND"));
    assert!(all.starts_with("*86^*10^$3^get^:2^"), "{all}");
    assert_eq!(all, answer(&mut conversation(Protocol::Resp2), words("COMMAND INFO")));
    let docs = answer(&mut conversation(Protocol::Resp3), words("COMMAND DOCS"));
    assert!(docs.starts_with("%86^$3^get^%5^"), "{docs}");
    let listed = answer(&mut conversation(Protocol::Resp2), words("COMMAND LIST"));
    for name in listed.split('^').skip(2).step_by(2) {
        let one = answer(&mut conversation(Protocol::Resp2), words(&format!("COMMAND INFO {name}")));
        let described = one.strip_prefix("*1^").unwrap();
        assert!(all.contains(described), "{name}");
        assert!(docs.contains(&format!("${}^{name}^%", name.len())), "{name}");
    }
}

#[test]
fn every_listed_command_is_known() {
    let listed = answer(&mut conversation(Protocol::Resp2), words("COMMAND LIST"));
    for name in listed.split('^').skip(2).step_by(2) {
        let mut out = Vec::new();
        conversation(Protocol::Resp2).handle(words(&name.replace('|', " ")), &mut out);
        assert!(!show(&out).contains("unknown"), "{name}: {}", show(&out));
    }
}

/// Line, and the one argument of `PING` that it gives.
const INLINE: &[(&str, &str)] = &[
    (r#"PING "a\x41\n\r\t\b\a\q\"z""#, "aA\n\r\t\x08\x07q\"z"),
    (r"PING 'a\'b\n'", r"a'b\n"),
    (r#"PING a"b""#, "ab"),
    ("PING \ta\x0bb\x0c", "a\x0bb\x0c"),
    (r#"PING """#, ""),
    (r#"PING "\xzz""#, "xzz"),
    (r#"PING "\x4""#, "x4"),
    ("PING '\"'", "\""),
    ("  PING   x  ", "x"),
    ("PING a\r", "a"),
    ("\"PING\" 'a b'", "a b"),
];

#[test]
fn inline_requests_are_split_as_redis_does() {
    for (line, expected) in INLINE {
        for end in ["\n", "\r\n"] {
            let (answer, close) = answers_to(format!("{line}{end}").as_bytes());
            assert_eq!(answer, show(format!("${}\r\n{expected}\r\n", expected.len()).as_bytes()), "{line}");
            assert!(!close);
        }
    }
    assert_eq!(answers_to(b"PING\nPING\r\n\r\n   \r\n\nPING\r\r\n").0, "+PONG^+PONG^+PONG^");
    assert_eq!(answers_to(b"PING \"a\"\x0bb\r\n").0, "-ERR wrong number of arguments for 'ping' command^");
}

/// What is sent, and the last answer before the connection closes.
const PROTOCOL_ERRORS: &[(&str, &str)] = &[
    ("*x^", "invalid multibulk length"),
    ("*^", "invalid multibulk length"),
    ("*01^$4^PING^", "invalid multibulk length"),
    ("*+1^$4^PING^", "invalid multibulk length"),
    ("* 1^$4^PING^", "invalid multibulk length"),
    ("*-0^PING^", "invalid multibulk length"),
    ("*1\nPING^", "invalid multibulk length"),
    ("*2147483648^", "invalid multibulk length"),
    ("*9223372036854775808^", "invalid multibulk length"),
    ("*1^x4^PING^", "expected '$', got 'x'"),
    ("*1^^PING^", "expected '$', got ' '"),
    ("*1^$-1^", "invalid bulk length"),
    ("*1^$-0^PING^", "invalid bulk length"),
    ("*1^$^", "invalid bulk length"),
    ("*1^$x^", "invalid bulk length"),
    ("*1^$04^PING^", "invalid bulk length"),
    ("*1^$+4^PING^", "invalid bulk length"),
    ("*1^$600000000^", "invalid bulk length"),
    ("PING \"abc^", "unbalanced quotes in request"),
    ("PING 'abc^", "unbalanced quotes in request"),
    ("PING \"a\"b^", "unbalanced quotes in request"),
    ("PING 'a'b^", "unbalanced quotes in request"),
    ("PING a\"b c\"d^", "unbalanced quotes in request"),
    ("PING \"a\\\"^", "unbalanced quotes in request"),
];

#[test]
fn protocol_errors_are_worded_as_redis_words_them() {
    for (bytes, expected) in PROTOCOL_ERRORS {
        let (answer, close) = answers_to(bytes.replace('^', "\r\n").as_bytes());
        assert_eq!(answer, format!("-ERR Protocol error: {expected}^"), "{bytes}");
        assert!(close);
    }
    let mut out = Vec::new();
    ProtocolError::ExpectedBulk(0xff).encode(&mut out);
    assert_eq!(out, b"-ERR Protocol error: expected '$', got '\xff'\r\n");
}

#[test]
fn odd_input_that_redis_accepts_is_accepted() {
    for bytes in
        ["*-1^PING^", "*-9223372036854775808^PING^", "*0^PING^", "^PING^", "*1\rX$4\rXPING^", "*1^$4^PINGxx"]
    {
        assert_eq!(
            answers_to(bytes.replace('^', "\r\n").as_bytes()),
            ("+PONG^".to_owned(), false),
            "{bytes}"
        );
    }
}

#[test]
fn a_line_that_does_not_end_is_an_error_past_64_kib() {
    let (max, over) = ("1".repeat(65_535), "1".repeat(65_536));
    for (start, error) in [
        ("*", "too big mbulk count string"),
        ("*1\r\n$", "too big bulk count string"),
        ("1", "too big inline request"),
    ] {
        assert_eq!(answers_to(format!("{start}{max}").as_bytes()), (String::new(), false), "{start}");
        let expected = format!("-ERR Protocol error: {error}^");
        assert_eq!(answers_to(format!("{start}{over}").as_bytes()), (expected, true), "{start}");
    }
}

#[test]
fn a_value_over_the_limit_is_an_error_before_it_arrives() {
    let header = |length: usize| format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${length}\r\n");
    let mut parser = Parser::new(facts().limits);
    let mut buffer = BytesMut::from(header(VALUE_MAX).as_bytes());
    assert_eq!(parser.next(&mut buffer), Ok(None));
    assert_eq!(parser.missing(buffer.len()), VALUE_MAX + 2);
    let mut parser = Parser::new(facts().limits);
    let mut buffer = BytesMut::from(header(VALUE_MAX + 1).as_bytes());
    assert_eq!(parser.next(&mut buffer), Err(ProtocolError::InvalidBulkLength));
}

#[test]
fn nothing_is_read_after_an_error() {
    let mut parser = Parser::new(facts().limits);
    let mut buffer = BytesMut::from(&b"PING \"\r\nPING\r\n"[..]);
    for _ in 0..3 {
        assert_eq!(parser.next(&mut buffer), Err(ProtocolError::UnbalancedQuotes));
    }
}

#[test]
fn a_request_over_its_limits_is_an_error() {
    let limits = Limits { args_max: 4, request_bytes_max: 40, ..Limits::for_values(30) };
    let parse = |bytes: &[u8]| Parser::new(limits).next(&mut BytesMut::from(bytes));
    assert_eq!(parse(b"*5\r\n"), Err(ProtocolError::InvalidArrayLength));
    assert_eq!(parse(b"*4\r\n"), Ok(None));
    // 4 of `*1`, 5 of `$28`, and 2 after the content: 40 in all.
    assert_eq!(parse(b"*1\r\n$29\r\n"), Ok(None));
    assert_eq!(parse(b"*1\r\n$30\r\n"), Err(ProtocolError::RequestTooLong));
    assert_eq!(parse(b"*4\r\n$1\r\na\r\n$1\r\nb\r\n$18\r\n"), Err(ProtocolError::RequestTooLong));
    let mut out = Vec::new();
    ProtocolError::RequestTooLong.encode(&mut out);
    assert_eq!(show(&out), "-ERR Protocol error: too big request^");
}

#[test]
fn arguments_are_slices_of_what_was_received() {
    for bytes in [&b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\n"[..], b"SET k value\r\n"] {
        let mut buffer = BytesMut::from(bytes);
        let range = buffer.as_ptr_range();
        let args = Parser::new(facts().limits).next(&mut buffer).unwrap().unwrap();
        assert_eq!(args.len(), 3);
        assert!(args.iter().all(|arg| range.contains(&arg.as_ptr())), "{}", show(bytes));
    }
}

/// A parser that starts over at every piece would take minutes.
#[test]
fn a_request_in_small_pieces_costs_no_more_than_its_bytes() {
    let request = array(&vec!["x"; 200_000]);
    let mut parser = Parser::new(facts().limits);
    let mut buffer = BytesMut::new();
    let mut found = None;
    for piece in request.chunks(5) {
        assert_eq!(found, None);
        buffer.extend_from_slice(piece);
        found = parser.next(&mut buffer).unwrap().map(|args| args.len());
    }
    assert_eq!(found, Some(200_000));
    assert!(buffer.is_empty());
}

#[test]
fn a_request_of_many_words_is_taken_apart_in_steps_of_so_many() {
    const WORDS: usize = 100_000;
    const STEP: usize = 1000;
    let numbers: Vec<String> = (0..WORDS).map(|number| number.to_string()).collect();
    let words: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let mut buffer = BytesMut::from(&array(&words)[..]);
    buffer.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
    let mut parser = Parser::new(facts().limits);
    let mut steps = 1;
    let args = loop {
        match parser.next_within(&mut buffer, STEP).unwrap() {
            Parsed::Request(args) => break args,
            Parsed::Unfinished => steps += 1,
            Parsed::NotWhole => panic!("all of it is there"),
        }
    };
    // Each word is found and cut out.
    assert!((2 * WORDS / STEP..=2 * WORDS / STEP + 1).contains(&steps), "{steps} steps");
    assert!(args.iter().map(|arg| &arg[..]).eq(numbers.iter().map(|number| number.as_bytes())));
    let ping: [Bytes; 1] = [Bytes::from_static(b"PING")];
    assert_eq!(parser.next_within(&mut buffer, STEP), Ok(Parsed::Request(ping.into_iter().collect())));
    assert_eq!(parser.next_within(&mut buffer, STEP), Ok(Parsed::NotWhole));
}

/// Everything that a parser gives for `bytes` that arrive in pieces which end at `cuts`.
fn parse_in_pieces(limits: Limits, bytes: &[u8], cuts: &[usize]) -> (Vec<Vec<Bytes>>, Option<ProtocolError>) {
    parse_in_steps(limits, bytes, cuts, &[usize::MAX])
}

/// The same with steps of so many words, in turn.
fn parse_in_steps(
    limits: Limits,
    bytes: &[u8],
    cuts: &[usize],
    words: &[usize],
) -> (Vec<Vec<Bytes>>, Option<ProtocolError>) {
    let mut words = words.iter().copied().cycle();
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let (mut parser, mut buffer, mut start) = (Parser::new(limits), BytesMut::new(), 0);
    let mut requests = Vec::new();
    for end in ends {
        buffer.extend_from_slice(&bytes[start..end]);
        start = end;
        loop {
            match parser.next_within(&mut buffer, words.next().expect("a cycle has no end")) {
                Ok(Parsed::Request(args)) => requests.push(args.into_vec()),
                Ok(Parsed::Unfinished) => {}
                Ok(Parsed::NotWhole) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
        let waiting_max = limits.request_bytes_max.max(limits.inline_max);
        assert!(buffer.len() <= waiting_max, "{} bytes wait for the rest of a request", buffer.len());
    }
    (requests, None)
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12),
        prop::sample::select(vec![
            "GET", "set", "PING", "HELLO", "3", "CLIENT", "COMMAND", "DOCS", "INFO", "k"
        ])
        .prop_map(|word| word.as_bytes().to_vec()),
    ]
}

/// A request's bytes, in one of the forms that clients send, or nearly so.
fn request() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(word(), 1..6).prop_map(|words| array(&words)),
        2 => "(GET|PING|set) [a-z ]{0,8}\r?\n".prop_map(String::into_bytes),
        1 => "[ \t]{0,3}\r\n".prop_map(String::into_bytes),
        1 => "[*](0|-1)\r\n".prop_map(String::into_bytes),
        1 => "[a-z\"'\\\\x ]{0,12}\n".prop_map(String::into_bytes),
        1 => "[*$]?[0-9]{0,3}(\r\n|\r|\n)".prop_map(String::into_bytes),
    ]
}

fn tight_limits() -> Limits {
    Limits { value_max: 16, key_max: 16, args_max: 6, request_bytes_max: 128, inline_max: 32 }
}

proptest! {
    #[test]
    fn any_words_of_pipelined_requests_come_through(
        requests in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..12),
            1..5,
        ),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
    ) {
        let stream: Vec<u8> = requests.iter().flat_map(|words| array(words)).collect();
        let expected: Vec<Vec<Bytes>> =
            requests.into_iter().map(|words| words.into_iter().map(Bytes::from).collect()).collect();
        prop_assert_eq!(parse_in_pieces(facts().limits, &stream, &cuts), (expected, None));
    }

    #[test]
    fn the_cuts_between_reads_change_nothing(
        stream in prop::collection::vec(request(), 0..12),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
        tight in any::<bool>(),
    ) {
        let limits = if tight { tight_limits() } else { facts().limits };
        let stream = stream.concat();
        let at_once = parse_in_pieces(limits, &stream, &[]);
        prop_assert_eq!(&parse_in_pieces(limits, &stream, &cuts), &at_once);
        let every_byte: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(&parse_in_pieces(limits, &stream, &every_byte), &at_once);
    }

    #[test]
    fn how_many_words_a_step_has_changes_nothing(
        stream in prop::collection::vec(request(), 0..12),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
        words in prop::collection::vec(0..8usize, 1..10),
        tight in any::<bool>(),
    ) {
        let limits = if tight { tight_limits() } else { facts().limits };
        let stream = stream.concat();
        let at_once = parse_in_pieces(limits, &stream, &[]);
        prop_assert_eq!(&parse_in_steps(limits, &stream, &cuts, &words), &at_once);
        prop_assert_eq!(&parse_in_steps(limits, &stream, &[], &[0]), &at_once);
    }

    #[test]
    fn garbage_neither_panics_nor_piles_up(
        bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(b"*$\r\n \"'\\019".to_vec())],
            0..300,
        ),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        let at_once = parse_in_pieces(tight_limits(), &bytes, &[]);
        prop_assert_eq!(&parse_in_pieces(tight_limits(), &bytes, &cuts), &at_once);
    }

    #[test]
    fn any_request_is_answered_by_one_whole_value(
        words in prop::collection::vec(word(), 1..6),
        resp3 in any::<bool>(),
    ) {
        let mut talk = conversation(if resp3 { Protocol::Resp3 } else { Protocol::Resp2 });
        let mut out = Vec::new();
        let action = talk.handle(words.into_iter().map(Bytes::from).collect(), &mut out);
        match action {
            Handling::Answered | Handling::AnsweredAndClose | Handling::AnsweredLate(_) => {
                prop_assert_eq!(value_end(&out, 0), Some(out.len()), "{}", show(&out));
            }
            Handling::ListUsers(mut listing) => {
                while !listing.write_on(1, &mut out) {}
                prop_assert_eq!(value_end(&out, 0), Some(out.len()), "{}", show(&out));
            }
            Handling::DrawPassword(password) => {
                prop_assert!(out.is_empty());
                password.write(|| 7, &mut out);
                prop_assert_eq!(value_end(&out, 0), Some(out.len()), "{}", show(&out));
            }
            Handling::Ask { .. } | Handling::Watch { .. } | Handling::Close | Handling::LoadUsers => {
                prop_assert!(out.is_empty());
            }
        }
    }
}

/// Handles the requests one by one, and answers a question for versions with those.
fn talked(
    talk: &mut Conversation,
    requests: &[&str],
    versions: &[Option<Version>],
) -> (String, Vec<(Command, Shape)>) {
    let (mut out, mut asked) = (Vec::new(), Vec::new());
    for request in requests {
        match talk.handle(words(request), &mut out) {
            Handling::Answered => {}
            Handling::Ask { command, shape } => asked.push((command, shape)),
            Handling::Watch { .. } => talk.watched(&Reply::Versions(versions.to_vec())),
            other => panic!("{other:?}"),
        }
    }
    (show(&out), asked)
}

#[test]
fn a_transaction_is_queued_and_the_store_is_asked_for_all_of_it_at_once() {
    let mut talk = conversation(Protocol::Resp3);
    let watched = [None, Some(Version::new(3, 4))];
    let requests = ["WATCH a b", "MULTI", "SET k v", "ping", "getrange k 1 2", "SET k", "SET k v BAD"];
    let (told, asked) = talked(&mut talk, &requests[..5], &watched);
    assert_eq!((told.as_str(), asked.len()), ("+OK^+QUEUED^+QUEUED^+QUEUED^", 0));
    assert!(talk.queued_bytes() > 0, "what it holds is counted");
    let (told, mut asked) = talked(&mut talk, &["SET k v BAD", "EXEC"], &[]);
    assert_eq!((told.as_str(), asked.len(), talk.queued_bytes()), ("+QUEUED^", 1, 0));
    let (Command::Transact { transaction }, shape) = asked.remove(0) else { panic!("it is asked") };
    let key = |key: &'static str| Bytes::from_static(key.as_bytes());
    let commands = vec![Command::Put { key: key("k"), value: key("v") }, Command::Get { key: key("k") }];
    let watched = vec![(key("a"), None), (key("b"), Some(Version::new(3, 4)))];
    assert_eq!(*transaction, Transaction { watched, commands });
    let answers = |reply: Reply| {
        [Protocol::Resp2, Protocol::Resp3].map(|protocol| {
            let mut out = Vec::new();
            encode_reply(protocol, &shape, &reply, &mut out);
            show(&out)
        })
    };
    let replies = Reply::Many(Replies(vec![Reply::Done, Reply::Value(key("value"))]));
    let all = "*4^+OK^+PONG^$2^al^-ERR syntax error^";
    assert_eq!(answers(replies), [all, all]);
    assert_eq!(answers(Reply::NotFound), ["*-1^", "_^"]);
    assert_eq!(answers(Reply::error(ErrorWord::Unknown, "x")), ["-UNKNOWN x^"; 2]);
}

#[test]
fn a_transaction_with_a_refused_command_is_not_executed() {
    let limits = Limits { request_bytes_max: 800, ..facts().limits };
    let small = ServerFacts { limits, ..facts() };
    for (refused, why) in [
        ("GET", "-ERR wrong number of arguments for 'get' command^"),
        ("nonsense", "-ERR unknown command 'nonsense', with args beginning with: ^"),
        ("HELLO 3", "-ERR Command not allowed inside a transaction^"),
        ("DBSIZE", "-ERR Command not allowed inside a transaction^"),
        ("INFO", "-ERR Command not allowed inside a transaction^"),
        (
            "SET k 01234567890123456789012345678901234567890123456789",
            "-ERR the transaction is too long: the limit is 800 bytes^",
        ),
    ] {
        let mut talk = Conversation::new(7, small, Rc::default());
        let (told, asked) = talked(&mut talk, &["MULTI", "SET a b", refused, "PING", "EXEC", "EXEC"], &[]);
        let expected = format!(
            "+OK^+QUEUED^{why}+QUEUED^-EXECABORT Transaction discarded because of previous errors.^-ERR EXEC without \
             MULTI^"
        );
        assert_eq!((told, asked.len()), (expected, 0), "{refused}");
    }
}

#[test]
fn what_is_watched_is_forgotten_and_what_could_not_be_watched_is_not() {
    let transaction = |talk: &mut Conversation, before: &[&str]| {
        let requests = [before, &["MULTI", "GET a", "EXEC"]].concat();
        let (told, mut asked) = talked(talk, &requests, &[None]);
        match asked.pop() {
            Some((Command::Transact { transaction }, _)) => Ok(transaction.watched.len()),
            _ => Err(told),
        }
    };
    let mut talk = conversation(Protocol::Resp2);
    assert_eq!(transaction(&mut talk, &["WATCH a", "WATCH b"]), Ok(2));
    assert_eq!(transaction(&mut talk, &[]), Ok(0), "it was for one transaction");
    assert_eq!(transaction(&mut talk, &["WATCH a", "UNWATCH"]), Ok(0));
    assert_eq!(transaction(&mut talk, &["WATCH a", "MULTI", "DISCARD"]), Ok(0));
    assert_eq!(transaction(&mut talk, &["WATCH a", "RESET"]), Ok(0));
    let mut out = Vec::new();
    let handling = talk.handle(words("WATCH a"), &mut out);
    assert!(matches!(handling, Handling::Watch { .. }), "{handling:?}");
    talk.watched(&Reply::error(ErrorWord::Loading, ""));
    let refused = transaction(&mut talk, &["WATCH b"]);
    assert!(refused.as_ref().is_err_and(|told| told.contains("-EXECABORT")), "{refused:?}");
    let too_long = format!("WATCH {}", "k".repeat(facts().limits.key_max + 1));
    for unwatched in ["WATCH", &too_long] {
        let refused = transaction(&mut talk, &[unwatched]);
        assert!(refused.as_ref().is_err_and(|told| told.contains("-EXECABORT")), "{refused:?}");
    }
    let (told, asked) = talked(&mut talk, &["WATCH a", "MULTI", "GET a", "EXEC now", "EXEC"], &[None]);
    let aborted =
        "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command^";
    assert_eq!(
        (told, asked.len()),
        (format!("+OK^+OK^+QUEUED^{aborted}-ERR EXEC without MULTI^").replacen("+OK^", "", 1), 0)
    );
    assert_eq!(transaction(&mut talk, &["WATCH a"]), Ok(1));
}

#[test]
fn every_answer_of_the_tables_is_one_whole_value() {
    for (request, ..) in
        AS_REDIS.iter().chain(OUR_OWN).chain([("COMMAND", "", ""), ("COMMAND DOCS", "", "")].iter())
    {
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let mut out = Vec::new();
            conversation(protocol).handle(words(request), &mut out);
            assert_eq!(value_end(&out, 0), Some(out.len()), "{request}: {}", show(&out));
        }
    }
}

/// Where the RESP value that begins at `at` ends; `None` when it is not whole.
fn value_end(bytes: &[u8], at: usize) -> Option<usize> {
    let line_end = at + bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
    let after = line_end + 2;
    let number = || std::str::from_utf8(&bytes[at + 1..line_end]).ok()?.parse::<i64>().ok();
    let values = |count: i64| (0..count).try_fold(after, |at, _| value_end(bytes, at));
    match bytes[at] {
        b'+' | b'-' | b':' | b'_' => Some(after),
        b'$' if number()? == -1 => Some(after),
        b'$' | b'=' => {
            let end = after + usize::try_from(number()?).ok()?;
            (bytes.get(end..end + 2)? == b"\r\n").then_some(end + 2)
        }
        b'*' | b'~' => values(number()?),
        b'%' => values(2 * number()?),
        _ => None,
    }
}

/// Prints what one GET and one SET cost from bytes to bytes: `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
#[allow(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn cost_of_get_and_set() {
    const PIPELINED: usize = 100;
    const ROUNDS: usize = 20_000;
    let value = "v".repeat(64);
    let requests = [
        ("GET", array(&["GET", "key:000000012345"]), Reply::Value(Bytes::from(value.clone()))),
        ("SET", array(&["SET", "key:000000012345", &value]), Reply::Done),
    ];
    for (name, request, reply) in requests {
        let stream = request.repeat(PIPELINED);
        let mut parser = Parser::new(facts().limits);
        let mut talk = conversation(Protocol::Resp2);
        let mut out = Vec::new();
        let start = std::time::Instant::now();
        for _ in 0..ROUNDS {
            let mut buffer = BytesMut::from(&stream[..]);
            out.clear();
            while let Some(args) = parser.next(&mut buffer).unwrap() {
                match talk.handle(args, &mut out) {
                    Handling::Ask { command, shape } => {
                        std::hint::black_box(command);
                        encode_reply(talk.protocol(), &shape, &reply, &mut out);
                    }
                    Handling::Answered
                    | Handling::AnsweredAndClose
                    | Handling::Close
                    | Handling::AnsweredLate(_)
                    | Handling::ListUsers(_)
                    | Handling::DrawPassword(_)
                    | Handling::Watch { .. }
                    | Handling::LoadUsers => {
                        panic!("{}", show(&out))
                    }
                }
            }
            std::hint::black_box(&out);
        }
        let each = start.elapsed().as_nanos() as f64 / (PIPELINED * ROUNDS) as f64;
        println!("{name}: {each:.0} ns a command");
    }
}

/// Request, answer in RESP2, answer in RESP3: byte for byte what Redis 7.0.15 answers.
const AS_REDIS: &[(&str, &str, &str)] = &[
    ("PING", "+PONG^", SAME),
    ("PING a", "$1^a^", SAME),
    ("PING a b", "-ERR wrong number of arguments for 'ping' command^", SAME),
    ("ping", "+PONG^", SAME),
    ("ECHO", "-ERR wrong number of arguments for 'echo' command^", SAME),
    ("ECHO x", "$1^x^", SAME),
    ("ECHO a b", "-ERR wrong number of arguments for 'echo' command^", SAME),
    ("GET", "-ERR wrong number of arguments for 'get' command^", SAME),
    ("GET a b", "-ERR wrong number of arguments for 'get' command^", SAME),
    ("SET", "-ERR wrong number of arguments for 'set' command^", SAME),
    ("SET k", "-ERR wrong number of arguments for 'set' command^", SAME),
    ("DEL", "-ERR wrong number of arguments for 'del' command^", SAME),
    ("UNLINK", "-ERR wrong number of arguments for 'unlink' command^", SAME),
    ("EXISTS", "-ERR wrong number of arguments for 'exists' command^", SAME),
    ("MGET", "-ERR wrong number of arguments for 'mget' command^", SAME),
    ("MSET", "-ERR wrong number of arguments for 'mset' command^", SAME),
    ("MSET a", "-ERR wrong number of arguments for 'mset' command^", SAME),
    ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command^", SAME),
    ("DBSIZE x", "-ERR wrong number of arguments for 'dbsize' command^", SAME),
    ("SELECT", "-ERR wrong number of arguments for 'select' command^", SAME),
    ("SELECT 0", "+OK^", SAME),
    ("SELECT -1", "-ERR DB index is out of range^", SAME),
    ("SELECT 16", "-ERR DB index is out of range^", SAME),
    ("SELECT 00", "-ERR value is not an integer or out of range^", SAME),
    ("SELECT x", "-ERR value is not an integer or out of range^", SAME),
    ("SELECT 2147483648", "-ERR value is out of range, value must between -2147483648 and 2147483647^", SAME),
    (
        "SELECT -2147483649",
        "-ERR value is out of range, value must between -2147483648 and 2147483647^",
        SAME,
    ),
    ("SELECT 99999999999999999999", "-ERR value is not an integer or out of range^", SAME),
    ("SELECT 0 0", "-ERR wrong number of arguments for 'select' command^", SAME),
    ("HELLO 1", "-NOPROTO unsupported protocol version^", SAME),
    ("HELLO 4", "-NOPROTO unsupported protocol version^", SAME),
    ("HELLO x", "-ERR Protocol version is not an integer or out of range^", SAME),
    ("HELLO 03", "-ERR Protocol version is not an integer or out of range^", SAME),
    ("HELLO 99999999999999999999", "-ERR Protocol version is not an integer or out of range^", SAME),
    ("HELLO 3 AUTH", "-ERR Syntax error in HELLO option 'AUTH'^", SAME),
    ("HELLO 3 AUTH a", "-ERR Syntax error in HELLO option 'AUTH'^", SAME),
    ("HELLO 3 AUTH a b", "-WRONGPASS invalid username-password pair or user is disabled.^", SAME),
    ("HELLO 3 SETNAME", "-ERR Syntax error in HELLO option 'SETNAME'^", SAME),
    ("HELLO 3 FOO", "-ERR Syntax error in HELLO option 'FOO'^", SAME),
    ("HELLO 2 SETNAME x y", "-ERR Syntax error in HELLO option 'y'^", SAME),
    ("AUTH", "-ERR wrong number of arguments for 'auth' command^", SAME),
    (
        "AUTH x",
        "-ERR AUTH <password> called without any password configured for the default user. Are you su\
         re your configuration is correct?^",
        SAME,
    ),
    ("AUTH default x", "+OK^", SAME),
    ("AUTH u p", "-WRONGPASS invalid username-password pair or user is disabled.^", SAME),
    ("AUTH a b c", "-ERR syntax error^", SAME),
    ("RESET a", "-ERR wrong number of arguments for 'reset' command^", SAME),
    ("foo", "-ERR unknown command 'foo', with args beginning with: ^", SAME),
    ("FOO a b", "-ERR unknown command 'FOO', with args beginning with: 'a' 'b' ^", SAME),
    ("client|id", "-ERR unknown command 'client|id', with args beginning with: ^", SAME),
    ("CLIENT", "-ERR wrong number of arguments for 'client' command^", SAME),
    ("CLIENT foo", "-ERR unknown subcommand 'foo'. Try CLIENT HELP.^", SAME),
    ("client FOO a b", "-ERR unknown subcommand 'FOO'. Try CLIENT HELP.^", SAME),
    ("CLIENT SETNAME", "-ERR wrong number of arguments for 'client|setname' command^", SAME),
    ("CLIENT SETNAME a", "+OK^", SAME),
    ("CLIENT SETNAME a b", "-ERR wrong number of arguments for 'client|setname' command^", SAME),
    ("CLIENT GETNAME", "$-1^", "_^"),
    ("CLIENT GETNAME a", "-ERR wrong number of arguments for 'client|getname' command^", SAME),
    ("CLIENT ID 2", "-ERR wrong number of arguments for 'client|id' command^", SAME),
    ("CLIENT INFO x", "-ERR wrong number of arguments for 'client|info' command^", SAME),
    ("CLIENT LIST x", "-ERR syntax error^", SAME),
    ("CLIENT LIST TYPE", "-ERR syntax error^", SAME),
    ("CLIENT LIST TYPE foo", "-ERR Unknown client type 'foo'^", SAME),
    ("CLIENT LIST TYPE pubsub", "$0^^", "=4^txt:^"),
    ("CLIENT LIST ID", "-ERR syntax error^", SAME),
    ("CLIENT LIST ID x", "-ERR Invalid client ID^", SAME),
    ("CLIENT LIST ID 99999", "$0^^", "=4^txt:^"),
    ("CLIENT NO-EVICT", "-ERR wrong number of arguments for 'client|no-evict' command^", SAME),
    ("CLIENT NO-EVICT on", "+OK^", SAME),
    ("CLIENT NO-EVICT off", "+OK^", SAME),
    ("CLIENT NO-EVICT x", "-ERR syntax error^", SAME),
    ("CLIENT REPLY", "-ERR wrong number of arguments for 'client|reply' command^", SAME),
    ("CLIENT HELP x", "-ERR wrong number of arguments for 'client|help' command^", SAME),
    ("FLUSHALL now", "-ERR syntax error^", SAME),
    ("FLUSHDB async sync", "-ERR syntax error^", SAME),
    ("SCAN", "-ERR wrong number of arguments for 'scan' command^", SAME),
    ("SCAN x", "-ERR invalid cursor^", SAME),
    ("SCAN 18446744073709551616", "-ERR invalid cursor^", SAME),
    ("SCAN 0 COUNT 0", "-ERR syntax error^", SAME),
    ("SCAN 0 COUNT x", "-ERR value is not an integer or out of range^", SAME),
    ("SCAN 0 MATCH", "-ERR syntax error^", SAME),
    ("SCAN 0 SORTED", "-ERR syntax error^", SAME),
    ("KEYS a b", "-ERR wrong number of arguments for 'keys' command^", SAME),
    (
        "KEYS *01234567890123456789012345678901234567890123456789012345678901234",
        "-ERR pattern is too long: the limit is 1024 bytes, and 64 in each part after a star^",
        SAME,
    ),
    ("CONFIG", "-ERR wrong number of arguments for 'config' command^", SAME),
    ("CONFIG GET", "-ERR wrong number of arguments for 'config|get' command^", SAME),
    ("CONFIG GET save", "*2^$4^save^$0^^", "%1^$4^save^$0^^"),
    ("CONFIG GET SA?E nothing", "*2^$4^save^$0^^", "%1^$4^save^$0^^"),
    ("CONFIG GET Save s* SAVE", "*2^$4^Save^$0^^", "%1^$4^Save^$0^^"),
    ("CONFIG SET", "-ERR wrong number of arguments for 'config|set' command^", SAME),
    ("CONFIG SET a", "-ERR wrong number of arguments for 'config|set' command^", SAME),
    ("CONFIG RESETSTAT x", "-ERR wrong number of arguments for 'config|resetstat' command^", SAME),
    ("CONFIG REWRITE", "-ERR The server is running without a config file^", SAME),
    ("COMMAND foo", "-ERR unknown subcommand 'foo'. Try COMMAND HELP.^", SAME),
    ("COMMAND COUNT x", "-ERR wrong number of arguments for 'command|count' command^", SAME),
    (
        "COMMAND INFO get",
        "*1^*10^$3^get^:2^*2^+readonly^+fast^:1^:1^:1^*3^+@read^+@string^+@fast^*0^*1^*6^$5^flags^*2^\
         +RO^+access^$12^begin_search^*4^$4^type^$5^index^$4^spec^*2^$5^index^:1^$9^find_keys^*4^$4^t\
         ype^$5^range^$4^spec^*6^$7^lastkey^:0^$7^keystep^:1^$5^limit^:0^*0^",
        "*1^*10^$3^get^:2^~2^+readonly^+fast^:1^:1^:1^~3^+@read^+@string^+@fast^~0^~1^%3^$5^flags^~2^\
         +RO^+access^$12^begin_search^%2^$4^type^$5^index^$4^spec^%1^$5^index^:1^$9^find_keys^%2^$4^t\
         ype^$5^range^$4^spec^%3^$7^lastkey^:0^$7^keystep^:1^$5^limit^:0^~0^",
    ),
    (
        "COMMAND INFO nothing mset",
        "*2^$-1^*10^$4^mset^:-3^*2^+write^+denyoom^:1^:-1^:2^*3^+@write^+@string^+@slow^*2^$26^reques\
         t_policy:multi_shard^$29^response_policy:all_succeeded^*1^*6^$5^flags^*2^+OW^+update^$12^beg\
         in_search^*4^$4^type^$5^index^$4^spec^*2^$5^index^:1^$9^find_keys^*4^$4^type^$5^range^$4^spe\
         c^*6^$7^lastkey^:-1^$7^keystep^:2^$5^limit^:0^*0^",
        "*2^_^*10^$4^mset^:-3^~2^+write^+denyoom^:1^:-1^:2^~3^+@write^+@string^+@slow^~2^$26^request_\
         policy:multi_shard^$29^response_policy:all_succeeded^~1^%3^$5^flags^~2^+OW^+update^$12^begin\
         _search^%2^$4^type^$5^index^$4^spec^%1^$5^index^:1^$9^find_keys^%2^$4^type^$5^range^$4^spec^\
         %3^$7^lastkey^:-1^$7^keystep^:2^$5^limit^:0^~0^",
    ),
    (
        "COMMAND INFO client|id get|x client|nothing",
        "*3^*10^$9^client|id^:2^*3^+noscript^+loading^+stale^:0^:0^:0^*2^+@slow^+@connection^*0^*0^*0\
         ^$-1^$-1^",
        "*3^*10^$9^client|id^:2^~3^+noscript^+loading^+stale^:0^:0^:0^~2^+@slow^+@connection^~0^~0^~0\
         ^_^_^",
    ),
    (
        "COMMAND INFO ping",
        "*1^*10^$4^ping^:-1^*1^+fast^:0^:0^:0^*2^+@fast^+@connection^*2^$25^request_policy:all_shards\
         ^$29^response_policy:all_succeeded^*0^*0^",
        "*1^*10^$4^ping^:-1^~1^+fast^:0^:0^:0^~2^+@fast^+@connection^~2^$25^request_policy:all_shards\
         ^$29^response_policy:all_succeeded^~0^~0^",
    ),
    (
        "COMMAND INFO quit del",
        "*2^*10^$4^quit^:-1^*6^+noscript^+loading^+stale^+fast^+no_auth^+allow_busy^:0^:0^:0^*2^+@fas\
         t^+@connection^*0^*0^*0^*10^$3^del^:-2^*1^+write^:1^:-1^:1^*3^+@keyspace^+@write^+@slow^*2^$\
         26^request_policy:multi_shard^$23^response_policy:agg_sum^*1^*6^$5^flags^*2^+RM^+delete^$12^\
         begin_search^*4^$4^type^$5^index^$4^spec^*2^$5^index^:1^$9^find_keys^*4^$4^type^$5^range^$4^\
         spec^*6^$7^lastkey^:-1^$7^keystep^:1^$5^limit^:0^*0^",
        "*2^*10^$4^quit^:-1^~6^+noscript^+loading^+stale^+fast^+no_auth^+allow_busy^:0^:0^:0^~2^+@fas\
         t^+@connection^~0^~0^~0^*10^$3^del^:-2^~1^+write^:1^:-1^:1^~3^+@keyspace^+@write^+@slow^~2^$\
         26^request_policy:multi_shard^$23^response_policy:agg_sum^~1^%3^$5^flags^~2^+RM^+delete^$12^\
         begin_search^%2^$4^type^$5^index^$4^spec^%1^$5^index^:1^$9^find_keys^%2^$4^type^$5^range^$4^\
         spec^%3^$7^lastkey^:-1^$7^keystep^:1^$5^limit^:0^~0^",
    ),
    ("COMMAND DOCS nothing", "*0^", "%0^"),
    ("COMMAND GETKEYS GET k", "*1^$1^k^", SAME),
    ("COMMAND GETKEYS set k get GET", "*1^$1^k^", SAME),
    ("COMMAND GETKEYS MSET a 1 b 2", "*2^$1^a^$1^b^", SAME),
    ("COMMAND GETKEYS MSET a 1 b", "*2^$1^a^$1^b^", SAME),
    ("COMMAND GETKEYS DEL a b a", "*3^$1^a^$1^b^$1^a^", SAME),
    ("COMMAND GETKEYS PING x", "-ERR The command has no key arguments^", SAME),
    ("COMMAND GETKEYS CLIENT ID", "-ERR The command has no key arguments^", SAME),
    ("COMMAND GETKEYS CLIENT nothing", "-ERR Invalid command specified^", SAME),
    ("COMMAND GETKEYS nothing x", "-ERR Invalid command specified^", SAME),
    ("COMMAND GETKEYS GET a b", "-ERR Invalid number of arguments specified for command^", SAME),
    ("COMMAND GETKEYS MSET a", "-ERR Invalid number of arguments specified for command^", SAME),
    (
        "COMMAND GETKEYSANDFLAGS MGET a b",
        "*2^*2^$1^a^*2^+RO^+access^*2^$1^b^*2^+RO^+access^",
        "*2^*2^$1^a^~2^+RO^+access^*2^$1^b^~2^+RO^+access^",
    ),
    ("COMMAND GETKEYSANDFLAGS SET k v", "*1^*2^$1^k^*2^+OW^+update^", "*1^*2^$1^k^~2^+OW^+update^"),
    (
        "COMMAND GETKEYSANDFLAGS SET k v get",
        "*1^*2^$1^k^*3^+RW^+access^+update^",
        "*1^*2^$1^k^~3^+RW^+access^+update^",
    ),
    ("ROLE x", "-ERR wrong number of arguments for 'role' command^", SAME),
    ("COMMAND LIST x", "-ERR syntax error^", SAME),
    ("COMMAND LIST FILTERBY x", "-ERR syntax error^", SAME),
    ("COMMAND LIST FILTERBY PATTERN", "-ERR syntax error^", SAME),
    ("COMMAND LIST FILTERBY ACLCAT nothing", "*0^", SAME),
    ("COMMAND LIST FILTERBY MODULE x", "*0^", SAME),
    ("COMMAND LIST FILTERBY PATTERN m?et", "*2^$4^mget^$4^mset^", SAME),
    ("COMMAND HELP x", "-ERR wrong number of arguments for 'command|help' command^", SAME),
];

/// Request, answer in RESP2, answer in RESP3, where this server differs from Redis.
const OUR_OWN: &[(&str, &str, &str)] = &[
    ("READ", "-ERR wrong number of arguments for 'read' command^", SAME),
    ("READ a b", "-ERR wrong number of arguments for 'read' command^", SAME),
    ("WRITE k", "-ERR wrong number of arguments for 'write' command^", SAME),
    ("WRITE k v w", "-ERR wrong number of arguments for 'write' command^", SAME),
    ("SET k v nonsense", "-ERR syntax error^", SAME),
    ("SET k v IFEQ", "-ERR syntax error^", SAME),
    ("SET k v IFEQ w NX", "-ERR syntax error^", SAME),
    ("SET k v XX IFNE w", "-ERR syntax error^", SAME),
    ("SET k v IFEQ a IFNE b", "-ERR syntax error^", SAME),
    ("SET k v IFEQ a IFEQ b", "-ERR syntax error^", SAME),
    ("DSM.SETV k v", "-ERR wrong number of arguments for 'dsm.setv' command^", SAME),
    ("DSM.SETV k v 1", "-ERR a version is what DSM.GETV tells, as 3.17; 0.0 for none^", SAME),
    ("DSM.SETV k v 1.+2", "-ERR a version is what DSM.GETV tells, as 3.17; 0.0 for none^", SAME),
    ("DSM.DELV k .", "-ERR a version is what DSM.GETV tells, as 3.17; 0.0 for none^", SAME),
    ("DSM.SETV k v 1.2 NX", "-ERR syntax error^", SAME),
    ("DSM.SETV k v 1.2 IFEQ w", "-ERR syntax error^", SAME),
    ("DELEX", "-ERR wrong number of arguments for 'delex' command^", SAME),
    ("DELEX k IFEQ", "-ERR wrong number of arguments for 'delex' command^", SAME),
    ("DELEX k IFEQ a b", "-ERR wrong number of arguments for 'delex' command^", SAME),
    ("DELEX k IFDEQ a", "-ERR syntax error^", SAME),
    ("DELIFEQ k", "-ERR wrong number of arguments for 'delifeq' command^", SAME),
    ("COMMAND GETKEYSANDFLAGS DELEX k", "*1^*2^$1^k^*2^+RM^+delete^", "*1^*2^$1^k^~2^+RM^+delete^"),
    (
        "COMMAND GETKEYSANDFLAGS DELEX k IFEQ v",
        "*1^*2^$1^k^*3^+RW^+access^+delete^",
        "*1^*2^$1^k^~3^+RW^+access^+delete^",
    ),
    (
        "COMMAND GETKEYSANDFLAGS SET k v IFNE w",
        "*1^*2^$1^k^*3^+RW^+access^+update^",
        "*1^*2^$1^k^~3^+RW^+access^+update^",
    ),
    ("SELECT 1", "-ERR DB index is out of range^", SAME),
    (
        "HELLO",
        "*14^$6^server^$3^dsm^$7^version^@VERSION^$5^proto^:2^$2^id^:7^$4^mode^$10^standalone^$4^role\
         ^$6^master^$7^modules^*0^",
        "%7^$6^server^$3^dsm^$7^version^@VERSION^$5^proto^:3^$2^id^:7^$4^mode^$10^standalone^$4^role^\
         $6^master^$7^modules^*0^",
    ),
    (
        "HELLO 2",
        "*14^$6^server^$3^dsm^$7^version^@VERSION^$5^proto^:2^$2^id^:7^$4^mode^$10^standalone^$4^role\
         ^$6^master^$7^modules^*0^",
        SAME,
    ),
    (
        "HELLO 3",
        "%7^$6^server^$3^dsm^$7^version^@VERSION^$5^proto^:3^$2^id^:7^$4^mode^$10^standalone^$4^role^\
         $6^master^$7^modules^*0^",
        SAME,
    ),
    (
        "HELLO 3 AUTH default x SETNAME foo",
        "%7^$6^server^$3^dsm^$7^version^@VERSION^$5^proto^:3^$2^id^:7^$4^mode^$10^standalone^$4^role^\
         $6^master^$7^modules^*0^",
        SAME,
    ),
    ("FAILOVER x", "-ERR wrong number of arguments for 'failover' command^", SAME),
    ("CLIENT ID", ":7^", SAME),
    ("CLIENT NO-TOUCH on", "+OK^", SAME),
    ("CLIENT REPLY off", "-ERR CLIENT REPLY is not supported: every request is answered^", SAME),
    ("CLIENT SETINFO LIB-NAME x", "+OK^", SAME),
    ("CLIENT SETINFO lib-ver 1.0", "+OK^", SAME),
    ("CLIENT SETINFO a b", "-ERR Unrecognized option 'a'^", SAME),
    ("CONFIG GET appendonly", "*2^$10^appendonly^$3^yes^", "%1^$10^appendonly^$3^yes^"),
    ("CONFIG GET databases", "*2^$9^databases^$1^1^", "%1^$9^databases^$1^1^"),
    (
        "CONFIG GET append* maxclients proto-* max*",
        "*12^$10^appendonly^$3^yes^$11^appendfsync^$6^always^$10^maxclients^$5^10000^$18^proto-max-bu\
         lk-len^$8^16777216^$9^maxmemory^$1^0^$16^maxmemory-policy^$10^noeviction^",
        "%6^$10^appendonly^$3^yes^$11^appendfsync^$6^always^$10^maxclients^$5^10000^$18^proto-max-bu\
         lk-len^$8^16777216^$9^maxmemory^$1^0^$16^maxmemory-policy^$10^noeviction^",
    ),
    ("CONFIG SET a b", "-ERR CONFIG SET is not supported: settings are given when the server starts^", SAME),
    ("CONFIG RESETSTAT", "-ERR CONFIG RESETSTAT is not supported^", SAME),
    (
        "CONFIG HELP",
        "*11^+CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:^+GET^+    Get the value\
         s of configuration parameters^+HELP^+    Show helpful text about the different subcommands^+\
         RESETSTAT^+    Not supported: the stats count from the start^+REWRITE^+    Not supported: th\
         ere is no configuration file^+SET^+    Not supported: settings are fixed at the start^",
        SAME,
    ),
    ("COMMAND COUNT", ":86^", SAME),
    ("WAIT 1 0", ":0^", SAME),
    ("SLOWLOG GET 1 2", "-ERR wrong number of arguments for 'slowlog|get' command^", SAME),
    (
        "COMMAND DOCS get",
        "*2^$3^get^*10^$7^summary^$22^Get the value of a key^$5^since^$5^0.1.0^$5^group^$6^string^$10\
         ^complexity^$4^O(1)^$9^arguments^*1^*6^$4^name^$3^key^$4^type^$3^key^$14^key_spec_index^:0^",
        "%1^$3^get^%5^$7^summary^$22^Get the value of a key^$5^since^$5^0.1.0^$5^group^$6^string^$10^\
         complexity^$4^O(1)^$9^arguments^*1^%3^$4^name^$3^key^$4^type^$3^key^$14^key_spec_index^:0^",
    ),
    (
        "COMMAND DOCS mset client|id",
        "*4^$4^mset^*10^$7^summary^$36^Set multiple keys to multiple values^$5^since^$5^0.1.0^$5^grou\
         p^$6^string^$10^complexity^$42^O(N) where N is the number of keys to set.^$9^arguments^*1^*8\
         ^$4^name^$9^key_value^$4^type^$5^block^$5^flags^*1^+multiple^$9^arguments^*2^*6^$4^name^$3^k\
         ey^$4^type^$3^key^$14^key_spec_index^:0^*4^$4^name^$5^value^$4^type^$6^string^$9^client|id^*\
         8^$7^summary^$48^Returns the client ID for the current connection^$5^since^$5^0.1.0^$5^group\
         ^$10^connection^$10^complexity^$4^O(1)^",
        "%2^$4^mset^%5^$7^summary^$36^Set multiple keys to multiple values^$5^since^$5^0.1.0^$5^group\
         ^$6^string^$10^complexity^$42^O(N) where N is the number of keys to set.^$9^arguments^*1^%4^\
         $4^name^$9^key_value^$4^type^$5^block^$5^flags^~1^+multiple^$9^arguments^*2^%3^$4^name^$3^ke\
         y^$4^type^$3^key^$14^key_spec_index^:0^%2^$4^name^$5^value^$4^type^$6^string^$9^client|id^%4\
         ^$7^summary^$48^Returns the client ID for the current connection^$5^since^$5^0.1.0^$5^group^\
         $10^connection^$10^complexity^$4^O(1)^",
    ),
    (
        "COMMAND INFO set",
        "*1^*10^$3^set^:-3^*2^+write^+denyoom^:1^:1^:1^*3^+@write^+@string^+@slow^*0^*1^*6^$5^flags^*\
         4^+RW^+access^+update^+variable_flags^$12^begin_search^*4^$4^type^$5^index^$4^spec^*2^$5^index^:1^$9^find_keys^*4^$4\
         ^type^$5^range^$4^spec^*6^$7^lastkey^:0^$7^keystep^:1^$5^limit^:0^*0^",
        "*1^*10^$3^set^:-3^~2^+write^+denyoom^:1^:1^:1^~3^+@write^+@string^+@slow^~0^~1^%3^$5^flags^~\
         4^+RW^+access^+update^+variable_flags^$12^begin_search^%2^$4^type^$5^index^$4^spec^%1^$5^index^:1^$9^find_keys^%2^$4\
         ^type^$5^range^$4^spec^%3^$7^lastkey^:0^$7^keystep^:1^$5^limit^:0^~0^",
    ),
    (
        "COMMAND LIST FILTERBY PATTERN c*t",
        "*8^$6^client^$11^client|list^$15^client|no-evict^$13^command|count^$12^command|list^$10^conf\
         ig|get^$16^config|resetstat^$10^config|set^",
        SAME,
    ),
];
