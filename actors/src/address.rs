//! Addresses as people type them: `HOST:PORT`, and `unix:/PATH` for a Unix socket of this machine; for every flag and every
//! program the same. One that is connected to may say how: `tls:HOST:PORT`, `plain:HOST:PORT`. Otherwise it is TLS for whoever
//! has certificates.
//!
//! Owns the rules by which a text is an address, and the one spelling in which it is kept. Looks no name up: a name may
//! come to mean another machine, so that is done at each dial.
//!
//! A master is known to others by its TCP address alone ([`to_connect_by_tcp`]). Its Unix sockets are told to nobody, and
//! nobody connects to a path that another process has told: those who use one have it in their own settings.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use thiserror::Error;

/// What the address of a Unix socket begins with.
const UNIX: &str = "unix:";

/// What the address of a port begins with that is reached by TLS whatever the settings are.
const TLS: &str = "tls:";

/// The same for one that is reached without.
const PLAIN: &str = "plain:";

/// How an address says that it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// By TLS.
    Tls,
    /// In plain bytes.
    Plain,
}

/// The longest path of a Unix socket, in bytes: `sun_path` has 108, and a zero byte ends it.
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Nothing is there, as between two commas.
    #[error("it is empty: give HOST:PORT")]
    Empty,
    /// `tcp://…`, `redis://…`.
    #[error("it is a URL: give HOST:PORT alone")]
    Url,
    /// `localhost`.
    #[error("it names no port: give HOST:PORT")]
    NoPort,
    /// `localhost:http`, `localhost:70000`.
    #[error("what follows the colon is no port: give HOST:PORT, with a port from 1 to 65535")]
    Port,
    /// `127.0.0.1:0` where somebody is to connect to.
    #[error("nobody can connect to port 0: give the port that it listens at")]
    PortZero,
    /// `:12345`.
    #[error("it names no host: give HOST:PORT, as 127.0.0.1:PORT")]
    NoHost,
    /// `::1:12345`.
    #[error("an IPv6 address must be in brackets: give [ADDRESS]:PORT, as [::1]:12345")]
    Brackets,
    /// `127.0.0:1`, `10.0.0.256:1`.
    #[error("it is no IPv4 address: give four numbers from 0 to 255, as 127.0.0.1:PORT")]
    Ipv4,
    /// A space or another letter that no name has.
    #[error("a name cannot contain {0:?}: give HOST:PORT")]
    Letter(char),
    /// `0.0.0.0:12345` where somebody is to connect to.
    #[error(
        "it is a wildcard, to which nothing can connect: give the address at which the machine is reached"
    )]
    Wildcard,
    /// `unix:a.sock`, `unix:/`, `/run/a.sock`.
    #[error("a Unix socket is named by its whole path: give unix:/PATH")]
    UnixPath,
    /// A path with more than [`UNIX_PATH_BYTES_MAX`] bytes.
    #[error("the path of a Unix socket has at most {UNIX_PATH_BYTES_MAX} bytes, and this one has {0}")]
    UnixLong(usize),
    /// `unix:/run/a,b`: commas stand between addresses, and spaces between the fields of logs and answers.
    #[error("the path of a Unix socket cannot contain {0:?} here")]
    UnixLetter(char),
    /// `unix:/run/a.sock` where others are told the address.
    #[error("it is a Unix socket, which other machines cannot reach: give HOST:PORT")]
    UnixUntold,
}

/// Reads an address to listen at, which may be a wildcard, leave the port to the system, or be a Unix socket.
///
/// # Errors
/// What is wrong with it.
pub fn to_listen(text: &str) -> Result<String, AddressError> {
    if let Some(unix) = read_unix(text) {
        return unix;
    }
    let (host, port) = read(text)?;
    Ok(format!("{host}:{port}"))
}

/// Reads an address to connect to, which may be a Unix socket.
///
/// # Errors
/// What is wrong with it.
pub fn to_connect(text: &str) -> Result<String, AddressError> {
    read_unix(text).unwrap_or_else(|| to_dial_by_tcp(text))
}

