//! etcd's key-value API, version 3: a linearizable Range and a Put, each a gRPC call over one HTTP/2 connection.
//!
//! The calls of a batch are streams of that connection, all at once. Owns the two calls and their framing in gRPC (a
//! prefix of five bytes, the status in the trailers: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>);
//! the crate `h2` does HTTP/2. Never follows a leader and knows no authentication.

use super::{Access, Answer, Execution, LoadRequest, ResponseSink};
use crate::clock::Clock;
use crate::value::Texts;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use h2::client::SendRequest;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Uri};
use prost::Message;
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;

/// Compression flag and length, before each message.
const PREFIX_BYTES: usize = 5;

/// The longest answer that is taken, in bytes.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;

/// The receive windows of a stream and of the connection, in bytes. HTTP/2's default is 64 KiB for all.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// `etcdserverpb.RangeRequest`, as far as it is used. `serializable` (number 7) is left out: the read is linearizable.
#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// `etcdserverpb.RangeResponse`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

/// `mvccpb.KeyValue`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.PutResponse`: nothing in it is used, but it must be one.
#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

/// A connection.
#[derive(Debug)]
pub(crate) struct EtcdConnection {
    sender: SendRequest<Bytes>,
    /// Moves the frames; it ends with the connection.
    driver: tokio::task::JoinHandle<()>,
    range: Uri,
    put: Uri,
    texts: Arc<Texts>,
    clock: Clock,
}

impl Drop for EtcdConnection {
    fn drop(&mut self) {
        // Abandoned streams would keep it open.
        self.driver.abort();
    }
}

/// What a call brought.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Value(Bytes),
    Missing,
    Done,
    /// gRPC's status, not 0.
    Refused(u32),
}

impl EtcdConnection {
    /// Connects.
    ///
    /// # Errors
    /// Those of the connect and of HTTP/2's preface.
    pub(crate) async fn open(address: &str, texts: Arc<Texts>, clock: Clock) -> io::Result<EtcdConnection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (sender, connection) = builder.handshake(stream).await.map_err(broken)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Every call under way ends with the same error and tells it.
                log::debug!("etcd connection ended cause={error}");
            }
        });
        let authority: Authority =
            address.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not an address"))?;
        let uri = |path: &'static str| {
            let mut parts = http::uri::Parts::default();
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = Some(authority.clone());
            parts.path_and_query = Some(PathAndQuery::from_static(path));
            Uri::from_parts(parts).map_err(io::Error::other)
        };
        let (range, put) = (uri("/etcdserverpb.KV/Range")?, uri("/etcdserverpb.KV/Put")?);
        Ok(EtcdConnection { sender, driver, range, put, texts, clock })
    }

    /// See [`super::StoreConnection::exchange`].
    pub(crate) async fn exchange(
        &mut self,
        batch: &[LoadRequest],
        sink: &mut impl ResponseSink,
    ) -> io::Result<()> {
        let this = &*self;
        let call = |(index, request): (usize, &LoadRequest)| {
            let request = *request;
            async move { (index, this.call(request).await, this.clock.now_ns()) }
        };
        let mut calls: FuturesUnordered<_> = batch.iter().enumerate().map(call).collect();
        while let Some((index, outcome, at_ns)) = calls.next().await {
            let answer = match &outcome? {
                Outcome::Value(value) => {
                    sink.answer(index, Answer::Value(value), at_ns);
                    continue;
                }
                Outcome::Missing => Answer::Missing,
                Outcome::Done => Answer::Done,
                Outcome::Refused(status) => refusal(*status),
            };
            sink.answer(index, answer, at_ns);
        }
        Ok(())
    }

    async fn call(&self, request: LoadRequest) -> io::Result<Outcome> {
        let key = Bytes::copy_from_slice(self.texts.keys().get(request.key));
        match request.action {
            Access::Read => {
                let answer = self.unary::<RangeResponse>(&self.range, &RangeRequest { key }).await?;
                Ok(match answer {
                    Ok(RangeResponse { mut kvs }) => match kvs.pop() {
                        Some(KeyValue { value }) => Outcome::Value(value),
                        None => Outcome::Missing,
                    },
                    Err(status) => Outcome::Refused(status),
                })
            }
            Access::Write(version) => {
                let mut value = Vec::with_capacity(self.texts.value_bytes());
                self.texts.push_value(request.key, version, &mut value);
                let message = PutRequest { key, value: value.into() };
                let answer = self.unary::<PutResponse>(&self.put, &message).await?;
                Ok(answer.map_or_else(Outcome::Refused, |PutResponse {}| Outcome::Done))
            }
        }
    }

    /// One call; its answer, or gRPC's status.
    async fn unary<R: Message + Default>(
        &self,
        uri: &Uri,
        message: &impl Message,
    ) -> io::Result<Result<R, u32>> {
        let mut request = http::Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
        let mut sender = self.sender.clone().ready().await.map_err(broken)?;
        let (response, mut body) = sender.send_request(request, false).map_err(broken)?;
        body.send_data(framed(message), true).map_err(broken)?;
        let response = response.await.map_err(broken)?;
        if response.status() != http::StatusCode::OK {
            return Err(invalid("not gRPC"));
        }
        // An error may come without a body, its status in the headers.
        if let Some(status) = status_in(response.headers())? {
            if status != 0 {
                return Ok(Err(status));
            }
        }
        let mut stream = response.into_body();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk.map_err(broken)?;
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(invalid("an answer that is too long"));
            }
            stream.flow_control().release_capacity(chunk.len()).map_err(broken)?;
            bytes.extend_from_slice(&chunk);
        }
        let trailers = stream.trailers().await.map_err(broken)?.unwrap_or_default();
        match status_in(&trailers)? {
            Some(0) => unframed(bytes.freeze()).map(Ok),
            Some(status) => Ok(Err(status)),
            None => Err(invalid("an answer without a status")),
        }
    }
}

