//! One end of a Unix stream socket: of a connection on this machine, or of a pair within this process.
//!
//! Owns how the system is asked about it. tokio's own type asks for everything at once, to read and to write. Of a Unix socket
//! the system then tells each time the other side has read something: "there is room to write", though there was room before.
//! (Of TCP it tells so only after a write that found none.) That woke a slave twice for each batch it answers, and cost more
//! than TCP's work saved. So here the system is asked about room only while a write waits for it.

use bytes::BufMut;
use dsm_protocol::secret::Channel;
use rustix::net::{SendAncillaryBuffer, SendFlags, SocketAddrUnix};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tokio::net::unix::pipe;

/// How long a write waits that cannot even ask the system, for lack of a descriptor.
const BLIND_WAIT: Duration = Duration::from_millis(5);

/// A connection. One task may read while another writes.
#[derive(Debug)]
pub struct UnixConnection {
    /// The socket. Of tokio's types, the ends of pipes are those that ask for one direction alone, and a stream socket is read
    /// like a pipe.
    socket: pipe::Receiver,
    channel: Channel,
}

impl UnixConnection {
    /// Takes a stream socket that is connected, and what both its ends know it by.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::env) fn new(socket: impl Into<UnixStream>, channel: Channel) -> io::Result<Self> {
        let socket = socket.into();
        socket.set_nonblocking(true)?;
        let socket = pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(socket))?;
        Ok(UnixConnection { socket, channel })
    }

    /// The ends of a new connection to that name.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::env) fn pair(name: &str) -> io::Result<(Self, Self)> {
        let (near, far) = UnixStream::pair()?;
        let channel = Channel::named(&format!("local:{name}"));
        Ok((UnixConnection::new(near, channel)?, UnixConnection::new(far, channel)?))
    }

    /// What both its ends know it by.
    pub(super) fn channel(&self) -> Channel {
        self.channel
    }

    /// Runs `read` unless it is known that there is nothing; if it says `WouldBlock`, that is known from then on.
    ///
    /// # Errors
    /// What `read` says; `WouldBlock` when nothing is there.
    pub(super) fn try_io(&self, read: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        self.socket.try_io(read)
    }

    /// Reads what is there and fits.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` when nothing is there.
    pub(super) fn try_read_buf(&self, room: &mut impl BufMut) -> io::Result<usize> {
        self.socket.try_read_buf(room)
    }

    /// Waits until something may be there.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Writes what the system takes at once.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` when it takes nothing now.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL)?)
    }

    /// The same of what is in several places.
    ///
    /// # Errors
    /// As [`UnixConnection::try_write`].
    pub(super) fn try_write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut nothing = SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(&self.socket, parts, &mut nothing, SendFlags::NOSIGNAL)?)
    }

    /// Waits until the system may take something.
    pub(super) async fn writable(&self) -> io::Result<()> {
        // tokio asks about a descriptor once: so this is another one of the same socket.
        match self.socket.as_fd().try_clone_to_owned() {
            Ok(second) => pipe::Sender::from_owned_fd_unchecked(second)?.writable().await,
            Err(_) => {
                tokio::time::sleep(BLIND_WAIT).await;
                Ok(())
            }
        }
    }

    /// The address of this end, as Redis writes one that has no port: `unix:/path:0`. Empty within a process.
    pub(super) fn local_address(&self) -> String {
        let address = rustix::net::getsockname(&self.socket).and_then(SocketAddrUnix::try_from);
        let path = address.ok().and_then(|address| Some(address.path()?.to_string_lossy().into_owned()));
        path.map_or_else(String::new, |path| format!("unix:{path}:0"))
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
