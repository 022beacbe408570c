//! The byte stream of a connection of the load: TCP, or TLS over it.

use crate::access::StoreAccess;
use crate::tls::TlsSession;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

#[derive(Debug)]
pub(crate) struct LoadStream {
    socket: TcpStream,
    session: Option<TlsSession>,
}

impl LoadStream {
    /// Connects, the handshake of TLS included.
    ///
    /// # Errors
    /// Those of the connect and of the handshake.
    pub(crate) async fn open(address: &str, access: &StoreAccess) -> io::Result<LoadStream> {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut session = access.tls().map(|tls| tls.session(address).map(TlsSession::new)).transpose()?;
        if let Some(session) = &mut session {
            poll_fn(|context| {
                polled(session.shake_hands(&mut PolledSocket { socket: &mut socket, context }))
            })
            .await?;
        }
        Ok(LoadStream { socket, session })
    }

    /// Writes some of the bytes. What TLS has taken and the system has not leaves with the reads.
    pub(crate) fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let LoadStream { socket, session } = self;
        match session {
            None => Pin::new(socket).poll_write(context, bytes),
            Some(session) => polled(session.write(&mut PolledSocket { socket, context }, bytes)),
        }
    }

    /// Reads what has come; 0 at the end.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let LoadStream { socket, session } = self;
        let mut socket = PolledSocket { socket, context };
        polled(match session {
            None => socket.read(bytes),
            Some(session) => session.read(&mut socket, bytes),
        })
    }
}

fn polled<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

/// A socket for whoever asks without waiting: a task is woken once there is more to do.
struct PolledSocket<'a, 'b> {
    socket: &'a mut TcpStream,
    context: &'a mut Context<'b>,
}

fn at_once<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

impl Read for PolledSocket<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // Through `AsyncRead`, which after a short read knows that the socket is empty, and saves a second system call.
        let mut buffer = ReadBuf::new(bytes);
        at_once(Pin::new(&mut *self.socket).poll_read(self.context, &mut buffer))?;
        Ok(buffer.filled().len())
    }
}

impl Write for PolledSocket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        at_once(Pin::new(&mut *self.socket).poll_write(self.context, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
