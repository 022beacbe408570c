//! Names and TCP: looks a name up at each dial, and tries every address that it has.
//!
//! Owns the threads that ask the system for names, one at a time for each name. The answer may take a minute. That delays
//! no actor, nor the end of the process, as a thread of tokio's pool would.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Every address of a name is tried within this time, whatever the earlier ones do. A client's dial may have only twice
/// as long, because it has other masters to try.
const TURNS_WITHIN: Duration = Duration::from_millis(250);

/// The addresses, or the parts of the system's error, which cannot be cloned.
type Found = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

/// The waiting callers by name.
type Asked = HashMap<String, Vec<oneshot::Sender<Found>>>;

fn asked() -> MutexGuard<'static, Asked> {
    static ASKED: OnceLock<Mutex<Asked>> = OnceLock::new();
    // A panic leaves nothing inconsistent here.
    ASKED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// The addresses of `HOST:PORT`, at least one.
///
/// # Errors
/// Errors of the system. The caller sets the time limit.
pub(crate) async fn look_up(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let ask = |address: String| address.to_socket_addrs().map(Iterator::collect);
    look_up_by(address, ask).await
}

async fn look_up_by(
    address: &str,
    ask: impl FnOnce(String) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Vec<SocketAddr>> {
    let (sender, found) = oneshot::channel();
    let is_first = {
        let mut asked = asked();
        let waiting = asked.entry(address.to_owned()).or_default();
        let is_first = waiting.is_empty();
        // Callers that gave up are removed, except the first entry, which shows that a thread is at work.
        waiting.retain(|sender| !sender.is_closed());
        waiting.push(sender);
        is_first
    };
    if is_first {
        let name = address.to_owned();
        let answer = move || {
            let found = ask(name.clone()).map_err(|error| (error.kind(), error.to_string()));
            for sender in asked().remove(&name).unwrap_or_default() {
                // A caller that gave up does not need it.
                let _ = sender.send(found.clone());
            }
        };
        if let Err(error) = super::super::threads::spawn_thread("dsm-names", answer) {
            asked().remove(address);
            return Err(error);
        }
    }
    let gone = |_| io::Error::other("the thread that asked for the name is gone");
    let found = found.await.map_err(gone)?.map_err(|(kind, why)| {
        io::Error::new(kind, format!("cannot find the address of {address}: {why}"))
    })?;
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address")));
    }
    Ok(found)
}

/// Connects to the first address of `HOST:PORT` that answers.
///
/// # Errors
/// The system's error of the last address. The caller sets the time limit.
pub(crate) async fn connect(address: &str) -> io::Result<TcpStream> {
    connect_to(look_up(address).await?).await
}

/// Connects to the first of `addresses` that answers. All are started within [`TURNS_WITHIN`], however many there are,
/// and an attempt goes on while later ones run. When one fails, the next one is started at once.
async fn connect_to(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let apart = TURNS_WITHIN / u32::try_from(addresses.len().saturating_sub(1).max(1)).unwrap_or(u32::MAX);
    let mut rest = addresses.into_iter();
    let mut trying = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        if let Some(address) = rest.next() {
            trying.spawn(TcpStream::connect(address));
        }
        let connected = if rest.len() == 0 {
            trying.join_next().await
        } else {
            match tokio::time::timeout(apart, trying.join_next()).await {
                Ok(connected) => connected,
                Err(_) => continue,
            }
        };
        let Some(connected) = connected else { return Err(last) };
        match connected.map_err(io::Error::other).and_then(|connected| connected) {
            // On loopback, a connect to a free port of the ephemeral range can connect to itself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last = io::ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_slow_name_is_looked_up_once_for_all_who_wait() {
        let (answer, wait) = mpsc::channel::<()>();
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let ask = move |_| {
            wait.recv().map_err(io::Error::other)?;
            Ok(vec![address])
        };
        let name = "hangs.test:1";
        let first = tokio::time::timeout(Duration::from_millis(20), look_up_by(name, ask)).await;
        assert!(first.is_err(), "it hangs and delays nobody");
        let never = |_| panic!("it is being asked for");
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_millis(5), look_up_by(name, never)).await.is_err());
        }
        assert!(asked()[name].len() <= 2, "callers that gave up are forgotten");
        let waiting = tokio::spawn(look_up_by(name, never));
        tokio::task::yield_now().await;
        answer.send(()).unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), [address]);
        assert!(!asked().contains_key(name));
        // The name is looked up again at the next dial: it may have moved.
        let moved: SocketAddr = "127.0.0.2:1".parse().unwrap();
        assert_eq!(look_up_by(name, move |_| Ok(vec![moved])).await.unwrap(), [moved]);
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let somebody = listener.local_addr().unwrap();
        let name = format!("localhost:{}", somebody.port());
        let stream = connect(&name).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), somebody);
        let error = connect(&nobody.to_string()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = connect("no-such-host.invalid:1").await.unwrap_err();
        assert!(
            error.to_string().starts_with("cannot find the address of no-such-host.invalid:1: "),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_address_after_many_that_hang_is_tried_within_a_dial() {
        // No connection is accepted and the queue is full, so the system no longer answers.
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(1).unwrap();
        let hangs = full.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(hangs)).await
        {
            queued.push(connected.unwrap());
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let answers = listener.local_addr().unwrap();
        let mut addresses = vec![hangs; 30];
        addresses.push(answers);
        let begun = tokio::time::Instant::now();
        let stream = tokio::time::timeout(Duration::from_secs(2), connect_to(addresses)).await;
        assert_eq!(stream.expect("it had its turn").unwrap().peer_addr().unwrap(), answers);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_slow_address_is_not_given_up_for_those_after_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let answers = listener.local_addr().unwrap();
        let refuses = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let stream = connect_to(vec![answers, refuses, refuses]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), answers);
        assert_eq!(connect_to(vec![refuses; 5]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect_to(Vec::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