/// Reads an address to connect to over TCP, which may say how.
///
/// # Errors
/// What is wrong with it.
pub fn to_dial_by_tcp(text: &str) -> Result<String, AddressError> {
    let text = text.trim();
    let (transport, address) = split_transport(text);
    let address = to_connect_by_tcp(address)?;
    Ok(match transport {
        Some(Transport::Tls) => format!("{TLS}{address}"),
        Some(Transport::Plain) => format!("{PLAIN}{address}"),
        None => address,
    })
}

/// How an address says that it is reached, if it says so, and the address without that. A host may be called `tls`, too.
pub fn split_transport(address: &str) -> (Option<Transport>, &str) {
    for (prefix, transport) in [(TLS, Transport::Tls), (PLAIN, Transport::Plain)] {
        if let Some(rest) = address.strip_prefix(prefix).filter(|rest| rest.contains(':')) {
            return (Some(transport), rest);
        }
    }
    (None, address)
}

/// An address that is listened at in plain bytes, whatever the settings are.
pub fn plain(address: &str) -> String {
    format!("{PLAIN}{address}")
}

/// The address without what it says of how it is reached: what others know a master by.
pub fn name(address: &str) -> &str {
    split_transport(address).1
}

/// Reads an address that others are told, or know a master by. A Unix socket is none.
///
/// # Errors
/// What is wrong with it.
pub fn to_connect_by_tcp(text: &str) -> Result<String, AddressError> {
    if let Some(unix) = read_unix(text) {
        return unix.and(Err(AddressError::UnixUntold));
    }
    let (host, port) = read(text)?;
    let address = format!("{host}:{port}");
    if is_wildcard(&address) {
        Err(AddressError::Wildcard)
    } else if port == 0 {
        Err(AddressError::PortZero)
    } else {
        Ok(address)
    }
}

/// Whether the other side of a connection over TCP may be on another machine: its address is none of the loopback.
pub(crate) fn is_elsewhere(peer: &str) -> bool {
    !peer.parse::<SocketAddr>().is_ok_and(|peer| peer.ip().to_canonical().is_loopback())
}

/// Whether bytes to and from an address stay within this machine: it is a Unix socket, or on loopback. A name that is looked up
/// may be anywhere, but for `localhost`.
pub fn is_on_this_machine(address: &str) -> bool {
    if unix_path(address).is_some() {
        return true;
    }
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_canonical().is_loopback(),
        Err(_) => address.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
    }
}

/// Whether an address stands for all of a machine's.
pub fn is_wildcard(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}

/// Whether nobody can stand on the way to an address that is listened at or dialed: it is of this machine, or `has_tls` and
/// does not say that it is without.
pub fn is_private_way(address: &str, has_tls: bool) -> bool {
    let (transport, name) = split_transport(address);
    (has_tls && transport != Some(Transport::Plain)) || is_on_this_machine(name)
}

/// The path of the Unix socket at `address`, in the spelling that is kept; `None` if that is none.
pub fn unix_path(address: &str) -> Option<&Path> {
    address.strip_prefix(UNIX).map(Path::new).filter(|path| path.is_absolute())
}

/// The address of the Unix socket at `path`.
///
/// # Errors
/// Why that has none.
pub fn of_unix_path(path: &Path) -> Result<String, AddressError> {
    let text = path.to_str().ok_or(AddressError::UnixLetter(char::REPLACEMENT_CHARACTER))?;
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(AddressError::UnixPath);
    }
    if let Some(letter) =
        text.chars().find(|letter| *letter == ',' || letter.is_whitespace() || letter.is_control())
    {
        return Err(AddressError::UnixLetter(letter));
    }
    // Without what does not matter: `//` and `/./`.
    let path: std::path::PathBuf = path.components().collect();
    let bytes = path.as_os_str().len();
    if bytes > UNIX_PATH_BYTES_MAX {
        return Err(AddressError::UnixLong(bytes));
    }
    Ok(format!("{UNIX}{}", path.display()))
}

