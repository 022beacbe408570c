//! Redis' protocol: GET and SET, or SET and WAIT, in batches over one connection.
//!
//! It reuses two buffers, and allocates nothing for a request. It has its own parser of replies and does not use the
//! store's: what is measured must not judge itself.

use super::stream::LoadStream;
use super::{Access, Answer, Execution, LoadRequest, ResponseSink};
use crate::access::StoreAccess;
use crate::clock::Clock;
use crate::value::{push_number, TextTable, Texts};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;

/// What a read from the socket can bring at first, in bytes. It grows to the largest answer.
const INPUT_BYTES: usize = 16 * 1024;

/// The longest line of a reply, in bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// The longest value that is taken, in bytes; Redis' own limit.
const BULK_BYTES_MAX: usize = 512 * 1024 * 1024;

/// The longest word of an error that becomes a class, in bytes.
const CLASS_BYTES_MAX: usize = 24;

/// The bytes of all requests, made once.
#[derive(Debug)]
pub(crate) struct Script {
    texts: Arc<Texts>,
    get: TextTable,
    set_head: TextTable,
    /// What follows each SET, and how many replicas it asks for.
    wait: Option<(Vec<u8>, u64)>,
}

impl Script {
    /// `wait`: how many replicas must have each write, and for how many milliseconds at most the server waits for them.
    pub(crate) fn new(texts: Arc<Texts>, wait: Option<(u64, u64)>) -> Script {
        let count = texts.keys().len();
        let bulk = |out: &mut Vec<u8>, text: &[u8]| {
            out.push(b'$');
            push_number(out, text.len() as u64, 10);
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        };
        let get = TextTable::new(count, |key, out| {
            out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
            bulk(out, texts.keys().get(key));
        });
        let set_head = TextTable::new(count, |key, out| {
            out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
            bulk(out, texts.keys().get(key));
            out.push(b'$');
            push_number(out, texts.value_bytes() as u64, 10);
            out.extend_from_slice(b"\r\n");
        });
        let wait = wait.map(|(replicas, limit_ms)| {
            let mut out = b"*3\r\n$4\r\nWAIT\r\n".to_vec();
            bulk(&mut out, replicas.to_string().as_bytes());
            bulk(&mut out, limit_ms.to_string().as_bytes());
            (out, replicas)
        });
        Script { texts, get, set_head, wait }
    }

