//! Sockets behind an enum, so that simulated ones fit without a type parameter on everything.
//!
//! Owns what all connections can do, whatever they travel over; no socket is opened anywhere else (`tests/tidy` checks that).
//!
//! | file | is |
//! |---|---|
//! | `tcp` | sockets of TCP: how they are listened at, and what the system is told about them |
//! | `tls/` | TLS over TCP, and the certificates |
//! | `names` | how a name is looked up, and each of its addresses dialed |
//! | `path_listener`, `unix_connection` | the files of Unix sockets; how one is read and written |
//! | `local_listener` | names within this process |
//! | `../sim/net.rs` | the simulated network |

mod local_listener;
mod names;
mod path_listener;
mod tcp;
mod tls;
mod unix_connection;

pub use local_listener::LocalListener;
pub(crate) use path_listener::try_sockets_in;
pub use path_listener::PathListener;
pub(crate) use tls::channel_of as tls_channel;
pub use tls::{ClientAuth, Tls, TlsError, TlsFiles, TlsStream};
pub use unix_connection::UnixConnection;

use super::FileIdentity;
use crate::address::{self, Transport};
use bytes::BytesMut;
use dsm_protocol::handshake::Security;
use dsm_protocol::secret::{Channel, Prover};
use std::io::{self, IoSlice};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};

/// What the system may keep in a Unix socket, in bytes, of which it makes twice as many with what it needs itself. It is
/// Linux's default, which people raise for the sake of other sockets.
const UNIX_SEND_BYTES: usize = 104 * 1024;

/// Makes a Unix socket at `path` to which those may connect whom the access rights `mode` let write. Waits for disks.
///
/// # Errors
/// What the system says, as for a path at which somebody listens.
pub(super) fn make_unix(path: &Path, mode: u32) -> io::Result<(OwnedFd, FileIdentity)> {
    path_listener::make(path, mode)
}

/// A socket that is listened at, of one of these networks.
#[derive(Debug)]
pub enum Listener {
    /// Over TCP.
    Tcp(TcpListener),
    /// Over TCP, with TLS alone.
    Tls(TcpListener, Tls),
    /// On this machine, by a path.
    Unix(PathListener),
    /// Within this process, by name.
    Local(LocalListener),
    /// In the simulated network.
    #[cfg(feature = "sim")]
    Sim(super::sim::SimListener),
}

impl Listener {
    /// Listens at `HOST:PORT`, over TCP. Unless the address says which, it is with TLS if there is `tls`.
    ///
    /// # Errors
    /// What the system says, as for a port in use.
    pub(super) async fn tcp(address: &str, tls: Option<&Tls>) -> io::Result<Self> {
        let (tls, address) = transport(address, tls)?;
        let listener = tcp::listen(address).await?;
        Ok(match tls {
            Some(tls) => Listener::Tls(listener, tls.clone()),
            None => Listener::Tcp(listener),
        })
    }

    /// Listens at a Unix socket that [`make_unix`] has made at `path`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn unix(path: PathBuf, made: (OwnedFd, FileIdentity)) -> io::Result<Self> {
        PathListener::new(path, made).map(Listener::Unix)
    }

    /// Waits for the next connection; gives the stream and the other side's address.
    ///
    /// # Errors
    /// What the system says; running out of file descriptors is one of them and passes.
    pub async fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Os(OsStream::Tcp(stream)), address.to_string()))
            }
            Listener::Tls(listener, tls) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Os(OsStream::Tls(Box::new(tls.accept(stream)?))), address.to_string()))
            }
            Listener::Unix(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::Os(OsStream::Unix(stream)), address))
            }
            Listener::Local(listener) => {
                Ok((Stream::Os(OsStream::Unix(listener.accept().await)), "in-process".to_owned()))
            }
            #[cfg(feature = "sim")]
            Listener::Sim(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::Sim(stream), address))
            }
        }
    }

    /// Whether whoever connects to `address` comes here. What cannot be found out is no.
    pub(crate) async fn is_reached_at(&self, address: &str) -> bool {
        match self {
            Listener::Tcp(listener) | Listener::Tls(listener, _) => {
                let (Ok(ours), Ok(found)) = (listener.local_addr(), names::look_up(address).await) else {
                    return false;
                };
                // Only an address of this machine can be bound.
                let is_here = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
                found.iter().any(|there| {
                    there.port() == ours.port()
                        && (there.ip() == ours.ip() || (ours.ip().is_unspecified() && is_here(there.ip())))
                })
            }
            Listener::Unix(listener) => listener.address() == address,
            Listener::Local(listener) => listener.address() == address,
            #[cfg(feature = "sim")]
            Listener::Sim(listener) => listener.local_address() == address,
        }
    }

    /// Whether other machines can connect, and whether that is with TLS; `None` if they cannot.
    pub(crate) fn open_to_others(&self) -> Option<Security> {
        let (listener, security) = match self {
            Listener::Tcp(listener) => (listener, Security::Plain),
            Listener::Tls(listener, _) => (listener, Security::Tls { is_node: false }),
            Listener::Unix(_) | Listener::Local(_) => return None,
            #[cfg(feature = "sim")]
            Listener::Sim(_) => return None,
        };
        let address = listener.local_addr().ok()?;
        (!address.ip().to_canonical().is_loopback()).then_some(security)
    }

    /// The address that is listened at, with the port that was chosen for port 0.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> io::Result<String> {
        match self {
            Listener::Tcp(listener) | Listener::Tls(listener, _) => Ok(listener.local_addr()?.to_string()),
            Listener::Unix(listener) => Ok(listener.address().to_owned()),
            Listener::Local(listener) => Ok(listener.address().to_owned()),
            #[cfg(feature = "sim")]
            Listener::Sim(listener) => Ok(listener.local_address()),
        }
    }
}

