//! A connection to the HTTP port: the bytes between a stream and hyper, and how long that may last.
//!
//! Owns the bounds of a connection. A head has [`HEAD_BYTES_MAX`] bytes at most, and a connection lasts until a fixed time after
//! its last request, whatever its other side does: so none is held by sending or reading slowly.

use super::events::EventPieces;
use crate::env::Stream;
use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{ready, Context, Poll};
use std::time::Duration;
use tokio::io::{
    AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, DuplexStream, ReadBuf,
};
use tokio::time::Instant;

/// How long a connection may take until its first request is whole, and be silent after an answer.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(10);

/// How long the answer to a request may take, its reader included.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The longest head of a request, in bytes; a longer one is refused.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most fields of a head.
const FIELDS_MAX: usize = 64;

/// What one write takes, in bytes.
const PART_BYTES: usize = 16 * 1024;

/// How long the other side may take to close its end once this one is closed, and what it may still send until then.
const PARTING_MAX: Duration = Duration::from_millis(500);
const PARTING_BYTES_MAX: usize = 64 * 1024;

/// By when a connection is over.
pub(super) struct ConnectionLife(Cell<Instant>);

impl ConnectionLife {
    pub(super) fn new() -> Self {
        ConnectionLife(Cell::new(Instant::now() + IDLE_MAX))
    }

    /// Lets the connection last so long from now on.
    pub(super) fn extend(&self, time: Duration) {
        self.0.set(Instant::now() + time);
    }

    /// Waits for its end.
    async fn over(&self) {
        while Instant::now() < self.0.get() {
            tokio::time::sleep_until(self.0.get()).await;
        }
    }
}

/// The body of an answer.
pub(super) enum HttpBody {
    /// What is there at once, until it is taken.
    Whole(Option<Bytes>),
    /// What comes piece by piece.
    Stream(EventPieces),
}

impl HttpBody {
    /// This text or page.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        HttpBody::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
    }
}

impl Body for HttpBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            HttpBody::Whole(bytes) => bytes.take(),
            HttpBody::Stream(pieces) => ready!(pieces.as_mut().poll_next(context)),
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, HttpBody::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            HttpBody::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            HttpBody::Stream(_) => SizeHint::default(),
        }
    }
}

/// Carries the requests of a connection to hyper, and their answers back, until either side ends it or its life is over.
pub(super) async fn carry<F>(
    stream: &Stream,
    life: &ConnectionLife,
    answered: impl Fn(Request<Incoming>) -> F,
) where
    F: Future<Output = Response<HttpBody>>,
{
    let (near, far) = tokio::io::duplex(PART_BYTES);
    let service = service_fn(|request| {
        let answered = answered(request);
        async { Ok::<_, Infallible>(answered.await) }
    });
    let serving = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX)
        .serve_connection(Pipe(near), service);
    let both = async {
        // What hyper says of the end is of no use to anybody: the other side has gone, or has had its answer.
        let _ = tokio::join!(serving, pump(stream, far));
    };
    tokio::select! {
        biased;
        () = both => {}
        () = life.over() => {}
    }
}

/// Moves bytes between a stream and what hyper reads and writes, until hyper has written all.
async fn pump(stream: &Stream, far: DuplexStream) -> io::Result<()> {
    let (mut from_server, mut to_server) = tokio::io::split(far);
    let inward = async {
        let mut buffer = BytesMut::with_capacity(PART_BYTES);
        while stream.read_at_most(&mut buffer, PART_BYTES).await.is_ok_and(|read| read > 0) {
            if to_server.write_all(&buffer).await.is_err() {
                break;
            }
            buffer.clear();
        }
        // Fails only when hyper has ended already.
        let _ = to_server.shutdown().await;
        std::future::pending::<()>().await;
    };
    let outward = async {
        let mut buffer = [0; PART_BYTES];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 {
                return stream.end_write().await;
            }
            stream.write_all(&buffer[..read]).await?;
        }
    };
    tokio::select! {
        biased;
        written = outward => written?,
        () = inward => {}
    }
    // If something were left unread, the kernel would reset the connection, and the other side might lose the answer.
    let reading = async {
        let (mut buffer, mut thrown_away) = (BytesMut::with_capacity(PART_BYTES), 0);
        while thrown_away < PARTING_BYTES_MAX && stream.read_off(&mut buffer).await.is_ok_and(|read| read > 0)
        {
            thrown_away += buffer.len();
            buffer.clear();
        }
    };
    let _ = tokio::time::timeout(PARTING_MAX, reading).await;
    Ok(())
}

/// hyper's end of the pipe.
struct Pipe(DuplexStream);

impl hyper::rt::Read for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 4096];
        let most = room.remaining().min(bytes.len());
        let mut buffer = ReadBuf::new(&mut bytes[..most]);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
        room.put_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
