//! Sockets behind an enum, so that simulated ones fit without a type parameter on everything.

use super::local_listener::LocalListener;
use bytes::BytesMut;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// Probes without an answer until a silent peer is given up, as Redis has it.
const KEEPALIVE_PROBES: u32 = 3;

/// Lets the system probe a peer that has been silent for `idle`, and end the connection when it answers none of three
/// probes, a third of `idle` apart. Zero: never. As Redis does: a peer whose machine lost power says nothing at all.
pub(crate) fn keep_alive(stream: &TcpStream, idle: Duration) {
    use rustix::net::sockopt;
    if idle.is_zero() {
        return;
    }
    // The kernel counts whole seconds, up to 32767 of them.
    let idle = Duration::from_secs(idle.as_secs().clamp(1, 32_767));
    let between = Duration::from_secs((idle.as_secs() / 3).max(1));
    let set = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, idle))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, between))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES));
    // Only of a connection that has ended meanwhile, which its next read tells.
    if let Err(error) = set {
        log::debug!("keepalive not set error={error}");
    }
}

/// A socket that is listened at, of one of three networks.
#[derive(Debug)]
pub enum Listener {
    /// Over TCP.
    Tcp(TcpListener),
    /// Within this process, by name.
    Local(LocalListener),
    /// In the simulated network.
    #[cfg(feature = "sim")]
    Sim(super::sim::SimListener),
}

/// What the system may take and not send, in bytes.
const UNSENT_BYTES_MAX: u32 = 64 * 1024;

impl Listener {
    /// Waits for the next connection; gives the stream and the other side's address.
    ///
    /// # Errors
    /// What the system says; running out of file descriptors is one of them and passes.
    pub async fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), address.to_string()))
            }
            Listener::Local(listener) => {
                Ok((Stream::Local(listener.accept().await), "in-process".to_owned()))
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
            Listener::Tcp(listener) => {
                let (Ok(ours), Ok(found)) = (listener.local_addr(), super::names::look_up(address).await)
                else {
                    return false;
                };
                // Only an address of this machine can be bound.
                let is_here = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
                found.iter().any(|there| {
                    there.port() == ours.port()
                        && (there.ip() == ours.ip() || (ours.ip().is_unspecified() && is_here(there.ip())))
                })
            }
            Listener::Local(listener) => listener.address() == address,
            #[cfg(feature = "sim")]
            Listener::Sim(listener) => listener.local_address() == address,
        }
    }

    /// The address that is listened at, with the port that was chosen for port 0.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> io::Result<String> {
        match self {
            Listener::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
            Listener::Local(listener) => Ok(listener.address().to_owned()),
            #[cfg(feature = "sim")]
            Listener::Sim(listener) => Ok(listener.local_address()),
        }
    }
}

/// A connection. One task may read while another writes.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Within this process.
    Local(UnixStream),
    /// In the simulated network.
    #[cfg(feature = "sim")]
    Sim(super::sim::SimStream),
}