/// A connection. One task may read while another writes.
#[derive(Debug)]
pub enum Stream {
    /// Of the system.
    Os(OsStream),
    /// In the simulated network.
    #[cfg(feature = "sim")]
    Sim(super::sim::SimStream),
}

/// A connection of the system. One task may read while another writes.
#[derive(Debug)]
pub enum OsStream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TCP, with TLS.
    Tls(Box<TlsStream>),
    /// Within this machine or this process.
    Unix(UnixConnection),
}

impl OsStream {
    /// Connects to `HOST:PORT` or `unix:/PATH`. Unless the address says which, a connection over TCP is with TLS if there is
    /// `tls`; its handshake comes with the first bytes. The caller sets the time limit.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn connect(address: &str, tls: Option<&Tls>) -> io::Result<OsStream> {
        if let Some(path) = address::unix_path(address) {
            return Ok(OsStream::Unix(path_listener::connect(path)?));
        }
        let (tls, address) = transport(address, tls)?;
        let socket = names::connect(address).await?;
        match tls {
            Some(tls) => Ok(OsStream::Tls(Box::new(tls.dial(socket, address)?))),
            None => Ok(OsStream::Tcp(socket)),
        }
    }

    /// What is known of the other side by what carries its bytes.
    fn security(&self) -> Security {
        match self {
            OsStream::Tcp(_) | OsStream::Unix(_) => Security::Plain,
            OsStream::Tls(stream) => stream.security(),
        }
    }

    /// See [`Stream::channel`].
    ///
    /// # Errors
    /// As [`Stream::channel`].
    pub(crate) fn channel(&self, end: Prover) -> io::Result<Channel> {
        match (self, end) {
            (OsStream::Tcp(stream), Prover::Dialing) => Ok(Channel::tcp(stream.peer_addr()?)),
            (OsStream::Tcp(stream), Prover::Accepting) => Ok(Channel::tcp(stream.local_addr()?)),
            (OsStream::Tls(stream), Prover::Dialing | Prover::Accepting) => stream.channel(),
            (OsStream::Unix(stream), Prover::Dialing | Prover::Accepting) => Ok(stream.channel()),
        }
    }

    /// Reads at most `bytes_max` bytes of what is there into `buffer`; 0 at the end of the stream.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn read_at_most(&self, buffer: &mut BytesMut, bytes_max: usize) -> io::Result<usize> {
        loop {
            self.take_turn().await;
            match self.try_read(buffer, bytes_max) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Else there is more, which nobody tells of.
                    if !self.is_turn_over() {
                        self.readable().await?;
                    }
                }
                read => return read,
            }
        }
    }

    /// Whether a turn has done its work, be it that there is more to read.
    fn is_turn_over(&self) -> bool {
        match self {
            OsStream::Tcp(_) | OsStream::Unix(_) => false,
            OsStream::Tls(stream) => stream.is_turn_over(),
        }
    }

    /// Lets others run if that is so.
    async fn take_turn(&self) {
        match self {
            OsStream::Tcp(_) | OsStream::Unix(_) => {}
            OsStream::Tls(stream) => stream.take_turn().await,
        }
    }

    /// The same for what is there now.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` when nothing is there.
    pub(crate) fn try_read(&self, buffer: &mut BytesMut, bytes_max: usize) -> io::Result<usize> {
        if let OsStream::Tls(stream) = self {
            return stream.try_read(buffer, bytes_max);
        }
        let mut room = bytes::BufMut::limit(buffer, bytes_max);
        let most = bytes::BufMut::chunk_mut(&mut room).len();
        let mut drained = None;
        let read = match self {
            OsStream::Tcp(stream) => stream
                .try_io(Interest::READABLE, || drain(stream.try_read_buf(&mut room)?, most, &mut drained)),
            OsStream::Unix(stream) => {
                stream.try_io(|| drain(stream.try_read_buf(&mut room)?, most, &mut drained))
            }
            // Handled above.
            OsStream::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        drained.map_or(read, Ok)
    }

    /// Writes what the system takes at once; `None` when it takes nothing now.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        taken(match self {
            OsStream::Tcp(stream) => stream.try_write(bytes),
            OsStream::Tls(stream) => return stream.try_write(&[IoSlice::new(bytes)]),
            OsStream::Unix(stream) => stream.try_write(bytes),
        })
    }

    /// The same of what is in several places, none of them empty.
    ///
    /// # Errors
    /// What the system says.
    fn try_write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        taken(match self {
            OsStream::Tcp(stream) => stream.try_write_vectored(parts),
            OsStream::Tls(stream) => return stream.try_write(parts),
            OsStream::Unix(stream) => stream.try_write_parts(parts),
        })
    }

    /// See [`Stream::read_off`].
    async fn read_off(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let OsStream::Tls(stream) = self else { return self.read_at_most(buffer, usize::MAX).await };
        loop {
            match stream.try_read_off(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.socket().readable().await?;
                }
                read => return read,
            }
        }
    }

    async fn readable(&self) -> io::Result<()> {
        match self {
            OsStream::Tcp(stream) => stream.readable().await,
            OsStream::Tls(stream) => stream.readable().await,
            OsStream::Unix(stream) => stream.readable().await,
        }
    }

    /// Waits until the system may take something.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            OsStream::Tcp(stream) => stream.writable().await,
            OsStream::Tls(stream) => stream.writable().await,
            OsStream::Unix(stream) => stream.writable().await,
        }
    }

    /// Writes some of `bytes`: as much as the system takes at once.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.try_write(bytes)? {
                Some(written) => return Ok(written),
                None => self.writable().await?,
            }
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// See [`Stream::keep_alive`]. A peer on this machine ends with its process, and the system tells so.
    pub(crate) fn keep_alive(&self, idle: Duration) {
        match self {
            OsStream::Tcp(stream) => tcp::keep_alive(stream, idle),
            OsStream::Tls(stream) => tcp::keep_alive(stream.socket(), idle),
            OsStream::Unix(_) => {}
        }
    }

    /// See [`Stream::give_up_after`].
    fn give_up_after(&self, silence: Duration) {
        match self {
            OsStream::Tcp(stream) => tcp::give_up_after(stream, silence),
            OsStream::Tls(stream) => tcp::give_up_after(stream.socket(), silence),
            OsStream::Unix(_) => {}
        }
    }

    /// See [`Stream::show_progress`].
    fn show_progress(&self) {
        match self {
            OsStream::Tcp(stream) => tcp::show_progress(stream),
            OsStream::Tls(stream) => tcp::show_progress(stream.socket()),
            // All that its reader has not read is this side's, and it is told of room once three quarters are read.
            OsStream::Unix(stream) => {
                let _ =
                    rustix::net::sockopt::set_socket_send_buffer_size(stream.descriptor(), UNIX_SEND_BYTES);
            }
        }
    }

    /// See [`Stream::hold_back`].
    fn hold_back(&self) {
        match self {
            OsStream::Tcp(stream) => tcp::hold_back(stream),
            OsStream::Tls(stream) => tcp::hold_back(stream.socket()),
            OsStream::Unix(_) => {}
        }
    }

    /// See [`Stream::end_write`].
    async fn end_write(&self) -> io::Result<()> {
        match self {
            OsStream::Tls(stream) => return stream.end_write().await,
            OsStream::Tcp(_) | OsStream::Unix(_) => self.shut_down_write(),
        }
        Ok(())
    }

    fn shut_down_write(&self) {
        // Fails only when the peer is gone already.
        let _ = match self {
            OsStream::Tcp(stream) => rustix::net::shutdown(stream, rustix::net::Shutdown::Write),
            OsStream::Tls(stream) => return stream.shut_down_write(),
            OsStream::Unix(stream) => {
                rustix::net::shutdown(stream.descriptor(), rustix::net::Shutdown::Write)
            }
        };
    }
}