    fn push(&self, request: LoadRequest, out: &mut Vec<u8>) {
        match request.action {
            Access::Read => out.extend_from_slice(self.get.get(request.key)),
            Access::Write(version) => {
                out.extend_from_slice(self.set_head.get(request.key));
                self.texts.push_value(request.key, version, out);
                out.extend_from_slice(b"\r\n");
                if let Some((wait, _)) = &self.wait {
                    out.extend_from_slice(wait);
                }
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct RespConnection {
    stream: LoadStream,
    script: Arc<Script>,
    clock: Clock,
    output: Vec<u8>,
    input: Vec<u8>,
    /// What of `input` is filled and not yet read.
    filled: std::ops::Range<usize>,
}

/// A reply as it stands in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    Bulk(&'a [u8]),
    Nil,
}

impl RespConnection {
    /// Connects, and gives the password.
    ///
    /// # Errors
    /// Those of the connect, and that the password is refused.
    pub(crate) async fn open(
        address: &str,
        access: &StoreAccess,
        script: Arc<Script>,
        clock: Clock,
    ) -> io::Result<RespConnection> {
        let stream = LoadStream::open(address, access).await?;
        let (output, input) = (Vec::new(), vec![0; INPUT_BYTES]);
        let mut connection = RespConnection { stream, script, clock, output, input, filled: 0..0 };
        if let Some(request) = access.auth() {
            connection.log_in(request).await?;
        }
        Ok(connection)
    }

    async fn log_in(&mut self, request: &[u8]) -> io::Result<()> {
        self.output.extend_from_slice(request);
        let mut sent = 0;
        loop {
            self.send_and_receive(&mut sent).await?;
            let Some((reply, length)) = parse(&self.input[self.filled.clone()])? else { continue };
            match reply {
                Reply::Simple(b"OK") => {}
                Reply::Error(text) => {
                    let text = String::from_utf8_lossy(text);
                    return Err(io::Error::other(format!("the password is refused: {text}")));
                }
                _ => return Err(invalid("no answer to a password")),
            }
            self.filled.start += length;
            return Ok(());
        }
    }

    /// See [`super::StoreConnection::exchange`].
    pub(crate) async fn exchange(
        &mut self,
        batch: &[LoadRequest],
        sink: &mut impl ResponseSink,
    ) -> io::Result<()> {
        self.output.clear();
        for request in batch {
            self.script.push(*request, &mut self.output);
        }
        let mut sent = 0;
        let mut answered = 0;
        // With WAIT: the error answer to the SET before it, if there was one.
        let mut set = None;
        while answered < batch.len() {
            self.send_and_receive(&mut sent).await?;
            let at_ns = self.clock.now_ns();
            while let Some((reply, length)) = parse(&self.input[self.filled.clone()])? {
                let request =
                    batch.get(answered).ok_or_else(|| invalid("an answer that nobody asked for"))?;
                let waits = match request.action {
                    Access::Write(_) => self.script.wait.as_ref().map(|(_, replicas)| *replicas),
                    Access::Read => None,
                };
                let answer = match (waits, set.take()) {
                    (Some(_), None) => {
                        // The word must outlive the input; there are few different ones.
                        set = Some(match write_answer(reply) {
                            Answer::Error { class, fate, leave } => {
                                Err(Some((class.to_owned(), fate, leave)))
                            }
                            Answer::Odd => Err(None),
                            Answer::Value(_) | Answer::Missing | Answer::Done => Ok(()),
                        });
                        self.filled.start += length;
                        continue;
                    }
                    (Some(_), Some(Err(refused))) => {
                        let answer = match &refused {
                            Some((class, fate, leave)) => Answer::Error { class, fate: *fate, leave: *leave },
                            None => Answer::Odd,
                        };
                        sink.answer(answered, answer, at_ns);
                        answered += 1;
                        self.filled.start += length;
                        continue;
                    }
                    (Some(replicas), Some(Ok(()))) => wait_answer(reply, replicas),
                    (None, _) => match request.action {
                        Access::Read => read_answer(reply),
                        Access::Write(_) => write_answer(reply),
                    },
                };
                sink.answer(answered, answer, at_ns);
                answered += 1;
                self.filled.start += length;
            }
        }
        if !self.filled.is_empty() {
            return Err(invalid("more answers than requests"));
        }
        Ok(())
    }

    /// Sends the rest and waits for input, both at once: with a long batch a server may stop reading until its answers
    /// are taken.
    async fn send_and_receive(&mut self, sent: &mut usize) -> io::Result<()> {
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.filled.end == self.input.len() {
            self.input.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
            if self.filled.end == self.input.len() {
                self.input.resize((self.input.len() * 2).min(BULK_BYTES_MAX * 2), 0);
            }
        }
        let RespConnection { stream, output, input, filled, .. } = self;
        let received = poll_fn(|context| {
            while *sent < output.len() {
                match stream.poll_write(context, &output[*sent..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => *sent += written,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            stream.poll_read(context, &mut input[filled.end..])
        })
        .await?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled.end += received;
        Ok(())
    }
}

fn read_answer(reply: Reply<'_>) -> Answer<'_> {
    match reply {
        Reply::Bulk(value) => Answer::Value(value),
        Reply::Nil => Answer::Missing,
        Reply::Error(text) => error_answer(text),
        Reply::Simple(_) | Reply::Integer(_) => Answer::Odd,
    }
}

fn write_answer(reply: Reply<'_>) -> Answer<'_> {
    match reply {
        Reply::Simple(b"OK") => Answer::Done,
        Reply::Error(text) => error_answer(text),
        Reply::Simple(_) | Reply::Integer(_) | Reply::Bulk(_) | Reply::Nil => Answer::Odd,
    }
}

fn wait_answer(reply: Reply<'_>, replicas: u64) -> Answer<'_> {
    match reply {
        Reply::Integer(acknowledged) if u64::try_from(acknowledged).is_ok_and(|count| count >= replicas) => {
            Answer::Done
        }
        // It was executed, but not where it should be safe.
        Reply::Integer(_) => Answer::Error { class: "wait", fate: Execution::Unknown, leave: false },
        // The SET before it was acknowledged.
        Reply::Error(_) => Answer::Error { class: "wait", fate: Execution::Unknown, leave: false },
        Reply::Simple(_) | Reply::Bulk(_) | Reply::Nil => Answer::Odd,
    }
}

fn error_answer(text: &[u8]) -> Answer<'_> {
    let word = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let class = match word {
        b"STANDBY" => "standby",
        b"NOQUORUM" => "noquorum",
        b"LOADING" => "loading",
        b"READONLY" => "readonly",
        b"BUSY" => "busy",
        b"OOM" => "oom",
        b"UNKNOWN" => "unknown",
        b"ERR" => "err",
        word => std::str::from_utf8(word)
            .ok()
            .filter(|word| !word.is_empty() && word.len() <= CLASS_BYTES_MAX)
            .filter(|word| word.bytes().all(|byte| byte.is_ascii_graphic()))
            .unwrap_or("err"),
    };
    let fate = if class == "unknown" { Execution::Unknown } else { Execution::NotExecuted };
    Answer::Error { class, fate, leave: class == "standby" }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The first reply in `input` and how many bytes it takes; `None` while it is not whole.
fn parse(input: &[u8]) -> io::Result<Option<(Reply<'_>, usize)>> {
    let Some(&kind) = input.first() else { return Ok(None) };
    let Some(end) = memchr::memchr(b'\r', &input[1..]).map(|at| at + 1) else {
        if input.len() > LINE_BYTES_MAX {
            return Err(invalid("a line that does not end"));
        }
        return Ok(None);
    };
    let line = &input[1..end];
    let behind = end + 2;
    if input.len() < behind {
        return Ok(None);
    }
    if input[end + 1] != b'\n' {
        return Err(invalid("a line that ends wrongly"));
    }
    let reply = match kind {
        b'+' => Reply::Simple(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Integer(number(line)?),
        b'_' => Reply::Nil,
        b'$' => {
            let Ok(length) = usize::try_from(number(line)?) else { return Ok(Some((Reply::Nil, behind))) };
            if length > BULK_BYTES_MAX {
                return Err(invalid("a value that is too long"));
            }
            let end = behind + length;
            let Some(tail) = input.get(end..end + 2) else { return Ok(None) };
            if tail != b"\r\n" {
                return Err(invalid("a value that is longer or shorter than it says"));
            }
            return Ok(Some((Reply::Bulk(&input[behind..end]), end + 2)));
        }
        _ => return Err(invalid("not Redis' protocol")),
    };
    Ok(Some((reply, behind)))
}

fn number(line: &[u8]) -> io::Result<i64> {
    let text = std::str::from_utf8(line).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| invalid("a number that is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_once_they_are_whole() {
        let replies: [(&[u8], Reply<'_>); 7] = [
            (b"+OK\r\n", Reply::Simple(b"OK")),
            (b"-BUSY a\r\n", Reply::Error(b"BUSY a")),
            (b":-12\r\n", Reply::Integer(-12)),
            (b"$3\r\na\r\n\r\n", Reply::Bulk(b"a\r\n")),
            (b"$0\r\n\r\n", Reply::Bulk(b"")),
            (b"$-1\r\n", Reply::Nil),
            (b"_\r\n", Reply::Nil),
        ];
        for (bytes, reply) in replies {
            for length in 0..bytes.len() {
                // `$3\r\na\r\n` is not a shorter value.
                assert_eq!(parse(&bytes[..length]).unwrap(), None, "{bytes:?} {length}");
            }
            let more = [bytes, b"+more\r\n"].concat();
            assert_eq!(parse(&more).unwrap(), Some((reply, bytes.len())));
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bytes in [&b"HTTP/1.1\r\n"[..], b"+OK\rx", b"$3\r\nabcde", b":x\r\n", b"$9999999999\r\n"] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_word_of_an_error_is_its_class_and_fate() {
        let unknown = Answer::Error { class: "unknown", fate: Execution::Unknown, leave: false };
        assert_eq!(error_answer(b"UNKNOWN the write may"), unknown);
        let standby = Answer::Error { class: "standby", fate: Execution::NotExecuted, leave: true };
        assert_eq!(error_answer(b"STANDBY 127.0.0.1:1"), standby);
        let other = Answer::Error { class: "MISCONF", fate: Execution::NotExecuted, leave: false };
        assert_eq!(error_answer(b"MISCONF x"), other);
        let odd = Answer::Error { class: "err", fate: Execution::NotExecuted, leave: false };
        assert_eq!(error_answer(b"\xff\xfe"), odd);
    }

    #[test]
    fn a_write_with_too_few_replicas_is_not_done() {
        assert_eq!(wait_answer(Reply::Integer(2), 2), Answer::Done);
        assert!(matches!(
            wait_answer(Reply::Integer(1), 2),
            Answer::Error { class: "wait", fate: Execution::Unknown, .. }
        ));
    }

    #[test]
    fn requests_are_as_redis_wants_them() {
        let texts = Arc::new(Texts::new("k", 2, 60, 0));
        let script = Script::new(Arc::clone(&texts), Some((1, 1000)));
        let mut out = Vec::new();
        script.push(LoadRequest { key: 1, action: Access::Read }, &mut out);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$2\r\nk1\r\n");
        out.clear();
        let version = crate::value::WriteNumber { writer: 1, seq: 1, floor: 0 };
        script.push(LoadRequest { key: 0, action: Access::Write(version) }, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("*3\r\n$3\r\nSET\r\n$2\r\nk0\r\n$60\r\nk0:000000:1:1:1;"), "{text}");
        assert!(text.ends_with("\r\n*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n1000\r\n"), "{text}");
    }
}