impl Stream {
    /// Reads what is there into `buffer`; 0 at the end of the stream.
    ///
    /// # Errors
    /// What the system says.
    pub async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => stream.read(buffer).await,
            Stream::Tcp(_) | Stream::Local(_) => self.read_at_most(buffer, usize::MAX).await,
        }
    }

    /// The same for at most `bytes_max` bytes, so that `buffer` ends where something long ends. A simulated socket may
    /// bring more.
    ///
    /// # Errors
    /// What the system says.
    pub async fn read_at_most(&self, buffer: &mut BytesMut, bytes_max: usize) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => loop {
                let mut room = bytes::BufMut::limit(&mut *buffer, bytes_max);
                let most = bytes::BufMut::chunk_mut(&mut room).len();
                let mut drained = None;
                let read = stream.try_io(Interest::READABLE, || {
                    drain(stream.try_read_buf(&mut room)?, most, &mut drained)
                });
                match (drained, read) {
                    (Some(read), _) => return Ok(read),
                    (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        stream.readable().await?;
                    }
                    (None, read) => return read,
                }
            },
            Stream::Local(stream) => loop {
                let mut room = bytes::BufMut::limit(&mut *buffer, bytes_max);
                let most = bytes::BufMut::chunk_mut(&mut room).len();
                let mut drained = None;
                let read = stream.try_io(Interest::READABLE, || {
                    drain(stream.try_read_buf(&mut room)?, most, &mut drained)
                });
                match (drained, read) {
                    (Some(read), _) => return Ok(read),
                    (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        stream.readable().await?;
                    }
                    (None, read) => return read,
                }
            },
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => stream.read(buffer).await,
        }
    }

    /// Writes some of `bytes`: as much as the system takes at once. A simulated network takes all of them.
    ///
    /// # Errors
    /// What the system says.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self {
            Stream::Tcp(stream) => loop {
                match stream.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                    written => break written?,
                }
            },
            Stream::Local(stream) => loop {
                match stream.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                    written => break written?,
                }
            },
            #[cfg(feature = "sim")]
            Stream::Sim(stream) => {
                stream.write_all(bytes).await?;
                bytes.len()
            }
        };
        if written == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(written)
    }

    /// Writes what the system takes at once; `None` when it takes nothing now. Always so in a simulated network, in which
    /// a write takes its time.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let written = match self {
            Stream::Tcp(stream) => stream.try_write(bytes),
            Stream::Local(stream) => stream.try_write(bytes),
            #[cfg(feature = "sim")]
            Stream::Sim(_) => return Ok(None),
        };
        match written {
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => Ok(Some(written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
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
            // Where it cannot be, a slow reader is seen less often.
            Stream::Tcp(stream) => {
                drop(socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX));
            }
            Stream::Local(_) => {}
            #[cfg(feature = "sim")]
            Stream::Sim(_) => {}
        }
    }

    /// Lets the system find out that the peer is gone without a word, as Redis does: it asks after `idle` of silence, and then
    /// every third of it. A simulated network does not.
    pub fn keep_alive(&self, idle: Duration) {
        match self {
            Stream::Tcp(stream) => keep_alive(stream, idle),
            // Whose other end is gone tells so.
            Stream::Local(_) => {}
            #[cfg(feature = "sim")]
            Stream::Sim(_) => {}
        }
    }

    /// Keeps back what is written until the stream is shut down (or for 200 ms), so that the last bytes and the end are
    /// one packet: who has read the one knows the other.
    pub fn hold_back(&self) {
        match self {
            // Where it cannot be, the end comes a moment later.
            Stream::Tcp(stream) => drop(rustix::net::sockopt::set_tcp_cork(stream, true)),
            Stream::Local(_) => {}
            #[cfg(feature = "sim")]
            Stream::Sim(_) => {}
        }
    }

    /// Says that nothing more will be written; the other side may still be read.
    pub fn shut_down_write(&self) {
        match self {
            // Fails only when the peer is gone already.
            Stream::Tcp(stream) => drop(rustix::net::shutdown(stream, rustix::net::Shutdown::Write)),
            Stream::Local(stream) => drop(rustix::net::shutdown(stream, rustix::net::Shutdown::Write)),
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
    use rustix::net::sockopt;

    #[tokio::test]
    async fn a_socket_is_probed_as_redis_probes_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        keep_alive(&stream, Duration::ZERO);
        assert!(!sockopt::socket_keepalive(&stream).unwrap());
        for (idle, probed_after, apart) in [(300, 300, 100), (1, 1, 1), (1 << 20, 32_767, 10_922)] {
            keep_alive(&stream, Duration::from_secs(idle));
            assert!(sockopt::socket_keepalive(&stream).unwrap());
            assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), Duration::from_secs(probed_after));
            assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), Duration::from_secs(apart));
            assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), 3);
        }
    }

    /// Where the runtime has several threads, another one hears from the system what comes while this one reads.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[expect(clippy::disallowed_methods, reason = "the other side of a socket is elsewhere")]
    async fn bytes_that_arrive_during_a_read_are_read_too() {
        use std::io::{Read as _, Write as _};
        const ROUNDS: u32 = 20_000;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asker = std::thread::spawn(move || {
            let mut far = std::net::TcpStream::connect(address).unwrap();
            far.set_nodelay(true).unwrap();
            for round in 0..ROUNDS {
                far.write_all(b"1").unwrap();
                // The second byte comes at another moment of the first one's read each time.
                (0..round % 2_000).for_each(|_| std::hint::spin_loop());
                far.write_all(b"2").unwrap();
                far.read_exact(&mut [0]).unwrap();
            }
        });
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let near = Stream::Tcp(stream);
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