/// Over what an address is reached, and the address alone.
///
/// # Errors
/// `Unsupported` when it is to be TLS and there is none.
fn transport<'a>(address: &'a str, tls: Option<&'a Tls>) -> io::Result<(Option<&'a Tls>, &'a str)> {
    let (transport, address) = address::split_transport(address);
    match (transport, tls) {
        (Some(Transport::Plain), _) | (None, None) => Ok((None, address)),
        (Some(Transport::Tls) | None, Some(tls)) => Ok((Some(tls), address)),
        (Some(Transport::Tls), None) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it is to be reached by TLS, for which no certificates are given (--tls-ca, --tls-cert, --tls-key)",
        )),
    }
}

/// What the system took of something that is not empty; `None` when it takes nothing now.
fn taken(written: io::Result<usize>) -> io::Result<Option<usize>> {
    match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        Ok(written) => Ok(Some(written)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl Stream {
    /// Reads what is there into `buffer`; 0 at the end of the stream.
    ///
    /// # Errors
    /// What the system says.
    pub async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.read_at_most(buffer, usize::MAX).await
    }

    /// The same for at most `bytes_max` bytes, so that `buffer` ends where something long ends. A simulated socket may
    /// bring more.
    ///
    /// # Errors
    /// What the system says.
    pub async fn read_at_most(&self, buffer: &mut BytesMut, bytes_max: usize) -> io::Result<usize> {
        match self {
            Stream::Os(stream) => stream.read_at_most(buffer, bytes_max).await,
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => stream.read(buffer).await,
        }
    }

    /// Reads what arrives at a connection that this side has ended, to throw it away; 0 at the end of the stream. Of TLS it is
    /// not decrypted.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn read_off(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Stream::Os(stream) => stream.read_off(buffer).await,
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => stream.read(buffer).await,
        }
    }

    /// What is known of the other side by what carries its bytes, once the first of them are read.
    pub(crate) fn security(&self) -> Security {
        match self {
            Stream::Os(stream) => stream.security(),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => Security::Plain,
        }
    }

    /// Whether what carries its bytes still finds out who the other side is.
    pub(crate) fn is_in_handshake(&self) -> bool {
        match self {
            Stream::Os(OsStream::Tls(stream)) => stream.is_in_handshake(),
            Stream::Os(OsStream::Tcp(_) | OsStream::Unix(_)) => false,
            #[cfg(feature = "sim")]
            Stream::Sim(_) => false,
        }
    }

    /// Where this end of the connection is; empty where it has no address.
    pub(crate) fn local_address(&self) -> String {
        match self {
            Stream::Os(OsStream::Tcp(stream)) => stream.local_addr().map(|address| address.to_string()),
            Stream::Os(OsStream::Tls(stream)) => {
                stream.socket().local_addr().map(|address| address.to_string())
            }
            Stream::Os(OsStream::Unix(stream)) => Ok(stream.local_address()),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => Ok(String::new()),
        }
        .unwrap_or_default()
    }

    /// The number by which the system knows this connection in this process; -1 if it has none.
    pub(crate) fn descriptor(&self) -> i32 {
        match self {
            Stream::Os(OsStream::Tcp(stream)) => stream.as_raw_fd(),
            Stream::Os(OsStream::Tls(stream)) => stream.socket().as_raw_fd(),
            Stream::Os(OsStream::Unix(stream)) => stream.descriptor().as_raw_fd(),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => -1,
        }
    }

    /// Whether the other side, which has this address, is on this machine. Simulated ones count as such.
    pub(crate) fn is_near(&self, peer: &str) -> bool {
        match self {
            Stream::Os(OsStream::Unix(_)) => true,
            Stream::Os(OsStream::Tcp(_) | OsStream::Tls(_)) => !address::is_elsewhere(peer),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => true,
        }
    }

    /// What this connection is known by at both its ends, once its first bytes are read: over TCP the address that was dialed,
    /// which is the peer's of the end that dials and its own of the one that accepts; over TLS what its session exports; else
    /// the path or the name.
    ///
    /// # Errors
    /// What the system says; of TLS, that its handshake is not over or of a version whose sessions can be passed on.
    pub(crate) fn channel(&self, end: Prover) -> io::Result<Channel> {
        match self {
            Stream::Os(stream) => stream.channel(end),
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => Ok(stream.channel()),
        }
    }

    /// Writes some of `bytes`: as much as the system takes at once. A simulated network takes all of them.
    ///
    /// # Errors
    /// What the system says.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Os(stream) => stream.write(bytes).await,
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => {
                stream.write_all(bytes).await?;
                Ok(bytes.len())
            }
        }
    }

    /// Writes what the system takes at once; `None` when it takes nothing now. Always so in a simulated network, in which
    /// a write takes its time.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        match self {
            Stream::Os(stream) => stream.try_write(bytes),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => Ok(None),
        }
    }

    /// The same of what is in several places, none of them empty: one system call and, if it is short, one packet.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn try_write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        match self {
            Stream::Os(stream) => stream.try_write_parts(parts),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => Ok(None),
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the system says.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Lets the system take no more than this that it has not sent yet, so that whoever reads slowly is seen to read: it would
    /// else take megabytes at once, and then nothing for as long as they last.
    pub fn show_progress(&self) {
        match self {
            Stream::Os(stream) => stream.show_progress(),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => {}
        }
    }

    /// Ends the connection when the peer's system acknowledges nothing of what was sent for so long: while it is cut off the system
    /// would try again more and more rarely, and notice late that it is back. A simulated network does not.
    pub fn give_up_after(&self, silence: Duration) {
        match self {
            Stream::Os(stream) => stream.give_up_after(silence),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => {}
        }
    }

    /// Lets the system find out that the peer is gone without a word, as Redis does: it asks after `idle` of silence, and then
    /// every third of it. A simulated network does not.
    pub fn keep_alive(&self, idle: Duration) {
        match self {
            Stream::Os(stream) => stream.keep_alive(idle),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => {}
        }
    }

    /// Keeps back what is written until the stream is shut down (or for 200 ms), so that the last bytes and the end are
    /// one packet: who has read the one knows the other.
    pub fn hold_back(&self) {
        match self {
            Stream::Os(stream) => stream.hold_back(),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => {}
        }
    }

    /// Says that nothing more will be written, after all that was. The other side may still be read. With TLS it has a word of
    /// its own, for which the system may have no room yet.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn end_write(&self) -> io::Result<()> {
        match self {
            Stream::Os(stream) => stream.end_write().await,
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => {
                stream.shut_down_write();
                Ok(())
            }
        }
    }

    /// The same at once: a word of TLS is lost if the system has no room for it.
    pub fn shut_down_write(&self) {
        match self {
            Stream::Os(stream) => stream.shut_down_write(),
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => stream.shut_down_write(),
        }
    }
}

