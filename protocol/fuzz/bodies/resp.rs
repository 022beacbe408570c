//! The front door for Redis clients: any bytes become the same requests however they arrive, and every request gets one
//! whole answer.

use super::Input;
use bytes::{Bytes, BytesMut};
use dsm_protocol::command::{Command, ErrorWord, Operands, Replies, Reply};
use dsm_protocol::resp::{
    encode_reply, Args, Conversation, Handling, Limits, Parser, ProtocolError, ServerFacts,
};
use std::time::Duration;

/// Tight enough that small inputs reach every limit.
const LIMITS: Limits =
    Limits { value_max: 64, key_max: 48, args_max: 12, request_bytes_max: 512, inline_max: 128 };

/// `CHUNK` and then what a client sends.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let chunk = 1 + usize::from(input.u8());
    let sent = input.rest();
    let (requests, error) = parse(sent, sent.len().max(1));
    assert_eq!(parse(sent, chunk), (requests.clone(), error), "the pieces decide");
    let facts =
        ServerFacts { limits: LIMITS, clients_max: 10, idle_timeout: Duration::ZERO, fsync: "always" };
    let mut conversation =
        Conversation::new(1, facts, std::rc::Rc::default()).with_addresses("10.0.0.1:5", "10.0.0.2:12345");
    for args in requests {
        let mut out = Vec::new();
        match conversation.handle(args.clone(), &mut out) {
            Handling::Answered => assert_one_value(&out, &args),
            Handling::AnsweredAndClose => {
                assert_one_value(&out, &args);
                return;
            }
            Handling::AnsweredLate(_) => assert_one_value(&out, &args),
            Handling::ListUsers(mut listing) => {
                assert!(out.is_empty(), "an answer beside the one to come");
                while !listing.write_on(1, &mut out) {}
                assert_one_value(&out, &args);
            }
            Handling::DrawPassword(password) => {
                assert!(out.is_empty(), "an answer beside the one to come");
                password.write(|| 7, &mut out);
                assert_one_value(&out, &args);
            }
            Handling::LoadUsers => assert!(out.is_empty(), "an answer beside the one to come"),
            Handling::Close => {
                assert!(out.is_empty(), "an answer before a close without one");
                return;
            }
            Handling::Watch { command } => {
                assert!(out.is_empty(), "an answer beside the one to come");
                assert_within_limits(&command);
                conversation.watched(&replies(&command)[0]);
            }
            Handling::Ask { command, shape } => {
                assert!(out.is_empty(), "an answer beside the one to come");
                assert_within_limits(&command);
                for reply in replies(&command) {
                    out.clear();
                    encode_reply(conversation.protocol(), &shape, &reply, &mut out);
                    assert_one_value(&out, &args);
                }
            }
        }
    }
    if let Some(error) = error {
        let mut out = Vec::new();
        error.encode(&mut out);
        assert!(out.starts_with(b"-ERR "));
        assert_eq!(value_end(&out, 0), Some(out.len()), "{error:?}");
    }
}

/// Takes requests off what arrives in pieces, up to the first error.
fn parse(sent: &[u8], chunk: usize) -> (Vec<Args>, Option<ProtocolError>) {
    let mut parser = Parser::new(LIMITS);
    let mut buffer = BytesMut::new();
    let mut requests = Vec::new();
    for piece in sent.chunks(chunk) {
        buffer.extend_from_slice(piece);
        loop {
            match parser.next(&mut buffer) {
                Ok(Some(args)) => {
                    assert!(!args.is_empty(), "a request without a name");
                    requests.push(args);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(parser.next(&mut buffer), Err(error), "something is read after an error");
                    return (requests, Some(error));
                }
            }
        }
        let bound = LIMITS.request_bytes_max + 2 * LIMITS.inline_max;
        assert!(buffer.len() <= bound, "{} bytes pile up", buffer.len());
        assert!(parser.missing(buffer.len()) <= bound, "room is asked for without bound");
    }
    (requests, None)
}

#[track_caller]
fn assert_one_value(out: &[u8], args: &Args) {
    assert_eq!(value_end(out, 0), Some(out.len()), "{args:?}: {:?}", String::from_utf8_lossy(out));
}

fn assert_within_limits(command: &Command) {
    let key_fits = |key: &Bytes| key.len() <= LIMITS.key_max;
    let value_fits = |value: &Bytes| value.len() <= LIMITS.value_max;
    let fits = match command.operands() {
        Operands::None | Operands::Words(_) => true,
        Operands::Script(call) => call.keys.iter().all(key_fits) && call.args.iter().all(value_fits),
        Operands::Key(key) => key_fits(key),
        Operands::KeyAndValue(key, value) => key_fits(key) && value_fits(value),
        Operands::Compared(key, change) => key_fits(key) && change.value().is_none_or(value_fits),
        Operands::Pairs(pairs) => {
            !pairs.is_empty() && pairs.iter().all(|(key, value)| key_fits(key) && value_fits(value))
        }
        Operands::Keys(keys) => !keys.is_empty() && keys.iter().all(key_fits),
        Operands::All(transaction) => {
            transaction.commands.iter().for_each(assert_within_limits);
            transaction.watched.iter().all(|(key, _)| key_fits(key))
        }
    };
    assert!(fits, "{command:?} is over the limits");
}

