//! Sockets of TCP: how one is listened at, and what the system is told about a connection.

use super::names;
use rustix::net::sockopt;
use std::io;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The most connections that wait to be accepted. The system may allow fewer.
const BACKLOG: u32 = 4096;

/// How long the system may take to look up the name on which to listen.
const NAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Probes without an answer until a silent peer is given up, as Redis has it.
const KEEPALIVE_PROBES: u32 = 3;

/// What the system may take and not send, in bytes.
const UNSENT_BYTES_MAX: u32 = 64 * 1024;

/// Listens at `HOST:PORT`.
///
/// # Errors
/// What the system says, as for a port in use.
pub(super) async fn listen(address: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the address names no host");
    let found = tokio::time::timeout(NAME_TIMEOUT, names::look_up(address)).await;
    for address in found.map_err(|_| io::Error::other("its name is not found in time"))?? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for the TIME_WAIT of its predecessor's connections.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Lets the system end the connection when nothing of what was sent is acknowledged for so long.
pub(super) fn give_up_after(stream: &TcpStream, silence: Duration) {
    let millis = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    // Only of a connection that has ended meanwhile, which its next write tells.
    if let Err(error) = sockopt::set_tcp_user_timeout(stream, millis) {
        log::debug!("user timeout not set error={error}");
    }
}

/// Lets the system probe a peer that has been silent for `idle`, and end the connection when it answers none of three
/// probes, a third of `idle` apart. Zero: never. As Redis does: a peer whose machine lost power says nothing at all.
pub(super) fn keep_alive(stream: &TcpStream, idle: Duration) {
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

/// Lets the system take no more than this that it has not sent yet.
pub(super) fn show_progress(stream: &TcpStream) {
    // Where it cannot be, a slow reader is seen less often.
    drop(socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX));
}

/// Keeps back what is written until the stream is shut down.
pub(super) fn hold_back(stream: &TcpStream) {
    // Where it cannot be, the end comes a moment later.
    let _ = sockopt::set_tcp_cork(stream, true);
}

#[cfg(test)]
mod tests {
    use super::super::OsStream;
    use super::*;

    #[tokio::test]
    async fn a_socket_is_probed_as_redis_probes_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = OsStream::connect(&listener.local_addr().unwrap().to_string(), None).await.unwrap();
        near.keep_alive(Duration::ZERO);
        let OsStream::Tcp(stream) = &near else { panic!("over TCP") };
        assert!(!sockopt::socket_keepalive(stream).unwrap());
        for (idle, probed_after, apart) in [(300, 300, 100), (1, 1, 1), (1 << 20, 32_767, 10_922)] {
            near.keep_alive(Duration::from_secs(idle));
            assert!(sockopt::socket_keepalive(stream).unwrap());
            assert_eq!(sockopt::tcp_keepidle(stream).unwrap(), Duration::from_secs(probed_after));
            assert_eq!(sockopt::tcp_keepintvl(stream).unwrap(), Duration::from_secs(apart));
            assert_eq!(sockopt::tcp_keepcnt(stream).unwrap(), 3);
        }
    }
}