/// Says of a read for which there was room for `most` bytes whether it took all that the system had: then the socket waits for
/// the system's next word, instead of asking once more only to hear that there is nothing. tokio compares with what it knew
/// before the read, so that a word which comes meanwhile (another thread may bring it) is not lost; an end or an error that
/// the system has told already stays. Its own `AsyncRead` does the same, for one reader at a time.
fn drain(read: usize, most: usize, drained: &mut Option<usize>) -> io::Result<usize> {
    if 0 < read && read < most {
        *drained = Some(read);
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: u32 = 20_000;

    /// Where the runtime has several threads, another one hears from the system what comes while this one reads.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bytes_that_arrive_during_a_read_are_read_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        far.set_nodelay(true).unwrap();
        let (near, _) = listener.accept().await.unwrap();
        near.set_nodelay(true).unwrap();
        nothing_is_left(OsStream::Tcp(near), far).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bytes_that_arrive_during_a_read_of_a_unix_socket_are_read_too() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        nothing_is_left(OsStream::Unix(UnixConnection::new(near, Channel::named("a pair")).unwrap()), far)
            .await;
    }

    #[expect(clippy::disallowed_methods, reason = "the other side of a socket is elsewhere")]
    async fn nothing_is_left(near: OsStream, mut far: impl io::Read + io::Write + Send + 'static) {
        let near = Stream::Os(near);
        let asker = std::thread::spawn(move || {
            for round in 0..ROUNDS {
                far.write_all(b"1").unwrap();
                // The second byte comes at another moment of the first one's read each time.
                (0..round % 2_000).for_each(|_| std::hint::spin_loop());
                far.write_all(b"2").unwrap();
                far.read_exact(&mut [0]).unwrap();
            }
        });
        let answering = async {
            for round in 0..ROUNDS {
                let mut read = BytesMut::new();
                while read.len() < 2 {
                    assert!(near.read(&mut read).await.unwrap() > 0, "it ended in round {round}");
                }
                near.write_all(b"!").await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), answering).await.expect("a byte was never read");
        asker.join().unwrap();
    }
}