/// The message after its prefix, not compressed.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// The one message of an answer.
fn unframed<R: Message + Default>(bytes: Bytes) -> io::Result<R> {
    let Some((&[compressed, a, b, c, d], rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(invalid("an answer without a message"));
    };
    if compressed != 0 || u32::from_be_bytes([a, b, c, d]) as usize != rest.len() {
        return Err(invalid("an answer that is longer or shorter than it says"));
    }
    R::decode(bytes.slice(PREFIX_BYTES..)).map_err(|_| invalid("an answer that is no message"))
}

fn status_in(headers: &HeaderMap) -> io::Result<Option<u32>> {
    let Some(status) = headers.get("grpc-status") else { return Ok(None) };
    let number = status.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| invalid("a status that is none"))
}

/// What a status means: <https://grpc.io/docs/guides/status-codes/>.
fn refusal(status: u32) -> Answer<'static> {
    let (class, fate, leave) = match status {
        3 => ("grpc_invalid", Execution::NotExecuted, false),
        4 => ("grpc_deadline", Execution::Unknown, false),
        // Too many requests, or no space.
        8 => ("grpc_exhausted", Execution::NotExecuted, false),
        // No leader, a new leader, a proposal that took too long: some of them come after the proposal.
        14 => ("grpc_unavailable", Execution::Unknown, true),
        _ => ("grpc_other", Execution::Unknown, false),
    };
    Answer::Error { class, fate, leave }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionAborted, error)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::WriteNumber;
    use std::collections::BTreeMap;
    use tokio::net::TcpListener;

    const VERSION: WriteNumber = WriteNumber { writer: 1, seq: 1, floor: 0 };

    #[test]
    fn calls_and_answers_are_those_that_etcd_records() {
        // etcd 3.4.23 took these for a Put of `k1` = `v1` and a Range of `k1`, and answered with what stands below.
        let put = PutRequest { key: Bytes::from_static(b"k1"), value: Bytes::from_static(b"v1") };
        assert_eq!(framed(&put), &b"\x00\x00\x00\x00\x08\x0a\x02k1\x12\x02v1"[..]);
        let range = framed(&RangeRequest { key: Bytes::from_static(b"k1") });
        assert_eq!(range, &b"\x00\x00\x00\x00\x04\x0a\x02k1"[..]);
        let answer =
            b"\x00\x00\x00\x00\x1a\x0a\x18\x08\x87\xd5\xed\xba\x8f\xd5\x9d\xc1\x04\x10\xc0\xc0\xca\xaf\xc1\
            \xba\x96\x89\x2e\x18\x02\x20\x02";
        assert_eq!(unframed::<PutResponse>(Bytes::from_static(answer)).unwrap(), PutResponse {});
        let answer =
            b"\x00\x00\x00\x00\x2c\x0a\x18\x08\x87\xd5\xed\xba\x8f\xd5\x9d\xc1\x04\x10\xc0\xc0\xca\xaf\xc1\
            \xba\x96\x89\x2e\x18\x02\x20\x02\x12\x0e\x0a\x02k1\x10\x02\x18\x02\x20\x01\x2a\x02v1\x20\x01";
        let answer: RangeResponse = unframed(Bytes::from_static(answer)).unwrap();
        assert_eq!(answer.kvs, [KeyValue { value: Bytes::from_static(b"v1") }]);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for bytes in [&b""[..], b"\x00\x00\x00", b"\x01\x00\x00\x00\x00", b"\x00\x00\x00\x00\x05abc"] {
            assert!(unframed::<RangeResponse>(Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static("x"));
        assert!(status_in(&headers).is_err());
    }

    type Asked = (String, Bytes, h2::server::SendResponse<Bytes>);

    /// Answers as etcd would, the last call of each batch of `batch` first. The key `busy0` cannot be written.
    async fn fake_etcd(listener: TcpListener, batch: usize) {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let (asked, mut asks) = tokio::sync::mpsc::unbounded_channel();
        let answerer = tokio::spawn(async move {
            let mut values: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            let mut open: Vec<Asked> = Vec::new();
            while let Some(ask) = asks.recv().await {
                open.push(ask);
                if open.len() == batch {
                    open.drain(..).rev().for_each(|ask| answer(ask, &mut values));
                }
            }
        });
        while let Some(accepted) = connection.accept().await {
            let (request, respond) = accepted.unwrap();
            assert_eq!(request.headers()["content-type"], "application/grpc");
            assert_eq!(request.headers()["te"], "trailers");
            let asked = asked.clone();
            tokio::spawn(async move {
                let path = request.uri().path().to_owned();
                let bytes = request.into_body().data().await.unwrap().unwrap();
                asked.send((path, bytes, respond)).unwrap();
            });
        }
        drop(asked);
        answerer.await.unwrap();
    }

    fn answer((path, bytes, mut respond): Asked, values: &mut BTreeMap<Bytes, Bytes>) {
        let mut response = http::Response::new(());
        let answer = if path == "/etcdserverpb.KV/Put" {
            let put: PutRequest = unframed(bytes).unwrap();
            if put.key == "busy0" {
                response.headers_mut().insert("grpc-status", HeaderValue::from_static("8"));
                respond.send_response(response, true).unwrap();
                return;
            }
            values.insert(put.key, put.value);
            framed(&PutResponse {})
        } else {
            assert_eq!(path, "/etcdserverpb.KV/Range");
            let range: RangeRequest = unframed(bytes).unwrap();
            let value = values.get(&range.key).cloned();
            framed(&RangeResponse { kvs: value.map(|value| KeyValue { value }).into_iter().collect() })
        };
        let mut body = respond.send_response(response, false).unwrap();
        body.send_data(answer, false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        body.send_trailers(trailers).unwrap();
    }

    #[derive(Default)]
    struct Answers(BTreeMap<usize, String>);

    impl ResponseSink for Answers {
        fn answer(&mut self, index: usize, answer: Answer<'_>, _at_ns: u64) {
            let told = match answer {
                Answer::Value(value) => String::from_utf8_lossy(value).into_owned(),
                other => format!("{other:?}"),
            };
            assert_eq!(self.0.insert(index, told), None, "{index} was answered twice");
        }
    }

    #[tokio::test]
    async fn a_batch_is_answered_call_by_call_in_whatever_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(fake_etcd(listener, 3));
        let texts = Arc::new(Texts::new("busy", 3, 60, 0));
        let mut connection = EtcdConnection::open(&address, texts, Clock::start()).await.unwrap();
        let write = |key| LoadRequest { key, action: Access::Write(VERSION) };
        let read = |key| LoadRequest { key, action: Access::Read };
        let mut answers = Answers::default();
        connection.exchange(&[write(0), write(1), read(2)], &mut answers).await.unwrap();
        assert!(answers.0[&0].contains("grpc_exhausted"), "{:?}", answers.0);
        assert_eq!((answers.0[&1].as_str(), answers.0[&2].as_str()), ("Done", "Missing"));
        let mut answers = Answers::default();
        connection.exchange(&[read(0), read(1), read(2)], &mut answers).await.unwrap();
        assert!(answers.0[&1].starts_with("busy1:000000:1:1:1;"), "{:?}", answers.0);
        assert_eq!((answers.0[&0].as_str(), answers.0[&2].as_str()), ("Missing", "Missing"));
        drop(connection);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_goes_away_ends_the_exchange() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let _request = connection.accept().await;
        });
        let texts = Arc::new(Texts::new("k", 1, 60, 0));
        let mut connection = EtcdConnection::open(&address, texts, Clock::start()).await.unwrap();
        let request = [LoadRequest { key: 0, action: Access::Read }];
        let ended = connection.exchange(&request, &mut Answers::default()).await;
        assert!(ended.is_err());
        server.await.unwrap();
    }
}