/// What the store may answer.
fn replies(command: &Command) -> Vec<Reply> {
    let value = Bytes::from_static(b"v\r\n-x");
    let result = match command {
        Command::Get { .. } => vec![Reply::Value(value), Reply::NotFound],
        Command::GetMany { keys } => vec![Reply::Values(keys.iter().map(|_| Some(value.clone())).collect())],
        Command::Put { .. }
        | Command::PutMany { .. }
        | Command::Failover
        | Command::DeleteAll
        | Command::RemoveSlave { .. }
        | Command::ChangeMembers { .. } => vec![Reply::Done],
        Command::Delete { .. } | Command::Exists { .. } | Command::KeyCount | Command::ValueLength { .. } => {
            vec![Reply::Count(2)]
        }
        Command::GetVersioned { .. } => vec![Reply::Values(vec![Some(value.clone()), Some(value)])],
        Command::Compare { .. } => {
            vec![Reply::Done, Reply::NotFound, Reply::Value(value), Reply::Count(1)]
        }
        Command::Update { .. } => {
            vec![Reply::Done, Reply::NotFound, Reply::Count(7), Reply::Integer(-7)]
        }
        Command::Swap { .. } | Command::Take { .. } | Command::Renew { .. } => {
            vec![Reply::Value(value), Reply::NotFound]
        }
        Command::Examine { .. } => vec![Reply::Value(value), Reply::Count(1), Reply::NotFound],
        Command::TimeToLive { .. } => vec![Reply::Integer(-2), Reply::Integer(1500)],
        Command::PutManyIfNone { .. } => vec![Reply::Count(1)],
        Command::Scan { .. } => vec![Reply::Page { next: 7, keys: vec![value] }],
        Command::Keys { .. } => vec![Reply::Values(vec![Some(value)]), Reply::Values(Vec::new())],
        Command::RandomKey => vec![Reply::Value(value), Reply::NotFound],
        Command::Transact { transaction } => {
            let all = transaction.commands.iter().map(|command| replies(command)[0].clone()).collect();
            vec![Reply::Many(Replies(all)), Reply::NotFound]
        }
        Command::Watch { keys } => vec![Reply::Versions(vec![None; keys.len()])],
        Command::Evaluate { .. } | Command::ScriptCache { .. } => {
            vec![Reply::Encoded(Bytes::from_static(b"*2\r\n$1\r\na\r\n_\r\n")), Reply::Done]
        }
        Command::Transfer { .. } => vec![Reply::Done, Reply::Count(1)],
        Command::Time => vec![Reply::Values(vec![Some(value.clone()), Some(value)])],
        Command::Status => vec![Reply::Text("# Server\r\ndsm_role:primary\r\n".to_owned())],
    };
    let errors = ErrorWord::ALL.iter().map(|word| Reply::error(*word, "line\r\nbreak"));
    result.into_iter().chain(errors).collect()
}

/// Where the RESP value that begins at `at` ends; `None` when it is not a whole one.
fn value_end(bytes: &[u8], at: usize) -> Option<usize> {
    let line_end = at + bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
    let after = line_end + 2;
    let number = || std::str::from_utf8(&bytes[at + 1..line_end]).ok()?.parse::<i64>().ok();
    let values = |count: i64| (0..count).try_fold(after, |at, _| value_end(bytes, at));
    match bytes[at] {
        b'+' | b'-' if bytes[at..line_end].iter().any(|byte| matches!(byte, b'\r' | b'\n')) => None,
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

/// What clients send: arrays, inline requests, and what goes wrong.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let array = |words: &[&str]| {
        let mut out = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| out += &format!("${}\r\n{word}\r\n", word.len()));
        out
    };
    let texts = [
        array(&["SET", "k", "v"]) + &array(&["GET", "k"]) + &array(&["DEL", "k", "l"]),
        array(&["MSET", "a", "1", "b", ""]) + &array(&["MGET", "a", "b"]) + &array(&["EXISTS", "a"]),
        array(&["HELLO", "3", "AUTH", "default", "x", "SETNAME", "n"]) + &array(&["CLIENT", "INFO"]),
        array(&["CLIENT", "SETINFO", "LIB-NAME", "x"]) + &array(&["COMMAND", "DOCS", "get"]),
        array(&["CONFIG", "GET", "app*"]) + &array(&["INFO", "server"]) + &array(&["RESET"]),
        array(&["STRLEN", "k"]) + &array(&["GETRANGE", "k", "0", "-2"]) + &array(&["TYPE", "k"]),
        array(&["OBJECT", "ENCODING", "k"]) + &array(&["MEMORY", "USAGE", "k", "SAMPLES", "5"]),
        array(&["SET", "k", "v", "IFEQ", "w", "GET"])
            + &array(&["DELEX", "k", "IFNE", "v"])
            + &array(&["DELIFEQ", "k", "v"]),
        array(&["DSM.GETV", "k"])
            + &array(&["DSM.SETV", "k", "v", "3.17"])
            + &array(&["DSM.DELV", "k", "3.17"]),
        "PING\r\nSET k \"a b\\x00\\n\"\r\nGET 'it\\'s'\r\nQUIT\r\n".to_owned(),
        "POST / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$99\r\n".to_owned(),
        "*-1\r\n*0\r\n\r\n*1\r\nx\r\n".to_owned(),
        "GET \"k\r\n".to_owned(),
    ];
    texts.into_iter().map(|text| [&[6], text.as_bytes()].concat()).collect()
}