/// `unix:/PATH` in the one spelling that is kept, or why it is none; `None` if it is no Unix socket. A host may be called
/// `unix`, too.
fn read_unix(text: &str) -> Option<Result<String, AddressError>> {
    let text = text.trim();
    match text.strip_prefix(UNIX) {
        Some(port) if port.parse::<u16>().is_ok() => None,
        Some(path) => Some(of_unix_path(Path::new(path))),
        None => text.starts_with('/').then_some(Err(AddressError::UnixPath)),
    }
}

/// Host and port, in the one spelling that is kept.
fn read(text: &str) -> Result<(String, u16), AddressError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(AddressError::Empty);
    }
    if text.contains("://") {
        return Err(AddressError::Url);
    }
    if text.starts_with('[') {
        let address: SocketAddrV6 = text.parse().map_err(|_| match text.rsplit_once("]:") {
            Some((_, port)) if port.parse::<u16>().is_err() => AddressError::Port,
            Some(_) => AddressError::Brackets,
            None => AddressError::NoPort,
        })?;
        let whole = SocketAddrV6::new(*address.ip(), 0, 0, address.scope_id()).to_string();
        let host = whole.strip_suffix(":0").unwrap_or(&whole);
        return Ok((host.to_owned(), address.port()));
    }
    let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
    if host.contains(':') {
        return Err(AddressError::Brackets);
    }
    let is_number = !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    let port = port.parse().ok().filter(|_| is_number).ok_or(AddressError::Port)?;
    Ok((host_of(host)?, port))
}

