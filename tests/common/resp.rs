//! A small blocking RESP2 client: requests as arrays of bulk strings, one or many in flight, answers in order.
//! It retries nothing and hides nothing.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `+OK`
    Simple(String),
    /// `-WORD text`
    Error(String),
    /// `:1`
    Integer(i64),
    /// `$3`
    Bulk(Vec<u8>),
    /// `$-1`
    Null,
    /// `*2`
    Array(Vec<Answer>),
}

impl Answer {
    /// `+OK`, the answer to a SET that is done.
    pub(crate) fn ok() -> Answer {
        Answer::Simple("OK".to_string())
    }

    /// A value.
    pub(crate) fn bulk(value: impl AsRef<[u8]>) -> Answer {
        Answer::Bulk(value.as_ref().to_vec())
    }

    /// The first word of an error, which gives its kind.
    pub(crate) fn error_word(&self) -> Option<&str> {
        match self {
            Answer::Error(text) => text.split(' ').next(),
            _ => None,
        }
    }
}

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    consumed: usize,
}

impl Connection {
    /// Connects; no read or write on the connection lasts longer than `timeout`.
    ///
    /// # Errors
    /// Errors of the socket; nothing was sent.
    pub(crate) fn open(address: SocketAddr, timeout: Duration) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Connection { stream, received: Vec::new(), consumed: 0 })
    }

    /// Whether the peer is known to have closed, as connection pools check before they reuse a connection.
    pub(crate) fn is_ended(&self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket option");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("a socket option");
        match peeked {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Sends one request and reads its answer.
    ///
    /// # Errors
    /// Errors of the socket, or an answer that is not RESP: the request may have been executed.
    pub(crate) fn call(&mut self, request: &[&[u8]]) -> io::Result<Answer> {
        self.send(&encoded(request))?;
        self.answer()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// What the socket says.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A second handle of the socket, to send from another thread than the one that reads.
    ///
    /// # Errors
    /// What the socket says.
    pub(crate) fn sender(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Reads the next answer.
    ///
    /// # Errors
    /// Errors of the socket; `UnexpectedEof` at the end; `InvalidData` for what is not RESP.
    pub(crate) fn answer(&mut self) -> io::Result<Answer> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| invalid("an empty line"))?;
        let number = || rest.parse::<i64>().map_err(|_| invalid(&line));
        match kind {
            "+" => Ok(Answer::Simple(rest.to_string())),
            "-" => Ok(Answer::Error(rest.to_string())),
            ":" => Ok(Answer::Integer(number()?)),
            "$" => match usize::try_from(number()?) {
                Err(_) => Ok(Answer::Null),
                Ok(length) => {
                    let mut value = self.bytes(length + 2)?;
                    if value.split_off(length) != b"\r\n" {
                        return Err(invalid("a bulk string without its end"));
                    }
                    Ok(Answer::Bulk(value))
                }
            },
            "*" => match number()? {
                ..0 => Ok(Answer::Null),
                count => (0..count).map(|_| self.answer()).collect::<io::Result<Vec<_>>>().map(Answer::Array),
            },
            _ => Err(invalid(&line)),
        }
    }

    /// Reads and discards until the peer closes.
    ///
    /// # Errors
    /// `WouldBlock` when the peer does not close in time. A reset counts as a close.
    pub(crate) fn wait_for_close(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut searched = 0;
        loop {
            let open = &self.received[self.consumed..];
            if let Some(end) = open[searched..].windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&open[..searched + end]).into_owned();
                self.consumed += searched + end + 2;
                return Ok(line);
            }
            searched = open.len().saturating_sub(1);
            self.fill()?;
        }
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.received.len() - self.consumed < length {
            self.fill()?;
        }
        let bytes = self.received[self.consumed..self.consumed + length].to_vec();
        self.consumed += length;
        Ok(bytes)
    }

    fn fill(&mut self) -> io::Result<()> {
        // Called in the middle of an answer only when everything before `consumed` is done with.
        if self.consumed == self.received.len() {
            self.received.clear();
            self.consumed = 0;
        }
        let mut chunk = [0; 64 * 1024];
        let read = self.stream.read(&mut chunk)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(&chunk[..read]);
        Ok(())
    }
}

/// A request on the wire.
pub(crate) fn encoded(request: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", request.len()).into_bytes();
    for part in request {
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The `key:value` lines of INFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Info(dsm_protocol::info::Info);

impl Info {
    /// Asks a node for its INFO on a connection of its own.
    ///
    /// # Errors
    /// Errors of the socket, or that the answer is not INFO.
    pub(crate) fn of(address: SocketAddr, timeout: Duration) -> io::Result<Info> {
        let mut connection = Connection::open(address, timeout)?;
        match connection.call(&[b"INFO"])? {
            Answer::Bulk(text) => Ok(Info::parse(&String::from_utf8_lossy(&text))),
            other => Err(invalid(&format!("{other:?} instead of INFO"))),
        }
    }

    fn parse(text: &str) -> Info {
        // Clients of Redis take a value with a comma and an equals sign for a list of names and values, and fail if it is none.
        for (_, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let is_list = value.contains(',') && value.contains('=');
            assert!(!is_list || value.split(',').all(|part| part.contains('=')), "no client reads {value}");
        }
        Info(dsm_protocol::info::Info::parse(text))
    }

    /// A value as text.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)
    }

    /// A value as a number.
    ///
    /// # Panics
    /// When it is missing or not a number: INFO must always have it.
    pub(crate) fn number(&self, key: &str) -> u64 {
        let value = self.get(key).unwrap_or_else(|| panic!("INFO lacks {key}: {:?}", self.0));
        value.parse().unwrap_or_else(|_| panic!("INFO: {key}:{value} is no number"))
    }

    /// `primary`, `standby` or `recovering`.
    pub(crate) fn role(&self) -> &str {
        self.get("dsm_role").unwrap_or("")
    }

    /// The ids of the slaves that are listed, in the order of their numbers.
    pub(crate) fn slave_ids(&self) -> Vec<String> {
        self.of_slaves("id")
    }

    /// A field of each slave that is listed, in the order of their names.
    pub(crate) fn of_slaves(&self, name: &str) -> Vec<String> {
        self.0.slaves().filter_map(|slave| slave.get(name).map(ToString::to_string)).collect()
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}