fn host_of(host: &str) -> Result<String, AddressError> {
    if host.is_empty() {
        return Err(AddressError::NoHost);
    }
    if let Some(letter) = host.chars().find(|letter| !letter.is_alphanumeric() && !"-._".contains(*letter)) {
        return Err(AddressError::Letter(letter));
    }
    // `0` is an old way to write the wildcard, which people use.
    if host == "0" {
        return Ok(Ipv4Addr::UNSPECIFIED.to_string());
    }
    // The system would read `127.1` and `1` as addresses too, but not as those that were meant.
    let last = host.rsplit('.').next().unwrap_or(host);
    if last.bytes().all(|digit| digit.is_ascii_digit()) {
        return host.parse::<Ipv4Addr>().map(|ip| ip.to_string()).map_err(|_| AddressError::Ipv4);
    }
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_in_one_spelling() {
        for (typed, kept) in [
            ("127.0.0.1:12345", "127.0.0.1:12345"),
            (" localhost:1\t", "localhost:1"),
            ("LocalHost:01", "localhost:1"),
            ("dsm-master.prod_1.svc:12345", "dsm-master.prod_1.svc:12345"),
            ("[::1]:12345", "[::1]:12345"),
            ("[0:0::1]:12345", "[::1]:12345"),
            ("[fe80::1%2]:12345", "[fe80::1%2]:12345"),
        ] {
            assert_eq!(to_connect(typed).as_deref(), Ok(kept), "{typed:?}");
            assert_eq!(to_listen(typed).as_deref(), Ok(kept), "{typed:?}");
        }
        for (typed, kept) in
            [("0:12345", "0.0.0.0:12345"), ("[::0]:12345", "[::]:12345"), ("0.0.0.0:0", "0.0.0.0:0")]
        {
            assert_eq!(to_listen(typed).as_deref(), Ok(kept), "{typed:?}");
            assert_eq!(to_connect(typed), Err(AddressError::Wildcard), "{typed:?}");
            assert!(is_wildcard(kept));
        }
        assert_eq!(to_listen("127.0.0.1:0").as_deref(), Ok("127.0.0.1:0"));
        assert_eq!(to_connect("127.0.0.1:0"), Err(AddressError::PortZero));
    }

    #[test]
    fn an_address_that_is_dialed_may_say_how() {
        for (typed, kept, transport, named) in [
            ("tls:A:1", "tls:a:1", Some(Transport::Tls), "a:1"),
            (" plain:[0::1]:1", "plain:[::1]:1", Some(Transport::Plain), "[::1]:1"),
            ("a:1", "a:1", None, "a:1"),
            // Hosts of these names.
            ("tls:1", "tls:1", None, "tls:1"),
            ("plain:1", "plain:1", None, "plain:1"),
            ("tls:plain:1", "tls:plain:1", Some(Transport::Tls), "plain:1"),
        ] {
            assert_eq!(to_connect(typed).as_deref(), Ok(kept), "{typed:?}");
            assert_eq!(split_transport(kept), (transport, named), "{typed:?}");
            assert_eq!(name(kept), named, "{typed:?}");
        }
        assert_eq!(to_connect("tls:unix:/a"), Err(AddressError::UnixUntold));
        assert_eq!(to_connect("tls:a:0"), Err(AddressError::PortZero));
        // Who listens says it with other flags.
        assert_eq!(to_listen("tls:a:1"), Err(AddressError::Brackets));
        assert_eq!(to_connect_by_tcp("plain:a:1"), Err(AddressError::Brackets));
    }

    #[test]
    fn a_unix_socket_is_kept_in_one_spelling_and_told_to_nobody() {
        for (typed, kept) in [
            ("unix:/run/dsm/a.sock", "unix:/run/dsm/a.sock"),
            (" unix:///run//dsm/./a.sock/ ", "unix:/run/dsm/a.sock"),
            ("unix:/run/../a:1", "unix:/run/../a:1"),
        ] {
            assert_eq!(to_connect(typed).as_deref(), Ok(kept), "{typed:?}");
            assert_eq!(to_listen(typed).as_deref(), Ok(kept), "{typed:?}");
            assert_eq!(to_connect_by_tcp(typed), Err(AddressError::UnixUntold), "{typed:?}");
            assert_eq!(unix_path(kept), Some(Path::new(&kept["unix:".len()..])));
            assert!(!is_wildcard(kept));
        }
        // A host of that name.
        assert_eq!(to_connect_by_tcp("unix:12345").as_deref(), Ok("unix:12345"));
        assert_eq!(unix_path("unix:12345"), None);
        assert_eq!(unix_path("127.0.0.1:12345"), None);
        let longest = format!("unix:/{}", "x".repeat(UNIX_PATH_BYTES_MAX - 1));
        assert_eq!(to_listen(&longest), Ok(longest.clone()));
        for (typed, why) in [
            ("unix:", AddressError::UnixPath),
            ("unix:/", AddressError::UnixPath),
            ("unix:/run/..", AddressError::UnixPath),
            ("unix:a.sock", AddressError::UnixPath),
            ("/run/a.sock", AddressError::UnixPath),
            ("unix:/a,b", AddressError::UnixLetter(',')),
            ("unix:/a b", AddressError::UnixLetter(' ')),
            ("unix:/a\nb", AddressError::UnixLetter('\n')),
            (&format!("{longest}x"), AddressError::UnixLong(UNIX_PATH_BYTES_MAX + 1)),
        ] {
            assert_eq!(to_connect(typed), Err(why), "{typed:?}");
            assert_eq!(to_listen(typed), Err(why), "{typed:?}");
            assert_eq!(to_connect_by_tcp(typed), Err(why), "{typed:?}");
        }
    }

    #[test]
    fn a_malformed_address_is_refused_with_the_reason() {
        for (typed, why) in [
            ("", AddressError::Empty),
            ("  ", AddressError::Empty),
            ("tcp://10.0.0.1:12345", AddressError::Url),
            ("localhost", AddressError::NoPort),
            ("[::1]", AddressError::NoPort),
            ("localhost:", AddressError::Port),
            ("localhost:+1", AddressError::Port),
            ("localhost:65536", AddressError::Port),
            ("[::1]:x", AddressError::Port),
            (":12345", AddressError::NoHost),
            ("::1:12345", AddressError::Brackets),
            ("[::g]:1", AddressError::Brackets),
            ("127.1:1", AddressError::Ipv4),
            ("10.0.0.256:1", AddressError::Ipv4),
            ("a b:1", AddressError::Letter(' ')),
            ("a,b:1", AddressError::Letter(',')),
            ("user@host:1", AddressError::Letter('@')),
        ] {
            assert_eq!(to_connect(typed), Err(why), "{typed:?}");
            assert_eq!(to_listen(typed), Err(why), "{typed:?}");
        }
    }
}
